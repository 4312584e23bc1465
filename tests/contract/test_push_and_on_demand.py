"""Pushes, on-demand views that are written, and label views, beside Feast's own parts."""

from __future__ import annotations

import asyncio
import datetime as dt

import pandas as pd
import pytest
from beside_feast import CUSTOMERS, END, START, at
from feast import (
    FeatureView,
    Field,
    LabelView,
    OnDemandFeatureView,
    PushSource,
    StreamFeatureView,
)
from feast.data_source import PushMode
from feast.transformation.pandas_transformation import PandasTransformation
from feast.transformation.python_transformation import PythonTransformation
from feast.types import Float64, Int64, String
from views import CUSTOMER

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* are experimental features:RuntimeWarning"),
]

FOREVER = dt.timedelta(0)
MATERIALIZED = [(2.0, 1), (3.5, 0), (4.0, 5), None]
# 1: newer than what is materialized; 4: new
PUSHED = [(9.0, 7), (3.5, 0), (4.0, 5), (8.0, 7)]


def schema(**features) -> list[Field]:
    return [Field(name=name, dtype=dtype) for name, dtype in features.items()]


def pushed(total: list[float], hour: float = 7) -> pd.DataFrame:
    moment = START + dt.timedelta(hours=hour)
    return pd.DataFrame(
        {
            "cid": [1, 4],
            "hour": pd.to_datetime([moment, moment]),
            "made": pd.to_datetime([moment, moment]),
            "total": total,
            "items": [7, 8],
        }
    )


def orders(repo, kind=FeatureView, **options):
    return kind(
        name="orders",
        entities=[CUSTOMER],
        schema=schema(cid=Int64, total=Float64),
        source=PushSource(name="push", batch_source=repo.source()),
        ttl=FOREVER,
        **options,
    )


# Pushes


@pytest.mark.parametrize("kind", [FeatureView, StreamFeatureView])
def test_a_push_to_online_is_read_online_alone(two_repos, kind):
    two_repos.apply(lambda repo: [CUSTOMER, orders(repo, kind)])
    two_repos.materialize()
    for repo in two_repos.both:
        repo.store.push("push", pushed([9.0, 8.0]))
        assert len(repo.rows()) == 6
    two_repos.assert_answer({"orders:total": PUSHED})


@pytest.mark.parametrize("kind", [FeatureView, StreamFeatureView])
def test_a_push_to_offline_is_in_the_history_alone(two_repos, kind):
    two_repos.apply(lambda repo: [CUSTOMER, orders(repo, kind)])
    two_repos.materialize()
    for repo in two_repos.both:
        repo.store.push("push", pushed([9.0, 8.0]), to=PushMode.OFFLINE)
        assert sorted(row["total"] for row in repo.rows()) == [1, 2, 3, 3.5, 4, 5, 8, 9]
    two_repos.assert_answer({"orders:total": MATERIALIZED})
    two_repos.materialize()
    two_repos.assert_answer({"orders:total": PUSHED})


def test_a_push_to_both_is_in_both_and_materialize_does_not_undo_it(two_repos):
    two_repos.apply(lambda repo: [CUSTOMER, orders(repo)])
    for repo in two_repos.both:
        repo.store.push("push", pushed([9.0, 8.0]), to=PushMode.ONLINE_AND_OFFLINE)
    expected = [(9.0, 7), None, None, (8.0, 7)]
    two_repos.assert_answer({"orders:total": expected})
    two_repos.materialize()
    two_repos.assert_answer({"orders:total": PUSHED})
    asked = pd.DataFrame({"cid": [1, 4], "event_timestamp": [END, END]})
    for repo in two_repos.both:
        job = repo.store.get_historical_features(entity_df=asked, features=["orders:total"])
        assert job.to_df().sort_values("cid")["total"].to_list() == [9.0, 8.0]


def test_a_push_of_nulls_alone_is_dropped_by_feast(two_repos):
    """Before any store sees it. History has it, and the provider writes it."""
    two_repos.apply(lambda repo: [CUSTOMER, orders(repo)])
    two_repos.materialize()
    ours, nulls = two_repos.ours.store, pushed([None, None])
    with pytest.warns(UserWarning, match="Cannot write dataframe with empty feature columns"):
        ours.push("push", nulls, to=PushMode.ONLINE_AND_OFFLINE)
    with pytest.warns(UserWarning, match="Cannot write dataframe with empty feature columns"):
        asyncio.run(ours.push_async("push", nulls))
    with pytest.warns(UserWarning, match="Cannot write dataframe with empty feature columns"):
        ours.write_to_online_store("orders", nulls)
    assert ours.get_online_features(["orders:total"], CUSTOMERS).to_dict()["total"][0] == 2.0
    assert [row["total"] for row in two_repos.ours.rows()].count(None) == 2
    ours.provider.ingest_df(ours.get_feature_view("orders"), nulls)
    answer = ours.get_online_features(["orders:total"], CUSTOMERS)
    assert answer.to_dict()["total"][0] is None
    ours.push("push", pushed([None, 6.0], hour=8))
    answer = ours.get_online_features(["orders:total"], CUSTOMERS)
    assert answer.to_dict()["total"] == [None, 3.5, 4.0, 6.0]


def test_an_async_push(two_repos):
    two_repos.apply(lambda repo: [CUSTOMER, orders(repo)])
    ours = two_repos.ours.store  # Feast's sqlite store writes no rows on an event loop

    async def push_and_close() -> None:
        await ours.push_async("push", pushed([9.0, 8.0]), to=PushMode.ONLINE_AND_OFFLINE)
        await ours.provider.online_store.close()

    asyncio.run(push_and_close())
    assert two_repos.ours.answer(["orders:total"])["total"] == [9.0, None, None, 8.0]
    assert len(two_repos.ours.rows()) == 8


