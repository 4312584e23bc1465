"""Up, down and status of a folder, with real servers or programs that behave like one."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import boto3
import psutil
import pytest

from feast_dynamo_ext.errors import DependencyError, LocalError
from feast_dynamo_ext.local import LocalAws, Server, down, status, up

pytestmark = pytest.mark.server  # they start servers of their own

# Listens like DynamoDB Local, and is as easy to stop.
FAKE_JAVA = f"""#!{sys.executable}
import signal, socket
server = socket.create_server(("127.0.0.1", 0))
print("ServerConnector@1{{HTTP/1.1}}{{127.0.0.1:%d}}" % server.getsockname()[1], flush=True)
signal.pause()
"""


@pytest.fixture
def fake_dynamodb_local(tmp_path, monkeypatch) -> None:
    folder, programs = tmp_path / "ddb", tmp_path / "bin"
    (folder / "DynamoDBLocal_lib").mkdir(parents=True)
    (folder / "DynamoDBLocal.jar").touch()
    programs.mkdir()
    (programs / "java").write_text(FAKE_JAVA)
    (programs / "java").chmod(0o755)
    monkeypatch.setenv("FEAST_DYNAMO_DYNAMODB_LOCAL", str(folder))
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "project"
    down(tmp_path / "project")


def started_in(folder: Path) -> list[int]:
    """Processes whose working folder is that of the servers."""
    own = str(folder / ".feast-dynamo")
    return [one.pid for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == own]


def kill(server: Server) -> None:
    os.kill(server.pid, signal.SIGKILL)
    psutil.Process(server.pid).wait(timeout=10)


def test_the_environment_of_moto_alone() -> None:
    moto = Server("moto", "http://127.0.0.1:4001", 1, 0.0, Path("moto.log"))
    assert LocalAws((moto,)).environment() == {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4001",
        "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:4001",
        "AWS_ENDPOINT_URL_DYNAMODB_STREAMS": "http://127.0.0.1:4001",
        "FEAST_S3_ENDPOINT_URL": "http://127.0.0.1:4001",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def test_the_environment_with_dynamodb_local() -> None:
    moto = Server("moto", "http://127.0.0.1:4001", 1, 0.0, Path("moto.log"))
    dynamodb = Server("dynamodb-local", "http://127.0.0.1:4002", 2, 0.0, Path("d.log"))
    environment = LocalAws((moto, dynamodb)).environment()
    assert environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4001"
    for service in ("DYNAMODB", "DYNAMODB_STREAMS"):
        assert environment[f"AWS_ENDPOINT_URL_{service}"] == "http://127.0.0.1:4002"


def test_up_serves_s3_and_dynamodb(folder: Path, monkeypatch) -> None:
    aws = up(folder, dynamodb_local=False)
    assert [server.name for server in aws.servers] == ["moto"]
    assert aws.died == ()
    assert status(folder) == aws
    for name, value in aws.environment().items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="history")
    assert boto3.client("s3").list_buckets()["Buckets"][0]["Name"] == "history"
    assert boto3.client("dynamodb").list_tables()["TableNames"] == []


def test_down_returns_what_it_stopped(folder: Path) -> None:
    aws = up(folder, dynamodb_local=False)
    assert down(folder) == aws
    assert not aws.alive
    assert status(folder) is None
    assert down(folder) is None
    assert started_in(folder) == []


@pytest.mark.usefixtures("fake_dynamodb_local")
def test_where_one_of_two_died_up_starts_both_afresh(folder: Path) -> None:
    first = up(folder, dynamodb_local=True)
    assert [server.name for server in first.servers] == ["moto", "dynamodb-local"]
    kill(first.servers[0])
    found = status(folder)
    assert [server.alive for server in found.servers] == [False, True]
    second = up(folder, dynamodb_local=True)
    assert second.alive
    assert [(server.name, server.log) for server in second.died] == [
        ("moto", folder / ".feast-dynamo" / "moto.died.log")
    ]
    assert "Running on" in second.died[0].log.read_text()
    assert sorted(started_in(folder)) == sorted(server.pid for server in second.servers)


@pytest.mark.usefixtures("fake_dynamodb_local")
def test_down_tells_the_dead_from_the_stopped(folder: Path) -> None:
    moto, dynamodb = up(folder, dynamodb_local=True).servers
    kill(dynamodb)
    stopped = down(folder)
    assert stopped.servers == (moto,)
    assert [server.name for server in stopped.died] == ["dynamodb-local"]


@pytest.mark.usefixtures("fake_dynamodb_local")
def test_where_moto_does_not_start_dynamodb_local_is_stopped_again(folder: Path) -> None:
    (folder / ".feast-dynamo").mkdir(parents=True)
    # A server runs in its log's folder, whose modules come first: this one stands in for moto.
    (folder / ".feast-dynamo" / "moto.py").write_text("raise SystemExit('no moto today')")
    with pytest.raises(LocalError, match=r"moto ended with exit code 1 .* no moto today"):
        up(folder, dynamodb_local=True)
    assert started_in(folder) == []
    assert status(folder) is None


def test_a_port_that_another_program_has_by_then_is_left_to_it(folder: Path) -> None:
    (first,) = up(folder, dynamodb_local=False).servers
    down(folder)
    port = int(first.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        (second,) = up(folder, dynamodb_local=False).servers
    assert second.endpoint != first.endpoint
    down(folder)
    (third,) = up(folder, dynamodb_local=False).servers
    assert third.endpoint == second.endpoint


def test_where_dynamodb_local_is_missing_nothing_is_started(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(folder))
    with pytest.raises(DependencyError, match="Run: feast-dynamo local install"):
        up(folder, dynamodb_local=True)
    assert started_in(folder) == []
    assert status(folder) is None
