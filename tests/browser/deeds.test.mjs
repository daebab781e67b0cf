// What a reader does about a job, and checks of it: real Chromium, real agent, real containers.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { Agent } from './agent.mjs';
import { FLAGS, INDEX, WAIT, row, whole } from './support.mjs';

const RUN = `d${process.pid}`; // job ids become container names, which are shared by all agents of one Docker
const FILES = 'mkdir -p d; for i in 1 2 3; do echo $i > d/file$i; done; echo x > "a b%c?#"; echo "[D1_STABLE] step=3"';

let agent;
let root; // directories in it may be mounted
let browser;
const sh = (job_id, script, more) => agent.submit({ job_id, image_hash: 'busybox:latest', command: ['sh', '-c', script], ...more });

before(async () => {
  root = mkdtempSync(join(tmpdir(), 'hb-inputs-'));
  agent = await Agent.create({ env: { HACKBRAIN_MOUNT_ROOT: root } });
  browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS });
  // Every test but the first looks at these.
  await sh(`${RUN}-made`, FILES);
  await sh(`${RUN}-next`, 'sleep 600', { mount_spec: [`job:${RUN}-made:/job/in/made`] });
  await sh(`${RUN}-last`, 'true', { depends_on: [`${RUN}-next`, `${RUN}-made`] });
  await agent.reached(`${RUN}-made`, 'SEALED');
});

