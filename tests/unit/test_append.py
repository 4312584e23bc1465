"""Rows pushed to the offline store: new files beside the old ones, whole or not at all."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import resource
import signal
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView, FileSource, PushSource
from feast.data_format import DeltaFormat
from feast.data_source import PushMode
from feast.types import Float64, Int64
from repos import repo_config
from views import CUSTOMER, customer_view

from feast_dynamo_ext import S3ParquetSource
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    DestinationError,
    OfflineStoreError,
    SourceReadError,
)
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.append import write_folders
from feast_dynamo_ext.parquet.writer import PartSize, write_parts
from feast_dynamo_ext.storage import LocalFiles

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
TIME = pa.timestamp("us", "UTC")

# Python 3.12 warns of any fork beside threads; the children here wait for none of them.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def rows(*values, at=START, **more) -> pa.Table:
    return pa.table(
        {
            "cid": pa.array(range(len(values)), pa.int64()),
            "event_timestamp": pa.array([at] * len(values), TIME),
            "total": pa.array(values, pa.float64()),
            **more,
        }
    )


def append(folder: Path, view: FeatureView, table: pa.Table) -> None:
    S3ParquetOfflineStore.offline_write_batch(repo_config(folder), view, table, None)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def history(folder: Path, view: FeatureView) -> list[dict]:
    job = S3ParquetOfflineStore.pull_all_from_table_or_query(
        repo_config(folder), view.batch_source, [], [], "event_timestamp"
    )
    return job.to_arrow().to_pylist()


@pytest.fixture
def orders(tmp_path) -> FeatureView:
    (tmp_path / "orders").mkdir()
    pq.write_table(rows(1.0), tmp_path / "orders" / "old.parquet")
    return customer_view(source=FileSource(path="orders", timestamp_field="event_timestamp"))


def test_old_files_are_left_alone_and_progress_is_told(tmp_path, orders):
    before = (tmp_path / "orders" / "old.parquet").stat()
    told = []
    S3ParquetOfflineStore.offline_write_batch(
        repo_config(tmp_path), orders, rows(2.0, 3.0), told.append
    )
    after = (tmp_path / "orders" / "old.parquet").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert told == [2]
    assert len(files_in(tmp_path / "orders")) == 2
    assert sorted(row["total"] for row in history(tmp_path, orders)) == [1.0, 2.0, 3.0]


def test_rows_come_in_the_types_of_the_files(tmp_path, orders):
    narrow = pa.table(
        {
            "total": pa.array([2, None], pa.int8()),
            "cid": pa.array([7.0, 8.0]),  # as pandas has integers where one is missing
            "event_timestamp": pa.array([START] * 2, pa.timestamp("ns", "Europe/Berlin")),
        }
    )
    append(tmp_path, orders, narrow)
    (new,) = [name for name in files_in(tmp_path / "orders") if name != "old.parquet"]
    found = pq.read_table(tmp_path / "orders" / new)
    assert found.schema.equals(rows(1.0).schema)
    assert found.to_pydict() == {
        "cid": [7, 8],
        "event_timestamp": [START, START],
        "total": [2.0, None],
    }


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("cid", [1.5], r"`orders`: column `cid` .* is double.*does not fit the int64"),
        ("cid", ["x"], r"column `cid` .* is string.*does not fit the int64"),
        (
            "event_timestamp",
            pa.array([1], pa.timestamp("ns", "UTC")),
            r"column `event_timestamp`.*1 of 1 values .* without a change",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, orders, column, values, message):
    table = rows(2.0)
    at = table.column_names.index(column)
    with pytest.raises(ColumnTypeError, match=message):
        append(tmp_path, orders, table.set_column(at, column, pa.array(values)))
    assert files_in(tmp_path / "orders") == ["old.parquet"]


def test_missing_columns_are_refused_by_name(tmp_path, orders):
    with pytest.raises(ColumnNotFoundError, match=r"lack the columns \['total'\]"):
        append(tmp_path, orders, rows(2.0).drop_columns("total"))


def test_unknown_columns_are_left_out_and_named(tmp_path, orders, caplog):
    append(tmp_path, orders, rows(2.0, colour=["red"]))
    assert "the columns ['colour'] of the rows to append are left out" in caplog.text
    new = next(path for path in (tmp_path / "orders").iterdir() if path.name != "old.parquet")
    assert "colour" not in pq.read_schema(new).names


def test_a_delta_table_is_refused(tmp_path, orders):
    source = FileSource(
        path=orders.batch_source.path, file_format=DeltaFormat(), timestamp_field="event_timestamp"
    )
    with pytest.raises(OfflineStoreError, match=r"Delta table.*Delta's own writer"):
        append(tmp_path, customer_view(source=source), rows(2.0))


def test_a_feature_that_was_added_to_the_view_is_kept(tmp_path, orders):
    wider = customer_view(source=orders.batch_source, total=Float64, count=Int64)
    append(tmp_path, wider, rows(2.0, count=pa.nulls(1)))
    append(tmp_path, wider, rows(3.0, count=pa.array([9], pa.int32())))
    job = S3ParquetOfflineStore.pull_all_from_table_or_query(
        repo_config(tmp_path), wider.batch_source, ["cid"], ["total", "count"], "event_timestamp"
    )
    found = {row["total"]: row["count"] for row in job.to_arrow().to_pylist()}
    assert found == {1.0: None, 2.0: None, 3.0: 9}


def test_the_field_mapping_is_undone_and_an_index_is_no_column(tmp_path):
    (tmp_path / "orders").mkdir()
    pq.write_table(
        rows(1.0).rename_columns(["user", "event_timestamp", "sum"]),
        tmp_path / "orders" / "a.parquet",
    )
    view = customer_view(
        source=FileSource(
            path="orders",
            timestamp_field="event_timestamp",
            field_mapping={"user": "cid", "sum": "total"},
        )
    )
    append(tmp_path, view, rows(2.0, __index_level_0__=[5]))
    assert sorted(row["sum"] for row in history(tmp_path, view)) == [1.0, 2.0]


def test_rows_go_into_the_hive_partitions_that_there_are(tmp_path):
    for folder in ("region=eu/month=01", "region=north%20america/month=02"):
        (tmp_path / "orders" / folder).mkdir(parents=True)
        pq.write_table(rows(1.0), tmp_path / "orders" / folder / "old.parquet")
    view = customer_view(source=FileSource(path="orders", timestamp_field="event_timestamp"))
    given = rows(2.0, 3.0, 4.0, month=[1, 2, 11], region=["eu", "north america", None])
    append(tmp_path, view, given)
    folders = {str(Path(name).parent) for name in files_in(tmp_path / "orders")}
    assert folders == {
        "region=eu/month=01",
        "region=north%20america/month=02",
        "region=__HIVE_DEFAULT_PARTITION__/month=11",
    }
    found = {row["total"]: (row["region"], row["month"]) for row in history(tmp_path, view)}
    assert found[2.0] == ("eu", 1)
    assert found[3.0] == ("north america", 2)
    assert found[4.0] == (None, 11)


@pytest.mark.parametrize(
    ("source", "folders"),
    [
        ({"date_partition_column": "dt"}, ["dt=2025-12-31", "dt=2026-01-01"]),
        ({"date_partition_column_format": "%Y/%m/%d"}, ["2025/12/31", "2026/01/01"]),
        (
            {"date_partition_column_format": "year=%Y/month=%m"},
            ["year=2025/month=12", "year=2026/month=01"],
        ),
    ],
)
def test_folders_are_made_of_the_event_time(tmp_path, source, folders):
    view = customer_view(
        source=S3ParquetSource(path="orders", timestamp_field="event_timestamp", **source)
    )
    kind = pa.timestamp("us", "Asia/Kolkata")
    times = pa.array([START - dt.timedelta(microseconds=1), START], kind)
    table = rows(1.0, 2.0).set_column(1, "event_timestamp", times)
    for _ in range(2):  # the second write finds files of the first
        append(tmp_path, view, table)
    assert sorted({str(Path(name).parent) for name in files_in(tmp_path / "orders")}) == folders
    assert sorted(row["total"] for row in history(tmp_path, view)) == [1.0, 1.0, 2.0, 2.0]
    with pytest.raises(
        OfflineStoreError, match="1 of the rows to append have no `event_timestamp`"
    ):
        append(
            tmp_path, view, table.set_column(1, "event_timestamp", pa.array([START, None], kind))
        )


def test_a_glob_is_no_folder_to_append_to(tmp_path, orders):
    view = customer_view(source=FileSource(path="orders/*", timestamp_field="event_timestamp"))
    with pytest.raises(OfflineStoreError, match="is a glob"):
        append(tmp_path, view, rows(2.0))


# One file


@pytest.fixture
def one_file(tmp_path, orders) -> FeatureView:
    source = FileSource(path="orders/old.parquet", timestamp_field="event_timestamp")
    return customer_view(source=source)


def test_one_file_is_rewritten_with_a_warning_of_the_better_layout(tmp_path, one_file, caplog):
    path = tmp_path / "orders" / "old.parquet"
    keeps = rows(1.0, 2.0, 3.0).replace_schema_metadata({"owner": "sales"})
    pq.write_table(keeps, path, row_group_size=1, compression="gzip")
    append(tmp_path, one_file, rows(4.0))
    append(tmp_path, one_file, rows(5.0, note=["new"]))
    assert [row["total"] for row in history(tmp_path, one_file)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    written = pq.ParquetFile(path)
    assert written.schema_arrow.metadata[b"owner"] == b"sales"
    assert written.metadata.row_group(0).column(0).compression == "GZIP"
    assert [name for name in files_in(tmp_path / "orders") if not name.startswith(".")] == [
        "old.parquet"
    ]
    warned = [text for text in caplog.messages if "is one Parquet file" in text]
    assert len(warned) == 1
    assert "Move it into a folder and point the source to that" in warned[0]


def test_one_file_gets_a_feature_that_it_lacks(tmp_path, one_file):
    view = customer_view(source=one_file.batch_source, total=Float64, late=Int64)
    append(tmp_path, view, rows(2.0, late=[7]))
    assert [(row["total"], row["late"]) for row in history(tmp_path, view)] == [
        (1.0, None),
        (2.0, 7),
    ]


def test_one_file_stays_as_it_was_where_rows_do_not_fit(tmp_path, one_file):
    path = tmp_path / "orders" / "old.parquet"
    before = path.read_bytes()
    with pytest.raises(ColumnTypeError, match="`total`"):
        append(tmp_path, one_file, rows(2.0).set_column(2, "total", pa.array(["x"])))
    path.write_bytes(before[:-20])
    with pytest.raises(SourceReadError, match=r"old\.parquet"):
        append(tmp_path, one_file, rows(2.0))
    assert path.read_bytes() == before[:-20]


def test_writers_of_one_file_lose_nothing(tmp_path, one_file):
    start = threading.Barrier(4)

    def append_some(first: int) -> None:
        start.wait()
        for value in range(first, first + 5):
            append(tmp_path, one_file, rows(float(value)))

    threads = [threading.Thread(target=append_some, args=(10 * at,)) for at in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [1.0, *(float(10 * at + more) for at in range(1, 5) for more in range(5))]
    assert sorted(row["total"] for row in history(tmp_path, one_file)) == expected


def test_the_first_push_begins_the_history(open_store, tmp_path):
    store = open_store(online={"region": "us-east-1"})
    batch = FileSource(
        name="batch",
        path="orders",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    view = customer_view(source=PushSource(name="pushed", batch_source=batch))
    store.registry.apply_entity(CUSTOMER, "p")
    store.registry.apply_data_source(batch, "p")
    store.registry.apply_data_source(view.stream_source, "p")
    store.registry.apply_feature_view(view, "p")
    frame = pd.DataFrame(
        {"cid": [1], "event_timestamp": [START], "created": [START], "total": [None]}
    )
    for total in (None, 2):
        store.push("pushed", frame.assign(total=total), to=PushMode.OFFLINE)
    found = history(tmp_path, view)
    assert sorted((row["cid"], str(row["total"])) for row in found) == [(1, "2.0"), (1, "None")]
    first = pq.read_schema(tmp_path / "orders" / files_in(tmp_path / "orders")[0])
    assert first.field("total").type == pa.float64()


def _append_many(folder: Path, first: int) -> None:
    view = customer_view(source=FileSource(path="orders", timestamp_field="event_timestamp"))
    for number in range(first, first + 5):
        append(folder, view, rows(float(number)))


@forks
def test_writers_at_the_same_time_lose_nothing(tmp_path, orders):
    context = multiprocessing.get_context("fork")
    writers = [threading.Thread(target=_append_many, args=(tmp_path, first)) for first in (10, 20)]
    process = context.Process(target=_append_many, args=(tmp_path, 30))
    process.start()
    for writer in writers:
        writer.start()
    for writer in [*writers, process]:
        writer.join()
    expected = [1.0, *(float(first + at) for first in (10, 20, 30) for at in range(5))]
    assert sorted(row["total"] for row in history(tmp_path, orders)) == expected


@forks
def test_a_writer_that_is_killed_leaves_nothing_that_is_read(tmp_path, orders):
    def die_half_way():
        with LocalFiles().new_file(str(tmp_path / "orders" / "new.parquet")) as file:
            file.write(b"PAR1 and then")
            signal.raise_signal(signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=die_half_way)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [row["total"] for row in history(tmp_path, orders)] == [1.0]


@pytest.fixture
def full_disk():
    """Files cannot grow over 20 KB, which the system reports as it does a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_nothing_is_kept(tmp_path, full_disk):
    noise = pa.table({"x": pa.array([str(hash((at, "x"))) for at in range(20_000)])})
    parts = [("a=1", noise.slice(0, 10)), ("a=2", noise)]
    with pytest.raises(DestinationError, match=r"a=2/part-.*cannot be written: File too large"):
        write_folders(LocalFiles(), str(tmp_path / "out"), noise.schema, parts)
    assert files_in(tmp_path / "out") == []


