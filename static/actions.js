/* What can be done about a job, and the form that submits one. */
'use strict';
{
const { h, setText, setAttr } = HB;
const AGAIN = ['attempt_limit', 'oom', 'dependency'];
/** why: the reason where the state does not allow it; ask: the question before it is done; field: what may be given. */
const DEEDS = {
	cancel: {
		name: 'Cancel',
		why: ({ phase, state }) => phase === 'ended' && `It is ${state}: there is nothing to cancel.`,
		ask: 'Stop this job now? It ends as CANCELLED; its output and files stay.',
		yes: 'Cancel the job',
	},
	retrigger: {
		name: 'Retrigger',
		why: ({ state, reason }) => state !== 'CANCELLED' && !(state === 'FAILED' && AGAIN.includes(reason)) && `It is ${state}: only what was CANCELLED, or FAILED by a crash or a parent, can go on.`,
	},
	reproduce: {
		name: 'Reproduce',
		why: ({ state }) => state !== 'SEALED' && `It is ${state}: only a SEALED job can be reproduced.`,
		ask: 'Run the same execution again, on a clean copy of its inputs.',
		yes: 'Reproduce',
		field: 'Id of the new job (may stay empty)',
	},
};

const post = (api, path, text) => api.request(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: text }).then((response) => response.json());

/** Shell text that fetches the bundle and checks it, down to the event that this page has read. */
function offline(api, id, { seq, hash } = {}) {
	const auth = api.token && ' -H "Authorization: Bearer $TOKEN"';
	return `(cd "$(mktemp -d)" && pwd &&
curl -fsS${auth} -o ${id}.tar ${api.base}/api/jobs/${id}/bundle &&
tar xf ${id}.tar && (cd ${id} && sha256sum -c --quiet SHA256SUMS) &&
python3 ${id}/verify.py --bundle ${id}.tar${seq ? ` --expect ${seq}:${hash}` : ''})
`;
}

class Actions {
	constructor(page) {
		const { api, id } = (this.page = page);
		this.buttons = Object.entries(DEEDS).map(([name, deed]) => Object.assign(h('button', { click: () => this.ask(name) }, deed.name), { deed }));
		this.panel = h('div', { class: 'panel' });
		this.answer = h('p', { class: 'note', role: 'status' });
		const bundle = h('a', { class: 'quiet', href: api.base + api.jobPath(id, '/bundle'), download: `${id}.tar`, click: (event) => HB.save(event, api, page.events.at(-1).detail.bytes ?? 0, (words) => this.say(words)) }, 'Download bundle');
		this.atEnd = [bundle, HB.copyButton('Copy the offline check', () => offline(api, id, this.last()))];
		this.element = h(
			'div',
			{ class: 'actions' },
			this.buttons,
			this.atEnd,
			HB.copyButton('Copy as curl', () => api.curl(page.manifest)),
			h('button', { class: 'quiet', click: () => this.startFrom() }, 'Start from this job'),
			h('button', { class: 'quiet', click: () => print() }, 'Print'),
			this.panel,
			this.answer,
		);
		this.update();
	}

	close() {}

	tick() {}

	update() {
		const { job } = this.page;
		for (const button of this.buttons) {
			const why = button.deed.why(job);
			setAttr(button, 'aria-disabled', why ? true : null);
			setAttr(button, 'title', why || null);
		}
		for (const element of this.atEnd) element.hidden = job.phase !== 'ended';
	}

	last() {
		const { bytes, event } = this.page.records?.at(-1) ?? {};
		return bytes && { seq: event.seq, hash: HB.sha256(bytes) };
	}

	say(...words) {
		this.answer.replaceChildren(...words);
	}

	key(key) {
		return key === 'Escape' && this.panel.hasChildNodes() && this.dismiss();
	}

	dismiss() {
		this.panel.replaceChildren();
		this.asker.focus();
		return true;
	}

