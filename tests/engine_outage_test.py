"""The engine stops, is killed, starts again, fills up, or goes down with its host: every attempt gets one true verdict. The real
agent on a real engine of the tests' own (second_engine.py). Standard library only; needs root."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request
import uuid

from second_engine import PATIENCE_S, SecondEngine, command_line, descendants, until

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What each payload does first; a second attempt ends at once. What is printed is kept beside it.
BEGIN = ('echo start >> starts; say() { echo "$1"; echo "$1" >> printed; }; say "[D1_STABLE] begun"; '
         '[ $(wc -l < starts) = 1 ] || exit 0; ')
WAIT = "while [ ! -e go ]; do sleep 0.05; done; "
PLAIN = BEGIN + "exec sleep 600"


def on_term(code):
    return BEGIN + f"trap 'say stopped; exit {code}' TERM; touch up; while :; do sleep 0.05; done"


def by_itself(code):
    return BEGIN + WAIT + f"say late; exit {code}"


class Agent:
    """`boot_id` makes it believe that the host has booted as that; it then has no right to mount, or it would not."""

    def __init__(self, directory, engine):
        self.binary = os.environ.get("HACKBRAIN_BIN") or str(ROOT / "target/debug/hackbrain")
        self.directory, self.engine, self.process = directory, engine, None
        (directory / "root").mkdir()

    def start(self, *arguments, boot_id=None):
        log = self.directory / "agent.log"
        log.touch()
        began = log.stat().st_size
        command = [self.binary, "serve", "--data", self.directory / "data", "--mount-root", self.directory / "root",
                   "--listen", "127.0.0.1:0", *arguments]
        if boot_id is not None:
            (self.directory / "boot_id").write_text(boot_id + "\n")
            script = f'mount --bind {self.directory}/boot_id /proc/sys/kernel/random/boot_id && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, "sh", "setpriv", "--bounding-set=-sys_admin",
                       "--inh-caps=-sys_admin", *command]
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(list(map(str, command)), stderr=stderr,
                                            env=dict(os.environ, DOCKER_HOST=self.engine.host))

        def listens():
            assert self.process.poll() is None, log.read_text()
            return re.search(rb"listening on (http://\S+?),? ", log.read_bytes()[began:])
        self.url = until("the agent listens", listens)[1].decode()
        until("the agent is ready", lambda: self.status("/readyz") == 200)

    def end(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)

    def run_tool(self, *arguments):
        return subprocess.run([self.binary, *arguments, "--data", self.directory / "data"], capture_output=True,
                              check=False)

    def status(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as answer:
            return answer.read()

    def summary(self, job_id, query=""):
        return json.loads(self.get(f"/api/jobs/{job_id}{query}"))

    def submit(self, job_id, script, image="busybox:latest"):
        place = self.directory / "root" / job_id
        place.mkdir()
        manifest = {"job_id": job_id, "image_hash": image, "command": ["sh", "-c", script],
                    "mount_spec": f"{place}:/job/workdir"}
        request = urllib.request.Request(self.url + "/api/submit_job", json.dumps(manifest).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S):
            return place

    def engine_is(self, available):
        until(f"the agent sees that the engine's availability is {available}",
              lambda: json.loads(self.get("/api/node"))["engine"]["available"] == available)

    def engine_is_gone(self, process):
        """Not only silent, but ended: what a payload does from now on is its own doing."""
        said = f"process {process.pid} has ended".encode()
        until("the agent sees that the engine has ended", lambda: said in (self.directory / "agent.log").read_bytes())


class OutageTest(unittest.TestCase):
    def begin(self, agent_arguments=(), boot_id=None, **options):
        # Not below /tmp, which everybody may write: an agent without the right to mount trusts no path there.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="hb-outage-", dir="/run"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.addCleanup(self.remove_groups)
        self.engine = SecondEngine(self.directory / "e", **options)
        self.addCleanup(self.engine.remove)
        self.agent = Agent(self.directory, self.engine)
        self.addCleanup(self.clean)
        self.agent.start(*agent_arguments, boot_id=boot_id)
        self.places = {}

    def tearDown(self):
        verified = self.agent.run_tool("verify")
        self.assertEqual(verified.returncode, 0, verified.stdout)

    def clean(self):
        if self.agent.process.poll() is None:
            self.agent.end()
        # An agent that is killed leaves its mounts to the next one, and here there is none.
        for line in reversed(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{self.directory}/data/mnt/"):
                subprocess.run(["umount", line.split()[4]], check=True)

    def remove_groups(self):
        """The control groups of a killed agent, once its engine is gone."""
        log_id = json.loads((self.agent.run_tool("dump").stdout.splitlines() or ["{}"])[0])["detail"]["log_id"]
        for group in pathlib.Path("/sys/fs/cgroup").glob(f"*/hackbrain-{log_id[:8]}"):
            for directory, _, _ in os.walk(group, topdown=False):
                os.rmdir(directory)

    def submit(self, **scripts):
        for job_id, script in scripts.items():
            self.places[job_id] = self.agent.submit(job_id, script)
        for job_id, script in scripts.items():
            sign = "up" if "touch up;" in script else "printed"
            # An engine that ends right after it has started a payload may not have written that down.
            until(f"{job_id} runs", lambda: (self.places[job_id] / sign).exists() and self.engine.has_noted(f"hb-{job_id}-1")
                  or self.has_not_ended(job_id))

    def has_not_ended(self, job_id):
        summary = self.agent.summary(job_id)
        self.assertNotEqual(summary["phase"], "ended", summary)

    def go(self, *job_ids):
        """Lets them end by themselves, and returns when they have ended."""
        # By shim: of the processes of one, those between fork and exec look like their parent, and are soon gone.
        groups = [self.late_ones(pid) for pid, line in self.engine.processes() if "containerd-shim" in line]
        for job_id in job_ids:
            (self.places[job_id] / "go").touch()
        # Reaped, not only ended: the shim notes when it does that, and on a busy machine that is later.
        gone = lambda group: group and not any(pathlib.Path(f"/proc/{pid}").exists() for pid in group)
        until("their payloads have ended", lambda: len([group for group in groups if gone(group)]) >= len(job_ids))
        # When a process was started is known to a hundredth of a second.
        time.sleep(0.05)

    @staticmethod
    def late_ones(shim):
        """The processes of a payload that can end by itself, its init among them."""
        return [pid for pid in descendants(shim) if "late; exit" in command_line(pid)]

    def check(self, job_id, states, attempts, detail=(), stored_attempt=None):
        """The end of a job: its states, how often it was started, and what the last event but SEALED tells."""
        summary = self.agent.summary(job_id, f"?wait=SEALED&timeout_s={PATIENCE_S}")
        events = [json.loads(line) for line in self.agent.get(f"/api/jobs/{job_id}/trace").splitlines()]
        self.assertEqual([event["state"] for event in events if event["state"] != "D1_STABLE"],
                         ["RECEIVED", "SCHEDULED", "RUNNING", *states], summary)
        self.assertEqual(summary["attempt"], attempts, summary)
        starts = (self.places[job_id] / "starts").read_text().count("start")
        self.assertEqual(starts, attempts, f"{job_id}: starts and attempts")
        told = next(event for event in events if event["state"] == states[0])["detail"]
        self.assertEqual({name: told.get(name) for name in dict(detail)}, dict(detail), told)
        return told

    def check_crash(self, job_id, cause, exit_code):
        told = self.check(job_id, ["CRASH", "RECOVERY", "COMPLETED", "SEALED"], 2,
                          {"cause": cause, "exit_code": exit_code})
        # Attempt 2 ends after it has said that it began.
        printed = (self.places[job_id] / "printed").read_bytes()
        first = self.agent.get(f"/api/jobs/{job_id}/stdout?attempt=1")
        second = self.agent.get(f"/api/jobs/{job_id}/stdout?attempt=2")
        self.assertEqual(second, b"[D1_STABLE] begun\n")
        if told["stdout"].get("complete", True):
            self.assertEqual(first + second, printed, "output that is called complete is not")
        else:
            self.assertTrue(printed.startswith(first), "output that was not printed")
        return told

    def check_own(self, job_id, exit_code):
        """It ended by itself, in attempt 1, with a last line which no engine read."""
        states = ["COMPLETED", "SEALED"] if exit_code == 0 else ["FAILED"]
        told = self.check(job_id, states, 1, {"exit_code": exit_code})
        printed = (self.places[job_id] / "printed").read_bytes()
        self.assertEqual(printed, b"[D1_STABLE] begun\nlate\n")
        stored = self.agent.get(f"/api/jobs/{job_id}/stdout")
        self.assertTrue(printed.startswith(stored))
        self.assertFalse(told["stdout"].get("complete", True), "the engine read nothing while it was away, and cannot know")
        return told

    def test_what_a_stopped_engine_stopped_has_crashed_whatever_its_exit_code(self):
        self.begin(("--workers", "4"))
        self.submit(plain=PLAIN, says0=on_term(0), says99=on_term(99), own=by_itself(7))
        # An end before the outage is none of its.
        (self.places["own"] / "go").touch()
        told = self.check("own", ["FAILED"], 1, {"reason": "exit", "exit_code": 7})
        self.assertTrue(told["stdout"].get("complete", True))
        self.engine.terminate()
        self.agent.engine_is(False)
        self.engine.start()
        for job_id, exit_code in (("plain", 143), ("says0", 0), ("says99", 99)):
            told = self.check_crash(job_id, "engine", exit_code)
            self.assertTrue(told["stdout"].get("complete", True), "its CLI was attached to the end")
        # Nothing is held against who comes after.
        self.submit(after=by_itself(143), killed=PLAIN)
        (self.places["after"] / "go").touch()
        self.check("after", ["FAILED"], 1, {"reason": "exit", "exit_code": 143})
        self.engine.docker("kill", "hb-killed-1")
        self.check_crash("killed", "killed", 137)

    def test_a_killed_engine_ends_containers_when_it_starts_and_others_end_by_themselves(self):
        self.begin(("--workers", "5"))
        self.submit(plain=PLAIN, says0=on_term(0), own0=by_itself(0), own7=by_itself(7), deaf=BEGIN + "trap '' TERM; touch up; " + WAIT)
        self.engine.kill()
        self.agent.engine_is_gone(self.engine.process)
        self.go("own0", "own7")
        self.engine.start()
        self.check_own("own0", 0)
        self.check_own("own7", 7)
        for job_id, exit_code in (("plain", 143), ("says0", 0), ("deaf", 137)):
            self.check_crash(job_id, "engine", exit_code)

    def test_an_engine_that_only_hangs_has_ended_nothing(self):
        self.begin(("--workers", "2"))
        self.submit(own7=by_itself(7), own143=by_itself(143))
        self.engine.process.send_signal(signal.SIGSTOP)
        self.agent.engine_is(False)
        self.go("own7", "own143")
        self.engine.process.send_signal(signal.SIGCONT)
        for job_id, exit_code in (("own7", 7), ("own143", 143)):
            told = self.check(job_id, ["FAILED"], 1, {"reason": "exit", "exit_code": exit_code})
            self.assertTrue(told["stdout"].get("complete", True))
            self.assertEqual(self.agent.get(f"/api/jobs/{job_id}/stdout"), b"[D1_STABLE] begun\nlate\n")

    def test_with_live_restore_containers_outlive_the_engine(self):
        self.begin(("--workers", "3"), live_restore=True)
        lives = BEGIN + WAIT + "say late; exit 0"
        self.submit(lives=lives, own7=by_itself(7), own0=by_itself(0))
        for end, own in ((self.engine.terminate, ("own7", 7)), (self.engine.kill, ("own0", 0))):
            end()
            self.agent.engine_is_gone(self.engine.process)
            self.go(own[0])
            self.engine.start()
            self.agent.engine_is(True)
            self.check_own(*own)
            self.assertEqual(self.agent.summary("lives")["attempt"], 1)
        (self.places["lives"] / "go").touch()
        told = self.check("lives", ["COMPLETED", "SEALED"], 1, {"exit_code": 0})
        stored = self.agent.get("/api/jobs/lives/stdout")
        self.assertEqual((stored, told["stdout"].get("complete", True)), (b"[D1_STABLE] begun\nlate\n", True))

    def test_an_agent_that_was_dead_meanwhile_knows_an_engine_that_is_younger_than_the_container(self):
        self.begin(("--workers", "3"))
        self.submit(plain=PLAIN, says0=on_term(0))
        self.agent.end()
        self.engine.terminate()
        self.engine.start()
        self.agent.start("--workers", "3")
        self.check_crash("plain", "engine", 143)
        self.check_crash("says0", "engine", 0)
        # The engine is killed this time, and ends them when it starts.
        self.submit(plain2=PLAIN, says99=on_term(99))
        self.agent.end()
        self.engine.kill()
        self.engine.start()
        self.agent.start("--workers", "3")
        self.check_crash("plain2", "engine", 143)
        self.check_crash("says99", "engine", 99)

    def test_a_payload_that_its_engine_has_lost_sight_of_ends_before_the_next_attempt_begins(self):
        self.begin()
        # Two that work in one directory at a time would spoil each other's results: the second attempt looks whether the
        # first still writes.
        looks = "{ n=$(wc -l < beats); sleep 1; [ $n = $(wc -l < beats) ] || exit 9; exit 0; }"
        self.submit(lost=f"{BEGIN.replace('exit 0', looks)}while :; do echo >> beats; sleep 0.02; done")
        self.engine.kill()
        # As an engine leaves it that is killed between starting a payload and writing that down, which is a matter of
        # milliseconds: it takes the container for one that never ran.
        self.engine.forget_the_start("hb-lost-1")
        self.engine.start()
        states = ["CRASH", "RECOVERY", "COMPLETED", "SEALED"]
        self.check("lost", states, 2, {"cause": "engine", "exit_code": None})

    def test_a_host_that_loses_power_or_is_rebooted_is_the_cause(self):
        self.begin(boot_id=str(uuid.uuid4()))
        self.submit(power=PLAIN)
        self.agent.end()
        self.engine.lose_power()
        self.engine.start()
        boot_id = str(uuid.uuid4())
        self.agent.start(boot_id=boot_id)
        self.check_crash("power", "host", 255)
        self.submit(orderly=PLAIN, says0=on_term(0))
        self.agent.end(signal.SIGTERM)
        self.engine.terminate()
        self.engine.start()
        self.agent.start(boot_id=str(uuid.uuid4()))
        self.check_crash("orderly", "host", 143)
        self.check_crash("says0", "host", 0)

    def test_jobs_wait_for_an_engine_that_is_away_before_they_start(self):
        self.begin(("--workers", "1"), live_restore=True)
        self.submit(first=by_itself(0))
        scheduled = [f"scheduled{n}" for n in range(3)]
        for job_id in scheduled:
            self.places[job_id] = self.agent.submit(job_id, BEGIN)
            self.agent.summary(job_id, "?wait=SCHEDULED")
        self.agent.end()
        self.engine.terminate()
        self.agent.start("--workers", "4")
        self.agent.engine_is(False)
        self.places["received"] = self.agent.submit("received", BEGIN)
        node = json.loads(self.agent.get("/api/node"))["engine"]
        self.assertIn(str(self.engine.socket), node["message"])
        for job_id in (*scheduled, "received"):
            summary = until(f"{job_id} says what it waits for",
                            lambda: [s for s in [self.agent.summary(job_id)] if s.get("waiting_for")])[0]
            self.assertEqual(summary["state"], "SCHEDULED" if job_id in scheduled else "RECEIVED")
            self.assertIn(str(self.engine.socket), summary["waiting_for"])
        self.engine.start()
        self.agent.engine_is(True)
        for job_id in (*scheduled, "received"):
            self.check(job_id, ["COMPLETED", "SEALED"], 1)
        (self.places["first"] / "go").touch()
        self.check("first", ["COMPLETED", "SEALED"], 1)

    def test_a_full_engine_and_an_absent_image_fail_in_the_engines_own_words(self):
        self.begin(disk_mib=64)
        self.places["absent"] = self.agent.submit("absent", BEGIN, image="127.0.0.1:9/absent:none")
        summary = self.agent.summary("absent", f"?wait=SEALED&timeout_s={PATIENCE_S}")
        self.assertEqual((summary["state"], summary["reason"]), ("FAILED", "image"))
        failed = json.loads(self.agent.get("/api/jobs/absent/trace").splitlines()[-1])["detail"]
        self.assertIn("127.0.0.1:9", failed["message"])
        self.assertIn("connection refused", failed["message"])

        fill = self.engine.data / "fill"
        with open(fill, "wb", buffering=0) as file:
            with self.assertRaises(OSError):
                while True:
                    file.write(bytes(4096))
        self.places["full"] = self.agent.submit("full", BEGIN)
        summary = self.agent.summary("full", f"?wait=SEALED&timeout_s={PATIENCE_S}")
        failed = json.loads(self.agent.get("/api/jobs/full/trace").splitlines()[-1])["detail"]
        self.assertEqual(summary["state"], "FAILED", failed)
        self.assertIn("no space left on device", failed["message"])
        self.assertFalse((self.places["full"] / "starts").exists())
        fill.unlink()
        self.submit(after=BEGIN)
        self.check("after", ["COMPLETED", "SEALED"], 1)


if __name__ == "__main__":
    unittest.main()
