/* Events → state: the jobs, newest first, and what one job's history tells. Pure: no DOM, no fetch, no clock.
   Summaries begin it, events keep it up; `seq` decides which of the two is newer. */
'use strict';
{
const PHASE = { RECEIVED: 'waiting', SCHEDULED: 'waiting', RETRIGGERED: 'waiting', SEALED: 'ended', FAILED: 'ended', CANCELLED: 'ended' };
const phaseOf = (state) => PHASE[state] ?? 'active';
const create = () => ({ jobs: new Map(), order: [], seq: 0 });

/** Takes in summaries. They never overwrite what later events have told. */
function merge(model, summaries) {
	for (const summary of summaries) {
		const known = model.jobs.get(summary.job_id);
		if (known && !known.partial && summary.seq < known.seq) continue;
		if (known) model.order.splice(model.order.indexOf(known), 1);
		const { state, phase, attempt, seq, ended } = known ?? {};
		insert(model, { ...summary, ...(known?.seq > summary.seq && { state, phase, attempt, seq, ended }) }, false);
	}
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
	for (const name of ['image_id', 'execution_hash', 'exit_code', 'reason']) if (d[name] !== undefined) job[name] = d[name];
	if (state === 'RECEIVED') job.image_hash = d.manifest?.image_hash ?? '';
	if (state === 'RUNNING' || state === 'RECOVERY') {
		job.started ??= time;
		job.reason = job.exit_code = null;
	}
	if (state === 'D1_STABLE') job.last_d1_stable = d.line;
	if (state === 'CRASH') job.reason = d.cause;
}

/** Times sort as text. Of equal ones, a job from the stream goes first, one from a page last. */
function insert({ jobs, order }, job, isNewest) {
	jobs.set(job.job_id, job);
	let low = 0;
	let high = order.length;
	while (low < high) {
		const mid = (low + high) >> 1;
		const other = order[mid].received;
		if (other > job.received || (other === job.received && !isNewest)) low = mid + 1;
		else high = mid;
	}
	order.splice(low, 0, job);
}

/** The jobs to list, and how many each group has with this text alone. */
function select(model, { text = '', show = 'all' } = {}) {
	const words = text.toLowerCase().split(/\s+/).filter(Boolean);
	const counts = { all: 0, waiting: 0, active: 0, sealed: 0, failed: 0, cancelled: 0 };
	const jobs = [];
	for (const job of model.order) {
		job.text ??= [job.job_id, job.state, job.image_hash, job.reason, HB.format.marker(job.last_d1_stable)].join(' ').toLowerCase();
		if (!words.every((word) => job.text.includes(word))) continue;
		const group = job.phase === 'ended' ? job.state.toLowerCase() : job.phase;
		counts.all++;
		counts[group]++;
		if (show === 'all' || show === group) jobs.push(job);
	}
	return { jobs, counts };
}

/** Milliseconds from the first start to the end, or now; null before. */
const runTime = ({ started, ended }, now) => (started ? Math.max(0, (ended ? Date.parse(ended) : now) - Date.parse(started)) : null);

/** A job's events → its summary in one sentence. */
function story(events, now) {
	const { duration, count, cause, marker, describe } = HB.format;
	const last = events.at(-1);
	const { state, detail: d = {} } = last;
	const total = { queue: 0, run: 0, down: 0, stop: 0, seal: 0, rest: 0 };
	for (const { kind, from, to } of HB.timeline.stretches(events, now)) total[kind] += to - from;
	const of = (name) => events.filter((event) => event.state === name);
	const crashes = of('CRASH').length;
	const stable = marker(of('RECOVERY').at(-1)?.detail.resumed_after);
	const isRunning = ['RUNNING', 'RECOVERY', 'D1_STABLE', 'STOPPING'].includes(state);
	const survived = isRunning || state === 'COMPLETED' || state === 'SEALED';
	const parts = [];
	if (phaseOf(state) === 'waiting') parts.push(`has waited ${duration(total.queue)}`);
	else if (of('RUNNING').length) parts.push(`waited ${duration(total.queue)}`, `${isRunning ? 'has run' : 'ran'} ${duration(total.run + total.stop)}`);
	if (crashes) parts.push(`${survived ? 'survived' : 'suffered'} ${count(crashes, 'crash', 'crashes')}`);
	if (stable) parts.push(`resumed after “${stable}”`);
	const end = {
		CRASH: () => `waits for another attempt, because ${cause(d.cause)}`,
		STOPPING: () => `is being stopped (${d.asked})`,
		COMPLETED: () => 'is having its artifacts sealed',
		SEALED: () => `sealed ${count(d.files, 'artifact')}`,
		FAILED: () => `failed: ${describe(last)}`,
		CANCELLED: () => 'was cancelled',
	}[state];
	if (end) parts.push(end());
	const text = [parts.slice(0, -1).join(', '), parts.at(-1)].filter(Boolean).join(' and ');
	return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

/** A retriggered job gets as many attempts again. */
const attemptsMax = (events, manifest) => (events.findLast(({ state }) => state === 'RETRIGGERED')?.attempt ?? 0) + (manifest?.max_attempts ?? 3);

HB.model = { attemptsMax, create, merge, fold, select, runTime, story };
}
