"""A training set from a store on S3: what is in it, and what its manifest says."""

from __future__ import annotations

import datetime as dt

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureStore, Field
from feast.errors import FeatureViewNotFoundException
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String
from repos import open_repo_config
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext import aws, sagemaker
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.errors import (
    ConfigError,
    FeatureNotFoundError,
    OfflineStoreError,
    TrainingSetError,
)
from feast_dynamo_ext.sagemaker.rebuild import rebuild
from feast_dynamo_ext.sagemaker.report_page import html
from feast_dynamo_ext.sagemaker.set_difference import difference
from feast_dynamo_ext.sagemaker.set_inspection import inspect
from feast_dynamo_ext.sagemaker.set_verification import changed_sources

DAY = dt.timedelta(days=1)
LIMITS = Limits("200MB")
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
SPLIT = sagemaker.TimeSplit(validation_from=START + 10 * DAY, test_from=START + 20 * DAY)
ROWS = pd.DataFrame(
    {
        "cid": [1, 2, 1, 2],
        "event_timestamp": pd.to_datetime(
            [START + 5 * DAY, START + 5 * DAY, START + 15 * DAY, START + 25 * DAY], utc=True
        ),
        "bought": [1, 0, 0, 1],
    }
)


@pytest.fixture
def store(open_store, bucket, moto_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    history = pa.table(
        {
            "cid": [1, 1, 2],
            "event_timestamp": pa.array(
                [START, START + 14 * DAY, START], pa.timestamp("us", tz="UTC")
            ),
            "total": [0.5, 1.5, 2.0],
            "orders": pa.array([1, 2, None], pa.int64()),
            "note": ["ab", None, "abc"],
        }
    )
    filesystem, path = aws.filesystem(f"s3://{bucket}/orders/a.parquet", AwsSettings("us-east-1"))
    pq.write_table(history, path, filesystem=filesystem)
    source = parquet_files(f"s3://{bucket}/orders")
    orders = customer_view(source=source, total=Float64, orders=Int64, note=String)
    store = open_store(online={"region": "us-east-1"})
    store.apply([CUSTOMER, orders])
    yield store
    store.teardown()


experimental = pytest.mark.filterwarnings("ignore:.* experimental feature.*:RuntimeWarning")


def write(store, bucket, **more):
    given = {"entity_rows": ROWS, "split": SPLIT, "features": ["orders:total", "orders:orders"]}
    output = f"s3://{bucket}/training"
    return sagemaker.create_training_set(store, label="bought", output=output, **given | more)


def test_files_and_manifest(store, bucket, moto_endpoint):
    training_set = write(store, bucket)
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)

    def text(path):
        body = client.get_object(Bucket=bucket, Key=f"training/{path}")["Body"]
        return body.read().decode()

    # label, total, orders: no header, a missing value is an empty cell
    assert text("train/csv/part-00000.csv") == "1,0.5,1\n0,2,\n"
    assert text("validation/csv/part-00000.csv") == "0,1.5,2\n"
    assert text("test/csv/part-00000.csv") == "1,2,\n"

    manifest = training_set.manifest
    assert manifest.features == ("total", "orders")
    assert manifest.entity_columns == ("cid",)
    assert manifest.provenance.feature_refs == ("orders:total", "orders:orders")
    head = client.head_object(Bucket=bucket, Key="orders/a.parquet")
    (source,) = manifest.provenance.source_files
    assert source.path == f"s3://{bucket}/orders/a.parquet"
    assert (source.size, source.etag) == (head["ContentLength"], head["ETag"].strip('"'))
    given = pa.Table.from_pandas(ROWS[["cid", "bought", "event_timestamp"]], preserve_index=False)
    assert manifest.provenance.entity_rows_sha256 == sagemaker.hash_table(given)
    assert set(manifest.provenance.view_definitions) == {"orders"}
    assert sagemaker.verify(training_set.output, store.config.offline_store.aws()).ok


def test_the_same_inputs_give_the_same_bytes(store, bucket):
    first = write(store, bucket).manifest
    with pytest.raises(TrainingSetError, match="holds a training set already"):
        write(store, bucket)
    assert write(store, bucket, overwrite=True).manifest.to_json() == first.to_json()


def test_a_changed_definition_changes_its_hash(store, bucket):
    before = write(store, bucket).manifest.provenance.view_definitions
    view = store.get_feature_view("orders")
    view.ttl = DAY
    store.apply([view])
    after = write(store, bucket, overwrite=True).manifest.provenance.view_definitions
    assert before["orders"] != after["orders"]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"split": None}, TrainingSetError, "`split` is missing: it says which event times"),
        ({"split": {"test_from": START}}, TrainingSetError, "`split` is a dict: it says which"),
        (
            {"features": ["orders:total", "orders:totals"]},
            FeatureNotFoundError,
            "Feature view `orders` has no feature `totals`. Did you mean `total`?",
        ),
        ({"features": ["total"]}, FeatureNotFoundError, "Name each as `view:feature`"),
        ({"features": []}, FeatureNotFoundError, "The request names no feature"),
        ({"features": "orders:total"}, FeatureNotFoundError, "features are a str. Pass a list"),
        ({"features": ["order:total"]}, FeatureViewNotFoundException, "order does not exist"),
    ],
)
def test_what_is_missing_is_said_before_rows_are_read(store, bucket, given, error, words):
    with pytest.raises(error) as caught:
        write(store, bucket, **{"entity_rows": "nowhere.parquet", **given})
    assert words in str(caught.value)


