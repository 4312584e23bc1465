"""The tables that metrics are kept in: columns and keys are those of Feast's SQL stores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from feast.monitoring.monitoring_utils import monitoring_table_meta, normalize_monitoring_row

from feast_dynamo_ext.errors import ColumnNotFoundError, OfflineStoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

METRIC_TYPES = ("feature", "feature_view", "feature_service", "job")
"""Feast's types of metrics; one table each."""

WRITTEN = "written_at"
"""When a row was written, nanoseconds since 1970: of one key the newest row counts."""

BASELINE, METRIC_DATE, PROJECT = "is_baseline", "metric_date", "project_id"

TEXT, DATE, TIME = pa.string(), pa.date32(), pa.timestamp("us", "UTC")
OF_TIME = ("computed_at", "max_event_timestamp", "started_at", "completed_at")
OF_COUNTS = (
    *("row_count", "null_count", "total_row_count"),
    *("total_features", "features_with_nulls", "total_feature_views"),
)
OF_FLOATS = (
    *("null_rate", "avg_null_rate", "max_null_rate", "mean", "stddev", "min_val", "max_val"),
    *("p50", "p75", "p90", "p95", "p99"),
)
TYPES: dict[str, pa.DataType] = {
    METRIC_DATE: DATE,
    BASELINE: pa.bool_(),
    **dict.fromkeys(OF_TIME, TIME),
    **dict.fromkeys(OF_COUNTS, pa.int64()),
    **dict.fromkeys(OF_FLOATS, pa.float64()),
}
"""Types of columns. All others are text; what is not text, a histogram, is kept there as JSON."""


@dataclass(frozen=True)
class MetricsTable:
    """One of the tables.

    Attributes:
        name: its name, and that of its folder.
        schema: its columns, and `WRITTEN`.
        keys: the columns of which each combination has one row.
    """

    name: str
    schema: pa.Schema
    keys: tuple[str, ...]

    @classmethod
    def of(cls, metric_type: str) -> MetricsTable:
        """The table of one of `METRIC_TYPES`.

        Raises:
            OfflineStoreError: there is no such type.
        """
        if metric_type not in METRIC_TYPES:
            raise OfflineStoreError(
                f"There are no metrics of type `{metric_type}`; Feast has "
                f"{', '.join(METRIC_TYPES)}."
            )
        name, columns, keys = monitoring_table_meta(metric_type)
        fields = [(column, TYPES.get(column, TEXT)) for column in columns]
        return cls(name, pa.schema([*fields, (WRITTEN, pa.int64())]), tuple(keys))

    def rows(self, metrics: Sequence[Mapping[str, Any]], written_at: int) -> pa.Table:
        """Feast's metrics as rows; of equal keys the last. What is no column is left out."""
        unique = {tuple(metric.get(key) for key in self.keys): metric for metric in metrics}
        fields = [field for field in self.schema if field.name != WRITTEN]
        columns = [
            pa.array(
                [_as(field, metric.get(field.name)) for metric in unique.values()], field.type
            )
            for field in fields
        ]
        written = pa.array([written_at] * len(unique), pa.int64())
        return pa.table([*columns, written], self.schema)

    def newest(self, written: pa.Table) -> pa.Table:
        """Of each key the row that was written last, in the order of writing."""
        order = [(WRITTEN, "ascending")]
        if BASELINE in self.schema.names:
            # A row that is no baseline any more keeps its time of writing, so that it replaces
            # what it was, and never what somebody else has written since.
            order.append((BASELINE, "descending"))
        rows = written.take(pc.sort_indices(written, order))
        numbered = rows.append_column("at", pa.array(range(rows.num_rows), pa.int64()))
        last = numbered.group_by(list(self.keys)).aggregate([("at", "max")])
        return rows.take(last.column("at_max").combine_chunks().sort())

    def matching(
        self,
        rows: pa.Table,
        filters: Mapping[str, Any],
        first: date | None = None,
        last: date | None = None,
    ) -> pa.Table:
        """The rows that have the filters' values, a filter of None being none.

        Args:
            rows: rows of this table.
            filters: values by column.
            first: first metric date that counts.
            last: last metric date that counts.

        Raises:
            ColumnNotFoundError: a filter is not of a column.
        """
        wanted = {name: value for name, value in filters.items() if value is not None}
        unknown = sorted(wanted.keys() - set(self.schema.names))
        if unknown:
            raise ColumnNotFoundError(
                f"Metrics cannot be filtered by {unknown}: {self.name} has {self.schema.names}."
            )
        condition = pc.scalar(True)
        for name, value in wanted.items():
            field = self.schema.field(name)
            condition &= pc.field(name) == pa.scalar(_as(field, value), field.type)
        if first is not None:
            condition &= pc.field(METRIC_DATE) >= first
        if last is not None:
            condition &= pc.field(METRIC_DATE) <= last
        return rows.filter(condition)

    def metrics(self, rows: pa.Table) -> list[dict[str, Any]]:
        """Rows as Feast's metrics by ascending date: dates as ISO text, histograms parsed."""
        ordered = rows.take(pc.sort_indices(rows, [(METRIC_DATE, "ascending")]))
        records = ordered.drop_columns(WRITTEN).to_pylist()
        return [normalize_monitoring_row(record) for record in records]


def _as(field: pa.Field, value: Any) -> Any:
    """A value of Feast's as its column has it; Feast passes dates and times as ISO text too."""
    if value is None:
        return None
    if field.type == TEXT:
        return value if isinstance(value, str) else json.dumps(value, default=str)
    if field.type == TIME:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    if field.type == DATE:
        return date.fromisoformat(value) if isinstance(value, str) else value
    return value
