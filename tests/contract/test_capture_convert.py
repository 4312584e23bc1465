"""Exports that lie somewhere become history: of the right table, each once, and sync goes on."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from capture_shop import BEGUN, Shop, item, read
from export_writer import (
    Change,
    ExportPlace,
    into_folder,
    write_full,
    write_increment,
)

from feast_dynamo_ext.capture.exports.windows import CaptureState
from feast_dynamo_ext.errors import CaptureError

if TYPE_CHECKING:
    from pathlib import Path

KEYS = (("customer", "N"), ("at", "N"))
HOUR = dt.timedelta(hours=1)


def place_in(folder: Path) -> ExportPlace:
    return ExportPlace(into_folder(folder), "bucket", None)


def test_sync_goes_on_from_what_was_converted(shop: Shop, tmp_path: Path):
    shop.service.put(item(1, 1))
    now = shop.service.clock.forward(minutes=1)
    write_full(place_in(tmp_path / "given"), shop.service.table, [item(1, 1)], now)
    shop.capture().convert_exports(str(tmp_path / "given"))
    state = shop.history.state()
    assert state is not None
    assert (state.keys, state.table_id) == (KEYS, shop.table().id)
    shop.service.put(item(2, 2))
    shop.service.clock.forward(hours=1)
    (window,) = shop.sync().captured
    assert (window.window.start, window.counts.rows) == (BEGUN + dt.timedelta(minutes=1), 1)
    assert shop.rows() == [(1, 1, 1.5, "put"), (2, 2, 1.5, "put")]


def test_what_cannot_be_converted_leaves_nothing(shop: Shop, tmp_path: Path):
    shop.service.put(item(1, 1))
    now = shop.service.clock.forward(minutes=1)
    made = write_full(place_in(tmp_path / "given"), shop.service.table, [item(1, 1)], now)
    gone = next(file for file in made.files if file.count)
    (tmp_path / "given" / gone.key).unlink()
    with pytest.raises(CaptureError, match="is gone, which an export's manifest names"):
        shop.capture().convert_exports(str(tmp_path / "given"))
    assert (shop.history.state(), shop.rows()) == (None, [])
    assert shop.history.handle.load().snapshots() == []
    (window,) = shop.sync().captured
    assert (window.window.start, shop.rows()) == (None, [(1, 1, 1.5, "put")])


def earlier_versions_state(shop: Shop, tmp_path: Path) -> None:
    """How far capture is, as earlier versions kept it: without the key."""
    now = shop.service.clock.forward(minutes=1)
    write_full(place_in(tmp_path / "given"), shop.service.table, [item(1, 1)], now)
    shop.capture().convert_exports(str(tmp_path / "given"))
    state = shop.history.state()
    assert state is not None
    assert state.to_json()["keys"] == [["customer", "N"], ["at", "N"]]
    old = CaptureState.from_json(state.to_json() | {"keys": []})
    shop.history.keep(state, old, "as-before")


@pytest.mark.parametrize("full", [False, True])
def test_a_state_without_its_key_is_gone_on_with(shop: Shop, tmp_path: Path, full: bool):
    shop.service.put(item(1, 1))
    earlier_versions_state(shop, tmp_path)
    shop.service.put(item(2, 2))
    shop.service.clock.forward(hours=1)
    shop.sync(full=full)
    state = shop.history.state()
    assert state is not None
    assert state.keys == KEYS
    assert set(shop.rows()) == {(1, 1, 1.5, "put"), (2, 2, 1.5, "put")}


def test_a_state_without_its_key_is_of_the_key_of_its_history(shop: Shop, tmp_path: Path):
    shop.service.put(item(1, 1))
    earlier_versions_state(shop, tmp_path)
    shop.service.clock.forward(hours=1)
    other = replace(shop.table(), keys=(("shop", "S"),))
    with pytest.raises(CaptureError, match=r"has the key shop \(S\), .* of the key customer, at:"):
        shop.capture().sync(shop.client, other, shop.target)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"account": "999999999999"}, "us-east-1:999999999999:table/"),
        ({"region": "eu-west-1"}, "eu-west-1:"),
        ({"name": "another"}, ":table/another"),
    ],
)
def test_exports_of_another_table_are_refused(
    shop: Shop, tmp_path: Path, changed: dict[str, str], named: str
):
    other = replace(shop.service.table, **changed)
    write_full(place_in(tmp_path / "given"), other, [item(66, 1)], BEGUN)
    with pytest.raises(CaptureError, match=f"is an export of another table, arn:aws:.*{named}"):
        shop.capture().convert_exports(str(tmp_path / "given"))
    assert (shop.history.state(), shop.rows()) == (None, [])


def test_an_increment_of_another_table_does_not_follow(shop: Shop, tmp_path: Path):
    place, table = place_in(tmp_path / "given"), shop.service.table
    write_full(place, table, [item(1, 1)], BEGUN)
    other = replace(table, region="eu-west-1")
    write_increment(place, other, [], BEGUN, BEGUN + HOUR)
    with pytest.raises(CaptureError, match="is an export of another table"):
        shop.capture().convert_exports(str(tmp_path / "given"))
    assert shop.rows() == [(1, 1, 1.5, "put")]


def test_exports_that_end_in_one_second_are_all_captured(shop: Shop, tmp_path: Path):
    place, table = place_in(tmp_path / "given"), shop.service.table
    first, second = (BEGUN + dt.timedelta(milliseconds=each) for each in (100, 900))
    write_full(place, table, [item(2, 1)], first)
    write_full(place, table, [item(2, 1), item(3, 1)], second)
    found = shop.capture().convert_exports(str(tmp_path / "given"))
    assert [each.counts.records for each in found.captured] == [1, 2]
    assert set(shop.rows()) == {(2, 1, 1.5, "put"), (3, 1, 1.5, "put")}
    state = shop.history.state()
    assert state is not None
    # The folders of both are known, which an erasure removes.
    assert list(state.exports) == [
        "full-20260301T000000.100000Z",
        "full-20260301T000000.900000Z",
    ]
    assert len(set(state.exports.values())) == 2


def test_increments_that_begin_and_end_in_one_second_are_all_captured(shop: Shop, tmp_path: Path):
    place, table = place_in(tmp_path / "given"), shop.service.table
    moments = [BEGUN + dt.timedelta(milliseconds=each) for each in (0, 100, 500, 900)]
    write_full(place, table, [], moments[0])
    for customer, (start, end) in enumerate(itertools.pairwise(moments)):
        new = item(customer, 1)
        key = {name: new[name] for name in ("customer", "at")}
        write_increment(place, table, [Change(key, None, new, start)], start, end)
    found = shop.capture().convert_exports(str(tmp_path / "given"))
    assert [each.counts.rows for each in found.captured] == [0, 1, 1, 1]
    assert shop.rows() == [(customer, 1, 1.5, "put") for customer in range(3)]
    assert {row["_feast_change"] for row in read(shop.history.handle)} == {"put"}
