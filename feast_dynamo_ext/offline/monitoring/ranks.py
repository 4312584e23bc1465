"""The values at given ranks of a stream too large to sort, exactly, in a few passes.

A pass counts the values by the next 16 bits of their place in the order of doubles, and so finds
which range of values each rank is in; once a range holds few values they are collected and sorted.
Ten million evenly spread values take three passes, and about five megabytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

KEY, DIGIT = 64, 16
"""Bits of a value's place in the order, and of it that a pass looks at."""

FEW = 1 << 16
"""Values that are collected."""

SIGN = np.uint64(1 << 63)


@dataclass
class _Range:
    """The values whose keys begin with some bits.

    Attributes:
        prefix: those bits, as a number.
        bits: how many.
        size: how many values there are.
        ranks: (rank asked for, its rank within the range).
    """

    prefix: int
    bits: int
    size: int
    ranks: list[tuple[int, int]]
    parts: list[NDArray[np.uint64]] = field(default_factory=list)
    counts: NDArray[np.int64] | None = None

    def add(self, keys: NDArray[np.uint64]) -> None:
        inside = keys[keys >> np.uint64(KEY - self.bits) == self.prefix]
        if self.size <= FEW:
            self.parts.append(inside)
            return
        counts = _digits(inside, self.bits)
        self.counts = counts if self.counts is None else self.counts + counts

    @property
    def seen(self) -> int:
        return sum(map(len, self.parts)) + (0 if self.counts is None else int(self.counts.sum()))


class Selection:
    """Finds values by rank: `survey` and `refine` see the whole stream, once a pass.

    First all goes through `survey`; then `ask`; then, while `open` says so, all goes through
    `refine`, and `settle` ends the pass. `found` then has the value of each rank.
    """

    def __init__(self) -> None:
        self.found: dict[int, float] = {}
        self._first = np.zeros(1 << DIGIT, dtype=np.int64)
        self._ranges: list[_Range] = []

    @property
    def open(self) -> bool:
        """Whether another pass is needed."""
        return bool(self._ranges)

    def survey(self, values: NDArray[np.float64]) -> None:
        """See some of the stream; values must not be NaN."""
        self._first += _digits(_keys(values), 0)

    def ask(self, ranks: Iterable[int]) -> None:
        """Say which ranks are wanted, counted from 0 in ascending order of the values."""
        wanted = [(rank, rank) for rank in sorted(set(ranks))]
        self._ranges = _split(0, 0, self._first, wanted)

    def refine(self, values: NDArray[np.float64]) -> None:
        """See some of the stream again."""
        keys = _keys(values)
        for part in self._ranges:
            part.add(keys)

    def settle(self) -> bool:
        """End a pass.

        Returns:
            False where the pass did not see what the passes before it did.
        """
        if any(part.seen != part.size for part in self._ranges):
            return False
        narrower: list[_Range] = []
        for part in self._ranges:
            if part.counts is None:
                values = np.sort(np.concatenate(part.parts))
                self.found.update({rank: _value(values[within]) for rank, within in part.ranks})
            elif part.bits + DIGIT == KEY:
                digits = np.searchsorted(
                    np.cumsum(part.counts), [at for _, at in part.ranks], "right"
                )
                for (rank, _), digit in zip(part.ranks, digits, strict=True):
                    self.found[rank] = _value(np.uint64(part.prefix << DIGIT | int(digit)))
            else:
                narrower += _split(part.prefix, part.bits, part.counts, part.ranks)
        self._ranges = narrower
        return True


def _split(
    prefix: int, bits: int, counts: NDArray[np.int64], ranks: list[tuple[int, int]]
) -> list[_Range]:
    """The narrower ranges that ranks are in."""
    upto = np.cumsum(counts)
    parts: dict[int, _Range] = {}
    for rank, within in ranks:
        digit = int(np.searchsorted(upto, within, "right"))
        size = int(counts[digit])
        part = parts.setdefault(digit, _Range(prefix << DIGIT | digit, bits + DIGIT, size, []))
        part.ranks.append((rank, within - int(upto[digit]) + size))
    return list(parts.values())


def _digits(keys: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    digits = (keys >> np.uint64(KEY - DIGIT - bits)) & np.uint64((1 << DIGIT) - 1)
    return np.bincount(digits.astype(np.int64), minlength=1 << DIGIT)


def _keys(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Unsigned integers in the order of the values; -0.0 is 0.0."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _value(key: Any) -> float:
    bits = key ^ SIGN if key & SIGN else ~key
    return float(np.uint64(bits).view(np.float64))
