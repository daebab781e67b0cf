#!/usr/bin/env python3
"""Damages the write-ahead log of a data directory that nobody has open, by docs/wal-format.md.

damage.py DATA KIND SEED: prints what was done.

KIND `torn`: garbage behind the last frame, such as a write leaves that a power cut ends in its middle.
KIND `corrupt`: something that no crash does to what was acknowledged: a bit of it turns over, a block of it is zeroed, is written
to another place or to another file, a segment is cut, lost or exchanged, the witness is lost."""
import pathlib
import random
import sys

BLOCK = 4096
# Two copies of the header.
FIRST_FRAME = 2 * BLOCK
# The largest frame.
FRAME_BLOCKS_MAX = 256


def end_of(segment):
    """Behind its last block that is not zero."""
    data = segment.read_bytes().rstrip(b"\0")
    return -(-len(data) // BLOCK) * BLOCK


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def torn(segments, chance):
    last = segments[-1]
    at, size = max(end_of(last), FIRST_FRAME), last.stat().st_size
    blocks = chance.randrange(1, min(FRAME_BLOCKS_MAX, max(2, (size - at) // BLOCK)))
    # Of each sector either all of it was written, or nothing.
    garbage = b"".join(chance.choice((bytes(512), chance.randbytes(512))) for _ in range(blocks * 8))
    if at + len(garbage) > size:
        return "nothing: the segment is full"
    overwrite(last, at, garbage)
    return f"{len(garbage)} bytes of garbage at {last.name}:{at}"


def corrupt(segments, chance, directory):
    segment = chance.choice(segments)
    used = end_of(segment)
    block = lambda: chance.randrange(0, used // BLOCK) * BLOCK
    kind = chance.choice(("bit", "zero", "move", "other", "cut", "lost", "exchanged", "witness"))
    if kind == "bit":
        at = chance.randrange(used)
        byte = segment.read_bytes()[at] ^ 1 << chance.randrange(8)
        overwrite(segment, at, bytes([byte]))
        return f"a bit of {segment.name}:{at}"
    if kind == "zero":
        at = block()
        overwrite(segment, at, bytes(BLOCK))
        return f"zeros at {segment.name}:{at}"
    if kind in ("move", "other"):
        source = segment if kind == "move" else chance.choice(segments)
        from_, at = chance.randrange(0, end_of(source) // BLOCK) * BLOCK, block()
        overwrite(segment, at, source.read_bytes()[from_:from_ + BLOCK])
        return f"{source.name}:{from_} written to {segment.name}:{at}"
    if kind == "cut":
        at = block()
        with open(segment, "r+b") as file:
            file.truncate(at)
        return f"{segment.name} cut at {at}"
    if kind == "lost":
        segment.unlink()
        return f"{segment.name} is lost"
    if kind == "exchanged" and len(segments) > 1:
        one, other = chance.sample(segments, 2)
        contents = one.read_bytes(), other.read_bytes()
        one.write_bytes(contents[1])
        other.write_bytes(contents[0])
        return f"{one.name} and {other.name} exchanged"
    (directory / "segments").unlink()
    return "the witness is lost"


def main(data, kind, seed):
    directory, chance = pathlib.Path(data) / "wal", random.Random(int(seed))
    segments = sorted(directory.glob("wal-*.log"))
    print(torn(segments, chance) if kind == "torn" else corrupt(segments, chance, directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
