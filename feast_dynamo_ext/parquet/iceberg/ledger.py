"""Which commits a table has, and how far its writers have come: known after snapshots expire.

A table's property has the ledger as it is now. Each commit of this package carries it in the
summary of its snapshot as well, so that a rollback finds it as it was then::

    property of the table      ids of the newest commits, states by source
    snapshot 7  (ours)         the same
    snapshot 6  (of another)   -
    snapshot 5  (ours)         as they were

It changes in the same commit as rows do, or with a rollback, and never alone: a commit is refused
where another one came first, and is then made from the ledger as it is by then. A commit may take
several sources on: all of them, or none where another writer has taken on one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError, NotCommittedError, SourceReadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


COMMIT_ID = "feast-dynamo.commit-id"
"""Name of a commit's id in the summary of its snapshot."""

LEDGER = "feast-dynamo.ledger"
"""Name of the ledger in a table's properties, and of its copy in the summary of a snapshot."""

KEPT_IDS = 256
"""Ids of the newest commits: each commit writes them anew, with those of a hundred snapshots."""

MOST_BYTES = 256 << 10
"""Of a ledger; Glue keeps no longer property than 512,000 bytes."""

VERSION = 1
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Progress:
    """How far a source's rows are in a table, which a commit takes on with its rows.

    Attributes:
        source: whose; each has a state of its own.
        before: its state when the rows were read, as `TableHandle.state` gives it; None where it
            had none. Where the table's is another one by now, nothing is committed.
        after: its state with the rows: what JSON holds. None removes it.
    """

    source: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Ledger:
    """What outlives snapshots.

    Attributes:
        ids: digests of the ids of the newest commits that gave one, the oldest first.
        states: by source, in JSON.
        commit: id of the commit that changed it last.
        first: Iceberg's sequence number of the table's first commit with a ledger.
        last: that of the commit that changed it last.
    """

    ids: tuple[bytes, ...] = ()
    states: Mapping[str, Any] = field(default_factory=dict)
    commit: str = ""
    first: int = 0
    last: int = 0

    @classmethod
    def from_table(cls, table: Any) -> Ledger:
        """The ledger of a table as it is now, whoever rolled it back.

        Raises:
            SourceReadError: it is not known, as another engine rolled the table back; or it was
                written by a later version of this package.
        """
        text = table.properties.get(LEDGER)
        if text is None:
            return cls()
        found = cls._parsed(table, text)
        in_line = line_of(table)
        of_commit = [
            in_line[snapshot.snapshot_id]
            for snapshot in table.snapshots()
            if (snapshot.summary or {}).get(COMMIT_ID) == found.commit
        ]
        if of_commit and not any(each is not False for each in of_commit):
            return cls.at(table, table.current_snapshot())
        return found

    @classmethod
    def at(cls, table: Any, snapshot: Any) -> Ledger:
        """The ledger as it was at a snapshot of a table.

        Raises:
            SourceReadError: it is not known: neither the snapshot has it, nor one that is left of
                those that it came from.
        """
        by_id = {each.snapshot_id: each for each in table.snapshots()}
        found = snapshot
        while found is not None:
            packed = (found.summary or {}).get(LEDGER)
            if packed is not None:
                return cls._unpacked(table, packed)
            found = by_id.get(found.parent_snapshot_id)
        text = table.properties.get(LEDGER)
        if text is None or snapshot is None:
            return cls()
        now = cls._parsed(table, text)
        number = snapshot.sequence_number or 0
        if number < now.first:
            return cls()
        if now.last <= number and line_of(table)[snapshot.snapshot_id] and now.last:
            return now
        raise SourceReadError(
            f"The Iceberg table {'.'.join(table.name())}: which commits it had at snapshot "
            f"{snapshot.snapshot_id} is not known: another engine made that version, and those "
            "before it are expired. Go back to one that this package committed: `feast-dynamo "
            "table history`."
        )

    @classmethod
    def _unpacked(cls, table: Any, packed: str) -> Ledger:
        try:
            text = zlib.decompress(base64.b64decode(packed)).decode()
        except (ValueError, zlib.error) as error:
            raise _unreadable(table, error) from error
        return cls._parsed(table, text)

    @classmethod
    def _parsed(cls, table: Any, text: str) -> Ledger:
        try:
            said = json.loads(text)
            version, ids = said["version"], base64.b64decode(said["ids"])
            parts = (ids[at : at + DIGEST_BYTES] for at in range(0, len(ids), DIGEST_BYTES))
            made = cls(tuple(parts), said["states"], said["commit"], said["first"], said["last"])
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(table, error) from error
        if version != VERSION:
            raise _unreadable(table, f"it is of version {version}, and {VERSION} is read here")
        return made

    def has(self, commit_id: str) -> bool:
        """Whether a commit is one of those that are known by their ids."""
        return _digest(commit_id) in self.ids

    def with_commit(self, table: Any, commit_id: str, progress: Sequence[Progress] = ()) -> Ledger:
        """With a further commit, of a table as it is now.

        Raises:
            NotCommittedError: a source's state is another one than the rows were read at.
            ConfigError: a new state is no JSON, or they are too large.
        """
        number = table.metadata.next_sequence_number()
        made = replace(
            self,
            ids=(*self.ids, _digest(commit_id))[-KEPT_IDS:],
            commit=commit_id,
            first=self.first or number,
            last=number,
        )
        if not progress:
            return made
        name = ".".join(table.name())
        others = [
            f"`{each.source}`"
            for each in progress
            if self.states.get(each.source) != _plain(each.source, each.before)
        ]
        if others:
            raise NotCommittedError(
                f"The Iceberg table {name}: another writer has taken {', '.join(others)} on since "
                "its state was read. Nothing was committed. Read the state again, and go on from "
                "there."
            )
        after = {each.source: _plain(each.source, each.after) for each in progress}
        if len(after) < len(progress):
            raise ConfigError(
                f"The Iceberg table {name}: a commit names one source twice among "
                f"{sorted(each.source for each in progress)}. Give each one state."
            )
        states = {**self.states, **after}
        made = replace(
            made, states={source: state for source, state in states.items() if state is not None}
        )
        size = len(made.to_text())
        if size > MOST_BYTES:
            listed = ", ".join(f"`{source}`" for source in sorted(after))
            raise ConfigError(
                f"The Iceberg table {name}: with the new state of {listed} its ledger "
                f"would have {size:,} bytes, and {MOST_BYTES:,} is the most. Keep the state in a "
                "file of its own, and name the file here."
            )
        return made

    def to_text(self) -> str:
        """As a property of a table has it; empty where there is nothing to say."""
        if not self.commit:
            return ""
        said = {
            "version": VERSION,
            "ids": base64.b64encode(b"".join(self.ids)).decode(),
            "states": self.states,
            "commit": self.commit,
            "first": self.first,
            "last": self.last,
        }
        return json.dumps(said, sort_keys=True)

    def to_summary(self) -> dict[str, str]:
        """Entries of a snapshot's summary."""
        text = self.to_text()
        return {LEDGER: base64.b64encode(zlib.compress(text.encode())).decode()} if text else {}


