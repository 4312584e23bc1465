"""`feast-dynamo local` as a person runs it: real commands, real servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pandas as pd
import psutil
import pytest

from feast_dynamo_ext.local import dynamodb_local_folder

pytestmark = pytest.mark.server  # they start servers of their own


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "feast_dynamo_ext.cli.main", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def project(tmp_path):
    yield tmp_path
    assert run("local", "down", cwd=tmp_path).returncode == 0


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "my shop's"
    folder.mkdir()
    yield folder
    assert run("local", "down", cwd=folder).returncode == 0


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    process.wait(timeout=10)


def runs(pid: int) -> bool:
    """Whether a process runs; where nobody reaps orphans, an ended one is left as a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_a_day_with_the_embedded_aws(project: Path) -> None:
    before = run("local", "status", cwd=project)
    assert before.returncode == 1
    assert before.stdout == "The embedded AWS is not running. Start it: feast-dynamo local up\n"

    up = run("local", "up", "--moto", cwd=project)
    assert (up.returncode, up.stderr) == (0, "")
    header, _, moto, _, hint = rows(up.stdout)
    assert header == ["service", "endpoint", "pid", "state", "uptime", "log"]
    assert moto[0] == "moto"
    assert moto[3] == "running"
    assert moto[5] == str(project / ".feast-dynamo" / "moto.log")
    assert " ".join(hint) == 'Point this shell at it: eval "$(feast-dynamo local env)"'
    endpoint, pid = moto[1], int(moto[2])

    running = run("local", "status", cwd=project)
    assert running.returncode == 0
    assert rows(running.stdout)[2][:4] == ["moto", endpoint, str(pid), "running"]

    env = run("local", "env", cwd=project)
    assert env.stdout == (
        f"export AWS_ENDPOINT_URL={endpoint}\n"
        f"export AWS_ENDPOINT_URL_DYNAMODB={endpoint}\n"
        f"export FEAST_S3_ENDPOINT_URL={endpoint}\n"
        "export AWS_ACCESS_KEY_ID=test\n"
        "export AWS_SECRET_ACCESS_KEY=test\n"
        "export AWS_DEFAULT_REGION=us-east-1\n"
        "export AWS_REGION=us-east-1\n"
        "export AWS_EC2_METADATA_DISABLED=true\n"
    )

    again = run("local", "up", cwd=project)
    assert (again.returncode, again.stderr) == (0, "It runs already.\n")
    assert rows(again.stdout)[2][:4] == ["moto", endpoint, str(pid), "running"]

    other = run("local", "up", "--dynamodb-local", cwd=project)
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr == (
        f"error: The embedded AWS of {project} runs already, with another DynamoDB than is "
        f"wanted: moto at {endpoint}. Use it (`feast-dynamo local env` prints its environment), "
        "or stop it first, which forgets what it holds: feast-dynamo local down\n"
    )

    down = run("local", "down", cwd=project)
    assert (down.returncode, down.stdout, down.stderr) == (0, "Stopped moto.\n", "")
    assert not runs(pid)
    down_again = run("local", "down", cwd=project)
    assert (down_again.returncode, down_again.stdout) == (0, "Nothing to stop.\n")

    # Shells that were pointed at it can go on.
    later = run("local", "up", "--moto", cwd=project)
    assert rows(later.stdout)[2][:2] == ["moto", endpoint]


