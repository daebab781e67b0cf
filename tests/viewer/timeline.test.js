'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { HB } = require('./load.js');

const { stretches, fold, bins, floor, life } = HB.timeline;
const { columns, rates } = HB.charts;
const HOUR = 3_600_000;
const START = Date.UTC(2026, 10, 23, 8);

/** [[hours, state, attempt], …] → events. */
const story = (...steps) => steps.map(([hours, state, attempt], i) => ({ seq: i + 1, time: new Date(START + hours * HOUR).toISOString(), state, attempt, detail: {} }));
const kinds = (parts) => parts.map(({ kind, attempt, from, to, open }) => [kind, attempt, (to - from) / HOUR, open]);
const view = (events, hours, width = 1000) => {
  const time = new HB.TimeView();
  time.width = width;
  time.take(events, START + hours * HOUR);
  return time;
};
/** Three days in the queue, two crashes, a long outage, still running. */
const LONG = story([0, 'RECEIVED', 0], [72, 'SCHEDULED', 0], [72, 'RUNNING', 1], [90, 'CRASH', 1], [90.5, 'RECOVERY', 2], [99, 'CRASH', 2], [125, 'RECOVERY', 3]);

/** Numbers that look random and are the same in every run. */
function random(seed) {
  return () => {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    return seed / 2 ** 31;
  };
}

function randomLife(next) {
  const steps = [[0, 'RECEIVED', 0]];
  let at = next() < 0.5 ? next() * 100 : next() / 1000;
  const attempts = 1 + Math.floor(next() * 30);
  for (let attempt = 1; attempt <= attempts; attempt++) {
    steps.push([at, attempt > 1 ? 'RECOVERY' : 'RUNNING', attempt]);
    at += next() * 20;
    steps.push([at, attempt < attempts ? 'CRASH' : 'COMPLETED', attempt]);
    at += next() < 0.2 ? next() * 100 : next() / 100;
  }
  steps.push([at, 'SEALED', attempts]);
  return { events: story(...steps), end: at };
}

test('a life in stretches: queued, attempts, down and sealing follow one another without a gap', () => {
  const events = story([0, 'RECEIVED', 0], [1, 'SCHEDULED', 0], [2, 'RUNNING', 1], [3, 'D1_STABLE', 1], [4, 'CRASH', 1], [5, 'RECOVERY', 2], [7, 'STOPPING', 2], [8, 'COMPLETED', 2], [9, 'SEALED', 2]);
  const parts = stretches(events, START + 99 * HOUR);
  assert.deepEqual(kinds(parts), [
    ['queue', 0, 2, false],
    ['run', 1, 2, false],
    ['down', 1, 1, false],
    ['run', 2, 2, false],
    ['stop', 2, 1, false],
    ['seal', 2, 1, false],
  ]);
  for (let i = 1; i < parts.length; i++) assert.equal(parts[i].from, parts[i - 1].to);
  assert.deepEqual(kinds(stretches(events.slice(0, 4), START + 3.5 * HOUR)).at(-1), ['run', 1, 1.5, true]);
  // A clock that is behind the node's makes nothing negative.
  assert.deepEqual(kinds(stretches(events.slice(0, 4), START)).at(-1), ['run', 1, 0, true]);
});

test('between an end and a retrigger the job rests, then waits again', () => {
  const events = story([0, 'RECEIVED', 0], [1, 'RUNNING', 1], [2, 'CRASH', 1], [3, 'FAILED', 1], [8, 'RETRIGGERED', 1], [9, 'RECOVERY', 2]);
  assert.deepEqual(kinds(stretches(events, START + 10 * HOUR)).slice(2), [['down', 1, 1, false], ['rest', 1, 5, false], ['queue', 1, 1, false], ['run', 2, 1, true]]);
  assert.equal(stretches(events.slice(0, 4), START + 10 * HOUR).at(-1).open, false);
});

