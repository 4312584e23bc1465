"""What a split rule is, and what rules by fractions share.

A rule first makes of each batch a narrow column (`narrow`), of at most 8 bytes a row, and then
assigns all rows at once (`assign`), so that a set is never in memory whole.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext.errors import TrainingSetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
LEFT_OUT = -1
"""Assigned to rows of no split."""


class SplitRule(Protocol):
    """What decides which split a row is in."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits, `train` first."""

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:
        """The columns that it reads, given the names of event time and label."""

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:
        """What it needs of some rows, given those columns and the place of the first row.

        Raises:
            TrainingSetError: rows that belong to no split, such as those without event time.
        """

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """Of every row the place of its split in `splits`, or LEFT_OUT.

        Args:
            narrowed: of all rows, in order.

        Raises:
            TrainingSetError: a split without rows.
        """

    def as_manifest(self) -> dict[str, Any]:
        """The rule as it stands in a manifest."""


@dataclass(frozen=True)
class OfFractions:
    """What rules by fractions share.

    Attributes:
        fractions: of each split its part of the rows: two or three of them with `train`, which
            add up to 1.

    Raises:
        TrainingSetError: they do not, or a split has another name.
    """

    fractions: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = dict(self.fractions)
        exact = [Fraction(str(part)) for part in given.values()]
        if (
            not {"train"} < given.keys() <= set(SPLITS)
            or any(part <= 0 for part in exact)
            or abs(sum(exact, Fraction(-1))) > Fraction(1, 10**9)
        ):
            raise TrainingSetError(
                f"The split's `fractions` are {given}: name `train` and one or both of "
                "`validation` and `test`, each with its part of the rows, which add up to 1."
            )
        in_order = {name: float(given[name]) for name in SPLITS if name in given}
        object.__setattr__(self, "fractions", in_order)

    def __hash__(self) -> int:
        return hash(tuple(self.fractions.items()))

    @property
    def splits(self) -> tuple[str, ...]:
        """See `SplitRule.splits`."""
        return tuple(self.fractions)

    @property
    def _bounds(self) -> list[Fraction]:
        """Where in 0 to 1 each split but the first begins."""
        parts = [Fraction(str(part)) for part in self.fractions.values()]
        return list(itertools.accumulate(parts))[:-1]

    def _refuse_empty(self, assigned: NDArray[np.int8]) -> NDArray[np.int8]:
        empty = empty_splits(self.splits, assigned)
        if empty:
            raise TrainingSetError(
                f"The split leaves {' and '.join(empty)} empty: {len(assigned)} rows are too few "
                f"for the fractions {dict(self.fractions)}. Bring more rows, or change them."
            )
        return assigned


def empty_splits(names: Sequence[str], assigned: NDArray[np.int8]) -> list[str]:
    """The splits to which no row is assigned."""
    return [name for place, name in enumerate(names) if not (assigned == place).any()]
