/* Events → state: the jobs, newest first, and what one job's history tells. Pure: no DOM, no fetch, no clock.
   Begun with summaries (GET /api/jobs), kept up by events; `seq` decides which of the two is newer. */
'use strict';
{
const PHASE = { RECEIVED: 'waiting', SCHEDULED: 'waiting', SEALED: 'ended', FAILED: 'ended', CANCELLED: 'ended' };
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
		// Without its RECEIVED it lies before what was loaded: partial, until its summary is fetched.
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

/**
 * Times are of one fixed form, so their text order is their time order. A whole commit can share one time: then a job
 * from the stream goes before its equals, and one from a page (which runs to older jobs) behind them.
 */
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

/** Milliseconds from the first start to the end or now, crashes included; null before the start. */
const runTime = ({ started, ended }, now) => (started ? Math.max(0, (ended ? Date.parse(ended) : now) - Date.parse(started)) : null);

/**
 * A job's events → stretches of time in ms: {kind, attempt, from, to, open}.
 * kind: wait (until the first start), run, down (crash until the next attempt), seal (completed until sealed).
 */
function lane(events, now) {
	const out = [];
	for (const { state, time, attempt } of events) {
		const kind = { RECEIVED: 'wait', RUNNING: 'run', RECOVERY: 'run', CRASH: 'down', COMPLETED: 'seal' }[state];
		const last = out.at(-1);
		const at = Date.parse(time);
		if (last?.open && (kind || phaseOf(state) === 'ended')) Object.assign(last, { to: at, open: false });
		if (kind) out.push({ kind, attempt, from: at, to: Math.max(at, now), open: true });
	}
	return out;
}

/** A job's events → its summary in one sentence. */
function story(events, now) {
	const { duration, count, cause, marker } = HB.format;
	const { state, detail: d = {} } = events.at(-1);
	const total = { wait: 0, run: 0, down: 0, seal: 0 };
	for (const { kind, from, to } of lane(events, now)) total[kind] += to - from;
	const crashes = events.filter((e) => e.state === 'CRASH').length;
	const stable = marker(events.findLast((e) => e.state === 'RECOVERY')?.detail?.resumed_after);
	const isRunning = ['RUNNING', 'RECOVERY', 'D1_STABLE', 'STOPPING'].includes(state);
	const parts = [];
	if (phaseOf(state) === 'waiting') parts.push(`has waited ${duration(total.wait)}`);
	else if (events.some((e) => e.state === 'RUNNING')) parts.push(`waited ${duration(total.wait)}`, `${isRunning ? 'has run' : 'ran'} ${duration(total.run)}`);
	if (crashes && (isRunning || state === 'COMPLETED' || state === 'SEALED')) parts.push(`survived ${count(crashes, 'crash', 'crashes')}`);
	else if (crashes) parts.push(`crashed ${crashes === 1 ? 'once' : `${crashes} times`}`);
	if (stable) parts.push(`resumed after “${stable}”`);
	if (state === 'CRASH') parts.push(`waits for another attempt, because ${cause(d.cause)}`);
	if (state === 'COMPLETED') parts.push('is having its artifacts sealed');
	if (state === 'SEALED') parts.push(`sealed ${d.files >= 0 ? count(d.files, 'artifact') : 'its artifacts'}`);
	if (state === 'FAILED') parts.push(`failed: ${HB.format.describe(events.at(-1))}`);
	if (state === 'CANCELLED') parts.push('was cancelled');
	if (state === 'STOPPING') parts.push(`is being stopped (${d.asked})`);
	const text = [parts.slice(0, -1).join(', '), parts.at(-1)].filter(Boolean).join(' and ');
	return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

HB.model = { create, merge, fold, select, runTime, lane, story };
}
