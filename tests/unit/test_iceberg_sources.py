"""Iceberg tables are read as their metadata says they are, against pyiceberg's own reading."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Decimal as FeastDecimal
from feast.types import Float64, Int64, UnixTimestamp
from history_tables import places
from history_tables import source_of as table_source
from pyiceberg.catalog import load_catalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
)
from pyiceberg.schema import Schema
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _FastAppendFiles
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
)
from repos import NoRegistry, repo_config
from source_cases import rows_of

from feast_dynamo_ext.errors import (
    ConfigError,
    DependencyError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.iceberg import catalog as iceberg
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.source import ParquetSource, columns_of

if TYPE_CHECKING:
    from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def catalog(tmp_path):
    found = load_catalog("feast_iceberg", type="sql", **places(tmp_path))
    found.create_namespace("shop")
    return found


def source_of(folder, **more) -> IcebergSource:
    return table_source(folder, **{"created_timestamp_column": None, **more})


def opened(folder, **more) -> ParquetSource:
    return ParquetSource.open(source_of(folder, **more), repo_config(folder))


def rows(*values, day=None, **more):
    moments = [START + value * HOUR for value in values]
    return pa.table(
        {
            "cid": pa.array(values, pa.int64()),
            "event": pa.array(moments, pa.timestamp("us", "UTC")),
            "day": pa.array([day or moment.date() for moment in moments], pa.date32()),
            **more,
        }
    )


def sorted_rows(source, names):
    found = rows_of(source, *names)
    return sorted(zip(*(map(repr, found[name]) for name in names), strict=True))


def same_as_pyiceberg(folder, catalog, table="orders"):
    """Rows as the library itself reads them."""
    theirs = catalog.load_table(f"shop.{table}").scan().to_arrow()
    names = theirs.column_names
    expected = zip(*(map(repr, theirs.column(name).to_pylist()) for name in names), strict=True)
    assert sorted_rows(opened(folder, table=table), names) == sorted(expected)


def test_the_files_of_the_snapshot_are_read(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1, 2))
    table.append(rows(3, 30))
    same_as_pyiceberg(tmp_path, catalog)
    table.delete("cid = 1")  # copies on write
    same_as_pyiceberg(tmp_path, catalog)
    table.overwrite(rows(7))
    assert rows_of(opened(tmp_path), "cid") == {"cid": [7]}


def test_a_table_is_not_read_as_a_folder_of_files(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1, 2))
    files = FileSource(name="orders", path=table.location(), timestamp_field="event")
    words = r"orders is an Iceberg table, or has one .*metadata\.json\).*`IcebergSource`"
    with pytest.raises(SourceReadError, match=words):
        ParquetSource.open(files, repo_config(tmp_path))


def test_types_are_those_of_parquet(tmp_path, catalog):
    more = {
        "n": pa.array([1, None], pa.int32()),
        "text": ["a", None],
        "raw": pa.array([b"a", None]),
        "floats": pa.array([[0.5, None], None], pa.list_(pa.float64())),
        "nested": pa.array([{"texts": ["a"]}, None]),
        "map": pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.string())),
        "price": pa.array([Decimal("1.10"), None], pa.decimal128(9, 2)),
        "naive": pa.array([START.replace(tzinfo=None), None], pa.timestamp("us")),
        "flag": [True, None],
    }
    table = catalog.create_table("shop.orders", schema=rows(1, 2, **more).schema)
    table.append(rows(1, 2, **more))
    source = opened(tmp_path)
    assert {name: source.schema.field(name).type for name in more} == {
        name: rows(1, 2, **more).schema.field(name).type for name in more
    }
    found = rows_of(source, *more)
    assert found == {name: rows(1, 2, **more).column(name).to_pylist() for name in more}


def test_partitions_are_pruned_also_after_the_table_is_partitioned_anew(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1, 25))
    with table.update_spec() as spec:
        spec.add_field("day", "identity", "by_day")
    table.append(rows(2, 26, 50))
    with table.update_spec() as spec:
        spec.remove_field("by_day")
        spec.add_field("cid", "identity", "one")
    table.append(rows(3, 27))
    same_as_pyiceberg(tmp_path, catalog)
    source = opened(tmp_path)
    day = dt.datetime(2026, 1, 3, tzinfo=UTC)
    assert rows_of(source.within("day", day, None), "cid") == {"cid": [50]}
    within = source.within("event", day, None)
    assert rows_of(within, "cid") == {"cid": [50]}
    assert len(within.files) == 1


def test_a_value_that_only_the_partition_tells(tmp_path, catalog):
    """Files that were not written by Iceberg may lack the columns of their folders."""
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    with table.update_spec() as spec:
        spec.add_field("day", "identity", "day")
    table.append(rows(1))
    (file,) = (task.file for task in table.scan().plan_files())
    path = file.file_path.removeprefix("file://")
    state = ParquetSource.open(source_of(tmp_path), repo_config(tmp_path)).files[0]
    assert state.partition == (("day", "2026-01-01"),)
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["day"]), path)
    size = (tmp_path / path).stat().st_size
    with pytest.raises(SourceReadError, match="changed while it was being read"):
        opened(tmp_path).check_unchanged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(file), "file_size_in_bytes", property(lambda _: size))
        assert rows_of(opened(tmp_path), "cid", "day") == {
            "cid": [1],
            "day": [dt.date(2026, 1, 1)],
        }


def test_columns_that_came_later_and_wider_ones(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, n=pa.array([1], pa.int32())).schema)
    table.append(rows(1, n=pa.array([1], pa.int32())))
    with table.update_schema() as schema:
        schema.update_column("n", LongType())
        schema.add_column("late", DoubleType())
    table.append(rows(2, n=[2**40], late=[0.5]))
    same_as_pyiceberg(tmp_path, catalog)
    assert opened(tmp_path).schema.field("n").type == pa.int64()


def test_columns_are_found_by_their_numbers(tmp_path, catalog):
    """Renamed, one in the other's place; dropped and added again, which is another column."""
    more = {"n": [1, 2, 3], "m": ["a", "b", "c"], "gone": [0.5, 1.5, 2.5]}
    table = catalog.create_table(
        "shop.orders", schema=rows(1, **{k: v[:1] for k, v in more.items()}).schema
    )
    table.append(rows(1, 2, 3, **more))
    with table.update_schema() as schema:
        schema.rename_column("n", "number")
        schema.rename_column("event", "at")
        schema.delete_column("gone")
    with table.update_schema() as schema:
        schema.rename_column("m", "n")
        schema.add_column("gone", DoubleType())
    later = rows(4).rename_columns(["cid", "at", "day"])
    table.append(
        pa.table(
            {
                **dict(zip(later.column_names, later.columns, strict=True)),
                "number": [4],
                "n": ["d"],
                "gone": [4.5],
            }
        )
    )
    same_as_pyiceberg(tmp_path, catalog)
    source = opened(tmp_path)
    found = rows_of(source, "cid", "number", "n", "gone")
    assert sorted(zip(*found.values(), strict=True)) == [
        (1, 1, "a", None),
        (2, 2, "b", None),
        (3, 3, "c", None),
        (4, 4, "d", 4.5),
    ]
    after = source.within("at", START + 3 * HOUR, None)
    assert {3, 4} <= set(rows_of(after, "cid")["cid"])
    assert rows_of(source.within("at", START + 4 * HOUR, None), "cid") == {"cid": [4]}


