"""Histories of a captured table, and what they answer by definition: plain loops, no library.

A log is a list of changes in the order of writing, as they were made to one DynamoDB table. Times
are microseconds since `START`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Int64, UnixTimestamp

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.capture.apply_checks import captured_columns, make_history
from feast_dynamo_ext.capture.dynamo_table import DynamoTable
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from feast import RepoConfig

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
CUSTOMER = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
CATALOG = {"type": "sql"}


def at(micros: int) -> dt.datetime:
    """A moment of a log."""
    return START + dt.timedelta(microseconds=micros)


@dataclass(frozen=True)
class Change:
    """One row of a history.

    Attributes:
        item: the item's key: the customer, and the number of the order where items are finer.
        event: event time.
        written: when it was written.
        change: what it was.
        value: the item's one attribute.
    """

    item: tuple[int, ...]
    event: int
    written: int
    change: str = "put"
    value: int | None = None


@dataclass
class Table:
    """A DynamoDB table, whose changes make a log as capture writes it.

    Attributes:
        items: (event time, value) of each item that is there.
        log: the changes.
    """

    items: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)

    def put(self, item: tuple[int, ...], event: int, written: int, value: int) -> None:
        """Write an item; an update where it is there."""
        old = self.items.get(item)
        if old is not None and old[0] != event:
            self.log.append(Change(item, old[0], written, "move", old[1]))
        self.items[item] = event, value
        self.log.append(Change(item, event, written, "put", value))

    def delete(self, item: tuple[int, ...], written: int, *, expired: bool = False) -> None:
        """Delete an item, if it is there."""
        old = self.items.pop(item, None)
        if old is not None:
            change = "expire" if expired else "delete"
            self.log.append(Change(item, old[0], written, change, old[1]))


def alive(
    log: Sequence[Change],
    key: tuple[int, ...],
    moment: int,
    ends: frozenset[str] = frozenset({"delete"}),
) -> list[Change]:
    """The puts of an item, in the order of writing, that nothing has ended by a moment, and that
    begun after nothing that ended the item later than it."""
    rows = [change for change in log if change.item == key]
    rows = [row for row in rows if row.change == "put" or row.change in ends]
    ending = [
        place
        for place, row in enumerate(rows)
        if row.change in ends
        or (place and rows[place - 1].change == "put" and row.event < rows[place - 1].event)
    ]
    return [
        row
        for place, row in enumerate(rows)
        if row.change == "put"
        and not any(rows[end].written <= moment for end in ending if end > place)
        and not any(rows[end].written > moment for end in ending if end <= place)
    ]


def seen(
    log: Sequence[Change],
    key: tuple[int, ...],
    moment: int,
    *,
    ends: frozenset[str] = frozenset({"delete"}),
    known: bool = False,
    ttl: int | None = None,
    applies: bool = True,
) -> Change | None:
    """The put that an entity sees at a moment, by the definition of what readers answer.

    Args:
        log: the changes in the order of writing.
        key: the entity; items are known by it.
        moment: the entity row's time.
        ends: changes that end an item.
        known: whether only what was written by then counts.
        ttl: how old an event may be.
        applies: whether deletions end what is seen.
    """
    rows = [row for row in log if row.item == key and row.change == "put"]
    if applies:
        rows = alive(log, key, moment, ends)
    found = [
        (row.event, row.written, place)
        for place, row in enumerate(rows)
        if row.event <= moment
        and not (known and row.written > moment)
        and not (ttl is not None and row.event < moment - ttl)
    ]
    return rows[max(found)[-1]] if found else None


def held(log: Sequence[Change], moment: int | None = None) -> dict[tuple[int, ...], Change]:
    """What the table itself held at a moment, or holds now: its changes, carried out."""
    items: dict[tuple[int, ...], Change] = {}
    for change in log:
        if moment is not None and change.written > moment:
            continue
        if change.change == "put":
            items[change.item] = change
        else:
            items.pop(change.item, None)
    return items


def events_of(
    log: Sequence[Change],
    moment: int,
    *,
    ends: frozenset[str],
    known: bool,
    applies: bool,
) -> list[Change]:
    """Of each item the put that is its event at a moment, if any; in no order."""
    found = []
    for item in dict.fromkeys(change.item for change in log):
        rows = [row for row in log if row.item == item and row.change in {"put", *ends}]
        era, eras, now = 0, [], 0
        for place, row in enumerate(rows):
            before = rows[place - 1] if place else None
            moved = (
                before is not None
                and before.change == row.change == "put"
                and row.event < before.event
            )
            if applies and (row.change != "put" or moved):
                era += 1
                now = era if row.written <= moment else now
            eras.append(era)
        puts = [
            row
            for row, of in zip(rows, eras, strict=True)
            if row.change == "put" and of == now and (not known or row.written <= moment)
        ]
        found += puts[-1:]
    return found


# As files


def source_of(**more: Any) -> DynamoDBTableSource:
    """The table as a source, its history in the folder of the repo."""
    settings = {
        "name": "purchases",
        "table": "purchases",
        "event_time": "bought",
        "event_time_unit": "us",
        "history": "data/history/purchases",
        "schema": [
            Field(name="customer", dtype=Int64),
            Field(name="bought", dtype=UnixTimestamp),
            Field(name="value", dtype=Int64),
        ],
    }
    return DynamoDBTableSource(**{**settings, **more})


def view_of(
    source: DynamoDBTableSource,
    name: str = "purchases_view",
    *,
    deletes: str | None = None,
    ttl: int | None = None,
    **more: Any,
) -> FeatureView:
    """A view of the value, by customer."""
    return FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[Field(name="customer", dtype=Int64), Field(name="value", dtype=Int64)],
        source=source,
        ttl=dt.timedelta(microseconds=ttl or 0),
        tags=ViewSettings(deletes=deletes).tags(),
        **more,
    )


def new_history(
    source: DynamoDBTableSource,
    config: RepoConfig,
    keys: Iterable[str] = ("customer",),
    *,
    is_strict: bool = True,
) -> TableHandle:
    """The source's history table, without rows; unless strict, nulls may be in all columns."""
    numbers = tuple((name, "N") for name in keys)
    facts = DynamoTable(source.table, "eu-west-1", "", "", 0, numbers, None, True, "")
    columns = captured_columns(source, facts)
    schema = columns.history_schema
    if not is_strict:
        schema = pa.schema([field.with_nullable(True) for field in schema])
    make_history(source, schema, columns.keys, config)
    return TableHandle.from_source(source, config)


