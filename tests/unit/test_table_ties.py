"""Rows of tables that are equal in keys and event time: one answer, however files are laid out."""

from __future__ import annotations

import datetime as dt
import logging
import random
from typing import TYPE_CHECKING

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Int64
from history_tables import source_of as table_source
from repos import NoRegistry, repo_config

from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.iceberg.catalog import opened
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE, TableLayout, create_table
from feast_dynamo_ext.parquet.source import ParquetSource

if TYPE_CHECKING:
    from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
HOUR = dt.timedelta(hours=1)
COLUMNS = pa.schema(
    [
        ("cid", pa.int64()),
        ("event", pa.timestamp("us", "UTC")),
        ("created", pa.timestamp("us", "UTC")),
        ("n", pa.int64()),
    ]
)
LAST = START + 100 * HOUR


def source_of(folder, created=True) -> IcebergSource:
    return table_source(folder, created_timestamp_column="created" if created else None)


def made(folder, created=True, ours=True, partition="day") -> TableHandle:
    """An empty table: of ours, with a sequence column, or as others make it."""
    handle = TableHandle.from_source(source_of(folder, created), repo_config(folder))
    catalog = opened(handle.address, handle.settings)
    if ours:
        layout = TableLayout(("cid",), "event", "created" if created else None, partition)
        create_table(catalog, "shop.orders", COLUMNS, layout)
    else:
        catalog.create_namespace("shop")
        catalog.create_table("shop.orders", COLUMNS)
    return handle


def table_of(rows) -> pa.Table:
    """Rows (customer, hour of the event, hour of the creation or None, value)."""
    return pa.table(
        {
            "cid": pa.array([row[0] for row in rows], pa.int64()),
            "event": [START + row[1] * HOUR for row in rows],
            "created": [None if row[2] is None else START + row[2] * HOUR for row in rows],
            "n": pa.array([row[3] for row in rows], pa.int64()),
        }
    ).cast(COLUMNS)


def answers(folder, entity_rows, plan, created=True, known=False):
    """What each (customer, hour) sees, in a plan of the store or by its SQL."""
    view = FeatureView(
        name="orders",
        entities=[Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)],
        schema=[Field(name="cid", dtype=Int64), Field(name="n", dtype=Int64)],
        source=source_of(folder, created),
        ttl=dt.timedelta(0),
    )
    frame = pd.DataFrame(
        {
            "cid": [cid for cid, _ in entity_rows],
            "event_timestamp": [START + hour * HOUR for _, hour in entity_rows],
        }
    )
    job = S3ParquetOfflineStore.get_historical_features(
        repo_config(folder, join_plan="auto" if plan == "sql" else plan),
        [view],
        ["orders:n"],
        frame,
        NoRegistry(),
        "p",
        filter_by_created_timestamp=known,
    )
    if plan == "sql":
        with duckdb.connect(":memory:") as duck:
            duck.register("entity_df", frame)
            return duck.sql(job.to_sql()).to_arrow_table().column("n").to_pylist()
    return job.to_arrow().column("n").to_pylist()


def newest(folder, created=True):
    """The newest row of each customer, as a materialization reads it."""
    job = S3ParquetOfflineStore.pull_latest_from_table_or_query(
        repo_config(folder),
        source_of(folder, created),
        ["cid"],
        ["n"],
        "event",
        "created" if created else None,
        START - HOUR,
        LAST,
    )
    found = job.to_arrow()
    return dict(zip(found.column("cid").to_pylist(), found.column("n").to_pylist(), strict=True))


def seen(rows, entity_rows, created=True, known=False):
    """The same by looking at all rows, which stand in the order of their sequence."""
    found = []
    for cid, hour in entity_rows:
        visible = [
            ((row[1], -1 if row[2] is None or not created else row[2], at), row[3])
            for at, row in enumerate(rows)
            if row[0] == cid
            and row[1] <= hour
            and not (known and (row[2] is None or row[2] > hour))
        ]
        found.append(max(visible)[1] if visible else None)
    return found


