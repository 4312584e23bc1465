"""The rows of one request, in the forms that requests take them, and what became of them.

Two kinds: items as Python values, for the few rows of a push, and slices of rows that were encoded
column by column, for the many of a materialization, whose JSON is cut out of whole buffers.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson

from feast_dynamo_ext.dynamo.encoding.requests import (
    Try,
    json_elements,
    json_elements_of_rows,
    statement,
)
from feast_dynamo_ext.dynamo.layouts.packed import KEY
from feast_dynamo_ext.errors import IncompleteWriteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa

    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers
    from feast_dynamo_ext.dynamo.encoding.requests import EncodedRows, Order
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem


@dataclass(frozen=True)
class Outcome:
    """What became of the rows of a write.

    Attributes:
        written: rows that are in the table now.
        older: rows that are not, because the table held a newer one of their key.
        unwritten: serialized entity keys of rows that could not be written.
        cause: why the last of `unwritten` could not.
    """

    written: int = 0
    older: int = 0
    unwritten: tuple[bytes, ...] = ()
    cause: Exception | None = None

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.written + other.written,
            self.older + other.older,
            self.unwritten + other.unwritten,
            other.cause or self.cause,
        )

    @property
    def settled(self) -> int:
        """Rows that need nothing more."""
        return self.written + self.older

    def checked(self, table: str) -> Outcome:
        """Itself, if nothing is left unwritten.

        Raises:
            IncompleteWriteError: rows are, named.
        """
        if not self.unwritten:
            return self
        total = self.settled + len(self.unwritten)
        # That their schema could not be written says no more than why it could not.
        is_of_schema = isinstance(self.cause, IncompleteWriteError)
        cause = self.cause.__cause__ if self.cause and is_of_schema else self.cause
        why = f" Last answer: {cause}" if cause is not None else ""
        raise IncompleteWriteError(
            f"Table {table}: {len(self.unwritten):,} of {total:,} rows are not written; their "
            f"keys are in the error's `unwritten`.{why} The others are: write the same rows "
            "again.",
            unwritten=list(self.unwritten),
        ) from self.cause


def keys_of(items: Iterable[JsonItem]) -> tuple[bytes, ...]:
    """The serialized entity keys of items."""
    return tuple(base64.b64decode(item[KEY]["B"]) for item in items)


MAX_ITEMS_PER_REQUEST = 25  # of BatchWriteItem and of BatchExecuteStatement

UNIT_BYTES = 1_024
"""Of an item, that one write unit pays for."""


class RowBatch(Protocol):
    """Up to 25 rows with distinct keys."""

    def __len__(self) -> int:
        """How many rows."""
        ...

    @property
    def order(self) -> Order:
        """Which row of a key wins."""
        ...

    @property
    def units(self) -> int:
        """Write units of writing all of them once; 0 where it is not known."""
        ...

    def puts(self) -> Any:
        """The requests of a BatchWriteItem."""
        ...

    def statements(self, table: str, todo: Sequence[tuple[int, Try]]) -> Any:
        """The statements of a BatchExecuteStatement, for rows with what is tried with each."""
        ...

    def item(self, row: int) -> JsonItem:
        """One row's item."""
        ...

    def keys(self, rows: Sequence[int]) -> tuple[bytes, ...]:
        """The serialized entity keys of rows."""
        ...

    def single_row_batches(self) -> Iterator[RowBatch]:
        """Each row as a batch of its own."""
        ...


@dataclass(frozen=True)
class Items:
    """Rows as items.

    Attributes:
        items: the items.
        units: see `RowBatch.units`.
        order: see `RowBatch.order`.
        optional: attributes that an item may lack: see `statement`.
    """

    items: Sequence[JsonItem]
    units: int = 0
    order: Order = "event"
    optional: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def puts(self) -> Any:
        """See `RowBatch.puts`."""
        return [{"PutRequest": {"Item": item}} for item in self.items]

    def statements(self, table: str, todo: Sequence[tuple[int, Try]]) -> Any:
        """See `RowBatch.statements`."""
        return [
            statement(table, self.items[row], attempt, self.order, self.optional)
            for row, attempt in todo
        ]

    def item(self, row: int) -> JsonItem:
        """See `RowBatch.item`."""
        return self.items[row]

    def keys(self, rows: Sequence[int]) -> tuple[bytes, ...]:
        """See `RowBatch.keys`."""
        return keys_of(self.items[row] for row in rows)

    def single_row_batches(self) -> Iterator[RowBatch]:
        """See `RowBatch.single_row_batches`."""
        return (replace(self, items=[item], units=0) for item in self.items)


