# shellcheck shell=bash
# What the chaos scripts share: a directory that is gone at the end, clean-up in reverse order, small disks, an agent, a load.
# Sourced, never run; needs bash with `set -euo pipefail`. Exit codes: 0 the promise held, 1 it did not, 77 skipped.

# shellcheck source-path=SCRIPTDIR source=../scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

SKIPPED=77
PATIENCE_S=60
CLIENTS=4
# So large that frames of one and of several blocks are written.
PADDING_BYTES_MAX=16000
# The least there is, so that segments change often.
SEGMENT_BYTES=4194304
# Nothing listens there: jobs are received and wait, and every event in the ledger is one that a client was told of.
NO_ENGINE=unix:///nonexistent.sock

# Told of the process that runs, by words that are put before it: a namespace to enter, a clock to believe.
AGENT_PREFIX=()
CLIENT_PREFIX=()
AGENT_FLAGS=()
LISTEN=127.0.0.1

DEFERRED=()
DIR=
SEED=
ROUNDS=
BINARY=
ENGINE_HOST=$NO_ENGINE
AGENT_PID=
URL=
CLIENT_PIDS=()

skip() {
    say "skipped: $*"
    exit "$SKIPPED"
}

# a_number WHAT VALUE: a whole number from 1, or the script ends. Of no rounds, none would fail.
a_number() { [[ "$2" =~ ^[1-9][0-9]{0,9}$ ]] || die "$1 must be a whole number from 1 to 9999999999, not '$2'"; }

# rounds_of VALUE: sets ROUNDS.
rounds_of() {
    a_number "the number of rounds" "$1"
    ROUNDS=$1
    note rounds "$ROUNDS"
}

# note NAME VALUE: for the table of chaos/run.
note() { echo "$1 $2" >>"${HACKBRAIN_NOTES:-/dev/null}"; }

# defer COMMAND…: runs when the script ends, however it ends; the last one deferred runs first.
defer() {
    DEFERRED+=("$(printf '%q ' "$@")")
}

