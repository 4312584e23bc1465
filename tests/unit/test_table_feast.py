"""Feast's own calls on Iceberg tables: appends, pushes, logs, saved datasets, other snapshots."""

from __future__ import annotations

import datetime as dt
import threading
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, ValueType
from feast.data_source import PushMode
from feast.feature_logging import LoggingConfig
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import LongType, StringType
from repos import open_repo_config

from feast_dynamo_ext import IcebergLoggingDestination, SavedDatasetIcebergStorage
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    ConfigError,
    CredentialsError,
    DestinationExistsError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.iceberg.catalog import opened
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.snapshot_files import tidy_after_append
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE, TableLayout, create_table
from feast_dynamo_ext.sagemaker import TimeSplit, create_training_set, load_manifest

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
HOUR = dt.timedelta(hours=1)
CUSTOMER = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
COLUMNS = pa.schema(
    [
        ("cid", pa.int64()),
        ("event", pa.timestamp("us", "UTC")),
        ("n", pa.int64()),
        ("ratio", pa.float32()),
        ("name", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("seen", pa.timestamp("us", "UTC")),
        ("on", pa.bool_()),
    ]
)


def source_of(folder, table="orders", **more) -> IcebergSource:
    return IcebergSource(
        name=table,
        catalog_type="sql",
        endpoint=f"sqlite:///{folder}/catalog.db",
        warehouse=f"file://{folder}/warehouse",
        namespace="shop",
        table=table,
        timestamp_field="event",
        **more,
    )


@pytest.fixture
def store(tmp_path):
    config = open_repo_config(
        tmp_path,
        provider="local",
        online_store={"type": "sqlite", "path": f"{tmp_path}/online.db"},
    )
    store = FeatureStore(config=config)
    handle = TableHandle.from_source(source_of(tmp_path), config)
    catalog = opened(handle.address, handle.settings)
    create_table(catalog, "shop.orders", COLUMNS, TableLayout(("cid",), "event", None, "day"))
    store.apply([CUSTOMER, *view_of(tmp_path)])
    return store


def view_of(folder, **more):
    source = source_of(folder, **more)
    pushed = PushSource(name="pushed", batch_source=source)
    fields = {
        "cid": Int64,
        "n": Int64,
        "ratio": Float32,
        "name": String,
        "tags": Array(String),
        "seen": UnixTimestamp,
        "on": Bool,
    }
    view = FeatureView(
        name="orders",
        entities=[CUSTOMER],
        schema=[Field(name=name, dtype=dtype) for name, dtype in fields.items()],
        source=pushed,
        ttl=dt.timedelta(0),
    )
    return [view, FeatureService(name="all", features=[view])]


def frame(*values, hour=0, **more):
    return pd.DataFrame(
        {
            "cid": list(values),
            "event": [START + hour * HOUR] * len(values),
            "n": [10 * value for value in values],
            "ratio": [value / 2 for value in values],
            "name": [f"name {value}" for value in values],
            "tags": [["a", str(value)] for value in values],
            "seen": [START + value * HOUR for value in values],
            "on": [value % 2 == 0 for value in values],
            **more,
        }
    )


def known(store, *cids, hour=5, features=("orders:n",)):
    rows = pd.DataFrame({"cid": cids, "event_timestamp": [START + hour * HOUR] * len(cids)})
    return store.get_historical_features(rows, list(features)).to_arrow()


def table_of(store):
    return TableHandle.from_source(source_of(store.config.repo_path), store.config).load()


def test_rows_are_appended_and_retrieved_and_read_by_others(store, monkeypatch):
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    store.write_to_offline_store("orders", frame(1, 2))
    store.push("pushed", frame(2, 3, hour=1, n=[7, 8]), to=PushMode.OFFLINE)
    assert known(store, 1, 2, 3, 4).column("n").to_pylist() == [10, 7, 8, None]
    assert known(store, 2, hour=0).column("n").to_pylist() == [20]
    table = table_of(store)
    rows = table.scan().to_arrow()
    ordered = rows.sort_by([("cid", "ascending"), ("event", "ascending")])
    assert ordered.column("n").to_pylist() == [10, 20, 7, 8]
    others = pl.scan_iceberg(table).sort("cid", "event").collect()
    assert others["tags"].to_list() == [["a", "1"], ["a", "2"], ["a", "2"], ["a", "3"]]
    assert len(set(rows.column(SEQUENCE).to_pylist())) == 4
    assert all(snapshot.summary["operation"].value == "append" for snapshot in table.snapshots())


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("n", [2.5], "`n` of the rows to append"),
        ("n", ["7"], "`n` of the rows to append"),
        ("ratio", [1e300], "`ratio` of the rows to append"),
        ("on", [2], "`on` of the rows to append"),
        ("event", [1_700_000_000], "`event` of the rows to append"),
    ],
)
def test_values_that_do_not_fit_are_refused_whole(store, column, values, said):
    before = table_of(store).metadata_location
    with pytest.raises(ColumnTypeError, match=said):
        store.write_to_offline_store("orders", frame(1, **{column: values}))
    assert table_of(store).metadata_location == before


