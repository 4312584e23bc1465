"""What an engine must do: match keys and times. Reading features by position is not its part.

An engine is one file of this folder, a class whose public functions stand in the order of
`Engine`. What one cannot do is a `Gap`, which says why; `offline_store` then takes the next
engine that can.

========== ==================================================== =======================
file       how                                                  gaps
========== ==================================================== =======================
one_pass   an as-of join in one pass over history, in numpy     newest, within
duckdb     the statements of `sql` in DuckDB, which spills      none
========== ==================================================== =======================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime

    import pyarrow as pa
    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.inputs import EntityRows
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
        incomplete: rows that were looked at and have no event time, or are in the window and lack
            a key. They are nobody's.
    """

    source: ParquetSource
    read: int
    expired: int
    rows: int
    positions: Iterator[NDArray[np.int64]]
    incomplete: int = 0


class Matcher(Protocol):
    """Matches the same entity rows with one view after the other. Safe to share by threads."""

    def __call__(
        self, view: ViewPlan, source: ParquetSource, threads: int, /
    ) -> NDArray[np.int64]:
        """For each entity row the position of the source row it sees, or NO_ROW.

        Args:
            view: which columns are keys and times.
            source: the history.
            threads: at most so many.
        """
        ...


class Engine(Protocol):
    """Matches rows by keys and times.

    Of several rows of one key the newest event time wins, then the plan's `tie_breaks` (a null
    loses to every value), then the highest position: the later row of the later path.
    """

    @property
    def name(self) -> str:
        """What `join_plan` and explanations call it."""
        ...

    @property
    def memory_limit(self) -> str | None:
        """DuckDB's memory limit; None for its default."""
        ...

    @property
    def spill_folder(self) -> str | None:
        """Where DuckDB spills; None for the system's folder for temporary files."""
        ...

    @property
    def workers(self) -> int:
        """How many threads read and match."""
        ...

    @property
    def entity_bytes(self) -> int:
        """How much memory entity rows and their features may take up at once."""
        ...

    def explain(self, entities: EntityRows, view: ViewPlan, source: ParquetSource) -> str:
        """How a view would be matched, in words."""
        ...

    def matcher(self, entities: EntityRows, *, created_by_entity_time: bool) -> Matcher:
        """Matches entity rows with views.

        Args:
            entities: the entity rows.
            created_by_entity_time: only rows that were created by the entity row's time count.
        """
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


class Gap:
    """A function of `Engine` that an engine has not; to call it raises.

    Attributes:
        why: the reason.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        self._function = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._function = f"{owner.__name__}.{name}"

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Refuse.

        Raises:
            NotImplementedError: names the function, and why it is not there.
        """
        raise NotImplementedError(f"`{self._function}` is not there: {self.why}.")


def gaps(engine: type[Any]) -> frozenset[str]:
    """The functions of `Engine` that an engine has not."""
    return frozenset(name for name, value in vars(engine).items() if isinstance(value, Gap))


MOST_BITS = 63
FEW = 4
"""What part of numbers, at most, is sorted again."""


def ascending(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the numbers in ascending order; equal numbers in the order of their places.

    A number and its place are sorted as one integer, rather than places by what stands in them: a
    million take 25 ms instead of 60 to 80 ms. Where both do not fit into one, the number's leading
    bits are; numbers that these do not tell apart are sorted again, which few are where numbers
    are spread out.
    """
    count = len(numbers)
    if not count:
        return np.empty(0, dtype=np.int64)
    least, place_bits = int(numbers.min()), count.bit_length()
    bits = (int(numbers.max()) - least).bit_length()
    if bits > MOST_BITS:
        return np.argsort(numbers, kind="stable")
    left_out = max(0, bits + place_bits - MOST_BITS)
    both = numbers - least
    both >>= left_out
    both <<= place_bits
    both += np.arange(count)
    both.sort()
    places: NDArray[np.int64] = both & ((1 << place_bits) - 1)
    if not left_out:
        return places
    both >>= place_bits
    alike = both[1:] == both[:-1]
    again = np.flatnonzero(np.append(alike, False) | np.append(False, alike))
    if len(again) > count // FEW:
        return np.argsort(numbers, kind="stable")
    some = places[again]
    places[again] = some[np.lexsort((numbers[some], both[again]))]
    return places
