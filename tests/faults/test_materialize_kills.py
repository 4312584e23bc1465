"""Materializations that are killed (SIGKILL) at any moment, and run again until they succeed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from feast.infra.key_encoding_utils import deserialize_entity_key
from kill_shop import END, SERIES, SIGKILLED, START, VIEWS, Runs, Shop, write_history

if TYPE_CHECKING:
    from pathlib import Path

    from programs import Program

KILLS = 24
KEYS = 500
# A run that waited for the lease of a killed one, instead of taking it over at once, would take
# longer than AT_ONCE_S even on a machine that has much else to do.
AT_ONCE_S = 60
LEASE = {"lease_s": 240}
MANY_BUCKETS = {"rows_per_bucket": 32, **LEASE}

ENGINE = """\
batch_engine:
  type: feast_dynamo_ext.DynamoComputeEngine
  rows_per_bucket: 32
  lease_s: 240
"""

DONE = dict.fromkeys(VIEWS, ("AVAILABLE_ONLINE", 1))


@pytest.fixture(scope="module")
def environment():
    """That of the runs: test credentials, and no AWS set-up of the developer."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {
        **kept,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "FEAST_USAGE": "False",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


@pytest.fixture(scope="module")
def server(fork_server, environment):
    return Runs(fork_server, environment)


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "history"
    write_history(folder, KEYS)
    return folder


@pytest.fixture
def open_shop(tmp_path, history, aws_environment):
    """Opens shops with tables of their own."""
    opened = []

    def open_shop(
        endpoint: str,
        way: str = "partiql",
        of: Path = history,
        views: tuple[str, ...] = VIEWS,
    ) -> Shop:
        opened.append(Shop.open(tmp_path / f"shop-{len(opened)}", of, endpoint, way, views))
        return opened[-1]

    yield open_shop
    for shop in opened:
        shop.close()


def assert_as_undisturbed(shop: Shop, expected) -> None:
    """The tables are as after a run that nobody killed, and nothing else is left."""
    found = shop.items()
    assert {view: len(items) for view, items in found.items()} == {
        view: len(items) for view, items in expected.items()
    }
    assert found == expected
    assert shop.control_items() == []
    assert shop.states() == dict.fromkeys(shop.views, ("AVAILABLE_ONLINE", 1))


def assert_resumed(ended, recorded) -> None:
    """What was recorded as done was skipped, and all the rest was settled."""
    for view, counts in ended.counts.items():
        assert (view, counts["resumed"]) == (view, recorded[view])
        settled = counts["written"] + counts["older"] + counts["resumed"]
        assert (view, settled, counts["failed"]) == (view, counts["to_write"], 0)


def undisturbed(server, shop):
    """The items of a run that nobody kills, and how long it took."""
    # Not the first one: until DynamoDB Local is warm, a run takes up to twice its time.
    assert server.start(shop, **MANY_BUCKETS).end().status == 0
    shop.renew()
    ended = server.start(shop, **MANY_BUCKETS).end()
    assert ended.status == 0, ended.said
    assert {view: counts["written"] for view, counts in ended.counts.items()} == {
        "orders": KEYS,
        "rates": 1,
        "visits": KEYS,
    }
    items = shop.items()
    assert_as_undisturbed(shop, items)
    return items, ended.seconds


def moments(chance: random.Random, count: int) -> list[float]:
    """Random moments of a run of length 1, one in each of `count` parts of it, shuffled."""
    found = [(part + chance.random()) / count for part in range(count)]
    chance.shuffle(found)
    return found


