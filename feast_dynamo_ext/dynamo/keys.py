"""Entity keys: from join keys, of a request or of whole columns, to the keys of items.

Feast's `serialize_entity_key` (version 3) spells out the join keys' names in every key it makes
and costs 6 us a row. `KeyEncoder` works out once what does not change between rows, for one row
at a time; `encode_keys` serializes whole columns. The bytes are the same: property tests hold both
against Feast's function.
"""

from __future__ import annotations

import struct
from binascii import b2a_base64
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value, ValueType

from feast_dynamo_ext.arrow_types import (
    EXACT_BITS,
    FIELD_VALUE_TYPE,
    VALUE_FIELD,
    check_supported,
    naming,
    numbers,
    one_array,
    plain,
    seconds,
    texts,
)
from feast_dynamo_ext.columns import ENTITYLESS_KEY
from feast_dynamo_ext.dynamo.encoding.protobuf import Message, constant, fixed, lengths_of
from feast_dynamo_ext.dynamo.layouts.packed import MAX_KEY_BYTES, key_bytes
from feast_dynamo_ext.errors import EntityKeyError
from feast_dynamo_ext.key_types import key_exact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from feast.value_type import ValueType as FeastValueType

    Column: TypeAlias = pa.Array | pa.ChunkedArray


_head = struct.Struct("<II").pack
_int32 = struct.Struct("<IIi").pack
_int64 = struct.Struct("<IIq").pack

# Looked up once: a lookup in a message's enum costs as much as an encoding.
STRING: int = ValueType.STRING
BYTES: int = ValueType.BYTES
INT32: int = ValueType.INT32
INT64: int = ValueType.INT64
UNIX_TIMESTAMP: int = ValueType.UNIX_TIMESTAMP


def _string(value: Value) -> bytes:
    data: bytes = value.string_val.encode()
    return _head(STRING, len(data)) + data


def _bytes(value: Value) -> bytes:
    data: bytes = value.bytes_val
    return _head(BYTES, len(data)) + data


Encodings: TypeAlias = "dict[str | None, Callable[[Value], bytes]]"

# One entry a type that Feast has a key encoding for: type, length in bytes, data.
ENCODINGS: Encodings = {
    "string_val": _string,
    "bytes_val": _bytes,
    "int32_val": lambda value: _int32(INT32, 4, value.int32_val),
    "int64_val": lambda value: _int64(INT64, 8, value.int64_val),
    "unix_timestamp_val": lambda value: _int64(UNIX_TIMESTAMP, 8, value.unix_timestamp_val),
}


def _whole_number(pack: Callable[..., bytes], kind: int, size: int) -> Encodings:
    """A declared type that takes every whole number which it can hold."""

    def encoding(field: str) -> Callable[[Value], bytes]:
        return lambda value: pack(kind, size, getattr(value, field))

    return {field: encoding(field) for field in ("int32_val", "int64_val", "unix_timestamp_val")}


# By the field of the declared type: a request types a join key once, for all views that name it.
DECLARED: dict[str, Encodings] = {
    "string_val": {"string_val": _string},
    "bytes_val": {"bytes_val": _bytes},
    "int32_val": _whole_number(_int32, INT32, 4),
    "int64_val": _whole_number(_int64, INT64, 8),
    "unix_timestamp_val": _whole_number(_int64, UNIX_TIMESTAMP, 8),
}


