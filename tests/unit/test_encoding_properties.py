"""Columns of any kind, encoded at once, against Feast's own code."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from examples import cases
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from feast_values import feast_values
from hypothesis import assume, given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.encoding.values import encode_column, encode_values
from feast_dynamo_ext.dynamo.layouts.packed import pack

UTC = dt.timezone.utc

# Arrow types of each value type, for whatever values they may hold.
int64 = st.integers(-(2**63), 2**63 - 1)
times = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))  # noqa: DTZ001
SCALARS = {
    pa.int8(): st.integers(-128, 127),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.int64(): int64,
    pa.uint64(): st.integers(0, 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False) | st.just(float("nan")),
    pa.float64(): st.floats(allow_nan=False) | st.just(float("nan")),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=200),
    pa.large_string(): st.text(max_size=20),
    pa.string_view(): st.text(max_size=20),
    pa.binary(): st.binary(min_size=1, max_size=200),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.decimal128(12, 3): st.decimals(-(10**8), 10**8, places=3),
    pa.decimal128(20, 12): st.decimals(-(10**7), 10**7, places=12),
    pa.timestamp("us"): times,
    pa.timestamp("s", "UTC"): times.map(lambda time: time.replace(microsecond=0, tzinfo=UTC)),
    pa.timestamp("ms", "Europe/Berlin"): times.map(
        lambda time: time.replace(microsecond=123_000, tzinfo=UTC)
    ),
}
INTEGERS = [pa.int8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
FLOATS = [pa.float32(), pa.float64()]
TEXTS = [pa.string(), pa.large_string(), pa.string_view()]
BINARIES = [pa.binary(), pa.binary(3)]
DECIMALS = [pa.decimal128(12, 3), pa.decimal128(20, 12)]
TIMES = [pa.timestamp("us"), pa.timestamp("s", "UTC"), pa.timestamp("ms", "Europe/Berlin")]
ARROW_OF = {
    "INT32": [pa.int8(), pa.int32()],
    "INT64": INTEGERS,
    "FLOAT": FLOATS,
    "DOUBLE": [*FLOATS, pa.int32()],
    "BOOL": [pa.bool_(), pa.int32()],
    "STRING": [*TEXTS, *INTEGERS, *DECIMALS, pa.bool_()],
    "BYTES": [*BINARIES, *TEXTS],
    "UUID": TEXTS,
    "DECIMAL": [*DECIMALS, *TEXTS],
    "UNIX_TIMESTAMP": [*TIMES, *INTEGERS],
    "ZONED_TIMESTAMP": TIMES,
}
ELEMENTS_OF = {
    **{kind: arrows for kind, arrows in ARROW_OF.items() if kind != "ZONED_TIMESTAMP"},
    "DOUBLE": FLOATS,
    "BOOL": [pa.bool_()],
    "STRING": TEXTS,
    "BYTES": BINARIES,
}


# What a declared type takes of an Arrow type that could hold more.
ZERO_OR_ONE = st.integers(0, 1)
DECIMAL_TEXTS = st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str)
# From the middle between the highest float32 and the next power of two on, it would be infinity.
WITHIN_FLOAT32 = st.floats(-3.4028235677973362e38, 3.4028235677973362e38) | st.sampled_from(
    [float("nan"), float("inf"), float("-inf")]
)
TAKEN = {"UUID": st.uuids().map(str), "DECIMAL": DECIMAL_TEXTS, "BOOL": ZERO_OR_ONE}

# Of the years 1 to 9999, as times are.
FIRST_S, LAST_S = -62_135_596_800, 253_402_300_799


def cells_of(arrow, kind=None):
    """Cells of an Arrow type without nulls, as the value type takes them."""
    if kind == "FLOAT" and pa.types.is_float64(arrow):
        return WITHIN_FLOAT32
    if kind == "BOOL" and pa.types.is_boolean(arrow):
        return SCALARS[arrow]
    if kind == "DECIMAL" and arrow not in TEXTS:
        return SCALARS[arrow]
    if kind == "UNIX_TIMESTAMP" and pa.types.is_integer(arrow):
        return SCALARS[arrow].filter(lambda second: FIRST_S <= second <= LAST_S)
    return TAKEN.get(kind, SCALARS[arrow])


@st.composite
def arrays(draw, arrow, cells):
    """An array of up to 12 cells, cut out of a longer one."""
    values = draw(st.lists(cells, max_size=12))
    start = draw(st.integers(0, len(values)))
    return pa.array(values, arrow).slice(start)


@st.composite
def scalar_columns(draw):
    kind = draw(st.sampled_from(sorted(ARROW_OF)))
    arrow = draw(st.sampled_from(ARROW_OF[kind]))
    return kind, draw(arrays(arrow, st.none() | cells_of(arrow, kind)))


def is_number(cell):
    return not (isinstance(cell, float) and np.isnan(cell))


@st.composite
def list_columns(draw):
    element = draw(st.sampled_from(sorted(ELEMENTS_OF)))
    arrow = draw(st.sampled_from(ELEMENTS_OF[element]))
    suffix = draw(st.sampled_from(["LIST", "SET"]))
    # Feast writes zeros for nulls, and takes NaNs in sets for different from each other.
    cell = cells_of(arrow, element)
    if suffix == "SET":
        cell = cell.filter(is_number)
    size = draw(st.sampled_from([None, 2]))
    cells = st.none() | st.lists(cell, min_size=size or 0, max_size=size or 6)
    make = draw(st.sampled_from([pa.list_, pa.large_list])) if size is None else None
    kind = make(arrow) if make else pa.list_(arrow, size)
    return f"{element}_{suffix}", draw(arrays(kind, cells))


@st.composite
def parts(draw, depth=2):
    """An Arrow type inside of a map, and its cells; lists hold something."""
    shape = draw(
        st.sampled_from(["scalar", "scalar", "list", "map", "struct", "maps"][: max(1, 3 * depth)])
    )
    if shape == "scalar" or depth == 0:
        arrow = draw(st.sampled_from(sorted(SCALARS, key=str)))
        return arrow, st.none() | SCALARS[arrow]
    if shape == "list":
        arrow = draw(st.sampled_from(sorted(SCALARS, key=str)))
        return pa.list_(arrow), st.none() | st.lists(SCALARS[arrow], min_size=1, max_size=3)
    if shape == "maps":
        arrow, cells = draw(maps(depth - 1))
        some = cells.filter(lambda cell: cell is not None)
        return pa.list_(arrow), st.none() | st.lists(some, min_size=1, max_size=3)
    return draw(maps(depth - 1) if shape == "map" else structs(depth - 1))


@st.composite
def maps(draw, depth=2, keys=TEXTS[0]):
    arrow, cells = draw(parts(depth))
    pairs = st.lists(st.tuples(SCALARS[keys], cells), max_size=3, unique_by=lambda pair: pair[0])
    return pa.map_(keys, arrow), st.none() | pairs


@st.composite
def structs(draw, depth=2):
    names = draw(st.lists(st.text(max_size=5), max_size=3, unique=True))
    fields = [draw(parts(depth)) for _ in names]
    arrow = pa.struct([pa.field(name, kind) for name, (kind, _) in zip(names, fields)])  # noqa: B905
    cells = {name: cells for name, (_, cells) in zip(names, fields)}  # noqa: B905
    return arrow, st.none() | st.fixed_dictionaries(cells)


@st.composite
def nested_columns(draw):
    kind = draw(st.sampled_from(["MAP", "MAP_LIST", "STRUCT", "STRUCT_LIST", "SCALAR_MAP",
                                 "VALUE_LIST", "VALUE_SET"]))  # fmt: skip
    if kind.startswith("VALUE"):
        arrow = draw(st.sampled_from(sorted(SCALARS, key=str)))
        cells = st.none() | st.lists(SCALARS[arrow], max_size=3)
        arrow = pa.list_(arrow)
        for _ in range(draw(st.integers(1, 2))):
            # Feast takes nothing but nulls for no list of lists.
            full = st.lists(cells, max_size=3).filter(
                lambda v: not v or set(map(str, v)) != {"None"}
            )
            arrow, cells = pa.list_(arrow), st.none() | full
        return kind, draw(arrays(arrow, cells))
    if kind == "SCALAR_MAP":
        keys = [pa.int32(), pa.int64(), pa.bool_(), pa.binary(), pa.decimal128(12, 3),
                pa.timestamp("s", "UTC")]  # fmt: skip
        arrow, cells = draw(maps(0, draw(st.sampled_from(keys))))
        return kind, draw(arrays(arrow, cells))
    arrow, cells = draw(st.one_of(maps(), structs()))
    if kind.endswith("LIST"):
        some = cells.filter(lambda cell: cell is not None)
        arrow, cells = pa.list_(arrow), st.none() | st.lists(some, max_size=3)
    return kind, draw(arrays(arrow, cells))


def parsed(encoded):
    encoded.validate(full=True)
    assert encoded.type == pa.large_binary()
    return [Value.FromString(cell) for cell in encoded.to_pylist()]


def in_one_order(values, kind):
    """Serialized, with maps and sets in one order: Feast's is that of hash tables."""
    if kind.endswith("_SET") and kind != "VALUE_SET":
        return [_sorted_set(value) for value in values]
    return [value.SerializeToString(deterministic=True) for value in values]


