"""One run of many calls through the failing proxy, from empty tables to the last check."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import psutil
from fault_oracle import Oracle, Totals, table_contents
from fault_shop import CUSTOMER, PRODUCT, VIEWS, Read, Write, entity_key, jobs

from feast_dynamo_ext.dynamo.layouts.packed import RowSchema

if TYPE_CHECKING:
    from collections.abc import Callable

    from fault_proxy import FaultProxy
    from feast import FeatureStore

THREADS, TASKS = 3, 4

HEALED = 10
"""Times that unwritten rows are written again."""


@dataclass(frozen=True)
class Shop:
    """A project on DynamoDB Local, and stores that reach it through the proxy."""

    project: str
    proxy: FaultProxy
    backend: str
    direct: FeatureStore
    open_store: Callable[..., FeatureStore]

    @classmethod
    def open(cls, open_store: Any, proxy: FaultProxy, backend: str) -> Shop:
        proxy.plan()  # whatever a test that failed has left
        project = f"f{uuid.uuid4().hex[:12]}"
        direct = open_store(project, online={"region": "us-east-1", "endpoint_url": backend})
        direct.apply([CUSTOMER, PRODUCT, *VIEWS.values()])
        return cls(project, proxy, backend, direct, open_store)

    def store(self, **online: Any) -> FeatureStore:
        """A store that reaches its tables through the proxy."""
        settings = {"region": "us-east-1", "endpoint_url": self.proxy.endpoint, **online}
        return self.open_store(self.project, online=settings)

    def check(self, oracle: Oracle) -> None:
        """Hold each table against what is known, without any code of ours."""
        client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=self.backend)
        for view in VIEWS:
            held = table_contents(client, f"{self.project}.{view}", view)
            oracle.check_table(view, held)
        client.close()

    def close(self) -> None:
        self.direct.teardown()
        asyncio.run(self.direct.close())


def run(
    shop: Shop, plan: dict[str, Any], rows: int, reads: int, seed: int, **online: Any
) -> Totals:
    """Write and read under a plan of faults, check everything, and leave nothing open."""
    totals = Totals()
    oracle = Oracle(totals, may_mark=online.get("on_partial") == "mark")
    ours, theirs = shop.store(**online), shop.store(**online)
    loop = asyncio.new_event_loop()
    try:
        shop.proxy.plan(seed=seed, **plan)
        with ThreadPoolExecutor(THREADS + 1) as threads:
            for number, calls in enumerate(jobs(seed, rows, reads, rounds=3)):
                left = deque(calls)
                dice = [random.Random(f"{seed}:{number}:{n}") for n in range(THREADS)]  # noqa: S311
                work = [threads.submit(_in_turn, ours, oracle, left, one) for one in dice]
                work.append(
                    threads.submit(loop.run_until_complete, _at_once(theirs, oracle, left))
                )
                for one in work:
                    one.result()
                # Requests that were given up may still be on their way.
                report = shop.proxy.report()
        totals.requests, totals.faults = report.requests, report.faults
        totals.access_keys = report.access_keys
        shop.proxy.plan()
        shop.check(oracle)
        _heal(ours, oracle)
        shop.check(oracle)
    except BaseException:
        # What is left open would fail another test.
        asyncio.run(ours.close())
        loop.run_until_complete(theirs.close())
        loop.close()
        raise
    _close(shop, ours, theirs, loop)
    return totals


def _in_turn(
    store: FeatureStore, oracle: Oracle, left: deque[Write | Read], dice: random.Random
) -> None:
    provider = store._get_provider()
    while (call := _next(left)) is not None:
        if isinstance(call, Write):
            view = VIEWS[call.view]
            with oracle.writing(call):
                if dice.random() < 0.5:
                    provider.online_write_batch(store.config, view, call.of_feast(), None)
                else:
                    provider.online_store.write_rows(
                        store.config, view, RowSchema.from_view(view), call.packed()
                    )
        elif len(call.views) == 1 and len(call.numbers) <= 10:
            (name,) = call.views
            keys = [entity_key(name, number) for number in call.numbers]
            with oracle.reading(call) as take:
                take(provider.online_read(store.config, VIEWS[name], keys))
        else:
            with oracle.reading(call) as take:
                take(store.get_online_features(**call.request))


async def _at_once(store: FeatureStore, oracle: Oracle, left: deque[Write | Read]) -> None:
    await asyncio.gather(*(_in_turn_async(store, oracle, left) for _ in range(TASKS)))
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def _in_turn_async(store: FeatureStore, oracle: Oracle, left: deque[Write | Read]) -> None:
    provider = store._get_provider()
    while (call := _next(left)) is not None:
        if isinstance(call, Write):
            view, data = VIEWS[call.view], call.of_feast()
            with oracle.writing(call):
                await provider.online_write_batch_async(store.config, view, data, None)
        else:
            with oracle.reading(call) as take:
                take(await store.get_online_features_async(**call.request))


def _next(left: deque[Write | Read]) -> Write | Read | None:
    with contextlib.suppress(IndexError):
        return left.popleft()
    return None


def _heal(store: FeatureStore, oracle: Oracle) -> None:
    """Do as the errors say: write the rows again. Then each key holds exactly its newest version.

    The check that follows knows but one right version of each. Nothing fails any more, but a
    deadline of some milliseconds may pass on a machine that has much else to do.
    """
    for _ in range(HEALED):
        for write in oracle.unsettled():
            with oracle.writing(write):
                store._get_provider().online_write_batch(
                    store.config, VIEWS[write.view], write.of_feast(), None
                )
    assert oracle.confirmed == oracle.attempted


def _close(
    shop: Shop, ours: FeatureStore, theirs: FeatureStore, loop: asyncio.AbstractEventLoop
) -> None:
    """Close both stores; before that few connections are open, and after it none."""
    # Threads and tasks times the requests that one call has in flight at once.
    assert len(open_sockets(shop.proxy.port)) <= (THREADS + TASKS) * 10
    opened = ours._get_provider().online_store.connection(ours.config)
    assert all(not asyncio.all_tasks(idle) for idle in opened.loops._idle)
    assert len(opened.loops._idle) <= THREADS
    asyncio.run(ours.close())
    loop.run_until_complete(theirs.close())
    loop.close()
    assert open_sockets(shop.proxy.port) == []
    gc.collect()  # what was left open warns now


def open_sockets(port: int) -> list[Any]:
    """Connections of this process to a port."""
    connections = psutil.Process().net_connections("tcp")
    return [one for one in connections if one.raddr and one.raddr.port == port]
