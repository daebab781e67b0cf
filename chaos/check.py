#!/usr/bin/env python3
"""The promises of jobs, by what is on disk and served: run it once all of them have ended, and the agent serves.

check.py --dump FILE --agent URL --jobs DIR [--exact] [--causes CAUSE,…] [--at-least NAME=N,…]
         [--stream FILE…]

* the chain: each event's `prev` is the SHA-256 of the one before, seq counts from 1, time never goes back
* each job is SEALED; attempt 1 was begun once, and each later one once and in order, after a CRASH (of one of --causes)
* no container was started twice, and no more were started than attempts begun; with --exact, just as many, and the output
  of a job of one attempt is stored as it was printed, and wal_physics has announced its last step
* each marker in the ledger is in the log that the end of its attempt tells of, also behind a power cut
* the result is the one that an undisturbed run has
* wal_physics: a step that was announced is in its log when the next attempt reads that, and none is announced twice
* --stream: what an observer got is the dump, byte by byte
* --at-least: it counted at least so many; where the faults met nothing, nothing was tried

Prints a summary, as `name=number` words: of `crashes_CAUSE` and `found_later`, crashes that another run of the agent wrote down
than had begun the attempt, besides what their names say; everything that does not hold goes to standard error, and ends it with 1."""
import argparse
import collections
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

PHYSICS = pathlib.Path(__file__).resolve().parent / "payloads/wal_physics.py"
PATIENCE_S = 60
FAULTS = []


def fault(text):
    FAULTS.append(text)
    if len(FAULTS) <= 20:
        print(text, file=sys.stderr)


def chain(lines):
    events, before, time = [], "0" * 64, ""
    for number, line in enumerate(lines, 1):
        event = json.loads(line)
        if (event["seq"], event["prev"]) != (number, before):
            fault(f"event {number} does not continue the chain")
        if event["time"] < time:
            fault(f"event {number}: time goes back from {time} to {event['time']}")
        before, time = hashlib.sha256(line).hexdigest(), event["time"]
        events.append(event)
    return events


def undisturbed(steps, cache={}):
    """The result of wal_physics, from a run here that nobody kills."""
    if steps not in cache:
        with tempfile.TemporaryDirectory() as place:
            environment = dict(os.environ, WAL_PHYSICS_STEPS=steps, WAL_PHYSICS_STEP_MS="0")
            subprocess.run([sys.executable, PHYSICS], cwd=place, env=environment, check=True, capture_output=True)
            cache[steps] = (pathlib.Path(place) / "result.txt").read_bytes()
    return cache[steps]


def check_events(job_id, events, causes, starts_of_agents):
    """The attempts that were begun, the causes of crashes, and how many of those a later run of the agent told."""
    states = [event["state"] for event in events]
    if states[-1] != "SEALED":
        fault(f"{job_id} is not sealed: {states[-1]} {json.dumps(events[-1]['detail'])[:300]}")
    begun = [event["attempt"] for event in events if event["state"] in ("RUNNING", "RECOVERY")]
    if begun != list(range(1, len(begun) + 1)) or states.count("RUNNING") != 1:
        fault(f"{job_id}: attempts begun: {begun}")
    crashes = [event for event in events if event["state"] == "CRASH"]
    begun_at = {event["attempt"]: event["seq"] for event in events if event["state"] in ("RUNNING", "RECOVERY")}
    later = sum(any(begun_at.get(crash["attempt"], 0) < start < crash["seq"] for start in starts_of_agents) for crash in crashes)
    if len(crashes) != len(begun) - 1:
        fault(f"{job_id}: {len(begun)} attempts and {len(crashes)} crashes")
    for crash in crashes:
        if crash["detail"]["cause"] not in causes:
            fault(f"{job_id}: a crash for another cause: {json.dumps(crash['detail'])[:300]}")
    return len(begun), [crash["detail"]["cause"] for crash in crashes], later


def check_starts(job_id, place, attempts, exact):
    starts = (place / "starts").read_text().split() if (place / "starts").exists() else []
    # Also where an attempt may have died before it could note anything, the last did not.
    if not starts:
        fault(f"{job_id}: nothing has started")
    if len(set(starts)) != len(starts):
        fault(f"{job_id}: a container was started twice: {starts}")
    if len(starts) > attempts or (exact and len(starts) != attempts):
        fault(f"{job_id}: {len(starts)} starts in {attempts} attempts")
    return len(starts)


def stdout_of(job_id, url, attempt):
    """Nothing where there is no log, as of an attempt that died with its host before the log had a name."""
    try:
        with urllib.request.urlopen(f"{url}/api/jobs/{job_id}/stdout?attempt={attempt}", timeout=PATIENCE_S) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return b""


