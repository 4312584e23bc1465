"""The files of a source as one dataset: footers, one schema for all, pruned by time.

Footers are small and far away, so many are read at once; each is read once.

The schema is that of the first and the last file, which is enough for most. `within` leaves out
files by the names of their folders before they are opened, reads the footers of the others and
widens the schema to what they say. What is read without it is checked against the schema first, so
that no value is ever read in a type that does not hold it.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from feast_dynamo_ext.arrow_types import common_type, is_time, without_view_layouts
from feast_dynamo_ext.cancellation import in_threads
from feast_dynamo_ext.errors import ColumnTypeError, SourceReadError
from feast_dynamo_ext.parquet.listing import partition_expression, partition_types
from feast_dynamo_ext.parquet.scan import INT96_UNIT, ReadErrors
from feast_dynamo_ext.timestamps import Axis

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from feast_dynamo_ext.parquet.listing import (
        Bounds,
        FileView,
        Periods,
        Place,
        TableFiles,
        Views,
    )
    from feast_dynamo_ext.storage import FileState


FORMAT = ds.ParquetFileFormat(coerce_int96_timestamp_unit=INT96_UNIT)

FOOTERS_AT_ONCE = 16
NEAR_FOOTERS_AT_ONCE, NEAR_FOOTERS_TOGETHER = 4, 8
"""Of files on this machine: few threads, each of which takes several at a time. Nothing is waited
for there, and a footer takes less time than its way to another thread."""

DAY_S, DAY_MS = 86_400, 86_400_000


@dataclass(frozen=True)
class Footer:
    """What a file says of itself.

    Attributes:
        path: path within the filesystem.
        schema: names and types of its columns, without those of its folders; of several columns
            of one name the first.
        part: the row groups that may hold what was asked for, as a fragment.
        repeated: names that several of its columns have.
    """

    path: str
    schema: pa.Schema
    part: Any
    repeated: frozenset[str] = frozenset()


def read_footers(
    fragments: Sequence[Any],
    errors: ReadErrors,
    checked: Collection[str] = (),
    unchecked: Collection[str] = (),
) -> list[Footer]:
    """The footers of files.

    Args:
        fragments: the files.
        errors: names the file in errors.
        checked: columns of which footers will be asked; see `ReadErrors.check_columns`.
        unchecked: paths of files whose footers will not be asked.
    """

    def read(fragment: Any) -> Footer:
        with errors.of_file(fragment.path):
            fragment.ensure_complete_metadata()
            schema = without_view_layouts(fragment.physical_schema.remove_metadata())
            footer = Footer(fragment.path, schema, fragment)
            if fragment.path not in unchecked and not set(checked).isdisjoint(schema.names):
                errors.check_columns(fragment, checked)
            return footer if len(set(schema.names)) == len(schema) else _without_repeated(footer)

    def read_all(some: Sequence[Any]) -> list[Footer]:
        return [read(fragment) for fragment in some]

    at_once, together = FOOTERS_AT_ONCE, 1
    if not errors.place.is_on_s3:
        at_once, together = NEAR_FOOTERS_AT_ONCE, NEAR_FOOTERS_TOGETHER
    parts = [fragments[at : at + together] for at in range(0, len(fragments), together)]
    if len(parts) == 1:
        return read_all(parts[0])
    with ThreadPoolExecutor(at_once) as pool:
        return list(itertools.chain(*pool.map(in_threads(read_all), parts)))


def _without_repeated(footer: Footer) -> Footer:
    names = Counter(footer.schema.names)
    first = {column.name: column for column in reversed(footer.schema)}
    repeated = frozenset(name for name, times in names.items() if times > 1)
    return replace(footer, schema=pa.schema([first[name] for name in names]), repeated=repeated)


def part_within(
    footer: Footer, column: str, first: datetime | None, last: datetime | None
) -> Footer | None:
    """The row groups of a file that may hold rows of a range of time; None where none may."""
    condition = None
    if column in footer.schema.names:
        # In the file's own unit and zone: Arrow compares no others with its statistics.
        condition = range_condition(footer.schema.field(column), first, last)
    if condition is None:
        return footer if footer.part.row_groups else None
    part = footer.part.subset(condition, schema=footer.schema)
    return replace(footer, part=part) if part.row_groups else None


@functools.lru_cache(maxsize=64)  # of many files, all but the first have the type of another
def range_condition(
    column: pa.Field, first: datetime | None, last: datetime | None
) -> ds.Expression | None:
    """Whether first <= column <= last, in the column's type; None where it cannot be asked."""
    kind = column.type
    if not is_time(kind) or (first is None and last is None):
        return None
    axis, field = Axis.from_type(kind), ds.field(column.name)
    condition = None
    if first is not None:
        condition = field >= _point(axis.first_at_or_after(first), kind, up=True)
    if last is not None:
        upper = field <= _point(axis.last_at_or_before(last), kind, up=False)
        condition = upper if condition is None else condition & upper
    return condition


