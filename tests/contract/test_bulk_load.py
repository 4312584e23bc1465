"""Bulk load on moto: S3 and ImportTable."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import gzip
import json
import threading
import uuid

import boto3
import pandas as pd
import pytest
import series_repo
from feast import FeatureService
from feast.data_source import PushMode
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.errors import (
    AlreadyRunningError,
    BulkLoadError,
    ConfigError,
    ResourceNotFoundError,
    TableLayoutError,
    TableProtectedError,
)
from feast_dynamo_ext.materialize.bulk_import.load import BulkLoader, BulkSettings, newest_rows
from feast_dynamo_ext.materialize.lease import Lease, LeaseSettings
from feast_dynamo_ext.polling import Poll
from feast_dynamo_ext.view_settings import TableSettings, ViewSettings

REGION = "us-east-1"
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
END = dt.datetime(2026, 2, 1, tzinfo=dt.timezone.utc)


@pytest.fixture
def clients(moto_endpoint):
    """boto3's clients of moto, by service."""
    made = {
        name: boto3.client(name, region_name=REGION, endpoint_url=moto_endpoint)
        for name in ("dynamodb", "s3")
    }
    yield made
    for client in made.values():
        client.close()


@pytest.fixture
def shop(open_store, moto_endpoint, bucket, tmp_path):
    """A store of this test's own with the view `orders`, applied; its history is a local file."""
    opened = []

    def shop(tags=None, online=None, ttl=None, **more):
        history = tmp_path / "orders.parquet"
        pd.DataFrame(
            {
                "cid": [1, 2, 1, 3],
                "total": [1.5, 2.5, 3.5, None],
                "t": [START + dt.timedelta(days=day) for day in (1, 2, 3, 4)],
                "made": [START + dt.timedelta(days=day) for day in (1, 2, 3, 4)],
            }
        ).to_parquet(history)
        source = parquet_files(history, "t", created_timestamp_column="made")
        view = customer_view(source=source, ttl=ttl or dt.timedelta(0), tags=tags)
        aws = {"region": REGION, "endpoint_url": moto_endpoint}
        store = open_store(
            f"b{uuid.uuid4().hex[:12]}", online={**aws, **(online or {})}, offline=aws
        )
        store.apply([CUSTOMER, view, *more.get("also", lambda _view: [])(view)])
        opened.append(store)
        return store

    yield shop
    for store in opened:
        asyncio.run(store.close())


def view_of(store):
    return store.get_feature_view("orders")


def totals(store) -> list[float | None]:
    rows = [{"cid": customer} for customer in (1, 2, 3, 4)]
    return store.get_online_features(["orders:total"], rows).to_dict()["total"]


def keys(clients, bucket, prefix="") -> list[str]:
    return [
        found["Key"]
        for found in clients["s3"]
        .list_objects_v2(Bucket=bucket, Prefix=prefix)
        .get("Contents", ())
    ]


def delete_table(clients, store) -> None:
    clients["dynamodb"].delete_table(TableName=f"{store.project}.orders")


POLL = Poll(sleep=threading.Event().wait, first_s=0.01, most_s=0.05)


def bulk_load(store, settings):
    with BulkLoader(store, poll=POLL) as loader:
        return loader.load(view_of(store), START, END, settings)


def stored(clients, table) -> dict[bytes, dict]:
    """Items by key, those with a schema left out.

    Scanned: moto finds no imported item by a binary key, which it keeps in another form.
    """
    items = clients["dynamodb"].scan(TableName=table)["Items"]
    return {item["k"]["B"]: item for item in items if "s" not in item}


def test_an_import_loads_what_materialize_writes(shop, clients, bucket):
    store = shop(ttl=dt.timedelta(days=40_000))
    table = f"{store.project}.orders"
    store.materialize(START, END)
    written = stored(clients, table)
    assert totals(store) == [3.5, 2.5, None, None]
    delete_table(clients, store)
    result = bulk_load(store, BulkSettings(f"s3://{bucket}/load"))
    assert stored(clients, table) == written
    assert (result.view, result.table) == ("orders", table)
    assert (result.rows, result.files, result.skipped) == (3, 1, ())
    assert result.arn.startswith(f"arn:aws:dynamodb:us-east-1:123456789012:table/{table}/import/")
    assert result.folder.startswith(f"s3://{bucket}/load/orders/20")


