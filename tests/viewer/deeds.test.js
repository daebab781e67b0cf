'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const { mkdtempSync, mkdirSync, rmSync, writeFileSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join, dirname } = require('node:path');
const { HB, hash } = require('./load.js');

const { arrange, step } = HB.Graph.pure;
const { lines, urlPath, digest, faults } = HB.seal;
const { read, write, put, offline } = HB.Actions.pure;

/** Numbers that look random and are the same in every run. */
function random(seed) {
  return (n) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * n);
  };
}
const graphOf = (edges, extra = []) => ({ jobs: [...new Set([...edges.flat(), ...extra])].map((job_id) => ({ job_id, state: 'SEALED' })), edges });
const shape = ({ layers, left }) => ({ layers: layers.map((layer) => layer.map(({ id }) => id)), left });
const shuffled = (list, below) => list.map((item) => [below(1e6), item]).sort((a, b) => a[0] - b[0]).map(([, item]) => item);

test('layers are by the longest path, whatever the order of the answer', () => {
  const edges = [['a', 'b'], ['a', 'c'], ['b', 'd'], ['c', 'd'], ['a', 'd'], ['d', 'e'], ['z', 'e']];
  const wanted = { layers: [['a', 'z'], ['b', 'c'], ['d'], ['e']], left: 0 };
  const below = random(7);
  for (let i = 0; i < 50; i++) {
    const { jobs, edges: some } = graphOf(shuffled(edges, below));
    assert.deepEqual(shape(arrange({ jobs: shuffled(jobs, below), edges: some }, 'd')), wanted);
  }
});

test('every edge leads to a later layer and no two jobs share a place, in graphs of any shape', () => {
  const below = random(3);
  for (let round = 0; round < 100; round++) {
    const size = 2 + below(50);
    const edges = [];
    for (let child = 1; child < size; child++) for (let n = below(3); n >= 0; n--) edges.push([`j${below(child)}`, `j${child}`]);
    const { nodes, layers, left } = arrange(graphOf(edges), 'j0');
    assert.equal(nodes.size + left, new Set(edges.flat()).size);
    for (const [a, b] of edges) if (nodes.has(a) && nodes.has(b)) assert.ok(nodes.get(a).layer < nodes.get(b).layer);
    for (const layer of layers) assert.equal(new Set(layer.map(({ y }) => y)).size, layer.length);
  }
});

test('of a large graph, the rings that fit are shown and the rest is counted', () => {
  const chain = Array.from({ length: 999 }, (_, i) => [`j${String(i).padStart(4, '0')}`, `j${String(i + 1).padStart(4, '0')}`]);
  const { nodes, left } = arrange(graphOf(chain), 'j0500', 9);
  assert.deepEqual([...nodes.keys()].sort(), ['j0496', 'j0497', 'j0498', 'j0499', 'j0500', 'j0501', 'j0502', 'j0503', 'j0504']);
  assert.equal(left, 991);
  const fan = Array.from({ length: 500 }, (_, i) => ['root', `leaf${i}`]);
  assert.deepEqual([arrange(graphOf(fan), 'leaf7', 60).nodes.size, arrange(graphOf(fan), 'root', 60).nodes.size], [2, 60]);
});

test('a cycle, which no sound node tells of, ends', () => {
  assert.equal(arrange(graphOf([['a', 'b'], ['b', 'c'], ['c', 'a']]), 'a').nodes.size, 3);
});

test('arrow keys lead along edges and to neighbours', () => {
  const { nodes, layers } = arrange(graphOf([['a', 'b'], ['a', 'c'], ['b', 'd'], ['c', 'd']]), 'a');
  const walk = (from, ...keys) => keys.reduce((node, key) => step(layers, node, key) ?? node, nodes.get(from)).id;
  assert.equal(walk('a', 'ArrowRight'), 'b');
  assert.equal(walk('a', 'ArrowRight', 'ArrowDown'), 'c');
  assert.equal(walk('a', 'ArrowRight', 'ArrowDown', 'ArrowRight'), 'd');
  assert.equal(walk('d', 'ArrowLeft', 'ArrowLeft', 'ArrowLeft'), 'a');
  assert.equal(walk('b', 'ArrowUp'), 'b');
  assert.equal(walk('b', 'x'), 'b');
});

