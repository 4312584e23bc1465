"""History tables in moto's Glue and S3: made, filled, read, tended and dropped.

One writer at a time: moto's Glue does not look at versions.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from feast import FeatureStore
from pyarrow import fs
from repos import REGION, write_repo_yaml
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.parquet.iceberg.catalog import CatalogAddress, opened
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)


def rows(*values: float, day: int = 0) -> pd.DataFrame:
    moments = [START + dt.timedelta(days=day, hours=hour) for hour in range(len(values))]
    return pd.DataFrame({"cid": 1, "event_timestamp": moments, "total": values})


@pytest.fixture
def repo(tmp_path, bucket, moto_endpoint):
    """A repo with a view whose files are on S3, and a catalog of Glue's."""
    aws = {"region": REGION, "endpoint_url": moto_endpoint}
    catalog = {"type": "glue", "warehouse": f"s3://{bucket}/tables"}
    project = f"p{uuid.uuid4().hex[:8]}"
    write_repo_yaml(tmp_path, project=project, online=aws, offline={**aws, "catalog": catalog})
    store = FeatureStore(str(tmp_path))
    s3 = fs.S3FileSystem(endpoint_override=moto_endpoint, region=REGION)
    for day in range(2):
        table = pa.Table.from_pandas(rows(1.0 + day, 2.0 + day, day=day))
        path = f"{bucket}/orders/{day}.parquet"
        pq.write_table(table, path, filesystem=s3, coerce_timestamps="us")
    view = customer_view(source=parquet_files(f"s3://{bucket}/orders", name="orders_history"))
    store.apply([CUSTOMER, view])
    return tmp_path, store


def run(folder, *arguments):
    given = ["table", *arguments, "-c", str(folder), "--json"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def paste(store, code):
    line, _, expression = code.partition("\n\n")
    names: dict = {}
    exec(line, names)  # noqa: S102 - what a person pastes
    store.apply([CUSTOMER, customer_view(source=eval(expression, names))])  # noqa: S307


def seen(store, *days):
    frame = pd.DataFrame(
        {"cid": 1, "event_timestamp": [START + dt.timedelta(days=day) for day in days]}
    )
    found = store.get_historical_features(frame, ["orders:total"]).to_arrow()
    return found.column("total").to_pylist()


@pytest.mark.slow
def test_a_table_of_glue_is_made_filled_tended_and_dropped(repo, bucket, moto_endpoint):
    folder, store = repo
    made = run(folder, "create", "orders", "--partition", "day")
    assert made["table"] == f"{store.project}.orders"
    glue = boto3.client("glue", region_name=REGION, endpoint_url=moto_endpoint)
    (entry,) = glue.get_tables(DatabaseName=store.project)["TableList"]
    assert (entry["Name"], entry["Parameters"]["table_type"]) == ("orders", "ICEBERG")
    assert run(folder, "import", "orders")["rows"] == 4
    assert run(folder, "import", "orders")["rows"] == 0
    paste(store, made["source"])
    assert seen(store, 0, 1, 2) == [1.0, 2.0, 3.0]

    for total in (7.0, 8.0):
        store.write_to_offline_store("orders", rows(total, day=1))
    assert seen(store, 0, 1) == [1.0, 8.0]
    (report,) = run(folder, "optimize", "--all")
    assert [part["files_after"] for part in report["partitions"]] == [1]
    assert seen(store, 0, 1, 2) == [1.0, 8.0, 3.0]
    assert run(folder, "erase", "orders", "--key", "cid=7")["rows"] == 0
    report = run(folder, "expire", "orders", "--older-than", "0s")
    assert (report["kept"], report["data_files"]) == (1, 3)
    assert seen(store, 0, 1, 2) == [1.0, 8.0, 3.0]

    assert run(folder, "drop", "orders", "--yes", "--purge")["deleted"] > 3
    assert glue.get_tables(DatabaseName=store.project)["TableList"] == []
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=moto_endpoint)
    left = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert [key for key in left if not key.startswith("tables/")] == [
        "orders/0.parquet",
        "orders/1.parquet",
    ]
    assert [key for key in left if key.endswith(".parquet") and key.startswith("tables/")] == []


def test_files_on_s3_are_registered_in_a_table_of_glue(repo, bucket, moto_endpoint):
    folder, store = repo
    s3 = fs.S3FileSystem(endpoint_override=moto_endpoint, region=REGION)
    for day, name in enumerate(["a b", "a%20b", "ü+c;d"], 2):
        table = pa.Table.from_pandas(rows(1.0 + day, day=day))
        path = f"{bucket}/orders/{name}.parquet"
        pq.write_table(table, path, filesystem=s3, coerce_timestamps="us")
    found = run(folder, "import", "orders", "--register")
    assert (found["files"], found["written"], found["partition"]) == (5, 0, "day")
    paste(store, found["source"])
    assert seen(store, 0, 1, 2, 3, 4) == [1.0, 2.0, 3.0, 4.0, 5.0]
    handle = TableHandle.from_source(store.get_feature_view("orders").batch_source, store.config)
    theirs = handle.load().scan().to_arrow().column("total").to_pylist()
    assert sorted(theirs) == [1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 5.0]


def test_a_commit_to_glue_that_is_sent_twice_is_made_once(repo, moto_endpoint):
    """botocore repeats a request whose answer is lost; Glue refuses the second."""
    folder, store = repo
    run(folder, "create", "orders", "--partition", "none")
    config = store.config
    catalog = opened(CatalogAddress.from_config(config), config.offline_store.aws())
    table = catalog.load_table(f"{store.project}.orders")
    refusals = []

    def refuse(http_response, parsed, **_):
        if not refusals:
            refusals.append(parsed)
            http_response.status_code = 400
            parsed["Error"] = {"Code": "ConcurrentModificationException", "Message": "other"}

    catalog.glue.meta.events.register("after-call.glue.UpdateTable", refuse)
    new = pa.Table.from_pylist([{"cid": 1, "total": 2.0}], table.schema().as_arrow())
    table.append(new)
    assert len(refusals) == 1
    again = catalog.load_table(f"{store.project}.orders")
    assert again.scan().to_arrow().column("total").to_pylist() == [2.0]
    assert [*again.snapshots()] == [again.current_snapshot()]
