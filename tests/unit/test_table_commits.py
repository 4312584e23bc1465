"""Commits by their ids, and how far sources have come: known whatever expires or is undone."""

from __future__ import annotations

import datetime as dt
import runpy
from pathlib import Path

import pyarrow as pa
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.types import Float64
from history_tables import COLUMNS, new_table, rows, source_of
from repos import write_repo_yaml

from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ConfigError,
    NotCommittedError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.iceberg.erase import erase
from feast_dynamo_ext.parquet.iceberg.expire import expire
from feast_dynamo_ext.parquet.iceberg.ledger import LEDGER, Ledger, Progress
from feast_dynamo_ext.parquet.iceberg.optimize import optimize
from feast_dynamo_ext.parquet.iceberg.snapshot_files import tidy_after_append
from feast_dynamo_ext.parquet.iceberg.snapshots import history, rollback, tag
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE

UTC = dt.timezone.utc
FAR = dt.datetime(2999, 1, 1, tzinfo=UTC)


@pytest.fixture
def handle(tmp_path):
    return new_table(tmp_path)


def row(note: str, cid: int = 1) -> pa.Table:
    return rows((cid, cid, None, float(cid), note))


def notes(handle) -> list[str]:
    return sorted(handle.load().scan().to_arrow().column("note").to_pylist())


def by_another_engine(handle, **rows_of) -> None:
    """A commit that knows nothing of ledgers."""
    table = handle.load()
    table.append(row(**rows_of).append_column(SEQUENCE, pa.nulls(1, pa.int64())))


def expired_by_another_engine(handle) -> None:
    table = handle.load()
    current = table.current_snapshot().snapshot_id
    old = [each.snapshot_id for each in table.snapshots() if each.snapshot_id != current]
    table.maintenance.expire_snapshots().by_ids(old).commit()


# Ids


def expired(handle):
    expire(handle, FAR)


def optimized_and_expired(handle):
    optimize(handle)
    expire(handle, FAR)


def erased(handle):
    erase(handle, {"cid": 9}, expire_now=True)


def left_to_another_engine(handle):
    by_another_engine(handle, note="theirs", cid=3)
    expired_by_another_engine(handle)


def tidied(handle):
    table = handle.append(row("tidy", 3))
    tidy_after_append(table, handle.settings, most=1, kept=1)


@pytest.mark.parametrize(
    "upkeep", [expired, optimized_and_expired, erased, left_to_another_engine, tidied]
)
def test_a_commit_is_known_by_its_id_after_its_snapshot_is_gone(handle, upkeep):
    handle.append(row("first"), "run-1")
    handle.append(row("second"), "run-2")
    upkeep(handle)
    assert "run-1" not in {info.commit_id for info in history(handle)}
    before = notes(handle)
    for again in ("run-1", "run-2"):
        handle.append(row("again"), again)
    assert notes(handle) == before
    handle.append(row("third"), "run-3")
    assert notes(handle) == sorted([*before, "third"])


def test_ids_are_known_to_the_newest_256(handle):
    handle.append(row("first"), "run-0")
    table = handle.load()
    ledger = Ledger.from_table(table)
    for number in range(1, 260):
        ledger = ledger.with_commit(table, f"run-{number}", None)
    with handle.load().transaction() as transaction:
        transaction.set_properties({LEDGER: ledger.to_text()})
    assert len(ledger.to_text()) < 3_000
    expire(handle, FAR)
    handle.append(row("again"), "run-4")
    assert notes(handle) == ["first"]
    handle.append(row("again"), "run-3")
    assert notes(handle) == ["again", "first"]


def test_a_commit_that_was_rolled_back_can_be_made_again(handle):
    handle.append(row("first"), "run-1", Progress("orders", None, {"at": 1}))
    version = history(handle)[0].snapshot_id
    handle.append(row("second"), "run-2", Progress("orders", {"at": 1}, {"at": 2}))
    handle.append(row("third"))
    optimize(handle)
    rollback(handle, version)
    assert handle.state("orders") == {"at": 1}
    assert notes(handle) == ["first"]
    handle.append(row("again"), "run-1")
    handle.append(row("second, again"), "run-2", Progress("orders", {"at": 1}, {"at": 2}))
    assert notes(handle) == ["first", "second, again"]
    assert handle.state("orders") == {"at": 2}


