/* What a job has sealed. */
'use strict';
{
const { h } = HB;

class Artifacts {
	constructor(page) {
		this.page = page;
		this.element = h('section', { class: 'artifacts', hidden: '' });
	}

	close() {}

	update() {}

	tick() {}
}

HB.Artifacts = Artifacts;
}
