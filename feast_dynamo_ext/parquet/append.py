"""Rows appended to a source's history: new files beside those that are there, never a rewrite."""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.feature_view import DUMMY_ENTITY_ID
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    is_bytes,
    is_text,
    is_time,
    one_array,
    plain,
)
from feast_dynamo_ext.columns import stored_names, stored_times, tombstones_of
from feast_dynamo_ext.declared import declared_as, folder_types, name_of
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    OfflineStoreError,
    SourceNotFoundError,
)
from feast_dynamo_ext.exact import cast_exact
from feast_dynamo_ext.key_types import is_doubtful_key, key_exact
from feast_dynamo_ext.parquet.fitted import (
    TIMES,
    first_type,
    fitted,
    grown_type,
    leaves_open,
    numbers_missing_in,
    other_texts,
)
from feast_dynamo_ext.parquet.iceberg.catalog import is_iceberg
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.listing import HIVE_NULL
from feast_dynamo_ext.parquet.scan import FileChangedError, ReadErrors
from feast_dynamo_ext.parquet.source import ParquetSource, uri_of
from feast_dynamo_ext.parquet.writer import open_writer, write_parts
from feast_dynamo_ext.storage import FileReplacedError, discard, files_of, settings_of
from feast_dynamo_ext.view_settings import refuse_derived

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig
    from feast.data_source import DataSource

    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.storage import Files, FileState


