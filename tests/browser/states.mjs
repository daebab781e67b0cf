// The eight states of the viewer, made by real jobs of real agents: for axe, and for the pictures in docs/screenshots.
import { execFileSync } from 'node:child_process';
import { WAIT, badge, live, until } from './support.mjs';

/** Power iteration on a chain of coupled oscillators: goes on from its last saved step, as a payload should. */
const OSCILLATORS = `
import math, os, sys, time
steps, pause = int(sys.argv[1]), float(sys.argv[2])
n, first, v = 64, 0, None
if os.path.exists('state.csv'):
    first, *v = map(float, open('state.csv').read().split(','))
    print(f'\\x1b[33mresuming\\x1b[0m from step {int(first)}', flush=True)
v = v or [math.sin(i + 1) for i in range(n)]
for step in range(int(first) + 1, steps + 1):
    w = [2 * v[i] - v[i - 1] * (i > 0) - v[(i + 1) % n] * (i < n - 1) for i in range(n)]
    norm = math.sqrt(sum(x * x for x in w))
    omega2 = sum(a * b for a, b in zip(v, w)) / sum(x * x for x in v)
    v = [x / norm for x in w]
    with open('state.tmp', 'w') as out: out.write(','.join(map(repr, [step, *v])))
    os.replace('state.tmp', 'state.csv')
    print(f'  iteration {step}: |w| = {norm:.9f}, residual \\x1b[36m{abs(norm - omega2):.3e}\\x1b[0m')
    print(f'[D1_STABLE] step={step} omega2={omega2:.6f}', flush=True)
    time.sleep(pause)
os.makedirs('modes', exist_ok=True)
open('spectrum.csv', 'w').write('mode,omega2\\n' + ''.join(f'{k},{4 * math.sin(math.pi * k / 2 / (n + 1)) ** 2:.9f}\\n' for k in range(1, n + 1)))
for k in (1, 2, 3): open(f'modes/mode_{k}.csv', 'w').write(''.join(f'{math.sin(math.pi * k * (i + 1) / (n + 1)):.9f}\\n' for i in range(n)))
print('largest eigenvalue', omega2, flush=True)
`;
const DIVERGES = `
import sys, time
print('reading potential: Lennard-Jones, 4 atoms', flush=True)
dt, x, v = 0.9, 1.0, 0.0
for step in range(1, 40):
    v -= dt * 24 * (x ** -7 - 2 * x ** -13); x += dt * v
    print(f'[D1_STABLE] step={step} x={x:.3f} v={v:.3f}', flush=True)
    time.sleep(0.05)
    if abs(x) > 50:
        print(f'energy diverged at step {step}: the time step of {dt} fs is too long', file=sys.stderr)
        sys.exit(3)
`;
const oscillators = (job_id, steps, pause, more) => ({ job_id, image_hash: 'python:3.9-slim', command: ['python', '-c', OSCILLATORS, String(steps), String(pause)], resources: { cpus: 0.5, memory_mib: 256 }, ...more });
/** Volume of the unit ball in d dimensions by sampling; mean of the logistic map at r. In awk without a mathematics library. */
const BALL = 'BEGIN { srand(d); cube = 1; for (i = 0; i < d; i++) cube *= 2; for (n = 1; n <= 30000; n++) { q = 0; for (i = 0; i < d; i++) { x = 2 * rand() - 1; q += x * x } hits += q <= 1; if (n % 10000 == 0) printf "[D1_STABLE] samples=%d volume=%.4f\\n", n, hits / n * cube } }';
const LOGISTIC = 'BEGIN { x = 0.4; for (n = 1; n <= 30000; n++) { x = r * x * (1 - x); s += x; if (n % 10000 == 0) printf "[D1_STABLE] iterations=%d mean=%.5f\\n", n, s / n } }';
/** A job of a second or less; its name says what it computes: ball-d4, logistic-r3.83. */
function quick(id, name, more) {
  const [, parameter, value] = /-([dr])([\d.]+)$/.exec(name);
  const script = `set -o pipefail; awk -v ${parameter}=${value} '${parameter === 'd' ? BALL : LOGISTIC}' | tee result.txt`;
  return { job_id: id(name), image_hash: 'busybox:latest', command: ['sh', '-c', script], ...more };
}
const LONG = [100_000, 0.4];

/**
 * Makes what the states show. create(options…) → agents (Agent.cluster); id(name) → a job id of this run.
 * Returns {agents, states}: the latter as name → {url, ready(page)}; `many` wants one browser context for remember and visit.
 */
