"""How far the capture of a source is: until when, how much, and what comes next."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.exports.windows import SHORTEST
from feast_dynamo_ext.capture.stream.stream_positions import StreamPositions
from feast_dynamo_ext.errors import SourceNotFoundError
from feast_dynamo_ext.parquet.iceberg.optimize import optimize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.capture.stream.stream_positions import ShardPosition
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource


MANY_FILES = 100
"""Small or unsorted files, from which on `table optimize` is due: each is a request of a read."""


@dataclass(frozen=True)
class CaptureStatus:
    """How far a source is.

    Attributes:
        source: its name.
        table: of DynamoDB.
        until: all that was written before is in the history; None for nothing.
        lag: how long ago that is.
        rows: of the history, tombstones included.
        quarantined: records that did not fit.
        next: what the next `sync` does, in words.
        stream: how far each shard of the table's stream is, by its id; None where none is
            followed.
        gap: from when to when changes are missing, which the stream has no more; None for none.
        now: the time that lags are counted to.
        small_files: of the history that `table optimize` would make large and sorted ones of.
        unfollowed_since: when a worker read the stream last, where none does now; else None.
    """

    source: str
    table: str
    until: dt.datetime | None
    lag: dt.timedelta | None
    rows: int
    quarantined: int
    next: str
    stream: Mapping[str, ShardPosition] | None
    gap: tuple[dt.datetime, dt.datetime] | None
    now: dt.datetime
    small_files: int = 0
    unfollowed_since: dt.datetime | None = None

    @property
    def is_optimize_due(self) -> bool:
        """Whether reads of the history are slower than they need be."""
        return self.small_files >= MANY_FILES

    @property
    def shard_lags(self) -> dict[str, dt.timedelta]:
        """How far each shard is behind in the history, of those that are not done."""
        shards = (self.stream or {}).items()
        return {
            shard: self.now - position.at for shard, position in shards if not position.is_done
        }

    def to_json(self) -> dict[str, Any]:
        """For programs: seconds, and times in ISO 8601."""
        return {
            "source": self.source,
            "table": self.table,
            "until": None if self.until is None else self.until.isoformat(),
            "lag_seconds": None if self.lag is None else self.lag.total_seconds(),
            "rows": self.rows,
            "quarantined": self.quarantined,
            "next": self.next,
            "stream": None if self.stream is None else self._shards(),
            "gap": None if self.gap is None else [moment.isoformat() for moment in self.gap],
            "small_files": self.small_files,
            "optimize_due": self.is_optimize_due,
            "unfollowed_since": (
                None if self.unfollowed_since is None else self.unfollowed_since.isoformat()
            ),
        }

    def _shards(self) -> list[dict[str, Any]]:
        lags = self.shard_lags
        return [
            {
                "shard": shard,
                "until": position.at.isoformat(),
                "lag_seconds": lags[shard].total_seconds() if shard in lags else None,
                "sequence_number": position.sequence,
                "is_done": position.is_done,
            }
            for shard, position in sorted((self.stream or {}).items())
        ]


def status_of(
    history: CapturedHistory,
    source: DynamoDBTableSource,
    now: dt.datetime | None = None,
    sign: Callable[[Sequence[str]], Sign | None] | None = None,
) -> CaptureStatus:
    """How far a source is, by its history table; DynamoDB is asked by `sign` alone.

    Args:
        history: of the source.
        source: the source.
        now: the time that lag is counted to; None for the clock's.
        sign: whether a worker reads one of some shards, and the last sign of one: see
            `stream_leases.last_sign`; called where a stream was followed. None, or where it
            answers None: not known.

    Raises:
        OfflineStoreError: the history cannot be read. AwsError: as `sign`.
    """
    now = now or dt.datetime.now(dt.timezone.utc)
    try:
        state, positions, rows = history.state(), history.stream(), history.rows()
        parts = optimize(history.handle, dry_run=True).partitions
        small = sum(part.files_before for part in parts)
    except SourceNotFoundError:
        state, positions, rows, small = None, StreamPositions(None, {}), 0, 0
    exported = None if state is None else state.until
    until = positions.captured_until(exported)
    lag = None if until is None else now - until
    gap = positions.gap(exported)
    found = None if sign is None else _sign(positions, sign)
    is_alive, idle = (None, None) if found is None else found
    if state is not None and state.pending:
        running = sum(bool(window.arn) for window in state.pending)
        then = f"goes on with {len(state.pending)} windows, {running} of them exported"
    elif until is None or lag is None:
        then = "exports the whole table"
    elif gap is not None:
        then = f"exports what the stream lacks, from {gap[0]:%Y-%m-%d %H:%M}Z"
    elif lag < SHORTEST and positions.stream is not None and is_alive is not False:
        then = "nothing: the stream is followed"
        if is_alive is None:
            then = "nothing, where a worker follows the stream"
    elif lag < SHORTEST:
        then = f"nothing before {until + SHORTEST:%H:%M}Z"
    else:
        then = "exports what changed since"
    if idle is not None:
        then += (
            f"; no worker has followed the stream since {idle:%Y-%m-%d %H:%M:%S}Z: start "
            f"`feast-dynamo capture stream {source.name}`"
        )
    return CaptureStatus(
        source.name,
        source.table,
        until,
        lag,
        rows,
        history.quarantined(),
        then,
        None if positions.stream is None else positions.shards,
        gap,
        now,
        small,
        idle,
    )


Sign = tuple[bool, "dt.datetime | None"]


def _sign(positions: StreamPositions, sign: Callable[[Sequence[str]], Sign | None]) -> Sign | None:
    """Whether a stream is followed, and since when it is not; None where that is not known."""
    shards = [shard for shard, position in positions.shards.items() if not position.is_done]
    if positions.stream is None or not shards:
        return None
    found = sign(shards)
    if found is None or found[0]:
        return found and (True, None)
    # A worker that ended gave its leases up, and committed what it had read.
    return False, found[1] or max(position.at for position in positions.shards.values())
