"""What lists and aggregates of events are as of a moment, by definition: plain loops.

Nothing of what is tested is used here, nor any library: times are integers of nanoseconds since
1970 UTC, of any size, and values are Python's.
"""

from __future__ import annotations

import datetime as dt
import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Row:
    """One row of a series' history.

    Attributes:
        keys: its join keys; None for a null.
        event: event time in ns, or None.
        tie: its tie-breakers.
        created: created time in ns, or None.
        values: of its columns, by name.
    """

    keys: tuple[Any, ...]
    event: int | None
    tie: tuple[Any, ...] = ()
    created: int | None = None
    values: dict[str, Any] = field(default_factory=dict)


def counting(
    rows: Sequence[Row],
    keys: tuple[Any, ...],
    moment: int,
    *,
    span: int | None = None,
    exclude_current: bool = False,
    known: bool = False,
) -> list[Row]:
    """The events that count at a moment, the oldest first.

    Args:
        rows: the history, in the order of the files and in them.
        keys: the entity.
        moment: in ns.
        span: how far back events count; None for no limit.
        exclude_current: leave out events of the moment.
        known: only rows that were created by then count.
    """
    winners: dict[tuple[Any, ...], tuple[tuple[bool, int, int], Row]] = {}
    if None in keys:
        return []
    for position, row in enumerate(rows):
        if row.event is None or row.keys != keys or row.event > moment:
            continue
        if exclude_current and row.event == moment:
            continue
        if span is not None and row.event < moment - span:
            continue
        if known and (row.created is None or row.created > moment):
            continue
        event = row.event, tuple(map(_tie, row.tie))
        rank = row.created is not None, row.created or 0, position
        if event not in winners or rank > winners[event][0]:
            winners[event] = rank, row
    return in_order([row for _, row in winners.values()])


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Events by event time, then by tie-breakers, the oldest first."""
    return sorted(rows, key=lambda row: (row.event, tuple(map(_tie, row.tie))))


def _tie(value: Any) -> tuple[bool, Any]:
    """A tie-breaker as it is compared: texts by their bytes, times by their seconds."""
    if value is None:
        return False, 0
    if isinstance(value, str):
        return True, value.encode()
    return True, math.floor(value.timestamp()) if isinstance(value, dt.datetime) else value


def aggregate(function: str, column: str, rows: Sequence[Row], moment: int) -> Any:
    """An aggregate of events in order; `column` is empty for events as such."""
    if function == "time_since_last":
        return (moment - (rows[-1].event or 0)) / 10**9 if rows else None
    if not column:
        return len(rows)
    given = [row.values[column] for row in rows]
    if function in {"first", "last"}:
        return given[0 if function == "first" else -1] if given else None
    values = [value for value in given if value is not None and value == value]  # noqa: PLR0124
    if function in {"count", "count_distinct"}:
        return len(values if function == "count" else set(values))
    return _of_values(function, values) if values else None


def _of_values(function: str, values: list[Any]) -> Any:
    if function == "std":
        return statistics.stdev(values) if len(values) > 1 else None
    if function in {"min", "max"}:
        key = (lambda value: value.encode()) if isinstance(values[0], str) else None
        return (min if function == "min" else max)(values, key=key)
    total = sum(values) if isinstance(values[0], int) else math.fsum(values)
    return total if function == "sum" else total / len(values)


def listed(
    column: str,
    rows: Sequence[Row],
    *,
    last: int | None,
    newest_first: bool = True,
    fill: Any = None,
) -> list[Any]:
    """A list of the last events' values, or of their times in microseconds where none is named."""
    rows = rows[max(0, len(rows) - last) :] if last is not None else rows
    made = [(row.event or 0) // 1_000 if not column else row.values[column] for row in rows]
    made = [fill if value is None else value for value in made]
    return made[::-1] if newest_first else made
