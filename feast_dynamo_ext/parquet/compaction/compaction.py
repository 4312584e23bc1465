"""Compacts a source: looks, chooses, rewrites, and replaces the pointer in one step.

Until that step nothing that counts has changed: a run that fails removes what it has written, and
what a killed one left behind is removed by a later run.
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import FeastDynamoError, SourceReadError
from feast_dynamo_ext.parquet.compaction import layout
from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest, Shape, Unit
from feast_dynamo_ext.parquet.compaction.rewrite import Rewrite
from feast_dynamo_ext.parquet.compaction.snapshot import Snapshot
from feast_dynamo_ext.parquet.compaction.sorted_files import SortedFiles
from feast_dynamo_ext.parquet.pointer import FOLDER, POINTER, Current, ReplacedFile
from feast_dynamo_ext.storage import LOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.parquet.compaction.commit import Folder
    from feast_dynamo_ext.parquet.compaction.snapshot import Target
    from feast_dynamo_ext.parquet.listing import Place
    from feast_dynamo_ext.parquet.pointer import CompactedFile
    from feast_dynamo_ext.storage import FileState


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figures:
    """What a source has: files, rows, bytes, row groups."""

    files: int
    rows: int
    size: int
    row_groups: int


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        snapshot: the source.
        shape: how its files are laid out.
        units: all of them; those that are done already are kept as they are.
        asked: what the caller wants.
    """

    snapshot: Snapshot
    shape: Shape
    units: tuple[Unit, ...]
    asked: LayoutRequest

    @property
    def todo(self) -> list[Unit]:
        """The units that are rewritten."""
        current = self.snapshot.seen.current
        if current is None or current.buckets != self.shape.buckets:
            return list(self.units)
        return [unit for unit in self.units if not unit.is_done]

    @property
    def rows(self) -> int:
        """Rows that are rewritten."""
        return sum(file.rows for unit in self.todo for file in unit.files)

    @property
    def before(self) -> Figures:
        """What there is now."""
        files = self.snapshot.files
        return Figures(
            len(files),
            sum(file.rows for file in files),
            sum(file.size for file in files),
            sum(file.row_groups for file in files),
        )


def plan(target: Target, config: RepoConfig, asked: LayoutRequest) -> Plan:
    """What would be done to a source; nothing is changed.

    Raises:
        CompactionError: it cannot be compacted, or not as asked.
        OfflineStoreError: it cannot be read; see the subclasses.
    """
    snapshot = Snapshot.from_target(target, config)
    current = snapshot.seen.current
    before = current.buckets if current else None
    shape = layout.choose(asked, before, snapshot.files, target.keys)
    whole = [Unit("", 0, snapshot.files)]
    units = whole if shape.buckets else layout.by_partition(snapshot.files)
    return Plan(snapshot, shape, tuple(units), asked)


def run(todo: Plan, advance: Callable[[int], object] = lambda _: None) -> Figures:
    """Do it: readers see the old files, then, from one moment on, the new ones.

    Args:
        todo: what to do.
        advance: called with numbers of rows: each as it is read, and again as it is written.

    Returns:
        What there is now.

    Raises:
        CompactionConflictError: another run was faster; nothing was changed.
        SourceReadError: a file cannot be read, or was replaced meanwhile; nothing was changed.
        OfflineStoreError: a disk is full; nothing was changed.
        AwsError: S3 refused; nothing was changed.
    """
    _remove_orphans(todo)
    if not todo.todo:
        return todo.before
    generation = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    try:
        files = _rewritten(todo, generation, advance)
        after = _verified(todo, files)
        _check_unchanged(todo)
        _replace_pointer(todo, generation, files)
    except BaseException:
        _discard(todo, generation)
        raise
    return after


def _rewritten(
    todo: Plan, generation: str, advance: Callable[[int], object]
) -> tuple[CompactedFile, ...]:
    found: list[CompactedFile] = []
    buckets, rewritten = todo.shape.buckets, todo.todo
    for unit in todo.units:
        if unit in rewritten:
            work = Rewrite(todo.snapshot, unit, buckets, generation, todo.asked, advance)
            found += work.run()
        else:
            found += [file.compacted for file in unit.files if file.compacted]
    return tuple(found or [_empty(todo, generation)])


def _empty(todo: Plan, generation: str) -> CompactedFile:
    """A file without rows, so that a source without rows keeps its columns."""
    folder = todo.snapshot.folder
    stem = f"{folder.generation_path(generation)}/part-000"
    schema = todo.snapshot.source.schema
    files = SortedFiles(folder, stem, schema, todo.asked.target_bytes, None)
    with files.writer() as writer:
        writer.write_empty()
    return files.written(writer)[0]


