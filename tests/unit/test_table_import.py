"""Parquet files become a table's: a retrieval finds the same; and what stands in the way."""

from __future__ import annotations

import datetime as dt
import json
import tempfile
import uuid
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import cases
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    Struct,
    UnixTimestamp,
    Uuid,
)
from feast.types import Decimal as FeastDecimal
from hypothesis import given
from hypothesis import strategies as st
from repos import NoRegistry, repo_config
from views import customer_view, parquet_files

from feast_dynamo_ext.errors import (
    ColumnTypeError,
    NotCommittedError,
    SourceNotFoundError,
    SourceReadError,
    TableImportError,
)
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.iceberg.import_files import Room, run_import
from feast_dynamo_ext.parquet.iceberg.import_plan import plan_import
from feast_dynamo_ext.parquet.iceberg.import_record import go_back
from feast_dynamo_ext.parquet.iceberg.optimize import optimize
from feast_dynamo_ext.parquet.iceberg.snapshots import history as history_of
from feast_dynamo_ext.parquet.iceberg.snapshots import rollback
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE
from feast_dynamo_ext.parquet.iceberg.view_table import IMPORTED, drop
from feast_dynamo_ext.parquet.s3_parquet_source import S3ParquetSource

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
UTC, PLAIN = pa.timestamp("us", "UTC"), pa.timestamp("us")
TIMES = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created"}


@pytest.fixture
def config(tmp_path):
    return repo_config(tmp_path, catalog="sql")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders"


def history(rows, **more) -> pa.Table:
    """A table of (key, hours after START or None, created likewise, value)."""

    def moment(hours):
        return None if hours is None else START + hours * HOUR

    return pa.table(
        {
            "cid": pa.array([key for key, _, _, _ in rows], pa.int64()),
            "event_timestamp": pa.array([moment(at) for _, at, _, _ in rows], UTC),
            "created": pa.array([moment(at) for _, _, at, _ in rows], UTC),
            "value": pa.array([value for _, _, _, value in rows], pa.int64()),
            **more,
        }
    )


def write(path: Path, rows, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, pa.Table) else history(rows, **more)
    pq.write_table(table, path)
    return path


def put(path: Path, **columns) -> None:
    """A file with some columns in place of those of `history`."""
    table = history([(1, 0, 0, 7)])
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        cells = pa.array(column) if isinstance(column, list) else column
        table = table.append_column(name, cells) if at < 0 else table.set_column(at, name, cells)
    write(path, table)


def orders(path, source=None, **features):
    source = source or parquet_files(path, created_timestamp_column="created", name="orders")
    return customer_view(source=source, **(features or {"value": Int64}))


def imported(view, config, room=None, **choices):
    plan = plan_import(view, config, **choices)
    return run_import(plan, config, room=room)


def table_view(view, config):
    """The view with the table as its source."""
    source = IcebergSource(
        name="orders",
        catalog_type="sql",
        endpoint="sqlite:///data/iceberg.db",
        warehouse="data/warehouse",
        namespace="p",
        table=view.name,
        **TIMES,
    )
    types = {column.name: column.dtype for column in view.features}
    return orders("", source, **types)


def loaded(view, config):
    return plan_import_handle(view, config).load()


def plan_import_handle(view, config):
    from feast_dynamo_ext.parquet.iceberg.view_table import handle_of

    return handle_of(view, config)


def seen(view, config, keys, hours, feature="value") -> list:
    """The value that each key sees at each of some moments."""
    frame = pd.DataFrame(
        {
            "cid": pd.array([key for key in keys for _ in hours], "Int64"),
            "event_timestamp": [START + at * HOUR for _ in keys for at in hours],
        }
    )
    job = S3ParquetOfflineStore.get_historical_features(
        config, [view], [f"{view.name}:{feature}"], frame, NoRegistry(), "p"
    )
    return job.to_arrow().column(feature).to_pylist()


def in_table(view, config, *names):
    """Rows of the table, as pyiceberg reads them."""
    rows = loaded(view, config).scan(selected_fields=names).to_arrow()
    return sorted(zip(*(rows.column(name).to_pylist() for name in names), strict=True), key=repr)


