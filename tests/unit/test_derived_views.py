"""Views that are derived from a series: their names and types, and what is refused."""

from __future__ import annotations

from datetime import timedelta

import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, Map, String, UnixTimestamp

from feast_dynamo_ext import Series, ViewSettings, recent, windows
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.series_settings import Derived, short
from feast_dynamo_ext.view_settings import derived_of, series_of

DAY = timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
TYPES = {
    "purchase_id": Int64,
    "amount": Float64,
    "weight": Float32,
    "items": Int32,
    "category": String,
    "is_gift": Bool,
    "paid_at": UnixTimestamp,
    "vector": Array(Float64),
    "more": Map,
}


def base(ttl: timedelta = timedelta(0), *, settings: ViewSettings | None = None, **series):
    given = {"tie_breaker": "purchase_id", "keep_for": 90 * DAY, **series}
    own = settings if settings is not None else ViewSettings(series=Series(**given))
    return FeatureView(
        name="purchases",
        entities=[CUSTOMER],
        schema=[
            Field(name="customer_id", dtype=Int64),
            *(Field(name=name, dtype=dtype) for name, dtype in TYPES.items()),
        ],
        source=FileSource(name="history", path="history.parquet", timestamp_field="at"),
        ttl=ttl,
        tags=own.tags(),
    )


def aggregation(function: str, column: str = "", window: timedelta = 30 * DAY, **more):
    return Aggregation(column=column, function=function, time_window=window, **more)


@pytest.mark.parametrize(
    ("given", "name", "dtype"),
    [
        (aggregation("sum", "amount"), "sum_amount_30d", Float64),
        (aggregation("sum", "weight", timedelta(hours=36)), "sum_weight_36h", Float64),
        (aggregation("sum", "items", timedelta(minutes=90)), "sum_items_90m", Int64),
        (aggregation("mean", "items", timedelta(seconds=30)), "mean_items_30s", Float64),
        (aggregation("std", "amount", timedelta(milliseconds=5)), "std_amount_5000us", Float64),
        (aggregation("count"), "count_30d", Int64),
        (aggregation("count", "category"), "count_category_30d", Int64),
        (aggregation("count_distinct", "category"), "count_distinct_category_30d", Int64),
        (aggregation("min", "weight"), "min_weight_30d", Float32),
        (aggregation("max", "paid_at"), "max_paid_at_30d", UnixTimestamp),
        (aggregation("last", "vector"), "last_vector_30d", Array(Float64)),
        (aggregation("first", "is_gift"), "first_is_gift_30d", Bool),
        (aggregation("time_since_last"), "time_since_last_30d", Float64),
        (aggregation("sum", "amount", name="spent"), "spent", Float64),
    ],
)
def test_an_aggregate_has_a_name_and_a_type(given, name, dtype):
    (field,) = windows(base(), name="spend", aggregations=[given]).features
    assert (field.name, field.dtype.to_value_type()) == (name, dtype.to_value_type())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (aggregation("sum", "amont"), "has no feature `amont`. Did you mean `amount`?"),
        (aggregation("sum", "category"), "`sum` takes Int32, Int64, Float32, Float64, and"),
        (aggregation("max", "is_gift"), "`max` takes Int32"),
        (aggregation("count_distinct", "vector"), "`count_distinct` takes Int32"),
        (aggregation("median", "amount"), "`function` is `median`, but must be sum, count"),
        (aggregation("sum"), "`sum` needs a `column`"),
        (aggregation("time_since_last", "amount"), "takes no `column`"),
        (aggregation("sum", "amount", 91 * DAY), "a window of 91d is longer than the `keep_for`"),
        (Aggregation(column="amount", function="sum"), "has no `time_window`"),
        (aggregation("sum", "amount", slide_interval=DAY), "has a `slide_interval`"),
    ],
)
def test_an_aggregate_that_cannot_be_is_refused(given, said):
    with pytest.raises(ConfigError, match="Feature view `spend`") as caught:
        windows(base(), name="spend", aggregations=[given])
    assert said in str(caught.value)


