// Pictures of the eight states, from real jobs of real agents: screenshots.mjs DIR [NAME…]. See scripts/screenshots.
import { mkdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { Agent } from './agent.mjs';
import { context, launch, watch } from './support.mjs';
import { makeStates, prepareFork } from './states.mjs';

const SIZE = { width: 1280, height: 800 };
const LIMIT = 300_000; // bytes of a picture: they lie in the repository
/** name of the picture: [state, scheme]. */
const PICTURES = {
  empty: ['empty', 'light'],
  list: ['list', 'light'],
  'list-dark': ['list', 'dark'],
  running: ['running', 'light'],
  recovering: ['recovering', 'light'],
  'recovering-dark': ['recovering', 'dark'],
  sealed: ['sealed', 'light'],
  failed: ['failed', 'light'],
  many: ['many', 'light'],
  replay: ['replay', 'light'],
  'replay-dark': ['replay', 'dark'],
};
const [dir, ...names] = process.argv.slice(2);
const wanted = names.length > 0 ? names : Object.keys(PICTURES);
const unknown = wanted.filter((name) => !PICTURES[name]);
if (!dir || unknown.length > 0) {
  console.error(`usage: screenshots.mjs DIR [NAME…]${unknown.length ? `; no picture is called ${unknown}` : ''}; there are: ${Object.keys(PICTURES).join(', ')}`);
  process.exit(64);
}

/** One picture; at up to twice the size where it stays small enough, so that it is sharp on dense screens. */
async function picture(browser, name, states) {
  const [state, colorScheme] = PICTURES[name];
  const file = join(dir, `${name}.png`);
  for (const deviceScaleFactor of [2, 1.5, 1]) {
    const made = await context(browser, { viewport: SIZE, deviceScaleFactor, colorScheme, reducedMotion: 'reduce', ...(states[state].storage && { storageState: states[state].storage }) });
    try {
      const page = await made.newPage();
      const problems = watch(page);
      await page.goto(states[state].url);
      await states[state].ready(page);
      await settled(page);
      for (const problem of problems) console.error(`${name}: ${problem}`);
      await page.screenshot({ path: file });
    } finally {
      await made.close();
    }
    const { size } = statSync(file);
    if (size <= LIMIT) return console.log(`${file}  ${deviceScaleFactor}x  ${size} bytes`);
  }
  throw new Error(`${file} has more than ${LIMIT} bytes even at ${SIZE.width} × ${SIZE.height}`);
}

/** What is fetched has come, and stands there: no frame of half a second has changed the page but for its clocks. */
async function settled(page) {
  const shape = () => page.evaluate(() => `${document.querySelectorAll('*').length} ${document.documentElement.scrollHeight}`);
  for (let before = '', same = 0; same < 3; ) {
    const now = await shape();
    same = now === before ? same + 1 : 0;
    before = now;
    await page.waitForTimeout(250);
  }
}

/** The browser's memory of a node that forks afterwards, for every picture of it. */
async function rememberAndFork(browser, { many }) {
  const made = await context(browser, { viewport: SIZE });
  try {
    const page = await made.newPage();
    await page.goto(many.url);
    await many.remember(page);
    many.storage = await made.storageState();
  } finally {
    await made.close();
  }
  await many.fork();
}

const id = (name) => name; // as a reader would call them
const agents = [];
const browser = await launch();
try {
  mkdirSync(dir, { recursive: true });
  const { states } = await makeStates(async (list) => {
    agents.push(...(await Agent.cluster(list)));
    return agents;
  }, id);
  if (wanted.some((name) => PICTURES[name][0] === 'many')) {
    await prepareFork({ forked: agents[3] }, id);
    await rememberAndFork(browser, states);
  }
  for (const name of wanted) {
    rmSync(join(dir, `${name}.png`), { force: true });
    await picture(browser, name, states);
  }
} finally {
  await browser.close();
  await Promise.all(agents.map((agent) => agent.close()));
}