KEYS = [None, 0, 1, 2, 3]
HOURS = [-1, 0, 1, 2, 24 * 40 + 5]
hours = st.one_of(st.none(), st.integers(0, 3), st.just(24 * 40))
file_rows = st.lists(st.tuples(st.sampled_from(KEYS), hours, hours), max_size=8)
files = st.lists(file_rows, min_size=1, max_size=4)


@cases(6)
@given(
    first=files,
    more=files,
    partition=st.sampled_from(["day", "month", "none", None]),
    room=st.sampled_from([Room(), Room(chunk_bytes=1), Room(chunk_bytes=200, spill_bytes=200)]),
)
@pytest.mark.slow
def test_retrievals_find_the_same_in_the_table(first, more, partition, room):
    with tempfile.TemporaryDirectory() as folder:
        path, config = Path(folder, "orders"), repo_config(folder, catalog="sql")
        view, count = orders(path), 0
        for name, new in (("a", first), ("b", more)):
            for number, rows in enumerate(new):
                numbered = [(*row, count + at) for at, row in enumerate(rows)]
                count += len(rows)
                write(path / f"{name}{number}.parquet", numbered)
            done = imported(view, config, room, partition=partition)
            assert (done.files, done.rows) == (len(new), sum(map(len, new)))
            assert imported(view, config, room).files == 0
            if count:
                assert seen(table_view(view, config), config, KEYS, HOURS) == seen(
                    view, config, KEYS, HOURS
                )
        assert sorted(in_table(view, config, "value")) == [(number,) for number in range(count)]


def test_of_equal_rows_the_later_path_wins_then_the_later_row(path, config):
    write(path / "b.parquet", [(1, 0, 0, 20), (1, 0, 0, 21)])
    write(path / "a.parquet", [(1, 0, 0, 10), (1, 0, 0, 11), (2, 0, 0, 12), (2, 0, 0, 13)])
    view = orders(path)
    imported(view, config)
    assert seen(table_view(view, config), config, [1, 2], [0]) == [21, 13]
    rows = in_table(view, config, "value", SEQUENCE)
    assert [value for value, _ in sorted(rows, key=lambda row: row[1])] == [
        *(10, 11, 12, 13),
        *(20, 21),
    ]
    assert len({number >> 32 for _, number in rows}) == 1
    plan_import_handle(view, config).append(history([(1, 0, 0, 30)]))
    assert seen(table_view(view, config), config, [1, 2], [0]) == [30, 13]


def test_the_table_is_read_by_position_alone_after_a_copy(path, config):
    """Files are sorted and apart: no engine has to look at the sequence."""
    from feast_dynamo_ext.parquet.source import ParquetSource

    for number in range(4):
        rows = [(key, hour * 24, 0, key) for key in range(9) for hour in range(3)]
        write(path / f"{number}.parquet", rows)
    view = orders(path)
    done = imported(view, config, Room(chunk_bytes=500, spill_bytes=1_500), partition="day")
    assert done.written > 3
    assert ParquetSource.open(table_view(view, config).batch_source, config).ties is None


def test_columns_of_folders_and_of_later_files_and_wider_types_are_copied(path, config):
    total = pa.array([0.1], pa.float64())
    put(path / "land=DE" / "a.parquet", total=total, n=pa.array([1], pa.int32()))
    put(
        path / "land=FR" / "b.parquet",
        total=total,
        n=pa.array([2**40], pa.int64()),
        late=["x"],
        at=pa.array([START.replace(tzinfo=None)], pa.timestamp("ns")),
        price=pa.array([Decimal("1.10")]),
        small=pa.array([7], pa.uint16()),
        floats=[[0.5, None]],
    )
    view = orders(path, value=Int64, total=Float64, land=String, floats=Array(Float64))
    imported(view, config)
    plain = START.replace(tzinfo=None)
    assert in_table(view, config, "land", "n", "late", "at", "price", "small", "floats") == [
        ("DE", 1, None, None, None, None, None),
        ("FR", 2**40, "x", plain, Decimal("1.10"), 7, [0.5, None]),
    ]


