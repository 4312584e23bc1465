"""What a training set's report shows: the plain values of its page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.sagemaker.column_statistics import ColumnStatistics, Label
    from feast_dynamo_ext.sagemaker.leakage import Finding
    from feast_dynamo_ext.sagemaker.over_time import Ages, OverTime


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
