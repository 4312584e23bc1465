"""Writes the spooled rows of one view, bucket by bucket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.outcome import Outcome
from feast_dynamo_ext.dynamo.row_batch import EncodedBlock
from feast_dynamo_ext.dynamo.services.renew import with_vectors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from feast_dynamo_ext.dynamo.connection import Connection
    from feast_dynamo_ext.dynamo.pace import Pace
    from feast_dynamo_ext.dynamo.writer import How
    from feast_dynamo_ext.materialize.checkpoint import Checkpoint
    from feast_dynamo_ext.materialize.lease import Lease
    from feast_dynamo_ext.materialize.report import ViewReport
    from feast_dynamo_ext.materialize.spool import Spool

    InThread = Callable[[Callable[[], Any]], Awaitable[Any]]

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
        how: how they are written.
        pace: of the view's table.
        lease: held; checked before each request.
        checkpoint: told of each bucket that is done.
        spool: the rows.
        in_thread: does what would hold up the loop.
    """

    connection: Connection
    report: ViewReport
    how: How
    pace: Pace
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
        report, pace = self.report, self.pace
        pace.on_change = lambda: report.note_use(pace.units, pace.throttles)
        pace.check = self.lease.check
        self._writer = self.connection.writer.at_pace(pace)
        self._next = asyncio.Lock()
        self._blocks = self._read_blocks()
        self._failed: list[BaseException] = []
        await asyncio.gather(*(self._lane() for _ in range(LANES)), return_exceptions=True)
        if self._failed:
            raise self._failed[0]

    def _read_blocks(self) -> Iterator[tuple[_Bucket, EncodedBlock | None]]:
        """The blocks of each bucket, and None where it ends."""
        for number in self.spool.todo:
            bucket = _Bucket(number, int(self.spool.rows[number]))
            for rows in self.spool.blocks(number):
                bucket.pending += 1
                block = EncodedBlock(rows)
                # Made here, in a thread, rather than when the first request is sent.
                self._prepare(block)
                yield bucket, block
            yield bucket, None

    def _prepare(self, block: EncodedBlock) -> None:
        _ = block.units
        if self.how == "overwrite":
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
                    await self._write_block(block)
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

        def told(outcome: Outcome) -> None:
            nonlocal done
            done += outcome
            report.written += outcome.written
            report.older += outcome.older
            report.failed += len(outcome.unwritten)
            # At once: on a throttled table each further request would wait for its own deadline.
            done.checked(table)

        write = self._writer.write_batches(table, block.batches(), told, self.how)
        await with_vectors(self.connection, table, block.rows.keys.to_pylist, write)
