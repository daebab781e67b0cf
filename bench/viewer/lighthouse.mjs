// Lighthouse, with Debian's Chromium, on a node of many jobs: both presets, and what it finds wrong.
import { freePort } from '../../tests/browser/agent.mjs';
import { launch } from '../../tests/browser/support.mjs';
import { seeded, withAgents } from './common.mjs';

const CATEGORIES = ['performance', 'accessibility', 'best-practices'];

export async function lighthouse({ dir, jobs, tell }) {
  const { default: run, desktopConfig } = await import('lighthouse');
  await withAgents([{ data: seeded(dir, jobs, 8) }], async (agent) => {
    for (const preset of ['desktop', 'mobile']) {
      const port = await freePort();
      const browser = await launch({ args: [`--remote-debugging-port=${port}`] });
      try {
        const flags = { port, onlyCategories: CATEGORIES, logLevel: 'error', maxWaitForLoad: 15_000 };
        const { lhr } = await run(agent.base, flags, preset === 'desktop' ? desktopConfig : undefined);
        const scores = CATEGORIES.map((name) => `${name} ${Math.round(lhr.categories[name].score * 100)}`);
        tell(`Lighthouse ${lhr.lighthouseVersion}, ${preset}`, scores.join(', '), '', '100 each');
        for (const line of faults(lhr)) console.error(`lighthouse, ${preset}: ${line}`);
      } finally {
        await browser.close();
      }
    }
  });
}

/** The audits that cost points. */
function faults({ categories, audits, runWarnings }) {
  const weighed = Object.values(categories).flatMap(({ auditRefs }) => auditRefs.filter(({ weight }) => weight > 0));
  const bad = weighed.map(({ id }) => audits[id]).filter(({ score }) => score !== null && score < 1);
  return [...runWarnings, ...bad.map(({ id, score, displayValue, details }) => `${id} ${score} ${displayValue ?? ''} ${snippets(details)}`)];
}

const snippets = (details) => (details?.items ?? []).slice(0, 5).map(({ node, description, url }) => node?.snippet ?? description ?? url ?? '').join(' ');
