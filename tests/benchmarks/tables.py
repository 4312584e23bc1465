"""History tables: beside the same rows in plain files, beside Feast, DuckDB and pyiceberg.

Each step is a process of its own (`tables_client.py`; for training sets `offline_client.py`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bars import OURS
from harness import Command
from offline import DUCKDB, OPTIMIZED, TABLES, YEAR, OfflineCase, limits_of, run_one, scaled
from offline_files import written
from offline_limits import watched

import feast_dynamo_ext

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from offline import Joined, OfflineRuns
    from offline_data import Dataset
    from offline_files import Place
    from offline_limits import Limits

HERE = Path(__file__).parent
OPTIMIZE = Path(feast_dynamo_ext.__file__).parent / "parquet" / "iceberg" / "optimize.py"
NAMES = ("joins", "week", "appends", "optimize")
AS_TABLES, AS_OPTIMIZED = "3 views, tables", "3 views, optimized"
PLAIN, PYICEBERG, SORTED = f"{OURS}, plain files", "pyiceberg, its defaults", "DuckDB, sorted copy"

TIMED_APPENDS = (10, 100, 500, 1_000)
AROUND = 9  # appends, of which the median is taken
LONG_S = 3_600.0  # for what writes gigabytes


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        history: views and entity rows of the training sets.
        rows_a_day: of two years.
        days: of these.
        appends: to one table.
        optimized_bytes: of the files that are rewritten.
        file_rows: of each of them.
    """

    history: Dataset = YEAR
    rows_a_day: int = 500
    days: int = 730
    appends: int = 1_000
    optimized_bytes: float = 5e9
    file_rows: int = 50_000

    @classmethod
    def scaled(cls, scale: float) -> Sizes:
        """Anything but 1 is to try out the benchmark itself; days stay as many as they are."""
        full = cls()
        return cls(
            scaled(full.history, scale),
            max(10, round(full.rows_a_day * min(1.0, scale))),
            appends=max(2 * AROUND, round(full.appends * scale)),
            optimized_bytes=full.optimized_bytes * scale,
            file_rows=max(500, round(full.file_rows * min(1.0, scale))),
        )


WEEK_DAY, WEEK_TTL_DAYS = 0.8, 1
"""The week begins after so much of the two years; its rows may be so many days old."""


@dataclass(frozen=True)
class Process:
    """What one process took.

    Attributes:
        contender: who it was.
        seconds: wall clock of what is measured.
        cpu_s: CPU time of it, all threads.
        start_mb: peak memory before.
        peak_mb: peak memory of the process, or of it and its children as they were seen.
    """

    contender: str
    seconds: float
    cpu_s: float
    start_mb: float
    peak_mb: float


@dataclass(frozen=True)
class Opened(Process):
    """A training set of one week, and the data files that were opened for it.

    Attributes:
        files: of two years, one a day.
        opened: of these.
        wanted: days that the week's rows may come from.
        found: rows with values.
        digest: of the training set.
    """

    files: int
    opened: int
    wanted: int
    found: int
    digest: str


@dataclass(frozen=True)
class Rewritten(Process):
    """A table rewritten in order.

    Attributes:
        bytes: of the files before.
        files_before: their number.
        files_after: the number of those in their place.
    """

    bytes: int
    files_before: int
    files_after: int

    @property
    def mb_s(self) -> float:
        return self.bytes / 1e6 / self.seconds


