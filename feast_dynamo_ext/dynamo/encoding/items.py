"""Encoded rows as items, and as the parts of the requests that write them, in JSON."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.dynamo.encoding import base64
from feast_dynamo_ext.dynamo.encoding.protobuf import NOTHING, concatenated, lengths_of
from feast_dynamo_ext.dynamo.item import (
    CREATED_TIME,
    EVENT_TIME,
    EXPIRY,
    FINGERPRINT,
    KEY,
    MAX_ITEM_BYTES,
    VALUES,
    JsonItem,
    Row,
    RowSchema,
    to_item,
)
from feast_dynamo_ext.dynamo.statements import Try, statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers, Mask

    Text: TypeAlias = pa.LargeBinaryArray | pa.LargeBinaryScalar


@dataclass(frozen=True)
class EncodedRows:
    """Rows on their way into a table. Arrays of the same length, encoded column by column.

    Attributes:
        keys: serialized entity keys, distinct, without nulls.
        values: packed values, without nulls; see `item.pack`.
        event_us: event times, microseconds since 1970 UTC, without nulls.
        created_us: created times, the same, but may hold nulls; None where the source has none.
        schema: what the values stand for.
        ttl_s: the view's ttl in seconds, or None.
    """

    keys: pa.LargeBinaryArray
    values: pa.LargeBinaryArray
    event_us: pa.Int64Array
    created_us: pa.Int64Array | None
    schema: RowSchema
    ttl_s: int | None

    def __len__(self) -> int:
        return len(self.keys)

    def item_json(self) -> pa.LargeBinaryArray:
        """Each row's item, as `item.to_item` has it."""
        return concatenated(*self._item(b"", b""))

    def put_json(self) -> pa.LargeBinaryArray:
        """Each row's request of a BatchWriteItem, and a comma, see `fragments`."""
        return concatenated(*self._item(b'{"PutRequest":{"Item":', b"}},"))

    def statement_json(self, table: str, how: Try) -> pa.LargeBinaryArray:
        """Each row's statement of a BatchExecuteStatement, and a comma, see `fragments`.

        Args:
            table: table name.
            how: what is tried, see `statements.statement`.
        """
        shape = statement(table, {name: {name: ""} for name in self._names}, how)
        first, *others = [name for each in shape.pop("Parameters") for name in each]
        parts: list[Text] = [
            _text(b'{"Statement":'), self._statement_text(table, how, shape.pop("Statement")),
            _text(b',"Parameters":['), *self._json[first],
        ]  # fmt: skip
        for name in others:
            parts += self._after_comma(name, b"")
        rest = orjson.dumps(shape)[1:-1]
        return concatenated(*parts, _text(b"]" + (b"," + rest if rest else b"") + b"},"))

    def sizes(self) -> Integers:
        """Bytes of each row's item by DynamoDB's rule, see `item.item_bytes`."""
        numbers = sum(_number_bytes(self._digits[name]) for name in self._digits)
        created = len(CREATED_TIME) * self._has_created if CREATED_TIME in self._names else 0
        names = sum(len(name) for name in self._names if name != CREATED_TIME)
        blobs = lengths_of(self.keys) + lengths_of(self.values) + len(self.schema.fingerprint)
        total: Integers = names + created + numbers + blobs
        return total

    def keys_of(self, rows: Sequence[int]) -> tuple[bytes, ...]:
        """The serialized entity keys of these rows."""
        return tuple(self.keys.take(pa.array(rows, pa.int64())).to_pylist())

    def item(self, row: int) -> JsonItem:
        """One row's item."""
        item: JsonItem = orjson.loads(self._one(row).item_json()[0].as_py())
        return item

    def _one(self, row: int) -> EncodedRows:
        created = None if self.created_us is None else self.created_us.slice(row, 1)
        return EncodedRows(
            self.keys.slice(row, 1),
            self.values.slice(row, 1),
            self.event_us.slice(row, 1),
            created,
            self.schema,
            self.ttl_s,
        )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The attributes that rows may have, in an item's order."""
        created = () if self.created_us is None else (CREATED_TIME,)
        expiry = (EXPIRY,) if self.ttl_s else ()
        return (KEY, VALUES, EVENT_TIME, FINGERPRINT, *created, *expiry)

    @cached_property
    def _digits(self) -> dict[str, pa.LargeBinaryArray]:
        """The numbers of each attribute as texts; created times with their nulls."""
        digits = {EVENT_TIME: _decimal(self.event_us)}
        if self.created_us is not None:
            digits[CREATED_TIME] = _decimal(self.created_us)
        if self.ttl_s:
            seconds = self.event_us.to_numpy() // 1_000_000 + self.ttl_s + 1
            digits[EXPIRY] = _decimal(pa.array(seconds))
        return digits

    @cached_property
    def _has_created(self) -> Mask:
        mask: Mask = self._digits[CREATED_TIME].is_valid().to_numpy(zero_copy_only=False)
        return mask

    @cached_property
    def _json(self) -> dict[str, tuple[Text, ...]]:
        """Each attribute's value as parts of JSON; null where there is none."""
        json: dict[str, tuple[Text, ...]] = {
            KEY: (_text(b'{"B":"'), base64.encoded(self.keys), _text(b'"}')),
            VALUES: (_text(b'{"B":"'), base64.encoded(self.values), _text(b'"}')),
            FINGERPRINT: (_text(orjson.dumps({"B": self.schema.fingerprint_text})),),
        }
        for name, digits in self._digits.items():
            json[name] = (_text(b'{"N":"'), digits, _text(b'"}'))
        return json

    def _item(self, before: bytes, after: bytes) -> list[Text]:
        first, *others = self._names
        parts: list[Text] = [_text(before + b'{"%s":' % first.encode()), *self._json[first]]
        for name in others:
            parts += self._after_comma(name, b'"%s":' % name.encode())
        return [*parts, _text(b"}" + after)]

    def _after_comma(self, name: str, label: bytes) -> tuple[Text, ...]:
        """A comma, the label and an attribute's value; nothing where a row lacks it."""
        parts = (_text(b"," + label), *self._json[name])
        if name != CREATED_TIME or self._has_created.all():
            return parts
        return (concatenated(*parts).fill_null(NOTHING),)

    def _statement_text(self, table: str, how: Try, text: str) -> Text:
        """A row without created time has a statement of its own."""
        quoted = _text(orjson.dumps(text))
        if CREATED_TIME not in self._names or self._has_created.all():
            return quoted
        names = [name for name in self._names if name != CREATED_TIME]
        without = statement(table, {name: {} for name in names}, how)["Statement"]
        return pc.if_else(self._has_created, quoted, _text(orjson.dumps(without)))


