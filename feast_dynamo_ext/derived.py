"""Views that are derived from the events of a series: the last of them, and aggregates of windows.

::

    last_purchases = recent(purchases, name="last_purchases", last=20, features=["amount"])
    spend = windows(
        purchases,
        name="spend",
        aggregations=[
            Aggregation(column="amount", function="sum", time_window=timedelta(days=30)),
            Aggregation(function="count", time_window=timedelta(days=7)),
        ],
    )

They are plain Feast views over the base view, so that feature services, on-demand views, the
feature server and training sets take them like any other. They have no rows: what they answer is
computed of the base view's events, as of the request online and as of each entity row in training.
`online=False` keeps Feast from materializing them; they are read online all the same.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from feast import FeatureView, Field
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
    Uuid,
)

from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.series_settings import (
    OF_EVENTS,
    Derived,
    Recent,
    RecentFeature,
    Series,
    WindowFeature,
    Windows,
    kept,
    refuse_longer_than_kept,
    short,
)
from feast_dynamo_ext.view_settings import ViewSettings, series_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast.aggregation import Aggregation

EVENT_TIMES = "event_time"
"""What a list of events' times is called, before its suffix."""

INTEGERS, FLOATS = (Int32, Int64), (Float32, Float64)
NUMBERS = (*INTEGERS, *FLOATS)
LISTED = (*NUMBERS, String, Bytes, Bool, UnixTimestamp)
"""Types whose values stand in lists; of times their microseconds."""

COLUMN_TYPES: dict[str, tuple[Any, ...]] = {
    "sum": NUMBERS,
    "mean": NUMBERS,
    "std": NUMBERS,
    "min": (*NUMBERS, String, UnixTimestamp),
    "max": (*NUMBERS, String, UnixTimestamp),
    "count_distinct": (*NUMBERS, String, Bytes, Bool, UnixTimestamp, Uuid),
}
"""Of which types a function takes columns; all others take any."""

INT32, INT64 = (-(2**31), 2**31), (-(2**63), 2**63)


def windows(
    base: FeatureView,
    *,
    name: str,
    aggregations: Sequence[Aggregation],
    exclude_current: bool = False,
    description: str = "",
    tags: Mapping[str, str] | None = None,
    owner: str = "",
) -> FeatureView:
    """A view of aggregates over windows of a base view's events.

    An event counts where T - window <= event time <= T, both included; T is now, or the event
    time of an entity row. Features are called as the aggregation says, else
    ``{function}_{column}_{window}``, as `sum_amount_30d`.

    Args:
        base: a view with `ViewSettings(series=...)`.
        name: of the view.
        aggregations: Feast's: `column`, `function`, `time_window` and, to choose it, `name`.
            Functions are sum, count, mean, min, max, count_distinct, last, first, std and
            time_since_last (in seconds); count and time_since_last need no column. See
            `WindowFeature` for nulls and windows without events.
        exclude_current: leave out events of the very moment T.
        description: of the view.
        tags: of the view.
        owner: of the view.

    Raises:
        ConfigError: what cannot be computed: names view, feature and reason.
    """
    subject = f"Feature view `{name}`"
    series, columns = _base(base, subject)
    most = kept(series, base.ttl)
    features, fields = [], []
    for each in aggregations:
        feature = _window_feature(each, subject)
        where = f"{subject}, feature `{feature.name}`"
        refuse_longer_than_kept(f"{where}: a window of", feature.window, base.name, most)
        features.append(feature)
        fields.append(Field(name=feature.name, dtype=_type_of(feature, columns, base, where)))
    what = Windows(base=base.name, features=tuple(features), exclude_current=exclude_current)
    about = {"description": description, "tags": tags, "owner": owner}
    return _view(base, name, fields, Derived(windows=what), about)


def recent(
    base: FeatureView,
    *,
    name: str,
    last: int | None = None,
    within: timedelta | None = None,
    features: Sequence[str] | None = None,
    newest_first: bool = True,
    exclude_current: bool = False,
    fill: Mapping[str, Any] | None = None,
    description: str = "",
    tags: Mapping[str, str] | None = None,
    owner: str = "",
) -> FeatureView:
    """A view of lists: values of a base view's last events, and the events' times.

    An event counts where T - within <= event time <= T, both included; T is now, or the event
    time of an entity row. Features are called ``{feature}_last_{last}``, as `amount_last_20`, or
    ``{feature}_{within}`` without `last`; the list of times `event_time_last_20` has microseconds
    since 1970 UTC. All lists of an entity are of one length, empty without events.

    Args:
        base: a view with `ViewSettings(series=...)`.
        name: of the view.
        last: how many events, at most; None for all that are within.
        within: how far back events count; by default as far as events are kept.
        features: features of the base view; by default all of them.
        newest_first: the order of the lists; else the oldest first.
        exclude_current: leave out events of the very moment T.
        fill: by feature, what stands for a null in its list: Feast's lists have none inside. Of
            floats it is NaN by itself. A null of another feature without it is an error.
        description: of the view.
        tags: of the view.
        owner: of the view.

    Raises:
        ConfigError: what cannot be listed: names view, feature and reason.
    """
    subject = f"Feature view `{name}`"
    series, columns = _base(base, subject)
    most = kept(series, base.ttl)
    refuse_longer_than_kept(f"{subject}: `within` of", within, base.name, most)
    if last is not None and (type(last) is not int or last < 1):
        raise ConfigError(
            f"{subject}: `last` is `{last}`, but must be a whole number of at least 1."
        )
    if last is None and within is None:
        raise ConfigError(f"{subject}: recent events need `last`, `within`, or both.")
    suffix = f"last_{last}" if last is not None else short(within or timedelta(0))
    # Training sees what is kept online.
    within = within or (most[1] if most else None)
    names = list(columns if features is None else features)
    listed, fields = [], []
    given = dict(fill or {})
    for column in names:
        dtype = _column(column, columns, base, subject)
        if dtype not in LISTED:
            raise ConfigError(
                f"{subject}: `{column}` of `{base.name}` is {dtype}, of which there are no lists "
                "of events. Leave it out of `features`."
            )
        filled = _filled(given.pop(column, None), dtype, f"{subject}: `fill` of `{column}`")
        listed.append(RecentFeature(name=f"{column}_{suffix}", column=column, fill=filled))
        fields.append(
            Field(name=listed[-1].name, dtype=Array(Int64 if dtype == UnixTimestamp else dtype))
        )
    if given:
        hint = did_you_mean(next(iter(given)), names, "It lists")
        raise ConfigError(
            f"{subject}: `fill` names `{next(iter(given))}`, which is not listed. {hint}"
        )
    listed.append(RecentFeature(name=f"{EVENT_TIMES}_{suffix}"))
    fields.append(Field(name=listed[-1].name, dtype=Array(Int64)))
    what = Recent(
        base=base.name,
        features=tuple(listed),
        last=last,
        within=within,
        newest_first=newest_first,
        exclude_current=exclude_current,
    )
    about = {"description": description, "tags": tags, "owner": owner}
    return _view(base, name, fields, Derived(recent=what), about)


