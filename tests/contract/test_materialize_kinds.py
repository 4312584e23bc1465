"""What materialize does with each kind of view, beside what Feast's own parts do with it."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest
from beside_feast import END, START, at
from feast import (
    BatchFeatureView,
    Entity,
    FeatureView,
    Field,
    PushSource,
    StreamFeatureView,
    ValueType,
)
from feast.aggregation import Aggregation
from feast.batch_feature_view import batch_feature_view
from feast.feature_view import FeatureViewState
from feast.types import Float64, Int64, String
from views import CUSTOMER

from feast_dynamo_ext.errors import FeastDynamoError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* are experimental features:RuntimeWarning"),
]

# Feast's engine groups aggregations by the entity's name, so it is the join key's here.
CID = Entity(name="cid", join_keys=["cid"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)
FOREVER = dt.timedelta(0)
TOTALS = [(2.0, 1), (3.5, 0), (4.0, 5), None]
TWICE = [(4.0, 1), (7.0, 0), (8.0, 5), None]


def schema(**features) -> list[Field]:
    return [Field(name=name, dtype=dtype) for name, dtype in features.items()]


def doubled(frame):
    return frame.assign(twice=frame["total"] * 2)


def twice(repo, kind=BatchFeatureView, name="twice", **options):
    given = {
        "mode": "pandas",
        "entities": [CUSTOMER],
        "schema": schema(cid=Int64, twice=Float64),
        "udf": doubled,
        "udf_string": "doubled",
        "online": True,
        "ttl": FOREVER,
    }
    return kind(name=name, **{"source": repo.source(), **given, **options})


# Plain views


@pytest.mark.parametrize("kind", [FeatureView, BatchFeatureView])
@pytest.mark.parametrize("ttl", [FOREVER, None])
def test_a_view_without_a_transformation(two_repos, kind, ttl):
    two_repos.apply(
        lambda repo: [
            CUSTOMER,
            kind(
                name="orders",
                entities=[CUSTOMER],
                schema=schema(cid=Int64, total=Float64),
                source=repo.source(),
                online=True,
                ttl=ttl,
            ),
        ]
    )
    two_repos.materialize()
    two_repos.assert_answer({"orders:total": TOTALS})


def test_integers_with_nulls_stay_exact(two_repos):
    two_repos.apply(
        lambda repo: [
            CUSTOMER,
            FeatureView(
                name="orders",
                entities=[CUSTOMER],
                schema=schema(cid=Int64, items=Int64),
                source=repo.source(),
                ttl=FOREVER,
            ),
        ]
    )
    two_repos.materialize()
    assert two_repos.ours.answer(["orders:items"])["items"] == [2**53 + 1, 3, None, None]
    # A null makes the column a float of Feast's.
    assert two_repos.feasts.answer(["orders:items"])["items"] == [2**53, 3, None, None]


def test_a_view_without_entities(two_repos):
    two_repos.keep("rates", {"hour": [0, 2, 1], "made": [0, 2, 1], "rate": [0.5, 0.7, 0.6]})
    two_repos.apply(
        lambda repo: [
            FeatureView(
                name="rates",
                entities=[],
                schema=schema(rate=Float64),
                source=repo.source("rates"),
                ttl=FOREVER,
            )
        ]
    )
    two_repos.materialize()
    two_repos.assert_answer({"rates:rate": [(0.7, 2), (0.7, 2)]}, [{"cid": 1}, {"cid": 9}])


def test_a_source_whose_columns_have_other_names(two_repos):
    renamed = {"total_eur": "total", "customer_no": "cid", "at": "hour", "stored": "made"}
    back = {new: old for old, new in renamed.items()}
    for repo in two_repos.both:
        table = pa.Table.from_pylist(repo.rows())
        repo.keep("eur", table.rename_columns([back.get(n, n) for n in table.column_names]))
    two_repos.apply(
        lambda repo: [
            CUSTOMER,
            FeatureView(
                name="eur",
                entities=[CUSTOMER],
                schema=schema(cid=Int64, total=Float64),
                source=repo.source("eur", field_mapping=renamed),
                ttl=FOREVER,
            ),
        ]
    )
    two_repos.materialize()
    two_repos.assert_answer({"eur:total": TOTALS})


def test_two_entities_and_keys_of_text(two_repos):
    columns = {
        "sid": ["é", "b", "é", "é"],
        "cid": [1, 1, 2, 1],
        "hour": [0, 1, 2, 3],
        "visits": [10, 11, 12, 13],
    }
    two_repos.keep("visits", columns)
    two_repos.apply(
        lambda repo: [
            CUSTOMER,
            SHOP,
            FeatureView(
                name="visits",
                # in another order than that of the names, which the key is sorted by
                entities=[SHOP, CUSTOMER],
                schema=schema(sid=String, cid=Int64, visits=Int64),
                source=repo.source("visits", without_made=True),
                ttl=FOREVER,
            ),
            FeatureView(
                name="shops",
                entities=[SHOP],
                schema=schema(sid=String, visits=Int64),
                source=repo.source("visits", without_made=True),
                ttl=FOREVER,
            ),
        ]
    )
    two_repos.materialize()
    asked = [{"sid": sid, "cid": cid} for sid, cid in (("é", 1), ("b", 1), ("é", 2), ("b", 2))]
    two_repos.assert_answer({"visits:visits": [(13, 3), (11, 1), (12, 2), None]}, asked)
    two_repos.assert_answer({"shops:visits": [(13, 3), (11, 1), (13, 3), (11, 1)]}, asked)


# Batch views with a transformation


@pytest.mark.parametrize("mode", ["pandas", "python"])
def test_a_transformation_sees_the_whole_source(two_repos, mode):
    two_repos.apply(lambda repo: [CUSTOMER, twice(repo, mode=mode)])
    two_repos.materialize()
    two_repos.assert_answer({"twice:twice": TWICE})


def test_a_decorated_transformation(two_repos):
    def define(repo):
        @batch_feature_view(
            mode="pandas",
            entities=[CUSTOMER],
            schema=schema(cid=Int64, per_item=Float64),
            source=repo.source(),
            offline=False,
            ttl=FOREVER,
        )
        def prices(frame):
            return frame.assign(per_item=frame["total"] / frame["items"].fillna(1).clip(upper=4))

        return [CUSTOMER, prices]

    two_repos.apply(define)
    two_repos.materialize()
    two_repos.assert_answer({"prices:per_item": [(0.5, 1), (3.5 / 3, 0), (4.0, 5), None]})


def test_a_transformation_beside_a_plain_view_in_one_call(two_repos):
    two_repos.apply(
        lambda repo: [
            CUSTOMER,
            twice(repo),
            FeatureView(
                name="orders",
                entities=[CUSTOMER],
                schema=schema(cid=Int64, total=Float64),
                source=repo.source(),
                ttl=FOREVER,
            ),
        ]
    )
    two_repos.materialize()
    two_repos.assert_answer({"twice:twice": TWICE, "orders:total": TOTALS})


def test_a_view_over_views_with_and_without_a_transformation(two_repos):
    def define(repo):
        base = twice(
            repo, name="base", schema=schema(cid=Int64, total=Float64), udf=None, mode="python"
        )
        sink = repo.source()
        over = twice(repo, name="over", source=[base], sink_source=sink)
        same = twice(
            repo,
            name="same",
            source=[base],
            sink_source=sink,
            udf=None,
            schema=schema(cid=Int64, total=Float64),
        )
        return [CUSTOMER, base, over, same]

    two_repos.apply(define)
    two_repos.materialize()
    two_repos.assert_answer({"base:total": TOTALS, "over:twice": TWICE, "same:total": TOTALS})


def test_a_transformed_view_is_kept_online_and_in_its_sink(two_repos):
    """Feast's file store refuses it: its sink has not the columns in the order of the frame."""
    two_repos.keep("sink", {"cid": [0], "hour": [0], "made": [0], "twice": [0.0]})
    two_repos.apply(
        lambda repo: [
            CUSTOMER,
            base := twice(
                repo, name="base", schema=schema(cid=Int64, total=Float64), udf=None, mode="python"
            ),
            twice(
                repo,
                source=[base],
                sink_source=repo.source("sink"),
                offline=True,
            ),
        ]
    )
    ours, feasts = two_repos.both
    with pytest.raises(ValueError, match="incorrect columns"):
        feasts.store.materialize(START, END, feature_views=["twice"])
    ours.store.materialize(START, END, feature_views=["twice"])
    found = ours.answer(["twice:twice"])
    assert found == {"twice": [4.0, 7.0, 8.0, None], "twice__ts": [at(1), at(0), at(5), 0]}
    kept = ours.rows("sink")
    rows = {(row["cid"], row["hour"].hour, row["made"].hour, row["twice"]) for row in kept}
    assert rows == {(0, 0, 0, 0.0), (1, 1, 1, 4.0), (2, 0, 2, 7.0), (3, 5, 5, 8.0)}