def rows_of_changes(
    handle: TableHandle, changes: Sequence[Change], keys: Sequence[str] = ("customer",)
) -> pa.Table:
    """Changes as rows of a history table, without its sequence."""
    schema = handle.columns()
    columns = {name: [change.item[at] for change in changes] for at, name in enumerate(keys)}
    columns |= {
        "bought": [at(change.event) for change in changes],
        "value": [change.value for change in changes],
        "_feast_written_at": [at(change.written) for change in changes],
        "_feast_change": [change.change for change in changes],
    }
    names = [name for name in schema.names if name in columns]
    rows = {name: pa.array(columns[name], schema.field(name).type) for name in names}
    return pa.table(rows)


def append(
    handle: TableHandle, changes: Sequence[Change], keys: Sequence[str] = ("customer",)
) -> None:
    """Append changes to a history table in one commit."""
    handle.append(rows_of_changes(handle, changes, keys))


def entity_rows(pairs: Sequence[tuple[tuple[int, ...], int]]) -> pa.Table:
    """Entity rows of (entity, moment)."""
    return pa.table(
        {
            "customer": [key[0] for key, _ in pairs],
            "event_timestamp": pa.array(
                [at(moment) for _, moment in pairs], pa.timestamp("us", "UTC")
            ),
        }
    )
