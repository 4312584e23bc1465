"""Somebody is erased from all that was captured; nothing brings them back, and nothing names them.

The readers are others': pyiceberg's own scan, pyarrow over every file that lies there, boto3.
"""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from capture_shop import BEGUN, QUICK, Shop, item, new_shop, read
from export_writer import ExportPlace, into_folder, write_full
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Decimal, Float64, Int64, String

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.capture.captured import columns_of
from feast_dynamo_ext.capture.erasure.erase_online import OnlineViews
from feast_dynamo_ext.capture.erasure.erasure import Erasure, check_done
from feast_dynamo_ext.capture.erasure.person import Person, columns_of_history
from feast_dynamo_ext.capture.exports.table_scan import scan
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.quarantine import retry
from feast_dynamo_ext.capture.stream.online_changes import OnlineChanges
from feast_dynamo_ext.capture.values.change_rows import RecordReader
from feast_dynamo_ext.errors import CaptureError, OfflineStoreError
from feast_dynamo_ext.online_store import DynamoOnlineStore
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.optimize import optimize
from feast_dynamo_ext.parquet.iceberg.snapshots import tag
from feast_dynamo_ext.parquet.iceberg.view_table import drop
from feast_dynamo_ext.timestamps import EPOCH

if TYPE_CHECKING:
    from collections.abc import Iterable

NOBODY, GONE = 4, 4711
NOW = dt.timedelta(0)


def erasure(shop: Shop, views: Iterable[Any] = (), /, **given: str) -> Erasure:
    state = shop.history.state()
    known = () if state is None else state.keys
    columns = columns_of_history(shop.source, shop.history.handle.load(), known)
    person = Person.from_texts(shop.source, columns, given)
    config = shop.store.config
    online = OnlineViews(config, DynamoOnlineStore(), list(views))
    places, arn = (shop.target.uri,), shop.table().arn
    return Erasure(shop.history, person, online, config.offline_store.aws(), places, arn)


def erase(shop: Shop, views: Iterable[Any] = (), /, **given: str) -> Any:
    """By the clock of the table, with which its exports and its rows go."""
    work = erasure(shop, views, **given)
    result = work.run(work.plan(shop.client), settled=NOW, now=shop.service.clock.now)
    check_done(result)
    return result


def traces(folder: Path, customer: int, shop_name: str = "") -> list[str]:
    """Files below a folder that say anything of a customer: rows, footers, or bytes."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        held = path.read_bytes()
        is_there = bool(shop_name) and shop_name.encode() in held
        if path.suffix == ".parquet":
            rows = pq.read_table(path, partitioning=None).to_pylist()
            is_there |= any(row.get("customer") == customer for row in rows)
            is_there |= any(f'"{customer}"' in str(row.get("item")) for row in rows)
            footer = pq.read_metadata(path)
            for group in range(footer.num_row_groups):
                for at in range(footer.num_columns):
                    column = footer.row_group(group).column(at)
                    said = column.statistics
                    if column.path_in_schema == "customer" and said is not None:
                        is_there |= customer in (said.min, said.max)
            is_there |= bool(shop_name) and shop_name in str(rows)
        if is_there:
            found.append(str(path))
    return found


def left_of_exports(shop: Shop) -> list[tuple[str, bytes]]:
    """Objects in the bucket, data unpacked, by boto3."""
    s3, bucket = shop.service.s3, shop.target.bucket
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
    held = [s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys]
    return [
        (key, gzip.decompress(data) if key.endswith(".gz") else data)
        for key, data in zip(keys, held, strict=True)
    ]


def fill(shop: Shop) -> None:
    """Several windows with three customers, one of whom is to go; some does not fit."""
    for customer in (NOBODY, GONE, 9):
        shop.service.put(item(customer, 1))
    shop.service.put({**item(GONE, 2), "amount": {"S": "a lot"}})
    shop.service.put({**item(NOBODY, 2), "amount": {"S": "a lot"}})
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.service.put(item(GONE, 1, "7"))
    shop.service.put(item(9, 1, "8"))
    shop.service.clock.forward(hours=2)
    shop.sync()
    shop.service.put(item(GONE, 3))
    shop.service.delete({key: item(GONE, 1)[key] for key in ("customer", "at")})
    shop.service.clock.forward(hours=2)
    shop.sync()


def remove_items(shop: Shop, customer: int) -> None:
    """Delete all items of a customer from the application's table."""
    for day in range(6):
        shop.service.delete({key: item(customer, day)[key] for key in ("customer", "at")})