DATE = "%Y-%m-%d"
TIME_FORMS = [
    (form, re.compile(re.sub("%Y", r"\\d{4}", re.sub("%[mdHMS]", r"\\d\\d", form))))
    for form in (
        DATE,
        "%Y%m%d",
        *(f"{DATE}{between}%H:%M:%S{end}" for between in " T" for end in ("", "Z")),
    )
]
"""How folders write times -> what they then look like."""


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
        inside: hive columns that the files have as well.
    """

    columns: tuple[str, ...]
    derived: Mapping[str, str]
    plain: str
    order: tuple[str, ...]
    event_time: str
    texts: Mapping[str, frozenset[str]]
    inside: frozenset[str] = frozenset()

    @classmethod
    def from_source(
        cls, data_source: Any, files: Sequence[FileState], of_files: Collection[str] = ()
    ) -> Folders:
        """The folders of a source, from its settings and the files that are there.

        Args:
            data_source: the source.
            files: its files.
            of_files: names of the columns that the files have.
        """
        pattern: str = getattr(data_source, "folder_format", "")
        derived: Mapping[str, str] = getattr(data_source, "derived_columns", {})
        # Not all files need be as deep.
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
            inside=frozenset(there) & frozenset(of_files),
        )

    def without(self, schema: pa.Schema) -> pa.Schema:
        """The columns that are in files."""
        outside = set(self.order) - self.inside
        return pa.schema(column for column in schema if column.name not in outside)

    def split(self, values: pa.Table, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Rows by folder.

        Args:
            values: the columns of the folders, in their types.
            rows: the rows as they are written.

        Raises:
            OfflineStoreError: a row has no event time, so its folder is not known.
        """
        levels = [self._level(values, rows, name) for name in self.order]
        if self.plain:
            levels.insert(0, self.period(rows, self.plain))
        if not levels:
            yield "", rows
            return
        folders = pc.binary_join_element_wise(*levels, "/")
        for folder in pc.unique(folders).to_pylist():
            yield folder, rows.filter(pc.equal(folders, folder))

    def _level(self, values: pa.Table, rows: pa.Table, name: str) -> pa.Array:
        if name in self.derived:
            found = self.period(rows, self.derived[name])
        else:
            found = one_array(values.column(name))
        # Each distinct value once: a folder has many rows.
        coded = found.dictionary_encode()
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

    def time_form(self, name: str) -> str | None:
        """How the folders that are there write times; None where there are none, or of no form."""
        known = self.texts.get(name, frozenset()) - {HIVE_NULL}
        fitting = (
            form for form, text in TIME_FORMS if all(text.fullmatch(each) for each in known)
        )
        return next(fitting, None) if known else None

    def period(self, rows: pa.Table, form: str) -> pa.Array:
        """What folders of a format are called for the event times of rows."""
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
        uri: of the folder, or of the one file.
        schema: names and types of the columns in its files; those of the folders' names are not
            among them.
        folders: how rows are spread over folders.
        types: of the columns of the folders' names, as far as they are known.
        optional: columns that rows may have and may lack: features that no file has yet.
        one_file: the source, where it is one file; None for a folder.
        declared: what the view's features and join keys are declared as, by their columns.
    """

    view: str
    uri: str
    schema: pa.Schema
    folders: Folders
    types: Mapping[str, pa.DataType]
    optional: pa.Schema
    one_file: ParquetSource | None = None
    declared: Mapping[str, Declared] = field(default_factory=dict)

    @classmethod
    def from_view(cls, view: Any, config: RepoConfig, table: pa.Table) -> Target:
        """The history of a view; where there is none yet, as the view declares it.

        Raises:
            OfflineStoreError: the source is a glob, or a Delta table.
        """
        data_source = view.batch_source
        if isinstance(getattr(data_source, "file_format", None), DeltaFormat):
            raise OfflineStoreError(
                f"Feature view `{view.name}`: its source is a Delta table, whose log would not "
                "know a file beside it. Append with Delta's own writer."
            )
        uri = uri_of(data_source, config).rstrip("/")
        if re.search(r"[*?]", uri):
            raise OfflineStoreError(
                f"{uri} is a glob, so it names no folder for new files. Point the source of "
                f"feature view `{view.name}` to the folder itself."
            )
        stored = stored_names(data_source)
        of_folders = folder_types([*view.entity_columns, *view.features], stored)
        declared, kinds = _declared(view), _kinds(view)
        try:
            source = ParquetSource.open(data_source, config).with_folder_types(of_folders)
        except SourceNotFoundError:
            folders = Folders.from_source(data_source, ())
            # The first file says what the columns are, so they are those of the rows.
            names = dict.fromkeys([*_required(view), *_plain(table)])
            schema = pa.schema(_first_type(name, kinds, table) for name in names)
            for name in filter(None, stored_times(data_source)):
                if pa.types.is_date(schema.field(name).type):
                    # Later rows may have hours.
                    schema = schema.set(schema.names.index(name), pa.field(name, TIMES))
            _check_first_times(view, uri, schema)
            of_files = folders.without(schema)
            return cls(
                view.name, uri, of_files, folders, of_folders, pa.schema([]), declared=kinds
            )
        columns = [column for column in source.schema if column.name in kinds]
        if any(leaves_open(column.type, kinds[column.name]) for column in columns):
            source = source.with_all_types()
        is_file = source.files[0].path.endswith(uri.partition("://")[2] or uri)
        of_files = set(source.schema.names) - source.of_folders
        folders = Folders.from_source(data_source, source.files, of_files)
        if is_file:
            folders = replace(folders, columns=(), derived={}, plain="", order=())
        schema = pa.schema(
            _grown(column, kinds, table)
            for column in folders.without(source.schema.remove_metadata())
        )
        new = [column for column in declared if column.name not in source.schema.names]
        types = {name: source.schema.field(name).type for name in folders.columns}
        for name, texts in folders.texts.items():
            if texts <= {HIVE_NULL} and name not in of_folders:
                types.pop(name, None)  # nobody has said yet what its values are
        one_file = source if is_file else None
        return cls(view.name, uri, schema, folders, types, pa.schema(new), one_file, kinds)

    @classmethod
    def from_table(cls, view: Any, name: str, columns: pa.Schema) -> Target:
        """The history of a view that is an Iceberg table.

        Args:
            view: the view.
            name: of the table.
            columns: names and types of its columns, without its sequence.
        """
        event_time, _ = stored_times(view.batch_source)
        folders = Folders((), {}, "", (), event_time, {})
        return cls(view.name, name, columns, folders, {}, pa.schema([]), declared=_kinds(view))

    def rows(self, table: pa.Table) -> pa.Table:
        """Rows in the columns and types of the files.

        Raises:
            ColumnNotFoundError: they lack a column.
            ColumnTypeError: a value does not fit a column's type.
        """
        given = _plain(table)
        derived = [name for name in self.folders.derived if name in self.schema.names]
        required = dict.fromkeys([*self.schema.names, *self.folders.columns])
        missing = [name for name in required if name not in given and name not in derived]
        if missing:
            raise ColumnNotFoundError(
                f"Feature view `{self.view}`: the rows to append lack the columns {missing} of "
                f"{self.uri}; they have {given}."
            )
        new = [
            _first_type(name, self.declared, table)
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
        fitting = [
            self._fitted(table, column.name, column.type)
            for column in schema
            if column.name not in derived
        ]
        found = pa.table(
            fitting, pa.schema([column for column in schema if column.name not in derived])
        )
        # After the event time, which they follow from.
        for name in derived:
            text = pa.chunked_array([self.folders.period(found, self.folders.derived[name])])
            found = found.append_column(name, self._parsed(text, schema.field(name)))
        return found.select(schema.names).cast(schema)

    def folder_values(self, table: pa.Table) -> pa.Table:
        """The columns of the folders' names.

        Raises:
            ColumnTypeError: a value does not fit a column's type.
        """
        columns = {}
        for name in self.folders.columns:
            kind = self.types.get(name, table.schema.field(name).type)
            # Bytes are written as the text that they are.
            kind = pa.string() if is_bytes(kind) else kind
            is_in_times = is_time(table.schema.field(name).type) or pa.types.is_timestamp(kind)
            form = self.folders.time_form(name) if is_in_times else None
            if is_text(kind) and form is None:
                is_in_times = False  # texts there say nothing of a form
            if is_in_times:
                times = self._fitted(table, name, TIMES, of_folders=True)
                columns[name] = self._folder_times(times, name, form)
                if self.declared.get(name) is ValueType.STRING:
                    self._refuse_other_texts(table.column(name), columns[name], name)
            else:
                columns[name] = self._fitted(table, name, kind)
            if is_text(columns[name].type):
                self._refuse_text_of_null(columns[name], name)
        return pa.table(columns)

    def _refuse_other_texts(
        self, times: pa.ChunkedArray, texts: pa.ChunkedArray, name: str
    ) -> None:
        """Refuse times that a push writes online as another text than folders are named by."""
        if bad := other_texts(times, texts):
            raise ColumnTypeError(
                f"Feature view `{self.view}`: column `{name}` of the rows to append, declared as "
                f"STRING: {bad:,} of {len(times):,} values of type {times.type} have another text "
                f"than the folders of {self.uri} are named by, and a push writes the text. Give "
                "dates, or the texts themselves."
            )

    def _refuse_text_of_null(self, texts: pa.ChunkedArray, name: str) -> None:
        bad = pc.sum(pc.equal(texts, HIVE_NULL)).as_py()
        if bad:
            raise ColumnTypeError(
                f"Feature view `{self.view}`: column `{name}` of the rows to append: {bad:,} of "
                f"{len(texts):,} values are the text `{HIVE_NULL}`, which as the name of a folder "
                f"of {self.uri} is a null. Give null where you mean it, or another text."
            )

    def _folder_times(
        self, times: pa.ChunkedArray, name: str, form: str | None
    ) -> pa.ChunkedArray:
        """Times as the names of the folders that are there say them."""
        plain = times.cast(pa.timestamp("us"))
        texts = pc.strftime(
            pc.floor_temporal(plain, unit="second").cast(pa.timestamp("s")), form or DATE
        )
        is_same = pc.equal(pc.strptime(texts, form or DATE, "us"), plain)
        if pc.all(is_same).as_py() is not False:
            return texts
        if form is None:
            return pa.chunked_array(
                [[value and str(value) for value in times.to_pylist()]], pa.string()
            )
        there = next(text for text in self.folders.texts[name] if text != HIVE_NULL)
        raise ColumnTypeError(
            f"Feature view `{self.view}`: column `{name}` of the rows to append has times that "
            f"the folders of {self.uri} do not say: they are named like `{name}={there}`. Round "
            "them, so that you choose what is lost."
        )

    def _fitted(
        self, table: pa.Table, name: str, kind: pa.DataType, *, of_folders: bool = False
    ) -> pa.ChunkedArray:
        column = f"Feature view `{self.view}`: column `{name}` of the rows to append"
        values, declared = table.column(name), self.declared.get(name)
        if of_folders and declared is ValueType.STRING:
            declared = None  # what is stored is the name of a folder, not the time
        if declared is not None and (bad := numbers_missing_in(values, declared)):
            raise ColumnTypeError(
                f"{column}, declared as {name_of(declared)}: {bad:,} nulls are beside numbers in "
                "its lists, and may have been NaN, of which pandas and Arrow make a null, and "
                "which JSON does not have. Give texts of JSON (`json.dumps`)."
            )
        return fitted(values, kind, name, column, self.uri, declared)

    def _parsed(self, texts: pa.ChunkedArray, column: pa.Field) -> pa.ChunkedArray:
        """What folders say of a column that files have too."""
        try:
            return texts.cast(column.type)
        except pa.ArrowException as error:
            raise ColumnTypeError(
                f"Feature view `{self.view}`: the files of {self.uri} have their own column "
                f"`{column.name}` of type {column.type}, which the folders' format does not give. "
                "Leave it out of the files."
            ) from error


def append_rows(view: Any, config: RepoConfig, table: pa.Table) -> list[str]:
    """Append rows to the history of a feature view.

    Columns may have the names of the files or, as Feast renames them, those of the view. A source
    that is one file is rewritten with them.

    Returns:
        URIs of the new files, or of the one file; the name of an Iceberg table.

    Raises:
        ConfigError: the view is derived, and has no rows of its own.
        ColumnNotFoundError: a column is missing.
        ColumnTypeError: a value does not fit its column.
        OfflineStoreError: the source is not of Parquet files.
        DestinationError: the disk refused; nothing is kept. AwsError: S3 did.
    """
    refuse_derived(view)
    if tombstones_of(view.batch_source) is not None:
        raise OfflineStoreError(
            f"Feature view `{view.name}`: the history of its source `{view.batch_source.name}` is "
            "that of a captured table, which nothing but capture writes. Write items into the "
            "table."
        )
    table = _original_names(view, table)
    if is_iceberg(view.batch_source):
        return _append_to_table(view, config, table)
    for _ in range(REWRITES):
        with contextlib.suppress(FileReplacedError, FileChangedError):
            return _append(view, config, table)
    return _append(view, config, table)


def _append(view: Any, config: RepoConfig, table: pa.Table) -> list[str]:
    target = Target.from_view(view, config, table)
    rows = target.rows(table)
    _check_keys(view, table)
    files = files_of(target.uri, settings_of(view.batch_source, config))
    if target.one_file is None:
        parts = target.folders.split(target.folder_values(table), rows)
        return write_folders(files, target.uri, rows.schema, parts)
    _warn_of_one_file(view.name, target.uri)
    _rewrite(files, target.uri, target.one_file, rows)
    return [target.uri]


def _append_to_table(view: Any, config: RepoConfig, table: pa.Table) -> list[str]:
    handle = TableHandle.from_source(view.batch_source, config)
    target = Target.from_table(view, f"the Iceberg table {handle.name}", handle.columns())
    rows = target.rows(table)
    _check_keys(view, table)
    handle.append(rows)
    return [handle.name]


REWRITES = 20
"""Times that an append begins anew where other writers keep replacing what it reads."""

_warned: set[str] = set()


def _warn_of_one_file(view: str, uri: str) -> None:
    if uri not in _warned:
        _warned.add(uri)
        logger.warning(
            "feature view %s: its source %s is one Parquet file, which each append rewrites "
            "whole, and retrievals that are reading it fail. Move it into a folder and point the "
            "source to that: rows are then appended as new files",
            view,
            uri,
        )


def _rewrite(files: Files, uri: str, source: ParquetSource, rows: pa.Table) -> None:
    """Write one file anew with more rows.

    Raises:
        FileReplacedError: it is not what it was when its columns were looked at.
    """
    (file,) = source.files
    reading = ReadErrors(source.place, source.files).of_file
    with contextlib.ExitStack() as opened:
        seen, new = opened.enter_context(files.rewriting(uri))
        if seen.version != file.version:
            raise FileReplacedError(f"{uri} was replaced by another writer. Run it again.")
        with reading(file.path):
            stream = opened.enter_context(source.filesystem.open_input_file(file.path))
            old = pq.ParquetFile(stream, coerce_int96_timestamp_unit="us")
        schema = rows.schema.with_metadata(old.schema_arrow.metadata)
        writer = None
        for group in range(old.num_row_groups):
            with reading(file.path):
                kept = old.read_row_group(group)
            if writer is None:
                # After a read: asked for a column of a corrupt footer, pyarrow ends the process.
                codec = old.metadata.row_group(group).column(0).compression
                writer = opened.enter_context(open_writer(new, schema, uri, compression=codec))
            writer.write_table(_with_columns(kept, schema))
        if writer is None:
            writer = opened.enter_context(open_writer(new, schema, uri, compression="zstd"))
        writer.write_table(rows.replace_schema_metadata(schema.metadata))


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of a file with columns that it lacks as nulls."""
    columns = [
        cast_exact(table.column(column.name), column.type)
        if column.name in table.column_names
        else pa.chunked_array([pa.nulls(len(table), column.type)])
        for column in schema
    ]
    return pa.table(columns, schema)


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


