"""The promise that the project exists for, on the real binary and the real engine: the agent, and its Docker CLIs, are killed
with -9 at random moments while payloads run, and nothing is lost, doubled or started twice. Standard library only."""
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("HACKBRAIN_KILL_ROUNDS", "100"))
IN_FLIGHT = 8
STEPS, STEP_MS = 60, 15
# What the payload printed, as it saw it itself, and how often it was started.
COMMAND = ["sh", "-c", "echo start >> starts; python wal_physics.py | tee -a printed"]
# Counts its starts; prints markers and all byte values on both streams, then 40 kB that no newline ends, and keeps a copy.
LOUD_STEPS = 40
LOUD = f"""
import sys,time
open('starts','a').write('start\\n')
copies=[open(name,'ab') for name in ('stdout','stderr')]
def put(data):
    for stream,copy in zip((sys.stdout.buffer,sys.stderr.buffer),copies):
        copy.write(data);copy.flush();stream.write(data);stream.flush()
for step in range({LOUD_STEPS}):
    put(b'[D1_STABLE] step=%d\\n'%step+bytes(range(256))+b'\\n')
    time.sleep(0.04)
put(b'q'*40000)
"""


class Agent:
    def __init__(self, directory, *flags):
        self.flags = flags
        self.binary = os.environ.get("HACKBRAIN_BIN") or str(ROOT / "target/debug/hackbrain")
        self.data, self.payloads = directory / "data", directory / "payloads"
        self.payloads.mkdir()
        self.process = None
        self.start()

    def start(self):
        log = self.data.parent / "agent.log"
        log.touch()
        began = log.stat().st_size
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                [self.binary, "serve", "--data", self.data, "--mount-root", self.payloads, "--listen", "127.0.0.1:0",
                 *self.flags],
                stderr=stderr)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(rb"listening on (http://\S+)", log.read_bytes()[began:])
            if found:
                self.url = found[1].decode()
                return
            time.sleep(0.01)
        raise AssertionError(f"the agent did not start: {log.read_text()}")

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(60)

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=90) as answer:
            return answer.read()

    def submit(self, job_id, command, payload, **more):
        manifest = {"job_id": job_id, "image_hash": "python:3.9-slim", "command": command,
                    "mount_spec": f"{payload}:/job/workdir",
                    "env": {"WAL_PHYSICS_STEPS": str(STEPS), "WAL_PHYSICS_STEP_MS": str(STEP_MS)}, **more}
        request = urllib.request.Request(self.url + "/api/submit_job", json.dumps(manifest).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=90) as answer:
            return json.load(answer)

    def payload(self, job_id):
        directory = self.payloads / job_id
        directory.mkdir()
        shutil.copy(ROOT / "chaos/payloads/wal_physics.py", directory)
        return directory

    def trace(self, job_id):
        return [json.loads(line) for line in self.get(f"/api/jobs/{job_id}/trace").splitlines()]

    def run_tool(self, *arguments):
        return subprocess.run([self.binary, *arguments, "--data", self.data], capture_output=True, check=False)


