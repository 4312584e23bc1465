"""Entities are found by a value of their rows or events, each once, and scored."""

from __future__ import annotations

import datetime as dt
import itertools
import logging

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureService
from feast.errors import FeatureViewNotFoundException
from feast.types import Float64
from series_shop import (
    DAY,
    SeriesShop,
    ShortPages,
    ThrottledQueries,
    customers_view,
    purchases_view,
    view_of,
)

from feast_dynamo_ext import cohort, score_cohort
from feast_dynamo_ext.derived import recent
from feast_dynamo_ext.errors import ConfigError, ServingError, TableLayoutError, ThrottledError


@pytest.fixture
def shop(open_store, dynamodb, tmp_path):
    made = SeriesShop.open(open_store, dynamodb, tmp_path)
    yield made
    made.store.teardown()


def ids(entities) -> list[int]:
    found = list(entities)
    assert all(set(each) == {"customer_id"} for each in found)
    return [each["customer_id"] for each in found]


def test_entities_of_a_series_each_once_newest_first(shop, tmp_path):
    shop.apply(purchases_view("purchases", tmp_path, cohorts=("category", "purchase_id")))
    shop.buy(
        "purchases",
        (1, 1, 1, 5.0, "books"), (1, 7, 2, 5.0, "books"), (2, 3, 3, 5.0, "books"),
        (3, 2, 4, 5.0, "toys"), (4, 5, 5, 5.0, "books"), (4, 6, 6, 5.0, "toys"),
        (5, 4, 7, 5.0, None), (6, 9, 8, 5.0, "books"),
    )  # fmt: skip
    store = shop.store
    assert ids(cohort(store, "purchases", category="books")) == [1, 2, 4, 6]
    assert ids(cohort(store, "purchases", category="toys")) == [3, 4]
    assert ids(cohort(store, "purchases", category="cars")) == []
    assert ids(cohort(store, "purchases", purchase_id=7)) == [5]
    assert ids(cohort(store, "purchases", category="books", limit=2)) == [1, 2]
    assert ids(cohort(store, "purchases", category="books", start=shop.time(5))) == [1, 2, 4]
    naive = shop.time(3).replace(tzinfo=None)
    assert ids(cohort(store, "purchases", category="books", start=naive)) == [1, 2]


def test_a_token_goes_on_and_gives_no_entity_again(shop, tmp_path):
    shop.apply(purchases_view("purchases", tmp_path, cohorts=("category",)))
    # Each customer buys in turn, over and over: all but the first round are duplicates.
    rounds = [(c, day + c / 100, 10 * day + c, 1.0, "books") for day in range(4) for c in range(8)]
    shop.buy("purchases", *rounds)
    for taken in range(9):
        first = cohort(shop.store, "purchases", category="books")
        given = ids(itertools.islice(first, taken))
        assert (first.token is None) == (taken == 0)
        rest = cohort(shop.store, "purchases", category="books", token=first.token)
        assert given + ids(rest) == list(range(8))
    # Who buys meanwhile is ahead of where the first one began, and is given once.
    first = cohort(shop.store, "purchases", category="books")
    assert ids(itertools.islice(first, 3)) == [0, 1, 2]
    shop.buy("purchases", (7, -1, 99, 1.0, "books"), (9, -1, 98, 1.0, "books"))
    rest = cohort(shop.store, "purchases", category="books", token=first.token)
    assert ids(rest) == [3, 4, 5, 6, 7]
    assert ids(cohort(shop.store, "purchases", category="books", token=rest.token)) == []


def test_entities_of_one_moment_are_not_lost_at_a_token(shop, tmp_path):
    shop.apply(purchases_view("purchases", tmp_path, cohorts=("category",)))
    # All have one sort key.
    shop.buy("purchases", *[(customer, 1, 5, 1.0, "books") for customer in range(12)])
    for taken in (1, 5, 11, 12):
        first = cohort(shop.store, "purchases", category="books")
        given = ids(itertools.islice(first, taken))
        rest = ids(cohort(shop.store, "purchases", category="books", token=first.token))
        assert sorted(given + rest) == list(range(12))


