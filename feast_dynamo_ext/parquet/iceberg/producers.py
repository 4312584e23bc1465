"""What commits need that pyiceberg lacks: cheap ones, and those that keep a table's rows.

To be imported where it is used: it needs pyiceberg.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyiceberg.catalog import MetastoreCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import (
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
)
from pyiceberg.table import TableProperties, Transaction
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.table.update import ValidatableTableRequirement
from pyiceberg.table.update.snapshot import (
    _ManifestMergeManager,
    _OverwriteFiles,
    _SnapshotProducer,
)
from pyiceberg.typedef import EMPTY_DICT
from pyiceberg.utils.properties import property_as_int

from feast_dynamo_ext.errors import FeastDynamoError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata

logger = logging.getLogger(__name__)

MANIFEST_ENTRIES = 5_000
"""Of a manifest that is written: a few megabytes."""


class LightTransaction(Transaction):
    """One that copies a table's metadata once a change, and tries no commit twice.

    pyiceberg's copies all of it, with all snapshots, at each of a dozen looks at it: of a table of
    a hundred snapshots this was nine tenths of an append.
    """

    _seen: tuple[Any, Any, TableMetadata] | None = None

    def _rebuild_snapshot_updates(self) -> None:
        """Nothing is tried again here, with properties of before another writer's commit."""
        raise CommitFailedException("Another writer came first")

    @property
    def table_metadata(self) -> TableMetadata:
        """The metadata with the changes so far."""
        seen, base, updates = self._seen, self._table.metadata, self._updates
        if not updates:
            return base
        if seen is None or seen[0] is not base or seen[1] is not updates:
            seen = self._seen = base, updates, super().table_metadata
        return seen[2]


def delete_unlisted(table: Table, producer: _SnapshotProducer[Any]) -> None:
    """Delete manifests that a commit wrote and then merged into others: no snapshot lists them.

    They hold the least and the greatest values of data files, and nobody would find them again.
    Best effort: the commit is made.
    """
    written = list(producer._written_manifests)
    snapshot = table.snapshot_by_id(producer.snapshot_id)
    if len(written) < 2 or snapshot is None:  # noqa: PLR2004 - one is that of the new files
        return
    try:
        listed = {manifest.manifest_path for manifest in snapshot.manifests(table.io)}
        for path in set(written) - listed:
            table.io.delete(path)
    except (OSError, FeastDynamoError) as error:
        logger.warning("manifests that a commit merged are left: %s", error)


class ReplaceFiles(_OverwriteFiles):
    """Data files in the place of others, with the same rows.

    Readers of a table's changes pass over it; they refuse what pyiceberg calls an overwrite.
    """

    @classmethod
    def within(cls, transaction: Transaction, summary: Mapping[str, str]) -> ReplaceFiles:
        """One of the current branch, with entries of its snapshot's summary."""
        return cls(
            operation=Operation.OVERWRITE,
            transaction=transaction,
            io=transaction._table.io,
            snapshot_properties=dict(summary),
        )

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        """Few manifests, as after appends, which merge them too."""
        counting = [
            manifest
            for manifest in manifests
            if manifest.added_snapshot_id == self._snapshot_id
            or manifest.has_added_files()
            or manifest.has_existing_files()
        ]
        of_data = [found for found in counting if found.content == ManifestContent.DATA]
        properties = self._transaction.table_metadata.properties
        merging: _ManifestMergeManager[Any] = _ManifestMergeManager(
            target_size_bytes=property_as_int(
                properties,
                TableProperties.MANIFEST_TARGET_SIZE_BYTES,
                TableProperties.MANIFEST_TARGET_SIZE_BYTES_DEFAULT,
            )
            or 0,
            min_count_to_merge=property_as_int(
                properties,
                TableProperties.MANIFEST_MIN_MERGE_COUNT,
                TableProperties.MANIFEST_MIN_MERGE_COUNT_DEFAULT,
            )
            or 0,
            merge_enabled=True,
            snapshot_producer=self,
        )
        return merging.merge_manifests(of_data) + [
            found for found in counting if found.content != ManifestContent.DATA
        ]

    def _summary(self, snapshot_properties: dict[str, str] = EMPTY_DICT) -> Summary:
        return _replacing(super()._summary(snapshot_properties))


