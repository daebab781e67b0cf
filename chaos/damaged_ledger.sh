#!/usr/bin/env bash
# chaos/damaged_ledger.sh [ROUNDS]
# The fault: the ledger of a killed agent ends in a torn write; or it was damaged: a bit, a block, a segment, the witness.
# The promise: a torn end is made good, with every acknowledged event, and the log goes on from there. Damage is refused with 65
# and words that name the file, by agent and verifier alike, and not one byte changes; or it is harmless, and every event is
# there, byte by byte. Never is an event missing without a word.
# In short: torn is healed, damage refused and not touched, nothing silent.
#
# Three rounds for each HACKBRAIN_ROUNDS (five), each a torn copy and a damaged copy of one ledger of some segments. HACKBRAIN_SEED
# repeats them; HACKBRAIN_BIN names the binary. Needs root. Not simulated: the one residue, documented in docs/wal-format.md,
# which is the last commit's decay within 100 ms of its writing; damage of two places at once. All damage of a small log:
# tests/wal_damage.rs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

# Several segments: the first has 1 MiB, the second 4.
ACKNOWLEDGED_MIN=250

main() {
    usage_if_asked "$@"
    rounds_of "${1:-${HACKBRAIN_ROUNDS:-5}}"
    local rounds=$((3 * ROUNDS)) round torn=0 refused=0 harmless=0
    # shellcheck disable=SC2119 # the script's arguments are none of its
    begin
    defer kill_agent
    defer stop_load
    mkdir "$DIR/original"
    start_agent
    start_load 1
    wait_for "enough events" enough
    stop_load
    # Behind the last frame a mark is written after 100 ms; without one the last commit could decay unseen.
    wait_for "the mark" is_at_rest
    kill_living_agent
    check_ledger
    mv "$DIR/mnt/data" "$DIR/original/data"
    cp "$DIR/dump" "$DIR/original/dump"
    for ((round = 1; round <= rounds; round++)); do
        torn
        damaged
    done
    # Hardly any damage is harmless, hardly any segment full.
    [ $((2 * torn)) -gt "$rounds" ] || die "only $torn of $rounds ledgers were torn"
    [ $((2 * refused)) -gt "$rounds" ] || die "only $refused of $rounds damaged ledgers were refused"
    say "damaged_ledger: $torn torn, all made good; $rounds damaged, $refused refused, $harmless harmless"
}

enough() { [ "$(acknowledged)" -ge "$ACKNOWLEDGED_MIN" ]; }

# Nothing was written for a while.
is_at_rest() {
    local before
    before="$(sha256sum "$DIR"/mnt/data/wal/*)"
    sleep 1
    [ "$before" = "$(sha256sum "$DIR"/mnt/data/wal/*)" ]
}

# again KIND: a fresh copy, damaged. Sets DONE.
again() {
    rm -rf "$DIR/mnt/data"
    cp -a "$DIR/original/data" "$DIR/mnt/data"
    draw 0 1000000000
    DONE="$("$ROOT/chaos/damage.py" "$DIR/mnt/data" "$1" "$DRAWN")" || die "$1: damage.py failed"
}

torn() {
    again torn
    [[ "$DONE" = nothing* ]] || torn=$((torn + 1))
    # In a shell of its own: it ends with the first that does not hold.
    (check_ledger) 2>"$DIR/check.log" || die "torn, $DONE: $(cat "$DIR/check.log")"
    cmp -s "$DIR/dump" "$DIR/original/dump" || die "torn, $DONE: the dump is another"
    # Every third goes on, and what it acknowledges then is kept, too.
    if [ $((round % 3)) -eq 0 ]; then
        start_agent
        check_served
        submit "chaos-after-$round" >"$DIR/answers/after"
        grep -q '} 200$' "$DIR/answers/after" || die "torn, $DONE: it does not go on: $(cat "$DIR/answers/after")"
        kill_living_agent
        check_ledger
        rm "$DIR/answers/after"
    fi
}

damaged() {
    local status=0 before
    again corrupt
    before="$(digest)"
    "$BINARY" verify --data "$DIR/mnt/data" >"$DIR/verify.log" 2>&1 || status=$?
    case "$status" in
    0)
        "$BINARY" dump --data "$DIR/mnt/data" >"$DIR/dump" || die "$DONE: verify says that it is sound, and dump fails"
        cmp -s "$DIR/dump" "$DIR/original/dump" || die "$DONE: events are missing, and nobody says so"
        harmless=$((harmless + 1))
        [ "$before" = "$(digest)" ] || die "$DONE: bytes were changed"
        start_agent
        check_served
        kill_living_agent
        return 0
        ;;
    65)
        grep -q 'wal/' "$DIR/verify.log" || die "$DONE: no file is named: $(cat "$DIR/verify.log")"
        status=0
        try_start_agent || status=$?
        [ "$status" -eq 65 ] || die "$DONE: verify says 65, the agent $status: $(tail -n 3 "$AGENT_LOG")"
        grep -q 'wal/' "$AGENT_LOG" || die "$DONE: the agent names no file: $(tail -n 3 "$AGENT_LOG")"
        refused=$((refused + 1))
        ;;
    *) die "$DONE: verify ended with $status: $(cat "$DIR/verify.log")" ;;
    esac
    [ "$before" = "$(digest)" ] || die "$DONE: bytes were changed"
}

digest() { (cd "$DIR/mnt/data/wal" && sha256sum -- *); }

main "$@"
