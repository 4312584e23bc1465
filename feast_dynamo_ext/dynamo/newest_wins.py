"""Writes a row only where the table does not hold a newer one of its key.

Newer is the greater (event time, created time); a row without created time is older than any of
its event time that has one. A row that is as old replaces: a second materialization with corrected
values goes through, and so does a request that is sent again because its answer was lost.

By PartiQL, 25 rows a request. No statement means "insert, or replace if older", so a row takes up
to three, each atomic:

========  =======================  ==========================================================
try       answer                   what follows
========  =======================  ==========================================================
UPDATE    done                     written
UPDATE    condition failed         with the row it met: older than that one. Without: INSERT
INSERT    done                     written
INSERT    duplicate                a row is there, newer or not: REPLACE
REPLACE   done                     written (REPLACE is the same statement as UPDATE)
REPLACE   condition failed         older than the row that was there
========  =======================  ==========================================================

Two writers, 10:05 and 10:07, on a key that is not there; each statement compares with what the
table holds at that moment, so whatever the order, the newer row ends up in it::

    10:05  UPDATE: failed                  INSERT: done
    10:07           UPDATE: failed                       INSERT: duplicate  REPLACE: done
    table  -        -                      10:05         10:05              10:07

An answer is lost, another writer comes between, the request is sent again::

    10:05  UPDATE: done (lost)                        UPDATE again: failed, older
    10:07                       UPDATE: done
    table  10:05                10:07                 10:07

Nothing is added up and nothing is ever replaced by an older row, so sending again can neither
double nor undo. Of rows with equal times the one that arrives last stays. A row that is deleted
between INSERT and REPLACE counts as older, as if it had been replaced first and then deleted.

By PutItem, one row a request with the same condition: for servers without PartiQL (moto) and
identities that may not use it. Service reference:
https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchExecuteStatement.html

PartiQL is tried with real rows. Only where it is refused or fails, and a PutItem of the same rows
is answered, is PutItem taken: an outage that hits both decides nothing. What was decided against
PartiQL is looked at again after ten minutes, so that neither a passing failure nor a policy that
has been mended makes writes slow for as long as the process lives. Writing rows by both ways does
no harm: the second finds rows that are as old as its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from feast_dynamo_ext.aws import aws_error
from feast_dynamo_ext.dynamo.encoding.requests import (
    Try,
    delete_request,
    end_request,
    put_request,
)
from feast_dynamo_ext.dynamo.retry import PASSING, no_table, send
from feast_dynamo_ext.dynamo.row_batch import Outcome, keys_of
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    ResourceNotFoundError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.dynamo.encoding.requests import Order
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.retry import RetryPolicy, Transport
    from feast_dynamo_ext.dynamo.row_batch import RowBatch
    from feast_dynamo_ext.dynamo.transport import Answer


# A statement's error has a code of its own, which here becomes the one a request would have had.
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchStatementError.html
REQUEST_CODE = {
    "ProvisionedThroughputExceeded": "ProvisionedThroughputExceededException",
    "ThrottlingError": "ThrottlingException",
    "RequestLimitExceeded": "RequestLimitExceeded",
    "InternalServerError": "InternalServerError",
    "TransactionConflict": "TransactionConflictException",
    "ResourceNotFound": "ResourceNotFoundException",
    "AccessDenied": "AccessDeniedException",
    "ValidationError": "ValidationException",
    "ItemCollectionSizeLimitExceeded": "ItemCollectionSizeLimitExceededException",
}
CONFLICTS = {"TransactionConflictException", "ReplicatedWriteConflictException"}
# Of one row; the others of its batch may well be written.
ROW_REFUSED = {"ValidationException", "ItemCollectionSizeLimitExceededException"}


@dataclass
class Guess:
    """Which statement to try first: that which more rows of the last batch needed."""

    rows_are_new: bool = False


@dataclass
class Batch:
    """Where the rows of one batch are, by their places in it.

    Attributes:
        rows: the rows.
        todo: places with what is tried next.
        written: how many are written.
        inserted: how many of those were not there before.
        older: how many the table has a newer one of.
        refused: rows that will never be written.
        cause: why the last refused or waiting one is that.
    """

    rows: RowBatch
    todo: list[tuple[int, Try]]
    written: int = 0
    inserted: int = 0
    older: int = 0
    refused: list[int] = field(default_factory=list)
    cause: AwsError | None = None

    def outcome(self) -> Outcome:
        """What became of the rows, with those still to do as unwritten."""
        left = self.rows.keys([*self.refused, *(row for row, _ in self.todo)])
        return Outcome(self.written, self.older, left, self.cause if left else None)


async def by_partiql(
    transport: Transport, table: str, rows: RowBatch, policy: RetryPolicy, guess: Guess
) -> Outcome:
    """Write up to 25 rows with distinct keys.

    Args:
        transport: the connection.
        table: table name.
        rows: the rows.
        policy: when to send again and when to give up.
        guess: which statement to try first; brought up to date.

    Raises:
        ResourceNotFoundError: the table does not exist.
        AwsError: AWS refused the request for a reason that trying again does not mend.
    """
    attempts = policy.start()
    first = Try.INSERT if guess.rows_are_new else Try.UPDATE
    batch = Batch(rows, [(row, first) for row in range(len(rows))])
    while batch.todo:
        body = {"Statements": rows.statements(table, batch.todo)}
        try:
            answer = await send(transport, "BatchExecuteStatement", body, [table], attempts)
        except PASSING as failure:
            batch.cause = failure
            return batch.outcome()
        if _take(batch, answer, table):
            if isinstance(batch.cause, ThrottledError):
                attempts.throttled([table])
            if not await attempts.wait():
                return batch.outcome()
    guess.rows_are_new = batch.inserted * 2 > len(rows)
    return batch.outcome()


def _take(batch: Batch, answer: Answer, table: str) -> bool:
    """Sort the rows by their answers; whether some must wait before they are tried again."""
    tried, batch.todo = batch.todo, []
    must_wait = False
    for (row, how), response in zip(tried, answer["Responses"], strict=True):
        error = response.get("Error")
        if error is None:
            batch.written += 1
            batch.inserted += how is Try.INSERT
        elif error["Code"] == "DuplicateItem":
            batch.todo.append((row, Try.REPLACE))
        elif error["Code"] == "ConditionalCheckFailed":
            # Its place in the answer is not settled: the service model has both.
            met = error.get("Item") or response.get("Item")
            if how is Try.REPLACE or met:
                batch.older += 1
            else:
                batch.todo.append((row, Try.INSERT))
        else:
            batch.cause = _error_of(error, table)
            if _is_passing(batch.cause):
                must_wait = True
                batch.todo.append((row, how))
            else:
                batch.refused.append(row)
    return must_wait


def _error_of(error: Mapping[str, Any], table: str) -> AwsError:
    """The exception of a statement's error.

    Raises:
        ResourceNotFoundError: there is no table, for any row.
        AccessDeniedError: the identity may not do this, with any row.
    """
    found = aws_error(
        REQUEST_CODE.get(error["Code"], error["Code"]),
        error.get("Message", "no message"),
        service="dynamodb",
        operation="BatchExecuteStatement",
        resource=table,
    )
    if isinstance(found, ResourceNotFoundError):
        raise no_table(found, [table])
    if isinstance(found, AccessDeniedError):
        raise found
    return found


def _is_passing(error: AwsError) -> bool:
    return isinstance(error, PASSING) or error.code in CONFLICTS


async def by_put_item(
    transport: Transport, table: str, item: JsonItem, policy: RetryPolicy, order: Order
) -> Outcome:
    """Write one item.

    Raises: as `by_partiql`.
    """
    attempts = policy.start()
    while True:
        try:
            await send(transport, "PutItem", put_request(table, item, order), [table], attempts)
        except PASSING as failure:
            return Outcome(unwritten=keys_of([item]), cause=failure)
        except AwsError as error:
            if error.code == "ConditionalCheckFailedException":
                return Outcome(older=1)
            if error.code in CONFLICTS and await attempts.wait():
                continue
            if error.code in CONFLICTS | ROW_REFUSED:
                return Outcome(unwritten=keys_of([item]), cause=error)
            raise
        return Outcome(written=1)


@dataclass(frozen=True)
class Deletion:
    """One row to be deleted, as a request of its own: a batch has no conditions.

    Attributes:
        key: serialized entity key.
        written_us: when the deletion was written, microseconds since 1970 UTC.
        sort: of one event of a series, its sort key.
        until_s: of an event, until when its place says that it was ended, seconds since 1970 UTC;
            None for not at all.
        units: write units.
    """

    key: bytes
    written_us: int
    sort: bytes | None = None
    until_s: int | None = None
    units: int = 1

    def request(self, table: str) -> tuple[str, dict[str, Any]]:
        """The operation, and what it takes."""
        if self.sort is None or self.until_s is None:
            return "DeleteItem", delete_request(table, self.key, self.written_us, self.sort)
        request = end_request(table, self.key, self.written_us, self.sort, self.until_s)
        return "PutItem", request


async def delete_item(
    transport: Transport, table: str, deletion: Deletion, policy: RetryPolicy
) -> Outcome:
    """Delete one entity's row, or one event, unless one was written there after the deletion.

    An answer that was lost is made good by sending again: what is gone stays gone, and what was
    written there meanwhile was written later.

    Returns:
        `written` where there is no row any more, `older` where a later one stays.

    Raises: as `by_partiql`.
    """
    attempts = policy.start()
    operation, request = deletion.request(table)
    key = deletion.key
    while True:
        try:
            await send(transport, operation, request, [table], attempts)
        except PASSING as failure:
            return Outcome(unwritten=(key,), cause=failure)
        except AwsError as error:
            if error.code == "ConditionalCheckFailedException":
                return Outcome(older=1)
            if error.code in CONFLICTS and await attempts.wait():
                continue
            if error.code in CONFLICTS | ROW_REFUSED:
                return Outcome(unwritten=(key,), cause=error)
            raise
        return Outcome(written=1)


logger = logging.getLogger(__name__)

Strategy = Literal["partiql", "put_item"]

TRY_AGAIN_S = 600.0
MAX_FAILURES = 3
"""Of PartiQL in a row, before PutItem is tried: passing trouble is over by then, mostly."""

UNSUPPORTED_CODES = {"UnknownOperationException"}


@dataclass
class WriteStrategy:
    """What this process has learnt about writing to a table.

    Attributes:
        chosen: the one that works; None before the first write.
        until_s: when that is looked at again, on the policy's clock.
        guess: which PartiQL statement to try first.
    """

    chosen: Strategy | None = None
    until_s: float = float("inf")
    guess: Guess = field(default_factory=Guess)

    def is_open(self, now_s: float) -> bool:
        """Whether the next write has to find out."""
        return self.chosen is None or now_s >= self.until_s


async def choose_strategy(
    transport: Transport, batch: RowBatch, table: str, policy: RetryPolicy, state: WriteStrategy
) -> tuple[Outcome, bool]:
    """Try which way works, on one batch, and note it in `state`.

    Returns:
        What became of the rows, and whether they are still to be written: by the way that was
        found, or patiently by PartiQL where neither answers.

    Raises:
        ResourceNotFoundError: the table does not exist.
        AwsError: AWS refused both ways.
    """
    try:
        outcome = await by_partiql(transport, table, batch, _impatient(policy), state.guess)
    except AwsError as error:
        if not isinstance(error, AccessDeniedError) and error.code not in UNSUPPORTED_CODES:
            raise
        if not await _put_item_works(transport, table, batch, policy, error):
            raise
        _take_put_item(transport, table, policy, state, error)
        return Outcome(), True
    if not isinstance(outcome.cause, AwsUnavailableError):
        if outcome.settled:
            state.chosen, state.until_s = "partiql", float("inf")
        return outcome, False
    if await _put_item_works(transport, table, batch, policy, outcome.cause):
        _take_put_item(transport, table, policy, state, outcome.cause)
    return Outcome(), True


def _impatient(policy: RetryPolicy) -> RetryPolicy:
    return replace(policy, max_failures=min(MAX_FAILURES, policy.max_failures or MAX_FAILURES))


async def _put_item_works(
    transport: Transport, table: str, batch: RowBatch, policy: RetryPolicy, refusal: AwsError
) -> bool:
    """Whether a PutItem is answered; the item, which counts for nothing yet, is put again later.

    Raises:
        AwsError: the refusal of PartiQL, where the identity may do neither.
    """
    try:
        impatient = _impatient(policy)
        outcome = await by_put_item(transport, table, batch.item(0), impatient, batch.order)
    except AccessDeniedError as error:
        raise refusal from error
    return outcome.settled == 1


def _take_put_item(
    transport: Transport, table: str, policy: RetryPolicy, state: WriteStrategy, refusal: AwsError
) -> None:
    if state.chosen != "put_item":
        # On this machine it is moto, which has no PartiQL of binary values: nothing to be done.
        is_stand_in = getattr(transport, "is_on_loopback", False)
        logger.log(
            logging.DEBUG if is_stand_in else logging.WARNING,
            "table %s: rows are written one a request (PutItem), as 25 a request (PartiQL) "
            "failed: %s If that is to stay, set `newest_wins_with: put_item`",
            table,
            refusal,
        )
    state.chosen, state.until_s = "put_item", policy.clock() + TRY_AGAIN_S
