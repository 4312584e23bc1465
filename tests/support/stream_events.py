"""Records of a table's stream in the forms that GetRecords and Lambda deliver them in."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from typing import Any

ARN = "arn:aws:dynamodb:us-east-1:123456789012:table/{}/stream/2026-01-05T10:00:00.000"


def record(
    number: int,
    second: float,
    *,
    old: dict[str, Any] | None = None,
    new: dict[str, Any] | None = None,
    keys: tuple[str, ...] = ("id",),
    table: str = "purchases",
    view: str = "NEW_AND_OLD_IMAGES",
) -> dict[str, Any]:
    """A record as JSON has it: bytes are base64, and the time a number of seconds.

    Args:
        number: which it is in its shard.
        second: when it was written, since 1970.
        old: the item before, in DynamoDB JSON.
        new: the item after.
        keys: names of the key attributes.
        table: name of the table.
        view: of the stream.
    """
    name = "REMOVE" if new is None else "INSERT" if old is None else "MODIFY"
    body: dict[str, Any] = {
        "ApproximateCreationDateTime": second,
        "Keys": {key: (new or old or {})[key] for key in keys},
        "SequenceNumber": str(4421584500000000017450439091 + number),
        "SizeBytes": 59,
        "StreamViewType": view,
    }
    if new is not None:
        body["NewImage"] = new
    if old is not None and view == "NEW_AND_OLD_IMAGES":
        body["OldImage"] = old
    return {
        "eventID": hashlib.md5(f"{table} {number}".encode()).hexdigest(),  # noqa: S324 - no secret
        "eventName": name,
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": body,
        "eventSourceARN": ARN.format(table),
    }


def as_boto3(given: dict[str, Any]) -> dict[str, Any]:
    """The record as boto3 gives it: bytes as bytes, the time as a datetime, without its ARN."""
    body = {
        name: _bytes(value) if name in {"Keys", "OldImage", "NewImage"} else value
        for name, value in given["dynamodb"].items()
    }
    moment = given["dynamodb"]["ApproximateCreationDateTime"]
    zone = dt.timezone(dt.timedelta(hours=2))
    body["ApproximateCreationDateTime"] = dt.datetime.fromtimestamp(moment, zone)
    made = {name: value for name, value in given.items() if name != "eventSourceARN"}
    return {**made, "dynamodb": body}


def as_lambda(given: dict[str, Any], table: str) -> dict[str, Any]:
    """What boto3 gives of a table's stream, as Lambda hands it on."""
    body = {
        name: _base64(value) if name in {"Keys", "OldImage", "NewImage"} else value
        for name, value in given["dynamodb"].items()
    }
    body["ApproximateCreationDateTime"] = body["ApproximateCreationDateTime"].timestamp()
    return {**given, "dynamodb": body, "eventSourceARN": ARN.format(table)}


def _bytes(image: Any) -> Any:
    return {name: _value(value, base64.b64decode) for name, value in image.items()}


def _base64(image: Any) -> Any:
    return {
        name: _value(value, lambda data: base64.b64encode(data).decode())
        for name, value in image.items()
    }


def _value(value: Any, change: Any) -> Any:
    ((kind, inner),) = value.items()
    if kind == "B":
        return {"B": change(inner)}
    if kind == "BS":
        return {"BS": [change(each) for each in inner]}
    if kind == "L":
        return {"L": [_value(each, change) for each in inner]}
    if kind == "M":
        return {"M": {name: _value(each, change) for name, each in inner.items()}}
    return value


def stream_of(client: Any, streams: Any, table: str) -> list[dict[str, Any]]:
    """All records of a table's stream, shard by shard, as boto3 gives them."""
    arn = client.describe_table(TableName=table)["Table"]["LatestStreamArn"]
    shards = streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
    found: list[dict[str, Any]] = []
    for shard in shards:
        answer = streams.get_shard_iterator(
            StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )
        iterator = answer["ShardIterator"]
        while iterator:
            page = streams.get_records(ShardIterator=iterator)
            found += page["Records"]
            if not page["Records"]:
                break
            iterator = page.get("NextShardIterator")
    return found
