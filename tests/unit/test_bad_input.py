"""Bad input gives one error of our tree, which names the thing and the way out."""

from __future__ import annotations

import datetime as dt
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView, ValueType
from feast.importer import import_class
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import load_repo_config
from feast.types import Float64, String
from repos import NoRegistry
from views import CUSTOMER, customer_view, parquet_files

import feast_dynamo_ext
from feast_dynamo_ext import DynamoProvider, aws, errors
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.dynamo.control_items import ABSENT, ControlItem
from feast_dynamo_ext.dynamo.encoding.values import encode_column
from feast_dynamo_ext.dynamo.layouts.packed import key_bytes
from feast_dynamo_ext.dynamo.tables.describe import (
    TableClients,
    TableSpec,
    read_recovery,
    read_tags,
    read_ttl,
)
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsUnavailableError,
    ColumnTypeError,
    ConfigError,
    CredentialsError,
    DependencyError,
    EntityRowsError,
    FeastDynamoError,
    IncompleteReadError,
    IncompleteWriteError,
    SourceNotFoundError,
    UnsupportedTypeError,
)
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.storage import S3Files

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone.utc)

YAML = """
project: shop
provider: feast_dynamo_ext.DynamoProvider
registry: registry.db
online_store:
  type: feast_dynamo_ext.DynamoOnlineStore
  {online}
offline_store:
  type: feast_dynamo_ext.S3ParquetOfflineStore
  {offline}
entity_key_serialization_version: 3
"""


def load(tmp_path, online="region: eu-west-1", offline="region: eu-west-1"):
    path = tmp_path / "feature_store.yaml"
    path.write_text(YAML.format(online=online, offline=offline))
    config = load_repo_config(tmp_path, path)
    assert config.online_store is not None
    assert config.offline_store is not None
    return config


def test_the_yaml_of_the_readme_loads(tmp_path):
    config = load(tmp_path)
    assert config.online_store.region == "eu-west-1"
    assert config.online_store.table_name_template == "{project}.{table_name}"


def test_names_of_feasts_own_dynamodb_store_are_taken(tmp_path):
    names = {
        "batch_size": 40,
        "endpoint_url": "http://127.0.0.1:1",
        "region": "eu-west-1",
        "table_name_template": "x_{project}_{table_name}",
        "consistent_reads": True,
        "warmup_connections": True,
        "tags": {"team": "growth"},
        "session_based_auth": True,
        "max_read_workers": 3,
        "max_pool_connections": 7,
        "keepalive_timeout": 12.5,
        "connect_timeout": 1,
        "read_timeout": 2,
        "total_max_retry_attempts": None,
        "retry_mode": "standard",
    }
    from feast_dynamo_ext import DynamoOnlineStoreConfig

    config = DynamoOnlineStoreConfig(**names)
    assert {name: getattr(config, name) for name in names} == names


@pytest.mark.parametrize(
    ("online", "offline", "message"),
    [
        ("regoin: eu-west-1", "", r"online_store.*unknown key `regoin`.*Did you mean `region`"),
        ("", "memory: 4GB", r"offline_store.*unknown key `memory`"),
        ("max_future: 1 parsec", "", "`max_future`: must be a number, without a unit. `feast-d"),
        ("max_future: -1", "", "yaml: `max_future`: Input should be greater.* to 0. `feast-d"),
        ("batch_size: many", "", "`batch_size`: must be a whole number, without a unit"),
        ("batch_size: 101", "", r"online_store.*`batch_size`.*100"),
        ("table_name_template: all", "", r"`table_name_template`.*\{table_name\}"),
        ("table_name_template: '{view}'", "", r"`table_name_template`.*\{project\}"),
        ("", "memory_limit: lots", r"offline_store.*`memory_limit`"),
        ("region: ${NO_SUCH_VARIABLE}", "", r"`region`.*NO_SUCH_VARIABLE is not set"),
        *(
            (f"endpoint_url: '{url}'", "", rf"online_store.*`endpoint_url` is `{url}`.*scheme")
            for url in ("", "localhost:8000", "localhost", "http//x:1", "http://", "http://a b:1")
        ),
        *(
            ("", f"endpoint_url: '{url}'", rf"offline_store.*`endpoint_url` is `{url}`.*//s3\.eu")
            for url in ("127.0.0.1:9000", "ftp://x", "http://x:port", "http://x:99999", "//x:1")
        ),
    ],
)
def test_a_setting_that_cannot_work_is_named(tmp_path, online, offline, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, online, offline)


