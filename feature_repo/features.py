"""What is captured of the purchases becomes feature history and labels: the pipeline's Prepare.

`feast-dynamo refresh` runs it whenever the captured table has changed. It needs nothing of the
application: only the history of its table.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore
from history import build_history, write_history
from labels import entity_rows
from purchases import captured_purchases

from feast_dynamo_ext.aws import AwsSettings, filesystem


def main() -> None:
    """Write the history of all views, and the entity rows of the training set."""
    root = f"s3://{os.environ.get('FEATURE_BUCKET', 'feast-dynamo-demo')}"
    settings = AwsSettings(region=os.environ.get("AWS_REGION"))
    bought = captured_purchases(FeatureStore(Path(__file__).parent))
    history = build_history(bought)
    write_history(history, f"{root}/history", settings)
    for view, table in history.items():
        print(f"{root}/history/{view}: {table.num_rows:,} rows")
    rows = entity_rows(bought)
    target, folder = filesystem(f"{root}/labels", settings)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    pq.write_table(table, f"{folder}/repurchase.parquet", filesystem=target)
    print(f"{root}/labels/repurchase.parquet: {len(rows):,} rows")


if __name__ == "__main__":
    main()
