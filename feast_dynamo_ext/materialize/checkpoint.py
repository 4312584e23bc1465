"""What a run has finished, so that the next one goes on where it was killed.

Keys fall into buckets, and a run writes bucket by bucket. Finished buckets are kept in an item of
the view's own table, one item a view and window: it needs nothing to be created, no other IAM
resource, every machine sees it, and it is gone when the table it speaks of is gone.

A bucket is recorded only after each of its rows is settled: in the table, or older than what is
there. So after a kill -9 at any moment the recorded buckets need nothing more, and at most those
that were in progress are written again, which changes nothing.

The item says what it holds of: the files, the view's definition, the write mode. Where one of
these has changed, all is written again. It also names the run that may add to it. A run that goes
on puts its own name there first, so one that has lost its lease and does not know it yet can add
nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from feast_dynamo_ext.columns import join_keys
from feast_dynamo_ext.dynamo.control_items import ABSENT, ControlItem
from feast_dynamo_ext.dynamo.layouts.packed import EXPIRY, RowSchema
from feast_dynamo_ext.dynamo.views import ttl_seconds
from feast_dynamo_ext.errors import LeaseLostError
from feast_dynamo_ext.forks import Lock
from feast_dynamo_ext.timestamps import moment_of
from feast_dynamo_ext.view_settings import view_tombstones

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from feast_dynamo_ext.dynamo.control_items import Value


BUCKETING = 1
"""Raise it when keys fall into other buckets than before, or rows are packed differently: the
buckets that an older version finished would be others. DuckDB's hash may change with its
version."""


@dataclass(frozen=True)
class RunIdentity:
    """One window of one view, as it is now.

    Attributes:
        start_us: first event time, microseconds since 1970 UTC.
        end_us: last event time, the same.
        source: fingerprint of the source's files, see `source_fingerprint`.
        view: fingerprint of the view's definition, see `view_fingerprint`.
        write_mode: `newest_wins` or `overwrite`.
    """

    start_us: int
    end_us: int
    source: str
    view: str
    write_mode: str


def source_fingerprint(files: Iterable[tuple[str, int, str | int]]) -> str:
    """The SHA-256 of a source's files, whatever their order.

    Args:
        files: (path, bytes, version) of each: S3's ETag, or the time of the last change in
            nanoseconds, which S3 gives in whole seconds.
    """
    return _sha256(sorted(files))


def view_fingerprint(view: Any) -> str:
    """The SHA-256 of what a view's definition says of its rows and items."""
    source, tombstones = view.batch_source, view_tombstones(view)
    kinds = {column.name: column.dtype.to_value_type().name for column in view.entity_columns}
    captured = {}
    if tombstones is not None:
        captured = {"ends": sorted(tombstones.ends), "deletes": tombstones.is_applied}
    return _sha256(
        {
            **captured,
            "bucketing": [BUCKETING, duckdb.__version__],
            "schema": RowSchema.from_view(view).text,
            "keys": [(name, kinds[name]) for name in join_keys(view)],
            "ttl_s": ttl_seconds(view),
            "event_time": source.timestamp_field,
            "created_time": source.created_timestamp_column,
            "field_mapping": source.field_mapping,
        }
    )


CAPTURED = b"captured"

SETTLED_MS = 10 * 60 * 1_000
"""After so long, no writer commits rows to a history any more that it numbered before."""


