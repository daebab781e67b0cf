/* Values → words for people. Pure. Times are shown in UTC, as the ledger writes them. */
'use strict';
const HB = {};
{
const two = (n) => String(Math.floor(n)).padStart(2, '0');
const CAUSES = {
	killed: 'it was killed',
	oom: 'it ran out of memory',
	host: 'the host went down',
	engine: 'the container engine was lost',
	lost: 'its container disappeared',
};

function duration(ms) {
	if (!(ms >= 0)) return '';
	const s = ms / 1000;
	if (s < 60) return `${s.toFixed(s < 10 ? 2 : 1)} s`;
	if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
	if (s < 86400) return `${Math.floor(s / 3600)} h ${two((s / 60) % 60)} min`;
	return `${Math.floor(s / 86400)} d ${two((s / 3600) % 24)} h`;
}

function bytes(n) {
	let unit = 0;
	for (; n >= 1024 && unit < 4; unit++) n /= 1024;
	return `${unit ? n.toFixed(n < 10 ? 1 : 0) : n} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}`;
}

const number = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ','); // the first Intl.NumberFormat takes 40 ms
const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
const day = (time) => time.slice(0, 10);
/** 08:09:47 today, 11-23 08:09 on any other day. */
const moment = (time, now) => (day(time) === day(new Date(now).toISOString()) ? time.slice(11, 19) : `${time.slice(5, 10)} ${time.slice(11, 16)}`);
const hash = (value) => (value ?? '').replace(/^sha256:/, '').slice(0, 12);
const cause = (name) => CAUSES[name] ?? name ?? 'cause unknown';
const join = (...parts) => parts.filter(Boolean).join(' · ');

/** What a D1_STABLE line says beyond its marker. */
const marker = (line) => (line ?? '').replace(/^\[D1_STABLE\]\s*(?=\S)/, '').trim();

function describe({ state, attempt, detail: d = {} }) {
	const exit = d.exit_code == null ? '' : `exit ${d.exit_code}`;
	switch (state) {
		case 'RECEIVED': return join(d.manifest?.image_hash, d.manifest?.command?.join(' '));
		case 'SCHEDULED': return join(d.execution_hash && `execution ${hash(d.execution_hash)}`, d.image_id && `image ${hash(d.image_id)}`);
		case 'RUNNING': return join(`attempt ${attempt}`, d.container);
		case 'RECOVERY': return join(`attempt ${attempt}`, d.resumed_after && `after ${marker(d.resumed_after)}`, d.container);
		case 'D1_STABLE': return join(marker(d.line), d.count > 1 && `stands for ${count(d.count, 'marker')}`);
		case 'CRASH': return join(cause(d.cause), exit);
		case 'SEALED': return join(d.files >= 0 && count(d.files, 'file'), d.bytes >= 0 && bytes(d.bytes), d.seal_hash && `seal ${hash(d.seal_hash)}`);
		default: return join(d.asked, d.reason !== 'exit' && (d.message ?? d.reason), exit, d.by && `by ${d.by}`);
	}
}

/** Why a job does not go on, and how far long work on its files is. */
const going = ({ waiting_for: why, progress: p }) => join(why && `Waits: ${why}`, p && `Now ${p.doing}, ${p.mount}: ${count(p.files, 'file')}, ${bytes(p.bytes)}`);

HB.format = { going, duration, bytes, number, count, day, moment, hash, cause, join, marker, describe };
}
