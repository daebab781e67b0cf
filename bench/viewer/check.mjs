// The whole chain checked in a worker, at an address where browsers offer no crypto.subtle.
import { execFileSync } from 'node:child_process';
import { launch } from '../../tests/browser/support.mjs';
import { ms, plain, rounds, seeded, spread, withAgents } from './common.mjs';

const EVENTS = 10_000;
/** Plain http to anything but loopback is no secure context: a name that only this browser resolves, to loopback. */
const HOST = 'node.bench.internal';

export async function check({ dir, rounds: count, jobs, tell }) {
  const browser = await launch({ args: [`--host-resolver-rules=MAP ${HOST} 127.0.0.1`] });
  try {
    await withAgents([{ data: seeded(dir, jobs, 7), hosts: [HOST] }], async (agent) => {
      const all = await rounds(browser, count, async (page) => {
        await page.goto(`http://${HOST}:${agent.port}/`);
        await page.waitForSelector('[data-is=live]', { timeout: 60_000 });
        await page.waitForFunction(() => HB.Replay); // the last part
        return page.evaluate(async (events) => {
          if (globalThis.crypto?.subtle) throw new Error('this is a secure context');
          const long = [];
          new PerformanceObserver((list) => long.push(...list.getEntries().map(({ duration }) => duration))).observe({ type: 'longtask' });
          const began = performance.now();
          const verdict = await HB.walk(HB.nodes[0].api, { seq: 0, hash: '0'.repeat(64) }, events, () => {});
          const took = performance.now() - began;
          await new Promise((resolve) => setTimeout(resolve, 100)); // long tasks are told afterwards
          if (!verdict.ok || verdict.seq !== events) throw new Error(JSON.stringify(verdict));
          return { took, longest: Math.max(0, ...long) };
        }, EVENTS);
      });
      // What a program without a browser needs for it, with the processor's own instructions.
      const floor = rounded(() => execFileSync(process.env.HACKBRAIN_BIN, ['verify', '--data', agent.data], { stdio: 'ignore' }));
      const { seq } = await agent.json('/api/ledger/head');
      tell(`${plain(EVENTS)} events fetched and checked in a worker, no crypto.subtle`, spread(all, 'took'), `hackbrain verify, ${plain(seq)} events: ${floor}`, '500 ms');
      tell('… longest task of the page meanwhile', spread(all, 'longest'));
    });
  } finally {
    await browser.close();
  }
}

function rounded(act) {
  const began = performance.now();
  act();
  return ms(performance.now() - began);
}
