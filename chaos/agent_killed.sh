#!/usr/bin/env bash
# chaos/agent_killed.sh [ROUNDS]
# The fault: the agent is killed with -9 at random moments while jobs are submitted, run and are sealed.
# The promise: whatever was acknowledged is in the ledger, every job is sealed by its first and only attempt, no container is
# started twice, and an observer that resumes gets each event once, as it was.
# In short: nothing acknowledged lost, no attempt twice, the stream the same.
#
# Five rounds, or HACKBRAIN_ROUNDS. HACKBRAIN_SEED repeats the moments and the jobs; HACKBRAIN_BIN names the binary. Needs
# root and a Docker Engine. Not simulated: the page cache is kept, since the kernel lives on (see power_cut.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_jobs.sh
. "$(dirname "$0")/lib_jobs.sh"

main() {
    usage_if_asked "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-5}}"
    local round after_ms
    begin_jobs
    start_agent
    start_observer follower
    start_jobs jobs
    for ((round = 1; round <= ROUNDS; round++)); do
        wait_for "a container" any_container
        draw 100 2500
        after_ms=$DRAWN
        sleep_ms "$after_ms"
        kill_living_agent
        check_ledger
        start_agent
        say "round $round of $ROUNDS: killed after $after_ms ms, $(acknowledged) acknowledged so far"
    done
    finish --exact --at-least outputs=1,physics=1
    has_resumed follower 1
    # Else no container was there to go on without an agent.
    [ "$(taken_up)" -gt 0 ] || die "no attempt ran while an agent was killed"
    say "agent_killed: $ROUNDS kills, $(taken_up) attempts taken up again, $(cat "$DIR/counts")"
}

main "$@"
