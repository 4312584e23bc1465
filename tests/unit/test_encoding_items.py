"""Items, keys and requests of encoded rows are what the row-by-row code makes of each."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import orjson
import pyarrow as pa
import pytest
from examples import cases
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.encoding import requests as column_base64
from feast_dynamo_ext.dynamo.encoding.marks import cohort_texts
from feast_dynamo_ext.dynamo.encoding.requests import (
    EncodedRows,
    Try,
    json_elements,
    json_elements_of_rows,
    refuse_too_large,
    statement,
)
from feast_dynamo_ext.dynamo.encoding.values import encode_values
from feast_dynamo_ext.dynamo.layouts.packed import (
    MAX_ITEM_BYTES,
    Row,
    RowSchema,
    item_bytes,
    pack,
    to_item,
)
from feast_dynamo_ext.dynamo.layouts.series import CohortMarker
from feast_dynamo_ext.errors import ColumnTypeError, ItemTooLargeError

SCHEMA = RowSchema(("a", "b"), ("DOUBLE", "STRING"))
TABLE = 'shop."ördérs"'
ENTITY = pa.array(
    [serialize_entity_key(EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=7)]), 3)],
    pa.large_binary(),
)

moments = st.integers(-(10**16), 10**17)
rows_with = {
    "created times": st.builds(
        Row, st.binary(min_size=1, max_size=40), st.binary(max_size=60), moments, moments
    ),
    "some created times": st.builds(
        Row,
        st.binary(min_size=1, max_size=40),
        st.binary(max_size=60),
        moments,
        st.none() | moments,
    ),
    "no created times": st.builds(
        Row, st.binary(min_size=1, max_size=40), st.binary(max_size=60), moments, st.none()
    ),
}


@st.composite
def batches(draw):
    """Rows, and the same rows encoded, cut out of longer arrays."""
    created = draw(st.sampled_from(sorted(rows_with)))
    rows = draw(st.lists(rows_with[created], max_size=8))
    ttl_s = draw(st.none() | st.integers(0, 10**9))
    cut = draw(st.integers(0, len(rows)))
    keep_column = draw(st.booleans())
    columns = [pa.array([row[at] for row in rows], kind) for at, kind in enumerate(
        [pa.large_binary(), pa.large_binary(), pa.int64(), pa.int64()]
    )]  # fmt: skip
    if created == "no created times" and not keep_column:
        columns[3] = None
    sliced = [None if column is None else column.slice(cut) for column in columns]
    return rows[cut:], EncodedRows(*sliced, SCHEMA, ttl_s)


MARKS = {
    "g_seg ment": ("S", st.text(st.characters(exclude_categories=["Cs"]), max_size=9)),
    "g_größe": ("S", st.sampled_from(['=a"b', "=\\", "=\n", "="])),
    "o_amount": ("B", st.binary(max_size=9)),
    "s": ("B", st.binary(min_size=1, max_size=9)),
}
ARROW = {"S": pa.large_string(), "B": pa.large_binary()}


@st.composite
def marked_batches(draw):
    """Rows with further attributes, as (row, attributes) and encoded."""
    rows, encoded = draw(batches())
    names = draw(st.lists(st.sampled_from(sorted(MARKS)), unique=True))
    columns, marks = [], {}
    for name in names:
        kind, values = MARKS[name]
        present = values if name == "s" else st.none() | values  # a sort key is always there
        column = draw(st.lists(present, min_size=len(rows), max_size=len(rows)))
        marks[name] = kind, pa.array([None, *column], ARROW[kind]).slice(1)
        columns.append(column)
    of_rows = [
        {
            name: {
                MARKS[name][0]: value
                if MARKS[name][0] == "S"
                else base64.b64encode(value).decode()
            }
            for name, value in zip(names, cells, strict=True)
            if value is not None
        }
        for cells in (zip(*columns, strict=True) if columns else [()] * len(rows))
    ]
    return list(zip(rows, of_rows, strict=True)), replace(encoded, marks=marks)


@given(marked_batches(), st.sampled_from(Try))
@cases()
def test_further_attributes_are_those_of_one_row(batch, how):
    rows, encoded = batch
    items = [to_item(row, SCHEMA, encoded.ttl_s, "v", marks=marks) for row, marks in rows]
    assert encoded.item_json().to_pylist() == [orjson.dumps(item) for item in items]
    assert encoded.sizes().tolist() == [item_bytes(item) for item in items]
    assert [encoded.item(at) for at in range(len(rows))] == items
    assert [encoded.marks_of(at) for at in range(len(rows))] == [marks for _, marks in rows]
    optional = tuple(name for name in encoded.marks if name != "s")
    assert encoded.statement_json(TABLE, how).to_pylist() == [
        orjson.dumps(statement(TABLE, item, how, "event", optional)) + b"," for item in items
    ]


def test_a_row_is_refused_for_its_further_attributes():
    room = MAX_ITEM_BYTES - 4 - len(ENTITY[0].as_py()) - 9 - 8
    rows = replace(rows_of([b"x" * (room - 10)]), keys=ENTITY)
    fits, one_more = (
        replace(rows, marks={"g_seg": ("S", pa.array([text], pa.large_string()))})
        for text in ("=1234", "=12345")
    )
    refuse_too_large(fits, "orders")
    with pytest.raises(ItemTooLargeError, match="409,601 bytes"):
        refuse_too_large(one_more, "orders")


def test_attributes_of_cohorts_are_those_of_one_row():
    schema = RowSchema(("n", "seg", "is_new"), ("INT64", "STRING", "BOOL"))
    kinds = (ValueType.INT64, ValueType.STRING, ValueType.BOOL)
    columns = (
        pa.array([1, None, -(2**63)], pa.int64()),
        pa.array(["gold", "", None]).dictionary_encode(),
        pa.array([True, False, None]),
    )
    values = encode_values(list(columns), kinds, schema.names)
    mark = CohortMarker.from_names("v", ["is_new", "n", "seg"], schema)
    rows = [Row(b"k", each, 0, None) for each in values.to_pylist()]
    assert [mark(row) for row in rows] == [
        {"g_is_new": {"S": "=true"}, "g_n": {"S": "=1"}, "g_seg": {"S": "=gold"}},
        {"g_is_new": {"S": "=false"}, "g_seg": {"S": "="}},
        {"g_n": {"S": f"={-(2**63)}"}},
    ]
    for name, kind, column in zip(schema.names, kinds, columns, strict=True):
        texts = cohort_texts(column, kind, name, "v")
        assert texts.type == pa.large_string()
        assert texts.to_pylist() == [mark(row).get(f"g_{name}", {}).get("S") for row in rows]


def test_a_value_too_long_for_a_cohort_is_refused_alike():
    schema, long = RowSchema(("seg",), ("STRING",)), "é" * 1_024
    row = Row(b"k", pack([Value(string_val=long)]), 0, None)
    refusal = r"`v`: `seg` of a row makes a key of 2,049 bytes; .* 2,048\."
    with pytest.raises(ColumnTypeError, match=refusal):
        CohortMarker.from_names("v", ["seg"], schema)(row)
    with pytest.raises(ColumnTypeError, match=refusal):
        cohort_texts(pa.array([long]), ValueType.STRING, "seg", "v")


@given(st.lists(st.binary(max_size=100)), st.integers(0, 3))
@cases()
def test_base64_is_that_of_the_standard_library(elements, cut):
    array = pa.array(elements, pa.large_binary()).slice(cut)
    encoded = column_base64.base64_of(array)
    encoded.validate(full=True)
    assert encoded.to_pylist() == [base64.b64encode(element) for element in elements[cut:]]


@given(batches())
@cases()
def test_items_are_those_of_to_item(batch):
    rows, encoded = batch
    items = [to_item(row, SCHEMA, encoded.ttl_s, "v") for row in rows]
    assert len(encoded) == len(rows)
    assert encoded.item_json().to_pylist() == [orjson.dumps(item) for item in items]
    assert encoded.put_json().to_pylist() == [
        orjson.dumps({"PutRequest": {"Item": item}}) + b"," for item in items
    ]
    assert encoded.sizes().tolist() == [item_bytes(item) for item in items]
    assert [encoded.item(at) for at in range(len(rows))] == items
    assert encoded.keys_of(range(len(rows))) == tuple(row.key for row in rows)


@given(batches(), st.sampled_from(Try))
@cases()
def test_statements_are_those_of_one_row(batch, how):
    rows, encoded = batch
    expected = [
        orjson.dumps(statement(TABLE, to_item(row, SCHEMA, encoded.ttl_s, "v"), how)) + b","
        for row in rows
    ]
    assert encoded.statement_json(TABLE, how).to_pylist() == expected


def rows_of(values, event_us=1_700_000_000_000_000, created_us=None, ttl_s=None):
    count = len(values)
    return EncodedRows(
        pa.array([b"k%d" % at for at in range(count)], pa.large_binary()),
        pa.array(values, pa.large_binary()),
        pa.array([event_us] * count),
        created_us and pa.array(created_us, pa.int64()),
        SCHEMA,
        ttl_s,
    )


def test_requests_written_out():
    rows = rows_of([b"a", b"b"], created_us=[7, None], ttl_s=60)
    first = (
        b'{"PutRequest":{"Item":{"k":{"B":"azA="},"v":{"B":"YQ=="},"t":{"N":"1700000000000000"},'
        b'"f":{"B":"khAY10H0t3M="},"c":{"N":"7"},"x":{"N":"1700000061"}}}}'
    )
    second = (
        b'{"PutRequest":{"Item":{"k":{"B":"azE="},"v":{"B":"Yg=="},"t":{"N":"1700000000000000"},'
        b'"f":{"B":"khAY10H0t3M="},"x":{"N":"1700000061"}}}}'
    )
    assert json_elements(rows.put_json(), 0, 2) == first + b"," + second
    assert rows.statement_json("orders", Try.INSERT)[1].as_py() == (
        b"{\"Statement\":\"INSERT INTO \\\"orders\\\" VALUE {'k':?,'v':?,'t':?,'f':?,'x':?}\","
        b'"Parameters":[{"B":"azE="},{"B":"Yg=="},{"N":"1700000000000000"},'
        b'{"B":"khAY10H0t3M="},{"N":"1700000061"}]},'
    )
    assert rows.statement_json("orders", Try.UPDATE)[0].as_py() == (
        b'{"Statement":"UPDATE \\"orders\\" SET v=? SET t=? SET f=? SET c=? SET x=? WHERE k=? '
        b'AND (t<? OR (t=? AND (c IS MISSING OR c<=?)) OR t IS MISSING)",'
        b'"Parameters":[{"B":"YQ=="},'
        b'{"N":"1700000000000000"},{"B":"khAY10H0t3M="},{"N":"7"},{"N":"1700000061"},'
        b'{"B":"azA="},{"N":"1700000000000000"},{"N":"1700000000000000"},{"N":"7"}],'
        b'"ReturnValuesOnConditionCheckFailure":"ALL_OLD"},'
    )


@given(st.lists(st.binary(min_size=1), max_size=9), st.data())
@cases()
def test_fragments_are_put_together_with_commas_between(elements, data):
    array = pa.array([element + b"," for element in elements], pa.large_binary())
    start = data.draw(st.integers(0, len(elements)))
    stop = data.draw(st.integers(start, len(elements)))
    assert json_elements(array, start, stop) == b",".join(elements[start:stop])
    assert json_elements(array.slice(start), 0, stop - start) == b",".join(elements[start:stop])
    rows = data.draw(st.lists(st.integers(0, len(elements) - 1))) if elements else []
    assert json_elements_of_rows(array, rows) == b",".join(elements[row] for row in rows)


def test_a_row_over_400_kb_is_refused_in_the_words_of_one_row():
    key = serialize_entity_key(EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=7)]), 3)
    values = pack([Value(bytes_val=b"x" * MAX_ITEM_BYTES)])
    one = EncodedRows(
        pa.array([b"small", key], pa.large_binary()),
        pa.array([b"small", values], pa.large_binary()),
        pa.array([0, 5]),
        None,
        SCHEMA,
        None,
    )
    with pytest.raises(ItemTooLargeError, match=r"`orders`.*\['cid'\].*time 5 us.*409,600"):
        refuse_too_large(one, "orders")


def test_a_row_may_take_400_kb_and_no_more():
    # names k, v, t, f: 4 bytes; key k0: 2; number of 16 digits: 9; fingerprint: 8
    room = MAX_ITEM_BYTES - 4 - 2 - 9 - 8
    assert rows_of([b"x" * room]).sizes().tolist() == [MAX_ITEM_BYTES]
    refuse_too_large(rows_of([b"x" * room]), "orders")
    assert rows_of([b"x" * (room + 1)]).sizes().tolist() == [MAX_ITEM_BYTES + 1]


def test_numbers_count_half_a_byte_a_digit():
    events = np.array([0, -1, 12, -123, 10**16, -(2**63), 2**63 - 1])
    count = len(events)
    rows = EncodedRows(
        pa.array([b"k"] * count, pa.large_binary()),
        pa.array([b""] * count, pa.large_binary()),
        pa.array(events),
        None,
        SCHEMA,
        None,
    )
    # names 4, key 1, fingerprint 8; then a sign, half the digits rounded up, and one
    assert (rows.sizes() - 13).tolist() == [2, 3, 2, 4, 10, 12, 11]
