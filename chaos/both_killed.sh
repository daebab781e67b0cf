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
STEPS=2000

main() {
    usage_if_asked "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-5}}"
    local round turn first gap_ms
    begin_jobs
    start_agent
    start_observer follower
    # A drawn beginning, then in turn, so that two rounds meet both.
    draw 0 2
    turn=$DRAWN
    for ((round = 1; round <= ROUNDS; round++)); do
        draw 0 300
        gap_ms=$DRAWN
        first=$(((turn + round) % 2))
        start_jobs "$round" --physics "$STEPS"
        await_container "$PREFIX-$round-0" 1
        if [ "$first" -eq 0 ]; then
            kill_in_sync "$PREFIX-$round-0" 1 "$STEPS"
            sleep_ms "$gap_ms"
            kill_living_agent
        else
            kill_living_agent
            sleep_ms "$gap_ms"
            kill_in_sync "$PREFIX-$round-0" 1 "$STEPS"
        fi
        check_ledger
        start_agent
        say "round $round of $ROUNDS: $([ "$first" -eq 0 ] && echo container || echo agent) first, $gap_ms ms between, ${MET[*]}"
    done
    # Of those whose agent went first, it is sure that the next one had to find out.
    finish --exact --causes killed --at-least "physics=$ROUNDS,found_later=$((ROUNDS / 2))"
    check_killed
    say "both_killed: $ROUNDS rounds, $(cat "$DIR/counts")"
}

main "$@"
