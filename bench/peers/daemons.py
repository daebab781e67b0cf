"""HackBrain, pueue, task-spooler and Slurm under one interface: start, submit by their own client, kill, ask, end.

Every daemon has a directory of its own for its state and its configuration; sockets lie in a short temporary one,
since a path of a socket holds 107 bytes. Nothing of the host's configuration is read or written.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from cli_line import cli_line

CORES = os.cpu_count() or 1
PATIENCE_S = 120
POLL_S = 0.1
# Longer than any part of the bench takes.
BLOCKER_S = 86400
IMAGE = "busybox:latest"


def until(what, ask, pause=0.005, patience=PATIENCE_S):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            return answer
        time.sleep(pause)
    raise RuntimeError(f"never came about: {what}")


def until_long(what, ask):
    until(what, ask, POLL_S, 10 * PATIENCE_S)


def output_of(argv, env):
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_process(process, number=signal.SIGTERM):
    if process is None:
        return
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(PATIENCE_S)


class Peer:
    """One daemon on new directories. `name` heads its column."""

    name = ""
    # Whether a container is this peer's own way to run a job.
    contains = False

    def __init__(self, place, sockets):
        self.directory = pathlib.Path(place)
        self.sockets = pathlib.Path(sockets)
        self.directory.mkdir(parents=True)
        self.sockets.mkdir(parents=True)
        # A job of pueue's carries its client's environment: it is small, and the same for all.
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "LANG": "C.UTF-8", "USER": "root",
                    "SHELL": "/bin/sh"}
        if "DOCKER_HOST" in os.environ:
            self.env["DOCKER_HOST"] = os.environ["DOCKER_HOST"]
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
        shutil.rmtree(self.directory)
        shutil.rmtree(self.sockets)

    def spawn(self, argv, **more):
        with open(self.directory / "daemon.log", "ab") as log:
            return subprocess.Popen(argv, env={**self.env, **more}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def pid(self):
        """Of the process that takes submissions."""
        return self.process.pid

    def daemons(self):
        """Every process that has to be there, for its memory."""
        return [self.pid()]

    def clients(self):
        """Processes that stay for as long as a job waits."""
        return []

    def kill(self):
        """SIGKILL to the one that takes submissions."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def end(self):
        end_process(self.process)

    def prepare_for_short_jobs(self):
        """Before the start: a setting without which short jobs would wait for nothing."""

    def failed_output(self):
        try:
            return (self.directory / "daemon.log").read_text(errors="replace")[-1500:]
        except OSError:
            return ""


