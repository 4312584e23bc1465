"""Protobuf's wire format for whole columns: one message a row, in numpy and Arrow buffers.

A message is kept as parts that follow each other in each row: short ones (tags, lengths, numbers)
as slots of a byte matrix, which cost next to nothing to put side by side, and long ones (texts,
packed lists) as Arrow arrays. `Message.to_array` puts the parts together, once, at the end.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Mask = NDArray[np.bool_]
    Integers = NDArray[np.int64]

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
NOTHING = pa.scalar(b"", pa.large_binary())


@dataclass(frozen=True)
class Slots:
    """A few bytes a row.

    Attributes:
        cells: rows x width bytes.
        kept: the bytes of `cells` that count; None for all of them.
        lengths: how many of each row count.
    """

    cells: Bytes
    kept: Mask | None
    lengths: Integers

    def masked(self, present: Mask) -> Slots:
        """Empty where not present."""
        kept = np.broadcast_to(present[:, None], self.cells.shape)
        if self.kept is not None:
            kept = kept & self.kept
        return Slots(self.cells, kept, self.lengths * present)

    def to_array(self) -> pa.LargeBinaryArray:
        """As an Arrow array."""
        data = np.ascontiguousarray(self.cells) if self.kept is None else self.cells[self.kept]
        return binary(offsets_of(self.lengths), data)


Part: TypeAlias = Slots | pa.LargeBinaryArray


@dataclass(frozen=True)
class Message:
    """The bytes of one message a row.

    Attributes:
        parts: what follows each other in each row; arrays without nulls.
        lengths: bytes of each row.
    """

    parts: tuple[Part, ...]
    lengths: Integers

    @classmethod
    def from_part(cls, part: Part) -> Message:
        """A message of one part."""
        return cls((part,), part.lengths if isinstance(part, Slots) else lengths_of(part))

    def __add__(self, other: Message) -> Message:
        return Message(self.parts + other.parts, self.lengths + other.lengths)

    def masked(self, present: Mask | None) -> Message:
        """Empty where not present; None: present everywhere."""
        if present is None:
            return self
        parts = tuple(
            part.masked(present) if isinstance(part, Slots) else pc.if_else(present, part, NOTHING)
            for part in self.parts
        )
        return Message(parts, self.lengths * present)

    def to_array(self) -> pa.LargeBinaryArray:
        """As an Arrow array."""
        arrays: list[pa.LargeBinaryArray] = []
        for are_slots, group in groupby(self.parts, lambda part: isinstance(part, Slots)):
            parts = list(group)
            arrays += [concat_slots(parts).to_array()] if are_slots else parts
        return arrays[0] if len(arrays) == 1 else concat_elements(*arrays)


def concat_elements(*parts: Any) -> pa.LargeBinaryArray:
    """Element by element, one after another; scalars count for every element."""
    return pc.binary_join_element_wise(*parts, NOTHING)


def concat_slots(slots: Sequence[Slots]) -> Slots:
    """Slots one after another, as one."""
    if len(slots) == 1:
        return slots[0]
    kept = None
    if any(each.kept is not None for each in slots):
        kept = np.concatenate(
            [np.ones(each.cells.shape, bool) if each.kept is None else each.kept
             for each in slots],
            axis=1,
        )  # fmt: skip
    cells = np.concatenate([each.cells for each in slots], axis=1)
    return Slots(cells, kept, np.sum([each.lengths for each in slots], axis=0))


def constant(data: bytes, rows: int) -> Slots:
    """The same bytes in every row."""
    # One row, as often as there are rows.
    cells = np.ndarray((rows, len(data)), np.uint8, data, strides=(0, 1))
    return Slots(cells, None, np.full(rows, len(data)))


def fixed(numbers: NDArray[Any]) -> Slots:
    """Numbers as they are in memory: fixed32, fixed64, and a bool's byte."""
    width = numbers.dtype.itemsize
    cells = np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), width)
    return Slots(cells, None, np.full(len(numbers), width))


def varints(numbers: Integers) -> Slots:
    """Integers seven bits a byte, lowest first; a negative one as its two's complement."""
    rest = numbers.astype(np.int64, copy=False).view(np.uint64)
    width = max(1, -(-int(rest.max()).bit_length() // 7)) if len(rest) else 1
    cells = np.empty((len(rest), width), np.uint8)
    if width == 1:
        cells[:, 0] = rest
        return Slots(cells, None, np.ones(len(rest), np.int64))
    kept = np.empty(cells.shape, np.bool_)
    more = np.ones(len(rest), np.bool_)
    for at in range(width):
        kept[:, at] = more
        more = rest > 0x7F  # noqa: PLR2004 - what seven bits hold
        cells[:, at] = (rest & 0x7F).astype(np.uint8) | (more.view(np.uint8) << 7)
        rest = rest >> np.uint64(7)
    return Slots(cells, kept, kept.sum(axis=1))


@cache
def tag(number: int, wire: int) -> bytes:
    """What a field starts with: its number and how its value is written."""
    slots = varints(np.array([number << 3 | wire]))
    return slots.cells.tobytes()


def field(number: int, wire: int, value: Slots) -> Message:
    """A field of numbers, or the start of one of bytes: its tag and their count."""
    return Message.from_part(constant(tag(number, wire), len(value.cells))) + Message.from_part(
        value
    )


def delimited(number: int, message: Message, present: Mask | None = None) -> Message:
    """A field of texts, bytes or messages.

    Args:
        number: number of the field.
        message: what it holds; empty where the field is absent.
        present: the rows that have the field; None for all.
    """
    return field(number, DELIMITED, varints(message.lengths)).masked(present) + message


def grouped(elements: pa.LargeBinaryArray, offsets: Integers) -> pa.LargeBinaryArray:
    """Runs of elements as one element each, without a copy.

    Args:
        elements: the elements, without nulls.
        offsets: where each run starts, and where the last one ends.
    """
    starts = _starts(elements)[offsets]
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(starts) - 1, [None, pa.py_buffer(starts), elements.buffers()[2]]
    )


def binary(offsets: Integers, data: Any) -> pa.LargeBinaryArray:
    """An Arrow array from where each element starts (and the last one ends) and their bytes."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def offsets_of(lengths: Integers) -> Integers:
    """Where elements of these lengths start, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def lengths_of(array: pa.LargeBinaryArray) -> Integers:
    """Bytes of each element."""
    return np.diff(_starts(array))


def data_of(array: pa.LargeBinaryArray) -> Bytes:
    """The bytes of all elements, one after another, without a copy."""
    starts = _starts(array)
    buffer = array.buffers()[2]
    data = np.frombuffer(b"" if buffer is None else buffer, np.uint8)
    return data[starts[0] : starts[-1]]


def _starts(array: pa.LargeBinaryArray) -> Integers:
    buffer = array.buffers()[1]
    if buffer is None or not buffer.size:  # Arrow lets an empty array go without
        return np.zeros(1, np.int64)
    return np.frombuffer(buffer, np.int64)[array.offset : array.offset + len(array) + 1]