def test_a_rollback_past_the_first_id_leaves_none(handle):
    handle.append(row("none"))
    version = history(handle)[0].snapshot_id
    handle.append(row("first"), "run-1", Progress("orders", None, 1))
    rollback(handle, version)
    assert handle.state("orders") is None
    assert LEDGER not in handle.load().properties
    handle.append(row("first"), "run-1", Progress("orders", None, 1))
    assert notes(handle) == ["first", "none"]


def test_what_others_committed_since_is_as_it_was(handle):
    handle.append(row("first"), "run-1", Progress("orders", None, 1))
    by_another_engine(handle, note="theirs")
    theirs = history(handle)[0].snapshot_id
    expired_by_another_engine(handle)
    by_another_engine(handle, note="theirs too")
    # Nothing of ours came since that version, nor is left before it.
    rollback(handle, theirs)
    assert handle.state("orders") == 1
    handle.append(row("second"), "run-2", Progress("orders", 1, 2))
    with pytest.raises(SourceReadError, match="another engine made that version"):
        rollback(handle, theirs)
    assert notes(handle) == ["first", "second", "theirs"]
    assert handle.state("orders") == 2


def test_another_engine_rolls_back(handle):
    handle.append(row("first"), "run-1", Progress("orders", None, 1))
    version = history(handle)[0].snapshot_id
    handle.append(row("second"), "run-2", Progress("orders", 1, 2))
    handle.load().manage_snapshots().rollback_to_snapshot(version).commit()
    assert handle.state("orders") == 1
    handle.append(row("again"), "run-1")
    handle.append(row("second"), "run-2", Progress("orders", 1, 2))
    assert notes(handle) == ["first", "second"]


def test_a_version_beside_the_line_has_the_commits_that_it_had(handle):
    handle.append(row("first"), "run-1")
    first = history(handle)[0].snapshot_id
    handle.append(row("beside"), "run-2")
    tag(handle, "beside")
    rollback(handle, first)
    handle.append(row("other"), "run-3")
    handle.append(row("other"), "run-4")
    expire(handle, FAR)
    rollback(handle, "beside")  # nobody knows any more whether it was in the line
    for again in ("run-1", "run-2"):
        handle.append(row("again"), again)
    assert notes(handle) == ["beside", "first"]
    handle.append(row("third"), "run-3")
    assert notes(handle) == ["beside", "first", "third"]


# Progress


def test_the_state_of_a_source_is_committed_with_its_rows(handle):
    assert handle.state("orders") is None
    shards = {"shards": {"shard-1": 49_640_000_000_000_000_000_000_000_000_000_000_001}}
    handle.append(row("first"), "orders@0", Progress("orders", None, shards))
    handle.append(row("second"), "clicks@0", Progress("clicks", None, "to 2026-01-01"))
    expire(handle, FAR)
    assert handle.state("orders") == shards
    assert handle.state("clicks") == "to 2026-01-01"
    # It has moved on, and no row of whoever did not see it is there.
    with pytest.raises(NotCommittedError, match="has taken `orders` on"):
        handle.append(row("lost"), "orders@1", Progress("orders", None, 1))
    # The same commit again is there, whatever it began from.
    handle.append(row("again"), "orders@0", Progress("orders", None, shards))
    handle.append(row("third"), "orders@1", Progress("orders", shards, None))
    assert handle.state("orders") is None
    assert notes(handle) == ["first", "second", "third"]


