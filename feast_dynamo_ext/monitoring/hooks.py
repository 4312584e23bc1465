"""The methods of Feast's offline store that its monitoring calls: `feast monitor`, and its API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.monitoring.metrics import compute_metrics, newest_event
from feast_dynamo_ext.monitoring.metrics_tables import MetricsStorage

if TYPE_CHECKING:
    from datetime import date, datetime

    from feast import RepoConfig
    from feast.data_source import DataSource


class MonitoringHooks:
    """A part of `S3ParquetOfflineStore`."""

    @staticmethod
    def compute_monitoring_metrics(
        config: RepoConfig,
        data_source: DataSource,
        feature_columns: list[tuple[str, str]],
        timestamp_field: str,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        histogram_bins: int = 20,
        top_n: int = 10,
    ) -> list[dict[str, Any]]:
        """Statistics of columns, of the rows with start_date <= event time <= end_date.

        Only the named columns are read, in a few passes, and only files that may hold such rows;
        memory stays bounded. The figures are those of Feast's `MetricsCalculator`, percentiles
        and histograms exact.

        Args:
            config: the repo's config.
            data_source: the history, or the destination of logged features.
            feature_columns: (feature, ``numeric`` or ``categorical``); a feature that no file has
                is left out, with a warning.
            timestamp_field: the source's event time.
            start_date: first event time that counts; None for no limit.
            end_date: last event time that counts; None for no limit.
            histogram_bins: bins of numeric histograms.
            top_n: how many of the most frequent categories are named.

        Returns:
            Metrics of each feature, in the order of `feature_columns`.

        Raises:
            ColumnTypeError: a column that has no numbers or no categories.
            OfflineStoreError: the source cannot be read; see the subclasses.
        """
        return compute_metrics(
            config,
            data_source,
            feature_columns,
            timestamp_field,
            start_date,
            end_date,
            bins=histogram_bins,
            top_n=top_n,
        )

    @staticmethod
    def get_monitoring_max_timestamp(
        config: RepoConfig, data_source: DataSource, timestamp_field: str
    ) -> datetime | None:
        """The newest event time of a source, from its files' footers; None where it has no rows.

        Rounded up to microseconds, UTC.

        Raises:
            OfflineStoreError: the source cannot be read; see the subclasses.
        """
        return newest_event(config, data_source, timestamp_field)

    @staticmethod
    def ensure_monitoring_tables(config: RepoConfig) -> None:
        """Check that the stored metrics can be listed, and merge their small files.

        Raises:
            AwsError: S3 refused.
        """
        MetricsStorage.from_config(config).prepare()

    @staticmethod
    def save_monitoring_metrics(
        config: RepoConfig, metric_type: str, metrics: list[dict[str, Any]]
    ) -> None:
        """Keep metrics, in place of those of the same keys; concurrent writers lose nothing.

        Args:
            config: the repo's config.
            metric_type: ``feature``, ``feature_view``, ``feature_service`` or ``job``.
            metrics: rows of that table, as Feast has them.

        Raises:
            AwsError: S3 refused.
            DestinationError: the disk did.
        """
        MetricsStorage.from_config(config).save(metric_type, metrics)

    @staticmethod
    def query_monitoring_metrics(
        config: RepoConfig,
        project: str,
        metric_type: str,
        filters: dict[str, Any] | None = None,
        start_date: date | None = None,
        end_date: date | None = None,
    ) -> list[dict[str, Any]]:
        """Metrics that were kept, by ascending metric date.

        Args:
            config: the repo's config.
            project: Feast project; empty for all.
            metric_type: ``feature``, ``feature_view``, ``feature_service`` or ``job``.
            filters: values by column; None is no filter.
            start_date: first metric date that counts.
            end_date: last metric date that counts.

        Raises:
            ColumnNotFoundError: a filter is not of a column.
            SourceReadError: a file of metrics cannot be read.
            AwsError: S3 refused.
        """
        storage = MetricsStorage.from_config(config)
        return storage.query(metric_type, project, filters or {}, start_date, end_date)

    @staticmethod
    def clear_monitoring_baseline(
        config: RepoConfig,
        project: str,
        feature_view_name: str | None = None,
        feature_name: str | None = None,
        data_source_type: str | None = None,
    ) -> None:
        """Mark matching metrics of features as baseline no more; None matches all.

        Raises: as `query_monitoring_metrics`.
        """
        filters = {
            "project_id": project,
            "feature_view_name": feature_view_name,
            "feature_name": feature_name,
            "data_source_type": data_source_type,
        }
        MetricsStorage.from_config(config).clear_baseline(filters)
