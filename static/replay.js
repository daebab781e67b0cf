/* The node as it was at any seq: its events folded again. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const LIMIT = 500_000; // events held
const STILL_MS = 1000; // of the reader's time: no pause is longer
const STEPS = { PageUp: -100, PageDown: 100 }; // a slider has the other keys itself

/** What each job was after each of its events. Pure. */
class History {
	times = []; // ms of event i + 1
	jobs = new Map(); // id → versions, by seq
	model = HB.model.create();

	/** node: what the jobs are marked with. */
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
			const job = versions[HB.timeline.floor(versions, seq, 'seq')];
			if (!job) break; // nor are those that follow
			model.jobs.set(id, job);
			model.order.push(job);
		}
		model.order.reverse();
		return model;
	}
}

class Replay {
	seq = 0; // shown, with `model`
	goal = 0; // what the next frame shows
	model = HB.model.create();
	history = new History();
	work = new HB.Work();
	tell = () => {};

	constructor(node) {
		this.node = node;
		node.replay = this;
		const wanted = Number(HB.route.get('at')) || Infinity;
		const moved = { input: () => this.seek(Number(this.range.value)), keydown: (event) => this.typed(event) };
		this.range = h('input', { type: 'range', min: 1, max: 1, 'aria-label': 'Event', ...moved });
		this.button = h('button', { click: () => this.play() }, 'Play');
		this.speed = h('select', { 'aria-label': 'Speed' }, [1, 10, 100, 1000].map((times) => h('option', { value: times }, `${times}×`)));
		this.when = h('span', { class: 'note' });
		this.verdict = HB.mark('verdict', 'checking');
		const close = h('button', { class: 'quiet', click: () => this.close() }, 'Close');
		this.element = h('div', { class: 'replay', role: 'group', 'aria-label': 'Replay' }, this.button, this.speed, this.range, this.when, this.verdict, close);
		this.load(wanted).catch(({ message }) => this.verdict.update('unread', message));
	}

	/** listener(replay) hears of every change; the last is that it `isClosed`. */
	on(listener) {
		this.tell = listener;
	}

	async load(wanted) {
		const { node, history, verdict, work } = this;
		const { seq: end, hash } = node.follower;
		const to = Math.min(end, LIMIT);
		const all = `${format.number(to)}${to < end ? `, the most that a replay holds, of ${format.number(end)}` : ''}`;
		setAttr(this.range, 'max', to);
		const read = (seq, events) => {
			history.add(events, node);
			verdict.update('checking', `${format.number(seq)} of ${all}`);
			// Until the reader goes elsewhere.
			if (this.goal === Math.min(seq - events.length, wanted)) this.seek(Math.min(seq, wanted));
		};
		const { ok, words, ...last } = await HB.walk(node.api, HB.chain.START, to, read, { hash: to === end && hash, wants: true, work });
		if (ok) HB.whole(node).note(last);
		verdict.update(HB.VERDICTS[ok], ok ? `checked to ${all}` : `${words}. ${HB.VERIFY}`);
	}

	close() {
		this.isClosed = true;
		this.node.replay = null;
		this.work.close();
		cancelAnimationFrame(this.playing);
		clearTimeout(this.later);
		HB.route.set({ at: null });
		this.element.remove();
		this.tell(this);
	}

	seek(seq) {
		this.goal = Math.max(1, Math.min(this.history.times.length, seq));
		this.frame ??= requestAnimationFrame(() => this.draw());
	}

	draw() {
		this.frame = null;
		if (this.isClosed || this.goal === this.seq) return;
		const { history, goal, range } = this;
		Object.assign(this, { seq: goal, model: history.at(goal) });
		range.value = goal;
		const words = `event ${format.number(goal)}, ${new Date(history.times[goal - 1]).toISOString().slice(0, 23).replace('T', ' ')}`;
		setText(this.when, words);
		setAttr(range, 'aria-valuetext', words);
		// Browsers allow few changes of the address in a short time.
		clearTimeout(this.later);
		this.later = setTimeout(() => HB.route.set({ at: goal }), 300);
		this.tell(this);
	}

	/** Plays by the ledger's clock, or pauses. */
	play() {
		const { times } = this.history;
		const isPlaying = !this.playing && this.goal < times.length;
		setText(this.button, isPlaying ? 'Pause' : 'Play');
		cancelAnimationFrame(this.playing);
		this.playing = null;
		let clock = times[this.goal - 1];
		let last = performance.now();
		const step = (now) => {
			const speed = Number(this.speed.value);
			let seq = this.goal;
			clock = Math.max(clock + (now - last) * speed, times[seq] - STILL_MS * speed);
			last = now;
			while (times[seq] <= clock) seq++;
			this.seek(seq);
			if (seq >= times.length) this.play();
			else this.playing = requestAnimationFrame(step);
		};
		if (isPlaying) this.playing = requestAnimationFrame(step);
	}

	typed(event) {
		if (event.key === ' ') this.play();
		else if (STEPS[event.key]) this.seek(this.goal + STEPS[event.key]);
		else return;
		event.preventDefault();
	}
}

Object.assign(HB, { History, Replay });
}
