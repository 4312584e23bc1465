"""The matching of keys and times in DuckDB, in this process, by the statements of `sql`.

DuckDB sees narrow columns alone: keys in comparable types, times as integers, positions. It spills
to a folder of its own under `spill_folder` when the memory limit is reached, and never downloads
an extension.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.duckdb_connection import Limits, connected, registered
from feast_dynamo_ext.parquet.source import ROW
from feast_dynamo_ext.retrieval.engines import sql
from feast_dynamo_ext.retrieval.engines.base import NO_ROW, Newest
from feast_dynamo_ext.retrieval.engines.sql_dialects import DUCKDB
from feast_dynamo_ext.retrieval.eras import gone_by, with_eras
from feast_dynamo_ext.retrieval.inputs import History, MatchInput
from feast_dynamo_ext.retrieval.plan import without_eras
from feast_dynamo_ext.retrieval.ties import ranked_by_ties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    import duckdb
    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.engines.base import Matcher
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import ViewPlan


POSITIONS_AT_ONCE = 1 << 17

NARROW = f"(SELECT *, {DUCKDB.quoted(ROW)} AS r FROM history)"  # noqa: S608 - names of our own
"""The narrow columns of a history that is being read, as `sql` names them."""


@dataclass(frozen=True)
class DuckDbEngine(Limits):
    """Matches in DuckDB."""

    name: ClassVar[str] = "duckdb"

    def explain(self, entities: EntityRows, view: ViewPlan, source: ParquetSource) -> str:
        """See `Engine.explain`."""
        history = History.from_view(view, source)
        # Raises what matching would.
        MatchInput.from_entities(entities, history, created_by_entity_time=False)
        return "an ASOF join in DuckDB, which spills to disk"

    def matcher(self, entities: EntityRows, *, created_by_entity_time: bool) -> Matcher:
        """See `Engine.matcher`. DuckDB has threads of its own, `threads` of the settings."""

        def matched(view: ViewPlan, source: ParquetSource, threads: int) -> NDArray[np.int64]:
            history = with_eras(History.from_view(view, source), entities, self)
            rows = MatchInput.from_entities(
                entities, history, created_by_entity_time=created_by_entity_time
            )
            with connected(self, "The join") as connection:
                return _match(connection, rows, history, threads)

        return matched

    @contextlib.contextmanager
    def newest(
        self,
        view: ViewPlan,
        source: ParquetSource,
        start: datetime,
        end: datetime,
        not_before: datetime | None = None,
        scanned: Callable[[int], object] | None = None,
    ) -> Iterator[Newest]:
        """See `Engine.newest`."""
        hidden = gone_by(view, source, end, self) if view.has_eras else None
        source = source if view.has_eras else source.within(view.event_time, start, end)
        view = without_eras(view)
        left_out: list[int] = []
        history = replace(
            History.from_view(view, source),
            scanned=scanned,
            hidden=hidden,
            left_out=left_out.append,
        )
        rank = sql.winner_within(history, start, end, DUCKDB)
        has_ties = source.ties is not None
        newest = sql.newest(view, NARROW, _between(history, start, end), rank, with_keys=has_ties)
        with connected(self, "The join") as connection:
            incomplete = IncompleteRows(
                history.axis.first_at_or_after(start), history.axis.last_at_or_before(end)
            )
            text = f"CREATE TEMP TABLE newest AS {newest}"
            _read_history(connection, history, text, incomplete.count)
            incomplete.found -= sum(left_out)
            if has_ties:
                _decide_newest(connection, history, self.workers)
            alive = f"t >= {history.axis.first_at_or_after(not_before)}" if not_before else "true"
            ((read, keys_seen, kept),) = connection.execute(
                f"SELECT coalesce(sum(n), 0), count(*), count(*) FILTER ({alive}) FROM newest"  # noqa: S608 - names of our own
            ).fetchall()
            rows = connection.sql(
                f"SELECT r FROM newest WHERE {alive} ORDER BY r"  # noqa: S608 - as above
            ).to_arrow_reader(POSITIONS_AT_ONCE)
            positions = (batch.column(0).to_numpy() for batch in rows)
            expired = keys_seen - kept
            yield Newest(source, int(read), expired, kept, positions, incomplete.found)

    def within(
        self, view: ViewPlan, source: ParquetSource, start: datetime | None, end: datetime | None
    ) -> NDArray[np.int64]:
        """See `Engine.within`."""
        hidden = gone_by(view, source, end, self) if view.has_eras else None
        view = replace(without_eras(view), keys=(), key_kinds=())
        history = replace(History.from_view(view, source), hidden=hidden)
        with connected(self, "The join") as connection:
            _load(connection, history, _between(history, start, end))
            within = connection.execute("SELECT r FROM h ORDER BY r").fetchnumpy()["r"]
        return np.asarray(within, dtype=np.int64)


def _match(
    connection: duckdb.DuckDBPyConnection, rows: MatchInput, history: History, threads: int
) -> NDArray[np.int64]:
    with registered(connection, "entity_rows", rows.table()):
        connection.execute("CREATE TEMP TABLE e AS FROM entity_rows")
    _load(connection, history, sql.needed(history.view, "e"))
    known = rows.known is not None
    matching = sql.match(history.view, "e", "h", DUCKDB, known=known)
    connection.execute(f"CREATE TEMP TABLE w AS {matching}")
    matched = connection.execute("SELECT entity, position FROM w").fetchnumpy()
    found = np.full(len(rows.latest), NO_ROW, dtype=np.int64)
    found[matched["entity"]] = matched["position"]
    if history.source.ties is not None:
        tied = sql.tied_in_match(history.view, "w", "e", "h", known=known)
        entity, row = _decided(connection, tied, history, threads)
        found[entity] = row
    return found


def _decided(
    connection: duckdb.DuckDBPyConnection, tied: str, history: History, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of groups of equal rows each, and the row that wins."""
    pairs = connection.execute(tied).fetchnumpy()
    group, row = (np.asarray(pairs[name], dtype=np.int64) for name in "gr")
    order = np.lexsort((ranked_by_ties(history, threads)(group, row), group))
    group, row = group[order], row[order]
    last = np.append(group[1:] != group[:-1], True)[: len(group)]
    return group[last], row[last]


