#!/usr/bin/env bash
# chaos/remote_observer.sh [CUT_S]
# The fault: an observer in another network namespace, behind a line with delay, jitter and loss, which is then cut for a while
# without a word to either end.
# The promise: the execution side does not notice. Jobs are taken, run and are sealed while the line is cut, each by its first
# attempt; and the observer ends with every event, each once, byte by byte.
# In short: the execution side does not notice, every event arrives.
#
# The cut lasts CUT_S, or HACKBRAIN_CUT_S seconds (10; the long form is 60). HACKBRAIN_DELAY_MS (80), HACKBRAIN_JITTER_MS (20) and
# HACKBRAIN_LOSS (5, percent) make the line. HACKBRAIN_SEED repeats what it loses, and the jobs; HACKBRAIN_BIN names the binary.
# Needs root, a Docker Engine and /dev/net/tun. The line is link.py between two kernels' TCP, because `tc netem` is in few
# small kernels. Not simulated: packets that are changed, doubled, or that overtake each other; a relay that answers by itself.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_jobs.sh
. "$(dirname "$0")/lib_jobs.sh"

SEALED_MEANWHILE=3

main() {
    usage_if_asked "$@"
    local cut_s="${1:-${HACKBRAIN_CUT_S:-10}}" before after at counts
    a_number "the seconds of the cut" "$cut_s"
    note rounds "${cut_s}s"
    [ -c /dev/net/tun ] || skip "there is no /dev/net/tun"
    begin_jobs ip nsenter
    make_line
    AGENT_PREFIX=(nsenter "--net=/var/run/netns/$HERE")
    CLIENT_PREFIX=("${AGENT_PREFIX[@]}")
    LISTEN=$AGENT_ADDRESS
    AGENT_FLAGS+=(--trust-network)
    start_agent
    start_observer local
    # This one only is at the far end.
    CLIENT_PREFIX=(nsenter "--net=/var/run/netns/$THERE")
    start_observer remote --silence 15
    CLIENT_PREFIX=("${AGENT_PREFIX[@]}")
    start_jobs jobs
    wait_for "the first events at the far end" test -s "$DIR/streams/remote"
    wait_for "sealed jobs" sealed_are "$SEALED_MEANWHILE"

    touch "$DIR/cut"
    # What had arrived may still be on its way to the file.
    sleep 1
    SECONDS=0
    before="$(jobs_in SEALED)" at="$(wc -l <"$DIR/streams/remote")"
    wait_for "jobs that are sealed meanwhile" sealed_are $((before + SEALED_MEANWHILE))
    while [ "$SECONDS" -lt "$cut_s" ]; do sleep 0.2; done
    after="$(jobs_in SEALED)"
    # Else it was no cut.
    [ "$(wc -l <"$DIR/streams/remote")" -eq "$at" ] || die "events came through a line that was cut"
    [ "$(wc -l <"$DIR/streams/local")" -gt "$at" ] || die "there was nothing to be missed"
    say "the line was cut for $SECONDS s, at event $at; $((after - before)) jobs sealed meanwhile"
    rm "$DIR/cut"
    counts="$(line_counts)"
    [[ "$counts" =~ lost=[1-9].*cut=[1-9] ]] || die "the line has lost nothing: $counts"
    say "the line: $counts"

    PATIENCE_S=300 finish --exact --at-least outputs=1
    check_refused
    say "remote_observer: a cut of $cut_s s, $(cat "$DIR/counts")"
}

# Whatever was answered was a yes: nobody was turned away.
check_refused() {
    local other
    other="$(cat "$DIR"/answers/* | grep -vc '} 200$' || true)"
    [ "$other" -eq 0 ] || die "$other submissions were not taken: $(cat "$DIR"/answers/* | grep -v '} 200$' | head -n 3)"
}

main "$@"
