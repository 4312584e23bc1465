"""How far the capture of a source is: until when, how much, and what comes next."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.windows import SHORTEST
from feast_dynamo_ext.errors import SourceNotFoundError
from feast_dynamo_ext.parquet.iceberg.optimize import optimize

if TYPE_CHECKING:
    from feast_dynamo_ext.capture.history import CapturedHistory
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
        small_files: of the history that `table optimize` would make large and sorted ones of.
    """

    source: str
    table: str
    until: dt.datetime | None
    lag: dt.timedelta | None
    rows: int
    quarantined: int
    next: str
    small_files: int = 0

    @property
    def is_optimize_due(self) -> bool:
        """Whether reads of the history are slower than they need be."""
        return self.small_files >= MANY_FILES

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
            "small_files": self.small_files,
            "optimize_due": self.is_optimize_due,
        }


def status_of(
    history: CapturedHistory, source: DynamoDBTableSource, now: dt.datetime | None = None
) -> CaptureStatus:
    """How far a source is, by its history table alone: DynamoDB is not asked.

    Args:
        history: of the source.
        source: the source.
        now: the time that lag is counted to; None for the clock's.

    Raises:
        OfflineStoreError: the history cannot be read.
    """
    now = now or dt.datetime.now(dt.timezone.utc)
    try:
        state, rows = history.state(), history.rows()
        parts = optimize(history.handle, dry_run=True).partitions
        small = sum(part.files_before for part in parts)
    except SourceNotFoundError:
        state, rows, small = None, 0, 0
    until = None if state is None else state.until
    lag = None if until is None else now - until
    if state is not None and state.pending:
        running = sum(bool(window.arn) for window in state.pending)
        then = f"goes on with {len(state.pending)} windows, {running} of them exported"
    elif lag is None:
        then = "exports the whole table"
    elif lag < SHORTEST:
        then = f"nothing before {until + SHORTEST:%H:%M}Z"  # type: ignore[operator]
    else:
        then = "exports what changed since"
    quarantined = history.quarantined()
    return CaptureStatus(source.name, source.table, until, lag, rows, quarantined, then, small)
