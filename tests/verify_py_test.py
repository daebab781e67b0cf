"""scripts/verify.py against real data directories, made-up ledgers and bundles, sound ones and tampered with; where the
ledger is concerned, `hackbrain verify` has to say the same. Standard library only."""

import ast
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import types
import unittest
import urllib.request
import warnings

from kill_rounds_test import ROOT, Agent
from wal_writer import Events, Log, segment_header, witness

SCRIPT = ROOT / "scripts/verify.py"
SEED = int(os.environ.get("HACKBRAIN_SEED") or random.randrange(2**32))
# To be read in one sitting: it has to be trusted by whoever does not trust the agent.
LINES_MAX = 431
# New, changed, removed, moved to another mode; names that need escapes of every kind; what is no regular file.
FIRST = r"""
echo out; echo err >&2; echo changed > in.txt; rm gone; chmod 600 mode; mkdir -p new/dir; echo q > new/dir/f
printf x > "$(printf 'nl\nname')"; printf y > "$(printf 'bad\377%%41')"; printf z > 'back\slash'; printf u > 'ü'
ln -s in.txt link; ln -s new linked; mkfifo fifo; echo '[D1_STABLE] a'
"""
SECOND = "echo 2 > in.txt; rm mode; echo second > more; chmod 4711 sub/deep"
ONCE = "echo begun; if [ ! -e once ]; then touch once; %s; fi; echo out > out"
PREFIX = f"vpy-{os.getpid()}-{time.time_ns() % 1_000_000}"


def name(job):
    return f"{PREFIX}-{job}"


def load_script():
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("verify", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT_MODULE = load_script()
# What looks damaged is looked at again; here nobody is writing.
SCRIPT_MODULE.time = types.SimpleNamespace(sleep=lambda _: None)


def verify(path, bundle=False):
    """(exit code, lines) of the script, inside this process: much faster, and there are some hundred cases."""
    SCRIPT_MODULE.FAULTS.clear()
    SCRIPT_MODULE.GONE.clear()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = SCRIPT_MODULE.run(SCRIPT_MODULE.read_bundle if bundle else SCRIPT_MODULE.read_directory, path, [])
    return code, out.getvalue().splitlines()


def run_script(*arguments):
    """The same, run as a user runs it."""
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, check=False)
    if done.returncode in (0, 65):
        assert done.stderr == b"", done.stderr.decode()
    return done.returncode, done.stdout.decode().splitlines()


def hackbrain(*arguments):
    binary = os.environ.get("HACKBRAIN_BIN") or str(ROOT / "target/debug/hackbrain")
    return subprocess.run([binary, *arguments], capture_output=True, check=False)


def ledger_verdict(data):
    """What `hackbrain verify` says of the ledger: (exit code, head line)."""
    done = hackbrain("verify", "--data", data)
    return done.returncode, done.stdout.decode().splitlines()[-1]


def make_inputs(directory):
    for path, content in {"in.txt": "in", "gone": "gone", "keep": "keep", "mode": "mode", "sub/deep": "deep"}.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(content)
    (directory / "run").write_text("")
    (directory / "run").chmod(0o755)
    (directory / "empty").mkdir()
    os.symlink("to%where\n", directory / "text")
    os.mkfifo(directory / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "socket"))
    listener.close()


