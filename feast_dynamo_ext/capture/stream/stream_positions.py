"""How far a table's stream is in its history: kept in the history table, changed with the rows.

Each shard has a position of its own, which the commit that brings its rows takes on. So a record
is in the history once, whoever read it: a writer that did not see the newest position commits
nothing. What the stream brought is said by spans of time, in which every change is there::

    exported until |                        | <- closed by the next sync
                   v                        v
    --- exports ---|-------- span --------| gap |-------- span, open --------> floor of the shards
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

STREAM = "stream"
"""Under which a history table keeps which stream it follows, and since when."""

SHARD = "shard/"
"""Under which, followed by its id, a history table keeps how far a shard is."""

RETENTION = dt.timedelta(hours=24)
"""For which DynamoDB keeps the records of a stream."""

KEPT_SPANS = 50


@dataclass(frozen=True)
class ShardPosition:
    """How far a shard is in the history.

    Attributes:
        at: of its changes, all that were written before are in the history.
        sequence: number of its last record that is there; None for none.
        is_done: whether it is closed, and all of it is there.
    """

    at: dt.datetime
    sequence: str | None = None
    is_done: bool = False

    def read_to(self, at: dt.datetime, sequence: str | None) -> ShardPosition:
        """Further, by what was read."""
        return replace(self, at=max(self.at, at), sequence=sequence or self.sequence)

    def to_json(self) -> dict[str, Any]:
        """As the ledger of a history table keeps it."""
        said: dict[str, Any] = {"at": int(self.at.timestamp())}
        if self.sequence is not None:
            said["seq"] = self.sequence
        return said | ({"done": True} if self.is_done else {})

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ShardPosition:
        """What `to_json` made."""
        return cls(second(found["at"]), found.get("seq"), found.get("done", False))


@dataclass(frozen=True)
class FollowedStream:
    """Which stream a history follows, and the spans of time that it brought.

    Attributes:
        arn: of the stream; one that is switched on anew has another.
        spans: (from, until), in order: all that was written in one is in the history. The last
            goes on: it is until where the shards are, see `StreamPositions.floor`.
        table: which table the stream is of, see `table_identity`; empty where that was not noted.
    """

    arn: str
    spans: tuple[tuple[dt.datetime, dt.datetime | None], ...]
    table: str = ""

    def begun_anew(
        self, until: dt.datetime, since: dt.datetime, arn: str, table: str = ""
    ) -> FollowedStream:
        """With a gap from `until` to `since`, in which nothing is known to be there."""
        closed = [
            (start, until if end is None else min(end, until))
            for start, end in self.spans
            if start < until
        ]
        return FollowedStream(arn, (*closed[-KEPT_SPANS:], (since, None)), table or self.table)

    def to_json(self) -> dict[str, Any]:
        """As the ledger of a history table keeps it."""
        spans = [
            [int(start.timestamp()), None if end is None else int(end.timestamp())]
            for start, end in self.spans
        ]
        said: dict[str, Any] = {"arn": self.arn, "spans": spans}
        return said | ({"table": self.table} if self.table else {})

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> FollowedStream:
        """What `to_json` made."""
        spans = tuple(
            (second(start), None if end is None else second(end)) for start, end in found["spans"]
        )
        return cls(found["arn"], spans, found.get("table", ""))


@dataclass(frozen=True)
class StreamPositions:
    """All that a history says of its stream.

    Attributes:
        stream: which; None where none was followed yet.
        shards: how far each is, by its id.
    """

    stream: FollowedStream | None
    shards: Mapping[str, ShardPosition]

    @classmethod
    def from_states(cls, states: Mapping[str, Any]) -> StreamPositions:
        """What the ledger of a history table says."""
        said = states.get(STREAM)
        shards = {
            source.removeprefix(SHARD): ShardPosition.from_json(state)
            for source, state in states.items()
            if source.startswith(SHARD)
        }
        return cls(None if said is None else FollowedStream.from_json(said), shards)

    @property
    def floor(self) -> dt.datetime | None:
        """All that was written before, since the stream is followed, is in the history.

        None where no stream is.
        """
        if self.stream is None or not self.shards:
            return None
        return min(position.at for position in self.shards.values())

    def captured_until(self, until: dt.datetime | None) -> dt.datetime | None:
        """Until when everything is in the history, by exports and by the stream together.

        Args:
            until: by exports; None before the first, then the stream alone proves nothing: what
                was there before is missing.
        """
        if until is None or self.stream is None:
            return until
        for start, end in self.stream.spans:
            last = self.floor if end is None else end
            if start <= until and last is not None:
                until = max(until, last)
        return until

    def gap(self, until: dt.datetime | None) -> tuple[dt.datetime, dt.datetime] | None:
        """The time before the open span in which changes are missing; None where none are."""
        found = self.captured_until(until)
        if found is None or self.stream is None:
            return None
        start, _ = self.stream.spans[-1]
        return None if found >= start else (found, start)


def second(seconds: float) -> dt.datetime:
    """A moment, of seconds since 1970."""
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc)


def shard_source(shard: str) -> str:
    """Under which a history table keeps how far a shard is."""
    return f"{SHARD}{shard}"
