"""What leaves a retrieval, and logged features, through Feast: on S3 (moto) and on a disk."""

from __future__ import annotations

import datetime as dt

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureView
from feast.dqm.profilers.profiler import Profile, Profiler, ValidationReport
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import (
    FileLoggingDestination,
    SavedDatasetFileStorage,
)
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext import aws
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    CredentialsError,
    DestinationExistsError,
)
from feast_dynamo_ext.parquet.writer import write_file, write_parts
from feast_dynamo_ext.storage import UPLOAD_BYTES, S3Files, files_of

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
TIME = pa.timestamp("us", tz="UTC")
ENTITIES = pd.DataFrame(
    {"cid": [2, 1, 3], "event_timestamp": pd.to_datetime([START, START + HOUR, START])}
)
TOTALS = [3.0, 2.0, None]


local = pytest.mark.parametrize("root", ["local"], indirect=True)
on_s3 = pytest.mark.parametrize("root", ["s3"], indirect=True)


@pytest.fixture
def root(request, tmp_path) -> str:
    """A place for files: on S3 or on the local disk."""
    if request.param == "local":
        return str(tmp_path / "data")
    return f"s3://{request.getfixturevalue('bucket')}/data"


@pytest.fixture
def settings(moto_endpoint) -> AwsSettings:
    return AwsSettings(region="us-east-1", endpoint_url=moto_endpoint)


@pytest.fixture
def s3(moto_endpoint):
    return boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)


@pytest.fixture
def view(root) -> FeatureView:
    return customer_view(source=parquet_files(f"{root}/orders", name="orders"))


@pytest.fixture
def store(open_store, moto_endpoint, root, settings, view):
    """A store with three rows of history."""
    files = files_of(root, settings)
    history = pa.table(
        {
            "cid": [1, 1, 2],
            "event_timestamp": pa.array([START, START + HOUR, START], TIME),
            "total": [1.0, 2.0, 3.0],
        }
    )
    write_file(files, f"{root}/orders/a.parquet", history.schema, history.to_batches())
    store = open_store(
        online={"region": "us-east-1", "endpoint_url": moto_endpoint},
        offline={"endpoint_url": moto_endpoint, "staging_location": f"{root}/staging"},
    )
    store.registry.apply_entity(CUSTOMER, "p")
    store.registry.apply_feature_view(view, "p")
    return store


def retrieve(store, frame=ENTITIES):
    return store.get_historical_features(entity_df=frame, features=["orders:total"])


def values(column) -> list:
    return [None if pd.isna(value) else value for value in column]


@pytest.mark.parametrize(
    ("root", "name"), [("s3", "rows"), ("local", "rows.parquet")], indirect=["root"]
)
def test_a_saved_dataset_comes_back_is_guarded_and_replaced(store, root, settings, name):
    storage = SavedDatasetFileStorage(path=f"{root}/sets/{name}")
    store.create_saved_dataset(from_=retrieve(store), name="rows", storage=storage)
    found = store.get_saved_dataset("rows").to_df()
    assert values(found["total"]) == TOTALS
    assert found["cid"].tolist() == [2, 1, 3]
    with pytest.raises(DestinationExistsError, match=f"sets/{name} exists already"):
        store.create_saved_dataset(from_=retrieve(store), name="rows", storage=storage)
    store.create_saved_dataset(
        from_=retrieve(store, ENTITIES.head(1)), name="rows", storage=storage, allow_overwrite=True
    )
    assert values(store.get_saved_dataset("rows").to_df()["total"]) == [3.0]
    assert len(files_of(root, settings).at(f"{root}/sets")) == 1


@local
def test_the_event_time_of_a_saved_dataset_may_have_any_name(store, root):
    frame = ENTITIES.rename(columns={"event_timestamp": "asked_at"})
    storage = SavedDatasetFileStorage(path=f"{root}/sets/named")
    store.create_saved_dataset(from_=retrieve(store, frame), name="named", storage=storage)
    found = store.get_saved_dataset("named").to_df()
    assert values(found["total"]) == TOTALS
    assert found["asked_at"].tolist() == frame["asked_at"].tolist()


@on_s3
def test_exports_go_to_the_staging_location(store, root, settings):
    (uri,) = retrieve(store).to_remote_storage()
    assert uri.startswith(f"{root}/staging/p/")
    filesystem, path = aws.filesystem(uri, settings)
    assert pq.read_table(path, filesystem=filesystem).column("total").to_pylist() == TOTALS


# What a destination on S3 does


