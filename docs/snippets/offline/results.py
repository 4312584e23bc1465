"""A result larger than memory: batch by batch, as files on S3, as a saved dataset."""

from feast import FeatureStore
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

store = FeatureStore("feature_repo")
job = store.get_historical_features("s3://my-features/history/returns/", ["orders:spend_90d"])

for batch in job.to_arrow_batches(max_rows=10_000):
    print(batch.num_rows, batch.schema.names)

files = job.to_remote_storage()
print(len(files), files[0].rpartition("/")[2])

saved = store.create_saved_dataset(
    from_=job,
    name="returns_january",
    storage=SavedDatasetFileStorage(path="s3://my-features/saved/returns_january"),
)
print(saved.to_arrow().num_rows)
