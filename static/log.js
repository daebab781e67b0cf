/* A payload's output, by line: the agent says where lines begin, their bytes come by ranges. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const { floor, msOf } = HB.timeline;
const STEP = 1 << 18; // bytes of a block, at most
const HELD = 30; // blocks in the page: below 8 MB
const SHOWN = 4096; // bytes of a line
const FOUND = 10_000; // matches that the agent tells at once, at most
const POLL_MS = 1000;
const LF = 10;
const NONE = new Uint8Array(0);
const decoder = new TextDecoder();
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
const rising = (a, b) => a - b;

/** A log of which some blocks are here, parted by points [newlines before, offset]. Pure. */
class LogFile {
	held = new Map(); // offset of a block → bytes; the last looked at is last
	wanted = new Set(); // offsets of blocks that lookups lacked

	constructor(size = 0, points = [[0, 0]], lines = 0) {
		Object.assign(this, { size, points, lines, next: points[0] });
	}

	/** False: its tail alone is known. */
	get isWhole() {
		return this.points[0][1] === 0;
	}

	/** The agent's account of all from `next` on. */
	add({ points, lines, next, size }) {
		Object.assign(this, { lines, next, size });
		// So far apart that what is held stays.
		for (const point of points) if (point[1] > this.points.at(-1)[1] + STEP) this.points.push(point);
	}

	at(offset) {
		return floor(this.points, offset, 1);
	}

	end(i) {
		return Math.min(this.points[i + 1]?.[1] ?? this.size, this.points[i][1] + STEP);
	}

	/** As much of block i as is here. */
	block(i) {
		const from = this.points[i][1];
		const bytes = this.held.get(from) ?? NONE;
		if (from + bytes.length < this.end(i)) this.wanted.add(from);
		if (this.held.delete(from)) this.held.set(from, bytes);
		return bytes;
	}

	/** What the block at `from` has now. A full one lets another begin. */
	put(from, bytes) {
		this.held.delete(from);
		if (this.held.set(from, bytes).size > HELD) this.held.delete(this.held.keys().next().value);
		const i = this.at(from);
		const next = from + STEP;
		if (bytes.length === STEP && next < (this.points[i + 1]?.[1] ?? this.size)) this.points.splice(i + 1, 0, [this.points[i][0] + newlines(bytes), next]);
	}

	start(n) {
		if (n === 0) return this.points[0][1];
		if (this.near?.n === n) return this.near.offset;
		const i = floor(this.points, n - 1, 0);
		const bytes = this.block(i);
		const [line, from] = this.points[i];
		let at = 0;
		for (let left = n - line; left > 0; left--) if (!(at = bytes.indexOf(LF, at) + 1)) return undefined;
		return from + at;
	}

	lineAt(offset) {
		const i = this.at(offset);
		if (i < 0) return undefined;
		const [line, from] = this.points[i];
		const before = this.block(i).subarray(0, offset - from);
		return before.length === offset - from ? line + newlines(before) : undefined;
	}

	/** A line: {offset, bytes: SHOWN at most, isWhole, isCut}. */
	line(n) {
		const offset = this.start(n);
		let bytes = NONE;
		for (let at = offset; at < this.size && bytes.length <= SHOWN && !bytes.includes(LF); at = offset + bytes.length) {
			const i = this.at(at);
			const part = this.block(i).subarray(at - this.points[i][1]);
			if (part.length === 0) break;
			bytes = join(bytes, part.subarray(0, SHOWN + 1 - bytes.length));
		}
		if (bytes.length === 0) return undefined;
		const to = bytes.indexOf(LF);
		if (to >= 0) this.near = { n: n + 1, offset: offset + to + 1 };
		return { offset, bytes: bytes.subarray(0, to < 0 ? SHOWN : to), isWhole: to >= 0, isCut: to < 0 && bytes.length > SHOWN };
	}
}

// Of 256 and of 24 bits: the nearest of 16.
const nearest = (...rgb) => rgb.reduce((sum, part, i) => sum + (part > 50 && part > Math.max(...rgb) * 0.6 ? 1 << i : 0), 0);
const of256 = (n) => (n < 16 ? n : n > 231 ? 7 * (n > 243) : nearest(...[36, 6, 1].map((unit) => (Math.floor((n - 16) / unit) % 6) * 51)));
const colour = (n, layer) => `a${n % 8}${n > 7 ? ' bright' : ''}${layer === 'paper' ? ' paper' : ''}`;

