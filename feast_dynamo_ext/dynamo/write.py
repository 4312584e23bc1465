"""Writes rows: packs Feast's, and sends many requests at once until each row is settled."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import RepeatedValue
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from feast_dynamo_ext.arrow_types import FIELD_VALUE_TYPE
from feast_dynamo_ext.columns import ENTITYLESS_JOIN_KEYS, ENTITYLESS_VALUES
from feast_dynamo_ext.dynamo.keys import KeyEncoder
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, pack
from feast_dynamo_ext.dynamo.newest_wins import (
    Deletion,
    WriteStrategy,
    by_partiql,
    by_put_item,
    choose_strategy,
    delete_item,
)
from feast_dynamo_ext.dynamo.retry import Transport, UnprocessedItems, drain
from feast_dynamo_ext.dynamo.row_batch import Outcome, in_batches, keys_of
from feast_dynamo_ext.errors import ColumnTypeError, WindowError
from feast_dynamo_ext.timestamps import micros_of
from feast_dynamo_ext.view_settings import refuse_derived

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.dynamo.encoding.requests import Deletions, Order
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.limiter import AdaptiveLimiter
    from feast_dynamo_ext.dynamo.retry import RetryPolicy
    from feast_dynamo_ext.dynamo.row_batch import RowBatch

    Work = Callable[[Transport, Any], Awaitable[Outcome]]
    Progress = Callable[[int], Any] | None
    OnOutcome = Callable[[Outcome], Any] | None


NULL = ValueProto()
MICROSECOND = timedelta(microseconds=1)

FeastRow = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]
"""Entity key, values by feature name, event time, created time: as Feast writes rows."""


def schema_of_rows(view: Any, data: Iterable[FeastRow]) -> RowSchema:
    """The view's schema, and any further values that rows carry (on-demand views do).

    Raises:
        ConfigError: the view has no rows of its own.
    """
    refuse_derived(view)
    declared = RowSchema.from_view(view)
    known = set(declared.names)
    extra: dict[str, str] = {}
    for _, values, _, _ in data:
        if values.keys() <= known:
            continue
        for name in values.keys() - known:
            kind = FIELD_VALUE_TYPE.get(values[name].WhichOneof("val") or "")
            extra[name] = kind or extra.get(name, "UNKNOWN")
    names = sorted(extra)
    return RowSchema(
        declared.names + tuple(names), declared.types + tuple(extra[name] for name in names)
    )


def packed_rows(view: str, schema: RowSchema, data: Iterable[FeastRow]) -> Iterator[Row]:
    """Rows of Feast, packed.

    Raises:
        EntityKeyError: a key that cannot be a key.
        ColumnTypeError: a row without event time, or with a time that items cannot hold.
    """
    encoders: dict[tuple[str, ...], KeyEncoder] = {}
    for at, (entity_key, values, event_time, created_time) in enumerate(data):
        # A push to a view without entities comes with no keys at all.
        join_keys = tuple(entity_key.join_keys) or ENTITYLESS_JOIN_KEYS
        encode = encoders.get(join_keys)
        if encode is None:
            encode = encoders[join_keys] = KeyEncoder(join_keys, view)
        yield Row(
            encode(entity_key.entity_values or ENTITYLESS_VALUES),
            _packed(values, schema.names),
            _event_us(event_time, at, view),
            _created_us(created_time, at, view),
        )


def _event_us(event_time: datetime | None, at: int, view: str) -> int:
    # NaT, as pandas has a time that is missing, is no number of microseconds: it is not itself.
    if event_time is None or event_time != event_time:  # noqa: PLR0124
        raise ColumnTypeError(
            f"Feature view `{view}`: row {at} (counted from 0) has no event time. Nothing was "
            "written. Fill it, or drop the row."
        )
    return _exact_us(event_time, at, view)


def _created_us(created_time: datetime | None, at: int, view: str) -> int | None:
    if created_time is None or created_time != created_time:  # noqa: PLR0124 - NaT
        return None
    return _exact_us(created_time, at, view)


def _exact_us(moment: datetime, at: int, view: str) -> int:
    # pandas' times are Python's, but for their nanoseconds; see `timestamps.micros`.
    if type(moment) is not datetime and getattr(moment, "nanosecond", None):
        raise ColumnTypeError(
            f"Feature view `{view}`: a time of row {at} (counted from 0) has a part below a "
            "microsecond, which the online store does not hold. Nothing was written. Round it."
        )
    return micros_of(moment)


def latest_event_us(config: RepoConfig) -> int | None:
    """The last event time that may be written now, in microseconds; None for no limit."""
    seconds = getattr(config.online_store, "max_future", None)
    return None if seconds is None else int((time.time() + seconds) * 1_000_000)


def refuse_future(ahead: int, rows: int, view: str) -> None:
    """Refuse rows that are too far ahead: no current row would replace them.

    Args:
        ahead: how many are.
        rows: of how many.
        view: name of the feature view.

    Raises:
        WindowError: there are any.
    """
    if ahead:
        raise WindowError(
            f"Feature view `{view}`: {ahead:,} of {rows:,} rows have event times further in the "
            "future than the online store's `max_future`. Nothing was written: such a row would "
            "win against all that come before its time. Correct the event times (and their time "
            "zone), or raise `max_future`; null is for feeds of forecasts."
        )


def _packed(values: Mapping[str, ValueProto], names: Sequence[str]) -> bytes:
    try:
        packed: bytes = RepeatedValue(val=map(values.__getitem__, names)).SerializeToString()
    except (KeyError, TypeError):
        # A row may lack a value, or have None for it.
        return pack([values.get(name) or NULL for name in names])
    return packed


NOTED_S = 48 * 3_600
"""How long an event's place says that it was deleted: twice as long as streams keep changes."""