def test_another_provider_is_refused(tmp_path):
    config = open_repo_config(tmp_path, provider="local")
    with pytest.raises(ConfigError, match=r"feast_dynamo_ext\.DynamoProvider"):
        write(FeatureStore(config=config), "nowhere")


REQUESTS = {
    "on-demand": (["facts:letters"], ["letters"]),
    "both": (["facts:letters", "facts:doubled"], ["letters", "doubled"]),
    "an input before": (["orders:total", "facts:letters"], ["total", "letters"]),
    "an input after": (["facts:doubled", "orders:total"], ["total", "doubled"]),
    "a service": (FeatureService, ["orders", "doubled"]),
}


@pytest.fixture
def store_with_facts(store):
    """The store with an on-demand view whose inputs are a number and a text."""
    orders = store.get_feature_view("orders")

    @on_demand_feature_view(
        sources=[orders],
        schema=[Field(name="letters", dtype=Int64), Field(name="doubled", dtype=Float64)],
        mode="pandas",
    )
    def facts(inputs: pd.DataFrame) -> pd.DataFrame:
        letters = inputs["note"].fillna("").str.len()
        return pd.DataFrame({"letters": letters, "doubled": inputs["total"] * 2})

    service = FeatureService(name="service", features=[orders[["orders"]], facts[["doubled"]]])
    store.apply([facts, service])
    return store


@experimental
@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
@pytest.mark.parametrize("request_of", REQUESTS)
def test_a_training_set_has_the_features_that_are_served(
    store_with_facts, bucket, request_of, full
):
    store = store_with_facts
    features, names = REQUESTS[request_of]
    if features is FeatureService:
        features = store.get_feature_service("service")
    made = write(store, bucket, features=features, full_feature_names=full)
    view_of = {"letters": "facts", "doubled": "facts"}
    expected = [f"{view_of.get(name, 'orders')}__{name}" if full else name for name in names]
    assert list(made.manifest.features) == expected
    served = store.get_online_features(features, [{"cid": 1}], full_feature_names=full)
    assert [name for name in served.to_dict() if name != "cid"] == expected


@experimental
def test_what_an_on_demand_view_makes_of_text_is_written(store_with_facts, bucket, moto_endpoint):
    made = write(store_with_facts, bucket, features=["facts:letters"])
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    body = client.get_object(Bucket=bucket, Key="training/train/csv/part-00000.csv")["Body"]
    assert body.read().decode() == "1,2\n0,3\n"
    assert made.manifest.provenance.feature_refs == ("facts:letters",)
    assert set(made.manifest.provenance.view_definitions) == {"orders", "facts"}


@experimental
def test_a_retrieval_that_may_have_inputs_needs_the_requested_features(store_with_facts, bucket):
    job = store_with_facts.get_historical_features(ROWS, ["facts:doubled"])
    given = {"label": "bought", "output": f"s3://{bucket}/training", "split": SPLIT}
    with pytest.raises(OfflineStoreError, match="Say which features were requested"):
        store_with_facts.provider.write_training_set(job, **given)
    made = store_with_facts.provider.write_training_set(job, **given, features=["facts:doubled"])
    assert made.manifest.features == ("doubled",)


def test_a_set_on_s3_is_verified_rebuilt_compared_and_reported(store, bucket, moto_endpoint):
    made, offline = write(store, bucket), store.config.offline_store.aws()
    again = f"s3://{bucket}/again"
    assert changed_sources(made.manifest, offline, store) == ()
    assert rebuild(store, made.output, again).same_bytes
    other = sagemaker.load_training_set(again, offline)
    assert difference(made, other, offline, LIMITS).is_same
    found = inspect(made, offline, LIMITS, store)
    (ages,) = found.ages
    # The rows of January 1 and 15, seen on days 5, 15 and 25.
    assert (ages.youngest_s, ages.oldest_s, ages.unmatched) == (86_400, 25 * 86_400, 0)
    assert "orders__event_timestamp" in html(found)

    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    key = {"Bucket": bucket, "Key": "orders/a.parquet"}
    body = bytearray(client.get_object(**key)["Body"].read())
    body[20] ^= 1
    client.put_object(**key, Body=bytes(body))
    (change,) = changed_sources(made.manifest, offline)
    assert (change.kind, change.name) == ("file", f"s3://{bucket}/orders/a.parquet")
    assert "has the ETag" in change.words
    with pytest.raises(TrainingSetError, match=r"orders/a\.parquet has the ETag"):
        rebuild(store, made.output, f"s3://{bucket}/third")
    listed = client.list_objects_v2(Bucket=bucket, Prefix="third/")
    assert listed["KeyCount"] == 0


def test_a_bucket_that_is_not_there_is_said_to_be_that(moto_endpoint):
    settings = AwsSettings(region="us-east-1", endpoint_url=moto_endpoint)
    with pytest.raises(
        TrainingSetError, match="s3://no-such-bucket-17/x: there is no such bucket"
    ):
        sagemaker.load_training_set("s3://no-such-bucket-17/x", settings)
