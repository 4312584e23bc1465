"""Records of a stream, by boto3 and by Lambda, as rows of history; and their commits, once."""

from __future__ import annotations

import copy
import datetime as dt
import itertools
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import captured
import pyarrow as pa
import pytest
import stream_events
from dynamo_items import exact, values
from examples import cases
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Array, Bytes, Int64, Json, Map, Set, String, Struct
from hypothesis import given
from hypothesis import strategies as st
from repos import repo_config

from feast_dynamo_ext.capture.apply_checks import make_history
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.quarantine import retry
from feast_dynamo_ext.capture.stream.stream_records import StreamRecord, converted, stream_records
from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
from feast_dynamo_ext.capture.values.change_rows import RecordReader, as_of
from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.errors import CaptureError, NotCommittedError
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.retrieval.changed_rows import changed_rows
from feast_dynamo_ext.retrieval.plan import plan_view

UTC = dt.timezone.utc
EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
SECOND = 1_767_608_400


def columns_of(*fields: tuple[str, Any], expiry: str | None = None) -> CapturedColumns:
    return CapturedColumns.from_fields(
        [Field(name=name, dtype=dtype, tags={}) for name, dtype in fields],
        keys={"id": "S"},
        event_time="at",
        event_time_unit="s",
        expiry=expiry,
    )


COLUMNS = columns_of(("v", Int64))


def item(at: int = 5, v: str = "1", **more: Any) -> dict[str, Any]:
    return {"id": {"S": "k"}, "at": {"N": str(at)}, "v": {"N": v}, **more}


def rows_of(records: list[Any], columns: CapturedColumns = COLUMNS) -> list[tuple[Any, ...]]:
    found = converted(RecordReader(columns), stream_records(records, "s"))
    assert found.quarantine.num_rows == 0
    return [
        (row["_feast_change"], row["at"].timestamp(), row["v"]) for row in found.rows.to_pylist()
    ]


def test_a_record_says_when_by_which_id_and_from_where():
    given_ = stream_events.record(3, SECOND, new=item())
    for record in (given_, stream_events.as_boto3(given_)):
        (found,) = stream_records([record], "shardId-1")
        assert found.written == SECOND * 1_000_000
        assert found.id == given_["eventID"]
        assert found.sequence == "4421584500000000017450439094"
        assert found.origin == f"shardId-1/{found.sequence}"
        assert dict(found.change) == {"Keys": {"id": {"S": "k"}}, "NewImage": item()}


@pytest.mark.parametrize("second", [SECOND, float(SECOND), SECOND + 0.987, 1.7676084e9])
def test_the_time_of_writing_is_of_whole_seconds_rounded_down(second):
    record = stream_events.record(0, second, new=item())
    assert StreamRecord.from_record(record, "s").written == SECOND * 1_000_000
    moment = dt.datetime.fromtimestamp(second, UTC)
    record["dynamodb"]["ApproximateCreationDateTime"] = moment
    assert StreamRecord.from_record(record, "s").written == SECOND * 1_000_000


TYPED = st.dictionaries(st.sampled_from(["b", "s", "j", "u"]), values(), max_size=4)


@given(TYPED, TYPED)
@cases(200)
def test_boto3_and_lambda_say_the_same_of_all_types(new, old):
    tagged = CapturedColumns.from_fields(
        [
            Field(name="b", dtype=Bytes),
            Field(name="s", dtype=String),
            Field(name="j", dtype=Json, tags={"json": "dynamodb"}),
        ],
        keys={"id": "S"},
        event_time="at",
        event_time_unit="s",
    )
    keys = {"id": {"S": "k"}, "at": {"N": "7"}}
    record = stream_events.record(1, SECOND, old={**keys, **old}, new={**keys, **new})
    reader = RecordReader(tagged)
    by_lambda = converted(reader, stream_records([record], "s"))
    by_boto3 = converted(reader, stream_records([stream_events.as_boto3(record)], "s"))
    assert by_lambda.rows.equals(by_boto3.rows)
    assert by_lambda.quarantine.equals(by_boto3.quarantine)
    for row in by_lambda.rows.to_pylist():
        for name in ("b", "s"):
            wanted = exact(new[name]) if name in new else None
            assert row[name] == wanted
        assert row["_feast_change_id"] == record["eventID"]
    # What does not fit is told by boto3's own reading: another type than the declared one.
    fits = all(
        name not in new or exact(new[name]) is None or isinstance(exact(new[name]), kind)
        for name, kind in (("b", bytes), ("s", str))
    )
    assert (by_lambda.quarantine.num_rows == 0) == fits


