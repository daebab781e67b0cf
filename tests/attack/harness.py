"""What every attack shares: an agent that is watched, a probe that must always be answered, connections that misbehave.

Standard library only. Every connection goes to a loopback address; every attack is bounded in time and in count."""
import dataclasses
import errno
import json
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
HERE = pathlib.Path(__file__).resolve().parent
# What is held against every attack.
HWM_MAX_KIB = 64 << 10
RECOVERY_S = 30
PROBE_LATE_MS = 100
# How many of the probes of an attack's window may be late; `attack --late`.
LATE_PERCENT = 0.0
# When the figures after an attack are taken: so many seconds after its end, or once all is back where it is 0; `attack --after`.
AFTER_S = RECOVERY_S
# Whether time is judged: lateness of the probe, and rates.
TIMED = True
# Far above what it takes.
PATIENCE_S = 60
NO_ENGINE = "unix:///nonexistent.sock"


def raise_descriptor_limit():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def say(text):
    print(text, file=sys.stderr, flush=True)


def eventually(what, ask, patience_s=PATIENCE_S):
    end = time.monotonic() + patience_s
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"never came about: {what}")
        time.sleep(0.02)


class NoAttack(AssertionError):
    """What a row is meant to do did not come about, so that it shows nothing."""


def require(holds, what):
    if not holds:
        raise NoAttack(f"no attack: {what}")