def test_rows_without_a_required_value_are_refused(tmp_path, store):
    handle = TableHandle.from_source(source_of(tmp_path, "strict"), store.config)
    catalog = opened(handle.address, handle.settings)
    columns = pa.schema(
        [pa.field("cid", pa.int64(), nullable=False), ("event", pa.timestamp("us", "UTC"))]
    )
    catalog.create_table("shop.strict", columns)
    rows = pa.table({"cid": pa.array([1, None], pa.int64()), "event": [START, START]})
    with pytest.raises(ColumnTypeError, match=r"shop\.strict requires a value of `cid`.*1 of the"):
        handle.append(rows)


def test_an_append_with_the_same_id_happens_once(store):
    handle = TableHandle.from_source(source_of(store.config.repo_path), store.config)
    rows = (
        pa.Table.from_pandas(frame(1, 2), preserve_index=False).select(COLUMNS.names).cast(COLUMNS)
    )
    for _ in range(3):
        handle.append(rows, "batch 7")
    assert known(store, 1, 2).column("n").to_pylist() == [10, 20]
    assert table_of(store).scan().count() == 2


def test_many_threads_append_at_once(store):
    handle = TableHandle.from_source(source_of(store.config.repo_path), store.config)
    failures = []

    def work(cid):
        rows = pa.Table.from_pandas(frame(cid), preserve_index=False).select(COLUMNS.names)
        try:
            for _ in range(3):
                handle.append(rows.cast(COLUMNS))
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(cid,)) for cid in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    counts = table_of(store).scan().to_arrow().group_by("cid").aggregate([([], "count_all")])
    assert sorted(counts.to_pylist(), key=lambda row: row["cid"]) == [
        {"cid": cid, "count_all": 3} for cid in range(4)
    ]


def test_a_source_may_name_another_snapshot(tmp_path, store):
    store.write_to_offline_store("orders", frame(1))
    table = table_of(store)
    first = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_tag(first, "first").commit()
    store.write_to_offline_store("orders", frame(1, hour=1, n=[99]))
    assert known(store, 1).column("n").to_pylist() == [99]
    for name in ("first", str(first)):
        store.apply(view_of(tmp_path, tags={"feast-dynamo.snapshot": name}))
        assert known(store, 1).column("n").to_pylist() == [10]
    store.apply(view_of(tmp_path, tags={"feast-dynamo.snapshot": "gone"}))
    with pytest.raises(ConfigError, match=r"`orders`: .*no snapshot `gone`.*first, main"):
        known(store, 1)


