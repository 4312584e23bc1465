"""Generates histories of series: few keys, moments and values, so that equal ones are common."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from pit_cases import HOUR, MICROSECONDS, SECOND, UNIT_NS, US, floored
from pit_strategies import DST, ZONES
from series_cases import SeriesCase
from series_oracle import Row

KEYS = {"int64": (1, 2, -(2**63)), "string": ("", "a", "ä", "a\x00")}
MOMENT = dt.datetime(1969, 12, 31, 23, 59, 59, tzinfo=dt.timezone.utc)
TIES = {
    "number": (0, 1, -5, 2**62),
    "text": ("", "a", "B", "ä", "\U0001f600"),
    "ratio": (0.0, -0.0, 1.5, -2.5),
    "moment": tuple(MOMENT + dt.timedelta(seconds=part) for part in (-0.5, 0, 0.5, 1, 1.5)),
}
AMOUNTS = (None, float("nan"), 0.0, -0.0, 0.1, -2.5, 1e16, 3.0, 1.0)
PIECES = (None, 0, 1, -7, 2**53 + 1, 2**58, -(2**58))
NOTES = (None, "", "a", "ä", "B", "\U0001f600", "a\x00")
DAYS = tuple(dt.datetime(2026, 1, day, tzinfo=dt.timezone.utc) for day in (1, 2))
SENT = (None, *DAYS, *(day + dt.timedelta(microseconds=at) for day in DAYS for at in (1, 999_999)))

time_types = st.builds(pa.timestamp, st.sampled_from(sorted(UNIT_NS)), st.sampled_from(ZONES))

values = st.fixed_dictionaries(
    {
        "amount": st.sampled_from(AMOUNTS),
        "pieces": st.sampled_from(PIECES),
        "note": st.sampled_from(NOTES),
        "sent": st.sampled_from(SENT),
    }
)


@st.composite
def series_cases(draw, most_rows: int = 24, *, in_table: bool = False) -> SeriesCase:
    """A history, and entity rows about its times.

    Args:
        draw: Hypothesis's.
        most_rows: of the history.
        in_table: in a history table, which has keys and event times in all rows.
    """
    kinds = draw(
        st.lists(st.sampled_from([pa.int64(), pa.string()]), min_size=in_table, max_size=2)
    )
    ties = tuple(draw(st.lists(st.sampled_from(sorted(TIES)), min_size=1, max_size=2)))
    step = draw(st.sampled_from([HOUR, SECOND, 1_000 * US]))
    event, entity_time = draw(time_types), draw(time_types)
    created = draw(st.none() | time_types)
    if in_table:
        event = created = MICROSECONDS
    moment = st.integers(-4, 12).map(lambda steps: DST + steps * step)
    keys = st.tuples(*(_key(kind) for kind in kinds))
    rows = draw(
        st.lists(
            st.builds(
                Row,
                keys=keys,
                event=st.none() | moment | moment | moment,
                tie=st.tuples(*(st.sampled_from(TIES[tie]) for tie in ties)),
                created=st.none() | moment | moment,
                values=values,
            ),
            max_size=most_rows,
        )
    )
    if in_table:
        rows = [row for row in rows if row.event is not None and None not in row.keys]
    entities = draw(st.lists(st.tuples(keys, moment), min_size=1, max_size=8))
    micros = step // US
    lengths = st.sampled_from([micros, 3 * micros, 3 * micros - 1, 3 * micros + 1, 9 * micros])
    last = draw(st.sampled_from([None, 1, 2, 20]))
    return SeriesCase(
        rows=tuple(
            Row(
                row.keys,
                floored(row.event, event),
                row.tie,
                floored(row.created, created) if created is not None else None,
                row.values,
            )
            for row in rows
        ),
        keys=tuple(kinds),
        entities=tuple((key, floored(at, entity_time) or 0) for key, at in entities),
        spans=tuple(draw(st.lists(lengths, min_size=1, max_size=3, unique=True))),
        ties=ties,
        event=event,
        created=created,
        entity_time=entity_time,
        ttl=draw(st.sampled_from([None, 9 * micros, 30 * micros])),
        last=last,
        within=draw(lengths if last is None else st.none() | lengths),
        newest_first=draw(st.booleans()),
        exclude_current=draw(st.booleans()),
        known=draw(st.booleans()),
        files=draw(st.integers(1, 3)),
    )


def _key(kind: pa.DataType) -> st.SearchStrategy[Any]:
    pool = KEYS["string" if pa.types.is_string(kind) else "int64"]
    return st.sampled_from([*pool[:2], *pool, None])
