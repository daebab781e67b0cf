// A link that is cut again and again, and an agent that is killed, while jobs run: the page ends with what the ledger holds.
// HACKBRAIN_DEEP=1 (`run --deep`): 1,000 cuts and 20 restarts.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createHash } from 'node:crypto';
import { LOST_LINK, RUN, live, random, suite, until } from './support.mjs';

const DEEP = process.env.HACKBRAIN_DEEP === '1';
const CUTS = Number(process.env.HACKBRAIN_CUTS ?? (DEEP ? 1000 : 60));
const RESTARTS = Number(process.env.HACKBRAIN_RESTARTS ?? (DEEP ? 20 : 3));
const DEATHS = DEEP ? 11 : 2; // of each kind
const AT_WORK = 3;
const MARKERS = 'for i in $(seq 12); do echo "[D1_STABLE] step=$i"; sleep .25; done';
const WAYS = ['reset', 'within a message', 'after a silence', 'refused for a while'];
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const { withPage, agent: createAgent, forwarder } = suite();

/** Submits jobs so that some are always at work, whatever becomes of the agent. stop() waits for the last of them. */
function feed(agent) {
  let stopped = false;
  let count = 0;
  const open = async () => {
    const { jobs } = await agent.json('/api/node');
    return Object.entries(jobs).reduce((sum, [state, n]) => sum + (['SEALED', 'FAILED', 'CANCELLED'].includes(state) ? 0 : n), 0);
  };
  const done = (async () => {
    while (!stopped) {
      try {
        // An answer that was lost is asked for again: the same id and the same manifest are one job.
        if ((await open()) < AT_WORK) {
          await agent.submit({ job_id: `${RUN}-fed-${count}`, image_hash: 'busybox:latest', command: ['sh', '-c', MARKERS], max_attempts: 9 });
          count++;
        }
      } catch (error) {
        if (error.name === 'TypeError' || /503/.test(error.message)) { /* it is down, and comes back */ } else throw error;
      }
      await pause(100);
    }
    await until('every job has ended', async () => (await open().catch(() => 1)) === 0);
    return count;
  })();
  return { stop: () => ((stopped = true), done) };
}

/** Cuts the link in one of several ways, at a moment when an event stream goes through it. */
async function cut(link, way, next) {
  await until('the page connects again', () => link.hasStream);
  await pause(next() * 250);
  if (way === 'within a message') {
    link.cut(1 + Math.floor(next() * 3000));
    await pause(next() * 300);
  } else if (way === 'after a silence') {
    link.stall();
    await pause(next() * 300);
  }
  if (way === 'refused for a while') {
    await link.refuse();
    await pause(next() * 300);
    await link.restart();
  } else link.cut();
  link.resume();
}

/** The fold of the ledger, by the contract and by nothing of the page. */
function folded(lines) {
  const jobs = {};
  for (const { job_id, seq, state, attempt, detail } of lines.map((line) => JSON.parse(line))) {
    if (!job_id) continue;
    const last = state === 'D1_STABLE' ? detail.line : (jobs[job_id]?.last ?? null);
    jobs[job_id] = { state, attempt, seq, last };
  }
  return jobs;
}

/** What the page's model holds of its only node. */
const held = (page) =>
  page.evaluate(() => {
    const { model, follower } = HB.nodes[0];
    const jobs = [...model.jobs.values()].map(({ job_id, state, attempt, seq, last_d1_stable }) => [job_id, { state, attempt, seq, last: last_d1_stable ?? null }]);
    return { jobs: Object.fromEntries(jobs), ids: model.order.map(({ job_id }) => job_id), seq: model.seq, head: { seq: follower.seq, hash: follower.hash } };
  });

test(`${CUTS} cuts of the link and ${RESTARTS} restarts of the agent: the model equals what dump prints, nothing twice`, async (t) => {
  const next = random(t);
  const agent = await createAgent({ args: ['--workers', '3'] });
  const link = await forwarder(agent);
  const began = Date.now();
  const tally = {};
  await withPage(
    link.base,
    async (page) => {
      await live(page);
      const feeder = feed(agent);
      const every = CUTS / RESTARTS;
      for (let i = 0, restarts = 0; i < CUTS; i++) {
        const way = WAYS[Math.floor(next() * WAYS.length)];
        await cut(link, way, next);
        tally[way] = (tally[way] ?? 0) + 1;
        if (restarts < RESTARTS && i + 1 >= every * (restarts + 0.5)) {
          const signal = restarts++ % 2 ? 'SIGTERM' : 'SIGKILL';
          tally[signal] = (tally[signal] ?? 0) + 1;
          await agent.stop(signal);
          await agent.start();
        }
      }
      const count = await feeder.stop();
      const head = await agent.json('/api/ledger/head');
      await live(page);
      await until('the page has caught up', () => page.evaluate((seq) => HB.nodes[0].follower.seq >= seq, head.seq));
      const lines = agent.dump();
      const { jobs, ids, seq, head: followed } = await held(page);
      const expected = folded(lines);
      assert.deepEqual(jobs, expected);
      assert.deepEqual([...ids].sort(), Object.keys(expected).sort());
      assert.equal(Object.keys(expected).length, count);
      assert.equal(seq, lines.length);
      // An event that was missed, or taken twice, would give another hash.
      assert.deepEqual(followed, { seq: lines.length, hash: createHash('sha256').update(lines.at(-1)).digest('hex') });
      assert.equal(await page.getByText('hash chain is broken').isVisible(), false);
      t.diagnostic(`${count} jobs, ${lines.length} events, ${Math.round((Date.now() - began) / 1000)} s; ${JSON.stringify(tally)}`);
    },
    { allowed: LOST_LINK },
  );
});

test('a link that dies makes the badge say so', async (t) => {
  const agent = await createAgent();
  const link = await forwarder(agent);
  const kinds = { refused: () => link.refuse(), silent: () => link.stall() };
  for (const [kind, die] of Object.entries(kinds)) {
    const took = [];
    for (let i = 0; i < DEATHS; i++) {
      await withPage(
        link.base,
        async (page) => {
          await live(page);
          const began = Date.now();
          await die();
          await page.locator('[data-is=stale]:visible, [data-is=offline]:visible').first().waitFor({ timeout: 120_000 });
          took.push(Date.now() - began);
          assert.equal(await page.locator('[data-is=live]:visible').count(), 0);
          if (kind === 'refused') await link.restart();
          else link.resume();
          await live(page);
        },
        { allowed: LOST_LINK },
      );
    }
    t.diagnostic(`${kind}: the badge said so after ${took.sort((a, b) => a - b).join(', ')} ms`);
  }
});
