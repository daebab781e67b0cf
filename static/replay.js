/* The node as it was at any seq: its events folded again. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const LIMIT = 500_000; // events held
const SPEEDS = [1, 10, 100, 1000];
const WAIT_MS = 1000; // of the reader: a longer stillness is cut to that
const KEYS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -100, PageDown: 100, Home: -Infinity, End: Infinity };

/** What each job was after each of its events, so that any seq is found without folding. Pure. */
class History {
	times = []; // ms of event i + 1
	jobs = new Map(); // by first event: id → versions, by seq
	model = HB.model.create();

	/** node: what jobs are marked with. */
	add(events, node) {
		for (const event of events) {
			this.times.push(Date.parse(event.time));
			const job = HB.model.fold(this.model, event);
			if (!job) continue;
			if (!this.jobs.has(job.job_id)) this.jobs.set(job.job_id, []);
			this.jobs.get(job.job_id).push({ ...job, node });
		}
	}

	/** The model as of seq. */
	at(seq) {
		const model = Object.assign(HB.model.create(), { seq });
		for (const [id, versions] of this.jobs) {
			if (versions[0].seq > seq) break;
			let low = 0;
			for (let high = versions.length; high - low > 1; ) {
				const mid = (low + high) >> 1;
				if (versions[mid].seq > seq) high = mid;
				else low = mid;
			}
			model.jobs.set(id, versions[low]);
			model.order.push(versions[low]);
		}
		model.order.reverse();
		return model;
	}
}

class Replay {
	seq = 0;
	model = HB.model.create();
	history = new History();
	listeners = new Set();
	work = new HB.Work();

	constructor(node) {
		this.node = node;
		this.wanted = Number(HB.route?.get('at') ?? new URLSearchParams(location.search).get('at')) || Infinity;
		this.range = h('input', { type: 'range', min: 1, max: 1, 'aria-label': 'Event', input: () => this.seek(Number(this.range.value)) });
		this.button = h('button', { click: () => this.play() }, 'Play');
		this.speed = h('select', { 'aria-label': 'Speed' }, SPEEDS.map((times) => h('option', { value: times }, `${times}×`)));
		this.when = h('span', { class: 'note' });
		this.verdict = HB.mark('verdict', 'checking');
		const close = h('button', { class: 'quiet', click: () => this.close() }, 'Close');
		this.element = h('div', { class: 'replay', role: 'group', 'aria-label': 'Replay', keydown: (event) => this.typed(event) }, this.button, this.speed, this.range, this.when, this.verdict, close);
		this.load().catch(({ message }) => this.say('unread', message));
	}

	/** fn(replay) is called for every change; `isClosed` is the last. */
	on(listener) {
		this.listeners.add(listener);
	}

	async load() {
		const { node } = this;
		const { seq: end, hash } = node.follower ?? (await node.api.json('/api/ledger/head'));
		const to = Math.min(end, LIMIT);
		const cut = to < end ? ` A replay holds ${format.number(LIMIT)} events: of ${format.number(end)} it shows these.` : '';
		setAttr(this.range, 'max', to);
		const told = (seq, events) => {
			this.history.add(events, node);
			this.say('checking', `${format.number(seq)} of ${format.number(to)}${cut}`);
			if (this.seq < this.wanted) this.seek(Math.min(seq, this.wanted), this.wanted);
		};
		const { ok, words, ...last } = await HB.walk(node.api, HB.chain.START, to, told, { hash: to === end && hash, wants: true, work: this.work });
		if (ok) HB.whole(node).note(last);
		this.say(ok ? 'checked' : ok === null ? 'unread' : 'mismatch', ok ? `checked to ${format.number(to)}${cut}` : `${words}. Run “hackbrain verify” on the node.`);
	}

	say(name, words) {
		this.verdict.update(name, words);
	}

	close() {
		if (this.isClosed) return;
		this.isClosed = true;
		this.work.close();
		cancelAnimationFrame(this.playing);
		clearTimeout(this.later);
		HB.route?.set({ at: null });
		this.element.remove();
		this.tell();
	}

	tell() {
		this.node.page?.asOf(this.isClosed ? null : this.seq);
		for (const listener of this.listeners) listener(this);
	}

	/** Shows the node as of seq, in the next frame. wanted: where it is to go once that is read. */
	seek(seq, wanted = seq) {
		this.wanted = wanted;
		this.goal = Math.max(1, Math.min(this.history.times.length, seq));
		this.frame ??= requestAnimationFrame(() => this.draw());
	}

	draw() {
		this.frame = null;
		if (this.isClosed || this.goal === this.seq) return;
		this.seq = this.goal;
		this.model = this.history.at(this.seq);
		this.range.value = this.seq;
		const time = new Date(this.history.times[this.seq - 1]).toISOString().slice(0, 23).replace('T', ' ');
		const words = `event ${format.number(this.seq)}, ${time}`;
		setText(this.when, words);
		setAttr(this.range, 'aria-valuetext', words);
		// Browsers allow few changes of the address in a short time.
		clearTimeout(this.later);
		this.later = setTimeout(() => HB.route?.set({ at: this.seq }), 300);
		this.tell();
	}

	/** Plays by the ledger's clock, or pauses. */
	play() {
		const { times } = this.history;
		const isPlaying = !this.playing && this.seq < times.length;
		setText(this.button, isPlaying ? 'Pause' : 'Play');
		cancelAnimationFrame(this.playing);
		this.playing = null;
		if (!isPlaying) return;
		let clock = times[this.seq - 1];
		let last = performance.now();
		const step = (now) => {
			const speed = Number(this.speed.value);
			let seq = this.goal;
			clock = Math.max(clock + (now - last) * speed, times[seq] - WAIT_MS * speed);
			last = now;
			while (times[seq] <= clock) seq++;
			this.seek(seq);
			if (seq >= times.length) return this.play();
			this.playing = requestAnimationFrame(step);
		};
		this.playing = requestAnimationFrame(step);
	}

	/** True where the key meant something here. */
	key(key, event) {
		if (event?.target.matches('button, select, a')) return false; // they have keys of their own
		if (key === ' ') this.play();
		else if (KEYS[key]) this.seek((this.goal ?? this.seq) + KEYS[key]);
		else return false;
		return true;
	}

	typed(event) {
		if (!this.key(event.key, event)) return;
		event.preventDefault();
		event.stopPropagation();
	}
}

Object.assign(HB, { History, Replay });
}
