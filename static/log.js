/* A payload's output: read by ranges, held as a bounded tail, followed while at its end. */
'use strict';
{
const { h, setText, setAttr } = HB;
const STEP = 1 << 20; // bytes per request, and of the tail at first
const HELD = 4 << 20; // bytes in the page at most
const LINES_MAX = 200_000; // so that their height stays below what browsers can scroll
const LINE_BYTES = 4096; // shown of one line
const POLL_MS = 1000;
const decoder = new TextDecoder();
const NONE = new Uint8Array(0);

/** The held stretch [from, end) of a log as lines {offset, text, stable}; the last may be unfinished. Pure. */
class LogTail {
	lines = [];
	open = NONE; // bytes of the unfinished line

	constructor(from = 0, held = HELD) {
		Object.assign(this, { from, held, end: from });
	}

	append(bytes) {
		if (this.open.length > 0) this.lines.pop();
		const offset = this.end - this.open.length;
		const buffer = new Uint8Array(this.open.length + bytes.length);
		buffer.set(this.open);
		buffer.set(bytes, this.open.length);
		this.open = NONE;
		for (let at = 0, to; at < buffer.length; at = to + 1) {
			to = buffer.indexOf(10, at);
			// An endless line is cut, or it would be copied whole for every byte that joins it.
			if (to < 0 && buffer.length - at < this.held) this.open = buffer.slice(at);
			if (to < 0) to = buffer.length;
			this.lines.push(line(buffer.subarray(at, to), offset + at));
		}
		this.end += bytes.length;
		let drop = Math.max(0, this.lines.length - LINES_MAX);
		while (drop < this.lines.length - 1 && this.end - this.lines[drop].offset > this.held) drop++;
		this.lines.splice(0, drop);
		if (this.lines.length > 0) this.from = this.lines[0].offset;
	}
}

/** One line as a terminal leaves it: colour codes and overwritten parts gone, other controls made visible. */
function line(bytes, offset) {
	const raw = decoder.decode(bytes.subarray(0, LINE_BYTES));
	const plain = raw.replace(/\x1b\[[0-9;:?]*[ -/]*[@-~]/g, '').replace(/\r+$/, '');
	const text = plain.slice(plain.lastIndexOf('\r') + 1).replace(/[\0-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
	return { offset, text: bytes.length > LINE_BYTES ? `${text} …` : text, stable: raw.startsWith('[D1_STABLE]') };
}

/** The new bytes in an answer to the range from `from` on. Pure. */
function reading(status, from, bytes) {
	if (status === 206) return bytes;
	return status === 200 ? bytes.subarray(from) : NONE; // 200: all, the range was not honoured
}

/** The pane: one stream of one attempt at a time. */
class LogPane {
	attempt = ''; // '': always the newest

	constructor(page) {
		Object.assign(this, { page, api: page.api });
		this.tabs = ['stdout', 'stderr'].map((name) => h('button', { class: 'chip', click: () => this.select(name) }, name));
		this.attempts = h('select', { 'aria-label': 'Attempt', change: () => this.select(this.stream, this.attempts.value) });
		this.raw = h('a', { class: 'quiet', target: '_blank', rel: 'noopener' }, 'Raw');
		this.end = h('button', { class: 'quiet', click: () => this.toEnd() });
		this.rows = h('div', { class: 'rows' });
		this.view = h('div', { class: 'log', tabindex: 0, role: 'region', 'aria-label': 'Output' }, this.rows);
		this.note = h('p', { class: 'note' });
		this.element = h('section', { class: 'logpane' }, h('header', null, h('h2', null, 'Output'), this.tabs, this.attempts, this.end, this.raw), this.view, this.note);
		this.list = new HB.Windowed({
			scroller: this.view,
			rows: this.rows,
			make: () => h('div', { class: 'line' }),
			draw: (row, i) => {
				const { text, stable } = this.tail.lines[i] ?? 0; // dropped?
				setText(row, text);
				setAttr(row, 'data-stable', stable ? '' : null);
			},
			rowHeight: () => parseFloat(getComputedStyle(this.view).lineHeight),
		});
		this.view.addEventListener('scroll', () => this.scrolled());
		this.view.addEventListener('keydown', ({ key }) => key === 'End' && this.toEnd());
		this.select('stdout');
		this.timer = setInterval(() => this.poke(), POLL_MS);
	}

	tick() {}

	close() {
		clearInterval(this.timer);
		this.list.observer.disconnect();
		this.run = null;
	}

	/** Shows another stream or attempt, from its tail. */
	select(stream, attempt = this.attempt) {
		// `run` stands for this selection: answers of an earlier one are dropped.
		Object.assign(this, { stream, attempt, tail: new LogTail(), follows: true, busy: false, problem: '', run: {} });
		this.draw();
		this.poke();
	}

	path() {
		return this.api.jobPath(this.page.job.job_id, `/${this.stream}?attempt=${this.attempt || this.page.job.attempt}`);
	}

	/** Redraws the controls. A pane that shows the newest attempt goes on to a new one. */
	update() {
		const { attempt: newest } = this.page.job;
		if (this.known !== newest) {
			const goesOn = this.known && this.attempt === '';
			this.known = newest;
			this.attempts.replaceChildren(h('option', { value: '' }, `newest (${newest})`), ...Array.from({ length: newest }, (_, i) => h('option', { value: i + 1 }, `attempt ${i + 1}`)));
			this.attempts.value = this.attempt;
			this.attempts.hidden = newest < 2;
			if (goesOn) return this.select(this.stream);
		}
		for (const button of this.tabs) setAttr(button, 'aria-pressed', button.textContent === this.stream);
		setAttr(this.raw, 'href', this.api.base + this.path());
		setText(this.end, this.follows ? 'Following' : 'To the end');
		setAttr(this.end, 'data-on', this.follows ? '' : null);
		const { from, end } = this.tail;
		setText(this.note, this.problem || `${HB.format.bytes(end)} written${from ? `, the last ${HB.format.bytes(end - from)} shown` : ''}`);
	}

	/** Reads what is new. Called by the clock and by `log` messages; one request at a time. */
	async poke() {
		const { run } = this;
		const isEnded = this.page.job.phase === 'ended';
		// Whoever reads older lines keeps them.
		const isFull = !this.follows && this.tail.end - this.tail.from > HELD - STEP;
		if (!run || this.busy || isFull || (run.settled && isEnded)) return;
		this.busy = true;
		try {
			await this.read(run);
			this.problem = '';
			run.settled = isEnded; // one read after the end saw all
		} catch (error) {
			// 404: no such attempt was started.
			this.problem = error.status === 404 ? '' : error.message;
		}
		if (run !== this.run) return;
		this.busy = false;
		this.update();
	}

	/** HEAD tells the length. It and `bytes=N-M` need no preflight from another origin; `bytes=-N` does. */
	async read(run) {
		const { headers } = await this.api.request(this.path(), { method: 'HEAD' });
		const length = Number(headers.get('Content-Length'));
		while (run === this.run && length !== this.tail.end) {
			if (!run.started || length < this.tail.end) this.tail = new LogTail(Math.max(0, length - STEP));
			run.started = true;
			const { end } = this.tail;
			const response = await this.api.request(this.path(), { headers: { Range: `bytes=${end}-${end + STEP - 1}` } });
			const bytes = reading(response.status, end, new Uint8Array(await response.arrayBuffer()));
			if (run !== this.run || bytes.length === 0) return;
			this.tail.append(bytes);
			this.draw();
		}
	}

	draw() {
		this.list.count = this.tail.lines.length;
		this.list.paint();
		if (this.follows) this.toEnd();
	}

	toEnd() {
		this.view.scrollTop = this.view.scrollHeight;
		this.scrolled();
	}

	scrolled() {
		const { scrollTop, clientHeight, scrollHeight } = this.view;
		this.follows = scrollTop + clientHeight > scrollHeight - 24;
		this.update();
	}
}

Object.assign(HB, { LogTail, logReading: reading, LogPane });
}