def test_fields_of_nested_columns_are_found_by_their_numbers(tmp_path, catalog):
    """Renamed, one in the other's place, added, dropped and added again; inside of lists, too."""
    more = {
        "at": [{"x": 1, "y": "a"}, None, {"x": None, "y": "b"}],
        "deep": [[{"k": {"v": 1.5, "w": 7}}], [], None],
        "named": pa.array(
            [[("p", {"v": 1})], [], None],
            pa.map_(pa.string(), pa.struct([("v", pa.int64())])),
        ),
    }
    table = catalog.create_table("shop.orders", schema=rows(1, 2, 3, **more).schema)
    # By ours: the library's own writer makes empty lists of null ones.
    handle = TableHandle.from_source(source_of(tmp_path), repo_config(tmp_path))
    handle.append(rows(1, 2, 3, **more))
    table.refresh()
    with table.update_schema() as schema:
        schema.rename_column("at.x", "number")
        schema.rename_column("deep.element.k", "key")
        schema.rename_column("deep.element.k.v", "value")
        schema.rename_column("named.value.v", "n")
        schema.delete_column("deep.element.k.w")
    with table.update_schema() as schema:
        schema.rename_column("at.y", "x")
    with table.update_schema() as schema:
        schema.add_column(("at", "y"), DoubleType())
        schema.add_column(("deep", "key", "w"), LongType())
        schema.rename_column("named", "by_name")
    found = rows_of(opened(tmp_path), "cid", "at", "deep", "by_name")
    assert found == {
        "cid": [1, 2, 3],
        "at": [{"number": 1, "x": "a", "y": None}, None, {"number": None, "x": "b", "y": None}],
        "deep": [[{"key": {"value": 1.5, "w": None}}], [], None],
        "by_name": [[("p", {"n": 1})], [], None],
    }


