"""Finds the customers who bought tools in the last week, and scores each of them."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from feast_dynamo_ext import score_cohort


def model(features: pd.DataFrame) -> np.ndarray:
    """Stands for a model of yours: features of many customers in, a score of each out."""
    spent = features["sum_price_30d"].astype("float64").fillna(0)
    bought = features["count_30d"].astype("float64")
    return (1 / (1 + np.exp(3 - spent / 200 - bought / 10))).to_numpy()


def main() -> None:
    """Print the five customers of the cohort that score the highest."""
    store = FeatureStore(str(Path(__file__).parent))
    week_ago = datetime.now(tz=timezone.utc) - timedelta(days=7)
    scored = pa.concat_tables(
        score_cohort(
            store,
            "purchases",
            store.get_feature_service("buyer"),
            model,
            category="tools",
            start=week_ago,
        )
    ).to_pandas()
    print(f"{len(scored)} customers bought tools in the last week")
    best = scored.sort_values("prediction", ascending=False).head(5)
    columns = ["customer_id", "sum_price_30d", "count_30d", "prediction"]
    print(best[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
