// The viewer as a user has it: real Chromium, real agent, real containers.
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { execFileSync } from 'node:child_process';
import { INDEX, LOST_LINK, RUN, WAIT, badge, context, live, row, rowIs, suite, watch } from './support.mjs';

const STEPS = 'for i in 1 2 3; do echo "step $i"; echo "[D1_STABLE] step=$i"; sleep 1; done; echo problem >&2';
const { withPage, agent: createAgent, browser } = suite();
let agent;

before(async () => {
  agent = await createAgent();
});

const states = (page) => page.$$eval('.events .state', (marks) => marks.map((mark) => mark.textContent));

test('the empty state teaches with this node’s own address', async () => {
  await withPage(agent.base, async (page) => {
    await live(page);
    const lesson = await page.locator('#lesson').innerText();
    assert.ok(lesson.startsWith(`curl ${agent.base}/api/submit_job `), lesson);
    // What it teaches works.
    const { job_id } = JSON.parse(execFileSync('bash', ['-c', lesson.replace('"hello"', `"${RUN}-hello"`)], { stdio: ['ignore', 'pipe', 'ignore'] }));
    assert.equal(job_id, `${RUN}-hello`);
    await row(page, job_id).waitFor(WAIT);
    assert.equal(await page.locator('#empty').isVisible(), false);
    await rowIs(page, job_id, 'SEALED');
  });
});

test('the list shows states live, and the job’s page its whole trace, every event checked', async () => {
  const id = `${RUN}-steps`;
  await withPage(agent.base, async (page) => {
    await live(page);
    await agent.submit({ job_id: id, image_hash: 'busybox:latest', command: ['sh', '-c', STEPS] });
    await rowIs(page, id, 'D1_STABLE');
    await rowIs(page, id, 'SEALED');
    await page.keyboard.press('/');
    await page.keyboard.type(id);
    assert.equal(await page.locator('.rows .row').count(), 1);
    await page.keyboard.press('Escape');
    await row(page, id).locator('a').click();
    await page.waitForSelector('.job > .verdict[data-is=checked]', WAIT);
    const trace = await states(page);
    assert.deepEqual(trace.filter((state, i) => state !== trace[i - 1]), ['RECEIVED', 'SCHEDULED', 'RUNNING', 'D1_STABLE', 'COMPLETED', 'SEALED']);
    assert.deepEqual(await page.$$eval('.events .verdict', (marks) => [...new Set(marks.map((mark) => mark.textContent))]), ['checked']);

    // The proof: the stored bytes, and a hash of the predecessor that equals prev.
    await page.keyboard.press('j');
    await page.keyboard.press('j');
    await page.keyboard.press('Enter');
    const proof = page.locator('.proof:visible');
    const stored = await proof.locator('pre').innerText();
    const facts = await proof.locator('dd').allInnerTexts();
    assert.equal(JSON.parse(stored).prev, facts[0]);
    assert.equal(facts[0], facts[1]);

    const output = () => page.$$eval('.log .line', (lines) => lines.map((line) => line.textContent));
    await page.waitForFunction(() => document.querySelectorAll('.log .line').length === 6, null, WAIT);
    assert.deepEqual((await output()).sort(), ['[D1_STABLE] step=1', '[D1_STABLE] step=2', '[D1_STABLE] step=3', 'step 1', 'step 2', 'step 3']);
    assert.equal(await page.locator('.log .line[data-stable]').count(), 3);
    await page.locator('.chip', { hasText: 'stderr' }).click();
    await page.waitForFunction(() => document.querySelector('.log .line')?.textContent === 'problem', null, WAIT);
    await page.keyboard.press('Escape');
    await row(page, id).waitFor(WAIT);
  });
});

test('parts of the page that do not come at first are asked for until they are there', async () => {
  const id = `${RUN}-parts`;
  await agent.submit({ job_id: id, image_hash: 'busybox:latest', command: ['true'] });
  await agent.reached(id, 'SEALED');
  // Not withPage: parts that run without check.js throw.
  const made = await context(browser());
  try {
    const page = await made.newPage();
    await page.route('**/check.js', (route) => route.abort());
    await page.goto(`${agent.base}/#/jobs/${id}`);
    await page.locator('#job .notice', { hasText: 'could not be read' }).waitFor(WAIT);
    await page.unroute('**/check.js');
    const problems = watch(page);
    await page.waitForSelector('.job > .verdict[data-is=checked]', WAIT);
    await page.waitForSelector('.artifacts > .verdict[data-is=checked]', WAIT);
    // All is here now: a job can be looked at even where the node is gone.
    await page.route('**/*.js', (route) => route.abort());
    await page.keyboard.press('Escape');
    await row(page, id).locator('a').click();
    await page.waitForSelector('.job > .verdict[data-is=checked]', WAIT);
    assert.deepEqual(problems.filter((text) => !/ERR_FAILED/.test(text)), []);
  } finally {
    await made.close();
  }
});