def test_somebody_is_in_no_file_afterwards(shop: Shop, tmp_path: Path):
    fill(shop)
    others = [row for row in shop.rows() if row[0] != GONE]
    theirs = len(shop.rows()) - len(others)
    assert traces(tmp_path, GONE) != []
    remove_items(shop, GONE)
    shop.service.clock.forward(minutes=1)
    plan = erasure(shop, customer=str(GONE)).plan(shop.client)
    assert (plan.rows, plan.quarantined, plan.items_in_table) == (theirs, 1, 0)
    # Of three exports all hold them; all are captured.
    assert [each.kept for each in plan.exports] == ["", "", ""]
    assert sum(each.records for each in plan.exports) == 2 + 1 + 2
    assert traces(tmp_path, GONE) != []  # a plan changes nothing

    result = erase(shop, customer=str(GONE))
    assert (result.rows, result.quarantined) == (theirs, 1)
    assert traces(tmp_path, GONE) == []
    assert traces(tmp_path, NOBODY) != []
    assert shop.rows() == others
    assert [row["item"] for row in read(shop.history.quarantine)] != []
    # Of the exports the files without items are left, which DynamoDB writes too.
    assert {each for _, each in left_of_exports(shop)} <= {b""}
    # Nothing but what comes later is captured by the next runs.
    shop.service.clock.forward(hours=1)
    shop.sync()
    assert shop.rows() == others
    assert traces(tmp_path, GONE) == []


@pytest.mark.parametrize("way", ["the same exports", "the whole table", "a scan"])
def test_nothing_of_before_brings_them_back(shop: Shop, tmp_path: Path, way: str):
    fill(shop)
    others = [row for row in shop.rows() if row[0] != GONE]
    remove_items(shop, GONE)
    shop.service.clock.forward(minutes=1)
    work = erasure(shop, customer=str(GONE))
    plan = work.plan()
    work.run(plan, remove_exports=False, settled=NOW, now=shop.service.clock.now)
    if way == "the same exports":
        # A history that is lost, and made anew of all old exports.
        for handle in (shop.history.handle, shop.history.quarantine):
            drop(handle, purge=True)
        result = shop.capture().convert_exports(shop.target.uri)
        assert len(result.captured) == 3
        assert [each.counts.erased for each in result.captured] == [2, 1, 2]
        assert shop.rows() == others
        assert shop.history.quarantined() == 1
    elif way == "the whole table":
        shop.service.clock.forward(hours=1)
        shop.sync(full=True)
        assert {row[0] for row in shop.rows()} == {NOBODY, 9}
    else:
        table = shop.table()
        scan(shop.client, table, columns_of(shop.source, table), shop.history)
        assert {row[0] for row in shop.rows()} == {NOBODY, 9}
    assert traces(tmp_path / "history", GONE) == []


def of_fields(source: DynamoDBTableSource, *fields: Field) -> DynamoDBTableSource:
    """The same source with another schema."""
    return DynamoDBTableSource(
        name=source.name,
        table=source.table,
        event_time=source.event_time,
        event_time_unit=source.event_time_unit,
        history=source.history,
        schema=fields,
    )


