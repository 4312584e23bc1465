"""What a worker reads of shards becomes history: a commit now and then, of all its shards.

The rows and the new position of each shard are one commit, made only where all positions are still
those that the worker went on from::

    readers -> parts, up to so many bytes -> commit: rows + positions of all shards
                  ^ a reader waits here        |  refused: another has taken a shard on;
                    while there are more       v  its parts are dropped, the rest is committed

Changes that are in the history by another road, as Lambda's, are left out by their ids.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.capture.history import Look, without
from feast_dynamo_ext.capture.stream.stream_positions import (
    STREAM,
    FollowedStream,
    ShardPosition,
    StreamPositions,
    second,
    shard_source,
)
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE
from feast_dynamo_ext.errors import CaptureError, LeaseLostError, NotCommittedError
from feast_dynamo_ext.materialize.lease import random_text
from feast_dynamo_ext.parquet.iceberg.ledger import Progress, has_commit

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping, Sequence

    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.capture.stream.stream_shards import ShardTree
    from feast_dynamo_ext.capture.values.change_rows import Converted

logger = logging.getLogger(__name__)

ATTEMPTS = 20
"""Where other workers of the source come first; each commit of theirs is of other shards."""


@dataclass(frozen=True)
class Part:
    """What one page of a shard became.

    Attributes:
        shard: its id.
        made: rows, and what did not fit.
    """

    shard: str
    made: Converted

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return int(self.made.rows.nbytes + self.made.quarantine.nbytes)


@dataclass
class _Shard:
    """How far a shard is that this worker reads.

    Attributes:
        there: its position in the history; None for none yet.
        read: up to where it is read.
    """

    there: ShardPosition | None
    read: ShardPosition


@dataclass
class Committed:
    """Figures of all commits of a worker.

    Attributes:
        commits: how many.
        records: that were read for them.
        rows: of the history that were new.
        quarantined: records that did not fit, and were new.
    """

    commits: int = 0
    records: int = 0
    rows: int = 0
    quarantined: int = 0


@dataclass
class StreamCommits:
    """What is read of a stream and not yet in the history. Safe between threads.

    Attributes:
        history: of the source.
        most_bytes: of parts; who adds more waits for a commit.
        committed: figures.
        largest: bytes that were held at most, those of a commit that is under way included.
    """

    history: CapturedHistory
    most_bytes: int
    committed: Committed = field(default_factory=Committed)
    largest: int = 0
    _shards: dict[str, _Shard] = field(default_factory=dict)
    _parts: list[Part] = field(default_factory=list)
    _pending: list[Part] = field(default_factory=list)
    _pending_to: dict[str, ShardPosition] = field(default_factory=dict)
    _is_full: bool = False
    _since_s: float | None = None
    _committed_s: float = field(default_factory=time.monotonic)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    _tried: tuple[str, int, int] = ("", 0, 0)
    _me: str = field(default_factory=random_text)

    # Reading

    def begin(self, shard: str, tree: ShardTree) -> ShardPosition | None:
        """Read a shard from now on; the position from which, None where it may not be read.

        Args:
            shard: its id; this worker has its lease.
            tree: the shards as they are listed.

        Raises:
            OfflineStoreError: the history cannot be read.
        """
        with self._one_at_a_time:  # a commit under way may be of this shard
            positions = positions_of(self.history)
            if shard not in tree.ready(positions.shards):
                return None
            there = positions.shards.get(shard)
            start = there
            if start is None:
                parent = positions.shards.get(tree.shards[shard].parent or "")
                before = positions.floor if parent is None else parent.at
                start = ShardPosition(before or second(0))
            with self._changed:
                self._shards[shard] = _Shard(there, start)
            return start

    def forget(self, shard: str) -> None:
        """A shard is read no more: what is not committed of it, the next one reads."""
        with self._changed:
            self._shards.pop(shard, None)
            self._parts = [part for part in self._parts if part.shard != shard]
            self._changed.notify_all()

    def add(self, part: Part, read: ShardPosition, *, while_: Callable[[], bool]) -> bool:
        """Hold a part until the next commit; wait while there are too many.

        Args:
            part: of a shard that was begun.
            read: up to where its shard is read with it.
            while_: whether to go on waiting.

        Returns:
            Whether it is held: not where the wait was given up, or the shard was forgotten.
        """
        with self._changed:
            while self._bytes and self._bytes + part.size > self.most_bytes:
                if not while_():
                    return False
                self._is_full = True
                self._changed.notify_all()
                self._changed.wait(0.1)
            if part.shard not in self._shards:
                return False
            self._parts.append(part)
            self._shards[part.shard].read = read
            self.largest = max(self.largest, self._bytes + _size(self._pending))
            if self._since_s is None:
                self._since_s = time.monotonic()
            self._changed.notify_all()
        return True

    def reach(self, shard: str, read: ShardPosition) -> None:
        """A shard is read further, without records."""
        with self._changed:
            if shard in self._shards:
                self._shards[shard].read = read

    def position(self, shard: str) -> ShardPosition:
        """Up to where a shard is read.

        Raises:
            LeaseLostError: it was forgotten.
        """
        with self._changed:
            if shard not in self._shards:
                raise LeaseLostError(
                    f"Source `{self.history.source.name}`: shard {shard} is another worker's."
                )
            return self._shards[shard].read

    @property
    def _bytes(self) -> int:
        return _size(self._parts)

    # Committing

    def wait_until_due(self, rows_s: float, idle_s: float, is_asked: threading.Event) -> bool:
        """Wait until a commit should be made, a second at most; whether one should.

        Args:
            rows_s: seconds after the first part came.
            idle_s: seconds after the last commit, where there are only positions.
            is_asked: set by who wants one at once, and then calls `wake`.
        """
        with self._changed:
            left_s = self._due_in(rows_s, idle_s)
            if left_s > 0 and not is_asked.is_set():
                self._changed.wait(min(left_s, 1.0))
            return is_asked.is_set() or self._due_in(rows_s, idle_s) <= 0

    def _due_in(self, rows_s: float, idle_s: float) -> float:
        if self._is_full or self._bytes >= self.most_bytes:
            return 0.0
        now_s, left_s = time.monotonic(), 1.0
        if self._since_s is not None:
            left_s = min(left_s, self._since_s + rows_s - now_s)
        if any(each.there != each.read for each in self._shards.values()):
            left_s = min(left_s, self._committed_s + idle_s - now_s)
        return left_s

    def wake(self) -> None:
        """Let who waits look again."""
        with self._changed:
            self._changed.notify_all()

    def commit(self, tree: ShardTree) -> list[str]:
        """Make all that was read count.

        Where it fails, the next call tries the same again first, whatever was read meanwhile.

        Args:
            tree: the shards, by which positions are known that say nothing any more.

        Returns:
            Shards that another worker has taken on: nothing more is committed of them here.

        Raises:
            FeastDynamoError: it may be in the history; the next call finds out.
        """
        with self._one_at_a_time:
            lost = []
            if self._pending_to:
                lost += self._commit_pending(tree)
            with self._changed:
                self._pending, self._parts = self._parts, []
                self._pending_to = {
                    shard: each.read
                    for shard, each in self._shards.items()
                    if each.there != each.read
                }
                self._since_s, self._is_full = None, False
                self._changed.notify_all()
            if self._pending_to:
                lost += self._commit_pending(tree)
            self._committed_s = time.monotonic()
            return lost

    def _commit_pending(self, tree: ShardTree) -> list[str]:
        lost: list[str] = []
        for attempt in range(ATTEMPTS):
            states = self.history.handle.states()
            lost += self._dropped(states)
            if not self._pending_to:
                break
            progress = self._progress(states, tree)
            if all(states.get(each.source) == each.after for each in progress):
                # The answer to it was lost, or another worker had read as much.
                commit_id, rows, misfits = self._tried
                if commit_id and has_commit(self.history.handle.load(), commit_id, is_kept=True):
                    self._count(rows, misfits)
                break
            try:
                self._append(progress)
            except NotCommittedError:
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            self._count(*self._tried[1:])
            break
        self._tried = ("", 0, 0)
        with self._changed:
            for shard, position in self._pending_to.items():
                if shard in self._shards:
                    self._shards[shard].there = position
            self._pending, self._pending_to = [], {}
            self._changed.notify_all()
        return lost

    def _dropped(self, states: Mapping[str, Any]) -> list[str]:
        """Shards whose position is neither the one from which they were read nor the new one."""
        lost = []
        for shard, position in list(self._pending_to.items()):
            with self._changed:
                known = self._shards.get(shard)
                there = None if known is None or known.there is None else known.there.to_json()
            found = states.get(shard_source(shard))
            if known is None or found not in (there, position.to_json()):
                lost.append(shard)
                del self._pending_to[shard]
                self.forget(shard)
        if lost:
            self._pending = [part for part in self._pending if part.shard not in lost]
            logger.warning(
                "source `%s`: another worker has taken on shards %s; it goes on from there",
                self.history.source.name,
                ", ".join(lost),
            )
        return lost

    def _progress(self, states: Mapping[str, Any], tree: ShardTree) -> list[Progress]:
        found = [
            Progress(shard_source(shard), states.get(shard_source(shard)), position.to_json())
            for shard, position in sorted(self._pending_to.items())
        ]
        after = {**StreamPositions.from_states(states).shards, **self._pending_to}
        for shard in tree.superfluous(after):
            source = shard_source(shard)
            found = [each for each in found if each.source != source]
            found.append(Progress(source, states.get(source), None))
        return found

    def _append(self, progress: Sequence[Progress]) -> None:
        """Commit, and keep by which id, with how many new rows and quarantined records."""
        parts = [part.made for part in self._pending]
        # Of two workers that read the same, one alone has committed it.
        said = [self._me, *([each.source, each.before, each.after] for each in progress)]
        commit_id = f"stream/{hashlib.sha256(json.dumps(said).encode()).hexdigest()}"
        if not parts:
            self._tried = commit_id, 0, 0
            self.history.handle.append(iter(()), commit_id, *progress)
            return
        rows = pa.Table.from_batches([part.rows for part in parts])
        misfits = pa.Table.from_batches([part.quarantine for part in parts], QUARANTINE)
        look = Look.from_changes(rows, misfits)
        if look is None:
            raise CaptureError(
                f"Source `{self.history.source.name}`: records of its stream have no id. Nothing "
                "was committed."
            )
        known = self.history.known(look)
        new, bad = (without(known.ids, part) for part in (rows, misfits))
        new, bad, _ = known.without_erased(new, bad)
        self.history.add_misfits(bad, known, look)
        self._tried = commit_id, new.num_rows, bad.num_rows
        self.history.handle.append(new, commit_id, *progress, check=known.check_of(look))

    def _count(self, rows: int, misfits: int) -> None:
        done = self.committed
        self.committed = Committed(
            done.commits + 1,
            done.records + sum(part.made.records for part in self._pending),
            done.rows + rows,
            done.quarantined + misfits,
        )


def _size(parts: Sequence[Part]) -> int:
    return sum(part.size for part in parts)


# Which stream


def begin_stream(
    history: CapturedHistory,
    arn: str,
    shards: Sequence[str],
    since: dt.datetime,
    table: str = "",
) -> StreamPositions:
    """Note the positions from which a history follows a stream, before anything is read of it.

    Args:
        history: of the source.
        arn: of the stream.
        shards: that are listed and begin it: all that is still there of them is read.
        since: all that was written from then on is in them.
        table: which table it is of, see `table_identity`.

    Returns:
        What the history says then: another worker may have come first.
    """
    start = ShardPosition(since)
    progress = [
        Progress(STREAM, None, FollowedStream(arn, ((since, None),), table).to_json()),
        *(Progress(shard_source(shard), None, start.to_json()) for shard in shards),
    ]
    _noted(history, progress)
    return positions_of(history)


def begin_anew(
    history: CapturedHistory,
    positions: StreamPositions,
    arn: str,
    at_start: Sequence[str],
    gone: Sequence[str],
    since: dt.datetime,
    table: str = "",
) -> tuple[StreamPositions, tuple[dt.datetime, dt.datetime]]:
    """Go on where changes are missing, and note which time they are of.

    Args:
        history: of the source.
        positions: what it says now.
        arn: of the stream that is followed from now on.
        at_start: shards that are read from the first record that is still there.
        gone: shards of which nothing is left.
        since: all that was written from then on is in the shards that are left.
        table: which table the stream is of, where it may be another one than before.

    Returns:
        What the history says then, and from when to when nothing is known to be there.
    """
    stream = positions.stream
    if stream is None:
        raise CaptureError("No stream is followed yet.")
    known = positions.shards
    behind = [known[shard].at for shard in (*at_start, *gone) if shard in known]
    until = min(behind, default=stream.spans[-1][0])
    after = stream.begun_anew(until, since, arn, table)
    start = ShardPosition(since).to_json()

    def there(shard: str) -> Any:
        return known[shard].to_json() if shard in known else None

    progress = [
        Progress(STREAM, stream.to_json(), after.to_json()),
        *(Progress(shard_source(shard), there(shard), start) for shard in at_start),
        *(Progress(shard_source(shard), there(shard), None) for shard in gone),
    ]
    _noted(history, progress)
    return positions_of(history), (until, since)


def _noted(history: CapturedHistory, progress: Sequence[Progress]) -> None:
    said = json.dumps([[each.source, each.before, each.after] for each in progress])
    commit_id = f"stream/{hashlib.sha256(said.encode()).hexdigest()}"
    try:
        history.handle.append(iter(()), commit_id, *progress)
    except NotCommittedError:
        logger.info("source `%s`: another worker came first", history.source.name)


def positions_of(history: CapturedHistory) -> StreamPositions:
    """What a history says of its stream.

    Raises:
        SourceNotFoundError: there is no history table.
    """
    return StreamPositions.from_states(history.handle.states())
