"""`feast-dynamo capture` under the policies of the docs, on a moto that enforces IAM.

Each command runs with the actions that it is said to need and no others; with one of them removed
it fails and names the action. What DynamoDB itself does for an export, with the rights of who asks
for it, no stand-in does.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from capture_shop import BEGUN, item
from click.testing import CliRunner
from enforced_iam import document_of, enforce, statements
from export_service import Clock, ExportService
from export_writer import ExportedTable
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.types import Float64, Int64, UnixTimestamp
from repos import REGION, write_repo_yaml

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.local import start_moto, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.server

ANY = {"Effect": "Allow", "Action": "*", "Resource": "*"}
EVERYTHING = json.dumps({"Version": "2012-10-17", "Statement": [ANY]})
GONE = 4711
HISTORY, EXPORTS = "history/purchases/*", "history/purchases-exports/*"
"""Where the history lies, with its quarantine and who was erased, and where exports do."""

REGISTRY = {"s3:ListBucket my-features", "s3:GetObject registry.db"}
READ = REGISTRY | {f"s3:GetObject {HISTORY}", "glue:GetTable"}
APPEND = READ | {
    *(f"s3:PutObject {HISTORY}", "glue:UpdateTable"),
    *("glue:GetDatabase", "glue:CreateTable"),
}
TABLE = {"dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive"}
EXPORT = {
    *("dynamodb:ExportTableToPointInTime", "dynamodb:DescribeExport"),
    *("dynamodb:DescribeContinuousBackups", f"s3:GetObject {EXPORTS}"),
}
ONLINE = {
    *("dynamodb:BatchGetItem", "dynamodb:DeleteItem", "dynamodb:GetItem", "dynamodb:PutItem"),
}
DELETE = {f"s3:DeleteObject {place}" for place in (HISTORY, EXPORTS)}
ERASE = APPEND | ONLINE | DELETE | {f"s3:GetObject {EXPORTS}"}

UNSEEN = {
    "export": {f"s3:PutObject {EXPORTS}", f"s3:AbortMultipartUpload {EXPORTS}"},
    # How many items the table has is not counted without; a lease is renewed after ten seconds.
    "erase": {"dynamodb:Query", "dynamodb:UpdateItem"},
}


class Job:
    """A repo on S3 and Glue, and a job with few rights."""

    def __init__(self, folder: Path, keys: Any, environment: Any, service: ExportService):
        self.folder, self.keys, self.environment = folder, keys, environment
        self.service = service

    def act_as(self, user: str) -> None:
        self.environment.setattr(boto3, "DEFAULT_SESSION", None)
        for name in ("AccessKeyId", "SecretAccessKey"):
            variable = "AWS_ACCESS_KEY_ID" if name == "AccessKeyId" else "AWS_SECRET_ACCESS_KEY"
            self.environment.setenv(variable, self.keys[user][name])

    def allow(self, actions: set[str]) -> None:
        self.act_as("owner")
        boto3.client("iam").put_user_policy(
            UserName="job", PolicyName="p", PolicyDocument=document_of(actions)
        )
        of_dynamodb = {each.partition(":")[2] for each in actions if each.startswith("dynamodb:")}
        self.service.allowed = of_dynamodb
        self.act_as("job")

    def run(self, *arguments: str) -> Any:
        command, *others = arguments
        return CliRunner().invoke(main, ["capture", command, "-c", str(self.folder), *others])


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    server = start_moto(tmp_path / "moto")
    monkeypatch.setenv("FEAST_S3_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    iam, keys = boto3.client("iam"), {}
    for user in ("owner", "job"):
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=EVERYTHING)
        keys[user] = iam.create_access_key(UserName=user)["AccessKey"]
    owner = {
        "aws_access_key_id": keys["owner"]["AccessKeyId"],
        "aws_secret_access_key": keys["owner"]["SecretAccessKey"],
    }
    s3, client = boto3.client("s3", **owner), boto3.client("dynamodb", **owner)
    s3.create_bucket(Bucket="my-features")
    client.create_table(
        TableName="purchases",
        KeySchema=[
            {"AttributeName": "customer", "KeyType": "HASH"},
            {"AttributeName": "at", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": key, "AttributeType": "N"} for key in ("customer", "at")
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    arn = client.describe_table(TableName="purchases")["Table"]["TableArn"]
    table = ExportedTable("purchases", REGION, arn.split(":")[4], partitions=2)
    folder = tmp_path / "repo"
    folder.mkdir()
    with ExportService(
        server.endpoint, client, s3, table, ("customer", "at"), Clock(BEGUN), polls=0
    ) as service:
        write_repo_yaml(
            folder,
            project="shop",
            registry="s3://my-features/registry.db",
            online={"region": REGION, "endpoint_url": service.url},
            offline={
                "region": REGION,
                "endpoint_url": server.endpoint,
                "catalog": {"type": "glue", "warehouse": "s3://my-features/tables"},
            },
        )
        made = Job(folder, keys, monkeypatch, service)
        made.act_as("owner")
        apply(folder)
        enforce(server.endpoint)
        yield made
    stop(server)


def apply(folder: Path) -> None:
    source = DynamoDBTableSource(
        name="purchases",
        table="purchases",
        event_time="at",
        event_time_unit="ms",
        history="s3://my-features/history/purchases",
        schema=[
            Field(name="customer", dtype=Int64),
            Field(name="at", dtype=UnixTimestamp),
            Field(name="amount", dtype=Float64),
        ],
    )
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
    view = FeatureView(
        name="last_purchase",
        entities=[customer],
        schema=[Field(name="amount", dtype=Float64), Field(name="customer", dtype=Int64)],
        source=source,
        ttl=dt.timedelta(0),
        tags=ViewSettings(deletes="ignore").tags(),
    )
    FeatureStore(str(folder)).apply([customer, view])


def buy(job: Job) -> None:
    """A purchase that fits, and one that does not, of the one who is to go."""
    job.act_as("owner")
    job.service.put(item(GONE, 1))
    job.service.put({**item(GONE, 2), "amount": {"S": "a lot"}})
    job.service.put(item(9, 1))
    job.service.clock.forward(minutes=1)


def fill(job: Job) -> None:
    """The row of the one who is to go is online."""
    job.act_as("owner")
    store = FeatureStore(str(job.folder))
    store.materialize(BEGUN - dt.timedelta(days=1), BEGUN + dt.timedelta(days=9))


def nothing(_: Job) -> None:
    """As it is."""


ERASE_COMMAND = (
    *("erase", "purchases", "--key", f"customer={GONE}", "--yes", "--settled", "0s"),
    *("--exports", "s3://my-features/history/purchases-exports"),
)
ALL_EXPORTS = "s3://my-features/history/purchases-exports"
# What comes before, the command, what it needs, those of it that are removed in turn.
STEPS = (
    # In the order of its steps: each run ends at the next one.
    (
        buy,
        ("sync", "purchases"),
        APPEND | TABLE | EXPORT,
        (
            *("dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive"),
            *("dynamodb:DescribeContinuousBackups", f"s3:PutObject {HISTORY}", "glue:UpdateTable"),
            *("dynamodb:ExportTableToPointInTime", "dynamodb:DescribeExport"),
            *(f"s3:GetObject {EXPORTS}", "glue:GetDatabase", "glue:CreateTable"),
        ),
    ),
    (nothing, ("status",), READ, sorted(READ)),
    (nothing, ("retry", "purchases"), READ | TABLE, sorted(TABLE)),
    (
        nothing,
        ("convert", "purchases", ALL_EXPORTS),
        READ | TABLE | {f"s3:GetObject {EXPORTS}"},
        (*sorted(TABLE), f"s3:GetObject {EXPORTS}"),
    ),
    (
        buy,
        ("sync", "purchases", "--scan"),
        APPEND | TABLE | {"dynamodb:Scan"},
        (*sorted(TABLE), "dynamodb:Scan", f"s3:PutObject {HISTORY}", "glue:UpdateTable"),
    ),
    (
        fill,
        ERASE_COMMAND,
        ERASE,
        (
            *("glue:GetDatabase", "glue:CreateTable", f"s3:PutObject {HISTORY}"),
            *("glue:UpdateTable", "dynamodb:GetItem", "dynamodb:PutItem"),
            *("dynamodb:BatchGetItem", "dynamodb:DeleteItem"),
            # Of many deletions at once moto does not know where.
            *(f"s3:GetObject {EXPORTS}", "s3:DeleteObject"),
        ),
    ),
)


# Feast's registry on S3 leaves its temporary files to the garbage collector.
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_each_command_needs_what_its_policy_allows_and_no_more(job: Job):
    for before, command, needed, removed in STEPS:
        before(job)
        for missing in removed:
            job.allow({each for each in needed if not each.startswith(missing)})
            result = job.run(*command)
            assert result.exit_code != 0, (command, missing, result.output)
            # Rows are deleted by a client of our own, which names the call.
            _, action = missing.split(" ")[0].split(":")
            assert action in result.output, (missing, result.output[-1_000:])
        job.allow(needed)
        result = job.run(*command)
        assert result.exit_code == 0, (command, result.output)
    job.act_as("owner")
    # Nothing of them is left, by another client.
    left = boto3.client("s3", endpoint_url=job.service.endpoint).list_objects_v2(
        Bucket="my-features", Prefix="history/purchases-exports/"
    )
    assert [each["Key"] for each in left.get("Contents", []) if "data" not in each["Key"]] == []


def documented(name: str) -> set[str]:
    """Actions of a policy, those on S3 with what they are allowed on."""
    found = set()
    for statement in statements(name):
        places = statement["Resource"]
        for action in statement["Action"]:
            if not action.startswith("s3:"):
                found.add(action)
                continue
            for place in [places] if isinstance(places, str) else places:
                within = place.removeprefix("arn:aws:s3:::my-features/").split(":")[-1]
                found.add(f"{action} {within}")
    return found


def test_the_policies_of_the_docs_are_what_the_commands_need():
    # Beside what histories need: see `test_table_policies`.
    assert documented("capture") == TABLE | EXPORT | UNSEEN["export"]
    assert documented("capture_erase") == ERASE | UNSEEN["erase"]