UID = uuid.uuid4()
SOME_OF_EACH = {
    "uid": (Uuid, pa.array([UID.bytes], pa.uuid())),
    "id_text": (Uuid, [str(UID)]),
    "id_bytes": (Uuid, pa.array([UID.bytes], pa.binary(16))),
    "price": (FeastDecimal, [Decimal("1.10")]),
    "price_text": (FeastDecimal, ["1.10"]),
    "json": (Json, ['{"a": 1}']),
    "map": (Map, pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string()))),
    "map_of_floats": (Map, pa.array([[("a", 1.5)]], pa.map_(pa.string(), pa.float64()))),
    "map_as_json": (Map, ['{"a": 1}']),
    "map_as_struct": (Map, [{"a": 1, "b": "x"}]),
    "struct": (Struct({"a": Int64, "b": String}), [{"a": 1, "b": "x"}]),
    "structs": (Array(Struct({"a": Int64})), [[{"a": 1}]]),
    "lists": (Array(Array(Float32)), pa.array([[[1.5]]], pa.list_(pa.list_(pa.float32())))),
    "vector": (Array(Float32), pa.array([[1.5, 2.0]], pa.list_(pa.float32(), 2))),
    "numbers": (Array(Int64), pa.array([[1, None]], pa.large_list(pa.int32()))),
    "words": (String, pa.array(["x"]).dictionary_encode()),
    "view": (String, pa.array(["x"], pa.string_view())),
    "raw": (Bytes, pa.array([b"x"], pa.large_binary())),
    "raw2": (Bytes, pa.array([b"xy"], pa.binary(2))),
    "nanos": (UnixTimestamp, pa.array([START], pa.timestamp("ns", "UTC"))),
    "berlin": (UnixTimestamp, pa.array([START], pa.timestamp("us", "Europe/Berlin"))),
    "date": (UnixTimestamp, [START.date()]),
    "seconds": (UnixTimestamp, [5]),
    "times": (Array(UnixTimestamp), pa.array([[START]], pa.list_(pa.timestamp("ms", "UTC")))),
    "small": (Int32, pa.array([1], pa.int8())),
    "unsigned": (Int64, pa.array([1], pa.uint32())),
    "wide": (Int32, [5]),
    "double": (Float32, [0.1]),
    "nan": (Float64, [float("nan")]),
    "nulls": (Float64, pa.nulls(1)),
    "set": (Set(String), [["a"]]),
    "flag": (Bool, [True]),
}


def test_values_of_each_type_are_retrieved_as_before(path, config):
    put(path / "a.parquet", **{name: column for name, (_, column) in SOME_OF_EACH.items()})
    view = orders(path, **{name: dtype for name, (dtype, _) in SOME_OF_EACH.items()})
    before = features(view, config)
    imported(view, config)
    after = features(table_view(view, config), config)
    assert after == before
    assert after["price"] == [Decimal("1.10")]
    assert after["double"] == [float(np.float32(0.1))]
    assert after["seconds"] == [dt.datetime(1970, 1, 1, 0, 0, 5, tzinfo=dt.timezone.utc)]


def features(view, config):
    """What one row retrieves; NaN as text, as it equals nothing."""
    frame = pd.DataFrame({"cid": [1], "event_timestamp": [START]})
    wanted = [f"{view.name}:{name}" for name in SOME_OF_EACH]
    job = S3ParquetOfflineStore.get_historical_features(
        config, [view], wanted, frame, NoRegistry(), "p"
    )
    found = job.to_arrow().select(list(SOME_OF_EACH)).to_pydict()
    return found | {"nan": repr(found["nan"])}