@pytest.mark.parametrize(("known_by", "value"), [("customer", str(GONE)), ("shop", "s-gone")])
def test_a_column_of_another_name_does_not_bring_them_back(
    shop: Shop, tmp_path: Path, known_by: str, value: str
):
    for customer in (NOBODY, GONE):
        named = {"shop": {"S": "s-gone" if customer == GONE else "s"}}
        shop.service.put({**item(customer, 1), **named})
        shop.service.put({**item(customer, 2), **named, "amount": {"S": "a lot"}})
    shop.service.clock.forward(minutes=1)
    shop.sync()
    remove_items(shop, GONE)
    shop.service.clock.forward(minutes=1)
    work = erasure(shop, **{known_by: value})
    work.run(work.plan(), remove_exports=False, settled=NOW, now=shop.service.clock.now)
    (row,) = read(shop.history.erased)
    assert json.loads(row["columns"]) == [{"attribute": [known_by], "form": "value"}]

    fields = {field.name: field for field in shop.source.schema}
    old = fields.pop(known_by)
    for handle in (shop.history.handle, shop.history.quarantine):
        drop(handle, purge=True)
    other = Field(name="another", dtype=old.dtype, tags={"attribute": known_by})
    shop.source = of_fields(shop.source, *fields.values(), other)
    shop.capture().convert_exports(shop.target.uri)
    rows = read(shop.history.handle)
    assert [row["another"] for row in rows] == [NOBODY if known_by == "customer" else "s"]
    assert shop.history.quarantined() == 1
    assert traces(tmp_path / "history", GONE, "s-gone") == []

    if known_by == "customer":
        return  # a key attribute is always a column
    for handle in (shop.history.handle, shop.history.quarantine):
        drop(handle, purge=True)
    shop.source = of_fields(shop.source, *fields.values())
    with pytest.raises(CaptureError, match="known by `shop`, and `schema` has no column of it"):
        shop.capture().convert_exports(shop.target.uri)
    assert traces(tmp_path / "history", GONE, "s-gone") == []


def test_somebody_is_known_by_a_double_and_a_decimal(shop: Shop, tmp_path: Path):
    fields = [field for field in shop.source.schema if field.name != "shop"]
    shop.source = of_fields(shop.source, *fields, Field(name="tax", dtype=Decimal))
    for customer, amount, tax in ((1, "72.5", "1"), (2, "1", "1E30"), (3, "1", "1")):
        shop.service.put({**item(customer, 1, amount), "tax": {"N": tax}})
    shop.service.clock.forward(minutes=1)
    shop.sync()
    for number in (1, 2):
        remove_items(shop, number)
    shop.service.clock.forward(minutes=1)
    assert erase(shop, amount="7.250E1").rows == 1
    assert erase(shop, tax="1000000000000000000000000000000").rows == 1
    assert [row[0] for row in shop.rows()] == [3]
    assert traces(tmp_path, 1) == traces(tmp_path, 2) == []


def test_a_sort_key_that_is_a_time_in_a_text(
    open_store: Any, moto_endpoint: str, bucket: str, tmp_path: Path
):
    with new_shop(open_store, moto_endpoint, bucket, tmp_path, "iso8601", "S") as shop:

        def key(at: str) -> dict[str, Any]:
            return {"customer": {"N": "1"}, "at": {"S": at}}

        day, same = "2026-03-02T00:00:00Z", "2026-03-02T01:00:00+01:00"
        for at, amount in ((day, "1"), (same, "2"), ("2026-03-03T00:00:00Z", "3")):
            shop.service.put({**key(at), "amount": {"N": amount}})

        def scanned() -> int:
            table = shop.table()
            scan(shop.client, table, columns_of(shop.source, table), shop.history)
            return shop.history.quarantined()

        shop.capture()
        kept = [(1, 1, 1, "put"), (1, 2, 3, "put")]
        assert (scanned(), shop.rows()) == (1, kept)
        # A table that did not change adds nothing.
        assert (scanned(), shop.rows()) == (1, kept)
        (aside,) = read(shop.history.quarantine)
        assert aside["attribute"] == "at"
        assert "another spelling" in aside["reason"]
        assert json.loads(aside["item"])["Item"]["at"] == {"S": same}
        # The deletion of the other item ends nothing of this one.
        shop.service.delete(key(same))
        scanned()
        assert shop.rows() == kept
        shop.service.delete(key(day))
        shop.service.clock.forward(minutes=1)
        assert erase(shop, customer="1", at=day).rows == 1
        assert shop.rows() == [(1, 2, 3, "put")]


