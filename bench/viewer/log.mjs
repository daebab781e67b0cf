// The output of a job that wrote a million lines: its tail, a jump into its middle, what the page holds of it.
import { MB, heap, ms, plain, rounds, spread, withAgents } from './common.mjs';

const LINES = 1_000_000;
const RUN = `bench-log-${process.pid}`;
const WRITES = `
for i in range(1, ${LINES} + 1): print(f'line {i}: residual {1 / i:.12e}')
`;

const PATIENCE_MS = 30_000;

/** Runs in the page: goes to an address, and waits until a frame shows this text. ms that it took, or null: it never does. */
const visit = ([hash, text, most]) =>
  new Promise((resolve) => {
    const began = performance.now();
    const frame = () => {
      const took = performance.now() - began;
      if (document.querySelector('main').textContent.includes(text)) resolve(took);
      else if (took > most) resolve(null);
      else requestAnimationFrame(frame);
    };
    location.hash = hash;
    frame();
  });

export async function log({ browser, rounds: count, tell }) {
  await withAgents([{}], async (agent) => {
    const job = (id, command) => agent.submit({ job_id: id, image_hash: 'python:3.9-slim', command: ['python', '-c', command] });
    await job(`${RUN}-long`, WRITES);
    await job(`${RUN}-short`, 'print("line 1")');
    await Promise.all([agent.reached(`${RUN}-long`, 'SEALED'), agent.reached(`${RUN}-short`, 'SEALED')]);
    const all = await rounds(browser, count, async (page) => {
      // From the list, as a reader comes: the page itself is there already.
      await page.goto(agent.base);
      await page.waitForSelector('[data-is=live]', { timeout: 60_000 });
      const go = (hash, text) => page.evaluate(visit, [`#/jobs/${RUN}-${hash}`, text, PATIENCE_MS]);
      const small = await go('short', 'line 1');
      const least = await heap(page);
      const tail = await go('long', `line ${LINES}:`);
      const jump = await go('long?l=500000', 'line 500000:');
      return { small, tail, jump, held: (await heap(page)) - least };
    });
    tell(`log of ${plain(LINES)} lines: its tail, from the list`, spread(all, 'tail'), `a log of one line: ${spread(all, 'small')}`, '200 ms');
    tell('… jump to line 500,000', spread(all, 'jump'), '', '100 ms');
    tell('… held more than for a log of one line', spread(all, 'held', MB), '', '16 MB');
  });
}
