#!/usr/bin/env python3
"""Checks what HackBrain Studio keeps, by docs/wal-format.md and docs/evidence.md, with Python's standard library alone.

verify.py DIR [--expect SEQ:HASH]...                 a data directory: the ledger, and every file that it vouches for
verify.py --bundle FILE.tar [--expect SEQ:HASH]...   the bundle of one job, without unpacking it

--expect: event SEQ must be there, with this hash. Exit: 0 no fault, 65 fault or damage, 64 usage, 74 cannot be read.
"""
import argparse, datetime, hashlib, heapq, json, os, re, stat, struct, sys, tarfile, time, types, urllib.parse

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)  # by need(), by unsound JSON
EVENT = re.compile(r'\{"seq":([1-9]\d{0,18}),"prev":"([0-9a-f]{64})","time":"(\d{4}-(?:0[1-9]|1[0-2])-(?:[0-2]\d|3[01])'
                   r'T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z)",(?:"job_id":"([A-Za-z0-9][\w.-]{0,99})","attempt":'
                   r'(0|[1-9]\d{0,8}),)?"state":"([A-Z0-9_]+)","detail":(\{.*\})\}', re.DOTALL | re.ASCII)
DECODER = json.JSONDecoder()
SLOT = re.compile(rb"(hackbrain-wal segments\nlog ([0-9a-f]{32})\nlast (\d{1,15})\n)crc ([0-9a-f]{8})\n*")
# What may follow. D1_STABLE moves nothing; RECOVERY is like RUNNING; RETRIGGERED is like what it goes on from.
AFTER = {"": "RECEIVED", "RECEIVED": "SCHEDULED FAILED CANCELLED", "SCHEDULED": "RUNNING FAILED CANCELLED",
         "RUNNING": "D1_STABLE CRASH STOPPING COMPLETED FAILED", "STOPPING": "D1_STABLE FAILED CANCELLED", "END": "",
         "CRASH": "RECOVERY FAILED CANCELLED", "COMPLETED": "SEALED FAILED CANCELLED", "STOPPED": "RETRIGGERED"}
ENV = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0", "TZ": "UTC"}
LETTERS = {"directory": "d", "symlink": "l", "fifo": "p", "socket": "s", "char_device": "c", "block_device": "b"}
MEANING = {"missing": "it is not there", "changed": "it is not what the ledger vouches for", "extra": "no job knows it",
           "hash": "manifest, image and mounts do not give what SCHEDULED tells, or a parent sealed something else"}
FAULTS, EIGHT = [], list(range(256))  # what one byte does to a CRC-32C; below: two bytes, and two with two behind them
for _ in range(8):
    EIGHT = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in EIGHT]
NEAR = [EIGHT[EIGHT[low] & 255 ^ high] ^ EIGHT[low] >> 8 for high in range(256) for low in range(256)]
FAR = [NEAR[value & 0xFFFF] ^ value >> 16 for value in NEAR]

