"""A lattice of jobs: each sums what its parents computed. The agent is killed with -9 whenever a drawn number of jobs is
sealed, and in the end every sum is right, every job ran once, and none before its parents were sealed. Standard library
only.

HACKBRAIN_LATTICE: jobs at least (100). HACKBRAIN_KILLS: kills (5). HACKBRAIN_SEED: when they come."""
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

from kill_rounds_test import ROOT, Agent

JOBS = int(os.environ.get("HACKBRAIN_LATTICE", "100"))
KILLS = int(os.environ.get("HACKBRAIN_KILLS", "5"))
MODULUS = 2**61 - 1
BATCH = 1000
WORKERS = 4
# The last three rows: they take three containers' time after one another, so no kill before them comes too late.
LAST_ROWS_JOBS = 3 + 2 + 1
# Longest wait for all jobs, in seconds: so much, and so much for each job.
PATIENCE_S, PATIENCE_S_PER_JOB = 60, 5
# The first job has no parents, and counts as 1. busybox reckons with 64 bits; two values fit.
SUM = f"""
echo start >> starts
value=0
for parent in /job/in/*/value; do
    if [ -e "$parent" ]; then value=$(( (value + $(cat "$parent")) % {MODULUS} )); fi
done
if [ ! -e /job/in ]; then value=1; fi
echo "[D1_STABLE] value=$value"
echo $value > value
"""


class Lattice:
    """Rows of 1, 2, …, n, …, 2, 1 jobs; each waits for its one or two neighbours in the row above."""

    def __init__(self, prefix, jobs):
        widest = math.isqrt(jobs - 1) + 1
        self.widths = [*range(1, widest + 1), *range(widest - 1, 0, -1)]
        self.prefix = prefix
        self.parents = {}
        for row, width in enumerate(self.widths):
            for place in range(width):
                if row == 0:
                    places = []
                elif width > self.widths[row - 1]:
                    places = [place - 1, place]
                else:
                    places = [place, place + 1]
                above = [self.name(row - 1, p) for p in places if 0 <= p < self.widths[row - 1]]
                self.parents[self.name(row, place)] = above

    def name(self, row, place):
        return f"{self.prefix}-{row:03}-{place:03}"

    def values(self):
        values = {}
        for job, parents in self.parents.items():
            values[job] = sum(values[parent] for parent in parents) % MODULUS if parents else 1
        return values


def manifest(job, parents, directories):
    """Each job writes a directory of its own and reads what its parents have sealed. A mount is a dependency by itself."""
    mounts = [f"{directories / job}:/job/workdir"]
    mounts += [f"job:{parent}:/job/in/{number}" for number, parent in enumerate(parents)]
    return {"job_id": job, "image_hash": "busybox:latest", "command": ["sh", "-ec", SUM], "mount_spec": mounts,
            "depends_on": parents[:1]}


def value_of(job, directories):
    return int((directories / job / "value").read_text())


