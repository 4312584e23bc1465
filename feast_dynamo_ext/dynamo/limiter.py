"""How fast a run writes: requests in flight follow what DynamoDB grants, units a ceiling.

Each table has a window of requests in flight that grows by one for each window's worth of answers
and is halved where DynamoDB throttles (additive increase, multiplicative decrease, as TCP does,
RFC 5681, section 3.1). A request that was sent before the last halving does not halve again: it
says nothing about the new window.

The ceiling is in write units a second, all tables together. Before a request is sent its units are
taken from the time to come; once its answer says what it consumed, the difference is put right.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import AwsError, ThrottledError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from feast_dynamo_ext.dynamo.retry import Transport
    from feast_dynamo_ext.dynamo.transport import Answer


FIRST_WINDOW = 4.0

# Of single statements; https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchStatementError.html
THROTTLED_STATEMENTS = {
    "ProvisionedThroughputExceeded",
    "ThrottlingError",
    "RequestLimitExceeded",
}


@dataclass
class RateLimiter:
    """At most so many write units a second, over all tables of a run. For one event loop.

    Attributes:
        units_per_s: None for no ceiling.
        sleep: waits the given seconds.
        clock: seconds of a monotonic clock.
    """

    units_per_s: float | None = None
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _free_at_s: float = field(default=float("-inf"), init=False, repr=False)

    async def take(self, units: float) -> None:
        """Wait until so many units may be consumed."""
        if self.units_per_s is None:
            return
        now = self.clock()
        start = max(now, self._free_at_s)
        self._free_at_s = start + units / self.units_per_s
        if start > now:
            await self.sleep(start - now)

    def correct(self, units: float) -> None:
        """Note that so many units more were consumed than were taken, or fewer."""
        if self.units_per_s is not None:
            self._free_at_s += units / self.units_per_s


@dataclass
class AdaptiveLimiter:
    """The window of one table, and what its requests consumed. For one event loop.

    Attributes:
        most: requests in flight at most.
        ceiling: of the run.
        places: requests in flight at most, of all tables of a run; None for no limit but `most`.
        on_change: called when `units` or `throttles` have changed.
        check: called before each request; what it raises ends the write.
        window: requests that may be in flight now.
        units: write units consumed, as DynamoDB said, else as the items' sizes say.
        throttles: requests that were throttled, in whole or in part.
    """

    most: int
    ceiling: RateLimiter = field(default_factory=RateLimiter)
    places: asyncio.Semaphore | None = None
    on_change: Callable[[], Any] | None = field(default=None, repr=False)
    check: Callable[[], Any] | None = field(default=None, repr=False)
    window: float = FIRST_WINDOW
    units: float = 0.0
    throttles: int = 0
    _in_flight: int = field(default=0, init=False, repr=False)
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque, init=False, repr=False)
    _halved_at_s: float = field(default=float("-inf"), init=False, repr=False)

    @contextlib.asynccontextmanager
    async def turn(self, transport: Transport, units: float) -> AsyncIterator[Permit]:
        """Wait for a place in the window, and for units; requests go through the turn.

        Args:
            transport: the connection.
            units: write units that the requests will probably consume.
        """
        await self._enter()
        try:
            async with self.places or contextlib.nullcontext():
                await self.ceiling.take(units)
                turn = Permit(transport, self, units)
                try:
                    yield turn
                finally:
                    self.ceiling.correct(turn.units - units)
        finally:
            self._leave()

    def answered(self) -> None:
        """Widen the window: a request was answered in full."""
        self.window = min(float(self.most), self.window + 1 / self.window)

    def throttled(self, sent_at_s: float) -> None:
        """Halve the window: a request was throttled."""
        self.throttles += 1
        if sent_at_s > self._halved_at_s:
            self.window = max(1.0, self.window / 2)
            self._halved_at_s = self.ceiling.clock()

    async def _enter(self) -> None:
        if self._in_flight >= int(self.window):
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except BaseException:
                if place.done() and not place.cancelled():
                    self._leave()
                raise
        else:
            self._in_flight += 1

    def _leave(self) -> None:
        """Give up a place; those who wait get as many as the window has by now."""
        self._in_flight -= 1
        while self._waiting and self._in_flight < int(self.window):
            place = self._waiting.popleft()
            if not place.done():
                self._in_flight += 1
                place.set_result(None)


@dataclass
class Permit:
    """A connection whose answers the limiter learns from.

    Attributes:
        transport: the connection.
        limiter: learns.
        expected: write units that one request will probably consume.
        units: write units that were consumed.
    """

    transport: Transport
    limiter: AdaptiveLimiter
    expected: float
    units: float = 0.0

    @property
    def is_on_loopback(self) -> bool:
        """Whether requests stay on this machine, as those to a stand-in of DynamoDB do."""
        return bool(getattr(self.transport, "is_on_loopback", False))

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Answer:
        """Send one request and give back its decoded answer; see `DynamoWire.call`."""
        if self.limiter.check is not None:
            self.limiter.check()
        sent_at_s = self.limiter.ceiling.clock()
        asking = {**body, "ReturnConsumedCapacity": "TOTAL"}
        try:
            answer = await self.transport.call(operation, asking, resource, timeout_s)
        except ThrottledError:
            self.limiter.throttled(sent_at_s)
            self._changed()
            raise
        except AwsError as error:
            if error.code == "ConditionalCheckFailedException":
                # Billed as the write that it was not.
                self._count(None)
                self.limiter.answered()
                self._changed()
            raise
        self._count(answer.get("ConsumedCapacity"))
        if _is_throttled(answer):
            self.limiter.throttled(sent_at_s)
        else:
            self.limiter.answered()
        self._changed()
        return answer

    def _count(self, consumed: Any) -> None:
        if consumed is None:
            # DynamoDB Local and moto do not say it of each operation.
            units = self.expected
        else:
            several = consumed if isinstance(consumed, list) else [consumed]
            units = sum(each.get("CapacityUnits", 0.0) for each in several)
        self.units += units
        self.limiter.units += units

    def _changed(self) -> None:
        if self.limiter.on_change is not None:
            self.limiter.on_change()


def _is_throttled(answer: Answer) -> bool:
    if answer.get("UnprocessedItems"):
        return True
    return any(
        response["Error"].get("Code") in THROTTLED_STATEMENTS
        for response in answer.get("Responses") or ()
        if "Error" in response
    )
