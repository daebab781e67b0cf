"""A Docker engine of a test's own, which may be stopped, killed, filled and robbed of its power without touching the host's.

It runs in a network namespace of its own: an engine that starts without a bridge in the host's deletes `docker0` of the one that
is there. Everything it is, processes included, lies in or is named after one directory, and `remove` leaves nothing behind."""
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

# Far above what any of it takes.
PATIENCE_S = 60


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, **options)


def until(what, ask, patience_s=PATIENCE_S):
    """Asks until the answer is true; the answer."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"never came about: {what}")
        time.sleep(0.02)


def is_alive(pid):
    try:
        # A zombie has ended; who reaps it is its parent's matter.
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command_line(pid):
    """Empty for one that has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class SecondEngine:
    """`directory` must be short: a socket's path has at most 107 bytes. `disk_mib` puts the engine's data on a file system
    of its own of that size."""

    def __init__(self, directory, live_restore=False, disk_mib=None, images=("busybox:latest",)):
        self.directory = pathlib.Path(directory)
        self.socket = self.directory / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.data, self.exec = self.directory / "data", self.directory / "exec"
        self.live_restore = live_restore
        self.process = None
        self.namespace = f"hb{os.getpid()}{self.directory.name[-6:]}"
        self.data.mkdir(parents=True)
        self.has_disk = disk_mib is not None
        try:
            if self.has_disk:
                image = self.directory / "disk"
                with open(image, "wb") as file:
                    file.truncate(disk_mib << 20)
                run("mkfs.ext4", "-q", "-m", "0", str(image))
                run("mount", "-o", "loop", str(image), str(self.data))
            run("ip", "netns", "add", self.namespace)
            run("ip", "-n", self.namespace, "link", "set", "lo", "up")
            (self.directory / "daemon.json").write_text("{}")
            self.start()
            for name in images:
                save = subprocess.Popen(["docker", "save", name], stdout=subprocess.PIPE)
                self.docker("load", stdin=save.stdout)
                save.stdout.close()
                assert save.wait() == 0, name
        except BaseException:
            self.remove()
            raise

    def docker(self, *arguments, **options):
        """A command of the CLI on this engine; what it printed."""
        return run("docker", *arguments, env=dict(os.environ, DOCKER_HOST=self.host), **options).stdout.decode().strip()

    def start(self, wait=True):
        """`wait=False` returns before it answers: it first ends what an engine without live-restore finds running."""
        command = [
            "nsenter", f"--net=/var/run/netns/{self.namespace}", "dockerd", "--config-file", self.directory / "daemon.json",
            "--host", self.host, "--data-root", self.data, "--exec-root", self.exec, "--pidfile", self.directory / "pid",
            "--bridge=none", "--iptables=false", "--ip6tables=false"]
        if self.live_restore:
            command.append("--live-restore")
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            start_new_session=True)
        if wait:
            until("the engine answers", self.answers)

    def answers(self):
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"dockerd ended: {(self.directory / 'log').read_text()[-3000:]}")
        return self.pings()

    def pings(self):
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        try:
            connection.sock.connect(str(self.socket))
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def terminate(self):
        """SIGTERM, as a service manager stops it; returns when it has ended."""
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self._wait_for_containerd()

    def kill(self):
        """SIGKILL. Its containerd goes with it, its containers do not."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._wait_for_containerd()

    def _wait_for_containerd(self):
        # The kernel ends it with its parent. One that lives would be taken over by the next engine.
        until("containerd has ended", lambda: not [p for p in self.processes() if "containerd-shim" not in p[1]])
        # Where nobody reaps it, the next engine takes the dead one for running.
        (self.exec / "containerd/containerd.pid").unlink(missing_ok=True)

    def forget_the_start(self, container):
        """Of an engine that does not run: its files then say that the container was created and never started."""
        for file in (self.data / "containers").glob("*/config.v2.json"):
            config = json.loads(file.read_text())
            if config["Name"] == f"/{container}":
                never = "0001-01-01T00:00:00Z"
                config["State"].update(Running=False, Pid=0, ExitCode=0, StartedAt=never, FinishedAt=never)
                file.write_text(json.dumps(config))
                return
        raise AssertionError(f"no files of {container}")

    def has_noted(self, container):
        """Whether the engine's files say that it runs."""
        for file in (self.data / "containers").glob("*/config.v2.json"):
            try:
                config = json.loads(file.read_text())
            except (OSError, ValueError):
                # It is just being replaced, or removed.
                continue
            if config["Name"] == f"/{container}":
                return config["State"]["Running"]
        return False

    def processes(self):
        """(pid, command line) of everything that names this directory: dockerd, containerd, shims."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            line = command_line(entry.name)
            program = line.split(" ")[0].rpartition("/")[2]
            if str(self.exec) in line and program in ("dockerd", "containerd", "containerd-shim", "containerd-shim-runc-v2"):
                if is_alive(int(entry.name)):
                    found.append((int(entry.name), line))
        return found

    def lose_power(self):
        """Everything of it ends at once, payloads included, and what lies in memory is gone."""
        shims = [pid for pid, line in self.processes() if "containerd-shim" in line]
        payloads = [pid for shim in shims for pid in descendants(shim)]
        for pid in [self.process.pid] + [pid for pid, _ in self.processes()] + payloads:
            kill(pid)
        self.process.wait(PATIENCE_S)
        until("all has ended", lambda: not self.processes() and not any(map(is_alive, payloads)))
        self._unmount(self.exec)
        shutil.rmtree(self.exec)
        # The containers' own file systems are mounted below the data, and a host that starts again has no mounts.
        self._unmount(self.data, below=True)

    def _unmount(self, directory, below=False):
        for line in reversed(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()):
            place = line.split()[4]
            if place.startswith(f"{directory}/") or (not below and place == str(directory)):
                subprocess.run(["umount", "-l", place], check=True, capture_output=True)

    def remove(self):
        """Ends and removes everything of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        left = self.processes()
        for pid in [pid for pid, _ in left] + [pid for shim, _ in left for pid in descendants(shim)]:
            kill(pid)
        until("all has ended", lambda: not self.processes())
        self._unmount(self.exec)
        self._unmount(self.data)
        if pathlib.Path(f"/var/run/netns/{self.namespace}").exists():
            run("ip", "netns", "delete", self.namespace)
        shutil.rmtree(self.directory)


def descendants(pid):
    """Process ids of all its children, theirs included."""
    children = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        here = children.get(left.pop(), [])
        found += here
        left += here
    return found
