"""Metrics of a source's columns within a range of time, and the source's newest event time.

The columns go once from the files into a temporary table of DuckDB, which spills under the memory
limit; all figures are SQL over it, a column at a time. Feast's calculator takes exact percentiles
and numpy's histogram of a column in memory. DuckDB's own quantiles hold all values, and a sort of
the column would spill all of them, so here one pass counts the values up to some bounds (the edges
of the histogram, and some of the column's values), which gives the histogram and says between
which two bounds each percentile is. Only the values there are grouped and put in order.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.monitoring.monitoring_utils import (
    empty_categorical_metric,
    empty_numeric_metric,
    opt_float,
)

from feast_dynamo_ext.columns import PUT, stored_names, tombstones_of
from feast_dynamo_ext.duckdb_connection import connected, registered
from feast_dynamo_ext.errors import ColumnNotFoundError, ColumnTypeError, SourceNotFoundError
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.timestamps import EPOCH, LATEST, Axis, check_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import duckdb
    from feast import RepoConfig
    from feast.data_source import DataSource
    from numpy.typing import NDArray

    from feast_dynamo_ext.retrieval.engines.duckdb import DuckDbEngine


logger = logging.getLogger(__name__)

PERCENTILES = {"p50": 0.50, "p75": 0.75, "p90": 0.90, "p95": 0.95, "p99": 0.99}

COLUMNS_AT_ONCE = 32
"""Columns in the temporary table at a time, which bounds the disk that it takes."""

BOUNDS = 512
"""Values of a column that are bounds; between two of them is about that share of all values."""


@dataclass(frozen=True)
class Column:
    """A column to be measured.

    Attributes:
        feature: the name that the metrics have.
        name: its name in the files.
        numeric: whether it is measured as numbers, or as categories.
        kind: its type in the files.
    """

    feature: str
    name: str
    numeric: bool
    kind: pa.DataType

    @property
    def counted_as(self) -> pa.DataType:
        """The type that DuckDB gets: doubles, or what JSON has for categories."""
        if self.numeric:
            return pa.float64()
        as_it_is = pa.types.is_boolean(self.kind) or pa.types.is_integer(self.kind)
        return self.kind if as_it_is else pa.string()

    def check(self, uri: str) -> None:
        """Refuse a type that has no numbers, or no categories.

        Raises:
            ColumnTypeError: names the column.
        """
        try:
            pa.array([], self.kind).cast(self.counted_as)
        except pa.ArrowException as error:
            raise ColumnTypeError(
                f"Feature `{self.feature}`: column `{self.name}` of {uri} has type {self.kind}, "
                f"which has no {'numbers' if self.numeric else 'categories'} to measure. Correct "
                "the type in the view's schema."
            ) from error


@dataclass(frozen=True)
class Rows:
    """The rows of a source with first <= event time <= last.

    Attributes:
        source: the files that may hold such rows.
        event_time: the files' column of event time; a row without one is in no range.
        first: first event time that counts; None for no limit.
        last: last event time that counts; None for no limit.
        change: of a captured table: the column that says which rows are puts, the others being
            no features.
    """

    source: ParquetSource
    event_time: str
    first: datetime | None
    last: datetime | None
    change: str | None = None

    def load(self, connection: duckdb.DuckDBPyConnection, columns: Sequence[Column]) -> None:
        """Make them the table `measured`, whose columns are c0, c1, and so on.

        Raises:
            SourceReadError: a file cannot be read.
        """
        fields = [(f"c{at}", column.counted_as) for at, column in enumerate(columns)]
        schema = pa.schema(fields)
        failures: list[Exception] = []
        reader = pa.RecordBatchReader.from_batches(
            schema, self._batches(columns, schema, failures)
        )
        with registered(connection, "files", reader, failures):
            connection.execute("CREATE OR REPLACE TEMP TABLE measured AS FROM files")

    def _batches(
        self, columns: Sequence[Column], schema: pa.Schema, failures: list[Exception]
    ) -> Iterator[pa.RecordBatch]:
        names = [column.name for column in columns]
        try:
            change = [self.change] if self.change else []
            for read in self.source.scan(list(dict.fromkeys([*names, self.event_time, *change]))):
                is_put = pc.equal(read.column(self.change), PUT) if self.change else None
                batch = read if is_put is None else read.filter(is_put)
                rows = batch.select(names).filter(self._within(batch.column(self.event_time)))
                # Integers past 2^53 are rounded; Feast's calculator fails for them.
                arrays = [
                    array.cast(field.type, safe=False)
                    for array, field in zip(rows.columns, schema, strict=True)
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except Exception as error:
            failures.append(error)
            raise

    def _within(self, times: pa.Array) -> pa.Array:
        if self.first is None and self.last is None:
            return pa.array(np.ones(len(times), dtype=bool))
        axis = Axis.from_type(times.type)
        points = axis.cast(times)
        within = points.is_valid().to_numpy(zero_copy_only=False)
        values = points.fill_null(0).to_numpy()
        if self.first is not None:
            within = within & (values >= axis.first_at_or_after(self.first))
        if self.last is not None:
            within = within & (values <= axis.last_at_or_before(self.last))
        return pa.array(within)


def compute_metrics(
    config: RepoConfig,
    data_source: DataSource,
    features: Sequence[tuple[str, str]],
    event_time: str,
    first: datetime | None,
    last: datetime | None,
    *,
    bins: int,
    top_n: int,
) -> list[dict[str, Any]]:
    """Metrics of each feature that the files have, in the order asked for; see the offline store.

    Raises:
        ColumnTypeError: a column cannot be measured as asked.
        OfflineStoreError: the source cannot be read; see the subclasses.
    """
    source, event_time = _open(config, data_source, event_time)
    source, columns = _present(source, data_source, features)
    check_time(event_time, source.schema.field(event_time).type, f"Source `{data_source.name}`")
    for column in columns:
        column.check(source.uri)
    source = source.within(event_time, first, last)
    tombstones = tombstones_of(data_source)
    rows = Rows(source, event_time, first, last, tombstones.change if tombstones else None)
    engine: DuckDbEngine = config.offline_store.engine_here()
    metrics: list[dict[str, Any]] = []
    with connected(engine, "Counting the metrics") as connection:
        for start in range(0, len(columns), COLUMNS_AT_ONCE):
            group = columns[start : start + COLUMNS_AT_ONCE]
            rows.load(connection, group)
            for at, column in enumerate(group):
                connection.execute(ONE_COLUMN.format(at))
                if column.numeric:
                    metrics.append(_numeric(connection, column.feature, bins))
                else:
                    metrics.append(_categorical(connection, column.feature, top_n))
    source.check_unchanged()
    return metrics


def newest_event(config: RepoConfig, data_source: DataSource, event_time: str) -> datetime | None:
    """A source's greatest event time, UTC, rounded up to microseconds; None without any.

    Read from the files' footers where these say it, else from the column.

    Raises:
        OfflineStoreError: the source cannot be read; see the subclasses.
    """
    try:
        source, column = _open(config, data_source, event_time)
    except SourceNotFoundError:
        return None  # nothing has been written yet
    kind = source.schema.field(column).type
    check_time(column, kind, f"Source `{data_source.name}`")
    axis = Axis.from_type(kind)
    limits = source.limits(column)
    times = [limits] if limits is not None else (rows[column] for rows in source.scan([column]))
    points = (axis.cast(part.drop_null()).to_numpy() for part in times)
    newest = max((int(part.max()) for part in points if len(part)), default=None)
    if newest is None:
        return None
    # Upwards, so that a window that ends there holds the newest row.
    micros = -int(Axis("us").floor(np.array([-newest]), axis.unit)[0])
    return EPOCH + min(timedelta(microseconds=micros), LATEST - EPOCH)


def _open(
    config: RepoConfig, data_source: DataSource, event_time: str
) -> tuple[ParquetSource, str]:
    """The files, and their column of event time."""
    source = ParquetSource.open(data_source, config)
    column = stored_names(data_source)[event_time]
    return source.with_columns([column], f"Source `{data_source.name}`"), column


def _present(
    source: ParquetSource, data_source: DataSource, features: Sequence[tuple[str, str]]
) -> tuple[ParquetSource, list[Column]]:
    """The source with a schema of all columns that some file has; others are left out."""
    names = stored_names(data_source)
    present = []
    for feature, kind in features:
        if kind not in ("numeric", "categorical"):
            continue
        name = names[feature]
        try:
            source = source.with_columns([name], f"Feature `{feature}`")
        except ColumnNotFoundError as error:
            logger.warning("not monitored: %s", error)
        else:
            present.append((feature, name, kind == "numeric"))
    return source, [Column(*each, source.schema.field(each[1]).type) for each in present]


ONE_COLUMN = (
    "CREATE OR REPLACE TEMP VIEW one_column AS SELECT c{} AS x, rowid AS row FROM measured"
)

SUMMARY = """
    SELECT count(*), count(x), count(*) FILTER (NOT isnan(x)),
        min(x) FILTER (NOT isnan(x)), max(x) FILTER (NOT isnan(x)),
        min(x) FILTER (isfinite(x)), max(x) FILTER (isfinite(x))
    FROM one_column
