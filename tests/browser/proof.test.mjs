// What can be checked on the page itself: events against the ledger, the whole chain, the node as of any seq.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { before, test } from 'node:test';
import { createHash } from 'node:crypto';
import { createRequire } from 'node:module';
import { INDEX, RUN, WAIT, live, suite, until, whole } from './support.mjs';

const { HB: node } = createRequire(import.meta.url)('../viewer/load.js');
const START = { seq: 0, hash: '0'.repeat(64) };
const id = `${RUN}-proved`;
const { withPage, agent: createAgent } = suite();
let agent;

before(async () => {
  agent = await createAgent();
  await agent.submit({ job_id: id, image_hash: 'busybox:latest', command: ['sh', '-c', 'for i in 1 2 3 4 5; do echo "[D1_STABLE] step=$i"; sleep 0.2; done'], resources: { memory_mib: 64 } });
  await agent.submit({ job_id: `${RUN}-fails`, image_hash: 'busybox:latest', command: ['sh', '-c', 'exit 3'] });
  await agent.submit({ job_id: `${RUN}-child`, image_hash: 'busybox:latest', command: ['true'], depends_on: [`${RUN}-fails`] });
  await Promise.all([agent.reached(id, 'SEALED'), agent.reached(`${RUN}-child`, 'FAILED')]);
});

const job = (name) => `${agent.base}/#/jobs/${name}`;
const checked = (page) => page.waitForSelector('.job > .verdict[data-is=checked]', WAIT);
const facts = (page) => page.locator('.proof dd').allInnerTexts();
const ledger = async () => (await (await agent.call('/api/ledger?limit=1000')).text()).trim().split('\n');

test('an event’s proof: the stored bytes, and the hashes that node:crypto gives', async () => {
  await withPage(job(id), async (page) => {
    await checked(page);
    const row = page.locator('.event', { hasText: 'RUNNING' });
    await row.click();
    await page.locator('.proof pre').waitFor(WAIT);
    const stored = await page.locator('.proof pre').textContent();
    const lines = await ledger();
    const { seq, prev } = JSON.parse(stored);
    assert.equal(stored, lines[seq - 1]);
    const sha256 = (text) => createHash('sha256').update(text).digest('hex');
    assert.deepEqual(await facts(page), [prev, sha256(lines[seq - 2]), sha256(stored), `checked: linked to event ${seq - 1} and event ${seq + 1}`]);
    // By keys: on to the next of this job, whose proof is shown then; Enter shuts it.
    await page.keyboard.press('j');
    const next = JSON.parse(lines.slice(seq).find((line) => line.includes(`"${id}"`))).seq;
    await page.locator('.proof h3', { hasText: new RegExp(`^Event ${next}$`) }).waitFor(WAIT);
    await page.keyboard.press('Enter');
    assert.equal(await page.locator('.proof pre').count(), 0);
    await page.keyboard.press('k');
    assert.equal(await page.locator('.event[aria-selected=true] .state').innerText(), 'RUNNING');
    assert.match(await page.locator('.job .story').innerText(), /; chain checked by this browser to seq\s\d+\.$/);
  });
});

