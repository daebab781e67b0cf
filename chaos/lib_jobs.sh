# shellcheck shell=bash
# What those chaos scripts share whose jobs run: containers of an engine, a load of jobs, observers, the check of all of it.
# Sourced, never run; brings lib.sh along.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

WORKERS=4
# For a payload to be met inside fsync, which is where wal_physics spends its time.
SYNC_PATIENCE_S=5
IN_FLIGHT=6
AGENT_ADDRESS=10.99.77.1
OBSERVER_ADDRESS=10.99.77.2
IMAGES=(busybox:latest python:3.9-slim)

LOAD_PIDS=()
OBSERVERS=()
OBSERVER_PIDS=()
declare -A HELD HELD_IN HELD_OUT

# begin_jobs [TOOL…]: begin, with the machine's engine. Names of jobs are this run's own: containers are called after them.
begin_jobs() {
    ENGINE_HOST="${DOCKER_HOST:-unix:///var/run/docker.sock}"
    have docker || skip "there is no docker"
    engine_answers || skip "no Docker Engine answers: scripts/engine-up makes one"
    local image
    for image in "${IMAGES[@]}"; do
        docker image inspect "$image" >/dev/null 2>&1 || skip "there is no $image: scripts/images makes it"
    done
    begin "$@"
    mkdir "$DIR/jobs" "$DIR/streams"
    PREFIX="chaos-$$-$SEED"
    AGENT_FLAGS+=(--mount-root "$DIR/jobs" --workers "$WORKERS")
    # In this order backwards: control groups go once nothing is in them, containers once nobody takes them up.
    defer remove_groups
    if [ -n "${OWN_ENGINE:-}" ]; then start_own_engine; else defer remove_containers; fi
    defer unmount_binds
    defer kill_agent
    defer end_children
}

# begin_jobs_with_own_engine [TOOL…]: the same with an engine of the script's own, to be killed. The machine's gives the images.
begin_jobs_with_own_engine() {
    OWN_ENGINE=yes
    begin_jobs dockerd ip nsenter "$@"
}

start_own_engine() {
    # Sockets have short paths, and an agent trusts no directory that everybody may write to.
    ENGINE_DIR="$(mktemp -d /run/hb-chaos.XXXXXX)"
    defer rm -rf --one-file-system "$ENGINE_DIR"
    hold engine "$ROOT/chaos/engine.py" "$ENGINE_DIR/e"
    read -r _ ENGINE_HOST <&"${HELD_OUT[engine]}" || die "no engine: $(tail -n 3 "$DIR/engine.log")"
}

# engine DEED: kill, stop, start, hang, wake, power.
engine() {
    local answer=
    echo "$1" >&"${HELD_IN[engine]}"
    read -r answer <&"${HELD_OUT[engine]}" || die "engine $1: $(tail -n 3 "$DIR/engine.log")"
    [ "$answer" = "done" ] || die "engine $1: $answer"
}

# hold NAME COMMAND…: runs beside, told by lines on HELD_IN[NAME], answers on HELD_OUT[NAME], and ends with its input, or at the
# line `end`. Its standard error is in $DIR/NAME.log.
hold() {
    local name=$1 in out
    shift
    mkfifo "$DIR/$name.in" "$DIR/$name.out"
    "$@" <"$DIR/$name.in" >"$DIR/$name.out" 2>"$DIR/$name.log" &
    HELD[$name]=$!
    exec {in}>"$DIR/$name.in" {out}<"$DIR/$name.out"
    HELD_IN[$name]=$in HELD_OUT[$name]=$out
    defer let_go "$name"
}

let_go() {
    local in=${HELD_IN[$1]} out=${HELD_OUT[$1]} status=0
    # Told besides: the end of the input comes only once everybody has let go who began after it, CLIs included.
    (
        trap '' PIPE
        echo end >&"$in"
    ) 2>/dev/null || true
    exec {in}>&- {out}<&-
    wait "${HELD[$1]}" || status=$?
    [ "$status" -eq 0 ] || cat "$DIR/$1.log" >&2
    return "$status"
}

