"""What readers of a captured table's history answer, against a log kept beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import captured
import duckdb
import numpy as np
import pyarrow as pa
import pytest
from captured import Change, Table, at
from examples import cases
from feast import Field
from feast.types import Int64
from history_tables import append_unsequenced
from hypothesis import given
from hypothesis import strategies as st
from pit_cases import SMALL_SPARK
from repos import NoRegistry, repo_config

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.errors import ConfigError, OfflineStoreError
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.retrieval.entity_rows.from_sql import Named, run_sql
from feast_dynamo_ext.retrieval.inputs import with_tombstones
from feast_dynamo_ext.retrieval.plan import plan_view

if TYPE_CHECKING:
    from pathlib import Path

    from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob

ENGINES = ("stream", "duckdb", *(["spark"] if "SPARK" in os.environ else []))
"""Plans of one machine; `make test-spark` adds Spark."""
LAST = 120
ON_SPARK = {"engine": "spark", "spark_conf": SMALL_SPARK}


def config_of(folder: Path, **more: Any) -> Any:
    return repo_config(folder, catalog=captured.CATALOG, **more)


def retrieval(
    folder: Path, views: list[Any], pairs: Any, *, known: bool = False, plan: str = "auto"
) -> ParquetRetrievalJob:
    return S3ParquetOfflineStore.get_historical_features(
        config_of(folder, **(ON_SPARK if plan == "spark" else {"join_plan": plan})),
        views,
        [f"{view.name}:value" for view in views],
        None if pairs is None else captured.entity_rows(pairs),
        NoRegistry(),
        "p",
        full_feature_names=True,
        filter_by_created_timestamp=known,
        **({"start_date": at(0), "end_date": at(LAST)} if pairs is None else {}),
    )


def history(folder: Path, log: list[Change], cut: int = 0, **source: Any) -> Any:
    """The log as a history of two commits."""
    made = captured.source_of(**source)
    handle = captured.new_history(made, config_of(folder))
    for part in (log[:cut], log[cut:]):
        if part:
            captured.append(handle, part)
    return made


@st.composite
def logs(draw, *, ahead: bool = True, keys: int = 5, most: int = 30) -> list[Change]:
    """A log of a table with few items; times are few, so that they are often equal."""
    table, written = Table(), 10
    for value in range(draw(st.integers(0, most))):
        written += draw(st.sampled_from([0, 1, 1, 3]))
        item = (draw(st.integers(1, keys)),)
        what = draw(st.sampled_from(["put", "put", "put", "delete", "expire"]))
        if what == "put":
            event = written + draw(st.sampled_from([-9, -4, -1, 0, *([2, 6] if ahead else [])]))
            table.put(item, event, written, value)
        else:
            table.delete(item, written, expired=what == "expire")
    return table.log


def values(rows: list[Change | None]) -> list[int | None]:
    return [None if row is None else row.value for row in rows]


EVERY = [((key,), moment) for key in range(1, 7) for moment in range(LAST)]


@cases(8)
@given(
    log=logs(),
    cut=st.integers(0, 30),
    expiry=st.sampled_from(["keep", "delete"]),
    ttl=st.sampled_from([None, 4]),
)
def test_features_are_those_of_the_log_at_each_moment(tmp_path_factory, log, cut, expiry, ttl):
    folder = tmp_path_factory.mktemp("log")
    source = history(folder, log, cut, expiry=expiry)
    views = [
        captured.view_of(source, "applies", ttl=ttl),
        captured.view_of(source, "ignores", deletes="ignore", ttl=ttl),
    ]
    ends = frozenset({"delete", "expire"} if expiry == "delete" else {"delete"})
    for known in (False, True):
        expected = {
            f"{view.name}__value": values(
                [
                    captured.seen(
                        log, *pair, ends=ends, known=known, ttl=ttl, applies=view is views[0]
                    )
                    for pair in EVERY
                ]
            )
            for view in views
        }
        for plan in ENGINES:
            job = retrieval(folder, views, EVERY, known=known, plan=plan)
            answer = job.to_arrow().select(list(expected)).to_pydict()
            assert answer == expected, (plan, known)
        entity_df = job.entities.table  # noqa: F841 - the statement names it
        assert duckdb.sql(job.to_sql()).to_arrow_table().select(list(expected)).to_pydict() == (
            expected
        )


@cases(8)
@given(log=logs(ahead=False), cut=st.integers(0, 30))
def test_what_was_known_at_a_moment_is_what_the_table_held_then(tmp_path_factory, log, cut):
    """The table itself is the oracle: its changes, carried out up to the moment."""
    folder = tmp_path_factory.mktemp("log")
    source = history(folder, log, cut, expiry="delete")
    moments = range(9, LAST)
    pairs = [((key,), moment) for moment in moments for key in range(1, 7)]
    tables = {moment: captured.held(log, moment) for moment in moments}
    expected = values([tables[moment].get(key) for key, moment in pairs])
    for plan in ENGINES:
        job = retrieval(folder, [captured.view_of(source)], pairs, known=True, plan=plan)
        assert job.to_arrow().column("purchases_view__value").to_pylist() == expected
    # After all changes it does not matter when they became known.
    now = [((key,), LAST) for key in range(1, 7)]
    job = retrieval(folder, [captured.view_of(source)], now)
    last = captured.held(log)
    assert job.to_arrow().column("purchases_view__value").to_pylist() == values(
        [last.get(key) for key, _ in now]
    )


@cases(8)
@given(
    log=logs(), cut=st.integers(0, 30), window=st.tuples(st.integers(0, 50), st.integers(0, 50))
)
def test_rows_of_a_range_are_those_that_were_not_deleted_by_its_end(
    tmp_path_factory, log, cut, window
):
    folder = tmp_path_factory.mktemp("log")
    source, (start, end) = history(folder, log, cut), sorted(window)
    given_ = (source, ["customer"], ["value"], "bought", "_feast_written_at", at(start), at(end))
    latest = S3ParquetOfflineStore.pull_latest_from_table_or_query(config_of(folder), *given_)
    alive = {key: captured.seen(log, (key,), end) for key in range(1, 6)}
    expected = {
        (key, row.event, row.value)
        for key, row in alive.items()
        if row is not None and row.event >= start
    }
    assert rows_of(latest.to_arrow()) == sorted(expected)
    assert rows_of(duckdb.sql(latest.to_sql()).to_arrow_table()) == sorted(expected)
    every = S3ParquetOfflineStore.pull_all_from_table_or_query(config_of(folder), *given_)
    puts = [
        (row.item[0], row.event, row.value)
        for key in range(1, 6)
        for row in captured.alive(log, (key,), end)
        if start <= row.event <= end
    ]
    assert rows_of(every.to_arrow()) == sorted(puts)
    assert rows_of(duckdb.sql(every.to_sql()).to_arrow_table()) == sorted(puts)


def rows_of(table: pa.Table) -> list[tuple[int, int, int]]:
    start = np.datetime64(at(0).replace(tzinfo=None), "us")
    times = table.column("bought").to_numpy().astype("datetime64[us]") - start
    columns = (table.column("customer").to_pylist(), times.astype(int), table.column("value"))
    return sorted(zip(columns[0], columns[1].tolist(), columns[2].to_pylist(), strict=True))


# Entity rows that come from the history itself


def test_changes_as_entity_rows_are_puts_alone(tmp_path):
    log = [
        Change((1,), 10, 10, "put", 1),
        Change((1,), 10, 20, "delete", 1),
        Change((1,), 15, 30, "put", 2),
        Change((2,), 12, 12, "put", 3),
        Change((2,), 12, 25, "move", 3),
        Change((2,), 40, 41, "put", 4),
    ]
    source = history(tmp_path, log)
    for view in (captured.view_of(source), captured.view_of(source, deletes="ignore")):
        found = retrieval(tmp_path, [view], None).to_arrow().to_pydict()
        # At 15 the item was as it was at 10: that it was written again is known since 30.
        assert list(zip(found["customer"], found["purchases_view__value"], strict=True)) == [
            (1, 1),
            (2, 3),
            (1, 1 if ViewSettings.from_view(view).deletes is None else 2),
            (2, 4),
        ]


def test_sql_reads_puts_alone(tmp_path):
    log = [Change((1,), 10, 10, "put", 1), Change((1,), 10, 20, "delete", 1)]
    source = history(tmp_path, log)
    rows = run_sql(
        "SELECT customer, bought, value FROM purchases",
        {"purchases": Named(source)},
        lambda each: ParquetSource.open(each, config_of(tmp_path)),
        Limits(),
    )
    assert rows.column("value").to_pylist() == [1]


def test_metrics_count_puts_alone(tmp_path):
    log = [Change((1,), 10, 10, "put", 1), Change((2,), 12, 12, "put", 3)]
    source = history(tmp_path, [*log, Change((2,), 12, 20, "delete", 3)])
    (found,) = S3ParquetOfflineStore().compute_monitoring_metrics(
        config_of(tmp_path), source, [("value", "numeric")], "bought"
    )
    assert (found["row_count"], found["mean"]) == (2, 2.0)


# Where there are no tombstones


def is_plain(folder: Path, source: Any) -> bool:
    """Whether a view of the source is read as that of any other."""
    plan = plan_view(captured.view_of(source), ["purchases_view:value"], full_feature_names=False)
    return with_tombstones(plan, ParquetSource.open(source, config_of(folder))).tombstones is None


PUTS = [Change((1,), 10, 10, "put", 1), Change((1,), 20, 20, "put", 2)]
GONE = Change((1,), 20, 30, "delete", 2)


def test_a_history_of_puts_is_read_as_any_other_until_a_tombstone_comes(tmp_path):
    source, pairs = history(tmp_path, PUTS, 1), [((1,), 25), ((1,), 40)]
    assert is_plain(tmp_path, source)
    handle = captured.TableHandle.from_source(source, config_of(tmp_path))
    before = handle.load().current_snapshot().snapshot_id
    captured.append(handle, [GONE])
    assert not is_plain(tmp_path, source)

    def answer() -> list[int | None]:
        job = retrieval(tmp_path, [captured.view_of(source)], pairs)
        return job.to_arrow().column("purchases_view__value").to_pylist()

    assert answer() == [2, None]
    # The files of a snapshot say it, so it is right of any snapshot, whoever made it current.
    handle.load().manage_snapshots().rollback_to_snapshot(before).commit()
    assert is_plain(tmp_path, source)
    assert answer() == [2, 2]


def test_what_another_engine_appends_is_looked_at_too(tmp_path):
    source = history(tmp_path, PUTS)
    handle = captured.TableHandle.from_source(source, config_of(tmp_path))
    required = {field.name for field in handle.load().schema().fields if field.required}
    rows = captured.rows_of_changes(handle, [GONE])
    strict = [field.with_nullable(field.name not in required) for field in rows.schema]
    append_unsequenced(handle, rows.cast(pa.schema(strict)))
    assert not is_plain(tmp_path, source)
    for plan in ENGINES:
        job = retrieval(tmp_path, [captured.view_of(source)], [((1,), 40)], plan=plan)
        assert job.to_arrow().column("purchases_view__value").to_pylist() == [None]


def test_a_row_that_does_not_say_what_it_is_is_no_feature(tmp_path):
    source = captured.source_of()
    handle = captured.new_history(source, config_of(tmp_path), is_strict=False)
    captured.append(handle, PUTS)
    rows = captured.rows_of_changes(handle, [Change((1,), 30, 30, "put", 3)])
    at_ = rows.schema.get_field_index("_feast_change")
    handle.append(rows.set_column(at_, "_feast_change", pa.nulls(1, pa.string())))
    for deletes in (None, "ignore"):
        job = retrieval(tmp_path, [captured.view_of(source, deletes=deletes)], [((1,), 40)])
        assert job.to_arrow().column("purchases_view__value").to_pylist() == [2]


def test_what_ends_an_item_is_found_in_files_that_no_entity_row_could_see(tmp_path):
    day = 86_400_000_000
    log = [Change((1,), 4 * day, 4 * day, "put", 1), Change((1,), 4 * day, 4 * day + 9, "move", 1)]
    source = history(tmp_path, [*log, Change((1,), 0, 4 * day + 9, "put", 2)])
    view, pairs = captured.view_of(source, ttl=day), [((1,), 4 * day + 5), ((1,), 4 * day + 20)]
    for plan in ENGINES:
        job = retrieval(tmp_path, [view], pairs, plan=plan)
        assert job.to_arrow().column("purchases_view__value").to_pylist() == [1, None]
        entity_df = job.entities.table  # noqa: F841 - the statement names it
        answer = duckdb.sql(job.to_sql()).to_arrow_table()
        assert answer.column("purchases_view__value").to_pylist() == [1, None]


# Keys


ORDERS = [
    Change((1, 1), 10, 10, "put", 1),
    Change((1, 2), 12, 12, "put", 2),
    Change((1, 2), 12, 20, "delete", 2),
]


def finer_history(folder: Path) -> Any:
    source = captured.source_of(
        schema=[*captured.source_of().schema, Field(name="number", dtype=Int64)]
    )
    handle = captured.new_history(source, config_of(folder), ["customer", "number"])
    captured.append(handle, ORDERS, ["customer", "number"])
    return source


def test_deleting_one_of_several_items_does_not_empty_their_entity(tmp_path):
    source = finer_history(tmp_path)
    with pytest.raises(ConfigError, match=r"\['customer'\].*\['customer', 'number'\].*ignore"):
        retrieval(tmp_path, [captured.view_of(source)], [((1,), 30)]).to_arrow()
    job = retrieval(tmp_path, [captured.view_of(source, deletes="ignore")], [((1,), 30)])
    assert job.to_arrow().column("purchases_view__value").to_pylist() == [2]


def test_of_all_rows_an_item_that_is_gone_is_left_out_whatever_the_join_keys(tmp_path):
    source = finer_history(tmp_path)
    given_ = (source, ["customer"], ["value"], "bought", "_feast_written_at", at(0))
    for end, expected in ((15, [1, 2]), (30, [1])):
        job = S3ParquetOfflineStore.pull_all_from_table_or_query(
            config_of(tmp_path), *given_, at(end)
        )
        assert job.to_arrow().column("value").to_pylist() == expected
    newest = S3ParquetOfflineStore.pull_latest_from_table_or_query(
        config_of(tmp_path), *given_, at(30)
    )
    # Of the newest row of a customer, as of a view that passes deletions over.
    assert newest.to_arrow().column("value").to_pylist() == [2]


def test_an_item_that_is_known_by_its_event_time_is_one_of_several(tmp_path):
    source = captured.source_of()
    handle = captured.new_history(source, config_of(tmp_path), ["customer", "bought"])
    log = [Change((1,), 10, 10, "put", 1), Change((1,), 12, 12, "put", 2)]
    captured.append(handle, [*log, Change((1,), 12, 20, "delete", 2)])
    with pytest.raises(ConfigError, match="deletes"):
        retrieval(tmp_path, [captured.view_of(source)], [((1,), 30)]).to_arrow()
    given_ = (source, ["customer"], ["value"], "bought", "_feast_written_at", at(0), at(30))
    job = S3ParquetOfflineStore.pull_all_from_table_or_query(config_of(tmp_path), *given_)
    assert job.to_arrow().column("value").to_pylist() == [1]


def test_nothing_but_capture_writes_a_history(tmp_path):
    source = history(tmp_path, PUTS)
    rows = pa.table({"customer": [1], "bought": [at(1)], "value": [1]})
    with pytest.raises(OfflineStoreError, match="nothing but capture writes"):
        S3ParquetOfflineStore.offline_write_batch(
            config_of(tmp_path), captured.view_of(source), rows, None
        )
