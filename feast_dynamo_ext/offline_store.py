"""Feast's offline store on Parquet: the config, and Feast's methods, which delegate to `offline`.

Feast finds a store through the module of its config class, so both stand here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from pydantic import Field

from feast_dynamo_ext.aws import AwsConfigModel
from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    EntityRowsError,
    OfflineStoreError,
)
from feast_dynamo_ext.offline.duckdb_engine import DuckDbEngine
from feast_dynamo_ext.offline.entities import EntityRows
from feast_dynamo_ext.offline.job import ParquetRetrievalJob, Result
from feast_dynamo_ext.offline.join import checked_source, join
from feast_dynamo_ext.offline.parquet import append_part
from feast_dynamo_ext.offline.plan import ViewPlan, plan_rows, plan_views
from feast_dynamo_ext.offline.source import ParquetSource, uri_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    import pandas as pd
    from feast import FeatureView, RepoConfig
    from feast.data_source import DataSource
    from feast.feature_logging import LoggingConfig, LoggingSource
    from feast.infra.registry.base_registry import BaseRegistry
    from numpy.typing import NDArray

    Found = tuple[ParquetSource, NDArray[np.int64]]

logger = logging.getLogger(__name__)

NONE = np.empty(0, dtype=np.int64)


class S3ParquetOfflineStoreConfig(AwsConfigModel):
    """The `offline_store` block of feature_store.yaml.

    The fields that it shares with the online store are about S3 here.
    """

    type: Literal["feast_dynamo_ext.S3ParquetOfflineStore"] = (
        "feast_dynamo_ext.S3ParquetOfflineStore"
    )
    """Selects this store."""

    memory_limit: str | None = Field(default=None, pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$")
    """Memory that matching may use before it spills to disk, for example `4GB`. Default: DuckDB's
    own, 80% of the machine's memory."""

    threads: int | None = Field(default=None, ge=1)
    """Threads of matching. Default: one a core."""

    spill_folder: str | None = None
    """Folder for what does not fit in memory; what is written there is removed after each join.
    Default: the system's folder for temporary files."""

    def engine(self) -> DuckDbEngine:
        """The engine with these settings."""
        return DuckDbEngine(self.memory_limit, self.threads, self.spill_folder)