def _each_deletion(deletions: Deletions, now_s: int) -> Iterator[Deletion]:
    sorts: Sequence[bytes | None] = [None] * len(deletions)
    if deletions.sorts is not None:
        sorts = deletions.sorts.to_pylist()
    keys, times = deletions.keys.to_pylist(), deletions.written_us.to_pylist()
    for key, written_us, sort in zip(keys, times, sorts, strict=True):
        is_noted = deletions.is_noted and written_us // 1_000_000 + NOTED_S > now_s
        yield Deletion(key, written_us, sort, now_s + NOTED_S if is_noted else None)


T = TypeVar("T")

WriteMethod = Literal["overwrite", "auto", "partiql", "put_item"]
"""Replace whatever is there, or keep newer rows: by the way that works, or by a given one."""


@dataclass(frozen=True)
class Writer:
    """Writes items. Safe to share between threads and event loops.

    Attributes:
        transport: the connection.
        policy: retries and deadline of one request.
        workers: requests of one write that are in flight at once.
        limiter: makes them fewer; None for as many as `workers`.
        strategies: what has been learnt of each table.
    """

    transport: Transport
    policy: RetryPolicy
    workers: int = 8
    limiter: AdaptiveLimiter | None = None
    strategies: dict[str, WriteStrategy] = field(default_factory=dict, repr=False)

    def limited_by(self, limiter: AdaptiveLimiter) -> Writer:
        """The same writer, of one table, with as many requests in flight as a limiter allows."""
        # A run waits for what is throttled as long as it takes: its own limiter sets the pace.
        policy = replace(self.policy, budget=None, limiter=None)
        return replace(self, policy=policy, workers=limiter.most, limiter=limiter)

    async def write(
        self,
        table: str,
        items: Iterable[JsonItem],
        progress: Progress = None,
        method: WriteMethod = "overwrite",
        order: Order = "event",
        optional: tuple[str, ...] = (),
    ) -> Outcome:
        """Write all items.

        Args:
            table: table name.
            items: items with distinct keys; taken as they are sent, so they may be a generator.
            progress: called with the number of rows that are settled, after each request.
            method: "overwrite" replaces whatever is there; the others keep newer rows.
            order: which rows are newer: those of later event times, or those written later.
            optional: attributes that items may lack: see `statement`.

        Returns:
            How many rows were written, and how many the table had newer rows of.

        Raises:
            IncompleteWriteError: rows that could not be written, named. All others are settled.
            ResourceNotFoundError: the table does not exist.
            AwsError: AWS refused the request.
        """
        on_outcome = None if progress is None else lambda outcome: progress(outcome.settled)
        batches = in_batches(items, order, optional)
        return (await self.write_batches(table, batches, on_outcome, method)).checked(table)

    async def delete(
        self, table: str, deletions: Deletions, on_outcome: OnOutcome = None
    ) -> Outcome:
        """Delete rows of entities, but for those that were written after the deletion.

        Where an event of a series was deleted within the last `NOTED_S`, its place says so for as
        long, and takes nothing that was written before.

        Args:
            table: table name.
            deletions: the entities, or events, and when they were deleted.
            on_outcome: given the outcome of each request.

        Returns:
            As `written` how many entities have no row any more, as `older` how many kept one.

        Raises: as `write`, but for IncompleteWriteError.
        """
        now_s = int(time.time())

        async def delete(transport: Transport, batch: Deletion) -> Outcome:
            return await delete_item(transport, table, batch, self.policy)

        return await self._each(delete, _each_deletion(deletions, now_s), on_outcome)

    async def write_batches(
        self, table: str, batches: Iterator[RowBatch], on_outcome: OnOutcome, method: WriteMethod
    ) -> Outcome:
        """The same for rows in batches; `on_outcome` is given the outcome of each request.

        Rows that could not be written are in the outcome.

        Raises: as `write`, but for IncompleteWriteError.
        """
        if method == "overwrite":
            return await self._each(partial(self._overwrite, table), batches, on_outcome)
        return await self._keep_newest(table, batches, on_outcome, method)

    async def _keep_newest(
        self, table: str, batches: Iterator[RowBatch], on_outcome: OnOutcome, method: WriteMethod
    ) -> Outcome:
        state = self.strategies.setdefault(table, WriteStrategy())
        done = Outcome()
        if method == "auto":
            if state.is_open(self.policy.clock()) and (first := next(batches, None)) is not None:
                find = partial(choose_strategy, table=table, policy=self.policy, state=state)
                done, is_left = await self._within_limit(find, first)
                batches = chain([first] if is_left else [], batches)
                if on_outcome is not None and not is_left:
                    on_outcome(done)
            # None: neither way answers at the moment.
            method = state.chosen or "partiql"
        if method == "put_item":
            single_row_batches = chain.from_iterable(
                batch.single_row_batches() for batch in batches
            )
            return done + await self._each(
                partial(self._put_newest, table), single_row_batches, on_outcome
            )
        work = partial(self._update_older, table, state)
        return done + await self._each(work, batches, on_outcome)

    async def _each(self, work: Work, batches: Iterator[Any], on_outcome: OnOutcome) -> Outcome:
        """Do the work on each batch, several at once."""
        outcomes: list[Outcome] = []
        failed: list[BaseException] = []

        async def unless_failed(transport: Transport, batch: Any) -> Outcome:
            # It may have waited long for its turn.
            return Outcome() if failed else await work(transport, batch)

        async def in_turn() -> None:
            # What `batches` or `on_outcome` raise ends the write too: else rows would be left out.
            try:
                while not failed and (batch := next(batches, None)) is not None:
                    outcome = await self._within_limit(unless_failed, batch)
                    outcomes.append(outcome)
                    if on_outcome is not None:
                        on_outcome(outcome)
            except BaseException as error:
                failed.append(error)
                raise

        # All of them end before an error is raised: none is left behind in flight.
        await asyncio.gather(*(in_turn() for _ in range(self.workers)), return_exceptions=True)
        if failed:
            raise failed[0]
        return sum(outcomes, Outcome())

    async def _within_limit(self, work: Callable[[Transport, Any], Awaitable[T]], batch: Any) -> T:
        if self.limiter is None:
            return await work(self.transport, batch)
        async with self.limiter.turn(self.transport, batch.units) as turn:
            return await work(turn, batch)

    async def _overwrite(self, table: str, transport: Transport, batch: RowBatch) -> Outcome:
        puts = batch.puts()
        try:
            await drain(
                transport, "BatchWriteItem", {table: puts}, "UnprocessedItems", self.policy
            )
        except UnprocessedItems as leftover:
            left = (
                batch.keys(range(len(batch)))
                if leftover.pending[table] is puts
                else keys_of(put["PutRequest"]["Item"] for put in leftover.pending[table])
            )
            return Outcome(len(batch) - len(left), 0, left, leftover.cause or leftover)
        return Outcome(len(batch))

    async def _update_older(
        self, table: str, state: WriteStrategy, transport: Transport, batch: RowBatch
    ) -> Outcome:
        return await by_partiql(transport, table, batch, self.policy, state.guess)

    async def _put_newest(self, table: str, transport: Transport, batch: RowBatch) -> Outcome:
        return await by_put_item(transport, table, batch.item(0), self.policy, batch.order)
