"""How a worker does that follows a stream: its figures, a line of them, and what it warns of."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.stream.stream_positions import RETENTION
from feast_dynamo_ext.figures import count, counted, duration

if TYPE_CHECKING:
    from feast_dynamo_ext.capture.stream.stream_commits import Committed

logger = logging.getLogger(__name__)

LATE = RETENTION / 2
"""Behind by so much, a worker warns: what is older than a day is gone."""

WARNED_S = 3_600
"""Seconds between two warnings of one shard."""


@dataclass(frozen=True)
class StreamFigures:
    """What a worker did so far.

    Attributes:
        source: name of the source.
        shards: that it reads.
        records: that it read.
        records_per_s: lately.
        online_lag_s: from the writing of a change (whole seconds, rounded down) to its answer by
            the online store, at most, lately; None for no changes.
        committed: what is in the history.
        floor: all that was written before is in the history.
    """

    source: str
    shards: int
    records: int
    records_per_s: float
    online_lag_s: float | None
    committed: Committed
    floor: dt.datetime | None

    def __str__(self) -> str:
        lag = "-" if self.online_lag_s is None else f"{self.online_lag_s:.1f} s"
        behind = "-"
        if self.floor is not None:
            behind = duration((dt.datetime.now(dt.timezone.utc) - self.floor).total_seconds())
        return (
            f"{self.source}: {counted(self.shards, 'shard')}, "
            f"{self.records_per_s:,.1f} changes/s, "
            f"online after {lag}; history: {count(self.committed.rows)} rows in "
            f"{count(self.committed.commits)} commits, {behind} behind, "
            f"{count(self.committed.quarantined)} in quarantine"
        )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "source": self.source,
            "shards": self.shards,
            "records": self.records,
            "records_per_s": self.records_per_s,
            "online_lag_seconds": self.online_lag_s,
            "commits": self.committed.commits,
            "rows": self.committed.rows,
            "quarantined": self.committed.quarantined,
            "floor": None if self.floor is None else self.floor.isoformat(),
        }


@dataclass
class StreamMeter:
    """Counts what is read. Safe between threads.

    Attributes:
        source: name of the source.
    """

    source: str
    _records: int = 0
    _lag_s: float | None = None
    _line_at_s: float = field(default_factory=time.monotonic)
    _lined: int = 0
    _warned: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, shard: str, records: int, written: dt.datetime, now: dt.datetime) -> None:
        """Records of a shard are online.

        Args:
            shard: its id.
            records: how many.
            written: when the last of them was written.
            now: by DynamoDB's clock.
        """
        lag_s, now_s = max(0.0, time.time() - written.timestamp()), time.monotonic()
        with self._lock:
            self._records += records
            self._lag_s = max(lag_s, self._lag_s or 0.0)
            is_late = now - written > LATE
            if not is_late or now_s - self._warned.get(shard, -WARNED_S) < WARNED_S:
                return
            self._warned[shard] = now_s
        logger.warning(
            "source `%s`: shard %s is %s behind, and DynamoDB keeps records for 24 hours: run "
            "another worker, or find out what slows this one down",
            self.source,
            shard,
            duration((now - written).total_seconds()),
        )

    def figures(
        self, shards: int, committed: Committed, floor: dt.datetime | None
    ) -> StreamFigures:
        """What was done so far; see there."""
        with self._lock:
            took_s = max(time.monotonic() - self._line_at_s, 1e-3)
            rate = (self._records - self._lined) / took_s
            return StreamFigures(
                self.source, shards, self._records, rate, self._lag_s, committed, floor
            )

    def due_in(self, line_s: float) -> float:
        """Seconds until the next line."""
        return max(0.05, self._line_at_s + line_s - time.monotonic())

    def is_due(self, line_s: float) -> bool:
        """Whether a line is to be written now."""
        return time.monotonic() - self._line_at_s >= line_s

    def begin_line(self) -> None:
        """What is lately begins now."""
        with self._lock:
            self._line_at_s, self._lined, self._lag_s = time.monotonic(), self._records, None


def say_missing(source: str, missing: tuple[dt.datetime, dt.datetime]) -> None:
    """Warn of a time whose changes a stream has no more."""
    first, last = (f"{moment:%Y-%m-%d %H:%M:%S}Z" for moment in missing)
    logger.warning(
        "source `%s`: the stream has no more what was written from %s to %s, or may have. "
        "`feast-dynamo capture sync %s` exports that time; the stream is followed from the first "
        "record that is there",
        source,
        first,
        last,
        source,
    )
