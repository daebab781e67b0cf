"""The documents against the project: links, anchors, paths, names of tests, commands with their flags, shell blocks, the table
of error codes. Standard library only; needs the debug binary (or HACKBRAIN_BIN) and bash."""
import functools
import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("HACKBRAIN_BIN") or str(ROOT / "target/debug/hackbrain")
# Where a path in backticks may begin. What lies below them is the project's, or is not there.
ROOMS = ("bench", "chaos", "docs", "examples", "fuzz", "scripts", "src", "static", "tests", ".ci")
WORD = r"[A-Za-z0-9_.*<>{}-]+"


def tracked():
    told = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False)
    if told.returncode == 0:
        return told.stdout.decode().splitlines()
    walk = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return [path for path in walk if not re.search(r"(^|/)(target|node_modules|\.git|hackbrain-data)/", path)]


class Document:
    """A Markdown file: its lines outside of code blocks, and the blocks."""

    def __init__(self, name, text):
        self.name, self.lines, self.blocks, self.anchors = name, [], [], set()
        fence, block, seen = None, None, {}
        for number, line in enumerate(text.splitlines(), 1):
            opened = re.match(r"\s*(```+|~~~+)\s*(\S*)", line)
            if fence:
                if opened and line.strip() == fence:
                    self.blocks.append(block)
                    fence = None
                else:
                    block[2].append(line)
            elif opened:
                fence, block = opened[1], (number, opened[2], [])
            else:
                self.lines.append((number, line))
                if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
                    slug = self.slug(heading[1])
                    count = seen.get(slug, 0)
                    seen[slug] = count + 1
                    self.anchors.add(f"{slug}-{count}" if count else slug)
        assert not fence, f"{name}: a code block does not end"

    @staticmethod
    def slug(heading):
        """As GitHub makes an anchor of a heading."""
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")

    def spans(self):
        """(line, text) of what stands in backticks."""
        for number, line in self.lines:
            for _, text in re.findall(r"(`+)(.+?)\1", line):
                yield number, text.strip()

    def links(self):
        for number, line in self.lines:
            for target in re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", re.sub(r"`[^`]*`", "", line)):
                yield number, target


def documents():
    names = [name for name in tracked() if name.endswith(".md") and (ROOT / name).is_file()]
    return [Document(name, (ROOT / name).read_text()) for name in names]


# --- the rules: each gives (place, what is wrong) --------------------------------------------------------------------------

def bad_links(document, root=ROOT):
    place = (root / document.name).parent
    for number, target in document.links():
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file = place / path
        if path and not file.exists():
            yield f"{document.name}:{number}", f"{target}: there is no such file"
            continue
        anchors = Document(path, file.read_text()).anchors if file.suffix == ".md" and path else document.anchors
        if anchor and (not path or file.suffix == ".md") and anchor not in anchors:
            yield f"{document.name}:{number}", f"{target}: there is no such heading"


def paths_in(span):
    """Words of a span that look like files of the project."""
    for word in re.findall(rf"(?:\.\.?/)*{WORD}(?:/{WORD})*/?", span):
        word = word.removeprefix("./").rstrip(".")
        if word.split("/")[0] in ROOMS and "/" in word.rstrip("/") and "<" not in word:
            yield word


def is_announced(line):
    """The contract marks with a ring what this version does not have yet; others say that it is being written."""
    return "○" in line or "being written" in line or re.match(r"\* `hackbrain \w+`: ", line)


def bad_paths(document, root=ROOT):
    announced = {number for number, line in document.lines if is_announced(line)}
    for number, span in document.spans():
        if number in announced:
            continue
        # Routes, paths in a container and the like begin with a slash; a variable's value is somebody else's.
        for word in paths_in(re.sub(r"(?<![\w.])[~$/][^\s]*", "", span)):
            stem = word.replace("{", "[").replace("}", "]")
            if not (list(root.glob(stem.rstrip("/"))) if "*" in stem else (root / word).exists()):
                yield f"{document.name}:{number}", f"{word}: there is no such file"


@functools.cache
def source():
    return "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.rs")) if "tests" not in path.name)


def bad_names(document, root=ROOT):
    """`tests/x.rs`: `name`, `name`: each name stands in that file. `tests/kill_points.rs` (`point`): the code has that point."""
    points = set(re.findall(r'kill_point::reached\("([\w-]+)"\)', source()))
    for number, line in document.lines:
        for names in re.findall(r"`tests/kill_points\.rs` \(((?:`[\w-]+`(?:, )?)+)\)", line):
            for name in set(re.findall(r"`([\w-]+)`", names)) - points:
                yield f"{document.name}:{number}", f"the code has no point {name}"
        for file, names in re.findall(r"`([\w./-]+\.(?:rs|py))`: ((?:`\w+`(?:, | and )?)+)", line):
            if not (root / file).is_file():
                continue
            text = (root / file).read_text()
            for name in re.findall(r"`(\w+)`", names):
                if not re.search(rf"\b(fn|def|class|struct|enum) {name}\b", text):
                    yield f"{document.name}:{number}", f"{file} has no {name}"


@functools.cache
def help_of(*words):
    told = subprocess.run([BINARY, *words, "--help"], capture_output=True, check=True)
    return told.stdout.decode()


def subcommands():
    return re.findall(r"^  ([a-z]+)  ", help_of(), re.M)


def commands_in(document):
    """(line, words) of each call of the binary."""
    announced = set()
    for number, line in document.lines:
        if is_announced(line):
            announced |= set(re.findall(r"hackbrain (\w+)", line)) - set(subcommands())
    for number, line in document.lines:
        for _, span in re.findall(r"(`+)(.+?)\1", line):
            yield from ((number, words) for words in calls(span) if words[0] not in announced)
    for number, kind, lines in document.blocks:
        if kind in ("sh", "bash", "shell"):
            for line in "\n".join(lines).replace("\\\n", " ").splitlines():
                yield from ((number, words) for words in calls(line))


