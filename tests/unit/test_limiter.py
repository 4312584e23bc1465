"""How many requests are in flight, and how many units they take, on a clock of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from feast_dynamo_ext.dynamo.limiter import AdaptiveLimiter, RateLimiter
from feast_dynamo_ext.errors import ThrottledError

FULL = {"UnprocessedItems": {}}
IN_PART = {"UnprocessedItems": {"t": [{"PutRequest": {}}]}}


@dataclass
class Clock:
    """Time that passes only when somebody sleeps, who then wakes in the order of time."""

    now_s: float = 0.0
    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)

    def ceiling(self, units_per_s: float | None = None) -> RateLimiter:
        return RateLimiter(units_per_s, self.sleep, lambda: self.now_s)


@dataclass
class Scripted:
    """A connection that gives the answers it is told to, and counts what is in flight."""

    answers: list[Any]
    in_flight: int = 0
    most: int = 0
    bodies: list[Any] = field(default_factory=list)

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Any:
        self.bodies.append(body)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        answer = self.answers.pop(0) if self.answers else FULL
        if isinstance(answer, Exception):
            raise answer
        return answer


async def write(
    limiter: AdaptiveLimiter, transport: Scripted, times: int, units: float = 25
) -> None:
    async def one() -> None:
        async with limiter.turn(transport, units) as turn:
            await turn.call("BatchWriteItem", {"RequestItems": {}}, "t")

    await asyncio.gather(*(one() for _ in range(times)))


def test_the_window_grows_by_one_for_each_window_of_answers_up_to_the_most() -> None:
    clock, transport = Clock(), Scripted([])
    limiter = AdaptiveLimiter(6, clock.ceiling())
    asyncio.run(write(limiter, transport, 4))
    assert 4.8 < limiter.window < 5
    assert transport.most == 4
    asyncio.run(write(limiter, transport, 200))
    assert limiter.window == 6
    assert transport.most == 6


def test_throttling_halves_the_window_once_for_all_requests_that_were_in_flight() -> None:
    clock = Clock(1.0)
    limiter = AdaptiveLimiter(16, clock.ceiling(), window=16.0)
    sent_together = [clock.now_s] * 3
    clock.now_s = 2.0
    for sent_at_s in sent_together:
        limiter.throttled(sent_at_s)
        clock.now_s += 1.0
    assert (limiter.window, limiter.throttles) == (8, 3)
    limiter.throttled(clock.now_s)
    assert (limiter.window, limiter.throttles) == (4, 4)


@pytest.mark.parametrize(
    "answer",
    [
        IN_PART,
        ThrottledError("slow down"),
        {"Responses": [{}, {"Error": {"Code": "ThrottlingError"}}]},
        {"Responses": [{"Error": {"Code": "ProvisionedThroughputExceeded"}}]},
    ],
)
def test_every_form_of_throttling_is_seen(answer: Any) -> None:
    limiter = AdaptiveLimiter(8, Clock().ceiling(), window=8.0)

    async def one() -> None:
        async with limiter.turn(Scripted([answer]), 25) as turn:
            try:
                await turn.call("BatchExecuteStatement", {}, "t")
            except ThrottledError:
                assert isinstance(answer, ThrottledError)

    asyncio.run(one())
    assert (limiter.window, limiter.throttles) == (4, 1)


def test_failed_conditions_are_no_throttling() -> None:
    limiter = AdaptiveLimiter(8, Clock().ceiling(), window=4.0)
    failed = {"Responses": [{"Error": {"Code": "ConditionalCheckFailed"}}]}
    asyncio.run(write(limiter, Scripted([failed]), 1))
    assert (limiter.window, limiter.throttles) == (4.25, 0)


def test_the_window_never_falls_below_one() -> None:
    clock = Clock()
    limiter = AdaptiveLimiter(8, clock.ceiling())
    for second in range(1, 6):
        limiter.throttled(clock.now_s)
        clock.now_s = float(second)
    assert limiter.window == 1
    asyncio.run(write(limiter, Scripted([]), 3))
    assert limiter.window > 1


def test_the_ceiling_spreads_units_over_time() -> None:
    clock = Clock()
    limiter = AdaptiveLimiter(1, clock.ceiling(100), window=1.0)
    asyncio.run(write(limiter, Scripted([]), 21, units=25))
    # 20 requests of 25 units at 100 units a second lie between the first and the last.
    assert clock.now_s == pytest.approx(5.0)


def test_two_tables_share_the_ceiling() -> None:
    clock = Clock()
    ceiling = clock.ceiling(100)
    one, other = AdaptiveLimiter(1, ceiling), AdaptiveLimiter(1, ceiling)
    asyncio.run(write(one, Scripted([]), 4, units=25))
    asyncio.run(write(other, Scripted([]), 5, units=25))
    assert clock.now_s == pytest.approx(2.0)


def test_two_tables_share_the_places() -> None:
    transport = Scripted([])

    async def both() -> None:
        places = asyncio.Semaphore(3)
        limiters = [AdaptiveLimiter(4, Clock().ceiling(), places) for _ in range(2)]
        await asyncio.gather(*(write(limiter, transport, 20) for limiter in limiters))

    asyncio.run(both())
    assert transport.most == 3
    assert len(transport.bodies) == 40


def test_what_dynamodb_says_it_consumed_counts_against_the_ceiling() -> None:
    clock = Clock()
    limiter = AdaptiveLimiter(1, clock.ceiling(100), window=1.0)
    told = {"ConsumedCapacity": [{"TableName": "t", "CapacityUnits": 50.0}]}
    asyncio.run(write(limiter, Scripted([dict(told) for _ in range(5)]), 5, units=25))
    assert limiter.units == 250
    assert clock.now_s == pytest.approx(2.0)


def test_it_asks_for_what_is_consumed_and_counts_sizes_where_it_is_not_told() -> None:
    transport = Scripted([])
    limiter = AdaptiveLimiter(4, Clock().ceiling())
    asyncio.run(write(limiter, transport, 3, units=30))
    assert [body["ReturnConsumedCapacity"] for body in transport.bodies] == ["TOTAL"] * 3
    assert limiter.units == 90


def test_a_request_that_fails_gives_its_place_back() -> None:
    limiter = AdaptiveLimiter(1, Clock().ceiling(), window=1.0)

    async def fail_then_write() -> None:
        with pytest.raises(ValueError, match="broken"):
            await write(limiter, Scripted([ValueError("broken")]), 1)
        await asyncio.wait_for(write(limiter, Scripted([]), 2), 5)

    asyncio.run(fail_then_write())


def test_one_that_is_cancelled_while_it_waits_gives_up_its_place() -> None:
    limiter = AdaptiveLimiter(1, Clock().ceiling(), window=1.0)

    async def cancel() -> None:
        async with limiter.turn(Scripted([]), 1):
            waiting = asyncio.create_task(write(limiter, Scripted([]), 1))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(write(limiter, Scripted([]), 2), 5)

    asyncio.run(cancel())
