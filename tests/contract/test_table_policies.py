"""History tables under the policies of the docs, on a moto that enforces IAM.

Each command runs with the actions that it is said to need and no others; with one of them removed
it fails and names the action.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
from click.testing import CliRunner
from enforced_iam import document_of
from feast import FeatureStore
from pyarrow import fs
from repos import REGION, write_repo_yaml
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import AccessDeniedError
from feast_dynamo_ext.local import start_moto, stop
from feast_dynamo_ext.parquet.iceberg.snapshots import history
from feast_dynamo_ext.parquet.iceberg.view_table import handle_of, source_code

pytestmark = pytest.mark.server


IAM = Path(__file__).parents[2] / "docs" / "snippets" / "iam"
UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
TABLE = "shop.orders"

LIST = {"s3:ListBucket my-features", "s3:GetObject registry.db"}
READ = LIST | {"s3:GetObject tables/*", "glue:GetTable"}
APPEND = READ | {"s3:PutObject tables/*", "glue:GetDatabase", "glue:UpdateTable"}
HISTORY, DELETE = "s3:GetObject history/*", "s3:DeleteObject tables/*"
CREATE = LIST | {
    *(HISTORY, "s3:GetObject tables/*", "s3:PutObject tables/*"),
    *("glue:GetDatabase", "glue:CreateDatabase", "glue:CreateTable"),
}
UNSEEN = {DELETE, "s3:AbortMultipartUpload tables/*"}
"""Of appends: what removes files of a write that failed."""


def rows(*values: float, key: int = 1, day: int = 0) -> pd.DataFrame:
    moments = [START + dt.timedelta(days=day, hours=hour) for hour in range(len(values))]
    return pd.DataFrame({"cid": key, "event_timestamp": moments, "total": values})


class Repo:
    """A repo whose registry, history and tables are on S3, and a job with few rights."""

    def __init__(self, folder, keys, monkeypatch):
        self.folder, self._keys, self._environment = folder, keys, monkeypatch

    @property
    def store(self) -> FeatureStore:
        return FeatureStore(str(self.folder))

    @property
    def handle(self):
        store = self.store
        return handle_of(store.get_feature_view("orders"), store.config, "orders")

    def act_as(self, user: str) -> None:
        self._environment.setattr(boto3, "DEFAULT_SESSION", None)
        self._environment.setenv("AWS_ACCESS_KEY_ID", self._keys[user]["AccessKeyId"])
        self._environment.setenv("AWS_SECRET_ACCESS_KEY", self._keys[user]["SecretAccessKey"])

    def allow(self, actions: set[str]) -> None:
        """Let the job do these and nothing else, and act as it."""
        self.act_as("owner")
        boto3.client("iam").put_user_policy(
            UserName="job", PolicyName="p", PolicyDocument=document_of(actions)
        )
        self.act_as("job")

    def files(self) -> set[str]:
        """What is below tables/."""
        self.act_as("owner")
        pages = boto3.client("s3").get_paginator("list_objects_v2")
        found = pages.paginate(Bucket="my-features", Prefix="tables/")
        return {entry["Key"] for page in found for entry in page.get("Contents", [])}

    def run(self, *arguments: str) -> None:
        """A command; what it says is raised where it fails."""
        command, *others = arguments
        result = CliRunner().invoke(main, ["table", command, "-c", str(self.folder), *others])
        if result.exit_code:
            if not isinstance(result.exception, SystemExit):
                raise result.exception
            (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
            raise CommandError(line)


class CommandError(Exception):
    """A command has failed, with one line."""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    server = start_moto(tmp_path / "moto")
    for name in ("AWS_ENDPOINT_URL", "FEAST_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    iam = boto3.client("iam")
    boto3.client("s3").create_bucket(Bucket="my-features")
    s3 = fs.S3FileSystem(endpoint_override=server.endpoint, region=REGION)
    for number, frame in enumerate([rows(1.0, 2.0), rows(5.0, key=2)]):
        at = f"my-features/history/orders/{number}.parquet"
        pq.write_table(pa.Table.from_pandas(frame), at, filesystem=s3, coerce_timestamps="us")
    folder = tmp_path / "repo"
    folder.mkdir()
    aws = {"region": REGION, "endpoint_url": server.endpoint}
    catalog = {"type": "glue", "warehouse": "s3://my-features/tables"}
    write_repo_yaml(
        folder,
        project="shop",
        registry="s3://my-features/registry.db",
        online=aws,
        offline={**aws, "catalog": catalog},
    )
    source = parquet_files("s3://my-features/history/orders", name="orders_history")
    FeatureStore(str(folder)).apply([CUSTOMER, customer_view(source=source)])
    keys = {}
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    for user in ("owner", "job"):
        iam.create_user(UserName=user)
        document = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
        iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=document)
        keys[user] = iam.create_access_key(UserName=user)["AccessKey"]
    no_request_is_free = {"Content-Type": "application/octet-stream"}
    urllib3.request(
        "POST", f"{server.endpoint}/moto-api/reset-auth", body=b"0", headers=no_request_is_free
    )
    yield Repo(folder, keys, monkeypatch)
    stop(server)


def use_table(repo: Repo) -> None:
    """What `create` prints is pasted and applied, by a person."""
    repo.act_as("owner")
    store = repo.store
    code = source_code(store.get_feature_view("orders").batch_source, TABLE, store.config)
    line, _, expression = code.partition("\n\n")
    names: dict = {}
    exec(line, names)  # noqa: S102 - what a person pastes
    store.apply([CUSTOMER, customer_view(source=eval(expression, names))])  # noqa: S307


def read(repo: Repo) -> None:
    frame = pd.DataFrame({"cid": [1], "event_timestamp": [START + dt.timedelta(days=3)]})
    found = repo.store.get_historical_features(frame, ["orders:total"]).to_df()
    assert list(found["total"]) == [2.0]


def append(repo: Repo) -> None:
    repo.store.write_to_offline_store("orders", rows(9.0, key=3))


def rollback(repo: Repo) -> None:
    """To the version before the last one."""
    repo.act_as("owner")
    before = history(repo.handle)[1].snapshot_id
    repo.act_as("job")
    repo.run("rollback", "orders", str(before))


# Names of a step, what it needs, what it is documented to need, what it does.
STEPS = (
    ("create", CREATE, "history_tables", lambda repo: repo.run("create", "orders")),
    (
        "import",
        APPEND | {HISTORY},
        "history_tables",
        lambda repo: repo.run("import", "orders", "--table", "orders"),
    ),
    ("read", READ, "history_tables_read", read),
    ("append", APPEND, "history_tables_append", append),
    ("append again", APPEND, "history_tables_append", append),
    ("history", READ, "history_tables_read", lambda repo: repo.run("history", "orders")),
    ("optimize", APPEND, "history_tables", lambda repo: repo.run("optimize", "orders")),
    ("tag", APPEND, "history_tables", lambda repo: repo.run("tag", "orders", "now")),
    (
        "untag",
        APPEND,
        "history_tables",
        lambda repo: repo.run("tag", "orders", "now", "--remove"),
    ),
    ("rollback", APPEND, "history_tables", rollback),
    (
        "erase",
        APPEND,
        "history_tables",
        lambda repo: repo.run("erase", "orders", "--key", "cid=3"),
    ),
    (
        "expire",
        APPEND | {DELETE},
        "history_tables",
        lambda repo: repo.run("expire", "orders", "--older-than", "0s"),
    ),
    (
        "drop",
        READ | {"glue:DeleteTable"},
        "history_tables",
        lambda repo: repo.run("drop", "orders", "--yes"),
    ),
)


def documented(name: str) -> set[str]:
    """Actions of a policy, those on S3 with what they are allowed on."""
    found = set()
    for statement in json.loads((IAM / f"{name}.json").read_text())["Statement"]:
        resources = statement["Resource"]
        for action in statement["Action"]:
            if action.startswith("glue:"):
                assert resources == [
                    "arn:aws:glue:eu-west-1:111122223333:catalog",
                    "arn:aws:glue:eu-west-1:111122223333:database/shop",
                    "arn:aws:glue:eu-west-1:111122223333:table/shop/*",
                ]
                found.add(action)
                continue
            places = [resources] if isinstance(resources, str) else resources
            found |= {
                f"{action} {place.removeprefix('arn:aws:s3:::my-features/').split(':')[-1]}"
                for place in places
            }
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_policies_of_the_docs_are_what_the_commands_need():
    for name, unseen in (
        ("history_tables_read", set()),
        ("history_tables_append", UNSEEN),
        ("history_tables", UNSEEN),
    ):
        needed = set().union(*[actions for _, actions, policy, _ in STEPS if policy == name])
        assert documented(name) == needed | unseen


# Feast's registry on S3 leaves its temporary files to the garbage collector.
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_each_command_needs_what_its_policy_allows_and_no_more(repo):
    for name, needed, _, do in STEPS:
        if name == "read":
            use_table(repo)
        before = repo.files()
        # That registry and tables are read is the same for all; files are deleted at the end.
        removed = needed if name == "history" else needed - READ
        for missing in sorted(removed, key=lambda action: (action == DELETE, action)):
            repo.allow((needed | {DELETE}) - {missing})
            with pytest.raises((AccessDeniedError, CommandError)) as refused:
                do(repo)
            assert missing.split(" ")[0] in str(refused.value), (name, missing)
            new = repo.files() - before
            # pyiceberg leaves manifests and metadata of a commit that its catalog refuses.
            data = {path for path in new if path.endswith(".parquet") or "/imported-" in path}
            assert missing == DELETE or not data, (name, missing)
        repo.allow(needed)
        do(repo)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_files_that_may_not_be_deleted_are_left_and_said(repo, caplog):
    use_table(repo)
    repo.act_as("owner")
    repo.run("create", "orders")
    repo.allow(APPEND - {"glue:UpdateTable"})
    with pytest.raises(AccessDeniedError, match="glue:UpdateTable"):
        append(repo)
    assert "1 files of a write that failed are left" in caplog.text
    repo.allow((APPEND | {HISTORY}) - {"glue:UpdateTable"})
    with pytest.raises(CommandError, match="glue:UpdateTable"):
        repo.run("import", "s3://my-features/history/orders", "--into", "orders")
    assert "a list of imported files that does not count is left" in caplog.text
    repo.allow(APPEND | {HISTORY})
    repo.run("import", "s3://my-features/history/orders", "--into", "orders")
    read(repo)
    repo.allow(READ | {"glue:DeleteTable"})
    with pytest.raises(CommandError, match="s3:DeleteObject"):
        repo.run("drop", "orders", "--yes", "--purge")
    repo.act_as("owner")
    assert boto3.client("glue").get_tables(DatabaseName="shop")["TableList"] == []
