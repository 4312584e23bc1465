"""Feast's provider: wires both stores, materialization and training sets together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feast.infra.passthrough_provider import PassthroughProvider

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.offline.job import ParquetRetrievalJob

if TYPE_CHECKING:
    from feast.infra.compute_engines.base import ComputeEngine
    from feast.infra.offline_stores.offline_store import RetrievalJob

    from feast_dynamo_ext.sagemaker.split import TimeSplit
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet


class DynamoProvider(PassthroughProvider):
    """Feast's passthrough provider with this package's compute engine as the default."""

    @property
    def batch_engine(self) -> ComputeEngine:
        """The engine of `feast materialize`: ours, unless feature_store.yaml names another."""
        if self._batch_engine is None and self.repo_config.batch_engine_config == "local":
            from feast_dynamo_ext.materialize.engine import DynamoComputeEngine

            self._batch_engine = DynamoComputeEngine(
                repo_config=self.repo_config,
                offline_store=self.offline_store,
                online_store=self.online_store,
            )
        return super().batch_engine

    def write_training_set(
        self,
        job: RetrievalJob,
        *,
        label: str,
        output: str,
        split: TimeSplit,
        overwrite: bool = False,
        parts: int = 1,
    ) -> TrainingSet:
        """Write a point-in-time retrieval as a training set that SageMaker jobs read.

        The label is a column of the entity rows; every feature of the retrieval is trained on.

        Args:
            job: what `get_historical_features` gave.
            label: the column to predict.
            output: `s3://bucket/prefix` or a local folder.
            split: which event times are train, validation and test.
            overwrite: replace the training set that is there.
            parts: files a split and format.

        Raises:
            ConfigError: the retrieval is not from S3ParquetOfflineStore.
            OfflineStoreError: the join is not possible.
            TrainingSetError: the result cannot be a training set.
        """
        from feast_dynamo_ext.sagemaker.provenance import provenance_of
        from feast_dynamo_ext.sagemaker.training_set import write_training_set

        if not isinstance(job, ParquetRetrievalJob) or job.entities is None:
            raise ConfigError(
                "A training set is made from `get_historical_features` of S3ParquetOfflineStore "
                "with entity rows. Set `offline_store` in feature_store.yaml to it."
            )
        event_time, keys = job.entities.event_time, job.entities.other_columns
        table = job.to_arrow()
        given = [*keys, event_time]
        return write_training_set(
            table,
            label=label,
            event_timestamp=event_time,
            entity_columns=[name for name in keys if name != label],
            features=[name for name in table.column_names if name not in given],
            output=output,
            split=split,
            aws=self.repo_config.offline_store.aws(),
            provenance=provenance_of(job, self.repo_config.project, table.select(given)),
            overwrite=overwrite,
            parts=parts,
        )
