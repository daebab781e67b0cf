/* What a job has sealed, and whether it is still that: docs/evidence.md, computed here. */
'use strict';
HB.share((HB) => {
/** The SHA-256 and the size of parts that follow each other. */
async function digest(parts, { pause } = {}) {
	const sha = new HB.Sha256();
	for await (const part of parts) {
		sha.update(part);
		await pause?.();
	}
	return { size: sha.length, hex: sha.hex() };
}

async function* chunks({ body }) {
	const reader = body.getReader();
	try {
		for (let next; !(next = await reader.read()).done; ) yield next.value;
	} finally {
		reader.cancel().catch(() => {}); // given up, it would hold a connection
	}
}

/** Every % of a seal's text stands before a byte in hex. */
const escaped = (text) => encodeURI(text).replaceAll('%25', '%');
const urlPath = (text) => escaped(text.slice(1)).replace(/[?#]/g, encodeURIComponent);

/** The `sha256sum` list, whose hash artifacts_root is. */
function* lines(artifacts) {
	for (const { path, sha256 } of artifacts) {
		const name = path.slice(1).replace(/[\\\n\r]/g, (c) => ({ '\n': '\\n', '\r': '\\r' })[c] ?? '\\\\');
		const line = `${name.includes('\\') ? '\\' : ''}${sha256}  ${name}\n`;
		yield Uint8Array.from(escaped(line).match(/%..|./g), (byte) => (byte[1] ? parseInt(byte.slice(1), 16) : byte.charCodeAt(0)));
	}
}

/** What does not fit together: the seal's bytes, the SEALED event, the artifacts. */
async function faults(bytes, { job_id, artifacts, artifacts_root }, sealed, scope) {
	const [own, root, d] = [HB.sha256(bytes), (await digest(lines(artifacts), scope)).hex, sealed.detail];
	const total = artifacts.reduce((sum, { size }) => sum + size, 0);
	return [
		own !== d.seal_hash && `it has the hash ${own}`,
		(root !== d.artifacts_root || root !== artifacts_root) && `its entries give the artifacts root ${root}`,
		(artifacts.length !== d.files || total !== d.bytes || job_id !== sealed.job_id) && 'its job, files or bytes are others',
	].filter(Boolean);
}

Object.assign(HB.tasks, {
	async seal(scope, { api, path, sealed }) {
		const bytes = await HB.read(api, path);
		const seal = JSON.parse(new TextDecoder().decode(bytes));
		return { seal, wrong: await faults(bytes, seal, sealed, scope) };
	},

	file: async (scope, { api, path }) => digest(chunks(await HB.load(api, path)), scope),
});
HB.seal = { lines, urlPath, digest, faults };
});
{
const { h, setText, setAttr, format } = HB;
const { urlPath } = HB.seal;
const FILES = 50_000; // a longer seal is left to the offline check
const LARGE = 256 << 20; // bytes that a page should not hold
const LANES = 3; // transfers at once, of six that a browser has
const OUTCOMES = ['missing', 'differs', 'extra', 'identical'];
const VERIFY = 'Run “hackbrain verify --artifacts” on the node.';

/** What has no status was no answer of the node. */
const reason = ({ status, message }) => (status === undefined ? 'The transfer broke off, as it does where a file has changed.' : message);

/** Follows a link, but sends a token, and shows why the node refuses. */
async function save(event, api, size, say) {
	const { href, download } = event.currentTarget;
	if (size > LARGE && !api.token) return; // the browser writes it to the disk
	event.preventDefault();
	if (size > LARGE && !confirm(`Hold ${format.bytes(size)} in memory? curl does without.`)) return;
	say('Fetching …');
	try {
		const url = URL.createObjectURL(await (await HB.load(api, href.slice(api.base.length))).blob());
		h('a', { href: url, download }).click();
		setTimeout(() => URL.revokeObjectURL(url), 60_000);
		say('');
	} catch (error) {
		say(reason(error));
	}
}

class Artifacts {
	constructor(page) {
		this.page = page;
		this.verdict = HB.mark('verdict', 'checking');
		this.facts = h('dl', { class: 'facts' });
		this.note = h('p', { class: 'note', role: 'status' });
		this.say = (words) => setText(this.note, words);
		this.all = h('button', { click: () => (this.all.run ??= this.checkAll()) }, 'Check all in this browser');
		const rows = h('div', { role: 'rowgroup', class: 'rows' });
		const scroller = h('div', { class: 'files', role: 'table', tabindex: 0, 'aria-label': 'Sealed files' }, rows);
		const make = () => h('div', { role: 'row', class: 'file' });
		this.list = new HB.Windowed({ scroller, rows, make, draw: (row, i) => this.draw(row, this.files[i], i) });
		this.body = h('div', { hidden: '' }, scroller, this.all, this.note);
		this.element = h('section', { class: 'artifacts', hidden: '' }, h('h2', null, 'Artifacts'), this.verdict, this.facts, this.body);
	}

	tick() {
		const { pruned, manifest: m } = this.page;
		if (pruned && (m.reproduces || !/(^|,)\//.test(m.mount_spec))) this.say(pruned); // not those of the host
	}

	update() {
		const sealed = this.page.events.findLast(({ state }) => state === 'SEALED');
		this.element.hidden = !sealed;
		if (!sealed || this.sealed) return;
		this.sealed = sealed;
		const { seal_hash, artifacts_root, files, bytes, reproduction: r } = sealed.detail;
		const facts = { Sealed: format.join(format.count(files, 'file'), format.bytes(bytes)), Seal: seal_hash, 'Artifacts root': artifacts_root };
		if (r) facts[`Reproduces ${r.of}`] = format.join(...OUTCOMES.map((name) => r[name] > 0 && `${r[name]} ${name}`), `stdout ${r.stdout}`, `stderr ${r.stderr}`);
		this.facts.append(...HB.facts(facts));
		if (files <= FILES) this.read();
		else this.verdict.update('unread', 'Too many files for a page: use “Copy the offline check”.');
	}

	/** A task on what the node serves at a path below the job's. */
	run(task, path, more) {
		const { api, id, checker } = this.page;
		return checker.work.run(task, { api, path: api.jobPath(id, path), ...more });
	}

	async read() {
		const { sealed, verdict } = this;
		try {
			const { seal, wrong } = await this.run('seal', '/seal', { sealed });
			if (wrong.length) verdict.update('mismatch', `This is not the seal that event ${sealed.seq} names: ${wrong.join('; ')}. ${VERIFY}`);
			else verdict.update('checked', `The seal has the hash that event ${sealed.seq} names, and its entries give the artifacts root: computed here.`);
			this.show(seal);
		} catch (error) {
			verdict.update('unread', reason(error));
		}
	}

	/** What a reproduction made otherwise comes first. */
	show({ artifacts, reproduction }) {
		const files = new Map(artifacts.map((file) => [file.path, file]));
		for (const [path, word] of Object.entries(reproduction?.artifacts ?? {})) files.set(path, { path, ...files.get(path), word });
		this.files = [...files.values()].sort((a, b) => OUTCOMES.indexOf(a.word) - OUTCOMES.indexOf(b.word));
		this.list.count = this.files.length;
		this.body.hidden = !this.files.length;
		this.list.refresh();
	}

	draw(row, file, index) {
		const { path, size, sha256, word = '', is = '', words = 'Check' } = file;
		if (row.file !== file) {
			const { api, id } = this.page;
			row.file = file;
			row.verdict = HB.mark('verdict', '');
			row.check = h('button', { class: 'quiet', click: () => this.check(file) }, row.verdict);
			const href = api.base + api.jobPath(id, `/artifacts/${urlPath(path)}`);
			const link = h('a', { href, download: path.split('/').at(-1), title: path, click: (event) => save(event, api, size, this.say) }, path);
			const copy = HB.copyButton(sha256, () => sha256);
			setAttr(copy, 'title', `Copy ${sha256}`);
			const cells = sha256 ? [link, format.bytes(size), copy, word, row.check] : [path, '', '', word];
			row.replaceChildren(...cells.map((cell, i) => h('span', { role: 'cell', class: `f${i}` }, cell)));
			setAttr(row, 'aria-rowindex', index + 1);
		}
		row.verdict.update(is, words);
		setAttr(row.check, 'title', words);
		setAttr(row.check, 'aria-label', `${words}: ${path}`);
	}

	async check(file) {
		const set = (is, words = is) => {
			Object.assign(file, { is, words });
			this.list.refresh();
		};
		set('checking');
		try {
			const { hex, size } = await this.run('file', `/artifacts/${urlPath(file.path)}`);
			if (hex === file.sha256 && size === file.size) set('checked');
			else set('mismatch', `mismatch: ${size} bytes with SHA-256 ${hex}`);
		} catch (error) {
			const is = error.status === 409 ? 'mismatch' : 'unread';
			set(is, `${is}: ${reason(error)}`);
		}
	}

	async checkAll() {
		const files = this.files.filter(({ sha256 }) => sha256);
		const all = `of ${format.count(files.length, 'file')} checked`;
		const of = { checked: 0, mismatch: 0, unread: 0 };
		const waiting = files.values();
		const lane = async () => {
			for (const file of waiting) {
				await this.check(file);
				of[file.is]++;
				this.say(format.join(`${of.checked} ${all}`, of.mismatch && `${of.mismatch} not as sealed. ${VERIFY}`, of.unread && `${of.unread} not read`));
			}
		};
		await Promise.all(Array.from({ length: LANES }, lane));
		this.all.run = null;
	}
}

Object.assign(HB, { Artifacts, save });
}
