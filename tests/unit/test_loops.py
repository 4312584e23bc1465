"""Loops that nobody closes leave no connection open, wherever they are collected."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading

import pytest

from feast_dynamo_ext.dynamo.event_loops import ConnectionLimit, Loops, off_loop
from feast_dynamo_ext.errors import AwsUnavailableError


def connected(port) -> tuple[Loops, socket.socket]:
    """Loops with one idle loop that has a connection, and its socket."""
    transports = []

    async def close(_):
        transports[0].abort()

    loops = Loops(close)

    async def connect():
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, "127.0.0.1", port
        )
        transports.append(transport)
        return transport.get_extra_info("socket")._sock

    return loops, loops.run(connect())


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_what_is_collected_is_closed(in_a_loop):
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []
        thread = threading.Thread(target=lambda: held.append(connected(server.getsockname()[1])))
        thread.start()
        thread.join()

        async def collect():
            _, used = held.pop()
            del _
            gc.collect()
            return used.fileno()

        def collect_outside():
            coroutine = collect()
            with pytest.raises(StopIteration) as ended:
                coroutine.send(None)
            return ended.value.value

        assert (asyncio.run(collect()) if in_a_loop else collect_outside()) == -1


async def nothing(_):
    """Nothing is open."""


def test_large_work_runs_beside_a_callers_loop_and_on_a_borrowed_one():
    here = threading.get_ident()
    loops = Loops(nothing)

    async def where():
        return await off_loop(threading.get_ident)

    assert asyncio.run(where()) != here
    assert loops.run(where()) == here
    loops.close()


def test_threads_wait_for_a_loop_and_are_refused_in_time():
    loops = Loops(nothing, ConnectionLimit(1), wait_s=0.05)
    begun, go_on = threading.Event(), threading.Event()

    async def hold():
        begun.set()
        return await asyncio.to_thread(go_on.wait, 10)

    async def answer():
        return 5

    thread = threading.Thread(target=loops.run, args=(hold(),))
    thread.start()
    begun.wait(10)
    with pytest.raises(AwsUnavailableError, match="`max_pool_connections`"):
        loops.run(answer())
    go_on.set()
    thread.join()
    assert loops.run(answer()) == 5
    loops.close()


def test_no_thread_overtakes_those_that_wait():
    loops = Loops(nothing, ConnectionLimit(1), wait_s=60)
    barrier, served = threading.Barrier(4), []

    async def note(name):
        served.append(name)

    def work(name):
        barrier.wait()
        for _ in range(50):
            loops.run(note(name))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loops.close()
    # Once all four are there, each is served once before any other is served a third time.
    first_done = min(len(served) - 1 - served[::-1].index(name) for name in range(4))
    all_there = max(served.index(name) for name in range(4))
    for at in range(all_there, first_done - 12):
        assert set(served[at : at + 12]) == {0, 1, 2, 3}


def test_loops_that_nobody_runs_end():
    ended = []

    async def note(loop):
        ended.append(loop)

    loops = Loops(note, keepalive_s=0.0)

    async def answer():
        return asyncio.get_running_loop()

    first = loops.run(answer())
    for thread in threading.enumerate():
        if thread.name == "feast-dynamo-closing":
            thread.join()
    assert ended == [first]
    assert first.is_closed()
    loops.close()