def test_a_key_at_the_top_that_nothing_reads_is_warned_of_once(tmp_path, caplog):
    path = tmp_path / "feature_store.yaml"
    extra = "onlinestore: 1\nofflinestore: 1\nbatchengine: 1\nfeature-server: 1\n"
    owners = "x-online: 1\n_registry: 1\n.project: 1\nteam: growth\n"
    text = YAML.format(online="region: eu-west-1", offline="") + extra + owners
    of_registry = "registry:\n  path: registry.db\n  cache_ttl_second: 5\n  mine: 1\n"
    path.write_text(re.sub("registry: .*\n", of_registry, text))
    for _ in range(2):
        config = load_repo_config(tmp_path, path)
        config.repo_path = tmp_path
        provider = DynamoProvider(config)
        provider.online_store.connection(config)
    said = {r.getMessage() for r in caplog.records if r.name == "feast_dynamo_ext.config"}
    assert len(caplog.records) == len(said) == 5
    for key, meant in {
        "onlinestore": "online_store",
        "offlinestore": "offline_store",
        "batchengine": "batch_engine",
        "feature-server": "feature_server",
        "registry.cache_ttl_second": "registry.cache_ttl_seconds",
    }.items():
        words = f"feature_store.yaml: nothing reads the key `{key}`. Did you mean `{meant}`?"
        assert words in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL is `localhost:8000`"),
        ("AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_DYNAMODB is `localhost:8000`"),
        ("AWS_REGION", "AWS region `localhost:8000` cannot be the name of one"),
        ("AWS_PROFILE", "AWS profile `localhost:8000` does not exist"),
    ],
)
def test_a_variable_that_cannot_work_is_named(open_store, monkeypatch, name, message):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv(name, "localhost:8000")
    with pytest.raises(ConfigError, match=message):
        open_store(online={}).apply([CUSTOMER, orders("nowhere")])


PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
HEADERS = {"Content-Type": "text/html", "X-From": "a proxy"}
NOT_AWS = r"http://127\.0\.0\.1:\d+ answered HTTP \d+ with something that is not AWS's answer"
PAGES = [(status, page) for status in (200, 302, 404, 503) for page in (PAGE, PAGE[15:])]


@pytest.mark.parametrize(
    ("status", "page"),
    [*PAGES, *((200, page) for page in (b"", b'{"status": "ok"}', b"{}"))],
)
def test_an_endpoint_that_is_not_dynamodb_is_named(open_store, scripted_http, status, page):
    url = scripted_http([(status, page, HEADERS)] * 100)
    online = {"region": "us-east-1", "endpoint_url": url}
    store = open_store(online={**online, "total_max_retry_attempts": 1})
    not_aws = NOT_AWS.replace(r"\d+ with", f"{status} with")
    words = rf"DescribeTable: {not_aws} \(Content-Type: text/html, Server: .*`endpoint_url`"
    with pytest.raises(AwsUnavailableError, match=words):
        store.apply([CUSTOMER, orders("nowhere")])
    with pytest.raises(AwsUnavailableError, match=f"ListTables: {NOT_AWS}"):
        store.teardown()
    clients = TableClients(store.provider.online_store.connection(store.config).client, None)
    described, spec = {"TableArn": "arn:aws:dynamodb:::table/t"}, TableSpec("t", "v")
    for read in (read_ttl, read_tags, read_recovery):
        with pytest.raises(AwsUnavailableError, match=NOT_AWS):
            read(clients, spec, described)
    if page != b"{}":  # as which DynamoDB answers a key that there is not
        item = ControlItem(clients.dynamodb, "t", b"lease")
        for call in (item.read, lambda: item.put({"a": 1}, ABSENT), lambda: item.delete({})):
            with pytest.raises(AwsUnavailableError, match=NOT_AWS):
                call()


@pytest.mark.parametrize(("status", "page"), PAGES[:6])
def test_an_endpoint_that_is_not_s3_is_named(scripted_http, status, page):
    url = scripted_http([(status, page, HEADERS)] * 9)
    files = S3Files(aws.client("s3", AwsSettings("us-east-1", url)))
    with pytest.raises(AwsUnavailableError, match=f"ListObjectsV2: {NOT_AWS}"):
        list(files.below("s3://bucket/history/"))
    with (
        pytest.raises(AwsUnavailableError, match=f"PutObject: {NOT_AWS}"),
        files.new_file("s3://bucket/history/a") as file,
    ):
        file.write(b"rows")


def test_a_page_that_refuses_is_a_refusal(scripted_http):
    client = aws.client("dynamodb", AwsSettings("us-east-1", scripted_http([(403, PAGE)])))
    item = ControlItem(client, "t", b"lease")
    with pytest.raises(AccessDeniedError, match="403"):
        item.read()


