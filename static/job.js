/* One job's page: its story, its lane of time, its trace with verdicts, its output. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const HEAD_ROWS = 10;
const TAIL_ROWS = 50;
const ASK_TICKS = 3;
const WORDS = { true: 'checked', false: 'mismatch', null: 'unread', undefined: 'checking' };

class JobPage {
	records = []; // by seq
	rows = new Map(); // seq → li
	fold = h('li', null, h('button', { class: 'quiet', click: () => this.drawTrace((this.isWhole = true)) }));
	verdicts = new Map(); // seq → verdict
	ticks = 0;

	constructor(node, id, summary) {
		Object.assign(this, { node, api: node.api, id, time: new HB.TimeView() });
		this.job = summary ?? { job_id: id, state: 'RECEIVED', phase: 'waiting', attempt: 0 };
		this.checker = new HB.Checker(this.api, (seq, verdict) => this.onVerdict(seq, verdict));
		this.title = h('h1', { tabindex: -1 }, id);
		this.state = HB.mark('state', this.job.state);
		this.story = h('p', { class: 'story' }, 'Reading its history …');
		this.waits = h('p', { class: 'note' });
		this.chain = HB.mark('verdict', 'checking');
		this.facts = h('dl', { class: 'facts' });
		this.trace = h('ol', { class: 'trace' });
		this.log = new HB.LogPane(this);
		this.actions = new HB.Actions(this);
		const [trace, charts, artifacts, graph] = [new HB.Trace(this), new HB.Charts(this), new HB.Artifacts(this), new HB.Graph(this)];
		this.parts = [this.actions, trace, charts, this.log, artifacts, graph];
		this.element = h(
			'article',
			{ class: 'job' },
			h('nav', null, h('a', { href: '#/' }, '← All jobs')),
			h('header', null, this.title, this.state, this.actions.element),
			this.story,
			this.waits,
			this.chain,
			trace.element,
			charts.element,
			this.facts,
			h('div', { class: 'columns' }, h('section', null, h('header', null, h('h2', null, 'Trace'), h('span', { class: 'note' }, 'times in UTC')), this.trace), this.log.element),
			artifacts.element,
			graph.element,
		);
		this.load();
	}

	close() {
		this.isClosed = true;
		this.checker.close();
		for (const part of this.parts) part.close();
	}

	async load() {
		try {
			this.take(await this.api.lines(this.api.jobPath(this.id, '/trace')));
		} catch (error) {
			if (!this.events) setText(this.story, error.status === 404 ? 'This node has no job of that name.' : error.message);
			if (error.status !== 404 && !this.isClosed) setTimeout(() => this.load(), 3000);
		}
	}

	/** Takes in records of the trace or the stream, in any order, also twice. */
	take(records) {
		const known = new Set(this.records.map(({ event }) => event.seq));
		const fresh = records.filter(({ event }) => event && !known.has(event.seq));
		if (this.isClosed || fresh.length === 0) return;
		this.records = [...this.records, ...fresh].sort((a, b) => a.event.seq - b.event.seq);
		this.events = this.records.map(({ event }) => event);
		this.manifest = this.events[0].detail?.manifest;
		this.checker.add(fresh);
		// The list's own fold, over this job's events alone.
		const model = HB.model.create();
		for (const event of this.events) this.job = HB.model.fold(model, event);
		this.state.update(this.job.state);
		this.drawFacts();
		this.drawTrace();
		this.drawChain();
		this.tick();
		for (const part of this.parts) part.update();
	}

	/** A sample of what it uses, from the stream. */
	telemetry(sample) {
		for (const part of this.parts) part.sample?.(sample);
	}

	/** Why it does not go on, or how far it is: no event tells. */
	async ask() {
		const summary = this.job.phase === 'ended' ? null : await this.api.json(this.api.jobPath(this.id)).catch(() => null);
		setText(this.waits, summary ? format.going(summary) : '');
	}

	/** What changes with the clock alone. */
	tick() {
		if (!this.events) return;
		if (this.ticks++ % ASK_TICKS === 0) this.ask();
		setText(this.story, HB.model.story(this.events, Date.now()));
		for (const part of this.parts) part.tick();
	}

	drawFacts() {
		const { job, manifest } = this;
		const facts = {
			Image: job.image_hash,
			Command: manifest?.command.join(' '),
			Attempts: `${job.attempt} of ${HB.model.attemptsMax(this.events, manifest)}`,
			'Exit code': job.exit_code,
			'Last stable': format.marker(job.last_d1_stable),
			Execution: job.execution_hash,
		};
		const shown = Object.entries(facts).filter(([, value]) => value != null && value !== '');
		this.facts.replaceChildren(...shown.map(([name, value]) => h('div', null, h('dt', null, name), h('dd', { title: value }, String(value)))));
	}

	/** The first and last events; those between when asked for. */
	drawTrace() {
		const middle = this.records.length - HEAD_ROWS - TAIL_ROWS;
		const items = this.records.map((record, i) => (this.isWhole || i < HEAD_ROWS || i >= HEAD_ROWS + middle ? this.row(record, this.events[i - 1]) : null)).filter(Boolean);
		if (items.length < this.records.length) items.splice(HEAD_ROWS, 0, this.fold);
		setText(this.fold.firstChild, `Show ${format.count(middle, 'more event')}`);
		HB.reconcile(this.trace, items);
	}

	row(record, earlier) {
		const { seq, time, state } = record.event;
		if (this.rows.has(seq)) return this.rows.get(seq);
		const since = earlier ? `+${format.duration(Date.parse(time) - Date.parse(earlier.time))}` : format.day(time);
		const words = format.describe(record.event);
		const verdict = HB.mark('verdict', 'checking');
		const body = h('div', { class: 'proof' });
		const when = h('time', { title: time }, time.slice(11, 23), h('small', null, since));
		const details = h('details', null, h('summary', null, HB.mark('state', state), h('span', { class: 'what', title: words }, words), when, verdict), body);
		const row = Object.assign(h('li', null, details), { verdict, body, details, record });
		details.addEventListener('toggle', () => {
			this.drawVerdict(seq);
			if (details.open) this.checker.add([record]);
		});
		this.rows.set(seq, row);
		this.drawVerdict(seq);
		return row;
	}

	onVerdict(seq, verdict) {
		this.verdicts.set(seq, verdict);
		this.drawVerdict(seq);
		this.drawChain();
	}

	/** The verdict in a row and, where it is open, its proof. */
	drawVerdict(seq) {
		const row = this.rows.get(seq);
		if (!row) return;
		const { ok, words = '…', computed } = this.verdicts.get(seq) ?? {};
		row.verdict.update(WORDS[ok]);
		if (!row.details.open) return;
		const { bytes, event } = row.record;
		const facts = {
			'prev, as stored': event.prev,
			[seq > 1 ? `SHA-256 of event ${seq - 1}, computed here` : 'before the first event']: computed || '…',
			'SHA-256 of this event, computed here': HB.sha256(bytes),
			Verdict: `${WORDS[ok]}: ${words}`,
		};
		row.body.replaceChildren(
			h('pre', { tabindex: 0, 'aria-label': `Stored bytes of event ${seq}` }, new TextDecoder().decode(bytes)),
			h('dl', null, ...Object.entries(facts).map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value)))),
		);
	}

	drawChain() {
		const all = format.count(this.events.length, 'event');
		const verdicts = this.events.map(({ seq }) => ({ seq, ...this.verdicts.get(seq) }));
		const good = verdicts.filter(({ ok }) => ok).length;
		const worst = verdicts.find(({ ok }) => ok === false) ?? verdicts.find(({ ok }) => ok === null);
		const ok = worst ? worst.ok : good === this.events.length || undefined;
		const words = {
			true: `This browser has checked all ${all} against the ledger’s hash chain.`,
			false: `Mismatch at event ${worst?.seq}: ${worst?.words}. Run “hackbrain verify” on the node.`,
			null: `Event ${worst?.seq} is not checked: ${worst?.words}`,
			undefined: `Checking the hash chain: ${good} of ${all} …`,
		};
		this.chain.update(WORDS[ok], words[ok]);
	}

	/** True where the key meant something here. */
	key(key) {
		if (this.parts.some((part) => part.key?.(key))) return true;
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
}
