"""What a first load costs, by an import and by writing the rows."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

from feast_dynamo_ext.cost import prices
from feast_dynamo_ext.cost.estimate import LOAD_PRICES_AS_OF, Sizes, load_costs, recommend
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, item_bytes, to_item


def test_prices():
    assert prices.WRITE_UNITS.cost(1_000_000) == 0.625
    assert prices.IMPORT_BYTES.cost(10 * 1024**3) == pytest.approx(1.5)
    month, puts = prices.S3_MONTH_BYTES.cost(1024**3), prices.S3_PUTS.cost(1_000)
    assert month + puts == pytest.approx(0.028)


def test_each_price_has_a_date_and_a_source():
    found = [value for value in vars(prices).values() if isinstance(value, prices.Price)]
    assert len(found) == 6
    for price in found:
        assert re.fullmatch(r"[A-Z][a-z]+ 20\d\d", price.as_of)
        assert price.source.startswith("https://aws.amazon.com/")
    assert LOAD_PRICES_AS_OF == "November 2024"
    old = prices.Price(1.0, 1, "May 2023", "https://aws.amazon.com/")
    assert prices.as_of(old, *found) == "May 2023, November 2024"


def test_sizes_are_added_up_and_units_rounded_up_for_each_item():
    sizes = Sizes.from_batches(
        [np.array([1, 1_024, 1_025]), np.array([], np.int64), np.array([4_096])]
    )
    assert sizes == Sizes(items=4, item_bytes=6_146, write_units=8)


def test_the_bytes_of_files_are_those_of_lines_within_four_bytes_an_item():
    key, values = b"k" * 33, b"v" * 158
    item = to_item(Row(key, values, 1_767_398_400_000_000, 1_767_398_400_000_000), SCHEMA, 60, "")
    line = json.dumps({"Item": item}, separators=(",", ":")) + "\n"
    sizes = Sizes.from_batches([np.full(1_000, item_bytes(item))])
    assert abs(sizes.raw_bytes / 1_000 - len(line)) <= 4
    assert base64.b64decode(item["v"]["B"]) == values


SCHEMA = RowSchema(("a",), ("INT64",))
# 100 million items of 230 bytes
LARGE = Sizes(items=100_000_000, item_bytes=23_000_000_000, write_units=100_000_000)


def test_costs_of_a_hundred_million_rows():
    write, load = load_costs(LARGE, newest_wins=True)
    assert (write.method, write.dollars) == ("materialize", 62.5)
    assert write.basis == "100,000,000 write units, twice that at most"
    # 37.6 GB of 2^30 bytes: $5.64 for the import, $0.89 for S3 and a month of storage
    assert load.method == "import"
    assert load.dollars == pytest.approx(6.53, abs=0.005)
    assert load.basis == "40.37 GB read, and S3"


def test_overwriting_takes_one_write_a_row():
    write, _ = load_costs(LARGE, newest_wins=False)
    assert (write.dollars, write.basis) == (62.5, "100,000,000 write units")


@pytest.mark.parametrize(
    ("sizes", "exists", "method", "why"),
    [
        (
            LARGE,
            False,
            "import",
            "The table is new: an import costs $6.53, writing the rows $62.50.",
        ),
        (LARGE, True, "materialize", "--replace-empty imports it for $6.53."),
        (Sizes(1_000, 230_000, 1_000), False, "materialize", "It is small"),
    ],
)
def test_a_method_is_recommended_and_why(sizes, exists, method, why):
    costs = load_costs(sizes, newest_wins=True)
    found = recommend(costs, table_exists=exists)
    assert found.method == method
    assert why in found.why
