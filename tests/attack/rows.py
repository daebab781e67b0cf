"""The attacks. `ROWS` in order: name to a function that gives an Outcome; `small` shrinks one for the test suite."""
import json
import os
import pathlib
import random
import re
import resource
import select
import shutil
import subprocess
import time

import harness
import mutate
import subscribers
from harness import (Crowd, answers, attack, check_answers, connect, eventually, exchange, get, post, read_all,
                     request, require, reset)

ONE = ["127.0.0.2"]
FOUR = [f"127.0.0.{n}" for n in range(2, 6)]
MANY = [f"127.0.{a}.{b}" for a in range(1, 9) for b in range(1, 251)]
SECONDS = 12
HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /api/submit_job HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
# The agent's caps: connections in all, and of one address.
MOST, MOST_EACH = 1024, 256
EVICTED = "hackbrain_http_connections_evicted_total"
ACCEPTED = "hackbrain_http_connections_total"
REQUESTS = "hackbrain_http_requests_total"
CUT = "hackbrain_http_responses_cut_total"
REFUSED = 'hackbrain_http_connections_refused_total{cause="%s"}'
EVENTS = b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
READ_PATHS = ["/api/jobs?limit=1000", "/api/ledger?limit=100000", "/api/events?after=0", "/api/graph"]
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def manifest(job_id, **more):
    return {"job_id": job_id, "image_hash": "none", "command": ["true"], **more}


def submit_many(address, prefix, count):
    for begin in range(0, count, 1000):
        jobs = [manifest(f"{prefix}-{n}") for n in range(begin, min(begin + 1000, count))]
        status, _, body = post(address, "/api/submit_jobs", json.dumps({"jobs": jobs}).encode())
        assert status == 200, (status, body[:300])


def with_jobs(prefix, count):
    """A ledger with something in it, all of which was asked for once: files that stay open are open before."""
    def prepare(agent):
        submit_many(agent.address, prefix, count)
        for path in READ_PATHS:
            exchange(agent.address, request("GET", path))
    return prepare


def was_there(agent, attackers, gives_way=True, most=MOST, most_each=MOST_EACH):
    """Sees to it that as many were connected at once as there may be, and that the rest made others give way or, where those
    are served (`gives_way` is false), was refused."""
    require(not attackers.failed, attackers.told())
    require(attackers.opened >= attackers.count, attackers.told())
    shares = [len(range(n, attackers.count, len(attackers.sources))) for n in range(len(attackers.sources))]
    held = min(most, sum(min(share, most_each) for share in shares))
    over = attackers.count - held
    if over:
        what = [EVICTED] if gives_way else [EVICTED, REFUSED % "address", REFUSED % "full"]
        gained = sum(agent.gained(name) for name in what)
        require(gained >= over, f"{over} more than there may be, but {gained} made room or were refused")
    # One thread each; the watch looks only so often.
    seen = agent.watch.most.threads
    require(seen >= 0.9 * held, f"{held} should have been connected at once, with {seen} threads")
    require(attackers.whole >= held, f"{attackers.whole} of {held} sent what they had to send")
    if attackers.drip:
        require(attackers.drips >= held, f"{attackers.drips} drips of {held} connections")


def crowd(name, sources, count, opening, seconds=SECONDS, prepare=None, probe_source="127.0.0.1", gives_way=True, **more):
    def run(agent):
        attackers = Crowd(agent.address, sources, count, opening, **more).run(seconds)
        was_there(agent, attackers, gives_way)
        return f"{count} wanted, {len(sources)} address(es), {seconds} s: {attackers.leave()}"
    return attack(name, run, prepare=prepare, probe_source=probe_source)


def idle_one(name, small):
    return crowd(name, ONE, 300 if small else 2000, b"", 1.5 if small else SECONDS)


def idle_many(name, small):
    return crowd(name, MANY, 300 if small else 2000, b"", 1.5 if small else SECONDS)


def kept_many(name, small):
    """Idle after an answer, which is another state than never having asked."""
    return crowd(name, MANY, 300 if small else 2000, HEAD + b"\r\n", 1.5 if small else SECONDS)


def slow_headers(sources):
    def row(name, small):
        return crowd(name, sources, 300 if small else 800, HEAD, 1.5 if small else SECONDS, drip=b"X: y\r\n", every_s=0.5)
    return row


