"""One data file of an export becomes rows of history: a chunk of lines at a time, in one pass.

Arrow's JSON reader is given the type of each attribute, so that it infers nothing, and keeps
every number as the text that it is. A missing attribute is a null, one of another type a struct
without what is declared: conflicts are found at no further parse. Casts take what they surely
know (`text_columns`); the few lines in doubt are read again by `item_values`, from memory, which
decides each value exactly. Memory is that of one chunk, whatever the file's size.

Columns of Map and Json may hold anything: their values are taken from the lines one by one.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from feast_dynamo_ext.arrow_types import numbers, one_array
from feast_dynamo_ext.capture.values.attribute_types import ValueKind
from feast_dynamo_ext.capture.values.change_rows import (
    QUARANTINE,
    Converted,
    Images,
    RecordReader,
    change_rows,
    joined,
    put_rows,
)
from feast_dynamo_ext.capture.values.image_columns import Findings, ImageColumns
from feast_dynamo_ext.capture.values.text_columns import column_of
from feast_dynamo_ext.errors import SourceReadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns

CHUNK_BYTES = 8 << 20
READ_BYTES = 1 << 20
LONGEST_LINE = 64 << 20
"""An item has 400 KB; its line, with an image before and after and base64, a few times that."""

ITEM, KEYS, OLD, NEW, METADATA = "Item", "Keys", "OldImage", "NewImage", "Metadata"
WRITE_TIME = "WriteTimestampMicros"
WRITE_TIME_KIND = ValueKind("int64", pa.int64(), ("N",), "Int64")
GZIP = 16 + zlib.MAX_WBITS
NULLS_WORTH = 50
"""One doubtful row in so many: then NULLs are worth reading along with the values."""

MOST_WATCHED = 1_000

NEWLINE, BRACE = 10, 123
OBJECT = b'":{"'
OBJECT_NUMBER = int.from_bytes(OBJECT, "little")
"""What a named object begins with, in compact JSON, and nothing else: in texts quotes have a
backslash before them."""


@dataclass
class FileTotals:
    """What a data file held; all of it once it was read to its end.

    Attributes:
        records: lines.
        captured: records that became rows.
        quarantined: records that did not fit.
        rows: of history; a move and its put are two.
        md5: of the file's bytes, as base64.
        undeclared: how many images have an attribute that no column takes, by its name.
    """

    records: int = 0
    captured: int = 0
    quarantined: int = 0
    rows: int = 0
    md5: str = ""
    undeclared: Counter[str] = field(default_factory=Counter)


class DataFile:
    """A data file of an export, full or incremental, as rows.

    ::

        file = DataFile(stream, columns, "s3://.../data/abc.json.gz", exported_at=moment_us,
                        md5="5iEC...==", records=1000)
        for converted in file.batches():
            ...                        # to be committed only when the loop has come to its end
        file.totals

    Args:
        stream: the file's bytes, read once and in order.
        columns: of the history.
        name: of the file, for messages and for `origin` in the quarantine.
        exported_at: when the items of a full export count as written, microseconds since 1970;
            see `change_rows.as_of`.
        md5: what the manifest says of the bytes, base64; None for not known.
        records: what the manifest says of the lines; None for not known.
        chunk_bytes: how much text is converted at a time.
    """

    def __init__(
        self,
        stream: BinaryIO,
        columns: CapturedColumns,
        name: str,
        *,
        exported_at: int | None = None,
        md5: str | None = None,
        records: int | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.name, self.columns, self.totals = name, columns, FileTotals()
        self._exported_at, self._md5, self._records = exported_at, md5, records
        self._bytes = _Bytes(stream, chunk_bytes)

    def batches(self) -> Iterator[Converted]:
        """Rows and quarantine of each chunk.

        Raises:
            SourceReadError: the file is damaged, is not the one of the manifest, or has a line
                that is no record. What came before is not to be kept.
        """
        undeclared = self.totals.undeclared
        chunks = _Chunks(self.columns, self._exported_at, self.name, undeclared)
        try:
            for chunk in self._bytes.chunks():
                converted = chunks.converted(chunk, self.totals.records)
                self._count(converted)
                yield converted
        except (LineError, zlib.error) as error:
            # Which of the two it is says what to do: export again, or report a fault.
            self._bytes.read_rest()
            self._check_md5()
            at = f", line {error.line:,}" if isinstance(error, LineError) else ""
            raise SourceReadError(
                f"{self.name}{at}: {error}. Its bytes are "
                f"{'those of the manifest' if self._md5 else 'not known to any manifest'}; export "
                "the table again."
            ) from error
        self._check_md5()
        self._check_counts()

    def _count(self, converted: Converted) -> None:
        totals = self.totals
        quarantined = converted.quarantine.num_rows
        totals.records += converted.records
        totals.quarantined += quarantined
        totals.captured += converted.records - quarantined
        totals.rows += converted.rows.num_rows

    def _check_md5(self) -> None:
        self.totals.md5 = self._bytes.md5
        if self._md5 is not None and self._md5 != self.totals.md5:
            raise SourceReadError(
                f"{self.name} is damaged: the MD5 of its bytes is {self.totals.md5}, the manifest "
                f"says {self._md5}. Copy it again, or export the table again."
            )

    def _check_counts(self) -> None:
        if self._records is not None and self._records != self.totals.records:
            raise SourceReadError(
                f"{self.name} has {self.totals.records:,} items, the manifest says "
                f"{self._records:,}. Export the table again."
            )


class LineError(Exception):
    """A line that is no record, by its number in the file."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Bytes:
    """A stream's bytes, unpacked where they are gzip, in chunks of whole lines."""

    def __init__(self, stream: BinaryIO, chunk_bytes: int) -> None:
        self._stream, self._size = stream, chunk_bytes
        self._digest = hashlib.md5(usedforsecurity=False)

    @property
    def md5(self) -> str:
        return base64.b64encode(self._digest.digest()).decode()

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data

    def read_rest(self) -> None:
        while self._read(READ_BYTES):
            pass

    def chunks(self) -> Iterator[bytes]:
        left: list[bytes] = []
        held = 0
        for text in self._texts():
            end = text.rfind(b"\n") + 1
            if end:
                yield b"".join([*left, memoryview(text)[:end]]) if left else text[:end]
                left, held = [], 0
            left.append(text[end:])
            held += len(text) - end
            if held > LONGEST_LINE:
                raise zlib.error(f"a line is longer than {LONGEST_LINE >> 20} MB")
        last = b"".join(left)
        if last:
            yield last + b"\n"

    def _texts(self) -> Iterator[bytes]:
        first = self._read(2)
        if first == b"\x1f\x8b":
            yield from self._unpacked(first)
            return
        while data := first + self._read(self._size - len(first)):
            yield data
            first = b""

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        unpack = zlib.decompressobj(GZIP)
        made: list[bytes] = []
        size = 0
        while data := data or self._read(READ_BYTES):
            if unpack.eof:  # a file may be several, one after the other
                unpack = zlib.decompressobj(GZIP)
            made.append(unpack.decompress(data, self._size - size))
            size += len(made[-1])
            data = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
            if size >= self._size:
                yield b"".join(made)
                made, size = [], 0
        while not unpack.eof and (more := unpack.decompress(b"", self._size)):
            made.append(more)
        if not unpack.eof:
            raise zlib.error("the file ends in the middle of its compressed data")
        yield b"".join(made)


