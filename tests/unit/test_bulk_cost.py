"""What the three ways of a first load cost."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from feast_dynamo_ext.cost import prices
from feast_dynamo_ext.cost.estimate import Sizes, costs, recommend
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, item_bytes, to_item


def test_prices():
    assert prices.write_dollars(1_000_000) == 0.625
    assert prices.import_dollars(10 * 1024**3) == pytest.approx(1.5)
    assert prices.s3_dollars(1024**3, 1_000) == pytest.approx(0.028)


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
    write, load, put = costs(LARGE, newest_wins=True)
    assert (write.way, write.dollars) == ("materialize", 62.5)
    assert write.how == "100,000,000 write units, twice that at most"
    # 37.6 GB of 2^30 bytes: $5.64 for the import, $0.89 for S3 and a month of storage
    assert load.way == "import"
    assert load.dollars == pytest.approx(6.53, abs=0.005)
    assert put.way == "bulk-put"
    assert put.dollars == pytest.approx(63.39, abs=0.005)


def test_overwriting_takes_one_write_a_row():
    write, _, _ = costs(LARGE, newest_wins=False)
    assert (write.dollars, write.how) == (62.5, "100,000,000 write units")


@pytest.mark.parametrize(
    ("sizes", "exists", "supported", "way", "why"),
    [
        (LARGE, False, True, "import", "The table is new"),
        (LARGE, False, False, "import", "The table is new"),
        (LARGE, True, True, "bulk-put", "The table exists"),
        (LARGE, True, False, "materialize", "knows no bulk puts"),
        (Sizes(1_000, 230_000, 1_000), False, True, "materialize", "It is small"),
    ],
)
def test_one_way_is_recommended_and_why(sizes, exists, supported, way, why):
    found = recommend(
        costs(sizes, newest_wins=True), table_exists=exists, bulk_put_supported=supported
    )
    assert found.way == way
    assert why in found.why
