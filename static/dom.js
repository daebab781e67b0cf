/* DOM helpers. Text enters only through textContent and attributes. */
'use strict';
{

/** h('a', {href: '#', click: fn}, 'text', node): functions are listeners; null and false are left out. */
const h = (tag, attributes, ...children) => {
	const element = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes ?? {})) {
		if (typeof value === 'function') element.addEventListener(name, value);
		else element.setAttribute(name, value);
	}
	element.append(...children.flat().filter((child) => child != null && child !== false));
	return element;
};

const svg = (tag, attributes, text = '') => {
	const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
	for (const [name, value] of Object.entries(attributes ?? {})) if (value != null) element.setAttribute(name, value);
	element.append(text);
	return element;
};

/** Write only what changed: untouched nodes keep selections and cost no layout. */
const setText = (element, text) => {
	if (element.textContent !== text) element.textContent = text;
};
const setAttr = (element, name, value) => {
	if (value == null) element.removeAttribute(name);
	else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
};

/** Makes `nodes` the children of parent, in place: focus survives. */
function reconcile(parent, nodes) {
	const wanted = new Set(nodes);
	for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
	nodes.forEach((node, i) => {
		if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i]);
	});
}

/** An icon of index.html with its word; update(name, words) changes both. */
function mark(className, name) {
	const use = svg('use');
	const element = h('span', { class: className }, svg('svg', { class: 'icon', viewBox: '0 0 16 16', 'aria-hidden': 'true' }, use), h('span', { class: 'word' }));
	element.update = (next, words = next) => {
		setAttr(element, 'data-is', next);
		setAttr(use, 'href', `#i-${next}`);
		setText(element.lastChild, words);
	};
	element.update(name);
	return element;
}

function copyButton(label, text) {
	const button = h('button', { class: 'quiet' }, label);
	button.addEventListener('click', async () => {
		button.textContent = (await copy(text())) ? 'Copied' : 'Not allowed here';
		setTimeout(() => (button.textContent = label), 1600);
	});
	return button;
}

/** The parts of a `dl`: name → what it is; what is empty is left out. */
const facts = (all) => Object.entries(all).map(([name, value]) => (value ? h('div', null, h('dt', null, name), h('dd', null, value)) : ''));

/** Plain http offers no navigator.clipboard; execCommand works there. */
async function copy(text) {
	if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
	const area = h('textarea', { class: 'sr' }, text);
	document.body.append(area);
	area.select();
	const done = document.execCommand('copy');
	area.remove();
	return done;
}

const policy = globalThis.trustedTypes?.createPolicy('hackbrain', { createScriptURL: (url) => url });
/** The address of this page's own script or worker, as the browser wants it. */
const trusted = (url) => policy?.createScriptURL(url) ?? url;

/** Reads and runs one of this page's files. */
const script = (name) =>
	new Promise((load, failed) => {
		const element = h('script', { load, error: () => failed(element.remove()) });
		Object.assign(element, { async: false, src: trusted(`./${name}.js`) }); // in the order of the calls
		document.head.append(element);
	});

Object.assign(HB, { trusted, script, h, svg, setText, setAttr, reconcile, mark, copyButton, facts });
}
