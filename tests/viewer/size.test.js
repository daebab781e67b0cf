'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { readdirSync, readFileSync } = require('node:fs');
const { join } = require('node:path');

const DIR = join(__dirname, '../../static');
const LIMIT = 96_000; // bytes, as they are
const ALL = 189_000;
const FILES = readdirSync(DIR).map((name) => ({ name, bytes: readFileSync(join(DIR, name)) }));
const text = (name) => readFileSync(join(DIR, name), 'utf8');
const loaded = [...text('index.html').matchAll(/<(?:script|link|img|iframe|object|embed|source)\b[^>]*?(?:src|href)="([^"]+)"/g)].map(([, from]) => from);
const FIRST = loaded.filter((from) => from !== 'data:,').map((from) => from.replace(/^\.\//, ''));
const LATER = [.../const later = new Set\(\[(.*?)\]\)/s.exec(text('app.js'))[1].matchAll(/'(\w+)'/g)].map(([, name]) => `${name}.js`);

const total = (files) => files.reduce((sum, { bytes }) => sum + bytes.length, 0);
const sizes = (files) => files.map(({ name, bytes }) => `${name} ${bytes.length}`).join(', ');

test(`what is read before the first rows has at most ${LIMIT.toLocaleString('en')} bytes`, () => {
  const first = FILES.filter(({ name }) => name === 'index.html' || FIRST.includes(name));
  assert.ok(total(first) <= LIMIT, `${total(first)} bytes: ${sizes(first)}`);
});

test(`the viewer does not grow: all of it has at most ${ALL.toLocaleString('en')} bytes`, () => {
  assert.ok(total(FILES) <= ALL, `${total(FILES)} bytes: ${sizes(FILES)}`);
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

test('the page loads nothing but the files beside it, and each of them once', () => {
  for (const from of loaded) assert.match(from, /^(\.\/[a-z0-9]+\.(css|js)|data:,)$/, from);
  const expected = FILES.map(({ name }) => name).filter((name) => name !== 'index.html');
  assert.deepEqual([...FIRST, ...LATER].sort(), expected.sort());
});

test('no text becomes code or markup, and no style stands in the page', () => {
  for (const { name, bytes } of FILES) {
    const text = bytes.toString();
    assert.doesNotMatch(text, /\.(innerHTML|outerHTML)\b|insertAdjacentHTML|document\.write|\beval\(|new Function\b|\bDOMParser\b/, name);
    if (name.endsWith('.html')) assert.doesNotMatch(text, /<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\bsrc=)/, name);
  }
});