test('long waits fold to the width of a break, work and short waits never do', () => {
  const time = view(LONG, 140);
  assert.deepEqual(time.pieces.map(({ kind, folded }) => [kind, folded]), [['queue', true], ['run', false], ['down', false], ['run', false], ['down', true], ['run', false]]);
  for (const { folded, u, v } of time.pieces) if (folded) assert.ok(Math.abs((v - u) * time.width - 70) < 1e-6);
  // What is not folded keeps its proportions.
  const [, first, down, second] = time.pieces;
  assert.ok(Math.abs((first.v - first.u) / (second.v - second.u) - 18 / 8.5) < 1e-9);
  assert.ok(Math.abs((down.v - down.u) / (first.v - first.u) - 0.5 / 18) < 1e-9);
  // Of a job that only waits nothing would be left.
  assert.deepEqual(view(LONG.slice(0, 1), 50).pieces.map(({ folded }) => folded), [false]);
});

test('property: the scale fills 0..1, is monotone and invertible, at every zoom; only idle stretches fold', () => {
  for (let seed = 1; seed <= 200; seed++) {
    const next = random(seed);
    const { events, end } = randomLife(next);
    const time = view(events, end, 200 + next() * 1500);
    assert.equal(time.pieces[0].u, 0);
    assert.ok(Math.abs(time.pieces.at(-1).v - 1) < 1e-9);
    for (const { kind, folded } of time.pieces) if (folded) assert.ok(['queue', 'down', 'rest'].includes(kind));
    const room = time.pieces.filter(({ folded }) => folded).reduce((sum, { u, v }) => sum + v - u, 0);
    assert.ok(room <= 0.35 + 1e-9);
    for (let i = 0; i < 3; i++) {
      const instants = Array.from({ length: 50 }, () => time.from + next() * (time.to - time.from)).sort((a, b) => a - b);
      instants.forEach((ms, j) => {
        const x = time.x(ms);
        assert.ok(x >= -1e-9 && x <= 1 + 1e-9);
        assert.ok(j === 0 || ms === instants[j - 1] || x > time.x(instants[j - 1]), `seed ${seed}: not monotone`);
        assert.ok(Math.abs(time.at(x) - ms) < 1, `seed ${seed}: ${ms} → ${x} → ${time.at(x)}`);
      });
      time.zoom(0.05 + next() * 0.9, next());
    }
  }
});

test('zoom keeps the instant under the pointer, pan stops at the ends, nothing shows less than 200 ms or more than all', () => {
  const time = view(LONG, 140);
  const at = time.at(0.7);
  time.zoom(0.25, 0.7);
  assert.ok(Math.abs(time.x(at) - 0.7) < 1e-6);
  time.zoom(1, 0, -100);
  assert.equal(time.from, time.start);
  time.zoom(1, 0, 100);
  assert.equal(time.to, time.end);
  for (let i = 0; i < 80; i++) time.zoom(0.5, 0.9);
  assert.ok(time.to - time.from >= 199 && time.to - time.from < 250, `${time.to - time.from}`);
  for (let i = 0; i < 80; i++) time.zoom(2);
  assert.deepEqual([time.isWhole, time.from, time.to], [true, time.start, time.end]);
});

test('what reaches the newest instant goes on with it; what does not, stays', () => {
  const time = view(LONG, 140);
  time.show(START + 130 * HOUR, time.end);
  time.take(LONG, START + 150 * HOUR);
  assert.deepEqual([time.from, time.to], [START + 130 * HOUR, START + 150 * HOUR]);
  time.show(START + 130 * HOUR, START + 135 * HOUR);
  time.take(LONG, START + 160 * HOUR);
  assert.deepEqual([time.from, time.to], [START + 130 * HOUR, START + 135 * HOUR]);
});

test('ticks are round, apart, visible, and never within a break', () => {
  for (let seed = 1; seed <= 100; seed++) {
    const next = random(seed);
    const { events, end } = randomLife(next);
    const time = view(events, end, 300 + next() * 1200);
    for (let zoom = 0; zoom < 12; zoom++) {
      const ticks = time.ticks(90);
      assert.ok(ticks.length <= time.width / 90 + 1);
      ticks.forEach((ms, i) => {
        assert.equal(ms % ticks.step, 0);
        assert.ok(time.has(ms));
        assert.ok(i === 0 || time.px(ms) - time.px(ticks[i - 1]) >= 90);
        const { folded, to } = time.pieces[floor(time.pieces, ms, 'from')];
        assert.ok(!folded || ms === to);
      });
      time.zoom(0.3, next());
    }
  }
  assert.equal(view(LONG, 140).ticks(90).step, 6 * HOUR);
});

