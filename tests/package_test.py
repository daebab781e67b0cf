"""scripts/install, scripts/uninstall and the Debian package, in a small Debian under the real systemd: installed, upgraded while a
job runs, removed, installed again over the ledger that was left, purged. Jobs run on the machine's engine. Standard library only;
needs root."""
import http.client
import os
import pathlib
import shutil
import stat
import subprocess
import tempfile
import threading
import unittest

from service_test import PATIENCE_S, ROOT, Machine, until

UNITS = ("hackbrain.socket", "hackbrain.service")
UNAVAILABLE = 77
BUILD_LIMIT_S = 600
NOBODY = 65534
# What an admin has written into the configuration; no line of what is shipped.
CHANGE = "RUST_LOG=debug\n"


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=BUILD_LIMIT_S,
                          stdin=subprocess.DEVNULL, **options)


class Debian(Machine):
    """A Debian of systemd and little else, with a docker client. The agent's directory is one that the engine sees too."""

    def __init__(self):
        made = run(ROOT / "scripts/debian-root")
        if made.returncode == UNAVAILABLE:
            raise unittest.SkipTest(made.stderr.splitlines()[-1])
        assert made.returncode == 0, made.stderr
        super().__init__(lower=made.stdout.strip())

    def lay(self, root, environment):
        # As an admin would have it with `systemctl edit`: what is installed later has to respect it.
        drop_in = root / "etc/systemd/system/hackbrain.service.d"
        drop_in.mkdir()
        (drop_in / "data.conf").write_text(f"[Service]\nEnvironment=HACKBRAIN_DATA={self.data}\n")
        (root / "usr/local/bin").mkdir(parents=True)
        shutil.copy(shutil.which("docker"), root / "usr/local/bin/docker")
        # What scripts/install needs of a checkout.
        shutil.copytree(ROOT / "scripts", root / "opt/hackbrain/scripts")

    def root(self, path):
        return pathlib.Path(f"/proc/{self.first}/root{path}")

    def states(self, question):
        return [self.run("systemctl", question, unit).stdout.decode().strip() for unit in UNITS]

    def process(self):
        return self.systemctl("show", "--property=MainPID", "--value", "hackbrain.service")

    def start_job(self, job_id, script):
        """In a scratch directory, which is given."""
        status, told = self.request("POST", "/api/submit_job", {
            "job_id": job_id, "image_hash": "busybox:latest", "command": ["sh", "-c", script]})
        assert status == 200, told

    def knock(self, action):
        """Calls without a pause while `action` runs. Gives its result, how many were answered, and what else was met."""
        done, answered, failures = threading.Event(), [], []

        def call():
            while not done.is_set():
                try:
                    answered.append(self.request("GET", "/healthz")[0])
                except (OSError, http.client.HTTPException) as error:
                    failures.append(repr(error))
        caller = threading.Thread(target=call)
        caller.start()
        try:
            result = action()
        finally:
            done.set()
            caller.join()
        return result, len(answered), failures + [status for status in answered if status != 200]