def test_a_prefix_is_a_folder_and_its_neighbours_are_not_in_it(s3, bucket, settings):
    for key in ("sets/rows-2/a", "sets/rows/b", "sets/rows/c/d", "sets/rows.parquet"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    files = files_of(f"s3://{bucket}", settings)
    below = [f"s3://{bucket}/sets/rows/b", f"s3://{bucket}/sets/rows/c/d"]
    assert files.at(f"s3://{bucket}/sets/rows") == below
    assert files.at(f"s3://{bucket}/sets/rows.parquet") == [f"s3://{bucket}/sets/rows.parquet"]
    assert files.at(f"s3://{bucket}/sets/ro") == []
    files.delete(below)
    assert files.at(f"s3://{bucket}/sets/rows") == []


def test_a_large_file_is_uploaded_in_parts_and_comes_back_whole(s3, bucket, settings):
    body = bytes(range(256)) * (UPLOAD_BYTES // 256) + b"the end"
    with files_of("s3://", settings).new_file(f"s3://{bucket}/large") as file:
        assert file.write(body) == len(body)
    assert s3.get_object(Bucket=bucket, Key="large")["Body"].read() == body


def test_an_upload_that_fails_half_way_is_aborted(s3, bucket, settings):
    schema = pa.schema([("x", pa.string())])

    def batches():
        yield pa.record_batch([["first"]], schema=schema)
        raise ConnectionError("the source is gone")

    files = files_of("s3://", settings)
    with pytest.raises(ConnectionError, match="the source is gone"):
        write_parts(files, f"s3://{bucket}/out", "part", schema, batches())

    def large():
        with files.new_file(f"s3://{bucket}/large") as file:
            file.write(bytes(UPLOAD_BYTES))
            raise ConnectionError("the source is gone")

    with pytest.raises(ConnectionError, match="the source is gone"):
        large()
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_a_refusal_names_the_file(strict_aws):
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=strict_aws)
    with (
        pytest.raises(CredentialsError, match=r"s3 PutObject on s3://bucket/rows\.parquet"),
        S3Files(client).new_file("s3://bucket/rows.parquet") as file,
    ):
        file.write(b"x")


# Logged features


class RowsProfile(Profile):
    """Passes where there are as many rows as in the reference."""

    def __init__(self, rows: int):
        self.rows = rows

    def validate(self, df):
        return RowsReport(self.rows, len(df))

    def to_proto(self):
        raise NotImplementedError

    @classmethod
    def from_proto(cls, proto):
        raise NotImplementedError


class RowsReport(ValidationReport):
    def __init__(self, wanted: int, found: int):
        self.wanted, self.found = wanted, found

    @property
    def is_success(self):
        return self.wanted == self.found

    @property
    def errors(self):
        return []


class RowsProfiler(Profiler):
    """Counts rows."""

    def analyze_dataset(self, dataset):
        return RowsProfile(len(dataset))

    def to_proto(self):
        raise NotImplementedError

    @classmethod
    def from_proto(cls, proto):
        raise NotImplementedError


LOGS = pa.table(
    {
        "cid": [1, 2],
        "orders__total": pa.nulls(2),  # nothing was found, so a chunk has no type of its own
        "orders__total__timestamp": pa.array([START, START], TIME),
        "orders__total__status": [1, 1],
        "__log_timestamp": pa.array([START, START + 24 * HOUR], TIME),
        "__log_date": [START.date(), (START + 24 * HOUR).date()],
        "__request_id": ["r1", "r2"],
    }
)


@pytest.fixture
def service(store, view, root):
    def service(partition_by=None) -> FeatureService:
        destination = FileLoggingDestination(path=f"{root}/logs", partition_by=partition_by)
        found = FeatureService(
            name="serving", features=[view], logging_config=LoggingConfig(destination)
        )
        store.registry.apply_feature_service(found, "p")
        return found

    return service


def logged(store, service, start=START, end=START + 24 * HOUR) -> pa.Table:
    return store.provider.retrieve_feature_service_logs(
        service, start, end, store.config, store.registry
    ).to_arrow()


@pytest.mark.parametrize(
    ("root", "partition_by"),
    [("s3", ["__log_date", "__request_id"]), ("local", None)],
    indirect=["root"],
)
def test_logs_are_appended_and_read_back_in_their_types(
    store, service, root, settings, tmp_path, partition_by
):
    source = service(partition_by)
    store.write_logged_features(LOGS, source)
    (tmp_path / "spool").mkdir()
    pq.write_table(LOGS, tmp_path / "spool" / "chunk.parquet")
    store.write_logged_features(tmp_path / "spool", source)
    found = logged(store, source)
    assert sorted(found.column("__request_id").to_pylist()) == ["r1", "r1", "r2", "r2"]
    assert found.schema.field("orders__total").type == pa.float64()
    assert found.schema.field("__log_date").type == pa.date32()
    assert logged(store, source, end=START + HOUR).column("__request_id").to_pylist() == ["r1"] * 2
    paths = [uri[len(root) :] for uri in files_of(root, settings).at(f"{root}/logs")]
    folders = {path.rpartition("/")[0] for path in paths}
    expected = {"/logs/2026-01-01/r1", "/logs/2026-01-02/r2"} if partition_by else {"/logs"}
    assert folders == expected


@local
def test_logs_are_validated_against_a_saved_dataset(store, service, root):
    source = service()
    store.write_logged_features(LOGS, source)
    storage = SavedDatasetFileStorage(path=f"{root}/sets/reference")
    dataset = store.create_saved_dataset(from_=retrieve(store), name="ref", storage=storage)
    reference = dataset.as_reference(name="three rows", profiler=RowsProfiler())

    def validate():
        return store.validate_logged_features(
            source, START, START + 24 * HOUR, reference, throw_exception=False, cache_profile=False
        )

    assert (validate().report.wanted, validate().report.found) == (3, 2)
    store.write_logged_features(LOGS.slice(0, 1), source)
    assert validate() is None


@local
def test_logs_that_do_not_fit_are_refused_by_name(store, service, root, settings):
    source = service()
    with pytest.raises(ColumnNotFoundError, match=r"lack the columns \['__request_id'\]"):
        store.write_logged_features(LOGS.drop_columns("__request_id"), source)
    wrong = LOGS.set_column(1, "orders__total", pa.array(["a lot", "b"]))
    with pytest.raises(
        ColumnTypeError, match=r"`orders__total` is string.*does not fit the double"
    ):
        store.write_logged_features(wrong, source)
    assert files_of(root, settings).at(f"{root}/logs") == []
