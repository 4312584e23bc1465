"""Encoded rows as items, and as the parts of the requests that write them, in JSON.

Each fragment ends with a comma, so that fragments that follow each other are a list's elements;
the last comma is left out of a body.

Values are parameters, never text, so there is one text for each table and set of attributes.
"""

from __future__ import annotations

from binascii import b2a_base64
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.dynamo.encoding.protobuf import (
    NOTHING,
    binary,
    concat_elements,
    data_of,
    lengths_of,
    offsets_of,
)
from feast_dynamo_ext.dynamo.layouts.packed import (
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
from feast_dynamo_ext.dynamo.layouts.series import (
    ORDER,
    SORT,
    refuse_too_large_with_orders,
    time_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers, Mask

    Text: TypeAlias = pa.LargeBinaryArray | pa.LargeBinaryScalar


# What fills an element up to a whole number of groups of three bytes.
FILLS = pa.array([b"", b"\0", b"\0\0"], pa.large_binary())


def base64_of(elements: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """The base64 text of each element, padded with `=`.

    Args:
        elements: bytes, without nulls.
    """
    lengths = lengths_of(elements)
    missing = -lengths % 3
    # Elements of whole groups do not share a group, so that the text of all is that of each.
    groups = (
        concat_elements(elements, FILLS.take(pa.array(missing))) if missing.any() else elements
    )
    text = np.frombuffer(b2a_base64(data_of(groups).data, newline=False), np.uint8).copy()
    offsets = offsets_of((lengths + missing) // 3 * 4)
    _pad(text, offsets[1:], missing)
    return binary(offsets, text)


def _pad(text: np.ndarray, ends: Integers, missing: Integers) -> None:
    for count in (1, 2):
        text[ends[missing >= count] - count] = ord("=")


def json_elements(fragments: pa.LargeBinaryArray, start: int, stop: int) -> bytes:
    """Fragments as the elements of a JSON list, commas between them.

    Args:
        fragments: of `EncodedRows.put_json` or `EncodedRows.statement_json`.
        start: the first.
        stop: the one after the last.
    """
    data: bytes = data_of(fragments.slice(start, stop - start))[:-1].tobytes()
    return data


def json_elements_of_rows(fragments: pa.LargeBinaryArray, rows: Sequence[int]) -> bytes:
    """The fragments of these rows, in their order, as the elements of a JSON list."""
    return json_elements(fragments.take(pa.array(rows, pa.int64())), 0, len(rows))


# What an item may lack; a row without them must not keep those of the row it replaces.
OPTIONAL = (CREATED_TIME, EXPIRY)
KEYS = (KEY, SORT)

NAMES = {"#t": EVENT_TIME, "#c": CREATED_TIME}
# There is no item, or one that others put there, which is no row: nobody can read it as one.
IS_NEW = "attribute_not_exists(#t)"
IS_OLDER = "#t < :t"
# A row of the same event time: one without created time is the oldest.
TIE = "(#t = :t AND (attribute_not_exists(#c) OR #c <= :c))"
TIE_WITHOUT_CREATED = "(#t = :t AND attribute_not_exists(#c))"


# Of a captured table, whose items have one state at a time: what was written last is what is, of
# whatever event time. What does not say when it was written counts as written at its event time.
IS_NOT_WRITTEN_LATER = "#c <= :w OR (attribute_not_exists(#c) AND #t <= :w)"

Order = Literal["event", "written"]
"""Whether the row of the newest event time wins, or the one that was written last."""


class Try(Enum):
    """What is tried with a row next."""

    UPDATE = "update"
    INSERT = "insert"
    REPLACE = "update a row that is there"


def statement(
    table: str,
    item: JsonItem,
    attempt: Try,
    order: Order = "event",
    optional: tuple[str, ...] = (),
) -> dict[str, Any]:
    """One row's statement of a BatchExecuteStatement.

    Args:
        table: table name.
        item: the row's item.
        attempt: what is tried.
        order: which row of a key wins.
        optional: attributes that it may lack, beside those that all items may.
    """
    attributes = tuple(item)
    if attempt is Try.INSERT:
        return {"Statement": _insert(table, attributes), "Parameters": list(item.values())}
    text, parameters = _update(table, attributes, order, optional)
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
def _update(
    table: str, attributes: tuple[str, ...], order: Order, optional: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """The text, and the names of the attributes whose values are its parameters."""
    keys = tuple(name for name in KEYS if name in attributes)
    kept = tuple(name for name in attributes if name not in keys)
    clauses = [f"SET {_attribute(name)}=?" for name in kept]
    missing = (name for name in (*OPTIONAL, *optional) if name not in attributes)
    clauses += [f"REMOVE {_attribute(name)}" for name in missing]
    has_created = CREATED_TIME in attributes
    tie = "(c IS MISSING OR c<=?)" if has_created else "c IS MISSING"
    is_older = f"{EVENT_TIME}<? OR ({EVENT_TIME}=? AND {tie})"
    compared = (*keys, EVENT_TIME, EVENT_TIME) + ((CREATED_TIME,) if has_created else ())
    if order == "written":
        is_older = f"c<=? OR (c IS MISSING AND {EVENT_TIME}<=?)"
        written = CREATED_TIME if has_created else EVENT_TIME
        compared = (*keys, written, written)
    text = (
        f"UPDATE {_quoted(table)} {' '.join(clauses)} "
        f"WHERE {' AND '.join(f'{name}=?' for name in keys)} "
        f"AND ({is_older} OR {EVENT_TIME} IS MISSING)"
    )
    return text, kept + compared


def _attribute(name: str) -> str:
    """An attribute: those that all items may have are plain words."""
    return name if len(name) == 1 else _quoted(name)


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def put_request(table: str, item: JsonItem, order: Order = "event") -> dict[str, Any]:
    """The PutItem of a row, on the condition that no newer one is there."""
    created = item.get(CREATED_TIME)
    if order == "written":
        return {
            "TableName": table,
            "Item": item,
            "ConditionExpression": f"{IS_NEW} OR {IS_NOT_WRITTEN_LATER}",
            "ExpressionAttributeNames": NAMES,
            "ExpressionAttributeValues": {":w": created or item[EVENT_TIME]},
        }
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


def delete_request(
    table: str, key: bytes, written_us: int, sort: bytes | None = None
) -> dict[str, Any]:
    """The DeleteItem of an entity, on the condition that nothing was written there later.

    What others put there under its key, and is no row, is no row of the entity: it stays.

    Args:
        table: table name.
        key: serialized entity key.
        written_us: when the deletion was written, microseconds since 1970 UTC.
        sort: of one event of a series, its sort key.
    """
    return {
        "TableName": table,
        "Key": _key_of(key, sort),
        "ConditionExpression": f"attribute_not_exists({KEY}) OR {IS_NOT_WRITTEN_LATER}",
        "ExpressionAttributeNames": NAMES,
        "ExpressionAttributeValues": {":w": {"N": str(written_us)}},
    }


def end_request(
    table: str, key: bytes, written_us: int, sort: bytes, until_s: int
) -> dict[str, Any]:
    """The PutItem that ends one event, on the condition that nothing was written there later.

    In the event's place is then what says when it was ended, so that nothing that was written
    before comes back there. It has no values, and is no row to any reader.

    Args:
        table: table name.
        key: serialized entity key.
        written_us: when the deletion was written, microseconds since 1970 UTC.
        sort: the event's sort key.
        until_s: when DynamoDB may delete it, seconds since 1970 UTC.
    """
    item = {
        **_key_of(key, sort),
        EVENT_TIME: {"N": str(time_of(sort))},
        CREATED_TIME: {"N": str(written_us)},
        EXPIRY: {"N": str(until_s)},
    }
    return {
        "TableName": table,
        "Item": item,
        "ConditionExpression": f"{IS_NEW} OR {IS_NOT_WRITTEN_LATER}",
        "ExpressionAttributeNames": NAMES,
        "ExpressionAttributeValues": {":w": {"N": str(written_us)}},
    }


def _key_of(key: bytes, sort: bytes | None) -> JsonItem:
    parts = {KEY: key} if sort is None else {KEY: key, SORT: sort}
    return {name: {"B": b2a_base64(each, newline=False).decode()} for name, each in parts.items()}


@dataclass(frozen=True)
class Deletions:
    """Entities whose rows are to be deleted. Arrays of the same length, without nulls.

    Attributes:
        keys: serialized entity keys, distinct; of a series not, but together with `sorts`.
        written_us: when each deletion was written, microseconds since 1970 UTC.
        sorts: of a series the sort keys of the events that are to be deleted; else None.
        is_noted: whether the place of an event says for a while that it was ended.
    """

    keys: pa.LargeBinaryArray
    written_us: pa.Int64Array
    sorts: pa.LargeBinaryArray | None = None
    is_noted: bool = True

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class EncodedRows:
    """Rows on their way into a table. Arrays of the same length, encoded column by column.

    Attributes:
        keys: serialized entity keys, distinct, without nulls.
        values: packed values, without nulls; see `packed.pack`.
        event_us: event times, microseconds since 1970 UTC, without nulls.
        created_us: created times, the same, but may hold nulls; None where the source has none.
        schema: what the values stand for.
        ttl_s: seconds after their event times that DynamoDB keeps them; None for no limit.
        order: which row of a key wins.
        marks: further attributes by name, each with its type ("S" or "B") and its values, as
            large strings or large binaries; where they are null the item lacks the attribute.
    """

    keys: pa.LargeBinaryArray
    values: pa.LargeBinaryArray
    event_us: pa.Int64Array
    created_us: pa.Int64Array | None
    schema: RowSchema
    ttl_s: int | None
    order: Order = "event"
    marks: Mapping[str, tuple[str, pa.Array]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def item_json(self) -> pa.LargeBinaryArray:
        """Each row's item, as `packed.to_item` makes it."""
        return concat_elements(*self._item(b"", b""))

    def put_json(self) -> pa.LargeBinaryArray:
        """Each row's request of a BatchWriteItem, and a comma."""
        return concat_elements(*self._item(b'{"PutRequest":{"Item":', b"}},"))

    def statement_json(self, table: str, attempt: Try) -> pa.LargeBinaryArray:
        """Each row's statement of a BatchExecuteStatement, and a comma.

        Args:
            table: table name.
            attempt: what is tried, see `statement`.
        """
        names = {name: {name: ""} for name in self._names}
        shape = statement(table, names, attempt, self.order, self._optional)
        first, *others = [name for each in shape.pop("Parameters") for name in each]
        parts: list[Text] = [
            _text(b'{"Statement":'), self._statement_text(table, attempt, shape.pop("Statement")),
            _text(b',"Parameters":['), *self._json[first],
        ]  # fmt: skip
        for name in others:
            parts += self._after_comma(name, b"")
        rest = orjson.dumps(shape)[1:-1]
        return concat_elements(*parts, _text(b"]" + (b"," + rest if rest else b"") + b"},"))

    def sizes(self) -> Integers:
        """Bytes of each row's item by DynamoDB's rule, see `packed.item_bytes`."""
        numbers = sum(_number_bytes(self._digits[name]) for name in self._digits)
        names = sum(len(name.encode()) * self._lacking.get(name, 1) for name in self._names)
        blobs = lengths_of(self.keys) + lengths_of(self.values) + len(self.schema.fingerprint)
        marks = sum(_bytes_of(values) for _, values in self.marks.values())
        total: Integers = names + numbers + blobs + marks
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
            self.order,
            {name: (kind, each.slice(row, 1)) for name, (kind, each) in self.marks.items()},
        )

    def marks_of(self, row: int) -> JsonItem:
        """One row's further attributes."""
        item = self.item(row)
        return {name: item[name] for name in self.marks if name in item}

    @cached_property
    def _optional(self) -> tuple[str, ...]:
        """Further attributes that a row may lack."""
        return tuple(name for name in self.marks if name not in KEYS)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The attributes that rows may have, in an item's order."""
        created = () if self.created_us is None else (CREATED_TIME,)
        expiry = (EXPIRY,) if self.ttl_s else ()
        return (KEY, VALUES, EVENT_TIME, FINGERPRINT, *created, *expiry, *self.marks)

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
    def _lacking(self) -> dict[str, Mask]:
        """Of attributes that some rows lack, which rows have them."""
        arrays = {name: values for name, (_, values) in self.marks.items()}
        if self.created_us is not None:
            arrays[CREATED_TIME] = self.created_us
        return {
            name: arrays[name].is_valid().to_numpy(zero_copy_only=False)
            for name in self._names
            if name in arrays and arrays[name].null_count
        }

    @cached_property
    def _json(self) -> dict[str, tuple[Text, ...]]:
        """Each attribute's value as parts of JSON; null where there is none."""
        json: dict[str, tuple[Text, ...]] = {
            KEY: (_text(b'{"B":"'), base64_of(self.keys), _text(b'"}')),
            VALUES: (_text(b'{"B":"'), base64_of(self.values), _text(b'"}')),
            FINGERPRINT: (_text(orjson.dumps({"B": self.schema.fingerprint_text})),),
        }
        for name, digits in self._digits.items():
            json[name] = (_text(b'{"N":"'), digits, _text(b'"}'))
        for name, (kind, values) in self.marks.items():
            json[name] = (
                (_text(b'{"S":'), _json_texts(values), _text(b"}"))
                if kind == "S"
                else (_text(b'{"B":"'), _base64_with_nulls(values), _text(b'"}'))
            )
        return json

    def _item(self, before: bytes, after: bytes) -> list[Text]:
        first, *others = self._names
        parts: list[Text] = [_text(before + b'{"%s":' % first.encode()), *self._json[first]]
        for name in others:
            parts += self._after_comma(name, orjson.dumps(name) + b":")
        return [*parts, _text(b"}" + after)]

    def _after_comma(self, name: str, label: bytes) -> tuple[Text, ...]:
        """A comma, the label and an attribute's value; nothing where a row lacks it."""
        parts = (_text(b"," + label), *self._json[name])
        if name not in self._lacking:
            return parts
        return (concat_elements(*parts).fill_null(NOTHING),)

    def _statement_text(self, table: str, attempt: Try, text: str) -> Text:
        """Rows that lack attributes have a statement of their own for each choice of them."""
        if not self._lacking:
            return _text(orjson.dumps(text))
        choices = sum(
            mask.astype(np.int64) << at for at, mask in enumerate(self._lacking.values())
        )
        distinct, choice_of_row = np.unique(choices, return_inverse=True)
        texts = []
        for choice in distinct:
            absent = {name for at, name in enumerate(self._lacking) if not choice >> at & 1}
            names: JsonItem = {name: {} for name in self._names if name not in absent}
            shape = statement(table, names, attempt, self.order, self._optional)
            texts.append(orjson.dumps(shape["Statement"]))
        return pa.array(texts, pa.large_binary()).take(pa.array(choice_of_row))


def refuse_too_large(rows: EncodedRows, view: str) -> None:
    """Raise what the layout would raise for one of the rows, before any of them is written.

    Args:
        rows: the rows.
        view: name of the feature view, for errors.

    Raises:
        ItemTooLargeError: over DynamoDB's 400 KB an item, its entries in local indexes included.
    """
    orders = [values for name, (_, values) in rows.marks.items() if name.startswith(ORDER)]
    copies = 1 + sum(each.is_valid().to_numpy(zero_copy_only=False) for each in orders)
    for at in np.flatnonzero(rows.sizes() * copies > MAX_ITEM_BYTES)[:1]:
        row = int(at)
        created = None if rows.created_us is None else rows.created_us[row].as_py()
        key, values = rows.keys[row].as_py(), rows.values[row].as_py()
        whole = Row(key, values, rows.event_us[row].as_py(), created)
        to_item(whole, rows.schema, rows.ttl_s, view, marks=rows.marks_of(row))
        refuse_too_large_with_orders(rows.item(row), view)


def _json_texts(values: pa.LargeStringArray) -> pa.LargeBinaryArray:
    """Texts as JSON has them, quotes included; values of few kinds are written once each."""
    encoded = values.dictionary_encode()
    texts = [orjson.dumps(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(texts, pa.large_binary()).take(encoded.indices)


def _base64_with_nulls(values: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    if not values.null_count:
        return base64_of(values)
    return pc.if_else(values.is_valid(), base64_of(values.fill_null(b"")), None)


def _bytes_of(values: pa.Array) -> Integers:
    """Bytes of each text or binary; none of a null."""
    found: Integers = pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False)
    return found


def _text(data: bytes) -> pa.LargeBinaryScalar:
    return pa.scalar(data, pa.large_binary())


def _decimal(numbers: pa.Int64Array) -> pa.LargeBinaryArray:
    return numbers.cast(pa.large_string()).cast(pa.large_binary())


def _number_bytes(digits: pa.LargeBinaryArray) -> Any:
    """Half a byte a digit, one for the number itself and one for a sign; none for a null."""
    length = pc.binary_length(digits).fill_null(0).to_numpy(zero_copy_only=False)
    sign = pc.starts_with(digits, "-").fill_null(False).to_numpy(zero_copy_only=False)
    return np.where(length, (length - sign + 1) // 2 + 1 + sign, 0)
