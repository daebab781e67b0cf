// Holds model.js to what the agent serves: `node replay_check.js FILE`, with FILE from tests/viewer_model.rs. Each of its lines
// is an event and the summary that its job had then ({"event":…,"summary":…}), or begins another ledger ({"ledger":…}).
'use strict';
const assert = require('node:assert/strict');
const { readFileSync } = require('node:fs');
const { HB } = require('./load.js');

const FIELDS = ['job_id', 'state', 'phase', 'attempt', 'seq', 'received', 'started', 'ended', 'image_hash', 'image_id', 'execution_hash', 'exit_code', 'reason', 'last_d1_stable', 'ancestor'];
const { create, fold, merge } = HB.model;

/** The model as the agent's summaries at some seq, newest first, field by field. */
function compare(model, expected, context) {
  const jobs = [...expected.values()].reverse();
  assert.equal(model.jobs.size, jobs.length, `${context}: number of jobs`);
  assert.deepEqual(model.order.map((job) => job.job_id), jobs.map((job) => job.job_id), `${context}: order`);
  for (const summary of jobs) {
    const job = model.jobs.get(summary.job_id);
    // What nobody has told yet is null in a summary, and may be absent in the model.
    for (const name of FIELDS) {
      if ((job[name] ?? null) !== summary[name]) assert.fail(`${context}: ${job.job_id}: ${name} is ${JSON.stringify(job[name])}, the agent says ${JSON.stringify(summary[name])}`);
    }
  }
}

/** The summaries as of a seq: of each job the last one until then, in the order in which the jobs were received. */
function asOf(lines, seq) {
  const summaries = new Map();
  for (const { summary } of lines.slice(0, seq)) if (summary) summaries.set(summary.job_id, summary);
  return summaries;
}

/** Pages as the agent gives them. */
function mergePages(model, summaries, size) {
  const jobs = [...summaries.values()].reverse();
  for (let at = 0; at < jobs.length; at += size) merge(model, jobs.slice(at, at + size).map((summary) => ({ ...summary })));
}

let state = 1;
/** The same numbers in every run, below `most`. */
function random(most) {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * most);
}

function check(name, lines) {
  const model = create();
  const expected = new Map();
  lines.forEach(({ event, summary }, index) => {
    assert.equal(event.seq, index + 1);
    fold(model, event);
    if (summary) expected.set(summary.job_id, summary);
    compare(model, expected, `${name} as of ${event.seq} (${event.state})`);
  });
  const last = lines.length;
  for (let round = 0; round < 300; round++) {
    // The stream begins behind `from`; at `now` a page is read that shows `page`; then the stream goes on to `to`.
    const from = random(last + 1);
    const page = from + random(last - from + 1);
    const now = from + random(last - from + 1);
    const to = Math.max(page, now) + random(last - Math.max(page, now) + 1);
    const joined = create();
    for (const { event } of lines.slice(from, now)) fold(joined, event);
    mergePages(joined, asOf(lines, page), 1 + random(40));
    for (const { event } of lines.slice(now, to)) fold(joined, event);
    compare(joined, asOf(lines, to), `${name}: events from ${from} to ${now}, pages of ${page}, events to ${to}`);
  }
}

let name;
let lines = [];
let events = 0;
const end = () => {
  if (name !== undefined) check(name, lines);
  events += lines.length;
  lines = [];
};
for (const line of readFileSync(process.argv[2], 'utf8').split('\n').filter(Boolean)) {
  const parsed = JSON.parse(line);
  if (parsed.ledger === undefined) {
    lines.push(parsed);
    continue;
  }
  end();
  name = parsed.ledger;
}
end();
console.log(`checked ${events} events`);
