"""How a column becomes numbers: declared, fitted on the rows that train alone, then applied.

An `Encoding` is what a user declares of a column, a `FittedEncoding` what came out of it: with its
categories or its mean, it is kept in a training set's manifest, and gives the same numbers in the
build and behind an endpoint. `fitting.Fitting` makes the one of the other.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from feast_dynamo_ext.arrow_types import (
    PER_SECOND,
    SECONDS_PER_DAY,
    is_list,
    is_text,
    is_time,
    numbers,
    one_array,
    plain,
)
from feast_dynamo_ext.config import DeclarationModel
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.exact import cast_exact, elements_of, without_nan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

Kind = Literal["number", "boolean", "ordinal", "one_hot", "hash", "epoch", "age", "list", "keep"]
CATEGORY_KINDS = ("ordinal", "one_hot", "hash")
TIME_KINDS = ("epoch", "age")

UNIT_SECONDS = {"min": 60, "h": 3_600, "day": SECONDS_PER_DAY}
"""Units of a time beyond those of Arrow, which are parts of a second."""

MOST_CATEGORIES = {"ordinal": 100_000, "one_hot": 1_000}
"""Categories that a manifest holds of one column; more of them are to be hashed or cut off."""

# Which options a kind has, beside `missing`.
_OPTIONS = {
    "ordinal": {"categories", "min_count", "max_categories", "unknown"},
    "one_hot": {"categories", "min_count", "max_categories", "unknown"},
    "hash": {"buckets"},
    "epoch": {"unit"},
    "age": {"unit"},
    "list": {"length", "pad", "longer"},
}


class Encoding(DeclarationModel):
    """How a column becomes numbers, as it is declared."""

    kind: Kind | None = Field(default=None, alias="encoding")
    """`number`, `boolean` (0 and 1), `ordinal` (a code per category), `one_hot` (a column per
    category), `hash` (blake2b modulo `buckets`), `epoch` (whole units since 1970), `age` (units
    from the value to the row's event time), `list` (a column per element), or `keep` (as it is;
    for the target `script` alone). Default: `number` or `boolean`, as the column's type is."""

    missing: Literal["keep", "mean", "median"] | float = "keep"
    """What stands for a missing value: `keep` leaves it missing; a number; or, of numbers, the
    `mean` or `median` of the rows that train."""

    categories: list[str] | list[int] | list[bool] | None = None
    """Of `ordinal` and `one_hot`: the categories, in the order of their codes. Default: those of
    the rows that train, the most frequent first, equally frequent ones by their text."""

    min_count: int = Field(default=1, ge=1)
    """Of `ordinal` and `one_hot`: rows that train which a category needs; others are unknown."""

    max_categories: int | None = Field(default=None, ge=1)
    """Of `ordinal` and `one_hot`: the most categories; less frequent ones are unknown."""

    unknown: Literal["missing", "column"] | int | None = None
    """What stands for a category that is none of the known: a number (default -1 for `ordinal`, 0
    in all columns for `one_hot`), `missing` (it is as a missing one), or, of `one_hot`, `column`:
    a last column of its own."""

    buckets: int | None = Field(default=None, ge=2, le=2**31 - 1)
    """Of `hash`: how many numbers, from 0 on, the categories are hashed to."""

    unit: Literal["ns", "us", "ms", "s", "min", "h", "day"] = "s"
    """Of `epoch` and `age`: the unit that is counted."""

    length: int | None = Field(default=None, ge=1, le=10_000)
    """Of `list`: how many elements, each of which becomes a column."""

    pad: float | None = None
    """Of `list`: what stands behind the last element of a shorter list. Default: it is missing,
    as a null in a list is."""

    longer: Literal["refuse", "cut"] = "refuse"
    """Of `list`: whether a longer list is an error or loses its last elements."""

    def checked(self) -> Self:
        """See `DeclarationModel.checked`."""
        given = self.model_fields_set - {"kind", "missing", "role"}
        others = sorted(given - _OPTIONS.get(self.kind or "", set()))
        if others and self.kind is None:
            kinds = [f"`{kind}`" for kind, options in _OPTIONS.items() if others[0] in options]
            raise ValueError(
                f"`{others[0]}` is an option of {' and '.join(kinds)}: name the `encoding`"
            )
        if others:
            raise ValueError(f"`{others[0]}` is not an option of `{self.kind}`; leave it out")
        needed = {"hash": "buckets", "list": "length"}.get(self.kind or "")
        if needed and getattr(self, needed) is None:
            raise ValueError(f"`{self.kind}` needs `{needed}`: say how many")
        if self.missing in ("mean", "median") and self.kind not in (None, "number"):
            raise ValueError(f"`missing: {self.missing}` is for numbers, not for `{self.kind}`")
        is_whole = isinstance(self.missing, str) or self.missing.is_integer()
        if self.kind in ("boolean", *CATEGORY_KINDS, "epoch") and not is_whole:
            raise ValueError(f"`missing` of `{self.kind}` must be a whole number")
        if self.kind == "keep" and self.missing != "keep":
            raise ValueError("`keep` leaves a column as it is, missing values too")
        if self.kind != "one_hot" and self.unknown == "column":
            raise ValueError("`unknown: column` is for `one_hot`")
        if self.categories is not None:
            self._check_categories(self.categories)
        return self

    def _check_categories(self, categories: Sequence[Any]) -> None:
        if not categories:
            raise ValueError("`categories` is empty: name them, or leave it out")
        if len(set(categories)) < len(categories):
            raise ValueError("`categories` names one of them twice")
        cuts = sorted({"max_categories", "min_count"} & self.model_fields_set)
        if cuts:
            raise ValueError(
                f"all `categories` are named: `{cuts[0]}` cuts none off, leave it out"
            )


