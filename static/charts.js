/* What a job used, in time: CPU, memory, I/O, processes; from the node's file and live from its stream. */
'use strict';
{
const { h, svg, pool, setAttr, format } = HB;
const SAMPLES = 16_384; // held; beyond, every second one goes
const GAP_MS = 5000; // samples come each second, in the file of a long run more rarely
const HEIGHT = 62;
const PLOT = 40;
const number = (n) => String(+n.toFixed(n < 10 ? 2 : 0));
const rate = (n) => `${format.bytes(Math.round(n))}/s`;
const CHARTS = [
	{ name: 'Cores', lines: ['cpu'], say: number, limit: (r) => r.cpus },
	{ name: 'Memory', lines: ['memory_bytes'], say: format.bytes, limit: (r) => r.memory_mib * 2 ** 20 },
	{ name: 'I/O', lines: ['read', 'write'], say: rate },
	{ name: 'Pids', lines: ['pids'], say: String, limit: (r) => r.pids },
];

/** “11 of 64 GiB”. */
function beside(value, limit, say) {
	const [used, all] = [say(value), say(limit)];
	const own = / \S+$/.exec(used)?.[0];
	return `${own && all.endsWith(own) ? used.slice(0, -own.length) : used} of ${all}`;
}

/** Sorts samples, each once, and tells what was used between one and the next. Pure. starts: attempt → ms, where all counters are 0. */
function rates(samples, starts) {
	const list = samples.sort((a, b) => a.ms - b.ms).filter(({ ms }, i) => ms !== samples[i - 1]?.ms);
	for (const [i, sample] of list.entries()) rateOf(sample, list[i - 1], starts);
	return list;
}

function rateOf(sample, before, starts) {
	const isFirst = before?.attempt !== sample.attempt;
	const earlier = isFirst ? { ms: starts.get(sample.attempt) ?? sample.ms, cpu_ns: 0, io_read_bytes: 0, io_write_bytes: 0 } : before;
	const ms = (sample.every = sample.ms - earlier.ms);
	const per = (name, unit) => (sample[name] == null || earlier[name] == null || !(ms > 0) ? null : Math.max(0, sample[name] - earlier[name]) / ms / unit);
	const isGap = !isFirst && ms > 3 * Math.max(GAP_MS, before.every);
	Object.assign(sample, { isGap, breaks: isFirst || isGap, cpu: per('cpu_ns', 1e6), read: per('io_read_bytes', 1e-3), write: per('io_write_bytes', 1e-3) });
}

/** Values by px → the path of the least and the greatest of each px; null breaks it. Pure. */
function path(points, y) {
	let d = '';
	let [column, low, high, isOpen] = [null, 0, 0, false];
	const flush = () => {
		if (column !== null) d += `${isOpen ? 'L' : 'M'}${column} ${y(low)}${high > low || !isOpen ? `V${y(high)}` : ''}`;
		[isOpen, column] = [column !== null || isOpen, null];
	};
	for (const { px, value, breaks } of points) {
		if (breaks || value === null) {
			flush();
			isOpen = false;
		}
		if (value === null) continue;
		if (px === column) [low, high] = [Math.min(low, value), Math.max(high, value)];
		else {
			flush();
			[column, low, high] = [px, value, value];
		}
	}
	flush();
	return d;
}

class Charts {
	samples = []; // by time: those of one attempt follow those of another
	starts = new Map(); // attempt → ms
	ends = new Map(); // attempt → bytes of its file that were read
	reading = Promise.resolve();

	constructor(page) {
		Object.assign(this, { page, time: page.time });
		this.view = svg('svg');
		setAttr(this.view, 'role', 'img');
		this.note = h('p', { class: 'note', hidden: '' }, 'This node could not measure what the job used.');
		this.plot = h('div', { class: 'charts' }, this.view);
		this.element = h('section', { 'aria-label': 'Use of the machine', hidden: '' }, this.plot, this.note);
		this.layers = {};
		for (const [kind, tag] of Object.entries({ areas: 'path', lines: 'path', words: 'text' })) this.layers[kind] = pool(this.view.appendChild(svg('g')), tag);
		HB.crosshair(this.time, this.plot, this);
		this.time.on(() => this.soon());
	}

	close() {
		this.isClosed = true;
		cancelAnimationFrame(this.frame);
	}

	tick() {}

	update() {
		for (const { state, attempt, time } of this.page.events) {
			if ((state !== 'RUNNING' && state !== 'RECOVERY') || this.starts.has(attempt)) continue;
			this.starts.set(attempt, Date.parse(time));
			this.ask(attempt);
		}
		this.limits ??= this.findLimits();
		this.soon();
	}

	async findLimits() {
		const { node, api, manifest } = this.page;
		const { limits = {} } = node.info ?? (await api.json('/api/node').catch(() => ({})));
		const { default_cpus: cpus, default_memory_mib: memory_mib, default_pids: pids } = limits;
		this.resources = { cpus, memory_mib, pids, ...manifest?.resources };
		this.soon();
	}

	ask(attempt) {
		this.reading = this.reading.then(() => this.isClosed || this.read(attempt));
	}

	/** One attempt after another, and of a file that is known what is new. */
	async read(attempt) {
		const { api, id } = this.page;
		const from = this.ends.get(attempt) ?? 0;
		try {
			const response = await api.request(api.jobPath(id, `/telemetry?attempt=${attempt}`), { headers: from && { Range: `bytes=${from}-` } });
			const bytes = new Uint8Array(await response.arrayBuffer());
			// 416: a file that was thinned is shorter, and read whole the next time.
			this.ends.set(attempt, response.status === 416 ? 0 : bytes.length + (response.status === 206 ? from : 0));
			if (response.status !== 416) this.take(HB.chain.records(bytes).map(({ event }) => event));
		} catch {
			// The next gap in the live samples asks again.
		}
	}

	take(list) {
		const fresh = list.filter((sample) => sample?.time).map((sample) => ({ ...sample, ms: Date.parse(sample.time) }));
		if (this.isClosed || !fresh.length) return;
		this.samples = rates([...this.samples, ...fresh], this.starts);
		while (this.samples.length > SAMPLES) this.samples = rates(this.samples.filter((_, i) => i % 2), this.starts);
		this.soon();
	}

	/** A sample from the stream. After a gap the file has what was missed. */
	sample(data) {
		const sample = { ...data, ms: Date.parse(data.time) };
		const last = this.samples.at(-1);
		if (last && sample.ms <= last.ms) return;
		rateOf(sample, last, this.starts);
		if (this.samples.push(sample) > SAMPLES) this.take([sample]);
		if (sample.every > GAP_MS) this.ask(sample.attempt);
		this.soon();
	}

	soon() {
		this.frame ??= requestAnimationFrame(() => {
			this.frame = null;
			if (this.page.events) this.draw();
		});
	}

	draw() {
		const { time, samples, layers, page } = this;
		const has = CHARTS.filter(({ lines }) => lines.some((name) => samples.some((sample) => sample[name] != null)));
		this.plot.hidden = !has.length;
		this.note.hidden = has.length > 0 || page.job.phase !== 'ended';
		this.element.hidden = (!has.length && this.note.hidden) || !this.starts.size;
		if (!has.length) return;
		if (this.drawn !== time.version || this.count !== samples.length || this.last !== samples.at(-1)) {
			this.shown = samples.filter(({ ms }, i) => (samples[i + 1] ?? samples[i]).ms >= time.from && (samples[i - 1] ?? samples[i]).ms <= time.to);
			for (const sample of this.shown) sample.px = Math.round(time.px(sample.ms));
			Object.assign(this, { drawn: time.version, count: samples.length, last: samples.at(-1) });
		}
		setAttr(this.view, 'width', time.left + time.width + time.right);
		setAttr(this.view, 'height', HEIGHT * has.length);
		setAttr(this.view, 'aria-label', has.map((chart, i) => this.drawChart(chart, i * HEIGHT)).join('; '));
		for (const layer of Object.values(layers)) layer.end();
	}

	/** Gives its words. */
	drawChart(chart, top) {
		const { time, shown, samples, layers } = this;
		const { name, lines, say } = chart;
		const limit = (this.resources && chart.limit?.(this.resources)) || null;
		const base = top + HEIGHT - 4;
		const most = (line) => shown.reduce((value, sample) => Math.max(value, sample[line] ?? 0), 0);
		const peak = Math.max(...lines.map(most));
		// Far below its limit a line would be flat: there the words alone tell the limit.
		const isNear = limit && peak > limit / 8;
		const full = Math.max(peak, isNear ? limit : 0) || 1;
		const y = (value) => +(base - (value / full) * PLOT).toFixed(1);
		const end = time.left + time.width;
		for (const line of lines) {
			const d = path(shown.map((sample) => ({ px: sample.px, value: sample[line] ?? null, breaks: sample.breaks })), y);
			layers.lines.add({ d, class: line });
			if (line !== 'write') layers.areas.add({ d: d.replace(/M(\d+) [^M]*?(?=M|$)/g, (part, x) => `${part.replace('M', `M${x} ${base}L`)}V${base}H${x}z`), class: 'area' });
		}
		layers.lines.add({ d: `M${time.left} ${base}H${end}${isNear ? `M${time.left} ${y(limit)}H${end}` : ''}`, class: 'bound' });
		// Of what has ended the last sample tells nothing.
		const isPeak = time.cursor === null && this.page.job.phase === 'ended';
		const sample = samples[HB.timeline.floor(samples, time.cursor ?? Infinity, 'ms')];
		const isThere = sample && (time.cursor === null || time.cursor - sample.ms < Math.max(GAP_MS, 3 * sample.every));
		const told = (line) => {
			const value = isPeak ? most(line) : isThere ? sample[line] : null;
			return value == null ? 'not measured' : limit ? beside(value, limit, say) : say(value);
		};
		const words = (isPeak ? 'at most ' : '') + lines.map((line) => (lines[1] ? `${line} ` : '') + told(line)).join(', ');
		layers.words.add({ x: 0, y: top + 14, class: 'soft' }, name);
		layers.words.add({ x: time.left, y: top + 14, class: '' }, words);
		const beyond = time.right > 60;
		if (beyond) layers.words.add({ x: end + 8, y: base, class: 'soft' }, `peak ${say(peak)}`);
		if (beyond && isNear) layers.words.add({ x: end + 8, y: Math.min(base - 12, y(limit) + 4), class: 'soft' }, `limit ${say(limit)}`);
		return `${name}: ${words}`;
	}
}

Object.assign(HB, { Charts, charts: { path, rates, beside } });
}
