"""Delta Lake tables are read as their log says they are."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast.data_format import DeltaFormat
from source_cases import opened, put, rows_of

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import AccessDeniedError, SourceNotFoundError, SourceReadError
from feast_dynamo_ext.parquet.delta import read_delta
from feast_dynamo_ext.parquet.listing import Place

DAY = dt.date(2026, 1, 1)


def rows(*values, day=DAY):
    moments = [dt.datetime(2026, 1, 1, value % 24, tzinfo=dt.timezone.utc) for value in values]
    return pa.table(
        {
            "x": pa.array(values, pa.int32()),
            "day": pa.array([day] * len(values), pa.date32()),
            "event": pa.array(moments, pa.timestamp("us", "UTC")),
        }
    )


def table(folder):
    return opened(folder, "orders", file_format=DeltaFormat())


def test_the_active_files_are_read(tmp_path):
    path = str(tmp_path / "orders")
    write_deltalake(path, rows(1, 2))
    write_deltalake(path, rows(3), mode="append")
    DeltaTable(path).delete("x = 1")
    put(tmp_path / "orders" / "not-committed.parquet", x=[99])
    assert sorted(rows_of(table(tmp_path), "x")["x"]) == [2, 3]
    write_deltalake(path, rows(7), mode="overwrite")
    assert rows_of(table(tmp_path), "x") == {"x": [7]}


def test_partitions_have_the_types_of_the_log_and_are_pruned(tmp_path):
    path = str(tmp_path / "orders")
    days = [DAY, DAY + dt.timedelta(days=1), None]
    for number, day in enumerate(days):
        write_deltalake(path, rows(number, day=day), mode="append", partition_by=["day"])
    source = table(tmp_path)
    assert source.schema.field("day").type == pa.date32()
    found = rows_of(source, "x", "day")
    assert dict(zip(found["x"], found["day"], strict=True)) == dict(enumerate(days))
    second = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)
    assert rows_of(source.within("day", second, None), "x") == {"x": [1]}


def test_columns_that_came_later_are_in_the_log_s_schema(tmp_path):
    path = str(tmp_path / "orders")
    write_deltalake(path, rows(1))
    more = rows(2).append_column("late", pa.array(["t"]))
    write_deltalake(path, more, mode="append", schema_mode="merge")
    found = rows_of(table(tmp_path), "x", "late")
    assert dict(zip(found["x"], found["late"], strict=True)) == {1: None, 2: "t"}


def test_a_file_that_is_gone_or_another_is_named(tmp_path):
    path = str(tmp_path / "orders")
    write_deltalake(path, rows(1))
    (file,) = (tmp_path / "orders").glob("*.parquet")
    file.write_bytes(b"")
    with pytest.raises(SourceReadError, match=rf"{file.name}, which the table's log names"):
        table(tmp_path)


class Overwritten:
    """Files of a table that another writer overwrites and cleans before they are listed."""

    def __init__(self, files, folder) -> None:
        self._files, self._folder, self._is_done = files, folder, False

    def below(self, folder):
        if not self._is_done:
            self._is_done = True
            write_deltalake(self._folder, rows(7), mode="overwrite")
            DeltaTable(self._folder).vacuum(0, dry_run=False, enforce_retention_duration=False)
        return self._files.below(folder)


def test_files_that_a_newer_version_replaced_meanwhile(tmp_path):
    path = str(tmp_path / "orders")
    write_deltalake(path, rows(1))
    place = Place.from_uri(path, AwsSettings())
    place = replace(place, storage=Overwritten(place.storage, path))
    (file,) = read_delta(place, "orders").files
    assert pq.read_table(file.path).column("x").to_pylist() == [7]


def test_a_file_that_is_removed_while_it_is_read(tmp_path):
    path = str(tmp_path / "orders")
    write_deltalake(path, rows(1))
    source = table(tmp_path)
    write_deltalake(path, rows(7), mode="overwrite")
    DeltaTable(path).vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(SourceReadError, match=r"changed while .* let the table keep what it no"):
        rows_of(source, "x")


def test_no_table_is_named(tmp_path):
    put(tmp_path / "orders" / "a.parquet", x=[1])
    with pytest.raises(
        SourceNotFoundError, match=r"`orders`: there is no Delta table at .*orders"
    ):
        table(tmp_path)


def test_a_log_that_cannot_be_read_is_named_without_a_stack(tmp_path):
    for text, said in {
        "not json": "Encountered unexpected 'o'",
        "": "No table metadata or protocol",
        '{"metaData": {"id": "tru': "Truncated record",
        '{"add": [}': "Encountered unexpected",
    }.items():
        commit(tmp_path, 0)
        (tmp_path / "orders" / "_delta_log" / f"{0:020}.json").write_text(text)
        with pytest.raises(SourceReadError, match=r"log of the Delta table .*Repair") as error:
            table(tmp_path)
        assert said in str(error.value)
        assert re.search(r"\n|<unknown>|\.\.", str(error.value)) is None


def test_a_table_is_not_read_as_a_folder_of_files(tmp_path):
    path = str(tmp_path / "orders")
    write_deltalake(path, rows(1, 2))
    write_deltalake(path, rows(7), mode="overwrite")
    words = r"(/orders)? is a Delta table, or has one in it: .*_delta_log/.*`file_format=Delta"
    with pytest.raises(SourceReadError, match=words):
        opened(tmp_path, "orders")
    with pytest.raises(SourceReadError, match=words):
        opened(tmp_path, "")
    assert sorted(rows_of(opened(tmp_path, "orders/*.parquet"), "x")["x"]) == [1, 2, 7]
    (tmp_path / "clicks" / ".hoodie").mkdir(parents=True)
    (tmp_path / "clicks" / ".hoodie" / "hoodie.properties").touch()
    put(tmp_path / "clicks" / "part.parquet", x=[1])
    with pytest.raises(SourceReadError, match="clicks is a Hudi table"):
        opened(tmp_path, "clicks")


def commit(folder, number: int, *actions: dict) -> None:
    log = folder / "orders" / "_delta_log"
    log.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(action) for action in actions)
    (log / f"{number:020}.json").write_text(lines)


def metadata(**configuration) -> dict:
    annotations = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"}
    fields = [{"name": "x", "type": "long", "nullable": True, "metadata": annotations}]
    return {
        "metaData": {
            "id": "6a2f8c1e-0000-4000-8000-000000000000",
            "format": {"provider": "parquet", "options": {}},
            "schemaString": json.dumps({"type": "struct", "fields": fields}),
            "partitionColumns": [],
            "configuration": configuration,
            "createdTime": 1767225600000,
        }
    }


def protocol(*features: str) -> dict:
    return {
        "protocol": {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": list(features),
            "writerFeatures": list(features),
        }
    }


def added(folder, **more) -> dict:
    put(folder / "orders" / "a.parquet", x=[1, 2])
    return {
        "add": {
            "path": "a.parquet",
            "partitionValues": {},
            "size": (folder / "orders" / "a.parquet").stat().st_size,
            "modificationTime": 1767225600000,
            "dataChange": True,
            **more,
        }
    }


def test_deletion_vectors_are_refused_where_there_are_any(tmp_path):
    enabled = {"delta.enableDeletionVectors": "true"}
    start = [protocol("deletionVectors"), metadata(**enabled)]
    commit(tmp_path, 0, *start, added(tmp_path))
    assert rows_of(table(tmp_path), "x") == {"x": [1, 2]}
    vector = {  # of the protocol's own example, inline: rows 3, 4, 7, 11, 18, 29
        "storageType": "i",
        "pathOrInlineDv": "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "sizeInBytes": 40,
        "cardinality": 6,
    }
    in_a_file = {
        "storageType": "u",
        "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^",
        "offset": 4,
        "sizeInBytes": 40,
        "cardinality": 6,
    }
    for each in (vector, in_a_file):  # the file of the second is not there
        commit(tmp_path, 0, *start, added(tmp_path, deletionVector=each))
        with pytest.raises(
            SourceReadError,
            match=r"^Source `orders`: the Delta table .*deletion vectors .*there\.$",
        ):
            table(tmp_path)


def test_column_mapping_is_refused(tmp_path):
    start = [protocol("columnMapping"), metadata(**{"delta.columnMapping.mode": "name"})]
    commit(tmp_path, 0, *start, added(tmp_path))
    with pytest.raises(
        SourceReadError, match=r"^Source `orders`: the Delta table .*column mapping.*there\.$"
    ):
        table(tmp_path)


def test_files_with_whole_paths_are_read_below_the_table_and_refused_elsewhere(tmp_path):
    there = added(tmp_path)
    for form in ("file://{}", "{}"):
        path = form.format(tmp_path / "orders" / "a.parquet")
        commit(tmp_path, 0, protocol(), metadata(), {"add": {**there["add"], "path": path}})
        assert rows_of(table(tmp_path), "x") == {"x": [1, 2]}
    for path in (f"file://{tmp_path}/orders2/a.parquet", "/a.parquet", "s3://b/orders/a.parquet"):
        commit(tmp_path, 0, protocol(), metadata(), {"add": {**there["add"], "path": path}})
        with pytest.raises(
            SourceReadError, match=f"`orders`: .* outside of its folder, such as {path}, as a shal"
        ):
            table(tmp_path)


class Cleaned:
    """Files of a table whose log loses a file at first, or refuses to be read, while it is."""

    def __init__(self, files, *errors) -> None:
        self._files, self._errors = files, list(errors)

    def chunks(self, uri):
        if self._errors:
            raise self._errors.pop()
        return self._files.chunks(uri)

    def __getattr__(self, name):
        return getattr(self._files, name)


def test_errors_while_a_log_is_copied_are_what_they_are(tmp_path):
    path = tmp_path / "a%20b"  # which the library takes for a space
    write_deltalake(str(tmp_path / "orders"), rows(1))
    (tmp_path / "orders").rename(path)
    place = Place.from_uri(str(path), AwsSettings())
    gone = replace(place, storage=Cleaned(place.storage, FileNotFoundError(2, "gone")))
    assert len(read_delta(gone, "orders").files) == 1
    refused = AccessDeniedError("S3 refused.", code="AccessDenied")
    denied = replace(place, storage=Cleaned(place.storage, refused))
    with pytest.raises(AccessDeniedError, match=r"^S3 refused\.$"):
        read_delta(denied, "orders")


UTC = dt.timezone.utc
MOMENT = dt.datetime(2026, 1, 31, 23, 59, 59, 123456, tzinfo=UTC)

PARTITIONS = {
    "text": (pa.string(), ["a b", "100%", "x%20y", "what?*=#", "ü/ö", "", None, " a ", "[1]"]),
    "whole": (pa.int64(), [2**63 - 1, -(2**63), 0, None]),
    "short": (pa.int16(), [7, -7, None]),
    "is": (pa.bool_(), [True, False, None]),
    "real": (pa.float64(), [0.1, -1e100, 1e-7, None]),
    "single": (pa.float32(), [0.5, 16777216.0, None]),
    "price": (pa.decimal128(20, 3), [Decimal("1.100"), Decimal("12345678901234567.891"), None]),
    "day": (pa.date32(), [DAY, dt.date(1969, 12, 31), None]),
    "at": (pa.timestamp("us", "UTC"), [MOMENT, dt.datetime(1969, 1, 1, tzinfo=UTC), None]),
    "naive": (pa.timestamp("us"), [MOMENT.replace(tzinfo=None), None]),
    "raw": (pa.binary(), [b"ab", b"a/b %", b"\x00\xff\xc3\xbc", None]),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_partition_values_of_every_type_and_what_paths_make_of_them(tmp_path, name):
    kind, values = PARTITIONS[name]
    written = pa.table(
        {
            "x": pa.array(range(len(values)), pa.int64()),
            name: pa.array(values, kind),
            "event": pa.array([MOMENT] * len(values), pa.timestamp("us", "UTC")),
        }
    )
    write_deltalake(str(tmp_path / "orders"), written, partition_by=[name])
    # Which the library itself does not find.
    (tmp_path / "orders").rename(tmp_path / "orders of %20 ü")
    source = opened(tmp_path, "orders of %20 ü", file_format=DeltaFormat())
    assert source.schema.field(name).type == kind
    found = rows_of(source, "x", name)
    # Delta has no empty text in a partition: its protocol says that it is null.
    expected = [None if value == "" else value for value in values]
    assert dict(zip(found["x"], found[name], strict=True)) == dict(enumerate(expected))
