"""A payload that survives kill -9: a damped, driven string (1-D wave equation) with its own write-ahead log.

Each step is appended to physics.wal in the current directory and fsynced before "[D1_STABLE] step=N" is printed. On start
the log is read back up to its first unsound record, which is cut off with all that follows; the run goes on from there. A
step that was logged but not yet announced when the kill came is the N of "resumed from step N". At the end result.txt is
replaced atomically. The integration is in integers, so the log and the result are the same bytes however often the run was
killed, on every machine.

Environment: WAL_PHYSICS_STEPS (default 200), WAL_PHYSICS_STEP_MS (default 50; the pause after a step, no part of the
result). Exit: 0 finished, 1 the disk refused, 2 wrong parameters or a log that was made with others.
Needs no more of the standard library than a minimal Python 3.9 has.
"""

import binascii
import hashlib
import os
import struct
import sys
import time

LOG = "physics.wal"
RESULT = "result.txt"

CELLS = 32
# Fixed point: one unit of length is 2**SCALE_BITS.
SCALE_BITS = 32
SUBSTEPS_PER_STEP = 16
# (c·dt/dx)² = 2**-2: below 1, so the scheme is stable.
COURANT_SHIFT = 2
# Each substep takes 2**-7 of a cell's velocity.
DAMPING_SHIFT = 7
DRIVE_PERIOD_SUBSTEPS = 96

STEPS_MAX = 10_000_000
STEP_MS_MAX = 60_000

# Header: magic, cells, substeps per step, steps; then the CRC-32 of those.
HEADER = struct.Struct("<8sIIQ")
MAGIC = b"WALPHYS1"
# Record: length of the body, CRC-32 of length and body; body: step, displacements, velocities.
LENGTH = struct.Struct("<I")
CRC = struct.Struct("<I")
BODY = struct.Struct("<Q%dq%dq" % (CELLS, CELLS))
RECORD_BYTES = LENGTH.size + CRC.size + BODY.size
HEADER_BYTES = HEADER.size + CRC.size


class Refused(Exception):
    """The run cannot start as asked; the text says what to change."""


