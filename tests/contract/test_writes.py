"""Writes through Feast: the newest row stays, whoever writes and in whatever order."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import logging
import random
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pandas as pd
import pytest
from feast import FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64, String
from views import CUSTOMER, customer_view, no_files, pushed

from feast_dynamo_ext import DynamoOnlineStore
from feast_dynamo_ext.dynamo.client import Connection
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, pack, to_item
from feast_dynamo_ext.dynamo.row_batch import Outcome
from feast_dynamo_ext.errors import IncompleteWriteError, ResourceNotFoundError
from feast_dynamo_ext.online_store import DynamoOnlineStoreConfig
from feast_dynamo_ext.view_settings import ViewSettings

NOW = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=123_456)
# (created time, ttl in seconds) of the row that is there before, or no row
HELD = (None, (None, None), (1, 60), (None, 60), (1, None))


# 1 join key: a string of 3 bytes, "cid"; its value: an int64 of 8 bytes, which follow
CUSTOMER_KEY = b"\x01\0\0\0\x02\0\0\0\x03\0\0\0cid\x04\0\0\0\x08\0\0\0"


def view(name="orders", tags=None, ttl=dt.timedelta(0)) -> FeatureView:
    source = pushed(name, no_files(name, created_timestamp_column="made"))
    return customer_view(name, source, ttl=ttl, tags=tags, number=Int64, text=String)


@pytest.fixture
def open_shop(open_store, dynamodb):
    """Opens stores of one project of this test's own, with the view `orders` applied."""
    project, opened = f"w{uuid.uuid4().hex[:12]}", []

    def open_shop(feature_view=None, **online):
        online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint, **online}
        store = open_store(project, online=online)
        if not opened:
            store.apply([CUSTOMER, feature_view or view()])
        store.backend = dynamodb
        opened.append(store)
        return store

    yield open_shop
    opened[0].teardown()
    for store in opened:
        asyncio.run(store.close())


def ways_of(backend) -> tuple[str, ...]:
    """The ways that a backend has; moto takes no binary values in PartiQL."""
    return ("put_item",) if backend.name == "moto" else ("partiql", "put_item")


def at(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


def row(customer: int, seconds: float, number: int, created_s: float | None = None) -> tuple:
    return (
        EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=customer)]),
        {"number": Value(int64_val=number), "text": Value(string_val=f"n{number}")},
        at(seconds),
        None if created_s is None else at(created_s),
    )


def write(store, rows, feature_view=None) -> list[int]:
    settled: list[int] = []
    provider = store._get_provider()
    provider.online_write_batch(store.config, feature_view or view(), rows, settled.append)
    return settled


def numbers(store, customers) -> list[int | None]:
    response = store.get_online_features(
        features=["orders:number"], entity_rows=[{"cid": one} for one in customers]
    )
    return response.to_dict()["number"]


def items(store, name="orders") -> dict[bytes, dict]:
    """All items of a table, read without any code of ours; the schema item left out."""
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=store.backend.endpoint)
    pages = client.get_paginator("scan").paginate(
        TableName=f"{store.project}.{name}", ConsistentRead=True
    )
    found = [item for page in pages for item in page["Items"] if "s" not in item]
    client.close()
    return {item["k"]["B"]: item for item in found}


def item_of(store, customer) -> dict:
    return items(store)[CUSTOMER_KEY + customer.to_bytes(8, "little")]


def test_by_default_older_rows_change_nothing(open_shop):
    store = open_shop()
    assert sum(write(store, [row(n, 10, n) for n in range(60)])) == 60
    before = items(store)
    # Late rows, among them such of other customers
    write(store, [row(n, 9, -n) for n in range(70)])
    assert {key: item for key, item in items(store).items() if key in before} == before
    assert numbers(store, range(70)) == [*range(60), *range(-60, -70, -1)]
    write(store, [row(n, 11, n + 100) for n in range(70)])
    assert numbers(store, range(70)) == list(range(100, 170))


def test_overwrite_replaces_whatever_is_there(open_shop):
    store = open_shop(write_mode="overwrite")
    write(store, [row(1, 10, 10)])
    write(store, [row(1, 9, 9)])
    assert numbers(store, [1]) == [9]


@pytest.mark.parametrize(("mode", "stays"), [("newest_wins", 10), ("overwrite", 9)])
def test_a_views_own_mode_wins(open_shop, mode, stays):
    other = {"newest_wins": "overwrite", "overwrite": "newest_wins"}[mode]
    feature_view = view(tags=ViewSettings(write_mode=mode).tags())
    store = open_shop(feature_view, write_mode=other)
    write(store, [row(1, 10, 10)], feature_view)
    write(store, [row(1, 9, 9)], feature_view)
    assert numbers(store, [1]) == [stays]


