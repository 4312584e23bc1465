"""Pieces of JSON, of which any run in a request's body is one slice of memory.

Each fragment ends with a comma, so that fragments that follow each other are a list's elements;
the last comma is left out of a body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from feast_dynamo_ext.dynamo.encoding.protobuf import data_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def joined(fragments: pa.LargeBinaryArray, start: int, stop: int) -> bytes:
    """Fragments as the elements of a JSON list, commas between them.

    Args:
        fragments: of `EncodedRows.put_json` or `EncodedRows.statement_json`.
        start: the first.
        stop: the one after the last.
    """
    data: bytes = data_of(fragments.slice(start, stop - start))[:-1].tobytes()
    return data


def picked(fragments: pa.LargeBinaryArray, rows: Sequence[int]) -> bytes:
    """The fragments of these rows, in their order, as `joined` has them."""
    return joined(fragments.take(pa.array(rows, pa.int64())), 0, len(rows))