@dataclass(frozen=True)
class Position:
    """How far the history of a captured table has been materialized by incremental runs.

    Rows come into it late: an export's a day after they were written. So what is new since the
    last run is what came since, as the history's own sequence says, not what was written since.

    Attributes:
        history: id of the history table; of another table's position nothing is taken.
        sequence: all rows up to this commit's were looked at.
    """

    history: str
    sequence: int

    @classmethod
    def from_commits(
        cls, history: str, commits: Iterable[tuple[int, int]], now_ms: float
    ) -> Position:
        """The position after reading a version of a table.

        Two writers that begin from one version number their rows alike, so commits of the last
        minutes are not settled.

        Args:
            history: id of the table.
            commits: milliseconds since 1970 and number of those that its log still has.
            now_ms: milliseconds since 1970.
        """
        settled = [number for at_ms, number in commits if at_ms <= now_ms - SETTLED_MS]
        return cls(history, max(settled, default=0))

    @classmethod
    def read(cls, client: Any, table: str, *, is_series: bool = False) -> Position | None:
        """The position that the last run noted in a view's table; None where there is none.

        Args:
            client: boto3's.
            table: the view's.
            is_series: whether it keeps every event.

        Raises:
            AwsError: AWS refused, or there is no such table.
        """
        held = ControlItem(client, table, CAPTURED, is_series).read()
        return None if held is None else cls(held["history"], held["sequence"])

    def note(self, client: Any, table: str, *, is_series: bool = False) -> None:
        """Note it, once all rows up to there are settled. The lease must be held.

        Args: as `read`.

        Raises:
            AwsError: AWS refused.
        """
        item = ControlItem(client, table, CAPTURED, is_series)
        held = item.read()
        is_same = held is not None and held["history"] == self.history
        if held is not None and is_same and held["sequence"] >= self.sequence:
            return
        kind = "how far the captured history is materialized"
        values: dict[str, Value] = {
            "kind": kind,
            "history": self.history,
            "sequence": self.sequence,
        }
        item.put(values, ABSENT if held is None else {"sequence": held["sequence"]})


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


logger = logging.getLogger(__name__)

PROGRESS = b"progress:%d:%d"
KEPT_S = 7 * 24 * 3_600
"""After so long without news, forgotten progress may be deleted by DynamoDB's TTL."""


# Attribute of the item -> what has changed, for the log.
WHAT_CHANGED = {
    "source": "the files of its source",
    "definition": "the definition of the view",
    "write_mode": "its write_mode",
}