def test_ties_go_to_the_later_created_then_to_the_later_call(open_shop, dynamodb):
    for way in ways_of(dynamodb):
        store = open_shop(newest_wins_with=way)
        one, two, three, four = range(4) if way == "put_item" else range(4, 8)
        write(store, [row(one, 10, 1, 5), row(two, 10, 1, 5), row(three, 10, 1, 5)])
        write(store, [row(four, 10, 1)])
        write(store, [row(one, 10, 2, 6), row(two, 10, 2, 4), row(three, 10, 2)])
        write(store, [row(four, 10, 2, 0)])
        assert numbers(store, [one, two, three, four]) == [2, 1, 1, 2]
        write(store, [row(one, 10, 3, 6), row(two, 10, 3, 5), row(three, 10, 3, 5)])
        write(store, [row(four, 10, 3)])
        assert numbers(store, [one, two, three, four]) == [3, 3, 3, 2]


def test_one_calls_duplicates_are_reduced_first(open_shop):
    store = open_shop()
    rows = [row(1, 3, 3), row(1, 5, 5), row(1, 4, 4), row(2, 1, 1, 0), row(2, 1, 2)]
    assert sum(write(store, rows)) == 2
    assert numbers(store, [1, 2]) == [5, 1]


def test_what_is_stored_is_what_overwriting_stores(open_shop, dynamodb):
    """Whatever the replaced item had: its created time and expiry do not stay behind."""

    def lasting(seconds):
        return view(ttl=dt.timedelta(seconds=seconds) if seconds else None)

    plain, customers = open_shop(write_mode="overwrite"), itertools.count()
    for way in ways_of(dynamodb):
        store = open_shop(newest_wins_with=way)
        for held, created_s, ttl_s in itertools.product(HELD, (None, 3), (None, 3_600)):
            customer = next(customers)
            if held is not None:
                write(store, [row(customer, 1, 1, held[0])], lasting(held[1]))
            write(store, [row(customer, 2, 2, created_s)], lasting(ttl_s))
            won = item_of(store, customer)
            write(plain, [row(customer, 2, 2, created_s)], lasting(ttl_s))
            assert won == item_of(plain, customer)
            optional = {"c"} if created_s is not None else set()
            assert set(won) == {"k", "v", "t", "f"} | optional | ({"x"} if ttl_s else set())
            assert won["t"] == {"N": str(round(at(2).timestamp() * 1_000_000))}


def test_threads_end_with_the_newest_row(open_shop):
    dice = random.Random(7)  # noqa: S311 - a shuffle that is the same each time
    # Two stores of one process, each shared by three threads.
    stores = [open_shop(max_write_workers=2), open_shop(newest_wins_with="put_item")]
    times = list(range(24))
    dice.shuffle(times)
    calls = [(store, seconds) for store, seconds in zip(itertools.cycle(stores), times)]

    def write_all(call):
        store, seconds = call
        customers = list(range(40))
        random.Random(seconds).shuffle(customers)  # noqa: S311
        write(store, [row(n, seconds + n % 2, seconds, seconds) for n in customers])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write_all, calls))
    assert numbers(stores[0], range(40)) == [23] * 40
    assert len(items(stores[0])) == 40


WRITE = """
import sys

sys.path.append(sys.argv[1])
import test_writes

test_writes.write_in_a_process(*sys.argv[2:])
"""


def write_in_a_process(settings: str, seed: str, times: str) -> None:
    """Run by the processes of the test below: write every customer at each of the times."""
    config = RepoConfig(**json.loads(settings))
    store, dice = DynamoOnlineStore(), random.Random(seed)  # noqa: S311
    print("ready", flush=True)
    sys.stdin.readline()
    for seconds in json.loads(times):
        customers = list(range(20))
        dice.shuffle(customers)
        # Not `at`: this process has a NOW of its own.
        created = dt.datetime(2026, 1, 1, 0, 0, seconds, tzinfo=dt.timezone.utc)
        rows = [(*row(n, 0, seconds)[:2], created, created) for n in customers]
        store.online_write_batch(config, view(), rows, None)
    asyncio.run(store.close())


def test_processes_end_with_the_newest_row(open_shop, fork_server):
    store = open_shop()
    settings = {
        "project": store.project,
        "provider": "feast_dynamo_ext.DynamoProvider",
        "registry": "unused.db",
        "entity_key_serialization_version": 3,
        "online_store": {
            "type": "feast_dynamo_ext.DynamoOnlineStore",
            "region": "us-east-1",
            "endpoint_url": store.backend.endpoint,
        },
    }
    times = list(range(18))
    random.Random(3).shuffle(times)  # noqa: S311
    folder = Path(__file__).parent
    programs = [
        fork_server.start(
            *("-c", WRITE, folder, json.dumps(settings), part, json.dumps(times[part::3]))
        )
        for part in range(3)
    ]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        program.stdin.write("go\n")
        program.stdin.flush()
    ended = [(program.communicate(240), program.returncode) for program in programs]
    assert ended == [(("", ""), 0)] * 3
    assert numbers(store, range(20)) == [17] * 20
    assert len(items(store)) == 20


