/* What a job has sealed, and whether it is still that: docs/evidence.md, computed here. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const FILES = 50_000; // a longer seal is left to the offline check
const LARGE = 256 << 20; // bytes that a page should not hold
const SLICE = 1 << 18; // bytes hashed at once
const TURN_MS = 10; // of hashing before something else may happen
const LANES = 3; // transfers at once, of six that a browser has
const OUTCOMES = ['missing', 'differs', 'extra', 'identical'];
const VERIFY = 'Run “hackbrain verify --artifacts” on the node.';

/** Timers of hidden pages are slow; messages are not. */
const turn = () =>
	new Promise((done) => {
		const { port1, port2 } = new MessageChannel();
		port1.onmessage = () => done(port1.close());
		port2.postMessage(0);
	});

async function* chunks({ body }) {
	const reader = body.getReader();
	for (let next; !(next = await reader.read()).done; ) yield next.value;
}

async function digest(parts) {
	const sha = new HB.Sha256();
	let since = performance.now();
	for await (const part of parts) {
		for (let at = 0; at < part.length; at += SLICE) {
			sha.update(part.subarray(at, at + SLICE));
			if (performance.now() - since < TURN_MS) continue;
			await turn();
			since = performance.now();
		}
	}
	return { size: sha.length, hex: sha.hex() };
}

/** Every % of a seal's text stands before a byte in hex, as in a URL. */
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
async function faults(bytes, { job_id, artifacts, artifacts_root }, sealed) {
	const [own, root, d] = [(await digest([bytes])).hex, (await digest(lines(artifacts))).hex, sealed.detail];
	const total = artifacts.reduce((sum, { size }) => sum + size, 0);
	return [
		own !== d.seal_hash && `it has the hash ${own}`,
		(root !== d.artifacts_root || root !== artifacts_root) && `its entries give the artifacts root ${root}`,
		(artifacts.length !== d.files || total !== d.bytes || job_id !== sealed.job_id) && 'its job, files or bytes are others',
	].filter(Boolean);
}

const reason = (error) => (error instanceof HB.ApiError ? error.message : 'The transfer broke off, as it does where a file has changed.');
/** However long it takes. */
const load = (api, path, { signal } = new AbortController()) => api.request(path, { accept: '*/*', signal });

