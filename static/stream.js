/* Server-sent events over fetch: EventSource sends no token, hides heartbeats, and decodes what must be hashed. */
'use strict';
{
const LOOK_MS = 250;
const IDLE_MS = 700; // without a byte: then the node is asked
const PROBE_MS = 1400; // with the two above: less than 3 s from a link's death to its badge
const BACKOFF_MS = [100, 500, 1000, 2000, 4000, 8000];
const SLICE_BYTES = 16_384; // some thirty events
const SLICE_MS = 10; // of work, between two breaths
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

/** A new task: what waits goes first. Unlike a timer, it is not slowed down where nobody looks. */
const breath = () =>
	new Promise((resolve) => {
		const { port1, port2 } = new MessageChannel();
		port1.onmessage = () => resolve(port1.close());
		port2.postMessage(0);
	});

/**
 * Keeps a stream to the node alive. Before each connection `await on.head(head)` gives the seq to resume after,
 * of the head that `on.first()` gives, or the node; then come
 * on.record({bytes, event}), on.aux(name, data), on.state({name, since, behind, message}).
 */
class Stream {
	failures = 0;
	seq = 0;
	began = Date.now();

	constructor(api, on) {
		Object.assign(this, { api, on });
		this.clock = setInterval(() => this.look(), LOOK_MS);
		this.run();
	}

	close() {
		this.isClosed = true;
		clearInterval(this.clock);
		this.abort?.abort();
	}

	/** Goes on at once. */
	retry() {
		this.wake?.();
	}

	state(name, more) {
		if (this.isClosed || (name === this.name && !more)) return;
		this.name = name;
		this.on.state({ name, since: this.lastByte ?? this.began, behind: more?.behind, message: more?.message });
	}

	async run() {
		while (!this.isClosed) {
			this.fault = null;
			try {
				await this.connection();
			} catch (error) {
				this.failed(this.fault ?? error);
			}
			this.abort?.abort();
			this.abort = null;
			const wait = BACKOFF_MS[Math.min(this.failures++, BACKOFF_MS.length - 1)];
			await new Promise((resolve) => setTimeout((this.wake = resolve), wait * (0.75 + Math.random() / 2)));
		}
	}

	/** Cut off is not dead: only an attempt that fails as well shows that. */
	failed(error) {
		if (error.status === 401) this.state('token needed', error);
		else if (error instanceof HB.ApiError) this.state(error.isSilent && this.lastByte ? 'stale' : 'offline', error);
		else if (this.failures > 0) this.state('offline', { message: `The event stream of ${this.api.base} breaks off: ${error.message}` });
	}

	async connection() {
		const wasLive = /^(live|catching)/.test(this.name);
		const head = await (this.on.first?.() ?? this.api.json('/api/ledger/head', wasLive ? PROBE_MS : undefined));
		this.seq = await this.on.head(head);
		this.abort = new AbortController();
		const response = await this.api.request(`/api/events?after=${this.seq}`, { accept: 'text/event-stream', signal: this.abort.signal });
		this.alive = Date.now();
		this.owed = 0;
		const parser = new SseParser(({ id, event, data }) => {
			if (id === null) return this.on.aux(event, data);
			const record = HB.chain.parse(data);
			if (!(record.event?.seq > this.seq)) return;
			this.seq = record.event.seq;
			this.on.record(record);
		});
		const reader = response.body.getReader();
		for (let began = performance.now(); ; ) {
			const { value, done } = await reader.read();
			if (done) return;
			this.failures = 0;
			this.alive = this.lastByte = Date.now();
			for (let at = 0; at < value.length && !this.isClosed; at += SLICE_BYTES) {
				parser.push(value.subarray(at, at + SLICE_BYTES));
				if (this.seq >= head.seq) this.state('live');
				else this.state('catching up', { behind: head.seq - this.seq });
				if (performance.now() - began < SLICE_MS) continue;
				await breath();
				began = performance.now();
			}
		}
	}

	/** A stream that says nothing may be dead: a small question decides. */
	async look() {
		if (!this.abort || this.isAsking || !(Date.now() - this.alive > IDLE_MS)) return;
		this.isAsking = true;
		const { abort, alive } = this;
		let fault;
		try {
			const { seq } = await this.api.json('/api/ledger/head', PROBE_MS);
			// The node lives, and what it told of a while ago has not come.
			if (this.owed > this.seq) fault = new HB.ApiError(0, `The event stream of ${this.api.base} has stopped.`, true);
			this.owed = seq;
		} catch (error) {
			fault = error;
		}
		this.isAsking = false;
		if (abort !== this.abort) return;
		if (!fault) this.alive = Date.now();
		else if (alive === this.alive) {
			this.fault = fault;
			abort.abort();
		}
	}
}

Object.assign(HB, { SseParser, Stream, breath });
}
