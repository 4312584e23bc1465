"""Reads structures in Thrift's compact protocol, in which Parquet files have their page headers.

pyarrow reads page headers, but tells nobody where pages begin. The format:
github.com/apache/thrift, doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

STOP, TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(13)
MOST_DEEP = 8
MOST_BITS = 64
MORE = 128
"""Of a byte of a number: another one follows."""


class ThriftError(ValueError):
    """Bytes that are not such a structure, or one with fields of other types."""


def read_struct(data: Sequence[int], at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a structure by their numbers, and where it ends.

    Fields may be booleans, integers, binary (which is skipped: None) and structures.

    Args:
        data: bytes.
        at: where the structure begins.
        depth: of structures in structures.

    Raises:
        ThriftError: it is none, has other fields, or does not end.
    """
    if depth > MOST_DEEP:
        raise ThriftError("structures within structures, and no end")
    fields: dict[int, Any] = {}
    number = 0
    try:
        while True:
            head = int(data[at])
            at += 1
            if head == STOP:
                return fields, at
            if head >> 4:
                number += head >> 4
            else:
                number, at = _integer(data, at)
            fields[number], at = _value(data, at, head & 15, depth)
    except IndexError as error:
        raise ThriftError("a structure without an end") from error


def _value(data: Sequence[int], at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind in (I16, I32, I64):
        return _integer(data, at)
    if kind == BINARY:
        size, at = _varint(data, at)
        return None, at + size
    if kind == STRUCT:
        return read_struct(data, at, depth + 1)
    raise ThriftError(f"a field of type {kind}")


def _integer(data: Sequence[int], at: int) -> tuple[int, int]:
    """A number in zigzag: 0, -1, 1, -2 are 0, 1, 2, 3."""
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: Sequence[int], at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first; all but the last have an eighth bit."""
    number = 0
    for shift in range(0, MOST_BITS, 7):
        byte = int(data[at])
        at += 1
        number |= (byte & ~MORE) << shift
        if byte < MORE:
            return number, at
    raise ThriftError("a number that is too long")
