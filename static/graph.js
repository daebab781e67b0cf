/* The execution graph around a job. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const SHOWN = 60; // jobs drawn at most
const NAMED = 8; // of them in a sentence
const READ_MS = 15_000; // new children come without an event of this job
const [WIDTH, HEIGHT, ACROSS, DOWN] = [176, 46, 232, 58]; // px: a box, and from one to the next
const SIDES = { ArrowLeft: 'parents', ArrowRight: 'children' };

/** Whole rings around `id`, as many as fit, in layers by the longest path. Any order of the answer gives the same. Pure. */
function arrange({ jobs, edges }, id, most = SHOWN) {
	const all = new Map(jobs.map((job) => [job.job_id, { ...job, parents: [], children: [] }]));
	for (const [parent, child] of edges.map((pair) => pair.map((name) => all.get(name))).filter(([a, b]) => a && b)) {
		parent.children.push(child);
		child.parents.push(parent);
	}
	const near = new Set([all.get(id)]);
	for (let ring = [...near]; ring.length; ring.forEach((node) => near.add(node))) {
		ring = [...new Set(ring.flatMap(({ parents, children }) => [...parents, ...children]))].filter((node) => !near.has(node)).sort(byName);
		if (near.size + ring.length > most) ring = near.size > 1 ? [] : ring.slice(0, most - 1);
		if (near.size === most) break;
	}
	const found = [];
	const layerOf = (node) => {
		if (node.layer === undefined) {
			node.layer = 0; // ends a cycle, which no sound node tells of
			node.layer = Math.max(0, ...node.near.parents.map((parent) => layerOf(parent) + 1));
		}
		return node.layer;
	};
	for (const node of near) {
		node.near = {};
		for (const side of Object.values(SIDES)) node.near[side] = node[side].sort(byName).filter((other) => near.has(other));
	}
	for (const node of [...near].sort(byName)) (found[layerOf(node)] ??= []).push(node);
	const layers = found.filter(Boolean);
	layers.forEach((layer, i) => layer.forEach((node) => (node.layer = i)));
	for (const layer of layers) settle(layer, 'parents');
	for (const layer of [...layers].reverse()) settle(layer, 'children');
	return { nodes: new Map([...near].map((node) => [node.job_id, node])), layers, left: all.size - near.size };
}

const byName = (a, b) => (a.job_id < b.job_id ? -1 : 1);

/** Each beside the middle of those it hangs on. */
function settle(layer, side) {
	for (const node of layer) {
		const others = node.near[side];
		node.wish = others.length ? others.reduce((sum, { y }) => sum + y, 0) / others.length : (node.y ?? 0);
	}
	layer.sort((a, b) => a.wish - b.wish || byName(a, b));
	layer.forEach((node, i) => (node.y = i - (layer.length - 1) / 2));
}

/** Where an arrow key leads: along an edge, or to a neighbour in the layer. */
function step(layers, node, key) {
	const layer = layers[node.layer];
	const far = (other) => 99 * Math.abs(other.layer - node.layer) + Math.abs(other.y - node.y);
	if (key in SIDES) return [...node.near[SIDES[key]]].sort((a, b) => far(a) - far(b))[0];
	return layer[layer.indexOf(node) + ({ ArrowUp: -1, ArrowDown: 1 }[key] ?? NaN)];
}

const names = (jobs) => format.join(jobs.slice(0, NAMED).map(({ job_id }) => job_id).join(', ') || 'none', jobs.length > NAMED && `${jobs.length - NAMED} more`);
const relatives = ({ parents, children }) => `Parents: ${names(parents)}. Children: ${names(children)}.`;
const jobLink = (node, id) => `#/jobs/${encodeURIComponent(id)}${HB.nodes?.length > 1 ? `?n=${node.key}` : ''}`;

class Graph {
	boxes = new Map(); // id → link
	nodes = new Map();
	readAt = 0;

