"""Reads the items of many tables in as few BatchGetItem calls as possible, all in flight at once.

Of many requests one is slow now and then, for reasons of one connection or one host of the
service; the same request sent again rarely is. Dean and Barroso, "The Tail at Scale", 2013.

Found, not found and could not be read are three different answers: a key is found, or it is in
`unread`, or it does not exist.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from feast_dynamo_ext.dynamo.layouts.packed import KEY, PACKED, VALUES
from feast_dynamo_ext.dynamo.layouts.series import SERIES
from feast_dynamo_ext.dynamo.retry import Pending, Transport, UnprocessedItems, drain
from feast_dynamo_ext.errors import AwsUnavailableError, IncompleteReadError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.retry import RetryPolicy
    from feast_dynamo_ext.dynamo.transport import Answer


@dataclass(frozen=True)
class OwnAnswers:
    """The connection, to a read that takes no other request's answer for its own.

    A connection that is out of step, or a proxy that mixes requests up, gives a request the answer
    of another. Keys that such an answer lacks would be taken for keys that do not exist.
    """

    transport: Transport

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Answer:
        """Send one request; its answer's items come by key.

        Raises:
            AwsUnavailableError: the answer is of another request, or as `Transport.call`.
        """
        answer = await self.transport.call(operation, body, resource, timeout_s)
        wanted: Pending = body["RequestItems"]
        try:
            found = _by_key(answer, wanted)
        except (KeyError, TypeError, AttributeError) as error:
            raise AwsUnavailableError(
                f"dynamodb {operation} on {resource}: the answer is not the one to this request "
                "(it lacks what every answer has, or has keys that were not requested). A proxy "
                "may have mixed requests up.",
                service="dynamodb",
                operation=operation,
            ) from error
        return {**answer, "Responses": found}


def _by_key(answer: Answer, wanted: Pending) -> Found:
    """The items of each table of an answer.

    Raises:
        KeyError: a key that was not requested, or what every answer has is missing.
    """
    # Views of one entity are asked for the same keys, mostly in one list.
    sets: dict[int, set[str]] = {}
    found = {}
    for table, items in answer["Responses"].items():
        keys = wanted[table]["Keys"]
        if len(items) == 1:  # a service's reads: faster so
            by_key = {items[0][KEY]["B"]: items[0]}
        else:
            by_key = {item[KEY]["B"]: item for item in items}
        found[table] = by_key
        if (requested := sets.get(id(keys))) is None:
            requested = sets[id(keys)] = {key[KEY]["B"] for key in keys}
        if not requested.issuperset(by_key):
            raise KeyError(table)
    for table, left in (answer.get("UnprocessedKeys") or {}).items():
        keys = wanted[table]["Keys"]
        if any(key not in keys for key in left["Keys"]):
            raise KeyError(table)
    return found


@dataclass
class HedgedTransport:
    """The connection, as one read sees it.

    Attributes:
        transport: the connection.
        after_s: a request that has no answer by then is sent again.
        left: how many times this read may still do that. One: when the whole service is slow,
            the load grows by one request a read and not by all.
    """

    transport: Transport
    after_s: float
    left: int = 1

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Answer:
        """Send one request, perhaps twice, and give back the first answer."""
        first = asyncio.ensure_future(self.transport.call(operation, body, resource, timeout_s))
        sent = {first}
        try:
            answered, _ = await asyncio.wait(sent, timeout=self.after_s)
            if not answered and self.left:
                self.left -= 1
                again = self.transport.call(operation, body, resource, timeout_s)
                sent.add(asyncio.ensure_future(again))
            return await _first_good(sent)
        finally:
            for request in sent:
                request.cancel()
            await asyncio.gather(*sent, return_exceptions=True)


async def _first_good(sent: set[asyncio.Task[Answer]]) -> Answer:
    """The first answer; an error only where there is nothing else to wait for."""
    waiting = set(sent)
    while True:
        answered, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for request in answered:
            if request.exception() is None:
                return request.result()
        if not waiting:
            return answered.pop().result()


MAX_KEYS_PER_REQUEST = 100  # BatchGetItem's limit
MAX_ANSWER_BYTES = 16 * 1_024 * 1_024  # BatchGetItem's limit

# What a request is planned to bring at most: items vary in size, and what does not fit into an
# answer costs another round trip.
PLANNED_ANSWER_BYTES = MAX_ANSWER_BYTES // 2
FULL_ANSWER_BYTES = MAX_ANSWER_BYTES * 3 // 4
LARGE_ITEM_BYTES = PLANNED_ANSWER_BYTES // MAX_KEYS_PER_REQUEST

Found = dict[str, dict[str, "JsonItem"]]
"""Items by table name, then by key in base64."""


class TableKeys(NamedTuple):
    """What to read of one table.

    Attributes:
        table: table name.
        keys: distinct keys, in base64.
        consistent: strongly consistent reads, at twice the read units.
        view: name of the feature view it keeps, for messages.
        is_series: whether the table has the layout of series, of which schema items and control
            items alone are read by key.
    """

    table: str
    keys: tuple[str, ...]
    consistent: bool = False
    view: str = ""
    is_series: bool = False


@dataclass
class ReadResult:
    """What a read brought.

    Attributes:
        wanted: what was asked for.
        found: the items that were read.
        unread: keys that could not be read before the deadline, by table name.
        cause: the last failure, if any key is unread.
    """

    wanted: Sequence[TableKeys]
    found: Found
    unread: dict[str, list[str]] = field(default_factory=dict)
    cause: Exception | None = None


@dataclass(frozen=True)
class Reader:
    """Reads items by key. Safe to share between threads and event loops.

    Attributes:
        transport: the connection.
        policy: retries and deadline of one read.
        batch_size: keys a request, at most 100.
        workers: requests of one read that are in flight at once.
        hedge_after_s: the slowest request of a read is sent once more after that; None for never.
        item_bytes: mean size of a table's items where they are large, as last read: requests are
            then made smaller, as an answer holds 16 MB.
    """

    transport: Transport
    policy: RetryPolicy
    batch_size: int = MAX_KEYS_PER_REQUEST
    workers: int = 10
    hedge_after_s: float | None = None
    item_bytes: dict[str, int] = field(default_factory=dict)

    async def read(self, wanted: Sequence[TableKeys], started_s: float | None = None) -> Found:
        """The items of all keys that exist.

        Args:
            wanted: what to read.
            started_s: when the call began that the read is of, from which on the policy's
                deadline counts; None for now.

        Raises:
            IncompleteReadError: keys were left unread at the deadline; names tables and counts.
            ResourceNotFoundError: a table does not exist.
            AwsError: AWS refused the request.
        """
        result = await self.read_partial(wanted, started_s)
        if result.unread:
            raise self.incomplete(result) from result.cause
        return result.found

    async def read_partial(
        self, wanted: Sequence[TableKeys], started_s: float | None = None
    ) -> ReadResult:
        """The same, but what is left unread at the deadline is part of the result.

        Raises:
            ResourceNotFoundError: a table does not exist.
            AwsError: AWS refused the request.
        """
        result = ReadResult(wanted, {keys.table: {} for keys in wanted})
        if started_s is None:
            started_s = self.policy.clock()
        transport: Transport = OwnAnswers(self.transport)
        if self.hedge_after_s is not None:
            transport = HedgedTransport(transport, self.hedge_after_s)
        requests = list(self._requests(wanted))
        if len(requests) == 1:
            await self._read_one(requests[0], transport, result, started_s)
            return result
        room = asyncio.Semaphore(self.workers)

        async def in_turn(request: Pending) -> None:
            async with room:
                await self._read_one(request, transport, result, started_s)

        # All of them end before an error is raised: none is left behind in flight.
        outcomes = await asyncio.gather(*map(in_turn, requests), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        return result

    async def _read_one(
        self, request: Pending, transport: Transport, result: ReadResult, started_s: float
    ) -> None:
        def take(answer: Answer) -> bool:
            total = 0
            for table, items in answer["Responses"].items():
                if held := result.found[table]:
                    held.update(items)
                else:
                    result.found[table] = items
                total += self._weigh(table, items.values())
            return total >= FULL_ANSWER_BYTES

        try:
            await drain(
                transport,
                "BatchGetItem",
                request,
                "UnprocessedKeys",
                self.policy,
                take,
                started_s,
            )
        except UnprocessedItems as leftover:
            result.cause = leftover.cause or leftover
            for table, entry in leftover.pending.items():
                unread = result.unread.setdefault(table, [])
                unread += (key[KEY]["B"] for key in entry["Keys"])

    def _weigh(self, table: str, items: Collection[JsonItem]) -> int:
        """Bytes of items, nearly: their values alone, from base64."""
        try:
            total = sum([len(item[VALUES]["B"]) for item in items]) * 3 // 4
        except KeyError:
            # Not rows: schema items, and what others may have put into the table.
            total = sum([len(item.get(VALUES, {}).get("B", "")) for item in items]) * 3 // 4
        if items and total > LARGE_ITEM_BYTES * len(items):
            self.item_bytes[table] = total // len(items)
        elif self.item_bytes:
            self.item_bytes.pop(table, None)
        return total

    def _requests(self, wanted: Sequence[TableKeys]) -> Iterator[Pending]:
        """Merge the keys of all tables into requests."""
        keys_of: dict[tuple[int, bool], list[Any]] = {}
        request: Pending = {}
        keys_left, bytes_left = self.batch_size, PLANNED_ANSWER_BYTES
        for entry in wanted:
            # Views of one entity are asked for the same keys, mostly all of a request's.
            layout = SERIES if entry.is_series else PACKED
            keys = keys_of.get((id(entry.keys), entry.is_series))
            if keys is None:
                keys = keys_of[id(entry.keys), entry.is_series] = layout.read(entry.keys)
            size, start = self.item_bytes.get(entry.table, 1), 0
            while start < len(keys):
                room = min(keys_left, max(1, bytes_left // size))
                # Whole where it fits: the answer is checked against it, once for all its views.
                taken = keys if not start and room >= len(keys) else keys[start : start + room]
                request[entry.table] = {"Keys": taken}
                if entry.consistent:
                    request[entry.table]["ConsistentRead"] = True
                start += len(taken)
                keys_left -= len(taken)
                bytes_left -= len(taken) * size
                if keys_left <= 0 or bytes_left < size:
                    yield request
                    request = {}
                    keys_left, bytes_left = self.batch_size, PLANNED_ANSWER_BYTES
        if request:
            yield request

    def incomplete(self, result: ReadResult) -> IncompleteReadError:
        """The error that keys are left unread, naming tables and counts."""
        unread = {table: len(keys) for table, keys in sorted(result.unread.items())}
        views = {entry.table: entry.view for entry in result.wanted if entry.view}
        what = ", ".join(
            f"{count} keys of "
            + (f"feature view {views[table]} (table {table})" if table in views else table)
            for table, count in unread.items()
        )
        return incomplete_error(what, unread, self.policy, result.cause)


def incomplete_error(
    what: str, unread: Mapping[str, int], policy: RetryPolicy, cause: Exception | None
) -> IncompleteReadError:
    """The error that something is left unread.

    Args:
        what: is left, in words.
        unread: how much of each table.
        policy: of the read.
        cause: the last failure; None where none failed, and there was more to read than time.
    """
    spent = ", and this process may send no more again" if _is_spent(policy) else ""
    last = "None failed, and there is more to read" if cause is None else f"Last answer: {cause}"
    return IncompleteReadError(
        f"Could not read {what} within {policy.deadline_s:g} s or "
        f"{policy.max_failures or 'any number of'} failed attempts{spent}. {last}"
        f"{'.' if cause is None else ''} {_advice(cause)}",
        unread=unread,
    )


def _is_spent(policy: RetryPolicy) -> bool:
    return policy.budget is not None and policy.budget.is_spent


def _advice(cause: Exception | None) -> str:
    if isinstance(cause, AwsUnavailableError):
        return (
            "Check that the endpoint can be reached from here: `endpoint_url` and `region` in "
            "feature_store.yaml, network, proxy and DNS."
        )
    return "Raise `read_deadline_ms` or the table's capacity, or read fewer keys at once."
