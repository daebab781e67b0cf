/* The entry: which nodes are watched, what of them is drawn, and the way between the list, a job and the form. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const ANNOUNCE_MS = 5000; // to screen readers, at most one in this time
const SHARE = 8; // a pass over all jobs waits so many times as long as the last one took
const GROUPS = { all: 'All', waiting: 'Waiting', active: 'Active', sealed: 'Sealed', failed: 'Failed', cancelled: 'Cancelled' };
const LESSON = { job_id: 'hello', image_hash: 'busybox:latest', command: ['sh', '-c', 'for i in 1 2 3; do echo "[D1_STABLE] step=$i"; sleep 1; done'] };
const $ = (id) => document.getElementById(id);
const hide = (id, isHidden) => ($(id).hidden = Boolean(isHidden));

const { nodes } = HB;
const news = new Map(); // what has changed since the last announcement: name → state
const fresh = []; // records for the job's page, handed over once a frame
let page = null; // the job's page, or null
let form = null; // the form's page, or null
let replay = null;
let listHash = '#/'; // where the list was left
let selection = { jobs: [], counts: {} };
let passAt = 0;

/** Where the page is: '#/jobs/ID?n=1' is the path ['jobs', 'ID'] and n. */
const route = (HB.route = {
	read() {
		const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
		route.path = path.split('/').filter(Boolean).map(decoded);
		route.query = new URLSearchParams(query);
	},
	get: (name) => route.query.get(name) ?? (name === 'at' ? new URLSearchParams(location.search).get(name) : null),
	/** null takes a name out. No step in the browser's history. */
	set(change) {
		for (const [name, value] of Object.entries(change)) {
			if (value === null || value === '') route.query.delete(name);
			else route.query.set(name, value);
		}
		const query = route.query.toString();
		const search = change.at === null ? searchOf(nodes) : location.search;
		history.replaceState(null, '', `${location.pathname}${search}#/${route.path.map(encodeURIComponent).join('/')}${query && `?${query}`}`);
	},
});
function decoded(text) {
	try {
		return decodeURIComponent(text);
	} catch {
		return text;
	}
}
const searchOf = (list) => (/[?&]node=/.test(location.search) || list.length !== 1 || list[0].base !== origin ? `?${list.map(({ base }) => `node=${base}`).join('&')}` : '');

const open = (node, id) => (location.hash = HB.jobLink(node, id));
const toList = () => (location.hash = '#/');
const grid = new HB.JobGrid((job) => open(job.node ?? replay.node, job.job_id), (sort) => setFilter({ sort }));
const panel = new HB.NodesPanel(nodes, (bases) => {
	history.replaceState(null, '', `${location.pathname}?${bases.map((base) => `node=${base}`).join('&')}${location.hash}`);
	watch(bases);
	route.set({ n: null });
	go();
});

$('grid').append(grid.element);
document.body.append(panel.element);
for (const [show, name] of Object.entries(GROUPS)) $('groups').append(h('button', { class: 'chip', 'data-show': show, click: () => setFilter({ show: show === 'all' ? null : show }) }, `${name} `, h('b')));
$('lesson').after(HB.copyButton('Copy', () => $('lesson').textContent));
$('filter').addEventListener('input', () => setFilter({ q: $('filter').value }));
$('help-open').addEventListener('click', help);
$('nodes-open').addEventListener('click', () => panel.open());
$('replay-open').addEventListener('click', () => {
	const at = chosen()?.follower?.seq;
	if (at) route.set({ at: replay ? null : at });
	syncReplay();
});
$('more').addEventListener('click', () => shown().forEach((node) => node.readOlder(Infinity)));
$('token').addEventListener('submit', (event) => {
	event.preventDefault();
	nodes.find(({ badge }) => badge.name === 'token needed')?.setToken($('token-input').value.trim());
	$('token-input').value = '';
});
addEventListener('hashchange', go);
addEventListener('keydown', onKey);
addEventListener('pagehide', () => nodes.forEach((node) => node.remember()));
addEventListener('online', () => nodes.forEach((node) => node.stream.retry()));
setInterval(tick, 1000);
setInterval(announce, ANNOUNCE_MS);

/** Watches these nodes, in this order; those that are watched already stay as they are. */
function watch(bases) {
	const known = new Map(nodes.map((node) => [node.base, node]));
	const list = [...new Set(bases)].map((base) => known.get(base) ?? new HB.Node(base, { change: onChange, record: onRecord, aux: onAux, reset: onReset }));
	for (const node of nodes) if (!list.includes(node)) node.close();
	list.forEach((node, i) => (node.key = String(i)));
	nodes.splice(0, nodes.length, ...list);
	if (bases.length > 0) HB.memory.set('nodes', { list: bases });
}

/** The nodes that the list shows. */
const shown = () => nodes.filter(({ key }) => key === (route.get('n') ?? key));
const chosen = () => page?.node ?? shown()[0] ?? nodes[0];

function onChange(node) {
	if (node.badge.name !== node.told) {
		if (node.told) news.set(`Node ${node.name}`, node.badge.name);
		node.told = node.badge.name;
	}
	drawSoon();
}

