"""Records of a table's stream, as GetRecords and as Lambda deliver them, made ready for history.

Both have the same fields; Lambda's event is JSON, in which bytes are base64 and times numbers::

    {"eventID": ..., "eventName": "MODIFY", "eventSourceARN": "arn:aws:dynamodb:...",
     "dynamodb": {"ApproximateCreationDateTime": 1767608400.0, "SequenceNumber": "4421584500...",
                  "Keys": {...}, "OldImage": {...}, "NewImage": {...}, "StreamViewType": ...}}

A change was written at ApproximateCreationDateTime, whole seconds, rounded down; of one second the
order of the records counts. A record that lacks what it needs becomes one that does not fit.
https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_Record.html
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.values.change_rows import SECOND
from feast_dynamo_ext.errors import CaptureError
from feast_dynamo_ext.timestamps import EARLIEST_US, EPOCH, LATEST_US, MICROSECOND

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from feast_dynamo_ext.capture.values.change_rows import Converted, RecordReader

NAMES = ("INSERT", "MODIFY", "REMOVE")
WITH_NEW_IMAGES = ("NEW_AND_OLD_IMAGES", "NEW_IMAGE")


@dataclass(frozen=True)
class StreamRecord:
    """One change.

    Attributes:
        change: `Keys`, and `OldImage` and `NewImage` where there are any.
        written: when it was written, microseconds since 1970.
        id: what the stream calls it; the same whenever it is delivered.
        sequence: its number in the stream.
        origin: where it is from, for the quarantine.
    """

    change: Mapping[str, Any]
    written: int
    id: str
    sequence: str
    origin: str

    @classmethod
    def from_record(cls, record: Any, place: str) -> StreamRecord:
        """One record of GetRecords, by boto3 or as JSON, or of an event of Lambda.

        Args:
            record: the record.
            place: its shard, or `lambda`.

        Raises:
            CaptureError: it is no record of a table's stream, or of one without new images.
        """
        body = record.get("dynamodb") if isinstance(record, Mapping) else None
        name = record.get("eventName") if isinstance(record, Mapping) else None
        if not isinstance(body, Mapping) or name not in NAMES:
            raise CaptureError(
                f"What came from {place} is no record of a DynamoDB stream: it has no `dynamodb` "
                f"beside an `eventName` of {', '.join(NAMES)}. Is the event source mapping that "
                "of the table's stream?"
            )
        found, sequence = record.get("eventID"), body.get("SequenceNumber")
        if not isinstance(found, str) or not isinstance(sequence, str) or not found:
            raise CaptureError(
                f"A record of a DynamoDB stream from {place} has no `eventID` or no "
                "`SequenceNumber`, by which it is known. Hand records on as the stream has them."
            )
        view = body.get("StreamViewType", WITH_NEW_IMAGES[0])
        if view not in WITH_NEW_IMAGES:
            raise CaptureError(
                f"The stream shows {view}, and what an item became is in {WITH_NEW_IMAGES[0]} "
                "alone. A stream's view cannot be changed: `feast apply` prints the commands that "
                "turn it off and on again."
            )
        return cls(
            _images(body, name), _micros(body, place), found, sequence, f"{place}/{sequence}"
        )


def _images(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The images of a change; what a put lacks is there as null, which is no item."""
    images = {image: body[image] for image in ("Keys", "OldImage") if image in body}
    if name != "REMOVE":
        images["NewImage"] = body.get("NewImage") or {}
    return images


def _micros(body: Mapping[str, Any], place: str) -> int:
    """When a change was written: whole seconds, as microseconds since 1970."""
    moment = body.get("ApproximateCreationDateTime")
    if isinstance(moment, dt.datetime) and moment.tzinfo is not None:
        return (moment - EPOCH) // MICROSECOND // SECOND * SECOND
    if isinstance(moment, (int, float)) and math.isfinite(moment):
        micros = math.floor(moment) * SECOND
        if EARLIEST_US <= micros <= LATEST_US:
            return micros
    raise CaptureError(
        f"A record of a DynamoDB stream from {place} has no `ApproximateCreationDateTime` in "
        "seconds since 1970. Hand records on as the stream has them."
    )


def stream_records(records: Iterable[Any], place: str) -> list[StreamRecord]:
    """Records in their order; those that are there twice, once.

    Raises:
        CaptureError: as `StreamRecord.from_record`.
    """
    found: dict[str, StreamRecord] = {}
    for record in records:
        made = StreamRecord.from_record(record, place)
        found.setdefault(made.id, made)
    return list(found.values())


def converted(reader: RecordReader, records: Sequence[StreamRecord]) -> Converted:
    """The rows of records, and those that do not fit."""
    return reader.converted(
        [record.change for record in records],
        [record.written for record in records],
        [record.origin for record in records],
        [record.id for record in records],
    )
