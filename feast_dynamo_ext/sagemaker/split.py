"""Which rows train, validate and test: all rules, by the names that manifests have for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import plain
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.drawn_split import GroupSplit, RandomSplit, StratifiedSplit
from feast_dynamo_ext.sagemaker.split_by_time import TimeFractions, TimeSplit
from feast_dynamo_ext.sagemaker.split_rule import SPLITS, SplitRule, empty_splits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "RULES",
    "SPLITS",
    "ColumnSplit",
    "GroupSplit",
    "NoSplit",
    "RandomSplit",
    "SplitRule",
    "StratifiedSplit",
    "TimeFractions",
    "TimeSplit",
    "checked_split",
    "kept_value",
    "split_from_manifest",
]


def kept_value(value: Any) -> Any:
    """A value of a column as a manifest keeps it: a date or a time is its ISO text, in UTC.

    Raises:
        TrainingSetError: no text, finite number, boolean, date or time.
    """
    if isinstance(value, datetime):
        zoned = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return zoned.astimezone(timezone.utc).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    if value is None or is_number or isinstance(value, str):
        return value
    raise TrainingSetError(
        "A split by a column goes by texts, finite numbers, booleans, dates and times, and not by "
        f"a {type(value).__name__}. Make the column, and its declared `values`, one of these."
    )


@dataclass(frozen=True)
class ColumnSplit:
    """Splits rows by what a column says.

    Attributes:
        column: its name.
        values: of each split the values that are in it; a date or a time is kept as its ISO text,
            in UTC. Default: the column has the names of the splits.

    Raises:
        TrainingSetError: no split `train`, an unknown one, or a value in two of them.
    """

    column: str
    values: Mapping[str, tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = {name: (name,) for name in SPLITS}
        if self.values is not None:
            given = {
                name: tuple(
                    map(kept_value, values if isinstance(values, (list, tuple)) else [values])
                )
                for name, values in self.values.items()
            }
            object.__setattr__(self, "values", given)
        every = [value for values in given.values() for value in values]
        if not {"train"} <= given.keys() <= set(SPLITS) or len(set(every)) < len(every):
            raise TrainingSetError(
                f"The split's `values` are {given}: name `train` and one or both of `validation` "
                "and `test`, each with the values that are in it and in no other."
            )

    def __hash__(self) -> int:
        return hash((self.column, self.splits))

    @property
    def splits(self) -> tuple[str, ...]:
        """See `SplitRule.splits`."""
        return SPLITS if self.values is None else tuple(n for n in SPLITS if n in self.values)

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`."""
        return (self.column,)

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`: the assignment, which needs no other rows."""
        encoded = plain(columns[0]).dictionary_encode()
        known = {
            value: place
            for place, name in enumerate(self.splits)
            for value in (self.values[name] if self.values is not None else (name,))
        }
        # A bool is an int to Python.
        places = [
            known.get(value) if any(type(value) is type(each) for each in known) else None
            for value in map(kept_value, encoded.dictionary.to_pylist())
        ]
        found = pa.array(places, pa.int8()).take(encoded.indices)
        if None in known:
            missing = pa.scalar(known[None], pa.int8())
            found = pc.if_else(encoded.indices.is_null(), missing, found)
        if found.null_count:
            raise TrainingSetError(
                f"`{self.column}` names no split in {found.null_count} of {len(found)} rows: it "
                f"may be {', '.join(map(repr, known))}. Correct these rows, or declare `values`."
            )
        return found

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`."""
        assigned: NDArray[np.int8] = narrowed.to_numpy(zero_copy_only=False).astype(np.int8)
        # Without declared values, two of the three will do.
        names = self.splits if self.values is not None else ("train",)
        empty = empty_splits(names, assigned)
        if empty:
            raise TrainingSetError(
                f"The split leaves {' and '.join(empty)} empty: `{self.column}` puts no row there."
            )
        return assigned

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`."""
        given = self.values
        values = None if given is None else {name: list(given[name]) for name in given}
        return {"rule": "column", "column": self.column, "values": values}

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> ColumnSplit:
        """The inverse of `as_manifest`."""
        return cls(values["column"], values["values"])


@dataclass(frozen=True)
class NoSplit:
    """All rows train."""

    splits: ClassVar[tuple[str, ...]] = ("train",)

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`."""
        return (event_timestamp,)

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`."""
        return pa.nulls(len(columns[0]))

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`."""
        if not len(narrowed):
            raise TrainingSetError("The split leaves train empty: there are no rows.")
        return np.zeros(len(narrowed), np.int8)

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`."""
        return {"rule": "none"}

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> NoSplit:  # noqa: ARG003
        """The inverse of `as_manifest`."""
        return cls()


RULES: dict[str, Any] = {
    "event_time": TimeSplit,
    "event_time_fractions": TimeFractions,
    "group": GroupSplit,
    "random": RandomSplit,
    "stratified": StratifiedSplit,
    "column": ColumnSplit,
    "none": NoSplit,
}


def split_from_manifest(values: Mapping[str, Any]) -> SplitRule:
    """The rule that `as_manifest` gave.

    Raises:
        LookupError: a rule that this version does not know.
    """
    rule: SplitRule = RULES[values["rule"]].from_manifest(values)
    return rule


def checked_split(split: Any) -> SplitRule:
    """The split, which nobody can guess.

    Raises:
        TrainingSetError: there is none, or it is something else.
    """
    rules: tuple[Any, ...] = tuple(RULES.values())
    if type(split) in rules:
        rule: SplitRule = split
        return rule
    given = "missing" if split is None else f"a {type(split).__name__}"
    raise TrainingSetError(
        f"`split` is {given}: it says which event times train, validate and test the model. Pass "
        "`TimeSplit(validation_from=..., test_from=...)`, two instants, or another rule."
    )
