# shellcheck shell=bash
# What the scripts share: messages, progress, packages. Sourced, never run; needs bash with `set -euo pipefail`.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Logs and caches of the scripts live with the build's own output, so that `rm -rf target` leaves nothing behind.
STATE_DIR="$ROOT/target/scripts"
mkdir -p "$STATE_DIR"

APT_UPDATED=no
# dpkg's own lock may be held for minutes by unattended upgrades on a fresh machine.
APT_LOCK_WAIT_S=300
TICK_S=2

# Everything a person reads goes to stderr: stdout belongs to what another script may want to capture.
say() { printf '%s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command with root's rights; need_root was asked before, where its message is seen.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# need_root WHAT
need_root() {
    [ "$(id -u)" -eq 0 ] || have sudo || die "$1 needs root, and there is no sudo: run this as root"
}

# progress TITLE COMMAND…: runs the command with its output in a log; one dot per TICK_S seconds, then the time it took.
# On failure the log's tail is shown and the command's status returned.
progress() {
    local title=$1 log start ticker status=0 shell_pid=$$
    shift
    log="$(mktemp "$STATE_DIR/step.XXXXXX")"
    start=$SECONDS
    printf '%s ' "$title" >&2
    # The ticker is the background half, not the command: Ctrl-C then reaches the command as the terminal intends.
    # It watches the shell, because a background job ignores the interrupt that ends the shell.
    (
        while sleep "$TICK_S" && kill -0 "$shell_pid" 2>/dev/null; do
            printf '.' >&2
        done
    ) </dev/null >/dev/null &
    ticker=$!
    "$@" </dev/null >"$log" 2>&1 || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    if [ "$status" -eq 0 ]; then
        printf ' done, %d s\n' "$((SECONDS - start))" >&2
    else
        printf ' failed after %d s (status %d)\n' "$((SECONDS - start))" "$status" >&2
        tail -n 25 "$log" | sed 's/^/  | /' >&2
    fi
    rm -f "$log"
    return "$status"
}

# A third party's list that cannot be fetched must not stop us: whether the package is found decides.
apt_update_once() {
    [ "$APT_UPDATED" = no ] || return 0
    APT_UPDATED=yes
    progress "Fetching Debian's package lists" \
        as_root apt-get -o DPkg::Lock::Timeout="$APT_LOCK_WAIT_S" -o Acquire::Retries=3 update ||
        say "some package lists could not be fetched; going on with what is there"
}

# install PACKAGE…: Debian packages by name.
install() {
    have apt-get || die "missing: $*; this is no Debian system, install them by hand"
    need_root "installing $*"
    apt_update_once
    progress "Installing $*" \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout="$APT_LOCK_WAIT_S" \
        -o Acquire::Retries=3 install -y --no-install-recommends "$@" ||
        die "could not install: $*"
}

# need COMMAND PACKAGE [COMMAND PACKAGE]…: installs, in one go, the packages whose command is missing.
need() {
    local missing=()
    while [ $# -gt 0 ]; do
        have "$1" || missing+=("$2")
        shift 2
    done
    [ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
}

# usage_if_asked "$@": the script's first comment lines are its help.
usage_if_asked() {
    case "${1:-}" in
    -h | --help)
        sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
    esac
}

# ldd says the first of a static-pie, the second (with an exit code) of a plain static one.
is_static() {
    local said
    said="$(LC_ALL=C ldd "$1" 2>&1 || true)"
    case "$said" in
    *'statically linked'* | *'not a dynamic executable'*) ;;
    *) return 1 ;;
    esac
}

# `docker version` fails without a server; `docker info` may not.
engine_version() { timeout 20 docker version --format '{{.Server.Version}}' 2>/dev/null; }
engine_answers() { have docker && engine_version >/dev/null; }

# cargo from where rustup puts it, also in a shell that never read the profile.
need_cargo() {
    have cargo || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    if ! have cargo || ! have rustc; then
        die "the Rust toolchain is missing (cargo, rustc): install it, then run this again"
    fi
}
