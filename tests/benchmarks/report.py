"""What was measured, as tables for people and as JSON for programs."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tabulate
from bars import BASE, FLOOR, OURS, Figure, cpu_ms, percent, row_us, wall_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness import Measured, Sample, Series
    from materialize import Materialized, Runs
    from offline import Joined, OfflineRuns
    from tables import Appended, Opened, Rewritten, TableRuns

CLIENTS = (BASE, OURS, FLOOR)


def wall_table(measured: Measured) -> str:
    """Wall clock of reads, one line a case."""
    lines = [
        [
            case,
            *_each(series, lambda one: one.p50_ms),
            _ratio(series, BASE, OURS, wall_ms),
            _ratio(series, OURS, FLOOR, wall_ms),
            *_each(series, lambda one: one.p95_ms),
            series[OURS].calls,
        ]
        for case, series in measured.items()
    ]
    return _table(
        lines,
        [
            "wall clock",
            *(f"p50 ms\n{name}" for name in CLIENTS),
            "Feast/ours\n(range)",
            "ours/floor\n(range)",
            *(f"p95 ms\n{name}" for name in CLIENTS),
            "calls\neach",
        ],
    )


def cpu_table(measured: Measured) -> str:
    """Client CPU of reads, one line a case."""
    lines = [
        [
            case,
            *_each(series, lambda one: one.cpu_ms),
            _ratio(series, BASE, OURS, cpu_ms),
            _ratio(series, OURS, FLOOR, cpu_ms),
        ]
        for case, series in measured.items()
    ]
    return _table(
        lines,
        [
            "client CPU",
            *(f"ms a call\n{name}" for name in CLIENTS),
            "Feast/ours\n(range)",
            "ours/floor\n(range)",
        ],
    )


def write_table(measured: Measured, rows: Mapping[str, int]) -> str:
    """Writes, one line a case; `rows` are those of a call."""
    lines = [
        [
            case,
            *(
                f"{row_us(series[name], rows[case]).median:.0f}" if name in series else "-"
                for name in (BASE, OURS)
            ),
            _ratio(series, BASE, OURS, cpu_ms),
            *(
                f"{rows[case] / series[name].p50_ms * 1_000:,.0f}" if name in series else "-"
                for name in (BASE, OURS)
            ),
            f"{series[OURS].calls * rows[case]:,}",
        ]
        for case, series in measured.items()
    ]
    return _table(
        lines,
        [
            "writes",
            *(f"CPU us a row\n{name}" for name in (BASE, OURS)),
            "Feast/ours\n(range)",
            *(f"rows/s\n{name}" for name in (BASE, OURS)),
            "rows\neach",
        ],
    )


def bytes_table(sizes: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """Stored bytes, one line a kind of view."""
    lines = [
        [
            features,
            *(f"{statistics.median(of_store[store]):g}" for store in ("feast", "ours")),
            f"{percent(of_store).median:.1f}%",
        ]
        for features, of_store in sizes.items()
    ]
    return _table(lines, ["features", "bytes\nFeast", "bytes\nours", "ours/Feast"])


def about_table(about: Mapping[str, Mapping[str, Any]]) -> str:
    """Peak memory and versions, one line a client process."""
    packages = list(dict.fromkeys(name for one in about.values() for name in one["versions"]))
    lines = [
        [client, f"{one['peak_mb']:.0f}", *(one["versions"].get(name, "-") for name in packages)]
        for client, one in about.items()
    ]
    return tabulate.tabulate(lines, ["process", "peak MB", *packages], disable_numparse=True)


def materialize_table(runs: Runs) -> str:
    """Materializations, one line a case."""
    headers = ["into", "client", "rows read", "rows\nwritten", "seconds", "rows/s"]
    headers += ["CPU us\na row", "MB before", "peak MB"]
    return _table([_line(done) for done in runs.values()], headers, names=2)


def _line(done: Sequence[Materialized]) -> list[str]:
    case = done[0].case
    seconds, rows_s, cpu_us, start_mb, peak_mb = (
        statistics.median(getattr(one, name) for one in done)
        for name in ("seconds", "rows_s", "cpu_us", "start_mb", "peak_mb")
    )
    about = [case.to, f"{case.client}, {case.write_mode.replace('_', ' ')}", f"{case.rows:,}"]
    memory = [f"{start_mb:.0f}", f"{peak_mb:.0f}"]
    if done[0].is_stopped:  # it has no speed
        return [*about, f"first {case.limit:,}", f"{seconds:.1f}", "-", "-", *memory]
    written = [f"{case.keys:,}", f"{seconds:.1f}", f"{rows_s:,.0f}", f"{cpu_us:.0f}"]
    return [*about, *written, *memory]


def offline_table(runs: OfflineRuns) -> str:
    """Training sets, one line a contender."""
    headers = ["case", "contender", "seconds", "CPU s", "MB before", "peak MB", "answer"]
    lines = [_joined(done) for of_case in runs.values() for done in of_case.values() if done]
    sides = ["left", "left", "right", "right", "right", "right", "left"]
    return tabulate.tabulate(lines, headers, disable_numparse=True, colalign=sides)


def _joined(done: Sequence[Joined]) -> list[str]:
    about = [done[0].case.name, done[0].contender]
    ended = [one for one in done if one.seconds is not None]
    answer = next((one.answer for one in done if one.answer), "right" if done[0].is_join else "-")
    if not ended:
        return [*about, "-", "-", "-", f"{done[0].peak_mb:.0f}", answer]
    seconds, cpu_s, start_mb, peak_mb = (
        statistics.median(getattr(one, name) for one in ended)
        for name in ("seconds", "cpu_s", "start_mb", "peak_mb")
    )
    return [*about, f"{seconds:.1f}", f"{cpu_s:.1f}", f"{start_mb:.0f}", f"{peak_mb:.0f}", answer]


def offline_as_json(runs: OfflineRuns) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By case and contender, each round's."""
    return {
        case: {name: [one.printed() for one in done] for name, done in of_case.items()}
        for case, of_case in runs.items()
    }


