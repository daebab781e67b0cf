#!/usr/bin/env bash
# chaos/engine_killed.sh [ROUNDS]
# The fault: the Docker Engine is killed with -9, or stopped, or hangs, while jobs run, and is back some seconds later; in
# every second outage the agent is killed meanwhile.
# The promise: jobs are taken all the time. What the engine ended is CRASH `engine`, never the payload's own end, and goes on in
# RECOVERY; no attempt is started twice, and every job is sealed with the result of an undisturbed run.
# In short: what the engine ended goes on, no attempt twice.
#
# An engine of its own, in a network namespace, never the machine's. Three rounds, or HACKBRAIN_ROUNDS. HACKBRAIN_SEED repeats
# the moments; HACKBRAIN_BIN names the binary. Needs root and dockerd. Not simulated: an engine that loses its own files, and
# one with live-restore (tests/engine_outage_test.py has both).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_jobs.sh
. "$(dirname "$0")/lib_jobs.sh"

WAYS=(kill stop hang)

main() {
    usage_if_asked "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-3}}"
    local round first away_ms way also ended=0
    # shellcheck disable=SC2119 # the script's arguments are none of its
    begin_jobs_with_own_engine
    start_agent
    start_observer follower
    start_jobs jobs
    # A drawn beginning, then in turn: few rounds meet all ways.
    draw 0 "${#WAYS[@]}"
    first=$DRAWN
    for ((round = 1; round <= ROUNDS; round++)); do
        wait_for "a container" any_container
        draw 200 1500
        sleep_ms "$DRAWN"
        way="${WAYS[(first + round) % ${#WAYS[@]}]}"
        draw 200 2500
        away_ms=$DRAWN
        # In every second outage, from the first or the second on.
        also=$(((first + round) % 2))
        engine "$way"
        [ "$way" = hang ] || ended=1
        [ "$also" -ne 0 ] || kill_living_agent
        sleep_ms "$away_ms"
        if [ "$way" = hang ]; then engine wake; else engine start; fi
        [ "$also" -ne 0 ] || start_agent
        # Told by an agent that sees it: else the next outage could come before the last was over.
        wait_for "an engine that answers" engine_is_seen
        say "round $round of $ROUNDS: $way, $away_ms ms$([ "$also" -ne 0 ] || echo ", agent killed"), $(acknowledged) acknowledged"
    done
    finish --causes engine --at-least "crashes_engine=$ended,physics=1"
    say "engine_killed: $ROUNDS outages, $(cat "$DIR/counts")"
}

engine_is_seen() { curl -s -m "$PATIENCE_S" "$URL/api/node" | grep -q '"available":true'; }

main "$@"
