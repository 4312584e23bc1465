"""Entity keys as bytes, for many rows of the same join keys.

Feast's `serialize_entity_key` (version 3) spells out the join keys' names in every key it makes
and costs 6 us a row. What does not change between rows is worked out once here; the bytes are the
same, which a property test holds against Feast's function.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import ValueType

from feast_dynamo_ext.dynamo.item import MAX_KEY_BYTES, key_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feast.protos.feast.types.Value_pb2 import Value

_head = struct.Struct("<II").pack
_int32 = struct.Struct("<IIi").pack
_int64 = struct.Struct("<IIq").pack

# Looked up once: a lookup in a message's enum costs as much as an encoding.
STRING: int = ValueType.STRING
BYTES: int = ValueType.BYTES
INT32: int = ValueType.INT32
INT64: int = ValueType.INT64
UNIX_TIMESTAMP: int = ValueType.UNIX_TIMESTAMP


def _string(value: Value) -> bytes:
    data: bytes = value.string_val.encode()
    return _head(STRING, len(data)) + data


def _bytes(value: Value) -> bytes:
    data: bytes = value.bytes_val
    return _head(BYTES, len(data)) + data


# One entry a type that Feast has a key encoding for: type, length in bytes, data.
ENCODINGS: dict[str | None, Callable[[Value], bytes]] = {
    "string_val": _string,
    "bytes_val": _bytes,
    "int32_val": lambda value: _int32(INT32, 4, value.int32_val),
    "int64_val": lambda value: _int64(INT64, 8, value.int64_val),
    "unix_timestamp_val": lambda value: _int64(UNIX_TIMESTAMP, 8, value.unix_timestamp_val),
}


class KeyEncoder:
    """Serializes the entity keys of one view: call it with one row's values.

    Safe to share between threads.
    """

    def __init__(self, join_keys: Sequence[str], view: str) -> None:
        """Work out what all keys share.

        Args:
            join_keys: the names, in the order in which rows have their values.
            view: name of the feature view, for errors.
        """
        self.join_keys = tuple(join_keys)
        self._view = view
        # Feast sorts the pairs by name.
        self._order = sorted(range(len(join_keys)), key=self.join_keys.__getitem__)
        self._prefix: bytes = serialize_entity_key_prefix(list(self.join_keys), 3)

    def __call__(self, values: Sequence[Value]) -> bytes:
        """The serialized entity key (version 3) of a row.

        Args:
            values: one value a join key, in the order of `join_keys`.

        Raises:
            EntityKeyError: over 2,048 bytes, null, or a type that Feast has no key encoding for.
        """
        try:
            if len(self._order) == 1:
                (value,) = values
                key = self._prefix + ENCODINGS[value.WhichOneof("val")](value)
            else:
                key = self._prefix + b"".join(
                    ENCODINGS[values[at].WhichOneof("val")](values[at]) for at in self._order
                )
        except KeyError:
            return self._by_feast(values)
        return key if len(key) <= MAX_KEY_BYTES else self._by_feast(values)

    def _by_feast(self, values: Sequence[Value]) -> bytes:
        # It raises: every key that Feast can serialize is encoded above. Its words are the same
        # wherever a key is refused.
        return key_bytes(
            EntityKey(join_keys=self.join_keys, entity_values=values), view=self._view
        )