def test_tokens_and_start_together(shop, tmp_path):
    shop.apply(purchases_view("purchases", tmp_path, cohorts=("category",)))
    shop.buy("purchases", *[(c, c, c, 1.0, "books") for c in range(6)])
    first = cohort(shop.store, "purchases", category="books")
    assert ids(itertools.islice(first, 3)) == [0, 1, 2]
    from_4 = {"category": "books", "token": first.token, "start": shop.time(4)}
    assert ids(cohort(shop.store, "purchases", **from_4)) == [3, 4]
    # Events that count no more at all.
    from_1 = {"category": "books", "token": first.token, "start": shop.time(1)}
    assert ids(cohort(shop.store, "purchases", **from_1)) == []


def test_many_pages(shop, tmp_path, caplog):
    shop.apply(purchases_view("purchases", tmp_path, cohorts=("category",)))
    shop.buy("purchases", *[(c % 60, c / 1_000, c, 1.0, "books") for c in range(99)])
    shop.read_through(lambda transport: ShortPages(transport, 7))
    assert ids(cohort(shop.store, "purchases", category="books")) == list(range(60))
    first = cohort(shop.store, "purchases", category="books")
    given = ids(itertools.islice(first, 20))
    rest = cohort(shop.store, "purchases", category="books", token=first.token)
    assert given + ids(rest) == list(range(60))
    limited = cohort(shop.store, "purchases", category="books", limit=30)
    assert ids(limited) == list(range(30))
    assert caplog.text == ""


def test_a_large_value_is_warned_of_once_without_naming_it(shop, tmp_path, caplog):
    shop.apply(purchases_view("purchases", tmp_path, cohorts=("category",)))
    shop.buy("purchases", *[(1, c / 1_000, c, 1.0, "books") for c in range(105)])
    shop.read_through(lambda transport: ShortPages(transport, 1))
    assert ids(cohort(shop.store, "purchases", category="books")) == [1]
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "one value of `category` has more than 100 pages" in record.getMessage()
    assert "books" not in record.getMessage()


def test_ttl_and_keep_for_end_a_cohort(shop, tmp_path):
    shop.apply(
        purchases_view("purchases", tmp_path, 4 * DAY, keep_for=3 * DAY, cohorts=("category",)),
        purchases_view("orders", tmp_path, 2 * DAY, cohorts=("category",)),
        customers_view("customers", tmp_path, 2 * DAY),
    )
    for view in ("purchases", "orders"):
        shop.buy(view, *[(day, day + 0.5, day, 1.0, "books") for day in range(6)])
    shop.visit("customers", (1, 1, "gold", 5), (2, 3, "gold", 5))
    assert ids(cohort(shop.store, "purchases", category="books")) == [0, 1, 2]
    assert ids(cohort(shop.store, "orders", category="books", start=shop.time(9))) == [0, 1]
    assert ids(cohort(shop.store, "customers", segment="gold")) == [1]


def test_packed_rows_leave_the_cohort_that_they_are_no_longer_of(shop, tmp_path, dynamodb):
    shop.apply(customers_view("customers", tmp_path))
    shop.visit("customers", (1, 5, "gold", 1), (2, 4, "gold", 1), (3, 3, None, 1), (4, 3, "", 1))
    assert ids(cohort(shop.store, "customers", segment="gold")) == [2, 1]
    assert ids(cohort(shop.store, "customers", segment="")) == [4]
    shop.visit("customers", (1, 1, "silver", 2), (2, 1, None, 2), (4, 9, "gold", 2))
    assert ids(cohort(shop.store, "customers", segment="gold")) == []  # 4: an older row
    assert ids(cohort(shop.store, "customers", segment="silver")) == [1]
    marks = [item.get("g_segment", {"S": "none"})["S"] for item in shop.items("customers")]
    assert sorted(marks) == ["=", "=silver", "none", "none"]
    answer = shop.store.get_online_features(
        ["customers:segment", "customers:visits"], {"customer_id": [1, 2, 3, 4]}
    ).to_dict()
    assert answer["segment"] == ["silver", None, None, ""]
    assert answer["visits"] == [2, 2, 1, 1]


