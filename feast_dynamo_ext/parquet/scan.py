"""Reads Parquet files a row group at a time, and says of what goes wrong which file it was."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from feast_dynamo_ext import aws, cancellation
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    ColumnTypeError,
    CredentialsError,
    FeastDynamoError,
    SourceReadError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.listing import FileView, Place, Views
    from feast_dynamo_ext.storage import FileState

    Reading = Callable[[str], AbstractContextManager[object]]


GONE = {"PreconditionFailed", "NoSuchKey", "404"}
"""What S3 says of a file that was replaced or removed, where boto3 reads it."""

# What S3 says of the caller, not of the file.
REFUSED = (AccessDeniedError, AwsUnavailableError, CredentialsError, ThrottledError)


class FileChangedError(SourceReadError):
    """A file was replaced or removed while it was being read."""


@dataclass(frozen=True)
class ReadErrors:
    """Explains what Arrow raises.

    Attributes:
        place: where the files are.
        files: as they were listed.
        hint: says what else is known of a file, given its path.
        is_table: whether a table's log says which files count.
    """

    place: Place
    files: tuple[FileState, ...]
    hint: Callable[[str], str] = lambda _: ""
    is_table: bool = False

    @contextlib.contextmanager
    def of_file(self, path: str) -> Iterator[None]:
        """Errors of reading a file as ours, which name it.

        Raises:
            SourceReadError: it cannot be read, or changed since it was listed.
            AwsError: S3 refused.
        """
        try:
            yield
        except AwsError as error:
            if error.code in GONE and path in self._listed:
                raise self._changed(self._listed[path]) from error
            raise
        except FeastDynamoError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            # The last: a footer with names of columns that are no text.
            raise self._explained(error, path) from error

    def check_columns(self, fragment: Any, columns: Collection[str]) -> None:
        """Refuse a file whose footer does not describe some columns so that they can be read.

        To be called before pyarrow is asked for what a footer says of a column, or for the row
        groups that a condition leaves: of one that is encrypted or corrupt, it ends the process.

        Raises:
            SourceReadError: names the file.
        """
        with self.of_file(fragment.path):
            check_columns(fragment, self._listed[fragment.path].size, columns)

    @functools.cached_property
    def _listed(self) -> dict[str, FileState]:
        return {file.path: file for file in self.files}

    def check_unchanged(self) -> None:
        """Check that the files are what they were when they were listed.

        Raises:
            SourceReadError: one was replaced or removed; names it.
        """
        # Files that a table's log names are written once; on S3 each would cost a request, and
        # one of another size cannot be read there.
        far = self.place.is_on_s3
        files = [file for file in self.files if not (far and file.is_of_log)]
        changed = self.place.changed(files) if files else None
        if changed is not None:
            raise self._changed(changed)

    @contextlib.contextmanager
    def of_schemas(self) -> Iterator[None]:
        """Errors of bringing files together, unless one is not what was listed.

        Raises:
            SourceReadError: one was replaced or removed since it was listed; names it.
        """
        try:
            yield
        except (ColumnTypeError, SourceReadError):
            self.check_unchanged()
            raise

    def _explained(self, error: Exception, path: str) -> FeastDynamoError:
        refused = _refusal(error, path)
        if isinstance(refused, REFUSED):
            return refused
        file = self._listed.get(path)
        if file is not None and self.place.changed([file]):
            return self._changed(file)
        said = " ".join(str(error).split()).rstrip(".")
        return SourceReadError(
            f"{self.place.uri}: {path} cannot be read: {said}.{self.hint(path)} Check that it is "
            "Parquet, and whole; remove it, or write it again."
        )

    def _changed(self, file: FileState) -> SourceReadError:
        advice = "write new files beside the old ones instead of replacing them"
        if self.is_table:
            advice = "let the table keep what it no longer needs for longer than a read takes"
        return FileChangedError(
            f"{self.place.uri}: {file.path} changed while it was being read: it was replaced or "
            f"removed. Run it again; {advice}."
        )


class _NoBytes(io.RawIOBase):
    """A file of a size, that ends wherever it is read; notes whether it was.

    It raises nothing: Arrow keeps what a Python file raises, and with it all frames of the stack.
    """

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0
        self.is_wanted = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, at: int, whence: int = io.SEEK_SET) -> int:
        self._at = at if whence == io.SEEK_SET else self._size + at
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, _: int = -1) -> bytes:
        self.is_wanted = True
        return b""


def check_columns(fragment: Any, size: int, columns: Collection[str]) -> None:
    """See `ReadErrors.check_columns`; no byte of the file is read.

    Reading, unlike asking, raises: it looks at all that a footer says of the columns, and then
    wants the first byte of them.

    Raises:
        OSError: what is wrong with the footer.
    """
    metadata, groups = fragment.metadata, [group.id for group in fragment.row_groups]
    if not groups:
        return
    schema = metadata.schema
    leaves = [(at, schema.column(at)) for at in range(metadata.num_columns)]
    leaves = [(at, leaf) for at, leaf in leaves if leaf.path.partition(".")[0] in columns]
    unread = _NoBytes(size)
    # Ahead of reading, Arrow looks at all that it will read, by threads of its own; of a single
    # part of a file, which most are, it looks at all of it anyway before it wants the first byte.
    ahead = len(groups) * len(leaves) > 1
    file = pq.ParquetFile(pa.PythonFile(unread, mode="r"), metadata=metadata, pre_buffer=ahead)
    try:
        file.read_row_groups(groups, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException):
        if not unread.is_wanted:
            raise
    for at, leaf in leaves:
        kinds = {metadata.row_group(group).column(at).physical_type for group in groups}
        if kinds != {leaf.physical_type}:  # which its statistics are not made of
            raise OSError(f"column {leaf.path} is {leaf.physical_type} and {sorted(kinds)}")


def _refusal(error: Exception, path: str) -> AwsError | None:
    """What S3 said; None where it is not S3's error."""
    try:
        with aws.s3_translated(path):
            raise error
    except AwsError as refused:
        return refused
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return None


