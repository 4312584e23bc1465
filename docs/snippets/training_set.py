"""Customers with a label become train, validation and test files on S3."""

import datetime as dt
import os

import pandas as pd
from feast import FeatureStore

from feast_dynamo_ext import sagemaker

rows = pd.read_parquet("entity_rows.parquet")
# Labels look 60 days ahead: a month between the parts belongs to none of them.
between = pd.to_datetime(["1997-10-01", "1998-01-01"], utc=True)

store = FeatureStore("feature_repo")
training_set = sagemaker.create_training_set(
    store,
    entity_rows=rows[~rows["event_timestamp"].isin(between)],
    features=store.get_feature_service("repurchase_v1"),
    label="bought_again_60d",
    output=f"s3://{os.environ['FEATURE_BUCKET']}/training/repurchase_v1",
    split=sagemaker.TimeSplit(
        validation_from=dt.datetime(1997, 11, 1, tzinfo=dt.timezone.utc),
        test_from=dt.datetime(1998, 2, 1, tzinfo=dt.timezone.utc),
    ),
)
print(pd.DataFrame(training_set.summary())[["split", "rows", "label_mean"]])
print(training_set.output)
