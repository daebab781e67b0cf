/* The grid of jobs. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const COLUMNS = ['State', 'Job', 'Last word', 'Image', 'Attempt', 'Received', 'Time run'];

/** open(id) is called for Enter and clicks. */
class JobGrid {
	jobs = [];
	activeId = null; // by id: the list shifts under the selection whenever a job arrives

	constructor(open) {
		this.open = open;
		this.rows = h('div', { role: 'rowgroup', class: 'rows' });
		this.header = h('div', { role: 'row', class: 'row' }, COLUMNS.map((name, i) => h('span', { role: 'columnheader', class: `c${i}` }, name)));
		this.element = h('div', { role: 'grid', class: 'grid', tabindex: 0, 'aria-label': 'Jobs, newest first' }, h('div', { role: 'rowgroup', class: 'headings' }, this.header), this.rows);
		const rowHeight = () => parseFloat(getComputedStyle(this.element).getPropertyValue('--row'));
		this.list = new HB.Windowed({ scroller: this.element, rows: this.rows, make: makeRow, draw: (row, i) => this.draw(row, i), rowHeight });
		this.element.addEventListener('keydown', (event) => this.key(event));
		this.element.addEventListener('focus', () => this.move(0));
		this.rows.addEventListener('click', ({ target }) => {
			if (!target.closest('a') && getSelection().type !== 'Range') open(target.closest('.row').job.job_id);
		});
	}

	show(jobs) {
		this.jobs = jobs;
		this.list.count = jobs.length;
		setAttr(this.element, 'aria-rowcount', jobs.length + 1);
		this.list.refresh();
	}

	move(step) {
		if (this.jobs.length === 0) return;
		const at = this.jobs.findIndex((job) => job.job_id === this.activeId);
		const index = Math.max(0, Math.min(this.jobs.length - 1, at < 0 ? 0 : at + step));
		this.activeId = this.jobs[index].job_id;
		const row = this.list.rowHeight();
		const { scrollTop, clientHeight } = this.element;
		const lowest = (index + 1) * row + this.header.offsetHeight - clientHeight;
		this.element.scrollTop = Math.max(lowest, Math.min(scrollTop, index * row));
		this.list.refresh();
	}

	key(event) {
		const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
		if (!step && event.key !== 'Enter') return;
		if (step) this.move(step);
		else if (this.activeId !== null) this.open(this.activeId);
		event.preventDefault();
		event.stopPropagation();
	}

	draw(row, index) {
		const job = (row.job = this.jobs[index]);
		const isActive = job.job_id === this.activeId;
		const ran = HB.model.runTime(job, Date.now());
		row.id = `row-${index}`;
		setAttr(row, 'aria-rowindex', index + 2);
		setAttr(row, 'aria-selected', isActive);
		if (isActive) setAttr(this.element, 'aria-activedescendant', row.id);
		const [state, link, ...cells] = row.cells;
		state.update(job.state);
		setText(link, job.job_id);
		setAttr(link, 'href', `#/jobs/${encodeURIComponent(job.job_id)}`);
		const texts = [
			lastWord(job),
			job.image_hash.replace(/^sha256:(.{12}).*/, '$1'),
			String(job.attempt),
			format.moment(job.received, Date.now()),
			ran === null ? '' : format.duration(job.ended ? ran : Math.floor(ran / 1000) * 1000),
		];
		cells.forEach((cell, i) => setText(cell, texts[i]));
		setAttr(cells[2], 'data-many', job.attempt > 1 ? '' : null);
	}
}

function makeRow() {
	const cells = [HB.mark('state', 'RECEIVED'), h('a', { tabindex: -1 }), ...COLUMNS.slice(2).map(() => h('span'))];
	const row = h('div', { role: 'row', class: 'row' }, cells.map((cell, i) => h('span', { role: 'gridcell', class: `c${i}` }, cell)));
	return Object.assign(row, { cells });
}

/** Why it failed, or how far it is. */
function lastWord(job) {
	if (job.state === 'CRASH') return format.cause(job.reason);
	if (job.state === 'FAILED') return format.join(job.reason, job.exit_code != null && `exit ${job.exit_code}`);
	return format.marker(job.last_d1_stable);
}

HB.JobGrid = JobGrid;
}