def full_heads(name, small):
    """Each has sent as much of a head as there may be, all but its end."""
    opening = HEAD + b"X: " + b"x" * (16 * 1024 - len(HEAD) - 4)
    return crowd(name, MANY, 300 if small else 1100, opening, 1.5 if small else SECONDS)


def slow_bodies(sources):
    def row(name, small):
        opening = POST + b"Content-Length: 100000\r\n\r\n"
        return crowd(name, sources, 300 if small else 800, opening, 1.5 if small else SECONDS, drip=b" ", every_s=0.5)
    return row


def large_bodies(sources):
    """All of the largest body there may be but its last byte, from as many connections as get in. The kernel, which is not
    what is attacked, holds little of it."""
    def row(name, small):
        opening = POST + b"Content-Length: 1048576\r\n\r\n" + b" " * 1048575
        def run(agent):
            count, seconds = (300, 2) if small else (800, SECONDS)
            attackers = Crowd(agent.address, sources, count, opening, receive_buffer=4096, send_buffer=32 << 10).run(seconds)
            # Whole they cannot be: the agent takes few large bodies at a time.
            attackers.whole, whole = attackers.opened, attackers.whole
            was_there(agent, attackers)
            held = min(count, MOST_EACH * len(sources))
            least = held * (8 << 10)
            require(whole and attackers.sent >= least, f"{whole} bodies, {attackers.sent} of at least {least} bytes taken")
            return (f"{count} bodies of 1 MiB wanted, {len(sources)} address(es), {seconds} s: {whole} sent but for the last "
                    f"byte, {attackers.sent >> 20} MiB in all; {attackers.leave()}")
        return attack(name, run)
    return row


