#!/usr/bin/env bash
# chaos/both_killed.sh [ROUNDS]
# The fault: the container of payloads/wal_physics.py is killed with -9 inside fsync, and the agent within the next 300 ms, or
# the agent first.
# The promise: the agent that comes back finds out what happened: CRASH `killed` once, RECOVERY once, no step that was
# announced is lost, no attempt is started twice, and the result is that of a run that nobody disturbed.
# In short: who comes back finds out what happened, once.
#
# Five rounds, or HACKBRAIN_ROUNDS. HACKBRAIN_SEED repeats the moments; HACKBRAIN_BIN names the binary. Needs root and a Docker
# Engine. Not simulated: the page cache is kept; the engine lives on and remembers how the container ended (see engine_killed.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_jobs.sh
. "$(dirname "$0")/lib_jobs.sh"

# Seconds on a fast machine.
STEPS=3000

main() {
    usage_if_asked "$@"
    local rounds="${1:-${HACKBRAIN_ROUNDS:-5}}" round first gap_ms
    begin_jobs
    start_agent
    start_observer follower
    for ((round = 1; round <= rounds; round++)); do
        draw 0 300
        gap_ms=$DRAWN
        draw 0 2
        first=$DRAWN
        start_jobs "$round" --physics "$STEPS"
        await_container "$PREFIX-$round-0" 1
        if [ "$first" -eq 0 ]; then
            kill_in_sync "$PREFIX-$round-0" 1 "$STEPS"
            sleep_ms "$gap_ms"
            kill_agent
        else
            kill_agent
            sleep_ms "$gap_ms"
            kill_in_sync "$PREFIX-$round-0" 1 "$STEPS"
        fi
        check_ledger
        start_agent
        say "round $round of $rounds: $([ "$first" -eq 0 ] && echo container || echo agent) first, $gap_ms ms between, ${MET[*]}"
    done
    finish --exact --causes killed
    check_killed
    say "both_killed: $rounds rounds, $(cat "$DIR/counts")"
}

main "$@"