# What is fitted


@dataclass(frozen=True)
class FittedEncoding:
    """An encoding with all that it needs to encode, as a manifest keeps it.

    Attributes:
        column: name of the join's column, or of the online answer's.
        kind: as of `Encoding.kind`.
        outputs: names of the columns that it becomes, in order: `city`, `city=Paris`, `tags[0]`.
        types: Arrow types of them, as text.
        input_type: Arrow type of the column in the join, as text.
        state: what was declared and fitted, of JSON's own types.
    """

    column: str
    kind: str
    outputs: tuple[str, ...]
    types: tuple[str, ...]
    input_type: str
    state: Mapping[str, Any]

    def encode(
        self,
        values: pa.Array | pa.ChunkedArray,
        event_times: pa.Array | pa.ChunkedArray | None = None,
    ) -> list[pa.Array]:
        """The columns of `outputs`, each of its type in `types`; a row each per value.

        Args:
            values: the column, of the join or of an online answer.
            event_times: the rows' event times; needed for `age` alone.

        Raises:
            TrainingSetError: a value that cannot be encoded without a change; says how many.
        """
        array = one_array(values)
        with of_column(self.column):
            found = _ENCODERS[self.kind](self, array, event_times)
            fill = self.state.get("missing")
            return [
                cast_exact(each if fill is None else _filled(each, fill), kind)
                for each, kind in zip(found, self._arrow_types, strict=True)
            ]

    @property
    def is_categorical(self) -> bool:
        """Whether its one output holds codes of categories, which have no order."""
        return self.kind in ("ordinal", "hash")

    def nullable(self) -> FittedEncoding:
        """The same with float64 for integers, which some readers refuse where one is missing."""
        types = [
            "double" if pa.types.is_integer(kind) else str(kind) for kind in self._arrow_types
        ]
        return replace(self, types=tuple(types))

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return {
            "column": self.column,
            "kind": self.kind,
            "outputs": list(self.outputs),
            "types": list(self.types),
            "input_type": self.input_type,
            "state": dict(self.state),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FittedEncoding:
        """The inverse of `to_json`.

        Raises:
            ValueError: a kind that this version does not know.
        """
        if values["kind"] not in _ENCODERS:
            raise ValueError(f"unknown encoding `{values['kind']}`")
        return cls(
            values["column"],
            values["kind"],
            tuple(values["outputs"]),
            tuple(values["types"]),
            values["input_type"],
            values["state"],
        )

    @functools.cached_property
    def _arrow_types(self) -> tuple[pa.DataType, ...]:
        return tuple(map(arrow_type, self.types))

    @functools.cached_property
    def _codes(self) -> dict[Any, int]:
        return {value: code for code, value in enumerate(self.state["categories"])}


_TIMESTAMP = re.compile(r"timestamp\[(s|ms|us|ns)(?:, tz=(.+))?\]")

_DECIMAL = re.compile(r"decimal(32|64|128|256)\((\d+), (-?\d+)\)")
_DECIMALS = {
    "32": pa.decimal32,
    "64": pa.decimal64,
    "128": pa.decimal128,
    "256": pa.decimal256,
}


def arrow_type(text: str) -> pa.DataType:
    """The Arrow type of a text that `str` gave, of a type that an output can have.

    Raises:
        ValueError: the text is of no such type.
    """
    stamp, decimal = _TIMESTAMP.fullmatch(text), _DECIMAL.fullmatch(text)
    if stamp:
        return pa.timestamp(stamp[1], stamp[2])
    if decimal:
        return _DECIMALS[decimal[1]](int(decimal[2]), int(decimal[3]))
    return pa.type_for_alias(text)


class of_column:  # noqa: N801 - a context manager, cheaper than a generator where a row is served
    """Names the column in errors."""

    def __init__(self, column: str) -> None:
        self._column = column

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (ValueError, pa.ArrowException)):
            raise TrainingSetError(f"Column `{self._column}`: {error}.") from error


