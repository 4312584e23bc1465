"""Requests that are there at once are answered together, one by one they would queue anyway.

One thread takes what waits, in order, up to a number of rows, answers it with one call, and deals
the answers back. While it works, the next batch gathers by itself, so a lone request never waits;
`max_wait_s` lets a batch wait for more where the one before it held several.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from feast_dynamo_ext.errors import UNAVAILABLE, FeastDynamoError, InvocationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass
class _Waiting(Generic[Request, Answer]):
    request: Request
    rows: int
    future: Future[Answer] = field(default_factory=Future)


class MicroBatcher(Generic[Request, Answer]):
    """Gathers requests for a function that answers many at once.

    Args:
        answer: gets requests, gives an answer each, in order.
        max_wait_s: seconds that a batch may wait for more requests, after its first.
        max_batch_rows: rows of a batch; a request with more is a batch alone.
        max_queued_rows: rows that may wait; requests beyond are refused.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], Sequence[Answer]],
        *,
        max_wait_s: float,
        max_batch_rows: int,
        max_queued_rows: int,
    ) -> None:
        self._answer = answer
        self._max_wait_s = max_wait_s
        self._max_batch_rows = max_batch_rows
        self._max_queued_rows = max_queued_rows
        self._changed = threading.Condition()
        self._queue: deque[_Waiting[Request, Answer]] = deque()
        self._queued_rows = 0
        self._closed = False
        self._several = False
        self._thread = threading.Thread(target=self._work, name="micro-batcher", daemon=True)
        self._thread.start()

    def submit(self, request: Request, rows: int) -> Future[Answer]:
        """Queue a request; its future holds the answer, or its own error.

        Raises:
            InvocationError: 503, the queue is full or closed.
        """
        waiting: _Waiting[Request, Answer] = _Waiting(request, rows)
        with self._changed:
            if self._closed:
                raise InvocationError("The server is stopping. Try again.", UNAVAILABLE)
            if self._queue and self._queued_rows + rows > self._max_queued_rows:
                raise InvocationError(
                    f"{self._queued_rows} rows wait already, the most are "
                    f"{self._max_queued_rows}. Try again later.",
                    UNAVAILABLE,
                )
            self._queue.append(waiting)
            self._queued_rows += rows
            self._changed.notify()
        return waiting.future

    def close(self) -> None:
        """Answer what waits, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            # One that was cancelled meanwhile is not read for.
            batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if batch:
                self._deal(batch)

    def _next(self) -> list[_Waiting[Request, Answer]]:
        """The next batch; none once it is closed and all is answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._several and self._max_wait_s and not self._closed:
                until = time.monotonic() + self._max_wait_s
                while self._queued_rows < self._max_batch_rows and not self._closed:
                    if not self._changed.wait(until - time.monotonic()):
                        break
            batch: list[_Waiting[Request, Answer]] = []
            rows = 0
            while self._queue and (
                not batch or rows + self._queue[0].rows <= self._max_batch_rows
            ):
                batch.append(self._queue.popleft())
                rows += batch[-1].rows
            self._queued_rows -= rows
            self._several = len(batch) > 1
            return batch

    def _deal(self, batch: list[_Waiting[Request, Answer]]) -> None:
        try:
            answers = self._answer([one.request for one in batch])
        except Exception as error:  # noqa: BLE001 - it is each request's own
            if len(batch) > 1 and not _of_all(error):
                # One of them spoils the others: each by itself, and its error is its own.
                logger.info("a batch of %d requests failed, each is read alone", len(batch))
                for one in batch:
                    self._deal([one])
                return
            for one in batch:
                one.future.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            one.future.set_result(answer)


def _of_all(error: Exception) -> bool:
    """Whether the store did not answer, which no other request would make better."""
    return isinstance(error, FeastDynamoError) and error.http_status == UNAVAILABLE
