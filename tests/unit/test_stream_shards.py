"""Which shards of a stream are read, in which order, and what becomes of refusals on the way."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from repos import REGION

from feast_dynamo_ext.capture.stream.stream_positions import (
    FollowedStream,
    ShardPosition,
    StreamPositions,
    second,
)
from feast_dynamo_ext.capture.stream.stream_shards import (
    Shard,
    ShardReader,
    ShardTree,
    TrimmedError,
    list_shards,
)
from feast_dynamo_ext.errors import AwsUnavailableError, ResourceNotFoundError, ThrottledError

ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/purchases/stream/2026-01-01T00:00:00.000"
DATE = "Thu, 01 Jan 2026 12:00:00 GMT"
AT = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone.utc)


def done(at: int = 0) -> ShardPosition:
    return ShardPosition(second(at), "9", is_done=True)


def at(seconds: int, sequence: str | None = "1") -> ShardPosition:
    return ShardPosition(second(seconds), sequence)


# Trees: `a>b` is b, whose parent is a; `a!` is closed.


def tree(*said: str) -> ShardTree:
    found = ShardTree()
    for each in said:
        parent, _, name = each.rpartition(">")
        found.add([Shard(name.rstrip("!"), parent or None, name.endswith("!"))])
    return found


@pytest.mark.parametrize(
    ("listed", "positions", "ready", "superfluous", "lost"),
    [
        # Roots at once; children after their parent, however deep.
        (["a", "b"], {}, ["a", "b"], [], []),
        (["a!", "a>b", "a>c"], {}, ["a"], [], []),
        (["a!", "a>b", "a>c"], {"a": at(5)}, ["a"], [], []),
        (["a!", "a>b", "a>c"], {"a": done()}, ["b", "c"], [], []),
        (["a!", "a>b!", "b>c"], {"a": done()}, ["b"], [], []),
        # A closed shard is read to its end all the same.
        (["a!"], {"a": at(5)}, ["a"], [], []),
        (["a!"], {"a": done()}, [], [], []),
        # A parent that is listed no more is no obstacle: it was trimmed.
        (["gone>b"], {}, ["b"], [], []),
        # Whatever has a descendant with a position is done, also where its own was removed.
        (["a!", "a>b!", "b>c"], {"c": at(5)}, ["c"], [], []),
        (["a!", "a>b", "a>c"], {"b": at(5)}, ["b", "c"], [], []),
        # A position is superfluous once each child has one, or has descendants with one.
        (["a!", "a>b", "a>c"], {"a": done(), "b": at(5)}, ["b", "c"], [], []),
        (["a!", "a>b", "a>c"], {"a": done(), "b": at(5), "c": at(6)}, ["b", "c"], ["a"], []),
        (["a!", "a>b!", "b>c"], {"a": done(), "c": at(6)}, ["c"], ["a"], []),
        (["a!", "a>b!", "b>c"], {"a": done(), "b": done()}, ["c"], ["a"], []),
        (["a!", "a>b!", "b>c"], {"a": done(), "b": done(), "c": at(1)}, ["c"], ["a", "b"], []),
        # Not done, and listed no more: what was not read of it is gone.
        (["b"], {"a": at(5)}, ["b"], [], ["a"]),
        (["b"], {"a": done()}, ["b"], [], []),
        (["gone>b"], {"gone": at(5)}, ["b"], [], []),
    ],
)
def test_which_shards_are_read(listed, positions, ready, superfluous, lost):
    found = tree(*listed)
    if lost == [] and "gone" in positions:
        # Its child is read: so it was done when that began.
        positions = {**positions, "b": at(6)}
    assert found.ready(positions) == ready
    assert found.superfluous(positions) == superfluous
    assert found.lost(positions) == lost


def test_a_shard_that_was_seen_closed_stays_so():
    found = tree("a!")
    found.add([Shard("a")])
    assert found.shards["a"].is_closed


# Spans


def test_positions_are_kept_as_they_are():
    for position in (at(5), at(6, None), done(7)):
        assert ShardPosition.from_json(position.to_json()) == position
    stream = FollowedStream(ARN, ((second(1), second(5)), (second(9), None)))
    assert FollowedStream.from_json(stream.to_json()) == stream
    of_table = replace(stream, table="a-table")
    assert FollowedStream.from_json(of_table.to_json()) == of_table
    assert of_table.begun_anew(second(20), second(30), "another").table == "a-table"
    assert of_table.begun_anew(second(20), second(30), "another", "b-table").table == "b-table"
    states = {"stream": stream.to_json(), "shard/a": at(5).to_json(), "capture": {"until": "x"}}
    assert StreamPositions.from_states(states) == StreamPositions(stream, {"a": at(5)})


@pytest.mark.parametrize(
    ("spans", "floor", "until", "captured", "gap"),
    [
        ([(10, None)], 50, None, None, None),
        # Exports reach into the span: the stream goes on from there.
        ([(10, None)], 50, 10, 50, None),
        ([(10, None)], 50, 30, 50, None),
        ([(10, None)], 50, 70, 70, None),
        # They do not: what is between is missing.
        ([(10, None)], 50, 5, 5, (5, 10)),
        # A gap of the stream, which an export has closed or has not.
        ([(10, 20), (30, None)], 50, 15, 20, (20, 30)),
        ([(10, 20), (30, None)], 50, 25, 25, (25, 30)),
        ([(10, 20), (30, None)], 50, 30, 50, None),
        ([(10, 20), (20, 25), (25, None)], 50, 12, 50, None),
    ],
)
def test_until_when_everything_is_there(spans, floor, until, captured, gap):
    def moment(seconds):
        return None if seconds is None else second(seconds)

    stream = FollowedStream(ARN, tuple((second(a), moment(b)) for a, b in spans))
    positions = StreamPositions(stream, {"a": at(floor), "b": at(floor + 5)})
    assert positions.captured_until(moment(until)) == moment(captured)
    assert positions.gap(moment(until)) == (None if gap is None else tuple(map(second, gap)))


def test_without_a_stream_exports_alone_say_it():
    assert StreamPositions(None, {}).captured_until(second(5)) == second(5)
    assert StreamPositions(None, {}).floor is None


def test_a_gap_that_begins_before_another_takes_spans_away():
    """Of two shards that were trimmed, the second was farther behind."""
    stream = FollowedStream(ARN, ((second(10), None),))
    once = stream.begun_anew(second(50), second(100), ARN)
    assert once.spans == ((second(10), second(50)), (second(100), None))
    twice = once.begun_anew(second(40), second(101), "another")
    assert twice == FollowedStream("another", ((second(10), second(40)), (second(101), None)))


# DynamoDB's answers


class Script:
    """A client of DynamoDB Streams whose answers are written down: botocore checks both."""

    def __init__(self) -> None:
        self.client = boto3.client("dynamodbstreams", region_name=REGION)
        self.stub = Stubber(self.client)
        self.stub.activate()

    def shards(self, *said: tuple[str, str | None, bool], last: str | None = None, **request: Any):
        shards = [
            {
                "ShardId": name,
                **({"ParentShardId": parent} if parent else {}),
                "SequenceNumberRange": {
                    "StartingSequenceNumber": "1" * 21,
                    **({"EndingSequenceNumber": "2" * 21} if closed else {}),
                },
            }
            for name, parent, closed in said
        ]
        answer: dict[str, Any] = {"StreamArn": ARN, "Shards": shards}
        if last:
            answer["LastEvaluatedShardId"] = last
        self.stub.add_response(
            "describe_stream",
            {
                "StreamDescription": answer,
                "ResponseMetadata": {"HTTPHeaders": {"date": DATE}},
            },
            {"StreamArn": ARN, **request},
        )

    def iterator(self, name: str, after: str | None = None) -> None:
        start = {"ShardIteratorType": "TRIM_HORIZON"}
        if after is not None:
            start = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": after}
        self.stub.add_response(
            "get_shard_iterator",
            {"ShardIterator": name},
            {"StreamArn": ARN, "ShardId": SHARD, **start},
        )

    def records(self, iterator: str, *numbers: str, then: str | None) -> None:
        answer: dict[str, Any] = {
            "Records": [{"dynamodb": {"SequenceNumber": number}} for number in numbers],
            "ResponseMetadata": {"HTTPHeaders": {"date": DATE}},
        }
        if then is not None:
            answer["NextShardIterator"] = then
        self.stub.add_response("get_records", answer, {"ShardIterator": iterator, "Limit": 1_000})

    def refuse(self, operation: str, code: str) -> None:
        self.stub.add_client_error(operation, code, "as the test says")


SHARD = "shardId-00000001541626099285-f35f62ef"
ONE, TWO, SIX = (f"shardId-0000000154162609928{number}" for number in (1, 2, 6))
FIRST, SECOND, THIRD = (f"{number}{'0' * 20}" for number in (1, 2, 3))


@pytest.fixture
def script() -> Script:
    return Script()


def test_all_pages_of_shards_are_listed(script):
    script.shards((ONE, None, True), last=ONE)
    script.shards((TWO, ONE, False), ExclusiveStartShardId=ONE)
    listing = list_shards(script.client, ARN)
    assert listing.shards == [Shard(ONE, None, True), Shard(TWO, ONE, False)]
    assert listing.at == AT
    script.stub.assert_no_pending_responses()


def test_children_are_listed_by_a_filter_where_there_is_one(script):
    script.shards((TWO, ONE, False), ShardFilter={"Type": "CHILD_SHARDS", "ShardId": ONE})
    assert list_shards(script.client, ARN, children_of=ONE).shards == [Shard(TWO, ONE)]
    script.refuse("describe_stream", "ValidationException")
    script.shards((ONE, None, True), (TWO, ONE, False), (SIX, ONE, False))
    found = ShardTree()
    found.add(list_shards(script.client, ARN, children_of=ONE).shards)
    assert found.children(ONE) == [TWO, SIX]
    script.stub.assert_no_pending_responses()


def test_a_shard_is_read_to_its_end(script):
    reader = ShardReader(script.client, ARN, SHARD, None)
    script.iterator("i1")
    script.records("i1", FIRST, SECOND, then="i2")
    script.records("i2", then="i3")
    script.records("i3", THIRD, then=None)
    found = []
    while True:
        page = reader.read()
        assert page.at == AT
        found += [record["dynamodb"]["SequenceNumber"] for record in page.records]
        reader.take(page)
        if page.is_last:
            break
    assert found == [FIRST, SECOND, THIRD]
    script.stub.assert_no_pending_responses()


def test_a_page_that_was_not_taken_is_read_again(script):
    reader = ShardReader(script.client, ARN, SHARD, FIRST)
    script.iterator("i1", after=FIRST)
    script.records("i1", SECOND, then="i2")
    script.records("i1", SECOND, then="i2")
    script.records("i2", THIRD, then="i3")
    reader.read()
    reader.take(reader.read())
    assert reader.read().records[0]["dynamodb"]["SequenceNumber"] == THIRD


def test_an_iterator_that_expired_is_got_anew_from_what_was_taken(script):
    reader = ShardReader(script.client, ARN, SHARD, None)
    script.iterator("i1")
    script.records("i1", FIRST, then="i2")
    reader.take(reader.read())
    script.records("i2", SECOND, then="i3")
    reader.read()  # and not taken: what waited for a commit
    script.refuse("get_records", "ExpiredIteratorException")
    script.iterator("i4", after=FIRST)
    script.records("i4", SECOND, then="i5")
    assert reader.read().records[0]["dynamodb"]["SequenceNumber"] == SECOND
    script.stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("operation", "code", "error"),
    [
        ("get_shard_iterator", "TrimmedDataAccessException", TrimmedError),
        ("get_records", "TrimmedDataAccessException", TrimmedError),
        ("get_shard_iterator", "ResourceNotFoundException", ResourceNotFoundError),
        ("get_records", "LimitExceededException", ThrottledError),
        ("get_records", "ProvisionedThroughputExceededException", ThrottledError),
        ("get_records", "ThrottlingException", ThrottledError),
        ("get_records", "InternalServerError", AwsUnavailableError),
        ("get_shard_iterator", "InternalServerError", AwsUnavailableError),
    ],
)
def test_what_refusals_are(script, operation, code, error):
    reader = ShardReader(script.client, ARN, SHARD, FIRST)
    if operation == "get_records":
        script.iterator("i1", after=FIRST)
    script.refuse(operation, code)
    with pytest.raises(error, match=SHARD):
        reader.read()
    # Whoever tries again goes on where it was.
    if error is not TrimmedError and operation == "get_records":
        script.records("i1", SECOND, then="i2")
        assert reader.read().records[0]["dynamodb"]["SequenceNumber"] == SECOND


def test_an_iterator_that_expired_and_whose_records_are_gone_since(script):
    reader = ShardReader(script.client, ARN, SHARD, FIRST)
    script.iterator("i1", after=FIRST)
    script.refuse("get_records", "ExpiredIteratorException")
    script.refuse("get_shard_iterator", "TrimmedDataAccessException")
    with pytest.raises(TrimmedError) as caught:
        reader.read()
    assert caught.value.shard == SHARD
