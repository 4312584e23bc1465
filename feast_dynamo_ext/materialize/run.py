"""One run: its views are read one after the other and written at once, by shared workers.

::

    view 1   lease . read . spool ==> bucket . bucket . bucket . done
    view 2           lease ...... read . spool ==> bucket . bucket . done
    view 3                   lease ........... read . failed

Reading takes memory, so one view reads at a time; writing waits for DynamoDB, so several write.
Between the two is the disk: see `spool.py`. A bucket is recorded once all of its rows are
settled; see `checkpoint.py`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from feast.repo_config import FeastConfigBaseModel
from pydantic import Field, StrictBool

from feast_dynamo_ext.config import SIZE
from feast_dynamo_ext.dynamo.encoding.requests import Deletions
from feast_dynamo_ext.dynamo.limiter import AdaptiveLimiter, RateLimiter
from feast_dynamo_ext.dynamo.precomputed.maintain import with_vectors
from feast_dynamo_ext.dynamo.row_batch import EncodedBlock, Outcome
from feast_dynamo_ext.errors import AwsError
from feast_dynamo_ext.materialize.checkpoint import (
    Checkpoint,
    Position,
    RunIdentity,
    view_fingerprint,
)
from feast_dynamo_ext.materialize.hot_keys import HotKeys
from feast_dynamo_ext.materialize.lease import Lease, LeaseSettings
from feast_dynamo_ext.materialize.newest_rows import say_why_nothing
from feast_dynamo_ext.view_settings import series_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.write import WriteMethod
    from feast_dynamo_ext.materialize.newest_rows import Newest, ViewReading
    from feast_dynamo_ext.materialize.report import ViewReport
    from feast_dynamo_ext.materialize.spool import Spool

    InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class MaterializeSettings(FeastConfigBaseModel):
    """How rows go from history into DynamoDB; the block may be absent."""

    write_mode: Literal["newest_wins", "overwrite"] | None = None
    """Whether an older row may replace a newer one. Default: the view's, else the online
    store's."""

    max_write_units_per_s: int | None = Field(default=None, ge=1)
    """Write units that a run may consume a second, all its views together. Default: as many as
    DynamoDB grants; requests become fewer when it throttles, and more again when it does not."""

    max_write_workers: int = Field(default=32, ge=1)
    """Requests that are in flight at once, all views together, when nothing is throttled."""

    lookback_s: int = Field(default=3_600, ge=0)
    """Seconds before its start from which an incremental run reads, for rows that came late. What
    it reads again and is there already costs its write units again."""

    views_at_once: int = Field(default=4, ge=1)
    """Views that are written at once."""

    memory_limit: str = Field(default="128MB", pattern=SIZE)
    """Memory that finding the newest rows may use before it spills to the offline store's
    `spill_folder`."""

    rows_per_bucket: int = Field(default=25_000, ge=1)
    """Rows after which progress is recorded: what a killed run writes again at most, for each
    bucket that was being written. A run has at most 256 buckets, so with more rows they are
    larger."""

    resume: StrictBool = True
    """Go on where a run of the same view, window and files was killed; else start over."""

    if_running: Literal["refuse", "wait"] = "refuse"
    """What a run does while another one materializes the same view: fail with a message that names
    it, or wait until it has ended. One that is gone is waited for `lease_s` at most."""

    lease_s: int = Field(default=30, ge=3)
    """Seconds without a sign of life after which a run counts as gone."""


LANES = 3
"""Blocks of a view that are in memory: while one is encoded, others are sent."""


@dataclass
class _Bucket:
    """A bucket that is being written."""

    number: int
    rows: int
    pending: int = 0
    is_read: bool = False


