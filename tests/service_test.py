"""The unit files under the real systemd, as process 1 of namespaces of its own over a copy-on-write view of this machine: socket
activation, hardening, restarts in which the port never refuses, a clean stop. Real jobs, on the machine's engine. Standard
library only; needs root."""
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE_S = 60
# What systemd finds as its machine. `shared` is one directory for the machine's engine and for the agent, so that what the agent
# binds there is seen by both, as it is where both run on one host.
BOOT = r"""
set -eu
dir=$1 docker=$2 lower=$3
mount --bind "$lower" "$dir/lower"
mount -t tmpfs tmpfs "$dir/upper"
mkdir "$dir/upper/u" "$dir/upper/w"
mount -t overlay overlay -o "lowerdir=$dir/lower,upperdir=$dir/upper/u,workdir=$dir/upper/w" "$dir/root"
root=$dir/root
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
for place in run tmp dev sys/fs/cgroup; do mount -t tmpfs tmpfs "$root/$place"; done
# The hierarchies as the engine has them; systemd adds one of its own.
for place in /sys/fs/cgroup/*/; do mkdir "$root$place" && mount --rbind "$place" "$root$place"; done
for name in null zero full random urandom tty kmsg; do touch "$root/dev/$name" && mount --bind "/dev/$name" "$root/dev/$name"; done
touch "$root/dev/console"
mkdir "$root/dev/pts" "$root/dev/shm"
mkdir -p "$root$dir/shared"
mount --rbind "$dir/shared" "$root$dir/shared"
touch "$root/run/docker.sock" && mount --bind "$docker" "$root/run/docker.sock"
cp -r "$dir/lay/." "$root/"
exec chroot "$root" /usr/bin/env -i container=namespaces PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=test.target --log-target=console
"""


