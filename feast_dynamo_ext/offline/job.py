"""Feast's retrieval job over our reads: nothing is read until the result is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata

from feast_dynamo_ext.offline.parquet import write_dataset
from feast_dynamo_ext.offline.source import uri_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd
    from feast import FeatureView, OnDemandFeatureView, RepoConfig
    from feast.saved_dataset import SavedDatasetStorage

    from feast_dynamo_ext.offline.entities import EntityRows
    from feast_dynamo_ext.offline.source import ParquetSource


@dataclass(frozen=True)
class Result:
    """Rows to come.

    Attributes:
        schema: their schema.
        rows: their number.
        batches: reads them.
    """

    schema: pa.Schema
    rows: int
    batches: Callable[[], Iterator[pa.RecordBatch]]

    @classmethod
    def of(cls, table: pa.Table) -> Result:
        """Rows that are there already."""
        return cls(table.schema, table.num_rows, lambda: iter(table.to_batches()))


@dataclass
class ParquetRetrievalJob(RetrievalJob):
    """A retrieval from Parquet history.

    Attributes:
        config: the repo's config.
        run: finds the rows; called once, at the first use of the job.
        opened: the sources that were read, by name, once the job has run.
        entities: the entity rows, where it has any.
        views: the feature views it reads, projections applied, for a training set's manifest.
    """

    config: RepoConfig
    run: Callable[[], Result]
    views: tuple[FeatureView, ...] = ()
    entities: EntityRows | None = None
    opened: Mapping[str, ParquetSource] = field(default_factory=dict)
    odfvs: list[OnDemandFeatureView] = field(default_factory=list)
    full_names: bool = False
    about: RetrievalMetadata | None = None
    _result: Result | None = field(default=None, repr=False)

    def result(self) -> Result:
        """The rows to come; matching happens here, once."""
        if self._result is None:
            self._result = self.run()
        return self._result

    def to_arrow_batches(self) -> Iterator[pa.RecordBatch]:
        """The rows batch by batch, before on-demand transformations."""
        return self.result().batches()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's interface
        result = self.result()
        return pa.Table.from_batches(result.batches(), result.schema)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

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
        """What was asked for."""
        return self.about

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Write the result as Parquet to where a saved dataset is kept.

        Raises:
            OfflineStoreError: there is something already and `allow_overwrite` is not set.
        """
        table: Any = self.to_arrow(timeout=timeout)
        write_dataset(
            uri_of(storage.to_data_source(), self.config),
            table.schema,
            table.to_batches(),
            self.config.offline_store.aws(),
            overwrite=allow_overwrite,
        )
