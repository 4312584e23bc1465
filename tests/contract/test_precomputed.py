"""Precomputed services through Feast; what reading the views answers is what they must answer."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
import uuid

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float64, Int32, Int64, String
from views import CUSTOMER, customer_view, parquet_files, pushed

from feast_dynamo_ext.columns import ENTITYLESS_KEY
from feast_dynamo_ext.dynamo.layouts.packed import entity_of
from feast_dynamo_ext.errors import ConfigError, OnlineStoreError

NOW = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=123_456)
OLD = NOW - dt.timedelta(days=2)
DAY = dt.timedelta(days=1)
SHOP = Entity(name="shop", join_keys=["sid"], value_type=ValueType.INT64)
PRESENT, NOT_FOUND = FieldStatus.PRESENT, FieldStatus.NOT_FOUND
OUTSIDE_MAX_AGE = FieldStatus.OUTSIDE_MAX_AGE
VECTOR_PREFIX = b"\xff\xff\xff\xffvector:"


@pytest.fixture
def store(open_store, dynamodb):
    """A store on an empty project of its own."""
    project = f"p{uuid.uuid4().hex[:12]}"
    online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
    opened = open_store(project, online=online)
    opened.backend = dynamodb
    yield opened
    opened.teardown()


def view(
    name, ttl=dt.timedelta(0), entities=(CUSTOMER,), path="nowhere", **features
) -> FeatureView:
    source = parquet_files(path, "t", name=f"{name}_source")
    return customer_view(name, pushed(name, source), entities=entities, ttl=ttl, schema=features)


def services(*features, name="churn") -> tuple[FeatureService, FeatureService]:
    """The same features, precomputed and not."""
    return (
        FeatureService(name=name, features=list(features), precompute_online=True),
        FeatureService(name=f"{name}_plain", features=list(features)),
    )


def push(store, name, moment=NOW, **columns) -> None:
    count = len(next(iter(columns.values())))
    store.push(f"{name}_push", pd.DataFrame({**columns, "t": [moment] * count}))


def answer(store, service, rows, **options) -> dict:
    """Values, statuses and event times by name."""
    read = store.get_online_features(store.get_feature_service(service), rows, **options)
    return by_name(read.proto)


def by_name(proto) -> dict:
    return {
        name: (
            list(vector.values),
            list(vector.statuses),
            [moment.ToJsonString() for moment in vector.event_timestamps],
        )
        for name, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True)
    }


def client_of(store):
    return boto3.client("dynamodb", region_name="us-east-1", endpoint_url=store.backend.endpoint)


def items(store, view_name) -> list[dict]:
    client = client_of(store)
    found = client.scan(TableName=f"{store.project}.{view_name}", ConsistentRead=True)
    return found["Items"]


def vectors(store, view_name) -> list[dict]:
    """The entities that have a vector in a view's table."""
    keys = [item["k"]["B"] for item in items(store, view_name)]
    return sorted(
        (entity_of(key[18:]) for key in keys if key.startswith(VECTOR_PREFIX)),
        key=lambda entity: str(sorted(entity.items())),
    )


def delete_rows(store, *view_names) -> None:
    """Delete all rows, so that only vectors can answer."""
    for name in view_names:
        for item in items(store, name):
            if not item["k"]["B"].startswith(b"\xff\xff\xff\xff"):
                client_of(store).delete_item(
                    TableName=f"{store.project}.{name}", Key={"k": item["k"]}
                )


def told(caplog) -> list[str]:
    """Warnings about services, Feast's included."""
    parts = ("feast.", "feast_dynamo_ext.dynamo.precomputed.")
    return [record.getMessage() for record in caplog.records if record.name.startswith(parts)]


def stop_expiry(store, *view_names) -> None:
    """AWS deletes expired rows hours later; DynamoDB Local every few seconds."""
    off = {"Enabled": False, "AttributeName": "x"}
    for name in view_names:
        client_of(store).update_time_to_live(
            TableName=f"{store.project}.{name}", TimeToLiveSpecification=off
        )