class Lifecycle(unittest.TestCase):
    """What the package and the scripts have in common."""

    def setUp(self):
        self.machine = machine = Debian()
        self.addCleanup(machine.end)
        self.first = machine.dir / "hackbrain"
        # Another version as far as anybody can see: a program runs with bytes behind its end.
        self.second = machine.dir / "shared/hackbrain-second"
        self.second.write_bytes(self.first.read_bytes() + b"second")
        self.second.chmod(0o755)

    def does(self, *command, code=0):
        done = self.machine.run(*command)
        said = (done.stdout + done.stderr).decode()
        self.assertEqual(done.returncode, code, (command, said, self.machine.console()[-3000:]))
        return said

    def check_up(self):
        self.assertEqual(self.machine.states("is-active"), ["active", "active"], self.machine.console()[-3000:])
        self.assertEqual(self.machine.states("is-enabled"), ["enabled", "enabled"])
        self.assertEqual(self.machine.request("GET", "/readyz")[0], 200)

    def check_gone(self, *paths):
        self.assertEqual(self.machine.states("is-active"), ["inactive", "inactive"])
        for path in paths:
            self.assertFalse(self.machine.root(path).exists(), path)

    def check_sealed(self, job_id, output):
        told = self.machine.summary(job_id, f"?wait=SEALED&timeout_s={PATIENCE_S}")
        self.assertEqual((told["state"], told["attempt"]), ("SEALED", 1), (told, self.machine.console()[-3000:]))
        self.assertEqual(self.machine.request("GET", f"/api/jobs/{job_id}/stdout"), (200, output))

    def upgrade(self, action, conf, binary_at):
        """With a sealed job, one that runs, and a configuration that somebody has changed."""
        machine = self.machine
        machine.start_job("kept", "echo kept")
        self.check_sealed("kept", b"kept\n")
        machine.start_job("lives", "echo begun; until [ -e go ]; do sleep 0.1; done; echo done")
        until("it runs", lambda: machine.request("GET", "/api/jobs/lives/stdout")[1] == b"begun\n")
        machine.root(conf).write_text(machine.root(conf).read_text() + CHANGE)
        process = machine.process()
        said, answered, failures = machine.knock(action)
        self.assertEqual(failures, [], f"beside {answered} answers: {said}")
        self.check_up()
        self.assertNotEqual(machine.process(), process)
        self.assertEqual(machine.root(binary_at).read_bytes(), self.second.read_bytes())
        self.assertTrue(machine.root(conf).read_text().endswith(CHANGE))
        self.check_sealed("kept", b"kept\n")

    def let_go(self):
        (self.machine.data / "scratch/lives/go").touch()
        self.check_sealed("lives", b"begun\ndone\n")

    def lay_others_files(self):
        """Somebody's directory, once as it lies and once as the agent would have bound it. Gives its file."""
        self.does("sh", "-ec", "mkdir -p /srv/hackbrain/somebody /var/lib/hackbrain/mnt/hb-ended-1/0 && "
                  "echo precious > /srv/hackbrain/somebody/file && "
                  "mount --bind /srv/hackbrain/somebody /var/lib/hackbrain/mnt/hb-ended-1/0")
        return self.machine.root("/srv/hackbrain/somebody/file")


class PackageTest(Lifecycle):
    def package(self, *arguments, **environment):
        done = run(ROOT / "scripts/package", "--out", self.machine.dir / "shared", *arguments,
                   env={**os.environ, "SOURCE_DATE_EPOCH": "1795000000", **environment})
        self.assertEqual(done.returncode, 0, done.stderr)
        return pathlib.Path(done.stdout.strip())

    def check_package(self, package):
        fields = run("dpkg-deb", "--field", package, "Package", "Version", "Maintainer").stdout
        self.assertRegex(fields, r"^Package: hackbrain\nVersion: [0-9.]+-1\nMaintainer: A Packager <packager@example.org>\n$")
        listed = [line.split(None, 5) for line in run("dpkg-deb", "--contents", package).stdout.splitlines()]
        self.assertEqual({(owner, day, time) for _, owner, _, day, time, _ in listed}, {("root/root", "2026-11-18", "11:06")})
        modes = {path: mode for mode, _, _, _, _, path in listed}
        self.assertEqual({mode for path, mode in modes.items() if path.endswith("/")}, {"drwxr-xr-x"})
        self.assertEqual({path for path, mode in modes.items() if "x" in mode and not path.endswith("/")},
                         {"./usr/bin/hackbrain", "./usr/share/doc/hackbrain/verify.py"})
        doc = "./usr/share/doc/hackbrain/"
        for path in ("copyright", "changelog.gz", "third-party-licences.txt.gz", "rust-library-copyright.html.gz",
                     "glibc-copyright.gz", "README.md", "docs/contract.md"):
            self.assertIn(doc + path, modes)
        self.assertEqual(run("dpkg-deb", "--info", package, "conffiles").stdout, "/etc/hackbrain/environment\n")

    def test_the_package_is_built_alike_twice_and_lives_from_installation_to_purge(self):
        machine = self.machine
        named = {"DEBFULLNAME": "A Packager", "DEBEMAIL": "packager@example.org"}
        first = self.package("--binary", self.first, **named)
        self.check_package(first)
        before = first.read_bytes()
        mask = os.umask(0o077)
        try:
            again = self.package("--binary", self.first, TZ="Asia/Tokyo", LANG="tr_TR.UTF-8", TMPDIR=str(machine.dir), **named)
        finally:
            os.umask(mask)
        self.assertEqual(again, first)
        self.assertEqual(again.read_bytes(), before, "built twice, other bytes")
        second = self.package("--binary", self.second, "--revision", "2")

        self.does("dpkg", "--install", first)
        self.check_up()
        self.assertEqual(stat.S_IMODE(machine.root("/var/lib/hackbrain").stat().st_mode), 0o750)
        self.assertTrue(machine.root("/srv/hackbrain").is_dir())
        self.assertIn("apt-get remove hackbrain", self.does(
            "/opt/hackbrain/scripts/install", "--binary", "/usr/bin/hackbrain", code=1))

        conf = "/etc/hackbrain/environment"
        self.upgrade(lambda: self.does("dpkg", "--install", second), conf, "/usr/bin/hackbrain")
        self.let_go()

        # What the admin has disabled is not enabled by an upgrade, and what he has stopped is not started.
        machine.systemctl("disable", *UNITS)
        self.does("dpkg", "--install", second)
        self.assertEqual(machine.states("is-enabled"), ["disabled", "disabled"])
        machine.systemctl("enable", *UNITS)

        self.does("dpkg", "--remove", "hackbrain")
        self.check_gone("/usr/bin/hackbrain", "/usr/lib/systemd/system/hackbrain.service")
        self.assertTrue(machine.root(conf).read_text().endswith(CHANGE))
        self.assertEqual(run(self.first, "verify", "--data", machine.data).returncode, 0)
        self.does("dpkg", "--install", second)
        self.check_up()
        self.check_sealed("lives", b"begun\ndone\n")

        precious = self.lay_others_files()
        self.does("dpkg", "--purge", "hackbrain")
        self.check_gone("/usr/bin/hackbrain", "/etc/hackbrain", "/var/lib/hackbrain", "/usr/share/doc/hackbrain")
        self.assertEqual(precious.read_text(), "precious\n")
        self.assertEqual(self.does("find", "/etc/systemd/system", "-type", "l", "-name", "hackbrain*"), "")
        self.assertIn("not installed", self.does("dpkg", "--status", "hackbrain", code=1))