def submit(agent, job, script, *mounts, **more):
    manifest = {"job_id": name(job), "image_hash": "busybox:latest", "command": ["sh", "-c", script], **more}
    if mounts:
        manifest["mount_spec"] = list(mounts)
    request = urllib.request.Request(
        agent.url + "/api/submit_job", json.dumps(manifest).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.load(answer)


def post(agent, job, action):
    request = urllib.request.Request(
        f"{agent.url}/api/jobs/{name(job)}/{action}", b"", {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=90) as answer:
        answer.read()


def wait(agent, job, state):
    summary = json.loads(agent.get(f"/api/jobs/{name(job)}?wait={state}&timeout_s=60"))
    assert summary["state"] == state, summary


def wait_for_output(agent, job, words):
    deadline = time.monotonic() + 60
    while words not in agent.get(f"/api/jobs/{name(job)}/stdout"):
        assert time.monotonic() < deadline, f"{job} does not print {words}"
        time.sleep(0.02)


class Recorded:
    """One real run of the agent, killed in the end: its data directory, one mounted directory, bundles of its jobs."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="hackbrain-verify-py-"))
        self.bundles = {}
        try:
            # Frames of few events and more than one segment.
            self.agent = Agent(self.directory, "--segment-size", str(4 << 20))
            self.data, self.mounted = self.agent.data, self.agent.payloads / "mounted"
            self.mounted.mkdir()
            self.run()
        except BaseException:
            self.remove()
            raise

    def run(self):
        agent, mount = self.agent, f"{self.mounted}:/job/workdir"
        make_inputs(self.mounted)
        read_only = agent.payloads / "read-only"
        read_only.mkdir()
        (read_only / "data").write_text("only read")
        self.receipt = submit(
            agent,
            "first",
            FIRST,
            mount,
            f"{read_only}:/job/ro:ro",
            env={"TZ": "CET", "X": 'ü\u2028"\\\x7f'},
            resources={"cpus": 0.25, "memory_mib": 64},
            timeout_s=60,
        )
        wait(agent, "first", "SEALED")
        self.keep_bundle("first")
        submit(agent, "scratch", "echo s > made; echo done")
        submit(agent, "failed", "echo failing; exit 3")
        submit(agent, "crash", ONCE % "kill -9 $$")
        submit(agent, "cancel", ONCE % "sleep 600")
        wait_for_output(agent, "cancel", b"begun")
        post(agent, "cancel", "cancel")
        wait(agent, "cancel", "CANCELLED")
        post(agent, "cancel", "retrigger")
        for job, state in {"scratch": "SEALED", "failed": "FAILED", "crash": "SEALED", "cancel": "SEALED"}.items():
            wait(agent, job, state)
            self.keep_bundle(job)
        submit(agent, "second", SECOND, mount)
        wait(agent, "second", "SEALED")
        submit(agent, "open", "echo open; sleep 600")
        wait_for_output(agent, "open", b"open")
        self.head = json.loads(agent.get("/api/ledger/head"))
        agent.end(signal.SIGKILL)

    def keep_bundle(self, job):
        """A bundle as docs/evidence.md has it, by the agent's routes and files: its parts by name, with their modes."""
        agent, parts = self.agent, {}
        trace = agent.get(f"/api/jobs/{name(job)}/trace")
        events = [json.loads(line) for line in trace.splitlines()]
        nodes = {event["detail"]["node_up"] for event in events if event["state"] in ("RUNNING", "RECOVERY")}
        ledger = agent.get("/api/ledger?from=1&limit=100000").splitlines(keepends=True)
        parts["events.jsonl"] = trace
        parts["node.jsonl"] = b"".join(ledger[seq - 1] for seq in sorted({1, *nodes}))
        manifest = events[0]["detail"]["manifest"]
        parts["manifest.json"] = json.dumps(
            manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        parts["inputs.json"] = (self.data / "inputs" / f"{name(job)}.json").read_bytes()
        for event in events:
            for stream in ("stdout", "stderr") if "stdout" in event["detail"] else ():
                path = f"{event['attempt']}.{stream}"
                parts[f"logs/{path}"] = (self.data / "logs" / name(job) / path).read_bytes()
        parts = {path: (content, 0o644) for path, content in parts.items()}
        if events[-1]["state"] == "SEALED":
            seal = agent.get(f"/api/jobs/{name(job)}/seal")
            parts["seal.json"] = seal, 0o644
            parts["seal.sha256"] = (self.data / "seals" / f"{name(job)}.sha256").read_bytes(), 0o644
            top = os.fsencode(self.mounted if job == "first" else self.data / "scratch" / name(job))
            for folder, _, files in os.walk(top):
                for path in (os.path.join(folder, file) for file in files):
                    inside = "/job/workdir" + os.fsdecode(path)[len(os.fsdecode(top)) :]
                    listed = (
                        inside.encode("utf-8", "surrogateescape")
                        .replace(b"%", b"%25")
                        .replace(b"\xff", b"%FF")
                        .decode()
                    )
                    if any(artifact["path"] == listed for artifact in json.loads(seal)["artifacts"]):
                        with open(path, "rb") as file:
                            parts["artifacts" + inside] = file.read(), stat.S_IMODE(os.lstat(path).st_mode)
        parts["README.txt"], parts["verify.py"] = (b"a bundle\n", 0o644), (SCRIPT.read_bytes(), 0o755)
        self.bundles[job] = parts

    def remove(self):
        agent = getattr(self, "agent", None)
        if agent and agent.process and agent.process.poll() is None:
            agent.end(signal.SIGKILL)
        left = subprocess.run(
            ["docker", "ps", "-aq", "--filter", f"name=^hb-{PREFIX}"], capture_output=True, text=True, check=True
        ).stdout.split()
        if left:
            subprocess.run(["docker", "rm", "-f", *left], capture_output=True, check=True)
        # An agent that is killed leaves its mounts to the next one, and here there is none.
        for line in reversed(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(str(self.directory)):
                subprocess.run(["umount", line.split()[4]], check=True)
        shutil.rmtree(self.directory)


def setUpModule():
    global RECORDED
    # The script leaves it to the interpreter to close what it read.
    warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
    print(f"verify_py_test: HACKBRAIN_SEED={SEED}", file=sys.stderr)
    RECORDED = Recorded()


def tearDownModule():
    RECORDED.remove()


@contextlib.contextmanager
def restored(path):
    """Puts a file back, with content and mode, or removes it where there was none."""
    before = (path.read_bytes(), stat.S_IMODE(path.lstat().st_mode)) if path.exists() else None
    try:
        yield path
    finally:
        if path.is_symlink() or path.exists():
            path.unlink()
        if before:
            path.write_bytes(before[0])
            path.chmod(before[1])


class DirectoryTest(unittest.TestCase):
    """The ledger is sound; what it vouches for is changed."""

    SUPERSEDED = ["in.txt", "mode", "more"]

    def setUp(self):
        self.data, self.mounted = RECORDED.data, RECORDED.mounted

    def check(self, faults, superseded=None):
        code, lines = verify(self.data)
        told = [line.partition(": ")[0] for line in lines]
        expected = {f"fault {kind} {name(job)} {path}" for kind, job, path in faults}
        notes = {
            f"note superseded {name('first')} /job/workdir/{path}"
            for path in (self.SUPERSEDED if superseded is None else superseded)
        }
        self.assertEqual(set(told[:-1]), expected | notes)
        self.assertEqual(len(told) - 1, len(expected | notes), "a line twice")
        self.assertEqual(
            (code, lines[-1]), (65 if faults else 0, f"head {RECORDED.head['seq']} {RECORDED.head['hash']}")
        )

    def test_a_sound_directory_has_no_fault_and_the_same_head(self):
        self.check([])
        self.assertEqual(ledger_verdict(self.data), (0, verify(self.data)[1][-1]))
        self.assertEqual(run_script(self.data), verify(self.data))

    def test_expected_events(self):
        receipt = f"{RECORDED.receipt['seq']}:{RECORDED.receipt['hash']}"
        head = f"{RECORDED.head['seq']}:{RECORDED.head['hash']}"
        self.assertEqual(run_script(self.data, "--expect", receipt, "--expect", head)[0], 0)
        for lacking in (f"{RECORDED.head['seq'] + 1}:{RECORDED.head['hash']}", f"{RECORDED.head['seq']}:{'0' * 64}"):
            code, lines = run_script(self.data, "--expect", receipt, "--expect", lacking)
            self.assertEqual(
                (code, [line[: 15 + len(lacking)] for line in lines if line.startswith("expected event ")]),
                (65, [f"expected event {lacking}"]),
            )
            self.assertTrue(lines[-1].startswith("head "))

    def test_usage(self):
        for arguments in (
            [],
            ["--expect", "1"],
            [self.data, "--bundle", "x"],
            [self.data, "--expect", "1:abc"],
            ["--odd"],
            [RECORDED.directory],
        ):
            self.assertEqual(run_script(*arguments), (64, []), arguments)
        self.assertEqual(run_script("--help")[0], 0)
        self.assertEqual(run_script("--bundle", RECORDED.directory / "nowhere.tar")[0], 74)

    def test_artifacts(self):
        work = "/job/workdir/"
        # The sealed name, as the script prints it.
        for path, shown in {
            "new/dir/f": "new/dir/f",
            "nl\nname": "nl%0Aname",
            "bad\udcff%41": "bad%FF%2541",
            "back\\slash": "back\\slash",
            "ü": "ü",
        }.items():
            with self.subTest(path=path), restored(self.mounted / path) as file:
                content = file.read_bytes()
                file.write_bytes(content + b"x")
                self.check([("artifact_changed", "first", work + shown)])
                file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
                self.check([("artifact_changed", "first", work + shown)])
                file.write_bytes(content)
                mode = stat.S_IMODE(file.stat().st_mode)
                for other in (mode ^ 0o111, mode ^ 0o002, mode | 0o4000):
                    file.chmod(other)
                    self.check([("artifact_changed", "first", work + shown)])
                file.chmod(mode)
                self.check([])
                file.unlink()
                self.check([("artifact_missing", "first", work + shown)])
                os.symlink("in.txt", file)
                self.check([("artifact_missing", "first", work + shown)])
                file.unlink()
                os.mkfifo(file)
                self.check([("artifact_missing", "first", work + shown)])

    def test_an_artifact_behind_a_symlink_is_missing(self):
        moved = self.mounted.parent / "moved"
        (self.mounted / "new").rename(moved)
        try:
            os.symlink(moved, self.mounted / "new")
            self.check([("artifact_missing", "first", "/job/workdir/new/dir/f")])
        finally:
            (self.mounted / "new").unlink()
            moved.rename(self.mounted / "new")

    def test_what_a_later_job_changed_is_its_own(self):
        with restored(self.mounted / "in.txt") as file:
            # The later job's artifact; the earlier one's is superseded whatever it holds.
            file.write_text("neither")
            self.check([("artifact_changed", "second", "/job/workdir/in.txt")])
            file.unlink()
            self.check([("artifact_missing", "second", "/job/workdir/in.txt")])
        with restored(self.mounted / "more") as file:
            file.unlink()
            self.check([("artifact_missing", "second", "/job/workdir/more")], superseded=["in.txt", "mode"])

    def test_extra_files(self):
        for path, shown in {"extra": "extra", "new/dir/\n\udcfe%": "new/dir/%0A%FE%25", "empty/ü": "empty/ü"}.items():
            with restored(self.mounted / path) as file:
                file.write_text("")
                self.check([("artifact_extra", job, f"/job/workdir/{shown}") for job in ("first", "second")])
        with restored(self.mounted / "a-link") as file:
            os.symlink("in.txt", file)
            self.check([])
        with restored(self.data / "scratch" / name("scratch") / "extra") as file:
            file.write_text("")
            self.check([("artifact_extra", "scratch", "/job/workdir/extra")])

    def test_inputs_that_are_no_artifacts_are_nobodys(self):
        with restored(self.mounted / "keep") as file:
            file.write_text("somebody went on working")
            self.check([])
        with restored(self.mounted.parent / "read-only" / "more") as file:
            file.write_text("")
            self.check([])

    def test_logs(self):
        for job, path in (
            ("first", "1.stdout"),
            ("first", "1.stderr"),
            ("failed", "1.stdout"),
            ("crash", "1.stdout"),
            ("crash", "2.stderr"),
            ("cancel", "1.stdout"),
            ("cancel", "2.stdout"),
        ):
            shown = f"logs/{name(job)}/{path}"
            with self.subTest(path=shown), restored(self.data / shown) as file:
                content = file.read_bytes()
                file.write_bytes(content + b"\n")
                self.check([("log_changed", job, shown)])
                if content:
                    file.write_bytes(content.swapcase())
                    self.check([("log_changed", job, shown)])
                file.unlink()
                self.check([("log_missing", job, shown)])
        with restored(self.data / "logs" / name("open") / "1.stdout") as file:
            file.write_text("not ended, so not vouched for")
            self.check([])

    def test_seals_and_lists(self):
        for job, superseded in (("first", []), ("crash", None)):
            for kind, path in (("seal", f"seals/{name(job)}.json"), ("list", f"seals/{name(job)}.sha256")):
                notes = superseded if kind == "seal" else None
                with self.subTest(path=path), restored(self.data / path) as file:
                    content = file.read_bytes()
                    file.write_bytes(content.replace(b"job/workdir", b"job/worKdir", 1))
                    self.check([(f"{kind}_changed", job, path)], notes)
                    file.write_bytes(content + b" ")
                    self.check([(f"{kind}_changed", job, path)], notes)
                    file.unlink()
                    self.check([(f"{kind}_missing", job, path)], notes)

    def test_without_its_seal_a_later_job_excuses_nothing(self):
        with restored(self.data / "seals" / f"{name('second')}.json") as file:
            file.write_text("{}")
            self.check(
                [
                    ("seal_changed", "second", f"seals/{name('second')}.json"),
                    ("artifact_changed", "first", "/job/workdir/in.txt"),
                    ("artifact_missing", "first", "/job/workdir/mode"),
                    ("artifact_extra", "first", "/job/workdir/more"),
                ],
                superseded=[],
            )

    def test_inputs(self):
        path = f"inputs/{name('first')}.json"
        changes = [
            (b'"container":"/job/ro"', b'"container":"/job/rw"'),
            (b'"read_only":true', b'"read_only":false'),
            (b'"path":"keep"', b'"path":"kept"'),
            (b'"kind":"fifo"', b'"kind":"file"'),
            (b'"kind":"socket"', b'"kind":"x"'),
            (
                b'"path":"run","kind":"file","size":0,"mode":"0755"',
                b'"path":"run","kind":"file","size":0,"mode":"0644"',
            ),
            (b'"target":"to%25', b'"target":"to%20'),
            (b'"kind":"directory"', b'"kind":"file"'),
            (b'"root":"', b'"root":"0'),
            (b'"entries":[{', b'"entries":[{},{'),
            (b'"path":"sub/deep"', b'"path":"sub/sub/deep"'),
            (b'"path":"sub/deep"', b'"path":"deep"'),
            (b"{", b"["),
        ]
        with restored(self.data / path) as file:
            content = file.read_bytes()
            for old, new in changes:
                with self.subTest(new=new):
                    changed = content.replace(old, new, 1)
                    self.assertNotEqual(changed, content)
                    file.write_bytes(changed)
                    # What a sound inputs file would show to be extra is not looked for.
                    self.check([("inputs_changed", "first", path)], superseded=["in.txt", "mode"])
            mounts = json.loads(content)
            mounts["mounts"].reverse()
            file.write_text(json.dumps(mounts))
            self.check([("inputs_changed", "first", path)], superseded=["in.txt", "mode"])
            file.unlink()
            self.check([("inputs_missing", "first", path)], superseded=["in.txt", "mode"])

    def test_without_the_mounted_directory_all_artifacts_are_missing(self):
        away = self.mounted.with_name("away")
        self.mounted.rename(away)
        try:
            sealed = json.loads((self.data / "seals" / f"{name('second')}.json").read_text())["artifacts"]
            mine = ["new/dir/f", "nl%0Aname", "bad%FF%2541", "back\\slash", "ü"]
            self.check(
                [("artifact_missing", "first", f"/job/workdir/{path}") for path in mine]
                + [("artifact_missing", "second", entry["path"]) for entry in sealed],
                superseded=["in.txt", "mode"],
            )
        finally:
            away.rename(self.mounted)

    def test_what_cannot_be_read_is_no_fault(self):
        # Root reads everything unless it gives that up. Another user may not be let to Python's own files.
        lacks = "-dac_override,-dac_read_search"
        drop = [] if os.geteuid() else ["setpriv", f"--bounding-set={lacks}", f"--inh-caps={lacks}"]
        with restored(self.data / "seals" / f"{name('first')}.json") as file:
            file.chmod(0)
            done = subprocess.run([*drop, sys.executable, SCRIPT, self.data], capture_output=True, check=False)
            self.assertEqual(done.returncode, 74, done)
            self.assertIn(str(file), done.stderr.decode())

    def test_it_runs_with_the_oldest_python(self):
        done = subprocess.run(
            [
                "docker",
                "run",
                "--rm",
                "--network",
                "none",
                "-e",
                "LC_ALL=C",
                "-v",
                f"{RECORDED.directory}:{RECORDED.directory}:ro",
                "-v",
                f"{SCRIPT}:/verify.py:ro",
                "--name",
                f"hb-{PREFIX}-python",
                "python:3.9-slim",
                "python",
                "/verify.py",
                self.data,
            ],
            capture_output=True,
            check=False,
        )
        self.assertEqual(
            (done.returncode, done.stdout.decode().splitlines(), done.stderr), (*run_script(self.data), b"")
        )


class RealLedgerTest(unittest.TestCase):
    """The real ledger, damaged: both programs say the same."""

    def setUp(self):
        self.holder = tempfile.TemporaryDirectory(prefix="hackbrain-verify-py-")
        self.addCleanup(self.holder.cleanup)
        self.data = pathlib.Path(self.holder.name) / "data"
        (self.data / "wal").mkdir(parents=True)
        for path in ("inputs", "logs", "seals", "scratch"):
            os.symlink(RECORDED.data / path, self.data / path)
        self.sound = {
            path.name: path.read_bytes() for path in (RECORDED.data / "wal").iterdir() if path.suffix != ".tmp"
        }
        self.verdicts = []

    def check(self, what, files):
        wal = self.data / "wal"
        for path in wal.iterdir():
            path.unlink()
        for path, content in files.items():
            (wal / path).write_bytes(content)
        code, lines = verify(self.data)
        with self.subTest(what=what):
            # A sound ledger that ends earlier does not know the later job, and so not what excuses its changes.
            damaged = any(line.startswith("damaged: ") for line in lines)
            self.assertEqual((65 if damaged else 0, lines[-1]), ledger_verdict(self.data), lines)
            self.assertTrue(code == 65 or not damaged)
            if damaged:
                self.assertFalse([line for line in lines if line.startswith(("fault", "note"))])
        self.verdicts.append(damaged)
        return damaged

    def test_bit_flips_all_over(self):
        chance = random.Random(SEED)
        self.assertFalse(self.check("sound", self.sound))
        first = "wal-0000000000000001.log"
        used = len(self.sound[first].rstrip(b"\0"))
        for _ in range(40):
            at, bit = chance.randrange(used), chance.randrange(8)
            changed = bytearray(self.sound[first])
            changed[at] ^= 1 << bit
            self.check(f"bit {bit} of byte {at}", {**self.sound, first: changed})
        # All but the two copies of the header are covered by one checksum alone.
        self.assertGreater(sum(self.verdicts), 20)
        for at in range(0, 8192, 700):
            changed = bytearray(self.sound["segments"])
            changed[at] ^= 1
            self.assertFalse(self.check(f"byte {at} of the witness", {**self.sound, "segments": changed}))

    def test_sectors_and_tails(self):
        first = "wal-0000000000000001.log"
        content = self.sound[first]
        used = -(-len(content.rstrip(b"\0")) // 512) * 512
        chance = random.Random(SEED)
        for at in sorted(chance.sample(range(8192, used, 512), 12)):
            self.check(f"sector {at} zeroed", {**self.sound, first: content[:at] + bytes(512) + content[at + 512 :]})
            self.check(f"zeros from {at}", {**self.sound, first: content[:at] + bytes(len(content) - at)})
            self.check(f"cut at {at}", {**self.sound, first: content[:at]})
            self.check(
                f"noise at {at}", {**self.sound, first: content[:at] + chance.randbytes(512) + content[at + 512 :]}
            )
        block = chance.randrange(2, used // 4096) * 4096
        self.check(
            "a block again behind the end",
            {
                **self.sound,
                first: content[: used // 4096 * 4096 + 4096]
                + content[block : block + 4096]
                + content[used // 4096 * 4096 + 8192 :],
            },
        )
        self.assertTrue(any(self.verdicts) and not all(self.verdicts))

    def test_files(self):
        first = "wal-0000000000000001.log"
        self.assertTrue(self.check("no witness", {first: self.sound[first]}))
        self.assertTrue(self.check("no segment", {"segments": self.sound["segments"]}))
        self.assertTrue(self.check("longer", {**self.sound, first: self.sound[first] + bytes(4096)}))
        self.assertTrue(
            self.check(
                "renumbered", {"segments": self.sound["segments"], "wal-0000000000000002.log": self.sound[first]}
            )
        )
        self.assertTrue(self.check("twice", {**self.sound, "wal-0000000000000002.log": self.sound[first]}))
        self.assertTrue(self.check("empty witness", {**self.sound, "segments": b""}))
        self.assertTrue(self.check("witness of another log", {**self.sound, "segments": witness(1, 1)}))
        self.assertTrue(
            self.check(
                "witness knows more", {**self.sound, "segments": self.sound["segments"].replace(b"last 1", b"last 2")}
            )
        )


class MadeLedgerTest(unittest.TestCase):
    """Ledgers that no agent would write."""

    def setUp(self):
        self.holder = tempfile.TemporaryDirectory(prefix="hackbrain-verify-py-")
        self.addCleanup(self.holder.cleanup)

    def run_script(self):
        lines = verify(self.holder.name)[1]
        damaged = any(line.startswith("damaged: ") for line in lines)
        return (65 if damaged else 0), lines[-1]

    def check(self, what, log, slots=True, same=True):
        """The verdict, of which `hackbrain verify` has the same unless told otherwise."""
        log.save(self.holder.name, slots)
        mine = self.run_script()
        with self.subTest(what=what):
            if same:
                self.assertEqual(mine, ledger_verdict(self.holder.name))
        return mine[0]

    @staticmethod
    def begun():
        log, events = Log(), Events()
        log.put(events.genesis())
        log.put(events.received("a"), events.received("b"))
        return log, events

    def test_segments(self):
        def two(**header):
            log, events = self.begun()
            log.put()
            log.open(**header)
            log.put(events.event("NODE_DOWN"))
            return log

        self.assertEqual(self.check("two", two()), 0)
        other = {"number": 3, "seq": 5, "commit": 3, "end": 16384, "before": bytes(32), "log": bytes(16)}
        for key, value in other.items():
            self.assertEqual(self.check(f"header with {key} {value}", two(**{key: value})), 65)
        longer = two()
        longer.segments[1] += bytes(4096)
        self.assertEqual(self.check("longer than its header tells", longer), 65)
        different = two()
        different.segments[1][4096:8192] = segment_header(
            2, 64 * 1024, 1003, 4, 4, 20480, different.segments[1][88:120]
        )
        self.assertEqual(self.check("two sound headers, not the same", different), 65)
        for slots, code in (
            (witness(2, 1), 0),
            (witness(1, 1), 0),
            (witness(2, 3), 65),
            (witness(2, 1)[:8191], 65),
            (None, 65),
        ):
            self.assertEqual(self.check("witness", two(), slots), code)
        for spots, code in (((5,), 0), ((4101,), 0), ((5, 4101), 65)):
            log = two()
            for spot in spots:
                log.segments[1][spot] ^= 1
            self.assertEqual(self.check(f"headers flipped at {spots}", log), code)
        three = two()
        three.open()
        self.assertEqual(self.check("three, known two", three, witness(2, 1)), 0)
        self.assertEqual(self.check("three, known one", three, witness(1, 1)), 65)
        del three.segments[1][:]
        self.assertEqual(self.check("an empty segment", three), 65)
        alone = Log()
        self.assertEqual(self.check("nothing written", alone), 0)
        self.assertEqual(self.check("never completed", alone, None), 0)
        torn, events = self.begun()
        torn.segments[0][torn.at + 600 : torn.at + 700] = b"x" * 100
        torn.open()
        torn.put(events.event("NODE_DOWN"))
        self.assertEqual(self.check("goes on behind a torn tail", torn), 0)
        torn.segments[0][12288 + 600] ^= 1
        self.assertEqual(self.check("a frame before that is damaged", torn), 65)
        for length, end in ((20480, 20480), (16384, 16384)):
            full = Log(length)
            events = Events()
            full.put(events.genesis())
            while full.at < length:
                full.put(events.event("NODE_DOWN"))
            self.assertEqual(self.check(f"full at {end}", full), 0)

    def test_frames(self):
        changes = [
            ({"count": 2}, 65),
            ({"after": bytes(32)}, 65),
            ({"salt": 5}, 65),
            ({"at": 4096}, 65),
            ({"seq": 9}, 65),
            ({"before": bytes(32)}, 65),
            ({"body": b"\1\0\0\0{}"}, 65),
            ({"body": b"\0\0\0\0\0"}, 65),
            ({"blocks": 2}, 0),
        ]
        for change, code in changes:
            log, events = self.begun()
            log.put(events.event("NODE_DOWN"), **change)
            self.assertEqual(self.check(f"a frame with {change}", log), code)
        log, events = self.begun()
        log.put(*(events.event("NODE_DOWN") for _ in range(60)))
        self.assertEqual(self.check("a frame of several blocks", log), 0)
        begin, end = 16384, log.at
        for at in range(begin, end, 512):
            for what, sector in (
                ("zeroed", bytes(512)),
                ("noise", b"\x5a" * 512),
                ("of before", bytes(log.segments[0][12288:12800])),
            ):
                changed, _ = self.begun()
                changed.segments[0][:] = log.segments[0]
                changed.segments[0][at : at + 512] = sector
                self.assertEqual(
                    self.check(f"sector {at} {what}", changed), 65 if what == "of before" and at % 4096 == 0 else 0
                )
            for spot in (0, 504, 507, 510):
                changed, _ = self.begun()
                changed.segments[0][:] = log.segments[0]
                changed.segments[0][at + spot] ^= 0x40
                self.assertEqual(self.check(f"sector {at} flipped at {spot}", changed), 65)

    DETAIL = {
        "SCHEDULED": {
            "image_id": "sha256:" + "0" * 64,
            "input_hash": "0" * 64,
            "execution_hash": "0" * 64,
            "mounts": [],
        },
        "RUNNING": {"container": "c", "node_up": 1},
        "RECOVERY": {"container": "c", "node_up": 1},
        "D1_STABLE": {"line": "[D1_STABLE]", "stream": "stdout", "offset": 0, "count": 1},
        "CRASH": {"cause": "killed", "exit_code": 137},
        "STOPPING": {"asked": "cancel", "by": "x"},
        "COMPLETED": {},
        "CANCELLED": {"by": "x"},
        "SEALED": {"seal_hash": "0" * 64, "artifacts_root": "0" * 64, "files": 0, "bytes": 0},
        "exit": {"reason": "exit", "message": "m"},
        "oom": {"reason": "oom", "message": "m"},
    }
    WAYS = [
        "",
        "SCHEDULED",
        "SCHEDULED RUNNING",
        "SCHEDULED RUNNING D1_STABLE",
        "SCHEDULED RUNNING STOPPING",
        "SCHEDULED RUNNING STOPPING D1_STABLE",
        "SCHEDULED RUNNING CRASH",
        "SCHEDULED RUNNING CRASH RECOVERY",
        "SCHEDULED RUNNING COMPLETED",
        "SCHEDULED RUNNING COMPLETED SEALED",
        "exit",
        "oom",
        "CANCELLED",
        "CANCELLED RETRIGGERED",
        "SCHEDULED CANCELLED RETRIGGERED",
        "SCHEDULED RUNNING oom RETRIGGERED",
        "SCHEDULED RUNNING CRASH CANCELLED RETRIGGERED RECOVERY",
    ]

    def events_of(self, way, last=None, off=0):
        """GENESIS, a received job, and its events; the last one with an attempt that is off by so much."""
        events, attempt = Events(), 0
        records = [events.genesis(), events.received("a")]
        for state in way.split() + ([last] if last else []):
            attempt += (state in ("RUNNING", "RECOVERY")) + (off if state is last else 0)
            if state in ("RECEIVED", "RETRIGGERED"):
                records.append(events.received("a", state, attempt))
            else:
                name_of = state if state.isupper() else "FAILED"
                records.append(events.event(name_of, "a", attempt, self.DETAIL[state]))
        return records

    def test_every_step_from_every_state(self):
        legal = 0
        for way in self.WAYS:
            for last in [*self.DETAIL, "RECEIVED", "RETRIGGERED"]:
                log = Log()
                log.put(*self.events_of(way, last))
                legal += self.check(f"{last} after {way or 'RECEIVED'}", log) == 0
        self.assertEqual(legal, 4 + 4 + 6 + 6 + 4 + 4 + 4 + 6 + 4 + 0 + 0 + 1 + 1 + 4 + 4 + 4 + 6)
        for way, last in (("", "SCHEDULED"), ("SCHEDULED", "RUNNING"), ("SCHEDULED RUNNING CRASH", "RECOVERY")):
            for off in (1, -1):
                log = Log()
                log.put(*self.events_of(way, last, off))
                self.assertEqual(self.check(f"attempt {off:+}", log), 65)

    def test_events(self):
        def after(make, same=True):
            log, events = self.begun()
            log.put(make(events))
            return self.check("event", log, same=same)

        plain = '{"seq":4,"prev":"PREV","time":"2026-11-26T18:22:17.000009Z","state":"NODE_DOWN","detail":{}}'
        self.assertEqual(after(lambda events: events.raw(plain.replace("PREV", events.prev).encode())), 0)
        for old, new in (
            (":4,", ":5,"),
            (":4,", ":4.0,"),
            (":4,", ": 4,"),
            ("PREV", "0" * 64),
            ("17.000009", "17.000001"),
            ("-11-", "-13-"),
            (":17.", ":60."),
            ("DOWN", "D"),
            ("{}}", "{}} "),
            ("{}}", "[]}"),
            ("{}}", '{"a":NaN}}'),
            ("{}}", '{"a":}}'),
            ('"state"', '"job_id":"a","attempt":0,"state"'),
            ("{}}", '{"a":"\udcff"}}'),
            ("NODE_DOWN", "NODE\\u005fDOWN"),
        ):
            changed = plain.replace(old, new)
            raw = lambda events: events.raw(changed.replace("PREV", events.prev).encode("utf-8", "surrogateescape"))
            self.assertEqual(after(raw), 65, changed)
        self.assertEqual(after(lambda events: events.genesis()), 65)
        self.assertEqual(after(lambda events: events.event("SCHEDULED", "a", 0, {})), 65)
        self.assertEqual(after(lambda events: events.received("a")), 65)
        self.assertEqual(after(lambda events: events.received("x/y"), same=False), 65)
        received = json.loads(Events().received("c"))["detail"]
        self.assertEqual(after(lambda events: events.event("RECEIVED", "c", 0, received)), 0)
        self.assertEqual(after(lambda events: events.event("RECEIVED", "d", 0, received)), 65)
        self.assertEqual(
            after(lambda events: events.event("RECEIVED", "c", 0, {**received, "manifest_hash": "0" * 64})), 65
        )
        self.assertEqual(after(lambda events: events.event("RECEIVED", "c", 1, received)), 65)
        # The bytes are hashed as they stand there, not as somebody would write them.
        odd = '{"job_id":"c", "command":["true"],"image_hash":"busybox"}'
        line = (
            '{"seq":4,"prev":"PREV","time":"2026-11-26T18:22:17.000009Z","job_id":"c","attempt":0,"state":"RECEIVED",'
            '"detail":{"manifest":%s,"manifest_hash":"%s"}}' % (odd, hashlib.sha256(odd.encode()).hexdigest())
        )
        self.assertEqual(after(lambda events: events.raw(line.replace("PREV", events.prev).encode())), 0)
        changed = line.replace('"c", "', '"c","')
        self.assertEqual(after(lambda events: events.raw(changed.replace("PREV", events.prev).encode())), 65)

    def test_parents(self):
        """What `depends_on` and `job:` mounts bind."""
        sealed = ["SCHEDULED", "RUNNING", "COMPLETED", "SEALED"]
        for more in ({"depends_on": ["a"]}, {"mount_spec": ["job:a:/in"]}, {"mount_spec": "job:a:/in"}):
            for steps, code in ((sealed, 0), (sealed[:-1], 65)):
                events, log = Events(), Log()
                records = [events.genesis(), events.received("a"), events.received("c", **more)]
                records += [
                    events.event(state, "a", int(state not in ("SCHEDULED",)), self.DETAIL[state]) for state in steps
                ]
                log.put(*records, events.event("SCHEDULED", "c", 0, self.DETAIL["SCHEDULED"]))
                same = not isinstance(more.get("mount_spec"), str)  # the agent writes lists only
                self.assertEqual(self.check(f"{more} after {steps}", log, same=same), code)
        for more in ({"depends_on": ["z"]}, {"depends_on": ["c"]}, {"mount_spec": ["job:z:/in"]}):
            log, events = self.begun()
            log.put(events.received("c", **more))
            self.assertEqual(self.check(f"{more}", log), 65)
        failed = {"reason": "dependency", "message": "m", "exit_code": None, "ancestor": "a"}
        for detail, scheduled, code in (
            (failed, False, 0),
            ({**failed, "ancestor": "c"}, False, 65),
            ({**failed, "ancestor": None}, False, 65),
            ({**failed, "reason": "image"}, False, 65),
            ({**failed, "reason": "image", "ancestor": None}, False, 0),
            (failed, True, 65),
        ):
            events, log = Events(), Log()
            log.put(
                events.genesis(),
                events.received("a"),
                events.received("c", **({} if scheduled else {"depends_on": ["a"]})),
                *([events.event("SCHEDULED", "c", 0, self.DETAIL["SCHEDULED"])] if scheduled else ()),
                events.event("FAILED", "a", 0, {"reason": "image", "message": "m", "exit_code": None}),
                events.event("FAILED", "c", 0, detail),
                *([events.received("c", "RETRIGGERED", depends_on=["a"])] if code == 0 and detail is failed else ()),
            )
            self.assertEqual(self.check(f"{detail}, scheduled: {scheduled}", log), code)


class ExecutionHashTest(unittest.TestCase):
    """SCHEDULED events of jobs that were given artifacts of others, and of such as are not what the manifest says."""

    def setUp(self):
        self.holder = tempfile.TemporaryDirectory(prefix="hackbrain-verify-py-")
        self.addCleanup(self.holder.cleanup)

    @staticmethod
    def canonical(value):
        return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def check(self, mounts, manifest, root="1" * 64, wrong=None):
        given = [
            {
                "container": mount["container"],
                "mode": mount["mode"],
                "artifacts" if "artifacts_of" in mount else "tree": mount["tree"],
            }
            for mount in mounts
        ]
        env = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0", "TZ": "UTC"}
        execution = {
            "command": ["true"],
            "env": {**env, **manifest.get("env", {})},
            "image_id": "sha256:1",
            "mounts": given,
            "network": manifest.get("network", "none"),
            "resources": manifest.get("resources", {}),
        }
        detail = {
            "image_id": "sha256:1",
            "input_hash": self.canonical(given),
            "execution_hash": self.canonical(execution),
            "mounts": mounts,
            **(wrong or {}),
        }
        events, log = Events(), Log()
        parent = [
            (
                events.event(state, "a", attempt, {**MadeLedgerTest.DETAIL[state], **more})
                if state
                else events.received("a")
            )
            for _ in [log.put(events.genesis())]
            for state, attempt, more in (
                (None, 0, {}),
                ("SCHEDULED", 0, {}),
                ("RUNNING", 1, {}),
                ("COMPLETED", 1, {}),
                ("SEALED", 1, {"artifacts_root": root}),
            )
        ]
        log.put(*parent)
        log.put(events.received("c", **manifest), events.event("SCHEDULED", "c", 0, detail))
        log.save(self.holder.name)
        lines = verify(self.holder.name)[1]
        self.assertFalse([line for line in lines if line.startswith("damaged")], lines)
        return any(line.startswith("fault execution_hash c -: ") for line in lines)

    def test_it(self):
        tree, rw = "2" * 64, {"container": "/job/workdir", "mode": "rw", "tree": "2" * 64}
        of = {"container": "/job/in/a", "mode": "ro", "tree": "1" * 64, "artifacts_of": "a"}
        own = {
            "mount_spec": ["/x:/job/workdir", "job:a:/job/in/a"],
            "env": {"TZ": "CET", "A": "1"},
            "network": "bridge",
            "resources": {"cpus": 0.001, "memory_mib": 64},
        }
        self.assertFalse(self.check([rw], {}))
        self.assertFalse(self.check([rw, of], own))
        self.assertFalse(
            self.check([{**rw, "mode": "ro"}, of], {**own, "mount_spec": ["/x:/job/workdir:ro", "job:a:/job/in/a"]})
        )
        self.assertTrue(self.check([rw, of], own, root=tree), "the parent has sealed something else")
        self.assertTrue(self.check([rw], own), "a mount lacks")
        self.assertTrue(self.check([rw, {**of, "artifacts_of": "b"}], own), "of another job")
        self.assertTrue(self.check([{**rw, "mode": "ro"}], {}), "a scratch directory is writable")
        self.assertTrue(self.check([{**rw, "container": "/job"}], {}), "the scratch directory lies elsewhere")
        for wrong in (
            {"input_hash": "0" * 64},
            {"execution_hash": "0" * 64},
            {"image_id": "sha256:2"},
            {"mounts": [{}]},
            {"mounts": None},
        ):
            self.assertTrue(self.check([rw], {}, wrong=wrong), wrong)


class BundleTest(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix="hackbrain-verify-py-")
        self.addCleanup(holder.cleanup)
        self.path = pathlib.Path(holder.name) / "bundle.tar"

    def check(
        self, job, faults=(), change=None, remove=(), rename=None, damaged=None, members=(), arguments=(), head=None
    ):
        """Writes the bundle of a job, with these parts changed, and compares what the script says of it."""
        parts = {**RECORDED.bundles[job], **(change or {})}
        with tarfile.open(self.path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
            for part, (content, mode) in parts.items():
                if part not in remove:
                    member = tarfile.TarInfo((rename or {}).get(part, f"{name(job)}/{part}"))
                    member.size, member.mode = len(content), mode
                    tar.addfile(member, io.BytesIO(content))
            for member in members:
                tar.addfile(member)
        code, lines = run_script("--bundle", self.path, *arguments) if arguments else verify(self.path, bundle=True)
        told = [line.partition(": ")[0] for line in lines if line.startswith("fault")]
        self.assertEqual(sorted(told), sorted(f"fault {kind} {name(job)} {path}" for kind, path in faults), lines)
        told = [line for line in lines if line.startswith("damaged: ")]
        self.assertEqual(
            [line.startswith(f"damaged: {damaged}") for line in told], [True] * (damaged is not None), lines
        )
        self.assertEqual(code, 65 if faults or damaged is not None else 0, lines)
        events = RECORDED.bundles[job]["events.jsonl"][0].splitlines()
        last = f"head {json.loads(events[-1])['seq']} {hashlib.sha256(events[-1]).hexdigest()}"
        self.assertEqual(lines[-1], last if head is None else head, lines)
        return lines

    def test_sound_bundles(self):
        for job in RECORDED.bundles:
            self.assertEqual(len(self.check(job)), 1)
        first = RECORDED.bundles["first"]["events.jsonl"][0].splitlines()
        for line in (first[0], first[-1], RECORDED.bundles["first"]["node.jsonl"][0].splitlines()[0]):
            self.check("first", arguments=["--expect", f"{json.loads(line)['seq']}:{hashlib.sha256(line).hexdigest()}"])
        lines = run_script("--bundle", self.path, "--expect", f"{RECORDED.head['seq']}:{RECORDED.head['hash']}")
        self.assertEqual((lines[0], lines[1][0][:15]), (65, "expected event "))
        # Directories have members of their own in some tars, and do no harm.
        folder = tarfile.TarInfo(f"{name('first')}/artifacts")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        self.check("first", members=[folder])

    def test_files(self):
        parts = RECORDED.bundles["first"]
        for path, kind in {
            "seal.json": "seal",
            "seal.sha256": "list",
            "inputs.json": "inputs",
            "logs/1.stdout": "log",
            "logs/1.stderr": "log",
        }.items():
            content = parts[path][0]
            self.check("first", [(f"{kind}_missing", path)], remove=[path])
            self.check("first", [(f"{kind}_changed", path)], {path: (content[:-1] + bytes([content[-1] ^ 1]), 0o644)})
        for path in ("manifest.json", "events.jsonl", "node.jsonl"):
            self.check("first", remove=[path], damaged=path, head="head 0 " + "0" * 64)
        self.check(
            "first", change={"manifest.json": (parts["manifest.json"][0] + b"\n", 0o644)}, damaged="manifest.json"
        )
        self.check("first", change={"logs/7.stdout": (b"", 0o644)}, damaged="logs/7.stdout")
        self.check("failed", change={"seal.json": parts["seal.json"]}, damaged="seal.json")
        self.check("first", change={"notes.txt": (b"", 0o644)}, damaged="notes.txt")

    def test_artifacts(self):
        parts = {path: part for path, part in RECORDED.bundles["first"].items() if path.startswith("artifacts/")}
        self.assertEqual(len(parts), 7)
        for path, (content, mode) in parts.items():
            shown = path.replace("%", "%25").replace("\n", "%0A").replace("\udcff", "%FF")
            self.check("first", [("artifact_changed", shown)], {path: (content + b"x", mode)})
            self.check("first", [("artifact_changed", shown)], {path: (content, mode ^ 0o111)})
            self.check("first", [("artifact_missing", shown)], remove=[path])
            self.check("first", [("artifact_extra", shown + "x")], {path + "x": (content, mode)})
        lines = self.check("first", remove=parts)
        self.assertEqual([line[:5] for line in lines], ["note ", "head "])
        # Inputs are no artifacts: a bundle has no place for them.
        self.check(
            "first",
            [("artifact_extra", "artifacts/job/workdir/keep")],
            {"artifacts/job/workdir/keep": (b"keep", 0o644)},
        )

    def test_events(self):
        lines = RECORDED.bundles["crash"]["events.jsonl"][0].splitlines(keepends=True)
        nodes = RECORDED.bundles["crash"]["node.jsonl"][0].splitlines(keepends=True)
        other = RECORDED.bundles["failed"]["events.jsonl"][0].splitlines(keepends=True)

        def head(line):
            return f"head {json.loads(line)['seq']} {hashlib.sha256(line.rstrip()).hexdigest()}"

        def events(*changed, before, part="events.jsonl"):
            self.check("crash", change={part: (b"".join(changed), 0o644)}, damaged=part, head=before)

        nothing = "head 0 " + "0" * 64
        events(*lines[:-1], before=head(lines[-2]))
        events(*lines[1:], before=nothing)
        events(*lines[:2], *lines[3:], before=head(lines[1]))
        events(*lines[:2], lines[3], lines[2], *lines[4:], before=head(lines[1]))
        events(*lines, lines[-1], before=head(lines[-1]))
        events(*lines[:-1], lines[-1].rstrip(), before=nothing)
        events(lines[0].replace(b"busybox", b"busyboX", 1), *lines[1:], before=nothing)
        events(
            lines[0],
            lines[1].replace(b'"prev":"', b'"prev":"0', 1).replace(b'","time', b'","time', 1),
            *lines[2:],
            before=head(lines[0]),
        )
        events(other[0], *lines, before=nothing)
        for index, line in enumerate(lines[:-1]):
            # The next event is its neighbour in the ledger, or the change is one that a rule tells of.
            if json.loads(lines[index + 1])["seq"] == json.loads(line)["seq"] + 1:
                changed = line.replace(b'"time":"2', b'"time":"1', 1)
                at = index if index else 0
                self.check(
                    "crash",
                    change={"events.jsonl": (b"".join([*lines[:index], changed, *lines[index + 1 :]]), 0o644)},
                    damaged="events.jsonl",
                    head=head(lines[at - 1]) if index else nothing,
                )
        self.check("crash", change={"node.jsonl": (nodes[0], 0o644)})
        events(*nodes, other[0], part="node.jsonl", before=nothing)
        events(nodes[1], nodes[0], part="node.jsonl", before=nothing)
        events(nodes[0].replace(b"GENESIS", b"NODE_UP"), nodes[1], part="node.jsonl", before=nothing)

    def test_a_scheduled_event_of_another_execution(self):
        lines = RECORDED.bundles["failed"]["events.jsonl"][0].splitlines()
        event = json.loads(lines[1])
        for key in ("input_hash", "execution_hash", "image_id"):
            value = event["detail"][key].encode()
            changed = [lines[0], lines[1].replace(value, value[:-1] + (b"1" if value[-1:] != b"1" else b"2"))]
            for line in lines[2:]:
                before = hashlib.sha256(changed[-1]).hexdigest().encode()
                changed.append(line.replace(json.loads(line)["prev"].encode(), before))
            head = f"head {json.loads(changed[-1])['seq']} {hashlib.sha256(changed[-1]).hexdigest()}"
            self.check(
                "failed", [("execution_hash", "-")], {"events.jsonl": (b"\n".join(changed) + b"\n", 0o644)}, head=head
            )

    def test_odd_members(self):
        zeros = "head 0 " + "0" * 64
        for odd in (
            f"/{name('first')}/seal.json",
            f"{name('first')}/../seal.json",
            f"{name('first')}/artifacts/../x",
            "seal.json",
            f"{name('failed')}/seal.json",
            f"{name('first')}/./seal.json",
            f"{name('first')}//seal.json",
            f"{name('first')}/seal.sha256",
        ):
            self.check("first", rename={"seal.json": odd}, damaged="", head=zeros)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"{name('first')}/artifacts/job/workdir/odd")
            member.type, member.linkname = kind, f"{name('first')}/seal.json"
            self.check("first", members=[member], damaged="", head=zeros)
        self.path.write_bytes(b"no tar at all")
        code, lines = verify(self.path, bundle=True)
        self.assertEqual((code, lines[0][:9]), (65, "damaged: "))
        self.check("first")
        whole = self.path.read_bytes()
        self.path.write_bytes(whole[: len(whole) // 2])
        self.assertEqual(verify(self.path, bundle=True)[0], 65)

    def test_nothing_is_written(self):
        self.check("first")
        before = sorted(self.path.parent.iterdir())
        verify(self.path, bundle=True)
        self.assertEqual(sorted(self.path.parent.iterdir()), before)


class ScriptTest(unittest.TestCase):
    def test_it_is_short_and_stands_alone(self):
        text = SCRIPT.read_text()
        lines = text.splitlines()
        self.assertLessEqual(len(lines), LINES_MAX)
        self.assertLessEqual(max(map(len, lines)), 120)
        self.assertNotIn(";", [line.rstrip()[-1:] for line in lines])
        self.assertTrue(os.access(SCRIPT, os.X_OK))
        for node in ast.walk(ast.parse(text, feature_version=(3, 9))):
            for module in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else ([node.module] if isinstance(node, ast.ImportFrom) else [])
            ):
                self.assertIn(module.partition(".")[0], sys.stdlib_module_names)


if __name__ == "__main__":
    unittest.main()
