// One agent under test: a process on a port of its own, with a data directory that outlives it.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const START_MS = 30_000;
const OPTIONS = ['env', 'token', 'name', 'args', 'data', 'port', 'origins', 'hosts'];

export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

export class Agent {
  /**
   * All optional: env (more variables), token (what it asks for), name (of the node), args (more flags), data (a directory
   * that exists and is kept; otherwise one is made, and removed by close), port, origins and hosts (that may call it).
   */
  static async create(options = {}) {
    const unknown = Object.keys(options).filter((name) => !OPTIONS.includes(name));
    if (unknown.length > 0) throw new Error(`unknown options of an agent: ${unknown}; known are ${OPTIONS}`);
    const agent = new Agent();
    Object.assign(agent, { env: {}, args: [], origins: [], hosts: [], port: await freePort(), ...options });
    agent.base = `http://127.0.0.1:${agent.port}`;
    agent.dir = mkdtempSync(join(tmpdir(), 'hackbrain-viewer-'));
    agent.data ??= join(agent.dir, 'data');
    mkdirSync(agent.data, { recursive: true });
    await agent.start();
    return agent;
  }

  /** Agents that may be shown by one page, served by any of them: each allows the origins of all. */
  static async cluster(list) {
    const ports = [];
    for (const _ of list) ports.push(await freePort());
    const origins = ports.map((port) => `http://127.0.0.1:${port}`);
    return Promise.all(list.map((options, i) => Agent.create({ port: ports[i], origins, ...options })));
  }

  flags() {
    const flags = ['serve', '--data', this.data, '--listen', `127.0.0.1:${this.port}`, '--pull', 'never', '--segment-size', '4194304'];
    for (const origin of ['null', ...this.origins]) flags.push('--allow-origin', origin);
    for (const host of this.hosts) flags.push('--allow-host', host);
    if (this.name) flags.push('--node-name', this.name);
    if (this.token) {
      const file = join(this.dir, 'token');
      writeFileSync(file, `${this.token}\n`, { mode: 0o600 });
      flags.push('--token-file', file);
    }
    return [...flags, ...this.args];
  }

  async start() {
    const env = { ...process.env, ...this.env };
    this.child = spawn(process.env.HACKBRAIN_BIN, this.flags(), { env, stdio: ['ignore', 'ignore', 'pipe'] });
    this.said = '';
    this.child.stderr.on('data', (text) => (this.said += text));
    const deadline = Date.now() + START_MS;
    for (;;) {
      if (this.child.exitCode !== null) throw new Error(`the agent ended with ${this.child.exitCode}: ${this.said}`);
      if (await fetch(`${this.base}/readyz`).then((r) => r.ok, () => false)) break;
      if (Date.now() > deadline) throw new Error(`the agent is not ready: ${this.said}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    this.logId = (await this.json('/api/node')).log_id;
  }

  async stop(signal = 'SIGTERM') {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = once(this.child, 'exit');
    this.child.kill(signal);
    await gone;
  }

  /** Ends it, and removes what it made: containers that still run, names of images, mounts, data. */
  async close() {
    await this.stop('SIGTERM');
    if (this.logId) {
      const docker = (...args) => execFileSync('docker', args, { stdio: ['ignore', 'pipe', 'ignore'] }).toString().split('\n').filter(Boolean);
      const left = docker('ps', '-aq', '--filter', `label=hackbrain.log=${this.logId}`);
      if (left.length > 0) docker('rm', '-f', ...left);
      const pins = docker('images', '--format', '{{.Tag}}', 'hackbrain/pin').filter((tag) => tag.startsWith(this.logId.slice(0, 8)));
      if (pins.length > 0) docker('rmi', '--no-prune', ...pins.map((tag) => `hackbrain/pin:${tag}`));
    }
    // The directories of running containers are bound below the data directory, and stay bound for the next agent.
    const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n').map((line) => line.split(' ')[4]);
    const ours = mounts.filter((at) => at?.startsWith(`${this.dir}/`) || at?.startsWith(`${this.data}/`)).reverse();
    if (ours.length > 0) execFileSync('umount', ours);
    rmSync(this.dir, { recursive: true, force: true });
  }

  /** While it is stopped: its data as they are now, for restore. */
  snapshot() {
    rmSync(join(this.dir, 'snapshot'), { recursive: true, force: true });
    cpSync(this.data, join(this.dir, 'snapshot'), { recursive: true });
  }

  /** While it is stopped: what a backup that is put back does. */
  restore() {
    rmSync(this.data, { recursive: true, force: true });
    cpSync(join(this.dir, 'snapshot'), this.data, { recursive: true });
  }

  /** Its ledger as stored, an event a line, read from its files and not by HTTP. */
  dump() {
    const out = execFileSync(process.env.HACKBRAIN_BIN, ['dump', '--data', this.data], { maxBuffer: 1 << 30 });
    return out.toString().split('\n').filter(Boolean);
  }

  async call(path, { body, ...options } = {}) {
    const headers = { ...(this.token && { Authorization: `Bearer ${this.token}` }), ...(body !== undefined && { 'Content-Type': 'application/json' }) };
    const method = body === undefined ? 'GET' : 'POST';
    const response = await fetch(this.base + path, { method, headers, body: body && JSON.stringify(body), ...options });
    if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    return response;
  }

  async json(path, options) {
    return (await this.call(path, options)).json();
  }

  submit(manifest) {
    return this.json('/api/submit_job', { body: manifest });
  }

  /** Waits until a job has come to a state; throws where it ended otherwise. */
  async reached(id, state) {
    const job = await this.json(`/api/jobs/${id}?wait=${state}&timeout_s=60`);
    if (job.state === state || job.state === 'SEALED') return job;
    // It may have gone on since.
    const trace = await (await this.call(`/api/jobs/${id}/trace`)).text();
    if (trace.includes(`"state":"${state}"`)) return job;
    throw new Error(`${id} is ${job.state} (${job.reason}), not ${state}`);
  }
}