def test_the_files_of_an_import(shop, clients, bucket):
    store = shop()
    delete_table(clients, store)
    result = bulk_load(store, BulkSettings(f"s3://{bucket}", keep_files=True))
    folder = result.folder.removeprefix(f"s3://{bucket}/")
    assert keys(clients, bucket) == [f"{folder}files/00000.json.gz"]
    assert result.files_kept
    found = clients["s3"].get_object(Bucket=bucket, Key=f"{folder}files/00000.json.gz")
    data = gzip.decompress(found["Body"].read())
    assert len(data) == result.raw_bytes
    schema, *rows = [json.loads(text)["Item"] for text in data.splitlines()]
    assert schema["s"] == {"S": '[["total","DOUBLE"]]'}
    assert base64.b64decode(schema["k"]["B"]).startswith(b"\xff\xff\xff\xffschema:")
    assert [sorted(row) for row in rows] == [["c", "f", "k", "t", "v"]] * 3
    assert sorted(row["t"]["N"] for row in rows) == [
        "1767398400000000",
        "1767484800000000",
        "1767571200000000",
    ]


def test_files_are_deleted_once_they_are_loaded(shop, clients, bucket):
    store = shop()
    delete_table(clients, store)
    bulk_load(store, BulkSettings(f"s3://{bucket}/load"))
    assert keys(clients, bucket) == []


def test_an_incremental_run_goes_on_after_a_bulk_load(shop, clients, bucket):
    store = shop()
    delete_table(clients, store)
    bulk_load(store, BulkSettings(f"s3://{bucket}/load"))
    assert view_of(store).most_recent_end_time == END


def test_an_imported_table_is_what_apply_makes(shop, clients, bucket):
    settings = TableSettings(
        deletion_protection=True,
        stream="new_image",
        point_in_time_recovery=True,
        table_class="standard",
    )
    store = shop(tags={"team": "growth", **ViewSettings(table=settings).tags()})
    table = f"{store.project}.orders"
    applied = described(clients["dynamodb"], table)
    assert applied["tags"] == {"feast_dynamo_ext.project": store.project, "team": "growth"}
    assert applied["ttl"] == {"TimeToLiveStatus": "ENABLED", "AttributeName": "x"}
    clients["dynamodb"].update_table(TableName=table, DeletionProtectionEnabled=False)
    delete_table(clients, store)
    bulk_load(store, BulkSettings(f"s3://{bucket}/load"))
    assert described(clients["dynamodb"], table) == applied


def test_an_imported_table_says_whose_it_is_where_others_could_take_it(shop, clients, bucket):
    start = f"s{uuid.uuid4().hex[:12]}"
    store = shop(online={"table_name_template": f"{start}.{{table_name}}"})
    table = f"{start}.orders"
    clients["dynamodb"].delete_table(TableName=table)
    bulk_load(store, BulkSettings(f"s3://{bucket}/load"))
    key = {"k": {"B": b"\xff\xff\xff\xffowner"}}
    owner = clients["dynamodb"].get_item(TableName=table, Key=key)["Item"]
    assert {owner["project"]["S"], owner["view"]["S"]} == {store.project, "orders"}


def described(dynamodb, table) -> dict:
    found = dynamodb.describe_table(TableName=table)["Table"]
    tags = dynamodb.list_tags_of_resource(ResourceArn=found["TableArn"])["Tags"]
    recovery = dynamodb.describe_continuous_backups(TableName=table)[
        "ContinuousBackupsDescription"
    ]
    changing = {"TableId", "CreationDateTime", "LatestStreamArn", "LatestStreamLabel"}
    changing |= {"ItemCount", "TableSizeBytes", "BillingModeSummary"}
    return {
        **{name: value for name, value in found.items() if name not in changing},
        "billing": found["BillingModeSummary"]["BillingMode"],
        "tags": {tag["Key"]: tag["Value"] for tag in tags},
        "ttl": dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"],
        "recovery": recovery["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"],
    }


def test_an_empty_table_is_replaced_if_that_was_asked_for(shop, clients, bucket):
    store = shop()
    settings = BulkSettings(f"s3://{bucket}/load", replace_empty=True)
    assert bulk_load(store, settings).rows == 3
    assert len(stored(clients, f"{store.project}.orders")) == 3


def test_items_of_our_own_are_no_rows(shop, clients, bucket):
    store = shop()
    clients["dynamodb"].put_item(
        TableName=f"{store.project}.orders", Item={"k": {"B": b"\xff\xff\xff\xffschema:12345678"}}
    )
    settings = BulkSettings(f"s3://{bucket}/load", replace_empty=True)
    assert bulk_load(store, settings).rows == 3


