"""A table's key and indexes: of the newest rows, or of series, and what can be changed of them.

=============  =========================  ==============================================
               newest rows                series
=============  =========================  ==============================================
key            k (B)                      k (B), s (B)
local index    none                       `order_F`: k, o_F (B), all attributes
global index   `cohort_F`: g_F (S), t     `cohort_F`: g_F (S), s; keys alone
=============  =========================  ==============================================

DynamoDB makes a key and local indexes with the table alone, and global indexes on a living table
one at a time, with a backfill of what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.layouts.packed import EVENT_TIME, KEY
from feast_dynamo_ext.dynamo.layouts.series import (
    COHORT,
    COHORT_INDEX,
    ORDER,
    ORDER_INDEX,
    SORT,
)
from feast_dynamo_ext.dynamo.tables.describe import Request
from feast_dynamo_ext.errors import TableLayoutError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from feast_dynamo_ext.dynamo.tables.describe import TableSpec, TableState

HASH_KEY = {"AttributeName": KEY, "KeyType": "HASH"}
SORT_KEY = {"AttributeName": SORT, "KeyType": "RANGE"}
KEY_SCHEMAS = ([HASH_KEY], [HASH_KEY, SORT_KEY])
"""Of the two layouts; the second is that of series."""


def key_and_indexes(spec: TableSpec) -> dict[str, Any]:
    """What CreateTable takes of a table's key and indexes."""
    made: dict[str, Any] = {
        "KeySchema": KEY_SCHEMAS[spec.is_series],
        "AttributeDefinitions": _definitions(spec, spec.orders, spec.cohorts),
    }
    if spec.orders:
        made["LocalSecondaryIndexes"] = [
            {
                "IndexName": ORDER_INDEX + name,
                "KeySchema": [
                    HASH_KEY,
                    {"AttributeName": ORDER + name, "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "ALL"},
            }
            for name in spec.orders
        ]
    if spec.cohorts:
        made["GlobalSecondaryIndexes"] = [_cohort_index(spec, name) for name in spec.cohorts]
    return made


def _definitions(
    spec: TableSpec, orders: Iterable[str], cohorts: Iterable[str]
) -> list[dict[str, str]]:
    cohorts = list(cohorts)
    kinds = {KEY: "B", **({SORT: "B"} if spec.is_series else {})}
    kinds |= {ORDER + name: "B" for name in orders} | {COHORT + name: "S" for name in cohorts}
    if cohorts and not spec.is_series:
        kinds[EVENT_TIME] = "N"
    return [{"AttributeName": name, "AttributeType": kind} for name, kind in kinds.items()]


def _cohort_index(spec: TableSpec, name: str) -> dict[str, Any]:
    settings, units = spec.settings, {}
    if settings.billing == "provisioned" and settings.read_units is not None:
        units = {
            "ProvisionedThroughput": {
                "ReadCapacityUnits": settings.read_units,
                "WriteCapacityUnits": settings.write_units,
            }
        }
    sort = SORT if spec.is_series else EVENT_TIME
    return {
        "IndexName": COHORT_INDEX + name,
        "KeySchema": [
            {"AttributeName": COHORT + name, "KeyType": "HASH"},
            {"AttributeName": sort, "KeyType": "RANGE"},
        ],
        "Projection": {"ProjectionType": "KEYS_ONLY"},
        **units,
    }


# What there is


def is_of_series(described: Mapping[str, Any]) -> bool | None:
    """Whether a table has the key of series, or that of newest rows; None where of neither."""
    schema = described["KeySchema"]
    kinds = {each["AttributeName"]: each["AttributeType"] for each in _defined(described)}
    if schema not in KEY_SCHEMAS or any(kinds[each["AttributeName"]] != "B" for each in schema):
        return None
    return bool(schema == KEY_SCHEMAS[1])


def has_our_layout(described: Mapping[str, Any]) -> bool:
    """Whether a table has a key of this store, and no key attributes of anything else."""
    ours = {KEY, SORT, EVENT_TIME}
    return is_of_series(described) is not None and all(
        name in ours or name.startswith((ORDER, COHORT))
        for name in (each["AttributeName"] for each in _defined(described))
    )


def _defined(described: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    found: Sequence[Mapping[str, str]] = described["AttributeDefinitions"]
    return found


def key_text(described: Mapping[str, Any]) -> str:
    """A table's key attributes, for people."""
    return ", ".join(
        f"{each['AttributeName']} ({each['AttributeType']})" for each in _defined(described)
    )


def check_layout(spec: TableSpec, described: Mapping[str, Any]) -> None:
    """Refuse a table whose rows would not be ours, or that lacks what cannot be added.

    Raises:
        TableLayoutError: its key is another, or it has no index for an order.
    """
    if not has_our_layout(described):
        key = f"{KEY} (B){f', {SORT} (B)' if spec.is_series else ''}"
        raise TableLayoutError(
            f"DynamoDB table {spec.name} exists with the key {key_text(described)}, not with this "
            f"store's {key}: another program made it, perhaps Feast's own DynamoDB store. Set "
            "another `table_name_template` in feature_store.yaml for feature view "
            f"`{spec.view}`, or delete the table, then run `feast apply` and `feast materialize` "
            "again."
        )
    if is_of_series(described) != spec.is_series:
        now, then = (
            ("every event", "the newest rows")
            if spec.is_series
            else ("the newest rows", "every event")
        )
        raise TableLayoutError(
            f"Feature view `{spec.view}` is declared to keep {now}, and DynamoDB table "
            f"{spec.name} was made to keep {then}: DynamoDB changes no table's key. {_anew(spec)}"
        )
    missing = [name for name in spec.orders if name not in _orders_of(described)]
    if missing:
        raise TableLayoutError(
            f"Feature view `{spec.view}`: the order by `{missing[0]}` needs a local index, which "
            f"DynamoDB makes with a table alone, and table {spec.name} is there. {_anew(spec)}"
        )


def _anew(spec: TableSpec) -> str:
    return (
        "Give the view another name, which gets a table of its own, materialize it and move its "
        "readers; or delete the table (`aws dynamodb delete-table --table-name "
        f"{spec.name}`), run `feast apply`, and materialize again."
    )


def _orders_of(described: Mapping[str, Any]) -> set[str]:
    return {
        index["IndexName"].removeprefix(ORDER_INDEX)
        for index in described.get("LocalSecondaryIndexes", ())
        if index["IndexName"].startswith(ORDER_INDEX)
    }


# Cohorts, which a living table may get and lose


def cohorts_of(described: Mapping[str, Any]) -> tuple[str, ...]:
    """The features by which entities can be found, of those indexes that are not about to go."""
    return tuple(
        sorted(
            index["IndexName"].removeprefix(COHORT_INDEX)
            for index in described.get("GlobalSecondaryIndexes", ())
            if index["IndexName"].startswith(COHORT_INDEX)
            and index.get("IndexStatus") != "DELETING"
        )
    )


def change_cohorts(
    spec: TableSpec, _: TableState, before: Sequence[str], after: Sequence[str]
) -> Iterator[Request]:
    """One request an index: DynamoDB takes one at a time."""
    for name in before:
        if name not in after:
            change = {"Delete": {"IndexName": COHORT_INDEX + name}}
            yield _update(spec, {"GlobalSecondaryIndexUpdates": [change]})
    for name in after:
        if name not in before:
            yield _update(
                spec,
                {
                    "AttributeDefinitions": _definitions(spec, (), [name]),
                    "GlobalSecondaryIndexUpdates": [{"Create": _cohort_index(spec, name)}],
                },
            )


def _update(spec: TableSpec, parameters: Mapping[str, Any]) -> Request:
    return Request("update_table", {"TableName": spec.name, **parameters})


def names_text(names: Sequence[str]) -> str:
    """Names of features, for people."""
    return ", ".join(names) or "none"
