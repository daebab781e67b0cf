/* One job's page: its story, and its parts. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const ASK_TICKS = 3;
/** What to do about a failure, by its reason. */
const again = 'Submit it under a new job id';
const ADVICE = {
	exit: () => `The payload itself ended so: the end of its output says why. Mend it. ${again}.`,
	attempt_limit: () => 'Every attempt ended in a crash; the events say how. “Retrigger” gives it as many again.',
	oom: ({ resources: r }) => `It needs more memory than ${r?.memory_mib ? `its ${r.memory_mib} MiB` : 'the node’s default'}. ${again} with a larger “memory_mib” in “resources”.`,
	dependency: () => 'See to that job first, then “Retrigger” this one.',
	mount: () => `The message names the directory: put it right on the node. ${again}.`,
	inputs: () => `Its input files were not what they had to be, or changed while they were read. Restore them and leave them alone. ${again}.`,
	image: ({ image_hash }) => `Bring the image to the node with “docker pull ${image_hash}”. ${again}.`,
	timeout: ({ timeout_s }) => `It took longer than its ${timeout_s} s. ${again} with a larger “timeout_s”.`,
	resources: () => `It asks for more than the node has. ${again} with less in “resources”.`,
	not_started: () => `The container could not be started: the message says what to mend in the command or the image. ${again}.`,
	seal: () => `The payload ended well, but its files could not be sealed: the message says why. ${again}.`,
};

