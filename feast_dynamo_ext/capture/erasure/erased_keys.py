"""Who was erased, so that no export of before brings them back; as salted digests, not by name.

A table beside the history, `<name>_erased`, has a row for each erasure. It outlives the history,
where that is dropped and made anew from old exports. Of somebody who was erased at an instant::

    record                                  rows
    ------                                  ----
    written before it                       none: dropped, and counted
    put, written since                      kept: the item is in the table anew
    tombstone, written since                kept where the history has a put that it ends; else it
                                            holds what was erased, and is dropped
    quarantined, written since              kept without its image from before the change
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.capture.erasure.person import canonical, columns_of_history, digest, texts_of
from feast_dynamo_ext.capture.values.attribute_types import MOMENT, CapturedColumns
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE, Converted
from feast_dynamo_ext.capture.values.item_values import item_text
from feast_dynamo_ext.columns import CHANGE, PUT, WRITTEN
from feast_dynamo_ext.errors import FeastDynamoError, SourceNotFoundError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors, opened
from feast_dynamo_ext.parquet.iceberg.erase import Keys, rows_of
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout, create_table

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.capture.erasure.person import Person
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle


logger = logging.getLogger(__name__)

ERASED_SUFFIX = "_erased"
"""How the name of the table of who was erased ends."""

SALT = "feast-dynamo.salt"
"""Property of that table, by which its digests are made."""

ERASED = pa.schema(
    [
        pa.field("erased_at", MOMENT, nullable=False),
        pa.field("columns", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)


def note_erased(handle: TableHandle, person: Person, at: dt.datetime) -> None:
    """Note that somebody is erased, before anything of them is.

    Args:
        handle: of the table, which is made where there is none.
        person: who.
        at: what was written before is not captured any more.

    Raises:
        OfflineStoreError: the catalog refuses. AwsError: AWS did.
    """
    from pyiceberg.exceptions import TableAlreadyExistsError

    try:
        table = handle.load()
    except SourceNotFoundError:
        layout = TableLayout(("digest",), "erased_at", None, "none")
        with catalog_errors(handle.address, handle.name):
            catalog = opened(handle.address, handle.settings)
            # Another process may make it at the same time.
            with contextlib.suppress(TableAlreadyExistsError):
                create_table(
                    catalog, handle.name, ERASED, layout, further={SALT: secrets.token_hex(16)}
                )
        table = handle.load()
    names = sorted(person.names)
    texts = dict(zip(person.names, person.texts, strict=True))
    who = digest(_salt(table), names, [texts[name] for name in names])
    row = {"erased_at": [at], "columns": [json.dumps(names)], "digest": [who]}
    # One of the same second is the same erasure, tried again.
    handle.append(pa.table(row, schema=ERASED), f"erase/{who}/{at.isoformat()}")


def _salt(table: Any) -> bytes:
    return bytes.fromhex(table.properties[SALT])


@dataclass(frozen=True)
class ErasedKeys:
    """Who was erased from a history.

    Attributes:
        history: of the history table.
        columns: of the history.
        salt: of the digests.
        known: by the names of columns: digest -> when, microseconds since 1970.
    """

    history: TableHandle
    columns: CapturedColumns
    salt: bytes
    known: Mapping[tuple[str, ...], Mapping[str, int]] = field(repr=False)

    @classmethod
    def read(
        cls, handle: TableHandle, history: TableHandle, source: DynamoDBTableSource
    ) -> ErasedKeys | None:
        """Those of a source; None where nobody was ever erased.

        Raises:
            OfflineStoreError: the table cannot be read. AwsError: AWS refused.
        """
        try:
            table = handle.load()
        except SourceNotFoundError:
            return None
        with catalog_errors(handle.address, handle.name):
            rows = table.scan(selected_fields=tuple(ERASED.names)).to_arrow()
        known: dict[tuple[str, ...], dict[str, int]] = {}
        moments = rows["erased_at"].cast(pa.int64()).to_pylist()
        for names, who, moment in zip(
            rows["columns"].to_pylist(), rows["digest"].to_pylist(), moments, strict=True
        ):
            of_names = known.setdefault(tuple(json.loads(names)), {})
            of_names[who] = max(moment, of_names.get(who, moment))
        columns = columns_of_history(source, history.load())
        return cls(history, columns, _salt(table), known)

    def without(self, part: Converted) -> tuple[Converted, int]:
        """Records without what was erased, and how many rows and records that were."""
        rows, quarantine = part.rows, part.quarantine
        for names, known in self.known.items():
            if set(names) <= set(rows.schema.names):
                rows = self._kept_rows(rows, names, known)
                quarantine = self._kept_records(quarantine, names, known)
        dropped = part.rows.num_rows - rows.num_rows
        dropped += part.quarantine.num_rows - quarantine.num_rows
        return Converted(rows, quarantine, part.records), dropped

    def without_old_puts(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows without puts of before an erasure; what ends an item is kept."""
        for names, known in self.known.items():
            written = _micros(rows.column(WRITTEN))
            is_put = np.asarray(pc.equal(rows.column(CHANGE), PUT))
            places = np.flatnonzero((written < max(known.values())) & is_put)
            if len(places):
                some = rows.select(list(names)).take(pa.array(places))
                moments = [known.get(who, -1) for who in self._digests(some, names)]
                kept = np.ones(rows.num_rows, dtype=bool)
                kept[places] = written[places] >= np.array(moments, np.int64)
                rows = rows.filter(pa.array(kept))
        return rows

    # Rows

    def _kept_rows(
        self, rows: pa.RecordBatch, names: Sequence[str], known: Mapping[str, int]
    ) -> pa.RecordBatch:
        written = _micros(rows.column(WRITTEN))
        is_put = np.asarray(pc.equal(rows.column(CHANGE), PUT))
        places = np.flatnonzero((written < max(known.values())) | ~is_put)
        if not len(places):
            return rows
        some = rows.select(list(names)).take(pa.array(places))
        moments = np.array([known.get(who, -1) for who in self._digests(some, names)], np.int64)
        theirs, moments = places[moments >= 0], moments[moments >= 0]
        before = written[theirs] < moments
        gone = list(theirs[before])
        later = theirs[~before]  # tombstones, and puts of another who was erased before
        tombstones = later[~is_put[later]]
        if len(tombstones):
            ended = rows.take(pa.array(tombstones))
            gone += list(tombstones[~self._end_puts(ended, rows)])
        kept = np.ones(rows.num_rows, dtype=bool)
        kept[gone] = False
        return rows if kept.all() else rows.filter(pa.array(kept))

    def _digests(self, rows: pa.RecordBatch, names: Sequence[str]) -> list[str]:
        seen: dict[tuple[Any, ...], str] = {}
        found = []
        for values in zip(*(rows.column(name).to_pylist() for name in names), strict=True):
            who = seen.get(values)
            if who is None:
                has_all = all(value is not None for value in values)
                who = digest(self.salt, names, list(map(canonical, values))) if has_all else ""
                seen[values] = who
            found.append(who)
        return found

    def _end_puts(self, tombstones: pa.RecordBatch, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which tombstones end a put that is in the history, or comes with them."""
        keys, time = list(self.columns.keys), self.columns.event_time
        items = Keys(pa.Table.from_batches([tombstones.select(keys)]).group_by(keys).aggregate([]))
        names = list(dict.fromkeys([*keys, time, WRITTEN, CHANGE]))
        there = [batch.filter(pa.array(items.are_in(batch))).select(names)]
        there += [*rows_of(self.history, items, names)]
        puts: dict[tuple[Any, ...], list[tuple[Any, Any]]] = {}
        for some in there:
            for row in some.to_pylist():
                if row[CHANGE] == PUT:
                    key = tuple(row[name] for name in keys)
                    puts.setdefault(key, []).append((row[WRITTEN], row[time]))
        # Of one moment an update has a put of its own, of another event time.
        return np.array(
            [
                any(
                    written < row[WRITTEN] or (written == row[WRITTEN] and event == row[time])
                    for written, event in puts.get(tuple(row[name] for name in keys), ())
                )
                for row in tombstones.select(names).to_pylist()
            ],
            bool,
        )

    # Quarantine

    def _kept_records(
        self, quarantine: pa.RecordBatch, names: Sequence[str], known: Mapping[str, int]
    ) -> pa.RecordBatch:
        if not quarantine.num_rows:
            return quarantine
        own = {column.name: column for column in self.columns.columns}
        columns = CapturedColumns(
            tuple(own[name] for name in names), self.columns.keys, self.columns.event_time
        )
        kept = []
        for row, written in zip(
            quarantine.to_pylist(), _micros(quarantine.column(WRITTEN)).tolist(), strict=True
        ):
            record = json.loads(row["item"])
            people = (digest(self.salt, names, texts) for texts in texts_of(record, columns))
            moments = [known[who] for who in people if who in known]
            if moments and (written < max(moments) or row[CHANGE] != PUT):
                continue
            if moments and record.pop("OldImage", None) is not None:
                row["item"] = item_text(record)
            kept.append(row)
        return pa.RecordBatch.from_pylist(kept, QUARANTINE)


def _micros(column: pa.Array) -> NDArray[np.int64]:
    return np.asarray(column.cast(MOMENT).cast(pa.int64()))


@dataclass
class ErasedLately:
    """Who was erased, read once a minute: for who brings changes online at once.

    A stream delivers changes for a day: one of before an erasure must not go online after it.

    Attributes:
        read: reads who was erased; None for nobody.
        every_s: how long that is taken to be so.
        clock: seconds of a monotonic clock.
    """

    read: Callable[[], ErasedKeys | None]
    every_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _known: ErasedKeys | None = None
    _until_s: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def without_old_puts(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """See `ErasedKeys.without_old_puts`. What cannot be read is taken to be as it was."""
        with self._lock:
            if self._until_s is None or self.clock() >= self._until_s:
                try:
                    self._known = self.read()
                except FeastDynamoError as error:
                    logger.warning("who was erased cannot be read, and may go online: %s", error)
                self._until_s = self.clock() + self.every_s
            known = self._known
        return rows if known is None else known.without_old_puts(rows)
