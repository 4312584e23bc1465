"""The values of one column, counted by DuckDB and walked in ascending order.

Counting spills to disk. Quantiles, bins and the AUC are read off the walk, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.duckdb_connection import registered
from feast_dynamo_ext.sagemaker.column_statistics import (
    FEW_VALUES,
    ColumnStatistics,
    Psi,
    SplitStatistics,
    comparable,
    psi,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import duckdb
    from numpy.typing import NDArray

    from feast_dynamo_ext.sagemaker.column_statistics import Label, SplitRows

    Counts = NDArray[np.int64]

BARS = 20
PERCENTS = (5, 25, 50, 75, 95)
_OUTER = (1, 199)
"""Of 200: between these quantiles of train bars have equal width; the outer two hold the rest."""

_OF_200 = (*_OUTER, *range(20, 200, 20), *(2 * percent for percent in PERCENTS))
WALK_ROWS = 65_536


@dataclass(frozen=True)
class _Step:
    """Some of the distinct values: of each its rows and its positive rows, a line a split."""

    values: NDArray[Any]
    rows: Counts
    positive: Counts


class Counted:
    """The distinct values of a column and their counts, as a table of DuckDB."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, rows: SplitRows, name: str, label: Label
    ) -> None:
        self.name, self.splits = name, rows.splits
        self.is_binary = label.is_binary
        self._connection = connection
        reader = _value_reader(rows, name, label)
        sums = ", ".join(
            f"count(*) FILTER (WHERE split = {at}) AS n{at}, "
            f"count(*) FILTER (WHERE split = {at} AND positive) AS p{at}"
            for at in range(len(self.splits))
        )
        with registered(connection, "given", reader):
            # Names of columns are not in it: the reader's are these.
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE counted AS SELECT value, {sums} "  # noqa: S608
                "FROM given GROUP BY value"
            )
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


def of_numbers(
    counted: Counted, kind: str, passed: Mapping[str, SplitStatistics]
) -> ColumnStatistics:
    """The distribution of a column of numbers or times.

    Args:
        counted: its values.
        kind: as `ColumnStatistics.kind`.
        passed: what one pass says of it, by split.
    """
    splits = counted.splits
    aucs = [_Auc() for _ in splits]
    quantiles = [_Quantiles(passed[split].rows - passed[split].missing) for split in splits]
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
            passed[split],
            percentiles=quantiles[at].percentiles,
            counts=tuple(bars[at].tolist()),
            auc=aucs[at].value,
        )
        for at, split in enumerate(splits)
    }
    return ColumnStatistics(
        counted.name,
        kind,
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
    counted: Counted, edges: tuple[float, ...], deciles: list[Any], *, few: bool
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


def of_texts(
    counted: Counted, kind: str, passed: Mapping[str, SplitStatistics]
) -> ColumnStatistics:
    """The distribution of a column of texts; arguments are those of `of_numbers`."""
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
        split: replace(passed[split], counts=tuple(shown[at].tolist()))
        for at, split in enumerate(splits)
    }
    return ColumnStatistics(
        counted.name,
        kind,
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