def in_batches(
    items: Iterable[JsonItem], order: Order = "event", optional: tuple[str, ...] = ()
) -> Iterator[RowBatch]:
    """Items as they come, in batches as large as a request takes."""
    rest = iter(items)
    while batch := list(islice(rest, MAX_ITEMS_PER_REQUEST)):
        yield Items(batch, order=order, optional=optional)


class EncodedBlock:
    """Some thousand rows, encoded by column. Each form is made once, when first asked for."""

    def __init__(self, rows: EncodedRows) -> None:
        self.rows = rows
        self._statements: dict[tuple[str, Try], pa.LargeBinaryArray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def units(self) -> Integers:
        """Write units of each row."""
        return -(-self.rows.sizes() // UNIT_BYTES)

    @cached_property
    def puts(self) -> pa.LargeBinaryArray:
        """Each row's request of a BatchWriteItem, as a fragment."""
        return self.rows.put_json()

    def statements(self, table: str, attempt: Try) -> pa.LargeBinaryArray:
        """Each row's statement, as a fragment."""
        # UPDATE and REPLACE are one statement.
        attempt = Try.UPDATE if attempt is Try.REPLACE else attempt
        if (table, attempt) not in self._statements:
            self._statements[table, attempt] = self.rows.statement_json(table, attempt)
        return self._statements[table, attempt]

    def batches(self) -> Iterator[RowBatch]:
        """The rows in batches as large as a request takes."""
        for start in range(0, len(self), MAX_ITEMS_PER_REQUEST):
            yield EncodedSlice(self, start, min(start + MAX_ITEMS_PER_REQUEST, len(self)))


@dataclass(frozen=True)
class EncodedSlice:
    """Rows of a block, from `start` to before `stop`."""

    block: EncodedBlock
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def order(self) -> Order:
        """See `RowBatch.order`."""
        return self.block.rows.order

    @property
    def units(self) -> int:
        """See `RowBatch.units`."""
        return int(np.sum(self.block.units[self.start : self.stop]))

    def puts(self) -> Any:
        """See `RowBatch.puts`."""
        return _array(json_elements(self.block.puts, self.start, self.stop))

    def statements(self, table: str, todo: Sequence[tuple[int, Try]]) -> Any:
        """See `RowBatch.statements`."""
        tries = {attempt for _, attempt in todo}
        if len(tries) == 1:
            fragments = self.block.statements(table, *tries)
            rows = [self.start + row for row, _ in todo]
            if rows == list(range(self.start, self.stop)):
                return _array(json_elements(fragments, self.start, self.stop))
            return _array(json_elements_of_rows(fragments, rows))
        return [
            orjson.Fragment(
                json_elements_of_rows(self.block.statements(table, attempt), [self.start + row])
            )
            for row, attempt in todo
        ]

    def item(self, row: int) -> JsonItem:
        """See `RowBatch.item`."""
        return self.block.rows.item(self.start + row)

    def keys(self, rows: Sequence[int]) -> tuple[bytes, ...]:
        """See `RowBatch.keys`."""
        return self.block.rows.keys_of([self.start + row for row in rows])

    def single_row_batches(self) -> Iterator[RowBatch]:
        """See `RowBatch.single_row_batches`."""
        return (EncodedSlice(self.block, at, at + 1) for at in range(self.start, self.stop))


def _array(elements: bytes) -> orjson.Fragment:
    return orjson.Fragment(b"[" + elements + b"]")
