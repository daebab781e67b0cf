# shellcheck shell=bash
# What install and uninstall share: where everything lies, and how it is put there. Sourced, after lib.sh.
# shellcheck disable=SC2034 # the names below are for those who source it

# Below DESTDIR nothing of this machine is touched: files only, by anybody.
DESTDIR="${DESTDIR:-}"
DESTDIR="${DESTDIR%/}"
BINARY_AT=/usr/local/bin/hackbrain
UNIT_DIR=/usr/local/lib/systemd/system
UNITS=(hackbrain.socket hackbrain.service)
CONF_DIR=/etc/hackbrain
CONF=$CONF_DIR/environment
DATA_DIR=/var/lib/hackbrain
MOUNT_ROOT=/srv/hackbrain

live() { [ -z "$DESTDIR" ]; }

systemd_runs() { [ -d /run/systemd/system ] && have systemctl; }

# A Debian package would be half overwritten, and its unit hidden by ours.
refuse_package() {
    if live && have dpkg-query &&
        [ "$(dpkg-query -W -f '${db:Status-Status}' hackbrain 2>/dev/null || true)" = installed ]; then
        die "the Debian package hackbrain is installed: go on with apt-get, or first 'apt-get remove hackbrain' (its ledger stays)"
    fi
}

# Mounts below DIR, the innermost first. The agent binds people's directories there: whoever removes DIR must let go of them
# first, since nothing else tells them from directories of the agent's.
mounts_below() {
    awk -v "dir=$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r
}

# Names of the containers that still run in DIR/mnt.
containers_at_work() {
    local dir name
    have docker || return 0
    for dir in "$1"/mnt/*/; do
        [ -d "$dir" ] || continue
        name="$(basename "$dir")"
        if [ "$(docker inspect --format '{{.State.Running}}' "$name" 2>/dev/null || true)" = true ]; then echo "$name"; fi
    done
}