@pytest.fixture
def shop(store):
    """Two views and a service over them; customers 1 to 4, of which 3 and 4 have one row."""
    orders = view("orders", total=Float64, count=Int32, tags=Array(String))
    visits = view("visits", ttl=DAY, pages=Int64, browser=String)
    store.apply([CUSTOMER, orders, visits, *services(orders, visits)])
    stop_expiry(store, "orders", "visits")
    push(store, "orders", cid=[1, 2, 3], total=[1.5, None, 0.0], count=[1, 2, 3], tags=TAGS)
    push(store, "visits", cid=[1, 4], pages=[2**53 + 1, 0], browser=["x" * 200, ""])
    push(store, "visits", moment=OLD, cid=[2], pages=[9], browser=["old"])
    return store


TAGS = [["a", ""], [], None]


@pytest.mark.parametrize("full_feature_names", [True, False])
def test_a_service_answers_what_its_views_do(shop, full_feature_names):
    rows = [{"cid": cid} for cid in (4, 1, 99, 2, 1, 3)]
    options = {"full_feature_names": full_feature_names}
    precomputed = answer(shop, "churn", rows, **options)
    assert precomputed == answer(shop, "churn_plain", rows, **options)
    prefix = "visits__" if full_feature_names else ""
    values, statuses, times = precomputed[f"{prefix}pages"]
    assert [value.int64_val for value in values] == [0, 2**53 + 1, 0, 0, 2**53 + 1, 0]
    assert [value.WhichOneof("val") for value in values[2:4]] == [None, None]
    expected = [PRESENT, PRESENT, NOT_FOUND, OUTSIDE_MAX_AGE, PRESENT, NOT_FOUND]
    assert statuses == expected
    now, old = (moment.isoformat()[:-6] + "Z" for moment in (NOW, OLD))
    nothing = "1970-01-01T00:00:00Z"
    assert times == [now, now, nothing, old, now, nothing]


def test_it_does_so_on_an_event_loop(shop):
    rows = [{"cid": cid} for cid in (4, 1, 99, 2, 1)]

    async def read():
        service = shop.get_feature_service("churn")
        found = await shop.get_online_features_async(service, rows)
        await shop._get_provider().online_store.close()
        return by_name(found.proto)

    assert asyncio.run(read()) == answer(shop, "churn_plain", rows)


def test_columns_and_rows_without_a_join_key_are_answered_too(shop):
    columns = {"cid": [None, 1, None]}
    precomputed = answer(shop, "churn", columns)
    assert precomputed == answer(shop, "churn_plain", columns)
    assert precomputed["count"][1] == [NOT_FOUND, PRESENT, NOT_FOUND]


def test_one_item_an_entity_is_read(shop):
    rows = [{"cid": cid} for cid in (1, 2, 3, 4)]
    before = answer(shop, "churn_plain", rows)
    assert vectors(shop, "orders") == [{"cid": cid} for cid in (1, 2, 3, 4)]
    assert vectors(shop, "visits") == []
    delete_rows(shop, "orders", "visits")
    assert answer(shop, "churn_plain", rows)["count"][1] == [NOT_FOUND] * 4
    assert answer(shop, "churn", rows) == before


def test_an_entity_without_vector_is_read_from_the_views(shop):
    ones = [
        item["k"]
        for item in items(shop, "orders")
        if item["k"]["B"].startswith(VECTOR_PREFIX)
        and entity_of(item["k"]["B"][18:]) == {"cid": 1}
    ]
    client_of(shop).delete_item(TableName=f"{shop.project}.orders", Key={"k": ones[0]})
    assert vectors(shop, "orders") == [{"cid": cid} for cid in (2, 3, 4)]
    rows = [{"cid": cid} for cid in (1, 2, 99)]
    assert answer(shop, "churn", rows) == answer(shop, "churn_plain", rows)


def test_a_push_renews_the_vectors_of_its_entities(shop):
    push(
        shop, "orders", moment=NOW + DAY, cid=[1, 5], total=[7.0, 8.0], count=[7, 8], tags=[[]] * 2
    )
    delete_rows(shop, "orders", "visits")
    values, statuses, _ = answer(shop, "churn", [{"cid": cid} for cid in (1, 2, 5)])["count"]
    assert [value.int32_val for value in values] == [7, 2, 8]
    assert statuses == [PRESENT] * 3
    pages = answer(shop, "churn", [{"cid": 1}])["pages"]
    assert [value.int64_val for value in pages[0]] == [2**53 + 1]


def test_an_older_row_changes_neither_table_nor_vector(shop):
    push(shop, "orders", moment=OLD, cid=[1], total=[0.1], count=[-1], tags=[[]])
    assert [value.int32_val for value in answer(shop, "churn", [{"cid": 1}])["count"][0]] == [1]