docker_here() { DOCKER_HOST="$ENGINE_HOST" docker "$@"; }

# What a killed agent leaves to the next one, where there is none: containers, names of images, control groups, mounts. By name,
# which each container of this run has from the beginning. Of an engine that goes as a whole, these two need not.
remove_containers() {
    local tries container tag left=yes log_id=
    [ ! -e "$DIR/log_id" ] || log_id="$(cat "$DIR/log_id")"
    # A CLI that was on its way may make one more, and what the engine is removing already is no error.
    for ((tries = 0; tries < 100; tries++)); do
        if left="$(timeout 60 docker ps -aq --filter "name=^hb-$PREFIX-")" && [ -z "$left" ]; then break; fi
        for container in $left; do timeout 60 docker rm -f "$container" >/dev/null 2>&1 || true; done
        sleep 0.1
    done
    [ -z "$left" ] || return 1
    [ -n "$log_id" ] || return 0
    for tag in $(docker images --format '{{.Tag}}' hackbrain/pin | sed -n "/^${log_id:0:8}/p"); do
        docker rmi --no-prune "hackbrain/pin:$tag" >/dev/null || return 1
    done
}

remove_groups() {
    local log_id group tries
    [ -s "$DIR/log_id" ] || return 0
    log_id="$(cat "$DIR/log_id")"
    for group in /sys/fs/cgroup/*/"hackbrain-${log_id:0:8}" /sys/fs/cgroup/"hackbrain-${log_id:0:8}"; do
        # The kernel takes a moment to notice that what was in it has ended.
        for ((tries = 0; tries < 100; tries++)); do
            [ -d "$group" ] || break
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
        done
        [ ! -d "$group" ] || return 1
    done
}

# What a killed agent had bound for its jobs.
unmount_binds() {
    local place failed=0
    while IFS= read -r place; do
        umount "$place" || failed=1
    done < <(awk -v below="$DIR/mnt/data/mnt/" 'index($5, below) == 1 {print $5}' /proc/self/mountinfo | tac)
    return "$failed"
}

# start_jobs NAME [ARGUMENT…]: jobs all the time, until stop_jobs. Returns when the first is acknowledged.
start_jobs() {
    local name=$1
    shift
    note_log_id
    rm -f "$DIR/stop"
    "${CLIENT_PREFIX[@]}" "$ROOT/chaos/load.py" --url "$DIR/url" --jobs "$DIR/jobs" --answers "$DIR/answers/$name" \
        --prefix "$PREFIX-$name" --stop "$DIR/stop" --in-flight "$IN_FLIGHT" --seed "$SEED" "$@" &
    LOAD_PIDS+=("$!")
    wait_for "the first job" has_answers "$DIR/answers/$name"
}

has_answers() { grep -qs '} 200$' "$1"; }

note_log_id() {
    [ ! -s "$DIR/log_id" ] || return 0
    "${CLIENT_PREFIX[@]}" curl -s -m "$PATIENCE_S" "$URL/api/node" |
        sed -n 's/.*"log_id":"\([0-9a-f]\{8,\}\)".*/\1/p' >"$DIR/log_id"
    [ -s "$DIR/log_id" ] || die "the agent does not tell its ledger's id"
}

# start_observer NAME [ARGUMENT…]: its stream must be the ledger in the end.
start_observer() {
    local name=$1
    shift
    "${CLIENT_PREFIX[@]}" "$ROOT/chaos/observer.py" --url "$DIR/url" --out "$DIR/streams/$name" --until "$DIR/until" \
        --seed "$SEED" "$@" &
    OBSERVER_PIDS+=("$!")
    OBSERVERS+=("$DIR/streams/$name")
}

