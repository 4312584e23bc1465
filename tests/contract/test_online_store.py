"""The online store through Feast, on moto and on Amazon's DynamoDB Local."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import boto3
import pytest
from boto3.dynamodb.types import TypeDeserializer
from feast import Entity, ValueType
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    Struct,
    TimeUuid,
    UnixTimestamp,
    Uuid,
    ZonedTimestamp,
)
from feast.types import Decimal as DecimalType
from views import CUSTOMER, customer_view

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.dynamo.layouts.packed import entity_of
from feast_dynamo_ext.errors import (
    EntityKeyError,
    ItemFormatError,
    ItemTooLargeError,
    ResourceNotFoundError,
    TableLayoutError,
)

NOW = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=123_456)
PRESENT, NOT_FOUND = FieldStatus.PRESENT, FieldStatus.NOT_FOUND
OUTSIDE_MAX_AGE, INVALID = FieldStatus.OUTSIDE_MAX_AGE, FieldStatus.INVALID


@pytest.fixture
def store(open_store, dynamodb, request):
    """A store on an empty project of its own."""
    project = f"p{uuid.uuid4().hex[:12]}"
    online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
    opened = open_store(project, online=online)
    opened.backend = dynamodb
    yield opened
    opened.teardown()


def key(**values) -> EntityKey:
    protos = [
        Value(string_val=v) if isinstance(v, str) else Value(int64_val=v) for v in values.values()
    ]
    return EntityKey(join_keys=list(values), entity_values=protos)


def write(store, feature_view, rows):
    """Rows: (entity key, {feature: python value}, event time, created time)."""
    kinds = {field.name: field.dtype.to_value_type() for field in feature_view.features}
    data = [
        (
            entity,
            {
                name: python_values_to_proto_values([value], kinds[name])[0]
                for name, value in values.items()
            },
            event_time,
            created_time,
        )
        for entity, values, event_time, created_time in rows
    ]
    store._get_provider().online_write_batch(store.config, feature_view, data, None)


def read(store, features, rows, **kwargs):
    return store.get_online_features(features=features, entity_rows=rows, **kwargs)


def statuses(response):
    names = response.proto.metadata.feature_names.val
    return {
        name: list(vector.statuses)
        for name, vector in zip(names, response.proto.results, strict=True)
    }


def table_of(store, name="orders") -> dict:
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=store.backend.endpoint)
    return client, f"{store.project}.{name}"


EVERY_TYPE = {
    "int32": (Int32, -(2**31)),
    "int64": (Int64, 2**53 + 1),
    "float32": (Float32, 1.5),
    "float64": (Float64, 0.1),
    "boolean": (Bool, False),
    "text": (String, "zażółć \x00 'quote'"),
    "empty_text": (String, ""),
    "raw": (Bytes, b"\x00\xff"),
    "moment": (UnixTimestamp, dt.datetime(1969, 12, 31, 23, 59, 58, tzinfo=dt.timezone.utc)),
    "zoned": (
        ZonedTimestamp,
        dt.datetime(2026, 3, 29, 3, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    ),
    "uid": (Uuid, uuid.UUID(int=7)),
    "time_uid": (TimeUuid, uuid.UUID("13814000-1dd2-11b2-8080-808080808080")),
    "price": (DecimalType, Decimal("12345678901234567890.123")),
    "json": (Json, {"a": [1, None, {"b": "c"}]}),
    "map": (Map, {"a": 1, "b": "x"}),
    "struct": (Struct({"lat": Float64, "name": String}), {"lat": 1.5, "name": "x"}),
    "ints": (Array(Int64), [1, 2**53 + 1]),
    "texts": (Array(String), ["", "a"]),
    "floats": (Array(Float64), [0.1, -0.0]),
    "bools": (Array(Bool), [True, False]),
    "blobs": (Array(Bytes), [b"", b"\x00"]),
    "moments": (Array(UnixTimestamp), [dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)]),
    "uids": (Array(Uuid), [uuid.UUID(int=1)]),
    "prices": (Array(DecimalType), [Decimal("0.10")]),
    "maps": (Array(Map), [{"a": 1}, {"b": "x"}]),
    "nested": (Array(Array(Int64)), [[1, 2], [3]]),
    "empty_list": (Array(Int64), []),
    "set_of_ints": (Set(Int64), {1, 2}),
    "set_of_texts": (Set(String), {"a", "b"}),
    "null_int": (Int64, None),
    "null_list": (Array(String), None),
}


def test_every_feast_type_round_trips(store):
    orders = customer_view(**{name: dtype for name, (dtype, _) in EVERY_TYPE.items()})
    store.apply([CUSTOMER, orders])
    values = {name: value for name, (_, value) in EVERY_TYPE.items()}
    write(store, orders, [(key(cid=1), values, NOW, None)])
    response = read(store, [f"orders:{name}" for name in EVERY_TYPE], [{"cid": 1}])
    assert {name: cells[0] for name, cells in response.to_dict().items() if name != "cid"} == {
        name: value for name, (_, value) in EVERY_TYPE.items()
    }
    assert set(map(tuple, statuses(response).values())) == {(PRESENT,)}


def test_rows_found_and_not_found_in_the_order_of_the_request(store):
    orders = customer_view(total=Float64, count=Int64)
    store.apply([CUSTOMER, orders])
    write(
        store,
        orders,
        [(key(cid=n), {"total": n / 2, "count": n}, NOW, None) for n in range(250)],
    )
    asked = [249, 7, 1_000, 7, 0, *range(100, 230)]
    response = read(
        store,
        ["orders:count", "orders:total"],
        [{"cid": n} for n in asked],
        full_feature_names=True,
    )
    answer = response.to_dict(include_event_timestamps=True)
    found = [n if n < 250 else None for n in asked]
    assert answer["cid"] == asked
    assert answer["orders__count"] == found
    assert answer["orders__total"] == [None if n is None else n / 2 for n in found]
    assert answer["orders__count__ts"][:3] == [int(NOW.timestamp()), int(NOW.timestamp()), 0]
    assert statuses(response)["orders__count"][:4] == [PRESENT, PRESENT, NOT_FOUND, PRESENT]


def test_views_with_different_entities_aliases_and_none_are_read_together(store):
    shop = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)
    orders = customer_view(total=Float64)
    pairs = customer_view("pairs", entities=(CUSTOMER, shop), visits=Int64)
    settings = customer_view("settings", entities=(), discount=Float64)
    store.apply([CUSTOMER, shop, orders, pairs, settings])
    write(store, orders, [(key(cid=n), {"total": float(n)}, NOW, None) for n in (1, 2)])
    write(store, pairs, [(key(cid=1, sid="a"), {"visits": 3}, NOW, None)])
    dummy = EntityKey(join_keys=["__dummy_id"], entity_values=[Value(string_val="")])
    write(store, settings, [(dummy, {"discount": 0.5}, NOW, None)])

    answer = read(
        store,
        ["orders:total", "pairs:visits", "settings:discount"],
        [{"cid": 1, "sid": "a"}, {"cid": 2, "sid": "a"}],
    ).to_dict()
    assert answer["total"] == [1.0, 2.0]
    assert answer["visits"] == [3, None]
    assert answer["discount"] == [0.5, 0.5]


def test_one_view_under_two_names(store):
    from feast import FeatureService

    orders = customer_view(total=Float64)
    service = FeatureService(
        name="pair",
        features=[
            orders.with_name("buyer").with_join_key_map({"cid": "buyer_id"}),
            orders.with_name("seller").with_join_key_map({"cid": "seller_id"}),
        ],
    )
    store.apply([CUSTOMER, orders, service])
    write(store, orders, [(key(cid=n), {"total": float(n)}, NOW, None) for n in (1, 2)])
    answer = read(
        store,
        store.get_feature_service("pair"),
        [{"buyer_id": 1, "seller_id": 2}, {"buyer_id": 3, "seller_id": 1}],
        full_feature_names=True,
    ).to_dict()
    assert answer["buyer__total"] == [1.0, None]
    assert answer["seller__total"] == [2.0, 1.0]


def test_of_rows_with_one_key_the_newest_is_kept(store):
    orders = customer_view(total=Float64)
    store.apply([CUSTOMER, orders])
    earlier = NOW - dt.timedelta(hours=1)
    rows = [
        (key(cid=1), {"total": 1.0}, NOW, earlier),
        (key(cid=1), {"total": 2.0}, NOW, NOW),
        (key(cid=1), {"total": 3.0}, earlier, NOW),
    ]
    write(store, orders, rows)
    assert read(store, ["orders:total"], [{"cid": 1}]).to_dict()["total"] == [2.0]


def test_a_row_past_its_ttl_is_outside_max_age_and_carries_the_ttl_attribute(store):
    orders = customer_view(ttl=dt.timedelta(days=1), total=Float64)
    store.apply([CUSTOMER, orders])
    client, name = table_of(store)
    ttl = client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "x")
    # AWS deletes hours later; DynamoDB Local every few seconds, perhaps before the read below.
    off = {"Enabled": False, "AttributeName": "x"}
    client.update_time_to_live(TableName=name, TimeToLiveSpecification=off)
    stale = NOW - dt.timedelta(days=2)
    write(
        store,
        orders,
        [(key(cid=1), {"total": 1.0}, stale, None), (key(cid=2), {"total": 2.0}, NOW, None)],
    )
    response = read(store, ["orders:total"], [{"cid": 1}, {"cid": 2}, {"cid": 3}])
    assert response.to_dict()["total"] == [None, 2.0, None]
    assert statuses(response)["total"] == [OUTSIDE_MAX_AGE, PRESENT, NOT_FOUND]
    expiries = [int(item["x"]["N"]) for item in scan(client, name) if "x" in item]
    first, second = sorted(expiries)
    # A day after it was written, as it was past its ttl then; a day after it is past its ttl.
    assert abs(first - 86_400 - dt.datetime.now(tz=dt.timezone.utc).timestamp()) < 600
    assert second == int(NOW.timestamp()) + 86_401 + 86_400


def test_a_row_of_a_view_that_answers_expired_values_is_never_deleted(store):
    tags = ViewSettings(expired="value").tags()
    orders = customer_view(ttl=dt.timedelta(days=1), tags=tags, total=Float64)
    store.apply([CUSTOMER, orders])
    stale = NOW - dt.timedelta(days=2)
    write(store, orders, [(key(cid=1), {"total": 1.0}, stale, None)])
    client, name = table_of(store)
    assert [item for item in scan(client, name) if "x" in item] == []
    response = read(store, ["orders:total"], [{"cid": 1}])
    assert response.to_dict()["total"] == [1.0]
    assert statuses(response)["total"] == [OUTSIDE_MAX_AGE]


def scan(client, name):
    return client.scan(TableName=name)["Items"]


def test_old_items_stay_readable_when_a_view_changes(store):
    before = customer_view(total=Float64, count=Int32, gone=String, kind=String)
    store.apply([CUSTOMER, before])
    old = {"total": 1.5, "count": 7, "gone": "x", "kind": "text"}
    write(store, before, [(key(cid=1), old, NOW, None)])

    # added: fresh; removed: gone; widened: count; retyped: kind; and another order
    after = customer_view(fresh=Float64, kind=Int64, count=Int64, total=Float64)
    store.apply([CUSTOMER, after])
    write(
        store,
        after,
        [(key(cid=2), {"total": 2.5, "count": 8, "fresh": 0.5, "kind": 1}, NOW, None)],
    )
    response = read(
        store,
        ["orders:fresh", "orders:total", "orders:count", "orders:kind"],
        [{"cid": 1}, {"cid": 2}],
    )
    answer = response.to_dict()
    assert answer["total"] == [1.5, 2.5]
    assert answer["count"] == [7, 8]
    assert answer["fresh"] == [None, 0.5]
    assert answer["kind"] == [None, 1]
    assert statuses(response)["fresh"] == [NOT_FOUND, PRESENT]
    assert statuses(response)["kind"] == [NOT_FOUND, PRESENT]


def test_items_written_after_a_read_or_into_a_new_table_can_be_read_by_others(store, open_store):
    orders = customer_view(total=Float64)
    online = {"region": "us-east-1", "endpoint_url": store.backend.endpoint}
    for total in (1.0, 2.0):  # the second time the table is a new one, in the same process
        store.apply([CUSTOMER, orders])
        assert read(store, ["orders:total"], [{"cid": 1}]).to_dict()["total"] == [None]
        write(store, orders, [(key(cid=1), {"total": total}, NOW, None)])
        other = open_store(store.project, online=online)
        changed = customer_view(fresh=Int64, total=Float64)
        (row,) = other.provider.online_read(other.config, changed, [key(cid=1)])
        assert row == (NOW, {"total": Value(double_val=total)})
        store.teardown()


def test_the_table_is_on_demand_and_its_keys_can_be_read_back(store):
    orders = customer_view(total=Float64, tags={"team": "growth"})
    store.apply([CUSTOMER, orders])
    write(store, orders, [(key(cid=41), {"total": 1.0}, NOW, NOW)])
    client, name = table_of(store)
    described = client.describe_table(TableName=name)["Table"]
    assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    (item,) = (item for item in scan(client, name) if "s" not in item)
    assert entity_of(item["k"]["B"]) == {"cid": 41}
    plain = {name: TypeDeserializer().deserialize(value) for name, value in item.items()}
    assert plain["t"] == plain["c"] == int(NOW.timestamp()) * 1_000_000 + 123_456


def test_a_second_apply_changes_nothing_and_other_peoples_tags_stay(store):
    orders = customer_view(total=Float64, tags={"team": "growth"})
    store.apply([CUSTOMER, orders])
    client, name = table_of(store)
    if store.backend.has_tags:
        arn = client.describe_table(TableName=name)["Table"]["TableArn"]
        client.tag_resource(ResourceArn=arn, Tags=[{"Key": "cost", "Value": "42"}])
    before = client.describe_table(TableName=name)["Table"]
    store.apply([CUSTOMER, customer_view(total=Float64, tags={"team": "growth"})])
    assert client.describe_table(TableName=name)["Table"] == before
    if store.backend.has_tags:
        tags = client.list_tags_of_resource(ResourceArn=arn)["Tags"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {
            "feast_dynamo_ext.project": store.project,
            "cost": "42",
            "team": "growth",
        }


def all_tables(client):
    """Names of all tables, of other tests too; an answer has a hundred."""
    pages = client.get_paginator("list_tables").paginate()
    return {name for page in pages for name in page["TableNames"]}


def test_a_removed_view_keeps_its_table_unless_told_otherwise(store, open_store, caplog):
    orders = customer_view(total=Float64)
    store.apply([CUSTOMER, orders])
    client, name = table_of(store)
    store.apply([], objects_to_delete=[orders], partial=False)
    assert name in all_tables(client)
    assert f"its table {name} is kept" in caplog.text

    online = {
        "region": "us-east-1",
        "endpoint_url": store.backend.endpoint,
        "on_remove": "delete",
    }
    deleting = open_store(store.project, online=online)
    deleting.apply([CUSTOMER, orders])
    deleting.apply([], objects_to_delete=[orders], partial=False)
    assert name not in all_tables(client)


def test_a_table_of_another_layout_is_refused_by_name(store):
    client, name = table_of(store)
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "entity_id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "entity_id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    with pytest.raises(TableLayoutError, match=rf"{name}.*entity_id \(S\).*table_name_template"):
        store.apply([CUSTOMER, customer_view(total=Float64)])


def test_a_missing_table_is_named_with_the_way_out(store):
    orders = customer_view(total=Float64)
    store.apply([CUSTOMER, orders])
    client, name = table_of(store)
    client.delete_table(TableName=name)
    with pytest.raises(ResourceNotFoundError, match=rf"{name}.*feast apply"):
        read(store, ["orders:total"], [{"cid": 1}])
    with pytest.raises(ResourceNotFoundError, match=rf"{name}.*feast apply"):
        write(store, orders, [(key(cid=1), {"total": 1.0}, NOW, None)])


def test_rows_that_dynamodb_cannot_hold_are_refused_before_anything_is_written(store):
    orders = customer_view("notes", text=String)
    store.apply([CUSTOMER, orders])
    fits = (key(cid=1), {"text": "x"}, NOW, None)
    with pytest.raises(ItemTooLargeError, match=r"`notes`.*409,600"):
        write(store, orders, [fits, (key(cid=2), {"text": "x" * 410_000}, NOW, None)])
    with pytest.raises(EntityKeyError, match=r"`notes`.*2,048"):
        write(store, orders, [fits, (key(cid="x" * 2_048), {"text": "x"}, NOW, None)])
    assert read(store, ["notes:text"], [{"cid": 1}]).to_dict()["text"] == [None]


def test_a_request_without_a_join_key_is_refused_by_name(store):
    shop = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)
    pairs = customer_view("pairs", entities=(CUSTOMER, shop), visits=Int64)
    store.apply([CUSTOMER, shop, pairs])
    with pytest.raises(EntityKeyError, match=r"`pairs` needs `sid`.*it has `cid`, `sit`\."):
        read(store, ["pairs:visits"], [{"cid": 1, "sit": "a"}])
    with pytest.raises(EntityKeyError, match=r"`pairs` needs `cid`, `sid`.*it has `cit`\."):
        read(store, ["pairs:visits"], {"cit": [1]})


def test_a_request_without_rows_is_refused(store):
    orders = customer_view(total=Float64)
    store.apply([CUSTOMER, orders])
    with pytest.raises(EntityKeyError, match=r"`orders` has no entity rows"):
        read(store, ["orders:total"], {"cid": []})
    with pytest.raises(EntityKeyError, match="no entity rows"):
        read(store, ["orders:total"], [])


def test_online_read_answers_event_times_and_values_per_key(store):
    orders = customer_view(total=Float64, count=Int64)
    store.apply([CUSTOMER, orders])
    write(store, orders, [(key(cid=1), {"total": 1.0, "count": 2}, NOW, None)])
    provider = store._get_provider()
    rows = provider.online_read(
        store.config, orders, [key(cid=2), key(cid=1), key(cid=1)], ["count"]
    )
    found = (NOW, {"count": Value(int64_val=2)})
    assert rows == [(None, None), found, found]


def test_a_view_wider_than_any_projection_expression_is_read_whole(store):
    names = [f"a_feature_with_a_long_name_{number:03}" for number in range(300)]
    wide = customer_view("wide", **dict.fromkeys(names, Int64))
    store.apply([CUSTOMER, wide])
    write(
        store,
        wide,
        [(key(cid=1), {name: number for number, name in enumerate(names)}, NOW, None)],
    )
    answer = read(store, [f"wide:{name}" for name in names], [{"cid": 1}]).to_dict()
    assert [answer[name] for name in names] == [[number] for number in range(300)]


STRANGE_ITEMS = {
    "another fingerprint": lambda item: {**item, "f": {"B": b"12345678"}},
    "a fingerprint of another type": lambda item: {**item, "f": {"S": "12345678"}},
    "values of another type": lambda item: {**item, "v": {"S": "1.0"}},
    "values cut short": lambda item: {**item, "v": {"B": item["v"]["B"][:-1]}},
    "no values": lambda item: {**item, "v": {"B": b"\x0a"}},
    "other bytes": lambda item: {**item, "v": {"B": b"\x0a\x02\xff\xff"}},
    "other attributes": lambda item: {"total": {"N": "1"}},
}


@pytest.mark.parametrize("strange", STRANGE_ITEMS.values(), ids=list(STRANGE_ITEMS))
def test_an_item_of_somebody_else_is_its_entitys_status_alone(store, strange):
    orders = customer_view(total=Float64)
    store.apply([CUSTOMER, orders])
    write(store, orders, [(key(cid=1), {"total": 1.0}, NOW, None)])
    client, name = table_of(store)
    (item,) = (item for item in scan(client, name) if "s" not in item)
    client.put_item(TableName=name, Item={"k": item["k"], **strange(item)})
    write(store, orders, [(key(cid=2), {"total": 2.0}, NOW, None)])
    response = read(store, ["orders:total"], [{"cid": 1}, {"cid": 2}, {"cid": 3}, {"cid": 1}])
    assert response.to_dict()["total"] == [None, 2.0, None, None]
    assert statuses(response)["total"] == [INVALID, PRESENT, NOT_FOUND, INVALID]
    provider = store._get_provider()
    with pytest.raises(ItemFormatError, match=rf"`{name}`.*feast materialize"):
        provider.online_read(store.config, orders, [key(cid=1)], ["total"])
    write(store, orders, [(key(cid=1), {"total": 3.0}, NOW, None)])
    assert read(store, ["orders:total"], [{"cid": 1}]).to_dict()["total"] == [3.0]
