"""Few rows are encoded without Arrow: the numbers are those of the manifest's encodings."""

from __future__ import annotations

import math
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.encodings import Encoding
from feast_dynamo_ext.sagemaker.fitting import Fitting, TrainRows
from feast_dynamo_ext.sagemaker.row_encoding import row_plan

AT = datetime(2026, 3, 1, 12, 30, 15, 250_000, timezone.utc)
FIRST, LAST = (datetime(year, 1, 1) for year in (1969, 2100))  # noqa: DTZ001 - as hypothesis takes
TIMES = st.datetimes(FIRST, LAST, timezones=st.just(timezone.utc))
WORDS = st.sampled_from(["a", "b", "c", "ü", "", "not seen", "d"])
WHOLE = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1, 2])
REAL = st.floats(allow_infinity=False) | st.sampled_from([-0.0, 1e-310, math.nan])
SINGLE = st.floats(width=32, allow_infinity=False)
STAMP, NANO = pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")

# Type in the join, declaration, values of rows that train, values of a request.
KINDS = {
    "int": (pa.int64(), {}, [1, 2, None], WHOLE),
    "int, mean": (pa.int64(), {"missing": "mean"}, [1, 2, None], WHOLE),
    "int32": (pa.int32(), {}, [1, 2, 3], WHOLE),
    "large": (pa.int64(), {}, [1, 2], st.integers(-(2**63), 2**63 - 1)),
    "double": (pa.float64(), {}, [0.5, None], REAL),
    "median": (pa.float64(), {"missing": "median"}, [0.5, 2.5, None], REAL),
    "infinite": (pa.float64(), {}, [0.5], st.floats()),
    "single": (pa.float32(), {"missing": 7.5}, [0.5, None], SINGLE),
    "boolean": (pa.bool_(), {}, [True, None], st.booleans()),
    "boolean, fill": (pa.bool_(), {"missing": -1}, [True, None], st.booleans()),
    "ordinal": (pa.string(), {"encoding": "ordinal"}, list("aabc"), WORDS),
    "ordinal, missing": (
        pa.string(), {"encoding": "ordinal", "unknown": "missing", "missing": 9}, list("aabc"),
        WORDS,
    ),
    "ordinal of ints": (pa.int64(), {"encoding": "ordinal", "unknown": 5}, [1, 1, 2], WHOLE),
    "ordinal of booleans": (pa.bool_(), {"encoding": "ordinal"}, [True, True], st.booleans()),
    "one-hot": (pa.string(), {"encoding": "one_hot"}, list("aabc"), WORDS),
    "one-hot, column": (
        pa.string(), {"encoding": "one_hot", "unknown": "column"}, list("aabc"), WORDS,
    ),
    "one-hot, missing": (
        pa.large_string(), {"encoding": "one_hot", "unknown": "missing"}, list("abc"), WORDS,
    ),
    "hash": (pa.string(), {"encoding": "hash", "buckets": 13, "missing": -1}, ["a"], WORDS),
    "hash of ints": (pa.int64(), {"encoding": "hash", "buckets": 7}, [1], WHOLE),
    "epoch": (STAMP, {"encoding": "epoch"}, [AT], TIMES),
    "epoch, days": (STAMP, {"encoding": "epoch", "unit": "day"}, [AT], TIMES),
    "epoch, ns": (STAMP, {"encoding": "epoch", "unit": "ns"}, [AT], TIMES),
    "epoch of ns": (NANO, {"encoding": "epoch", "unit": "ms", "missing": 0}, [AT], TIMES),
    "age": (STAMP, {"encoding": "age", "unit": "day"}, [AT], TIMES),
    "age of ns": (NANO, {"encoding": "age", "unit": "h", "missing": -1.5}, [AT], TIMES),
    "age of dates": (pa.date32(), {"encoding": "age"}, [AT], TIMES.map(datetime.date)),
    "list": (
        pa.list_(pa.float64()), {"encoding": "list", "length": 3, "longer": "cut"}, [[1.0]],
        st.lists(st.none() | REAL, max_size=5),
    ),
    "list, padded": (
        pa.list_(pa.int64()), {"encoding": "list", "length": 3, "pad": -1, "missing": 5}, [[1]],
        st.lists(st.none() | WHOLE, max_size=4),
    ),
}  # fmt: skip


def fitted(name):
    kind, declared, values, _ = KINDS[name]
    types = {"x": kind}
    fitting = Fitting({"x": Encoding(**declared)} if declared else {}, types)
    batch = pa.record_batch([pa.array(values, kind)], names=["x"])
    while fitting.columns:
        fitting.add(TrainRows(batch, np.zeros(len(values), np.int8)))
        fitting.end_pass()
    return fitting.finish()["x"].nullable()


def by_arrow(encoding, kind, values, times):
    """The matrix by the encoding itself; None where it refuses."""
    try:
        array = pa.array(values, kind)
        columns = encoding.encode(array, pa.array(times, STAMP))
    except (TrainingSetError, pa.ArrowException, OverflowError):
        return None
    return np.column_stack([c.to_numpy(zero_copy_only=False).astype(float) for c in columns])


# With no plan by decision: Feast answers no dates.
WITHOUT = {"age of dates"}


@pytest.mark.parametrize("name", KINDS)
def test_a_plan_gives_what_the_encoding_gives(name):
    kind, _, _, values = KINDS[name]
    encoding = fitted(name)
    plan = row_plan(encoding)
    assert (plan is None) == (name in WITHOUT)
    given_up = [0, 0]

    @given(rows=st.lists(st.none() | values, min_size=1, max_size=4), at=TIMES)
    @cases(40)
    def hold(rows, at):
        times = [at] * len(rows)
        cells = plan.cells(rows, times)
        given_up[cells is None] += 1
        if cells is None:
            return  # the encoding is used
        expected = by_arrow(encoding, kind, rows, times)
        assert expected is not None
        np.testing.assert_array_equal(np.array(cells, float), expected)
        assert (np.signbit(np.array(cells, float)) == np.signbit(expected))[
            ~np.isnan(expected)
        ].all()

    if plan is not None:
        hold()
        assert given_up[0] > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("int", 2**53 + 1),
        ("int", True),
        ("int", 1.0),
        ("int32", 2**31),
        ("double", math.inf),
        ("double", 1),
        ("single", 0.1),
        ("ordinal", 1),
        ("ordinal of ints", True),
        ("hash", "\ud800"),
        ("epoch", FIRST),
        ("epoch of ns", datetime(9999, 1, 1, tzinfo=timezone.utc)),
        ("list, padded", [1, 2, 3, 4]),
        ("list", [1.0, 2.0, 3.0, math.inf]),
    ],
)  # fmt: skip
def test_what_a_plan_leaves_to_the_encoding(name, value):
    assert row_plan(fitted(name)).cells([value], [AT]) is None
