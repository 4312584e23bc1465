"""`feast-dynamo compact` on S3 (moto), and the command itself."""

from __future__ import annotations

import json

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from feast import FeatureStore, FeatureView
from repos import REGION, write_repo_yaml
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext import aws
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.compact import targets
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import CompactionConflictError
from feast_dynamo_ext.parquet.compaction import compaction
from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest
from feast_dynamo_ext.parquet.compaction.snapshot import remove_replaced

NOON = pd.Timestamp("2026-01-01T12:00:00Z")


def orders(path: str) -> FeatureView:
    return customer_view(source=parquet_files(path, name="order_files"))


def rows(*pairs) -> pa.Table:
    times = pa.array([NOON] * len(pairs), pa.timestamp("us", "UTC"))
    keys, totals = zip(*pairs, strict=True)
    return pa.table({"cid": list(keys), "event_timestamp": times, "total": list(totals)})


def open_repo(folder, path: str) -> FeatureStore:
    write_repo_yaml(
        folder,
        provider="local",
        online_store={"type": "sqlite", "path": "online.db"},
        offline={"region": REGION, "memory_limit": "1GB"},
    )
    store = FeatureStore(repo_path=str(folder))
    store.apply([CUSTOMER, orders(path)])
    return store


def totals(store) -> list:
    frame = pd.DataFrame({"cid": [1, 2, 3], "event_timestamp": [NOON] * 3})
    job = store.get_historical_features(entity_df=frame, features=["orders:total"])
    return job.to_arrow().column("total").to_pylist()


@pytest.fixture
def s3(moto_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_endpoint)
    return boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)


def keys(s3, bucket: str) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_a_folder_on_s3_is_compacted_twice_and_cleaned(tmp_path, bucket, s3, moto_endpoint):
    settings = AwsSettings(region="us-east-1", endpoint_url=moto_endpoint)
    filesystem, root = aws.filesystem(f"s3://{bucket}/orders", settings)
    pq.write_table(rows((1, 1.0), (2, 2.0)), f"{root}/a.parquet", filesystem=filesystem)
    pq.write_table(rows((1, 1.5)), f"{root}/b.parquet", filesystem=filesystem)
    store = open_repo(tmp_path, f"s3://{bucket}/orders")
    (target,) = targets(store, ["orders"])
    assert (target.keys, target.readers) == (("cid",), ("order_files", "orders"))
    assert totals(store) == [1.5, 2.0, None]

    plan, late = (
        compaction.plan(target, store.config, LayoutRequest(buckets=2)) for _ in range(2)
    )
    assert compaction.run(plan).rows == 3
    before = keys(s3, bucket)
    # The first pointer, then one that is there: If-None-Match, and If-Match.
    with pytest.raises(CompactionConflictError, match="compacted by another run meanwhile"):
        compaction.run(late)
    assert keys(s3, bucket) == before
    assert totals(store) == [1.5, 2.0, None]

    pq.write_table(rows((2, 2.5), (3, 3.0)), f"{root}/0.parquet", filesystem=filesystem)
    assert totals(store) == [1.5, 2.5, 3.0]
    plan, late = (compaction.plan(target, store.config, LayoutRequest()) for _ in range(2))
    assert compaction.run(plan).rows == 5
    with pytest.raises(CompactionConflictError):
        compaction.run(late)
    assert len(remove_replaced(target, store.config, older_than_s=-1)) == 4
    assert totals(store) == [1.5, 2.5, 3.0]
    left = keys(s3, bucket)
    assert [key for key in left if not key.startswith("orders/_feast_dynamo/")] == []
    assert len(left) == 3


def test_the_command_says_what_it_would_do_does_it_and_cleans(tmp_path):
    folder = tmp_path / "history"
    folder.mkdir()
    for number in range(3):
        pq.write_table(rows((number, float(number))), folder / f"{number}.parquet")
    store = open_repo(tmp_path, str(folder))

    def run(*words):
        return CliRunner().invoke(main, ["compact", "-c", str(tmp_path), *words])

    dry = run("--all", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert (
        "order_files: by partition and time (it is small: buckets would be smaller than is worth "
        "a request); 3 of 3 rows are rewritten."
    ) in dry.output
    assert not (folder / "_feast_dynamo").exists()
    done = json.loads(run("orders", "--buckets", "1", "--json").stdout)
    assert [(one["before"]["files"], one["after"]["files"]) for one in done] == [(3, 1)]
    assert done[0]["after"]["rows"] == 3
    assert done[0]["buckets"] == {"columns": ["cid"], "count": 1, "hash": "splitmix64-1"}
    again = run("order_files")
    assert "nothing to do; it is compacted, 1 buckets of cid" in again.output
    kept = run("orders", "--remove-replaced")
    assert kept.output.splitlines()[-1].split() == ["order_files", "0", "0"]
    gone = run("orders", "--remove-replaced", "--older-than", "0s", "--json")
    assert json.loads(gone.stdout)[0]["files"] == 3
    assert totals(store) == [1.0, 2.0, None]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "Name sources or feature views, or pass --all."),
        (["a", "--all"], 2, "Name sources or feature views, or pass --all."),
        (["a", "--buckets", "2", "--by-partition"], 2, "exclude each other"),
        (["a", "--target-size", "many"], 2, "`many` is no size"),
        (["a", "--older-than", "1y"], 2, "`1y` is no age"),
        (["ordrs"], 1, "There is no source or feature view `ordrs`. Did you mean `orders`?"),
    ],
)
def test_wrong_usage(tmp_path, words, code, says):
    open_repo(tmp_path, str(tmp_path / "history"))
    answer = CliRunner().invoke(main, ["compact", "-c", str(tmp_path), *words])
    assert (answer.exit_code, says in answer.output) == (code, True), answer.output