class ScriptsTest(Lifecycle):
    def test_the_scripts_install_upgrade_remove_and_purge(self):
        machine, conf = self.machine, "/etc/hackbrain/environment"
        old, new = machine.dir / "shared/hackbrain-first", self.second
        shutil.copy(self.first, old)
        install, uninstall = "/opt/hackbrain/scripts/install", "/opt/hackbrain/scripts/uninstall"

        client = machine.root("/usr/local/bin/docker")
        client.rename(client.with_name("away"))
        self.assertIn("no docker client", self.does(install, "--binary", old, code=1))
        client.with_name("away").rename(client)
        self.assertFalse(machine.root("/etc/hackbrain").exists(), "a refusal changes nothing")

        self.does(install, "--binary", old)
        self.check_up()
        process = machine.process()
        said = self.does(install, "--binary", old)
        self.assertIn("nothing changed", said)
        self.assertNotRegex(said, "(?m)^changed:")
        self.assertEqual(machine.process(), process)

        self.upgrade(lambda: self.does(install, "--binary", new), conf, "/usr/local/bin/hackbrain")
        process = machine.process()
        # The socket's unit too, which cannot be exchanged while the agent runs.
        with open(machine.root("/opt/hackbrain/scripts/hackbrain.socket"), "a", encoding="utf-8") as unit:
            unit.write("# another\n")
        self.assertIn("hackbrain.socket started", self.does(install, "--binary", new))
        self.check_up()
        self.assertNotEqual(machine.process(), process)

        # A container at work keeps the ledger from being purged.
        container = next(name for name in os.listdir(machine.data / "mnt"))
        working = machine.root(f"/var/lib/hackbrain/mnt/{container}")
        working.mkdir(parents=True)
        self.assertIn(f"still run: {container}", self.does(uninstall, "--purge", "--yes", code=1))
        self.check_up()
        working.rmdir()
        self.let_go()

        self.assertIn("kept: /var/lib/hackbrain", self.does(uninstall))
        self.check_gone("/usr/local/bin/hackbrain", *(f"/usr/local/lib/systemd/system/{unit}" for unit in UNITS))
        self.assertEqual(self.does("find", "/etc/systemd/system", "-type", "l", "-name", "hackbrain*"), "")
        self.assertIn("nothing changed", self.does(uninstall))
        self.does(install, "--binary", new)
        self.check_up()
        self.check_sealed("lives", b"begun\ndone\n")

        precious = self.lay_others_files()
        self.assertIn("--purge --yes", self.does(uninstall, "--purge", code=1))
        self.check_up()
        self.does(uninstall, "--purge", "--yes")
        self.check_gone("/usr/local/bin/hackbrain", "/etc/hackbrain", "/var/lib/hackbrain")
        self.assertEqual(precious.read_text(), "precious\n")


