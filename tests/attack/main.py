#!/usr/bin/env python3
"""Runs attacks by name, all of ours without one, `slowhttptest` for all of that tool's. A Markdown table on standard output,
progress on standard error. Ends with 1 where one did not hold."""
import sys
import time

import harness
import rows


def main():
    asked = sys.argv[1:]
    if asked == ["--list"]:
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
    print(harness.HEADER, flush=True)
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