@dataclass(frozen=True)
class Appended:
    """Appends in one process, one after another.

    Attributes:
        contender: who made them.
        times_ms: of each.
        metadata_files: that are there in the end.
        metadata_bytes: of these.
    """

    contender: str
    times_ms: Sequence[float]
    metadata_files: int
    metadata_bytes: int

    @property
    def timed(self) -> list[int]:
        """Numbers of the appends that are reported, the last one included."""
        last = len(self.times_ms)
        return [*(number for number in TIMED_APPENDS if number < last), last]

    def ms_at(self, number: int) -> float:
        """The median of an append and those around it."""
        first = max(0, min(number - 1 - AROUND // 2, len(self.times_ms) - AROUND))
        return statistics.median(self.times_ms[first : first + AROUND])

    @property
    def growth(self) -> float:
        """How many times as long as the tenth the last took."""
        return self.ms_at(len(self.times_ms)) / self.ms_at(TIMED_APPENDS[0])


@dataclass
class TableRuns:
    """All that was measured: by contender, one a round.

    Attributes:
        joined: training sets, by case.
        writes: what was written for them and how fast, in words.
        weeks: training sets of one week.
        appends: many appends.
        rewrites: a table rewritten.
        skipped: what was not measured, and why.
    """

    joined: OfflineRuns = dataclasses.field(default_factory=dict)
    writes: list[str] = dataclasses.field(default_factory=list)
    weeks: dict[str, list[Opened]] = dataclasses.field(default_factory=dict)
    appends: dict[str, list[Appended]] = dataclasses.field(default_factory=dict)
    rewrites: dict[str, list[Rewritten]] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)


def run(
    rounds: int, names: Collection[str] = NAMES, sizes: Sizes | None = None, *, full: bool = False
) -> TableRuns:
    """Run cases.

    Args:
        rounds: how often; what rewrites gigabytes runs once.
        names: of `NAMES`.
        sizes: how much is done.
        full: leave slow contenders more time, and pyiceberg's own appends too.
    """
    sizes, limits, runs = sizes or Sizes(), limits_of(full=full), TableRuns()
    cases = {
        "joins": lambda: run_joins(rounds, sizes, limits, runs),
        "week": lambda: run_week(rounds, sizes, limits, runs),
        "appends": lambda: run_appends(rounds, sizes, limits, runs, full=full),
        "optimize": lambda: run_optimize(sizes, limits, runs),
    }
    for name in NAMES:
        if name in names:
            cases[name]()
    return runs


def has_optimize() -> bool:
    return OPTIMIZE.exists()


# Training sets


def run_joins(rounds: int, sizes: Sizes, limits: Limits, runs: TableRuns) -> None:
    """Plain files and tables of the same rows in turn; then the tables are optimized."""
    dataset = sizes.history
    with written(dataset) as place, tempfile.TemporaryDirectory(dir=place.folder) as folder:
        check_disk(place.folder, 3 * dataset.estimated_bytes)
        tables = Path(folder)
        made = step("write", OURS, limits, tables, written_to(place, tables))
        speed = made["rows"] / made["seconds"]
        runs.writes.append(
            f"{made['rows']:,} rows into {dataset.views} tables by {made['partition']}, one "
            f"append a file: {made['seconds']:.1f} s, {speed:,.0f} rows/s."
        )
        case = OfflineCase(AS_TABLES, dataset, (OURS, TABLES))
        runs.joined |= join(place, case, rounds, limits, tables)
        if not has_optimize():
            runs.skipped.append(f"{AS_OPTIMIZED}: this version has no `optimize`.")
            return
        named = {"folder": str(tables / dataset.name), "tables": dataset.view_names()}
        done = Rewritten(OURS, **step("optimize", OURS, limits, tables, named))
        runs.writes.append(
            f"Optimized in {done.seconds:.1f} s, {done.peak_mb:,.0f} MB at most: "
            f"{done.files_before:,} files became {done.files_after:,}."
        )
        case = OfflineCase(AS_OPTIMIZED, dataset, (OURS, OPTIMIZED, DUCKDB))
        runs.joined |= join(place, case, rounds, limits, tables)


def written_to(place: Place, tables: Path) -> dict[str, Any]:
    """What `offline_client.task` takes."""
    return {
        "endpoint": None,
        "views": place.measured.views,
        "to_parquet": False,
        "tables": str(tables),
        "warm": place.settings(place.warm),
        "measured": place.settings(place.measured),
    }


def join(
    place: Place, case: OfflineCase, rounds: int, limits: Limits, tables: Path
) -> OfflineRuns:
    """All contenders in turn; ours must all give the same rows.

    Raises:
        RuntimeError: they do not.
    """
    runs: dict[str, list[Joined]] = {contender: [] for contender in case.contenders}
    for number in range(rounds):
        for contender in reversed(case.contenders) if number % 2 else case.contenders:
            done = run_one(place, case, contender, limits, tables=tables)
            print(done, file=sys.stderr, flush=True)
            runs[contender].append(done)
    right = runs[OURS][0].digest
    for contender, done in runs.items():
        for number, one in enumerate(done):
            if one.answer or one.digest == right:
                continue
            if contender.startswith(OURS):
                raise RuntimeError(f"{case.name}, {contender}: other rows than from plain files.")
            done[number] = dataclasses.replace(one, answer="other rows than ours")
    return {case.name: runs}


# A week of two years


def run_week(rounds: int, sizes: Sizes, limits: Limits, runs: TableRuns) -> None:
    first = round(sizes.days * WEEK_DAY)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "folder": str(Path(folder, "data")),
            "days": {"warm": 10, "week": sizes.days},
            "rows": sizes.rows_a_day,
            "keys": max(10, sizes.rows_a_day // 2),
            "features": YEAR.features,
            "entities": 10 * sizes.rows_a_day,
            "ttl_days": WEEK_TTL_DAYS,
            "warm": "warm",
            "view": "week",
            "first_day": first,
        }
        step("week data", OURS, limits, Path(folder), settings)
        contenders = {PLAIN: False, TABLES: True}
        for number in range(rounds):
            for contender in reversed(contenders) if number % 2 else contenders:
                given = {**settings, "is_table": contenders[contender]}
                figures = step("week", contender, limits, Path(folder), given)
                done = Opened(contender, wanted=7 + WEEK_TTL_DAYS, **figures)
                runs.weeks.setdefault(contender, []).append(done)
    seen = {one.digest for done in runs.weeks.values() for one in done}
    found = runs.weeks[TABLES][0].found
    if len(seen) > 1 or not found:
        raise RuntimeError("A week of two years: tables and plain files give different rows.")


# Many appends


def run_appends(
    rounds: int, sizes: Sizes, limits: Limits, runs: TableRuns, *, full: bool = False
) -> None:
    contenders = {TABLES: True, **({PYICEBERG: False} if full else {})}
    for number in range(rounds):
        for contender in reversed(contenders) if number % 2 else contenders:
            with tempfile.TemporaryDirectory() as folder:
                settings = {
                    "folder": str(Path(folder, "tables")),
                    "appends": sizes.appends,
                    "rows": 100,
                    "keys": 1_000,
                    "features": YEAR.features,
                    "is_ours": contenders[contender],
                }
                figures = step("append", contender, limits, Path(folder), settings)
            runs.appends.setdefault(contender, []).append(Appended(contender, **figures))


# Optimize


def run_optimize(sizes: Sizes, limits: Limits, runs: TableRuns) -> None:
    """One partition, so that all of it has to be sorted with the memory that there is."""
    if not has_optimize():
        runs.skipped.append("optimize: this version has none.")
        return
    with tempfile.TemporaryDirectory() as folder:
        check_disk(Path(folder), 4 * sizes.optimized_bytes)
        settings = {
            "folder": str(Path(folder, "tables")),
            "table": "large",
            "tables": ["large"],
            "bytes": sizes.optimized_bytes,
            "files": 10,
            "rows": sizes.file_rows,
            "keys": 500_000,
            "features": YEAR.features,
            "memory": "1GB",
        }
        step("fill", OURS, limits, Path(folder), settings)
        before = step("checksum", OURS, limits, Path(folder), settings)
        for contender, do in ((SORTED, "sorted copy"), (TABLES, "optimize")):
            try:
                figures = step(do, contender, limits, Path(folder), settings)
            except RuntimeError as error:
                if contender == TABLES:
                    raise
                runs.skipped.append(str(error))
                continue
            runs.rewrites[contender] = [Rewritten(contender, **figures)]
        after = step("checksum", OURS, limits, Path(folder), settings)
    if before != after:
        raise RuntimeError("optimize: the table has other rows than before.")


# Processes


def step(
    do: str, contender: str, limits: Limits, folder: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Run a step of `tables_client.py` in a process of its own.

    Returns:
        What it printed; where that has its peak memory, with that of its children.

    Raises:
        RuntimeError: it did not end well.
    """
    limits = dataclasses.replace(limits, seconds=LONG_S)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        script = (str(HERE / "tables_client.py"), do, json.dumps({**settings, "scratch": scratch}))
        ended = watched(Command(contender, Path(sys.executable), script), Path(scratch), limits)
    if ended.failure:
        raise RuntimeError(f"{do}, {contender}: {ended.failure}.")
    figures: dict[str, Any] = json.loads(ended.printed)
    if "peak_mb" in figures:
        figures["peak_mb"] = max(figures["peak_mb"], ended.peak_mb)
        about = f"{figures['seconds']:.1f} s, {figures['peak_mb']:,.0f} MB"
        print(f"{do}, {contender}: {about}", file=sys.stderr, flush=True)
    return figures


def check_disk(folder: Path, needed: float) -> None:
    """Refuse to begin what the disk does not hold.

    Raises:
        RuntimeError: says what is missing.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RuntimeError(
            f"{folder}: {free / 1e9:.1f} GB are free, and the tables need {needed / 1e9:.1f} GB. "
            "Free some, or set TMPDIR to another disk."
        )
