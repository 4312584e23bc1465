"""Follows a table's stream: each change into the online store at once, and into history in turn.

A worker reads the shards whose leases it has, each in a thread of its own::

    shard -> page -> rows -> online store (at once, at least once)
                        +--> parts -> commit of history, every minute or 64 MB (once)

Where a worker ends anyhow, another goes on from the positions that are in the history. What it had
written online since then is written again, which changes nothing: the newest change wins.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.stream.shard_follower import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    Ended,
    ShardFollower,
)
from feast_dynamo_ext.capture.stream.stream_commits import (
    StreamCommits,
    begin_anew,
    begin_stream,
    positions_of,
)
from feast_dynamo_ext.capture.stream.stream_figures import StreamMeter, say_missing
from feast_dynamo_ext.capture.stream.stream_positions import RETENTION, second
from feast_dynamo_ext.capture.stream.stream_shards import (
    Listing,
    ShardReader,
    ShardTree,
    list_shards,
)
from feast_dynamo_ext.errors import (
    AwsUnavailableError,
    CaptureError,
    FeastDynamoError,
    NotCommittedError,
    ResourceNotFoundError,
    SourceReadError,
    ThrottledError,
)
from feast_dynamo_ext.figures import count

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping, Sequence

    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.capture.stream.stream_figures import StreamFigures
    from feast_dynamo_ext.capture.stream.stream_leases import ShardLeases
    from feast_dynamo_ext.capture.stream.stream_positions import StreamPositions
    from feast_dynamo_ext.capture.values.change_rows import Converted

logger = logging.getLogger(__name__)

PASSING_COMMIT = (ThrottledError, AwsUnavailableError, NotCommittedError, SourceReadError)
COMMIT_ATTEMPTS = 10


@dataclass(frozen=True)
class StreamSettings:
    """How a stream is followed. Times in seconds.

    Attributes:
        history_s: from one commit of the history to the next, while there are changes.
        history_bytes: of rows in memory; as many make a commit before its time. Twice as many are
            held at most: where commits are slower than the stream, reading waits.
        poll_s: between two reads of a shard that has nothing new.
        idle_s: between two commits that bring no rows, but say that there were none.
        list_s: between two looks at which shards there are.
        line_s: between two lines of figures.
    """

    history_s: float = 60
    history_bytes: int = 64 << 20
    poll_s: float = 0.2
    idle_s: float = 300
    list_s: float = 30
    line_s: float = 10


@dataclass
class _Reading:
    """A shard that is read.

    Attributes:
        thread: that reads it.
        stop: set to end it.
        is_done: whether the shard is closed, and all of it is read.
    """

    thread: threading.Thread
    stop: threading.Event
    is_done: bool = False


@dataclass
class StreamWorker:
    """Follows the stream of one source.

    Attributes:
        history: of the source.
        client: boto3's of DynamoDB Streams.
        current_arn: gives the ARN of the table's stream now; empty where it is off.
        convert: rows of the records of a shard.
        write_online: brings rows into the online store; returns when they can be read there.
        leases: of this worker.
        settings: how.
        say: takes lines for a person.
        table: says which table has the name now, see `table_identity`; empty where that is not
            known.
    """

    history: CapturedHistory
    client: Any
    current_arn: Callable[[], str]
    convert: Callable[[Sequence[Mapping[str, Any]], str], Converted]
    write_online: Callable[[Converted], object]
    leases: ShardLeases
    settings: StreamSettings = field(default_factory=StreamSettings)
    say: Callable[[str], object] = logger.info
    table: Callable[[], str] = str
    commits: StreamCommits = field(init=False)
    tree: ShardTree = field(default_factory=ShardTree)

    def __post_init__(self) -> None:
        self.commits = StreamCommits(self.history, self.settings.history_bytes)
        self._readings: dict[str, _Reading] = {}
        self._stop, self._wake = threading.Event(), threading.Event()
        self._ask = threading.Event()
        self._failure: BaseException | None = None
        self._wanted: set[str] = set()
        self._meter = StreamMeter(self.history.source.name)
        self._floor: dt.datetime | None = None
        self._arn, self._listing = "", Listing((), second(0))
        self._follower = ShardFollower(
            self.history.source.name,
            self.convert,
            self.write_online,
            self.leases,
            self.commits,
            self._meter,
            self.settings.poll_s,
            self._stop,
        )

    # From outside

    def stop(self) -> None:
        """End cleanly: what was read is committed, leases are given up. From any thread."""
        self._stop.set()
        self._wake.set()

    def fail(self, error: BaseException) -> None:
        """End cleanly, and raise an error then. From any thread."""
        if self._failure is None:
            self._failure = error
        self.stop()

    @property
    def is_ending(self) -> bool:
        """Whether it is to stop, or has failed."""
        return self._stop.is_set()

    @property
    def figures(self) -> StreamFigures:
        """What it did so far."""
        return self._meter.figures(len(self._readings), self.commits.committed, self._floor)

    def prepare(self) -> StreamPositions:
        """Note from where the stream is followed, before anything is read of it.

        Raises:
            CaptureError: the table has no stream.
            AwsError: DynamoDB refuses. OfflineStoreError: the history cannot be read.
        """
        positions = positions_of(self.history)
        arn = self.current_arn()
        if positions.stream is None:
            if not arn:
                raise self._no_stream()
            listing = list_shards(self.client, arn)
            self.tree.add(listing.shards)
            roots = [
                shard.id
                for shard in listing.shards
                if shard.parent is None or shard.parent not in self.tree.shards
            ]
            table = self.table()
            positions = begin_stream(self.history, arn, roots, listing.complete_since, table)
            self._say_made_anew("", table)
        if positions.stream is None:
            raise NotCommittedError(
                f"Source `{self.history.source.name}`: from where its stream is followed could "
                "not be noted, as others keep changing its history. Run it again."
            )
        self._arn = positions.stream.arn
        return self._listed()

    def run(self) -> StreamFigures:
        """Follow the stream until `stop` is called; commit what was read, and give up leases.

        Raises:
            CaptureError: the stream was switched off, or is none that can be captured.
            FeastDynamoError: what no repetition mends. What was read before is committed.
        """
        self.prepare()
        threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._beat, self._commit_in_turn)
        ]
        for thread in threads:
            thread.start()
        try:
            self._coordinate()
        except BaseException as error:  # noqa: BLE001 - raised at the end
            self.fail(error)
        self._end(list(self._readings))
        self._ask.set()
        self.commits.wake()
        for thread in threads:
            thread.join()
        try:
            self._commit()
            self._floor = positions_of(self.history).floor
        except FeastDynamoError as error:
            self._failure = self._failure or error
        self.leases.release(self.leases.held)
        if self._failure is not None:
            raise self._failure
        return self.figures

    # Which shards

    def _coordinate(self) -> None:
        listed_s = 0.0
        while not self._stop.is_set():
            self._drop_lost()
            self._drop_ended()
            self._give_up()
            now_s = time.monotonic()
            if now_s - listed_s >= self.settings.list_s:
                positions = self._listed()
                listed_s = now_s
            else:
                positions = positions_of(self.history)
            self._floor = positions.floor
            self._release_done(positions)
            if self._switched(positions):
                listed_s = 0.0
                continue
            ready = self.tree.ready(positions.shards)
            taken, asked = self.leases.take(ready)
            for shard in taken:
                self._begin(shard)
            if self._meter.is_due(self.settings.line_s):
                self.say(str(self.figures))
                self._meter.begin_line()
            pause_s = min(self.settings.list_s, self.leases.settings.lease_s / 3)
            self._wake.wait(
                1.0 if asked else min(pause_s, self._meter.due_in(self.settings.line_s))
            )
            self._wake.clear()

    def _listed(self) -> StreamPositions:
        """The shards as they are listed now; where changes are missing, that is noted.

        Raises:
            AwsError: DynamoDB refuses.
        """
        positions = positions_of(self.history)
        if positions.stream is not None:
            self._arn = positions.stream.arn
        try:
            listing = list_shards(self.client, self._arn)
        except ResourceNotFoundError:
            # Of a stream that was switched off its records stay for a day.
            return self._follow_new()
        self.tree, self._listing = ShardTree(), listing
        self.tree.add(listing.shards)
        lost = self.tree.lost(positions.shards)
        gone = [each for each in lost if listing.at - positions.shards[each].at > RETENTION]
        if not gone:
            return positions
        positions, missing = begin_anew(
            self.history, positions, self._arn, [], gone, listing.complete_since
        )
        say_missing(self.history.source.name, missing)
        return positions

    def _switched(self, positions: StreamPositions) -> bool:
        """Whether the stream has ended, and another one is followed from now on."""
        if self._readings or self.tree.ready(positions.shards):
            return False
        if any(not position.is_done for position in positions.shards.values()):
            return False
        if any(not shard.is_closed for shard in self.tree.shards.values()):
            return False
        if self.current_arn() == self._arn:
            return False
        self._follow_new()
        return True

    def _follow_new(self) -> StreamPositions:
        """Follow the stream that the table has now, after the one before has ended.

        Raises:
            CaptureError: it has none.
        """
        arn = self.current_arn()
        if not arn or arn == self._arn:
            raise self._no_stream()
        listing = list_shards(self.client, arn)
        self._end(list(self._readings))
        self._commit()
        positions = positions_of(self.history)
        self.tree, self._listing = ShardTree(), listing
        self.tree.add(listing.shards)
        roots = self.tree.ready({})
        before = "" if positions.stream is None else positions.stream.table
        table, since, gone = self.table(), listing.complete_since, sorted(positions.shards)
        positions, missing = begin_anew(self.history, positions, arn, roots, gone, since, table)
        self._arn = arn
        if not self._say_made_anew(before, table):
            self.say(
                f"{self.history.source.name}: the table's stream was switched off and on: the new "
                "one is followed from now on."
            )
        say_missing(self.history.source.name, missing)
        return positions

    def _say_made_anew(self, before: str, table: str) -> bool:
        """Say that the stream is of a table that was made anew, if it is.

        Args:
            before: which table was followed before; empty where that was not noted.
            table: which one has the name now.
        """
        source, state = self.history.source, self.history.state()
        captured = "" if state is None else state.table_id
        if not table or (before or captured or table) == table:
            return False
        advice = (
            f". What the old one had stays in the history and online until the new table is "
            f"captured as a whole: `feast-dynamo capture sync {source.name} --full`, or --scan "
            "for a small one, and then `feast materialize`"
        )
        if captured == table:
            advice = ""
        logger.warning(
            "source `%s`: the table %s was deleted and made anew: the stream of the new one is "
            "followed from now on%s",
            source.name,
            source.table,
            advice,
        )
        return True

    def _begin(self, shard: str) -> None:
        """Read a shard whose lease was taken, from what the history says now."""
        start = self.commits.begin(shard, self.tree)
        if start is None:
            self.leases.release([shard])
            return
        if self._listing.at - start.at > RETENTION:
            self.commits.forget(shard)
            self._start_over(shard, self._listing)
            return
        reader = ShardReader(self.client, self._arn, shard, start.sequence)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._guarded,
            args=(lambda: self._follow(reader, stop),),
            name=f"shard {shard}",
            daemon=True,
        )
        self._readings[shard] = _Reading(thread, stop)
        thread.start()

    def _end(self, shards: Sequence[str]) -> None:
        """Stop reading shards; what was read of them is still held."""
        ending = [self._readings.pop(shard) for shard in shards if shard in self._readings]
        for reading in ending:
            reading.stop.set()
        self.commits.wake()
        for reading in ending:
            reading.thread.join()

    def _drop_lost(self) -> None:
        for shard in self.leases.lost:
            if shard in self._readings:
                logger.warning(
                    "source `%s`: the lease of shard %s is lost; another worker goes on from what "
                    "is in the history",
                    self.history.source.name,
                    shard,
                )
            self._end([shard])
            self.commits.forget(shard)
            self.leases.release([shard])

    def _drop_ended(self) -> None:
        """Shards that are read no more, though they have not ended: they may be taken again."""
        for shard, reading in list(self._readings.items()):
            if not (reading.thread.is_alive() or reading.is_done):
                self._end([shard])
                self.commits.forget(shard)
                self.leases.release([shard])

    def _give_up(self) -> None:
        """Let others have shards that they asked for, once all that was read is committed."""
        wanted, self._wanted = self._wanted & set(self._readings), set()
        if not wanted:
            return
        self._end(sorted(wanted))
        self._commit()
        for shard in wanted:
            self.commits.forget(shard)
        self.leases.release(sorted(wanted))
        self.say(f"{self.history.source.name}: gave {count(len(wanted))} shards to another worker")

    def _release_done(self, positions: StreamPositions) -> None:
        """Give up leases of shards that are in the history as a whole."""
        done = self.tree.done(positions.shards)
        for shard, reading in list(self._readings.items()):
            if reading.is_done and shard in done:
                self._end([shard])
                self.commits.forget(shard)
                self.leases.release([shard])

    # In threads

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self.fail(error)

    def _beat(self) -> None:
        while not self._stop.wait(self.leases.settings.lease_s / 3):
            wanted = self.leases.beat()
            if wanted or self.leases.lost:
                self._wanted |= set(wanted)
                self._wake.set()

    def _commit_in_turn(self) -> None:
        settings = self.settings
        while not self._stop.is_set():
            if self.commits.wait_until_due(settings.history_s, settings.idle_s, self._ask):
                self._ask.clear()
                self._commit()
                self._wake.set()

    def _commit(self) -> None:
        """Commit what was read; what may pass is tried again.

        Raises:
            FeastDynamoError: it did not pass. What was not committed is read again later.
        """
        wait_s = FIRST_WAIT_S
        for left in reversed(range(COMMIT_ATTEMPTS)):
            if self._committed(is_last=not left):
                return
            time.sleep(wait_s)
            wait_s = min(LONGEST_WAIT_S, 2 * wait_s)

    def _committed(self, *, is_last: bool) -> bool:
        try:
            lost = self.commits.commit(self.tree)
        except PASSING_COMMIT as error:
            if is_last:
                raise
            logger.warning("a commit is tried again: %s", error)
            return False
        for shard in lost:
            reading = self._readings.get(shard)
            if reading is not None:
                reading.stop.set()
        return True

    def _follow(self, reader: ShardReader, stop: threading.Event) -> None:
        shard, ended = reader.shard, self._follower.follow(reader, stop)
        if ended is Ended.LOST:
            self._wake.set()
        elif ended is Ended.TRIMMED:
            self._trimmed(shard)
        elif ended is Ended.WHOLE:
            self._finish(shard)

    def _finish(self, shard: str) -> None:
        """A shard is closed, and read as a whole: its children wait for its commit."""
        self.tree.add(list_shards(self.client, self._arn, children_of=shard).shards)
        reading = self._readings.get(shard)
        if reading is not None:
            reading.is_done = True
        self._ask.set()
        self.commits.wake()

    def _trimmed(self, shard: str) -> None:
        """What was not read of a shard is gone, though it is less than a day behind."""
        self._commit()
        self.commits.forget(shard)
        self._start_over(shard, list_shards(self.client, self._arn))

    def _start_over(self, shard: str, listing: Listing) -> None:
        """Let a shard be read from the first record that is still there."""
        positions = positions_of(self.history)
        since = listing.complete_since
        _, missing = begin_anew(self.history, positions, self._arn, [shard], [], since)
        say_missing(self.history.source.name, missing)
        self.leases.release([shard])
        self._wake.set()

    def _no_stream(self) -> CaptureError:
        source = self.history.source
        return CaptureError(
            f"Source `{source.name}`: the table {source.table} has no stream, or it was switched "
            "off. `feast apply` prints the command that switches it on; `feast-dynamo capture "
            f"sync {source.name}` exports what changes without one."
        )
