"""Makes up a shop: 2,000 purchases of 100 customers in the last 90 days, in a Parquet file."""

import random
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd

CATEGORIES = ("books", "games", "music", "tools", "toys")


def main() -> None:
    """Write data/purchases.parquet."""
    numbers = random.Random(16)  # noqa: S311 - the same shop each time
    now = datetime.now(tz=timezone.utc)
    rows = [
        {
            "customer_id": numbers.randint(1, 100),
            "purchase_id": purchase,
            # Whole hours ago, and a half: no purchase crosses a window's bound while you read.
            "purchased_at": now - timedelta(hours=numbers.randint(0, 90 * 24 - 2) + 0.5),
            "price": numbers.randint(100, 9_999) / 100,
            "category": numbers.choice(CATEGORIES),
        }
        for purchase in range(1, 2_001)
    ]
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "purchases.parquet", index=False)


if __name__ == "__main__":
    main()
