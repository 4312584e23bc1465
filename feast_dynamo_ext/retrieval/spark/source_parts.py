"""A source in parts of some megabytes, each of which another process reads by itself.

A part names files and row groups, and holds no credentials: whoever reads it has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow.dataset as ds

from feast_dynamo_ext.parquet.dataset import FORMAT, SourceDataset, made_fragments
from feast_dynamo_ext.parquet.listing import Place
from feast_dynamo_ext.parquet.scan import ReadErrors, row_groups
from feast_dynamo_ext.parquet.source import ParquetSource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import Any

    import pyarrow as pa

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.listing import FileView, TableFiles
    from feast_dynamo_ext.parquet.scan import RowGroup
    from feast_dynamo_ext.storage import FileState

PART_BYTES = 64 << 20
"""Of a part's columns, as they are compressed in the files."""


@dataclass(frozen=True)
class SourceHead:
    """What all parts of a source have in common.

    Attributes:
        uri: where the source is.
        settings: how to reach AWS, without credentials.
        schema: names and types of all columns.
        of_folders: names and types of those that folders' names say.
        table: what a table's log says, without its files; None where there is none.
        checked: columns whose footers were checked.
    """

    uri: str
    settings: AwsSettings
    schema: pa.Schema
    of_folders: Mapping[str, pa.DataType]
    table: TableFiles | None
    checked: frozenset[str]


@dataclass(frozen=True)
class KnownViews:
    """How the files of a part are read, without the table that says it; see `Views`.

    Attributes:
        by_path: the view of each file; None for as it stands.
    """

    by_path: Mapping[str, FileView | None]

    @property
    def are_plain(self) -> bool:
        """See `Views.are_plain`."""
        return all(view is None for view in self.by_path.values())

    def of(self, fragment: Any) -> FileView | None:
        """See `Views.of`."""
        return self.by_path[fragment.path]


@dataclass(frozen=True)
class SourcePart:
    """Some row groups.

    Attributes:
        files: the files that they are of, as they were listed.
        views: how each file is read; None for as it stands.
        groups: numbers of the row groups, a file.
        start: position of the first row in the source.
        rows: how many rows count.
    """

    files: tuple[FileState, ...]
    views: tuple[FileView | None, ...]
    groups: tuple[tuple[int, ...], ...]
    start: int
    rows: int

    def open(self, head: SourceHead) -> ParquetSource:
        """The part as a source of its own, whose positions begin with 0.

        Raises:
            AwsError: there are no credentials.
            SourceReadError: a file is not there any more, or cannot be read.
        """
        place = Place.from_uri(head.uri, head.settings)
        errors = ReadErrors(place, self.files, is_table=head.table is not None)
        fragments = []
        made = made_fragments(place, self.files, head.of_folders)
        for fragment, groups in zip(made, self.groups, strict=True):
            with errors.of_file(fragment.path):
                fragments.append(fragment.subset(row_group_ids=list(groups)))
        table = head.table
        if table is not None:
            paths = (file.path for file in self.files)
            views = KnownViews(dict(zip(paths, self.views, strict=True)))
            table = replace(table, files=self.files, views=views)
        parts = SourceDataset(
            place,
            self.files,
            ds.FileSystemDataset(fragments, head.schema, FORMAT, place.filesystem),
            frozenset(head.of_folders),
            settled=True,
            table=table,
            checked=head.checked,
        )
        return ParquetSource(parts, head.settings)


def head_of(source: ParquetSource) -> SourceHead:
    """What all parts of a source have in common."""
    table = source.table
    if table is not None:
        table = replace(table, files=(), bounds=None, views=None, deletes=frozenset())
    kinds = {name: source.schema.field(name).type for name in source.of_folders}
    settings = replace(source.settings, credentials=None)
    return SourceHead(source.uri, settings, source.schema, kinds, table, source.parts.checked)


def parts_of(source: ParquetSource, columns: Collection[str]) -> Iterator[SourcePart]:
    """The parts of a source, in the order of their rows; footers are read, no rows.

    A part has `PART_BYTES` of these columns, and one row group at least.

    Args:
        source: the source.
        columns: that will be read.

    Raises:
        ColumnTypeError: a file has a column in a type that the source's does not hold.
        SourceReadError: a footer cannot be read.
    """
    dataset = source.parts.readable(columns)
    errors = ReadErrors(source.place, source.files, is_table=source.parts.of_log)
    files = {file.path: file for file in source.files}
    taken: list[tuple[RowGroup, int]] = []
    start = rows = size = 0
    for group in row_groups(dataset, errors.of_file, source.parts.views):
        (info,) = group.fragment.row_groups
        more = _bytes(group.fragment, info.id, columns)
        if taken and size + more > PART_BYTES:
            yield _part(files, taken, start, rows)
            taken, start, rows, size = [], start + rows, 0, 0
        taken.append((group, info.id))
        rows += group.rows
        size += more
    if taken:
        yield _part(files, taken, start, rows)


def _part(
    files: Mapping[str, FileState], taken: Sequence[tuple[RowGroup, int]], start: int, rows: int
) -> SourcePart:
    groups: dict[str, list[int]] = {}
    views: dict[str, FileView | None] = {}
    for group, number in taken:
        groups.setdefault(group.path, []).append(number)
        views[group.path] = group.view
    return SourcePart(
        tuple(files[path] for path in groups),
        tuple(views[path] for path in groups),
        tuple(map(tuple, groups.values())),
        start,
        rows,
    )


def _bytes(fragment: Any, group: int, columns: Collection[str]) -> int:
    info = fragment.metadata.row_group(group)
    leaves = (info.column(at) for at in range(info.num_columns))
    return sum(
        leaf.total_compressed_size
        for leaf in leaves
        if leaf.path_in_schema.split(".")[0] in columns
    )
