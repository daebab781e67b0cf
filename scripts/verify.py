#!/usr/bin/env python3
"""Checks what HackBrain Studio keeps, by docs/wal-format.md and docs/evidence.md, with Python's standard library alone.
    verify.py DIR [--expect SEQ:HASH]...                 a data directory: the ledger, every file that it vouches for
    verify.py --bundle FILE.tar [--expect SEQ:HASH]...   the bundle of one job, without unpacking it
--expect: event SEQ must be there with this hash. Exit: 0 no fault, 65 faults or damage, 64 usage, 74 cannot be read."""
import argparse, datetime, hashlib, heapq, json, os, re, stat, struct, sys, tarfile, time, types, urllib.parse

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)  # by unsound JSON, by need()
EVENT = re.compile(r'\{"seq":([1-9]\d{0,18}),"prev":"([0-9a-f]{64})","time":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})Z",(?:'
                   r'"job_id":"([\dA-Za-z][\w.-]{0,99})","attempt":(0|[1-9]\d{0,8}),)?"state":"(\w+)","detail":(\{.*\})\}',
                   re.DOTALL | re.ASCII)
SLOT = re.compile(rb"(hackbrain-wal segments\nlog ([0-9a-f]{32})\nlast (\d{1,15})\n)crc ([0-9a-f]{8})\n*")
# What may follow. D1_STABLE moves nothing; RECOVERY is like RUNNING; RETRIGGERED is like the state that it goes on from.
AFTER = {"": "RECEIVED", "RECEIVED": "SCHEDULED FAILED CANCELLED", "SCHEDULED": "RUNNING FAILED CANCELLED",
         "RUNNING": "D1_STABLE CRASH STOPPING COMPLETED FAILED", "STOPPING": "D1_STABLE FAILED CANCELLED", "END": "",
         "CRASH": "RECOVERY FAILED CANCELLED", "COMPLETED": "SEALED FAILED CANCELLED", "STOPPED": "RETRIGGERED"}
ENV = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0", "TZ": "UTC"}
LETTERS = {"directory": "d", "symlink": "l", "fifo": "p", "socket": "s", "char_device": "c", "block_device": "b"}
MEANING = {"missing": "it is not there", "changed": "it is not what the ledger vouches for", "extra": "no event knows it",
           "hash": "manifest, image and mounts do not give the hashes in SCHEDULED, or a parent has other artifacts"}
FAULTS = []
TABLE = list(range(1 << 16))  # what sixteen bits do to a CRC-32C
for _ in range(16):
    TABLE = [value >> 1 ^ 0x82F63B78 * (value & 1) for value in TABLE]

