"""Captures a small table by scanning it: what is there is compared with what its history says.

For tables without point-in-time recovery. A scan takes read units of the table, is of no single
moment, and does not see what came and went between two of them. What it finds counts as written
when it began::

    items, page by page -> rows
    newest rows of the history -> differences: puts, moves, and deletions of what is gone
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from feast_dynamo_ext import aws
from feast_dynamo_ext.capture.exports.ended_items import (
    ITEM,
    WHEN,
    ends,
    quarantined_ends,
    quarantined_puts,
)
from feast_dynamo_ext.capture.exports.windows import CaptureState
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE, RecordReader, as_of
from feast_dynamo_ext.capture.values.item_values import ItemReader, Misfit
from feast_dynamo_ext.columns import CHANGE, MOVE, PUT, WRITTEN
from feast_dynamo_ext.cost.prices import READ_UNITS
from feast_dynamo_ext.errors import SourceNotFoundError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE
from feast_dynamo_ext.retrieval.engines.sql_dialects import DUCKDB

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast_dynamo_ext.capture.dynamo_table import DynamoTable
    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns

PAGE_UNITS = 128
"""Of a page of 1 MB, read as it may be stale."""


@dataclass(frozen=True)
class Scanned:
    """What a scan brought.

    Attributes:
        items: that the table has.
        rows: that were new to the history: puts, moves and deletions.
        quarantined: items that do not fit, and were not in quarantine before.
        units: read units that were consumed.
        until: when it began.
    """

    items: int
    rows: int
    quarantined: int
    units: float
    until: dt.datetime

    @property
    def dollars(self) -> float:
        """What the read units cost on demand."""
        return READ_UNITS.cost(self.units)


@dataclass
class _Pages:
    """Reads a table's items by several threads, at most so many units a second."""

    client: Any
    table: DynamoTable
    segments: int
    units_per_s: float | None
    read: Callable[[int], object]
    units: float = 0.0
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def items(self) -> list[dict[str, Any]]:
        """All items."""
        with ThreadPoolExecutor(self.segments) as threads:
            found = list(threads.map(self._segment, range(self.segments)))
        return [each for segment in found for each in segment]

    def _segment(self, number: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        request: dict[str, Any] = {
            "TableName": self.table.name,
            "Segment": number,
            "TotalSegments": self.segments,
            "ReturnConsumedCapacity": "TOTAL",
        }
        while True:
            self._wait()
            with aws.translated("dynamodb", f"table {self.table.name}"):
                page = self.client.scan(**request)
            found += page["Items"]
            self._consumed(page.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0))
            self.read(len(page["Items"]))
            if "LastEvaluatedKey" not in page:
                return found
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _wait(self) -> None:
        if self.units_per_s is None:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + PAGE_UNITS / self.units_per_s
        time.sleep(start - now)

    def _consumed(self, units: float) -> None:
        with self._lock:
            self.units += units
            if self.units_per_s is not None:
                self._free_at += (units - PAGE_UNITS) / self.units_per_s


def scan(
    client: Any,
    table: DynamoTable,
    columns: CapturedColumns,
    history: CapturedHistory,
    *,
    segments: int = 4,
    units_per_s: float | None = None,
    read: Callable[[int], object] = lambda _: None,
) -> Scanned:
    """Scan a table, and add what its history does not say yet.

    Items and the newest row of each are held in memory.

    Args:
        client: boto3's of DynamoDB.
        table: the table.
        columns: of the history.
        history: of the source.
        segments: read at once.
        units_per_s: read units a second, at most; None for no limit.
        read: called with numbers of items as they are read.

    Raises:
        CaptureError: another run captures the source.
        AwsError: DynamoDB refuses.
    """
    state = history.state()
    begun = dt.datetime.now(dt.timezone.utc)
    pages = _Pages(client, table, segments, units_per_s, read)
    items = pages.items()
    # What changed meanwhile was written later: the next scan, or the table's stream, says so.
    moment = as_of(begun)
    converted = RecordReader(columns).converted(
        [{"Item": item} for item in items],
        [moment] * len(items),
        [f"scan of {table.name} at {begun.isoformat()}: item {at}" for at in range(len(items))],
    )
    rows = _differences(converted.rows, _there(columns, items), columns, history, moment)
    new = _not_known(converted.quarantine, history)
    until = begun.replace(microsecond=0)
    before = state or CaptureState(table.id, table.keys)
    after = replace(before, table_id=table.id, keys=table.keys, until=until)
    history.add(rows, new, state, after, f"{table.id}/scan-{begun.isoformat()}")
    return Scanned(len(items), rows.num_rows, new.num_rows, pages.units, until)


