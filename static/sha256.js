/* SHA-256 (FIPS 180-4), incremental: browsers offer no crypto.subtle on plain http to another host. Pure. */
'use strict';
/* A shared part goes into the workers too, as its source: it uses nothing outside but HB. */
HB.shared = [];
HB.share = (part) => {
	part(HB); // one that throws, for want of another, goes into no worker
	HB.shared.push(part);
};

HB.share((HB) => {
// Fractional parts of roots of the first primes (§4.2.2, §5.3.3); doubles hold these 32 bits exactly.
const primes = [];
for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
const fraction = (x) => ((x - Math.floor(x)) * 0x100000000) | 0;
const K = Int32Array.from(primes, (p) => fraction(Math.cbrt(p)));
const INITIAL = primes.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
const W = new Int32Array(64);

class Sha256 {
	h = Int32Array.from(INITIAL);
	block = new Uint8Array(64);
	length = 0; // bytes seen; length % 64 of them wait in block

	update(bytes) {
		for (let at = 0; at < bytes.length; ) {
			const used = this.length % 64;
			const take = Math.min(64 - used, bytes.length - at);
			if (take === 64) compress(this.h, bytes, at);
			else {
				this.block.set(bytes.subarray(at, at + take), used);
				if (used + take === 64) compress(this.h, this.block, 0);
			}
			at += take;
			this.length += take;
		}
		return this;
	}

	/** 64 lower-case hex digits. The object cannot be used afterwards. */
	hex() {
		const { length } = this;
		const pad = new Uint8Array(((119 - (length % 64)) % 64) + 9);
		pad[0] = 0x80;
		const view = new DataView(pad.buffer);
		view.setUint32(pad.length - 8, Math.floor(length / 0x20000000));
		view.setUint32(pad.length - 4, length << 3);
		this.update(pad);
		return Array.from(this.h, (word) => (word >>> 0).toString(16).padStart(8, '0')).join('');
	}
}

function compress(h, data, at) {
	for (let i = 0; i < 16; i++, at += 4) W[i] = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3];
	for (let i = 16; i < 64; i++) {
		const x = W[i - 15];
		const y = W[i - 2];
		const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
		const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
		W[i] = (W[i - 16] + s0 + W[i - 7] + s1) | 0;
	}
	// By index: to take an array apart costs as much as to hash the block.
	let a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], k = h[7];
	for (let i = 0; i < 64; i++) {
		const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
		const t1 = (k + s1 + ((e & f) ^ (~e & g)) + K[i] + W[i]) | 0;
		const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
		const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
		k = g; g = f; f = e; e = (d + t1) | 0;
		d = c; c = b; b = a; a = (t1 + t2) | 0;
	}
	h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += k;
}

HB.Sha256 = Sha256;
HB.sha256 = (bytes) => new Sha256().update(bytes).hex();
});
