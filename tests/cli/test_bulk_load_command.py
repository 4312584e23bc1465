"""`feast-dynamo bulk-load` as a person runs it, against moto."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import NamedTuple

import boto3
import pandas as pd
import pytest
from click.testing import CliRunner
from feast import FeatureStore
from repos import write_repo_yaml
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.cli.main import main

JANUARY = ("2026-01-01", "2026-02-01")


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, cwd) -> Answer:
    """The command in this process."""
    given = ["bulk-load", "-c", str(cwd), *arguments]
    result = CliRunner().invoke(main, given, terminal_width=100)
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def repo(tmp_path, moto_endpoint, monkeypatch):
    """A feature repo with the views `orders` and `visits`, applied on moto."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    project = f"c{uuid.uuid4().hex[:12]}"
    write_repo_yaml(tmp_path, project=project)
    start = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
    views = []
    for name in ("orders", "visits"):
        history = tmp_path / f"{name}.parquet"
        rows = {"cid": [1, 2, 1], "total": [1.0, 2.0, 3.0]}
        times = [start + dt.timedelta(days=day) for day in range(3)]
        pd.DataFrame({**rows, "t": times}).to_parquet(history)
        views.append(customer_view(name, parquet_files(history, "t")))
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply([CUSTOMER, *views])
    return tmp_path


@pytest.fixture
def dynamodb(moto_endpoint):
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=moto_endpoint)
    yield client
    client.close()


def rows_in(dynamodb, table) -> int:
    return sum("s" not in item for item in dynamodb.scan(TableName=table)["Items"])


@pytest.fixture
def project(repo) -> str:
    return (repo / "feature_store.yaml").read_text().split("\n")[0].removeprefix("project: ")


def test_a_dry_run_compares_an_import_and_writing(repo, project):
    result = run(*JANUARY, "--dry-run", "--views", "orders", "--json", cwd=repo)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)["views"]
    assert (found["view"], found["table"]) == ("orders", f"{project}.orders")
    assert (found["items"], found["write_units"], found["table_exists"]) == (2, 2, True)
    assert found["ways"]["materialize"] == {"dollars": 0.000001}
    assert set(found["ways"]) == {"materialize", "import"}
    assert found["recommended"] == "materialize"
    assert found["why"] == "It is small: writing the rows costs <$0.0001 and needs no files."


def test_a_dry_run_for_a_person(repo, project):
    result = run(*JANUARY, "--dry-run", "-v", "orders", cwd=repo)
    assert result.returncode == 0, result.stderr
    assert f"orders: 2 rows, 0.00 GB; table {project}.orders exists." in result.stdout
    assert "Recommended: materialize. It is small" in result.stdout
    assert "Dollars: on demand, us-east-1, November 2024" in result.stdout


def test_all_views_are_loaded_into_empty_tables(fork_server, repo, project, dynamodb, bucket):
    output = ["--output", f"s3://{bucket}/load", "--replace-empty"]
    command = ("feast-dynamo", "bulk-load", *JANUARY, *output, "--json")
    result = fork_server.run(*command, cwd=repo, timeout=240)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["failed"] == {}
    assert [(one["view"], one["way"], one["rows"]) for one in answer["views"]] == [
        ("orders", "import", 2),
        ("visits", "import", 2),
    ]
    assert rows_in(dynamodb, f"{project}.orders") == 2
    assert "orders: import into table" in result.stderr
    assert "COMPLETED, 3 items processed" in result.stderr


def test_a_view_that_fails_does_not_stop_the_others(repo, project, dynamodb, bucket):
    dynamodb.delete_table(TableName=f"{project}.visits")
    result = run(*JANUARY, "--output", f"s3://{bucket}/load", "--way", "import", cwd=repo)
    assert result.returncode == 1
    assert "visits" in result.stdout
    assert result.stderr.splitlines()[-1] == (
        "error: 1 of 2 feature views failed: orders. What is said of each above says what to do."
    )
    assert f"orders: An import makes a new table, but table {project}.orders" in result.stderr


def test_wrong_usage(tmp_path):
    missing = run(*JANUARY, cwd=tmp_path)
    assert missing.returncode == 2
    assert "Give --output s3://bucket/prefix, or --dry-run." in missing.stderr
    backwards = run(*reversed(JANUARY), "--dry-run", cwd=tmp_path)
    assert backwards.returncode == 2
    assert "is after END_TS" in backwards.stderr


def test_bulk_puts_are_gone_and_the_error_says_what_to_do_instead(repo, project, dynamodb, bucket):
    gone = run(*JANUARY, "--output", f"s3://{bucket}/load", "--way", "bulk-put", cwd=repo)
    assert gone.returncode == 2
    assert "Invalid value for '--way': `bulk-put` is gone" in gone.stderr
    assert "is loaded by `feast-dynamo materialize`" in " ".join(gone.stderr.split())
    rate = run(*JANUARY, "--dry-run", "--max-write-units", "5000", cwd=repo)
    assert rate.returncode == 2
    assert "Invalid value for '--max-write-units': it was the rate of bulk puts" in rate.stderr
    assert "--way" not in run("--help", cwd=repo).stdout
    for method in ("import", "auto"):  # what scripts may still say
        dynamodb.delete_table(TableName=f"{project}.orders")
        output = ["--output", f"s3://{bucket}/load", "--way", method]
        result = run(*JANUARY, *output, "-v", "orders", cwd=repo)
        assert result.returncode == 0, result.stderr
        assert rows_in(dynamodb, f"{project}.orders") == 2


def test_a_table_that_exists_is_for_materialize(repo, project, bucket):
    result = run(*JANUARY, "--output", f"s3://{bucket}/load", "-v", "orders", cwd=repo)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: An import makes a new table, but table {project}.orders (feature view `orders`) "
        "is there. If it holds no rows, as after `feast apply`, --replace-empty deletes it first; "
        "else load with `feast materialize`."
    )


def test_files_that_are_not_for_s3_are_refused(repo):
    result = run(*JANUARY, "--output", "load", "-v", "orders", "--replace-empty", cwd=repo)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "error: `load` cannot take the files of a bulk load"
    )
