#!/usr/bin/env python3
"""Runs attacks by name, all of ours without one, `slowhttptest` for all of that tool's. A Markdown table on standard output,
progress on standard error. Ends with 1 where one did not hold."""
import argparse
import sys
import time

import harness
import rows


def percent(text):
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError("it is 0 to 100")
    return value


def seconds(text):
    value = float(text)
    if not 0 <= value <= 600:
        raise argparse.ArgumentTypeError("it is 0 to 600")
    return value


def main():
    parser = argparse.ArgumentParser(prog="attack", description="Attacks an agent and tells how it stood.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all of ours without one; `slowhttptest` for that tool's")
    parser.add_argument("--list", action="store_true", help="tells the rows, and ends")
    parser.add_argument("--late", type=percent, default=harness.LATE_PERCENT, metavar="PERCENT",
                        help="how many of the probes of an attack's window may take over 100 ms (default: %(default)g)")
    parser.add_argument("--after", type=seconds, default=harness.AFTER_S, metavar="SECONDS",
                        help="how long after an attack memory, threads and descriptors are told; 0: once threads and descriptors "
                             "are back (default: %(default)g)")
    options = parser.parse_args()
    asked, harness.LATE_PERCENT, harness.AFTER_S = options.rows, options.late, options.after
    if options.list:
        print("\n".join([*rows.ROWS, *rows.TOOL_ROWS]))
        return 0
    names = []
    for name in asked or rows.ROWS:
        names += rows.TOOL_ROWS if name == "slowhttptest" else [name]
    unknown = [name for name in names if name not in rows.ROWS and name not in rows.TOOL_ROWS]
    if unknown:
        harness.say(f"error: no such row: {', '.join(unknown)}; --list tells them")
        return 2
    harness.raise_descriptor_limit()
    print(harness.header(), flush=True)
    failed = 0
    for name in names:
        began = time.monotonic()
        outcome = rows.run_row(name)
        failed += bool(outcome.faults)
        harness.say(f"{name}: {'; '.join(outcome.faults) or 'held'} ({time.monotonic() - began:.0f} s)")
        print(outcome.row(), flush=True)
    harness.say(f"{len(names) - failed} of {len(names)} held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
