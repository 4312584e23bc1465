"""Sources on S3 (moto): listings, globs, pruning, permissions, changes, Delta, `feast apply`."""

from __future__ import annotations

import datetime as dt
import http.server
import io
import itertools
import json
import threading
from typing import TYPE_CHECKING

import boto3
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
from deltalake import write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Int64
from repos import REGION, NoRegistry, repo_config, write_repo_yaml

from feast_dynamo_ext import S3ParquetSource
from feast_dynamo_ext.errors import AccessDeniedError, SourceNotFoundError, SourceReadError
from feast_dynamo_ext.local import start_moto, stop
from feast_dynamo_ext.materialize.newest_rows import Columns, History
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.append import append_rows
from feast_dynamo_ext.parquet.listing import Place
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.sagemaker.provenance import SourceFile, listed_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.server  # they start servers of their own

UTC = dt.timezone.utc
SCHEMA = [Field(name="cid", dtype=Int64), Field(name="x", dtype=Int64)]


def parquet(**columns) -> bytes:
    body = io.BytesIO()
    pq.write_table(pa.table(columns), body)
    return body.getvalue()


def config_of(endpoint: str, folder: Path) -> RepoConfig:
    return repo_config(folder, region=REGION, endpoint_url=endpoint)


@pytest.fixture
def s3(moto_endpoint):
    return boto3.client("s3", region_name=REGION, endpoint_url=moto_endpoint)


@pytest.fixture
def put(s3, bucket):
    def put(key: str, body: bytes | None = None, **columns) -> str:
        answer = s3.put_object(Bucket=bucket, Key=key, Body=body or parquet(**columns))
        return answer["ETag"].strip('"')

    return put


@pytest.fixture
def opened(moto_endpoint, bucket, tmp_path):
    def opened(path: str, **more) -> ParquetSource:
        source = FileSource(
            name="orders", path=f"s3://{bucket}/{path}", timestamp_field="event", **more
        )
        return ParquetSource.open(source, config_of(moto_endpoint, tmp_path))

    return opened


def values(source: ParquetSource) -> list:
    return [value for batch in source.scan(["x"]) for value in batch.column(0).to_pylist()]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("orders", [1, 2, 3]),
        ("orders/", [1, 2, 3]),
        ("orders/a.parquet", [1]),
        ("orders/*.parquet", [1]),
        ("orders/dt=*/*.parquet", [2]),
        ("orders/**/b?.parquet", [2, 3]),
        ("or*", [1, 2, 3, 4]),
        ("odd #1?", [5]),
    ],
)
def test_which_objects_a_uri_means(opened, put, path, expected):
    for number, key in enumerate(
        ("orders/a.parquet", "orders/dt=1/b1.parquet", "orders/dt=2/deep/b2.parquet"), 1
    ):
        put(key, x=[number])
    put("orders_old/a.parquet", x=[4])
    put("odd #12/a.parquet", x=[5])
    for hidden in ("orders/_SUCCESS", "orders/_tmp/a.parquet", "orders/dt=1/.part.crc"):
        put(hidden, b"-")
    for marker in ("orders_$folder$", "orders/dt=1_$folder$", "orders/dt=1/b3._COPYING_"):
        put(marker, b"-")
    put("orders/folder/", b"-")
    assert values(opened(path)) == expected


def test_what_is_not_there_is_named(opened, put):
    put("orders/a.parquet", x=[1])
    for path in ("order", "orders/b.parquet", "orders/z*", "nothing/"):
        with pytest.raises(SourceNotFoundError, match=r"`orders`: there is no file at s3://"):
            opened(path)


@pytest.mark.parametrize("change", ["same size", "other size", "removed"])
def test_an_object_that_changed_while_it_was_read_is_named(opened, put, s3, bucket, change):
    for name in "abc":
        put(f"orders/{name}.parquet", x=[1, 2])
    source = opened("orders")
    etags = [file.etag for file in source.files]
    assert len(set(etags)) == 1
    if change == "removed":
        s3.delete_object(Bucket=bucket, Key="orders/b.parquet")
    else:
        put("orders/b.parquet", x=[1, 3] if change == "same size" else list(range(5_000)))
    with pytest.raises(
        SourceReadError, match=r"orders/b\.parquet changed while it was being read"
    ):
        list(source.fetch(["x"], np.array([0])))


