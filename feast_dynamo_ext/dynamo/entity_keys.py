"""From Feast's join keys to the keys of items."""

from __future__ import annotations

from binascii import b2a_base64
from typing import TYPE_CHECKING, Any

from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_NAME
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feast_dynamo_ext.errors import EntityKeyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.dynamo.views import KnownView

# Feast reads and writes views without entities under this one key.
ENTITYLESS_JOIN_KEYS, ENTITYLESS_VALUES = (DUMMY_ENTITY_ID,), (Value(string_val=""),)
ENTITYLESS_KEY = EntityKey(join_keys=ENTITYLESS_JOIN_KEYS, entity_values=ENTITYLESS_VALUES)


def join_keys(view: Any) -> tuple[str, ...]:
    """The join keys of a feature view; none for a view without entities."""
    if list(view.entities) == [DUMMY_ENTITY_NAME]:
        return ()
    return tuple(column.name for column in view.entity_columns)


def request_columns(view: Any) -> tuple[tuple[str, str], ...]:
    """(join key, the request's column that holds it): a projection may rename columns."""
    renamed: Mapping[str, str] = view.projection.join_key_map
    return tuple((name, renamed.get(name, name)) for name in join_keys(view))


def keys_of_request(
    view: KnownView, values: Mapping[str, Sequence[Value]], rows: int
) -> tuple[str | None, ...]:
    """The key of each row of a request, in base64; None where a join key is null.

    Args:
        view: the feature view.
        values: the request's columns.
        rows: number of rows of the request.

    Raises:
        EntityKeyError: the request has no rows or lacks a join key of the view, or a key is too
            long.
    """
    if not rows:
        raise EntityKeyError(
            f"The request for feature view `{view.answers_as}` has no entity rows. "
            "Pass at least one, with the view's join keys."
        )
    missing = [column for _, column in view.columns if column not in values]
    if missing:
        raise EntityKeyError(
            f"Feature view `{view.answers_as}` needs the join keys {missing}, which "
            f"the request lacks; it has {sorted(values)}. Add them to every entity row."
        )
    encode = view.encode
    if not view.columns:
        return (text(encode(ENTITYLESS_VALUES)),) * rows
    return tuple(
        [
            None if None in [value.WhichOneof("val") for value in row] else text(encode(row))
            for row in zip(*[values[column] for _, column in view.columns], strict=True)
        ]
    )


def text(key: bytes) -> str:
    """A key as DynamoDB's JSON has it."""
    return b2a_base64(key, newline=False).decode()
