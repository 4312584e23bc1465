"""Rows of a training set that are in memory, for what reads them split by split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa


@dataclass(frozen=True)
class TablesBySplit:
    """Tables of one schema by split; `batch_rows` is how many come at once."""

    tables: Mapping[str, pa.Table]
    batch_rows: int = 1_000

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.tables)

    @property
    def schema(self) -> pa.Schema:
        return next(iter(self.tables.values())).schema

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        table = self.tables[split].select(list(columns))
        yield from table.to_batches(max_chunksize=self.batch_rows)

    def every(self) -> Iterator[pa.RecordBatch]:
        """The rows of all splits."""
        for split in self.splits:
            yield from self.batches(split, self.schema.names)
