#!/usr/bin/env python3
"""What running a job through an agent costs beside the same `docker run` lines: runner.py AGENT DIR [throughput|latency|queue|flood]…

The command line of the bare runs is the agent's own, read from a running CLI, with another name, directory and control group:
the flags are the same by construction. Slices of both take turns in one run, so that a noisy machine disturbs both.
"""

import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

from cli_line import cli_line

CORES = os.cpu_count() or 1
PATIENCE_S = 120
# 200 jobs in slices of 40, taking turns.
SLICES, SLICE = 5, 40
LATENCIES = 21
QUEUED = 10_000
SUBMISSIONS = 200
FLOOD_BYTES, FLOODS = 100_000_000, 7
FLOOD = (
    "import sys,time\n"
    "line=b'x'*99+b'\\n'\nbegan=time.time()\n"
    f"for _ in range({FLOOD_BYTES // 100_000}): sys.stdout.buffer.write(line*1000)\n"
    "sys.stdout.buffer.flush()\nopen('took','w').write(str(time.time()-began))\n"
)


def main():
    binary, directory, *wanted = sys.argv[1:]
    directory = pathlib.Path(directory)
    for name, measure in [("throughput", throughput), ("latency", latency), ("queue", queue), ("flood", flood)]:
        if not wanted or name in wanted:
            with Bench(binary, directory) as bench:
                measure(bench)


class Bench:
    """An agent on a new data directory, and bare runs beside it."""

    def __init__(self, binary, directory):
        self.directory = directory / f"runner-{os.getpid()}"
        self.count = 0
        (self.directory / "root").mkdir(parents=True)
        self.log = self.directory / "agent.log"
        self.process = subprocess.Popen(
            [binary, "serve", "--data", self.directory / "data", "--mount-root", self.directory / "root",
             "--listen", "127.0.0.1:0", "--pull", "never"],
            stderr=open(self.log, "wb"), env={**os.environ, "RUST_LOG": "info"})
        found = until("the agent listens", lambda: re.search(r"listening on http://127.0.0.1:(\d+)", self.log.read_text()))
        self.connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=PATIENCE_S)
        until("the agent is ready", lambda: self.request("GET", "/readyz")[0] == 200)
        self.log_id = self.node()["log_id"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end_well()
        names = docker("ps", "-aq", "--filter", "label=hackbrain.bench").split()
        names += docker("ps", "-aq", "--filter", f"label=hackbrain.log={self.log_id}").split()
        if names:
            docker("rm", "-f", *names)
        for line in reversed(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(str(self.directory)):
                subprocess.run(["umount", line.split()[4]], check=True)
        for tag in docker("images", "--format", "{{.Tag}}", "hackbrain/pin").split():
            if tag.startswith(self.log_id[:8]):
                docker("rmi", "--no-prune", f"hackbrain/pin:{tag}")
        for group in pathlib.Path("/sys/fs/cgroup").glob("*/hackbrain-bench"):
            for attempt in group.iterdir():
                if attempt.is_dir():
                    attempt.rmdir()
            group.rmdir()
        shutil.rmtree(self.directory)

    def end_well(self):
        for job in json.loads(self.request("GET", "/api/jobs?phase=active&limit=100")[1])["jobs"]:
            self.request("POST", f"/api/jobs/{job['job_id']}/cancel", b"")
        self.until_clean()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)

    def request(self, method, path, body=None):
        for last in (False, True):
            try:
                self.connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = self.connection.getresponse()
                return answer.status, answer.read()
            except (ConnectionError, http.client.HTTPException):
                # An idle connection is closed by the agent; every request here may be repeated.
                self.connection.close()
                if last:
                    raise

    def node(self):
        return json.loads(self.request("GET", "/api/node")[1])

    def submit(self, command, **more):
        self.count += 1
        job_id = f"bench-{os.getpid()}-{self.count}"
        manifest = {"job_id": job_id, "image_hash": "busybox:latest", "command": command, **more}
        status, body = self.request("POST", "/api/submit_job", json.dumps(manifest))
        if status != 200:
            raise SystemExit(f"not accepted: {body.decode()}")
        return job_id

    def ended(self, job_id, state="SEALED"):
        summary = json.loads(self.request("GET", f"/api/jobs/{job_id}?wait={state}&timeout_s={PATIENCE_S}")[1])
        if summary["state"] != state:
            raise SystemExit(f"{job_id}: {summary}")
        return summary

    def until_clean(self):
        label = f"label=hackbrain.log={self.log_id}"
        until("the containers are removed", lambda: not docker("ps", "-aq", "--filter", label))

    def cli(self, job_id):
        """The command line of the CLI that runs this job."""
        return until("the CLI runs", lambda: cli_line(f"hb-{job_id}-1"))

    def bare_line(self, words, directory):
        """The same with names of its own."""
        self.count += 1
        name = f"hb-bench-{os.getpid()}-{self.count}"
        line = []
        for word in words:
            if word.startswith("--name="):
                word = f"--name={name}"
            elif word.startswith("--cidfile="):
                word = f"--cidfile={self.directory / name}.cid"
            elif word.startswith("--cgroup-parent="):
                word = f"--cgroup-parent=/hackbrain-bench/{name}"
            elif word.startswith("--label=hackbrain.log="):
                word = "--label=hackbrain.bench=1"
            elif word.startswith("--mount="):
                word = re.sub(r'"src=[^"]*"', f'"src={directory}"', word)
            line.append(word)
        return name, line

    def memory_mib(self, field):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1024


def until(what, ask):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.01)
    raise SystemExit(f"never came about: {what}")


