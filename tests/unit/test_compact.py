"""Compaction: what a retrieval finds is the same before and after, whatever was done between."""

from __future__ import annotations

import tempfile
from pathlib import Path

import compact_cases
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compact_cases import compact, opened, seen, target, values, write
from examples import cases
from hypothesis import given
from hypothesis import strategies as st
from repos import repo_config

from feast_dynamo_ext.errors import CompactionConflictError, SourceReadError
from feast_dynamo_ext.parquet.compaction import compaction
from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest
from feast_dynamo_ext.parquet.compaction.snapshot import remove_replaced
from feast_dynamo_ext.retrieval.join import prune_buckets

KEYS = [None, 0, 1, 2, 3]
HOURS = [-1, 0, 1, 2, 5]

hours = st.one_of(st.none(), st.integers(0, 3))
file_rows = st.lists(st.tuples(st.sampled_from(KEYS), hours, hours), max_size=8)
folders = st.sampled_from(["", "land=DE/", "land=FR/", "land=IT/"])
files = st.lists(st.tuples(folders, file_rows), min_size=1, max_size=5)
shapes = st.sampled_from([{"buckets": 1}, {"buckets": 3}, {"by_partition": True}, {}])
little = st.sampled_from([{}, {"memory_bytes": 6 * 500, "target_bytes": 1}])


def add_files(path, new, first: int) -> int:
    """Writes files; each value is another. Returns how many there are."""
    for number, (folder, rows) in enumerate(new, first):
        numbered = [(*row, 100 * number + at) for at, row in enumerate(rows)]
        write(path / f"{folder}part-{number}.parquet", numbered)
    return first + len(new)


@cases(10)
@given(first=files, more=st.lists(st.tuples(files, shapes), max_size=2), shape=shapes, room=little)
def test_retrievals_find_the_same_before_and_after(first, more, shape, room):
    with tempfile.TemporaryDirectory() as folder:
        path, config = Path(folder, "orders"), repo_config(folder)
        count = 0
        for new, how in [(first, shape), *more]:
            count = add_files(path, new, count)
            before = seen(path, config, KEYS, HOURS), sorted(values(path, config))
            compact(path, config, **how, **room)
            assert (seen(path, config, KEYS, HOURS), sorted(values(path, config))) == before
        remove_replaced(target(path), config, older_than_s=-1)
        assert (seen(path, config, KEYS, HOURS), sorted(values(path, config))) == before


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders"


@pytest.fixture
def config(tmp_path):
    return repo_config(tmp_path)


@pytest.mark.parametrize("how", [{"buckets": 2}, {"by_partition": True}])
def test_of_equal_rows_the_one_appended_later_wins_though_its_path_is_earlier(path, config, how):
    write(path / "m.parquet", [(1, 0, 0, 10), (1, 0, 0, 11)])
    compact(path, config, **how)
    write(path / "a.parquet", [(1, 0, 0, 12)])
    assert seen(path, config, [1], [0]) == [12]
    compact(path, config, **how)
    assert seen(path, config, [1], [0]) == [12]
    assert values(path, config) == [10, 11, 12]


def test_partitions_that_share_moments_keep_the_order_of_their_equal_rows(path, config):
    write(path / "land=DE/1.parquet", [(1, 0, 0, 10)])
    write(path / "land=FR/1.parquet", [(1, 0, 0, 20)])
    compact(path, config)
    write(path / "land=DE/2.parquet", [(1, 0, 0, 30)])
    compact(path, config)
    assert values(path, config) == [10, 20, 30]
    lands = pa.Table.from_batches(opened(path, config).scan(["land"]))
    assert lands["land"].to_pylist() == ["DE", "FR", "DE"]


def test_a_partition_without_new_files_is_left_as_it_is(path, config):
    for day in (1, 2, 3):
        for part in "ab":
            write(path / f"day=0{day}/{part}.parquet", [(day, 24 * day, 0, day)])
    done = compact(path, config)
    assert (done.files, done.rows) == (3, 6)
    before = [file.path for file in opened(path, config).files]
    write(path / "day=02/c.parquet", [(2, 49, 0, 9)])
    compact(path, config)
    after = [file.path for file in opened(path, config).files]
    assert (before[0], before[2]) == (after[0], after[2])
    assert before[1] != after[1]
    assert values(path, config) == [1, 1, 2, 2, 9, 3, 3]
    assert compaction.plan(target(path), config, LayoutRequest()).todo == []


def test_bucketed_rows_keep_the_columns_of_their_folders(path, config):
    write(path / "day=01/a.parquet", [(1, 24, 0, 1)])
    write(path / "day=02/a.parquet", [(2, 48, 0, 2)])
    compact(path, config, buckets=2)
    write(path / "day=03/a.parquet", [(3, 72, 0, 3)])
    source = opened(path, config)
    rows = [row for batch in source.scan(["day", "value"]) for row in batch.to_pylist()]
    assert sorted((row["day"], row["value"]) for row in rows) == [(1, 1), (2, 2), (3, 3)]
    assert source.schema.field("day").type == pa.int64()


