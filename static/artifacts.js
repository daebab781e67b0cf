/* What a job has sealed, and whether it is still that: docs/evidence.md, computed here. */
'use strict';
{
const { h, setText, setAttr, format } = HB;
const READ_FILES = 20_000; // a seal of more is read when asked for
const LARGE = 256 << 20; // bytes that a page should not hold
const SLICE = 1 << 18; // bytes hashed at once
const TURN_MS = 10; // of hashing before something else may happen
const LANES = 3; // transfers at once, of six that a browser has
const PRINTED = 24;
const OUTCOMES = ['missing', 'differs', 'extra', 'identical'];
const VERIFY = 'Run “hackbrain verify --artifacts” on the node.';

/** Timers of hidden pages are slow; messages are not. */
const turn = () =>
	new Promise((done) => {
		const { port1, port2 } = new MessageChannel();
		port1.onmessage = () => done(port1.close());
		port2.postMessage(0);
	});

async function* body(response) {
	const reader = response.body.getReader();
	for (let next; !(next = await reader.read()).done; ) yield next.value;
}

async function digest(chunks) {
	const sha = new HB.Sha256();
	let since = performance.now();
	for await (const chunk of chunks) {
		for (let at = 0; at < chunk.length; at += SLICE) {
			sha.update(chunk.subarray(at, at + SLICE));
			if (performance.now() - since < TURN_MS) continue;
			await turn();
			since = performance.now();
		}
	}
	return { size: sha.length, hex: sha.hex() };
}

/** Every % of a seal's text escapes a byte, as in a URL. */
const escaped = (text) => encodeURI(text).replaceAll('%25', '%');
const urlPath = (text) => escaped(text.slice(1)).replace(/[?#]/g, encodeURIComponent);
const bytesOf = (text) => Uint8Array.from(escaped(text).match(/%..|./g), (part) => (part[1] ? parseInt(part.slice(1), 16) : part.charCodeAt(0)));

/** The `sha256sum` list, as bytes: artifacts_root is its hash. */
function* lines(artifacts) {
	for (const { path, sha256 } of artifacts) {
		const name = path.slice(1).replace(/[\\\n\r]/g, (c) => ({ '\n': '\\n', '\r': '\\r' })[c] ?? '\\\\');
		yield bytesOf(`${/[\\\n\r]/.test(path) ? '\\' : ''}${sha256}  ${name}\n`);
	}
}

/** What does not fit together: the seal's bytes, the SEALED event, the artifacts. */
async function faults(bytes, { job_id, artifacts, artifacts_root }, sealed) {
	const [own, root, d] = [await digest([bytes]), await digest(lines(artifacts)), sealed.detail];
	const total = artifacts.reduce((sum, { size }) => sum + size, 0);
	return [
		own.hex !== d.seal_hash && `it has the hash ${own.hex}`,
		(root.hex !== d.artifacts_root || root.hex !== artifacts_root) && `its entries give the artifacts root ${root.hex}`,
		(artifacts.length !== d.files || total !== d.bytes || job_id !== sealed.job_id) && 'its job, files or bytes are others',
	].filter(Boolean);
}

const reason = (error) => (error instanceof HB.ApiError ? error.message : 'The transfer broke off, as it does where a file has changed.');
const whole = () => new AbortController().signal; // takes as long as it takes

/** Follows a link with what a link cannot do: send a token, and show why the node refuses. */
async function save(event, api, size, say) {
	const { href, download } = event.currentTarget;
	if (size > LARGE && !api.token) return; // streamed to the disk
	event.preventDefault();
	if (size > LARGE && !confirm(`Hold ${format.bytes(size)} in memory? curl does without.`)) return;
	say('Fetching …');
	try {
		const blob = await (await api.request(href.slice(api.base.length), { accept: '*/*', signal: whole() })).blob();
		const url = URL.createObjectURL(blob);
		h('a', { href: url, download }).click();
		setTimeout(() => URL.revokeObjectURL(url), 60_000);
		say('');
	} catch (error) {
		say(reason(error));
	}
}

class Artifacts {
	files = [];
	results = new Map(); // path → [icon, words]

	constructor(page) {
		this.page = page;
		this.verdict = HB.mark('verdict', 'checking');
		this.facts = h('dl', { class: 'facts' });
		this.note = h('p', { class: 'note', role: 'status' });
		this.all = h('button', { click: () => (this.abort ? this.abort.abort() : this.seal ? this.checkAll() : this.read()) });
		this.rows = h('div', { role: 'rowgroup', class: 'rows' });
		this.scroller = h('div', { class: 'files', role: 'table', tabindex: 0, 'aria-label': 'Sealed files' }, this.rows);
		this.paper = h('pre', { class: 'paper' });
		this.list = new HB.Windowed({ scroller: this.scroller, rows: this.rows, make: () => this.make(), draw: (row, i) => this.draw(row, this.files[i], i), rowHeight: () => (innerWidth < 640 ? 60 : 36) });
		this.element = h('section', { class: 'artifacts', hidden: '' }, h('header', null, h('h2', null, 'Artifacts'), this.all), this.verdict, this.facts, this.scroller, this.paper, this.note);
	}

	close() {
		this.abort?.abort();
	}

	tick() {}

	update() {
		const sealed = this.page.events.findLast(({ state }) => state === 'SEALED');
		if (!sealed || this.sealed) return;
		this.sealed = sealed;
		this.element.hidden = false;
		const { seal_hash, artifacts_root, files, bytes, reproduction: r } = sealed.detail;
		const facts = { Sealed: format.join(format.count(files, 'file'), format.bytes(bytes)), Seal: seal_hash, 'Artifacts root': artifacts_root };
		if (r) facts[`Reproduces ${r.of}`] = format.join(...OUTCOMES.map((name) => r[name] > 0 && `${r[name].toLocaleString('en')} ${name}`), `stdout ${r.stdout}`, `stderr ${r.stderr}`);
		this.facts.append(...Object.entries(facts).map(([name, value]) => h('div', null, h('dt', null, name), h('dd', { title: value }, value))));
		setText(this.all, 'Read the seal');
		if (files <= READ_FILES) this.read();
		else this.verdict.update('checking', 'The seal is long, and not read yet.');
	}

	async read() {
		const { api, id } = this.page;
		this.verdict.update('checking', 'Reading the seal …');
		try {
			const bytes = new Uint8Array(await (await api.request(api.jobPath(id, '/seal'), { signal: whole() })).arrayBuffer());
			const seal = JSON.parse(new TextDecoder().decode(bytes));
			const wrong = await faults(bytes, seal, this.sealed);
			const { seq } = this.sealed;
			if (wrong[0]) this.verdict.update('mismatch', `This is not the seal that event ${seq} names: ${wrong.join('; ')}. ${VERIFY}`);
			else this.verdict.update('checked', `The seal has the hash that event ${seq} names, and its entries give the artifacts root: computed by this browser.`);
			this.show((this.seal = seal));
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
		this.scroller.hidden = this.all.hidden = this.files.length === 0;
		setText(this.all, 'Check all in this browser');
		this.draws();
	}

	/** On paper: whole hashes, as sha256sum writes them. */
	draws() {
		const paper = this.files.slice(0, PRINTED).map(({ path, sha256, word }) => format.join(`${sha256 ?? '-'}  ${path.slice(1)}`, word, this.results.get(path)?.[0]));
		if (this.files.length > PRINTED) paper.push(`and ${this.files.length - PRINTED} more: see the seal`);
		setText(this.paper, paper.join('\n'));
		this.list.refresh();
	}

	make() {
		const verdict = HB.mark('verdict', 'checking');
		const cells = [h('a', { click: (event) => save(event, this.page.api, row.file.size, (words) => setText(this.note, words)) }), h('span'), h('span'), h('span'), h('button', { class: 'quiet', click: () => this.check(row.file) }, verdict)];
		const row = h('div', { role: 'row', class: 'file' }, cells.map((cell, i) => h('span', { role: 'cell', class: `f${i}` }, cell)));
		return Object.assign(row, { cells, verdict });
	}

	draw(row, file, index) {
		if (!file) return;
		const { api, id } = this.page;
		const { path, size, sha256, word } = file;
		const [link, bytes, hash, outcome, check] = row.cells;
		const [is, words] = this.results.get(path) ?? ['', 'Check'];
		row.verdict.update(is, words);
		setAttr(check, 'title', words);
		setAttr(check, 'aria-label', `${words}: ${path}`);
		if (row.file === file) return;
		row.file = file;
		setAttr(row, 'aria-rowindex', index + 1);
		for (const [name, value] of Object.entries({ title: path, href: sha256 && api.base + api.jobPath(id, `/artifacts/${urlPath(path)}`), download: path.split('/').at(-1) })) setAttr(link, name, value);
		[path, sha256 ? format.bytes(size) : '', '', word ?? ''].forEach((text, i) => setText(row.cells[i], text));
		setAttr(outcome, 'data-word', word);
		check.hidden = !sha256;
		if (sha256) hash.append(HB.copyButton(format.hash(sha256), () => sha256));
		setAttr(hash, 'title', sha256);
	}

	async check({ path, size, sha256 }, signal = whole()) {
		const { api, id } = this.page;
		const set = (...result) => this.results.set(path, result) && this.list.refresh();
		set('checking', 'checking');
		try {
			const found = await digest(body(await api.request(api.jobPath(id, `/artifacts/${urlPath(path)}`), { accept: '*/*', signal })));
			if (found.hex === sha256 && found.size === size) set('checked', 'checked');
			else set('mismatch', `mismatch: ${found.size} bytes with SHA-256 ${found.hex}`);
		} catch (error) {
			if (signal.aborted) set('', 'Check');
			else if (error.status === 409) set('mismatch', `mismatch: ${error.message}`);
			else set('unread', `unread: ${reason(error)}`);
		}
		this.draws();
	}

	async checkAll() {
		const { signal } = (this.abort = new AbortController());
		const waiting = this.files.filter(({ sha256 }) => sha256).values();
		const tell = () => {
			const results = [...this.results.values()].map(([is]) => is);
			const of = (name) => results.filter((is) => is === name).length;
			setText(this.note, format.join(`${of('checked').toLocaleString('en')} of ${format.count(this.seal.files, 'file')} checked`, of('mismatch') && `${of('mismatch')} not as sealed. ${VERIFY}`, of('unread') && `${of('unread')} could not be read`));
		};
		const lane = async () => {
			for (const file of waiting) {
				await this.check(file, signal);
				if (signal.aborted) return;
				tell();
			}
		};
		this.results.clear();
		setText(this.all, 'Stop');
		await Promise.all(Array.from({ length: LANES }, lane));
		this.abort = null;
		setText(this.all, 'Check all in this browser');
		tell();
	}
}

Object.assign(HB, { Artifacts, save });
Artifacts.pure = { lines, urlPath, digest, faults };
}
