"""What a point-in-time join answers, by its definition: plain loops over plain Python values.

Nothing of what is tested is used here, nor any library: times are integers of nanoseconds since
1970 UTC, of any size, and keys are compared as Python compares values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class HistoryRow:
    """One row of a view's history.

    Attributes:
        keys: its join keys; None for a null.
        event: event time in ns, or None.
        created: created time in ns, or None.
    """

    keys: tuple[Any, ...]
    event: int | None
    created: int | None = None


def seen_by(
    keys: tuple[Any, ...],
    moment: int,
    history: Sequence[HistoryRow],
    *,
    ttl: int | None = None,
    known: bool = False,
) -> int | None:
    """The position of the row that one entity row sees; None where it sees none.

    Args:
        keys: the entity row's join keys.
        moment: its time in ns.
        history: the view's rows, in the order of the files and in them.
        ttl: in ns; None and 0 for no limit.
        known: only rows that were created by then count.
    """
    best: tuple[int, bool, int, int] | None = None
    for position, row in enumerate(history):
        if not _usable(row) or row.event is None or row.keys != keys or row.event > moment:
            continue
        if ttl and row.event < moment - ttl:
            continue
        if known and (row.created is None or row.created > moment):
            continue
        rank = _rank(row, position)
        if best is None or rank > best:
            best = rank
    return None if best is None else best[-1]


def latest(history: Sequence[HistoryRow], start: int, end: int) -> list[int]:
    """Positions of the newest row of each key with start <= event time <= end, ascending."""
    best: dict[tuple[Any, ...], tuple[int, bool, int, int]] = {}
    for position in within(history, start, end):
        row = history[position]
        if _usable(row):
            rank = _rank(row, position)
            best[row.keys] = max(best.get(row.keys, rank), rank)
    return sorted(rank[-1] for rank in best.values())


def within(history: Sequence[HistoryRow], start: int | None, end: int | None) -> list[int]:
    """Positions of all rows with start <= event time <= end, those without keys too."""
    return [
        position
        for position, row in enumerate(history)
        if row.event is not None
        and (start is None or row.event >= start)
        and (end is None or row.event <= end)
    ]


def _usable(row: HistoryRow) -> bool:
    return row.event is not None and None not in row.keys


def _rank(row: HistoryRow, position: int) -> tuple[int, bool, int, int]:
    """Newest event time, then newest created time (none is the oldest), then position."""
    return row.event or 0, row.created is not None, row.created or 0, position
