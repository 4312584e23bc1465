"""Writes rows with BatchWriteItem until each is stored, or says which are not."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.batch import Leftover, Pending, Wire, drain
from feast_dynamo_ext.dynamo.item import KEY
from feast_dynamo_ext.errors import IncompleteWriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Executor

    from feast_dynamo_ext.dynamo.item import JsonItem
    from feast_dynamo_ext.dynamo.retry import RetryPolicy

MAX_ITEMS_PER_REQUEST = 25  # BatchWriteItem's limit


@dataclass(frozen=True)
class Writer:
    """Writes items, replacing what their keys held.

    Attributes:
        wire: the connection.
        policy: retries and deadline of one request.
        executor: runs the requests of one write side by side.
    """

    wire: Wire
    policy: RetryPolicy
    executor: Executor

    def write(
        self,
        table: str,
        items: Sequence[JsonItem],
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        """Write all items; `progress` is told the number of items after each request.

        Raises:
            IncompleteWriteError: rows that are not in the table at the deadline, named. All other
                rows of the call are written.
            ResourceNotFoundError: the table does not exist.
            AwsError: AWS refused the request.
        """
        requests = [
            {
                table: [
                    {"PutRequest": {"Item": item}}
                    for item in items[start : start + MAX_ITEMS_PER_REQUEST]
                ]
            }
            for start in range(0, len(items), MAX_ITEMS_PER_REQUEST)
        ]
        unwritten: list[bytes] = []
        cause: Exception | None = None
        run = map if len(requests) == 1 else self.executor.map
        for request, leftover in zip(requests, run(self._write_one, requests), strict=True):
            left = list(_keys_left(leftover.pending)) if leftover else []
            if leftover is not None:
                unwritten += left
                cause = leftover.cause or leftover
            if progress is not None:
                progress(len(request[table]) - len(left))
        if unwritten:
            raise _incomplete(table, unwritten, len(items), cause) from cause

    def _write_one(self, request: Pending) -> Leftover | None:
        try:
            for _ in drain(self.wire, "BatchWriteItem", request, "UnprocessedItems", self.policy):
                pass
        except Leftover as leftover:
            return leftover
        return None


def _keys_left(pending: Pending) -> Iterable[bytes]:
    for puts in pending.values():
        for put in puts:
            yield base64.b64decode(put["PutRequest"]["Item"][KEY]["B"])


def _incomplete(
    table: str, unwritten: list[bytes], total: int, cause: Exception | None
) -> IncompleteWriteError:
    why = f" Last answer: {cause}" if cause is not None else ""
    return IncompleteWriteError(
        f"Table {table}: {len(unwritten):,} of {total:,} rows are not written; their "
        f"keys are in the error's `unwritten`.{why} The others are: write the same rows again.",
        unwritten=unwritten,
    )
