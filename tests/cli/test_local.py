"""`feast-dynamo local` as a person runs it: real commands, real servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner

from feast_dynamo_ext import local
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.local import dynamodb_local_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    assert " ".join(hint) == (
        "Point this shell at it, and each other terminal that uses it: "
        'eval "$(feast-dynamo local env)"'
    )
    endpoint, pid = moto[1], int(moto[2])

    running = run("local", "status", cwd=project)
    assert running.returncode == 0
    assert rows(running.stdout)[2][:4] == ["moto", endpoint, str(pid), "running"]

    env = run("local", "env", cwd=project)
    assert env.stdout == (
        f"export AWS_ENDPOINT_URL={endpoint}\n"
        f"export AWS_ENDPOINT_URL_DYNAMODB={endpoint}\n"
        f"export AWS_ENDPOINT_URL_DYNAMODB_STREAMS={endpoint}\n"
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
        "AWS_ENDPOINT_URL_DYNAMODB_STREAMS": moto["endpoint"],
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


GROUPS = [name for name, command in main.commands.items() if hasattr(command, "commands")]
PLAIN = [
    *("endpoint local", "endpoint serve", "endpoint invoke"),
    *("pipeline render", "pipeline prepare"),
]
"""Servers have no answer, and what these others print, or a program of the repo, has one form."""


def every_command() -> Iterator[str]:
    for name, command in main.commands.items():
        yield name
        yield from (f"{name} {child}" for child in getattr(command, "commands", ()))


def test_each_command_explains_itself_with_an_example() -> None:
    names = list(every_command())
    assert names[:3] == ["init", "local", "local up"]
    for name in names:
        shown = CliRunner().invoke(main, [*name.split(), "--help"], prog_name="feast-dynamo")
        assert shown.stdout.startswith(f"Usage: feast-dynamo {name} [OPTIONS]"), name
        assert re.search(rf'^ +(eval "\$\()?feast-dynamo {name}', shown.stdout, re.M), name
        assert ("--json" in shown.stdout) is (name not in (*GROUPS, *PLAIN)), name
        # In the list of its group, in one line.
        assert "..." not in shown.stdout.partition("\nCommands:")[2], name


def test_the_version() -> None:
    shown = CliRunner().invoke(main, ["--version"])
    assert shown.stdout == "feast-dynamo, version 0.1.0\n"


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
    for service in ("DYNAMODB", "DYNAMODB_STREAMS"):
        assert environment[f"AWS_ENDPOINT_URL_{service}"] == dynamodb["endpoint"]
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


# What it says to do is run by tests/contract/test_docs_examples.py.
def test_a_new_repo_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["init", "shop"])
    assert (made.exit_code, made.stderr) == (0, "")
    steps = [line.strip() for line in made.stdout.splitlines() if line.startswith("  ")]
    assert steps == [
        "cd shop", "feast-dynamo local up", 'eval "$(feast-dynamo local env)"', "feast apply",
        "feast-dynamo materialize --all", "python read.py",
        "feast-dynamo training-set build repurchase", "feast-dynamo local down",
    ]  # fmt: skip
    history = pd.read_parquet("shop/history/orders")
    assert len(history) == 9_000
    assert history["event_timestamp"].nunique() == 90
    assert not history.duplicated(["customer_id", "event_timestamp"]).any()
    assert history["orders_7d"].dtype == "int64"
    labels = pd.read_parquet("shop/labels/repurchase.parquet")
    assert labels.groupby("event_timestamp").size().tolist() == [100] * 10
    later = labels.assign(event_timestamp=labels["event_timestamp"] + pd.Timedelta(days=7))
    both = later.merge(history, on=["customer_id", "event_timestamp"])
    assert len(both) == 1_000
    assert ((both["orders_7d"] > 0) == (both["orders_again"] == 1)).all()


REFUSED = "cannot be a project's name. Use letters from a to z, digits, underscores and hyphens"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taken", "taken is there already. Choose another name."),
        ("file/shop", "file/shop cannot be made: Not a directory."),
        ("my shop", f"`my shop` {REFUSED}"),
        ("_shop", f"`_shop` {REFUSED}"),
        # Feast takes it, and DynamoDB refuses its tables.
        ("café", f"`café` {REFUSED}"),
        ("s" * 101, f"`{'s' * 101}` {REFUSED}"),
    ],
)
def test_a_name_that_a_new_repo_cannot_have(tmp_path, monkeypatch, name, message) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["init", name])
    assert (made.exit_code, made.stdout) == (1, "")
    assert made.stderr.startswith(f"error: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_a_new_repo_in_a_folder_whose_name_needs_quotes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["init", "my shops/first", "--json"])
    assert json.loads(made.stdout)["files"] == [
        ".feastignore", ".gitignore", "definitions.py", "feature_store.yaml", "history",
        "history.py", "labels", "read.py", "training_sets",
    ]  # fmt: skip
    assert "\nproject: first\n" in (tmp_path / "my shops/first/feature_store.yaml").read_text()
    text = CliRunner().invoke(main, ["init", "my shops/second"]).stdout
    assert "\n  cd 'my shops/second'\n  feast-dynamo local up\n" in text


ANSWERS_AT_ONCE = [
    (["--help"], 0),
    *(([command, "--help"], 0) for command in main.commands),
    *(
        ([group, command, "--help"], 0)
        for group in GROUPS
        for command in main.commands[group].commands
    ),
    (["init", "my shop"], 1),
    (["docs"], 0),
    (["docs", "quickstart"], 0),
    (["docs", "nosuch"], 1),
    (["local", "status"], 1),
    (["local", "env"], 1),
    (["local", "down"], 0),
    (["materialize", "2026-01-01", "tomorrow"], 2),
    (["materialize", "--all", "--version", "v1"], 2),
    (["materialize", "--all"], 1),
    (["bulk-load", "2026-01-01", "2026-01-02"], 2),
    (["bulk-load", "2026-01-01", "2026-01-02", "--output", "load"], 1),
    (["bulk-load", "2026-01-01", "2026-01-02", "--dry-run"], 1),
    (["init", "shop"], 0),
]


def test_what_needs_no_repo_answers_without_feast(tmp_path) -> None:
    """Feast takes five seconds to import. One process runs all of them."""
    code = (
        "import json, sys\n"
        "from click.testing import CliRunner\n"
        "from feast_dynamo_ext.cli.main import main\n"
        "for arguments, code in json.loads(sys.argv[1]):\n"
        "    done = CliRunner().invoke(main, arguments)\n"
        "    assert done.exit_code == code, (arguments, done)\n"
        "    assert 'feast' not in sys.modules, arguments\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, json.dumps(ANSWERS_AT_ONCE)], cwd=tmp_path, check=True
    )


# Pages


def test_the_pages_that_errors_name_are_there() -> None:
    listed = json.loads(CliRunner().invoke(main, ["docs", "--json"]).stdout)
    assert listed["reference/iam"] == "IAM policies"
    named = set()
    for path in Path(local.__file__).parents[1].rglob("*"):
        if path.suffix in (".py", ".template"):
            named |= set(re.findall(r"feast-dynamo docs ([a-z/-]+)", path.read_text()))
    assert {"configuration", "iam", "quickstart"} <= named
    for page in (*named, "reference/iam", "docs/reference/iam.md", "index"):
        shown = CliRunner().invoke(main, ["docs", page])
        assert shown.exit_code == 0, page
        assert shown.stdout.startswith("# ")
    assert list(listed)[:2] == ["index", "tutorial/quickstart"]


@pytest.mark.parametrize(
    ("page", "meant"),
    [
        ("configration", "`reference/configuration`"),
        ("move", "`how-to/move-from-feast`"),
        ("materiali", "`how-to/materialize` or `explanation/materialization`"),
        ("how-to/precompte", "`how-to/precompute`"),
    ],
)
def test_a_page_that_is_not_there(page, meant) -> None:
    missing = CliRunner().invoke(main, ["docs", page])
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr == (
        f"error: There is no page `{page}`. Did you mean {meant}? `feast-dynamo docs` lists all.\n"
    )


def test_a_page_unlike_any_is_answered_with_what_there_is() -> None:
    missing = CliRunner().invoke(main, ["docs", "nosuch"])
    assert (missing.exit_code, missing.stdout) == (1, "")
    pages, error = missing.stderr.split("\n\n")
    assert f"{pages}\n" == CliRunner().invoke(main, ["docs"]).stdout
    assert error == "error: There is no page `nosuch`. Above are the pages that there are.\n"
