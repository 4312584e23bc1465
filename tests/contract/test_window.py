"""Which event times a run reads: late rows are, the future is not."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.feature_view import FeatureViewState
from feast.infra.common.materialization_job import MaterializationTask
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.errors import WindowError
from feast_dynamo_ext.materialize.newest_rows import Window, refuse_end_to_come, window_of

if TYPE_CHECKING:
    from feast import FeatureView

UTC = dt.timezone.utc
NOW = dt.datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR, DAY, WEEK = dt.timedelta(hours=1), dt.timedelta(days=1), dt.timedelta(weeks=1)


def view(path="history", ttl=WEEK, done=()) -> FeatureView:
    made = customer_view(source=parquet_files(path, "hour", name="history"), ttl=ttl)
    made.materialization_intervals = list(done)
    return made


def task(of_view, start, end, **more) -> MaterializationTask:
    return MaterializationTask("p", of_view, start, end, **more)


def window(of_view, start, end, lookback_s=3_600, *, is_incremental=True) -> tuple:
    found = window_of(task(of_view, start, end), lookback_s, is_incremental=is_incremental)
    return found.start, found.end


DONE = [(NOW - 3 * DAY, NOW - 2 * DAY), (NOW - 5 * DAY, NOW - 3 * DAY)]


def test_an_incremental_run_starts_before_the_last_end():
    assert window(view(done=DONE), NOW - 2 * DAY, NOW) == (NOW - 2 * DAY - HOUR, NOW)
    assert window(view(done=DONE), NOW - 2 * DAY, NOW, 90) == (
        dt.datetime(2026, 2, 27, 11, 58, 30, tzinfo=UTC),
        NOW,
    )
    assert window(view(done=DONE), NOW - 2 * DAY, NOW, 0) == (NOW - 2 * DAY, NOW)


@pytest.mark.parametrize("start", [NOW - 2 * DAY, NOW - WEEK, NOW - 52 * WEEK])
@pytest.mark.parametrize("done", [(), DONE], ids=["first", "later"])
def test_a_plain_run_reads_what_it_is_given(start, done):
    """Also where it begins as an incremental one would: at the last end, the ttl, a year ago."""
    given = view(done=done)
    assert window(given, start, NOW, is_incremental=False) == (start, NOW)
    assert window(given, start, NOW + DAY, is_incremental=False) == (start, NOW + DAY)


def test_an_end_in_the_future_is_refused_but_for_a_minute_of_the_clock():
    a_minute = dt.timedelta(minutes=1)
    refuse_end_to_come(NOW + a_minute, NOW)
    with pytest.raises(WindowError) as caught:
        refuse_end_to_come(NOW + a_minute + dt.timedelta(seconds=1), NOW)
    assert str(caught.value) == (
        "The end of the incremental materialization, 2026-03-01T12:01:01+00:00, is in the future: "
        "it is 2026-03-01T12:00:00+00:00. Feast would note all up to then as done, and rows that "
        "are yet to come would be left out. Pass the current time."
    )


def test_an_end_before_the_last_one_is_refused():
    with pytest.raises(WindowError) as caught:
        window(view(done=DONE), NOW - 2 * DAY, NOW - 3 * DAY)
    assert str(caught.value) == (
        "Feature view `orders` is materialized up to 2026-02-27T12:00:00+00:00 already, which is "
        "after 2026-02-26T12:00:00+00:00. To write rows before that again, use `feast "
        "materialize` with their start and end."
    )
    assert window(view(done=DONE), NOW - 2 * DAY, NOW - 2 * DAY) == (
        NOW - 2 * DAY - HOUR,
        NOW - 2 * DAY,
    )


def test_a_first_end_before_the_ttl_is_refused_in_words_of_its_own():
    with pytest.raises(WindowError) as caught:
        window(view(), NOW - WEEK, NOW - 2 * WEEK)
    assert str(caught.value) == (
        "Feature view `orders`: its first incremental materialization starts at "
        "2026-02-22T12:00:00+00:00, as its ttl says, which is after the end, "
        "2026-02-15T12:00:00+00:00. To write older rows, use `feast materialize` with their start "
        "and end."
    )


def test_naive_times_are_utc():
    naive = [moment.replace(tzinfo=None) for moment in (NOW - 2 * DAY, NOW)]
    assert window(view(done=DONE), *naive) == (NOW - 2 * DAY - HOUR, NOW)
    done = [(start.replace(tzinfo=None), end.replace(tzinfo=None)) for start, end in DONE]
    assert window(view(done=done), NOW - 2 * DAY, NOW) == (NOW - 2 * DAY - HOUR, NOW)
    assert window(view(done=DONE), *naive, is_incremental=False) == (NOW - 2 * DAY, NOW)


def test_other_zones_are_the_same_moments():
    berlin = dt.timezone(dt.timedelta(hours=1))
    given = [moment.astimezone(berlin) for moment in (NOW - 2 * DAY, NOW)]
    assert window(view(done=DONE), *given) == (NOW - 2 * DAY - HOUR, NOW)


def test_a_run_that_goes_on_before_1970_looks_back_from_there():
    last = dt.datetime(1969, 7, 20, 20, 17, 40, 500_000, tzinfo=UTC)
    done = view(done=[(last - DAY, last)])
    assert window(done, last, NOW) == (last - HOUR, NOW)
    assert window(done, last, NOW, 10**15) == (
        dt.datetime(1, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC),
        NOW,
    )


def test_windows_as_microseconds():
    start = dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    end = dt.datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
    assert Window(start, end).micros == (-1, 1_772_366_400_000_005)


# Through Feast


def late(hours: float) -> dt.datetime:
    return dt.datetime.now(tz=UTC) - dt.timedelta(hours=hours)


def keep(folder, name, **columns) -> None:
    folder.mkdir(exist_ok=True)
    times = pa.array(columns.pop("hour"), pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({**columns, "hour": times}), folder / f"{name}.parquet")


@pytest.fixture
def store(open_store, moto_endpoint, tmp_path, request):
    """A store with one view, and a row of history for customer 1 of three hours ago."""
    online = {"region": "us-east-1", "endpoint_url": moto_endpoint}
    # moto takes no binary values in PartiQL
    online["newest_wins_with"] = "put_item"
    project = f"w{abs(hash(request.node.nodeid)):x}"
    opened = open_store(project, online=online)
    opened.apply([CUSTOMER, view(tmp_path / "history", ttl=DAY)])
    keep(tmp_path / "history", "first", cid=[1], total=[1.0], hour=[late(3)])
    yield opened
    opened.teardown()


def totals(store) -> list:
    rows = [{"cid": cid} for cid in (1, 2, 3)]
    return store.get_online_features(["orders:total"], rows).to_dict()["total"]


def test_a_late_row_is_picked_up_by_the_next_incremental_run(store, tmp_path):
    last = late(1)
    store.materialize_incremental(last)
    assert totals(store) == [1.0, None, None]
    minutes = dt.timedelta(minutes=1)
    keep(
        tmp_path / "history",
        "late",
        cid=[1, 2, 3],
        total=[1.5, 2.0, 3.0],
        hour=[last - 5 * minutes, last - 59 * minutes, last - 61 * minutes],
    )
    end = late(0)
    store.materialize_incremental(end)
    # What came more than the hour too late is not.
    assert totals(store) == [1.5, 2.0, None]
    done = store.get_feature_view("orders").materialization_intervals
    assert [of_run[1] for of_run in done] == [last, end]
    assert done[1][0] == last


def test_an_incremental_run_into_the_future_writes_and_records_nothing(store):
    end = late(-2)
    with pytest.raises(WindowError, match=r"end of the incremental .* is in the future"):
        store.materialize_incremental(end)
    assert store.get_feature_view("orders").materialization_intervals == []
    assert store.get_feature_view("orders").state != FeatureViewState.MATERIALIZING
    # Nothing was written, so a run whose window has no rows leaves nothing to read.
    store.materialize(late(1), late(0))
    assert totals(store) == [None, None, None]


def test_a_plain_run_into_the_future_that_begins_at_the_ttl(store, caplog):
    store.materialize(late(24), late(0))
    assert caplog.messages == []
    store.materialize(late(24), late(-1))
    assert "the window ends in the future. Feast notes all up to" in caplog.text
    assert totals(store) == [1.0, None, None]
    store.materialize(late(-1), late(-2))
    intervals = store.get_feature_view("orders").materialization_intervals
    assert len(intervals) == 3


def test_incremental_runs_go_on_once_a_future_end_is_forgotten(store, tmp_path):
    """As the page of troubleshooting has it; the table keeps its rows."""
    store.materialize(late(24), late(-48))
    with pytest.raises(WindowError, match=r"`orders` is materialized up to .* already"):
        store.materialize_incremental(late(0))
    store.registry.delete_feature_view("orders", store.project)
    store.apply([CUSTOMER, view(tmp_path / "history", ttl=DAY)])
    assert totals(store) == [1.0, None, None]
    keep(tmp_path / "history", "new", cid=[2], total=[2.0], hour=[late(0.5)])
    store.materialize_incremental(late(0))
    assert totals(store) == [1.0, 2.0, None]


def test_an_incremental_run_before_the_last_one_records_nothing(store):
    store.materialize_incremental(late(1))
    done = store.get_feature_view("orders").materialization_intervals
    with pytest.raises(WindowError, match=r"is materialized up to .* already"):
        store.materialize_incremental(late(2))
    assert store.get_feature_view("orders").materialization_intervals == done
    assert totals(store) == [1.0, None, None]
