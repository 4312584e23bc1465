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
from urllib.parse import parse_qs, unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FileSource
from feast.data_format import DeltaFormat
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from pyarrow import fs
from pyiceberg.catalog import load_catalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from repos import repo_config

from feast_dynamo_ext import aws
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import AwsUnavailableError, CredentialsError, SourceReadError
from feast_dynamo_ext.parquet import scan
from feast_dynamo_ext.parquet.source import ParquetSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUPS, GROUP_ROWS = 6, 1_000
ROWS = pa.table({"n": range(GROUPS * GROUP_ROWS)})


@dataclass
class S3Server:
    """A server of one object, whatever its name, or of the files of a folder, by bucket.

    Attributes:
        port: TCP port.
        access_keys: that requests for bytes were signed with, in order.
        names: of the files whose bytes were requested.
        more: keys that are listed beside the files of the folder, and sizes.
    """

    port: int = 0
    access_keys: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    more: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def s3_server() -> Iterator[Callable[..., S3Server]]:
    """Starts servers of a Parquet file of six row groups, or of a folder; over TLS if wished."""
    file = pa.BufferOutputStream()
    pq.write_table(ROWS, file, row_group_size=GROUP_ROWS, compression="none")
    body = file.getvalue().to_pybytes()
    servers = []

    def start(context: Any = None, folder: Path | None = None) -> S3Server:
        s3 = S3Server()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(*self._found())

            def do_GET(self) -> None:
                bucket, _, query = self.path[1:].partition("?")
                if "list-type=2" in query:
                    listed = self._listed(bucket.rstrip("/"), query)
                    self._answer(200, listed)
                    self.wfile.write(listed)
                    return
                s3.access_keys += re.findall(r"Credential=(\w+)/", self.headers["Authorization"])
                s3.names.add(self.path.rpartition("/")[2])
                status, content = self._found()
                wanted = [int(at) for at in re.findall(r"\d+", self.headers.get("Range", ""))]
                if status == 200 and wanted:
                    status, content = 206, content[wanted[0] : wanted[1] + 1]
                self._answer(status, content)
                self.wfile.write(content)

            def _found(self) -> tuple[int, bytes]:
                if folder is None:
                    return 200, body
                file = folder / unquote(self.path[1:].partition("?")[0])
                return (200, file.read_bytes()) if file.is_file() else (404, b"")

            def _listed(self, bucket: str, query: str) -> bytes:
                (prefix,) = parse_qs(query).get("prefix", [""])
                keys = {
                    str(file.relative_to(folder / bucket)): file.stat().st_size
                    for file in sorted((folder / bucket).rglob("*"))
                    if file.is_file()
                } | s3.more
                entries = "".join(
                    f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>&quot;e&quot;</ETag>"
                    "<LastModified>2026-10-21T07:28:00.000Z</LastModified></Contents>"
                    for key, size in keys.items()
                    if key.startswith(prefix)
                )
                return f"<ListBucketResult>{entries}</ListBucketResult>".encode()

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
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


def disk_of_bucket(properties):
    """pyiceberg's files of S3 on a disk, to write a table's files as they are to be served."""
    made = PyArrowFileIO(properties)
    disk = fs.SubTreeFileSystem(properties["folder"], fs.LocalFileSystem())
    made.fs_by_scheme = lambda *_: disk
    return made


def delta_table(folder: Path) -> FileSource:
    """A table with a checkpoint, a commit that it needs no more and one after it."""
    at = str(folder / "bucket" / "orders")
    for number in (1, 2):
        write_deltalake(at, pa.table({"n": [number]}), mode="append")
    DeltaTable(at).create_checkpoint()
    write_deltalake(at, pa.table({"n": [3]}), mode="append")
    return FileSource(path="s3://bucket/orders", name="orders", file_format=DeltaFormat())


