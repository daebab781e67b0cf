'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { HB } = require('./load.js');

const { LogFile, rescale } = HB;
const { STEP, SHOWN, terminal, lineRange } = HB.log;
const utf8 = (text) => new TextEncoder().encode(text);
const decode = (bytes) => new TextDecoder().decode(bytes);

/** A file as the agent serves it: fetches what a lookup lacks until it has an answer. `most`: bytes an answer has at once. */
class Served {
  constructor(bytes, file = new LogFile(bytes.length), most = Infinity) {
    Object.assign(this, { bytes, file, most, fetched: 0 });
  }

  ask(look) {
    for (let round = 0; round < 100_000; round++) {
      const value = look(this.file);
      const wanted = [...this.file.wanted];
      this.file.wanted.clear();
      if (wanted.length === 0) return value;
      for (const block of wanted) {
        const skip = this.file.held.get(block)?.length ?? 0;
        const end = Math.min(this.file.end(this.file.at(block)), block + skip + this.most);
        this.file.put(block, this.bytes.slice(block, end));
        this.fetched += end - block - skip;
      }
    }
    throw new Error('a lookup never has what it wants');
  }
}

/** What the agent tells of a file: the offset of every n-th line, and how many there are. */
function account(bytes, every) {
  const points = [[0, 0]];
  let line = 0;
  for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) if (++line % every === 0) points.push([line, at + 1]);
  return { points, lines: line + (bytes.length > 0 && bytes.at(-1) !== 10) };
}

/** Lines of many lengths, with empty ones, characters of four bytes, bytes that are no UTF-8, and two giants. */
function sample(count) {
  const parts = [];
  let seed = 7;
  const next = () => (seed = (seed * 1103515245 + 12345) % 2 ** 31);
  for (let i = 0; i < count; i++) {
    const text = `${i} ${'ü𝒳é—'.repeat(next() % 12)}`;
    const line = i % 97 === 0 ? new Uint8Array(0) : i % 89 === 0 ? Uint8Array.of(0xff, 0xc3, 0x28, 0) : utf8(text);
    parts.push(Buffer.from(line), Buffer.from('\n'));
    if (i === 500 || i === count - 500) parts.push(Buffer.alloc(STEP * 2 + 17, 'x'), Buffer.from(`${i}\n`));
  }
  return new Uint8Array(Buffer.concat(parts));
}

const linesOf = (bytes) => {
  const out = [];
  let from = 0;
  while (from < bytes.length) {
    const to = bytes.indexOf(10, from);
    out.push({ offset: from, bytes: bytes.subarray(from, to < 0 ? bytes.length : to) });
    from = to < 0 ? bytes.length : to + 1;
  }
  return out;
};

test('every line and every offset, across blocks, with and without an account of the lines', () => {
  const bytes = sample(20_000);
  const expected = linesOf(bytes);
  for (const every of [0, 1, 64, 1024, 1 << 20]) {
    const { points, lines } = account(bytes, every || Infinity);
    const served = new Served(bytes, new LogFile(bytes.length, points, lines));
    for (const n of [19_999, 0, 1, 501, 499, 500, 502, 503, 10_000, 19_502, 19_501, 19_500, expected.length - 1, 3]) {
      const line = served.ask((file) => file.line(n));
      const { offset, bytes: all } = expected[n];
      assert.equal(line.offset, offset, `line ${n}, every ${every}`);
      assert.deepEqual(Buffer.from(line.bytes), Buffer.from(all.subarray(0, SHOWN)), `line ${n}, every ${every}`);
      assert.equal(line.isCut, all.length > SHOWN);
      for (const at of [offset, offset + (all.length >> 1), offset + all.length]) assert.equal(served.ask((file) => file.lineAt(at)), n, `byte ${at}, every ${every}`);
    }
  }
});

test('lines one after the other, as a view draws them', () => {
  const bytes = sample(3000);
  const served = new Served(bytes);
  linesOf(bytes).forEach(({ offset, bytes: all }, n) => {
    const line = served.ask((file) => file.line(n));
    assert.equal(line.offset, offset);
    assert.equal(decode(line.bytes), decode(all.subarray(0, SHOWN)));
  });
});

