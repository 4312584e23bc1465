"""Counts the modules of the package that data passes on its way; `make walks` runs it.

Four calls on the embedded AWS: a read by one entity key, a point-in-time retrieval, a materialize
and a training set. Each is made once before, so that what is worked out once is not counted.

A module is passed when one of its functions, in any thread, is given data or returns it: Arrow or
numpy columns, frames, protobuf messages, bytes, items of DynamoDB. It runs when any of its
functions does. Importing it counts as neither.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import logging
import os
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64, Int64
from google.protobuf.message import Message

import feast_dynamo_ext
from feast_dynamo_ext import sagemaker
from feast_dynamo_ext.local import start_moto, stop

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(feast_dynamo_ext.__file__).parent
UTC = dt.timezone.utc
DAY = dt.timedelta(days=1)
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
FEATURES = ["orders:total", "orders:count"]
ENTITY_ROWS = pd.DataFrame(
    {
        "customer_id": [1, 2, 1, 2],
        "event_timestamp": pd.to_datetime([START + n * DAY for n in (5, 5, 15, 25)], utc=True),
        "bought": [1, 0, 0, 1],
    }
)


ARRAYS = (pa.Array, pa.ChunkedArray, pa.RecordBatch, pa.Table, pa.RecordBatchReader, np.ndarray)
DATA = (*ARRAYS, pd.DataFrame, Message, bytes, bytearray, memoryview)
ROWS = {"EncodedRows", "EntityRows", "Row", "RowBatch"}
"""This package's own classes that hold rows."""
ITEM_NAMES = {"B", "Keys", "PutRequest", "RequestItems", "Responses", "k"}
"""Names in DynamoDB's JSON of keys and items."""
LOOKED_AT, DEPTH = 5, 3


def is_data(value: Any, depth: int = 0) -> bool:
    """Whether a value holds columns, rows or keys, or parts of them."""
    if isinstance(value, DATA) or type(value).__name__ in ROWS:
        return True
    if depth == DEPTH:
        return False
    if isinstance(value, dict):
        if ITEM_NAMES & value.keys():
            return True
        value = value.values()
    elif not isinstance(value, (list, tuple, set, frozenset)):
        return False
    return any(is_data(each, depth + 1) for each in itertools.islice(value, LOOKED_AT))


@dataclass
class Modules:
    """Modules of the package, by their paths in it."""

    passed: set[str] = field(default_factory=set)
    run: set[str] = field(default_factory=set)


class Walk:
    """Notes which modules run while it counts, and which of them are given data."""

    def __init__(self) -> None:
        self._found: Modules | None = None
        # Threads take it over when they start, so pools that live on are counted too.
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, frame: Any, event: str, returned: Any) -> None:
        code, found = frame.f_code, self._found
        if found is None or event not in {"call", "return"} or code.co_name == "<module>":
            return
        if not code.co_filename.startswith(str(PACKAGE)):
            return
        module = Path(code.co_filename).relative_to(PACKAGE).with_suffix("").as_posix()
        found.run.add(module)
        if event == "return":
            given = [returned]
        else:
            count = code.co_argcount + code.co_kwonlyargcount
            arguments = itertools.islice(frame.f_locals.items(), count)
            given = [value for name, value in arguments if name != "self"]
        if any(map(is_data, given)):
            found.passed.add(module)

    def count(self, call: Callable[[], Any]) -> Modules:
        """The modules of a second call."""
        call()
        found = self._found = Modules()
        try:
            call()
        finally:
            self._found = None
        return found


def repo(folder: Path, endpoint: str) -> FeatureStore:
    """A view of two features, applied."""
    history = {
        "customer_id": [1, 1, 2],
        "event_timestamp": pa.array([START, START + 14 * DAY, START], pa.timestamp("us", "UTC")),
        "total": [0.5, 1.5, 2.0],
        "count": pa.array([1, 2, None], pa.int64()),
    }
    (folder / "orders").mkdir()
    pq.write_table(pa.table(history), folder / "orders" / "a.parquet")
    config = RepoConfig(
        project="walks",
        provider="feast_dynamo_ext.DynamoProvider",
        registry=str(folder / "registry.db"),
        online_store={
            "type": "feast_dynamo_ext.DynamoOnlineStore",
            "region": "us-east-1",
            "endpoint_url": endpoint,
            "newest_wins_with": "put_item",  # moto takes no binary values in PartiQL
        },
        offline_store={"type": "feast_dynamo_ext.S3ParquetOfflineStore"},
        entity_key_serialization_version=3,
    )
    config.repo_path = folder
    store = FeatureStore(config=config)
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    orders = FeatureView(
        name="orders",
        entities=[customer],
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="total", dtype=Float64),
            Field(name="count", dtype=Int64),
        ],
        source=FileSource(path=str(folder / "orders"), timestamp_field="event_timestamp"),
        ttl=dt.timedelta(0),
    )
    store.apply([customer, orders])
    return store


def walks(store: FeatureStore, folder: Path) -> dict[str, Modules]:
    """The modules of each call, by the name of the walk."""
    walk = Walk()

    def materialize() -> None:
        store.materialize(START - DAY, START + 30 * DAY)

    def train() -> None:
        sagemaker.create_training_set(
            store,
            entity_rows=ENTITY_ROWS,
            features=FEATURES,
            label="bought",
            output=str(folder / "training"),
            split=sagemaker.TimeSplit(START + 10 * DAY, START + 20 * DAY),
            overwrite=True,
        )

    return {
        "a row through materialize": walk.count(materialize),
        "an entity key through a read": walk.count(
            lambda: store.get_online_features(FEATURES, [{"customer_id": 1}])
        ),
        "a column through a retrieval": walk.count(
            lambda: store.get_historical_features(ENTITY_ROWS, FEATURES).to_arrow()
        ),
        "entity rows into a training set": walk.count(train),
    }


def main() -> None:
    """Print the counts, or with `--json` all modules."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "FEAST_USAGE": "False"}
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = start_moto(folder)
        try:
            found = walks(repo(folder, server.endpoint), folder)
        finally:
            stop(server)
    if "--json" in sys.argv:
        lists = {
            what: {"passed": sorted(modules.passed), "run": sorted(modules.run)}
            for what, modules in found.items()
        }
        sys.stdout.write(json.dumps(lists, indent=2) + "\n")
        return
    sys.stdout.write("passed  run\n")
    for what, modules in found.items():
        sys.stdout.write(f"{len(modules.passed):6} {len(modules.run):4}  {what}\n")


if __name__ == "__main__":
    main()