def _sorted_set(value):
    field = value.WhichOneof("val")
    return None if field is None else (field, sorted(set(getattr(value, field).val)))


def by_feast(kind, array):
    return feast_values(array, ValueType[kind])


@given(scalar_columns() | list_columns())
@cases(150)
def test_scalars_and_lists_are_feasts_byte_by_byte(column):
    kind, array = column
    encoded = encode_column(array, ValueType[kind], "f")
    expected = by_feast(kind, array)
    if kind.endswith("_SET"):
        assert in_one_order(parsed(encoded), kind) == in_one_order(expected, kind)
        sizes = [len(cell.ListFields()[0][1].val) if cell.ListFields() else 0
                 for cell in parsed(encoded)]  # fmt: skip
        assert sizes == [len(each[1]) if each else 0 for each in in_one_order(expected, kind)]
    else:
        assert encoded.to_pylist() == [value.SerializeToString() for value in expected]


@given(nested_columns())
@cases(150)
def test_maps_structs_and_lists_of_lists_are_feasts(column):
    kind, array = column
    # Feast loses empty lists inside of lists, which we keep: test_encoding_values.py.
    assume(kind not in ("VALUE_LIST", "VALUE_SET") or not has_empty(array))
    encoded = encode_column(array, ValueType[kind], "f")
    assert in_one_order(parsed(encoded), kind) == in_one_order(by_feast(kind, array), kind)