def tables_report(runs: TableRuns) -> str:
    """History tables: what was written, then a table for each kind of case."""
    parts = [*runs.writes]
    if runs.joined:
        parts.append(offline_table(runs.joined))
    if runs.weeks:
        headers = ["a week of two years", "files\nopened", "of all", "seconds", "CPU s", "peak MB"]
        parts.append(_table([_week(done) for done in runs.weeks.values()], headers))
    if runs.appends:
        parts.append(_appends(list(runs.appends.values())))
    if runs.rewrites:
        headers = ["in order", "GB", "seconds", "MB/s", "files\nbefore", "files\nafter"]
        lines = [_rewritten(done) for done in runs.rewrites.values()]
        parts.append(_table(lines, [*headers, "MB before", "peak MB"]))
    return "\n\n".join([*parts, *(f"Skipped: {one}" for one in runs.skipped)])


def _week(done: Sequence[Opened]) -> list[str]:
    opened, seconds, cpu_s, peak_mb = (
        statistics.median(getattr(one, name) for one in done)
        for name in ("opened", "seconds", "cpu_s", "peak_mb")
    )
    figures = [f"{opened:g}", str(done[0].files), f"{seconds:.2f}", f"{cpu_s:.2f}"]
    return [done[0].contender, *figures, f"{peak_mb:.0f}"]


def _appends(runs: Sequence[Sequence[Appended]]) -> str:
    numbers = runs[0][0].timed
    lines = []
    for done in runs:
        times = [statistics.median(one.ms_at(number) for one in done) for number in numbers]
        files = statistics.median(one.metadata_files for one in done)
        size = statistics.median(one.metadata_bytes for one in done)
        growth = Figure.of([one.growth for one in done])
        line = [done[0].contender, *(f"{one:.1f}" for one in times), str(growth)]
        lines.append([*line, f"{files:g}", f"{size / 1e6:.1f}"])
    headers = ["appends", *(f"ms of the\n{number:,}th" for number in numbers)]
    return _table(lines, [*headers, "last/10th\n(range)", "metadata\nfiles", "MB"])


def _rewritten(done: Sequence[Rewritten]) -> list[str]:
    seconds, mb_s, start_mb, peak_mb = (
        statistics.median(getattr(one, name) for one in done)
        for name in ("seconds", "mb_s", "start_mb", "peak_mb")
    )
    one = done[0]
    figures = [f"{one.bytes / 1e9:.2f}", f"{seconds:.1f}", f"{mb_s:.0f}"]
    figures += [f"{one.files_before:,}", f"{one.files_after:,}"]
    return [one.contender, *figures, f"{start_mb:.0f}", f"{peak_mb:.0f}"]


def tables_as_json(runs: TableRuns) -> dict[str, Any]:
    """By case and contender, each round's."""
    others = {"week": runs.weeks, "appends": runs.appends, "optimize": runs.rewrites}
    return {
        **offline_as_json(runs.joined),
        **{
            case: {name: [vars(one) for one in done] for name, done in of_case.items()}
            for case, of_case in others.items()
        },
        "writes": runs.writes,
        "skipped": runs.skipped,
    }


def runs_as_json(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """By case, each round's."""
    return {name: [one.printed() for one in done] for name, done in runs.items()}


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


def as_json(measured: Measured) -> dict[str, dict[str, Any]]:
    """By case and client, with the figures of each round."""
    return {
        case: {name: _series(one) for name, one in series.items()}
        for case, series in measured.items()
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "p50_ms": series.p50_ms,
        "p95_ms": series.p95_ms,
        "cpu_ms_per_call": series.cpu_ms,
        "calls": series.calls,
        "p50_ms_by_round": [sample.p50_ms for sample in series.rounds],
        "cpu_ms_per_call_by_round": [sample.cpu_ms for sample in series.rounds],
    }


def _each(series: Mapping[str, Series], figure: Callable[[Series], float]) -> list[str]:
    return [f"{figure(series[name]):.2f}" if name in series else "-" for name in CLIENTS]


def _ratio(
    series: Mapping[str, Series], base: str, other: str, figure: Callable[[Sample], float]
) -> str:
    if base not in series or other not in series:
        return "-"
    return str(Figure.ratio(series[base], series[other], figure))


def _table(lines: list[list[Any]], headers: list[str], names: int = 1) -> str:
    """A table whose first columns are names."""
    sides = ["left"] * names + ["right"] * (len(headers) - names)
    return tabulate.tabulate(lines, headers, disable_numparse=True, colalign=sides)
