"""The offline store on S3 (moto) and on a local disk, through Feast."""

from __future__ import annotations

import datetime as dt
import re

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView, Field
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_contents import RepoContents
from feast.repo_operations import apply_total_with_repo_instance
from feast.types import Float64, Int64, String
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext import aws
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    CredentialsError,
    OfflineStoreError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.source import ParquetSource

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)

HISTORY = pa.table(
    {
        "cid": [1, 1, 2],
        "event_timestamp": pa.array([START, START + HOUR, START], pa.timestamp("us", tz="UTC")),
        "total": [1.0, 2.0, 3.0],
        "day": ["d1", "d2", "d1"],
    }
)
ENTITIES = pd.DataFrame(
    {
        "cid": [2, 1, 1, 3],
        "event_timestamp": pd.to_datetime([START, START, START + HOUR, START + HOUR], utc=True),
    }
)
EXPECTED = [3.0, 1.0, 2.0, None]


@pytest.fixture(params=["s3", "local"])
def root(request, tmp_path) -> str:
    """A place for files: on S3 or on the local disk."""
    if request.param == "local":
        return str(tmp_path / "data")
    return f"s3://{request.getfixturevalue('bucket')}/data"


@pytest.fixture
def store(open_store, moto_endpoint, monkeypatch):
    """S3 is found through the environment, as AWS's own libraries find it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_endpoint)
    return open_store(online={"region": "us-east-1", "endpoint_url": moto_endpoint})


def put(root: str, table: pa.Table, moto_endpoint: str, **options) -> None:
    settings = AwsSettings(region="us-east-1", endpoint_url=moto_endpoint)
    filesystem, path = aws.filesystem(root, settings)
    pads.write_dataset(
        table,
        path,
        filesystem=filesystem,
        format="parquet",
        create_dir="://" not in root,
        **options,
    )


def orders(path: str, **source) -> FeatureView:
    return customer_view(source=parquet_files(path, name="orders", **source))


def totals(store) -> list:
    job = store.get_historical_features(entity_df=ENTITIES, features=["orders:total"])
    return job.to_arrow().column("total").to_pylist()


@pytest.mark.parametrize("layout", ["file", "folder", "hive"])
def test_a_file_source_works_unchanged(store, root, layout, moto_endpoint):
    path = f"{root}/orders"
    if layout == "hive":
        flavor = pads.partitioning(pa.schema([("day", pa.string())]), flavor="hive")
        put(path, HISTORY, moto_endpoint, partitioning=flavor)
    else:
        put(path, HISTORY, moto_endpoint)
    store.apply([CUSTOMER, orders(f"{path}/part-0.parquet" if layout == "file" else path)])
    assert totals(store) == EXPECTED


def test_the_endpoint_of_a_file_source_overrides_the_configs(
    open_store, bucket, moto_endpoint, monkeypatch
):
    put(f"s3://{bucket}/orders", HISTORY, moto_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    store = open_store(online={"region": "us-east-1", "endpoint_url": moto_endpoint})
    store.apply([CUSTOMER, orders(f"s3://{bucket}/orders", s3_endpoint_override=moto_endpoint)])
    assert totals(store) == EXPECTED


def test_materialize_serves_the_newest_row_and_keeps_integers_exact(store, root, moto_endpoint):
    wide = pa.table(
        {
            "cid": [1, 1, 2],
            "event_timestamp": HISTORY["event_timestamp"],
            "count": pa.array([0, 2**53 + 1, None], pa.int64()),
        }
    )
    put(f"{root}/wide", wide, moto_endpoint)
    view = customer_view("wide", parquet_files(f"{root}/wide"), count=Int64)
    store.apply([CUSTOMER, view])
    store.materialize(START, START + HOUR)
    answer = store.get_online_features(
        features=["wide:count"], entity_rows=[{"cid": cid} for cid in (1, 2, 3)]
    ).to_dict()
    assert answer["count"] == [2**53 + 1, None, None]
    store.teardown()


def test_a_view_without_entities_is_materialized_and_served(store, root, moto_endpoint):
    put(f"{root}/settings", HISTORY.select(["event_timestamp", "total"]), moto_endpoint)
    view = customer_view("settings", parquet_files(f"{root}/settings"), entities=[])
    store.apply([view])
    store.materialize(START, START + HOUR)
    answer = store.get_online_features(features=["settings:total"], entity_rows=[{"any": 0}] * 2)
    assert answer.to_dict()["total"] == [2.0, 2.0]
    store.teardown()


def test_on_demand_features_are_computed_on_the_result(store, root, moto_endpoint):
    put(f"{root}/orders", HISTORY, moto_endpoint)
    view = orders(f"{root}/orders")

    @on_demand_feature_view(
        sources=[view], schema=[Field(name="doubled", dtype=Float64)], mode="pandas"
    )
    def twice(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"doubled": inputs["total"] * 2})

    store.apply([CUSTOMER, view, twice])
    job = store.get_historical_features(
        entity_df=ENTITIES.head(3), features=["orders:total", "twice:doubled"]
    )
    assert job.to_df()["doubled"].tolist() == [6.0, 2.0, 4.0]


def test_a_saved_dataset_is_kept_read_back_and_guarded(store, root, moto_endpoint):
    put(f"{root}/orders", HISTORY, moto_endpoint)
    store.apply([CUSTOMER, orders(f"{root}/orders")])
    storage = SavedDatasetFileStorage(path=f"{root}/saved/rows.parquet")

    def job():
        return store.get_historical_features(entity_df=ENTITIES, features=["orders:total"])

    dataset = store.create_saved_dataset(from_=job(), name="rows", storage=storage)
    assert dataset.to_df()["total"].fillna(-1).tolist() == [3.0, 1.0, 2.0, -1.0]
    with pytest.raises(OfflineStoreError, match=r"rows\.parquet exists already"):
        store.create_saved_dataset(from_=job(), name="rows", storage=storage)
    store.create_saved_dataset(from_=job(), name="rows", storage=storage, allow_overwrite=True)


def test_pushed_rows_are_appended_as_new_files(store, root, moto_endpoint):
    put(f"{root}/orders", HISTORY, moto_endpoint)
    store.apply([CUSTOMER, orders(f"{root}/orders")])
    later = pd.DataFrame(
        {
            "cid": [3],
            "event_timestamp": [pd.Timestamp(START)],
            "total": [9.0],
            "day": ["d3"],
        }
    )
    for _ in range(2):
        store.write_to_offline_store("orders", later)
    assert totals(store) == [3.0, 1.0, 2.0, 9.0]
    lacking = pa.Table.from_pandas(later.drop(columns="day"))
    with pytest.raises(ColumnNotFoundError, match=r"`orders`.*\['day'\]"):
        store.provider.offline_write_batch(
            store.config, store.get_feature_view("orders"), lacking, None
        )


def test_a_missing_file_bucket_or_column_is_named(store, root, bucket, moto_endpoint):
    store.apply([CUSTOMER, orders(f"{root}/nothing")])
    with pytest.raises(SourceNotFoundError, match=r"`orders`: there is no file at .*nothing"):
        totals(store)
    store.apply([CUSTOMER, orders("s3://no-such-bucket-here/orders")])
    with pytest.raises(SourceNotFoundError, match="no-such-bucket-here"):
        totals(store)
    put(f"{root}/partial", HISTORY.drop_columns("total"), moto_endpoint)
    store.apply([CUSTOMER, orders(f"{root}/partial")])
    with pytest.raises(ColumnNotFoundError, match=r"`orders`.*\['total'\].*field_mapping"):
        totals(store)


def test_a_file_that_is_not_parquet_is_named(store, root, bucket, moto_endpoint, tmp_path):
    if root.startswith("s3"):
        client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
        client.put_object(Bucket=bucket, Key="data/bad/a.parquet", Body=b"PAR1 not really")
    else:
        (tmp_path / "data" / "bad").mkdir(parents=True)
        (tmp_path / "data" / "bad" / "a.parquet").write_bytes(b"PAR1 not really")
    store.apply([CUSTOMER, orders(f"{root}/bad")])
    with pytest.raises(SourceReadError, match=r"bad.*a\.parquet"):
        totals(store)


def test_a_truncated_file_among_good_ones_is_named(store, tmp_path):
    folder = tmp_path / "orders"
    folder.mkdir()
    pq.write_table(HISTORY, folder / "a.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(whole[: len(whole) // 2])
    store.apply([CUSTOMER, orders("orders")])
    with pytest.raises(SourceReadError, match=r"b\.parquet"):
        totals(store)


def test_hidden_files_of_writers_are_passed_over(store, tmp_path):
    folder = tmp_path / "orders"
    (folder / "_temporary").mkdir(parents=True)
    pq.write_table(HISTORY, folder / "a.parquet")
    for name in ("_SUCCESS", ".a.parquet.crc", "_temporary/b.parquet"):
        (folder / name).write_bytes(b"")
    store.apply([CUSTOMER, orders("orders")])
    assert totals(store) == EXPECTED


def test_refused_credentials_are_an_error_of_credentials(open_store, strict_aws):
    store = open_store(
        online={"region": "us-east-1", "endpoint_url": strict_aws},
        offline={"endpoint_url": strict_aws},
    )
    view = orders("s3://some-bucket/orders")
    with pytest.raises(CredentialsError, match=r"some-bucket/orders.*aws sts get-caller"):
        ParquetSource.open(view.batch_source, store.config)


def test_apply_and_plan_warn_of_columns_that_no_file_has(
    store, root, moto_endpoint, caplog, tmp_path
):
    put(f"{root}/orders", HISTORY, moto_endpoint)
    misspelt = customer_view(
        "misspelt", parquet_files(f"{root}/orders", name="orders"), totl=Float64, day=String
    )
    renamed = customer_view(
        "renamed",
        parquet_files(f"{root}/orders", name="renamed", field_mapping={"total": "amount"}),
        amount=Float64,
    )
    later = customer_view("later", parquet_files(f"{root}/later", name="later"))
    repo = RepoContents(
        projects=[],
        data_sources=[],
        feature_views=[misspelt, renamed, later],
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        entities=[CUSTOMER],
        feature_services=[],
        permissions=[],
    )
    expected = [
        "Feature view `misspelt` names the columns ['totl'], which no file of",
        "Source `later`: there is no file at",
    ]
    for skip in (False, True):
        caplog.clear()
        validated = [] if skip else repo.feature_views
        opened = FeatureStore(config=store.config)
        for view in validated:
            opened._get_provider().validate_data_source(opened.config, view.batch_source)
        opened.plan(repo)
        assert sorted(_warnings(caplog)) == ([] if skip else expected)
        caplog.clear()
        apply_total_with_repo_instance(
            FeatureStore(config=store.config), store.project, store.registry, repo, skip
        )
        assert sorted(_warnings(caplog)) == ([] if skip else expected)
    applied = {view.name for view in store.list_feature_views()}
    assert applied == {"later", "misspelt", "renamed"}


def _warnings(caplog) -> list[str]:
    """What the package warned of, up to the path."""
    return [
        re.split(r"(?<=no file (?:of|at)) ", record.getMessage())[0]
        for record in caplog.records
        if record.name.startswith("feast_dynamo_ext") and record.levelname == "WARNING"
    ]
