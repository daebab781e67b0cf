// The checks as a page runs them, against a node of HTTP that serves a ledger: in a worker's source, and without workers.
'use strict';
const { test, before, after, beforeEach } = require('node:test');
const assert = require('node:assert/strict');
const { once } = require('node:events');
const { createServer } = require('node:http');
const vm = require('node:vm');
const { HB, Ledger, hash } = require('./load.js');

const START = { seq: 0, hash: '0'.repeat(64) };
let ledger; // the lines that are served, which a test may change
let asked; // paths, in order
let token = '';
let files = {}; // path → bytes
let api;
let head;
const server = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://node');
  asked.push(request.url);
  if (token && request.headers.authorization !== `Bearer ${token}`) return response.writeHead(401).end('{"error":{"message":"say the token"}}');
  if (pathname === '/api/ledger/head') return response.end(JSON.stringify(head));
  if (files[pathname]) return response.end(files[pathname]);
  const from = Number(searchParams.get('from') ?? 1);
  const lines = pathname.endsWith('/trace') ? ledger.filter((line) => line.includes('"job"')) : ledger.slice(from - 1, from - 1 + Number(searchParams.get('limit')));
  response.end(lines.map((line) => `${line}\n`).join(''));
});

before(async () => {
  await once(server.listen(0, '127.0.0.1'), 'listening');
});
after(() => server.close());
beforeEach(() => {
  const made = new Ledger();
  made.append(null, 'GENESIS', { log_id: 'x' });
  for (let i = 2; i <= 2345; i++) made.append(i % 3 ? 'job' : 'other', i < 4 ? 'RECEIVED' : 'D1_STABLE', { line: `[D1_STABLE] ünï ${i}`, manifest: { image_hash: 'i', command: ['x'] }, usage: { cpu_ns: i } });
  ledger = made.lines.map(String);
  head = made.head();
  asked = [];
  token = '';
  files = {};
  api = new HB.Api(`http://127.0.0.1:${server.address().port}`);
});

