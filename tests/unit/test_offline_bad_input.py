"""Bad input of the offline store: one clear error that names the file, and nothing left behind."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import resource
import shutil
import signal
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView, FileSource
from feast.credentials import ConnectionRef
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Int64
from repos import NoRegistry, repo_config
from views import customer_view

from feast_dynamo_ext import S3ParquetSource
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    DestinationError,
    OfflineStoreError,
    SourceReadError,
)
from feast_dynamo_ext.materialize.newest_rows import Columns, History, Window
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.source import ParquetSource, uri_of

if TYPE_CHECKING:
    from pathlib import Path

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
UTC = pa.timestamp("us", "UTC")
ROWS = 60
END = START + 1_000 * HOUR
STORE = S3ParquetOfflineStore


def file_source(path) -> FileSource:
    return FileSource(
        name="orders",
        path=str(path),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )


def orders(path) -> FeatureView:
    return customer_view(source=file_source(path), value=Int64)


def opened(path, config) -> ParquetSource:
    return ParquetSource.open(file_source(path), config)


def history(rows) -> pa.Table:
    """A table of (key, hours after START, created likewise, value)."""
    keys, event, created, values = zip(*rows, strict=True)
    return pa.table(
        {
            "cid": pa.array(keys, pa.int64()),
            "event_timestamp": pa.array([START + at * HOUR for at in event], UTC),
            "created": pa.array([START + at * HOUR for at in created], UTC),
            "value": pa.array(values, pa.int64()),
        }
    )


def write(path: Path, rows, group: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(history(rows), path, row_group_size=group)


def rows(first: int) -> list:
    """Of each key one row, whose value is its key."""
    return [(first + at, at, at, first + at) for at in range(ROWS)]


@pytest.fixture
def spill(tmp_path) -> Path:
    folder = tmp_path / "spill"
    folder.mkdir()
    return folder


@pytest.fixture
def path(tmp_path, spill) -> Path:
    """A source of three files, of three row groups each."""
    for at, name in enumerate("abc"):
        write(tmp_path / "orders" / f"{name}.parquet", rows(at * ROWS), group=20)
    return tmp_path / "orders"


def config_of(path, **offline):
    folder = path.parent
    return repo_config(
        folder, spill_folder=str(folder / "spill"), staging_location="staging", **offline
    )


def frame(keys=(1, ROWS + 1, 2 * ROWS + 1)) -> pd.DataFrame:
    return pd.DataFrame({"cid": list(keys), "event_timestamp": [START + 100 * HOUR] * len(keys)})


def retrieval(path, entity_rows=None, view=None, **offline):
    given = frame() if entity_rows is None else entity_rows
    config = config_of(path, **offline)
    view = view or orders(path)
    refs = [f"{view.name}:value"]
    return STORE.get_historical_features(config, [view], refs, given, NoRegistry(), "p")


def changes(path, **offline):
    return STORE.get_historical_features(
        config_of(path, **offline),
        [orders(path)],
        ["orders:value"],
        None,
        NoRegistry(),
        "p",
        start_date=START,
        end_date=END,
    )


def pulled(path, pull, **offline):
    columns = (["cid"], ["value"], "event_timestamp", "created", START, END)
    return pull(config_of(path, **offline), file_source(path), *columns)


def latest(path, **offline):
    return pulled(path, STORE.pull_latest_from_table_or_query, **offline)


def pull_all(path):
    return pulled(path, STORE.pull_all_from_table_or_query)


def metrics(path, **offline):
    features = [("value", "numeric"), ("cid", "categorical")]
    return STORE.compute_monitoring_metrics(
        config_of(path, **offline), file_source(path), features, "event_timestamp"
    )


def joined_to_another(path):
    """The files are the entity rows."""
    other = path.parent / "other"
    write(other / "a.parquet", rows(0))
    view = orders(other)
    view.name = "other"
    return retrieval(path, str(path), view).to_arrow()


def materialized(path):
    view = orders(path)
    found = History(config_of(path), STORE(), view, Columns.from_view(view))
    with found.newest(Window(START, END), None, "128MB") as newest:
        return sum(batch.num_rows for batch in newest.batches)


def newest_event(path):
    return STORE.get_monitoring_max_timestamp(
        config_of(path), file_source(path), "event_timestamp"
    )


def inferred(path):
    return STORE().get_table_column_names_and_types_from_data_source(
        config_of(path), file_source(path)
    )


class Shop(NoRegistry):
    """A registry that names one view."""

    def __init__(self, view):
        self.views = [view]

    def list_feature_views(self, *args, **kwargs):
        return self.views

    def list_stream_feature_views(self, *args, **kwargs):
        return []

    list_data_sources = list_saved_datasets = list_stream_feature_views


def by_sql(path):
    """The files are what SQL for entity rows reads."""
    other = path.parent / "other"
    write(other / "a.parquet", rows(0))
    view = orders(other)
    sql = "SELECT cid, event_timestamp, value AS old FROM orders"
    return STORE.get_historical_features(
        config_of(path), [view], ["orders:value"], sql, Shop(orders(path)), "p"
    )


READ_ROWS = {
    "stream": lambda path: retrieval(path, join_plan="stream").to_arrow(),
    "duckdb": lambda path: retrieval(path, join_plan="duckdb").to_arrow(),
    "export": lambda path: retrieval(path).to_remote_storage(),
    "changes": lambda path: changes(path).to_arrow(),
    "latest": lambda path: latest(path).to_arrow(),
    "all": lambda path: pull_all(path).to_arrow(),
    "entity rows": joined_to_another,
    "entity sql": by_sql,
    "monitor": metrics,
    "materialize": materialized,
}
READ_FOOTERS = {
    "explain": lambda path: retrieval(path).explain(),
    "sql": lambda path: retrieval(path).to_sql(),
    "newest event": newest_event,
    "inference": inferred,
}


def tree(folder: Path) -> list[str]:
    """What there is, but for the history of `joined_to_another`."""
    files = (str(found.relative_to(folder)) for found in folder.rglob("*") if found.is_file())
    return sorted(name for name in files if not name.startswith("other/"))


@contextlib.contextmanager
def refused(path, error, message):
    """One error that says what it says, and has a cause; nothing is left behind."""
    before = tree(path.parent)
    with pytest.raises(error, match=message) as caught:
        yield caught
    assert tree(path.parent) == before
    assert list((path.parent / "spill").iterdir()) == []


# Files that are not whole


@pytest.mark.parametrize("operation", [*READ_ROWS, *READ_FOOTERS])
def test_a_truncated_file_is_named(path, operation):
    bad = path / "b.parquet"
    bad.write_bytes(bad.read_bytes()[:-9])
    with refused(path, SourceReadError, r"orders/b\.parquet cannot be read: .*or write it") as got:
        {**READ_ROWS, **READ_FOOTERS}[operation](path)
    assert isinstance(got.value.__cause__, pa.ArrowInvalid)


@pytest.mark.slow
@pytest.mark.parametrize("operation", READ_ROWS)
def test_a_file_with_a_bad_page_is_named(path, operation):
    bad = path / "b.parquet"
    whole = bad.read_bytes()
    group = pq.read_metadata(bad).row_group(1)
    start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    size = sum(group.column(at).total_compressed_size for at in range(group.num_columns))
    bad.write_bytes(whole[:start] + b"\xff" * size + whole[start + size :])
    with refused(path, SourceReadError, r"orders/b\.parquet cannot be read: ") as got:
        READ_ROWS[operation](path)
    assert isinstance(got.value.__cause__, OSError)


def test_of_row_groups_that_are_read_together_the_bad_file_is_named(path):
    source = opened(path, config_of(path))
    bad = path / "b.parquet"
    whole = bad.read_bytes()
    stat = bad.stat()
    bad.write_bytes(whole[:4] + b"\xff" * 400 + whole[404:])
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(SourceReadError, match=r"orders/b\.parquet cannot be read"):
        list(source.each(["cid"], lambda batch, at: at, 2, together=1 << 20))


def test_what_goes_wrong_with_rows_that_were_read_is_no_error_of_a_file(path):
    def work(batch, at):
        raise pa.ArrowInvalid("not of a file")

    with pytest.raises(pa.ArrowInvalid, match="not of a file"):
        list(opened(path, config_of(path)).each(["cid"], work, 2))


# Files that change while they are read


def in_place(file: Path) -> None:
    pq.write_table(history(rows(500)), file)


def by_rename(file: Path) -> None:
    in_place(file.with_name("new"))
    file.with_name("new").replace(file)


def removed(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


@pytest.mark.parametrize("change", [in_place, by_rename, removed, cut])
def test_a_file_that_changes_between_two_blocks_of_entity_rows_is_named(path, change):
    asked = frame([1, ROWS + 1, 2 * ROWS + 1] * 20)
    batches = retrieval(path, asked, memory_limit="1KB").to_arrow_batches()
    assert next(batches).column("value").to_pylist()[:3] == [1, 61, 121]
    change(path / "b.parquet")
    with refused(path, SourceReadError, r"orders/b\.parquet changed while .* Run it again"):
        list(batches)


@pytest.mark.parametrize("change", [in_place, removed])
@pytest.mark.parametrize("make", [retrieval, latest, pull_all])
def test_a_file_that_changes_after_matching_is_named_and_nothing_is_exported(path, make, change):
    job = make(path)
    job.result()
    change(path / "b.parquet")
    saved = path.parent / "saved.parquet"
    for use in (job.to_arrow, job.to_remote_storage, lambda: job.persist(storage(saved))):
        with refused(path, SourceReadError, r"orders/b\.parquet changed while"):
            use()


@pytest.mark.parametrize("change", [in_place, removed])
def test_a_file_that_changes_while_it_is_materialized_is_named(path, change):
    view = orders(path)
    found = History(config_of(path), STORE(), view, Columns.from_view(view))
    change(path / "b.parquet")
    with (
        refused(path, SourceReadError, r"orders/b\.parquet changed while"),
        found.newest(Window(START, END), None, "128MB") as newest,
    ):
        list(newest.batches)


def storage(path) -> SavedDatasetFileStorage:
    return SavedDatasetFileStorage(path=str(path))


# Partitions that are missing


def days(tmp_path, numbers) -> S3ParquetSource:
    for number in numbers:
        name = f"dt={START + number * dt.timedelta(days=1):%Y-%m-%d}"
        write(tmp_path / "days" / name / "a.parquet", [(1, 24 * number, 0, number)])
    return S3ParquetSource(
        name="days", path="days", timestamp_field="event_timestamp", date_partition_column="dt"
    )


def test_a_day_that_was_never_written_has_no_rows(tmp_path, spill):
    view = orders(tmp_path / "days")
    view.batch_source = days(tmp_path, (0, 2))
    asked = frame([1, 1, 1])
    asked["event_timestamp"] = [START + day * 24 * HOUR for day in range(3)]
    job = retrieval(tmp_path / "days", asked, view)
    assert job.to_arrow().column("value").to_pylist() == [0, 0, 2]


def test_a_day_that_vanishes_while_it_is_read_is_named(tmp_path, spill):
    source = days(tmp_path, (0, 1, 2))
    job = STORE.pull_all_from_table_or_query(
        config_of(tmp_path / "days"), source, ["cid"], ["value"], "event_timestamp"
    )
    assert job.result().rows == 3
    shutil.rmtree(tmp_path / "days" / "dt=2026-01-02")
    with pytest.raises(SourceReadError, match=r"dt=2026-01-02/a\.parquet changed while"):
        job.to_arrow()


# Types and nulls


def put(path, name, **columns) -> None:
    """A file with other values in some columns."""
    table = pq.read_table(path / f"{name}.parquet")
    for column, values in columns.items():
        table = table.set_column(table.schema.get_field_index(column), column, values)
    pq.write_table(table, path / f"{name}.parquet", row_group_size=20)


@pytest.mark.parametrize("operation", [*READ_ROWS, "sql", "inference"])
@pytest.mark.parametrize("column", ["value", "event_timestamp"])
def test_types_that_do_not_go_together_name_file_and_column(path, operation, column):
    put(path, "b", **{column: pa.array(["x"] * ROWS)})
    with refused(path, ColumnTypeError, rf"column `{column}` is string in .*orders/b\.parquet"):
        {**READ_ROWS, **READ_FOOTERS}[operation](path)


def found_by_every_way(path) -> list:
    """What entity rows see, which both plans and the statement in SQL agree on."""
    by_plan = [
        retrieval(path, join_plan=plan).to_arrow().column("value").to_pylist()
        for plan in ("stream", "duckdb")
    ]
    job = retrieval(path)
    entity_df = job.entities.table
    assert entity_df.num_rows == 3  # which DuckDB finds by its name
    by_sql = duckdb.sql(job.to_sql()).fetchall()
    assert by_plan == [[row[-1] for row in by_sql]] * 2
    return by_plan[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "files", "expected"),
    [
        ("value", "b", [1, None, 121]),
        ("value", "abc", [None, None, None]),
        ("cid", "b", [1, None, 121]),
        ("cid", "abc", [None, None, None]),
        ("created", "b", [1, 61, 121]),
        ("created", "abc", [1, 61, 121]),
        ("event_timestamp", "b", [1, None, 121]),
    ],
)
def test_a_column_without_any_value_is_null(path, column, files, expected):
    for name in files:
        put(path, name, **{column: pa.nulls(ROWS)})
    assert found_by_every_way(path) == expected


def test_rows_whose_created_time_is_nowhere_known_are_not_known_at_any_time(path):
    for name in "abc":
        put(path, name, created=pa.nulls(ROWS))
    for plan in ("stream", "duckdb"):
        job = STORE.get_historical_features(
            config_of(path, join_plan=plan),
            [orders(path)],
            ["orders:value"],
            frame(),
            NoRegistry(),
            "p",
            filter_by_created_timestamp=True,
        )
        assert job.to_arrow().column("value").to_pylist() == [None, None, None]


@pytest.mark.parametrize("operation", [*READ_ROWS, "explain", "sql", "newest event"])
def test_a_source_without_any_event_time_is_refused(path, operation):
    for name in "abc":
        put(path, name, event_timestamp=pa.nulls(ROWS))
    with refused(path, ColumnTypeError, "column `event_timestamp` is null in all rows"):
        {**READ_ROWS, **READ_FOOTERS}[operation](path)


@pytest.mark.parametrize("plan", ["stream", "duckdb"])
def test_an_event_time_that_the_ttl_s_unit_cannot_say_is_named(path, plan):
    # Beside a time that is seen, so that its row group is read.
    far = pa.array([0, 2**62] * (ROWS // 2), pa.int64()).cast(pa.timestamp("ms", "UTC"))
    for name in "abc":
        put(path, name, event_timestamp=far)
    view = orders(path)
    view.ttl = dt.timedelta(microseconds=1)
    with refused(path, ColumnTypeError, r"column `event_timestamp` holds a time beyond what us"):
        retrieval(path, view=view, join_plan=plan).to_arrow()


# Disks that are full


@contextlib.contextmanager
def disk_of(limit: int):
    """No file can grow over so many bytes, which the system reports as it does a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def long_history(path, count: int) -> None:
    """So many keys, each with one row, whose values are not compressible."""
    noise = np.random.default_rng(1).permutation(count)
    created = pa.array(np.full(count, 1_767_225_600_000_000)).cast(UTC)
    table = pa.table(
        {
            "cid": np.arange(count),
            "event_timestamp": created,
            "created": created,
            "value": noise,
        }
    )
    path.mkdir(exist_ok=True)
    for name in "abc":
        (path / f"{name}.parquet").unlink(missing_ok=True)
    pq.write_table(table, path / "long.parquet", row_group_size=50_000)