stop_jobs() {
    touch "$DIR/stop"
    local pid
    for pid in "${LOAD_PIDS[@]}"; do wait "$pid" || die "the load ended with $?"; done
    LOAD_PIDS=()
}

end_children() {
    [ -d "$DIR" ] || return 0
    touch "$DIR/stop"
    local pid
    for pid in "${LOAD_PIDS[@]}" "${OBSERVER_PIDS[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
}

# jobs_in STATE…: how many, as the agent says; of `open` all that have not ended. Fails where it is away.
jobs_in() {
    "${CLIENT_PREFIX[@]}" curl -s -m "$PATIENCE_S" "$URL/api/node" | python3 -c '
import json, sys
jobs = json.loads(sys.stdin.read() or sys.exit(1))["jobs"]
ended = ("SEALED", "FAILED", "CANCELLED")
print(sum(count for state, count in jobs.items() if state in sys.argv or "open" in sys.argv and state not in ended))' "$@"
}

all_ended() { [ "$(jobs_in open)" = 0 ]; }

# sealed_are N: at least so many are.
sealed_are() { [ "$(jobs_in SEALED)" -ge "$1" ]; }

# await_observers: until each has what the ledger holds now. Fails where one has met a gap, a repeat, or a ledger with less.
await_observers() {
    local head pid failed=0
    head="$("${CLIENT_PREFIX[@]}" curl -s -m "$PATIENCE_S" "$URL/api/ledger/head" | sed -n 's/.*"seq":\([0-9]*\).*/\1/p')"
    [ -n "$head" ] || die "the agent does not tell its head"
    echo "$head" >"$DIR/until.new"
    mv "$DIR/until.new" "$DIR/until"
    for pid in "${OBSERVER_PIDS[@]}"; do
        PATIENCE_S=300 wait_for "an observer that has each event" has_ended "$pid"
        wait "$pid" || failed=1
    done
    OBSERVER_PIDS=()
    [ "$failed" -eq 0 ] || say "an observer has not got what the ledger holds"
    return "$failed"
}

# has_resumed NAME TIMES: that observer had to begin anew at least so often; else its stream was never cut.
has_resumed() {
    local connections
    connections="$(cat "$DIR/streams/$1.connections")"
    [ "$connections" -gt "$2" ] || die "observer $1 had $connections connections: its stream was not cut $2 times"
}

has_ended() { ! kill -0 "$1" 2>/dev/null; }

# finish [ARGUMENT of check.py…]: no jobs come any more, all end, the agent stops, and every promise is looked at. The agent
# comes up once more: what it serves is asked for. Prints what check.py counted.
finish() {
    stop_jobs
    PATIENCE_S=300 wait_for "the jobs' end" all_ended
    end_agent TERM
    [ "$AGENT_STATUS" -eq 0 ] || die "the agent ended with $AGENT_STATUS: $(tail -n 3 "$AGENT_LOG")"
    start_agent
    await_observers
    check_ledger
    "$BINARY" verify --data "$DIR/mnt/data" --artifacts >"$DIR/verify.log" 2>&1 ||
        die "not sound: $(tail -n 20 "$DIR/verify.log")"
    "${CLIENT_PREFIX[@]}" "$ROOT/chaos/check.py" --dump "$DIR/dump" --agent "$URL" --jobs "$DIR/jobs" \
        --stream "${OBSERVERS[@]}" "$@" >"$DIR/counts" || die "a promise does not hold"
    end_agent TERM
}

# --- faults that several scripts have in common ------------------------------------------------------------------------

# clis: process ids of every Docker CLI that has to do with these jobs' containers.
clis() {
    local entry pid
    while IFS= read -r entry; do
        pid="${entry#/proc/}" pid="${pid%/cmdline}"
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != docker ] || echo "$pid"
    done < <(grep -lzsE -- "^(--name=)?hb-$PREFIX-" /proc/[0-9]*/cmdline)
}

any_cli() { [ -n "$(clis)" ]; }