/** Follows a link with what a link cannot do: send a token, and show why the node refuses. */
async function save(event, api, size, say) {
	const { href, download } = event.currentTarget;
	if (size > LARGE && !api.token) return; // the browser writes it to the disk
	event.preventDefault();
	if (size > LARGE && !confirm(`Hold ${format.bytes(size)} in memory? curl does without.`)) return;
	say('Fetching …');
	try {
		const url = URL.createObjectURL(await (await load(api, href.slice(api.base.length))).blob());
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
		this.all = h('button', { click: () => (this.control ? this.control.abort() : this.checkAll()) }, 'Check all in this browser');
		const rows = h('div', { role: 'rowgroup', class: 'rows' });
		const scroller = h('div', { class: 'files', role: 'table', tabindex: 0, 'aria-label': 'Sealed files' }, rows);
		this.list = new HB.Windowed({ scroller, rows, make: () => h('div', { role: 'row', class: 'file' }), draw: (row, i) => this.draw(row, this.files[i], i), rowHeight: () => (innerWidth < 640 ? 60 : 36) });
		this.element = h('section', { class: 'artifacts', hidden: '' }, h('h2', null, 'Artifacts'), this.verdict, this.facts, (this.body = h('div', { hidden: '' }, scroller, this.all, this.note)));
	}

	close() {
		this.control?.abort();
	}

	tick() {}

	update() {
		const sealed = this.page.events.findLast(({ state }) => state === 'SEALED');
		if (!sealed || this.sealed) return;
		this.sealed = sealed;
		this.element.hidden = false;
		const { seal_hash, artifacts_root, files, bytes, reproduction: r } = sealed.detail;
		const facts = { Sealed: format.join(format.count(files, 'file'), format.bytes(bytes)), Seal: seal_hash, 'Artifacts root': artifacts_root };
		if (r) facts[`Reproduces ${r.of}`] = format.join(...OUTCOMES.map((name) => r[name] > 0 && `${r[name]} ${name}`), `stdout ${r.stdout}`, `stderr ${r.stderr}`);
		this.facts.append(...Object.entries(facts).map(([name, value]) => h('div', null, h('dt', null, name), h('dd', { title: value }, value))));
		if (files <= FILES) this.read(sealed);
		else this.verdict.update('unread', 'Too many files for a page: use “Copy the offline check”.');
	}

	async read(sealed) {
		const { api, id } = this.page;
		try {
			const bytes = new Uint8Array(await (await load(api, api.jobPath(id, '/seal'))).arrayBuffer());
			const seal = JSON.parse(new TextDecoder().decode(bytes));
			const wrong = (await faults(bytes, seal, sealed)).join('; ');
			if (wrong) this.verdict.update('mismatch', `This is not the seal that event ${sealed.seq} names: ${wrong}. ${VERIFY}`);
			else this.verdict.update('checked', `The seal has the hash that event ${sealed.seq} names, and its entries give the artifacts root: computed here.`);
			this.show(seal);
		} catch (error) {
			this.verdict.update('unread', reason(error));
		}
	}

	/** What a reproduction made otherwise comes first. */
	show({ artifacts, reproduction }) {
		const words = { ...reproduction?.artifacts };
		this.files = artifacts.map((file) => ({ ...file, word: words[file.path] }));
		for (const { path } of artifacts) delete words[path];
		this.files.push(...Object.entries(words).map(([path, word]) => ({ path, word })));
		this.files.sort((a, b) => OUTCOMES.indexOf(a.word) - OUTCOMES.indexOf(b.word));
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
			const cells = [path, '', '', word];
			if (sha256) {
				const link = h('a', { href: api.base + api.jobPath(id, `/artifacts/${urlPath(path)}`), download: path.split('/').at(-1), title: path, click: (event) => save(event, api, size, this.say) }, path);
				cells.splice(0, 4, link, format.bytes(size), HB.copyButton(sha256, () => sha256), word, row.check);
				setAttr(cells[2], 'title', `Copy ${sha256}`);
			}
			row.replaceChildren(...cells.map((cell, i) => h('span', { role: 'cell', class: `f${i}` }, cell)));
			setAttr(row, 'aria-rowindex', index + 1);
		}
		row.verdict.update(is, words);
		setAttr(row.check, 'title', words);
		setAttr(row.check, 'aria-label', `${words}: ${path}`);
	}

	async check(file, control) {
		const { api, id } = this.page;
		const set = (is, more) => {
			Object.assign(file, { is, words: more ? `${is}: ${more}` : is || 'Check' });
			this.list.refresh();
		};
		set('checking');
		try {
			const { hex, size } = await digest(chunks(await load(api, api.jobPath(id, `/artifacts/${urlPath(file.path)}`), control)));
			if (hex === file.sha256 && size === file.size) set('checked');
			else set('mismatch', `${size} bytes with SHA-256 ${hex}`);
		} catch (error) {
			if (control?.signal.aborted) set('');
			else set(error.status === 409 ? 'mismatch' : 'unread', reason(error));
		}
	}

	async checkAll() {
		const files = this.files.filter(({ sha256 }) => sha256);
		const control = (this.control = new AbortController());
		const waiting = files.values();
		const of = { checked: 0, mismatch: 0, unread: 0 };
		const lane = async () => {
			for (const file of waiting) {
				await this.check(file, control);
				if (control.signal.aborted) return;
				of[file.is]++;
				this.say(format.join(`${of.checked} of ${format.count(files.length, 'file')} checked`, of.mismatch && `${of.mismatch} not as sealed. ${VERIFY}`, of.unread && `${of.unread} not read`));
			}
		};
		setText(this.all, 'Stop');
		await Promise.all(Array.from({ length: LANES }, lane));
		this.control = null;
		setText(this.all, 'Check all in this browser');
	}
}

Object.assign(HB, { Artifacts, save });
Artifacts.pure = { lines, urlPath, digest, faults };
}
