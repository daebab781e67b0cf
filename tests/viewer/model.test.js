'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { HB, Ledger } = require('./load.js');

const { create, merge, fold, select, runTime, story } = HB.model;
const manifest = { job_id: 'a', image_hash: 'busybox:latest', command: ['true'], max_attempts: 3 };
/** The life of a job that is killed once: [state, detail, attempt]. */
const LIFE = [
  ['RECEIVED', { manifest }, 1],
  ['SCHEDULED', { image_id: 'sha256:1', execution_hash: 'e1' }, 1],
  ['RUNNING', { container: 'hb-a-1' }, 1],
  ['D1_STABLE', { line: '[D1_STABLE] step=1' }, 1],
  ['CRASH', { cause: 'killed', exit_code: 137 }, 1],
  ['RECOVERY', { container: 'hb-a-2', resumed_after: '[D1_STABLE] step=1' }, 2],
  ['D1_STABLE', { line: '[D1_STABLE] step=2' }, 2],
  ['COMPLETED', { exit_code: 0 }, 2],
  ['SEALED', { files: 2, bytes: 10 }, 2],
];
function life(id = 'a', steps = LIFE, ledger = new Ledger()) {
  return steps.map(([state, detail, attempt]) => ledger.append(id, state, detail, attempt));
}
function folded(events) {
  const model = create();
  for (const event of events) fold(model, event);
  return model;
}

test('the lifecycle, state by state', () => {
  const model = create();
  const seen = life().map((event) => {
    const { state, phase, attempt, exit_code, reason } = fold(model, event);
    return [state, phase, attempt, exit_code ?? null, reason ?? null];
  });
  assert.deepEqual(seen, [
    ['RECEIVED', 'waiting', 1, null, null],
    ['SCHEDULED', 'waiting', 1, null, null],
    ['RUNNING', 'active', 1, null, null],
    ['D1_STABLE', 'active', 1, null, null],
    ['CRASH', 'active', 1, 137, 'killed'],
    // As the agent has it: how the last attempt ended, until the next one has.
    ['RECOVERY', 'active', 2, 137, 'killed'],
    ['D1_STABLE', 'active', 2, 137, 'killed'],
    ['COMPLETED', 'active', 2, 0, null],
    ['SEALED', 'ended', 2, 0, null],
  ]);
  const job = model.jobs.get('a');
  assert.equal(job.image_hash, 'busybox:latest');
  assert.equal(job.execution_hash, 'e1');
  assert.equal(job.last_d1_stable, '[D1_STABLE] step=2');
  assert.equal(runTime(job, 0), 6000);
});

test('repeats and node events change nothing', () => {
  const ledger = new Ledger();
  const genesis = ledger.append(null, 'GENESIS');
  const events = life('a', LIFE.slice(0, 3), ledger);
  const model = folded([genesis, ...events]);
  const before = JSON.stringify([...model.jobs]);
  assert.equal(fold(model, genesis), null);
  for (const event of events) assert.equal(fold(model, event), null);
  assert.equal(JSON.stringify([...model.jobs]), before);
});

test('a retriggered job is active again', () => {
  const steps = [...LIFE.slice(0, 5), ['FAILED', { reason: 'attempt_limit', exit_code: 137 }, 1], ['RETRIGGERED', { by: '::1', manifest }, 1], ['RECOVERY', {}, 2]];
  const waiting = folded(life('a', steps.slice(0, 7))).jobs.get('a');
  assert.deepEqual([waiting.phase, waiting.ended], ['waiting', null]);
  assert.match(story(life('a', steps.slice(0, 7)), 0), /^Suffered 1 crash; has waited .*\.$/);
  const { phase, ended, reason } = folded(life('a', steps)).jobs.get('a');
  assert.deepEqual([phase, ended, reason], ['active', null, 'attempt_limit']);
  assert.equal(HB.model.attemptsMax(life('a', steps), manifest), 4);
  assert.equal(HB.model.attemptsMax(life(), manifest), 3);
});

