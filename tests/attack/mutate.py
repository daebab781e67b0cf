"""Random mutations of valid requests. Every answer must be well-formed, of a known status, each error with its document."""
import json
import multiprocessing
import random
import socket

from harness import Malformed, check_answers, connect, read_all, request, require

WORKERS = 4
JSON = ("Content-Type", "application/json")


def seeds():
    manifest = json.dumps({"job_id": "m", "image_hash": "none", "command": ["true"], "env": {"A": "b"}}).encode()
    chunked = (b"POST /api/submit_job HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
               b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\n{\"job\r\n6\r\n_id\":1\r\n1\r\n}\r\n0\r\nT: u\r\n\r\n")
    return [
        request("GET", "/healthz"),
        request("GET", "/", [("Accept-Encoding", "gzip"), ("User-Agent", "m/1.0")]),
        request("GET", "/api/jobs?limit=5&phase=waiting", [("Accept", "application/json")]),
        request("GET", "/api/jobs/m%2e1/artifacts/a%20b/%ff", [("Range", "bytes=0-4,7-")]),
        request("GET", "/style.css", [("Range", "bytes=10-20"), ("If-None-Match", "\"x\"")]),
        request("GET", "/api/ledger?from=1&limit=3"),
        request("GET", "/api/node", [("Connection", "keep-alive, close")]),
        request("HEAD", "/api/jobs"),
        request("OPTIONS", "*"),
        request("OPTIONS", "/api/submit_job", [("Origin", "http://127.0.0.1"), ("Access-Control-Request-Method", "POST")]),
        request("POST", "/api/submit_job", [JSON], manifest),
        request("POST", "/api/submit_job", [JSON, ("Expect", "100-continue")], manifest),
        request("POST", "/api/submit_jobs", [JSON], b'{"jobs":[' + manifest + b"]}"),
        request("POST", "/api/jobs/m/cancel", [JSON], b"{}"),
        chunked,
        b"GET http://127.0.0.1/healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        request("GET", "/healthz") + chunked + request("GET", "/api/ledger/head"),
    ]


TOKENS = [b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"%", b"%00", b"%ff", b"..", b"//", b"?", b"&", b"=", b";",
          b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n",
          b"Host: a\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Range: bytes=-1\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n",
          b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"\xff\xfe", b"\xc3\x28", b"[" * 200, b"{\"a\":", b"\"", b"1e999", b"A" * 300]


def mutate(rng, data, others):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:at + rng.choice([1, 2, 5, 20, 1000])]
        elif kind == 2:
            data[at:at] = data[at:at + rng.choice([1, 4, 30, 200])] * rng.choice([1, 1, 2, 20])
        elif kind == 3:
            other = rng.choice(others)
            data[at:] = other[rng.randrange(len(other)):]
        elif kind == 4:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 5 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 6:
            head, gap, body = bytes(data).partition(b"\r\n\r\n")
            first, *fields = head.split(b"\r\n")
            rng.shuffle(fields)
            if fields and rng.random() < 0.5:
                fields.append(rng.choice(fields).swapcase())
            data = bytearray(b"\r\n".join([first, *fields]) + gap + body)
        else:
            del data[at:]
    return bytes(data)


def worker(address, count, seed, number, results):
    rng, valid, told, faults = random.Random(f"{seed}/{number}"), seeds(), {}, []
    for n in range(count):
        data = mutate(rng, rng.choice(valid), valid)
        try:
            # Above what may wait inside (`?wait=` of a job that never ends), which no seed asks for.
            with connect(address, f"127.1.{number + 1}.{1 + n % 250}", timeout=30) as client:
                try:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                statuses = check_answers(read_all(client), may_lack_body=b"HEAD" in data)
        except (Malformed, ValueError, KeyError, TypeError, RecursionError) as error:
            faults.append(f"{data!r}: {type(error).__name__}: {error}")
            statuses = []
        except OSError as error:
            faults.append(f"{data!r}: {type(error).__name__}: {error}")
            statuses = []
        for status in statuses or [0]:
            told[status] = told.get(status, 0) + 1
        if len(faults) > 20:
            break
    results.put((told, faults))


def run(address, count, seed):
    results = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=worker, args=(address, count // WORKERS, seed, number, results), daemon=True)
               for number in range(WORKERS)]
    for process in workers:
        process.start()
    told, faults = {}, []
    for _ in workers:
        some, bad = results.get(timeout=600)
        faults += bad
        for status, number in some.items():
            told[status] = told.get(status, 0) + number
    for process in workers:
        process.join()
    assert not faults, f"seed {seed}: {len(faults)} faults, e.g. {faults[0]}"
    require(sum(told.values()) >= count and told.get(200) and told.get(400), f"told {told}")
    told = ", ".join(f"{number}x {status}" for status, number in sorted(told.items()))
    return f"{count} mutations, seed {seed}: {told} (0: closed without a word)"
