"""What a model could know from a training set and will not know when it predicts.

Each check gives a finding: a level and words.

========= ==========================================================================
level     meaning
========= ==========================================================================
error     a leak, or a promise of the set that does not hold
warning   most likely a leak: look at it before training
note      normal for some sets: what to keep in mind of the figures of validation
unknown   the set does not hold what the check needs
ok        looked for and not found
========= ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import is_time, numbers, plain
from feast_dynamo_ext.duckdb_connection import connected
from feast_dynamo_ext.sagemaker.column_statistics import comparable, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.sagemaker.column_statistics import ColumnStatistics, Label, SplitRows
    from feast_dynamo_ext.sagemaker.over_time import Ages

LEVELS = ("error", "warning", "note", "unknown", "ok")
NEAR_PERFECT = 0.99
MANY_EQUAL = 0.05
"""Share of a split's rows whose features and label train has too, from which it is a warning."""

_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked for.
        level: one of LEVELS.
        words: what was found, and what to do.
        columns: the columns that it is about.
        count: rows or entities that it is about; 0 where it counts none.
    """

    check: str
    level: str
    words: str
    columns: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Keys:
    """The columns of a set that are not trained on.

    Attributes:
        event_time: of the entity row.
        entities: join keys.
        rule: name of the split's rule, as the manifest has it.
        keeps_entities: whether the rule promises that no entity is in two splits.
    """

    event_time: str
    entities: tuple[str, ...]
    rule: str
    keeps_entities: bool = False


def worst(findings: Sequence[Finding]) -> str:
    """The highest level of them."""
    return min((finding.level for finding in findings), key=LEVELS.index, default="ok")


def leakage(
    rows: SplitRows,
    keys: Keys,
    label: Label,
    columns: Mapping[str, ColumnStatistics],
    ages: Sequence[Ages],
    limits: Limits,
) -> tuple[Finding, ...]:
    """Look for leaks.

    Args:
        rows: the set's rows.
        keys: its columns that are not trained on.
        label: its label.
        columns: statistics of the columns that are trained on.
        ages: of features; none where the set does not keep their event times.
        limits: memory and disk of counting.

    Raises:
        OfflineStoreError: memory or disk were not enough.
    """
    found = [
        _younger(ages),
        _label_among(rows, label, [*columns]),
        _near_perfect(columns, label),
        _missing(columns, label),
    ]
    if len(rows.splits) > 1:
        found += [
            _entities(rows, keys, limits),
            _same_rows(rows, keys, limits),
            _equal_features(rows, [*columns], label, limits),
            _later_rows(rows, keys),
        ]
    return tuple(found)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + more


def _younger(ages: Sequence[Ages]) -> Finding:
    check = "Features younger than their row"
    if not ages:
        return Finding(
            check,
            "unknown",
            "The set does not keep the event times of its features. In the feature repo, the "
            "report measures them: it makes the join again for event times alone.",
        )
    late = [age for age in ages if age.younger]
    rows = sum(age.younger for age in late)
    if late:
        return Finding(
            check,
            "error",
            f"{rows:,} values are of after their entity row, by {_listed(_names(late))}. Build "
            "the set again from entity rows with the right event times.",
            _names(late),
            rows,
        )
    return Finding(
        check,
        "ok",
        f"The join was made again for event times alone: of {len(ages)} views, no row that a "
        "feature came from is after its entity row.",
    )


def _names(ages: Sequence[Ages]) -> tuple[str, ...]:
    return tuple(age.column for age in ages)


def _label_among(rows: SplitRows, label: Label, columns: Sequence[str]) -> Finding:
    check = "Label among the features"
    named = [name for name in columns if name.casefold() == label.column.casefold()]
    copies = [*named, *(name for name in _copies(rows, label, columns) if name not in named)]
    if copies:
        return Finding(
            check,
            "error",
            f"{_listed(copies)} equal the label `{label.column}` in every row that has a value. "
            "Leave them out.",
            tuple(copies),
        )
    return Finding(check, "ok", f"No feature is named as the label `{label.column}` or equals it.")


def _copies(rows: SplitRows, label: Label, columns: Sequence[str]) -> list[str]:
    """Columns that equal the label wherever they have a value, and there are two values."""
    label_kind = kind_of(rows.schema.field(label.column).type)
    left = [name for name in columns if kind_of(rows.schema.field(name).type) == label_kind]
    if label_kind == "other":
        return []
    seen: dict[str, set[Any]] = {name: set() for name in left}
    wanted = list(dict.fromkeys([*columns, label.column]))
    for split in rows.splits:
        for batch in rows.batches(split, wanted):
            labels = comparable(batch.column(label.column))
            for name in list(left):
                values = comparable(batch.column(name))
                if pc.all(pc.equal(values, labels)).as_py() is False:
                    left.remove(name)
                elif len(seen[name]) < 2:  # noqa: PLR2004 - a constant says nothing
                    seen[name].update(pc.unique(values.drop_null()).slice(0, 2).to_pylist())
    return [name for name in left if len(seen[name]) > 1]


def _near_perfect(columns: Mapping[str, ColumnStatistics], label: Label) -> Finding:
    check = "Near-perfect single features"
    strong = {name: strength for name, column in columns.items() if (strength := _of(column))}
    names = [
        name
        for name in sorted(strong, key=lambda name: -strong[name])
        if strong[name] >= NEAR_PERFECT
    ]
    measure = "AUC" if label.is_binary else "correlation"
    if names:
        best = ", ".join(f"`{name}` {strong[name]:.4f}" for name in names[:_NAMED])
        return Finding(
            check,
            "warning",
            f"{len(names)} alone nearly tell the label ({measure} in either direction at least "
            f"{NEAR_PERFECT}, on train): {best}. Such a feature mostly is the answer under "
            "another name, or was written after it.",
            tuple(names),
        )
    if not strong:
        return Finding(check, "unknown", "No feature has values that can be compared with labels.")
    name = max(strong, key=lambda name: strong[name])
    return Finding(
        check,
        "ok",
        f"The strongest is `{name}` with {strong[name]:.4f} ({measure} in either direction, on "
        f"train); from {NEAR_PERFECT} on it would be one.",
    )


def _of(column: ColumnStatistics) -> float | None:
    """How well a column alone tells the label on train, 0.5 or 0 to 1."""
    train = next(iter(column.splits.values()))
    if train.auc is not None:
        return max(train.auc, 1 - train.auc)
    return None if train.correlation is None else abs(train.correlation)


def _missing(columns: Mapping[str, ColumnStatistics], label: Label) -> Finding:
    check = "Missing values that tell the label"
    if not label.is_binary:
        return Finding(check, "unknown", "Looked for only where the label has two values.")
    found = {
        name: max(auc, 1 - auc)
        for name, column in columns.items()
        if (auc := next(iter(column.splits.values())).auc_of_missing) is not None
    }
    names = [name for name, auc in found.items() if auc >= NEAR_PERFECT]
    if names:
        return Finding(
            check,
            "warning",
            f"Whether a value is missing nearly tells the label (AUC at least {NEAR_PERFECT} on "
            f"train) of {_listed(names)}. Such a column may be filled when the outcome is known.",
            tuple(names),
        )
    return Finding(check, "ok", "Of no feature does a missing value nearly tell the label.")


# What several splits share


def _entities(rows: SplitRows, keys: Keys, limits: Limits) -> Finding:
    check = "Entities in several splits"
    if not keys.entities:
        return Finding(check, "unknown", "The set has no entity columns.")
    every, shared = _shared(rows, keys.entities, limits)
    if not shared:
        return Finding(check, "ok", f"Each of {every:,} entities is in one split.")
    words = f"{shared:,} of {every:,} entities ({shared / every:.0%}) are in several splits. "
    if keys.keeps_entities:
        level, more = "error", "The rule promises that none is: build the set again."
    elif keys.rule in ("event_time", "event_time_fractions"):
        level = "note"
        more = (
            "A split by time has the same customers before and after; the model is measured on "
            "entities that it knows. Split by group to measure it on new ones."
        )
    else:
        level = "warning"
        more = (
            "Rows of one entity are alike, so validation looks better than it is. Split by group "
            "or time."
        )
    return Finding(check, level, words + more, keys.entities, shared)


def _same_rows(rows: SplitRows, keys: Keys, limits: Limits) -> Finding:
    check = "The same row in several splits"
    columns = (*keys.entities, keys.event_time)
    every, shared = _shared(rows, columns, limits)
    if shared:
        return Finding(
            check,
            "error",
            f"{shared:,} of {every:,} pairs of entity and event time are in several splits. "
            "Remove repeated entity rows before the set is built.",
            columns,
            shared,
        )
    return Finding(check, "ok", "No entity has rows of one event time in two splits.")


def _shared(rows: SplitRows, columns: Sequence[str], limits: Limits) -> tuple[int, int]:
    """Different values of some columns, and those of them that several splits have."""
    with connected(limits, "Comparing the keys of splits") as connection:
        connection.register("given", _reader(rows, columns))
        names = ", ".join(f"c{at}" for at in range(len(columns)))
        ((every, shared),) = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE least < most) FROM (SELECT min(split) "  # noqa: S608 - c0, c1, ...
            f"AS least, max(split) AS most FROM given GROUP BY {names})"
        ).fetchall()
    return every, shared


def _equal_features(
    rows: SplitRows, columns: Sequence[str], label: Label, limits: Limits
) -> Finding:
    check = "Equal features in several splits"
    names = [f"c{at}" for at in range(len(columns))]
    # Two hashes of 64 bits: by chance two of 10^9 rows are alike once in 10^20 sets.
    one, two = f"hash({', '.join(names)})", f"hash(1, {', '.join(reversed(names))})"
    with connected(limits, "Comparing the rows of splits") as connection:
        connection.register("given", _reader(rows, [*columns, label.column]))
        ((others, equal),) = connection.execute(
            "SELECT coalesce(sum(others), 0)::BIGINT, "  # noqa: S608 - c0, c1, ...
            "coalesce(sum(others) FILTER (WHERE train > 0), 0)::BIGINT FROM (SELECT "
            "count(*) FILTER (WHERE split = 0) AS train, count(*) FILTER (WHERE split > 0) AS "
            f"others FROM given GROUP BY {one}, {two}, c{len(columns)})"
        ).fetchall()
    if not equal:
        return Finding(check, "ok", "No row outside of train equals one of train.")
    return Finding(
        check,
        "warning" if equal / others >= MANY_EQUAL else "note",
        f"{equal:,} of {others:,} rows outside of train ({equal / others:.1%}) have features and "
        "label that a row of train has too. With few features of few values that is normal; else "
        "look for rows that were written twice.",
        count=equal,
    )


def _reader(rows: SplitRows, columns: Sequence[str]) -> pa.RecordBatchReader:
    """Some columns as c0, c1, ... and the number of the split as `split`."""
    empty = rows.schema.empty_table().select(list(dict.fromkeys(columns)))
    kinds = [_hashable(pa.array([], empty.schema.field(name).type)).type for name in columns]
    fields = [pa.field(f"c{at}", kind) for at, kind in enumerate(kinds)]
    schema = pa.schema([*fields, pa.field("split", pa.int8())])

    def batches() -> Iterator[pa.RecordBatch]:
        for at, split in enumerate(rows.splits):
            for batch in rows.batches(split, list(dict.fromkeys(columns))):
                values = [_hashable(batch.column(name)) for name in columns]
                split_of = pa.repeat(pa.scalar(at, pa.int8()), batch.num_rows)
                yield pa.record_batch([*values, split_of], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _hashable(column: pa.Array) -> pa.Array:
    """A column as DuckDB takes it; times as their ticks."""
    array: Any = plain(column)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if is_time(array.type):
        return array.cast(pa.int32() if pa.types.is_date32(array.type) else pa.int64())
    return array


def _later_rows(rows: SplitRows, keys: Keys) -> Finding:
    check = "Later rows train"
    ends: list[tuple[int, int]] = []
    for split in rows.splits:
        bounds = [
            (int(times.min()), int(times.max()))
            for batch in rows.batches(split, [keys.event_time])
            if len(times := numbers(comparable(batch.column(0))))
        ]
        ends.append((min(low for low, _ in bounds), max(high for _, high in bounds)))
    first = min(low for low, _ in ends[1:])
    if ends[0][1] < first:
        return Finding(check, "ok", "All rows of train are before those of the other splits.")
    return Finding(
        check,
        "error" if keys.rule in ("event_time", "event_time_fractions") else "note",
        "Train has rows of after the first row of another split: the model is measured on a past "
        "whose future it has seen. Split by time where it will predict what comes.",
        (keys.event_time,),
    )