test('lines are the same however the bytes arrive', () => {
  const text = 'one\n\n[D1_STABLE] step=1\nünï 𝒳\nlast without end';
  const bytes = utf8(text);
  for (const most of [1, 2, 3, 7, 100]) {
    const served = new Served(bytes, new LogFile(bytes.length), most);
    const texts = text.split('\n').map((_, n) => decode(served.ask((file) => file.line(n)).bytes));
    assert.deepEqual(texts, text.split('\n'));
  }
});

test('a file that grows, line by line and by many: no byte is read twice, and a look makes no point of its own', () => {
  const bytes = sample(20_000);
  const expected = linesOf(bytes);
  const served = new Served(bytes, new LogFile());
  const { file } = served;
  for (let size = 70_001; size < bytes.length + 70_001; size += 70_001) {
    const now = Math.min(size, bytes.length);
    const told = account(bytes.subarray(file.next[1], now), Infinity);
    const start = bytes.subarray(0, now).lastIndexOf(10) + 1;
    const lines = file.next[0] + told.lines;
    file.add({ points: [file.next], lines, size: now, next: start < now ? [lines - 1, start] : [lines, now] });
    assert.equal(file.lines, linesOf(bytes.subarray(0, now)).length);
    const last = served.ask((log) => log.line(lines - 1));
    assert.equal(last.offset, linesOf(bytes.subarray(0, now)).at(-1).offset, `${now} bytes`);
  }
  assert.deepEqual(file.points, [...file.points].sort(([, a], [, b]) => a - b));
  assert.ok(file.points.length <= 3 * (bytes.length / STEP), `${file.points.length} points`);
  assert.ok(served.fetched <= bytes.length, `${served.fetched} bytes`);
  for (const n of [0, 1, 501, expected.length - 3]) assert.equal(served.ask((log) => log.line(n)).offset, expected[n].offset);
});

test('the tail alone: what it has, numbered from its beginning', () => {
  const bytes = sample(20_000);
  const from = bytes.length - STEP;
  const served = new Served(bytes, new LogFile(bytes.length, [[0, from]]));
  const expected = linesOf(bytes.subarray(from));
  assert.equal(served.file.isWhole, false);
  assert.equal(served.ask((file) => file.line(expected.length - 1)).offset, from + expected.at(-1).offset);
  assert.equal(served.ask((file) => file.lineAt(0)), undefined);
  assert.ok(served.fetched <= STEP);
});

test('a tail whose bytes come before its account keeps them', () => {
  const bytes = sample(20_000).slice(-STEP);
  const file = new LogFile(STEP);
  file.put(0, bytes);
  const { points, lines } = account(bytes, 64);
  file.add({ points, lines, size: STEP, next: [lines, STEP] });
  assert.equal(decode(file.line(lines - 1).bytes), decode(linesOf(bytes).at(-1).bytes));
  assert.deepEqual([file.points, file.wanted.size], [[[0, 0]], 0]);
});

test('no more than 8 MB is held, of which a view of the tail needs a few blocks', () => {
  const bytes = sample(600_000);
  assert.ok(bytes.length > 16e6);
  const { points, lines } = account(bytes, 1024);
  const served = new Served(bytes, new LogFile(bytes.length, points, lines));
  for (let n = lines - 50; n < lines; n++) served.ask((file) => file.line(n));
  assert.ok(served.fetched <= 4 * STEP, `${served.fetched} bytes`);
  // Without an account of the lines, blocks are as long as they become.
  const walked = new Served(bytes);
  let most = 0;
  for (let n = 0; n < lines; n += 300) {
    walked.ask((file) => file.line(n));
    most = Math.max(most, [...walked.file.held.values()].reduce((sum, { length }) => sum + length, 0));
  }
  assert.ok(most <= 8e6, `${most} bytes`);
});

test('a line is cut behind what is shown, and no sooner', () => {
  for (const length of [SHOWN - 1, SHOWN, SHOWN + 1, 3 * SHOWN]) {
    for (const before of [1, STEP - 100, STEP - SHOWN]) {
      const bytes = Buffer.concat([Buffer.alloc(before - 1, 'b'), Buffer.from('\n'), Buffer.alloc(length, 'x'), Buffer.from('\nend\n')]);
      const line = new Served(new Uint8Array(bytes)).ask((file) => file.line(1));
      assert.deepEqual([line.bytes.length, line.isCut], [Math.min(length, SHOWN), length > SHOWN], `${length} behind ${before}`);
      assert.ok(line.bytes.every((byte) => byte === 120));
    }
  }
});

const look = (raw, word) => terminal(raw, word).map(({ text, look, found }) => [text, look, ...(found ? ['found'] : [])]);