class KillTest(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="hackbrain-kill-"))
        self.agent = Agent(self.directory)
        self.prefix = f"kill-{os.getpid()}-{time.time_ns() % 1_000_000}"

    def tearDown(self):
        if self.agent.process.poll() is None:
            self.agent.end(signal.SIGTERM)
        left = self.containers()
        if left:
            subprocess.run(["docker", "rm", "-f", *left], capture_output=True, check=True)
        # An agent that is killed leaves its mounts to the next one, and here there is none.
        for line in reversed(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(str(self.directory)):
                subprocess.run(["umount", line.split()[4]], check=True)
        shutil.rmtree(self.directory)

    def check_ledger(self, submitted):
        verified = self.agent.run_tool("verify")
        self.assertEqual(verified.returncode, 0, verified.stdout)
        dump = self.agent.run_tool("dump").stdout
        checked = subprocess.run([ROOT / "scripts/check-chain"], input=dump, capture_output=True, check=False)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        # Two programs, one head.
        self.assertEqual(checked.stdout.split(), verified.stdout.splitlines()[-1].split())
        stored = {line for line in dump.splitlines()}
        for answer in submitted:
            received = next(line for line in stored if json.loads(line)["seq"] == answer["seq"])
            self.assertEqual(json.loads(received)["job_id"], answer["job_id"])

    def check_payload(self, job_id, payload, attempts):
        self.assertEqual((payload / "starts").read_text().count("start"), attempts, "an attempt was started twice")
        printed = (payload / "printed").read_bytes()
        stored = b"".join(self.agent.get(f"/api/jobs/{job_id}/stdout?attempt={n}") for n in range(1, attempts + 1))
        self.assertEqual(stored, printed, "stdout is not what the payload printed")
        steps = [int(step) for step in re.findall(rb"^\[D1_STABLE\] step=(\d+)", printed, re.M)]
        return steps

    def kill_clis(self):
        """kill -9 of every CLI that runs one of these jobs; found by what only its command line holds."""
        killed = 0
        for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
                if any(word.startswith(f"--name=hb-{self.prefix}-".encode()) for word in words):
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    killed += 1
            except (OSError, ProcessLookupError):
                continue
        return killed

    def keep_busy(self, jobs, receipts):
        """Keeps eight jobs in flight until the agent is gone. What was not acknowledged is submitted once more, as it was."""
        try:
            while True:
                for job_id, payload in jobs.items():
                    if job_id not in receipts:
                        receipts[job_id] = self.agent.submit(job_id, ["python", "-c", LOUD], payload)
                states = json.loads(self.agent.get("/api/jobs?limit=1000"))["jobs"]
                open_now = sum(job["phase"] != "ended" for job in states)
                for _ in range(IN_FLIGHT - open_now):
                    job_id = f"{self.prefix}-{len(jobs)}"
                    jobs[job_id] = self.agent.payload(job_id)
                time.sleep(0.05)
        except (OSError, http.client.HTTPException):
            # URLError is one; the agent was killed, perhaps in the middle of an answer.
            return

    def test_the_agent_is_killed_a_hundred_times_while_eight_jobs_are_in_flight(self):
        seed = int(os.environ.get("HACKBRAIN_SEED", time.time_ns() % 1_000_000))
        chance = random.Random(seed)
        self.agent.end(signal.SIGTERM)
        self.agent.flags = ("--workers", str(IN_FLIGHT))
        self.agent.start()
        jobs, receipts, clis = {}, {}, 0
        for round_number in range(ROUNDS):
            killer = threading.Timer(chance.uniform(0, 1.4), self.agent.end, [signal.SIGKILL])
            killer.start()
            self.keep_busy(jobs, receipts)
            killer.join()
            if round_number % 2:
                # Before the next agent can adopt anything: what they did not copy is in the engine's log alone.
                clis += self.kill_clis()
            if round_number % 10 == 0:
                self.check_ledger(receipts.values())
            self.agent.start()
        for job_id in receipts:
            summary = json.loads(self.agent.get(f"/api/jobs/{job_id}?wait=SEALED&timeout_s=60"))
            self.assertEqual(summary["state"], "SEALED", summary)
            self.assertEqual(summary["attempt"], 1, "the container went on, so there was nothing to recover from")
            self.check_loud(job_id, jobs[job_id])
        print(f"seed {seed}: {ROUNDS} kills of the agent, {clis} of CLIs, {len(receipts)} jobs acknowledged, all sealed")
        self.assertGreater(len(receipts), IN_FLIGHT)
        if ROUNDS >= 20:
            self.assertGreater(clis, 0, "no CLI was found")
        self.agent.end(signal.SIGTERM)
        self.check_ledger(receipts.values())
        self.agent.start()
        deadline = time.monotonic() + 20
        while (left := self.containers()) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.assertEqual(left, [], "a container was left behind")

    def check_loud(self, job_id, payload):
        self.assertEqual((payload / "starts").read_text(), "start\n", f"{job_id}: an attempt was started twice")
        events = self.agent.trace(job_id)
        self.assertEqual([e["state"] for e in events if e["state"] != "D1_STABLE"],
                         ["RECEIVED", "SCHEDULED", "RUNNING", "COMPLETED", "SEALED"])
        for stream in ("stdout", "stderr"):
            stored, printed = self.agent.get(f"/api/jobs/{job_id}/{stream}"), (payload / stream).read_bytes()
            self.assertTrue(stored == printed, f"{job_id}: {stream}: {len(stored)} bytes stored, {len(printed)} printed")
            marks = [e["detail"] for e in events if e["state"] == "D1_STABLE" and e["detail"]["stream"] == stream]
            self.assertEqual(sum(mark["count"] for mark in marks), LOUD_STEPS, f"{job_id}: markers were lost or doubled")
            self.assertEqual(marks[-1]["line"], f"[D1_STABLE] step={LOUD_STEPS - 1}")

    def containers(self):
        return subprocess.run(["docker", "ps", "-aq", "--filter", f"name=^hb-{self.prefix}"],
                              capture_output=True, text=True, check=True).stdout.split()

    def test_an_event_is_the_same_bytes_on_disk_in_the_stream_in_a_trace_and_in_a_dump(self):
        job_id = f"{self.prefix}-bytes"
        self.agent.submit(job_id, COMMAND, self.agent.payload(job_id))
        json.loads(self.agent.get(f"/api/jobs/{job_id}?wait=SEALED&timeout_s=60"))
        head = json.loads(self.agent.get("/api/ledger/head"))

        def stream(after, header):
            request = urllib.request.Request(f"{self.agent.url}/api/events?after={after}", headers=header)
            events = {}
            with urllib.request.urlopen(request, timeout=30) as answer:
                number = None
                for line in answer:
                    if line.startswith(b"id: "):
                        number = int(line[4:])
                    elif line.startswith(b"data: "):
                        self.assertEqual(number, after_of(events, header, after) + 1, "a gap or a repeat")
                        events[number] = line[6:].rstrip(b"\n")
                        if number == head["seq"]:
                            return events
            raise AssertionError("the stream ended early")

        def after_of(events, header, after):
            return max(events, default=int(header.get("Last-Event-ID", after)))

        streamed = stream(0, {})
        # Where both are given, the header tells what has been seen since the address was.
        self.assertEqual(list(stream(0, {"Last-Event-ID": "5"})), list(range(6, head["seq"] + 1)))
        self.assertEqual(list(stream(7, {})), list(range(8, head["seq"] + 1)))
        dumped = self.agent.run_tool("dump").stdout.splitlines()
        self.assertEqual(list(streamed.values()), dumped)
        self.assertEqual(self.agent.get("/api/ledger?from=1&limit=100000").splitlines(), dumped)
        trace = self.agent.get(f"/api/jobs/{job_id}/trace").splitlines()
        self.assertEqual(trace, [line for line in dumped if json.loads(line).get("job_id") == job_id])
        on_disk = b"".join(path.read_bytes() for path in sorted((self.agent.data / "wal").glob("*.log")))
        # Every sector of 512 bytes ends with 8 bytes of mark and checksum; what is left are the stored bytes.
        stored = b"".join(on_disk[at:at + 504] for at in range(0, len(on_disk), 512))
        for line in dumped:
            self.assertIn(line, stored)

    def test_a_killed_container_crashes_recovers_and_resumes_where_its_own_log_ended(self):
        job_id = f"{self.prefix}-crash"
        payload = self.agent.payload(job_id)
        answer = self.agent.submit(job_id, COMMAND, payload)
        deadline = time.monotonic() + 60
        while b"step=20 " not in self.agent.get(f"/api/jobs/{job_id}/stdout"):
            self.assertLess(time.monotonic(), deadline, "it does not come to step 20")
            time.sleep(0.02)
        subprocess.run(["docker", "kill", "-s", "KILL", f"hb-{job_id}-1"], check=True, capture_output=True)
        summary = json.loads(self.agent.get(f"/api/jobs/{job_id}?wait=SEALED&timeout_s=60"))
        self.assertEqual((summary["state"], summary["attempt"]), ("SEALED", 2))
        events = self.agent.trace(job_id)
        states = [event["state"] for event in events if event["state"] != "D1_STABLE"]
        self.assertEqual(states, ["RECEIVED", "SCHEDULED", "RUNNING", "CRASH", "RECOVERY", "COMPLETED", "SEALED"])
        crash = next(event for event in events if event["state"] == "CRASH")
        self.assertEqual((crash["detail"]["cause"], crash["detail"]["exit_code"]), ("killed", 137))
        self.assertEqual((payload / "starts").read_text().count("start"), 2)
        stdout = self.agent.get(f"/api/jobs/{job_id}/stdout").decode()
        resumed = int(re.search(r"resumed from step (\d+)", stdout)[1])
        steps = [int(step) for step in re.findall(r"^\[D1_STABLE\] step=(\d+)", stdout, re.M)]
        self.assertEqual(steps, list(range(resumed + 1, STEPS + 1)), "it goes on from where its own log ended")
        self.assertGreaterEqual(resumed, 20)
        self.agent.end(signal.SIGTERM)
        self.check_ledger([answer])
        self.agent.start()


if __name__ == "__main__":
    unittest.main()