def _filled(array: pa.Array, fill: float) -> pa.Array:
    if not array.null_count:
        return array
    if pa.types.is_uint64(array.type) and fill >= 0 and float(fill).is_integer():
        return array.fill_null(pa.scalar(int(fill), array.type))  # which int64 does not hold
    if float(fill).is_integer() and pa.types.is_integer(array.type):
        return array.cast(pa.int64()).fill_null(int(fill))
    return cast_exact(array, pa.float64()).fill_null(fill)


def _number(_: FittedEncoding, array: pa.Array, __: Any) -> list[pa.Array]:
    array = finite(plain(array))
    return [array.cast(pa.int64()) if pa.types.is_boolean(array.type) else array]


def finite(array: pa.Array) -> pa.Array:
    """Without NaN, which is missing, and without infinity, which is an error."""
    array = without_nan(array)
    if pa.types.is_floating(array.type):
        infinite = pc.sum(pc.is_inf(array)).as_py() or 0
        if infinite:
            raise ValueError(
                f"{infinite} of {len(array)} values are infinite, which most algorithms refuse. "
                "Replace them by null, which reads as missing, or by a number"
            )
    return array


def _boolean(_: FittedEncoding, array: pa.Array, __: Any) -> list[pa.Array]:
    return [cast_exact(plain(array), pa.bool_()).cast(pa.int64())]


def _codes_of(fitted: FittedEncoding, array: pa.Array) -> pa.Array:
    """The code of each value, -1 for an unknown and null for a missing one."""
    distinct, indices = distinct_values(array)
    known = fitted._codes
    # Looked up once per distinct value.
    return pa.array([known.get(value, -1) for value in distinct], pa.int32()).take(indices)


def _ordinal(fitted: FittedEncoding, array: pa.Array, _: Any) -> list[pa.Array]:
    codes, unknown = _codes_of(fitted, array), fitted.state["unknown"]
    if unknown == -1:
        return [codes]
    value = pa.scalar(None if unknown == "missing" else unknown, pa.int32())
    return [pc.if_else(pc.equal(codes, -1), value, codes)]


_MISSING = -2


def _one_hot(fitted: FittedEncoding, array: pa.Array, _: Any) -> list[pa.Array]:
    codes, unknown = _codes_of(fitted, array), fitted.state["unknown"]
    values = numbers(codes.fill_null(_MISSING))
    is_unknown, is_missing = values == -1, values == _MISSING
    if unknown == "missing":
        is_missing |= is_unknown
    mask = is_missing if is_missing.any() else None
    found = []
    for code in range(len(fitted.state["categories"])):
        column = (values == code).astype(np.int8)
        if isinstance(unknown, int):
            column[is_unknown] = unknown
        found.append(pa.array(column, mask=mask))
    if unknown == "column":
        found.append(pa.array(is_unknown.astype(np.int8), mask=mask))
    return found


def _hash(fitted: FittedEncoding, array: pa.Array, _: Any) -> list[pa.Array]:
    distinct, indices = distinct_values(array)
    buckets = fitted.state["buckets"]
    hashed = pa.array([bucket_of(value, buckets) for value in distinct], pa.int32())
    return [hashed.take(indices)]


