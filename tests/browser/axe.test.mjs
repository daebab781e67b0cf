// Accessibility: axe finds nothing in any of the eight states and the dialogs, light and dark, narrow and wide.
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { RUN, WAIT, context, live, suite, watch } from './support.mjs';
import { makeStates, prepareFork } from './states.mjs';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const TAGS = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
const WIDTHS = [1280, 320];
const SCHEMES = ['light', 'dark'];
const id = (name) => `${RUN}-${name}`;
const { browser, cluster } = suite();
let made;

before(async () => {
  made = await makeStates(cluster, id);
  await prepareFork(made.agents, id);
});

/** What is wrong with the page as it stands, in each scheme and width: a list of lines. */
async function faults(page) {
  // A script tag, and Playwright's own evaluation of text, are what the page's CSP forbids.
  const session = await page.context().newCDPSession(page);
  await session.send('Runtime.evaluate', { expression: AXE });
  const found = [];
  for (const width of WIDTHS) {
    await page.setViewportSize({ width, height: 800 });
    for (const colorScheme of SCHEMES) {
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
      const [violations, wide] = await page.evaluate(async (tags) => {
        const { violations } = await axe.run({ runOnly: tags, resultTypes: ['violations'] });
        const lines = violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target} ${node.failureSummary}`));
        return [lines, document.documentElement.scrollWidth - innerWidth];
      }, TAGS);
      found.push(...violations.map((line) => `${width} px, ${colorScheme}: ${line}`));
      if (wide > 0) found.push(`${width} px, ${colorScheme}: the page is ${wide} px wider than the window`);
    }
  }
  return found;
}

async function visit(url, act, allowed) {
  const made = await context(browser(), { viewport: { width: WIDTHS[0], height: 800 } });
  try {
    const page = await made.newPage();
    const problems = watch(page, allowed);
    await page.goto(url);
    await act(page);
    const found = await faults(page);
    assert.deepEqual(found, []);
    assert.deepEqual(problems, []);
  } finally {
    await made.close();
  }
}

for (const name of ['empty', 'list', 'running', 'recovering', 'sealed', 'failed', 'replay']) {
  test(`axe: ${name}`, () => visit(made.states[name].url, made.states[name].ready));
}

test('axe: help', () =>
  visit(made.states.list.url, async (page) => {
    await made.states.list.ready(page);
    await page.keyboard.press('?');
    await page.getByRole('dialog').waitFor(WAIT);
  }));

test('axe: nodes', () =>
  visit(made.states.list.url, async (page) => {
    await made.states.list.ready(page);
    await page.getByRole('button', { name: /nodes/i }).click();
    await page.getByRole('dialog').waitFor(WAIT);
  }));

test('axe: submit', () =>
  visit(`${made.agents.main.base}/#/new`, async (page) => {
    await live(page);
    await page.getByRole('button', { name: /^submit/i }).first().waitFor(WAIT);
  }));

test('axe: many nodes, one of them forked', () => {
  const { many } = made.states;
  return visit(many.url, async (page) => {
    await many.remember(page);
    await page.goto('about:blank'); // the page is not open while the backup is put back
    await many.fork();
    await page.goto(many.url);
    await many.ready(page);
  });
});
