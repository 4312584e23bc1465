"""What the stores have to reach, and whether they did.

Figures are compared round by round, as all clients had their turn under the same noise.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tabulate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from capture_files import Round as CaptureRound
    from harness import Measured, Sample, Series
    from materialize import Materialized, Runs
    from offline import Joined
    from stream_changes import Followed
    from tables import TableRuns
    from training_sets import Round

BASE, OURS, FLOOR = "Feast", "ours", "floor"


@dataclass(frozen=True)
class Figure:
    """One figure: in the median round, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def ratio(cls, base: Series, other: Series, figure: Callable[[Sample], float]) -> Figure:
        """How many times as much the base took."""
        return cls.of(
            [
                figure(mine) / figure(yours)
                for mine, yours in zip(base.rounds, other.rounds, strict=True)
            ]
        )

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach.

    Attributes:
        name: what is measured.
        limit: the figure has to be at least this, or at most.
        unit: of both.
        at_least: which of the two.
    """

    name: str
    limit: float
    unit: str = "x"
    at_least: bool = True

    def is_met(self, figure: Figure) -> bool:
        """By the median as it is, not as it is printed."""
        return figure.median >= self.limit if self.at_least else figure.median <= self.limit

    def line(self, figure: Figure) -> list[str]:
        digits = 2 if self.unit == "x" else 1
        return [
            self.name,
            f"{'>=' if self.at_least else '<='} {self.limit:g}{self.unit}",
            f"{figure.median:.{digits}f}{self.unit}",
            f"{figure.least:.{digits}f}-{figure.most:.{digits}f}",
            "yes" if self.is_met(figure) else "NO",
        ]


Held = list[tuple[Bar, Figure]]
"""Bars, each with the figure that is held against it."""

# Case -> Feast/ours in wall clock, in client CPU, and ours/floor in wall clock.
READS = {"1 x 5": (6.0, 7.0, 1.6), "1 x 25": (5.0, 9.0, 1.5), "100 x 5": (3.5, 5.0, 2.0)}
PRECOMPUTED = {"precomputed, 100 x 5": 10.0}  # Feast's plain read/ours, wall clock
WRITES = {"overwrite": 80.0, "newest wins": 120.0, "newest wins, new keys": 120.0}  # CPU us a row
BYTES = {"10 float64": 45.0, "50 float64": 40.0, "200 float64": 40.0}  # per cent of Feast's


MATERIALIZED_CPU = {"Local, overwrite": 70.0, "Local, newest wins": 110.0}  # us a row


# Case -> (who, beside whom, ours/theirs in wall clock).
JOINED_TABLES = {
    "3 views, tables": ("ours, tables", OURS, 1.2),
    "3 views, optimized": ("ours, optimized", "Feast, duckdb", 0.30),
}
LAST_APPEND = 2.0  # of the tenth's time
OPTIMIZE_MB = 1_500.0


def wall_ms(sample: Sample) -> float:
    return sample.p50_ms


def cpu_ms(sample: Sample) -> float:
    return sample.cpu_ms


def of_reads(measured: Measured) -> Held:
    """Of the cases that have bars: wall clock first, then CPU, then the floor."""
    held: tuple[Held, Held, Held] = ([], [], [])
    for case, (wall, cpu, floor) in READS.items():
        base, ours, bare = (measured[case][name] for name in (BASE, OURS, FLOOR))
        names = (f"Feast/ours, wall, {case}", f"Feast/ours, CPU, {case}", f"ours/floor, {case}")
        held[0].append((Bar(names[0], wall), Figure.ratio(base, ours, wall_ms)))
        held[1].append((Bar(names[1], cpu), Figure.ratio(base, ours, cpu_ms)))
        held[2].append((Bar(names[2], floor, at_least=False), Figure.ratio(ours, bare, wall_ms)))
    return [*held[0], *held[1], *held[2]]


def of_precomputed(measured: Measured) -> Held:
    return [
        (
            Bar(f"Feast/ours, wall, {case}", limit),
            Figure.ratio(measured[case][BASE], measured[case][OURS], wall_ms),
        )
        for case, limit in PRECOMPUTED.items()
    ]


def of_writes(measured: Measured, rows: Mapping[str, int]) -> Held:
    """Of the cases, with the rows a call of each."""
    return [
        (
            Bar(f"CPU a written row, {case}", limit, " us", at_least=False),
            row_us(measured[case][OURS], rows[case]),
        )
        for case, limit in WRITES.items()
    ]


def row_us(series: Series, rows: int) -> Figure:
    """Client CPU a row, in microseconds."""
    return Figure.of([sample.cpu_ms * 1_000 / rows for sample in series.rounds])


def of_bytes(sizes: Mapping[str, Mapping[str, Sequence[int]]]) -> Held:
    return [
        (Bar(f"bytes an item, {features}", limit, "%", at_least=False), percent(sizes[features]))
        for features, limit in BYTES.items()
    ]


def percent(sizes: Mapping[str, Sequence[int]]) -> Figure:
    """Our bytes of each row, as per cent of the bytes that Feast's store takes."""
    base, ours = statistics.median(sizes["feast"]), sizes["ours"]
    return Figure.of([size / base * 100 for size in ours])


