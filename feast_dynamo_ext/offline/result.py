"""Rows of a retrieval, before they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa


@dataclass(frozen=True)
class Result:
    """Rows to come.

    Attributes:
        schema: their schema.
        rows: their number.
        batches: reads them.
    """

    schema: pa.Schema
    rows: int
    batches: Callable[[], Iterator[pa.RecordBatch]]

    @classmethod
    def of(cls, table: pa.Table) -> Result:
        """Rows that are there already."""
        return cls(table.schema, table.num_rows, lambda: iter(table.to_batches()))