def test_a_view_that_is_only_offline_is_kept_in_its_sink(two_repos):
    two_repos.keep("sink", {"cid": [0], "hour": [0], "made": [0], "twice": [0.0]})
    ours = two_repos.ours
    base = twice(
        ours, name="base", schema=schema(cid=Int64, total=Float64), udf=None, mode="python"
    )
    sink = ours.source("sink")
    ours.store.apply(
        [CUSTOMER, base, twice(ours, source=[base], sink_source=sink, offline=True, online=False)]
    )
    ours.store.materialize(START, END, feature_views=["twice"])
    assert sorted(row["twice"] for row in ours.rows("sink")) == [0.0, 4.0, 7.0, 8.0]


def test_a_failing_transformation_leaves_no_state_behind(two_repos):
    def failing(frame):
        raise ZeroDivisionError("on purpose")

    two_repos.apply(lambda repo: [CUSTOMER, twice(repo, udf=failing)])
    for repo in two_repos.both:
        with pytest.raises(Exception, match="on purpose"):
            repo.store.materialize(START, END)
        view = repo.store.get_feature_view("twice")
        assert view.state != FeatureViewState.MATERIALIZING
        assert view.materialization_intervals == []


def test_a_transformation_that_gives_no_row_says_so_in_words(two_repos, caplog):
    ours, long_ago = two_repos.ours, START - dt.timedelta(days=900)
    ours.store.apply([CUSTOMER, twice(ours)])
    ours.store.materialize(long_ago, long_ago + dt.timedelta(days=1))
    assert [r.getMessage() for r in caplog.records if "feature view twice" in r.getMessage()] == [
        "feature view twice: no row came out of its transformation from "
        f"{long_ago.isoformat()} to {(long_ago + dt.timedelta(days=1)).isoformat()}, so nothing "
        "is written."
    ]