@dataclass
class ViewWriting:
    """The writing of one view, on an event loop.

    Attributes:
        connection: the online store's.
        report: what becomes of the rows.
        method: writes them.
        limiter: of the view's table.
        lease: held; checked before each request.
        checkpoint: records each bucket that is done.
        spool: the rows.
        in_thread: does what would hold up the loop.
    """

    connection: Connection
    report: ViewReport
    method: WriteMethod
    limiter: AdaptiveLimiter
    lease: Lease
    checkpoint: Checkpoint
    spool: Spool
    in_thread: InThread

    async def all_buckets(self) -> None:
        """Write all buckets that are not done.

        Raises:
            IncompleteWriteError: rows that could not be written.
            LeaseLostError: another run has the view.
            AwsError: AWS refused.
        """
        report, limiter = self.report, self.limiter
        limiter.on_change = lambda: report.note_use(limiter.units, limiter.throttles)
        limiter.check = self.lease.check
        self._writer = self.connection.writer.limited_by(limiter)
        self._next = asyncio.Lock()
        self._blocks = self._read_blocks()
        self._failed: list[BaseException] = []
        self._hot = HotKeys()
        await asyncio.gather(*(self._lane() for _ in range(LANES)), return_exceptions=True)
        report.hot = self._hot.units
        if self._failed:
            raise self._failed[0]

    def _read_blocks(self) -> Iterator[tuple[_Bucket, EncodedBlock | Deletions | None]]:
        """The blocks of each bucket, and None where it ends."""
        for number in self.spool.todo:
            bucket = _Bucket(number, int(self.spool.rows[number]))
            for rows in self.spool.blocks(number):
                bucket.pending += 1
                if isinstance(rows, Deletions):
                    yield bucket, rows
                    continue
                block = EncodedBlock(rows)
                # Made here, in a thread, rather than when the first request is sent.
                self._prepare(block)
                yield bucket, block
            yield bucket, None

    def _prepare(self, block: EncodedBlock) -> None:
        _ = block.units
        self._hot.add(block, is_series=self.spool.is_series)
        if self.method == "overwrite":
            _ = block.puts

    async def _lane(self) -> None:
        """Write blocks as long as there are any, and none has failed."""
        try:
            while not self._failed:
                self.lease.check()
                async with self._next:
                    found = await self.in_thread(lambda: next(self._blocks, None))
                if found is None:
                    return
                bucket, block = found
                if block is None:
                    bucket.is_read = True
                else:
                    is_gone = isinstance(block, Deletions)
                    await (self._delete_block if is_gone else self._write_block)(block)
                    bucket.pending -= 1
                if bucket.is_read and not bucket.pending:
                    await self.in_thread(
                        partial(self.checkpoint.finish, bucket.number, bucket.rows)
                    )
        except BaseException as error:
            self._failed.append(error)
            raise

    async def _write_block(self, block: EncodedBlock) -> None:
        report, table, done = self.report, self.report.table, Outcome()

        def on_outcome(outcome: Outcome) -> None:
            nonlocal done
            done += outcome
            report.written += outcome.written
            report.older += outcome.older
            report.failed += len(outcome.unwritten)
            # At once: on a throttled table each further request would wait for its own deadline.
            done.checked(table)

        write = self._writer.write_batches(table, block.batches(), on_outcome, self.method)
        rows = block.rows
        if self.spool.is_series:
            await write  # no precomputed service has features of a series
            return
        await with_vectors(self.connection, table, rows.schema, rows.keys.to_pylist, write)

    async def _delete_block(self, block: Deletions) -> None:
        report, table, done = self.report, self.report.table, Outcome()

        def on_outcome(outcome: Outcome) -> None:
            nonlocal done
            done += outcome
            report.deleted += outcome.written
            report.older += outcome.older
            report.failed += len(outcome.unwritten)
            done.checked(table)

        delete = self._writer.delete(table, block, on_outcome)
        if self.spool.is_series:
            await delete
            return
        schema, keys = self.spool.schema, block.keys.to_pylist
        await with_vectors(self.connection, table, schema, keys, delete)


logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class ViewRun:
    """One view of a run.

    Attributes:
        view: the feature view.
        report: what has become of its rows; filled while it runs.
        reading: opens its history.
        method: writes its rows.
        services: called before its first row is written; gives what is called after the last.
        refuse_anothers: raises where its table is another view's or project's.
        is_incremental: whether its window begins where the last run's ended.
    """

    view: Any
    report: ViewReport
    reading: Callable[[], ViewReading]
    method: WriteMethod
    services: Callable[[], Callable[[], object]]
    refuse_anothers: Callable[[], object]
    is_incremental: bool = False


