/* What can be done about a job, and the form that submits one. */
'use strict';
{
const { h, setText, setAttr } = HB;
/** Name → label, which `STATE reason` allow it, in words. */
const DEEDS = {
	cancel: ['Cancel', /^(?!SEALED|FAILED|CANCELLED)/, 'jobs that have not ended'],
	retrigger: ['Retrigger', /^CANCELLED|^FAILED (attempt_limit|oom|dependency)$/, 'jobs CANCELLED, or FAILED by crashes or a parent'],
	reproduce: ['Reproduce', /^SEALED/, 'SEALED jobs'],
};
const JSON_TYPE = { 'Content-Type': 'application/json' };
const post = async (api, path, sent) => (await api.request(path, { method: 'POST', headers: JSON_TYPE, body: JSON.stringify(sent) })).json();

/** Shell text that fetches the bundle and checks it, up to the last record here. */
const offline = (api, id, last) => `(cd "$(mktemp -d)" && pwd &&
curl -fsS${api.auth} -o ${id}.tar ${api.base}/api/jobs/${id}/bundle &&
tar xf ${id}.tar && (cd ${id} && sha256sum -c --quiet SHA256SUMS) &&
python3 ${id}/verify.py --bundle ${id}.tar${last ? ` --expect ${last.event.seq}:${last.hash}` : ''})
`;

class Actions {
	constructor(page) {
		const { api, id, node } = (this.page = page);
		this.deeds = Object.entries(DEEDS).map(([name, [label]]) => h('button', { name, click: () => this.ask(name) }, label));
		this.answer = h('p', { class: 'note', role: 'status' });
		this.say = (...words) => this.answer.replaceChildren(...words);
		const save = (event) => HB.save(event, api, page.events.at(-1).detail.bytes ?? 0, this.say);
		const draft = () => (HB.draft = { manifest: put(put(page.manifest, 'reproduces'), 'job_id'), node });
		this.atEnd = [
			h('a', { class: 'quiet', href: api.base + api.jobPath(id, '/bundle'), download: `${id}.tar`, click: save }, 'Download bundle'),
			HB.copyButton('Copy the offline check', () => offline(api, id, page.checker.last)),
		];
		const always = [
			HB.copyButton('Copy as curl', () => api.curl(page.manifest)),
			h('a', { class: 'quiet', href: '#/new', click: draft }, 'Start from this job'),
			h('button', { class: 'quiet', click: () => print() }, 'Print'),
		];
		this.element = h('div', { class: 'actions' }, this.deeds, this.atEnd, always, this.answer);
		this.update();
	}

	update() {
		const { state, reason, phase } = this.page.job;
		for (const button of this.deeds) {
			const [, allowed, words] = DEEDS[button.name];
			const why = allowed.test(`${state} ${reason}`) ? null : `It is ${state}: this is for ${words}.`;
			setAttr(button, 'aria-disabled', why && true);
			setAttr(button, 'title', why);
		}
		for (const element of this.atEnd) element.hidden = phase !== 'ended';
	}

	async ask(deed) {
		const { api, id, node } = this.page;
		const { title } = this.deeds.find(({ name }) => name === deed);
		if (title) return this.say(title);
		if (deed === 'cancel' && !confirm(`Stop ${id} now? It ends as CANCELLED; its output and files stay.`)) return;
		const job_id = deed === 'reproduce' ? prompt('It runs again, on a clean copy of its inputs. Id of the new job, or nothing:', '') : '';
		if (job_id === null) return;
		this.say('Asking the node …');
		try {
			const told = await post(api, api.jobPath(id, `/${deed}`), job_id ? { job_id } : {});
			const link = h('a', { href: HB.jobLink(node, told.job_id) }, `Open ${told.job_id}`);
			this.say(`The node answered: ${told.state}. `, told.job_id === id ? '' : link);
		} catch ({ message }) {
			this.say(message);
		}
	}
}

/** Member of the manifest | label | how it is written | an example. */
const FIELDS = `job_id|Job id|text|heat-7
image_hash|Image|text|python:3.9-slim
command|Command: shell text, or a JSON list|command|python main.py
mount_spec|Mounts, one a line|lines|/data/in:/job/in:ro
env|Environment, one a line|pairs|SEED=7
depends_on|Waits for jobs, one a line|lines|
resources.cpus|CPUs|number|
resources.memory_mib|Memory, MiB|number|
resources.pids|Processes|number|
resources.gpus|GPUs|number|
timeout_s|Timeout, s|number|
max_attempts|Attempts|number|3
network|Network|text|none
|Manifest, as JSON|raw|`.split('\n').map((row) => row.split('|'));
const ORDER = FIELDS.flatMap(([path]) => path.split('.'));
const SHORT = { command: (value) => value[2], lines: (value) => value.join('\n'), pairs: (value) => Object.entries(value).map((pair) => pair.join('=')).join('\n') };

/** A field's text → the manifest's value. What makes no sense is sent as it is: the node says why not. */
function read(kind, text) {
	const bare = text.trim();
	if (!bare) return undefined;
	if (kind === 'text') return bare;
	try {
		if (bare[0] === '[' || (kind !== 'command' && /^[{"]/.test(bare))) return JSON.parse(bare);
	} catch {} // then it is none
	if (kind === 'command') return ['sh', '-c', text];
	if (kind === 'number') return Number.isFinite(Number(bare)) ? Number(bare) : bare;
	const rows = text.split('\n').filter((row) => row.trim());
	if (kind === 'lines') return rows.map((row) => row.trim());
	const pairs = rows.map((row) => /^\s*([^=]+?)\s*=([^]*)/.exec(row)?.slice(1));
	return pairs.every(Boolean) ? Object.fromEntries(pairs) : bare;
}

function write(kind, value) {
	const json = JSON.stringify(value);
	let text = typeof value === 'string' ? value : json;
	try {
		text = SHORT[kind]?.(value) ?? text;
	} catch {} // it is of another type
	return value === undefined ? '' : JSON.stringify(read(kind, text)) === json ? text : json;
}

/** The manifest with a member set, or left out, in the usual order. */
function put(manifest, path, value) {
	const [name, inner] = path.split('.');
	const own = inner ? put(Object(manifest[name]), inner, value) : value;
	const all = { ...manifest, [name]: inner && !Object.keys(own).length ? undefined : own };
	const names = [...new Set([...ORDER, ...Object.keys(all)])].filter((name) => all[name] !== undefined);
	return Object.fromEntries(names.map((name) => [name, all[name]]));
}

class SubmitForm {
	/** open(node, id) is called once a job is submitted. */
	constructor(nodes, open) {
		const { manifest = {}, node } = HB.draft ?? {};
		Object.assign(this, { open, manifest, node: nodes.includes(node) ? node : nodes[0] });
		this.fields = FIELDS.map((field) => this.field(...field));
		const elements = this.fields.map(({ element }) => element);
		const options = nodes.map((node) => h('option', node === this.node && { selected: '' }, node.name));
		const choice = h('select', { change: () => this.take({ node: nodes[choice.selectedIndex] }) }, options);
		this.title = h('h1', { tabindex: -1 }, 'Submit a job');
		this.curl = h('pre', { tabindex: 0 });
		this.answer = h('p', { class: 'note', role: 'status' });
		const command = h('div', { class: 'lesson' }, this.curl, HB.copyButton('Copy', () => this.curl.textContent));
		const same = h('div', null, elements.pop(), h('h2', null, 'The same as a command'), command);
		const at = nodes.length > 1 && h('label', null, 'Node', choice);
		const submit = h('p', null, h('button', { class: 'main' }, 'Submit'));
		const fields = h('div', { class: 'fields' }, elements, at, submit, this.answer);
		this.element = h('form', { class: 'submit', submit: (event) => this.send(event) }, this.title, h('div', { class: 'columns' }, fields, same));
		this.take({});
	}

	field(path, label, kind, placeholder) {
		const error = h('small', { class: 'error', id: `error-${path}`, role: 'alert' });
		const options = { name: path, placeholder, rows: path ? 2 : 14, autocomplete: 'off', spellcheck: false };
		const input = h(/text|number/.test(kind) ? 'input' : 'textarea', { ...options, 'aria-describedby': error.id, input: () => this.typed(field) });
		const field = { path, kind, input, error, element: h('div', { class: kind }, h('label', null, label, input), error) };
		return field;
	}

	typed(field) {
		const { path, kind, input } = field;
		try {
			const manifest = path ? put(this.manifest, path, read(kind, input.value)) : JSON.parse(input.value);
			if (Object(manifest) !== manifest) throw new Error('it is no object');
			this.take({ manifest }, field);
		} catch ({ message }) {
			this.fault(field, `This is no manifest: ${message}`);
		}
	}

	take(change, typed) {
		HB.draft = Object.assign(this, change);
		for (const field of this.fields) {
			this.fault(field, '');
			if (field === typed) continue;
			const value = field.path.split('.').reduce((value, name) => value?.[name], this.manifest);
			field.input.value = field.path ? write(field.kind, value) : JSON.stringify(this.manifest, null, 2);
		}
		setText(this.curl, this.node.api.curl(this.manifest));
	}

	fault({ input, error }, words) {
		setText(error, words);
		setAttr(input, 'aria-invalid', words ? true : null);
	}

	async send(event) {
		event.preventDefault();
		const { input, error } = this.fields.at(-1);
		if (error.textContent) return input.focus();
		setText(this.answer, 'Submitting …');
		try {
			const { job_id } = await post(this.node.api, '/api/submit_job', this.manifest);
			HB.draft = null;
			this.open(this.node, job_id);
		} catch ({ message, field: at }) {
			const field = this.fields.find(({ path }) => path && at?.startsWith(path));
			setText(this.answer, field ? '' : message);
			if (field) this.fault(field, message);
			field?.input.focus();
		}
	}
}

Object.assign(HB, { Actions, SubmitForm });
Actions.pure = { read, write, put, offline };
}
