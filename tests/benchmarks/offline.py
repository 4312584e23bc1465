"""`FeatureStore.get_historical_features`: ours beside Feast's stores, DuckDB's ASOF JOIN, a scan.

Each run is a process of its own (`offline_client.py`) on the same files. One that takes too long
or too much memory is killed, and that is its figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bars import BASE, OURS
from harness import Command
from offline_data import Dataset
from offline_files import Place, written
from offline_limits import Limits, watched
from offline_s3 import BUCKET, SERVERS

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
OUR_PYTHON = Path(sys.executable)
FEAST_PYTHON = HERE.parents[1] / ".venv-bench" / "bin" / "python"
TABLES, OPTIMIZED = f"{OURS}, tables", f"{OURS}, optimized"
DUCKDB, DASK, ASOF = f"{BASE}, duckdb", f"{BASE}, dask", "DuckDB ASOF"
SCANS = ("scan, pyarrow", "scan, DuckDB")
CONTENDERS = {  # what `offline_client.py` calls them
    OURS: "store feast_dynamo_ext.S3ParquetOfflineStore",
    TABLES: "store feast_dynamo_ext.S3ParquetOfflineStore",
    OPTIMIZED: "store feast_dynamo_ext.S3ParquetOfflineStore",
    DUCKDB: "store duckdb",
    DASK: "store dask",
    ASOF: "asof",
    SCANS[0]: "scan_pyarrow",
    SCANS[1]: "scan_duckdb",
}
FREE_DISK_MB = 5_000
MEMORY_MB, SPARE_MB = 20_000, 1_500
TIME_S, FULL_TIME_S = 120.0, 1_200.0

YEAR = Dataset(views=3, rows=10_000_000, files=10, features=10, keys=500_000, entities=1_000_000)
SKEWED = dataclasses.replace(YEAR, views=1, hot_keys=5_000)
HOT = dataclasses.replace(YEAR, views=1, hot_keys=1)
# moto holds all files in memory, and sends them slowly.
TENTH = dataclasses.replace(YEAR, rows=1_000_000, keys=50_000, entities=100_000)
WIDE = Dataset(views=10, rows=204_000, files=4, features=100, keys=17_000, entities=17_000)
LARGE = Dataset(
    views=1, rows=100_000_000, files=100, features=10, keys=5_000_000, entities=5_000_000
)


@dataclass(frozen=True)
class OfflineCase:
    """A training set.

    Attributes:
        name: what reports call it.
        dataset: history and entity rows.
        contenders: who makes it; those of `once` in the first round alone.
        views: how many of the dataset's views; 0: all.
        on: where the history is: `disk`, `S3` (a server with a delay to the first byte), `moto`.
        to_parquet: from entity rows in a file to Parquet files, rather than to an Arrow table.
        once: contenders of one round.
    """

    name: str
    dataset: Dataset
    contenders: tuple[str, ...]
    views: int = 0
    on: str = "disk"
    to_parquet: bool = False
    once: tuple[str, ...] = (DASK,)


@dataclass(frozen=True)
class Joined:
    """What one process did.

    Attributes:
        case: what it was told to do.
        contender: who it was.
        seconds: wall clock of the call; None if it did not end.
        cpu_s: CPU time of the call, all threads.
        start_mb: peak memory before the call.
        peak_mb: peak memory of the process.
        answer: what was wrong with the rows, or why there are none.
        digest: of all rows, in whatever order; empty where it is not asked for.
    """

    case: OfflineCase
    contender: str
    seconds: float | None = None
    cpu_s: float = 0.0
    start_mb: float = 0.0
    peak_mb: float = 0.0
    answer: str = ""
    digest: str = ""

    @property
    def is_join(self) -> bool:
        return self.contender not in SCANS

    def __str__(self) -> str:
        seconds = "no end" if self.seconds is None else f"{self.seconds:.1f} s"
        figures = f"{seconds}, {self.cpu_s:.1f} s of CPU, {self.peak_mb:,.0f} MB"
        return f"{self.case.name}, {self.contender}: {figures} {self.answer}".rstrip()

    def printed(self) -> dict[str, Any]:
        return {**vars(self), "case": self.case.name}


OfflineRuns = dict[str, dict[str, list[Joined]]]
"""By name of the case and contender, one a round."""


def cases(*, full: bool = False, scale: float = 1.0) -> list[OfflineCase]:
    """All cases.

    Args:
        full: 100 M rows too, and Feast's store on hot keys, which it may take minutes over.
        scale: of the number of rows; anything but 1 is to try out the benchmark itself.
    """
    year = (OURS, DUCKDB, DASK, ASOF, *SCANS)
    hot = (OURS, DUCKDB) if full else (OURS,)
    todo = [
        OfflineCase("3 views", YEAR, year),
        OfflineCase("3 views, S3", YEAR, (OURS, DASK, SCANS[0]), on="S3"),
        OfflineCase("even keys", YEAR, (OURS,), views=1),
        OfflineCase("1% of keys hot", SKEWED, hot, once=(DUCKDB,)),
        OfflineCase("one key hot", HOT, hot, once=(DUCKDB,)),
        OfflineCase("1,000 features", WIDE, (OURS, DUCKDB, DASK)),
    ]
    todo.append(OfflineCase("3 views, moto", TENTH, (OURS, DASK, SCANS[0]), on="moto"))
    if full:
        large = (OURS, DUCKDB)
        todo += [OfflineCase("100 M rows", LARGE, large, to_parquet=True, once=large)]
    return [dataclasses.replace(case, dataset=scaled(case.dataset, scale)) for case in todo]


def scaled(dataset: Dataset, scale: float) -> Dataset:
    """So many times the rows, keys and entity rows."""
    return dataclasses.replace(
        dataset,
        rows=max(1, round(dataset.rows * scale / dataset.files)) * dataset.files,
        **{
            name: max(1, round(getattr(dataset, name) * scale))
            for name in ("keys", "entities", "hot_keys")
            if getattr(dataset, name)
        },
    )


def run(rounds: int, todo: Sequence[OfflineCase], *, full: bool = False) -> OfflineRuns:
    """Run all cases, every other round the other way round.

    Args:
        rounds: how often.
        todo: the cases; those of one dataset stand together.
        full: leave slow contenders more time.
    """
    limits = limits_of(full=full)
    runs: OfflineRuns = {case.name: {one: [] for one in case.contenders} for case in todo}
    for dataset, of_dataset in groupby(todo, key=lambda case: case.dataset):
        with written(dataset) as place:
            _run_cases(place, list(of_dataset), rounds, limits, runs)
    return runs


def _run_cases(
    place: Place, todo: list[OfflineCase], rounds: int, limits: Limits, runs: OfflineRuns
) -> None:
    turns = [(case, contender) for case in todo for contender in case.contenders]
    names = [place.warm.name, place.measured.name]
    with contextlib.ExitStack() as stack:
        endpoints = {
            on: stack.enter_context(SERVERS[on](place.folder, names))
            for on in dict.fromkeys(case.on for case in todo if case.on != "disk")
        }
        for number in range(rounds):
            for case, contender in reversed(turns) if number % 2 else turns:
                if number == 0 or contender not in case.once:
                    done = run_one(place, case, contender, limits, endpoints.get(case.on))
                    print(done, file=sys.stderr, flush=True)
                    runs[case.name][contender].append(done)


def run_one(
    place: Place,
    case: OfflineCase,
    contender: str,
    limits: Limits,
    endpoint: str | None = None,
    tables: Path | None = None,
) -> Joined:
    """Let a contender make a training set.

    Args:
        place: its history.
        case: what it is.
        contender: who makes it.
        limits: of its process.
        endpoint: S3's URL.
        tables: folder of the history tables that `TABLES` and `OPTIMIZED` read; where there are
            any, all rows of the answer are digested.
    """
    with tempfile.TemporaryDirectory(dir=place.folder) as scratch:
        settings = {
            "contender": CONTENDERS[contender],
            "scratch": scratch,
            "views": case.views or case.dataset.views,
            "to_parquet": case.to_parquet,
            "endpoint": endpoint,
            "bucket": BUCKET,
            "is_join": contender not in SCANS,
            "is_digested": tables is not None,
            "tables": str(tables) if contender in (TABLES, OPTIMIZED) else None,
            "warm": place.settings(place.warm),
            "measured": place.settings(place.measured),
        }
        python = FEAST_PYTHON if contender in (DUCKDB, DASK) else OUR_PYTHON
        script = (str(HERE / "offline_client.py"), json.dumps(settings))
        ended = watched(Command(contender, python, script), Path(scratch), limits)
    if ended.failure:
        done = Joined(case, contender, peak_mb=ended.peak_mb, answer=ended.failure)
    else:
        done = Joined(case, contender, **json.loads(ended.printed))
    if done.answer and contender.startswith(OURS):
        raise RuntimeError(f"{case.name}, {contender}: {done.answer}.")
    return done


def limits_of(*, full: bool) -> Limits:
    """What a contender may take: not all memory that is free, or the machine kills others too."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    (free_kb,) = (int(line[1]) for line in lines if line[0] == "MemAvailable:")
    memory_mb = min(MEMORY_MB, free_kb / 1024 - SPARE_MB)
    return Limits(FULL_TIME_S if full else TIME_S, memory_mb, FREE_DISK_MB)
