"""Which files the snapshots of a table list, and what is left of them where some are expired.

No file is found by listing a folder: what is deleted was listed by a snapshot that is expired, and
is listed by none that is left.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import FeastDynamoError
from feast_dynamo_ext.parquet.iceberg.catalog import file_settings
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from feast_dynamo_ext.aws import AwsSettings

logger = logging.getLogger(__name__)

READ_AT_ONCE = 8
"""Manifests and lists of them."""

MOST_APPENDS = 100
"""Snapshots of plain appends, after which the oldest are expired by the next append."""

KEPT_APPENDS = 50
"""Of these, the newest that are kept."""


@dataclass(frozen=True)
class Leftovers:
    """Files that no snapshot of a table lists any more.

    Attributes:
        data: data files.
        deletes: files of deleted rows.
        metadata: manifests, lists of manifests, and statistics.
    """

    data: frozenset[str] = frozenset()
    deletes: frozenset[str] = frozenset()
    metadata: frozenset[str] = frozenset()

    def uris(self) -> list[str]:
        """All of them; what names others comes last, so that less is lost sight of."""
        return [*sorted(self.data), *sorted(self.deletes), *sorted(self.metadata)]


@dataclass
class _Listed:
    """What some snapshots list."""

    lists: set[str] = field(default_factory=set)
    manifests: dict[str, Any] = field(default_factory=dict)


def leftovers(table: Any, expired: Sequence[Any], living: Sequence[Any]) -> Leftovers:
    """Files that only expired snapshots list.

    Files that others removed already are passed over.

    Args:
        table: pyiceberg's; only used to read.
        expired: pyiceberg's snapshots.
        living: all that are left.

    Raises:
        FileNotFoundError: a living snapshot's manifest is missing; then nobody knows what it
            lists.
    """
    dead, alive = _listed(table, expired, must_exist=False), _listed(table, living)
    only_dead = [found for path, found in dead.manifests.items() if path not in alive.manifests]
    data, deletes = _files(table, only_dead, living=False)
    if data or deletes:
        live_data, live_deletes = _files(table, alive.manifests.values(), living=True)
        data, deletes = data - live_data, deletes - live_deletes
    metadata = {found.manifest_path for found in only_dead} | (dead.lists - alive.lists)
    return Leftovers(frozenset(data), frozenset(deletes), frozenset(metadata))


def _listed(table: Any, snapshots: Iterable[Any], *, must_exist: bool = True) -> _Listed:
    def read(snapshot: Any) -> list[Any]:
        try:
            found: list[Any] = snapshot.manifests(table.io)
        except FileNotFoundError:
            if must_exist:
                raise
            return []
        return found

    found = _Listed()
    snapshots = list(snapshots)
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        for snapshot, manifests in zip(snapshots, threads.map(read, snapshots), strict=True):
            found.lists.add(snapshot.manifest_list)
            found.manifests |= {manifest.manifest_path: manifest for manifest in manifests}
    return found


def _files(table: Any, manifests: Iterable[Any], *, living: bool) -> tuple[set[str], set[str]]:
    """Data files and files of deleted rows of manifests; of living ones those that count."""

    def read(manifest: Any) -> list[tuple[str, bool]]:
        try:
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=living)
        except FileNotFoundError:
            if living:
                raise
            return []
        return [
            (entry.data_file.file_path, entry.data_file.content.value == 0) for entry in entries
        ]

    data: set[str] = set()
    deletes: set[str] = set()
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        for found in threads.map(read, manifests):
            for path, is_data in found:
                (data if is_data else deletes).add(path)
    return data, deletes


def listed_files(table: Any) -> set[str]:
    """All files of a table that count: of its snapshots, and of its metadata as it is and was.

    Raises:
        FileNotFoundError: a manifest is missing; then nobody knows what it lists.
    """
    alive = _listed(table, table.snapshots())
    data, deletes = _files(table, alive.manifests.values(), living=True)
    metadata = {table.metadata_location}
    metadata |= {entry.metadata_file for entry in table.metadata.metadata_log}
    return data | deletes | {*alive.manifests} | alive.lists | statistics_of(table) | metadata


def statistics_of(table: Any) -> set[str]:
    """Files of statistics, which a table's metadata names itself."""
    metadata = table.metadata
    return {
        found.statistics_path for found in [*metadata.statistics, *metadata.partition_statistics]
    }


