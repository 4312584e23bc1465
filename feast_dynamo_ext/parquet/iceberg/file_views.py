"""How each file of an Iceberg table is read: its columns' names there, and rows that are deleted.

Iceberg knows columns and fields by number, so a file may have them under older names, nested ones
too. Rows of a file may be deleted by their numbers, in files of their own.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import is_list
from feast_dynamo_ext.errors import FeastDynamoError, SourceReadError
from feast_dynamo_ext.forks import Lock
from feast_dynamo_ext.parquet.iceberg.data_files import table_columns
from feast_dynamo_ext.parquet.listing import S3_SCHEMES, FileView

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Writers put other names into files in other words."""

FIELD_ID = b"PARQUET:field_id"


def file_path(uri: str) -> str:
    """The path of a file within its filesystem."""
    if uri.startswith(S3_SCHEMES):
        return uri.partition("://")[2]
    # As it stands, like pyiceberg: a `%20` in it is one in the file's name.
    return re.sub(r"^file:(//)?", "", uri)


@dataclass(frozen=True)
class FileViews:
    """How the files of a table are read, each found when it is opened.

    Attributes:
        source: the source, for messages.
        table: pyiceberg's.
        schema: of the snapshot.
        tasks: plans of the files.
    """

    source: Any
    table: Any
    schema: Any
    tasks: Sequence[Any]
    _lock: Lock = field(default_factory=Lock, compare=False)
    _found: dict[str, FileView | None] = field(default_factory=dict, compare=False)
    _read: dict[str, Any] = field(default_factory=dict, compare=False)

    @functools.cached_property
    def are_plain(self) -> bool:
        """Whether all files are surely read as they stand."""
        return not self._may_differ and not any(task.delete_files for task in self.tasks)

    def of(self, fragment: Any) -> FileView | None:
        """How a file is read; None for as it stands.

        Args:
            fragment: the file, whose footer is there.

        Raises:
            SourceReadError: its deletes cannot be read. AwsError: S3 refused.
        """
        if self.are_plain:
            return None
        path = fragment.path
        with self._lock:
            if path not in self._found:
                self._found[path] = self._view(fragment)
            return self._found[path]

    def _view(self, fragment: Any) -> FileView | None:
        columns, shapes = self._columns(fragment) if self._may_differ else ({}, {})
        deleted = self._deleted(fragment.path)
        if not columns and not shapes and not len(deleted):
            return None
        return FileView(columns, deleted, shapes)

    @functools.cached_property
    def _by_path(self) -> dict[str, Any]:
        return {file_path(task.file.file_path): task for task in self.tasks}

    def _deleted(self, path: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        from pyiceberg.io.pyarrow import _read_deletes

        task = self._by_path[path]
        found = [np.empty(0, dtype=np.int64)]
        for file in task.delete_files:
            if file.file_path not in self._read:
                try:
                    self._read[file.file_path] = _read_deletes(self.table.io, file)
                except FeastDynamoError:
                    raise
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise SourceReadError(
                        f"Source `{self.source.name}`: {file.file_path}, which says what rows of "
                        f"{path} are deleted, cannot be read: {error}."
                    ) from error
            positions = self._read[file.file_path].get(task.file.file_path)
            if positions is not None:
                found.append(np.asarray(positions, dtype=np.int64))
        return np.unique(np.concatenate(found))

    @functools.cached_property
    def _may_differ(self) -> bool:
        return _may_differ(self.schema, self.table.metadata.schemas)

    def _columns(self, fragment: Any) -> tuple[dict[str, str | None], dict[str, Shape]]:
        """Columns of the table -> their names in the file, and their forms, where these differ."""
        stored = fragment.physical_schema
        found = dict(_numbered(stored)) or self._by_mapping(stored)
        if not found:
            return {}, {}
        by_name = {name: number for number, name in found.items()}
        columns: dict[str, str | None] = {}
        shapes = {}
        for column in self.schema.fields:
            inside = found.get(column.field_id)
            if inside != column.name and (inside is not None or column.name in by_name):
                columns[column.name] = inside
            if inside is not None and self._is_shaped(column, found, inside):
                kind = self._types.field(column.name).type
                shapes[column.name] = Shape(stored.field(inside).type, column.field_type, kind)
        return columns, shapes

    @functools.cached_property
    def _types(self) -> pa.Schema:
        return table_columns(self.schema)

    def _is_shaped(self, column: Any, found: Mapping[int, str], inside: str) -> bool:
        """Whether fields of a nested column have other names in a file, or are others there."""
        by_name = {name: number for number, name in found.items()}
        for number in self.schema.field_ids:
            name = self.schema.find_column_name(number)
            if name.startswith(f"{column.name}."):
                wanted = inside + name.removeprefix(column.name)
                if found.get(number, wanted) != wanted or by_name.get(wanted, number) != number:
                    return True
        return False

    def _by_mapping(self, stored: pa.Schema) -> dict[int, str]:
        """Numbers of the columns of a file without numbers, by the table's mapping of names."""
        mapping = self.table.name_mapping()
        if mapping is None:
            return {}
        numbers = {name: part.field_id for part in mapping.root for name in part.names}
        return {numbers[name]: name for name in stored.names if name in numbers}


@dataclass(frozen=True)
class Shape:
    """A nested column whose fields have other names in a file.

    Attributes:
        stored: its type there, with Iceberg's numbers.
        wanted: its type in the table, as pyiceberg has it.
        kind: the same in Arrow.
    """

    stored: pa.DataType
    wanted: Any
    kind: pa.DataType

    def apply(self, column: pa.Array) -> pa.Array:
        """The column as the table has it."""
        return _shaped(column, self.stored, self.wanted, self.kind)


def _shaped(array: pa.Array, stored: pa.DataType, wanted: Any, kind: pa.DataType) -> pa.Array:
    array = pa.concat_arrays([array])  # a slice begins anew
    missing = array.is_null() if array.null_count else None
    if pa.types.is_struct(kind):
        by_number = {_number(stored.field(at)): at for at in range(stored.num_fields)}
        parts = []
        for inner in wanted.fields:
            into = kind.field(inner.name).type
            at = by_number.get(inner.field_id)
            parts.append(
                pa.nulls(len(array), into)
                if at is None
                else _shaped(array.field(at), stored.field(at).type, inner.field_type, into)
            )
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=missing)
    if pa.types.is_list(kind):
        values = _shaped(array.values, stored.value_type, wanted.element_type, kind.value_type)
        return pa.ListArray.from_arrays(array.offsets, values, type=kind, mask=missing)
    if pa.types.is_map(kind):
        keys = _shaped(array.keys, stored.key_type, wanted.key_type, kind.key_type)
        items = _shaped(array.items, stored.item_type, wanted.value_type, kind.item_type)
        return pa.MapArray.from_arrays(array.offsets, keys, items, kind, mask=missing)
    return array.cast(kind)