def until(what, condition):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Host:
    """An agent's directory, and what is asked of the agent."""

    first = None

    def spawn(self, *command):
        with open(self.dir / "boot.log", "wb") as stderr:
            return subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stderr=stderr)

    def request(self, method, path, body=None):
        """On a connection of its own; an error of the connection is one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            headers = {"Content-Type": "application/json"} if method == "POST" else {}
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def submit(self, job_id, script):
        place = self.dir / "shared/mounts" / job_id
        place.mkdir()
        manifest = {"job_id": job_id, "image_hash": "busybox:latest", "command": ["sh", "-c", script],
                    "mount_spec": f"{place}:/job/workdir"}
        status, told = self.request("POST", "/api/submit_job", manifest)
        assert status == 200, told
        return place

    def summary(self, job_id, query=""):
        return json.loads(self.request("GET", f"/api/jobs/{job_id}{query}")[1])

    def dump(self):
        told = subprocess.run([self.dir / "hackbrain", "dump", "--data", self.data], capture_output=True, check=True)
        return [json.loads(line) for line in told.stdout.splitlines()]

    def end(self):
        log_id = self.dump()[0]["detail"]["log_id"] if self.data.exists() else None
        if self.outer.poll() is None:
            # unshare ends its child with it.
            os.kill(self.first or self.outer.pid, signal.SIGKILL)
        self.outer.wait(PATIENCE_S)
        if log_id:
            listed = subprocess.run(["docker", "ps", "--all", "--quiet", "--filter", f"label=hackbrain.log={log_id}"],
                                    capture_output=True, check=True).stdout.split()
            for container in listed:
                subprocess.run(["docker", "rm", "--force", container], capture_output=True, check=True)
            pins = subprocess.run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}", "hackbrain/pin"],
                                  capture_output=True, check=True).stdout.decode().split()
            for pin in pins:
                if log_id[:8] in pin:
                    subprocess.run(["docker", "rmi", pin], capture_output=True, check=True)
            for group in pathlib.Path("/sys/fs/cgroup").glob(f"*/hackbrain-{log_id[:8]}"):
                for directory, _, _ in os.walk(group, topdown=False):
                    os.rmdir(directory)
        for line in reversed(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()):
            if f"{line.split()[4]}/".startswith(f"{self.dir}/"):
                subprocess.run(["umount", line.split()[4]], check=True)
        shutil.rmtree(self.dir)


class Machine(Host):
    """systemd and what it runs; all of it ends with the process 1 of its namespaces. Its files are those of `lower`, which are
    never changed, and over them those that `lay` gives it."""

    def __init__(self, environment=(), lower="/"):
        # Not below /tmp, which everybody may write, and which the machine has one of its own of.
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="hb-service-", dir="/run"))
        for name in ("shared", "upper", "root", "lower", "lay/etc/systemd/system/hackbrain.socket.d"):
            (self.dir / name).mkdir(parents=True)
        (self.dir / "shared/mounts").mkdir()
        self.data, self.port = self.dir / "shared/data", free_port()
        # Mounts of their own: what is mounted below the first stays in its namespace, below the second it is seen by all.
        for place, how in ((self.dir, "--make-private"), (self.dir / "shared", "--make-shared")):
            subprocess.run(["mount", "--bind", place, place], check=True)
            subprocess.run(["mount", how, place], check=True)
        units = self.dir / "lay/etc/systemd/system"
        (units / "test.target").write_text("[Unit]\nDescription=Test\n")
        (units / "hackbrain.socket.d/port.conf").write_text(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{self.port}\n")
        shutil.copy(os.environ.get("HACKBRAIN_BIN") or ROOT / "target/debug/hackbrain", self.dir / "hackbrain")
        self.lay(self.dir / "lay", environment)
        self.outer = self.spawn(
            "unshare", "--mount", "--propagation", "unchanged", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL",
            "bash", "-c", BOOT, "boot", self.dir, os.path.realpath("/run/docker.sock"), lower)
        try:
            self.first = until("the namespaces have a first process", self._first)
            until("systemd is up", lambda: self.run("systemctl", "is-active", "test.target").stdout == b"active\n")
        except BaseException:
            self.end()
            raise

    def lay(self, root, environment):
        for unit in ("hackbrain.service", "hackbrain.socket"):
            shutil.copy(ROOT / "scripts" / unit, root / "etc/systemd/system" / unit)
        settings = {"HACKBRAIN_DATA": self.data, "HACKBRAIN_MOUNT_ROOT": self.dir / "shared/mounts", **dict(environment)}
        (root / "etc/hackbrain").mkdir()
        (root / "etc/hackbrain/environment").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        (root / "usr/local/bin").mkdir(parents=True)
        shutil.copy(self.dir / "hackbrain", root / "usr/local/bin/hackbrain")

    def _first(self):
        assert self.outer.poll() is None, (self.dir / "boot.log").read_text()
        children = pathlib.Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children").read_text().split()
        # Not the shell that makes its file systems.
        is_up = children and pathlib.Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n"
        return int(children[0]) if is_up else None

    def run(self, *command):
        enter = ["nsenter", "--target", str(self.first), "--mount", "--pid", "--ipc", "--uts", "--root", "--wd"]
        return subprocess.run(enter + list(map(str, command)), capture_output=True, check=False, timeout=PATIENCE_S)

    def systemctl(self, *arguments):
        done = self.run("systemctl", *arguments)
        assert done.returncode == 0, (arguments, done.stderr, self.console())
        return done.stdout.decode().strip()

    def console(self):
        return pathlib.Path(f"/proc/{self.first}/root/dev/console").read_text(errors="replace")


class Alone(Host):
    """An agent in a mount namespace from which nothing leads to the engine's."""

    def __init__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="hb-service-", dir="/run"))
        (self.dir / "shared/mounts").mkdir(parents=True)
        self.data, self.port = self.dir / "shared/data", free_port()
        shutil.copy(os.environ.get("HACKBRAIN_BIN") or ROOT / "target/debug/hackbrain", self.dir / "hackbrain")
        self.outer = self.spawn(
            "unshare", "--mount", "--propagation", "private", self.dir / "hackbrain", "serve", "--data", self.data, "--listen",
            f"127.0.0.1:{self.port}", "--mount-root", self.dir / "shared/mounts")
        self.first = self.outer.pid
        try:
            until("the agent listens", lambda: b"listening" in (self.dir / "boot.log").read_bytes())
        except BaseException:
            self.end()
            raise


class Unit(unittest.TestCase):
    def test_systemd_finds_no_fault_in_the_files(self):
        with tempfile.TemporaryDirectory() as place:
            for unit in ("hackbrain.service", "hackbrain.socket"):
                text = (ROOT / "scripts" / unit).read_text()
                # It looks whether the programs are there.
                pathlib.Path(place, unit).write_text(text.replace("/usr/local/bin/hackbrain", "/bin/true"))
            for unit in ("hackbrain.service", "hackbrain.socket"):
                done = subprocess.run(["systemd-analyze", "verify", "--man=no", pathlib.Path(place, unit)], capture_output=True,
                                      env=dict(os.environ, SYSTEMD_LOG_LEVEL="notice"), check=False)
                said = [line for line in done.stderr.decode().splitlines() if "hackbrain" in line]
                self.assertEqual((done.returncode, said), (0, []))