@pytest.mark.slow
def test_a_stopped_local_server_is_named(open_store, monkeypatch):
    words = r"127.0.0.1:1\b.*If that is the embedded AWS, .* `feast-dynamo local up`"
    url = "http://127.0.0.1:1"
    online = {"region": "us-east-1", "endpoint_url": url, "total_max_retry_attempts": 1}
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    store = open_store(online=online)
    with pytest.raises(AwsUnavailableError, match=words):
        store.apply([CUSTOMER, orders("nowhere")])
    rows = [(EntityKey(), {"total": Value(double_val=1.0)}, NOON, None)]
    online_store = store.provider.online_store
    with pytest.raises(IncompleteWriteError, match=words):
        online_store.online_write_batch(store.config, customer_view(), rows, None)
    with pytest.raises(IncompleteReadError, match=words):
        online_store.online_read(store.config, customer_view(), [EntityKey()])
    with pytest.raises(AwsUnavailableError, match="If that is the embedded AWS"):
        ParquetSource.open(parquet_files("s3://bucket/orders"), store.config)
    assert aws.local_advice("https://dynamodb.eu-west-1.amazonaws.com") == ""


def test_of_several_sources_that_are_not_there_the_first_views_is_named(open_store, tmp_path):
    from feast_dynamo_ext import S3ParquetOfflineStore

    views = [
        customer_view(name, parquet_files(tmp_path / name)) for name in ("visits", "orders", "a")
    ]
    rows = pd.DataFrame({"cid": [1], "event_timestamp": [pd.Timestamp("2026-01-01", tz="UTC")]})
    references = [f"{view.name}:total" for view in views]
    job = S3ParquetOfflineStore.get_historical_features(
        open_store().config, views, references, rows, NoRegistry(), "p", full_feature_names=True
    )
    with pytest.raises(SourceNotFoundError, match="visits"):
        job.to_df()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DynmoOnlineStoreConfig", "`DynmoOnlineStore`. Did you mean `DynamoOnlineStore`?"),
        ("DynamoProvder", "`DynamoProvder`. Did you mean `DynamoProvider`?"),
        ("S3ParqetOfflineStore", "Did you mean `S3ParquetOfflineStore`?"),
    ],
)
def test_a_misspelt_class_is_named(name, meant):
    with pytest.raises(ConfigError, match=re.escape(meant)):
        import_class("feast_dynamo_ext", name)
    assert not hasattr(feast_dynamo_ext, "anything_else")


def test_a_missing_region_is_said_where_aws_is_first_needed(open_store):
    store = open_store(online={})
    with pytest.raises(ConfigError, match=r"No AWS region.*AWS_REGION"):
        store.apply([CUSTOMER, orders("nowhere")])


def test_aws_region_of_the_environment_is_enough(open_store, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    connection = open_store(online={}).config.online_store.connection()
    from feast_dynamo_ext import aws

    assert aws.session(connection.aws).region_name == "eu-west-1"


def test_an_unknown_profile_is_named(open_store):
    store = open_store(online={"profile": "nobody", "region": "eu-west-1"})
    with pytest.raises(ConfigError, match=r"profile `nobody`"):
        store.apply([CUSTOMER, orders("nowhere")])


def test_missing_credentials_are_said(open_store, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    store = open_store(online={"region": "eu-west-1"})
    with pytest.raises(CredentialsError, match="no AWS credentials were found"):
        store.apply([CUSTOMER, orders("nowhere")])


def test_wrong_credentials_are_said_by_apply_and_by_reads_and_writes(open_store, scripted_http):
    refusal = {
        "__type": "com.amazon.coral.service#UnrecognizedClientException",
        "message": "The security token included in the request is invalid.",
    }
    endpoint = scripted_http([(400, refusal)] * 3)
    store = open_store(online={"region": "us-east-1", "endpoint_url": endpoint})
    view = orders("nowhere")
    with pytest.raises(CredentialsError, match=r"DescribeTable on table p\.orders.*credentials"):
        store.apply([CUSTOMER, view])
    key = EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=1)])
    with pytest.raises(CredentialsError, match=r"BatchGetItem on p\.orders.*credentials"):
        store.provider.online_read(store.config, view, [key], ["total"])
    row = (key, {"total": Value(double_val=1.0)}, NOON, None)
    with pytest.raises(CredentialsError, match=r"BatchWriteItem on p\.orders"):
        store.provider.online_write_batch(store.config, view, [row], None)


def test_an_endpoint_nobody_listens_on_is_named(open_store):
    online = {
        "region": "us-east-1",
        "endpoint_url": "http://127.0.0.1:9",
        "retry_mode": "standard",
    }
    store = open_store(online={**online, "total_max_retry_attempts": 1})
    with pytest.raises(AwsUnavailableError, match=r"table p\.orders.*127\.0\.0\.1:9"):
        store.apply([CUSTOMER, orders("nowhere")])


