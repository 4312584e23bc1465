"""Requests that are there at once are answered together; one by one they would queue anyway.

On one event loop: a request that finds nothing at work is answered at once. While it is, the next
batch gathers by itself. After a batch of several, the next one waits until as many are there
again, or for `max_wait_s`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from feast_dynamo_ext.errors import UNAVAILABLE, FeastDynamoError, InvocationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

logger = logging.getLogger(__name__)

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass
class _Waiting(Generic[Request, Answer]):
    request: Request
    rows: int
    future: asyncio.Future[Answer]


class MicroBatcher(Generic[Request, Answer]):
    """Gathers requests for a function that answers many at once. Of one event loop.

    Args:
        answer: gets requests, gives an answer each, in order.
        max_wait_s: seconds that a batch may wait for more requests, after its first.
        max_batch_rows: rows of a batch; a request with more is a batch alone.
        max_queued_rows: rows that may wait; requests beyond are refused.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]],
        *,
        max_wait_s: float,
        max_batch_rows: int,
        max_queued_rows: int,
    ) -> None:
        self._answer = answer
        self._max_wait_s = max_wait_s
        self._max_batch_rows = max_batch_rows
        self._max_queued_rows = max_queued_rows
        self._queue: deque[_Waiting[Request, Answer]] = deque()
        self._queued_rows = 0
        self._last_size = 1
        self._gathering: asyncio.Future[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._is_closed = False

    async def submit(self, request: Request, rows: int) -> Answer:
        """The answer of a request, or its own error.

        Raises:
            InvocationError: 503, the queue is full or closed.
        """
        if self._is_closed:
            raise InvocationError("The server is stopping. Try again.", UNAVAILABLE)
        if self._queue and self._queued_rows + rows > self._max_queued_rows:
            raise InvocationError(
                f"{self._queued_rows} rows wait already, the most are {self._max_queued_rows}. "
                "Try again later.",
                UNAVAILABLE,
            )
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Request, Answer] = _Waiting(request, rows, loop.create_future())
        self._queue.append(waiting)
        self._queued_rows += rows
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        elif self._gathering is not None and self._is_gathered():
            _settle(self._gathering)
        return await waiting.future

    async def close(self) -> None:
        """Answer what waits, and stop."""
        self._is_closed = True
        if self._gathering is not None:
            _settle(self._gathering)
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        try:
            while self._queue:
                # Who gave up meanwhile is not read for.
                batch = [one for one in await self._next() if not one.future.done()]
                if batch:
                    await self._deal(batch)
        finally:
            self._worker = None

    def _is_gathered(self) -> bool:
        return len(self._queue) >= self._last_size or self._queued_rows >= self._max_batch_rows

    async def _next(self) -> list[_Waiting[Request, Answer]]:
        if self._max_wait_s and not self._is_gathered() and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._gathering = loop.create_future()
            timer = loop.call_later(self._max_wait_s, _settle, self._gathering)
            await self._gathering
            timer.cancel()
            self._gathering = None
        batch: list[_Waiting[Request, Answer]] = []
        rows = 0
        while self._queue and (not batch or rows + self._queue[0].rows <= self._max_batch_rows):
            batch.append(self._queue.popleft())
            rows += batch[-1].rows
        self._queued_rows -= rows
        self._last_size = len(batch)
        return batch

    async def _deal(self, batch: list[_Waiting[Request, Answer]]) -> None:
        try:
            answers = await self._answer([one.request for one in batch])
        except Exception as error:  # noqa: BLE001 - it is each request's own
            if len(batch) > 1 and not _of_all(error):
                # One of them spoils the others: each by itself, and its error is its own.
                logger.info("a batch of %d requests failed, each is read alone", len(batch))
                for one in batch:
                    await self._deal([one])
                return
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            if not one.future.done():
                one.future.set_result(answer)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _of_all(error: Exception) -> bool:
    """Whether the store did not answer, which no other request would make better."""
    return isinstance(error, FeastDynamoError) and error.http_status == UNAVAILABLE