def test_rows_are_in_the_order_of_the_stream_a_move_before_its_put():
    records = [
        stream_events.record(0, SECOND, new=item(5)),
        stream_events.record(1, SECOND, old=item(5), new=item(7, "2")),
        stream_events.record(2, SECOND, old=item(7, "2")),
        stream_events.record(3, SECOND, new=item(6, "3")),
    ]
    assert rows_of(records) == [
        ("put", 5, 1),
        ("move", 5, 1),
        ("put", 7, 2),
        ("delete", 7, 2),
        ("put", 6, 3),
    ]


def test_a_deletion_after_the_items_own_ttl_is_expiry_whoever_deletes():
    columns = columns_of(("v", Int64), expiry="ttl")
    gone = stream_events.record(0, SECOND, old=item(ttl={"N": str(SECOND)}))
    by_service = copy.deepcopy(gone) | {
        "userIdentity": {"type": "Service", "principalId": "dynamodb.amazonaws.com"},
        "eventID": "another",
    }
    assert [row[0] for row in rows_of([gone, by_service], columns)] == ["expire", "expire"]


def test_a_record_that_is_there_twice_counts_once():
    record = stream_events.record(0, SECOND, new=item())
    assert len(stream_records([record, copy.deepcopy(record)], "s")) == 1


@pytest.mark.parametrize(
    ("image", "attribute"),
    [
        ({}, "id"),
        (None, "id"),
        (5, "id"),
        ([], "id"),
        (item(v="x"), "v"),
        ({"id": {"S": "k"}}, "at"),
        ({**item(), "at": 5}, "at"),
        ({**item(), "v": {"N": 5}}, "v"),
        ({**item(), "v": [1]}, "v"),
    ],
)
def test_an_image_that_is_no_item_goes_to_quarantine_and_the_rest_proceeds(image, attribute):
    bad = stream_events.record(0, SECOND, new=item())
    bad["dynamodb"]["NewImage"] = image
    good = stream_events.record(1, SECOND, new=item())
    found = converted(RecordReader(COLUMNS), stream_records([bad, good], "shardId-1"))
    assert found.rows.num_rows == 1
    (row,) = found.quarantine.to_pylist()
    assert (row["attribute"], row["_feast_change_id"]) == (attribute, bad["eventID"])
    assert row["origin"] == f"shardId-1/{bad['dynamodb']['SequenceNumber']}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["S", "N", "M", "B", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(JSON, JSON, JSON)
