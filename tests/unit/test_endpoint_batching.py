"""Requests that are answered together, on one event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from feast_dynamo_ext.errors import AwsUnavailableError, InvocationError
from feast_dynamo_ext.sagemaker.serving.batching import MicroBatcher


class Gated:
    """Doubles numbers; holds the first batch until it is let go, while others gather."""

    def __init__(self):
        self.batches, self.began, self.go = [], asyncio.Event(), asyncio.Event()

    async def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.began.set()
        await self.go.wait()
        if "bad" in numbers:
            raise ValueError("a bad one")
        if "away" in numbers:
            raise AwsUnavailableError("no answer")
        return [2 * number for number in numbers]


@asynccontextmanager
async def gated(*later, rows=1):
    """A batcher at work on 0, and tasks of what was submitted behind it, in order."""
    function = Gated()
    batcher = MicroBatcher(function, max_wait_s=0.0, max_batch_rows=4, max_queued_rows=6)
    tasks = [asyncio.create_task(batcher.submit(0, 1))]
    await function.began.wait()
    tasks += [asyncio.create_task(batcher.submit(each, rows)) for each in later]
    await asyncio.sleep(0)  # each has queued
    yield function, batcher, tasks
    function.go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    await batcher.close()


def in_loop(test):
    return lambda: asyncio.run(asyncio.wait_for(test(), 30))


@in_loop
async def test_what_waits_is_answered_together_in_order():
    async with gated(*range(1, 7)) as (function, _, tasks):
        function.go.set()
        assert await asyncio.gather(*tasks) == [2 * n for n in range(7)]
        assert function.batches == [[0], [1, 2, 3, 4], [5, 6]]


@in_loop
async def test_a_bad_request_does_not_spoil_its_neighbours():
    async with gated(1, "bad", 3) as (function, _, tasks):
        function.go.set()
        _, one, bad, three = await asyncio.gather(*tasks, return_exceptions=True)
        assert (one, str(bad), three) == (2, "a bad one", 6)
        assert function.batches == [[0], [1, "bad", 3], [1], ["bad"], [3]]


@in_loop
async def test_a_store_that_is_away_is_not_asked_for_each():
    async with gated(1, "away", 3) as (function, _, tasks):
        function.go.set()
        _, *refused = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in refused] == [AwsUnavailableError] * 3
        assert function.batches == [[0], [1, "away", 3]]


@in_loop
async def test_the_queue_is_bounded():
    async with gated(1, 2, rows=3) as (function, batcher, tasks):
        with pytest.raises(InvocationError, match="6 rows wait already, the most are 6") as caught:
            await batcher.submit(3, 1)
        assert caught.value.status == 503
        tasks[2].cancel()  # who gives up is not read for
        function.go.set()
        assert await tasks[1] == 2
    assert function.batches == [[0], [1]]
    with pytest.raises(InvocationError, match="stopping"):
        await batcher.submit(4, 1)


@in_loop
async def test_closing_answers_what_waits():
    async with gated(1, 2) as (function, batcher, tasks):
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        assert not closing.done()
        function.go.set()
        await closing
        assert [task.result() for task in tasks] == [0, 2, 4]


@in_loop
async def test_a_batch_waits_for_as_many_as_before_but_not_for_ever():
    function = Gated()
    function.go.set()
    batcher = MicroBatcher(function, max_wait_s=0.05, max_batch_rows=9, max_queued_rows=99)
    first = [asyncio.create_task(batcher.submit(n, 1)) for n in range(3)]
    assert await asyncio.gather(*first) == [0, 2, 4]
    # Three came together: the next three come one after the other, and are one batch.
    second = []
    for number in range(3):
        second.append(asyncio.create_task(batcher.submit(number, 1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await asyncio.gather(*second) == [0, 2, 4]
    assert await batcher.submit(7, 1) == 14
    assert function.batches == [[0, 1, 2], [0, 1, 2], [7]]
    await batcher.close()


@in_loop
async def test_answers_go_to_their_own_requests():
    async def squares(numbers):
        await asyncio.sleep(0)
        return [n * n for n in numbers]

    batcher = MicroBatcher(squares, max_wait_s=0.001, max_batch_rows=16, max_queued_rows=1_000)

    async def client(start):
        return [await batcher.submit(n, 1) for n in range(start, 500, 16)]

    found = await asyncio.gather(*(client(start) for start in range(16)))
    assert found == [[n * n for n in range(start, 500, 16)] for start in range(16)]
    await batcher.close()
