"""Reads stretches of events by Query: several entities side by side, each to its end.

DynamoDB has no batch Query. A page holds 1 MB; the newest events come first, so that a limit ends
at the first page mostly.
"""

from __future__ import annotations

import asyncio
from binascii import a2b_base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.keys import text
from feast_dynamo_ext.dynamo.layouts.packed import (
    CREATED_TIME,
    EVENT_TIME,
    FINGERPRINT,
    KEY,
    VALUES,
)
from feast_dynamo_ext.dynamo.layouts.series import (
    LOWEST,
    ORDER,
    ORDER_INDEX,
    SORT,
    time_bytes,
    time_of,
)
from feast_dynamo_ext.dynamo.retry import PASSING, send
from feast_dynamo_ext.errors import AwsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.retry import RetryPolicy, Transport
    from feast_dynamo_ext.dynamo.transport import Answer

TIME_TEXT = 12
"""Characters of a sort key in base64 that hold its event time."""

FIRST_US, LAST_US = -LOWEST, LOWEST - 2
"""Event times that a sort key may have, but for the last, which has no next."""


@dataclass(frozen=True)
class Stretch:
    """Which events of an entity are asked for.

    Attributes:
        first_us: the first event time; None for no limit.
        last_us: the last one.
        limit: how many, at most; None for all.
        newest_first: in which order, and which of them where there is a limit.
        index: the feature of a local index that has them in its order; None for that of time.
        low: with an index, the least of its sort keys; None for no limit.
        high: the first one beyond; None for no limit.
    """

    first_us: int | None
    last_us: int
    limit: int | None = None
    newest_first: bool = True
    index: str | None = None
    low: bytes | None = None
    high: bytes | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether event times are looked at of what an index gives."""
        is_bounded = self.first_us is not None or self.last_us < LAST_US
        return self.index is not None and is_bounded


@dataclass(frozen=True)
class EntityQuery:
    """A Query of one entity.

    Attributes:
        table: table name.
        key: serialized entity key, in base64.
        stretch: which events.
        consistent: strongly consistent, at twice the read units.
    """

    table: str
    key: str
    stretch: Stretch
    consistent: bool = False

    def request(self) -> dict[str, Any]:
        """The first page's."""
        stretch = self.stretch
        request: dict[str, Any] = {
            "TableName": self.table,
            "ProjectionExpression": f"{KEY},{SORT},{VALUES},{FINGERPRINT},{CREATED_TIME}",
            "ScanIndexForward": not stretch.newest_first,
        }
        if stretch.limit is not None:
            request["Limit"] = stretch.limit
        if self.consistent:
            request["ConsistentRead"] = True
        first = FIRST_US if stretch.first_us is None else max(stretch.first_us, FIRST_US)
        last = min(max(stretch.last_us, first), LAST_US)
        if stretch.index is None:
            # All of the last moment, whatever their tie-breakers: those of the next are left out.
            between = (time_bytes(first), time_bytes(last + 1))
            return {
                **request,
                **_condition({":k": {"B": self.key}}, f"{SORT} BETWEEN {{}} AND {{}}", between),
            }
        request["IndexName"] = ORDER_INDEX + stretch.index
        values: dict[str, Any] = {":k": {"B": self.key}}
        if stretch.is_filtered:
            request["FilterExpression"] = f"{EVENT_TIME} BETWEEN :f AND :l"
            values |= {":f": {"N": str(first)}, ":l": {"N": str(last)}}
        bounds = tuple(each for each in (stretch.low, stretch.high) if each is not None)
        if not bounds:
            return {**request, **_condition(values, "", ())}
        request["ExpressionAttributeNames"] = {"#o": ORDER + stretch.index}
        compared = (
            "#o BETWEEN {} AND {}" if len(bounds) > 1 else "#o >= {}" if stretch.low else "#o < {}"
        )
        return {**request, **_condition(values, compared, bounds)}


def _condition(values: dict[str, Any], compared: str, bounds: Sequence[bytes]) -> dict[str, Any]:
    """The key's condition, with the values of all expressions."""
    names = [f":b{at}" for at in range(len(bounds))]
    condition = f"{KEY} = :k" + (f" AND {compared.format(*names)}" if compared else "")
    given = {name: {"B": text(bound)} for name, bound in zip(names, bounds, strict=True)}
    return {
        "KeyConditionExpression": condition,
        "ExpressionAttributeValues": {**values, **given},
    }


