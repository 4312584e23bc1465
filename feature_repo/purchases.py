"""The purchases that features and labels are made of: the one module that knows their sources.

The application writes what `load_purchases` reads into its table; features are made of what is
captured of that table. To use a shop of your own, declare its table in definitions.py, and name
the columns in `captured_purchases`; nothing else reads the source.
"""

from __future__ import annotations

import importlib.metadata
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext import S3ParquetOfflineStore
from feast_dynamo_ext.errors import ColumnNotFoundError, ColumnTypeError, DependencyError

if TYPE_CHECKING:
    from datetime import date

    from feast import FeatureStore

PURCHASES = pa.schema(
    [
        pa.field("customer_id", pa.int64(), nullable=False),
        pa.field("date", pa.date32(), nullable=False),  # the day of the purchase, UTC
        pa.field("items", pa.int64(), nullable=False),
        # In the shop's currency, to the cent; 0 and refunds (below 0) are purchases too.
        pa.field("amount", pa.float64(), nullable=False),
    ]
)

CDNOW = "lifetimes/datasets/CDNOW_master.txt"


def load_purchases() -> pa.Table:
    """Read CDNOW: 69,659 purchases of 23,570 customers of a real shop, 1997-01 to 1998-06.

    The file comes with the package `lifetimes`, which is located but not imported: importing it
    would load its plotting and fitting libraries.

    Returns:
        One row a purchase, columns as in `PURCHASES`; a customer may buy several times a day.

    Raises:
        DependencyError: `lifetimes` is not installed, or is a version without the file.
    """
    frame = pd.read_csv(_cdnow_path(), sep=r"\s+", header=0, names=PURCHASES.names)
    frame["date"] = pd.to_datetime(frame["date"], format="%Y%m%d")
    return as_purchases(frame)


def captured_purchases(store: FeatureStore) -> pa.Table:
    """The purchases that the application's table holds, as they were captured.

    The history has a row for each change of an item: the newest of its table's key counts, and
    none of an item that was deleted.

    Args:
        store: of this repo, whose registry has the source `purchases`.

    Returns:
        One row a purchase, columns as in `PURCHASES`.
    """
    source = store.get_data_source("purchases")
    rows = S3ParquetOfflineStore.pull_latest_from_table_or_query(
        config=store.config,
        data_source=source,
        join_key_columns=["customer_id", "purchase_id"],
        feature_name_columns=["items", "amount"],
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column,
        start_date=datetime(1970, 1, 1, tzinfo=timezone.utc),
        end_date=datetime.now(tz=timezone.utc),
    ).to_arrow()
    day = pc.floor_temporal(rows[source.timestamp_field], unit="day").cast(pa.date32())
    return as_purchases(rows.append_column("date", day))


def _cdnow_path() -> Path:
    advice = "Run `pip install lifetimes==0.11.3`, or read your own data in purchases.py."
    try:
        path = Path(str(importlib.metadata.distribution("lifetimes").locate_file(CDNOW)))
    except importlib.metadata.PackageNotFoundError as error:
        raise DependencyError(
            f"The shop's purchases are a file of the package lifetimes, which is missing. {advice}"
        ) from error
    if not path.is_file():
        raise DependencyError(f"The installed lifetimes has no {CDNOW}. {advice}")
    return path


def as_purchases(purchases: pd.DataFrame | pa.Table, until: date | None = None) -> pa.Table:
    """Bring purchases into the form of `PURCHASES`.

    Args:
        purchases: at least the columns of `PURCHASES`; rows in any order.
        until: the last day to keep; default: all.

    Raises:
        ColumnNotFoundError: a column is missing.
        ColumnTypeError: a column has nulls, or values that its type cannot hold without loss.
    """
    table = purchases
    if isinstance(purchases, pd.DataFrame):
        table = pa.Table.from_pandas(purchases, preserve_index=False)
    columns = [_column(table, field) for field in PURCHASES]
    table = pa.Table.from_arrays(columns, schema=PURCHASES)
    return table if until is None else table.filter(pc.field("date") <= pa.scalar(until))


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        raise ColumnNotFoundError(
            f"The purchases have no column `{field.name}`, only {', '.join(table.column_names)}. "
            f"Rename yours to {', '.join(PURCHASES.names)}."
        )
    column = table[field.name]
    if column.null_count:
        raise ColumnTypeError(
            f"The purchases' column `{field.name}` has {column.null_count} nulls. "
            "Fill or drop those rows: a sum over them would be silently too small."
        )
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise ColumnTypeError(
            f"The purchases' column `{field.name}` is {column.type} and does not convert to "
            f"{field.type}: {error}. Convert it in purchases.py."
        ) from error
