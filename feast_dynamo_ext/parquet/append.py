"""Rows appended to a source's history: new files beside those that are there, never a rewrite."""

from __future__ import annotations

import logging
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from feast.data_format import DeltaFormat
from feast.feature_view import DUMMY_ENTITY_ID
from feast.types import from_feast_to_pyarrow_type

from feast_dynamo_ext.arrow_types import one_array
from feast_dynamo_ext.columns import stored_names, stored_times
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    OfflineStoreError,
    SourceNotFoundError,
)
from feast_dynamo_ext.parquet.iceberg import is_iceberg
from feast_dynamo_ext.parquet.listing import HIVE_NULL
from feast_dynamo_ext.parquet.source import ParquetSource, uri_of
from feast_dynamo_ext.parquet.writer import write_parts
from feast_dynamo_ext.storage import discard, files_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig
    from feast.data_source import DataSource

    from feast_dynamo_ext.storage import Files, FileState


@dataclass(frozen=True)
class Folders:
    """The folders of a source.

    Attributes:
        columns: hive columns whose values rows bring, in the order of the folders.
        derived: hive columns that are made of the event time -> their format.
        plain: format of folders without ``=``, made of the event time; empty where there are none.
        order: all hive columns, from the outermost folder.
        event_time: the source's event time, in the names of its files.
        texts: per column, how values are written in the folders that are there.
    """

    columns: tuple[str, ...]
    derived: Mapping[str, str]
    plain: str
    order: tuple[str, ...]
    event_time: str
    texts: Mapping[str, frozenset[str]]

    @classmethod
    def from_source(cls, data_source: Any, files: Sequence[FileState]) -> Folders:
        """The folders of a source, from its settings and the files that are there."""
        pattern: str = getattr(data_source, "folder_format", "")
        derived: Mapping[str, str] = getattr(data_source, "derived_columns", {})
        # Files that `compact` wrote may say less in their folders' names.
        deepest = max((file.partition for file in files), key=len, default=())
        there = [name for name, _ in deepest] if files else list(derived)
        stored = stored_names(data_source)
        texts: dict[str, set[str]] = {name: set() for name in there}
        for file in files:
            for name, text in file.partition:
                texts.setdefault(name, set()).add(text or HIVE_NULL)
        return cls(
            columns=tuple(name for name in there if name not in derived),
            derived=derived,
            plain="" if derived else pattern,
            order=tuple(there),
            event_time=stored[data_source.timestamp_field],
            texts={name: frozenset(found) for name, found in texts.items()},
        )

    def without(self, schema: pa.Schema) -> pa.Schema:
        """The columns that are in files."""
        return pa.schema(column for column in schema if column.name not in self.order)

    def split(self, table: pa.Table, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Rows by folder.

        Args:
            table: the rows with the columns of the folders.
            rows: the same rows as they are written.

        Raises:
            OfflineStoreError: a row has no event time, so its folder is not known.
        """
        levels = [self._level(table, rows, name) for name in self.order]
        if self.plain:
            levels.insert(0, self._period(rows, self.plain))
        if not levels:
            yield "", rows
            return
        folders = pc.binary_join_element_wise(*levels, "/")
        for folder in pc.unique(folders).to_pylist():
            yield folder, rows.filter(pc.equal(folders, folder))

    def _level(self, table: pa.Table, rows: pa.Table, name: str) -> pa.Array:
        if name in self.derived:
            values = self._period(rows, self.derived[name])
        else:
            values = one_array(table.column(name))
        # Each distinct value once: a folder has many rows.
        coded = values.dictionary_encode()
        known = self.texts.get(name, frozenset())
        names = [
            f"{quote(name)}={self._text(value, known)}" for value in coded.dictionary.to_pylist()
        ]
        missing = f"{quote(name)}={HIVE_NULL}"
        return pc.fill_null(pa.array(names, pa.string()).take(coded.indices), missing)

    def _text(self, value: Any, known: frozenset[str]) -> str:
        """A value as in the folders that are there: 7 as ``07`` where they have leading zeros."""
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, int) and value >= 0:
            padded = next((each for each in known if each.startswith("0") and len(each) > 1), "")
            text = text.zfill(len(padded))
        return quote(text, safe="")

    def _period(self, rows: pa.Table, form: str) -> pa.Array:
        times = one_array(rows.column(self.event_time))
        if times.null_count:
            raise OfflineStoreError(
                f"{times.null_count:,} of the rows to append have no `{self.event_time}`, which "
                "says which folder they belong to. Drop or fill them."
            )
        zone = times.type.tz if pa.types.is_timestamp(times.type) else None
        seconds = pc.floor_temporal(times.cast(pa.timestamp("us", tz=zone)), unit="second")
        utc = seconds.cast(pa.int64()).cast(pa.timestamp("us")).cast(pa.timestamp("s"))
        return pc.strftime(utc, format=form)


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A view's history, as what is appended to.

    Attributes:
        view: the view's name.
        uri: of the folder.
        schema: names and types of the columns in its files; those of the folders' names are not
            among them.
        folders: how rows are spread over folders.
        optional: columns that rows may have and may lack: features that no file has yet.
    """

    view: str
    uri: str
    schema: pa.Schema
    folders: Folders
    optional: pa.Schema

    @classmethod
    def from_view(cls, view: Any, config: RepoConfig, table: pa.Table) -> Target:
        """The history of a view; where there is none yet, as the view declares it.

        Raises:
            OfflineStoreError: the source is one file, a glob, or a Delta table.
        """
        data_source = view.batch_source
        if isinstance(getattr(data_source, "file_format", None), DeltaFormat):
            raise OfflineStoreError(
                f"Feature view `{view.name}`: its source is a Delta table, whose log would not "
                "know a file beside it. Append with Delta's own writer."
            )
        if is_iceberg(data_source):
            raise OfflineStoreError(
                f"Feature view `{view.name}`: its source is an Iceberg table, whose metadata "
                "would not know a file beside it. Append with a writer of Iceberg."
            )
        uri = uri_of(data_source, config).rstrip("/")
        if re.search(r"[*?]", uri):
            raise OfflineStoreError(
                f"{uri} is a glob, so it names no folder for new files. Point the source of "
                f"feature view `{view.name}` to the folder itself."
            )
        declared = _declared(view)
        try:
            source = ParquetSource.open(data_source, config)
        except SourceNotFoundError:
            folders = Folders.from_source(data_source, ())
            # The first file says what the columns are, so they are those of the rows.
            names = dict.fromkeys([*_required(view), *_plain(table)])
            schema = pa.schema(_first_type(name, declared, table) for name in names)
            return cls(view.name, uri, folders.without(schema), folders, pa.schema([]))
        if source.files[0].path.endswith(uri.partition("://")[2] or uri):
            raise OfflineStoreError(
                f"{uri} is one Parquet file; appending would rewrite it under its readers. Move "
                "it into a folder and point the source to that."
            )
        folders = Folders.from_source(data_source, source.files)
        schema = folders.without(source.schema.remove_metadata())
        new = [column for column in declared if column.name not in source.schema.names]
        return cls(view.name, uri, schema, folders, pa.schema(new))

    def rows(self, table: pa.Table) -> pa.Table:
        """Rows in the columns and types of the files.

        Raises:
            ColumnNotFoundError: they lack a column.
            ColumnTypeError: a value does not fit a column's type.
        """
        given = _plain(table)
        missing = [name for name in self.schema.names if name not in given]
        missing += [name for name in self.folders.columns if name not in given]
        if missing:
            raise ColumnNotFoundError(
                f"Feature view `{self.view}`: the rows to append lack the columns {missing} of "
                f"{self.uri}; they have {given}."
            )
        new = [
            _first_type(name, self.optional, table)
            for name in self.optional.names
            if name in given
        ]
        schema = pa.schema([*self.schema, *new])
        known = {*schema.names, *self.folders.columns, *self.folders.derived}
        unknown = [name for name in given if name not in known]
        if unknown:
            # A view's transformation gives what it read, too.
            logger.warning(
                "feature view %s: the columns %s of the rows to append are left out, as neither "
                "%s nor the view's schema has them",
                self.view,
                unknown,
                self.uri,
            )
        return pa.table([self._cast(table, column) for column in schema], schema)

    def _cast(self, table: pa.Table, column: pa.Field) -> pa.ChunkedArray:
        values = table.column(column.name)
        try:
            return values.cast(column.type)
        except pa.ArrowException as error:
            raise ColumnTypeError(
                f"Feature view `{self.view}`: column `{column.name}` of the rows to append is "
                f"{values.type}, and does not fit the {column.type} of {self.uri}: {error}. Cast "
                "it, so that you choose what is lost."
            ) from error


def append_rows(view: Any, config: RepoConfig, table: pa.Table) -> list[str]:
    """Append rows to the history of a feature view.

    Columns may have the names of the files or, as Feast renames them, those of the view.

    Returns:
        URIs of the new files.

    Raises:
        ColumnNotFoundError: a column is missing.
        ColumnTypeError: a value does not fit its column.
        OfflineStoreError: the source is one file, or not a folder of Parquet.
        DestinationError: the disk refused; nothing is kept. AwsError: S3 did.
    """
    table = _original_names(view, table)
    target = Target.from_view(view, config, table)
    rows = target.rows(table)
    files = files_of(target.uri, settings_of(view.batch_source, config))
    return write_folders(files, target.uri, rows.schema, target.folders.split(table, rows))


def declared_columns(views: Iterable[Any], source: DataSource) -> list[tuple[str, str]]:
    """Names and Arrow types of the columns that rows of a source without files have.

    Args:
        views: all views of the project.
        source: the source.

    Returns:
        Those of the view that has this batch source; none where there is no such view.
    """
    sources = ((view, getattr(view, "batch_source", None)) for view in views)
    view = next((view for view, own in sources if own and own.name == source.name), None)
    if view is None:
        return []
    declared, folders = _declared(view), Folders.from_source(source, ())
    times = dict.fromkeys(_required(view), str(pa.timestamp("us", "UTC")))
    of_folders = dict.fromkeys(folders.columns, str(pa.string()))
    of_view = {column.name: str(column.type) for column in declared}
    return list((times | of_folders | of_view).items())


def write_folders(
    files: Files, uri: str, schema: pa.Schema, parts: Iterable[tuple[str, pa.Table]]
) -> list[str]:
    """Write new files into several folders, all of them or none.

    Args:
        files: the destination.
        uri: the folder of the folders.
        schema: of the rows.
        parts: name of a folder below it, empty for itself, and its rows.

    Raises: as `write_parts`.
    """
    written: list[str] = []
    # No two writers choose the same name, so none replaces another's file.
    name = f"part-{uuid.uuid4().hex}"
    try:
        for folder, rows in parts:
            into = f"{uri}/{folder}".rstrip("/")
            written += write_parts(files, into, name, schema, rows.to_batches())
    except BaseException:
        discard(files, written)
        raise
    return written


def _original_names(view: Any, table: pa.Table) -> pa.Table:
    """Columns under the names that files have: Feast's field mapping undone."""
    stored = stored_names(view.batch_source)
    return table.rename_columns([stored[name] for name in table.column_names])


def _plain(table: pa.Table) -> list[str]:
    """Names of columns; an index of pandas is none."""
    return [name for name in table.column_names if not re.fullmatch(r"__index_level_\d+__", name)]


def _declared(view: Any) -> pa.Schema:
    """What the view says of its columns, under the names of the source."""
    stored = stored_names(view.batch_source)
    columns = {column.name: column for column in [*view.entity_columns, *view.features]}
    return pa.schema(
        (stored[name], _arrow_type(column.dtype))
        for name, column in columns.items()
        if name != DUMMY_ENTITY_ID
    )


def _arrow_type(dtype: Any) -> pa.DataType:
    """The Arrow type of a declared type; null where Feast names none, for example for decimals."""
    try:
        return from_feast_to_pyarrow_type(dtype)
    except ValueError:
        return pa.null()


def _required(view: Any) -> list[str]:
    source = view.batch_source
    return [*_declared(view).names, *filter(None, stored_times(source))]


def _first_type(name: str, declared: pa.Schema, table: pa.Table) -> pa.Field:
    if name in declared.names and not pa.types.is_null(declared.field(name).type):
        return declared.field(name)
    kind = table.schema.field(name).type if name in table.column_names else pa.null()
    return pa.field(name, kind)