class _Chunks:
    """Converts chunks of one file; what one shows helps with the next."""

    def __init__(
        self,
        columns: CapturedColumns,
        exported_at: int | None,
        name: str,
        undeclared: Counter[str],
    ) -> None:
        self._columns, self._exported_at, self._name = columns, exported_at, name
        self._undeclared = undeclared
        self._records = RecordReader(columns)
        readers = {OLD: self._records.before, NEW: self._records.after}
        if exported_at is not None:
            readers = {ITEM: self._records.after}
        else:
            readers[KEYS] = self._records.keys
        self._images = {key: ImageColumns(reader) for key, reader in readers.items()}
        self._has_lines = any(each.has_lines for each in self._images.values())
        self._always = ITEM if exported_at is not None else KEYS
        # Attributes that no column takes; the TTL is one that is expected.
        self._watched: dict[str, None] = {}
        if columns.expiry is not None:
            self._watched[columns.expiry] = None
        self._with_nulls: set[str] = set()

    def converted(self, chunk: bytes, first: int) -> Converted:
        """The rows of a chunk of whole lines, before which there were so many in the file."""
        lines = _Lines(chunk, first, self._name)
        count = lines.count
        table = self._table(chunk) if lines.are_objects else None
        if table is None or table.num_rows != count:
            return self._one_by_one(lines, range(count))
        found = Findings.of_rows(count)
        written = self._written(table, found)
        parts = {name: one_array(table[name]) for name in self._images}
        images = {}
        for name, columns in self._images.items():
            items = lines.images(name) if columns.has_lines else None
            images[name] = columns.images(parts[name], found, items)
        found.mark(~images[self._always].present)
        doubtful = np.flatnonzero(found.doubtful)
        self._count_undeclared(chunk, lines, parts, found, doubtful)
        rows = self._rows(images, written, found.doubtful)
        _check_texts(rows, lines)
        if not len(doubtful):
            return Converted(rows, joined([], QUARANTINE), count)
        if NULLS_WORTH * len(doubtful) > count:
            self._with_nulls |= found.conflicts
        rest = self._one_by_one(lines, doubtful.tolist())
        rows = joined([rows, rest.rows], self._columns.history_schema)
        return Converted(rows, rest.quarantine, count)

    def _table(self, chunk: bytes) -> pa.Table | None:
        """The chunk by Arrow's reader; None where it does not read all of it."""
        fields = [
            pa.field(
                name, columns.json_type(self._with_nulls, () if name == KEYS else self._watched)
            )
            for name, columns in self._images.items()
        ]
        if self._exported_at is None:
            number = pa.struct([("N", pa.string())])
            fields.append(pa.field(METADATA, pa.struct([(WRITE_TIME, number)])))
        try:
            return pj.read_json(
                pa.BufferReader(chunk),
                # All in one block: then no line crosses two.
                pj.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
                pj.ParseOptions(
                    explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
                ),
            )
        except pa.ArrowInvalid:
            return None

    def _written(self, table: pa.Table, found: Findings) -> NDArray[np.int64]:
        if self._exported_at is not None:
            return np.full(table.num_rows, self._exported_at, np.int64)
        (moment,) = one_array(table[METADATA]).flatten()
        (texts,) = moment.flatten()
        made, doubtful = column_of(WRITE_TIME_KIND, texts)
        if doubtful is not None:
            found.mark(doubtful)
        if made.null_count:
            found.mark(made.is_null().to_numpy(zero_copy_only=False))
        return numbers(made)

    def _rows(
        self,
        images: dict[str, Images],
        written: NDArray[np.int64],
        doubtful: NDArray[np.bool_],
    ) -> pa.RecordBatch:
        if doubtful.any():
            kept = ~doubtful
            images = {name: _filtered(each, kept) for name, each in images.items()}
            written = written[kept]
        if self._exported_at is not None:
            return put_rows(self._columns, images[ITEM].arrays, written)
        return change_rows(self._columns, written, images[KEYS].arrays, images[OLD], images[NEW])

    def _one_by_one(self, lines: _Lines, which: Sequence[int]) -> Converted:
        """Lines that Arrow's reader does not decide."""
        records = [lines.record(at, self._always) for at in which]
        moments = [
            self._moment(record, lines.number(at))
            for at, record in zip(which, records, strict=True)
        ]
        for record in records:
            self._count_in(record)
        origins = [f"{self._name}:{lines.number(at)}" for at in which]
        return self._records.converted(records, moments, origins)

    def _moment(self, record: dict[str, Any], line: int) -> int:
        if self._exported_at is not None:
            return self._exported_at
        metadata = record.get(METADATA)
        moment = metadata.get(WRITE_TIME) if isinstance(metadata, dict) else None
        if isinstance(moment, dict):
            moment = moment.get("N")
        try:
            return int(moment)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise LineError(f"has no {METADATA}.{WRITE_TIME}", line) from None

    def _count_in(self, record: dict[str, Any]) -> None:
        for name in (ITEM, OLD, NEW):
            self._undeclared.update(self._records.after.undeclared(record.get(name)))

    def _count_undeclared(
        self,
        chunk: bytes,
        lines: _Lines,
        parts: dict[str, pa.StructArray],
        found: Findings,
        doubtful: NDArray[np.int64],
    ) -> None:
        """Count attributes that no column takes in all lines but the doubtful ones.

        Every attribute is a named object. Where there are as many in the text as the declared
        attributes are made of, there are no others.
        """
        kept = ~found.doubtful
        if not self._has_lines and found.is_complete:
            objects = _objects_in(chunk) - sum(lines.text(at).count(OBJECT) for at in doubtful)
            if objects == self._objects(parts, found, doubtful):
                for name, columns in self._images.items():
                    if name != KEYS and self._watched:
                        names = [each for each in self._watched if each != self._columns.expiry]
                        self._undeclared.update(columns.watched(parts[name], names, kept))
                return
        before = set(self._undeclared)
        for at in np.flatnonzero(kept).tolist():
            self._count_in(lines.record(at, self._always))
        new = set(self._undeclared) - before
        self._watched |= dict.fromkeys(name for name in new if len(self._watched) < MOST_WATCHED)

    def _objects(
        self,
        parts: dict[str, pa.StructArray],
        found: Findings,
        doubtful: NDArray[np.int64],
    ) -> int:
        """Named objects of the declared attributes in all lines but the doubtful ones."""
        objects = found.objects
        if len(doubtful):
            rest = Findings.of_rows(len(doubtful))
            for name, columns in self._images.items():
                columns.images(parts[name].take(pa.array(doubtful)), rest, None)
            objects -= rest.objects
        rows = len(found.doubtful) - len(doubtful)
        kept = pa.array(~found.doubtful)
        images = sum(
            rows if name == self._always else _count_valid(part, kept)
            for name, part in parts.items()
        )
        return objects + images + (0 if self._exported_at is not None else 2 * rows)


