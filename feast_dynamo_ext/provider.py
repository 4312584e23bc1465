"""Feast's provider: wires both stores, materialization and training sets together."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from feast import FeatureStore, FeatureView
from feast.infra.passthrough_provider import PassthroughProvider

from feast_dynamo_ext import _feast
from feast_dynamo_ext.arrow_types import is_text, without_dictionary
from feast_dynamo_ext.columns import stored_times, tombstones_of
from feast_dynamo_ext.config import warn_of_unknown_keys
from feast_dynamo_ext.dynamo.precomputed.maintain import declare_registry_services
from feast_dynamo_ext.dynamo.precomputed.vectors import precomputed_services
from feast_dynamo_ext.dynamo.push import parsed_times, rows_of_frame
from feast_dynamo_ext.dynamo.tables.series_checks import check_series
from feast_dynamo_ext.dynamo.views import table_name
from feast_dynamo_ext.errors import (
    ConfigError,
    FeastDynamoError,
    OfflineStoreError,
    SourceNotFoundError,
)
from feast_dynamo_ext.online_store import DynamoOnlineStore
from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob
from feast_dynamo_ext.retrieval.plan import materialized_by_feast
from feast_dynamo_ext.view_settings import derived_of, refuse_needless_deletes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa
    from feast import OnDemandFeatureView, RepoConfig
    from feast.data_source import DataSource
    from feast.infra.compute_engines.base import ComputeEngine
    from feast.infra.infra_object import Infra
    from feast.infra.offline_stores.offline_store import RetrievalJob
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.online_response import OnlineResponse
    from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
    from tqdm import tqdm

    from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema
    from feast_dynamo_ext.dynamo.precomputed.vectors import ServiceSpec
    from feast_dynamo_ext.dynamo.row_batch import Outcome
    from feast_dynamo_ext.materialize.engine import DynamoComputeEngine
    from feast_dynamo_ext.materialize.registry_state import StaleStateResetter
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.sagemaker.split import SplitRule
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet


logger = logging.getLogger(__name__)


class DynamoProvider(PassthroughProvider):
    """Feast's passthrough provider with this package's compute engine as the default."""

    def __init__(self, config: RepoConfig) -> None:
        warn_of_unknown_keys(config)
        super().__init__(config)
        self._registry: Any = None
        self._healer: StaleStateResetter | None = None
        self._validated: dict[str, ParquetSource | None] = {}

    @property
    def batch_engine(self) -> ComputeEngine:
        """The engine of `feast materialize`: ours, unless feature_store.yaml names another."""
        if self.repo_config.batch_engine_config == "local":
            _feast.default_engine(
                self,
                lambda: _engine_class()(
                    repo_config=self.repo_config,
                    offline_store=self.offline_store,
                    online_store=self.online_store,
                ),
            )
        return super().batch_engine

    # Reads

    def get_online_features(
        self,
        config: RepoConfig,
        features: Any,
        entity_rows: Any,
        registry: BaseRegistry,
        project: str,
        *args: Any,
        **kwargs: Any,
    ) -> OnlineResponse:
        """Features of entities.

        Feast refuses views that are being materialized, unless its registry's
        `serve_features_while_materializing` is set; those whose run was killed are put right.

        Raises: as the online store.
        """
        read = super().get_online_features
        given = (config, features, entity_rows, registry, project, *args)
        with _feast.HTTP_STATUS:
            try:
                return read(*given, **kwargs)
            except ValueError as error:
                if isinstance(error, FeastDynamoError) or not self._heals(registry, project):
                    raise
            return read(*given, **kwargs)

    async def get_online_features_async(
        self,
        config: RepoConfig,
        features: Any,
        entity_rows: Any,
        registry: BaseRegistry,
        project: str,
        *args: Any,
        **kwargs: Any,
    ) -> OnlineResponse:
        """The same on an event loop.

        Raises: as `get_online_features`.
        """
        read = super().get_online_features_async
        given = (config, features, entity_rows, registry, project, *args)
        with _feast.HTTP_STATUS:
            try:
                return await read(*given, **kwargs)
            except ValueError as error:
                is_ours = isinstance(error, FeastDynamoError)
                if is_ours or not await asyncio.to_thread(self._heals, registry, project):
                    raise
            return await read(*given, **kwargs)

    def _heals(self, registry: BaseRegistry, project: str) -> bool:
        store = self.online_store
        if not isinstance(store, DynamoOnlineStore):
            return False
        if self._healer is None:
            from feast_dynamo_ext.materialize.registry_state import StaleStateResetter

            config = self.repo_config
            self._healer = StaleStateResetter(
                lambda: store.connection(config).client, partial(table_name, config)
            )
        return self._healer.before_read(registry, project)

    # Precomputed services

    def materialize_single_feature_view(
        self,
        config: RepoConfig,
        feature_view: FeatureView | OnDemandFeatureView,
        start_date: datetime,
        end_date: datetime,
        registry: BaseRegistry,
        project: str,
        tqdm_builder: Callable[[int], tqdm[Any]],
        disable_event_timestamp: bool = False,
    ) -> None:
        """Materialize a view; from then on its `precompute_online` services have their vectors.

        Raises: as the compute engine.
        """
        is_ours = isinstance(self.batch_engine, _engine_class())
        # Our engine sees to it itself, as it is handed several views without this method.
        unfilled = [] if is_ours else self._declared(registry, feature_view, is_fresh=True)
        with materialized_by_feast(feature_view):
            super().materialize_single_feature_view(
                config,
                feature_view,
                start_date,
                end_date,
                registry,
                project,
                tqdm_builder,
                disable_event_timestamp,
            )
        for spec in unfilled:
            self.online_store.fill_service(config, spec)

    # Pushes

    def ingest_df(self, feature_view: Any, df: Any, field_mapping: Any = None) -> Outcome | None:
        """Write rows of a push, and the vectors of the services they are part of.

        Returns:
            How many rows were written, and how many the table has newer ones of, which is logged
            as well; None where the online store is another.

        Raises:
            ColumnNotFoundError: the rows lack a column.
            ColumnTypeError: a value does not fit its column, or an event time is null.
            WindowError: event times further ahead than the online store's `max_future`.
            OnlineStoreError: as the online store.
        """
        store = self.online_store
        if not isinstance(store, DynamoOnlineStore):
            super().ingest_df(feature_view, df, field_mapping)
            return None
        with _feast.HTTP_STATUS:
            schema, rows = self._pushed_rows(feature_view, df, field_mapping)
            outcome = store.write_rows(self.repo_config, feature_view, schema, rows)
        return _logged(feature_view, outcome)

    async def ingest_df_async(
        self, feature_view: Any, df: Any, field_mapping: Any = None
    ) -> Outcome | None:
        """The same on an event loop, which encoding many rows does not block.

        Raises: as `ingest_df`.
        """
        store = self.online_store
        if not isinstance(store, DynamoOnlineStore):
            await super().ingest_df_async(feature_view, df, field_mapping)
            return None
        with _feast.HTTP_STATUS:
            schema, rows = await asyncio.to_thread(
                lambda: self._pushed_rows(feature_view, df, field_mapping)
            )
            outcome = await store.write_rows_async(self.repo_config, feature_view, schema, rows)
        return _logged(feature_view, outcome)

    def _pushed_rows(self, view: Any, df: Any, field_mapping: Any) -> tuple[RowSchema, list[Row]]:
        # Before anything is sent.
        pushed = rows_of_frame(view, df, field_mapping)
        self._declared(self._own_registry(), view, is_fresh=False)
        return pushed

    def ingest_df_to_offline_store(self, feature_view: FeatureView, table: pa.Table) -> None:
        """Append rows to a view's history; times that are texts are read as in a push online.

        Raises: as the offline store's `offline_write_batch`.
        """
        with _feast.HTTP_STATUS:
            super().ingest_df_to_offline_store(feature_view, _with_times(feature_view, table))

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Names and types of a source's columns; without files, those that its view declares.

        Feast asks before each push to the offline store, also before the first, which writes the
        first file.

        Raises: as the offline store.
        """
        read = super().get_table_column_names_and_types_from_data_source
        try:
            return read(config, data_source)
        except SourceNotFoundError:
            from feast_dynamo_ext.parquet.append import declared_columns

            views = self._own_registry().list_all_feature_views(config.project)
            columns = declared_columns(views, data_source)
            if not columns:
                raise
            return columns

    def update_infra(self, *args: Any, **kwargs: Any) -> None:
        """Make tables as they should be, at `feast apply`."""
        self._registry = None
        # Settings of the engine that cannot work are refused before a table is made.
        _ = self.batch_engine
        views = list(kwargs.get("tables_to_keep", ()))
        self._check_captured(views, makes=True)
        check_series([*views, *self._registered_on(views, kwargs.get("tables_to_delete", ()))])
        self._check_columns(views)
        super().update_infra(*args, **kwargs)

    def _registered_on(self, views: Sequence[Any], removed: Iterable[Any]) -> list[Any]:
        """Derived views of an earlier apply over bases that are applied now."""
        bases = {view.name for view in views}
        gone = bases | {view.name for view in removed}
        registered = self._own_registry().list_feature_views(self.repo_config.project)
        self._registry = None  # it is about to change
        return [
            view
            for view in registered
            if view.name not in gone
            and (derived := derived_of(view)) is not None
            and derived.base in bases
        ]

    def plan_infra(self, config: RepoConfig, desired_registry_proto: RegistryProto) -> Infra:
        """What `update_infra` would do, at `feast plan`."""
        # Functions of a user's are not loaded.
        views = [
            FeatureView.from_proto(view)
            for view in desired_registry_proto.feature_views
            if not view.spec.HasField("feature_transformation")
        ]
        self._check_captured(views, makes=False)
        check_series(views)
        self._check_columns(view for view in views if self._validated.get(_name_of_source(view)))
        return super().plan_infra(config, desired_registry_proto)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Warn where a source's files or columns of time are not there.

        `feast apply` and `feast plan` call it, but not with `--skip-source-validation`; the views
        of the sources are checked then. Captured tables are checked with their views.
        """
        if tombstones_of(data_source) is not None:
            return
        validate = self.offline_store.validate_data_source
        self._validated[data_source.name] = validate(config=config, data_source=data_source)

    def _check_captured(self, views: Sequence[Any], *, makes: bool) -> None:
        """Check captured tables and the views over them, and make their history tables.

        Raises:
            ConfigError: what cannot work.
            AwsError: AWS refused. OfflineStoreError: the catalog of history tables did.
        """
        for view in views:
            refuse_needless_deletes(view)
        if any(tombstones_of(getattr(view, "batch_source", None)) for view in views):
            from feast_dynamo_ext.capture.apply_checks import check_captured

            check_captured(views, self.repo_config, makes=makes)

    def _check_columns(self, views: Iterable[Any]) -> None:
        """Warn of keys and features that no file of a view's source has; they may come later."""
        from feast_dynamo_ext.parquet.source import check_columns

        for view in views:
            source = getattr(view, "batch_source", None)
            validated = self._validated.get(source.name) if source else None
            if validated is not None:
                try:
                    check_columns(validated, view)
                except OfflineStoreError as error:
                    logger.warning("%s", error)

    def precompute_feature_service(self, feature_service_name: str | None = None) -> int:
        """Write the vectors that entities of `precompute_online` services lack.

        `feast materialize` does so for the services of its views; `push` for the entities it
        writes. Feast's `FeatureStore.precompute_feature_service` knows no store but Redis.

        Args:
            feature_service_name: one service; default: all of them.

        Returns:
            The number of vectors written.

        Raises:
            ConfigError: no such service has `precompute_online`, or the store is another.
            AwsError: AWS refused.
        """
        store = self.online_store
        services = precomputed_services(self._own_registry(), self.repo_config.project)
        names = [feature_service_name] if feature_service_name else list(services)
        if not isinstance(store, DynamoOnlineStore) or not set(names) <= services.keys():
            raise ConfigError(
                f"Feature service `{feature_service_name}` cannot be precomputed: declare it with "
                "`precompute_online=True`, run `feast apply`, and set `online_store` in "
                "feature_store.yaml to feast_dynamo_ext.DynamoOnlineStore."
            )
        unfilled = {
            spec
            for name in names
            for view, _ in services[name][:1]
            for spec in store.declare_services(self.repo_config, services, view, replace=True)
            if spec.service == name
        }
        return sum(store.fill_service(self.repo_config, spec) for spec in unfilled)

    def _declared(self, registry: Any, view: Any, *, is_fresh: bool) -> list[ServiceSpec]:
        """The services of a view of which not every entity has got its vector."""
        store = self.online_store
        if not isinstance(store, DynamoOnlineStore) or not getattr(view, "online", False):
            return []
        return declare_registry_services(
            store, self.repo_config, registry, view, is_fresh=is_fresh
        )

    def _own_registry(self) -> Any:
        """The registry, cached as feature_store.yaml says: Feast passes none to a push."""
        if self._registry is None:
            path = getattr(self.repo_config, "repo_path", None)
            store = FeatureStore(repo_path=str(path) if path else None, config=self.repo_config)
            self._registry = store.registry
        return self._registry

    def write_training_set(
        self,
        job: RetrievalJob,
        *,
        label: str,
        output: str,
        split: SplitRule,
        overwrite: bool = False,
        parts: int = 1,
        features: Sequence[str] | None = None,
        feature_service: str | None = None,
        weight: str | None = None,
        helpers: Sequence[str] = (),
        given_features: Sequence[str] = (),
        declared_entities: Sequence[str] | None = None,
        places: Mapping[str, str] | None = None,
        **options: Any,
    ) -> TrainingSet:
        """Write a point-in-time retrieval as a training set that SageMaker jobs read.

        The label is a column of the entity rows; the requested features are trained on.

        Args:
            job: what `get_historical_features` gave.
            label: the column to predict.
            output: `s3://bucket/prefix` or a local folder.
            split: which rows are train, validation and test.
            overwrite: replace the training set that is there.
            parts: files a split and format.
            features: references of the requested features. Default: all of the retrieval, unless
                it has on-demand views, whose inputs Feast adds.
            feature_service: name of the service that has them, for the manifest.
            weight: column of the entity rows with the rows' weights.
            helpers: columns of the entity rows that are kept beside, and never trained on.
            given_features: columns of the entity rows to train on, before the others.
            declared_entities: columns of the entity rows that are entities, beside join keys;
                each of the others must have a role then. Default: all others are entities.
            places: file and line of declared columns, label and weight, by column, for errors.
            options: `encodings`, `target`, `formats`, `name`, `definition`, as of
                `sagemaker.write_training_set`.

        Raises:
            ConfigError: the retrieval is not from S3ParquetOfflineStore.
            OfflineStoreError: the join is not possible, or it is not known what was requested.
            TrainingSetError: the result cannot be a training set.
        """
        from feast_dynamo_ext.sagemaker.provenance import entities_origin, provenance_of
        from feast_dynamo_ext.sagemaker.training_columns import refuse_absent, refuse_idle
        from feast_dynamo_ext.sagemaker.training_set import refuse_roleless, write_training_set

        if not isinstance(job, ParquetRetrievalJob) or job.entities is None:
            raise ConfigError(
                "A training set is made from `get_historical_features` of S3ParquetOfflineStore "
                "with entity rows. Set `offline_store` in feature_store.yaml to it."
            )
        offline = self.repo_config.offline_store
        entities = job.entities
        columns = [*given_features, *job.columns_of(features)]
        rows, origin = entities.table, entities_origin(entities.origin, offline.aws())
        provenance = provenance_of(
            job,
            self.repo_config.project,
            rows.select([*entities.other_columns, entities.event_time]),
            features,
            feature_service=feature_service,
            entity_rows_origin=origin,
        )
        joined = {ours for view in getattr(job.plan, "views", ()) for ours, _ in view.keys}
        given = entities.other_columns
        refuse_absent({"label": label, "weight": weight}, given, places)
        refuse_idle(
            {
                **dict.fromkeys(options.get("encodings") or ()),
                **dict.fromkeys(declared_entities or (), "entity"),
                **dict.fromkeys(helpers, "helper"),
                **dict.fromkeys(given_features, "feature"),
            },
            {
                **dict.fromkeys(columns[len(given_features) :], "feature"),
                **dict.fromkeys(given, "entity_rows"),
                **dict.fromkeys(joined, "join_key"),
                entities.event_time: "event_time",
                **{name: role for name, role in ((label, "label"), (weight, "weight")) if name},
            },
            places,
        )
        others = {label, weight, *helpers, *given_features} - joined
        if declared_entities is not None:
            refuse_roleless(given, others | joined | {*declared_entities})
        return write_training_set(
            job.rows(),
            label=label,
            event_timestamp=entities.event_time,
            entity_columns=[name for name in given if name not in others],
            features=columns,
            output=output,
            split=split,
            aws=offline.aws(),
            provenance=provenance,
            overwrite=overwrite,
            parts=parts,
            weight=weight,
            helpers=helpers,
            given_features=given_features,
            entity_rows=rows if origin.kind == "copy" else None,
            spill_folder=offline.spill_folder,
            **options,
        )


def _name_of_source(view: Any) -> str:
    return view.batch_source.name if view.batch_source is not None else ""


def _logged(view: Any, outcome: Outcome) -> Outcome:
    if outcome.older:
        logger.info(
            "push to %s: %d rows written, %d dropped as older than what the table holds",
            view.name,
            outcome.written,
            outcome.older,
        )
    return outcome


def _with_times(view: FeatureView, table: pa.Table) -> pa.Table:
    """Rows of a push, with times that are texts as times."""
    source = view.batch_source
    for name in filter(None, stored_times(source) if source is not None else ()):
        at = table.schema.get_field_index(name)
        if at >= 0 and is_text(without_dictionary(table.schema.field(at).type)):
            times = parsed_times(name, table.column(at), f"Feature view `{view.name}`")
            table = table.set_column(at, name, times)
    return table


def _engine_class() -> type[DynamoComputeEngine]:
    # Loaded when it is needed: serving needs neither DuckDB nor progress bars.
    from feast_dynamo_ext.materialize.engine import DynamoComputeEngine

    return DynamoComputeEngine
