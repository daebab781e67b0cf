#!/usr/bin/env python3
"""Starts an agent on ledgers of many ended jobs and prints what that costs: scale.py GENERATOR AGENT DIR JOBS…"""

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

STARTS = 3
REQUESTS = 21
PATIENCE_S = 120


def main():
    generator, agent, directory, *sizes = sys.argv[1:]
    print("| jobs | ledger MB | verify s | MB/s | start s | memory MB | list of 100 ms | filtered ms | trace ms | job ms |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for jobs in map(int, sizes):
        data = os.path.join(directory, f"jobs-{jobs}")
        shutil.rmtree(data, ignore_errors=True)
        try:
            subprocess.run([generator, data, str(jobs)], check=True, stdout=subprocess.DEVNULL)
            print(row(agent, data, jobs), flush=True)
        finally:
            shutil.rmtree(data, ignore_errors=True)


def row(agent, data, jobs):
    megabytes = events_bytes(data) / 1e6
    verify = statistics.median(timed(lambda: verify_once(agent, data)) for _ in range(STARTS))
    starts = [start_once(agent, data, jobs) for _ in range(STARTS)]
    start, memory, listed, filtered, trace, job = (statistics.median(column) for column in zip(*starts))
    return (
        f"| {jobs:,} | {megabytes:,.0f} | {verify:.2f} | {megabytes / verify:,.0f} | {start:.2f} | {memory:,.0f} "
        f"| {listed:.2f} | {filtered:.2f} | {trace:.2f} | {job:.2f} |"
    )


def events_bytes(data):
    """Bytes of the log up to its last frame; what is prepared and unused behind it does not count."""
    wal = os.path.join(data, "wal")
    segments = sorted(name for name in os.listdir(wal) if re.fullmatch(r"wal-[0-9a-f]{16}\.log", name))
    total = sum(os.path.getsize(os.path.join(wal, name)) for name in segments[:-1])
    with open(os.path.join(wal, segments[-1]), "rb") as last:
        content = last.read()
    return total + len(content.rstrip(b"\0"))


def timed(action):
    began = time.monotonic()
    action()
    return time.monotonic() - began


def verify_once(agent, data):
    subprocess.run([agent, "verify", "--data", data], check=True, stdout=subprocess.DEVNULL)


def start_once(agent, data, jobs):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [agent, "serve", "--data", data, "--listen", f"127.0.0.1:{port}", "--mount-root", "/tmp"]
    began = time.monotonic()
    # No engine: it would be asked for its version before the agent is ready.
    environment = {**os.environ, "DOCKER_HOST": "unix:///nonexistent.sock", "RUST_LOG": "error"}
    process = subprocess.Popen(command, env=environment)
    try:
        while not answers(port, "/readyz"):
            if process.poll() is not None or time.monotonic() - began > PATIENCE_S:
                raise SystemExit(f"the agent did not become ready on {data}")
            time.sleep(0.005)
        ready = time.monotonic() - began
        with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
            memory = int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024
        middle = f"/api/jobs/job_{jobs // 2:07}"
        paths = ["/api/jobs?limit=100", "/api/jobs?limit=100&phase=active", f"{middle}/trace", middle]
        return [ready, memory, *(median_ms(port, path) for path in paths)]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def answers(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            answer.read()
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def median_ms(port, path):
    samples = []
    for _ in range(REQUESTS):
        began = time.monotonic()
        if not answers(port, path):
            raise SystemExit(f"{path} was not answered")
        samples.append((time.monotonic() - began) * 1e3)
    return statistics.median(samples)


if __name__ == "__main__":
    main()