@pytest.mark.dynamodb_local
@pytest.mark.timeout(900)  # a minute, where the machine has nothing else to do
def test_after_kills_at_random_moments_the_tables_are_as_after_an_undisturbed_run(
    server, open_shop, dynamodb_local
):
    shop = open_shop(dynamodb_local)
    expected, length_s = undisturbed(server, shop)
    chance = random.Random(4)  # noqa: S311 - the same each time
    to_come, killed, resumed = moments(chance, KILLS), 0, 0
    while killed < KILLS:
        shop.renew()
        for victims_left in range(chance.randint(1, 4), -1, -1):
            recorded = shop.rows_done()
            # What is left to do of a run that goes on takes less time.
            share = 1 - 0.7 * sum(recorded.values()) / (2 * KEYS)
            moment = (to_come or moments(chance, 4)).pop() if victims_left else None
            after_s = moment * share * length_s if moment else None
            ended = server.start(shop, **MANY_BUCKETS).end(after_s)
            if ended.status != SIGKILLED:
                break
            killed += 1
        assert ended.status == 0, ended.said
        assert ended.seconds < AT_ONCE_S
        assert_resumed(ended, recorded)
        assert_as_undisturbed(shop, expected)
        resumed += sum(recorded.values())
        # It changes as DynamoDB Local gets warm, and with what else the machine does.
        length_s = ended.seconds / share
    assert resumed > KEYS


def test_after_a_kill_on_moto(server, open_shop, moto_endpoint, tmp_path):
    few = tmp_path / "few"
    write_history(few, 120)
    settings = {"rows_per_bucket": 10, **LEASE}
    plain = open_shop(moto_endpoint, "put_item", few)
    whole = server.start(plain, **settings).end()
    assert whole.status == 0, whole.said
    shop = open_shop(moto_endpoint, "put_item", few)
    ended = server.start(shop, **settings).end(0.6 * whole.seconds)
    assert ended.status == SIGKILLED
    recorded = shop.rows_done()
    ended = server.start(shop, **settings).end()
    assert ended.status == 0, ended.said
    assert ended.seconds < AT_ONCE_S
    assert_resumed(ended, recorded)
    assert_as_undisturbed(shop, plain.items())


def test_restart_writes_all_again(server, open_shop, dynamodb_local):
    shop = open_shop(dynamodb_local)
    expected, length_s = undisturbed(server, shop)
    shop.renew()
    assert server.start(shop, **MANY_BUCKETS).end(0.7 * length_s).status == SIGKILLED
    ended = server.start(shop, **MANY_BUCKETS, resume=False).end()
    assert ended.status == 0, ended.said
    assert_resumed(ended, dict.fromkeys(VIEWS, 0))
    assert_as_undisturbed(shop, expected)


def events_of(folder: Path) -> set[tuple[int, str]]:
    """Customer and text of each event of the history."""
    frame = pd.read_parquet(folder / "events")
    return set(zip(frame["cid"], frame["text"], strict=True))


@pytest.mark.dynamodb_local
@pytest.mark.timeout(300)
def test_of_a_series_that_is_killed_no_event_is_lost_or_there_twice(
    server, open_shop, dynamodb_local, history
):
    shop = open_shop(dynamodb_local, views=SERIES)
    for _ in range(2):  # the first one warms DynamoDB Local up
        shop.renew()
        whole = server.start(shop, **MANY_BUCKETS).end()
        assert whole.status == 0, whole.said
    assert whole.counts["events"]["written"] == 3 * KEYS
    expected = shop.items()
    rows = [item for item in expected["events"].values() if "v" in item]
    assert len(rows) == 3 * KEYS == len(events_of(history))
    told_apart = {
        (
            deserialize_entity_key(
                row["k"]["B"], entity_key_serialization_version=3
            ).entity_values[0].int64_val,
            row["s"]["B"][8:].decode(),
        )
        for row in rows
    }  # fmt: skip
    assert told_apart == events_of(history)
    chance = random.Random(6)  # noqa: S311 - the same each time
    length_s, resumed = whole.seconds, 0
    for _ in range(3):
        shop.renew()
        for moment in (chance.uniform(0.3, 0.9), chance.uniform(0.1, 0.6), None):
            recorded = shop.rows_done()
            share = 1 - 0.7 * recorded["events"] / (3 * KEYS)
            after_s = None if moment is None else moment * share * length_s
            ended = server.start(shop, **MANY_BUCKETS).end(after_s)
            if ended.status != SIGKILLED:
                break
        assert ended.status == 0, ended.said
        assert_resumed(ended, recorded)
        assert_as_undisturbed(shop, expected)
        resumed += recorded["events"]
    assert resumed > 0


