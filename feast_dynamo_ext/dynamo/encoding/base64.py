"""Base64 of each element of a column, in one call for all of them."""

from __future__ import annotations

from binascii import b2a_base64
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.dynamo.encoding.protobuf import (
    binary,
    concatenated,
    data_of,
    lengths_of,
    offsets_of,
)

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers

# What fills an element up to a whole number of groups of three bytes.
FILLS = pa.array([b"", b"\0", b"\0\0"], pa.large_binary())


def encoded(elements: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """The base64 text of each element, padded with `=`.

    Args:
        elements: bytes, without nulls.
    """
    lengths = lengths_of(elements)
    missing = -lengths % 3
    # Elements of whole groups do not share a group, so that the text of all is that of each.
    groups = concatenated(elements, FILLS.take(pa.array(missing))) if missing.any() else elements
    text = np.frombuffer(b2a_base64(data_of(groups).data, newline=False), np.uint8).copy()
    offsets = offsets_of((lengths + missing) // 3 * 4)
    _pad(text, offsets[1:], missing)
    return binary(offsets, text)


def _pad(text: np.ndarray, ends: Integers, missing: Integers) -> None:
    for count in (1, 2):
        text[ends[missing >= count] - count] = ord("=")
