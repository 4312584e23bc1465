"""The statements and conditions by which a row replaces older ones alone; see `newest_wins.py`.

Values are parameters, never text, so there is one text for each table and set of attributes.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.item import CREATED_TIME, EVENT_TIME, EXPIRY, KEY

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.item import JsonItem

# What an item may lack; a row without them must not keep those of the row it replaces.
OPTIONAL = (CREATED_TIME, EXPIRY)

NAMES = {"#k": KEY, "#t": EVENT_TIME, "#c": CREATED_TIME}
IS_NEW = "attribute_not_exists(#k)"
IS_OLDER = "#t < :t"
# A row of the same event time: one without created time is the oldest.
TIE = "(#t = :t AND (attribute_not_exists(#c) OR #c <= :c))"
TIE_WITHOUT_CREATED = "(#t = :t AND attribute_not_exists(#c))"


class Try(Enum):
    """What is tried with a row next."""

    UPDATE = "update"
    INSERT = "insert"
    REPLACE = "update a row that is there"


def statement(table: str, item: JsonItem, how: Try) -> dict[str, Any]:
    """One row's statement of a BatchExecuteStatement."""
    attributes = tuple(item)
    if how is Try.INSERT:
        return {"Statement": _insert(table, attributes), "Parameters": list(item.values())}
    text, parameters = _update(table, attributes)
    return {
        "Statement": text,
        "Parameters": [item[name] for name in parameters],
        # Tells a newer row from none, at no cost. DynamoDB Local does not answer it.
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


@lru_cache(10_000)
def _insert(table: str, attributes: tuple[str, ...]) -> str:
    values = ",".join(f"'{name}':?" for name in attributes)
    return f"INSERT INTO {_quoted(table)} VALUE {{{values}}}"


@lru_cache(10_000)
def _update(table: str, attributes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The text, and the names of the attributes whose values are its parameters."""
    kept = tuple(name for name in attributes if name != KEY)
    clauses = [f"SET {name}=?" for name in kept]
    clauses += [f"REMOVE {name}" for name in OPTIONAL if name not in attributes]
    has_created = CREATED_TIME in attributes
    tie = "(c IS MISSING OR c<=?)" if has_created else "c IS MISSING"
    text = (
        f"UPDATE {_quoted(table)} {' '.join(clauses)} "
        f"WHERE {KEY}=? AND ({EVENT_TIME}<? OR ({EVENT_TIME}=? AND {tie}))"
    )
    compared = (KEY, EVENT_TIME, EVENT_TIME) + ((CREATED_TIME,) if has_created else ())
    return text, kept + compared


def _quoted(table: str) -> str:
    escaped = table.replace('"', '""')
    return f'"{escaped}"'


def put_request(table: str, item: JsonItem) -> dict[str, Any]:
    """The PutItem of a row, on the condition that no newer one is there."""
    created = item.get(CREATED_TIME)
    tie = TIE_WITHOUT_CREATED if created is None else TIE
    values = {":t": item[EVENT_TIME]}
    if created is not None:
        values[":c"] = created
    return {
        "TableName": table,
        "Item": item,
        "ConditionExpression": f"{IS_NEW} OR {IS_OLDER} OR {tie}",
        "ExpressionAttributeNames": NAMES,
        "ExpressionAttributeValues": values,
    }
