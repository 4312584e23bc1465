"""Follows one shard of a table's stream: each page online at once, then held for the history.

It ends where it is stopped, where the shard is another worker's or closed and read as a whole, and
where records are gone; what of that changes which shards are read is the worker's to do.
"""

from __future__ import annotations

import datetime as dt
import enum
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.stream.stream_commits import Part
from feast_dynamo_ext.capture.stream.stream_positions import ShardPosition
from feast_dynamo_ext.capture.stream.stream_shards import TrimmedError
from feast_dynamo_ext.errors import (
    AwsUnavailableError,
    IncompleteWriteError,
    LeaseLostError,
    ThrottledError,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from feast_dynamo_ext.capture.stream.stream_commits import StreamCommits
    from feast_dynamo_ext.capture.stream.stream_figures import StreamMeter
    from feast_dynamo_ext.capture.stream.stream_leases import ShardLeases
    from feast_dynamo_ext.capture.stream.stream_shards import Page, ShardReader
    from feast_dynamo_ext.capture.values.change_rows import Converted

logger = logging.getLogger(__name__)

PASSING = (ThrottledError, AwsUnavailableError, IncompleteWriteError)
"""Errors of reading and of writing online that are tried again, as long as it takes."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 20.0

QUIET = dt.timedelta(seconds=60)
"""For so long a shard must have shown nothing before what was written is known to be read."""

BEHIND_S = 2.0
"""Seconds: where records are older, the next page is read at once."""


class Ended(enum.Enum):
    """Why a shard is followed no more."""

    STOPPED = enum.auto()
    LOST = enum.auto()
    """It is another worker's."""

    TRIMMED = enum.auto()
    """Records that were not read yet are gone."""

    WHOLE = enum.auto()
    """It is closed, and all of it is read."""


@dataclass(frozen=True)
class ShardFollower:
    """Follows shards of one source, each in a thread of its own.

    Attributes:
        source: name of the source.
        convert: rows of the records of a shard.
        write_online: brings rows into the online store; returns when they can be read there.
        leases: of this worker: without one nothing is written.
        commits: hold what is read until it is in the history.
        meter: counts what is read.
        poll_s: seconds between two reads of a shard that has nothing new.
        ending: set where the worker is to end.
    """

    source: str
    convert: Callable[[Sequence[Mapping[str, Any]], str], Converted]
    write_online: Callable[[Converted], object]
    leases: ShardLeases
    commits: StreamCommits
    meter: StreamMeter
    poll_s: float
    ending: threading.Event

    def follow(self, reader: ShardReader, stop: threading.Event) -> Ended:
        """Read a shard that was begun until it ends, or `stop` is set.

        Raises:
            FeastDynamoError: what no repetition mends.
        """
        shard, wait_s, quiet_since = reader.shard, FIRST_WAIT_S, None
        while not stop.is_set():
            try:
                self.leases.check(shard)
                page = reader.read()
                if page.records:
                    quiet_since = None
                    if not self._take(shard, page, stop):
                        return Ended.STOPPED
                elif not page.is_last:
                    quiet_since = quiet_since or page.at
                    if page.at - quiet_since >= QUIET:
                        known = self.commits.position(shard)
                        self.commits.reach(shard, known.read_to(page.at - QUIET, None))
                reader.take(page)
                if page.is_last:
                    known = self.commits.position(shard)
                    at = max(known.at, page.at - QUIET)
                    self.commits.reach(shard, ShardPosition(at, known.sequence, is_done=True))
                    return Ended.WHOLE
            except LeaseLostError:
                return Ended.LOST
            except TrimmedError as error:
                logger.warning("source `%s`: %s", self.source, error)
                return Ended.TRIMMED
            except PASSING as error:
                logger.warning("shard %s: tried again: %s", shard, error)
                stop.wait(wait_s)
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
                continue
            wait_s = FIRST_WAIT_S
            if not (page.records and _is_behind(page)):
                stop.wait(self.poll_s)
        return Ended.STOPPED

    def _take(self, shard: str, page: Page, stop: threading.Event) -> bool:
        """Bring a page online, and hold it; whether it is held."""
        made = self.convert(page.records, shard)
        # At once before the request: a late put of a worker that was slow would bring back what
        # another has deleted meanwhile.
        self.leases.check(shard)
        self.write_online(made)
        self.meter.read(shard, len(page.records), page.written, page.at)
        read = self.commits.position(shard).read_to(page.written, page.sequence)
        return self.commits.add(
            Part(shard, made), read, while_=lambda: not (stop.is_set() or self.ending.is_set())
        )


def _is_behind(page: Page) -> bool:
    return (page.at - page.written).total_seconds() > BEHIND_S