function onRecord(node, record, job) {
	if (job && node.badge.name === 'live') news.set(job.job_id, job.state);
	if (page?.node === node && page.id === record.event.job_id) fresh.push(record);
	drawSoon();
}

function onAux(node, name, data) {
	const { event } = HB.chain.parse(data);
	if (page?.node !== node || event?.job_id !== page.id) return;
	if (name === 'log') page.log.poke();
	if (name === 'telemetry') page.telemetry(event);
}

function onReset(node) {
	if (page?.node === node) go();
}

/** To where the address says. */
function go() {
	const was = page ?? form;
	const wasList = !was && listHash;
	page?.close();
	form?.close();
	page = form = null;
	fresh.length = 0;
	route.read();
	const [place, id] = route.path;
	const isList = !(place === 'jobs' && id) && !(place === 'new' && nodes.length > 0);
	if (isList && was && location.hash.length < 3) {
		history.replaceState(null, '', listHash); // “back to the list” is back to where it was
		route.read();
	}
	hide('jobs', !isList);
	if (isList) {
		$('job').replaceChildren();
		if (document.activeElement !== $('filter')) $('filter').value = route.get('q') ?? '';
		if (was) grid.element.focus();
	} else {
		if (place === 'new') form = new HB.SubmitForm(nodes, open);
		else {
			const node = nodes.find(({ key }) => key === route.get('n')) ?? nodes.find(({ model }) => model.jobs.has(id)) ?? nodes[0];
			if (!node) return draw();
			grid.activeKey = `${node.key} ${id}`;
			page = new HB.JobPage(node, id, node.model.jobs.get(id));
		}
		$('job').replaceChildren((page ?? form).element);
		scrollTo(0, 0);
		(page ?? form).title.focus({ preventScroll: true });
	}
	syncReplay();
	draw(true);
}

/** Begins or ends the replay, as the address says. */
function syncReplay() {
	const node = chosen();
	const isWanted = HB.Replay && route.get('at') !== null && node?.follower;
	if (Boolean(isWanted) === Boolean(replay) && (!replay || replay.node === node)) return;
	replay?.close?.();
	if (replay) replay.node.replay = null;
	replay = isWanted ? Object.assign(new HB.Replay(node), { node }) : null;
	$('replay').replaceChildren(...(replay ? [replay.element] : []));
	replay?.on(() => {
		if (route.get('at') === null) syncReplay();
		drawSoon();
	});
	if (replay) node.replay = replay;
	draw(true);
}

function setFilter(change) {
	route.set(change);
	if (change.q === null) $('filter').value = '';
	grid.element.scrollTop = 0;
	draw(true);
}

let frame = null;
function drawSoon() {
	frame ??= requestAnimationFrame(() => {
		frame = null;
		draw();
	});
}

function draw(isAsked = false) {
	if (fresh.length > 0) page?.take(fresh.splice(0));
	if (!replay && route.get('at') !== null) syncReplay(); // its node may just have answered
	drawNodes();
	panel.draw();
	if (!page && !form) drawList(isAsked);
}

function drawNodes() {
	const isMany = nodes.length > 1;
	for (const node of nodes) node.view ??= h('li', { class: 'badge' }, h('b'), h('span', { class: 'note' }), h('span'));
	HB.reconcile($('badges'), nodes.map(({ view }) => view));
	for (const { view, name, words, badge, follower, base, info } of nodes) {
		const [title, seq, state] = view.children;
		setText(title, name);
		setText(seq, isMany || !follower ? '' : `event ${follower.seq.toLocaleString('en')}`);
		setText(state, words);
		setAttr(view, 'data-is', badge.name);
		setAttr(view, 'title', format.join(base, info && `hackbrain ${info.version}`, info && `up ${format.duration(info.uptime_s * 1000)}`));
	}
	const of = (node, words) => (isMany ? `${node.name}: ${words}` : words);
	const troubles = nodes.flatMap((node) => [node.doubt && [node, `${node.name} ${node.advice}`], node.badge.message && [node, of(node, node.badge.message)]]).filter(Boolean);
	if (nodes.length === 0) troubles.push([{}, 'Name a node: add ?node=http://127.0.0.1:4005 to this address, or press Nodes; run that node with --allow-origin null.']);
	const said = JSON.stringify(troubles.map(([, words]) => words));
	if (said !== $('trouble').said) {
		$('trouble').said = said;
		$('trouble').replaceChildren(...troubles.map(([node, words]) => h('p', null, words, ' ', node.doubt && words.includes('--expect') && h('button', { click: () => node.accept() }, 'Accept this ledger'))));
	}
	hide('trouble', troubles.length === 0);
	const without = nodes.filter(({ info }) => info?.engine?.available === false);
	hide('engine', without.length === 0);
	setText($('engine-why'), without.map((node) => of(node, node.info.engine.message ?? '')).join(' '));
	const broken = nodes.filter(({ isBroken }) => isBroken);
	hide('broken', broken.length === 0);
	setText($('broken-where'), isMany ? `${broken.map(({ name }) => name)}: ` : '');
	const locked = nodes.find(({ badge }) => badge.name === 'token needed');
	hide('token', !locked);
	setText($('token-of'), locked ? ` for ${locked.name}` : '');
	hide('waiting', nodes.some(({ follower }) => follower) || troubles.length > 0);
}

