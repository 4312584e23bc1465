"""No answer changes where a history table is optimized, whatever rows are equal in."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from examples import cases
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Float64, Int64, String
from history_tables import (
    HOUR,
    START,
    append_sequenced,
    append_unsequenced,
    contents,
    delete_rows,
    new_table,
    rows,
    source_of,
)
from hypothesis import given
from hypothesis import strategies as st
from repos import NoRegistry, repo_config

from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.iceberg.optimize import optimize

HOURS = (0, 12, 30)

ROW = st.tuples(
    st.integers(0, 1),
    st.sampled_from(HOURS),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 0.0, -0.0, 1.5, float("nan")]),
    st.sampled_from([None, "", "a", "b"]),
)
ROWS = st.lists(ROW, min_size=1, max_size=6)
COMMIT = st.one_of(
    st.tuples(st.just("append"), ROWS),
    st.tuples(st.just("append"), ROWS),
    st.tuples(st.just("without sequence"), ROWS),
    # Of commits that began from one version: their sequences overlap, and may be equal.
    st.tuples(st.just("beside"), ROWS, st.integers(0, 12)),
    st.tuples(st.just("delete"), st.integers(0, 9)),
    st.tuples(
        st.just("optimize"),
    ),
)


def answers(folder):
    """What the join says in both of its plans, and what a materialization reads."""
    source, config = source_of(folder), repo_config(folder)
    view = FeatureView(
        name="orders",
        entities=[Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)],
        schema=[
            Field(name="cid", dtype=Int64),
            Field(name="amount", dtype=Float64),
            Field(name="note", dtype=String),
        ],
        source=source,
        ttl=dt.timedelta(0),
    )
    frame = pd.DataFrame(
        [
            {"cid": cid, "event_timestamp": START + hour * HOUR}
            for cid in (0, 1)
            for hour in (*HOURS, 11, 100)
        ]
    )
    found = []
    for plan in ("stream", "duckdb"):
        job = S3ParquetOfflineStore.get_historical_features(
            repo_config(folder, join_plan=plan),
            [view],
            ["orders:amount", "orders:note"],
            frame,
            NoRegistry(),
            "p",
        )
        table = job.to_arrow()
        found.append(repr(table.select(["cid", "event_timestamp", "amount", "note"]).to_pylist()))
    newest = S3ParquetOfflineStore.pull_latest_from_table_or_query(
        config, source, ["cid"], ["amount", "note"], "event", "created", START, START + 99 * HOUR
    ).to_arrow()
    columns = newest.select(["cid", "amount", "note"])
    found.append(repr(columns.sort_by("cid").to_pylist()))
    return found


def committed(handle, commit):
    kind, *more = commit
    if kind == "append":
        handle.append(rows(*more[0]))
    elif kind == "without sequence":
        append_unsequenced(handle, rows(*more[0]))
    elif kind == "beside":
        numbers = range(1 << 32, (1 << 32) + len(more[0]))
        append_sequenced(handle, rows(*more[0]), [number + more[1] for number in numbers])
    elif kind == "delete":
        tasks = sorted(handle.load().scan().plan_files(), key=lambda task: task.file.file_path)
        if tasks:
            file = tasks[more[0] % len(tasks)].file
            delete_rows(handle, file.file_path, [more[0] % file.record_count])
    else:
        optimize(handle)


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["day", "none"])
@cases(8)
@given(commits=st.lists(COMMIT, min_size=2, max_size=6))
def test_no_answer_changes(partition, commits):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        handle = new_table(folder, partition)
        handle.append(rows((0, 0, None, 9.0, "first")))
        for commit in commits:
            committed(handle, commit)
        before, held = answers(folder), contents(handle)
        assert before[0] == before[1]
        report = optimize(handle)
        assert report.skipped == ()
        assert contents(handle) == held
        assert answers(folder) == before
        assert optimize(handle).partitions == ()
        for part in handle.load().scan().plan_files():
            assert part.file.sort_order_id == handle.load().sort_order().order_id