def calls(line):
    for rest in re.findall(r"(?:(?<![\w./-])hackbrain|\"?\$BIN\"?|/usr/local/bin/hackbrain)\s+((?:--)?[a-z][^|;&#)]*)", line):
        words = re.findall(r"--[a-z][a-z-]*|\S+", rest)
        if words:
            yield words


def bad_commands(document):
    for number, words in commands_in(document):
        known = help_of()
        if not words[0].startswith("-"):
            if words[0] not in subcommands():
                yield f"{document.name}:{number}", f"hackbrain {words[0]}: there is no such command"
                continue
            known = help_of(words[0])
        for flag in words:
            if flag.startswith("--") and not re.search(rf"{flag}(?![\w-])", known):
                yield f"{document.name}:{number}", f"hackbrain {words[0]} {flag}: there is no such flag"


def bad_shell(document):
    for number, kind, lines in document.blocks:
        if kind not in ("sh", "bash", "shell"):
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            told = subprocess.run(["bash", "-n", file.name], capture_output=True, check=False)
        if told.returncode or told.stderr:
            yield f"{document.name}:{number}", told.stderr.decode().replace(file.name, "block").strip()


def table(text, heading):
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row] for row in rows]


class Documents(unittest.TestCase):
    def check(self, rule):
        faults = [f"{place}: {fault}" for document in documents() for place, fault in rule(document)]
        self.assertEqual(faults, [], "\n" + "\n".join(faults))

    def test_links_and_anchors_lead_somewhere(self):
        self.check(bad_links)

    def test_files_that_are_named_are_there(self):
        self.check(bad_paths)

    def test_functions_that_are_named_are_in_their_files(self):
        self.check(bad_names)

    def test_commands_and_flags_are_known(self):
        self.check(bad_commands)

    def test_shell_blocks_can_be_read(self):
        self.check(bad_shell)

    def test_every_script_takes_help(self):
        scripts = [name for name in tracked() if re.match(r"(scripts|chaos)/|tests/browser/run$", name)
                   and os.access(ROOT / name, os.X_OK) and (ROOT / name).read_bytes().startswith(b"#!/usr/bin/env bash")]
        self.assertGreater(len(scripts), 20)
        # One that does not look at it would go to work.
        deaf = [name for name in scripts if not re.search("usage_if_asked|--help", (ROOT / name).read_text())]
        self.assertEqual(deaf, [])
        for name in scripts:
            told = subprocess.run([ROOT / name, "--help"], capture_output=True, text=True, check=False, timeout=60)
            self.assertEqual((told.returncode, len(told.stdout) > 40), (0, True), (name, told.stdout, told.stderr))

    def test_every_error_code_has_its_row_and_no_other(self):
        schemas = json.loads((ROOT / "src/http/openapi.json").read_text())["components"]["schemas"]
        codes = schemas["Error"]["properties"]["error"]["properties"]["code"]["enum"]
        rows = table((ROOT / "docs/operations.md").read_text(), "Error codes")
        self.assertEqual(sorted(row[0].strip("`") for row in rows), sorted(codes))
        for code, status, means, do in rows:
            self.assertRegex(status, r"^[45]\d\d(, [45]\d\d)*$", code)
            self.assertTrue(means and do, code)

    def test_the_status_of_an_error_code_is_the_codes(self):
        found = {}
        for status, code in re.findall(r"\b(?:Rejection::new|reject)\(\s*([45]\d\d),\s*\"(\w+)\"", source()):
            found.setdefault(code, set()).add(status)
        self.assertGreater(len(found), 50)
        for code, status, *_ in table((ROOT / "docs/operations.md").read_text(), "Error codes"):
            expected = found.get(code.strip("`"))
            self.assertIn(expected, (None, set(status.split(", "))), code)

    def test_reasons_and_causes_are_those_of_the_code(self):
        text = (ROOT / "src/ledger/event.rs").read_text()
        reasons = re.search(r"One word of a fixed set: (.*?)\.\n", text, re.S)[1]
        rows = table((ROOT / "docs/operations.md").read_text(), "Why a job failed")
        self.assertEqual(sorted(row[0].strip("`") for row in rows), sorted(re.findall(r"`(\w+)`", reasons)))


