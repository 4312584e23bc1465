"""Charts of a training set's report: histograms, bars and curves as paths of inline SVG."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from feast_dynamo_ext.figures import count
from feast_dynamo_ext.sagemaker.report_texts import figure, percent, value_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from feast_dynamo_ext.sagemaker.column_statistics import (
        ColumnStatistics,
        Label,
        SplitStatistics,
    )
    from feast_dynamo_ext.sagemaker.set_report import Feature, SetReport

MOST_VALUES = 8
MOST_LETTERS = 60

WIDTH, HEIGHT = 240, 64
"""Of a chart's own coordinates; the page stretches it."""


def _number(value: float) -> str:
    """A coordinate to a tenth."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def steps(shares: Sequence[float], most: float, *, closed: bool) -> str:
    """The path of a histogram: bars of one width as one outline, closed to be filled."""
    width = WIDTH / len(shares)
    heights = [HEIGHT - HEIGHT * share / most if most else HEIGHT for share in shares]
    path = "".join(f"V{_number(height)}h{_number(width)}" for height in heights)
    return f"M0 {HEIGHT}{path}" + (f"V{HEIGHT}Z" if closed else f"V{HEIGHT}")


@dataclass(frozen=True)
class _Curve:
    """A path of the split of a number."""

    split: int
    path: str


@dataclass(frozen=True)
class _Row:
    """A value and its share in each split, and the widths of bars in hundredths."""

    label: str
    shares: tuple[float, ...]
    widths: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """How a feature is distributed.

    Attributes:
        curves: of a histogram; empty where `rows` show it.
        low: of its first edge.
        high: of its last edge.
        rows: values and their shares.
        words: what the chart shows, for those who do not see it.
    """

    words: str
    curves: tuple[_Curve, ...] = ()
    low: str = ""
    high: str = ""
    rows: tuple[_Row, ...] = ()


def _histogram(column: ColumnStatistics, names: Sequence[str]) -> Chart:
    shares = [_shares(column.splits[name]) for name in names]
    most = max((max(of, default=0.0) for of in shares), default=0.0)
    curves = tuple(
        _Curve(at, steps(of, most, closed=not at)) for at, of in enumerate(shares) if any(of)
    )
    low, high = (value_text(column.edges[at], column.kind) for at in (0, -1))
    return Chart(
        f"Histogram of {column.name} by split, from {low} to {high}; the tallest bar holds "
        f"{percent(most)} of a split.",
        curves,
        low,
        high,
    )


def _shares(split: SplitStatistics) -> list[float]:
    present = split.rows - split.missing
    return [count / present if present else 0.0 for count in split.counts]


def _cut(name: str) -> str:
    return (
        name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
    )


def _bars(named: Iterable[tuple[str, tuple[float, ...]]], of: str) -> Chart:
    """Horizontal bars of the most frequent values."""
    ordered = sorted(named, key=lambda row: (-row[1][0], -sum(row[1])))
    rows, rest = ordered[:MOST_VALUES], ordered[MOST_VALUES:]
    if rest:
        summed = tuple(sum(shares) for shares in zip(*(row[1] for row in rest), strict=True))
        rows.append((f"{len(rest)} others", summed))
    most = max((max(shares) for _, shares in rows), default=0.0) or 1.0
    return Chart(
        f"Shares of the values of {of} by split.",
        rows=tuple(
            _Row(_cut(name), shares, tuple(_number(100 * share / most) for share in shares))
            for name, shares in rows
        ),
    )


def chart_of(feature: Feature, column: ColumnStatistics, names: Sequence[str]) -> Chart | None:
    """How a feature is distributed by split; None where it has no values."""
    if feature.categories:
        return _bars(
            (
                (feature.labels.get(each.name, each.name), _means(each, names))
                for each in feature.columns
            ),
            feature.name,
        )
    if column.edges:
        return _histogram(column, names)
    if not column.values:
        return None
    by_split = [_shares(column.splits[name]) for name in names]
    named = [
        (
            feature.labels.get(value, value_text(value, column.kind)),
            tuple(of[at] for of in by_split),
        )
        for at, value in enumerate(column.values)
    ]
    if any(column.others.values()):
        named.append(("others", tuple(_others(column, name) for name in names)))
    return _bars(named, column.name)


def _means(column: ColumnStatistics, names: Sequence[str]) -> tuple[float, ...]:
    return tuple(column.splits[name].mean or 0.0 for name in names)


def _others(column: ColumnStatistics, split: str) -> float:
    found = column.splits[split]
    present = found.rows - found.missing
    return column.others[split] / present if present else 0.0


# Over time


@dataclass(frozen=True)
class TimeCharts:
    """Rows as stacked bars and the label as curves, on one axis of time."""

    unit: str
    bars: tuple[_Curve, ...]
    most_rows: str
    curves: tuple[_Curve, ...]
    low: str
    high: str
    ticks: tuple[str, ...]
    table: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]


def time_charts(report: SetReport) -> TimeCharts:
    """The charts of rows and label over time."""
    names = [split.name for split in report.splits]
    bars = report.over_time.bars
    width = WIDTH / len(bars)
    most = max(sum(bar.rows.values()) for bar in bars) or 1
    stacked = [[] for _ in names]  # type: list[list[str]]
    for at, bar in enumerate(bars):
        top = float(HEIGHT)
        for place, name in enumerate(names):
            height = HEIGHT * bar.rows.get(name, 0) / most
            if height:
                stacked[place].append(
                    f"M{_place(at * width)} {_place(top)}v-{_place(height)}"
                    f"h{_place(width * 0.9)}v{_place(height)}z"
                )
            top -= height
    means = [mean for bar in bars for mean in bar.label_mean.values()]
    low, high = _range(means, report.label)
    middle = bars[len(bars) // 2].start
    return TimeCharts(
        report.over_time.unit,
        tuple(_Curve(at, "".join(paths)) for at, paths in enumerate(stacked) if paths),
        figure(most),
        tuple(
            _Curve(at, path)
            for at, name in enumerate(names)
            if (path := _line_path([bar.label_mean.get(name) for bar in bars], low, high))
        ),
        figure(low),
        figure(high),
        tuple(
            _day(start, report.over_time.unit)
            for start in _ticks(bars[0].start, middle, bars[-1].start)
        ),
        tuple(
            (
                _day(bar.start, report.over_time.unit),
                tuple(count(bar.rows.get(name, 0)) for name in names),
                tuple(figure(bar.label_mean.get(name)) for name in names),
            )
            for bar in bars
            if bar.rows
        ),
    )


def _ticks(*starts: datetime) -> list[datetime]:
    return sorted(set(starts))


def _range(means: Sequence[float], label: Label) -> tuple[float, float]:
    """Of the label's axis: a rate begins at 0."""
    if not means:
        return 0.0, 1.0
    low, high = min(means), max(means)
    if label.is_binary and low >= 0:
        low = 0.0
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _line_path(means: Sequence[float | None], low: float, high: float) -> str:
    """A level stroke per bar, joined where bars follow each other."""
    width, path, pen_down = WIDTH / len(means), [], False
    for at, mean in enumerate(means):
        if mean is None:
            pen_down = False
            continue
        height = HEIGHT - HEIGHT * (mean - low) / (high - low)
        start = "L" if pen_down else "M"
        path.append(f"{start}{_place(at * width)} {_place(height)}h{_place(width)}")
        pen_down = True
    return "".join(path)


def _place(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _day(start: datetime, unit: str) -> str:
    moment = start.astimezone(timezone.utc)
    if unit in ("second", "minute", "10 minutes", "hour", "6 hours"):
        return f"{moment:%Y-%m-%d %H:%M:%S}" if unit == "second" else f"{moment:%Y-%m-%d %H:%M}"
    return f"{moment:%Y-%m-%d}"
