"""Rows that a job has computed go into the history, into the folder of their day."""

import pandas as pd
from feast import FeatureStore

store = FeatureStore("feature_repo")
rows = pd.DataFrame(
    {
        "customer_id": [4, 21],
        "event_timestamp": pd.to_datetime(["2026-01-11 09:00Z"] * 2),
        "created_timestamp": pd.to_datetime(["2026-01-11 09:05Z"] * 2),
        "orders_90d": [3, 1],
        "spend_90d": [100.5, 75.11],
    }
)
store.write_to_offline_store("orders", rows)
