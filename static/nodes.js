/* The nodes that are watched: each has its own link, model and badge, so that a dead one holds up no other. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const FIRST_JOBS = 100; // about 30 kB: the first rows
const PAGE_JOBS = 2500; // 700 kB
const HELD_JOBS = 50_000; // read without being asked
const SHOW_MS = 300; // between two looks at a list that is being read
const INFO_MS = 15_000;
const REMEMBER_MS = 2000;

/** Remembered of a node, by its address: {head: {seq, hash}, checked: {seq, hash}}. */
const nodes = [];
const kept = {}; // where there is no storage
const memory = {
	get(base) {
		try {
			return JSON.parse(localStorage.getItem(`hackbrain ${base}`)) ?? kept[base] ?? {};
		} catch {
			return kept[base] ?? {};
		}
	},
	set(base, change) {
		kept[base] = { ...memory.get(base), ...change };
		try {
			localStorage.setItem(`hackbrain ${base}`, JSON.stringify(kept[base]));
		} catch {} // then for as long as the page lives
	},
};

/** Tokens end with the tab: other pages from files share localStorage. */
function token(base, value) {
	try {
		if (value !== undefined) sessionStorage.setItem(`hackbrain token ${base}`, value);
		return sessionStorage.getItem(`hackbrain token ${base}`) ?? '';
	} catch {
		return value ?? '';
	}
}

/** Once what is known stands on the screen; a tab that nobody looks at has no frames. */
const drawn = () =>
	new Promise((then) => {
		setTimeout(then, 250);
		new PerformanceObserver((_, seen) => then(seen.disconnect())).observe({ type: 'largest-contentful-paint' });
	});

class Node {
	link = { name: 'connecting' };
	follower = null; // null until the first jobs are here
	doubt = null; // {name, seq, hash}: the event that is not there any more
	info = null;
	older = null; // cursor of the jobs not read yet
	isBroken = false;