@dataclass
class Run:
    """Views that are materialized together.

    Attributes:
        connection: the online store's.
        settings: of materialization.
        views: what to do.
    """

    connection: Connection
    settings: MaterializeSettings
    views: Sequence[ViewRun]
    _leases: list[Lease] = field(default_factory=list, init=False, repr=False)
    _finished: dict[str, Checkpoint] = field(default_factory=dict, init=False, repr=False)
    _positions: dict[str, Position] = field(default_factory=dict, init=False, repr=False)
    _is_over: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def execute(self) -> None:
        """Materialize all views; the errors of those that fail are in their reports."""
        try:
            workers = len(self.views) + LANES
            with ThreadPoolExecutor(workers, "feast-dynamo-materialize") as threads:
                try:
                    self.connection.loops.run(self._all(threads))
                finally:
                    self._is_over.set()
        finally:
            # On Ctrl-C the loop is gone: what it would have released is released here, also what
            # a thread got meanwhile.
            for lease in self._leases:
                lease.release()

    async def _all(self, threads: ThreadPoolExecutor) -> None:
        shared = _Shared(
            threads,
            asyncio.Lock(),
            asyncio.Semaphore(self.settings.views_at_once),
            asyncio.Semaphore(self.settings.max_write_workers),
            RateLimiter(self.settings.max_write_units_per_s),
        )
        await asyncio.gather(*(self._reported(run, shared) for run in self.views))
        # Last, so that after a kill no view that was finished is written again.
        await asyncio.gather(*(self._forgotten(run, shared) for run in self.views))

    async def _forgotten(self, run: ViewRun, shared: _Shared) -> None:
        checkpoint = self._finished.get(run.report.view)
        if checkpoint is None:
            return
        try:
            await shared.in_thread(checkpoint.remove)
        except AwsError as error:
            # All rows are there. What is left is overwritten by the next run, or expires.
            logger.warning("the progress of %s could not be removed: %s", run.report.view, error)

    async def _reported(self, run: ViewRun, shared: _Shared) -> None:
        report = run.report
        try:
            # Before its turn comes: everybody can see that this run is at the view.
            lease = await shared.in_thread(partial(self._leased, run))
            async with shared.views:
                report.started_s = time.monotonic()
                await self._materialize(run, shared, lease)
        except Exception as error:
            report.error, report.step = error, "failed"
            logger.debug("feature view %s failed", report.view, exc_info=error)
        else:
            report.step = "done"
        finally:
            report.ended_s = time.monotonic()

    async def _materialize(self, run: ViewRun, shared: _Shared, lease: Lease) -> None:
        try:
            async with shared.reading:
                run.report.step = "reading"
                checkpoint, spool = await shared.in_thread(partial(self._read, run, lease))
            try:
                run.report.step = "writing"
                await self._write(run, shared, lease, checkpoint, spool)
            finally:
                spool.close()
            self._finished[run.report.view] = checkpoint
        finally:
            await shared.in_thread(lease.release)

    def _leased(self, run: ViewRun) -> Lease:
        run.refuse_anothers()
        settings = LeaseSettings(
            self.settings.lease_s, self.settings.if_running, sleep=self._sleep
        )
        client, report = self.connection.client, run.report
        is_series = series_of(run.view) is not None
        lease = Lease.acquire(client, report.table, report.view, settings, is_series=is_series)
        self._leases.append(lease)
        return lease

    def _sleep(self, seconds: float) -> None:
        if self._is_over.wait(seconds):
            raise KeyboardInterrupt

    def _read(self, run: ViewRun, lease: Lease) -> tuple[Checkpoint, Spool]:
        report, reading = run.report, run.reading()
        is_series = reading.encoder.events is not None
        position = reading.history.position
        since = position and Position.read(
            self.connection.client, report.table, is_series=is_series
        )
        if run.is_incremental:
            reading = replace(reading, since=since)
        start_us, end_us = reading.window.micros
        identity = RunIdentity(
            start_us,
            end_us,
            reading.history.fingerprint,
            # Rows past their ttl are among the rows of a run, or not.
            view_fingerprint(run.view) + ("" if reading.leaves_out_expired else "+expired"),
            "overwrite" if run.method == "overwrite" else "newest_wins",
        )
        checkpoint = Checkpoint.open(
            self.connection.client,
            report.table,
            identity,
            resume=self.settings.resume,
            is_series=is_series,
        )

        def found(newest: Newest) -> None:
            report.read, report.expired = newest.read, newest.expired
            report.incomplete = newest.incomplete
            say_why_nothing(run.view, reading.window, newest, is_incremental=run.is_incremental)

        def looked_at(rows: int) -> None:
            if self._is_over.is_set():
                raise KeyboardInterrupt
            lease.check()
            report.read += rows

        spool = reading.spooled(checkpoint.buckets, checkpoint.done, found, looked_at)
        report.to_write, report.resumed = int(spool.rows.sum()), spool.resumed
        if checkpoint.buckets is None:
            checkpoint.begin(spool.buckets, report.to_write)
        # A run of a range that somebody chose says nothing of what came late outside of it.
        if position is not None and (run.is_incremental or since is None):
            self._positions[report.view] = position
        return checkpoint, spool

    async def _write(
        self,
        run: ViewRun,
        shared: _Shared,
        lease: Lease,
        checkpoint: Checkpoint,
        spool: Spool,
    ) -> None:
        report = run.report
        fill_services = await shared.in_thread(run.services)
        schema = spool.schema
        await self.connection.schemas.declare(
            report.table, schema, self.connection.writer, is_series=spool.is_series
        )
        limiter = AdaptiveLimiter(self.settings.max_write_workers, shared.ceiling, shared.places)
        writing = ViewWriting(
            self.connection,
            report,
            run.method,
            limiter,
            lease,
            checkpoint,
            spool,
            shared.in_thread,
        )
        await writing.all_buckets()
        position = self._positions.pop(report.view, None)
        if position is not None:
            client = self.connection.client
            note = partial(position.note, client, report.table, is_series=spool.is_series)
            await shared.in_thread(note)
        await shared.in_thread(fill_services)


@dataclass(frozen=True)
class _Shared:
    """What the views of a run share."""

    threads: ThreadPoolExecutor
    reading: asyncio.Lock
    views: asyncio.Semaphore
    places: asyncio.Semaphore
    ceiling: RateLimiter

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)