def test_push_and_write_to_online_store_keep_the_newest(open_shop):
    store = open_shop()

    def frame(seconds, number):
        return pd.DataFrame(
            {"cid": [1, 2], "number": [number] * 2, "text": ["x"] * 2, "t": [at(seconds)] * 2}
        ).assign(made=at(0))

    store.push("orders_push", frame(10, 10))
    store.push("orders_push", frame(9, 9))
    assert numbers(store, [1, 2]) == [10, 10]
    store.write_to_online_store("orders", frame(8, 8))
    assert numbers(store, [1, 2]) == [10, 10]
    store.write_to_online_store("orders", frame(11, 11))
    assert numbers(store, [1, 2]) == [11, 11]


def test_writing_on_an_event_loop_is_the_same(open_shop):
    store = open_shop()
    provider, settled = store._get_provider(), []

    async def write_both():
        for rows in ([row(n, 10, n) for n in range(60)], [row(n, 9, -n) for n in range(60)]):
            await provider.online_write_batch_async(store.config, view(), rows, settled.append)
        await store.push_async(
            "orders_push",
            pd.DataFrame(
                {"cid": [0, 1], "number": [7, 8], "text": ["x"] * 2, "t": [at(9), at(11)]}
            ).assign(made=at(0)),
        )
        await store.close()

    asyncio.run(write_both())
    assert sum(settled) == 120
    assert numbers(store, range(60)) == [0, 8, *range(2, 60)]


def test_the_outcome_says_how_many_were_older(open_shop):
    store = open_shop()
    schema = RowSchema.from_view(view())
    values = pack([Value(int64_val=1), Value(string_val="x")])
    online = store._get_provider().online_store
    rows = [Row(b"key%d" % n, values, 1_000_000 * n, None) for n in range(40)]
    assert online.write_rows(store.config, view(), schema, rows) == Outcome(written=40)
    moved = [one._replace(event_us=20_000_000) for one in rows]
    outcome = online.write_rows(store.config, view(), schema, moved)
    assert outcome == Outcome(written=21, older=19)


def test_of_a_stand_in_where_partiql_does_not_work_nothing_is_said(open_shop, caplog):
    store = open_shop()
    with caplog.at_level(logging.WARNING, logger="feast_dynamo_ext"):
        write(store, [row(1, 1, 1)])
        write(store, [row(1, 2, 2)])
    said = [record.message for record in caplog.records if "PartiQL" in record.message]
    # moto, which takes no binary values there, is a stand-in on this machine: it is no news.
    assert said == []


def test_a_missing_table_is_named(open_shop):
    for mode in ("newest_wins", "overwrite"):
        store = open_shop(write_mode=mode)
        with pytest.raises(
            ResourceNotFoundError, match=f"{store.project}.gone. Run `feast apply`"
        ):
            write(store, [row(1, 1, 1)], view("gone"))


@pytest.mark.parametrize("how", ["partiql", "put_item", "overwrite"])
def test_rows_that_stay_throttled_are_named(scripted_http, how):
    throttled = (400, {"__type": "x#ThrottlingException", "message": "slow down"})
    config = DynamoOnlineStoreConfig(
        region="us-east-1",
        endpoint_url=scripted_http([throttled] * 10_000),
        write_deadline_ms=100,
    )
    connection = Connection.open(config.connection())
    schema = RowSchema.from_view(view())
    rows = [to_item(Row(b"%d" % n, b"", 1, None), schema, None, "orders") for n in (1, 2, 3)]
    with pytest.raises(IncompleteWriteError, match="3 of 3 rows are not written") as caught:
        connection.loops.run(connection.writer.write("orders", rows, None, how))
    assert sorted(caught.value.unwritten) == [b"1", b"2", b"3"]
    connection.close()


def test_rows_whose_schema_cannot_be_written_are_named_in_one_sentence(scripted_http, open_store):
    throttled = (400, {"__type": "x#ThrottlingException", "message": "slow down"})
    url = scripted_http([throttled] * 10_000)
    store = open_store(
        online={"region": "us-east-1", "endpoint_url": url, "write_deadline_ms": 100}
    )
    online = store._get_provider().online_store
    with pytest.raises(IncompleteWriteError, match="2 of 2 rows are not written") as caught:
        online.online_write_batch(store.config, view(), [row(1, 1, 1), row(2, 1, 1)], None)
    assert str(caught.value).count("write the same rows again") == 1
    assert str(caught.value).count("Last answer") == 1
    assert len(caught.value.unwritten) == 2


def test_a_push_to_a_view_without_entities_is_found(open_shop):
    store = open_shop()
    batch = FileSource(name="settings_batch", path="nowhere", timestamp_field="t")
    source = PushSource(name="settings_push", batch_source=batch)
    settings = FeatureView(
        name="settings",
        entities=[],
        schema=[Field(name="level", dtype=Int64)],
        source=source,
        ttl=dt.timedelta(0),
    )
    store.apply([source, settings])
    store.push("settings_push", pd.DataFrame({"level": [7], "t": [NOW]}))
    answer = store.get_online_features(
        features=["settings:level"], entity_rows=[{"cid": 1}, {"cid": 2}]
    )
    assert answer.to_dict()["level"] == [7, 7]