SETS_PERCENT, SETS_MB = 40.0, 1_200.0


def of_sets(rounds: Sequence[Round]) -> Held:
    """Of builds of training sets: their speed beside pyarrow's writing, and their memory."""
    return [
        (
            Bar("training set/pyarrow's writing", SETS_PERCENT, "%"),
            Figure.of([each.percent for each in rounds]),
        ),
        (
            Bar("peak memory, training set", SETS_MB, " MB", at_least=False),
            Figure.of([each.build.peak_mb for each in rounds]),
        ),
    ]


def of_capture(rounds: Sequence[CaptureRound]) -> Held:
    """Of exports: rows a second of CPU, beside boto3's reading, two at once, and memory."""
    return [
        (
            Bar("captured rows, plain JSON", 250_000, "/s"),
            Figure.of([each.plain.rows_s for each in rounds]),
        ),
        (
            Bar("captured rows, gzip", 180_000, "/s"),
            Figure.of([each.gz.rows_s for each in rounds]),
        ),
        (
            Bar("captured rows, ours/json + boto3", 4.5),
            Figure.of([each.plain.rows_s / each.boto3.rows_s for each in rounds]),
        ),
        (Bar("two files at once/one", 1.5), Figure.of([each.scaling for each in rounds])),
        (
            Bar("peak memory, capture", 500, " MB", at_least=False),
            Figure.of([each.plain.peak_mb for each in rounds]),
        ),
    ]


def of_stream(rounds: Sequence[Followed]) -> Held:
    """Of a followed table: from the write of a change to its online answer."""
    return [
        (
            Bar("online after a change, p99", 1_000, " ms", at_least=False),
            Figure.of([each.p99_ms for each in rounds]),
        )
    ]


def of_materialize(runs: Runs) -> Held:
    """Rows/s beside Feast's, CPU a row, rows/s into the sink, peak memory."""
    feasts, sink, many = (runs[name] for name in ("Local, Feast", "sink, overwrite", "sink, x 10"))
    ours = runs["Local, overwrite"]
    grown = [more.peak_mb / less.peak_mb for more, less in zip(many, sink, strict=True)]
    return [
        (Bar("ours/Feast, rows/s, materialize", 3.0), rows_ratio(ours, feasts)),
        *(
            (
                Bar(f"CPU a materialized row, {case}", limit, " us", at_least=False),
                Figure.of([one.cpu_us for one in runs[case]]),
            )
            for case, limit in MATERIALIZED_CPU.items()
        ),
        (Bar("rows into the sink", 20_000, "/s"), Figure.of([one.rows_s for one in sink])),
        (
            Bar("peak memory, 10 M rows, 1 M keys", 700, " MB", at_least=False),
            Figure.of([one.peak_mb for one in many]),
        ),
        (Bar("its peak, 10 M/1 M rows", 1.15, at_least=False), Figure.of(grown)),
    ]


def rows_ratio(mine: Sequence[Materialized], base: Sequence[Materialized]) -> Figure:
    """How many times as many rows a second."""
    return Figure.of([one.rows_s / two.rows_s for one, two in zip(mine, base, strict=True)])


def of_tables(runs: TableRuns) -> Held:
    """Of the cases that were run, and of the contenders that came to an end."""
    tables = "ours, tables"
    held = [
        (Bar(f"{who}/{whom}", limit, at_least=False), found)
        for case, (who, whom, limit) in JOINED_TABLES.items()
        if case in runs.joined
        if (found := _seconds_ratio(runs.joined[case][who], runs.joined[case][whom])) is not None
    ]
    if runs.weeks:
        weeks = runs.weeks[tables]
        opened = Figure.of([one.opened for one in weeks])
        name = f"data files opened, a week of {weeks[0].files} days"
        held.append((Bar(name, weeks[0].wanted, "", at_least=False), opened))
    if runs.appends:
        done = runs.appends[tables]
        name = f"last/tenth of {len(done[0].times_ms):,} appends"
        growth = Figure.of([one.growth for one in done])
        held.append((Bar(name, LAST_APPEND, at_least=False), growth))
    if runs.rewrites:
        done = runs.rewrites[tables]
        name = f"peak, optimize of {done[0].bytes / 1e9:.1f} GB"
        peak = Figure.of([one.peak_mb for one in done])
        held.append((Bar(name, OPTIMIZE_MB, " MB", at_least=False), peak))
    return held


def _seconds_ratio(mine: Sequence[Joined], base: Sequence[Joined]) -> Figure | None:
    """How many times as long, round by round; None where one did not end."""
    pairs = [(one.seconds, two.seconds) for one, two in zip(mine, base, strict=True)]
    return None if None in sum(pairs, ()) else Figure.of([one / two for one, two in pairs])


def table(held: Held) -> str:
    return tabulate.tabulate(
        [bar.line(figure) for bar, figure in held],
        ["bar", "limit", "median", "range over rounds", "met"],
        disable_numparse=True,
        stralign="left",
    )


def as_json(held: Held) -> list[dict[str, object]]:
    return [
        {**vars(bar), "figure": vars(figure), "met": bar.is_met(figure)} for bar, figure in held
    ]