def put_file(table, name, data, partition=None, counts=None) -> None:
    """Commit a file as another engine left it."""
    uri = f"{table.location()}/data/{name}.parquet"
    local = Path(uri.removeprefix("file://"))
    local.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(data, local)
    file = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=uri,
        file_format=FileFormat.PARQUET,
        partition=Record() if partition is None else partition,
        record_count=len(data),
        file_size_in_bytes=local.stat().st_size,
        value_counts=counts,
        spec_id=table.spec().spec_id,
        equality_ids=None,
        key_metadata=None,
    )
    with table.transaction() as transaction:
        producer = transaction.update_snapshot().fast_append()
        producer.append_data_file(file)
        producer.commit()


def mapped(catalog, data, mapping=None):
    """A table of files without numbers, whose names a property says."""
    table = catalog.create_table("shop.orders", schema=data.schema)
    mapping = mapping or json.loads(table.schema().name_mapping.model_dump_json())
    with table.transaction() as transaction:
        transaction.set_properties({"schema.name-mapping.default": json.dumps(mapping)})
    put_file(table, "a", data)
    return table


def test_files_without_numbers_are_read_by_the_table_s_mapping_of_names(tmp_path, catalog):
    data = rows(
        1,
        n=[7],
        at=[{"x": 1, "y": "a"}],
        deep=[[{"k": {"v": 1.5}}]],
        named=pa.array([[("p", {"v": 1})]], pa.map_(pa.string(), pa.struct([("v", pa.int64())]))),
    )
    table = mapped(catalog, data)
    with table.update_schema() as schema:
        schema.rename_column("n", "number")
        schema.rename_column("at.x", "z")
        schema.rename_column("deep.element.k.v", "w")
        schema.rename_column("named.value.v", "n")
    same_as_pyiceberg(tmp_path, catalog)
    assert rows_of(opened(tmp_path), "number", "at", "deep", "named") == {
        "number": [7],
        "at": [{"z": 1, "y": "a"}],
        "deep": [[{"k": {"w": 1.5}}]],
        "named": [[("p", {"n": 1})]],
    }


def test_a_mapping_may_have_several_names_of_a_column(tmp_path, catalog):
    table = mapped(catalog, rows(1, n=[7]))
    mapping = json.loads(table.properties["schema.name-mapping.default"])
    mapping[3]["names"] = ["n", "older"]
    with table.transaction() as transaction:
        transaction.set_properties({"schema.name-mapping.default": json.dumps(mapping)})
    put_file(table, "b", rows(2, older=[8]))
    same_as_pyiceberg(tmp_path, catalog)
    assert sorted(rows_of(opened(tmp_path), "n")["n"]) == [7, 8]


def test_files_of_which_nothing_says_the_columns_are_refused(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, n=[7]).schema)
    put_file(table, "a", rows(1, n=[7]))
    assert rows_of(opened(tmp_path), "n") == {"n": [7]}
    with table.update_schema() as schema:
        schema.rename_column("n", "number")
    with pytest.raises(SourceReadError, match=r"a\.parquet has no field ids.*name-mapping"):
        rows_of(opened(tmp_path), "number")


def numbered(data, schema):
    """Columns with the numbers of a table's."""
    numbers = {column.name: column.field_id for column in schema.fields}
    fields = [
        column.with_metadata({"PARQUET:field_id": str(numbers[column.name])})
        for column in data.schema
    ]
    return data.cast(pa.schema(fields))


NEW_YEAR_US = 1_767_225_600_000_000
MOMENT = dt.datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)

