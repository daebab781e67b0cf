#!/usr/bin/env python3
"""`probe.py HOST:PORT SOURCE`: GET /healthz every 50 ms, each on a new connection, until a line comes on standard input;
then tells as JSON how many were answered, how late, and which were not."""
import json
import os
import select
import socket
import sys
import time

EVERY_S = 0.05
LATE_MS = 100
TIMEOUT_S = 10


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    source = sys.argv[2]
    # What is measured is how late the agent is, not how late this process gets to run on a loaded machine.
    try:
        os.nice(-10)
    except OSError:
        pass
    count = late = failed = 0
    slowest, failures = 0.0, []
    next_at = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, next_at - time.monotonic()))[0]:
        began = time.monotonic()
        fault = ask((host, int(port)), source)
        took_ms = (time.monotonic() - began) * 1000
        count += 1
        slowest = max(slowest, took_ms)
        late += took_ms > LATE_MS
        if fault:
            failed += 1
            failures.append(fault)
        next_at = max(next_at + EVERY_S, time.monotonic())
    print(json.dumps({"count": count, "max_ms": slowest, "late": late, "failed": failed, "failures": failures[:20]}))


def ask(address, source):
    try:
        client = socket.socket()
        with client:
            client.settimeout(TIMEOUT_S)
            client.bind((source, 0))
            client.connect(address)
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := client.recv(4096):
                answer += piece
        if answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"{\"ok\":true}"):
            return None
        return answer[:100].decode(errors="replace").split("\r\n")[0] or "closed without an answer"
    except OSError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