def delete_files(uris: Iterable[str], settings: AwsSettings) -> None:
    """Delete files, wherever they are; those that are gone already are passed over.

    Raises:
        AwsError: S3 refused. DestinationError: a disk did.
    """
    by_bucket: dict[str, list[str]] = defaultdict(list)
    for uri in uris:
        scheme, is_uri, rest = uri.partition("://")
        by_bucket[f"{scheme}://{rest.partition('/')[0]}" if is_uri else ""].append(uri)
    for some in by_bucket.values():
        files_of(some[0], settings).delete(some)


def remove_snapshots(table: Any, expired: Collection[int]) -> None:
    """Remove snapshots from a table's metadata, in one commit.

    Raises:
        CommitFailedException: pyiceberg's: another writer came first, or a tag or a branch was set
            to one of them.
    """
    from pyiceberg.table.update import AssertRefSnapshotId, RemoveSnapshotsUpdate

    from feast_dynamo_ext.parquet.iceberg.producers import (
        LightTransaction,
        NoRefsTo,
        is_checked_here,
    )

    current = table.current_snapshot()
    at = current.snapshot_id if current else None
    required: Any = NoRefsTo(snapshot_ids=sorted(expired))
    if not is_checked_here(table):
        # REST has no condition for tags: what is left is the moment between this and the commit.
        required.validate(table.catalog.load_table(table.name()).metadata)
        required = AssertRefSnapshotId.model_validate({"ref": "main", "snapshot-id": at})
    removal = RemoveSnapshotsUpdate.model_validate({"snapshot-ids": sorted(expired)})
    with LightTransaction(table) as transaction:
        transaction._apply((removal,), (required,))


def tidy_after_append(
    table: Any, settings: AwsSettings, most: int = MOST_APPENDS, kept: int = KEPT_APPENDS
) -> None:
    """Keep appends cheap: each writes a table's metadata anew, with all snapshots.

    Where many snapshots of plain appends have come since the last commit that removed files, the
    oldest beyond some of the newest are expired. All their data files
    count still, so only lists and manifests are deleted. Snapshots with a tag or a branch stay.
    Best effort: where another writer comes first, it or the next append does it.

    Args:
        table: pyiceberg's, after an append.
        settings: how S3 is reached.
        most: so many appends are left alone.
        kept: so many of the newest stay.
    """
    appends = _appends(table)
    if len(appends) <= most:
        return
    named = {ref.snapshot_id for ref in table.refs().values()}
    expired = [found for found in appends[kept:] if found.snapshot_id not in named]
    gone = {found.snapshot_id for found in expired}
    living = [found for found in table.snapshots() if found.snapshot_id not in gone]
    if not expired:
        return
    from pyiceberg.exceptions import CommitFailedException

    try:
        remove_snapshots(table, gone)
    except (CommitFailedException, ValueError) as error:
        logger.debug("another writer came before the upkeep after an append: %s", error)
        return
    except Exception as error:  # noqa: BLE001 - each kind of catalog raises errors of its own
        # The append is in the table: an error here would have it repeated.
        logger.warning("upkeep after an append: %s: the next one does it", type(error).__name__)
        return
    settings = file_settings(table, settings)
    try:
        dead, alive = _listed(table, expired, must_exist=False), _listed(table, living)
        manifests = dead.manifests.keys() - alive.manifests.keys()
        delete_files([*sorted(manifests), *sorted(dead.lists - alive.lists)], settings)
    except (FeastDynamoError, OSError) as error:
        # The append is in the table: what is left over is garbage, and nothing is lost.
        logger.warning("manifests of %d expired snapshots are left: %s", len(gone), error)


def _appends(table: Any) -> list[Any]:
    """Snapshots of plain appends since files were last removed, the newest first."""
    found = []
    by_id = {snapshot.snapshot_id: snapshot for snapshot in table.snapshots()}
    snapshot = table.current_snapshot()
    while snapshot is not None and snapshot.summary is not None:
        if snapshot.summary.operation.value != "append":
            break
        found.append(snapshot)
        snapshot = by_id.get(snapshot.parent_snapshot_id)
    return found