def test_an_object_that_is_not_parquet_is_named(opened, put):
    for name in "ac":
        put(f"orders/{name}.parquet", x=[1])
    put("orders/b.parquet", b"no parquet at all")
    with pytest.raises(SourceReadError, match=r"orders/b\.parquet cannot be read: .*magic bytes"):
        values(opened("orders"))


def test_days_that_are_not_asked_for_are_not_opened(put, moto_endpoint, bucket, tmp_path):
    start = dt.datetime(2025, 1, 1, tzinfo=UTC)
    for day in range(20):
        moment = start + day * dt.timedelta(days=1)
        key = f"shop/year={moment:%Y}/month={moment:%m}/day={moment:%d}/a.parquet"
        event = pa.array([moment], pa.timestamp("us", "UTC"))
        needed = day in (0, 10, 11, 19)
        put(key, None if needed else b"never opened", x=[day], event=event)
    source = S3ParquetSource(
        path=f"s3://{bucket}/shop",
        timestamp_field="event",
        date_partition_column_format="year=%Y/month=%m/day=%d",
        s3_endpoint_override=moto_endpoint,
    )
    config = config_of("http://127.0.0.1:1", tmp_path)
    first, last = (start + dt.timedelta(days=days) for days in (10, 11))
    found = ParquetSource.open(source, config).within("event", first, last)
    assert values(found) == [10, 11]
    assert [file.path.split("/")[-2] for file in found.files] == ["day=11", "day=12"]
    assert next(found.fetch(["x"], np.array([1]))).to_pydict() == {"x": [11]}


def test_a_delta_table(opened, bucket, moto_endpoint):
    storage = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": moto_endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    for number in (1, 2):
        rows = pa.table({"x": [number], "shop": [f"s{number}"]})
        write_deltalake(
            f"s3://{bucket}/table",
            rows,
            mode="append",
            partition_by=["shop"],
            storage_options=storage,
        )
    source = opened("table", file_format=DeltaFormat())
    batches = source.scan(["x", "shop"])
    assert sorted(tuple(row.values())[:2] for batch in batches for row in batch.to_pylist()) == [
        (1, "s1"),
        (2, "s2"),
    ]
    assert all(file.etag for file in source.files)
    with pytest.raises(SourceNotFoundError, match=r"no Delta table at s3://.*/nothing"):
        opened("nothing", file_format=DeltaFormat())


# Permissions and pages


EVERYTHING = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
    }
)
MOMENT = dt.datetime(2026, 1, 1, tzinfo=UTC)
SALES = {"cid": [1, 2], "event": pa.array([MOMENT] * 2, pa.timestamp("us", "UTC")), "x": [10, 20]}