class Checkpoint:
    """The progress of one run on one view. Made by `open`; safe to share between threads.

    Attributes:
        buckets: number of key buckets of the run that this one goes on with; None for a run from
            the start, until `begin`.
        done: finished buckets.
        rows_done: number of rows in them.
    """

    def __init__(
        self,
        item: ControlItem,
        identity: RunIdentity,
        held: Mapping[str, Any] | None,
        now_s: Callable[[], float],
    ) -> None:
        self.buckets: int | None = None
        self.done: frozenset[int] = frozenset()
        self.rows_done = 0
        self._item, self._identity, self._now_s = item, identity, now_s
        self._run = uuid.uuid4().hex
        self._before = held
        self._lock = Lock()

    @classmethod
    def open(
        cls,
        client: Any,
        table: str,
        identity: RunIdentity,
        *,
        resume: bool,
        is_series: bool = False,
        now_s: Callable[[], float] = time.time,
    ) -> Checkpoint:
        """Look for what an earlier run of this window has finished. The lease must be held.

        Args:
            client: boto3's client of DynamoDB.
            table: the view's table.
            identity: what the finished buckets must be of to count.
            resume: whether to go on with them; otherwise the run starts over.
            is_series: whether the table keeps every event.
            now_s: seconds since 1970 UTC.

        Raises:
            LeaseLostError: another run is at it.
            AwsError: AWS refused, or there is no such table.
        """
        name = PROGRESS % (identity.start_us, identity.end_us)
        item = ControlItem(client, table, name, is_series)
        held = item.read()
        checkpoint = cls(item, identity, held, now_s)
        if held is not None:
            why = checkpoint._why_not(held, resume=resume)
            if why is None:
                checkpoint._go_on(held)
            else:
                count = len(held.get("done", ()))
                logger.info("table %s: starting over, not from %s buckets: %s", table, count, why)
        return checkpoint

    def begin(self, buckets: int, rows: int) -> None:
        """Begin a run from the start.

        Args:
            buckets: number of key buckets.
            rows: number of rows to write.

        Raises:
            LeaseLostError: another run is at it.
            AwsError: AWS refused.
        """
        start, end = self._identity.start_us, self._identity.end_us
        values: dict[str, Value] = {
            "kind": "progress of a materialization of this view",
            "start": _iso(start),
            "end": _iso(end),
            **self._definition,
            "run": self._run,
            "buckets": buckets,
            "rows": rows,
            "rows_done": 0,
            **self._news,
        }
        where = ABSENT if self._before is None else {"run": self._before["run"]}
        if not self._item.put(values, where) and not self._is_ours(self._item.read()):
            raise self._lost()
        self._before, self.buckets = values, buckets
        self.done, self.rows_done = frozenset(), 0

    def finish(self, bucket: int, rows: int) -> None:
        """Record a bucket; only once all of its rows are settled.

        Args:
            bucket: its number, from 0.
            rows: how many rows it has.

        Raises:
            LeaseLostError: another run is at it.
            AwsError: AWS refused.
        """
        with self._lock:
            self._record(bucket, rows)
            if bucket not in self.done:
                self.done, self.rows_done = self.done | {bucket}, self.rows_done + rows

    def remove(self) -> None:
        """Forget the progress: the run has come to its end.

        Raises:
            AwsError: AWS refused.
        """
        if not self._item.delete({"run": self._run}):
            logger.debug("table %s: this run's progress was removed already", self._item.table)

    def _record(self, bucket: int, rows: int) -> None:
        recorded = self._item.update(
            self._news,
            {"run": self._run},
            add={"done": frozenset([bucket]), "rows_done": rows},
            lacks={"done": bucket},
        )
        if not recorded:
            now = self._item.read()
            if not self._is_ours(now) or bucket not in (now or {}).get("done", ()):
                raise self._lost()

    @property
    def _definition(self) -> dict[str, str]:
        return {
            "source": self._identity.source,
            "definition": self._identity.view,
            "write_mode": self._identity.write_mode,
        }

    @property
    def _news(self) -> dict[str, Value]:
        now_s = int(self._now_s())
        return {"updated_at": _iso(now_s * 1_000_000), EXPIRY: now_s + KEPT_S}

    def _why_not(self, held: Mapping[str, Any], *, resume: bool) -> str | None:
        """Why what an earlier run finished does not count; None where it does."""
        if not resume:
            return "asked for"
        changed = [
            WHAT_CHANGED[name]
            for name, value in self._definition.items()
            if held.get(name) != value
        ]
        return f"changed since: {', '.join(changed)}" if changed else None

    def _go_on(self, held: Mapping[str, Any]) -> None:
        renamed = self._item.update({"run": self._run, **self._news}, {"run": held["run"]})
        now = held if renamed else self._item.read()
        if now is None or (not renamed and not self._is_ours(now)):
            raise self._lost()
        self._before = {**now, "run": self._run}
        self.buckets, self.rows_done = now["buckets"], now["rows_done"]
        self.done = now.get("done", frozenset())
        logger.info(
            "table %s: going on after %s of %s buckets (%s rows), which a run up to %s finished",
            self._item.table,
            len(self.done),
            self.buckets,
            f"{self.rows_done:,}",
            held["updated_at"],
        )

    def _is_ours(self, values: Mapping[str, Any] | None) -> bool:
        return values is not None and values.get("run") == self._run

    def _lost(self) -> LeaseLostError:
        start, end = _iso(self._identity.start_us), _iso(self._identity.end_us)
        return LeaseLostError(
            f"Table {self._item.table}: the progress of the window {start} to {end} belongs to "
            "another run by now, or was removed. What this run wrote stays. Run it "
            "again when no other run is at it."
        )


def _iso(micros: int) -> str:
    return moment_of(micros).isoformat()