class FilesTest(unittest.TestCase):
    """Where nothing is started: below DESTDIR, by nobody."""

    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="hb-package-"))
        self.addCleanup(shutil.rmtree, self.dir)
        shutil.copytree(ROOT / "scripts", self.dir / "source/scripts")
        (self.dir / "root").mkdir()
        shutil.copy(os.environ.get("HACKBRAIN_BIN") or ROOT / "target/debug/hackbrain", self.dir / "hackbrain")
        for path in [self.dir, *self.dir.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)

    def script(self, name, *arguments, destdir=True, before=()):
        environment = {name: value for name, value in os.environ.items() if name != "DESTDIR"}
        if destdir:
            environment["DESTDIR"] = str(self.dir / "root")
        before = before or ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        done = run(*before, self.dir / "source/scripts" / name, *arguments, env=environment)
        return done.returncode, done.stderr

    def files(self):
        return {str(path.relative_to(self.dir / "root")) for path in (self.dir / "root").rglob("*") if path.is_file()}

    def test_files_are_laid_below_destdir_and_taken_away_again(self):
        binary = ("--binary", self.dir / "hackbrain")
        code, said = self.script("install", *binary)
        self.assertEqual(code, 0, said)
        units = {f"usr/local/lib/systemd/system/{unit}" for unit in UNITS}
        self.assertEqual(self.files(), {"usr/local/bin/hackbrain", "etc/hackbrain/environment"} | units)
        (self.dir / "root/etc/hackbrain/environment").write_text("HACKBRAIN_WORKERS=2\n")
        (self.dir / "root/var/lib/hackbrain/ledger").write_text("events")
        code, said = self.script("install", *binary)
        self.assertEqual((code, "nothing changed" in said), (0, True), said)
        self.assertNotRegex(said, "(?m)^changed:")
        (self.dir / "root/usr/local/bin/hackbrain").chmod(0o700)
        code, said = self.script("install", *binary)
        self.assertEqual((code, said.count("changed: "), "\nchanged: /usr/local/bin/hackbrain\n" in said), (0, 1, True), said)

        self.assertEqual(self.script("uninstall")[0], 0)
        kept = {"etc/hackbrain/environment", "var/lib/hackbrain/ledger"}
        self.assertEqual(self.files(), kept)
        self.assertIn("nothing changed", self.script("uninstall")[1])
        code, said = self.script("uninstall", "--purge")
        self.assertEqual((code, self.files()), (1, kept), said)
        (self.dir / "root/etc/hackbrain/tokens").write_text("mine")
        self.assertEqual(self.script("uninstall", "--purge", "--yes")[0], 0)
        self.assertEqual(self.files(), {"etc/hackbrain/tokens"})

    def test_a_refusal_says_what_to_do(self):
        root = ("env",)
        # Whether or not one runs on this machine.
        without_systemd = ("unshare", "--mount", "sh", "-c",
                           '[ ! -d /run/systemd ] || mount -t tmpfs tmpfs /run/systemd; exec "$@"', "sh")
        for name, arguments, destdir, before, words in (
                ("install", ("--binary", "/bin/true"), False, (), "needs root"),
                ("uninstall", (), False, (), "needs root"),
                ("install", ("--binary", "/bin/true"), False, without_systemd, "no systemd runs here"),
                ("install", ("--binary", "/nonexistent"), True, (), "there is no file /nonexistent"),
                ("install", ("--binary", "/bin/true"), True, (), "is not hackbrain"),
                ("install", ("--binary", "/etc/passwd"), True, (), "does not run here"),
                ("install", ("--binary",), True, (), "needs a file"),
                ("install", ("--porpoise",), True, (), "unknown argument: --porpoise"),
                ("uninstall", ("--yes",), True, (), "--yes goes with --purge"),
                ("package", ("--revision", "x"), True, root, "--revision 'x'"),
                ("package", ("--binary", "/nonexistent"), True, root, "set SOURCE_DATE_EPOCH"),
                ("package", ("--out",), True, root, "--out needs a value")):
            with self.subTest(script=name, arguments=arguments):
                code, said = self.script(name, *arguments, destdir=destdir, before=before)
                self.assertEqual((code, words in said), (1, True), said)
                self.assertEqual(self.files(), set())
        for name in ("install", "uninstall", "package", "debian-root"):
            done = run(self.dir / "source/scripts" / name, "--help")
            self.assertEqual((done.returncode, f"scripts/{name}" in done.stdout), (0, True), done.stderr)


if __name__ == "__main__":
    unittest.main()
