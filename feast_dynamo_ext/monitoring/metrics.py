"""Metrics of a source's columns within a range of time, and the source's newest event time.

A pass counts the values by the next 16 bits of their place in the order of doubles, and so finds
which range of values each rank is in; once a range holds few values they are collected and sorted.
Ten million evenly spread values take three passes, and about five megabytes.

Exact percentiles and histograms need more than one pass. What is small is kept in memory after
the first; what is not is read again, so that memory stays that of a batch.

Each batch is counted in Arrow; DuckDB adds the counts up and spills where a column has more values
than fit in memory.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.monitoring.monitoring_utils import (
    empty_categorical_metric,
    empty_numeric_metric,
    opt_float,
)

from feast_dynamo_ext.duckdb_connection import connected
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.timestamps import EPOCH, Axis, check_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import duckdb
    from feast import RepoConfig
    from feast.data_source import DataSource
    from numpy.typing import NDArray


class Histogram:
    """Counts finite values into bins of equal width.

    Values that are too close together, or too far apart, for doubles to tell the bins' edges apart
    are in one bin; numpy, and so Feast's calculator, fails for them.

    Args:
        low: the least value.
        high: the greatest value.
        bins: how many bins.
    """

    def __init__(self, low: float, high: float, bins: int) -> None:
        self._low, self._high = low, high
        self._bins = bins if _can_be_told_apart(low, high, bins) else 1
        self._counts = np.zeros(self._bins, dtype=np.int64)

    def add(self, values: NDArray[np.float64]) -> None:
        """Count some of the values."""
        if self._bins == 1:
            self._counts += len(values)
        else:
            self._counts += np.histogram(values, self._bins, (self._low, self._high))[0]

    def metrics(self) -> dict[str, Any]:
        """As Feast keeps it: edges, counts, and the width of a bin."""
        edges = np.array([self._low, self._high])
        if self._bins > 1:
            edges = np.histogram_bin_edges([], self._bins, (self._low, self._high))
        return {
            "bins": edges.tolist(),
            "counts": self._counts.tolist(),
            "bin_width": opt_float(edges[1].item() - edges[0].item()),
        }


def _can_be_told_apart(low: float, high: float, bins: int) -> bool:
    if not np.isfinite(high - low):
        return False
    # numpy gives a constant a range of 1.
    first, last = (low - 0.5, high + 0.5) if low == high else (low, high)
    edges = np.linspace(first, last, bins + 1)
    return bool(np.all(edges[:-1] < edges[1:]))


KEY, DIGIT = 64, 16
"""Bits of a value's place in the order, and of it that a pass looks at."""

FEW = 1 << 16
"""Values that are collected."""

SIGN = np.uint64(1 << 63)


@dataclass
class _Range:
    """The values whose keys begin with some bits.

    Attributes:
        prefix: those bits, as a number.
        bits: how many.
        size: how many values there are.
        ranks: (rank asked for, its rank within the range).
    """

    prefix: int
    bits: int
    size: int
    ranks: list[tuple[int, int]]
    parts: list[NDArray[np.uint64]] = field(default_factory=list)
    counts: NDArray[np.int64] | None = None

    def add(self, keys: NDArray[np.uint64]) -> None:
        inside = keys[keys >> np.uint64(KEY - self.bits) == self.prefix]
        if self.size <= FEW:
            self.parts.append(inside)
            return
        counts = _digits(inside, self.bits)
        self.counts = counts if self.counts is None else self.counts + counts

    @property
    def seen(self) -> int:
        return sum(map(len, self.parts)) + (0 if self.counts is None else int(self.counts.sum()))


class Selection:
    """Finds values by rank: `survey` and `refine` see the whole stream, once a pass.

    First all goes through `survey`; then `ask`; then, while `open` says so, all goes through
    `refine`, and `settle` ends the pass. `found` then has the value of each rank.
    """

    def __init__(self) -> None:
        self.found: dict[int, float] = {}
        self._first = np.zeros(1 << DIGIT, dtype=np.int64)
        self._ranges: list[_Range] = []

    @property
    def open(self) -> bool:
        """Whether another pass is needed."""
        return bool(self._ranges)

    def survey(self, values: NDArray[np.float64]) -> None:
        """See some of the stream; values must not be NaN."""
        self._first += _digits(_keys(values), 0)

    def ask(self, ranks: Iterable[int]) -> None:
        """Say which ranks are wanted, counted from 0 in ascending order of the values."""
        wanted = [(rank, rank) for rank in sorted(set(ranks))]
        self._ranges = _split(0, 0, self._first, wanted)

    def refine(self, values: NDArray[np.float64]) -> None:
        """See some of the stream again."""
        keys = _keys(values)
        for part in self._ranges:
            part.add(keys)

    def settle(self) -> bool:
        """End a pass.

        Returns:
            False where the pass did not see what the passes before it did.
        """
        if any(part.seen != part.size for part in self._ranges):
            return False
        narrower: list[_Range] = []
        for part in self._ranges:
            if part.counts is None:
                values = np.sort(np.concatenate(part.parts))
                self.found.update({rank: _value(values[within]) for rank, within in part.ranks})
            elif part.bits + DIGIT == KEY:
                digits = np.searchsorted(
                    np.cumsum(part.counts), [at for _, at in part.ranks], "right"
                )
                for (rank, _), digit in zip(part.ranks, digits, strict=True):
                    self.found[rank] = _value(np.uint64(part.prefix << DIGIT | int(digit)))
            else:
                narrower += _split(part.prefix, part.bits, part.counts, part.ranks)
        self._ranges = narrower
        return True


