"""Joins on Spark beside Feast's own Spark store: on local[2], 2 GB, each in a process of its own.

`spark_joins.py WAY FOLDER` is one way over the files of a folder, and prints its figures. The
session is there, and has run something, before the clock starts; the result is written as Parquet.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bars
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

VIEWS, FEATURES, FILES, DAYS = 3, 6, 8, 90
ROWS, ENTITY_ROWS = 10_000_000, 1_000_000
GROWTH = (1_000_000, 5_000_000, 20_000_000)
"""Rows a view; a tenth of them are entity rows."""
MOST_S = 900
CASES = ("join", "growth")
OURS, FEAST, HERE = "ours", "Feast's Spark store", "one machine, without Spark"
SPARK = {
    "spark.master": "local[2]",
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": "32",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
}
START = int(dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc).timestamp()) * 1_000_000


@dataclass(frozen=True)
class Taken:
    """One run of one way.

    Attributes:
        seconds: from the request to the last written file; `MOST_S` where it was stopped.
        cpu_s: of all processes.
        jvm_mb: resident memory of the JVM at most; 0 without one.
        python_mb: of the largest process of Python.
        total: sum of all features, which each way must find.
        failure: why there is no result; empty where there is one.
    """

    seconds: float
    cpu_s: float = 0
    jvm_mb: float = 0
    python_mb: float = 0
    total: float = 0
    failure: str = ""


Runs = dict[str, list[Taken]]


def run(rounds: int, scale: float = 1.0, *, growth: bool = True) -> Runs:
    """So many rounds of each way, and one run of each size."""
    found: Runs = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, round(ROWS * scale), round(ENTITY_ROWS * scale))
        for _ in range(rounds):
            for way in (OURS, FEAST, HERE):
                found[way].append(_one(way, folder))
    totals = [each.total for taken in found.values() for each in taken if not each.failure]
    if not np.allclose(totals, totals[0], rtol=1e-9):
        raise RuntimeError(f"the ways differ: {totals}")
    for rows in GROWTH if growth else ():
        with tempfile.TemporaryDirectory() as name:
            sized = round(rows * scale)
            write(Path(name), sized, sized // 10)
            found[_sized(rows)].append(_one(OURS, Path(name)))
    return dict(found)


def _sized(rows: int) -> str:
    return f"ours, {rows:,} rows a view"


def _one(way: str, folder: Path) -> Taken:
    command = [sys.executable, __file__, way, str(folder)]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=MOST_S + 120)
        except subprocess.TimeoutExpired:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            return Taken(MOST_S, failure=f"stopped after {MOST_S} s")
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
    if process.returncode:
        errors = [line for line in lines if "Error" in line or "Exception" in line]
        return Taken(MOST_S, failure=(errors or lines or ["no message"])[-1][:200])
    return Taken(**json.loads(out.splitlines()[-1]))


def write(folder: Path, rows: int, entity_rows: int) -> None:
    """The histories, in no order at all, and the entity rows."""
    rng = np.random.default_rng(17)
    customers = max(1, rows // 20)
    for view in range(VIEWS):
        (folder / f"v{view}").mkdir()
        for file in range(FILES):
            count = rows // FILES
            columns = {
                "cid": rng.integers(0, customers, count),
                "at": _moments(rng, count),
                "made": _moments(rng, count),
            }
            columns |= {f"f{view}_{at}": rng.random(count) for at in range(FEATURES)}
            pq.write_table(pa.table(columns), folder / f"v{view}" / f"{file}.parquet")
    asked = {
        "cid": rng.integers(0, customers, entity_rows),
        "event_timestamp": _moments(rng, entity_rows),
    }
    pq.write_table(pa.table(asked), folder / "entities.parquet")


def _moments(rng: np.random.Generator, count: int) -> pa.Array:
    micros = rng.integers(0, DAYS * 86_400_000_000, count) + START
    return pa.array(micros).cast(pa.timestamp("us", "UTC"))


class NoRegistry:
    """A registry without on-demand views, which is all that a retrieval asks for."""

    def list_on_demand_feature_views(self, *_: Any, **__: Any) -> list[Any]:
        return []


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    entities = pq.read_table(folder / "entities.parquet").to_pandas()
    job = _feasts(folder, entities) if way == FEAST else _ours(way, folder, entities)
    if way != HERE:
        _warm()
    began = time.perf_counter()
    out = folder / f"out of {way}"
    if way == HERE:
        table = job().to_arrow()
        out.mkdir(exist_ok=True)
        pq.write_table(table, out / "all.parquet")
    else:
        job().to_spark_df().write.mode("overwrite").parquet(str(out))
    seconds = time.perf_counter() - began
    names = [f"f{view}_{at}" for view in range(VIEWS) for at in range(FEATURES)]
    found = pq.read_table(out, columns=names)
    total = sum(float(np.nansum(found.column(name).to_numpy())) for name in names)
    print(json.dumps(asdict(dataclasses.replace(_used(seconds), total=total))), flush=True)
    os._exit(0)  # Spark's own end takes seconds


def _warm() -> None:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder
    for name, value in SPARK.items():
        builder = builder.config(name, value)
    builder.getOrCreate().range(1_000).selectExpr("sum(id)").collect()


def _used(seconds: float) -> Taken:
    me = psutil.Process()
    cpu = jvm = python = 0.0
    for process in [me, *me.children(recursive=True)]:
        times = process.cpu_times()
        cpu += times.user + times.system + times.children_user + times.children_system
        peak = _peak_mb(process.pid)
        if "java" in process.name():
            jvm = max(jvm, peak)
        else:
            python = max(python, peak)
    return Taken(seconds, cpu, jvm, python)


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024


def _views(source: Any) -> list[Any]:
    from feast import Entity, FeatureView, Field, ValueType
    from feast.types import Float64, Int64

    customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    return [
        FeatureView(
            name=f"v{view}",
            entities=[customer],
            schema=[
                Field(name="cid", dtype=Int64),
                *(Field(name=f"f{view}_{at}", dtype=Float64) for at in range(FEATURES)),
            ],
            source=source(view),
            ttl=dt.timedelta(days=30),
        )
        for view in range(VIEWS)
    ]


def _config(folder: Path, offline: dict[str, Any]) -> Any:
    from feast import RepoConfig

    config = RepoConfig(
        project="p",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store=None,
        offline_store=offline,
        entity_key_serialization_version=3,
    )
    config.repo_path = folder
    return config


REFS = [f"v{view}:f{view}_{at}" for view in range(VIEWS) for at in range(FEATURES)]


def _ours(way: str, folder: Path, entities: Any) -> Any:
    from feast import FileSource

    from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

    def source(view: int) -> FileSource:
        return FileSource(
            name=f"s{view}",
            path=str(folder / f"v{view}"),
            timestamp_field="at",
            created_timestamp_column="made",
        )

    offline: dict[str, Any] = {"type": "feast_dynamo_ext.S3ParquetOfflineStore"}
    offline |= {"engine": "spark", "spark_conf": SPARK} if way == OURS else {}
    asked = (_config(folder, offline), _views(source), REFS, entities, NoRegistry(), "p")
    return lambda: S3ParquetOfflineStore.get_historical_features(*asked)


def _feasts(folder: Path, entities: Any) -> Any:
    from feast.infra.offline_stores.contrib.spark_offline_store import spark, spark_source

    def source(view: int) -> Any:
        return spark_source.SparkSource(
            name=f"s{view}",
            path=str(folder / f"v{view}"),
            file_format="parquet",
            timestamp_field="at",
            created_timestamp_column="made",
        )

    config = _config(folder, {"type": "spark", "spark_conf": SPARK})
    asked = (config, _views(source), REFS, entities, NoRegistry(), "p")
    return lambda: spark.SparkOfflineStore.get_historical_features(*asked)


def held(runs: Runs) -> bars.Held:
    """What has bars, round by round."""
    pairs = zip(runs[OURS], runs[FEAST], strict=True)
    found: bars.Held = [
        (
            bars.Bar("on Spark, ours/Feast's", 0.5, at_least=False),
            bars.Figure.of([mine.seconds / yours.seconds for mine, yours in pairs]),
        )
    ]
    sized = [(rows, runs[_sized(rows)][0]) for rows in GROWTH if _sized(rows) in runs]
    if sized:
        (first, least), (last, most) = sized[0], sized[-1]
        ratio = (most.seconds / last) / (least.seconds / first)
        found.append(
            (
                bars.Bar("on Spark, time a row at 20 M/at 1 M", 1.3, at_least=False),
                bars.Figure.of([ratio]),
            )
        )
    return found


def as_json(runs: Runs) -> dict[str, Any]:
    return {way: [asdict(each) for each in taken] for way, taken in runs.items()}


def report(runs: Runs) -> str:
    def line(way: str) -> str:
        failures = [each.failure for each in runs[way] if each.failure]
        if failures:
            return f"{way}: {failures[0]}"
        names = ("seconds", "cpu_s", "jvm_mb", "python_mb")
        seconds, cpu, jvm, python = (
            statistics.median(getattr(each, name) for each in runs[way]) for name in names
        )
        used = f"{cpu:.1f} s of CPU, JVM {jvm:,.0f} MB, Python {python:,.0f} MB"
        return f"{way}: {seconds:.1f} s, {used}"

    return "\n".join(map(line, runs))


if __name__ == "__main__":
    main()