@cases(300)
def test_whatever_an_image_is_it_raises_nothing(keys, old, new):
    record = stream_events.record(0, SECOND, old=item(), new=item())
    for name, image in (("Keys", keys), ("OldImage", old), ("NewImage", new)):
        record["dynamodb"][name] = image
    within = stream_events.record(1, SECOND, old=item(), new=item())
    within["dynamodb"]["OldImage"]["x"] = old
    within["dynamodb"]["NewImage"]["x"] = new
    nested = CapturedColumns.from_fields(
        [Field(name="c", dtype=Int64, tags={"attribute": '["x", "N"]'})],
        keys={"id": "S"},
        event_time="at",
        event_time_unit="s",
        expiry="x",
    )
    reader = RecordReader(nested)
    found = converted(reader, stream_records([record, within], "s"))
    assert found.records == 2
    assert 1 <= found.quarantine.num_rows <= 2
    assert found.rows.num_rows == 2 - found.quarantine.num_rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dynamodb": None}, "no record of a DynamoDB stream"),
        ({"eventName": "x"}, "no record of a DynamoDB stream"),
        ({"eventID": None}, "has no `eventID`"),
        ({"SequenceNumber": None}, "no `SequenceNumber`"),
        ({"ApproximateCreationDateTime": None}, "no `ApproximateCreationDateTime` in seconds"),
        ({"ApproximateCreationDateTime": float("nan")}, "no `ApproximateCreationDateTime`"),
        ({"ApproximateCreationDateTime": 10**13}, "no `ApproximateCreationDateTime`"),
        ({"StreamViewType": "KEYS_ONLY"}, "shows KEYS_ONLY, and what an item became"),
        ({"StreamViewType": "OLD_IMAGE"}, "shows OLD_IMAGE"),
    ],
)
def test_what_no_stream_of_a_captured_table_delivers_is_refused(change, message):
    record = stream_events.record(0, SECOND, new=item())
    body = record["dynamodb"]
    for name, value in change.items():
        (body if name in body else record)[name] = value
    with pytest.raises(CaptureError, match=message):
        StreamRecord.from_record(record, "s")
    with pytest.raises(CaptureError, match="no record of a DynamoDB stream"):
        StreamRecord.from_record("text", "s")


# Committed once


@pytest.fixture
def history(tmp_path: Any) -> CapturedHistory:
    """An empty history of the table."""
    config = repo_config(tmp_path, catalog=captured.CATALOG)
    source = captured.source_of(
        event_time="at",
        schema=[
            Field(name="id", dtype=String),
            Field(name="at", dtype=captured.UnixTimestamp),
            Field(name="v", dtype=Int64),
        ],
    )
    make_history(source, COLUMNS.history_schema, COLUMNS.keys, config)
    return CapturedHistory.from_source(source, config)


def changes(*numbers: int, bad: tuple[int, ...] = (), columns: CapturedColumns = COLUMNS) -> Any:
    """Records by their numbers, converted."""
    records = [
        stream_events.record(
            number, SECOND + number, new=item(number, "1.5" if number in bad else str(number))
        )
        for number in numbers
    ]
    return converted(RecordReader(columns), stream_records(records, "lambda"))


def values_in(handle: TableHandle) -> list[Any]:
    """By pyiceberg itself."""
    return sorted(handle.load().scan().to_arrow()["v"].to_pylist())


def test_changes_count_once_however_their_batches_are_cut(history):
    for batch in ((1, 2, 3, 4), (1, 2), (3, 4), (2, 3, 5), (5, 6), (1, 2, 3, 4, 5, 6)):
        history.add_changes(changes(*batch))
    assert values_in(history.handle) == [1, 2, 3, 4, 5, 6]
    found = history.add_changes(changes(6, 7, 8))
    assert (found.records, found.rows, found.quarantined) == (3, 2, 0)
    assert history.add_changes(changes()).rows == 0


def test_a_poison_record_is_in_quarantine_once(history):
    assert history.add_changes(changes(1, 2, 3, bad=(2,))).quarantined == 1
    assert history.add_changes(changes(2, bad=(2,))).quarantined == 0
    found = history.add_changes(changes(2, 3, 4, bad=(2, 4)))
    assert (found.rows, found.quarantined) == (0, 1)
    assert values_in(history.handle) == [1, 3]
    assert history.quarantined() == 2


class Failing(TableHandle):
    """A history table whose commits fail."""

    def append(self, *_: Any, **__: Any) -> Any:
        raise NotCommittedError("others came first")


