"""One batch request, sent again until nothing of it is left or its deadline comes.

DynamoDB answers a batch in part when it throttles, when the answer passes 16 MB, or when one
partition's share passes 1 MB; what it left out comes back in the answer and must be asked again.
https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext.errors import (
    AwsError,
    AwsUnavailableError,
    ResourceNotFoundError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from feast_dynamo_ext.dynamo.retry import RetryPolicy
    from feast_dynamo_ext.dynamo.wire import Answer

logger = logging.getLogger(__name__)

Pending = dict[str, Any]
"""What is left to do, by table name: the RequestItems of the next request."""


class Wire(Protocol):
    """What a batch needs of the connection."""

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Answer:
        """Send one request and give back its decoded answer."""
        ...


class Leftover(Exception):  # noqa: N818 - not an error of its own: reader and writer turn it into one
    """The deadline came with something left.

    Attributes:
        pending: what is left, by table.
        cause: the last failure, if the last request failed.
    """

    def __init__(self, pending: Pending, cause: AwsError | None) -> None:
        super().__init__("DynamoDB left them unprocessed, as it does when it throttles.")
        self.pending = pending
        self.cause = cause


async def drain(
    wire: Wire,
    operation: str,
    pending: Pending,
    unprocessed: str,
    policy: RetryPolicy,
    take: Callable[[Answer], bool],
) -> None:
    """Send `pending`, then what the answer left out, until nothing is left.

    Args:
        wire: the connection.
        operation: ``BatchGetItem`` or ``BatchWriteItem``.
        pending: RequestItems of the first request.
        unprocessed: the answer's field that holds what it left out, in the form of RequestItems.
        policy: when to send again and when to give up.
        take: is given each answer; True if it was full: what it left out is then asked for at
            once, as waiting would not mend it.

    Raises:
        Leftover: the deadline came, or too many requests in a row failed.
        ResourceNotFoundError: one of the tables does not exist.
        AwsError: AWS refused the request for a reason that trying again does not mend.
    """
    attempts = policy.start()
    while pending:
        failure: AwsError | None = None
        is_full = False
        try:
            answer = await wire.call(
                operation,
                {"RequestItems": pending},
                ", ".join(sorted(pending)),
                attempts.left_s(),
            )
        except ThrottledError as error:
            failure = error
        except AwsUnavailableError as error:
            failure = error
            if not attempts.failed():
                raise Leftover(pending, failure) from error
        except ResourceNotFoundError as error:
            raise no_table(error, pending) from error
        else:
            attempts.answered()
            is_full = take(answer)
            pending = answer.get(unprocessed) or {}
        if pending and not is_full:
            logger.debug("%s: sending again for %s", operation, sorted(pending))
            if not await attempts.wait():
                raise Leftover(pending, failure) from failure


def no_table(error: AwsError, tables: Collection[str]) -> ResourceNotFoundError:
    """The error that one of the tables of a request does not exist."""
    # DynamoDB does not say which one.
    which = "one of " if len(tables) > 1 else ""
    return ResourceNotFoundError(
        f"DynamoDB table not found: {which}{', '.join(sorted(tables))}. Run `feast apply` to "
        "create it; if it exists, check `region`, `endpoint_url` and `table_name_template` in "
        "feature_store.yaml.",
        service=error.service,
        operation=error.operation,
        code=error.code,
        request_id=error.request_id,
    )
