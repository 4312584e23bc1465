"""The examples: customers week by week, and whether they order in the week after."""

from pathlib import Path

import pandas as pd

WEEK = pd.Timedelta(days=7)


def main() -> None:
    """Write one row per customer and week: the key, the event time, the label."""
    repo = Path(__file__).parent
    history = pd.read_parquet(repo / "history" / "orders")
    last = history["event_timestamp"].max()
    # What is ordered within 7 days of a moment is what `orders_7d` is 7 days later.
    rows = history[["customer_id", "event_timestamp", "orders_7d"]].copy()
    rows["event_timestamp"] -= WEEK
    rows = rows[rows["event_timestamp"].isin([last - number * WEEK for number in range(1, 11)])]
    rows["orders_again"] = (rows.pop("orders_7d") > 0).astype("int64")
    rows.to_parquet(repo / "labels.parquet", index=False)


if __name__ == "__main__":
    main()
