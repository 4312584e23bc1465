"""The entity rows of the training set: which customers, at which moments, with which label.

A cutoff is the first of a month, 00:00 UTC. The first is the one that has the 90 days of the
feature window behind it, the last the one whose 60-day label window is fully observed.

A customer is a row of a cutoff if it bought in the 180 days before it: in the 90-day window or in
the one before. Who has been away for longer hardly comes back (4 to 6 in 100 within 60 days, in
the demo shop), and thousands of such rows would flatter any model.

The label `bought_again_60d` is 1 if the customer has a purchase dated in [cutoff, cutoff + 60 d).
Nothing leaks: features are the newest rows with event_timestamp <= cutoff, hence of purchases
dated before the cutoff. Those rows exist from 02:00 on (see history.py), so a job that scores
after that hour sees what training saw.

Label windows overlap: at the cutoff 1 December nobody knows the labels of 1 November yet. A split
by time that stands for real life leaves 60 days between the last cutoff of one part and the first
of the next. Here: train up to 1 October, validation 1 December, test from 1 March.

Run `python labels.py entity_rows.parquet` to write the rows of the demo shop to a file.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import duckdb
from purchases import as_purchases, load_purchases

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ENTITY_ROWS = """
WITH days AS (
  SELECT DISTINCT customer_id, date AS day FROM purchases
),
known AS (
  SELECT min(date) AS first_day, max(date) AS last_day FROM purchases
),
months AS (
  SELECT unnest(generate_series(date_trunc('month', first_day), last_day, INTERVAL 1 MONTH))::DATE
    AS cutoff, first_day, last_day
  FROM known
),
cutoffs AS (
  SELECT cutoff FROM months
  WHERE cutoff - 90 >= first_day AND cutoff + 60 <= last_day + 1
)
SELECT
  customer_id,
  cutoff::TIMESTAMP AS event_timestamp,
  max((day >= cutoff)::BIGINT) AS bought_again_60d
FROM days
JOIN cutoffs ON day >= cutoff - 180 AND day < cutoff + 60
GROUP BY customer_id, cutoff
HAVING min(day) < cutoff
ORDER BY cutoff, customer_id
"""


def entity_rows(purchases: pd.DataFrame | pa.Table) -> pd.DataFrame:
    """Customers at monthly cutoffs, with their label.

    Args:
        purchases: one row a purchase, columns as in `purchases.PURCHASES`, rows in any order.

    Returns:
        Columns customer_id (int64), event_timestamp (UTC, the cutoff) and bought_again_60d (int64,
        0 or 1), sorted by event_timestamp and customer_id. No rows if no first of a month has 90
        known days before it and 60 after it.

    Raises:
        ColumnNotFoundError: a column of the purchases is missing.
        ColumnTypeError: a column has nulls, or values of another type.
    """
    with duckdb.connect() as connection:
        connection.register("purchases", as_purchases(purchases))
        rows: pd.DataFrame = connection.sql(ENTITY_ROWS).to_arrow_table().to_pandas()
    rows["event_timestamp"] = rows["event_timestamp"].dt.tz_localize("UTC")
    return rows


def main() -> None:
    """Write the entity rows of the demo shop to a Parquet file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("path", help="file to write")
    path = parser.parse_args().path
    rows = entity_rows(load_purchases())
    rows.to_parquet(path, index=False)
    print(f"{path}: {len(rows)} rows, {rows['bought_again_60d'].mean():.4f} bought again")


if __name__ == "__main__":
    main()
