// Every action without a mouse, and the help that lists the keys. Controls are found by role and name, and reached by Tab
// where no key leads to them.
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { RUN, WAIT, live, row, rowIs, suite, until } from './support.mjs';

const JOBS = { sealed: `${RUN}-sealed`, runs: `${RUN}-runs` };
const STEPS = 'for i in 1 2 3; do echo "iteration $i"; echo "[D1_STABLE] step=$i"; done; echo result > out.txt';
const FOREVER = 'while true; do echo "[D1_STABLE] beat"; sleep 1; done';
const TABS = 200; // a page with more stops than this is no page for a keyboard
const { withPage, agent: createAgent } = suite();
let agent;

before(async () => {
  agent = await createAgent();
  await agent.submit({ job_id: JOBS.sealed, image_hash: 'busybox:latest', command: ['sh', '-c', STEPS] });
  await agent.reached(JOBS.sealed, 'SEALED');
  await agent.submit({ job_id: JOBS.runs, image_hash: 'busybox:latest', command: ['sh', '-c', FOREVER] });
  await agent.reached(JOBS.runs, 'D1_STABLE');
});

/** A page on which nothing is clicked. */
const session = (hash, body, options) =>
  withPage(
    `${agent.base}/${hash}`,
    async (page) => {
      page.on('dialog', (dialog) => dialog.accept()); // the browser's own question: Enter
      await live(page);
      await body(page);
    },
    options,
  );
const job = (name, body, options) =>
  session(`#/jobs/${JOBS[name]}`, async (page) => {
    await page.locator('[data-is=checked]:visible').first().waitFor(WAIT);
    await body(page);
  }, options);
const isFocused = (locator) => locator.evaluate((element) => element === document.activeElement);

/** Presses Tab until this control has the focus, which then can be seen. */
async function tabTo(page, role, name) {
  const control = page.getByRole(role, { name }).first();
  await control.waitFor(WAIT);
  for (let i = 0; i < TABS; i++) {
    if (await isFocused(control)) {
      const { outlineStyle, boxShadow } = await control.evaluate((element) => getComputedStyle(element));
      assert.ok(outlineStyle !== 'none' || boxShadow !== 'none', `nobody sees that ${role} ${name} has the focus`);
      return control;
    }
    await page.keyboard.press('Tab');
  }
  return assert.fail(`Tab never comes to ${role} ${name}`);
}

test('filter, groups, and a job opened', () =>
  session('', async (page) => {
    await page.keyboard.press('/');
    await until('the filter has the focus', () => isFocused(page.getByRole('searchbox').first()));
    await page.keyboard.type('no such job');
    await until('no row is left', async () => (await page.getByRole('row').filter({ hasText: RUN }).count()) === 0);
    await page.keyboard.press('Escape');
    await row(page, JOBS.runs).waitFor(WAIT);
    const sealed = await tabTo(page, 'button', /^sealed/i);
    await page.keyboard.press('Enter');
    assert.equal(await sealed.getAttribute('aria-pressed'), 'true');
    await row(page, JOBS.runs).waitFor({ state: 'detached', ...WAIT });
    await page.keyboard.press('/');
    await page.keyboard.type(JOBS.sealed);
    await tabTo(page, 'grid', /jobs/i);
    await page.keyboard.press('j');
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { level: 1, name: JOBS.sealed }).waitFor(WAIT);
    await page.keyboard.press('Escape');
    await row(page, JOBS.sealed).waitFor(WAIT);
  }));

test('events, one after the other, and the proof of one', () =>
  job('sealed', async (page) => {
    await page.keyboard.press('j');
    await page.keyboard.press('j');
    await page.keyboard.press('Enter');
    const stored = page.locator('pre:visible', { hasText: '"prev":' }).first();
    await stored.waitFor(WAIT);
    const { seq } = JSON.parse(await stored.innerText());
    // An open proof goes with the selection.
    await page.keyboard.press('k');
    await until('the proof of the event before', async () => JSON.parse(await stored.innerText()).seq < seq);
    await page.keyboard.press('Enter');
    await stored.waitFor({ state: 'hidden', ...WAIT });
  }));

test('the log, and a search in it that counts as grep does', () =>
  job('sealed', async (page) => {
    await page.keyboard.press('l');
    await until('the output has the focus', () => page.evaluate(() => document.activeElement.textContent.includes('iteration 3')));
    await tabTo(page, 'searchbox', /search|find/i);
    await page.keyboard.type('iteration');
    await page.keyboard.press('Enter');
    await page.getByText(/\b3\b[^.]*\b(match|line)/i).first().waitFor(WAIT);
    await tabTo(page, 'button', /^stderr/i);
    await page.keyboard.press('Enter');
    await until('stderr is shown', async () => !(await page.locator('body').innerText()).includes('iteration 3'));
  }));

test('the trace: zoomed in, and whole again; what is at its cursor, in words', () =>
  job('sealed', async (page) => {
    const plot = await tabTo(page, 'application', /./);
    const drawn = () => plot.locator('svg').last().evaluate((svg) => svg.textContent);
    const whole = await drawn();
    await page.keyboard.press('+');
    await until('a shorter stretch is drawn', async () => (await drawn()) !== whole);
    await page.keyboard.press('0');
    await until('all of it is drawn again', async () => (await drawn()) === whole);
    await page.keyboard.press('.');
    await page.getByText(/RECEIVED · busybox:latest/).first().waitFor(WAIT);
  }));

