"""Join keys as small numbers: which of the entity rows' distinct keys a key is, if any.

Looking up the keys of a history is what a join does most often, so integers have their own ways.
Measured for a million keys among 430,000: a table by value 5 ns a key, a hash table in numpy
40 ns, pandas' 70 ns, Arrow's `index_in` 150 ns; text takes Arrow 200 ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.timestamps import HIGHEST, LOWEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int32] | NDArray[np.int64]


T = TypeVar("T", bound=np.generic)

NONE = -1
"""Number of a key that no entity row has, and of keys with a null."""

SPREAD = 16
"""A table by value has at most so many places a key, and may always have TABLE_PLACES."""
TABLE_PLACES = 1 << 22

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # Knuth's: 2^64 divided by the golden ratio


class Lookup(Protocol):
    """Numbers of the values of one column."""

    @property
    def way(self) -> str:
        """How they are found, in words."""

    def __call__(self, column: pa.Array) -> Numbers:
        """For each value its number, or NONE."""
        ...


@dataclass(frozen=True)
class KeyIndex:
    """Distinct keys, numbered from 0.

    Attributes:
        size: how many there are.
        columns: numbers of the values of each column.
        pairs: numbers of (number so far, number of the next column), one a column but the first.
    """

    size: int
    columns: tuple[Lookup, ...]
    pairs: tuple[tuple[int, Lookup], ...]

    @classmethod
    def from_columns(cls, columns: Sequence[pa.Array]) -> KeyIndex:
        """The index of all keys without a null.

        Args:
            columns: of keys in the types of `keys.comparable`, all of one length.
        """
        lookups, sizes = zip(*(_distinct(column) for column in columns), strict=True)
        numbers, size, pairs = lookups[0](columns[0]), sizes[0], []
        for column, lookup, width in zip(columns[1:], lookups[1:], sizes[1:], strict=True):
            paired = _paired(numbers, lookup(column), width)
            pair, size = _distinct(paired)
            numbers = pair(paired)
            pairs.append((width, pair))
        return cls(size, lookups, tuple(pairs))

    @property
    def ways(self) -> str:
        """How keys are found, in words."""
        return " and ".join(dict.fromkeys(lookup.way for lookup in self.columns))

    def numbers(self, columns: Sequence[pa.Array]) -> Numbers:
        """For each key its number, or NONE.

        Args:
            columns: of keys, in the types that the index was made of.
        """
        found = self.columns[0](columns[0])
        for column, lookup, (width, pair) in zip(
            columns[1:], self.columns[1:], self.pairs, strict=True
        ):
            found = pair(_paired(found, lookup(column), width))
        return found


@dataclass(frozen=True)
class ByKey:
    """A number for each key, looked up at once.

    Attributes:
        index: the keys.
        values: their numbers, and last that of all other keys.
        by_place: the same in the places of a table by value, if that is how keys are found.
    """

    index: KeyIndex
    values: NDArray[np.uint64]
    by_place: NDArray[np.uint64] | None

    @classmethod
    def from_index(cls, index: KeyIndex, values: NDArray[np.uint64]) -> ByKey:
        """Numbers of all keys, and last that of all others."""
        lookup = index.columns[0]
        if len(index.columns) == 1 and isinstance(lookup, _ByValue):
            by_place: NDArray[np.uint64] = values.take(lookup.table)
            return cls(index, values, by_place)
        return cls(index, values, None)

    def take(self, columns: Sequence[pa.Array]) -> NDArray[np.uint64]:
        """For each key its number; of keys with a null any number."""
        if self.by_place is None:
            return self.values.take(self.index.numbers(columns))
        lookup: Any = self.index.columns[0]
        bits: NDArray[np.uint64] = lookup.take(self.by_place, columns[0])
        return bits


@dataclass(frozen=True)
class _ByValue:
    """A table that has a place for each integer between the least and the greatest."""

    before: int  # the integer that the first place is for
    table: NDArray[np.int32]
    way = "a table by value"

    @classmethod
    def from_values(cls, values: NDArray[np.int64]) -> _ByValue:
        least = int(values.min())
        # The first and the last place are for all that is outside.
        table = np.full(int(values.max()) - least + 3, NONE, dtype=np.int32)
        table[values - least + 1] = np.arange(len(values), dtype=np.int32)
        return cls(least - 1 if least > LOWEST else HIGHEST, table)

    def __call__(self, column: pa.Array) -> Numbers:
        return _without_nulls(self.take(self.table, column), column)

    def take(self, table: NDArray[T], column: pa.Array) -> NDArray[T]:
        """What a table has in the place of each value."""
        # A difference that is too great for 64 bits begins anew at the other end: outside, too.
        places = _integers(column) - np.int64(self.before)
        found: NDArray[T] = table.take(places, mode="clip")
        return found


@dataclass(frozen=True)
class _Hashed:
    """A hash table with linear probing, all keys of a batch at once."""

    keys: NDArray[np.int64]
    ids: NDArray[np.int32]
    shift: np.uint64
    way = "a hash table"

    @classmethod
    def from_values(cls, values: NDArray[np.int64]) -> _Hashed:
        bits = max(1, (2 * len(values)).bit_length())
        shift = np.uint64(64 - bits)
        keys, ids = np.zeros(1 << bits, dtype=np.int64), np.full(1 << bits, NONE, dtype=np.int32)
        left, places = np.arange(len(values), dtype=np.int32), _hash(values, shift)
        while len(left):
            free = ids[places] == NONE
            # Of several for one place the last stays.
            ids[places[free]] = left[free]
            keys[places[free]] = values[left[free]]
            beside = ids[places] != left
            left, places = left[beside], (places[beside] + 1) & (len(ids) - 1)
        return cls(keys, ids, shift)

    def __call__(self, column: pa.Array) -> Numbers:
        values = _integers(column)
        places = _hash(values, self.shift)
        found = self.ids.take(places)
        other = self.keys.take(places) != values
        left = np.flatnonzero(other & (found != NONE))
        found[other] = NONE
        places = places[left]
        while len(left):
            places = (places + 1) & (len(self.ids) - 1)
            ids, same = self.ids[places], self.keys[places] == values[left]
            found[left[same]] = ids[same]
            further = ~same & (ids != NONE)
            left, places = left[further], places[further]
        return _without_nulls(found, column)


@dataclass(frozen=True)
class _InArrow:
    """Values that are no integers."""

    values: pa.Array
    way = "Arrow's hash table"

    def __call__(self, column: pa.Array) -> Numbers:
        found = pc.index_in(column, self.values, skip_nulls=True).fill_null(NONE)
        numbers: Numbers = found.to_numpy(zero_copy_only=False)
        return numbers


def _distinct(column: pa.Array) -> tuple[Lookup, int]:
    """Numbers for the distinct values of a column, and how many they are."""
    if pa.types.is_int64(column.type) and column.null_count < len(column):
        return _distinct_integers(column.drop_null())
    values = pc.unique(column).drop_null()
    return _InArrow(values), len(values)


def _distinct_integers(column: pa.Array) -> tuple[Lookup, int]:
    values = column.to_numpy()
    least = int(values.min())
    reach = int(values.max()) - least
    if reach < max(TABLE_PLACES, SPREAD * len(values)):
        # A mark in the place of each takes a tenth of the time that hashing all of them does.
        is_there = np.zeros(reach + 1, dtype=bool)
        is_there[values - least] = True
        distinct = np.flatnonzero(is_there) + least
    else:
        distinct = pc.unique(column).to_numpy()
    by_value = reach < max(TABLE_PLACES, SPREAD * len(distinct))
    return (_ByValue if by_value else _Hashed).from_values(distinct), len(distinct)


def _paired(left: Numbers, right: Numbers, width: int) -> pa.Array:
    """One number for two; a null where one of them is NONE."""
    both = left.astype(np.int64) * width + right
    return pa.array(both, mask=(left == NONE) | (right == NONE))


def _hash(values: NDArray[np.int64], shift: np.uint64) -> NDArray[np.int64]:
    hashed: NDArray[np.uint64] = values.view(np.uint64) * MULTIPLIER
    return (hashed >> shift).view(np.int64)


def _integers(column: pa.Array) -> NDArray[np.int64]:
    if column.null_count:
        column = column.fill_null(0)
    values: NDArray[np.int64] = column.to_numpy()
    return values


def _without_nulls(found: Numbers, column: pa.Array) -> Numbers:
    if column.null_count:
        found[column.is_null().to_numpy(zero_copy_only=False)] = NONE
    return found