def test_logs_are_rows_of_a_table(tmp_path, store):
    destination = IcebergLoggingDestination(source=source_of(tmp_path, "logs"))
    view, _ = view_of(tmp_path)
    simple = view[["n", "name"]]
    service = FeatureService(
        name="logged", features=[simple], logging_config=LoggingConfig(destination=destination)
    )
    store.apply([service])
    kept = store.get_feature_service("logged")
    assert kept.logging_config.destination.source == destination.source
    logs = pa.table(
        {
            "cid": pa.array([1, 2], pa.int64()),
            "orders__n": pa.array([10, None], pa.int64()),
            "orders__n__timestamp": pa.array([START, START], pa.timestamp("us", "UTC")),
            "orders__n__status": pa.array([2, 1], pa.int32()),
            "orders__name": pa.array(["a", None]),
            "orders__name__timestamp": pa.array([START, START], pa.timestamp("us", "UTC")),
            "orders__name__status": pa.array([2, 1], pa.int32()),
            "__log_timestamp": pa.array([START, START], pa.timestamp("us", "UTC")),
            "__log_date": pa.array([START.date()] * 2, pa.date32()),
            "__request_id": pa.array(["r1", "r2"]),
        }
    )
    for _ in range(2):
        store.write_logged_features(logs, kept)
    found = TableHandle.from_source(destination.source, store.config).load().scan().to_arrow()
    assert sorted(found.column("__request_id").to_pylist()) == ["r1", "r1", "r2", "r2"]
    assert found.schema.field("orders__n").type == pa.int64()


def test_a_saved_dataset_is_a_table_that_is_replaced_in_one_commit(tmp_path, store):
    store.write_to_offline_store("orders", frame(1, 2))
    rows = pd.DataFrame({"cid": [1, 2], "event_timestamp": [START + HOUR] * 2})
    job = store.get_historical_features(rows, ["orders:n", "orders:tags"])
    storage = SavedDatasetIcebergStorage(source=source_of(tmp_path, "training"))
    store.create_saved_dataset(from_=job, name="training", storage=storage)
    found = store.get_saved_dataset("training").to_df()
    assert sorted(found["n"]) == [10, 20]
    with pytest.raises(DestinationExistsError, match=r"shop\.training has rows already"):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    table = TableHandle.from_source(storage.source, store.config).load()
    assert table.scan().count() == 2
    assert len(table.snapshots()) == 2
    other = store.get_historical_features(rows, ["orders:name"])
    with pytest.raises(ColumnTypeError, match=r"shop\.training has the columns"):
        other.persist(storage, allow_overwrite=True)


def test_a_training_set_is_built_again_as_of_then(tmp_path, store):
    config = open_repo_config(tmp_path, registry=store.config.registry.path)
    built = FeatureStore(config=config)
    store.write_to_offline_store("orders", frame(*range(1, 10)))
    hours = [START + hour * HOUR for hour in range(1, 10)]
    examples = pd.DataFrame(
        {"cid": range(1, 10), "event_timestamp": hours, "bought": [0, 1, 1] * 3}
    )

    def build(output, **more):
        return create_training_set(
            built,
            entity_rows=examples,
            features=["orders:n"],
            label="bought",
            output=str(tmp_path / output),
            split=TimeSplit(hours[5], hours[7]),
            **more,
        )

    first = build("first").manifest
    (found,) = first.provenance.snapshots.values()
    assert found.table == "shop.orders"
    store.write_to_offline_store("orders", frame(*range(1, 10), n=[7] * 9))
    again = build("again", snapshots={"orders": found.snapshot}).manifest
    newest = build("newest").manifest
    assert again.files == first.files
    assert again.provenance == first.provenance
    assert newest.files != first.files
    assert load_manifest(str(tmp_path / "again"), config.offline_store.aws()) == again


