"""What all sides need to know of a feature view's columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_NAME
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

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


class _StoredNames(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name


def stored_names(source: Any) -> Mapping[str, str]:
    """The name in a data source's files of each column that features are defined on.

    Undoes Feast's field mapping; a column that it does not rename has its own name.
    """
    return _StoredNames({new: old for old, new in (source.field_mapping or {}).items()})


def stored_times(source: Any) -> tuple[str, str | None]:
    """The names in a data source's files of its event time and, if it has one, created time."""
    names, created = stored_names(source), source.created_timestamp_column
    return names[source.timestamp_field], names[created] if created else None


WRITTEN, CHANGE = "_feast_written_at", "_feast_change"
"""Columns of a captured table's history: when a change was written, and what it was."""

CHANGE_ID = "_feast_change_id"
"""Column of a captured table's history: the id that the table's stream gave a change, by which it
is known where the stream delivers it again; null in rows of exports and scans."""

PUT, DELETE, EXPIRE, MOVE = "put", "delete", "expire", "move"
"""What a change was: an item as it then stood; or a tombstone, which holds what stood before: the
item was deleted, was deleted after its own TTL, or got another event time. In a stream's rows it
may be another join key or tie-breaker of a series, too."""

RESERVED = "_feast_"
"""How names of columns begin that are no attributes of a captured table."""


@dataclass(frozen=True)
class Tombstones:
    """How rows of a captured table's history say that items are gone.

    Attributes:
        change: the column that says what a row is; only those that are `PUT` are features.
        written: when each change was written.
        ends: changes that end an item.
        is_applied: whether they end an entity's features; else deletions are passed over.
    """

    change: str = CHANGE
    written: str = WRITTEN
    ends: frozenset[str] = frozenset({DELETE})
    is_applied: bool = True


def tombstones_of(source: Any) -> Tombstones | None:
    """How a source's rows say that items are gone; None where all rows are features."""
    found: Tombstones | None = getattr(source, "tombstones", None)
    return found