def json_bombs(name, small):
    """Bodies of the largest size that are as costly as they can be once parsed, all at once."""
    bombs = [b'{"job_id":[' + b"0," * 524000 + b"0]}", b'{"env":{' + b",".join(b'"%x":0' % n for n in range(95000)) + b"}}",
             b'{"jobs":[' + b"{}," * 349000 + b"{}]}", b"[" * 1048000]
    def run(agent):
        attackers, cut = [], 0
        for n in range(24 if small else 240):
            body = bombs[n % len(bombs)]
            path = b"/api/submit_jobs" if n % 8 == 2 else b"/api/submit_job"
            head = (b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
            client = connect(agent.address, FOUR[n % 4], timeout=30)
            try:
                client.sendall(head + body[:-1])
                attackers.append((client, body[-1:]))
            except OSError:
                cut += 1
                client.close()
        for client, last in attackers:
            try:
                client.sendall(last)
            except OSError:
                pass
        told = {}
        for client, _ in attackers:
            with client:
                for status in check_answers(read_all(client)):
                    told[status] = told.get(status, 0) + 1
        require(told.get(400, 0) >= len(bombs), f"{told.get(400, 0)} bodies were parsed and refused")
        return f"{len(attackers)} bodies of 1 MiB ended at once, {cut} closed by the agent before, told {told}"
    return attack(name, run)


def slow_reads(sources):
    """Large answers that are hardly read: pages of jobs, the ledger, the stream."""
    def row(name, small):
        def run(agent):
            count, seconds = (200, 2) if small else (800, SECONDS)
            attackers = Crowd(agent.address, sources, count, lambda n: request("GET", READ_PATHS[n % len(READ_PATHS)]) * 3,
                              read=16, every_s=0.5, receive_buffer=2048).run(seconds)
            was_there(agent, attackers, gives_way=False)
            open_now = int(agent.metrics()["hackbrain_http_connections"])
            note = attackers.leave()
            held = min(count, MOST_EACH * len(sources))
            # A quarter each; an answer that fits what the kernel takes keeps nobody busy, the stream always does.
            cut = eventually("answers were under way", lambda: (n := agent.gained(CUT)) >= held // 4 and n)
            return (f"{count} wanted, {len(sources)} address(es), {seconds} s: {note}; {open_now} open at the end, {cut} "
                    f"answers under way as they left")
        return attack(name, run, prepare=with_jobs("read", 1000 if small else 4000))
    return row


def huge_header(name, small):
    def run(agent):
        wanted, sent, told = (20 if small else 300) << 20, 0, {}
        piece, end, connections = b"x" * (1 << 20), time.monotonic() + 30, 0
        while sent < wanted and time.monotonic() < end:
            connections += 1
            with connect(agent.address, ONE[0]) as client:
                try:
                    client.sendall(HEAD + b"X: ")
                    while sent < wanted:
                        client.sendall(piece)
                        sent += len(piece)
                except OSError:
                    pass
                for status in check_answers(read_all(client)):
                    told[status] = told.get(status, 0) + 1
        assert told == {431: connections}, f"{connections} connections with too long a head were told {told}"
        require(sent >= wanted, f"{sent >> 20} of {wanted >> 20} MiB sent")
        return f"{sent >> 20} MiB of one header over {connections} connections, told {told}"
    return attack(name, run)


def pipelining(name, small):
    """Requests without end whose answers nobody reads, and beside them some who read theirs."""
    asks = [request("GET", path) for path in ("/healthz", "/api/jobs/pipe-0", "/api/jobs/pipe-1")]
    def run(agent):
        count, seconds, rounds = (20, 2, 2) if small else (60, SECONDS, 20)
        asked = agent.metrics()[REQUESTS]
        deaf = Crowd(agent.address, ["127.0.0.2"], count, b"".join(asks), flood=b"".join(asks) * 100, receive_buffer=2048)
        deaf.run(seconds / 2)
        answered = [read_pipelined(agent.address, asks, 100) for _ in range(rounds)]
        deaf.run(seconds / 2)
        require(not deaf.failed and deaf.most == count, deaf.told())
        served = int(agent.metrics()[REQUESTS] - asked)
        require(served > sum(answered) + count * 10, f"{served} requests taken of {count} connections")
        return (f"{count} never read, {deaf.sent >> 20} MiB of requests sent, {served} taken: {deaf.leave()}; beside them "
                f"{rounds} connections that each got {min(answered)} answers to as many requests sent at once, in order")
    return attack(name, run, prepare=with_jobs("pipe", 2))


def read_pipelined(address, asks, times):
    """Sends all in one piece; tells how many answers came on that one connection, each the one that was due."""
    with connect(address, "127.0.0.3", timeout=harness.PATIENCE_S) as client:
        client.sendall(b"".join(asks) * times)
        buffer = b""
        for n in range(times * len(asks)):
            status, body, buffer, closes = read_one(client, buffer)
            due = [b"{\"ok\":true}", b"\"pipe-0\"", b"\"pipe-1\""][n % len(asks)]
            assert status == 200 and due in body and not closes, f"answer {n}: {status} {body[:200]!r}"
    return times * len(asks)


BAD_LENGTHS = [
    (b"Content-Length: 1152921504606846976", b"", 413), (b"Content-Length: 18446744073709551615", b"x", 413),
    (b"Content-Length: 18446744073709551616", b"x", 413), (b"Content-Length: " + b"9" * 4000, b"x", 413),
    (b"Content-Length: 1048577", b"x", 413), (b"Content-Length: -5", b"x" * 5, 400), (b"Content-Length: +5", b"x" * 5, 400),
    (b"Content-Length: 5, 5", b"x" * 5, 400), (b"Content-Length: 5,6", b"x" * 5, 400), (b"Content-Length: 0x5", b"x" * 5, 400),
    (b"Content-Length: 5 5", b"x" * 5, 400), (b"Content-Length:", b"x" * 5, 400), (b"Content-Length: five", b"x" * 5, 400),
    (b"Content-Length: 5\r\nContent-Length: 6", b"x" * 6, 400), (b"Content-Length: 5\r\ncontent-length: 0", b"x" * 5, 400),
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n", 400),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n", 400), (b"Content-Length : 5", b"x" * 5, 400),
    (b"Content-Length: 5\r\n Content-Length: 6", b"x" * 5, 400), (b"Content-Length\x00: 5", b"x" * 5, 400),
    (b"Content-Length: \x0b5", b"x" * 5, 400), (b"Content-Length: 5\x00", b"x" * 5, 400), (b"X: y", b"x" * 5, 411),
    (b"Transfer-Encoding: chunked, chunked", b"0\r\n\r\n", 501), (b"Transfer-Encoding: gzip, chunked", b"0\r\n\r\n", 501),
    (b"Transfer-Encoding: identity", b"0\r\n\r\n", 501), (b"Transfer-Encoding: xchunked", b"0\r\n\r\n", 501),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n", 501),
    (b"Transfer-Encoding: \x0bchunked", b"0\r\n\r\n", 400), (b"Transfer-Encoding:\x00chunked", b"0\r\n\r\n", 400),
    (b"Transfer-Encoding : chunked", b"0\r\n\r\n", 400), (b"Transfer-Encoding:\n chunked", b"0\r\n\r\n", 400),
]
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def refused_alone(agent, data, expected, source):
    """One answer of that status and the end: what follows in the same bytes is never taken for a request."""
    told = check_answers(exchange(agent.address, data, source))
    assert told == [expected], f"{data[-200:]!r}: {told}, not [{expected}]"


def lengths(name, small):
    def run(agent):
        count = 0
        for turn in range(2 if small else 40):
            for field, body, status in BAD_LENGTHS:
                refused_alone(agent, POST + field + b"\r\n\r\n" + body + SMUGGLED, status, MANY[turn])
                count += 1
        return f"{count} requests, each answered once and closed"
    return attack(name, run)


BAD_CHUNKS = [
    (b"3\r\nabcd\r\n0\r\n\r\n", 400), (b"3\r\nab\r\n0\r\n\r\n", 400), (b"3\nabc\n0\n\n", 400), (b"0x3\r\nabc\r\n0\r\n\r\n", 400),
    (b"-1\r\n", 400), (b"+3\r\nabc\r\n0\r\n\r\n", 400), (b" 3\r\nabc\r\n0\r\n\r\n", 400), (b"3 \r\nabc\r\n0\r\n\r\n", 400),
    (b"ffffffffffffffff\r\n", 413), (b"ffffffffffffffff1\r\n", 413), (b"10000000000000003\r\nabc\r\n0\r\n\r\n", 413),
    (b"100001\r\n", 413), (b"3;" + b"x" * 100_000, 400), (b"0" * 100_000, 400), (b"3\r\nabc\r\n0\r\n" + b"T: u\r\n" * 20_000, 400),
    (b"0\r\nT: " + b"u" * 100_000, 400), (b"0\r\n: u\r\n\r\n", 400), (b"0\r\nT\r\n\r\n", 400), (b"3\r\nabc\r\r\n0\r\n\r\n", 400),
    (b"3\rabc\r0\r\r", 400), (b"\r\n3\r\nabc\r\n0\r\n\r\n", 400), (b"3;a=\x00\r\nabc\r\n0\r\n\r\n", 400),
]


def chunks(name, small):
    def run(agent):
        count = 0
        for turn in range(2 if small else 20):
            for body, status in BAD_CHUNKS:
                refused_alone(agent, CHUNKED + body + SMUGGLED, status, MANY[turn])
                count += 1
        # A body of the largest size in chunks of one byte, sound: taken, and refused as a manifest alone.
        body = b"1\r\n \r\n" * ((64 << 10) if small else (1 << 20)) + b"0\r\nT: u\r\n\r\n"
        for turn in range(1 if small else 8):
            told = check_answers(exchange(agent.address, CHUNKED + body + SMUGGLED, MANY[turn]))
            assert told == [400, 404], told
        # Endless ones, all at once.
        endless = [b"3;" + b"x" * 8, b"0\r\n" + b"T: u\r\n", b"0" * 8, b"1\r\n \r\n"]
        attackers = Crowd(agent.address, FOUR, 40 if small else 200, lambda n: CHUNKED + endless[n % 4], drip=b"1\r\n \r\n" * 20,
                          every_s=0.1).run(1 if small else 8)
        require(not attackers.failed and attackers.drips >= attackers.count, attackers.told())
        return f"{count} malformed, each refused alone; 1 MiB in 1-byte chunks; endless: {attackers.leave()}"
    return attack(name, run)


def truncated(name, small):
    whole = request("POST", "/api/submit_job", [("Content-Type", "application/json")], json.dumps(manifest("cut")).encode())
    chunked = CHUNKED + b"5\r\n{\"job\r\n5\r\n_id\":\r\n0\r\n\r\n"
    def run(agent):
        count = 0
        for turn in range(1 if small else 8):
            for data in (whole, chunked):
                for end in range(len(data)):
                    told = check_answers(exchange(agent.address, data[:end], MANY[count % len(MANY)]))
                    # A request that is not whole is no request.
                    assert not told, f"{data[:end]!r}: {told}"
                    count += 1
        assert json.loads(get(agent.address, "/api/jobs")[2])["jobs"] == [], "a cut request was taken for a whole one"
        return f"{count} requests ended early at every offset; none was taken"
    return attack(name, run)


def resets(name, small):
    asks = request("GET", "/api/jobs?limit=10", [("Accept", "*/*")])
    submits = request("POST", "/api/submit_job", [("Content-Type", "application/json")], json.dumps(manifest("r")).encode())
    def run(agent):
        count = 0
        for turn in range(1 if small else 12):
            for data in (asks, submits):
                for end in range(len(data) + 1):
                    client = connect(agent.address, MANY[count % len(MANY)])
                    client.sendall(data[:end])
                    if turn % 2:
                        time.sleep(0.0005)
                    reset(client)
                    count += 1
        taken = agent.gained(ACCEPTED)
        require(taken >= count, f"{taken} of {count} connections were accepted")
        return f"{count} connections reset at every offset"
    return attack(name, run)


def strangers(name, small):
    rng = random.Random(7)
    hello = bytes.fromhex("16030100f1010000ed0303") + bytes(range(32)) + bytes(200)
    greetings = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00", hello, b"\x80\x2e\x01\x00\x02", b"\x00" * 512,
                 b"SSH-2.0-OpenSSH_9.2\r\n", b"EHLO a\r\n", b"*1\r\n$4\r\nPING\r\n", b"\xff" * 4096, b"\r\n" * 4096, b"\n" * 4096,
                 b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", b" " * 4096, b"A" * 100_000,
                 b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
                 b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"]
    def run(agent):
        told, count = {}, 0
        for turn in range(60 if small else 3000):
            data = greetings[turn] if turn < len(greetings) else rng.randbytes(rng.choice([1, 7, 100, 3000, 20_000]))
            for status in check_answers(exchange(agent.address, data, MANY[turn % len(MANY)])) or [0]:
                told[status] = told.get(status, 0) + 1
            count += 1
        return f"{count} greetings of other protocols and random bytes, told {told} (0: closed without a word)"
    return attack(name, run)


def descriptors(name, small):
    """The caps follow from the limit: half of it for connections, half of those for one address."""
    wrapper = ["prlimit", "--nofile=256:256"]
    def run(agent):
        idle = Crowd(agent.address, FOUR, 400, b"").run(1 if small else 8)
        # In the midst of it, something that needs files of its own is still done.
        submit_many(agent.address, "fd", 10)
        was_there(agent, idle, most=128, most_each=64)
        note, evicted = idle.leave(), agent.gained(EVICTED)
        busy = Crowd(agent.address, ["127.0.0.7"], 300, POST + b"Content-Length: 10\r\n\r\n").run(1 if small else 8)
        submit_many(agent.address, "fd2", 10)
        also = agent.gained(EVICTED) - evicted
        require(not busy.failed and also >= 300 - 64, f"{also} evicted; {busy.told()}")
        return (f"limit of 256, at most {agent.watch.most.fds} open; 400 idle: {note}, {evicted} evicted; 300 "
                f"with half a body: {busy.leave()}, {also} evicted")
    return attack(name, run, wrapper=wrapper, prepare=with_jobs("before", 10))


def descriptors_none(name, small):
    """Below what is open already, no connection can be accepted. Those that are in are served, and all are again afterwards."""
    def run(agent):
        idle = Crowd(agent.address, FOUR, 100, b"").run(1)
        require(idle.most == 100, idle.told())
        kept, buffer = connect(agent.address, "127.0.0.9", timeout=harness.PATIENCE_S), b""
        with kept:
            def ask(buffer):
                kept.sendall(request("GET", "/healthz"))
                status, _, buffer, _ = read_one(kept, buffer)
                assert status == 200, f"told {status} on a connection that was there before"
                return buffer
            buffer = ask(buffer)
            _, hard = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (8, hard))
            try:
                waiting = [connect(agent.address, MANY[n]) for n in range(20)]
                until = time.monotonic() + (1 if small else 8)
                while time.monotonic() < until:
                    buffer = ask(buffer)
                    time.sleep(0.05)
                got = [client for client in waiting if select.select([client], [], [], 0)[0]]
                require(not got, f"{len(got)} connections were taken while there were no descriptors")
            finally:
                resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (hard, hard))
        for client in waiting:
            with client:
                client.settimeout(harness.PATIENCE_S)
                client.sendall(request("GET", "/healthz", [("Connection", "close")]))
                assert one_status(read_all(client)) == 200, "who waited for descriptors is not served afterwards"
        failed = agent.gained("hackbrain_http_accept_errors_total")
        require(failed, "no accept failed")
        return f"limit set to 8 with 100 idle: {failed} accepts failed, one kept connection was served; {idle.leave()}"
    return attack(name, run, prepare=with_jobs("before", 10), probe_must_hold=False)


