"""Where the answers before the move and after it differ."""

from feast import FeatureStore

stores = [FeatureStore("feature_repo"), FeatureStore("packed_repo")]
entity_rows = [{"customer_id": number} for number in range(1, 1001)]
before, after = (
    store.get_online_features(store.get_feature_service("churn"), entity_rows)
    .to_df()
    .set_index("customer_id")
    for store in stores
)
difference = before.compare(after, result_names=("before", "after"))
in_neither = (before.isna() & after.isna()).all(axis=1).sum()
print(f"{len(difference)} of {len(entity_rows)} differ; {in_neither} have no value in either")
print(difference.head(20).to_string())