def _verified(todo: Plan, files: Sequence[CompactedFile]) -> Figures:
    """What there will be, as the footers of the new files say it."""
    folder, known = todo.snapshot.folder, {file.path: file for file in todo.snapshot.files}
    groups = [
        known[file.path].row_groups if file.path in known else _row_groups(folder, file)
        for file in files
    ]
    rows = sum(file.rows for file in files)
    if rows != todo.before.rows:
        raise SourceReadError(
            f"{todo.snapshot.source.uri}: {todo.before.rows:,} rows became {rows:,}. Nothing was "
            "changed; please report this."
        )
    return Figures(len(files), rows, sum(file.size for file in files), sum(groups))


def _sorted_by(todo: Plan) -> tuple[str, ...]:
    target, buckets = todo.snapshot.target, todo.shape.buckets
    times = [name for name in (target.event_time, target.created_time) if name]
    return (*(buckets.columns if buckets else ()), *times)


def _row_groups(folder: Folder, file: CompactedFile) -> int:
    path = f"{folder.root}/{file.path}"
    with aws.s3_translated(path):
        footer = pq.read_metadata(path, filesystem=folder.filesystem)
    if footer.num_rows != file.rows:
        raise SourceReadError(
            f"{path} has {footer.num_rows:,} rows, but {file.rows:,} were written to it. Nothing "
            "was changed; run it again."
        )
    return int(footer.num_row_groups)


def _check_unchanged(todo: Plan) -> None:
    source = todo.snapshot.source
    changed = source.place.changed(source.files)
    if changed is not None:
        raise SourceReadError(
            f"{changed.path} was replaced or removed while {source.uri} was compacted. Nothing "
            "was changed; run it again, and let writers append new files."
        )


def _replace_pointer(todo: Plan, generation: str, files: tuple[CompactedFile, ...]) -> None:
    folder, seen = todo.snapshot.folder, todo.snapshot.seen
    try:
        folder.replace(seen, _pointer(todo, generation, files))
    except FeastDynamoError:
        # The answer may be lost where the request was not; its repetition is then refused.
        if folder.seen().generation != generation:
            raise


def _pointer(todo: Plan, generation: str, files: tuple[CompactedFile, ...]) -> Current:
    snapshot, now = todo.snapshot, time.time()
    before = snapshot.seen.current
    there: set[str] = {file.path for file in snapshot.source.place.everything()}
    kept = {file.path for file in files}
    replaced: list[ReplacedFile] = [
        *(before.replaced if before else ()),
        *(ReplacedFile(file.path, file.size, file.version, now) for file in snapshot.files),
    ]
    return Current(
        generation,
        todo.shape.buckets,
        _sorted_by(todo),
        files,
        tuple(
            file
            for file in replaced
            if file.path not in kept and f"{snapshot.folder.root}/{file.path}" in there
        ),
    )


def _discard(todo: Plan, generation: str) -> None:
    """Remove what a run that failed has written; what it cannot remove, a later run does."""
    folder = todo.snapshot.folder
    try:
        if folder.seen().generation != generation:
            _remove_generations(folder, todo.snapshot.source.place, {generation})
    except (FeastDynamoError, OSError) as error:
        logger.warning("%s/%s is left behind: %s", folder.root, FOLDER, error)


def _remove_generations(folder: Folder, place: Place, names: Collection[str]) -> None:
    prefixes = tuple(f"{folder.root}/{folder.generation_path(name)}/" for name in names)
    found = [file.path for file in place.everything() if file.path.startswith(prefixes)]
    folder.remove([path[len(folder.root) + 1 :] for path in found])


def _remove_orphans(todo: Plan) -> None:
    """Remove what runs that were killed have left behind, if that is long ago."""
    snapshot = todo.snapshot
    names = orphans(
        list(snapshot.source.place.everything()),
        snapshot.folder.root,
        snapshot.seen.current,
        time.time() - todo.asked.orphans_older_than_s,
    )
    if names:
        logger.info("%s: removing %d files of dead runs", snapshot.source.uri, len(names))
        snapshot.folder.remove(names)


def orphans(
    listed: Sequence[FileState], root: str, current: Current | None, before_s: float
) -> list[str]:
    """Files of compaction that no pointer names, of generations that ended before a moment."""
    hidden = f"{root}/{FOLDER}/"
    named = {f"{root}/{POINTER}", f"{hidden}{LOCK}"}
    if current:
        named |= {f"{root}/{file.path}" for file in current.files}
        named |= {f"{root}/{file.path}" for file in current.replaced}
    found = [file for file in listed if file.path.startswith(hidden) and file.path not in named]
    newest: dict[str, int] = {}
    for file in found:
        generation = file.path[len(hidden) :].partition("/")[0]
        newest[generation] = max(newest.get(generation, 0), file.mtime_ns or 0)
    old = {name for name, changed_ns in newest.items() if changed_ns < before_s * 1e9}
    return [
        file.path[len(root) + 1 :]
        for file in found
        if file.path[len(hidden) :].partition("/")[0] in old
    ]
