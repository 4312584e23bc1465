"""How the rows of a view lie in its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    from feast_dynamo_ext.dynamo.layouts.packed import DecodedItem, JsonItem, RowSchema


@dataclass(frozen=True)
class Layout:
    """What reads and writes need of a layout: functions, as reads pass them for every item.

    Attributes:
        key: the bytes of an entity's partition key; the view's name is for errors.
        put: the item of a row, with its schema and the seconds after its event time that it is
            kept, or None; the view's name is for errors; last, until when it is kept at least.
        read: the keys of a BatchGetItem request, of partition keys in base64.
        decode: what a row's item holds; the table's name is for errors.
    """

    key: Callable[[EntityKey, str], bytes]
    put: Callable[[Any, RowSchema, int | None, str, int], JsonItem]
    read: Callable[[Iterable[str]], list[JsonItem]]
    decode: Callable[[JsonItem, str], DecodedItem]
