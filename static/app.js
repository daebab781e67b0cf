/* The entry: which nodes are watched, and the way between the list, a job and the form. */
'use strict';
{
const { h, setText, setAttr, format, nodes } = HB;
const ANNOUNCE_MS = 5000; // to screen readers, at most one in this time
const REST = 8; // a pass over all jobs waits so many times as long as the last one took
const GROUPS = { all: 'All', waiting: 'Waiting', active: 'Active', sealed: 'Sealed', failed: 'Failed', cancelled: 'Cancelled' };
const LESSON = { job_id: 'hello', image_hash: 'busybox:latest', command: ['sh', '-c', 'for i in 1 2 3; do echo "[D1_STABLE] step=$i"; sleep 1; done'] };
const NAME_ONE = 'Name a node: press Nodes, or add ?node=http://127.0.0.1:4005 to this address. Run that node with --allow-origin null.';
const LOST = 'Parts of this page could not be read; they are asked for again each second. Is the node that it came from still there?';
/** The parts that the list can do without, in order; what has come is taken out. */
const later = new Set(['timeline', 'worker', 'check', 'trace', 'charts', 'log', 'graph', 'artifacts', 'actions', 'events', 'job', 'replay']);
const news = new Map(); // since the last announcement: name → state
const fresh = []; // records for the job's page, handed over once a frame
let isHeld = false; // what the address wants waits for parts
let coming = null; // they are being read
let page = null; // a job's page, or the form's, or null: the list
let replay = null;
let left = {}; // where the list was left
let selection;
let passAt = 0;
const $ = (id) => document.getElementById(id);
const hide = (id, isHidden) => ($(id).hidden = Boolean(isHidden));
const on = (id, type, run) => $(id).addEventListener(type, run);
const sum = (list, value) => list.reduce((total, one) => total + value(one), 0);

/** '#/jobs/ID?n=1' is the path ['jobs', 'ID'] and n. */
const route = (HB.route = {
	read() {
		const [path, query] = location.hash.replace(/^#\/?/, '').split('?');
		route.path = path.split('/').filter(Boolean).map((part) => decodeURIComponent(part.replace(/%(?![\da-f]{2})/gi, '%25')));
		route.query = new URLSearchParams(query);
	},
	get: (name) => route.query.get(name) ?? (name === 'at' ? new URLSearchParams(location.search).get(name) : null),
	set(change, search = location.search) {
		for (const [name, value] of Object.entries(change)) {
			if (value) route.query.set(name, value);
			else route.query.delete(name);
		}
		if (change.at === null) search = search.replace(/([?&])at=[^&]*&?/, '$1').replace(/[?&]$/, '');
		const query = String(route.query);
		history.replaceState(null, '', `${location.pathname}${search}#/${route.path.map(encodeURIComponent).join('/')}${query && `?${query}`}`);
	},
});

const open = (node, id) => (location.hash = HB.jobLink(node, id));
const toList = () => (location.hash = '#/');
const grid = new HB.JobGrid((job) => open(job.node, job.job_id), (sort) => setFilter({ sort }));
const panel = new HB.NodesPanel((bases) => {
	watch(bases);
	route.set({ n: null }, `?${bases.map((base) => `node=${base}`).join('&')}`);
	go();
});

/** Watches these nodes, in this order; those that are watched already stay. */
function watch(bases) {
	const list = [...new Set(bases)].map((base) => nodes.find((node) => node.base === base) ?? new HB.Node(base, { change: onChange, record: onRecord, aux: onAux, reset: () => go() }));
	for (const node of nodes) if (!list.includes(node)) node.close();
	nodes.splice(0, Infinity, ...list);
	nodes.forEach((node, i) => (node.key = String(i)));
	HB.memory.set('nodes', { list: bases });
}

const shown = () => nodes.filter(({ key }) => key === (route.get('n') ?? key));
const chosen = () => page?.node ?? shown()[0];

function onChange(node) {
	if (node.told && node.told !== node.badge.name) news.set(node.name, node.badge.name);
	node.told = node.badge.name;
	drawSoon();
}

function onRecord(node, record, job) {
	if (job && node.told === 'live') news.set(job.job_id, job.state);
	if (page?.node === node && page.id === record.event.job_id) fresh.push(record);
	drawSoon();
}

function onAux(node, name, data) {
	const { event } = HB.chain.parse(data);
	if (page?.node !== node || event?.job_id !== page.id) return;
	if (name === 'log') page.log.poke();
	if (name === 'telemetry') page.telemetry(event);
}

/** Reads the parts that are not here yet: early, since the node may be gone later. */
function readLater() {
	const names = [...later];
	coming ??= Promise.allSettled(names.map(HB.script)).then((all) => {
		coming = null;
		// Those behind one that is lacking may have run without what they need: they are run again.
		const lacking = all.findIndex(({ status }) => status === 'rejected');
		for (const name of lacking < 0 ? names : names.slice(0, lacking)) later.delete(name);
		if (isHeld && lacking < 0) go();
		else if (isHeld) $('job').replaceChildren(h('p', { class: 'notice bad' }, LOST));
	});
}

const nodeOf = (id) => nodes.find(({ key }) => key === route.get('n')) ?? nodes.find(({ model }) => model.jobs.has(id)) ?? nodes[0];

/** To where the address says; within the job that is open where it names that. */
function go(change) {
	route.read();
	const [place, id] = route.path;
	if (change && id && page?.id === id && page.node === nodeOf(id) && !replay && !route.get('at')) return page.follow();
	isHeld = later.size > 0 && Boolean(route.path.length > 0 || route.get('at'));
	hide('jobs', isHeld);
	if (isHeld) return readLater();
	const was = page;
	page?.close?.();
	fresh.length = 0;
	page = null;
	if (place === 'new' && nodes.length > 0) page = new HB.SubmitForm(nodes, open);
	else if (place === 'jobs' && id && nodes.length > 0) {
		const node = nodeOf(id);
		grid.activeKey = `${node.key} ${id}`;
		page = new HB.JobPage(node, id, node.model.jobs.get(id));
	} else if (was && location.hash.length < 3) route.set(left); // back to where it was left
	if (replay && !route.get('at')) route.set({ at: replay.seq });
	hide('jobs', page);
	$('job').replaceChildren(...(page ? [page.element] : []));
	if (page) {
		scrollTo(0, 0);
		page.title.focus({ preventScroll: true });
	} else if (was) grid.element.focus();
	if (document.activeElement !== $('filter')) $('filter').value = route.get('q') ?? '';
	drawReplay();
	draw(true);
}

/** Begins the replay where the address says so; the page follows it. */
function drawReplay() {
	const node = chosen();
	if (!replay && route.get('at') && node?.follower && later.size === 0) {
		replay = new HB.Replay(node);
		replay.on((now) => {
			if (now.isClosed) replay = null;
			drawReplay();
			draw(true);
		});
		$('replay').replaceChildren(replay.element);
	}
	if (page?.asOf) page.asOf((replay?.node === node && replay.seq) || null);
}

function setFilter(change) {
	if (page) toList();
	route.set(change);
	if (change.q === null) $('filter').value = '';
	grid.element.scrollTop = 0;
	draw(true);
}

let frame = null;
function drawSoon() {
	frame ??= requestAnimationFrame(() => draw());
}

function draw(isAsked) {
	frame = null;
	if (fresh.length > 0) page?.take(fresh.splice(0));
	if (!replay && route.get('at')) drawReplay(); // its node may just have answered
	drawNodes();
	if (!page) drawList(isAsked);
}

function drawNodes() {
	const isMany = nodes.length > 1;
	for (const node of nodes) {
		const press = () => (nodes.length > 1 ? setFilter({ n: route.get('n') === node.key ? null : node.key }) : panel.open());
		node.view ??= h('button', { class: 'badge', click: press }, h('b'), h('span', { class: 'note' }), h('span'));
		const { view, name, words, badge, follower, base, key } = node;
		[name, isMany || !follower ? '' : `event ${format.number(follower.seq)}`, words].forEach((text, i) => setText(view.children[i], text));
		setAttr(view, 'data-is', badge.name);
		setAttr(view, 'title', base);
		setAttr(view, 'aria-pressed', isMany ? route.get('n') === key : null);
	}
	HB.reconcile($('badges'), nodes.map(({ view }) => view));
	HB.reconcile($('trouble'), nodes.length ? nodes.map((node) => node.notice(isMany)).filter(Boolean) : [(panel.hint ??= h('p', { class: 'notice' }, NAME_ONE))]);
	panel.draw();
	hide('waiting', nodes.some(({ follower }) => follower) || $('trouble').firstChild);
}

function drawList(isAsked) {
	const [q, show, sort, n] = ['q', 'show', 'sort', 'n'].map(route.get);
	left = { q, show, sort, n };
	const list = shown();
	const asOf = replay?.history.times[replay.seq - 1];
	const began = performance.now();
	if (isAsked || began >= passAt) {
		selection = HB.model.select(replay ? [replay.model] : list.map(({ model }) => model), { text: q, show: show ?? 'all', sort }, asOf ?? Date.now());
		passAt = performance.now() + REST * (performance.now() - began);
	} else setTimeout(drawSoon, passAt - began);
	const { jobs, counts } = selection;
	const held = sum(list, ({ model }) => model.order.length);
	const teacher = list.find(({ follower }) => follower);
	const isEmpty = held === 0 && !replay;
	hide('empty', !isEmpty || !teacher);
	hide('list', isEmpty);
	if (isEmpty) setText($('lesson'), teacher?.api.curl(LESSON) ?? '');
	for (const button of $('groups').children) {
		setText(button.lastChild, format.number(counts[button.name]));
		setAttr(button, 'aria-pressed', button.name === (show ?? 'all'));
	}
	grid.show(jobs, sort, list.length > 1 && !replay, asOf);
	hide('none', jobs.length > 0);
	const isPart = list.some(({ older }) => older);
	const all = sum(list, ({ info, model }) => Math.max(model.order.length, sum(Object.values(info?.jobs ?? {}), Number)));
	setText($('foot'), `${replay ? `As of event ${format.number(replay.seq)}` : isPart ? `The newest ${format.number(held)} of ${format.count(all, 'job')} are read: the list and the filter have those` : format.count(held, 'job')} · times in UTC`);
	hide('more', replay || !isPart || list.some(({ isReading }) => isReading));
}

/** Each second: what changes with the clock alone. */
function tick() {
	if (later.size > 0 && (isHeld || nodes.some(({ follower, isReading }) => follower && !isReading))) readLater();
	if (page) page.tick?.();
	else grid.list.refresh();
	if (document.hidden) draw(); // there are no frames
	const active = selection?.counts.active;
	document.title = `${page?.id ? `${page.id} · ` : active ? `${active} active · ` : ''}HackBrain Studio`;
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
	if (page) toList();
	setTimeout(() => $('filter').focus());
}

function back() {
	if (page) toList();
	else if (replay) replay.close();
	else setFilter({ q: null, show: null, n: null });
}

function move({ key }) {
	grid.element.focus();
	grid.move(key === 'j' ? 1 : -1);
}

const inTime = (event) => page.parts.find((part) => part instanceof HB.Trace).pressed(event);
HB.keys.add('Everywhere', [['?', 'the keys', help], ['/', 'filter the jobs', toFilter], ['Escape', 'back; out of a replay, a filter', back]]);
HB.keys.add('List of jobs', [['j k', 'next, previous job', move], ['Enter', 'open it']]);
HB.keys.add('A job', [['j k', 'next, previous event'], ['Enter', 'its proof'], ['+ - 0', 'time: closer, wider, all of it', inTime], [', .', 'time: previous, next mark', inTime]]);
HB.keys.add('Its output', [['l', 'to the output'], ['f g', 'find; go to a line'], ['n N', 'next, previous match'], ['] [', 'next, previous D1_STABLE'], ['End', 'follow it']]);
HB.keys.add('Replay', [['← →', 'one event'], ['PageUp PageDown', 'a hundred'], ['Home End', 'first, last'], ['Space', 'play, pause']]);

function onKey(event) {
	const { key, target } = event;
	if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
	if (target.closest('input, select, textarea')) {
		if (key !== 'Escape' || target !== $('filter')) return;
		setFilter({ q: null });
		grid.element.focus();
	} else if (!page?.key?.(key, event) && !HB.keys.run(['Everywhere', page?.parts ? 'A job' : page ? '' : 'List of jobs'], event)) return;
	event.preventDefault();
}

$('grid').append(grid.element);
document.body.append(panel.element);
for (const [name, label] of Object.entries(GROUPS)) $('groups').append(h('button', { class: 'chip', name, click: () => setFilter({ show: name === 'all' ? null : name }) }, `${label} `, h('b')));
$('lesson').after(HB.copyButton('Copy', () => $('lesson').textContent));
on('filter', 'input', () => setFilter({ q: $('filter').value }));
on('help-open', 'click', help);
on('nodes-open', 'click', () => panel.open());
on('more', 'click', () => shown().forEach((node) => node.readOlder(Infinity)));
on('replay-open', 'click', () => {
	if (replay) return replay.close();
	route.set({ at: chosen()?.follower?.seq });
	if (later.size > 0) go();
	else drawReplay();
});
addEventListener('hashchange', go);
for (const type of ['beforeprint', 'afterprint']) addEventListener(type, () => page?.paper?.(type[0] === 'b'));
addEventListener('keydown', onKey);
addEventListener('pagehide', () => nodes.forEach((node) => node.remember()));
addEventListener('online', () => nodes.forEach((node) => node.stream.retry()));
setInterval(tick, 1000);
setInterval(announce, ANNOUNCE_MS);

const typed = new URLSearchParams(location.search).getAll('node').join();
watch(HB.addresses(typed || (/^http/.test(origin) ? origin : String(HB.memory.get('nodes').list ?? ''))));
go();
}
