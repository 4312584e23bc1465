"""The item layout, against boto3's own serializer and Feast's protos."""

from __future__ import annotations

import base64
import datetime as dt
from decimal import Decimal

import pytest
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.layouts.packed import (
    MAX_ITEM_BYTES,
    Row,
    RowSchema,
    entity_of,
    item_bytes,
    key_bytes,
    newest_per_key,
    pack,
    to_item,
    to_schema_item,
    unpack,
)
from feast_dynamo_ext.errors import EntityKeyError, ItemTooLargeError
from feast_dynamo_ext.timestamps import micros_of

SCHEMA = RowSchema(("a", "b"), ("DOUBLE", "STRING"))
int64 = st.integers(-(2**63), 2**63 - 1)

values = st.one_of(
    st.just(Value()),
    st.builds(lambda v: Value(int64_val=v), int64),
    st.builds(lambda v: Value(int32_val=v), st.integers(-(2**31), 2**31 - 1)),
    st.builds(lambda v: Value(double_val=v), st.floats(allow_nan=False)),
    st.builds(lambda v: Value(float_val=v), st.floats(width=32, allow_nan=False)),
    st.builds(lambda v: Value(bool_val=v), st.booleans()),
    st.builds(lambda v: Value(string_val=v), st.text()),
    st.builds(lambda v: Value(bytes_val=v), st.binary()),
)
entity_values = st.one_of(
    st.builds(lambda v: Value(string_val=v), st.text(max_size=40)),
    st.builds(lambda v: Value(int64_val=v), int64),
    st.builds(lambda v: Value(bytes_val=v), st.binary(max_size=40)),
)
rows = st.builds(
    Row,
    key=st.sampled_from([b"one", b"two", b"three"]),
    values=st.binary(max_size=20),
    event_us=st.integers(-3, 3),
    created_us=st.one_of(st.none(), st.integers(-3, 3)),
)


@given(st.lists(values, max_size=20))
def test_values_are_one_message_of_feast(cells):
    packed = pack(cells)
    assert list(unpack(packed)) == cells
    assert list(RepeatedValue.FromString(packed).val) == cells


@given(
    event_us=st.integers(-(10**16), 10**17),
    created_us=st.one_of(st.none(), st.integers(-(10**16), 10**17)),
    packed=st.binary(max_size=200),
    key=st.binary(min_size=1, max_size=100),
    ttl_s=st.one_of(st.none(), st.integers(1, 10**9)),
)
def test_an_item_is_what_boto3_makes_of_the_same_attributes(
    event_us, created_us, packed, key, ttl_s
):
    item = to_item(Row(key, packed, event_us, created_us), SCHEMA, ttl_s, "view")
    expected = {"k": key, "v": packed, "t": event_us, "f": SCHEMA.fingerprint}
    if created_us is not None:
        expected["c"] = created_us
    if ttl_s is not None:
        expected["x"] = event_us // 1_000_000 + ttl_s + 1
    serializer = TypeSerializer()
    by_boto3 = {
        name: serializer.serialize(Decimal(value) if isinstance(value, int) else value)
        for name, value in expected.items()
    }
    as_json = {
        name: {"B": base64.b64encode(value["B"]).decode()} if "B" in value else value
        for name, value in by_boto3.items()
    }
    assert item == as_json
    deserializer = TypeDeserializer()
    assert {name: deserializer.deserialize(value) for name, value in by_boto3.items()} == expected


@given(st.dictionaries(st.text(min_size=1, max_size=10), entity_values, min_size=1, max_size=3))
def test_a_key_is_feasts_serialized_entity_key_and_can_be_read_back(entity):
    proto = EntityKey(join_keys=list(entity), entity_values=list(entity.values()))
    key = key_bytes(proto, "view")
    assert key == serialize_entity_key(proto, entity_key_serialization_version=3)
    plain = {name: getattr(value, value.WhichOneof("val")) for name, value in entity.items()}
    # Feast's own reader strips zero bytes from the end of a join key's name.
    assert entity_of(key) == {name.rstrip("\x00"): value for name, value in plain.items()}


