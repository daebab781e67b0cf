// The log pane against real output: a million lines, output that grows, marks, colours.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { RUN, WAIT, suite, until } from './support.mjs';

const { withPage, agent } = suite();
const LINES = 1_000_000;
const MANY = `seq 1 ${LINES} | sed 's/$/ the quick brown fox jumps over the lazy dog, and tells of it at length/'`;
const STATIC_LINES = '.log .line';

const job = (command) => ({ image_hash: 'busybox:latest', command: ['sh', '-c', command] });
/** The file of a job's output. */
const fileOf = (node, id, stream) => {
  const dir = join(node.data, 'logs', id);
  const name = readdirSync(dir, { recursive: true }).find((file) => file.includes(stream));
  return join(dir, name);
};
const shell = (command, ...args) => execFileSync(command, args, { env: { ...process.env, LC_ALL: 'C' }, maxBuffer: 1 << 28 }).toString();
const textOf = (page, n) => page.waitForFunction((n) => [...document.querySelectorAll('.log .line')].find(({ children: [no, body] }) => no.dataset.n === String(n) && body.textContent)?.textContent, n, WAIT).then((handle) => handle.jsonValue());
const numbers = (page) => page.$$eval(STATIC_LINES, (lines) => lines.map((line) => Number(line.firstChild.dataset.n)).sort((a, b) => a - b));
const jump = async (page, text) => {
  await page.getByLabel('Go to line').fill(text);
  await page.getByLabel('Go to line').press('Enter');
};
const hits = (page, text) => page.locator('.logpane [role=status]').filter({ hasText: text }).waitFor(WAIT);
const note = (page, text) => page.locator('.logpane > .note').filter({ hasText: text }).waitFor(WAIT);