# Stream views


def stream(repo, **options):
    given = {"name": "orders", "source": PushSource(name="push", batch_source=repo.source())}
    return twice(repo, kind=StreamFeatureView, **{**given, **options})


def test_a_stream_view_is_materialized_from_its_batch_source(two_repos):
    total = schema(cid=Int64, total=Float64)
    two_repos.apply(lambda repo: [CUSTOMER, stream(repo, udf=None, schema=total)])
    two_repos.materialize()
    two_repos.assert_answer({"orders:total": TOTALS})


def test_a_stream_views_transformation_sees_the_whole_source(two_repos):
    two_repos.apply(lambda repo: [CUSTOMER, stream(repo)])
    two_repos.materialize()
    two_repos.assert_answer({"orders:twice": TWICE})


def sums(repo, *more):
    return stream(
        repo,
        udf=None,
        source=PushSource(name="push", batch_source=repo.source(without_made=True)),
        entities=[CID],
        schema=schema(cid=Int64, sum_total=Float64),
        timestamp_field="hour",
        aggregations=[Aggregation(column="total", function="sum"), *more],
    )


def test_a_stream_views_aggregations_are_of_the_whole_window(two_repos):
    newest = Aggregation(column="hour", function="max", name="hour")
    two_repos.apply(lambda repo: [CID, sums(repo, newest)])
    two_repos.materialize()
    two_repos.assert_answer({"orders:sum_total": [(3.0, 1), (6.5, 0), (4.0, 5), None]})


def test_aggregations_without_an_event_time_fail_as_feasts_do(two_repos):
    two_repos.apply(lambda repo: [CID, sums(repo)])
    for repo in two_repos.both:
        with pytest.raises(Exception, match=r'Field "hour" does not exist'):
            repo.store.materialize(START, END)


def test_a_batch_views_aggregations_are_lost_in_feasts_registry_and_refused(two_repos):
    """Feast reads them back as a view without aggregations, and fails on the column."""
    two_repos.apply(
        lambda repo: [
            CID,
            twice(
                repo,
                name="sums",
                udf=None,
                entities=[CID],
                schema=schema(cid=Int64, sum_total=Float64),
                aggregations=[Aggregation(column="total", function="sum")],
            ),
        ]
    )
    ours, feasts = two_repos.both
    with pytest.raises(KeyError, match="sum_total"):
        feasts.store.materialize(START, END)
    with pytest.raises(FeastDynamoError, match="sum_total"):
        ours.store.materialize(START, END)
