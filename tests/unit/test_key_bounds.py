"""Bounds of an order: what DynamoDB compares as bytes is what the values say."""

from __future__ import annotations

import datetime as dt
import operator

import numpy as np
import pytest
from examples import cases
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.key_bounds import (
    KeyBounds,
    after,
    bounds_of,
    refuse_other_columns,
    typed,
)
from feast_dynamo_ext.dynamo.layouts.series import time_bytes, value_bytes
from feast_dynamo_ext.errors import ConfigError

COMPARED = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
FEW_INTEGERS = st.sampled_from([-(2**31), -1, 0, 1, 255, 256, 2**31 - 1])
TEXTS = st.text(st.sampled_from("\0\x01a\x7f\x80ÿ\uffff😀"), max_size=4)
VALUES = {
    "INT32": FEW_INTEGERS | st.integers(-(2**31), 2**31 - 1),
    "INT64": FEW_INTEGERS | st.sampled_from([-(2**63), 2**63 - 1]) | st.integers(-5, 5),
    "UNIX_TIMESTAMP": FEW_INTEGERS | st.sampled_from([-(2**63), 2**63 - 1]),
    "FLOAT": st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 0.5, -0.5]),
    "DOUBLE": st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 0.5, -0.5, 5e-324]),
    "STRING": TEXTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    "BYTES": st.binary(max_size=4)
    | st.sampled_from([b"", b"\0", b"\0\0", b"\xff\xff", b"\0\xff"]),
    "BOOL": st.booleans(),
}
MOMENTS = st.sampled_from([-(2**62), -1, 0, 1, 2**62])


def key_of(value, event_us, kind):
    """The sort key of an order, as events carry it."""
    return value_bytes(typed(value, kind, "it"), is_last=False) + time_bytes(event_us)


def is_within(key: bytes, bounds: KeyBounds) -> bool:
    if bounds.is_empty:
        return False
    above = bounds.low is None or key >= bounds.low
    # With both, DynamoDB's BETWEEN takes the upper one too: no key is ever equal to it.
    assert key != bounds.high
    return above and (bounds.high is None or key < bounds.high)


def in_order(value):
    """What Python compares as DynamoDB is to: texts by their bytes."""
    return value.encode() if isinstance(value, str) else value


@st.composite
def some_values(draw, count):
    kind = draw(st.sampled_from(sorted(VALUES)))
    return kind, [draw(VALUES[kind]) for _ in range(count)]


@given(some_values(2), MOMENTS, MOMENTS)
@cases(500)
def test_keys_are_in_the_order_of_values_then_of_times(drawn, one_us, other_us):
    kind, (one, other) = drawn
    keys = key_of(one, one_us, kind), key_of(other, other_us, kind)
    pairs = (in_order(one), one_us), (in_order(other), other_us)
    assert (keys[0] < keys[1]) == (pairs[0] < pairs[1])
    assert (keys[0] == keys[1]) == (pairs[0] == pairs[1])


@given(some_values(2), MOMENTS, st.sampled_from(sorted(COMPARED)))
@cases(500)
def test_bounds_hold_the_keys_of_which_the_condition_is_true(drawn, event_us, compared):
    kind, (value, bound) = drawn
    bounds = bounds_of((compared, bound), "amount", kind, "v")
    expected = COMPARED[compared](in_order(value), in_order(bound))
    assert is_within(key_of(value, event_us, kind), bounds) == expected


@given(some_values(3), MOMENTS)
@cases(300)
def test_between_takes_both_ends(drawn, event_us):
    kind, (value, *ends) = drawn
    lowest, highest = sorted(ends, key=in_order)
    bounds = bounds_of(("between", (lowest, highest)), "amount", kind, "v")
    expected = in_order(lowest) <= in_order(value) <= in_order(highest)
    assert is_within(key_of(value, event_us, kind), bounds) == expected


def test_nothing_is_above_the_highest():
    assert bounds_of((">", 2**63 - 1), "n", "INT64", "v") == KeyBounds(None, None, is_empty=True)
    assert bounds_of(("<=", 2**63 - 1), "n", "INT64", "v") == KeyBounds(None, None)
    assert after(b"\0\xff") == b"\1"
    assert after(b"\xff") is None


def test_values_are_taken_as_the_declared_type():
    moment = dt.datetime(2026, 3, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert typed(moment, "UNIX_TIMESTAMP", "it").unix_timestamp_val == 1_772_319_600
    assert typed(0.1, "FLOAT", "it") == Value(float_val=0.1)
    assert typed(3, "DOUBLE", "it") == Value(double_val=3.0)
    assert typed(np.int64(3), "INT64", "it") == Value(int64_val=3)
    assert typed(np.float32(0.5), "DOUBLE", "it") == Value(double_val=0.5)


@pytest.mark.parametrize(
    ("given_value", "kind"),
    [
        (2**31, "INT32"),
        (True, "INT64"),
        (1.0, "INT64"),
        ("1", "INT64"),
        (None, "INT64"),
        (float("nan"), "DOUBLE"),
        (2**53 + 1, "DOUBLE"),
        (10**400, "DOUBLE"),
        (3.5e38, "FLOAT"),
        (dt.datetime(2026, 1, 1, 0, 0, 0, 1), "UNIX_TIMESTAMP"),  # noqa: DTZ001
        (2**63, "UNIX_TIMESTAMP"),
        (1, "BOOL"),
        (b"a", "STRING"),
        ("\ud800", "STRING"),
        (None, "STRING"),
    ],
)
def test_what_no_value_of_the_type_equals_is_refused(given_value, kind):
    with pytest.raises(ConfigError, match=rf"^the bound is .*{kind}"):
        typed(given_value, kind, "the bound")


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            5,
            r"no pair of operator and value\. Write it as where=\{\"amount\": \(\">=\", value\)\}",
        ),
        (("!=", 5), "the operator `!=`. There are =, <, <=, >, >=, between"),
        (("between", 5), "`between` takes a pair"),
        (("between", (5, 4)), "the lower end of `between` is above the upper one"),
        ((">", "5"), "Python's type str, and no value of INT64"),
    ],
)
def test_conditions_that_are_none_are_refused(condition, said):
    with pytest.raises(
        ConfigError, match=r"^`v`: `where` of `amount`.*" + said.replace("+", "\\+")
    ):
        bounds_of(condition, "amount", "INT64", "`v`")


def test_conditions_on_other_features_are_refused():
    refuse_other_columns({"amount": (">", 1)}, "amount", "v")
    with pytest.raises(ConfigError, match=r'`where` names `amount`.*Pass order="amount"'):
        refuse_other_columns({"amount": (">", 1)}, None, "v")
    with pytest.raises(ConfigError, match=r"`where` names `category`.*that is `amount`"):
        refuse_other_columns({"category": ("=", "a")}, "amount", "v")