def _objects_in(chunk: bytes) -> int:
    """`chunk.count(OBJECT)`, in half the time."""
    size = len(chunk)
    return sum(
        int(np.count_nonzero(np.frombuffer(chunk, "<u4", (size - at) // 4, at) == OBJECT_NUMBER))
        for at in range(min(4, size))
    )


def _count_valid(part: pa.StructArray, kept: pa.BooleanArray) -> int:
    return int(pc.sum(pc.and_(part.is_valid(), kept)).as_py() or 0)


def _filtered(images: Images, kept: NDArray[np.bool_]) -> Images:
    mask = pa.array(kept)
    return Images([array.filter(mask) for array in images.arrays], images.present[kept])


def _check_texts(rows: pa.RecordBatch, lines: _Lines) -> None:
    """Refuse texts that are not UTF-8, which Arrow's reader takes as they are."""
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        for at in range(lines.count):
            lines.record(at, None)
        raise


class _Lines:
    """The lines of a chunk, split and parsed where they are wanted."""

    def __init__(self, chunk: bytes, first: int, name: str) -> None:
        self._chunk, self._first, self._name = chunk, first, name
        self._codes = np.frombuffer(chunk, np.uint8)
        self._ends = np.flatnonzero(self._codes == NEWLINE)
        self._starts = np.concatenate([[0], self._ends[:-1] + 1])
        self.count = len(self._ends)

    @property
    def are_objects(self) -> bool:
        """Whether each begins as an object. At one that is `null` Arrow aborts Python."""
        return bool((self._codes[self._starts] == BRACE).all())

    def text(self, at: int) -> bytes:
        return self._chunk[self._starts[at] : self._ends[at]]

    def number(self, at: int) -> int:
        """The number of a line in the file, from 1."""
        return self._first + at + 1

    def record(self, at: int, key: str | None) -> dict[str, Any]:
        """A line's record, which must have a key."""
        try:
            record = orjson.loads(self.text(at))
        except orjson.JSONDecodeError as error:
            raise LineError(f"is not JSON ({error})", self.number(at)) from error
        if key is not None and not (
            isinstance(record, dict) and isinstance(record.get(key), dict)
        ):
            raise LineError(f"is no record of such an export: it has no `{key}`", self.number(at))
        found: dict[str, Any] = record
        return found

    def any_record(self, at: int) -> dict[str, Any]:
        """A line's record, of whichever export."""
        record = self.record(at, None)
        if not isinstance(record, dict) or not {ITEM, KEYS} & set(record):
            raise LineError("is no record of an export", self.number(at))
        return record

    @functools.cached_property
    def _parsed(self) -> list[dict[str, Any]]:
        return [self.record(at, None) for at in range(self.count)]

    def images(self, name: str) -> list[Any]:
        return [record.get(name) for record in self._parsed]


def export_records(stream: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """The records of a data file as they are, one by one.

    Args:
        stream: the file's bytes, gzip or plain.
        name: of the file, for messages.

    Raises:
        SourceReadError: the file is damaged, or a line is no record.
    """
    count = 0
    try:
        for chunk in _Bytes(stream, READ_BYTES).chunks():
            lines = _Lines(chunk, count, name)
            for at in range(lines.count):
                yield lines.any_record(at)
            count += lines.count
    except LineError as error:
        raise SourceReadError(f"{name}, line {error.line:,}: {error}.") from error
    except zlib.error as error:
        raise SourceReadError(f"{name}: {error}. Export the table again.") from error
