"""How Arrow's values travel through Spark, which has fewer types: exact, there and back.

Times are their ticks, text its bytes, unsigned integers the next wider ones, maps lists of their
entries. What Spark has no type for travels as text::

    Arrow                    on the way             Arrow
    timestamp[ns, tz=...] -> bigint              -> timestamp[ns, tz=...]
    uint32                -> bigint              -> uint32
    map<k, v>             -> array<struct<k, v>> -> map<k, v>
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import is_bytes, is_text, one_array, without_dictionary
from feast_dynamo_ext.errors import UnsupportedTypeError

MOST_DIGITS = 38
"""Of Spark's decimals."""

NAMES = {
    pa.bool_(): "boolean",
    pa.int8(): "tinyint",
    pa.int16(): "smallint",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.binary(): "binary",
}
"""Spark's names of types that travel as they are."""

AS_OTHERS = {
    pa.null(): pa.int8(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.date32(): pa.int32(),
    pa.date64(): pa.int64(),
}
"""Types that travel as others, each of whose values these have."""


def carried_type(kind: pa.DataType) -> pa.DataType:
    """The type in which values of a type travel.

    Raises:
        UnsupportedTypeError: there is none.
    """
    kind = without_dictionary(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return carried_type(kind.storage_type)
    if pa.types.is_nested(kind):
        return _carried_nested(kind)
    if kind in NAMES or _is_sparks_decimal(kind):
        return kind
    if kind in AS_OTHERS:
        return AS_OTHERS[kind]
    if pa.types.is_temporal(kind):
        return pa.int32() if pa.types.is_time32(kind) else pa.int64()
    if is_text(kind) or is_bytes(kind) or pa.types.is_decimal(kind):
        return pa.binary()
    raise UnsupportedTypeError(f"Spark has nothing that values of {kind} could travel in.")


def _carried_nested(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_map(kind):
        entry = [("key", carried_type(kind.key_type)), ("value", carried_type(kind.item_type))]
        return pa.list_(pa.struct(entry))
    if pa.types.is_struct(kind):
        return pa.struct([(f"f{at}", carried_type(each.type)) for at, each in enumerate(kind)])
    if _is_list(kind):
        return pa.list_(carried_type(kind.value_type))
    raise UnsupportedTypeError(f"Spark has nothing that values of {kind} could travel in.")


def spark_type(carried: pa.DataType) -> str:
    """Spark's name of a type that `carried_type` gave."""
    if pa.types.is_decimal(carried):
        return f"decimal({carried.precision}, {carried.scale})"
    if pa.types.is_struct(carried):
        return f"struct<{', '.join(f'{each.name}: {spark_type(each.type)}' for each in carried)}>"
    if pa.types.is_list(carried):
        return f"array<{spark_type(carried.value_type)}>"
    return NAMES[carried]


def carry(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Values in the type in which they travel."""
    array = one_array(values)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = without_dictionary(array.type)
    if kind != array.type:
        array = array.cast(kind)
    wanted = carried_type(kind)
    if wanted == kind:
        return array
    if pa.types.is_map(kind) or _is_list(kind) or pa.types.is_struct(kind):
        return _carry_nested(array, kind)
    if pa.types.is_decimal(kind):
        return array.cast(pa.string()).cast(pa.binary())
    if pa.types.is_null(kind):
        return pa.nulls(len(array), wanted)
    return array.cast(wanted)


def restore(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """What `carry` was given, in its type; dictionaries are plain values."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.wrap_array(restore(array, kind.storage_type))
    kind = without_dictionary(kind)
    if array.type == kind:
        return array
    if pa.types.is_map(kind) or _is_list(kind) or pa.types.is_struct(kind):
        return _restore_nested(array, kind)
    if pa.types.is_decimal(kind):
        array = array.cast(pa.string())
    elif is_text(kind):
        # Files may hold text that is not UTF-8, which a cast would refuse.
        is_large = pa.types.is_large_string(kind)
        return (array.cast(pa.large_binary()) if is_large else array).view(kind)
    return pa.nulls(len(array)) if pa.types.is_null(kind) else array.cast(kind)


def _is_sparks_decimal(kind: pa.DataType) -> bool:
    return bool(pa.types.is_decimal128(kind) and 0 <= kind.scale <= kind.precision)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _carry_nested(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_struct(kind):
        parts = [carry(pc.struct_field(array, at)) for at in range(kind.num_fields)]
        names = [f"f{at}" for at in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, names, mask=array.is_null())
    if pa.types.is_map(kind):
        # Of a map, as of a list, but Arrow flattens no maps.
        array = array.cast(
            pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
        )
        entries = array.flatten()
        parts = [carry(pc.struct_field(entries, at)) for at in range(2)]
        inner = pa.StructArray.from_arrays(parts, ["key", "value"])
    else:
        inner = carry(array.flatten())
    return pa.ListArray.from_arrays(_offsets(array), inner, mask=array.is_null())


def _offsets(array: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _restore_nested(array: pa.Array, kind: pa.DataType) -> pa.Array:
    missing = array.is_null()
    if pa.types.is_struct(kind):
        parts = [restore(pc.struct_field(array, at), each.type) for at, each in enumerate(kind)]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=missing)
    offsets, inner = _offsets(array), array.flatten()
    if pa.types.is_map(kind):
        keys = restore(pc.struct_field(inner, 0), kind.key_type)
        items = restore(pc.struct_field(inner, 1), kind.item_type)
        return pa.MapArray.from_arrays(offsets, keys, items, type=kind, mask=missing)
    made = restore(inner, kind.value_type)
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(
            offsets.cast(pa.int64()), made, type=kind, mask=missing
        )
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(offsets, made, type=kind, mask=missing)
    # A missing list of a fixed size has places for its values all the same.
    there = np.repeat(~missing.to_numpy(zero_copy_only=False), kind.list_size)
    places = pa.array(np.cumsum(there) - 1, mask=~there)
    return pa.FixedSizeListArray.from_arrays(made.take(places), type=kind, mask=missing)