class NamespaceTest(unittest.TestCase):
    """Without systemd, but as its options would have it."""

    def test_an_agent_whose_mounts_the_engine_cannot_see_fails_jobs_and_says_why(self):
        machine = Alone()
        self.addCleanup(machine.end)
        place = machine.submit("hidden", "echo kept > kept")
        told = machine.summary("hidden", f"?wait=SEALED&timeout_s={PATIENCE_S}")
        self.assertEqual((told["state"], told["reason"]), ("FAILED", "mount"), told)
        self.assertIn("different mount namespaces", machine.dump()[-1]["detail"]["message"])
        self.assertEqual(list(place.iterdir()), [])


class ServiceTest(unittest.TestCase):
    def setUp(self):
        self.machine = Machine({"RUST_LOG": "info"})
        self.addCleanup(self.machine.end)

    def test_the_socket_starts_the_agent_and_no_restart_refuses_anyone(self):
        machine = self.machine
        machine.systemctl("start", "hackbrain.socket")
        self.assertEqual(machine.run("systemctl", "is-active", "hackbrain.service").stdout, b"inactive\n")
        # This connection is what starts it.
        self.assertEqual(machine.request("GET", "/healthz")[0], 200)
        until("the unit is up", lambda: machine.run("systemctl", "is-active", "hackbrain.service").stdout == b"active\n")
        self.assertEqual(machine.request("GET", "/readyz")[0], 200)

        # The hardening takes nothing from a job: its mount, its control group, its owner, its output.
        place = machine.submit("whole", "echo kept > kept; echo said; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
        told = machine.summary("whole", f"?wait=SEALED&timeout_s={PATIENCE_S}")
        self.assertEqual(told["state"], "SEALED", (told, machine.console()))
        self.assertEqual((place / "kept").read_text(), "kept\n")
        self.assertEqual(machine.request("GET", "/api/jobs/whole/stdout"), (200, b"said\n"))
        self.assertEqual(machine.request("GET", "/api/jobs/whole/artifacts/job/workdir/kept"), (200, b"kept\n"))
        completed = next(e for e in machine.dump() if e["state"] == "COMPLETED")["detail"]
        self.assertGreater(completed["usage"]["cpu_ns"], 0, completed)
        self.assertNotIn("not_measured", {k for k, v in completed["usage"].items() if v}, completed)
        up = next(e for e in machine.dump() if e["state"] == "NODE_UP")["detail"]
        self.assertIn("bind", up["mount_protection"], "the agent cannot mount")

        # Nobody is refused, or left without an answer, while it is restarted, killed, and reloaded.
        going, failures, answers = threading.Event(), [], [0]

        def knock():
            while not going.is_set():
                try:
                    status, _ = machine.request("GET", "/healthz")
                    answers[0] += 1
                    if status != 200:
                        failures.append(status)
                except (OSError, http.client.HTTPException) as error:
                    failures.append(repr(error))
        place = machine.submit("lives", "echo begun; until [ -e go ]; do sleep 0.1; done; echo done")
        until("it runs", lambda: machine.request("GET", "/api/jobs/lives/stdout")[1] == b"begun\n")
        clients = [threading.Thread(target=knock) for _ in range(4)]
        for client in clients:
            client.start()
        for _ in range(3):
            before = answers[0]
            machine.systemctl("restart", "hackbrain.service")
            until("it answers again", lambda: answers[0] > before + 20)
        going.set()
        for client in clients:
            client.join()
        self.assertEqual(failures, [], f"of {answers[0]}")
        (place / "go").touch()
        told = machine.summary("lives", f"?wait=SEALED&timeout_s={PATIENCE_S}")
        self.assertEqual((told["state"], told["attempt"]), ("SEALED", 1), machine.console())
        self.assertEqual(machine.request("GET", "/api/jobs/lives/stdout")[1], b"begun\ndone\n")
        downs = [e["detail"]["reason"] for e in machine.dump() if e["state"] == "NODE_DOWN"]
        self.assertEqual(downs, ["SIGTERM"] * 3)

        # Killed, it is started again, and who comes in between waits.
        process = machine.systemctl("show", "--property=MainPID", "--value", "hackbrain.service")
        machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", "hackbrain.service")
        self.assertEqual(machine.request("GET", "/healthz")[0], 200)
        self.assertNotEqual(machine.systemctl("show", "--property=MainPID", "--value", "hackbrain.service"), process)

        machine.systemctl("stop", "hackbrain.socket", "hackbrain.service")
        self.assertEqual(machine.systemctl("show", "--property=Result", "--value", "hackbrain.service"), "success")
        self.assertEqual(machine.dump()[-1]["state"], "NODE_DOWN")
        verified = subprocess.run([machine.dir / "hackbrain", "verify", "--data", machine.data], capture_output=True, check=False)
        self.assertEqual(verified.returncode, 0, verified.stdout)


if __name__ == "__main__":
    unittest.main()