def check_logs(job_id, events):
    """A marker in the ledger is also in the log whose digest the attempt's end tells. How many such markers there are."""
    marked, markers = collections.Counter(), 0
    for event in events:
        detail, attempt = event["detail"], event["attempt"]
        if event["state"] == "D1_STABLE" and detail["stream"] == "stdout":
            marked[attempt] = detail["offset"] + len(detail["line"])
            markers += 1
        elif event["state"] in ("CRASH", "COMPLETED") and marked[attempt] > (detail["stdout"] or {"bytes": 0})["bytes"]:
            log = json.dumps(detail["stdout"])
            fault(f"{job_id}: attempt {attempt} has a marker up to {marked[attempt]} in a log of {log}")
    return markers


def check_output(job_id, place, url):
    """What the payload printed, as it noted itself."""
    printed, stored = (place / "printed").read_bytes(), stdout_of(job_id, url, 1)
    if stored != printed:
        fault(f"{job_id}: {len(printed)} bytes printed, {len(stored)} stored")


def check_result(job_id, place, env):
    expected = undisturbed(env["WAL_PHYSICS_STEPS"]) if "WAL_PHYSICS_STEPS" in env else b"%d\n" % (int(env["STEPS"]) * 7919)
    found = (place / "result.txt").read_bytes() if (place / "result.txt").exists() else None
    if found != expected:
        fault(f"{job_id}: the result is {found!r:.200}")


def check_steps(job_id, url, attempts, steps, exact):
    """Each attempt goes on where the log ended, and nobody was told of a step that is not there."""
    last = 0
    for attempt in range(1, attempts + 1):
        text = stdout_of(job_id, url, attempt)
        resumed = re.search(rb"^resumed from step (\d+)$", text, re.M)
        announced = [int(step) for step in re.findall(rb"^\[D1_STABLE\] step=(\d+) .*$", text, re.M)]
        if not announced and not resumed:
            continue
        first = int(resumed[1]) if resumed else 0
        if first < last:
            fault(f"{job_id}: step {last} was announced, and attempt {attempt} resumed from step {first}")
        if announced != list(range(first + 1, first + 1 + len(announced))):
            fault(f"{job_id}: attempt {attempt} resumed from {first} and announced {announced}")
        last = max([first, *announced])
    if last > steps or (exact and last != steps):
        fault(f"{job_id}: step {last} of {steps}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dump", "agent", "jobs"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--causes", default="")
    parser.add_argument("--at-least", default="")
    parser.add_argument("--stream", nargs="*", default=[])
    options = parser.parse_args()
    with open(options.dump, "rb") as file:
        dump = file.read()
    events = chain(dump.splitlines())
    starts_of_agents = [event["seq"] for event in events if event["state"] == "NODE_UP"]
    for name in options.stream:
        with open(name, "rb") as file:
            if file.read() != dump:
                fault(f"{name} is not what the ledger holds")
    jobs = collections.defaultdict(list)
    for event in events:
        if event.get("job_id") is not None:
            jobs[event["job_id"]].append(event)
    counts, causes = collections.Counter(events=len(events), jobs=len(jobs)), collections.Counter()
    for job_id, of_job in jobs.items():
        manifest, place = of_job[0]["detail"]["manifest"], pathlib.Path(options.jobs) / job_id
        attempts, crashes, later = check_events(job_id, of_job, options.causes.split(","), starts_of_agents)
        causes.update(f"crashes_{cause}" for cause in crashes)
        counts.update(found_later=later, attempts=attempts, starts=check_starts(job_id, place, attempts, options.exact))
        counts.update(markers=check_logs(job_id, of_job))
        check_result(job_id, place, manifest["env"])
        if options.exact and attempts == 1 and (place / "printed").exists():
            check_output(job_id, place, options.agent)
            counts["outputs"] += 1
        if "WAL_PHYSICS_STEPS" in manifest["env"]:
            check_steps(job_id, options.agent, attempts, int(manifest["env"]["WAL_PHYSICS_STEPS"]), options.exact)
            counts["physics"] += 1
    if not jobs:
        fault("there is not one job")
    counts.update(observers=len(options.stream), **causes)
    for name, number in (words.split("=") for words in options.at_least.split(",") if words):
        if counts[name] < int(number):
            fault(f"{name}: {counts[name]}, fewer than {number}: the faults met nothing")
    print(*(f"{name}={count}" for name, count in counts.items()))
    if FAULTS:
        print(f"{len(FAULTS)} faults", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
