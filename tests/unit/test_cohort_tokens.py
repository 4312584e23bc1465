"""Tokens of cohorts: a place in one cohort of one table, and of no other."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.cohorts import CohortIndex, Position
from feast_dynamo_ext.dynamo.layouts.series import time_bytes
from feast_dynamo_ext.errors import ConfigError

EVENTS = CohortIndex("purchases", "p.purchases", "category", "=books", None, is_series=True)
ROWS = CohortIndex("customers", "p.customers", "segment", "=gold", None, is_series=False)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@given(st.binary(), st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
@cases()
def test_a_place_is_read_back(key, sort_us, top_us):
    of_events = Position(b64(key), {"B": b64(time_bytes(sort_us))}, {"B": b64(time_bytes(top_us))})
    of_rows = Position(b64(key), {"N": str(sort_us)}, {"N": str(top_us)})
    for index, position in ((EVENTS, of_events), (ROWS, of_rows)):
        token = index.token(position)
        assert token.isascii()
        assert index.resumed(token) == position
    assert EVENTS.resumed(None) is None


def test_no_value_stands_in_a_token():
    token = EVENTS.token(Position("az==", {"B": "AAAA"}, {"B": "AAAA"}))
    assert b"books" not in base64.urlsafe_b64decode(token)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (replace(EVENTS, table="q.purchases"), r"table p\.purchases, index cohort_category\)"),
        (replace(EVENTS, feature="brand"), r"table p\.purchases, index cohort_category\)"),
        (
            replace(EVENTS, value="=toys"),
            r"table p\.purchases, index cohort_category, another value\)",
        ),
    ],
)
def test_a_token_of_another_cohort_is_refused(index, said):
    token = EVENTS.token(Position("az==", {"B": "AAAA"}, {"B": "AAAA"}))
    with pytest.raises(ConfigError, match=r"the token is of another cohort \(" + said):
        index.resumed(token)


def other(*fields):
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        "",
        "no token",
        "bm8=",
        other(1, 2),
        other(1, "p.purchases", "cohort_category", "0", "a", {"B": "AAAA"}, {"B": "AAAA"}),
        other(1, "p.purchases", "cohort_category", "0", "az==", {"N": "1"}, {"B": "AAAA"}),
        other(1, "p.purchases", "cohort_category", "0", "az==", None, {"B": "AAAA"}),
    ],
)
def test_what_is_no_token_is_refused(token):
    with pytest.raises(ConfigError, match="the token is none, or was cut"):
        EVENTS.resumed(token)


def test_a_place_may_be_before_what_counts():
    place = Position("az==", {"B": b64(time_bytes(99) + b"tie")}, {"B": b64(time_bytes(200))})
    assert replace(EVENTS, first_us=100).is_below(place)
    assert not replace(EVENTS, first_us=99).is_below(place)
    assert not EVENTS.is_below(place)
    assert replace(ROWS, first_us=-5).is_below(Position("az==", {"N": "-6"}, {"N": "0"}))
    assert not replace(ROWS, first_us=-5).is_below(Position("az==", {"N": "-5"}, {"N": "0"}))