def test_a_sort_key_that_is_a_number_in_a_text(
    open_store: Any, moto_endpoint: str, bucket: str, tmp_path: Path
):
    with new_shop(open_store, moto_endpoint, bucket, tmp_path, "ms", "S") as shop:
        for day in (1, 2):
            at = item(1, day)["at"]["N"]
            shop.service.put({**item(1, day), "at": {"S": at}})
        shop.service.clock.forward(minutes=1)
        shop.sync()
        work = erasure(shop, customer="1", at=at)
        plan = work.plan(shop.client)
        assert (plan.rows, plan.items_in_table) == (1, 1)


def test_a_deletion_after_the_erasure_says_nothing_of_what_was(shop: Shop, tmp_path: Path):
    fill(shop)
    others = [row for row in shop.rows() if row[0] != GONE]
    erase(shop, customer=str(GONE))
    # Now alone their items are deleted, and one is moved: the images of before hold all of it.
    remove_items(shop, GONE)
    shop.service.clock.forward(hours=1)
    (window,) = shop.sync().captured
    assert (window.counts.records, window.counts.rows, window.counts.erased) == (2, 0, 2)
    assert shop.rows() == others
    assert traces(tmp_path, GONE) == []


def test_somebody_who_comes_anew_is_there_and_can_go_again(shop: Shop, tmp_path: Path):
    fill(shop)
    others = [row for row in shop.rows() if row[0] != GONE]
    remove_items(shop, GONE)
    shop.service.clock.forward(minutes=1)
    erase(shop, customer=str(GONE))
    shop.service.put(item(GONE, 5, "3"))
    shop.service.clock.forward(hours=1)
    shop.sync()
    shop.service.delete({key: item(GONE, 5)[key] for key in ("customer", "at")})
    shop.service.clock.forward(hours=1)
    shop.sync()
    anew = [(GONE, 5, 3, "delete"), (GONE, 5, 3, "put")]
    assert shop.rows() == sorted([*others, *anew])
    erase(shop, customer=str(GONE))
    assert shop.rows() == others
    assert traces(tmp_path, GONE) == []


def test_one_item_of_somebody(shop: Shop):
    fill(shop)
    at = item(GONE, 1)["at"]["N"]
    result = erase(shop, customer=str(GONE), at=at)
    assert result.rows == 3  # two versions, and the deletion
    assert [row[:2] for row in shop.rows() if row[0] == GONE] == [(GONE, 3)]


