# shellcheck shell=bash
# Follows a job's events from the agent's stream and prints one line each. Sourced by quickstart, which provides URL,
# agent_lives and chaos_step.

# The stream carries a comment every 10 s, so this long without a byte means that it is dead.
STREAM_SILENCE_S=25
# A job that has not even started by then waits for something.
WAITING_HINT_S=60
# D1_STABLE lines shown: at most one in so many seconds.
STABLE_EVERY_S=1

# follow_trace JOB BINARY: returns when the job is SEALED; FAILED or CANCELLED end the script. A broken stream is taken up
# again after the last event seen, so nothing is shown twice and nothing is missed.
follow_trace() {
    local job=$1 binary=$2
    # last_seq, final and the counters are set by show_event.
    local last_seq=0 final='' attempt=0 step=0 stable=0 stable_hidden=0 stable_shown_at=-1 began=$SECONDS stream curl_pid
    while [ -z "$final" ]; do
        exec {stream}< <(exec curl -sN "$URL/api/events?job=$job&after=$last_seq")
        curl_pid=$!
        read_stream "$stream"
        exec {stream}<&-
        kill "$curl_pid" 2>/dev/null || true
        [ -n "$final" ] && break
        agent_lives || die "the agent ended; its log: $AGENT_LOG"
        sleep 0.2
    done
    case "$final" in
    SEALED) say "sealed after $((SECONDS - began)) s, $stable D1_STABLE events" ;;
    *) explain_and_die "$job" ;;
    esac
}

# Takes the stream apart into events until it ends, falls silent, or the job ended.
read_stream() {
    local line data='' kind=''
    while [ -z "$final" ] && IFS= read -r -t "$STREAM_SILENCE_S" line <&"$1"; do
        line="${line%$'\r'}"
        case "$line" in
        'data: '*) data="${line#data: }" ;;
        'event: '*) kind="${line#event: }" ;;
        '')
            # Telemetry and log growth come under a name; the ledger's events have none.
            [ -z "$data" ] || [ -n "$kind" ] || show_event "$data"
            data='' kind=''
            ;;
        ': '*) hint_if_waiting ;;
        esac
    done
}

# The fields that matter have no escapes in them, but for the text of a marker or a reason, which is only shown.
show_event() {
    local event=$1 time='' state='' text=''
    [[ $event =~ \"seq\":([0-9]+) ]] && last_seq="${BASH_REMATCH[1]}"
    [[ $event =~ \"time\":\"[0-9-]+T([0-9:]+\.[0-9]{3}) ]] && time="${BASH_REMATCH[1]}"
    [[ $event =~ \"attempt\":([0-9]+) ]] && attempt="${BASH_REMATCH[1]}"
    [[ $event =~ \"state\":\"([A-Z0-9_]+)\" ]] && state="${BASH_REMATCH[1]}"
    case "$state" in
    D1_STABLE)
        stable=$((stable + 1))
        [[ $event =~ \ step=([0-9]+) ]] && step="${BASH_REMATCH[1]}"
        if [ $((SECONDS - stable_shown_at)) -lt "$STABLE_EVERY_S" ] && [ "$stable_shown_at" -ge 0 ]; then
            stable_hidden=$((stable_hidden + 1))
        else
            [[ $event =~ \"line\":\"(([^\"\\]|\\.)*)\" ]] && text="${BASH_REMATCH[1]}"
            [ "$stable_hidden" -eq 0 ] || text="$text  (and $stable_hidden before it)"
            print_event "$time" "$attempt" "$state" "$text"
            stable_hidden=0 stable_shown_at=$SECONDS
        fi
        ;;
    *)
        # The first marker after a change of state is always shown.
        stable_shown_at=-1
        for key in cause reason image_id execution_hash container seal_hash; do
            if [[ $event =~ \"$key\":\"(([^\"\\]|\\.)*)\" ]]; then text="$text $key=${BASH_REMATCH[1]}"; fi
        done
        print_event "$time" "$attempt" "$state" "${text# }"
        ;;
    esac
    case "$state" in SEALED | FAILED | CANCELLED) final=$state ;; esac
    chaos_step "$job" "$step" "$attempt" "$binary"
}

print_event() { printf '  %s  %s  %-10s %s\n' "$1" "$2" "$3" "$4" >&2; }
note() { printf '  ----- %s\n' "$*" >&2; }

hint_if_waiting() {
    if [ "$attempt" -eq 0 ] && [ $((SECONDS - began)) -ge "$WAITING_HINT_S" ]; then
        note "still waiting; the agent's log may say why: $AGENT_LOG"
    fi
}

explain_and_die() {
    local job=$1 summary
    summary="$(curl -sS --max-time 10 "$URL/api/jobs/$job" || true)"
    say "$summary"
    say "last lines of its stderr:"
    (curl -sS --max-time 10 "$URL/api/jobs/$job/stderr" | tail -n 10 | sed 's/^/  | /') >&2 || true
    die "$job ended $final"
}
