"""A source as compaction finds it: its files, what their footers say, and its pointer."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.data_format import DeltaFormat

from feast_dynamo_ext.errors import CompactionConflictError, CompactionError, SourceReadError
from feast_dynamo_ext.parquet.compaction.commit import Folder, Seen
from feast_dynamo_ext.parquet.compaction.layout import InputFile
from feast_dynamo_ext.parquet.dataset import limits
from feast_dynamo_ext.parquet.listing import Place, folders_below
from feast_dynamo_ext.parquet.pointer import POINTER, version_of, visible
from feast_dynamo_ext.parquet.scan import ReadErrors
from feast_dynamo_ext.parquet.source import ParquetSource, uri_of
from feast_dynamo_ext.storage import settings_of
from feast_dynamo_ext.timestamps import Axis, check_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast import RepoConfig
    from feast.data_source import DataSource

    from feast_dynamo_ext.parquet.pointer import Current, ReplacedFile
    from feast_dynamo_ext.storage import FileState


@dataclass(frozen=True)
class Target:
    """A folder to compact, and who reads it.

    Attributes:
        source: the Feast source that names it; of several, one.
        event_time: the files' column of event time.
        created_time: of created time, or None.
        keys: the columns that are join keys of every feature view that reads it, sorted.
        readers: names of the sources and views, for people.
        declared: types of columns that only folders' names say, as the views declare them.
    """

    source: DataSource
    event_time: str
    created_time: str | None
    keys: tuple[str, ...]
    readers: tuple[str, ...]
    declared: Mapping[str, pa.DataType] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """A source at one moment.

    Attributes:
        target: what it is.
        source: its files, in types that hold what each of them holds.
        folder: where they are.
        seen: its pointer.
        files: the same files, with what their footers say.
    """

    target: Target
    source: ParquetSource
    folder: Folder
    seen: Seen
    files: tuple[InputFile, ...]

    @classmethod
    def from_target(cls, target: Target, config: RepoConfig) -> Snapshot:
        """Look at a source.

        Raises:
            CompactionError: it is no folder of Parquet files.
            ColumnTypeError: the event time is no time, or types do not go together.
            OfflineStoreError: see its subclasses.
        """
        # Before the listing: only the pointer that the listing was made by is replaced later.
        folder = folder_of(target, config)
        seen = folder.seen()
        source = ParquetSource.open(target.source, config)
        source = source.with_folder_types(target.declared).with_all_types()
        if source.current != seen.current:
            raise CompactionConflictError(
                f"{source.uri} is being compacted by another run. Wait for it, then run it again."
            )
        _check_times(target, source)
        parts = zip(source.files, source.dataset.get_fragments(), strict=True)
        files = tuple(_input_file(source, file, part, target.event_time) for file, part in parts)
        return cls(target, source, folder, seen, files)


def folder_of(target: Target, config: RepoConfig) -> Folder:
    """Where a source is.

    Raises:
        CompactionError: it is a file, a glob or a Delta table.
    """
    uri = uri_of(target.source, config)
    place = Place.from_uri(uri, settings_of(target.source, config))
    if isinstance(getattr(target.source, "file_format", None), DeltaFormat):
        raise _not_so(target, uri, "a Delta table, which has its own OPTIMIZE")
    if place.pattern is not None:
        raise _not_so(target, uri, "a glob: make a source of its folder")
    if uri.endswith(".parquet"):
        raise _not_so(target, uri, "one file")
    return Folder(place)


def _check_times(target: Target, source: ParquetSource) -> None:
    where = f"Source `{target.source.name}`"
    for column in (target.event_time, target.created_time):
        if column is not None:
            kind = source.with_columns([column], where).schema.field(column).type
            # A created time may be missing in all rows: files then do not say its type.
            if column == target.event_time or not pa.types.is_null(kind):
                check_time(column, kind, where)


def _not_so(target: Target, uri: str, what: str) -> CompactionError:
    return CompactionError(
        f"Source `{target.source.name}` cannot be compacted: {uri} is {what}. `feast-dynamo "
        "compact` takes folders of Parquet files."
    )


def _input_file(source: ParquetSource, file: FileState, part: Any, event_time: str) -> InputFile:
    root, current = source.place.root, source.current
    path = file.path[len(root) + 1 :]
    known = {found.path: found for found in current.files} if current else {}
    groups = part.row_groups
    kind = source.schema.field(event_time).type
    errors = ReadErrors(source.place, (file,))
    first, last = _range(limits([part], event_time, kind, errors), kind)
    return InputFile(
        path=path,
        size=file.size,
        version=version_of(file),
        folder="/".join(folders_below(file.path, root)),
        rows=sum(group.num_rows for group in groups),
        row_groups=len(groups),
        plain_bytes=sum(group.total_byte_size for group in groups),
        first=first,
        last=last,
        columns=frozenset(part.physical_schema.names),
        compacted=known.get(path),
    )


def _range(found: pa.Array | None, kind: pa.DataType) -> tuple[int | None, int | None]:
    if found is None or not len(found):
        return None, None
    numbers = Axis.from_type(kind).cast(found).to_numpy()
    return int(numbers.min()), int(numbers.max())


logger = logging.getLogger(__name__)


def replaced_files(target: Target, config: RepoConfig, older_than_s: float) -> list[ReplacedFile]:
    """The files that `remove_replaced` would remove.

    Raises: as `remove_replaced`.
    """
    current = folder_of(target, config).seen().current
    before = time.time() - older_than_s
    return [file for file in (current.replaced if current else ()) if file.since <= before]


def remove_replaced(target: Target, config: RepoConfig, older_than_s: float) -> list[ReplacedFile]:
    """Delete files that were replaced longer ago; first it is checked that the new ones are there.

    Args:
        target: the source.
        config: the repo's config.
        older_than_s: seconds. A reader that listed the folder before may still be at work.

    Returns:
        The files that were deleted.

    Raises:
        SourceReadError: the pointer or what it names is not whole, or a replaced file was written
            again; nothing was deleted.
        AwsError: S3 refused.
    """
    folder = folder_of(target, config)
    seen = folder.seen()
    if seen.current is None:
        return []
    listed = list(folder.place.everything())
    visible(listed, folder.root, folder.filesystem, list)
    before = time.time() - older_than_s
    gone = [file for file in seen.current.replaced if file.since <= before]
    if not gone:
        return []
    folder.remove(_checked(gone, listed, folder, seen.current))
    left = tuple(file for file in seen.current.replaced if file not in gone)
    try:
        # Only now: a file that is there and not named would count again.
        folder.replace(seen, replace(seen.current, replaced=left))
    except CompactionConflictError:
        logger.info("%s: compacted meanwhile; the next run forgets what was removed", folder.root)
    return gone


def _checked(
    gone: Sequence[ReplacedFile], listed: Sequence[FileState], folder: Folder, current: Current
) -> list[str]:
    """The paths of replaced files that are there: a pointer is a file, which may name anything."""
    counting = {file.path for file in current.files}
    both = next((file.path for file in gone if file.path in counting), None)
    if both is not None:
        raise SourceReadError(
            f"{folder.root}/{POINTER} says of {both} that it counts, and that it was replaced. "
            "Nothing was deleted."
        )
    there = {file.path for file in listed}
    return [file.path for file in gone if f"{folder.root}/{file.path}" in there]
