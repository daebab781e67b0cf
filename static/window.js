/* A windowed list: only the rows that can be seen are in the document. */
'use strict';
{
const OVERSCAN = 6; // rows drawn above and below the visible ones

/** make() gives a row, draw(row, index) fills it. */
class Windowed {
	count = 0;
	pool = [];

	constructor(parts) {
		Object.assign(this, parts);
		this.scroller.addEventListener('scroll', () => this.refresh(), { passive: true });
		this.observer = new ResizeObserver(() => this.refresh());
		this.observer.observe(this.scroller);
	}

	refresh() {
		this.frame ??= requestAnimationFrame(() => this.paint());
	}

	paint() {
		this.frame = null;
		const row = this.rowHeight();
		const { scrollTop, clientHeight } = this.scroller;
		this.rows.style.height = `${this.count * row}px`;
		const first = Math.max(0, Math.floor(scrollTop / row) - OVERSCAN);
		const last = Math.min(this.count, Math.ceil((scrollTop + clientHeight) / row) + OVERSCAN);
		const size = Math.max(0, last - first);
		while (this.pool.length < size) this.rows.append(this.pool[this.pool.push(this.make()) - 1]);
		while (this.pool.length > size) this.pool.pop().remove();
		for (let i = first; i < last; i++) {
			const element = this.pool[i % size];
			element.style.transform = `translateY(${i * row}px)`;
			this.draw(element, i);
		}
	}
}

HB.Windowed = Windowed;
}
