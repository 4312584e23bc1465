"""An Iceberg table on S3 (moto) as a source: apply, retrieval, materialization.

Region, endpoint and credentials come from the config alone; the catalog is a file of SQLite.
"""

from __future__ import annotations

import datetime as dt
import os
import runpy
from pathlib import Path

import boto3
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore, FeatureView
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from pyiceberg.catalog import load_catalog
from repos import REGION, write_repo_yaml
from views import CUSTOMER

from feast_dynamo_ext.parquet.source import ParquetSource

UTC = dt.timezone.utc
SNIPPET = Path(__file__).parents[2] / "docs" / "snippets" / "offline" / "iceberg.py"
START = dt.datetime(2026, 1, 1, tzinfo=UTC)


def rows(*totals: float, hour: int) -> pa.Table:
    moments = [START + dt.timedelta(hours=hour)] * len(totals)
    return pa.table(
        {
            "cid": pa.array(range(len(totals)), pa.int64()),
            "event": pa.array(moments, pa.timestamp("us", "UTC")),
            "total": pa.array(totals),
        }
    )


def write_yaml(folder: Path, endpoint: str) -> None:
    aws = {"region": REGION, "endpoint_url": endpoint}
    write_repo_yaml(folder, project="ice", online=aws, offline=aws)


def table_in(moto_endpoint: str, **catalog: str):
    """A new table of a catalog, as another tool would make it."""
    aws = {
        "s3.endpoint": moto_endpoint,
        "client.region": "us-east-1",
        "client.access-key-id": os.environ["AWS_ACCESS_KEY_ID"],
        "client.secret-access-key": os.environ["AWS_SECRET_ACCESS_KEY"],
    }
    found = load_catalog("feast_iceberg", **catalog, **aws)
    found.create_namespace("shop")
    return found.create_table("shop.orders", schema=rows(1.0, hour=0).schema)


@pytest.mark.slow
def test_a_table_is_declared_retrieved_and_materialized(tmp_path, bucket, moto_endpoint):
    at = {"uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"s3://{bucket}/lake"}
    table = table_in(moto_endpoint, type="sql", **at)
    table.append(rows(0.5, 1.5, hour=1))
    table.append(rows(2.5, hour=3))
    write_yaml(tmp_path, moto_endpoint)
    store = FeatureStore(str(tmp_path))
    source = IcebergSource(
        name="orders",
        catalog_type="sql",
        endpoint=at["uri"],
        warehouse=at["warehouse"],
        namespace="shop",
        table="orders",
        timestamp_field="event",
    )
    view = FeatureView(name="orders", entities=[CUSTOMER], ttl=dt.timedelta(0), source=source)
    store.apply([CUSTOMER, view])
    (field,) = store.get_feature_view("orders").features
    assert (field.name, str(field.dtype)) == ("total", "Float64")

    asked = pd.DataFrame(
        {
            "cid": [0, 0, 1, 2],
            "event_timestamp": [START + dt.timedelta(hours=hour) for hour in (2, 4, 4, 4)],
        }
    )
    found = store.get_historical_features(asked, ["orders:total"]).to_arrow()
    assert found.column("total").to_pylist() == [0.5, 2.5, 1.5, None]

    store.materialize(START, START + dt.timedelta(days=1))
    online = store.get_online_features(["orders:total"], [{"cid": 0}, {"cid": 1}]).to_dict()
    assert (online["cid"], online["total"]) == ([0, 1], [2.5, 1.5])


def test_the_table_of_the_docs_is_found_through_glue(tmp_path, moto_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="my-lake")
    table_in(moto_endpoint, type="glue", warehouse="s3://my-lake/warehouse").append(
        rows(0.5, 1.5, hour=1)
    )
    write_yaml(tmp_path, moto_endpoint)
    config = FeatureStore(str(tmp_path)).config
    source = ParquetSource.open(runpy.run_path(str(SNIPPET))["orders"], config)
    assert {file.path.partition("/")[0] for file in source.files} == {"my-lake"}
    assert sum(batch.num_rows for batch in source.scan(["cid"])) == 2