def test_writers_of_one_object_lose_nothing(put, bucket, moto_endpoint, tmp_path):
    moment = dt.datetime(2026, 1, 1, tzinfo=UTC)
    put("orders.parquet", cid=[0], event=pa.array([moment], pa.timestamp("us", "UTC")), x=[0])
    source = FileSource(
        name="orders", path=f"s3://{bucket}/orders.parquet", timestamp_field="event"
    )
    entity = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    view = FeatureView(name="orders", entities=[entity], schema=SCHEMA, source=source)
    config, start = config_of(moto_endpoint, tmp_path), threading.Barrier(3)

    def append_some(first: int) -> None:
        start.wait()
        for x in range(first, first + 3):
            times = pa.array([moment], pa.timestamp("us", "UTC"))
            append_rows(view, config, pa.table({"cid": [x], "event": times, "x": [x]}))

    threads = [threading.Thread(target=append_some, args=(10 * at,)) for at in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = values(ParquetSource.open(source, config))
    assert sorted(found) == [0, *(10 * at + more for at in (1, 2, 3) for more in range(3))]


@pytest.fixture
def before_get(moto_endpoint):
    """Starts a server before moto, which does something before it passes the nth read on."""
    servers = []

    def start(number: int, act: Callable[[], object]) -> str:
        pool, reads = urllib3.PoolManager(), itertools.count(1)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                is_read = self.command == "GET" and ".parquet" in self.path.partition("?")[0]
                if is_read and next(reads) == number:
                    act()
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = pool.request(
                    self.command, moto_endpoint + self.path, body=body, headers=dict(self.headers)
                )
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                        self.send_header(name, value)
                of_head = answer.headers.get("Content-Length", "0")
                length = of_head if self.command == "HEAD" else str(len(answer.data))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(answer.data)

            def do_GET(self) -> None:
                self.forward()

            def do_HEAD(self) -> None:
                self.forward()

            def do_PUT(self) -> None:
                self.forward()

            def log_message(self, *args) -> None:
                """Nothing."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_append_starts_over_where_its_object_is_replaced(
    put, bucket, opened, before_get, tmp_path, number
):
    times = pa.array([MOMENT], pa.timestamp("us", "UTC"))
    put("orders.parquet", cid=[0], event=times, x=[0])
    again = pa.array([MOMENT] * 3, pa.timestamp("us", "UTC"))
    endpoint = before_get(
        number, lambda: put("orders.parquet", cid=[0, 1, 2], event=again, x=[0, 1, 2])
    )
    path = f"s3://{bucket}/orders.parquet"
    source = FileSource(name="orders", path=path, timestamp_field="event")
    entity = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    view = FeatureView(name="orders", entities=[entity], schema=SCHEMA, source=source)
    rows = pa.table({"cid": [9], "event": times, "x": [9]})
    append_rows(view, config_of(endpoint, tmp_path), rows)
    assert sorted(values(opened("orders.parquet"))) == [0, 1, 2, 9]


@pytest.fixture(scope="module")
def half_allowed(tmp_path_factory):
    """A moto that enforces IAM; keys of a user who may read half of a bucket, and of its owner.

    A page of its listings has two objects.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
        server = start_moto(tmp_path_factory.mktemp("moto-iam"))
    try:
        access = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        options = {"region_name": REGION, "endpoint_url": server.endpoint, **access}
        s3, iam = boto3.client("s3", **options), boto3.client("iam", **options)
        s3.create_bucket(Bucket="history")
        for number, key in enumerate(("a/a", "a/b", "b/c", "a/z")):
            s3.put_object(Bucket="history", Key=f"{key}.parquet", Body=parquet(x=[number]))
        for name in ("open/1", "shut/2"):
            s3.put_object(Bucket="history", Key=f"aa/{name}.parquet", Body=parquet(**SALES))
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::history"},
                {
                    "Effect": "Allow",
                    "Action": "s3:GetObject",
                    "Resource": [
                        f"arn:aws:s3:::history/{prefix}/*" for prefix in ("a", "aa/open")
                    ],
                },
            ],
        }
        iam.create_user(UserName="half")
        iam.put_user_policy(UserName="half", PolicyName="half", PolicyDocument=json.dumps(policy))
        keys = iam.create_access_key(UserName="half")["AccessKey"]
        iam.create_user(UserName="owner")
        iam.put_user_policy(UserName="owner", PolicyName="all", PolicyDocument=EVERYTHING)
        owner = iam.create_access_key(UserName="owner")["AccessKey"]
        headers = {"Content-Type": "application/octet-stream"}
        urllib3.request(
            "POST", f"{server.endpoint}/moto-api/reset-auth", body=b"0", headers=headers
        )
        yield server.endpoint, keys, owner
    finally:
        stop(server)


def test_a_prefix_that_may_not_be_read_is_named(half_allowed, tmp_path, monkeypatch):
    endpoint, keys, _ = half_allowed
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    config = config_of(endpoint, tmp_path)

    def found(path):
        source = FileSource(name="orders", path=path, timestamp_field="event")
        return values(ParquetSource.open(source, config))

    assert found("s3://history/a/") == [0, 1, 3]
    with pytest.raises(AccessDeniedError, match=r"history/b/c\.parquet.*IAM policy"):
        found("s3://history/")
    with pytest.raises(AccessDeniedError, match=r"ListObjectsV2 on s3://other/x.*IAM policy"):
        found("s3://other/x")


@pytest.fixture
def sales(half_allowed, tmp_path, monkeypatch):
    """Uses of the sales below a prefix, by the user who may read half of them."""
    endpoint, keys, _ = half_allowed
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    config = config_of(endpoint, tmp_path)
    config.offline_store.staging_location = "s3://history/exports"
    times = ("event", None, MOMENT, MOMENT)

    def uses(prefix):
        source = FileSource(name="sales", path=f"s3://history/{prefix}", timestamp_field="event")
        customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
        view = FeatureView(name="sales", entities=[customer], source=source, schema=SCHEMA)
        rows = pd.DataFrame({"cid": [1], "event_timestamp": [MOMENT]})

        def retrieval(plan="auto", entity_rows=rows):
            config.offline_store.join_plan = plan
            return S3ParquetOfflineStore.get_historical_features(
                config, [view], ["sales:x"], entity_rows, NoRegistry(), "p"
            )

        return {
            "stream": lambda: retrieval("stream").to_arrow(),
            "duckdb": lambda: retrieval("duckdb").to_arrow(),
            "explain": lambda: retrieval().explain(),
            "sql": lambda: retrieval().to_sql(),
            "entity rows": lambda: retrieval(entity_rows=f"s3://history/{prefix}"),
            "latest": lambda: S3ParquetOfflineStore.pull_latest_from_table_or_query(
                config, source, ["cid"], ["x"], *times
            ).to_arrow(),
            "metrics": lambda: S3ParquetOfflineStore.compute_monitoring_metrics(
                config, source, [("x", "numeric")], "event"
            ),
            "export": lambda: retrieval().to_remote_storage(),
            "persist": lambda: retrieval().persist(
                SavedDatasetFileStorage(path="s3://history/saved")
            ),
        }

    return uses


