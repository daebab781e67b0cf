// From an event's time to the frame that shows it, at 500 events a second: the viewer beside a bare page of SSE and one line.
import { context } from '../../tests/browser/support.mjs';
import { floorServer, ms, plain, quantile, seeded, withAgents } from './common.mjs';

const RATE = 500;
const PER_JOB = 20; // the agent writes at most so many D1_STABLE a second of an attempt
const SAMPLES = 100_000;
const RUN = `bench-${process.pid}`;
// By the clock, so that what the machine delays is caught up.
const MARKERS = `
import sys, time
began, i = time.time(), 0
while True:
    i += 1
    print(f'[D1_STABLE] step={i} energy={-1 / i:.6f}', flush=True)
    time.sleep(max(0, began + i / 20.0 - time.time()))
`;

/** Runs in a page: told(time) notes how long after `time` the frame that follows has been drawn. */
function meter(most) {
  const waiting = [];
  const meter = (window.meter = { samples: [], long: [], told: null });
  new PerformanceObserver((list) => meter.long.push(...list.getEntries().map(({ duration }) => duration))).observe({ type: 'longtask' });
  const drawn = new MessageChannel();
  drawn.port1.onmessage = () => {
    const now = performance.timeOrigin + performance.now();
    for (const time of waiting.splice(0)) if (meter.samples.length < most) meter.samples.push(now - time);
  };
  meter.told = (time) => {
    // A frame's callbacks run before it is drawn, a message after it.
    if (waiting.push(Date.parse(time) + Number(time.slice(23, 26)) / 1000) === 1) requestAnimationFrame(() => drawn.port2.postMessage(null));
  };
}

const BARE = `<!doctype html><html lang="en"><title>Floor</title><p id="line"></p><script>
(${meter})(${SAMPLES});
const at = new URLSearchParams(location.search);
const source = new EventSource(at.get('node') + '/api/events?after=' + at.get('after'));
source.onmessage = ({ data }) => {
  const event = JSON.parse(data);
  document.getElementById('line').textContent = event.job_id + ' ' + event.state + ' ' + event.detail.line;
  meter.told(event.time);
};
</script>`;

async function measure(browser, url, seconds, viewer) {
  const made = await context(browser, { viewport: { width: 1280, height: 800 } });
  try {
    const page = await made.newPage();
    if (viewer) {
      // Every event that is folded is told to the meter: the model's own file says so, before the others are read.
      const hook = `\n{ (${meter})(${SAMPLES}); const { fold } = HB.model; HB.model.fold = (model, event) => (window.meter.told(event.time), fold(model, event)); }`;
      await made.route('**/model.js', async (route) => {
        const response = await route.fetch();
        await route.fulfill({ response, body: (await response.text()) + hook });
      });
    }
    await page.goto(url);
    await page.waitForFunction(() => window.meter?.samples.length > 0, null, { timeout: 60_000 });
    // What it took to load is not what is measured.
    await page.waitForTimeout(2000);
    await page.evaluate(() => (meter.samples.length = meter.long.length = 0));
    await page.waitForTimeout(seconds * 1000);
    return await page.evaluate(() => ({ samples: meter.samples, long: meter.long }));
  } finally {
    await made.close();
  }
}

const told = ({ samples }, q) => ms(quantile(samples, q));

export async function latency({ browser, dir, jobs, seconds, tell }) {
  const server = await floorServer({ '/': BARE });
  const workers = RATE / PER_JOB;
  try {
    await withAgents([{ data: seeded(dir, jobs, 6), origins: [server.base], args: ['--workers', String(workers + 1)] }], async (agent) => {
      const manifest = (i) => ({ job_id: `${RUN}-${i}`, image_hash: 'python:3.9-slim', command: ['python', '-c', MARKERS], resources: { cpus: 0.2, memory_mib: 64 } });
      await agent.json('/api/submit_jobs', { body: { jobs: Array.from({ length: workers }, (_, i) => manifest(i)) } });
      for (let i = 0; i < workers; i++) await agent.reached(`${RUN}-${i}`, 'D1_STABLE');
      const head = async () => (await agent.json('/api/ledger/head')).seq;
      const floor = async () => measure(browser, `${server.base}/?node=${agent.base}&after=${await head()}`, Math.ceil(seconds / 4), false);
      const before = await floor();
      const viewer = await measure(browser, agent.base, seconds, true);
      const after = await floor();
      const bare = { samples: [...before.samples, ...after.samples], long: [...before.long, ...after.long] };
      const over = ({ long }) => `${long.length}${long.length ? ` (longest ${ms(Math.max(...long))})` : ''}`;
      const rate = plain(Math.round(viewer.samples.length / seconds));
      tell(`event to pixel, ${rate} events/s for ${seconds} s beside ${plain(jobs)} jobs: p50`, told(viewer, 0.5), told(bare, 0.5));
      tell('… p99', told(viewer, 0.99), told(bare, 0.99), '100 ms');
      tell('… most', told(viewer, 1), told(bare, 1));
      tell('… tasks over 50 ms', over(viewer), over(bare), '0');
    });
  } finally {
    server.close();
  }
}
