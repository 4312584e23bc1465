"""A wrong clock, and connections that keep nobody waiting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time

import boto3
import pytest
from fault_run import Shop
from fault_shop import Read

from feast_dynamo_ext.dynamo.transport import DynamoTransport, TransportSettings
from feast_dynamo_ext.errors import AwsUnavailableError


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


def wire_to(server) -> DynamoTransport:
    settings = TransportSettings(
        connect_timeout_s=30, read_timeout_s=30, max_connections=1, keepalive_s=30
    )
    session = boto3.Session(region_name="us-east-1")
    return DynamoTransport(session, f"http://127.0.0.1:{server.getsockname()[1]}", settings)


def test_a_connection_that_does_not_open_does_not_outlast_the_deadline():
    async def call(transport):
        try:
            await transport.call("BatchGetItem", {}, "t", timeout_s=0.1)
        finally:
            await transport.close_loop(asyncio.get_running_loop())

    with contextlib.ExitStack() as opened:
        # Its backlog is full: further connections are neither accepted nor refused.
        full = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        started = time.monotonic()
        with pytest.raises(AwsUnavailableError, match=r"connecting timed out after 0\.\d+ s"):
            asyncio.run(call(wire_to(full)))
        assert time.monotonic() - started < 10


def test_a_connection_that_is_reset_as_soon_as_it_is_open_fails_at_once():
    def reset(server):
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    async def call(transport):
        try:
            await transport.call("BatchGetItem", {}, "t")
        finally:
            await transport.close_loop(asyncio.get_running_loop())

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=reset, args=(server,), daemon=True).start()
        started = time.monotonic()
        with pytest.raises(
            AwsUnavailableError, match=r"no answer: .*(closed before|reset by|no connection)"
        ):
            asyncio.run(call(wire_to(server)))
        assert time.monotonic() - started < 10