def test_a_destination_that_cannot_be_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DestinationError, match=r"out/part-00000\.parquet cannot be written: "):
        write_parts(LocalFiles(), str(tmp_path / "out"), "part", rows(1.0).schema, [])


def test_a_failing_reader_leaves_nothing(tmp_path):
    def batches():
        yield from rows(1.0, 2.0).to_batches(1)
        raise ConnectionError("the source is gone")

    size = PartSize(file_rows=1)
    with pytest.raises(ConnectionError, match="the source is gone"):
        write_parts(LocalFiles(), str(tmp_path), "part", rows(1.0).schema, batches(), size)
    assert files_in(tmp_path) == []


def test_parts_are_sized_and_keep_the_order(tmp_path):
    table = pa.table({"x": list(range(1_000))})
    batches = table.to_batches(130)
    size = PartSize(file_rows=300, group_rows=100)
    uris = write_parts(LocalFiles(), str(tmp_path), "part", table.schema, batches, size)
    assert [Path(uri).name for uri in uris] == files_in(tmp_path)
    read = [pq.read_table(uri) for uri in uris]
    assert max(part.num_rows for part in read) <= 300
    assert pa.concat_tables(read).equals(table)
    small = PartSize(file_bytes=1, group_rows=500)
    assert len(write_parts(LocalFiles(), str(tmp_path), "tiny", table.schema, batches, small)) == 2


def test_rows_do_not_bring_the_columns_that_follow_from_event_time(open_store, tmp_path):
    store = open_store(online={"region": "us-east-1"})
    source = S3ParquetSource(
        name="days", path="orders", timestamp_field="event_timestamp", date_partition_column="dt"
    )
    view = customer_view(source=source)
    store.registry.apply_entity(CUSTOMER, "p")
    store.registry.apply_data_source(source, "p")
    store.registry.apply_feature_view(view, "p")
    frame = pd.DataFrame({"cid": [1], "event_timestamp": [START], "total": [2.0]})
    for _ in range(2):  # the first write makes the folder, the second finds it
        store.write_to_offline_store("orders", frame)
    (folder,) = {str(Path(name).parent) for name in files_in(tmp_path / "orders")}
    assert folder == f"dt={START:%Y-%m-%d}"
    assert [row["total"] for row in history(tmp_path, view)] == [2.0, 2.0]
