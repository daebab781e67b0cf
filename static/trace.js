/* The TraceViewer: queue time, attempts, D1_STABLE, crashes and recoveries in time. */
'use strict';
{
const { h, svg, setText, setAttr, format } = HB;
const { bins, floor, clamp, life } = HB.timeline;
const STARTS = ['RECEIVED', 'RETRIGGERED', 'RUNNING', 'RECOVERY'];
const ENDS = ['CRASH', 'SEALED', 'FAILED', 'CANCELLED'];
const WORDS = { queue: 'queued', down: 'down', stop: 'stopping', seal: 'sealing', rest: 'ended' };
const ALL = 1e9;
const ZOOM = { '+': [0.5], '=': [0.5], '-': [2], 0: [ALL], ArrowLeft: [1, 0, -0.2], ArrowRight: [1, 0, 0.2] };
const NEAR = 9; // px
const ROWS = 12.5; // seen: half a row tells that they scroll
const KEYS = 'Timeline. Plus and minus zoom, left and right move, 0 shows all; comma and full stop go from event to event, Enter opens one.';
const length = ({ from, to }) => format.duration(to - from);
const told = (part) => `${WORDS[part.kind] ?? `attempt ${part.attempt}`} ${length(part)}`;
const share = (time, element, { clientX }) => clamp((clientX - element.getBoundingClientRect().left - time.left) / time.width);
const stamp = (time) => new Date(time.cursor).toISOString().slice(5, time.density < 100 ? 23 : 19).replace('T', ' ');

/** A crosshair over an element that spans the plot. */
function crosshair(time, element, origin) {
	const label = h('span');
	const line = h('div', { class: 'cross', hidden: '' }, label);
	element.append(line);
	element.addEventListener('pointermove', (event) => time.point(time.at(share(time, element, event)), origin));
	element.addEventListener('pointerleave', () => time.point(null, origin));
	time.on(() => {
		line.hidden = time.cursor === null || !time.has(time.cursor);
		if (line.hidden) return;
		line.style.transform = `translateX(${time.px(time.cursor)}px)`;
		setAttr(line, 'data-left', time.x(time.cursor) > 0.8 ? '' : null);
		setText(label, stamp(time));
	});
}

class Trace {
	constructor(page) {
		const { time } = page;
		Object.assign(this, { page, time });
		[this.rows, this.axis, this.map] = ['', '', 'tl-map'].map((name) => svg('svg', { class: name, 'aria-hidden': 'true' }));
		this.scroll = h('div', { class: 'tl-rows' }, this.rows);
		this.plot = h('div', { class: 'tl-plot', role: 'application', tabindex: 0, 'aria-label': KEYS }, this.scroll, this.axis);
		this.count = HB.mark('state', 'D1_STABLE');
		this.words = h('output', { class: 'note' });
		this.sentence = h('p', { class: 'sr' });
		const zoom = [['−', 'Zoom out', 2], ['+', 'Zoom in', 0.5], ['All', 'All of the time', ALL]].map(([text, label, by]) => h('button', { class: 'quiet', 'aria-label': label, click: () => time.zoom(by) }, text));
		this.element = h('section', { class: 'tl' }, h('header', null, h('h2', null, 'Time'), this.count, this.words, h('span', null, zoom)), this.sentence, this.plot, this.map);
		crosshair(time, this.plot, this);
		time.on(() => (time.version === this.drawn ? this.tell() : this.update()));
		this.plot.addEventListener('keydown', (event) => this.pressed(event));
		this.plot.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
		this.drag(this.plot, () => this.grab());
		this.drag(this.map, (x) => this.brush(x));
		this.observer = new ResizeObserver(() => this.update());
		this.observer.observe(this.scroll);
	}

	close() {
		this.observer.disconnect();
		cancelAnimationFrame(this.frame);
	}

	tick() {
		if (this.page.job.phase !== 'ended') this.update();
	}

	update() {
		this.frame ??= requestAnimationFrame(() => {
			this.frame = null;
			if (this.page.events && this.scroll.clientWidth) this.draw();
		});
	}

	draw() {
		const { time, page, scroll } = this;
		this.events = page.events;
		this.life = life(page.events);
		const { marks, stable, sums } = this.life;
		Object.assign(this, { marks, stable });
		const total = sums.at(-1) ?? 0;
		this.count.update('D1_STABLE', `${format.number(total)} D1_STABLE`);
		this.count.hidden = !total;
		const width = scroll.clientWidth;
		const [left, right] = width > 560 ? [92, 124] : [54, 20];
		Object.assign(time, { left, right, width: width - left - right });
		time.take(this.events, Math.max(page.now ?? Date.now(), this.events.at(-1).ms));
		this.drawn = time.version;
		const { parts } = time;
		this.attempts = Math.max(...parts.map(({ attempt }) => attempt));
		[this.row, this.bar] = this.attempts > 8 ? [18, 9] : [34, 16];
		const ticks = time.ticks(left + 10);
		this.fill(this.rows, width, this.row * (this.attempts + 1), [...this.backdrop(ticks), ...this.bars(), ...this.diamonds(), ...this.icons()]);
		this.fill(this.axis, width, 20, this.clock(ticks));
		this.fill(this.map, width, 20, this.overview());
		this.follow();
		const more = parts.length - 12;
		setText(this.sentence, `Time: ${parts.slice(0, 12).map(told).join(', ')}${more > 0 ? ` and ${more} more` : ''}.`);
		time.tell(this);
	}

	fill(element, width, height, shapes) {
		setAttr(element, 'width', width);
		setAttr(element, 'height', height);
		element.replaceChildren(...shapes);
	}

	/** Of many attempts those of the visible stretch are seen; of all, the newest. */
	follow() {
		const { time, row, attempts } = this;
		const seen = time.parts.filter(({ from, to }) => to > time.from && from < time.to).map((part) => this.y(part));
		const middle = time.isWhole ? row * attempts : (seen[0] + seen.at(-1)) / 2;
		this.scroll.style.maxHeight = `${row * ROWS}px`;
		if (middle !== this.middle) this.scroll.scrollTop = middle - (row * ROWS) / 2;
		this.middle = middle;
	}

	/** Top of the row: the first is the queue's. */
	y({ kind, state, attempt }) {
		return /queue|rest|RECEIVED|SCHEDULED|RETRIGGERED/.test(kind ?? state) ? 0 : attempt * this.row;
	}

	text(x, y, words, kind, state) {
		return svg('text', { x, y: y + this.bar / 2 + 7, class: kind, 'data-is': state }, words);
	}

	backdrop(ticks) {
		const { time, row, attempts } = this;
		const height = row * (attempts + 1);
		const torn = time.pieces.filter(({ folded, from, to }) => folded && to > time.from && from < time.to).flatMap(({ from, to }) => [from, to]);
		return [
			svg('path', { class: 'ticks', d: ticks.map((ms) => `M${time.px(ms)} 0V${height}`).join('') }),
			svg('path', { class: 'torn', d: torn.map((ms) => `M${time.px(ms)} 0${'l3 4-6 8 3 4'.repeat(height / 16)}`).join('') }),
			...Array.from({ length: attempts + 1 }, (_, i) => this.text(0, i * row, i ? (time.left > 60 ? `attempt ${i}` : i) : 'queue', 'soft')),
		];
	}

	bars() {
		const { time, bar, row } = this;
		return time.parts.flatMap((part) => {
			const { kind, from, to, attempt, open } = part;
			if (to < time.from || from > time.to) return [];
			const [x, end, y] = [time.px(from), time.px(to), this.y(part)];
			const middle = y + bar / 2 + 3;
			const folded = time.pieces.some((piece) => piece.folded && piece.from === from);
			const room = end - x;
			const words = [length(part), length(part).split(' ', 2).join(' ')].find((text) => text.length * 6 < room - (folded ? 0 : kind === 'run' && attempt > 1 ? 120 : 24));
			return [
				// From a crash to where the next attempt begins.
				kind === 'down' ? svg('path', { class: 'down', d: `M${x} ${middle}H${end}${!open && time.has(to) ? `v${row}` : ''}` }) : svg('rect', { class: kind, x, y: y + 3, width: Math.max(1.5, room), height: bar, rx: 2 }),
				words && (folded || (bar > 9 && kind !== 'down')) ? this.text((x + end) / 2, kind === 'down' ? 0 : y, words, `middle in-${kind}`) : '',
				open && time.has(to) ? svg('circle', { class: 'live', cx: end, cy: middle, r: 4.5 }) : '',
			];
		});
	}

	/** Single ones as diamonds, dense ones as bars that tell how many. */
	diamonds() {
		const { time, bar, row } = this;
		const list = bins(this.life, time.from, time.to, 2 ** Math.ceil(Math.log2(time.density * 5))).filter(({ from, to }) => time.has(from) && time.has(to));
		const most = list.reduce((value, { count }) => Math.max(value, count), 1);
		const height = row - bar - 7;
		const shapes = list.map(({ from, to, count, attempt }, i) => {
			const x = time.px((from + to) / 2);
			const isAlone = [list[i - 1], list[i + 1]].every((other) => !other || Math.abs(time.px(other.from) - x) > 12);
			const [half, tall, y] = [height / 2, 2 + (height - 2) * Math.sqrt(count / most), attempt * row + bar + 5];
			return count === 1 && isAlone ? `M${x} ${y}l${half} ${half}-${half} ${half}-${half}-${half}z` : `M${x - 1.5} ${y + height}v-${tall}h3v${tall}z`;
		});
		return [svg('path', { class: 'stable', d: shapes.join('') })];
	}

	/** With their words: where an attempt begins to the left, where it ends to the right. */
	icons() {
		const { time, bar, marks } = this;
		const width = time.left + time.width + time.right;
		const size = Math.min(16, bar + 4);
		const taken = {}; // px by row
		return marks.flatMap((event, i) => {
			const { state, ms } = event;
			const [at, y, word] = [time.px(ms), this.y(event), state.length * 8.1 + size];
			const isEnd = ENDS.includes(state);
			if (!time.has(ms)) return [];
			let x = at - size / 2;
			if (STARTS.includes(state)) x = at - size - 1;
			else if (isEnd) x = Math.min(Math.max(at + 2, taken[y] ?? 0), width - size);
			else if ([marks[i - 1], marks[i + 1]].some((other) => other && Math.abs(time.px(other.ms) - at) < 22)) return [];
			const isBack = state === 'RECOVERY';
			const isLeft = isBack ? at - word > (time.left > 60 ? 60 : 10) : x + word > width;
			const isSaid = isEnd || (isBack && (isLeft || !(time.px(marks[i + 1]?.ms) - at < word)));
			if (isEnd) taken[y] = x + (isLeft ? size : word) + 4;
			const place = isBack ? (isLeft ? x - 3 : at + 4) : isLeft ? at - 4 : x + size + 3;
			return [
				state === 'CRASH' || isBack ? svg('path', { class: 'edge', d: `M${at} ${y}v${bar + 6}` }) : '',
				svg('use', { href: `#i-${state === 'RETRIGGERED' ? 'RECEIVED' : state}`, class: 'icon', 'data-is': state, transform: `translate(${x} ${y + 3 + (bar - size) / 2}) scale(${size / 16})` }),
				isSaid ? this.text(place, y, state, isLeft ? 'name end' : 'name', state) : '',
			];
		});
	}

	clock(ticks) {
		let before = '';
		return ticks.map((ms) => {
			const text = new Date(ms).toISOString();
			const [day, time] = [text.slice(5, 10), text.slice(11, ticks.step < 1000 ? 21 : ticks.step < 60_000 ? 19 : 16)];
			const words = time === '00:00' ? day : day === before ? time : `${day} ${time}`;
			before = day;
			return svg('text', { x: this.time.px(ms), y: 14, class: 'middle soft' }, words);
		});
	}

	overview() {
		const { time, marks } = this;
		const x = (share) => time.left + share * time.width;
		return [
			...time.parts.map(({ kind, from, to }) => svg('path', { class: kind, d: `M${x(time.all(from))} 10H${x(time.all(to)) + 0.5}` })),
			svg('path', { class: 'edge', d: marks.map(({ ms, state }) => (state === 'CRASH' ? `M${x(time.all(ms))} 4v12` : '')).join('') }),
			svg('rect', { class: 'brush', x: x(time.u), y: 1, width: (time.v - time.u) * time.width, height: 18, rx: 3 }),
		];
	}

	/** The event at an instant; D1_STABLE only where there is no other. */
	near(ms) {
		const { time } = this;
		const far = (event) => Math.abs(time.px(event.ms) - time.px(ms));
		for (const list of [this.marks, this.stable]) {
			const i = floor(list, ms);
			const [event] = [list[i], list[i + 1]].filter((event) => event && far(event) < NEAR).sort((a, b) => far(a) - far(b));
			if (event) return event;
		}
	}

	/** What is at the cursor, in words. */
	tell() {
		const { time } = this;
		if (time.cursor === null) return setText(this.words, 'times in UTC');
		const part = time.parts[floor(time.parts, time.cursor, 'from')];
		const event = this.near(time.cursor);
		setText(this.words, format.join(stamp(time), part && told(part), event?.state, event && format.describe(event)));
	}

	/** Shows the event at an instant in the list, and in the output. */
	open(ms) {
		const event = this.near(ms);
		if (!event) return;
		const { stream, offset } = event.detail ?? {};
		this.page.select?.(event.seq);
		if (event.state === 'D1_STABLE') this.page.log.showOffset?.(stream, event.attempt, offset);
	}

	/** To the event before or after. */
	go(back) {
		const { time, marks } = this;
		const event = back ? marks.findLast(({ ms }) => ms < (time.cursor ?? Infinity)) : marks.find(({ ms }) => ms > (time.cursor ?? 0));
		if (!event) return;
		if (!time.has(event.ms)) time.zoom(1, 0, time.x(event.ms) - 0.5);
		time.point(event.ms, this);
	}

	pressed(event) {
		const { time } = this;
		const zoom = ZOOM[event.key];
		const act = zoom ? () => time.zoom(...zoom) : { ',': () => this.go(true), '.': () => this.go(false), Enter: () => this.open(time.cursor) }[event.key];
		if (!act || !this.marks || event.ctrlKey || event.metaKey || event.altKey) return;
		event.preventDefault();
		event.stopPropagation();
		act();
	}

	wheel(event) {
		const { time } = this;
		if (event.ctrlKey) time.zoom(2 ** clamp(event.deltaY / 100, -1), share(time, this.plot, event));
		else if (event.deltaX) time.zoom(1, 0, event.deltaX / time.width);
		else return;
		event.preventDefault();
	}

	/** begin(x) → [move(by, x), click(x)], in parts of the plot's width. */
	drag(element, begin) {
		element.addEventListener('pointerdown', (down) => {
			if (down.button || !this.marks) return;
			const x = (event) => share(this.time, element, event);
			const [move, click] = begin(x(down));
			let isDrag = false;
			element.setPointerCapture(down.pointerId);
			element.onpointermove = (event) => {
				isDrag ||= Math.abs(event.clientX - down.clientX) > 4;
				if (isDrag) move((event.clientX - down.clientX) / this.time.width, x(event));
			};
			element.onpointerup = element.onpointercancel = (event) => {
				element.onpointermove = element.onpointerup = element.onpointercancel = null;
				if (!isDrag && event.type === 'pointerup') click(x(down));
			};
		});
	}

	grab() {
		const { time } = this;
		const { u, v } = time;
		return [(by) => time.showShare(u - by * (v - u), v - by * (v - u)), (x) => this.open(time.at(x))];
	}

	/** The stretch is moved, one of its ends is, or another is drawn. */
	brush(at) {
		const { time } = this;
		const { u, v, isWhole } = time;
		const edge = NEAR / time.width;
		const isInside = !isWhole && at > u + edge && at < v - edge;
		const anchor = isWhole ? at : Math.abs(at - u) < edge ? v : Math.abs(at - v) < edge ? u : at;
		const move = (by, x) => (isInside ? time.showShare(u + by, v + by) : time.showShare(Math.min(anchor, x), Math.max(anchor, x)));
		return [move, (x) => time.showShare(x - (v - u) / 2, x + (v - u) / 2)];
	}
}

Object.assign(HB, { Trace, crosshair });
}
