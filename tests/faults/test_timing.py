"""A wrong clock, and connections that keep nobody waiting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time

import pytest
from fault_run import Shop
from fault_shop import Read

from feast_dynamo_ext.dynamo.http import NoAnswerError
from feast_dynamo_ext.dynamo.http_pool import HttpPool, HttpSettings
from feast_dynamo_ext.dynamo.signing import Endpoint


@pytest.mark.dynamodb_local
def test_a_wrong_clock_is_corrected_for_all_requests_in_flight(
    open_store, fault_proxy, dynamodb_local
):
    shop = Shop.open(open_store, fault_proxy, dynamodb_local)
    store = shop.store()
    fault_proxy.plan(clock=[(0, 3_600)])
    # 501 keys are six requests at once, and each of them is refused.
    read = Read(["orders", "visits", "stock", "log", "shop"], list(range(125)))
    store.get_online_features(**read.request)
    assert fault_proxy.report().faults == {"wrong clock": 6}
    store.get_online_features(**read.request)
    assert fault_proxy.report().faults == {"wrong clock": 6}
    fault_proxy.plan()
    asyncio.run(store.close())
    shop.close()


def test_a_connection_that_does_not_open_does_not_outlast_the_deadline():
    settings = HttpSettings(
        connect_timeout_s=30, read_timeout_s=30, max_connections=1, keepalive_s=30
    )

    async def post(port):
        pool = HttpPool(Endpoint.from_url(f"http://127.0.0.1:{port}"), settings)
        await pool.post(b"", timeout_s=0.1)

    with contextlib.ExitStack() as opened:
        # Its backlog is full: further connections are neither accepted nor refused.
        full = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        started = time.monotonic()
        with pytest.raises(NoAnswerError, match=r"connecting timed out after 0\.\d+ s"):
            asyncio.run(post(full.getsockname()[1]))
        assert time.monotonic() - started < 10


def test_a_connection_that_is_reset_as_soon_as_it_is_open_fails_at_once():
    settings = HttpSettings(
        connect_timeout_s=30, read_timeout_s=30, max_connections=1, keepalive_s=30
    )

    def reset(server):
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    async def send(port):
        connection = await HttpPool(
            Endpoint.from_url(f"http://127.0.0.1:{port}"), settings
        )._connect()
        while connection.is_open:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the loss itself is told one round later
        await connection.send(b"POST / HTTP/1.1\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=reset, args=(server,), daemon=True).start()
        started = time.monotonic()
        with pytest.raises(NoAnswerError, match=r"closed before the request|no connection"):
            asyncio.run(send(server.getsockname()[1]))
        assert time.monotonic() - started < 10
