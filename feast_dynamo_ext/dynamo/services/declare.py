"""Declares precomputed services in their views' tables, fills them, and takes them back.

A service is declared in its views' tables before its first vector is written, in its home last;
it is taken back from its home first, and from the others when its vectors are deleted. Whatever
is interrupted is therefore seen by the next call, and done to its end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.item import FINGERPRINT, KEY
from feast_dynamo_ext.dynamo.reader import TableKeys
from feast_dynamo_ext.dynamo.row_batch import MAX_ITEMS_PER_REQUEST
from feast_dynamo_ext.dynamo.services.renew import (
    ENTITIES_AT_ONCE,
    declared_text,
    read_marks,
    renew_vectors,
    services_of,
)
from feast_dynamo_ext.dynamo.services.spec import (
    FILLED_ATTRIBUTE,
    SERVICE_ATTRIBUTE,
    SERVICES_KEY,
    ServiceSpec,
    is_reserved,
)
from feast_dynamo_ext.errors import (
    AwsError,
    AwsUnavailableError,
    ResourceNotFoundError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from feast_dynamo_ext.dynamo.connection import Connection
    from feast_dynamo_ext.dynamo.wire import Answer

logger = logging.getLogger(__name__)


async def declare(connection: Connection, spec: ServiceSpec, *, replace: bool) -> bool:
    """Name a service in its views' tables, so that all writers keep its vectors.

    Args:
        connection: the store's.
        spec: the service as it is now.
        replace: whether a service of this name that was another may be replaced; its vectors are
            deleted then, which reads its whole home table.

    Returns:
        Whether the service is declared, but not every entity has got its vector yet (`fill`).
    """
    marks = await read_marks(connection, spec.tables)
    held = [declared_text(marks.get(table, {}), spec) for table in spec.tables]
    if any(text != spec.text for text in held):
        if any(text is not None for text in held):
            if not replace:
                return False
            for text in {text for text in held if text is not None}:
                await retire(connection, ServiceSpec.parse(text))
        for table in reversed(spec.tables):
            await _set(connection, table, SERVICE_ATTRIBUTE + spec.service, {"S": spec.text})
        return True
    filled = marks[spec.home].get(FILLED_ATTRIBUTE + spec.service, {}).get("B")
    return filled != spec.fingerprint_text


async def fill(connection: Connection, spec: ServiceSpec) -> int:
    """Give every entity of a declared service's views its vector, where it has none.

    Reads the views' tables whole. May be interrupted and run again.

    Returns:
        How many vectors were written.
    """
    written = 0
    for table in spec.tables:
        async for page in _scanned(connection, table):
            keys = [key for key in page if not is_reserved(key)]
            for start in range(0, len(keys), ENTITIES_AT_ONCE):
                missing = await _without_vector(
                    connection, spec, keys[start : start + ENTITIES_AT_ONCE]
                )
                if missing:
                    await renew_vectors(connection, spec, missing)
                written += len(missing)
    await _set(
        connection,
        spec.home,
        FILLED_ATTRIBUTE + spec.service,
        {"B": spec.fingerprint_text},
    )
    logger.info(
        "precomputed %s vectors of feature service %s in table %s",
        written,
        spec.service,
        spec.home,
    )
    return written


async def retire(connection: Connection, spec: ServiceSpec) -> None:
    """Keep a service's vectors no longer, and delete them.

    Its home forgets it first, so that no writer adds vectors, and the other tables last: a
    retirement that was interrupted is seen, and done again.
    """
    await _forget(connection, spec.home, spec)
    deleted = await _purge(connection, spec)
    for table in spec.tables[1:]:
        await _forget(connection, table, spec)
    if deleted:
        logger.info(
            "deleted %s vectors of feature service %s from table %s",
            deleted,
            spec.service,
            spec.home,
        )


async def declared_services(connection: Connection, table: str) -> list[ServiceSpec]:
    """The services that a table's view is part of, as it was last told."""
    return services_of((await read_marks(connection, [table])).get(table, {}))


