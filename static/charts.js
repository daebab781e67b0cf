/* What a job used, in time: from the node's files, and live from its stream. */
'use strict';
{
const { h, svg, setText, setAttr, format } = HB;
const { floor, msOf } = HB.timeline;
const HELD = 8192; // samples; beyond, every second one goes
const GAP = 5000; // ms: samples come each second, in the file of a long run more rarely
const [HEIGHT, PLOT] = [62, 40]; // px
const CHARTS = [
	{ name: 'Cores', lines: ['cpu'], say: (n) => String(+n.toFixed(2)), of: 'cpus', unit: 1 },
	{ name: 'Memory', lines: ['memory_bytes'], say: format.bytes, of: 'memory_mib', unit: 2 ** 20 },
	{ name: 'I/O', lines: ['read', 'write'], say: (n) => `${format.bytes(Math.round(n))}/s` },
	{ name: 'Pids', lines: ['pids'], say: String, of: 'pids', unit: 1 },
];

/** Samples by time, with what was used since the one before. starts: attempt → ms, where all counters are 0. */
function rates(samples, starts) {
	const list = samples.sort((a, b) => a.ms - b.ms).filter(({ ms }, i) => ms !== samples[i - 1]?.ms);
	list.forEach((sample, i) => since(sample, list[i - 1], starts));
	return list;
}

function since(sample, before, starts) {
	const { attempt, ms } = sample;
	const isFirst = before?.attempt !== attempt;
	const from = isFirst ? { ms: starts.get(attempt) } : before;
	const every = ms - from.ms;
	const per = (name, unit, begin = isFirst ? 0 : from[name]) => (sample[name] == null || begin == null || !(every > 0) ? null : (Math.max(0, sample[name] - begin) / every) * unit);
	const breaks = isFirst || every > 3 * Math.max(GAP, before.every);
	Object.assign(sample, { every, breaks, cpu: per('cpu_ns', 1e-6), read: per('io_read_bytes', 1000), write: per('io_write_bytes', 1000) });
}

/** Samples → runs of [px, least, greatest]; where nothing was measured they break. */
function columns(samples, line) {
	const runs = [];
	let run;
	for (const { px, breaks, [line]: value } of samples) {
		if (value == null || breaks) run = null;
		if (value == null) continue;
		if (!run) runs.push((run = []));
		const last = run.at(-1);
		if (last?.[0] === px) [last[1], last[2]] = [Math.min(last[1], value), Math.max(last[2], value)];
		else run.push([px, value, value]);
	}
	return runs;
}

class Charts {
	samples = []; // by time
	starts = new Map();
	reading = Promise.resolve();
	limits = {};

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

	tick() {
		if (this.page.pruned) this.soon();
	}

	update() {
		const { events, node, api, manifest } = this.page;
		for (const { kind, attempt, from } of HB.timeline.life(events).parts) {
			if (kind !== 'run' || this.starts.has(attempt)) continue;
			this.starts.set(attempt, from);
			this.ask(attempt);
		}
		this.asked ??= (async () => {
			const { limits: d = {} } = await (node.info ?? api.json('/api/node').catch(() => ({})));
			this.limits = { cpus: d.default_cpus, memory_mib: d.default_memory_mib, pids: d.default_pids, ...manifest?.resources };
			this.soon();
		})();
	}

	/** Reads an attempt's file, thinned by the node to some thousand lines. */
	ask(attempt) {
		this.reading = this.reading.then(async () => {
			const { api, id } = this.page;
			if (!this.isClosed) this.take((await api.lines(api.jobPath(id, `/telemetry?attempt=${attempt}`))).flatMap(({ event }) => event ?? []));
		}).catch(() => {}); // the next gap asks again
	}

	take(list) {
		list.forEach(msOf);
		this.samples = rates([...this.samples, ...list], this.starts);
		while (this.samples.length > HELD) this.samples = rates(this.samples.filter((_, i) => i % 2), this.starts);
		this.soon();
	}

	/** A sample from the stream. What was missed is in the file. */
	sample(sample) {
		const { samples, starts } = this;
		const last = samples.at(-1);
		if (msOf(sample) <= last?.ms || !starts.has(sample.attempt)) return;
		since(sample, last, starts);
		samples.push(sample);
		if (sample.every > GAP) this.ask(sample.attempt);
		if (samples.length > HELD) this.take([]);
		this.soon();
	}

	soon() {
		this.frame ??= requestAnimationFrame(() => {
			this.frame = null;
			if (this.time.pieces) this.draw();
		});
	}

	draw() {
		const { time, page, limits } = this;
		// A replay knows none that came later.
		const samples = page.at === null ? this.samples : this.samples.slice(0, floor(this.samples, page.now) + 1);
		// Not for each event of a long run, which moves them by less than a pixel.
		const lines = [time.from, time.width, samples.length, samples.at(-1)?.ms, limits.pids].join();
		if (lines !== this.drawn || Math.abs(time.all(this.to) - time.v) * time.width > (time.v - time.u) / 2) this.drawLines(samples);
		this.drawn = lines;
		const isEmpty = this.charts.length === 0;
		this.element.hidden = isEmpty && (page.job.phase !== 'ended' || !this.starts.size);
		setText(this.note, isEmpty ? page.pruned || 'The node did not measure what this job used.' : '');
		const isPeak = time.cursor === null && page.job.phase === 'ended';
		const last = samples[floor(samples, time.cursor ?? Infinity)];
		const sample = last && !(time.cursor - last.ms > Math.max(GAP, 3 * last.every)) ? last : {};
		const words = this.charts.map(({ name, lines, say, limit, peaks, text }) => {
			const told = lines.map((line, i) => {
				const value = isPeak ? peaks[i] : sample[line];
				return `${lines[1] ? `${line} ` : ''}${value == null ? 'not measured' : say(value)}${value != null && limit ? ` of ${say(limit)}` : ''}`;
			});
			setText(text, (isPeak ? 'at most ' : '') + told.join(', '));
			return `${name}: ${text.textContent}`;
		});
		setAttr(this.view, 'aria-label', words.join('; '));
	}

	drawLines(samples) {
		const { time, view } = this;
		this.to = time.to;
		const [low, high] = [time.from, time.to].map((ms) => floor(samples, ms));
		const shown = samples.slice(Math.max(0, low), high + 2);
		for (const sample of shown) sample.px = Math.round(time.px(sample.ms));
		this.charts = CHARTS.filter(({ lines }) => samples.some((sample) => sample[lines[0]] != null)).map((chart) => ({ ...chart, limit: this.limits[chart.of] * chart.unit }));
		view.replaceChildren(...this.charts.flatMap((chart, i) => this.lines(chart, (i + 1) * HEIGHT - 4, shown)));
		setAttr(view, 'width', time.left + time.width + time.right);
		setAttr(view, 'height', HEIGHT * this.charts.length);
	}

	/** Shapes of a chart above `base`, and its words. */
	lines(chart, base, shown) {
		const { left, width, right } = this.time;
		const { name, lines, say, limit } = chart;
		const runs = lines.map((line) => columns(shown, line));
		chart.peaks = runs.map((list) => list.flat().reduce((most, [, , value]) => Math.max(most, value), 0));
		const peak = Math.max(...chart.peaks);
		// Far below its limit a line would be flat: there the words alone tell the limit.
		const isNear = peak > limit / 8;
		const y = (value) => base - (value / (Math.max(peak, isNear ? limit : 0) || 1)) * PLOT;
		const end = left + width;
		const path = (name, d) => svg('path', { class: name, d });
		const text = (x, y, words, name) => svg('text', { x, y, class: name }, words);
		const shapes = runs.flatMap((list, i) => {
			const drawn = list.map((run) => run.map(([px, low, high]) => `${px} ${y(low)}V${y(high)}`).join('L'));
			const area = drawn.map((d, i) => `M${list[i][0][0]} ${base}L${d}V${base}z`).join('');
			return [i ? '' : path('area', area), path(lines[i], drawn.map((d) => `M${d}`).join(''))];
		});
		return [
			...shapes,
			path('bound', `M${left} ${base}H${end}${isNear ? `M${left} ${y(limit)}H${end}` : ''}`),
			text(0, base - 44, name, 'soft'),
			(chart.text = text(left, base - 44)),
			right > 60 ? text(end + 8, base, `peak ${say(peak)}`, 'soft') : '',
		];
	}
}

Object.assign(HB, { Charts, charts: { columns, rates } });
}
