/* The execution graph around a job. */
'use strict';
{
const { h } = HB;

class Graph {
	constructor(page) {
		this.page = page;
		this.element = h('section', { class: 'graph', hidden: '' });
	}

	close() {}

	update() {}

	tick() {}
}

HB.Graph = Graph;
}