def carried(table: Any) -> dict[str, str]:
    """Entries of a summary for a commit that leaves the ledger as it is."""
    try:
        return Ledger.from_table(table).to_summary()
    except SourceReadError:
        return {}  # who needs it is told; others go on


def has_commit(table: Any, commit_id: str, *, is_kept: bool = False) -> bool:
    """Whether a commit is in a table as it is now.

    Args:
        table: pyiceberg's.
        commit_id: its id.
        is_kept: whether the id is kept in the ledger.

    Raises: as `Ledger.from_table`, where ids are kept.
    """
    of_commit = [
        snapshot.snapshot_id
        for snapshot in table.snapshots()
        if (snapshot.summary or {}).get(COMMIT_ID) == commit_id
    ]
    if of_commit:
        in_line = line_of(table)
        if any(in_line[number] is not False for number in of_commit):
            return True
    return is_kept and Ledger.from_table(table).has(commit_id)


def line_of(table: Any) -> dict[int, bool | None]:
    """Of each snapshot, whether the current one came from it; None where nobody knows."""
    by_id = {snapshot.snapshot_id: snapshot for snapshot in table.snapshots()}
    found: set[int] = set()
    oldest = snapshot = table.current_snapshot()
    while snapshot is not None:
        found.add(snapshot.snapshot_id)
        oldest, snapshot = snapshot, by_id.get(snapshot.parent_snapshot_id)

    def is_in_line(other: Any) -> bool | None:
        if other.snapshot_id in found:
            return True
        # What came before the oldest that is left: its parent may be expired, which is then
        # either named, or, after pyiceberg, not named any more.
        is_before = oldest is not None and other.sequence_number <= oldest.sequence_number
        return None if is_before else False

    return {number: is_in_line(snapshot) for number, snapshot in by_id.items()}


def _unreadable(table: Any, what: object) -> SourceReadError:
    return SourceReadError(
        f"The Iceberg table {'.'.join(table.name())}: its ledger of commits, `{LEDGER}`, cannot "
        f"be read: {what}. Upgrade feast-dynamo-ext where a later one writes to the table; else "
        "roll the table back to a version before, which has its own."
    )


def _digest(commit_id: str) -> bytes:
    return hashlib.blake2b(commit_id.encode(), digest_size=DIGEST_BYTES).digest()


def _plain(source: str, state: Any) -> Any:
    """A state as JSON gives it back.

    Raises:
        ConfigError: JSON does not hold it.
    """
    try:
        return json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The state of `{source}` is not what JSON holds: {error}.") from error
