"""Generates cases of the point-in-time join: few keys and moments, so that ties, duplicates and
exact bounds are common, in all the types that keys and times come in.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from pit_cases import DAY, HOUR, MS, SECOND, UNIT_NS, US, Case, ViewCase, floored
from pit_oracle import HistoryRow

ZONES = [None, "UTC", "America/New_York", "Asia/Kolkata", "Europe/Berlin"]
DST = 1_774_742_400 * SECOND
"""2026-03-29 00:00 UTC: clocks change in Europe an hour later."""


@dataclass(frozen=True)
class Family:
    """Types of keys that are compared with one another, and values that some of them hold."""

    values: tuple[Any, ...]
    kinds: tuple[pa.DataType, ...]

    def kinds_of(self, values: list[Any]) -> list[pa.DataType]:
        """The types that can hold all of some values."""
        return [kind for kind in self.kinds if all(_fits(kind, value) for value in values)]


INTEGERS = (
    pa.int64(),
    pa.int32(),
    pa.int16(),
    pa.int8(),
    pa.uint64(),
    pa.uint32(),
    pa.uint16(),
    pa.uint8(),
)
EDGES = (0, 1, -1, 2, 127, -128, 255, 2**15, 2**31, -(2**31), 2**53, 2**53 + 1, 2**63 - 1)
FAMILIES = {
    "integer": Family(
        (*EDGES, -(2**63)), (*INTEGERS, pa.float64(), pa.dictionary(pa.int8(), pa.int64()))
    ),
    "text": Family(
        ("", " ", "a", "A", "a\x00", "ä", "a\u0308", "\U0001f600", "null", "0"),
        (
            pa.string(),
            pa.large_string(),
            pa.dictionary(pa.int8(), pa.string()),
            pa.dictionary(pa.int32(), pa.large_string()),
        ),
    ),
    "bytes": Family(
        (b"", b"\x00", b"\x00\x00", b"a", b"\xff\xfe"), (pa.binary(), pa.large_binary())
    ),
    "boolean": Family((False, True), (pa.bool_(),)),
    "time": Family(
        (0, DAY, -DAY, 20_000 * DAY, 20_000 * DAY + SECOND),  # as Feast's keys hold times
        (
            pa.date32(),
            pa.date64(),
            *(
                pa.timestamp(unit, zone)
                for unit in UNIT_NS
                for zone in (None, "UTC", "Asia/Kolkata")
            ),
        ),
    ),
}


def _fits(kind: pa.DataType, value: Any) -> bool:
    if pa.types.is_integer(kind):
        bits = kind.bit_width - pa.types.is_signed_integer(kind)
        low = -(2**bits) if pa.types.is_signed_integer(kind) else 0
        return low <= value < 2**bits
    if pa.types.is_floating(kind):
        return abs(value) < 2**53
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return value % (DAY if pa.types.is_date(kind) else UNIT_NS[kind.unit]) == 0
    return True


timestamps = st.builds(pa.timestamp, st.sampled_from(sorted(UNIT_NS)), st.sampled_from(ZONES))
time_types = st.one_of(timestamps, timestamps, timestamps, st.just(pa.date32()))


@st.composite
def cases_of(
    draw,
    families: tuple[str, ...] = tuple(FAMILIES),
    most_keys: int = 3,
    most_views: int = 3,
    base: int = DST,
) -> Case:
    """A case of the join.

    Args:
        draw: Hypothesis's.
        families: from which the entity rows' columns of keys are chosen.
        most_keys: of these columns.
        most_views: of views.
        base: moment in ns about which all times lie.
    """
    step = draw(st.sampled_from([HOUR, DAY, SECOND, MS, US, 1]))
    columns = draw(st.integers(min(1, most_keys), most_keys))
    pools = [draw(st.sampled_from(families)) for _ in range(columns)]
    values = {
        name: draw(st.lists(st.sampled_from(FAMILIES[name].values), min_size=1, max_size=3))
        for name in sorted(set(pools))
    }
    event = draw(time_types)
    entities = draw(
        st.lists(
            st.tuples(st.tuples(*(_key(values[name]) for name in pools)), _moment(base, step)),
            min_size=1,
            max_size=10,
        )
    )
    return Case(
        views=tuple(
            draw(views_of(pools, values, base, step))
            for _ in range(draw(st.integers(1, most_views)))
        ),
        kinds=tuple(_kind(draw, name, values[name]) for name in pools),
        entities=tuple((keys, floored(moment, event)) for keys, moment in entities),
        event=event,
        known=draw(st.booleans()),
        full=draw(st.booleans()),
    )


@st.composite
def views_of(draw, pools: list[str], values: dict[str, list[Any]], base: int, step: int):
    """A view that joins some of the entity rows' columns, or none."""
    columns = draw(st.permutations(range(len(pools))))[: draw(st.integers(0, len(pools)))]
    names = [pools[column] for column in columns]
    event, created = draw(time_types), draw(st.none() | time_types)
    rows = draw(
        st.lists(
            st.tuples(
                st.tuples(*(_key(values[name]) for name in names)),
                st.none() | _moment(base, step),
                st.none() | _moment(base, step),
            ),
            max_size=24,
        )
    )
    again = _same_families(draw, pools, names) if draw(st.integers(0, 3)) == 0 else None
    return ViewCase(
        keys=tuple(columns),
        kinds=tuple(_kind(draw, name, values[name]) for name in names),
        rows=tuple(
            HistoryRow(keys, floored(at, event), floored(made, created) if created else None)
            for keys, at, made in rows
        ),
        event=event,
        created=created,
        ttl=draw(_ttls(step)),
        files=draw(st.integers(1, 3)),
        group=draw(st.integers(1, 5)),
        mapped=draw(st.booleans()),
        renamed=again is not None or draw(st.booleans()),
        again=again,
    )


def _same_families(draw, pools: list[str], names: list[str]) -> tuple[int, ...]:
    """For each key of a view another column, or the same, of its family."""
    return tuple(
        draw(st.sampled_from([at for at, pool in enumerate(pools) if pool == name]))
        for name in names
    )


def _key(values: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([*values, *values, None])


def _kind(draw, name: str, values: list[Any]) -> pa.DataType:
    return draw(st.sampled_from(FAMILIES[name].kinds_of(values)))


def _moment(base: int, step: int) -> st.SearchStrategy[int]:
    return st.integers(-4, 16).map(lambda steps: base + steps * step)


def _ttls(step: int) -> st.SearchStrategy[dt.timedelta | None]:
    """No limit, zero, and limits that fall on, just before and just after a step."""
    exact = dt.timedelta(microseconds=max(1, 3 * step // US))
    return st.sampled_from(
        [
            None,
            dt.timedelta(0),
            exact,
            exact - dt.timedelta(microseconds=1),
            exact + dt.timedelta(microseconds=1),
            8 * exact,
        ]
    )
