"""The promise that the project exists for, on the real binary and the real engine: the agent is killed with -9 at random
moments while a payload runs, and nothing is lost, doubled or started twice. Standard library only."""
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("HACKBRAIN_KILL_ROUNDS", "20"))
STEPS, STEP_MS = 60, 15
# What the payload printed, as it saw it itself, and how often it was started.
COMMAND = ["sh", "-c", "echo start >> starts; python wal_physics.py | tee -a printed"]


class Agent:
    def __init__(self, directory):
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
                [self.binary, "serve", "--data", self.data, "--mount-root", self.payloads, "--listen", "127.0.0.1:0"],
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
        self.process.wait()

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=90) as answer:
            return answer.read()

    def submit(self, job_id, command, payload):
        manifest = {"job_id": job_id, "image_hash": "python:3.9-slim", "command": command,
                    "mount_spec": f"{payload}:/job/workdir",
                    "env": {"WAL_PHYSICS_STEPS": str(STEPS), "WAL_PHYSICS_STEP_MS": str(STEP_MS)}}
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
        left = subprocess.run(["docker", "ps", "-aq", "--filter", f"name=^hb-{self.prefix}"],
                              capture_output=True, text=True, check=True).stdout.split()
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

    def test_the_agent_is_killed_at_a_random_moment_of_each_of_many_jobs(self):
        seed = int(os.environ.get("HACKBRAIN_SEED", time.time_ns() % 1_000_000))
        print(f"seed {seed}, {ROUNDS} rounds")
        chance = random.Random(seed)
        submitted = []
        for round_number in range(ROUNDS):
            job_id = f"{self.prefix}-{round_number}"
            payload = self.agent.payload(job_id)
            submitted.append(self.agent.submit(job_id, COMMAND, payload))
            time.sleep(chance.uniform(0, 1.6))
            self.agent.end(signal.SIGKILL)
            self.check_ledger(submitted)
            self.agent.start()
            summary = json.loads(self.agent.get(f"/api/jobs/{job_id}?wait=SEALED&timeout_s=60"))
            self.assertEqual(summary["state"], "SEALED", summary)
            self.assertEqual(summary["attempt"], 1, "the container went on, so there was nothing to recover from")
            steps = self.check_payload(job_id, payload, 1)
            self.assertEqual(steps, list(range(1, STEPS + 1)))
            events = self.agent.trace(job_id)
            marks = [event["detail"] for event in events if event["state"] == "D1_STABLE"]
            self.assertEqual(sum(mark["count"] for mark in marks), STEPS, "markers were lost or doubled")
            self.assertIn(f"step={STEPS} ", marks[-1]["line"])
            self.assertEqual([e["state"] for e in events if e["state"] != "D1_STABLE"],
                             ["RECEIVED", "SCHEDULED", "RUNNING", "COMPLETED", "SEALED"])
        self.agent.end(signal.SIGTERM)
        self.check_ledger(submitted)
        self.agent.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            left = subprocess.run(["docker", "ps", "-aq", "--filter", f"name=^hb-{self.prefix}"],
                                  capture_output=True, text=True, check=True).stdout
            if not left:
                break
            time.sleep(0.2)
        self.assertEqual(left, "", "a container was left behind")

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
        while b"step=20 " not in self.agent.get(f"/api/jobs/{job_id}/stdout"):
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
