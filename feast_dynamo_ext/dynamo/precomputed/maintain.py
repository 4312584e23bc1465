"""Declares precomputed services, fills them, and keeps their vectors equal to their rows.

Feast renews all vectors of a service after each materialize and push, one request a vector, and
only for stores it knows by name. Here every write of rows renews the vectors of these rows'
entities, whoever writes, before the write returns: each table says itself which services its view
is part of, so a writer with an old registry renews them too.

Several writers at once: a writer writes its row, then reads the entity's rows of all views, writes
the vector, and reads the rows again; where one has changed in between, it starts over::

    writer 1:  row A1 . read (A1,B0) ................ vector (A1,B0) . read (A1,B1): again
    writer 2:  ........ row B1 . read (A1,B1) . vector (A1,B1) . read (A1,B1): done

So the last vector written was made of the rows of then. All these reads are strongly consistent.

A service is declared in its views' tables before its first vector is written, in its home last.
A writer looks for services after its rows are written: either it sees the service, or the rows
were there before the service's first fill reads them. It is taken back from its home first, and
from the others when its vectors are deleted. Whatever is interrupted is therefore seen by the next
call, and done to its end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from feast_dynamo_ext.dynamo.batch_get import TableKeys
from feast_dynamo_ext.dynamo.keys import text
from feast_dynamo_ext.dynamo.layouts.packed import FINGERPRINT, KEY, schema_key
from feast_dynamo_ext.dynamo.precomputed.vectors import (
    FILLED_ATTRIBUTE,
    SERVICE_ATTRIBUTE,
    SERVICES_KEY,
    ServiceSpec,
    is_reserved,
    precomputed_services,
    rows_of,
    to_item,
)
from feast_dynamo_ext.dynamo.retry import UnprocessedItems, drain, send
from feast_dynamo_ext.dynamo.row_batch import MAX_ITEMS_PER_REQUEST, Outcome
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    IncompleteWriteError,
    OnlineStoreError,
    ResourceNotFoundError,
    StaleVectorsError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.dynamo.batch_get import Found
    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem, RowSchema


logger = logging.getLogger(__name__)


def declare_registry_services(
    store: Any, config: RepoConfig, registry: Any, view: Any, *, is_fresh: bool
) -> list[ServiceSpec]:
    """Have the vectors of a view's precomputed services kept from now on.

    Args:
        store: the DynamoOnlineStore.
        config: the repo's.
        registry: Feast's.
        view: whose services are meant.
        is_fresh: whether the registry is read anew, and services that have changed are declared
            anew; else its cache is taken, and a missing permission to declare is logged.

    Returns:
        The services of which not every entity has got its vector yet.

    Raises:
        AwsError: AWS refused.
    """
    services = precomputed_services(
        registry, config.project, view=view.name, allow_cache=not is_fresh
    )
    if not services and not is_fresh:
        return []
    try:
        declared: list[ServiceSpec] = store.declare_services(
            config, services, view, replace=is_fresh
        )
    except AccessDeniedError as error:
        if is_fresh:
            raise
        # Rows may be written all the same: nobody is answered a vector that is not kept.
        logger.warning("services of %s get no vectors: %s", view.name, error)
        return []
    return declared


T = TypeVar("T")

ENTITIES_AT_ONCE = 1_000
"""Entities whose rows of all views are in memory at once."""


async def with_vectors(
    connection: Connection,
    table: str,
    schema: RowSchema,
    keys: Callable[[], Sequence[bytes]],
    write: Awaitable[T],
) -> T:
    """Write rows, then renew the vectors of their entities.

    Args:
        connection: the store's.
        table: the table that is written.
        schema: what the rows' values stand for.
        keys: gives the rows' serialized entity keys; not called where no service needs them.
        write: writes the rows.

    Raises:
        StaleVectorsError: the rows are written, but vectors are not as they are now.
        IncompleteWriteError: as `write`; the vectors of what is written are renewed.
    """
    try:
        outcome = await write
    except IncompleteWriteError as incomplete:
        try:
            await renew(connection, table, schema, keys)
        except StaleVectorsError as stale:
            # Rows are missing, which matters more; writing them again mends both.
            raise incomplete from stale
        raise
    await renew(connection, table, schema, keys)
    return outcome


async def renew(
    connection: Connection, table: str, schema: RowSchema, keys: Callable[[], Sequence[bytes]]
) -> None:
    """Renew what stands beside rows of one table that were just written.

    That is the item of their schema, where another process has emptied the table or made it anew,
    and the vectors of their entities. One request finds out about both.

    Args:
        connection: the store's.
        table: the table that was written.
        schema: what the rows' values stand for.
        keys: gives their distinct serialized entity keys.

    Raises:
        StaleVectorsError: the rows are written, but vectors are not as they are now.
        IncompleteWriteError: the rows are written, but not their schema.
    """
    explained_by = schema_key(schema.fingerprint)
    beside = TableKeys(table, (SERVICES_KEY, explained_by), consistent=True)
    try:
        found = (await connection.reader.read([beside]))[table]
    except (OnlineStoreError, AwsError) as error:
        raise _stale(table, "its precomputed services", len(keys()), error) from error
    if explained_by not in found:
        try:
            await connection.schemas.write(table, schema, connection.writer)
        except IncompleteWriteError as error:
            # What is missing to the caller is rows that can be read.
            Outcome(unwritten=tuple(keys()), cause=error).checked(table)
    services = services_of(found.get(SERVICES_KEY, {}))
    if services:
        texts = [text(key) for key in keys()]
        for spec in services:
            await _renew_all(connection, spec, table, texts)


async def _renew_all(
    connection: Connection, spec: ServiceSpec, table: str, keys: Sequence[str]
) -> None:
    try:
        for start in range(0, len(keys), ENTITIES_AT_ONCE):
            await renew_vectors(connection, spec, keys[start : start + ENTITIES_AT_ONCE])
    except ResourceNotFoundError as error:
        # With its table went every vector, or one view: the service is not as it was.
        logger.warning(
            "the vectors of feature service %s are kept no longer, as a table of it is gone "
            "(%s). Run `feast materialize` to keep them as the service is now",
            spec.service,
            error,
        )
    except (OnlineStoreError, AwsError) as error:
        raise _stale(table, f"feature service {spec.service}", len(keys), error) from error


def services_of(item: JsonItem) -> list[ServiceSpec]:
    """The services that a table's services item names."""
    return [
        ServiceSpec.parse(value["S"])
        for name, value in sorted(item.items())
        if name.startswith(SERVICE_ATTRIBUTE)
    ]