def test_another_attribute_says_whose_it_is(shop: Shop, tmp_path: Path):
    theirs, others = {"S": "of zoe, no. 4711"}, {"S": "of another"}
    for customer in range(3):
        shop.service.put({**item(customer, 1), "shop": theirs if customer else others})
    # A deletion whose image of before nobody has is of an item that is theirs.
    shop.service.put({**item(5, 1), "shop": theirs, "amount": {"S": "a lot"}})
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.service.put({**item(1, 1, "7"), "shop": theirs})
    shop.service.put({**item(2, 1), "shop": others})  # it is another's now
    shop.service.clock.forward(hours=1)
    shop.sync()
    key_alone = {"customer": [1], "at": [BEGUN + dt.timedelta(days=1)]}
    gone = pa.table(
        {
            **key_alone,
            "_feast_written_at": [shop.service.clock.now],
            "_feast_change": ["delete"],
        }
    )
    columns = shop.history.handle.columns()
    shop.history.handle.append(
        gone.cast(pa.schema([columns.field(each) for each in gone.schema.names]))
    )
    assert traces(tmp_path, -1, theirs["S"]) != []
    remove_items(shop, 1)
    shop.service.clock.forward(minutes=1)
    result = erase(shop, shop=theirs["S"])
    # Two versions of item 1 and its deletion, and one of item 2, whose later one is another's.
    assert (result.rows, result.quarantined) == (4, 1)
    assert [row[:2] for row in shop.rows()] == [(0, 1), (2, 1)]
    assert traces(tmp_path, -1, theirs["S"]) == []
    shop.service.clock.forward(hours=1)
    shop.sync(full=True)
    # Items that the table has still are captured again: they are there.
    assert {row[0] for row in shop.rows()} == {0, 2}
    assert [json.loads(row["item"])["Item"]["shop"] for row in read(shop.history.quarantine)] == [
        theirs
    ]


def of_customers(shop: Shop, name: str, *keys: str) -> tuple[list[Entity], FeatureView]:
    kinds = {"customer": (ValueType.INT64, Int64), "shop": (ValueType.STRING, String)}
    entities = [
        Entity(name=f"{key}_of_{name}", join_keys=[key], value_type=kinds[key][0]) for key in keys
    ]
    columns = [Field(name=key, dtype=kinds[key][1]) for key in keys]
    return entities, FeatureView(
        name=name,
        entities=entities,
        schema=[Field(name="amount", dtype=Float64), *columns],
        source=shop.source,
        ttl=NOW,
        tags=ViewSettings(deletes="ignore").tags(),
    )


def online(shop: Shop, view: str, /, **key: Any) -> Any:
    found = shop.store.get_online_features([f"{view}:amount"], [key]).to_dict()
    return found["amount"][0]


def test_rows_in_the_online_store_go(shop: Shop):
    shop.service.put({**item(9, 2, "2.5"), "shop": {"S": "s3"}})
    fill(shop)
    number = shop.source.name
    entities, view = of_customers(shop, f"by_customer_{number}", "customer")
    others, finer = of_customers(shop, f"by_shop_{number}", "shop")
    shop.store.apply([*entities, *others, view, finer])
    shop.store.materialize(BEGUN - dt.timedelta(days=1), BEGUN + dt.timedelta(days=30))
    assert online(shop, view.name, customer=GONE) == 1.5
    # Of one moment the last that was written: that of another.
    assert (online(shop, finer.name, shop="s1"), online(shop, finer.name, shop="s3")) == (8, 1.5)
    remove_items(shop, GONE)
    views = [shop.store.get_feature_view(each.name) for each in (view, finer)]
    work = erasure(shop, views, customer=str(GONE))
    # What is online was written by the clock of this machine's exports, ahead of none.
    result = work.run(work.plan(), settled=NOW, now=shop.service.clock.now)
    done = {each.view: (each.entities, each.later, each.shared) for each in result.online}
    # In shop s1 they bought too, but the row is another's; in s3 another bought before them.
    assert done == {view.name: (1, 0, 0), finer.name: (1, 0, 1)}
    assert online(shop, view.name, customer=GONE) is None
    assert online(shop, view.name, customer=9) == 2.5
    assert (online(shop, finer.name, shop="s1"), online(shop, finer.name, shop="s3")) == (8, None)
    shop.store.materialize(BEGUN - dt.timedelta(days=1), BEGUN + dt.timedelta(days=30))
    assert (online(shop, finer.name, shop="s1"), online(shop, finer.name, shop="s3")) == (8, 2.5)
    assert online(shop, view.name, customer=GONE) is None


