"""An agent that is asked to stop, and an agent that is handed its sockets: the real binary, strangers on every kind of connection.
Standard library only; needs no container engine."""
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("HACKBRAIN_BIN") or str(ROOT / "target/debug/hackbrain")
PATIENCE_S = 60
# The promise is two seconds. A machine that also compiles may take longer; more than this is another fault.
STOP_S = 10


class Case(unittest.TestCase):
    def setUp(self):
        place = tempfile.TemporaryDirectory(prefix="hb-stop-")
        self.addCleanup(place.cleanup)
        self.dir = pathlib.Path(place.name)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HACKBRAIN_")}
        self.environment["DOCKER_HOST"] = f"unix://{self.dir}/none"

    def start(self, *arguments, **options):
        with open(self.dir / "log", "wb") as log:
            command = [BINARY, "serve", "--data", self.dir / "data", *arguments]
            process = subprocess.Popen(list(map(str, command)), stderr=log, stdin=subprocess.DEVNULL,
                                       env=self.environment, **options)

        def end():
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_S)
        self.addCleanup(end)
        return process

    def said(self):
        return (self.dir / "log").read_text()

    def until(self, what, condition):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if result := condition():
                return result
            time.sleep(0.02)
        self.fail(f"not within {PATIENCE_S} s: {what}\n{self.said()}")

    def events(self):
        told = subprocess.run([BINARY, "dump", "--data", self.dir / "data"], capture_output=True, check=True)
        return [json.loads(line) for line in told.stdout.splitlines()]


class StopTest(Case):
    def connect(self, text=b""):
        client = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        self.addCleanup(client.close)
        client.sendall(text)
        return client

    def request(self, connection, method, path, body=None):
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def test_it_stops_soon_whoever_is_connected_and_takes_nothing_back(self):
        agent = self.start("--listen", "127.0.0.1:0")
        listening = self.until("it listens", lambda: re.search(r"listening on http://127.0.0.1:(\d+)", self.said()))
        self.port = int(listening[1])
        kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        self.addCleanup(kept.close)
        self.until("it is ready", lambda: self.request(kept, "GET", "/readyz")[0] == 200)
        manifest = {"job_id": "before", "image_hash": "busybox:latest", "command": ["true"]}
        self.assertEqual(self.request(kept, "POST", "/api/submit_job", manifest)[0], 200)

        get = b"GET %s HTTP/1.1\r\nHost: a.invalid\r\n\r\n".replace(b"a.invalid", b"127.0.0.1")
        streams = [self.connect(get % b"/api/events") for _ in range(20)]
        for stream in streams:
            self.assertTrue(stream.recv(10).startswith(b"HTTP/1.1 2"))
        silent = [self.connect(get % b"/api/events") for _ in range(20)]
        waiting = self.connect(get % b"/api/jobs/before?wait=SEALED&timeout_s=600")
        half_a_head = self.connect(b"GET / HTT")
        half_a_body = self.connect(b"POST /api/submit_job HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                                   b"Content-Length: 100\r\n\r\n{")
        nothing = self.connect()
        self.until("all are served", lambda: self.figure("hackbrain_sse_subscribers") == 40)

        began = time.monotonic()
        agent.send_signal(signal.SIGTERM)
        for stream in streams:
            text = self.read_to_end(stream)
            self.assertIn(b": the agent stops; resume with the last id\n\n", text)
            self.assertTrue(text.endswith(b"0\r\n\r\n"), "the body has its proper end")
        told = self.read_to_end(waiting)
        self.assertTrue(told.startswith(b"HTTP/1.1 200 ") and b'"state":"RECEIVED"' in told, told)
        self.assertEqual(agent.wait(PATIENCE_S), 0, self.said())
        took = time.monotonic() - began
        print(f"stopped in {took:.2f} s")
        self.assertLess(took, STOP_S)
        states = [event["state"] for event in self.events()]
        self.assertEqual(states, ["GENESIS", "NODE_UP", "RECEIVED", "NODE_DOWN"])
        for client in (half_a_head, half_a_body, nothing, *silent):
            self.read_to_end(client)

    def figure(self, name):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])

    def read_to_end(self, client):
        text = b""
        client.settimeout(PATIENCE_S)
        try:
            while piece := client.recv(65536):
                text += piece
        except ConnectionError:
            pass
        return text


class HandedSocketsTest(Case):
    def hand(self, sock, *arguments):
        """Starts the agent as a service manager does, with the socket as descriptor 3."""
        self.environment["LISTEN_FDS"] = "1"
        script = 'LISTEN_PID=$$ exec "$@"'

        def place():
            os.dup2(sock.fileno(), 3)
            os.set_inheritable(3, True)
        with open(self.dir / "log", "wb") as log:
            command = ["sh", "-c", f"export LISTEN_PID; {script}", "sh", BINARY, "serve", "--data", self.dir / "data", *arguments]
            process = subprocess.Popen(list(map(str, command)), stderr=log, stdin=subprocess.DEVNULL, env=self.environment,
                                       close_fds=False, preexec_fn=place)
        self.addCleanup(process.wait, PATIENCE_S)
        self.addCleanup(process.kill)
        return process

    def test_a_socket_that_is_handed_over_takes_the_place_of_the_default_address(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self.hand(server)
            self.until("it listens there", lambda: f"listening on http://127.0.0.1:{port} " in self.said())
            self.assertNotIn(":4005", self.said())
            with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
                client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                self.assertTrue(client.recv(100).startswith(b"HTTP/1.1 200 "))

    def test_one_that_strangers_can_reach_needs_tokens(self):
        with socket.create_server(("0.0.0.0", 0)) as server:
            agent = self.hand(server)
            self.assertEqual(agent.wait(PATIENCE_S), 64, self.said())
            self.assertIn("is not a loopback address", self.said())

    def test_what_does_not_listen_is_refused_and_named(self):
        with socket.socket() as plain:
            agent = self.hand(plain)
            self.assertEqual(agent.wait(PATIENCE_S), 64, self.said())
            self.assertIn("descriptor 3 of the service manager", self.said())


if __name__ == "__main__":
    unittest.main()
