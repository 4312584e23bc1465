"""Servers and repos that tests run on. Servers are real: moto's, and Amazon's DynamoDB Local.

Feast is imported where it is needed: that takes seconds, and one process only hands tests out.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.metadata
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
import pytest
import urllib3
from local_dynamodb import running_local
from programs import ForkServer
from repos import REGION, open_repo_config

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.local import start_moto, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from feast import FeatureStore


def pytest_report_header() -> str:
    """Which Feast the tests see: its private parts are relied on."""
    return f"feast {importlib.metadata.version('feast')}"


SERVERS = frozenset(
    {"moto_endpoint", "strict_aws", "dynamodb_local", "new_dynamodb_local", "dynamodb"}
)
"""Fixtures that start a server process, or choose one that does."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a process of a fixture, so that no test can forget to say so."""
    for item in items:
        if isinstance(item, pytest.Function):
            if SERVERS & set(item.fixturenames):
                item.add_marker(pytest.mark.server)
            if "fork_server" in item.fixturenames:
                item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Backend:
    """A DynamoDB to run contract tests on.

    Attributes:
        name: for test ids.
        endpoint: URL.
        has_tags: whether tables can be tagged there.
    """

    name: str
    endpoint: str
    has_tags: bool

    @property
    def aws(self) -> AwsSettings:
        return AwsSettings(region=REGION, endpoint_url=self.endpoint)


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test credentials, and nothing of the developer's own AWS set-up."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FEAST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("FEAST_USAGE", "False")


@pytest.fixture(scope="session")
def moto_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a running moto server."""
    server = start_moto(tmp_path_factory.mktemp("moto"))
    yield server.endpoint
    stop(server)


@pytest.fixture(scope="session")
def strict_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a moto server that checks credentials and IAM, and knows none: it refuses all."""
    server = start_moto(tmp_path_factory.mktemp("strict-aws"))
    urllib3.request(
        "POST",
        f"{server.endpoint}/moto-api/reset-auth",
        body=b"0",
        headers={"Content-Type": "application/octet-stream"},
    )
    yield server.endpoint
    stop(server)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts programs in processes of their own, with Feast imported."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def dynamodb_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a running DynamoDB Local. Where it cannot run: skipped, but a failure in CI."""
    yield from running_local(tmp_path_factory.mktemp("dynamodb-local"))


@pytest.fixture
def new_dynamodb_local(tmp_path: Path) -> Iterator[str]:
    """As `dynamodb_local`, of one test: indexes of living tables change, see `running_local`."""
    yield from running_local(tmp_path)


@pytest.fixture(params=["moto", pytest.param("dynamodb_local", marks=pytest.mark.dynamodb_local)])
def dynamodb(request: pytest.FixtureRequest) -> Backend:
    """Each DynamoDB in turn; a contract test runs on all of them."""
    if request.param == "moto":
        return Backend("moto", request.getfixturevalue("moto_endpoint"), has_tags=True)
    return Backend("dynamodb_local", request.getfixturevalue("dynamodb_local"), has_tags=False)


@pytest.fixture
def scripted_http() -> Iterator[Callable[..., str]]:
    """Starts an HTTP server that gives each request the next answer of a script.

    An answer is (status, body) or (status, body, headers); a dict as body is sent as JSON; None
    instead of an answer drops the connection. The header `x-test-delay` holds an answer back for
    that many seconds. The `requests` and their `headers` are kept on the function.
    """
    servers = []

    def start(answers: list) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                start.requests.append(self.rfile.read(int(self.headers["Content-Length"] or 0)))
                start.headers.append(self.headers)
                answer = answers.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                status, body, *headers = answer
                data = json.dumps(body).encode() if isinstance(body, dict) else body
                self.send_response(status)
                sent = {"Content-Length": str(len(data)), **(headers[0] if headers else {})}
                held_back = threading.Event()
                held_back.wait(float(sent.pop("x-test-delay", 0)))
                for name, value in sent.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # nobody waits any more
                    self.wfile.write(data)
                self.close_connection = len(data) != int(sent["Content-Length"])

            do_GET = do_PUT = do_POST  # noqa: N815 - as http.server calls them

            def log_message(self, *args) -> None:
                """Nothing is logged."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    start.requests, start.headers = [], []
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def bucket(moto_endpoint: str, request: pytest.FixtureRequest) -> str:
    """A bucket of this test's own on moto."""
    name = f"bucket-{abs(hash(request.node.nodeid)):x}"
    boto3.client("s3", region_name=REGION, endpoint_url=moto_endpoint).create_bucket(Bucket=name)
    return name


@pytest.fixture
def open_store(tmp_path) -> Callable[..., FeatureStore]:
    """Opens a feature store of this test's own, with a local registry."""

    def open_store(project: str = "p", online=None, offline=None, **more) -> FeatureStore:
        from feast import FeatureStore

        config = open_repo_config(
            tmp_path,
            project=project,
            registry={"path": str(tmp_path / "registry.db"), **more.pop("registry", {})},
            online=online,
            offline={"region": REGION, **(offline or {})},
            **more,
        )
        return FeatureStore(config=config)

    return open_store
