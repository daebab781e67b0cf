/* The entry: folds the node's stream into the model, and routes between the list and a job. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const FIRST_JOBS = 200; // for the first paint
const PAGE_JOBS = 500; // per further page
const LOADED_JOBS = 20_000; // at most
const NODE_POLL_MS = 15_000;
const ANNOUNCE_MS = 5000; // to screen readers, at most one in this time
const GROUPS = { all: 'All', waiting: 'Waiting', active: 'Active', sealed: 'Sealed', failed: 'Failed', cancelled: 'Cancelled' };
const $ = (id) => document.getElementById(id);
const hide = (id, isHidden) => ($(id).hidden = isHidden);

const params = new URLSearchParams(location.search);
const base = (params.get('node') ?? location.origin).replace(/\/+$/, '');
const api = new HB.Api(base);
const model = HB.model.create();
const node = { key: '0', name: '', base, api, get follower() { return follower; } };
const news = new Map(); // job id → state, since the last announcement
const filter = { text: '', show: 'all' };
let page = null; // the job's page, or null: the list
let older = null; // cursor of the jobs not read yet
let follower = null; // null until the first jobs are here
const open = (id) => (location.hash = `#/jobs/${encodeURIComponent(id)}`);
const grid = new HB.JobGrid(open);

$('grid').append(grid.element);
for (const [show, name] of Object.entries(GROUPS)) $('groups').append(h('button', { class: 'chip', 'data-show': show, click: () => setFilter({ show }) }, `${name} `, h('b')));
const lesson = api.curl({ job_id: 'hello', image_hash: 'busybox:latest', command: ['sh', '-c', 'for i in 1 2 3; do echo "[D1_STABLE] step=$i"; sleep 1; done'] });
setText($('lesson'), lesson);
$('lesson').after(HB.copyButton('Copy', () => lesson));
$('filter').addEventListener('input', () => setFilter({ text: $('filter').value }));
$('help-open').addEventListener('click', () => $('help').showModal());
addEventListener('hashchange', route);
addEventListener('keydown', onKey);
setInterval(() => (page ? page.tick() : grid.list.refresh()), 1000);
setInterval(announce, ANNOUNCE_MS);

if (/^https?:\/\/[^/]+$/.test(base)) start();
else onState({ name: 'offline', message: 'Name a node: add ?node=http://127.0.0.1:4005 to this address, and run that node with --allow-origin null.' });

function start() {
	const stream = new HB.Stream(api, { head: onHead, record: onRecord, aux: onAux, state: onState });
	$('token').addEventListener('submit', (event) => {
		event.preventDefault();
		api.token = $('token-input').value.trim();
		hide('token', true);
		stream.retry();
	});
	setInterval(readNode, NODE_POLL_MS);
	route();
}

/** Before every connection. The first loads the list; later ones see whether the ledger is still the same. */
async function onHead(head) {
	if (follower && (head.seq < follower.seq || (head.seq === follower.seq && head.hash !== follower.hash))) {
		throw new HB.ApiError(0, `This is not the ledger it was: run “hackbrain verify --expect ${follower.seq}:${follower.hash}” on the node.`);
	}
	if (!follower) {
		// The head first, then the list: what happens between comes twice, and `seq` sorts it out. Otherwise it would be lost.
		await readJobs(FIRST_JOBS);
		model.seq = head.seq;
		follower = new HB.chain.Follower(head);
	}
	readNode();
	draw();
	return follower.seq;
}

/** A page of jobs, and in the background all that follow. */
async function readJobs(limit) {
	const { jobs, next } = await api.json(`/api/jobs?limit=${limit}${older ? `&after=${older}` : ''}`);
	HB.model.merge(model, jobs);
	older = next;
	drawSoon();
	if (next && model.order.length < LOADED_JOBS) readJobs(PAGE_JOBS).catch(() => {}); // the list's foot tells
}