def _number(column: pa.Field) -> int | None:
    number = (column.metadata or {}).get(FIELD_ID)
    return None if number is None else int(number)


def _may_differ(schema: Any, schemas: Iterable[Any]) -> bool:
    """Whether a file may have a column under another name, or another one under this name."""
    names = {number: schema.find_column_name(number) for number in schema.field_ids}
    numbers = {name: number for number, name in names.items()}
    if not all(PLAIN_NAME.fullmatch(column.name) for column in schema.fields):
        return True
    return any(
        names.get(number, name) != name or numbers.get(name, number) != number
        for before in schemas
        for number in before.field_ids
        for name in [before.find_column_name(number)]
    )


def _numbered(fields: Iterable[pa.Field], within: str = "") -> Iterator[tuple[int, str]]:
    """Numbers and full names of the columns of a file, as far as it has numbers."""
    for column in fields:
        name = f"{within}{column.name}"
        number = _number(column)
        if number is not None:
            yield number, name
        yield from _numbered(_children(column.type), f"{name}.")


def _children(kind: pa.DataType) -> list[pa.Field]:
    # Under the names that Iceberg has for them; files have others too, such as `item`.
    if pa.types.is_map(kind):
        return [kind.key_field.with_name("key"), kind.item_field.with_name("value")]
    if is_list(kind):
        return [kind.value_field.with_name("element")]
    if pa.types.is_nested(kind):
        return [kind.field(at) for at in range(kind.num_fields)]
    return []
