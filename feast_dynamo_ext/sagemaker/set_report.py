"""A training set as one HTML page: no script, nothing from elsewhere, drawn as inline SVG.

The page is a template (`templates/training_set.html.j2`) of the plain values of `SetReport`;
figures become text and curves here, and everything is escaped there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.sagemaker.column_statistics import LEAST_ROWS, Psi, psi
from feast_dynamo_ext.sagemaker.leakage import LEVELS, NEAR_PERFECT, worst
from feast_dynamo_ext.sagemaker.over_time import AGE_BOUNDS, OLDER
from feast_dynamo_ext.timestamps import moment_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from markupsafe import Markup

    from feast_dynamo_ext.sagemaker.column_statistics import (
        ColumnStatistics,
        Label,
        SplitStatistics,
    )
    from feast_dynamo_ext.sagemaker.leakage import Finding
    from feast_dynamo_ext.sagemaker.over_time import Ages, OverTime

TEMPLATE = "training_set.html.j2"
MOST_CARDS = 60
MOST_LISTED = 300
MOST_VALUES = 8
MOST_LETTERS = 60
PSI_MODERATE, PSI_LARGE = 0.1, 0.25
NONE = "\N{EN DASH}"

WIDTH, HEIGHT = 240, 64
"""Of a chart's own coordinates; the page stretches it."""

_SIGNIFICANT = 4
_YEAR_S, _DAY_S, _HOUR_S, _MINUTE_S = 365 * 86_400, 86_400, 3_600, 60


@dataclass(frozen=True)
class Feature:
    """A feature of the join and what it became.

    Attributes:
        name: its column in the join.
        words: its type and encoding, for people.
        columns: statistics of the columns that it became.
        labels: names of values of its only column: categories by code.
        categories: whether each of its columns says 1 of one category; then `labels` are theirs
            by column.
    """

    name: str
    words: str
    columns: tuple[ColumnStatistics, ...]
    labels: Mapping[Any, str] = field(default_factory=dict)
    categories: bool = False


@dataclass(frozen=True)
class SplitFigures:
    """A split as its manifest says: rows, event times and the label's mean and extremes."""

    name: str
    rows: int
    first_event: str
    last_event: str
    label_mean: float | None
    label_least: float | None
    label_greatest: float | None


