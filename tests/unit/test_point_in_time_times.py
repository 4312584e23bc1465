"""Times of the point-in-time join: far off, on their limits, in all units and zones."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st
from pit_cases import DAY, HOUR, MOST, SECOND, UNIT_NS, US, Case, ViewCase, check
from pit_oracle import HistoryRow
from pit_strategies import cases_of

YEAR_1 = (-62_135_596_800 + 100 * 86_400) * SECOND
YEAR_9999 = 253_370_764_800 * SECOND
FAR = {
    "1970": 0,
    "the first of nanoseconds, 1677": -MOST,
    "the last of nanoseconds, 2262": MOST,
    "the first of Python, year 1": YEAR_1,
    "the last of Python, year 9999": YEAR_9999,
}
TTLS = [
    None,
    dt.timedelta(days=365 * 300),
    dt.timedelta(days=365 * 5_000),
    dt.timedelta(days=3_652_500),  # about what Feast's registry can hold, 10,000 years
]


@cases(20)
@given(data=st.data(), base=st.sampled_from(sorted(FAR.values())))
def test_far_times_equal_plain_loops(data, base):
    case = data.draw(cases_of(families=("integer",), most_keys=1, most_views=1, base=base))
    with tempfile.TemporaryDirectory() as folder:
        check(case, Path(folder))


def one_key(history, moments, *, event, entity_event, ttl=None, created=None, known=False) -> Case:
    """One view, and entity rows of one key."""
    rows = tuple(HistoryRow((1,), *times) for times in history)
    view = ViewCase((0,), (pa.int64(),), rows, event, created, ttl)
    return Case(
        (view,), (pa.int64(),), tuple(((1,), moment) for moment in moments), entity_event, known
    )


@pytest.mark.slow
@pytest.mark.parametrize("ttl", TTLS, ids=str)
@pytest.mark.parametrize("base", FAR.values(), ids=FAR)
def test_a_long_ttl_reaches_back_beyond_the_first_moment(tmp_path, base, ttl):
    near = abs(base) <= MOST
    kind = pa.timestamp("ns" if near else "us", "UTC")
    now = max(DAY - MOST, min(base, MOST - DAY)) // US * US if near else base
    check(one_key([(now - HOUR,)], [now], event=kind, entity_event=kind, ttl=ttl), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNIT_NS)
@pytest.mark.parametrize("entity_unit", UNIT_NS)
def test_bounds_are_exact_in_each_unit(tmp_path, unit, entity_unit):
    """A row one unit too new or too old is not seen; one on the bound is."""
    step, ask = UNIT_NS[unit], UNIT_NS[entity_unit]
    moment, ttl = 1_000_000 * HOUR, dt.timedelta(hours=1)
    history = [(moment,), (moment - HOUR,), (moment - 2 * HOUR,)]
    asked = [moment - ask, moment, moment + ask, moment + HOUR, moment + HOUR + ask]
    asked += [moment - HOUR, moment - HOUR - ask, moment + HOUR - ask, moment - 3 * HOUR]
    assert step <= HOUR
    check(
        one_key(
            history,
            asked,
            event=pa.timestamp(unit),
            entity_event=pa.timestamp(entity_unit, "Asia/Kolkata"),
            ttl=ttl,
        ),
        tmp_path,
    )