# The same categories come block after block.
@functools.lru_cache(maxsize=1 << 16, typed=True)
def bucket_of(value: str | int | bool, buckets: int) -> int:
    """The number from 0 to below `buckets` that a category is hashed to.

    The first 8 bytes of blake2b (`digest_size=8`) of the text in UTF-8, as a number with the
    highest byte first, modulo `buckets`. A whole number is its decimal digits, a boolean `true`
    or `false`.
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % buckets


def distinct_values(array: pa.Array) -> tuple[list[Any], pa.Array]:
    """The distinct categories of a column, and for each row the place of its own, or null.

    Raises:
        ValueError: no texts, whole numbers or booleans.
    """
    if not pa.types.is_dictionary(array.type):
        array = _whole(plain(array)).dictionary_encode()
    values = _whole(array.dictionary)
    check_category(values.type)
    indices = array.indices
    if values.null_count:  # a null may stand in the dictionary, too
        indices = pc.if_else(values.is_null().take(indices), None, indices)
    return values.to_pylist(), indices


def _whole(values: pa.Array) -> pa.Array:
    """Floats as whole numbers, as which pandas holds those of which some are missing."""
    is_float = pa.types.is_floating(values.type)
    return cast_exact(without_nan(values), pa.int64()) if is_float else values


def check_category(kind: pa.DataType) -> None:
    """Refuse a type that has no categories.

    Raises:
        ValueError: neither texts, whole numbers nor booleans.
    """
    tests = (is_text, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    if not any(test(kind) for test in tests):
        raise ValueError(f"{kind} has no categories: texts, whole numbers and booleans have")


def _ticks(array: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, str]:
    """Times as whole units since 1970, and the unit."""
    array = plain(one_array(array))
    if not (is_time(array.type) or pa.types.is_null(array.type)):
        raise ValueError(f"{array.type} is no time")
    if not pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("s"))
    return array.cast(pa.int64()), array.type.unit


def per_unit(unit: str, ticks: str) -> tuple[int, int]:
    """Ticks of Arrow's unit in a unit, as a fraction: one of the two is 1."""
    if unit in UNIT_SECONDS:
        return UNIT_SECONDS[unit] * PER_SECOND[ticks], 1
    ours, theirs = PER_SECOND[unit], PER_SECOND[ticks]
    return (theirs // ours, 1) if theirs >= ours else (1, ours // theirs)


@contextlib.contextmanager
def _within_64_bits(unit: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"a time is so far from the others that it cannot be counted in {unit}, as 9999-12-31 "
            "for `never` may be. Replace it by null, which reads as missing, or keep all times in "
            "a coarser unit, such as microseconds"
        ) from error


def _epoch(fitted: FittedEncoding, array: pa.Array, _: Any) -> list[pa.Array]:
    ticks, unit = _ticks(array)
    over, times = per_unit(fitted.state["unit"], unit)
    if times > 1:
        with _within_64_bits(fitted.state["unit"]):
            return [pc.multiply_checked(ticks, times)]
    missing = np.asarray(ticks.is_null()) if ticks.null_count else None
    return [pa.array(numbers(ticks) // over, pa.int64(), mask=missing)]


def _age(fitted: FittedEncoding, array: pa.Array, event_times: Any) -> list[pa.Array]:
    if event_times is None:
        raise ValueError("its age needs the rows' event times")
    ticks, unit = _ticks(array)
    until, other = _ticks(event_times)
    finest = max(unit, other, key=PER_SECOND.__getitem__)
    over, times = per_unit(fitted.state["unit"], finest)
    with _within_64_bits(finest):
        ticks, until = (
            pc.multiply_checked(each, PER_SECOND[finest] // PER_SECOND[its])
            for each, its in ((ticks, unit), (until, other))
        )
        age = pc.subtract_checked(until, ticks)
    missing = np.asarray(age.is_null()) if age.null_count else None
    return [pa.array(numbers(age) * float(times) / float(over), pa.float64(), mask=missing)]


def _list(fitted: FittedEncoding, array: pa.Array, _: Any) -> list[pa.Array]:
    length, pad = fitted.state["length"], fitted.state["pad"]
    array = plain(array)
    if pa.types.is_null(array.type):
        return [pa.nulls(len(array), kind) for kind in fitted._arrow_types]
    if not is_list(array.type):
        raise ValueError(f"{array.type} is no list")
    lengths = numbers(pc.list_value_length(array)).astype(np.int64)
    longer = int((lengths > length).sum())
    if longer and fitted.state["longer"] == "refuse":
        raise ValueError(
            f"{longer} of {len(array)} lists have more than {length} elements. Declare a greater "
            "`length`, or `longer: cut`"
        )
    elements = elements_of(array)
    if pa.types.is_boolean(elements.type):
        elements = elements.cast(pa.int64())
    kind = fitted._arrow_types[0]
    elements = cast_exact(finite(elements), kind)
    starts = np.cumsum(lengths) - lengths
    is_null = np.asarray(array.is_null())
    found = []
    for place in range(length):
        is_there = lengths > place
        column = elements.take(pa.array(starts + place, mask=~is_there))
        if pad is not None:
            column = pc.if_else(pa.array(is_there | is_null), column, pa.scalar(pad, kind))
        found.append(column)
    return found


def _keep(_: FittedEncoding, array: pa.Array, __: Any) -> list[pa.Array]:
    return [without_nan(plain(array))]


_ENCODERS = {
    "number": _number,
    "boolean": _boolean,
    "ordinal": _ordinal,
    "one_hot": _one_hot,
    "hash": _hash,
    "epoch": _epoch,
    "age": _age,
    "list": _list,
    "keep": _keep,
}


def with_categories(fitted: FittedEncoding, categories: Sequence[Any]) -> FittedEncoding:
    """An encoding of categories with these in the order of their codes."""
    state = dict(fitted.state) | {"categories": list(categories)}
    if fitted.kind == "ordinal":
        return replace(fitted, state=state)
    names = [
        f"{fitted.column}={str(value).lower() if isinstance(value, bool) else value}"
        for value in categories
    ]
    if state["unknown"] == "column":
        names.append(f"{fitted.column}=(unknown)")
    types = ("int8",) * len(names)
    return replace(fitted, outputs=tuple(names), types=types, state=state)
