"""From vectors to Feast's GetOnlineFeaturesResponse, a feature of all rows at a time.

Each feature vector is put together as bytes (see `cells`) and parsed by protobuf once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feast_dynamo_ext.dynamo.cells import split, uniform_columns
from feast_dynamo_ext.dynamo.response import (
    NOT_FOUND,
    NULL_CELL,
    OUTSIDE_MAX_AGE,
    PRESENT,
    UNREAD,
    status_entries,
    time_entry,
    vector_head,
)
from feast_dynamo_ext.dynamo.services.vectors import NO_ROW, UNREAD_ROW

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from feast_dynamo_ext.dynamo.services.spec import ServiceSpec
    from feast_dynamo_ext.dynamo.services.vectors import Vector


@dataclass(frozen=True)
class Asked:
    """What a request asks of one view of a service.

    Attributes:
        view: the view's name in the service.
        features: feature names, in the order of the answer.
        oldest_us: the event time from which on rows are within the view's ttl.
        with_expired: answer the values of rows past their ttl too.
    """

    view: str
    features: Sequence[str]
    oldest_us: float = float("-inf")
    with_expired: bool = False


def add_vectors(
    response: Any,
    spec: ServiceSpec,
    vectors: Sequence[Vector],
    asked: Iterable[Asked],
    *,
    full_names: bool,
) -> None:
    """Append one feature vector per requested feature, as reading the views would.

    Args:
        response: the answer to extend.
        spec: what the vectors stand for.
        vectors: one a row of the request.
        asked: what is wanted of each view.
        full_names: answer features under their view's name and their own.
    """
    event_us = np.frombuffer(b"".join([vector.head for vector in vectors]), dtype="<i8")
    event_us = event_us.reshape(len(vectors), len(spec.views))
    columns = _Columns(spec, vectors)
    for one in asked:
        place = spec.places[one.view]
        answer = _ViewAnswer.of(event_us[:, place.index], one)
        prefix = f"{one.view}__" if full_names else ""
        response.metadata.feature_names.val.extend([prefix + name for name in one.features])
        merged: list[bytes] = []
        for name in one.features:
            position = place.positions[name]
            values = columns.of(position, answer.hidden)
            tail = answer.tail(columns.lacking(position))
            merged += (vector_head(len(values) + len(tail)), values, tail)
        response.MergeFromString(b"".join(merged))


@dataclass(frozen=True)
class _ViewAnswer:
    """What all features of a view answer for the rows of a request, apart from values.

    Attributes:
        statuses: of each row.
        times: event times, as entries of a feature vector.
        hidden: rows whose values are not answered; None for none.
        plain_tail: what follows the values of a feature that no row lacks.
    """

    statuses: Any
    times: bytes
    hidden: Any
    plain_tail: bytes

    @classmethod
    def of(cls, event_us: Any, asked: Asked) -> _ViewAnswer:
        statuses = np.full(len(event_us), PRESENT)
        expired = event_us < asked.oldest_us
        statuses[expired] = OUTSIDE_MAX_AGE
        statuses[event_us == NO_ROW] = NOT_FOUND
        statuses[event_us == UNREAD_ROW] = UNREAD
        entries: Mapping[int, bytes] = {
            micros: time_entry(None if micros <= UNREAD_ROW else micros)
            for micros in set(event_us.tolist())
        }
        times = b"".join([entries[micros] for micros in event_us.tolist()])
        hidden = expired if expired.any() and not asked.with_expired else None
        return cls(statuses, times, hidden, status_entries(tuple(statuses.tolist())) + times)

    def tail(self, lacking: Any) -> bytes:
        """What follows the values of a feature.

        A row that is past its ttl says so of features that it lacks too, as long as it hides the
        others.
        """
        if lacking is None:
            return self.plain_tail
        told = lacking if self.hidden is None else lacking & ~self.hidden
        statuses = np.where(told, NOT_FOUND, self.statuses)
        return status_entries(tuple(statuses.tolist())) + self.times


class _Columns:
    """The values of a request's rows, feature by feature."""

    def __init__(self, spec: ServiceSpec, vectors: Sequence[Vector]) -> None:
        self._vectors = vectors
        self._uniform = uniform_columns([vector.packed for vector in vectors], range(spec.width))
        self._ragged: list[list[bytes]] | None = None
        self._lacks: Any = None
        if any(vector.lacks for vector in vectors):
            data = b"".join([vector.lacks or bytes(spec.width) for vector in vectors])
            self._lacks = np.frombuffer(data, dtype=np.uint8).reshape(len(vectors), spec.width) > 0

    def of(self, position: int, hidden: Any) -> bytes:
        """One feature of all rows, as entries of field 1; null in hidden rows."""
        if self._uniform is not None and hidden is None:
            return self._uniform[position]
        if self._ragged is None:
            self._ragged = [split(vector.packed) for vector in self._vectors]
        if hidden is None:
            return b"".join([row[position] for row in self._ragged])
        return b"".join(
            [
                NULL_CELL if is_hidden else row[position]
                for row, is_hidden in zip(self._ragged, hidden.tolist(), strict=True)
            ]
        )

    def lacking(self, position: int) -> Any:
        """Rows that lack a feature; None for none."""
        if self._lacks is None or not self._lacks[:, position].any():
            return None
        return self._lacks[:, position]
