"""Entity rows in memory as an Arrow table: pandas, Arrow, Polars, and what exports Arrow.

Types stay as they are. Only Arrow's view layouts (`string_view`, which Polars exports) become the
plain ones, since neither Arrow's `take` nor its Parquet writer knows them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from feast_dynamo_ext.errors import EntityRowsError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_EVENT_TIME = "event_timestamp"

PLAIN = (
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_binary_view, pa.binary()),
)

FORMS = (
    "a pandas DataFrame, an Arrow table, reader or dataset, a Polars DataFrame or LazyFrame, a "
    "path or s3:// URI of Parquet or CSV, SQL that begins with SELECT, WITH or FROM, or None with "
    "`start_date` and `end_date`"
)


def as_table(frame: Any) -> pa.Table:
    """Rows in memory as an Arrow table.

    Args:
        frame: a pandas DataFrame; an Arrow table, record batch, reader or dataset; a Polars
            DataFrame or LazyFrame; or another object with Arrow's PyCapsule interface.

    Raises:
        EntityRowsError: none of these, several columns of one name, or a column that Arrow cannot
            hold.
    """
    table = _pandas(frame) if isinstance(frame, pd.DataFrame) else _arrow(frame)
    refuse_doubled(table.column_names)
    return _plain(table)


def refuse_doubled(names: Sequence[str]) -> None:
    """Refuse columns of one name.

    Raises:
        EntityRowsError: names them.
    """
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise EntityRowsError(f"Entity rows have several columns named {doubled}. Rename them.")


def _pandas(frame: pd.DataFrame) -> pa.Table:
    refuse_doubled(list(frame.columns))
    if DEFAULT_EVENT_TIME in frame.index.names and DEFAULT_EVENT_TIME not in frame.columns:
        raise EntityRowsError(
            f"Entity rows: `{DEFAULT_EVENT_TIME}` is an index of the DataFrame, not a column. "
            "Make columns of the index with `frame.reset_index()`."
        )
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise EntityRowsError(
            f"Entity rows: a column cannot be held by Arrow: {error}. Give each column one type."
        ) from error


def _arrow(frame: Any) -> pa.Table:
    try:
        if isinstance(frame, ds.Dataset):
            return frame.to_table()
        if not _exports_arrow(frame) and callable(getattr(frame, "collect", None)):
            frame = frame.collect()  # a Polars LazyFrame
        if _exports_arrow(frame):
            return pa.table(frame)
    except (pa.ArrowException, OSError) as error:
        raise EntityRowsError(
            f"Entity rows: reading the {type(frame).__name__} failed: {error}. Check what it "
            "reads from."
        ) from error
    raise EntityRowsError(f"Entity rows must be {FORMS}, not {type(frame).__name__}.")


def _exports_arrow(frame: Any) -> bool:
    # A class has the method too, but nothing to export.
    return not isinstance(frame, type) and any(
        hasattr(frame, name) for name in ("__arrow_c_stream__", "__arrow_c_array__")
    )


def _plain(table: pa.Table) -> pa.Table:
    schema = pa.schema(
        [column.with_type(_plain_type(column.type)) for column in table.schema],
        metadata=table.schema.metadata,
    )
    return table if schema.equals(table.schema) else table.cast(schema)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    for matches, plain in PLAIN:
        if matches(kind):
            return plain
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain_type(kind.value_type), kind.ordered)
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    return kind
