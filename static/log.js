/* A payload's output, by line: the agent says where lines begin, their bytes come by ranges as they are looked at. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const STEP = 1 << 18; // bytes of a block, at most
const HELD = 8e6 - STEP; // bytes in the page, before one more block
const WALK = 4 * STEP; // bytes of growth that are read rather than asked about
const SHOWN = 4096; // bytes of a line
const FOUND = 10_000; // matches that the agent tells at once, at most
const POLL_MS = 1000;
const LF = 10;
const NONE = new Uint8Array(0);
const decoder = new TextDecoder();
/** The index of the last in a rising list that is at most `most`. */
const lastUpTo = (list, most, of) => {
	let [low, high] = [0, list.length];
	while (low < high) {
		const mid = (low + high) >> 1;
		if (of(list[mid]) <= most) low = mid + 1;
		else high = mid;
	}
	return low - 1;
};
const newlines = (bytes) => {
	let n = 0;
	for (const byte of bytes) if (byte === LF) n++;
	return n;
};
const join = (a, b) => {
	const all = new Uint8Array(a.length + b.length);
	all.set(a);
	all.set(b, a.length);
	return all;
};

/** A log of which some blocks are here. Points [newlines before, offset] part them. Pure. */
class LogFile {
	held = new Map(); // offset of a block → bytes; the last looked at is last
	wanted = new Set(); // offsets of blocks that lookups lacked

	constructor(size, points = [[0, 0]], lines = 0) {
		Object.assign(this, { size, points, told: lines, last: points.at(-1) });
	}

	at(offset) {
		return lastUpTo(this.points, offset, (point) => point[1]);
	}

	/** As much of block i as is here. */
	block(i) {
		const from = this.points[i][1];
		const length = Math.min(this.points[i + 1]?.[1] ?? this.size, from + STEP) - from;
		const bytes = this.held.get(from) ?? NONE;
		if (bytes.length < length) this.wanted.add(from);
		if (this.held.delete(from)) this.held.set(from, bytes);
		return bytes.subarray(0, length);
	}

	/** Bytes of the block at `from`, behind the `skip` that are here. */
	put(from, skip, bytes) {
		const all = join(this.held.get(from) ?? NONE, bytes);
		if (all.length !== skip + bytes.length) return; // dropped meanwhile
		let sum = 0;
		for (const { length } of this.held.values()) sum += length;
		for (const [key, { length }] of this.held) if (sum > HELD && this.held.delete(key)) sum -= length;
		this.held.delete(from);
		this.held.set(from, all);
		const i = this.at(from);
		const end = from + STEP;
		if (all.length >= STEP && !(this.points[i + 1]?.[1] <= end)) this.points.splice(i + 1, 0, [this.points[i][0] + newlines(all), end]);
	}

	/** Lines, an unfinished one too. */
	get lines() {
		const i = this.at(this.size - 1);
		if (i < 0) return 0;
		const bytes = this.block(i);
		if (this.points[i][1] + bytes.length === this.size) this.told = this.points[i][0] + newlines(bytes) + (bytes.at(-1) !== LF);
		return this.told;
	}

	/** The offset of a line; undefined where a block is lacking. */
	start(n) {
		if (n === 0) return this.points[0][1];
		if (this.near?.n === n) return this.near.offset;
		const i = lastUpTo(this.points, n - 1, (point) => point[0]);
		const bytes = this.block(i);
		let at = 0;
		for (let line = this.points[i][0]; line < n; line++) if (!(at = bytes.indexOf(LF, at) + 1)) return undefined;
		return this.points[i][1] + at;
	}

	/** The line that holds a byte; undefined where a block is lacking. */
	lineAt(offset) {
		const i = this.at(offset);
		const bytes = i < 0 ? NONE : this.block(i);
		const [line, from] = this.points[i] ?? [];
		return offset - from < bytes.length ? line + newlines(bytes.subarray(0, offset - from)) : undefined;
	}

