/* What a job used, in time: from the node's files, and live from its stream. */
'use strict';
{
const { h, svg, setText, format } = HB;
const HELD = 16_384; // samples; beyond, every second one goes
const GAP = 5000; // ms: samples come each second, in the file of a long run more rarely
const [HEIGHT, PLOT] = [62, 40]; // px
const rate = (n) => `${format.bytes(Math.round(n))}/s`;
const CHARTS = [
	{ name: 'Cores', lines: ['cpu'], say: (n) => String(+n.toFixed(2)), limit: 'cpus' },
	{ name: 'Memory', lines: ['memory_bytes'], say: format.bytes, limit: 'memory_mib', unit: 2 ** 20 },
	{ name: 'I/O', lines: ['read', 'write'], say: rate },
	{ name: 'Pids', lines: ['pids'], say: String, limit: 'pids' },
];

/** “11 of 64 GiB”. */
function beside(used, all) {
	const unit = / \S+$/.exec(used)?.[0];
	return `${unit && all.endsWith(unit) ? used.slice(0, -unit.length) : used} of ${all}`;
}

/** Samples by time, each once, with what was used since the one before. starts: attempt → ms, where all counters are 0. */
function rates(samples, starts) {
	const list = samples.sort((a, b) => a.ms - b.ms).filter(({ ms }, i) => ms !== samples[i - 1]?.ms);
	list.forEach((sample, i) => since(sample, list[i - 1], starts));
	return list;
}

function since(sample, before, starts) {
	const isFirst = before?.attempt !== sample.attempt;
	const from = isFirst ? { ms: starts.get(sample.attempt), cpu_ns: 0, io_read_bytes: 0, io_write_bytes: 0 } : before;
	const every = sample.ms - from.ms;
	const per = (name) => (sample[name] == null || from[name] == null || !(every > 0) ? null : Math.max(0, sample[name] - from[name]) / every);
	const [cpu, read, write] = ['cpu_ns', 'io_read_bytes', 'io_write_bytes'].map(per);
	const breaks = isFirst || every > 3 * Math.max(GAP, before.every);
	Object.assign(sample, { every, breaks, cpu: cpu && cpu / 1e6, read: read && read * 1000, write: write && write * 1000 });
}

/** Samples → runs of [px, least, greatest]; where nothing was measured they break. */
function columns(samples, line) {
	const runs = [];
	let isOpen = false;
	for (const { px, breaks, [line]: value } of samples) {
		if (value == null || breaks || !isOpen) isOpen = false;
		if (value == null) continue;
		if (!isOpen) runs.push([]);
		isOpen = true;
		const last = runs.at(-1).at(-1);
		if (last?.[0] === px) [last[1], last[2]] = [Math.min(last[1], value), Math.max(last[2], value)];
		else runs.at(-1).push([px, value, value]);
	}
	return runs;
}

class Charts {
	samples = []; // by time
	starts = new Map();
	read = new Map(); // attempt → bytes of its file
	reading = Promise.resolve();

	constructor(page) {
		Object.assign(this, { page, time: page.time });
		this.view = svg('svg', { role: 'img' });
		this.plot = h('div', { class: 'charts' }, this.view);
		this.note = h('p', { class: 'note' });
		this.element = h('section', { hidden: '' }, this.plot, this.note);
		HB.crosshair(this.time, this.plot);
		this.time.on(() => this.soon());
	}

	close() {
		this.isClosed = true;
		cancelAnimationFrame(this.frame);
	}

	tick() {}

	update() {
		const { events, node, api, manifest } = this.page;
		for (const { kind, attempt, from } of HB.timeline.life(events).parts) {
			if (kind !== 'run' || this.starts.has(attempt)) continue;
			this.starts.set(attempt, from);
			this.ask(attempt);
		}
		this.limits ??= (async () => {
			const { limits = {} } = await (node.info ?? api.json('/api/node').catch(() => ({})));
			this.limits = { cpus: limits.default_cpus, memory_mib: limits.default_memory_mib, pids: limits.default_pids, ...manifest?.resources };
		})();
		this.soon();
	}

	/** One attempt after another; of a file that is known what is new. */
	ask(attempt) {
		this.reading = this.reading.then(async () => {
			if (this.isClosed) return;
			const { api, id } = this.page;
			// From the last byte that is known: browsers call an answer of nothing new an error.
			const from = Math.max(0, (this.read.get(attempt) ?? 0) - 1);
			const response = await api.request(api.jobPath(id, `/telemetry?attempt=${attempt}`), { headers: from && { Range: `bytes=${from}-` } });
			const bytes = new Uint8Array(response.status === 416 ? 0 : await response.arrayBuffer());
			// 416: the file was thinned; the next time it is read whole.
			this.read.set(attempt, bytes.length && bytes.length + (response.status === 206 ? from : 0));
			this.take(HB.chain.records(bytes).flatMap(({ event }) => event ?? []));
		}).catch(() => {}); // the next gap asks again
	}

	take(list) {
		list.forEach(HB.timeline.msOf);
		this.samples = rates([...this.samples, ...list], this.starts);
		while (this.samples.length > HELD) this.samples = rates(this.samples.filter((_, i) => i % 2), this.starts);
		this.soon();
	}

	/** A sample from the stream. What was missed is in the file. */
	sample(sample) {
		const last = this.samples.at(-1);
		if (HB.timeline.msOf(sample) <= last?.ms || !this.starts.has(sample.attempt)) return;
		since(sample, last, this.starts);
		this.samples.push(sample);
		if (this.samples.length > HELD) this.take([]);
		if (sample.every > GAP) this.ask(sample.attempt);
		this.soon();
	}

	soon() {
		this.frame ??= requestAnimationFrame(() => {
			this.frame = null;
			if (this.time.pieces) this.draw();
		});
	}

	draw() {
		const { time, samples, page } = this;
		const charts = CHARTS.filter(({ lines }) => samples.some((sample) => sample[lines[0]] != null));
		const isEmpty = charts.length === 0;
		this.element.hidden = isEmpty && (page.job.phase !== 'ended' || !this.starts.size);
		setText(this.note, isEmpty ? 'The node did not measure what this job used.' : '');
		this.shown = samples.filter(({ ms }, i) => samples[i + 1]?.ms >= time.from && samples[i - 1]?.ms <= time.to || time.has(ms));
		for (const sample of this.shown) sample.px = Math.round(time.px(sample.ms));
		this.shapes = [];
		const words = charts.map((chart, i) => this.chart(chart, (i + 1) * HEIGHT - 4));
		this.view.replaceChildren(...this.shapes);
		for (const [name, value] of Object.entries({ width: time.left + time.width + time.right, height: HEIGHT * charts.length, 'aria-label': words.join('; ') })) HB.setAttr(this.view, name, value);
	}

	/** Gives its words. */
	chart({ name, lines, say, limit: of, unit = 1 }, base) {
		const { time, shown, samples, shapes } = this;
		const limit = this.limits[of] * unit;
		const most = (line) => shown.reduce((value, sample) => Math.max(value, sample[line] ?? 0), 0);
		const peak = Math.max(...lines.map(most));
		// Far below its limit a line would be flat: there the words alone tell the limit.
		const isNear = peak > limit / 8;
		const y = (value) => base - (value / (Math.max(peak, isNear ? limit : 0) || 1)) * PLOT;
		const end = time.left + time.width;
		for (const line of lines) {
			const runs = columns(shown, line).map((run) => ({ d: run.map(([px, low, high]) => `${px} ${y(low)}V${y(high)}`).join('L'), from: run[0][0], to: run.at(-1)[0] }));
			if (line !== 'write') shapes.push(svg('path', { class: 'area', d: runs.map(({ d, from, to }) => `M${from} ${base}L${d}L${to} ${base}z`).join('') }));
			shapes.push(svg('path', { class: line, d: runs.map(({ d }) => `M${d}`).join('') }));
		}
		shapes.push(svg('path', { class: 'bound', d: `M${time.left} ${base}H${end}${isNear ? `M${time.left} ${y(limit)}H${end}` : ''}` }));
		// Of a job that has ended the last sample tells nothing.
		const isPeak = time.cursor === null && this.page.job.phase === 'ended';
		const sample = samples[HB.timeline.floor(samples, time.cursor ?? Infinity)];
		const isThere = sample && !(time.cursor - sample.ms > Math.max(GAP, 3 * sample.every));
		const told = (line) => {
			const value = isPeak ? most(line) : isThere ? sample[line] : null;
			return value == null ? 'not measured' : limit ? beside(say(value), say(limit)) : say(value);
		};
		const words = (isPeak ? 'at most ' : '') + lines.map((line) => (lines[1] ? `${line} ` : '') + told(line)).join(', ');
		const text = (x, y, words, kind) => shapes.push(svg('text', { x, y, class: kind }, words));
		text(0, base - 44, name, 'soft');
		text(time.left, base - 44, words);
		if (time.right > 60) {
			text(end + 8, base, `peak ${say(peak)}`, 'soft');
			if (isNear) text(end + 8, Math.min(base - 12, y(limit) + 4), `limit ${say(limit)}`, 'soft');
		}
		return `${name}: ${words}`;
	}
}

Object.assign(HB, { Charts, charts: { columns, rates, beside } });
}
