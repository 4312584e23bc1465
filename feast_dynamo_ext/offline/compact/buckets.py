"""Which bucket a join key belongs to, by a hash that is the same everywhere and for ever.

Files on S3 outlive every process, library and machine, so the hash is written out here: the
mixer of splitmix64 over the words of a key. An integer is one word; text and bytes are their
length, then their bytes, eight a word, little endian, the last one filled up with zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.offline.keys import comparable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HASH = "splitmix64-1"
"""Name of the hash in a pointer; another algorithm would have another name."""

MOST_BUCKETS = 4_096
BLOCK_ROWS = 1 << 16
"""Hashed at a time, so that they stay in the processor's cache."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WORD = 8


def bucket_of(columns: Sequence[pa.Array | pa.ChunkedArray], count: int) -> NDArray[np.int64]:
    """The bucket of each row, 0 to `count` - 1.

    The same key gives the same bucket in every type of its family: int32 as int64, a dictionary as
    plain text. Null is a value of its own.

    Args:
        columns: the join keys, one column each, always in the same order.
        count: how many buckets there are.

    Raises:
        pyarrow.ArrowInvalid: a value that cannot be compared exactly, see `keys.comparable`.
    """
    combined = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        combined = _mixed(combined ^ _hashes(column))
    found: NDArray[np.int64] = (combined % np.uint64(count)).astype(np.int64)
    return found


def _hashes(column: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    blocks = [
        _hashes_of_block(chunk.slice(start, BLOCK_ROWS))
        for chunk in chunks
        for start in range(0, len(chunk), BLOCK_ROWS)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.uint64)


def _hashes_of_block(column: pa.Array) -> NDArray[np.uint64]:
    compared = comparable(column)
    if isinstance(compared, pa.ChunkedArray):
        compared = compared.combine_chunks()
    if pa.types.is_string(compared.type) or pa.types.is_binary(compared.type):
        found = _hashes_of_bytes(compared)
    else:
        found = _mixed(compared.cast(pa.int64()).fill_null(0).to_numpy().view(np.uint64))
    if compared.null_count:
        found[~compared.is_valid().to_numpy(zero_copy_only=False)] = 0
    return found


def _hashes_of_bytes(column: pa.Array) -> NDArray[np.uint64]:
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[column.offset :][: len(column) + 1]
    first, last = int(bounds[0]), int(bounds[-1])
    # Eight zeros follow, so that a word can be read from wherever a value begins.
    padded = np.zeros(last - first + _WORD, dtype=np.uint8)
    if last > first:
        padded[:-_WORD] = np.frombuffer(data, dtype=np.uint8)[first:last]
    words = np.ndarray((len(padded) - _WORD + 1,), dtype="<u8", buffer=padded, strides=(1,))
    starts = (bounds[:-1] - first).astype(np.int64)
    lengths = np.diff(bounds).astype(np.int64)
    return _words_mixed(words, starts, lengths)


def _words_mixed(
    words: NDArray[np.uint64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.uint64]:
    found = _mixed(lengths.astype(np.uint64))
    rows = np.flatnonzero(lengths > 0)
    done = 0
    while len(rows):
        left = np.minimum(lengths[rows] - done, _WORD).astype(np.uint64)
        unused = np.uint64(8) * (np.uint64(_WORD) - left)
        word = (words[starts[rows] + done] << unused) >> unused
        found[rows] = _mixed(found[rows] ^ word)
        done += _WORD
        rows = rows[lengths[rows] > done]
    return found


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = values + _STEP
    mixed ^= mixed >> np.uint64(30)
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed
