'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { HB } = require('./load.js');

const { duration, bytes, moment, marker, hash, describe, going } = HB.format;

test('durations, sizes, moments', () => {
  const durations = [[0, '0.00 s'], [9994, '9.99 s'], [12_340, '12.3 s'], [65_000, '1 min 05 s'], [3 * 3600e3 + 720e3, '3 h 12 min'], [51 * 3600e3, '2 d 03 h'], [NaN, ''], [-1, '']];
  for (const [ms, words] of durations) assert.equal(duration(ms), words);
  for (const [n, words] of [[0, '0 B'], [1023, '1023 B'], [1536, '1.5 KiB'], [20 << 20, '20 MiB']]) assert.equal(bytes(n), words);
  const now = Date.UTC(2026, 10, 23, 9);
  assert.equal(moment('2026-11-23T08:09:47.123456Z', now), '08:09:47');
  assert.equal(moment('2026-11-21T08:09:47.123456Z', now), '11-21 08:09');
});

test('markers come as lines, or not at all', () => {
  assert.equal(marker('[D1_STABLE] step=4'), 'step=4');
  assert.equal(marker('[D1_STABLE]'), '[D1_STABLE]');
  assert.equal(marker(null), '');
});

test('a summary tells why a job waits, how far its files are, or nothing', () => {
  const progress = { doing: 'hashing inputs', mount: '/w', files: 1234, bytes: 3 << 20 };
  assert.equal(going({ waiting_for: null, progress: null }), '');
  assert.equal(going({}), '');
  assert.equal(going({ waiting_for: 'disk space', progress: null }), 'Waits: disk space');
  assert.equal(going({ waiting_for: null, progress }), 'Now hashing inputs, /w: 1,234 files, 3.0 MiB');
  assert.equal(going({ waiting_for: 'x', progress: { ...progress, doing: 'sealing', files: 1 } }), 'Waits: x · Now sealing, /w: 1 file, 3.0 MiB');
});

test('hashes are shortened without their prefix', () => assert.equal(hash('sha256:0123456789abcdef'), '0123456789ab'));

test('an event of every state can be described, with and without detail', () => {
  for (const state of ['RECEIVED', 'SCHEDULED', 'RUNNING', 'D1_STABLE', 'CRASH', 'RECOVERY', 'COMPLETED', 'STOPPING', 'RETRIGGERED', 'FAILED', 'CANCELLED', 'SEALED']) {
    assert.equal(typeof describe({ state, attempt: 1, detail: {} }), 'string');
    assert.equal(typeof describe({ state, attempt: 1 }), 'string');
  }
  assert.equal(describe({ state: 'FAILED', detail: { reason: 'image', message: 'no such image', exit_code: null } }), 'no such image');
  assert.equal(describe({ state: 'FAILED', detail: { reason: 'exit', message: 'the payload exited with 3', exit_code: 3 } }), 'exit 3', 'once is enough');
});
