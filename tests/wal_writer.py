"""Writes ledgers by docs/wal-format.md, sound ones and others, for those who check them. Standard library only."""

import hashlib
import json
import pathlib
import struct

LOG_ID = bytes(range(16))
NO_HASH = bytes(32)
BYTE_TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    BYTE_TABLE.append(byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = BYTE_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def sha(data):
    return hashlib.sha256(data).digest()


def segment_header(number, length, salt, seq, commit, end, before, log=LOG_ID, version=1, block=4096):
    fields = struct.pack("<II16sQQQQQQ32s", version, block, log, number, length, salt, seq, commit, end, before)
    header = b"HBWAL\0\0\1" + fields + b"\xa5" * 3980
    return header + struct.pack("<I", crc32c(header))


def frame(records, salt, at, commit, seq, before, other):
    """The sectors of one commit; `other` replaces what its header tells, or its body."""
    body = other.get("body", b"".join(struct.pack("<I", len(record)) + record for record in records))
    blocks = -(-(128 + len(body)) // 4032)
    rest = struct.pack(
        "<IIIIQQQQQ32s32s",
        other.get("blocks", blocks),
        len(body),
        other.get("count", len(records)),
        0,
        other.get("salt", salt),
        other.get("commit", commit),
        other.get("seq", seq),
        other.get("at", at),
        0,
        other.get("before", before),
        other.get("after", sha(records[-1]) if records else before),
    )
    payload = b"HBF1" + struct.pack("<I", crc32c(rest)) + rest + body
    payload += b"\xa5" * (blocks * 4032 - len(payload))
    sectors = b""
    for index in range(blocks * 8):
        part = payload[index * 504 : index * 504 + 504]
        mark = struct.pack("<I", 1 << 31 | commit & 0x7FFFFFFF)
        place = struct.pack("<QQ", salt, at + index * 512)
        sectors += part + mark + struct.pack("<I", crc32c(place + mark + part))
    return sectors


def witness(*slots, log=LOG_ID):
    blocks = b""
    for last in slots:
        text = b"hackbrain-wal segments\nlog %s\nlast %d\n" % (log.hex().encode(), last)
        blocks += (text + b"crc %08x\n" % crc32c(text)).ljust(4096, b"\n")
    return blocks


class Log:
    """Segments in memory, written one after the other."""

    def __init__(self, length=64 * 1024):
        self.segments, self.seq, self.commit, self.before, self.at, self.salt = [], 1, 1, NO_HASH, 0, 0
        self.open(length)

    def open(self, length=64 * 1024, **other):
        number = len(self.segments) + 1
        fields = {
            "number": number,
            "length": length,
            "salt": 1000 + number,
            "seq": self.seq,
            "commit": self.commit,
            "end": self.at,
            "before": self.before,
            **other,
        }
        header = segment_header(**fields)
        self.segments.append(bytearray(header * 2 + bytes(length - 8192)))
        self.at, self.salt = 8192, fields["salt"]

    def put(self, *records, **other):
        data = frame(records, self.salt, self.at, self.commit, self.seq, self.before, other)
        self.segments[-1][self.at : self.at + len(data)] = data
        self.at, self.commit, self.seq = self.at + len(data), self.commit + 1, self.seq + len(records)
        self.before = sha(records[-1]) if records else self.before

    def save(self, data, slots=True):
        wal = pathlib.Path(data) / "wal"
        wal.mkdir(parents=True, exist_ok=True)
        for old in wal.iterdir():
            old.unlink()
        for number, content in enumerate(self.segments, 1):
            (wal / f"wal-{number:016x}.log").write_bytes(content)
        if slots is True:
            slots = witness(*sorted((len(self.segments), len(self.segments) - 1 or 1), key=lambda last: last % 2))
        if slots:
            (wal / "segments").write_bytes(slots)


class Events:
    """Events whose chain is sound, whatever else they tell."""

    def __init__(self):
        self.seq, self.prev = 0, "0" * 64

    def event(self, state, job=None, attempt=0, detail=None, **other):
        self.seq += 1
        fields = {"seq": self.seq, "prev": self.prev, "time": f"2026-11-26T18:22:17.{self.seq:06}Z"}
        if job:
            fields.update(job_id=job, attempt=attempt)
        fields.update({"state": state, "detail": detail or {}}, **other)
        return self.raw(json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode())

    def raw(self, record):
        self.prev = hashlib.sha256(record).hexdigest()
        return record

    def genesis(self):
        return self.event("GENESIS", detail={"log_id": "0" * 32, "format": 1})

    def received(self, job, state="RECEIVED", attempt=0, **more):
        manifest = {"command": ["true"], "image_hash": "busybox", "job_id": job, **more}
        canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        manifest_hash = hashlib.sha256(canonical.encode()).hexdigest()
        by = {"by": "somebody"} if state == "RETRIGGERED" else {}
        return self.event(
            state, job, attempt, {**by, "manifest": json.loads(canonical), "manifest_hash": manifest_hash}
        )
