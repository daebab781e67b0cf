#!/usr/bin/env python3
"""A long, lossy line between two network namespaces: what goes in at one end comes out at the other, late or never.

link.py NAMESPACE-A ADDRESS-A NAMESPACE-B ADDRESS-B --cut FILE [--delay-ms N] [--jitter-ms N] [--loss PERCENT] [--seed N]

Each namespace gets a device `line` with its address; the kernel's own TCP runs over it, and no netem is needed. While the
file of --cut exists, every packet is lost, in both directions, without a word to either end. Prints `up`. At the line `counts` it tells
how many packets it has carried, lost and cut, as `name=number` words; at another line, or the end of standard input, it ends, and
the devices with it."""
import argparse
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
DEVICE = b"line"
PACKET_BYTES_MAX = 65536
# A line that holds more than this drops what comes, as a router does.
QUEUE_MAX = 1000


def end_in(namespace, address):
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            sys.exit(f"{namespace} cannot be entered: {os.strerror(ctypes.get_errno())}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", DEVICE, IFF_TUN | IFF_NO_PI))
    for command in (["addr", "add", address, "dev", DEVICE.decode()], ["link", "set", DEVICE.decode(), "up"],
                    ["link", "set", "lo", "up"]):
        subprocess.run(["ip", *command], check=True)
    return device


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ends", nargs=4, metavar="NAMESPACE ADDRESS")
    parser.add_argument("--cut", required=True)
    for name, default in (("delay-ms", 0), ("jitter-ms", 0), ("loss", 0), ("seed", 0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    ends = [end_in(*options.ends[:2]), end_in(*options.ends[2:])]
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    under_way, counts, last = [], {"carried": 0, "lost": 0, "cut": 0}, {end: 0.0 for end in ends}
    print("up", flush=True)
    while True:
        wait_s = max(0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([*ends, sys.stdin], [], [], wait_s)
        if sys.stdin in readable:
            if sys.stdin.readline() != "counts\n":
                return
            print(*(f"{name}={count}" for name, count in counts.items()), flush=True)
        is_cut = os.path.exists(options.cut)
        for end in set(readable) & set(ends):
            packet = os.read(end, PACKET_BYTES_MAX)
            if is_cut:
                counts["cut"] += 1
            elif chance.random() * 100 < options.loss or len(under_way) >= QUEUE_MAX:
                counts["lost"] += 1
            else:
                delay_s = max(0, options.delay_ms + chance.uniform(-1, 1) * options.jitter_ms) / 1000
                # In order, as on a line: jitter alone does not overtake.
                last[end] = max(last[end], time.monotonic() + delay_s)
                heapq.heappush(under_way, (last[end], counts["carried"] + counts["lost"], other[end], packet))
                counts["carried"] += 1
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, end, packet = heapq.heappop(under_way)
            if is_cut:
                counts["cut"] += 1
                continue
            try:
                os.write(end, packet)
            except OSError:
                # The device is full: a packet less.
                counts["lost"] += 1


if __name__ == "__main__":
    main()
