"""Columns as Feast's values, cell by cell: what encoding by column is held against.

Python values through Feast's `python_values_to_proto_values`. Scalars, which Feast casts in
pandas (and rounds integers above 2^53 where one is missing), are cast by Arrow.
"""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import SCALAR_ARROW, VALUE_FIELD


def feast_values(column: pa.ChunkedArray | pa.Array, kind: ValueType) -> list[Value]:
    """One value a row; a null is an empty one."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    field = VALUE_FIELD[kind.name]
    if kind == ValueType.UNIX_TIMESTAMP:
        return _scalars(_seconds(column), field)
    if kind == ValueType.DECIMAL and pa.types.is_decimal(column.type):
        return _scalars(column.cast(pa.string()), field)
    if kind in SCALAR_ARROW:
        return _scalars(column.cast(SCALAR_ARROW[kind]), field)
    dicts = "strict" if _holds_map(column.type) else None
    cells = [_floored(cell) for cell in column.to_pylist(maps_as_pydicts=dicts)]
    return python_values_to_proto_values(cells, kind)


def _floored(cell):
    """With whole seconds: of times before 1970 Feast rounds a fraction up."""
    if isinstance(cell, dt.datetime):
        return cell.replace(microsecond=0)
    if isinstance(cell, dict):
        return {_floored(key): _floored(value) for key, value in cell.items()}
    return [_floored(part) for part in cell] if isinstance(cell, list) else cell


def _scalars(column, field):
    return [Value() if cell is None else Value(**{field: cell}) for cell in column.to_pylist()]


def _seconds(column):
    """Whole seconds since 1970 UTC, the resolution of Feast's UNIX_TIMESTAMP; floored."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    floored = pc.floor_temporal(column, unit="second")
    return floored.cast(pa.timestamp("s", tz=column.type.tz)).cast(pa.int64())


def _holds_map(kind):
    return pa.types.is_map(kind) or any(
        _holds_map(kind.field(at).type) for at in range(kind.num_fields)
    )
