"""A training set as one HTML page: no script, nothing from elsewhere, drawn as inline SVG.

The page is a template (`templates/training_set.html.j2`) of the plain values of `SetReport`;
figures become text and curves here, and everything is escaped there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast_dynamo_ext.figures import count
from feast_dynamo_ext.sagemaker.column_statistics import LEAST_ROWS, Psi, psi
from feast_dynamo_ext.sagemaker.leakage import LEVELS, NEAR_PERFECT, worst
from feast_dynamo_ext.sagemaker.over_time import AGE_BOUNDS, OLDER
from feast_dynamo_ext.sagemaker.report_charts import HEIGHT, WIDTH, Chart, chart_of, time_charts
from feast_dynamo_ext.sagemaker.report_texts import (
    NONE,
    age,
    code,
    figure,
    percent,
    value_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.sagemaker.column_statistics import ColumnStatistics, SplitStatistics
    from feast_dynamo_ext.sagemaker.over_time import Ages
    from feast_dynamo_ext.sagemaker.set_report import Feature, SetReport

TEMPLATE = "training_set.html.j2"
MOST_CARDS = 60
MOST_LISTED = 300
PSI_MODERATE, PSI_LARGE = 0.1, 0.25


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
        "count": count,
        "code": code,
    }
    cards = [_card(feature, report) for feature in report.features]
    order = sorted(cards, key=lambda card: (-card.strength, card.name))
    return environment.get_template(TEMPLATE).render(
        report=report,
        findings=sorted(report.findings, key=lambda found: LEVELS.index(found.level)),
        worst=worst(report.findings),
        time=time_charts(report),
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
    chart: Chart | None


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
        chart_of(feature, column, names),
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
        value_text(found.mean, kind),
        age((found.deviation or 0) / 1e6) if is_time else figure(found.deviation),
        value_text(found.least, kind),
        tuple(value_text(value, kind) for value in found.percentiles)
        or (NONE,) * (0 if kind in ("text", "other") else 5),
        value_text(found.greatest, kind),
        _measure(found),
        NONE if shift is None else f"{shift:.3f}",
        _level(shift),
    )


def _age_row(ages: Ages) -> tuple[str, tuple[str, ...], str, str, str]:
    matched = sum(ages.counts)
    return (
        ages.column,
        tuple(percent(count / matched) if matched else NONE for count in ages.counts),
        percent(ages.unmatched / ages.rows if ages.rows else None),
        age(ages.youngest_s),
        age(ages.oldest_s),
    )