def _decide_newest(connection: duckdb.DuckDBPyConnection, history: History, threads: int) -> None:
    """Put the rows that `ties` decides for into the table of the newest rows."""
    _read_history(
        connection,
        history,
        f"CREATE TEMP TABLE tied AS {sql.tied_in_newest(history.view, NARROW, 'newest')}",
    )
    group, row = _decided(connection, "SELECT g, r FROM tied", history, threads)
    with registered(connection, "decided", pa.table({"g": group, "new": row})):
        connection.execute("UPDATE newest SET r = new FROM decided WHERE r = g")


def _load(connection: duckdb.DuckDBPyConnection, history: History, condition: str) -> None:
    """Read the history's narrow columns into table h: usable rows that meet a condition."""
    loaded = sql.load(history.view, NARROW, condition)
    _read_history(connection, history, f"CREATE TEMP TABLE h AS {loaded}")


def _read_history(
    connection: duckdb.DuckDBPyConnection,
    history: History,
    text: str,
    seen: Callable[[pa.RecordBatch], object] | None = None,
) -> None:
    """Run a statement that reads the narrow columns, as table `history`, once."""
    failures: list[Exception] = []
    reader = history.reader(failures)
    if seen is not None:
        reader = pa.RecordBatchReader.from_batches(reader.schema, _each_seen(reader, seen))
    with registered(connection, "history", reader, failures):
        connection.execute(text)


def _each_seen(
    batches: Iterable[pa.RecordBatch], seen: Callable[[pa.RecordBatch], object]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        seen(batch)
        yield batch


@dataclass
class IncompleteRows:
    """Counts rows without event time, and those of a range of event times that lack a key."""

    first: int
    last: int
    found: int = 0

    def count(self, batch: pa.RecordBatch) -> None:
        """Count those of a batch of narrow columns; costs nothing where no column has nulls."""
        times = batch.column("t")
        keys = [
            column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
            if name.startswith("k") and column.null_count
        ]
        if not keys and not times.null_count:
            return
        lacks_key = reduce(pc.or_, map(pc.is_null, keys), pa.scalar(value=False))
        is_within = pc.and_(pc.greater_equal(times, self.first), pc.less_equal(times, self.last))
        is_within = is_within.fill_null(fill_value=True)
        counts = pc.or_(pc.is_null(times), pc.and_(lacks_key, is_within))
        self.found += counts.true_count


def _between(history: History, start: datetime | None, end: datetime | None) -> str:
    axis = history.axis
    return sql.between(
        None if start is None else axis.first_at_or_after(start),
        None if end is None else axis.last_at_or_before(end),
    )
