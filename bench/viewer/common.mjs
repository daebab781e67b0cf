// What the measures share: seeded ledgers, a server of bare pages, medians.
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { Agent } from '../../tests/browser/agent.mjs';
import { context } from '../../tests/browser/support.mjs';

/** The data directory of a node that has run so many jobs. */
export function seeded(dir, jobs, seed = 1) {
  const data = join(dir, `seeded-${jobs}-${seed}`);
  execFileSync(process.env.HACKBRAIN_SEED_TOOL, [data, '--jobs', String(jobs), '--seed', String(seed)], { stdio: 'ignore' });
  return data;
}

/** Runs body with agents, and ends them. */
export async function withAgents(list, body) {
  const agents = await Agent.cluster(list);
  try {
    return await body(...agents);
  } finally {
    for (const agent of agents) await agent.close();
  }
}

/** Serves texts by path on a port of its own: the pages that say what the browser costs by itself. */
export async function floorServer(pages) {
  const server = createServer((request, response) => {
    const body = pages[request.url.split('?')[0]];
    response.writeHead(body ? 200 : 404, { 'Content-Type': 'text/html; charset=utf-8' }).end(body ?? '');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { base: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

/** Each round a context of its own, with nothing cached. Returns what body returned. */
export async function rounds(browser, count, body) {
  const all = [];
  for (let i = 0; i < count; i++) {
    const made = await context(browser, { viewport: { width: 1280, height: 800 } });
    try {
      all.push(await body(await made.newPage()));
    } finally {
      await made.close();
    }
  }
  return all;
}

export function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
}

/** 'median (least to most)' of one member of the rounds, in the unit that format gives. */
export function spread(all, name, format = ms) {
  const values = all.map((round) => round[name]).filter((value) => value !== null);
  if (values.length < all.length) return `not in ${all.length - values.length} of ${all.length} rounds`;
  return `${format(quantile(values, 0.5))} (${format(Math.min(...values))} to ${format(Math.max(...values))})`;
}

export const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
export const kB = (value) => `${(value / 1000).toFixed(1)} kB`;
export const MB = (value) => `${(value / 1e6).toFixed(1)} MB`;
export const plain = (value) => value.toLocaleString('en');

/** Bytes that the page's script holds once its garbage is gone: objects, and the stores of typed arrays. */
export async function heap(page) {
  const session = await page.context().newCDPSession(page);
  await session.send('HeapProfiler.collectGarbage');
  await session.send('HeapProfiler.collectGarbage');
  const { usedSize, backingStorageSize = 0 } = await session.send('Runtime.getHeapUsage');
  return usedSize + backingStorageSize;
}
