#!/usr/bin/env python3
"""Is every submission that was answered with 200 there, with its seq and its hash?

acknowledged.py --dump FILE ANSWERS…   in what `hackbrain dump` printed
acknowledged.py --agent URL ANSWERS…   in what an agent serves

ANSWERS hold a line for each submission: the answer's body, a space, its status. Prints how many were found."""
import hashlib
import http.client
import json
import sys
import urllib.parse


def answers(paths):
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                body, _, status = line.rstrip("\n").rpartition(" ")
                if status == "200":
                    try:
                        yield json.loads(body)
                    except ValueError:
                        # The agent ended in the middle of its answer: nobody could have read it.
                        continue


def in_dump(path):
    events = {}
    with open(path, "rb") as lines:
        for line in lines:
            event = json.loads(line)
            events[event["seq"]] = (event.get("job_id"), hashlib.sha256(line.rstrip(b"\n")).hexdigest())
    return lambda answer: events.get(answer["seq"])


def in_agent(url):
    connection = http.client.HTTPConnection(urllib.parse.urlparse(url).netloc, timeout=60)

    def find(answer):
        connection.request("GET", f"/api/jobs/{answer['job_id']}/trace")
        reply = connection.getresponse()
        first = reply.read().split(b"\n")[0]
        if reply.status != 200:
            return reply.status
        event = json.loads(first)
        return event["job_id"], hashlib.sha256(first).hexdigest()

    return find


def main(kind, where, *paths):
    find = {"--dump": in_dump, "--agent": in_agent}[kind](where)
    count, lacking = 0, 0
    for answer in answers(paths):
        count += 1
        found = find(answer)
        if found != (answer["job_id"], answer["hash"]):
            lacking += 1
            print(f"acknowledged {answer}, found {found}", file=sys.stderr)
    print(f"{count} acknowledged, {lacking} lacking", file=sys.stderr)
    sys.exit(1 if lacking or not count else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