def test_few_keys_read_few_buckets_and_what_was_appended(path, config):
    write(path / "a.parquet", [(key, 0, 0, key) for key in range(100)])
    compact(path, config, buckets=8)
    write(path / "b.parquet", [(5, 1, 0, 500)])
    source = opened(path, config)
    assert len(source.files) == 9
    narrowed = prune_buckets(source, {"cid": pa.array([5], pa.int32())})
    assert len(narrowed.files) == 2
    assert {5, 500} <= {v for b in narrowed.scan(["value"]) for v in b[0].to_pylist()}
    assert prune_buckets(source, {"other": pa.array([5])}) is source
    assert seen(path, config, [5], [0, 1]) == [5, 500]


def test_of_two_runs_at_once_one_is_refused_and_leaves_nothing(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    first, second = (
        compaction.plan(target(path), config, LayoutRequest(buckets=n)) for n in (1, 2)
    )
    compaction.run(first)
    there = sorted(path.rglob("*"))
    with pytest.raises(CompactionConflictError, match="compacted by another run meanwhile"):
        compaction.run(second)
    assert sorted(path.rglob("*")) == there
    assert values(path, config) == [1]


def test_a_file_replaced_while_it_was_compacted_changes_nothing(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    plan = compaction.plan(target(path), config, LayoutRequest(buckets=1))
    done = []

    def replace_once(rows):
        if not done:
            done.append(write(path / "a.parquet", [(1, 0, 0, 1), (2, 0, 0, 2)]))

    with pytest.raises(SourceReadError, match=r"a\.parquet was replaced or removed while"):
        compaction.run(plan, replace_once)
    assert values(path, config) == [1, 2]
    assert list(path.rglob("*.parquet")) == [path / "a.parquet"]


def test_files_appended_while_a_run_is_at_work_stay(path, config):
    write(path / "a.parquet", [(1, 0, 0, 1)])
    plan = compaction.plan(target(path), config, LayoutRequest(buckets=1))
    compaction.run(plan, lambda rows: write(path / "0.parquet", [(1, 0, 0, 2)]))
    assert values(path, config) == [1, 2]


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_the_old_files_or_the_new_ones(path, config, fork_server):
    for number in range(4):
        write(path / f"{number}.parquet", [(key, key % 5, 0, key) for key in range(99)], group=99)
    before = sorted(values(path, config))
    script = Path(compact_cases.__file__).with_name("compact_killed.py")
    done = fork_server.run(script, path)
    assert done.stdout.split() == ["killed"] * 4, done.stderr
    assert sorted(values(path, config)) == before
    assert [file.path for file in opened(path, config).files] == [
        str(path / f"{number}.parquet") for number in range(4)
    ]
    assert len(list(path.glob("_feast_dynamo/2*"))) == 3
    compact(path, config, buckets=2, orphans_older_than_s=3600)
    assert len(list(path.glob("_feast_dynamo/2*"))) == 4
    compact(path, config, buckets=3, orphans_older_than_s=-1)
    # The new one, and the one before, which is kept for its readers.
    assert len(list(path.glob("_feast_dynamo/2*"))) == 2
    assert sorted(values(path, config)) == before


@pytest.mark.slow
def test_memory_is_that_of_a_part_not_of_the_source(path, config):
    path.mkdir()
    rows, width = 300_000, 16
    shuffled = np.random.default_rng(1).permutation(rows)
    for number, part in enumerate(np.array_split(shuffled, 6)):
        columns = {f"f{at}": part.astype("float64") for at in range(width)}
        times = pa.array(part * 1_000_000, pa.timestamp("us", "UTC"))
        table = pa.table(
            {"cid": part % 1000, "event_timestamp": times, "created": times, "value": part}
        )
        for name, column in columns.items():
            table = table.append_column(name, pa.array(column))
        pq.write_table(table, path / f"{number}.parquet", row_group_size=10_000)
    whole = rows * (width + 4) * 8
    start, most = pa.total_allocated_bytes(), 0

    def look(_):
        nonlocal most
        most = max(most, pa.total_allocated_bytes() - start)

    plan = compaction.plan(
        target(path),
        config,
        LayoutRequest(buckets=2, memory_bytes=whole // 3, target_bytes=1 << 20),
    )
    compaction.run(plan, look)
    assert whole == 48_000_000
    assert most < whole // 2, "it was given a third of that"
    times = pa.Table.from_batches(opened(path, config).scan(["event_timestamp", "cid"]))
    assert times.num_rows == rows
    assert len(opened(path, config).files) > 2, "more than one file a bucket"
