"""When and what to send again: full-jitter backoff under a deadline, and what a batch left over.

`send` is the one loop around a request, `drain` repeats it for what an answer left out.

Full jitter: wait a random time between 0 and min(cap, base * 2^attempt), see
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

DynamoDB answers a batch in part when it throttles, when the answer passes 16 MB, or when one
partition's share passes 1 MB; what it left out comes back in the answer and must be asked again.
https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext.errors import (
    AwsError,
    AwsUnavailableError,
    ResourceNotFoundError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from feast_dynamo_ext.dynamo.transport import Answer


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often to try.

    Attributes:
        deadline_s: seconds from the first request until the call gives up.
        base_s: upper bound of the first wait, seconds.
        cap_s: upper bound of any wait, seconds.
        max_failures: how many requests in a row may fail outright (timeouts, resets, 5xx) before
            the call gives up; None for no limit but the deadline. Throttling and unprocessed keys
            are answers, not failures: only the deadline ends them.
        sleep: waits the given seconds, on an event loop.
        clock: seconds of a monotonic clock.
        jitter: a random number of [0, 1).
    """

    deadline_s: float
    base_s: float = 0.025
    cap_s: float = 2.0
    max_failures: int | None = 3
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    # Spreads retries of many clients; nothing secret depends on it.
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def start(self) -> Attempts:
        """Begin a call."""
        return Attempts(self, self.clock())


@dataclass
class Attempts:
    """The state of one call under a policy."""

    policy: RetryPolicy
    started_s: float
    waits: int = 0
    failures: int = 0

    def failed(self) -> bool:
        """Count a request that failed outright; whether another may be sent."""
        self.failures += 1
        limit = self.policy.max_failures
        return limit is None or self.failures < limit

    def answered(self) -> None:
        """Note an answer: failures are counted in a row."""
        self.failures = 0

    def left_s(self) -> float:
        """Seconds until the deadline, not less than none."""
        return max(0.0, self.policy.deadline_s - (self.policy.clock() - self.started_s))

    def next_pause_s(self) -> float | None:
        """How long to wait before the next request; None where the deadline would pass."""
        bound = min(self.policy.cap_s, self.policy.base_s * 2.0**self.waits)
        pause = bound * self.policy.jitter()
        if pause > self.left_s():
            return None
        self.waits += 1
        return pause

    async def wait(self) -> bool:
        """Wait before the next request; False, at once, where the deadline would pass."""
        pause = self.next_pause_s()
        if pause is None:
            return False
        await self.policy.sleep(pause)
        return True


logger = logging.getLogger(__name__)

Pending = dict[str, Any]
"""What is left to do, by table name: the RequestItems of the next request."""


class Transport(Protocol):
    """What a batch needs of the connection."""

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Answer:
        """Send one request and give back its decoded answer."""
        ...


PASSING = (ThrottledError, AwsUnavailableError)
"""What a later, identical request may get past."""


async def send(
    transport: Transport, operation: str, body: Any, tables: Collection[str], attempts: Attempts
) -> Answer:
    """Send a request until it is answered.

    Args:
        transport: the connection.
        operation: API operation.
        body: its input.
        tables: the tables that it is about.
        attempts: when to send again and when to give up; further requests of the same call may
            follow under the same ones.

    Raises:
        ThrottledError: the deadline came.
        AwsUnavailableError: the deadline came, or too many requests in a row failed.
        ResourceNotFoundError: one of the tables does not exist.
        AwsError: AWS refused the request, and would refuse it again.
    """
    resource = ", ".join(sorted(tables))
    while True:
        try:
            answer = await transport.call(operation, body, resource, attempts.left_s())
        except PASSING as error:  # noqa: PERF203 - a request each
            may_retry = isinstance(error, ThrottledError) or attempts.failed()
            if not may_retry or not await attempts.wait():
                raise
            logger.debug("%s: sending again for %s", operation, resource)
        except ResourceNotFoundError as error:
            raise no_table(error, tables) from error
        else:
            attempts.answered()
            return answer


class UnprocessedItems(Exception):  # noqa: N818 - not an error of its own: reader and writer turn it into one
    """The deadline came with something left.

    Attributes:
        pending: what is left, by table.
        cause: the last failure, if the last request failed.
    """

    def __init__(self, pending: Pending, cause: AwsError | None) -> None:
        super().__init__("DynamoDB left them unprocessed, as it does when it throttles.")
        self.pending = pending
        self.cause = cause


async def drain(
    transport: Transport,
    operation: str,
    pending: Pending,
    unprocessed: str,
    policy: RetryPolicy,
    take: Callable[[Answer], bool] | None = None,
) -> None:
    """Send `pending`, then what the answer left out, until nothing is left.

    Args:
        transport: the connection.
        operation: ``BatchGetItem`` or ``BatchWriteItem``.
        pending: RequestItems of the first request.
        unprocessed: the answer's field that holds what it left out, in the form of RequestItems.
        policy: when to send again and when to give up.
        take: is given each answer; True if it was full: what it left out is then asked for at
            once, as waiting would not change it.

    Raises:
        UnprocessedItems: the deadline came, or too many requests in a row failed.
        ResourceNotFoundError: one of the tables does not exist.
        AwsError: AWS refused the request, and would refuse it again.
    """
    attempts = policy.start()
    while pending:
        try:
            answer = await send(transport, operation, {"RequestItems": pending}, pending, attempts)
        except PASSING as failure:
            raise UnprocessedItems(pending, failure) from failure
        is_full = take is not None and take(answer)
        pending = answer.get(unprocessed) or {}
        if pending and not is_full and not await attempts.wait():
            raise UnprocessedItems(pending, None)


def no_table(error: AwsError, tables: Collection[str]) -> ResourceNotFoundError:
    """The error that one of the tables of a request does not exist."""
    # DynamoDB does not say which one.
    which = "one of " if len(tables) > 1 else ""
    return ResourceNotFoundError(
        f"DynamoDB table not found: {which}{', '.join(sorted(tables))}. Run `feast apply` to "
        "create it; if it exists, check `region`, `endpoint_url` and `table_name_template` in "
        "feature_store.yaml.",
        service=error.service,
        operation=error.operation,
        code=error.code,
        request_id=error.request_id,
    )
