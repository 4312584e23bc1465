"""A stream with the shards that a test wants, by the API of DynamoDB Streams.

DynamoDB Local and moto have one shard for ever. This one's split, close, and lose records, and
answer as AWS does, with botocore's own errors. Records are those of the documented shape.

    streams = FakeStreams()
    streams.put("a", order=1, at=10, amount=5)
    streams.split("a", "b", "c")
"""

from __future__ import annotations

import datetime as dt
import itertools
import threading
from dataclasses import dataclass, field
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from followed import Change, item

if TYPE_CHECKING:
    from collections.abc import Callable

ARN = "arn:aws:dynamodb:us-east-1:123456789012:table/orders/stream/2026-01-01T00:00:00.000"
LISTED = 2
"""Shards of a page of DescribeStream: few, so that there are several pages."""


@dataclass
class _Shard:
    parent: str | None
    records: list[dict[str, Any]] = field(default_factory=list)
    is_closed: bool = False
    trimmed: int = 0


@dataclass
class FakeStreams:
    """See the module. Safe between threads.

    Attributes:
        arn: of the stream.
        now: the time of the service.
        most: records of a page.
        on_call: called with each operation and its shard; what it raises is the answer.
        log: the changes, as they were put.
    """

    arn: str = ARN
    now: dt.datetime = dt.datetime(2026, 3, 2, tzinfo=dt.timezone.utc)
    most: int = 1_000
    on_call: Callable[[str, str], None] | None = None
    log: list[Change] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    _shards: dict[str, _Shard] = field(default_factory=dict)
    _held: dict[int, dict[str, Any]] = field(default_factory=dict)
    _iterators: dict[str, tuple[str, int]] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: itertools.count(10**20))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # What happens

    def shard(self, name: str, parent: str | None = None) -> None:
        """A new shard."""
        with self._lock:
            self._shards[name] = _Shard(parent)

    def split(self, name: str, *children: str) -> None:
        """Close a shard; its children go on."""
        with self._lock:
            self._shards[name].is_closed = True
            for child in children:
                self.shard(child, name)

    def close(self) -> None:
        """The stream is switched off."""
        with self._lock:
            for shard in self._shards.values():
                shard.is_closed = True

    def trim(self, name: str) -> None:
        """All records of a shard become too old."""
        with self._lock:
            shard = self._shards[name]
            shard.trimmed = len(shard.records)

    def forget(self, name: str) -> None:
        """A shard is listed no more."""
        with self._lock:
            del self._shards[name]

    def put(self, shard: str, order: int, at: int, amount: Any) -> None:
        """An order is written, whose partition a shard has."""
        new = item(order, at, amount)
        old = self._held.get(order)
        self._record(shard, order, old, new)
        self._held[order] = new

    def delete(self, shard: str, order: int) -> None:
        """It is deleted."""
        self._record(shard, order, self._held.pop(order), None)

    def _record(self, shard: str, order: int, old: Any, new: Any) -> None:
        with self._lock:
            number = next(self._numbers)
            body = {
                "ApproximateCreationDateTime": self.now.replace(microsecond=0),
                "Keys": {"order": {"N": str(order)}},
                "SequenceNumber": str(number),
                "SizeBytes": 100,
                "StreamViewType": "NEW_AND_OLD_IMAGES",
            }
            if old is not None:
                body["OldImage"] = old
            if new is not None:
                body["NewImage"] = new
            name = "REMOVE" if new is None else "INSERT" if old is None else "MODIFY"
            self._shards[shard].records.append(
                {"eventID": f"event-{number}", "eventName": name, "dynamodb": body}
            )
            self.log.append(Change(order, old, new))

    # The API

    def describe_stream(
        self,
        StreamArn: str,  # noqa: N803 - AWS's names
        ExclusiveStartShardId: str | None = None,  # noqa: N803
        ShardFilter: dict[str, str] | None = None,  # noqa: N803
        Limit: int = LISTED,  # noqa: N803
    ) -> dict[str, Any]:
        with self._lock:
            self._called("DescribeStream", "")
            if StreamArn != self.arn:
                raise error("ResourceNotFoundException", "DescribeStream")
            names = sorted(self._shards)
            if ShardFilter is not None:
                assert ShardFilter["Type"] == "CHILD_SHARDS"
                parent = ShardFilter["ShardId"]
                names = [name for name in names if self._shards[name].parent == parent]
            if ExclusiveStartShardId is not None:
                names = [name for name in names if name > ExclusiveStartShardId]
            shown = names[:Limit]
            said: dict[str, Any] = {"Shards": [self._said(name) for name in shown]}
            if len(shown) < len(names):
                said["LastEvaluatedShardId"] = shown[-1]
            return self._answer(StreamDescription=said)

    def _said(self, name: str) -> dict[str, Any]:
        shard = self._shards[name]
        numbers = {"StartingSequenceNumber": "1" * 21}
        if shard.is_closed:
            numbers["EndingSequenceNumber"] = "9" * 21
        said: dict[str, Any] = {"ShardId": name, "SequenceNumberRange": numbers}
        return said | ({"ParentShardId": shard.parent} if shard.parent else {})

    def get_shard_iterator(
        self,
        StreamArn: str,  # noqa: N803
        ShardId: str,  # noqa: N803
        ShardIteratorType: str,  # noqa: N803
        SequenceNumber: str | None = None,  # noqa: N803
    ) -> dict[str, Any]:
        with self._lock:
            self._called("GetShardIterator", ShardId)
            if StreamArn != self.arn or ShardId not in self._shards:
                raise error("ResourceNotFoundException", "GetShardIterator")
            shard = self._shards[ShardId]
            place = shard.trimmed
            if ShardIteratorType == "AFTER_SEQUENCE_NUMBER":
                numbers = [record["dynamodb"]["SequenceNumber"] for record in shard.records]
                place = numbers.index(SequenceNumber) + 1
                if place < shard.trimmed:
                    raise error("TrimmedDataAccessException", "GetShardIterator")
            return self._answer(ShardIterator=self._iterator(ShardId, place))

    def get_records(self, ShardIterator: str, Limit: int) -> dict[str, Any]:  # noqa: N803
        with self._lock:
            name, place = self._iterators[ShardIterator]
            self._called("GetRecords", name)
            if name not in self._shards or place < self._shards[name].trimmed:
                raise error("TrimmedDataAccessException", "GetRecords")
            shard = self._shards[name]
            found = shard.records[place : place + min(Limit, self.most)]
            place += len(found)
            if shard.is_closed and place == len(shard.records):
                return self._answer(Records=found)
            return self._answer(Records=found, NextShardIterator=self._iterator(name, place))

    def _iterator(self, name: str, place: int) -> str:
        made = f"iterator-{len(self._iterators)}"
        self._iterators[made] = (name, place)
        return made

    def _called(self, operation: str, shard: str) -> None:
        self.calls.append((operation, shard))
        if self.on_call is not None:
            self.on_call(operation, shard)

    def _answer(self, **said: Any) -> dict[str, Any]:
        date = format_datetime(self.now.replace(microsecond=0), usegmt=True)
        return {**said, "ResponseMetadata": {"HTTPHeaders": {"date": date}}}


def error(code: str, operation: str) -> ClientError:
    """A refusal as botocore raises it."""
    answer: Any = {"Error": {"Code": code, "Message": "as the test says"}, "ResponseMetadata": {}}
    return ClientError(answer, operation)