def test_a_materialization_of_older_rows_does_not_replace_a_push(two_repos):
    two_repos.apply(lambda repo: [CUSTOMER, orders(repo)])
    for repo in two_repos.both:
        repo.store.push("push", pushed([9.0, 8.0]))
    two_repos.materialize()
    assert two_repos.ours.answer(["orders:total"])["total"] == [9.0, 3.5, 4.0, 8.0]
    # In Feast's own store the last writer wins, and the push of customer 1 is gone.
    assert two_repos.feasts.answer(["orders:total"])["total"] == [2.0, 3.5, 4.0, 8.0]


# On-demand views that are written


def by_pandas(frame):
    return pd.DataFrame({"twice": frame["total"] * 2})


def by_row(row):
    # Lists, with the join key and what is read: Feast transforms a second time what it writes.
    kept = {name: [row[name]] for name in ("cid", "total") if name in row}
    return {**kept, "twice": [row["total"] * 2]}


def by_column(columns):
    return {"twice": [total * 2 for total in columns["total"]]}


MODES = {
    "pandas": (PandasTransformation(by_pandas, "by_pandas"), {"mode": "pandas"}),
    "python": (PythonTransformation(by_column, "by_column"), {"mode": "python"}),
    "singleton": (
        PythonTransformation(by_row, "by_row", singleton=True),
        {"mode": "python", "singleton": True},
    ),
}


def twice(base, mode):
    transformation, options = MODES[mode]
    return OnDemandFeatureView(
        name="twice",
        sources=[base],
        entities=[CUSTOMER],
        schema=schema(twice=Float64),
        feature_transformation=transformation,
        write_to_online_store=True,
        **options,
    )


def define(mode):
    def made(repo):
        base = orders(repo)
        return [CUSTOMER, base, twice(base, mode)]

    return made


@pytest.mark.parametrize("mode", MODES)
def test_materialize_writes_an_on_demand_view(two_repos, mode):
    two_repos.apply(define(mode))
    two_repos.materialize()
    for repo in two_repos.both:
        answer = repo.answer(["twice:twice"])
        assert answer["twice"] == [4.0, 7.0, 8.0, None]
        # Feast gives such rows the time of the write as their event time.
        assert min(answer["twice__ts"][:3]) > at(0) + 365 * 86_400


@pytest.mark.parametrize("mode", ["pandas", "singleton"])
def test_write_to_online_store_of_an_on_demand_view(two_repos, mode):
    two_repos.apply(define(mode))
    frame = pushed([9.0, 8.0])
    for repo in two_repos.both:
        repo.store.write_to_online_store("twice", df=frame)
        assert repo.answer(["twice:twice"])["twice"] == [18.0, None, None, 16.0]
        ready = frame.assign(twice=[1.5, 2.5])
        repo.store.write_to_online_store("twice", df=ready, transform_on_write=False)
        assert repo.answer(["twice:twice"])["twice"] == [1.5, None, None, 2.5]


def test_write_to_online_store_of_a_feature_view_keeps_the_newest(two_repos):
    two_repos.apply(lambda repo: [CUSTOMER, orders(repo)])
    ours = two_repos.ours
    for repo in two_repos.both:
        repo.store.write_to_online_store("orders", df=pushed([9.0, 8.0]))
    two_repos.assert_answer({"orders:total": [(9.0, 7), None, None, (8.0, 7)]})
    ours.store.write_to_online_store("orders", df=pushed([1.0, 1.0], hour=6))
    assert ours.answer(["orders:total"])["total"] == [9.0, None, None, 8.0]


# Label views


def labelled(repo):
    labels = LabelView(
        name="labels",
        entities=[CUSTOMER],
        schema=schema(cid=Int64, churned=Int64, labeler=String),
        source=PushSource(name="label_push", batch_source=repo.source("labels")),
    )
    return [CUSTOMER, orders(repo), labels]


@pytest.fixture
def labels(two_repos):
    """Both repos with a label view beside `orders`."""
    first = {"cid": [1], "hour": [1], "made": [1], "churned": [1], "labeler": ["a"]}
    two_repos.keep("labels", first)
    two_repos.apply(labelled)
    return two_repos


def test_label_views_are_refused_by_name_and_left_out_otherwise(labels):
    for repo in labels.both:
        with pytest.raises(ValueError, match=r"LabelView labels cannot be materialized.*push"):
            repo.store.materialize(START, END, feature_views=["labels"])
    labels.materialize()
    labels.assert_answer({"orders:total": MATERIALIZED})
    assert labels.ours.answer(["labels:churned"])["churned"] == [None] * len(CUSTOMERS)


def test_labels_are_pushed(labels):
    frame = pushed([0.0, 0.0]).assign(churned=[0, 1], labeler="b")
    frame = frame[["cid", "hour", "made", "churned", "labeler"]]
    for repo in labels.both:
        repo.store.push("label_push", frame, to=PushMode.ONLINE_AND_OFFLINE)
        assert sorted(row["labeler"] for row in repo.rows("labels")) == ["a", "b", "b"]
    expected = {
        "labels:churned": [(0, 7), None, None, (1, 7)],
        "labels:labeler": [("b", 7), None, None, ("b", 7)],
    }
    labels.assert_answer(expected)
