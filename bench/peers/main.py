#!/usr/bin/env python3
"""HackBrain beside pueue, task-spooler and Slurm, in turns, in one run. Tables on stdout, what goes on on stderr.

submit  submissions acknowledged per second: the peer's own client, one process after another, and by eight at once
kill    kill -9 of the daemon when the client has returned, start on the same state: is the job known?
sync    what the daemon syncs between the client's start and its return, by strace
jobs    200 jobs `true`, from the first submission to the last end; the peers' also in containers like HackBrain's
queue   memory, idle and with 10,000 jobs that wait; how long their submission took
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import daemons
from daemons import CORES, IMAGE, PEERS, HackBrain, docker

WHAT = ["submit", "kill", "sync", "jobs", "queue"]
ONE, EIGHT = 100, 200
CLIENTS = 8
TRACED = 5
AFTER_S = 12
CONTROLS, CONTROL_S = 3, 12
# A client that has not returned by then is ended, and its job counts as not taken.
STUCK_S = 30
PAUSE_S = 0.5
NOT_HAD = "not to be had here"
SYNCS = ["fsync", "fdatasync", "sync_file_range", "sync", "syncfs", "msync"]
LOGS = ["daemon.log", "munge.log", "slurmctld.log", "slurmd.log"]
DEVNULL = os.open(os.devnull, os.O_RDWR)
SILENT = [(os.POSIX_SPAWN_DUP2, DEVNULL, number) for number in range(3)]


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(options)
    try:
        if not bench.peers:
            tell("neither HackBrain nor any peer can be had here")
            return 77
        bench.machine()
        for what in WHAT:
            if what in options.what:
                before = load()
                getattr(bench, what)()
                print(f"\nLoad average before this part and after it: {before}; {load()}.", flush=True)
    finally:
        bench.close()
    return 0


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help="of submit, kill, sync, jobs, queue; all if none is named")
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=PATH", help="where a peer lies (given)")
    parser.add_argument("--data", required=True, metavar="DIR", help="on the disk to be measured (given)")
    parser.add_argument("--rounds", type=int, metavar="N", help="of every part; else 9 of submit, 100 of kill, 3 of jobs")
    parser.add_argument("--jobs", type=int, default=200, metavar="N", help="jobs `true` of a round (200)")
    parser.add_argument("--queue", type=int, default=10_000, metavar="N", help="jobs that wait (10000)")
    parser.add_argument("--limit", type=int, default=600, metavar="SECONDS", help="for a peer to take those (600)")
    parser.add_argument("--quick", action="store_true", help="a try: two rounds, 6 jobs, 100 that wait, no control")
    parser.add_argument("--hold", metavar="FILE", help="waits between rounds while this file exists")
    options = parser.parse_args()
    if set(options.what) - set(WHAT):
        parser.error(f"WHAT is of {', '.join(WHAT)}")
    options.what = options.what or WHAT
    if options.quick:
        options.rounds, options.jobs, options.queue = 2, 6, 100
    return options


def tell(text):
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def load():
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def quartiles(values, digits=1):
    """`median (lower..upper)`."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:,.{digits}f} ({low:,.{digits}f}..{high:,.{digits}f})"


def client(argv, env):
    """Runs a client as fast as this loop can; its exit status."""
    pid = os.posix_spawnp(argv[0], argv, env, file_actions=SILENT)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def must(argv, env):
    if client(argv, env) != 0:
        said = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        raise RuntimeError(f"{argv[0]} failed; asked again: {said.stdout} {said.stderr}")