# kill_clis: all of them, by kill -9. Sets KILLED.
kill_clis() {
    local pid
    KILLED=0
    for pid in $(clis); do
        if kill -KILL "$pid" 2>/dev/null; then KILLED=$((KILLED + 1)); fi
    done
}

# taken_up: how often an agent found an attempt that another had begun, and went on with it.
taken_up() { cat "$DIR"/agent.* | grep -c 'is taken up again' || true; }

# running_containers: names of this run's, sorted, so that a draw means the same again.
running_containers() { docker_here ps --format '{{.Names}}' --filter "name=^hb-$PREFIX-" | sort; }

has_container() { [ -n "$(docker_here ps -q --filter "name=^$1\$")" ]; }

# await_container JOB ATTEMPT: until it runs, or the job has ended.
await_container() { wait_for "hb-$1-$2" has_begun "$1" "$2"; }

has_begun() { has_container "hb-$1-$2" || job_has_ended "$1"; }

job_has_ended() {
    "${CLIENT_PREFIX[@]}" curl -s -m "$PATIENCE_S" "$URL/api/jobs/$1" | grep -q '"phase":"ended"'
}

# kill_in_sync JOB TIMES STEPS: its container of wal_physics, and those of its next attempts, at drawn steps. Sets MET: where each
# kill found it.
kill_in_sync() {
    local job=$1 times=$2 part=$(($3 / ($2 + 1))) number met
    MET=()
    mkdir -p "$DIR/met"
    for ((number = 1; number <= times; number++)); do
        await_container "$job" "$number"
        draw $(((number - 1) * part)) $((number * part))
        # On a slow machine it may have ended by itself.
        met="$(DOCKER_HOST="$ENGINE_HOST" "$ROOT/chaos/kill_in_sync.py" "hb-$job-$number" "$SYNC_PATIENCE_S" \
            "$DIR/jobs/$job/physics.wal" "$DRAWN")" || break
        echo "$met" >>"$DIR/met/$job"
        MET+=("$met")
    done
}

# Whatever the payload does about it, it was killed as often as the ledger tells.
check_killed() {
    local kills
    kills="$(cat "$DIR"/met/* 2>/dev/null | wc -l)"
    [ "$kills" -gt 0 ] || die "no container was killed"
    grep -qw "crashes_killed=$kills" "$DIR/counts" || die "$kills kills, and the ledger has: $(cat "$DIR/counts")"
    grep -qs "in fsync" "$DIR"/met/* || die "not one of $kills kills met the payload in fsync"
}

any_container() { [ -n "$(running_containers)" ]; }

# make_line: two network namespaces, HERE and THERE, with link.py between them; no packet passes while $DIR/cut exists.
make_line() {
    local up
    HERE="hb$$here" THERE="hb$$there"
    ip netns add "$HERE" 2>"$DIR/netns.log" || skip "no network namespace can be had: $(cat "$DIR/netns.log")"
    defer ip netns delete "$HERE"
    ip netns add "$THERE"
    defer ip netns delete "$THERE"
    hold line "$ROOT/chaos/link.py" "$HERE" "$AGENT_ADDRESS/30" "$THERE" "$OBSERVER_ADDRESS/30" --cut "$DIR/cut" \
        --delay-ms "${HACKBRAIN_DELAY_MS:-80}" --jitter-ms "${HACKBRAIN_JITTER_MS:-20}" --loss "${HACKBRAIN_LOSS:-5}" \
        --seed "$SEED"
    read -r up <&"${HELD_OUT[line]}" || die "there is no line: $(tail -n 1 "$DIR/line.log")"
    [ "$up" = up ] || die "the line says: $up"
}

# line_counts: packets that the line has carried, lost and cut, as words.
line_counts() {
    local counts
    echo counts >&"${HELD_IN[line]}"
    read -r counts <&"${HELD_OUT[line]}" || die "the line is gone: $(tail -n 1 "$DIR/line.log")"
    echo "$counts"
}
