"""Items -> the lines of the files that DynamoDB reads from S3, a column at a time.

A line of an import is ``{"Item":{...}}``. A bulk put takes a condition with each line, under the
names that PutItem has for it; so the newest row wins there by the very condition of
`dynamo/statements.py`, created time included.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.dynamo.item import CREATED_TIME, EVENT_TIME
from feast_dynamo_ext.dynamo.statements import IS_NEW, IS_OLDER, NAMES, TIE, TIE_WITHOUT_CREATED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.dynamo.item import JsonItem

KIND = pa.large_binary()
JOINED_BY_NOTHING = pa.scalar(b"", KIND)

# Base64 holds no quote, so a name in quotes occurs once in an item, whatever its values are.
NUMBER = r'"{name}":\{{"N":"(?P<number>[^"]*)"\}}'

NEVER_HOLDS = f"attribute_exists(#k) AND {IS_NEW}"
"""A condition that no item meets."""


def line(item: JsonItem, condition: Mapping[str, Any] | None = None) -> pa.LargeBinaryArray:
    """The line of one item that is no row."""
    text = json.dumps({"Item": item, **(condition or {})}, separators=(",", ":"))
    # The same to any JSON parser but moto's, which takes an escaped quote for the text's end.
    text = text.replace(r"\"", r"\u0022")
    return pa.array([f"{text}\n".encode()], KIND)


def plain_lines(items: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """Lines without condition: what an import takes, and a bulk put that overwrites.

    Args:
        items: items as DynamoDB JSON, one a value.
    """
    return _joined(b'{"Item":', items, b"}\n")


def newest_wins_lines(items: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """Lines of a bulk put that replace only older rows.

    Args:
        items: as `plain_lines`.

    Raises:
        ValueError: an item without event time.
    """
    event = _number(items, EVENT_TIME)
    if event.null_count:
        raise ValueError(f"{event.null_count} items have no `{EVENT_TIME}`: they are not rows")
    created = _number(items, CREATED_TIME)
    condition = pc.if_else(
        pc.is_null(created),
        _joined(_condition(TIE_WITHOUT_CREATED), event, b'"}}}\n'),
        _joined(_condition(TIE), event, b'"},":c":{"N":"', pc.fill_null(created, b""), b'"}}}\n'),
    )
    return _joined(b'{"Item":', items, condition)


def _condition(tie: str) -> bytes:
    """What stands between an item and the event time that is compared."""
    text = json.dumps(
        {
            "ConditionExpression": f"{IS_NEW} OR {IS_OLDER} OR {tie}",
            "ExpressionAttributeNames": NAMES,
        },
        separators=(",", ":"),
    )
    return f',{text[1:-1]},"ExpressionAttributeValues":{{":t":{{"N":"'.encode()


def _joined(*parts: bytes | pa.Array) -> pa.LargeBinaryArray:
    columns = [pa.scalar(part, KIND) if isinstance(part, bytes) else part for part in parts]
    return pc.binary_join_element_wise(*columns, JOINED_BY_NOTHING)


def _number(items: pa.LargeBinaryArray, name: str) -> pa.LargeBinaryArray:
    """The digits of one attribute; null where an item lacks it."""
    found = pc.extract_regex(items, NUMBER.format(name=name))
    # `field` would not say so where the struct as a whole is null.
    return found.flatten()[0].cast(KIND)
