"""Loops that nobody closes leave no connection open, wherever they are collected."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading

import pytest

from feast_dynamo_ext.dynamo.event_loops import Loops


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
