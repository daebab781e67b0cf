/* One job's page: its story, its checks, its facts, and its parts. */
'use strict';
{
const { h, setText, format } = HB;
const ASK_TICKS = 3;
const PAPER = 500; // rows
const FAR = 1000; // events of the ledger that are checked without a word
const AGAIN = 'then submit it under a new job id.';
/** What to do about a failure, by its reason. */
const ADVICE = {
	exit: () => `The payload ended so by itself: read the end of its output, mend it, ${AGAIN}`,
	attempt_limit: () => 'Each attempt crashed: the events say how. Retrigger gives it as many again.',
	oom: ({ resources: r }) => `It needs more memory than ${r?.memory_mib ? `its ${r.memory_mib} MiB` : 'the node’s default'}: raise “memory_mib” in “resources”, ${AGAIN}`,
	dependency: () => 'See to that job first, then Retrigger this one.',
	mount: () => `Put that directory right on the node, ${AGAIN}`,
	inputs: () => `Restore its input files, leave them as they are, ${AGAIN}`,
	image: ({ image_hash }) => `Run “docker pull ${image_hash}” on the node, ${AGAIN}`,
	timeout: ({ timeout_s }) => `It took longer than ${timeout_s} s: raise “timeout_s”, ${AGAIN}`,
	resources: () => `Ask for less in “resources”, ${AGAIN}`,
	not_started: () => `Mend the command or the image, ${AGAIN}`,
	seal: () => `It ended well, but its files could not be hashed: put them right, ${AGAIN}`,
};

class JobPage {
	all = []; // its events, by seq
	events; // those shown: a replay shows the first of them
	early = []; // of the stream, before the trace is here
	at = null; // the seq of a replay; null: live
	ticks = 0;

	constructor(node, id, summary) {
		Object.assign(this, { node, api: node.api, id, time: new HB.TimeView(), whole: HB.whole(node) });
		this.job = summary ?? { job_id: id, state: 'RECEIVED', phase: 'waiting', attempt: 0 };
		this.checker = new HB.Checker(this.api, () => this.drawSoon());
		this.title = h('h1', { tabindex: -1 }, id);
		this.state = HB.mark('state', this.job.state);
		this.story = h('p', { class: 'story' }, 'Reading its history …');
		this.waits = h('p', { class: 'note' });
		this.advice = h('p', { class: 'notice bad', hidden: '' });
		this.chain = HB.mark('verdict', 'checking');
		this.more = h('button', { click: () => this.checker.judge(Infinity) });
		this.ledger = h('button', { click: () => this.whole.look(true) });
		this.broken = HB.mark('verdict', 'mismatch');
		const checks = [this.more, this.ledger, this.broken];
		for (const element of checks) element.hidden = true;
		this.facts = h('dl', { class: 'facts' });
		this.stable = h('span');
		this.list = new HB.Events(this);
		this.log = new HB.LogPane(this);
		const [actions, trace, charts, artifacts, graph] = (this.parts = [new HB.Actions(this), new HB.Trace(this), new HB.Charts(this), new HB.Artifacts(this), new HB.Graph(this)]);
		this.parts.push(this.list, this.log);
		const facts = h('section', null, h('h2', null, 'Facts'), this.facts);
		const columns = h('div', { class: 'columns' }, this.list.element, this.log.element);
		this.body = h('div', { class: 'job', hidden: '' }, [trace, charts].map(({ element }) => element), facts, columns, artifacts.element, graph.element);
		const top = [h('nav', null, h('a', { href: '#/' }, '← All jobs')), h('header', null, this.title, this.state), this.story, this.waits, this.advice, this.chain];
		this.element = h('article', { class: 'job' }, top, h('p', { class: 'checks' }, checks), actions.element, this.body);
		this.load();
	}

	close() {
		this.isClosed = true;
		this.checker.close();
		for (const part of this.parts) part.close?.();
	}

	async load() {
		try {
			await this.checker.load(this.api.jobPath(this.id, '/trace'), (events) => this.join(events));
			this.isLoaded = true;
			this.take(this.early);
			this.drawSoon();
		} catch ({ status, message }) {
			setText(this.story, status === 404 ? 'This node has no job of that name.' : message);
			if (status !== 404) return setTimeout(() => this.isClosed || this.load(), 3000);
			this.element.replaceChildren(this.element.firstChild, this.title, this.story);
			this.close();
		}
	}

	take(records) {
		if (!this.isLoaded) return this.early.push(...records);
		const fresh = records.filter(({ event }) => event.seq > this.all.at(-1).seq);
		for (const record of fresh) this.checker.add(record);
		this.join(fresh.map(({ event }) => event));
	}

	/** Of a trace in pieces the first alone is drawn. */
	join(events) {
		this.all.push(...events);
		if (this.at === null) this.fold(this.all.length);
		if (this.isLoaded || this.all.length === events.length) this.drawSoon();
	}

	telemetry(sample) {
		for (const part of this.parts) part.sample?.(sample);
	}

	/** Shows the job as of a seq; null: as it is. */
	asOf(seq) {
		this.at = seq;
		this.drawSoon();
	}

	/** Stands still in a replay. */
	get now() {
		return this.at === null ? Date.now() : Date.parse(this.events.at(-1).time);
	}

	/** Lists are whole on paper, but for very long ones. */
	paper(isPaper) {
		for (const { list } of this.parts) if (list && list !== this.log.list) Object.assign(list, { isPaper: isPaper && list.count <= PAPER }).paint();
	}

	select(seq) {
		this.list.select(seq, true);
	}

	/** To another of its places, that the address names now. */
	follow() {
		if (this.events) this.list.follow();
		this.log.follow();
	}

	drawSoon() {
		this.frame ??= requestAnimationFrame(() => {
			this.frame = null;
			if (!this.isClosed && this.all.length > 0) this.draw();
		});
	}

	draw() {
		const { at, all } = this;
		const later = at === null ? -1 : all.findIndex(({ seq }) => seq > at);
		const shown = later < 0 ? all.length : later;
		this.body.hidden = shown === 0;
		if (shown === 0) return setText(this.story, `At event ${at} it had not been received.`);
		if (shown !== this.shown) this.fold(shown);
		if (shown === this.drawn) this.list.update();
		else {
			this.drawn = shown;
			this.events = all.slice(0, shown); // another list: parts know by that that it has changed
			this.manifest = all[0].detail?.manifest;
			this.state.update(this.job.state);
			this.drawFacts();
			this.tick();
			for (const part of this.parts) part.update?.();
		}
		this.drawChecks();
	}

	/** The list's own fold, over its events alone. */
	fold(shown) {
		const from = shown >= this.shown ? this.shown : 0;
		if (from === 0) this.model = HB.model.create();
		for (const event of this.all.slice(from, shown)) this.job = HB.model.fold(this.model, event);
		this.shown = shown;
	}

	/** What changes with the clock alone. */
	tick() {
		if (!this.events || this.body.hidden) return;
		if (this.ticks++ % ASK_TICKS === 0) this.ask();
		const { done, fault } = this.whole;
		// Of a job that goes on there is always an event that is not checked yet.
		const { seq } = this.events.at(this.job.phase === 'ended' ? -1 : 0);
		setText(this.story, HB.model.story(this.events, this.now, !fault && done.seq >= seq && `chain checked by this browser to seq\u00a0${done.seq}`));
		this.drawChecks();
		for (const part of this.parts) part.tick?.();
	}

	async ask() {
		const { done } = this.whole;
		await this.whole.look();
		if (done !== this.whole.done && !this.isClosed) this.tick();
		const summary = await this.api.json(this.api.jobPath(this.id)).catch(() => null);
		setText(this.waits, summary && this.at === null ? format.going(summary) : '');
		if (summary?.pruned) this.pruned = `Pruned by event ${summary.pruned}`;
	}

	drawFacts() {
		const { job, manifest: m = {}, events } = this;
		const limit = HB.model.attemptsMax(events, m);
		setText(this.stable, format.marker(job.last_d1_stable));
		// What stays is left alone: it may be being copied.
		const key = [job.state === 'FAILED', job.phase, job.attempt, limit, job.exit_code, job.image_id, !this.stable.textContent].join();
		if (key === this.factsKey) return;
		this.factsKey = key;
		const link = (id) => h('a', { href: HB.jobLink(this.node, id) }, id);
		const lines = (list = []) => list.length > 0 && list.map((line) => h('div', null, line));
		const digest = (value) => value && [h('code', { title: value }, format.hash(value)), HB.copyButton('Copy', () => value)];
		const facts = {
			Command: m.command && h('pre', { tabindex: 0 }, m.command.join(' ')),
			Image: m.image_hash?.replace(/^sha256:(.{12}).*/, '$1'),
			Attempts: `${job.attempt} of ${limit}`,
			'Exit code': job.phase === 'ended' && job.exit_code?.toString(),
			'Last stable': this.stable.textContent && this.stable,
			Resources: lines(Object.entries(m.resources ?? {}).map((pair) => pair.join(' '))),
			Timeout: m.timeout_s && `${m.timeout_s} s`,
			Mounts: lines([m.mount_spec ?? []].flat()),
			'Depends on': lines(m.depends_on?.map(link)),
			Reproduces: m.reproduces && link(m.reproduces),
			'Image id': digest(job.image_id),
			'Manifest hash': digest(events[0].detail?.manifest_hash),
			'Input hash': digest(events.find(({ state }) => state === 'SCHEDULED')?.detail?.input_hash),
			'Execution hash': digest(job.execution_hash),
		};
		this.facts.replaceChildren(...HB.facts(facts));
		const advice = job.state === 'FAILED' && ADVICE[job.reason]?.(m);
		this.advice.hidden = !advice;
		this.advice.replaceChildren(...(job.ancestor ? ['It needs ', link(job.ancestor), '. '] : []), advice || '');
	}

	/** The verdicts in words: on its events, and on the whole ledger. */
	drawChecks() {
		const { good, bad, left, problem, isBusy } = this.checker;
		const { done, at, to, fault, isBusy: isWalking } = this.whole;
		const total = this.all.length;
		const all = format.count(total, 'event');
		// Those that have just come are on their way.
		const isChecked = total - good < (this.wasChecked ? FAR : 1);
		const name = bad ? 'mismatch' : good < total && (left || problem) ? 'unread' : isChecked ? 'checked' : 'checking';
		this.wasChecked = name === 'checked';
		const words = {
			checked: `This browser has checked ${good === total ? 'all' : `${format.number(good)} of`} ${all} against the ledger’s hash chain.`,
			mismatch: `Mismatch at event ${bad?.seq}: ${bad?.words}. ${HB.VERIFY}`,
			unread: `${good} of ${all} checked. ${problem}`,
			checking: `Checking the hash chain: ${good} of ${all} …`,
		};
		this.chain.update(name, words[name]);
		this.more.hidden = !left || isBusy;
		setText(this.more, `Check the other ${format.number(left)}`);
		this.ledger.hidden = to - done.seq < FAR || fault;
		this.ledger.disabled = isWalking;
		setText(this.ledger, `${isWalking ? 'Checking' : 'Check'} the whole ledger: ${format.number(at)} of ${format.number(to)}`);
		this.broken.hidden = !fault;
		this.broken.update('mismatch', fault);
	}

	key(key, event) {
		if (this.parts.some((part) => part.key?.(key, event))) return true;
		if (key === 'l') this.log.view.focus();
		else if (key === 'Escape') location.hash = '#/';
		else return false;
		return true;
	}
}

HB.JobPage = JobPage;
}
