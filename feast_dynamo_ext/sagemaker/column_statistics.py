"""What is known of a training set's columns, split by split, and the measures that compare them.

Population stability index (PSI) of a split against train: bins are the deciles of train, equal
edges once, or the values themselves where there are at most FEW_VALUES; missing values are a bin
of their own; a bin without rows in both is none. A bin's share is (count + SMOOTHING) / (rows +
SMOOTHING * bins), so that an empty bin has a share. PSI is the sum of (share - share of train) *
ln(share / share of train). Two samples of one distribution have a PSI of about (bins - 1) *
(1 / rows + 1 / rows of train), so with few rows it alarms at nothing: below LEAST_ROWS rows in
either split there is none.

AUC of one column: the chance that a row of the higher label has the higher value, ties counting
half, among rows that have a value. 0.5 is no relation; 0 is as strong as 1. A label of more than
two values has no AUC; the column has Pearson's correlation with it instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import (
    is_number,
    is_text,
    is_time,
    numbers,
    plain,
    without_dictionary,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

SMOOTHING = 0.5
LEAST_ROWS = 1_000
FEW_VALUES = 20


class SplitRows(Protocol):
    """Rows of a training set, to be read as often as needed."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; the first is the one that trains."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """The columns, of all splits."""
        ...

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a split in order, with these columns."""
        ...


@dataclass(frozen=True)
class Label:
    """The label's column.

    Attributes:
        column: its name.
        values: its values, ascending, where there are two at most; else none.
    """

    column: str
    values: tuple[Any, ...] = ()

    @property
    def is_binary(self) -> bool:
        """Whether it has exactly two values, of which the higher is the positive one."""
        return len(self.values) == 2  # noqa: PLR2004 - binary


@dataclass(frozen=True)
class Psi:
    """The PSI of a split against train.

    Attributes:
        value: None where a split has fewer than LEAST_ROWS rows.
        bins: how many of them hold rows.
        by_chance: what two samples of one distribution and of these sizes have on average.
    """

    value: float | None
    bins: int
    by_chance: float | None


@dataclass(frozen=True)
class SplitStatistics:
    """A column in one split.

    Attributes:
        rows: of the split.
        missing: rows without a value.
        mean: of the values; None where there is none, or they are no numbers.
        deviation: standard deviation, of the population.
        least: smallest value; times in microseconds since 1970.
        greatest: largest value.
        percentiles: the values below or at which PERCENTS of the rows are; empty without values.
        counts: rows by bar.
        auc: of the values; None where the label is not binary or a label has no value.
        auc_of_missing: of whether the value is missing.
        correlation: Pearson's with the label; None where either does not vary.
    """

    rows: int
    missing: int
    mean: float | None = None
    deviation: float | None = None
    least: float | None = None
    greatest: float | None = None
    percentiles: tuple[Any, ...] = ()
    counts: tuple[int, ...] = ()
    auc: float | None = None
    auc_of_missing: float | None = None
    correlation: float | None = None

    @property
    def missing_rate(self) -> float:
        """Share of the rows without a value."""
        return self.missing / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class ColumnStatistics:
    """A column in all splits.

    Attributes:
        name: the column's.
        kind: `number`, `time` (in microseconds since 1970), `text` or `other`; of the last only
            missing values are counted.
        splits: by split.
        distinct: number of different values.
        values: of the bars, where each is one value; texts by descending count in train.
        edges: of the bars, one more than they are; bars that are neither are none.
        others: rows whose text is none of `values`, by split.
        psi: by split, but for the one that trains.
    """

    name: str
    kind: str
    splits: Mapping[str, SplitStatistics]
    distinct: int = 0
    values: tuple[Any, ...] = ()
    edges: tuple[float, ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)
    psi: Mapping[str, Psi] = field(default_factory=dict)


def label_of(rows: SplitRows, column: str) -> Label:
    """The label and, where these are at most two, its values."""
    found: set[Any] = set()
    for split in rows.splits:
        for batch in rows.batches(split, [column]):
            values = pc.unique(comparable(batch.column(0))).drop_null()
            if len(found) + len(values) > FEW_VALUES:
                return Label(column)
            found.update(values.to_pylist())
    return Label(column, tuple(sorted(found)) if len(found) <= 2 else ())  # noqa: PLR2004


def kind_of(kind: pa.DataType) -> str:
    """As `ColumnStatistics.kind`."""
    kind = without_dictionary(kind)
    if is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return "number"
    if is_time(kind):
        return "time"
    return "text" if is_text(kind) else "other"


def comparable(column: pa.Array) -> pa.Array:
    """A column as integers (of times microseconds), floats or texts; NaN is missing."""
    array = plain(column)
    kind = array.type
    if is_time(kind):
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            # A cast alone would refuse what is finer.
            array = pc.floor_temporal(array, unit="microsecond")
        return array.cast(pa.timestamp("us")).cast(pa.int64())
    if is_text(kind):
        return array.cast(pa.large_string())
    if pa.types.is_boolean(kind):
        return array.cast(pa.int8())
    if pa.types.is_decimal(kind) or pa.types.is_null(kind) or pa.types.is_float16(kind):
        return array.cast(pa.float64())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
    return array


def label_numbers(column: pa.Array) -> NDArray[np.float64]:
    """Labels as floats; NaN where they are texts."""
    values = comparable(column)
    if is_text(values.type):
        return np.full(len(values), math.nan)
    return np.asarray(numbers(values), dtype=np.float64)


def psi(train: Sequence[int], other: Sequence[int], least_rows: int = LEAST_ROWS) -> Psi:
    """The population stability index of rows by bin against those of train."""
    pairs = [pair for pair in zip(train, other, strict=True) if any(pair)]
    rows, bins = [sum(side) for side in zip(*pairs, strict=True)] or [0, 0], len(pairs)
    if not all(rows):
        return Psi(None, bins, None)
    chance = (bins - 1) * (1 / rows[0] + 1 / rows[1])
    if min(rows) < least_rows:
        return Psi(None, bins, chance)
    total = 0.0
    for pair in pairs:
        share, now = (
            (count + SMOOTHING) / (of + SMOOTHING * bins)
            for count, of in zip(pair, rows, strict=True)
        )
        total += (now - share) * math.log(now / share)
    return Psi(total, bins, chance)
