/* Requests to one node. Every failure is an ApiError that says what to do. */
'use strict';
HB.share((HB) => {
const TIMEOUT_MS = 15_000;

class ApiError extends Error {
	/** status 0: no answer at all; isSilent: not in time. */
	constructor(status, message, isSilent = false) {
		super(message);
		Object.assign(this, { status, isSilent });
	}
}

class Api {
	token = '';

	constructor(base) {
		this.base = base;
	}

	/** A good response, or an ApiError. 416 is good: nothing new in a log. */
	async request(path, { accept = 'application/json', headers, method, body: sent, signal, timeout = TIMEOUT_MS } = {}) {
		const all = { Accept: accept, ...headers, ...(this.token && { Authorization: `Bearer ${this.token}` }) };
		let response;
		try {
			response = await fetch(this.base + path, { method, headers: all, body: sent, cache: 'no-store', signal: signal ?? AbortSignal.timeout(timeout) });
		} catch ({ name }) {
			const far = this.base === origin ? '' : ` and has --allow-origin ${origin}`;
			throw new ApiError(0, `No answer from ${this.base}. Check that “hackbrain serve” listens there${far}.`, name === 'TimeoutError');
		}
		if (response.ok || response.status === 416) return response;
		const body = await response.json().catch(() => null);
		throw Object.assign(new ApiError(response.status, body?.error?.message ?? `The node answered ${response.status} to ${path}.`), { field: body?.error?.field });
	}

	async json(path, timeout) {
		return (await this.request(path, { timeout })).json();
	}

	/** Events exactly as stored, one a line. */
	async lines(path) {
		const response = await this.request(path, { accept: 'application/x-ndjson' });
		return HB.chain.records(new Uint8Array(await response.arrayBuffer()));
	}

	jobPath(id, rest = '') {
		return `/api/jobs/${encodeURIComponent(id)}${rest}`;
	}

	/** The header that a command must send here. */
	get auth() {
		return this.token && ' -H "Authorization: Bearer $TOKEN"';
	}

	/** The command that submits a manifest here. */
	curl(manifest) {
		return `curl ${this.base}/api/submit_job${this.auth} -H 'Content-Type: application/json' -d '${JSON.stringify(manifest, null, 2).replaceAll("'", "'\\''")}'`;
	}
}

Object.assign(HB, { Api, ApiError });
});