def test_features_of_one_name_are_refused():
    twice = [aggregation("sum", "amount"), aggregation("sum", "amount", timedelta(hours=720))]
    with pytest.raises(ConfigError, match="several features would be called `sum_amount_30d`"):
        windows(base(), name="spend", aggregations=twice)


def test_lists_have_names_and_types():
    view = recent(base(), name="last", last=20, features=["amount", "paid_at", "category"])
    assert [(field.name, field.dtype.to_value_type()) for field in view.features] == [
        ("amount_last_20", ValueType.DOUBLE_LIST),
        ("paid_at_last_20", ValueType.INT64_LIST),
        ("category_last_20", ValueType.STRING_LIST),
        ("event_time_last_20", ValueType.INT64_LIST),
    ]
    within = recent(base(), name="month", within=30 * DAY, features=["amount"])
    assert [field.name for field in within.features] == ["amount_30d", "event_time_30d"]


def test_training_goes_no_further_back_than_what_is_kept():
    def reach(view: FeatureView) -> timedelta | None:
        found = derived_of(view)
        assert found is not None
        return found.what.longest

    assert reach(recent(base(), name="last", last=20, features=["amount"])) == 90 * DAY
    assert reach(recent(base(7 * DAY), name="last", last=20, features=["amount"])) == 7 * DAY
    without = base(keep_for=None)
    assert reach(recent(without, name="last", last=20, features=["amount"])) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"features": ["amount"]}, "recent events need `last`, `within`, or both"),
        ({"last": 0, "features": ["amount"]}, "`last` is `0`, but must be a whole number"),
        ({"last": 2, "features": ["amont"]}, "has no feature `amont`. Did you mean `amount`?"),
        ({"last": 2, "features": ["vector"]}, "`vector` of `purchases` is"),
        ({"within": 91 * DAY, "features": ["amount"]}, "`within` of 91d is longer than"),
        ({"last": 2, "features": ["items"], "fill": {"items": 1.5}}, "`1.5`, which is no value"),
        ({"last": 2, "features": ["items"], "fill": {"items": 2**31}}, "which is no value of"),
        ({"last": 2, "features": ["is_gift"], "fill": {"is_gift": 1}}, "which is no value of"),
        ({"last": 2, "features": ["items"], "fill": {"amount": 1.0}}, "which is not listed"),
    ],
)
def test_a_list_that_cannot_be_is_refused(given, said):
    with pytest.raises(ConfigError) as caught:
        recent(base(), name="last", **given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (base(settings=ViewSettings()), "keeps the newest row of each entity alone"),
        (base(7 * DAY), "a window of 30d is longer than the `ttl` of `purchases`, 7d"),
    ],
)
def test_a_base_that_has_not_the_events_is_refused(view, said):
    with pytest.raises(ConfigError, match=said):
        windows(view, name="spend", aggregations=[aggregation("sum", "amount")])


def test_a_pinned_base_is_refused():
    pinned = base()
    pinned.version = "v2"
    with pytest.raises(ConfigError, match="is pinned to version `v2`"):
        recent(pinned, name="last", last=2)


def test_a_registry_gives_back_what_was_declared():
    made = windows(
        base(),
        name="spend",
        aggregations=[aggregation("sum", "amount"), aggregation("count")],
        tags={"team": "growth"},
        description="what they spend",
    )
    found = FeatureView.from_proto(made.to_proto())
    assert derived_of(found) == derived_of(made)
    assert isinstance(derived_of(found), Derived)
    assert (found.online, found.description, found.tags["team"]) == (
        False,
        "what they spend",
        "growth",
    )
    (kept,) = found.source_views
    assert series_of(kept) == series_of(base())
    assert found.entities == ["customer"]


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(days=30), "30d"),
        (timedelta(hours=25), "25h"),
        (timedelta(seconds=61), "61s"),
        (timedelta(microseconds=1), "1us"),
    ],
)
def test_durations_are_short_in_names(duration, text):
    assert short(duration) == text


@pytest.mark.parametrize("last", [0, -1, 2.0, True, "2"])
def test_how_many_events_are_listed_is_a_whole_number(last):
    with pytest.raises(ConfigError, match=f"`lists`: `last` is `{last}`, but must be a whole"):
        recent(base(), name="lists", last=last, features=["amount"])
