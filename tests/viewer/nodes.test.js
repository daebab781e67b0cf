'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { HB } = require('./load.js');

globalThis.requestAnimationFrame = (run) => setTimeout(run);
const summary = (job_id, seq) => ({ job_id, seq, state: 'SEALED', phase: 'ended', attempt: 1, received: new Date(Date.UTC(2026, 10, 1) + seq).toISOString(), image_hash: 'busybox' });

/** A node whose pages come from `page(after)`: nothing of the network. */
function reading(older, page) {
  const node = Object.assign(Object.create(HB.Node.prototype), { older, isReading: false, on: { change() {} }, asked: [] });
  node.model = HB.model.create(node);
  node.page = async (limit, after) => {
    node.asked.push(after);
    return page(node, after);
  };
  return node;
}

test('older jobs are read page after page, each asked for once', async () => {
  const pages = { 9: { jobs: [summary('c', 9)], next: 6 }, 6: { jobs: [summary('b', 6)], next: 3 }, 3: { jobs: [summary('a', 3)], next: null } };
  const node = reading(9, (_, after) => pages[after]);
  await node.readOlder();
  assert.deepEqual(node.asked, [9, 6, 3]);
  assert.deepEqual(node.model.order.map(({ job_id }) => job_id), ['c', 'b', 'a']);
  assert.deepEqual([node.older, node.isReading], [null, false]);
});

test('where the node has another ledger meanwhile, its jobs are read, and none of the old one is among them', async () => {
  const node = reading(9, (node, after) => {
    if (after === 9) {
      // As a new connection does; what it asks for then finds the reading under way.
      Object.assign(node, { model: HB.model.create(node), older: 5 });
      node.readOlder();
      return { jobs: [summary('old', 9)], next: 6 };
    }
    return { jobs: [summary('new', 5)], next: null };
  });
  await node.readOlder();
  assert.deepEqual([...node.model.jobs.keys()], ['new']);
  assert.deepEqual(node.asked, [9, 5]);
});

test('a page that fails ends the reading, and the next one goes on there', async () => {
  let isGone = true;
  const node = reading(9, (_, after) => {
    if (after === 6 && isGone) throw new Error('gone');
    return { jobs: [summary(`job${after}`, after)], next: after === 9 ? 6 : null };
  });
  await node.readOlder();
  assert.deepEqual([node.older, node.isReading], [6, false]);
  isGone = false;
  await node.readOlder();
  assert.deepEqual([...node.model.jobs.keys()], ['job9', 'job6']);
});
