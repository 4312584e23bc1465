"""Which files a source has, listed once, and what the names of their folders say.

On S3 one listing gives path, size, time and ETag of a thousand files a request. A glob is listed
from its longest fixed folder.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from feast_dynamo_ext import aws
from feast_dynamo_ext.arrow_types import is_bytes, is_number
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    ConfigError,
    FeastDynamoError,
    ResourceNotFoundError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.exact import cast_exact
from feast_dynamo_ext.storage import FileState, files_of
from feast_dynamo_ext.timestamps import LATEST, assume_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.storage import Files


HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

DEFAULT_FORMAT = "%Y-%m-%d"

# From coarse to fine; the finest in a format says how long a period is.
LENGTH_OF = {
    "y": "year",
    "Y": "year",
    "b": "month",
    "B": "month",
    "m": "month",
    "j": "day",
    "d": "day",
    "H": "hour",
    "M": "minute",
    "S": "second",
}
COARSER = {"month": "year", "day": "month", "hour": "day", "minute": "hour", "second": "minute"}


TABLE_LOG = re.compile(
    r"/(_delta_log)/\d{20}\.json$|/(metadata)/[^/]*\.metadata\.json$|/(\.hoodie)/hoodie\.properties$"
)
TABLES = {
    "_delta_log": ("a Delta", "Give the source `file_format=DeltaFormat()`"),
    "metadata": ("an Iceberg", "Make the source Feast's `IcebergSource`"),
    ".hoodie": ("a Hudi", "Export it as Parquet: tables of Hudi are not read"),
}


class DatePartitioned(ABC):
    """A data source whose folders can say which time they hold."""

    @property
    @abstractmethod
    def folder_format(self) -> str:
        """How folders below the path are named, by strftime; empty where they say no time."""


def folders_below(path: str, root: str) -> list[str]:
    """Names of the folders between a source's folder and a file."""
    return path[len(root) :].lstrip("/").split("/")[:-1]


def partition_of(path: str, root: str) -> tuple[tuple[str, str | None], ...]:
    """The hive columns of a file below a source's folder, as text."""
    named = (name.partition("=") for name in folders_below(path, root) if "=" in name)
    return tuple(
        (unquote(name), None if value == HIVE_NULL else unquote(value)) for name, _, value in named
    )


LEAST, GREATEST = -(2**63), 2**63 - 1


def partition_types(files: Iterable[FileState]) -> dict[str, pa.DataType]:
    """The type of each hive column, from the values of all files, where no view declares it.

    Whole numbers are int64, leading zeros or not, as Spark and DuckDB read them; all else is text.
    Where two texts would become one number (`7` and `007`), they stay text.
    """
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for file in files:
        for name, value in file.partition:
            texts[name].update(() if value is None else (value,))
    return {name: _type_of(values) for name, values in texts.items()}


def _type_of(values: set[str]) -> pa.DataType:
    if not values or not all(re.fullmatch(r"-?\d{1,19}", value) for value in values):
        return pa.string()
    numbers = {int(value) for value in values}
    exact = len(numbers) == len(values) and min(numbers) >= LEAST and max(numbers) <= GREATEST
    return pa.int64() if exact else pa.string()


def partition_expression(file: FileState, types: Mapping[str, pa.DataType]) -> ds.Expression:
    """What holds for all rows of a file, by its folders' names.

    Raises:
        ColumnTypeError: a folder's name is no value of its column's type.
    """
    values = {
        name: partition_value(file, name, types[name])
        for name, _ in file.partition
        if name in types
    }
    conditions = [
        ds.field(name) == value if value.is_valid else ds.field(name).is_null()
        for name, value in values.items()
    ]
    return functools.reduce(operator.and_, conditions, ds.scalar(True))


def partition_value(file: FileState, name: str, kind: pa.DataType) -> pa.Scalar:
    """What a file's folder says of a column.

    Raises:
        ColumnTypeError: that is no value of the column's type.
    """
    value = dict(file.partition)[name]
    try:
        return _parsed(value, kind)
    except (pa.ArrowException, ValueError) as error:
        raise ColumnTypeError(
            f"{file.path}: its folder `{name}={value}` is no value of type {kind}, which `{name}` "
            "has. Move the file."
        ) from error


