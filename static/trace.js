/* The TraceViewer: a job's states in time. */
'use strict';
{
const { h, setText, setAttr, format } = HB;

class Trace {
	constructor(page) {
		this.page = page;
		this.element = h('div', { class: 'lane', role: 'img', 'aria-label': 'Time' });
	}

	close() {}

	update() {}

	tick() {
		const parts = HB.model.lane(this.page.events, Date.now());
		const words = parts.map(({ kind, attempt, from, to }) => `${{ wait: 'waiting', down: 'down', seal: 'sealing' }[kind] ?? `attempt ${attempt}`} ${format.duration(to - from)}`);
		setAttr(this.element, 'aria-label', `Time: ${words.join(', ')}`);
		while (this.element.childElementCount < parts.length) this.element.append(h('span', null, h('span')));
		parts.forEach(({ kind, from, to }, i) => {
			const part = this.element.children[i];
			setAttr(part, 'class', kind);
			setAttr(part, 'title', words[i]);
			setText(part.firstChild, words[i]);
			// The root keeps a second visible beside a day.
			part.style.flexGrow = 1 + Math.sqrt(to - from);
		});
	}
}

HB.Trace = Trace;
}
