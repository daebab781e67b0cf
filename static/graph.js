/* The execution graph around a job. */
'use strict';
{
const { h, svg, setText, format } = HB;
const SHOWN = 60; // jobs drawn at most
const READ_MS = 15_000; // new children come without an event of this job
const [WIDTH, HEIGHT, ACROSS, DOWN] = [176, 46, 232, 58]; // px: a box, and from one to the next
const SIDES = { ArrowLeft: 'parents', ArrowRight: 'children' };

/** As many whole rings around `id` as fit, in layers by the longest path. Pure. */
function arrange({ jobs, edges }, id, most = SHOWN) {
	const near = new Set([id]);
	for (let ring = [id]; ring.length && near.size < most; ring.forEach((name) => near.add(name))) {
		ring = [...new Set(edges.filter((edge) => edge.some((name) => near.has(name))).flat())].filter((name) => !near.has(name)).sort();
		if (near.size + ring.length > most) ring = near.size > 1 ? [] : ring.slice(0, most - 1);
	}
	const states = new Map(jobs.map(({ job_id, state }) => [job_id, state]));
	const nodes = new Map([...near].sort().map((id) => [id, { id, state: states.get(id), layer: 0, parents: [], children: [] }]));
	for (const [parent, child] of [...edges].sort().map((edge) => edge.map((name) => nodes.get(name)))) {
		if (parent && child) parent.children.push(child) && child.parents.push(parent);
	}
	// No path has more steps; in a cycle this ends as well.
	for (const _ of nodes) for (const [, node] of nodes) node.layer = Math.max(0, ...node.parents.map(({ layer }) => layer + 1));
	const layers = [];
	for (const [, node] of nodes) (layers[node.layer] ??= []).push(node);
	const found = layers.filter(Boolean);
	found.forEach((layer, i) => settle(layer, 'parents', i));
	found.reduceRight((_, layer, i) => settle(layer, 'children', i), 0);
	return { nodes, layers: found, left: jobs.length - nodes.size };
}

function settle(layer, side, index) {
	for (const node of layer) node.wish = node[side].reduce((sum, { y = 0 }) => sum + y, 0) / node[side].length || 0;
	layer.sort((a, b) => a.wish - b.wish).forEach((node, i) => Object.assign(node, { layer: index, y: i - (layer.length - 1) / 2 }));
}

/** Where an arrow key leads, along an edge or in the layer. */
function step(layers, node, key) {
	const far = ({ layer, y }) => 99 * Math.abs(layer - node.layer) + Math.abs(y - node.y);
	if (SIDES[key]) return [...node[SIDES[key]]].sort((a, b) => far(a) - far(b))[0];
	return layers[node.layer].find(({ y }) => y === node.y + { ArrowUp: -1, ArrowDown: 1 }[key]);
}

const names = (nodes) => nodes.map(({ id }) => id).join(', ') || 'none';
const relatives = ({ parents, children }) => `Parents: ${names(parents)}. Children: ${names(children)}.`;

class Graph {
	readAt = 0;

	constructor(page) {
		this.page = page;
		this.field = h('div', { class: 'field', keydown: (event) => this.move(event) });
		this.text = h('p', { class: 'note' });
		this.element = h('section', { class: 'graph', hidden: '' }, h('h2', null, 'Graph'), h('div', { class: 'scroll' }, this.field), this.text);
	}

	tick() {
		if (Date.now() - this.readAt > READ_MS) this.read();
		this.drawStates();
	}

	async read() {
		this.readAt = Date.now();
		const { api, id } = this.page;
		const graph = await api.json(`/api/graph?job=${encodeURIComponent(id)}`).catch(() => null); // the badge tells
		if (!graph?.edges.length || this.told === (this.told = JSON.stringify(graph))) return;
		this.element.hidden = false;
		Object.assign(this, arrange(graph, id));
		this.draw(graph.truncated);
	}

	draw(isCut) {
		const { page: { id, node }, nodes, layers, left, field } = this;
		const tallest = Math.max(...layers.map((layer) => layer.length));
		const at = ({ layer, y }) => [layer * ACROSS, (y + (tallest - 1) / 2) * DOWN + HEIGHT / 2];
		const focused = document.activeElement.dataset.id;
		let d = '';
		this.boxes = layers.flat().map((job) => {
			const [x, y] = at(job);
			for (const parent of job.parents) {
				const [a, b] = at(parent);
				const bow = job.layer - parent.layer > 1 ? HEIGHT : 0; // around the boxes between
				d += `M${a + WIDTH} ${b}C${a + WIDTH + 30} ${b + bow} ${x - 30} ${y + bow} ${x} ${y}`;
			}
			const box = h('a', { 'data-id': job.id, href: HB.jobLink(node, job.id), title: `${job.id}. ${relatives(job)}`, 'aria-current': job.id === id && 'page' }, h('b', null, job.id), HB.mark('state', job.state));
			box.style.transform = `translate(${x}px, ${y}px)`;
			return box;
		});
		Object.assign(field.style, { width: `${layers.length * ACROSS - ACROSS + WIDTH}px`, height: `${tallest * DOWN}px` });
		field.replaceChildren(svg('svg', null, svg('path', { d })), ...this.boxes);
		const more = isCut ? ' and more' : '';
		setText(this.text, `${relatives(nodes.get(id))} Arrow keys move.${left || more ? ` Not shown: ${format.count(left, 'job')}${more}.` : ''}`);
		this.drawStates();
		field.parentNode.scrollLeft ||= (nodes.get(id).layer - 1) * ACROSS;
		this.reach(nodes.has(focused) ? focused : id, focused);
	}

	drawStates() {
		const { page: { id: own, job, node }, nodes } = this;
		for (const { dataset: { id }, lastChild } of this.boxes ?? []) lastChild.update((id === own ? job : (node.model?.jobs.get(id) ?? nodes.get(id))).state);
	}

	/** One stop for the Tab key: where the reader is. */
	reach(id, isFocused) {
		for (const box of this.boxes) {
			box.tabIndex = box.dataset.id === id ? 0 : -1;
			if (isFocused && box.tabIndex === 0) box.focus();
		}
	}

	move(event) {
		const next = step(this.layers, this.nodes.get(event.target.dataset.id), event.key);
		if (!next) return;
		event.preventDefault();
		this.reach(next.id, true);
	}
}

HB.Graph = Graph;
Graph.pure = { arrange, step };
}
