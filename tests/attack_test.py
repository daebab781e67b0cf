"""Attacks of scripts/attack in small: the agent lives, does not panic, keeps below its memory, and gives everything back.

How quickly it answers is for scripts/attack to tell: the machine of a test may be busy with anything."""
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "attack"))
import harness  # noqa: E402
import rows  # noqa: E402

SMALL = ["idle", "idle-many", "kept-many", "slow-headers-4", "full-heads", "slow-bodies", "large-bodies", "json-bombs",
         "slow-reads", "header-300mb", "pipelining", "lengths", "chunks", "truncated", "resets", "strangers", "descriptors",
         "descriptors-none", "event-stream", "mutations", "churn", "unauthorised", "cross-site"]
NEED_GROUPS = ["threads", "threads-busy"]


class Attacks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        harness.raise_descriptor_limit()

    def stands(self, name):
        outcome = rows.run_row(name, small=True)
        self.assertEqual(outcome.faults, [], outcome.note)


def add(name):
    setattr(Attacks, "test_" + name.replace("-", "_"), lambda self: self.stands(name))


for each in SMALL:
    add(each)
if os.geteuid() == 0 and rows.PidsGroup().path.parent.joinpath("cgroup.procs").exists():
    for each in NEED_GROUPS:
        add(each)

if __name__ == "__main__":
    unittest.main()