def test_a_run_that_ends_between_both_commits_is_gone_on_with(history):
    handle = history.handle
    failing = replace(history, handle=Failing(handle.address, handle.name, handle.settings))
    with pytest.raises(NotCommittedError, match="others came first"):
        failing.add_changes(changes(1, 2, bad=(2,)))
    assert (history.rows(), history.quarantined()) == (0, 1)
    for batch in ((1, 2), (2,), (2, 1)):
        history.add_changes(changes(*batch, bad=(2,)))
    assert (values_in(handle), history.quarantined()) == ([1], 1)


def test_what_was_mended_is_not_taken_again(history):
    history.add_changes(changes(1, 2, bad=(2,)))
    wider = columns_of(("v", captured.Int64))
    text = CapturedColumns.from_fields(
        [Field(name="v", dtype=Int64, tags={"attribute": "other"})],
        keys={"id": "S"},
        event_time="at",
        event_time_unit="s",
    )
    assert wider.history_schema == text.history_schema
    assert retry(history, text).taken == 1
    assert history.quarantined() == 0
    # The same record, after the schema fitted it: its change is known by its id.
    for again in (changes(1, 2, columns=text), changes(2, bad=(2,))):
        assert history.add_changes(again).rows == 0
    ids = history.handle.load().scan().to_arrow()["_feast_change_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 2


@dataclass(frozen=True)
class Waiting(CapturedHistory):
    """A history whose first two users look before either commits."""

    both: Any = field(default_factory=lambda: threading.Barrier(2, timeout=60))
    looked: Any = field(default_factory=itertools.count)

    def known(self, look: Any) -> Any:
        found = super().known(look)
        if next(self.looked) < 2:
            self.both.wait()
        return found


def test_a_commit_that_came_between_is_seen(history):
    """Two at once with overlapping batches: each looks, then both commit."""
    waiting = Waiting(history.source, history.handle, history.quarantine)
    failures: list[BaseException] = []

    def add(*numbers: int) -> None:
        try:
            waiting.add_changes(changes(*numbers, bad=(3,)))
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=add, args=part) for part in ((1, 2, 3), (2, 3, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert values_in(history.handle) == [1, 2, 4]
    assert history.quarantined() == 1


def test_the_ids_of_other_commits_stay_known(history):
    """Many batches of a stream do not drive an export's id out of the ledger."""
    history.handle.append(pa_rows(1), "an export")
    for number in range(3):
        history.add_changes(changes(number + 10))
    history.handle.append(pa_rows(1), "an export")
    assert values_in(history.handle) == [1, 10, 11, 12]
    properties = history.handle.load().properties
    assert properties["feast-dynamo.ledger"].count("changes/") == 0


def pa_rows(number: int) -> pa.Table:
    return pa.Table.from_batches([changes(number).rows])


def test_what_a_commit_is_refused_for_is_not_there(history):
    with pytest.raises(NotCommittedError, match="mine"):
        history.handle.append(pa_rows(1), "x", check=refuse)
    assert history.rows() == 0


def refuse(_: Any) -> None:
    raise NotCommittedError("mine")


def test_a_history_from_before_streams_gets_the_column(tmp_path):
    config = repo_config(tmp_path, catalog=captured.CATALOG)
    source = captured.source_of()
    old = captured.new_history(source, config)
    facts = captured.DynamoTable(
        source.table, "eu-west-1", "", "", 0, (("customer", "N"),), None, True, ""
    )
    columns = captured.captured_columns(source, facts)
    with old.load().update_schema() as update:
        update.delete_column("_feast_change_id")
    captured.append(old, [captured.Change((1,), 5, 5, "put", 1)])
    history = CapturedHistory.from_source(source, config)
    history.evolve(columns.history_schema)
    record = stream_events.record(
        1,
        SECOND,
        new={"customer": {"N": "2"}, "bought": {"N": "5"}, "value": {"N": "2"}},
        keys=("customer",),
    )
    for _ in range(2):
        history.add_changes(converted(RecordReader(columns), stream_records([record], "s")))
    found = history.handle.load().scan().to_arrow().to_pylist()
    assert sorted((row["customer"], row["_feast_change_id"] or "") for row in found) == [
        (1, ""),
        (2, record["eventID"]),
    ]
    names = [
        name
        for name, _ in captured.source_of(schema=None).get_table_column_names_and_types(config)
    ]
    assert names == ["customer", "bought", "value"]


NESTED = [
    (Map, {"M": {"a": {"S": "b"}}}),
    (Array(Int64), {"L": [{"N": "1"}]}),
    (Set(String), {"SS": ["x"]}),
    (Struct({"x": Int64}), {"M": {"x": {"N": "1"}}}),
]


@pytest.mark.parametrize(("dtype", "value"), NESTED, ids=lambda each: str(each)[:3])
def test_changes_with_nested_values_are_found_again(dtype, value, tmp_path):
    """By pyiceberg, which finds columns in files by the numbers that Iceberg gives them."""
    config = repo_config(tmp_path, catalog=captured.CATALOG)
    columns = columns_of(("m", dtype))
    schema = [Field(name="id", dtype=String), Field(name="m", dtype=dtype)]
    schema.append(Field(name="at", dtype=captured.UnixTimestamp))
    source = captured.source_of(event_time="at", schema=schema)
    make_history(source, columns.history_schema, columns.keys, config)
    history = CapturedHistory.from_source(source, config)
    record = stream_events.record(1, SECOND, new={**item(), "m": value})
    found = converted(RecordReader(columns), stream_records([record], "s"))
    for rows in (1, 0):
        assert history.add_changes(found).rows == rows
    (row,) = history.handle.load().scan().to_arrow().to_pylist()
    assert row["m"] == found.rows.column("m").to_pylist()[0]


def test_a_quarantine_from_before_streams_gets_the_column(history):
    history.add_changes(changes(1, bad=(1,)))
    with history.quarantine.load().update_schema() as update:
        update.delete_column("_feast_change_id")
    history.add_changes(changes(2, bad=(2,)))
    assert retry(history, COLUMNS).left == 2
    assert history.add_changes(changes(2, bad=(2,))).quarantined == 0


# Beside exports


@pytest.mark.parametrize("is_stream_first", [False, True])
@pytest.mark.parametrize("fraction_us", [0, 250_000])
def test_of_the_second_of_a_full_export_the_stream_is_what_counts(
    history, is_stream_first, fraction_us, tmp_path
):
    """An export as of X shows what was before; the stream says of X's second on what is after."""
    exported = RecordReader(COLUMNS).converted(
        [{"Item": item(5, "1")}],
        [as_of(EPOCH + dt.timedelta(seconds=SECOND, microseconds=fraction_us))],
        ["export"],
    )
    record = stream_events.record(0, SECOND, old=item(5), new=item(5, "2"))
    changed = converted(RecordReader(COLUMNS), stream_records([record], "s"))
    parts = [
        lambda: history.handle.append(pa.Table.from_batches([exported.rows])),
        lambda: history.add_changes(changed),
    ]
    for part in reversed(parts) if is_stream_first else parts:
        part()
    config = repo_config(tmp_path, catalog=captured.CATALOG)
    entity = Entity(name="item", join_keys=["id"], value_type=ValueType.STRING)
    view = FeatureView(
        name="items",
        entities=[entity],
        schema=[Field(name="id", dtype=String), Field(name="v", dtype=Int64)],
        source=history.source,
    )
    plan = plan_view(view, ["items:v"], full_feature_names=False)
    opened = ParquetSource.open(history.source, config)
    with changed_rows(plan, opened, EPOCH, captured.START, Limits()) as found:
        rows = found.source.fetch_each(["v"], found.positions)
        assert [value for batch in rows for value in batch.column(0).to_pylist()] == [2]
