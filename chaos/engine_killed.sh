#!/usr/bin/env bash
# chaos/engine_killed.sh [ROUNDS]
# The fault: the Docker Engine is killed with -9, or stopped, or hangs, while jobs run, and is back some seconds later; in some
# rounds the agent is killed meanwhile.
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
    local rounds="${1:-${HACKBRAIN_ROUNDS:-3}}" round first away_ms way also
    # shellcheck disable=SC2119 # the script's arguments are none of its
    begin_jobs_with_own_engine
    start_agent
    start_observer follower
    start_jobs jobs
    # A drawn beginning, then in turn: few rounds meet all ways.
    draw 0 "${#WAYS[@]}"
    first=$DRAWN
    for ((round = 1; round <= rounds; round++)); do
        wait_for "a container" any_container
        draw 200 1500
        sleep_ms "$DRAWN"
        way="${WAYS[(first + round) % ${#WAYS[@]}]}"
        draw 200 2500
        away_ms=$DRAWN
        draw 0 3
        also=$DRAWN
        engine "$way"
        [ "$also" -ne 0 ] || kill_agent
        sleep_ms "$away_ms"
        if [ "$way" = hang ]; then engine wake; else engine start; fi
        [ "$also" -ne 0 ] || start_agent
        say "round $round of $rounds: $way, $away_ms ms$([ "$also" -ne 0 ] || echo ", agent killed"), $(acknowledged) acknowledged"
    done
    finish --causes engine
    say "engine_killed: $rounds outages, $(cat "$DIR/counts")"
}

main "$@"