@dataclass
class QueryResult:
    """What queries brought.

    Attributes:
        found: the events of each query, in the order asked for.
        unread: queries that were not read to their end.
        cause: the last failure; None where none failed, and there was more to read than time.
    """

    found: dict[EntityQuery, list[JsonItem]] = field(default_factory=dict)
    unread: list[EntityQuery] = field(default_factory=list)
    cause: Exception | None = None


@dataclass(frozen=True)
class Queries:
    """Runs queries. Safe to share between threads and event loops.

    Attributes:
        transport: the connection.
        policy: retries and deadline of one read.
        at_once: queries of one read that are in flight at once.
    """

    transport: Transport
    policy: RetryPolicy
    at_once: int

    async def run(
        self, queries: Sequence[EntityQuery], started_s: float | None = None
    ) -> QueryResult:
        """The events of each query.

        Args:
            queries: distinct ones.
            started_s: when the call began that they are of; None for now.

        Raises:
            ResourceNotFoundError: a table does not exist.
            AwsError: AWS refused a request.
        """
        result = QueryResult()
        began = self.policy.clock() if started_s is None else started_s
        if len(queries) == 1:
            await self._one(queries[0], result, began)
            return result
        room = asyncio.Semaphore(self.at_once)
        refused: list[BaseException] = []

        async def in_turn(query: EntityQuery) -> None:
            async with room:
                if refused:
                    return  # the others would be refused alike
                try:
                    await self._one(query, result, began)
                except BaseException as error:
                    refused.append(error)
                    raise

        # All in flight end before an error is raised: none is left behind.
        await asyncio.gather(*map(in_turn, queries), return_exceptions=True)
        if refused:
            raise refused[0]
        return result

    async def _one(self, query: EntityQuery, result: QueryResult, started_s: float) -> None:
        attempts = self.policy.start(started_s)
        request, ended = query.request(), 0
        found: list[JsonItem] = []
        stretch = query.stretch
        while True:
            if not attempts.left_s():  # its turn, or that of its next page, comes too late
                result.unread.append(query)
                return
            try:
                answer = await send(self.transport, "Query", request, [query.table], attempts)
                met = _own_items(answer, query)
            except PASSING as failure:
                result.unread.append(query)
                result.cause = failure
                return
            # What has no values says that an event was deleted there.
            found += (item for item in met if FINGERPRINT in item)
            ended += sum(FINGERPRINT not in item for item in met)
            last = answer.get("LastEvaluatedKey")
            is_full = stretch.limit is not None and len(found) >= stretch.limit
            if last is None or is_full:
                break
            request["ExclusiveStartKey"] = last
            if stretch.is_filtered:
                request.pop("Limit", None)  # which counts before the filter
            elif stretch.limit is not None:
                request["Limit"] = stretch.limit - len(found) + ended
        result.found[query] = found[: stretch.limit]


def _own_items(answer: Answer, query: EntityQuery) -> list[JsonItem]:
    """The events of an answer; those of another moment that its bounds let in are left out.

    Raises:
        AwsUnavailableError: it is not the answer to this request.
    """
    stretch = query.stretch
    items = items_of(answer, query.table, query.key)
    if stretch.index is not None or not items:
        return items
    ends = (items[0], items[-1])
    if all(sort_time(item) <= stretch.last_us for item in ends):
        return items
    return [item for item in items if sort_time(item) <= stretch.last_us]


def items_of(
    answer: Answer, table: str, key: str | None = None, sort: str = SORT
) -> list[JsonItem]:
    """The items of an answer to a Query.

    Args:
        answer: as it came.
        table: the table that was asked.
        key: the entity key in base64 that all items must have; None for any.
        sort: the attribute that all items must have besides.

    Raises:
        AwsUnavailableError: it is not the answer to this request.
    """
    try:
        items: list[JsonItem] = answer["Items"]
        is_own = all(
            sort in item and (item[KEY]["B"] == key if key else KEY in item) for item in items
        )
    except (KeyError, TypeError, AttributeError):
        is_own = False
    if not is_own:
        raise AwsUnavailableError(
            f"dynamodb Query on {table}: the answer is not the one to this request (it has "
            "items of another entity, or lacks what every answer has). A proxy may have mixed "
            "requests up.",
            service="dynamodb",
            operation="Query",
        )
    return items


def sort_time(item: Mapping[str, Mapping[str, str]]) -> int:
    """The event time of an item, microseconds since 1970 UTC."""
    return time_of(a2b_base64(item[SORT]["B"][:TIME_TEXT]))
