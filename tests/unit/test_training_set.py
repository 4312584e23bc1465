from __future__ import annotations

import csv
import hashlib
import itertools
import json
import tracemalloc
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker import (
    Provenance,
    TimeSplit,
    hash_table,
    load_training_set,
    verify,
    write_training_set,
)

if TYPE_CHECKING:
    from pathlib import Path


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)


AWS = AwsSettings()
SPLIT = TimeSplit(utc(2026, 3, 1), utc(2026, 4, 1))
PROVENANCE = Provenance("shop", ("sales:spend",), {"sales": "ab" * 32}, (), "cd" * 32)

# Rows out of order in time, on purpose.
ROWS = pa.table(
    {
        "customer_id": pa.array([11, 12, 13, 14, 15, 16, 17], pa.int64()),
        "event_timestamp": pa.array(
            [
                utc(2026, 4, 1),
                utc(2026, 1, 5),
                utc(2026, 3, 1),
                utc(2026, 2, 28, 23, 59, 59),
                utc(2026, 1, 7),
                utc(2026, 3, 31),
                utc(2026, 5, 2),
            ],
            pa.timestamp("us", "UTC"),
        ),
        "churned": pa.array([True, False, True, True, False, False, True]),
        "spend": pa.array([1.5, None, float("nan"), 0.1, -0.0, 1e300, 3.0], pa.float64()),
        "visits": pa.array([1, 2, None, 4, 5, 6, 7], pa.int32()),
        "age": pa.array([30, 31, 32, 33, 34, 35, 36], pa.uint8()),
        "price": pa.array([Decimal("1.50"), None, *[Decimal("0.25")] * 5], pa.decimal128(9, 2)),
        "member": pa.array([True, False, None, True, True, False, True]),
        "vip": pa.array([True, False, True, False, False, False, False]),
        "ratio": pa.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], pa.float32()),
        "nothing": pa.nulls(7),
        "city": ["Ulm", "Bonn", "Ulm", "Köln", "Ulm", "Ulm", "Ulm"],
    }
)
FEATURES = ["spend", "visits", "age", "price", "member", "vip", "ratio", "nothing"]


def write(output, table=ROWS, **changes):
    options = {
        "label": "churned",
        "event_timestamp": "event_timestamp",
        "entity_columns": ["customer_id"],
        "features": FEATURES,
        "split": SPLIT,
        "aws": AWS,
        "provenance": PROVENANCE,
    }
    return write_training_set(table, output=str(output), **options | changes)


def replaced(name: str, values) -> pa.Table:
    return ROWS.set_column(ROWS.column_names.index(name), name, values)


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_csv_is_label_first_without_header_or_index_and_missing_is_an_empty_cell(tmp_path):
    write(tmp_path)
    assert (tmp_path / "train/csv/part-00000.csv").read_text() == (
        "0,,2,31,,0,0,0.2,\n1,0.1,4,33,0.25,1,0,0.4,\n0,-0,5,34,0.25,1,0,0.5,\n"
    )
    assert (tmp_path / "validation/csv/part-00000.csv").read_text() == (
        "1,,,32,0.25,,1,0.3,\n0,1e+300,6,35,0.25,0,0,0.6,\n"
    )
    assert (tmp_path / "test/csv/part-00000.csv").read_text() == (
        "1,1.5,1,30,1.5,1,1,0.1,\n1,3,7,36,0.25,1,0,0.7,\n"
    )


def test_parquet_holds_plain_numbers_of_one_type_in_every_split(tmp_path):
    write(tmp_path)
    types = {
        "churned": pa.int64(),
        "spend": pa.float64(),
        "visits": pa.float64(),  # it has a null in validation, so it is float in all three
        "age": pa.uint8(),
        "price": pa.float64(),
        "member": pa.float64(),
        "vip": pa.int64(),
        "ratio": pa.float32(),
        "nothing": pa.float64(),
    }
    for split in ("train", "validation", "test"):
        schema = pq.read_schema(tmp_path / split / "parquet" / "part-00000.parquet")
        assert dict(zip(schema.names, schema.types, strict=True)) == types
        assert schema.names[0] == "churned"
        assert schema.metadata is None
    validation = pq.read_table(tmp_path / "validation/parquet/part-00000.parquet")
    assert validation["spend"].to_pylist() == [None, 1e300]
    assert validation["visits"].to_pylist() == [None, 6.0]