# The base view


def _base(base: FeatureView, subject: str) -> tuple[Series, dict[str, Any]]:
    """The series of a base view, and the types of its features by name."""
    series = series_of(base)
    if series is None:
        raise ConfigError(
            f"{subject}: `{base.name}` keeps the newest row of each entity alone. Have it keep "
            "every event: tags=ViewSettings(series=Series(...)).tags()."
        )
    if base.version != "latest":
        raise ConfigError(
            f"{subject}: `{base.name}` is pinned to version `{base.version}`; views are derived "
            "from the latest version alone."
        )
    if not base.features:
        raise ConfigError(f"{subject}: `{base.name}` has no `schema`. Declare its features.")
    return series, {field.name: field.dtype for field in base.features}


def _column(column: str, columns: Mapping[str, Any], base: FeatureView, subject: str) -> Any:
    if column not in columns:
        raise ConfigError(
            f"{subject}: `{base.name}` has no feature `{column}`. "
            f"{did_you_mean(column, columns, 'It has')}"
        )
    return columns[column]


def _view(
    base: FeatureView,
    name: str,
    fields: list[Field],
    derived: Derived,
    about: Mapping[str, Any],
) -> FeatureView:
    repeated = {
        field.name for field in fields if [each.name for each in fields].count(field.name) > 1
    }
    if repeated:
        raise ConfigError(
            f"Feature view `{name}`: several features would be called `{min(repeated)}`. Give "
            "them a `name` each."
        )
    tags = {**(about["tags"] or {}), **ViewSettings(derived=derived).tags()}
    view = FeatureView(
        name=name,
        source=base,
        sink_source=base.batch_source,
        schema=fields,
        ttl=base.ttl,
        online=False,
        description=about["description"],
        owner=about["owner"],
        tags=tags,
    )
    # Its own constructor takes entities as objects, which a view does not keep.
    view.entities = list(base.entities)
    view.entity_columns = list(base.entity_columns)
    return view


# Windows


def _window_feature(given: Aggregation, subject: str) -> WindowFeature:
    if given.time_window is None:
        raise ConfigError(f"{subject}: an aggregation of `{given.column}` has no `time_window`.")
    if given.slide_interval not in (None, given.time_window):
        raise ConfigError(
            f"{subject}: an aggregation of `{given.column}` has a `slide_interval`. Windows here "
            "end at the moment of each request and entity row: leave it out."
        )
    parts = (given.function, given.column, short(given.time_window) if given.time_window else "")
    return WindowFeature.model_validate(
        {
            "name": given.name or "_".join(filter(None, parts)),
            "function": given.function,
            "column": given.column,
            "window": given.time_window,
        },
        context={"subject": f"{subject}, aggregations"},
    )


def _type_of(
    feature: WindowFeature, columns: Mapping[str, Any], base: FeatureView, where: str
) -> Any:
    """The type of a feature, of that of its column."""
    function = feature.function
    if not feature.column:
        return Int64 if function in OF_EVENTS - {"time_since_last"} else Float64
    dtype = _column(feature.column, columns, base, where)
    takes = COLUMN_TYPES.get(function)
    if takes is not None and dtype not in takes:
        raise ConfigError(
            f"{where}: `{function}` takes {', '.join(map(str, takes))}, and `{feature.column}` of "
            f"`{base.name}` is {dtype}."
        )
    if function in {"count", "count_distinct"}:
        return Int64
    if function in {"mean", "std"}:
        return Float64
    if function == "sum":
        return Int64 if dtype in INTEGERS else Float64
    return dtype


# Lists


def _filled(fill: Any, dtype: Any, where: str) -> Any:
    """What stands for nulls of a type.

    Raises:
        ConfigError: it is no value of the type.
    """
    if fill is None:
        return None
    is_number = isinstance(fill, (int, float)) and not isinstance(fill, bool)
    limits = {Int32: INT32, Int64: INT64, UnixTimestamp: INT64}
    if dtype in limits:
        first, end = limits[dtype]
        fits = is_number and isinstance(fill, int) and first <= fill < end
    elif dtype in FLOATS:
        fits = is_number
    elif dtype == Bool:
        fits = isinstance(fill, bool)
    else:
        fits = isinstance(fill, str)
    if not fits:
        raise ConfigError(f"{where} is `{fill}`, which is no value of {dtype}.")
    return fill