def _parsed(text: str | None, kind: pa.DataType) -> pa.Scalar:
    """A folder's text as a value, as programs write it that have the column in other types."""
    if text is None or (
        text.lower() == "nan" and is_number(kind) and not pa.types.is_floating(kind)
    ):
        return pa.scalar(None, kind)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        # Without a zone it is UTC.
        plain = text.removesuffix("Z").removesuffix("+00:00")
        return pa.scalar(plain, pa.string()).cast(pa.timestamp(kind.unit)).cast(kind)
    if is_bytes(kind):
        return pa.scalar(text.encode(errors="surrogateescape"), kind)
    scalar = pa.scalar(text, pa.string())
    if pa.types.is_integer(kind) and re.fullmatch(r"-?\d+\.0+", text):
        # pandas has floats where an integer is missing.
        return cast_exact(pa.array([float(text)]), kind)[0]
    return scalar.cast(kind)


@dataclass(frozen=True)
class Periods:
    """Folders that each hold the event times of one period, UTC.

    Attributes:
        column: the event time.
        pattern: names of folders below the root, in strftime's directives: ``dt=%Y-%m-%d``,
            ``year=%Y/month=%m/day=%d``, or ``%Y/%m/%d``.
        root: the source's folder.
    """

    column: str
    pattern: str
    root: str

    def may_hold(self, file: FileState, first: datetime | None, last: datetime | None) -> bool:
        """Whether a file may hold event times of a range; where its folders do not say: yes.

        Raises:
            SourceReadError: a folder's name is not of the format.
        """
        text = self._text(file)
        if text is None:
            return True
        start, end = self._period(file, text)
        return (last is None or start <= assume_utc(last)) and (
            first is None or assume_utc(first) < end
        )

    def _text(self, file: FileState) -> str | None:
        if "=" not in self.pattern:
            folders = folders_below(file.path, self.root)
            wanted = self.pattern.count("/") + 1
            return "/".join(folders[:wanted]) if len(folders) >= wanted else None
        values = dict(file.partition)
        names = [part.partition("=")[0] for part in self.pattern.split("/")]
        found = [f"{name}={values[name]}" for name in names if values.get(name) is not None]
        return "/".join(found) if len(found) == len(names) else None

    def _period(self, file: FileState, text: str) -> tuple[datetime, datetime]:
        try:
            start = datetime.strptime(text, self.pattern).replace(tzinfo=timezone.utc)
        except ValueError as error:
            raise SourceReadError(
                f"{file.path}: its folder `{text}` is not of the source's "
                f"`date_partition_column_format`, {self.pattern}. Correct the format, or move the "
                "file."
            ) from error
        return start, _end(start, period_length(self.pattern))


def period_length(pattern: str) -> str:
    """How long a period of a format is: ``year`` to ``second``.

    Raises:
        ConfigError: the format does not say periods without gaps.
    """
    directives = re.findall(r"%(.)", pattern)
    lengths = {LENGTH_OF.get(directive, "") for directive in directives}
    finest = next((each for each in reversed(LENGTH_OF.values()) if each in lengths), "")
    if "j" in directives:
        lengths |= {"month"}
    needed, each = {finest}, finest
    while each in COARSER:
        each = COARSER[each]
        needed.add(each)
    if not finest or lengths != needed:
        raise ConfigError(
            f"`date_partition_column_format`: `{pattern}` does not name a period. Use %Y, then "
            "%m, %d (or %j for the two), %H, %M and %S, each with those before it, for example "
            "`%Y-%m-%d`."
        )
    return finest


def _end(start: datetime, length: str) -> datetime:
    try:
        if length == "year":
            return start.replace(year=start.year + 1)
        if length == "month":
            return (start.replace(day=1) + timedelta(days=32)).replace(day=1)
        return start + timedelta(**{f"{length}s": 1})
    except (OverflowError, ValueError):
        return LATEST


COMPACTED = "_feast_dynamo"
POINTER = f"{COMPACTED}/current.json"
"""What `feast-dynamo compact` of earlier versions left in a folder: which files count there."""

HIDDEN = ("_", ".")  # _SUCCESS, _metadata, .crc and the like, by the convention of Hive and Spark

MARKERS = ("_$folder$", "_COPYING_")
"""Ends of names that are no data: of the empty objects by which EMR and Glue mark folders, and of
files that `hdfs dfs -put` has not finished."""

S3_SCHEMES = ("s3://", "s3a://", "s3n://")

GLOB_PARTS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


class TableChangedError(SourceReadError):
    """What a table's log names is not there, or another."""


T = TypeVar("T")

LOG_READ_AT_MOST = 3


def settled(read: Callable[[], T]) -> T:
    """What reads a table's log and lists its files.

    A writer may replace files, or clean up, between the two: the newer log does not name them.

    Raises:
        SourceReadError: the log, read again, names what is not there.
    """
    for _ in range(LOG_READ_AT_MOST - 1):
        with contextlib.suppress(TableChangedError):
            return read()
    return read()