def test_a_table_with_rows_is_not_replaced(shop, clients, bucket):
    store = shop()
    store.materialize(START, END)
    with pytest.raises(ConfigError, match="holds rows, so it is not replaced"):
        bulk_load(store, BulkSettings(f"s3://{bucket}/load", replace_empty=True))
    assert totals(store) == [3.5, 2.5, None, None]
    assert keys(clients, bucket) == []


def test_a_table_that_is_being_materialized_is_not_replaced(shop, clients, bucket):
    store = shop()
    table = f"{store.project}.orders"
    settings = BulkSettings(f"s3://{bucket}/load", replace_empty=True)
    with (
        Lease.acquire(clients["dynamodb"], table, "orders", LeaseSettings(lease_s=3)),
        pytest.raises(AlreadyRunningError, match="is being materialized"),
    ):
        bulk_load(store, settings)
    assert bulk_load(store, settings).rows == 3


def test_a_protected_table_is_not_replaced(shop, clients, bucket):
    store = shop(tags=ViewSettings(table=TableSettings(deletion_protection=True)).tags())
    with pytest.raises(TableProtectedError):
        bulk_load(store, BulkSettings(f"s3://{bucket}/load", replace_empty=True))


def test_an_import_over_a_table_is_refused(shop, clients, bucket):
    store = shop()
    with pytest.raises(ConfigError, match=r"is there. If it holds no rows, .* --replace-empty"):
        bulk_load(store, BulkSettings(f"s3://{bucket}/load"))


def test_tables_that_others_make_are_not_imported(shop, clients, bucket):
    store = shop(online={"manage_tables": "never"})
    with pytest.raises(ConfigError, match=r"`manage_tables` in feature_store.yaml says"):
        bulk_load(store, BulkSettings(f"s3://{bucket}/load"))


