#!/usr/bin/env python3
"""Kills a container while its payload is inside fsync, as seen from the host.

kill_in_sync.py CONTAINER SECONDS [LOG STEP]: waits until wal_physics has that step in its LOG, and then until a process of the
container is in the system call; kills its init with -9, as the engine or the kernel would, and the rest of it goes with it.
DOCKER_HOST names the engine. Prints `in fsync`, or `outside` where the payload was never met there within SECONDS; ends with 1
where there is no such container any more."""
import os
import pathlib
import signal
import subprocess
import sys
import time

# Of payloads/wal_physics.py: a record's length.
STEP_BYTES = 528
FSYNC = {"x86_64": ("74", "75"), "aarch64": ("82", "83")}.get(os.uname().machine, ())


def processes(init):
    """All that share the pid namespace of the container's init, but for itself."""
    namespace = os.readlink(f"/proc/{init}/ns/pid")
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != init and os.readlink(entry / "ns/pid") == namespace:
                yield entry / "syscall"
        except OSError:
            continue


def is_in_sync(places):
    for place in places:
        try:
            if place.read_text().split(" ")[0] in FSYNC:
                return True
        except OSError:
            continue
    return False


def await_step(init, log, step):
    while not os.path.exists(log) or os.path.getsize(log) < step * STEP_BYTES:
        os.stat(f"/proc/{init}")
        time.sleep(0.001)


def main(container, seconds, log=None, step=0):
    found = subprocess.run(["docker", "inspect", "-f", "{{.State.Pid}}", container], capture_output=True, text=True, check=False)
    # It prints an empty line where there is none, and 0 for one that has ended.
    init = int(found.stdout.strip() or 0)
    if not init:
        sys.exit(1)
    try:
        if log is not None:
            await_step(init, log, int(step))
        places, deadline, met = [], time.monotonic() + float(seconds), False
        while not met and time.monotonic() < deadline:
            # A payload that was just started may be the shell yet, or only the init.
            places = list(processes(init))
            turns = min(deadline, time.monotonic() + 0.5)
            while places and not met and time.monotonic() < turns:
                met = is_in_sync(places)
        os.kill(init, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        sys.exit(1)
    print("in fsync" if met else "outside")


if __name__ == "__main__":
    main(*sys.argv[1:])
