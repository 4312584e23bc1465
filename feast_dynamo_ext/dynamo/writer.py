"""Writes rows, many requests at once, until each row is settled, or says which are not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

from feast_dynamo_ext.dynamo.batch import Leftover, Wire, drain
from feast_dynamo_ext.dynamo.newest_wins import by_partiql, by_put_item
from feast_dynamo_ext.dynamo.outcome import Outcome, keys_of
from feast_dynamo_ext.dynamo.ways import TableWay, find_way

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from feast_dynamo_ext.dynamo.item import JsonItem
    from feast_dynamo_ext.dynamo.retry import RetryPolicy

    Work = Callable[[list[JsonItem]], Awaitable[Outcome]]
    Progress = Callable[[int], Any] | None

MAX_ITEMS_PER_REQUEST = 25  # of BatchWriteItem and of BatchExecuteStatement

How = Literal["overwrite", "auto", "partiql", "put_item"]
"""Replace whatever is there, or keep newer rows: by the way that works, or by a given one."""


@dataclass(frozen=True)
class Writer:
    """Writes items. Safe to share between threads and event loops.

    Attributes:
        wire: the connection.
        policy: retries and deadline of one request.
        workers: requests of one write that are in flight at once.
        ways: what has been learnt about each table.
    """

    wire: Wire
    policy: RetryPolicy
    workers: int = 8
    ways: dict[str, TableWay] = field(default_factory=dict, repr=False)

    async def write(
        self,
        table: str,
        items: Iterable[JsonItem],
        progress: Progress = None,
        how: How = "overwrite",
    ) -> Outcome:
        """Write all items.

        Args:
            table: table name.
            items: items with distinct keys; taken as they are sent, so they may be a generator.
            progress: is told the number of rows that are settled, after each request.
            how: "overwrite" replaces whatever is there; the others keep newer rows.

        Returns:
            How many rows were written, and how many the table had newer ones of.

        Raises:
            IncompleteWriteError: rows that could not be written, named. All others are settled.
            ResourceNotFoundError: the table does not exist.
            AwsError: AWS refused the request.
        """
        rest = iter(items)
        if how == "overwrite":
            outcome = await self._each(partial(self._overwrite, table), rest, progress)
        else:
            outcome = await self._keep_newest(table, rest, progress, how)
        return outcome.checked(table)

    async def _keep_newest(
        self, table: str, items: Iterator[JsonItem], progress: Progress, how: How
    ) -> Outcome:
        state = self.ways.setdefault(table, TableWay())
        done = Outcome()
        if how == "auto":
            if state.is_open(self.policy.clock()):
                done, left = await self._find_way(table, state, items)
                items = chain(left, items)
                if progress is not None and done.settled:
                    progress(done.settled)
            # None: neither way answers at the moment.
            how = state.way or "partiql"
        if how == "put_item":
            return done + await self._each(partial(self._put_newest, table), items, progress, 1)
        work = partial(self._update_older, table, state)
        return done + await self._each(work, items, progress)

    async def _find_way(
        self, table: str, state: TableWay, items: Iterator[JsonItem]
    ) -> tuple[Outcome, list[JsonItem]]:
        first = list(islice(items, MAX_ITEMS_PER_REQUEST))
        if not first:
            return Outcome(), []
        return await find_way(self.wire, table, first, self.policy, state)

    async def _each(
        self,
        work: Work,
        items: Iterator[JsonItem],
        progress: Progress,
        size: int = MAX_ITEMS_PER_REQUEST,
    ) -> Outcome:
        """Do the work on batches of the items, several at once."""
        outcomes: list[Outcome] = []
        failed: list[BaseException] = []

        async def in_turn() -> None:
            # What `items` or `progress` raise ends the write too: else rows would be left out.
            try:
                while not failed and (batch := list(islice(items, size))):
                    outcome = await work(batch)
                    outcomes.append(outcome)
                    if progress is not None:
                        progress(outcome.settled)
            except BaseException as error:
                failed.append(error)
                raise

        # All of them end before an error is raised: none is left behind in flight.
        await asyncio.gather(*(in_turn() for _ in range(self.workers)), return_exceptions=True)
        if failed:
            raise failed[0]
        return sum(outcomes, Outcome())

    async def _overwrite(self, table: str, items: list[JsonItem]) -> Outcome:
        pending = {table: [{"PutRequest": {"Item": item}} for item in items]}
        try:
            await drain(
                self.wire,
                "BatchWriteItem",
                pending,
                "UnprocessedItems",
                self.policy,
                lambda _: False,
            )
        except Leftover as leftover:
            left = keys_of(put["PutRequest"]["Item"] for put in leftover.pending[table])
            return Outcome(len(items) - len(left), 0, left, leftover.cause or leftover)
        return Outcome(len(items))

    async def _update_older(self, table: str, state: TableWay, items: list[JsonItem]) -> Outcome:
        return await by_partiql(self.wire, table, items, self.policy, state.guess)

    async def _put_newest(self, table: str, items: list[JsonItem]) -> Outcome:
        (item,) = items
        return await by_put_item(self.wire, table, item, self.policy)
