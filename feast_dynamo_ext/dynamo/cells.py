"""Packed values as bytes: cut into entries, and put together again as columns.

An item's packed values are entries of `RepeatedValue.val`, field 1; a feature vector's values are
`FeatureVector.values`, field 1 too and of the same type. So a column is made of slices of the
items' bytes, and protobuf parses it once, in C: 13 us for 100 rows, where copying Value objects
takes 174 us (docs/design.md, D1).
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

LONG_VARINT = 0x80
"""A length of 128 bytes or more takes more than one byte."""

ROWS_WORTH_NUMPY = 6


def split(packed: bytes) -> list[bytes]:
    """The entries of a message that has field 1 alone, each with its tag and length."""
    cells = []
    start, end = 0, len(packed)
    while start < end:
        length, at = packed[start + 1], start + 2
        if length >= LONG_VARINT:
            length, at = read_varint(packed, start + 1)
        stop = at + length
        cells.append(packed[start:stop])
        start = stop
    return cells


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < LONG_VARINT:
            return value, at
        shift += 7


def varint(number: int) -> bytes:
    """A number that is not negative, as protobuf writes it."""
    if number < LONG_VARINT:
        return bytes((number,))
    data = bytearray()
    while number >= LONG_VARINT:
        data.append(number & 0x7F | LONG_VARINT)
        number >>= 7
    data.append(number)
    return bytes(data)


def uniform_columns(rows: Sequence[bytes], positions: Sequence[int]) -> list[bytes] | None:
    """Columns of rows that all have the same shape, as rows of doubles do.

    Args:
        rows: packed values of each row.
        positions: which entries are wanted.

    Returns:
        The entries of all rows at each position, joined; None where shapes differ, or rows are
        too few to be worth it.
    """
    first = rows[0]
    if len(rows) < ROWS_WORTH_NUMPY or any(len(row) != len(first) for row in rows):
        return None
    stored = split(first)
    ends = list(accumulate(map(len, stored)))
    starts = [0, *ends]
    table = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)
    # Tags and lengths at the same places in all rows: then so are the values.
    headers = [
        byte
        for start, cell in zip(starts, stored, strict=False)
        for byte in range(start, start + _header_bytes(cell))
    ]
    if not (table[:, headers] == table[0, headers]).all():
        return None
    return [table[:, starts[at] : ends[at]].tobytes() for at in positions]


def _header_bytes(cell: bytes) -> int:
    """Bytes of tag and length before an entry's value."""
    return 2 if cell[1] < LONG_VARINT else read_varint(cell, 1)[1]
