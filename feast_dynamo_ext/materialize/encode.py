"""Batches of history as encoded rows, column by column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.dynamo.encoding.items import EncodedRows, refuse_too_large
from feast_dynamo_ext.dynamo.encoding.keys import encode_keys
from feast_dynamo_ext.dynamo.encoding.values import encode_values
from feast_dynamo_ext.dynamo.entity_keys import join_keys
from feast_dynamo_ext.dynamo.item import RowSchema
from feast_dynamo_ext.dynamo.views import ttl_seconds
from feast_dynamo_ext.offline.times import Axis

if TYPE_CHECKING:
    from feast_dynamo_ext.materialize.history import Columns


@dataclass(frozen=True)
class Encoder:
    """Encodes the rows of one view.

    Attributes:
        view: the feature view.
        columns: what its columns are called in the batches.
        schema: what encoded values stand for.
        ttl_s: the view's ttl in seconds, or None.
    """

    view: Any
    columns: Columns
    schema: RowSchema
    ttl_s: int | None

    @classmethod
    def of(cls, view: Any, columns: Columns) -> Encoder:
        """The encoder of a view as it is declared now."""
        return cls(view, columns, RowSchema.of(view), ttl_seconds(view))

    def __call__(self, batch: pa.RecordBatch) -> EncodedRows:
        """Encode a batch.

        Raises:
            EntityKeyError: a key that cannot be one.
            ColumnTypeError: a value does not fit the declared type.
            ItemTooLargeError: a row over 400 KB.
        """
        columns, features = self.columns, self.view.features
        names = join_keys(self.view)
        kinds = {column.name: column.dtype.to_value_type() for column in self.view.entity_columns}
        created = columns.created_time
        rows = EncodedRows(
            encode_keys(
                [batch.column(name) for name in columns.keys],
                [kinds[name] for name in names],
                names,
                self.view.name,
                batch.num_rows,
            ),
            encode_values(
                [batch.column(name) for name in columns.features],
                [field.dtype.to_value_type() for field in features],
                [field.name for field in features],
            ),
            _micros(batch.column(columns.event_time)),
            _micros(batch.column(created)) if created else None,
            self.schema,
            self.ttl_s,
        )
        refuse_too_large(rows, self.view.name)
        return rows


def _micros(column: pa.Array) -> pa.Int64Array:
    """Microseconds since 1970 UTC; finer times are rounded down."""
    axis = Axis.of(column.type)
    values = axis.cast(column)
    times = Axis("us").floor(values.fill_null(0).to_numpy(zero_copy_only=False), axis.unit)
    return pa.array(times, pa.int64(), mask=np.asarray(values.is_null()))
