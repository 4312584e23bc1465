"""What a retrieval will read, before it reads it."""

from feast import FeatureStore

store = FeatureStore("feature_repo")
job = store.get_historical_features("s3://my-features/history/returns/", ["orders:spend_90d"])
print(job.explain())
