/* What can be done about a job, and the form that submits one. */
'use strict';
{
const { h, setText, setAttr } = HB;
/** [label, whether the job's state allows it, what else to say]. */
const DEEDS = {
	cancel: ['Cancel', ({ phase }) => phase !== 'ended', 'what has not ended can be cancelled'],
	retrigger: ['Retrigger', ({ state, reason }) => state === 'CANCELLED' || (state === 'FAILED' && /^(attempt_limit|oom|dependency)$/.test(reason)), 'what was CANCELLED, or FAILED by crashes or a parent, can go on'],
	reproduce: ['Reproduce', ({ state }) => state === 'SEALED', 'a SEALED job can be reproduced'],
};
const post = async (api, path, body) => (await api.request(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body })).json();

/** Shell text that fetches the bundle and checks it, up to the record that this page has read. */
const offline = (api, id, last) => `(cd "$(mktemp -d)" && pwd &&
curl -fsS${api.token && ' -H "Authorization: Bearer $TOKEN"'} -o ${id}.tar ${api.base}/api/jobs/${id}/bundle &&
tar xf ${id}.tar && (cd ${id} && sha256sum -c --quiet SHA256SUMS) &&
python3 ${id}/verify.py --bundle ${id}.tar${last ? ` --expect ${last.event.seq}:${last.hash}` : ''})
`;

class Actions {
	constructor(page) {
		const { api, id } = (this.page = page);
		this.deeds = Object.keys(DEEDS).map((name) => h('button', { name, click: () => this.ask(name) }, DEEDS[name][0]));
		this.answer = h('p', { class: 'note', role: 'status' });
		this.say = (...words) => this.answer.replaceChildren(...words);
		const save = (event) => HB.save(event, api, page.events.at(-1).detail.bytes ?? 0, this.say);
		this.atEnd = [h('a', { class: 'quiet', href: api.base + api.jobPath(id, '/bundle'), download: `${id}.tar`, click: save }, 'Download bundle'), HB.copyButton('Copy the offline check', () => offline(api, id, page.checker.last))];
		const start = h('a', { class: 'quiet', href: '#/new', click: () => (HB.draft = { manifest: put(put(page.manifest, 'reproduces'), 'job_id'), node: page.node }) }, 'Start from this job');
		this.element = h('div', { class: 'actions' }, this.deeds, this.atEnd, HB.copyButton('Copy as curl', () => api.curl(page.manifest)), start, h('button', { class: 'quiet', click: () => print() }, 'Print'), this.answer);
		this.update();
	}

	close() {}

	tick() {}

	update() {
		for (const button of this.deeds) {
			const why = this.why(button.name);
			setAttr(button, 'aria-disabled', why && true);
			setAttr(button, 'title', why);
		}
		for (const element of this.atEnd) element.hidden = this.page.job.phase !== 'ended';
	}

	/** Why it cannot be done, or null. */
	why(deed) {
		const { job } = this.page;
		const [, can, only] = DEEDS[deed];
		return can(job) ? null : `It is ${job.state}: only ${only}.`;
	}

	async ask(deed) {
		const { api, id, node } = this.page;
		const why = this.why(deed);
		if (why) return this.say(why);
		if (deed === 'cancel' && !confirm(`Stop ${id} now? It ends as CANCELLED; its output and files stay.`)) return;
		const job_id = deed === 'reproduce' ? prompt('The same execution runs again, on a clean copy of its inputs. Id of the new job, or nothing:', '') : '';
		if (job_id === null) return;
		this.say('Asking the node …');
		try {
			const told = await post(api, api.jobPath(id, `/${deed}`), JSON.stringify(job_id ? { job_id } : {}));
			this.say(`The node answered: ${told.state}. `, told.job_id === id ? '' : h('a', { href: HB.jobLink(node, told.job_id) }, `Open ${told.job_id}`));
		} catch (error) {
			this.say(error.message);
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

/** A field's text → the manifest's value; undefined leaves it out. What makes no sense is sent as it is: the node says why not. */
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

/** The other way: short where that says the same, else JSON. */
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
		const choice = h('select', { change: () => this.take({ node: nodes[choice.selectedIndex] }) }, nodes.map((node) => h('option', null, node.name || node.base)));
		choice.selectedIndex = nodes.indexOf(this.node);
		this.title = h('h1', { tabindex: -1 }, 'Submit a job');
		this.curl = h('pre', { tabindex: 0 });
		this.answer = h('p', { class: 'note', role: 'status' });
		const command = h('div', { class: 'lesson' }, this.curl, HB.copyButton('Copy', () => this.curl.textContent));
		const columns = h('div', { class: 'columns' }, h('div', { class: 'fields' }, elements.slice(0, -1)), h('div', null, elements.at(-1), h('h2', null, 'The same as a command'), command));
		// What is typed is no key of the page.
		const keydown = (event) => event.target.matches('textarea, input') && event.stopPropagation();
		this.element = h('form', { class: 'submit', submit: (event) => this.send(event), keydown }, this.title, columns, nodes.length > 1 && h('label', null, 'Node', choice), h('p', null, h('button', { class: 'main' }, 'Submit')), this.answer);
		this.take({});
	}

	close() {}

	field(path, label, kind, placeholder) {
		const error = h('small', { class: 'error', id: `error-${path}`, role: 'alert' });
		const input = h(['text', 'number'].includes(kind) ? 'input' : 'textarea', { name: path, placeholder, rows: kind === 'raw' ? 14 : 3, autocomplete: 'off', spellcheck: false, 'aria-describedby': error.id, input: () => this.typed(field) });
		const field = { path, kind, input, error, element: h('div', { class: kind }, h('label', null, label, input), error) };
		return field;
	}

	typed(field) {
		const { path, kind, input } = field;
		try {
			const manifest = kind === 'raw' ? JSON.parse(input.value) : put(this.manifest, path, read(kind, input.value));
			if (Object(manifest) !== manifest) throw new Error('it is no object');
			this.fault(field, '');
			this.take({ manifest }, field);
		} catch (error) {
			this.fault(field, `This is no manifest: ${error.message}`);
		}
	}

	/** All other fields are made to say the same. */
	take(change, typed) {
		HB.draft = Object.assign(this, change);
		for (const field of this.fields) {
			if (field === typed) continue;
			const value = field.path.split('.').reduce((value, name) => value?.[name], this.manifest);
			field.input.value = field.path ? write(field.kind, value) : JSON.stringify(this.manifest, null, 2);
			this.fault(field, '');
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
			const { job_id } = await post(this.node.api, '/api/submit_job', JSON.stringify(this.manifest));
			HB.draft = null;
			this.open(this.node, job_id);
		} catch (error) {
			const field = this.fields.find(({ path }) => path && error.field?.startsWith(path));
			setText(this.answer, field ? '' : error.message);
			if (field) this.fault(field, error.message);
			field?.input.focus();
		}
	}
}

Object.assign(HB, { Actions, SubmitForm });
Actions.pure = { read, write, put, offline };
}
