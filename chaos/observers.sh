#!/usr/bin/env bash
# chaos/observers.sh [ROUNDS]
# The fault: observers of the event stream that do not read at all, read a few KiB a second, or vanish every moment, half of
# them by a reset, while jobs are submitted as fast as the agent takes them.
# The promise: no submission fails for it; who reads gets each event once, in order, as it was, also the slow and the vanishing
# ones once they come back; who never reads is cut off, and what it held is freed.
# In short: slow and vanishing ones cost the others nothing, get every event.
#
# For each of HACKBRAIN_ROUNDS (five) two seconds of load; the slow ones are slow for ten seconds more. HACKBRAIN_SEED repeats the
# jobs and the moments; HACKBRAIN_BIN names the binary. Needs root. Not simulated: more than a few dozen of them (scripts/attack), a network (remote_observer.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_jobs.sh
. "$(dirname "$0")/lib_jobs.sh"

STALLED=12
VANISHING=6
SLOW=2
ROUND_S=2
# Far below what the agent puts up with for more than a few seconds, so it is cut, and resumes.
SLOW_BYTES_PER_S=4000
SLOW_S=10

STALLED_PID=

main() {
    usage_if_asked "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-5}}"
    local number sockets
    begin
    mkdir "$DIR/streams"
    defer kill_agent
    defer end_children
    defer stop_load
    defer end_stalled
    start_agent
    sockets="$(sockets_of_agent)"
    start_observer follower
    for ((number = 0; number < VANISHING; number++)); do
        start_observer "vanishing-$number" --vanish 0.5
    done
    for ((number = 0; number < SLOW; number++)); do
        start_observer "slow-$number" --slow "$SLOW_BYTES_PER_S" --slow-for $((ROUNDS * ROUND_S + SLOW_S))
    done
    python3 - "$URL" "$STALLED" "$DIR/stalled" <<'PYTHON' &
import socket, sys, time, urllib.parse
url, count, sign = sys.argv[1:]
place = urllib.parse.urlparse(url)
held = []
for _ in range(int(count)):
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.connect((place.hostname, place.port))
    stalled.sendall(b"GET /api/events?after=0 HTTP/1.1\r\nHost: %s\r\n\r\n" % place.netloc.encode())
    held.append(stalled)
open(sign, "w").close()
time.sleep(3600)
PYTHON
    STALLED_PID=$!
    wait_for "the stalled ones" test -e "$DIR/stalled"
    start_load 1
    sleep $((ROUNDS * ROUND_S))
    stop_load
    check_all_accepted
    await_observers
    for ((number = 0; number < VANISHING; number++)); do
        has_resumed "vanishing-$number" 2
    done
    for ((number = 0; number < SLOW; number++)); do
        has_resumed "slow-$number" 1
    done
    # All others have gone, and these still hold their ends: it is the agent that lets go, of everything.
    PATIENCE_S=300 wait_for "the end of those who do not read" has_no_subscriber
    PATIENCE_S=300 wait_for "sockets that are closed" has_sockets "$sockets"
    kill -0 "$STALLED_PID" || die "the stalled ones have ended by themselves"
    end_stalled
    check_served
    end_agent TERM
    [ "$AGENT_STATUS" -eq 0 ] || die "the agent ended with $AGENT_STATUS: $(tail -n 3 "$AGENT_LOG")"
    # The stop is an event more, which nobody waited for.
    check_ledger
    check_streams
    say "observers: $(acknowledged) acknowledged, ${#OBSERVERS[@]} observers with each event, $STALLED cut off"
}

check_all_accepted() {
    local other
    other="$(cat "$DIR"/answers/* | grep -vc '} 200$' || true)"
    [ "$other" -eq 0 ] || die "$other submissions were not taken: $(cat "$DIR"/answers/* | grep -v '} 200$' | head -n 3)"
}

end_stalled() {
    [ -n "$STALLED_PID" ] || return 0
    kill "$STALLED_PID" 2>/dev/null || true
    wait "$STALLED_PID" 2>/dev/null || true
    STALLED_PID=
}

has_no_subscriber() { curl -s -m "$PATIENCE_S" "$URL/metrics" | grep -qx 'hackbrain_sse_subscribers 0'; }

sockets_of_agent() { find "/proc/$AGENT_PID/fd" -lname 'socket:*' 2>/dev/null | wc -l; }

has_sockets() { [ "$(sockets_of_agent)" -le "$1" ]; }

check_streams() {
    local stream events
    for stream in "${OBSERVERS[@]}"; do
        events="$(wc -l <"$stream")"
        [ "$events" -ge "$(cat "$DIR/until")" ] || die "$stream has $events events of $(cat "$DIR/until")"
        head -n "$events" "$DIR/dump" | cmp -s - "$stream" || die "$stream is not what the ledger holds"
    done
}

main "$@"