def test_other_readers_find_what_is_inside_of_columns(path, config, monkeypatch):
    """By Iceberg's numbers, which the files say of each part; also after a rewrite."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else it warns of a faster one
    kind = pa.map_(pa.string(), pa.struct([("v", pa.list_(pa.float64()))]))
    more = {"m": pa.array([[("a", {"v": [0.5, None]})]], kind), "s": [{"x": [{"y": 1}]}]}
    put(path / "a.parquet", **more)
    view = orders(path)
    imported(view, config)
    handle = plan_import_handle(view, config)
    handle.append(history([(1, 1, 1, 8)], **more))
    for optimized in (0, 1):
        pairs, inner = [("a", {"v": [0.5, None]})], {"x": [{"y": 1}]}
        assert in_table(view, config, "value", "m", "s") == [(7, pairs, inner), (8, pairs, inner)]
        table = handle.load()
        theirs = pl.scan_iceberg(table).select("m", "s").collect().rows()
        assert theirs == [({"a": {"v": [0.5, None]}}, inner)] * 2
        files = [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]
        assert len(files) == 2 - optimized
        for file in files:
            parts = str(pq.ParquetFile(file).schema).splitlines()[2:]
            without = [part for part in parts if "field_id=-1" in part]
            assert [part.split()[:2] for part in without] == [["repeated", "group"]] * 3
        optimize(handle)


def test_decimals_of_more_digits_and_times_of_other_units_are_kept_where_they_fit(path, config):
    more = {
        "big": pa.array([Decimal("1.5")], pa.decimal256(50, 10)),
        "at": pa.array([3_723_000], pa.time32("ms")),
        "late": pa.array([3_723_000_000_000], pa.time64("ns")),
        "both": pa.array([Decimal("1.5")], pa.decimal128(38, 10)),
    }
    put(path / "a.parquet", **more)
    put(path / "b.parquet", **{**more, "both": [Decimal("7")]})
    view = orders(path, value=Int64, big=FeastDecimal)
    imported(view, config)
    kinds = {column.name: str(column.type) for column in plan_import(view, config).new.columns}
    assert (kinds["big"], kinds["both"]) == ("decimal128(38, 10)", "decimal128(38, 10)")
    one = (Decimal("1.5"), dt.time(1, 2, 3), dt.time(1, 2, 3))
    assert in_table(view, config, "big", "at", "late", "both") == [
        (*one, Decimal("1.5")),
        (*one, Decimal("7")),
    ]
    assert seen(table_view(view, config), config, [1], [0], "big") == [Decimal("1.5")]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([Decimal("1e30")], pa.decimal256(50, 10)), r"decimal256\(50, 10\) cannot be"),
        (pa.array([1], pa.time64("ns")), r"time64\[ns\] cannot be time64\[us\]"),
    ],
)
def test_what_the_table_s_type_does_not_hold_is_refused(path, config, column, said):
    put(path / "a.parquet", n=column)
    with pytest.raises(ColumnTypeError, match=rf"column `n` of .*1 of 1 values of type {said}"):
        imported(orders(path), config)


def test_types_that_an_import_which_failed_left_are_named(path, config):
    put(path / "a.parquet", n=["x"])
    with pytest.raises(ColumnTypeError, match=r"string cannot be int64 without a change\. Cast"):
        imported(orders(path, n=Int64), config)
    view = orders(path, n=String)
    with pytest.raises(
        ColumnTypeError,
        match=r"`feast-dynamo table drop p\.orders` and import again: its column is int64 from an "
        r"earlier run, and would be string\.$",
    ):
        imported(view, config)
    put(path / "b.parquet", n=["y"], m=[1])
    with pytest.raises(
        TableImportError, match=r"no column `m`; it has no rows, so `feast-dynamo t"
    ):
        imported(view, config)
    drop(plan_import_handle(view, config))
    assert imported(view, config).rows == 2
    assert in_table(view, config, "n", "m") == [("x", None), ("y", 1)]


def test_folders_by_time_are_not_columns_of_the_table(path, config):
    write(path / "dt=2026-01-01" / "a.parquet", [(1, 0, 0, 7)])
    source = S3ParquetSource(path=str(path), name="orders", date_partition_column="dt", **TIMES)
    view = orders(path, source)
    imported(view, config)
    assert "dt" not in [field.name for field in loaded(view, config).schema().fields]
    assert in_table(view, config, "value") == [(7,)]


def test_an_import_goes_on_with_files_that_came_since(path, config):
    first = write(path / "m.parquet", [(1, 0, 0, 1)])
    view = orders(path)
    assert imported(view, config).files == 1
    # A snapshot that is expired takes its commit id with it; what was imported is kept beside.
    assert imported(view, config).files == 0
    write(path / "a.parquet", [(1, 0, 0, 2)])
    done = imported(view, config)
    assert (done.files, done.rows) == (1, 1)
    assert in_table(view, config, "value") == [(1,), (2,)]
    table = loaded(view, config)
    record = Path(table.properties[IMPORTED].removeprefix("file://"))
    taken = json.loads(record.read_bytes())
    assert len(taken["files"]) == 2
    assert not any(name in record.read_text() for name in ("orders/", "m.parquet", "a.parquet"))
    write(first, [(1, 0, 0, 1), (2, 0, 0, 2)])
    with pytest.raises(TableImportError, match=r"1 thing stands.*m\.parquet was replaced after"):
        imported(view, config)
    assert in_table(view, config, "value") == [(1,), (2,)]


@pytest.mark.parametrize("is_told", [True, False])
def test_what_a_rollback_took_out_can_be_imported_again(path, config, is_told):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    view = orders(path)
    imported(view, config)
    write(path / "b.parquet", [(1, 0, 0, 2)])
    imported(view, config)
    handle = plan_import_handle(view, config)
    oldest = history_of(handle)[-1].snapshot_id
    for _ in range(2):
        # By the command, or by another engine.
        (go_back if is_told else rollback)(handle, oldest)
        assert in_table(view, config, "value") == [(1,)]
        assert imported(view, config).files == 1
        assert in_table(view, config, "value") == [(1,), (2,)]
        assert imported(view, config).files == 0
    assert len(list(Path(config.repo_path, "data", "warehouse").rglob("*.json"))) > 3
    assert len(list(Path(config.repo_path, "data").rglob("imported-files*.json"))) == 1


def test_two_imports_at_once_take_a_file_once(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    view = orders(path)
    imported(view, config)
    write(path / "b.parquet", [(1, 0, 0, 2)])
    same = [plan_import(view, config) for _ in range(2)]
    write(path / "c.parquet", [(1, 0, 0, 3)])
    other = plan_import(view, config)
    for plan in same:
        assert run_import(plan, config).files == 1
    assert in_table(view, config, "value") == [(1,), (2,)]
    files_there = set(Path(config.repo_path, "data", "warehouse").rglob("*"))
    with pytest.raises(NotCommittedError, match=r"p\.orders: another import came first.*again"):
        run_import(other, config)
    assert set(Path(config.repo_path, "data", "warehouse").rglob("*")) == files_there
    assert len([each for each in files_there if each.suffix == ".parquet"]) == 2
    assert imported(view, config).files == 1
    assert in_table(view, config, "value") == [(1,), (2,), (3,)]


class Stopped(BaseException):
    """An import is ended there, as by a signal."""


def test_an_import_that_is_interrupted_leaves_nothing_that_counts(path, config):
    for number in range(3):
        write(path / f"{number}.parquet", [(number, 0, 0, number)])
    view = orders(path)
    seen_rows = []

    def stop(rows):
        seen_rows.append(rows)
        if len(seen_rows) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        run_import(plan_import(view, config), config, stop, Room(chunk_bytes=1))
    assert loaded(view, config).current_snapshot() is None
    assert list(Path(config.repo_path, "data", "warehouse").rglob("*.parquet")) == []
    assert imported(view, config).rows == 3


KILLED = """
import os, signal, sys
from feast.types import Int64
from feast_dynamo_ext.parquet.iceberg.import_files import Room, run_import
from feast_dynamo_ext.parquet.iceberg.import_plan import plan_import
from repos import repo_config
from views import customer_view, parquet_files