def iceberg_table(folder: Path) -> IcebergSource:
    at = {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": "s3://bucket/lake"}
    for name in ("data", "metadata"):
        (folder / "bucket" / "lake" / "shop" / "orders" / name).mkdir(parents=True)
    writer = {"py-io-impl": f"{__name__}.{disk_of_bucket.__name__}", "folder": str(folder)}
    catalog = load_catalog("feast_iceberg", type="sql", **at, **writer)
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.orders", schema=pa.schema({"n": pa.int64()}))
    for number in (1, 2, 3):
        table.append(pa.table({"n": [number]}))
    return IcebergSource(
        name="orders",
        catalog_type="sql",
        endpoint=at["uri"],
        warehouse=at["warehouse"],
        namespace="shop",
        table="orders",
    )


@pytest.fixture(params=[delta_table, iceberg_table])
def table_source(request, tmp_path):
    """A table of three rows whose log is read by a library; its files are in a bucket."""
    folder = tmp_path / "s3"
    folder.mkdir()
    return request.param(folder)


def numbers_of(source: Any, folder: Path, endpoint: str, **offline: str) -> list[int]:
    config = repo_config(folder, region="us-east-1", endpoint_url=endpoint, **offline)
    found = ParquetSource.open(source, config)
    batches = [batch.column("n") for batch in found.scan(["n"])]
    return sorted(pa.chunked_array(batches).to_pylist())


@pytest.mark.slow
def test_tables_are_read_with_the_bundle_of_a_profile(
    table_source, s3_server, tls_server, tmp_path, monkeypatch
):
    config = tmp_path / "config"
    keys = "aws_access_key_id = a\naws_secret_access_key = b\n"
    config.write_text(f"[profile lake]\n{keys}ca_bundle = {tls_server.certificate}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    server = s3_server(tls_server.context, tmp_path / "s3")
    server.more["orders/_delta_log/../../outside"] = 1  # no name of a log
    endpoint = f"https://localhost:{server.port}"
    assert numbers_of(table_source, tmp_path, endpoint, profile="lake") == [1, 2, 3]
    assert "outside" not in server.names
    # Behind a checkpoint no older version is read.
    assert f"{0:020}.json" not in server.names


@pytest.mark.slow
def test_tables_are_read_through_a_proxy(
    table_source, s3_server, tls_server, connect_proxy, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate))
    monkeypatch.setenv("HTTPS_PROXY", f"{connect_proxy.scheme}://localhost:{connect_proxy.port}")
    monkeypatch.setenv("NO_PROXY", "")
    server = s3_server(tls_server.context, tmp_path / "s3")
    endpoint = f"https://localhost:{server.port}"
    assert numbers_of(table_source, tmp_path, endpoint) == [1, 2, 3]
    assert connect_proxy.requests


@pytest.mark.slow
def test_tables_are_read_with_credentials_of_the_moment(
    table_source, s3_server, short_lived, tmp_path
):
    short_lived.write_text(short_lived.read_text().replace("minutes=5", "hours=1"))
    server = s3_server(folder=tmp_path / "s3")
    endpoint = f"http://127.0.0.1:{server.port}"
    assert numbers_of(table_source, tmp_path, endpoint) == [1, 2, 3]
    before = set(server.access_keys)
    assert {key[:3] for key in before} == {"KEY"}
    server.access_keys.clear()
    assert numbers_of(table_source, tmp_path, endpoint) == [1, 2, 3]
    assert before.isdisjoint(server.access_keys)
    short_lived.write_text("raise SystemExit(1)")
    with pytest.raises(CredentialsError, match="credential"):
        numbers_of(table_source, tmp_path, endpoint)


def test_a_spill_folder_that_is_not_there_is_named(s3_server, tmp_path):
    (tmp_path / "s3").mkdir()
    source = delta_table(tmp_path / "s3")
    endpoint = f"http://127.0.0.1:{s3_server(folder=tmp_path / 's3').port}"
    with pytest.raises(SourceReadError, match=r"cannot be kept in /nowhere.*`spill_folder`"):
        numbers_of(source, tmp_path, endpoint, spill_folder="/nowhere")


def test_a_file_that_is_removed_meanwhile_has_changed(
    s3_server, tls_server, connect_proxy, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate))
    monkeypatch.setenv("HTTPS_PROXY", f"{connect_proxy.scheme}://localhost:{connect_proxy.port}")
    monkeypatch.setenv("NO_PROXY", "")
    file = tmp_path / "s3" / "bucket" / "orders" / "a.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"n": [1]}), file)
    server = s3_server(tls_server.context, tmp_path / "s3")
    endpoint = f"https://localhost:{server.port}"
    config = repo_config(tmp_path, region="us-east-1", endpoint_url=endpoint)
    source = ParquetSource.open(FileSource(path="s3://bucket/orders", name="orders"), config)
    file.unlink()
    with pytest.raises(SourceReadError, match=r"a\.parquet changed while it was being read"):
        list(source.scan(["n"]))


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