# Type, its Arrow type, the value in a partition, the value of the column.
PARTITION_VALUES = {
    "whole": (IntegerType(), pa.int32(), 5, 5),
    "text": (StringType(), pa.string(), "a/b %20ü", "a/b %20ü"),
    "flag": (BooleanType(), pa.bool_(), False, False),
    "day": (DateType(), pa.date32(), 20_454, dt.date(2026, 1, 1)),
    "naive": (TimestampType(), pa.timestamp("us"), NEW_YEAR_US + 1, MOMENT.replace(tzinfo=None)),
    "at": (TimestamptzType(), pa.timestamp("us", "UTC"), NEW_YEAR_US + 1, MOMENT),
    "price": (DecimalType(10, 2), pa.decimal128(10, 2), Decimal("-0.01"), Decimal("-0.01")),
    "single": (FloatType(), pa.float32(), 0.5, 0.5),
    "raw": (BinaryType(), pa.binary(), b"\xff\x00a", b"\xff\x00a"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTITION_VALUES)
def test_values_of_every_type_that_some_files_leave_to_the_partition(tmp_path, catalog, name):
    """As where a table was made of hive folders: older files lack the column."""
    kind, arrow, stored, value = PARTITION_VALUES[name]
    schema = Schema(
        NestedField(1, "cid", LongType()),
        NestedField(2, "event", TimestamptzType()),
        NestedField(3, "value", kind),
    )
    table = catalog.create_table("shop.orders", schema)
    plain = rows(1).drop_columns(["day"])

    def with_value(cell):
        return numbered(plain.append_column("value", pa.array([cell], arrow)), schema)

    put_file(table, "m", with_value(value))
    with table.update_spec() as spec:
        spec.add_field("value", "identity", "part")
    for file, cells, partition in (
        ("a", numbered(plain, schema), stored),
        ("n", with_value(value), stored),
        ("z", numbered(plain, schema), None),
    ):
        put_file(catalog.load_table("shop.orders"), file, cells, Record(partition))
    same_as_pyiceberg(tmp_path, catalog)
    assert rows_of(opened(tmp_path), "value")["value"] == [value, value, value, None]


def test_a_double_that_only_a_partition_says_is_refused(tmp_path, catalog):
    """Engines do not agree on how a partition says a double."""
    schema = Schema(
        NestedField(1, "cid", LongType()),
        NestedField(2, "event", TimestamptzType()),
        NestedField(3, "value", DoubleType()),
    )
    table = catalog.create_table("shop.orders", schema)
    with table.update_spec() as spec:
        spec.add_field("value", "identity", "part")
    plain = rows(1).drop_columns(["day"])
    whole = plain.append_column("value", pa.array([0.1], pa.float64()))
    table = catalog.load_table("shop.orders")
    put_file(table, "a", numbered(whole, schema), Record(0.1), {1: 1, 2: 1, 3: 1})
    assert rows_of(opened(tmp_path), "value") == {"value": [0.1]}
    put_file(table, "b", numbered(plain, schema), Record(0.1), {1: 1, 2: 1})
    with pytest.raises(SourceReadError, match="has files without `value`, a double that"):
        rows_of(opened(tmp_path), "value")


def test_the_statement_reads_partitions_that_some_files_leave_to_the_table(tmp_path, catalog):
    schema = Schema(
        NestedField(1, "cid", LongType()),
        NestedField(2, "event", TimestamptzType()),
        NestedField(3, "n", DecimalType(10, 2)),
    )
    table = catalog.create_table("shop.orders", schema)

    def file(cid, **more):
        return numbered(rows(cid, **more).drop_columns(["day"]), schema)

    price = pa.array([Decimal("9.99")], pa.decimal128(10, 2))
    put_file(table, "m", file(3, n=price))
    with table.update_spec() as spec:
        spec.add_field("n", "identity", "part")
    table = catalog.load_table("shop.orders")
    put_file(table, "a", file(1), Record(Decimal("1.50")))
    put_file(table, "z", file(2), Record(None))
    fields = [Field(name="cid", dtype=Int64), Field(name="n", dtype=FeastDecimal)]
    view = FeatureView(source=source_of(tmp_path), **{**VIEW, "schema": fields, "ttl": None})
    entity_df = pd.DataFrame({"cid": [1, 2, 3], "event_timestamp": [START + 9 * HOUR] * 3})
    job = S3ParquetOfflineStore.get_historical_features(
        repo_config(tmp_path), [view], ["orders:n"], entity_df, NoRegistry(), "p"
    )
    expected = [Decimal("1.50"), None, Decimal("9.99")]
    assert job.to_arrow().column("n").to_pylist() == expected
    with duckdb.connect(":memory:") as duck:
        assert duck.sql(job.to_sql()).to_arrow_table().column("n").to_pylist() == expected


def test_names_that_files_write_in_other_words(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, **{"n 1": [1]}).schema)
    table.append(rows(1, **{"n 1": [5]}))
    same_as_pyiceberg(tmp_path, catalog)
    assert rows_of(opened(tmp_path), "n 1") == {"n 1": [5]}


