"""What is said of the licences of the crates that are linked in. Standard library only; needs cargo."""
import importlib.machinery
import importlib.util
import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts/licences"


def load():
    loader = importlib.machinery.SourceFileLoader("licences", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("licences", loader))
    loader.exec_module(module)
    return module


licences = load()


class LicencesTest(unittest.TestCase):
    def test_the_page_is_current(self):
        done = subprocess.run([SCRIPT, "--check"], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_the_same_crates_are_linked_on_both_machines(self):
        self.assertEqual(*map(licences.linked, licences.TARGETS))

    def test_the_review_names_what_is_linked_in_that_version(self):
        review = (ROOT / "docs/dependencies-review.md").read_text()
        rows = re.findall(r"^\| ([a-z0-9_-]+) \| (\d+\.\d+\.\d+) \|", review, re.MULTILINE)
        self.assertEqual(sorted(rows), licences.linked(licences.TARGETS[0]), "review what has changed, then write it there")

    def test_every_text_names_its_crates_and_is_a_licence(self):
        told = licences.texts()
        for name, version in licences.linked(licences.TARGETS[0]):
            self.assertIn(f"\n{name} {version} (", told)
        for notice in ("Permission is hereby granted, free of charge", "Boost Software License", "Creative Commons"):
            self.assertIn(notice, told)

    def test_a_licence_is_chosen_where_there_is_a_choice_and_a_strange_one_is_refused(self):
        for expression, chosen in (("Apache-2.0 OR MIT", "MIT"), ("MIT/Apache-2.0", "MIT"), ("Apache-2.0", "Apache-2.0"),
                                   ("Apache-2.0 OR BSL-1.0", "BSL-1.0"), ("GPL-3.0-only", None),
                                   ("(MIT OR Apache-2.0) AND Unicode-3.0", None), (None, None)):
            self.assertEqual(licences.choose(expression), chosen, expression)

    def test_every_package_of_ours_says_its_licence_and_the_texts_are_there(self):
        for manifest in ("Cargo.toml", "bench/Cargo.toml", "fuzz/Cargo.toml"):
            self.assertIn('\nlicense = "MIT OR Apache-2.0"\n', (ROOT / manifest).read_text(), manifest)
        for name, first in (("LICENSE-MIT", "MIT License"), ("LICENSE-APACHE", "Apache License")):
            text = (ROOT / name).read_text()
            self.assertEqual(text.strip().splitlines()[0].strip(), first)
            self.assertRegex(text, r"Copyright (\(c\) )?2026 the HackBrain Studio authors\n")


if __name__ == "__main__":
    unittest.main()