test('summary first or events first: the newer seq wins', () => {
  const events = life();
  const after = (n) => ({ ...folded(events.slice(0, n)).jobs.get('a') });
  for (let from = 1; from < events.length; from++) {
    for (let to = 1; to <= events.length; to++) {
      const model = create();
      merge(model, [after(from)]);
      for (const event of events.slice(0, to)) fold(model, event);
      merge(model, [after(from)]);
      const { state, seq, attempt } = model.jobs.get('a');
      const newest = events[Math.max(from, to) - 1];
      assert.deepEqual([state, seq, attempt], [newest.state, newest.seq, newest.attempt], `summary after ${from}, events to ${to}`);
      assert.equal(model.order.length, 1);
    }
  }
});

test('an event of a job not loaded gives a partial job, which its summary completes', () => {
  const events = life();
  const model = create();
  const job = fold(model, events[3]);
  assert.equal(job.partial, true);
  const summary = { ...folded(events.slice(0, 3)).jobs.get('a') };
  merge(model, [summary]);
  const whole = model.jobs.get('a');
  assert.deepEqual([Boolean(whole.partial), whole.state, whole.image_hash, whole.received], [false, 'D1_STABLE', 'busybox:latest', events[0].time]);
});

test('newest first, from pages and from the stream, in any order of arrival', () => {
  const ledger = new Ledger();
  const events = Array.from({ length: 40 }, (_, i) => ledger.append(`j${i}`, 'RECEIVED', { manifest }));
  const summaries = events.map((event) => ({ ...folded([event]).jobs.get(event.job_id) }));
  const model = create();
  merge(model, summaries.slice(20, 30).reverse());
  for (const event of events.slice(30)) fold(model, event);
  merge(model, summaries.slice(0, 20).reverse());
  assert.deepEqual(model.order.map((job) => job.job_id), events.map((event) => event.job_id).reverse());
});

test('jobs of one commit share a time, and keep the order of the ledger', () => {
  const time = '2026-11-23T08:00:00.000000Z';
  const ledger = new Ledger();
  const events = Array.from({ length: 6 }, (_, i) => ({ ...ledger.append(`j${i}`, 'RECEIVED', { manifest }), time }));
  const model = create();
  merge(model, events.slice(0, 3).reverse().map((event) => ({ ...folded([event]).jobs.get(event.job_id) })));
  for (const event of events.slice(3)) fold(model, event);
  assert.deepEqual(model.order.map((job) => job.job_id), ['j5', 'j4', 'j3', 'j2', 'j1', 'j0']);
});

test('select filters by words and group, and counts what the words leave', () => {
  const ledger = new Ledger();
  const model = folded([
    ...life('alpha', LIFE, ledger),
    ...life('beta', LIFE.slice(0, 4), ledger),
    ...life('gamma', [...LIFE.slice(0, 3), ['FAILED', { reason: 'timeout' }, 1]], ledger),
    ...life('delta', LIFE.slice(0, 1), ledger),
  ]);
  const ids = (filter) => select([model], filter).jobs.map((job) => job.job_id);
  assert.deepEqual(ids(), ['delta', 'gamma', 'beta', 'alpha']);
  assert.deepEqual(ids({ text: 'BUSY timeout' }), ['gamma']);
  assert.deepEqual(ids({ text: 'step=1' }), ['beta']);
  assert.deepEqual(ids({ show: 'sealed' }), ['alpha']);
  assert.deepEqual(ids({ text: 'a', show: 'active' }), ['beta']);
  assert.deepEqual(select([model], { show: 'sealed' }).counts, { all: 4, waiting: 1, active: 1, sealed: 1, failed: 1, cancelled: 0 });
});

test('what a job is found by follows its events', () => {
  const events = life('a', LIFE.slice(0, 4));
  const model = folded(events.slice(0, 3));
  assert.equal(select([model], { text: 'step=1' }).jobs.length, 0);
  fold(model, events[3]);
  assert.equal(select([model], { text: 'step=1' }).jobs.length, 1);
});

