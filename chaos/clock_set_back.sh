#!/usr/bin/env bash
# chaos/clock_set_back.sh [ROUNDS]
# The fault: the agent's wall clock jumps back and forth, by up to half a year at a time, while jobs run; in every second round
# the agent is killed and comes back in that other time.
# The promise: the ledger's time never goes back, nothing acknowledged is lost, no deadline is met too early, and every job is
# sealed by its first attempt.
# In short: the ledger's time never goes back, no deadline too early.
#
# Five rounds, or HACKBRAIN_ROUNDS; every third goes forward. HACKBRAIN_SEED repeats the times; HACKBRAIN_BIN names the binary.
# Needs root, a Docker Engine, and x86_64: clock.py gives the agent a clock of its own, and the host's is not touched. Not
# simulated: the engine's clock and the times of files, which stay true.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_jobs.sh
. "$(dirname "$0")/lib_jobs.sh"

YEAR_S=31536000

main() {
    usage_if_asked "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-5}}"
    local round offset_s=0
    [ "$(uname -m)" = x86_64 ] || skip "another clock for one process is had on x86_64 only"
    begin_jobs
    "$ROOT/chaos/clock.py" run 0 true 2>"$DIR/clock.log" || skip "no clock of its own: $(tail -n 1 "$DIR/clock.log")"
    AGENT_PREFIX=("$ROOT/chaos/clock.py" run 0)
    start_agent
    start_observer follower
    start_jobs jobs
    for ((round = 1; round <= ROUNDS; round++)); do
        wait_for "a container" any_container
        draw 300 1500
        sleep_ms "$DRAWN"
        # Further back each time, and then forward again.
        draw 3600 $((YEAR_S / 2))
        if [ $((round % 3)) -eq 0 ]; then offset_s=$((offset_s + DRAWN)); else offset_s=$((offset_s - DRAWN)); fi
        AGENT_PREFIX=("$ROOT/chaos/clock.py" run "$offset_s")
        if [ $((round % 2)) -eq 0 ]; then
            kill_living_agent
            check_ledger
            start_agent
        else
            "$ROOT/chaos/clock.py" set "$AGENT_PID" "$offset_s" || die "the clock cannot be set"
        fi
        check_clock "$offset_s"
        say "round $round of $ROUNDS: $offset_s s off$([ $((round % 2)) -ne 0 ] || echo ", after a kill"), $(acknowledged) acknowledged"
    done
    finish --exact --at-least outputs=1
    say "clock_set_back: $ROUNDS changes, $(cat "$DIR/counts")"
}

# check_clock OFFSET_S: the agent believes it, as the date of its answers tells; else nothing was tried.
check_clock() {
    local told
    told="$(curl -s -m "$PATIENCE_S" -D - -o /dev/null "$URL/healthz" | sed -n 's/^[Dd]ate: //p' | tr -d '\r')"
    python3 -c '
import email.utils, sys, time
off = email.utils.parsedate_to_datetime(sys.argv[1]).timestamp() - time.time()
sys.exit(abs(off - int(sys.argv[2])) > 600)' "$told" "$1" || die "the agent says $told, which is not $1 s off"
}

main "$@"
