"""Changes of a captured table whose items are events, as they go online: see `Series`.

Of each event the last change of a batch counts, in the order of the stream: it was put, or it is
no more, as its item was deleted or moved to another event. An old image says which event that was.
What an event is put or ended by says when it was written, so nothing older undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.columns import CHANGE, MOVE, PUT, WRITTEN, join_keys, stored_names
from feast_dynamo_ext.dynamo.encoding.requests import Deletions
from feast_dynamo_ext.timestamps import micros_of
from feast_dynamo_ext.view_settings import series_in, series_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from feast import RepoConfig
    from numpy.typing import NDArray

    from feast_dynamo_ext.columns import Tombstones
    from feast_dynamo_ext.dynamo.encoding.requests import EncodedRows
    from feast_dynamo_ext.dynamo.encoding.sort_keys import EventColumns
    from feast_dynamo_ext.materialize.newest_rows import Encoder


def event_columns(config: RepoConfig, views: Iterable[Any]) -> frozenset[str]:
    """Columns, beside the event time, by which views over a captured table tell its events apart.

    An update that changes one of them ends an event, as one that changes the event time does.

    Args:
        config: the repo's.
        views: over the table; those that keep the newest rows alone are passed over.

    Raises:
        OfflineStoreError, AwsError: see `series_in`.
    """
    found: set[str] = set()
    for view in views:
        series = series_in(config, view) if series_of(view) is not None else None
        if series is not None:
            stored = stored_names(view.batch_source)
            found |= {stored[name] for name in (*join_keys(view), *series.tie_breaker)}
    return frozenset(found)


def changed_events(
    encoder: Encoder, events: EventColumns, rule: Tombstones, rows: pa.RecordBatch
) -> pa.RecordBatch:
    """The rows of a batch that put or end events of a view.

    What does not say which event it ends, as a deletion without an old image, is left out: the
    next `feast materialize` finds it in the history.
    """
    is_put = pc.equal(rows.column(CHANGE), PUT)
    kinds = [PUT, MOVE, *(sorted(rule.ends) if rule.is_applied else ())]
    wanted = pc.is_in(rows.column(CHANGE), value_set=pa.array(kinds))
    for name in encoder.columns.keys:
        wanted = pc.and_(wanted, rows.column(name).is_valid())
    for name in events.series.tie_breaker:
        is_known = rows.column(events.stored[name]).is_valid()
        wanted = pc.and_(wanted, pc.or_(is_put, is_known))
    return rows.filter(wanted)


@dataclass(frozen=True)
class EventsPlan:
    """What is to be done with changes in a view that keeps every event.

    Attributes:
        rows: positions of those that are to be written.
        deleted: positions of those that say that their event is to be deleted.
        sorts: sort keys of all changes.
        expired: events that would be written, but are older than they are kept.
        ahead: events further in the future than may be written now.
    """

    rows: NDArray[np.int64]
    deleted: NDArray[np.int64]
    sorts: pa.LargeBinaryArray
    expired: int
    ahead: int

    @classmethod
    def from_changes(
        cls,
        encoder: Encoder,
        events: EventColumns,
        changes: pa.RecordBatch,
        keys: pa.LargeBinaryArray,
        latest_us: int | None,
    ) -> EventsPlan:
        """The plan of a batch.

        Args:
            encoder: of the view.
            events: the encoder's, which makes sort keys.
            changes: see `changed_events`, in the order of the stream.
            keys: their entity keys.
            latest_us: the last event time that may be written; None for no limit.

        Raises:
            ColumnTypeError: a tie-breaker is null, or a sort key would be too long.
        """
        event_us = changes.column(encoder.columns.event_time).cast(pa.int64())
        sorts = events.sort_keys(changes, event_us)
        pairs = zip(keys.to_pylist(), sorts.to_pylist(), strict=True)
        last = {pair: row for row, pair in enumerate(pairs)}
        counts = np.fromiter(sorted(last.values()), np.int64, len(last))
        is_put = np.asarray(pc.equal(changes.column(CHANGE), PUT))[counts]
        times = event_us.to_numpy(zero_copy_only=False)[counts]
        oldest = encoder.not_before()
        is_ahead = is_put & (times > latest_us) if latest_us is not None else ~is_put & is_put
        is_old = is_put & (times < micros_of(oldest)) if oldest is not None else ~is_put & is_put
        return cls(
            counts[is_put & ~is_ahead & ~is_old],
            counts[~is_put],
            sorts,
            int(is_old.sum()),
            int(is_ahead.sum()),
        )

    def encoded(
        self, encoder: Encoder, changes: pa.RecordBatch, keys: pa.LargeBinaryArray
    ) -> tuple[EncodedRows, Deletions]:
        """What is written, and what is deleted.

        Raises:
            OnlineStoreError, ColumnTypeError: see `Encoder`.
        """
        gone = pa.array(self.deleted)
        written = changes.column(WRITTEN).take(gone).cast(pa.int64())
        return (
            encoder(changes.take(pa.array(self.rows))),
            Deletions(keys.take(gone), written, self.sorts.take(gone)),
        )
