"""Many small files: read without a scanner for each, some together, each value as it is there."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from source_cases import opened

from feast_dynamo_ext.errors import SourceReadError
from feast_dynamo_ext.parquet.scan import MOST_TOGETHER

if TYPE_CHECKING:
    from pathlib import Path

FILES, ROWS = 40, 5


def write_files(folder: Path) -> pa.Table:
    """Files whose rows' numbers ascend; all rows."""
    numbers = np.arange(FILES * ROWS)
    table = pa.table({"number": numbers, "text": [f"text {number}" for number in numbers]})
    for at in range(FILES):
        # Two row groups each, of which the last is of one row.
        path = folder / f"{at:03}.parquet"
        part = table.slice(at * ROWS, ROWS)
        pq.write_table(part, path, row_group_size=ROWS - 1, use_dictionary=False)
    return table


def numbered(batch: pa.RecordBatch, start: int) -> tuple[int, list[int]]:
    return start, batch.column("number").to_pylist()


@pytest.mark.parametrize("threads", [1, 3])
def test_row_groups_of_small_files_are_one_batch(tmp_path, threads):
    write_files(tmp_path)
    found = list(opened(tmp_path).each(["number"], numbered, threads))
    assert [start for start, _ in found] == [numbers[0] for _, numbers in found]
    assert [number for _, numbers in found for number in numbers] == list(range(FILES * ROWS))
    assert len(found) == 2 * FILES / MOST_TOGETHER


def test_row_groups_without_wanted_rows_are_not_read(tmp_path):
    write_files(tmp_path)
    (tmp_path / "007.parquet").write_bytes(_spoilt(tmp_path / "007.parquet"))
    source, wanted = opened(tmp_path), np.array([3, 4, 30, 40, 41, 44, 199])
    found = pa.Table.from_batches(source.fetch(["text", "number"], wanted, threads=2))
    assert found["number"].to_pylist() == wanted.tolist()
    assert found["text"].to_pylist() == [f"text {number}" for number in wanted]
    batches = list(source.each(["number"], numbered, 2, wanted))
    assert batches == [
        (0, [0, 1, 2, 3, 4]),
        (30, [30, 31, 32, 33]),
        (40, [40, 41, 42, 43, 44]),
        (199, [199]),
    ]
    with pytest.raises(SourceReadError, match=r"007\.parquet cannot be read"):
        list(source.each(["number"], numbered, 2, np.array([35])))


def _spoilt(path: Path) -> bytes:
    """The pages of a file overwritten; its footer is whole."""
    data, end = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(1).column(1)
    end_of_pages = end.data_page_offset + end.total_compressed_size
    data[4:end_of_pages] = b"\xff" * (end_of_pages - 4)
    return bytes(data)


COLUMNS = {
    "bool": pa.array([True, None, False]),
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "half": pa.array(np.array([1, 2, 3], np.float16)),
    "float": pa.array([0.1, None, float("inf")], pa.float32()),
    "decimal": pa.array([Decimal("1.10"), None, Decimal("-9.99")], pa.decimal128(5, 2)),
    "large": pa.array(["ä", None, ""], pa.large_string()),
    "bytes": pa.array([b"\x00", None, b""]),
    "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "date": pa.array([dt.date(1, 1, 1), None, dt.date(9999, 12, 31)]),
    "time": pa.array([dt.time(1, 2, 3), None, dt.time(0)], pa.time64("us")),
    "zoned": pa.array([0, None, -1], pa.timestamp("us", "Europe/Berlin")),
    "nanos": pa.array([1, None, -1], pa.timestamp("ns")),
    "nulls": pa.nulls(3),
    "coded": pa.array(["a", None, "a"]).dictionary_encode(),
    "list": pa.array([[1, None], None, []], pa.list_(pa.int64())),
    "struct": pa.array([{"x": 1, "a.b": 2}, None, {"x": None, "a.b": 3}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "uuid": pa.array([b"0123456789abcdef", None, b"0" * 16], pa.uuid()),
    "a.b": pa.array([7, None, 9]),
    "view": pa.array(["v", None, ""], pa.string_view()),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_values_of_every_type_are_those_of_the_file(tmp_path, name):
    path = tmp_path / "a.parquet"
    column = COLUMNS[name]
    # Columns beside, whose paths begin or end alike.
    beside = {"a": pa.array([{"b": 1}] * 3), "number": pa.array([0, 1, 2])}
    pq.write_table(pa.table({**beside, name: column}), path)
    source = opened(tmp_path)
    columns = [name, "number"]
    (found,) = source.each(columns, lambda batch, _: batch, 1)
    assert found.schema == source.schema_of(columns)
    assert found.column("number").to_pylist() == [0, 1, 2]
    assert found.column(name).to_pylist() == pq.read_table(path).column(name).to_pylist()


def test_old_times_of_spark_are_microseconds(tmp_path):
    path = tmp_path / "a.parquet"
    times = pa.array([dt.datetime(2024, 1, 1), dt.datetime(9999, 12, 31)], pa.timestamp("us"))  # noqa: DTZ001
    pq.write_table(pa.table({"t": times}), path, use_deprecated_int96_timestamps=True)
    (found,) = opened(tmp_path).each(["t"], lambda batch, _: batch, 1)
    assert found.column("t").equals(times)


def test_files_of_several_types_and_columns_of_folders(tmp_path):
    tables = {
        "k=1/a": pa.table({"x": pa.array([1, 2], pa.int32())}),
        "k=2/b": pa.table({"x": pa.array([2**40], pa.int64()), "y": ["only here"]}),
        "k=2/c": pa.table({"x": pa.array([], pa.int64())}),
        "k=3/d": pa.table({"y": pa.array([None, "b"]), "x": pa.array([5, None], pa.int64())}),
    }
    for name, table in tables.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    source = opened(tmp_path).with_all_types()
    found = pa.Table.from_batches(source.each(["y", "x", "k"], lambda batch, _: batch, 2))
    assert found.to_pydict() == {
        "y": [None, None, "only here", None, "b"],
        "x": [1, 2, 2**40, 5, None],
        "k": [1, 1, 2, 3, 3],
    }


def test_a_row_group_of_fewer_rows_than_its_footer_says_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"number": np.arange(100)})
    pq.write_table(table, path, use_dictionary=False, compression="none", write_statistics=False)
    data = path.read_bytes()
    # Zigzag varints of 100: the last one of the footer is the rows of the row group.
    at = data.rindex(b"\xc8\x01")
    path.write_bytes(data[:at] + b"\xca\x01" + data[at + 2 :])
    assert pq.read_metadata(path).row_group(0).num_rows == 101
    source = opened(tmp_path)
    said = r"a\.parquet cannot be read: a row group has 100 rows, and its footer says 101"
    with pytest.raises(SourceReadError, match=said):
        list(source.each(["number"], numbered, 1))
    with pytest.raises(SourceReadError, match=said):
        list(source.scan(["number"]))


def test_values_that_are_merged_are_no_other_than_by_themselves(tmp_path):
    table = write_files(tmp_path)
    merged = pa.Table.from_batches(opened(tmp_path).each(["text"], lambda batch, _: batch, 2))
    assert merged["text"].combine_chunks().equals(table["text"].combine_chunks())
    assert pc.count_distinct(merged["text"]).as_py() == FILES * ROWS
