/* Server-sent events over fetch: EventSource sends no token, hides heartbeats, and decodes what must be hashed. */
'use strict';
{
const STALE_MS = 25_000; // the agent writes at least a comment every 10 s
const BACKOFF_MS = [500, 1000, 2000, 4000, 8000];
const LINE_MAX = 8 << 20; // bytes; a longer line is no event stream
const decoder = new TextDecoder();

/** Bytes in, messages out: {id (null: none), event, data: the exact bytes of its data line}. Chunks may end anywhere. Pure. */
class SseParser {
	constructor(onMessage) {
		Object.assign(this, { onMessage, rest: new Uint8Array(0), afterCr: false });
		this.clear();
	}

	clear() {
		Object.assign(this, { id: null, event: 'message', data: null });
	}

	push(chunk) {
		const buffer = new Uint8Array(this.rest.length + chunk.length);
		buffer.set(this.rest);
		buffer.set(chunk, this.rest.length);
		let from = 0;
		for (let i = this.rest.length; i < buffer.length; i++) {
			const byte = buffer[i];
			if (byte === 10 || byte === 13) {
				// The \n of a \r\n ends nothing: its \r already did.
				if (byte === 13 || !this.afterCr) this.line(buffer.subarray(from, i));
				from = i + 1;
			}
			this.afterCr = byte === 13;
		}
		this.rest = buffer.slice(from);
		if (this.rest.length > LINE_MAX) throw new HB.ApiError(0, 'The event stream makes no sense.');
	}

	line(bytes) {
		if (bytes.length === 0) {
			const { id, event, data } = this;
			this.clear();
			if (data) this.onMessage({ id, event, data });
			return;
		}
		let colon = bytes.indexOf(58);
		if (colon < 0) colon = bytes.length;
		const name = decoder.decode(bytes.subarray(0, colon)); // '': the heartbeat
		const value = bytes.slice(bytes[colon + 1] === 32 ? colon + 2 : colon + 1);
		if (name === 'data') this.data = value;
		else if (name === 'id' || name === 'event') this[name] = decoder.decode(value);
	}
}

/**
 * Keeps a stream to the node alive. Before each connection `await on.head(head)` gives the seq to resume after; then come
 * on.record({bytes, event}), on.aux(name, data), on.state({name, since, behind, message}).
 */
class Stream {
	failures = 0;

	constructor(api, on) {
		Object.assign(this, { api, on });
		setInterval(() => {
			if (!this.abort || Date.now() - this.lastByte < STALE_MS) return;
			this.state('stale');
			this.abort.abort();
		}, 1000);
		this.run();
	}

	state(name, more) {
		if (name === this.name && !more) return;
		if (name !== this.name) this.since = Date.now();
		this.name = name;
		this.on.state({ name, since: this.since, behind: more?.behind, message: more?.message });
	}

	async run() {
		for (;;) {
			try {
				await this.connection();
			} catch (error) {
				if (error.status === 401) this.state('token needed', error);
				// A dropped stream is called offline only once a new connection has failed as well.
				else if (this.failures > 0) this.state('offline', error);
			}
			this.abort = null;
			const wait = BACKOFF_MS[Math.min(this.failures++, BACKOFF_MS.length - 1)];
			await new Promise((resolve) => setTimeout((this.retry = resolve), wait * (0.75 + Math.random() / 2)));
		}
	}

	async connection() {
		const head = await this.api.json('/api/ledger/head');
		let seq = await this.on.head(head);
		this.abort = new AbortController();
		this.lastByte = Date.now();
		const response = await this.api.request(`/api/events?after=${seq}`, { accept: 'text/event-stream', signal: this.abort.signal });
		const parser = new SseParser(({ id, event, data }) => {
			if (id === null) return this.on.aux(event, data);
			const record = HB.chain.parse(data);
			if (!(record.event?.seq > seq)) return;
			seq = record.event.seq;
			this.on.record(record);
		});
		this.failures = 0;
		const reader = response.body.getReader();
		for (let next = {}; !next.done; next = await reader.read()) {
			this.lastByte = Date.now();
			if (next.value) parser.push(next.value);
			if (seq >= head.seq) this.state('live');
			else this.state('catching up', { behind: head.seq - seq });
		}
	}
}

Object.assign(HB, { SseParser, Stream });
}