T = TypeVar("T")

BATCH_ROWS, BATCH_BYTES = 65_536, 32 << 20
"""Of rows that are read into memory as one batch."""

WORK_ROWS = 1 << 18
"""The same where several threads work on batches: each has its price, and holds up the others.
Measured on two cores: a tenth less time than with a quarter of these."""

BUFFER_BYTES = 1 << 16
"""Of a column that is read from this machine: never a whole one of a large row group at once."""

NEAR = ds.ParquetFragmentScanOptions(
    pre_buffer=False, use_buffered_stream=True, buffer_size=BUFFER_BYTES
)
FAR = ds.ParquetFragmentScanOptions(pre_buffer=True)

INT96_UNIT = "us"
"""Spark's old times, INT96, are read as microseconds: as nanoseconds, the year 9999 wraps to 1816.
"""

SMALL_BYTES = 16 << 20
"""Of a row group in memory, up to which its columns are read without such buffers."""

MOST_TOGETHER = 16
"""Small row groups that one thread reads as one: the others have work too."""

READ_AHEAD = {"batch_readahead": 1, "fragment_readahead": 1}
GROUPS_AHEAD = 1
"""Row groups that are fetched while one is read. Arrow's scan of a whole dataset reads ahead of a
slow consumer: finding the newest of 10 million rows it held 210 MB more than this does."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file, as the file is read.

    Attributes:
        fragment: pyarrow's, of this row group alone.
        view: how the file is read; None for as it stands.
        first: number of its first row in the file.
    """

    fragment: Any
    view: FileView | None = None
    first: int = 0

    @property
    def path(self) -> str:
        """Path of the file."""
        path: str = self.fragment.path
        return path

    @property
    def rows(self) -> int:
        """How many of its rows count."""
        stored = self._stored_rows
        return stored - len(self._deleted(stored))

    @functools.cached_property
    def is_small(self) -> bool:
        """Whether it is read so soon that what is done for each row group counts."""
        (info,) = self.fragment.row_groups
        return not self._is_far and int(info.total_byte_size) <= SMALL_BYTES

    @functools.cached_property
    def _stored_rows(self) -> int:
        (info,) = self.fragment.row_groups
        return int(info.num_rows)

    def batches(
        self, schema: pa.Schema, columns: Sequence[str], *, by_one_thread: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Its rows that count, in order.

        Args:
            schema: names and types of the columns in the source.
            columns: names of those to read.
            by_one_thread: read by the caller's alone; else Arrow's read several columns at once.

        Raises:
            OSError: it has another number of rows than its footer says.
        """
        stored = self._stored_columns(schema, columns) if by_one_thread or self.is_small else None
        most = self._batch_rows(WORK_ROWS if by_one_thread else BATCH_ROWS)
        if stored is None:
            read = self._scanned(schema, columns, most, by_one_thread=by_one_thread)
        else:
            read = self._read(pa.schema([schema.field(name) for name in columns]), stored, most)
        start, end = self.first, self.first + self._stored_rows
        for batch in read:
            first, start = start, start + batch.num_rows
            gone = self._deleted(batch.num_rows, first) - first
            if not len(gone):
                yield batch
                continue
            counts = np.ones(batch.num_rows, dtype=bool)
            counts[gone] = False
            if counts.any():
                yield batch.filter(pa.array(counts))
        if start != end:
            raise OSError(
                f"a row group has {start - self.first:,} rows, and its footer says "
                f"{end - self.first:,}"
            )

    def _scanned(
        self, schema: pa.Schema, columns: Sequence[str], most: int, *, by_one_thread: bool
    ) -> Iterator[pa.RecordBatch]:
        view = self.view
        options = {"batch_size": most, **READ_AHEAD}
        if by_one_thread:
            # Far away, a row group's columns are fetched together. What is on this machine is
            # read as it is needed, which takes a sixth less time.
            options |= {
                "use_threads": False,
                "fragment_scan_options": FAR if self._is_far else NEAR,
            }
        if view is None:
            yield from self.fragment.scanner(
                schema=schema, columns=list(columns), **options
            ).to_batches()
            return
        scanner = self.fragment.scanner(
            schema=_stored_schema(schema, view), columns=_stored(schema, columns, view), **options
        )
        for read in scanner.to_batches():
            yield _as_in_table(read, view)

    def _stored_columns(self, schema: pa.Schema, columns: Sequence[str]) -> list[str] | None:
        """What columns are called in the file; None where it takes Arrow's scanner to read them.

        That is where they are far away, in other types than in the source, or not in the file.
        Of a small row group a scanner takes three times as long as what it does.
        """
        if self._is_far or not columns:
            return None
        there, view = self.fragment.physical_schema, self.view
        of_folders = ds.get_partition_keys(self.fragment.partition_expression)
        found = []
        for name in columns:
            inside = name if view is None else view.name(name)
            if inside is None or "." in inside or name in of_folders:
                return None
            at, kind = there.get_field_index(inside), schema.field(name).type
            if at < 0 or not _is_plain(kind) or there.field(at).type != kind:
                return None
            found.append(inside)
        return found

    def _read(
        self, schema: pa.Schema, stored: Sequence[str], most: int
    ) -> Iterator[pa.RecordBatch]:
        (info,) = self.fragment.row_groups
        with self.fragment.filesystem.open_input_file(self.path) as opened:
            file = pq.ParquetFile(
                opened,
                metadata=self.fragment.metadata,
                buffer_size=0 if self.is_small else BUFFER_BYTES,
                coerce_int96_timestamp_unit=INT96_UNIT,
            )
            read = file.read_row_groups([info.id], columns=list(stored), use_threads=False)
        for batch in read.select(stored).to_batches(max_chunksize=most):
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    def _batch_rows(self, most: int) -> int:
        """How many rows make a batch; wide ones make smaller batches."""
        (info,) = self.fragment.row_groups
        row_bytes = max(1, info.total_byte_size // max(1, info.num_rows))
        return int(max(1, min(most, BATCH_BYTES // row_bytes)))

    @property
    def _is_far(self) -> bool:
        return _is_far(self.fragment.filesystem)

    def _deleted(self, rows: int, first: int | None = None) -> NDArray[np.int64]:
        if self.view is None:
            return NONE
        first = self.first if first is None else first
        return _between(self.view.deleted, first, first + rows)


def _is_far(filesystem: fs.FileSystem) -> bool:
    return not isinstance(filesystem, fs.LocalFileSystem)


NONE = np.empty(0, dtype=np.int64)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether there is one way alone to have a column of that type from a file."""
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        return False
    return not pa.types.is_nested(kind)


def _between(numbers: NDArray[np.int64], first: int, end: int) -> NDArray[np.int64]:
    start, stop = np.searchsorted(numbers, [first, end])
    return numbers[start:stop]


def _stored_schema(schema: pa.Schema, view: FileView) -> pa.Schema:
    """The columns under their names in a file, in their types there where fields differ."""
    fields = []
    for column in schema:
        name, shape = view.name(column.name), view.shapes.get(column.name)
        if name is not None:
            kind = column.type if shape is None else shape.stored
            fields.append(column.with_name(name).with_type(kind))
    return pa.schema(fields)


def _as_in_table(batch: pa.RecordBatch, view: FileView) -> pa.RecordBatch:
    for at, name in enumerate(batch.schema.names):
        shape = view.shapes.get(name)
        if shape is not None:
            batch = batch.set_column(at, name, shape.apply(batch.column(at)))
    return batch


def _stored(schema: pa.Schema, columns: Sequence[str], view: FileView) -> dict[str, Any]:
    """For each column what it is in a file."""
    names = {name: view.name(name) for name in columns}
    return {
        name: _null(schema.field(name).type) if inside is None else ds.field(inside)
        for name, inside in names.items()
    }


def _null(kind: pa.DataType) -> ds.Expression:
    """A null of a type, for all rows."""
    return ds.scalar(pa.scalar(None, kind))


def batches(
    dataset: ds.FileSystemDataset,
    columns: Sequence[str],
    reading: Reading,
    views: Views | None = None,
) -> Iterator[pa.RecordBatch]:
    """All rows in the order of the files, in batches of bounded size.

    Args:
        dataset: the files.
        columns: names of the columns to read.
        reading: what a file is read in, given its path; names the file in errors.
        views: how each file is read; None for as they stand.
    """

    def rows_of(group: RowGroup) -> Iterator[pa.RecordBatch]:
        with reading(group.path):
            yield from group.batches(dataset.schema, columns)

    def opened(group: RowGroup) -> tuple[pa.RecordBatch | None, Iterator[pa.RecordBatch]]:
        found = rows_of(group)
        return next(found, None), found

    opened = cancellation.in_threads(opened)
    with ThreadPoolExecutor(1) as threads:
        ahead: deque[Future[Any]] = deque()
        for group in row_groups(dataset, reading, views):
            ahead.append(threads.submit(opened, group))
            if len(ahead) > GROUPS_AHEAD:
                cancellation.check()
                yield from _rest(*ahead.popleft().result())
        for first in ahead:
            yield from _rest(*first.result())


def each(
    dataset: ds.FileSystemDataset,
    columns: Sequence[str],
    work: Callable[[pa.RecordBatch, int], T],
    threads: int,
    reading: Reading,
    wanted: NDArray[np.int64] | None = None,
    together: int = 0,
    views: Views | None = None,
) -> Iterator[T]:
    """What a function makes of all batches, several row groups at a time.

    Args:
        dataset: the files.
        columns: names of the columns to read.
        work: called by several threads, with a batch and the position of its first row.
        threads: how many.
        reading: what a file is read in, given its path; what `work` raises is not of a file.
        wanted: ascending positions; row groups that hold none of them are not read. None for all.
        together: batches that follow each other are one up to so many rows, even of several row
            groups; 0 for as they are read, but for those of small files on this machine.
        views: how each file is read; None for as they stand.

    Returns:
        What was made of the batches, in the order of the files.
    """

    def of_groups(groups: list[RowGroup], start: int) -> list[T]:
        made = []
        # Each batch has its price, and many small files have many.
        most_bytes = BATCH_BYTES if not together else sys.maxsize
        read = _read(groups, columns, dataset, reading)
        for batch in _merged(read, together or WORK_ROWS, most_bytes):
            cancellation.check()
            made.append(work(batch, start))
            start += batch.num_rows
        return made

    runs = _runs(_groups_with(row_groups(dataset, reading, views), wanted), together)
    if threads == 1 and not _is_far(dataset.filesystem):
        # There is nothing to wait for, and threads that take turns cost more than they do.
        for groups, start in runs:
            yield from of_groups(groups, start)
        return
    of_groups = cancellation.in_threads(of_groups)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[list[T]]] = deque()
        for groups, start in runs:
            ahead.append(pool.submit(of_groups, groups, start))
            if len(ahead) > threads:
                yield from ahead.popleft().result()
        for first in ahead:
            yield from first.result()


