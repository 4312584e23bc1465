"""Windows and lists of events as of entity rows, beside the plain join and DuckDB's range join.

`series_windows.py WAY SETTINGS` is one way in a process of its own, which prints its figures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import bars
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from usage import peak_mb, used_cpu_s

EVENTS, ENTITY_ROWS, KEYS, FILES, DAYS = 10_000_000, 1_000_000, 200_000, 10, 365
WINDOWS = (7, 30, 90)
JOIN, WINDOW, LAST, DUCKDB = "plain join", "3 windows", "last 20", "DuckDB's range join"
WAYS = (JOIN, WINDOW, LAST, DUCKDB)
START = datetime(2025, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Taken:
    """One run of one way."""

    seconds: float
    cpu_s: float
    peak_mb: float
    check: float


Runs = dict[str, list[Taken]]


def run(rounds: int, scale: float = 1.0) -> Runs:
    """So many rounds, each way in turn."""
    found: Runs = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), scale)
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(_one(way, folder))
        sums = {way: found[way][0].check for way in (WINDOW, DUCKDB)}
        if not np.isclose(sums[WINDOW], sums[DUCKDB], rtol=1e-9):
            raise RuntimeError(f"the ways differ: {sums}")
    return dict(found)


def _one(way: str, folder: str) -> Taken:
    command = [sys.executable, __file__, way, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr[-2_000:]}")
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def write(folder: Path, scale: float) -> None:
    """The history, in no order at all, and the entity rows."""
    rng = np.random.default_rng(67)
    rows = round(EVENTS * scale) // FILES
    (folder / "history").mkdir()
    for file in range(FILES):
        pq.write_table(
            pa.table(
                {
                    "customer_id": rng.integers(0, KEYS, rows),
                    "at": _moments(rng, rows),
                    "purchase_id": np.arange(rows) + file * rows,
                    "amount": rng.normal(50, 20, rows),
                }
            ),
            folder / "history" / f"{file}.parquet",
        )
    count = round(ENTITY_ROWS * scale)
    entities = {
        "customer_id": rng.integers(0, KEYS, count),
        "event_timestamp": _moments(rng, count),
    }
    pq.write_table(pa.table(entities), folder / "entities.parquet")


def _moments(rng: np.random.Generator, count: int) -> pa.Array:
    micros = rng.integers(0, DAYS * 86_400_000_000, count) + int(START.timestamp()) * 1_000_000
    return pa.array(micros).cast(pa.timestamp("us", "UTC"))


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    table = pq.read_table(folder / "entities.parquet")
    work = _duckdb if way == DUCKDB else _ours
    make = work(way, folder, table)
    began, used = time.perf_counter(), used_cpu_s()
    check = make()
    taken = Taken(time.perf_counter() - began, used_cpu_s() - used, peak_mb(), check)
    print(json.dumps(asdict(taken)))


def _ours(way: str, folder: Path, entities: pa.Table) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.aggregation import Aggregation
    from feast.types import Float64, Int64

    from feast_dynamo_ext import Series, ViewSettings, recent, windows

    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    source = FileSource(name="history", path=str(folder / "history"), timestamp_field="at")
    base = FeatureView(
        name="purchases",
        entities=[customer],
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="purchase_id", dtype=Int64),
            Field(name="amount", dtype=Float64),
        ],
        source=source,
        ttl=timedelta(0),
        tags=ViewSettings(series=Series(tie_breaker="purchase_id")).tags(),
    )
    spend = windows(
        base,
        name="spend",
        aggregations=[
            Aggregation(column="amount", function=function, time_window=timedelta(days=days))
            for function in ("sum", "count", "mean")
            for days in WINDOWS
        ],
    )
    last = recent(base, name="last", last=20, features=["amount"])
    config = RepoConfig(
        project="windows",
        provider="feast_dynamo_ext.DynamoProvider",
        registry=str(folder / f"{way}.db"),
        online_store={"type": "feast_dynamo_ext.DynamoOnlineStore", "region": "us-east-1"},
        offline_store={"type": "feast_dynamo_ext.S3ParquetOfflineStore", "region": "us-east-1"},
        entity_key_serialization_version=3,
    )
    config.repo_path = folder
    store = FeatureStore(config=config)
    for each in (base, spend, last):
        store.registry.apply_feature_view(each, "windows")
    store.registry.apply_entity(customer, "windows")
    features = {
        JOIN: ["purchases:amount"],
        WINDOW: [f"spend:{field.name}" for field in spend.features],
        LAST: ["last:amount_last_20"],
    }[way]

    def make() -> float:
        found = store.get_historical_features(entities, features).to_arrow()
        return pc.sum(found["sum_amount_30d"]).as_py() if way == WINDOW else float(len(found))

    return make


def _duckdb(_: str, folder: Path, entities: pa.Table) -> Any:
    import duckdb

    columns = ", ".join(
        f"{function}(h.amount) FILTER (h.at >= e.event_timestamp - INTERVAL {days} DAY) "
        f"AS {function}_amount_{days}d"
        for function in ("sum", "count", "avg")
        for days in WINDOWS
    )
    text = (
        f"SELECT e.row, {columns} FROM entities AS e LEFT JOIN "  # noqa: S608 - of numbers alone
        f"'{folder}/history/*.parquet' AS h ON e.customer_id = h.customer_id "
        f"AND h.at BETWEEN e.event_timestamp - INTERVAL {max(WINDOWS)} DAY AND e.event_timestamp "
        "GROUP BY e.row ORDER BY e.row"
    )
    entities = entities.append_column("row", pa.array(np.arange(len(entities))))

    def make() -> float:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("entities", entities)
            found = connection.sql(text).to_arrow_table()
        return pc.sum(found["sum_amount_30d"]).as_py()

    return make


def held(runs: Runs) -> bars.Held:
    """What has bars, round by round."""

    def ratio(one: str, other: str) -> bars.Figure:
        pairs = zip(runs[one], runs[other], strict=True)
        return bars.Figure.of([a.seconds / b.seconds for a, b in pairs])

    most = max(each.peak_mb for way in (WINDOW, LAST) for each in runs[way])
    return [
        (bars.Bar("3 windows/plain join", 2.5, at_least=False), ratio(WINDOW, JOIN)),
        (bars.Bar("3 windows/DuckDB's range join", 0.5, at_least=False), ratio(WINDOW, DUCKDB)),
        (bars.Bar("last 20/plain join", 3.0, at_least=False), ratio(LAST, JOIN)),
        (
            bars.Bar("peak memory of windows and lists", 1_500, " MB", at_least=False),
            bars.Figure.of([most]),
        ),
    ]


def as_json(runs: Runs) -> dict[str, Any]:
    return {way: [asdict(each) for each in taken] for way, taken in runs.items()}


def report(runs: Runs) -> str:
    def line(way: str) -> str:
        seconds, cpu, peak = (
            statistics.median(getattr(each, name) for each in runs[way])
            for name in ("seconds", "cpu_s", "peak_mb")
        )
        return f"{way}: {seconds:.2f} s, {cpu:.2f} s of CPU, {peak:,.0f} MB"

    return "\n".join(map(line, runs))


if __name__ == "__main__":
    main()