def test_a_prefix_that_may_not_be_read_is_named_by_every_use(sales):
    for name, use in sales("aa").items():
        with pytest.raises(
            AccessDeniedError, match=r"on s3://history/aa/shut/2\.parquet: "
        ) as caught:
            use()
        assert caught.value.__cause__ is not None, name


def test_a_prefix_that_may_not_be_written_is_named_and_nothing_is_left(sales, half_allowed):
    endpoint, _, owner = half_allowed
    uses = sales("aa/open")
    assert uses["stream"]().column("x").to_pylist() == [10]
    for name, key in (
        ("export", "exports/p/"),
        ("persist", "saved/part-"),
    ):
        with pytest.raises(AccessDeniedError, match=rf"PutObject on s3://history/{key}.*IAM pol"):
            uses[name]()
    session = boto3.Session(owner["AccessKeyId"], owner["SecretAccessKey"], region_name=REGION)
    s3 = session.client("s3", endpoint_url=endpoint)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="history")
    assert {entry["Key"].split("/")[0] for page in pages for entry in page["Contents"]} == {
        "a",
        "aa",
        "b",
    }
    assert s3.list_objects_v2(Bucket="history", Prefix="aa/")["KeyCount"] == 2


def test_more_files_than_one_page_of_a_listing(half_allowed, tmp_path, monkeypatch):
    endpoint, keys, _ = half_allowed
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    # A session of its own: boto3's default one has other keys already.
    s3 = boto3.Session(region_name=REGION).client("s3", endpoint_url=endpoint)
    assert s3.list_objects_v2(Bucket="history", Prefix="a/")["IsTruncated"]
    source = FileSource(name="orders", path="s3://history/a", timestamp_field="event")
    found = ParquetSource.open(source, config_of(endpoint, tmp_path))
    etags = {
        name: s3.get_object(Bucket="history", Key=f"a/{name}")["ETag"].strip('"')
        for name in ("a.parquet", "b.parquet", "z.parquet")
    }
    assert listed_files(found) == [
        SourceFile(f"s3://history/a/{name}", len(parquet(x=[0])), etag)
        for name, etag in etags.items()
    ]
    (rows,) = found.fetch(["x"], np.array([2]))
    assert rows.to_pydict() == {"x": [3]}


# Folders that earlier versions compacted


@pytest.fixture(params=["disk", "S3"])
def at(request, tmp_path):
    """A place for files: its URI, what writes one there, and the config that reads them."""
    if request.param == "S3":
        put, bucket = request.getfixturevalue("put"), request.getfixturevalue("bucket")
        config = config_of(request.getfixturevalue("moto_endpoint"), tmp_path)
        return f"s3://{bucket}", put, config

    def write(name: str, body: bytes) -> None:
        path = tmp_path / "disk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    return str(tmp_path / "disk"), write, repo_config(tmp_path)


POINTER = "shop/orders/_feast_dynamo/current.json"


@pytest.mark.parametrize(
    "path",
    [
        "shop/orders",
        "shop/orders/",
        "shop",
        "",
        "shop/orders/*.parquet",
        "shop/*/",
        "**/*.parquet",
    ],
)
def test_a_folder_with_the_pointer_of_an_earlier_version_is_refused(at, path):
    root, put, config = at
    put("shop/orders/_feast_dynamo/20260131T120000Z-1f/part-000-00000.parquet", parquet(x=[1]))
    put("shop/visits/a.parquet", parquet(x=[2]))
    put(POINTER, b"{}")
    folder = f"{root}/shop/orders".removeprefix("s3://")
    message = rf"`orders`: {folder} was compacted by `feast-dynamo compact` of an earlier version"

    def source():
        return FileSource(name="orders", path=f"{root}/{path}", timestamp_field="event")

    # As cleaned after its last run, and with what was appended since.
    for appended in (False, True):
        if appended:
            put("shop/orders/b.parquet", parquet(x=[3]))
        with pytest.raises(SourceReadError, match=message):
            ParquetSource.open(source(), config)