def test_rows_keep_entities_and_times_in_the_order_of_the_split(tmp_path):
    write(tmp_path)
    rows = {
        split: pq.read_table(tmp_path / "rows" / split / "part-00000.parquet")
        for split in ("train", "validation", "test")
    }
    assert rows["train"].column_names == ["customer_id", "event_timestamp"]
    assert rows["train"]["customer_id"].to_pylist() == [12, 14, 15]
    assert rows["validation"]["customer_id"].to_pylist() == [13, 16]
    assert rows["test"]["customer_id"].to_pylist() == [11, 17]
    assert rows["test"].schema.field("event_timestamp").type == pa.timestamp("us", "UTC")


def test_the_layout_is_these_files_and_no_other(tmp_path):
    write(tmp_path)
    assert sorted(contents(tmp_path)) == [
        "manifest.json",
        "rows/test/part-00000.parquet",
        "rows/train/part-00000.parquet",
        "rows/validation/part-00000.parquet",
        "test/csv/part-00000.csv",
        "test/parquet/part-00000.parquet",
        "train/csv/part-00000.csv",
        "train/parquet/part-00000.parquet",
        "validation/csv/part-00000.csv",
        "validation/parquet/part-00000.parquet",
    ]


def test_xgboost_reads_the_same_from_both_formats(tmp_path):
    write(tmp_path)
    from_csv = np.array(
        [
            [float(cell) if cell else np.nan for cell in row]
            for row in csv.reader((tmp_path / "train/csv/part-00000.csv").read_text().splitlines())
        ]
    )
    from_parquet = pd.read_parquet(tmp_path / "train/parquet/part-00000.parquet").to_numpy(float)
    np.testing.assert_allclose(from_csv, from_parquet, rtol=1e-7)
    matrix = xgboost.DMatrix(from_csv[:, 1:], label=from_csv[:, 0])
    assert (matrix.num_row(), matrix.num_col()) == (3, 8)
    assert matrix.get_label().tolist() == [0.0, 1.0, 0.0]


def test_a_pandas_index_never_shows(tmp_path):
    table = pa.Table.from_pandas(ROWS.to_pandas().sort_values("visits", ascending=False))
    assert "__index_level_0__" in table.column_names
    write(tmp_path, table, features=["age"])
    read = pd.read_parquet(tmp_path / "train/parquet/part-00000.parquet")
    assert list(read.columns) == ["churned", "age"]
    rows = pd.read_parquet(tmp_path / "rows/train/part-00000.parquet")
    assert list(rows.columns) == ["customer_id", "event_timestamp"]
    assert isinstance(rows.index, pd.RangeIndex)


