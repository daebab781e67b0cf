// Several nodes on one page: each has its badge, and none holds up the others; what the address says is what is shown.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { INDEX, LOST_LINK, RUN, WAIT, badge, live, row, suite, until } from './support.mjs';

const { withPage, agent, cluster, forwarder } = suite();
const allowed = LOST_LINK;
const job = (name) => ({ job_id: `${RUN}-${name}`, image_hash: 'busybox:latest', command: ['true'] });
const sealed = async (node, ...names) => {
  for (const name of names) await node.submit(job(name));
  for (const name of names) await node.reached(`${RUN}-${name}`, 'SEALED');
};
const address = (agents, rest = '') => `${agents[0].base}/?${agents.map(({ base }) => `node=${base}`).join('&')}${rest}`;
const badgeOf = (page, name, is) => page.locator(`#badges [data-is="${is}"]`, { hasText: name }).waitFor(WAIT);
const rows = (page) => page.locator('.rows [role=row] a').allInnerTexts();
const remembered = (page, { base }, seq) => until('the head is remembered', () => page.evaluate(([base, seq]) => HB.memory.get(base).head?.seq >= seq, [base, seq]));
const headOf = async (node) => node.json('/api/ledger/head');

test('one node dies, the other goes on; it comes back', async () => {
  const agents = await cluster([{ name: 'perseus' }, { name: 'andromeda' }]);
  const [first, second] = agents;
  await sealed(first, 'p1');
  await sealed(second, 'a1');
  await withPage(
    address(agents),
    async (page) => {
      await badgeOf(page, 'perseus', 'live');
      await badgeOf(page, 'andromeda', 'live');
      await until('newest first', async () => (await rows(page)).join() === `${RUN}-a1,${RUN}-p1`);
      assert.deepEqual(await page.locator('.rows .c-node').allInnerTexts(), ['andromeda', 'perseus']);
      await second.stop('SIGKILL');
      await badgeOf(page, 'andromeda', 'offline');
      assert.match(await page.locator('#trouble').innerText(), /andromeda: No answer from .*hackbrain serve/);
      await sealed(first, 'p2');
      await row(page, `${RUN}-p2`).locator('[data-is=SEALED]').waitFor(WAIT);
      assert.equal(await row(page, `${RUN}-a1`).count(), 1, 'what is known of the dead node stays');
      await second.start();
      await badgeOf(page, 'andromeda', 'live');
      await sealed(second, 'a2');
      await row(page, `${RUN}-a2`).waitFor(WAIT);
      assert.equal(await page.locator('#trouble').innerText(), '');
    },
    { allowed },
  );
});

test('an agent that is stopped in its tracks is stale, within three seconds of the clock', async (t) => {
  const node = await agent();
  const link = await forwarder(node);
  await withPage(
    link.base,
    async (page) => {
      await live(page);
      // In the page, so that what this process waits for does not count.
      await page.evaluate(() => {
        const look = () => (HB.nodes[0].badge.name === 'stale' ? (window.staleAt = Date.now()) : setTimeout(look, 10));
        look();
      });
      node.child.kill('SIGSTOP');
      const began = Date.now();
      try {
        await badge(page, 'stale');
        t.diagnostic(`stale after ${(await page.evaluate(() => window.staleAt)) - began} ms`);
        assert.match(await page.locator('#badges').innerText(), /stale since \d\d:\d\d:\d\d/);
      } finally {
        node.child.kill('SIGCONT');
      }
      await live(page);
    },
    { allowed },
  );
});

test('a backup that is put back: rolled back, then forked, until the reader accepts it', async () => {
  const node = await agent({ name: 'cassiopeia' });
  await sealed(node, 'kept');
  await node.stop();
  node.snapshot();
  await node.start();
  await sealed(node, 'lost');
  const lost = await headOf(node);
  await withPage(
    node.base,
    async (page) => {
      await live(page);
      await remembered(page, node, lost.seq);
      await node.stop();
      node.restore();
      await node.start();
      // The same page, which reads all anew.
      await badge(page, 'rolled back');
      assert.match(await page.locator('#trouble').innerText(), new RegExp(`hackbrain verify --expect ${lost.seq}:${lost.hash}`));
      await row(page, `${RUN}-kept`).waitFor(WAIT);
      assert.equal(await row(page, `${RUN}-lost`).count(), 0);
      // It goes on otherwise: at the same seq there is another event now.
      for (let i = 0; (await headOf(node)).seq <= lost.seq; i++) await sealed(node, `other${i}`);
      await badge(page, 'forked');
      await row(page, `${RUN}-other0`).waitFor(WAIT);
      await page.reload();
      await badge(page, 'forked');
      assert.match(await page.locator('#trouble').innerText(), new RegExp(`hackbrain verify --expect ${lost.seq}:${lost.hash}`));
      await row(page, `${RUN}-other0`).waitFor(WAIT); // the data are shown all the same
      await page.getByRole('button', { name: 'Accept this ledger' }).click();
      await live(page);
      await page.reload();
      await live(page);
      assert.equal(await page.locator('#trouble').innerText(), '');
    },
    { allowed },
  );
});

test('two ledgers of one directory, behind one address: forked, whatever is longer', async () => {
  const left = await agent();
  await sealed(left, 'both');
  await left.stop();
  left.snapshot();
  const right = await agent();
  await right.stop();
  right.restore.call({ data: right.data, dir: left.dir });
  await Promise.all([left.start(), right.start()]);
  await sealed(left, 'left');
  await sealed(right, 'right1', 'right2');
  const link = await forwarder(left);
  await withPage(
    link.base,
    async (page) => {
      await live(page);
      await remembered(page, link, (await headOf(left)).seq);
      link.target = right.port;
      link.cut();
      await badge(page, 'forked');
      await row(page, `${RUN}-right2`).waitFor(WAIT);
      assert.equal(await row(page, `${RUN}-left`).count(), 0);
      // And back: the ledger that is remembered is here again.
      link.target = left.port;
      link.cut();
      await live(page);
      await row(page, `${RUN}-left`).waitFor(WAIT);
    },
    { allowed },
  );
});

