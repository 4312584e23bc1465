"""A table captured by exports: whole, then by increments, resumed anywhere, each record once."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import stream_events
from capture_shop import BEGUN, QUICK, Shop, item, read
from export_service import Refusal
from export_writer import ExportPlace, into_folder, write_full
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Float64, Int32, Int64, String, UnixTimestamp

from feast_dynamo_ext import DynamoDBTableSource
from feast_dynamo_ext.capture.captured import columns_of
from feast_dynamo_ext.capture.dynamo_table import DynamoTable
from feast_dynamo_ext.capture.exports.export_jobs import ExportTarget, restorable
from feast_dynamo_ext.capture.exports.table_scan import scan
from feast_dynamo_ext.capture.exports.windows import Restorable, next_windows
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.inference import SchemaInference, add_exported, add_scanned
from feast_dynamo_ext.capture.quarantine import retry
from feast_dynamo_ext.capture.status import status_of
from feast_dynamo_ext.capture.stream.stream_records import converted, stream_records
from feast_dynamo_ext.capture.values.change_rows import RecordReader
from feast_dynamo_ext.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_the_whole_table_then_what_changed(shop: Shop):
    for customer, day in itertools.product(range(3), range(2)):
        shop.service.put(item(customer, day))
    shop.service.clock.forward(minutes=1)
    first = shop.sync()
    assert [each.window.start for each in first.captured] == [None]
    whole = [(customer, day, 1.5, "put") for customer in range(3) for day in range(2)]
    assert shop.rows() == whole

    shop.service.put(item(0, 0, "2.5"))
    shop.service.delete({key: item(1, 1)[key] for key in ("customer", "at")})
    shop.service.clock.forward(hours=30)
    shop.service.put(item(9, 9))
    shop.service.clock.forward(minutes=20)
    second = shop.sync()
    assert len(second.captured) == 2
    assert [each.counts.rows for each in second.captured] == [2, 1]
    assert shop.rows() == sorted(
        [*whole, (0, 0, 2.5, "put"), (1, 1, 1.5, "delete"), (9, 9, 1.5, "put")]
    )
    assert shop.sync().captured == ()
    status = status_of(shop.history, shop.source, shop.service.clock.now)
    assert (status.rows, status.quarantined, status.until) == (9, 0, second.until)


def test_what_does_not_fit_is_in_quarantine_and_all_is_counted(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.put({**item(2, 1), "amount": {"S": "a lot"}})
    shop.service.put(item(3, 1, "0.1234567890123456789"))
    shop.service.clock.forward(minutes=1)
    (window,) = shop.sync().captured
    counts = window.counts
    assert (counts.records, counts.rows, counts.quarantined) == (3, 1, 2)
    found = sorted(read(shop.history.quarantine), key=lambda row: row["item"])
    assert [row["attribute"] for row in found] == ["amount", "amount"]
    assert all("exports" in row["origin"] for row in found)
    assert '"a lot"' in found[0]["item"]
    assert shop.history.quarantined() == 2


class StoppedError(Exception):
    """The process ended."""


@dataclass(frozen=True)
class Stopping(CapturedHistory):
    """A history whose writer ends after so many commits."""

    commits: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    last: int = 1

    def _append(self, *what: Any) -> None:
        super()._append(*what)
        if next(self.commits) == self.last:
            raise StoppedError


@pytest.mark.parametrize("at", range(1, 6))
def test_a_run_that_ends_anywhere_is_gone_on_with(shop: Shop, at: int):
    for customer in range(4):
        shop.service.put(item(customer, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    for customer in range(4):
        shop.service.put(item(customer, 2))
        shop.service.clock.forward(hours=20)
    run, there = shop.capture(), shop.history
    history = Stopping(there.source, there.handle, there.quarantine, last=at)
    with pytest.raises(StoppedError):
        replace(run, history=history).sync(shop.client, shop.table(), shop.target, poll=QUICK)
    shop.sync()
    expected = [(customer, day, 1.5, "put") for customer in range(4) for day in (1, 2)]
    assert shop.rows() == sorted(expected)
    assert len(shop.service.exports) == 1 + 4  # none was started twice


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        ("S3AccessDenied", "Access denied", "s3:PutObject"),
        ("KMSAccessDenied", "the key may not be used", "kms:GenerateDataKey"),
        ("InternalError", "try again", "Run it again"),
    ],
)
def test_an_export_that_failed_is_said_and_made_again(
    shop: Shop, code: str, message: str, said: str
):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.service.failures.append((code, message))
    with pytest.raises(CaptureError, match=said):
        shop.sync()
    shop.sync()
    assert shop.rows() == [(1, 1, 1.5, "put")]


def test_recovery_that_is_off_is_said_with_the_command(shop: Shop):
    shop.service.recovery_since = None
    with pytest.raises(CaptureError, match="aws dynamodb update-continuous-backups"):
        shop.sync()


@pytest.mark.dynamodb_local
def test_where_there_are_no_exports_a_scan_is_advised(dynamodb_local):
    client = boto3.client("dynamodb", endpoint_url=dynamodb_local, region_name="us-east-1")
    with pytest.raises(CaptureError, match=r"exports nothing.*`feast-dynamo capture sync --scan`"):
        restorable(client, "any")


def test_a_gap_of_more_than_35_days_is_said(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.service.clock.forward(days=36)
    with pytest.raises(CaptureError, match="--full"):
        shop.sync()


def test_a_table_that_was_made_anew_is_refused(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    state = shop.history.state()
    assert state is not None
    shop.history.keep(state, replace(state, table_id="another"), "a-test")
    with pytest.raises(CaptureError, match="deleted and made anew"):
        shop.sync()


def test_the_table_is_captured_whole_twice_of_one_moment(shop: Shop):
    shop.service.put({**item(1, 1), "colour": {"S": "red"}})
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.source = declared(shop, colour=String)
    for _ in range(2):
        (window,) = shop.sync(full=True).captured
        assert (window.counts.records, window.counts.rows) == (1, 1)
    # What was declared meanwhile is in the rows of the export that has it.
    assert {row["colour"] for row in read(shop.history.handle)} == {None, "red"}
    # The same moment with the same attributes is one export of DynamoDB.
    assert len(shop.service.tokens) == 2
    shop.service.put(item(2, 2))
    shop.service.clock.forward(days=2)
    assert len(shop.sync().captured) == 2
    assert set(shop.rows()) == {(1, 1, 1.5, "put"), (2, 2, 1.5, "put")}
    state = shop.history.state()
    assert state is not None
    assert (state.pending, state.until) == ((), BEGUN + dt.timedelta(days=2, minutes=1))


def test_a_window_whose_rows_are_known_does_not_stop_a_source(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    state = shop.history.state()
    assert state is not None
    # As earlier versions left it after `--full` of the moment that was captured already.
    (again,) = next_windows(shop.source.table, None, Restorable(BEGUN, state.until))
    shop.history.keep(state, state.planned((again,)), "as-before")
    shop.service.put(item(2, 2))
    shop.service.clock.forward(hours=1)
    assert [each.counts.rows for each in shop.sync().captured] == [0, 1]
    assert shop.rows() == [(1, 1, 1.5, "put"), (2, 2, 1.5, "put")]
    assert shop.history.state().pending == ()


def test_a_run_takes_all_that_there_is_after_a_long_pause(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    for day in range(2, 32):
        shop.service.put(item(1, day))
        shop.service.clock.forward(days=1)
    shop.service.clock.forward(minutes=7)
    run, shown = shop.capture(), []
    started: list[int] = []

    def look(operation: str) -> None:
        shown.extend(task.text for task in run.progress.tasks)
        if operation == "DescribeExport":
            started.append(len(shop.service.exports))

    shop.service.on_call = look
    found = run.sync(shop.client, shop.table(), shop.target, poll=QUICK)
    shop.service.on_call = None
    assert len(found.captured) == 31
    assert found.until == BEGUN + dt.timedelta(days=30, minutes=8)
    assert found.left == dt.timedelta(microseconds=31)
    assert shop.rows() == [(1, day, 1.5, "put") for day in range(1, 32)]
    # Eight at a time, of 31 that are known from the beginning.
    assert sorted(set(started)) == [1 + 8, 1 + 16, 1 + 24, 1 + 31]
    assert shown[0] == "DynamoDB exports 2026-03-01 00:01Z to 2026-03-02 00:01Z, window 1 of 31"
    assert shown[-1].endswith("window 31 of 31")
    assert shop.sync().captured == ()


def test_a_run_that_goes_on_with_another_takes_what_is_new_as_well(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.service.failures.append(("InternalError", "try again"))
    with pytest.raises(CaptureError, match="Run it again"):
        shop.sync()
    shop.service.put(item(2, 2))
    shop.service.clock.forward(days=1)
    found = shop.sync()
    assert [each.window.start for each in found.captured] == [
        None,
        BEGUN + dt.timedelta(minutes=1),
    ]
    assert shop.rows() == [(1, 1, 1.5, "put"), (2, 2, 1.5, "put")]


def test_limits_are_waited_for(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.service.refusals.append(
        Refusal("ExportTableToPointInTime", "LimitExceededException", times=2)
    )
    shop.service.refusals.append(Refusal("DescribeExport", "InternalServerError", "", 1, 500))
    shop.sync()
    assert shop.rows() == [(1, 1, 1.5, "put")]


def test_exports_that_lie_there_are_converted_in_order(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.service.put(item(1, 1, "9"))
    shop.service.clock.forward(hours=2)
    shop.sync()
    rows = shop.rows()
    from feast_dynamo_ext.parquet.iceberg.view_table import drop

    drop(shop.history.handle, purge=True)
    found = shop.capture().convert_exports(shop.target.uri)
    assert len(found.captured) == 2
    assert shop.rows() == rows
    assert shop.capture().convert_exports(shop.target.uri).captured == ()


def test_an_increment_without_what_was_before_is_refused(shop: Shop, bucket: str):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.service.put(item(1, 1, "9"))
    shop.service.clock.forward(hours=2)
    (window,) = shop.sync().captured
    from feast_dynamo_ext.parquet.iceberg.view_table import drop

    drop(shop.history.handle, purge=True)
    with pytest.raises(CaptureError, match="Begin with a full export"):
        shop.capture().convert_exports(window.folder)


@pytest.mark.parametrize("uri", ["exports", "s3:/bucket", "file:///x", "s3://B"])
def test_exports_go_to_s3_alone(uri: str):
    with pytest.raises(CaptureError, match="s3://bucket/prefix"):
        ExportTarget.from_uri(uri)


def test_the_view_reads_what_was_captured(shop: Shop):
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
    from feast_dynamo_ext import ViewSettings

    view = FeatureView(
        name=f"of_{shop.source.name}",
        entities=[customer],
        schema=[Field(name="amount", dtype=Float64), Field(name="customer", dtype=Int64)],
        source=shop.source,
        ttl=dt.timedelta(0),
        tags=ViewSettings(deletes="ignore").tags(),
    )
    shop.service.put(item(1, 1, "1"))
    shop.service.put(item(1, 3, "3"))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.store.apply([customer, view])
    import pandas as pd

    rows = pd.DataFrame(
        {
            "customer": [1, 1, 1],
            "event_timestamp": [BEGUN + dt.timedelta(days=day) for day in (0, 2, 4)],
        }
    )
    found = shop.store.get_historical_features(rows, [f"{view.name}:amount"]).to_df()
    assert found["amount"].fillna(0).tolist() == [0, 1, 3]


def declared(shop: Shop, **kinds: Any) -> Any:
    """The source with other types of some columns, or with further ones."""
    fields = {field.name: field for field in shop.source.schema}
    fields |= {name: Field(name=name, dtype=kind) for name, kind in kinds.items()}
    source = shop.source
    return DynamoDBTableSource(
        name=source.name,
        table=source.table,
        event_time=source.event_time,
        event_time_unit=source.event_time_unit,
        history=source.history,
        schema=list(fields.values()),
    )


def test_a_mended_schema_takes_what_is_in_quarantine(shop: Shop):
    shop.source = declared(shop, amount=Int32)
    shop.service.put(item(1, 1, "1"))
    shop.service.put(item(2, 1, "3000000000"))
    shop.service.put(item(3, 1, "0.5"))
    shop.service.clock.forward(minutes=1)
    (window,) = shop.sync().captured
    assert window.counts.quarantined == 2
    written = read(shop.history.handle)[0]["_feast_written_at"]

    shop.source = declared(shop, amount=Int64, shop_name=String)
    table = DynamoTable.from_table(shop.client, shop.source)
    columns = columns_of(shop.source, table)
    shop.history.evolve(columns.history_schema)
    found = retry(shop.history, columns)
    assert (found.taken, found.left) == (1, 1)
    assert list(found.reasons) == [("amount", next(iter(found.reasons))[1])]
    assert shop.rows() == [(1, 1, 1, "put"), (2, 1, 3_000_000_000, "put")]
    assert {row["_feast_written_at"] for row in read(shop.history.handle)} == {written}
    assert [row["origin"] for row in read(shop.history.quarantine)] != []
    assert shop.history.quarantined() == 1
    again = retry(shop.history, columns)
    assert (again.taken, again.left) == (0, 1)
    assert len(shop.rows()) == 2


def test_a_type_that_does_not_hold_what_is_there_is_refused(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.source = declared(shop, amount=String)
    with pytest.raises(CaptureError, match=r"`amount` as string, but its history has it as doub"):
        shop.sync()


def test_what_is_declared_later_is_null_before(shop: Shop):
    shop.service.put(item(1, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.source = declared(shop, colour=String)
    shop.service.put({**item(2, 2), "colour": {"S": "red"}})
    shop.service.clock.forward(hours=1)
    shop.sync()
    found = {row["customer"]: row["colour"] for row in read(shop.history.handle)}
    assert found == {1: None, 2: "red"}


def scanned(shop: Shop) -> Any:
    table = DynamoTable.from_table(shop.client, shop.source)
    return scan(shop.client, table, columns_of(shop.source, table), shop.capture().history)


def test_a_scan_finds_what_is_new_changed_and_gone(shop: Shop):
    for customer in range(3):
        shop.service.put(item(customer, 1))
    first = scanned(shop)
    assert (first.items, first.rows, first.quarantined) == (3, 3, 0)
    assert scanned(shop).rows == 0
    shop.service.put(item(0, 1, "7"))
    shop.service.delete({key: item(1, 1)[key] for key in ("customer", "at")})
    shop.service.put({**item(5, 1), "amount": {"S": "?"}})
    third = scanned(shop)
    assert (third.items, third.rows, third.quarantined) == (3, 2, 1)
    assert third.units > 0
    first_rows = [(customer, 1, 1.5, "put") for customer in range(3)]
    assert shop.rows() == sorted([*first_rows, (0, 1, 7, "put"), (1, 1, 1.5, "delete")])
    assert (scanned(shop).rows, scanned(shop).quarantined) == (0, 0)
    assert shop.history.quarantined() == 1


def streamed(shop: Shop, second: float, **images: Any) -> None:
    """A change of an item by the table's stream, in the history."""
    record = stream_events.record(int(second), second, keys=("customer", "at"), **images)
    reader = RecordReader(columns_of(shop.source, shop.table()))
    shop.history.add_changes(converted(reader, stream_records([record], "s")))


