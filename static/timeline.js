/* Time on a job's page: stretches, a scale that folds idle ones, the visible part, the instant pointed at. Pure. */
'use strict';
{
const KIND = { RECEIVED: 'queue', RETRIGGERED: 'queue', RUNNING: 'run', RECOVERY: 'run', CRASH: 'down', STOPPING: 'stop', COMPLETED: 'seal' };
const ENDS = ['SEALED', 'FAILED', 'CANCELLED'];
const IDLE = ['queue', 'down', 'rest'];
const FOLDED_SHARE = 0.35; // of the width, for all breaks together
const SECOND = 1000;
const LEAST_MS = 200; // that fill the plot
const HOUR = 3_600_000;
const STEPS = [...[0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800].map((s) => s * SECOND), ...[1, 2, 3, 6, 12, 24, 48, 96].map((h) => h * HOUR)];
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/** Index of the last item whose key is not above value, or -1. */
function floor(list, value, key) {
	let [low, high] = [0, list.length];
	while (low < high) {
		const mid = (low + high) >> 1;
		if (list[mid][key] <= value) low = mid + 1;
		else high = mid;
	}
	return low - 1;
}

/** A job's events → stretches {kind, attempt, from, to (ms), open} without a gap: queue, run, down (after a crash), stop, seal, rest (ended, then retriggered). */
function stretches(events, now) {
	const out = [];
	for (const { state, time, attempt } of events) {
		const kind = KIND[state];
		if (!kind && !ENDS.includes(state)) continue;
		const last = out.at(-1);
		const at = Date.parse(time);
		if (last?.open) Object.assign(last, { to: at, open: false });
		else if (last) out.push({ kind: 'rest', attempt: last.attempt, from: last.to, to: at, open: false });
		if (kind) out.push({ kind, attempt, from: at, to: Math.max(at, now), open: true });
	}
	return out;
}

/** Stretches → pieces {…, u, v, folded} of 0..1. The longest idle ones fold to `room` each until the others are half of the work. */
function fold(parts, room) {
	const length = ({ from, to }) => to - from;
	const idle = parts.filter(({ kind }) => IDLE.includes(kind)).sort((a, b) => length(b) - length(a));
	const work = parts.reduce((sum, part) => sum + length(part), 0) - idle.reduce((sum, part) => sum + length(part), 0);
	let shown = work + idle.reduce((sum, part) => sum + length(part), 0);
	const folded = new Set();
	for (const part of idle) {
		if (!work || shown <= 1.5 * work || length(part) <= room * shown) break;
		folded.add(part);
		shown -= length(part);
	}
	const share = Math.min(room, FOLDED_SHARE / folded.size);
	let u = 0;
	return parts.filter(length).map((part) => {
		const from = u;
		u += folded.has(part) ? share : (length(part) / shown) * (1 - share * folded.size);
		return { ...part, u: from, v: u, folded: folded.has(part) };
	});
}

/** Marks {ms, count} by ms → {from, to, count} per `step` ms: bins that stay where they are while time goes on. */
function bins(marks, from, to, step) {
	const out = [];
	for (let i = floor(marks, from - step, 'ms') + 1; i < marks.length && marks[i].ms <= to + step; i++) {
		const { ms, count } = marks[i];
		const key = Math.floor(ms / step);
		const last = out.at(-1);
		if (last?.key === key) Object.assign(last, { to: ms, count: last.count + count });
		else out.push({ key, from: ms, to: ms, count });
	}
	return out;
}

/** The instant pointed at, the visible part, the scale. on(fn) is told of every change, with its origin; `version` counts those of the scale. */
class TimeView {
	cursor = null; // ms since 1970, or null
	listeners = new Set();
	left = 0; // px before the plot, of it, and behind it: the parts of a page stand below each other
	width = 600;
	right = 0;
	version = 0;
	span = [-Infinity, Infinity];
	parts = [];
	pieces = [{ from: 0, to: SECOND, u: 0, v: 1 }];

	on(listener) {
		this.listeners.add(listener);
	}

	tell(origin) {
		for (const listener of this.listeners) listener(origin);
	}

	/** origin: the part that says so. */
	point(ms, origin) {
		if (ms === this.cursor) return;
		this.cursor = ms;
		this.tell(origin);
	}

	/** The job's history as of `now`; a break is `room` px wide. */
	take(events, now, room = 70) {
		this.parts = stretches(events, now);
		const pieces = fold(this.parts, Math.min(0.25, room / this.width));
		const [at] = this.parts;
		if (at) this.pieces = pieces.length ? pieces : [{ ...at, to: at.from + SECOND, u: 0, v: 1 }];
		this.look();
	}

	look() {
		const { pieces, span } = this;
		[this.start, this.end] = [pieces[0].from, pieces.at(-1).to];
		[this.from, this.to] = [Math.max(span[0], this.start), Math.min(span[1], this.end)];
		[this.u, this.v] = [this.all(this.from), this.all(this.to)];
		this.version++;
	}

	/** ms → 0..1 of everything, and back. */
	all(ms) {
		const { from, to, u, v } = this.pieces[Math.max(0, floor(this.pieces, ms, 'from'))];
		return u + clamp((ms - from) / (to - from), 0, 1) * (v - u);
	}

	when(share) {
		const { from, to, u, v } = this.pieces[Math.max(0, floor(this.pieces, share, 'u'))];
		return from + clamp((share - u) / (v - u), 0, 1) * (to - from);
	}

	/** ms → 0..1 of the visible part, beyond it too, and back. */
	x(ms) {
		return (this.all(ms) - this.u) / (this.v - this.u);
	}

	at(x) {
		return this.when(this.u + x * (this.v - this.u));
	}

	px(ms) {
		return this.left + this.x(ms) * this.width;
	}

	/** ms per px where nothing is folded. */
	get density() {
		const { from, to, u, v } = this.pieces.find(({ folded }) => !folded);
		return (((to - from) / (v - u)) * (this.v - this.u)) / this.width;
	}

	/** Makes [from, to] ms visible. What reaches the newest instant goes on with it. */
	show(from, to) {
		this.span = [from > this.start ? from : -Infinity, to < this.end ? to : Infinity];
		this.look();
		this.tell(this);
	}

	/** The same by shares of everything; no smaller than can be told apart. */
	showShare(u, v) {
		const size = clamp(v - u, Math.min(1, (LEAST_MS / this.density / this.width) * (this.v - this.u)), 1);
		const low = clamp(u, 0, 1 - size);
		this.show(this.when(low), low + size > 1 - 1e-9 ? Infinity : this.when(low + size));
	}

	/** Shows `factor` times as much; x stays where it is. */
	zoom(factor, x = 0.5) {
		const size = this.v - this.u;
		const u = this.u + x * size * (1 - factor);
		this.showShare(u, u + size * factor);
	}

	pan(x) {
		const size = this.v - this.u;
		this.showShare(this.u + x * size, this.v + x * size);
	}

	/** Visible round instants in UTC, `gap` px apart at least; none within a break. Their step is {step}. */
	ticks(gap = 90) {
		const step = STEPS.find((ms) => ms >= gap * this.density) ?? 2 ** Math.ceil(Math.log2((gap * this.density) / HOUR / 24)) * HOUR * 24;
		const out = [];
		for (const { from, to, folded } of this.pieces) {
			const last = Math.min(to, this.to);
			for (let ms = Math.ceil(Math.max(from, this.from) / step) * step; !folded && ms <= last; ms += step) {
				if (!out.length || this.px(ms) - this.px(out.at(-1)) >= gap) out.push(ms);
			}
		}
		return Object.assign(out, { step });
	}
}

HB.TimeView = TimeView;
HB.timeline = { stretches, fold, bins, floor };
}