def test_a_table_without_rows_has_its_columns(tmp_path, catalog):
    catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    source = opened(tmp_path)
    assert source.schema.field("n").type == pa.float64()
    assert rows_of(source, "cid", "n") == {"cid": [], "n": []}


class Orc:
    """A task of a table of another format."""

    delete_files = ()

    class file:  # noqa: N801 - as the library has it
        class file_format:  # noqa: N801
            name = "ORC"


def test_files_of_other_formats_are_refused(tmp_path, catalog, monkeypatch):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))
    monkeypatch.setattr("pyiceberg.table.DataScan.plan_files", lambda _: [Orc])
    with pytest.raises(SourceReadError, match=r"`orders`: .* shop\.orders .*are not Parquet"):
        opened(tmp_path)


def delete_file(folder, table, content, columns):
    """Commit a file of deletes, as engines that merge on read write it."""
    path = f"{table.location()}/data/{content.name}-{len(columns)}.parquet"
    local = path.removeprefix("file://")
    pq.write_table(pa.table(columns), local)
    file = DataFile.from_args(
        content=content,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=len(next(iter(columns.values()))),
        file_size_in_bytes=os.path.getsize(local),  # noqa: PTH202
        equality_ids=[1] if content is DataFileContent.EQUALITY_DELETES else None,
        spec_id=0,
    )
    with table.transaction() as transaction:
        producer = AddDeletes(Operation.DELETE, transaction, table.io)
        producer.files = [file]
        producer.commit()


class AddDeletes(_FastAppendFiles):
    """A commit of delete files, which the library reads and does not write."""

    files = ()

    def _manifests(self):
        output = self.new_manifest_output()
        writer = ManifestWriterV2(
            self.spec(0), self.schema(), output, self._snapshot_id, "deflate"
        )
        writer.content = lambda: ManifestContent.DELETES
        with writer:
            for file in self.files:
                writer.add(
                    ManifestEntry.from_args(
                        status=ManifestEntryStatus.ADDED,
                        snapshot_id=self._snapshot_id,
                        data_file=file,
                    )
                )
        manifest = writer.to_manifest_file()
        return [manifest, *self._existing_manifests()]


def test_rows_deleted_by_their_positions_are_not_read(tmp_path, catalog):
    table = catalog.create_table(
        "shop.orders",
        schema=rows(1).schema,
        properties={"write.parquet.row-group-limit": "2"},
    )
    table.append(rows(*range(10)))
    table.append(rows(20, 21))
    newer, older = (task.file.file_path for task in table.scan().plan_files())
    delete_file(
        tmp_path,
        table,
        DataFileContent.POSITION_DELETES,
        {"file_path": [older, older, older, newer], "pos": [0, 3, 4, 1]},
    )
    same_as_pyiceberg(tmp_path, catalog)
    source = opened(tmp_path)
    assert sorted(rows_of(source, "cid")["cid"]) == [1, 2, 5, 6, 7, 8, 9, 20]
    assert source.rows == 8
    within = source.within("event", START + 5 * HOUR, START + 8 * HOUR)
    found = rows_of(within, "cid")["cid"]
    assert 4 not in found
    assert {5, 6, 7, 8} <= set(found)
    # Positions count the rows that are left, whichever way they are read.
    cids = rows_of(source, "cid")["cid"]
    wanted = np.array([1, 4, 7])
    fetched = pa.Table.from_batches(list(source.fetch(["cid"], wanted)))
    assert fetched.column("cid").to_pylist() == [cids[at] for at in wanted]


def test_a_file_of_deletes_that_is_none_is_named(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1, 2))
    delete_file(tmp_path, table, DataFileContent.POSITION_DELETES, {"cid": [1]})
    with pytest.raises(
        SourceReadError, match=r"which says what rows of .* are deleted, cannot be"
    ):
        rows_of(opened(tmp_path), "cid")


def test_equality_deletes_are_refused_by_name(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1, 2))
    delete_file(tmp_path, table, DataFileContent.EQUALITY_DELETES, {"cid": [1]})
    with pytest.raises(SourceReadError, match=r"`orders`: .*equality deletes"):
        opened(tmp_path)


