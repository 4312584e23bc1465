"""How the columns of a training set are distributed, split by split.

All figures are exact, not of a sample. Rows pass in batches; the values of one column at a time
are counted by DuckDB, which spills to disk, and come back in ascending order with their counts.
Quantiles, bins and the AUC are read off that walk.

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
from dataclasses import dataclass, field, replace
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
from feast_dynamo_ext.duckdb_connection import connected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import duckdb
    from numpy.typing import NDArray

    from feast_dynamo_ext.duckdb_connection import Limits

    Counts = NDArray[np.int64]

DECILES = 10
SMOOTHING = 0.5
LEAST_ROWS = 1_000
FEW_VALUES = 20
BARS = 20
PERCENTS = (5, 25, 50, 75, 95)
_OUTER = (1, 199)
"""Of 200: between these quantiles of train bars have equal width; the outer two hold the rest."""

_OF_200 = (*_OUTER, *range(20, 200, 20), *(2 * percent for percent in PERCENTS))
WALK_ROWS = 65_536


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
            if kind == "other":
                splits = {split: passed[name].of(split) for split in rows.splits}
                found[name] = ColumnStatistics(name, kind, splits)
                continue
            counted = _Counted(connection, rows, name, label)
            found[name] = (_of_texts if kind == "text" else _of_numbers)(counted, passed[name])
    return found


# One pass over all columns: missing values, moments


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


def label_numbers(column: pa.Array) -> NDArray[np.float64]:
    """Labels as floats; NaN where they are texts."""
    values = comparable(column)
    if is_text(values.type):
        return np.full(len(values), math.nan)
    return np.asarray(numbers(values), dtype=np.float64)


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


# The walk over the values of one column, ascending


@dataclass(frozen=True)
class _Step:
    """Some of the distinct values: of each its rows and its positive rows, a line a split."""

    values: NDArray[Any]
    rows: Counts
    positive: Counts


class _Counted:
    """The distinct values of a column and their counts, as a table of DuckDB."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, rows: SplitRows, name: str, label: Label
    ) -> None:
        self.name, self.splits = name, rows.splits
        self.is_binary = label.is_binary
        self._connection = connection
        reader = _value_reader(rows, name, label)
        connection.register("given", reader)
        sums = ", ".join(
            f"count(*) FILTER (WHERE split = {at}) AS n{at}, "
            f"count(*) FILTER (WHERE split = {at} AND positive) AS p{at}"
            for at in range(len(self.splits))
        )
        # Names of columns are not in it: the reader's are these.
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE counted AS SELECT value, {sums} "  # noqa: S608
            "FROM given GROUP BY value"
        )
        connection.unregister("given")
        ((self.distinct,),) = connection.execute(
            "SELECT count(*) FROM counted WHERE value IS NOT NULL"
        ).fetchall()

    def walk(self, order: str = "value") -> Iterator[_Step]:
        """The values and their counts, ascending."""
        reader = self._connection.sql(
            f"SELECT * FROM counted WHERE value IS NOT NULL ORDER BY {order}"  # noqa: S608
        ).to_arrow_reader(WALK_ROWS)
        for batch in reader:
            columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
            yield _Step(columns[0], np.array(columns[1::2]), np.array(columns[2::2]))

    def missing(self) -> Counts:
        """Rows without a value, by split."""
        found = self._connection.execute("SELECT * FROM counted WHERE value IS NULL").fetchall()
        return np.array(found[0][1::2] if found else [0] * len(self.splits), dtype=np.int64)


