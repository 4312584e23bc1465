"""Which rows train, validate and test: by event time, so that no model sees later rows, or else.

A rule first makes of each batch a narrow column (`narrow`), of at most 8 bytes a row, and then
assigns all rows at once (`assign`), so that a set is never in memory whole.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import is_text, numbers, one_array, plain
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.timestamps import assume_utc, micros_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
LEFT_OUT = -1
"""Assigned to rows of no split."""

_TICKS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


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
class TimeSplit:
    """Splits rows by event time at one or two instants.

    A row trains if its event time is before `validation_from`, validates from there to before
    `test_from`, and tests from `test_from` on. Without one of the two there is no such split.

    Attributes:
        validation_from: first instant of validation; a naive datetime is UTC.
        test_from: first instant of test, later than `validation_from`.
        embargo: rows so long before the next split's first instant are left out, so that what a
            label was made of does not reach into it.

    Raises:
        TrainingSetError: the two are not in order, or are not datetimes.
    """

    validation_from: datetime | None = None
    test_from: datetime | None = None
    embargo: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        for name in ("validation_from", "test_from"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _utc(name, getattr(self, name)))
        if self.validation_from is None and self.test_from is None:
            raise TrainingSetError(
                "A split by time needs `validation_from`, `test_from` or both: without them all "
                "rows train, which is the rule `none`."
            )
        if None not in (self.validation_from, self.test_from) and not (
            self.validation_from < self.test_from  # type: ignore[operator]
        ):
            raise TrainingSetError(
                f"The split's `test_from` ({_iso(self.test_from)}) must be later than its "
                f"`validation_from` ({_iso(self.validation_from)})."
            )
        _check_embargo(self.embargo)

    @property
    def splits(self) -> tuple[str, ...]:
        """See `SplitRule.splits`."""
        return ("train", *(name for name, _ in self._boundaries))

    @property
    def _boundaries(self) -> list[tuple[str, datetime]]:
        given = {"validation": self.validation_from, "test": self.test_from}
        return [(name, instant) for name, instant in given.items() if instant is not None]

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`."""
        return (event_timestamp,)

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`: the event times."""
        _ticks(columns[0])
        return plain(columns[0])

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`.

        Instants are compared as integers, so that a row one nanosecond before a boundary is
        before it.
        """
        ticks, unit = _ticks(narrowed)
        bounds = [_boundary(instant, unit) for _, instant in self._boundaries]
        assigned = _by_time(numbers(ticks), bounds, _length(self.embargo, unit))
        self._refuse_empty(_empty(self.splits, assigned), narrowed)
        return assigned

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`: ISO 8601 instants in UTC."""
        instants = {f"{name}_from": instant.isoformat() for name, instant in self._boundaries}
        return {"rule": "event_time"} | instants | _embargo_json(self.embargo)

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> TimeSplit:
        """The inverse of `as_manifest`."""
        instants = {
            name: datetime.fromisoformat(values[name])
            for name in ("validation_from", "test_from")
            if values.get(name) is not None
        }
        return cls(**instants, embargo=_embargo_of(values))

    def masks(self, event_times: pa.Array | pa.ChunkedArray) -> dict[str, pa.BooleanArray]:
        """One boolean mask per split, in the order of the rows; each row is in exactly one.

        Instants are compared as integers, so that a row one nanosecond before a boundary is
        before it.

        Args:
            event_times: timestamps of any unit, without a time zone in UTC; or dates, which are
                their midnights.

        Raises:
            TrainingSetError: no timestamps, event times that are missing, or an empty split.
        """
        assigned = self.assign(one_array(event_times))
        return {name: pa.array(assigned == place) for place, name in enumerate(self.splits)}

    def _refuse_empty(self, empty: Sequence[str], event_times: pa.Array) -> None:
        if not empty:
            return
        rows = len(event_times)
        first, last = event_range(event_times) if rows else ("", "")
        found = f"{rows} rows run from {first} to {last}" if rows else "there are no rows"
        starts = [f"{name} starts at {instant.isoformat()}" for name, instant in self._boundaries]
        starts[1:] = [text.replace(" starts", "") for text in starts[1:]]
        raise TrainingSetError(
            f"The split leaves {' and '.join(empty)} empty: {found}, {' and '.join(starts)}. "
            "Move the boundaries into the range of the rows, or bring rows of that time."
        )


@dataclass(frozen=True)
class _OfFractions:
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
        empty = _empty(self.splits, assigned)
        if empty:
            raise TrainingSetError(
                f"The split leaves {' and '.join(empty)} empty: {len(assigned)} rows are too few "
                f"for the fractions {dict(self.fractions)}. Bring more rows, or change them."
            )
        return assigned