const FORMS = [
  ['text', 'job-1', 'job-1'],
  ['text', '  ', undefined],
  ['command', 'echo "a" && ls', ['sh', '-c', 'echo "a" && ls']],
  ['command', '["python", "main.py"]', ['python', 'main.py']],
  ['command', '[ -f x ] && cat x', ['sh', '-c', '[ -f x ] && cat x']],
  ['command', '{ echo; }', ['sh', '-c', '{ echo; }']],
  ['command', '"true"', ['sh', '-c', '"true"']],
  ['command', '  cat <<E\nx\nE\n', ['sh', '-c', '  cat <<E\nx\nE\n']],
  ['lines', 'a:/b\n\n  c:/d:ro \n', ['a:/b', 'c:/d:ro']],
  ['pairs', 'A=1\n B==x y \nC=', { A: '1', B: '=x y ', C: '' }],
  ['pairs', 'A=1\nnonsense', 'A=1\nnonsense'],
  ['number', '1.5', 1.5],
  ['number', 'two', 'two'],
];

test('a field’s text stands for a value', () => {
  for (const [kind, text, value] of FORMS) assert.deepEqual(read(kind, text), value, `${kind} ${text}`);
});

test('every value that a manifest may have can be shown in its field, and is read back as itself', () => {
  const values = {
    text: ['x', 'sha256:00'],
    command: [['true'], ['sh', '-c', 'a\nb'], ['sh', '-c', '["x"]'], ['sh', '-c', ' '], ['sh', '-c', '[1'], ['sh', '-c', 'a', 'b'], [''], ['sh', '-x', 'a']],
    lines: [['a'], ['a', 'b'], [' a'], ['a\nb'], ['["x"]'], [''], []],
    pairs: [{}, { A: '' }, { A: 'a=b\nc' }, { A: ' x ', B: '{' }, { A: '1', B: '2' }, { __proto__x: 'y' }],
    number: [0, 1.5, 3, 1e21],
  };
  for (const [kind, list] of Object.entries(values)) for (const value of list) assert.deepEqual(read(kind, write(kind, value)), value, `${kind} ${JSON.stringify(value)}`);
  assert.equal(write('command', ['sh', '-c', 'make -j2']), 'make -j2');
  assert.equal(write('pairs', { A: '1', B: '2' }), 'A=1\nB=2');
  // What no manifest may have is shown all the same.
  for (const odd of [null, 7, 'x', { a: 1 }, [[1]]]) for (const kind of Object.keys(values)) assert.equal(typeof write(kind, odd), 'string');
});

test('members are set and left out, in their usual order, and unknown ones stay', () => {
  let manifest = { surprise: 1, command: ['x'] };
  manifest = put(put(manifest, 'resources.pids', 9), 'resources.cpus', 2);
  manifest = put(manifest, 'job_id', 'j');
  assert.equal(JSON.stringify(manifest), '{"job_id":"j","command":["x"],"resources":{"cpus":2,"pids":9},"surprise":1}');
  manifest = put(put(put(manifest, 'resources.pids'), 'resources.cpus'), 'command');
  assert.equal(JSON.stringify(manifest), '{"job_id":"j","surprise":1}');
});

/** What a program called in `text` gets. */
function argumentsOf(program, text) {
  const out = execFileSync('bash', ['-c', `${program}() { printf '%s\\0' "$@"; }\n${text}`], { env: { ...process.env, TOKEN: 't k' } });
  return out.toString().split('\0').slice(0, -1);
}

test('the curl line sends the manifest through a shell unharmed', () => {
  const api = new HB.Api('http://127.0.0.1:4005');
  const manifest = { job_id: 'j', command: ['sh', '-c', `echo 'it''s' "$HOME" \`id\` \\n !! \n ü`], env: { A: "'" } };
  const given = argumentsOf('curl', api.curl(manifest));
  assert.equal(given[0], 'http://127.0.0.1:4005/api/submit_job');
  assert.deepEqual(JSON.parse(given.at(-1)), manifest);
  api.token = 'secret';
  const text = api.curl(manifest);
  assert.ok(!text.includes('secret'));
  assert.ok(argumentsOf('curl', text).includes('Authorization: Bearer t k'));
});

