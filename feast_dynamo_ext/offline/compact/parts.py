"""A bucketed source without the files that nobody asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feast_dynamo_ext.offline.compact.buckets import HASH, bucket_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from feast_dynamo_ext.offline.sources.source import ParquetSource


FIRST_ROWS = 64
"""For each bucket: many entity rows ask for every bucket, which the first of them tell."""


def in_buckets(
    source: ParquetSource, keys: Mapping[str, pa.Array | pa.ChunkedArray]
) -> ParquetSource:
    """The source without the files whose buckets hold none of the asked-for keys.

    Files that were appended since the source was compacted remain, as do all where it has no
    buckets, or buckets of columns that are not among the keys. No file is opened.

    Args:
        source: the history.
        keys: the entity rows' join keys by the source's names of their columns, in any types that
            can be compared with the source's; null keys match nothing.

    Returns:
        The narrowed source; positions count in its files.

    Raises:
        pyarrow.ArrowInvalid: a key that cannot be compared exactly, see `keys.comparable`.
    """
    current = source.current
    buckets = current.buckets if current else None
    if current is None or buckets is None or buckets.hash != HASH:
        return source
    if not set(buckets.columns) <= keys.keys():
        return source
    columns = [keys[name] for name in buckets.columns]
    first = [column.slice(0, FIRST_ROWS * buckets.count) for column in columns]
    if len(_buckets(first, buckets.count)) == buckets.count:
        return source
    asked = _buckets(columns, buckets.count)
    if len(asked) == buckets.count:
        return source
    root = source.place.root
    wanted = set(asked.tolist())
    left_out = {f"{root}/{file.path}" for file in current.files if file.bucket not in wanted}
    return source.only({file.path for file in source.files} - left_out)


def _buckets(columns: Sequence[pa.Array | pa.ChunkedArray], count: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.bincount(bucket_of(columns, count)))
