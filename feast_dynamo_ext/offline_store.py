"""Feast's offline store on Parquet: the config, and Feast's methods, which delegate.

Feast finds a store through the module of its config class, so both stand here.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from pydantic import Field, field_validator

from feast_dynamo_ext.arrow_types import is_list, naming
from feast_dynamo_ext.columns import tombstones_of
from feast_dynamo_ext.config import SIZE, AwsConfigModel, warn_of_unknown_keys
from feast_dynamo_ext.declared import declared_type, name_of
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.errors import ColumnTypeError, OfflineStoreError
from feast_dynamo_ext.exact import refuse_inexact_integers
from feast_dynamo_ext.monitoring.hooks import MonitoringHooks
from feast_dynamo_ext.parquet.append import append_rows
from feast_dynamo_ext.parquet.iceberg.catalog import CatalogConfig
from feast_dynamo_ext.parquet.logged import append_logs
from feast_dynamo_ext.parquet.saved import event_time_of
from feast_dynamo_ext.parquet.source import ParquetSource, check_times, columns_of
from feast_dynamo_ext.retrieval.engines.base import Result, gaps
from feast_dynamo_ext.retrieval.engines.duckdb import DuckDbEngine
from feast_dynamo_ext.retrieval.engines.one_pass import OnePassEngine
from feast_dynamo_ext.retrieval.entity_rows.forms import EntityRequest, check_request_data
from feast_dynamo_ext.retrieval.inputs import checked_source, of_rows
from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob
from feast_dynamo_ext.retrieval.join import join
from feast_dynamo_ext.retrieval.plan import (
    RowsPlan,
    ViewPlan,
    bases_of,
    plan_rows,
    plan_views,
    with_declared_kinds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from datetime import datetime
    from pathlib import Path

    from feast import FeatureView, RepoConfig
    from feast.data_source import DataSource
    from feast.feature_logging import LoggingConfig, LoggingSource
    from feast.infra.registry.base_registry import BaseRegistry
    from numpy.typing import NDArray

    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import PitPlan

    Found = tuple[ParquetSource, NDArray[np.int64]]

logger = logging.getLogger(__name__)

NONE = np.empty(0, dtype=np.int64)

EXACT_IN_DOUBLES = 2**53
"""Integers up to this, each of which a double holds."""

ENGINES: dict[str, tuple[type[OnePassEngine] | type[DuckDbEngine], ...]] = {
    "auto": (OnePassEngine, DuckDbEngine),
    "stream": (OnePassEngine, DuckDbEngine),
    "duckdb": (DuckDbEngine,),
}
"""By `join_plan`, those that are preferred first."""


def engine_for(
    settings: S3ParquetOfflineStoreConfig, function: str
) -> OnePassEngine | DuckDbEngine:
    """Of the engines that `join_plan` admits, the first that has a function of `Engine`."""
    engine = next(kind for kind in ENGINES[settings.join_plan] if function not in gaps(kind))
    return engine(settings.memory_limit, settings.threads, settings.spill_folder)


class S3ParquetOfflineStoreConfig(AwsConfigModel):
    """The `offline_store` block of feature_store.yaml.

    The fields that it shares with the online store are about S3 here.
    """

    type: Literal["feast_dynamo_ext.S3ParquetOfflineStore"] = (
        "feast_dynamo_ext.S3ParquetOfflineStore"
    )
    """Selects this store."""

    memory_limit: str | None = Field(default=None, pattern=SIZE)
    """Memory for entity rows and their features, for example `4GB`: more than fit are joined in
    blocks, each with a pass over the history. It is DuckDB's limit too. Default: 40% of the
    machine's memory, and 80% for DuckDB."""

    threads: int | None = Field(default=None, ge=1)
    """Threads that read and match. Default: one a core."""

    spill_folder: str | None = None
    """Folder for what does not fit in memory; what is written there is removed after each join.
    Default: the system's folder for temporary files."""

    join_plan: Literal["auto", "stream", "duckdb"] = "auto"
    """How entity rows are matched with history: `stream` reads it once and keeps one row an entity
    row; `duckdb` joins in DuckDB, which spills to disk. `auto` takes `stream`."""

    engine: Literal["local", "spark"] = "local"
    """Where entity rows are joined: `local`, on this machine; `spark`, on the Spark session that
    is active, or a new one (extra `[spark]`). The answers are the same."""

    spark_conf: dict[str, str] | None = None
    """Settings of a new Spark session, for example `spark.master` or `spark.executor.memory`.
    Default: none; Spark then runs on this machine, unless the platform says where."""

    spark_remote: str | None = Field(default=None, pattern=r"sc://.+")
    """A Spark Connect server, `sc://host:port`. Default: none."""

    staging_location: str | None = None
    """Where `to_remote_storage()` of a retrieval writes its Parquet files: an s3:// URI, or a
    folder; a relative path counts from the feature repo. Default: none, no exports."""

    monitoring_location: str | None = None
    """Folder or s3:// URI for the metrics of `feast monitor`; a relative path counts from the
    feature repo. Default: the folder `feast_monitoring` of the feature repo."""

    catalog: CatalogConfig | None = None
    """Where `feast-dynamo table` makes Iceberg tables: `{type: glue, warehouse: s3://...}`,
    `{type: sql}` (a file on this machine) or `{type: rest, uri: https://...}`; `sql` alone is
    short for `{type: sql}`. Sources name their catalog themselves. Default: Glue's."""

    @field_validator("catalog", mode="before")
    @classmethod
    def _catalog_by_its_type(cls, catalog: Any) -> Any:
        return {"type": catalog} if isinstance(catalog, str) else catalog

    def catalog_config(self) -> CatalogConfig:
        """The `catalog`, or its defaults."""
        return self.catalog or CatalogConfig()

    def engine_here(self) -> OnePassEngine | DuckDbEngine:
        """The engine that matches entity rows, with these settings."""
        return engine_for(self, "matcher")


