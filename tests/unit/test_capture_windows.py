"""Which windows of a table are exported next, and how far a capture is."""

from __future__ import annotations

import datetime as dt
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.capture.exports.windows import (
    LONGEST,
    SHORTEST,
    CaptureState,
    Restorable,
    Window,
    next_windows,
)
from feast_dynamo_ext.errors import CaptureError

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.timezone.utc)
SPAN = Restorable(NOW - dt.timedelta(days=35), NOW)


def after(**age: float) -> tuple[Window, ...]:
    return next_windows("purchases", NOW - dt.timedelta(**age), SPAN)


def test_the_whole_table_comes_first():
    assert next_windows("purchases", None, SPAN) == (Window(None, NOW),)


def test_what_is_younger_than_the_shortest_window_waits():
    assert after(minutes=14, seconds=59) == ()


@pytest.mark.parametrize(
    ("age", "hours"),
    [
        ({"minutes": 15}, [0.25]),
        ({"hours": 24}, [24]),
        ({"hours": 24, "minutes": 1}, [23.75, 0.25 + 1 / 60]),
        ({"hours": 25}, [24, 1]),
        ({"hours": 48}, [24, 24]),
        ({"days": 3, "minutes": 5}, [24, 24, 23.75, 0.25 + 5 / 60]),
    ],
)
def test_windows_follow_each_other(age: dict[str, float], hours: list[float]):
    found = [(window.end - window.start) / dt.timedelta(hours=1) for window in after(**age)]
    assert found == pytest.approx(hours)


@given(st.integers(0, 35 * 86_400))
def test_windows_cover_all_without_gap_or_overlap(seconds: int):
    found = after(seconds=seconds)
    if seconds < SHORTEST.total_seconds():
        assert found == ()
        return
    assert found[0].start == NOW - dt.timedelta(seconds=seconds)
    assert found[-1].end == NOW
    for before, window in itertools.pairwise(found):
        assert before.end == window.start
    assert all(SHORTEST <= window.end - window.start <= LONGEST for window in found)


def test_what_cannot_be_exported_any_more_is_said():
    with pytest.raises(CaptureError, match=r"from 2026-01-25 12:00Z on.*--full"):
        after(days=36)


def test_a_state_comes_back_from_json():
    first, second = after(hours=25)
    state = CaptureState("an-id", (("customer", "S"), ("at", "N"))).planned((first, second))
    state = state.started(first, "arn:1").failed(second).captured(Window(None, NOW), "s3://b/e")
    assert CaptureState.from_json(state.to_json()) == state
    assert [window.arn for window in state.pending] == ["arn:1", ""]


def test_a_window_that_failed_has_another_token():
    first, *_ = after(hours=25)
    state = CaptureState("an-id", ()).planned((first,))
    again = state.started(first, "arn:1").failed(state.started(first, "arn:1").pending[0])
    tokens = {each.token("an-id", "s3://b") for each in (first, again.pending[0])}
    assert len(tokens) == 2
    assert first.token("an-id", "s3://b") == Window(first.start, first.end).token(
        "an-id", "s3://b"
    )
    assert all(len(token) <= 36 for token in tokens)


def test_windows_of_one_second_are_told_apart():
    part = dt.timedelta(milliseconds=100)
    windows = [
        Window(None, NOW),
        Window(None, NOW, run="1a2b3c4d"),
        Window(None, NOW + part),
        Window(NOW, NOW + part),
        Window(NOW + part, NOW + 2 * part),
    ]
    assert [window.id for window in windows] == [
        "full-20260301T120000Z",
        "full-20260301T120000Z-1a2b3c4d",
        "full-20260301T120000.100000Z",
        "20260301T120000Z-20260301T120000.100000Z",
        "20260301T120000.100000Z-20260301T120000.200000Z",
    ]
    # The table at one moment is one export of DynamoDB, whoever wants it.
    assert windows[0].token("an-id", "s3://b") == windows[1].token("an-id", "s3://b")
    assert [Window.from_json(window.to_json()) for window in windows] == windows


def test_a_window_of_an_earlier_version_comes_back():
    kept = {"start": None, "end": "2026-03-01T12:00:00+00:00", "arn": "arn:1", "failed": 1}
    assert Window.from_json(kept) == Window(None, NOW, "arn:1", 1)
    assert Window(None, NOW, "arn:1", 1).to_json() == kept