test('the page of a job that goes on stands still while its events are checked', async () => {
  const id = `${RUN}-ticks`;
  await agent.submit({ job_id: id, image_hash: 'busybox:latest', command: ['sh', '-c', 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo "[D1_STABLE] step=$i"; sleep 0.2; done'] });
  await withPage(job(id), async (page) => {
    await live(page);
    await checked(page);
    await page.locator('.story', { hasText: 'chain checked by this browser to seq' }).waitFor(WAIT);
    const seen = await page.evaluate(
      () =>
        new Promise((resolve) => {
          const seen = new Set();
          const steps = () => HB.nodes[0].model.jobs.get(HB.route.path[1]).seq;
          const from = steps();
          const look = () => {
            const clause = document.querySelector('.job .story').textContent.includes('chain checked');
            seen.add(`${document.querySelector('.job > .verdict').dataset.is} ${clause}`);
            if (steps() < from + 25) requestAnimationFrame(look);
            else resolve([...seen]);
          };
          look();
        }),
    );
    assert.deepEqual(seen, ['checked true']);
  });
  await agent.json(`/api/jobs/${id}/cancel`, { body: {} });
  await agent.reached(id, 'CANCELLED');
});

test('where workers are refused, the page itself checks, with the same verdicts', async () => {
  await withPage(
    'about:blank',
    async (page) => {
      await page.addInitScript(() => {
        globalThis.Worker = class {
          constructor() {
            throw new Error('refused');
          }
        };
      });
      await page.goto(job(id));
      await checked(page);
      const { seq, hash } = await agent.json('/api/ledger/head');
      const verdict = await page.evaluate(([base, start, to]) => HB.walk(new HB.Api(base), start, to, () => {}), [agent.base, START, seq]);
      assert.deepEqual(verdict, { ok: true, seq, hash, words: '' });
    },
  );
});

test('a worker that the policy refuses is known by its error, and the page goes on without it', async () => {
  await withPage(
    'about:blank',
    async (page) => {
      await page.route(agent.base, async (route) => {
        const response = await route.fetch();
        const headers = { ...response.headers(), 'content-security-policy': response.headers()['content-security-policy'].replace('worker-src blob:', "worker-src 'none'") };
        await route.fulfill({ response, headers });
      });
      await page.goto(job(id));
      await checked(page);
    },
    { allowed: /worker/i },
  );
});

test('from file:// the chain is checked in a worker as well', async () => {
  await withPage(`file://${INDEX}?node=${agent.base}`, async (page) => {
    await live(page);
    await whole(page);
    const { seq, hash } = await agent.json('/api/ledger/head');
    const [verdict, isWorker] = await page.evaluate(async ([base, start, to]) => {
      const work = new HB.Work();
      const verdict = await HB.walk(new HB.Api(base), start, to, () => {}, { work });
      return [verdict, work.worker instanceof Worker];
    }, [agent.base, START, seq]);
    assert.deepEqual([verdict.ok, verdict.seq, verdict.hash, isWorker], [true, seq, hash, true]);
  });
});

test('a ledger whose pages were changed on the way: the chain names the event, and what to run', async () => {
  await withPage(agent.base, async (page) => {
    await live(page);
    await page.context().route('**/api/ledger?*', async (route) => {
      const response = await route.fetch();
      const body = (await response.text()).replace(/("seq":4,[^\n]*"time":"20)2/, '$13');
      await route.fulfill({ response, body });
    });
    await page.goto(job(id));
    const broken = page.locator('.checks .verdict[data-is=mismatch]');
    await broken.waitFor(WAIT);
    assert.match(await broken.innerText(), /event 5: prev is not the hash of event 4.*hackbrain verify/);
    assert.doesNotMatch(await page.locator('.job .story').innerText(), /checked/);
  });
});

test('a failure says what to do, and leads to the job that is to blame', async () => {
  await withPage(job(`${RUN}-child`), async (page) => {
    const notice = page.locator('.job > .notice');
    await notice.waitFor(WAIT);
    assert.match(await notice.innerText(), /Retrigger/);
    await notice.locator('a').click();
    await page.locator('h1', { hasText: `${RUN}-fails` }).waitFor(WAIT);
    await page.locator('.job > .notice', { hasText: 'submit it under a new job id' }).waitFor(WAIT);
  }, { allowed: /404/ }); // what was never started has no output
});

test('a replay as of any seq shows what folding the dump until there gives', async () => {
  const { seq: last } = await agent.json('/api/ledger/head');
  const lines = execFileSync(process.env.HACKBRAIN_BIN, ['dump', '--data', agent.data]).toString().trim().split('\n');
  await withPage(`${agent.base}/?at=5#/`, async (page) => {
    await page.locator('.replay .verdict[data-is=checked]', { hasText: `checked to ${last}` }).waitFor(WAIT);
    const shown = () => page.evaluate(() => {
      const { seq, model } = HB.nodes[0].replay;
      return { seq, jobs: model.order.map(({ text, node, ...job }) => job) };
    });
    const at = async (seq) => {
      await until(`the replay is at ${seq}`, async () => (await shown()).seq === seq);
      const folded = node.model.create();
      for (const line of lines.slice(0, seq)) node.model.fold(folded, JSON.parse(line));
      const jobs = folded.order.map(({ text, ...job }) => job);
      assert.deepEqual((await shown()).jobs, JSON.parse(JSON.stringify(jobs)), `as of ${seq}`);
    };
    await at(5);
    const slider = page.getByRole('slider');
    await slider.focus();
    await page.keyboard.press('Home');
    await at(1);
    for (let seq = 2; seq <= last; seq++) {
      await page.keyboard.press('ArrowRight');
      await at(seq);
    }
    await page.keyboard.press('ArrowLeft');
    await at(last - 1);
    await page.keyboard.press('PageUp');
    await at(1);
    await page.keyboard.press('End');
    await at(last);
    await slider.fill('5');
    await at(5);
    assert.match(await slider.getAttribute('aria-valuetext'), /^event 5, 20\d\d-/);
    // It plays by the ledger's clock to the end, and stops there.
    await page.getByLabel('Speed').selectOption('1000');
    await slider.focus();
    await page.keyboard.press(' ');
    await at(last);
    await page.getByRole('button', { name: 'Play', exact: true }).waitFor(WAIT);
  });
});

test('a job’s page in a replay has the events until then; closed, it has all', async () => {
  const lines = (await ledger()).map((line) => JSON.parse(line));
  const mine = lines.filter(({ job_id }) => job_id === id);
  const { seq } = mine.find(({ state }) => state === 'RUNNING');
  const states = (page) => page.$$eval('.events .state', (marks) => marks.map((mark) => mark.textContent));
  await withPage(`${agent.base}/#/jobs/${id}?at=${seq}`, async (page) => {
    await page.locator('.job > header .state[data-is=RUNNING]').waitFor(WAIT);
    assert.deepEqual(await states(page), ['RECEIVED', 'SCHEDULED', 'RUNNING']);
    const slider = page.getByRole('slider');
    await slider.fill('1');
    await page.getByText('At event 1 it had not been received.').waitFor(WAIT);
    await slider.fill(String(seq));
    await page.locator('.job > header .state[data-is=RUNNING]').waitFor(WAIT);
    // Nor what it used and left behind later.
    await page.locator('.artifacts').waitFor({ state: 'hidden', ...WAIT });
    assert.equal(await page.locator('.charts').isVisible(), false);
    await page.locator('.replay').getByRole('button', { name: 'Close' }).click();
    await page.locator('.job > header .state[data-is=SEALED]').waitFor(WAIT);
    assert.equal((await states(page)).length, mine.length);
    assert.doesNotMatch(page.url(), /at=/);
  });
});

test('the address holds the selected event, and opens its proof', async () => {
  const { seq } = JSON.parse((await ledger()).find((line) => line.includes(`"${id}"`)));
  await withPage(`${job(id)}?e=${seq}`, async (page) => {
    await page.locator('.proof h3', { hasText: `Event ${seq}` }).waitFor(WAIT);
    await page.keyboard.press('j');
    const selected = await page.locator('.event[aria-selected=true]').getAttribute('id');
    assert.notEqual(selected, `event-${seq}`);
    assert.match(page.url(), new RegExp(`e=${selected.replace('event-', '')}$`));
  });
});
