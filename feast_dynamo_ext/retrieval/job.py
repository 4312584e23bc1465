"""Feast's retrieval job over our reads: nothing is read before the result is used."""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata

from feast_dynamo_ext import cancellation
from feast_dynamo_ext.arrow_types import naming
from feast_dynamo_ext.cancellation import within
from feast_dynamo_ext.declared import declared_as, name_of
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.errors import ConfigError, OfflineStoreError
from feast_dynamo_ext.forks import Lock
from feast_dynamo_ext.parquet import saved
from feast_dynamo_ext.parquet.iceberg.catalog import is_iceberg
from feast_dynamo_ext.parquet.iceberg.destinations import SavedTable
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.parquet.writer import write_parts
from feast_dynamo_ext.retrieval.engines import sql
from feast_dynamo_ext.retrieval.engines.base import Result
from feast_dynamo_ext.retrieval.explain import Explanation, explain_join, explain_rows
from feast_dynamo_ext.retrieval.plan import PitPlan, result_name
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import pandas as pd
    from feast import FeatureView, OnDemandFeatureView, RepoConfig
    from feast.data_source import DataSource
    from feast.saved_dataset import SavedDatasetStorage, ValidationReference

    from feast_dynamo_ext.retrieval.engines.base import Engine
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import Plan


