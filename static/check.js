/* Checks against the node's ledger: a job's events with their neighbours, and the whole chain. */
'use strict';
HB.share((HB) => {
const { each, hashOf, fault, verdict, plan } = HB.chain;
const PAGE = 1000; // events per request of a walk
const SLICE = 250; // events between two pauses, where there are any
const DAY_MS = 86_400_000; // so long may be what is read

const revive = ({ base, token }) => Object.assign(new HB.Api(base), { token });
const load = (api, path) => revive(api).request(path, { accept: '*/*', timeout: DAY_MS });
const read = async (api, path) => new Uint8Array(await (await load(api, path)).arrayBuffer());
const bare = ({ prev, ...event }) => event;

/** Each takes (scope: what lives as long as the worker, args, tell). */
HB.tasks = {
	/** Tells a job's events, and keeps of each what `judge` needs. → that of the last. */
	async trace(scope, { api, path }, tell) {
		scope.waiting = new Map();
		let events = [];
		let last;
		for (const record of each(await read(api, path))) {
			if (!record.event) continue;
			const { seq, prev } = record.event;
			last = { event: { seq, prev }, hash: hashOf(record) };
			scope.waiting.set(seq, last);
			if (events.push(bare(record.event)) < SLICE) continue;
			tell(events.splice(0));
			await scope.pause?.();
		}
		tell(events);
		return last;
	},

	/** Judges what waits and what is fresh, newest first. → how many wait still. */
	async judge(scope, { api, fresh, most }, tell) {
		const waiting = (scope.waiting ??= new Map());
		for (const record of fresh) waiting.set(record.event.seq, record);
		for (const { from, limit } of plan(waiting.keys()).reverse()) {
			if ((most -= limit) < 0) break;
			const ledger = await revive(api).lines(`/api/ledger?from=${from}&limit=${limit}`);
			const head = ledger.length < limit ? await revive(api).json('/api/ledger/head') : null;
			const told = [];
			for (let seq = from; seq < from + limit; seq++) {
				const { ok = null, words } = waiting.has(seq) ? verdict(waiting.get(seq), ledger, from, head) : {};
				if (ok === null) continue; // a neighbour is not here, yet
				waiting.delete(seq);
				told.push([seq, ok, ok ? '' : words]);
			}
			tell(told);
			await scope.pause?.();
		}
		return waiting.size;
	},

	/** The chain from {seq, hash} on → {ok (null: undecided), seq and hash: how far it holds, words}. */
	async walk(scope, { api, from: at, to, hash, wants }, tell) {
		const say = (ok, words) => ({ ok, ...at, words });
		const page = async (seq) => seq < to && read(api, `/api/ledger?from=${seq + 1}&limit=${Math.min(PAGE, to - seq)}`);
		for (let next = page(at.seq); at.seq < to; ) {
			const bytes = await next;
			// While these are checked, the node sends the next.
			const end = Math.min(at.seq + PAGE, to);
			next = page(end);
			next.catch(() => {});
			const events = [];
			for (const record of each(bytes)) {
				const words = fault(record, at);
				if (words) return say(false, `event ${at.seq + 1}: ${words}`);
				at = { seq: at.seq + 1, hash: hashOf(record) };
				if (wants) events.push(bare(record.event));
				if (at.seq % SLICE === 0) await scope.pause?.();
			}
			if (at.seq < end) return say(null, `event ${at.seq + 1} could not be read`);
			tell({ ...at, events });
		}
		return hash && hash !== at.hash ? say(false, `event ${at.seq}: the head of the ledger names another hash for its bytes`) : say(true, '');
	},
};
Object.assign(HB, { load, read });
});
{
const { START, hashOf } = HB.chain;
const AUTO = 50_000; // events that are read without being asked to
const SOME = 1000; // and where that was not enough
const FEW = 10; // may wait for the ledger to go on behind them
const RETRY_MS = 3000;
const GATHER_MS = 120; // events come in bursts; one range then serves several
const VERIFY = 'Run “hackbrain verify” on the node.';
const VERDICTS = { true: 'checked', false: 'mismatch', null: 'unread', undefined: 'checking' }; // by ok

/** → {ok, seq, hash, words}. onProgress(seq, events): events only where wanted. */
function walk(api, from, to, onProgress, { hash, wants, work = new HB.Work() } = {}) {
	return work.run('walk', { api, from, to, hash, wants }, ({ seq, events }) => onProgress(seq, events)).finally(() => work.close());
}

/** Judges a job's events. */
class Checker {
	verdicts = new Map(); // seq → {ok, words}
	good = 0;
	bad = null; // {seq, words} of the first that is
	left = 0; // events that are not read until asked for
	problem = '';
	fresh = [];
	work = new HB.Work();

	constructor(api, onChange) {
		Object.assign(this, { api, onChange });
	}

	close() {
		this.work.close();
		clearTimeout(this.timer);
	}

	/** The job's events so far, in pieces; they are judged then. */
	async load(path, onEvents) {
		this.last = await this.work.run('trace', { api: this.api, path }, onEvents);
		this.judge();
	}

	add(record) {
		const { seq, prev } = record.event;
		this.last = { event: { seq, prev }, hash: hashOf(record) };
		this.fresh.push(this.last);
		this.soon(GATHER_MS);
	}

	soon(delay) {
		this.timer ??= setTimeout(() => this.judge(), delay);
	}

	async judge(most = this.left ? SOME : AUTO) {
		this.timer = clearTimeout(this.timer);
		if (this.isBusy) return this.soon(GATHER_MS);
		Object.assign(this, { isBusy: true, problem: '' });
		const fresh = this.fresh.splice(0);
		try {
			const left = await this.work.run('judge', { api: this.api, fresh, most }, (told) => this.take(told));
			this.left = left > FEW ? left : 0;
			if (left && !this.left) this.soon(RETRY_MS);
		} catch ({ message }) {
			this.problem = message;
			this.fresh.push(...fresh);
			this.soon(RETRY_MS);
		}
		this.isBusy = false;
		this.onChange();
	}

	take(told) {
		for (const [seq, ok, words] of told) {
			this.verdicts.set(seq, { ok, words });
			if (ok) this.good++;
			else if (!(this.bad?.seq < seq)) this.bad = { seq, words };
		}
		this.onChange();
	}

	/** The verdict on one event: ok is undefined while it is being judged. */
	of(seq) {
		return this.verdicts.get(seq) ?? { ok: this.problem || (this.left && !this.isBusy) ? null : undefined };
	}
}

/** The whole chain of a node, as far as this browser has checked it: up to `done`. */
class Whole {
	fault = ''; // what is wrong with it
	at = 0;
	to = 0;

	constructor(node) {
		this.node = node;
		this.done = this.kept?.checked ?? START;
	}

	get kept() {
		return HB.memory?.get(this.node.base);
	}

	/** Goes on where there is something new; `isAsked`: however much that is. */
	async look(isAsked) {
		const { follower, api } = this.node;
		if (this.kept?.checked === null) Object.assign(this, { done: START, fault: '', linked: null }); // another ledger was accepted
		if (this.isBusy || this.fault) return;
		// What the stream has brought since is linked to what was checked.
		if (follower?.sound && follower === this.linked) return this.note(follower);
		this.isBusy = true;
		try {
			const { seq, hash } = follower ?? (await api.json('/api/ledger/head'));
			const { done } = this;
			Object.assign(this, { to: seq, at: done.seq });
			if (seq < done.seq) this.fault = `The ledger ends at event ${seq}, but this browser has checked it to ${done.seq}. ${VERIFY}`;
			else if (isAsked || seq - done.seq <= AUTO) {
				if (follower) follower.sound = true; // from here on it counts
				const { ok, words, ...end } = await walk(api, done, seq, (seq) => (this.at = seq), { hash });
				if (ok === false) this.fault = `The chain does not hold at ${words}. ${VERIFY}`;
				if (ok) this.note(end, follower);
			}
		} catch {} // the node's badge tells; the next look tries again
		this.isBusy = false;
	}

	/** {seq, hash} is linked to the beginning. */
	note({ seq, hash }, linked = this.linked) {
		this.linked = linked;
		if (seq <= this.done.seq) return;
		Object.assign(this, { done: { seq, hash }, at: seq, to: Math.max(seq, this.to) });
		HB.memory?.set(this.node.base, { checked: this.done });
	}
}

Object.assign(HB, { VERIFY, VERDICTS, walk, Checker, whole: (node) => (node.whole ??= new Whole(node)) });
}