class JobPage {
	all = []; // its events, by seq
	early = []; // records that the stream brought before the trace was here
	at = null; // the seq up to which it is shown; null: live
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
		this.more = h('button', { click: () => this.checker.judge(Infinity), hidden: '' });
		this.ledger = h('button', { click: () => this.whole.look(true), hidden: '' });
		this.broken = HB.mark('verdict', 'mismatch');
		this.facts = h('dl', { class: 'facts' });
		this.stable = h('span');
		this.actions = new HB.Actions(this);
		this.list = new HB.Events(this);
		this.log = new HB.LogPane(this);
		const [trace, charts, artifacts, graph] = [new HB.Trace(this), new HB.Charts(this), new HB.Artifacts(this), new HB.Graph(this)];
		this.parts = [this.actions, trace, charts, this.list, this.log, artifacts, graph];
		this.body = h(
			'div',
			{ class: 'job', hidden: '' },
			trace.element,
			charts.element,
			h('section', null, h('h2', null, 'Facts'), this.facts),
			h('div', { class: 'columns' }, this.list.element, this.log.element),
			artifacts.element,
			graph.element,
		);
		this.element = h(
			'article',
			{ class: 'job' },
			h('nav', null, h('a', { href: '#/' }, '← All jobs')),
			h('header', null, this.title, this.state),
			this.story,
			this.waits,
			this.advice,
			this.chain,
			h('p', { class: 'checks' }, this.more, this.ledger, this.broken),
			this.actions.element,
			this.body,
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
			await this.checker.load(this.api.jobPath(this.id, '/trace'), (events) => this.join(events));
			this.isLoaded = true;
			this.take(this.early);
		} catch (error) {
			if (!this.events) setText(this.story, error.status === 404 ? 'This node has no job of that name.' : error.message);
			if (error.status !== 404 && !this.isClosed) setTimeout(() => this.load(), 3000);
		}
	}

	/** Takes in records of the stream. */
	take(records) {
		if (!this.isLoaded) return this.early.push(...records);
		const last = this.all.at(-1)?.seq ?? 0;
		const fresh = records.filter(({ event }) => event.seq > last);
		for (const record of fresh) this.checker.add(record);
		this.join(fresh.map(({ event }) => event));
	}

	join(events) {
		if (events.length === 0 || this.isClosed) return;
		this.all.push(...events);
		this.asOf(this.at);
	}

	/** Shows the job as it was at that seq; null: as it is. */
	asOf(seq) {
		this.at = seq;
		this.drawSoon();
	}

	drawSoon() {
		this.frame ??= requestAnimationFrame(() => {
			this.frame = null;
			if (!this.isClosed && this.all.length > 0) this.draw();
		});
	}

	draw() {
		const { at, all } = this;
		const shown = at === null ? all.length : all.filter(({ seq }) => seq <= at).length;
		this.body.hidden = shown === 0;
		if (shown === 0) return setText(this.story, `At event ${at} this node had not received it yet.`);
		if (shown !== this.shown) this.fold(shown);
		else this.list.update();
		this.drawChecks();
	}

	/** The list's own fold, over this job's events alone. */
	fold(shown) {
		const goesOn = shown > this.shown;
		if (!goesOn) Object.assign(this, { model: HB.model.create(), detail: {} });
		for (const event of this.all.slice(goesOn ? this.shown : 0, shown)) {
			this.job = HB.model.fold(this.model, event);
			if (/SCHEDULED|SEALED|FAILED/.test(event.state)) Object.assign(this.detail, event.detail);
		}
		this.shown = shown;
		this.events = shown === this.all.length ? this.all : this.all.slice(0, shown);
		this.manifest = this.events[0].detail?.manifest;
		this.state.update(this.job.state);
		this.drawFacts();
		this.tick();
		for (const part of this.parts) part.update();
	}

	/** A sample of what it uses, from the stream. */
	telemetry(sample) {
		for (const part of this.parts) part.sample?.(sample);
	}

	/** Why it does not go on, or how far it is: no event tells. */
	async ask() {
		this.whole.look().then(() => this.isClosed || this.drawStory());
		const summary = this.job.phase === 'ended' ? null : await this.api.json(this.api.jobPath(this.id)).catch(() => null);
		setText(this.waits, summary && this.at === null ? format.going(summary) : '');
	}

	/** What changes with the clock alone. */
	tick() {
		if (!this.events) return;
		if (this.ticks++ % ASK_TICKS === 0) this.ask();
		this.drawStory();
		this.drawChecks();
		for (const part of this.parts) part.tick();
	}

	drawStory() {
		const { done, fault } = this.whole;
		const now = this.at === null ? Date.now() : Date.parse(this.events.at(-1).time);
		const isChecked = !fault && done.seq >= this.events.at(-1).seq;
		setText(this.story, HB.model.story(this.events, now).replace(/\.$/, isChecked ? `; chain checked by this browser to seq ${done.seq}.` : '.'));
	}

	drawFacts() {
		const { job, manifest: m = {}, detail } = this;
		setText(this.stable, format.marker(job.last_d1_stable));
		const limit = HB.model.attemptsMax(this.events, m);
		// What stays is left alone: somebody may be about to copy it.
		const key = [job.attempt, limit, job.exit_code, job.image_id, this.stable.textContent && 1, Object.keys(detail)].join();
		if (key === this.factsKey) return;
		this.factsKey = key;
		const link = (id) => h('a', { href: HB.jobLink(this.node, id) }, id);
		const lines = (list) => list?.map((line) => h('div', { title: line.title ?? line }, line));
		const digest = (value) => value && [h('code', { title: value }, format.hash(value)), HB.copyButton('Copy', () => value)];
		const facts = {
			Command: m.command && h('pre', { tabindex: 0, 'aria-label': 'Command' }, m.command.join(' ')),
			Image: m.image_hash,
			Attempts: `${job.attempt} of ${limit}`,
			'Exit code': job.exit_code?.toString(),
			'Last stable': this.stable.textContent && this.stable,
			Resources: lines(Object.entries(m.resources ?? {}).map((pair) => pair.join(' '))),
			Timeout: m.timeout_s && `${m.timeout_s} s`,
			Mounts: lines([m.mount_spec ?? []].flat()),
			'Depends on': lines(m.depends_on?.map(link)),
			Reproduces: m.reproduces && link(m.reproduces),
			'Image id': digest(job.image_id),
			'Manifest hash': digest(this.events[0].detail?.manifest_hash),
			'Input hash': digest(detail.input_hash),
			'Execution hash': digest(job.execution_hash),
			'Seal hash': digest(detail.seal_hash),
			'Artifacts root': digest(detail.artifacts_root),
		};
		const shown = Object.entries(facts).filter(([, value]) => value?.length !== 0 && value);
		this.facts.replaceChildren(...shown.map(([name, value]) => h('div', null, h('dt', null, name), h('dd', { title: typeof value === 'string' ? value : '' }, value))));
		const advice = job.state === 'FAILED' && ADVICE[job.reason]?.(m);
		this.advice.hidden = !advice;
		const { ancestor } = detail;
		this.advice.replaceChildren(h('b', null, `${detail.message ?? job.reason}. `.replace('..', '.')), ...(ancestor ? ['It needs ', link(ancestor), '. '] : []), advice || '');
	}

	/** The verdicts in words: on this job's events, and on the whole ledger. */
	drawChecks() {
		const { checker, whole } = this;
		const { good, bad, left, problem } = checker;
		const all = format.count(this.all.length, 'event');
		const name = bad ? 'mismatch' : good === this.all.length ? 'checked' : left || problem ? 'unread' : 'checking';
		const words = {
			checked: `This browser has checked all ${all} against the ledger’s hash chain.`,
			mismatch: `Mismatch at event ${bad?.seq}: ${bad?.words}. Run “hackbrain verify” on the node.`,
			unread: `${good} of ${all} checked. ${problem}`,
			checking: `Checking the hash chain: ${good} of ${all} …`,
		};
		this.chain.update(name, words[name]);
		this.more.hidden = !left || checker.isBusy;
		setText(this.more, `Check the other ${format.count(left, 'event')}`);
		const far = `the whole ledger: ${format.number(whole.done.seq)} of ${format.number(whole.to)}`;
		this.ledger.hidden = whole.to - whole.done.seq < 1000 || whole.fault;
		this.ledger.disabled = whole.isBusy;
		setText(this.ledger, whole.isBusy ? `Checking ${far} …` : `Check ${far}`);
		this.broken.hidden = !whole.fault;
		this.broken.update('mismatch', whole.fault);
	}

	/** True where the key meant something here. */
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
