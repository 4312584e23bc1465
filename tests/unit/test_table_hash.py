from __future__ import annotations

import hashlib
import struct
from decimal import Decimal

import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.sagemaker import hash_table

COLUMNS = {
    "id": pa.int64(),
    "small": pa.uint8(),
    "amount": pa.float64(),
    "flag": pa.bool_(),
    "city": pa.string(),
    "raw": pa.large_binary(),
    "at": pa.timestamp("us", "UTC"),
    "price": pa.decimal128(9, 2),
    "tags": pa.list_(pa.string()),
    "pair": pa.list_(pa.int32(), 2),
    "place": pa.struct([("x", pa.int16()), ("name", pa.string())]),
    "counts": pa.map_(pa.string(), pa.int64()),
    "nothing": pa.null(),
}
VALUES = {
    "id": st.integers(-(2**63), 2**63 - 1),
    "small": st.integers(0, 255),
    "amount": st.floats(allow_nan=False),
    "flag": st.booleans(),
    "city": st.text(st.characters(codec="utf-8"), max_size=5),
    "raw": st.binary(max_size=5),
    "at": st.datetimes(),
    "price": st.decimals(-1000, 1000, places=2),
    "tags": st.lists(st.one_of(st.none(), st.text("ab", max_size=3)), max_size=3),
    "pair": st.lists(st.integers(-5, 5), min_size=2, max_size=2),
    "place": st.fixed_dictionaries({"x": st.one_of(st.none(), st.just(4)), "name": st.just("n")}),
    "counts": st.dictionaries(st.text("ab", max_size=2), st.integers(0, 9), max_size=2),
    "nothing": st.none(),
}


def _column(values: list, kind: pa.DataType) -> pa.Array:
    values = [list(v.items()) if pa.types.is_map(kind) and v else v for v in values]
    return pa.array([v or [] if pa.types.is_map(kind) and v == {} else v for v in values], kind)


@cases(20)
@given(data=st.data(), rows=st.integers(0, 40), cut=st.integers(0, 40), padding=st.integers(0, 11))
@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_chunks_slices_and_metadata_do_not_change_the_hash(name, data, rows, cut, padding):
    cell = st.one_of(st.none(), VALUES[name])
    values = data.draw(st.lists(cell, min_size=rows, max_size=rows))
    extra = data.draw(st.lists(cell, min_size=padding, max_size=padding))
    kind = COLUMNS[name]
    whole = pa.table({name: _column(values, kind)})
    longer = _column([*extra, *values, *extra], kind)
    sliced = longer.slice(padding, rows)
    chunks = [sliced.slice(0, cut), sliced.slice(0, 0), sliced.slice(cut)]
    other = pa.table({name: pa.chunked_array(chunks, kind)}).replace_schema_metadata(
        {"pandas": "x"}
    )
    assert hash_table(other) == hash_table(whole)


def test_what_lies_under_a_null_does_not_count():
    seen = pa.array([1, 2, 3])
    hidden = pa.Array.from_buffers(
        pa.int64(), 3, [pa.py_buffer(bytes([0b101])), seen.buffers()[1]], null_count=1
    )
    assert hidden.to_pylist() == [1, None, 3]
    assert hash_table(pa.table({"n": hidden})) == hash_table(pa.table({"n": [1, None, 3]}))


def test_a_dictionary_column_hashes_as_its_values_whatever_its_dictionaries():
    plain = pa.table({"city": ["b", "a", None, "b"]})
    chunks = [pa.array(["b", "a"]).dictionary_encode(), pa.array([None, "b"]).dictionary_encode()]
    encoded = pa.table({"city": pa.chunked_array(chunks)})
    assert hash_table(encoded) == hash_table(plain)


def test_many_rows_hash_the_same_in_one_chunk_and_in_a_thousand():
    table = pa.table({"n": pa.array(range(140_000)), "s": pa.array(map(str, range(140_000)))})
    pieces = pa.concat_tables([table.slice(at, 140) for at in range(0, 140_000, 140)])
    assert pieces.column("n").num_chunks == 1000
    assert hash_table(pieces) == hash_table(table)


BASE = pa.table({"a": [1, 2, None], "s": ["ab", "c", ""]})


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(pa.table({"a": [2, 1, None], "s": ["ab", "c", ""]}), id="order of rows"),
        pytest.param(pa.table({"s": ["ab", "c", ""], "a": [1, 2, None]}), id="order of columns"),
        pytest.param(pa.table({"b": [1, 2, None], "s": ["ab", "c", ""]}), id="name"),
        pytest.param(pa.table({"a": [1, 2, 0], "s": ["ab", "c", ""]}), id="null and zero"),
        pytest.param(pa.table({"a": [1, None, 2], "s": ["ab", "c", ""]}), id="place of null"),
        pytest.param(pa.table({"a": [1, 2, None], "s": ["a", "bc", ""]}), id="where text ends"),
        pytest.param(pa.table({"a": [1, 2, None], "s": ["ab", "c", None]}), id="null and empty"),
        pytest.param(BASE.set_column(0, "a", BASE["a"].cast(pa.int32())), id="type"),
        pytest.param(BASE.slice(0, 2), id="number of rows"),
    ],
)
def test_every_difference_in_content_changes_the_hash(other):
    assert hash_table(other) != hash_table(BASE)


def test_the_hashed_bytes_are_these():
    # Spelled out: a hash in a manifest of last year must still say whether rows are the same.
    table = pa.table(
        {
            "id": pa.array([1, 2, None]),
            "city": ["Ulm", None, "Köln"],
            "price": pa.array([Decimal("1.50"), None, Decimal("-2.25")], pa.decimal128(9, 2)),
            "tags": [["a", None], [], None],
        }
    )
    spelled = (
        b"rows 3\n"
        + (b"'id' int64\n" + b"\xc0" + struct.pack("<2q", 1, 2))
        + (b"'city' string\n" + b"\xa0" + struct.pack("<2q", 3, 5) + "UlmKöln".encode())
        + (b"'price' decimal128(9, 2)\n" + b"\xa0" + struct.pack("<4q", 150, 0, -225, -1))
        + (b"'tags' list<item: string>\n" + b"\xc0" + struct.pack("<2q", 2, 0))
        + (b"\x80" + struct.pack("<q", 1) + b"a")
    )
    assert hash_table(table) == hashlib.sha256(spelled).hexdigest()
