"""Servers between us and DynamoDB that behave as networks do."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import selectors
import socket
import socketserver
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from certificates import certificate_of_localhost
from fault_proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class TlsServer:
    """A server that answers every request with an empty BatchGetItem answer, over TLS."""

    port: int
    certificate: Path
    context: ssl.SSLContext

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


@pytest.fixture
def tls_server(tmp_path) -> Iterator[TlsServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"Responses": {}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args) -> None:
            """Nothing is logged."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args) -> None:
            """A client that refuses the certificate is what a test may want."""

    certificate, key = certificate_of_localhost(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield TlsServer(server.server_address[1], certificate, context)
    server.shutdown()
    server.server_close()


@dataclass
class RawServer:
    """A server that sends bytes as they are.

    Attributes:
        port: TCP port.
        requests: head and body of each request.
        connections: how many were accepted.
        most_open: how many were open at once.
        open: how many are open.
    """

    port: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: int = 0
    most_open: int = 0
    open: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def raw_http() -> Iterator[Callable[..., RawServer]]:
    """Starts servers whose answer to the n-th request is what a script says.

    An answer is bytes, or a function of the socket that sends some.
    """
    servers = []

    def start(answers: Sequence[bytes | Callable[[socket.socket], None]]) -> RawServer:
        raw, lock = RawServer(), threading.Lock()

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with lock:
                    raw.connections += 1
                    raw.open += 1
                    raw.most_open = max(raw.most_open, raw.open)

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    while head := self.head():
                        (size,) = re.findall(rb"Content-Length: (\d+)", head)
                        with lock:
                            answer = answers[len(raw.requests)]
                            raw.requests.append((head, self.rfile.read(int(size))))
                        if callable(answer):
                            answer(self.connection)
                        else:
                            self.connection.sendall(answer)

            def head(self) -> bytes:
                lines = []
                while (line := self.rfile.readline()) not in (b"", b"\r\n"):
                    lines.append(line)
                return b"".join(lines)

            def finish(self) -> None:
                super().finish()
                with lock:
                    raw.open -= 1

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        raw.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return raw

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass
class ConnectProxy:
    """An HTTP proxy that tunnels; `requests` are the heads of the CONNECTs it was sent."""

    scheme: str = "http"
    port: int = 0
    requests: list[str] = field(default_factory=list)


@pytest.fixture(params=["http", "https"])
def connect_proxy(request, tls_server) -> Iterator[ConnectProxy]:
    proxy = ConnectProxy(request.param)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                head += self.request.recv(4_096)
            proxy.requests.append(head.decode())
            port = int(head.split()[1].rpartition(b":")[2])
            with socket.create_connection(("127.0.0.1", port)) as there:
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                _copy_both_ways(self.request, there)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if proxy.scheme == "https":
        server.socket = tls_server.context.wrap_socket(server.socket, server_side=True)
    proxy.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield proxy
    server.shutdown()
    server.server_close()


def _copy_both_ways(one: socket.socket, other: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            for ready, _ in selector.select():
                data = ready.fileobj.recv(65_536)
                if not data:
                    return
                ready.data.sendall(data)


@pytest.fixture(scope="module")
def fault_proxy(dynamodb_local) -> Iterator[FaultProxy]:
    """A proxy in front of DynamoDB Local that fails as it is told."""
    proxy = FaultProxy(dynamodb_local)
    yield proxy
    proxy.stop()
