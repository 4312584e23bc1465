"""S3 behind a proxy, a private certificate, and with credentials that do not last."""

from __future__ import annotations

import contextlib
import http.server
import re
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from feast_dynamo_ext import aws
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import AwsUnavailableError, CredentialsError
from feast_dynamo_ext.parquet import scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUPS, GROUP_ROWS = 6, 1_000
ROWS = pa.table({"n": range(GROUPS * GROUP_ROWS)})


@dataclass
class S3Server:
    """A server of one object, whatever its name.

    Attributes:
        port: TCP port.
        access_keys: that requests for bytes were signed with, in order.
    """

    port: int = 0
    access_keys: list[str] = field(default_factory=list)


@pytest.fixture
def s3_server() -> Iterator[Callable[..., S3Server]]:
    """Starts servers of a Parquet file of six row groups; with a context, over TLS."""
    file = pa.BufferOutputStream()
    pq.write_table(ROWS, file, row_group_size=GROUP_ROWS, compression="none")
    body = file.getvalue().to_pybytes()
    servers = []

    def start(context: Any = None) -> S3Server:
        s3 = S3Server()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(200, len(body))

            def do_GET(self) -> None:
                s3.access_keys += re.findall(r"Credential=(\w+)/", self.headers["Authorization"])
                first, last = re.findall(r"\d+", self.headers["Range"])
                part = body[int(first) : int(last) + 1]
                self._answer(206, len(part))
                self.wfile.write(part)

            def _answer(self, status: int, size: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(size))
                self.send_header("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT")
                self.send_header("ETag", '"e"')
                self.end_headers()

            def log_message(self, *args) -> None:
                """Nothing is logged."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args) -> None:
                """A client that refuses the certificate is what a test may want."""

        server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        s3.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return s3

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def read(endpoint: str) -> pa.Table:
    """The object's rows, as a source's are read."""
    filesystem, path = aws.filesystem("s3://bucket/a.parquet", AwsSettings("us-east-1", endpoint))
    dataset = ds.FileSystemDataset.from_paths(
        [path], schema=ROWS.schema, format=ds.ParquetFileFormat(), filesystem=filesystem
    )
    with aws.s3_translated("s3://bucket"):
        found = list(scan.batches(dataset, ["n"], nullcontext))
    return pa.Table.from_batches(found)


def test_a_certificate_of_the_configured_bundle_is_trusted(s3_server, tls_server, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate))
    assert read(f"https://localhost:{s3_server(tls_server.context).port}") == ROWS


def test_a_certificate_that_nobody_vouches_for_is_refused(s3_server, tls_server):
    filesystem, path = aws.filesystem(
        "s3://bucket/a",
        AwsSettings("us-east-1", f"https://localhost:{s3_server(tls_server.context).port}"),
    )
    with (
        pytest.raises(AwsUnavailableError, match="SSL peer certificate"),
        aws.s3_translated("s3://bucket/a"),
    ):
        filesystem.open_input_file(path)


def test_files_are_read_through_a_proxy(s3_server, tls_server, connect_proxy, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate))
    proxy = f"{connect_proxy.scheme}://user:pass%20word@localhost:{connect_proxy.port}"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    server = s3_server(tls_server.context)
    assert read(f"https://localhost:{server.port}") == ROWS
    for request in connect_proxy.requests:
        assert request.startswith(f"CONNECT localhost:{server.port} HTTP/1.")
        assert "Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=" in request
    assert connect_proxy.requests


def test_a_host_of_no_proxy_is_reached_without_one(s3_server, tls_server, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert read(f"https://localhost:{s3_server(tls_server.context).port}") == ROWS


@pytest.fixture
def short_lived(tmp_path, monkeypatch) -> Path:
    """A profile whose credentials are about to expire each time: KEY1, KEY2, ...; their script.

    Of the expiry botocore wants ten minutes left, so that it renews at each use.
    """
    script = tmp_path / "credentials.py"
    script.write_text(
        "import datetime as dt, json, pathlib\n"
        "count = pathlib.Path(__file__).with_name('count')\n"
        "number = len(count.read_text()) + 1 if count.exists() else 1\n"
        "count.write_text('x' * number)\n"
        "expiry = dt.datetime.now(dt.timezone.utc) + dt.timedelta(minutes=5)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'KEY{number}', 'SecretAccessKey': 's',\n"
        "    'SessionToken': 't', 'Expiration': expiry.isoformat()}))\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} -S {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return script


def test_a_read_that_outlasts_its_credentials_goes_on_with_new_ones(s3_server, short_lived):
    server = s3_server()
    assert read(f"http://127.0.0.1:{server.port}") == ROWS
    keys = list(dict.fromkeys(server.access_keys))
    assert len(keys) >= GROUPS
    assert keys == sorted(keys, key=lambda key: int(key.removeprefix("KEY")))


def test_credentials_that_cannot_be_renewed_are_an_error_of_theirs(s3_server, short_lived):
    server = s3_server()
    settings = AwsSettings("us-east-1", f"http://127.0.0.1:{server.port}")
    filesystem, path = aws.filesystem("s3://bucket/a", settings)
    short_lived.write_text("raise SystemExit(1)")
    with (
        pytest.raises(CredentialsError, match="credential"),
        contextlib.closing(filesystem.open_input_file(path)),
    ):
        pass
