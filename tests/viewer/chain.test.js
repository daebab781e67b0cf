'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { HB, Ledger } = require('./load.js');

function ledgerOf(n) {
  const ledger = new Ledger();
  ledger.append(null, 'GENESIS', { log_id: 'x' });
  for (let i = 1; i < n; i++) ledger.append('job', i === 1 ? 'RECEIVED' : 'D1_STABLE', { line: `[D1_STABLE] ünï ${i}` });
  return ledger;
}

/** The verdicts on what a reader was shown, against what the node's ledger holds. */
const verdicts = (shown, ledger, head) => shown.map((record) => HB.chain.verdict(record, ledger, 1, head).ok);
const flip = (record) => {
  const bytes = record.bytes.slice();
  bytes[bytes.lastIndexOf(100)] ^= 1;
  return HB.chain.parse(bytes);
};

test('a sound ledger: every event is checked, the first and the head too', () => {
  const ledger = ledgerOf(6);
  const records = ledger.records();
  assert.deepEqual(verdicts(records, records, ledger.head()), [true, true, true, true, true, true]);
  assert.match(HB.chain.verdict(records[0], records, 1, null).computed, /^0{64}$/);
});

test('a flipped byte fails the event itself, by its successor, and the successor, by its prev', () => {
  const ledger = ledgerOf(6);
  const records = ledger.records();
  records[2] = flip(records[2]);
  assert.deepEqual(verdicts(records, records, ledger.head()), [true, true, false, false, true, true]);
});

test('a flipped byte in the newest event fails by the head', () => {
  const ledger = ledgerOf(4);
  const records = ledger.records();
  records[3] = flip(records[3]);
  assert.deepEqual(verdicts(records, records, ledger.head()), [true, true, true, false]);
});

test('a trace that differs from the ledger fails, though the ledger is sound', () => {
  const ledger = ledgerOf(5);
  const sound = ledger.records();
  const shown = [...sound];
  shown[2] = flip(shown[2]);
  assert.deepEqual(verdicts(shown, sound, ledger.head()), [true, true, false, true, true]);
});

test('a dropped event fails its neighbours', () => {
  const all = ledgerOf(6).records();
  const dropped = all.filter((_, i) => i !== 2);
  assert.deepEqual(verdicts([all[1], all[3]], dropped), [false, false]);
});

test('two swapped events fail', () => {
  const all = ledgerOf(6).records();
  const swapped = [all[0], all[1], all[3], all[2], all[4], all[5]];
  assert.deepEqual(verdicts([all[1], all[2], all[3], all[4]], swapped), [false, false, false, false]);
});

test('a first event that names a predecessor fails', () => {
  const record = HB.chain.parse(new TextEncoder().encode(`{"seq":1,"prev":"${'1'.repeat(64)}","state":"GENESIS"}`));
  assert.equal(HB.chain.verdict(record, [record], 1).ok, false);
});

test('without its predecessor an event is not decided', () => {
  const records = ledgerOf(4).records();
  assert.equal(HB.chain.verdict(records[3], [], 3).ok, null);
});

test('without what came after it, or the head, nothing ties an event’s own bytes: it is not decided', () => {
  const ledger = ledgerOf(4);
  const records = ledger.records();
  assert.equal(HB.chain.verdict(records[3], records, 1, null).ok, null);
  assert.equal(HB.chain.verdict(records[3], records, 1, { seq: 5, hash: 'x' }).ok, null);
  assert.equal(HB.chain.verdict(records[3], records, 1, ledger.head()).ok, true);
});

test('records keeps the exact bytes, with and without a last newline', () => {
  const ledger = ledgerOf(3);
  for (const end of ['', '\n']) {
    const records = HB.chain.records(new Uint8Array(Buffer.concat([...ledger.lines.flatMap((l, i) => [l, Buffer.from(i < 2 ? '\n' : end)])])));
    assert.deepEqual(records.map((r) => Buffer.from(r.bytes).toString()), ledger.lines.map(String));
  }
});

test('plan covers each event with both neighbours, joins near ones, and bounds a range', () => {
  const seqs = [1, 2, 3, 9, 400, ...Array.from({ length: 1200 }, (_, i) => 5000 + i)];
  const plan = HB.chain.plan(seqs);
  for (const seq of seqs) {
    const from = Math.max(1, seq - 1);
    assert.ok(plan.some((range) => from >= range.from && seq + 1 < range.from + range.limit), `event ${seq}`);
  }
  assert.deepEqual(plan.slice(0, 2), [{ from: 1, limit: 10 }, { from: 399, limit: 3 }]);
  assert.ok(plan.every(({ limit }) => limit <= 502));
});

test('the follower accepts a sound stream, and refuses a gap and what follows a forged event', () => {
  const records = ledgerOf(6).records();
  const head = { seq: 1, hash: records[1].event.prev };
  const sound = new HB.chain.Follower(head);
  assert.deepEqual(records.slice(1).map((r) => sound.accept(r)), [true, true, true, true, true]);
  const gap = new HB.chain.Follower(head);
  assert.equal(gap.accept(records[2]), false);
  const forged = new HB.chain.Follower(head);
  assert.equal(forged.accept(flip(records[1])), true);
  assert.equal(forged.accept(records[2]), false);
});
