"""Counts, durations and dollars as a person reads them, and tables of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tabulate import SEPARATING_LINE, tabulate

if TYPE_CHECKING:
    from collections.abc import Sequence


NOTHING = "-"
LEAST_SHOWN_USD = 0.0001


def count(number: float) -> str:
    """A whole number: 1,234,567."""
    return f"{number:,.0f}"


def counted(number: int, one: str, several: str | None = None) -> str:
    """So many of something: 1 row, 1,234 rows; `several` where that is not `one` with an s."""
    return f"{count(number)} {one if number == 1 else several or f'{one}s'}"


def short(number: float) -> str:
    """A number where there is little room: 999, 12.3k, 4.57M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What would be rounded to 1,000 of the unit below is one of this.
        if number >= factor * 0.9995:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds, to three digits or so: 4.2 s, 3 min 07 s, 2 h 05 min."""
    if seconds is None:
        return NOTHING
    if seconds < 59.95:  # noqa: PLR2004 - what is rounded to 60.0 s is a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004 - minutes of an hour
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def dollars(amount: float) -> str:
    """US dollars: in cents, below a dollar in hundredths of a cent."""
    if 0 < amount < LEAST_SHOWN_USD:
        return f"<${LEAST_SHOWN_USD}"
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.4f}"


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: Sequence[str] | None = None,
    *,
    words: Sequence[str] = (),
) -> str:
    """A text table: figures to the right, the columns named in `words` to the left.

    Args:
        headers: names of the columns.
        rows: the cells, as they are shown.
        total: one more row, below a line; None for none.
        words: columns that hold text.
    """
    lines: list[object] = list(rows)
    if total is not None:
        lines += [SEPARATING_LINE, total]
    aligned = ["left" if name in words else "right" for name in headers]
    return str(
        tabulate(
            lines, headers=headers, tablefmt="simple", disable_numparse=True, colalign=aligned
        )
    )
