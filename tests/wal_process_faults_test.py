"""The real agent whose system calls on the ledger fail: it says so, ends with 74, and keeps what it acknowledged; a full
disk while a segment is prepared heals. strace injects the faults, into one thread at a time, since it counts the calls of each
thread apart. A sample of the calls is failed; all of them with HACKBRAIN_FAULTS=all. Standard library only."""
import collections
import concurrent.futures
import hashlib
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("HACKBRAIN_BIN") or str(ROOT / "target/debug/hackbrain")
ALL = os.environ.get("HACKBRAIN_FAULTS") == "all"
SEED = int(os.environ.get("HACKBRAIN_SEED", time.time_ns() % 1_000_000))
# How many calls of each kind are failed in the ordinary run.
SAMPLE = 2
# Runs wait more than they work: an agent that ends gives its clients time to hear of it.
AT_ONCE = 4
CLIENTS = 4
# Each manifest is so large that the first segment, of 1 MiB, is full after about sixteen.
PADDING_BYTES = 60_000
SUBMISSIONS = 40
PATIENCE_S = 30
EX_IOERR = 74
# Without an engine a job waits, and nothing but submissions writes to the ledger.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("HACKBRAIN_", "RUST_LOG"))} | {
    "DOCKER_HOST": "unix:///nonexistent.sock"}

EIO, FULL, SHORT = "error=EIO", "error=ENOSPC", "retval=512"
# Whatever a failed test leaves running.
STARTED = []
Answer = collections.namedtuple("Answer", "asked ended status body")
Fault = collections.namedtuple("Fault", "call how number")


def until(what, condition):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def injecting(fault, trace):
    # As a grandchild, so that the process started is the agent, with its own exit code.
    command = ["strace", "-D", "-f", "-o", str(trace), "-e", "trace=pwrite64,fdatasync,fsync,rename,openat"]
    return command + (["-e", f"inject={fault.call}:{fault.how}:when={fault.number}"] if fault else [])


