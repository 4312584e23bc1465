"""Which of the two ways of `newest_wins.py` works for a table: tried once, then remembered.

PartiQL is tried with real rows. Only where it is refused or fails, and a PutItem of the same rows
is answered, is PutItem taken: an outage that hits both decides nothing. What was decided against
PartiQL is looked at again after ten minutes, so that neither a passing failure nor a policy that
has been mended makes writes slow for as long as the process lives. Writing rows by both ways does
no harm: the second finds rows that are as old as its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from feast_dynamo_ext.dynamo.newest_wins import Guess, by_partiql, by_put_item
from feast_dynamo_ext.dynamo.outcome import Outcome
from feast_dynamo_ext.errors import AccessDeniedError, AwsError, AwsUnavailableError

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.batch import Wire
    from feast_dynamo_ext.dynamo.item import JsonItem
    from feast_dynamo_ext.dynamo.retry import RetryPolicy
    from feast_dynamo_ext.dynamo.row_batch import RowBatch

logger = logging.getLogger(__name__)

Way = Literal["partiql", "put_item"]

TRY_AGAIN_S = 600.0
MAX_FAILURES = 3
"""Of PartiQL in a row, before PutItem is tried: passing trouble is over by then, mostly."""

UNSUPPORTED_CODES = {"UnknownOperationException"}


@dataclass
class TableWay:
    """What this process has learnt about writing to a table.

    Attributes:
        way: the one that works; None before the first write.
        until_s: when that is looked at again, on the policy's clock.
        guess: which PartiQL statement to try first.
    """

    way: Way | None = None
    until_s: float = float("inf")
    guess: Guess = field(default_factory=Guess)

    def is_open(self, now_s: float) -> bool:
        """Whether the next write has to find out."""
        return self.way is None or now_s >= self.until_s


async def find_way(
    wire: Wire, batch: RowBatch, table: str, policy: RetryPolicy, state: TableWay
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
        outcome = await by_partiql(wire, table, batch, _impatient(policy), state.guess)
    except AwsError as error:
        if not isinstance(error, AccessDeniedError) and error.code not in UNSUPPORTED_CODES:
            raise
        if not await _put_item_works(wire, table, batch.item(0), policy, error):
            raise
        _take_put_item(table, policy, state, error)
        return Outcome(), True
    if not isinstance(outcome.cause, AwsUnavailableError):
        if outcome.settled:
            state.way, state.until_s = "partiql", float("inf")
        return outcome, False
    if await _put_item_works(wire, table, batch.item(0), policy, outcome.cause):
        _take_put_item(table, policy, state, outcome.cause)
    return Outcome(), True


def _impatient(policy: RetryPolicy) -> RetryPolicy:
    return replace(policy, max_failures=min(MAX_FAILURES, policy.max_failures or MAX_FAILURES))


async def _put_item_works(
    wire: Wire, table: str, item: JsonItem, policy: RetryPolicy, refusal: AwsError
) -> bool:
    """Whether a PutItem is answered; the item, which counts for nothing yet, is put again later.

    Raises:
        AwsError: the refusal of PartiQL, where the identity may do neither.
    """
    try:
        outcome = await by_put_item(wire, table, item, _impatient(policy))
    except AccessDeniedError as error:
        raise refusal from error
    return outcome.settled == 1


def _take_put_item(table: str, policy: RetryPolicy, state: TableWay, refusal: AwsError) -> None:
    if state.way != "put_item":
        logger.warning(
            "table %s: rows are written one a request (PutItem), as 25 a request (PartiQL) "
            "failed: %s If that is to stay, set `newest_wins_with: put_item`",
            table,
            refusal,
        )
    state.way, state.until_s = "put_item", policy.clock() + TRY_AGAIN_S