def test_types_of_iceberg_round_trip(tmp_path, store):
    """What a table holds is what retrieval answers, for each type that Feast declares."""
    columns = pa.schema(
        [
            ("cid", pa.int64()),
            ("event", pa.timestamp("us", "UTC")),
            ("i", pa.int32()),
            ("d", pa.float64()),
            ("price", pa.decimal128(20, 2)),
            ("raw", pa.binary()),
        ]
    )
    handle = TableHandle.from_source(source_of(tmp_path, "typed"), store.config)
    catalog = opened(handle.address, handle.settings)
    create_table(catalog, "shop.typed", columns, TableLayout(("cid",), "event", None, "month"))
    rows = pa.table(
        {
            "cid": [1],
            "event": [START],
            "i": [2**31 - 1],
            "d": [0.1],
            "price": [Decimal("123456789012345678.25")],
            "raw": [b"\x00\xff"],
        }
    ).cast(columns)
    handle.append(rows)
    view = FeatureView(
        name="typed",
        entities=[CUSTOMER],
        schema=[
            Field(name="cid", dtype=Int64),
            Field(name="i", dtype=Int32),
            Field(name="d", dtype=Float64),
        ],
        source=source_of(tmp_path, "typed"),
    )
    store.apply([view])
    found = known(store, 1, features=["typed:i", "typed:d"])
    assert found.select(["i", "d"]).to_pylist() == [{"i": 2**31 - 1, "d": 0.1}]
    assert handle.load().scan().to_arrow().select(columns.names).to_pylist() == rows.to_pylist()


class Unanswered:
    """A catalog whose commits get no answer: made or not, and then it cannot be reached."""

    def __init__(self, monkeypatch, *, is_made: bool, then=None):
        self.calls, then_load = 0, SqlCatalog.load_table
        commit = SqlCatalog.commit_table

        def commit_table(catalog, *args):
            self.calls += 1
            if self.calls > 1:
                return commit(catalog, *args)
            if is_made:
                commit(catalog, *args)
            if then is not None:
                monkeypatch.setattr(SqlCatalog, "load_table", then)
            raise ConnectionResetError("the line is gone")

        monkeypatch.setattr(SqlCatalog, "commit_table", commit_table)
        self.restore = lambda: monkeypatch.setattr(SqlCatalog, "load_table", then_load)


@pytest.mark.parametrize("is_made", [True, False])
def test_a_commit_without_an_answer_happens_once(store, monkeypatch, is_made):
    lost = Unanswered(monkeypatch, is_made=is_made)
    store.write_to_offline_store("orders", frame(1, 2))
    assert lost.calls == (1 if is_made else 2)
    table = table_of(store)
    assert table.scan().count() == 2
    assert len(table.snapshots()) == 1


def test_files_of_a_commit_that_may_be_there_are_kept(store, monkeypatch):
    """Its catalog refuses to say: the rows are in the table, and stay readable."""

    def refused(*_):
        raise CredentialsError("the token has expired", service="glue", operation="GetTable")

    lost = Unanswered(monkeypatch, is_made=True, then=refused)
    with pytest.raises(SourceReadError, match="its rows may be in the table"):
        store.write_to_offline_store("orders", frame(1, 2))
    lost.restore()
    assert known(store, 1, 2).column("n").to_pylist() == [10, 20]


def test_rows_go_by_the_names_of_columns_also_after_others_added_some(tmp_path, store):
    """An added column comes after the sequence, which is the last when the table is made."""
    handle = TableHandle.from_source(source_of(tmp_path), store.config)
    with table_of(store).update_schema() as schema:
        schema.add_column("clicks", LongType())
        schema.add_column("note", StringType())
    rows = pa.Table.from_pandas(frame(1), preserve_index=False).select(COLUMNS.names)
    rows = rows.cast(COLUMNS)
    handle.append(rows.append_column("note", [["x"]]).append_column("clicks", [[42]]))
    handle.append(rows)
    found = table_of(store).scan().to_arrow().sort_by(SEQUENCE)
    assert found.column("clicks").to_pylist() == [42, None]
    assert found.column("note").to_pylist() == ["x", None]
    assert found.column("n").to_pylist() == [10, 10]
    assert min(found.column(SEQUENCE).to_pylist()) >= 1 << 32
    with pytest.raises(ColumnNotFoundError, match=r"shop\.orders has no columns \['visits'\]"):
        handle.append(rows.append_column("visits", [[1]]))


