// What the browser tests share: the browser, pages on which every error counts, agents, links that can be cut.
//
//   const { withPage, agent, forwarder } = suite();
//   test('…', async () => { const node = await agent(); await withPage(node.base, async (page) => { await live(page); … }); });
//
// Development: HACKBRAIN_STATIC=DIR serves the viewer's files from DIR at the agents' own addresses, without a rebuild.
import assert from 'node:assert/strict';
import { after, before } from 'node:test';
import { existsSync, readFileSync } from 'node:fs';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { Agent } from './agent.mjs';
import { Forwarder } from './forwarder.mjs';

export const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
/** A step of a test may take so long on a slow machine; whoever waits waits for a condition, never for a time. */
export const WAIT = { timeout: 60_000 };
/** Job ids begin with it: they become container names, which are shared by all agents of one Docker. */
export const RUN = `v${process.pid}`;
export const STATIC = process.env.HACKBRAIN_STATIC || fileURLToPath(new URL('../../static', import.meta.url));
export const INDEX = join(STATIC, 'index.html');
/** What Chromium writes to the console when a connection is refused, cut or reset: no fault of the page. */
export const LOST_LINK = /net::ERR_(CONNECTION_\w+|INCOMPLETE_CHUNKED_ENCODING|EMPTY_RESPONSE|SOCKET_NOT_CONNECTED|NETWORK_\w+|CONTENT_LENGTH_MISMATCH|TIMED_OUT|ABORTED)/;
const TYPES = { '.html': 'text/html; charset=utf-8', '.css': 'text/css; charset=utf-8', '.js': 'text/javascript; charset=utf-8' };

export function launch({ args = [], ...options } = {}) {
  // What is served by interception has no address, and Chromium asks before such a page may call other nodes on loopback.
  const more = process.env.HACKBRAIN_STATIC ? ['--disable-features=LocalNetworkAccessChecks'] : [];
  return chromium.launch({ executablePath: '/usr/bin/chromium', args: [...FLAGS, ...more, ...args], ...options });
}

/** A context; with HACKBRAIN_STATIC its pages have the viewer's files from there. */
export async function context(browser, options = {}) {
  const made = await browser.newContext(options);
  if (process.env.HACKBRAIN_STATIC) await made.route((url) => url.protocol === 'http:' && existsSync(staticFile(url)), serveStatic);
  return made;
}

const staticFile = ({ pathname }) => join(STATIC, pathname === '/' ? 'index.html' : pathname.replaceAll('..', ''));

function serveStatic(route) {
  const file = staticFile(new URL(route.request().url()));
  const [, policy] = /Content-Security-Policy" content="([^"]+)"/.exec(readFileSync(INDEX, 'utf8'));
  const headers = { 'Content-Security-Policy': policy, 'Referrer-Policy': 'no-referrer', 'Cross-Origin-Opener-Policy': 'same-origin' };
  return route.fulfill({ body: readFileSync(file), contentType: TYPES[extname(file)], headers });
}

/** Collects what must not be on a page's console: errors, warnings (CSP violations are such), uncaught exceptions. */
export function watch(page, allowed = /^$/) {
  const problems = [];
  page.on('console', (message) => {
    const text = [message.text(), message.location().url].join(' ').trim();
    // Once: what goes wrong in each frame would bury the rest.
    if (['error', 'warning'].includes(message.type()) && !allowed.test(text) && !problems.includes(text)) problems.push(text);
  });
  page.on('pageerror', (error) => problems.push(error.stack));
  return problems;
}

/** Runs body with a page of its own at url; fails on anything that `watch` finds. `allowed`: messages that are expected. */
export async function inPage(browser, url, body, { allowed, ...options } = {}) {
  const made = await context(browser, options);
  try {
    const page = await made.newPage();
    const problems = watch(page, allowed);
    // What the page threw explains more than whatever it did not do afterwards, and need not be waited for.
    const broken = new Promise((_, reject) => page.once('pageerror', reject));
    const result = await Promise.race([page.goto(url).then(() => body(page)), broken]);
    assert.deepEqual(problems, []);
    return result;
  } finally {
    await made.close();
  }
}

/** The hooks of a test file: a browser before, and after it everything that was made is gone, containers too. */
export function suite() {
  const made = [];
  let browser;
  const keep = async (thing) => {
    made.push(await thing);
    return thing;
  };
  before(async () => {
    browser = await launch();
  });
  after(async () => {
    await browser?.close();
    await Promise.all(made.map((thing) => thing.close()));
  });
  return {
    browser: () => browser,
    withPage: (url, body, options) => inPage(browser, url, body, options),
    agent: (options) => keep(Agent.create(options)),
    forwarder: (agent) => keep(Forwarder.create(agent.port)),
    async cluster(list) {
      const agents = await Agent.cluster(list);
      made.push(...agents);
      return agents;
    },
  };
}

/** Waits until a badge says so: live, catching up, stale, offline, rolled back, forked. */
export const badge = (page, name) => page.locator(`[data-is="${name}"]:visible`).first().waitFor(WAIT);
export const live = (page) => badge(page, 'live');
/** Waits until every part of the page is here: those that a list does without come later, replay.js last. */
export const whole = (page) => page.waitForFunction(() => HB.Replay, null, WAIT);
/** A job's row in the list. */
export const row = (page, id) => page.getByRole('row').filter({ hasText: id });
export const rowIs = (page, id, state) => row(page, id).locator(`[data-is="${state}"]`).waitFor(WAIT);

/** Waits, in node, until something is so; `what` is said where it does not become so. */
export async function until(what, condition, ms = WAIT.timeout) {
  for (const deadline = Date.now() + ms; ; ) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not after ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Numbers in [0, 1) that a seed repeats (mulberry32). The seed is HACKBRAIN_SEED, or new; it is printed. */
export function random(t) {
  const seed = Number(process.env.HACKBRAIN_SEED ?? Math.floor(Math.random() * 2 ** 32)) >>> 0;
  t.diagnostic(`HACKBRAIN_SEED=${seed}`);
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}
