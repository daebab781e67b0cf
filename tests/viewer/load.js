// Loads the page's pure files, which are classic scripts that share one global object, and makes ledgers for the tests.
'use strict';
const { createHash } = require('node:crypto');
const { readFileSync } = require('node:fs');
const { join } = require('node:path');
const vm = require('node:vm');

for (const name of ['format', 'sha256', 'chain', 'model', 'timeline', 'dom', 'api', 'stream', 'worker', 'check', 'window', 'nodes', 'list', 'log', 'charts', 'replay', 'graph', 'artifacts', 'actions']) {
  const file = join(__dirname, '../../static', `${name}.js`);
  vm.runInThisContext(readFileSync(file, 'utf8'), { filename: file });
}

// A top-level const of a classic script is no property of globalThis.
const HB = vm.runInThisContext('HB');
const hash = (bytes) => createHash('sha256').update(bytes).digest('hex');

/** A ledger in the stored form, hashed by node:crypto and not by the code under test. */
class Ledger {
  constructor() {
    this.lines = [];
    this.prev = '0'.repeat(64);
  }

  append(job_id, state, detail = {}, attempt = 1) {
    const seq = this.lines.length + 1;
    const time = new Date(Date.UTC(2026, 10, 23, 8, 0, seq)).toISOString().replace('Z', '000Z');
    const event = { seq, prev: this.prev, time, ...(job_id && { job_id, attempt }), state, detail };
    const bytes = Buffer.from(JSON.stringify(event));
    this.lines.push(bytes);
    this.prev = hash(bytes);
    return event;
  }

  records() {
    return this.lines.map((line) => HB.chain.parse(new Uint8Array(line)));
  }

  head() {
    return { seq: this.lines.length, hash: this.prev };
  }
}

module.exports = { HB, Ledger, hash };