def quietly(*command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout.split()


def remove_what_is_left(log_id):
    """What a killed agent leaves to the next one, where there is none: containers, control groups, names of images."""
    for container in quietly("docker", "ps", "-aq", "--filter", f"label=hackbrain.log={log_id}"):
        quietly("docker", "rm", "-f", container)
    # Empty only once the containers' own groups are gone.
    for _ in range(20):
        groups = list(pathlib.Path("/sys/fs/cgroup").glob(f"*/hackbrain-{log_id[:8]}"))
        for group in groups:
            for directory in (*(path for path in group.iterdir() if path.is_dir()), group):
                try:
                    directory.rmdir()
                except OSError:
                    pass
        if not groups:
            break
        time.sleep(0.05)
    for tag in quietly("docker", "images", "--format", "{{.Tag}}", "hackbrain/pin"):
        if tag.startswith(log_id[:8]):
            quietly("docker", "rmi", "--no-prune", f"hackbrain/pin:{tag}")


class LatticeTest(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="hackbrain-lattice-"))
        self.agent = Agent(self.directory, "--workers", str(WORKERS))
        self.log_id = json.loads(self.agent.get("/api/node"))["log_id"]
        self.prefix = f"lattice-{os.getpid()}-{time.time_ns() % 1_000_000}"

    def tearDown(self):
        if self.agent.process.poll() is None:
            self.agent.end(signal.SIGKILL)
        remove_what_is_left(self.log_id)
        for line in reversed(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(str(self.directory)):
                subprocess.run(["umount", line.split()[4]], check=True)
        shutil.rmtree(self.directory)

    def submit(self, jobs):
        request = urllib.request.Request(self.agent.url + "/api/submit_jobs", json.dumps({"jobs": jobs}).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=90) as answer:
            return json.load(answer)["jobs"]

    def count(self, *states):
        jobs = json.loads(self.agent.get("/api/node"))["jobs"]
        return sum(jobs[state] for state in states)

    def until_sealed(self, jobs, began):
        """Waits until so many jobs are sealed."""
        while self.count("SEALED") < jobs:
            self.assertEqual(self.count("FAILED", "CANCELLED"), 0)
            self.assertLess(time.monotonic(), began + PATIENCE_S + PATIENCE_S_PER_JOB * JOBS, "it does not go on")
            time.sleep(0.02)

    def test_every_sum_is_right_however_often_the_agent_is_killed(self):
        seed = int(os.environ.get("HACKBRAIN_SEED", time.time_ns() % 1_000_000))
        chance = random.Random(seed)
        lattice = Lattice(self.prefix, JOBS)
        jobs = list(lattice.parents)
        self.assertLessEqual(KILLS, len(jobs) - LAST_ROWS_JOBS, "more kills than moments for them; more jobs are needed")
        kills_at = sorted(chance.sample(range(len(jobs) - LAST_ROWS_JOBS), KILLS))
        print(f"seed {seed}: {len(jobs)} jobs, kills when so many are sealed: {kills_at}", flush=True)
        for job in jobs:
            (self.agent.payloads / job).mkdir()
        receipts = []
        for first in range(0, len(jobs), BATCH):
            # In any order; a batch knows those before it.
            batch = jobs[first:first + BATCH]
            chance.shuffle(batch)
            receipts += self.submit([manifest(job, lattice.parents[job], self.agent.payloads) for job in batch])
        began = time.monotonic()
        for kill_at in kills_at:
            self.until_sealed(kill_at, began)
            self.agent.end(signal.SIGKILL)
            states = [json.loads(line)["state"] for line in self.agent.run_tool("dump").stdout.splitlines()]
            self.assertGreaterEqual(states.count("SEALED"), kill_at)
            self.assertLess(states.count("SEALED"), len(jobs), f"the kill at {kill_at} came too late")
            self.agent.start()
        self.until_sealed(len(jobs), began)
        took = time.monotonic() - began
        self.agent.end(signal.SIGTERM)
        starts = self.check_ledger(lattice, receipts)
        for job, value in lattice.values().items():
            self.assertEqual(value_of(job, self.agent.payloads), value, job)
            lines = (self.agent.payloads / job / "starts").read_text().splitlines()
            self.assertEqual(len(lines), starts[job], f"{job}: an attempt was started twice")
        crashed = sum(attempts - 1 for attempts in starts.values())
        print(f"seed {seed}: all sealed in {took:.0f} s; {KILLS} kills, all while jobs were open; {crashed} crashes")

    def check_ledger(self, lattice, receipts):
        """The attempts of each job: one, unless the ledger tells of a crash."""
        verified = self.agent.run_tool("verify", "--artifacts")
        self.assertEqual(verified.returncode, 0, verified.stdout)
        dump = self.agent.run_tool("dump").stdout
        checked = subprocess.run([ROOT / "scripts/check-chain"], input=dump, capture_output=True, check=False)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        lines = dump.splitlines()
        for receipt in receipts:
            self.assertEqual(json.loads(lines[receipt["seq"] - 1])["job_id"], receipt["job_id"])
        sealed, attempts, crashes, started = set(), {}, {}, 0
        for event in map(json.loads, lines):
            job = event.get("job_id")
            if event["state"] in ("SCHEDULED", "RUNNING", "RECOVERY"):
                started += 1
                too_early = f"{job} is {event['state']} before its parents are SEALED"
                self.assertLessEqual(set(lattice.parents[job]), sealed, too_early)
            elif event["state"] == "SEALED":
                sealed.add(job)
                attempts[job] = event["attempt"]
            elif event["state"] == "CRASH":
                crashes[job] = crashes.get(job, 0) + 1
        self.assertEqual(sealed, set(lattice.parents))
        self.assertGreaterEqual(started, 2 * len(sealed))
        for job, number in attempts.items():
            self.assertEqual(number, 1 + crashes.get(job, 0), job)
        return attempts


if __name__ == "__main__":
    unittest.main()
