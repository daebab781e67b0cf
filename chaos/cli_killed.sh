#!/usr/bin/env bash
# chaos/cli_killed.sh [ROUNDS]
# The fault: every Docker CLI that the agent has running for its jobs is killed with -9, again and again; in every second round
# the agent with them.
# The promise: a CLI is no witness. Containers go on, every job is sealed by its first attempt, and what it printed is stored
# whole, each byte once.
# In short: a CLI is no witness: containers go on, no byte of output lost.
#
# Five rounds, or HACKBRAIN_ROUNDS. HACKBRAIN_SEED repeats the moments; HACKBRAIN_BIN names the binary. Needs root and a Docker
# Engine. Not simulated: a CLI that lives and lies, or hangs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_jobs.sh
. "$(dirname "$0")/lib_jobs.sh"

main() {
    usage_if_asked "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-5}}"
    local round killed=0 with_agent=0
    begin_jobs
    start_agent
    start_observer follower
    start_jobs jobs
    for ((round = 1; round <= ROUNDS; round++)); do
        wait_for "a container" any_container
        draw 0 1500
        sleep_ms "$DRAWN"
        wait_for "a CLI" any_cli
        [ $((round % 2)) -eq 1 ] || kill_living_agent
        kill_clis
        killed=$((killed + KILLED))
        if [ $((round % 2)) -eq 0 ]; then
            with_agent=$((with_agent + KILLED))
            check_ledger
            start_agent
        fi
        say "round $round of $ROUNDS: $KILLED CLIs killed$([ $((round % 2)) -eq 1 ] || echo ", and the agent")"
    done
    finish --exact --at-least outputs=1
    [ "$killed" -gt "$with_agent" ] || die "no CLI was there to be killed while the agent was"
    [ "$with_agent" -gt 0 ] || [ "$ROUNDS" -lt 2 ] || die "no CLI was there to be killed after the agent"
    say "cli_killed: $killed CLIs killed, $with_agent of them after the agent, $(cat "$DIR/counts")"
}

main "$@"