def orders(path: str, dtype=Float64, **source) -> FeatureView:
    return customer_view(source=parquet_files(path, name="orders", **source), total=dtype)


def retrieve(open_store, tmp_path, frame, **columns):
    """Retrieve `total` from a history file with some columns replaced."""
    history = {
        "cid": pa.array([1]),
        "event_timestamp": pa.array([NOON], pa.timestamp("us")),
        "total": pa.array([1.0]),
        **columns,
    }
    pq.write_table(pa.table(history), tmp_path / "orders.parquet")
    config = open_store(online={"region": "us-east-1"}).config
    from feast_dynamo_ext import S3ParquetOfflineStore

    job = S3ParquetOfflineStore.get_historical_features(
        config, [orders("orders.parquet")], ["orders:total"], frame, NoRegistry(), "p"
    )
    return job.to_arrow()


GOOD = pd.DataFrame({"cid": [1], "event_timestamp": [pd.Timestamp(NOON)]})


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (GOOD.drop(columns="cid"), EntityRowsError, r"\['cid'\] of feature view `orders`"),
        (GOOD.head(0), EntityRowsError, "entity rows are empty"),
        (
            GOOD.assign(event_timestamp=["2026-01-01"]),
            ColumnTypeError,
            r"Entity rows: column `event_timestamp`.*pd\.to_datetime",
        ),
        (GOOD.drop(columns="event_timestamp"), EntityRowsError, "need a column `event_timestamp`"),
        (
            GOOD.assign(event_timestamp=pd.Series([pd.NaT], dtype="datetime64[ns, UTC]")),
            EntityRowsError,
            "1 rows have no `event_timestamp`",
        ),
        (GOOD.assign(cid=["one"]), EntityRowsError, r"Join key `cid` is string.*int64"),
        (GOOD.assign(cid=[1.5]), EntityRowsError, r"join key `cid`.*`orders`"),
        (GOOD.assign(total=[0]), EntityRowsError, r"\['total'\].*full_feature_names"),
        (GOOD.assign(mixed=[{1: 2}]), EntityRowsError, "cannot be held by Arrow"),
        (3, EntityRowsError, "int"),
    ],
)
def test_entity_rows_that_cannot_be_joined(open_store, tmp_path, frame, error, message):
    with pytest.raises(error, match=message):
        retrieve(open_store, tmp_path, frame)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"event_timestamp": pa.array(["2026-01-01"])},
            ColumnTypeError,
            r"`orders`.*orders\.parquet: column `event_timestamp` has type string",
        ),
        (
            {"total": pa.array([1], pa.duration("s"))},
            UnsupportedTypeError,
            r"`orders`: column `total` is a duration",
        ),
        ({"cid": pa.array([[1]])}, ColumnTypeError, r"[Jj]oin key `cid` .*has type list"),
    ],
)
def test_files_that_cannot_serve(open_store, tmp_path, columns, error, message):
    with pytest.raises(error, match=message):
        retrieve(open_store, tmp_path, GOOD, **columns)


def test_an_uint64_key_over_int64_is_named(open_store, tmp_path):
    with pytest.raises(ColumnTypeError, match=r"`orders`.*`cid`.*1 of 1 values of type uint64"):
        retrieve(open_store, tmp_path, GOOD, cid=pa.array([2**63], pa.uint64()))


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (pa.array([1.5]), ValueType.INT64, r"`total` is declared as INT64.*double"),
        (pa.array([2**40]), ValueType.INT32, r"`total` is declared as INT32"),
        (pa.array(["x"]), ValueType.DOUBLE, r"`total` is declared as DOUBLE.*string"),
        (pa.array([2**53 + 1]), ValueType.DOUBLE, r"`total` is declared as DOUBLE.*int64"),
        (pa.array(["x"]), ValueType.INT64_LIST, r"`total` is declared as INT64_LIST"),
    ],
)
def test_a_column_that_does_not_fit_its_feature_is_named(column, kind, message):
    with pytest.raises(ColumnTypeError, match=message):
        encode_column(column, kind, "total")


def test_a_null_join_key_in_history_is_refused_before_it_is_written(open_store, tmp_path):
    from feast_dynamo_ext.errors import EntityKeyError

    view = orders("nowhere", dtype=String)
    proto = EntityKey(join_keys=["cid"], entity_values=[Value()])
    with pytest.raises(EntityKeyError, match="not null"):
        key_bytes(proto, view.name)


def test_the_tree_in_the_docstring_is_the_tree():
    classes = [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, FeastDynamoError)
    ]
    assert {item.__name__ for item in classes} <= set(errors.__doc__.replace("(", " ").split())
    assert issubclass(DependencyError, ImportError)
