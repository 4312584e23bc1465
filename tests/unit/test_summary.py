"""The table at the end of a run, the same as JSON, and how figures are written."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest
from feast.errors import FeastError
from feast.infra.common.materialization_job import MaterializationTask
from views import customer_view

from feast_dynamo_ext.errors import AlreadyRunningError, ColumnTypeError, ThrottledError
from feast_dynamo_ext.figures import count, counted, dollars, duration, short
from feast_dynamo_ext.materialize.engine import jobs_of
from feast_dynamo_ext.materialize.report import RunReport, ViewReport, as_json, as_text

START, END = (datetime(2026, 1, day, tzinfo=timezone.utc) for day in (1, 2))


def view(name="orders", **fields):
    given = {"step": "done", "started_s": 100.0, "ended_s": 104.25, **fields}
    return ViewReport(name, f"shop.{name}", START, END, **given)


def cells(line):
    """The cells of a line of a table: columns are two spaces apart or more."""
    return [cell.strip() for cell in line.strip().split("  ") if cell.strip()]


def test_one_view_that_is_done():
    done = view(read=9_000, to_write=1_200, written=1_000, older=200, expired=3, units=2_400.0)
    assert as_text(RunReport([done])) == (
        "feature view      read    written    older    expired    failed    units    dollars"
        "    time  state\n"
        "--------------  ------  ---------  -------  ---------  --------  -------  ---------"
        "  ------  -------\n"
        "orders           9,000      1,000      200          3         0    2,400    $0.0015"
        "   4.2 s  done"
    )


def test_resumed_rows_and_throttles_are_shown_where_there_are_any():
    one = view(written=1, resumed=7, throttles=4, units=1.0)
    lines = as_text(RunReport([one, view("baskets")])).splitlines()
    assert cells(lines[0])[5:9] == ["failed", "resumed", "throttles", "units"]
    assert cells(lines[2])[5:9] == ["0", "7", "4", "1"]
    assert cells(lines[3])[5:9] == ["0", "0", "0", "0"]


def test_several_views_have_a_total_of_their_overlapping_times():
    report = RunReport(
        [
            view("orders", read=10, written=8, older=1, expired=1, units=8.0),
            view("baskets", read=20, written=20, units=40.0, started_s=101.0, ended_s=110.0),
        ]
    )
    lines = as_text(report).splitlines()
    assert cells(lines[-1]) == (
        ["total", "30", "28", "1", "1", "0", "48", "<$0.0001", "10.0 s", "done"]
    )
    assert set(lines[-2]) == {"-", " "}


def test_views_that_failed_are_named_with_their_error():
    throttled = ThrottledError("dynamodb PutItem on shop.orders: throttled.\nRetry later.")
    report = RunReport(
        [
            view("orders", step="failed", error=throttled, to_write=9, written=4, failed=3),
            view("baskets", failed=1),
            view("visits", step="failed", error=KeyError("amount")),
        ]
    )
    text = as_text(report)
    assert text.endswith(
        "\n\norders: dynamodb PutItem on shop.orders: throttled. Retry later."
        "\n\nvisits: KeyError: 'amount'"
    )
    table = text.split("\n\n", maxsplit=1)[0].splitlines()
    assert [cells(line)[-1] for line in table[2:5]] == ["failed", "done", "failed"]
    # 3 of the first were refused, 2 not tried any more; nobody knows how many the third had.
    assert [cells(line)[5] for line in table[2:5]] == ["5", "1", "-"]
    assert [cells(table[-1])[at] for at in (5, -1)] == ["-", "1 of 3 done"]
    figures = as_json(report)
    assert [one["failed"] for one in (*figures["views"], figures["total"])] == [5, 1, None, None]


def test_a_run_that_was_stopped_says_where_its_views_were():
    report = RunReport(
        [
            view("orders", step="writing", to_write=10, written=4, ended_s=None),
            view("baskets", step="reading", ended_s=None),
            view("visits", step="waiting", started_s=None, ended_s=None),
        ]
    )
    lines = as_text(report).splitlines()
    assert [cells(line)[-2:] for line in lines[2:5]] == [
        ["-", "stopped"],
        ["-", "stopped"],
        ["-", "not begun"],
    ]
    assert [found["seconds"] for found in as_json(report)["views"]] == [None] * 3


def test_no_view():
    assert as_text(RunReport()) == "There was no feature view to materialize."
    assert as_json(RunReport())["views"] == []


def test_json():
    report = RunReport(
        [
            view(
                read=9_000,
                incomplete=7,
                to_write=1_210,
                written=1_000,
                older=200,
                expired=3,
                failed=10,
                throttles=2,
                units=2_400.0,
                step="failed",
                error=KeyError("amount"),
            ),
            view("baskets", resumed=5, step="waiting", started_s=None, ended_s=None),
        ]
    )
    found = json.loads(json.dumps(as_json(report)))
    assert found["views"][0] == {
        "view": "orders",
        "table": "shop.orders",
        "start": "2026-01-01T00:00:00+00:00",
        "end": "2026-01-02T00:00:00+00:00",
        "state": "failed",
        "to_write": 1_210,
        "read": 9_000,
        "incomplete": 7,
        "written": 1_000,
        "older": 200,
        "expired": 3,
        "deleted": 0,
        "failed": 10,
        "resumed": 0,
        "hot_keys": [],
        "throttles": 2,
        "units": 2_400.0,
        "dollars": 0.0015,
        "seconds": 4.25,
        "error": "KeyError: 'amount'",
    }
    assert found["views"][1]["to_write"] is None
    assert found["views"][1]["error"] is None
    assert found["views"][1]["seconds"] is None
    assert found["total"] == {
        "read": 9_000,
        "incomplete": 7,
        "written": 1_000,
        "older": 200,
        "expired": 3,
        "deleted": 0,
        "failed": 10,
        "resumed": 5,
        "throttles": 2,
        "units": 2_400.0,
        "dollars": 0.0015,
        "seconds": 4.25,
    }


# Figures


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "$0.00"),
        (0.000_000_6, "<$0.0001"),
        (0.0001, "$0.0001"),
        (0.125, "$0.1250"),
        (1, "$1.00"),
        (1_234.5, "$1,234.50"),
    ],
)
def test_dollars(amount, shown):
    assert dollars(amount) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0, "0.0 s"),
        (4.25, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (187.4, "3 min 07 s"),
        (3_599.6, "1 h 00 min"),
        (7_500, "2 h 05 min"),
        (400_000, "111 h 06 min"),
    ],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1k"),
        (1_000, "1k"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (4_567_890, "4.57M"),
        (2_500_000_000, "2.5G"),
    ],
)
def test_short_numbers(number, shown):
    assert short(number) == shown


def test_counts():
    assert (count(0), count(1_234_567), count(2_400.0)) == ("0", "1,234,567", "2,400")


# As jobs of Feast's


@pytest.mark.parametrize(
    ("error", "status"),
    [(AlreadyRunningError, 409), (ThrottledError, 503), (ColumnTypeError, 500)],
)
def test_feasts_server_answers_with_errors_to_try_again_after(error, status):
    failed = view(step="failed", error=error("`orders` is at it"))
    task = MaterializationTask("shop", customer_view(), START, END)
    (job,) = jobs_of([task], RunReport([failed]))
    raised = job.error()
    assert isinstance(raised, error)
    assert str(raised) == "`orders` is at it"
    assert (raised.http_status_code() if isinstance(raised, FeastError) else 500) == status


def test_counts_of_things():
    entities = [counted(number, "entity", "entities") for number in (0, 1, 2_000)]
    assert entities == ["0 entities", "1 entity", "2,000 entities"]
    assert [counted(number, "raw export") for number in (1, 2)] == [
        "1 raw export",
        "2 raw exports",
    ]
