"""Takes values out of Parquet files in which they stand as they do in memory.

pyarrow reads page headers, but tells nobody where pages begin. The format:
github.com/apache/thrift, doc/specs/thrift-compact-protocol.md.

`feast-dynamo compact` neither packs nor codes a column that would not get much smaller. The wanted
values of such a column are taken from the bytes as they are read, which takes a third of the time
that decoding all of them does. What is not plain (other encodings, compression, nulls, nested
columns, small pages) is left to Arrow, and so is what is not as its header says: Arrow tells why.

The format: github.com/apache/parquet-format, README.md and parquet.thrift (`PageHeader`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray


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


PHYSICAL = {
    pa.float64(): "DOUBLE",
    pa.float32(): "FLOAT",
    pa.int64(): "INT64",
    pa.int32(): "INT32",
}
"""Types whose values are the same in a file and in memory, and what files call them."""

DATA_PAGE, DATA_PAGE_V2 = 0, 3  # of PageType
PLAIN = 0  # of Encoding
PAGE_TYPE, PAGE_BYTES, HEADER, HEADER_V2 = 1, 3, 5, 8  # fields of PageHeader
VALUES = 1  # of DataPageHeader and DataPageHeaderV2
ENCODING, ENCODING_V2 = 2, 4

LEAST_VALUES = 1 << 15
"""Of a page, but the last: to look at a header takes as long as to decode 10,000 values."""

MOST_BYTES = 64 << 20
"""Of a column in a row group, which is read whole: one file may have a single row group."""

ALIGNED = 8


@dataclass(frozen=True)
class _Chunk:
    """The pages of a column in a row group.

    Attributes:
        name: the column's.
        start: where its first page begins in the file.
        size: bytes of all pages.
    """

    name: str
    start: int
    size: int


def take_plain(
    group: Any,
    kinds: Mapping[str, pa.DataType],
    rows: NDArray[np.int64],
    places: Mapping[str, NDArray[np.unsignedinteger]],
) -> set[str]:
    """Take the values of those columns of a row group that stand there plainly.

    Args:
        group: a fragment of one row group.
        kinds: the types of columns; one that has another type in the file is left.
        rows: ascending numbers of the wanted rows within the row group.
        places: where the values of these rows are put, as bits, by name of the column.

    Returns:
        The columns whose values were taken. All others are to be read in another way.

    Raises:
        OSError: the file cannot be read.
    """
    if not isinstance(group.filesystem, fs.LocalFileSystem):
        return set()
    chunks = [chunk for chunk in _plain_chunks(group, kinds) if chunk.name in places]
    if not chunks:
        return set()
    # The last value ends with the row group: that is put where it is aligned.
    buffer = np.empty(ALIGNED + max(chunk.size for chunk in chunks), dtype=np.uint8)
    taken = set()
    with group.filesystem.open_input_file(group.path) as file:
        for chunk in chunks:
            begin = -chunk.size % ALIGNED
            data = buffer[begin : begin + chunk.size]
            file.seek(chunk.start)
            if file.readinto(data) == chunk.size and _take(data, rows, places[chunk.name]):
                taken.add(chunk.name)
    return taken


def _plain_chunks(group: Any, kinds: Mapping[str, pa.DataType]) -> Iterator[_Chunk]:
    (info,) = group.row_groups
    footer, stored = group.metadata, group.physical_schema
    columns, chunks = footer.schema, footer.row_group(info.id)
    for index in range(len(columns)):
        column = columns.column(index)
        kind = kinds.get(column.name)
        # The leaf of a nested column has a longer path.
        if kind not in PHYSICAL or column.path != column.name or column.max_repetition_level:
            continue
        if column.physical_type != PHYSICAL[kind] or stored.field(column.name).type != kind:
            continue
        chunk = chunks.column(index)
        if chunk.total_compressed_size <= MOST_BYTES and _is_plain(chunk):
            yield _Chunk(column.name, chunk.data_page_offset, chunk.total_compressed_size)


def _is_plain(chunk: Any) -> bool:
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        return False
    statistics = chunk.statistics
    return statistics is not None and statistics.has_null_count and not statistics.null_count


def _take(
    data: NDArray[np.uint8], rows: NDArray[np.int64], place: NDArray[np.unsignedinteger]
) -> bool:
    """Take the values of some rows; whether all could be taken."""
    first = taken = 0
    try:
        for values in _pages(data, place.dtype):
            upto = int(np.searchsorted(rows, first + len(values)))
            values.take(rows[taken:upto] - first, out=place[taken:upto], mode="clip")
            first, taken = first + len(values), upto
    except ThriftError:
        return False
    return taken == len(rows)


def _pages(data: NDArray[np.uint8], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """The values of each page.

    Raises:
        ThriftError: there is something else, or pages are small.
    """
    at = 0
    while at < len(data):
        header, at = read_struct(data.data, at)
        values, end = _values(header), at + _number(header, PAGE_BYTES)
        # What stands before the values are levels, which say that none of them is null.
        begin = end - values * dtype.itemsize
        if not at <= begin <= end <= len(data):
            raise ThriftError("a page that is longer or shorter than its header says")
        if values < LEAST_VALUES and end < len(data):
            raise ThriftError("a small page")
        yield data[begin:end].view(dtype)
        at = end


def _values(header: Mapping[int, Any]) -> int:
    """How many values a page has.

    Raises:
        ThriftError: it does not say, or they are not plain.
    """
    kinds = {DATA_PAGE: (HEADER, ENCODING), DATA_PAGE_V2: (HEADER_V2, ENCODING_V2)}
    own, encoding = kinds.get(_number(header, PAGE_TYPE), (0, 0))
    of_page = header.get(own)
    if not isinstance(of_page, dict) or _number(of_page, encoding) != PLAIN:
        raise ThriftError("a page of another kind")
    return _number(of_page, VALUES)


def _number(fields: Mapping[int, Any], number: int) -> int:
    value = fields.get(number)
    if type(value) is not int:
        raise ThriftError("a header without a number that it must have")
    return value
