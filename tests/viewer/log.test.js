'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { HB } = require('./load.js');

const { LogTail, logReading } = HB;
const bytes = (s) => new TextEncoder().encode(s);
const texts = (tail) => tail.lines.map((line) => line.text);

test('lines are the same however the bytes arrive', () => {
  const text = 'one\n\n[D1_STABLE] step=1\nünï 𝒳\nlast without end';
  const all = bytes(text);
  for (let a = 0; a <= all.length; a++) {
    const tail = new LogTail();
    tail.append(all.subarray(0, a));
    tail.append(all.subarray(a));
    assert.deepEqual(texts(tail), text.split('\n'), `split at ${a}`);
    assert.deepEqual(tail.lines.map((line) => line.stable), [false, false, true, false, false]);
    assert.equal(tail.end, all.length);
  }
  const slow = new LogTail();
  for (const byte of all) slow.append(Uint8Array.of(byte));
  assert.deepEqual(texts(slow), text.split('\n'));
});

test('a final newline opens no empty line', () => {
  const tail = new LogTail();
  tail.append(bytes('a\nb\n'));
  assert.deepEqual(texts(tail), ['a', 'b']);
  tail.append(bytes('c'));
  assert.deepEqual(texts(tail), ['a', 'b', 'c']);
});

test('offsets are those of the file', () => {
  const all = bytes('ü\nabc\nd');
  const tail = new LogTail();
  for (const byte of all) tail.append(Uint8Array.of(byte));
  assert.deepEqual(tail.lines.map((line) => line.offset), [0, 3, 7]);
});

test('beginning in the middle keeps the offsets of the file', () => {
  const tail = new LogTail(100);
  tail.append(bytes('rest of a line\nwhole\n'));
  assert.deepEqual(tail.lines.map((line) => line.offset), [100, 115]);
  assert.deepEqual([tail.from, tail.end], [100, 121]);
});

test('no more than the bound is held, in whole lines, and the end stays right', () => {
  const tail = new LogTail(0, 1000);
  for (let i = 0; i < 500; i++) {
    tail.append(bytes(`line ${i}\n`));
    assert.ok(tail.end - tail.from <= 1000);
  }
  assert.equal(texts(tail).at(-1), 'line 499');
  assert.match(texts(tail)[0], /^line \d+$/);
  assert.equal(tail.end, Array.from({ length: 500 }, (_, i) => `line ${i}\n`.length).reduce((a, b) => a + b));
  const gap = tail.lines.every((line, i) => i === 0 || line.offset === tail.lines[i - 1].offset + tail.lines[i - 1].text.length + 1);
  assert.ok(gap);
});

test('an endless line stays bounded', () => {
  const tail = new LogTail(0, 1000);
  for (let i = 0; i < 50; i++) tail.append(new Uint8Array(300).fill(65));
  assert.equal(tail.end, 15_000);
  assert.ok(tail.open.length < 1000);
  assert.ok(tail.lines.length < 20);
});

test('colour codes go, progress bars show their last state, controls become visible', () => {
  const tail = new LogTail();
  tail.append(bytes('\x1b[1;32mok\x1b[0m\n 10%\r 20%\r\nbell\x07 null\0 tab\there\n'));
  assert.deepEqual(texts(tail), ['ok', ' 20%', 'bell␇ null␀ tab\there']);
});

test('only a line that begins with the marker is a marker', () => {
  const tail = new LogTail();
  tail.append(bytes('x [D1_STABLE] a\n[D1_STABLE]\n[D1_STABLE'));
  assert.deepEqual(tail.lines.map((line) => line.stable), [false, true, false]);
});

test('answers to range requests', () => {
  const some = bytes('abcdef');
  const table = [
    // status, from, expected
    [206, 4, 'abcdef'],
    [200, 0, 'abcdef'],
    [200, 4, 'ef'],
    [200, 6, ''],
    [200, 7, ''],
    [416, 10, ''],
  ];
  for (const [status, from, expected] of table) assert.equal(Buffer.from(logReading(status, from, some)).toString(), expected, `${status} from ${from}`);
});