class Bench:
    def __init__(self, options):
        self.options = options
        self.tools = dict(word.split("=", 1) for word in options.tool)
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="peers-", dir=options.data))
        self.sockets = pathlib.Path(tempfile.mkdtemp(prefix="hb-peers-"))
        # sbatch writes its jobs' output where it was called.
        os.chdir(self.base)
        self.count = 0
        self.versions = {}
        for peer in PEERS:
            try:
                self.versions[peer] = peer.version(self.tools)
            except (KeyError, OSError, subprocess.SubprocessError) as error:
                tell(f"{peer.name}: {NOT_HAD} ({error!r})")
        self.peers = [peer for peer in PEERS if peer in self.versions]

    def close(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.chdir("/")
        shutil.rmtree(self.base)
        shutil.rmtree(self.sockets)

    def new(self, peer):
        self.count += 1
        return peer(self.base / f"{self.count}", self.sockets / f"{self.count}", self.tools)

    def rounds(self, usual):
        return usual if self.options.rounds is None else self.options.rounds

    def turns(self, peers, turn):
        """The peers, in another order in each round, with a pause after each. Never while --hold's file is there."""
        for peer in random.Random(turn).sample(peers, len(peers)):
            while self.options.hold and os.path.exists(self.options.hold):
                time.sleep(1)
            yield peer
            # What the last one left the system to do shall not be the next one's.
            time.sleep(PAUSE_S)

    def head(self, more=()):
        names = [peer.name + (f" {self.versions[peer]}" if peer in self.versions else "") for peer in PEERS]
        print("| | " + " | ".join([*names, *more]) + " |")
        print("|---|" + "--:|" * (len(names) + len(more)))

    def row(self, title, cells, more=()):
        own = [cells.get(peer, "–") if peer in self.versions else NOT_HAD for peer in PEERS]
        print(f"| {title} | " + " | ".join([*own, *more]) + " |", flush=True)

    def machine(self):
        cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        system = subprocess.run(["findmnt", "-no", "FSTYPE,SOURCE", "-T", self.base], capture_output=True, text=True,
                                check=False).stdout
        print(f"\n{cpu[1] if cpu else platform.machine()}, {CORES} cores, kernel {platform.release()}, "
              f"{' on '.join(system.split())} for all state, {datetime.date.today():%d %B %Y}.", flush=True)

    def submit(self):
        one, eight = {}, {}
        for turn in range(self.rounds(9)):
            tell(f"submit, round {turn + 1}")
            for peer in self.turns([*self.peers, "spawn", "sync"], turn):
                if peer == "sync":
                    one.setdefault(peer, []).append(sync_rate(self.base, 1))
                    eight.setdefault(peer, []).append(sync_rate(self.base, CLIENTS))
                    continue
                with self.new(peer) if peer != "spawn" else contextlib.nullcontext() as running:
                    if running:
                        running.start()
                        running.block()
                    env = running.env if running else {"PATH": os.environ["PATH"]}

                    def argv(number, running=running):
                        return running.submission(f"s{number}", blocked=True) if running else ["/bin/true"]

                    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                        if peer is HackBrain:
                            asking = running.asking()
                            one.setdefault("curl", []).append(rate(ONE, lambda _: must(asking, env)))
                            eight.setdefault("curl", []).append(rate(EIGHT, lambda _: must(asking, env), pool))
                        one.setdefault(peer, []).append(rate(ONE, lambda n: must(argv(n), env)))
                        eight.setdefault(peer, []).append(rate(EIGHT, lambda n: must(argv(ONE + n), env), pool))
        print(f"\nSubmissions acknowledged per second, {self.rounds(9)} rounds of {ONE} and {EIGHT}, "
              "medians (quartiles)\n")
        self.head(["`/bin/true`", "`curl …/healthz`", "4 KiB and fdatasync"])
        for title, cells in [("one client after another", one), (f"{CLIENTS} clients at once", eight)]:
            cells = {peer: quartiles(values, 0) for peer, values in cells.items()}
            self.row(title, cells, [cells["spawn"], cells.get("curl", "–"), cells["sync"]])

    def kill(self):
        known, controls = {peer: 0 for peer in self.peers}, {peer: 0 for peer in self.peers}
        rounds = self.rounds(100)
        with contextlib.ExitStack() as stack:
            running = {}
            for peer in self.peers:
                running[peer] = stack.enter_context(self.new(peer))
                running[peer].start()
                running[peer].block()
            for turn in range(rounds):
                if turn % 20 == 0:
                    tell(f"kill, round {turn + 1}")
                for peer in self.turns(self.peers, turn):
                    known[peer] += killed_after(running[peer], f"k{turn}", 0)
            for turn in range(0 if self.options.quick else CONTROLS):
                tell(f"kill, control {turn + 1}")
                for peer in self.turns(self.peers, turn):
                    controls[peer] += killed_after(running[peer], f"c{turn}", CONTROL_S)
        print("\nAcknowledged jobs that the daemon knows after `kill -9` and a start on the same state\n")
        self.head()
        self.row("killed at once when the client has returned", {peer: f"{known[peer]} of {rounds}" for peer in self.peers})
        if not self.options.quick:
            self.row(f"killed {CONTROL_S} s later", {peer: f"{controls[peer]} of {CONTROLS}" for peer in self.peers})

    def sync(self):
        if not shutil.which("strace"):
            print(f"\nSyncs: strace is {NOT_HAD}")
            return
        syncs, later, names = {}, {}, {}
        for peer in self.turns(self.peers, 0):
            tell(f"sync, {peer.name}")
            with self.new(peer) as running:
                running.start()
                running.block()
                within, after = traced(running, self.base / "strace")
            syncs[peer], later[peer] = told(within), told(after)
            names[peer] = ", ".join(sorted({f"`{path}`" for _, path in within if path})) or "none"
        print(f"\nWhat strace saw the daemon do between a client's start and its return, {TRACED} submissions\n")
        self.head()
        self.row("syncs", syncs)
        self.row("files synced, written or renamed", names)
        self.row(f"syncs between and up to {AFTER_S} s after them", later)

    def jobs(self):
        template = self.template()
        plain, contained = {}, {}
        arms = [(peer, False) for peer in self.peers if not peer.contains]
        if template:
            arms = [(HackBrain, True)] + arms + [(peer, True) for peer, _ in arms]
        for turn in range(self.rounds(3)):
            for peer, docked in self.turns(arms, turn):
                tell(f"jobs, round {turn + 1}, {peer.name}, {'containers' if docked else 'plain'}")
                with self.new(peer) as running:
                    running.prepare_for_short_jobs()
                    running.start()
                    command = template if docked and not peer.contains else ["true"]
                    took = self.run_all(running, command)
                (contained if docked else plain).setdefault(peer, []).append(took)
        print(f"\n{self.options.jobs} jobs `true`, {CORES} at once, from the first submission to the last end in seconds, "
              f"{self.rounds(3)} rounds, medians (quartiles)\n")
        self.head()
        self.row("each in a sandboxed container", {peer: quartiles(took) for peer, took in contained.items()})
        self.row("plain processes", {peer: quartiles(took) for peer, took in plain.items()})

    def template(self):
        """The command line of a peer's own container: the agent's, without the names of its job, and with --rm."""
        if HackBrain not in self.versions:
            return None
        scratch = self.base / "scratch"
        scratch.mkdir()
        scratch.chmod(0o777)
        with self.new(HackBrain) as running:
            running.start()
            words = running.command_line()
        line = []
        for word in words:
            if word.startswith("--mount="):
                line.append(re.sub(r'"?src=[^",]*"?', f"src={scratch}", word))
            elif word.startswith("--entrypoint="):
                line.append("--entrypoint=true")
            elif not re.match("--(name|cidfile|cgroup-parent|label)=", word):
                line.append(word)
        end = line.index("--")
        at = line.index("run") + 1
        line = line[:at] + ["--rm"] + line[at:end + 2]
        if client(line, {"PATH": os.environ["PATH"]}) != 0:
            raise RuntimeError(f"this does not run: {line}")
        tell(f"containers of the peers: {line}")
        return line

    def run_all(self, running, command):
        began = time.monotonic()
        for number in range(self.options.jobs):
            must(running.submission(f"j{number}", command), running.env)
        daemons.until_long(f"all jobs of {running.name} have ended", lambda: running.ended() == self.options.jobs)
        return time.monotonic() - began

    def queue(self):
        idle, full, waiting, came = {}, {}, {}, {}
        for peer in self.turns(self.peers, 0):
            with self.new(peer) as running:
                running.start()
                time.sleep(1)
                idle[peer] = memory(running.daemons())
                running.block()
                tell(f"queue, {peer.name}")
                taken, took, why = self.fill(running)
                all_taken = taken == self.options.queue
                came[peer] = f"{took:,.0f} s" if all_taken else f"given up with {taken:,} after {took:,.0f} s{why}"
                if taken:
                    running.settle()
                time.sleep(1)
                full[peer] = memory(running.daemons()) + ("" if all_taken else f" with {taken:,}")
                left = running.clients()
                if left:
                    waiting[peer] = f"{memory(left)}, {len(left):,} processes"
        print(f"\nMemory, RSS / PSS in MiB, and the submission of {self.options.queue:,} jobs that wait, "
              "one client after another\n")
        self.head()
        self.row("daemons that are counted", {peer: peer.daemon_names for peer in self.peers})
        self.row("idle", idle)
        self.row(f"{self.options.queue:,} jobs wait", full)
        self.row("processes that wait for their job besides", {peer: waiting.get(peer, "none") for peer in self.peers})
        self.row("their submission", came)

    def fill(self, running):
        """Submits until there are enough, the time is over, or a client is stuck: (taken, seconds, why it ended)."""
        began = time.monotonic()
        current = {"pid": None, "since": began}
        lock = threading.Lock()
        over = threading.Event()
        why = ""

        def watch():
            while not over.wait(0.2):
                now = time.monotonic()
                with lock:
                    if current["pid"] and (now - current["since"] > STUCK_S or now - began > self.options.limit + STUCK_S):
                        os.kill(current["pid"], signal.SIGKILL)

        watcher = threading.Thread(target=watch)
        watcher.start()
        taken = 0
        try:
            while taken < self.options.queue and time.monotonic() - began < self.options.limit:
                argv = running.submission(f"q{taken}", blocked=True)
                started = time.monotonic()
                with lock:
                    pid = os.posix_spawnp(argv[0], argv, running.env, file_actions=SILENT)
                    current.update(pid=pid, since=started)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                # Reaped under the lock: the watcher never signals a number that is somebody else's by now.
                with lock:
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    current["pid"] = None
                if status != 0:
                    why = f", the last client did not return in {STUCK_S} s" if status == -signal.SIGKILL else ", a client failed"
                    # How long those took that were taken.
                    return taken, started - began, why
                taken += 1
                if taken % 1000 == 0:
                    tell(f"queue, {running.name}: {taken} after {time.monotonic() - began:.1f} s")
        finally:
            over.set()
            watcher.join()
        return taken, time.monotonic() - began, why


def rate(number, submit, pool=None):
    began = time.monotonic()
    if pool:
        list(pool.map(submit, range(number)))
    else:
        for count in range(number):
            submit(count)
    return number / (time.monotonic() - began)


def sync_rate(directory, threads):
    """4 KiB written and synced per second: what the disk has for who waits for it, a file for each thread."""
    def write(number):
        with open(directory / f"floor-{number}", "wb", buffering=0) as file:
            for count in range(ONE):
                os.pwrite(file.fileno(), bytes(4096), 4096 * (count % 16))
                os.fdatasync(file.fileno())

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        began = time.monotonic()
        list(pool.map(write, range(threads)))
        return threads * ONE / (time.monotonic() - began)


def killed_after(running, job, seconds):
    """Whether a job is known after the daemon was killed so long after its client had returned, and started again."""
    argv = running.submission(job, blocked=True)
    status = client(argv, running.env)
    if seconds:
        time.sleep(seconds)
    os.kill(running.pid(), signal.SIGKILL)
    if status != 0:
        raise RuntimeError(f"{running.name} has not taken {job}: status {status}")
    running.kill()
    running.start()
    return running.known(job)


def traced(running, file):
    """[(call, path)] that a daemon made while a client of its own ran, and at other times."""
    words = ["strace", "-f", "-y", "-ttt", "-qq", "-e", "signal=none", "-o", file,
             "-e", f"trace={','.join(SYNCS)},write,writev,pwrite64,pwritev,pwritev2,rename,renameat,renameat2,io_uring_enter"]
    for pid in running.daemons():
        words += ["-p", str(pid)]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(2)
        windows = []
        for number in range(TRACED):
            began = time.time()
            must(running.submission(f"t{number}", blocked=True), running.env)
            windows.append((began, time.time()))
            time.sleep(1)
        time.sleep(AFTER_S)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(60)
    within, after = [], []
    for line in file.read_text(errors="replace").splitlines():
        found = re.match(r"\d+ +(\d+\.\d+) (\w+)\((.*)", line)
        if found and float(found[1]) >= windows[0][0]:
            path = written(running, found[2], found[3])
            if found[2] in SYNCS or path:
                inside = any(began <= float(found[1]) <= ended for began, ended in windows)
                (within if inside else after).append((found[2], path))
    file.unlink()
    return within, after


def told(calls):
    numbers = {name: sum(call == name for call, _ in calls) for name in SYNCS}
    return ", ".join(f"{name} {number}" for name, number in numbers.items() if number) or "none"


def written(running, call, rest):
    """The file of a call, below the daemon's own directory; names of single jobs are made alike."""
    paths = re.findall(r'[<"](/[^>"]*)[>"]', rest)
    paths = [path for path in paths if path.startswith(f"{running.directory}/")]
    if not paths:
        return None
    path = paths[-1] if call.startswith("rename") else paths[0]
    name = os.path.relpath(path, running.directory)
    if name in LOGS:
        return None
    return re.sub(r"[0-9a-f]{16}|\d+", "N", name)


def memory(pids):
    """`RSS / PSS` in MiB of all of them."""
    rss = pss = 0
    for pid in pids:
        try:
            text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        rss += int(re.search(r"^Rss:\s+(\d+)", text, re.M)[1])
        pss += int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1])
    return f"{rss / 1024:.1f} / {pss / 1024:.1f}"


if __name__ == "__main__":
    sys.exit(main())