def test_without_java_moto_serves_dynamodb(project: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    up = run("local", "up", "--json", cwd=project)
    assert (up.returncode, up.stderr) == (0, "")
    assert [server["service"] for server in json.loads(up.stdout)["servers"]] == ["moto"]


def test_where_dynamodb_local_cannot_be_installed_up_says_so_and_takes_moto(
    project: Path, monkeypatch
) -> None:
    for name, script in (("java", "exit 0"), ("npm", "echo no such registry >&2; exit 1")):
        (project / name).write_text(f"#!/bin/sh\n{script}\n")
        (project / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{project}:/bin:/usr/bin")
    # An environment without DynamoDB Local: its folder is that of sys.prefix.
    prefix = f"import sys; sys.prefix = {str(project)!r}; "
    code = f"{prefix}from feast_dynamo_ext.cli.main import main; main(['local', 'up', '--json'])"
    up = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert up.returncode == 0
    assert [server["service"] for server in json.loads(up.stdout)["servers"]] == ["moto"]
    first, second = up.stderr.splitlines()
    assert first == "Installing Amazon's DynamoDB Local (56 MB, once) ..."
    assert second.startswith("moto serves DynamoDB, as DynamoDB Local cannot be installed: npm")
    assert "no such registry" in second


def test_a_server_that_died_is_told_and_replaced(project: Path) -> None:
    moto = json.loads(run("local", "up", "--moto", "--json", cwd=project).stdout)["servers"][0]
    kill(moto["pid"])

    status = run("local", "status", cwd=project)
    assert status.returncode == 1
    assert rows(status.stdout)[2] == [
        "moto", moto["endpoint"], str(moto["pid"]), "died", "-", moto["log"],
    ]  # fmt: skip

    env = run("local", "env", cwd=project)
    assert (env.returncode, env.stdout) == (1, "")
    assert env.stderr == (
        f"error: moto (pid {moto['pid']}) has died; its log is {moto['log']}. "
        "Start it again: feast-dynamo local up\n"
    )

    up = run("local", "up", "--moto", "--json", cwd=project)
    assert up.returncode == 0
    kept = project / ".feast-dynamo" / "moto.died.log"
    assert up.stderr == f"moto (pid {moto['pid']}) had died; its log is {kept}\n"
    assert moto["endpoint"] in kept.read_text()
    assert json.loads(up.stdout)["running"] is True
    assert json.loads(up.stdout)["servers"][0]["pid"] != moto["pid"]


def test_down_of_a_server_that_died(project: Path) -> None:
    moto = json.loads(run("local", "up", "--moto", "--json", cwd=project).stdout)["servers"][0]
    kill(moto["pid"])
    down = run("local", "down", cwd=project)
    assert (down.returncode, down.stdout) == (0, "Nothing to stop.\n")
    kept = project / ".feast-dynamo" / "moto.died.log"
    assert down.stderr == f"moto (pid {moto['pid']}) had died; its log is {kept}\n"
    assert run("local", "status", "--json", cwd=project).returncode == 1


def test_json(project: Path) -> None:
    none = run("local", "status", "--json", cwd=project)
    assert (none.returncode, json.loads(none.stdout)) == (1, {"running": False, "servers": []})

    up = json.loads(run("local", "up", "--moto", "--json", cwd=project).stdout)
    moto = up["servers"][0]
    assert moto.keys() == {"service", "endpoint", "pid", "state", "uptime_s", "log"}
    assert (up["running"], moto["service"], moto["state"]) == (True, "moto", "running")
    assert 0 <= moto["uptime_s"] < 60

    assert json.loads(run("local", "env", "--json", cwd=project).stdout) == {
        "AWS_ENDPOINT_URL": moto["endpoint"],
        "AWS_ENDPOINT_URL_DYNAMODB": moto["endpoint"],
        "FEAST_S3_ENDPOINT_URL": moto["endpoint"],
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    assert json.loads(run("local", "down", "--json", cwd=project).stdout) == {"stopped": ["moto"]}
    assert json.loads(run("local", "down", "--json", cwd=project).stdout) == {"stopped": []}


def test_another_folder_whose_name_needs_quotes(shop: Path, tmp_path) -> None:
    up = run("local", "up", "--moto", "--folder", str(shop), cwd=tmp_path)
    assert up.returncode == 0
    evaluated = subprocess.run(
        ["sh", "-c", up.stdout.splitlines()[-1].split(": ", 1)[1] + "; echo $AWS_ENDPOINT_URL"],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert evaluated.stdout.startswith("http://127.0.0.1:")
    assert run("local", "status", cwd=tmp_path).returncode == 1
    assert run("local", "down", "--folder", str(shop), cwd=tmp_path).stdout == "Stopped moto.\n"


def test_errors_are_one_line_and_usage_errors_are_clicks(tmp_path) -> None:
    env = run("local", "env", cwd=tmp_path)
    assert (env.returncode, env.stdout) == (1, "")
    assert env.stderr == (
        "error: The embedded AWS is not running. Start it: feast-dynamo local up\n"
    )
    usage = run("local", "up", "--folder", "no-such-folder", cwd=tmp_path)
    assert usage.returncode == 2
    assert "Directory 'no-such-folder' does not exist" in usage.stderr


@pytest.mark.parametrize("command", ["up", "down", "status", "env", "install"])
def test_each_command_explains_itself(command: str, tmp_path) -> None:
    shown = run("local", command, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"Usage: feast-dynamo local {command} [OPTIONS]\n")
    assert "--json" in shown.stdout


def test_the_version(tmp_path) -> None:
    assert run("--version", cwd=tmp_path).stdout == "feast-dynamo, version 0.1.0\n"


@pytest.mark.dynamodb_local
def test_dynamodb_local_serves_dynamodb_and_moto_the_rest(project: Path, monkeypatch) -> None:
    missing = dynamodb_local_folder() is None or shutil.which("java") is None
    if missing and not os.environ.get("CI"):
        pytest.skip("needs Java and `feast-dynamo local install`")
    up = json.loads(run("local", "up", "--dynamodb-local", "--json", cwd=project).stdout)
    moto, dynamodb = up["servers"]
    assert (moto["service"], dynamodb["service"]) == ("moto", "dynamodb-local")
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for server in (moto, dynamodb)
        for connection in psutil.Process(server["pid"]).net_connections()
    }
    assert addresses == {"127.0.0.1"}

    environment = json.loads(run("local", "env", "--json", cwd=project).stdout)
    assert environment["AWS_ENDPOINT_URL"] == moto["endpoint"]
    assert environment["AWS_ENDPOINT_URL_DYNAMODB"] == dynamodb["endpoint"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("dynamodb").create_table(
        TableName="shop",
        KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    on_moto = boto3.client("dynamodb", endpoint_url=moto["endpoint"])
    assert boto3.client("dynamodb").list_tables()["TableNames"] == ["shop"]
    assert on_moto.list_tables()["TableNames"] == []
    assert boto3.client("s3").list_buckets()["Buckets"] == []

    down = run("local", "down", cwd=project)
    assert down.stdout == "Stopped moto, dynamodb-local.\n"
    assert not runs(moto["pid"])
    assert not runs(dynamodb["pid"])


# A repo to begin with


def test_a_new_repo_runs_at_once(tmp_path, monkeypatch) -> None:
    made = run("init", "shop", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    steps = [line.strip() for line in made.stdout.splitlines() if line.startswith("  ")]
    assert steps == [
        "cd shop", "feast-dynamo local up", 'eval "$(feast-dynamo local env)"', "feast apply",
        "feast-dynamo materialize --all", "python read.py", "python training_set.py",
        "feast-dynamo local down",
    ]  # fmt: skip
    folder = tmp_path / "shop"
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    # As it says, on moto, which every machine has.
    script = "\n".join(["set -e", *steps[1:]]).replace("local up", "local up --moto")
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
    finally:
        assert run("local", "down", cwd=folder).returncode == 0
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "WARNING" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("customer_orders  ")]
    assert line.split()[1:3] == ["9,000", "100"]
    history = pd.read_parquet(folder / "history" / "orders")
    newest = history[history["event_timestamp"] == history["event_timestamp"].max()]
    expected = newest.set_index("customer_id")["orders_7d"]
    now = done.stdout.partition("Now:\n")[2].splitlines()[1:4]
    assert [int(line.split()[1]) for line in now] == [expected[number] for number in (1, 2, 3)]
    splits = [line.split() for line in done.stdout.splitlines()[-6:]]
    rows_of = {cells[0]: cells[1] for cells in splits if len(cells) == 3}
    assert {name: rows_of[name] for name in ("train", "validation", "test")} == {
        "train": "600", "validation": "200", "test": "200",
    }  # fmt: skip
    assert (folder / "training").is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taken", "taken is there already. Choose another name."),
        ("my shop", "`my shop` cannot be a project's name. Use letters, digits, underscores"),
        ("_shop", "`_shop` cannot be a project's name."),
    ],
)
def test_a_name_that_a_new_repo_cannot_have(tmp_path, name, message) -> None:
    (tmp_path / "taken").mkdir()
    made = run("init", name, cwd=tmp_path)
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr.startswith(f"error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# Pages


def test_the_pages_that_errors_name_are_there(tmp_path) -> None:
    listed = json.loads(run("docs", "--json", cwd=tmp_path).stdout)
    assert listed["reference/iam"] == "IAM policies"
    for page in ("configuration", "iam", "reference/iam", "docs/reference/iam.md", "quickstart"):
        shown = run("docs", page, cwd=tmp_path)
        assert shown.returncode == 0
        assert shown.stdout.startswith("# ")
    assert run("docs", "index", cwd=tmp_path).stdout.startswith("# feast-dynamo-ext")
    missing = run("docs", "configration", cwd=tmp_path)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == (
        "error: There is no page `configration`. Did you mean `reference/configuration`?\n"
    )
