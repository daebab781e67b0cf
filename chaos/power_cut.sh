#!/usr/bin/env bash
# chaos/power_cut.sh [ROUNDS]
# The fault: the file system below --data is cut off under load, without its journal being flushed, and mounted again.
# The promise: the ledger is sound, and whatever was acknowledged is in it and is served again.
# In short: whatever was acknowledged is there after the cut.
#
# An ext4 on a loop device is shut down with EXT4_IOC_SHUTDOWN at a random moment of each round (twenty, or HACKBRAIN_ROUNDS).
# In every second round it is the moment after the ledger has got a segment more, whose name must be durable by then.
# The cut loses names, lengths and pages that were not synced, as a file without a sync shows in each round. It cannot lose
# what O_DIRECT has handed to the device: cuts between sectors are for tests/wal_crash.rs. HACKBRAIN_SEED repeats the moments;
# HACKBRAIN_BIN names the binary. Needs root; skipped without.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

MIB=256
CUT_AFTER_MS_MIN=300
CUT_AFTER_MS_MAX=2000
# After a new segment has its name, and before the next thing that would sync it by chance.
CUT_AFTER_NAME_MS_MAX=15

main() {
    usage_if_asked "$@"
    with_own_mounts "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-20}}"
    local round lost=0 after_ms
    begin losetup mkfs.ext4 mount umount
    make_loop_ext4 "$MIB"
    mount_disk "$DEVICE"
    defer kill_agent
    defer stop_load
    for ((round = 1; round <= ROUNDS; round++)); do
        start_agent
        [ "$round" -eq 1 ] || check_served
        after_ms=$((CUT_AFTER_MS_MIN + RANDOM % (CUT_AFTER_MS_MAX - CUT_AFTER_MS_MIN)))
        start_load "$round"
        sleep "$(printf '%d.%03d' $((after_ms / 1000)) $((after_ms % 1000)))"
        cut $((round % 2)) $((RANDOM % CUT_AFTER_NAME_MS_MAX))
        # Either way it may go: killed at once, or ended by itself when it meets the error.
        if [ $((RANDOM % 2)) -eq 0 ]; then end_by_itself; else kill_agent; fi
        stop_load
        unmount
        mount_disk "$DEVICE"
        if ! cmp -s "$DIR/unsynced" "$DIR/mnt/unsynced"; then lost=$((lost + 1)); fi
        rm -f "$DIR/mnt/unsynced"
        say "round $round of $ROUNDS: cut after $after_ms ms, $(acknowledged) acknowledged so far, unsynced files lost: $lost"
        check_ledger
    done
    start_agent
    check_served
    end_agent TERM
    [ "$AGENT_STATUS" -eq 0 ] || die "the agent ended with $AGENT_STATUS"
    check_ledger
    # Otherwise the cuts took nothing away, and proved nothing.
    [ "$lost" -gt 0 ] || die "not one of $ROUNDS unsynced files was lost"
    say "power_cut: $ROUNDS rounds, $(acknowledged) acknowledged, all there; $lost of $ROUNDS unsynced files lost"
}

# cut AWAIT_SEGMENT DELAY_MS: writes a file without a sync, then EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
cut() {
    python3 - "$DIR" "$1" "$2" <<'PYTHON' || die "the file system cannot be shut down"
import fcntl, os, struct, sys, time
directory, await_segment, delay_ms = sys.argv[1], sys.argv[2] == "1", int(sys.argv[3])
mount = os.open(directory + "/mnt", os.O_RDONLY)
segments = lambda: sum(name.endswith(".log") for name in os.listdir(directory + "/mnt/data/wal"))
unsynced = os.urandom(8192)
with open(directory + "/unsynced", "wb") as copy:
    copy.write(unsynced)
if await_segment:
    before, deadline = segments(), time.monotonic() + 10
    while segments() == before and time.monotonic() < deadline:
        time.sleep(0.001)
    if segments() == before:
        print("no segment came within 10 s; cut nevertheless", file=sys.stderr)
    time.sleep(delay_ms / 1000)
with open(directory + "/mnt/unsynced", "wb") as file:
    file.write(unsynced)
fcntl.ioctl(mount, 0x8004587D, struct.pack("I", 2))
PYTHON
}

# Nothing can be written any more: whoever writes first ends it, with 74.
end_by_itself() {
    local tries
    for ((tries = 0; tries < PATIENCE_S * 20; tries++)); do
        if ! kill -0 "$AGENT_PID" 2>/dev/null; then
            end_agent
            [ "$AGENT_STATUS" -eq 74 ] || die "the agent ended with $AGENT_STATUS instead of 74: $(tail -n 3 "$AGENT_LOG")"
            return 0
        fi
        sleep 0.05
    done
    die "the agent goes on without a file system"
}

main "$@"
