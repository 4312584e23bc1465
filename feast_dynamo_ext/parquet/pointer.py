"""The pointer of a compacted source: which files count, and which bucket a join key is in.

Files on S3 outlive every process, library and machine, so the hash is written out here: the
mixer of splitmix64 over the words of a key. An integer is one word; text and bytes are their
length, then their bytes, eight a word, little endian, the last one filled up with zeros.

`feast-dynamo compact` writes files into a folder that readers of the plain folder pass over, then
replaces one small object::

    orders/part-a.parquet                                 replaced, kept for a while
    orders/part-b.parquet                                 replaced, kept for a while
    orders/part-c.parquet                                 appended since: read after the others
    orders/_feast_dynamo/20260131T120000Z-1f/....parquet  the generation
    orders/_feast_dynamo/current.json                     the pointer

A reader sees the pointer of before or the one of after, hence the old files or the new ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from feast_dynamo_ext import aws
from feast_dynamo_ext.arrow_types import one_array
from feast_dynamo_ext.errors import FeastDynamoError, SourceReadError
from feast_dynamo_ext.key_types import comparable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from pyarrow import fs


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
        pyarrow.ArrowInvalid: a value that cannot be compared exactly, see `key_types.comparable`.
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
    compared = one_array(comparable(column))
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


FOLDER = "_feast_dynamo"
POINTER = f"{FOLDER}/current.json"
FORMAT = 1

LISTINGS = 3
"""Times that a folder is listed where its pointer changes meanwhile."""


class Listed(Protocol):
    """A file of a listing."""

    @property
    def path(self) -> str:
        """Path within its filesystem."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mtime_ns(self) -> int | None:
        """Time of its last change."""


F = TypeVar("F", bound=Listed)


@dataclass(frozen=True)
class CompactedFile:
    """One file of a generation.

    Attributes:
        path: relative to the source's folder.
        size: bytes.
        rows: how many.
        bucket: whose rows it has, or None where there are no buckets.
    """

    path: str
    size: int
    rows: int
    bucket: int | None


@dataclass(frozen=True)
class ReplacedFile:
    """A file that does not count any more.

    Attributes:
        path: relative to the source's folder.
        size: bytes.
        version: tells it from a later file of the same path.
        since: when it was replaced, seconds since 1970 UTC.
    """

    path: str
    size: int
    version: str
    since: float


@dataclass(frozen=True)
class Buckets:
    """How rows are spread over files.

    Attributes:
        columns: the source's columns that are hashed, in this order.
        count: number of buckets.
        hash: name of the hash.
    """

    columns: tuple[str, ...]
    count: int
    hash: str = HASH


@dataclass(frozen=True)
class Current:
    """What a pointer says.

    Attributes:
        generation: name of the last run that wrote it.
        buckets: how rows are spread over files; None for files by partition and time.
        sorted_by: columns by which each file's rows are sorted.
        files: the files that count, in the order of their rows' positions.
        replaced: the files that count no more, and are still there.
    """

    generation: str
    buckets: Buckets | None
    sorted_by: tuple[str, ...]
    files: tuple[CompactedFile, ...]
    replaced: tuple[ReplacedFile, ...]

    def to_json(self) -> bytes:
        """The pointer's content."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Current:
        """What a pointer's content says.

        Raises:
            SourceReadError: it is not a pointer, or of a format that this version does not know.
        """
        try:
            found = json.loads(content)
            known = found.pop("format") == FORMAT
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise _corrupt(where, f"it is no pointer ({error})") from error
        if not known:
            raise SourceReadError(
                f"{where} was written by a later version of feast-dynamo-ext. Install that "
                "version here too."
            )
        try:
            return cls._of(found)
        except (LookupError, TypeError) as error:
            raise _corrupt(where, f"a part of it is missing or unknown ({error})") from error

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Current:
        buckets = found["buckets"]
        if buckets is not None:
            buckets = Buckets(tuple(buckets["columns"]), int(buckets["count"]), buckets["hash"])
        return cls(
            str(found["generation"]),
            buckets,
            tuple(found["sorted_by"]),
            tuple(CompactedFile(**file) for file in found["files"]),
            tuple(ReplacedFile(**file) for file in found["replaced"]),
        )


def version_of(file: Listed) -> str:
    """What tells a file from a later one of the same path: ETag on S3, else time of change."""
    return str(getattr(file, "etag", None) or file.mtime_ns)


def visible(
    listed: Sequence[F],
    folder: str,
    filesystem: fs.FileSystem,
    relist: Callable[[], Sequence[F]],
) -> tuple[list[F], Current | None]:
    """The files of a folder that count, in the order of their rows' positions.

    Args:
        listed: all files below the folder, hidden ones included.
        folder: path of the folder within the filesystem.
        filesystem: where it is.
        relist: lists the folder again.

    Returns:
        What is listed, less what was replaced: first the files of the generation in the pointer's
        order, then the others by path, so that what was appended later has later positions. And
        the pointer; None where there is none.

    Raises:
        SourceReadError: the pointer is corrupt, a file that it names is gone or has another size,
            or a file that was replaced has been written again.
    """
    root = folder.rstrip("/")
    for left in reversed(range(LISTINGS)):
        # After the listing: what a removed file was replaced by is then surely known.
        if not any(file.path == f"{root}/{POINTER}" for file in listed):
            return sorted(listed, key=lambda file: file.path), None
        current = read(filesystem, root)
        by_path = {file.path: file for file in listed}
        gone = [file for file in current.files if f"{root}/{file.path}" not in by_path]
        if not gone:
            replaced = {f"{root}/{file.path}": file for file in current.replaced}
            _check_not_rewritten(replaced, by_path)
            appended = [
                file
                for path, file in sorted(by_path.items())
                if path not in replaced and not path.startswith(f"{root}/{FOLDER}/")
            ]
            return _compacted(current, by_path, root) + appended, current
        if left:
            listed = relist()
    raise _corrupt(f"{root}/{POINTER}", f"{gone[0].path}, which it names, is not there")


def read(filesystem: fs.FileSystem, root: str) -> Current:
    """The pointer of a folder that has one.

    Raises:
        SourceReadError: it cannot be read.
        AwsError: S3 refused.
    """
    path = f"{root}/{POINTER}"
    try:
        with aws.s3_translated(path), filesystem.open_input_stream(path) as stream:
            return Current.from_json(stream.readall(), path)
    except FeastDynamoError:
        raise
    except OSError as error:
        raise SourceReadError(f"{path} cannot be read: {error}.") from error


def _compacted(current: Current, by_path: dict[str, F], root: str) -> list[F]:
    found = [by_path[f"{root}/{file.path}"] for file in current.files]
    for says, file in zip(current.files, found, strict=True):
        if says.size != file.size:
            raise _corrupt(
                f"{root}/{POINTER}",
                f"{says.path} has {file.size} bytes, and not {says.size} as it says",
            )
    return found


def _check_not_rewritten(replaced: dict[str, ReplacedFile], by_path: dict[str, F]) -> None:
    for path, before in replaced.items():
        now = by_path.get(path)
        if now is not None and (now.size, version_of(now)) != (before.size, before.version):
            raise SourceReadError(
                f"{path} was compacted and has been written again since: its old rows are in the "
                f"compacted files too. Append rows as files of new names. To let the plain files "
                f"count again, if none was removed, delete {FOLDER}/current.json beside it."
            )


def _corrupt(where: str, why: str) -> SourceReadError:
    return SourceReadError(
        f"{where} cannot be used: {why}. Restore it and what it names. Only if no replaced file "
        "was removed (`--remove-replaced`), delete it: the plain files then count again."
    )
