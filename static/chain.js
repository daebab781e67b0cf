/* The hash chain: `prev` of event n is the SHA-256 of the exact bytes of event n-1. Pure.
   A record is {bytes, event, hash (once computed)}: a stored line, and what it parses to (null: not JSON). */
'use strict';
HB.share((HB) => {
const decoder = new TextDecoder();
const START = { seq: 0, hash: '0'.repeat(64) };
const hashOf = (record) => (record.hash ??= HB.sha256(record.bytes));

function parse(bytes) {
	try {
		return { bytes, event: JSON.parse(decoder.decode(bytes)) };
	} catch {
		return { bytes, event: null };
	}
}

/** JSON lines → records, one by one. */
function* each(bytes) {
	for (let from = 0; from < bytes.length; ) {
		let to = bytes.indexOf(10, from);
		if (to < 0) to = bytes.length;
		if (to > from) yield parse(bytes.slice(from, to));
		from = to + 1;
	}
}

/** What is wrong with a record that should follow {seq, hash}; '' for nothing. */
function fault({ event }, { seq, hash }) {
	if (event?.seq !== seq + 1) return `event ${seq + 1} is not in its place`;
	return event.prev === hash ? '' : `prev is not the hash of ${seq ? `event ${seq}` : 'nothing, 64 zeros'}`;
}

/**
 * The verdict on a record: {ok (null: undecided), words, computed: the hash of its predecessor}. `ledger` holds records from
 * seq `from` on, taken by position: a dropped or swapped event then stands where it must not. Both links count: only what
 * came *after* an event ties down its own bytes.
 */
function verdict(record, ledger, from, head) {
	const { seq } = record.event;
	const [before, at, after] = [-1, 0, 1].map((step) => ledger[seq + step - from]);
	if (seq > 1 && !before) return { ok: null, words: `event ${seq - 1} could not be read`, computed: '' };
	const last = seq > 1 ? { seq: before.event?.seq, hash: hashOf(before) } : START;
	const own = { seq, hash: hashOf(record) };
	const say = (ok, words) => ({ ok, words, computed: last.hash });
	const wrong = fault(record, last) || (at && hashOf(at) === own.hash ? '' : 'the ledger holds other bytes than the job’s trace');
	if (wrong) return say(false, wrong);
	if (!after && head?.seq !== seq) return say(null, 'nothing that came after it has been read');
	const next = after ? `event ${seq + 1}` : 'the head of the ledger';
	if (after ? fault(after, own) : head.hash !== own.hash) return say(false, `${next} names another hash for its bytes`);
	return say(true, `linked to ${seq > 1 ? `event ${seq - 1}` : 'the beginning'} and ${next}`);
}

/** The ranges of the ledger that hold these seqs and their neighbours, near ones joined. */
function plan(seqs, join = 16, most = 500) {
	const ranges = [];
	for (const seq of [...seqs].sort((a, b) => a - b)) {
		const from = Math.max(1, seq - 1);
		const last = ranges.at(-1);
		if (last && from <= last.to + join && seq + 1 - last.from < most) last.to = seq + 1;
		else ranges.push({ from, to: seq + 1 });
	}
	return ranges.map(({ from, to }) => ({ from, limit: to - from + 1 }));
}

/** Checks a live stream link by link, from a known {seq, hash} on. */
class Follower {
	sound = true; // whether every link held

	constructor(head) {
		Object.assign(this, head);
	}

	/** Whether the event continues the chain. Goes on from it in any case. */
	accept(record) {
		const isNext = !fault(record, this);
		Object.assign(this, { seq: record.event.seq, hash: hashOf(record), sound: this.sound && isNext });
		return isNext;
	}
}

HB.chain = { START, hashOf, parse, each, records: (bytes) => [...each(bytes)], fault, verdict, plan, Follower };
});