def _while_waited_for(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        cancellation.check()
        yield batch


BATCH_ROWS = 65_536


def frame_of(table: pa.Table) -> pd.DataFrame:
    """A table as pandas, but for integers with nulls, of which pandas makes floats."""
    frame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_integer(column.type) and column.null_count and name in frame:
            frame[name] = column.to_pandas(types_mapper=_nullable).array
    return frame


def _nullable(kind: pa.DataType) -> Any:
    import pandas as pd

    name = str(kind).removeprefix("u").capitalize()
    return pd.api.types.pandas_dtype("U" * str(kind).startswith("u") + name)


@dataclass
class ParquetRetrievalJob(RetrievalJob):
    """A retrieval from Parquet history.

    Attributes:
        config: the repo's config.
        run: finds the rows; called once, at the first use of the job.
        opened: the sources that were read, by name, once the job has run.
        entities: the entity rows, where it has any.
        views: the feature views it reads, projections applied, for a training set's manifest.
        bases: the views that some of these are derived from.
        plan: what `run` runs, for `to_sql` and `explain`.
        engine: what matches the entity rows, for `explain`.
    """

    config: RepoConfig
    run: Callable[[], Result]
    views: tuple[FeatureView, ...] = ()
    bases: tuple[FeatureView, ...] = ()
    entities: EntityRows | None = None
    opened: Mapping[str, ParquetSource] = field(default_factory=dict)
    odfvs: list[OnDemandFeatureView] = field(default_factory=list)
    full_names: bool = False
    about: RetrievalMetadata | None = None
    plan: Plan | None = None
    engine: Engine | None = None
    _result: Result | None = field(default=None, repr=False)
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    def result(self) -> Result:
        """The rows to come; matching happens here, once."""
        # A retrieval that ran out of its timeout may still be about to end in its thread.
        with self._lock:
            if self._result is None:
                self._result = self.run()
            return self._result

    # What Feast asks for

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        def read() -> pa.Table:
            result = self.result()
            return pa.Table.from_batches(_while_waited_for(result.batches()), result.schema)

        return within(timeout, read)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return frame_of(self._to_arrow_internal(timeout))

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named view__feature."""
        return self.full_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """On-demand views whose features Feast adds."""
        return self.odfvs

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """The names of features and columns, and the range of time."""
        return self.about

    def columns_of(self, refs: Iterable[str] | None) -> list[str]:
        """The columns of features in the result, in its order.

        Feast adds the inputs of on-demand views to a retrieval, and does not say which these are.

        Args:
            refs: the features that were requested, ``view:feature``; None for all.

        Raises:
            OfflineStoreError: None, and a feature may have been requested, or be an input alone.
        """
        every = list(self.about.features) if self.about is not None else []
        if refs is None:
            refs = every
            self._check_requested(every)
        wanted: dict[str, list[str]] = defaultdict(list)
        for ref in refs:
            view, _, feature = ref.partition(":")
            wanted[view].append(feature)
        views: list[Any] = [*self.views, *self.odfvs]
        return [
            result_name(view, feature, full_feature_names=self.full_names)
            for view in views
            for feature in dict.fromkeys(wanted[view.projection.name_to_use()])
        ]

    def _check_requested(self, refs: list[str]) -> None:
        """Refuse a retrieval whose last features may be what Feast added: it adds them last."""
        views: list[Any] = list(self.odfvs)
        inputs = {
            f"{projection.name_to_use()}:{field.name}"
            for view in views
            for projection in view.source_feature_view_projections.values()
            for field in projection.features
        }
        if refs and refs[-1] in inputs:
            raise OfflineStoreError(
                f"The retrieval has `{refs[-1]}`, which is an input of an on-demand view, so "
                "Feast may have added it. Say which features were requested, as `features`."
            )

    # Rows in other forms

    def to_arrow(
        self, validation_reference: ValidationReference | None = None, timeout: int | None = None
    ) -> pa.Table:
        """All rows, with the features of on-demand views in their declared types.

        Args:
            validation_reference: Feast's, to check the rows against.
            timeout: seconds; None for no limit.

        Raises:
            RetrievalTimeoutError: it was not done by then.
            ColumnTypeError: a value does not fit the type that its feature is declared as.
            OfflineStoreError: see its subclasses.
        """
        rows = super().to_arrow(validation_reference=validation_reference, timeout=timeout)
        for view in self.odfvs:
            for feature in view.features:
                name = result_name(view, feature.name, full_feature_names=self.full_names)
                at = rows.schema.get_field_index(name)
                if at >= 0:
                    kind, column = declared_as(feature.dtype), rows.column(at)
                    with naming(name, name_of(kind), column.type, view.name):
                        rows = rows.set_column(at, name, as_declared(column, kind))
        return rows

    def to_df(
        self, validation_reference: ValidationReference | None = None, timeout: int | None = None
    ) -> pd.DataFrame:
        """The rows of `to_arrow` as a data frame; integers with nulls are pandas' Int64.

        Args:
            validation_reference: Feast's, to check the rows against.
            timeout: seconds; None for no limit.

        Raises:
            RetrievalTimeoutError: it was not done by then.
            OfflineStoreError: as `to_arrow`.
        """
        rows = self.to_arrow(validation_reference=validation_reference, timeout=timeout)
        return frame_of(rows).reset_index(drop=True)

    def to_arrow_batches(self, max_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The rows of `to_arrow`, in the same order, batch by batch.

        Args:
            max_rows: the most rows of a batch.

        Raises:
            OfflineStoreError: there are on-demand views. Their functions get all rows from
                `to_arrow`, and may do with them what they like (fill with the mean, rank), so
                nothing says that batch by batch they would give the same.
        """
        if self.odfvs:
            names = sorted(view.name for view in self.odfvs)
            raise OfflineStoreError(
                f"The on-demand views {names} are computed on all rows at once, so there are no "
                "batches of them. Use `to_arrow()`, or leave their features out and compute them "
                "on each batch yourself."
            )
        return (
            batch.slice(start, max_rows)
            for batch in self.result().batches()
            for start in range(0, batch.num_rows, max_rows)
        )

    def rows(self) -> pa.Table | pa.RecordBatchReader:
        """The rows of `to_arrow`: batch by batch, or a table where there are on-demand views.

        Raises:
            OfflineStoreError: as `to_arrow`.
        """
        if self.odfvs:
            return self.to_arrow()
        return pa.RecordBatchReader.from_batches(self.result().schema, self.to_arrow_batches())

    def to_sql(self) -> str:
        """One statement that DuckDB runs on its own and that gives the same rows in order.

        Entity rows of Parquet files are in it. All others are named ``entity_df`` in it, which
        DuckDB's Python client finds as the variable of that name where the statement is run; it
        is `job.entities.table`, whatever form they came in. On-demand features are not
        in it. Files are listed in it, so it sees the source as it is now; those on S3 need
        DuckDB's httpfs and credentials (``CREATE SECRET``) where it runs.

        Raises:
            EntityRowsError: entity rows that cannot be joined.
            ColumnTypeError: a feature whose column SQL does not cast as a retrieval does.
            OfflineStoreError: a source that is not there, or lacks a column.
        """
        return sql.statement(self._planned("SQL"), self.entities, self._open)

    def explain(self) -> Explanation:
        """What the retrieval will read and how it will match; no rows are read, only footers.

        Raises:
            OfflineStoreError: a source that is not there, or lacks a column.
        """
        plan, settings = self._planned("explanation"), self.config.offline_store
        if not isinstance(plan, PitPlan):
            return explain_rows(plan, self._open, settings.memory_limit)
        if self.entities is None or self.engine is None:
            raise OfflineStoreError("This join has no explanation: it was made without an engine.")
        chosen = settings.join_plan != "auto"
        return explain_join(plan, self.entities, self._open, self.engine, is_chosen=chosen)

    def supports_remote_storage_export(self) -> bool:
        """Whether `staging_location` is set."""
        return self.config.offline_store.staging_location is not None

    def to_remote_storage(self) -> list[str]:
        """Write the rows as Parquet files of up to about 128 MB below `staging_location`.

        Each call has a folder of its own, ``<staging_location>/<project>/<unique>/``. Rows are
        streamed; for on-demand features all rows are held in memory. Nobody removes the
        files: give the location a lifecycle rule.

        Returns:
            The files' URIs, whose order is that of the rows.

        Raises:
            ConfigError: `staging_location` is not set.
            AwsError: S3 refused; what was written is removed.
            DestinationError: a disk did, likewise.
        """
        folder = self.new_staging_folder()
        files = files_of(folder, self.config.offline_store.aws())
        rows = self._rows(None)
        return write_parts(files, folder, "part", rows.schema, rows.batches())

    def new_staging_folder(self) -> str:
        """A new folder below `staging_location`.

        Raises:
            ConfigError: it is not set.
        """
        location = self.config.offline_store.staging_location
        if location is None:
            raise ConfigError(
                "to_remote_storage() needs `staging_location` in the offline_store block of "
                "feature_store.yaml: an s3:// URI or a folder for the files."
            )
        root = FileSource.get_uri_for_file_path(self.config.repo_path, location)
        return f"{root.rstrip('/')}/{self.config.project}/{uuid.uuid4().hex}"

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Write the result as Parquet to where a saved dataset is kept.

        A path that ends in ``.parquet`` is one file, any other a folder of files of about 128 MB.
        One file is replaced in one step. In a folder the new files are written beside the old
        files, which are then deleted: a reader meanwhile sees both, but never neither.

        Args:
            storage: Feast's `SavedDatasetFileStorage`, S3 or local, or
                `SavedDatasetIcebergStorage`: an Iceberg table, replaced in one commit.
            allow_overwrite: replace what is there.
            timeout: seconds to find the rows; writing them is not counted.

        Raises:
            DestinationExistsError: there is something already and `allow_overwrite` is not set,
                or something that is no Parquet.
            RetrievalTimeoutError: the rows were not found in time.
        """
        source = storage.to_data_source()
        place = (
            SavedTable.from_source(source, self.config)
            if is_iceberg(source)
            else saved.SavedPlace.from_source(source, self.config)
        )
        old = place.checked(allow_overwrite=allow_overwrite)
        rows = self._rows(timeout)
        place.write(old, rows.schema, rows.batches(), self._event_time())

    def _rows(self, timeout: int | None) -> Result:
        """The rows with on-demand features."""
        if self.odfvs:
            return Result.from_table(self.to_arrow(timeout=timeout))
        return within(timeout, self.result)

    def _event_time(self) -> str | None:
        return self.entities.event_time if self.entities is not None else None

    def _planned(self, what: str) -> Plan:
        if self.plan is None:
            raise OfflineStoreError(f"This retrieval has no {what}: it was made without a plan.")
        return self.plan

    def _open(self, source: DataSource) -> ParquetSource:
        return ParquetSource.open(source, self.config)