@dataclass(frozen=True)
class TimeFractions(_OfFractions):
    """Splits rows by event time, so that each split has its part of them.

    Rows of one event time are all in the later of the splits that they might be in.

    Attributes:
        embargo: as of `TimeSplit`.
    """

    embargo: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_embargo(self.embargo)

    def columns(self, event_timestamp: str, label: str) -> tuple[str, ...]:  # noqa: ARG002
        """See `SplitRule.columns`."""
        return (event_timestamp,)

    def narrow(self, columns: Sequence[pa.Array], first_row: int) -> pa.Array:  # noqa: ARG002
        """See `SplitRule.narrow`: the event times."""
        _ticks(columns[0])
        return plain(columns[0])

    def assign(self, narrowed: pa.Array) -> NDArray[np.int8]:
        """See `SplitRule.assign`."""
        array, unit = _ticks(narrowed)
        ticks = numbers(array)
        if not len(ticks):
            return self._refuse_empty(np.zeros(0, np.int8))
        places = [int(len(ticks) * bound) for bound in self._bounds]
        ordered = np.partition(ticks, places)
        bounds = [int(ordered[place]) for place in places]
        return self._refuse_empty(_by_time(ticks, bounds, _length(self.embargo, unit)))

    def as_manifest(self) -> dict[str, Any]:
        """See `SplitRule.as_manifest`."""
        return {"rule": "event_time_fractions", "fractions": dict(self.fractions)} | (
            _embargo_json(self.embargo)
        )

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> TimeFractions:
        """The inverse of `as_manifest`."""
        return cls(values["fractions"], _embargo_of(values))


@dataclass(frozen=True)
class GroupSplit(_OfFractions):
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
class RandomSplit(_OfFractions):
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
class StratifiedSplit(_OfFractions):
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


@dataclass(frozen=True)
class ColumnSplit:
    """Splits rows by what a column says.

    Attributes:
        column: its name.
        values: of each split the values that are in it. Default: the column has the names of the
            splits.

    Raises:
        TrainingSetError: no split `train`, an unknown one, or a value in two of them.
    """

    column: str
    values: Mapping[str, tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = {name: (name,) for name in SPLITS}
        if self.values is not None:
            given = {
                name: tuple(values if isinstance(values, (list, tuple)) else [values])
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
            for value in encoded.dictionary.to_pylist()
        ]
        found = pa.array(places, pa.int8()).take(encoded.indices)
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
        empty = _empty(names, assigned)
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


def event_range(event_times: pa.Array | pa.ChunkedArray) -> tuple[str, str]:
    """First and last of at least one event time, as ISO 8601 in UTC with every digit it has."""
    ticks, unit = _ticks(event_times)
    bounds = pc.min_max(ticks)
    return _text(bounds["min"], unit), _text(bounds["max"], unit)


def _text(ticks: pa.Int64Scalar, unit: str) -> str:
    text: str = ticks.cast(pa.timestamp(unit)).cast(pa.string()).as_py()
    return text.replace(" ", "T") + "+00:00"


def _ticks(event_times: pa.Array | pa.ChunkedArray) -> tuple[pa.Int64Array, str]:
    if pa.types.is_date(event_times.type):
        event_times = event_times.cast(pa.timestamp("s"))
    if not pa.types.is_timestamp(event_times.type):
        raise TrainingSetError(
            f"The event timestamp column holds {event_times.type}, not timestamps or dates. "
            "Cast it to a timestamp before writing the training set."
        )
    if event_times.null_count:
        raise TrainingSetError(
            f"The event timestamp is missing in {event_times.null_count} of {len(event_times)} "
            "rows, which belong to no split. Drop these rows or give them a time."
        )
    ticks = event_times.cast(pa.int64())
    if isinstance(ticks, pa.ChunkedArray):
        ticks = pa.concat_arrays(ticks.chunks) if ticks.num_chunks else pa.array([], pa.int64())
    return ticks, event_times.type.unit


def _boundary(instant: datetime, unit: str) -> int:
    """The smallest tick at or after an instant: rounding down would move rows over a boundary."""
    return -(-micros_of(instant) * _TICKS_PER_S[unit] // 10**6)


def _by_time(ticks: NDArray[np.int64], bounds: Sequence[int], embargo: int) -> NDArray[np.int8]:
    """The split of each time, and LEFT_OUT so little before the next one."""
    assigned = np.zeros(len(ticks), np.int8)
    for place, bound in enumerate(bounds):
        # Nanoseconds end in the year 2262; a later boundary is after every row.
        later = ticks >= bound if bound <= _INT64_MAX else np.zeros(len(ticks), bool)
        first = max(bound - embargo, _INT64_MIN)
        near = ticks >= first if first <= _INT64_MAX else np.zeros(len(ticks), bool)
        assigned[near & ~later & (assigned == place)] = LEFT_OUT
        assigned[later] = place + 1
    return assigned


def _length(embargo: timedelta, unit: str) -> int:
    """Ticks of an embargo, rounded up."""
    return -(-(embargo // timedelta(microseconds=1)) * _TICKS_PER_S[unit] // 10**6)


def _check_embargo(embargo: timedelta) -> None:
    if not isinstance(embargo, timedelta) or embargo < timedelta(0):
        raise TrainingSetError(f"The split's `embargo` is {embargo!r}: it must be a timedelta.")


def _embargo_json(embargo: timedelta) -> dict[str, float]:
    return {"embargo_s": embargo.total_seconds()} if embargo else {}


def _embargo_of(values: Mapping[str, Any]) -> timedelta:
    return timedelta(seconds=values.get("embargo_s", 0))


def _empty(names: Sequence[str], assigned: NDArray[np.int8]) -> list[str]:
    return [name for place, name in enumerate(names) if not (assigned == place).any()]


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


def _iso(instant: datetime | None) -> str:
    return instant.isoformat() if instant else ""


def _utc(name: str, instant: datetime) -> datetime:
    if not isinstance(instant, datetime):
        raise TrainingSetError(f"The split's `{name}` is {instant!r}: it must be a datetime.")
    return assume_utc(instant).astimezone(timezone.utc)