def test_an_async_push_renews_them_too(shop):
    frame = pd.DataFrame({"cid": [1], "pages": [5], "browser": ["b"], "t": [NOW + DAY]})

    async def write():
        await shop.push_async("visits_push", frame)
        await shop._get_provider().online_store.close()

    asyncio.run(write())
    delete_rows(shop, "visits")
    assert [value.int64_val for value in answer(shop, "churn", [{"cid": 1}])["pages"][0]] == [5]


def test_two_services_over_the_same_views(store):
    orders, visits = view("orders", total=Float64, count=Int64), view("visits", pages=Int64)
    wide, narrow = services(orders, visits)[0], services(visits, orders[["count"]], name="n")[0]
    store.apply([CUSTOMER, orders, visits, wide, narrow])
    push(store, "orders", cid=[1], total=[1.0], count=[2])
    push(store, "visits", cid=[1], pages=[3])
    delete_rows(store, "orders", "visits")
    wide_read = store.get_online_features(store.get_feature_service("churn"), [{"cid": 1}])
    narrow_read = store.get_online_features(store.get_feature_service("n"), [{"cid": 1}])
    assert wide_read.to_dict() == {"cid": [1], "total": [1.0], "count": [2], "pages": [3]}
    assert narrow_read.to_dict() == {"cid": [1], "count": [2], "pages": [3]}


def test_one_view_under_two_names(store):
    orders = view("orders", total=Float64)
    service = services(orders.with_name("sold"), orders.with_name("bought"))[0]
    store.apply([CUSTOMER, orders, service])
    push(store, "orders", cid=[1], total=[1.0])
    delete_rows(store, "orders")
    read = store.get_online_features(
        store.get_feature_service("churn"), [{"cid": 1}], full_feature_names=True
    )
    assert read.to_dict() == {"cid": [1], "sold__total": [1.0], "bought__total": [1.0]}


def test_a_service_of_views_without_entities(store):
    settings = view("settings", entities=(), rate=Float64)
    store.apply([settings, services(settings)[0]])
    provider = store._get_provider()
    row = (ENTITYLESS_KEY, {"rate": Value(double_val=0.5)}, NOW, None)
    provider.online_write_batch(store.config, settings, [row], None)
    assert provider.precompute_feature_service("churn") == 1
    delete_rows(store, "settings")
    read = store.get_online_features(store.get_feature_service("churn"), [{"any": 1}, {"any": 2}])
    assert read.to_dict()["rate"] == [0.5, 0.5]


def test_views_of_different_entities_are_read_as_they_are(store, caplog):
    orders, shops = view("orders", total=Float64), view("shops", entities=(SHOP,), size=Int64)
    store.apply([CUSTOMER, SHOP, orders, shops, services(orders, shops)[0]])
    with caplog.at_level(logging.WARNING, "feast_dynamo_ext"):
        push(store, "orders", cid=[1], total=[1.0])
        push(store, "shops", sid=[1], size=[2])
        for _ in range(2):
            service = store.get_feature_service("churn")
            read = store.get_online_features(service, [{"cid": 1, "sid": 1}, {"cid": 2, "sid": 1}])
    assert read.to_dict()["total"] == [1.0, None]
    assert read.to_dict()["size"] == [2, 2]
    assert told(caplog) == [
        "feature service churn is read from its views: its views have different join keys: "
        "{'orders': ['cid'], 'shops': ['sid']}"
    ]


def test_views_that_declare_their_join_key_as_different_types_are_read_as_they_are(store, caplog):
    customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.UNKNOWN)
    views = [
        FeatureView(
            name=name,
            entities=[customer],
            schema=[Field(name="cid", dtype=kind), Field(name=f"of_{name}", dtype=Int64)],
            source=pushed(name),
        )
        for name, kind in (("small", Int32), ("large", Int64))
    ]
    service = FeatureService(name="mixed", features=views, precompute_online=True)
    store.apply([customer, *views, service])
    for number, view in enumerate(views):
        push(store, view.name, cid=[1], **{f"of_{view.name}": [number]})
    answer = store.get_online_features(store.get_feature_service("mixed"), [{"cid": 1}])
    assert answer.to_dict() == {"cid": [1], "of_small": [0], "of_large": [1]}
    assert (
        "its views declare their join keys as different types: "
        "{'small': ['INT32'], 'large': ['INT64']}"
    ) in caplog.text


