"""The real `feast serve` as a process, and a gate between a store and its DynamoDB."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import urllib3
import uvicorn
from feast.feature_server import get_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feast import FeatureStore

BIN = Path(sys.executable).parent
PATIENCE_S = 60
PASSED_ON = {"content-type", "x-amzn-requestid", "x-amz-crc32"}


class Server:
    """A feature server that answers at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = urllib3.PoolManager(maxsize=8, retries=False, timeout=PATIENCE_S)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.request("POST", self.url + path, json=body)
        assert answer.status == 200, (answer.status, answer.data)
        return answer.json() if answer.data else None

    def read(self, users: list[int], features: list[str], key: str = "user_id") -> dict[str, Any]:
        """The values of each feature."""
        answer = self.post(
            "/get-online-features", {"features": features, "entities": {key: users}}
        )
        names = answer["metadata"]["feature_names"]
        found = zip(names, answer["results"], strict=True)
        return {name: one["values"] for name, one in found if name != key}

    def is_healthy(self) -> bool:
        return self._http.request("GET", f"{self.url}/health").status == 200

    def hang_up(self) -> None:
        self._http.clear()


@contextlib.contextmanager
def serving(store: FeatureStore) -> Iterator[Server]:
    """What `feast serve` runs, on uvloop too, in a thread: it starts and stops at once."""
    config = uvicorn.Config(get_app(store), loop="uvloop", access_log=False, log_config=None)
    app = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=app.run, args=([listening],))
        thread.start()
        server = Server(f"http://127.0.0.1:{listening.getsockname()[1]}")
        try:
            yield server
        finally:
            server.hang_up()
            app.should_exit = True
            thread.join()


class FeastServe(Server):
    """A running `feast serve` on a free port of 127.0.0.1; `log` is what it has printed."""

    def __init__(self, repo: Path, *options: str, workers: int = 1) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        super().__init__(f"http://127.0.0.1:{port}")
        self.log: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [BIN / "feast", "serve", "-p", port, "-w", str(workers), "--no-access-log", *options],
            cwd=repo,
            env={**os.environ, "PYTHONWARNINGS": "always::ResourceWarning"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.wait_for("Application startup complete", workers)

    def _read_log(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self.log.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until so many lines of the log have a text in them."""

        def is_there() -> bool:
            return sum(text in line for line in self.log) >= times

        with self._changed:
            assert self._changed.wait_for(lambda: self._ended or is_there(), PATIENCE_S), self.log
            assert is_there(), "".join(self.log)

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes that answer; gunicorn's master is their parent."""
        return psutil.Process(self.process.pid).children()

    def stop(self) -> int:
        """Terminate it as a process manager does; its exit code."""
        self.hang_up()
        self.process.terminate()
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        self.process.stdout.close()
        return code


@dataclass
class Gate:
    """Passes requests on to DynamoDB, and holds them back if asked to.

    Attributes:
        accepted: connections so far.
        open: connections now.
        requests: (number of the connection from 1 on, operation) of each request.
    """

    endpoint: str
    url: str = ""
    accepted: int = 0
    open: int = 0
    requests: list[tuple[int, str]] = field(default_factory=list)
    _held: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def hold(self, operation: str) -> None:
        """From now on requests of an operation wait here."""
        with self._changed:
            self._held.add(operation)
            self.requests.clear()

    def release(self) -> None:
        """Whatever waits here goes on."""
        with self._changed:
            self._held.clear()
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[Gate], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: predicate(self), PATIENCE_S), self

    def wait_for_request(self, operation: str) -> None:
        self.wait_for(lambda gate: operation in [name for _, name in gate.requests])

    def came_in(self, number: int, operation: str) -> None:
        with self._changed:
            self.requests.append((number, operation))
            self._changed.notify_all()
            self._changed.wait_for(lambda: operation not in self._held)

    def opened(self) -> int:
        with self._changed:
            self.accepted += 1
            self.open += 1
            self._changed.notify_all()
            return self.accepted

    def closed(self) -> None:
        with self._changed:
            self.open -= 1
            self._changed.notify_all()


def start_gate(gate: Gate) -> http.server.ThreadingHTTPServer:
    """Start a gate; the caller shuts its server down."""
    there = urlsplit(gate.endpoint).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.number = gate.opened()

        def finish(self) -> None:
            super().finish()
            gate.closed()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            gate.came_in(self.number, self.headers["X-Amz-Target"].rpartition(".")[2])
            with contextlib.closing(http.client.HTTPConnection(there, timeout=PATIENCE_S)) as way:
                way.request("POST", "/", body, dict(self.headers))
                answer = way.getresponse()
                data = answer.read()
            self.send_response_only(answer.status)
            for name in PASSED_ON & {*map(str.lower, answer.headers)}:
                self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args) -> None:
            """Nothing is logged."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    gate.url = f"http://127.0.0.1:{server.server_address[1]}"
    return server