class S3ParquetOfflineStore(MonitoringHooks, OfflineStore):
    """Feature history as Parquet files on S3 or a local disk."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
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

        Of a derived view (`recent`, `windows`) all rows of the base view that an entity row sees
        are events, of which each feature is a list or an aggregate: those of a window back from
        the entity row's event time, both bounds included. The base view is taken from the
        registry.

        Args:
            config: the repo's config.
            feature_views: the views of the request.
            feature_refs: references, ``view:feature``.
            entity_df: the entity rows: a pandas DataFrame, an Arrow table, reader or dataset, a
                Polars DataFrame or LazyFrame, a path or s3:// URI of Parquet or CSV, or SQL over
                names of the registry. None for one row for each change, a distinct (join keys,
                event time), of a range of time.
            registry: Feast's registry, for on-demand views and the names in SQL.
            project: Feast project.
            full_feature_names: name results ``view__feature``.
            **kwargs: `filter_by_created_timestamp` counts only rows that were created by the
                entity row's time; `start_date` and `end_date` are the range where `entity_df` is
                None, both included, UTC where they have no zone.

        Returns:
            A job; as many rows as entity rows, in their order.

        Raises:
            EntityRowsError: entity rows that cannot be joined.
            OfflineStoreError: at the job's first use; see the subclasses.
        """
        bases = bases_of(feature_views, registry, project)
        plan = plan_views(
            feature_views,
            feature_refs,
            full_feature_names=full_feature_names,
            created_by_entity_time=kwargs.get("filter_by_created_timestamp", False),
            bases=bases,
        )
        engine = config.offline_store.engine_here()
        opened: dict[str, ParquetSource] = {}
        open_source = _opener(config, opened)
        entities = EntityRequest(
            config, registry, project, tuple(feature_views), plan, engine, open_source
        ).entity_rows(entity_df, kwargs.get("start_date"), kwargs.get("end_date"))
        odfvs = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        check_request_data(entities, odfvs)
        first, last = entities.range()
        kind, run = _joining(config.offline_store, plan, entities, open_source)
        return kind(
            config=config,
            run=run,
            views=tuple(feature_views),
            bases=tuple({base.name: base for base in bases.values()}.values()),
            entities=entities,
            opened=opened,
            odfvs=odfvs,
            full_names=full_feature_names,
            plan=plan,
            engine=engine,
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

        Rows with a null join key or event time are left out: they belong to no entity. So are, of
        a captured table, items that were deleted by end_date, where the join keys are its own.
        """
        view = with_declared_kinds(
            plan_rows(
                data_source,
                join_key_columns,
                feature_name_columns,
                timestamp_field,
                created_timestamp_column,
            )
        )
        engine = engine_for(config.offline_store, "newest")
        plan = RowsPlan(view, start_date, end_date, newest=True)

        def newest(source: ParquetSource) -> Found:
            with engine.newest(of_rows(plan, source), source, start_date, end_date) as found:
                return found.source, np.concatenate([NONE, *found.positions])

        return _row_job(config, plan, newest, join_key_columns)

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

        Without feature columns all columns are meant, as Feast's transformations ask for them. Of
        a captured table these are the puts of items that were not deleted by end_date, which a
        batch transformation counts or sums; a view with `deletes="ignore"` gets all puts.
        """
        every_column = [] if feature_name_columns else _columns_of(data_source, config)
        if not data_source.timestamp_field:  # a saved dataset, of which Feast keeps no event time
            source = ParquetSource.open(data_source, config)
            timestamp_field = event_time_of(source, timestamp_field)
        view = with_declared_kinds(
            plan_rows(
                data_source,
                join_key_columns,
                [*feature_name_columns, *every_column],
                timestamp_field,
                created_timestamp_column,
            )
        )
        # Without keys, so that rows with a null join key are kept: all means all.
        every = replace(view, keys=(), created_time=None)
        engine = engine_for(config.offline_store, "within")
        plan = RowsPlan(every, start_date, end_date, newest=False)

        def in_range(source: ParquetSource) -> Found:
            counted, left = of_rows(plan, source), source
            if not counted.has_eras:
                left = source.within(timestamp_field, start_date, end_date)
            return left, engine.within(counted, left, start_date, end_date)

        return _row_job(config, plan, in_range, join_key_columns)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to a view's history as new files beside those that are there.

        Where there is no history yet, the rows begin it. Rows go into the folders that the
        source's hive columns or its `date_partition_column_format` name.

        Raises:
            ColumnNotFoundError: the rows lack a column of the source, or have another.
            ColumnTypeError: a value does not fit its column.
            OfflineStoreError: the source is a single file, a glob, or no source of Parquet.
            DestinationError: the disk refused; nothing is kept.
        """
        if feature_view.batch_source is None:
            raise OfflineStoreError(
                f"Feature view `{feature_view.name}` has no batch source to append to."
            )
        append_rows(feature_view, config, table)
        if progress is not None:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Append logged features to their destination as new files.

        Raises:
            ColumnNotFoundError: the logs lack a column of the feature service's schema.
            ColumnTypeError: a value does not fit it.
            OfflineStoreError: the destination is not a `FileLoggingDestination`.
        """
        append_logs(config, data, source, logging_config, registry)

    def validate_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> ParquetSource | None:
        """Warn where a source's files or columns are not there; history may come later.

        Returns:
            The source where they are, for the check of its views.
        """
        try:
            return check_times(data_source, config)
        except OfflineStoreError as error:
            # Most say so themselves.
            named = f"`{data_source.name}`" in str(error)
            logger.warning("%s%s", "" if named else f"Source `{data_source.name}`: ", error)
            return None

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Names and Arrow types of the columns that a source's rows bring."""
        return columns_of(data_source, config)


def _opener(
    config: RepoConfig, opened: dict[str, ParquetSource]
) -> Callable[[DataSource], ParquetSource]:
    """Opens sources, each of them once; `opened` holds them by name."""
    warn_of_unknown_keys(config)

    def open_source(data_source: DataSource) -> ParquetSource:
        if data_source.name not in opened:
            opened[data_source.name] = ParquetSource.open(data_source, config)
        return opened[data_source.name]

    return open_source


def _joining(
    settings: S3ParquetOfflineStoreConfig,
    plan: PitPlan,
    entities: EntityRows,
    open_source: Callable[[DataSource], ParquetSource],
) -> tuple[type[ParquetRetrievalJob], Callable[[], Result]]:
    """The job's class, and what joins: on this machine or on Spark."""
    if settings.engine == "local":
        return ParquetRetrievalJob, lambda: join(
            plan, entities, settings.engine_here(), open_source
        )
    from feast_dynamo_ext.retrieval.spark.spark_job import SparkRetrievalJob, join_on_spark

    return SparkRetrievalJob, lambda: join_on_spark(
        plan, entities, open_source, settings.spark_conf or {}, settings.spark_remote
    )


def _columns_of(data_source: DataSource, config: RepoConfig) -> list[str]:
    source, rule = ParquetSource.open(data_source, config), tombstones_of(data_source)
    hidden = {*source.internal, *([rule.change] if rule else [])}
    return [name for name in source.schema.names if name not in hidden]


def _row_job(
    config: RepoConfig,
    plan: RowsPlan,
    find: Callable[[ParquetSource], Found],
    keys: Collection[str],
) -> ParquetRetrievalJob:
    warn_of_unknown_keys(config)
    view = plan.view

    def run() -> Result:
        source = checked_source(view, ParquetSource.open(view.source, config))
        within, found = find(source)
        columns = view.feature_columns
        schema = within.schema_of(columns)
        if not view.kinds:
            return Result(schema, len(found), lambda: within.fetch(columns, found))
        for at, (_, name, kind) in enumerate(view.declared):
            schema = schema.set(at, pa.field(name, declared_type(kind, schema.field(at).type)))
        fetched = partial(within.fetch, columns, found)
        return Result(schema, len(found), lambda: _declared(view, keys, fetched(), schema))

    return ParquetRetrievalJob(config=config, run=run, plan=plan)


def _declared(
    view: ViewPlan, keys: Collection[str], batches: Iterator[pa.RecordBatch], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Rows for Feast's engines: exact values of the declared types, which they then keep.

    Raises:
        ColumnTypeError: a value is none of the declared type, or they would round it.
    """
    nulls: set[str] = set()
    large: set[str] = set()
    for batch in batches:
        columns = []
        for (_, name, kind), column in zip(view.declared, batch.columns, strict=True):
            with naming(name, name_of(kind), column.type, view.view):
                if name in keys and pa.types.is_floating(column.type):
                    refuse_inexact_integers(column.drop_null())
                columns.append(as_declared(column, kind))
            for numbers in _integers(columns[-1]):
                nulls |= {name} if numbers.null_count else set()
                large |= {name} if _has_large(numbers) else set()
        if nulls & large:
            raise ColumnTypeError(
                f"Feature view `{view.view}`: `{min(nulls & large)}` has nulls and integers "
                "beyond 2^53, which Feast's engine holds as doubles. Materialize it with the "
                "engine of DynamoProvider: remove `type` from `batch_engine` in "
                "feature_store.yaml."
            )
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _integers(column: pa.Array) -> Iterator[pa.Array]:
    """A column of integers; of structs and lists, those inside."""
    kind = column.type
    if pa.types.is_integer(kind):
        yield column
    elif pa.types.is_struct(kind):
        for inner in column.flatten():
            yield from _integers(inner)
    elif pa.types.is_map(kind):
        yield from _integers(column.items)
    elif is_list(kind):
        yield from _integers(column.flatten())


def _has_large(numbers: pa.Array) -> bool:
    ends = pc.min_max(numbers).as_py().values()
    return any(end is not None and abs(end) > EXACT_IN_DOUBLES for end in ends)