class HackBrain(Peer):
    name = "HackBrain"
    contains = True
    daemon_names = "agent"

    def __init__(self, place, sockets, tools):
        super().__init__(place, sockets)
        self.binary = tools["hackbrain"]
        self.port = free_port()
        self.workers = CORES
        self.log_id = None
        # Names of containers are the host's: another bench may run beside this one.
        self.prefix = f"peers-{os.getpid()}-{self.directory.name}-"

    @staticmethod
    def version(tools):
        return output_of([tools["hackbrain"], "--version"], None).split()[-1]

    def start(self):
        self.process = self.spawn([self.binary, "serve", "--data", self.directory / "data",
                                   "--listen", f"127.0.0.1:{self.port}", "--pull", "never", "--workers", str(self.workers)])
        until("the agent is ready", lambda: self.get("/readyz") is not None)
        self.log_id = json.loads(self.get("/api/node"))["log_id"]

    def get(self, path):
        if self.process.poll() is not None:
            raise RuntimeError(f"the agent has ended: {self.failed_output()}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S) as answer:
                return answer.read()
        except (urllib.error.URLError, ConnectionError):
            return None

    def submission(self, job, command=("true",), blocked=False):
        del blocked
        manifest = json.dumps({"job_id": self.prefix + job, "image_hash": IMAGE, "command": list(command)})
        return ["curl", "-sS", "-f", "-H", "Content-Type: application/json", "-d", manifest,
                f"http://127.0.0.1:{self.port}/api/submit_job"]

    def asking(self):
        """The same client with a question that the ledger has no part in."""
        return ["curl", "-sS", "-f", f"http://127.0.0.1:{self.port}/healthz"]

    def block(self):
        """A worker, and a job that keeps it."""
        end_process(self.process)
        self.workers = 1
        self.start()
        output_of(self.submission("blocker", ["sleep", str(BLOCKER_S)]), self.env)
        until("the blocker runs", lambda: json.loads(self.get(f"/api/jobs/{self.prefix}blocker"))["state"] == "RUNNING", POLL_S)

    def settle(self):
        """Until nothing is done any more for the jobs that wait."""
        until_long("the jobs are scheduled", lambda: not json.loads(self.get("/api/node"))["jobs"].get("RECEIVED"))

    def known(self, job):
        return self.get(f"/api/jobs/{self.prefix}{job}") is not None

    def ended(self):
        states = json.loads(self.get("/api/node"))["jobs"]
        if states.get("FAILED"):
            raise RuntimeError("jobs of the agent failed")
        return states.get("SEALED", 0)

    def command_line(self):
        """What `docker run` is given for a job, without what names this job: for the peers' own containers."""
        output_of(self.submission("template", ["sleep", "2"]), self.env)

        words = until("the CLI runs", lambda: cli_line(f"hb-{self.prefix}template-1"))
        until("the template has ended", lambda: self.ended() == 1, POLL_S)
        return words

    def end(self):
        end_process(self.process)
        if self.log_id is None:
            return
        names = docker("ps", "-aq", "--filter", f"label=hackbrain.log={self.log_id}").split()
        if names:
            docker("rm", "-f", *names)
        for line in reversed(pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()):
            if line.split()[4].startswith(f"{self.directory}/"):
                subprocess.run(["umount", line.split()[4]], check=True)
        for tag in docker("images", "--format", "{{.Tag}}", "hackbrain/pin").split():
            if tag.startswith(self.log_id[:8]):
                docker("rmi", "--no-prune", f"hackbrain/pin:{tag}")


def docker(*words):
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout.strip()


class Pueue(Peer):
    name = "pueue"
    daemon_names = "pueued"

    def __init__(self, place, sockets, tools):
        super().__init__(place, sockets)
        self.tools = tools["pueue"]
        self.config = self.directory / "pueue.yml"
        self.config.write_text(
            f"shared:\n  pueue_directory: {self.directory}/state\n"
            f"  runtime_directory: {self.sockets}\n  use_unix_socket: true\n"
            f"  unix_socket_path: {self.sockets}/pueue.socket\nclient: {{}}\ndaemon: {{}}\n", encoding="utf-8")

    @staticmethod
    def version(tools):
        return output_of([f"{tools['pueue']}/pueue", "--version"], None).split()[-1]

    def client(self, *words):
        return [f"{self.tools}/pueue", "-c", str(self.config), *words]

    def start(self):
        self.process = self.spawn([f"{self.tools}/pueued", "-c", str(self.config)])
        until("pueued answers", self.answers)
        output_of(self.client("parallel", str(CORES)), self.env)

    def answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"pueued has ended: {self.failed_output()}")
        return subprocess.run(self.client("status"), env=self.env, capture_output=True, check=False).returncode == 0

    def submission(self, job, command=("true",), blocked=False):
        del blocked
        return self.client("add", "--label", job, "--", shlex.join(command))

    def block(self):
        output_of(self.client("pause"), self.env)

    def settle(self):
        pass

    def tasks(self):
        return json.loads(output_of(self.client("status", "--json"), self.env))["tasks"].values()

    def known(self, job):
        return any(task["label"] == job for task in self.tasks())

    def ended(self):
        done = [task["status"]["Done"] for task in self.tasks() if "Done" in task["status"]]
        if any(status["result"] != "Success" for status in done):
            raise RuntimeError("jobs of pueue failed")
        return len(done)


class TaskSpooler(Peer):
    name = "task-spooler"
    daemon_names = "tsp"

    def __init__(self, place, sockets, tools):
        super().__init__(place, sockets)
        self.tsp = tools["tsp"]
        self.env["TS_SOCKET"] = f"{self.sockets}/tsp"
        self.env["TMPDIR"] = str(self.directory)
        self.server = None

    @staticmethod
    def version(tools):
        return re.search(r"v([0-9.]+)", output_of([tools["tsp"], "-V"], None))[1]

    def start(self):
        # The first client becomes the daemon.
        output_of([self.tsp, "-S", str(CORES)], self.env)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.env["TS_SOCKET"])
            self.server = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def pid(self):
        return self.server

    def clients(self):
        mine = f"TS_SOCKET={self.env['TS_SOCKET']}\0".encode()
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if mine in (entry / "environ").read_bytes() and int(entry.name) != self.server:
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def submission(self, job, command=("true",), blocked=False):
        del blocked
        return [self.tsp, "-L", job, *command]

    def block(self):
        output_of([self.tsp, "-S", "1"], self.env)
        output_of([self.tsp, "sleep", str(BLOCKER_S)], self.env)

    def settle(self):
        pass

    def known(self, job):
        return f"[{job}]" in output_of([self.tsp, "-l"], self.env)

    def ended(self):
        rows = [line.split() for line in output_of([self.tsp, "-l"], self.env).splitlines()[1:]]
        done = [row for row in rows if row[1] == "finished"]
        if any(row[3] != "0" for row in done):
            raise RuntimeError("jobs of task-spooler failed")
        return len(done)

    def kill(self):
        kill_all([self.server])
        self.server = None
        # Who waited for a job goes with it, or is left over.
        kill_all(self.clients())

    def end(self):
        if self.server is not None:
            self.kill()