def test_another_programs_table_is_refused(shop, clients, bucket):
    store = shop()
    delete_table(clients, store)
    clients["dynamodb"].create_table(
        TableName=f"{store.project}.orders",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    with pytest.raises(TableLayoutError):
        bulk_load(store, BulkSettings(f"s3://{bucket}/load"))


def test_a_view_of_a_precomputed_service_is_refused(shop, clients, bucket):
    store = shop(
        also=lambda view: [FeatureService(name="churn", features=[view], precompute_online=True)]
    )
    with pytest.raises(ConfigError, match=r"precomputed services \['churn'\]"):
        bulk_load(store, BulkSettings(f"s3://{bucket}/load"))


def test_a_window_without_rows_loads_nothing(shop, clients, bucket):
    store = shop()
    delete_table(clients, store)
    with pytest.raises(BulkLoadError, match="no row in this window"), BulkLoader(store) as loader:
        loader.load(view_of(store), END, END, BulkSettings(f"s3://{bucket}/load"))
    assert (
        clients["dynamodb"].list_tables(ExclusiveStartTableName=store.project)["TableNames"] == []
    )


def test_rows_past_their_ttl_are_not_loaded(shop, clients, bucket):
    store = shop(ttl=dt.timedelta(seconds=1))
    delete_table(clients, store)
    with pytest.raises(BulkLoadError, match="no row in this window that is not past its ttl"):
        bulk_load(store, BulkSettings(f"s3://{bucket}/load"))


def test_without_bucket_no_import_is_started(shop, clients):
    store = shop()
    delete_table(clients, store)
    with pytest.raises(ResourceNotFoundError, match="s3://no-such-bucket/orders/"):
        bulk_load(store, BulkSettings("s3://no-such-bucket"))
    assert (
        clients["dynamodb"].list_tables(ExclusiveStartTableName=store.project)["TableNames"] == []
    )


def test_a_source_that_breaks_leaves_no_files_and_starts_no_import(shop, clients, bucket):
    store = shop()
    delete_table(clients, store)

    def breaks(store, view, start, end):
        yield from newest_rows(store, view, start, end)
        raise OSError("the source went away")

    settings = BulkSettings(f"s3://{bucket}/load", file_bytes=1)
    with pytest.raises(OSError, match="went away"), BulkLoader(store, breaks) as loader:
        loader.load(view_of(store), START, END, settings)
    assert keys(clients, bucket) == []
    assert (
        clients["dynamodb"].list_tables(ExclusiveStartTableName=store.project)["TableNames"] == []
    )
    assert view_of(store).materialization_intervals == []


# Series


@pytest.fixture
def series_shop(open_store, moto_endpoint, bucket, tmp_path):
    """A store whose purchases are a series with a cohort, applied; its history is a local file."""
    opened = []

    def open_shop(**series):
        aws = {"region": REGION, "endpoint_url": moto_endpoint}
        store = open_store(
            f"s{uuid.uuid4().hex[:12]}",
            online={**aws, "newest_wins_with": "put_item"},
            offline=aws,
        )
        path = str(tmp_path / "purchases.parquet")
        store.apply([series_repo.CUSTOMER, *series_repo.views_of("purchases", path, **series)])
        opened.append(store)
        return store, path

    yield open_shop
    for store in opened:
        asyncio.run(store.close())


def events(clients, table) -> dict[tuple[bytes, bytes], dict]:
    """Items by their keys, schemas and control items left out."""
    items = clients["dynamodb"].scan(TableName=table)["Items"]
    return {(item["k"]["B"], item["s"]["B"]): item for item in items if "f" in item}


def imported(clients, bucket) -> dict[tuple[bytes, bytes], dict]:
    """The items of the files, as boto3 gives those of a table.

    moto does not scan a table whose imported items have sort keys of bytes.
    """
    found = {}
    for key in keys(clients, bucket):
        body = clients["s3"].get_object(Bucket=bucket, Key=key)["Body"].read()
        for line in gzip.decompress(body).splitlines():
            item = json.loads(line)["Item"]
            for value in item.values():
                if "B" in value:
                    value["B"] = base64.b64decode(value["B"])
            assert "s" in item  # the schema's too
            if "f" in item:
                found[item["k"]["B"], item["s"]["B"]] = item
    return found


def test_an_import_of_a_series_has_the_items_that_push_writes(series_shop, clients, bucket):
    store, path = series_shop(cohorts=("category",))
    table = f"{store.project}.purchases"
    rows = [(1, 3, 1, 2.5, "books"), (1, 3, 2, None, "toys"), (1, 9, 3, 4.0, None)]
    rows += [(2, 1, 4, -1.5, "books"), (2, 1, 4, 9.5, "games")]  # the second of one event later
    frame = pd.DataFrame(
        {
            "customer_id": [row[0] for row in rows],
            "event_timestamp": [series_repo.T - row[1] * series_repo.DAY for row in rows],
            "purchase_id": [row[2] for row in rows],
            "amount": [row[3] for row in rows],
            "category": [row[4] for row in rows],
            "created": [
                series_repo.T - (row[1] - at / 100) * series_repo.DAY
                for at, row in enumerate(rows)
            ],
        }
    )
    frame.to_parquet(path)
    store.push("purchases_push", frame, to=PushMode.ONLINE)
    pushed = events(clients, table)
    before = clients["dynamodb"].describe_table(TableName=table)["Table"]
    assert len(pushed) == 4
    clients["dynamodb"].delete_table(TableName=table)
    span = series_repo.T - 100 * series_repo.DAY, series_repo.T
    settings = BulkSettings(f"s3://{bucket}/load", keep_files=True)
    with BulkLoader(store, poll=POLL) as loader:
        result = loader.load(store.get_feature_view("purchases"), *span, settings)
    assert (result.rows, result.skipped) == (4, ())
    assert imported(clients, bucket) == pushed
    after = clients["dynamodb"].describe_table(TableName=table)["Table"]
    assert after["KeySchema"] == before["KeySchema"]
    (index,), (index_before,) = (each["GlobalSecondaryIndexes"] for each in (after, before))
    for name in ("IndexName", "KeySchema", "Projection"):
        assert index[name] == index_before[name]
    ttl = clients["dynamodb"].describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "x")


def test_an_import_replaces_an_empty_table_of_a_series(series_shop, clients, bucket):
    store, path = series_shop()
    frame = pd.DataFrame(
        {
            "customer_id": [1],
            "event_timestamp": [series_repo.T],
            "purchase_id": [1],
            "amount": [1.0],
            "category": ["books"],
            "created": [series_repo.T],
        }
    )
    frame.to_parquet(path)
    settings = BulkSettings(f"s3://{bucket}/load", replace_empty=True)
    span = series_repo.T - series_repo.DAY, series_repo.T
    with BulkLoader(store, poll=POLL) as loader:
        view = store.get_feature_view("purchases")
        assert loader.load(view, *span, settings).rows == 1


def test_a_series_with_orders_is_not_imported(series_shop, bucket):
    store, _ = series_shop(orders=("amount",))
    with BulkLoader(store, poll=POLL) as loader:
        view = store.get_feature_view("purchases")
        with pytest.raises(ConfigError, match="`orders`, which are local indexes"):
            loader.load(view, START, END, BulkSettings(f"s3://{bucket}/load"))
