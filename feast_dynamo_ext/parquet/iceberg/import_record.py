"""Which files were imported into a table: it is known without their names, and outlives expiry.

A file beside the table has digests alone, as paths may name people who are erased later::

    digest of a path -> id of the import -> digest of size and version

An import counts as undone only where the table is known to be without it: a rollback went back to
a version before it. That its snapshot is expired says nothing: its rows are in later ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from feast_dynamo_ext.errors import FeastDynamoError, SourceReadError
from feast_dynamo_ext.parquet.iceberg.commits import new_commit_id
from feast_dynamo_ext.parquet.iceberg.snapshots import find, rollback, snapshots_of
from feast_dynamo_ext.parquet.iceberg.view_table import IMPORTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
    from feast_dynamo_ext.parquet.iceberg.snapshots import SnapshotInfo
    from feast_dynamo_ext.storage import FileState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportRecord:
    """What earlier imports took.

    Attributes:
        files: digest of each file's path -> id of the import -> digest of size and version.
        undone: ids of the imports that a rollback took out of the table again.
    """

    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    undone: frozenset[str] = frozenset()

    @classmethod
    def from_table(cls, table: Any) -> ImportRecord:
        """The record of a table as it is now, whoever rolled it back.

        Raises:
            SourceReadError: it is gone.
        """
        try:
            return cls._stored(table)._as_of(table)
        except FileNotFoundError as error:
            raise SourceReadError(
                f"The Iceberg table {'.'.join(table.name())}: the list of the files that were "
                f"imported into it, {table.properties[IMPORTED]}, is gone, as after a removal of "
                "orphan files. So nobody knows which files are in the table. Append what is new "
                f"with `write_to_offline_store`; or take the property `{IMPORTED}` from the "
                "table: then all files count as new."
            ) from error

    @classmethod
    def _stored(cls, table: Any) -> ImportRecord:
        at = table.properties.get(IMPORTED)
        if at is None:
            return cls()
        with table.io.new_input(at).open() as file:
            said = json.loads(file.read())
        return cls(said["files"], frozenset(said["undone"]))

    def _as_of(self, table: Any) -> ImportRecord:
        """With what the snapshots that are left say; where they say nothing, it stays."""
        known = [info for info in snapshots_of(table) if info.commit_id in self._imports]
        there = {info.commit_id for info in known if info.is_in_line}
        gone = {info.commit_id for info in known if info.is_in_line is False}
        return replace(self, undone=(self.undone | gone) - there)

    @property
    def _imports(self) -> set[str]:
        return {commit_id for imports in self.files.values() for commit_id in imports}

    @property
    def count(self) -> int:
        """How many files are in the table."""
        return sum(self.version(digest) is not None for digest in self.files)

    def version(self, digest: str) -> str | None:
        """The version of a file that is in the table, by the digest of its path."""
        imports = self.files.get(digest, {})
        kept = [version for number, version in imports.items() if number not in self.undone]
        return kept[-1] if kept else None

    def with_import(self, table: Any, files: Iterable[FileState], commit_id: str) -> ImportRecord:
        """With a further import."""
        merged = {digest: dict(imports) for digest, imports in self.files.items()}
        for digest, version in digests(table, files).values():
            merged.setdefault(digest, {})[commit_id] = version
        return replace(self, files=merged)

    def write(self, table: Any) -> str:
        """Keep it in a file of its own; its URI.

        It is beside the table's folder, in which engines delete what no version lists. Where a
        catalog gives a table a bucket, or rights to its folder alone, it is inside.
        """
        from feast_dynamo_ext.parquet.iceberg.producers import is_checked_here

        name, location = f"imported-files-{uuid.uuid4().hex}.json", table.location().rstrip("/")
        uri: str = table.location_provider().new_metadata_location(name)
        if is_checked_here(table) and urlsplit(location).path.strip("/"):
            uri = f"{location}.imports/{name}"
        said = {"files": self.files, "undone": sorted(self.undone)}
        with table.io.new_output(uri).create() as file:
            file.write(json.dumps(said).encode())
        return uri


def digests(table: Any, files: Iterable[FileState]) -> dict[str, tuple[str, str]]:
    """Of each file by its path: digest of the path, and of its version; of this table alone."""

    def digest(*parts: Any) -> str:
        said = json.dumps([str(table.metadata.table_uuid), *parts])
        return hashlib.sha256(said.encode()).hexdigest()

    return {
        file.path: (digest(file.path), digest(file.path, file.size, str(file.version[1])))
        for file in files
    }


def forget(table: Any, uri: str) -> None:
    """Delete a record that does not count; best effort, as whatever came before is done."""
    try:
        table.io.delete(uri)
    except (OSError, FeastDynamoError) as error:
        logger.warning("a list of imported files that does not count is left: %s", error)


def go_back(handle: TableHandle, to: int | str | datetime) -> SnapshotInfo:
    """`rollback`, after which the files that it took out of the table can be imported again.

    Raises: as `rollback`.
    """
    target = find(handle, handle.load(), to)
    done = rollback(handle, target.snapshot_id)
    _note(handle, came_from_it=bool(target.is_in_line))
    return done


def _note(handle: TableHandle, *, came_from_it: bool) -> None:
    """Record what is undone while the snapshots that say it are there."""
    outdated: list[str] = []

    def work(table: Any) -> None:
        try:
            before, named = ImportRecord._stored(table), table.properties.get(IMPORTED)
        except FileNotFoundError:
            return  # the next import says so
        # Nobody knows of a version beside the line whether it has what was undone since.
        record = before if came_from_it else replace(before, undone=frozenset())
        record = record._as_of(table)
        if named is None or record == before:
            return
        uri = record.write(table)
        try:
            with table.transaction() as transaction:
                transaction.set_properties({IMPORTED: uri})
        except BaseException:
            forget(table, uri)
            raise
        outdated.append(named)

    table = handle.attempt(work, new_commit_id())
    for uri in outdated:
        forget(table, uri)
