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

from feast_dynamo_ext.aws import ADVICE
from feast_dynamo_ext.errors import (
    AwsError,
    AwsUnavailableError,
    ResourceNotFoundError,
    ThrottledError,
)
from feast_dynamo_ext.forks import Lock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from feast_dynamo_ext.dynamo.transport import Answer


RETRY_COST, FAILURE_COST = 5.0, 10.0
"""Of a request that is sent again: after an answer, and after none."""


class RetryBudget:
    """How many requests a process may send again, as botocore's standard mode has it.

    Each retry takes from the budget, an answer gives back what its retry took, and one that needed
    none gives a little. Where nothing is answered, the budget is soon spent: calls then fail at
    their first failure, instead of sending a service in trouble several times what it cannot take.
    Safe to share between threads and event loops.

    Attributes:
        most: of a process that had no failures.
        left: what is left of it.
    """

    def __init__(self, most: float = 500.0) -> None:
        self.most = self.left = most
        self._lock = Lock()

    @property
    def is_spent(self) -> bool:
        """Whether no request may be sent again."""
        return self.left < RETRY_COST

    def take(self, cost: float) -> bool:
        """Take a retry's cost; False where there is not enough left."""
        with self._lock:
            if self.left < cost:
                return False
            self.left -= cost
            spent = self.is_spent
        if spent:
            logger.warning(
                "DynamoDB has failed or throttled so many requests that none is sent again until "
                "others are answered"
            )
        return True

    def give(self, amount: float) -> None:
        """Give some back."""
        with self._lock:
            self.left = min(self.most, self.left + amount)


@dataclass(eq=False)
class Window:
    """How many requests for a table that was throttled may be in flight."""

    table: str
    size: float
    halved_s: float
    in_flight: int = 0


