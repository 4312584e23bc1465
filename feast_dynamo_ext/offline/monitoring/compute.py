"""Metrics of a source's columns within a range of time, and the source's newest event time."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.offline.duckdb_connection import connected
from feast_dynamo_ext.offline.monitoring.categories import categorical_metrics
from feast_dynamo_ext.offline.monitoring.numeric import NumericColumn
from feast_dynamo_ext.offline.monitoring.rows import KEPT_BYTES, Rows
from feast_dynamo_ext.offline.sources.source import ParquetSource
from feast_dynamo_ext.offline.times import EPOCH, Axis, check_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feast import RepoConfig
    from feast.data_source import DataSource

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
    axis = Axis.of(kind)
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