def main():
    try:
        steps = from_environment("WAL_PHYSICS_STEPS", 200, 1, STEPS_MAX)
        pause_s = from_environment("WAL_PHYSICS_STEP_MS", 50, 0, STEP_MS_MAX) / 1000
        run(steps, pause_s)
    except Refused as refusal:
        print("wal_physics: %s" % refusal, file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print("wal_physics: %s" % error, file=sys.stderr, flush=True)
        return 1
    return 0


def run(steps, pause_s):
    log = os.open(LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        step, u, v, trajectory = recover(log, steps)
        if step:
            print("resumed from step %d" % step, flush=True)
        while step < steps:
            step += 1
            advance(step, u, v)
            body = BODY.pack(step, *u, *v)
            append(log, framed(body))
            trajectory.update(body)
            print("[D1_STABLE] step=%d of=%d energy=%d" % (step, steps, energy(u, v)), flush=True)
            time.sleep(pause_s)
    finally:
        os.close(log)
    publish(result_text(steps, u, v, trajectory))


def recover(log, steps):
    """Reads the log back: (last sound step, displacements, velocities, SHA-256 over all sound bodies).

    Afterwards the log ends with its last sound record, durably.
    """
    size = os.fstat(log).st_size
    header = HEADER.pack(MAGIC, CELLS, SUBSTEPS_PER_STEP, steps)
    header += CRC.pack(binascii.crc32(header))
    found = os.pread(log, HEADER_BYTES, 0)
    if len(found) < HEADER_BYTES:
        # Killed while the header was written: no step can have been logged.
        if found:
            print("wal_physics: torn header, %d bytes: starting over" % size, file=sys.stderr, flush=True)
            os.ftruncate(log, 0)
        append(log, header)
        sync_directory()
        size = HEADER_BYTES
    elif found != header:
        raise Refused(describe_other(found))

    step, u, v = 0, [0] * CELLS, [0] * CELLS
    trajectory = hashlib.sha256()
    end = HEADER_BYTES
    while end < size:
        body = sound_body(os.pread(log, RECORD_BYTES, end))
        if body is None:
            break
        number, *state = BODY.unpack(body)
        if number != step + 1 or number > steps:
            break
        step, u, v = number, state[:CELLS], state[CELLS:]
        trajectory.update(body)
        end += RECORD_BYTES
    if end < size:
        print(
            "wal_physics: torn tail after step %d: cutting %d bytes at offset %d" % (step, size - end, end),
            file=sys.stderr,
            flush=True,
        )
        os.ftruncate(log, end)
    # A record may be whole and yet only in the page cache; what is built on it must not outlive it.
    os.fsync(log)
    return step, u, v, trajectory


def sound_body(record):
    if len(record) < RECORD_BYTES or LENGTH.unpack_from(record)[0] != BODY.size:
        return None
    body = record[LENGTH.size + CRC.size :]
    return body if framed(body) == record else None


def framed(body):
    length = LENGTH.pack(len(body))
    return length + CRC.pack(binascii.crc32(body, binascii.crc32(length))) + body


def describe_other(found):
    magic, cells, substeps, steps = HEADER.unpack_from(found)
    if magic != MAGIC or CRC.unpack_from(found, HEADER.size)[0] != binascii.crc32(found[: HEADER.size]):
        return "%s has no sound header: it is no log of this program, or damaged; move it away" % LOG
    return "%s was made with steps=%d cells=%d substeps=%d: set WAL_PHYSICS_STEPS=%d, or use another directory" % (
        LOG,
        steps,
        cells,
        substeps,
        steps,
    )


def advance(step, u, v):
    """Moves the string on by one step, in place. Symplectic Euler; the right end is fixed, the left end is driven."""
    for substep in range((step - 1) * SUBSTEPS_PER_STEP, step * SUBSTEPS_PER_STEP):
        u[0] = drive(substep)
        for i in range(1, CELLS - 1):
            bend = u[i - 1] - 2 * u[i] + u[i + 1]
            v[i] += (bend >> COURANT_SHIFT) - (v[i] >> DAMPING_SHIFT)
        for i in range(1, CELLS - 1):
            u[i] += v[i]


def drive(substep):
    """A triangle wave between -1 and 1 in fixed point, zero at the start."""
    quarter = DRIVE_PERIOD_SUBSTEPS // 4
    phase = (substep + quarter) % DRIVE_PERIOD_SUBSTEPS
    rise = phase if phase <= 2 * quarter else DRIVE_PERIOD_SUBSTEPS - phase
    return ((rise - quarter) << SCALE_BITS) // quarter


def energy(u, v):
    """Kinetic plus elastic energy, fixed point, without the common factor one half."""
    kinetic = sum(speed * speed for speed in v)
    elastic = sum((u[i + 1] - u[i]) ** 2 for i in range(CELLS - 1)) >> COURANT_SHIFT
    return (kinetic + elastic) >> SCALE_BITS


def result_text(steps, u, v, trajectory):
    lines = [
        "program=wal_physics",
        "cells=%d" % CELLS,
        "steps=%d" % steps,
        "energy=%d" % energy(u, v),
        "displacements=%s" % " ".join(map(str, u)),
        "velocities=%s" % " ".join(map(str, v)),
        "trajectory_sha256=%s" % trajectory.hexdigest(),
    ]
    return "\n".join(lines) + "\n"


def publish(text):
    """Prints the result and makes result.txt hold it: the old one or the new one, never a part."""
    data = text.encode()
    if read_if_there(RESULT) != data:
        temporary = RESULT + ".tmp"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            append(file, data)
        finally:
            os.close(file)
        os.rename(temporary, RESULT)
        sync_directory()
    print(text, end="", flush=True)


def read_if_there(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def append(file, data):
    """Writes all of data and makes it durable."""
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)


def sync_directory():
    """A new name is durable only when its directory is."""
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def from_environment(name, default, least, most):
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise Refused("%s=%r: must be a whole number from %d to %d" % (name, text, least, most))
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
