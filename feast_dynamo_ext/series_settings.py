"""Series, as tags declare them: how a view's events lie online, and what is derived from them.

A view with a `Series` keeps every event, and not the newest row alone. Views derived from it have
no rows of their own: their features are lists of the last events, or aggregates over windows, as
of the moment of a request or of an entity row::

    |-------------- keep_for --------------|
    e1      e2          e3   e4       e5   T     events of one entity
                 |------- window --------->|     T - window <= event time <= T

Each declaration is one tag, as JSON, in which durations are those of ISO 8601.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from feast_dynamo_ext.config import SettingsModel
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = "a list of names of features"
DURATION = "a timedelta of more than 0"

Name = Annotated[str, Field(min_length=1)]


def _tuple(value: Any) -> Any:
    """One name may stand for a list of it."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[Name, ...], BeforeValidator(_tuple)]
Duration = Annotated[timedelta, Field(gt=timedelta(0))]

MOST_ORDERS, MOST_COHORTS = 5, 20
"""Local and global indexes of a table, at most: DynamoDB's limits."""


class Series(SettingsModel):
    """How the events of a view lie in its table: one item each, by entity, then by event time.

    Raises:
        ConfigError: a value that cannot be, or settings that contradict each other.
    """

    _expected: ClassVar[dict[str, str]] = {
        "keep_for": DURATION,
        "tie_breaker": f"a name of a feature, or {NAMES}",
        "orders": NAMES,
        "cohorts": NAMES,
    }

    keep_for: Duration | None = None
    """How long after its event time an event is kept online. Default: for ever."""

    tie_breaker: Names = ()
    """Features that tell two events of one entity and time apart, as the number of a purchase
    does. Over a `DynamoDBTableSource`: by default what the table's key has besides."""

    orders: Names = ()
    """Features in whose order the events of an entity can be read besides, by a local index each.
    Local indexes are made with the table alone."""

    cohorts: Names = ()
    """Features by whose value entities can be found, by a global index each: see `cohort`. A value
    takes 1,000 write units and serves 3,000 read units a second."""

    def check(self, subject: str) -> None:
        """Refuse names that stand twice, and more of them than a table has indexes."""
        refuse_doubled(subject, "tie_breaker", self.tie_breaker)
        refuse_doubled(subject, "orders", self.orders, MOST_ORDERS)
        refuse_doubled(subject, "cohorts", self.cohorts, MOST_COHORTS)


def refuse_doubled(
    subject: str, setting: str, names: Sequence[str], most: int | None = None
) -> None:
    """Refuse a name that stands twice, and more names than a table has indexes.

    Raises:
        ConfigError: naming the subject and the setting.
    """
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ConfigError(f"{subject}: `{setting}` names `{twice[0]}` twice.")
    if most is not None and len(names) > most:
        raise ConfigError(
            f"{subject}: `{setting}` names {len(names)} features, and a table has at most {most} "
            "indexes of that kind."
        )


# Derived views

Function = Literal[
    "sum", "count", "mean", "min", "max", "count_distinct", "last", "first", "std",
    "time_since_last",
]  # fmt: skip

OF_EVENTS = frozenset({"count", "time_since_last"})
"""Functions that need no column."""


class WindowFeature(SettingsModel):
    """One aggregate over the events of a window.

    A null is no value, nor is NaN, as in pandas: both are passed over. Without events a count is
    0, and all else null. `std` is that of a sample, null of fewer than two values; `first` and
    `last` are the oldest and the newest event's, null where that is null; `time_since_last` is
    how many seconds ago the newest event was.
    """

    _expected: ClassVar[dict[str, str]] = {
        "name": "the name of a feature",
        "function": "sum, count, mean, min, max, count_distinct, last, first, std or "
        "time_since_last",
        "column": "the name of a feature",
        "window": DURATION,
    }

    name: Name
    """Of the feature."""

    function: Function
    """What is computed."""

    column: str = ""
    """The feature of the base view; none for `count`, of events, and `time_since_last`."""

    window: Duration
    """How far the window goes back."""

    def check(self, subject: str) -> None:
        """Refuse a function without the column that it needs."""
        if not self.column and self.function not in OF_EVENTS:
            raise ConfigError(f"{subject}: `{self.function}` needs a `column`.")
        if self.column and self.function == "time_since_last":
            raise ConfigError(f"{subject}: `time_since_last` is of events, and takes no `column`.")