test('colours are classes: 16 of them, 256 and 24 bits by their nearest, bold, underline, reset', () => {
  const table = [
    ['plain', [['plain', '']]],
    ['\x1b[31mred\x1b[0m plain', [['red', 'a1'], [' plain', '']]],
    ['\x1b[1;92mok\x1b[22m thin\x1b[39m none', [['ok', 'a2 bright bold'], [' thin', 'a2 bright'], [' none', '']]],
    ['\x1b[4mline\x1b[24m\x1b[44mblue\x1b[49mend\x1b[m', [['line', 'under'], ['blue', 'a4 paper'], ['end', '']]],
    ['\x1b[37;105mboth', [['both', 'a5 bright paper']]],
    ['\x1b[38;5;196mx\x1b[38;5;21my\x1b[38;5;9mz\x1b[38;5;236mg', [['x', 'a1'], ['y', 'a4'], ['z', 'a1 bright'], ['g', 'a0']]],
    ['\x1b[38;2;250;240;10mx\x1b[48;2;0;200;190;1my', [['x', 'a3'], ['y', 'a6 paper bold']]],
    ['\x1b[48;2;0;200;31;1my\x1b[38;5;0;4mz', [['y', 'a2 paper bold'], ['z', 'a2 paper bold under']]],
    ['\x1b[31m\x1b[2J\x1b[?25lx\x1b]8;;http://a\x1b\\y\x1b[999mz', [['xyz', 'a1']]],
  ];
  for (const [raw, expected] of table) assert.deepEqual(look(raw), expected, JSON.stringify(raw));
});

test('a carriage return overwrites as on a terminal', () => {
  const table = [
    [' 10%\r 20%\r', ' 20%'],
    ['abcdef\rXY', 'XYcdef'],
    ['abcdef\r\x1b[KXY', 'XY'],
    ['a𝒳b\rcd', 'cdb'],
    ['dos\r', 'dos'],
    ['\x1b[31mabc\x1b[0m\rX', 'Xbc'],
  ];
  for (const [raw, expected] of table) assert.equal(terminal(raw).map((run) => run.text).join(''), expected, JSON.stringify(raw));
  assert.deepEqual(look('\x1b[31mabc\x1b[0m\rX'), [['X', ''], ['bc', 'a1']]);
});

test('other controls are made visible, and what turns text around; a tab stays', () => {
  assert.equal(terminal('bell\x07 null\0 del\x7f c1\x9b tab\there \u202eevil \x1b')[0].text, 'bell␇ null␀ del<7f> c1<9b> tab\there <202e>evil ␛');
});

test('matches are found in the text as it is shown, and only where the line has them', () => {
  assert.deepEqual(look('one two one', 'one'), [['one', '', 'found'], [' two ', ''], ['one', '', 'found']]);
  assert.deepEqual(look('aaa', 'aa'), [['aa', '', 'found'], ['a', '']]);
  assert.deepEqual(look('\x1b[31merror: x\x1b[0m', 'or: x'), [['err', 'a1'], ['or: x', 'a1', 'found']]);
  // grep counts bytes: a match that only the terminal joins is none.
  assert.deepEqual(look('er\x1b[31mror', 'error'), [['er', ''], ['ror', 'a1']]);
  assert.deepEqual(look('𝒳 x', 'x'), [['𝒳 ', ''], ['x', '', 'found']]);
});

test('lines of an address', () => {
  const table = [['120', [120, 120]], ['120-140', [120, 140]], ['140 - 120', [120, 140]], ['0', null], ['0-5', null], ['5-0', null], ['', null], ['x', null], ['1-', null]];
  for (const [text, expected] of table) assert.deepEqual(lineRange(text), expected, text);
});

test('scaled scrolling: the ends one to one, order kept, there and back', () => {
  const [room, span] = [20e9, 8e6 - 500];
  for (const at of [0, 1, 99_999, room - 99_999, room - 1, room]) assert.equal(rescale(at, room, span), at < 1e9 ? at : span - (room - at));
  let last = -1;
  for (let at = 0; at <= room; at += room / 1000) {
    const pixel = rescale(at, room, span);
    assert.ok(pixel > last && pixel <= span);
    assert.ok(Math.abs(rescale(pixel, span, room) - at) < 1);
    last = pixel;
  }
  assert.equal(rescale(123_456, 5e5, 5e5), 123_456);
});
