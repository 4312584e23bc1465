"""The examples of the offline store's pages run and print what is said, each under its policy."""

from __future__ import annotations

import io
import json
import re
import runpy
from datetime import datetime, timedelta, timezone
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
import yaml
from feast import FeatureStore
from feast.monitoring.monitoring_service import MonitoringService

from feast_dynamo_ext.local import start_moto, stop
from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig

pytestmark = pytest.mark.server  # they start servers of their own

SNIPPETS = Path(__file__).parents[2] / "docs" / "snippets"
OFFLINE = SNIPPETS / "offline"
PAGES = [
    (SNIPPETS.parent / page).read_text()
    for page in (
        "reference/entity-rows.md",
        "explanation/offline-store.md",
        "reference/results.md",
    )
]

# Each user, and the policies that it has.
USERS = {
    "historical": ("historical",),
    "results": ("export", "saved_dataset"),
    "append": ("append",),
    "monitor": ("monitor",),
}
CUSTOMERS = (4, 21, 33)
DAYS = 20
LAST = datetime(2026, 1, 10, 6, tzinfo=timezone.utc)

YAML = """
project: shop
provider: local
registry: {path: "s3://my-features/registry.db"}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""


def outputs() -> list[str]:
    """What each page says its example prints, in the order of PAGES."""
    said = [
        re.findall(r"<!-- /generated -->\n\n```text\n(.*?)^```$", page, re.M | re.S)
        for page in PAGES
    ]
    assert [len(outputs) for outputs in said] == [1, 1, 1]
    return [output for outputs in said for output in outputs]


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def history() -> dict[str, pa.Table]:
    """A row a customer and day at 06:00, and labels of the last four days at noon."""
    utc = pa.timestamp("us", "UTC")
    found = {}
    for day in range(DAYS):
        at = LAST - timedelta(days=day)
        found[f"history/orders/dt={at:%Y-%m-%d}/part-0.parquet"] = pa.table(
            {
                "customer_id": CUSTOMERS,
                "event_timestamp": pa.array([at] * 3, utc),
                "created_timestamp": pa.array([at + timedelta(minutes=10)] * 3, utc),
                "orders_90d": [DAYS - day, 2, 1],
                "spend_90d": [10.0 * (DAYS - day), 20.5, 9.25],
            }
        )
    noons = [LAST + timedelta(hours=6) - timedelta(days=day) for day in (3, 2, 1, 0)]
    found["history/returns/labels.parquet"] = pa.table(
        {
            "customer_id": [4, 21, 33, 4],
            "event_timestamp": pa.array(noons, utc),
            "returned": [0, 1, 0, 1],
        }
    )
    return found


def policy_of(name: str) -> str:
    """A policy of docs/reference/iam.md in the terms that moto enforces."""
    policy = json.loads((SNIPPETS / "iam" / f"{name}.json").read_text())
    bucket, *others = policy["Statement"]
    bucket["Action"].append("s3:HeadBucket")  # AWS has no such action, moto has
    for statement in others:
        if "s3:DeleteObject" in statement["Action"]:  # of several at once: moto asks the bucket
            more = {"Action": "s3:DeleteObject", "Resource": bucket["Resource"]}
            policy["Statement"].append({"Effect": "Allow", **more})
    return json.dumps(policy)


@pytest.fixture
def as_user(tmp_path, monkeypatch):
    """A repo whose history is on a moto that enforces IAM; acts as the user of a policy."""
    server = start_moto(tmp_path / "moto")
    for name in ("AWS_ENDPOINT_URL", "FEAST_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3, iam = boto3.client("s3"), boto3.client("iam")
    s3.create_bucket(Bucket="my-features")
    for key, table in history().items():
        s3.put_object(Bucket="my-features", Key=key, Body=parquet(table))
    block = (OFFLINE / "offline_store.yaml").read_text()
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "feature_repo" / "feature_store.yaml").write_text(YAML + block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    declared = runpy.run_path(str(OFFLINE / "definitions.py"))
    store = FeatureStore("feature_repo")
    store.apply([declared["customer"], declared["orders"], declared["returns"]])
    keys = {}
    for user, policies in USERS.items():
        iam.create_user(UserName=user)
        for name in policies:
            iam.put_user_policy(UserName=user, PolicyName=name, PolicyDocument=policy_of(name))
        keys[user] = iam.create_access_key(UserName=user)["AccessKey"]
    no_request_is_free = {"Content-Type": "application/octet-stream"}
    urllib3.request(
        "POST", f"{server.endpoint}/moto-api/reset-auth", body=b"0", headers=no_request_is_free
    )

    def as_user(name: str) -> None:
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[name]["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[name]["SecretAccessKey"])

    yield as_user
    stop(server)


def without_sizes(text: str) -> str:
    """What `explain` says, but for sizes and columns' widths, which Parquet's writers decide."""
    return re.sub(r" +|-+", " ", re.sub(r"[\d.,]+ [KMG]?B\b", "SIZE", text))


# Feast's registry on S3 leaves its temporary files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_each_example_runs_under_its_policy(as_user, capsys):
    entity_rows, explained, results = outputs()

    as_user("historical")
    runpy.run_path(str(OFFLINE / "entity_rows.py"))
    assert capsys.readouterr().out == entity_rows
    runpy.run_path(str(OFFLINE / "explain.py"))
    assert without_sizes(capsys.readouterr().out) == without_sizes(explained)

    as_user("results")
    runpy.run_path(str(OFFLINE / "results.py"))
    assert capsys.readouterr().out == results

    as_user("append")
    runpy.run_path(str(OFFLINE / "append.py"))

    as_user("monitor")
    service = MonitoringService(FeatureStore("feature_repo"))
    assert service.auto_compute()["computed_feature_views"] == 1

    as_user("historical")
    runpy.run_path(str(OFFLINE / "entity_rows.py"))
    assert capsys.readouterr().out == entity_rows


def test_the_offline_store_block_on_the_page_is_accepted():
    block = yaml.safe_load((OFFLINE / "offline_store.yaml").read_text())["offline_store"]
    config = S3ParquetOfflineStoreConfig(**block)
    assert config.model_dump(include=block.keys()) == block