	constructor(page) {
		this.page = page;
		this.svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
		setAttr(this.svg, 'aria-hidden', true);
		this.lines = ['', 'own'].map((name) => {
			const line = this.svg.appendChild(document.createElementNS(this.svg.namespaceURI, 'path'));
			setAttr(line, 'class', name);
			return line;
		});
		this.field = h('div', { class: 'field', role: 'group', 'aria-label': 'Graph: arrow keys move, Enter opens', keydown: (event) => this.move(event) }, this.svg);
		this.text = h('p', { class: 'note' });
		this.element = h('section', { class: 'graph', hidden: '' }, h('h2', null, 'Graph'), h('div', { class: 'scroll' }, this.field), this.text);
	}

	close() {
		this.isClosed = true;
	}

	update() {}

	tick() {
		if (Date.now() - this.readAt > READ_MS) this.read();
		this.drawStates();
	}

	async read() {
		this.readAt = Date.now();
		const { api, id } = this.page;
		const graph = await api.json(`/api/graph?job=${encodeURIComponent(id)}`).catch(() => null); // the badge tells
		const told = JSON.stringify(graph);
		if (!graph || told === this.told || this.isClosed) return;
		this.told = told;
		this.element.hidden = graph.edges.length === 0;
		this.draw(arrange(graph, id), graph.truncated);
	}

	draw({ nodes, layers, left }, isCut) {
		Object.assign(this, { nodes, layers });
		const { id, node } = this.page;
		const tallest = Math.max(...layers.map((layer) => layer.length));
		const at = ({ layer, y }) => [layer * ACROSS, (y + (tallest - 1) / 2) * DOWN];
		const size = { width: (layers.length - 1) * ACROSS + WIDTH, height: (tallest - 1) * DOWN + HEIGHT };
		for (const name in size) {
			setAttr(this.svg, name, size[name]);
			this.field.style[name] = `${size[name]}px`;
		}
		const paths = ['', ''];
		const boxes = layers.flat().map((job) => {
			const [x, y] = at(job);
			for (const parent of job.near.parents) {
				const [fromX, fromY] = at(parent);
				const [a, b] = [fromX + WIDTH, fromY + HEIGHT / 2];
				const bow = job.layer - parent.layer > 1 ? HEIGHT : 0; // around the boxes between
				paths[Number(job.job_id === id || parent.job_id === id)] += `M${a} ${b}C${a + 30} ${b + bow} ${x - 30} ${y + HEIGHT / 2 + bow} ${x} ${y + HEIGHT / 2}`;
			}
			const box = this.boxes.get(job.job_id) ?? this.box(job.job_id, node);
			box.style.transform = `translate(${x}px, ${y}px)`;
			return box;
		});
		this.lines.forEach((line, i) => setAttr(line, 'd', paths[i]));
		HB.reconcile(this.field, [this.svg, ...boxes]);
		setText(this.text, relatives(nodes.get(id)) + (left || isCut ? ` Left out, as further away: ${format.count(left, 'job')}${isCut ? ' and more' : ''}.` : ''));
		this.drawStates();
		this.reach(document.activeElement.dataset.id ?? id);
	}

	box(name, node) {
		const box = h('a', { 'data-id': name, href: jobLink(node, name), title: name }, h('b', null, name), HB.mark('state', 'RECEIVED'));
		setAttr(box, 'aria-current', name === this.page.id ? 'page' : null);
		this.boxes.set(name, box);
		return box;
	}

	drawStates() {
		for (const [id, job] of this.nodes) {
			const { state } = id === this.page.id ? this.page.job : (this.page.node.model?.jobs.get(id) ?? job);
			const box = this.boxes.get(id);
			box.lastChild.update(state);
			setAttr(box, 'aria-label', `${id} ${state}. ${relatives(job)}`);
		}
	}

	/** One stop for the Tab key: where the reader was. */
	reach(id) {
		for (const [name, box] of this.boxes) setAttr(box, 'tabindex', name === id ? 0 : -1);
	}

	move(event) {
		const node = this.nodes.get(event.target.dataset.id);
		const next = node && step(this.layers, node, event.key);
		if (!next) return;
		event.preventDefault();
		this.reach(next.job_id);
		this.boxes.get(next.job_id).focus();
	}
}

Object.assign(HB, { Graph, jobLink });
Graph.pure = { arrange, step };
}