class KeyEncoder:
    """Serializes the entity keys of one view: call it with one row's values.

    Safe to share between threads.
    """

    def __init__(
        self, join_keys: Sequence[str], view: str, types: Sequence[str] | None = None
    ) -> None:
        """Work out what all keys share.

        Args:
            join_keys: the names, in the order in which rows have their values.
            view: name of the feature view, for errors.
            types: names of the join keys' declared `ValueType`s; without them, and for a type
                that is no key's, values are encoded as they are.
        """
        self.join_keys = tuple(join_keys)
        self.types = tuple(types or ("UNKNOWN",) * len(self.join_keys))
        self._encodings = [
            DECLARED.get(VALUE_FIELD.get(kind, ""), ENCODINGS) for kind in self.types
        ]
        self._view = view
        # Feast sorts the pairs by name.
        self._order = sorted(range(len(join_keys)), key=self.join_keys.__getitem__)
        self._prefix: bytes = serialize_entity_key_prefix(list(self.join_keys), 3)

    def __call__(self, values: Sequence[Value]) -> bytes:
        """The serialized entity key (version 3) of a row.

        Args:
            values: one value a join key, in the order of `join_keys`.

        Raises:
            EntityKeyError: over 2,048 bytes, null, or a type that Feast has no key encoding for.
        """
        try:
            if len(self._order) == 1:
                (value,) = values
                key = self._prefix + self._encodings[0][value.WhichOneof("val")](value)
            else:
                encodings = self._encodings
                key = self._prefix + b"".join(
                    encodings[at][values[at].WhichOneof("val")](values[at]) for at in self._order
                )
        except (KeyError, struct.error):
            self._refuse_other_types(values)
            return self._by_feast(values)
        return key if len(key) <= MAX_KEY_BYTES else self._by_feast(values)

    def _refuse_other_types(self, values: Sequence[Value]) -> None:
        for name, kind, encodings, value in zip(
            self.join_keys, self.types, self._encodings, values, strict=True
        ):
            field = value.WhichOneof("val")
            if field not in ENCODINGS:
                continue
            if field not in encodings:
                raise EntityKeyError(
                    f"Feature view `{self._view}` declares its join key `{name}` as {kind}, and "
                    f"the request has it as {FIELD_VALUE_TYPE[str(field)]}. Declare "
                    "it with one type in all views that are read together, or read them apart."
                )
            try:
                encodings[field](value)
            except struct.error:
                raise EntityKeyError(
                    f"Feature view `{self._view}` declares its join key `{name}` as {kind}, which "
                    "cannot hold a number of the request. Declare it as Int64 and materialize "
                    "the view again, or leave that entity out."
                ) from None

    def _by_feast(self, values: Sequence[Value]) -> bytes:
        # It raises: every key that Feast can serialize is encoded above. Its words are the same
        # wherever a key is refused.
        return key_bytes(
            EntityKey(join_keys=self.join_keys, entity_values=values), view=self._view
        )


# Values that Feast hands on as they are, or refuses, for each type of join key.
AS_THEY_ARE: dict[str, frozenset[type]] = {
    "INT32": frozenset({int, np.int32, np.int64, type(None), Value}),
    "INT64": frozenset({int, np.int32, np.int64, type(None), Value}),
    "UNIX_TIMESTAMP": frozenset({int, type(None), Value}),
    "STRING": frozenset({str, int, type(None), Value}),
    "BYTES": frozenset({bytes, type(None), Value}),
}
BITS = {"INT32": 31, "INT64": 63, "UNIX_TIMESTAMP": 63}
SEVERAL = (list, tuple, set, frozenset, dict, np.ndarray)
NUMBERS = (int, float, np.integer, np.floating, Decimal)
TIMES = (date, np.datetime64)
SPANS = (timedelta, np.timedelta64)  # NumPy's are integers to it
OF_MESSAGE = "a message, of which Feast makes no key"


def refuse_inexact(values: Iterable[Any], kind: str, name: str) -> None:
    """Refuse values of a request that Feast cannot make a key of, or makes another one of.

    Args:
        values: one a row, as they came.
        kind: the join key's declared type.
        name: the join key.

    Raises:
        EntityKeyError: naming the join key and the first such row.
    """
    for row, value in enumerate(values):
        if what := _why_no_key(value, kind):
            raise EntityKeyError(
                f"The join key `{name}` is declared as {kind}, but in row {row} of the request "
                f"(counted from 0) it is {what}. Nothing was read. Pass the entity's own key, or "
                "None for no entity."
            )


def are_as_they_are(values: Sequence[Any], kind: str) -> bool:
    """Whether values of a request need no look at each: see `refuse_inexact`."""
    of_types = AS_THEY_ARE[kind].issuperset(map(type, values))
    return of_types and (kind != "BYTES" or b"" not in values)