def test_a_service_of_versioned_views_answers_the_newest_version(open_store, dynamodb, tmp_path):
    project = f"p{uuid.uuid4().hex[:12]}"
    store = open_store(
        project,
        online={"region": "us-east-1", "endpoint_url": dynamodb.endpoint},
        registry={"enable_online_feature_view_versioning": True},
    )
    old = customer_view("stats", pushed("stats"), n=Int64)
    store.apply([CUSTOMER, old, FeatureService(name="s", features=[old], precompute_online=True)])
    push(store, "stats", cid=[1], n=[1])
    new = customer_view("stats", pushed("stats"), n=Int64, m=Int64)
    store.apply([CUSTOMER, new, FeatureService(name="s", features=[new], precompute_online=True)])
    push(store, "stats", cid=[1], n=[10], m=[2])
    answer = store.get_online_features(
        store.get_feature_service("s"),
        [{"cid": 1}, {"cid": 2}],
        include_feature_view_version_metadata=True,
    )
    assert answer.to_dict() == {"cid": [1, 2], "n": [10, None], "m": [2, None]}
    (said,) = answer.proto.metadata.feature_view_metadata
    assert (said.name, said.version) == ("stats", 1)
    store.teardown()


def test_a_service_with_an_on_demand_view_is_read_and_computed(store):
    orders = view("orders", total=Float64)

    @on_demand_feature_view(
        sources=[orders],
        schema=[Field(name="double", dtype=Float64)],
        mode="python",
        write_to_online_store=False,
    )
    def doubled(inputs):
        return {"double": [total * 2 for total in inputs["total"]]}

    service = FeatureService(name="churn", features=[orders, doubled])
    service.precompute_online = True
    store.apply([CUSTOMER, orders, doubled, service])
    push(store, "orders", cid=[1], total=[1.5])
    read = store.get_online_features(store.get_feature_service("churn"), [{"cid": 1}])
    assert read.to_dict() == {"cid": [1], "total": [1.5], "double": [3.0]}


# Materialize, and services that change


def write_parquet(path, **columns) -> None:
    count = len(next(iter(columns.values())))
    moments = pa.array([NOW - dt.timedelta(hours=1)] * count, pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({**columns, "t": moments}), path)


@pytest.fixture
def history(store, tmp_path):
    """Two views with history; orders is written before any service is declared."""
    write_parquet(tmp_path / "orders.parquet", cid=[1, 2], total=[1.0, 2.0])
    write_parquet(tmp_path / "visits.parquet", cid=[1, 3], pages=[10, 30])
    orders = view("orders", path=tmp_path / "orders.parquet", total=Float64)
    visits = view("visits", path=tmp_path / "visits.parquet", pages=Int64)
    store.apply([CUSTOMER, orders, visits])
    store.materialize(NOW - DAY, NOW, feature_views=["orders"])
    store.views = orders, visits
    return store


def test_materialize_gives_every_entity_its_vector(history, caplog):
    orders, visits = history.views
    history.apply([*services(orders, visits)])
    rows = [{"cid": cid} for cid in (1, 2, 3)]
    with caplog.at_level(logging.WARNING):
        history.materialize(NOW - DAY, NOW, feature_views=["visits"])
    assert told(caplog) == []
    before = answer(history, "churn_plain", rows)
    assert before["total"][1] == [PRESENT, PRESENT, NOT_FOUND]
    assert before["pages"][1] == [PRESENT, NOT_FOUND, PRESENT]
    assert vectors(history, "orders") == [{"cid": 1}, {"cid": 2}, {"cid": 3}]
    delete_rows(history, "orders", "visits")
    assert answer(history, "churn", rows) == before


def test_vectors_can_be_written_without_materializing(history):
    orders, visits = history.views
    history.apply([*services(orders, visits)])
    provider = history._get_provider()
    assert provider.precompute_feature_service("churn") == 2
    assert provider.precompute_feature_service() == 0
    assert vectors(history, "orders") == [{"cid": 1}, {"cid": 2}]
    with pytest.raises(ConfigError, match="`churn_plain` cannot be precomputed"):
        provider.precompute_feature_service("churn_plain")


