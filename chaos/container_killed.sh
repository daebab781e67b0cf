#!/usr/bin/env bash
# chaos/container_killed.sh [ROUNDS]
# The fault: the container of payloads/wal_physics.py is killed with -9 while the payload is inside fsync.
# The promise: CRASH `killed`, then RECOVERY in the same directory; the payload goes on at least from the last step that it had
# announced, announces none twice, and its result is, byte by byte, that of a run that nobody disturbed.
# In short: CRASH, RECOVERY, no announced step lost, the undisturbed result.
#
# Five rounds, or HACKBRAIN_ROUNDS; each is a job whose container is killed up to three times. HACKBRAIN_SEED repeats the
# moments; HACKBRAIN_BIN names the binary. Needs root and a Docker Engine. Not simulated: the page cache is kept, so that what
# a lost fsync would lose is not seen; the agent goes on (see both_killed.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_jobs.sh
. "$(dirname "$0")/lib_jobs.sh"

# Seconds on a fast machine.
STEPS=2000

main() {
    usage_if_asked "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-5}}"
    local round
    begin_jobs
    start_agent
    start_observer follower
    for ((round = 1; round <= ROUNDS; round++)); do
        draw 1 4
        start_jobs "$round" --physics "$STEPS"
        kill_in_sync "$PREFIX-$round-0" "$DRAWN" "$STEPS"
        say "round $round of $ROUNDS: killed ${#MET[@]} times: ${MET[*]}"
    done
    finish --exact --causes killed --at-least "physics=$ROUNDS"
    check_killed
    say "container_killed: $ROUNDS rounds, $(cat "$DIR/counts")"
}

main "$@"
