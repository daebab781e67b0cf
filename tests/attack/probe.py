#!/usr/bin/env python3
"""`probe.py HOST:PORT SOURCE`: GET /healthz every 50 ms by the clock, each on a new connection and none waiting for another,
until the end of standard input; a line before that ends the attack. Tells as JSON how many there were until then, how late,
and, to the end, which were not answered 200.

Each is measured from when it was due, so that a stall counts for every beat within it."""
import errno
import json
import os
import selectors
import socket
import sys
import time

EVERY_S = 0.05
LATE_MS = 100
TIMEOUT_S = 10
ASK = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


class Beat:
    def __init__(self, due):
        self.due, self.is_sent, self.answer, self.fault, self.took_ms = due, False, b"", None, None

    def end(self, fault=None):
        self.took_ms = (time.monotonic() - self.due) * 1000
        self.fault = fault


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    address, source = (host, int(port)), sys.argv[2]
    # What is measured is how late the agent is, not how late this process gets to run on a loaded machine.
    try:
        os.nice(-10)
    except OSError:
        pass
    poll = selectors.DefaultSelector()
    poll.register(sys.stdin.fileno(), selectors.EVENT_READ)
    beats, next_at, window_end, is_asking = [], time.monotonic(), None, True
    while is_asking or len(poll.get_map()) > 0:
        while is_asking and next_at <= time.monotonic():
            beats.append(Beat(next_at))
            begin(poll, beats[-1], address, source)
            next_at += EVERY_S
        wait = max(0.0, next_at - time.monotonic()) if is_asking else EVERY_S
        for key, _ in poll.select(wait):
            if key.data:
                go_on(poll, key.fileobj, key.data)
                continue
            window_end = window_end or time.monotonic()
            if not os.read(sys.stdin.fileno(), 100):
                poll.unregister(key.fileobj)
                is_asking = False
        for key in list(poll.get_map().values()):
            if key.data and time.monotonic() - key.data.due > TIMEOUT_S:
                finish(poll, key.fileobj, key.data, f"no answer in {TIMEOUT_S} s")
    during = sorted(beat.took_ms for beat in beats if beat.due < window_end)
    failures = [beat.fault for beat in beats if beat.fault]
    print(json.dumps({"count": len(during), "max_ms": max(during, default=0.0), "late": sum(ms > LATE_MS for ms in during),
                      "p99_ms": during[min(len(during) - 1, len(during) * 99 // 100)] if during else 0.0,
                      "failed": len(failures), "failures": failures[:20]}))


def begin(poll, beat, address, source):
    client = socket.socket()
    client.setblocking(False)
    try:
        client.bind((source, 0))
        code = client.connect_ex(address)
    except OSError as error:
        code = error.errno
    if code in (0, errno.EINPROGRESS):
        poll.register(client, selectors.EVENT_WRITE, beat)
    else:
        client.close()
        beat.end(os.strerror(code))


def go_on(poll, client, beat):
    try:
        if not beat.is_sent:
            client.send(ASK)
            beat.is_sent = True
            poll.modify(client, selectors.EVENT_READ, beat)
            return
        piece = client.recv(4096)
        beat.answer += piece
        if piece:
            return
        is_right = beat.answer.startswith(b"HTTP/1.1 200 ") and beat.answer.endswith(b"{\"ok\":true}")
        said = beat.answer[:100].decode(errors="replace").split("\r\n")[0] or "closed without an answer"
        finish(poll, client, beat, None if is_right else said)
    except BlockingIOError:
        pass
    except OSError as error:
        finish(poll, client, beat, f"{type(error).__name__}: {error}")


def finish(poll, client, beat, fault):
    poll.unregister(client)
    client.close()
    beat.end(fault)


if __name__ == "__main__":
    main()