test('a million lines: the tail, any line, search as grep counts, an address of lines', async (t) => {
  const node = await agent();
  const id = `${RUN}-many`;
  await node.submit({ job_id: id, ...job(MANY) });
  await node.reached(id, 'SEALED');
  const file = fileOf(node, id, 'stdout');
  const find = '99999';
  const count = Number(shell('grep', '-cF', find, file));
  const url = `${node.base}/#/jobs/${id}`;
  await withPage(`${node.base}/#/`, async (page) => {
    await page.waitForFunction(() => HB.LogFile);
    await page.evaluate(() => {
      const { put } = HB.LogFile.prototype;
      globalThis.held = 0;
      HB.LogFile.prototype.put = function (...block) {
        put.apply(this, block);
        globalThis.held = Math.max(globalThis.held, [...this.held.values()].reduce((sum, { length }) => sum + length, 0));
      };
    });
    // Times are told, and not judged: the machine may be busy.
    const times = await page.evaluate(
      (url) =>
        new Promise((resolve) => {
          const from = performance.now();
          location.href = url;
          const look = () => {
            const lines = [...document.querySelectorAll('.log .line')].filter((line) => line.textContent);
            if (lines.some((line) => line.textContent.startsWith('1000000 '))) resolve(performance.now() - from);
            else requestAnimationFrame(look);
          };
          look();
        }),
      url,
    );
    t.diagnostic(`tail after ${times.toFixed(0)} ms`);
    await note(page, '1,000,000 lines');
    const jumps = [];
    for (const n of [1, 500_000, 123_456, 999_000, 2, LINES]) {
      await page.getByLabel('Go to line').fill(String(n));
      jumps.push(
        await page.evaluate(
          (n) =>
            new Promise((resolve) => {
              const from = performance.now();
              document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
              const look = () => {
                const line = [...document.querySelectorAll('.log .line')].find(({ firstChild }) => firstChild.dataset.n === String(n));
                if (line?.lastChild.textContent) resolve(performance.now() - from);
                else requestAnimationFrame(look);
              };
              look();
            }),
          n,
        ),
      );
      assert.equal(await textOf(page, n), shell('sed', '-n', `${n}{p;q}`, file).trimEnd());
    }
    t.diagnostic(`jumps after ${jumps.map((ms) => ms.toFixed(0)).join(', ')} ms`);

    // Keys and the wheel move by lines, although a pixel of the scrollbar stands for hundreds.
    await jump(page, '500000');
    await textOf(page, 500_000);
    const [first] = await numbers(page);
    await page.locator('.log').hover();
    await page.mouse.wheel(0, 200);
    await page.waitForFunction((first) => Math.min(...[...document.querySelectorAll('.log .no')].map((no) => Number(no.dataset.n))) === first + 10, first, WAIT);

    // Search.
    await page.getByLabel('Find in the output').fill(find);
    await page.keyboard.press('Enter');
    const matches = shell('grep', '-nF', find, file).trim().split('\n').map((line) => parseInt(line));
    assert.equal(matches.length, count);
    const i = matches.findIndex((line) => line >= first + 16); // below the rows that are drawn above the view
    await hits(page, `${i + 1} of ${count} lines`);
    assert.equal(await page.locator('.line[data-at] .no').getAttribute('data-n'), String(matches[i]));
    assert.equal(await page.locator('.line[data-at] mark').textContent(), find);
    await page.keyboard.press('Enter');
    await hits(page, `${i + 2} of ${count} lines`);
    await page.keyboard.press('Shift+Enter');
    await hits(page, `${i + 1} of ${count} lines`);
    // More matches than are told at once: in the middle, across what is held, and at the end.
    await jump(page, '500000');
    await textOf(page, 500_000);
    await page.getByLabel('Find in the output').fill('lazy');
    await page.keyboard.press('Enter');
    await hits(page, / of 1,000,000 lines/);
    const at = async () => Number(await page.locator('.line[data-at] .no').getAttribute('data-n'));
    const begin = await at();
    assert.ok(begin > 499_900 && begin <= 500_000, `${begin}`);
    await page.keyboard.press('Shift+Enter');
    await hits(page, `${(begin - 1).toLocaleString('en')} of 1,000,000 lines`);
    assert.equal(await at(), begin - 1);
    await page.getByLabel('Find in the output').fill('no such text');
    await page.keyboard.press('Enter');
    await hits(page, '0 lines');
    assert.equal(await page.locator('.line[data-at]').count(), 0);

    // An address of lines: a click, a click with shift, and what is there after a reload.
    await jump(page, '700000');
    await page.locator('.no[data-n="700002"]').click();
    await page.locator('.no[data-n="700004"]').click({ modifiers: ['Shift'] });
    assert.match(page.url(), /[?&]l=700002-700004/);
    // Another address of this job goes there in the page that is open.
    const goTo = (from, to) => page.evaluate(([from, to]) => (location.hash = location.hash.replace(from, to)), [from, to]);
    const title = await page.$('.job h1');
    await goTo('l=700002-700004', 'l=123456&e=1');
    assert.equal(await textOf(page, 123_456), shell('sed', '-n', '123456{p;q}', file).trimEnd());
    assert.deepEqual(await page.$$eval('.line[data-picked] .no', (all) => all.map((no) => no.dataset.n)), ['123456']);
    await goTo('l=123456', 'l=700002-700004');
    assert.equal(await textOf(page, 700_003), shell('sed', '-n', '700003{p;q}', file).trimEnd());
    assert.ok(await title.evaluate((element) => element.isConnected), 'the page was opened anew');
    const held = await page.evaluate(() => globalThis.held);
    t.diagnostic(`${held} bytes held at most`);
    assert.ok(held > 0 && held <= 8e6);
    await page.reload();
    assert.equal(await textOf(page, 700_003), shell('sed', '-n', '700003{p;q}', file).trimEnd());
    assert.deepEqual(await page.$$eval('.line[data-picked] .no', (all) => all.map((no) => no.dataset.n).sort()), ['700002', '700003', '700004']);
    assert.equal(await page.getByRole('button', { name: 'To the end' }).count(), 1);
  });
});