/** A look {ink, paper, bold, under}, class names, after the codes of an SGR sequence. */
function sgr(look, codes) {
	look = { ...look };
	for (let i = 0; i < codes.length; i++) {
		const code = codes[i];
		const [tens, digit] = [Math.floor(code / 10), code % 10];
		const layer = { 3: 'ink', 9: 'ink', 4: 'paper', 10: 'paper' }[tens];
		if (code === 0) look = {};
		else if (code === 1 || code === 22) look.bold = code === 1 && 'bold';
		else if (code === 4 || code === 24) look.under = code === 4 && 'under';
		else if (layer && digit === 8) {
			const isIndex = codes[i + 1] === 5;
			look[layer] = colour(isIndex ? of256(codes[i + 2]) : nearest(...codes.slice(i + 2, i + 5)), layer);
			i += isIndex ? 2 : 4;
		} else if (layer) look[layer] = digit < 8 && colour(digit + (tens > 8 ? 8 : 0), layer);
	}
	return look;
}

const ODD = /[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/; // controls, and what turns text around
const TOKEN = /\x1b\[([0-9;:?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|./gsu;
const visible = (c) => (!ODD.test(c) ? c : c < ' ' ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `<${c.charCodeAt(0).toString(16)}>`);

/** A line as a terminal leaves it: runs {text, look: class names, found: part of `word`}. Pure. */
function terminal(raw, word) {
	raw = raw.replace(/\r+$/, '');
	const isFound = word && raw.includes(word);
	if (!isFound && !ODD.test(raw)) return [{ text: raw, look: '', found: false }];
	const cells = [];
	let [look, name, at] = [{}, '', 0];
	for (const [token, codes, final] of raw.matchAll(TOKEN)) {
		if (token === '\r') at = 0;
		else if (final === 'm') {
			look = sgr(look, codes.split(/[;:]/).map(Number));
			name = [look.paper || look.ink, look.bold, look.under].filter(Boolean).join(' ');
		} else if (final === 'K') cells.length = at;
		else if (token[0] !== '\x1b' || token === '\x1b') cells[at++] = { text: visible(token), look: name };
	}
	const shown = Array.from(cells, (cell) => cell ?? { text: ' ', look: '' });
	const plain = shown.map(({ text }) => text).join('');
	const runs = [];
	let from = 0;
	let end = 0; // of the match that began last
	for (const { text, look } of shown) {
		if (isFound && from >= end && plain.startsWith(word, from)) end = from + word.length;
		const found = from < end;
		const run = runs.at(-1);
		if (run?.look === look && run.found === found) run.text += text;
		else runs.push({ text, look, found });
		from += text.length;
	}
	return runs;
}

/** '120' or '120-140' → [first, last], from 1; null: neither. Pure. */
const lineRange = (text) => {
	const [a, b = a] = text.split('-').map(Number);
	return a > 0 && b > 0 ? [a, b].sort(rising) : null;
};

/** The pane: one stream of one attempt at a time. */
class LogPane {
	epoch = 0; // rows of an earlier one are drawn anew

	constructor(page) {
		Object.assign(this, { page, api: page.api });
		const quiet = (text, name, click) => h('button', { class: 'quiet', 'aria-label': name, title: name, click }, text);
		this.tabs = ['stdout', 'stderr'].map((name) => h('button', { class: 'chip', click: () => this.select(name) }, name));
		this.attempts = h('select', { 'aria-label': 'Attempt', change: () => this.select(this.stream, this.attempts.value) });
		const pair = (sign, what, go) => h('span', null, quiet(`${sign}↑`, `Previous ${what}`, () => go(-1)), quiet(`${sign}↓`, `Next ${what}`, () => go(1)));
		this.marks = pair('◆', 'D1_STABLE', (way) => this.anchor(way));
		this.end = h('button', { class: 'quiet end', click: () => this.list.to(Infinity) });
		const say = (words) => {
			this.run.words = words;
			this.draw();
		};
		this.raw = h('a', { class: 'quiet end', target: '_blank', rel: 'noopener', click: (event) => HB.save(event, this.api, this.file.size, say) }, 'Download');
		this.text = h('input', { type: 'search', placeholder: 'Find', 'aria-label': 'Find in the output', search: () => this.text.value || this.find(''), keydown: ({ key, shiftKey }) => key === 'Enter' && this.find(this.text.value, shiftKey ? -1 : 1) });
		this.hits = h('span', { class: 'note', role: 'status' });
		this.steps = pair('', 'match', (way) => this.step(way));
		this.where = h('input', { placeholder: 'Line', 'aria-label': 'Go to line, or lines as 120-140', keydown: ({ key }) => key === 'Enter' && this.jump(lineRange(this.where.value)) });
		this.rows = h('div', { class: 'rows', click: (event) => this.pick(event), pointerover: ({ target }) => this.point(target.closest('[data-stable]')), pointerleave: () => this.point() });
		this.view = h('div', { class: 'log', tabindex: 0, role: 'region', 'aria-label': 'Output' }, this.rows);
		this.note = h('p', { class: 'note' });
		this.element = h('section', { class: 'logpane' }, h('header', null, h('h2', null, 'Output'), this.tabs, this.attempts, this.marks, this.end), h('header', null, this.text, this.steps, this.hits, this.where, this.raw), this.view, this.note);
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
		this.follow();
		this.timer = setInterval(() => this.poke(), POLL_MS);
	}

	follow() {
		const [stream, attempt, lines] = ['s', 'a', 'l'].map((name) => HB.route?.get(name) ?? '');
		// attempt '': always the newest
		if (attempt !== this.attempt || (stream || 'stdout') !== this.stream) this.select(stream || 'stdout', attempt);
		this.jump(lineRange(lines));
	}

	close() {
		clearInterval(this.timer);
		this.list.observer.disconnect();
		this.run = { isSettled: true, problem: '' };
	}

	/** Shows another stream or attempt, from its tail. */
	select(stream, attempt = this.attempt) {
		// `run` stands for this selection: answers of an earlier one are dropped.
		Object.assign(this, { stream, attempt, file: new LogFile(), run: {}, found: null, anchors: [], seen: 0 });
		this.epoch++;
		this.mark(null);
		this.list.atEnd = true;
		this.update();
		this.run.ready = this.poke();
		if (this.text.value) this.find(this.text.value);
	}

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
		const newest = job.attempt;
		if (newest !== this.known) {
			const goesOn = this.known && !this.attempt;
			this.known = newest;
			this.attempts.replaceChildren(h('option', { value: '' }, `newest (${newest})`), ...Array.from({ length: newest }, (_, i) => h('option', { value: i + 1 }, `attempt ${i + 1}`)));
			if (goesOn) return this.select(this.stream);
		}
		this.attempts.value = this.attempt;
		this.attempts.hidden = newest < 2;
		if (events.length < this.seen) Object.assign(this, { anchors: [], seen: 0 }); // a replay went back
		for (const event of events.slice(this.seen)) {
			const { state, attempt, detail } = event;
			if (state === 'D1_STABLE' && attempt === this.shown && detail.stream === this.stream) this.anchors.push({ ms: msOf(event), offset: detail.offset });
		}
		this.seen = events.length;
		this.marks.hidden = this.anchors.length === 0;
		for (const button of this.tabs) setAttr(button, 'aria-pressed', button.textContent === this.stream);
		setAttr(this.raw, 'href', this.api.base + this.path());
		setAttr(this.raw, 'download', `${this.page.id}-${this.shown}-${this.stream}.log`);
		this.draw();
	}

	/** Asks the agent, and draws. A failure is told below the lines. */
	async trying(work) {
		const { run } = this;
		let value;
		try {
			value = await work();
			run.problem = null;
		} catch ({ status, message }) {
			if (status === 416 && run === this.run) return this.select(this.stream); // it was cut off
			run.problem = status === 404 ? '' : message; // 404: this attempt was never started
			run.isSettled = this.page.job.phase === 'ended';
		}
		if (run === this.run) this.draw();
		return value;
	}

	/** Looks what has come. At first at the tail alone, which is shown while all is numbered. */
	async poke() {
		const { run, file } = this;
		if (this.page.pruned) return this.draw();
		if (run.isBusy || (run.isSettled && !run.problem)) return;
		run.isBusy = true;
		const isEnded = this.page.job.phase === 'ended';
		await this.trying(async () => {
			const { size } = file;
			if (!size) {
				const { headers } = await this.api.request(this.path(), { method: 'HEAD' });
				file.size = Number(headers.get('Content-Length'));
				file.next = file.points[0] = [0, Math.max(0, file.size - STEP)];
				file.wanted.add(file.next[1]);
				this.fetch(); // beside its account
				this.number(run);
			}
			file.add(await this.scan(file.next));
			if (!size || isEnded || size === file.size) this.peek(run);
			run.isSettled = isEnded; // one look after the end sees all
			if (file.size !== size && this.found?.total >= 0) await this.count(this.found);
		});
		run.isBusy = false;
		this.number(run);
	}

	/** Marks the other stream where there is something in it. */
	async peek(run) {
		const other = this.tabs.find(({ textContent }) => textContent !== this.stream);
		const path = this.path().replace(/std...(?=\?)/, other.textContent);
		const answer = await this.api.request(path, { method: 'HEAD' }).catch(() => null);
		if (run === this.run) other.toggleAttribute('data-more', answer?.headers.get('Content-Length') > 0);
	}

	/** The agent's account from a line on. `next` and `before`: where its growth begins, and matches before. */
	async scan(start, find) {
		let [line, from] = start;
		const [points, matches] = [[], []];
		let matching = 0;
		const query = find ? [`limit=${FOUND}`, `find=${encodeURIComponent(find)}`] : [];
		for (;;) {
			const part = await this.api.json(this.path('/lines', `from=${from}`, ...query));
			const { size, end, every, offsets, unfinished } = part;
			if (!offsets) throw new HB.ApiError(416);
			points.push(...offsets.map((offset, i) => [line + i * every, offset]));
			matches.push(...part.matches.slice(0, FOUND - matches.length).map(([n, offset]) => [line + n, offset]));
			matching += part.matching;
			line += part.lines;
			from = end;
			if (end < size) continue;
			const all = { points, matches, matching, lines: line, size };
			if (unfinished === null) return { ...all, next: [line, end], before: matching };
			// Whether its last line matches is known where all matches are.
			if (matches.length < matching) return { ...all, next: start, before: 0 };
			return { ...all, next: [line - 1, unfinished], before: matching - (matches.at(-1)?.[1] === unfinished) };
		}
	}

	/** Puts a file whose lines are numbered in place of the tail. */
	number(run) {
		const { list, file: tail } = this;
		if (tail.isWhole || run !== this.run) return;
		const file = new LogFile();
		run.numbers ??= this.trying(async () => {
			do file.add(await this.scan(file.next));
			while (run === this.run && file.size < tail.size);
			await run.fetching;
			while (!file.line(file.lines - 1) && (await this.fetch(file)));
			if (run !== this.run) return;
			const top = list.atEnd ? undefined : list.top + (file.lines - tail.lines) * list.rowHeight();
			this.file = file;
			this.epoch++;
			this.draw(top);
		}).finally(() => (run.numbers = null));
	}

	/** Fetches what lookups lacked. True: something came. */
	fetch(file = this.file) {
		const { run } = this;
		return (run.fetching ??= this.trying(async () => {
			const wanted = [...file.wanted].slice(0, 4);
			file.wanted.clear();
			const got = wanted.map(async (block) => {
				const bytes = file.held.get(block) ?? NONE;
				const [from, to] = [block + bytes.length, file.end(file.at(block))];
				if (from >= to) return false;
				// `bytes=N-M` needs no preflight from another origin.
				const response = await this.api.request(this.path(), { headers: { Range: `bytes=${from}-${to - 1}` } });
				if (response.status !== 206) return false; // it was cut off
				file.put(block, join(bytes, new Uint8Array(await response.arrayBuffer())));
				return true;
			});
			return (await Promise.all(got).finally(() => (run.fetching = null))).includes(true);
		}));
	}

	draw(top) {
		this.list.count = this.file.lines;
		this.list.paint(top);
	}

	drawLine(row, n) {
		const { file, picked, found } = this;
		const [no, body] = row.children;
		const number = file.isWhole ? n + 1 : null;
		const key = `${this.epoch} ${n}`;
		if (row.key !== key) {
			const line = file.line(n);
			const raw = decoder.decode(line?.bytes);
			row.key = line?.isWhole || line?.isCut ? key : null;
			row.offset = line?.offset;
			body.replaceChildren(...terminal(raw, found?.text).map(({ text, look, found }) => (look || found ? h(found ? 'mark' : 'span', { class: look }, text) : text)), line?.isCut ? h('em', null, ' … cut at 4 KiB') : '');
			setAttr(no, 'data-n', number);
			row.toggleAttribute('data-stable', raw.startsWith('[D1_STABLE]'));
		}
		row.toggleAttribute('data-picked', number >= picked?.[0] && number <= picked[1]);
		row.toggleAttribute('data-at', found?.hit === n || (row.offset >= 0 && row.offset === this.pointed));
	}

	/** After every paint: what the controls say, and what it lacked. */
	painted() {
		const { file, found, list, run } = this;
		const { cursor } = this.page.time;
		const pointed = cursor === null ? null : this.anchors[floor(this.anchors, cursor)]?.offset;
		if (this.pointed !== pointed) list.refresh();
		this.pointed = pointed;
		setText(this.end, !list.atEnd ? 'To the end' : this.page.job.phase === 'ended' ? 'At the end' : 'Following');
		this.end.toggleAttribute('data-on', list.atEnd);
		this.steps.hidden = !found?.total;
		const of = found?.n > 0 ? `${format.number(found.n)} of ` : '';
		setText(this.hits, !found ? '' : found.total >= 0 ? of + format.count(found.total, 'line') : 'Searching …');
		const { style } = this.view;
		style.setProperty('--digits', `${String(list.count).length}ch`);
		// Not while another stream is read: the page would jump.
		if (run.problem !== undefined && file.isWhole) style.setProperty('--lines', list.count);
		setText(this.note, run.words || this.page.pruned || run.problem || format.join(format.bytes(file.size), file.isWhole ? format.count(list.count, 'line') : 'the end'));
		if (file.wanted.size && run.problem == null) this.fetch();
	}

	/** What a lookup gives once what it lacks is here. */
	async need(look) {
		const { run } = this;
		await run.ready;
		await run.numbers;
		let value;
		do value = run === this.run ? look(this.file) : null;
		while (value === undefined && (await this.fetch()));
		return value;
	}

	go(line) {
		this.list.to(line - Math.floor(this.view.clientHeight / this.list.rowHeight() / 3));
	}

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
		const { pool } = this.list;
		const at = pool.find((row) => 'picked' in row.dataset)?.offset ?? Math.min(...pool.map(({ offset }) => offset ?? Infinity));
		const next = this.anchors[way < 0 ? floor(this.anchors, at - 1, 'offset') : floor(this.anchors, at, 'offset') + 1];
		if (!next) return;
		this.page.time.point(next.ms, this);
		this.showOffset(this.stream, this.shown, next.offset);
	}

	point(row) {
		this.page.time.point((row && this.anchors[floor(this.anchors, row.offset - 1, 'offset') + 1]?.ms) ?? null, this);
	}

	pick({ target, shiftKey }) {
		const n = Number(target.dataset.n);
		if (!n) return;
		this.mark([n, shiftKey && this.picked ? this.picked[0] : n].sort(rising));
		this.draw();
	}

	/** First the match at or below what is shown, the last one while following. */
	async find(text, way) {
		if (this.found?.text === text) return this.step(way);
		const { atEnd, top } = this.list;
		const above = atEnd ? Infinity : Math.ceil(top / this.list.rowHeight()) - 1;
		const found = (this.found = text ? { text, next: [0, 0], before: 0, matches: [], first: 1 } : null);
		this.epoch++;
		this.draw();
		if (!found) return;
		await this.trying(() => this.count(found));
		if (!(await this.step(1, above))) await this.step(-1, Infinity);
	}

	/** Counts the lines that match; later only where the log has grown. */
	async count(found) {
		if (found.isBusy) return;
		found.isBusy = true;
		const { matches, matching, next, before, size } = await this.scan(found.next, found.text).finally(() => (found.isBusy = false));
		found.total = found.before + matching;
		if (found.total <= FOUND) found.matches = [...found.matches.filter(([n]) => n < found.next[0]), ...matches];
		Object.assign(found, { next, size, before: found.before + before });
	}

	/** To the match next to a line, behind it (1) or before it (-1). True: there is one. */
	async step(way, line = this.found?.hit ?? -1) {
		const { found, file } = this;
		if (!found?.total || found.isBusy) return false;
		found.isBusy = true;
		const pick = () => found.matches[way > 0 ? 'find' : 'findLast'](([n]) => (n - line) * way > 0);
		let match = pick();
		await this.trying(async () => {
			// Those not held: behind the line, or in the lines before it.
			let low = way > 0 ? line + 1 + FOUND : Math.min(line, file.lines);
			while (!match && found.total > FOUND && low > 0 && low < file.lines + FOUND) {
				low = Math.max(0, low - FOUND);
				const part = await this.scan([low, await this.need((log) => log.start(low))], found.text);
				found.matches = part.matches;
				found.first = part.size === found.size ? found.total - part.matching + 1 : NaN;
				match = pick();
				if (way > 0) break;
			}
		});
		found.isBusy = false;
		if (!match || found !== this.found) return false;
		Object.assign(found, { hit: match[0], n: found.first + found.matches.indexOf(match) });
		this.go(match[0]);
		return true;
	}

	key(key) {
		const act = {
			f: () => this.text.select(),
			g: () => this.where.select(),
			n: () => this.step(1),
			N: () => this.step(-1),
			']': () => this.anchor(1),
			'[': () => this.anchor(-1),
			End: () => this.list.to(Infinity),
		}[key];
		act?.();
		return Boolean(act);
	}
}

Object.assign(HB, { LogFile, LogPane, log: { STEP, SHOWN, terminal, lineRange } });
}
