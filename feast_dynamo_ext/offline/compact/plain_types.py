"""Types without dictionaries, for rows on their way: each batch of a dictionary has its own."""

from __future__ import annotations

import pyarrow as pa


def plain(kind: pa.DataType) -> pa.DataType:
    """The type with values in the place of dictionaries, nested ones included."""
    found = kind
    if pa.types.is_dictionary(kind):
        found = plain(kind.value_type)
    elif pa.types.is_struct(kind):
        found = pa.struct([_plain_field(field) for field in kind])
    elif pa.types.is_map(kind):
        found = pa.map_(plain(kind.key_type), plain(kind.item_type), kind.keys_sorted)
    elif pa.types.is_fixed_size_list(kind):
        found = pa.list_(_plain_field(kind.value_field), kind.list_size)
    elif pa.types.is_large_list(kind):
        found = pa.large_list(_plain_field(kind.value_field))
    elif pa.types.is_list(kind):
        found = pa.list_(_plain_field(kind.value_field))
    return found


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns in plain types."""
    return pa.schema([_plain_field(field) for field in schema])


def cast(batch: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.RecordBatch | pa.Table:
    """Rows in the types of a schema, column by column."""
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return type(batch).from_arrays(columns, schema=schema)


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain(field.type))