@pytest.mark.parametrize("name", ["saved.parquet", "saved"])
def test_a_full_disk_for_results_is_named_and_what_was_there_stays(path, name):
    retrieval(path).persist(storage(path.parent / name))
    long_history(path, 5_000)
    asked = frame(range(5_000))
    with disk_of(10_000):
        with refused(path, DestinationError, rf"{name}.* cannot be written: File too large"):
            retrieval(path, asked).persist(storage(path.parent / name), allow_overwrite=True)
        with refused(path, DestinationError, r"staging/p/.*\.parquet cannot be written: File too"):
            retrieval(path, asked).to_remote_storage()
    assert pq.read_table(path.parent / name).column("value").to_pylist() == [1, 61, 121]


SPILLING = {
    "duckdb": lambda path, **more: retrieval(
        path, frame(range(0, KEYS, 4)), join_plan="duckdb", **more
    ).to_arrow(),
    "changes": lambda path, **more: changes(path, **more).to_arrow(),
    "latest": lambda path, **more: latest(path, **more).to_arrow(),
    "monitor": metrics,
}
KEYS = 400_000


@pytest.mark.slow
@pytest.mark.parametrize("operation", SPILLING)
def test_a_full_disk_for_what_duckdb_spills_is_named_and_spills_are_removed(
    path, spill, operation
):
    long_history(path, KEYS)
    small = {"memory_limit": "28MB", "threads": 1}
    with (
        disk_of(200_000),
        refused(path, OfflineStoreError, r"memory or of disk at .*spill/feast-dynamo-.*too large"),
    ):
        SPILLING[operation](path, **small)
    SPILLING[operation](path, **small)
    assert list(spill.iterdir()) == []


# Credentials of a source's own


def test_a_source_s_own_credentials_are_refused_and_not_passed_over(path):
    reference = ConnectionRef(provider="env", name="OTHER_AWS")
    source = FileSource(path=str(path), timestamp_field="event", connection_ref=reference)
    with pytest.raises(OfflineStoreError, match=r"`connection_ref`.*`profile` or `role_arn`"):
        uri_of(source, config_of(path))
    kept = FileSource.from_proto(source.to_proto())
    with pytest.raises(OfflineStoreError, match="`connection_ref`"):
        uri_of(kept, config_of(path))