def test_changes_of_before_do_not_go_online(shop: Shop):
    fill(shop)
    entities, view = of_customers(shop, f"of_stream_{shop.source.name}", "customer")
    shop.store.apply([*entities, view])
    changes = OnlineChanges.from_store(shop.store, shop.source)
    reader = RecordReader(columns_of(shop.source, shop.table()))
    written = (shop.service.clock.now - EPOCH) // dt.timedelta(microseconds=1)

    def bring(*customers: int, at: int) -> None:
        images = [item(customer, 4) for customer in customers]
        records = [{"Keys": key_of(image), "NewImage": image} for image in images]
        names = [f"{at} {customer}" for customer in customers]
        made = reader.converted(records, [at] * len(records), names, names)
        changes.apply(made.rows).checked()

    shop.service.clock.forward(seconds=5)
    erase(shop, [view], customer=str(GONE))
    # A change that the stream delivers hours later, and one that they made since.
    bring(GONE, 9, at=written)
    assert online(shop, view.name, customer=GONE) is None
    assert online(shop, view.name, customer=9) == 1.5
    bring(GONE, at=written + 10_000_000)
    assert online(shop, view.name, customer=GONE) == 1.5


def test_a_capture_that_is_under_way_is_refused(shop: Shop, tmp_path: Path):
    fill(shop)
    shop.service.put(item(GONE, 4))
    shop.service.clock.forward(hours=1)
    run, history = shop.capture(), shop.history
    parts = run.convert

    def convert(export: Any, file: Any) -> Any:
        for part in parts(export, file):
            if not done:
                done.append(erase(shop, customer=str(GONE)))
            yield part

    done: list[Any] = []
    with pytest.raises(CaptureError, match="another run captures it"):
        replace(run, convert=convert, workers=1).sync(
            shop.client, shop.table(), shop.target, poll=QUICK
        )
    assert GONE not in {row[0] for row in shop.rows()}
    state = history.state()
    assert state is not None
    assert len(state.pending) == 1
    # The window is captured by the next run, without them.
    shop.sync()
    assert GONE not in {row[0] for row in shop.rows()}
    assert traces(tmp_path, GONE) == []


def test_what_is_tried_again_is_without_them(shop: Shop):
    fill(shop)
    erase(shop, customer=str(GONE))
    found = retry(shop.history, columns_of(shop.source, shop.table()))
    assert (found.taken, found.left) == (0, 1)
    assert all(str(GONE) not in row["item"] for row in read(shop.history.quarantine))


def test_files_that_no_version_names_go_too_once_they_are_old(shop: Shop, tmp_path: Path):
    fill(shop)
    location = Path(str(shop.history.handle.load().location()).removeprefix("file://"))
    (data,) = [path for path in traces(location, GONE) if path.endswith(".parquet")][:1]
    left = location / "data" / "of-a-killed-writer.parquet"
    left.write_bytes(Path(data).read_bytes())
    half = location / "data" / ".half.parquet.0123.tmp"
    half.write_bytes(b"PAR1 half of it")
    remove_items(shop, GONE)
    work = erasure(shop, customer=str(GONE))
    result = work.run(work.plan(), now=shop.service.clock.now)
    assert result.orphans == ()
    with pytest.raises(CaptureError, match=r"of-a-killed-writer.parquet.*15 minutes old"):
        check_done(result)
    result = work.run(work.plan(), settled=NOW, now=shop.service.clock.now)
    assert {Path(each).name for each in result.orphans} == {left.name, half.name}
    assert traces(tmp_path, GONE) == []
    check_done(result)


