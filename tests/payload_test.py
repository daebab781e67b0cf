"""The payload survives kill -9 and a damaged log: same bytes in the end, steps contiguous. Standard library only."""

import contextlib
import importlib.util
import io
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PAYLOAD = pathlib.Path(__file__).resolve().parent.parent / "chaos" / "payloads" / "wal_physics.py"
SEED = int(os.environ.get("HACKBRAIN_SEED") or random.randrange(2**32))
# Recorded once: another Python, machine or a restart must not change it.
TRAJECTORY_OF_10_STEPS = "88de74e777cb093002f892832a90f5f314fbd219bc6e552e7bb0788ce0d1d379"
# A run that never ends under kills is a failure, not a hang.
KILL_ROUNDS_MAX = 200


def load_payload():
    # Read-only checkouts and other users' runs must not find a cache written here.
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("wal_physics", PAYLOAD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wal_physics = load_payload()


def run_here(directory, steps):
    """One run inside this process: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd()
    os.environ.update(WAL_PHYSICS_STEPS=str(steps), WAL_PHYSICS_STEP_MS="0")
    os.chdir(directory)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = wal_physics.main()
    finally:
        os.chdir(before)
    return code, out.getvalue(), err.getvalue()


def start(directory, steps, step_ms, stdout):
    return subprocess.Popen(
        [sys.executable, str(PAYLOAD)],
        cwd=directory,
        env=dict(os.environ, WAL_PHYSICS_STEPS=str(steps), WAL_PHYSICS_STEP_MS=str(step_ms)),
        stdout=stdout,
        stderr=subprocess.DEVNULL,
    )


def announced(text):
    return [int(number) for number in re.findall(r"^\[D1_STABLE\] step=(\d+) ", text, re.MULTILINE)]


class PayloadTest(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix="hackbrain-payload-")
        self.addCleanup(holder.cleanup)
        self.directory = pathlib.Path(holder.name)

    def fresh(self, name):
        directory = self.directory / name
        directory.mkdir()
        return directory

    def finished(self, steps):
        """An uninterrupted run: (log bytes, result bytes, stdout)."""
        directory = self.fresh("finished-%d" % steps)
        code, out, err = run_here(directory, steps)
        self.assertEqual((code, err), (0, ""))
        return (directory / "physics.wal").read_bytes(), (directory / "result.txt").read_bytes(), out

    def test_result_is_the_recorded_one(self):
        _, result, out = self.finished(10)
        self.assertIn("trajectory_sha256=%s\n" % TRAJECTORY_OF_10_STEPS, result.decode())
        self.assertTrue(out.endswith(result.decode()))
        self.assertEqual(announced(out), list(range(1, 11)))

    def test_killed_at_random_moments_it_ends_the_same(self):
        print("payload_test: HACKBRAIN_SEED=%d" % SEED, file=sys.stderr)
        rng = random.Random(SEED)
        steps = 60
        log, result, _ = self.finished(steps)
        directory = self.fresh("killed")
        output = self.directory / "stdout"
        killed_between_steps = 0
        for _ in range(KILL_ROUNDS_MAX):
            before = len(announced(output.read_text())) if output.exists() else 0
            with open(output, "ab") as stdout, start(directory, steps, 3, stdout) as process:
                time.sleep(rng.uniform(0.01, 0.12))
                process.send_signal(signal.SIGKILL)
                process.wait()
            now = len(announced(output.read_text()))
            killed_between_steps += process.returncode == -signal.SIGKILL and now > before
            if process.returncode == 0:
                break
            self.assertEqual(process.returncode, -signal.SIGKILL)
        self.assertEqual(process.returncode, 0, "did not end in %d rounds" % KILL_ROUNDS_MAX)
        self.assertGreaterEqual(killed_between_steps, 2, "the kills came too late or too early to say anything")
        self.assertEqual((directory / "physics.wal").read_bytes(), log)
        self.assertEqual((directory / "result.txt").read_bytes(), result)
        self.assert_contiguous(output.read_text())

    def assert_contiguous(self, text):
        """Step follows step; across a restart, the step after the one that the restart says it resumed from."""
        last = 0
        for line in text.splitlines():
            resumed = re.fullmatch(r"resumed from step (\d+)", line)
            step = re.match(r"\[D1_STABLE\] step=(\d+) ", line)
            if resumed:
                # One step may have been logged and not yet announced; never fewer than were announced.
                self.assertIn(int(resumed[1]) - last, (0, 1), line)
                last = int(resumed[1])
            elif step:
                self.assertEqual(int(step[1]), last + 1, line)
                last += 1

    def test_log_cut_at_every_byte(self):
        steps = 3
        log, result, _ = self.finished(steps)
        directory = self.fresh("cut")
        # The header, and the last two records with the boundary between them.
        header, record = wal_physics.HEADER_BYTES, wal_physics.RECORD_BYTES
        for length in [*range(header + 1), *range(len(log) - 2 * record, len(log))]:
            with self.subTest(length=length):
                (directory / "physics.wal").write_bytes(log[:length])
                whole = max(length - header, 0) // record
                code, out, err = run_here(directory, steps)
                self.assertEqual(code, 0)
                self.assertEqual(announced(out), list(range(whole + 1, steps + 1)))
                self.assertEqual("resumed from step %d\n" % whole in out, whole > 0)
                at_boundary = length == 0 or (length >= header and (length - header) % record == 0)
                self.assertEqual("torn" in err, not at_boundary)
                self.assertEqual((directory / "physics.wal").read_bytes(), log)
                self.assertEqual((directory / "result.txt").read_bytes(), result)

    def test_every_flipped_byte_of_the_last_record_is_seen(self):
        steps = 3
        log, result, _ = self.finished(steps)
        directory = self.fresh("flipped")
        for offset in range(len(log) - wal_physics.RECORD_BYTES, len(log)):
            with self.subTest(offset=offset):
                damaged = bytearray(log)
                damaged[offset] ^= 1 << (offset % 8)
                (directory / "physics.wal").write_bytes(damaged)
                code, out, err = run_here(directory, steps)
                self.assertEqual(code, 0)
                self.assertEqual(announced(out), [steps])
                self.assertIn("torn tail after step %d" % (steps - 1), err)
                self.assertEqual((directory / "physics.wal").read_bytes(), log)
                self.assertEqual((directory / "result.txt").read_bytes(), result)

    def test_records_out_of_order_are_unsound(self):
        steps = 3
        log, _, _ = self.finished(steps)
        directory = self.fresh("order")
        header, record = wal_physics.HEADER_BYTES, wal_physics.RECORD_BYTES
        repeated = log[: header + record] + log[header : header + record]
        (directory / "physics.wal").write_bytes(repeated)
        code, out, err = run_here(directory, steps)
        self.assertEqual((code, announced(out)), (0, [2, 3]))
        self.assertIn("torn tail after step 1", err)
        self.assertEqual((directory / "physics.wal").read_bytes(), log)

    def test_again_after_the_end_changes_nothing(self):
        steps = 4
        directory = self.fresh("again")
        run_here(directory, steps)
        before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}
        code, out, err = run_here(directory, steps)
        after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}
        self.assertEqual((code, err, announced(out)), (0, "", []))
        self.assertEqual(after, before)
        self.assertEqual(sorted(after), ["physics.wal", "result.txt"])
        self.assertTrue(out.endswith(before["result.txt"][0].decode()))

    def test_a_half_written_result_is_replaced(self):
        _, result, _ = self.finished(2)
        directory = self.fresh("half")
        run_here(directory, 2)
        (directory / "result.txt").write_bytes(result[:20])
        (directory / "result.txt.tmp").write_bytes(b"left over by a kill")
        self.assertEqual(run_here(directory, 2)[0], 0)
        self.assertEqual((directory / "result.txt").read_bytes(), result)
        self.assertFalse((directory / "result.txt.tmp").exists())

    def test_refusals_name_what_to_change_and_touch_nothing(self):
        directory = self.fresh("refused")
        run_here(directory, 3)
        log = (directory / "physics.wal").read_bytes()
        code, out, err = run_here(directory, 4)
        self.assertEqual((code, out), (2, ""))
        self.assertIn("WAL_PHYSICS_STEPS=3", err)
        for value in ("0", "-1", "1.5", "", "many", "10000001", "²"):
            code, out, err = run_here(directory, value)
            self.assertEqual((code, out), (2, ""), value)
            self.assertIn("WAL_PHYSICS_STEPS", err)
        self.assertEqual((directory / "physics.wal").read_bytes(), log)
        (directory / "physics.wal").write_bytes(b"some other program's file, longer than a header")
        code, out, err = run_here(directory, 3)
        self.assertEqual((code, out), (2, ""))
        self.assertIn("no sound header", err)
        self.assertTrue((directory / "physics.wal").read_bytes().startswith(b"some other"))


if __name__ == "__main__":
    unittest.main()