run_deferred() {
    local status=$? index
    trap '' HUP INT TERM
    trap - EXIT
    for ((index = ${#DEFERRED[@]} - 1; index >= 0; index--)); do
        eval "${DEFERRED[index]}" || {
            say "clean-up failed: ${DEFERRED[index]}"
            status=1
        }
    done
    [ -n "$DIR" ] || exit "$status"
    if losetup -a 2>/dev/null | grep -qF "$DIR/" || grep -qF " $DIR/" /proc/self/mountinfo; then
        say "left behind: a mount or a loop device below $DIR"
        status=1
    fi
    exit "$status"
}

# begin [TOOL…]: directory, seed, clean-up, binary. What is needed is asked for first: who is to be skipped need not wait
# for a build.
begin() {
    [ "$(id -u)" -eq 0 ] || skip "it needs root: for mounts, namespaces, or the engine's processes"
    PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
    local tool
    # Before anything is made. Bash would take a word for 0, or for a name to look up.
    SEED="${HACKBRAIN_SEED:-$((RANDOM * 32768 + RANDOM + 1))}"
    a_number HACKBRAIN_SEED "$SEED"
    for tool in curl python3 "$@"; do
        have "$tool" || skip "there is no $tool"
    done
    trap run_deferred EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    DIR="$(mktemp -d "${TMPDIR:-/tmp}/hackbrain-chaos.XXXXXX")"
    defer rm -rf --one-file-system "$DIR"
    RANDOM=$SEED
    say "seed $SEED"
    note seed "$SEED"
    BINARY="${HACKBRAIN_BIN:-$("$ROOT/scripts/build")}"
    mkdir "$DIR/mnt" "$DIR/answers"
}

# draw FROM TO: a number, not below FROM and below TO, in DRAWN; a subshell's draws would not count.
# shellcheck disable=SC2034 # for those who source this
draw() { DRAWN=$(($1 + (RANDOM * 32768 + RANDOM) % ($2 - $1))); }

# sleep_ms N
sleep_ms() { sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"; }

# with_own_mounts "$@": the script again, in a mount namespace of its own. In the host's, whoever makes a namespace meanwhile, a
# container or a service, gets a copy of this script's mounts, and with it holds a file system that is to be gone.
with_own_mounts() {
    [ -z "${HACKBRAIN_OWN_MOUNTS:-}" ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! unshare --mount --propagation private true 2>/dev/null; then
        skip "it needs root, and a mount namespace of its own"
    fi
    HACKBRAIN_OWN_MOUNTS=yes exec unshare --mount --propagation private "$0" "$@"
}

# make_loop_ext4 MIB: a new ext4 on a loop device, not mounted yet. Sets DEVICE.
make_loop_ext4() {
    local image
    image="$(mktemp "$DIR/image.XXXXXX")"
    truncate -s "$1M" "$image"
    mkfs.ext4 -q -F -m 0 "$image" || die "mkfs.ext4 failed"
    DEVICE="$(losetup -f --show --direct-io=on "$image" 2>"$DIR/losetup.log")" ||
        skip "no loop device can be had: $(tail -n 1 "$DIR/losetup.log")"
    defer losetup -d "$DEVICE"
    defer unmount_if_mounted
}

# mount_disk ARGUMENT…: mounts on $DIR/mnt.
mount_disk() {
    mount "$@" "$DIR/mnt" 2>"$DIR/mount.log" || skip "it cannot be mounted: $(tail -n 1 "$DIR/mount.log")"
}

unmount() {
    # A process that was just killed lets go of its files only when it is reaped.
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        if umount "$DIR/mnt" 2>"$DIR/umount.log"; then break; fi
        sleep 0.1
    done
    if mountpoint -q "$DIR/mnt"; then
        cat "$DIR/umount.log" >&2
        return 1
    fi
    # A container's mount namespace that is just being made or ended may hold a copy. The same device mounted again would then be
    # the same file system as before, cut off as it was.
    for ((tries = 0; tries < 100; tries++)); do
        if is_free "$DEVICE"; then return 0; fi
        sleep 0.1
    done
    say "another mount namespace holds $DEVICE"
    return 1
}

# is_free DEVICE: no file system on it is mounted by anybody.
is_free() { python3 -c 'import os, sys; os.open(sys.argv[1], os.O_RDONLY | os.O_EXCL)' "$1" 2>/dev/null; }

unmount_if_mounted() {
    if mountpoint -q "$DIR/mnt"; then unmount; fi
}

# try_start_agent: an agent on the disk, with a free port. Sets AGENT_PID and URL, also written to $DIR/url for those who run
# beside; its exit code where it ends instead.
try_start_agent() {
    local log tries
    log="$(mktemp "$DIR/agent.XXXXXX")"
    AGENT_LOG="$log"
    DOCKER_HOST="$ENGINE_HOST" "${AGENT_PREFIX[@]}" "$BINARY" serve --data "$DIR/mnt/data" --listen "$LISTEN:0" \
        --segment-size "$SEGMENT_BYTES" "${AGENT_FLAGS[@]}" >/dev/null 2>"$log" &
    AGENT_PID=$!
    for ((tries = 0; tries < PATIENCE_S * 20; tries++)); do
        URL="$(sed -n 's/.*listening on \(http:[^ ,]*\).*/\1/p' "$log")"
        if [ -n "$URL" ] && [ "$(status_of GET /readyz)" = 200 ]; then
            # Whole or not at all for who reads it meanwhile.
            echo "$URL" >"$DIR/url.new"
            mv "$DIR/url.new" "$DIR/url"
            return 0
        fi
        if ! kill -0 "$AGENT_PID" 2>/dev/null; then
            end_agent
            return "$AGENT_STATUS"
        fi
        sleep 0.05
    done
    return 1
}

start_agent() {
    try_start_agent || die "the agent does not come up: $(tail -n 5 "$AGENT_LOG")"
}

# end_agent [SIGNAL]: sets AGENT_STATUS.
end_agent() {
    AGENT_STATUS=0
    [ -n "$AGENT_PID" ] || return 0
    [ $# -eq 0 ] || kill "-$1" "$AGENT_PID" 2>/dev/null || true
    wait "$AGENT_PID" 2>/dev/null || AGENT_STATUS=$?
    AGENT_PID=
}

kill_agent() { end_agent KILL; }

# kill_living_agent: one that has ended by itself was not killed, and nothing was tried.
kill_living_agent() {
    kill_agent
    [ "$AGENT_STATUS" -eq 137 ] || die "the agent ended by itself, with $AGENT_STATUS: $(tail -n 5 "$AGENT_LOG")"
}

status_of() {
    "${CLIENT_PREFIX[@]}" curl -s -m "$PATIENCE_S" -o /dev/null -w '%{http_code}' -X "$1" "$URL$2" || true
}

# submit ID: one line, the answer and its status.
submit() {
    local padding
    printf -v padding '%*s' $((RANDOM % PADDING_BYTES_MAX)) ''
    "${CLIENT_PREFIX[@]}" curl -s -m "$PATIENCE_S" -w ' %{http_code}\n' -H 'Content-Type: application/json' \
        "$URL/api/submit_job" -d "{\"job_id\":\"$1\",\"image_hash\":\"none\",\"command\":[\"true\"],\"env\":{\"A\":\"$padding\"}}" || true
}

# start_load ROUND: clients that submit until stop_load; what they were answered goes to $DIR/answers.
start_load() {
    local number
    rm -f "$DIR/stop"
    for ((number = 0; number < CLIENTS; number++)); do
        client "$1-$number" $((SEED + number)) >"$DIR/answers/$1-$number" &
        CLIENT_PIDS+=("$!")
    done
}

client() {
    local count=0
    RANDOM=$2
    while [ ! -e "$DIR/stop" ]; do
        count=$((count + 1))
        submit "chaos-$1-$count"
        # An agent that refuses, or is gone, is not asked a thousand times a second.
        [ $((count % 50)) -ne 0 ] || sleep 0.02
    done
}

stop_load() {
    touch "$DIR/stop"
    local pid
    for pid in "${CLIENT_PIDS[@]}"; do wait "$pid" || true; done
    CLIENT_PIDS=()
}

acknowledged() { cat "$DIR"/answers/* | grep -c '} 200$' || true; }

# check_ledger: it verifies, and whatever was acknowledged is in it.
check_ledger() {
    "$BINARY" verify --data "$DIR/mnt/data" >"$DIR/verify.log" 2>&1 || die "not sound: $(cat "$DIR/verify.log")"
    # What is acknowledged while the dump is written need not be in it.
    rm -rf "$DIR/told"
    cp -r "$DIR/answers" "$DIR/told"
    "$BINARY" dump --data "$DIR/mnt/data" >"$DIR/dump" || die "hackbrain dump failed"
    "$ROOT/chaos/acknowledged.py" --dump "$DIR/dump" "$DIR"/told/* || die "the ledger lacks what was acknowledged"
}

# check_served: the agent that runs tells of each acknowledged job.
check_served() {
    "${CLIENT_PREFIX[@]}" "$ROOT/chaos/acknowledged.py" --agent "$URL" "$DIR"/answers/* ||
        die "the agent lacks what was acknowledged"
}

# wait_for WHAT COMMAND…
wait_for() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < PATIENCE_S * 5; tries++)); do
        if "$@"; then return 0; fi
        sleep 0.2
    done
    die "waited in vain for $what"
}
