/* A job's events as a list with verdicts, and the proof of the selected one. */
'use strict';
{
const { h, setText, setAttr, format, timeline: { floor } } = HB;
const STEPS = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

class Events {
	seq = null; // of the selected event
	proved = null; // the proof that is open, or being read

	constructor(page) {
		this.page = page;
		const rows = h('div', { class: 'rows' });
		this.box = h('div', { class: 'events', role: 'listbox', tabindex: 0, 'aria-label': 'Events', keydown: (event) => this.typed(event) }, rows);
		this.proof = h('div', { class: 'proof', 'aria-live': 'polite' });
		this.element = h('section', null, h('header', null, h('h2', null, 'Events'), h('span', { class: 'note' }, 'times in UTC')), this.box, this.proof);
		this.list = new HB.Windowed({ scroller: this.box, rows, make: () => this.make(), draw: (row, i) => this.draw(row, i), sticky: true });
	}

	update() {
		this.list.count = this.page.events.length;
		this.list.paint();
		if (this.seq === null) this.follow();
	}

	follow() {
		this.select(Number(HB.route.get('e')), true);
	}

	make() {
		const cells = [HB.mark('state', 'RECEIVED'), h('span', { class: 'what' }), h('time', null, '', h('small')), HB.mark('verdict', 'checking')];
		const row = h('div', { class: 'event', role: 'option', click: () => this.select(row.seq, true) }, cells);
		return Object.assign(row, { cells });
	}

	draw(row, i) {
		const { events, checker } = this.page;
		const event = events[i];
		const [state, what, time, verdict] = row.cells;
		const words = format.describe(event);
		row.seq = event.seq;
		row.id = `event-${event.seq}`;
		setAttr(row, 'aria-posinset', i + 1);
		setAttr(row, 'aria-setsize', events.length);
		setAttr(row, 'aria-selected', event.seq === this.seq);
		if (event.seq === this.seq) setAttr(this.box, 'aria-activedescendant', row.id);
		state.update(event.state);
		setText(what, words);
		setAttr(what, 'title', words);
		setText(time.firstChild, event.time.slice(11, 23));
		setText(time.lastChild, i ? `+${format.duration(Date.parse(event.time) - Date.parse(events[i - 1].time))}` : format.day(event.time));
		setAttr(time, 'title', event.time);
		verdict.update(HB.VERDICTS[checker.of(event.seq).ok]);
	}

	typed(event) {
		const step = STEPS[event.key];
		if (step) this.move(step);
		else if (event.key !== 'Enter') return;
		else if (this.proved) this.shut();
		else this.select(this.seq ?? this.page.events[0].seq, true);
		event.preventDefault();
		event.stopPropagation();
	}

	key(key) {
		if (key !== 'j' && key !== 'k') return false;
		this.box.focus();
		this.move(STEPS[key]);
		return true;
	}

	move(step) {
		const { events } = this.page;
		const at = floor(events, this.seq, 'seq') + step;
		this.select(events[Math.max(0, Math.min(events.length - 1, at))].seq);
	}

	/** Shows an event of this job; `opens`: with its proof, as where another's is open. */
	select(seq, opens = this.proved) {
		const { events } = this.page;
		const index = floor(events, seq, 'seq');
		if (events[index]?.seq !== seq) return;
		this.seq = seq;
		HB.route.set({ e: seq });
		const row = this.list.rowHeight();
		this.list.paint(Math.max((index + 1) * row - this.box.clientHeight, Math.min(this.list.top, index * row)));
		if (opens) this.prove(seq);
	}

	shut() {
		this.proved = null;
		this.proof.replaceChildren();
	}

	/** Reads the event and its neighbours anew. */
	async prove(seq) {
		const { api, checker } = this.page;
		const run = (this.proved = {});
		const show = (...parts) => run === this.proved && this.proof.replaceChildren(...parts);
		try {
			const [{ from, limit }] = HB.chain.plan([seq]);
			const ledger = await api.lines(`/api/ledger?from=${from}&limit=${limit}`);
			const record = ledger[seq - from];
			if (record?.event?.seq !== seq) throw new Error(`The ledger does not hold event ${seq} in its place. ${HB.VERIFY}`);
			const head = ledger[seq - from + 1] ? null : await api.json('/api/ledger/head');
			const now = HB.chain.verdict(record, ledger, from, head);
			const before = checker.of(seq);
			// The trace may have been served other bytes than the ledger.
			const { ok, words } = now.ok && before.ok === false ? before : now;
			const facts = {
				'prev, as stored': record.event.prev,
				[seq > 1 ? `SHA-256 of event ${seq - 1}, computed here` : 'before the first event']: now.computed || 'unread',
				[`SHA-256 of event ${seq}, computed here`]: HB.chain.hashOf(record),
				Verdict: `${HB.VERDICTS[ok]}: ${words}`,
			};
			const command = `curl -fsS${api.auth} '${api.base}/api/ledger?from=${seq}&limit=1' | tr -d '\\n' | sha256sum`;
			const close = h('button', { class: 'quiet', click: () => this.shut() }, 'Close');
			show(
				h('header', null, h('h3', null, `Event ${seq}`), HB.copyButton('Copy as a command', () => command), close),
				h('pre', { tabindex: 0, 'aria-label': `Stored bytes of event ${seq}` }, new TextDecoder().decode(record.bytes)),
				h('dl', null, HB.facts(facts)),
			);
		} catch ({ message }) {
			show(h('p', { class: 'note' }, message));
		}
	}
}

HB.Events = Events;
}
