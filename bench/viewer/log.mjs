// The output of a job that wrote a million lines: its tail, a jump into its middle, what the page holds of it.
import { removeContainers } from '../../tests/browser/support.mjs';
import { MB, heap, ms, plain, rounds, spread, withAgents } from './common.mjs';

const LINES = 1_000_000;
const RUN = `bench-log-${process.pid}`;
const WRITES = `
for i in range(1, ${LINES} + 1): print(f'line {i}: residual {1 / i:.12e}')
`;
const PATIENCE = { timeout: 60_000 };

/** Runs in the page: when a line with this text stands in the output, as a frame sees it; ms since the page began. */
const shown = (text) =>
  new Promise((resolve) => {
    const frame = () => {
      const found = [...document.querySelectorAll('[role=region], [role=log]')].some((region) => region.textContent.includes(text));
      if (found) resolve(performance.now());
      else requestAnimationFrame(frame);
    };
    frame();
  });

export async function log({ browser, rounds: count, tell }) {
  await withAgents([{}], async (agent) => {
    try {
      const job = (id, command) => agent.submit({ job_id: id, image_hash: 'python:3.9-slim', command: ['python', '-c', command] });
      await job(`${RUN}-long`, WRITES);
      await job(`${RUN}-short`, 'print("line 1")');
      await Promise.all([agent.reached(`${RUN}-long`, 'SEALED'), agent.reached(`${RUN}-short`, 'SEALED')]);
      const url = (id) => `${agent.base}/#/jobs/${RUN}-${id}`;
      const all = await rounds(browser, count, async (page) => {
        // From the list, as a reader comes: the page itself is there already.
        await page.goto(agent.base);
        await page.waitForSelector('[data-is=live]', PATIENCE);
        const visit = (hash, text) =>
          page.evaluate(`(async () => { const began = performance.now(); location.hash = ${JSON.stringify(hash)}; return (await (${shown})(${JSON.stringify(text)})) - began; })()`);
        const small = await visit(`/jobs/${RUN}-short`, 'line 1');
        const least = await heap(page);
        const tail = await visit(`/jobs/${RUN}-long`, `line ${LINES}:`);
        const jump = await visit(`/jobs/${RUN}-long?l=500000`, 'line 500000:');
        return { small, tail, jump, held: (await heap(page)) - least };
      });
      tell(`log of ${plain(LINES)} lines: its tail, from the list`, spread(all, 'tail'), `a log of one line: ${spread(all, 'small')}`, '200 ms');
      tell('… jump to line 500,000', spread(all, 'jump'), '', '100 ms');
      tell('… held more than for a log of one line', spread(all, 'held', MB), '', '16 MB');
    } finally {
      removeContainers(RUN);
    }
  });
}
