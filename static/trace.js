/* The TraceViewer: queue time, attempts, what is stable, crashes and recoveries, in time. */
'use strict';
{
const { h, svg, pool, setText, setAttr, format } = HB;
const { bins, floor } = HB.timeline;
const STARTS = ['RECEIVED', 'RETRIGGERED', 'RUNNING', 'RECOVERY'];
const ENDS = ['CRASH', 'SEALED', 'FAILED', 'CANCELLED'];
const WORDS = { queue: 'queued', down: 'down', stop: 'stopping', seal: 'sealing', rest: 'ended' };
const BIN_PX = 5; // D1_STABLE marks nearer than this become one bar
const NEAR_PX = 9;
const ROWS_SEEN = 12.5; // half of the next one tells that they scroll
const TOLD = 12; // stretches in the sentence
const CHAR_PX = 8.1;
const KEYS = 'Keys: + and − zoom, left and right move, 0 shows all, comma and full stop go from event to event, Enter opens one.';

const name = ({ kind, attempt }) => WORDS[kind] ?? `attempt ${attempt}`;
const told = (part) => `${name(part)} ${format.duration(part.to - part.from)}`;
const stamp = (ms, step) => new Date(ms).toISOString().slice(5, step < 1000 ? 23 : 19).replace('T', ' ');

/** A crosshair over an element that spans the plot; pointing there points everywhere. */
function crosshair(time, element, origin) {
	const label = h('span');
	const line = h('div', { class: 'cross', hidden: '' }, label);
	element.append(line);
	element.addEventListener('pointermove', (event) => time.point(time.at(share(time, element, event)), origin));
	element.addEventListener('pointerleave', () => time.point(null, origin));
	time.on(() => {
		const x = time.cursor === null ? -1 : time.x(time.cursor);
		line.hidden = !(x >= 0 && x <= 1);
		if (line.hidden) return;
		line.style.transform = `translateX(${time.px(time.cursor)}px)`;
		setAttr(line, 'class', x > 0.8 ? 'cross left' : 'cross');
		setText(label, stamp(time.cursor, time.density * 9));
	});
}
const share = (time, element, { clientX }) => Math.max(0, Math.min(1, (clientX - element.getBoundingClientRect().left - time.left) / time.width));

class Trace {
	marks = []; // {ms, event}: all but D1_STABLE
	stable = []; // {ms, count, event}
	attempts = new Map(); // → its part of `stable`
	read = []; // the events that are in these

	constructor(page) {
		const { time } = page;
		Object.assign(this, { page, time });
		this.rows = svg('svg');
		this.axis = svg('svg');
		this.map = svg('svg');
		const layer = (parent, tag, kind) => pool(Object.assign(parent.appendChild(svg('g')), { kind }), tag);
		this.layers = {};
		for (const [kind, tag] of Object.entries({ grid: 'path', breaks: 'path', downs: 'path', bars: 'rect', stables: 'path', edges: 'path', icons: 'use', words: 'text', live: 'circle' })) this.layers[kind] = layer(this.rows, tag);
		this.layers.ticks = layer(this.axis, 'text');
		this.layers.all = layer(this.map, 'path');
		this.layers.brush = layer(this.map, 'rect');
		this.scroll = h('div', { class: 'tl-rows' }, this.rows);
		this.plot = h('div', { class: 'tl-plot', role: 'application', tabindex: 0, 'aria-roledescription': 'timeline', 'aria-label': KEYS, title: '' }, this.scroll, this.axis);
		this.count = HB.mark('state', 'D1_STABLE');
		this.words = h('output', { class: 'note' });
		this.sentence = h('p', { class: 'sr' });
		const button = (text, label, act) => h('button', { class: 'quiet', 'aria-label': label, title: label, click: act }, text);
		this.whole = button('All', 'Show all of the time', () => time.show(-Infinity, Infinity));
		const zoom = [button('−', 'Zoom out', () => time.zoom(2)), button('+', 'Zoom in', () => time.zoom(0.5)), this.whole];
		this.element = h('section', { class: 'tl' }, h('header', null, h('h2', null, 'Time'), this.count, this.words, h('span', null, zoom)), this.sentence, this.plot, this.map);
		for (const part of [this.rows, this.axis, this.map]) setAttr(part, 'aria-hidden', 'true');
		setAttr(this.map, 'class', 'tl-map');
		crosshair(time, this.plot, this);
		time.on((origin) => {
			this.tell();
			if (time.version !== this.drawn) this.soon();
		});
		this.plot.addEventListener('keydown', (event) => this.pressed(event));
		this.plot.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
		this.drag(this.plot, (event) => this.grab(event));
		this.drag(this.map, (event) => this.brush(event));
		this.observer = new ResizeObserver(() => this.soon());
		this.observer.observe(this.scroll);
	}

	close() {
		this.observer.disconnect();
		cancelAnimationFrame(this.frame);
	}

	update() {
		this.soon();
	}

	tick() {
		this.soon();
	}

	soon() {
		this.frame ??= requestAnimationFrame(() => {
			this.frame = null;
			if (this.page.events && this.scroll.clientWidth) this.draw();
		});
	}

	/** Takes in what is new; from the first again where history is another now. */
	take() {
		const { events } = this.page;
		if (this.read.at(-1) !== events[this.read.length - 1]) {
			Object.assign(this, { read: [], marks: [], stable: [] });
			this.attempts.clear();
		}
		for (const event of events.slice(this.read.length)) {
			const ms = Date.parse(event.time);
			this.read.push(event);
			if (event.state !== 'D1_STABLE') {
				this.marks.push({ ms, event });
				continue;
			}
			const mark = { ms, count: event.detail?.count ?? 1, event };
			this.stable.push(mark);
			if (!this.attempts.has(event.attempt)) this.attempts.set(event.attempt, []);
			this.attempts.get(event.attempt).push(mark);
		}
	}

	draw() {
		const { time, layers, page } = this;
		const width = this.scroll.clientWidth;
		const [left, right] = width > 560 ? [92, 124] : [54, 20];
		Object.assign(time, { left, right, width: width - left - right });
		this.take();
		time.take(page.events, Math.max(page.now ?? Date.now(), Date.parse(page.events.at(-1).time)));
		this.drawn = time.version;
		const attempts = Math.max(0, ...time.parts.map(({ attempt }) => attempt));
		this.row = attempts > 12 ? 18 : attempts > 6 ? 26 : 34;
		this.bar = Math.round(this.row * 0.46);
		const height = this.row * (attempts + 1);
		this.size(this.rows, width, height);
		this.scroll.style.maxHeight = `${this.row * ROWS_SEEN}px`;
		this.size(this.axis, width, 20);
		this.size(this.map, width, 20);
		this.follow(height);
		this.drawRows(width, height, attempts);
		this.drawStable();
		this.drawMarks(width);
		this.drawAxis(height);
		this.drawMap();
		for (const layer of Object.values(layers)) layer.end();
		this.whole.disabled = time.v - time.u > 1 - 1e-9;
		const total = this.stable.reduce((sum, { count }) => sum + count, 0);
		this.count.hidden = !total;
		this.count.update('D1_STABLE', `${total.toLocaleString('en')} D1_STABLE`);
		const { parts } = time;
		const more = parts.length - TOLD;
		setText(this.sentence, `Time: ${parts.slice(0, TOLD).map(told).join(', ')}${more > 0 ? ` and ${format.count(more, 'more stretch', 'more stretches')}` : ''}.`);
		this.tell();
		time.tell(this);
	}

	/** Of many attempts the rows of the visible stretch are seen; of all, the newest. */
	follow(height) {
		const { time, row } = this;
		const seen = time.parts.filter(({ from, to }) => time.x(to) > 0 && time.x(from) < 1).map((part) => this.y(part));
		const middle = time.v - time.u > 1 - 1e-9 ? height : (seen[0] + seen.at(-1) + row) / 2;
		if (middle !== this.middle) this.scroll.scrollTop = middle - (row * ROWS_SEEN) / 2;
		this.middle = middle;
	}

	size(element, width, height) {
		setAttr(element, 'width', width);
		setAttr(element, 'height', height);
	}

	/** The row of a stretch, an event: 0 is the queue's. */
	y({ kind, state, attempt }) {
		return ['queue', 'rest'].includes(kind) || ['RECEIVED', 'SCHEDULED', 'RETRIGGERED'].includes(state) ? 0 : attempt * this.row;
	}

	drawRows(width, height, attempts) {
		const { time, bar, row, layers } = this;
		const { left } = time;
		const inside = (x) => Math.max(left, Math.min(left + time.width, x));
		const middle = bar / 2 + 3;
		let [torn, edges] = ['', ''];
		for (let i = 0; i <= attempts; i++) this.say(0, i * row + middle, i ? (left > 60 ? `attempt ${i}` : `${i}`) : 'queue', 'soft');
		for (const { from, to, folded } of time.pieces) {
			if (!folded || time.x(to) < 0 || time.x(from) > 1) continue;
			for (const x of [inside(time.px(from)), inside(time.px(to))]) torn += `M${x.toFixed(1)} 0${'l3 4-6 8 3 4'.repeat(Math.ceil(height / 16))}`;
		}
		layers.breaks.add({ class: 'break', d: torn });
		let line = '';
		for (const part of time.parts) {
			const { kind, from, to, attempt, open } = part;
			if (time.x(to) < 0 || time.x(from) > 1) continue;
			const [a, b, y] = [inside(time.px(from)), inside(time.px(to)), this.y(part)];
			// From the crash to where the next attempt begins.
			if (kind === 'down') line += `M${a.toFixed(1)} ${y + middle}H${b.toFixed(1)}${!open && attempt < attempts && b < left + time.width ? `v${row - 4}` : ''}`;
			else layers.bars.add({ class: kind, x: a, y: y + 3, width: Math.max(1.5, b - a), height: bar, rx: 2 });
			const piece = time.pieces.find((piece) => piece.from === from);
			if (piece?.folded || (kind !== 'down' && bar > 11 && b - a > (attempt > 1 && kind === 'run' ? 180 : 70))) this.tellLength(part, (a + b) / 2, (kind === 'down' ? 0 : y) + middle, b - a);
		}
		layers.downs.add({ class: 'down', d: line });
		const last = time.parts.at(-1);
		if (last?.open && time.x(last.to) <= 1) layers.live.add({ class: `live ${last.kind}`, cx: time.px(last.to), cy: this.y(last) + middle, r: 4 });
	}

	tellLength({ kind, from, to }, x, y, room) {
		const text = format.duration(to - from);
		const short = text.split(' ').slice(0, 2).join(' ');
		const fits = [text, short].find((words) => words.length * 6 < room);
		if (fits) this.say(x, y, fits, kind === 'run' ? 'middle on' : 'middle');
	}

	say(x, y, words, kind) {
		this.layers.words.add({ x, y: y + 4, class: kind, 'data-is': '' }, words);
	}

	/** Every attempt's D1_STABLE: single ones as diamonds, dense ones as bars that tell how many. */
	drawStable() {
		const { time, bar, row } = this;
		const step = 2 ** Math.ceil(Math.log2(time.density * BIN_PX));
		const lane = row - bar - 7;
		const rows = [...this.attempts].map(([attempt, marks]) => [attempt * row + bar + 5, bins(marks, time.from, time.to, step)]);
		const most = rows.reduce((most, [, list]) => list.reduce((most, { count }) => Math.max(most, count), most), 1);
		let d = '';
		for (const [y, list] of rows) {
			let before = -Infinity;
			list.forEach(({ from, to, count }, i) => {
				const x = time.px((from + to) / 2);
				const after = i + 1 < list.length ? time.px(list[i + 1].from) : Infinity;
				const half = Math.min(lane / 2, 4.5);
				if (time.x(from) < 0 || time.x(to) > 1) return;
				if (count === 1 && x - before > 12 && after - x > 12) d += `M${x.toFixed(1)} ${y}l${half} ${half}l-${half} ${half}l-${half}-${half}z`;
				else {
					const tall = 2 + (lane - 2) * Math.sqrt(count / most);
					d += `M${(x - 1.5).toFixed(1)} ${(y + lane).toFixed(1)}v-${tall.toFixed(1)}h3v${tall.toFixed(1)}z`;
				}
				before = x;
			});
		}
		this.layers.stables.add({ class: 'stable', d });
	}

	/** Icons with their words: where an attempt begins to the left of it, where it ends to the right. */
	drawMarks(width) {
		const { time, bar, marks, layers } = this;
		const size = Math.min(16, bar + 4);
		const taken = new Map(); // row → px
		let edges = '';
		marks.forEach(({ ms, event }, i) => {
			const { state } = event;
			const at = time.px(ms);
			if (time.x(ms) < -1e-9 || time.x(ms) > 1 + 1e-9) return;
			const y = this.y(event);
			const word = state.length * CHAR_PX;
			let x = at - size / 2;
			if (STARTS.includes(state)) x = at - size - 1;
			else if (ENDS.includes(state)) x = Math.min(Math.max(at + 2, taken.get(y) ?? 0), width - size);
			else if ([marks[i - 1], marks[i + 1]].some((other) => other && Math.abs(time.px(other.ms) - at) < 22)) return;
			layers.icons.add({ href: `#i-${state === 'RETRIGGERED' ? 'RECEIVED' : state}`, class: 'icon', 'data-is': state, transform: `translate(${x.toFixed(1)} ${y + 3 + (bar - size) / 2}) scale(${size / 16})` });
			if (state === 'CRASH' || state === 'RECOVERY') edges += `M${at.toFixed(1)} ${y}v${bar + 6}`;
			const isLeft = state === 'RECOVERY' ? at - size - word > (time.left > 60 ? 60 : 10) : x + size + word > width;
			const next = marks[i + 1];
			if (state === 'RECOVERY' && (isLeft || !next || time.px(next.ms) - at > word)) this.mark(isLeft ? x - 3 : at + 4, y, state, isLeft);
			if (ENDS.includes(state)) this.mark(isLeft ? at - 4 : x + size + 3, y, state, isLeft);
			if (ENDS.includes(state)) taken.set(y, x + size + (isLeft ? 2 : word + 4));
		});
		layers.edges.add({ class: 'edge', d: edges });
	}

	mark(x, y, state, isLeft) {
		this.layers.words.add({ x, y: y + this.bar / 2 + 7, class: isLeft ? 'mark end' : 'mark', 'data-is': state }, state);
	}

	drawAxis(height) {
		const { time } = this;
		const ticks = time.ticks(time.left > 60 ? 100 : 74);
		let [grid, day] = ['', ''];
		for (const ms of ticks) {
			const text = new Date(ms).toISOString();
			const clock = ticks.step < 60_000 ? text.slice(11, ticks.step < 1000 ? 21 : 19) : text.slice(11, 16);
			const date = text.slice(5, 10);
			this.layers.ticks.add({ x: time.px(ms), y: 14, class: 'middle soft' }, date === day ? clock : ticks.step % 86_400_000 === 0 ? date : `${date} ${clock}`);
			day = ticks.step % 86_400_000 === 0 ? '' : date;
			grid += `M${time.px(ms).toFixed(1)} 0V${height}`;
		}
		this.layers.grid.add({ class: 'grid-lines', d: grid });
	}

	drawMap() {
		const { time, layers, marks } = this;
		const x = (ms) => time.left + time.all(ms) * time.width;
		const paths = { queue: '', run: '', down: '' };
		for (const { kind, from, to } of time.parts) paths[kind === 'run' || kind === 'down' ? kind : 'queue'] += `M${x(from).toFixed(1)} 10H${Math.max(x(from) + 1, x(to)).toFixed(1)}`;
		for (const [kind, d] of Object.entries(paths)) layers.all.add({ class: kind, d });
		layers.all.add({ class: 'edge', d: marks.map(({ ms, event }) => (event.state === 'CRASH' ? `M${x(ms).toFixed(1)} 4v12` : '')).join('') });
		layers.brush.add({ x: time.left + time.u * time.width, y: 1, width: (time.v - time.u) * time.width, height: 18, rx: 3, class: 'brush' });
	}

	/** The event nearest to an instant, those that are no D1_STABLE before those that are. */
	near(ms) {
		const { time } = this;
		for (const list of [this.marks, this.stable]) {
			const i = floor(list, ms, 'ms');
			const [nearest] = [list[i], list[i + 1]].filter(Boolean).sort((a, b) => Math.abs(a.ms - ms) - Math.abs(b.ms - ms));
			if (nearest && Math.abs(time.px(nearest.ms) - time.px(ms)) < NEAR_PX) return nearest.event;
		}
		return null;
	}

	/** What is at the cursor, in words. */
	tell() {
		const { time } = this;
		const ms = time.cursor;
		if (ms === null) return setText(this.words, 'times in UTC');
		const part = time.parts[floor(time.parts, ms, 'from')];
		const event = this.near(ms);
		setText(this.words, format.join(part && told(part), event && event.state, event && format.describe(event)));
	}

	/** Opens an event: in the list, and where the output has it. */
	open(event) {
		if (!event) return;
		this.page.select?.(event.seq);
		const { stream, offset } = event.detail ?? {};
		if (event.state === 'D1_STABLE') this.page.log.showOffset?.(stream, event.attempt, offset);
	}

	pressed(event) {
		const { time } = this;
		const go = (by) => {
			const { ms } = (by < 0 ? this.marks.findLast(({ ms }) => ms < (time.cursor ?? time.to)) : this.marks.find(({ ms }) => ms > (time.cursor ?? time.from))) ?? {};
			if (!ms) return;
			if (ms < time.from || ms > time.to) time.pan(time.x(ms) - 0.5);
			time.point(ms, this);
		};
		const act = {
			'+': () => time.zoom(0.5),
			'=': () => time.zoom(0.5),
			'-': () => time.zoom(2),
			0: () => time.show(-Infinity, Infinity),
			ArrowLeft: () => time.pan(-0.2),
			ArrowRight: () => time.pan(0.2),
			',': () => go(-1),
			'.': () => go(1),
			Enter: () => time.cursor !== null && this.open(this.near(time.cursor)),
		}[event.key];
		if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
		event.preventDefault();
		event.stopPropagation();
		act();
	}

	wheel(event) {
		const { time } = this;
		const by = event.shiftKey ? event.deltaY : event.deltaX;
		if (event.ctrlKey) time.zoom(2 ** Math.max(-1, Math.min(1, event.deltaY / 100)), share(time, this.plot, event));
		else if (by) time.pan(by / time.width);
		else return;
		event.preventDefault();
	}

	/** begin(event) → {move(dx of 1, x), click()}. */
	drag(element, begin) {
		element.addEventListener('pointerdown', (first) => {
			if (first.button) return;
			const { time } = this;
			const from = share(time, element, first);
			const { move, click } = begin(first);
			let isDrag = false;
			element.setPointerCapture(first.pointerId);
			element.onpointermove = (event) => {
				isDrag ||= Math.abs(event.clientX - first.clientX) > 4;
				if (isDrag) move((event.clientX - first.clientX) / time.width, share(time, element, event));
			};
			element.onpointerup = element.onpointercancel = () => {
				element.onpointermove = element.onpointerup = element.onpointercancel = null;
				if (!isDrag) click?.(from);
			};
		});
	}

	/** The plot moves under the pointer. */
	grab() {
		const { time } = this;
		const { u, v } = time;
		return { move: (by) => time.showShare(u - by * (v - u), v - by * (v - u)), click: (x) => this.open(this.near(time.at(x))) };
	}

	/** In the minimap: the stretch is moved, or one of its ends, or another is drawn. */
	brush(event) {
		const { time } = this;
		const { u, v } = time;
		const at = share(time, this.map, event);
		const edge = NEAR_PX / time.width;
		const isAll = v - u > 1 - 1e-9;
		if (!isAll && at > u + edge && at < v - edge) return { move: (by) => time.showShare(u + by, v + by) };
		const anchor = isAll ? at : Math.abs(at - u) < edge ? v : Math.abs(at - v) < edge ? u : at;
		return { move: (by, x) => time.showShare(Math.min(anchor, x), Math.max(anchor, x)), click: (x) => time.showShare(x - (v - u) / 2, x + (v - u) / 2) };
	}
}

Object.assign(HB, { Trace, crosshair });
}