class Agent:
    """An agent on `directory`/data; below strace from its first call where `traced` is a command for that."""

    def __init__(self, directory, traced=()):
        self.data, self.said = directory / "data", directory / "agent.log"
        self.said.write_bytes(b"")
        self.url = None
        with open(self.said, "ab") as stderr:
            self.process = subprocess.Popen(
                [*traced, BINARY, "serve", "--data", self.data, "--listen", "127.0.0.1:0", "--segment-size", "4194304"],
                stderr=stderr, env=ENVIRONMENT)
        STARTED.append(self.process)
        until("the agent listens or ends", self.listens_or_ended)
        if self.url:
            until("the agent is ready or ends", lambda: self.process.poll() is not None or self.ask("GET", "/readyz")[0] == 200)

    def listens_or_ended(self):
        found = re.search(rb"listening on http://(\S+)", self.said.read_bytes())
        self.url = found and found[1].decode()
        return found or self.process.poll() is not None

    def ask(self, method, path, body=None):
        """Status and JSON; status 0 where no whole answer came."""
        connection = http.client.HTTPConnection(self.url, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    def thread(self, name):
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            if (task / "comm").read_text().strip() == name:
                return task.name
        raise AssertionError(f"no thread {name}")

    def load(self, enough):
        """Submissions of several clients, each with its answer, until `enough`, which is given the answers, or the end."""
        answers, numbers, lock = [], iter(range(10_000)), threading.Lock()

        def client():
            while True:
                with lock:
                    if enough(answers):
                        return
                    job_id = f"fault-{next(numbers)}"
                manifest = {"job_id": job_id, "image_hash": "none", "command": ["true"], "env": {"A": "x" * PADDING_BYTES}}
                asked = time.monotonic()
                status, body = self.ask("POST", "/api/submit_job", json.dumps(manifest))
                with lock:
                    answers.append(Answer(asked, time.monotonic(), status, body))
                if status == 0 and self.process.poll() is not None:
                    return
                if status != 200:
                    time.sleep(0.02)

        clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        return answers

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def tool(directory, name):
    return subprocess.run([BINARY, name, "--data", directory / "data"], capture_output=True, env=ENVIRONMENT, check=False)


class ProcessFaults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not shutil.which("strace"):
            raise unittest.SkipTest("skipped: strace is missing")
        if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
            raise unittest.SkipTest("skipped: this process may not trace another")
        print(f"seed {SEED}, {'every call' if ALL else f'{SAMPLE} calls of each kind'}")
        cls.chance = random.Random(SEED)

    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="hackbrain-faults-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.addCleanup(self.end_all)

    @staticmethod
    def end_all():
        while STARTED:
            process = STARTED.pop()
            process.kill()
            process.wait()

    def each(self, check, faults):
        """Runs `check(fault, directory)` for each fault, several at once; one message tells of all that failed."""
        def one(fault):
            directory = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
            try:
                check(fault, directory)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                said = (directory / "agent.log").read_text() if (directory / "agent.log").exists() else ""
                return f"{fault}: {error}\n{said}"
            shutil.rmtree(directory)
            return None

        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            failed = [message for message in pool.map(one, faults) if message]
        self.assertEqual(failed, [], f"{len(failed)} of {len(faults)} failed:\n" + "\n".join(failed))
        print(f"{self.id().split('.')[-1]}: {len(faults)} faults, {time.monotonic() - began:.1f} s")

    def faults(self, counts, hows):
        """Of each call in `counts`, and each way in which it can fail, some numbers: the first, and others by chance."""
        faults = []
        for call, count in sorted(counts.items()):
            for how in hows:
                if how == SHORT and call != "pwrite64":
                    continue
                numbers = range(1, count + 1)
                if not ALL and count > SAMPLE:
                    numbers = [1, *self.chance.sample(numbers[1:], SAMPLE - 1)]
                faults += [Fault(call, how, number) for number in numbers]
        return faults

    def count(self, start):
        """How often each thread makes each call while `start`, given a directory and a trace, runs without a fault."""
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
        trace = directory / "trace"
        start(directory, trace)
        counts = collections.defaultdict(collections.Counter)
        for line in trace.read_text().splitlines():
            found = re.match(r"(\d+) +(pwrite64|fdatasync|fsync|rename|openat)\((.*)", line)
            if found and (found[2] != "openat" or ".log.tmp" in found[3] and "O_CREAT" in found[3]):
                counts[int(found[1])][found[2]] += 1
        return counts

    def attach(self, agent, thread, fault, trace):
        command = injecting(fault, trace)
        command = [word for word in command if word not in ("-D", "-f")]
        strace = subprocess.Popen([*command, "-p", agent.thread(thread)], stderr=subprocess.PIPE)
        self.addCleanup(strace.stderr.close)
        self.assertIn(b"attached", strace.stderr.readline())
        STARTED.append(strace)

    def check_met(self, trace):
        until("the fault was injected", lambda: "INJECTED" in trace.read_text())

    def check_kept(self, directory, answers):
        """After a restart every acknowledged job is there, byte for byte; and after the first refusal none was taken."""
        accepted = [answer for answer in answers if answer.status == 200]
        verified = tool(directory, "verify")
        # 64 where the fault came before there was any ledger.
        self.assertIn(verified.returncode, (0,) if accepted else (0, 64), verified.stdout)
        again = Agent(directory)
        self.assertIsNotNone(again.url, "it does not start again")
        for answer in accepted[:3] + accepted[-3:]:
            status, job = again.ask("GET", f"/api/jobs/{answer.body['job_id']}")
            self.assertEqual((status, job and job["state"]), (200, "RECEIVED"))
        self.assertEqual(again.end(), 0)
        dump = tool(directory, "dump")
        self.assertEqual(dump.returncode, 0, dump.stderr)
        stored = {}
        for line in dump.stdout.splitlines():
            event = json.loads(line)
            stored[event["seq"]] = (event.get("job_id"), hashlib.sha256(line).hexdigest())
        for answer in accepted:
            body = answer.body
            self.assertEqual(stored.get(body["seq"]), (body["job_id"], body["hash"]), "an acknowledged job is not there")

    def check_ended(self, agent, answers):
        """It ended by itself with 74 and said why; whoever asked after the fault was refused."""
        self.assertEqual(agent.process.wait(PATIENCE_S), EX_IOERR)
        self.assertIn("hackbrain: the ledger cannot be written: ", agent.said.read_text())
        refused = [answer for answer in answers if answer.status == 503]
        self.assertTrue(refused, "nobody was told")
        for answer in refused:
            self.assertIn(answer.body["error"]["code"], ("ledger_latched", "ledger_full", "stopping"))
        first = min(answer.ended for answer in refused)
        late = [answer for answer in answers if answer.status == 200 and answer.asked > first]
        self.assertEqual(late, [], "acknowledged after the fault")
        self.assertEqual({answer.status for answer in answers} - {200, 503, 0}, set())

    def check_start(self, fault, directory):
        trace = directory / "trace"
        agent = Agent(directory, injecting(fault, trace))
        answers = agent.load(lambda answers: len(answers) >= SUBMISSIONS) if agent.url else []
        self.check_met(trace)
        code = agent.end()
        said = agent.said.read_text()
        if not agent.url:
            self.assertEqual(code, EX_IOERR, "what hinders a start is an I/O error")
        if code == EX_IOERR:
            self.assertRegex(said, r"hackbrain: .+(os error|short write)", "it says what failed")
        else:
            self.assertEqual(code, 0)
        self.check_kept(directory, answers)

    def test_a_fault_while_a_new_ledger_is_made_is_told_and_harms_nothing(self):
        def start(directory, trace):
            self.assertEqual(Agent(directory, injecting(None, trace)).end(), 0)

        # The first thread that is traced opens the ledger.
        counts = self.count(start)
        self.each(self.check_start, self.faults(counts[min(counts)], (EIO, FULL, SHORT)))

    def test_a_fault_while_a_ledger_is_opened_again_is_told_and_harms_nothing(self):
        full = self.directory / "full"
        full.mkdir()
        agent = Agent(full)
        before = agent.load(lambda answers: len(answers) >= SUBMISSIONS)
        agent.end(signal.SIGKILL)

        def start(directory, trace):
            shutil.copytree(full / "data", directory / "data")
            self.assertEqual(Agent(directory, injecting(None, trace)).end(), 0)

        def check(fault, directory):
            shutil.copytree(full / "data", directory / "data")
            self.check_start(fault, directory)
            self.check_kept(directory, before)

        counts = self.count(start)
        self.each(check, self.faults(counts[min(counts)], (EIO, FULL, SHORT)))

    def counts_of(self, thread):
        def start(directory, trace):
            agent = Agent(directory)
            self.attach(agent, thread, None, trace)
            agent.load(lambda answers: len(answers) >= SUBMISSIONS)
            self.assertEqual(agent.end(), 0)

        # Attached to one thread, strace writes no thread's number.
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
        start(directory, directory / "trace")
        counts = collections.Counter()
        for line in (directory / "trace").read_text().splitlines():
            call, _, rest = line.partition("(")
            if call in ("pwrite64", "fdatasync", "fsync", "rename") or call == "openat" and "O_CREAT" in rest:
                counts[call] += 1
        return counts

    def test_a_fault_in_the_thread_that_commits_ends_the_agent_and_loses_nothing_acknowledged(self):
        counts = self.counts_of("wal-commit")
        self.assertTrue(counts["rename"] and counts["fsync"], f"the load changes segments: {counts}")

        def check(fault, directory):
            agent, trace = Agent(directory), directory / "trace"
            self.attach(agent, "wal-commit", fault, trace)
            answers = agent.load(lambda answers: len(answers) > 5 * SUBMISSIONS)
            self.check_met(trace)
            self.assertLessEqual(len(answers), 5 * SUBMISSIONS, "it goes on as if nothing had happened")
            self.check_ended(agent, answers)
            self.check_kept(directory, answers)

        self.each(check, self.faults(counts, (EIO, FULL, SHORT)))

    def test_a_fault_in_the_thread_that_prepares_ends_the_agent_unless_the_disk_is_just_full(self):
        counts = self.counts_of("wal-prepare")
        self.assertTrue(counts["openat"] and counts["pwrite64"] and counts["fdatasync"], f"it prepares: {counts}")

        def check(fault, directory):
            agent, trace = Agent(directory), directory / "trace"
            self.attach(agent, "wal-prepare", fault, trace)
            accepted = lambda answers: sum(answer.status == 200 for answer in answers)
            deadline = time.monotonic() + PATIENCE_S
            answers = agent.load(lambda answers: accepted(answers) >= SUBMISSIONS or time.monotonic() > deadline)
            self.check_met(trace)
            if fault.how == EIO:
                self.assertLess(accepted(answers), SUBMISSIONS, "it goes on as if nothing had happened")
                self.check_ended(agent, answers)
            else:
                self.assertGreaterEqual(accepted(answers), SUBMISSIONS, "it heals")
                codes = {answer.body["error"]["code"] for answer in answers if answer.status == 503}
                self.assertLessEqual(codes, {"ledger_full"})
                self.assertEqual({answer.status for answer in answers} - {200, 503}, set())
                self.assertEqual(agent.end(), 0)
            self.check_kept(directory, answers)

        first = {call: min(count, {"openat": 1, "fdatasync": 1}.get(call, 4)) for call, count in counts.items()}
        self.each(check, self.faults(first, (EIO, FULL, SHORT)))


if __name__ == "__main__":
    unittest.main()
