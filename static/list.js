/* The grid of jobs. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
/** Name (of the sort as well) | heading | text of a job. */
const COLUMNS = [
	['state', 'State'],
	['job', 'Job'],
	['node', 'Node', ({ node }) => node?.name],
	['last', 'Last word', lastWord],
	['image', 'Image', (job) => job.image_hash.replace(/^sha256:(.{12}).*/, '$1')],
	['attempts', 'Attempts', (job) => String(job.attempt)],
	['received', 'Received', (job, now) => format.moment(job.received, now)],
	['duration', 'Run time', runTime],
];
const FALLS = ['attempts', 'received', 'duration']; // first sorted the largest first
const keyOf = (job) => job && `${job.node?.key} ${job.job_id}`;

/** open(job) is called for Enter and clicks, sort(name) for headings. */
class JobGrid {
	jobs = [];
	activeKey = null; // by key: the list shifts under the selection whenever a job arrives

	constructor(open, sort) {
		Object.assign(this, { open, sort });
		this.rows = h('div', { role: 'rowgroup', class: 'rows' });
		this.headings = COLUMNS.map(([name, label]) => h('span', { role: 'columnheader', class: `c-${name}` }, h('button', { click: () => sort(this.next(name)) }, label)));
		this.header = h('div', { role: 'row', class: 'row' }, this.headings);
		this.element = h('div', { role: 'grid', class: 'grid', tabindex: 0, 'aria-label': 'Jobs' }, h('div', { role: 'rowgroup', class: 'headings' }, this.header), this.rows);
		this.list = new HB.Windowed({ scroller: this.element, rows: this.rows, make: makeRow, draw: (row, i) => this.draw(row, i) });
		this.element.addEventListener('keydown', (event) => this.key(event));
		this.element.addEventListener('focus', () => this.move(0));
		this.rows.addEventListener('click', ({ target }) => {
			if (!target.closest('a') && getSelection().type !== 'Range') open(target.closest('.row').job);
		});
	}

	/** sorted: as in HB.model.select; as of: ms, where it is not now. */
	show(jobs, sorted, isMany, asOf) {
		Object.assign(this, { jobs, sorted, asOf });
		this.list.count = jobs.length;
		setAttr(this.element, 'aria-rowcount', jobs.length + 1);
		setAttr(this.element, 'data-many', isMany ? '' : null);
		const [, down, name] = /^(-?)(.*)$/.exec(sorted ?? '-received');
		this.headings.forEach((heading, i) => setAttr(heading, 'aria-sort', COLUMNS[i][0] === name ? (down ? 'descending' : 'ascending') : null));
		this.list.paint();
	}

	/** What a press of a heading sorts by: one way, the other, not at all. */
	next(name) {
		const ways = FALLS.includes(name) ? [`-${name}`, name] : [name, `-${name}`];
		if (name === 'received') ways.shift(); // as it is, unsorted
		return ways[ways.indexOf(this.sorted) + 1] ?? null;
	}

	move(step) {
		if (this.jobs.length === 0) return;
		const at = this.jobs.findIndex((job) => keyOf(job) === this.activeKey);
		const index = Math.max(0, Math.min(this.jobs.length - 1, at < 0 ? 0 : at + step));
		this.activeKey = keyOf(this.jobs[index]);
		const row = this.list.rowHeight();
		const { scrollTop, clientHeight } = this.element;
		const lowest = (index + 1) * row + this.header.offsetHeight - clientHeight;
		this.element.scrollTop = Math.max(lowest, Math.min(scrollTop, index * row));
		this.list.refresh();
	}

	key(event) {
		if (event.target !== this.element || event.ctrlKey || event.metaKey || event.altKey) return;
		const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
		const active = event.key === 'Enter' && this.jobs.find((job) => keyOf(job) === this.activeKey);
		if (step) this.move(step);
		else if (active) this.open(active);
		else return;
		event.preventDefault();
		event.stopPropagation();
	}

	draw(row, index) {
		const job = (row.job = this.jobs[index]);
		if (!job) return; // the list became shorter
		const isActive = keyOf(job) === this.activeKey;
		const now = this.asOf ?? Date.now();
		row.id = `row-${index}`;
		setAttr(row, 'aria-rowindex', index + 2);
		setAttr(row, 'aria-selected', isActive);
		if (isActive) setAttr(this.element, 'aria-activedescendant', row.id);
		const [state, link, ...cells] = row.cells;
		state.update(job.state);
		setText(link, job.job_id);
		setAttr(link, 'href', HB.jobLink(job.node, job.job_id));
		cells.forEach((cell, i) => setText(cell, COLUMNS[i + 2][2](job, now) ?? ''));
		setAttr(row, 'data-again', job.attempt > 1 ? '' : null);
	}
}

function makeRow() {
	const cells = [HB.mark('state', 'RECEIVED'), h('a', { tabindex: -1 }), ...COLUMNS.slice(2).map(() => h('span'))];
	const row = h('div', { role: 'row', class: 'row' }, cells.map((cell, i) => h('span', { role: 'gridcell', class: `c-${COLUMNS[i][0]}` }, cell)));
	return Object.assign(row, { cells });
}

/** Why it failed, or how far it is. */
function lastWord(job) {
	if (job.state === 'CRASH') return format.cause(job.reason);
	if (job.state === 'FAILED') return format.join(job.reason !== 'exit' && job.reason, job.exit_code != null && `exit ${job.exit_code}`);
	return format.marker(job.last_d1_stable);
}

function runTime(job, now) {
	const ran = HB.model.runTime(job, now);
	return ran === null ? '' : format.duration(job.ended ? ran : Math.floor(ran / 1000) * 1000);
}

HB.JobGrid = JobGrid;
}
