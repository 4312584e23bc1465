"""What an engine must do: match keys and times. Reading features by position is not its part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.engines.one_pass.slots import Orders
    from feast_dynamo_ext.retrieval.entity_rows.rows import EntityRows
    from feast_dynamo_ext.retrieval.plan import ViewPlan


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
    def from_table(cls, table: pa.Table) -> Result:
        """Rows that are there already."""
        return cls(table.schema, table.num_rows, lambda: iter(table.to_batches()))


NO_ROW = -1
"""The position that says: no row of the source matches."""


@dataclass(frozen=True)
class Newest:
    """The newest rows of their keys.

    Attributes:
        source: where positions count: the source without the files that cannot matter.
        read: rows in the window that have keys and event time.
        expired: newest rows that were left out as too old.
        rows: newest rows that were not.
        positions: their ascending positions, in parts.
    """

    source: ParquetSource
    read: int
    expired: int
    rows: int
    positions: Iterator[NDArray[np.int64]]


class Engine(Protocol):
    """Matches rows by keys and times.

    Of several rows of one key the newest event time wins, then the newest created time (none is
    older than any), then the highest position: the later row of the later path.
    """

    @property
    def workers(self) -> int:
        """How many threads read and sort out rows."""
        ...

    @property
    def entity_bytes(self) -> int:
        """How much memory entity rows and their features may take up at once."""
        ...

    def match(
        self,
        entities: EntityRows,
        view: ViewPlan,
        source: ParquetSource,
        *,
        created_by_entity_time: bool,
        threads: int | None = None,
        orders: Orders | None = None,
    ) -> NDArray[np.int64]:
        """For each entity row the position of the source row it sees, or NO_ROW.

        Args:
            entities: the entity rows.
            view: which columns are keys and times.
            source: the history.
            created_by_entity_time: only rows that were created by the entity row's time count.
            threads: at most so many; None for `workers`.
            orders: orders of the same entity rows, shared by several views.
        """
        ...

    def explain(
        self, entities: EntityRows, view: ViewPlan, source: ParquetSource
    ) -> tuple[str, str]:
        """How `match` would match, and why."""
        ...

    def newest(
        self,
        view: ViewPlan,
        source: ParquetSource,
        start: datetime,
        end: datetime,
        not_before: datetime | None = None,
        scanned: Callable[[int], object] | None = None,
    ) -> AbstractContextManager[Newest]:
        """The newest row of each key with start <= event time <= end.

        Args:
            view: which columns are keys and times.
            source: the history.
            start: first event time that counts.
            end: last event time that counts.
            not_before: keys whose newest row is before that are counted as expired and left out.
            scanned: called with numbers of rows as they are looked at.

        Returns:
            What was found, to be used while the context lasts.
        """
        ...

    def within(
        self, view: ViewPlan, source: ParquetSource, start: datetime | None, end: datetime | None
    ) -> NDArray[np.int64]:
        """Ascending positions of all rows with start <= event time <= end."""
        ...