class Agent:
    """The real binary on a data directory of its own, with no engine. `wrapper` is a command it is started by, `headers` what
    our own requests to it need, e.g. a token."""

    def __init__(self, *flags, wrapper=(), headers=()):
        self.headers, self.watch, self.counted = headers, None, {}
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="hackbrain-attack."))
        self.log = self.directory / "agent.log"
        binary = os.environ.get("HACKBRAIN_BIN") or str(ROOT / "target/debug/hackbrain")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HACKBRAIN_")}
        environment.pop("RUST_LOG", None)
        environment["DOCKER_HOST"] = NO_ENGINE
        try:
            with open(self.log, "wb") as stderr:
                self.process = subprocess.Popen(
                    [*wrapper, binary, "serve", "--data", self.directory / "data", "--listen", "127.0.0.1:0", *flags],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
            self.pid = self.process.pid
            self.address = eventually("the agent listens", self._listens)
            eventually("the agent is ready", lambda: get(self.address, "/readyz")[0] == 200)
        except BaseException as error:
            said = self.said()
            self.close()
            raise AssertionError(f"the agent does not come up: {error}\n{said}") from error

    def _listens(self):
        if self.process.poll() is not None:
            raise AssertionError("it ended")
        found = re.search(r"listening on http://([^ ,]+):(\d+)", self.said())
        return found and (found[1], int(found[2]))

    def said(self):
        return self.log.read_text(errors="replace")

    def alive(self):
        return self.process.poll() is None

    def sample(self):
        """Memory in KiB, threads and open descriptors now; zeros where it is gone."""
        try:
            status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
            number = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", status, re.M)}
            return Sample(number.get("VmRSS", 0), number.get("VmHWM", 0), number.get("Threads", 0),
                          len(os.listdir(f"/proc/{self.pid}/fd")))
        except OSError:
            return Sample(0, 0, 0, 0)

    def prepared(self):
        """How many descriptors are of a segment of the ledger that is prepared and not yet needed: at any time one or none."""
        found = 0
        for each in os.scandir(f"/proc/{self.pid}/fd"):
            try:
                found += os.readlink(each.path).endswith(".log.tmp")
            except OSError:
                pass
        return found

    def metrics(self):
        """Every sample of /metrics by its name and labels."""
        status, _, body = get(self.address, "/metrics", self.headers)
        assert status == 200, f"/metrics is answered {status}"
        found = (line.rsplit(" ", 1) for line in body.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in found}

    def gained(self, name):
        """By how much a counter has grown since the attack began. Whoever connected before we asked has been accepted."""
        now = self.metrics()
        require(name in now, f"the agent has no metric {name}")
        return int(now[name] - self.counted.get(name, 0))

    def faults(self):
        """What the agent itself says that went wrong."""
        found = []
        if not self.alive():
            found.append(f"the agent ended with {self.process.returncode}")
        said = self.said()
        if "panicked" in said:
            found.append("panic: " + next(line for line in said.splitlines() if "panicked" in line))
        if self.alive():
            try:
                panics = {name: value for name, value in self.metrics().items() if "panic" in name}
                require(panics, "the agent counts no panics")
                found += [f"{name} {value:.0f}" for name, value in panics.items() if value]
            except (AssertionError, OSError) as error:
                found.append(str(error))
        return found

    def close(self):
        if hasattr(self, "process"):
            if self.alive():
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@dataclasses.dataclass
class Sample:
    rss_kib: int
    hwm_kib: int
    threads: int
    fds: int


class Watch:
    """Samples the agent until stopped, and keeps the most of each."""

    def __init__(self, agent):
        self.agent, self.most, self.ended = agent, agent.sample(), threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.ended.wait(0.05):
            now = self.agent.sample()
            self.most = Sample(*(max(a, b) for a, b in zip(dataclasses.astuple(self.most), dataclasses.astuple(now))))

    def stop(self):
        self.ended.set()
        self.thread.join()
        return self.most


class Probe:
    """`GET /healthz` every 50 ms by the clock, each on a new connection, from a process of its own: this one is busy
    attacking. What is told of `count`, `late`, `max_ms` and `p99_ms` is of the time up to `attack_ends`."""

    def __init__(self, address, source="127.0.0.1"):
        self.process = subprocess.Popen([sys.executable, HERE / "probe.py", f"{address[0]}:{address[1]}", source],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def attack_ends(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def stop(self):
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        return json.loads(out)


def connect(address, source=None, timeout=10.0, receive_buffer=None):
    """A connection from a loopback address of our choice."""
    assert address[0].startswith("127."), address
    client = socket.socket()
    try:
        client.settimeout(timeout)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            # IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect, so that ports are shared among destinations.
            client.setsockopt(socket.IPPROTO_IP, 24, 1)
            client.bind((source, 0))
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def reset(client):
    """Closes with RST."""
    try:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    client.close()


def read_all(client, limit=4 << 20):
    """Everything up to the end, however it comes."""
    pieces, total = [], 0
    try:
        while total < limit:
            piece = client.recv(65536)
            if not piece:
                break
            pieces.append(piece)
            total += len(piece)
    except (ConnectionError, BrokenPipeError):
        pass
    return b"".join(pieces)


def request(method, path, headers=(), body=None, host="127.0.0.1"):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def exchange(address, data, source=None, timeout=PATIENCE_S):
    """Sends, ends its side, reads everything."""
    with connect(address, source, timeout) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except (ConnectionError, BrokenPipeError, OSError):
            pass
        return read_all(client)


def get(address, path, headers=(), source=None):
    """Status, head and body of one answer; zeros and nothing where the connection ended without one."""
    return one(exchange(address, request("GET", path, [("Connection", "close"), *headers]), source))


def post(address, path, body, headers=(), source=None):
    headers = [("Connection", "close"), ("Content-Type", "application/json"), *headers]
    return one(exchange(address, request("POST", path, headers, body), source))


def one(answer):
    found = answers(answer, may_lack_body=False)
    if not found:
        return 0, b"", b""
    return found[0]


# Everything the contract lets this agent answer; 500 is none of it.
STATUSES = {100, 200, 204, 206, 304, 400, 401, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 422,
            429, 431, 501, 503, 505}
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [\x20-\x7e]*\r\n")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t\x80-\xff]*?)[ \t]*\r\n")


class Malformed(Exception):
    pass


def answers(data, may_lack_body):
    """The responses in all that a connection sent until it ended: (status, head, body) each.

    `may_lack_body`: HEAD may be among the requests, so that any answer may have no body; then every reading is tried."""
    fault = None

    def read(at):
        nonlocal fault
        if at == len(data):
            return []
        try:
            for status, head, body, end in readings(data, at, may_lack_body):
                rest = read(end)
                if rest is not None:
                    return [(status, head, body), *rest]
        except Malformed as error:
            fault = fault or error
        return None

    found = read(0)
    if found is None:
        raise fault or Malformed(f"not HTTP: {data[:200]!r}")
    return found


def readings(data, at, may_lack_body):
    line = STATUS_LINE.match(data, at)
    if not line:
        raise Malformed(f"no status line at {at}: {data[at:at + 100]!r}")
    status, cursor, fields = int(line[1]), line.end(), {}
    while data[cursor:cursor + 2] != b"\r\n":
        field = FIELD.match(data, cursor)
        if not field:
            raise Malformed(f"no header field at {cursor}: {data[cursor:cursor + 100]!r}")
        name = field[1].lower()
        if name in fields and name in (b"content-length", b"transfer-encoding", b"connection", b"content-type"):
            raise Malformed(f"{name!r} twice")
        fields[name] = field[2]
        cursor = field.end()
    cursor += 2
    head = data[at:cursor]
    if status in (100, 204, 304):
        yield status, head, b"", cursor
        return
    if b"content-length" in fields and b"transfer-encoding" in fields:
        raise Malformed("two framings")
    if b"content-length" in fields:
        end = cursor + int(fields[b"content-length"])
        if end <= len(data):
            yield status, head, data[cursor:end], end
    elif fields.get(b"transfer-encoding") == b"chunked":
        found = unchunk(data, cursor)
        if found:
            yield status, head, *found
    elif fields.get(b"connection") == b"close":
        yield status, head, data[cursor:], len(data)
    else:
        raise Malformed(f"no framing: {head!r}")
    if may_lack_body:
        yield status, head, b"", cursor


def unchunk(data, at):
    body = b""
    while True:
        end = data.find(b"\r\n", at)
        if end < 0 or not re.fullmatch(rb"[0-9a-fA-F]+", data[at:end]):
            return None
        size = int(data[at:end], 16)
        chunk_end = end + 2 + size
        if data[chunk_end:chunk_end + 2] != b"\r\n":
            return None
        body += data[end + 2:chunk_end]
        at = chunk_end + 2
        if size == 0:
            return body, at


def check_answers(data, may_lack_body=False):
    """The statuses of well-formed answers, each of a status we know, each error with its document."""
    found = answers(data, may_lack_body)
    for status, head, body in found:
        if status not in STATUSES:
            raise Malformed(f"status {status}: {head!r} {body[:300]!r}")
        if status >= 400:
            if b"\r\ncontent-type: application/json\r\n" not in head.lower():
                raise Malformed(f"an error that is not JSON: {head!r}")
            if body or not may_lack_body:
                document = json.loads(body)
                if not document["error"]["code"] or not document["error"]["message"]:
                    raise Malformed(f"an error without code or message: {body!r}")
    return [status for status, _, _ in found]


class Client:
    """One of a crowd. `left` is what it has still to send, of its `opening` or later."""
    __slots__ = ("socket", "left", "is_connected", "is_whole")

    def __init__(self, client, opening):
        self.socket, self.left, self.is_connected, self.is_whole = client, memoryview(opening), False, False


class Crowd:
    """Connections that all behave alike, none of which ever waits for another: each sends `opening`, then `drip` again and
    again, or `flood` as fast as it is taken, and reads `read` bytes at a time. One that is closed is opened again, at most
    `opens` times in all, and `rate` times a second."""
    # Those that have not left.
    present = []

    def __init__(self, address, sources, count, opening, drip=b"", every_s=1.0, read=0, opens=10_000,
                 receive_buffer=None, send_buffer=None, flood=b"", rate=1e9):
        assert address[0].startswith("127."), address
        self.address, self.sources, self.count, self.opening, self.drip = address, sources, count, opening, drip
        self.every_s, self.read, self.opens, self.flood, self.rate = every_s, read, opens, flood, rate
        self.buffers = {socket.SO_RCVBUF: receive_buffer, socket.SO_SNDBUF: send_buffer}
        self.clients, self.poll = {}, select.epoll()
        # `opened` are those that connected, `most` at once, `whole` have sent all of their opening; `sent` in bytes.
        self.tried = self.opened = self.most = self.now = self.closed = self.failed = self.whole = self.drips = self.sent = 0
        self.statuses = {}
        Crowd.present.append(self)

    def run(self, seconds):
        """So long at least, and until there have been as many as there are to be."""
        began, tried = time.monotonic(), self.tried
        end = began + seconds
        next_drip = time.monotonic() + self.every_s
        while time.monotonic() < end or self.opened + self.failed < self.count and time.monotonic() < end + PATIENCE_S:
            # In pieces, so that what is closed in the meantime is noticed.
            due = int(tried + self.rate * (time.monotonic() - began)) - self.tried
            for _ in range(min(self.count - len(self.clients), 100, self.opens - self.tried, due)):
                self._open()
            for number, events in self.poll.poll(0.05):
                self._ready(number, events)
            if time.monotonic() >= next_drip:
                next_drip += self.every_s
                for number in list(self.clients):
                    self._step(number)
        return self

    def _open(self):
        self.tried += 1
        source, client = self.sources[self.tried % len(self.sources)], socket.socket()
        try:
            client.setblocking(False)
            for option, size in self.buffers.items():
                if size:
                    client.setsockopt(socket.SOL_SOCKET, option, size)
            # As in `connect`.
            client.setsockopt(socket.IPPROTO_IP, 24, 1)
            client.bind((source, 0))
            code = client.connect_ex(self.address)
        except OSError as error:
            code = error.errno
        if code not in (0, errno.EINPROGRESS):
            self.failed += 1
            client.close()
            return
        self.clients[client.fileno()] = Client(client, self.opening(self.tried) if callable(self.opening) else self.opening)
        self.poll.register(client.fileno(), select.EPOLLRDHUP | select.EPOLLOUT)

    def _ready(self, number, events):
        client = self.clients[number]
        if not client.is_connected:
            if client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or not events & select.EPOLLOUT:
                self.failed += 1
                self._forget(number)
                return
            client.is_connected = True
            self.opened += 1
            self.now += 1
            self.most = max(self.most, self.now)
        if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            self._close(number)
        elif events & select.EPOLLOUT:
            self._send(number)

    def _send(self, number):
        client = self.clients[number]
        try:
            if client.left:
                sent = client.socket.send(client.left[:1 << 18])
                client.left = client.left[sent:]
                self.sent += sent
            if not client.left and not client.is_whole:
                client.is_whole = True
                self.whole += 1
            if not client.left and self.flood:
                client.left = memoryview(self.flood)
            self.poll.modify(number, select.EPOLLRDHUP | (select.EPOLLOUT if client.left else 0))
        except BlockingIOError:
            pass
        except OSError:
            self._close(number)

    def _step(self, number):
        client = self.clients[number]
        if not client.is_connected:
            return
        if self.read:
            try:
                if not client.socket.recv(self.read):
                    self._close(number)
                    return
            except BlockingIOError:
                pass
            except OSError:
                self._close(number)
                return
        if self.drip and not client.left:
            client.left = memoryview(self.drip)
            self.drips += 1
            self._send(number)

    def _close(self, number):
        client = self._forget(number)
        self.now -= 1
        self.closed += 1
        # What it was told at the end.
        try:
            found = re.search(rb"HTTP/1\.1 (\d+)", client.recv(200))
            if found:
                self.statuses[int(found[1])] = self.statuses.get(int(found[1]), 0) + 1
        except OSError:
            pass
        client.close()

    def _forget(self, number):
        client = self.clients.pop(number).socket
        self.poll.unregister(number)
        return client

    def leave(self):
        for client in self.clients.values():
            client.socket.close()
        self.clients.clear()
        self.poll.close()
        Crowd.present.remove(self)
        return self.told()

    def told(self):
        told = ", ".join(f"{count}x {status}" for status, count in sorted(self.statuses.items()))
        return (f"{self.opened} connections, {self.most} at once, {self.closed} closed by the agent"
                + (f", {self.failed} connects failed" if self.failed else "") + (f", told {told}" if told else ""))


@dataclasses.dataclass
class Outcome:
    name: str
    note: str
    before: Sample
    most: Sample
    after: Sample
    back_s: float
    probe: dict
    faults: list

    def row(self):
        mib = lambda kib: f"{kib / 1024:.1f}"
        back = f"{self.back_s:.1f}" if self.back_s is not None else f"> {RECOVERY_S}"
        return (f"| {self.name} | {self.note} | {mib(self.before.rss_kib)} / {mib(self.most.hwm_kib)} / "
                f"{mib(self.after.rss_kib)} | {self.before.threads} / {self.most.threads} / {self.after.threads} | "
                f"{self.before.fds} / {self.most.fds} / {self.after.fds} | {back} | {self.probe['count']} | "
                f"{self.probe['p99_ms']:.0f} | {self.probe['max_ms']:.0f} | {self.probe['late']} | {self.probe['failed']} | "
                f"{'held' if not self.faults else '; '.join(self.faults)} |")


def header():
    after = f"{AFTER_S:g} s after" if AFTER_S else "when back"
    return (f"| attack | what was done | MiB before / peak / {after} | threads before / most / {after} | "
            f"descriptors before / most / {after} | back after s | probes during it | 99 % within ms | slowest ms | "
            f"over {PROBE_LATE_MS} ms or not asked in time | not 200 | verdict |\n" + "|---" * 12 + "|")


def attack(name, run, flags=(), wrapper=(), headers=(), probe_source="127.0.0.1", prepare=None, probe_must_hold=True):
    """One attack on an agent of its own, start to recovery. `run(agent)` does it and tells what it did; whatever it holds
    is closed when it returns. An AssertionError or Malformed in it is a fault: of the agent, or, as NoAttack, of the row."""
    with Agent(*flags, wrapper=wrapper, headers=headers) as agent:
        if prepare:
            prepare(agent)
        agent.counted = agent.metrics()
        before = settled(agent)
        fds = before.fds - agent.prepared()
        agent.watch, probe, faults, note = Watch(agent), Probe(agent.address, probe_source), [], ""
        try:
            note = run(agent)
        except (AssertionError, Malformed) as error:
            faults.append(str(error).replace("\n", " ").replace("|", "\\|")[:300])
        # Where it was not as it should be.
        while Crowd.present:
            Crowd.present[-1].leave()
        probe.attack_ends()
        ended = time.monotonic()
        back_s = recovered(agent, before.threads, fds)
        seen, most = probe.stop(), agent.watch.stop()
        if TIMED:
            time.sleep(max(0.0, ended + AFTER_S - time.monotonic()))
        after = agent.sample()
        faults += agent.faults()
        if most.hwm_kib > HWM_MAX_KIB:
            faults.append(f"{most.hwm_kib / 1024:.1f} MiB")
        if back_s is None:
            faults.append("threads or descriptors did not come back")
        elif TIMED and AFTER_S and not is_back(agent, after, before.threads, fds):
            faults.append("threads or descriptors were back, but not for long")
        if probe_must_hold and seen["failed"]:
            faults.append(f"probe: {seen['failed']} failed, e.g. {seen['failures'][:3]}")
        if probe_must_hold and TIMED and seen["late"] > LATE_PERCENT / 100 * seen["count"]:
            faults.append(f"probe: {seen['late']} of {seen['count']} over {PROBE_LATE_MS} ms")
        if not seen["count"]:
            faults.append("nothing was probed")
        return Outcome(name, note or "", before, most, after, back_s, seen, faults)


def settled(agent):
    """The least of a short while: starting up still holds what soon is gone."""
    samples = []
    for _ in range(20):
        samples.append(agent.sample())
        time.sleep(0.02)
    return Sample(samples[-1].rss_kib, samples[-1].hwm_kib, min(s.threads for s in samples), min(s.fds for s in samples))


def is_back(agent, now, threads, fds):
    return 0 < now.threads <= threads and (now.fds <= fds or now.fds - agent.prepared() <= fds)


def recovered(agent, threads, fds, patience_s=RECOVERY_S):
    """Seconds until threads and descriptors are where they were, between two probes; None where they never were."""
    began = time.monotonic()
    while True:
        now, passed = agent.sample(), time.monotonic() - began
        if is_back(agent, now, threads, fds):
            return passed
        if passed > patience_s or not agent.alive():
            return None
        time.sleep(0.01)