def test_nothing_is_appended_to_a_folder_with_the_pointer_of_an_earlier_version(at):
    root, put, config = at
    put(POINTER, b"{}")
    path = f"{root}/shop/orders"
    source = FileSource(name="orders", path=path, timestamp_field="event")
    entity = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    view = FeatureView(name="orders", entities=[entity], schema=SCHEMA, source=source)
    rows = pa.table({"cid": [9], "event": pa.array([0], pa.timestamp("us", "UTC")), "x": [9]})
    with pytest.raises(SourceReadError, match="was compacted by"):
        append_rows(view, config, rows)
    place = Place.from_uri(path, config.offline_store.aws())
    assert [file.path for file in place.everything()] == [
        f"{root}/{POINTER}".removeprefix("s3://")
    ]


def test_a_pointer_beside_what_a_source_means_is_passed_over(at):
    root, put, config = at
    for name in (f"_old/{POINTER}", "shop/orders/_feast_dynamo/current.json.old"):
        put(name, b"{}")
    put("shop/orders/a.parquet", parquet(x=[1]))
    source = FileSource(name="orders", path=root, timestamp_field="event")
    assert values(ParquetSource.open(source, config)) == [1]


# The real command


REPO = """
from datetime import timedelta
from feast import Entity, FeatureView, ValueType
from feast_dynamo_ext import S3ParquetSource

customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
orders = FeatureView(
    name="orders",
    entities=[customer],
    ttl=timedelta(days=2),
    source=S3ParquetSource(
        name="orders",
        path="{path}",
        timestamp_field="event",
        date_partition_column="dt",
        tags={{"team": "growth"}},
    ),
)
"""


def test_feast_apply_infers_its_schema_and_keeps_it(
    put, moto_endpoint, bucket, tmp_path, fork_server
):
    moment = dt.datetime(2025, 1, 31, 12, tzinfo=UTC)
    event = pa.array([moment], pa.timestamp("us", "UTC"))
    put("orders/dt=2025-01-30/a.parquet", cid=[1], event=event, n=pa.array([1], pa.int32()))
    put("orders/dt=2025-01-31/a.parquet", cid=[1], event=event, n=[2], late=["x"])
    aws = {"region": REGION, "endpoint_url": moto_endpoint}
    write_repo_yaml(tmp_path, project="shop", online=aws, offline=aws)
    (tmp_path / "repo.py").write_text(REPO.format(path=f"s3://{bucket}/orders"))
    done = fork_server.run("feast", "apply", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    store = FeatureStore(str(tmp_path))
    view = store.get_feature_view("orders")
    assert {field.name: str(field.dtype) for field in view.features} == {
        "n": "Int64",
        "late": "String",
    }
    source = store.get_data_source("orders")
    assert type(source) is S3ParquetSource
    assert source == view.batch_source
    assert (source.date_partition_column, source.tags["team"]) == ("dt", "growth")
    rows = pa.table({"cid": [1, 2], "event_timestamp": pa.concat_arrays([event, event])})
    job = store.get_historical_features(
        entity_df=rows.to_pandas(), features=["orders:n", "orders:late"]
    )
    found = job.to_arrow().select(["n", "late"]).to_pydict()
    assert found == {"n": [2, None], "late": ["x", None]}
    store.teardown()


def test_an_object_that_was_replaced_within_a_second_is_another_one(
    put, moto_endpoint, bucket, tmp_path
):
    """S3 tells times in whole seconds; the ETag tells contents apart, and the same from others."""
    customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    source = FileSource(name="orders", path=f"s3://{bucket}/orders", timestamp_field="event")
    view = FeatureView(name="orders", entities=[customer], schema=SCHEMA, source=source)
    config, event = config_of(moto_endpoint, tmp_path), pa.array([0], pa.timestamp("us", "UTC"))
    found = []
    for value in (1, 2, 2):
        put("orders/a.parquet", cid=[1], x=[value], event=event)
        history = History(config, S3ParquetOfflineStore(), view, Columns.from_view(view))
        found.append(history.fingerprint)
    assert found[0] != found[1] == found[2]
