"""Our entity keys are Feast's, byte for byte."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from enum import Enum
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Null, Value
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.keys import KeyEncoder, are_as_they_are, refuse_inexact
from feast_dynamo_ext.errors import EntityKeyError

int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
# Also the default of each type, which protobuf keeps out of the message.
values = st.one_of(
    st.text(max_size=60).map(lambda text: Value(string_val=text)),
    st.binary(max_size=60).map(lambda data: Value(bytes_val=data)),
    int32.map(lambda number: Value(int32_val=number)),
    int64.map(lambda number: Value(int64_val=number)),
    int64.map(lambda number: Value(unix_timestamp_val=number)),
)
# Feast's own reader of keys cuts NUL characters off the names.
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
keys = st.dictionaries(names, values, max_size=5)


@given(key=keys)
def test_a_key_is_the_one_that_feast_makes(key):
    entity_key = EntityKey(join_keys=list(key), entity_values=list(key.values()))
    encoded = KeyEncoder(tuple(key), "v")(list(key.values()))
    assert encoded == serialize_entity_key(entity_key, entity_key_serialization_version=3)
    read = deserialize_entity_key(encoded, entity_key_serialization_version=3)
    assert dict(zip(read.join_keys, read.entity_values, strict=True)) == key


def test_a_key_written_out():
    encode = KeyEncoder(("user", "age"), "v")
    assert encode([Value(string_val="ä"), Value(int32_val=-2)]) == (
        b"\x02\x00\x00\x00"
        b"\x02\x00\x00\x00\x03\x00\x00\x00age"
        b"\x02\x00\x00\x00\x04\x00\x00\x00user"
        b"\x03\x00\x00\x00\x04\x00\x00\x00\xfe\xff\xff\xff"
        b"\x02\x00\x00\x00\x02\x00\x00\x00\xc3\xa4"
    )


@pytest.mark.parametrize(
    "value", [Value(), Value(null_val=Null.NULL), Value(double_val=1.0), Value(bool_val=True)]
)
@pytest.mark.parametrize("names", [("user",), ("user", "shop")])
def test_a_value_that_cannot_be_a_key_is_refused(value, names):
    row = [value, Value(string_val="s")][: len(names)]
    with pytest.raises(EntityKeyError, match=r"Feature view `orders`: an entity key of \['user'"):
        KeyEncoder(names, "orders")(row)


def test_a_key_may_take_2048_bytes_and_no_more():
    encode = KeyEncoder(("user",), "orders")
    # 4 bytes of count, 8 and 4 of the name, 8 before the text
    assert len(encode([Value(string_val="x" * 2_024)])) == 2_048
    with pytest.raises(EntityKeyError, match=r"takes 2,049 bytes"):
        encode([Value(string_val="x" * 2_025)])


@pytest.mark.parametrize("kind", ["INT32", "INT64", "UNIX_TIMESTAMP"])
def test_whole_numbers_are_encoded_as_the_view_declares_them(kind):
    fields = {"INT32": "int32_val", "INT64": "int64_val", "UNIX_TIMESTAMP": "unix_timestamp_val"}
    encode = KeyEncoder(("user",), "orders", (kind,))
    declared = Value(**{fields[kind]: -7})
    expected = serialize_entity_key(
        EntityKey(join_keys=["user"], entity_values=[declared]), entity_key_serialization_version=3
    )
    assert {encode([Value(**{field: -7})]) for field in fields.values()} == {expected}


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("INT32", Value(int64_val=2**31), "as INT32, which cannot hold"),
        ("INT32", Value(unix_timestamp_val=-(2**31) - 1), "as INT32, which cannot hold"),
        ("INT64", Value(string_val="7"), "as INT64, and the request has it as STRING"),
        ("STRING", Value(int64_val=7), "as STRING, and the request has it as INT64"),
        ("BYTES", Value(string_val="7"), "as BYTES, and the request has it as STRING"),
    ],
)
def test_a_value_that_the_declared_type_cannot_hold_is_refused_by_name(kind, value, words):
    for names in (("user",), ("user", "age")):
        encode = KeyEncoder(names, "orders", (kind, "INT64")[: len(names)])
        with pytest.raises(EntityKeyError, match=f"`orders` declares its join key `user` {words}"):
            encode([value, Value(int64_val=1)][: len(names)])


MOMENT = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
BELOW = "a time with a part below a second"


class Name(str, Enum):
    """A text whose own text is another: Feast looks up `Name.ANN`."""

    ANN = "ann"


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        # Feast looks up 'True', '1.0' and '2026-01-01 00:00:00+00:00'; none is what is written.
        ("STRING", True, "of type bool"),
        ("STRING", np.bool_(True), "of type bool"),
        ("STRING", 1.0, "of type float"),
        ("STRING", MOMENT, "of type datetime"),
        ("STRING", MOMENT.date(), "of type date"),
        ("STRING", np.datetime64("2026-01-01"), "of type datetime64"),
        ("STRING", Decimal("7.0"), "of type Decimal"),
        ("STRING", Decimal("NaN"), "of type Decimal"),
        ("STRING", Name.ANN, "of type Name"),
        ("STRING", object(), "of type object"),
        ("STRING", dt.timedelta(1), "of type timedelta"),
        # Feast makes a null of it.
        ("UNIX_TIMESTAMP", 1767225600.0, "a float, of which Feast makes no time"),
        ("UNIX_TIMESTAMP", np.float64(1767225600), "a float, of which Feast makes no time"),
        # Feast cuts off what is below a second.
        ("UNIX_TIMESTAMP", MOMENT.replace(microsecond=1), BELOW),
        ("UNIX_TIMESTAMP", pd.Timestamp(1, tz="UTC"), BELOW),
        ("UNIX_TIMESTAMP", np.datetime64("2026-01-01T00:00:00.001"), BELOW),
        ("UNIX_TIMESTAMP", MOMENT.date(), "a date; pass its midnight"),
        ("UNIX_TIMESTAMP", pd.NaT, "a missing value"),
        ("UNIX_TIMESTAMP", Value(unix_timestamp_val=7), "a message, of which Feast makes no key"),
        ("UNIX_TIMESTAMP", 2**63, "a number of more than 64 bits"),
        # Feast makes seconds of pandas' times alone, and fails for the others.
        ("INT64", MOMENT, "a time"),
        ("INT64", pd.Timestamp(MOMENT), "a time"),
        ("INT32", np.datetime64("2026-01-01"), "a time"),
        ("INT64", b"1", "of type bytes"),
        ("INT64", UUID(int=7), "of type UUID"),
        ("INT64", np.timedelta64(1, "s"), "of type timedelta64"),
        ("INT64", 1j, "of type complex"),
        ("INT64", pd.NA, "a missing value"),
        ("INT64", Decimal("NaN"), "a missing value"),
        ("INT64", 2**63, "a number of more than 64 bits"),
        ("INT32", 2**31, "a number of more than 32 bits"),
        ("INT32", -(2**31) - 1, "a number of more than 32 bits"),
        ("INT32", "", "text that is no whole number"),
        # Feast makes a null of it where no key of the request has bytes.
        ("BYTES", b"", "empty bytes"),
        ("BYTES", "a", "of type str"),
        ("BYTES", bytearray(b"a"), "of type bytearray"),
    ],
)
def test_keys_of_which_feast_makes_others_are_refused(kind, value, what):
    # Feast refuses numbers out of range and messages itself; all else needs our look.
    assert not are_as_they_are([value], kind) or isinstance(value, (int, Value))
    with pytest.raises(
        EntityKeyError, match=rf"`k` is declared as {kind}, but in row 1 .* {what}"
    ):
        refuse_inexact([None, value], kind, "k")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("STRING", "1"), ("STRING", ""), ("STRING", 1), ("STRING", np.int64(1)),
        ("STRING", Decimal(7)), ("STRING", UUID(int=7)), ("STRING", np.str_("a")),
        ("UNIX_TIMESTAMP", MOMENT), ("UNIX_TIMESTAMP", 1767225600),
        ("UNIX_TIMESTAMP", pd.Timestamp(MOMENT)), ("UNIX_TIMESTAMP", np.datetime64("2026-01-01")),
        ("INT64", -1), ("INT64", Decimal("7.0")), ("INT64", np.uint8(7)), ("INT64", "7"),
        ("BYTES", b"a"),
    ],
)  # fmt: skip
def test_keys_that_are_read_as_they_are_written_are_taken(kind, value):
    refuse_inexact([value], kind, "k")