	/** A line: {offset, bytes: SHOWN at most, isWhole, isCut}; undefined where a block is lacking. */
	line(n) {
		const offset = this.start(n);
		let bytes = NONE;
		for (let i = this.at(offset); offset >= 0 && i < this.points.length && bytes.length <= SHOWN; i++) {
			const block = this.block(i);
			const from = this.points[i][1];
			const part = block.subarray(Math.max(0, offset - from)).subarray(0, SHOWN + 1 - bytes.length);
			bytes = join(bytes, part);
			if (part.includes(LF) || from + block.length < this.points[i + 1]?.[1]) break;
		}
		if (bytes.length === 0) return undefined;
		const to = bytes.indexOf(LF);
		if (to >= 0) this.near = { n: n + 1, offset: offset + to + 1 };
		return { offset, bytes: bytes.subarray(0, to < 0 ? SHOWN : to), isWhole: to >= 0, isCut: to < 0 && bytes.length > SHOWN };
	}
}

const nearest = (...rgb) => rgb.reduce((sum, part, i) => sum + (part > 50 && part > Math.max(...rgb) * 0.6 ? 1 << i : 0), 0);
const of256 = (n) => (n < 16 ? n : n > 231 ? 7 * (n > 243) : nearest(...[36, 6, 1].map((unit) => (Math.floor((n - 16) / unit) % 6) * 51)));

/** A look {ink, paper, bold, under} after the codes of an SGR sequence. */
function sgr(look, codes) {
	look = { ...look };
	for (let i = 0; i < codes.length; i++) {
		const code = codes[i];
		const layer = { 3: 'ink', 9: 'ink', 4: 'paper', 10: 'paper' }[Math.floor(code / 10)];
		if (code === 0) look = {};
		else if (code === 1 || code === 22) look.bold = code === 1;
		else if (code === 4 || code === 24) look.under = code === 4;
		else if (layer && code % 10 === 9) delete look[layer];
		else if (layer && code % 10 < 8) look[layer] = (code % 10) + (code > 89 ? 8 : 0);
		else if (layer) {
			const isIndex = codes[i + 1] === 5;
			look[layer] = isIndex ? of256(codes[i + 2]) : nearest(...codes.slice(i + 2, i + 5));
			i += isIndex ? 2 : 4;
		}
	}
	return look;
}

function classes({ ink, paper, bold, under }) {
	const colour = paper ?? ink;
	return [colour >= 0 && `a${colour % 8}`, colour > 7 && 'bright', paper >= 0 && 'paper', bold && 'bold', under && 'under'].filter(Boolean).join(' ');
}