class S3ParquetOfflineStore(OfflineStore):
    """Feature history as Parquet files on S3 or a local disk."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> ParquetRetrievalJob:
        """Each entity row with the feature values that were known at its event time.

        A row of history is seen where its event time is at most the entity row's and, where the
        view has a ttl, at least the entity row's less the ttl, both bounds included. Of several
        the newest event time wins, then the newest created time, then the later row of
        the later file.

        Args:
            config: the repo's config.
            feature_views: the views asked for.
            feature_refs: references, ``view:feature``.
            entity_df: the entity rows, a pandas DataFrame.
            registry: Feast's registry, for on-demand views.
            project: Feast project.
            full_feature_names: name results ``view__feature``.
            **kwargs: `filter_by_created_timestamp` counts only rows that were created by the
                entity row's time.

        Returns:
            A job; as many rows as entity rows, in their order.

        Raises:
            EntityRowsError: entity rows that cannot be joined.
            OfflineStoreError: at the job's first use; see the subclasses.
        """
        if entity_df is None:
            raise EntityRowsError(
                "Retrieval without entity rows (`start_date` and `end_date` alone) is not "
                "supported. Pass `entity_df`: a pandas DataFrame of join keys and event times."
            )
        plan = plan_views(
            feature_views,
            feature_refs,
            full_feature_names=full_feature_names,
            created_by_entity_time=kwargs.get("filter_by_created_timestamp", False),
        )
        entities = EntityRows.of(entity_df)
        for view in plan.views:
            entities.require([column for column, _ in view.keys], view.view)
        engine = config.offline_store.engine()
        opened: dict[str, ParquetSource] = {}
        first, last = entities.range()
        return ParquetRetrievalJob(
            config=config,
            run=lambda: Result.of(join(plan, entities, engine, _opener(config, opened))),
            views=tuple(feature_views),
            entities=entities,
            opened=opened,
            odfvs=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_names=full_feature_names,
            about=RetrievalMetadata(
                features=feature_refs,
                keys=entities.other_columns,
                min_event_timestamp=first,
                max_event_timestamp=last,
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> ParquetRetrievalJob:
        """The newest row of each key with start_date <= event time <= end_date.

        Rows with a null join key or event time are left out: they belong to no entity.
        """
        view = plan_rows(
            data_source,
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
        )
        engine = config.offline_store.engine()

        def newest(source: ParquetSource) -> Found:
            with engine.newest(view, source, start_date, end_date) as found:
                return found.source, np.concatenate([NONE, *found.positions])

        return _row_job(config, view, newest)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> ParquetRetrievalJob:
        """All rows with start_date <= event time <= end_date, in the order of the files.

        Without feature columns all columns are meant, as Feast's transformations ask for them.
        """
        every_column = [] if feature_name_columns else _columns_of(data_source, config)
        view = plan_rows(
            data_source,
            join_key_columns,
            [*feature_name_columns, *every_column],
            timestamp_field,
            created_timestamp_column,
        )
        # Without keys, so that rows with a null join key are kept: all means all.
        every = ViewPlan(view.view, data_source, (), timestamp_field, None, view.features, None)
        engine = config.offline_store.engine()
        return _row_job(
            config, every, lambda s: (s, engine.within(every, s, start_date, end_date))
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to a view's history as a new file beside those that are there.

        Raises:
            ColumnNotFoundError: the rows lack a column of the source.
            OfflineStoreError: the source is a single file, or not a `FileSource`.
        """
        if feature_view.batch_source is None:
            raise OfflineStoreError(
                f"Feature view `{feature_view.name}` has no batch source to append to."
            )
        source = ParquetSource.open(feature_view.batch_source, config)
        append_part(
            source.uri,
            _as_source(table, source, feature_view.name),
            config.offline_store.aws(),
        )
        if progress is not None:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,  # noqa: ARG004 - Feast's interface
        logging_config: LoggingConfig,
        registry: BaseRegistry,  # noqa: ARG004 - Feast's interface
    ) -> None:
        """Append logged features to their destination as a new file.

        Raises:
            OfflineStoreError: the destination is not a `FileLoggingDestination`.
        """
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise OfflineStoreError(
                f"Features are logged to a {type(destination).__name__}; S3ParquetOfflineStore "
                "writes to Feast's `FileLoggingDestination`."
            )
        table = ds.dataset(data).to_table() if isinstance(data, Path) else data
        uri = uri_of(destination.to_data_source(), config)
        append_part(uri, table, config.offline_store.aws())

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Warn where a source's files or columns are not there; history may come later."""
        try:
            source = ParquetSource.open(data_source, config)
            columns = [data_source.timestamp_field, data_source.created_timestamp_column]
            source.with_columns([name for name in columns if name], f"Source `{data_source.name}`")
        except OfflineStoreError as error:
            logger.warning("source %s: %s", data_source.name, error)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Names and Arrow types of a source's columns, for Feast's schema inference."""
        schema = ParquetSource.open(data_source, config).schema
        return [(column.name, str(column.type)) for column in schema]


def _opener(
    config: RepoConfig, opened: dict[str, ParquetSource]
) -> Callable[[DataSource], ParquetSource]:
    """Opens sources, each of them once; `opened` holds them by name."""

    def open_source(data_source: DataSource) -> ParquetSource:
        if data_source.name not in opened:
            opened[data_source.name] = ParquetSource.open(data_source, config)
        return opened[data_source.name]

    return open_source


def _columns_of(data_source: DataSource, config: RepoConfig) -> list[str]:
    names: list[str] = ParquetSource.open(data_source, config).schema.names
    return names


def _row_job(
    config: RepoConfig,
    view: ViewPlan,
    find: Callable[[ParquetSource], Found],
) -> ParquetRetrievalJob:
    def run() -> Result:
        source = checked_source(view, ParquetSource.open(view.source, config))
        within, found = find(source)
        columns = view.feature_columns
        return Result(within.schema_of(columns), len(found), lambda: within.fetch(columns, found))

    return ParquetRetrievalJob(config=config, run=run)


def _as_source(table: pa.Table, source: ParquetSource, view: str) -> pa.Table:
    """Rows in the columns and types that a source's files have."""
    # Partition columns are in the paths of the files, not in the files.
    schema = next(source.dataset.get_fragments()).physical_schema
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise ColumnNotFoundError(
            f"Feature view `{view}`: the rows to append lack the columns {missing} of "
            f"{source.uri}; they have {table.column_names}."
        )
    return table.select(schema.names).cast(schema.remove_metadata())
