"""How the columns of a training set are distributed, split by split.

All figures are exact, not of a sample. Rows pass in batches, once for missing values and moments
of all columns; then the values of one column at a time are counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feast_dynamo_ext.arrow_types import numbers
from feast_dynamo_ext.duckdb_connection import connected
from feast_dynamo_ext.sagemaker.column_statistics import (
    ColumnStatistics,
    SplitStatistics,
    comparable,
    kind_of,
    label_numbers,
)
from feast_dynamo_ext.sagemaker.value_counts import Counted, of_numbers, of_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.sagemaker.column_statistics import Label, SplitRows


def statistics(
    rows: SplitRows, columns: Sequence[str], label: Label, limits: Limits
) -> dict[str, ColumnStatistics]:
    """The distribution of columns, by their names.

    Args:
        rows: the set's rows.
        columns: which columns.
        label: what they are compared with.
        limits: memory and disk of counting.

    Raises:
        OfflineStoreError: memory or disk were not enough.
    """
    passed = _one_pass(rows, columns, label)
    found = {}
    with connected(limits, "Counting the values of columns") as connection:
        for name in columns:
            kind = passed[name].kind
            splits = {split: passed[name].of(split) for split in rows.splits}
            if kind == "other":
                found[name] = ColumnStatistics(name, kind, splits)
                continue
            counted = Counted(connection, rows, name, label)
            found[name] = (of_texts if kind == "text" else of_numbers)(counted, kind, splits)
    return found


# One pass over all columns: missing values, moments


class _Moments:
    """Sums of one column in one split, merged batch by batch (Chan, Golub and LeVeque)."""

    def __init__(self) -> None:
        self.rows = self.missing = 0
        self.positive = self.missing_positive = 0
        self.count = 0
        self.least, self.greatest = math.inf, -math.inf
        self.mean = self.mean_y = self.square = self.square_y = self.product = 0.0

    def add(self, values: NDArray[np.float64], labels: NDArray[np.float64]) -> None:
        if not len(values):
            return
        self.least = min(self.least, float(values.min()))
        self.greatest = max(self.greatest, float(values.max()))
        # Squares of numbers beyond 1e154 are infinite: then there is no deviation to state.
        with np.errstate(over="ignore", invalid="ignore"):
            self._merge(values, labels)

    def _merge(self, values: NDArray[np.float64], labels: NDArray[np.float64]) -> None:
        n, total = len(values), self.count + len(values)
        mean, mean_y = values.mean(), labels.mean()
        off, off_y = values - mean, labels - mean_y
        step, step_y = mean - self.mean, mean_y - self.mean_y
        weight = self.count * n / total
        self.square += off @ off + step * step * weight
        self.square_y += off_y @ off_y + step_y * step_y * weight
        self.product += off @ off_y + step * step_y * weight
        self.mean += step * n / total
        self.mean_y += step_y * n / total
        self.count = total

    def statistics(self, *, is_binary: bool) -> SplitStatistics:
        spread = math.sqrt(self.square) * math.sqrt(self.square_y)
        correlation = self.product / spread if spread else math.nan
        has = self.count > 0
        return SplitStatistics(
            rows=self.rows,
            missing=self.missing,
            mean=_finite(self.mean) if has else None,
            deviation=_finite(math.sqrt(self.square / self.count)) if has else None,
            least=self.least if has else None,
            greatest=self.greatest if has else None,
            auc_of_missing=self._auc_of_missing() if is_binary else None,
            correlation=_finite(float(np.clip(correlation, -1.0, 1.0))),
        )

    def _auc_of_missing(self) -> float | None:
        negative = self.rows - self.positive
        if not (self.positive and negative and self.missing):
            return None
        rate = self.missing_positive / self.positive
        return 0.5 + (rate - (self.missing - self.missing_positive) / negative) / 2


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass
class _Passed:
    """What one pass says of a column."""

    kind: str
    is_binary: bool
    moments: dict[str, _Moments]

    def of(self, split: str) -> SplitStatistics:
        return self.moments[split].statistics(is_binary=self.is_binary)


def _one_pass(rows: SplitRows, columns: Sequence[str], label: Label) -> dict[str, _Passed]:
    found = {
        name: _Passed("number", label.is_binary, {split: _Moments() for split in rows.splits})
        for name in columns
    }
    wanted = list(dict.fromkeys([*columns, label.column]))
    for split in rows.splits:
        for batch in rows.batches(split, wanted):
            labels = label_numbers(batch.column(label.column))
            positive = labels == _number(label.values[1]) if label.is_binary else None
            for name in columns:
                column = batch.column(name)
                found[name].kind = kind_of(column.type)
                _add(found[name].moments[split], column, found[name].kind, labels, positive)
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _add(
    moments: _Moments,
    column: pa.Array,
    kind: str,
    labels: NDArray[np.float64],
    positive: NDArray[np.bool_] | None,
) -> None:
    values = comparable(column) if kind != "other" else column
    present = np.asarray(values.is_valid())
    moments.rows += len(values)
    moments.missing += int((~present).sum())
    if positive is not None:
        moments.positive += int(positive.sum())
        moments.missing_positive += int((positive & ~present).sum())
    if kind in ("number", "time"):
        seen = np.asarray(numbers(values), dtype=np.float64)[present]
        moments.add(seen, labels[present])
