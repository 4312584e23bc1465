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
                except (OSError, ValueError, LookupError, pa.ArrowException) as error:
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
        is_plain = all(PLAIN_NAME.fullmatch(column.name) for column in self.schema.fields)
        as_mapped = self._mapping is None or self._mapping == self.schema.name_mapping
        return not (is_plain and as_mapped) or self._was_other

    @functools.cached_property
    def _was_other(self) -> bool:
        return _was_other(self.schema, self.table.metadata.schemas)

    @functools.cached_property
    def _mapping(self) -> Any:
        """Pyiceberg's mapping of the names in files without numbers; None where there is none."""
        return self.table.name_mapping()

    def _columns(self, fragment: Any) -> tuple[dict[str, str | None], dict[str, Shape]]:
        """Columns of the table -> their names in the file, and their forms, where these differ.

        Raises:
            SourceReadError: nothing says which columns a file has.
        """
        stored = fragment.physical_schema
        found = dict(_numbered(stored))
        if not found and self._mapping is not None:
            stored = pa.schema(_with_numbers(stored, self._mapping.root))
            found = dict(_numbered(stored))
        elif not found and self._was_other:
            raise SourceReadError(
                f"Source `{self.source.name}`: {fragment.path} has no field ids, the table has no "
                "`schema.name-mapping.default`, and its columns have changed. So nothing says "
                "which columns the file has. Set that property, or rewrite the file with the "
                "engine that wrote it."
            )
        if not found:
            return {}, {}
        columns: dict[str, str | None] = {}
        shapes = {}
        for column in self.schema.fields:
            inside = found.get(column.field_id)
            if inside != column.name and (inside is not None or column.name in stored.names):
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


def _was_other(schema: Any, schemas: Iterable[Any]) -> bool:
    """Whether a column ever had another name, or another one had this name."""
    names = {number: schema.find_column_name(number) for number in schema.field_ids}
    numbers = {name: number for number, name in names.items()}
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


def _with_numbers(fields: Iterable[pa.Field], mapped: Iterable[Any]) -> list[pa.Field]:
    """Columns of a file without numbers, with those that a mapping of names gives them."""
    by_name = {name: part for part in mapped for name in part.names}
    numbered = []
    for column in fields:
        part = by_name.get(column.name)
        number = None if part is None else part.field_id
        metadata = None if number is None else {FIELD_ID: str(number).encode()}
        inside = _with_numbers(_children(column.type), [] if part is None else part.fields)
        kind = _of_children(column.type, inside)
        numbered.append(pa.field(column.name, kind, column.nullable, metadata))
    return numbered


def _of_children(kind: pa.DataType, inside: list[pa.Field]) -> pa.DataType:
    """A type with other fields inside."""
    if pa.types.is_map(kind):
        return pa.map_(*inside, kind.keys_sorted)
    if pa.types.is_struct(kind):
        return pa.struct(inside)
    if is_list(kind):
        return pa.large_list(*inside) if pa.types.is_large_list(kind) else pa.list_(*inside)
    return kind


def _children(kind: pa.DataType) -> list[pa.Field]:
    # Under the names that Iceberg has for them; files have others too, such as `item`.
    if pa.types.is_map(kind):
        return [kind.key_field.with_name("key"), kind.item_field.with_name("value")]
    if is_list(kind):
        return [kind.value_field.with_name("element")]
    if pa.types.is_nested(kind):
        return [kind.field(at) for at in range(kind.num_fields)]
    return []
