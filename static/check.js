/* Judges events against the node's ledger, fetching their neighbours in few ranges. */
'use strict';
{
const GATHER_MS = 120; // events come in bursts; one range then serves several
const RETRY_MS = 3000;

class Checker {
	waiting = new Map();

	/** onVerdict(seq, verdict): see HB.chain.verdict. */
	constructor(api, onVerdict) {
		Object.assign(this, { api, onVerdict });
	}

	add(records) {
		for (const record of records) this.waiting.set(record.event.seq, record);
		this.schedule(GATHER_MS);
	}

	close() {
		this.waiting.clear();
	}

	schedule(delay) {
		if (this.waiting.size > 0) this.timer ??= setTimeout(() => this.run(), delay);
	}

	async run() {
		let delay = GATHER_MS;
		// Newest first: that is where the reader looks.
		for (const { from, limit } of HB.chain.plan(this.waiting.keys()).reverse()) {
			try {
				await this.range(from, limit);
			} catch (error) {
				delay = RETRY_MS;
				for (const { event } of this.within(from, limit)) this.onVerdict(event.seq, { ok: null, words: error.message, computed: '' });
			}
		}
		this.timer = null;
		this.schedule(delay);
	}

	within(from, limit) {
		return [...this.waiting.values()].filter(({ event: { seq } }) => seq >= from && seq < from + limit);
	}

	async range(from, limit) {
		const judged = this.within(from, limit);
		if (judged.length === 0) return;
		const ledger = await this.api.lines(`/api/ledger?from=${from}&limit=${limit}`);
		const head = ledger.length < limit ? await this.api.json('/api/ledger/head') : null;
		for (const record of judged) {
			if (this.waiting.delete(record.event.seq)) this.onVerdict(record.event.seq, HB.chain.verdict(record, ledger, from, head));
		}
	}
}

HB.Checker = Checker;
}
