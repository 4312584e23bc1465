"""One request for features: what it asks of each view, and one read for all of them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast_dynamo_ext.dynamo.batch_get import TableKeys
from feast_dynamo_ext.dynamo.keys import text
from feast_dynamo_ext.dynamo.layouts.packed import key_bytes
from feast_dynamo_ext.dynamo.response import Stored, ViewRead, read_items
from feast_dynamo_ext.dynamo.views import keys_of_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    from feast_dynamo_ext.dynamo.batch_get import ReadResult
    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.schemas import SchemaCache
    from feast_dynamo_ext.dynamo.views import KnownView


logger = logging.getLogger(__name__)


def of_columns(
    views: Sequence[KnownView],
    requested: Sequence[Sequence[str]],
    values: Mapping[str, Sequence[Value]],
) -> list[ViewRead]:
    """What a request of columns asks of each view.

    Args:
        views: the views.
        requested: feature names of each view.
        values: the request's columns: join keys, all of one length.

    Raises:
        EntityKeyError: there are no rows, a join key is missing, or a key cannot be a key.
    """
    count = max(map(len, values.values()), default=0)
    # Views of one entity share their keys, and with them what the reader makes of them.
    keys: dict[tuple[tuple[str, str], ...], tuple[str | None, ...]] = {}
    reads = []
    for view, names in zip(views, requested, strict=True):
        if view.columns not in keys:
            keys[view.columns] = keys_of_request(view, values, count)
        reads.append(ViewRead(view, tuple(names), keys[view.columns]))
    return reads


def of_keys(
    view: KnownView, keys: Sequence[EntityKey], requested: Sequence[str] | None
) -> ViewRead:
    """What a request of entity keys asks of a view; of no names, all its features.

    Raises:
        EntityKeyError: a key that cannot be a key.
    """
    rows = tuple(text(key_bytes(key, view.answers_as)) for key in keys)
    return ViewRead(view, tuple(requested or view.schema.names), rows)


@dataclass(frozen=True)
class Answers:
    """What a request found, for all its views."""

    result: ReadResult
    book: SchemaCache
    now_s: float

    def rows_of(self, read: ViewRead) -> list[Stored]:
        """What each row of the request found in one view.

        Raises:
            ItemFormatError: an item is not in this store's layout.
        """
        table = read.view.table
        unread = self.result.unread.get(table, ())
        return read_items(read, self.result.found[table], self.book, self.now_s, unread)


async def read(
    reads: Sequence[ViewRead], connection: Connection, *, may_be_partial: bool
) -> Answers:
    """Read all views of a request together.

    Args:
        reads: what is asked of each view.
        connection: the way to DynamoDB.
        may_be_partial: answer what was read when the deadline comes, instead of failing.

    Raises:
        IncompleteReadError: keys were left unread, and the answer may not be partial.
        AwsError: AWS refused the request.
    """
    book, reader = connection.schemas, connection.reader
    for one in reads:
        book.learn(one.view.table, one.view.schema)
    result = await reader.read_partial(_wanted(reads))
    if result.unread:
        error = reader.incomplete(result)
        if not may_be_partial:
            raise error from result.cause
        logger.warning("%s They are marked INVALID (on_partial: mark).", error)
    await book.fetch_missing(result.found, reader)
    return Answers(result, book, time.time())


def _wanted(reads: Sequence[ViewRead]) -> list[TableKeys]:
    """The distinct keys of each table."""
    by_table: dict[str, list[ViewRead]] = {}
    for one in reads:
        by_table.setdefault(one.view.table, []).append(one)
    distinct: dict[int, tuple[str, ...]] = {}
    wanted = []
    for table, asked in by_table.items():
        keys = [_distinct(one.rows, distinct) for one in asked]
        merged = keys[0] if len(keys) == 1 else tuple(dict.fromkeys(sum(keys, ())))
        consistent = any(one.view.consistent for one in asked)
        wanted.append(TableKeys(table, merged, consistent, asked[0].view.answers_as))
    return wanted


def _distinct(rows: tuple[str | None, ...], known: dict[int, tuple[str, ...]]) -> tuple[str, ...]:
    if id(rows) not in known:
        known[id(rows)] = tuple(dict.fromkeys(row for row in rows if row is not None))
    return known[id(rows)]
