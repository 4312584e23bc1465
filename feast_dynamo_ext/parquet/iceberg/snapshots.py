"""The versions of an Iceberg table: listed, named by tags, and gone back to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError, NotCommittedError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.parquet.iceberg.commits import OPERATION, new_commit_id
from feast_dynamo_ext.parquet.iceberg.ledger import COMMIT_ID, LEDGER, Ledger, line_of
from feast_dynamo_ext.timestamps import assume_utc

if TYPE_CHECKING:
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

MAIN = "main"
"""The branch whose snapshot is the current one."""


@dataclass(frozen=True)
class SnapshotInfo:
    """One version of a table.

    Attributes:
        snapshot_id: Iceberg's.
        time: when it was committed, UTC.
        operation: what the commit was: ``append``, ``overwrite``, ``delete`` or ``replace``
            (the same rows in other files); of commits by this package, what they were for:
            ``optimize``, ``erase``.
        rows_added: by the commit, those in rewritten files included.
        rows_removed: the same.
        rows: that it has; None where its writer does not say.
        files: data files that it has; None where its writer does not say.
        tags: names of the tags that are at it.
        branches: names of the branches whose newest it is.
        is_current: whether reads see it.
        is_in_line: whether the current one came from it; None where that is not known, as a
            version between is expired.
        commit_id: id that this package gave the commit; empty where another writer made it.
    """

    snapshot_id: int
    time: datetime
    operation: str
    rows_added: int
    rows_removed: int
    rows: int | None
    files: int | None
    tags: tuple[str, ...]
    branches: tuple[str, ...]
    is_current: bool
    is_in_line: bool | None
    commit_id: str


def history(handle: TableHandle) -> list[SnapshotInfo]:
    """All snapshots of a table, the newest first.

    Raises: as `TableHandle.load`.
    """
    return snapshots_of(handle.load())


def snapshots_of(table: Any) -> list[SnapshotInfo]:
    """All snapshots of a loaded table, the newest first."""
    tags: dict[int, list[str]] = {}
    branches: dict[int, list[str]] = {}
    for name, ref in sorted(table.refs().items()):
        named = tags if ref.snapshot_ref_type.value == "tag" else branches
        named.setdefault(ref.snapshot_id, []).append(name)
    in_line, current = line_of(table), table.current_snapshot()
    found = [
        _info(
            snapshot,
            tuple(tags.get(snapshot.snapshot_id, ())),
            tuple(branches.get(snapshot.snapshot_id, ())),
            current is not None and snapshot.snapshot_id == current.snapshot_id,
            in_line[snapshot.snapshot_id],
        )
        for snapshot in table.snapshots()
    ]
    order = {snapshot.snapshot_id: snapshot.sequence_number for snapshot in table.snapshots()}
    return sorted(found, key=lambda info: (info.time, order[info.snapshot_id]), reverse=True)


def _info(
    snapshot: Any,
    tags: tuple[str, ...],
    branches: tuple[str, ...],
    is_current: bool,
    is_in_line: bool | None,
) -> SnapshotInfo:
    summary = snapshot.summary
    said = dict(summary.additional_properties) if summary else {}
    rows, files = said.get("total-records"), said.get("total-data-files")
    return SnapshotInfo(
        snapshot.snapshot_id,
        datetime.fromtimestamp(snapshot.timestamp_ms / 1000, timezone.utc),
        said.get(OPERATION) or (summary.operation.value if summary else "unknown"),
        int(said.get("added-records", 0)),
        int(said.get("deleted-records", 0)),
        None if rows is None else int(rows),
        None if files is None else int(files),
        tags,
        branches,
        is_current,
        is_in_line,
        said.get(COMMIT_ID, ""),
    )


def rollback(handle: TableHandle, to: int | str | datetime) -> SnapshotInfo:
    """Make an earlier version the current one; later ones stay in the history until they expire.

    Args:
        handle: the table.
        to: id of a snapshot, name of a tag, or a time: then the last version before it.

    Returns:
        The version, which is current now.

    Raises:
        ConfigError: there is none such, or the current one did not come from it.
        SourceReadError: which commits the table had by then is not known.
        NotCommittedError: another writer changed the table meanwhile; nothing was changed.
    """
    from pyiceberg.exceptions import CommitFailedException

    table = handle.load()
    found = find(handle, table, to)
    _check_was_current(handle, table, found)
    if found.is_current:
        return found
    target = table.snapshot_by_id(found.snapshot_id)
    ledger = Ledger.at(table, target).to_text()
    with catalog_errors(handle.address, handle.name):
        try:
            _set_current(table, found.snapshot_id, ledger)
        except CommitFailedException as error:
            raise NotCommittedError(
                f"The Iceberg table {handle.name} was changed by another writer meanwhile, whose "
                "change a rollback would take away. Nothing was done; look at the history, and "
                "run it again."
            ) from error
    return find(handle, handle.load(), found.snapshot_id)


def _set_current(table: Any, snapshot_id: int, ledger: str) -> None:
    """One commit: which commits a table has is what it was at the snapshot."""
    from pyiceberg.table.update.snapshot import ManageSnapshots

    with table.transaction() as transaction:
        if ledger:
            transaction.set_properties({LEDGER: ledger})
        elif LEDGER in table.properties:
            transaction.remove_properties(LEDGER)
        # Not `rollback_to_snapshot`, which needs every version between.
        ManageSnapshots(transaction).set_current_snapshot(snapshot_id).commit()


def _check_was_current(handle: TableHandle, table: Any, found: SnapshotInfo) -> None:
    """Refuse to go back to a version that the current one may not have come from.

    Raises:
        ConfigError: says why.
    """
    if found.is_in_line is False:
        raise ConfigError(
            f"The Iceberg table {handle.name}: the current version did not come from snapshot "
            f"{found.snapshot_id}, so it cannot be gone back to. `feast-dynamo table history` "
            "shows those that it came from."
        )
    if found.is_in_line is None and not (found.tags or _was_current(table, found.snapshot_id)):
        raise ConfigError(
            f"The Iceberg table {handle.name}: versions between snapshot {found.snapshot_id} and "
            "the current one are expired, it has no tag, and the table's log does not list it as "
            "one that was current. To go back to it all the same, tag it first: `feast-dynamo "
            f"table tag {handle.name} NAME --snapshot {found.snapshot_id}`."
        )


def _was_current(table: Any, snapshot_id: int) -> bool:
    return any(entry.snapshot_id == snapshot_id for entry in table.metadata.snapshot_log)


def tag(
    handle: TableHandle, name: str, snapshot: int | str | datetime | None = None
) -> SnapshotInfo:
    """Name a version, which then stays until the tag is removed.

    Args:
        handle: the table.
        name: of the tag.
        snapshot: id, another tag, or a time; default: the current version.

    Raises:
        ConfigError: there is no such version, or another one has the name.
        NotCommittedError: others kept coming first.
    """
    if not name or name == MAIN:
        raise ConfigError(f"A tag of a table cannot be named `{name}`. Choose another name.")
    table = handle.load()
    if snapshot is None and table.current_snapshot() is None:
        raise ConfigError(f"The Iceberg table {handle.name} is empty; there is nothing to tag.")
    number = table.current_snapshot().snapshot_id if snapshot is None else None
    number = number or find(handle, table, snapshot).snapshot_id

    def work(now: Any) -> None:
        there = now.refs().get(name)
        if there is not None and there.snapshot_id == number:
            return
        if there is not None:
            raise ConfigError(
                f"The Iceberg table {handle.name} has a {there.snapshot_ref_type.value} `{name}` "
                f"already, at snapshot {there.snapshot_id}. Remove it first, or choose another "
                "name."
            )
        find(handle, now, number)  # others may have expired it
        now.manage_snapshots().create_tag(number, name).commit()

    handle.attempt(work, new_commit_id())
    return find(handle, handle.load(), number)


def untag(handle: TableHandle, name: str) -> None:
    """Remove a tag; the version is kept no longer than others of its age.

    Raises:
        ConfigError: there is no such tag.
        NotCommittedError: others kept coming first.
    """
    table = handle.load()
    _check_tag(handle, table, name)

    def work(now: Any) -> None:
        if name in now.refs():
            _check_tag(handle, now, name)
            now.manage_snapshots().remove_tag(name).commit()

    handle.attempt(work, new_commit_id())


def _check_tag(handle: TableHandle, table: Any, name: str) -> None:
    found = table.refs().get(name)
    if found is None or found.snapshot_ref_type.value != "tag":
        tags = sorted(
            each for each, ref in table.refs().items() if ref.snapshot_ref_type.value == "tag"
        )
        raise ConfigError(
            f"The Iceberg table {handle.name} has no tag `{name}`. Its tags: "
            f"{', '.join(tags) or 'none'}."
        )


def find(handle: TableHandle, table: Any, wanted: int | str | datetime | None) -> SnapshotInfo:
    """The snapshot of an id or a tag, or the last one in line before a time.

    Raises:
        ConfigError: there is none.
    """
    known = snapshots_of(table)
    if isinstance(wanted, datetime):
        before = [
            info
            for info in known
            if info.time <= assume_utc(wanted)
            and (
                info.is_in_line
                or (info.is_in_line is None and _was_current(table, info.snapshot_id))
            )
        ]
    elif isinstance(wanted, str):
        before = [info for info in known if wanted in info.tags]
    else:
        before = [info for info in known if info.snapshot_id == wanted]
    if before:
        return before[0]
    oldest = f"the oldest is of {known[-1].time:%Y-%m-%d %H:%M:%S} UTC" if known else "it has none"
    raise ConfigError(
        f"The Iceberg table {handle.name} has no snapshot for `{wanted}`: it was expired, or "
        f"never was; {oldest}. `feast-dynamo table history` lists all."
    )