def has_empty(array):
    """Whether a list of lists has an empty one inside, at any depth."""
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array = array.flatten()
        if pa.types.is_nested(array.type) and 0 in pc.list_value_length(array).to_pylist():
            return True
    return False


@given(st.lists(scalar_columns() | list_columns(), min_size=1, max_size=6), st.booleans())
@cases()
def test_rows_are_packed_as_one_by_one(columns, chunked):
    rows = min(len(array) for _, array in columns)
    kinds = [kind.replace("_SET", "_LIST") for kind, _ in columns]
    arrays = [array.slice(0, rows) for _, array in columns]
    cells = [by_feast(kind, array) for kind, array in zip(kinds, arrays, strict=True)]
    if chunked:
        cut = rows // 2
        arrays[0] = pa.chunked_array([arrays[0].slice(0, cut), arrays[0].slice(cut)])
    types = [ValueType[kind] for kind in kinds]
    encoded = encode_values(arrays, types, [f"f{at}" for at in range(len(kinds))])
    assert encoded.to_pylist() == [pack(row) for row in zip(*cells, strict=True)]


def test_a_long_batch_of_mixed_columns():
    draw = np.random.default_rng(3)
    rows = 10_000
    doubles = pa.array(draw.random(rows), mask=draw.random(rows) < 0.1)
    counts = pa.array(draw.integers(-(2**40), 2**40, rows))
    names = pa.array([f"user-{at}" for at in draw.integers(0, 99, rows)]).dictionary_encode()
    lists = pa.array(list(draw.random((rows, 4))))
    columns = [doubles, counts, names, lists]
    kinds = [ValueType.DOUBLE, ValueType.INT64, ValueType.STRING, ValueType.DOUBLE_LIST]
    cells = [feast_values(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    encoded = encode_values(columns, kinds, ["a", "b", "c", "d"])
    assert encoded.to_pylist() == [pack(row) for row in zip(*cells, strict=True)]
