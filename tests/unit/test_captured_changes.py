"""Which rows of a captured history a materialization takes, and how they are sent."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import captured
import numpy as np
import pyarrow as pa
import pytest
from captured import Change, at
from repos import repo_config

from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.dynamo.encoding.requests import (
    Deletions,
    EncodedRows,
    Try,
    delete_request,
    put_request,
    statement,
)
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, last_written_per_key
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.materialize.checkpoint import Position, view_fingerprint
from feast_dynamo_ext.materialize.spool import Spool
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.retrieval.changed_rows import changed_rows
from feast_dynamo_ext.retrieval.plan import plan_view, without_eras

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def table(tmp_path) -> Any:
    """A history without rows, and what reads it."""
    config = repo_config(tmp_path, catalog=captured.CATALOG)
    source = captured.source_of()
    return captured.new_history(source, config), source, config


def changed(
    table: Any, start: int, end: int, *, since: int | None = None, oldest: int | None = None
) -> tuple[list[int], list[int], int]:
    """Values of the rows to be written, customers to be deleted, and how many are expired."""
    _, source, config = table
    view = plan_view(captured.view_of(source), ["purchases_view:value"], full_feature_names=False)
    opened = ParquetSource.open(source, config)
    not_before = None if oldest is None else at(oldest)
    with changed_rows(view, opened, at(start), at(end), Limits(), not_before, since) as found:
        rows = found.source.fetch_each(["value"], found.positions)
        written = sorted(value for batch in rows for value in batch.column(0).to_pylist())
        gone = found.source.fetch_each(["customer"], found.deleted)
        deleted = sorted(key for batch in gone for key in batch.column(0).to_pylist())
        assert (found.rows, found.deletions) == (len(written), len(deleted))
        return written, deleted, found.expired


def put(customer: int, event: int, written: int, value: int) -> Change:
    return Change((customer,), event, written, "put", value)


def test_what_happened_or_was_written_in_the_range_is_taken(table):
    captured.append(
        table[0],
        [
            put(1, 5, 5, 1),  # before
            put(2, 15, 5, 2),  # happened in it
            put(3, 5, 15, 3),  # was written in it
            put(4, 25, 15, 4),  # is yet to happen
            put(5, 25, 25, 5),  # after
        ],
    )
    assert changed(table, 10, 20) == ([2, 3], [], 0)
    assert changed(table, 20, 30) == ([4, 5], [], 0)


def test_what_came_since_the_last_run_is_taken_whenever_it_happened(table):
    handle = table[0]
    captured.append(handle, [put(1, 1, 1, 1), put(2, 2, 2, 2)])
    last = handle.load().metadata.last_sequence_number
    captured.append(handle, [put(3, 3, 3, 3), Change((2,), 2, 4, "delete", 2)])
    assert changed(table, 10, 20) == ([], [], 0)
    assert changed(table, 10, 20, since=last) == ([3], [2], 0)
    assert changed(table, 10, 20, since=last + 1) == ([], [], 0)
    assert changed(table, 10, 20, since=0) == ([1, 3], [2], 0)


def test_an_end_after_the_range_keeps_what_is_gone_from_going_online(table):
    log = [put(1, 12, 12, 1), Change((1,), 12, 50, "delete", 1), put(2, 13, 13, 2)]
    captured.append(table[0], [*log, put(2, 3, 40, 3)])
    assert changed(table, 10, 20) == ([], [1], 0)
    assert changed(table, 10, 60) == ([3], [1], 0)


def test_a_late_row_of_before_a_deletion_is_gone_already(table):
    handle = table[0]
    captured.append(handle, [Change((1,), 3, 8, "delete", 1)])
    last = handle.load().metadata.last_sequence_number
    captured.append(handle, [put(1, 3, 3, 1)])
    assert changed(table, 10, 20, since=last) == ([], [], 0)


def test_a_put_that_moves_an_item_back_into_the_future_still_ends_what_was(table):
    log = [put(1, 5, 5, 1), put(1, 90, 6, 2), Change((1,), 90, 15, "move", 2), put(1, 80, 15, 3)]
    captured.append(table[0], log)
    assert changed(table, 10, 20) == ([], [1], 0)
    assert captured.seen(log, (1,), 20) is None


def test_a_row_past_its_ttl_is_counted_and_ends_what_was_moved(table):
    captured.append(table[0], [put(1, 15, 15, 1), put(2, 15, 15, 2)])
    moved = [Change((1,), 15, 16, "move", 1), put(1, 3, 16, 3), put(3, 4, 16, 4)]
    captured.append(table[0], moved)
    assert changed(table, 10, 20, oldest=10) == ([2], [1], 2)


def test_a_view_that_passes_deletions_over_deletes_nothing(table):
    captured.append(table[0], [put(1, 12, 12, 1), Change((1,), 12, 15, "delete", 1)])
    _, source, config = table
    view = without_eras(
        plan_view(captured.view_of(source), ["purchases_view:value"], full_feature_names=False)
    )
    opened = ParquetSource.open(source, config)
    with changed_rows(view, opened, at(10), at(20), Limits()) as found:
        assert (found.rows, found.deletions) == (1, 0)
    with (
        pytest.raises(OfflineStoreError, match="no history of a captured table"),
        changed_rows(replace(view, tombstones=None), opened, at(10), at(20), Limits()),
    ):
        pass


def test_files_that_hold_nothing_of_a_range_are_not_read(table):
    handle, source, config = table
    day = 86_400_000_000
    captured.append(handle, [put(1, 0, 0, 1), put(1, 3 * day, 3 * day, 2), put(2, 6 * day, 9, 3)])
    opened = ParquetSource.open(source, config)
    assert len(opened.files) == 3
    first = (at(3 * day) - dt.datetime(1970, 1, 1, tzinfo=captured.UTC)).total_seconds() * 1e6
    ranges = {"bought": (int(first), int(first) + 5), "_feast_written_at": (None, None)}
    assert len(opened.holding_any({"bought": ranges["bought"]}).files) == 1
    assert len(opened.holding_any(ranges).files) == 3


# The position


def test_a_position_is_that_of_commits_that_no_writer_may_still_number():
    commits = [(1_000, 4), (2_000, 5), (700_000, 6)]
    assert Position.from_commits("t", commits, 700_000) == Position("t", 5)
    assert Position.from_commits("t", commits, 1_300_000) == Position("t", 6)
    assert Position.from_commits("t", commits, 100) == Position("t", 0)
    assert Position.from_commits("t", [], 1e12) == Position("t", 0)


def test_a_run_that_was_killed_starts_over_where_deletions_count_otherwise():
    source = captured.source_of()
    kinds = {
        view_fingerprint(captured.view_of(source)),
        view_fingerprint(captured.view_of(source, deletes="ignore")),
        view_fingerprint(captured.view_of(captured.source_of(expiry="delete"))),
    }
    assert len(kinds) == 3


# Requests

ITEM = {"k": {"B": "aw=="}, "v": {"B": "dg=="}, "t": {"N": "5"}, "f": {"B": "Zg=="}}


def test_requests_compare_times_of_writing():
    with_created = {**ITEM, "c": {"N": "7"}}
    made = statement("t", with_created, Try.UPDATE, "written")
    assert made["Statement"] == (
        'UPDATE "t" SET v=? SET t=? SET f=? SET c=? REMOVE x WHERE k=? AND '
        "(c<=? OR (c IS MISSING AND t<=?) OR t IS MISSING)"
    )
    assert made["Parameters"][-2:] == [{"N": "7"}, {"N": "7"}]
    without = statement("t", ITEM, Try.UPDATE, "written")
    assert without["Parameters"][-2:] == [{"N": "5"}, {"N": "5"}]
    assert put_request("t", with_created, "written") == {
        "TableName": "t",
        "Item": with_created,
        "ConditionExpression": "attribute_not_exists(#t) OR #c <= :w OR "
        "(attribute_not_exists(#c) AND #t <= :w)",
        "ExpressionAttributeNames": {"#t": "t", "#c": "c"},
        "ExpressionAttributeValues": {":w": {"N": "7"}},
    }
    assert put_request("t", ITEM, "written")["ExpressionAttributeValues"] == {":w": {"N": "5"}}
    assert delete_request("t", b"k", 9) == {
        "TableName": "t",
        "Key": {"k": {"B": "aw=="}},
        "ConditionExpression": "attribute_not_exists(k) OR #c <= :w OR "
        "(attribute_not_exists(#c) AND #t <= :w)",
        "ExpressionAttributeNames": {"#t": "t", "#c": "c"},
        "ExpressionAttributeValues": {":w": {"N": "9"}},
    }


def test_of_a_push_the_row_that_was_written_last_wins():
    rows = [
        Row(b"a", b"1", 50, 10),
        Row(b"a", b"2", 40, 20),
        Row(b"b", b"3", 50, None),
        Row(b"b", b"4", 40, 60),
        Row(b"c", b"5", 1, 5),
        Row(b"c", b"6", 2, 5),
    ]
    assert {row.key: row.values for row in last_written_per_key(rows)} == {
        b"a": b"2",
        b"b": b"4",
        b"c": b"6",
    }


def test_deletions_are_kept_on_the_disk_beside_rows(tmp_path: Path):
    schema = RowSchema(("value",), ("INT64",))

    def keys(first: int, count: int) -> pa.Array:
        made = [b"%04d" % number for number in range(first, first + count)]
        return pa.array(made, pa.large_binary())

    times = pa.array(np.arange(100), pa.int64())
    values = pa.array([b"v"] * 100, pa.large_binary())
    with Spool(schema, None, 4, folder=str(tmp_path), order="written") as spool:
        spool.add(EncodedRows(keys(0, 100), values, times, times, schema, None, "written"))
        spool.add_deletions(Deletions(keys(100, 50), times.slice(0, 50)))
        spool.finish()
        blocks = [block for bucket in spool.todo for block in spool.blocks(bucket)]
    rows = [block for block in blocks if isinstance(block, EncodedRows)]
    gone = [block for block in blocks if isinstance(block, Deletions)]
    kept = sorted(key for block in rows for key in block.keys.to_pylist())
    assert kept == keys(0, 100).to_pylist()
    assert {block.order for block in rows} == {"written"}
    pairs = sorted(
        pair
        for block in gone
        for pair in zip(block.keys.to_pylist(), block.written_us.to_pylist(), strict=True)
    )
    assert pairs == list(zip(keys(100, 50).to_pylist(), range(50), strict=True))