def test_what_a_training_set_read_stays_however_many_appends_follow(tmp_path, store):
    built = FeatureStore(config=open_repo_config(tmp_path, registry=store.config.registry.path))
    store.write_to_offline_store("orders", frame(*range(1, 10)))
    hours = [START + hour * HOUR for hour in range(1, 10)]
    bought = [0, 1, 1] * 3
    examples = pd.DataFrame({"cid": range(1, 10), "event_timestamp": hours, "bought": bought})
    made = create_training_set(
        built,
        entity_rows=examples,
        features=["orders:n"],
        label="bought",
        output=str(tmp_path / "set"),
        split=TimeSplit(hours[5], hours[7]),
    )
    (read,) = made.manifest.provenance.snapshots.values()
    tags = {name: ref.snapshot_id for name, ref in table_of(store).refs().items()}
    assert [name for name in tags if name.startswith("training-set-")] != []
    assert int(read.snapshot) in [at for name, at in tags.items() if name != "main"]
    handle = TableHandle.from_source(source_of(tmp_path), store.config)
    for _ in range(3):
        store.write_to_offline_store("orders", frame(1))
    tidy_after_append(table_of(store), handle.settings, most=1, kept=1)
    left = {str(snapshot.snapshot_id) for snapshot in table_of(store).snapshots()}
    assert read.snapshot in left
    assert len(left) == 2


def test_manifests_that_a_commit_merges_are_not_left_behind(tmp_path, store):
    handle = TableHandle.from_source(source_of(tmp_path), store.config)
    rows = pa.Table.from_pandas(frame(1), preserve_index=False).select(COLUMNS.names)
    with handle.load().transaction() as transaction:
        transaction.set_properties({"commit.manifest.min-count-to-merge": "2"})
    for _ in range(4):
        handle.append(rows.cast(COLUMNS))
    table = handle.load()
    listed = {
        manifest.manifest_path
        for snapshot in table.snapshots()
        for manifest in snapshot.manifests(table.io)
    }
    there = {f"file://{path}" for path in (tmp_path / "warehouse").rglob("*-m*.avro")}
    assert there == listed


def test_appends_pack_columns_where_it_saves_a_good_part(tmp_path):
    """By all rows of an append: a partition of one row takes what the others have."""
    config = open_repo_config(
        tmp_path,
        provider="local",
        online_store={"type": "sqlite", "path": f"{tmp_path}/online.db"},
    )
    handle = TableHandle.from_source(source_of(tmp_path), config)
    count = 5_000
    events = [START, *[START + dt.timedelta(days=40)] * (count - 1)]
    given = pa.table(
        {
            "cid": pa.array(range(count), pa.int64()),
            "event": pa.array(events, pa.timestamp("us", "UTC")),
            "noise": np.random.default_rng(3).random(count),
            "name": [f"city {at % 7}" for at in range(count)],
        }
    )
    layout = TableLayout(("cid",), "event", None, "month")
    create_table(opened(handle.address, handle.settings), handle.name, given.schema, layout)
    handle.append(given)
    footers = [
        pq.read_metadata(path) for path in (tmp_path / "warehouse").rglob("data/**/*.parquet")
    ]
    assert sorted(footer.num_rows for footer in footers) == [1, count - 1]
    for footer in footers:
        columns = map(footer.row_group(0).column, range(footer.num_columns))
        packed = {
            one.path_in_schema: (one.compression, one.has_dictionary_page) for one in columns
        }
        assert packed["noise"] == ("UNCOMPRESSED", False)
        assert packed["name"] == ("ZSTD", True)
    read = handle.load().scan().to_arrow().sort_by("cid")
    assert read.select(given.column_names).cast(given.schema).equals(given)
