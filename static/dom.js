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

/** Write only what changed: untouched nodes keep selections and cost no layout. */
const setText = (element, text) => {
	if (element.textContent !== text) element.textContent = text;
};
const setAttr = (element, name, value) => {
	if (value == null) element.removeAttribute(name);
	else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
};

/** Makes `nodes` the children of parent, moving as little as possible: focus and open rows survive. */
function reconcile(parent, nodes) {
	const wanted = new Set(nodes);
	for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
	let at = parent.firstChild;
	for (const node of nodes) {
		if (node === at) at = at.nextSibling;
		else parent.insertBefore(node, at);
	}
}

/** An icon of index.html with its word; update(name, words) changes both. */
function mark(className, name) {
	const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
	const use = svg.appendChild(document.createElementNS(svg.namespaceURI, 'use'));
	for (const [name, value] of Object.entries({ class: 'icon', viewBox: '0 0 16 16', 'aria-hidden': 'true' })) svg.setAttribute(name, value);
	const element = h('span', { class: className }, svg, h('span', { class: 'word' }));
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
		button.textContent = (await copy(text())) ? 'Copied' : 'Copying is not allowed here';
		setTimeout(() => (button.textContent = label), 1600);
	});
	return button;
}

/** Plain http offers no navigator.clipboard; execCommand still works there. */
async function copy(text) {
	try {
		await navigator.clipboard.writeText(text);
		return true;
	} catch {
		const area = h('textarea', { class: 'sr' });
		area.value = text;
		document.body.append(area);
		area.select();
		const done = document.execCommand('copy');
		area.remove();
		return done;
	}
}

Object.assign(HB, { h, setText, setAttr, reconcile, mark, copyButton });
}
