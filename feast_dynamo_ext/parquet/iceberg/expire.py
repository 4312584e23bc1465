"""Removes old snapshots of an Iceberg table, and the files that only they list."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import FeastDynamoError, NotCommittedError, OfflineStoreError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors, file_settings
from feast_dynamo_ext.parquet.iceberg.commits import ATTEMPTS, REFUSED, UNANSWERED, pause
from feast_dynamo_ext.parquet.iceberg.snapshot_files import (
    Leftovers,
    delete_files,
    leftovers,
    remove_snapshots,
    statistics_of,
)
from feast_dynamo_ext.timestamps import assume_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

logger = logging.getLogger(__name__)

KEPT_FOR = timedelta(days=5)
"""For so long snapshots are kept by default, longer than any read takes."""


@dataclass(frozen=True)
class ExpireReport:
    """What was expired, or would be.

    Attributes:
        table: its name.
        expired: ids of the snapshots, the oldest first.
        kept: how many snapshots are left.
        kept_by: of snapshots that are old enough and are kept all the same: id -> why.
        data_files: how many were deleted.
        delete_files: files of deleted rows that were.
        metadata_files: manifests, lists of them, and statistics that were.
    """

    table: str
    expired: tuple[int, ...]
    kept: int
    kept_by: dict[int, str]
    data_files: int = 0
    delete_files: int = 0
    metadata_files: int = 0


def expire(
    handle: TableHandle,
    older_than: datetime | None = None,
    keep_last: int = 1,
    keep_ids: Collection[int] = (),
    *,
    dry_run: bool = False,
) -> ExpireReport:
    """Expire old snapshots; what the current one holds does not change.

    The snapshots are removed from the metadata in one commit. Then the data files, files of
    deleted rows, manifests and lists of manifests are deleted which an expired snapshot listed and
    no other one lists; files that are gone already are passed over. Where it is interrupted in
    between, what is left over is garbage: files that no snapshot lists, which nobody reads and
    which no later run finds.

    Kept are the current snapshot, those with a tag or a branch, those of `keep_ids`, and the last
    ones. A read of an expired snapshot that is under way fails.

    Args:
        handle: the table.
        older_than: only snapshots from before it; default: five days ago.
        keep_last: how many of the newest snapshots to keep, whatever their age.
        keep_ids: ids of snapshots to keep, such as those that manifests of training sets name.
        dry_run: only say what would be expired.

    Raises:
        OfflineStoreError: the table keeps its files (`gc.enabled` is false).
        NotCommittedError: others kept coming first; nothing was changed.
        SourceReadError: a manifest that counts cannot be read; then nothing is deleted.
        AwsError: the catalog or S3 refused.
    """
    limit = assume_utc(older_than) if older_than else datetime.now(timezone.utc) - KEPT_FOR
    return expire_chosen(
        handle, lambda table: _chosen(table, limit, keep_last, keep_ids), dry_run=dry_run
    )


def expire_chosen(
    handle: TableHandle,
    choose: Callable[[Any], tuple[list[Any], dict[int, str]]],
    *,
    dry_run: bool = False,
) -> ExpireReport:
    """Expire what a function chooses of a table as it is; see `expire`.

    Args:
        handle: the table.
        choose: is given the table; returns pyiceberg's snapshots to expire, the oldest first, and
            why others are kept, by id. Snapshots with a tag or a branch are kept.
        dry_run: only say what would be expired.

    Raises: as `expire`.
    """
    failure: Exception | None = None
    seen: dict[int, Any] = {}
    unanswered = 0
    for attempt in range(ATTEMPTS):
        table = handle.load()
        _check_collected(handle, table)
        expired, kept_by = choose(table)
        report = ExpireReport(
            handle.name,
            tuple(found.snapshot_id for found in expired),
            len(table.snapshots()) - len(expired),
            kept_by,
        )
        with catalog_errors(handle.address, handle.name):
            if not expired and not seen:
                return report
            # Before the commit: where something cannot be read, nothing is changed.
            found = _left(table, expired)
            if dry_run:
                return _counted(report, found)
        seen |= {found.snapshot_id: found for found in expired}
        failure = _remove(handle, table, report.expired)
        now = handle.load()
        there = {found.snapshot_id for found in now.snapshots()}
        gone = [found for number, found in seen.items() if number not in there]
        if failure is None or (gone and len(gone) == len(seen)):
            return _delete(handle, table, now, gone, report)
        if isinstance(failure, FeastDynamoError):
            unanswered += 1
            if isinstance(failure, REFUSED) or unanswered == UNANSWERED:
                raise failure
        pause(attempt)
    raise NotCommittedError(
        f"The Iceberg table {handle.name}: other writers came first {ATTEMPTS} times, so no "
        f"snapshot was expired: {failure}. Run it again when fewer are at work."
    ) from failure


def _check_collected(handle: TableHandle, table: Any) -> None:
    if table.properties.get("gc.enabled", "true").lower() == "false":
        raise OfflineStoreError(
            f"The Iceberg table {handle.name} has the property `gc.enabled` = false: its files "
            "may belong to others, and none is deleted. Set it to true, if they do not."
        )


def _chosen(
    table: Any, limit: datetime, keep_last: int, keep_ids: Collection[int]
) -> tuple[list[Any], dict[int, str]]:
    """Snapshots to expire, the oldest first, and why others of their age stay."""
    limit_ms = int(limit.timestamp() * 1000)
    ordered = sorted(
        table.snapshots(), key=lambda found: (found.timestamp_ms, found.sequence_number)
    )
    kept: dict[int, str] = {}
    for name, ref in sorted(table.refs().items()):
        kind = ref.snapshot_ref_type.value
        kept.setdefault(ref.snapshot_id, "current" if name == "main" else f"{kind} `{name}`")
    for number in keep_ids:
        kept.setdefault(number, "named to be kept")
    for found in ordered[-keep_last:] if keep_last > 0 else ():
        kept.setdefault(found.snapshot_id, f"one of the last {keep_last:,}")
    old = [found for found in ordered if found.timestamp_ms < limit_ms]
    expired = [found for found in old if found.snapshot_id not in kept]
    return expired, {
        found.snapshot_id: kept[found.snapshot_id] for found in old if found.snapshot_id in kept
    }


def _left(table: Any, expired: Collection[Any]) -> Leftovers:
    gone = {found.snapshot_id for found in expired}
    living = [found for found in table.snapshots() if found.snapshot_id not in gone]
    return leftovers(table, list(expired), living)


def _remove(handle: TableHandle, table: Any, expired: tuple[int, ...]) -> Exception | None:
    """Commit; the error, where it may not be committed."""
    from pyiceberg.exceptions import CommitFailedException

    if not expired:
        return None
    try:
        with catalog_errors(handle.address, handle.name):
            try:
                remove_snapshots(table, expired)
            except (CommitFailedException, ValueError) as error:
                return error  # another writer came first, or expired one of them
    except FeastDynamoError as error:
        return error  # whether it is committed, the table says
    return None


def _delete(
    handle: TableHandle, table: Any, now: Any, gone: list[Any], report: ExpireReport
) -> ExpireReport:
    with catalog_errors(handle.address, handle.name):
        found = leftovers(now, gone, now.snapshots())
    statistics = statistics_of(table) - statistics_of(now)
    found = replace(found, metadata=found.metadata | statistics)
    logger.info("%s: %d snapshots are expired", handle.name, len(gone))
    delete_files(found.uris(), file_settings(now, handle.settings))
    return _counted(replace(report, expired=tuple(each.snapshot_id for each in gone)), found)


def _counted(report: ExpireReport, found: Leftovers) -> ExpireReport:
    return replace(
        report,
        data_files=len(found.data),
        delete_files=len(found.deletes),
        metadata_files=len(found.metadata),
    )
