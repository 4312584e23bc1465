"""From items to Feast's GetOnlineFeaturesResponse, one feature vector at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast.protos.feast.serving.ServingService_pb2 import (
    FieldStatus,
    GetOnlineFeaturesResponse,
)
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from feast_dynamo_ext.dynamo.item import EVENT_TIME, EXPIRY, RowSchema, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_dynamo_ext.dynamo.item import JsonItem
    from feast_dynamo_ext.dynamo.schemas import SchemaBook

NULL = Value()
NO_TIME = Timestamp()


@dataclass(frozen=True)
class ViewRead:
    """What a request asks of one view.

    Attributes:
        table: table name.
        schema: the view's schema of now.
        requested: feature names, in the order of the answer.
        rows: the key of each row of the request, in base64; None where a join key is null.
    """

    table: str
    schema: RowSchema
    requested: tuple[str, ...]
    rows: tuple[str | None, ...]


@dataclass(frozen=True)
class Cells:
    """The answer for one row: one value and one status a requested feature."""

    values: Sequence[Value]
    statuses: Sequence[int]
    event_time: Timestamp


def event_timestamp(item: JsonItem) -> Timestamp:
    """The event time of an item."""
    micros = int(item[EVENT_TIME]["N"])
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)


def is_expired(item: JsonItem, now_s: float) -> bool:
    """Whether a row is past its view's ttl: DynamoDB deletes it hours or days later."""
    return EXPIRY in item and now_s >= int(item[EXPIRY]["N"])


def cells_of(item: JsonItem, view: ViewRead, book: SchemaBook, now_s: float) -> Cells:
    """The requested features of one item."""
    count = len(view.requested)
    if is_expired(item, now_s):
        return Cells([NULL] * count, [FieldStatus.OUTSIDE_MAX_AGE] * count, event_timestamp(item))
    columns = book.columns_of(view.table, item, view.schema, view.requested)
    packed = values_of(item, view.table)
    return Cells(
        [NULL if column is None else column.value_of(packed) for column in columns],
        [FieldStatus.NOT_FOUND if column is None else FieldStatus.PRESENT for column in columns],
        event_timestamp(item),
    )


def add_view(
    response: GetOnlineFeaturesResponse,
    view: ViewRead,
    items: dict[str, JsonItem],
    names: Sequence[str],
    book: SchemaBook,
    now_s: float,
) -> None:
    """Append one feature vector per requested feature.

    Args:
        response: the answer to extend.
        view: what was asked.
        items: the view's items by key in base64.
        names: the names under which the features are answered.
        book: what items' values stand for.
        now_s: seconds since 1970 UTC, for the ttl.
    """
    count = len(view.requested)
    missing = Cells([NULL] * count, [FieldStatus.NOT_FOUND] * count, NO_TIME)
    by_key = {key: cells_of(item, view, book, now_s) for key, item in items.items()}
    cells = [missing if key is None else by_key.get(key, missing) for key in view.rows]
    response.metadata.feature_names.val.extend(names)
    times = [row.event_time for row in cells]
    for values, statuses in zip(
        zip(*(row.values for row in cells), strict=True),
        zip(*(row.statuses for row in cells), strict=True),
        strict=True,
    ):
        response.results.add(values=values, statuses=statuses, event_timestamps=times)


def add_version(response: GetOnlineFeaturesResponse, view: Any) -> None:
    """Append which version of a feature view answered, once a view."""
    name = view.projection.name_alias or view.projection.name
    if all(entry.name != name for entry in response.metadata.feature_view_metadata):
        response.metadata.feature_view_metadata.add(
            name=name, version=getattr(view, "current_version_number", 0) or 0
        )