def test_of_the_second_in_which_a_scan_begins_the_stream_is_what_counts(shop: Shop):
    shop.service.put(item(0, 1))
    second = scanned(shop).until.timestamp()
    (row,) = read(shop.history.handle)
    assert row["_feast_written_at"].timestamp() == second - 1e-6
    assert row["_feast_change_id"] is None
    shop.service.put(item(0, 1, "7"))
    streamed(shop, second, old=item(0, 1), new=item(0, 1, "7"))
    assert scanned(shop).rows == 0
    # What the stream says of after a scan's begin is newer than what the scan saw.
    streamed(shop, second + 600, old=item(0, 1, "7"), new=item(0, 1, "8"))
    streamed(shop, second + 601, new=item(9, 1))
    assert scanned(shop).rows == 0


def test_several_scans_of_one_second_say_what_is_there_in_the_end(shop: Shop):
    for amount in ("1", "2", None, "2", "3"):
        if amount is None:
            shop.service.delete({key: item(0, 1)[key] for key in ("customer", "at")})
        else:
            shop.service.put(item(0, 1, amount))
        assert scanned(shop).rows == 1
        assert scanned(shop).rows == 0


def test_an_item_that_no_longer_fits_is_not_taken_for_gone(shop: Shop):
    shop.service.put(item(1, 1))
    scanned(shop)
    shop.service.put({**item(1, 1), "amount": {"S": "?"}})
    assert (scanned(shop).rows, shop.rows()) == (0, [(1, 1, 1.5, "put")])


