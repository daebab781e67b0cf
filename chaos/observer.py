#!/usr/bin/env python3
"""An observer of the event stream that resumes where it was cut off, and keeps each event once, as the bytes that came.

observer.py --url FILE --out FILE --until FILE [--silence S] [--slow BYTES_PER_S [--slow-for S]]
            [--vanish S] [--seed N]

FILE of --url holds the agent's address, read anew for each connection. The observer ends once FILE of --until holds the last
seq to come, and that came. --silence: a connection that said nothing for so long is given up (30 s). --slow reads no faster,
through a small buffer, for S seconds or always. --vanish drops its connection at random moments, at most S seconds apart, half
of them by a reset. Ends with 1 where an event came twice, or one was left out. The number of its connections goes to
FILE.connections of --out."""
import argparse
import http.client
import os
import random
import socket
import struct
import sys
import time
import urllib.parse

PAUSE_S = 0.1
PIECE_BYTES = 4096


class Observer:
    def __init__(self, options):
        self.options = options
        self.chance = random.Random(options.seed)
        self.last, self.connections = 0, 0
        self.slow_until = time.monotonic() + (options.slow_for if options.slow else 0)
        self.out = open(options.out, "wb", buffering=0)

    def end(self):
        try:
            with open(self.options.until, encoding="ascii") as file:
                return self.last >= int(file.read() or sys.maxsize)
        except FileNotFoundError:
            return False

    def run(self):
        while not self.end():
            try:
                self.follow()
            except (OSError, http.client.HTTPException):
                # The agent or the way to it is gone, for now.
                pass
            time.sleep(PAUSE_S)
        with open(self.options.out + ".connections", "w", encoding="ascii") as file:
            print(self.connections, file=file)
        print(f"observer: {self.last} events over {self.connections} connections", file=sys.stderr)

    def follow(self):
        with open(self.options.url, encoding="ascii") as file:
            place = urllib.parse.urlparse(file.read().strip())
        connection = http.client.HTTPConnection(place.netloc, timeout=self.options.silence)
        plain = socket.socket()
        try:
            if time.monotonic() < self.slow_until:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
            plain.settimeout(self.options.silence)
            plain.connect((place.hostname, place.port))
            connection.sock = plain
            connection.request("GET", f"/api/events?after={self.last}")
            answer = connection.getresponse()
            if answer.status == 409:
                sys.exit(f"observer: the ledger has less than what was shown: {answer.read()}")
            if answer.status != 200:
                return
            self.connections += 1
            self.read(answer, plain)
        finally:
            connection.close()
            plain.close()

    def read(self, answer, plain):
        vanish_at = time.monotonic() + self.chance.uniform(0, self.options.vanish) if self.options.vanish else None
        number, buffer = None, b""
        while not self.end():
            piece = answer.read1(PIECE_BYTES)
            if not piece:
                return
            if time.monotonic() < self.slow_until:
                time.sleep(len(piece) / self.options.slow)
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"id: "):
                    number = int(line[4:])
                elif line.startswith(b"data: ") and number is not None:
                    self.take(number, line[6:])
                elif not line:
                    number = None
            if vanish_at is not None and time.monotonic() > vanish_at:
                if self.chance.random() < 0.5:
                    # Closing sends a reset instead of an end.
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return

    def take(self, number, data):
        if number != self.last + 1:
            sys.exit(f"observer: event {number} after event {self.last}")
        self.out.write(data + b"\n")
        self.last = number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("url", "out", "until"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--silence", type=float, default=30)
    parser.add_argument("--slow", type=float, default=0)
    parser.add_argument("--slow-for", type=float, default=float("inf"))
    parser.add_argument("--vanish", type=float, default=0)
    parser.add_argument("--seed", type=int, default=os.getpid())
    Observer(parser.parse_args()).run()


if __name__ == "__main__":
    main()