/** A worker made of the source that pages give to theirs, and nothing else: task(name, args) → {result, news}. */
function worker() {
  const calls = [];
  const self = {};
  const postMessage = ([id, what, value]) => calls[id][what](value);
  vm.runInNewContext(HB.workerSource(), { self, postMessage, fetch, AbortSignal, TextDecoder, Uint8Array });
  return (task, args) =>
    new Promise((resolve, reject) => {
      const news = [];
      calls.push({ news: (value) => news.push(value), done: (result) => resolve({ result, news }), failed: reject });
      self.onmessage({ data: [calls.length - 1, task, { api: { base: api.base, token: api.token }, ...args }] });
    });
}
const change = (seq) => (ledger[seq - 1] = ledger[seq - 1].replace(/("time":"20)2/, '$13'));
/** What comes out of another realm has other prototypes. */
const plain = (value) => JSON.parse(JSON.stringify(value));

test('a worker of the shared sources alone walks the chain, in pages', async () => {
  const { result, news } = await worker()('walk', { from: START, to: 2345, hash: head.hash });
  assert.deepEqual(plain(result), { ok: true, seq: 2345, hash: head.hash, words: '' });
  assert.deepEqual(news.map(({ seq }) => seq), [1000, 2000, 2345]);
});

test('where nothing is new, nothing is asked for', async () => {
  assert.deepEqual(await HB.walk(api, head, head.seq, () => {}, { hash: head.hash }), { ok: true, ...head, words: '' });
  assert.equal((await HB.walk(api, head, head.seq, () => {}, { hash: 'other' })).ok, false);
  await api.json('/api/ledger/head'); // whatever was asked for before has arrived then
  assert.deepEqual(asked, ['/api/ledger/head']);
});

test('a walk names the event at which the chain does not hold', async () => {
  change(1500);
  const { ok, words, seq } = await HB.walk(api, START, 2345, () => {});
  assert.deepEqual([ok, seq], [false, 1500]);
  assert.match(words, /^event 1501: prev is not the hash of event 1500$/);
});

test('a dropped event, a changed last one, and a short ledger are told apart', async () => {
  const whole = ledger;
  ledger = whole.filter((_, i) => i !== 700);
  assert.match((await HB.walk(api, START, 2000, () => {})).words, /^event 701: event 701 is not in its place/);
  ledger = [...whole];
  change(2345);
  const last = await HB.walk(api, START, 2345, () => {}, { hash: head.hash });
  assert.equal(last.ok, false);
  assert.match(last.words, /^event 2345: the head/);
  ledger = whole.slice(0, 1200);
  assert.deepEqual(await HB.walk(api, START, 2345, () => {}), { ok: null, seq: 1200, hash: HB.sha256(Buffer.from(whole[1199])), words: 'event 1201 could not be read' });
});

test('the token goes with every request of a walk, and its refusal is told in the node’s words', async () => {
  token = 'secret';
  await assert.rejects(HB.walk(api, START, 10, () => {}), { status: 401, message: 'say the token' });
  api.token = token;
  assert.equal((await HB.walk(api, START, 10, () => {})).ok, true);
});

test('a job’s trace is told without what a proof needs, and each event is judged', async () => {
  const run = worker();
  const { news } = await run('trace', { path: '/api/jobs/job/trace' });
  const events = plain(news.flat());
  assert.equal(events.length, ledger.filter((line) => line.includes('"job"')).length);
  assert.deepEqual(events[0], (({ prev, ...event }) => event)(JSON.parse(ledger[1])));
  // The event is changed in the ledger only, as on a disk that was edited.
  change(1000);
  const { result, news: told } = await run('judge', { fresh: [], most: Infinity });
  const bad = told.flat().filter(([, ok]) => !ok);
  assert.equal(result, 0);
  assert.equal(told.flat().length, events.length);
  assert.deepEqual(bad.map(([seq, ok, words]) => [seq, ok, words]).sort(), [[1000, false, 'the ledger holds other bytes than the job’s trace'], [1001, false, 'prev is not the hash of event 1000']]);
});

test('a worker of the shared sources alone hashes a file and a seal', async () => {
  const run = worker();
  const bytes = Buffer.alloc(3_000_001, 'ab');
  files['/api/file'] = bytes;
  assert.deepEqual(plain((await run('file', { path: '/api/file' })).result), { size: bytes.length, hex: hash(bytes) });
  const artifacts = [{ path: '/w/ü%25', size: 2, sha256: hash('ok') }];
  const root = hash(`${hash('ok')}  w/ü%\n`);
  const seal = { job_id: 'job', artifacts_root: root, artifacts };
  files['/api/seal'] = JSON.stringify(seal);
  const sealed = { job_id: 'job', detail: { seal_hash: hash(files['/api/seal']), artifacts_root: root, files: 1, bytes: 2 } };
  assert.deepEqual(plain((await run('seal', { path: '/api/seal', sealed })).result), { seal, wrong: [] });
  files['/api/seal'] += ' ';
  assert.match((await run('seal', { path: '/api/seal', sealed })).result.wrong.join(), /^it has the hash [0-9a-f]{64}$/);
});

test('where there are no workers, a check that is given up reads no further', async () => {
  const made = new Ledger();
  for (let i = 1; i <= 5000; i++) made.append('job', 'D1_STABLE');
  ledger = made.lines.map(String);
  const work = new HB.Work();
  assert.equal(work.worker, undefined);
  await new Promise((resolve) => work.run('walk', { api, from: START, to: 5000 }, resolve));
  work.close();
  // So many answers in turn: a check that went on would have asked for the rest meanwhile.
  for (let i = 0; i < 100; i++) await api.json('/api/ledger/head');
  assert.ok(asked.includes('/api/ledger?from=1001&limit=1000'));
  assert.ok(!asked.includes('/api/ledger?from=4001&limit=1000'), asked.join());
});

test('as many events are judged as may be read, newest first, and the others when asked for', async () => {
  const run = worker();
  const { news } = await run('trace', { path: '/api/jobs/job/trace' });
  const { result, news: told } = await run('judge', { fresh: [], most: 1100 });
  assert.equal(result, news.flat().length - told.flat().length);
  assert.equal(told[0].at(-1)[0], 2345);
  assert.ok(result > 700 && Math.min(...told.flat().map(([seq]) => seq)) > 1000, String(result));
  assert.equal((await run('judge', { fresh: [], most: Infinity })).result, 0);
});

test('the newest event waits until something came after it', async () => {
  const run = worker();
  const lines = ledger;
  ledger = lines.slice(0, 2342); // 2342 is of `job`
  await run('trace', { path: '/api/jobs/job/trace' });
  assert.equal((await run('judge', { fresh: [], most: Infinity })).result, 1);
  ledger = lines;
  const { result, news } = await run('judge', { fresh: [], most: Infinity });
  assert.deepEqual([result, plain(news)], [0, [[[2342, true, '']]]]);
});

test('the whole chain is read once: then the stream, which is linked to it, goes on', async () => {
  const follower = new HB.chain.Follower({ seq: 2000, hash: JSON.parse(ledger[2000]).prev });
  const node = { base: api.base, api, follower };
  const whole = HB.whole(node);
  await whole.look();
  assert.deepEqual([whole.done.seq, whole.fault], [2000, '']);
  asked = [];
  for (const line of ledger.slice(2000)) follower.accept(HB.chain.parse(new TextEncoder().encode(line)));
  await whole.look();
  assert.deepEqual(whole.done, head);
  assert.deepEqual(asked, []);
  // A link that does not hold is looked for in the ledger.
  follower.accept(HB.chain.parse(new TextEncoder().encode(JSON.stringify({ seq: 2346, prev: 'x' }))));
  ledger.push(JSON.stringify({ seq: 2346, prev: 'x' }));
  await whole.look();
  assert.match(whole.fault, /^The chain does not hold at event 2346: .*hackbrain verify/);
  assert.equal(whole.done.seq, 2345);
});

test('what this browser has checked before is not read again, and a ledger that ends before it is a fault', async () => {
  const kept = { checked: { seq: 2000, hash: JSON.parse(ledger[2000]).prev } };
  HB.memory = { get: () => kept, set: (_, change) => Object.assign(kept, change) };
  try {
    const whole = HB.whole({ base: api.base, api });
    await whole.look();
    assert.deepEqual(kept.checked, head);
    assert.deepEqual(asked, ['/api/ledger/head', '/api/ledger?from=2001&limit=345']);
    head = { seq: 1999, hash: kept.checked.hash };
    const later = HB.whole({ base: api.base, api });
    await later.look();
    assert.match(later.fault, /ends at event 1,?999.*2,?345.*hackbrain verify/);
  } finally {
    delete HB.memory;
  }
});

test('a long ledger is read when it is asked for', async () => {
  head = { seq: 60_000, hash: 'x' };
  const whole = HB.whole({ base: api.base, api });
  await whole.look();
  assert.deepEqual([whole.done.seq, whole.to, asked], [0, 60_000, ['/api/ledger/head']]);
  await whole.look(true);
  assert.equal(asked.at(-1).startsWith('/api/ledger?from='), true);
});

test('a history as of any seq is the fold of the events until then', async () => {
  const made = new Ledger();
  const states = ['SCHEDULED', 'RUNNING', 'D1_STABLE', 'CRASH', 'RECOVERY', 'D1_STABLE', 'COMPLETED', 'SEALED'];
  made.append(null, 'GENESIS', {});
  const at = new Map();
  for (let i = 0; i < 400; i++) {
    const id = `job${(i * 7 + (i >> 4)) % 61}`;
    const step = at.get(id) ?? -1;
    at.set(id, step + 1);
    const detail = { manifest: { image_hash: `image ${id}` }, line: `[D1_STABLE] ${i}`, cause: 'killed', exit_code: i % 5, image_id: id, execution_hash: id };
    if (step < states.length) made.append(id, step < 0 ? 'RECEIVED' : states[step], detail, Math.max(0, step));
    else made.append(null, 'NODE_UP', {});
  }
  ledger = made.lines.map(String);
  // As they come: in pages, and without what is deep.
  const events = [];
  await HB.walk(api, START, ledger.length, (seq, some) => events.push(...some), { wants: true });
  const history = new HB.History();
  history.add(events.slice(0, 150));
  history.add(events.slice(150));
  const folded = HB.model.create();
  const bare = (model) => model.order.map(({ text, node, ...job }) => job);
  for (const line of ledger) {
    const event = JSON.parse(line);
    HB.model.fold(folded, event);
    const model = history.at(event.seq);
    assert.deepEqual(bare(model), bare(folded), `as of ${event.seq}`);
    assert.deepEqual([model.seq, [...model.jobs.keys()].sort()], [folded.seq, [...folded.jobs.keys()].sort()]);
  }
  assert.equal(history.at(0).order.length, 0);
});