def test_a_commit_takes_all_its_sources_on_or_none(handle):
    shards = [Progress(f"shard/{number}", None, {"at": number}) for number in range(3)]
    handle.append(row("first"), "a", *shards, Progress("exports", None, "until"))
    assert handle.states() == {"exports": "until", **{f"shard/{n}": {"at": n} for n in range(3)}}
    # One has moved on, and one is gone: none of the three is taken on.
    handle.append(
        rows(),
        "b",
        Progress("shard/1", {"at": 1}, {"at": 9}),
        Progress("shard/2", {"at": 2}, None),
    )
    before = handle.states()
    with pytest.raises(NotCommittedError, match="has taken `shard/1`, `shard/2` on"):
        handle.append(
            row("lost"), "c", *(Progress(f"shard/{n}", {"at": n}, {"at": 5}) for n in range(3))
        )
    assert handle.states() == before == {
        "exports": "until", "shard/0": {"at": 0}, "shard/1": {"at": 9}
    }  # fmt: skip
    assert notes(handle) == ["first"]
    with pytest.raises(ConfigError, match="names one source twice"):
        handle.append(row("lost"), "d", Progress("new", None, 1), Progress("new", None, 2))


@pytest.mark.parametrize("nothing", [rows(), [], iter([pa.RecordBatch.from_pylist([], COLUMNS)])])
def test_a_piece_without_rows_takes_its_source_on(handle, nothing):
    handle.append(row("first"), "orders@0", Progress("orders", None, 1))
    handle.append(nothing, "orders@1", Progress("orders", 1, 2))
    assert handle.state("orders") == 2
    assert notes(handle) == ["first"]
    assert [info.rows for info in history(handle)] == [1, 1]


def test_a_table_without_rows_takes_progress(handle):
    handle.append(rows(), "orders@0", Progress("orders", None, 1))
    assert handle.state("orders") == 1
    handle.append(row("first"), "orders@1", Progress("orders", 1, 2))
    expire(handle, FAR)
    assert (notes(handle), handle.state("orders")) == (["first"], 2)


def test_two_writers_of_one_source_of_whom_one_comes_first(tmp_path, handle):
    """The other one has written its files by then; they are deleted."""

    class Slow(type(handle)):
        def commit_files(self, files, change, commit_id):
            handle.append(row("first"), "a", Progress("orders", None, "a"))
            return super().commit_files(files, change, commit_id)

    slow = Slow(handle.address, handle.name, handle.settings)
    with pytest.raises(NotCommittedError, match="Nothing was committed"):
        slow.append(row("lost"), "b", Progress("orders", None, "b"))
    assert (notes(handle), handle.state("orders")) == (["first"], "a")
    assert sum(1 for _ in tmp_path.rglob("*.parquet")) == 1


def test_two_sources_at_once_lose_nothing(handle):
    """Also in a table of others, whose commits pyiceberg would repeat by itself."""

    class Slow(type(handle)):
        def commit_files(self, files, change, commit_id):
            handle.append(row("clicks"), "clicks@0", Progress("clicks", None, 1))
            return super().commit_files(files, change, commit_id)

    with handle.load().transaction() as transaction:
        transaction.remove_properties("commit.retry.num-retries")
    slow = Slow(handle.address, handle.name, handle.settings)
    slow.append(row("orders"), "orders@0", Progress("orders", None, 1))
    assert notes(handle) == ["clicks", "orders"]
    assert (handle.state("orders"), handle.state("clicks")) == (1, 1)


def test_a_commit_of_before_a_conflict_is_not_made_with_a_ledger_of_before(handle):
    """The table is changed between its loading and the commit."""

    class Stale(type(handle)):
        def load(self):
            table = super().load()
            if loads.pop():
                handle.append(row("clicks"), f"clicks@{len(loads)}")
            return table

    with handle.load().transaction() as transaction:
        transaction.remove_properties("commit.retry.num-retries")
    loads = [False, False, True, False]  # the last first: of the files, and of the first attempt
    stale = Stale(handle.address, handle.name, handle.settings)
    stale.append(row("orders"), "orders@0", Progress("orders", None, 1))
    assert loads == [False]
    assert notes(handle) == ["clicks", "orders"]
    expire(handle, FAR)
    handle.append(row("again"), "clicks@2")
    assert notes(handle) == ["clicks", "orders"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (float("nan"), "not what JSON holds"),
        ({"at": dt.date(2026, 1, 1)}, "not what JSON holds"),
        ("a" * 300_000, r"300,\d+ bytes, and 262,144 is the most"),
    ],
)
def test_a_state_that_cannot_be_kept(handle, state, said):
    with pytest.raises(ConfigError, match=said):
        handle.append(row("lost"), "orders@0", Progress("orders", None, state))
    assert (history(handle), handle.state("orders")) == ([], None)