async function readNode() {
	const node = await api.json('/api/node').catch(() => null); // if it fails, the badge tells
	if (!node) return;
	setText($('node'), node.name);
	setAttr($('node'), 'title', `${base} · hackbrain ${node.version} · up ${format.duration(node.uptime_s * 1000)}`);
	hide('engine', node.engine?.available !== false);
	setText($('engine-why'), node.engine?.message ?? '');
}

function onRecord(record) {
	const { event } = record;
	if (!follower.accept(record)) hide('broken', false);
	const job = HB.model.fold(model, event);
	if (!event.job_id) readNode();
	if (job && $('badge').dataset.is === 'live') news.set(job.job_id, job.state);
	if (page?.id === event.job_id) page.take([record]);
	drawSoon();
}

function onAux(name, data) {
	if (name === 'log' && page && HB.chain.parse(data).event?.job_id === page.id) page.log.poke();
}

function onState({ name, since, behind, message }) {
	const at = since ? ` since ${new Date(since).toISOString().slice(11, 19)} UTC` : '';
	setAttr($('badge'), 'data-is', name);
	setText($('badge'), name + (behind ? `, ${format.count(behind, 'event')} behind` : name === 'stale' || name === 'offline' ? at : ''));
	hide('trouble', !message);
	setText($('trouble'), message ?? '');
	if (name === 'token needed') hide('token', false);
}

function route() {
	const id = /^#\/jobs\/(.+)$/.exec(location.hash)?.[1];
	const wasPage = page;
	const isNew = location.hash.startsWith('#/new');
	page?.close();
	page = null;
	hide('jobs', id || isNew);
	if (isNew) $('job').replaceChildren(new HB.SubmitForm([node], (node, id) => open(id)).element);
	else if (id) {
		grid.activeId = decodeURIComponent(id);
		page = new HB.JobPage(node, grid.activeId, model.jobs.get(grid.activeId));
		$('job').replaceChildren(page.element);
		scrollTo(0, 0);
		page.title.focus({ preventScroll: true });
	} else {
		$('job').replaceChildren();
		if (wasPage) grid.element.focus();
	}
	draw();
}

function setFilter(change) {
	Object.assign(filter, change);
	$('filter').value = filter.text;
	grid.element.scrollTop = 0;
	draw();
}

let frame = null;
function drawSoon() {
	frame ??= requestAnimationFrame(() => {
		frame = null;
		draw();
	});
}

function draw() {
	const { jobs, counts } = HB.model.select(model, filter);
	const total = model.order.length;
	if (follower) setText($('head'), `event ${follower.seq.toLocaleString('en')}`);
	document.title = `${page ? `${page.id} · ` : counts.active ? `${counts.active} active · ` : ''}HackBrain Studio`;
	hide('waiting', follower);
	hide('empty', !follower || total > 0);
	hide('list', total === 0);
	for (const button of $('groups').children) {
		setText(button.lastChild, counts[button.dataset.show].toLocaleString('en'));
		setAttr(button, 'aria-pressed', button.dataset.show === filter.show);
	}
	grid.show(jobs);
	hide('none', jobs.length > 0);
	setText($('foot'), `${format.count(total, 'job')}${older ? ' read, older ones exist' : ''} · times in UTC`);
}

function announce() {
	const [[id, state]] = [...news, ['', '']];
	if (id) setText($('said'), news.size === 1 ? `${id} is ${state}` : `${news.size} jobs changed`);
	news.clear();
}

function onKey(event) {
	const { key, target } = event;
	if (event.ctrlKey || event.metaKey || event.altKey || $('help').open) return;
	if (target.closest('input, select, textarea')) {
		if (key !== 'Escape' || target !== $('filter')) return;
		setFilter({ text: '' });
		grid.element.focus();
	} else if (key === '?') $('help').showModal();
	else if (key === '/') {
		if (page) location.hash = '#/';
		setTimeout(() => $('filter').focus());
	} else if (page) {
		if (!page.key(key)) return;
	} else if (key === 'j' || key === 'k') {
		grid.element.focus();
		grid.move(key === 'j' ? 1 : -1);
	} else if (key === 'Escape') setFilter({ text: '', show: 'all' });
	else return;
	event.preventDefault();
}
}
