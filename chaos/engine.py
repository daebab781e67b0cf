#!/usr/bin/env python3
"""An engine of a script's own, which may be killed and stopped: tests/second_engine.py, told by lines on standard input.

engine.py DIR: `ready HOST` once it answers; then for each line one of kill, stop, start, hang, wake or power, `done` after it
came about. At the line `end`, or the end of the input, the engine and all that is its is removed."""
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
sys.dont_write_bytecode = True
from second_engine import SecondEngine  # noqa: E402


def main(directory):
    # An interrupt ends the script, and thereby the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine = SecondEngine(directory, images=("busybox:latest", "python:3.9-slim"))
    try:
        print("ready", engine.host, flush=True)
        # Line by line: an iterator would read ahead.
        for line in iter(sys.stdin.readline, ""):
            if line == "end\n":
                break
            deed = {"kill": engine.kill, "stop": engine.terminate, "start": engine.start, "power": engine.lose_power,
                    "hang": lambda: engine.process.send_signal(signal.SIGSTOP),
                    "wake": lambda: engine.process.send_signal(signal.SIGCONT)}[line.strip()]
            deed()
            print("done", flush=True)
    finally:
        engine.remove()


if __name__ == "__main__":
    main(*sys.argv[1:])