def _why_no_key(value: Any, kind: str) -> str:
    if value is None:
        return ""
    if isinstance(value, SEVERAL):
        return "several values"
    if kind == "STRING":
        return "" if _is_own_text(value) else _of_type(value)
    if kind == "BYTES":
        return _why_no_bytes(value)
    return _why_no_second(value) if kind == "UNIX_TIMESTAMP" else _why_no_integer(value, kind)


def _is_own_text(value: Any) -> bool:
    """Whether what Feast makes of a value is the text that is written of a column of such."""
    if isinstance(value, (Value, UUID)):
        return True
    if isinstance(value, str):
        return str(value) == value  # that of an Enum is its name
    if _is_bool(value) or isinstance(value, SPANS):
        return False
    is_whole = isinstance(value, (int, np.integer))
    is_number = is_whole or (isinstance(value, Decimal) and value.is_finite())
    return is_number and str(value) == str(int(value))


def _why_no_bytes(value: Any) -> str:
    if isinstance(value, Value):
        return OF_MESSAGE
    if type(value) is not bytes:  # a subclass is refused by Feast
        return _of_type(value)
    return "" if value else "empty bytes, of which Feast makes no key unless others are beside"


def _why_no_second(value: Any) -> str:
    """Keys of times are whole seconds; Feast cuts off what is below."""
    if isinstance(value, Value):
        return OF_MESSAGE
    if isinstance(value, (float, np.floating)) and not _is_missing(value):
        return "a float, of which Feast makes no time"
    if _is_missing(value) or not isinstance(value, TIMES):
        return _why_no_integer(value, "UNIX_TIMESTAMP")
    if isinstance(value, np.datetime64):
        is_whole = bool(value == value.astype("datetime64[s]"))
    elif isinstance(value, datetime):
        is_whole = not (value.microsecond or getattr(value, "nanosecond", 0))
    else:
        return "a date; pass its midnight as a datetime"
    return "" if is_whole else "a time with a part below a second, which Feast's keys do not hold"


def _why_no_integer(value: Any, kind: str) -> str:
    if isinstance(value, Value):
        return ""
    if _is_missing(value):
        return "a missing value (NaN)"
    if isinstance(value, TIMES):
        return "a time"
    if _is_bool(value):
        return "a Bool"
    if not isinstance(value, (str, *NUMBERS)) or isinstance(value, SPANS):
        return _of_type(value)
    return _why_not_exact(value, BITS[kind])


def _why_not_exact(value: Any, bits: int) -> str:
    is_text, what = isinstance(value, str), ""
    try:
        number = int(value)  # as Feast does, of text too
    except (ArithmeticError, ValueError):
        return "text that is no whole number" if is_text else "an infinite number"
    if not is_text and number != value:
        what = "a fraction"
    elif isinstance(value, (float, np.floating)) and abs(value) >= 2.0 ** _exact_bits(value):
        what = "a float so large that it stands for several integers"
    elif not -(2**bits) <= number < 2**bits:
        what = f"a number of more than {bits + 1} bits"
    return what


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_missing(value: Any) -> bool:
    may_be = isinstance(value, (float, np.floating, Decimal, *TIMES))
    return value is pd.NA or (may_be and bool(pd.isna(value)))


def _of_type(value: Any) -> str:
    return f"of type {type(value).__name__}"


def _exact_bits(value: float | np.floating[Any]) -> int:
    return EXACT_BITS[value.dtype.itemsize * 8 if isinstance(value, np.floating) else 64]


def text(key: bytes) -> str:
    """A key as DynamoDB's JSON has it."""
    return b2a_base64(key, newline=False).decode()