const ODD = /[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/; // controls, and what turns text around
const TOKEN = /\x1b\[([0-9;:?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|./gsu;
const visible = (c) => (!ODD.test(c) ? c : c < ' ' ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `<${c.charCodeAt(0).toString(16)}>`);

/** A line as a terminal leaves it: runs {text, look: class names}, other controls made visible. Pure. */
function terminal(raw) {
	raw = raw.replace(/\r+$/, '');
	if (!ODD.test(raw)) return [{ text: raw, look: '' }];
	const cells = [];
	let [look, name, at] = [{}, '', 0];
	for (const [token, codes, final] of raw.matchAll(TOKEN)) {
		if (token === '\r') at = 0;
		else if (final === 'm') name = classes((look = sgr(look, codes.split(/[;:]/).map(Number))));
		else if (final === 'K') cells.length = at;
		else if (token.length === 1 || token[0] !== '\x1b') cells[at++] = { text: visible(token), look: name };
	}
	const runs = [];
	for (const cell of cells) {
		if (cell && runs.at(-1)?.look === cell.look) runs.at(-1).text += cell.text;
		else runs.push({ text: ' ', look: '', ...cell });
	}
	return runs;
}

/** The runs, cut where `word` stands in them: those pieces are `found`. Pure. */
function highlight(runs, word) {
	const plain = runs.map((run) => run.text).join('');
	const cuts = [];
	for (let at = plain.indexOf(word); at >= 0; at = plain.indexOf(word, at + word.length)) cuts.push(at, at + word.length);
	let end = 0;
	return runs.flatMap(({ text, look }) => {
		const from = end;
		end += text.length;
		const edges = [from, ...cuts.filter((cut) => cut > from && cut < end), end];
		return edges.slice(1).map((to, i) => ({ text: plain.slice(edges[i], to), look, found: lastUpTo(cuts, edges[i], Number) % 2 === 0 }));
	});
}

/** '120' or '120-140' → [first, last], from 1; null: neither. Pure. */
const lineRange = (text) => {
	const [, a, b = a] = /^\s*(\d{1,15})(?:\s*-\s*(\d{1,15}))?\s*$/.exec(text ?? '') ?? [];
	return a > 0 && b > 0 ? [+a, +b].sort((x, y) => x - y) : null;
};

/** The pane: one stream of one attempt at a time. */
class LogPane {
	epoch = 0; // rows of an earlier one are drawn anew

	constructor(page) {
		Object.assign(this, { page, api: page.api });
		const quiet = (text, name, click) => h('button', { class: 'quiet', 'aria-label': name, title: name, click }, text);
		this.tabs = ['stdout', 'stderr'].map((name) => h('button', { class: 'chip', click: () => this.select(name) }, name));
		this.attempts = h('select', { 'aria-label': 'Attempt', change: () => this.select(this.stream, this.attempts.value) });
		this.end = h('button', { class: 'quiet end', click: () => this.list.to(Infinity) });
		this.raw = h('a', { class: 'quiet', target: '_blank', rel: 'noopener' }, 'Download');
		this.text = h('input', { type: 'search', placeholder: 'Find', 'aria-label': 'Find in the output', spellcheck: 'false', search: () => this.text.value || this.find(''), keydown: (event) => event.key === 'Enter' && this.find(this.text.value, event.shiftKey ? -1 : 1) });
		this.hits = h('span', { class: 'note', role: 'status' });
		this.steps = h('span', null, quiet('↑', 'Previous match', () => this.step(-1)), quiet('↓', 'Next match', () => this.step(1)));
		this.where = h('input', { placeholder: 'Line', size: 8, 'aria-label': 'Go to line, or lines as 120-140', keydown: ({ key }) => key === 'Enter' && this.jump(lineRange(this.where.value)) });
		this.marks = h('span', null, quiet('◆↑', 'Previous D1_STABLE', () => this.anchor(-1)), quiet('◆↓', 'Next D1_STABLE', () => this.anchor(1)));
		this.rows = h('div', { class: 'rows', click: (event) => this.pick(event), pointerover: ({ target }) => this.point(target.closest('.line')), pointerleave: () => this.point() });
		this.view = h('div', { class: 'log', tabindex: 0, role: 'region', 'aria-label': 'Output' }, this.rows);
		this.note = h('p', { class: 'note' });
		this.element = h('section', { class: 'logpane' }, h('header', null, h('h2', null, 'Output'), this.tabs, this.attempts, this.end, this.raw), h('header', null, this.text, this.hits, this.steps, this.where, this.marks), this.view, this.note);
		this.list = new HB.Windowed({
			scroller: this.view,
			rows: this.rows,
			sticky: true,
			make: () => h('div', { class: 'line' }, h('span', { class: 'no' }), h('span')),
			draw: (row, n) => this.drawLine(row, n),
			painted: () => this.painted(),
			rowHeight: () => parseFloat(getComputedStyle(this.view).lineHeight),
		});
		page.time.on(() => this.list.refresh());
		const route = (name) => HB.route?.get(name) ?? '';
		const lines = lineRange(route('l'));
		this.select(route('s') || 'stdout', route('a')); // attempt '': always the newest
		this.jump(lines);
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
		Object.assign(this, { stream, attempt, file: new LogFile(0), problem: '', run: { flying: new Map() }, found: null });
		this.mark(null);
		this.list.atEnd = true;
		this.update();
		this.run.ready = this.poke();
		if (this.text.value) this.find(this.text.value);
	}

	/** Picks lines [first, last], from 1. */
	mark(lines) {
		this.picked = lines;
		HB.route?.set({ s: this.stream === 'stdout' ? null : this.stream, a: this.attempt || null, l: lines && [...new Set(lines)].join('-') });
	}

	get shown() {
		return Number(this.attempt || this.page.job.attempt);
	}

	path(rest = '', ...query) {
		if (this.shown) query.push(`attempt=${this.shown}`);
		return this.api.jobPath(this.page.id, `/${this.stream}${rest}?${query.join('&')}`);
	}

	/** New events. A pane that shows the newest attempt goes on to a new one. */
	update() {
		const { job, events = [] } = this.page;
		const goesOn = this.known && this.known !== job.attempt && !this.attempt;
		if (this.known !== job.attempt) this.attempts.replaceChildren(h('option', { value: '' }, `newest (${job.attempt})`), ...Array.from({ length: job.attempt }, (_, i) => h('option', { value: i + 1 }, `attempt ${i + 1}`)));
		this.known = job.attempt;
		if (goesOn) return this.select(this.stream);
		this.anchors = events.filter(({ state, attempt, detail: d }) => state === 'D1_STABLE' && attempt === this.shown && d.stream === this.stream).map(({ time, detail: d }) => ({ ms: Date.parse(time), offset: d.offset }));
		this.draw();
	}

	/** Does what asks the agent. A failure is told below the lines. */
	async trying(work) {
		const { run } = this;
		try {
			await work(run);
			if (run === this.run) this.problem = '';
		} catch (error) {
			// 404: no such attempt was started.
			if (run === this.run) this.problem = error.status === 404 && !this.file.size ? '' : error.message;
		}
		if (this.run && run === this.run) this.draw();
	}

	/** Reads how long the file is now. Called by the clock and by `log` messages; one request at a time. */
	async poke() {
		const { run } = this;
		if (!run || run.isBusy || (run.isSettled && !this.problem)) return;
		run.isBusy = true;
		const isEnded = this.page.job.phase === 'ended';
		await this.trying(async () => {
			// HEAD and `bytes=N-M` need no preflight from another origin.
			const { headers } = await this.api.request(this.path(), { method: 'HEAD' });
			const size = Number(headers.get('Content-Length'));
			const { size: known } = this.file;
			if (run !== this.run || size === known) return void (run.isSettled = isEnded); // one look after the end saw all
			if (size < known) return this.select(this.stream);
			if (!known) this.file.points = [[0, Math.max(0, size - STEP)]]; // the tail, until line numbers are known
			this.file.size = size;
			this.draw();
			while (run === this.run && (await this.fetch(this.file)));
			run.numbers = this.number(run);
			if (this.found?.total >= 0) this.count(this.found);
		});
		run.isBusy = false;
	}

	/** Fetches what lookups lacked. True: something came. */
	async fetch(file) {
		const { run } = this;
		const wanted = [...file.wanted].slice(0, 4);
		file.wanted.clear();
		const got = wanted.map((from) => {
			if (!run.flying.has(from)) run.flying.set(from, this.fetchBlock(run, file, from).finally(() => run.flying.delete(from)));
			return run.flying.get(from);
		});
		return (await Promise.all(got)).some(Boolean);
	}

	async fetchBlock(run, file, block) {
		const skip = file.held.get(block)?.length ?? 0;
		const from = block + skip;
		const to = Math.min(block + STEP, file.points[file.at(block) + 1]?.[1] ?? file.size);
		let bytes = NONE;
		if (from < to) {
			await this.trying(async () => {
				const response = await this.api.request(this.path(), { headers: { Range: `bytes=${from}-${to - 1}` } });
				bytes = new Uint8Array(await response.arrayBuffer());
				if (response.status !== 206) bytes = bytes.slice(from, to); // the range was not honoured
				if (run === this.run) file.put(block, skip, bytes);
			});
		}
		return bytes.length > 0;
	}

	/** The agent's account of all from a line's beginning to the end of the file. */
	async scan([line, from], find) {
		const all = { points: [], matches: [], matching: 0, unfinished: null };
		let size = Infinity;
		while (from < size) {
			const part = await this.api.json(this.path('/lines', `from=${from}`, ...(find ? [`limit=${FOUND}`, `find=${encodeURIComponent(find)}`] : [])));
			part.offsets.forEach((offset, i) => all.points.push([line + i * part.every, offset]));
			for (const [n, offset] of part.matches.slice(0, FOUND - all.matches.length)) all.matches.push([line + n, offset]);
			all.matching += part.matching;
			line += part.lines;
			from = part.end;
			({ size } = part);
			Object.assign(all, { end: [line, from], unfinished: part.unfinished });
		}
		return all;
	}

	/** Has the agent say where lines begin, unless the bytes at hand tell. */
	async number(run) {
		const { file } = this;
		const isNumbered = file.points[0][1] === 0;
		if (run.isNumbering || (isNumbered && file.size - file.points.at(-1)[1] <= WALK)) return;
		run.isNumbering = true;
		await this.trying(async () => {
			const known = isNumbered ? file.last : [0, 0]; // a line's beginning
			const told = await this.scan(known).catch((error) => {
				if (error.status !== 404) throw error; // an older agent
			});
			if (!told) return;
			const next = new LogFile(file.size, [...(isNumbered ? file.points.filter(([, offset]) => offset < known[1]) : []), ...told.points], told.end[0]);
			while (next.line(next.lines - 1) === undefined && (await this.fetch(next)));
			if (run !== this.run) return;
			// What is looked at stays where it is.
			const { list } = this;
			const top = list.top / list.rowHeight() + next.lines - file.lines;
			const isKept = isNumbered || list.atEnd;
			Object.assign(this, { file: next, epoch: this.epoch + 1 });
			list.count = next.lines;
			if (!isKept) list.to(top);
		});
		run.isNumbering = false;
	}

	draw() {
		this.list.count = this.file.lines;
		this.list.paint();
	}

	drawLine(row, n) {
		const { file, picked, found } = this;
		const [no, body] = row.children;
		const number = file.points[0][1] === 0 ? n + 1 : null;
		const key = `${this.epoch} ${n}`;
		if (row.key !== key) {
			const line = file.line(n);
			const raw = decoder.decode(line?.bytes);
			row.key = line?.isWhole || line?.isCut ? key : null;
			row.offset = line?.offset;
			const runs = terminal(raw);
			const parts = found && raw.includes(found.text) ? highlight(runs, found.text) : runs;
			body.replaceChildren(...parts.map(({ text, look, found }) => (look || found ? h(found ? 'mark' : 'span', { class: look }, text) : text)), line?.isCut ? h('em', null, ' … cut at 4 KiB') : '');
			setAttr(no, 'data-n', number);
			setAttr(row, 'data-stable', raw.startsWith('[D1_STABLE]') ? '' : null);
		}
		setAttr(row, 'data-picked', picked && number >= picked[0] && number <= picked[1] ? '' : null);
		setAttr(row, 'data-at', found?.line === n || (row.offset >= 0 && row.offset === this.pointed) ? '' : null);
	}

	/** After every paint: the controls, and what it lacked. */
	painted() {
		const { file, found, list, anchors } = this;
		const { cursor } = this.page.time;
		this.pointed = cursor === null ? null : anchors.findLast(({ ms }) => ms <= cursor)?.offset;
		for (const button of this.tabs) setAttr(button, 'aria-pressed', button.textContent === this.stream);
		this.attempts.value = this.attempt;
		this.attempts.hidden = this.known < 2;
		setAttr(this.raw, 'href', this.api.base + this.path());
		setAttr(this.raw, 'download', `${this.page.id}-${this.shown}-${this.stream}.log`);
		setText(this.end, list.atEnd ? 'Following' : 'To the end');
		setAttr(this.end, 'data-on', list.atEnd ? '' : null);
		this.steps.hidden = !found?.total;
		const of = found?.n > 0 ? `${found.n.toLocaleString('en')} of ` : '';
		setText(this.hits, !found ? '' : found.total >= 0 ? of + format.count(found.total, 'line') : 'Searching …');
		this.marks.hidden = anchors.length === 0;
		this.view.style.setProperty('--digits', `${String(list.count).length}ch`);
		setText(this.note, this.problem || format.join(format.bytes(file.size), file.points[0][1] === 0 ? format.count(list.count, 'line') : 'the end'));
		if (file.wanted.size && this.run && !this.problem) this.fetch(file);
	}

	/** What a lookup gives once what it lacks is here. */
	async need(look) {
		const { run } = this;
		await run.ready;
		await run.numbers;
		let value;
		do value = run === this.run ? look(this.file) : null;
		while (value === undefined && (await this.fetch(this.file)));
		return value;
	}

	/** Scrolls so that a line is a third down. */
	go(line) {
		this.list.to(line - Math.floor(this.view.clientHeight / this.list.rowHeight() / 3));
	}

	/** To lines [first, last], from 1. */
	async jump(lines) {
		if (!lines) return;
		this.mark(lines);
		await this.need(() => null);
		if (this.picked === lines) this.go(lines[0] - 1);
	}

	async showOffset(stream, attempt, offset) {
		if (stream !== this.stream || attempt !== this.shown) this.select(stream, attempt === this.known ? '' : String(attempt));
		const line = await this.need((file) => file.lineAt(offset));
		if (line >= 0) this.jump([line + 1, line + 1]);
	}

	/** To the D1_STABLE before or behind the picked line, or the first that is drawn. */
	anchor(way) {
		const drawn = this.list.pool.filter((row) => row.offset >= 0);
		const at = (drawn.find((row) => 'picked' in row.dataset) ?? drawn.sort((a, b) => a.offset - b.offset)[0])?.offset;
		const next = way < 0 ? this.anchors.findLast(({ offset }) => offset < at) : this.anchors.find(({ offset }) => offset > at);
		if (!next) return;
		this.page.time.point(next.ms, this);
		this.showOffset(this.stream, this.shown, next.offset);
	}

	point(row) {
		const at = row && 'stable' in row.dataset && this.anchors.find(({ offset }) => offset >= row.offset);
		this.page.time.point(at ? at.ms : null, this);
	}

	pick({ target, shiftKey }) {
		const n = Number(target.dataset.n);
		if (!n) return;
		this.mark([n, shiftKey && this.picked ? this.picked[0] : n].sort((a, b) => a - b));
		this.draw();
	}

	/** First the match at or below what is shown, the last one while following. The same text again: the next, or previous. */
	async find(text, way) {
		if (this.found?.text === text) return this.step(way);
		const { list } = this;
		const { atEnd } = list;
		const found = (this.found = text ? { text, from: [0, 0], before: 0, first: 1, line: Math.ceil(list.top / list.rowHeight()) - 1 } : null);
		this.epoch++;
		this.draw();
		if (!found) return;
		await this.trying(() => this.count(found));
		if ((!atEnd && (await this.step(1))) || found !== this.found) return;
		Object.assign(found, { line: Infinity, n: found.total + 1 });
		await this.step(-1);
	}

	/** Counts the lines that match; later only where the log has grown. */
	async count(found) {
		if (found.isBusy) return;
		found.isBusy = true;
		const { matches, matching, end, unfinished } = await this.scan(found.from, found.text).finally(() => (found.isBusy = false));
		found.total = found.before + matching;
		found.end = end[1];
		if (!found.matches || found.total <= FOUND) found.matches = [...(found.matches ?? []).filter(([n]) => n < found.from[0]), ...matches];
		if (unfinished === null) Object.assign(found, { from: end, before: found.total });
		else if (matches.length === matching) Object.assign(found, { from: [end[0] - 1, unfinished], before: found.total - (matches.at(-1)?.[1] === unfinished) });
	}

	/** To the next match (1) or the previous one (-1). True: there is one. */
	async step(way) {
		const { found, file } = this;
		if (!found?.total || found.isBusy) return false;
		found.isBusy = true;
		const { line, total } = found;
		const pick = () => (way > 0 ? found.matches.find(([n]) => n > line) : found.matches.findLast(([n]) => n < line));
		let match = pick();
		await this.trying(async () => {
			// Matches that are not held: behind the line, or in the lines before, of which so many hold no more than can be told.
			for (let at = way > 0 ? line + 1 : Math.min(line, file.lines); !match && total > FOUND && at >= 0 && at < file.lines + way; at = way > 0 ? Infinity : at - FOUND) {
				const low = Math.max(0, way > 0 ? at : at - FOUND);
				const offset = await this.need((log) => log.start(low));
				const part = await this.scan([low, offset], found.text);
				found.matches = part.matches;
				match = pick();
				if (way > 0 && !found.n) found.n = part.end[1] === found.end ? total - part.matching : NaN;
				found.first = way > 0 ? found.n + 1 : found.n - 1 - part.matches.indexOf(match);
			}
		});
		found.isBusy = false;
		if (!match || found !== this.found) return false;
		Object.assign(found, { line: match[0], n: found.first + found.matches.indexOf(match) });
		this.go(match[0]);
		return true;
	}

	key(key) {
		const way = { n: 1, N: -1, ']': 1, '[': -1 }[key];
		if (key === 'g') this.where.select();
		else if (key === 'f') this.text.select();
		else if (key === 'End') this.list.to(Infinity);
		else if (key === '[' || key === ']') this.anchor(way);
		else if (way && this.found) this.step(way);
		else return false;
		return true;
	}
}

Object.assign(HB, { LogFile, LogPane, log: { terminal, highlight, lineRange, STEP, SHOWN } });
}