def one_status(answer):
    return ([status for status, _, _ in answers(answer, False)] or [0])[0]


class PidsGroup:
    """A control group that caps the agent's threads; gone afterwards. cgroup v1 or v2."""

    def __init__(self):
        base = pathlib.Path("/sys/fs/cgroup/pids")
        self.path = (base if base.is_dir() else pathlib.Path("/sys/fs/cgroup")) / f"hackbrain-attack-{os.getpid()}"

    def __enter__(self):
        self.path.mkdir()
        return self

    def cap(self, agent, more):
        (self.path / "cgroup.procs").write_text(str(agent.pid))
        (self.path / "pids.max").write_text(str(agent.sample().threads + more))

    def __exit__(self, *_):
        eventually("the control group is empty", lambda: not (self.path / "cgroup.procs").read_text().strip())
        self.path.rmdir()


def threads(name, small):
    def run(agent):
        # Below every cap: who gives way does so because a thread could not be started.
        # Not so fast that they fill the queue of those who wait to be accepted, which is another attack.
        idle = Crowd(agent.address, FOUR, 200, b"", rate=150).run(1 if small else 8)
        evicted = agent.gained(EVICTED)
        require(not idle.failed and evicted >= 100, f"{evicted} evicted; {idle.told()}")
        told = idle.leave()
        slow = Crowd(agent.address, FOUR, 200, HEAD, drip=b"X: y\r\n", every_s=0.3, rate=150).run(1 if small else 8)
        also = agent.gained(EVICTED) - evicted
        require(not slow.failed and slow.drips and also >= 100, f"{also} evicted; {slow.told()}")
        return (f"30 threads more than it has, no other; 200 idle: {told}, {evicted} evicted; 200 slow heads: {slow.leave()}, "
                f"{also} evicted")
    with PidsGroup() as group:
        return attack(name, run, prepare=lambda agent: group.cap(agent, 30))


