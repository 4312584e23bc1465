"""Metrics of categorical columns: Feast's `MetricsCalculator.compute_categorical`, over a stream.

Each batch is counted in Arrow; DuckDB adds the counts up and spills where a column has more values
than fit in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from feast.monitoring.monitoring_utils import empty_categorical_metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import duckdb

COUNTED = pa.schema(
    [("c", pa.int32()), ("v", pa.string()), ("n", pa.int64()), ("first", pa.int64())]
)


def categorical_metrics(
    connection: duckdb.DuckDBPyConnection,
    kinds: Sequence[tuple[str, pa.DataType]],
    batches: Iterable[pa.RecordBatch],
    top_n: int,
) -> list[dict[str, Any]]:
    """Metrics of each column, in their order.

    Of equally frequent values the one that is met first comes first.

    Args:
        connection: where counts are added up.
        kinds: names and types of the columns, which are those of the batches.
        batches: the rows.
        top_n: how many values are named.
    """
    totals = _Totals(len(kinds))
    counted = pa.RecordBatchReader.from_batches(COUNTED, totals.counting(batches))
    connection.register("counted", counted)
    try:
        connection.execute(
            "CREATE TEMP TABLE counts AS "
            "SELECT c, v, sum(n)::BIGINT AS n, min(first) AS first FROM counted GROUP BY c, v"
        )
    except Exception as error:
        # DuckDB wraps what a reader raises; the reader's own error is the one that helps.
        raise (totals.failure or error) from error
    connection.unregister("counted")
    return [
        _metrics(connection, at, name, kind, totals, top_n)
        for at, (name, kind) in enumerate(kinds)
    ]


class _Totals:
    """Rows and nulls, counted while batches pass by."""

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self.nulls = [0] * columns
        self.failure: Exception | None = None

    def counting(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """What each batch holds of each column's values."""
        try:
            for batch in batches:
                for at, column in enumerate(batch.columns):
                    self.nulls[at] += column.null_count
                    yield _counted(at, column, self.rows)
                self.rows += batch.num_rows
        except Exception as error:
            self.failure = error
            raise


def _counted(at: int, column: pa.Array, start: int) -> pa.RecordBatch:
    valid = column.drop_null().cast(pa.string())
    counts = valid.value_counts()
    # Values are counted in the order in which they are met first.
    first = pa.array(range(start, start + len(counts)), pa.int64())
    return pa.RecordBatch.from_arrays(
        [pa.array([at] * len(counts), pa.int32()), *counts.flatten(), first], schema=COUNTED
    )


def _metrics(
    connection: duckdb.DuckDBPyConnection,
    at: int,
    name: str,
    kind: pa.DataType,
    totals: _Totals,
    top_n: int,
) -> dict[str, Any]:
    nulls = totals.nulls[at]
    found = empty_categorical_metric(name) | {
        "row_count": totals.rows,
        "null_count": nulls,
        "null_rate": nulls / totals.rows if totals.rows else 0.0,
    }
    if nulls == totals.rows:
        return found
    ((unique,),) = connection.execute("SELECT count(*) FROM counts WHERE c = $1", [at]).fetchall()
    top = connection.execute(
        "SELECT v, n FROM counts WHERE c = $1 ORDER BY n DESC, first LIMIT $2", [at, top_n]
    ).fetchall()
    values = _in_kind([value for value, _ in top], kind)
    counts = [count for _, count in top]
    found["histogram"] = {
        "values": [
            {"value": value, "count": count} for value, count in zip(values, counts, strict=True)
        ],
        "other_count": totals.rows - nulls - sum(counts),
        "unique_count": unique,
    }
    return found


def _in_kind(texts: list[str], kind: pa.DataType) -> list[Any]:
    """Values as JSON has them: booleans and integers as such, all others as text."""
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return list(pc.cast(pa.array(texts, pa.string()), kind).to_pylist())
    return texts
