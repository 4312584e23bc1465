"""Views over a captured table online: after each materialization what the log says is there."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import TYPE_CHECKING, Any

import boto3
import captured
import pyarrow as pa
import pytest
from captured import UTC, Change, Table, at
from feast import FeatureService, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repos import REGION

from feast_dynamo_ext.dynamo.encoding.requests import Deletions
from feast_dynamo_ext.dynamo.keys import encode_keys
from feast_dynamo_ext.dynamo.views import table_name

if TYPE_CHECKING:
    from feast import FeatureStore

NUMBERS = itertools.count()


def make_table(
    dynamodb: Any, name: str, keys: tuple[str, ...] = ("customer",), kind: str = "N"
) -> Any:
    """A table of the application, with a stream and backups where there are any."""
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=dynamodb.endpoint)
    client.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": key, "KeyType": how}
            for key, how in zip(keys, ("HASH", "RANGE"), strict=False)
        ],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "N"} for key in keys],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    if dynamodb.name == "moto":
        client.update_continuous_backups(
            TableName=name,
            PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
        )
    return client


@pytest.fixture
def shop(open_store, dynamodb, tmp_path) -> Any:
    """Opens a store with views over a captured table of its own, its history still empty."""

    def open_shop(**source: Any) -> tuple[FeatureStore, Any]:
        number = next(NUMBERS)
        name = f"purchases{number}"
        make_table(dynamodb, name)
        store = open_store(
            f"p{number}",
            online={"endpoint_url": dynamodb.endpoint, "region": REGION, "max_future": None},
            offline={"catalog": captured.CATALOG},
            batch_engine={"type": "feast_dynamo_ext.DynamoComputeEngine", "lookback_s": 0},
        )
        made = captured.source_of(
            name=name, table=name, history=f"{tmp_path}/history/{name}", **source
        )
        store.apply(
            [
                captured.CUSTOMER,
                made,
                captured.view_of(made, "applies"),
                captured.view_of(made, "ignores", deletes="ignore"),
            ]
        )
        return store, captured.TableHandle.from_source(made, store.config)

    return open_shop


def online(store: FeatureStore, view: str, keys: range) -> dict[int, int | None]:
    rows = [{"customer": key} for key in keys]
    found = store.get_online_features([f"{view}:value"], rows).to_dict()
    return dict(zip(found["customer"], found["value"], strict=True))


def materialize(store: FeatureStore, start: int, end: int, view: str | None = None) -> None:
    store.materialize(at(start), at(end), feature_views=[view] if view else None)


@st.composite
def logs(draw) -> list[tuple[int, list[Change]]]:
    """Commits of a log, each with the moment at which it is materialized."""
    table, written, commits = Table(), 10, []
    values = itertools.count()
    for _ in range(draw(st.integers(1, 4))):
        begun = len(table.log)
        for _ in range(draw(st.integers(1, 6))):
            written += draw(st.sampled_from([0, 1, 3]))
            item = (draw(st.integers(1, 4)),)
            if draw(st.integers(0, 3)):
                event = written + draw(st.sampled_from([-9, -4, -1, 0, 4]))
                table.put(item, event, written, next(values))
            else:
                table.delete(item, written)
        commits.append((written, table.log[begun:]))
        written += 1
    return commits


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(commits=logs())
def test_after_each_materialization_the_table_has_what_the_log_says(shop, commits):
    store, handle = shop()
    log: list[Change] = []
    start = 0
    for moment, changes in commits:
        if changes:
            captured.append(handle, changes)
        log += changes
        materialize(store, start, moment)
        start = moment
        keys = range(1, 6)
        expected = {key: captured.seen(log, (key,), moment) for key in keys}
        values = {key: row and row.value for key, row in expected.items()}
        assert online(store, "applies", keys) == values
        job = store.get_historical_features(
            captured.entity_rows([((key,), moment) for key in keys]), ["applies:value"]
        )
        assert job.to_arrow().column("value").to_pylist() == list(values.values())
        puts = {key: captured.seen(log, (key,), moment, applies=False) for key in keys}
        assert online(store, "ignores", keys) == {
            key: row and row.value for key, row in puts.items()
        }


# Rows that come late


def test_what_comes_late_goes_online_with_the_next_incremental_run(shop):
    """An export brings changes hours after they were written, and after a run of that time."""
    store, handle = shop()
    now = dt.datetime.now(tz=UTC)
    hours = [micros_before(now, count) for count in (9, 8, 7)]
    captured.append(handle, [Change((1,), hours[2], hours[2], "put", 1)])
    store.materialize_incremental(now - dt.timedelta(minutes=2), feature_views=["applies"])
    assert online(store, "applies", range(1, 4)) == {1: 1, 2: None, 3: None}
    late = [
        Change((1,), hours[2], hours[1] + 1, "put", 7),  # before what is there
        Change((2,), hours[0], hours[0], "put", 2),
        Change((3,), hours[0], hours[0], "put", 3),
        Change((3,), hours[0], hours[1], "delete", 3),
    ]
    captured.append(handle, late)
    store.materialize_incremental(now - dt.timedelta(minutes=1), feature_views=["applies"])
    assert online(store, "applies", range(1, 4)) == {1: 1, 2: 2, 3: None}


def micros_before(now: dt.datetime, hours: int) -> int:
    return (now - dt.timedelta(hours=hours) - captured.START) // dt.timedelta(microseconds=1)


def test_a_row_past_its_ttl_leaves_none_of_before_online(shop):
    """The item was moved back to an event that is too old to be served."""
    store, handle = shop()
    now = dt.datetime.now(tz=UTC)
    view = captured.view_of(
        store.get_data_source(store.get_feature_view("applies").batch_source.name),
        "short",
        ttl=3_600 * 1_000_000,
    )
    store.apply([view])
    recent, old = micros_before(now, 0) - 60_000_000, micros_before(now, 5)
    captured.append(handle, [Change((1,), recent, recent, "put", 1)])
    store.materialize(now - dt.timedelta(hours=9), now, feature_views=["short"])
    assert online(store, "short", range(1, 2)) == {1: 1}
    moved = [
        Change((1,), recent, recent + 5, "move", 1),
        Change((1,), old, recent + 5, "put", 2),
    ]
    captured.append(handle, moved)
    store.materialize(now - dt.timedelta(hours=9), now, feature_views=["short"])
    assert online(store, "short", range(1, 2)) == {1: None}


# What is written, and when


def test_the_order_of_writing_decides_whatever_came_first(shop, dynamodb):
    """Each order of four writes and deletions leaves what the last of them wrote."""
    store, _ = shop()
    view = store.get_feature_view("applies")
    ways = ["auto", "put_item"] if dynamodb.name == "moto" else ["partiql", "put_item"]
    for way in ways:
        store.config.online_store.newest_wins_with = way
        for number, order in enumerate(itertools.permutations(range(4))):
            key = number + 100
            puts = {
                # written: event time, value; the last written has the oldest event time
                0: (50, 1),
                1: (70, 2),
                3: (20, 3),
            }
            for written in order:
                if written == 2:
                    delete(store, view, key, written)
                else:
                    event, value = puts[written]
                    write(store, view, key, event, written, value)
            assert online(store, "applies", range(key, key + 1)) == {key: 3}, (way, order)


def test_a_deletion_spares_what_was_written_later_and_removes_what_is_as_old(shop):
    store, _ = shop()
    view = store.get_feature_view("applies")
    for key, (written, deleted, left) in enumerate([(5, 4, 1), (5, 5, None), (5, 6, None)], 300):
        write(store, view, key, 90, written, 1)
        found = delete(store, view, key, deleted)
        assert (found.written, found.older) == ((0, 1) if left else (1, 0))
        assert online(store, "applies", range(key, key + 1)) == {key: left}
        # Again, as where its answer was lost; and of what is not there.
        again = delete(store, view, key, deleted)
        assert (again.written, again.older) == ((0, 1) if left else (1, 0))


def test_a_row_that_does_not_say_when_it_was_written_counts_as_written_when_it_happened(shop):
    store, _ = shop()
    view = store.get_feature_view("applies")
    for key, (first, second, left) in enumerate(
        [
            (((50, None), 1), ((40, 60), 2), 2),
            (((50, None), 1), ((60, 40), 2), 1),
            (((40, 60), 1), ((70, None), 2), 2),
            (((40, 60), 1), ((50, None), 2), 1),
        ],
        400,
    ):
        for (event, written), value in (first, second):
            write(store, view, key, event, written, value)
        assert online(store, "applies", range(key, key + 1)) == {key: left}


def write(
    store: FeatureStore, view: Any, key: int, event: int, written: int | None, value: int
) -> None:
    entity = EntityKey(join_keys=["customer"], entity_values=[Value(int64_val=key)])
    created = None if written is None else at(written)
    row = (entity, {"value": Value(int64_val=value)}, at(event), created)
    store._get_provider().online_store.online_write_batch(store.config, view, [row], None)


def delete(store: FeatureStore, view: Any, key: int, written: int) -> Any:
    keys = encode_keys([pa.array([key])], [ValueType.INT64], ["customer"], view.name, 1)
    micros = (at(written) - dt.datetime(1970, 1, 1, tzinfo=UTC)) // dt.timedelta(microseconds=1)
    connection = store._get_provider().online_store.connection(store.config)
    table = table_name(store.config, view)
    deletions = Deletions(keys, pa.array([micros], pa.int64()))
    return connection.loops.run(connection.writer.delete(table, deletions))


def test_vectors_of_services_forget_what_was_deleted(shop):
    store, handle = shop()
    view = store.get_feature_view("applies")
    service = FeatureService(name="churn", features=[view], precompute_online=True)
    store.apply([service])
    log = [Change((1,), 10, 10, "put", 1), Change((2,), 11, 11, "put", 2)]
    captured.append(handle, log)
    materialize(store, 0, 20, "applies")

    def served() -> list[Any]:
        rows = [{"customer": 1}, {"customer": 2}]
        found = store.get_feature_service("churn")
        return store.get_online_features(found, rows).to_dict()["value"]

    assert served() == [1, 2]
    captured.append(handle, [Change((1,), 10, 30, "delete", 1)])
    materialize(store, 20, 40, "applies")
    assert served() == [None, 2]


def test_a_run_says_how_many_it_deleted(shop, capsys):
    store, handle = shop()
    captured.append(handle, [Change((key,), 10, 10, "put", key) for key in (1, 2, 3)])
    materialize(store, 0, 20, "applies")
    gone = [Change((key,), 10, 30, "delete", key) for key in (1, 2)]
    captured.append(handle, [*gone, Change((4,), 30, 31, "put", 4)])
    capsys.readouterr()
    materialize(store, 21, 40, "applies")
    heads, _, row = capsys.readouterr().out.splitlines()[-3:]
    told = dict(zip(heads.split()[2:], row.split()[1:], strict=False))
    assert (told["read"], told["written"], told["deleted"]) == ("3", "1", "2")