def refuse_too_large(rows: EncodedRows, view: str) -> None:
    """Raise what `item.to_item` would raise for one of the rows, before any of them is written.

    Args:
        rows: the rows.
        view: name of the feature view, for errors.

    Raises:
        ItemTooLargeError: over DynamoDB's 400 KB an item.
    """
    for at in np.flatnonzero(rows.sizes() > MAX_ITEM_BYTES)[:1]:
        row = int(at)
        created = None if rows.created_us is None else rows.created_us[row].as_py()
        key, values = rows.keys[row].as_py(), rows.values[row].as_py()
        whole = Row(key, values, rows.event_us[row].as_py(), created)
        to_item(whole, rows.schema, rows.ttl_s, view)


def _text(data: bytes) -> pa.LargeBinaryScalar:
    return pa.scalar(data, pa.large_binary())


def _decimal(numbers: pa.Int64Array) -> pa.LargeBinaryArray:
    return numbers.cast(pa.large_string()).cast(pa.large_binary())


def _number_bytes(digits: pa.LargeBinaryArray) -> Any:
    """Half a byte a digit, one for the number itself and one for a sign; none for a null."""
    length = pc.binary_length(digits).fill_null(0).to_numpy(zero_copy_only=False)
    sign = pc.starts_with(digits, "-").fill_null(False).to_numpy(zero_copy_only=False)
    return np.where(length, (length - sign + 1) // 2 + 1 + sign, 0)
