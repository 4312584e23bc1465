"""What a view's history table is made as: types, layout, partition, name, and its source."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal as Number
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.types import (
    Array,
    Bool,
    Bytes,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    ScalarMap,
    Set,
    String,
    Struct,
    TimeUuid,
    UnixTimestamp,
    Uuid,
    ZonedTimestamp,
)
from repos import repo_config
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.errors import (
    ColumnTypeError,
    ConfigError,
    DependencyError,
    DestinationExistsError,
)
from feast_dynamo_ext.parquet.iceberg.import_plan import read_history
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout
from feast_dynamo_ext.parquet.iceberg.view_table import (
    Extent,
    column_type,
    drop,
    exists,
    make,
    name_of_table,
    partition_for,
    plan_table,
    readers_of,
    source_code,
    table_type,
)

TIMES = pa.timestamp("us", "UTC")
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (Bool, pa.bool_()),
        (Int32, pa.int32()),
        (Int64, pa.int64()),
        (Float32, pa.float32()),
        (Float64, pa.float64()),
        (String, pa.string()),
        (Bytes, pa.binary()),
        (UnixTimestamp, TIMES),
        (ZonedTimestamp, TIMES),
        (Uuid, pa.string()),
        (TimeUuid, pa.string()),
        (Decimal, pa.string()),
        (Json, pa.string()),
        (Map, pa.string()),
        (Array(Map), pa.string()),
        (Array(Int64), pa.list_(pa.int64())),
        (Array(Bytes), pa.list_(pa.binary())),
        (Array(UnixTimestamp), pa.list_(TIMES)),
        (Set(String), pa.list_(pa.string())),
        (Array(Array(Float32)), pa.list_(pa.list_(pa.float32()))),
        (Struct({"a": Int64, "b": String}), pa.struct([("a", pa.int64()), ("b", pa.string())])),
        (Array(Struct({"a": Int32})), pa.list_(pa.struct([("a", pa.int32())]))),
    ],
)
def test_a_declared_type_has_its_own_in_a_table(dtype, kind):
    assert column_type(dtype, None).equals(kind, check_metadata=False), column_type(dtype, None)


@pytest.mark.parametrize(
    ("dtype", "own", "kind"),
    [
        (Int64, pa.int32(), pa.int64()),
        (Int32, pa.int64(), pa.int64()),
        (Float32, pa.float64(), pa.float64()),
        (Array(Float32), pa.list_(pa.float64()), pa.list_(pa.float64())),
        (Int64, pa.uint32(), pa.int64()),
        (Int64, pa.uint64(), pa.int64()),
        (String, pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (Decimal, pa.decimal128(9, 2), pa.decimal128(9, 2)),
        (UnixTimestamp, pa.timestamp("ns"), pa.timestamp("us")),
        (UnixTimestamp, pa.int64(), TIMES),
        (Map, pa.map_(pa.string(), pa.float64()), pa.map_(pa.string(), pa.float64())),
        (Map, pa.map_(pa.string(), pa.duration("s")), pa.string()),
        (Float64, pa.null(), pa.float64()),
    ],
)
def test_a_wider_or_an_open_type_of_files_stays(dtype, own, kind):
    assert column_type(dtype, own) == kind


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        (pa.int16(), pa.int32()),
        (pa.uint32(), pa.int64()),
        (pa.uint64(), pa.int64()),
        (pa.float16(), pa.float32()),
        (pa.duration("s"), None),
        (pa.month_day_nano_interval(), None),
        (pa.null(), None),
        (pa.time32("ms"), pa.time64("us")),
        (pa.date64(), pa.date32()),
        (pa.decimal256(40, 2), pa.decimal128(38, 2)),
        (pa.decimal256(50, 40), None),
        (pa.decimal256(20, 2), pa.decimal128(20, 2)),
        (pa.binary(3), pa.binary(3)),
        (pa.large_list(pa.int8()), pa.list_(pa.int32())),
        (pa.list_(pa.duration("s")), None),
        (pa.struct([("a", pa.duration("s"))]), None),
        (pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.int32())),
    ],
)
def test_the_type_of_a_table_that_holds_one_of_arrow(own, kind):
    assert table_type(own) == kind


DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    ("megabytes", "days", "partition"),
    [
        (0, None, "month"),
        (5, 400, "none"),
        (5, 1, "month"),
        (50, 400, "month"),
        (50, None, "month"),
        (5, None, "none"),
        (40, 1, "day"),
        (33 * 1.05 * 730, 730, "day"),
        (30 * 730, 730, "month"),
    ],
)
def test_partitions_are_as_large_as_a_file_should_be(megabytes, days, partition):
    last = None if days is None else days * DAY_US
    extent = Extent(int(megabytes * 2**20), None if days is None else 0, last)
    assert partition_for(extent)[0] == partition


def named(view="orders", table=None, project="shop", **catalog):
    config = repo_config("/nowhere", catalog={"type": "sql", **catalog})
    config.project = project
    return name_of_table(SimpleNamespace(name=view), config, table)


def test_a_table_is_named_like_its_view():
    assert named("Customer-Orders") == "shop.Customer-Orders"
    assert named(namespace="history") == "history.orders"
    assert named(table="other") == "shop.other"
    glue = {"type": "glue", "warehouse": "s3://b"}
    assert named("customer_orders7", **glue) == "shop.customer_orders7"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            {"view": "Customer-Orders", "type": "glue"},
            r"`Customer-Orders`.*lower-case letters, digits.*`--table customer_orders`",
        ),
        (
            {"project": "my-shop", "type": "glue"},
            r"namespace `my-shop`.*`catalog: \{namespace: my_shop\}`",
        ),
        ({"table": "a.b"}, r"table `a\.b`.*letters, digits and underscores.*`--table a_b`"),
        (
            {"view": "Orders", "type": "rest", "properties": {"rest.signing-name": "s3tables"}},
            r"`--table orders`",
        ),
    ],
)
def test_a_name_that_the_catalog_refuses_is_refused_with_one_it_takes(case, said):
    with pytest.raises(ConfigError, match=said):
        named(**case)


def test_without_a_catalog_the_error_says_what_to_set(tmp_path):
    with pytest.raises(ConfigError, match=r"`catalog: \{type: glue, warehouse: s3://.*type: sql"):
        plan_table(customer_view(), repo_config(tmp_path))


@pytest.mark.parametrize(
    ("catalog", "said"),
    [
        ({"type": "sql", "warehouse": "s3//bad"}, r"`s3//bad`, which would be a folder.*s3://b"),
        ({"type": "sql", "warehouse": "s3:/bad"}, r"`s3:/bad`, which would be a folder"),
        ({"type": "sql", "warehouse": "s3:///bad"}, r"`s3:///bad`, which would be a folder"),
        ({"type": "sql", "uri": "data/my.db"}, r"`uri: data/my\.db` .*`sqlite:///data/my\.db`"),
        *[
            ({"type": "glue", "warehouse": warehouse}, rf"`warehouse: {warehouse}`.*s3://bucket")
            for warehouse in ("s3a://b/x", "s3n://b", "bucket/x", "data/wh", "s3//b", "s3://")
        ],
    ],
)
def test_a_setting_of_the_catalog_that_is_none_is_named(tmp_path, catalog, said):
    with pytest.raises(ConfigError, match=said):
        plan_table(customer_view(), repo_config(tmp_path, catalog=catalog))


def test_a_driver_that_is_missing_is_named(tmp_path):
    for uri, said in {
        "postgresql+pg8000://u:secret@127.0.0.1:9/x": r"`postgresql\+pg8000://`.*pg8000",
        "nothing://127.0.0.1/x": r"`nothing://` is not installed",
    }.items():
        config = repo_config(tmp_path, catalog={"type": "sql", "uri": uri})
        with pytest.raises(DependencyError, match=said) as caught:
            exists(plan_table(customer_view(), config).handle)
        assert "feast-dynamo-ext" not in str(caught.value)
        assert "secret" not in str(caught.value)


def test_the_folders_of_a_catalog_are_made(tmp_path):
    catalog = {"type": "sql", "uri": "sqlite:///x/y/z.db", "warehouse": "s3x/here"}
    make(
        plan_table(
            customer_view(source=parquet_files("none")), repo_config(tmp_path, catalog=catalog)
        )
    )
    assert (tmp_path / "x" / "y" / "z.db").exists()
    assert (tmp_path / "s3x" / "here").exists()


@pytest.mark.parametrize("name", ["a%20b", "100%", "ü [1]", "a+b;c&d='e'"])
def test_a_feature_repo_may_be_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    config = repo_config(folder, catalog="sql")
    view = customer_view(source=parquet_files(folder / "orders"), name="orders", value=Int64)
    rows = pa.table({"cid": [7], "event_timestamp": pa.array([START], TIMES)})
    make(plan_table(view, config)).append(rows)
    assert sorted(path.name for path in folder.glob("data/*")) == ["iceberg.db", "warehouse"]
    table = plan_table(view, config).handle.load()
    assert table.scan().to_arrow().column("cid").to_pylist() == [7]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "cut"), [("a#b", "#"), ("what?", r"\?")])
def test_a_place_whose_path_readers_of_iceberg_would_end_is_refused(tmp_path, name, cut):
    (tmp_path / name).mkdir()
    view = customer_view(source=parquet_files(tmp_path / "orders"), name="orders", value=Int64)
    said = (
        rf"cannot be in 'file://.*data/warehouse': readers of Iceberg end its path at the '{cut}'"
    )
    with pytest.raises(ConfigError, match=said):
        plan_table(view, repo_config(tmp_path / name, catalog="sql"))
    assert list((tmp_path / name).iterdir()) == []
    elsewhere = {"type": "sql", "warehouse": f"s3://bucket/{name}"}
    with pytest.raises(ConfigError, match=rf"cannot be in 's3://bucket/.*{cut}"):
        plan_table(view, repo_config(tmp_path, catalog=elsewhere))


@pytest.mark.parametrize("partition", ["day", "month"])
def test_a_feature_may_be_named_like_the_partition(tmp_path, partition):
    name = f"Event_timestamp_{partition}"
    view = customer_view(source=parquet_files("none"), **{name: Int64, f"{name}_2": Int64})
    new = plan_table(view, repo_config(tmp_path, catalog="sql"), partition=partition)
    table = make(new)
    assert [part.name for part in table.spec().fields] == [f"event_timestamp_{partition}_3"]
    assert TableLayout.from_table(table) == new.layout


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"total": Float64, "Total": Float64}, r"`total` and `Total`, whose names differ in case"),
        ({"CID": Float64}, r"`cid` and `CID`"),
        ({"_Feast_Sequence": Int64}, r"`_Feast_Sequence`, which is named as"),
    ],
)
def test_columns_that_differ_in_case_only_are_refused(tmp_path, features, said):
    view = customer_view(source=parquet_files("none"), **features)
    with pytest.raises(ColumnTypeError, match=said):
        plan_table(view, repo_config(tmp_path, catalog="sql"))


ITEM = Entity(name="item", join_keys=["iid"], value_type=ValueType.STRING)


def view_of(source, **features):
    return customer_view(entities=[ITEM, CUSTOMER], source=source, **features)


def test_maps_of_other_keys_than_texts_need_a_file_that_says_which(tmp_path):
    config = repo_config(tmp_path, catalog="sql")
    view = customer_view(source=parquet_files(tmp_path / "orders"), name="orders", n=ScalarMap)
    with pytest.raises(ColumnTypeError, match=r"`orders` declares `n` as ScalarMap.*Declare Map"):
        plan_table(view, config)
    kind = pa.map_(pa.int64(), pa.float32())
    new = plan_table(view, config, there=pa.schema([("n", kind)]))
    assert new.columns.field("n").type == kind


def test_a_table_has_keys_times_and_features_under_the_names_of_the_files(tmp_path):
    source = parquet_files(
        tmp_path / "none",
        created_timestamp_column="made",
        field_mapping={"t": "event_timestamp", "customer": "cid"},
    )
    view = view_of(source, iid=String, cid=Int64, total=Float64, labels=Array(String))
    new = plan_table(view, repo_config(tmp_path, catalog="sql"))
    keys = tuple(column.name.replace("cid", "customer") for column in view.entity_columns)
    assert set(keys) == {"iid", "customer"}
    assert new.layout == TableLayout(keys, "t", "made", "month")
    assert new.columns.names == [*keys, "t", "made", "total", "labels"]
    assert (new.columns.field("t").type, new.columns.field("made").type) == (TIMES, TIMES)
    table = make(new)
    assert TableLayout.from_table(table) == new.layout
    assert {str(field.field_type) for field in table.schema().fields} == {
        *("string", "long", "timestamptz", "double", "list<string>")
    }
    with pytest.raises(DestinationExistsError, match=r"p\.orders is there already.*--table"):
        make(new)


def test_a_table_has_the_columns_of_all_views_of_a_source_and_of_its_files(tmp_path):
    rows = pa.table(
        {
            "cid": pa.array([1], pa.int64()),
            "event_timestamp": pa.array([START], pa.timestamp("ms", "UTC")),
            "total": [0.5],
            "small": pa.array([1], pa.int16()),
            "price": pa.array([Number("1.10")], pa.decimal128(9, 2)),
        }
    )
    folder = tmp_path / "orders" / "land=DE"
    folder.mkdir(parents=True)
    pq.write_table(rows, folder / "a.parquet")
    source = parquet_files(tmp_path / "orders")
    view, other = customer_view(source=source), customer_view("more", source, later=String)
    config = repo_config(tmp_path, catalog="sql")
    history = read_history(view, config)
    assert history.extent().days == 1
    new = plan_table(view, config, readers=[other], there=history.schema, extent=history.extent())
    assert {column.name: column.type for column in new.columns} == {
        "cid": pa.int64(),
        "event_timestamp": TIMES,
        "total": pa.float64(),
        "later": pa.string(),
        "small": pa.int32(),
        "price": pa.decimal128(9, 2),
        "land": pa.string(),
    }
    assert new.layout.partition == "none"
    clashing = customer_view("more", source, total=String)
    with pytest.raises(ColumnTypeError, match=r"`more` declares the column `total` as string"):
        plan_table(view, config, readers=[clashing])


def test_a_view_without_entities_has_a_table_by_time(tmp_path):
    source = parquet_files(tmp_path / "none")
    view = customer_view(entities=[], source=source, total=Float64)
    new = plan_table(view, repo_config(tmp_path, catalog="sql"))
    assert new.layout == TableLayout((), "event_timestamp", None, "month")
    assert new.columns.names == ["event_timestamp", "total"]
    assert TableLayout.from_table(make(new)) == new.layout


def test_a_source_without_event_time_is_named(tmp_path):
    view = customer_view(source=FileSource(name="orders", path="none"))
    with pytest.raises(ConfigError, match=r"`orders` names no `timestamp_field`"):
        plan_table(view, repo_config(tmp_path, catalog="sql"))


def test_the_source_to_paste_reads_the_table(tmp_path):
    source = parquet_files(
        tmp_path / "none",
        name="orders_history",
        created_timestamp_column="made",
        field_mapping={"customer": "cid"},
        tags={"team": 'a "b"'},
    )
    view = customer_view(source=source)
    config = repo_config(tmp_path, catalog={"type": "sql", "properties": {"echo": "false"}})
    new = plan_table(view, config)
    make(new)
    code = source_code(source, new.handle.name, config)
    assert code == (
        "from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource\n\n"
        "IcebergSource(\n"
        '    name="orders_history",\n'
        '    catalog_type="sql",\n'
        '    endpoint="sqlite:///data/iceberg.db",\n'
        '    warehouse="data/warehouse",\n'
        '    namespace="p",\n'
        '    table="orders",\n'
        '    catalog_properties={"echo": "false"},\n'
        '    timestamp_field="event_timestamp",\n'
        '    created_timestamp_column="made",\n'
        '    field_mapping={"customer": "cid"},\n'
        '    tags={"team": \'a "b"\'},\n'
        ")"
    )
    pasted = eval(code.partition("\n\n")[2], {"IcebergSource": IcebergSource})  # noqa: S307
    table_view = FeatureView(
        name="orders", entities=[CUSTOMER], source=pasted, schema=[Field(name="cid", dtype=Int64)]
    )
    assert readers_of([view, table_view], new.handle, config) == ["orders"]
    assert readers_of([view], new.handle, config) == []
    assert pasted.field_mapping == source.field_mapping
    assert exists(new.handle)


def test_drop_leaves_files_unless_they_are_purged_and_then_deletes_listed_ones_alone(tmp_path):
    config = repo_config(tmp_path, catalog="sql")
    view = customer_view(source=FileSource(path="none", timestamp_field="t"))
    for purge in (False, True):
        new = plan_table(view, config)
        make(new)
        rows = pa.table(
            {
                "cid": pa.array([1], pa.int64()),
                "t": pa.array([START], TIMES),
                "total": [0.5],
            }
        )
        new.handle.append(rows)
        new.handle.append(rows)
        stranger = tmp_path / "data" / "warehouse" / "p" / "orders" / "data" / "mine.parquet"
        stranger.write_bytes(b"x")
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        deleted = drop(new.handle, purge=purge)
        gone = before - {path for path in tmp_path.rglob("*") if path.is_file()}
        assert not exists(new.handle)
        assert stranger.exists()
        assert len(gone) == deleted
        assert (deleted == 0) is not purge
