"""`capture stream` is killed at any moment: in the end each change is in the history once.

`FAULT_TIMES=10` makes it twenty kills (`make soak`).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from feast import FeatureStore
from followed import BEGUN, FollowedShop, rows_of, until, view_of
from repos import REGION, write_repo_yaml

from feast_dynamo_ext import Series, ViewSettings, online_series

TIMES = int(os.environ.get("FAULT_TIMES", "1"))
KILLS = 3 if TIMES == 1 else 2 * TIMES
ORDERS = 25

RUN = Path(__file__).with_name("stream_run.py")

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300 * TIMES)]


def test_each_change_is_there_once_whoever_is_killed(tmp_path, fork_server, dynamodb_local):
    name = f"orders{os.getpid()}"
    write_repo_yaml(
        tmp_path,
        online={"endpoint_url": dynamodb_local, "region": REGION},
        offline={"catalog": {"type": "sql"}, "region": REGION},
    )
    store = FeatureStore(repo_path=str(tmp_path))
    shop = FollowedShop.make(store, dynamodb_local, name, tmp_path)
    series = view_of(shop.source, f"series_{name}")
    series.tags = ViewSettings(series=Series()).tags()
    store.apply([series])
    dice, log = random.Random(11), tmp_path / "run.log"  # noqa: S311 - no secret
    amount, pause = 0, threading.Event()

    def start() -> subprocess.Popen:
        with log.open("a") as said:
            return fork_server.start(RUN, tmp_path, name, stdout=said, stderr=subprocess.STDOUT)

    def change() -> None:
        nonlocal amount
        amount += 1
        order = dice.randrange(ORDERS)
        if dice.random() < 0.2:
            shop.delete(order)
        elif dice.random() < 0.1:
            shop.put(order, at=dice.randrange(20), amount="?")
        else:
            shop.put(order, at=dice.randrange(20), amount=amount)

    killed = committed = 0
    while killed < KILLS:
        program, rows = start(), shop.history.rows()
        ends = None
        # It is killed a moment after its first commit: while it reads, writes or commits the next.
        while ends is None or time.monotonic() < ends:
            assert program.poll() is None, log.read_text()
            change()
            pause.wait(0.01)
            if ends is None and shop.history.rows() > rows:
                committed += 1
                ends = time.monotonic() + dice.random()
        program.kill()
        program.wait()
        killed += 1
    program = start()
    until(shop.is_captured)
    # Of one that fits it is seen online that it was read: a clean stop commits no more than that.
    shop.put(0, at=5, amount=amount + 1)
    until(lambda: shop.online(list(range(ORDERS))) == shop.held(list(range(ORDERS))))
    fitting = sorted(set(range(ORDERS)) - misfits_of(shop))
    until(lambda: events(shop, fitting) == [held(shop, order) for order in fitting])
    assert fitting
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0, log.read_text()
    assert committed == KILLS
    assert shop.rows() == shop.expected()
    assert shop.history.quarantined() == shop.misfits() > 0
    print(
        f"\n{KILLS} kills, {len(shop.log):,} changes: {shop.history.rows():,} rows, "
        f"{shop.misfits():,} in quarantine, nothing lost, nothing twice"
    )


def misfits_of(shop: FollowedShop) -> set[int]:
    """Orders with a change that went to quarantine: what follows it says of another event."""
    return {change.order for change in shop.log if rows_of(change) is None}


def events(shop: FollowedShop, orders: list[int]) -> list[list[tuple[int, int | None]]]:
    """The events (seconds, amount) of orders that are online."""
    found = online_series(
        shop.store,
        [f"series_{shop.source.name}:amount"],
        [{"order": order} for order in orders],
        last=100,
    ).to_dict()
    pairs = zip(found["event_time"], found["amount"], strict=True)
    return [
        [(int((time - BEGUN).total_seconds()), amount) for time, amount in zip(*each, strict=True)]
        for each in pairs
    ]


def held(shop: FollowedShop, order: int) -> list[tuple[int, int | None]]:
    """The event that an order is by the log; none where it was deleted."""
    rows = shop.expected().get(order)
    return [rows[-1][:2]] if rows and rows[-1][2] == "put" else []
