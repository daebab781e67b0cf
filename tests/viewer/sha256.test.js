'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { randomBytes } = require('node:crypto');
const { HB, hash } = require('./load.js');

const text = (s) => new TextEncoder().encode(s);

test('NIST vectors', () => {
  const vectors = [
    ['', 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'],
    ['abc', 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'],
    ['abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq', '248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1'],
    [
      'abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu',
      'cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1',
    ],
    ['a'.repeat(1_000_000), 'cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0'],
  ];
  for (const [input, digest] of vectors) assert.equal(HB.sha256(text(input)), digest);
});

test('every length around the block boundaries, against node:crypto', () => {
  for (let length = 0; length <= 200; length++) {
    const bytes = randomBytes(length);
    assert.equal(HB.sha256(new Uint8Array(bytes)), hash(bytes), `length ${length}`);
  }
});

test('incremental: every split into three gives the same digest', () => {
  const bytes = new Uint8Array(randomBytes(150));
  const whole = hash(bytes);
  for (let a = 0; a <= 150; a += 7) {
    for (let b = a; b <= 150; b += 5) {
      const digest = new HB.Sha256().update(bytes.subarray(0, a)).update(bytes.subarray(a, b)).update(bytes.subarray(b)).hex();
      assert.equal(digest, whole, `split at ${a} and ${b}`);
    }
  }
});

test('a length whose bit count needs more than 32 bits', () => {
  const chunk = new Uint8Array(1 << 20);
  const sha = new HB.Sha256();
  sha.length = 2 ** 29; // as if 512 MiB had gone before: a multiple of 64, so only the length field differs
  const padded = new HB.Sha256().update(chunk).hex();
  assert.notEqual(sha.update(chunk).hex(), padded);
});
