"""History tables of an SQL catalog in a folder, for tests of what is done with them."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from repos import repo_config

from feast_dynamo_ext.parquet.iceberg.catalog import CatalogAddress, opened
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout, create_table

if TYPE_CHECKING:
    from pathlib import Path

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
HOUR = dt.timedelta(hours=1)
NAME = "shop.orders"
TIMES = pa.timestamp("us", "UTC")
COLUMNS = pa.schema(
    [
        ("cid", pa.int64()),
        ("event", TIMES),
        ("created", TIMES),
        ("amount", pa.float64()),
        ("note", pa.string()),
    ]
)


def source_of(folder: Path, **more: Any) -> IcebergSource:
    """The table in a folder as a source."""
    settings = {
        "name": "orders",
        "catalog_type": "sql",
        "endpoint": f"sqlite:///{folder}/catalog.db",
        "warehouse": f"file://{folder}/warehouse",
        "namespace": "shop",
        "table": "orders",
        "timestamp_field": "event",
        "created_timestamp_column": "created",
    }
    return IcebergSource(**{**settings, **more})


def handle_of(folder: Path) -> TableHandle:
    """The table in a folder."""
    return TableHandle.from_source(source_of(folder), repo_config(folder))


def new_table(
    folder: Path,
    partition: str = "none",
    keys: tuple[str, ...] = ("cid",),
    columns: pa.Schema = COLUMNS,
    **properties: str,
) -> TableHandle:
    """A table in a folder, without rows."""
    handle = handle_of(folder)
    made = create_table(
        opened(
            CatalogAddress.from_source(source_of(folder), repo_config(folder)), handle.settings
        ),
        NAME,
        columns,
        TableLayout(keys, "event", "created", partition),
    )
    if properties:
        with made.transaction() as transaction:
            transaction.set_properties(properties)
    return handle


def rows(*values: tuple[Any, ...]) -> pa.Table:
    """Rows of (cid, hour, hour of creation or None, amount, note)."""
    made = [
        (cid, START + hour * HOUR, None if created is None else START + created * HOUR, *rest)
        for cid, hour, created, *rest in values
    ]
    columns = list(zip(*made, strict=True)) or [[]] * len(COLUMNS)
    return pa.table(
        {
            field.name: pa.array(part, field.type)
            for field, part in zip(COLUMNS, columns, strict=True)
        },
        schema=COLUMNS,
    )


def contents(handle: TableHandle, snapshot: int | None = None) -> list[str]:
    """All rows but the sequence, as texts in order, by pyiceberg's own scan."""
    found = handle.load().scan(snapshot_id=snapshot).to_arrow()
    names = [name for name in found.column_names if name != "_feast_sequence"]
    return sorted(map(str, found.select(names).to_pylist()))
