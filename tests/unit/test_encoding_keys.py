"""Entity keys of whole columns are Feast's, byte for byte."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest
from examples import cases
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from feast_values import feast_values
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.keys import KeyEncoder, encode_keys
from feast_dynamo_ext.errors import ColumnTypeError, EntityKeyError, UnsupportedTypeError

UTC = dt.timezone.utc
TYPES = {
    "STRING": (pa.string(), st.text(max_size=30)),
    "BYTES": (pa.binary(), st.binary(max_size=30)),
    "INT32": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "INT64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "UNIX_TIMESTAMP": (
        pa.timestamp("us", "UTC"),
        # Of keys: whole seconds.
        st.datetimes(dt.datetime(1900, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
            lambda time: time.replace(microsecond=0)
        ),
    ),
}
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@st.composite
def join_keys(draw):
    """Names, value types and columns of the same length, cut out of longer ones."""
    keys = draw(st.dictionaries(names, st.sampled_from(sorted(TYPES)), min_size=1, max_size=4))
    rows, cut = draw(st.integers(0, 6)), draw(st.integers(0, 2))
    columns = []
    for kind in keys.values():
        arrow, cells = TYPES[kind]
        values = draw(st.lists(cells, min_size=rows + cut, max_size=rows + cut))
        columns.append(pa.array(values, arrow).slice(cut))
    return list(keys), [ValueType[kind] for kind in keys.values()], columns, rows


@given(join_keys())
@cases()
def test_keys_are_those_that_feast_makes(given_keys):
    join_keys, kinds, columns, rows = given_keys
    encoded = encode_keys(columns, kinds, join_keys, "v", rows)
    encoded.validate(full=True)
    values = [feast_values(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    assert encoded.to_pylist() == [
        serialize_entity_key(EntityKey(join_keys=join_keys, entity_values=row), 3)
        for row in zip(*values, strict=True)
    ]


def test_a_key_written_out():
    columns = [pa.array(["ä", ""]).dictionary_encode(), pa.chunked_array([[-2], [5]])]
    kinds = [ValueType.STRING, ValueType.INT32]
    encoded = encode_keys(columns, kinds, ["user", "age"], "v", 2)
    prefix = (
        b"\x02\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00age\x02\x00\x00\x00\x04\x00\x00\x00user"
    )
    assert encoded.to_pylist() == [
        prefix
        + b"\x03\x00\x00\x00\x04\x00\x00\x00\xfe\xff\xff\xff"
        + b"\x02\x00\x00\x00\x02\x00\x00\x00\xc3\xa4",
        prefix
        + b"\x03\x00\x00\x00\x04\x00\x00\x00\x05\x00\x00\x00"
        + b"\x02\x00\x00\x00\x00\x00\x00\x00",
    ]


def test_a_view_without_entities_has_feasts_one_key():
    key = b"\1\0\0\0\2\0\0\0\x0a\0\0\0__dummy_id\2\0\0\0\0\0\0\0"
    assert encode_keys([], [], [], "v", 2).to_pylist() == [key, key]
    assert encode_keys([], [], [], "v", 0).to_pylist() == []


def test_null_keys_are_refused_with_their_count():
    columns = [pa.array(["a", None, None])]
    with pytest.raises(EntityKeyError, match=r"`orders`: 2 rows have no `user`\. Filter them"):
        encode_keys(columns, [ValueType.STRING], ["user"], "orders", 3)


def test_a_key_may_take_2048_bytes_and_no_more():
    # 4 bytes of count, 8 and 4 of the name, 8 before the text
    fits = encode_keys([pa.array(["x" * 2_024])], [ValueType.STRING], ["user"], "orders", 1)
    assert len(fits[0].as_py()) == 2_048
    column = pa.array(["x", "x" * 2_025])
    with pytest.raises(EntityKeyError, match=r"`orders`.*\['user'\] takes 2,049 bytes"):
        encode_keys([column], [ValueType.STRING], ["user"], "orders", 2)


@pytest.mark.parametrize(
    ("column", "kind"), [(pa.array([1.5]), "DOUBLE"), (pa.array([[1]]), "INT64_LIST")]
)
def test_a_type_that_cannot_be_a_key_is_refused(column, kind):
    with pytest.raises(EntityKeyError, match=r"`orders`.*\['user'\] cannot be serialized"):
        encode_keys([column], [ValueType[kind]], ["user"], "orders", 1)
    assert not len(encode_keys([column[:0]], [ValueType[kind]], ["user"], "orders", 0))


def test_a_column_that_does_not_fit_its_join_key_is_named():
    with pytest.raises(ColumnTypeError, match=r"`user` is declared as INT64.*uint64"):
        encode_keys([pa.array([2**63], pa.uint64())], [ValueType.INT64], ["user"], "orders", 1)
    with pytest.raises(UnsupportedTypeError, match=r"`user` is a duration"):
        encode_keys([pa.array([1], pa.duration("s"))], [ValueType.INT64], ["user"], "orders", 1)


SECOND = 1_767_225_600  # 2026-01-01
TICKS = pa.array([SECOND * 10**6, (SECOND + 1) * 10**6])


@pytest.mark.parametrize(
    ("kind", "column", "keys"),
    [
        ("STRING", pa.array([7, 8]), [Value(string_val="7"), Value(string_val="8")]),
        ("STRING", pa.array([Decimal(7)], pa.decimal128(38, 0)), [Value(string_val="7")]),
        ("STRING", pa.array([b"ann"]), [Value(string_val="ann")]),
        (
            "STRING", pa.array([bytes(15) + b"\7"], pa.uuid()),
            [Value(string_val="00000000-0000-0000-0000-000000000007")],
        ),
        ("INT64", pa.array([7.0, -8.0]), [Value(int64_val=7), Value(int64_val=-8)]),
        ("INT64", pa.array([Decimal("7.00")]), [Value(int64_val=7)]),
        ("BYTES", pa.array(["ann"]), [Value(bytes_val=b"ann")]),
        *(
            ("UNIX_TIMESTAMP", column, [Value(unix_timestamp_val=at) for at in seconds])
            for column, seconds in (
                (TICKS.cast(pa.timestamp("us", "UTC")), [SECOND, SECOND + 1]),
                (TICKS.cast(pa.timestamp("us")).cast(pa.timestamp("ns")), [SECOND, SECOND + 1]),
                (TICKS.cast(pa.timestamp("us", "Asia/Tokyo")), [SECOND, SECOND + 1]),
                (pa.array([-1], pa.timestamp("s")), [-1]),
                (pa.array([dt.date(2026, 1, 1)]), [SECOND]),
                (pa.array([dt.date(2026, 1, 1)], pa.date64()), [SECOND]),
                (pa.array([SECOND]), [SECOND]),
                (pa.array([float(SECOND)]), [SECOND]),
            )
        ),
    ],
)  # fmt: skip
def test_keys_are_those_that_their_readers_look_up(kind, column, keys):
    encoded = encode_keys([column], [ValueType[kind]], ["user"], "orders", len(column))
    encode = KeyEncoder(("user",), "orders", (kind,))
    assert encoded.to_pylist() == [encode([value]) for value in keys]


@pytest.mark.parametrize(
    ("kind", "column", "words"),
    [
        ("STRING", pa.array([True]), "values of type bool are not looked up as"),
        ("STRING", pa.array([7.0]), "values of type double are not looked up as"),
        ("STRING", pa.array([7.0], pa.float32()), "values of type float are not looked up as"),
        ("STRING", pa.array([0], pa.timestamp("us")), "values of type timestamp"),
        ("STRING", pa.array([0], pa.date32()), "values of type date32"),
        ("STRING", pa.array([Decimal("7.50")]), "values of type decimal128"),
        ("INT64", pa.array([True]), "values of type bool are not looked up as"),
        ("INT32", pa.array([True]), "values of type bool are not looked up as"),
        ("INT64", pa.array([0], pa.timestamp("us")), "1 of 1 values of type timestamp"),
        ("INT64", pa.array(["7"]), "1 of 1 values of type string"),
        ("UNIX_TIMESTAMP", pa.array([1, 10**6], pa.timestamp("us")), "1 of 2 times .* second"),
        ("UNIX_TIMESTAMP", pa.array([1, 2], pa.timestamp("ns", "UTC")), "2 of 2 times .* second"),
        ("UNIX_TIMESTAMP", pa.array([1], pa.timestamp("ms")), "1 of 1 times .* second"),
        ("UNIX_TIMESTAMP", pa.array([1.5]), "1 of 1 values of type double"),
        ("UNIX_TIMESTAMP", pa.array(["2026-01-01"]), "1 of 1 values of type string"),
    ],
)
def test_keys_that_their_readers_would_not_look_up_are_refused(kind, column, words):
    named = rf"`orders`: `user` is declared as {kind}, .*{words}"
    with pytest.raises(ColumnTypeError, match=named):
        encode_keys([column], [ValueType[kind]], ["user"], "orders", len(column))