def shuffled(handle, chance):
    """Rewrite all rows in any order, unsorted, into several files, as other engines may."""
    table = handle.load()
    rows = table.scan().to_arrow()
    order = list(range(len(rows)))
    chance.shuffle(order)
    rows = rows.take(order)
    half = len(rows) // 2
    table.overwrite(rows.slice(0, half))
    handle.load().append(rows.slice(half))


@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("partition", ["day", "none"])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_layout_gives_the_same_answers(tmp_path, created, partition, seed):
    chance = random.Random(seed)  # noqa: S311 - cases, no secrets
    handle = made(tmp_path, created, partition=partition)
    rows = [
        (chance.randrange(4), chance.randrange(0, 60, 12), chance.choice([None, 1, 70]), value)
        for value in range(80)
    ]
    for start in range(0, 80, 20):
        handle.append(table_of(rows[start : start + 20]))
    entity_rows = [(cid, hour) for cid in range(5) for hour in (0, 11, 12, 30, 48, 80)]
    expected = seen(rows, entity_rows, created)
    last = {cid: seen(rows, [(cid, 100)], created)[0] for cid in range(4)}
    # As it was appended, positions say who wins, and no row is read for it.
    opened_ = ParquetSource.open(source_of(tmp_path, created), repo_config(tmp_path))
    assert opened_.ties is None
    for _ in range(2):
        for plan in ("stream", "duckdb", "sql"):
            assert answers(tmp_path, entity_rows, plan, created) == expected
            if created:
                assert answers(tmp_path, entity_rows, plan, known=True) == seen(
                    rows, entity_rows, known=True
                )
        assert newest(tmp_path, created) == last
        shuffled(handle, chance)
        opened_ = ParquetSource.open(source_of(tmp_path, created), repo_config(tmp_path))
        assert opened_.ties is not None


def test_a_table_without_a_sequence_is_decided_by_content_and_says_so(tmp_path, caplog):
    handle = made(tmp_path, ours=False)
    rows = [(1, 0, None, 5), (1, 0, None, 7), (1, 0, None, 6), (2, 0, 1, 3), (2, 0, 2, 1)]
    rows += [(3, 0, None, 9), (3, 0, None, 9)]
    for row in rows:
        handle.append(table_of([row]))
    entity_rows = [(1, 5), (2, 5), (3, 5)]
    with caplog.at_level(logging.WARNING, "feast_dynamo_ext"):
        first = answers(tmp_path, entity_rows, "stream")
    assert first[1:] == [1, 9]
    assert first[0] in (5, 6, 7)
    # One key and time differs: two equal rows are no question.
    assert "for 1 keys and event times" in caplog.text
    chance = random.Random(3)  # noqa: S311 - as above
    for _ in range(3):
        shuffled(handle, chance)
        assert answers(tmp_path, entity_rows, "stream") == first
        assert answers(tmp_path, entity_rows, "duckdb") == first
        assert answers(tmp_path, entity_rows, "sql") == first
        assert newest(tmp_path) == {1: first[0], 2: 1, 3: 9}


def test_rows_of_other_writers_without_a_sequence_lose(tmp_path):
    """An engine that knows nothing of the column writes nulls there."""
    handle = made(tmp_path)
    handle.append(table_of([(1, 0, None, 5)]))
    theirs = table_of([(1, 0, None, 8)]).append_column(SEQUENCE, pa.nulls(1, pa.int64()))
    handle.load().append(theirs)
    assert answers(tmp_path, [(1, 5)], "stream") == [5]
    assert answers(tmp_path, [(1, 5)], "duckdb") == [5]


def test_a_later_append_wins(tmp_path):
    handle = made(tmp_path, created=False)
    for value in range(12):
        handle.append(table_of([(1, 0, None, value)]))
        assert answers(tmp_path, [(1, 5)], "stream", created=False) == [value]
        assert newest(tmp_path, created=False) == {1: value}