class Bounds(Protocol):
    """What a table's log says of the values in its files."""

    def range(self, path: str, column: str) -> tuple[Any, Any] | None:
        """(least, greatest) of a file's values, whole numbers or texts; None where not said."""
        ...

    def is_all_null(self, path: str, column: str) -> bool:
        """Whether a file surely has no value of a column."""
        ...

    def may_hold_null(self, path: str, column: str) -> bool:
        """Whether a file may have a row without a value of a column of the table."""
        ...


class Shape(Protocol):
    """Makes a column of a file what it is in its table."""

    @property
    def stored(self) -> pa.DataType:
        """The column's type in the file."""
        ...

    def apply(self, column: pa.Array) -> pa.Array:
        """The column as the table has it."""
        ...


@dataclass(frozen=True)
class FileView:
    """How one file of a table is read.

    Attributes:
        columns: names of the table's columns -> their names in the file, where these are others;
            None where the file lacks the column, whatever it has under its name.
        deleted: ascending numbers of the rows that no longer count.
        shapes: of nested columns whose fields have other names in the file, by the table's names.
    """

    columns: Mapping[str, str | None]
    deleted: NDArray[np.int64]
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def name(self, column: str) -> str | None:
        """What a column is called in the file; None where it has none."""
        return self.columns.get(column, column)


class Views(Protocol):
    """How the files of a table are read."""

    @property
    def are_plain(self) -> bool:
        """Whether all of them are read as they stand."""
        ...

    def of(self, fragment: Any) -> FileView | None:
        """How a file is read, given its fragment; None for as it stands."""
        ...


@dataclass(frozen=True)
class TieBreak:
    """Decides between rows of equal keys, event and created time, where positions do not.

    Attributes:
        sequence: the column whose greatest value wins; rows that are equal in it too, and all rows
            where it is None, are decided by what they hold.
    """

    sequence: str | None


