// Opening the page: first paint, first rows, all jobs known and the filter answering; one node, and four of which two are gone.
import { once } from 'node:events';
import { createServer } from 'node:net';
import { freePort } from '../../tests/browser/agent.mjs';
import { MB, floorServer, heap, kB, ms, plain, quantile, rounds, seeded, spread, withAgents } from './common.mjs';

const PATIENCE = { timeout: 120_000 };
const EMPTY = '<!doctype html><html lang="en"><title>Floor</title><p>Nothing</p>';

/** Runs in the page from its beginning: notes when rows stand there, when all are known, when the filter has answered. */
function observe(jobs) {
  const seen = (window.seen = { longest: 0 });
  new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => (seen.longest = Math.max(seen.longest, duration)))).observe({ type: 'longtask', buffered: true });
  const frame = () => {
    const grid = document.querySelector('[role=grid]');
    const known = Number(grid?.getAttribute('aria-rowcount') ?? 1) - 1;
    const rows = grid?.querySelectorAll('[role=row]').length ?? 0;
    if (rows > 1 && known > 0) seen.rows ??= performance.now();
    if (seen.asked) {
      if (known > 0 && known < jobs / 100) seen.usable ??= performance.now();
    } else if (known >= jobs) {
      seen.known = performance.now();
      const filter = document.querySelector('input[type=search]');
      filter.value = grid.querySelector('[role=gridcell] a').textContent;
      filter.dispatchEvent(new Event('input', { bubbles: true }));
      seen.asked = true;
    }
    if (seen.usable) console.debug('usable');
    else requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

async function open(page, url, jobs) {
  await page.addInitScript(observe, jobs);
  // It says so itself: asking it again and again costs it some 30 ms.
  const usable = page.waitForEvent('console', { ...PATIENCE, predicate: (message) => message.text() === 'usable' });
  await page.goto(url);
  await usable;
  const found = await page.evaluate(() => {
    const answers = performance.getEntriesByType('resource').filter(({ name }) => name.includes('/api/'));
    const first = answers.filter(({ responseEnd }) => responseEnd > 0 && responseEnd <= seen.rows);
    return {
      paint: performance.getEntriesByName('first-contentful-paint')[0].startTime,
      ...seen,
      bytes: first.reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0),
      total: answers.reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0),
      elements: document.getElementsByTagName('*').length,
    };
  });
  return { ...found, heap: await heap(page) };
}

async function floors(browser, count) {
  const server = await floorServer({ '/': EMPTY });
  const all = await rounds(browser, count, async (page) => {
    await page.goto(server.base);
    await page.waitForFunction(() => performance.getEntriesByName('first-contentful-paint')[0], null, PATIENCE);
    return { paint: await page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0].startTime), heap: await heap(page) };
  });
  server.close();
  return all;
}

export async function load({ browser, dir, rounds: count, jobs, tell }) {
  const data = seeded(dir, jobs);
  await withAgents([{ data }], async (agent) => {
    const floor = await floors(browser, count);
    const all = await rounds(browser, count, (page) => open(page, agent.base, jobs));
    tell('first paint', spread(all, 'paint'), spread(floor, 'paint'), '200 ms');
    tell('first rows', spread(all, 'rows'));
    tell(`${plain(jobs)} jobs known`, spread(all, 'known'));
    tell('usable: the filter has answered', spread(all, 'usable'), '', '500 ms');
    tell('longest task while it loads', spread(all, 'longest'));
    tell('bytes of answers before the first rows', spread(all, 'bytes', kB), '', '100 kB');
    tell('bytes of answers until usable', spread(all, 'total', MB));
    tell('elements in the document', spread(all, 'elements', plain));
    tell('heap', spread(all, 'heap', MB), spread(floor, 'heap', MB));
  });
}

/** Takes connections and never says anything: a node whose disk, or whose network, hangs. */
async function hanging() {
  const held = new Set();
  const server = createServer((socket) => {
    held.add(socket);
    socket.on('error', () => {}).on('close', () => held.delete(socket));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const close = () => {
    for (const socket of held) socket.destroy();
    server.close();
  };
  return { base: `http://127.0.0.1:${server.address().port}`, close };
}

export async function nodes({ browser, dir, rounds: count, jobs, tell }) {
  const list = [2, 3, 4, 5].map((seed) => ({ data: seeded(dir, jobs, seed) }));
  await withAgents(list, async (...agents) => {
    const all = agents.map(({ base }) => base);
    const url = (bases) => `${all[0]}/?${bases.map((base) => `node=${base}`).join('&')}`;
    const four = await rounds(browser, count, (page) => open(page, url(all), 4 * jobs));
    tell(`four nodes × ${plain(jobs)}, all there: usable`, spread(four, 'usable'));
    const dead = `http://127.0.0.1:${await freePort()}`;
    const silent = await hanging();
    try {
      const gone = [all[0], dead, silent.base, all[1]];
      const two = await rounds(browser, count, (page) => open(page, url(gone), 2 * jobs));
      tell(`of four, one refuses and one never answers: usable`, spread(two, 'usable'), '', '1 s');
      tell('longest task while four load', ms(quantile(four.map(({ longest }) => longest), 0.5)));
    } finally {
      silent.close();
    }
  });
}