	ask(name) {
		const { why, ask, yes, field } = DEEDS[name];
		const reason = why(this.page.job);
		this.asker = document.activeElement;
		this.say(reason || '');
		if (reason || !ask) return reason || this.run(name, {});
		const input = field && h('input', { spellcheck: false, autocomplete: 'off', size: 24 });
		const submit = (event) => {
			event.preventDefault();
			this.dismiss();
			this.run(name, input?.value ? { job_id: input.value.trim() } : {});
		};
		const escape = (event) => event.key === 'Escape' && (this.dismiss(), event.stopPropagation());
		this.panel.replaceChildren(h('form', { class: 'notice', submit, keydown: escape }, h('p', null, ask), input && h('label', null, field, input), h('button', null, yes), h('button', { type: 'button', class: 'quiet', click: () => this.dismiss() }, 'Leave it')));
		this.panel.querySelector('input, button').focus();
	}

	async run(name, body) {
		const { api, id, node } = this.page;
		this.say('Asking the node …');
		try {
			const { job_id, state, duplicate } = await post(api, api.jobPath(id, `/${name}`), JSON.stringify(body));
			this.say(`The node answered: ${state}${duplicate ? ', as it was before' : ''}. `, job_id === id ? '' : h('a', { href: HB.jobLink(node, job_id) }, `Open ${job_id}`));
		} catch (error) {
			this.say(error.message);
		}
	}

	startFrom() {
		HB.draft = { manifest: put(put(this.page.manifest, 'reproduces'), 'job_id'), node: this.page.node };
		location.hash = '#/new';
	}
}

/** [member of the manifest, label, how it is written as text, an example]. */
const FIELDS = [
	['job_id', 'Job id', 'text', 'heat-2d_7'],
	['image_hash', 'Image', 'text', 'python:3.9-slim'],
	['command', 'Command: shell text, or a JSON list', 'command', 'python main.py'],
	['mount_spec', 'Mounts, one a line', 'lines', '/data/in:/job/in:ro'],
	['env', 'Environment, one a line', 'pairs', 'SEED=7'],
	['depends_on', 'Waits for jobs, one a line', 'lines', ''],
	['resources.cpus', 'CPUs', 'number', ''],
	['resources.memory_mib', 'Memory, MiB', 'number', ''],
	['resources.pids', 'Processes', 'number', ''],
	['resources.gpus', 'GPUs', 'number', ''],
	['timeout_s', 'Timeout, s', 'number', ''],
	['max_attempts', 'Attempts', 'number', '3'],
	['network', 'Network', 'text', 'none'],
];
const AREAS = ['command', 'lines', 'pairs'];
const ORDER = FIELDS.flatMap(([path]) => path.split('.'));
const WRITE = { command: (value) => value[2], lines: (value) => value.join('\n'), pairs: (value) => Object.entries(value).map((pair) => pair.join('=')).join('\n') };

