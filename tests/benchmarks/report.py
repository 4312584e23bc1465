"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tabulate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness import Sample, Series

# Else each column is two blanks wider, and the table wider than most terminals.
tabulate.MIN_PADDING = 0

BASE, OURS, FLOOR = "Feast", "ours", "floor"
HEADERS = (
    "entities",
    *(f"p50 ms\n{name}" for name in (BASE, OURS, FLOOR)),
    "Feast/ours\n(range)",
    *(f"CPU ms\n{name}" for name in (BASE, OURS, FLOOR)),
    "Feast/ours\n(range)",
    *(f"p95 ms\n{name}" for name in (BASE, OURS, FLOOR)),
    "calls\neach",
)


@dataclass(frozen=True)
class Ratio:
    """How many times as much the base took: in the median round, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, base: Series, other: Series, figure: Callable[[Sample], float]) -> Ratio:
        """Round by round, as both had their turn under the same noise."""
        ratios = [
            figure(mine) / figure(yours)
            for mine, yours in zip(base.rounds, other.rounds, strict=True)
        ]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.least:.1f}-{self.most:.1f})"


def ratios(series: Mapping[str, Series]) -> tuple[Ratio, Ratio]:
    """Of wall clock (p50) and of client CPU."""
    base, ours = series[BASE], series[OURS]
    return (
        Ratio.of(base, ours, lambda sample: sample.p50_ms),
        Ratio.of(base, ours, lambda sample: sample.cpu_ms),
    )


def table(measured: Mapping[int, Mapping[str, Series]]) -> str:
    """One line a case."""
    lines = []
    for size, series in measured.items():
        wall, cpu = ratios(series)
        in_order = [series[name] for name in (BASE, OURS, FLOOR)]
        lines.append(
            [
                size,
                *(f"{one.p50_ms:.2f}" for one in in_order),
                str(wall),
                *(f"{one.cpu_ms:.2f}" for one in in_order),
                str(cpu),
                *(f"{one.p95_ms:.2f}" for one in in_order),
                series[OURS].calls,
            ]
        )
    return tabulate.tabulate(lines, HEADERS, disable_numparse=True, stralign="right")


def about_table(about: Mapping[str, Mapping[str, Any]]) -> str:
    """Peak memory and versions, one line a client process."""
    packages = list(dict.fromkeys(name for one in about.values() for name in one["versions"]))
    lines = [
        [client, f"{one['peak_mb']:.0f}", *(one["versions"].get(name, "-") for name in packages)]
        for client, one in about.items()
    ]
    return tabulate.tabulate(lines, ["process", "peak MB", *packages], disable_numparse=True)


def machine() -> dict[str, Any]:
    """What it ran on. The load before the run tells whether others were using it."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": os.cpu_count(),
        "processor": model[0] if model else "unknown",
        "load_before": round(os.getloadavg()[0], 2),
    }


def as_json(measured: Mapping[int, Mapping[str, Series]]) -> list[dict[str, Any]]:
    """One entry a case, with the figures of each round."""
    return [
        {
            "entities": size,
            "wall_ratio": vars(ratios(series)[0]),
            "cpu_ratio": vars(ratios(series)[1]),
            "clients": {name: _series(one) for name, one in series.items()},
        }
        for size, series in measured.items()
    ]


def _series(series: Series) -> dict[str, Any]:
    return {
        "p50_ms": series.p50_ms,
        "p95_ms": series.p95_ms,
        "cpu_ms_per_call": series.cpu_ms,
        "calls": series.calls,
        "p50_ms_by_round": [sample.p50_ms for sample in series.rounds],
        "cpu_ms_per_call_by_round": [sample.cpu_ms for sample in series.rounds],
    }
