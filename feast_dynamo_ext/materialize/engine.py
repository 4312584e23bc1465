"""The compute engine of `feast materialize`: the newest row per key, packed, written in batches.

Views with transformations or aggregations, and other online stores, go Feast's own way: this
engine is Feast's local engine where it does not know better.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from feast import utils
from feast.infra.common.materialization_job import MaterializationJobStatus
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob

from feast_dynamo_ext.dynamo.entity_keys import ENTITYLESS_KEY, join_keys
from feast_dynamo_ext.dynamo.item import Row, RowSchema, key_bytes, pack
from feast_dynamo_ext.dynamo.key_encoding import KeyEncoder
from feast_dynamo_ext.errors import EntityKeyError
from feast_dynamo_ext.offline.job import ParquetRetrievalJob
from feast_dynamo_ext.offline.times import Axis
from feast_dynamo_ext.online_store import DynamoOnlineStore
from feast_dynamo_ext.type_map import to_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from feast import FeatureView
    from feast.infra.common.materialization_job import MaterializationTask
    from feast.infra.registry.base_registry import BaseRegistry

ROWS_PER_WRITE = 10_000
"""Rows that are in memory as Python objects at once."""


class DynamoComputeEngine(LocalComputeEngine):
    """Materializes from S3ParquetOfflineStore into DynamoOnlineStore."""

    def _get_backend(self, context: Any) -> Any:
        """Feast's way for the views it keeps needs a DataFrame library: pandas."""
        if self._backend is None and context.entity_df is None:
            from feast.infra.compute_engines.backends.factory import BackendFactory

            self._backend = BackendFactory.from_name("pandas")
        return super()._get_backend(context)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        if not self._is_plain(task.feature_view):
            return super()._materialize_one(registry, task, **kwargs)
        job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            self._materialize(registry, task)
        except Exception as error:  # noqa: BLE001 - handed to Feast, which raises it
            return LocalMaterializationJob(job_id, MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id, MaterializationJobStatus.SUCCEEDED)

    def _is_plain(self, view: FeatureView) -> bool:
        """Whether rows go from the source to the table as they are."""
        return (
            isinstance(self.online_store, DynamoOnlineStore)
            and view.online
            and not view.offline
            and not getattr(view, "source_views", None)
            and getattr(view, "feature_transformation", None) is None
            and not getattr(view, "aggregations", None)
        )

    def _materialize(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        view: Any = task.feature_view
        store: Any = self.online_store
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        keys, features, event_time, created_time = utils._get_column_names(view, entities)
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=view.batch_source,
            join_key_columns=keys,
            feature_name_columns=features,
            timestamp_field=event_time,
            created_timestamp_column=created_time,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        schema = RowSchema.of(view)
        total, batches = _rows_of(job)
        bar = task.tqdm_builder(total) if task.tqdm_builder else None
        try:
            for batch in batches:
                renamed = _renamed(batch, view.batch_source.field_mapping or {})
                rows = _rows(renamed, view)
                store.write_rows(self.repo_config, view, schema, rows, bar.update if bar else None)
        finally:
            if bar:
                bar.close()


def _rows_of(job: Any) -> tuple[int, Iterator[pa.RecordBatch]]:
    """How many rows a job has, and the rows in batches of bounded size."""
    if isinstance(job, ParquetRetrievalJob):
        return job.result().rows, _rebatched(job.to_arrow_batches())
    table = job.to_arrow()
    return table.num_rows, _rebatched(table.to_batches())


def _rebatched(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of ROWS_PER_WRITE: files may hold few matching rows each."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(part.num_rows for part in held) >= ROWS_PER_WRITE:
            yield from _as_batches(held)
            held = []
    if held:
        yield from _as_batches(held)


def _as_batches(parts: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    whole = pa.Table.from_batches(parts).combine_chunks()
    batches: list[pa.RecordBatch] = whole.to_batches(max_chunksize=ROWS_PER_WRITE)
    return batches


def _renamed(batch: pa.RecordBatch, mapping: dict[str, str]) -> pa.RecordBatch:
    return batch.rename_columns([mapping.get(name, name) for name in batch.schema.names])


def _rows(batch: pa.RecordBatch, view: Any) -> Iterator[Row]:
    """The rows of a batch, packed."""
    columns = [
        to_values(batch.column(field.name), field.dtype.to_value_type(), field.name)
        for field in view.features
    ]
    packed = [pack(cells) for cells in zip(*columns, strict=True)]
    source = view.batch_source
    created = source.created_timestamp_column
    event_us = _micros(batch.column(source.timestamp_field))
    created_us = _micros(batch.column(created)) if created else [None] * batch.num_rows
    return (
        Row(key, values, event or 0, made)
        for key, values, event, made in zip(
            _keys(batch, view), packed, event_us, created_us, strict=True
        )
    )


def _keys(batch: pa.RecordBatch, view: FeatureView) -> Iterator[bytes]:
    names = join_keys(view)
    if not names:
        return itertools.repeat(key_bytes(ENTITYLESS_KEY, view.name), batch.num_rows)
    kinds = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    for name in names:
        if batch.column(name).null_count:
            raise EntityKeyError(
                f"Feature view `{view.name}`: {batch.column(name).null_count:,} rows have no "
                f"`{name}`. Filter them out of the source: it belongs to no entity."
            )
    columns = [to_values(batch.column(name), kinds[name], name) for name in names]
    return map(KeyEncoder(names, view.name), zip(*columns, strict=True))


def _micros(column: pa.Array) -> list[int | None]:
    """Microseconds since 1970 UTC; finer times are rounded down."""
    axis = Axis.of(column.type)
    values = axis.cast(column)
    times = Axis("us").floor(values.fill_null(0).to_numpy(zero_copy_only=False), axis.unit)
    micros: list[int | None] = pa.array(times, mask=np.asarray(values.is_null())).to_pylist()
    return micros
