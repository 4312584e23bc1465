"""Keeps the vectors of precomputed services equal to the rows they are made of.

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
were there before the service's first fill reads them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from feast_dynamo_ext.dynamo.entity_keys import text
from feast_dynamo_ext.dynamo.reader import TableKeys
from feast_dynamo_ext.dynamo.services.spec import (
    SERVICE_ATTRIBUTE,
    SERVICES_KEY,
    ServiceSpec,
)
from feast_dynamo_ext.dynamo.services.vectors import rows_of, to_item
from feast_dynamo_ext.errors import (
    AwsError,
    IncompleteWriteError,
    OnlineStoreError,
    ResourceNotFoundError,
    StaleVectorsError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from feast_dynamo_ext.dynamo.connection import Connection
    from feast_dynamo_ext.dynamo.item import JsonItem
    from feast_dynamo_ext.dynamo.reader import Found

logger = logging.getLogger(__name__)

T = TypeVar("T")

ENTITIES_AT_ONCE = 1_000
"""Entities whose rows of all views are in memory at once."""


async def with_vectors(
    connection: Connection, table: str, keys: Callable[[], Sequence[bytes]], write: Awaitable[T]
) -> T:
    """Write rows, then renew the vectors of their entities.

    Args:
        connection: the store's.
        table: the table that is written.
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
            await renew(connection, table, keys)
        except StaleVectorsError as stale:
            # Rows are missing, which matters more; writing them again mends both.
            raise incomplete from stale
        raise
    await renew(connection, table, keys)
    return outcome


async def renew(connection: Connection, table: str, keys: Callable[[], Sequence[bytes]]) -> None:
    """Renew the vectors of entities whose rows of one table were just written.

    Args:
        connection: the store's.
        table: the table that was written.
        keys: gives their distinct serialized entity keys.

    Raises:
        StaleVectorsError: the rows are written, but vectors are not as they are now.
    """
    try:
        marks = await read_marks(connection, [table])
    except (OnlineStoreError, AwsError) as error:
        raise _stale(table, "its precomputed services", len(keys()), error) from error
    services = services_of(marks.get(table, {}))
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
    """Write the vectors of entities anew, from their rows of now.

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