def test_the_manifest_says_what_was_written(tmp_path):
    training_set = write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format_version"] == 2
    assert manifest["label"] == "churned"
    assert manifest["features"] == FEATURES
    assert manifest["split"] == {
        "rule": "event_time",
        "validation_from": "2026-03-01T00:00:00+00:00",
        "test_from": "2026-04-01T00:00:00+00:00",
    }
    assert manifest["splits"]["train"] == {
        "rows": 3,
        "first_event": "2026-01-05T00:00:00.000000+00:00",
        "last_event": "2026-02-28T23:59:59.000000+00:00",
        "label": {
            "count": 3,
            "mean": 1 / 3,
            "min": 0,
            "max": 1,
            "values": {"0": 2, "1": 1},
        },
    }
    assert manifest["provenance"]["view_definitions"] == {"sales": "ab" * 32}
    for file in manifest["files"]:
        data = (tmp_path / file["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
    rows = {file["path"]: file["rows"] for file in manifest["files"]}
    assert rows["validation/csv/part-00000.csv"] == rows["rows/validation/part-00000.parquet"] == 2
    assert load_training_set(str(tmp_path), AWS) == training_set


def test_summary_is_a_row_per_split_in_order_also_when_loaded(tmp_path):
    write(tmp_path)
    summary = load_training_set(str(tmp_path), AWS).summary()
    assert [(row["split"], row["rows"]) for row in summary] == [
        ("train", 3),
        ("validation", 2),
        ("test", 2),
    ]
    assert summary[2] == {
        "split": "test",
        "rows": 2,
        "first_event": "2026-04-01T00:00:00.000000+00:00",
        "last_event": "2026-05-02T00:00:00.000000+00:00",
        "label_mean": 1.0,
        "label_min": 1,
        "label_max": 1,
    }


def test_label_values_are_counted_up_to_20_distinct_ones(tmp_path):
    times = [utc(2026, 2, 1)] * 41 + [utc(2026, 3, 1)] * 20 + [utc(2026, 4, 1)]
    labels = [*range(21), *range(20), *range(20), 2**62]
    table = pa.table({"id": range(62), "event_timestamp": times, "y": labels, "x": labels})
    training_set = write(tmp_path, table, label="y", features=["x"], entity_columns=["id"])
    splits = training_set.manifest.splits
    assert splits["train"].label.values is None
    assert splits["validation"].label.values == {str(value): 1 for value in range(20)}
    assert splits["validation"].label.mean == 9.5
    assert splits["test"].label.max == 2**62


@cases(15)
@given(cuts=st.lists(st.integers(0, 7), max_size=5))
def test_the_same_rows_in_other_chunks_give_the_same_bytes(cuts, tmp_path_factory):
    bounds = sorted([0, *cuts, 7])
    pieces = [ROWS.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    once, twice = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("twice")
    write(once)
    write(twice, pa.concat_tables(pieces).replace_schema_metadata({"pandas": "{}"}))
    assert contents(once) == contents(twice)


def many_rows(rows: int) -> pa.Table:
    random = np.random.default_rng(7)
    days = random.integers(0, 120, rows).astype("timedelta64[D]")
    return pa.table(
        {
            "customer_id": np.arange(rows),
            # Long and distinct: where its pages end depends on how the rows are handed over.
            "session": pa.array([f"session-{row * 7919:040}" for row in range(rows)]),
            "event_timestamp": np.datetime64("2026-01-01T00:00:00", "us") + days,
            # Of all magnitudes: the last digits of its mean depend on the order of summing up.
            "churned": random.random(rows) * 10.0 ** random.integers(-8, 8, rows),
            "spend": pa.array(random.random(rows), mask=random.random(rows) < 0.1),
            "visits": random.integers(0, 9, rows),
        }
    )


@pytest.mark.slow
def test_many_batches_keep_order_values_and_bytes_whatever_the_chunks(tmp_path):
    table = many_rows(300_000)
    pieces = [table.slice(at, 997) for at in range(0, 300_000, 997)]
    options = {
        "features": ["spend", "visits"],
        "entity_columns": ["customer_id", "session"],
        "parts": 3,
    }
    training_set = write(tmp_path / "a", table, **options)
    write(tmp_path / "b", pa.concat_tables(pieces), **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")

    times = table["event_timestamp"].to_numpy()
    mask = times < np.datetime64("2026-03-01")
    ids = pq.read_table(tmp_path / "a/rows/train")["customer_id"].to_numpy()
    np.testing.assert_array_equal(ids, np.flatnonzero(mask))
    files = training_set.files("train", "parquet")
    assert [file.path for file in files] == [
        "train/parquet/part-00000.parquet",
        "train/parquet/part-00001.parquet",
        "train/parquet/part-00002.parquet",
    ]
    assert max(file.rows for file in files) - min(file.rows for file in files) <= 1
    read = pa.concat_tables(pq.read_table(tmp_path / "a" / file.path) for file in files)
    assert hash_table(read) == hash_table(
        table.filter(mask).select(["churned", "spend", "visits"])
    )
    lines = b"".join(
        (tmp_path / "a" / file.path).read_bytes() for file in training_set.files("train", "csv")
    ).splitlines()
    assert len(lines) == read.num_rows
    first = table.filter(mask).slice(0, 1).to_pylist()[0]
    assert lines[0] == f"{first['churned']!r},{first['spend']!r},{first['visits']}".encode()


@pytest.mark.slow
def test_python_memory_does_not_grow_with_the_rows(tmp_path):
    table = many_rows(400_000)
    tracemalloc.start()
    arrow_before = pa.total_allocated_bytes()
    write(tmp_path, table, features=["spend", "visits"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert pa.total_allocated_bytes() - arrow_before < 1 << 20


BAD = {
    "strings": (
        {"features": ["city", "age", "event_timestamp"]},
        "2 columns cannot be encoded as declared: `city` (string): algorithms read numbers; "
        "declare its encoding: `ordinal`, `one_hot` or `hash`, or `keep` for the target `script`, "
        "or leave it out; `event_timestamp` (timestamp[us, tz=UTC]): algorithms read numbers; "
        "declare its encoding: `epoch` or `age`",
    ),
    "no such column": ({"features": ["age", "size", "sales__age"]}, "no column `size`, `sales__"),
    "no features": ({"features": []}, "`features` is empty"),
    "feature twice": ({"features": ["age", "age"]}, "names `age` more than once"),
    "label is a feature": ({"features": ["churned"]}, "the model would read its own answer"),
    "label is text": ({"label": "city"}, "`city` (string)"),
    "missing label": (
        {"label": "spend", "features": ["age"]},
        "The label `spend` is missing (null or NaN) in 2 of 7 rows; the first is row 1 "
        "(customer_id=12). Drop these rows or give them a label.",
    ),
    "no parts": ({"parts": 0}, "`parts` is 0"),
    "more parts than rows": ({"parts": 3}, "the smallest split, which is validation with 2"),
    "empty output": ({"output": ""}, "`output` is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(tmp_path, name):
    changes, message = BAD[name]
    with pytest.raises(TrainingSetError) as error:
        write_training_set(
            ROWS,
            **{
                "label": "churned",
                "event_timestamp": "event_timestamp",
                "entity_columns": ["customer_id"],
                "features": ["age"],
                "output": str(tmp_path),
                "split": SPLIT,
                "aws": AWS,
                "provenance": PROVENANCE,
            }
            | changes,
        )
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0]] * 7),
        pa.array([{"a": 1}] * 7),
        pa.array([[("a", 1)]] * 7, pa.map_(pa.string(), pa.int64())),
        pa.array([b"a"] * 7),
        pa.array([1] * 7, pa.date32()),
        pa.array([1] * 7, pa.duration("s")),
        pa.array(["a"] * 7).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_that_are_no_numbers_are_refused_by_name(tmp_path, column):
    table = ROWS.append_column("odd", column)
    with pytest.raises(TrainingSetError, match=r"`odd` \("):
        write(tmp_path, table, features=["age", "odd"])


def test_integers_that_float64_would_round_are_refused_only_where_a_null_makes_them_float(
    tmp_path,
):
    exact = pa.array([2**53, -(2**53), None, 0, 0, 0, 0])
    write(tmp_path / "exact", replaced("visits", exact), features=["visits"])
    whole = pa.array([2**53 + 1, 2**62, 0, 0, 0, 0, 0])
    write(tmp_path / "whole", replaced("visits", whole), features=["visits"])
    test = pq.read_table(tmp_path / "whole/test/parquet/part-00000.parquet")
    assert test["visits"].to_pylist() == [2**53 + 1, 0]
    for values in ([2**53 + 1, None, 0, 0, 0, 0, 0], [-(2**53) - 1, None, 0, 0, 0, 0, 0]):
        with pytest.raises(TrainingSetError, match=r"beyond 2\^53 in `visits`"):
            write(tmp_path, replaced("visits", pa.array(values)), features=["visits", "age"])


def test_infinite_values_are_refused_with_their_count(tmp_path):
    table = replaced("spend", pa.array([float("inf"), -float("inf"), None, 1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(TrainingSetError, match=r"`spend` \(2 rows\)"):
        write(tmp_path, table)


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(TrainingSetError, match="leaves test empty: 6 rows run from"):
        write(
            tmp_path,
            ROWS.slice(1),
            split=TimeSplit(utc(2026, 3, 1), utc(2026, 6, 1)),
        )


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = ROWS.append_column("age", ROWS["visits"])
    with pytest.raises(TrainingSetError, match="more than one column `age`"):
        write(tmp_path, table)


def test_a_training_set_is_not_replaced_unless_told_and_then_wholly(tmp_path):
    write(tmp_path, parts=2)
    before = contents(tmp_path)
    with pytest.raises(TrainingSetError, match="holds a training set already"):
        write(tmp_path, features=["age"])
    assert contents(tmp_path) == before
    write(tmp_path, features=["age"], overwrite=True)
    assert not (tmp_path / "train/csv/part-00001.csv").exists()
    assert (tmp_path / "test/csv/part-00000.csv").read_text() == "1,30\n1,36\n"
    assert verify(str(tmp_path), AWS).ok


def test_what_an_interrupted_run_left_is_cleared(tmp_path):
    write(tmp_path, parts=2)
    # A build's claim, which stands in the manifest's place until all is written.
    (tmp_path / "manifest.json").write_text('{"building": "ab"}')
    with pytest.raises(TrainingSetError, match="holds no complete training set"):
        load_training_set(str(tmp_path), AWS)
    write(tmp_path)
    assert verify(str(tmp_path), AWS).ok


def test_files_of_others_are_neither_deleted_nor_served_as_data(tmp_path):
    notes = tmp_path / "train" / "csv" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    (tmp_path / "README").write_text("mine too, but in nobody's way")
    with pytest.raises(TrainingSetError, match=r"1 files that no training set wrote.*notes\.txt"):
        write(tmp_path, overwrite=True)
    assert sorted(contents(tmp_path)) == ["README", "train/csv/notes.txt"]


def test_a_relative_folder_works_and_is_known_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training_set = write("sets/july")
    assert training_set.output == str(tmp_path / "sets" / "july")
    assert verify("sets/july", AWS).ok


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(TrainingSetError, match="taken"):
        write(tmp_path / "taken" / "set")
