"""A retrieval on Spark: as a DataFrame, as files, as a table."""

from typing import Any

import pandas as pd
from feast import FeatureStore


def joined(store: FeatureStore, entities: pd.DataFrame, features: list[str]) -> tuple[Any, ...]:
    """The rows of a retrieval in three forms."""
    job = store.get_historical_features(entity_df=entities, features=features)
    frame = job.to_spark_df()  # a DataFrame, which nothing has computed yet
    files = job.to_remote_storage()  # Parquet files, written by the executors
    table = job.to_arrow()  # or to_df(), to_arrow_batches()
    return frame, files, table