def _check_keys(view: Any, table: pa.Table) -> None:
    """Refuse join keys that no reader could look up: their source could not be read any more.

    Raises:
        ColumnTypeError: names the column.
    """
    stored = stored_names(view.batch_source)
    for column in view.entity_columns:
        name, kind = stored[column.name], column.dtype.to_value_type()
        if name in table.column_names and is_doubtful_key(table.schema.field(name).type, kind):
            try:
                key_exact(plain(one_array(table.column(name))), kind)
            except ValueError as error:
                raise ColumnTypeError(
                    f"Feature view `{view.name}`: column `{name}` of the rows to append: {error}."
                ) from error


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
        (stored[name], first_type(declared_as(column.dtype), pa.null()))
        for name, column in columns.items()
        if name != DUMMY_ENTITY_ID
    )


def _kinds(view: Any) -> dict[str, Declared]:
    stored = stored_names(view.batch_source)
    return {
        stored[column.name]: declared_as(column.dtype)
        for column in [*view.entity_columns, *view.features]
    }


def _required(view: Any) -> list[str]:
    source = view.batch_source
    return [*_declared(view).names, *filter(None, stored_times(source))]


def _check_first_times(view: Any, uri: str, schema: pa.Schema) -> None:
    """Refuse to begin a history whose times nobody could read.

    Raises:
        ColumnTypeError: names the column.
    """
    for name in filter(None, stored_times(view.batch_source)):
        kind = schema.field(name).type
        if not (is_time(kind) or pa.types.is_null(kind)):
            raise ColumnTypeError(
                f"Feature view `{view.name}`: column `{name}` of the rows to append is {kind}, "
                f"not times, as which {uri} would be read. Parse it first, for example "
                f"`pd.to_datetime(rows['{name}'], unit=\"s\", utc=True)`; say what numbers count."
            )


def _first_type(name: str, kinds: Mapping[str, Declared], table: pa.Table) -> pa.Field:
    kind = _type_in(table, name)
    return pa.field(name, first_type(kinds[name], kind) if name in kinds else kind)


def _grown(column: pa.Field, kinds: Mapping[str, Declared], table: pa.Table) -> pa.Field:
    if pa.types.is_null(column.type):
        return _first_type(column.name, kinds, table)
    if column.name not in kinds:
        return column
    given = _type_in(table, column.name)
    return column.with_type(grown_type(column.type, kinds[column.name], given))


def _type_in(table: pa.Table, name: str) -> pa.DataType:
    return table.schema.field(name).type if name in table.column_names else pa.null()