folder, moment = sys.argv[1], int(sys.argv[2])
config = repo_config(folder, catalog="sql")
source = parquet_files(f"{folder}/orders", created_timestamp_column="created")
plan = plan_import(customer_view(source=source, value=Int64), config)
calls = []

def advance(rows):
    calls.append(rows)
    if len(calls) == moment:
        os.kill(os.getpid(), signal.SIGKILL)

run_import(plan, config, advance, Room(chunk_bytes=1))
"""


def test_an_import_that_is_killed_leaves_nothing_that_counts(path, config, fork_server):
    for number in range(3):
        write(path / f"{number}.parquet", [(number, 0, 0, number)])
    view = orders(path)
    for moment in (1, 4, 6):
        done = fork_server.run("-c", KILLED, path.parent, str(moment))
        assert done.returncode == -9, done.stderr
        assert loaded(view, config).current_snapshot() is None
    assert imported(view, config).rows == 3
    assert in_table(view, config, "value") == [(0,), (1,), (2,)]


def test_a_file_that_changes_meanwhile_is_not_imported(path, config):
    first = write(path / "a.parquet", [(1, 0, 0, 1)])
    view = orders(path)
    plan = plan_import(view, config)
    with pytest.raises(SourceReadError, match=r"a\.parquet changed while it was being read"):
        run_import(plan, config, lambda _: write(first, [(1, 0, 0, 1), (2, 0, 0, 2)]))
    assert loaded(view, config).current_snapshot() is None


def test_values_that_do_not_fit_are_named_and_nothing_is_imported(path, config):
    put(path / "a.parquet", at=pa.array([1], pa.timestamp("ns")))
    view = orders(path)
    with pytest.raises(ColumnTypeError, match=r"`orders`: column `at` of .*orders is timestamp"):
        imported(view, config)
    assert loaded(view, config).current_snapshot() is None
    drop(plan_import_handle(view, config))
    put(path / "a.parquet", value=pa.array([2**63], pa.uint64()))
    with pytest.raises(ColumnTypeError, match=r"column `value`.*declared as INT64.*1 of 1 values"):
        imported(view, config)


# What stands in the way


def test_all_that_stands_in_the_way_is_named_at_once(path, config):
    put(path / "a.parquet", n=["text"], Total=[1], gap=pa.array([1], pa.duration("s")))
    put(path / "b.parquet", n=[1], total=[1])
    path.joinpath("c.parquet").write_bytes(b"no Parquet at all")
    view = orders(path, value=Int64, total=Int64, missing=Int32)
    with pytest.raises(TableImportError) as caught:
        imported(view, config)
    error = caught.value
    assert len(error.problems) == 5
    said = str(error)
    assert said.startswith(
        f"Feature view `orders`: 5 things stand in the way of making a table of {path}, and "
        "nothing was written: (1) "
    )
    for part in [
        "c.parquet cannot be read",
        f"differ in case only, which most catalogs take for one: `Total` ({path}/a.parquet) and "
        f"`total` ({path}/b.parquet); rename them",
        "column `n` has types that do not go together: string in 1 files such as "
        f"{path}/a.parquet, int64 in 1 files such as {path}/b.parquet",
        "no file has the column `missing` of view `orders`; correct the view's schema",
        "column `gap` is duration[s], which Iceberg has no type for, and no view declares it",
    ]:
        assert part in said
    assert not Path(config.repo_path, "data", "warehouse").exists()


def no_event_time(path):
    table = history([(1, 0, 0, 7)])
    write(path / "b.parquet", table.drop_columns(["event_timestamp"]))


def days_as_event_time(path):
    (path / "a.parquet").unlink()
    table = history([(1, 0, 0, 7)]).drop_columns(["event_timestamp"])
    write(path / "event_timestamp=2026-01-01" / "b.parquet", table)


def two_of_a_name(path):
    table = history([(1, 0, 0, 7)])
    names = ["cid", "event_timestamp", "created", "value", "value"]
    columns = [*table.columns, table.column("value")]
    write(path / "b.parquet", pa.table(columns, names=names))


def old_pointer(path):
    pointer = path / "_feast_dynamo" / "current.json"
    pointer.parent.mkdir()
    pointer.write_text("{}")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            lambda path: put(path / "b.parquet", at=[{"x": 1, "X": 2}]),
            r"fields whose names differ in case only.*`at\.X` .* and `at\.x`",
        ),
        (
            lambda path: (
                put(path / "b.parquet", at=[[{"x": 1}]]),
                put(path / "c.parquet", at=[[{"X": 1}]]),
            ),
            r"`at\.element\.X` \(.*c\.parquet\) and `at\.element\.x` \(.*b\.parquet\)",
        ),
        (
            days_as_event_time,
            r"column `event_timestamp` is string, which is no time; parse it first",
        ),
        (no_event_time, r"1 files such as .*b\.parquet lack the event time `event_timestamp`"),
        (two_of_a_name, r"b\.parquet has several columns named `value`; give each a name"),
        (
            lambda path: put(path / "b.parquet", _feast_sequence=[1]),
            r"b\.parquet has a column `_feast_sequence`.*rename it",
        ),
        (
            lambda path: put(path / "Value=1" / "b.parquet"),
            r"differ in case only.*`Value` .* and `value`",
        ),
        (old_pointer, r"orders was compacted by `feast-dynamo compact` of an earlier version"),
        (
            lambda path: put(path / "a.parquet", event_timestamp=["2026-01-01"]),
            r"column `event_timestamp` is string, which is no time; parse it first",
        ),
    ],
)
def test_what_stands_in_the_way_is_named(path, config, more, said):
    put(path / "a.parquet")
    more(path)
    with pytest.raises(TableImportError, match=said):
        imported(orders(path), config)


def test_a_folder_without_files_says_what_to_do(path, config):
    with pytest.raises(SourceNotFoundError, match=r"`feast-dynamo table create orders`"):
        imported(orders(path), config)


def test_a_table_that_lacks_a_column_of_the_files_is_named(path, config):
    put(path / "a.parquet")
    view = orders(path)
    imported(view, config)
    put(path / "b.parquet", extra=[1])
    with pytest.raises(TableImportError, match=r"p\.orders is there already.*no column `extra`"):
        imported(view, config)


# Files as they are


def test_files_are_registered_where_they_are(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1), (2, 1, 0, 2)])
    write(path / "b.parquet", [(1, 24, 0, 3)])
    view = orders(path)
    before = {file: file.read_bytes() for file in path.iterdir()}
    done = imported(view, config, register=True)
    assert (done.files, done.rows, done.written) == (2, 3, 0)
    assert imported(view, config, register=True).files == 0
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    table = loaded(view, config)
    assert [str(part.transform) for part in table.spec().fields] == ["day"]
    assert sorted(task.file.file_path for task in table.scan().plan_files()) == [
        f"file://{path}/a.parquet",
        f"file://{path}/b.parquet",
    ]
    assert in_table(view, config, "value") == [(1,), (2,), (3,)]
    assert seen(table_view(view, config), config, [1, 2], [0, 30]) == [1, 3, None, 2]
    with table.update_schema() as schema:
        schema.rename_column("value", "worth")
    assert in_table(view, config, "worth") == [(1,), (2,), (3,)]
    plan_import_handle(view, config).append(
        history([(1, 0, 0, 9)]).rename_columns(["cid", "event_timestamp", "created", "worth"])
    )
    assert in_table(view, config, "worth") == [(1,), (2,), (3,), (9,)]


@pytest.mark.parametrize(
    ("hours", "partition"), [((0, 23), "day"), ((0, 25), "month"), ((0, 24 * 40), "none")]
)
def test_a_table_of_registered_files_has_partitions_that_each_file_is_within(
    path, config, hours, partition
):
    write(path / "a.parquet", [(1, hour, 0, 1) for hour in hours])
    view = orders(path)
    assert plan_import(view, config, register=True).new.layout.partition == partition
    imported(view, config, register=True)
    assert len(in_table(view, config, "value")) == 2


def int96(path):
    pq.write_table(
        history([(1, 0, 0, 7)]), path / "b.parquet", use_deprecated_int96_timestamps=True
    )


def old_lists(path):
    table = history([(1, 0, 0, 7)], floats=[[0.5]])
    pq.write_table(table, path / "b.parquet", use_compliant_nested_type=False)


def with_field_ids(path):
    table = history([(1, 0, 0, 7)])
    fields = [
        column.with_metadata({"PARQUET:field_id": str(number)})
        for number, column in enumerate(table.schema, 7)
    ]
    pq.write_table(table.cast(pa.schema(fields)), path / "b.parquet")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            lambda path: put(path / "b.parquet", at=pa.array([1000], pa.timestamp("ns"))),
            r"column `at` is timestamp\[ns\], not the table's timestamp\[us\] \(1 files such as",
        ),
        (
            lambda path: put(path / "b.parquet", value=pa.array([1], pa.uint32())),
            r"column `value` is uint32, not the table's int64",
        ),
        (
            lambda path: put(path / "b.parquet", half=pa.array([np.float16(1)], pa.float16())),
            r"column `half` is halffloat, not the table's float",
        ),
        (
            lambda path: put(path / "land=DE" / "b.parquet"),
            r"column `land` is in the folders' names and not in the files",
        ),
        (
            lambda path: put(
                path / "b.parquet", event_timestamp=pa.array([1], pa.timestamp("us"))
            ),
            r"column `event_timestamp` is timestamp\[us\], not the table's timestamp\[us, tz=UTC",
        ),
        (int96, r"column `created` has times as INT96"),
        (old_lists, r"column `floats` names what is inside of it as old writers do"),
        (with_field_ids, r"files have field ids of another table"),
        (
            lambda path: put(path / "b?c#.parquet"),
            r"the path has `\?`, at which readers of Iceberg end it \(1 files such as .*b\?c#\.p",
        ),
    ],
)
def test_what_cannot_be_registered_is_named_and_can_be_copied(path, config, more, said):
    put(path / "a.parquet")
    more(path)
    view = orders(path)
    with pytest.raises(TableImportError, match=said) as caught:
        imported(view, config, register=True)
    assert "copy them (without --register)" in str(caught.value)
    assert imported(view, config).rows == 2


def test_files_of_several_days_are_not_registered_in_a_table_by_day(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1), (1, 25, 0, 2)])
    with pytest.raises(TableImportError, match=r"hold rows of several days.*--partition none"):
        imported(orders(path), config, register=True, partition="day")


def test_narrower_numbers_are_registered_and_read_in_the_types_of_the_table(path, config):
    put(path / "a.parquet", value=pa.array([5], pa.int32()), total=pa.array([0.5], pa.float32()))
    view = orders(path, value=Int64, total=Float64)
    imported(view, config, register=True)
    assert in_table(view, config, "value", "total") == [(5, 0.5)]
    assert seen(table_view(view, config), config, [1], [0]) == [5]


@pytest.mark.slow
def test_memory_is_that_of_a_chunk_not_of_the_source(path, config):
    path.mkdir()
    rows, width = 300_000, 16
    shuffled = np.random.default_rng(1).permutation(rows)
    for number, part in enumerate(np.array_split(shuffled, 6)):
        columns = {f"f{at}": part.astype("float64") for at in range(width)}
        times = pa.array(part.astype("int64") * 86_400_000, UTC)
        table = pa.table(
            {"cid": part % 1000, "event_timestamp": times, "created": times, "value": part}
            | columns
        )
        pq.write_table(table, path / f"{number}.parquet", row_group_size=10_000)
    whole = rows * (width + 5) * 8
    start, most = pa.total_allocated_bytes(), 0

    def look(_):
        nonlocal most
        most = max(most, pa.total_allocated_bytes() - start)

    plan = plan_import(orders(path), config, partition="month")
    done = run_import(plan, config, look, Room(chunk_bytes=whole // 24))
    assert whole == 50_400_000
    assert most < whole // 3
    assert done.rows == rows
    # Of ten months' 5 MB each, in three chunks.
    assert done.written == 30
    assert len(in_table(orders(path), config, "value")) == rows