test('bins hold every marker once, weigh those that stand for several, and stay where they are', () => {
  const events = Array.from({ length: 10_000 }, (_, i) => ({ state: 'D1_STABLE', ms: START + i * 50, attempt: i < 4000 ? 1 : 2, detail: i % 100 ? {} : { count: 7 } }));
  const all = bins(life(events), START, START + 500_000, 4096);
  assert.equal(all.reduce((sum, { count }) => sum + count, 0), 10_000 + 100 * 6);
  assert.ok(all.length <= 500_000 / 4096 + 3);
  for (const { from, to } of all) assert.ok(to - from < 4096);
  const later = bins(life([...events, { state: 'D1_STABLE', ms: START + 600_000, attempt: 2, detail: {} }]), START, START + 600_000, 4096);
  assert.deepEqual(later.slice(0, all.length), all);
  const part = bins(life(events), START + 100_000, START + 110_000, 64);
  assert.ok(part[0].from >= START + 99_900 && part.at(-1).to <= START + 110_100);
});

test('property: a history that is told piece by piece, and taken back, tells what one told at once does', () => {
  for (let seed = 1; seed <= 100; seed++) {
    const next = random(seed);
    const { events } = randomLife(next);
    const marked = events.flatMap((event) => [event, { ...event, state: 'D1_STABLE', detail: next() < 0.5 ? {} : { count: 3 } }]);
    for (let round = 0, size = 1; round < 30; round++) {
      size = Math.max(1, Math.min(marked.length, size + Math.floor((next() - 0.3) * 20)));
      const part = JSON.parse(JSON.stringify(life(marked.slice(0, size))));
      const { last, ...whole } = JSON.parse(JSON.stringify(life(marked.slice(0, size).map((event) => ({ ...event })))));
      assert.deepEqual(part, { ...whole, last: part.last });
      assert.equal(whole.sums.at(-1) ?? 0, marked.slice(0, size).reduce((sum, { state, detail }) => sum + (state === 'D1_STABLE' && (detail.count ?? 1)), 0));
      assert.equal(whole.marks.length + whole.stable.length, size);
    }
  }
});

test('a clock that was set back breaks no bins', () => {
  const next = random(7);
  for (let round = 0; round < 200; round++) {
    const events = Array.from({ length: 40 }, (_, i) => ({ state: 'D1_STABLE', ms: START + Math.floor(next() * 10_000), attempt: 1 + Math.floor(i / 7) }));
    const list = bins(life(events), START, START + 10_000, 1000);
    assert.ok(list.length <= 40 && list.every(({ count }) => count > 0));
  }
});

test('usage: differences from zero at the start, a gap breaks, a restart counts anew', () => {
  const sample = (attempt, s, cpu) => ({ attempt, ms: START + s * 1000, cpu_ns: cpu === null ? null : cpu * 1e9, io_read_bytes: 0, io_write_bytes: null });
  const starts = new Map([[1, START], [2, START + 60_000]]);
  const list = rates([sample(2, 61, 1), sample(1, 2, 3), sample(1, 1, 1), sample(1, 1, 1), sample(1, 3, null), sample(1, 43, 43)], starts);
  assert.deepEqual(list.map(({ cpu, breaks, write }) => [cpu, breaks, write]), [[1, true, null], [2, false, null], [null, false, null], [null, true, null], [1, true, null]]);
});

test('columns keep the least and the greatest of each pixel, and break where nothing was measured', () => {
  const samples = [[1, 5], [1, 2], [1, 9], [2, 4], [3, null], [4, 0], [5, 1, true]].map(([px, v, breaks]) => ({ px, v, breaks }));
  assert.deepEqual(columns(samples, 'v'), [[[1, 2, 9], [2, 4, 4]], [[4, 0, 0]], [[5, 1, 1]]]);
});
