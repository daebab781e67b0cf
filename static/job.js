/* One job's page: its sentence, its lane of time, its trace with a verdict for every event, its output. */
'use strict';
(() => {
const HB = (globalThis.HB ??= {});
const { h, setText, setAttribute, format } = HB;
const WORDS = { true: 'checked', false: 'mismatch', null: 'unread', undefined: 'checking' };

class JobPage {
	records = []; // by seq
	rows = new Map(); // seq → li
	folds = new Map(); // seq of the first folded event → li; null once the reader opened it
	verdicts = new Map(); // seq → verdict
	lastLane = [];

	constructor({ api, id, now, summary }) {
		Object.assign(this, { api, id, now });
		this.job = summary ?? { job_id: id, state: 'RECEIVED', phase: 'waiting', attempt: 1 };
		this.checker = new HB.Checker(api, (seq, verdict) => this.onVerdict(seq, verdict));
		this.title = h('h1', { tabindex: -1 }, id);
		this.state = HB.mark('state', this.job.state);
		this.story = h('p', { class: 'story' }, 'Reading its history …');
		this.seal = HB.mark('verdict seal', 'checking');
		this.lane = h('div', { class: 'lane', role: 'img', 'aria-label': 'Time' });
		this.facts = h('dl', { class: 'facts' });
		this.trace = h('ol', { class: 'trace' });
		this.log = new HB.LogPane(api, () => this.job);
		const copy = HB.copyButton('Copy as curl', () => api.curl(this.manifest ?? { job_id: id }));
		this.element = h(
			'article',
			{ class: 'job' },
			h('nav', null, h('a', { href: '#/' }, '← All jobs')),
			h('header', null, this.title, this.state, h('span', { class: 'gap' }), copy),
			this.story,
			this.seal,
			this.lane,
			this.facts,
			h('div', { class: 'columns' }, h('section', { 'aria-label': 'Trace' }, h('header', null, h('h2', null, 'Trace'), h('span', { class: 'note' }, 'times in UTC')), this.trace), this.log.element),
		);
		this.load();
	}

	close() {
		this.isClosed = true;
		this.checker.close();
		this.log.close();
	}

	async load() {
		try {
			this.take(await this.api.lines(this.api.jobPath(this.id, '/trace')));
		} catch (error) {
			const isUnknown = error.status === 404;
			if (this.records.length === 0) setText(this.story, isUnknown ? 'This node has no job of that name. Another node may have it.' : error.message);
			if (!isUnknown && !this.isClosed) setTimeout(() => this.load(), 3000);
		}
	}

	/** Takes in records of the trace or of the stream, in any order and more than once. */
	take(records) {
		if (this.isClosed) return;
		const known = new Set(this.records.map(({ event }) => event.seq));
		const fresh = records.filter(({ event }) => event && !known.has(event.seq));
		if (fresh.length === 0) return;
		this.records = [...this.records, ...fresh].sort((a, b) => a.event.seq - b.event.seq);
		this.events = this.records.map(({ event }) => event);
		this.manifest = this.events[0].detail?.manifest;
		this.checker.add(fresh);
		// The list's own fold, over this job's events alone.
		const model = HB.model.create();
		for (const event of this.events) this.job = HB.model.fold(model, event) ?? this.job;
		this.state.update(this.job.state);
		this.drawFacts();
		this.drawTrace();
		this.drawSeal();
		this.tick();
		this.log.update();
	}

	/** What changes with the clock alone. */
	tick() {
		if (this.records.length === 0) return;
		setText(this.story, HB.model.story(this.events, this.now()));
		const parts = HB.model.lane(this.events, this.now());
		const names = { wait: () => 'waiting', run: (attempt) => `attempt ${attempt}`, down: () => 'down', seal: () => 'sealing' };
		const words = parts.map(({ kind, attempt, from, to }) => `${names[kind](attempt)} ${format.duration(to - from)}`);
		setAttribute(this.lane, 'aria-label', `Time: ${words.join(', ')}`);
		while (this.lane.childElementCount < parts.length) this.lane.append(h('span', null, h('span')));
		parts.forEach(({ kind, from, to }, i) => {
			const part = this.lane.children[i];
			setAttribute(part, 'class', kind);
			setAttribute(part, 'title', words[i]);
			setText(part.firstChild, words[i]);
			// A square root keeps a second visible beside a day without making them alike.
			part.style.flexGrow = 1 + Math.sqrt(to - from);
		});
	}

	drawFacts() {
		const { job, manifest } = this;
		const time = (value) => value && `${format.day(value)} ${format.clock(value).slice(0, 8)}`;
		const facts = [
			['Image', job.image_hash, job.image_id],
			['Command', manifest?.command?.join(' ')],
			['Received', time(job.received), job.received],
			['Started', time(job.started), job.started],
			['Ended', time(job.ended), job.ended],
			['Attempts', `${job.attempt}${manifest?.max_attempts ? ` of ${manifest.max_attempts}` : ''}`],
			['Exit code', job.exit_code],
			['Last stable', format.marker(job.last_d1_stable)],
			['Execution', format.hash(job.execution_hash), job.execution_hash],
		];
		const shown = facts.filter(([, value]) => value != null && value !== '');
		this.facts.replaceChildren(...shown.map(([name, value, title]) => h('div', null, h('dt', null, name), h('dd', { title: title ?? value }, String(value)))));
	}

	drawTrace() {
		const items = HB.model.folds(this.events).flatMap(({ from, to, folded }) => {
			const first = this.events[from].seq;
			if (folded && this.folds.get(first) !== null) return [this.fold(first, to - from)];
			return this.records.slice(from, to).map((_, i) => this.row(from + i));
		});
		HB.reconcile(this.trace, items);
	}

	fold(first, size) {
		let item = this.folds.get(first);
		const open = () => this.folds.set(first, null) && this.drawTrace();
		if (!item) this.folds.set(first, (item = h('li', null, h('button', { type: 'button', class: 'quiet', click: open }))));
		setText(item.firstChild, `Show ${format.count(size, 'more D1_STABLE event')}`);
		return item;
	}

	row(index) {
		const record = this.records[index];
		const { seq, time, state } = record.event;
		if (this.rows.has(seq)) return this.rows.get(seq);
		const earlier = this.events[index - 1];
		const since = earlier ? `+${format.duration(Date.parse(time) - Date.parse(earlier.time))}` : format.day(time);
		const words = format.describe(record.event);
		const verdict = HB.mark('verdict', 'checking');
		const body = h('div', { class: 'proof' });
		const when = h('time', { datetime: time, title: time }, format.clock(time), h('small', null, since));
		const details = h('details', null, h('summary', null, HB.mark('state', state), h('span', { class: 'what', title: words }, words), when, verdict), body);
		const row = Object.assign(h('li', { 'data-seq': seq }, details), { verdict, body, details });
		details.addEventListener('toggle', () => {
			if (!details.open) return;
			this.drawProof(record);
			this.checker.add([record]);
		});
		this.rows.set(seq, row);
		this.drawVerdict(seq);
		return row;
	}

	onVerdict(seq, verdict) {
		this.verdicts.set(seq, verdict);
		this.drawVerdict(seq);
		this.drawSeal();
	}

	drawVerdict(seq) {
		const row = this.rows.get(seq);
		const verdict = this.verdicts.get(seq);
		if (!row) return;
		row.verdict.update(WORDS[verdict?.ok]);
		setAttribute(row.verdict, 'title', verdict?.words);
		if (row.details.open) this.drawProof(this.records.find(({ event }) => event.seq === seq));
	}

	/** What the verdict rests on: the stored bytes themselves, and the hashes. */
	drawProof({ bytes, event: { seq, prev } }) {
		const { ok, words = '…', computed } = this.verdicts.get(seq) ?? {};
		const text = new TextDecoder().decode(bytes);
		const line = (name, value) => h('div', null, h('dt', null, name), h('dd', null, value));
		const facts = h(
			'dl',
			null,
			line('prev, as stored', prev),
			line(seq > 1 ? `SHA-256 of event ${seq - 1}, computed here` : 'before the first event', computed || '…'),
			line('SHA-256 of this event, computed here', HB.sha256(bytes)),
			line('Verdict', `${WORDS[ok]}: ${words}`),
		);
		this.rows.get(seq).body.replaceChildren(h('pre', { tabindex: 0, 'aria-label': `Stored bytes of event ${seq}` }, text), facts, HB.copyButton('Copy the stored bytes', () => text));
	}

	drawSeal() {
		const all = this.events.length;
		const verdicts = this.events.map(({ seq }) => ({ seq, ...this.verdicts.get(seq) }));
		const good = verdicts.filter(({ ok }) => ok).length;
		const worst = verdicts.find(({ ok }) => ok === false) ?? verdicts.find(({ ok }) => ok === null);
		const ok = worst ? worst.ok : good === all || undefined;
		const words = {
			true: `This browser has checked all ${format.count(all, 'event')} against the ledger’s hash chain.`,
			false: `Mismatch at event ${worst?.seq}: ${worst?.words}. Run “hackbrain verify” on the node.`,
			null: `Event ${worst?.seq} is not checked: ${worst?.words}`,
			undefined: `Checking the hash chain: ${good} of ${format.count(all, 'event')} …`,
		};
		this.seal.update(WORDS[ok], words[ok]);
	}

	/** True where the key meant something here. */
	key(key) {
		const rows = [...this.trace.querySelectorAll('summary')];
		const at = rows.indexOf(document.activeElement);
		if (key === 'j') rows[Math.min(at + 1, rows.length - 1)]?.focus();
		else if (key === 'k') rows[Math.max(at - 1, 0)]?.focus();
		else if (key === 'l') this.log.view.focus();
		else if (key === 'Escape') location.hash = '#/';
		else return false;
		return true;
	}
}

HB.JobPage = JobPage;
})();