def test_exports_that_are_not_captured_stay_and_are_named(shop: Shop):
    fill(shop)
    shop.service.put(item(GONE, 4))
    state = shop.history.state()
    assert state is not None
    shop.service.clock.forward(hours=1)
    shop.client.export_table_to_point_in_time(
        TableArn=shop.service.table.arn,
        S3Bucket=shop.target.bucket,
        S3Prefix=shop.target.prefix,
        ExportType="INCREMENTAL_EXPORT",
        IncrementalExportSpecification={
            "ExportFromTime": state.until,
            "ExportToTime": shop.service.clock.now.replace(microsecond=0),
            "ExportViewType": "NEW_AND_OLD_IMAGES",
        },
    )
    result = erase(shop, customer=str(GONE))
    assert [each.kept for each in result.kept] == ["it is not captured yet"]
    assert len(result.removed) == 3


def test_exports_of_another_table_of_the_name_stay(shop: Shop, tmp_path: Path):
    fill(shop)
    other = replace(shop.service.table, region="eu-west-1")
    place = ExportPlace(into_folder(tmp_path / "given"), "bucket", None)
    made = write_full(place, other, [item(GONE, 1)], shop.service.clock.now)
    folder = tmp_path / "given" / made.folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    work = replace(erasure(shop, customer=str(GONE)), places=(str(tmp_path / "given"),))
    # Of a table that nobody can describe it may be one.
    (unknown,) = [each for each in replace(work, arn=None).plan().exports if each.kept]
    assert unknown.kept == f"nobody can say whether {other.arn} is the source's table"
    assert (unknown.folder, unknown.records) == (str(folder), 1)
    result = work.run(work.plan(shop.client), settled=NOW, now=shop.service.clock.now)
    assert (len(result.removed), result.kept) == (3, ())
    assert {path: path.read_bytes() for path in before} == before


def test_an_export_that_was_removed_half_goes_with_the_next_run(shop: Shop):
    fill(shop)
    theirs = [
        key
        for key, data in left_of_exports(shop)
        if key.endswith(".gz") and f'"{GONE}"'.encode() in data
    ]
    assert len(theirs) >= 3
    # What holds them is gone already: only by what is missing the export is known.
    for key in theirs:
        shop.service.s3.delete_object(Bucket=shop.target.bucket, Key=key)
    result = erase(shop, customer=str(GONE))
    assert [len(result.removed), result.kept] == [3, ()]
    assert {data for _, data in left_of_exports(shop)} <= {b""}


def test_sorted_files_and_tags(shop: Shop, tmp_path: Path):
    fill(shop)
    optimize(shop.history.handle)
    tag(shop.history.handle, "training-set-1")
    plan = erasure(shop, customer=str(GONE)).plan()
    assert plan.tags == (f"training-set-1 of {shop.history.handle.name}",)
    erase(shop, customer=str(GONE))
    assert traces(tmp_path, GONE) == []
    table = shop.history.handle.load()
    assert [*table.refs()] == ["main"]
    table.manage_snapshots().create_branch(table.current_snapshot().snapshot_id, "b").commit()
    with pytest.raises(OfflineStoreError, match="branches b"):
        erasure(shop, customer=str(GONE)).plan()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"custmer": "5"}, "no attribute `custmer`. Did you mean `customer`"),
        ({"customer": "five"}, "what is to be erased of `customer` is no value of it"),
        ({"customer": "1.5"}, "no value of it"),
    ],
)
def test_what_nobody_is_known_by_is_refused(shop: Shop, given: dict[str, str], said: str):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    with pytest.raises(CaptureError, match=said.replace(".", r"\.")):
        erasure(shop, **given)


class StoppedError(Exception):
    """The process ended."""


@dataclass(frozen=True)
class Stopping(TableHandle):
    """A table whose writer ends after so many commits."""

    commits: list[str] = field(default_factory=list, compare=False)
    last: int = 0

    def attempt(self, work: Any, commit_id: str, **more: Any) -> Any:
        made = super().attempt(work, commit_id, **more)
        self.commits.append(commit_id)
        if len(self.commits) == self.last:
            raise StoppedError
        return made


