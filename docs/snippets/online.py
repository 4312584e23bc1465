"""The newest features of two customers, from DynamoDB."""

from feast import FeatureStore

store = FeatureStore("feature_repo")
answer = store.get_online_features(
    features=store.get_feature_service("repurchase_v1"),
    entity_rows=[{"customer_id": 4}, {"customer_id": 21}],
)
print(answer.to_df()[["customer_id", "orders_90d", "lifetime_orders", "lifetime_spend"]])