/** A field's text → the manifest's value; undefined: leave it out. What looks like JSON is JSON; what makes no sense goes as it is, and the node says why not. */
function read(kind, text) {
	const bare = text.trim();
	if (bare === '') return undefined;
	if (kind === 'text') return bare;
	try {
		if (/^[[{"]/.test(bare) && (kind !== 'command' || bare[0] === '[')) return JSON.parse(bare);
	} catch {} // then it is none
	if (kind === 'command') return ['sh', '-c', text];
	if (kind === 'number') return Number.isFinite(Number(bare)) ? Number(bare) : bare;
	const rows = text.split('\n').filter((row) => row.trim());
	if (kind === 'lines') return rows.map((row) => row.trim());
	return rows.every((row) => row.indexOf('=') > 0) ? Object.fromEntries(rows.map((row) => [row.split('=', 1)[0].trim(), row.slice(row.indexOf('=') + 1)])) : bare;
}

/** The other way: in the short form where that says the same. */
function write(kind, value) {
	if (value === undefined) return '';
	let text = String(value);
	try {
		text = WRITE[kind]?.(value) ?? text;
	} catch {} // it is of another type
	const json = JSON.stringify(value);
	return JSON.stringify(read(kind, text)) === json ? text : json;
}

/** The manifest with a member set, or left out; members in their usual order. */
function put(manifest, path, value) {
	const [name, inner] = path.split('.');
	if (inner) {
		value = put(Object(manifest[name]), inner, value);
		if (Object.keys(value).length === 0) value = undefined;
	}
	const all = Object.entries({ ...manifest, [name]: value }).filter(([, given]) => given !== undefined);
	const rank = ([name]) => (ORDER.indexOf(name) + 99) % 99;
	return Object.fromEntries(all.sort((a, b) => rank(a) - rank(b)));
}

const get = (manifest, path) => path.split('.').reduce((value, name) => value?.[name], manifest);

class SubmitForm {
	/** open(node, id) is called once a job is submitted. */
	constructor(nodes, open) {
		const draft = HB.draft ?? {};
		Object.assign(this, { nodes, open, node: nodes.includes(draft.node) ? draft.node : nodes[0], manifest: draft.manifest ?? {} });
		this.fields = FIELDS.map((field) => this.field(...field));
		this.raw = this.field('', 'Manifest, as JSON', 'raw', '');
		this.fields.push(this.raw);
		this.curl = h('pre', { tabindex: 0, 'aria-label': 'The same as a command' });
		this.answer = h('p', { class: 'note', role: 'status' });
		const choice = h('select', { 'aria-label': 'Node', change: () => this.take({ node: nodes[choice.selectedIndex] }) }, nodes.map((node) => h('option', null, node.name || node.base)));
		choice.selectedIndex = nodes.indexOf(this.node);
		choice.hidden = nodes.length < 2;
		this.title = h('h1', { tabindex: -1 }, 'Submit a job');
		this.element = h(
			'form',
			{ class: 'submit', novalidate: '', submit: (event) => this.send(event), keydown: (event) => event.target.matches('textarea, input') && event.stopPropagation() },
			this.title,
			h('div', { class: 'columns' }, h('div', { class: 'fields' }, this.fields.slice(0, -1).map(({ element }) => element)), h('div', null, this.raw.element, h('h2', null, 'The same as a command'), h('div', { class: 'lesson' }, this.curl, HB.copyButton('Copy', () => this.curl.textContent)))),
			h('p', null, choice, h('button', { class: 'main' }, 'Submit')),
			this.answer,
		);
		this.take({}, null);
	}

	close() {}

	field(path, label, kind, placeholder) {
		const error = h('small', { class: 'error', id: `error-${path}`, role: 'alert' });
		const isArea = kind === 'raw' || AREAS.includes(kind);
		const input = h(isArea ? 'textarea' : 'input', { name: path, placeholder, spellcheck: false, autocomplete: 'off', 'aria-describedby': error.id, input: () => this.typed(field), ...(isArea && { rows: kind === 'raw' ? 12 : 3 }) });
		const field = { path, kind, input, error, element: h('div', { class: `field ${kind}` }, h('label', null, label, input), error) };
		return field;
	}

	typed(field) {
		const { path, kind, input } = field;
		this.fault(field, '');
		if (kind !== 'raw') return this.take({ manifest: put(this.manifest, path, read(kind, input.value)) }, field);
		try {
			const manifest = JSON.parse(input.value);
			if (Object(manifest) !== manifest || Array.isArray(manifest)) throw new Error('it is no object');
			this.take({ manifest }, field);
		} catch (error) {
			this.fault(field, `This is no manifest: ${error.message}`);
		}
	}

	/** Everything else is made to say the same; the field that is typed into stays as it is. */
	take(change, typed = null) {
		Object.assign(this, change);
		const { manifest, node } = this;
		HB.draft = { manifest, node };
		for (const field of this.fields) {
			if (field !== typed) field.input.value = field === this.raw ? JSON.stringify(manifest, null, 2) : write(field.kind, get(manifest, field.path));
			if (field !== typed) this.fault(field, '');
		}
		setText(this.curl, node.api.curl(manifest));
	}

	fault({ input, error }, words) {
		setText(error, words);
		setAttr(input, 'aria-invalid', words ? true : null);
	}

	async send(event) {
		event.preventDefault();
		if (this.raw.error.textContent) return this.raw.input.focus();
		setText(this.answer, 'Submitting …');
		try {
			const { job_id } = await post(this.node.api, '/api/submit_job', JSON.stringify(this.manifest, null, 2));
			HB.draft = null;
			this.open(this.node, job_id);
		} catch (error) {
			const at = this.fields.find(({ path }) => path && (error.field ?? '').startsWith(path));
			setText(this.answer, at ? '' : error.message);
			if (!at) return;
			this.fault(at, error.message);
			at.input.focus();
		}
	}
}

Object.assign(HB, { Actions, SubmitForm });
Actions.pure = { read, write, put, offline };
}
