"""Splits by a stable hash or a seeded draw: of an entity, of a row, of a row of each class."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import is_text, numbers, plain
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.split_rule import OfFractions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class GroupSplit(OfFractions):
    """Splits entities, by a hash that stays the same: none has rows in two splits.

    Attributes:
        by: columns that name the entity, texts or whole numbers.
        seed: another one gives another split.
    """

    by: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "by", (self.by,) if isinstance(self.by, str) else tuple(self.by))
        if not self.by:
            raise TrainingSetError("A split by group needs `by`: the columns that name the group.")

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`."""
        return self.by

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`: hashes of the entities."""
        found = np.full(len(columns[0]), _mixed(_unsigned(self.seed)), np.uint64)
        for name, column in zip(self.by, columns, strict=True):
            found = _mix(found ^ _hashes(name, column))
        return pa.array(found)

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`."""
        bounds = np.array([int(bound * 2**64) for bound in self._bounds], np.uint64)
        places = np.searchsorted(bounds, narrowed.to_numpy(zero_copy_only=False), side="right")
        return self._refuse_empty(places.astype(np.int8))

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`."""
        return {
            "rule": "group",
            "by": list(self.by),
            "fractions": dict(self.fractions),
            "seed": self.seed,
        }

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> GroupSplit:
        """The inverse of `as_manifest`."""
        return cls(values["fractions"], tuple(values["by"]), values["seed"])


@dataclass(frozen=True)
class RandomSplit(OfFractions):
    """Splits rows at random: the same rows in the same order are split in the same parts.

    Attributes:
        seed: another one gives another split.
    """

    seed: int = 0

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`: any, of which it needs the length."""
        return (event_timestamp,)

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`: nothing but the number of rows."""
        return pa.nulls(len(columns[0]))

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`."""
        order = np.argsort(_draws(self.seed, len(narrowed)), kind="stable")
        assigned = np.empty(len(order), np.int8)
        assigned[order] = _cut(len(order), self._bounds)
        return self._refuse_empty(assigned)

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`."""
        return {"rule": "random", "fractions": dict(self.fractions), "seed": self.seed}

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> RandomSplit:
        """The inverse of `as_manifest`."""
        return cls(values["fractions"], values["seed"])


MOST_STRATA = 1_000


@dataclass(frozen=True)
class StratifiedSplit(OfFractions):
    """Splits the rows of each value of a column at random, so that its balance is kept.

    Each split has its part of each value's rows, to within one row.

    Attributes:
        by: the column; None for the label.
        seed: another one gives another split.
    """

    by: str | None = None
    seed: int = 0

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`."""
        return (self.by or label,)

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`: hashes of the values."""
        return pa.array(_hashes(self.by or "label", columns[0]))

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`."""
        values, strata, counts = np.unique(
            narrowed.to_numpy(zero_copy_only=False), return_inverse=True, return_counts=True
        )
        if len(values) > MOST_STRATA:
            raise TrainingSetError(
                f"`{self.by or 'the label'}` has {len(values):,} distinct values, too many to "
                "keep the balance of. Split at random, or by a column with fewer of them."
            )
        order = np.lexsort((_draws(self.seed, len(strata)), strata))
        assigned = np.empty(len(order), np.int8)
        parts = [_cut(int(count), self._bounds) for count in counts]
        assigned[order] = np.concatenate(parts) if parts else np.zeros(0, np.int8)
        return self._refuse_empty(assigned)

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`."""
        fractions = dict(self.fractions)
        return {"rule": "stratified", "by": self.by, "fractions": fractions, "seed": self.seed}

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> StratifiedSplit:
        """The inverse of `as_manifest`."""
        return cls(values["fractions"], values["by"], values["seed"])


def _cut(rows: int, bounds: Sequence[Fraction]) -> NDArray[np.int8]:
    """The splits of so many rows in a drawn order: each to within one row of its part."""
    places = [int(rows * bound + Fraction(1, 2)) for bound in bounds]
    return np.searchsorted(places, np.arange(rows), side="right").astype(np.int8)


_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: each bit depends on each."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(_GOLDEN)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return found


def _mixed(value: int) -> np.uint64:
    mixed: np.uint64 = _mix(np.array([value], np.uint64))[0]
    return mixed


def _unsigned(value: int) -> int:
    return value & _MASK


def _draws(seed: int, rows: int) -> NDArray[np.uint64]:
    """A number per row that depends on seed and place alone."""
    return _mix(np.arange(rows, dtype=np.uint64) ^ _mixed(_unsigned(seed)))


def _hashes(name: str, column: pa.Array) -> NDArray[np.uint64]:
    """A number per value that is the same in every process and version."""
    if column.null_count:
        raise TrainingSetError(
            f"The rows are split by `{name}`, which is missing in {column.null_count} of "
            f"{len(column)} rows. Fill it, drop these rows, or split by another column."
        )
    column = plain(column)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        values = numbers(column)
        wide = values if values.dtype == np.uint64 else values.astype(np.int64)
        return _mix(wide.view(np.uint64))
    if pa.types.is_floating(column.type):
        return _mix((numbers(column).astype(np.float64) + 0.0).view(np.uint64))
    if not is_text(column.type):
        raise TrainingSetError(
            f"The rows cannot be split by `{name}` of type {column.type}: texts and numbers can."
        )
    encoded = column.dictionary_encode()
    hashed = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        for text in encoded.dictionary.to_pylist()
    ]
    found: NDArray[np.uint64] = np.array(hashed, np.uint64)[numbers(encoded.indices)]
    return found