def crc32c(data):
    crc = 0xFFFFFFFF
    for word in struct.unpack_from("<%dH" % (len(data) // 2), data):
        crc = TABLE[crc & 0xFFFF ^ word] ^ crc >> 16
    return (TABLE[(crc ^ data[-1]) << 8 & 0xFFFF] ^ crc >> 8 if len(data) % 2 else crc) ^ 0xFFFFFFFF

def need(held, told):
    if not held:
        raise ValueError(told)

def octets(path):  # paths are text in which a byte that is no UTF-8 is a lone surrogate, whatever the locale
    return path.encode("utf-8", "surrogateescape")

def opened(path):  # the regular file at a path, or None
    try:
        return open(octets(path), "rb") if stat.S_ISREG(os.lstat(octets(path)).st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None

def unquote(path):  # as JSON has it
    return urllib.parse.unquote(path, errors="surrogateescape")

def digest(file):
    sha = hashlib.sha256()
    for piece in iter(lambda: file.read(1 << 20), b""):
        sha.update(piece)
    return file.tell(), sha.hexdigest()

def segment(wal, number, log):  # its file; log id, number, length, salt, first seq and commit, its predecessor's end, hash
    file, form = opened(f"{wal}/wal-{number:016x}.log"), b"HBWAL\0\0\1" + struct.pack("<II", 1, 4096)
    need(file, f"segment {number} is missing")
    sound = [block for block in (file.read(4096), file.read(4096))
             if block[:16] == form and block[4092:] == struct.pack("<I", crc32c(block[:4092]))]
    need(sound, f"segment {number} has no sound header of format version 1")
    header = struct.unpack_from("<16s6Q32s", sound[0], 16)
    need(header[:2] == (log or header[0], number), f"segment {number} has the header of another segment or log")
    return file, *header

def frame_header(data):  # blocks, bytes and number of records, salt, commit, seq, offset, hash before, hash after; or None
    header = struct.unpack_from("<8x3I4x4Q8x32s32s", data)
    blocks, size, count = header[:3]
    fits = blocks == -(-(128 + size) // 4032) and size >= 5 * count and (not size) == (not count)
    return header if fits and data[:8] == b"HBF1" + struct.pack("<I", crc32c(data[8:128])) else None

def sector_sound(sector, salt, at, mark):
    return sector[508:] == struct.pack("<I", crc32c(struct.pack("<QQI", salt, at, mark) + sector[:504]))

def check_tail(file, length, begin, salt, mark):  # all from `begin` on must be what a crash in one commit can leave there
    file.seek(begin)
    for at in range(begin, length, 512):
        sector = file.read(512)
        if sector != bytes(512):
            header, found = at % 4096 == 0 and frame_header(sector), int.from_bytes(sector[504:508], "little")
            need(not header or at == begin or (header[3], header[6]) == (salt, at), f"at {at} lies a frame of elsewhere")
            sound = found >> 31 and sector_sound(sector, salt, at, found)
            need(not sound or found == mark, f"at {at} lies a sound sector of another commit")
            need(sound or found != mark and not sector_sound(sector, salt, at, mark), f"at {at} lies a rotten sector")

def frames(file, name, length, until, salt, commit, seq, sha):  # each event with its place, then how the next one must go on
    at = 8192
    while at not in (until, length):
        file.seek(at)
        data, where, mark = file.read(4096), f"{name}: offset {at}, seq {seq}:", 1 << 31 | commit & (1 << 31) - 1
        header = frame_header(data)
        need(not header or header[3:8] == (salt, commit, seq, at, sha), f"{where} a frame of elsewhere, or out of the chain")
        size = min(header[0] * 4096, length - at) if header else 0
        data += file.read(size - 4096 if size else 0)
        sectors = [data[cut:cut + 512] for cut in range(0, size, 512)]
        if not header or size < header[0] * 4096 or not all(
                sector[504:508] == struct.pack("<I", mark) and sector_sound(sector, salt, at + 512 * index, mark) for index, sector in enumerate(sectors)):
            need(until is None, f"{where} a frame is damaged")
            check_tail(file, length, at, salt, mark)
            break
        body = b"".join(sector[:504] for sector in sectors)[128:128 + header[1]]
        for _ in range(header[2]):
            record, body = body[4:4 + int.from_bytes(body[:4], "little")], body[4 + int.from_bytes(body[:4], "little"):]
            need(record, where + " a record without length")
            sha = hashlib.sha256(record).digest()
            yield where, record
        need(not body and sha == header[8], f"{where} the records are not those of the frame's header")
        at, commit, seq = at + size, commit + 1, seq + header[2]
    return [seq, commit, at, sha]

def records(wal):  # each event of the ledger with its place; raises where it cannot be trusted
    witness, go_on = opened(f"{wal}/segments"), [1, 1, 0, bytes(32)]
    blocks = witness.read(8193) if witness else b""
    slots = [slot for slot in map(SLOT.fullmatch, (blocks[:4096], blocks[4096:])) if slot]
    sound = [(int(slot[3]), bytes.fromhex(slot[2].decode())) for slot in slots if crc32c(slot[1]) == int(slot[4], 16)]
    need(not witness or sound and len(blocks) == 8192, "segments: not two blocks, or neither is sound")
    known, log = max(sound, default=(0, None))
    last = max([known, *(int(name[4:20], 16) for name in os.listdir(wal) if re.fullmatch(r"wal-[0-9a-f]{16}\.log", name))])
    for number in range(1, last + 1):
        name, (file, log, _, length, salt, *begin) = f"wal-{number:016x}.log", segment(wal, number, log)
        until = segment(wal, number + 1, log)[-2] if number < last else None
        need(length == file.seek(0, 2) and length % 4096 == 0, f"{name}: it has not the length that its header tells")
        need(begin == go_on, f"{name}: it does not continue the segment before it")
        go_on = yield from frames(file, name, length, until, salt, begin[1], begin[0], begin[3])
    need(known + 1 >= last and (known or go_on[1] == 1), "segments: it is missing, or too old")

def take(ledger, raw, alone=False):  # checks and adds the next event; `alone`: those of other jobs lack
    form = EVENT.fullmatch(raw.decode())
    need(form, "not a well-formed event")
    seq, prev, moment, name, attempt, state, detail = int(form[1]), *form.groups()[1:]
    need(seq == ledger.seq + 1 or alone and seq > ledger.seq, f"seq {seq} comes after {ledger.seq}")
    need(prev == ledger.hash or seq != ledger.seq + 1, f"prev is not the hash of event {ledger.seq}")
    need(datetime.datetime.fromisoformat(moment) and moment >= ledger.time, "time goes back")
    need((seq == 1) == (state == "GENESIS") and (name is None) == (state in ("GENESIS", "NODE_UP", "NODE_DOWN")),
         f"{state} is not of {name or 'no job'}, or has not this seq")
    detail = json.loads(detail, parse_constant=int)  # int refuses NaN
    if name:
        step(ledger.jobs, seq, name, int(attempt), state, detail, form[0], alone)
    ledger.seq, ledger.hash, ledger.time = seq, hashlib.sha256(raw).hexdigest(), moment
    ledger.expected -= {f"{seq}:{ledger.hash}"}
    ledger.head = f"{seq} {ledger.hash}" if name or not alone else ledger.head
    return name, state

def step(jobs, seq, name, attempt, state, detail, line, alone):
    job = jobs.get(name) or types.SimpleNamespace(id=name, at="", attempt=0, hash=None, told=None, seal=None, logs={})
    need(state in AFTER[job.at].split(), f"{state} of {name} does not follow {job.at or 'nothing'}")
    need(attempt == job.attempt + (state in ("RUNNING", "RECOVERY")), f"{state} of {name} has attempt {attempt}")
    if state in ("RECEIVED", "RETRIGGERED"):
        begin = re.search(r'[{,]"manifest":', line).end()  # no string of JSON can hold this: its quotes are escaped
        job.manifest, end = json.JSONDecoder().raw_decode(line, begin)
        found = hashlib.sha256(line[begin:end].encode()).hexdigest()
        need(job.manifest == detail["manifest"] and job.manifest["job_id"] == name and found == detail["manifest_hash"] and
             job.hash in (None, found), f"the manifest of {name} is not what its hash and job_id tell, or not RECEIVED's")
        job.hash, job.parents = found, [*job.manifest.get("depends_on", []), *(mount[3] for mount in mounts(job) if mount[3])]
        need(alone or all(parent in jobs for parent in job.parents), f"{name} needs a job that was not received")
    if state == "SCHEDULED":
        need(alone or all(jobs[parent].seal for parent in job.parents), f"{name} needs a job that is not sealed")
        job.told = {key: detail[key] for key in ("image_id", "input_hash", "execution_hash", "mounts")}
    if state == "SEALED":
        job.seal, job.sealed = (detail["seal_hash"], detail["artifacts_root"]), seq
    for stream in ("stdout", "stderr") if state in ("CRASH", "COMPLETED", "FAILED", "CANCELLED") else ():
        if detail.get(stream):
            job.logs[attempt, stream, detail[stream]["bytes"], detail[stream]["sha256"]] = True
    again = state == "FAILED" and detail["reason"] in ("attempt_limit", "oom", "dependency")
    goes_on = "RECEIVED" if not job.told else "CRASH" if attempt else "SCHEDULED"
    job.at = {"D1_STABLE": job.at, "RECOVERY": "RUNNING", "CANCELLED": "STOPPED", "FAILED": "STOPPED" if again else "END",
              "SEALED": "END", "RETRIGGERED": goes_on}.get(state, state)
    job.attempt, jobs[name] = attempt, job

def mounts(job):  # of the manifest: host directory or None, container path, mode, parent or None; "" is the scratch directory
    given = job.manifest.get("mount_spec", [])
    parts = [spec.split(":") for spec in ([given] if isinstance(given, str) else given)]
    found = [(None, part[2], "ro", part[1]) if part[0] == "job" else (*part[:2], (*part[2:], "rw")[0], None) for part in parts]
    return found if any(mount[0] for mount in found) else [("", "/job/workdir", "rw", None), *found]

def canonical_hash(value):  # of its RFC 8785 form; manifests have no number that Python writes otherwise
    form = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(form.encode()).hexdigest()

def check_hashes(job, jobs):
    told, ask = job.told["mounts"], job.manifest
    given = [{"container": mount["container"], "mode": mount["mode"],
              "artifacts" if "artifacts_of" in mount else "tree": mount["tree"]} for mount in told]
    whole = {"command": ask["command"], "env": {**ENV, **ask.get("env", {})}, "image_id": job.told["image_id"],
             "mounts": given, "network": ask.get("network", "none"), "resources": ask.get("resources", {})}
    need(canonical_hash(given) == job.told["input_hash"], "input_hash")
    need(canonical_hash(whole) == job.told["execution_hash"], "execution_hash")
    shape = [(mount["container"], mount["mode"], mount.get("artifacts_of")) for mount in told]
    need(sorted(shape, key=str) == sorted((mount[1:] for mount in mounts(job)), key=str), "mounts")
    need(all(jobs[of].seal[1] == mount["tree"] for mount, (_, _, of) in zip(told, shape) if of in jobs), "artifacts")

def tree(entries):  # the hash of a directory, by the entries of an inputs file
    below = {"": [], **{unquote(entry["path"]): [] for entry in entries if entry["kind"] == "directory"}}
    for entry in sorted(entries, key=lambda entry: octets(unquote(entry["path"])), reverse=True):
        path, kind, sha = unquote(entry["path"]), entry["kind"], entry["sha256"]
        if kind != "file":  # what lies in a directory came before it
            content = b"".join(reversed(below[path])) if kind == "directory" else octets(unquote(entry.get("target", "")))
            need(sha == hashlib.sha256(content).hexdigest(), f"{path} has another hash")
        letter = LETTERS[kind] if kind != "file" else "x" if int(entry["mode"], 8) & 0o111 else "f"
        below[path.rpartition("/")[0]].append(octets(f"{letter} {sha} {path.rpartition('/')[2]}\0"))
    return hashlib.sha256(b"".join(reversed(below[""]))).hexdigest()

def input_files(job, data):  # the paths, in the container, that an inputs file has; raises where it is not SCHEDULED's
    found, listed = set(), json.loads(data)["mounts"]
    need(len(listed) == len(job.told["mounts"]), "mounts")
    for mount, told in zip(listed, job.told["mounts"]):
        root, of = tree(mount["tree"]["entries"]), mount.get("artifacts_of", {})
        need((mount["container"], mount["read_only"]) == (told["container"], told["mode"] == "ro"), "mount")
        need(root == mount["tree"]["root"] and (of.get("job_id"), of.get("artifacts_root", root)) ==
             (told.get("artifacts_of"), told["tree"]), "tree")
        found |= {f"{mount['container']}/{unquote(entry['path'])}" for entry in mount["tree"]["entries"] if entry["kind"] == "file"}
    return found

def fault(job, kind, path, later=False):
    shown = octets(path).replace(b"%", b"%25").decode("utf-8", "surrogateescape")
    shown = re.sub("[\0-\x1f\x7f\udc80-\udcff]", lambda odd: "%%%02X" % (ord(odd[0]) & 255), shown)
    if not later:
        FAULTS.append(kind)
    print(f"note superseded {job.id} {shown}: by a later job" if later else
          f"fault {kind} {job.id} {shown}: {MEANING[kind.split('_')[1]]}")

def vouched(reader, job, kind, name, sha, size=None):
    file = reader.open(name)
    found = digest(file) if file else (None, None)
    if found[1] != sha or size not in (None, found[0]):
        fault(job, kind + ("_changed" if file else "_missing"), name)
    return found[1] == sha

def check_files(reader, job, jobs):  # all but the artifacts; adds what the seal and the inputs file tell to the job
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
            job.removed = [unquote(path) for path in told["removed"]]
            job.artifacts = {unquote(entry["path"]): (int(entry["mode"], 8), entry["size"], entry["sha256"])
                             for entry in told["artifacts"]}
    except MALFORMED:
        fault(job, "seal_changed", seal)
    try:
        file = reader.open(inputs)
        job.inputs = input_files(job, file.read()) if file else fault(job, "inputs_missing", inputs)
    except MALFORMED:
        fault(job, "inputs_changed", inputs)

def check_artifacts(reader, job, later):
    files = reader.files(job)
    if reader.alone and job.artifacts and not files:
        return print(f"note artifacts {job.id} -: this bundle was asked for without them")
    bits = (lambda mode: mode & 0o111 != 0) if reader.alone else (lambda mode: mode)  # a bundle's files are 0644 or 0755
    for path, (mode, *sealed) in job.artifacts.items():
        if path not in files or [bits(files[path][0]), *digest(reader.open(files[path][1]))] != [bits(mode), *sealed]:
            fault(job, "artifact_changed" if path in files else "artifact_missing", reader.prefix + path,
                  later[0].get(reader.place(job, path), 0) > job.sealed)
    known = set() if reader.alone else job.inputs
    for path in files if known is not None else ():
        if path not in job.artifacts and path not in known:
            fault(job, "artifact_extra", reader.prefix + path, later[1].get(reader.place(job, path), 0) > job.sealed)

class Directory:
    alone, prefix, names = False, "", ("logs/{}", "seals/{}.json", "seals/{}.sha256", "inputs/{}.json")

    def __init__(self, data):
        self.data = data

    def open(self, name):
        return opened(os.path.join(self.data, name))

    def tops(self, job):  # where its writable mounts lie: path in the container, directory of the host
        for number, (host, container, mode, _) in enumerate(mounts(job)):
            scratch = f"{self.data}/scratch/{job.id}" + (f"/{number}" if host else "")
            if mode == "rw":
                yield container, scratch if "reproduces" in job.manifest or not host else host

    def place(self, job, path):
        return next((top + path[len(container):] for container, top in self.tops(job) if path.startswith(container + "/")), "")

    def files(self, job):  # each regular file: path in the container -> mode, path on the host; follows no symlink
        found = {}
        for container, top in self.tops(job):
            for folder, _, names in os.walk(octets(top), onerror=unreadable):
                for path in (os.path.join(folder, name) for name in names):
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode):
                        path = path.decode("utf-8", "surrogateescape")
                        found[container + path[len(top):]] = stat.S_IMODE(status.st_mode), path
        return found

class Bundle:
    alone, prefix, names = True, "artifacts", ("logs", "seal.json", "seal.sha256", "inputs.json")

    def __init__(self, path):
        self.members, self.asked, self.id = {}, set(), None
        self.tar = tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape")
        for member in self.tar:
            first, *parts = member.name.split("/")
            name, self.id = "/".join(parts), self.id or first
            need(first == self.id and not {"", ".", ".."} & set(parts) and name not in self.members and
                 (member.isfile() if parts and not member.isdir() else member.isdir()), f"{member.name!r}: odd name or type")
            if member.isfile():
                self.members[name] = member

    def open(self, name):
        self.asked.add(name)
        return self.tar.extractfile(self.members[name]) if name in self.members else None

    def place(self, _, path):
        return path

    def files(self, _):
        return {name[9:]: (member.mode, name) for name, member in self.members.items() if name.startswith("artifacts/")}

def bundle_events(reader):  # the job's and the node's events, with their files, by seq
    parts = []
    for name in ("events.jsonl", "node.jsonl"):
        file = reader.open(name)
        data = file.read() if file else b""
        need(data.endswith(b"\n"), f"{name}: it is not there, or its last line is not whole")
        parts.append([(int(re.match(rb'(?:\{"seq":)?(\d{0,19})', line)[1] or 0), name, line) for line in data[:-1].split(b"\n")])
    return ((name, line) for _, name, line in heapq.merge(*parts))

def unreadable(error):
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error

def read_events(events, ledger, bundle=None):
    for where, line in events:
        try:
            name, state = take(ledger, line, bundle is not None)
            need(not bundle or (name == bundle.id if where == "events.jsonl" else state in ("GENESIS", "NODE_UP")), "of another job")
        except MALFORMED as error:
            raise ValueError(f"{where}: {error}") from None

def run(path, bundle, expected):
    for left in (2, 1, 0):  # an agent may be writing: what looks damaged is looked at again
        ledger = types.SimpleNamespace(seq=0, hash="0" * 64, time="", jobs={}, head=f"0 {'0' * 64}", expected=set(expected))
        try:
            reader = Bundle(path) if bundle else Directory(os.fsencode(os.path.abspath(path)).decode("utf-8", "surrogateescape"))
            read_events(bundle_events(reader) if bundle else records(reader.data + "/wal"), ledger, reader if bundle else None)
            if bundle:
                check_bundle(reader, ledger)
            damage = None
            break
        except (*MALFORMED, tarfile.TarError) as error:
            damage = error
            time.sleep(0.05 if left else 0)
    if damage:
        print("damaged:", damage)
    else:
        check_jobs(reader, ledger.jobs)
    for expected in sorted(ledger.expected):
        print("expected event", expected, "is not there")
    print("head", ledger.head)
    return 65 if damage or FAULTS or ledger.expected else 0

def check_bundle(bundle, ledger):
    job, manifest = ledger.jobs.get(bundle.id), bundle.open("manifest.json")
    need(job and job.at in ("STOPPED", "END"), "events.jsonl: the job has not ended")
    need(manifest and digest(manifest)[1] == job.hash, "manifest.json: it is not there, or not the manifest of RECEIVED")

def check_jobs(reader, jobs):
    later, sealed = ({}, {}), []  # by place on the host, when the last job was sealed that wrote or removed, or that knew it
    for job in jobs.values():
        check_files(reader, job, jobs)
        if job.artifacts is not None:
            sealed.append(job)
            for known, paths in zip(later, ([*job.artifacts, *job.removed], [*job.artifacts, *(job.inputs or ())])):
                for place in (reader.place(job, path) for path in paths):
                    known[place] = max(job.sealed, known.get(place, 0))
    for job in sealed:
        check_artifacts(reader, job, later)

def main():
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.setrecursionlimit(6000)  # os.walk goes down as deep as a path can be
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?")
    parser.add_argument("--bundle")
    parser.add_argument("--expect", action="append", default=[])
    try:
        given = parser.parse_args()
        if (given.dir is None) == (given.bundle is None):
            parser.error("give a data directory, or --bundle and a file")
        if not all(re.fullmatch("[1-9][0-9]*:[0-9a-f]{64}", expected) for expected in given.expect):
            parser.error("--expect takes SEQ:HASH, as a line `head SEQ HASH` has them")
        if given.dir is not None and not os.path.isdir(os.path.join(given.dir, "wal")):
            parser.error(f"{given.dir} is not a data directory: it has no wal/ below it")
    except SystemExit as end:
        sys.exit(64 if end.code else 0)
    try:
        sys.exit(run(given.bundle or given.dir, given.bundle, given.expect))
    except OSError as error:
        print("cannot read:", error, file=sys.stderr)
        sys.exit(74)

if __name__ == "__main__":
    main()
