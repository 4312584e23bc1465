"""What a dry run says: counted from the sizes of items, priced by the write unit."""

from __future__ import annotations

import numpy as np
import pytest

from feast_dynamo_ext.cost import estimate
from feast_dynamo_ext.cost.estimate import Rate

KB = 1_024


def orders(*batches, write_mode="newest_wins", **counts):
    sizes = [np.array(batch, dtype=np.int64) for batch in batches]
    return estimate.estimate_view(
        "orders", "shop.orders", sizes, write_mode, **{"read": 10, **counts}
    )


def many(view, rows, write_mode="overwrite"):
    sizes = [np.full(rows, 200)]
    return estimate.estimate_view(view, f"shop.{view}", sizes, write_mode, read=5 * rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "units"),
    [(1, 1), (KB, 1), (KB + 1, 2), (2 * KB, 2), (2 * KB + 1, 3), (400 * KB, 400)],
)
def test_each_item_is_rounded_up_to_a_kilobyte(size, units):
    assert orders([size]).units == units
    assert orders([size, size, 5]).units == 2 * units + 1


def test_sizes_are_counted_over_all_batches():
    found = orders([100, 100, 300], [], [1_500], write_mode="overwrite", read=9, expired=2)
    assert found == estimate.ViewEstimate(
        view="orders",
        table="shop.orders",
        write_mode="overwrite",
        read=9,
        expired=2,
        resumed=0,
        rows=4,
        too_large=0,
        mean_bytes=500.0,
        p50_bytes=100,
        p99_bytes=1_500,
        max_bytes=1_500,
        units=5,
    )
    assert found.units_per_item == 1.25


def test_quantiles_are_sizes_that_occur():
    found = orders(np.arange(1, 101))
    assert (found.p50_bytes, found.p99_bytes, found.max_bytes) == (50, 99, 100)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32])
def test_sizes_may_be_of_any_integer_type(kind):
    found = estimate.estimate_view(
        "v", "t", [np.array([100, 2_000], dtype=kind)], "overwrite", read=2
    )
    assert (found.rows, found.units) == (2, 3)


def test_without_rows_nothing_is_divided():
    found = orders(read=7, expired=7)
    assert (found.rows, found.units, found.max_units, found.units_per_item) == (0, 0, 0, 0.0)
    assert (found.mean_bytes, found.p50_bytes, found.max_bytes) == (0.0, 0, 0)


def test_an_item_over_400_kb_is_counted_apart():
    found = orders([400 * KB, 400 * KB + 1, 900 * KB, 100])
    assert (found.rows, found.too_large, found.units, found.max_bytes) == (2, 2, 401, 400 * KB)


def test_newest_wins_may_take_a_second_statement_a_row():
    assert orders([100, 1_500]).max_units == 6
    assert orders([100, 1_500], write_mode="overwrite").max_units == 3


def test_time_with_a_ceiling_is_that_of_all_views_together():
    assert Rate(ceiling=500).seconds([1_000, 4_000]) == 10.0


def test_time_without_a_ceiling_is_that_of_new_tables_side_by_side():
    # 4,000 units a second and table: 1 s, 3 s, 2 s, the third begun when the first is done.
    units = [4_000, 12_000, 8_000]
    assert Rate(views_at_once=4).seconds(units) == 3.0
    assert Rate(views_at_once=2).seconds(units) == 3.0
    assert Rate(views_at_once=1).seconds(units) == 6.0
    assert Rate().seconds([]) == 0.0


def test_the_table_of_one_view():
    found = orders([158] * 8, [1_500] * 2, read=1_234, expired=5)
    assert estimate.as_text([found], Rate()) == (
        "feature view      read    expired    to write    bytes/item    p99    max"
        "    units/item    units    dollars    time\n"
        "--------------  ------  ---------  ----------  ------------  -----  -----"
        "  ------------  -------  ---------  ------\n"
        "orders           1,234          5          10           426  1,500  1,500"
        "          1.20       12   <$0.0001   0.0 s\n"
        "\n"
        "Time: writing alone, at 4,000 write units a second and table, with which a new on-demand "
        "table starts.\n"
        "Dollars: on demand, us-east-1, prices of November 2024.\n"
        "newest_wins: a row whose first statement fails takes a second one, which is billed too. "
        "At most 24 units, <$0.0001, 0.0 s."
    )


def test_the_table_of_several_views_has_a_total():
    text = estimate.as_text([many("a", 200_000), many("b", 1_000_000)], Rate(ceiling=10_000))
    lines = text.splitlines()
    assert [" ".join(lines[row].split()) for row in (2, 3, 5)] == [
        "a 1,000,000 0 200,000 200 200 200 1.00 200,000 $0.1250 20.0 s",
        "b 5,000,000 0 1,000,000 200 200 200 1.00 1,000,000 $0.6250 1 min 40 s",
        "total 6,000,000 0 1,200,000 1,200,000 $0.7500 2 min 00 s",
    ]
    assert lines[7:] == [
        "Time: writing alone, at 10,000 write units a second, all views together.",
        "Dollars: on demand, us-east-1, prices of November 2024.",
    ]


def test_rows_that_are_there_already_or_cannot_be_are_named():
    text = estimate.as_text([orders([500_000, 100], resumed=1_000)], Rate())
    assert text.splitlines()[-2:] == [
        "1,000 rows more are there already, from a run that was killed; --restart writes them "
        "again.",
        "1 rows more are over DynamoDB's 400 KB an item, and would fail. Split the view, or "
        "shorten its largest feature.",
    ]


def test_no_view():
    assert estimate.as_text([], Rate()) == "There is no feature view to estimate."
    assert estimate.as_json([], Rate())["views"] == []


def test_json():
    found = estimate.as_json([orders([100] * 4_000, read=5_000, expired=1)], Rate())
    assert found == {
        "views": [
            {
                "view": "orders",
                "table": "shop.orders",
                "write_mode": "newest_wins",
                "read": 5_000,
                "expired": 1,
                "resumed": 0,
                "rows": 4_000,
                "too_large": 0,
                "mean_bytes": 100.0,
                "p50_bytes": 100,
                "p99_bytes": 100,
                "max_bytes": 100,
                "units": 4_000,
                "max_units": 8_000,
                "dollars": 0.0025,
                "max_dollars": 0.005,
                "seconds": 1.0,
                "max_seconds": 2.0,
            }
        ],
        "total": {
            "read": 5_000,
            "expired": 1,
            "resumed": 0,
            "rows": 4_000,
            "too_large": 0,
            "units": 4_000,
            "max_units": 8_000,
            "dollars": 0.0025,
            "max_dollars": 0.005,
            "seconds": 1.0,
            "max_seconds": 2.0,
        },
        "rate": {"units_per_s": 4_000, "per": "table"},
    }
    assert estimate.as_json([], Rate(ceiling=7))["rate"] == {"units_per_s": 7, "per": "run"}
