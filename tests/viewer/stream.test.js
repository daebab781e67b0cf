'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { HB } = require('./load.js');

const STREAM = [
  ': hello\n\n',
  'id: 7\ndata: {"a":"ü — 𝒳"}\n\n',
  'retry: 2000\n\n',
  'id:8\r\ndata:  two spaces: one is content\r\n\r\n',
  'event: log\rdata: {"job_id":"x"}\r\r',
  'event: telemetry\ndata:{}\nunknown\nother: x\n\n',
  'id: 9\n\n',
  'data: no id\n\n',
  'id: 10\ndata: unfinished\n',
].join('');
const EXPECTED = [
  { id: '7', event: 'message', data: '{"a":"ü — 𝒳"}' },
  { id: '8', event: 'message', data: ' two spaces: one is content' },
  { id: null, event: 'log', data: '{"job_id":"x"}' },
  { id: null, event: 'telemetry', data: '{}' },
  { id: null, event: 'message', data: 'no id' },
];

function parse(chunks) {
  const out = [];
  const parser = new HB.SseParser(({ id, event, data }) => out.push({ id, event, data: Buffer.from(data).toString() }));
  for (const chunk of chunks) parser.push(chunk);
  return out;
}

const bytes = new TextEncoder().encode(STREAM);

test('messages, ids, comments, all three line ends', () => assert.deepEqual(parse([bytes]), EXPECTED));

test('one byte at a time', () => assert.deepEqual(parse(Array.from(bytes, (b) => Uint8Array.of(b))), EXPECTED));

test('a chunk boundary at every byte', () => {
  for (let at = 0; at <= bytes.length; at++) assert.deepEqual(parse([bytes.subarray(0, at), bytes.subarray(at)]), EXPECTED, `boundary ${at}`);
});

test('data is kept byte for byte, invalid UTF-8 included', () => {
  const raw = Uint8Array.of(0xff, 0xc3, 0x28, 0x20, 0x00);
  let got;
  new HB.SseParser((message) => (got = message.data)).push(Buffer.concat([Buffer.from('id: 1\ndata: '), raw, Buffer.from('\n\n')]));
  assert.deepEqual([...got], [...raw]);
});

test('data does not share memory with the chunk it came in', () => {
  let got;
  const parser = new HB.SseParser((message) => (got = message.data));
  const chunk = new TextEncoder().encode('data: abc\n\n');
  parser.push(chunk);
  chunk.fill(0);
  assert.equal(Buffer.from(got).toString(), 'abc');
});

test('an endless line is refused instead of filling memory', () => {
  const parser = new HB.SseParser(() => {});
  assert.throws(() => {
    for (let i = 0; i < 10; i++) parser.push(new Uint8Array(1 << 20).fill(65));
  }, HB.ApiError);
});
