"""What a change of an item adds to its table's history.

A row of history is a `put`, what the item is from then on, or a tombstone of an event::

    before  after           rows
    ------  -----           ----
    -       E: item         put at E
    E       E: item         put at E                              (the newest written wins)
    E       F: item         move at E, put at F                   (the event at E is no more; E may
                                                                  be F: see `event_columns`)
    E       -               delete at E, with the values before
    ?       -               delete at the moment of the deletion: only the key is known

A deletion at or after the item's own TTL is `expire`. The event time of a tombstone is that of the
event it ends, so that it stands in the same partition; `_feast_written_at` says when. What an item
was before a change never goes to quarantine: values that do not fit are null in a tombstone.

Images are those of increments and of streams alike: ``{"Keys": ..., "OldImage": ..., "NewImage":
...}``; a record of a full export, ``{"Item": ...}``, is a put.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import numbers
from feast_dynamo_ext.capture.values.attribute_types import (
    MOMENT,
    CapturedColumn,
    CapturedColumns,
    ValueKind,
)
from feast_dynamo_ext.capture.values.item_values import ItemReader, Misfit, item_text
from feast_dynamo_ext.columns import CHANGE, CHANGE_ID, DELETE, EXPIRE, MOVE, PUT, WRITTEN
from feast_dynamo_ext.timestamps import EPOCH, MICROSECOND

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from numpy.typing import NDArray

Record: TypeAlias = Mapping[str, Any]

SECOND = 1_000_000

QUARANTINE = pa.schema(
    [
        pa.field(WRITTEN, MOMENT, nullable=False),
        pa.field(CHANGE, pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("attribute", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field(CHANGE_ID, pa.string()),
    ]
)
"""Columns of a quarantine: `item` is the record as DynamoDB JSON, `origin` says where it was."""


def as_of(moment: datetime) -> int:
    """When what a table held at a moment counts as written, microseconds since 1970.

    That is just before the moment's second began. A stream gives whole seconds, rounded down: what
    it says of that second is later then, whichever of both comes into the history first.
    """
    return (moment - EPOCH) // MICROSECOND // SECOND * SECOND - 1


@dataclass(frozen=True)
class Images:
    """The same columns of several items, with those that there are.

    Attributes:
        arrays: the columns, null where there is no image.
        present: which there are.
    """

    arrays: list[pa.Array]
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class Converted:
    """What records became.

    Attributes:
        rows: of history; see `CapturedColumns.history_schema`.
        quarantine: what did not fit; see `QUARANTINE`.
        records: how many there were. Each is in `rows`, at least once, or in `quarantine`.
    """

    rows: pa.RecordBatch
    quarantine: pa.RecordBatch
    records: int


def before_columns(columns: CapturedColumns) -> CapturedColumns:
    """The columns that are read of an item before its change: all, none required, and its TTL."""
    own = [CapturedColumn(each.name, each.path, each.kind) for each in columns.columns]
    if columns.expiry is not None:
        seconds = ValueKind("int64", pa.int64(), ("N",), "Int64")
        own.append(CapturedColumn(TTL, (columns.expiry,), seconds))
    return CapturedColumns(tuple(own), columns.keys, columns.event_time, columns.expiry)


TTL = "_feast_ttl"


def change_rows(
    columns: CapturedColumns,
    written: NDArray[np.int64],
    keys: list[pa.Array],
    before: Images,
    after: Images,
    ids: pa.Array | None = None,
) -> pa.RecordBatch:
    """The rows of changes: all puts first; of a stream, in its order, a move before its put.

    The changes of an export are one an item, those of a stream may be several of one moment: then
    the order of the rows is what says which was the last.

    Args:
        columns: of the history.
        written: when each change was written, microseconds since 1970.
        keys: the key attributes' columns of all changes; see `CapturedColumns.of_keys`.
        before: of `before_columns`.
        after: of `columns`.
        ids: of the changes of a stream.
    """
    names = [column.name for column in columns.columns]
    at = names.index(columns.event_time)
    old_times, old_known = _times(before.arrays[at])
    new_times, _ = _times(after.arrays[at])
    old_known &= before.present
    is_other = old_times != new_times
    for place in (names.index(name) for name in columns.event_columns):
        is_other |= _differs(before.arrays[place], after.arrays[place])
    moved = before.present & after.present & old_known & is_other
    gone = ~after.present
    # Keys of a tombstone are those of the change; event times of its item, where it says them.
    key_names = [column.name for column in columns.of_keys.columns]
    if columns.event_time in key_names:
        key_times, key_known = _times(keys[key_names.index(columns.event_time)])
        times = np.where(old_known, old_times, np.where(key_known, key_times, written))
    else:
        times = np.where(old_known, old_times, written)
    ended = dict(zip(names, before.arrays, strict=False))
    ended |= dict(zip(key_names, keys, strict=True))
    ended[columns.event_time] = pa.array(times).cast(MOMENT)
    expired = _expired(columns, written, before)
    puts, moves = np.full(len(written), PUT), np.full(len(written), MOVE)
    ends, old = np.where(expired, EXPIRE, DELETE), list(ended.values())
    batches = [
        _batch(columns, after.arrays, written, puts, after.present, ids),
        _batch(columns, old, written, moves, moved, ids),
        _batch(columns, old, written, ends, gone, ids),
    ]
    rows = joined(batches, columns.history_schema)
    if ids is None:
        return rows
    # Twice its number, plus one for a put.
    places = [2 * np.flatnonzero(each) for each in (after.present, moved, gone)]
    places[0] += 1
    return rows.take(pa.array(np.argsort(np.concatenate(places), kind="stable")))


def put_rows(
    columns: CapturedColumns, arrays: list[pa.Array], written: NDArray[np.int64]
) -> pa.RecordBatch:
    """The rows of items as they are."""
    rows = len(written)
    return _batch(columns, arrays, written, np.full(rows, PUT), np.ones(rows, bool), None)


def _differs(before: pa.Array, after: pa.Array) -> NDArray[np.bool_]:
    """Where a value that there was is another one, or none; what there was not ended nothing."""
    same = pc.equal(before, after).fill_null(False)
    found: NDArray[np.bool_] = np.asarray(pc.and_not(before.is_valid(), same))
    return found


def _times(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    known: NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return numbers(array.cast(pa.int64())), known.copy()


def _expired(
    columns: CapturedColumns, written: NDArray[np.int64], before: Images
) -> NDArray[np.bool_]:
    if columns.expiry is None:
        return np.zeros(len(written), bool)
    ttl = before.arrays[-1]
    known = ttl.is_valid().to_numpy(zero_copy_only=False) & before.present
    expired: NDArray[np.bool_] = known & (numbers(ttl) <= written // SECOND)
    return expired


def _batch(
    columns: CapturedColumns,
    arrays: list[pa.Array],
    written: NDArray[np.int64],
    changes: NDArray[np.str_],
    which: NDArray[np.bool_],
    ids: pa.Array | None,
) -> pa.RecordBatch:
    if which.all():
        own = list(arrays)
    else:
        mask = pa.array(which)
        own = [array.filter(mask) for array in arrays]
        written, changes = written[which], changes[which]
        ids = None if ids is None else ids.filter(mask)
    own = own[: len(columns.columns)]
    own += [pa.array(written).cast(MOMENT), _words(changes)]
    own.append(pa.nulls(len(written), pa.string()) if ids is None else ids)
    schema = columns.history_schema
    return pa.RecordBatch.from_arrays(own, schema=schema)


def _words(changes: NDArray[np.str_]) -> pa.Array:
    first = changes[0] if len(changes) else PUT
    if (changes == first).all():
        return pa.repeat(pa.scalar(str(first)), len(changes))
    return pa.array(changes.tolist(), pa.string())


class RecordReader:
    """Makes rows of records one by one: of streams, of what is tried again, of doubtful lines.

    Args:
        columns: of the history.
    """

    def __init__(self, columns: CapturedColumns) -> None:
        self.columns = columns
        self.after = ItemReader(columns)
        self.before = ItemReader(before_columns(columns))
        self.keys = ItemReader(columns.of_keys)

    def converted(
        self,
        records: Sequence[Record],
        written: Sequence[int],
        origins: Sequence[str],
        ids: Sequence[str | None] | None = None,
    ) -> Converted:
        """The rows of records, and those that do not fit.

        Args:
            records: each `Item`, or `Keys` with `OldImage` and `NewImage` where there are any.
            written: when each was written, microseconds since 1970.
            origins: where each is from, for the quarantine.
            ids: of changes of a stream, whose rows are then in their order.
        """
        kept, bad = [], []
        each = zip(records, written, origins, ids or [None] * len(records), strict=True)
        for record, moment, origin, change_id in each:
            found = self._values(record)
            if isinstance(found, Misfit):
                bad.append({**_quarantined(record, moment, found, origin), CHANGE_ID: change_id})
            else:
                kept.append((change_id, moment, *found))
        return Converted(
            self._rows(kept, is_of_stream=ids is not None),
            pa.RecordBatch.from_pylist(bad, QUARANTINE),
            len(records),
        )

    def _values(self, record: Record) -> Misfit | tuple[Any, Any, Any]:
        """The values of keys, before and after; None for an image that is not there."""
        if "Item" in record:
            after = self.after.values(record["Item"])
            return after if isinstance(after, Misfit) else (None, None, after)
        keys = self.keys.values(record.get("Keys"))
        if isinstance(keys, Misfit):
            return keys
        old, new = record.get("OldImage"), record.get("NewImage")
        made = None if new is None else self.after.values(new)
        if isinstance(made, Misfit):
            return made
        return keys, None if old is None else self.before.values_that_fit(old), made

    def _rows(self, found: list[tuple[Any, ...]], *, is_of_stream: bool) -> pa.RecordBatch:
        written = np.array([moment for _, moment, *_ in found], np.int64)
        keys = [key for _, _, key, _, _ in found]
        if not is_of_stream and all(key is None for key in keys):
            return put_rows(
                self.columns, self.after.arrays([after for *_, after in found]), written
            )
        no_key = (None,) * len(self.keys.columns.columns)
        return change_rows(
            self.columns,
            written,
            self.keys.arrays([no_key if key is None else key for key in keys]),
            _images(self.before, [before for *_, before, _ in found]),
            _images(self.after, [after for *_, after in found]),
            pa.array([each for each, *_ in found], pa.string()) if is_of_stream else None,
        )


def _images(reader: ItemReader, values: list[Any]) -> Images:
    none = (None,) * len(reader.columns.columns)
    return Images(
        reader.arrays([none if value is None else value for value in values]),
        np.array([value is not None for value in values], bool),
    )


def _quarantined(record: Record, written: int, misfit: Misfit, origin: str) -> dict[str, Any]:
    is_put = "Item" in record or record.get("NewImage") is not None
    images = {
        name: record[name] for name in ("Item", "Keys", "OldImage", "NewImage") if name in record
    }
    return {
        WRITTEN: written,
        CHANGE: PUT if is_put else DELETE,
        "reason": misfit.reason,
        "attribute": misfit.attribute,
        "item": item_text(images),
        "origin": origin,
    }


def joined(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Batches of one schema as one."""
    found = [batch for batch in batches if batch.num_rows]
    if len(found) == 1:
        return found[0]
    if not found:
        return pa.RecordBatch.from_arrays(
            [pa.array([], field.type) for field in schema], schema=schema
        )
    return pa.concat_batches(found)
