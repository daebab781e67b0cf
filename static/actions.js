/* What can be done about a job, and the form that submits one. */
'use strict';
{
const { h } = HB;

class Actions {
	constructor(page) {
		this.page = page;
		this.element = h('span', { class: 'actions' }, HB.copyButton('Copy as curl', () => page.api.curl(page.manifest)));
	}

	close() {}

	update() {}

	tick() {}
}

HB.Actions = Actions;
}
