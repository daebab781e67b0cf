#!/usr/bin/env bash
# chaos/disk_full.sh
# The fault: the file system below --data runs full while jobs are submitted.
# The promise: new jobs are refused with 503 ledger_full, everything else goes on, it heals by itself once there is space, and
# whatever was acknowledged is kept.
# In short: new jobs refused, nothing lost, heals by itself.
#
# On an ext4 of 24 MiB on a loop device, then on a tmpfs of that size. HACKBRAIN_SEED repeats the sizes of the jobs;
# HACKBRAIN_BIN names the binary. Needs root; skipped without.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

MIB=24

main() {
    usage_if_asked "$@"
    with_own_mounts "$@"
    begin losetup mkfs.ext4 mount umount
    defer unmount_if_mounted
    make_loop_ext4 "$MIB"
    defer kill_agent
    defer stop_load
    mount_disk "$DEVICE"
    run_full ext4
    unmount
    mount_disk -t tmpfs -o "size=${MIB}m" tmpfs
    rm -f "$DIR"/answers/*
    run_full tmpfs
}

run_full() {
    local name=$1 healed code=0
    try_start_agent || code=$?
    if [ "$name" = tmpfs ] && [ "$code" -eq 64 ] && grep -q O_DIRECT "$AGENT_LOG"; then
        say "disk_full: $name: this kernel's tmpfs refuses O_DIRECT, nothing to see"
        return 0
    fi
    [ "$code" -eq 0 ] || die "the agent does not come up: $(tail -n 5 "$AGENT_LOG")"
    submit "chaos-$name-first" >"$DIR/answers/$name-first"
    start_load "$name"
    wait_for "a refusal" refused_while_filling
    say "disk_full: $name: full after $(acknowledged) acknowledged"

    [[ "$(submit "chaos-$name-late")" == *'"ledger_full"'*' 503' ]] || die "a new job is not refused with ledger_full"
    curl -s -m "$PATIENCE_S" -o /dev/null -D "$DIR/head" -H 'Content-Type: application/json' "$URL/api/submit_job" \
        -d '{"job_id":"late","image_hash":"none","command":["true"]}'
    grep -qi '^retry-after: ' "$DIR/head" || die "the refusal does not say when to come back"
    [ "$(status_of GET /readyz)" = 200 ] || die "an agent with a full disk is not ready to be read"
    [ "$(status_of GET /api/ledger/head)" = 200 ] || die "the head cannot be read"
    check_served
    check_unchanged "$name"

    rm "$DIR/mnt/fill"
    SECONDS=0
    wait_for "space to be noticed" accepted_again
    healed=$SECONDS
    stop_load
    check_served
    kill -0 "$AGENT_PID" 2>/dev/null || die "the agent did not survive"
    end_agent TERM
    [ "$AGENT_STATUS" -eq 0 ] || die "the agent ended with $AGENT_STATUS: $(tail -n 3 "$AGENT_LOG")"
    check_answers
    check_ledger
    say "disk_full: $name: healed after $healed s, $(acknowledged) acknowledged, all there"
    start_agent
    check_served
    end_agent TERM
}

# A preparation that fails gives its space back, so the filling goes on until submissions are refused.
refused_while_filling() {
    cat /dev/zero 2>/dev/null >>"$DIR/mnt/fill" || true
    cat "$DIR"/answers/* | grep -q '"ledger_full"'
}

# What is known already is answered on a full disk, too, and writes nothing.
check_unchanged() {
    local again
    again="$(curl -s -m "$PATIENCE_S" "$URL/api/jobs/chaos-$1-first")"
    [[ "$again" == *'"state":"RECEIVED"'* ]] || die "a job that waits is not told of: $again"
}

accepted_again() {
    ATTEMPTS=$((${ATTEMPTS:-0} + 1))
    submit "chaos-healed-$ATTEMPTS" >>"$DIR/answers/healed"
    grep -q '} 200$' "$DIR/answers/healed"
}

# No answer but yes, and the refusal that the contract names.
check_answers() {
    local other
    other="$(cat "$DIR"/answers/* | grep -v '} 200$' | grep -vc '"ledger_full".* 503$' || true)"
    [ "$other" -eq 0 ] || die "$other other answers: $(cat "$DIR"/answers/* | grep -v '} 200$' | grep -v '"ledger_full"' | head -n 3)"
}

main "$@"