def test_default_values_are_refused(tmp_path, catalog, monkeypatch):
    """Which the library does not write yet."""
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))
    with_default = Schema(
        *table.schema().fields, NestedField(9, "n", LongType(), initial_default=7)
    )
    monkeypatch.setattr("pyiceberg.table.Table.schema", lambda _: with_default)
    with pytest.raises(SourceReadError, match=r"default values, of the columns \['n'\]"):
        opened(tmp_path)


def test_a_file_that_is_gone_is_named(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))
    (file,) = tmp_path.glob("warehouse/shop/orders/data/*.parquet")
    file.unlink()
    with pytest.raises(SourceReadError, match=rf"{file.name} changed while it was being read"):
        rows_of(opened(tmp_path), "cid")


def test_metadata_that_cannot_be_read(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))
    for file in tmp_path.glob("warehouse/shop/orders/metadata/*.avro"):
        file.write_bytes(b"broken")
    with pytest.raises(SourceReadError, match=r"`orders`: .*shop\.orders cannot be used"):
        opened(tmp_path)


def test_no_table_and_no_catalog(tmp_path, catalog):
    with pytest.raises(
        SourceNotFoundError, match=r"`orders`: the catalog has no table shop\.gone"
    ):
        opened(tmp_path, table="gone")
    with pytest.raises(SourceNotFoundError, match=r"no table none\.orders"):
        opened(tmp_path, namespace="none")
    with pytest.raises(SourceReadError, match=r"`orders`: .* cannot be used"):
        opened(tmp_path, endpoint="sqlite:////proc/nowhere/at/all.db")
    with pytest.raises(SourceReadError, match=r"`orders`: .* cannot be used"):
        opened(tmp_path, catalog_type="rest", endpoint="http://127.0.0.1:1")


def test_a_token_is_taken_from_the_environment_and_never_shown(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="`ICE_TOKEN`, which is not set"):
        opened(tmp_path, token_env_var="ICE_TOKEN")
    monkeypatch.setenv("ICE_TOKEN", "hush-hush")
    with pytest.raises(SourceReadError) as caught:
        opened(
            tmp_path,
            catalog_type="rest",
            endpoint="http://127.0.0.1:1",
            token_env_var="ICE_TOKEN",
        )
    assert "hush" not in str(caught.value)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(DependencyError, match=r"`pip install 'feast-dynamo-ext\[iceberg\]'`"):
        opened(tmp_path)