def docker(*words):
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout.strip()


def throughput(bench):
    """Time for the same jobs, as many at once as there are cores."""
    template = template_of(bench, ["sleep", "2"])
    scratch = bench.directory / "bare"
    scratch.mkdir()
    scratch.chmod(0o777)

    def through_agent():
        began = time.monotonic()
        jobs = [bench.submit(["true"]) for _ in range(SLICE)]
        for job_id in jobs:
            bench.ended(job_id)
        took = time.monotonic() - began
        bench.until_clean()
        return took

    def bare(remove):
        lines = [bench.bare_line(template, scratch) for _ in range(SLICE)]

        def one(pair):
            name, line = pair
            subprocess.run(swap(line, "true"), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            if remove:
                docker("rm", "--volumes", name)

        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
            list(pool.map(one, lines))
        took = time.monotonic() - began
        if not remove:
            docker("rm", *(name for name, _ in lines))
        return took

    arms = [("agent", through_agent), ("run", lambda: bare(False)), ("run and rm", lambda: bare(True))]
    times = {name: [] for name, _ in arms}
    for turn in range(SLICES):
        for name, arm in arms[turn % 3:] + arms[:turn % 3]:
            times[name].append(arm())
    print(f"\n{SLICES * SLICE} jobs `true`, {CORES} at once, {SLICES} slices in turns\n")
    print("| | total s | median slice s | agent ÷ this, total | agent ÷ this, median of slices |\n|---|--:|--:|--:|--:|")
    for name, took in times.items():
        total = sum(times["agent"]) / sum(took)
        paired = statistics.median(a / b for a, b in zip(times["agent"], took))
        print(f"| {name} | {sum(took):.1f} | {statistics.median(took):.2f} | {total:.3f} | {paired:.3f} |", flush=True)


def template_of(bench, command):
    job_id = bench.submit(command)
    words = bench.cli(job_id)
    bench.ended(job_id)
    return words


def swap(line, program, *arguments):
    """The line with another command: the program is the entrypoint, its arguments stand behind the image."""
    end = line.index("--")
    return [w if not w.startswith("--entrypoint=") else f"--entrypoint={program}" for w in line[:end + 2]] + list(arguments)


def started_at(name):
    def ask():
        text = subprocess.run(["docker", "inspect", "--format", "{{.State.StartedAt}}", name],
                              capture_output=True, text=True, check=False).stdout.strip()
        return text if text and not text.startswith("0001-") else None
    text = until(f"{name} runs", ask)
    whole, fraction = text.rstrip("Z").split(".")
    return time.mktime(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) - time.timezone + float(f"0.{fraction}")


def latency(bench):
    """From the submission, or the start of the CLI, to the start of the container."""
    template = template_of(bench, ["sleep", "2"])
    scratch = bench.directory / "bare"
    scratch.mkdir()
    times = {"agent": [], "docker run": []}
    for turn in range(LATENCIES):
        for name in sorted(times, reverse=turn % 2 == 1):
            time.sleep(0.3)
            began = time.time()
            if name == "agent":
                job_id = bench.submit(["sleep", "1"])
                container = f"hb-{job_id}-1"
            else:
                container, line = bench.bare_line(template, scratch)
                child = subprocess.Popen(swap(line, "sleep", "1"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            times[name].append((started_at(container) - began) * 1e3)
            if name == "agent":
                bench.ended(job_id)
                bench.until_clean()
            else:
                child.wait()
                docker("rm", container)
    agent, bare = (statistics.median(times[name]) for name in ("agent", "docker run"))
    print(f"\nTo the start of the container, idle agent, {LATENCIES} of each in turns: agent {agent:.0f} ms "
          f"(quartiles {quartiles(times['agent'])}), docker run {bare:.0f} ms ({quartiles(times['docker run'])}), "
          f"difference {agent - bare:.1f} ms, ratio {agent / bare:.3f}", flush=True)


def quartiles(values):
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.0f} to {high:.0f}"


def queue(bench):
    """Memory and the latency of a submission with many jobs waiting."""
    blockers = [bench.submit(["sleep", "3600"]) for _ in range(CORES)]
    for job_id in blockers:
        until("the workers are busy", lambda job_id=job_id: json.loads(
            bench.request("GET", f"/api/jobs/{job_id}")[1])["state"] == "RUNNING")
    empty = [submission_ms(bench) for _ in range(SUBMISSIONS)]
    idle = bench.memory_mib("VmRSS")
    began = time.monotonic()
    while bench.count < QUEUED:
        bench.submit(["true"])
    filled = time.monotonic() - began
    while_scheduling = [submission_ms(bench) for _ in range(SUBMISSIONS)]
    deadline = time.monotonic() + 3600
    while bench.node()["jobs"]["RECEIVED"] and time.monotonic() < deadline:
        time.sleep(0.5)
    scheduled = time.monotonic() - began
    full = [submission_ms(bench) for _ in range(SUBMISSIONS)]
    print(f"\n{QUEUED:,} jobs waiting: {bench.memory_mib('VmRSS'):.1f} MiB (peak {bench.memory_mib('VmHWM'):.1f}; with "
          f"{SUBMISSIONS} jobs {idle:.1f}); submitted in {filled:.1f} s, all SCHEDULED after {scheduled:.1f} s")
    for name, values in [("empty", empty), ("while they are scheduled", while_scheduling), ("all waiting", full)]:
        print(f"a submission, {name}: median {statistics.median(values):.2f} ms, quartiles "
              f"{statistics.quantiles(values, n=4)[0]:.2f} to {statistics.quantiles(values, n=4)[2]:.2f}", flush=True)
    # Ten thousand jobs are not waited for.
    bench.process.kill()
    bench.process.wait(PATIENCE_S)


def submission_ms(bench):
    began = time.monotonic()
    bench.submit(["true"])
    return (time.monotonic() - began) * 1e3


def flood(bench):
    """How long a payload takes to print, by its own clock, and what the agent needs meanwhile."""
    command, more = ["python", "-c", FLOOD], {"image_hash": "python:3.9-slim"}
    place = bench.directory / "root" / "template"
    place.mkdir()
    template = template_of(bench, ["sleep", "2"])
    image = docker("image", "inspect", "--format", "{{.Id}}", "python:3.9-slim")
    times = {"agent": [], "docker run >/dev/null": []}
    before = bench.memory_mib("VmRSS")
    pathlib.Path(f"/proc/{bench.process.pid}/clear_refs").write_text("5")
    for turn in range(FLOODS):
        for name in sorted(times, reverse=turn % 2 == 1):
            place = bench.directory / "root" / f"{turn}-{len(times[name])}-{name[:5]}"
            place.mkdir()
            place.chmod(0o777)
            if name == "agent":
                job_id = bench.submit(command, mount_spec=f"{place}:/job/workdir", **more)
                bench.ended(job_id)
                bench.until_clean()
                shutil.rmtree(bench.directory / "data" / "logs" / job_id)
            else:
                container, line = bench.bare_line(template, place)
                line = swap(line, command[0], *command[1:])
                line[line.index("--") + 1] = image
                user = f"--user={place.stat().st_uid}:{place.stat().st_gid}"
                line = [user if word.startswith("--user=") else word for word in line]
                subprocess.run(line, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                docker("rm", container)
            times[name].append(float((place / "took").read_text()))
    agent, bare = (statistics.median(values) for values in times.values())
    paired = statistics.median(a / b for a, b in zip(*times.values()))
    print(f"\n{FLOOD_BYTES // 1_000_000} MB on stdout, {FLOODS} of each in turns: agent {agent:.2f} s, docker run >/dev/null "
          f"{bare:.2f} s, ratio {agent / bare:.3f} (median of pairs {paired:.3f}); agent's memory {before:.1f} MiB before, "
          f"{bench.memory_mib('VmHWM'):.1f} at most, {bench.memory_mib('VmRSS'):.1f} after", flush=True)


if __name__ == "__main__":
    main()