class ServingLimiter:
    """Holds back requests for tables that were throttled lately, of all event loops of a process.

    A table's window is half of the connections when it is first throttled, is halved again where
    it still is, and grows by one for each window's worth of answers until it holds back nothing:
    additive increase, multiplicative decrease, as `limiter` has it for a run of writes. Of a table
    that was not throttled nothing is counted.

    Attributes:
        windows: of the tables that were throttled.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.windows: dict[str, Window] = {}
        self._most, self._clock = most, clock
        self._lock = Lock()

    def enter(self, tables: Iterable[str]) -> list[Window] | None:
        """Begin a request; `leave` must follow. None where it is to wait."""
        with self._lock:
            turn = [self.windows[table] for table in tables if table in self.windows]
            if any(window.in_flight >= int(window.size) for window in turn):
                return None
            for window in turn:
                window.in_flight += 1
            return turn

    def leave(self, turn: list[Window]) -> None:
        """End a request."""
        with self._lock:
            for window in turn:
                window.in_flight -= 1

    def answered(self, turn: list[Window]) -> None:
        """Widen the windows: a request was answered."""
        with self._lock:
            for window in turn:
                window.size += 1 / window.size
                if window.size >= self._most:
                    self.windows.pop(window.table, None)

    def throttled(self, tables: Iterable[str], sent_s: float) -> None:
        """Halve the windows, unless they were since the request was sent."""
        now_s = self._clock()
        with self._lock:
            for table in tables:
                window = self.windows.get(table)
                if window is None:
                    self.windows[table] = Window(table, max(1.0, self._most / 2), now_s)
                elif sent_s > window.halved_s:
                    window.size, window.halved_s = max(1.0, window.size / 2), now_s


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
        budget: what the process has left for retries; None for no limit.
        limiter: holds back requests for tables that were throttled; None for none.
        sleep: waits the given seconds, on an event loop.
        clock: seconds of a monotonic clock.
        jitter: a random number of [0, 1).
    """

    deadline_s: float
    base_s: float = 0.025
    cap_s: float = 2.0
    max_failures: int | None = 3
    budget: RetryBudget | None = field(default=None, repr=False, compare=False)
    limiter: ServingLimiter | None = field(default=None, repr=False, compare=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    # Spreads retries of many clients; nothing secret depends on it.
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def start(self, started_s: float | None = None) -> Attempts:
        """Begin a request, of a call that has begun at a moment, or now."""
        return Attempts(self, self.clock() if started_s is None else started_s)


@dataclass
class Attempts:
    """The state of one call under a policy."""

    policy: RetryPolicy
    started_s: float
    waits: int = 0
    failures: int = 0
    taken: float = 0.0

    def failed(self) -> bool:
        """Count a request that failed outright; whether another may be sent."""
        self.failures += 1
        limit = self.policy.max_failures
        return limit is None or self.failures < limit

    def answered(self) -> None:
        """Note an answer: failures are counted in a row."""
        self.failures = 0
        budget = self.policy.budget
        if budget is not None and budget.left < budget.most:
            budget.give(self.taken or 1.0)
            self.taken = 0.0

    def fruitless(self) -> None:
        """Note that the answer had nothing of what was wanted: it gives back nothing."""
        if self.policy.budget is not None:
            self.policy.budget.take(1.0)

    def throttled(self, tables: Iterable[str], sent_s: float | None = None) -> None:
        """Note that tables were throttled."""
        if self.policy.limiter is not None:
            self.policy.limiter.throttled(tables, self.started_s if sent_s is None else sent_s)

    def left_s(self) -> float:
        """Seconds until the deadline, not less than none."""
        return max(0.0, self.policy.deadline_s - (self.policy.clock() - self.started_s))

    def next_pause_s(self, cost: float = RETRY_COST) -> float | None:
        """How long to wait before the next request; None where there is to be none.

        The deadline would pass, or the budget is spent.
        """
        bound = min(self.policy.cap_s, self.policy.base_s * 2.0**self.waits)
        pause = bound * self.policy.jitter()
        if pause > self.left_s():
            return None
        if self.policy.budget is not None:
            if not self.policy.budget.take(cost):
                return None
            self.taken = cost
        self.waits += 1
        return pause

    async def wait(self, cost: float = RETRY_COST) -> bool:
        """Wait before the next request; False, at once, where there is to be none."""
        pause = self.next_pause_s(cost)
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
    limiter = attempts.policy.limiter
    while True:
        turn = None
        # Nearly always nothing was throttled lately, and there is nothing to wait for.
        if limiter is not None and limiter.windows:
            turn = await _turn(limiter, tables, attempts, operation)
        sent_s = attempts.policy.clock()
        try:
            answer = await transport.call(operation, body, resource, attempts.left_s())
        except PASSING as error:
            is_throttled = isinstance(error, ThrottledError)
            if is_throttled:
                attempts.throttled(tables, sent_s)
            may_retry = is_throttled or attempts.failed()
            if not may_retry or not await attempts.wait(
                RETRY_COST if is_throttled else FAILURE_COST
            ):
                raise
            logger.debug("%s: sending again for %s", operation, resource)
        except ResourceNotFoundError as error:
            raise no_table(error, tables) from error
        else:
            attempts.answered()
            if turn is not None and limiter is not None:
                limiter.answered(turn)
            return answer
        finally:
            if turn is not None and limiter is not None:
                limiter.leave(turn)


async def _turn(
    limiter: ServingLimiter, tables: Collection[str], attempts: Attempts, operation: str
) -> list[Window]:
    """Wait until a request for tables may be sent, some of which were throttled.

    Raises:
        ThrottledError: the deadline came.
    """
    policy = attempts.policy
    while (turn := limiter.enter(tables)) is None:
        pause = policy.base_s * policy.jitter()
        if pause > attempts.left_s():
            raise ThrottledError(
                f"dynamodb {operation} on {', '.join(sorted(tables))}: DynamoDB throttles, and "
                f"others wait for the same tables. {ADVICE[ThrottledError]}",
                service="dynamodb",
                operation=operation,
            )
        await policy.sleep(pause)
    return turn


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
    started_s: float | None = None,
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
        started_s: when the call began that this is a part of; None for now.

    Raises:
        UnprocessedItems: the deadline came, or too many requests in a row failed.
        ResourceNotFoundError: one of the tables does not exist.
        AwsError: AWS refused the request, and would refuse it again.
    """
    attempts = policy.start(started_s)
    while pending:
        if started_s is not None and not attempts.left_s():
            raise UnprocessedItems(pending, None)
        try:
            answer = await send(transport, operation, {"RequestItems": pending}, pending, attempts)
        except PASSING as failure:
            raise UnprocessedItems(pending, failure) from failure
        is_full = take is not None and take(answer)
        sent, pending = pending, answer.get(unprocessed) or {}
        if pending and not is_full:
            attempts.throttled(pending)
            if attempts.policy.budget is not None and _count(pending) == _count(sent):
                attempts.fruitless()
            if not await attempts.wait():
                raise UnprocessedItems(pending, None)


def _count(pending: Pending) -> int:
    """How many keys or puts; puts that are encoded already, as a run's, do not count."""
    lists = [entry["Keys"] if isinstance(entry, dict) else entry for entry in pending.values()]
    return sum(len(each) for each in lists if isinstance(each, (list, tuple)))


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