def row_groups(
    dataset: ds.FileSystemDataset, reading: Reading, views: Views | None = None
) -> Iterator[RowGroup]:
    """The row groups of files that count, in their order.

    Args:
        dataset: the files.
        reading: what a file is read in, given its path; names the file in errors.
        views: how each file is read; None for as they stand.
    """
    for file in dataset.get_fragments():
        with reading(file.path):
            groups = file.split_by_row_group()
            view = views.of(file) if views is not None else None
        if view is None:
            yield from map(RowGroup, groups)
            continue
        rows = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
        starts = np.cumsum([0, *rows])
        for group in groups:
            yield RowGroup(group, view, int(starts[group.row_groups[0].id]))


def _groups_with(
    groups: Iterator[RowGroup], wanted: NDArray[np.int64] | None
) -> Iterator[tuple[RowGroup, int]]:
    """Row groups with the positions of their first rows: all, or those that hold wanted ones."""
    start = 0
    for group in groups:
        end = start + group.rows
        if wanted is None or np.searchsorted(wanted, start) < np.searchsorted(wanted, end):
            yield group, start
        start = end


def _runs(
    groups: Iterator[tuple[RowGroup, int]], most: int
) -> Iterator[tuple[list[RowGroup], int]]:
    """Row groups that follow each other, up to so many rows together; at least one.

    Args:
        groups: the row groups, and the positions of their first rows.
        most: rows; 0: only small ones that are near, some at a time.
    """
    run: list[RowGroup] = []
    start = end = 0
    for group, at in groups:
        rows = group.rows
        fits = end + rows - start <= (most or WORK_ROWS) and at == end
        if not most:
            fits &= group.is_small and run[-1:] != [] and run[-1].is_small
            fits &= len(run) < MOST_TOGETHER
        if run and not fits:
            yield run, start
            run = []
        start = start if run else at
        run.append(group)
        end = at + rows
    if run:
        yield run, start


def _read(
    groups: list[RowGroup],
    columns: Sequence[str],
    dataset: ds.FileSystemDataset,
    reading: Reading,
) -> Iterator[pa.RecordBatch]:
    for group in groups:
        with reading(group.path):
            yield from group.batches(dataset.schema, columns, by_one_thread=True)


def _merged(
    batches: Iterator[pa.RecordBatch], most_rows: int, most_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Batches put together as long as they are not too large."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if held and (rows + batch.num_rows > most_rows or size + batch.nbytes > most_bytes):
            yield from _together(held)
            held, rows, size = [], 0, 0
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
    yield from _together(held)


def _together(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    if len(batches) < 2:  # noqa: PLR2004 - nothing to put together
        return batches
    together: list[pa.RecordBatch] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return together


def _rest(first: pa.RecordBatch | None, others: Iterator[pa.RecordBatch]) -> Iterator[Any]:
    if first is not None:
        yield first
    yield from others
