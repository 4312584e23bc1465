"""A proxy in front of DynamoDB that records each request, and passes it on unchanged."""

from __future__ import annotations

import http.client
import http.server
import json
import re
import threading
from typing import Any
from urllib.parse import urlsplit

SCOPE = re.compile(r"Credential=(\w+)/\d{8}/")
SIGNATURE = re.compile(r"Signature=[0-9a-f]{64}")
RECORDED_HEADERS = ("Accept-Encoding", "Authorization", "Content-Type")


class RecordingProxy:
    """A running proxy; a context manager.

    Attributes:
        endpoint: its URL.
    """

    def __init__(self, backend: str) -> None:
        proxy, backend_address = self, urlsplit(backend)
        self._lock = threading.Lock()
        self._requests: list[tuple[str, dict[str, Any]]] = []
        self._headers: dict[str, set[str]] = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                proxy._keep(self.path, self.headers, body)
                backend = http.client.HTTPConnection(
                    backend_address.hostname or "", backend_address.port
                )
                backend.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    backend.putheader(name, value)
                backend.endheaders(body)
                answer = backend.getresponse()
                data = answer.read()
                backend.close()
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args) -> None:
                """Nothing is logged."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> RecordingProxy:
        return self

    def __exit__(self, *args) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _keep(self, path: str, headers: Any, body: bytes) -> None:
        target = headers.get("X-Amz-Target", path)
        sent = {name: headers.get(name, "(none)") for name in RECORDED_HEADERS}
        signed = SCOPE.sub(r"Credential=\1/<day>/", sent["Authorization"])
        sent["Authorization"] = SIGNATURE.sub("Signature=<signature>", signed)
        with self._lock:
            self._requests.append((target, json.loads(body)))
            self._headers.setdefault(target, set()).add(json.dumps(sent, sort_keys=True))

    def take(self, *, in_order: bool) -> list[list[Any]]:
        """The requests since the last call, [target, body]; sorted where their order is free."""
        with self._lock:
            taken, self._requests = self._requests, []
        requests = [[target.removeprefix("DynamoDB_20120810."), body] for target, body in taken]
        if in_order:
            return requests
        return sorted(requests, key=lambda one: json.dumps(one, sort_keys=True))

    def headers(self) -> list[Any]:
        """Each set of headers, and the targets that it was sent with."""
        with self._lock:
            targets: dict[str, list[str]] = {}
            for target, sent in sorted(self._headers.items()):
                for one in sent:
                    targets.setdefault(one, []).append(target)
        return [{**json.loads(one), "targets": named} for one, named in sorted(targets.items())]