def test_packed_rows_of_a_materialization_have_their_cohorts(shop, tmp_path):
    view = customers_view("customers", tmp_path, cohorts=("segment", "visits"))
    shop.apply(view)
    columns = ("segment", "visits")
    rows = [(c, 5 - c / 10, ["gold", "silver", None][c % 3], c // 2 or None) for c in range(9)]
    pd.DataFrame(shop.rows(columns, rows)).to_parquet(tmp_path / "customers.parquet")
    shop.store.materialize(shop.time(30), shop.time(0), ["customers"])
    assert ids(cohort(shop.store, "customers", segment="gold")) == [6, 3, 0]
    assert ids(cohort(shop.store, "customers", visits=2)) == [5, 4]
    assert ids(cohort(shop.store, "customers", visits=0)) == []
    # Rows that have changed; others are written once more as they are.
    rows += [(0, 1, "silver", 9), (3, 1, None, None)]
    pd.DataFrame(shop.rows(columns, rows)).to_parquet(tmp_path / "customers.parquet")
    shop.store.materialize(shop.time(30), shop.time(0), ["customers"])
    assert ids(cohort(shop.store, "customers", segment="gold")) == [6]
    assert ids(cohort(shop.store, "customers", segment="silver")) == [0, 7, 4, 1]
    assert ids(cohort(shop.store, "customers", visits=1)) == [2]
    # A push of a newer row, after rows that were encoded by column.
    shop.visit("customers", (7, 0, "gold", 1))
    assert ids(cohort(shop.store, "customers", segment="gold")) == [7, 6]


def test_what_is_no_cohort_is_refused_in_words(shop, tmp_path):
    base = purchases_view("purchases", tmp_path, cohorts=("category",))
    shop.apply(
        base,
        purchases_view("orders", tmp_path, cohorts=("category",)),
        customers_view("customers", tmp_path),
        recent(base, name="lately", last=3, features=["amount"]),
    )

    def refused(said, view="purchases", kind=ConfigError, **more):
        with pytest.raises(kind, match=said):
            list(cohort(shop.store, view, **more))

    refused("one feature and its value, category=..., and nothing was passed")
    refused("and `category`, `amount` was passed", category="a", amount=1.0)
    refused("has no feature `categroy`. Did you mean `category`", categroy="a")
    refused(r'found by `amount`.*Series\(cohorts=\["category", "amount"\]\)', amount=1.0)
    refused(
        r'`visits`.*Declare ViewSettings\(cohorts=\["segment", "visits"\]\)',
        view="customers", visits=1,
    )  # fmt: skip
    refused("type int, and no value of STRING", category=1)
    refused("`lately` is derived, .* base view, `purchases`", view="lately", amount=1)
    refused("nothing", view="nothing", kind=FeatureViewNotFoundException, category="a")
    refused("`limit` must be", category="a", limit=0)
    refused("`start` must be", category="a", start="2026-01-01")
    refused("the token is none", category="a", token="abc")
    shop.buy("orders", (1, 1, 1, 1.0, "a"))
    other = cohort(shop.store, "orders", category="a")
    assert ids(other) == [1]
    refused(r"another cohort \(table .*orders, index", category="a", token=other.token)
    refused("another value", view="orders", category="b", token=other.token)


def test_an_index_that_is_not_there_yet_is_named(shop, tmp_path):
    shop.apply(customers_view("customers", tmp_path, cohorts=()))
    view = customers_view("customers", tmp_path)
    shop.store.registry.apply_feature_view(view, shop.store.project)
    shop.store.refresh_registry()
    with pytest.raises(TableLayoutError, match=r"index `cohort_segment`.*`feast apply`"):
        list(cohort(shop.store, "customers", segment="gold"))


def test_a_page_that_cannot_be_read_is_tried_again_at_the_next_call(shop, tmp_path):
    shop.apply(purchases_view("purchases", tmp_path, cohorts=("category",)))
    shop.buy("purchases", *[(c, c / 100, c, 1.0, "books") for c in range(12)])
    in_turn = itertools.cycle([False, True])
    shop.read_through(
        lambda transport: ThrottledQueries(ShortPages(transport, 5), in_turn),
        base_s=100.0,
        cap_s=100.0,
        jitter=lambda: 1.0,
    )
    entities = cohort(shop.store, "purchases", category="books")
    assert ids(itertools.islice(entities, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ThrottledError):
        next(entities)
    assert ids(itertools.islice(entities, 5)) == [5, 6, 7, 8, 9]
    with pytest.raises(ThrottledError):
        next(entities)
    assert ids(entities) == [10, 11]


class Model:
    """Adds features up, and remembers what it was given."""

    def __init__(self):
        self.given = []

    def predict(self, frame):
        self.given.append(frame)
        return frame["amount_last_2"].map(sum) + frame["visits"].fillna(0)


@pytest.fixture
def scored(shop, tmp_path):
    base = purchases_view("purchases", tmp_path, cohorts=("category",))
    last = recent(base, name="lately", last=2, features=["amount"])
    customers = customers_view("customers", tmp_path)
    shop.apply(
        base,
        last,
        customers,
        view_of("scores", tmp_path, {}, score=Float64),
        FeatureService(name="model", features=[last[["amount_last_2"]], customers]),
    )
    shop.buy("purchases", *[(c, c / 10 + 0.1, c, float(c), "books") for c in range(7)])
    shop.visit("customers", *[(c, 1, "gold", 100 * c) for c in range(7) if c != 5])
    return shop


def test_a_cohort_is_scored_in_chunks(scored):
    model, service = Model(), scored.store.get_feature_service("model")
    scores = score_cohort(scored.store, "purchases", service, model, chunk=3, category="books")
    assert scores.token is None
    tables = list(scores)
    assert [len(table) for table in tables] == [3, 3, 1]
    schema = pa.schema(
        [
            ("customer_id", pa.int64()),
            ("amount_last_2", pa.list_(pa.float64())),
            ("segment", pa.string()),
            ("visits", pa.int64()),
            ("prediction", pa.float64()),
        ]
    )
    assert [table.schema for table in tables] == [schema] * 3
    whole = pa.concat_tables(tables).to_pydict()
    assert whole["customer_id"] == list(range(7))
    assert whole["amount_last_2"] == [[float(c)] for c in range(7)]
    assert whole["visits"] == [100 * c if c != 5 else None for c in range(7)]
    assert whole["prediction"] == [101.0 * c if c != 5 else 5.0 for c in range(7)]
    assert list(model.given[0].columns) == ["amount_last_2", "segment", "visits"]


def test_scores_go_on_after_the_last_table(scored):
    given = {"category": "books", "chunk": 3}
    refs = ["lately:amount_last_2", "customers:visits"]

    def scores(token=None, model=None):
        return score_cohort(
            scored.store, "purchases", refs, model or Model(), token=token, **given
        )

    first = scores()
    next(first)
    rest = list(scores(first.token))
    assert pa.concat_tables(rest)["customer_id"].to_pylist() == [3, 4, 5, 6]

    class Fails(Model):
        def predict(self, frame):
            made = super().predict(frame)
            if len(self.given) == 2:
                raise ZeroDivisionError
            return made

    failing = scores(model=Fails())
    next(failing)
    before = failing.token
    with pytest.raises(ZeroDivisionError):
        next(failing)
    assert failing.token == before
    assert next(failing)["customer_id"].to_pylist() == [3, 4, 5]


def test_predictions_are_written_to_a_view(scored):
    refs = ["lately:amount_last_2"]
    tables = score_cohort(
        scored.store, "purchases", refs, lambda frame: frame["amount_last_2"].map(sum) / 2,
        write_to="scores", limit=3, category="books",
    )  # fmt: skip
    assert sum(map(len, tables)) == 3
    answer = scored.store.get_online_features(["scores:score"], {"customer_id": [0, 1, 2, 3]})
    assert answer.to_dict()["score"] == [0.0, 0.5, 1.0, None]


def test_scores_that_cannot_be_are_refused(scored):
    refs = ["lately:amount_last_2"]

    def score(model=len, **more):
        return next(score_cohort(scored.store, "purchases", refs, model, category="books", **more))

    with pytest.raises(ServingError, match=r"The model gave \(\) for 7 rows"):
        score()
    assert score(lambda frame: [[1, 2]] * len(frame))["prediction"].to_pylist() == [[1, 2]] * 7
    with pytest.raises(ConfigError, match="`chunk` must be"):
        score(chunk=0)
    with pytest.raises(ConfigError, match="`model` is neither"):
        score(5)
    with pytest.raises(ConfigError, match="`customers` of `write_to` has 2 features"):
        score(write_to="customers")


def test_times_are_counted_in_utc(shop, tmp_path):
    shop.apply(purchases_view("purchases", tmp_path, cohorts=("category",)))
    shop.buy("purchases", (1, 1, 1, 1.0, "books"))
    zone = dt.timezone(dt.timedelta(hours=5))
    since = shop.time(1).astimezone(zone)
    assert ids(cohort(shop.store, "purchases", category="books", start=since)) == [1]
    late = since + dt.timedelta(microseconds=1)
    assert ids(cohort(shop.store, "purchases", category="books", start=late)) == []