	/** on: {change(node), record(node, record, job), aux(node, name, data), reset(node)}. */
	constructor(base, on) {
		Object.assign(this, { base, on, name: base.replace(/^https?:\/\//, ''), api: new HB.Api(base), model: HB.model.create(this) });
		this.api.token = token(base);
		this.stream = new HB.Stream(this.api, {
			first: () => (this.follower ? null : this.firstJobs()),
			head: (head) => this.connected(head),
			record: (record) => this.take(record),
			aux: (name, data) => on.aux(this, name, data),
			state: (link) => on.change(Object.assign(this, { link })),
		});
		this.timers = [setInterval(() => this.readInfo(), INFO_MS), setInterval(() => this.remember(), REMEMBER_MS)];
	}

	close() {
		this.remember();
		this.stream.close();
		this.timers.forEach(clearInterval);
	}

	get badge() {
		return this.doubt ? { ...this.link, name: this.doubt.name } : this.link;
	}

	get words() {
		const { name, since, behind } = this.badge;
		if (name === 'catching up') return `${name}, ${format.number(behind)} behind`;
		return /^(stale|offline)$/.test(name) ? `${name} since ${format.moment(new Date(since).toISOString(), Date.now())}` : name;
	}

	/** Before every connection: is it still the ledger it was? Gives the seq to go on after. */
	async connected(head) {
		this.remember();
		const known = memory.get(this.base).head;
		const name = await this.differs(known, head);
		this.doubt = name ? { name, ...known } : null;
		const isOther = this.follower && (await this.differs(this.follower, head));
		if (!this.follower || isOther) {
			Object.assign(this, { follower: null, older: null, isBroken: false, whole: null, model: HB.model.create(this) });
			if (isOther) await this.firstJobs();
			// Where the list is newer than the head, what happened between comes twice, and `seq` sorts it out.
			this.takeJobs(this.jobs);
			this.model.seq = head.seq;
			this.follower = new HB.chain.Follower(head);
			if (isOther) this.on.reset(this);
		}
		this.readInfo();
		this.readOlder();
		this.on.change(this);
		return this.follower.seq;
	}

	/** What became of a known event: '' where it is still there. */
	async differs(known, { seq, hash }) {
		if (!known) return '';
		if (seq < known.seq) return 'rolled back';
		if (seq > known.seq) {
			const [record] = await this.api.lines(`/api/ledger?from=${known.seq}&limit=1`);
			hash = record && HB.sha256(record.bytes);
		}
		return hash === known.hash ? '' : 'forked';
	}

	/** The newest jobs; gives their head. */
	async firstJobs() {
		return (this.jobs = await this.page(FIRST_JOBS)).head;
	}

	take(record) {
		const { event } = record;
		if (!this.follower.accept(record)) this.isBroken = true;
		if (event.seq === this.doubt?.seq) this.doubt.name = 'forked'; // it was rolled back, and has come as far again
		const job = HB.model.fold(this.model, event);
		if (!event.job_id) this.readInfo();
		this.on.record(this, record, job);
	}

	page(limit, after) {
		return this.api.json(`/api/jobs?brief=yes&limit=${limit}${after ? `&after=${after}` : ''}`);
	}

	takeJobs({ jobs, next }) {
		HB.model.merge(this.model, jobs);
		this.older = next;
	}

	async readOlder(most = HELD_JOBS) {
		if (this.isReading) return;
		this.isReading = true;
		try {
			await drawn();
			let told = performance.now();
			for (let coming; this.older && this.model.order.length < most; ) {
				const { model } = this;
				const page = await (coming ?? this.page(PAGE_JOBS, this.older));
				coming = null;
				if (model !== this.model) continue; // it has another ledger now, and goes on with that
				// The next one is under way while this one is taken in.
				if (page.next && model.order.length + PAGE_JOBS < most) coming = this.page(PAGE_JOBS, page.next);
				coming?.catch(() => {}); // told when it is awaited
				this.takeJobs(page);
				if (performance.now() - told < SHOW_MS) continue;
				told = performance.now();
				this.on.change(this);
			}
		} catch {} // it is read again with the next connection; the list's foot tells
		this.isReading = false;
		this.on.change(this);
	}

	async readInfo() {
		const info = await this.api.json('/api/node').catch(() => null); // if it fails, the badge tells
		if (info) this.on.change(Object.assign(this, { info, name: info.name }));
	}

	remember() {
		const { follower, doubt, isBroken, base } = this;
		if (!follower || doubt || isBroken || follower.seq <= memory.get(base).head?.seq) return;
		memory.set(base, { head: { seq: follower.seq, hash: follower.hash } });
	}

	/** From now on this ledger is the one. */
	accept() {
		memory.set(this.base, { head: null, checked: null });
		this.doubt = this.whole = null;
		this.remember();
		this.on.change(this);
	}

	/** What is wrong, and what to do about it. */
	get troubles() {
		const { doubt, link, isBroken, info, follower } = this;
		const said = [];
		if (doubt) {
			const what = doubt.name === 'forked' ? `its event ${doubt.seq} is not the one that this browser has seen` : `its ledger ends at event ${follower?.seq}, and this browser has seen ${doubt.seq}`;
			said.push(`This ledger is ${doubt.name}: ${what}. Run “hackbrain verify --expect ${doubt.seq}:${doubt.hash}” on the node. If a backup was put back on purpose, accept its ledger.`);
		}
		if (isBroken) said.push('The hash chain is broken in the live stream. Run “hackbrain verify” on the node.');
		if (link.message) said.push(link.message);
		if (info?.engine?.available === false) said.push(`The container engine is unavailable: ${info.engine.message}. Jobs wait until it is back; see “docker info” on the node.`);
		return said;
	}

	/** The troubles as an element, or null, with what can be done here. */
	notice(isNamed) {
		const { troubles, name, doubt, link } = this;
		const said = `${isNamed ? `${name}: ` : ''}${troubles.join(' ')}`;
		if (troubles.length === 0) return null;
		if (said !== this.said) this.note = h('div', { class: 'notice bad' }, said, doubt && h('button', { click: () => this.accept() }, 'Accept this ledger'), link.name === 'token needed' && this.tokenForm());
		this.said = said;
		return this.note;
	}

	tokenForm() {
		const input = h('input', { type: 'password', autocomplete: 'off', placeholder: 'Access token', 'aria-label': `Access token of ${this.base}` });
		const submit = (event) => {
			event.preventDefault();
			this.api.token = input.value.trim();
			token(this.base, this.api.token);
			input.value = '';
			this.stream.retry();
		};
		return h('form', { submit }, input, h('button', null, 'Connect'));
	}
}

/** 'system', 'light' or 'dark': sets it, and tells which it is. */
function theme(name = memory.get('theme').name ?? 'system') {
	memory.set('theme', { name });
	return (document.documentElement.dataset.theme = name);
}

/** The addresses in a text, without what is none. */
const addresses = (text) => [...new Set(text.split(/[\s,]+/).map((one) => /^https?:\/\/[^/?#]+/.exec(one)?.[0]).filter(Boolean))];

/** The dialog that adds and removes nodes. change(bases) is called with the new list. */
class NodesPanel {
	constructor(change) {
		Object.assign(this, { change });
		this.rows = h('ul');
		this.input = h('input', { required: '', placeholder: 'http://127.0.0.1:4005', 'aria-label': 'Address of a node', spellcheck: false });
		const choice = h('select', { change: () => theme(choice.value) }, ['system', 'light', 'dark'].map((name) => h('option', null, name)));
		choice.value = theme();
		this.answer = h('p', { class: 'note', role: 'status' }, 'A node answers this page only if it runs with ', h('code', null, `--allow-origin ${origin}`));
		this.element = h(
			'dialog',
			{ id: 'panel', 'aria-labelledby': 'panel-title' },
			h('form', { method: 'dialog' }, h('h2', { id: 'panel-title' }, 'Nodes'), h('button', { class: 'quiet' }, 'Close')),
			this.rows,
			h('form', { submit: (event) => this.add(event) }, this.input, h('button', null, 'Add')),
			this.answer,
			h('label', { class: 'note' }, 'Colours ', choice),
		);
	}

	open() {
		this.element.showModal();
		this.draw();
	}

	add(event) {
		event.preventDefault();
		const found = addresses(this.input.value);
		if (found.length === 0) return setText(this.answer, 'An address begins with http:// or https://, as in http://127.0.0.1:4005.');
		this.input.value = '';
		this.change([...nodes.map(({ base }) => base), ...found]);
	}

	draw() {
		if (this.element.open) HB.reconcile(this.rows, nodes.map((node) => this.row(node)));
	}

	row(node) {
		const { base, name, follower, badge, info, words } = node;
		const remove = () => this.change(nodes.map(({ base }) => base).filter((other) => other !== base));
		node.row ??= h('li', null, h('span', { class: 'badge' }, h('b'), h('span')), h('button', { class: 'quiet end', 'aria-label': `Remove ${base}`, click: remove }, 'Remove'), h('small'), node.tokenForm());
		const [title, , facts, form] = node.row.children;
		form.hidden = !node.api.token && node.link.name !== 'token needed';
		setAttr(title, 'data-is', badge.name);
		setText(title.firstChild, name);
		setText(title.lastChild, words);
		setText(facts, format.join(base, follower && `event ${format.number(follower.seq)}`, info && `hackbrain ${info.version}, up ${format.duration(info.uptime_s * 1000)}`));
		return node.row;
	}
}

const jobLink = (node, id) => `#/jobs/${encodeURIComponent(id)}${HB.nodes.length > 1 ? `?n=${node.key}` : ''}`;

Object.assign(HB, { nodes, Node, NodesPanel, memory, addresses, jobLink });
}
