"""Entity rows from Parquet and CSV files on a local disk."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from entity_shop import day, days, open_shop

from feast_dynamo_ext import sagemaker
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    EntityRowsError,
    SourceNotFoundError,
    SourceReadError,
)

ROWS = pa.table(
    {
        "cid": pa.array([2, 1, 1, 9], pa.int16()),
        "event_timestamp": days([5, 1, 2, 2], pa.timestamp("ns", tz="Asia/Kolkata")),
        "note": pa.array(["a", "b", None, "a"]).dictionary_encode(),
    }
)
TOTALS = [3.0, 1.0, 2.0, None]
CSV = b"""cid,event_timestamp,label
2,2026-01-06 00:00:00,0.5
1,2026-01-02 00:00:00,1
1,2026-01-03 00:00:00,
9,2026-01-03 00:00:00,2
"""


@pytest.fixture
def shop(open_store, tmp_path):
    return open_shop(open_store(), tmp_path)


@pytest.fixture
def rows(tmp_path):
    """The folder for entity rows, inside the feature repo."""
    folder = tmp_path / "rows"
    folder.mkdir()
    return folder


def table_of(store, given, features=("orders:total",)) -> pa.Table:
    return store.get_historical_features(given, list(features)).to_arrow()


# Parquet


@pytest.mark.parametrize("form", ["rows/a.parquet", "rows", "rows/*.parquet", "absolute", "Path"])
def test_parquet_comes_back_as_it_was(shop, rows, form):
    pq.write_table(ROWS, rows / "a.parquet", row_group_size=3)
    given = {"absolute": str(rows / "a.parquet"), "Path": rows / "a.parquet"}.get(form, form)
    got = table_of(shop, given)
    assert got.drop_columns("total").equals(pq.read_table(rows / "a.parquet"))
    assert got.schema.field("cid").type == pa.int16()
    assert got.column("total").to_pylist() == TOTALS


def test_the_files_of_a_folder_by_their_paths_with_what_folders_and_files_add(shop, rows):
    for name, part in (("split=b/0", ROWS.slice(0, 2)), ("split=a/0", ROWS.slice(2))):
        (rows / name).parent.mkdir()
        pq.write_table(part, rows / f"{name}.parquet")
    pq.write_table(ROWS.slice(0, 1).add_column(0, "more", [[7]]), rows / "split=b" / "1.parquet")
    (rows / "_SUCCESS").touch()
    got = table_of(shop, "rows")
    assert got.column("cid").to_pylist() == [1, 9, 2, 1, 2]
    assert got.column("split").to_pylist() == ["a", "a", "b", "b", "b"]
    assert got.column("more").to_pylist() == [None, None, None, None, 7]
    assert got.column("total").to_pylist() == [2.0, None, 3.0, 1.0, 3.0]


def test_the_job_says_where_its_rows_are_from(shop, rows):
    pq.write_table(ROWS, rows / "a.parquet")
    job = shop.get_historical_features("rows/a.parquet", ["orders:total"])
    assert (job.entities.origin.kind, job.entities.origin.text) == (
        "files",
        str(rows / "a.parquet"),
    )


# CSV


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.csv.gz"])
def test_csv_whose_naive_times_are_utc(shop, rows, name):
    data = gzip.compress(CSV) if name.endswith("gz") else CSV
    (rows / name).write_bytes(data)
    got = table_of(shop, f"rows/{name}")
    assert got.schema.field("cid").type == pa.int64()
    assert got.schema.field("event_timestamp").type == pa.timestamp("s", tz="UTC")
    assert got.column("event_timestamp").to_pylist() == [day(5), day(1), day(2), day(2)]
    assert got.column("label").to_pylist() == [0.5, 1.0, None, 2.0]
    assert got.column("total").to_pylist() == TOTALS


def test_csv_with_zones_in_its_times(shop, rows):
    (rows / "a.csv").write_text("cid,asked\n2,2026-01-02T05:30:00+05:30\n2,2026-01-01 23:59:59Z\n")
    got = table_of(shop, "rows/a.csv")
    assert got.column("total").to_pylist() == [3.0, None]


def test_a_text_key_that_looks_like_a_number_stays_text(shop, rows):
    (rows / "a.csv").write_text("cid,sku,event_timestamp\n1,007,2026-01-02\n1,7,2026-01-02\n")
    got = table_of(shop, "rows/a.csv", ["baskets:items"])
    assert got.column("sku").to_pylist() == ["007", "7"]
    assert got.column("items").to_pylist() == [10, None]


def test_a_column_that_turns_into_text_after_the_first_megabyte(shop, rows):
    line = "1,2026-01-02,12\n"
    many = (1 << 20) // len(line) + 1
    (rows / "a.csv").write_text("cid,event_timestamp,note\n" + line * many + "1,2026-01-02,last\n")
    got = table_of(shop, "rows/a.csv")
    assert got.num_rows == many + 1
    assert got.column("note")[0].as_py() == "12"
    assert got.column("note")[-1].as_py() == "last"


def test_several_csv_files_with_types_that_widen(shop, rows):
    (rows / "a.csv").write_text("cid,event_timestamp,label\n1,2026-01-02 00:00:00,1\n")
    (rows / "b.csv").write_text("cid,event_timestamp,label\n2,2026-01-03 00:00:00.5,1.5\n")
    got = table_of(shop, "rows")
    assert got.column("label").to_pylist() == [1.0, 1.5]
    assert got.column("total").to_pylist() == [1.0, 3.0]


# What is refused


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, SourceNotFoundError, r"there is no file at .*/rows\. Check the path"),
        ({"a.json": b"{}"}, EntityRowsError, r"a\.json is neither Parquet nor CSV"),
        ({"a": b"hello"}, SourceReadError, r"/rows/a"),
        ({"a.parquet": b""}, SourceReadError, r"/rows/a\.parquet"),
        ({"a.csv": b""}, EntityRowsError, r"a\.csv cannot be read as CSV: Empty CSV file"),
        ({"a.csv": b"a,b\n1,2\n3\n"}, EntityRowsError, r"Expected 2 columns, got 1"),
        ({"a.csv.gz": b"nothing packed"}, SourceReadError, r"a\.csv\.gz cannot be read"),
        ({"a.csv": CSV, "b.parquet": b""}, EntityRowsError, r"1 of 2 files are CSV"),
        ({"a.csv": b"cid,at\n1,2026-01-01\n"}, EntityRowsError, r"need a column `event_time"),
        ({"a.csv": b"cid,event_timestamp\n1,soon\n"}, ColumnTypeError, r"has type string"),
        ({"a.csv": b"cid,event_timestamp\n"}, EntityRowsError, r"rows from .*/rows are empty"),
        ({"a.csv": b"cid,cid,t\n1,1,2026-01-01 00:00:00\n"}, EntityRowsError, r"named \['cid'\]"),
        (
            {"a.csv": b"cid,event_timestamp\n1,2026-01-01\n,\n"},
            EntityRowsError,
            r"1 rows have no `event_timestamp`",
        ),
        (
            {"a.csv": b"a,event_timestamp\n1,2026-01-01\n", "b.csv": b"a\nx\n"},
            EntityRowsError,
            r"columns of different types",
        ),
    ],
)
def test_one_clear_error(shop, rows, files, error, message):
    for name, data in files.items():
        (rows / name).write_bytes(data)
    with pytest.raises(error, match=message):
        shop.get_historical_features("rows", ["orders:total"])


def test_text_that_is_neither_a_path_nor_sql(shop):
    with pytest.raises(SourceNotFoundError, match="SQL begins with SELECT, WITH or FROM"):
        shop.get_historical_features("DELETE FROM orders", ["orders:total"])


def test_a_training_set_of_files(shop, rows, tmp_path):
    pq.write_table(
        pa.table({"cid": [1, 1, 2], "event_timestamp": days([1, 2, 5]), "label": [0.0, 1.0, 1.0]}),
        rows / "a.parquet",
    )
    made = sagemaker.create_training_set(
        shop,
        entity_rows="rows/a.parquet",
        features=["orders:total"],
        label="label",
        output=str(tmp_path / "out"),
        split=sagemaker.TimeSplit(validation_from=day(1.5), test_from=day(3)),
    )
    (train,) = made.files("train", "parquet")
    assert pq.read_table(tmp_path / "out" / train.path).column("total").to_pylist() == [1.0]
    (source,) = made.manifest.provenance.source_files
    assert source.path == str(tmp_path / "orders" / "part-0.parquet")


def test_dates_as_event_times_of_a_training_set_are_midnights(shop, rows, tmp_path):
    """As pandas writes midnights to CSV."""
    (rows / "a.csv").write_text(
        "cid,event_timestamp,label\n1,2026-01-01,0\n1,2026-01-02,1\n2,2026-01-05,1\n"
    )
    in_sql = "SELECT cid, event_timestamp::DATE AS event_timestamp, total AS label FROM orders"
    for number, (given, counts) in enumerate({"rows/a.csv": [1, 1, 1], in_sql: [1, 2, 1]}.items()):
        made = sagemaker.create_training_set(
            shop,
            entity_rows=given,
            features=["orders:total"],
            label="label",
            output=str(tmp_path / str(number)),
            split=sagemaker.TimeSplit(validation_from=day(1), test_from=day(2)),
        )
        assert [split.rows for split in made.manifest.splits.values()] == counts
        assert made.manifest.splits["validation"].first_event == "2026-01-02T00:00:00+00:00"
        (train,) = made.files("train", "parquet")
        assert pq.read_table(tmp_path / str(number) / train.path)["total"].to_pylist() == [1.0]