test('the offline check names the event that this page has read, and no token', () => {
  const api = Object.assign(new HB.Api('http://h:1'), { token: 'secret' });
  const text = offline(api, 'j', { event: { seq: 9 }, hash: 'ba7816bf'.repeat(8) });
  assert.ok(!text.includes('secret') && text.includes('$TOKEN'));
  assert.match(text, /--expect 9:(ba7816bf){8}\)/);
  assert.doesNotMatch(offline(api, 'j'), /--expect/);
  execFileSync('bash', ['-n', '-c', text]);
});

const NAMES = ['plain', 'sp ace', 'a%b', 'back\\slash', 'new\nline', 'cr\rx', 'ü', 'q?u#e;&+', Buffer.from('bad\xff\xfe', 'latin1'), 'd/deep/file'];
/** As a seal writes a path: docs/evidence.md. */
const sealText = (name) => (typeof name === 'string' ? name.replaceAll('%', '%25') : Array.from(name, (b) => (b < 128 ? String.fromCharCode(b) : `%${b.toString(16).toUpperCase()}`)).join(''));

test('the list of artifacts is what sha256sum writes, for any name', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'hb-list-'));
  try {
    const artifacts = NAMES.map((name, i) => {
      const path = Buffer.concat([Buffer.from(`${dir}/job/`), Buffer.from(name)]);
      mkdirSync(dirname(path.toString('latin1')), { recursive: true });
      writeFileSync(path, `content ${i}`);
      return { path: `/job/${sealText(name)}`, size: 9, sha256: hash(`content ${i}`) };
    });
    const own = Buffer.concat([...lines(artifacts)]);
    writeFileSync(join(dir, 'list'), own);
    const said = execFileSync('sha256sum', ['-c', '--strict', 'list'], { cwd: dir }).toString();
    assert.equal(said.match(/: OK$/gm).length, NAMES.length);
    assert.equal((await digest(lines(artifacts))).hex, hash(own));
    for (const [i, name] of NAMES.entries()) {
      const bytes = Buffer.from(urlPath(artifacts[i].path).replace(/%(..)/g, (_, hex) => String.fromCharCode(parseInt(hex, 16))), 'latin1');
      assert.deepEqual(bytes, Buffer.concat([Buffer.from('job/'), Buffer.from(name)]));
      assert.equal(new URL(`http://h/x/${urlPath(artifacts[i].path)}`).pathname, `/x/${urlPath(artifacts[i].path)}`, 'no browser changes it');
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});

test('a seal is sound only if its bytes, its entries and SEALED agree', async () => {
  const artifacts = [{ path: '/w/a', size: 1, sha256: hash('a') }, { path: '/w/b', size: 2, sha256: hash('bb') }];
  const root = hash(Buffer.concat([...lines(artifacts)]));
  const seal = { job_id: 'j', artifacts_root: root, artifacts };
  const bytes = Buffer.from(JSON.stringify(seal));
  const sealed = { job_id: 'j', detail: { seal_hash: hash(bytes), artifacts_root: root, files: 2, bytes: 3 } };
  assert.deepEqual(await faults(bytes, seal, sealed), []);
  const bad = [
    [Buffer.concat([bytes, Buffer.from(' ')]), seal, sealed, /hash/],
    [bytes, { ...seal, artifacts: [artifacts[0], { ...artifacts[1], sha256: hash('c') }] }, sealed, /artifacts root/],
    [bytes, { ...seal, artifacts_root: 'x' }, sealed, /artifacts root/],
    [bytes, seal, { ...sealed, job_id: 'k' }, /job/],
    [bytes, seal, { ...sealed, detail: { ...sealed.detail, bytes: 4 } }, /bytes/],
  ];
  for (const [raw, parsed, event, words] of bad) assert.match((await faults(raw, parsed, event)).join(), words);
});

test('a digest of many chunks is that of the whole', async () => {
  const chunk = new Uint8Array(700_001).fill(7);
  assert.deepEqual(await digest([chunk, chunk, new Uint8Array(0)]), { size: 1_400_002, hex: hash(Buffer.concat([chunk, chunk])) });
});
