"""Control items: what programs tell each other in a view's own table, one item a subject.

They are kept beside the rows, under keys that no row can have (`packed.RESERVED_PREFIX`), so they
need no table and no IAM resource of their own, and go when the table goes. Reads ask for the keys
of entities and never meet them; scans skip them as they skip schema items.

Attributes are plain: text, numbers, and sets of whole numbers, under names that a person who looks
at the item understands.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import ClientError

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.layouts.packed import KEY, RESERVED_PREFIX
from feast_dynamo_ext.dynamo.layouts.series import CONTROL_SORT, SORT
from feast_dynamo_ext.dynamo.retry import no_table
from feast_dynamo_ext.errors import ResourceNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Value = str | int | Decimal | frozenset[int]


_to_dynamodb = TypeSerializer().serialize
_from_dynamodb = TypeDeserializer().deserialize

ABSENT: Mapping[str, Value | None] = {KEY: None}
"""The condition that there is no such item."""


@dataclass(frozen=True)
class ControlItem:
    """One control item of a table.

    A write has a condition: what each attribute must be (None: absent) for it to be done. That it
    is not done is an answer, False. The same is answered to botocore's repetition of a write that
    was done but whose answer was lost, so whoever is answered False looks at the item.

    Every call raises AwsError where AWS refuses it, or ResourceNotFoundError where there is no
    such table.

    Attributes:
        client: boto3's client of DynamoDB.
        table: table name.
        name: what it is about; its key is this after the reserved prefix.
        is_series: whether the table has the layout of series.
    """

    client: Any
    table: str
    name: bytes
    is_series: bool = False

    def read(self) -> dict[str, Any] | None:
        """Its attributes but the key, as they are now; None where there is no such item."""
        with self._translated():
            answer = self.client.get_item(**self._address, ConsistentRead=True)
        if "Item" not in answer:
            return None
        return {
            name: _plain(_from_dynamodb(value))
            for name, value in answer["Item"].items()
            if name not in (KEY, SORT)
        }

    def put(self, values: Mapping[str, Value], where: Mapping[str, Value | None]) -> bool:
        """Write the whole item, if it is as `where` says; whether it was."""
        return self._send(self.client.put_item, self.put_request(values, where))

    def put_request(
        self, values: Mapping[str, Value], where: Mapping[str, Value | None]
    ) -> dict[str, Any]:
        """What `put` sends."""
        item = {**self._key, **{name: _to_dynamodb(value) for name, value in values.items()}}
        return {"TableName": self.table, "Item": item, **_Expression(where).parameters()}

    def update(
        self,
        values: Mapping[str, Value],
        where: Mapping[str, Value | None],
        add: Mapping[str, int | frozenset[int]] | None = None,
        lacks: Mapping[str, int] | None = None,
    ) -> bool:
        """Change attributes of the item, if it is as `where` says; whether it was.

        Args:
            values: attributes to set.
            where: what attributes must be.
            add: numbers to add to, and sets to extend.
            lacks: numbers that sets must not hold.
        """
        expression = _Expression(where, lacks or {})
        changes = "SET " + ", ".join(
            f"{expression.name(name)} = {expression.value(value)}"
            for name, value in values.items()
        )
        if add:
            changes += " ADD " + ", ".join(
                f"{expression.name(name)} {expression.value(value)}" for name, value in add.items()
            )
        request = {**self._address, "UpdateExpression": changes, **expression.parameters()}
        return self._send(self.client.update_item, request)

    def delete(self, where: Mapping[str, Value | None]) -> bool:
        """Delete the item, if it is as `where` says; whether it was."""
        request = {**self._address, **_Expression(where).parameters()}
        return self._send(self.client.delete_item, request)

    @property
    def _key(self) -> dict[str, Any]:
        sort = {SORT: {"B": CONTROL_SORT}} if self.is_series else {}
        return {KEY: {"B": RESERVED_PREFIX + self.name}, **sort}

    @property
    def _address(self) -> dict[str, Any]:
        return {"TableName": self.table, "Key": self._key}

    def _send(self, call: Callable[..., Any], request: Mapping[str, Any]) -> bool:
        with self._translated():
            try:
                call(**request)
            except ClientError as error:
                if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                    return False
                raise
        return True

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated("dynamodb", f"table {self.table}"):
                yield
        except ResourceNotFoundError as error:
            raise no_table(error, [self.table]) from error


class _Expression:
    """A condition, and the placeholders of all names and values of a request."""

    def __init__(
        self, where: Mapping[str, Value | None], lacks: Mapping[str, int] | None = None
    ) -> None:
        self._names: dict[str, str] = {}
        self._values: dict[str, Any] = {}
        clauses = [
            f"attribute_not_exists({self.name(name)})"
            if value is None
            else f"{self.name(name)} = {self.value(value)}"
            for name, value in where.items()
        ]
        clauses += [
            f"NOT contains({self.name(name)}, {self.value(value)})"
            for name, value in (lacks or {}).items()
        ]
        self._condition = " AND ".join(clauses)

    def name(self, name: str) -> str:
        """The placeholder of an attribute: many plain words are reserved by DynamoDB."""
        self._names[f"#{name}"] = name
        return f"#{name}"

    def value(self, value: Value) -> str:
        """The placeholder of a value."""
        placeholder = f":v{len(self._values)}"
        self._values[placeholder] = _to_dynamodb(value)
        return placeholder

    def parameters(self) -> dict[str, Any]:
        """What a request says of them; DynamoDB refuses empty values."""
        return {
            "ConditionExpression": self._condition,
            "ExpressionAttributeNames": self._names,
            **({"ExpressionAttributeValues": self._values} if self._values else {}),
        }


def _plain(value: Any) -> Any:
    """Whole numbers as int: boto3 gives decimals."""
    if isinstance(value, set):
        return frozenset(_plain(one) for one in value)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    return value