def stopping(handle: TableHandle, commits: list[str], last: int) -> Stopping:
    return Stopping(handle.address, handle.name, handle.settings, commits, last)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_erasure_that_ends_anywhere_is_done_by_the_next_run(shop: Shop, tmp_path: Path):
    shop.service.put(item(9, 1))
    for last in itertools.count(1):
        shop.service.put(item(GONE, 1))
        shop.service.put({**item(GONE, 2), "amount": {"S": "a lot"}})
        shop.service.clock.forward(hours=1)
        shop.sync()
        remove_items(shop, GONE)
        shop.service.clock.forward(seconds=1)
        work, there = erasure(shop, customer=str(GONE)), shop.history
        commits: list[str] = []
        history = CapturedHistory(
            there.source,
            stopping(there.handle, commits, last),
            stopping(there.quarantine, commits, last),
        )
        is_whole = True
        try:
            ended = replace(work, history=history)
            ended.run(ended.plan(), settled=NOW, now=shop.service.clock.now)
        except StoppedError:
            is_whole = False
        erase(shop, customer=str(GONE))
        assert traces(tmp_path, GONE) == []
        assert {row[0] for row in shop.rows()} == {9}
        if is_whole:
            break
    shop.service.clock.forward(hours=1)
    shop.sync()
    assert traces(tmp_path, GONE) == []
    # Who it is, three marks, two tables written anew, and their manifests twice.
    assert last > 6


@dataclass(frozen=True)
class Interrupted(CapturedHistory):
    """A history from which somebody is erased once changes of a stream were looked at."""

    interrupt: list[Any] = field(default_factory=list, compare=False)

    def known(self, look: Any) -> Any:
        found = super().known(look)
        if self.interrupt:
            self.interrupt.pop()()
        return found


def test_changes_of_a_stream_do_not_bring_them_back(shop: Shop, tmp_path: Path):
    fill(shop)
    others = [row for row in shop.rows() if row[0] != GONE]
    reader = RecordReader(columns_of(shop.source, shop.table()))
    written = (shop.service.clock.now - EPOCH) // dt.timedelta(microseconds=1)

    def changes(at: int, *records: dict[str, Any]) -> Any:
        names = [f"{at} {number}" for number in range(len(records))]
        return reader.converted(records, [at] * len(records), names, names)

    def put(customer: int, **more: Any) -> dict[str, Any]:
        image = {**item(customer, 4), **more}
        return {"Keys": key_of(image), "NewImage": image}

    misfit = put(GONE, amount={"S": "a lot"})
    old = changes(written, put(GONE), put(9), misfit)
    there = shop.history
    shop.service.clock.forward(seconds=5)
    history = Interrupted(
        there.source,
        there.handle,
        there.quarantine,
        interrupt=[lambda: erase(shop, customer=str(GONE))],
    )
    counts = history.add_changes(old)
    assert (counts.rows, counts.quarantined, counts.erased) == (1, 0, 2)
    assert shop.rows() == sorted([*others, (9, 4, 1.5, "put")])
    assert traces(tmp_path, GONE) == []
    # Delivered once more, it is the same.
    assert shop.history.add_changes(old).rows == 0
    # What they do anew counts, and so does its end; the end of what they did before does not.
    shop.service.clock.forward(hours=1)
    now = (shop.service.clock.now - EPOCH) // dt.timedelta(microseconds=1)
    ended = {"Keys": key_of(item(GONE, 1)), "OldImage": item(GONE, 1)}
    assert shop.history.add_changes(changes(now, put(GONE), ended)).rows == 1
    image = item(GONE, 4)
    last = changes(now + 1, {"Keys": key_of(image), "OldImage": image})
    assert shop.history.add_changes(last).rows == 1
    assert [row for row in shop.rows() if row[0] == GONE] == [
        (GONE, 4, 1.5, "delete"),
        (GONE, 4, 1.5, "put"),
    ]


def key_of(image: dict[str, Any]) -> dict[str, Any]:
    return {name: image[name] for name in ("customer", "at")}
