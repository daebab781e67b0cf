/* The TraceViewer: queue time, attempts, D1_STABLE, crashes and recoveries in time. */
'use strict';
{
const { h, svg, setText, setAttr, format } = HB;
const { KIND, bins, floor, clamp, life } = HB.timeline;
const WORDS = { queue: 'queued', down: 'down', stop: 'stopping', seal: 'sealing', rest: 'ended' };
const ALL = 1e9;
const ZOOM = { '+': [0.5], '=': [0.5], '-': [2], 0: [ALL], ArrowLeft: [1, 0, -0.2], ArrowRight: [1, 0, 0.2] };
const NEAR = 9; // px
const KEYS = 'Timeline. Plus and minus zoom, arrows move, 0 shows all; comma and full stop go from event to event, Enter opens one.';
const length = ({ from, to }) => format.duration(to - from);
const told = (part) => `${WORDS[part.kind] ?? `attempt ${part.attempt}`} ${length(part)}`;
const share = (time, element, { clientX }) => clamp((clientX - element.getBoundingClientRect().left - time.left) / time.width);
const stamp = (time) => new Date(time.cursor).toISOString().slice(5, time.density < 100 ? 23 : 19).replace('T', ' ');

/** A crosshair over an element that spans the plot. */
function crosshair(time, element) {
	const label = h('span');
	const line = h('div', { class: 'cross', hidden: '' }, label);
	element.append(line);
	element.addEventListener('pointermove', (event) => time.point(time.at(share(time, element, event))));
	element.addEventListener('pointerleave', () => time.point(null));
	time.on(() => {
		line.hidden = time.cursor === null || !time.has(time.cursor);
		if (line.hidden) return;
		line.style.transform = `translateX(${time.px(time.cursor)}px)`;
		label.style.transform = `translateX(${-100 * time.x(time.cursor)}%)`;
		setText(label, stamp(time));
	});
}

class Trace {
	constructor(page) {
		const { time } = page;
		Object.assign(this, { page, time });
		[this.rows, this.axis, this.map] = ['', '', 'tl-map'].map((name) => svg('svg', { class: name, 'aria-hidden': 'true' }));
		this.scroll = h('div', { class: 'tl-rows' }, this.rows);
		this.plot = h('div', { class: 'tl-plot', role: 'application', tabindex: 0, 'aria-label': KEYS, keydown: (event) => this.pressed(event) }, this.scroll, this.axis);
		this.count = HB.mark('state', 'D1_STABLE');
		this.words = h('output', { class: 'note' });
		this.sentence = h('p', { class: 'sr' });
		const button = (text, title, by) => h('button', { class: 'quiet', 'aria-label': title, click: () => time.zoom(by) }, text);
		const zoom = [button('−', 'Zoom out', 2), button('+', 'Zoom in', 0.5), button('All', 'All of the time', ALL)];
		this.element = h('section', { class: 'tl' }, h('header', null, h('h2', null, 'Time'), this.count, this.words, h('span', null, zoom)), this.sentence, this.plot, this.map);
		crosshair(time, this.plot);
		time.on((isScale) => (isScale ? this.update() : this.tell()));
		const wheel = (event) => {
			if (event.ctrlKey) time.zoom(2 ** clamp(event.deltaY / 100, -1), share(time, this.plot, event));
			if (event.ctrlKey) event.preventDefault();
		};
		this.plot.addEventListener('wheel', wheel, { passive: false });
		this.drag(this.plot);
		this.drag(this.map, true);
		// To ask the element in each frame would have the page laid out twice.
		this.observer = new ResizeObserver(([{ contentRect }]) => {
			this.room = contentRect.width;
			this.update();
		});
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
			if (this.page.events && this.room) this.draw();
		});
	}

	draw() {
		const { time, page, room } = this;
		Object.assign(this, life(page.events));
		const [left, right] = room > 560 ? [92, 132] : [54, 92];
		Object.assign(time, { left, right, width: room - left - right });
		time.take(page.events, Math.max(page.now, this.last.ms));
		const { attempt } = this.last;
		[this.row, this.bar] = attempt > 8 ? [18, 9] : [34, 16];
		this.height = this.row * (attempt + 1);
		const ticks = time.ticks(Math.max(84, left + 10));
		this.fill(this.rows, this.height, [...this.backdrop(ticks), ...this.bars(), this.diamonds(), ...this.icons()]);
		this.fill(this.axis, 20, this.clock(ticks));
		this.fill(this.map, 20, this.overview());
		const total = this.sums.at(-1);
		this.count.update('D1_STABLE', `${format.number(total ?? 0)} D1_STABLE`);
		this.count.hidden = !total;
		setText(this.sentence, `Time: ${time.pieces.map(told).join(', ')}.`);
		time.tell();
	}

	fill(element, height, shapes) {
		setAttr(element, 'width', this.room);
		setAttr(element, 'height', height);
		element.replaceChildren(...shapes);
	}

	text(x, y, words, kind, state) {
		return svg('text', { x, y: y + this.bar / 2 + 7, class: kind, 'data-is': state }, words);
	}

	backdrop(ticks) {
		const { time, row, height } = this;
		const torn = time.pieces.filter(({ folded, from, to }) => folded && to > time.from && from < time.to).flatMap(({ from, to }) => [from, to]);
		return [
			svg('path', { class: 'ticks', d: ticks.map((ms) => `M${time.px(ms)} 0V${height}`).join('') }),
			svg('path', { class: 'torn', d: torn.map((ms) => `M${time.px(ms)} 0${'l3 4-6 8 3 4'.repeat(height / 16)}`).join('') }),
			...Array.from({ length: height / row }, (_, i) => this.text(0, i * row, i ? (time.left > 60 ? `attempt ${i}` : i) : 'queue', 'soft')),
		];
	}

	bars() {
		const { time, bar, row } = this;
		return time.pieces.flatMap((part) => {
			const { kind, from, to, attempt, open, folded } = part;
			if (to < time.from || from > time.to) return [];
			const [x, end, y] = [time.px(from), time.px(to), /queue|rest/.test(kind) ? 0 : attempt * row];
			const [isDown, middle, words] = [kind === 'down', y + bar / 2 + 3, length(part)];
			const room = end - x - (folded ? 0 : attempt > 1 && x < time.left + 48 ? 150 : 24);
			const said = (folded || (bar > 9 && !isDown)) && [words, words.split(' ', 2).join(' ')].find((text) => text.length * 6 < room);
			return [
				// From a crash to where the next attempt begins.
				isDown ? svg('path', { class: kind, d: `M${x} ${middle}H${end}${!open && time.has(to) ? `v${row}` : ''}` }) : svg('rect', { class: kind, x, y: y + 3, width: Math.max(1.5, end - x), height: bar, rx: 2 }),
				said ? this.text((x + end) / 2, isDown ? 0 : y, said, `middle in-${kind}`) : '',
				open && time.has(to) ? svg('circle', { class: 'live', cx: end, cy: middle, r: 4.5 }) : '',
			];
		});
	}

	/** Single ones as diamonds, dense ones as bars that tell how many. */
	diamonds() {
		const { time, bar, row } = this;
		const list = bins(this, time.from, time.to, 2 ** Math.ceil(Math.log2(time.density * 5))).filter(({ from, to }) => time.has(from) && time.has(to));
		const most = Math.max(...list.map(({ count }) => count));
		const height = row - bar - 7;
		for (const bin of list) bin.x = time.px((bin.from + bin.to) / 2);
		const shapes = list.map(({ x, count, attempt }, i) => {
			const isAlone = !(x - list[i - 1]?.x < 12 || list[i + 1]?.x - x < 12);
			const [half, tall, y] = [height / 2, 2 + (height - 2) * Math.sqrt(count / most), attempt * row + bar + 5];
			return count === 1 && isAlone ? `M${x} ${y}l${half} ${half}-${half} ${half}-${half}-${half}z` : `M${x - 1.5} ${y + height}v-${tall}h3v${tall}z`;
		});
		return svg('path', { class: 'stable', d: shapes.join('') });
	}

	/** Where an attempt begins to the left of it, where it ends to the right; with their words. */
	icons() {
		const { time, bar, row, marks, room } = this;
		const size = Math.min(16, bar + 4);
		const taken = {}; // px by row
		return marks.flatMap(({ state, ms, attempt }, i) => {
			const kind = KIND[state];
			const isStart = /queue|run/.test(kind);
			if (!time.has(ms) || !(isStart || /down|rest/.test(kind))) return [];
			const [at, y, isBack, word] = [time.px(ms), kind === 'queue' ? 0 : attempt * row, state === 'RECOVERY', state.length * 8.1 + size];
			const x = isStart ? at - size - 1 : Math.min(Math.max(at + 2, taken[y] ?? 0), room - size);
			const isLeft = isBack ? at - word > time.left - 34 : x + word > room;
			const next = marks.slice(i + 1).find(({ state }) => KIND[state]);
			const end = time.px(next?.ms ?? time.to);
			// Without room on the left it stands in its bar, or behind a short one. CRASH gives way to an end at once.
			const isIn = isBack && !isLeft && bar > 9 && end - at > word;
			const isBehind = isBack && !isLeft && !isIn;
			const isSaid = isBehind ? end + word < room : isBack || !(isStart || (KIND[next?.state] === 'rest' && end < at + size && end + 132 > room));
			const from = isLeft ? Math.min(x, at) - 4 : isBehind ? end + 7 : Math.max(x + size, at) + 3;
			if (isBehind || !isStart) taken[y] = (isBehind ? end : x) + (!isSaid || isLeft ? size : word + 8);
			return [
				state === 'CRASH' || isBack ? svg('path', { class: 'edge', d: `M${at} ${y}v${bar + 6}` }) : '',
				svg('use', { href: `#i-${state === 'RETRIGGERED' ? 'RECEIVED' : state}`, class: 'icon', 'data-is': state, transform: `translate(${x} ${y + 3 + (bar - size) / 2}) scale(${size / 16})` }),
				isSaid ? this.text(from, y, state, `name ${isLeft ? 'end' : isIn ? 'in-run' : ''}`, state) : '',
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
		const { time } = this;
		const x = (share) => time.left + share * time.width;
		return [
			...time.pieces.map(({ kind, u, v }) => svg('path', { class: kind, d: `M${x(u)} 10H${x(v) + 0.5}` })),
			svg('path', { class: 'edge', d: this.marks.map(({ ms, state }) => (state === 'CRASH' ? `M${x(time.all(ms))} 4v12` : '')).join('') }),
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

	tell() {
		const { time } = this;
		if (time.cursor === null) return setText(this.words, 'times in UTC');
		const part = time.pieces[floor(time.pieces, time.cursor, 'from')];
		const event = this.near(time.cursor);
		setText(this.words, format.join(stamp(time), part && told(part), event?.state, event && format.describe(event)));
	}

	/** Shows the event at an instant in the list, and in the output. */
	open(ms) {
		const { page } = this;
		const { seq, state, attempt, detail } = this.near(ms) ?? {};
		if (seq) page.select(seq);
		if (state === 'D1_STABLE') page.log.showOffset(detail.stream, attempt, detail.offset);
	}

	go(back) {
		const { time, marks } = this;
		const event = back ? marks.findLast(({ ms }) => ms < (time.cursor ?? Infinity)) : marks.find(({ ms }) => ms > (time.cursor ?? 0));
		if (!event) return;
		if (!time.has(event.ms)) time.zoom(1, 0, time.x(event.ms) - 0.5);
		time.point(event.ms);
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

	/** Dragged, the plot goes along, and on the map its brush; where that shows all, another is drawn. */
	drag(element, isMap) {
		const { time } = this;
		let start;
		element.addEventListener('pointerdown', (event) => {
			if (event.button || !this.marks) return;
			const { u, v, isWhole } = time;
			start = { u, v, isDrawn: isMap && isWhole, x: share(time, element, event) };
			element.setPointerCapture(event.pointerId);
		});
		element.addEventListener('pointermove', (event) => {
			if (!element.hasPointerCapture(event.pointerId)) return;
			const { u, v, x, isDrawn } = start;
			const to = share(time, element, event);
			const by = (to - x) * (isMap ? 1 : u - v);
			start.isDrag ||= Math.abs(to - x) * time.width > 4;
			if (start.isDrag) time.showShare(...(isDrawn ? [Math.min(x, to), Math.max(x, to)] : [u + by, v + by]));
		});
		element.addEventListener('click', () => {
			const { u, v, x, isDrag } = start ?? { isDrag: true };
			if (isDrag) return;
			if (isMap) time.showShare(x - (v - u) / 2, x + (v - u) / 2);
			else this.open(time.at(x));
		});
	}
}

Object.assign(HB, { Trace, crosshair });
}
