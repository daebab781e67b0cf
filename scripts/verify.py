#!/usr/bin/env python3
"""Checks what HackBrain Studio keeps, by docs/wal-format.md and docs/evidence.md, with Python's standard library alone.

verify.py DIR [--expect SEQ:HASH]...                 a data directory: the ledger, and every file that it vouches for
verify.py --bundle FILE.tar [--expect SEQ:HASH]...   the bundle of one job, without unpacking it

--expect: event SEQ must be there, with this hash. Exit: 0 no fault, 65 fault or damage, 64 usage, 74 cannot be read.
"""
import datetime, getopt, hashlib, heapq, json, os, re, stat, struct, sys, tarfile, time, types, urllib.parse

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)  # by need(), by unsound JSON
EVENT = re.compile(r'\{"seq":([1-9]\d{0,18}),"prev":"([0-9a-f]{64})","time":"(\d{4}-(?:0[1-9]|1[0-2])-(?:[0-2]\d|3[01])'
                   r'T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z)",(?:"job_id":"([A-Za-z0-9][\w.-]{0,99})","attempt":'
                   r'(0|[1-9]\d{0,8}),)?"state":"([A-Z0-9_]+)","detail":(\{.*\})\}', re.DOTALL | re.ASCII)
SLOT = re.compile(rb"(hackbrain-wal segments\nlog ([0-9a-f]{32})\nlast (\d{1,15})\n)crc ([0-9a-f]{8})\n*")
# What may follow. D1_STABLE moves nothing; RECOVERY is like RUNNING; RETRIGGERED is like what it goes on from.
AFTER = {"": "RECEIVED", "RECEIVED": "SCHEDULED FAILED CANCELLED", "SCHEDULED": "RUNNING FAILED CANCELLED",
         "RUNNING": "D1_STABLE CRASH STOPPING COMPLETED FAILED", "STOPPING": "D1_STABLE FAILED CANCELLED", "END": "",
         "CRASH": "RECOVERY FAILED CANCELLED", "COMPLETED": "SEALED FAILED CANCELLED", "STOPPED": "RETRIGGERED"}
ENV = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0", "TZ": "UTC"}
LETTERS = {"directory": "d", "symlink": "l", "fifo": "p", "socket": "s", "char_device": "c", "block_device": "b"}
WHOLE = "format", "job_id", "attempt", "execution_hash", "image_id", "artifacts_root", "files", "bytes"
MEANING = {"missing": "it is not there", "changed": "it is not what the ledger vouches for", "extra": "no job knows it",
           "hash": "manifest, image and mounts do not give what SCHEDULED tells, or a parent sealed something else"}
FAULTS, GONE, TABLE = [], {}, list(range(256))
for _ in range(8):
    TABLE = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in TABLE]
PLANES = [bytes(value >> shift & 255 for value in TABLE) for shift in (0, 8, 16, 24)]

def crc32c(rows):  # of each row, all of one length: a step takes one byte of every row
    ones = (1 << 8 * len(rows)) - 1
    crcs = [ones] * 4  # the lowest byte of every row's CRC, the next ones
    for column in zip(*rows):
        index = (crcs[0] ^ int.from_bytes(column, "little")).to_bytes(len(rows), "little")
        crcs = [high ^ int.from_bytes(index.translate(plane), "little") for high, plane in zip(crcs[1:] + [0], PLANES)]
    return [bytes(crc) for crc in zip(*((ones ^ crc).to_bytes(len(rows), "little") for crc in crcs))]

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
    blocks = file.read(4096), file.read(4096)
    sound = {block for block, crc in zip(blocks, crc32c([block[:4092] for block in blocks]))
             if block[:8] == b"HBWAL\0\0\1" and block[4092:] == crc}
    need(len(sound) == 1, f"{name}: no sound header, or two different ones")
    header = struct.unpack_from("<II16s6Q32s", sound.pop(), 8)
    need(header[:2] == (1, 4096), f"{name}: not of format version 1")
    need(header[2:4] == (log or header[2], number), f"{name}: the header is of another segment or log")
    return file, *header[2:]