async def _without_vector(
    connection: Connection, spec: ServiceSpec, keys: Sequence[str]
) -> list[str]:
    wanted = {key: vector_key for key in keys if (vector_key := spec.vector_key(key)) is not None}
    found = await connection.reader.read([TableKeys(spec.home, tuple(wanted.values()), True)])
    return [
        key
        for key, vector_key in wanted.items()
        if found[spec.home].get(vector_key, {}).get(FINGERPRINT, {}).get("B")
        != spec.fingerprint_text
    ]


async def _purge(connection: Connection, spec: ServiceSpec) -> int:
    deleted = 0
    try:
        async for page in _scanned(connection, spec.home):
            keys = [key for key in page if key.startswith(spec.key_prefix)]
            deleted += len(keys)
            for start in range(0, len(keys), MAX_ITEMS_PER_REQUEST):
                await _delete(connection, spec.home, keys[start : start + MAX_ITEMS_PER_REQUEST])
    except ResourceNotFoundError:
        logger.debug("table %s is gone, and with it what was to be deleted", spec.home)
    return deleted


async def _delete(connection: Connection, table: str, keys: Iterable[str]) -> None:
    attempts = connection.writer.policy.start()
    pending: dict[str, Any] = {
        table: [{"DeleteRequest": {"Key": {KEY: {"B": key}}}} for key in keys]
    }
    while pending:
        answer = await _call(connection, "BatchWriteItem", {"RequestItems": pending}, table)
        pending = answer.get("UnprocessedItems") or {}
        if pending and not await attempts.wait():
            raise ThrottledError(
                f"Table {table}: {len(pending[table])} vectors could not be deleted before the "
                "deadline. Run it again, or raise the table's capacity.",
                service="dynamodb",
                operation="BatchWriteItem",
            )


async def _scanned(connection: Connection, table: str) -> AsyncIterator[list[str]]:
    """The keys of all items of a table, page by page."""
    body: dict[str, Any] = {
        "TableName": table,
        "ProjectionExpression": "#k",
        "ExpressionAttributeNames": {"#k": KEY},
        "ConsistentRead": True,
    }
    while True:
        page = await _call(connection, "Scan", body, table)
        yield [item[KEY]["B"] for item in page["Items"]]
        if not page.get("LastEvaluatedKey"):
            return
        body = {**body, "ExclusiveStartKey": page["LastEvaluatedKey"]}


async def _set(connection: Connection, table: str, name: str, value: dict[str, str]) -> None:
    await _update(
        connection,
        table,
        "SET #a = :v",
        {"#a": name},
        {"ExpressionAttributeValues": {":v": value}},
    )


async def _forget(connection: Connection, table: str, spec: ServiceSpec) -> None:
    names = {"#a": SERVICE_ATTRIBUTE + spec.service, "#d": FILLED_ATTRIBUTE + spec.service}
    is_this_one = {
        "ConditionExpression": "#a = :v",
        "ExpressionAttributeValues": {":v": {"S": spec.text}},
    }
    try:
        await _update(connection, table, "REMOVE #a, #d", names, is_this_one)
    except ResourceNotFoundError:
        logger.debug("table %s is gone, and with it what it said of %s", table, spec.service)
    except AwsError as error:
        if error.code != "ConditionalCheckFailedException":
            raise


async def _update(
    connection: Connection,
    table: str,
    expression: str,
    names: dict[str, str],
    more: dict[str, Any],
) -> None:
    body = {
        "TableName": table,
        "Key": {KEY: {"B": SERVICES_KEY}},
        "UpdateExpression": expression,
        "ExpressionAttributeNames": names,
        **more,
    }
    await _call(connection, "UpdateItem", body, table)


async def _call(connection: Connection, operation: str, body: Any, table: str) -> Answer:
    """One request, sent again under the write policy while it is throttled or unanswered."""
    attempts = connection.writer.policy.start()
    while True:
        try:
            return await connection.wire.call(operation, body, table, attempts.left_s())
        except (ThrottledError, AwsUnavailableError) as error:  # noqa: PERF203 - a request each
            may_retry = isinstance(error, ThrottledError) or attempts.failed()
            if not may_retry or not await attempts.wait():
                raise