async def renew_vectors(connection: Connection, spec: ServiceSpec, keys: Sequence[str]) -> None:
    """Write the vectors of entities anew, from their current rows.

    Raises:
        StaleVectorsError: others changed these rows until the deadline.
        OnlineStoreError: rows could not be read, or vectors not written.
    """
    attempts = connection.writer.policy.start()
    found = await _rows(connection, spec, keys)
    if declared_text(found[spec.home].get(SERVICES_KEY, {}), spec) != spec.text:
        # Not in all tables yet, or no more: there are no vectors of it.
        return
    left: Sequence[str] = keys
    while True:
        items = [
            to_item(spec, vector_key, rows_of(spec, key, found), connection.schemas)
            for key in left
            if (vector_key := spec.vector_key(key)) is not None
        ]
        await connection.writer.write(spec.home, items)
        now = await _rows(connection, spec, left)
        left = [key for key in left if rows_of(spec, key, found) != rows_of(spec, key, now)]
        if not left:
            return
        if not await attempts.wait():
            raise StaleVectorsError(
                f"the rows of {len(left):,} entities were changed by others all the time"
            )
        found = await _rows(connection, spec, left)


async def _rows(connection: Connection, spec: ServiceSpec, keys: Sequence[str]) -> Found:
    wanted = tuple(keys)
    found = await connection.reader.read(
        [
            TableKeys(table, (*wanted, SERVICES_KEY) if table == spec.home else wanted, True)
            for table in spec.tables
        ]
    )
    await connection.schemas.fetch_missing(found, connection.reader)
    return found


def _stale(table: str, what: str, count: int, error: Exception) -> StaleVectorsError:
    return StaleVectorsError(
        f"Table {table}: the rows of {count:,} entities are written, but the vectors of {what} "
        f"may be of before: {error} Write the same rows again."
    )


async def read_marks(connection: Connection, tables: Sequence[str]) -> dict[str, JsonItem]:
    """The services item of each table that has one."""
    wanted = (SERVICES_KEY,)
    found = await connection.reader.read([TableKeys(table, wanted, True) for table in tables])
    return {table: items[SERVICES_KEY] for table, items in found.items() if items}


def declared_text(item: JsonItem, spec: ServiceSpec) -> str | None:
    """What a table's services item says of a service."""
    return item.get(SERVICE_ATTRIBUTE + spec.service, {}).get("S")


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
    deletes = {table: [{"DeleteRequest": {"Key": {KEY: {"B": key}}}} for key in keys]}
    policy = connection.writer.policy
    try:
        await drain(connection.transport, "BatchWriteItem", deletes, "UnprocessedItems", policy)
    except UnprocessedItems as left:
        raise left.cause or ThrottledError(
            f"Table {table}: {len(left.pending[table])} vectors could not be deleted before the "
            "deadline. Run it again, or raise the table's capacity.",
            service="dynamodb",
            operation="BatchWriteItem",
        ) from left


async def _scanned(connection: Connection, table: str) -> AsyncIterator[list[str]]:
    """The keys of all items of a table, page by page."""
    body: dict[str, Any] = {
        "TableName": table,
        "ProjectionExpression": "#k",
        "ExpressionAttributeNames": {"#k": KEY},
        "ConsistentRead": True,
    }
    while True:
        attempts = connection.writer.policy.start()
        page = await send(connection.transport, "Scan", body, [table], attempts)
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
    attempts = connection.writer.policy.start()
    await send(connection.transport, "UpdateItem", body, [table], attempts)