def kill_all(pids):
    """SIGKILL, until they are gone. Not our children, so they cannot be waited for."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    until("the processes are gone", lambda: not any(alive(pid) for pid in pids), 0.001)


def alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # Nobody may be there to reap it.
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Slurm(Peer):
    name = "Slurm"
    daemon_names = "slurmctld, slurmd, munged"

    def __init__(self, place, sockets, tools):
        super().__init__(place, sockets)
        self.root = pathlib.Path(tools["slurm"])
        library = self.root / "usr/lib/x86_64-linux-gnu"
        plugins = library / "slurm-wlm"
        self.env["LD_LIBRARY_PATH"] = f"{library}:{plugins}:{self.root}/lib/x86_64-linux-gnu"
        self.env["SLURM_CONF"] = str(self.directory / "slurm.conf")
        self.munged = self.slurmd = None
        host = socket.gethostname().split(".")[0]
        key = self.directory / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        (self.directory / "state").mkdir()
        (self.directory / "spool").mkdir()
        # The defaults wherever one computer without control groups of its own lets them stand.
        (self.directory / "slurm.conf").write_text(f"""ClusterName=peers
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={self.sockets}/munge
PluginDir={plugins}
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
StateSaveLocation={self.directory}/state
SlurmdSpoolDir={self.directory}/spool
SlurmctldPidFile={self.sockets}/slurmctld.pid
SlurmdPidFile={self.sockets}/slurmd.pid
SlurmctldLogFile={self.directory}/slurmctld.log
SlurmdLogFile={self.directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MaxJobCount=20000
NodeName={host} NodeAddr=127.0.0.1 CPUs={CORES} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP
PartitionName=blocked Nodes={host} State=DOWN
""", encoding="utf-8")

    def prepare_for_short_jobs(self):
        # Else it gathers submissions for three seconds before it looks at them, and takes three times as long.
        with open(self.env["SLURM_CONF"], "a", encoding="utf-8") as conf:
            conf.write("SchedulerParameters=batch_sched_delay=0\n")

    @staticmethod
    def version(tools):
        libraries = f"{tools['slurm']}/usr/lib/x86_64-linux-gnu"
        return output_of([f"{tools['slurm']}/usr/sbin/slurmctld-wlm", "-V"],
                         {"LD_LIBRARY_PATH": f"{libraries}:{libraries}/slurm-wlm"}).split()[-1]

    def program(self, name):
        return f"{self.root}/usr/bin/{name}"

    def start(self):
        sbin, conf = self.root / "usr/sbin", self.env["SLURM_CONF"]
        if self.munged is None:
            self.munged = self.spawn([sbin / "munged", "-F", "--force", f"--key-file={self.directory}/munge.key",
                                      f"--socket={self.sockets}/munge", f"--pid-file={self.sockets}/munge.pid",
                                      f"--log-file={self.directory}/munge.log", f"--seed-file={self.directory}/munge.seed"])
            until("munged answers", lambda: os.path.exists(f"{self.sockets}/munge"))
        self.process = self.spawn([sbin / "slurmctld-wlm", "-D", "-f", conf])
        if self.slurmd is None:
            self.slurmd = self.spawn([sbin / "slurmd-wlm", "-D", "-f", conf, "-d", sbin / "slurmstepd-wlm"])
        until("slurmctld answers and its node is idle", self.answers, 0.02)

    def answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"slurmctld has ended: {self.failed_output()}")
        said = subprocess.run([self.program("sinfo"), "-h", "-p", "main", "-o", "%t"], env=self.env,
                              capture_output=True, text=True, check=False).stdout
        return said.strip() == "idle"

    def daemons(self):
        return [self.process.pid, self.slurmd.pid, self.munged.pid]

    def submission(self, job, command=("true",), blocked=False):
        partition = "blocked" if blocked else "main"
        return [self.program("sbatch"), "-J", job, "-p", partition, f"--wrap={shlex.join(command)}"]

    def block(self):
        pass

    def settle(self):
        pass

    def known(self, job):
        ids = output_of([self.program("squeue"), "-h", "-t", "all", "-n", job, "-o", "%i"], self.env)
        return bool(ids.strip())

    def ended(self):
        states = output_of([self.program("squeue"), "-h", "-t", "all", "-o", "%T"], self.env).split()
        if set(states) - {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "COMPLETED"}:
            raise RuntimeError(f"jobs of Slurm failed: {set(states)}")
        return states.count("COMPLETED")

    def end(self):
        end_process(self.process)
        end_process(self.slurmd)
        end_process(self.munged)


PEERS = [HackBrain, Pueue, TaskSpooler, Slurm]
