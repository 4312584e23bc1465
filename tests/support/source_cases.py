"""Sources as they are opened, for tests of what opens them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource
from repos import repo_config

from feast_dynamo_ext.parquet.source import ParquetSource

if TYPE_CHECKING:
    from pathlib import Path


def opened(folder: Path, path: str | Path = "", **source: Any) -> ParquetSource:
    """The source at a path of a repo in a folder."""
    data_source = FileSource(
        name="orders", path=str(path or folder), timestamp_field="event", **source
    )
    return ParquetSource.open(data_source, repo_config(folder))


def put(path: Path, **columns: Any) -> None:
    """A file with columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def rows_of(source: ParquetSource, *columns: str) -> dict[str, list[Any]]:
    """Columns of all rows, in the order of their positions."""
    batches = source.scan(columns)
    table = pa.Table.from_batches(
        batches, source.schema_of(columns).append(pa.field("__row", pa.int64()))
    )
    return {name: table.column(name).to_pylist() for name in columns}