export async function makeStates(cluster, id) {
  const workers = ['--workers', '8'];
  const [empty, main, second, forked] = await cluster([{ name: 'bench-01' }, { name: 'perseus', args: workers }, { name: 'andromeda', args: workers }, { name: 'cassiopeia', args: workers }]);
  const agents = { empty, main, second, forked };
  const jobs = { sealed: id('phonons-diamond-64'), failed: id('md-argon-dt09'), recovering: id('phonons-silicon-relax'), running: id('phonons-graphene-zone') };
  await Promise.all([fillMain(main, id, jobs), fill(second, id, ['ball-d7', 'ball-d8', 'logistic-r3.50', 'logistic-r3.45']), fill(forked, id, ['ball-d9', 'logistic-r3.20'])]);
  const { seq } = await main.json('/api/ledger/head');
  const job = (name) => `${main.base}/#/jobs/${encodeURIComponent(jobs[name])}`;
  const shows = (state) => async (page) => {
    await live(page);
    await page.locator('h1:visible').first().waitFor(WAIT);
    await page.locator(`[data-is="${state}"]:visible`).first().waitFor(WAIT);
    await checked(page);
  };
  const states = {
    empty: { url: `${empty.base}/`, ready: live },
    list: {
      url: `${main.base}/`,
      async ready(page) {
        await live(page);
        await page.getByRole('row').filter({ hasText: jobs.running }).waitFor(WAIT);
      },
    },
    running: { url: job('running'), ready: shows('D1_STABLE') },
    recovering: { url: job('recovering'), ready: shows('RECOVERY') },
    sealed: { url: job('sealed'), ready: shows('SEALED') },
    failed: { url: job('failed'), ready: shows('FAILED') },
    many: {
      url: `${main.base}/?${[main, second, forked].map(({ base }) => `node=${base}`).join('&')}`,
      remember: (page) => remember(page, forked),
      fork: () => fork(forked, id),
      async ready(page) {
        await live(page);
        await badge(page, 'forked');
      },
    },
    replay: {
      url: `${main.base}/#/?at=${Math.floor((seq * 2) / 3)}`,
      async ready(page) {
        await page.getByRole('slider').first().waitFor(WAIT);
        await page.getByRole('row').filter({ hasText: jobs.sealed }).waitFor(WAIT);
      },
    },
  };
  return { agents, jobs, states };
}

/** A job's page says “checked” for its events once this browser has read the ledger around them. */
const checked = (page) => page.locator('[data-is=checked]:visible').first().waitFor(WAIT);

async function fillMain(agent, id, jobs) {
  await fill(agent, id, ['ball-d2']);
  await Promise.all([
    agent.submit(oscillators(jobs.sealed, 24, 0.05)),
    agent.submit({ ...oscillators(jobs.failed, 1, 0), command: ['python', '-c', DIVERGES] }),
    agent.submit(oscillators(jobs.recovering, ...LONG)),
  ]);
  await agent.reached(jobs.recovering, 'D1_STABLE');
  execFileSync('docker', ['kill', '-s', 'KILL', `hb-${jobs.recovering}-1`], { stdio: 'ignore' });
  await agent.reached(jobs.recovering, 'RECOVERY');
  await Promise.all([agent.reached(jobs.sealed, 'SEALED'), agent.reached(jobs.failed, 'FAILED')]);
  await fill(agent, id, ['ball-d3', 'ball-d4', 'ball-d5', 'ball-d6', 'logistic-r3.57', 'logistic-r3.83', 'logistic-r3.95', 'logistic-r4.00']);
  await agent.submit(oscillators(jobs.running, ...LONG));
  await agent.submit(quick(id, 'after-graphene-r3.99', { depends_on: [jobs.running] }));
  await agent.submit(oscillators(id('phonons-germanium-scan'), ...LONG));
  await agent.reached(id('phonons-germanium-scan'), 'D1_STABLE');
  await agent.json(`/api/jobs/${id('phonons-germanium-scan')}/cancel`, { body: {} });
  await agent.reached(id('phonons-germanium-scan'), 'CANCELLED');
  await Promise.all([jobs.running, jobs.recovering].map((name) => agent.reached(name, 'D1_STABLE')));
}

async function fill(agent, id, names) {
  const { jobs } = await agent.json('/api/submit_jobs', { body: { jobs: names.map((name) => quick(id, name)) } });
  await Promise.all(jobs.map(({ job_id }) => agent.reached(job_id, 'SEALED')));
}

/** The page has shown this node, and its browser remembers the head. */
async function remember(page, agent) {
  await until('every node is live', () => page.evaluate(() => HB.nodes.every(({ badge }) => badge.name === 'live')));
  const { seq } = await agent.json('/api/ledger/head');
  await until('the head is remembered', () => page.evaluate(([base, head]) => HB.memory.get(base)?.head?.seq >= head, [agent.base, seq]));
}

/** A backup is put back behind the last events, and other events are written in their place. */
async function fork(agent, id) {
  const { seq } = await agent.json('/api/ledger/head');
  await agent.stop();
  agent.restore();
  await agent.start();
  for (let i = 0; (await agent.json('/api/ledger/head')).seq <= seq; i++) await fill(agent, id, [`restored-r3.${10 + i}`, `restored-d${i + 2}`]);
}

/** Before the page remembers: what `fork` puts back. Call it once, before the first `remember`. */
export async function prepareFork({ forked }, id) {
  await forked.stop();
  forked.snapshot();
  await forked.start();
  await fill(forked, id, ['logistic-r3.70']);
}
