"""The features of one customer as they were known at two moments, from Parquet on S3."""

import pandas as pd
from feast import FeatureStore

store = FeatureStore("feature_repo")
entity_rows = pd.DataFrame(
    {
        "customer_id": [4, 4],
        "event_timestamp": pd.to_datetime(["1997-03-01", "1997-09-01"], utc=True),
    }
)
job = store.get_historical_features(
    entity_df=entity_rows,
    features=["customer_90d:orders_90d", "customer_lifetime:lifetime_spend"],
)
print(job.to_df())
