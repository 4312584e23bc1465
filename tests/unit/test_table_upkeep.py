"""History tables are rewritten as sorted files of a good size and hold the same rows."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from history_tables import (
    COLUMNS,
    append_unsequenced,
    contents,
    delete_rows,
    handle_of,
    new_table,
    rows,
    source_of,
)
from pyiceberg.types import StringType
from repos import repo_config

from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.parquet.iceberg.catalog import CatalogAddress, opened
from feast_dynamo_ext.parquet.iceberg.optimize import (
    in_content_order,
    optimize,
    range_of,
)
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE, TableLayout
from feast_dynamo_ext.parquet.source import ParquetSource


def files_of(handle):
    """The data files, in the order of their first rows."""
    files = [task.file for task in handle.load().scan().plan_files()]
    return sorted(files, key=lambda file: str(stored(file).slice(0, 1).to_pylist()))


def stored(file) -> pa.Table:
    return pq.read_table(file.file_path.removeprefix("file://"), partitioning=None)


def sort_keys(table):
    return [
        tuple((value is not None, value) for value in row)
        for row in zip(
            *(table.column(name).to_pylist() for name in ("cid", "event", "created", SEQUENCE)),
            strict=True,
        )
    ]


def filled(folder, partition="day", commits=4, count=60, **properties):
    handle = new_table(folder, partition, **properties)
    for at in range(commits):
        handle.append(rows(*[(cid % 7, cid, at, float(at), f"n{cid}") for cid in range(count)]))
    return handle


@pytest.mark.parametrize("partition", ["day", "month", "none"])
def test_small_files_become_one_sorted_file_a_partition(tmp_path, partition):
    handle = filled(tmp_path, partition)
    before, snapshots = contents(handle), len(handle.load().snapshots())
    parts = {"day": 3, "month": 1, "none": 1}[partition]
    planned = optimize(handle, dry_run=True)
    assert [(part.files_before, part.files_after) for part in planned.partitions] == [
        (4, 0)
    ] * parts
    assert len(handle.load().snapshots()) == snapshots
    steps = []
    report = optimize(handle, advance=lambda done, total: steps.append((done, total)))
    assert [(part.files_before, part.files_after) for part in report.partitions] == [
        (4, 1)
    ] * parts
    assert sum(part.rows for part in report.partitions) == 240
    assert report.skipped == ()
    assert steps[-1] == (240, 240)
    table = handle.load()
    assert len(table.snapshots()) == snapshots + 1  # small partitions are one commit
    assert contents(handle) == before
    assert contents(handle, table.snapshots()[snapshots - 1].snapshot_id) == before
    for file in files_of(handle):
        assert file.sort_order_id == table.sort_order().order_id
        keys = sort_keys(stored(file))
        assert keys == sorted(keys)
    # Positions say who wins; and there is nothing more to do.
    assert ParquetSource.open(source_of(tmp_path), repo_config(tmp_path)).ties is None
    assert optimize(handle).partitions == ()
    assert len(handle.load().snapshots()) == snapshots + 1
    summary = table.current_snapshot().summary
    assert summary.operation.value == "replace"
    assert summary["feast-dynamo.operation"] == "optimize"
    assert summary["total-records"] == "240"


def test_what_is_large_and_sorted_stays_and_the_rest_is_put_together(tmp_path):
    handle = filled(tmp_path, "none", 3, count=600, **{"write.target-file-size-bytes": "16000"})
    assert optimize(handle).partitions == ()
    large = {file.file_path for file in files_of(handle)}
    handle.append(rows((1, 2, 3, 0.5, "x")))
    # One small sorted file, whose rows come later: nothing would be won.
    assert optimize(handle).partitions == ()
    handle.append(rows((1, 2, 3, 0.5, "y")))
    before = contents(handle)
    (part,) = optimize(handle).partitions
    assert (part.files_before, part.files_after, part.rows) == (2, 1, 2)
    assert large < {file.file_path for file in files_of(handle)}
    assert contents(handle) == before
    assert ParquetSource.open(source_of(tmp_path), repo_config(tmp_path)).ties is None
    # Rows that come between those of the large files: all is sorted together.
    append_unsequenced(handle, rows((1, 2, 3, 0.5, "z")))
    (part,) = optimize(handle).partitions
    assert part.files_before == len(large) + 2
    assert optimize(handle).partitions == ()


@pytest.mark.parametrize("keys", [("cid",), ("note", "cid"), ()])
def test_rows_of_one_key_and_time_are_never_in_two_files(tmp_path, keys):
    chance = np.random.default_rng(1)
    handle = new_table(tmp_path, keys=keys, **{"write.target-file-size-bytes": "40000"})
    count = 30_000
    for append in (append_unsequenced, lambda to, new: to.append(new)):
        cid = chance.integers(0, 40, count)
        cid[: count // 3] = 5  # many rows of one key
        append(
            handle,
            pa.table(
                {
                    "cid": cid,
                    "event": pa.array(
                        chance.integers(0, 50, count) * 3_600_000_000, COLUMNS.field("event").type
                    ),
                    "created": pa.nulls(count, COLUMNS.field("created").type),
                    "amount": chance.random(count),
                    "note": pa.array([f"n{value % 3}" for value in cid]),
                },
                schema=COLUMNS,
            ),
        )
    report = optimize(handle, memory_bytes=1 << 20)
    files = files_of(handle)
    assert len(files) == sum(part.files_after for part in report.partitions) > 5
    seen: set = set()
    for file in files:
        table = stored(file)
        groups = set(
            zip(*(table.column(name).to_pylist() for name in (*keys, "event")), strict=True)
        )
        assert not groups & seen
        seen |= groups
    assert sum(file.record_count for file in files) == 2 * count
    assert optimize(handle).partitions == ()


def test_rows_beyond_the_memory_are_sorted_on_the_disk(tmp_path):
    chance = np.random.default_rng(2)
    count = 120_000
    spill = tmp_path / "spill"
    spill.mkdir()
    handle = new_table(tmp_path)
    for _ in range(2):
        hours = chance.integers(0, 10_000, count)
        handle.append(
            pa.table(
                {
                    "cid": chance.integers(-500, 500, count),
                    "event": pa.array(hours * 3_600_000_000, COLUMNS.field("event").type),
                    "created": pa.nulls(count, COLUMNS.field("created").type),
                    "amount": chance.random(count),
                    "note": pa.array([f"a somewhat longer text {value}" for value in hours]),
                },
                schema=COLUMNS,
            )
        )
    before = handle.load().scan().to_arrow()
    optimize(handle, memory_bytes=1, spill_folder=str(spill))
    assert list(spill.iterdir()) == []
    layout = TableLayout.from_table(handle.load())
    assert layout is not None
    expected = in_content_order(before, layout)
    found = pa.concat_tables(map(stored, files_of(handle)))
    assert found.select(expected.column_names).cast(expected.schema).equals(expected)


def test_deleted_rows_and_older_schemas(tmp_path):
    handle = filled(tmp_path, "none", 3)
    delete_rows(handle, files_of(handle)[0].file_path, [0, 1, 7])
    with handle.load().update_schema() as update:
        update.rename_column("amount", "total")
        update.delete_column("note")
        update.add_column("city", StringType())
    newest = rows((1, 1, 1, 1.0, "x")).rename_columns(["cid", "event", "created", "total", "city"])
    append_unsequenced(handle, newest)
    before = contents(handle)
    assert len(before) == 3 * 60 - 3 + 1
    (part,) = optimize(handle).partitions
    assert part.rows == len(before)
    assert contents(handle) == before
    assert not any(task.delete_files for task in handle.load().scan().plan_files())
    assert optimize(handle).partitions == ()


def test_appends_meanwhile_stay(tmp_path):
    handle = filled(tmp_path, "day")
    added = []

    def advance(*_):
        if not added:
            added.append(handle.append(rows((1, 1, 1, 9.5, "meanwhile"))))

    before = contents(handle)
    report = optimize(handle, advance=advance)
    assert report.skipped == ()
    assert sorted([*before, *rows_as_texts(rows((1, 1, 1, 9.5, "meanwhile")))]) == contents(handle)


def rows_as_texts(table):
    # As pyiceberg has them, whose zone has another class.
    return [
        str(row)
        .replace("datetime.timezone.utc", "<UTC>")
        .replace("<UTC>", "datetime.timezone.utc")
        for row in table.to_pylist()
    ]


@pytest.mark.parametrize(("partition", "parts"), [("day", 3), ("none", 1)])
def test_partitions_that_others_change_meanwhile_are_done_again(tmp_path, partition, parts):
    handle = filled(tmp_path, partition)
    done = []

    def advance(*_):
        if not done:
            done.append(handle.load().delete("cid = 3"))

    report = optimize(handle, advance=advance)
    assert report.skipped == ()
    assert sum(part.rows for part in report.partitions) == len(contents(handle)) == 240 - 4 * 9
    assert len(files_of(handle)) == parts
    assert optimize(handle).partitions == ()


def test_a_partition_that_others_keep_changing_is_skipped(tmp_path):
    handle = filled(tmp_path, "none")
    taken = iter(range(7))

    def advance(*_):
        handle.load().delete(f"cid = {next(taken)}")

    (part,) = optimize(handle, advance=advance).partitions
    assert "replaced by another writer" in part.skipped
    assert part.files_after == 0
    # Nothing is left of what was written in vain.
    there = {path.name for path in tmp_path.rglob("*.parquet")}
    listed = {file.file_path.rpartition("/")[2] for file in files_of(handle)}
    older = {
        task.file.file_path.rpartition("/")[2]
        for snapshot in handle.load().snapshots()
        for task in handle.load().scan(snapshot_id=snapshot.snapshot_id).plan_files()
    }
    assert there == listed | older


def test_files_of_an_older_partitioning_stay(tmp_path):
    handle = filled(tmp_path, "month")
    with handle.load().update_spec() as update:
        update.remove_field("event_month")
        update.add_field("cid", "bucket[2]", "cid_bucket")
    for _ in range(2):
        handle.load().append(
            rows((1, 1, 1, 1.0, "x")).append_column(SEQUENCE, pa.nulls(1, pa.int64()))
        )
    before = contents(handle)
    report = optimize(handle)
    assert report.older == 4
    assert [(part.files_before, part.files_after) for part in report.partitions] == [(2, 1)]
    assert contents(handle) == before


def test_tables_of_others_are_refused(tmp_path):
    catalog = opened(
        CatalogAddress.from_source(source_of(tmp_path), repo_config(tmp_path)),
        handle_of(tmp_path).settings,
    )
    catalog.create_namespace("shop")
    catalog.create_table("shop.orders", COLUMNS)
    with pytest.raises(OfflineStoreError, match="rewrite_data_files"):
        optimize(handle_of(tmp_path))


def test_rows_that_are_equal_in_all_have_the_order_of_what_they_hold():
    layout = TableLayout(("cid",), "event", "created", "none")
    values = [(1, 1, None, 2.0, "b"), (1, 1, None, 2.0, "a"), (1, 1, None, 1.0, "z")]
    values += [(1, 1, 0, 0.0, "b"), (1, 0, 5, 7.0, "a"), (2, 0, 5, 7.0, "a"), (2, 0, 5, 7.0, "a")]
    table = rows(*values).append_column(SEQUENCE, pa.array([None] * 5 + [4, 4], pa.int64()))
    expected = [4, 2, 1, 0, 3, 5, 6]
    chance = random.Random(4)  # noqa: S311 - cases, no secrets
    for _ in range(5):
        order = chance.sample(range(len(values)), len(values))
        found = in_content_order(table.take(order), layout)
        assert found.to_pylist() == table.take(expected).to_pylist()


def test_ranges_part_rows_by_the_whole_order():
    layout = TableLayout(("note",), "event", None, "none", "cid")
    table = rows(
        (2, 1, None, 0.0, "b"),
        (1, 1, None, 0.0, "b"),
        (0, 0, None, 0.0, None),
        (9, 9, None, 0.0, "c"),
    )
    ends = rows((2, 1, None, 0.0, "b"), (3, 1, None, 0.0, "b")).select(["note", "event", "cid"])
    (batch,) = table.to_batches()
    assert range_of(batch, ends, layout).tolist() == [1, 0, 0, 2]
    assert range_of(batch, ends.slice(0, 0), layout).tolist() == [0, 0, 0, 0]
