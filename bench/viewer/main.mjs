// The viewer measured in a real Chromium against real agents, beside floors in the same browser: main.mjs [OPTIONS] [WHAT…]
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { launch } from '../../tests/browser/support.mjs';
import { check } from './check.mjs';
import { latency } from './latency.mjs';
import { lighthouse } from './lighthouse.mjs';
import { load, nodes } from './load.mjs';
import { log } from './log.mjs';

const MEASURES = { load, nodes, latency, log, check, lighthouse };
const USAGE = `usage: scripts/bench viewer [OPTIONS] [WHAT…]

WHAT: ${Object.keys(MEASURES).join(', ')}; all of them if none is named
  --rounds N   pages opened for each median (default 7)
  --jobs N     jobs of each seeded ledger (default 10000)
  --seconds N  of 500 events a second (default 60)

HACKBRAIN_STATIC=DIR measures the viewer's files in DIR instead of the agent's own, through the browser's interception,
which adds some milliseconds to each file.`;

/** 'name value' options and the rest. */
function parse(words) {
  const options = { rounds: 7, jobs: 10_000, seconds: 60 };
  const what = [];
  for (let i = 0; i < words.length; i++) {
    const name = words[i].replace(/^--/, '');
    if (MEASURES[words[i]]) what.push(words[i]);
    else if (words[i].startsWith('--') && name in options && Number(words[i + 1]) > 0) options[name] = Number(words[++i]);
    else {
      console.error(USAGE);
      process.exit(/^(--)?help$|^-h$/.test(words[i]) ? 0 : 64);
    }
  }
  return { ...options, what: what.length > 0 ? what : Object.keys(MEASURES) };
}

const options = parse(process.argv.slice(2));
const dir = join(process.env.HACKBRAIN_BENCH_DIR, `viewer-${process.pid}`);
const model = /model name\s*: (.*)/.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown processor';
mkdirSync(dir, { recursive: true });
const browser = await launch();
try {
  console.log(`Chromium ${browser.version()}, ${cpus().length} × ${model}, node ${process.version}\n`);
  console.log('| what | viewer | floor | held to |\n|---|--:|--:|--:|');
  const tell = (what, viewer, floor = '', limit = '') => console.log(`| ${what} | ${viewer} | ${floor} | ${limit} |`);
  for (const name of options.what) {
    try {
      await MEASURES[name]({ ...options, browser, dir, tell });
    } catch (error) {
      // The others still have something to tell.
      process.exitCode = 1;
      console.error(`${name}: ${error.stack}`);
    }
  }
} finally {
  await browser.close();
  rmSync(dir, { recursive: true, force: true });
}