@dataclass(frozen=True)
class TableFiles:
    """One version of a table whose log says which files count.

    Attributes:
        files: these, in the order of their rows' positions.
        schema: names and types of all columns.
        partitions: names and types of those that the log says instead of the files.
        bounds: what the files may hold; None where the log does not say.
        views: how each file is read; None for as they stand.
        ties: decides between equal rows; None where the later position wins.
        internal: columns of the table that are no one's features.
        version: names the version in the log; empty where it has no name.
        summary: what the log says of the version besides.
        name: of the table in its catalog; empty where it has none.
        keys: columns by which rows are of one item, or of one entity; empty where it does not say.
        commits: milliseconds since 1970 and number of the versions that the log still has.
        table_id: the same of one table for as long as there is it; empty where it has none.
        deletes: files that say which rows of the others do not count.
    """

    files: tuple[FileState, ...]
    schema: pa.Schema
    partitions: dict[str, pa.DataType]
    bounds: Bounds | None = None
    views: Views | None = None
    ties: TieBreak | None = None
    internal: frozenset[str] = frozenset()
    version: str = ""
    summary: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    keys: tuple[str, ...] = ()
    commits: tuple[tuple[int, int], ...] = ()
    table_id: str = ""
    deletes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """Where a source's files are.

    Attributes:
        uri: what the source names.
        filesystem: where it is.
        root: the path within it; of a glob, its longest fixed folder.
        pattern: which paths a glob means; None where it is none.
        storage: what lists, reads and writes files there.
    """

    uri: str
    filesystem: fs.FileSystem
    root: str
    pattern: re.Pattern[str] | None
    storage: Files

    @classmethod
    def from_uri(cls, uri: str, settings: AwsSettings) -> Place:
        """The place that a URI or a local path names.

        Raises:
            CredentialsError: s3:// and no credentials.
            ConfigError: no region, or a scheme that is neither s3 nor a file.
        """
        on_s3 = uri.startswith(S3_SCHEMES)
        path = uri.removeprefix("file://")
        path = uri.partition("://")[2] if on_s3 else str(Path(path).absolute())
        # Of an S3 URI only the bucket: a `?` or `#` in a key is no query and no fragment.
        bucket = path.partition("/")[0]
        filesystem, _ = aws.filesystem(f"s3://{bucket}" if on_s3 else uri, settings)
        path = path.rstrip("/")
        root = path
        at = re.search(r"[*?]", path)
        if at:
            root = path[: at.start()].rpartition("/")[0]
        pattern = _regex(path) if at else None
        return cls(
            uri, filesystem, root, pattern, files_of(f"s3://{bucket}" if on_s3 else root, settings)
        )

    @property
    def is_on_s3(self) -> bool:
        """Whether its files are objects of S3."""
        return not isinstance(self.filesystem, fs.LocalFileSystem)

    def files(self, source: str) -> tuple[FileState, ...]:
        """The files there without hidden ones, by path: the order of their rows' positions.

        Args:
            source: the source's name, for messages.

        Raises:
            SourceNotFoundError: no such file, folder or bucket, or no file in it.
            SourceReadError: a local folder cannot be listed, an earlier version compacted one, or
                it is a table whose log says which files count.
            AccessDeniedError: AWS does not allow to list it.
        """
        try:
            listed = sorted(self.everything(), key=lambda file: file.path)
        except ResourceNotFoundError as error:
            raise self._nothing(source) from error
        except FeastDynamoError:
            raise
        except OSError as error:
            raise SourceReadError(
                f"Source `{source}`: {self.uri} cannot be listed: {error}."
            ) from error
        self._check_not_compacted(source, listed)
        if self.pattern is None:
            self._refuse_tables(listed)
        found = tuple(file for file in listed if self._is_meant(file.path))
        if not found:
            raise self._nothing(source)
        return found

    def _check_not_compacted(self, source: str, listed: Iterable[FileState]) -> None:
        for file in listed:
            folder = file.path.removesuffix(f"/{POINTER}")
            if folder == file.path or is_hidden(folder[len(self.root) :]):
                continue
            raise SourceReadError(
                f"Source `{source}`: {folder} was compacted by `feast-dynamo compact` of an "
                f"earlier version, whose pointer ({POINTER}) is no longer read: the plain files "
                "alone may not be all of its rows. Write these out as a plain folder with that "
                "version, for example by `pull_all_from_table_or_query(...).persist(...)` of its "
                "offline store, and point the source there."
            )

    def _refuse_tables(self, files: Iterable[FileState]) -> None:
        """Refuse a folder whose files are not its rows: its log says which of them count.

        Raises:
            SourceReadError: it is a table of such a format, or has one in it.
        """
        for file in files:
            if found := TABLE_LOG.search(file.path[len(self.root) :]):
                kind, instead = TABLES[found[found.lastindex or 0]]
                raise SourceReadError(
                    f"{self.uri} is {kind} table, or has one in it: not its files are its rows, "
                    f"but those that its log names ({file.path}). {instead}. Of a table that only "
                    "ever gets rows, a glob such as `folder/*.parquet` reads the files."
                )

    def changed(self, files: Sequence[FileState]) -> FileState | None:
        """The first of some files that is no more what it was when it was listed."""
        now = self.storage.current(files)
        return next((file for file in files if not _is_same(file, now.get(file.path))), None)

    def everything(self) -> Iterator[FileState]:
        """All files there, hidden ones too, in no order."""
        root = f"s3://{self.root}" if self.is_on_s3 else self.root or "/"
        files = list(self.storage.below(root))
        if not files and self.pattern is None:
            file = self.storage.find(root)
            files = [file] if file else []
        for file in files:
            partition = partition_of(file.path, self.root)
            yield FileState(file.path, file.size, file.mtime_ns, file.etag, partition)

    def _is_meant(self, path: str) -> bool:
        if is_hidden(path[len(self.root) :]):
            return False
        return self.pattern is None or self.pattern.fullmatch(path) is not None

    def _nothing(self, source: str) -> SourceNotFoundError:
        return SourceNotFoundError(
            f"Source `{source}`: there is no file at {self.uri}. Check the path (a relative one "
            "counts from the feature repo), the bucket's name and region, or write the history "
            "first."
        )


def _is_same(listed: FileState, now: FileState | None) -> bool:
    if now is None:
        return False
    # Of a file that a log names, it says the size alone: such files are written once.
    return listed.size == now.size if listed.is_of_log else listed.version == now.version


def is_hidden(path: str) -> bool:
    """Whether readers pass over a file: its path below a source's folder has a name of no data."""
    return any(name.startswith(HIDDEN) or name.endswith(MARKERS) for name in path.split("/"))


def _regex(path: str) -> re.Pattern[str]:
    """A glob as an expression; what it matches may be a folder, and then means all below it."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", path)
    meant = "".join(GLOB_PARTS.get(part, re.escape(part)) for part in parts)
    return re.compile(f"{meant}(?:/.*)?", re.DOTALL)
