"""Searches all files that lie where a table does for rows that were erased from it.

Not only what the table lists: also what writers left that were killed, and files of expired
snapshots that could not be deleted any more. Looked at are the rows of each Parquet file, its
dictionaries and statistics, and the bounds that manifests have of files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from feast_dynamo_ext.aws import scheme_and_path
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors, file_settings
from feast_dynamo_ext.parquet.iceberg.data_files import table_columns
from feast_dynamo_ext.parquet.iceberg.snapshot_files import delete_files, listed_files
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
    from feast_dynamo_ext.parquet.iceberg.erase import Chosen
    from feast_dynamo_ext.storage import FileState


CUT_TEXT = 15
"""Characters of a text that bounds have at least, where they do not have all of it."""


@dataclass(frozen=True)
class Trace:
    """What was found in a file.

    Attributes:
        uri: of the file.
        kind: `rows`, `dictionary`, `statistics`, `bounds`; `unreadable` of a file that is not
            whole, as a writer leaves it that is killed.
        is_listed: whether the table names the file.
        age_s: seconds since it was written.
    """

    uri: str
    kind: str
    is_listed: bool
    age_s: float


@dataclass(frozen=True)
class Search:
    """What a search looked at, and found.

    Attributes:
        files: how many files lie there.
        bytes: of them.
        traces: what was found.
    """

    files: int
    bytes: int
    traces: tuple[Trace, ...]


def search(
    handle: TableHandle,
    chosen: Chosen,
    values: Mapping[str, Any],
    advance: Callable[[int, int], object] = lambda _done, _total: None,
) -> Search:
    """Look for rows in all files that lie where a table's are.

    Args:
        handle: the table.
        chosen: which rows.
        values: by column what must not be in dictionaries, statistics and bounds either; empty
            where the rows are known by several columns, each of which others may share.
        advance: called with the number of files that are done, and of all.

    Raises:
        OfflineStoreError: the table cannot be read. AwsError: S3 refused.
    """
    table = handle.load()
    with catalog_errors(handle.address, handle.name):
        known = {scheme_and_path(uri)[1] for uri in listed_files(table)}
    found = _files_of(table, file_settings(table, handle.settings))
    look = _Look(table, chosen, values)
    now, traces = time.time(), []
    for done, (uri, file) in enumerate(found.items()):
        is_listed = file.path in known
        with catalog_errors(handle.address, handle.name):
            kinds = list(look.kinds_in(uri, is_listed=is_listed))
        age = now - (file.mtime_ns or 0) / 1e9
        traces += [Trace(uri, kind, is_listed, age) for kind in kinds]
        advance(done + 1, len(found))
    return Search(len(found), sum(file.size for file in found.values()), tuple(traces))


def _files_of(table: Any, settings: AwsSettings) -> dict[str, FileState]:
    """By URI, what lies where a table's files are put: other tables may lie beside these."""
    found = {}
    for part in ("data", "metadata"):
        place = table.properties.get(f"write.{part}.path", f"{table.location()}/{part}")
        scheme, is_uri, _ = place.partition("://")
        for file in files_of(place, settings).below(place):
            found[f"{scheme}://{file.path}" if is_uri else file.path] = file
    return dict(sorted(found.items()))


def remove_unlisted(handle: TableHandle, traces: Sequence[Trace]) -> list[str]:
    """Delete files in which something was found and that the table does not name.

    Args:
        handle: the table.
        traces: as a search of it found them, which listed the files.

    Returns:
        What was deleted.

    Raises:
        AwsError: S3 refused. DestinationError: a disk did.
    """
    table = handle.load()
    with catalog_errors(handle.address, handle.name):
        known = {scheme_and_path(uri)[1] for uri in listed_files(table)}
    gone = sorted({trace.uri for trace in traces if not trace.is_listed})
    gone = [uri for uri in gone if scheme_and_path(uri)[1] not in known]
    delete_files(gone, file_settings(table, handle.settings))
    return gone