after(async () => {
  await browser?.close();
  // Also what a failed test left: a running job's mounts would hold the data directory.
  const { jobs } = await (await fetch(`${agent.base}/api/jobs?limit=1000`)).json();
  for (const { job_id } of jobs.filter(({ phase }) => phase !== 'ended')) {
    await fetch(`${agent.base}/api/jobs/${job_id}/cancel`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{}' });
    await fetch(`${agent.base}/api/jobs/${job_id}?wait=CANCELLED&timeout_s=60`);
  }
  await agent?.close();
  rmSync(root, { recursive: true, force: true });
  const ids = execFileSync('docker', ['ps', '-aq', '--filter', `name=^hb-${RUN}`]).toString().split('\n').filter(Boolean);
  if (ids.length > 0) execFileSync('docker', ['rm', '-f', ...ids]);
});

/** From a file, as on a laptop: every POST crosses origins. Console errors and exceptions fail the test. */
async function withPage(hash, body, { allowed = /^$/, ...options } = {}) {
  const context = await browser.newContext({ acceptDownloads: true, ...options });
  const page = await context.newPage();
  const problems = [];
  page.on('console', (message) => {
    const isOfOutput = /\/std(out|err)\?/.test(message.location().url); // asked for before there is an attempt
    if (['error', 'warning'].includes(message.type()) && !isOfOutput && !allowed.test(message.text())) problems.push(message.text());
  });
  page.on('pageerror', (error) => problems.push(error.stack));
  try {
    await page.goto(`file://${INDEX}?node=${agent.base}${hash}`);
    await body(page);
    assert.deepEqual(problems, []);
  } finally {
    await context.close();
  }
}

const heading = (page, state) => page.waitForSelector(`.job > header .state[data-is=${state}]`, WAIT);
const press = (page, name) => page.getByRole('button', { name, exact: true }).click();
const answer = (page, text) => page.locator('.actions .note', { hasText: text }).waitFor(WAIT);
const trace = async (id) => (await (await fetch(`${agent.base}/api/jobs/${id}/trace`)).text()).trim().split('\n').map((line) => JSON.parse(line));
/** How many it takes to print it. */
const pages = async (page) => (await page.pdf({ format: 'A4' })).toString('latin1').match(/\/Type \/Page\b/g).length;
/** What the page would copy: the clipboard of a headless browser is nobody's. */
const copied = async (page, name) => {
  await page.evaluate(() => Object.defineProperty(navigator, 'clipboard', { value: { writeText: async (text) => (window.copied = text) } }));
  await press(page, name);
  return page.waitForFunction(() => window.copied).then((handle) => handle.jsonValue());
};

test('a job is submitted by the form: a refusal stands at its field, the curl line and the JSON say the same', async () => {
  const id = `${RUN}-form`;
  const allowed = /400 \(Bad Request\)/;
  await withPage('#/new', async (page) => {
    const field = (name) => page.locator(`[name="${name}"]`);
    const fault = async (name, text) => {
      await page.locator(`[name="${name}"][aria-invalid]`).waitFor(WAIT);
      assert.match(await page.locator(`[id="error-${name}"]`).innerText(), text);
      assert.equal(await page.evaluate(() => document.activeElement.name), name);
    };
    await press(page, 'Submit');
    await fault('job_id', /required/);
    await field('job_id').fill(id);
    await field('image_hash').fill('busybox:latest');
    await field('command').fill(`echo "it's $SEED" > out`);
    await field('env').fill('SEED=7\nBAD');
    await page.keyboard.press('Tab');
    await press(page, 'Submit');
    await fault('env', /object of strings/);
    await field('env').fill('SEED=7');
    await field('resources.cpus').fill('many');
    await press(page, 'Submit');
    await fault('resources.cpus', /a number such as 1\.5/);
    // The other way: what is written as JSON shows in the fields.
    const manifest = JSON.parse(await field('').inputValue());
    manifest.resources = { cpus: 0.5, pids: 64 };
    manifest.max_attempts = 2;
    await field('').fill(JSON.stringify(manifest));
    assert.deepEqual([await field('resources.cpus').inputValue(), await field('resources.pids').inputValue(), await field('max_attempts').inputValue()], ['0.5', '64', '2']);
    assert.equal(await page.locator('[aria-invalid]').count(), 0);
    await field('').fill('{"job_id"');
    await press(page, 'Submit');
    assert.equal(await page.locator('[aria-invalid]').getAttribute('name'), '');
    await field('').fill(JSON.stringify(manifest));
    const curl = await page.locator('.submit pre').innerText();
    await page.locator('[name=job_id]').focus();
    await page.keyboard.press('Enter');
    await page.waitForFunction((hash) => location.hash.startsWith(hash), `#/jobs/${id}`, WAIT);
    await heading(page, 'SEALED');
    const [received] = await trace(id);
    assert.deepEqual(received.detail.manifest, manifest);
    // The shown line is the same submission: the agent calls it a duplicate.
    const again = JSON.parse(execFileSync('bash', ['-c', curl], { stdio: ['ignore', 'pipe', 'ignore'] }));
    assert.deepEqual([again.job_id, again.duplicate], [id, true]);
  }, { allowed });
});

test('cancel asks once, retrigger goes on, each disabled with its reason where the state does not allow it', async () => {
  const id = `${RUN}-stop`;
  await sh(id, 'trap "exit 0" TERM; i=0; while [ $i -lt 600 ]; do sleep 0.2; i=$((i+1)); done');
  await agent.reached(id, 'RUNNING');
  await withPage(`#/jobs/${id}`, async (page) => {
    await heading(page, 'RUNNING');
    const retrigger = page.getByRole('button', { name: 'Retrigger', exact: true });
    assert.equal(await retrigger.getAttribute('aria-disabled'), 'true');
    await retrigger.focus(); // it can be reached, to learn why not
    await page.keyboard.press('Enter');
    await answer(page, 'It is RUNNING');
    page.once('dialog', (dialog) => dialog.dismiss());
    await press(page, 'Cancel');
    assert.equal((await trace(id)).some(({ state }) => state === 'STOPPING'), false, 'the question alone changes nothing');
    page.on('dialog', (dialog) => dialog.accept());
    await page.getByRole('button', { name: 'Cancel', exact: true }).focus();
    await page.keyboard.press('Enter');
    await answer(page, 'The node answered: STOPPING');
    await heading(page, 'CANCELLED');
    assert.equal(await page.getByRole('button', { name: 'Cancel', exact: true }).getAttribute('aria-disabled'), 'true');
    await press(page, 'Retrigger');
    await page.waitForFunction(() => /RECOVERY|RUNNING/.test(document.querySelector('.job > header .state').dataset.is), null, WAIT);
    assert.ok((await trace(id)).some(({ state }) => state === 'RETRIGGERED'));
    await press(page, 'Cancel');
    await heading(page, 'CANCELLED');
  });
});

test('reproduce under a new id, and its artifacts beside those of the first', async () => {
  await withPage(`#/jobs/${RUN}-made`, async (page) => {
    await heading(page, 'SEALED');
    page.once('dialog', (dialog) => dialog.accept(`${RUN}-again`));
    await press(page, 'Reproduce');
    await page.getByRole('link', { name: `Open ${RUN}-again` }).click();
    await heading(page, 'SEALED');
    await page.locator('.artifacts dd', { hasText: '4 identical · stdout identical · stderr identical' }).waitFor(WAIT);
    assert.deepEqual(await page.locator('.file .f3').allInnerTexts(), Array(4).fill('identical'));
  });
});

test('inputs that changed since are named when a reproduction is refused', async () => {
  const id = `${RUN}-reads`;
  const inputs = join(root, 'in');
  mkdirSync(inputs);
  writeFileSync(join(inputs, 'table.csv'), '1');
  await sh(id, 'cat /job/in/table.csv', { mount_spec: [`${inputs}:/job/in:ro`] });
  await agent.reached(id, 'SEALED');
  writeFileSync(join(inputs, 'table.csv'), '2');
  await withPage(
    `#/jobs/${id}`,
    async (page) => {
      await heading(page, 'SEALED');
      page.once('dialog', (dialog) => dialog.accept());
      await press(page, 'Reproduce');
      await answer(page, /not those of job .*table\.csv/);
    },
    { allowed: /409/ },
  );
});

test('artifacts: the seal is checked, every file is, a changed byte is found, and one can be downloaded', async () => {
  await withPage(
    `#/jobs/${RUN}-made`,
    async (page) => {
      await page.locator('.artifacts > .verdict[data-is=checked]').waitFor(WAIT);
      assert.match(await page.locator('.artifacts > .verdict').innerText(), /its entries give the artifacts root/);
      const verdicts = () => page.locator('.file .verdict').allInnerTexts();
      await press(page, 'Check all in this browser');
      await page.locator('.artifacts .note', { hasText: '4 of 4 files checked' }).waitFor(WAIT);
      assert.deepEqual(await verdicts(), Array(4).fill('checked'));
      const download = page.waitForEvent('download');
      await page.locator('.file a', { hasText: 'a b%25c?#' }).click();
      assert.equal(readFileSync(await (await download).path(), 'utf8'), 'x\n');
      await page.route('**/artifacts/**/file2', async (route) => {
        const response = await route.fetch();
        const body = await response.body();
        body[0] ^= 1;
        await route.fulfill({ response, body });
      });
      await press(page, 'Check all in this browser');
      await page.locator('.artifacts .note', { hasText: /3 of 4 files checked.*1 not as sealed.*hackbrain verify/ }).waitFor(WAIT);
      const bad = page.locator('.file', { has: page.locator('[data-is=mismatch]') });
      assert.match(await bad.innerText(), /file2/);
    },
  );
  // A seal with another digest in it is not the one that SEALED names.
  await withPage(`#/jobs/${RUN}-made`, async (page) => {
    await page.route('**/seal', async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, body: (await response.text()).replace(/("sha256":")./, '$1f') });
    });
    await page.reload();
    await page.locator('.artifacts > .verdict[data-is=mismatch]').waitFor(WAIT);
    assert.match(await page.locator('.artifacts > .verdict').innerText(), /it has the hash [0-9a-f]{64}; its entries give the artifacts root/);
  });
});

test('ten thousand sealed files: few rows in the document, the last one is reached', async () => {
  const id = `${RUN}-made`;
  const seal = await (await fetch(`${agent.base}/api/jobs/${id}/seal`)).json();
  const artifacts = Array.from({ length: 10_000 }, (_, i) => ({ ...seal.artifacts[0], path: `/job/workdir/${i}` }));
  await withPage(`#/jobs/${id}`, async (page) => {
    await page.route('**/seal', async (route) => route.fulfill({ contentType: 'application/json', headers: { 'Access-Control-Allow-Origin': 'null' }, body: JSON.stringify({ ...seal, artifacts }) }));
    await page.reload();
    await page.locator('.file').first().waitFor(WAIT);
    assert.equal(await pages(page), 1, 'on paper, the first of them');
    await page.evaluate(() => (document.querySelector('.files').scrollTop = 1e9));
    await page.locator('.file a', { hasText: /^\/job\/workdir\/9999$/ }).waitFor(WAIT);
    assert.ok((await page.locator('.file').count()) < 60);
  });
});

test('the offline check that is copied runs in a shell, and finds a bundle of another ledger', async () => {
  await withPage(`#/jobs/${RUN}-made`, async (page) => {
    await heading(page, 'SEALED');
    const text = await copied(page, 'Copy the offline check');
    const said = execFileSync('bash', ['-c', text], { stdio: ['ignore', 'pipe', 'pipe'] }).toString();
    const last = (await trace(`${RUN}-made`)).at(-1);
    assert.match(said, new RegExp(`head ${last.seq} [0-9a-f]{64}\\s*$`));
    const [dir] = said.split('\n');
    execFileSync('rm', ['-r', dir]);
    assert.match(text, new RegExp(`--expect ${last.seq}:[0-9a-f]{64}`));
    assert.throws(() => execFileSync('bash', ['-c', text.replace(/:[0-9a-f]{64}/, `:${'0'.repeat(64)}`)], { stdio: ['ignore', 'pipe', 'pipe'] }));
    const download = page.waitForEvent('download');
    await page.getByRole('link', { name: 'Download bundle' }).click();
    assert.match(execFileSync('tar', ['tf', await (await download).path()]).toString(), /verify\.py/);
  });
});

test('where a token is asked for, a download sends it, says why it is refused, and asks before it fills the memory', async () => {
  const id = `${RUN}-token`;
  const token = 'a-token-of-some-length';
  const guarded = await Agent.create({ token });
  try {
    const headers = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' };
    await fetch(`${guarded.base}/api/submit_job`, { method: 'POST', headers, body: JSON.stringify({ job_id: id, image_hash: 'busybox:latest', command: ['true'] }) });
    await fetch(`${guarded.base}/api/jobs/${id}?wait=SEALED&timeout_s=60`, { headers });
    await withPage(
      '',
      async (page) => {
        await whole(page);
        const follow = (token, size) =>
          page.evaluate(
            ([base, id, token, size]) => {
              window.said = [];
              const api = Object.assign(new HB.Api(base), { token });
              const link = HB.h('a', { href: `${base}/api/jobs/${id}/bundle`, download: 'x.tar', click: (event) => HB.save(event, api, size, (words) => window.said.push(words)) });
              document.body.append(link);
              link.click();
            },
            [guarded.base, id, token, size],
          );
        const download = page.waitForEvent('download');
        await follow(token, 10);
        assert.match(execFileSync('tar', ['tf', await (await download).path()]).toString(), new RegExp(`${id}/events.jsonl`));
        await follow('a-wrong-token-of-that-length', 10);
        await page.waitForFunction(() => /Authorization: Bearer/.test(window.said.at(-1)));
        page.once('dialog', (dialog) => dialog.dismiss());
        await follow(token, 2 ** 30);
        assert.deepEqual(await page.evaluate(() => window.said), []);
      },
      { allowed: /401/ },
    );
  } finally {
    await guarded.close();
  }
});

test('the graph by keyboard: along edges, to a neighbour, and opened', async () => {
  await withPage(`#/jobs/${RUN}-made`, async (page) => {
    const focused = () => page.evaluate(() => document.activeElement.dataset.id);
    await page.locator('.graph [aria-current=page]').focus();
    assert.match(await page.locator('.graph [aria-current=page]').getAttribute('title'), new RegExp(`Children: ${RUN}-last, ${RUN}-next`));
    await page.keyboard.press('ArrowRight');
    assert.equal(await focused(), `${RUN}-next`);
    await page.keyboard.press('ArrowRight');
    assert.equal(await focused(), `${RUN}-last`);
    await page.keyboard.press('ArrowLeft');
    await page.keyboard.press('ArrowLeft');
    assert.equal(await focused(), `${RUN}-made`);
    await page.keyboard.press('ArrowRight');
    assert.equal(await page.locator('.graph a[tabindex="0"]').count(), 1);
    await page.keyboard.press('Enter');
    await page.waitForSelector(`h1:text("${RUN}-next")`, WAIT);
    await page.locator('.graph .note', { hasText: `Parents: ${RUN}-made. Children: ${RUN}-last.` }).waitFor(WAIT);
  });
  await sh(`${RUN}-alone`, 'true');
  await withPage(`#/jobs/${RUN}-alone`, async (page) => {
    await heading(page, 'SEALED');
    await page.locator('.artifacts > .verdict[data-is=checked]').waitFor(WAIT);
    assert.equal(await page.locator('.graph').isVisible(), false);
  });
});

test('a new job starts from an old one', async () => {
  await withPage(`#/jobs/${RUN}-next`, async (page) => {
    await heading(page, 'RUNNING');
    await page.getByRole('link', { name: 'Start from this job' }).click();
    assert.equal(await page.locator('[name=mount_spec]').inputValue(), `job:${RUN}-made:/job/in/made`);
    assert.equal(await page.locator('[name=command]').inputValue(), 'sleep 600');
    assert.equal(await page.locator('[name=job_id]').inputValue(), '');
  });
});

test('on paper: no controls, whole hashes, black on white', async () => {
  await withPage(
    `#/jobs/${RUN}-made`,
    async (page) => {
      await page.locator('.artifacts > .verdict[data-is=checked]').waitFor(WAIT);
      await page.waitForSelector('.job > .verdict[data-is=checked]', WAIT);
      await page.emulateMedia({ media: 'print' });
      assert.equal(await page.locator('.actions:visible, .top:visible, input:visible, .log:visible').count(), 0);
      const [first] = await page.locator('.file').allInnerTexts();
      assert.match(first, /^\/job\/workdir\/a b%25c\?#\s+2 B\s+[0-9a-f]{64}$/);
      const isWhole = await page.$$eval('.f2 > *', (cells) => cells.every((cell) => cell.scrollWidth <= cell.clientWidth));
      assert.equal(isWhole, true, 'no hash is cut');
      assert.deepEqual(await page.evaluate(() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]), ['rgb(0, 0, 0)', 'rgb(255, 255, 255)']);
      assert.equal(await pages(page), 1);
    },
    { colorScheme: 'dark' },
  );
});

test('on paper a list is whole, and in order', async () => {
  const id = `${RUN}-forty`;
  await sh(id, 'for i in $(seq 10 49); do echo $i > file-$i; done');
  await agent.reached(id, 'SEALED');
  await withPage(`#/jobs/${id}`, async (page) => {
    await page.locator('.file').first().waitFor(WAIT);
    const files = () => page.$$eval('.file .f0', (cells) => cells.map((cell) => cell.textContent));
    assert.ok((await files()).length < 40, 'on the screen those that can be seen');
    await page.evaluate(() => addEventListener('beforeprint', () => (window.printed = [...document.querySelectorAll('.file .f0')].map((cell) => cell.textContent))));
    await page.pdf({ format: 'A4' });
    assert.deepEqual(await page.evaluate(() => window.printed), Array.from({ length: 40 }, (_, i) => `/job/workdir/file-${i + 10}`));
    assert.ok((await files()).length < 40);
  });
});

test('of a job that is not there, nothing is said and nothing offered', async () => {
  await withPage(`#/jobs/${RUN}-nowhere`, async (page) => {
    await page.locator('.story', { hasText: 'no job of that name' }).waitFor(WAIT);
    assert.equal(await page.locator('.job .state, .job .verdict, .job button').count(), 0);
    await page.getByRole('link', { name: 'All jobs' }).click();
    await row(page, `${RUN}-made`).waitFor(WAIT);
  }, { allowed: /404/ });
});