test('a token for each node, which ends with the tab; nodes added and removed in the panel', async () => {
  const agents = await cluster([{ name: 'open' }, { name: 'locked', token: 'a-token-of-twenty-characters' }]);
  const [open, locked] = agents;
  await sealed(locked, 'secret');
  await withPage(
    open.base,
    async (page) => {
      await live(page);
      assert.equal(new URL(page.url()).search, '');
      await page.getByRole('button', { name: 'Nodes' }).click();
      const panel = page.getByRole('dialog', { name: 'Nodes' });
      await panel.getByLabel('Address of a node').fill('locked');
      await panel.getByRole('button', { name: 'Add' }).click();
      await panel.getByText('begins with http://').waitFor(WAIT);
      await panel.getByLabel('Address of a node').fill(locked.base);
      await panel.getByRole('button', { name: 'Add' }).click();
      await page.locator('dialog [data-is="token needed"]').waitFor(WAIT);
      assert.equal(new URL(page.url()).search, `?node=${open.base}&node=${locked.base}`);
      const field = panel.getByLabel(`Access token of ${locked.base}`);
      assert.equal(await panel.getByLabel(`Access token of ${open.base}`).isVisible(), false, 'it wants none');
      await field.fill('wrong');
      await field.press('Enter');
      await page.waitForResponse((response) => response.url().startsWith(locked.base) && response.status() === 401);
      await field.fill(locked.token);
      await field.press('Enter');
      await panel.getByText('locked', { exact: true }).waitFor(WAIT);
      await page.keyboard.press('Escape');
      await row(page, `${RUN}-secret`).waitFor(WAIT);
      await page.reload(); // the same tab
      await badgeOf(page, 'locked', 'live');
      const other = await page.context().newPage();
      await other.goto(page.url());
      await badgeOf(other, locked.base.slice(7), 'token needed');
      await badgeOf(other, 'open', 'live');
      await page.bringToFront();
      await page.getByRole('button', { name: 'Nodes' }).click();
      await page.getByRole('button', { name: `Remove ${locked.base}` }).click();
      await row(page, `${RUN}-secret`).waitFor({ state: 'detached', ...WAIT });
      assert.equal(new URL(page.url()).search, `?node=${open.base}`);
    },
    { allowed: /401/ },
  );
});

test('filter, group, node, sort: in the address, after a reload, and back from a job', async () => {
  const agents = await cluster([{ name: 'perseus' }, { name: 'andromeda' }]);
  await sealed(agents[0], 'x-b', 'x-a', 'y');
  await sealed(agents[1], 'x-c');
  const x = (...names) => names.map((name) => `${RUN}-x-${name}`).join();
  const shows = (page, expected) => until(`the rows ${expected}`, async () => (await rows(page)).join() === expected);
  await withPage(address(agents), async (page) => {
    await badgeOf(page, 'perseus', 'live');
    await badgeOf(page, 'andromeda', 'live');
    await page.getByRole('searchbox').fill(`${RUN}-x`);
    await shows(page, x('c', 'a', 'b'));
    await page.getByRole('button', { name: /^Job/ }).click();
    await shows(page, x('a', 'b', 'c'));
    assert.equal(await page.getByRole('columnheader', { name: /^Job/ }).getAttribute('aria-sort'), 'ascending');
    await page.getByRole('button', { name: /^Job/ }).click();
    await shows(page, x('c', 'b', 'a'));
    await page.getByRole('button', { name: /^Sealed/ }).click();
    await page.getByRole('button', { name: /^perseus/ }).click();
    await shows(page, x('b', 'a'));
    const state = () => new URL(page.url()).hash.split(/[?&]/).sort().join(' ');
    assert.equal(state(), `#/ n=0 q=${RUN}-x show=sealed sort=-job`);
    await page.reload();
    await shows(page, x('b', 'a'));
    assert.equal(await page.getByRole('searchbox').inputValue(), `${RUN}-x`);
    assert.equal(await page.getByRole('button', { name: /^Sealed/ }).getAttribute('aria-pressed'), 'true');
    assert.equal(await page.getByRole('button', { name: /^perseus/ }).getAttribute('aria-pressed'), 'true');
    await row(page, `${RUN}-x-a`).locator('a').click();
    await page.getByRole('heading', { name: `${RUN}-x-a` }).waitFor(WAIT);
    assert.equal(new URL(page.url()).hash, `#/jobs/${RUN}-x-a?n=0`);
    await page.goBack();
    await shows(page, x('b', 'a'));
    await page.goForward();
    await page.getByRole('heading', { name: `${RUN}-x-a` }).waitFor(WAIT);
    await page.keyboard.press('Escape');
    await shows(page, x('b', 'a'));
    assert.equal(state(), `#/ n=0 q=${RUN}-x show=sealed sort=-job`);
    await page.keyboard.press('Escape'); // out of the filter; the sort stays
    await shows(page, `${RUN}-y,${x('c', 'b', 'a')}`);
  });
});

test('a page from a file remembers which nodes it watched', async () => {
  const node = await agent({ name: 'perseus' });
  await withPage(`file://${INDEX}?node=${node.base}`, async (page) => {
    await badgeOf(page, 'perseus', 'live');
    await page.goto('about:blank');
    await page.goto(`file://${INDEX}`);
    await badgeOf(page, 'perseus', 'live');
  });
});