def threads_busy(name, small):
    """Where every thread there may be is answering, the rest is told 503, and nothing ends."""
    def run(agent):
        before = agent.sample().threads
        # A stream is never cut for a newcomer.
        busy, more = Crowd(agent.address, FOUR, 200, EVENTS, opens=2000).run(1 if small else 8), []
        def newcomer_refused():
            # A thread of the agent's own may just have ended, and made room for one more.
            more.append(connect(agent.address, "127.0.0.6"))
            more[-1].sendall(EVENTS)
            return one_status(exchange(agent.address, request("GET", "/healthz", [("Connection", "close")]))) == 503
        eventually("all threads are taken, and a newcomer is told 503", newcomer_refused, patience_s=5)
        note = busy.leave()
        for client in more:
            client.close()
        # Those of the crowd that still waited to be accepted are before this one, and take the threads once more.
        eventually("it serves again", lambda: get(agent.address, "/healthz")[0] == 200)
        eventually("their threads have ended", lambda: agent.sample().threads < before + 15)
        refused = agent.gained(REFUSED % "no_thread")
        require(refused >= 100, f"{refused} refused for want of a thread")
        return f"30 threads more than it has; 200 streams: {note}; {refused} refused, the probe's among them"
    with PidsGroup() as group:
        return attack(name, run, prepare=lambda agent: group.cap(agent, 30), probe_must_hold=False)