@dataclass(frozen=True)
class SetReport:
    """What the page shows.

    Attributes:
        title: the set's name, or its output.
        facts: terms and what they are, in order.
        splits: in order, the one that trains first.
        label: the label.
        over_time: rows and label by time.
        ages: of features; empty where the set does not keep their times.
        findings: of leakage.
        features: in the order of the files.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    splits: tuple[SplitFigures, ...]
    label: Label
    over_time: OverTime
    ages: tuple[Ages, ...]
    findings: tuple[Finding, ...]
    features: tuple[Feature, ...]


def html(report: SetReport) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("feast_dynamo_ext.sagemaker"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "percent": percent,
        "count": _count,
        "code": _code,
    }
    cards = [_card(feature, report) for feature in report.features]
    order = sorted(cards, key=lambda card: (-card.strength, card.name))
    return environment.get_template(TEMPLATE).render(
        report=report,
        findings=sorted(report.findings, key=lambda found: LEVELS.index(found.level)),
        worst=worst(report.findings),
        time=_time_charts(report),
        ages=[_age_row(ages) for ages in report.ages],
        age_heads=[name for _, name in AGE_BOUNDS] + [OLDER],
        cards=order[:MOST_CARDS],
        listed=order[:MOST_LISTED],
        columns=sum(len(feature.columns) for feature in report.features),
        measure="AUC" if report.label.is_binary else "Correlation",
        rows=sum(split.rows for split in report.splits),
        least_rows=LEAST_ROWS,
        near_perfect=NEAR_PERFECT,
        moderate=PSI_MODERATE,
        large=PSI_LARGE,
        none=NONE,
        width=WIDTH,
        height=HEIGHT,
    )


# Figures as text


def figure(value: Any) -> str:
    """A number to four digits, 1,234 or 0.01234; a dash for none."""
    if value is None:
        return NONE
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if not value:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -_SIGNIFICANT <= size < 9:  # noqa: PLR2004 - beyond a billion digits are not read
        return f"{value:.3g}"
    text = f"{value:,.{max(0, _SIGNIFICANT - 1 - size)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float | None) -> str:
    """A share: 12.3 %; a dash for none."""
    if share is None:
        return NONE
    hundredths = 100 * share
    if 0 < hundredths < 0.05:  # noqa: PLR2004 - what would be shown as 0.0
        return "< 0.1 %"
    return f"{hundredths:.3g} %" if hundredths < 99.95 or share == 1 else "> 99.9 %"  # noqa: PLR2004 - as 0.0


def _code(words: str) -> Markup:
    """Words, escaped, with what stands in backticks as code."""
    from markupsafe import Markup, escape

    parts = re.split(r"`([^`]*)`", words)
    texts = [
        f"<code>{escape(part)}</code>" if at % 2 else escape(part) for at, part in enumerate(parts)
    ]
    return Markup("".join(texts))  # noqa: S704 - each part is escaped


def _count(value: int) -> str:
    return f"{value:,}"


def age(seconds: float | None) -> str:
    """A length of time: 3 h, 2.5 d."""
    if seconds is None:
        return NONE
    size = abs(seconds)
    for unit, name in ((_YEAR_S, "y"), (_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if size >= unit:
            return f"{figure(round(seconds / unit, 1))} {name}"
    return f"{figure(seconds)} s"


def _value(value: Any, kind: str) -> str:
    """A value of a column; times are moments."""
    if value is None:
        return NONE
    if kind != "time":
        return figure(value)
    moment = moment_of(int(value))
    return f"{moment:%Y-%m-%d}" if not int(value) % 86_400_000_000 else f"{moment:%Y-%m-%d %H:%M}"


# Curves


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
class _Chart:
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


def _histogram(column: ColumnStatistics, names: Sequence[str]) -> _Chart:
    shares = [_shares(column.splits[name]) for name in names]
    most = max((max(of, default=0.0) for of in shares), default=0.0)
    curves = tuple(
        _Curve(at, steps(of, most, closed=not at)) for at, of in enumerate(shares) if any(of)
    )
    low, high = (_value(column.edges[at], column.kind) for at in (0, -1))
    return _Chart(
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


def _bars(named: Iterable[tuple[str, tuple[float, ...]]], of: str) -> _Chart:
    """Horizontal bars of the most frequent values."""
    ordered = sorted(named, key=lambda row: (-row[1][0], -sum(row[1])))
    rows, rest = ordered[:MOST_VALUES], ordered[MOST_VALUES:]
    if rest:
        summed = tuple(sum(shares) for shares in zip(*(row[1] for row in rest), strict=True))
        rows.append((f"{len(rest)} others", summed))
    most = max((max(shares) for _, shares in rows), default=0.0) or 1.0
    return _Chart(
        f"Shares of the values of {of} by split.",
        rows=tuple(
            _Row(_cut(name), shares, tuple(_number(100 * share / most) for share in shares))
            for name, shares in rows
        ),
    )


def _chart(feature: Feature, column: ColumnStatistics, names: Sequence[str]) -> _Chart | None:
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
        (feature.labels.get(value, _value(value, column.kind)), tuple(of[at] for of in by_split))
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


# A feature


@dataclass(frozen=True)
class _Line:
    """A feature's figures in one split, as texts."""

    split: str
    missing: str
    mean: str
    deviation: str
    least: str
    quantiles: tuple[str, ...]
    greatest: str
    measure: str
    psi: str
    level: str


@dataclass(frozen=True)
class _Card:
    """A feature as it is shown; `strength` orders them, `level` is that of its worst PSI."""

    name: str
    anchor: str
    words: str
    about: str
    strength: float
    measures: tuple[str, ...]
    psi: str
    level: str
    missing: str
    is_number: bool
    lines: tuple[_Line, ...]
    chart: _Chart | None