def crc32c(data):
    crc, near, far = 0xFFFFFFFF, NEAR, FAR
    for word in struct.unpack_from("<%dI" % (len(data) // 4), data):
        crc ^= word
        crc = far[crc & 0xFFFF] ^ near[crc >> 16]
    for byte in data[len(data) & ~3:]:
        crc = EIGHT[crc & 255 ^ byte] ^ crc >> 8
    return crc ^ 0xFFFFFFFF

def need(held, told):
    if not held:
        raise ValueError(told)

def octets(path):  # a path is text in which each byte that is not UTF-8 is a lone surrogate, whatever the locale
    return path.encode("utf-8", "surrogateescape")

def from_json(path):  # %XX is a byte
    return urllib.parse.unquote(path, errors="surrogateescape")

def opened(path):  # the regular file at a path, or None
    try:
        return open(octets(path), "rb") if stat.S_ISREG(os.lstat(octets(path)).st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None

def digest(file):
    sha = hashlib.sha256()
    for piece in iter(lambda: file.read(1 << 20), b""):
        sha.update(piece)
    return file.tell(), sha.hexdigest()

def segment(wal, number, log):  # file; log id, number, length, salt, first seq and commit, predecessor's end and hash
    name = f"wal-{number:016x}.log"
    file = opened(f"{wal}/{name}")
    need(file, f"{name}: the segment is missing")
    sound = {block for block in (file.read(4096), file.read(4096))
             if block[:8] == b"HBWAL\0\0\1" and block[4092:] == struct.pack("<I", crc32c(block[:4092]))}
    need(len(sound) == 1, f"{name}: no sound header, or two different ones")
    header = struct.unpack_from("<II16s6Q32s", sound.pop(), 8)
    need(header[:2] == (1, 4096), f"{name}: not of format version 1")
    need(header[2:4] == (log or header[2], number), f"{name}: the header is of another segment or log")
    return file, *header[2:]

def frame_header(data):  # blocks, size and number of records, salt, commit, seq, offset, hash before and after; or None
    blocks, size, count = struct.unpack_from("<8x3I", data)
    sound = data[:8] == b"HBF1" + struct.pack("<I", crc32c(data[8:128])) and blocks == -(-(128 + size) // 4032)
    return struct.unpack_from("<8x3I4x4Q8x32s32s", data) if sound and size >= 5 * count >= bool(size) else None

def sector_sound(sector, salt, at, mark):
    return sector[508:] == struct.pack("<I", crc32c(struct.pack("<QQI", salt, at, mark) + sector[:504]))

def check_tail(file, name, length, begin, salt, mark):  # what a crash in the one commit due at `begin` can leave
    file.seek(begin)
    for at in range(begin, length, 512):
        sector = file.read(512)
        if sector != bytes(512):
            found, header = int.from_bytes(sector[504:508], "little"), frame_header(sector) if at % 4096 == 0 else None
            need(not header or at == begin or (header[3], header[6]) == (salt, at), f"{name}: {at}: a stray frame")
            sound = found >> 31 and sector_sound(sector, salt, at, found)
            need(not sound or found == mark, f"{name}: {at}: a sound sector of another commit")
            need(sound or found != mark and not sector_sound(sector, salt, at, mark), f"{name}: {at}: a rotten sector")

def frames(file, name, length, until, salt, seq, commit, sha):  # yields (place, event); returns how it must go on
    at = 8192
    while at not in (until, length):
        file.seek(at)
        data, where, mark = file.read(4096), f"{name}: offset {at}: seq {seq}", 1 << 31 | commit & (1 << 31) - 1
        header = frame_header(data)
        need(not header or header[3:8] == (salt, commit, seq, at, sha), f"{where}: a frame that has no place here")
        size = header[0] * 4096 if header and header[0] * 4096 <= length - at else 0
        data += file.read(max(size - 4096, 0))
        sectors = [data[cut:cut + 512] for cut in range(0, size, 512)]
        if not sectors or not all(sector[504:508] == struct.pack("<I", mark) and
                                  sector_sound(sector, salt, at + 512 * i, mark) for i, sector in enumerate(sectors)):
            need(until is None, f"{where}: a frame is damaged")
            check_tail(file, name, length, at, salt, mark)
            break
        body, cut = b"".join(sector[:504] for sector in sectors)[:128 + header[1]], 128
        for _ in range(header[2]):
            begin, cut = cut + 4, cut + 4 + int.from_bytes(body[cut:cut + 4], "little")
            need(begin < cut <= len(body), f"{where}: the lengths of its records do not add up")
            sha = hashlib.sha256(body[begin:cut]).digest()
            yield where, body[begin:cut]
        need(cut == len(body) and sha == header[8], f"{where}: its records are not those of its header")
        at, commit, seq = at + size, commit + 1, seq + header[2]
    return [seq, commit, at, sha]

def records(wal):  # each event of the ledger with its place; raises where the ledger cannot be trusted
    witness, due = opened(f"{wal}/segments"), [1, 1, 0, bytes(32)]
    blocks = witness.read(8193) if witness else b""
    slots = [slot for slot in map(SLOT.fullmatch, (blocks[:4096], blocks[4096:])) if slot]
    sound = [(int(slot[3]), bytes.fromhex(slot[2].decode())) for slot in slots if crc32c(slot[1]) == int(slot[4], 16)]
    need(not witness or sound and len(blocks) == 8192, "segments: not two blocks, or neither is sound")
    known, log = max(sound, default=(0, None))
    found = [int(name[4:20], 16) for name in os.listdir(wal) if re.fullmatch(r"wal-[0-9a-f]{16}\.log", name)]
    last = max(known, *found, 0)
    for number in range(1, last + 1):
        file, log, _, length, salt, *begin = segment(wal, number, log)
        name, until = f"wal-{number:016x}.log", segment(wal, number + 1, log)[-2] if number < last else None
        need(length == file.seek(0, 2) and length % 4096 == 0, f"{name}: it has not the length that its header tells")
        need(begin == due, f"{name}: it does not continue the segment before it")
        due = yield from frames(file, name, length, until, salt, *begin[:2], begin[3])
    need(known + 1 >= last and (known or due[1] == 1), "segments: it is missing, or knows too few")

def take(ledger, part, line):  # checks and adds the next event, of the ledger or of a part of the bundle of ledger.only
    form = EVENT.fullmatch(line.decode())
    need(form, "not a well-formed event")
    seq, prev, moment, name, attempt, state, detail = int(form[1]), *form.groups()[1:]
    need(seq == ledger.seq + 1 or ledger.only and seq > ledger.seq, f"seq {seq} comes after {ledger.seq}")
    need(prev == ledger.hash or seq != ledger.seq + 1, f"prev is not the hash of event {ledger.seq}")
    need(datetime.date.fromisoformat(moment[:10]) and moment >= ledger.time, "time goes back")
    need((seq == 1) == (state == "GENESIS") and (not name) == (state in ("GENESIS", "NODE_UP", "NODE_DOWN")),
         f"{state} with this seq, or with job_id {name}")
    own = name == ledger.only if part == "events.jsonl" else state in ("GENESIS", "NODE_UP")
    need(own or not ledger.only, f"{state} of {name or 'no job'} has no place here")
    detail = json.loads(detail, parse_constant=int)  # int refuses NaN
    if name:
        step(ledger, seq, name, int(attempt), state, detail, form[0])
    ledger.seq, ledger.hash, ledger.time = seq, hashlib.sha256(line).hexdigest(), moment
    ledger.head = f"{seq} {ledger.hash}" if name or not ledger.only else ledger.head
    ledger.expected.discard(f"{seq}:{ledger.hash}")

def step(ledger, seq, name, attempt, state, detail, line):
    job = ledger.jobs.get(name) or types.SimpleNamespace(id=name, at="", attempt=0, hash=None, told=None, seal=None,
                                                         sealed=0, blame=None, logs={})
    need(state in AFTER[job.at].split(), f"{state} of {name} does not follow {job.at or 'nothing'}")
    need(attempt == job.attempt + (state in ("RUNNING", "RECOVERY")), f"{state} of {name} is of attempt {attempt}")
    if state in ("RECEIVED", "RETRIGGERED"):
        begin = re.search(r'[{,]"manifest":', line).end()  # inside a string of JSON, its quotes would be escaped
        manifest, end = DECODER.raw_decode(line, begin)
        found = hashlib.sha256(line[begin:end].encode()).hexdigest()
        need(manifest == detail["manifest"] and manifest["job_id"] == name and found == detail["manifest_hash"] and
             found == (job.hash or found), f"the manifest of {name} has another hash or job_id, or is not RECEIVED's")
        job.hash, job.ask, job.mounts = found, manifest, asked_mounts(manifest)
        job.parents = {*manifest.get("depends_on", ()), *(parent for *_, parent in job.mounts if parent)}
        need(ledger.only or job.parents <= ledger.jobs.keys(), f"{name} needs a job that was not received")
    if state == "SCHEDULED":
        need(ledger.only or all(ledger.jobs[parent].seal for parent in job.parents), f"{name} needs a job not sealed")
        job.told = {key: detail[key] for key in ("image_id", "input_hash", "execution_hash", "mounts")}
    if state == "SEALED":
        job.sealed, job.seal = seq, (detail["seal_hash"], detail["artifacts_root"])
        job.whole = {"format": 1, "job_id": name, "attempt": attempt, "execution_hash": job.told["execution_hash"],
                     "image_id": job.told["image_id"],
                     **{key: detail[key] for key in ("artifacts_root", "files", "bytes")}}
    for stream in ("stdout", "stderr") if state in ("CRASH", "COMPLETED", "FAILED", "CANCELLED") else ():
        if "sha256" in (detail.get(stream) or ()):
            job.logs[attempt, stream, detail[stream]["bytes"], detail[stream]["sha256"]] = True
    if state in ("FAILED", "CANCELLED"):  # `blame` is what those name that fail because of it
        blamed = {ledger.jobs[parent].blame for parent in job.parents if parent in ledger.jobs}
        by_parent = state == "FAILED" and detail["reason"] == "dependency"
        need((detail.get("ancestor") is not None) == by_parent, f"{state} of {name} must name an ancestor, or must not")
        need(not by_parent or not job.told and (ledger.only or detail["ancestor"] in blamed), f"{name} blames another")
        job.blame = detail["ancestor"] if by_parent else name
    elif state == "RETRIGGERED":
        job.blame = None
    again = state == "FAILED" and detail["reason"] in ("attempt_limit", "oom", "dependency")
    goes_on = "RECEIVED" if not job.told else "CRASH" if attempt else "SCHEDULED"
    job.at = {"D1_STABLE": job.at, "RECOVERY": "RUNNING", "RETRIGGERED": goes_on, "CANCELLED": "STOPPED",
              "FAILED": "STOPPED" if again else "END", "SEALED": "END"}.get(state, state)
    job.attempt, ledger.jobs[name] = attempt, job

def asked_mounts(manifest):  # (host, container path, mode, parent), of which host or parent is None; "" for scratch
    asked = manifest.get("mount_spec", [])
    parts = [spec.split(":") for spec in ([asked] if isinstance(asked, str) else asked)]
    found = [(None, part[2], "ro", part[1]) if part[0] == "job" else (*part[:2], (*part[2:], "rw")[0], None)
             for part in parts]
    return found if any(host for host, *_ in found) else [("", "/job/workdir", "rw", None), *found]

def canonical_hash(value):  # of its RFC 8785 form: manifests hold nothing that Python writes in another way
    form = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(form.encode()).hexdigest()

def check_hashes(job, jobs):
    told, ask = job.told["mounts"], job.ask
    given = [{"container": mount["container"], "mode": mount["mode"],
              "artifacts" if "artifacts_of" in mount else "tree": mount["tree"]} for mount in told]
    whole = {"command": ask["command"], "env": {**ENV, **ask.get("env", {})}, "image_id": job.told["image_id"],
             "mounts": given, "network": ask.get("network", "none"), "resources": ask.get("resources", {})}
    need(canonical_hash(given) == job.told["input_hash"], "input_hash")
    need(canonical_hash(whole) == job.told["execution_hash"], "execution_hash")
    shape = [(mount["container"], mount["mode"], mount.get("artifacts_of")) for mount in told]
    need(sorted(shape, key=str) == sorted((mount[1:] for mount in job.mounts), key=str), "other mounts")
    need(all(jobs[of].seal[1] == mount["tree"] for mount, (_, _, of) in zip(told, shape) if of in jobs), "artifacts")

def tree(entries):  # a directory's hash, by the entries of an inputs file
    below = {"": [], **{from_json(entry["path"]): [] for entry in entries if entry["kind"] == "directory"}}
    for entry in sorted(entries, key=lambda entry: octets(from_json(entry["path"])), reverse=True):
        path, kind, sha = from_json(entry["path"]), entry["kind"], entry["sha256"]
        if kind != "file":  # what lies in a directory came before it
            content = below[path][::-1] if kind == "directory" else [octets(from_json(entry.get("target", "")))]
            need(sha == hashlib.sha256(b"".join(content)).hexdigest(), f"{path} has another hash")
        letter = LETTERS[kind] if kind != "file" else "x" if int(entry["mode"], 8) & 0o111 else "f"
        below[path.rpartition("/")[0]].append(octets(f"{letter} {sha} {path.rpartition('/')[2]}\0"))
    return hashlib.sha256(b"".join(reversed(below[""]))).hexdigest()

def input_files(job, listed):  # the paths in the container; raises where the inputs file is not what SCHEDULED tells
    need(listed["format"] == 1 and listed["job_id"] == job.id, "of another job")
    need(len(listed["mounts"]) == len(job.told["mounts"]), "other mounts")
    for mount, told in zip(listed["mounts"], job.told["mounts"]):
        root, of = tree(mount["tree"]["entries"]), mount.get("artifacts_of", {})
        need((mount["container"], mount["read_only"]) == (told["container"], told["mode"] == "ro"), "another mount")
        sizes = [entry["size"] for entry in mount["tree"]["entries"] if entry["kind"] == "file"]
        need((mount["tree"]["files"], mount["tree"]["bytes"]) == (len(sizes), sum(sizes)), "other totals")
        shown = of.get("job_id"), of.get("artifacts_root", root), mount["tree"]["root"]
        need(shown == (told.get("artifacts_of"), told["tree"], root), "another tree, or artifacts of another job")
    return {f"{mount['container']}/{from_json(entry['path'])}" for mount in listed["mounts"]
            for entry in mount["tree"]["entries"] if entry["kind"] == "file"}

def fault(job, kind, path, excuse=None):
    shown = octets(path).replace(b"%", b"%25").decode("utf-8", "surrogateescape")
    coded = lambda odd: "".join("%%%02X" % byte for byte in octets(odd[0]))
    shown = re.sub("[\0-\x1f\x7f-\x9f\udc80-\udcff]", coded, shown)
    FAULTS.extend([] if excuse else [kind])
    print(f"note {excuse} {job.id} {shown}: another job was or is there" if excuse else
          f"fault {kind} {job.id} {shown}: {MEANING[kind.split('_')[1]]}")

def vouched(reader, job, kind, name, sha, size=None):
    file = reader.open(name)
    found = digest(file) if file else (None, None)
    if found[1] != sha or size not in (None, found[0]):
        fault(job, kind + ("_changed" if file else "_missing"), name)
    return found[1] == sha

def list_hash(artifacts):  # of the list for sha256sum
    sha = hashlib.sha256()
    for entry in artifacts:
        path = octets(from_json(entry["path"])).removeprefix(b"/")
        odd = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        sha.update((b"\\" if odd != path else b"") + entry["sha256"].encode() + b"  " + odd + b"\n")
    return sha.hexdigest()

def check_files(reader, job, jobs):  # all but the artifacts; gives the job what its seal and its inputs file tell
    logs, seal, listing, inputs = (name.format(job.id) for name in reader.names)
    job.artifacts, job.removed, job.inputs = None, [], None
    try:
        if job.told:
            check_hashes(job, jobs)
    except MALFORMED:
        fault(job, "execution_hash", "-")
    for attempt, stream, size, sha in job.logs if job.at in ("STOPPED", "END") else ():
        vouched(reader, job, "log", f"{logs}/{attempt}.{stream}", sha, size)
    if not job.seal:
        return
    vouched(reader, job, "list", listing, job.seal[1])
    try:
        if vouched(reader, job, "seal", seal, job.seal[0]):
            told = json.loads(reader.open(seal).read())
            sealed = told["artifacts"]
            need(job.whole == {key: told[key] for key in job.whole} and told["files"] == len(sealed) and
                 told["bytes"] == sum(entry["size"] for entry in sealed) and job.seal[1] == list_hash(sealed), "events")
            job.removed = [from_json(path) for path in told["removed"]]
            job.artifacts = {from_json(entry["path"]): (int(entry["mode"], 8), entry["size"], entry["sha256"])
                             for entry in told["artifacts"]}
    except MALFORMED:
        fault(job, "seal_changed", seal)
    try:
        file = reader.open(inputs)
        job.inputs = input_files(job, json.loads(file.read())) if file else fault(job, "inputs_missing", inputs)
    except MALFORMED:
        fault(job, "inputs_changed", inputs)

def check_artifacts(reader, job, written, known, used):
    def excuse(seen, path):  # why a difference is no fault
        place = reader.place(job, path)
        in_use = any(place.startswith(top + "/") for top in used)
        return "superseded" if seen.get(place, 0) > job.sealed else "in_use" if in_use else None

    files = reader.files(job)
    if reader.bundle and job.artifacts and not files:
        print(f"note absent {job.id} artifacts: the bundle was made without them")
        return
    bits = (lambda mode: mode & 0o111 != 0) if reader.bundle else (lambda mode: mode)  # a bundle has 0644 and 0755
    for path, (mode, *sealed) in job.artifacts.items():
        if path not in files or [bits(files[path][0]), *digest(reader.open(files[path][1]))] != [bits(mode), *sealed]:
            kind = "artifact_changed" if path in files else "artifact_missing"
            fault(job, kind, reader.prefix + path, excuse(written, path))
    inputs = set() if reader.bundle else job.inputs
    for path in sorted(files.keys() - job.artifacts.keys() - inputs) if inputs is not None else ():
        fault(job, "artifact_extra", reader.prefix + path, excuse(known, path))

def check_jobs(reader, jobs):
    written, known = {}, {}  # place on the host -> when the last job was sealed that wrote or removed it; that knew it
    for job in jobs.values():
        check_files(reader, job, jobs)
        for seen, paths in (written, job.removed), (known, job.inputs or ()):
            for place in (reader.place(job, path) for path in (*paths, *(job.artifacts or ()))):
                seen[place] = max(job.sealed, seen.get(place, 0))
    used = {top for job in jobs.values() if job.told and job.at not in ("STOPPED", "END") for top in reader.used(job)}
    for job in jobs.values():
        if job.artifacts is not None:
            check_artifacts(reader, job, written, known, used)

def unreadable(error):
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error

class Directory:
    bundle, prefix, names = None, "", ("logs/{}", "seals/{}.json", "seals/{}.sha256", "inputs/{}.json")

    def __init__(self, data):
        self.data = os.fsencode(os.path.abspath(data)).decode("utf-8", "surrogateescape")
        self.events = records(self.data + "/wal")

    def open(self, name):
        return opened(os.path.join(self.data, name))

    def used(self, job):  # directories of the host that it may write
        return [top for _, top in self.tops(job) if not top.startswith(f"{self.data}/scratch/")]

    def tops(self, job, modes=("rw",)):  # where its mounts lie: path in the container, directory on the host
        for number, (host, container, mode, of) in enumerate(job.mounts):
            copy = f"{self.data}/scratch/{job.id}" + (f"/{number}" if host else "")
            if mode in modes and not of:
                yield container, copy if mode == "rw" and "reproduces" in job.ask or not host else host

    def place(self, job, path):
        tops = self.tops(job, ("rw", "ro"))
        return next((top + path[len(to):] for to, top in tops if path.startswith(to + "/")), f"{job.id}:{path}")

    def files(self, job):  # the regular files: path in the container -> mode, path on the host; follows no symlink
        found = {}
        for container, top in self.tops(job):
            for folder, _, names in os.walk(octets(top), onerror=unreadable):
                for path in (os.path.join(folder, name) for name in names):
                    status, host = os.lstat(path), path.decode("utf-8", "surrogateescape")
                    if stat.S_ISREG(status.st_mode):
                        found[container + host[len(top):]] = stat.S_IMODE(status.st_mode), host
        return found

    def check(self, jobs):
        check_jobs(self, jobs)

class Bundle:
    bundle, prefix, names = None, "artifacts", ("logs", "seal.json", "seal.sha256", "inputs.json")

    def __init__(self, path):
        self.tar = tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape")
        self.members, self.asked = {}, {"README.txt", "SHA256SUMS", "verify.py"}
        for member in self.tar:
            job, *parts = member.name.split("/")
            self.bundle, name = self.bundle or job, "/".join(parts)
            need(job == self.bundle and not {"", ".", ".."} & set(parts) and name not in self.members and
                 (member.isdir() or parts and member.isfile()), f"{member.name!r}: a member with an odd name or type")
            if member.isfile():
                self.members[name] = member
        for name in ("events.jsonl", "node.jsonl", "manifest.json"):
            need(name in self.members, f"{name}: it is missing")
        self.events = heapq.merge(self.lines("events.jsonl"), self.lines("node.jsonl"), key=lambda event: event[2])

    def lines(self, name):  # with its seq, for the order; whether it is one is checked later
        *lines, rest = self.open(name).read().split(b"\n")
        need(lines and not rest, f"{name}: it does not end with a whole line")
        return [(name, line, int(re.match(rb'(?:\{"seq":)?(\d{0,19})', line)[1] or 0)) for line in lines]

    def open(self, name):
        self.asked.add(name)
        return self.tar.extractfile(self.members[name]) if name in self.members else None

    def used(self, _):
        return []

    def place(self, _, path):
        return path

    def files(self, _):
        names = {name for name in self.members if name.startswith("artifacts/")}
        self.asked |= names
        return {name[9:]: (self.members[name].mode, name) for name in names}

    def check(self, jobs):
        job = jobs.get(self.bundle)
        need(job and job.at in ("STOPPED", "END"), "events.jsonl: the job has not ended")
        need(digest(self.open("manifest.json"))[1] == job.hash, "manifest.json: it is not the manifest of RECEIVED")
        self.asked |= {"inputs.json"} if job.told else set()
        check_jobs(self, jobs)
        odd = self.members.keys() - self.asked if not FAULTS else ()
        need(not odd, f"{min(odd, default='')}: no event vouches for it")

def run(make, path, expected):
    for wait_s in (0.05, 0.05, 0):  # an agent may be writing: what looks damaged is looked at again
        ledger, damage = types.SimpleNamespace(seq=0, hash="0" * 64, time="", jobs={}, head="0 " + "0" * 64), None
        ledger.expected = set(expected)
        try:
            reader = make(path)
            ledger.only = reader.bundle
            for where, line, *_ in reader.events:
                try:
                    take(ledger, where, line)
                except MALFORMED as error:
                    raise ValueError(f"{where}: {error}") from None
            break
        except (*MALFORMED, tarfile.TarError) as error:
            damage = error
            time.sleep(wait_s)
    try:
        if not damage:
            reader.check(ledger.jobs)
    except MALFORMED as error:
        damage = error
    for event in sorted(ledger.expected):
        print(f"expected event {event} is not there")
    if damage:
        print(f"damaged: {damage}")
    print("head", ledger.head)
    return 65 if damage or FAULTS or ledger.expected else 0

def main():
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.setrecursionlimit(6000)  # os.walk calls itself for each level; a path has 2048 of them at most
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("dir", metavar="DIR", nargs="?")
    what.add_argument("--bundle", metavar="FILE.tar")
    parser.add_argument("--expect", metavar="SEQ:HASH", action="append", default=[])
    try:
        given = parser.parse_args()
        if not all(re.fullmatch("[1-9][0-9]*:[0-9a-f]{64}", event) for event in given.expect):
            parser.error("--expect takes SEQ:HASH, as a line `head SEQ HASH` has them")
        if not given.bundle and not os.path.isdir(os.path.join(given.dir, "wal")):
            parser.error(f"{given.dir} is not a data directory: it has no wal/ below it")
    except SystemExit as end:
        sys.exit(64 if end.code else 0)
    try:
        sys.exit(run(Bundle if given.bundle else Directory, given.bundle or given.dir, given.expect))
    except OSError as error:
        print(f"cannot be read: {error}", file=sys.stderr)
        sys.exit(74)

if __name__ == "__main__":
    main()
