/* Requests to one node. Every failure is an ApiError whose message says what to do. */
'use strict';
{
const TIMEOUT_MS = 15_000;
const store = globalThis.sessionStorage;

class ApiError extends Error {
	/** status 0: no answer at all. */
	constructor(status, message) {
		super(message);
		this.status = status;
	}
}

class Api {
	/** base: 'http://host:port', without a slash at the end. */
	constructor(base) {
		this.base = base;
		this.token = store?.getItem(base) ?? '';
	}

	setToken(token) {
		this.token = token;
		store?.setItem(this.base, token);
	}

	/** A good response, or an ApiError. 416 is good: it tells that a log has nothing new. */
	async request(path, { accept = 'application/json', headers, method, signal } = {}) {
		const all = { Accept: accept, ...headers, ...(this.token && { Authorization: `Bearer ${this.token}` }) };
		let response;
		try {
			response = await fetch(this.base + path, { method, headers: all, cache: 'no-store', signal: signal ?? AbortSignal.timeout(TIMEOUT_MS) });
		} catch {
			const file = location.protocol === 'file:' ? ' A page from a file needs --allow-origin null as well.' : '';
			throw new ApiError(0, `No answer from ${this.base}. Check that “hackbrain serve” listens there.${file}`);
		}
		if (response.ok || response.status === 416) return response;
		const body = await response.json().catch(() => null);
		throw new ApiError(response.status, body?.error?.message ?? `The node answered ${response.status} to ${path}.`);
	}

	async json(path) {
		return (await this.request(path)).json();
	}

	/** Events exactly as stored, one a line. */
	async lines(path) {
		const response = await this.request(path, { accept: 'application/x-ndjson' });
		return HB.chain.records(new Uint8Array(await response.arrayBuffer()));
	}

	jobPath(id, rest = '') {
		return `/api/jobs/${encodeURIComponent(id)}${rest}`;
	}

	/** A manifest → the command that submits it here. Inside single quotes, a quote is written '\''. */
	curl(manifest) {
		const auth = this.token && ` -H "Authorization: Bearer $TOKEN"`;
		return `curl ${this.base}/api/submit_job${auth} -H 'Content-Type: application/json' -d '${JSON.stringify(manifest, null, 2).replaceAll("'", "'\\''")}'`;
	}
}

Object.assign(HB, { Api, ApiError });
}
