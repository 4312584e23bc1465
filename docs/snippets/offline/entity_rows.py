"""The same features for entity rows from S3, from SQL, and without entity rows."""

from datetime import datetime, timezone

from feast import FeatureStore

store = FeatureStore("feature_repo")
features = ["orders:orders_90d", "orders:spend_90d"]

from_s3 = store.get_historical_features("s3://my-features/history/returns/", features)
print(from_s3.to_arrow().num_rows)

from_sql = store.get_historical_features(
    """
    SELECT customer_id, event_timestamp, returned
    FROM returns
    WHERE event_timestamp >= TIMESTAMPTZ '2026-01-08 00:00:00Z'
    ORDER BY customer_id
    """,
    features,
)
print(from_sql.to_df())

changes = store.get_historical_features(
    features=features,
    start_date=datetime(2026, 1, 8, tzinfo=timezone.utc),
    end_date=datetime(2026, 1, 9, tzinfo=timezone.utc),
)
print(changes.to_df())