def event_stream(name, small):
    readers, silent, rate, seconds = (40, 10, 500, 3) if small else (400, 100, 1000, 12)
    return attack(name, lambda agent: subscribers.run(agent, readers, silent, rate, seconds),
                  prepare=with_jobs("before", 10))


def mutations(name, small):
    count = 5_000 if small else 100_000
    seed = int(os.environ.get("HACKBRAIN_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    return attack(name, lambda agent: mutate.run(agent.address, count, seed), prepare=with_jobs("before", 10))


def churn(name, small):
    def run(agent):
        count, began = (1000 if small else 20_000), time.monotonic()
        for n in range(count):
            client = connect(agent.address, MANY[n % len(MANY)])
            if n % 2:
                reset(client)
            else:
                client.close()
            if time.monotonic() - began > 30:
                break
        taken = agent.gained(ACCEPTED)
        require(n + 1 >= 1000 and taken >= n + 1, f"{taken} of {n + 1} connections were accepted")
        return f"{n + 1} connections opened and closed in {time.monotonic() - began:.1f} s"
    return attack(name, run)


def keep_asking(address, requests, expected, source):
    """Sends each request on a kept connection, or on a new one where it was closed; every answer must be `expected`."""
    client, buffer = None, b""
    for data in requests:
        for _ in range(2):
            if client is None:
                client, buffer = connect(address, source), b""
            try:
                client.sendall(data)
                status, _, buffer, closes = read_one(client, buffer)
                break
            except (ConnectionError, EOFError):
                client.close()
                client = None
        else:
            raise AssertionError(f"no answer to {data[:200]!r}")
        assert status in expected, f"{data[:300]!r} was told {status}"
        if closes:
            client.close()
            client = None
    if client:
        client.close()


def read_one(client, buffer):
    while True:
        end = buffer.find(b"\r\n\r\n")
        if end >= 0:
            head = buffer[:end + 4]
            length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(buffer) >= total:
                check_answers(buffer[:total])
                closes = b"\r\nConnection: close\r\n" in head
                return int(head.split(b" ")[1]), buffer[end + 4:total], buffer[total:], closes
        piece = client.recv(65536)
        if not piece:
            raise EOFError
        buffer += piece


def unauthorised(name, small):
    rng = random.Random(11)
    token = f"{rng.getrandbits(256):064x}"
    paths = ["/api/jobs", "/api/events", "/api/ledger", "/api/node", "/api/ledger/head", "/api/graph"]
    def one(n):
        kind = n % 5
        value = [f"Bearer {rng.getrandbits(256):064x}", f"Bearer {token[:-1]}", f"Basic {token}", f"Bearer {'x' * 8000}", "Bearer "][kind]
        headers = [("Authorization", value)]
        if n % 3 == 0:
            return request("POST", "/api/submit_job", [*headers, ("Content-Type", "application/json")],
                           json.dumps(manifest(f"u{n}")).encode())
        return request("GET", rng.choice(paths), headers if n % 7 else [])
    def run(agent):
        count = 1000 if small else 10_000
        keep_asking(agent.address, (one(n) for n in range(count)), {401}, "127.0.0.2")
        status, _, body = get(agent.address, "/api/jobs", [("Authorization", f"Bearer {token}")])
        assert status == 200 and json.loads(body)["jobs"] == [], (status, body[:200])
        return f"{count} requests without a right token, each told 401; none got in"
    path = pathlib.Path(f"/tmp/hackbrain-attack-token.{os.getpid()}")
    path.touch(mode=0o600)
    try:
        path.write_text(token + "\n")
        return attack(name, run, flags=("--token-file", str(path)), headers=[("Authorization", f"Bearer {token}")])
    finally:
        path.unlink()


def cross_site(name, small):
    body = json.dumps(manifest("csrf")).encode()
    shapes = [
        (403, "GET", "/api/jobs", [("Origin", "http://evil.example")], "127.0.0.1", None),
        (403, "POST", "/api/submit_job", [("Origin", "http://evil.example"), ("Content-Type", "application/json")], "127.0.0.1", body),
        (403, "POST", "/api/submit_job", [("Origin", "null"), ("Content-Type", "application/json")], "127.0.0.1", body),
        (403, "POST", "/api/submit_job", [("Content-Type", "application/json")], "evil.example", body),
        (403, "GET", "/api/events", [], "rebound.example:4005", None),
        (403, "OPTIONS", "/api/submit_job", [("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST")], "127.0.0.1", None),
        (415, "POST", "/api/submit_job", [("Content-Type", "text/plain")], "127.0.0.1", body),
        (415, "POST", "/api/submit_job", [("Content-Type", "application/x-www-form-urlencoded")], "127.0.0.1", body),
        (415, "POST", "/api/submit_job", [("Content-Type", "multipart/form-data; boundary=a")], "127.0.0.1", body),
        (415, "POST", "/api/submit_job", [], "127.0.0.1", body),
    ]
    def run(agent):
        count = 0
        for _ in range(20 if small else 1000):
            for status, method, path, headers, host, payload in shapes:
                keep_asking(agent.address, [request(method, path, headers, payload, host)], {status}, "127.0.0.2")
                count += 1
        assert json.loads(get(agent.address, "/api/jobs")[2])["jobs"] == [], "a foreign page submitted a job"
        return f"{count} requests as foreign pages send them, each told 403 or 415; no job came about"
    return attack(name, run)


def slowhttptest(*options):
    def row(name, _):
        tool = shutil.which("slowhttptest")
        assert tool, "slowhttptest is missing; install the Debian package of that name"
        def run(agent):
            url = f"http://{agent.address[0]}:{agent.address[1]}"
            path = "/api/jobs?limit=1000" if "-X" in options else "/api/submit_job" if "-B" in options else "/style.css"
            said = subprocess.run([tool, "-c", "800", "-r", "400", "-l", "30", "-p", "3", "-v", "1", *options, "-u", url + path],
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)
            text = re.sub(r"\x1b\[[0-9;]*m", "", said.stdout + said.stderr)
            ending = re.search(r"Exit status:\s*(.*)", text)
            ending = ending[1].strip() if ending else text[-200:].strip()
            require(said.returncode == 0 and ending in ("Hit test time limit", "No open connections left"),
                    f"slowhttptest ended with {said.returncode}: {ending}")
            taken = agent.gained(ACCEPTED)
            # Besides our own probes, which are from elsewhere.
            require(taken >= 800, f"{taken} connections were accepted")
            return (f"slowhttptest {' '.join(options)}, 800 connections, 30 s: {ending}; {taken} accepted, {agent.gained(EVICTED)} "
                    f"evicted, {agent.gained(REFUSED % 'address')} refused")
        # It attacks from 127.0.0.1, and what one address may is not what is probed.
        return attack(name, run, probe_source="127.0.0.9", prepare=with_jobs("slow", 1000))
    return row


ROWS = {
    "idle": idle_one,
    "idle-many": idle_many,
    "kept-many": kept_many,
    "slow-headers": slow_headers(ONE),
    "slow-headers-4": slow_headers(FOUR),
    "full-heads": full_heads,
    "slow-bodies": slow_bodies(ONE),
    "slow-bodies-4": slow_bodies(FOUR),
    "large-bodies": large_bodies(ONE),
    "large-bodies-4": large_bodies(FOUR),
    "json-bombs": json_bombs,
    "slow-reads": slow_reads(ONE),
    "slow-reads-4": slow_reads(FOUR),
    "header-300mb": huge_header,
    "pipelining": pipelining,
    "lengths": lengths,
    "chunks": chunks,
    "truncated": truncated,
    "resets": resets,
    "strangers": strangers,
    "descriptors": descriptors,
    "descriptors-none": descriptors_none,
    "threads": threads,
    "threads-busy": threads_busy,
    "event-stream": event_stream,
    "mutations": mutations,
    "churn": churn,
    "unauthorised": unauthorised,
    "cross-site": cross_site,
}
# Run only where asked for by name, or all by `slowhttptest`.
TOOL_ROWS = {
    "slowhttptest-headers": slowhttptest("-H", "-i", "2", "-x", "24"),
    "slowhttptest-body": slowhttptest("-B", "-i", "2", "-s", "8192", "-x", "10", "-f", "application/json"),
    "slowhttptest-range": slowhttptest("-R", "-t", "GET", "-a", "1", "-b", "3000"),
    "slowhttptest-read": slowhttptest("-X", "-w", "1", "-y", "512", "-n", "1", "-z", "32", "-k", "3"),
}


def run_row(name, small=False):
    """A small one is not judged by the clock."""
    harness.TIMED = not small
    return {**ROWS, **TOOL_ROWS}[name](name, small)
