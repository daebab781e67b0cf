/* Time on a job's page: stretches, a scale that folds idle ones, the visible part. Pure. */
'use strict';
{
/** What begins with an event of that state. */
const KIND = { RECEIVED: 'queue', RETRIGGERED: 'queue', RUNNING: 'run', RECOVERY: 'run', CRASH: 'down', STOPPING: 'stop', COMPLETED: 'seal', SEALED: 'rest', FAILED: 'rest', CANCELLED: 'rest' };
const IDLE = /queue|down|rest/;
const DAY = 86_400_000;
const STEPS = [100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5, 108e5, 216e5, 432e5];
const LEAST = 200; // ms that fill the plot
const clamp = (value, low = 0, high = 1) => Math.max(low, Math.min(high, value));
const msOf = (event) => (event.ms ??= Date.parse(event.time));

/** Index of the last item whose key is not above value, or -1. */
function floor(list, value, key = 'ms') {
	let [low, high] = [0, list.length];
	while (low < high) {
		const mid = (low + high) >> 1;
		if (list[mid][key] <= value) low = mid + 1;
		else high = mid;
	}
	return low - 1;
}

let known = { size: 0 };

/**
 * What a job's events tell: parts {kind, attempt, from}, `stable` (D1_STABLE) with `sums` of what those stand for, other `marks`.
 * A list that begins as the one before is looked at from where that ended.
 */
function life(events) {
	if (!known.size || events[known.size - 1] !== known.last) known = { size: 0, parts: [], marks: [], stable: [], sums: [] };
	const { size, parts, marks, stable, sums } = known;
	for (const event of events.slice(size)) {
		const { state, attempt, detail } = event;
		const from = msOf(event);
		if (state === 'D1_STABLE') stable.push(event) && sums.push((sums.at(-1) ?? 0) + (detail?.count ?? 1));
		else marks.push(event);
		if (KIND[state]) parts.push({ kind: KIND[state], attempt, from });
	}
	return Object.assign(known, { size: events.length, last: events.at(-1) });
}

/** Events → stretches {kind, attempt, from, to (ms), open} without a gap; rest: ended, then retriggered. */
const stretches = (events, now) =>
	life(events)
		.parts.map((part, i, { [i + 1]: next }) => ({ ...part, to: next?.from ?? Math.max(part.from, now), open: !next }))
		.filter(({ kind, open }) => !open || kind !== 'rest');

/** Stretches → pieces {…, u, v, folded} of 0..1. The longest idle ones fold to `room` each. */
function fold(parts, room) {
	const size = ({ from, to }) => to - from;
	const sum = (list) => list.reduce((total, part) => total + size(part), 0);
	const idle = parts.filter(({ kind }) => IDLE.test(kind)).sort((a, b) => size(b) - size(a));
	let shown = sum(parts);
	const work = shown - sum(idle);
	let breaks = 0;
	for (; work && shown > 1.5 * work && size(idle[breaks]) > room * shown; breaks++) shown -= size(idle[breaks]);
	const share = Math.min(room, 0.35 / breaks);
	let v = 0;
	return parts.filter(size).map((part) => {
		const folded = idle.slice(0, breaks).includes(part);
		return { ...part, folded, u: v, v: (v += folded ? share : (size(part) / shown) * (1 - share * breaks)) };
	});
}

/** D1_STABLE of a life → {attempt, from, to, count} per `step` ms: bins that stay while time goes on. */
function bins({ stable, sums }, from, to, step) {
	const out = [];
	for (let i = floor(stable, from - step) + 1, next; stable[i]?.ms <= to + step; i = next) {
		const { ms, attempt } = stable[i];
		const end = (Math.floor(ms / step) + 1) * step;
		// At least this one, whatever a clock that was set back has left behind.
		next = Math.max(i, Math.min(floor(stable, Math.ceil(end) - 1), floor(stable, attempt, 'attempt'))) + 1;
		out.push({ attempt, from: ms, to: stable[next - 1].ms, count: sums[next - 1] - (sums[i - 1] ?? 0) });
	}
	return out;
}

/** on(fn) hears of every change: fn(true) of one of what is visible. */
class TimeView {
	cursor = null; // ms since 1970, or null
	listeners = [];
	// px before the plot, of it, and behind it.
	left = 0;
	width = 600;
	right = 0;
	span = [-Infinity, Infinity];

	on(listener) {
		this.listeners.push(listener);
	}

	tell(isScale) {
		for (const listener of this.listeners) listener(isScale);
	}

	point(ms) {
		if (ms === this.cursor) return;
		this.cursor = ms;
		this.tell();
	}

	/** The job's history as of `now`; a break is `room` px wide. */
	take(events, now, room = 70) {
		const parts = stretches(events, now);
		this.pieces = fold(parts, Math.min(0.25, room / this.width));
		if (!this.pieces.length) this.pieces = [{ ...parts[0], to: parts[0].from + 1000, u: 0, v: 1 }];
		this.look();
	}

	look() {
		const { pieces, span } = this;
		[this.start, this.end] = [pieces[0].from, pieces.at(-1).to];
		[this.from, this.to] = [Math.max(span[0], this.start), Math.min(span[1], this.end)];
		[this.u, this.v] = [this.all(this.from), this.all(this.to)];
		this.isWhole = this.v - this.u > 1 - 1e-9;
		const { from, to, u, v } = pieces.find(({ folded }) => !folded);
		this.rate = (to - from) / (v - u); // ms per 1, where nothing is folded
		this.density = (this.rate * (this.v - this.u)) / this.width; // ms per px
	}

	/** ms → 0..1 of everything, and back. */
	all(ms) {
		const { from, to, u, v } = this.pieces[Math.max(0, floor(this.pieces, ms, 'from'))];
		return u + clamp((ms - from) / (to - from)) * (v - u);
	}

	when(share) {
		const { from, to, u, v } = this.pieces[Math.max(0, floor(this.pieces, share, 'u'))];
		return from + clamp((share - u) / (v - u)) * (to - from);
	}

	/** ms → 0..1 of the visible part, beyond it too, and back. */
	x(ms) {
		return (this.all(ms) - this.u) / (this.v - this.u);
	}

	at(x) {
		return this.when(this.u + x * (this.v - this.u));
	}

	px(ms) {
		return this.left + clamp(this.x(ms)) * this.width;
	}

	has(ms) {
		return ms >= this.from && ms <= this.to;
	}

	/** Makes [from, to] ms visible. What reaches the newest instant goes on with it. */
	show(from, to) {
		this.span = [from > this.start ? from : -Infinity, to < this.end ? to : Infinity];
		this.look();
		this.tell(true);
	}

	showShare(u, v) {
		const size = clamp(v - u, Math.min(1, LEAST / this.rate));
		const low = clamp(u, 0, 1 - size);
		this.show(this.when(low), low + size > 1 - 1e-9 ? Infinity : this.when(low + size));
	}

	/** Shows `factor` times as much; x stays where it is, or moves by `by`. */
	zoom(factor, x = 0.5, by = 0) {
		const size = this.v - this.u;
		const u = this.u + size * (x * (1 - factor) + by);
		this.showShare(u, u + size * factor);
	}

	/** Visible round instants in UTC, `gap` px apart, none in a break; and their step. */
	ticks(gap) {
		const least = gap * this.density;
		const step = STEPS.find((ms) => ms >= least) ?? DAY * 2 ** Math.max(0, Math.ceil(Math.log2(least / DAY)));
		const out = Object.assign([], { step });
		for (const { from, to, folded } of this.pieces) {
			for (let ms = Math.ceil(Math.max(from, this.from) / step) * step; !folded && ms <= Math.min(to, this.to); ms += step) {
				if (!out.length || this.px(ms) - this.px(out.at(-1)) >= gap) out.push(ms);
			}
		}
		return out;
	}
}

Object.assign(HB, { TimeView, timeline: { KIND, life, stretches, fold, bins, floor, clamp, msOf } });
}