class Rules(unittest.TestCase):
    """Each rule finds what it is for."""

    def faults(self, rule, text):
        return [fault for _, fault in rule(Document("docs/made-up.md", text))]

    def test_a_broken_link_or_anchor_is_found(self):
        faults = self.faults(bad_links, "[a](gone.md) [b](contract.md#4-http) [c](contract.md#5-http) [d](#me)\n\n# Me\n")
        self.assertEqual(faults, ["gone.md: there is no such file", "contract.md#5-http: there is no such heading"])
        self.assertEqual(self.faults(bad_links, "[a](https://example.org/x.md) `[b](no.md)`\n```\n[c](no.md)\n```\n"), [])

    def test_a_path_that_is_not_there_is_found(self):
        faults = self.faults(bad_paths, "`src/gone.rs` `src/lib.rs` `./scripts/gone --x` `tests/browser/` `src/*.rs` `src/*.go`")
        self.assertEqual(faults, [f"{path}: there is no such file" for path in ("src/gone.rs", "scripts/gone", "src/*.go")])
        self.assertEqual(self.faults(bad_paths, "`/src/x` `$DIR/docs/x` `DATA/seals/x` `target/debug/x`"), [])

    def test_a_test_that_is_not_there_is_found(self):
        text = "`tests/durability.rs`: `no_such_test`, `a_failing_sync_is_told_to_every_waiter_and_shown_to_nobody`"
        self.assertEqual(self.faults(bad_names, text), ["tests/durability.rs has no no_such_test"])
        text = "`tests/kill_points.rs` (`seal-written`, `never-reached`)"
        self.assertEqual(self.faults(bad_names, text), ["the code has no point never-reached"])

    def test_an_unknown_command_or_flag_is_found(self):
        text = "`hackbrain gone` `hackbrain verify --artifacts --gone`\n```sh\n\"$BIN\" serve --data x \\\n  --lost y | z --no\n```\n"
        self.assertEqual(self.faults(bad_commands, text), [
            "hackbrain gone: there is no such command", "hackbrain verify --gone: there is no such flag",
            "hackbrain serve --lost: there is no such flag"])
        self.assertEqual(self.faults(bad_commands, "`hackbrain gone` is being written. `hackbrain gone --x`"), [])

    def test_shell_that_cannot_be_read_is_found(self):
        self.assertEqual(len(self.faults(bad_shell, "```sh\nif true; then\n```\n\n```text\nif\n```\n")), 1)


if __name__ == "__main__":
    unittest.main()