test('replay: as of an earlier event, and back to now', () =>
  session('', async (page) => {
    await tabTo(page, 'button', /replay/i);
    await page.keyboard.press('Enter');
    const slider = await tabTo(page, 'slider', /./);
    const now = Number(await slider.inputValue());
    await page.keyboard.press('Home');
    await until('it is as of an earlier event', async () => Number(await slider.inputValue()) < now);
    await row(page, JOBS.runs).waitFor({ state: 'detached', ...WAIT });
    await tabTo(page, 'button', /^close$/i);
    await page.keyboard.press('Enter');
    await slider.waitFor({ state: 'detached', ...WAIT });
    await row(page, JOBS.runs).waitFor(WAIT);
  }));

test('a job submitted, looked at, and cancelled', () =>
  session('#/new', async (page) => {
    const id = `${RUN}-typed`;
    for (const [name, text] of [[/^job id/i, id], [/^image/i, 'busybox:latest'], [/^command/i, 'sleep 600']]) {
      await tabTo(page, 'textbox', name);
      await page.keyboard.type(text);
    }
    await tabTo(page, 'button', /^submit/i);
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { level: 1, name: id }).waitFor(WAIT);
    await agent.reached(id, 'RUNNING');
    await tabTo(page, 'button', /^cancel/i);
    await page.keyboard.press('Enter');
    await agent.reached(id, 'CANCELLED');
    await page.locator('[data-is=CANCELLED]:visible').first().waitFor(WAIT);
    await page.keyboard.press('Escape');
    await rowIs(page, id, 'CANCELLED');
  }));

test('dialogs open and close, and give the focus back', () =>
  session('', async (page) => {
    await page.keyboard.press('?');
    await page.getByRole('dialog').waitFor(WAIT);
    await page.keyboard.press('Escape');
    await page.getByRole('dialog').waitFor({ state: 'hidden', ...WAIT });
    const nodes = await tabTo(page, 'button', /nodes/i);
    await page.keyboard.press('Enter');
    await page.getByRole('dialog').waitFor(WAIT);
    assert.ok(await page.evaluate(() => document.activeElement.closest('dialog') !== null), 'the focus is in the dialog');
    await page.keyboard.press('Escape');
    await page.getByRole('dialog').waitFor({ state: 'hidden', ...WAIT });
    assert.ok(await isFocused(nodes), 'the focus is back where it was');
  }));

const PRINTABLE = Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i));
const NAMES = { Esc: 'Escape', '←': 'ArrowLeft', '→': 'ArrowRight', '↑': 'ArrowUp', '↓': 'ArrowDown', Space: ' ', '−': '-', '–': '-' };
/** What a focused control does with these is known by its kind, and needs no list. */
const OF_CONTROLS = ['Enter', ' ', 'Home', 'End', 'PageUp', 'PageDown', 'ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown', 'Tab', 'Delete'];

/** Those of the keys that mean something where the page stands: whose default is prevented. arrive() brings it there again. */
async function keysThatWork(page, keys, arrive) {
  const works = [];
  const place = () => page.evaluate(() => `${location.href} ${document.querySelector('dialog[open]')?.id} ${document.activeElement.tagName} ${document.querySelectorAll('input, textarea, form').length}`);
  await arrive();
  let stand = await place();
  for (const key of keys) {
    await page.evaluate(() => {
      window.pressed = null;
      addEventListener('keydown', (event) => (window.pressed = event), { capture: true, once: true });
    });
    await page.keyboard.press(key);
    if (await page.evaluate(() => new Promise((resolve) => setTimeout(() => resolve(window.pressed?.defaultPrevented))))) {
      works.push(key);
      await page.evaluate(() => new Promise((resolve) => setTimeout(resolve, 30))); // a focus may follow
    }
    if ((await place()) !== stand) {
      await arrive();
      stand = await place();
    }
  }
  return works;
}

test('“?” lists every key that works, and no key that does not', () =>
  session('', async (page) => {
    await page.keyboard.press('?');
    await page.getByRole('dialog').waitFor(WAIT);
    const listed = (await page.locator('dialog[open] kbd').allInnerTexts()).map((text) => NAMES[text.trim()] ?? text.trim());
    const come = async (hash, wait) => {
      await page.goto('about:blank');
      await page.goto(`${agent.base}/${hash}`);
      await live(page);
      await wait();
    };
    const places = {
      list: () => come('', () => row(page, JOBS.runs).waitFor(WAIT)),
      job: () => come(`#/jobs/${JOBS.sealed}`, () => page.locator('[data-is=checked]:visible').first().waitFor(WAIT)),
      log: async () => {
        await places.job();
        await tabTo(page, 'searchbox', /search|find/i);
        await page.keyboard.type('iteration');
        await page.keyboard.press('Enter'); // what is found can be gone through
        await page.getByText(/\b3\b[^.]*\b(match|line)/i).first().waitFor(WAIT);
        await page.getByRole('heading', { level: 1 }).focus();
        await page.keyboard.press('l');
      },
      trace: async () => {
        await places.job();
        await tabTo(page, 'application', /./);
      },
      replay: () => come('#/?at=9', () => page.getByRole('slider').first().waitFor(WAIT)),
    };
    if (listed.includes('+')) listed.push('='); // the same key without Shift
    const works = new Set();
    for (const [place, arrive] of Object.entries(places)) {
      // What worked elsewhere, and is listed, need not be shown once more.
      const here = await keysThatWork(page, [...PRINTABLE, 'Escape'].filter((key) => !works.has(key)), arrive);
      assert.deepEqual(here.filter((key) => !listed.includes(key)), [], `work in the ${place}, and are not listed`);
      for (const key of here) works.add(key);
    }
    const idle = listed.filter((key) => !works.has(key) && !OF_CONTROLS.includes(key));
    assert.deepEqual(idle, [], 'are listed, and do nothing anywhere');
  }));