def _value_reader(rows: SplitRows, name: str, label: Label) -> pa.RecordBatchReader:
    wanted = list(dict.fromkeys([name, label.column]))
    kind = comparable(pa.array([], rows.schema.field(name).type)).type
    fields = [("value", kind), ("split", pa.int8()), ("positive", pa.bool_())]
    schema = pa.schema(fields)

    def batches() -> Iterator[pa.RecordBatch]:
        for at, split in enumerate(rows.splits):
            for batch in rows.batches(split, wanted):
                count = batch.num_rows
                positive = pa.nulls(count, pa.bool_())
                if label.is_binary:
                    labels = comparable(batch.column(label.column))
                    positive = pc.equal(labels, pa.scalar(label.values[1], labels.type))
                split_of = pa.repeat(pa.scalar(at, pa.int8()), count)
                columns = [comparable(batch.column(name)), split_of, positive]
                yield pa.record_batch(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


@dataclass
class _Auc:
    """The AUC of one split, value by value in ascending order."""

    pairs: int = 0
    """Twice the pairs of a positive and a negative row of which the positive has more."""

    positive: int = 0
    negative: int = 0

    def add(self, positive: Counts, negative: Counts) -> None:
        below = self.negative + np.cumsum(negative) - negative
        self.pairs += int((positive * (2 * below + negative)).sum())
        self.positive += int(positive.sum())
        self.negative += int(negative.sum())

    @property
    def value(self) -> float | None:
        both = self.positive * self.negative
        return self.pairs / (2 * both) if both else None


class _Quantiles:
    """Values at ranks: of the quantile k of 200 the smallest with at least k/200 of the rows."""

    def __init__(self, rows: int) -> None:
        self._ranks = np.array([-(-at * rows // 200) for at in _OF_200], dtype=np.int64)
        self._seen = 0
        self.found: dict[int, Any] = {}

    def add(self, values: NDArray[Any], rows: Counts) -> None:
        reached = self._seen + np.cumsum(rows)
        last = int(reached[-1])
        inside = (self._ranks > self._seen) & (self._ranks <= last)
        for place in np.flatnonzero(inside):
            at = int(np.searchsorted(reached, self._ranks[place]))
            self.found[_OF_200[place]] = values[at].item()
        self._seen = last

    @property
    def percentiles(self) -> tuple[Any, ...]:
        return tuple(self.found[2 * percent] for percent in PERCENTS) if self.found else ()


def _of_numbers(counted: _Counted, passed: _Passed) -> ColumnStatistics:
    splits, moments = counted.splits, passed.moments
    aucs = [_Auc() for _ in splits]
    quantiles = [_Quantiles(moments[split].rows - moments[split].missing) for split in splits]
    for step in counted.walk():
        for at in range(len(splits)):
            quantiles[at].add(step.values, step.rows[at])
            if counted.is_binary:
                aucs[at].add(step.positive[at], step.rows[at] - step.positive[at])

    few = counted.distinct <= FEW_VALUES
    of_train = quantiles[0].found
    edges = () if few else _edges(of_train)
    deciles = sorted({of_train[at] for at in range(20, 200, 20)} if of_train else set())
    values, bars, bins = _binned(counted, edges, deciles, few=few)
    found = {
        split: replace(
            passed.of(split),
            percentiles=quantiles[at].percentiles,
            counts=tuple(bars[at].tolist()),
            auc=aucs[at].value,
        )
        for at, split in enumerate(splits)
    }
    return ColumnStatistics(
        counted.name,
        passed.kind,
        found,
        distinct=counted.distinct,
        values=tuple(values),
        edges=edges,
        psi=_psi_of_splits(splits, bins, counted.missing()),
    )


def _edges(of_train: Mapping[int, Any]) -> tuple[float, ...]:
    """Edges of bars of one width; empty where train has no values or hardly differs."""
    if not of_train:
        return ()
    low, high = (float(of_train[at]) for at in _OUTER)
    if not low < high:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, BARS + 1)
    # Neighbouring floats have no room between them.
    return tuple(edges.tolist()) if (np.diff(edges) > 0).all() else (low, high)


def _binned(
    counted: _Counted, edges: tuple[float, ...], deciles: list[Any], *, few: bool
) -> tuple[list[Any], Counts, Counts]:
    """The values where they are few, rows by bar, and rows by bin of the PSI."""
    values: list[Any] = []
    if few:
        steps = list(counted.walk())
        values = [value for step in steps for value in step.values.tolist()]
        empty = np.zeros((len(counted.splits), 0), dtype=np.int64)
        rows = np.concatenate([empty, *(step.rows for step in steps)], axis=1)
        return values, rows, rows
    bars = np.zeros((len(counted.splits), max(1, len(edges) - 1)), dtype=np.int64)
    bins = np.zeros((len(counted.splits), len(deciles) + 1), dtype=np.int64)
    inner, cuts = np.array(edges[1:-1]), np.array(deciles)
    for step in counted.walk():
        # A bar has its lower edge in it, a bin its upper one, which is a value of train.
        bar = np.searchsorted(inner, step.values, side="right")
        bin_ = np.searchsorted(cuts, step.values, side="left")
        for at in range(len(counted.splits)):
            np.add.at(bars[at], bar, step.rows[at])
            np.add.at(bins[at], bin_, step.rows[at])
    return values, bars, bins


def _of_texts(counted: _Counted, passed: _Passed) -> ColumnStatistics:
    splits = counted.splits
    kept: list[Any] = []
    shown = np.zeros((len(splits), 0), dtype=np.int64)
    others = np.zeros(len(splits), dtype=np.int64)
    order = ", ".join(f"n{at} DESC" for at in range(len(splits)))
    for step in counted.walk(f"{order}, value"):
        room = FEW_VALUES - len(kept)
        kept += step.values[:room].tolist()
        shown = np.concatenate([shown, step.rows[:, :room]], axis=1)
        others += step.rows[:, room:].sum(axis=1)
    found = {
        split: replace(passed.of(split), counts=tuple(shown[at].tolist()))
        for at, split in enumerate(splits)
    }
    return ColumnStatistics(
        counted.name,
        passed.kind,
        found,
        distinct=counted.distinct,
        values=tuple(kept),
        others={split: int(count) for split, count in zip(splits, others, strict=True)},
        psi=_psi_of_splits(
            splits, np.concatenate([shown, others[:, None]], axis=1), counted.missing()
        ),
    )


def _psi_of_splits(splits: Sequence[str], bins: Counts, missing: Counts) -> dict[str, Psi]:
    """Of each split but the first, whose rows by bin stand in the first line."""
    lines = np.concatenate([bins, missing[:, None]], axis=1)
    return {
        split: psi(lines[0].tolist(), lines[at].tolist()) for at, split in enumerate(splits) if at
    }


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