def test_a_table_that_was_made_anew_with_another_key_is_refused(shop: Shop):
    shop.service.put({**item(1, 1), "amount": {"S": "?"}})
    shop.service.put(item(2, 1))
    scanned(shop)
    state, rows = shop.history.state(), shop.rows()
    columns = columns_of(shop.source, shop.table())
    name = shop.source.table
    shop.client.delete_table(TableName=name)
    shop.client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "shop", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "shop", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    shop.client.put_item(TableName=name, Item=item(2, 2))
    words = (
        f"Source `{name}`: table {name} has the key shop (S), but its history is of the key "
        "customer (N), at (N): the table was made anew with another key. Declare a source of "
        "another name, with another `history`."
    )
    for what in (scanned, lambda shop: shop.sync()):
        with pytest.raises(CaptureError, match=re.escape(words)):
            what(shop)
    # Of a history without exports the table alone says its key.
    anew = columns_of(shop.source, shop.table())
    with pytest.raises(
        CaptureError, match=r"has the key shop, but .* the key customer, at: .* were renamed"
    ):
        retry(shop.history, anew)
    assert (shop.history.state(), shop.rows()) == (state, rows)
    assert retry(shop.history, columns).left == 1


def test_a_schema_is_inferred_from_the_table_or_an_export(shop: Shop, tmp_path: Path):
    for customer in range(3):
        shop.service.put(item(customer, 1, f"{customer}.25"))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    by_scan, by_export = SchemaInference(), SchemaInference()
    add_scanned(by_scan, shop.client, shop.source.table, 2)
    settings = shop.store.config.offline_store.aws()
    add_exported(by_export, shop.target.uri, shop.source.table, settings, 1_000)
    assert (by_scan.items, by_export.items) == (2, 3)
    written = by_export.schema(event_time="at").declaration()
    assert written == by_scan.schema(event_time="at").declaration()
    names: dict[str, Any] = {}
    exec(written, names)  # noqa: S102 - what users paste
    kinds = {field.name: field.dtype for field in names["schema"]}
    assert kinds == {
        "amount": Float64,
        "at": UnixTimestamp,
        "customer": Int64,
        "shop": String,
    }
    place = ExportPlace(into_folder(tmp_path), "bucket", None)
    now = shop.service.clock.now
    for region in ("eu-west-1", "eu-west-2"):
        write_full(place, replace(shop.service.table, region=region), [item(1, 1)], now)
        now += dt.timedelta(hours=1)
    with pytest.raises(CaptureError, match="has exports of several tables captured"):
        add_exported(by_export, str(tmp_path), shop.source.table, settings, 10)
    with pytest.raises(CaptureError, match="and not of another"):
        add_exported(by_export, shop.target.uri, "another", settings, 1)
    with pytest.raises(CaptureError, match="There is no DynamoDB table nowhere"):
        add_scanned(by_scan, shop.client, "nowhere", 1)


def test_what_may_not_be_seen_of_expiry_is_no_deletion(shop: Shop):
    shop.service.refusals.append(Refusal("DescribeTimeToLive", "AccessDeniedException", times=9))
    with pytest.raises(CaptureError, match="Allow `dynamodb:DescribeTimeToLive`"):
        shop.sync()