function drawList(isAsked) {
	listHash = location.hash || '#/';
	const list = shown();
	const { text, show, sort } = { text: route.get('q') ?? '', show: route.get('show') ?? 'all', sort: route.get('sort') };
	const began = performance.now();
	if (isAsked || began >= passAt) {
		selection = HB.model.select(replay ? [replay.model] : list.map(({ model }) => model), { text, show, sort }, Date.now());
		passAt = performance.now() + SHARE * (performance.now() - began);
	} else setTimeout(drawSoon, passAt - began);
	const { jobs, counts } = selection;
	const held = list.reduce((sum, { model }) => sum + model.order.length, 0);
	const isEmpty = held === 0 && !replay;
	const teacher = list.find(({ follower }) => follower);
	hide('empty', !isEmpty || !teacher);
	hide('list', isEmpty);
	if (isEmpty) return setText($('lesson'), teacher?.api.curl(LESSON) ?? '');
	for (const button of $('groups').children) {
		setText(button.lastChild, counts[button.dataset.show].toLocaleString('en'));
		setAttr(button, 'aria-pressed', button.dataset.show === show);
	}
	drawChips();
	grid.show(jobs, sort, list.length > 1);
	hide('none', jobs.length > 0);
	const left = list.some(({ older }) => older);
	const all = list.reduce((sum, { info, model }) => sum + Math.max(model.order.length, ...(info ? [Object.values(info.jobs).reduce((a, b) => a + b, 0)] : [])), 0);
	setText($('foot'), `${left ? `The newest ${held.toLocaleString('en')} of ${format.count(all, 'job')} are read; the filter sees those` : format.count(held, 'job')} · times in UTC`);
	hide('more', !left || list.some(({ isReading }) => isReading));
}

/** One for each node, where there are several. */
function drawChips() {
	hide('chips', nodes.length < 2);
	const chip = (node) => (node.chip ??= h('button', { class: 'chip', click: () => setFilter({ n: route.get('n') === node.key ? null : node.key }) }, h('span'), ' ', h('b')));
	HB.reconcile($('chips'), nodes.map(chip));
	for (const { chip, key, name, model } of nodes) {
		setText(chip.firstChild, name);
		setText(chip.lastChild, model.order.length.toLocaleString('en'));
		setAttr(chip, 'aria-pressed', route.get('n') === key);
	}
}

/** What goes on where nothing is drawn, too: a hidden tab has a title. */
function tick() {
	if (page) page.tick();
	else if (!form) grid.list.refresh();
	const active = nodes.reduce((sum, { info }) => sum + ['RUNNING', 'D1_STABLE', 'CRASH', 'RECOVERY', 'STOPPING', 'COMPLETED'].reduce((n, state) => n + (info?.jobs[state] ?? 0), 0), 0);
	document.title = `${page ? `${page.id} · ` : active ? `${active} active · ` : ''}HackBrain Studio`;
}

function announce() {
	const [[name, state]] = [...news, ['', '']];
	if (name) setText($('said'), news.size === 1 ? `${name} is ${state}` : `${news.size} jobs or nodes changed`);
	news.clear();
}

function help() {
	$('keys').replaceChildren(...HB.keys.list());
	$('help').showModal();
}

function toFilter() {
	if (page || form) toList();
	setTimeout(() => $('filter').focus());
}

function move(event) {
	grid.element.focus();
	grid.move(event.key === 'j' ? 1 : -1);
}

HB.keys.unshift(
	[['?'], 'show the keys', 'Everywhere', help],
	[['/'], 'filter the jobs', 'Everywhere', toFilter],
	[['Escape'], 'back; out of a filter', 'Everywhere', back],
	[['j', 'k'], 'next, previous job', 'List of jobs', move],
	[['Enter'], 'open the job', 'List of jobs'],
	[['j', 'k'], 'next, previous event', 'A job'],
	[['Enter'], 'the proof of an event', 'A job'],
	[['l'], 'to the output', 'A job'],
);

function back() {
	if (page || form) toList();
	else setFilter({ q: null, show: null, n: null });
}

function onKey(event) {
	const { key, target } = event;
	if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
	if (target.closest('input, select, textarea')) {
		if (key !== 'Escape' || target !== $('filter')) return;
		setFilter({ q: null });
		grid.element.focus();
	} else if (!replay?.key?.(key, event) && !page?.key(key, event) && !HB.keys.run(['Everywhere', ...(page || form ? [] : ['List of jobs'])], event)) return;
	event.preventDefault();
}

const typed = new URLSearchParams(location.search).getAll('node').join(',');
watch(HB.addresses(typed || (/^http/.test(origin) ? origin : (HB.memory.get('nodes').list ?? []).join())));
go();
}
