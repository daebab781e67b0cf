/* A job's events as a list with verdicts, and the proof of the selected one. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const WORDS = { true: 'checked', false: 'mismatch', null: 'unread', undefined: 'checking' };
const STEPS = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

class Events {
	seq = null; // of the selected event
	follows = true; // while at the end

	constructor(page) {
		this.page = page;
		this.rows = h('div', { class: 'rows' });
		this.box = h('div', { class: 'events', role: 'listbox', tabindex: 0, 'aria-label': 'Events', keydown: (event) => this.typed(event), scroll: () => this.scrolled() }, this.rows);
		this.proof = h('div', { class: 'proof', 'aria-live': 'polite' });
		this.element = h('section', null, h('header', null, h('h2', null, 'Events'), h('span', { class: 'note' }, 'times in UTC')), this.box, this.proof);
		const rowHeight = () => parseFloat(getComputedStyle(this.box).getPropertyValue('--row'));
		this.list = new HB.Windowed({ scroller: this.box, rows: this.rows, make: () => this.make(), draw: (row, i) => this.draw(row, i), rowHeight });
	}

	close() {
		this.list.observer.disconnect();
		this.run = null;
	}

	tick() {}

	update() {
		this.list.count = this.page.events.length;
		this.list.paint();
		if (this.follows) this.box.scrollTop = this.box.scrollHeight;
		const asked = Number(HB.route?.get('e'));
		if (this.seq === null && asked) this.select(asked, true);
	}

	scrolled() {
		const { scrollTop, clientHeight, scrollHeight } = this.box;
		this.follows = scrollTop + clientHeight > scrollHeight - 24;
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
		verdict.update(WORDS[checker.of(event.seq).ok]);
	}

	typed(event) {
		const step = STEPS[event.key];
		if (step) this.move(step);
		else if (event.key !== 'Enter') return;
		else if (this.isOpen) this.shut();
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
		const at = events.findIndex(({ seq }) => seq === this.seq);
		this.select(events[Math.max(0, Math.min(events.length - 1, at < 0 && step > 0 ? 0 : at + step))].seq);
	}

	/** Shows an event of this job; `opens`: with its proof, as where another's is open. */
	select(seq, opens = this.isOpen) {
		const index = this.page.events.findIndex((event) => event.seq === seq);
		if (index < 0) return;
		this.seq = seq;
		HB.route?.set({ e: seq });
		const row = this.list.rowHeight();
		const { scrollTop, clientHeight } = this.box;
		this.box.scrollTop = Math.max((index + 1) * row - clientHeight, Math.min(scrollTop, index * row));
		this.scrolled();
		this.list.paint();
		if (opens) this.prove(seq);
	}

	shut() {
		this.isOpen = this.run = null;
		this.proof.replaceChildren();
	}

	/** Reads the event and its neighbours anew; no bytes are held but these. */
	async prove(seq) {
		const { api, checker } = this.page;
		const run = (this.run = {});
		this.isOpen = true;
		try {
			const [{ from, limit }] = HB.chain.plan([seq]);
			const ledger = await api.lines(`/api/ledger?from=${from}&limit=${limit}`);
			const record = ledger[seq - from];
			if (record?.event?.seq !== seq) throw new Error(`The ledger does not hold event ${seq} in its place. ${HB.VERIFY}`);
			const head = ledger[seq - from + 1] ? null : await api.json('/api/ledger/head');
			if (run !== this.run) return;
			const now = HB.chain.verdict(record, ledger, from, head);
			const before = checker.of(seq);
			// The trace may have been served other bytes than the ledger.
			const { ok, words } = now.ok && before.ok === false ? before : now;
			const facts = {
				'prev, as stored': record.event.prev,
				[seq > 1 ? `SHA-256 of event ${seq - 1}, computed here` : 'before the first event']: now.computed || 'unread',
				[`SHA-256 of event ${seq}, computed here`]: HB.chain.hashOf(record),
				Verdict: `${WORDS[ok]}: ${words}`,
			};
			const command = `curl -fsS${api.token && ' -H "Authorization: Bearer $TOKEN"'} '${api.base}/api/ledger?from=${seq}&limit=1' | tr -d '\\n' | sha256sum`;
			this.proof.replaceChildren(
				h('header', null, h('h3', null, `Event ${seq}`), HB.copyButton('Copy as a command', () => command), h('button', { class: 'quiet', click: () => this.shut() }, 'Close')),
				h('pre', { tabindex: 0, 'aria-label': `Stored bytes of event ${seq}` }, new TextDecoder().decode(record.bytes)),
				h('dl', null, Object.entries(facts).map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value)))),
			);
		} catch (error) {
			if (run === this.run) this.proof.replaceChildren(h('p', { class: 'note' }, error.message));
		}
	}
}

HB.Events = Events;
}