test('output that grows is followed at its end only; markers are anchors; colours; stderr', async () => {
  const node = await agent();
  const id = `${RUN}-grows`;
  // It goes on until it is told to end.
  await node.submit({
    job_id: id,
    image_hash: 'busybox:latest',
    command: ['sh', '-c', `printf '\\033[1;31mred\\033[0m plain\\n 10%%\\r 20%%\\n' >&2; echo '[D1_STABLE] step=1'; seq 1 300; echo '[D1_STABLE] step=2'; i=300; while true; do i=$((i+1)); echo "line $i"; sleep 0.05; done`],
  });
  await node.reached(id, 'D1_STABLE');
  await withPage(`${node.base}/#/jobs/${id}`, async (page) => {
    const last = async () => Math.max(...(await numbers(page)));
    const grows = async () => {
      const before = await last();
      await until('the output grows in view', async () => (await last()) > before + 5);
    };
    await note(page, /lines/);
    await page.getByRole('button', { name: 'Following' }).waitFor(WAIT);
    await grows();
    await page.locator('.log').hover();
    await page.mouse.wheel(0, -400);
    await page.getByRole('button', { name: 'To the end' }).waitFor(WAIT);
    const lines = async () => Number(/([\d,]+) lines/.exec(await page.locator('.logpane > .note').innerText())[1].replaceAll(',', ''));
    const where = await until('it has come to rest', async () => {
      const before = await numbers(page);
      await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
      const now = await numbers(page);
      return String(before) === String(now) && now;
    });
    const known = await lines();
    await until('more lines are told', async () => (await lines()) > known + 20);
    assert.equal((await numbers(page))[0], where[0]);
    await page.getByRole('button', { name: 'To the end' }).click();
    await page.getByRole('button', { name: 'Following' }).waitFor(WAIT);
    await grows();

    // A search goes on counting.
    await page.getByLabel('Find in the output').fill('line ');
    await page.keyboard.press('Enter');
    const found = async () => Number(/of ([\d,]+) lines/.exec(await page.locator('.logpane [role=status]').innerText())?.[1].replaceAll(',', '') ?? 0);
    const first = await until('it is counted', found);
    await until('what joins is counted', async () => (await found()) > first + 20);

    // Anchors.
    await page.getByRole('button', { name: 'Previous D1_STABLE' }).click();
    await page.locator('.line[data-picked][data-stable][data-at]', { hasText: 'step=2' }).waitFor(WAIT);
    await page.getByRole('button', { name: 'Previous D1_STABLE' }).click();
    await page.locator('.line[data-picked][data-stable][data-at]', { hasText: 'step=1' }).waitFor(WAIT);

    await page.getByRole('button', { name: 'stderr' }).click();
    await page.locator('.line', { hasText: 'plain' }).waitFor(WAIT);
    assert.deepEqual(await page.$$eval(STATIC_LINES, (all) => all.map((line) => line.textContent)), ['red plain', ' 20%']);
    assert.equal(await page.locator('.line .a1.bold').textContent(), 'red');
    await node.call(`/api/jobs/${id}/cancel`, { body: {} });
    // Counts equal what was written in the end.
    await node.reached(id, 'CANCELLED');
    await page.getByRole('button', { name: 'stdout' }).click();
    const written = shell('grep', '-c', '', fileOf(node, id, 'stdout')).trim();
    await note(page, `${Number(written).toLocaleString('en')} lines`);
    await hits(page, `of ${Number(shell('grep', '-cF', 'line ', fileOf(node, id, 'stdout'))).toLocaleString('en')} lines`);
  });
});

test('a download has every byte, from a node that asks for a token too', async () => {
  const id = `${RUN}-saved`;
  const node = await agent({ token: 'a-token-of-twenty-characters' });
  await node.submit({ job_id: id, ...job('seq 1 1000; echo problem >&2') });
  await node.reached(id, 'SEALED');
  await withPage(
    `${node.base}/#/`,
    async (page) => {
      await page.evaluate(([base, token]) => sessionStorage.setItem(`hackbrain token ${base}`, token), [node.base, node.token]);
      await page.goto(`${node.base}/?again#/jobs/${id}`);
      await page.locator('.chip[data-more]', { hasText: 'stderr' }).waitFor(WAIT); // where the other has something, it says so
      for (const stream of ['stdout', 'stderr']) {
        await page.locator('.chip', { hasText: stream }).click();
        const [download] = await Promise.all([page.waitForEvent('download', WAIT), page.locator('.logpane a').click()]);
        assert.equal(download.suggestedFilename(), `${id}-1-${stream}.log`);
        assert.deepEqual(readFileSync(await download.path()), readFileSync(fileOf(node, id, stream)));
      }
    },
    { allowed: /401/ },
  );
});

test('a pruned job says by which event, in the place of its output and its artifacts, before and after a reload', async () => {
  const id = `${RUN}-pruned`;
  const node = await agent();
  await node.submit({ job_id: id, ...job('echo kept > file; echo printed') });
  await node.reached(id, 'SEALED');
  await withPage(
    `${node.base}/#/jobs/${id}`,
    async (page) => {
      await page.locator('.line', { hasText: 'printed' }).waitFor(WAIT);
      // The pane has all of it, and looks no more.
      let asked = Date.now();
      page.on('request', (request) => request.url().includes('/stdout') && (asked = Date.now()));
      await until('the output is not asked for any more', () => Date.now() - asked > 2500);
      const { events } = await node.json('/api/prune', { body: { older_than: '0s' } });
      assert.equal(events.length, 1);
      for (const again of [false, true]) {
        if (again) await page.reload();
        await note(page, `Pruned by event ${events[0]}`);
        await page.locator('.artifacts .note', { hasText: `Pruned by event ${events[0]}` }).waitFor(WAIT);
        await page.locator('.story', { hasText: 'sealed 1 artifact' }).waitFor(WAIT);
        if (again) await page.locator('.charts + .note', { hasText: `Pruned by event ${events[0]}` }).waitFor(WAIT);
      }
    },
    { allowed: /410/ },
  );
});