def _split(
    prefix: int, bits: int, counts: NDArray[np.int64], ranks: list[tuple[int, int]]
) -> list[_Range]:
    """The narrower ranges that ranks are in."""
    upto = np.cumsum(counts)
    parts: dict[int, _Range] = {}
    for rank, within in ranks:
        digit = int(np.searchsorted(upto, within, "right"))
        size = int(counts[digit])
        part = parts.setdefault(digit, _Range(prefix << DIGIT | digit, bits + DIGIT, size, []))
        part.ranks.append((rank, within - int(upto[digit]) + size))
    return list(parts.values())


def _digits(keys: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    digits = (keys >> np.uint64(KEY - DIGIT - bits)) & np.uint64((1 << DIGIT) - 1)
    return np.bincount(digits.astype(np.int64), minlength=1 << DIGIT)


def _keys(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Unsigned integers in the order of the values; -0.0 is 0.0."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _value(key: Any) -> float:
    bits = key ^ SIGN if key & SIGN else ~key
    return float(np.uint64(bits).view(np.float64))


KEPT_BYTES = 64 << 20


class Rows:
    """Some columns of the rows with first <= event time <= last.

    Args:
        source: the files.
        columns: names of the columns.
        event_time: the column of event time; a row without one is in no range.
        first: the first of the range; None for no limit.
        last: the last of it.
        kept_bytes: what may stay in memory between passes.
    """

    def __init__(
        self,
        source: ParquetSource,
        columns: Sequence[str],
        event_time: str,
        first: datetime | None,
        last: datetime | None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._source = source
        self._columns = list(columns)
        self._event_time = event_time
        self._range = (first, last)
        self._kept_bytes = kept_bytes
        self._kept: list[pa.RecordBatch] | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches, the same in each pass.

        Raises:
            SourceReadError: a file cannot be read.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[pa.RecordBatch] = []
        size = 0
        for batch in self._read():
            size += batch.nbytes
            if size <= self._kept_bytes:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        if size <= self._kept_bytes:
            self._kept = kept

    def _read(self) -> Iterator[pa.RecordBatch]:
        columns = list(dict.fromkeys([*self._columns, self._event_time]))
        for batch in self._source.scan(columns):
            wanted = self._within(batch.column(self._event_time))
            yield batch.select(self._columns).filter(wanted)

    def _within(self, times: pa.Array) -> pa.Array:
        first, last = self._range
        if first is None and last is None:
            return pa.array([True] * len(times), pa.bool_())
        axis = Axis.from_type(times.type)
        points = axis.cast(times)
        within = points.is_valid().to_numpy(zero_copy_only=False)
        values = points.fill_null(0).to_numpy()
        if first is not None:
            within = within & (values >= axis.first_at_or_after(first))
        if last is not None:
            within = within & (values <= axis.last_at_or_before(last))
        return pa.array(within, pa.bool_())


PERCENTILES = {"p50": 0.50, "p75": 0.75, "p90": 0.90, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared deviations of some values; those of parts add up."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def and_of(self, values: NDArray[np.float64]) -> Moments:
        """These and those of more values; where a value is not finite, the mean is neither."""
        if not len(values):
            return self
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(np.mean(values))
            squares = float(np.sum((values - mean) ** 2))
        count = self.count + len(values)
        apart = mean - self.mean
        return Moments(
            count,
            self.mean + apart * (len(values) / count),
            self.squares + squares + apart * apart * (self.count * len(values) / count),
        )

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a sample; None for a single value."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else None


@dataclass(frozen=True)
class Extremes:
    """The least and the greatest of some values; none yet."""

    least: float = math.inf
    most: float = -math.inf

    def and_of(self, values: NDArray[np.float64]) -> Extremes:
        """These and those of more values, none of them NaN."""
        if not len(values):
            return self
        return Extremes(min(self.least, float(values.min())), max(self.most, float(values.max())))


class NumericColumn:
    """One column on its way through the passes: `survey`, then `refine` while `open`.

    NaN is a value, not a null: as in Feast, mean and deviation are then unknown, and extremes and
    percentiles are those of the other values. The histogram is that of the finite values; Feast's
    calculator fails where others are among them.
    """

    def __init__(self, name: str, bins: int) -> None:
        self.name = name
        self._bins = bins
        self._rows = self._nulls = self._numbers = 0
        self._moments = Moments()
        self._extremes = self._finite = Extremes()
        self._selection = Selection()
        self._histogram: Histogram | None = None
        self._histogram_open = True

    def survey(self, column: pa.Array) -> None:
        """See a batch in the first pass."""
        values, numbers, finite = _parts(column)
        self._rows += len(column)
        self._nulls += column.null_count
        self._numbers += len(numbers)
        self._moments = self._moments.and_of(values)
        self._extremes = self._extremes.and_of(numbers)
        self._finite = self._finite.and_of(finite)
        self._selection.survey(numbers)

    def end_survey(self) -> None:
        """End the first pass."""
        if self._numbers:
            places = [(self._numbers - 1) * share for share in PERCENTILES.values()]
            self._selection.ask(end(place) for place in places for end in (math.floor, math.ceil))
        if self._finite.least <= self._finite.most:
            self._histogram = Histogram(self._finite.least, self._finite.most, self._bins)

    @property
    def open(self) -> bool:
        """Whether another pass is needed."""
        return self._selection.open

    def refine(self, column: pa.Array) -> None:
        """See a batch in one of the later passes."""
        _, numbers, finite = _parts(column)
        self._selection.refine(numbers)
        if self._histogram is not None and self._histogram_open:
            self._histogram.add(finite)

    def end_pass(self) -> bool:
        """End a later pass; False where it saw other values than the passes before."""
        self._histogram_open = False
        return self._selection.settle()

    def metrics(self) -> dict[str, Any]:
        """The metrics, once no pass is needed any more."""
        found = empty_numeric_metric(self.name) | {
            "row_count": self._rows,
            "null_count": self._nulls,
            "null_rate": self._nulls / self._rows if self._rows else 0.0,
        }
        if self._moments.count:
            found["mean"] = opt_float(self._moments.mean)
            found["stddev"] = opt_float(self._moments.deviation)
        if self._numbers:
            found["min_val"] = opt_float(self._extremes.least)
            found["max_val"] = opt_float(self._extremes.most)
            found |= {name: self._percentile(share) for name, share in PERCENTILES.items()}
        if self._histogram is not None:
            found["histogram"] = self._histogram.metrics()
        return found

    def _percentile(self, share: float) -> float | None:
        place = (self._numbers - 1) * share
        lower = math.floor(place)
        between = place - lower
        value = self._selection.found[lower]
        if between:
            value = between * self._selection.found[lower + 1] + (1 - between) * value
        return opt_float(value)


def _parts(
    column: pa.Array,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A column's values, those of them that are numbers, and those that are finite."""
    # Integers past 2^53 are rounded; Feast's calculator fails for them.
    values = column.drop_null().cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    numbers = values[~np.isnan(values)]
    return values, numbers, numbers[np.isfinite(numbers)]


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


logger = logging.getLogger(__name__)

COLUMNS_AT_ONCE = 16
"""Numeric columns of one group of passes: each needs up to five megabytes for its percentiles."""

NEWEST = datetime.max.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Column:
    """A column to be measured.

    Attributes:
        feature: the name that the metrics have.
        name: its name in the files.
        numeric: whether it is measured as numbers, or as categories.
    """

    feature: str
    name: str
    numeric: bool


@dataclass(frozen=True)
class Monitored:
    """What is measured.

    Attributes:
        source: the files that may hold rows of the range.
        event_time: the files' column of event time.
        first: first event time that counts; None for no limit.
        last: last event time that counts.
        kept_bytes: rows that may stay in memory between passes.
    """

    source: ParquetSource
    event_time: str
    first: datetime | None
    last: datetime | None
    kept_bytes: int = KEPT_BYTES

    def rows(self, columns: Sequence[Column]) -> Rows:
        """The rows of the range, with some columns."""
        names = [column.name for column in columns]
        return Rows(self.source, names, self.event_time, self.first, self.last, self.kept_bytes)


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
    kept_bytes: int = KEPT_BYTES,
) -> list[dict[str, Any]]:
    """Metrics of each feature that the files have, in the order asked for; see the offline store.

    Raises:
        ColumnTypeError: a column cannot be measured as asked.
        OfflineStoreError: the source cannot be read; see the subclasses.
    """
    source = ParquetSource.open(data_source, config)
    original = {new: old for old, new in (data_source.field_mapping or {}).items()}
    event_time = original.get(event_time, event_time)
    asked = [
        Column(name, original.get(name, name), kind == "numeric")
        for name, kind in features
        if kind in ("numeric", "categorical")
    ]
    source = source.with_columns([event_time], f"Source `{data_source.name}`")
    source, columns = _present(source, asked)
    check_time(event_time, source.schema.field(event_time).type, f"Source `{data_source.name}`")
    for column in columns:
        _check_kind(column, source)
    within = source.within(event_time, first, last)
    monitored = Monitored(within, event_time, first, last, kept_bytes)
    found = _numeric(monitored, [column for column in columns if column.numeric], bins)
    categories = [column for column in columns if not column.numeric]
    found |= _categorical(monitored, categories, config, top_n)
    within.check_unchanged()
    return [found[column.feature] for column in columns]


def newest_event(config: RepoConfig, data_source: DataSource, event_time: str) -> datetime | None:
    """A source's greatest event time, UTC, rounded up to microseconds; None without any.

    Read from the files' footers where these say it, else from the column.

    Raises:
        OfflineStoreError: the source cannot be read; see the subclasses.
    """
    try:
        source = ParquetSource.open(data_source, config)
    except SourceNotFoundError:
        return None  # nothing has been written yet
    original = {new: old for old, new in (data_source.field_mapping or {}).items()}
    column = original.get(event_time, event_time)
    where = f"Source `{data_source.name}`"
    source = source.with_columns([column], where)
    kind = source.schema.field(column).type
    check_time(column, kind, where)
    axis = Axis.from_type(kind)
    limits = source.limits(column)
    times = _times(source, column) if limits is None else iter([limits])
    points = (axis.cast(part.drop_null()).to_numpy() for part in times)
    newest = max((int(part.max()) for part in points if len(part)), default=None)
    return None if newest is None else _moment(newest, axis)


def _present(source: ParquetSource, asked: Sequence[Column]) -> tuple[ParquetSource, list[Column]]:
    """The source with a schema of all columns that some file has; others are left out."""
    columns = []
    for column in asked:
        found = _with(source, column)
        if found is not None:
            source = found
            columns.append(column)
    return source, columns


def _with(source: ParquetSource, column: Column) -> ParquetSource | None:
    try:
        return source.with_columns([column.name], f"Feature `{column.feature}`")
    except ColumnNotFoundError as error:
        logger.warning("not monitored: %s", error)
        return None


def _check_kind(column: Column, source: ParquetSource) -> None:
    kind = source.schema.field(column.name).type
    target = pa.float64() if column.numeric else pa.string()
    try:
        pa.array([], kind).cast(target)
    except pa.ArrowException as error:
        raise ColumnTypeError(
            f"Feature `{column.feature}`: column `{column.name}` of {source.uri} has type {kind}, "
            f"which has no {'numbers' if column.numeric else 'categories'} to measure. Correct "
            "the type in the view's schema."
        ) from error


def _numeric(
    monitored: Monitored, columns: Sequence[Column], bins: int
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(columns), COLUMNS_AT_ONCE):
        group = columns[start : start + COLUMNS_AT_ONCE]
        measured = [NumericColumn(column.feature, bins) for column in group]
        _measure(monitored.rows(group), measured, monitored.source.uri)
        found |= {column.name: column.metrics() for column in measured}
    return found


def _measure(rows: Rows, columns: Sequence[NumericColumn], uri: str) -> None:
    for batch in rows:
        for column, values in zip(columns, batch.columns, strict=True):
            column.survey(values)
    for column in columns:
        column.end_survey()
    while any(column.open for column in columns):
        for batch in rows:
            for column, values in zip(columns, batch.columns, strict=True):
                if column.open:
                    column.refine(values)
        unfinished = [column for column in columns if column.open]
        if not all(column.end_pass() for column in unfinished):
            raise SourceReadError(
                f"{uri} changed while it was being measured. Run it again; write new files beside "
                "the old ones instead of replacing them."
            )


def _categorical(
    monitored: Monitored, columns: Sequence[Column], config: RepoConfig, top_n: int
) -> dict[str, dict[str, Any]]:
    if not columns:
        return {}
    schema = monitored.source.schema
    kinds = [(column.feature, schema.field(column.name).type) for column in columns]
    with connected(config.offline_store.engine(), "Counting the metrics") as connection:
        metrics = categorical_metrics(connection, kinds, monitored.rows(columns), top_n)
    return {found["feature_name"]: found for found in metrics}


def _times(source: ParquetSource, column: str) -> Iterator[pa.Array]:
    for batch in source.scan([column]):
        yield batch.column(column)


def _moment(point: int, axis: Axis) -> datetime:
    # Upwards, so that a window that ends there holds the newest row.
    micros = -int(Axis("us").floor(np.array([-point]), axis.unit)[0])
    return EPOCH + min(timedelta(microseconds=micros), NEWEST - EPOCH)
