/* Events → state: the jobs, newest first, and what one job's history tells. Pure: no DOM, no fetch, no clock.
   Summaries begin it, events keep it up; `seq` decides which of the two is newer. */
'use strict';
{
const PHASE = { RECEIVED: 'waiting', SCHEDULED: 'waiting', RETRIGGERED: 'waiting', SEALED: 'ended', FAILED: 'ended', CANCELLED: 'ended' };
const phaseOf = (state) => PHASE[state] ?? 'active';
/** node: whose jobs these are. */
const create = (node) => ({ node, jobs: new Map(), order: [], seq: 0 });

/** Takes in a page of summaries. They never overwrite what later events have told. */
function merge(model, summaries) {
	for (const summary of summaries) {
		const known = model.jobs.get(summary.job_id);
		if (known) model.order.splice(model.order.indexOf(known), 1);
		const isNewer = known?.seq > summary.seq;
		const job = isNewer ? (known.partial ? completed(summary, known) : known) : summary;
		insert(model, job, false);
	}
}

/** The summary, with what its job's events have told since. */
function completed(summary, { received, image_hash, partial, started, ...newer }) {
	const job = { ...summary };
	for (const name in newer) if (newer[name] !== undefined) job[name] = newer[name];
	job.started ??= started;
	return job;
}

/** Folds one event. Returns its job, or null for node events and repeats. */
function fold(model, event) {
	if (event.seq <= model.seq) return null;
	model.seq = event.seq;
	if (!event.job_id) return null;
	let job = model.jobs.get(event.job_id);
	if (!job) {
		// Without its RECEIVED: partial, until the page with its summary is read.
		job = { job_id: event.job_id, attempt: 1, seq: 0, received: event.time, started: null, image_hash: '', partial: event.state !== 'RECEIVED' };
		insert(model, job, true);
	}
	if (event.seq > job.seq) apply(job, event);
	return job;
}

function apply(job, { seq, time, attempt, state, detail: d = {} }) {
	const phase = phaseOf(state);
	Object.assign(job, { seq, state, phase, attempt: attempt ?? job.attempt, ended: phase === 'ended' ? time : null, text: undefined });
	if (state === 'RECEIVED') job.image_hash = d.manifest?.image_hash ?? '';
	if (state === 'SCHEDULED') Object.assign(job, { image_id: d.image_id, execution_hash: d.execution_hash });
	if (state === 'RUNNING' || state === 'RECOVERY') job.started ??= time;
	if (state === 'D1_STABLE') job.last_d1_stable = d.line;
	if (['CRASH', 'COMPLETED', 'FAILED', 'CANCELLED'].includes(state)) {
		// What fails behind its attempt leaves the exit code as it is.
		if (state !== 'FAILED' || d.exit_code != null) job.exit_code = d.exit_code;
		job.reason = d.reason ?? d.cause ?? (state === 'CANCELLED' ? 'cancelled' : null);
	}
	if (['SCHEDULED', 'RETRIGGERED', 'FAILED'].includes(state)) job.ancestor = d.ancestor ?? null;
}

/** Times sort as text. Of equal ones, a job from the stream goes first. */
function insert({ node, jobs, order }, job, isNewest) {
	job.node = node;
	jobs.set(job.job_id, job);
	let low = 0;
	let high = order.length;
	if (!isNewest && order.at(-1)?.received >= job.received) low = high; // page after page
	while (low < high) {
		const mid = (low + high) >> 1;
		const other = order[mid].received;
		if (other > job.received || (other === job.received && !isNewest)) low = mid + 1;
		else high = mid;
	}
	order.splice(low, 0, job);
}

/** What jobs are sorted by. Of equal ones the newest is first. */
const SORT = {
	state: (job) => job.state,
	job: (job) => job.job_id,
	node: (job) => job.node?.name,
	last: (job) => HB.format.marker(job.last_d1_stable),
	image: (job) => job.image_hash,
	attempts: (job) => job.attempt,
	received: (job) => job.received,
	duration: (job, now) => runTime(job, now) ?? -1,
};
const textOf = (job) => (job.text ??= `${job.job_id} ${job.state} ${job.image_hash} ${job.reason ?? ''} ${(job.last_d1_stable ?? '').slice(11)}`.toLowerCase());

/** Two lists, newest first, as one. */
function zip(a, b) {
	const out = [];
	let at = 0;
	for (const job of b) {
		while (at < a.length && a[at].received >= job.received) out.push(a[at++]);
		out.push(job);
	}
	return out.concat(a.slice(at));
}

/**
 * The jobs of some models that are to be listed, newest first or as `sort` says ('job', '-job' the other way round), and how
 * many each group has with these words alone.
 */
function select(models, { text, show = 'all', sort } = {}, now = 0) {
	const words = (text ?? '').toLowerCase().split(/\s+/).filter(Boolean);
	const counts = { all: 0, waiting: 0, active: 0, sealed: 0, failed: 0, cancelled: 0 };
	const jobs = [];
	for (const job of models.length > 1 ? models.map(({ order }) => order).reduce(zip) : models[0]?.order ?? []) {
		if (words.length > 0 && !words.every((word) => textOf(job).includes(word))) continue;
		const group = job.phase === 'ended' ? job.state.toLowerCase() : job.phase;
		counts.all++;
		counts[group]++;
		if (show === 'all' || show === group) jobs.push(job);
	}
	const [, down, name] = /^(-?)(.*)$/.exec(sort ?? '');
	if (Object.hasOwn(SORT, name)) {
		const sign = down ? -1 : 1;
		for (const job of jobs) job.key = SORT[name](job, now);
		jobs.sort(({ key: a }, { key: b }) => (a < b ? -sign : a > b ? sign : 0));
	}
	return { jobs, counts };
}

/** Milliseconds from the first start to the end, or now; null before. */
const runTime = ({ started, ended }, now) => (started ? Math.max(0, (ended ? Date.parse(ended) : now) - Date.parse(started)) : null);

/** A job's events → its summary in one sentence, with `more` clauses. */
function story(events, now, ...more) {
	const { duration, count, cause, marker, describe } = HB.format;
	const last = events.at(-1);
	const { state, detail: d = {} } = last;
	const total = { queue: 0, run: 0, stop: 0 };
	for (const { kind, from, to } of HB.timeline.stretches(events, now)) total[kind] += to - from;
	const { marks } = HB.timeline.life(events);
	const of = (name) => marks.filter((event) => event.state === name);
	const crashes = of('CRASH').length;
	const stable = marker(of('RECOVERY').at(-1)?.detail.resumed_after);
	const step = /\bstep[=: ]+(\d+)/.exec(stable)?.[1];
	const isRunning = ['RUNNING', 'RECOVERY', 'D1_STABLE', 'STOPPING'].includes(state);
	const survived = isRunning || state === 'COMPLETED' || state === 'SEALED';
	const wasStarted = of('RUNNING').length > 0;
	const end = {
		CRASH: () => `waits for another attempt, because ${cause(d.cause)}`,
		STOPPING: () => `is being stopped (${d.asked})`,
		COMPLETED: () => 'is having its artifacts sealed',
		SEALED: () => `sealed ${count(d.files, 'artifact')}`,
		FAILED: () => `failed: ${describe(last)}`,
		CANCELLED: () => 'was cancelled',
	}[state];
	const parts = [
		crashes && `${survived ? 'survived' : 'suffered'} ${count(crashes, 'crash', 'crashes')}`,
		stable && (step ? `resumed from step ${step}` : `resumed after “${stable}”`),
		end?.(),
		phaseOf(state) === 'waiting' ? `has waited ${duration(total.queue)}` : wasStarted && `${isRunning ? 'has run' : 'ran'} ${duration(total.run + total.stop)} after ${duration(total.queue)} of waiting`,
		...more,
	];
	const text = parts.filter(Boolean).join('; ');
	return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

/** A retriggered job gets as many attempts again. */
const attemptsMax = (events, manifest) => (events.findLast(({ state }) => state === 'RETRIGGERED')?.attempt ?? 0) + (manifest?.max_attempts ?? 3);

HB.model = { attemptsMax, create, merge, fold, select, runTime, story };
}