def frame_header(data):  # blocks, size and number of records, salt, commit, seq, offset, hash before and after; or None
    if data[:4] == b"HBF1" and [data[4:8]] == crc32c([data[8:128]]):
        blocks, size, count = struct.unpack_from("<8x3I", data)
        if blocks == -(-(128 + size) // 4032) and size >= 5 * count >= bool(size):
            return struct.unpack_from("<8x3I4x4Q8x32s32s", data)

def sector_marks(data, salt, begin, mark=None):  # of each sector, or None; as if it had this one
    marks = []
    for piece in range(begin, len(data), 1 << 20):
        places = range(piece, min(piece + (1 << 20), len(data)), 512)
        rows = [struct.pack("<QQ", salt, at) + (mark or data[at + 504:at + 508]) + data[at:at + 504] for at in places]
        marks += [row[16:20] if row[19] >> 7 and data[at + 508:at + 512] == crc else None
                  for at, row, crc in zip(places, rows, crc32c(rows))]
    return marks

def frames(file, name, length, until, salt, seq, commit, sha):  # yields (place, event); returns how it must go on
    file.seek(0)
    data, at = file.read(length).rstrip(b"\0"), 8192
    data += bytes(-len(data) % 4096)
    marks = [None] * 16 + sector_marks(data, salt, at)
    while at not in (until, length):
        where, mark = f"{name}: offset {at}: seq {seq}", struct.pack("<I", 1 << 31 | commit & (1 << 31) - 1)
        header = frame_header(data[at:at + 512])
        need(not header or header[3:8] == (salt, commit, seq, at, sha), f"{where}: a frame that has no place here")
        end = at + header[0] * 4096 if header else at
        if not header or marks[at // 512:end // 512] != [mark] * (header[0] * 8):
            need(until is None, f"{where}: a frame is damaged")
            as_due = sector_marks(data, salt, at, mark)  # what a crash in the one commit due at `at` can leave
            for spot, own, due in zip(range(at, len(data), 512), marks[at // 512:], as_due):
                header = frame_header(data[spot:spot + 512]) if spot % 4096 == 0 and spot != at else None
                need(not header or (header[3], header[6]) == (salt, spot), f"{name}: {spot}: a stray frame")
                need(own in (None, mark), f"{name}: {spot}: a sound sector of another commit")
                need(own or not due and data[spot + 504:spot + 508] != mark, f"{name}: {spot}: a rotten sector")
            break
        body, cut = b"".join(data[spot:spot + 504] for spot in range(at, end, 512))[:128 + header[1]], 128
        for _ in range(header[2]):
            begin, cut = cut + 4, cut + 4 + int.from_bytes(body[cut:cut + 4], "little")
            need(begin < cut <= len(body), f"{where}: the lengths of its records do not add up")
            sha = hashlib.sha256(body[begin:cut]).digest()
            yield where, body[begin:cut]
        need(cut == len(body) and sha == header[8], f"{where}: its records are not those of its header")
        at, commit, seq = end, commit + 1, seq + header[2]
    return [seq, commit, at, sha]

def read_directory(ledger, path):  # yields each event with its place; raises where the ledger cannot be trusted
    ledger.data = os.fsencode(os.path.abspath(path)).decode("utf-8", "surrogateescape")
    ledger.names = "logs/{}", "seals/{}.json", "seals/{}.sha256", "inputs/{}.json"
    ledger.open, ledger.files = lambda name: opened(os.path.join(ledger.data, name)), mounted_files
    wal, due = f"{ledger.data}/wal", [1, 1, 0, bytes(32)]
    witness = opened(f"{wal}/segments")
    blocks = witness.read(8193) if witness else b""
    slots = [slot for slot in map(SLOT.fullmatch, (blocks[:4096], blocks[4096:])) if slot]
    sound = [(int(slot[3]), bytes.fromhex(slot[2].decode())) for slot in slots
             if crc32c([slot[1]])[0][::-1].hex().encode() == slot[4]]
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

def read_bundle(ledger, path):  # the same of a bundle
    tar, members = tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape"), {}
    ledger.names = "logs", "seal.json", "seal.sha256", "inputs.json"
    ledger.asked = {"README.txt", "SHA256SUMS", "verify.py"}
    for member in tar:
        job, *parts = member.name.split("/")
        ledger.only, name = ledger.only or job, "/".join(parts)
        need(job == ledger.only and not {"", ".", ".."} & set(parts) and name not in members and
             (member.isdir() or parts and member.isfile()), f"{member.name!r}: a member with an odd name or type")
        if member.isfile():
            members[name] = member
    def open_member(name):
        ledger.asked.add(name)
        return tar.extractfile(members[name]) if name in members else None
    ledger.members, ledger.open = members, open_member
    ledger.files = lambda _: {name[9:]: (members[name].mode, name) for name in members if name.startswith("artifacts/")}
    for name in ("events.jsonl", "node.jsonl", "manifest.json"):
        need(name in members, f"{name}: it is missing")
    texts = {name: open_member(name).read().split(b"\n") for name in ("events.jsonl", "node.jsonl")}
    for name, lines in texts.items():
        need(len(lines) > 1 and not lines.pop(), f"{name}: it does not end with a whole line")
    yield from heapq.merge(*([(name, line) for line in lines] for name, lines in texts.items()),
                           key=lambda event: int(re.match(rb'(?:\{"seq":)?(\d{0,19})', event[1])[1] or 0))

def take(ledger, line):  # checks and adds the next event, of the ledger or of a part of the bundle of ledger.only
    form = EVENT.fullmatch(line.decode())
    need(form, "not a well-formed event")
    seq, prev, moment, name, attempt, state, detail = int(form[1]), *form.groups()[1:]
    need(seq == ledger.seq + 1 or ledger.only and seq > ledger.seq, f"seq {seq} comes after {ledger.seq}")
    need(prev == ledger.hash or seq != ledger.seq + 1, f"prev is not the hash of event {ledger.seq}")
    need(datetime.date.fromisoformat(moment[:10]) and moment >= ledger.time, "time goes back")
    need((seq == 1) == (state == "GENESIS") and (not name) == (state in ("GENESIS", "NODE_UP", "NODE_DOWN", "PRUNED")),
         f"{state} with this seq, or with job_id {name}")
    own = name == ledger.only if ledger.where == "events.jsonl" else state in ("GENESIS", "NODE_UP")
    need(own or not ledger.only, f"{state} of {name or 'no job'} has no place here")
    detail = json.loads(detail, parse_constant=int)  # int refuses NaN
    if name:
        step(ledger, seq, name, int(attempt), state, detail, form[0])
    elif state == "PRUNED":
        prune(ledger, seq, detail["jobs"])
    ledger.seq, ledger.hash, ledger.time = seq, hashlib.sha256(line).hexdigest(), moment
    ledger.head = f"{seq} {ledger.hash}" if name or not ledger.only else ledger.head
    ledger.expected.discard(f"{seq}:{ledger.hash}")

def prune(ledger, seq, names):
    used = {name for job in ledger.jobs.values() if job.at not in ("STOPPED", "END")
            for name in (*job.parents, job.ask.get("reproduces"))}
    for name in names:
        job = ledger.jobs.get(name)
        need(job and job.seal and not job.pruned and name not in used, f"PRUNED of {name} has no place here")
        job.pruned = seq

def step(ledger, seq, name, attempt, state, detail, line):
    job = ledger.jobs.get(name) or types.SimpleNamespace(
        id=name, at="", attempt=0, sealed=0, pruned=0, logs={}, removed=(),
        **dict.fromkeys(("hash", "told", "seal", "whole", "blame", "artifacts", "inputs")))
    need(state in AFTER[job.at].split(), f"{state} of {name} does not follow {job.at or 'nothing'}")
    need(attempt == job.attempt + (state in ("RUNNING", "RECOVERY")), f"{state} of {name} is of attempt {attempt}")
    if state in ("RECEIVED", "RETRIGGERED"):
        begin = re.search(r'[{,]"manifest":', line).end()  # inside a string of JSON, its quotes would be escaped
        manifest, end = json.JSONDecoder().raw_decode(line, begin)
        found = hashlib.sha256(line[begin:end].encode()).hexdigest()
        need(manifest == detail["manifest"] and manifest["job_id"] == name and found == detail["manifest_hash"] and
             found == (job.hash or found), f"the manifest of {name} has another hash or job_id, or is not RECEIVED's")
        job.hash, job.ask, job.blame = found, manifest, None
        job.mounts = asked_mounts(manifest, f"{ledger.data}/scratch/{name}")
        job.parents = {*manifest.get("depends_on", ()), *(of for _, _, of, _ in job.mounts if of)}
        need(ledger.only or job.parents <= ledger.jobs.keys(), f"{name} needs a job that was not received")
    if state == "SCHEDULED":
        need(ledger.only or all(ledger.jobs[parent].seal for parent in job.parents), f"{name} needs a job not sealed")
        job.told = {key: detail[key] for key in ("image_id", "input_hash", "execution_hash", "mounts")}
    if state == "SEALED":
        facts = {**detail, **job.told, "format": 1, "job_id": name, "attempt": attempt}
        job.sealed, job.seal, job.whole = seq, detail["seal_hash"], {key: facts[key] for key in WHOLE}
    for stream in ("stdout", "stderr") if state in ("CRASH", "COMPLETED", "FAILED", "CANCELLED") else ():
        if "sha256" in (detail.get(stream) or ()):
            job.logs[f"{attempt}.{stream}", detail[stream]["sha256"], detail[stream]["bytes"]] = True
    if state in ("FAILED", "CANCELLED"):  # `blame` is what those name that fail because of it
        blamed = {ledger.jobs[parent].blame for parent in job.parents if parent in ledger.jobs}
        by_parent = state == "FAILED" and detail["reason"] == "dependency"
        need((detail.get("ancestor") is not None) == by_parent, f"{state} of {name} must name an ancestor, or must not")
        need(not by_parent or not job.told and (ledger.only or detail["ancestor"] in blamed), f"{name} blames another")
        job.blame = detail["ancestor"] if by_parent else name
    again = state == "FAILED" and detail["reason"] in ("attempt_limit", "oom", "dependency")
    goes_on = "RECEIVED" if not job.told else "CRASH" if attempt else "SCHEDULED"
    job.at = {"D1_STABLE": job.at, "RECOVERY": "RUNNING", "RETRIGGERED": goes_on, "CANCELLED": "STOPPED",
              "FAILED": "STOPPED" if again else "END", "SEALED": "END"}.get(state, state)
    job.attempt, ledger.jobs[name] = attempt, job

def asked_mounts(manifest, scratch):  # (container path, mode, parent, place on the host), one of them None
    asked, copied = manifest.get("mount_spec", []), "reproduces" in manifest
    parts = [spec.split(":") for spec in ([asked] if isinstance(asked, str) else asked)]
    found = [(part[2], "ro", part[1], None) if part[0] == "job" else (part[1], (*part[2:], "rw")[0], None,
             f"{scratch}/{number}" if copied and part[2:3] != ["ro"] else part[0]) for number, part in enumerate(parts)]
    return found if any(host for *_, host in found) else [("/job/workdir", "rw", None, scratch), *found]

def check_hashes(ledger, job):
    told, ask = job.told["mounts"], job.ask
    given = [{"container": mount["container"], "mode": mount["mode"],
              "artifacts" if "artifacts_of" in mount else "tree": mount["tree"]} for mount in told]
    whole = {"command": ask["command"], "env": {**ENV, **ask.get("env", {})}, "image_id": job.told["image_id"],
             "mounts": given, "network": ask.get("network", "none"), "resources": ask.get("resources", {})}
    for value, sha in (given, job.told["input_hash"]), (whole, job.told["execution_hash"]):
        form = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)  # RFC 8785, of such values
        need(hashlib.sha256(form.encode()).hexdigest() == sha, "another hash")
    shape = [(mount["container"], mount["mode"], mount.get("artifacts_of")) for mount in told]
    need(shape == [mount[:3] for mount in job.mounts], "other mounts, or in another order")
    need(all(ledger.jobs[of].whole["artifacts_root"] == mount["tree"]
             for mount, (_, _, of) in zip(told, shape) if of in ledger.jobs), "artifacts")

def same(_, file, sha, size=None):
    found = digest(file)
    need(found[1] == sha and size in (None, found[0]), "another content")

def input_files(job, file):  # the paths in the container; raises where the inputs file is not what SCHEDULED tells
    listed, files = json.loads(file.read()), set()
    need((listed["format"], listed["job_id"], len(listed["mounts"])) == (1, job.id, len(job.told["mounts"])), "another")
    for mount, told in zip(listed["mounts"], job.told["mounts"]):
        tree, of = mount["tree"], mount.get("artifacts_of", {})
        root, found = tree_hash(tree["entries"]), [entry for entry in tree["entries"] if entry["kind"] == "file"]
        shown = mount["container"], mount["read_only"], tree["files"], tree["bytes"], tree["root"], of.get("job_id")
        asked = told["container"], told["mode"] == "ro", len(found), sum(entry["size"] for entry in found), root
        need(shown == (*asked, told.get("artifacts_of")) and of.get("artifacts_root", root) == told["tree"], "mount")
        files |= {f"{mount['container']}/{from_json(entry['path'])}" for entry in found}
    return files

def tree_hash(entries):  # a directory's hash, by the entries of an inputs file
    below = {"": [], **{from_json(entry["path"]): [] for entry in entries if entry["kind"] == "directory"}}
    for entry in sorted(entries, key=lambda entry: octets(from_json(entry["path"])), reverse=True):
        path, kind, sha = from_json(entry["path"]), entry["kind"], entry["sha256"]
        if kind != "file":  # what lies in a directory came before it
            content = below[path][::-1] if kind == "directory" else [octets(from_json(entry.get("target", "")))]
            need(sha == hashlib.sha256(b"".join(content)).hexdigest(), f"{path} has another hash")
        letter = LETTERS[kind] if kind != "file" else "x" if int(entry["mode"], 8) & 0o111 else "f"
        below[path.rpartition("/")[0]].append(octets(f"{letter} {sha} {path.rpartition('/')[2]}\0"))
    return hashlib.sha256(b"".join(reversed(below[""]))).hexdigest()

def sealed_files(job, file):  # path in the container: mode, size, SHA-256; raises where the seal is not that of SEALED
    data, listing = file.read(), hashlib.sha256()
    need(hashlib.sha256(data).hexdigest() == job.seal, "another seal")
    told = json.loads(data)
    for entry in told["artifacts"]:  # as sha256sum has them
        path = octets(from_json(entry["path"])).removeprefix(b"/")
        odd = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        listing.update((b"\\" if odd != path else b"") + entry["sha256"].encode() + b"  " + odd + b"\n")
    totals = {"artifacts_root": listing.hexdigest(), "files": len(told["artifacts"]),
              "bytes": sum(entry["size"] for entry in told["artifacts"])}
    need(told == {**told, **job.whole} == {**told, **job.whole, **totals}, "not what the events tell")
    job.removed = [from_json(path) for path in told["removed"]]
    return {from_json(entry["path"]): (int(entry["mode"], 8), entry["size"], entry["sha256"])
            for entry in told["artifacts"]}

def fault(job, kind, path, excuse=None, may_go=False):
    if may_go and job.pruned and not excuse:
        return GONE.setdefault(job.pruned, []).append((kind, job.id))
    shown = re.sub("[%\0-\x1f\x7f-\x9f\udc80-\udcff]", lambda odd: urllib.parse.quote(octets(odd[0])), path)
    FAULTS.extend([] if excuse else [kind])
    print(f"note {excuse} {job.id} {shown}: another job was or is there" if excuse else
          f"fault {kind} {job.id} {shown}: {MEANING[kind.split('_')[1]]}")

def check(ledger, job, kind, path, sound, *more):  # gives what sound() makes of the file
    file = ledger.open(path)
    try:
        return sound(job, file, *more) if file else fault(job, kind + "_missing", path, None, kind == "log")
    except MALFORMED:
        fault(job, kind + "_changed", path)

def check_files(ledger, job):  # all but the artifacts; gives the job what its seal and its inputs file tell
    logs, seal, listing, inputs = (name.format(job.id) for name in ledger.names)
    try:
        if job.told:
            check_hashes(ledger, job)
    except MALFORMED:
        fault(job, "execution_hash", "-")
    for name, sha, size in job.logs if job.at in ("STOPPED", "END") else ():
        check(ledger, job, "log", f"{logs}/{name}", same, sha, size)
    if job.seal:
        check(ledger, job, "list", listing, same, job.whole["artifacts_root"])
        job.artifacts = check(ledger, job, "seal", seal, sealed_files)
        job.inputs = check(ledger, job, "inputs", inputs, input_files)

def mounted_files(job):  # the regular files: path in the container -> mode, path on the host; follows no symlink
    def unreadable(error):
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error
    found = {}
    for container, mode, _, top in job.mounts:
        for folder, _, names in os.walk(octets(top), onerror=unreadable) if mode == "rw" else ():
            for path in (os.path.join(folder, name) for name in names):
                status, host = os.lstat(path), path.decode("utf-8", "surrogateescape")
                if stat.S_ISREG(status.st_mode):
                    found[container + host[len(top):]] = stat.S_IMODE(status.st_mode), host
    return found

def place(job, path):  # on the host
    tops = [(container, host) for container, _, of, host in job.mounts if not of]
    return next((host + path[len(to):] for to, host in tops if path.startswith(to + "/")), f"{job.id}:{path}")

def check_artifacts(ledger, job, written, known, used):
    def excuse(seen, path):  # why a difference is no fault
        in_use = any(place(job, path).startswith(top + "/") for top in used)
        return "superseded" if seen.get(place(job, path), 0) > job.sealed else "in_use" if in_use else None
    files, prefix = ledger.files(job), "artifacts" if ledger.only else ""
    ledger.asked |= {"artifacts" + path for path in files}
    if ledger.only and job.artifacts and not files:
        print(f"note absent {job.id} artifacts: the bundle was made without them")
        return
    for path, (mode, *sealed) in job.artifacts.items():  # modes in a bundle are 0644 or 0755
        found, name = files.get(path, (0, None))
        same_mode = (not found & 0o111) == (not mode & 0o111) if ledger.only else found == mode
        if not name or not same_mode or [*digest(ledger.open(name))] != sealed:
            fault(job, "artifact_changed" if name else "artifact_missing", prefix + path, excuse(written, path),
                  not name and place(job, path).startswith(f"{ledger.data}/scratch/{job.id}/"))
    inputs = set() if ledger.only else job.inputs
    for path in sorted(files.keys() - job.artifacts.keys() - inputs) if inputs is not None else ():
        fault(job, "artifact_extra", prefix + path, excuse(known, path))

def check_all(ledger):
    jobs, written, known = ledger.jobs.values(), {}, {}  # place on the host -> when a job was last SEALED that
    if ledger.only:
        job = ledger.jobs.get(ledger.only)
        need(job and job.at in ("STOPPED", "END"), "events.jsonl: the job has not ended")
        need(digest(ledger.open("manifest.json"))[1] == job.hash, "manifest.json: it is not the manifest of RECEIVED")
        ledger.asked |= {"inputs.json"} if job.told else set()
    for job in jobs:
        check_files(ledger, job)
        for seen, paths in (written, job.removed), (known, job.inputs or ()):  # wrote or removed it, or knew it
            for spot in (place(job, path) for path in (*paths, *(job.artifacts or ()))):
                seen[spot] = max(job.sealed, seen.get(spot, 0))
    used = {host for job in jobs if job.told and job.at not in ("STOPPED", "END") for _, mode, of, host in job.mounts
            if mode == "rw" and not of and not host.startswith(f"{ledger.data}/scratch/")}
    for job in (job for job in jobs if job.artifacts is not None):
        check_artifacts(ledger, job, written, known, used)
    for seq, (kinds, names) in sorted((seq, zip(*gone)) for seq, gone in GONE.items()):
        print(f"pruned by event {seq}: {kinds.count('log_missing')} logs and {kinds.count('artifact_missing')} "
              f"artifacts of {len({*names})} jobs")
    odd = ledger.members.keys() - ledger.asked if ledger.only and not FAULTS else ()
    need(not odd, f"{min(odd, default='')}: no event vouches for it")

def keep(path):  # no prune begins while this is open, and one that runs is waited for; a copy has no such file
    try:
        import fcntl  # not everywhere
        lock = open(path, "rb")
        return fcntl.flock(lock, fcntl.LOCK_SH) or lock
    except (ImportError, OSError):
        return None

def run(read, path, expected):
    for wait_s in (0.05, 0.05, 0):  # an agent may be writing: what looks damaged is looked at again
        ledger, damage = types.SimpleNamespace(seq=0, hash="0" * 64, time="", jobs={}, head="0 " + "0" * 64, only=None,
                                               asked=set(), data="", where="", expected=set(expected)), None
        try:
            for ledger.where, line in read(ledger, path):
                take(ledger, line)
                ledger.where = ""
            break
        except (*MALFORMED, tarfile.TarError) as error:
            damage = f"{ledger.where}: {error}" if ledger.where else error
            time.sleep(wait_s)
    try:
        damage = damage or check_all(ledger)
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
    try:
        options, paths = getopt.gnu_getopt(sys.argv[1:], "h", ["help", "bundle=", "expect="])
        bundle, expected = dict(options).get("--bundle"), [value for name, value in options if name == "--expect"]
        if {"-h", "--help"} & dict(options).keys():
            print(__doc__)
            return 0
        need(len(paths) == (bundle is None), "either DIR or --bundle FILE.tar")
        need(all(re.fullmatch("[1-9][0-9]*:[0-9a-f]{64}", event) for event in expected), "--expect takes SEQ:HASH")
        need(bundle or os.path.isdir(paths[0] + "/wal"), f"{' '.join(paths)} is no data directory: it has no wal/")
        _lock = None if bundle else keep(paths[0] + "/BACKUP")
        return run(read_bundle if bundle else read_directory, bundle or paths[0], expected)
    except OSError as error:
        print(f"cannot be read: {error}", file=sys.stderr)
        return 74
    except (getopt.GetoptError, ValueError) as error:
        print(__doc__, error, sep="\n", file=sys.stderr)
        return 64

if __name__ == "__main__":
    sys.exit(main())