def _point(number: int, kind: pa.DataType, *, up: bool) -> pa.Scalar:
    """A point of a column's axis in its type; a date is its midnight, so seconds are rounded."""
    if pa.types.is_timestamp(kind):
        return pa.scalar(number, pa.int64()).cast(kind)
    days = -(-number // DAY_S) if up else number // DAY_S
    if pa.types.is_date32(kind):
        return pa.scalar(days, pa.int32()).cast(kind)
    return pa.scalar(days * DAY_MS, pa.int64()).cast(kind)


def limits(
    fragments: Sequence[Any],
    column: str,
    kind: pa.DataType,
    errors: ReadErrors,
    *,
    is_checked: bool = False,
) -> pa.Array | None:
    """What footers say of a column of times; see `ParquetSource.limits`.

    Args:
        fragments: the files.
        column: the column.
        kind: its type in the source.
        errors: names the file in errors.
        is_checked: whether the footers were checked for this column.
    """
    found = [pa.array([], kind)]
    for fragment in fragments:
        with errors.of_file(fragment.path):
            if not is_checked and column in fragment.physical_schema.names:
                errors.check_columns(fragment, [column])
            of_file = _file_limits(fragment, column)
        if of_file is None:
            return None
        try:
            found.append(of_file.cast(kind))
        except pa.ArrowException:
            return None
    return pa.concat_arrays(found)


def _file_limits(fragment: Any, column: str) -> pa.Array | None:
    """The limits of a file's row groups, in the file's type; its footer was checked."""
    metadata = fragment.metadata
    leaves = [metadata.schema.column(at) for at in range(metadata.num_columns)]
    at = next((at for at, leaf in enumerate(leaves) if leaf.path == column), None)
    if at is None:
        return None
    kind = fragment.physical_schema.field(column).type
    if pa.types.is_null(kind):
        return pa.array([], kind)
    # As numbers: Python's own times end in the year 9999, and know no nanoseconds.
    numbers: list[int] = []
    for group in filter(lambda group: group.num_rows, fragment.row_groups):
        says = metadata.row_group(group.id).column(at).statistics
        if says is not None and says.has_min_max:
            numbers += [says.min_raw, says.max_raw]
        elif says is None or not says.has_null_count or says.null_count < group.num_rows:
            return None
    stored = pa.int32() if leaves[at].physical_type == "INT32" else pa.int64()
    return pa.array(numbers, stored).cast(kind)


@dataclass(frozen=True)
class SourceDataset:
    """Files, and their row groups that count.

    Attributes:
        place: where they are.
        files: as they were listed, in the order of their rows' positions.
        dataset: the same as a pyarrow dataset.
        of_folders: columns that the folders' names say, and not the files.
        periods: what the folders' names say of event times, or None.
        settled: whether the schema holds what all files hold.
        repeated: columns whose name a file has several times -> that file.
        table: what a table's log says; None where there is none.
        checked: columns of which the footers may be asked; see `ReadErrors.check_columns`.
        left_out: files that have no rows of a range, as their footers said. They count as read: a
            file that was replaced after it was listed may have had some.
    """

    place: Place
    files: tuple[FileState, ...]
    dataset: ds.FileSystemDataset
    of_folders: frozenset[str]
    periods: Periods | None = None
    settled: bool = False
    repeated: Mapping[str, str] = field(default_factory=dict)
    table: TableFiles | None = None
    checked: frozenset[str] = frozenset()
    left_out: tuple[FileState, ...] = ()

    @classmethod
    def of_files(
        cls, place: Place, files: tuple[FileState, ...], periods: Periods | None
    ) -> SourceDataset:
        """Files as they were listed, with the schema of the first and the last.

        Raises:
            SourceReadError: one of the two cannot be read.
            ColumnTypeError: they have types that do not go together.
        """
        types = partition_types(files)
        fragments = made_fragments(place, files, types)
        errors = ReadErrors(place, files)
        footers = read_footers(fragments[:1] + fragments[1:][-1:], errors)
        # What files have themselves is no column of their folders.
        inside = _inside(footers, files)
        of_folders = {name: kind for name, kind in types.items() if name not in inside}
        of_folders = _with_inner_types(of_folders, footers)
        if types != of_folders:
            types, fragments = of_folders, made_fragments(place, files, of_folders)
        schema = widened(pa.schema([]), footers, place.uri, types)
        _check_inside(footers, files, inside, place.uri)
        schema = pa.schema([*schema, *(pa.field(name, kind) for name, kind in types.items())])
        settled = len(footers) == len(files)
        dataset = _dataset(fragments, schema, place)
        return cls(place, files, dataset, frozenset(types), periods, settled, _repeated(footers))

    @classmethod
    def of_table(cls, place: Place, table: TableFiles) -> SourceDataset:
        """The files of a Delta or Iceberg table, with the schema that its log says."""
        fragments = made_fragments(place, table.files, table.partitions)
        dataset = _dataset(fragments, without_view_layouts(table.schema), place)
        return cls(
            place, table.files, dataset, frozenset(table.partitions), settled=True, table=table
        )

    @property
    def of_log(self) -> bool:
        """Whether a table's log says the types of its columns."""
        return self.table is not None

    @property
    def views(self) -> Views | None:
        """How each file is read; None for as they all stand."""
        views = self.table.views if self.table else None
        return None if views is None or views.are_plain else views

    @property
    def bounds(self) -> Bounds | None:
        """What a table's log says of the values in its files; None of plain files."""
        return self.table.bounds if self.table else None

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all columns, those of folders included."""
        return self.dataset.schema

    @property
    def fragments(self) -> list[Any]:
        """The files with their row groups that count."""
        return list(self.dataset.get_fragments())

    def with_all_types(self) -> SourceDataset:
        """The same with the columns of all files, in types that hold what each file holds."""
        if self.settled:
            return self
        footers = self._footers(self.fragments)
        return self._of_footers(footers, self._widened(footers))

    def within(self, column: str, first: datetime | None, last: datetime | None) -> SourceDataset:
        """Without the files and row groups outside a range; see `ParquetSource.within`."""
        condition = None
        if column in self.schema.names:
            condition = range_condition(self.schema.field(column), first, last)
        fragments = list(self.dataset.get_fragments(filter=condition))
        if self.periods is not None and self.periods.column == column:
            may_hold = {
                file.path for file in self.files if self.periods.may_hold(file, first, last)
            }
            fragments = [fragment for fragment in fragments if fragment.path in may_hold]
        inside: frozenset[str] = frozenset()
        if condition is not None:
            fragments, inside = self._bounded(fragments, column, first, last)
        asked = frozenset([] if condition is None else [column])
        footers = self._footers(fragments, asked - self.checked, inside)
        found = [
            # Where all of a file is within, or it has the column under another name, its
            # statistics are not asked.
            part_within(
                footer,
                "" if footer.path in inside or self._view(footer.part) else column,
                first,
                last,
            )
            for footer in footers
        ]
        within = self._of_footers([part for part in found if part], self._widened(footers))
        gone = {footer.path for footer in footers} - {file.path for file in within.files}
        left_out = tuple(file for file in self.files if file.path in gone)
        checked = self.checked if inside else self.checked | asked
        return replace(within, checked=checked, left_out=(*self.left_out, *left_out))

    def _bounded(
        self, fragments: list[Any], column: str, first: datetime | None, last: datetime | None
    ) -> tuple[list[Any], frozenset[str]]:
        """What a table's log says of the files and a range of time.

        Returns:
            The files that may hold a time of it, and paths of those that surely hold no other: of
            a long history most, and their footers need not be asked for times.
        """
        bounds = self.bounds
        if bounds is None:
            return fragments, frozenset()
        kind = self.schema.field(column).type
        axis, unit = Axis.from_type(kind), DAY_S if pa.types.is_date(kind) else 1
        least = None if first is None else axis.first_at_or_after(first)
        greatest = None if last is None else axis.last_at_or_before(last)

        kept, inside = [], []
        for fragment in fragments:
            said = bounds.range(fragment.path, column)
            if said is None:
                if not bounds.is_all_null(fragment.path, column):
                    kept.append(fragment)
                continue
            lowest, highest = said[0] * unit, said[1] * unit
            is_before = least is not None and lowest < least
            is_after = greatest is not None and highest > greatest
            if (is_before and highest < least) or (is_after and lowest > greatest):
                continue
            kept.append(fragment)
            if not (is_before or is_after):
                inside.append(fragment.path)
        return kept, frozenset(inside)

    def with_keys(self, keys: Mapping[str, pa.Array | pa.ChunkedArray]) -> SourceDataset:
        """Without the files that hold none of some keys; see `ParquetSource.with_keys`."""
        bounds = self.bounds
        if bounds is None or len(self.files) < 2:  # noqa: PLR2004 - one file may hold anything
            return self
        kept = {file.path for file in self.files}
        for name, column in keys.items():
            # Times are compared in microseconds, while bounds of dates are days.
            is_time_key = is_time(self.schema.field(name).type)
            values = None if is_time_key else _sorted_values(column)
            if values is not None:
                kept = {path for path in kept if _may_hold(values, bounds.range(path, name))}
        return self if len(kept) == len(self.files) else self.only(kept)

    def only(self, paths: Collection[str]) -> SourceDataset:
        """Some of the files, in the same schema."""
        return replace(
            self,
            files=tuple(file for file in self.files if file.path in paths),
            dataset=_dataset(
                [part for part in self.fragments if part.path in paths], self.schema, self.place
            ),
        )

    def _view(self, fragment: Any) -> FileView | None:
        return self.views.of(fragment) if self.views else None

    def with_folder_types(self, declared: Mapping[str, pa.DataType]) -> SourceDataset:
        """The same with columns of folders' names in the types that they are declared as.

        Raises:
            ColumnTypeError: a folder's name is no value of its column's type.
        """
        types = {name: self.schema.field(name).type for name in self.of_folders}
        wanted = {
            name: kind
            for name, kind in declared.items()
            if name in types and not self.of_log and not _is_alike(types[name], kind)
        }
        if not wanted:
            return self
        types |= wanted
        schema = pa.schema(
            [column.with_type(types.get(column.name, column.type)) for column in self.schema]
        )
        parts = made_fragments(self.place, self.files, types)
        dataset = _dataset(parts, schema, self.place)
        return replace(self, dataset=dataset, checked=frozenset())

    def limits(self, column: str) -> pa.Array | None:
        """What footers say of a column of times; see `ParquetSource.limits`."""
        said = self._said_limits(column)
        if said is not None:
            return said
        parts = self.fragments
        if not self.settled:  # many footers at once, where they are not read yet
            parts = [footer.part for footer in self._footers(parts)]
        return limits(
            parts,
            column,
            self.schema.field(column).type,
            self._read_errors,
            is_checked=column in self.checked,
        )

    def _said_limits(self, column: str) -> pa.Array | None:
        """The limits of a column of times as a table's log says them of all files."""
        bounds = self.bounds
        if bounds is None:
            return None
        kind = self.schema.field(column).type
        if not (pa.types.is_timestamp(kind) and kind.unit == "us"):
            return None
        found: list[int] = []
        for file in self.files:
            said = bounds.range(file.path, column)
            if said is None and not bounds.is_all_null(file.path, column):
                return None
            found += said or ()
        return pa.array(found, pa.int64()).cast(kind)

    def readable(self, columns: Collection[str]) -> ds.FileSystemDataset:
        """The dataset, whose schema surely holds what the files have in some columns.

        Raises:
            ColumnTypeError: it does not, or a file has several columns of a name; names file and
                column.
        """
        _check_single(columns, self.repeated, self.place.uri)
        if not self.settled:
            footers = self._footers(self.fragments)
            with self._read_errors.of_schemas():
                _check_single(columns, _repeated(footers), self.place.uri)
                _check_inside(footers, self.files, self._inside(), self.place.uri)
                check_holds(self.schema, footers, self.place.uri, set(columns) - self.of_folders)
        return self.dataset

    def _footers(
        self,
        fragments: Sequence[Any],
        checked: Collection[str] = (),
        unchecked: Collection[str] = (),
    ) -> list[Footer]:
        return read_footers(fragments, self._read_errors, checked, unchecked)

    @property
    def _read_errors(self) -> ReadErrors:
        return ReadErrors(self.place, (*self.files, *self.left_out), is_table=self.of_log)

    def _widened(self, footers: Sequence[Footer]) -> pa.Schema:
        if self.of_log:
            return self.schema  # files may have columns that were dropped
        with self._read_errors.of_schemas():
            _check_inside(footers, self.files, self._inside(), self.place.uri)
            return widened(self.schema, footers, self.place.uri, self.of_folders)

    def _inside(self) -> set[str]:
        """Columns that files have beside folders of the same name."""
        named = {name for file in self.files for name, _ in file.partition}
        return (named & set(self.schema.names)) - self.of_folders

    def _of_footers(self, parts: Sequence[Footer], schema: pa.Schema) -> SourceDataset:
        paths = {part.path for part in parts}
        return replace(
            self,
            files=tuple(file for file in self.files if file.path in paths),
            dataset=_dataset([part.part for part in parts], schema, self.place),
            settled=True,
            repeated=_repeated(parts),
        )


MOST_KEYS = 100_000
"""Of entity rows, for each to be looked for in what files may hold; of more the ends alone."""


def _sorted_values(column: pa.Array | pa.ChunkedArray) -> list[Any] | None:
    """Keys in the order of a table's bounds; None for types that are not compared."""
    if not (pa.types.is_int64(column.type) or pa.types.is_string(column.type)):
        return None
    if len(column) > MOST_KEYS:
        ends = pc.min_max(column).as_py()
        return [] if ends["min"] is None else [Ends(ends["min"], ends["max"])]
    return sorted(pc.unique(column).drop_null().to_pylist())


@dataclass(frozen=True)
class Ends:
    """The least and the greatest of many keys."""

    least: Any
    greatest: Any


def _may_hold(values: list[Any], said: tuple[Any, Any] | None) -> bool:
    if said is None:
        return True
    if values and isinstance(values[0], Ends):
        return bool(values[0].least <= said[1] and said[0] <= values[0].greatest)
    at = bisect.bisect_left(values, said[0])
    return at < len(values) and bool(values[at] <= said[1])


def made_fragments(
    place: Place, files: Iterable[FileState], types: Mapping[str, pa.DataType]
) -> list[Any]:
    """The files as pyarrow's fragments, which say the columns of their folders' names."""
    make = FORMAT.make_fragment
    return [
        make(file.path, place.filesystem, partition_expression(file, types), file_size=file.size)
        for file in files
    ]


def _dataset(parts: Sequence[Any], schema: pa.Schema, place: Place) -> ds.FileSystemDataset:
    return ds.FileSystemDataset(parts, schema, FORMAT, place.filesystem)


def widened(
    known: pa.Schema, files: Iterable[Footer], uri: str, of_folders: Collection[str] = ()
) -> pa.Schema:
    """A schema that holds what a schema and some files hold.

    Args:
        known: names and types so far; their order stays.
        files: their schemas.
        uri: the source, for messages.
        of_folders: columns that the folders' names say, whatever the files say.

    Raises:
        ColumnTypeError: a column has types that no type holds; names file and column.
    """
    types = {field.name: field.type for field in known}
    seen: list[pa.Schema] = [known]
    for file in files:
        if any(file.schema.equals(other) for other in seen):
            continue
        seen.append(file.schema)
        for column in file.schema:
            if column.name not in of_folders:
                known_type = types.get(column.name)
                types[column.name] = _with_file(known_type, column, file.path, uri)
    return pa.schema(types.items())


def _with_file(kind: pa.DataType | None, field: pa.Field, path: str, uri: str) -> pa.DataType:
    found = field.type if kind is None else common_type(kind, field.type)
    if found is None:
        raise ColumnTypeError(
            f"{uri}: column `{field.name}` is {field.type} in {path}, but {kind} in other files "
            "of the source, and no type holds both. Write that file again in the others' type."
        )
    return found


def check_holds(
    schema: pa.Schema, files: Iterable[Footer], uri: str, names: Collection[str]
) -> None:
    """Check that a schema holds what files have in some columns.

    Raises:
        ColumnTypeError: it does not; names file and column.
    """
    for file in files:
        for name in names:
            at = file.schema.get_field_index(name)
            if at >= 0:
                field, kind = file.schema.field(at), schema.field(name).type
                if _with_file(kind, field, file.path, uri) != kind:
                    raise ColumnTypeError(
                        f"{uri}: column `{name}` is {field.type} in {file.path}, which {kind}, "
                        "the type it has in the source's first and last file, does not hold. "
                        "Write that file again, or the first in the wider type."
                    )


def _repeated(footers: Iterable[Footer]) -> dict[str, str]:
    """Columns whose name a file has several times -> that file."""
    return {name: footer.path for footer in footers for name in footer.repeated}


def _check_single(columns: Collection[str], repeated: Mapping[str, str], uri: str) -> None:
    found = sorted(repeated.keys() & set(columns))
    if found:
        raise ColumnTypeError(
            f"{uri}: {repeated[found[0]]} has several columns named `{found[0]}`, so it is not "
            "known which is meant. Write that file again with a name of its own for each."
        )


def _is_alike(inferred: pa.DataType, declared: pa.DataType) -> bool:
    """Whether the values of a folder's column are the same in both types."""
    both_whole = pa.types.is_integer(inferred) and pa.types.is_integer(declared)
    return bool(inferred == declared or both_whole)


def _inside(footers: Iterable[Footer], files: Iterable[FileState]) -> set[str]:
    """Columns that a file has beside folders of its own that name them."""
    named = {file.path: {name for name, _ in file.partition} for file in files}
    return {name for footer in footers for name in named[footer.path] & set(footer.schema.names)}


def _with_inner_types(
    types: Mapping[str, pa.DataType], footers: Iterable[Footer]
) -> dict[str, pa.DataType]:
    """Types of folders' columns, which files without such folders (of buckets) may have inside."""
    found = dict(types)
    for footer in footers:
        for column in footer.schema:
            if column.name in found:
                found[column.name] = common_type(found[column.name], column.type) or pa.string()
    return found


def _check_inside(
    footers: Iterable[Footer], files: Iterable[FileState], inside: Collection[str], uri: str
) -> None:
    named = {file.path: {name for name, _ in file.partition} for file in files}
    for footer in footers:
        lacking = (set(inside) & named[footer.path]) - set(footer.schema.names)
        if lacking:
            raise SourceReadError(
                f"{uri}: {footer.path} has no column `{min(lacking)}`, which other files have "
                "beside the folders of that name. Write it into all files, or into none."
            )
