"""What a request at a moment was answered is what training has as of that moment.

Random events are pushed in the order in which they became known, up to a moment; the same rows are
the history, with what became known later. Lists and aggregates of both are compared.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from examples import cases
from feast import FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.aggregation import Aggregation
from feast.data_source import PushMode
from feast.types import Float64, Int64, String
from hypothesis import given
from hypothesis import strategies as st
from repos import open_repo_config
from series_shop import CUSTOMER

from feast_dynamo_ext import Series, ViewSettings, recent, windows
from feast_dynamo_ext.dynamo.series_read import as_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.server

NUMBERS, CUSTOMERS = itertools.count(), itertools.count(1)
HOUR = dt.timedelta(hours=1)
T0 = dt.datetime(2026, 3, 1, tzinfo=dt.timezone.utc)
FUNCTIONS = ("sum", "count", "mean", "min", "max", "count_distinct", "last", "first", "std")
COLUMNS = {"amount": FUNCTIONS, "items": FUNCTIONS, "category": ("count", "min", "last")}

# Event time and the hours until it became known, number, amount, items, category.
EVENTS = st.tuples(
    st.integers(0, 40) | st.sampled_from([0, 10, 20]),
    st.sampled_from([0, 0, 1, 30]),
    st.integers(1, 3),
    st.none() | st.floats(-1e6, 1e6) | st.just(math.nan),
    st.none() | st.integers(-(2**40), 2**40),
    st.none() | st.sampled_from(["a", "b", "ä"]),
)


def open_shop(endpoint: str, folder: Path) -> tuple[FeatureStore, str]:
    """A store with views over the series, and the path of its history."""
    config = open_repo_config(
        folder,
        project=f"parity{next(NUMBERS)}",
        online={"endpoint_url": endpoint, "region": "us-east-1"},
        offline={"region": "us-east-1"},
    )
    store = FeatureStore(config=config)
    path = str(folder / "history.parquet")
    source = FileSource(
        name="history", path=path, timestamp_field="at", created_timestamp_column="known"
    )
    base = FeatureView(
        name="purchases",
        entities=[CUSTOMER],
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="number", dtype=Int64),
            Field(name="amount", dtype=Float64),
            Field(name="items", dtype=Int64),
            Field(name="category", dtype=String),
        ],
        source=PushSource(name="push", batch_source=source),
        ttl=35 * HOUR,
        tags=ViewSettings(series=Series(tie_breaker="number")).tags(),
    )
    aggregations = [
        Aggregation(column=column, function=function, time_window=hours * HOUR)
        for column, functions in COLUMNS.items()
        for function in functions
        for hours in (7, 30)
    ]
    aggregations += [
        Aggregation(function=function, time_window=20 * HOUR)
        for function in ("count", "time_since_last")
    ]
    fill = {"items": -1, "category": "?", "number": 0}
    store.apply(
        [
            CUSTOMER,
            base,
            windows(base, name="spend", aggregations=aggregations),
            windows(base, name="before", aggregations=aggregations[:4], exclude_current=True),
            recent(base, name="last", last=3, fill=fill),
            recent(base, name="within", within=9 * HOUR, newest_first=False, fill=fill),
        ]
    )
    return store, path


@pytest.fixture(scope="module")
def shop(dynamodb_local, tmp_path_factory):
    """Opens it once, in a test: only there are credentials."""
    folder = tmp_path_factory.mktemp("parity")
    return functools.cache(lambda: open_shop(dynamodb_local, folder))


@cases(25)
@given(events=st.lists(EVENTS, max_size=12), at=st.integers(0, 45))
def test_training_has_what_requests_were_answered(shop, events, at):
    store, path = shop()
    customer, moment = next(CUSTOMERS), T0 + at * HOUR
    rows = pd.DataFrame(
        [
            {
                "customer_id": customer,
                "at": T0 + hour * HOUR,
                "known": T0 + (hour + late) * HOUR + order * dt.timedelta(microseconds=1),
                "number": number,
                "amount": amount,
                "items": items,
                "category": category,
            }
            for order, (hour, late, number, amount, items, category) in enumerate(events)
        ],
        columns=["customer_id", "at", "known", "number", "amount", "items", "category"],
    ).astype({"items": "Int64", "amount": "float64", "at": "datetime64[us, UTC]"})
    rows["known"] = rows["known"].astype("datetime64[us, UTC]")
    rows.to_parquet(path)
    known = rows[rows["known"] <= moment].sort_values("known")
    for _, each in known.iterrows():
        store.push("push", each.to_frame().T.convert_dtypes(), to=PushMode.ONLINE)
    names = ("spend", "before", "last", "within")
    features = [
        f"{name}:{field.name}" for name in names for field in store.get_feature_view(name).features
    ]
    with as_of(moment):
        online = store.get_online_features(
            features, [{"customer_id": customer}], full_feature_names=True
        ).to_dict()
    entities = pd.DataFrame({"customer_id": [customer], "event_timestamp": [moment]})
    (offline,) = (
        store.get_historical_features(
            entities, features, full_feature_names=True, filter_by_created_timestamp=True
        )
        .to_arrow()
        .to_pylist()
    )
    for name, (answered,) in online.items():
        assert is_alike(answered, offline[name]), (name, answered, offline[name])


def is_alike(one: Any, other: Any) -> bool:
    """Floats within 1e-9, all else exactly."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return type(one) is type(other) and one == other
