"""The modules of the package that a row passes through `FeatureStore.materialize`.

A traced call: prints each file of the package of which a function runs, in any thread, while one
view goes from a Parquet file into DynamoDB (moto), with the names of these functions.
`walk_of_a_row.py`, without arguments.
"""

from __future__ import annotations

import datetime as dt
import inspect
import os
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64
from moto.server import ThreadedMotoServer

import feast_dynamo_ext

if TYPE_CHECKING:
    from types import FrameType

PACKAGE = Path(feast_dynamo_ext.__file__).parent
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
DAY, ROWS = dt.timedelta(days=1), 1_000
YAML = """
project: walk
provider: feast_dynamo_ext.DynamoProvider
registry: registry.db
online_store:
  type: feast_dynamo_ext.DynamoOnlineStore
  region: us-east-1
  endpoint_url: {endpoint}
  newest_wins_with: put_item
offline_store:
  type: feast_dynamo_ext.S3ParquetOfflineStore
entity_key_serialization_version: 3
"""


def main() -> None:
    os.environ |= {"AWS_ACCESS_KEY_ID": "walk", "AWS_SECRET_ACCESS_KEY": "walk"}
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with tempfile.TemporaryDirectory() as folder:
        store = applied(Path(folder), f"http://{host}:{port}")
        passed = traced(lambda: store.materialize(START - DAY, START + DAY))
        row = store.get_online_features(["orders:total"], [{"cid": ROWS - 1}]).to_dict()
        if row["total"] != [ROWS - 1.0]:
            raise RuntimeError(f"The last row is not in the table: {row}")
    server.stop()
    for module, functions in sorted(passed.items()):
        print(f"{module}: {' '.join(sorted(functions))}")
    print(f"{len(passed)} modules")


def applied(folder: Path, endpoint: str) -> FeatureStore:
    history = folder / "orders.parquet"
    rows = {"cid": range(ROWS), "total": [float(row) for row in range(ROWS)], "t": [START] * ROWS}
    pd.DataFrame(rows).to_parquet(history)
    (folder / "feature_store.yaml").write_text(YAML.format(endpoint=endpoint))
    customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    view = FeatureView(
        name="orders",
        entities=[customer],
        schema=[Field(name="cid", dtype=Int64), Field(name="total", dtype=Float64)],
        source=FileSource(path=str(history), timestamp_field="t"),
        ttl=dt.timedelta(0),
    )
    store = FeatureStore(repo_path=str(folder))
    store.apply([customer, view])
    return store


def traced(call: Any) -> dict[str, set[str]]:
    """The functions of the package that run during a call, by module; imports do not count."""
    passed: dict[str, set[str]] = defaultdict(set)

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)):
            name = code.co_qualname if sys.version_info >= (3, 11) else code.co_name
            # Bodies of modules and classes run when they are imported.
            if code.co_flags & inspect.CO_OPTIMIZED:
                passed[str(Path(code.co_filename).relative_to(PACKAGE))].add(name)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return dict(passed)


if __name__ == "__main__":
    main()