def _there(columns: CapturedColumns, items: list[dict[str, Any]]) -> pa.Table:
    """Keys of all items, those in quarantine too."""
    reader = ItemReader(columns.of_keys)
    found = [reader.values(item) for item in items]
    keys = [key for key in found if not isinstance(key, Misfit)]
    return pa.Table.from_arrays(reader.arrays(keys), schema=columns.of_keys.schema)


def _differences(
    seen: pa.RecordBatch,
    there: pa.Table,
    columns: CapturedColumns,
    history: CapturedHistory,
    moment: int,
) -> pa.Table:
    """Rows by which the history becomes what was seen."""
    found = history.handle.load().scan().to_arrow()
    names = [column.name for column in columns.columns]
    schema = columns.history_schema
    found = found.select([*schema.names, SEQUENCE])
    keys = ", ".join(map(DUCKDB.quoted, columns.keys))
    time_ = DUCKDB.quoted(columns.event_time)
    listed = ", ".join(f"s.{DUCKDB.quoted(name)}" for name in names)
    before = ", ".join(f"t.{DUCKDB.quoted(name)}" for name in names)
    differs = " OR ".join(
        f"s.{DUCKDB.quoted(name)} IS DISTINCT FROM t.{DUCKDB.quoted(name)}"
        for name in names
        if name not in columns.keys
    )
    # A move says nothing of the item: its put does.
    newest = (
        f"SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY "  # noqa: S608 - quoted
        f"{WRITTEN} DESC, {SEQUENCE} DESC) AS _feast_rank FROM found WHERE {CHANGE} <> '{MOVE}') "
        "WHERE _feast_rank = 1"
    )
    # What was written since the scan began is newer than what it saw.
    is_older = f"t.{WRITTEN} <= make_timestamptz({moment})"
    aside = [
        columns.of_keys.schema.append(pa.field(WHEN, pa.int64()))
        .append(pa.field(ITEM, pa.string()))
        .empty_table(),
        *quarantined_puts(history.quarantine, columns, moment),
    ]
    with duckdb.connect() as duck:
        duck.execute("SET TimeZone = 'UTC'")
        duck.register("found", found)
        duck.register("seen", pa.Table.from_batches([seen]))
        duck.register("there", there)
        duck.register("aside", pa.concat_tables(aside))
        duck.execute(f"CREATE TEMP TABLE last AS {newest}")
        duck.execute(f"CREATE TEMP TABLE newest AS FROM last WHERE {CHANGE} = '{PUT}'")
        # Moves first: a put of the same moment is what counts then.
        moved = duck.sql(
            f"SELECT {before}, s.{WRITTEN}, '{MOVE}', NULL FROM seen AS s JOIN newest AS t "  # noqa: S608 - quoted
            f"USING ({keys}) WHERE s.{time_} <> t.{time_} AND {is_older}"
        ).to_arrow_table()
        gone = duck.sql(
            f"SELECT t.* FROM newest AS t ANTI JOIN there USING ({keys}) WHERE {is_older}"  # noqa: S608 - quoted
        ).to_arrow_table()
        # What is in quarantine may become a row once it is mended.
        misfits = duck.sql(
            f"SELECT max_by({ITEM}, {WHEN}) FROM aside AS a ANTI JOIN there USING ({keys}) "  # noqa: S608 - quoted
            f"LEFT JOIN last AS t USING ({keys}) GROUP BY {keys} HAVING max({WRITTEN}) IS NULL "
            f"OR (max({CHANGE}) <> '{PUT}' AND epoch_us(max({WRITTEN})) <= max({WHEN}))"
        ).fetchall()
        new = duck.sql(
            f"SELECT {listed}, s.{WRITTEN}, s.{CHANGE}, NULL FROM seen AS s LEFT JOIN newest AS t "  # noqa: S608 - quoted
            f"USING ({keys}) "
            f"WHERE t._feast_rank IS NULL OR (({differs or 'false'}) AND {is_older})"
        ).to_arrow_table()
    ended = quarantined_ends(columns, [item for (item,) in misfits], moment)
    return pa.concat_tables(
        [
            moved.rename_columns(schema.names).cast(schema),
            ends(columns, gone, moment),
            pa.Table.from_batches([ended]),
            new.rename_columns(schema.names).cast(schema),
        ]
    )


def _not_known(quarantine: pa.RecordBatch, history: CapturedHistory) -> pa.Table:
    """Items that are not in quarantine already."""
    found = pa.Table.from_batches([quarantine], QUARANTINE)
    if not found.num_rows:
        return found
    handle = history.quarantine
    try:
        table = handle.load()
    except SourceNotFoundError:
        return found
    with catalog_errors(handle.address, handle.name):
        known = set(table.scan(selected_fields=("item",)).to_arrow()["item"].to_pylist())
    return found.filter(pa.array([item not in known for item in found["item"].to_pylist()]))
