// A TCP link that can be cut, stalled and restarted: what lies between a laptop and a node.
import { once } from 'node:events';
import { connect, createServer } from 'node:net';

export class Forwarder {
  links = new Set(); // {client, server, left: bytes until it is cut, or Infinity}
  isStalled = false;

  /** Forwards a port of its own to a port of this machine. */
  static async create(target) {
    const forwarder = new Forwarder();
    forwarder.target = target;
    await forwarder.listen(0);
    forwarder.port = forwarder.listener.address().port;
    forwarder.base = `http://127.0.0.1:${forwarder.port}`;
    return forwarder;
  }

  async listen(port) {
    this.listener = createServer((client) => this.accept(client)).listen(port, '127.0.0.1');
    await once(this.listener, 'listening');
  }

  accept(client) {
    const server = connect(this.target, '127.0.0.1');
    const link = { client, server, left: Infinity };
    this.links.add(link);
    for (const [from, to] of [[client, server], [server, client]]) {
      from.on('data', (chunk) => this.pass(link, from, to, chunk));
      from.on('end', () => to.end());
      from.on('error', () => {});
      from.on('close', () => {
        to.destroy();
        this.links.delete(link);
      });
      if (this.isStalled) from.pause();
    }
  }

  pass(link, from, to, chunk) {
    if (from === link.server) {
      const part = chunk.subarray(0, link.left);
      link.left -= part.length;
      to.write(part);
      if (link.left <= 0) setImmediate(() => reset(link)); // what was written may leave first
    } else {
      // A request's head, which comes in one piece from a browser.
      link.isStream ||= chunk.subarray(0, 16).toString().startsWith('GET /api/events');
      to.write(chunk);
    }
  }

  /** Whether an event stream goes through it. */
  get hasStream() {
    return [...this.links].some(({ isStream }) => isStream);
  }

  /** Resets every connection, at once or once so many more bytes came from the server. Returns how many there were. */
  cut(after = 0) {
    const count = this.links.size;
    for (const link of this.links) {
      if (after > 0) link.left = after;
      else reset(link);
    }
    return count;
  }

  /** Nothing passes any more, and nobody is told: as when a laptop leaves a network. */
  stall() {
    this.isStalled = true;
    for (const { client, server } of this.links) [client, server].forEach((socket) => socket.pause());
  }

  resume() {
    this.isStalled = false;
    for (const { client, server } of this.links) [client, server].forEach((socket) => socket.resume());
  }

  /** Refuses what comes, and cuts what is there. */
  async refuse() {
    const closed = once(this.listener, 'close');
    this.listener.close();
    this.cut();
    await closed;
  }

  /** Takes connections again, on the same port. */
  async restart() {
    await this.listen(this.port);
  }

  async close() {
    this.resume();
    if (this.listener.listening) await this.refuse();
  }
}

function reset({ client, server }) {
  client.resetAndDestroy();
  server.destroy();
}
