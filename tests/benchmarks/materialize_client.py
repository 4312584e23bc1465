"""Materializes once, in a process of its own: with our store, engine and offline store or Feast's.

Runs in either environment, as `client.py` does. `materialize_client.py SETTINGS` declares the
project, materializes a small view first, so that imports and connections are there, then the
measured one, checks what was written, and prints the figures as JSON.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import boto3
from bench_history import CREATED_TIME, DAYS, EVENT_TIME, START_S, newest
from feast import FeatureView, Field, FileSource
from feast.types import Float64, Int64
from projects import CUSTOMER, open_store
from sink import STOPPED
from usage import peak_mb, used_cpu_s
from workload import JOIN_KEY, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast import FeatureStore

WARM = "warm"
START = dt.datetime.fromtimestamp(START_S, tz=dt.timezone.utc)
END = START + dt.timedelta(days=DAYS)
CHECKED = 100
OFFLINE = {
    "ours": {"type": "feast_dynamo_ext.S3ParquetOfflineStore"},
    "feast": {"type": "file"},
}


def main() -> None:
    settings = json.loads(sys.argv[1])
    (one,) = settings["workloads"]
    workload, source, stored = Workload(**one), settings["source"], settings["stored"]
    kind = settings["store"]
    online = {"write_mode": settings["write_mode"]} if kind == "ours" else {}
    if kind == "ours" and not stored:
        online["manage_tables"] = "never"
    store = open_store(settings, workload, OFFLINE[kind], online)
    (view,) = workload.names()
    paths = {WARM: settings["warm"], view: source}
    declare(store, workload, paths, has_tables=stored)
    with quiet():
        materialize(store, WARM)
    sink = None if stored else settings["endpoint"]
    before = counts(sink) if sink else {}
    measured = measure(store, view, may_fail=settings["may_fail"])
    if sink:
        measured["sink"] = {name: count - before[name] for name, count in counts(sink).items()}
    else:
        check(store, workload, source, settings)
        store.teardown()
    print(json.dumps(measured))


def declare(
    store: FeatureStore, workload: Workload, paths: dict[str, str], *, has_tables: bool
) -> None:
    (names,) = workload.names().values()
    views = [view_of(name, path, names) for name, path in paths.items()]
    if has_tables:
        store.apply([CUSTOMER, *views])
        return
    # The sink has no tables to be looked at.
    store.registry.apply_entity(CUSTOMER, store.project)
    for view in views:
        store.registry.apply_feature_view(view, store.project)
    store.refresh_registry()


def view_of(name: str, path: str, features: list[str]) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[Field(name=JOIN_KEY, dtype=Int64)]
        + [Field(name=feature, dtype=Float64) for feature in features],
        source=FileSource(
            name=f"{name}_source",
            path=path,
            timestamp_field=EVENT_TIME,
            created_timestamp_column=CREATED_TIME,
        ),
        ttl=dt.timedelta(0),
    )


def materialize(store: FeatureStore, view: str) -> None:
    store.materialize(START, END, feature_views=[view])


def measure(store: FeatureStore, view: str, *, may_fail: bool) -> dict[str, Any]:
    """Time, CPU and memory of one materialization; whether it was stopped, where it may be."""
    is_stopped = False
    start_mb, cpu_s, started = peak_mb(), used_cpu_s(), time.perf_counter()
    try:
        with quiet():
            materialize(store, view)
    except Exception as error:
        if not may_fail or STOPPED not in str(error):
            raise
        is_stopped = True
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": used_cpu_s() - cpu_s,
        "start_mb": start_mb,
        "peak_mb": peak_mb(),
        "is_stopped": is_stopped,
    }


def counts(sink: str) -> dict[str, float]:
    with urllib.request.urlopen(sink) as answer:  # noqa: S310 - the benchmark's own server
        return json.load(answer)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress of both stays out of the figures' way; it costs what it costs."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def check(store: FeatureStore, workload: Workload, source: str, settings: dict) -> None:
    """Refuse figures of a store that does not hold the newest rows afterwards, and all of them."""
    ((view, names),) = workload.names().items()
    keys = settings["keys"]
    held = newest(source, list(range(0, keys, max(1, keys // CHECKED))))
    read = store.get_online_features(
        features=[f"{view}:{name}" for name in names],
        entity_rows=[{JOIN_KEY: key} for key in held],
    ).to_dict()
    expected = {name: [row[name] for row in held.values()] for name in names}
    if read != {JOIN_KEY: list(held), **expected}:
        raise RuntimeError(f"{store.project}: not what the history's newest rows are.")
    client = boto3.client(
        "dynamodb", region_name=settings["region"], endpoint_url=settings["endpoint"]
    )
    table = client.describe_table(TableName=f"{store.project}.{view}")["Table"]
    # Of DynamoDB Local it is of now; ours has an item or two that are no rows.
    if table["ItemCount"] < keys:
        raise RuntimeError(f"{store.project}: {table['ItemCount']:,} items of {keys:,} rows.")


if __name__ == "__main__":
    main()
