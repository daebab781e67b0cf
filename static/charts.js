/* What a job used, in time. */
'use strict';
{
const { h } = HB;

class Charts {
	constructor(page) {
		this.page = page;
		this.element = h('section', { class: 'charts', hidden: '' });
	}

	close() {}

	update() {}

	tick() {}
}

HB.Charts = Charts;
}
