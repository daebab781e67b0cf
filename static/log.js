/* A payload's output: read by ranges, kept as a bounded tail, followed while the reader is at its end. */
'use strict';
(() => {
const HB = (globalThis.HB ??= {});
const { h, setText, setAttribute } = HB;
const STEP = 1 << 20; // bytes per request, and of the tail at first
const HELD = 4 << 20; // bytes in the page at most
const LINES_MAX = 200_000; // so that their height stays below what browsers can scroll
const LINE_BYTES = 4096; // shown of one line
const POLL_MS = 1000;
const decoder = new TextDecoder();

/** The held stretch [from, end) of a log, as lines {offset, text, stable}; the last may be unfinished. Pure. */
class LogTail {
	constructor(from = 0, held = HELD) {
		Object.assign(this, { from, held, end: from, lines: [], open: new Uint8Array(0) });
		this.isCut = from > 0; // the first bytes to come are the rest of a line
	}

	append(bytes) {
		if (this.isCut && bytes.length > 0) {
			const next = bytes.indexOf(10) + 1; // 0: no newline in reach, so the rest of the line is better than nothing
			bytes = bytes.subarray(next);
			this.from = this.end += next;
			this.isCut = false;
		}
		if (this.open.length > 0) this.lines.pop();
		const buffer = new Uint8Array(this.open.length + bytes.length);
		buffer.set(this.open);
		buffer.set(bytes, this.open.length);
		const offset = this.end - this.open.length;
		let at = 0;
		for (let to; at < buffer.length; at = to + 1) {
			to = buffer.indexOf(10, at);
			const isOpen = to < 0;
			if (isOpen) to = buffer.length;
			this.lines.push(line(buffer.subarray(at, to), offset + at));
			// An endless line is cut, or it would be copied whole for every byte that joins it.
			this.open = isOpen && to - at < this.held ? buffer.slice(at) : new Uint8Array(0);
		}
		this.end += bytes.length;
		let drop = Math.max(0, this.lines.length - LINES_MAX);
		while (drop < this.lines.length - 1 && this.end - this.lines[drop].offset > this.held) drop++;
		this.lines.splice(0, drop);
		if (this.lines.length > 0) this.from = this.lines[0].offset;
	}
}

/** One line as shown: without colour codes, as a terminal leaves it after carriage returns, controls made visible. */
function line(bytes, offset) {
	const raw = decoder.decode(bytes.subarray(0, LINE_BYTES));
	const plain = raw.replace(/\x1b\[[0-9;:?]*[ -/]*[@-~]/g, '').replace(/\r+$/, '');
	const text = plain.slice(plain.lastIndexOf('\r') + 1).replace(/[\0-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
	const cut = bytes.length > LINE_BYTES ? ` … ${HB.format.bytes(bytes.length)} in this line` : '';
	return { offset, text: text + cut, stable: raw.startsWith('[D1_STABLE]') };
}

/**
 * What the answer to a range request from `from` on means: new bytes (maybe none), or null: the log is shorter than before.
 * `range` is its Content-Range, null where another origin may not read it. Pure.
 */
function reading(status, range, from, bytes) {
	if (status === 416) return Number(/\/(\d+)$/.exec(range ?? '')?.[1]) < from ? null : bytes.subarray(0, 0);
	if (status === 206) return bytes;
	return bytes.length < from ? null : bytes.subarray(from); // 200: all of it, the range was not honoured
}

/** The pane: one stream of one attempt at a time. job() gives {job_id, attempt, phase}. */
class LogPane {
	stream = 'stdout';
	attempt = ''; // '': always the newest

	constructor(api, job) {
		Object.assign(this, { api, job });
		this.tabs = ['stdout', 'stderr'].map((name) => h('button', { type: 'button', class: 'chip', click: () => this.select(name) }, name));
		this.attempts = h('select', { 'aria-label': 'Attempt', change: () => this.select(this.stream, this.attempts.value) });
		this.raw = h('a', { class: 'quiet', target: '_blank', rel: 'noopener' }, 'Raw');
		this.end = h('button', { type: 'button', class: 'quiet', click: () => this.toEnd() });
		this.rows = h('div', { class: 'rows' });
		this.view = h('div', { class: 'log', tabindex: 0, role: 'region' }, this.rows);
		this.note = h('p', { class: 'note' });
		const controls = h('header', null, h('h2', null, 'Output'), this.tabs, this.attempts, h('span', { class: 'gap' }), this.end, this.raw);
		this.element = h('section', { class: 'logpane', 'aria-label': 'Output of the payload' }, controls, this.view, this.note);
		this.list = new HB.Windowed({
			scroller: this.view,
			rows: this.rows,
			make: () => h('div', { class: 'line' }),
			draw: (row, i) => {
				const { text, stable } = this.tail.lines[i] ?? { text: '' };
				setText(row, text);
				setAttribute(row, 'data-stable', stable ? '' : null);
			},
			rowHeight: () => parseFloat(getComputedStyle(this.view).lineHeight),
		});
		this.view.addEventListener('scroll', () => this.scrolled(), { passive: true });
		this.view.addEventListener('keydown', ({ key }) => (key === 'End' || key === 'G') && this.toEnd());
		this.select('stdout', '');
		this.timer = setInterval(() => this.poke(), POLL_MS);
	}

	close() {
		clearInterval(this.timer);
		this.list.observer.disconnect();
		this.run = null;
	}

	/** Shows another stream or attempt, from its tail. */
	select(stream, attempt = this.attempt) {
		// `run` stands for this selection: answers that belong to an earlier one are dropped.
		Object.assign(this, { stream, attempt, tail: new LogTail(), follows: true, busy: false, problem: '', run: { started: false, settled: false } });
		this.draw();
		this.poke();
	}

	path() {
		return this.api.jobPath(this.job().job_id, `/${this.stream}?attempt=${this.attempt || this.job().attempt}`);
	}

	/** Redraws the controls. A pane that shows the newest attempt goes on to a new one. */
	update() {
		const { attempt: newest, phase } = this.job();
		if (this.known !== newest) {
			const isNew = this.known !== undefined && this.attempt === '';
			this.known = newest;
			this.attempts.replaceChildren(h('option', { value: '' }, `newest (${newest})`), ...Array.from({ length: newest }, (_, i) => h('option', { value: i + 1 }, `attempt ${i + 1}`)));
			this.attempts.value = this.attempt;
			this.attempts.hidden = newest < 2;
			if (isNew) return this.select(this.stream);
		}
		for (const button of this.tabs) setAttribute(button, 'aria-pressed', button.textContent === this.stream);
		setAttribute(this.raw, 'href', this.api.base + this.path());
		setAttribute(this.view, 'aria-label', `${this.stream}, attempt ${this.attempt || newest}`);
		setText(this.end, this.follows ? 'Following' : 'To the end');
		setAttribute(this.end, 'data-on', this.follows ? '' : null);
		const { from, end, lines } = this.tail;
		const empty = phase === 'waiting' ? 'The payload has not started.' : `Nothing on ${this.stream}.`;
		const size = `${HB.format.bytes(end)} written${from ? `, the last ${HB.format.bytes(end - from)} shown; Raw has all` : ''}`;
		setText(this.note, this.problem || (lines.length ? size : empty));
	}

	/** Reads what is new. Called by the clock and by `log` messages; one request at a time. */
	async poke() {
		const { run } = this;
		const { phase } = this.job();
		// Whoever reads older lines keeps them: no further bytes that would push them out.
		const isFull = !this.follows && this.tail.end - this.tail.from > HELD - STEP;
		if (!run || this.busy || isFull || (run.settled && phase === 'ended')) return;
		this.busy = true;
		try {
			if (!run.started) {
				// HEAD and `bytes=N-M` need no preflight and no exposed header from another origin; `bytes=-N` would.
				const { headers } = await this.api.request(this.path(), { method: 'HEAD', accept: '*/*' });
				if (run !== this.run) return;
				this.tail = new LogTail(Math.max(0, headers.get('Content-Length') - STEP));
				run.started = true;
			}
			while (await this.read(run));
			run.settled = phase === 'ended'; // one read after the end has seen everything
			this.problem = '';
		} catch (error) {
			// 404: no such attempt has started yet.
			this.problem = error.status === 404 ? '' : error.message;
			run.settled = error.status === 404 && phase === 'ended';
		}
		if (run !== this.run) return;
		this.busy = false;
		this.update();
	}

	/** One range. True where there may be more at once. */
	async read(run) {
		const { end } = this.tail;
		const response = await this.api.request(this.path(), { accept: '*/*', headers: { Range: `bytes=${end}-${end + STEP - 1}` } });
		const all = new Uint8Array(await response.arrayBuffer());
		if (run !== this.run) return false;
		const bytes = reading(response.status, response.headers.get('Content-Range'), end, all);
		if (bytes === null) this.tail = new LogTail();
		else if (bytes.length === 0) return false;
		else this.tail.append(bytes);
		this.draw();
		return bytes === null || bytes.length === STEP;
	}

	draw() {
		this.list.count = this.tail.lines.length;
		this.list.paint();
		if (this.follows) this.toEnd();
	}

	toEnd() {
		this.follows = true;
		this.view.scrollTop = this.view.scrollHeight;
		this.update();
	}

	scrolled() {
		const { scrollTop, clientHeight, scrollHeight } = this.view;
		this.follows = scrollTop + clientHeight > scrollHeight - 24;
		this.update();
	}
}

Object.assign(HB, { LogTail, logReading: reading, LogPane });
})();