"""

MEAN = """
    SELECT fsum(total) / sum(n)
    FROM (SELECT sum(x) AS total, count(x) AS n FROM one_column GROUP BY row // 1024)
"""
"""In blocks, as Arrow adds: where all are added to one sum, that of many values loses digits."""

SOME_VALUES = "SELECT x FROM one_column WHERE row % $1 = 0 AND NOT isnan(x)"

COUNTS_AND_SQUARES = """
    SELECT map_values(histogram(x, $1::DOUBLE[]) FILTER (NOT isnan(x))),
        fsum((x - $2) * (x - $2))
    FROM one_column
"""

NEAR = """
    CREATE OR REPLACE TEMP TABLE near AS
    SELECT x, count(*) AS n FROM one_column WHERE {} GROUP BY x
"""

AT_RANK = """
    SELECT min(x) FILTER (upto > ?), min(x) FILTER (upto > ?)
    FROM (SELECT x, sum(n) OVER (ORDER BY x) AS upto FROM near WHERE x BETWEEN ? AND ?)
"""

CATEGORIES = """
    CREATE OR REPLACE TEMP TABLE categories AS
    SELECT x, count(*) AS n, min(row) AS first FROM one_column GROUP BY x
"""

CATEGORIES_SUMMARY = """
    SELECT coalesce(sum(n), 0)::BIGINT, coalesce(sum(n) FILTER (x IS NOT NULL), 0)::BIGINT,
        count(x)
    FROM categories
"""

TOP_CATEGORIES = """
    SELECT x, n FROM categories WHERE x IS NOT NULL ORDER BY n DESC, first LIMIT $1
"""
"""Of equally frequent ones the one that is met first comes first."""


def _row(connection: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> tuple[Any, ...]:
    (row,) = connection.execute(sql, values).fetchall()
    return tuple(row)


def _counts(rows: int, values: int) -> dict[str, Any]:
    nulls = rows - values
    return {"row_count": rows, "null_count": nulls, "null_rate": nulls / rows if rows else 0.0}


def _numeric(connection: duckdb.DuckDBPyConnection, feature: str, bins: int) -> dict[str, Any]:
    """Metrics of a column of doubles.

    NaN is a value, not a null: as in Feast, mean and deviation are then unknown, and extremes and
    percentiles are those of the other values. The histogram is that of the finite values; Feast's
    calculator fails where others are among them.
    """
    rows, values, numbers, least, most, low, high = _row(connection, SUMMARY)
    metrics = empty_numeric_metric(feature) | _counts(rows, values)
    if not numbers:
        return metrics
    (mean,) = _row(connection, MEAN)
    edges = np.empty(0) if low is None else _edges(low, high, bins)
    some = connection.execute(SOME_VALUES, [rows // BOUNDS + 1]).fetchnumpy()["x"]
    bounds = np.unique(np.concatenate([some, _ends(edges), [np.inf]]))
    counts, squares = _row(connection, COUNTS_AND_SQUARES, bounds.tolist(), mean)
    distribution = Distribution(bounds, np.cumsum(counts, dtype=np.int64))
    places = [(numbers - 1) * share for share in PERCENTILES.values()]
    percentiles = _percentiles(connection, distribution, places)
    return metrics | {
        "mean": opt_float(mean),
        "stddev": opt_float(math.sqrt(squares / (values - 1))) if values > 1 else None,
        "min_val": opt_float(least),
        "max_val": opt_float(most),
        **dict(zip(PERCENTILES, percentiles, strict=True)),
        "histogram": distribution.histogram(edges) if len(edges) else None,
    }


def _percentiles(
    connection: duckdb.DuckDBPyConnection, distribution: Distribution, places: Sequence[float]
) -> list[float | None]:
    """At places between two ranks, as Arrow, and so Feast, interpolates."""
    ranges = [distribution.around(place) for place in places]
    limits = [limit for _, *limits in ranges for limit in limits]
    connection.execute(NEAR.format(" OR ".join(["x BETWEEN ? AND ?"] * len(ranges))), limits)
    found = []
    for place, (before, first, last) in zip(places, ranges, strict=True):
        rank = math.floor(place)
        between, within = place - rank, rank - before
        low, high = _row(connection, AT_RANK, within, within + 1, first, last)
        found.append(opt_float(between * high + (1 - between) * low if between else low))
    return found


def _edges(low: float, high: float, bins: int) -> NDArray[np.float64]:
    """The edges of numpy's bins of equal width between the least and the greatest finite value.

    Values that are too close together, or too far apart, for doubles to tell the edges apart are
    in one bin; numpy, and so Feast's calculator, fails for them.
    """
    if np.isfinite(high - low):
        # numpy gives a constant a range of 1.
        first, last = (low - 0.5, high + 0.5) if low == high else (low, high)
        edges = np.linspace(first, last, bins + 1)
        if np.all(edges[:-1] < edges[1:]):
            return edges
    return np.array([low, high])


def _ends(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The greatest value before each bin, and the greatest of the last bin.

    numpy's bins have their lower edges, and the last its upper edge too; DuckDB's have the upper.
    """
    return np.append(np.nextafter(edges[:-1], -np.inf), edges[-1:])


@dataclass(frozen=True)
class Distribution:
    """How many values of the column are at most each of some bounds.

    Attributes:
        bounds: ascending; the last is infinity.
        upto: how many values other than NaN are at most that.
    """

    bounds: NDArray[np.float64]
    upto: NDArray[np.int64]

    def histogram(self, edges: NDArray[np.float64]) -> dict[str, Any]:
        """As Feast keeps it: edges, counts, and the width of a bin."""
        upto = self.upto[np.searchsorted(self.bounds, _ends(edges))]
        return {
            "bins": edges.tolist(),
            "counts": np.diff(upto).tolist(),
            "bin_width": opt_float(edges[1].item() - edges[0].item()),
        }

    def around(self, place: float) -> tuple[int, float, float]:
        """Where the ranks around a place are: values before, least and greatest of the range."""
        ranks = [math.floor(place), math.ceil(place)]
        first, last = np.searchsorted(self.upto, ranks, "right").tolist()
        if not first:
            return 0, -math.inf, float(self.bounds[last])
        least = float(np.nextafter(self.bounds[first - 1], np.inf))
        return int(self.upto[first - 1]), least, float(self.bounds[last])


def _categorical(
    connection: duckdb.DuckDBPyConnection, feature: str, top_n: int
) -> dict[str, Any]:
    """Metrics of a column of categories."""
    connection.execute(CATEGORIES)
    rows, values, unique = _row(connection, CATEGORIES_SUMMARY)
    metrics = empty_categorical_metric(feature) | _counts(rows, values)
    if not values:
        return metrics
    top = connection.execute(TOP_CATEGORIES, [top_n]).fetchall()
    return metrics | {
        "histogram": {
            "values": [{"value": value, "count": count} for value, count in top],
            "other_count": values - sum(count for _, count in top),
            "unique_count": unique,
        }
    }