def encode_keys(
    columns: Sequence[Column],
    kinds: Sequence[FeastValueType],
    join_keys: Sequence[str],
    view: str,
    rows: int,
) -> pa.LargeBinaryArray:
    """The serialized entity key of each row.

    Args:
        columns: one Arrow column a join key; none for a view without entities.
        kinds: value type of each join key.
        join_keys: their names.
        view: name of the feature view, for errors.
        rows: number of rows.

    Raises:
        EntityKeyError: a null, a key over 2,048 bytes, or a type that Feast has no key encoding
            for.
        ColumnTypeError: a value does not fit the declared type.
        UnsupportedTypeError: an Arrow type that Feast has no type for.
    """
    if not columns:
        key = key_bytes(ENTITYLESS_KEY, view)
        return Message.from_part(constant(key, rows)).to_array()
    arrays = []
    for column, name in zip(columns, join_keys, strict=True):
        _refuse_nulls(column, name, view)
        check_supported(name, column.type, f"Feature view `{view}`")
        arrays.append(plain(one_array(column)))
    if not rows:
        return pa.array([], pa.large_binary())
    if any(VALUE_FIELD[kind.name] not in ENCODINGS for kind in kinds):
        _refuse(0, arrays, kinds, join_keys, view)
    for at, (kind, name) in enumerate(zip(kinds, join_keys, strict=True)):
        arrays[at] = _exact(arrays[at], kind, name, view)
    keys = _encoded(arrays, kinds, join_keys)
    for row in np.flatnonzero(lengths_of(keys) > MAX_KEY_BYTES)[:1]:
        _refuse(int(row), arrays, kinds, join_keys, view)
    return keys


def _encoded(
    arrays: Sequence[pa.Array], kinds: Sequence[FeastValueType], join_keys: Sequence[str]
) -> pa.LargeBinaryArray:
    prefix = serialize_entity_key_prefix(list(join_keys), 3)
    # Feast sorts the pairs by name.
    order = sorted(range(len(join_keys)), key=join_keys.__getitem__)
    parts = [Message.from_part(constant(prefix, len(arrays[0])))]
    parts += [_part(arrays[at], kinds[at], join_keys[at]) for at in order]
    return reduce(add, parts).to_array()


def _exact(array: pa.Array, kind: FeastValueType, name: str, view: str) -> pa.Array:
    """A join key's values in its declared type, none of them null."""
    with naming(name, kind, array.type, view):
        exact = key_exact(array, kind)
    _refuse_nulls(exact, name, view)  # NaN, as which pandas writes a missing key
    return exact


def _part(array: pa.Array, kind: FeastValueType, name: str) -> Message:
    """The type, the length in bytes and the bytes of a join key's values."""
    field = VALUE_FIELD[kind.name]
    with naming(name, kind, array.type):
        if field == "int32_val":
            return _number(INT32, array)
        if field == "int64_val":
            return _number(INT64, array)
        if field == "unix_timestamp_val":
            return _number(UNIX_TIMESTAMP, seconds(array))
        if field == "string_val":
            return _text(STRING, texts(array, pa.large_string()))
        return _text(BYTES, array.cast(pa.large_binary()))


def _number(kind: int, array: pa.Array) -> Message:
    values = numbers(array).astype(array.type.to_pandas_dtype(), copy=False)
    head = constant(struct.pack("<II", kind, values.dtype.itemsize), len(array))
    return Message.from_part(head) + Message.from_part(fixed(values))


def _text(kind: int, array: pa.LargeBinaryArray) -> Message:
    head = constant(struct.pack("<I", kind), len(array))
    sizes = fixed(lengths_of(array).astype(np.uint32))
    return Message.from_part(head) + Message.from_part(sizes) + Message.from_part(array)


def _refuse_nulls(column: Column, name: str, view: str) -> None:
    if column.null_count:
        raise EntityKeyError(
            f"Feature view `{view}`: {column.null_count:,} rows have no `{name}`. Filter them "
            "out of the source: it belongs to no entity."
        )


def _refuse(
    row: int,
    arrays: Sequence[pa.Array],
    kinds: Sequence[FeastValueType],
    join_keys: Sequence[str],
    view: str,
) -> None:
    """Raise what the reader of this row's key would, in the same words."""
    # Reads of keys do without it.
    from feast_dynamo_ext.dynamo.encoding.values import encode_column

    values = [
        Value.FromString(encode_column(array.slice(row, 1), kind, name)[0].as_py())
        for array, kind, name in zip(arrays, kinds, join_keys, strict=True)
    ]
    KeyEncoder(tuple(join_keys), view)(values)
