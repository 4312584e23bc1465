"""From a feature store and entity rows to a training set on S3, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

    from feast_dynamo_ext.sagemaker.split import TimeSplit
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet


def create_training_set(
    store: FeatureStore,
    *,
    entity_rows: Any,
    features: list[str] | FeatureService,
    label: str,
    output: str,
    split: TimeSplit,
    full_feature_names: bool = False,
    overwrite: bool = False,
    parts: int = 1,
) -> TrainingSet:
    """Join features to entity rows, point in time, and write the result for SageMaker.

    Args:
        store: the feature store; its provider must be `feast_dynamo_ext.DynamoProvider`.
        entity_rows: join keys, `event_timestamp` and the label, one row an example: a pandas,
            Arrow or Polars table, a path or URI of Parquet or CSV, or SQL.
        features: feature references, or a feature service.
        label: the column of the entity rows that is to be predicted.
        output: `s3://bucket/prefix` or a local folder.
        split: which event times are train, validation and test.
        full_feature_names: name features ``view__feature``.
        overwrite: replace the training set that is there.
        parts: files a split and format.

    Raises:
        ConfigError: the store has another provider.
        OfflineStoreError: the join is not possible; see the subclasses.
        TrainingSetError: the result cannot be a training set; see `write_training_set`.
    """
    from feast_dynamo_ext.provider import DynamoProvider

    provider = store.provider
    if not isinstance(provider, DynamoProvider):
        raise ConfigError(
            f"Training sets are written by the provider feast_dynamo_ext.DynamoProvider, not by "
            f"{type(provider).__name__}. Set `provider` in feature_store.yaml."
        )
    job = store.get_historical_features(
        entity_df=entity_rows, features=features, full_feature_names=full_feature_names
    )
    return provider.write_training_set(
        job, label=label, output=output, split=split, overwrite=overwrite, parts=parts
    )
