// The TraceViewer and the charts: with a real job that is killed and recovers, and with a made history of many days.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { Agent } from './agent.mjs';

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'];
const RUN = `t${process.pid}`; // job ids become container names, which are shared by all agents of one Docker
const INDEX = fileURLToPath(new URL('../../static/index.html', import.meta.url));
const WAIT = { timeout: 60_000 };
const HOUR = 3_600_000;

let agent;
let browser;

before(async () => {
  agent = await Agent.create();
  browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS });
});

after(async () => {
  await browser?.close();
  // Where the test failed in between it runs on, and its mounts with it.
  await fetch(`${agent.base}/api/jobs/${RUN}-killed/cancel`, { method: 'POST' });
  await fetch(`${agent.base}/api/jobs/${RUN}-killed?wait=CANCELLED&timeout_s=60`);
  await agent.close();
  const ids = execFileSync('docker', ['ps', '-aq', '--filter', `name=^hb-${RUN}`]).toString().split('\n').filter(Boolean);
  if (ids.length > 0) execFileSync('docker', ['rm', '-f', ...ids]);
});

async function withJob(id, body, { route: intercept, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const problems = [];
  page.on('pageerror', (error) => problems.push(error.stack));
  await intercept?.(page);
  try {
    await page.goto(`file://${INDEX}?node=${agent.base}#/jobs/${id}`);
    await page.locator('.tl rect.run, .tl rect.queue').first().waitFor({ ...WAIT, state: 'attached' });
    // A trace comes in pieces, and on a busy machine the first is drawn alone.
    if (intercept === route) await name(page, 'SEALED');
    await body(page);
    assert.deepEqual(problems, []);
  } finally {
    await context.close();
  }
}

const names = (page) => page.$$eval('.tl .name', (marks) => marks.map((mark) => mark.textContent));
const clock = (page) => page.$$eval('.tl .middle.soft', (ticks) => ticks.map((tick) => tick.textContent));
const name = (page, word) => page.locator('.tl .name', { hasText: word }).first().waitFor(WAIT);
const press = async (page, ...keys) => {
  for (const key of keys) await page.keyboard.press(key);
};

test('a job that is killed and recovers: both are said, its rows, its D1_STABLE, what it used beside its limits', async () => {
  const id = `${RUN}-killed`;
  const command = ['sh', '-c', 'echo "[D1_STABLE] begun"; if [ -e half ]; then sleep 3; exit 0; fi; touch half; sleep 600'];
  await agent.submit({ job_id: id, image_hash: 'busybox:latest', command, resources: { memory_mib: 64, cpus: 1 } });
  await agent.submit({ job_id: `${id}-after`, image_hash: 'busybox:latest', command: ['sh', '-c', 'exit 3'], depends_on: [id] });
  await withJob(id, async (page) => {
    await page.locator('.tl .live').waitFor(WAIT);
    await page.locator('.tl .state', { hasText: '1 D1_STABLE' }).waitFor(WAIT);
    await page.locator('.charts text', { hasText: /of 64 MiB/ }).waitFor(WAIT);
    // What comes after the first reading comes from the stream.
    const samples = (least) => document.querySelector('.charts .pids').getAttribute('d').split('L').length >= least;
    await page.waitForFunction(samples, (await page.$eval('.charts .pids', (line) => line.getAttribute('d').split('L').length)) + 3, WAIT);
    execFileSync('docker', ['kill', `hb-${id}-1`]);
    await name(page, 'CRASH');
    await name(page, 'RECOVERY');
    await name(page, 'SEALED');
    assert.deepEqual(await names(page), ['CRASH', 'RECOVERY', 'SEALED']);
    assert.equal(await page.locator('.tl-rows rect.run').count(), 2);
    assert.equal(await page.locator('.tl .live').count(), 0);
    assert.equal(await page.locator('.tl-rows use[href="#i-CRASH"]').count(), 1);
    assert.match(await page.locator('.charts svg').getAttribute('aria-label'), /Cores: at most .* of 1; Memory: at most .* of 64 MiB; .*Pids: at most \d+ of \d+/);
    assert.match(await page.locator('.tl > .sr').textContent(), /^Time: queued .*, attempt 1 .*, down .*, attempt 2 /);
  });
  // Loaded after its end it shows the same, from the files.
  await withJob(id, async (page) => {
    await page.locator('.charts text', { hasText: /of 64 MiB/ }).waitFor(WAIT);
    assert.deepEqual(await names(page), ['CRASH', 'RECOVERY', 'SEALED']);
  });
  await agent.reached(`${id}-after`, 'FAILED');
  await withJob(`${id}-after`, async (page) => {
    await name(page, 'FAILED');
    // It waited for its parent much longer than it ran.
    assert.equal(await page.locator('.tl path.torn').getAttribute('d').then((d) => d.split('M').length - 1), 2);
    assert.match(await page.locator('.tl .in-queue').textContent(), /\d+(\.\d)? s|min/);
  });
});

/** Days: 51 hours queued, a crash, 26 hours down, a crash, done; 2,000 markers. */
function days() {
  const first = Date.UTC(2026, 10, 20, 6);
  const lines = [];
  const add = (hours, state, attempt, detail = {}) => lines.push(JSON.stringify({ seq: lines.length + 1, prev: '0'.repeat(64), time: new Date(first + hours * HOUR).toISOString(), job_id: `${RUN}-days`, attempt, state, detail }));
  add(0, 'RECEIVED', 0, { manifest: { job_id: `${RUN}-days`, image_hash: 'x', command: ['x'] } });
  add(51, 'RUNNING', 1);
  for (let i = 0; i < 2000; i++) add(51 + (i * 18) / 2001, 'D1_STABLE', 1, { line: `[D1_STABLE] step=${i}`, stream: 'stdout', offset: i * 20 });
  add(69, 'CRASH', 1, { cause: 'host' });
  add(95, 'RECOVERY', 2);
  add(104, 'CRASH', 2, { cause: 'killed' });
  add(104.5, 'RECOVERY', 3);
  add(113, 'COMPLETED', 3);
  add(114, 'SEALED', 3, { files: 2 });
  return `${lines.join('\n')}\n`;
}

const route = (page) => page.route(`**/api/jobs/${RUN}-days*/**`, (call) => call.fulfill({ body: call.request().url().endsWith('/trace') ? days() : '', headers: { 'Access-Control-Allow-Origin': '*' } }));

test('days at a glance: waits fold and say how long they were, work keeps its proportions', async () => {
  await withJob(`${RUN}-days`, async (page) => {
    assert.deepEqual(await page.$$eval('.tl [class^=middle\\ in-]', (texts) => texts.map((text) => text.textContent)), ['2 d 03 h', '18 h 00 min', '1 d 02 h', '9 h 00 min', '8 h 30 min']);
    const widths = await page.$$eval('.tl-rows rect.run', (bars) => bars.map((bar) => bar.getBoundingClientRect().width));
    assert.ok(Math.abs(widths[0] / widths[1] - 2) < 0.01, `${widths}`);
    assert.equal(await page.locator('.tl .state').textContent(), '2,000 D1_STABLE');
    // They aggregate: fewer shapes than fit.
    assert.ok((await page.locator('.tl path.stable').getAttribute('d')).split('M').length < 300);
  }, { route });
});

test('by keyboard: zoom, move, all, from event to event', async () => {
  await withJob(`${RUN}-days`, async (page) => {
    const all = await clock(page);
    await page.locator('.tl-plot').focus();
    await press(page, '.', '.');
    assert.match(await page.locator('.tl output').textContent(), /^11-22 09:00:00 · .*RUNNING/);
    await press(page, '.');
    assert.match(await page.locator('.tl output').textContent(), /CRASH · the host went down/);
    // One crosshair over all of it.
    assert.equal(await page.locator('.tl-plot .cross').isVisible(), true);
    await press(page, '+', '+', '+');
    await page.waitForFunction((before) => document.querySelector('.tl .middle.soft')?.textContent !== before, all[0], WAIT);
    const zoomed = await clock(page);
    await press(page, 'ArrowRight');
    await page.waitForFunction((before) => document.querySelector('.tl .middle.soft')?.textContent !== before, zoomed[0], WAIT);
    await press(page, '0');
    await page.waitForFunction((before) => document.querySelector('.tl .middle.soft')?.textContent === before, all[0], WAIT);
    assert.deepEqual(await clock(page), all);
  }, { route });
});

test('by mouse: the minimap’s brush, a drag, the wheel, and a click that opens an event', async () => {
  await withJob(`${RUN}-days`, async (page) => {
    const all = await clock(page);
    // At once: the next drawing has another element there.
    const box = (selector) => page.$eval(selector, (element) => element.getBoundingClientRect().toJSON());
    const drag = async (from, by) => {
      const { x, y, width } = await box('.tl .brush');
      await page.mouse.move(x + width * from, y + 9);
      await page.mouse.down();
      await page.mouse.move(x + width * from + by, y + 9, { steps: 4 });
      await page.mouse.up();
    };
    /** Its offset and width come to be so, in px. */
    const brushIs = (x, width) =>
      page.waitForFunction(
        ([x, width]) => {
          const now = document.querySelector('.tl .brush').getBoundingClientRect();
          return Math.abs(now.x - x) < 2 && Math.abs(now.width - width) < 2;
        },
        [x, width],
        WAIT,
      );
    // First on the page: what stands above it grows while the chain is judged.
    await page.evaluate(() => document.querySelector('.job').prepend(document.querySelector('.tl')));
    const whole = await box('.tl .brush');
    await drag(0.2, whole.width * 0.2);
    await brushIs(whole.x + whole.width * 0.2, whole.width * 0.2);
    // Now it is moved.
    await drag(0.5, 100);
    await brushIs(whole.x + whole.width * 0.2 + 100, whole.width * 0.2);
    await page.locator('.tl button', { hasText: 'All' }).click();
    await brushIs(whole.x, whole.width);
    assert.deepEqual(await clock(page), all);
    const opened = page.waitForEvent('console', { predicate: (message) => message.text().startsWith('opened'), ...WAIT });
    await page.evaluate(() => {
      const { open } = HB.Trace.prototype;
      HB.Trace.prototype.open = function (ms) {
        this.page.select = (seq) => console.log(`opened ${seq}`);
        open.call(this, ms);
      };
    });
    const crash = await box('.tl-rows .edge');
    await page.mouse.click(crash.x + 1, crash.y + 5);
    assert.equal((await opened).text(), 'opened 2003');
    const plot = await page.locator('.tl-plot').boundingBox();
    await page.mouse.move(plot.x + plot.width / 2, plot.y + 30);
    await page.keyboard.down('Control');
    await page.mouse.wheel(0, -100);
    await page.keyboard.up('Control');
    await brushIs(whole.x + (plot.width / 2 - (whole.x - plot.x)) / 2, whole.width / 2);
  }, { route });
});

/** Two crashes within the first `share` of what ran, then the rest. */
function early(share) {
  const lines = days().split('\n').slice(0, 1).map((line) => JSON.parse(line));
  const add = (hours, state, attempt, detail = {}) => lines.push({ ...lines[0], seq: lines.length + 1, time: new Date(Date.parse(lines[0].time) + hours * HOUR).toISOString(), attempt, state, detail });
  add(0, 'RUNNING', 1);
  add(100 * share, 'CRASH', 1, { cause: 'killed' });
  add(100 * share, 'RECOVERY', 2);
  add(200 * share, 'CRASH', 2, { cause: 'killed' });
  add(200 * share, 'RECOVERY', 3);
  add(100, 'CRASH', 3, { cause: 'killed' });
  add(100, 'FAILED', 3, { reason: 'attempt_limit' });
  return lines.map((line) => JSON.stringify(line)).join('\n');
}

test('no word of the timeline lies over another, or over the edge of a bar', async () => {
  for (const [width, share] of [[1280, 0.01], [1280, 0.05], [1280, 0.1], [1280, 0.3], [360, 0.01], [360, 0.1], [360, 0.3]]) {
    const told = (page) => page.route(`**/api/jobs/${RUN}-days*/**`, (call) => call.fulfill({ body: call.request().url().endsWith('/trace') ? early(share) : '', headers: { 'Access-Control-Allow-Origin': '*' } }));
    await withJob(`${RUN}-days`, async (page) => {
      await name(page, 'FAILED');
      const wrong = await page.evaluate(() => {
        const boxes = (selector) => [...document.querySelectorAll(selector)].map((element) => ({ ...element.getBoundingClientRect().toJSON(), words: element.textContent, isIn: element.matches('.in-run') }));
        const words = boxes('.tl-rows .name, .tl-rows .in-run');
        const both = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
        const within = (a, b) => a.left >= b.left && a.right <= b.right;
        const { right } = document.querySelector('.tl-rows').getBoundingClientRect();
        return words.flatMap((word, i) => [
          ...words.slice(i + 1).filter((other) => both(word, other)).map((other) => `${word.words} over ${other.words}`),
          ...boxes('.tl-rows rect.run').filter((bar) => both(word, bar) && !(word.isIn && within(word, bar))).map(() => `${word.words} over a bar`),
          ...(word.right > right ? [`${word.words} is cut off`] : []),
        ]);
      });
      assert.deepEqual(wrong, [], `${width} px, crashes after ${share}`);
      const said = await names(page);
      assert.deepEqual([said.filter((word) => word === 'RECOVERY').length, said.at(-1)], [2, 'FAILED'], `${width} px, crashes after ${share}: ${said}`);
    }, { route: told, viewport: { width, height: 800 } });
  }
});

test('320 px wide, in the dark: nothing overflows, the words stay', async () => {
  await withJob(`${RUN}-days`, async (page) => {
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true);
    assert.deepEqual(await names(page), ['CRASH', 'RECOVERY', 'CRASH', 'RECOVERY', 'SEALED']);
  }, { route, viewport: { width: 320, height: 640 }, colorScheme: 'dark' });
});
