"""Entity rows that come from S3 and go to S3, through Feast (moto)."""

from __future__ import annotations

import datetime as dt

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext import aws, sagemaker
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    CredentialsError,
    EntityRowsError,
    ResourceNotFoundError,
    SourceNotFoundError,
)

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
TIMES = pa.array([START, START + 2 * DAY, START + DAY], pa.timestamp("us", tz="UTC"))
HISTORY = pa.table({"cid": [1, 1, 2], "event_timestamp": TIMES, "total": [1.0, 2.0, 3.0]})
ROWS = pa.table({"cid": [2, 1, 1], "event_timestamp": TIMES, "bought": [0, 1, 0]})
TOTALS = [None, 2.0, 1.0]


def put(uri: str, table: pa.Table, endpoint: str) -> None:
    filesystem, path = aws.filesystem(uri, AwsSettings("us-east-1", endpoint))
    pq.write_table(table, path, filesystem=filesystem)


@pytest.fixture
def shop(open_store, bucket, moto_endpoint, monkeypatch):
    """A store with one view in its registry; S3 is found through the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_endpoint)
    put(f"s3://{bucket}/orders/a.parquet", HISTORY, moto_endpoint)
    store = open_store()
    source = parquet_files(f"s3://{bucket}/orders", name="orders")
    orders = customer_view(source=source, ttl=10 * DAY)
    store.registry.apply_entity(CUSTOMER, store.project)
    store.registry.apply_data_source(orders.batch_source, store.project)
    store.registry.apply_feature_view(orders, store.project)
    return store


def table_of(store, given, **kwargs) -> pa.Table:
    return store.get_historical_features(given, ["orders:total"], **kwargs).to_arrow()


def test_parquet_on_s3(shop, bucket, moto_endpoint):
    put(f"s3://{bucket}/rows/a.parquet", ROWS, moto_endpoint)
    for form in ("rows/a.parquet", "rows", "rows/*.parquet"):
        got = table_of(shop, f"s3://{bucket}/{form}")
        assert got.drop_columns("total").equals(ROWS)
        assert got.column("total").to_pylist() == TOTALS


def test_csv_on_s3(shop, bucket, moto_endpoint):
    body = b"cid,event_timestamp\n2,2026-01-01 00:00:00\n1,2026-01-03 00:00:00\n"
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    client.put_object(Bucket=bucket, Key="rows/a.csv", Body=body)
    got = table_of(shop, f"s3://{bucket}/rows")
    assert got.column("event_timestamp").to_pylist() == [START, START + 2 * DAY]
    assert got.column("total").to_pylist() == [None, 2.0]


def test_sql_over_s3_and_no_rows_at_all(shop):
    got = table_of(shop, "SELECT cid, event_timestamp FROM orders WHERE total > 1 ORDER BY total")
    assert got.column("total").to_pylist() == [2.0, 3.0]
    got = table_of(shop, None, end_date=START + 2 * DAY)
    assert got.select(["cid", "total"]).to_pylist() == [
        {"cid": 1, "total": 1.0},
        {"cid": 2, "total": 3.0},
        {"cid": 1, "total": 2.0},
    ]


def test_a_training_set_is_the_same_from_files_and_from_pandas(shop, bucket, moto_endpoint):
    put(f"s3://{bucket}/rows/a.parquet", ROWS, moto_endpoint)
    made = [
        sagemaker.create_training_set(
            shop,
            entity_rows=rows,
            features=["orders:total"],
            label="bought",
            output=f"s3://{bucket}/training-{number}",
            split=sagemaker.TimeSplit(START + 0.5 * DAY, START + 1.5 * DAY),
        ).manifest
        for number, rows in enumerate([f"s3://{bucket}/rows", ROWS, ROWS.to_pandas()])
    ]
    hashes = {manifest.provenance.entity_rows_sha256 for manifest in made}
    assert len(hashes) == 1
    assert [manifest.content for manifest in made[1:]] == [made[0].content] * 2
    # Those that came from memory are kept beside.
    files = [{file.path: file for file in manifest.files} for manifest in made]
    copies = [found.pop("rows/entity_rows.parquet", None) for found in files]
    assert [copy and copy.rows for copy in copies] == [None, ROWS.num_rows, ROWS.num_rows]
    assert files[1:] == [files[0]] * 2


def test_what_is_not_there(shop, bucket, moto_endpoint):
    put(f"s3://{bucket}/rows.json", ROWS, moto_endpoint)
    with pytest.raises(SourceNotFoundError, match=f"there is no file at s3://{bucket}/none"):
        table_of(shop, f"s3://{bucket}/none")
    with pytest.raises((SourceNotFoundError, ResourceNotFoundError), match="no-such-bucket"):
        table_of(shop, "s3://no-such-bucket-of-mine/rows.csv")
    with pytest.raises(EntityRowsError, match=r"rows\.json is neither Parquet nor CSV"):
        table_of(shop, f"s3://{bucket}/rows.json")


def test_no_permission(shop, strict_aws, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", strict_aws)
    with pytest.raises((AccessDeniedError, CredentialsError), match="s3://private/rows"):
        shop.get_historical_features("s3://private/rows.parquet", ["orders:total"])
