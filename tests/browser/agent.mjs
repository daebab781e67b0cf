// One agent under test: a process on a port of its own, with a data directory that outlives it.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const START_MS = 30_000;

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

export class Agent {
  static async create(env = {}) {
    const agent = new Agent();
    agent.env = { ...process.env, ...env };
    agent.port = await freePort();
    agent.base = `http://127.0.0.1:${agent.port}`;
    agent.data = mkdtempSync(join(tmpdir(), 'hackbrain-viewer-'));
    await agent.start();
    return agent;
  }

  async start() {
    const args = ['serve', '--data', join(this.data, 'data'), '--listen', `127.0.0.1:${this.port}`, '--pull', 'never', '--allow-origin', 'null', '--segment-size', '4194304'];
    this.child = spawn(process.env.HACKBRAIN_BIN, args, { env: this.env, stdio: ['ignore', 'ignore', 'pipe'] });
    this.said = '';
    this.child.stderr.on('data', (text) => (this.said += text));
    const deadline = Date.now() + START_MS;
    for (;;) {
      if (this.child.exitCode !== null) throw new Error(`the agent ended with ${this.child.exitCode}: ${this.said}`);
      if (await fetch(`${this.base}/readyz`).then((r) => r.ok, () => false)) return;
      if (Date.now() > deadline) throw new Error(`the agent is not ready: ${this.said}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  async stop(signal) {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = once(this.child, 'exit');
    this.child.kill(signal);
    await gone;
  }

  async close() {
    await this.stop('SIGTERM');
    rmSync(this.data, { recursive: true, force: true });
  }

  async submit(manifest) {
    const response = await fetch(`${this.base}/api/submit_job`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(manifest) });
    const body = await response.json();
    if (response.status !== 200) throw new Error(`${response.status} ${JSON.stringify(body)}`);
    return body;
  }

  async reached(id, state) {
    const response = await fetch(`${this.base}/api/jobs/${id}?wait=${state}&timeout_s=60`);
    const job = await response.json();
    if (job.state !== state && !['SEALED'].includes(job.state)) throw new Error(`${id} is ${job.state} (${job.reason}), not ${state}`);
    return job;
  }
}