def test_a_service_without_vectors_yet_says_so_once(history, caplog):
    orders, visits = history.views
    history.apply([*services(orders, visits)])
    with caplog.at_level(logging.WARNING, "feast_dynamo_ext"):
        for _ in range(2):
            found = answer(history, "churn", [{"cid": 1}])
    assert found["total"][1] == [PRESENT]
    (message,) = told(caplog)
    assert "none of a request's entities has a vector" in message


def test_a_view_that_gains_a_feature_is_right_before_and_after_it_is_materialized(
    history, tmp_path
):
    orders, visits = history.views
    history.apply([*services(orders, visits)])
    history.materialize(NOW - DAY, NOW)
    path = tmp_path / "orders.parquet"
    wider = view("orders", path=path, total=Float64, discount=Float64)
    history.apply([wider, visits, *services(wider, visits)])
    rows = [{"cid": cid} for cid in (1, 2)]
    found = answer(history, "churn", rows)
    assert found == answer(history, "churn_plain", rows)
    assert found["discount"][1] == [NOT_FOUND, NOT_FOUND]
    # Rows of the old schema stay in the table for customer 2 alone.
    write_parquet(path, cid=[1], total=[1.0], discount=[0.25])
    history.materialize(NOW - DAY, NOW, feature_views=["orders"])
    found = answer(history, "churn", rows)
    assert found == answer(history, "churn_plain", rows)
    assert found["discount"][1] == [PRESENT, NOT_FOUND]
    delete_rows(history, "orders", "visits")
    assert answer(history, "churn", rows) == found


def test_a_service_that_is_gone_loses_its_vectors_at_materialize(history, caplog):
    orders, visits = history.views
    precomputed, plain = services(orders, visits)
    history.apply([precomputed, plain])
    history.materialize(NOW - DAY, NOW)
    assert len(vectors(history, "orders")) == 3
    history.apply([], objects_to_delete=[precomputed], partial=False)
    with caplog.at_level(logging.WARNING, "feast_dynamo_ext"):
        history.materialize(NOW - DAY, NOW, feature_views=["visits"])
    assert vectors(history, "orders") == []
    assert told(caplog) == ["feature service churn is not precomputed any more"]
    marks = {
        name: "p:churn" in item for name in ("orders", "visits") for item in items(history, name)
    }
    assert marks == {"orders": False, "visits": False}


def test_writes_go_on_when_the_table_that_held_the_vectors_is_gone(history, caplog):
    orders, visits = history.views
    history.apply([*services(orders, visits)])
    history.materialize(NOW - DAY, NOW)
    client = client_of(history)
    client.delete_table(TableName=f"{history.project}.orders")
    client.get_waiter("table_not_exists").wait(
        TableName=f"{history.project}.orders", WaiterConfig={"Delay": 1, "MaxAttempts": 5}
    )
    with caplog.at_level(logging.WARNING, "feast_dynamo_ext"):
        push(history, "visits", cid=[1], pages=[11])
    assert "a table of it is gone" in caplog.text
    read = history.get_online_features(["visits:pages"], [{"cid": 1}])
    assert read.to_dict()["pages"] == [11]


def test_writers_of_different_views_at_once_lose_nothing(shop):
    rounds = 8

    def write(name, **columns):
        for moment in range(rounds):
            push(shop, name, moment=NOW + dt.timedelta(seconds=moment + 1), **columns)

    writers = [
        threading.Thread(
            target=write,
            args=("orders",),
            kwargs={"cid": [1, 2], "total": [float(n)] * 2, "count": [n] * 2, "tags": [[]] * 2},
        )
        for n in (10, 11)
    ] + [
        threading.Thread(
            target=write,
            args=("visits",),
            kwargs={"cid": [1, 2], "pages": [7, 8], "browser": ["b"] * 2},
        )
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = [{"cid": 1}, {"cid": 2}]
    expected = answer(shop, "churn_plain", rows)
    assert expected["pages"][1] == [PRESENT, PRESENT]
    delete_rows(shop, "orders", "visits")
    assert answer(shop, "churn", rows) == expected


def test_feasts_own_way_of_writing_vectors_is_refused(store):
    online = store._get_provider().online_store
    with pytest.raises(OnlineStoreError, match="makes the vectors of precomputed services itself"):
        online.write_precomputed_vector(store.config, "churn", store.project, None, b"")
