"""The response, against Feast's own way to build it from Value objects."""

from __future__ import annotations

import base64
import datetime as dt

from examples import cases
from feast import FeatureView, Field
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import RepeatedValue, StringList, Value
from feast.types import Float64
from feast.utils import _populate_response_from_feature_data
from hypothesis import example, given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.keys import KeyEncoder
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, pack, split, to_item
from feast_dynamo_ext.dynamo.read import ViewRead, add_view, read_items
from feast_dynamo_ext.dynamo.schemas import SchemaCache
from feast_dynamo_ext.dynamo.views import KnownView

NAMES = ("a", "b", "c")
SCHEMA = RowSchema(NAMES, ("DOUBLE",) * 3)
NOW_S = 1_800_000_000.0

doubles = st.builds(lambda v: Value(double_val=v), st.floats(allow_nan=False))
values = st.one_of(
    doubles,
    doubles,
    st.just(Value()),
    st.builds(lambda v: Value(int64_val=v), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda v: Value(string_val=v), st.sampled_from(["", "x", "y" * 127, "z" * 20_000])),
    st.builds(
        lambda v: Value(string_list_val=StringList(val=v)),
        st.lists(st.text(max_size=5), max_size=3),
    ),
)
# Rows of doubles alone take the way through numpy; others do not.
row_values = st.one_of(st.tuples(doubles, doubles, doubles), st.tuples(values, values, values))
stored_rows = st.dictionaries(
    st.integers(0, 30), st.tuples(row_values, st.integers(0, 10**15)), max_size=25
)


def key_text(number: int) -> str:
    return base64.b64encode(b"%d" % number).decode()


def by_feast(asked, stored, requested):
    view = FeatureView(
        name="v", entities=[], schema=[Field(name=name, dtype=Float64) for name in NAMES]
    )
    rows = []
    for number in asked:
        if number in stored:
            cells, event_us = stored[number]
            moment = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=event_us)  # noqa: DTZ001
            rows.append((moment, dict(zip(NAMES, cells, strict=True))))
        else:
            rows.append((None, None))
    response = GetOnlineFeaturesResponse()
    indexes = [[index] for index in range(len(asked))]
    _populate_response_from_feature_data(
        list(requested), rows, indexes, response, True, view, len(asked)
    )
    return response


def by_us(asked, stored, requested):
    items = {
        key_text(number): to_item(
            Row(b"%d" % number, pack(cells), event_us, None), SCHEMA, None, "v"
        )
        for number, (cells, event_us) in stored.items()
        if number in asked
    }
    book = SchemaCache()
    book.learn("t", SCHEMA)
    view = KnownView(
        table="t",
        answers_as="v",
        schema=SCHEMA,
        ttl_s=None,
        columns=(("id", "id"),),
        encode=KeyEncoder(["id"], "v"),
        consistent=False,
        with_expired=False,
    )
    read = ViewRead(view, tuple(requested), tuple(map(key_text, asked)))
    response = GetOnlineFeaturesResponse()
    names = [f"v__{name}" for name in requested]
    add_view(response, read_items(read, items, book, NOW_S), names)
    return response


@cases()
@given(
    stored=stored_rows,
    asked=st.lists(st.integers(0, 31), min_size=1, max_size=30),
    requested=st.permutations(NAMES).flatmap(
        lambda names: st.integers(1, 3).map(lambda count: names[:count])
    ),
)
@example(  # enough rows of one shape, then one of another shape with the same number of bytes
    stored={
        **{n: ((Value(double_val=n),) * 3, n) for n in range(10)},
        10: (
            (Value(string_val="1234567"), Value(double_val=1.0), Value(string_val="1234567")),
            5,
        ),
    },
    asked=list(range(11)),
    requested=("c", "a"),
)
def test_equals_feasts_own_response(stored, asked, requested):
    assert by_us(asked, stored, requested) == by_feast(asked, stored, requested)


@given(st.lists(values, max_size=8))
def test_a_message_is_split_into_its_entries(cells):
    packed = pack(cells)
    entries = split(packed)
    assert b"".join(entries) == packed
    assert [RepeatedValue.FromString(entry).val[0] for entry in entries] == cells


def test_packed_values_and_a_vectors_values_are_the_same_field():
    ours = RepeatedValue.DESCRIPTOR.fields_by_name["val"]
    theirs = GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields_by_name["values"]
    assert (ours.number, ours.message_type) == (theirs.number, theirs.message_type)