# The real command


def command(server: Runs, shop: Shop, *options: str) -> Program:
    """`feast-dynamo materialize` in the shop's repo."""
    return server.programs.start(
        *("feast-dynamo", "materialize", START.isoformat(), END.isoformat(), *options),
        cwd=shop.folder,
        env=server.environment,
        stderr=subprocess.STDOUT if not options else subprocess.PIPE,
    )


def killed_while_at_work(process: Program, after_s: float) -> int:
    """Kill a command some time after it has begun to materialize; its status."""
    for line in process.stdout:
        if "Materializing" in line:
            break
    try:
        process.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return process.returncode


@pytest.mark.dynamodb_local
def test_the_killed_command_goes_on_when_it_is_run_again(server, open_shop, dynamodb_local):
    shop = open_shop(dynamodb_local)
    expected, length_s = undisturbed(server, shop)
    shop.renew()
    with (shop.folder / "feature_store.yaml").open("a") as yaml:
        yaml.write(ENGINE)
    chance = random.Random(5)  # noqa: S311 - the same each time
    statuses = [
        killed_while_at_work(command(server, shop), chance.uniform(*span))
        for span in ((0, 0.3 * length_s), (0.2 * length_s, 0.5 * length_s), (0.1, 0.4 * length_s))
    ]
    assert statuses == [SIGKILLED] * 3
    recorded = shop.rows_done()
    last = command(server, shop, "--json")
    answer, said = last.communicate(timeout=60)
    assert last.returncode == 0, said
    views = {view["view"]: view for view in json.loads(answer)["views"]}
    assert {name: view["resumed"] for name, view in views.items()} == recorded
    assert {view["state"] for view in views.values()} == {"done"}
    assert_as_undisturbed(shop, expected)


# Two runs at once


def wait_for_lease(shop: Shop) -> None:
    """Return once a run holds the lease of orders."""
    deadline = time.monotonic() + 20
    while not any(item.get("view") == {"S": "orders"} for item in shop.control_items()):
        assert time.monotonic() < deadline


@pytest.mark.dynamodb_local
def test_a_second_run_is_refused_and_one_after_a_kill_takes_over_at_once(
    server, open_shop, dynamodb_local
):
    shop = open_shop(dynamodb_local)
    slow = {**MANY_BUCKETS, "max_write_units_per_s": 30, "lease_s": 6}
    first = server.start(shop, **slow)
    wait_for_lease(shop)
    second = server.start(shop, **MANY_BUCKETS).end()
    assert second.status == 1
    assert "AlreadyRunningError" in second.said
    assert f"pid {first.pid} on host" in second.said
    assert first.end(kill_after_s=0).status == SIGKILLED
    recorded = shop.rows_done()
    # The first is done with the one row of rates at once: the second may have written it again.
    by_second = {view: intervals for view, (_, intervals) in shop.states().items()}
    assert by_second["orders"] == 0
    third = server.start(shop, **MANY_BUCKETS).end()
    assert third.status == 0, third.said
    assert_resumed(third, recorded)
    assert shop.control_items() == []
    assert shop.states() == DONE


@pytest.mark.dynamodb_local
def test_a_second_run_waits_where_it_is_told_to(server, open_shop, dynamodb_local):
    shop = open_shop(dynamodb_local)
    first = server.start(shop, **MANY_BUCKETS, max_write_units_per_s=500)
    wait_for_lease(shop)
    second = server.start(shop, **MANY_BUCKETS, if_running="wait")
    ended = second.end()
    assert ended.status == 0, ended.said
    assert first.end().status == 0
    assert first.answer.stat().st_mtime <= second.answer.stat().st_mtime
    assert {view: len(items) for view, items in shop.items().items()} == {
        "orders": KEYS + 1,  # and the schema item
        "rates": 2,
        "visits": KEYS + 1,
    }
    assert shop.control_items() == []
    assert {state for state, _ in shop.states().values()} == {"AVAILABLE_ONLINE"}