test('the story, at every state', () => {
  const events = life();
  const now = (i) => Date.parse(events[i].time);
  const told = events.map((_, i) => story(events.slice(0, i + 1), now(i)));
  assert.equal(told[0], 'Has waited 0.00 s.');
  assert.equal(told[3], 'Has run 1.00 s after 2.00 s of waiting.');
  assert.equal(told[4], 'Suffered 1 crash; waits for another attempt, because it was killed; ran 2.00 s after 2.00 s of waiting.');
  assert.equal(told[6], 'Survived 1 crash; resumed from step 1; has run 3.00 s after 2.00 s of waiting.');
  assert.equal(told[8], 'Survived 1 crash; resumed from step 1; sealed 2 artifacts; ran 4.00 s after 2.00 s of waiting.');
  assert.match(story(events, now(8), 'chain checked by this browser to seq 9'), /; chain checked by this browser to seq 9\.$/);
  const elsewhere = life('c', LIFE.map(([state, detail, attempt]) => [state, state === 'RECOVERY' ? { resumed_after: '[D1_STABLE] energy=-1.5' } : detail, attempt]));
  assert.match(story(elsewhere, now(8)), /^Survived 1 crash; resumed after “energy=-1.5”; /);
  const refused = life('b', [LIFE[0], ['FAILED', { reason: 'image not allowed' }, 1]]);
  assert.equal(story(refused, now(1)), 'Failed: image not allowed.');
});

/** Models of two nodes, whose jobs were received in turn: a0, b0, a1, b1, … */
function twoNodes(n) {
  const models = ['ann', 'bob'].map((name) => create({ name }));
  const time = (i) => new Date(Date.UTC(2026, 0, 1) + i * 1000).toISOString();
  for (let i = 0; i < n; i++) {
    models.forEach((model, at) => fold(model, { seq: i + 1, job_id: `${'ab'[at]}${i}`, attempt: (i % 3) + 1, time: time(2 * i + at), state: 'RECEIVED', detail: { manifest } }));
  }
  return models;
}

test('jobs of several nodes, newest first, each with its node, and the same id twice where two nodes have it', () => {
  const models = twoNodes(3);
  const { jobs, counts } = select(models);
  assert.deepEqual(jobs.map(({ job_id, node }) => `${node.name} ${job_id}`), ['bob b2', 'ann a2', 'bob b1', 'ann a1', 'bob b0', 'ann a0']);
  assert.equal(counts.waiting, 6);
  fold(models[0], { seq: 9, job_id: 'b1', attempt: 1, time: '2027-01-01T00:00:00Z', state: 'RECEIVED', detail: { manifest } });
  assert.deepEqual(select(models, { text: 'b1' }).jobs.map(({ node }) => node.name), ['ann', 'bob']);
  assert.deepEqual(select(models.slice(1)).jobs.map(({ job_id }) => job_id), ['b2', 'b1', 'b0']);
});

test('sorted by any column, both ways; of equal ones the newest is first; an unknown column is none', () => {
  const models = twoNodes(4);
  const ids = (sort) => select(models, { sort }).jobs.map(({ job_id }) => job_id).join(' ');
  const newest = 'b3 a3 b2 a2 b1 a1 b0 a0';
  assert.equal(ids('job'), 'a0 a1 a2 a3 b0 b1 b2 b3');
  assert.equal(ids('-job'), 'b3 b2 b1 b0 a3 a2 a1 a0');
  assert.equal(ids('node'), 'a3 a2 a1 a0 b3 b2 b1 b0');
  assert.equal(ids('-attempts'), 'b2 a2 b1 a1 b3 a3 b0 a0');
  assert.equal(ids('received'), newest.split(' ').reverse().join(' '));
  for (const sort of ['state', 'image', 'last', 'duration', '-duration', 'constructor', 'nothing', null]) assert.equal(ids(sort), newest, sort);
  const [{ order: [, , job] }] = models;
  Object.assign(job, { started: job.received, ended: null });
  assert.equal(select(models, { sort: '-duration' }, Date.parse(job.received) + 5).jobs[0], job);
});

test('10,000 jobs fold and select', () => {
  const model = create();
  const time = (i) => new Date(Date.UTC(2026, 0, 1) + i * 1000).toISOString();
  for (let i = 0; i < 10_000; i++) fold(model, { seq: i + 1, job_id: `j${i}`, attempt: 1, time: time(i), state: 'RECEIVED', detail: { manifest } });
  assert.equal(select([model]).jobs.length, 10_000);
  assert.equal(select([model], { text: 'j9999' }).jobs.length, 1);
});