@dataclass(frozen=True)
class _Look:
    table: Any
    chosen: Chosen
    values: Mapping[str, Any]

    def kinds_in(self, uri: str, *, is_listed: bool) -> Iterator[str]:
        name = uri.rpartition("/")[2]
        try:
            if name.endswith(".parquet"):
                yield from self._in_data(uri)
            elif name.endswith(".avro") and self.values:
                yield from self._in_manifest(uri, is_listed=is_listed)
            elif name.endswith(".tmp") and not is_listed:
                yield "unreadable"
        except FileNotFoundError:
            return  # another deleted it meanwhile
        except (pa.ArrowInvalid, ValueError, EOFError):
            if is_listed:
                raise
            yield "unreadable"

    # Data files

    def _in_data(self, uri: str) -> Iterator[str]:
        with self.table.io.new_input(uri).open() as opened:
            there = pq.read_schema(opened).names
            texts = [name for name in self.values if _is_text(self.values[name])]
            file = pq.ParquetFile(
                opened, read_dictionary=[each for each in texts if each in there]
            )
            names = [each for each in self.chosen.names if each in file.schema_arrow.names]
            if not names:
                return
            types = table_columns(self.table.schema())
            has_rows = has_entry = False
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=names)
                has_entry = has_entry or any(
                    value in chunk.dictionary.to_pylist()
                    for name, value in self.values.items()
                    if name in names
                    for chunk in rows.column(name).chunks
                    if pa.types.is_dictionary(chunk.type)
                )
                for batch in rows.to_batches():
                    whole = _whole(batch, self.chosen.names, types)
                    has_rows = has_rows or bool(self.chosen.are_in(whole).any())
            if has_rows:
                yield "rows"
            if has_entry:
                yield "dictionary"
            if any(self._is_limit(file.metadata, name) for name in self.values):
                yield "statistics"

    def _is_limit(self, footer: pq.FileMetaData, name: str) -> bool:
        limits: list[Any] = []
        for group in range(footer.num_row_groups):
            row_group = footer.row_group(group)
            for at in range(row_group.num_columns):
                column = row_group.column(at)
                said = column.statistics
                has_limits = said is not None and said.has_min_max
                if column.path_in_schema == name and has_limits:
                    limits += [said.min, said.max]
        return self.values[name] in limits

    # Manifests

    def _in_manifest(self, uri: str, *, is_listed: bool) -> Iterator[str]:
        from pyiceberg.conversions import from_bytes
        from pyiceberg.manifest import ManifestFile

        if uri.rpartition("/")[2].startswith("snap-"):
            return  # a list of manifests: the partitions are of times
        manifest = ManifestFile.from_args(
            manifest_path=uri, partition_spec_id=0, added_snapshot_id=0, sequence_number=0
        )
        fields = [self.table.schema().find_field(name) for name in self.values]
        entries = manifest.fetch_manifest_entry(self.table.io, discard_deleted=False)
        for entry in entries:
            file = entry.data_file
            for field, value in zip(fields, self.values.values(), strict=True):
                bounds = [
                    (limits or {}).get(field.field_id)
                    for limits in (file.lower_bounds, file.upper_bounds)
                ]
                said = [from_bytes(field.field_type, each) for each in bounds if each is not None]
                if any(_is_bound(each, value, is_cut=not is_listed) for each in said):
                    yield "bounds"
                    return


def _whole(batch: pa.RecordBatch, names: Sequence[str], types: pa.Schema) -> pa.RecordBatch:
    """The columns in the table's types; those that a file lacks are null."""
    columns = []
    for name in names:
        kind = types.field(name).type
        if name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, kind))
            continue
        column = batch.column(name)
        columns.append(column if column.type == kind else column.cast(kind))
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes))


def _is_bound(said: Any, value: Any, *, is_cut: bool) -> bool:
    """Whether a bound is a value; where it may be cut, whether it may be of the value."""
    if said == value:
        return True
    if not is_cut or not _is_text(value) or len(value) <= CUT_TEXT:
        return False
    return bool(said[:CUT_TEXT] == value[:CUT_TEXT])