def _card(feature: Feature, report: SetReport) -> _Card:
    names = [split.name for split in report.splits]
    column = max(feature.columns, key=lambda each: _strength(each.splits[names[0]]))
    shifts = _psi_of_categories(feature, names) if feature.categories else column.psi
    shift, level = _shift(shifts)
    about = ""
    if len(feature.columns) > 1:
        about = f"The figures are of `{column.name}`, the strongest of {len(feature.columns)}."
    return _Card(
        feature.name,
        f"f{report.features.index(feature)}",
        feature.words,
        about,
        _strength(column.splits[names[0]]),
        tuple(_measure(column.splits[name]) for name in names),
        shift,
        level,
        percent(max(column.splits[name].missing_rate for name in names)),
        column.kind in ("number", "time"),
        tuple(_line(column, name, shifts) for name in names),
        _chart(feature, column, names),
    )


def _strength(split: SplitStatistics) -> float:
    if split.auc is not None:
        return abs(split.auc - 0.5) * 2
    return abs(split.correlation or 0.0)


def _measure(split: SplitStatistics) -> str:
    value = split.auc if split.auc is not None else split.correlation
    return NONE if value is None else f"{value:.3f}"


def _psi_of_categories(feature: Feature, names: Sequence[str]) -> dict[str, Psi]:
    """Of columns that each say 1 of one category: rows by category, of none, and missing."""
    counts = {}
    for name in names:
        of = [
            sum(
                count
                for value, count in zip(each.values, each.splits[name].counts, strict=True)
                if value == 1
            )
            for each in feature.columns
        ]
        first = feature.columns[0].splits[name]
        none = max(0, first.rows - first.missing - sum(of))
        counts[name] = [*of, none, first.missing]
    return {name: psi(counts[names[0]], counts[name]) for name in names[1:]}


def _shift(shifts: Mapping[str, Psi]) -> tuple[str, str]:
    """The largest PSI as text, and its level."""
    known = [found.value for found in shifts.values() if found.value is not None]
    return (f"{max(known):.3f}", _level(max(known))) if known else (NONE, "ok")


def _level(value: float | None) -> str:
    if value is None or value < PSI_MODERATE:
        return "ok"
    return "warning" if value < PSI_LARGE else "error"


def _line(column: ColumnStatistics, split: str, shifts: Mapping[str, Psi]) -> _Line:
    found, kind = column.splits[split], column.kind
    shift = shifts[split].value if split in shifts else None
    is_time = kind == "time"
    return _Line(
        split,
        percent(found.missing_rate),
        _value(found.mean, kind),
        age((found.deviation or 0) / 1e6) if is_time else figure(found.deviation),
        _value(found.least, kind),
        tuple(_value(value, kind) for value in found.percentiles)
        or (NONE,) * (0 if kind in ("text", "other") else 5),
        _value(found.greatest, kind),
        _measure(found),
        NONE if shift is None else f"{shift:.3f}",
        _level(shift),
    )


# Over time


@dataclass(frozen=True)
class _TimeCharts:
    """Rows as stacked bars and the label as curves, on one axis of time."""

    unit: str
    bars: tuple[_Curve, ...]
    most_rows: str
    curves: tuple[_Curve, ...]
    low: str
    high: str
    ticks: tuple[str, ...]
    table: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]


def _time_charts(report: SetReport) -> _TimeCharts:
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
    return _TimeCharts(
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
                tuple(_count(bar.rows.get(name, 0)) for name in names),
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


def _age_row(ages: Ages) -> tuple[str, tuple[str, ...], str, str, str]:
    matched = sum(ages.counts)
    return (
        ages.column,
        tuple(percent(count / matched) if matched else NONE for count in ages.counts),
        percent(ages.unmatched / ages.rows if ages.rows else None),
        age(ages.youngest_s),
        age(ages.oldest_s),
    )
