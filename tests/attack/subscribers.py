"""Subscribers to the event stream, some of which never read, while jobs are submitted at a pace."""
import json
import multiprocessing
import re
import select
import time

import harness
from harness import connect, eventually, get, post, require

EVENT = re.compile(rb"^id: (\d+)$", re.M)
STALLED = 'hackbrain_sse_subscribers_ended_total{cause="stalled"}'
BATCH = 50
PROCESSES = 2
# For the last events to arrive everywhere.
PATIENCE_S = 30


def run(agent, readers, silent, rate, seconds):
    address = agent.address
    after = json.loads(get(address, "/api/ledger/head")[2])["seq"]
    # What is asked for as HTTP/1.0 comes without chunks in between.
    ask = b"GET /api/events?after=%d HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n" % after
    deaf = []
    for n in range(silent):
        client = connect(address, f"127.2.9.{1 + n % 10}", receive_buffer=2048)
        client.sendall(ask)
        deaf.append(client)
    ready, go, results = multiprocessing.Queue(), multiprocessing.Value("L", 0), multiprocessing.Queue()
    workers = [multiprocessing.Process(target=listen, args=(address, ask, readers // PROCESSES, number, after, ready, go, results),
                                       daemon=True) for number in range(PROCESSES)]
    for process in workers:
        process.start()
    for _ in workers:
        ready.get(timeout=PATIENCE_S)
    began, jobs = time.monotonic(), 0
    while jobs < rate * seconds:
        batch = [{"job_id": f"e-{jobs + n}", "image_hash": "none", "command": ["true"]} for n in range(BATCH)]
        status, _, body = post(address, "/api/submit_jobs", json.dumps({"jobs": batch}).encode())
        assert status == 200, (status, body[:200])
        jobs += BATCH
        time.sleep(max(0.0, began + jobs / rate - time.monotonic()))
    took = time.monotonic() - began
    go.value = json.loads(get(address, "/api/ledger/head")[2])["seq"]
    faults, lag = [], 0.0
    for _ in workers:
        bad, late = results.get(timeout=PATIENCE_S * 3)
        faults += bad
        lag = max(lag, late)
    for process in workers:
        process.join()
    # Connected until they are cut.
    cut = eventually("the deaf subscribers are cut", lambda: (n := agent.gained(STALLED)) >= silent and n)
    cut_s = time.monotonic() - began
    for client in deaf:
        client.close()
    assert not faults, f"{len(faults)} subscribers missed something: {faults[:3]}"
    subscribed = agent.gained("hackbrain_sse_subscriptions_total")
    require(subscribed >= readers + silent, f"{subscribed} of {readers + silent} subscribed")
    events = go.value - after
    require(events >= rate * seconds, f"{events} events")
    require(not harness.TIMED or events / took >= 0.9 * rate, f"{events / took:.0f} events/s, not {rate}")
    return (f"{readers} reading and {silent} deaf subscribers, {events} events in {took:.1f} s "
            f"({events / took:.0f}/s): each reader got each once, in order, the last {lag:.1f} s after it was asked for; {cut} deaf "
            f"ones cut by {cut_s:.0f} s")


def listen(address, ask, count, number, after, ready, go, results):
    """Tells which subscribers did not get every event once and in order, and how long the last one took."""
    poll, clients, faults = select.epoll(), {}, []
    for n in range(count):
        client = connect(address, f"127.2.{number + 1}.{1 + n % 4}")
        client.sendall(ask)
        client.setblocking(False)
        clients[client.fileno()] = [client, b"", after]
        poll.register(client.fileno(), select.EPOLLIN)
    ready.put(True)
    told_at, upto = None, None
    while True:
        if upto is None and go.value:
            upto, told_at = go.value, time.monotonic()
        if upto is not None:
            behind = [state[2] for state in clients.values() if state[2] < upto]
            if not behind or time.monotonic() - told_at > PATIENCE_S:
                faults += [f"ended at {reached}, not {upto}" for reached in behind]
                break
        for descriptor, _ in poll.poll(0.1):
            state = clients[descriptor]
            try:
                piece = state[0].recv(1 << 18)
            except BlockingIOError:
                continue
            except OSError:
                piece = b""
            if not piece:
                faults.append(f"closed by the agent at {state[2]}")
                poll.unregister(descriptor)
                del clients[descriptor]
                state[0].close()
                continue
            text, gap, state[1] = (state[1] + piece).rpartition(b"\n\n")
            found = [int(seq) for seq in EVENT.findall(text)] if gap else []
            if found and found != list(range(state[2] + 1, state[2] + 1 + len(found))):
                faults.append(f"after {state[2]} came {found[:5]} to {found[-1]}")
            if found:
                state[2] = found[-1]
    results.put((faults, time.monotonic() - told_at))
    for state in clients.values():
        state[0].close()
