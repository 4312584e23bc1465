"""What entity rows ask of one view: keys and bounds of time, on the axes of its history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.offline.keys import check_joinable, compared_type
from feast_dynamo_ext.offline.times import HIGHEST, LOWEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feast_dynamo_ext.offline.entities.rows import EntityRows
    from feast_dynamo_ext.offline.join.narrow import History


@dataclass(frozen=True)
class Asked:
    """One entry an entity row.

    Attributes:
        keys: columns of join keys, in the types that are compared.
        latest: the last event time that is seen.
        earliest: the first event time that is seen, by the ttl.
        known: the last created time that is seen; None where created time does not count.
        times: the entity rows' own times, in whatever unit: all of these ascend with them.
        blind: rows that see nothing, since all that they would see is after the end of the axis.
        order: equal for what puts the same entity rows in the same order.
    """

    keys: tuple[pa.Array, ...]
    latest: NDArray[np.int64]
    earliest: NDArray[np.int64]
    known: NDArray[np.int64] | None
    times: NDArray[np.int64]
    blind: NDArray[np.bool_]
    order: tuple[Any, ...] = ()

    @classmethod
    def of(cls, entities: EntityRows, history: History, *, created_by_entity_time: bool) -> Asked:
        """What entity rows ask of a history.

        Raises:
            EntityRowsError: a join key is missing or cannot be compared with the source's.
            ColumnTypeError: the source's column cannot be a key.
        """
        view, axis = history.view, history.axis
        entities.require([column for column, _ in view.keys], view.view)
        keys = [_key(entities, history, *pair) for pair in view.keys]
        if not keys:
            keys.append(pa.array(np.zeros(len(entities.times), dtype=np.int64)))
        latest = axis.floor(entities.times, entities.unit)
        earliest, beyond = np.full(len(latest), LOWEST), np.zeros(len(latest), dtype=bool)
        if view.ttl:
            earliest, beyond = axis.ago(entities.times, entities.unit, view.ttl)
            latest[beyond], earliest[beyond] = LOWEST, HIGHEST
        known = None
        if created_by_entity_time and history.created_axis is not None:
            known = history.created_axis.floor(entities.times, entities.unit)
        types = tuple((ours, key.type) for (ours, _), key in zip(view.keys, keys, strict=False))
        order = axis, types, view.ttl if beyond.any() else None
        return cls(tuple(keys), latest, earliest, known, entities.times, beyond, order)

    def table(self) -> pa.Table:
        """The columns k0, k1 ..., hi, lo, known (if it counts) and r, their row."""
        columns: dict[str, Any] = {f"k{index}": key for index, key in enumerate(self.keys)}
        columns |= {"hi": self.latest, "lo": self.earliest}
        if self.known is not None:
            columns["known"] = self.known
        columns["r"] = np.arange(len(self.latest), dtype=np.int64)
        return pa.table(columns)


def _key(entities: EntityRows, history: History, ours: str, theirs: str) -> pa.Array:
    stored = history.source.schema.field(theirs).type
    given = entities.table.column(ours).type
    check_joinable(ours, given, theirs, stored)
    if pa.types.is_null(given):
        return pa.nulls(len(entities.times), compared_type(stored))
    column = entities.key(ours, history.view.view)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
