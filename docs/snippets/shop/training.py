"""The same features as of any moment, for training: of now they are what a request is answered."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
from feast import FeatureStore

store = FeatureStore(str(Path(__file__).parent))
service = store.get_feature_service("buyer")
now = datetime.now(tz=timezone.utc)

rows = pd.DataFrame(
    {"customer_id": [7, 7, 7], "event_timestamp": [now - timedelta(days=d) for d in (40, 20, 0)]}
)
history = store.get_historical_features(rows, service).to_df().sort_values("event_timestamp")
history.insert(1, "days_ago", (now - history.pop("event_timestamp")).dt.days)
print("Customer 7, as of three moments:")
print(history.round(2).to_string(index=False))

everyone = pd.DataFrame({"customer_id": range(1, 101), "event_timestamp": now})
offline = store.get_historical_features(everyone, service).to_df().set_index("customer_id")
keys = [{"customer_id": customer} for customer in range(1, 101)]
online = store.get_online_features(service, keys).to_df().set_index("customer_id")
names = [name for name in online.columns if name in offline]
pd.testing.assert_frame_equal(
    online[names], offline.loc[online.index, names], check_dtype=False, rtol=1e-9
)
print(f"{len(names)} features of {len(online)} customers: online is what training has as of now")