def test_progress_needs_an_id(handle):
    with pytest.raises(ConfigError, match="lack a `commit_id`"):
        handle.append(row("lost"), None, Progress("orders", None, 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read: Expecting"),
        ("{}", "cannot be read: 'version'"),
        (
            '{"version": 2, "ids": "", "states": {}, "commit": "a", "first": 1, "last": 1}',
            "is of version 2, and 1 is read here",
        ),
    ],
)
def test_a_ledger_that_is_not_read(handle, text, said):
    handle.append(row("first"), "run-1")
    with handle.load().transaction() as transaction:
        transaction.set_properties({LEDGER: text})
    with pytest.raises(SourceReadError, match=said):
        handle.state("orders")
    with pytest.raises(SourceReadError, match=said):
        handle.append(row("lost"), "run-2")
    # Whoever needs none goes on.
    handle.append(row("second"))
    optimize(handle)
    assert notes(handle) == ["first", "second"]


# Batches


SMALL_FILES = {"write.target-file-size-bytes": "5000"}
"""As many bytes of batches are held at a time."""


def test_batches_are_written_as_they_come_in_one_commit(tmp_path):
    handle = new_table(tmp_path, "day", **SMALL_FILES)
    made = [row(f"{number:03}", number % 40) for number in range(300)]
    batches = [batch for table in made for batch in table.to_batches()]
    handle.append(iter(batches), "export@0", Progress("export", None, "done"))
    assert [info.rows for info in history(handle)] == [300]
    assert history(handle)[0].files > 4  # of two days
    found = handle.load().scan().to_arrow().sort_by(SEQUENCE)
    # The later row of equal ones wins by its sequence.
    assert found.column("note").to_pylist() == [f"{number:03}" for number in range(300)]
    handle.append(iter(batches), "export@0", Progress("export", None, "done"))
    assert [info.rows for info in history(handle)] == [300]


def test_batches_that_end_in_an_error_leave_nothing(tmp_path):
    handle = new_table(tmp_path, **SMALL_FILES)
    seen: list[int] = []

    def some(*more):
        for number in range(500):
            yield from row("first", number).to_batches()
        seen.append(sum(1 for _ in tmp_path.rglob("*.parquet")))
        if not more:
            raise OSError("the export cannot be read")
        yield from more

    with pytest.raises(OSError, match="the export cannot be read"):
        handle.append(some(), "export@0")
    with pytest.raises(ColumnNotFoundError, match="no columns"):
        handle.append(some(pa.RecordBatch.from_pylist([{"colour": "red"}])), "export@1")
    assert min(seen) > 1  # files were there by then
    assert history(handle) == []
    assert [*tmp_path.rglob("*.parquet")] == []


# The example of the docs


SNIPPET = Path(__file__).parents[2] / "docs" / "snippets" / "offline" / "append_once.py"


def test_the_example_appends_a_day_each_time(tmp_path, monkeypatch):
    repo = tmp_path / "feature_repo"
    repo.mkdir()
    write_repo_yaml(repo, project="shop", online_store={"type": "sqlite", "path": "online.db"})
    columns = pa.schema(
        [
            ("customer_id", pa.int64()),
            ("event_timestamp", pa.timestamp("us", "UTC")),
            ("spend", pa.float64()),
        ]
    )
    handle = new_table(
        tmp_path, keys=("customer_id",), columns=columns, times=("event_timestamp", None)
    )
    source = source_of(tmp_path, timestamp_field="event_timestamp", created_timestamp_column=None)
    customer = Entity(name="c", join_keys=["customer_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="customer_orders",
        entities=[customer],
        schema=[Field(name="spend", dtype=Float64)],
        source=source,
    )
    FeatureStore(str(repo)).apply([customer, view])
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        runpy.run_path(str(SNIPPET))
        expire(handle, FAR)
    found = handle.load().scan().to_arrow()
    assert sorted(
        moment.date().isoformat() for moment in found["event_timestamp"].to_pylist()
    ) == [
        "2026-01-11",
        "2026-01-12",
    ]
    assert handle.state("daily orders") == "2026-01-12"
