"""Reads the items of many tables in as few BatchGetItem calls as possible, all in flight at once.

Found, not found and could not be read are three different answers: a key is in the result, is
not in the result, or the read raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast_dynamo_ext.dynamo.batch import Leftover, Pending, Wire, drain
from feast_dynamo_ext.dynamo.item import KEY
from feast_dynamo_ext.errors import IncompleteReadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Executor

    from feast_dynamo_ext.dynamo.item import JsonItem
    from feast_dynamo_ext.dynamo.retry import RetryPolicy

MAX_KEYS_PER_REQUEST = 100  # BatchGetItem's limit

Found = dict[str, dict[str, "JsonItem"]]
"""Items by table name, then by key in base64."""


@dataclass(frozen=True)
class TableKeys:
    """What to read of one table.

    Attributes:
        table: table name.
        keys: distinct keys, in base64.
        consistent: strongly consistent reads, at twice the read units.
    """

    table: str
    keys: tuple[str, ...]
    consistent: bool = False


@dataclass(frozen=True)
class Reader:
    """Reads items by key.

    Attributes:
        wire: the connection.
        policy: retries and deadline of one read.
        executor: runs the requests of one read side by side.
        batch_size: keys a request, at most 100.
    """

    wire: Wire
    policy: RetryPolicy
    executor: Executor
    batch_size: int = MAX_KEYS_PER_REQUEST

    def read(self, wanted: Sequence[TableKeys]) -> Found:
        """The items of all keys that exist.

        Raises:
            IncompleteReadError: keys were left unread at the deadline; names tables and counts.
            ResourceNotFoundError: a table does not exist.
            AwsError: AWS refused the request.
        """
        requests = list(_requests(wanted, self.batch_size))
        found: Found = {keys.table: {} for keys in wanted}
        unread: dict[str, int] = {}
        cause: Exception | None = None
        run = map if len(requests) == 1 else self.executor.map
        for part, leftover in run(self._read_one, requests):
            for table, items in part.items():
                found[table].update(items)
            if leftover is not None:
                cause = leftover.cause or leftover
                for table, entry in leftover.pending.items():
                    unread[table] = unread.get(table, 0) + len(entry["Keys"])
        if unread:
            raise _incomplete(unread, self.policy, cause) from cause
        return found

    def _read_one(self, request: Pending) -> tuple[Found, Leftover | None]:
        part: Found = {}
        try:
            for answer in drain(
                self.wire, "BatchGetItem", request, "UnprocessedKeys", self.policy
            ):
                for table, items in answer.get("Responses", {}).items():
                    part.setdefault(table, {}).update((item[KEY]["B"], item) for item in items)
        except Leftover as leftover:
            return part, leftover
        return part, None


def _requests(wanted: Iterable[TableKeys], batch_size: int) -> Iterable[Pending]:
    """Merge the keys of all tables into requests of at most `batch_size` keys."""
    request: Pending = {}
    room = batch_size
    for entry in wanted:
        start = 0
        while start < len(entry.keys):
            taken = entry.keys[start : start + room]
            request[entry.table] = _keys_of_table(taken, entry.consistent)
            start += len(taken)
            room -= len(taken)
            if room == 0:
                yield request
                request, room = {}, batch_size
    if request:
        yield request


def _keys_of_table(keys: Iterable[str], consistent: bool) -> Pending:
    entry: Pending = {"Keys": [{KEY: {"B": key}} for key in keys]}
    if consistent:
        entry["ConsistentRead"] = True
    return entry


def _incomplete(
    unread: dict[str, int], policy: RetryPolicy, cause: Exception | None
) -> IncompleteReadError:
    tables = ", ".join(f"{table} ({count} keys)" for table, count in sorted(unread.items()))
    why = f" Last answer: {cause}" if cause is not None else ""
    return IncompleteReadError(
        f"Could not read {tables} within {policy.deadline_s:g} s or "
        f"{policy.max_failures or 'any number of'} failed attempts.{why} Raise "
        "`read_deadline_ms` or the table's capacity, or read fewer keys at once.",
        unread=unread,
    )