def test_credentials_of_the_config_are_given_to_catalogs_that_need_them(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-ours")
    config = repo_config(tmp_path, region="eu-west-1", endpoint_url="http://127.0.0.1:1")
    source = source_of(
        tmp_path,
        catalog_type="glue",
        endpoint=None,
        warehouse="s3://lake/warehouse",
        catalog_properties={"client.region": "us-west-2"},
    )
    found = iceberg._properties(
        iceberg.CatalogAddress.from_source(source, config), config.offline_store.aws()
    )
    assert found["client.region"] == "us-west-2"
    assert found["py-io-impl"] == "feast_dynamo_ext.parquet.iceberg.catalog.file_io"
    keys = found["botocore_session"].get_credentials().get_frozen_credentials()
    assert (keys.access_key, keys.secret_key) == ("AKIA-ours", "secret-ours")


def test_a_source_may_say_itself_how_pyiceberg_reaches_s3(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-ours")
    config = repo_config(tmp_path, region="eu-west-1")
    own = {"s3.endpoint": "http://127.0.0.1:2", "s3.path-style-access": "true"}
    source = source_of(tmp_path, warehouse="s3://lake/warehouse", catalog_properties=own)
    assert iceberg._properties(
        iceberg.CatalogAddress.from_source(source, config), config.offline_store.aws()
    ) == {
        "type": "sql",
        "uri": f"{places(tmp_path)['uri']}?timeout=60",
        "warehouse": "s3://lake/warehouse",
        "client.region": "eu-west-1",
        "client.access-key-id": "AKIA-ours",
        "client.secret-access-key": "secret-ours",
        **own,
    }


VIEW = {
    "name": "orders",
    "entities": [Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)],
    "schema": [Field(name="cid", dtype=Int64), Field(name="n", dtype=Float64)],
    "ttl": dt.timedelta(hours=2),
}


def test_features_are_joined_point_in_time(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    table.append(rows(1, 2, n=[0.5, 1.5]))
    table.append(rows(2, n=[2.5]))
    view = FeatureView(source=source_of(tmp_path), **VIEW)
    asked = pd.DataFrame(
        {"cid": [1, 2, 2, 3], "event_timestamp": [START + at * HOUR for at in (3, 4, 9, 3)]}
    )
    job = S3ParquetOfflineStore.get_historical_features(
        repo_config(tmp_path), [view], ["orders:n"], asked, NoRegistry(), "p"
    )
    found = job.to_arrow().column("n").to_pylist()
    assert found[0] == 0.5
    assert found[1] in (1.5, 2.5)  # equal times: the later path wins
    assert found[2:] == [None, None]


def test_the_statement_reads_what_partitions_tell_from_the_files(tmp_path, catalog):
    """Their folders are `day=null` where the day is null, which DuckDB would take for text."""
    table = catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    with table.update_spec() as spec:
        spec.add_field("day", "identity", "day")
    none = pa.array([None], pa.date32())
    table.append(rows(1, n=[0.5]))
    table.append(rows(2, n=[1.5]).set_column(2, "day", none))
    fields = [Field(name="cid", dtype=Int64), Field(name="day", dtype=UnixTimestamp)]
    view = FeatureView(source=source_of(tmp_path), **{**VIEW, "schema": fields, "ttl": None})
    entity_df = pd.DataFrame({"cid": [2, 1], "event_timestamp": [START + 9 * HOUR] * 2})
    job = S3ParquetOfflineStore.get_historical_features(
        repo_config(tmp_path), [view], ["orders:day"], entity_df, NoRegistry(), "p"
    )
    expected = [None, START.date()]
    assert job.to_arrow().column("day").to_pylist() == expected
    with duckdb.connect(":memory:") as duck:
        assert duck.sql(job.to_sql()).to_arrow_table().column("day").to_pylist() == expected


def test_feast_is_told_iceberg_s_types(tmp_path, catalog):
    catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    source = source_of(tmp_path)
    assert columns_of(source, repo_config(tmp_path)) == list(
        source.get_table_column_names_and_types(repo_config(tmp_path))
    )


def test_a_path_is_taken_literally(tmp_path, catalog):
    """pyiceberg quotes a partition's value in its path, and does not unquote it to read."""
    table = catalog.create_table("shop.orders", schema=rows(1, name=["a"]).schema)
    with table.update_spec() as update:
        update.add_identity("name")
    values = ["100%", "a b/c", "x%20y", "what?*"]
    table.append(rows(1, 2, 3, 4, name=values))
    same_as_pyiceberg(tmp_path, catalog)
    assert any("%" in file.path for file in opened(tmp_path).files)
    assert sorted(rows_of(opened(tmp_path), "name")["name"]) == sorted(values)


def test_files_are_left_out_by_keys_but_not_by_keys_that_are_dates(tmp_path, catalog):
    """Keys that are times are compared in microseconds; Iceberg's bounds of dates are days."""
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    for value in (1, 30):
        table.append(rows(value))
    source = opened(tmp_path)
    assert len(source.with_keys({"cid": pa.array([30])}).files) == 1
    day = pa.array([START]).cast(pa.timestamp("us")).cast(pa.int64())
    assert len(source.with_keys({"day": day}).files) == 2


def test_footers_are_checked_of_files_that_are_partly_within_a_range_alone(tmp_path, catalog):
    """Of a file that is all within, no row group can be left out by what its footer says."""
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    for hours in ((1, 2), (3, 8), (20, 30)):
        table.append(rows(*hours))
    source = opened(tmp_path)
    for first, last, kept in ((0, 40, 3), (2, 4, 2), (3, 8, 1), (4, 7, 1), (9, 19, 0)):
        within = source.within("event", START + first * HOUR, START + last * HOUR)
        assert len(within.files) == kept
        found = rows_of(within, "cid")["cid"]
        assert {value for value in (1, 2, 3, 8, 20, 30) if first <= value <= last} <= set(found)
    whole = source.within("event", START, START + 40 * HOUR)
    assert whole.parts.checked == set()  # none was asked
    assert source.within("event", START + 4 * HOUR, START + 7 * HOUR).parts.checked == {"event"}
    limits = [START + hours * HOUR for hours in (1, 2, 3, 8, 20, 30)]
    assert sorted(whole.limits("event").to_pylist()) == limits