@given(st.lists(rows, max_size=12))
def test_newest_per_key_equals_a_plain_loop(given_rows):
    expected = {}
    for row in given_rows:
        held = expected.get(row.key)
        older = held and (held.event_us, held.created_us if held.created_us is not None else -99)
        if (
            held is None
            or (
                row.event_us,
                row.created_us if row.created_us is not None else -99,
            )
            >= older
        ):
            expected[row.key] = row
    assert {row.key: row for row in newest_per_key(given_rows)} == expected


def test_the_size_of_an_item_by_dynamodbs_rule():
    # https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    # names k, v, t, f: 4 bytes; key 3; values 10; fingerprint 8;
    # number of 16 digits: (16 + 1) // 2 + 1 = 9
    item = to_item(Row(b"key", b"x" * 10, 1_700_000_000_000_000, None), SCHEMA, None, "view")
    assert item_bytes(item) == 4 + 3 + 10 + 8 + 9


def test_ten_doubles_with_long_names_take_under_45_percent_of_feasts_item():
    names = tuple(f"feature_with_20_ch{i:02}" for i in range(10))
    schema = RowSchema(names, ("DOUBLE",) * 10)
    key = key_bytes(EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=7)]), "v")
    row = Row(key, pack([Value(double_val=i + 0.1) for i in range(10)]), 1_700_000_000_000_000, 0)
    # Feast's: entity_id (32 hex digits), event_ts (text), values: a map of name -> Value proto.
    feast = len("entity_id") + 32 + len("event_ts") + len("2023-11-14 22:13:20+00:00")
    feast += len("values") + 3 + sum(1 + len(name) + 9 for name in names)
    assert item_bytes(to_item(row, schema, None, "v")) / feast < 0.45


def test_a_row_over_400_kb_is_refused_by_name():
    key = key_bytes(EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=7)]), "v")
    packed = pack([Value(bytes_val=b"x" * MAX_ITEM_BYTES)])
    with pytest.raises(ItemTooLargeError, match=r"`orders`.*\['cid'\].*409,600"):
        to_item(Row(key, packed, 0, None), SCHEMA, None, "orders")


def test_a_key_over_2048_bytes_is_refused_by_name():
    proto = EntityKey(join_keys=["url"], entity_values=[Value(string_val="x" * 2_048)])
    with pytest.raises(EntityKeyError, match=r"`orders`.*\['url'\].*2,048"):
        key_bytes(proto, "orders")


def test_a_key_of_a_type_without_encoding_is_refused_by_name():
    proto = EntityKey(join_keys=["score"], entity_values=[Value(double_val=1.5)])
    with pytest.raises(EntityKeyError, match=r"`orders`.*\['score'\]"):
        key_bytes(proto, "orders")


def test_a_fingerprint_tells_names_types_and_order_apart():
    schemas = [
        SCHEMA,
        RowSchema(("b", "a"), ("STRING", "DOUBLE")),
        RowSchema(("a", "b"), ("FLOAT", "STRING")),
        RowSchema(("a",), ("DOUBLE",)),
    ]
    assert len({schema.fingerprint for schema in schemas}) == len(schemas)
    assert RowSchema.parse(to_schema_item(SCHEMA)["s"]["S"]) == SCHEMA
    assert SCHEMA.fingerprint.hex() == "921018d741f4b773"  # stored in tables: may never change


def test_event_times_keep_their_microseconds_and_naive_ones_are_utc():
    moment = dt.datetime(2026, 3, 29, 2, 30, 0, 123_457)  # noqa: DTZ001 - naive on purpose
    assert micros_of(moment) == 1_774_751_400_123_457
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
    assert micros_of(moment.replace(tzinfo=zone)) == 1_774_751_400_123_457 - 19_800_000_000