test('output follows live, and a failure says why', async () => {
  const id = `${RUN}-fails`;
  const code = 'import time,sys\nfor i in range(40): print("line", i, flush=True); time.sleep(.1)\nsys.exit(3)';
  await agent.submit({ job_id: id, image_hash: 'python:3.9-slim', command: ['python', '-c', code] });
  await withPage(`${agent.base}/#/jobs/${id}`, async (page) => {
    await page.locator('.log .line', { hasText: 'line 5' }).first().waitFor(WAIT);
    assert.notEqual(await page.locator('.job > header .state').getAttribute('data-is'), 'FAILED');
    await page.waitForSelector('.job > header .state[data-is=FAILED]', WAIT);
    await page.locator('.log .line', { hasText: 'line 39' }).waitFor(WAIT);
    assert.match(await page.locator('.job .story').innerText(), /exit 3/);
  });
});

test('the stream survives kill -9 of the agent: offline, live again, nothing lost, nothing twice', async () => {
  const id = `${RUN}-killed`;
  await withPage(
    agent.base,
    async (page) => {
      await live(page);
      await agent.submit({ job_id: id, image_hash: 'busybox:latest', command: ['sh', '-c', 'for i in 1 2 3 4 5 6 7 8; do echo "[D1_STABLE] step=$i"; sleep 1; done'] });
      await rowIs(page, id, 'D1_STABLE');
      await page.goto(`${agent.base}/#/jobs/${id}`);
      await page.waitForSelector('.job');
      await agent.stop('SIGKILL');
      await badge(page, 'offline');
      assert.match(await page.locator('#trouble').innerText(), /hackbrain serve/);
      await agent.start();
      await live(page);
      await page.waitForSelector('.job > header .state[data-is=SEALED]', WAIT);
      await page.waitForSelector('.job > .verdict[data-is=checked]', WAIT);
      assert.equal(await page.getByText('hash chain is broken').isVisible(), false);
      // What the page holds by its stream equals what the ledger holds.
      const stored = (await (await fetch(`${agent.base}/api/jobs/${id}/trace`)).text()).trim().split('\n').map((line) => JSON.parse(line).state);
      assert.deepEqual(await states(page), stored);
    },
    { allowed: LOST_LINK },
  );
});

test('a ledger that was tampered with is called a mismatch, in the row and in words', async () => {
  const id = `${RUN}-steps`;
  await withPage(agent.base, async (page) => {
    await live(page);
    // One digit of the time of the event before RUNNING, as a node would serve it whose disk was edited.
    await page.route('**/api/ledger?*', async (route) => {
      const response = await route.fetch();
      const lines = (await response.text()).split('\n');
      const at = lines.findIndex((line) => line.includes(`"${id}"`) && line.includes('"state":"SCHEDULED"'));
      if (at >= 0) lines[at] = lines[at].replace(/("time":"20)(\d)/, (_, head, digit) => head + ((Number(digit) + 1) % 10));
      await route.fulfill({ response, body: lines.join('\n') });
    });
    await row(page, id).locator('a').click();
    await page.waitForSelector('.job > .verdict[data-is=mismatch]', WAIT);
    assert.match(await page.locator('.job > .verdict').innerText(), /hackbrain verify/);
    const verdicts = await page.$$eval('.events .event', (rows) => rows.map((row) => [row.querySelector('.state').textContent, row.querySelector('.verdict').textContent]));
    const of = (state) => verdicts.filter(([name]) => name === state).map(([, verdict]) => verdict);
    assert.deepEqual([of('SCHEDULED'), of('RUNNING'), of('SEALED')], [['mismatch'], ['mismatch'], ['checked']]);
  });
});

test('from file:// with ?node=', async () => {
  await withPage(`file://${INDEX}?node=${agent.base}`, async (page) => {
    await live(page);
    await row(page, `${RUN}-steps`).locator('a').click();
    await page.waitForSelector('.job > .verdict[data-is=checked]', WAIT);
    await page.locator('.log .line', { hasText: 'step 3' }).first().waitFor(WAIT);
  });
});

test('from file:// without a node it says what to do', async () => {
  await withPage(`file://${INDEX}`, async (page) => {
    await page.waitForSelector('#trouble > *');
    assert.match(await page.locator('#trouble').innerText(), /\?node=/);
  });
});

test('an unknown job, 320 px wide, in the dark: said plainly, nothing overflows', async () => {
  const options = { viewport: { width: 320, height: 640 }, colorScheme: 'dark', allowed: /404/ };
  await withPage(
    `${agent.base}/#/jobs/${RUN}-nowhere`,
    async (page) => {
      await page.getByText('This node has no job of that name.').waitFor(WAIT);
      for (const hash of ['#/', `#/jobs/${RUN}-steps`]) {
        await page.goto(agent.base + hash);
        await page.waitForTimeout(500);
        assert.equal(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true, hash);
      }
    },
    options,
  );
});

test('a node without its engine says so, and a waiting job why it waits', async () => {
  const lonely = await createAgent({ env: { DOCKER_HOST: 'unix:///nonexistent.sock' } });
  const id = `${RUN}-waits`;
  await lonely.submit({ job_id: id, image_hash: 'busybox:latest', command: ['true'] });
  await withPage(lonely.base, async (page) => {
    await live(page);
    await page.getByText('container engine is unavailable').waitFor(WAIT);
    assert.match(await page.locator('#trouble').innerText(), /nonexistent\.sock/);
    await row(page, id).locator('a').click();
    await page.locator('.job .note', { hasText: 'Waits: the container engine' }).waitFor(WAIT);
  });
  await withPage(agent.base, async (page) => {
    await live(page);
    assert.equal(await page.locator('#trouble').innerText(), '');
  });
});
