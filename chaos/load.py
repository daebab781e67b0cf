#!/usr/bin/env python3
"""Jobs, all the time: keeps a number of them in flight until a file appears, through every absence of the agent.

load.py --url FILE --jobs DIR --answers FILE --prefix NAME --stop FILE [--in-flight N] [--seed N] [--physics STEPS]
        [--pause-ms N]

Each job has a directory below --jobs, notes each of its starts there, and leaves a result that is known beforehand: three of
four are shell scripts, the fourth is payloads/wal_physics.py, which logs each step with a sync. What was not acknowledged
is submitted again, as it was. --physics submits just one job, of wal_physics with that many steps and no pause. --pause-ms: the
pause between two steps of a script (50), five times that of the physics. Answers are written as acknowledged.py reads them.
"""
import argparse
import http.client
import json
import os
import pathlib
import random
import shutil
import time
import urllib.parse

PATIENCE_S = 60
PHYSICS = pathlib.Path(__file__).resolve().parent / "payloads/wal_physics.py"
# The engine's id of the container: one line for each container that was ever started.
START = "sed -n 's|.*/containers/\\([0-9a-f]*\\)/hostname .*|\\1|p' /proc/self/mountinfo >> starts; "
SHELL = ('i=0; while [ $i -lt $STEPS ]; do i=$((i + 1)); echo "[D1_STABLE] step=$i" | tee -a printed; sleep $PAUSE_S; done; '
         "echo $((STEPS * 7919)) > result.txt")
# What a job is sure to need, whatever is done to it: as many attempts as there can be faults in its life.
MAX_ATTEMPTS = 50


def manifest(job_id, number, chance, jobs, physics, pause_ms):
    place = jobs / job_id
    if physics or number % 4 == 3:
        steps, step_ms = (physics, 0) if physics else (chance.choice((20, 40, 60)), pause_ms // 5)
        image, script = "python:3.9-slim", "exec python wal_physics.py"
        env = {"WAL_PHYSICS_STEPS": str(steps), "WAL_PHYSICS_STEP_MS": str(step_ms)}
    else:
        image, script, env = "busybox:latest", SHELL, {"STEPS": str(chance.randrange(1, 30)), "PAUSE_S": str(pause_ms / 1000)}
    if not place.exists():
        place.mkdir()
        shutil.copy(PHYSICS, place)
    return {"job_id": job_id, "image_hash": image, "command": ["sh", "-c", START + script], "env": env,
            "mount_spec": f"{place}:/job/workdir", "max_attempts": MAX_ATTEMPTS, "timeout_s": 600}


def ask(url_file, method, path, body=None):
    """Status and body; None where there is no agent, or it went away over its answer."""
    try:
        with open(url_file, encoding="ascii") as file:
            connection = http.client.HTTPConnection(urllib.parse.urlparse(file.read().strip()).netloc, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return None


def in_flight(url_file):
    answer = ask(url_file, "GET", "/api/node")
    if answer is None or answer[0] != 200:
        return None
    jobs = json.loads(answer[1])["jobs"]
    return sum(count for state, count in jobs.items() if state not in ("SEALED", "FAILED", "CANCELLED"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("url", "jobs", "answers", "prefix", "stop"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--in-flight", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--physics", type=int)
    parser.add_argument("--pause-ms", type=int, default=50)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    number, made = 0, None
    with open(options.answers, "a", encoding="utf-8", buffering=1) as answers:
        while not (options.physics and number) and not os.path.exists(options.stop):
            try:
                if made is None:
                    made = manifest(f"{options.prefix}-{number}", number, chance, pathlib.Path(options.jobs), options.physics,
                                    options.pause_ms)
            except OSError:
                # The disk that they lie on is away, or full. The draw is part of the job's making.
                time.sleep(0.2)
                continue
            open_now = in_flight(options.url)
            if open_now is None or open_now >= options.in_flight:
                time.sleep(0.1)
                continue
            answer = ask(options.url, "POST", "/api/submit_job", json.dumps(made))
            if answer is not None:
                answers.write(f"{answer[1].decode(errors='replace').strip()} {answer[0]}\n")
            if answer is not None and answer[0] == 200:
                number, made = number + 1, None
            else:
                time.sleep(0.1)


if __name__ == "__main__":
    main()
