/* A windowed list: only the rows that can be seen are in the document. */
'use strict';
{
const OVERSCAN = 6; // rows drawn above and below the visible ones
const HEIGHT_MAX = 8e6; // px: browsers cut off taller elements
const EDGE = 1e5; // px at both ends of a taller list that scroll one to one, so that its ends can be reached
const NEAR = 3000; // px: a shorter way is a wheel's, a key's or a finger's, which moves by rows
const SETTLE_MS = 200;

/** A scroll position of 0…from as one of 0…to: the same near both ends, in proportion between. Pure. */
function rescale(at, from, to) {
	if (from === to || at <= EDGE) return at;
	if (from - at <= EDGE) return to - (from - at);
	return EDGE + ((at - EDGE) * (to - 2 * EDGE)) / (from - 2 * EDGE);
}

/** make() gives a row, draw(row, index) fills it, painted() follows. sticky: at its end it stays there as it grows. */
class Windowed {
	count = 0;
	pool = [];
	top = 0; // px of the list above the view
	y = 0; // scrollTop when painted last
	atEnd = true;
	rowHeight = () => parseFloat(getComputedStyle(this.scroller).getPropertyValue('--row'));

	constructor(parts) {
		Object.assign(this, parts);
		this.scroller.addEventListener('scroll', () => this.refresh(), { passive: true });
		this.observer = new ResizeObserver(() => this.refresh());
		this.observer.observe(this.scroller);
	}

	refresh() {
		this.frame ??= requestAnimationFrame(() => this.paint());
	}

	/** Scrolls until so many rows are above the view. */
	to(index) {
		this.paint(index * this.rowHeight());
	}

	paint(goal) {
		cancelAnimationFrame(this.frame);
		this.frame = null;
		const row = this.rowHeight();
		const { scroller } = this;
		const total = this.count * row;
		const height = Math.min(total, HEIGHT_MAX);
		this.rows.style.height = `${height}px`;
		const view = scroller.clientHeight;
		const [room, span] = [Math.max(0, total - view), Math.max(0, height - view)];
		const isTall = total > height;
		const moved = scroller.scrollTop - this.y;
		if (goal === undefined && this.sticky && this.atEnd && moved === 0) goal = room;
		if (goal !== undefined) {
			this.top = Math.max(0, Math.min(goal, room));
			scroller.scrollTop = rescale(this.top, room, span);
		} else if (!isTall) this.top = scroller.scrollTop;
		else if (moved) {
			this.top = Math.abs(moved) < NEAR ? Math.max(0, Math.min(this.top + moved, room)) : rescale(scroller.scrollTop, span, room);
			// Then scrollTop is put where the rows are, for the next way.
			clearTimeout(this.settle);
			this.settle = setTimeout(() => this.paint(this.top), SETTLE_MS);
		}
		this.y = scroller.scrollTop;
		this.atEnd = room - this.top < 2;
		const first = this.isPaper ? 0 : Math.max(0, Math.floor(this.top / row) - OVERSCAN);
		const last = Math.min(this.count, this.isPaper ? this.count : Math.ceil((this.top + view) / row) + OVERSCAN);
		const size = Math.max(0, last - first);
		while (this.pool.length < size) this.rows.append(this.pool[this.pool.push(this.make()) - 1]);
		while (this.pool.length > size) this.pool.pop().remove();
		for (let i = first; i < last; i++) {
			const element = this.pool[i % size];
			element.style.transform = `translateY(${this.y + i * row - this.top}px)`;
			this.draw(element, i);
		}
		this.painted?.();
	}
}

Object.assign(HB, { Windowed, rescale });
}