class RewriteManifests(_SnapshotProducer["RewriteManifests"]):
    """All manifests anew, with nothing in them of files that no longer count.

    The manifests of a commit that removes files keep these files' statistics, the least and the
    greatest of their values, until another commit writes them anew.
    """

    live_deletes: Collection[str] = ()
    """Paths of the files of deleted rows that still apply."""

    @classmethod
    def within(
        cls, transaction: Transaction, summary: Mapping[str, str], live_deletes: Collection[str]
    ) -> RewriteManifests:
        """One of the current branch, with entries of its snapshot's summary."""
        made = cls(
            operation=Operation.OVERWRITE,
            transaction=transaction,
            io=transaction._table.io,
            snapshot_properties=dict(summary),
        )
        made.live_deletes = live_deletes
        return made

    def _validate_concurrency(self) -> None:
        """Nothing: another commit makes this one fail."""

    def _deleted_entries(self) -> list[ManifestEntry]:
        return []

    def _existing_manifests(self) -> list[ManifestFile]:
        metadata = self._transaction.table_metadata
        parent = self._parent_snapshot_id
        snapshot = metadata.snapshot_by_id(parent) if parent is not None else None
        kept: list[ManifestFile] = []
        entries: dict[int, list[ManifestEntry]] = {}
        for manifest in snapshot.manifests(self._io) if snapshot else ():
            found = self.fetch_manifest_entry(manifest)
            if manifest.content == ManifestContent.DATA:
                entries.setdefault(manifest.partition_spec_id, []).extend(found)
            elif any(entry.data_file.file_path in self.live_deletes for entry in found):
                kept.append(manifest)
        for spec_id, live in entries.items():
            for part in _parts(live):
                with self.new_manifest_writer(self.spec(spec_id)) as writer:
                    for entry in part:
                        writer.add_entry(_existing(entry))
                kept.append(writer.to_manifest_file())
        return kept

    def _summary(self, snapshot_properties: dict[str, str] = EMPTY_DICT) -> Summary:
        return _replacing(super()._summary(snapshot_properties))


def _parts(entries: list[ManifestEntry]) -> Iterator[list[ManifestEntry]]:
    for start in range(0, len(entries), MANIFEST_ENTRIES):
        yield entries[start : start + MANIFEST_ENTRIES]


def _existing(entry: ManifestEntry) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=ManifestEntryStatus.EXISTING,
        snapshot_id=entry.snapshot_id,
        sequence_number=entry.sequence_number,
        file_sequence_number=entry.file_sequence_number,
        data_file=entry.data_file,
    )


def _replacing(summary: Summary) -> Summary:
    entries: dict[str, Any] = dict(summary.additional_properties)
    return Summary(Operation.REPLACE, **entries)


class NoRefsTo(ValidatableTableRequirement):
    """No tag and no branch is at one of some snapshots, which a commit is to remove."""

    type: str = "assert-no-refs-to"
    snapshot_ids: list[int] = Field(default_factory=list)

    def validate(  # type: ignore[override]  # as pyiceberg's own
        self, base_metadata: TableMetadata | None
    ) -> None:
        """Raise CommitFailedException where one is."""
        refs = base_metadata.refs if base_metadata else {}
        named = sorted(
            name for name, ref in refs.items() if ref.snapshot_id in set(self.snapshot_ids)
        )
        if named:
            raise CommitFailedException(
                f"Requirement failed: {named} name snapshots that are to be expired"
            )


def is_checked_here(table: Table) -> bool:
    """Whether the requirements of commits are checked by pyiceberg, so that it may be ours."""
    return isinstance(table.catalog, MetastoreCatalog)
