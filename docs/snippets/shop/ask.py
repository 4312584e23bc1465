"""Asks for the purchases of customers: the last ones, sums of them, and the dearest."""

from datetime import timedelta
from pathlib import Path

from feast import FeatureStore

from feast_dynamo_ext import online_series

store = FeatureStore(str(Path(__file__).parent))
customers = [{"customer_id": 7}, {"customer_id": 8}]

print("A: the last three purchases, and sums of windows, in one request")
lists = ["last_purchases:price_last_3", "last_purchases:category_last_3"]
sums = ["spend:sum_price_30d", "spend:count_30d"]
answer = store.get_online_features([*lists, *sums], customers).to_dict()
for number, customer in enumerate(answer["customer_id"]):
    print(f"  customer {customer}")
    for name in ("price_last_3", "category_last_3", "sum_price_30d", "count_30d"):
        value = answer[name][number]
        print(f"    {name:<15}  {round(value, 2) if isinstance(value, float) else value}")

print("A: all purchases of ten days, by call")
events = online_series(store, ["purchases:price"], customers, within=timedelta(days=10))
print(f"  {events.features['price']}")

print("B: the dearest of at least 50, in the order of the price")
dearest = online_series(
    store,
    ["purchases:price", "purchases:category"],
    customers,
    order="price",
    where={"price": (">=", 50.0)},
    limit=3,
)
for customer, prices, categories in zip(
    customers, dearest.features["price"], dearest.features["category"], strict=True
):
    print(f"  customer {customer['customer_id']}: {prices} {categories}")