class Windows(SettingsModel):
    """What a view of `windows` computes.

    Attributes:
        base: name of the view whose events are aggregated.
        features: the aggregates, each a feature.
        exclude_current: leave out events of the very moment.
    """

    _expected: ClassVar[dict[str, str]] = {
        "base": "the name of a view",
        "features": "a list of aggregates",
        "exclude_current": "true or false",
    }

    base: Name
    features: tuple[WindowFeature, ...] = Field(min_length=1)
    exclude_current: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Features of the base view that are needed, each once."""
        return tuple(dict.fromkeys(each.column for each in self.features if each.column))

    @property
    def longest(self) -> timedelta | None:
        """How far back events count; None for no limit."""
        return max(each.window for each in self.features)


class RecentFeature(SettingsModel):
    """A list of one feature's values of the last events.

    Attributes:
        name: of the list.
        column: the feature of the base view; none for the events' times, in microseconds.
        fill: what stands for a null, which Feast's lists do not hold; NaN for floats by itself.
    """

    _expected: ClassVar[dict[str, str]] = {
        "name": "the name of a feature",
        "column": "the name of a feature",
        "fill": "a number, a text or a boolean",
    }

    name: Name
    column: str = ""
    fill: bool | int | float | str | None = None


class Recent(SettingsModel):
    """What a view of `recent` lists.

    Attributes:
        base: name of the view whose events are listed.
        features: the lists, each a feature, all of one length.
        last: how many events, at most; None for all of `within`.
        within: how far back events count; None for no limit.
        newest_first: the order; else the oldest first.
        exclude_current: leave out events of the very moment.
    """

    _expected: ClassVar[dict[str, str]] = {
        "base": "the name of a view",
        "features": "a list of features",
        "last": "a whole number of at least 1",
        "within": DURATION,
        "newest_first": "true or false",
        "exclude_current": "true or false",
    }

    base: Name
    features: tuple[RecentFeature, ...] = Field(min_length=1)
    last: int | None = Field(default=None, ge=1)
    within: Duration | None = None
    newest_first: bool = True
    exclude_current: bool = False

    def check(self, subject: str) -> None:
        """Refuse a list without an end."""
        if self.last is None and self.within is None:
            raise ConfigError(f"{subject}: recent events need `last`, `within`, or both.")

    @property
    def columns(self) -> tuple[str, ...]:
        """Features of the base view that are needed, each once."""
        return tuple(dict.fromkeys(each.column for each in self.features if each.column))

    @property
    def longest(self) -> timedelta | None:
        """How far back events count; None for no limit."""
        return self.within


class Derived(SettingsModel):
    """What a derived view is: one of both.

    Attributes:
        windows: aggregates over windows.
        recent: lists of the last events.
    """

    _expected: ClassVar[dict[str, str]] = {
        "windows": "windows as `feast_dynamo_ext.windows` declares them",
        "recent": "lists as `feast_dynamo_ext.recent` declares them",
    }

    windows: Windows | None = None
    recent: Recent | None = None

    def check(self, subject: str) -> None:
        """Refuse both, or neither."""
        if (self.windows is None) == (self.recent is None):
            raise ConfigError(f"{subject}: a derived view has either `windows` or `recent`.")

    @property
    def what(self) -> Windows | Recent:
        """The one that it is."""
        if self.windows is not None:
            return self.windows
        if self.recent is not None:
            return self.recent
        raise AssertionError(self)

    @property
    def base(self) -> str:
        """Name of the view whose events it is derived from."""
        return self.what.base


UNITS = (
    ("d", timedelta(days=1)),
    ("h", timedelta(hours=1)),
    ("m", timedelta(minutes=1)),
    ("s", timedelta(seconds=1)),
    ("us", timedelta(microseconds=1)),
)


def short(duration: timedelta) -> str:
    """A duration as it stands in names: 30d, 12h, 90m."""
    for unit, size in UNITS:
        if not duration % size:
            return f"{duration // size}{unit}"
    raise AssertionError(duration)


def kept(series: Series, ttl: timedelta | None) -> tuple[str, timedelta] | None:
    """How far back events of a base view can be seen, and which setting says so.

    None for no limit.
    """
    limits = [("keep_for", series.keep_for), ("ttl", ttl or None)]
    given = [(name, limit) for name, limit in limits if limit is not None]
    return min(given, key=lambda each: each[1]) if given else None


def refuse_longer_than_kept(
    what: str, back: timedelta | None, base: str, limit: tuple[str, timedelta] | None
) -> None:
    """Refuse to look further back than events can be seen.

    Args:
        what: looks back, with its view and what goes before the time.
        back: how far; None for as far as there are events.
        base: name of the base view.
        limit: of `kept`.

    Raises:
        ConfigError: names the setting that is shorter.
    """
    if back is not None and limit is not None and back > limit[1]:
        raise ConfigError(
            f"{what} {short(back)} is longer than the `{limit[0]}` of `{base}`, "
            f"{short(limit[1])}, so that events would be missing. Make it shorter, or keep events "
            "longer."
        )
