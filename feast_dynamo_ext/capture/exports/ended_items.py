"""The ends of items that a table has no more, where nobody saw when they went.

A full export or a scan shows what is there; what is not gets a tombstone at that moment. It holds
the newest row of the item. What is in quarantine has no row, but may get one later, once the
schema is mended: its tombstone is of the item as it was then::

    newest put of the history ----> delete, or expire: its own TTL has passed by then
    newest put in quarantine ---/

The TTL of a row is known where its attribute is a column; of an item in quarantine always.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from feast_dynamo_ext.capture.values.attribute_types import MOMENT, PER_UNIT_NS
from feast_dynamo_ext.capture.values.change_rows import SECOND, RecordReader
from feast_dynamo_ext.capture.values.item_values import ItemReader, Misfit
from feast_dynamo_ext.columns import CHANGE, DELETE, EXPIRE, PUT, RESERVED, WRITTEN
from feast_dynamo_ext.errors import SourceNotFoundError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.timestamps import EPOCH, MICROSECOND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns, ValueKind
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

WHEN, ITEM = "_feast_w", "_feast_item"
"""Columns of `quarantined_puts`, whose names no key has."""


def ends(columns: CapturedColumns, rows: pa.Table, moment: int) -> pa.Table:
    """The tombstones of items, by their newest rows.

    Args:
        columns: of the history.
        rows: of the history, puts.
        moment: as of when the items are gone, microseconds since 1970.
    """
    changes = [EXPIRE if each else DELETE for each in _expired(columns, rows, moment)]
    arrays = []
    for field in columns.history_schema:
        if field.name == WRITTEN:
            arrays.append(pa.array([moment] * rows.num_rows, pa.int64()).cast(MOMENT))
        elif field.name == CHANGE:
            arrays.append(pa.array(changes, pa.string()))
        elif field.name in rows.column_names and not field.name.startswith(RESERVED):
            arrays.append(rows.column(field.name).combine_chunks().cast(field.type))
        else:
            arrays.append(pa.nulls(rows.num_rows, field.type))
    return pa.Table.from_arrays(arrays, schema=columns.history_schema)


def _expired(columns: CapturedColumns, rows: pa.Table, moment: int) -> list[bool]:
    """Whether the TTL of each row has passed; not where it is no column."""
    for column in columns.columns:
        if column.path == (columns.expiry,):
            found = rows.column(column.name)
            if column.kind.name == "time":
                found = found.cast(pa.int64())
            ttls = (_seconds(column.kind, value) for value in found.to_pylist())
            return [ttl is not None and ttl <= moment // SECOND for ttl in ttls]
    return [False] * rows.num_rows


def _seconds(kind: ValueKind, value: Any) -> int | None:
    """The TTL that a column holds: whole seconds since 1970, whatever it was declared as."""
    if value is None:
        return None
    if kind.name in {"int32", "int64"}:
        return int(value)
    if kind.name == "time" and kind.unit in PER_UNIT_NS:
        return int(value) * 1_000 // PER_UNIT_NS[kind.unit]
    # A Float32 may be minutes off, and texts are no TTL to DynamoDB.
    if kind.name in {"float64", "decimal", "decimal_text"}:
        number = Decimal(value)
        return int(number) if number == number.to_integral_value() else None
    return None


# Of the quarantine


def quarantined_puts(
    quarantine: TableHandle, columns: CapturedColumns, moment: int
) -> Iterator[pa.Table]:
    """The puts in quarantine up to a moment: keys, when they were written, the record as JSON.

    Those whose key does not fit are left out: no row of theirs can be ended.
    """
    try:
        table = quarantine.load()
    except SourceNotFoundError:
        return
    reader = ItemReader(columns.of_keys)
    schema = columns.of_keys.schema
    schema = schema.append(pa.field(WHEN, pa.int64())).append(pa.field(ITEM, pa.string()))
    until = (EPOCH + moment * MICROSECOND).isoformat()
    where = f"{CHANGE} = '{PUT}' AND {WRITTEN} <= '{until}'"
    with catalog_errors(quarantine.address, quarantine.name):
        for batch in table.scan(where, (WRITTEN, "item")).to_arrow_batch_reader():
            records = batch.column("item").to_pylist()
            found = [reader.values(_image(orjson.loads(record))) for record in records]
            known = pa.array([not isinstance(values, Misfit) for values in found], pa.bool_())
            kept = [values for values in found if not isinstance(values, Misfit)]
            aside = [batch.column(WRITTEN).cast(MOMENT).cast(pa.int64()), batch.column("item")]
            arrays = [*reader.arrays(kept), *(array.filter(known) for array in aside)]
            yield pa.Table.from_arrays(arrays, names=schema.names).cast(schema)


def quarantined_ends(columns: CapturedColumns, records: list[str], moment: int) -> pa.RecordBatch:
    """The tombstones of items in quarantine, by what `quarantined_puts` says of them."""
    images = [_image(orjson.loads(record)) for record in records]
    changes = [{"Keys": image, "OldImage": image} for image in images]
    moments = [moment] * len(images)
    return RecordReader(columns).converted(changes, moments, records).rows


def _image(record: Any) -> Any:
    return record.get("Item", record.get("NewImage"))
