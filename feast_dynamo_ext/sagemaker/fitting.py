"""Fits encodings on the rows that train, and on no other: categories, means, medians.

`Fitting` takes `TrainRows` and nothing else, and these are cut out of a batch by the split's own
assignment, so nothing can be fitted on a row that does not train.
"""

from __future__ import annotations

import collections
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import (
    is_list,
    is_number,
    is_text,
    is_time,
    numbers,
    plain,
    plain_type,
)
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.exact import cast_exact
from feast_dynamo_ext.sagemaker.encodings import (
    CATEGORY_KINDS,
    MOST_CATEGORIES,
    TIME_KINDS,
    Encoding,
    FittedEncoding,
    check_category,
    distinct_values,
    finite,
    of_column,
    with_categories,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

TRAIN = 0
"""What a split assigns to a row that trains."""

EXACT = 2**53
"""Below it a whole number that is declared, and read as a double, is the one that was meant."""

MOST_DISTINCT = 2_000_000
"""Categories of a column that are counted in memory."""


class TrainRows:
    """Rows that train, cut out of a batch by what a split assigned; there is no other way in.

    Attributes:
        batch: the rows.
    """

    def __init__(self, batch: pa.RecordBatch, assigned: NDArray[np.int8]) -> None:
        """The rows of a batch that train.

        Args:
            batch: rows of any split.
            assigned: of each row the place of its split, as `split.assign` gave it.
        """
        self.batch = batch.filter(pa.array(assigned == TRAIN))


class Fitting:
    """Fits the encodings of several columns side by side, in one pass over the rows or more.

    ::

        while fitting.columns:
            for rows in spool.train_rows(fitting.columns):
                fitting.add(rows)
            fitting.end_pass()
        fitted = fitting.finish()

    Attributes:
        columns: those of which the next pass needs the values; none once all is fitted.
    """

    def __init__(
        self,
        encodings: Mapping[str, Encoding],
        types: Mapping[str, pa.DataType],
        *,
        keeps: bool = False,
    ) -> None:
        """Nothing is fitted yet.

        Args:
            encodings: those declared, by column.
            types: Arrow type of each column to be encoded, in order.
            keeps: whether texts and times without a declared encoding stay as they are.

        Raises:
            TrainingSetError: columns whose type needs an encoding or cannot have the declared
                one; names all of them.
        """
        problems, self._fits = [], dict[str, _Fit]()
        for column, kind in types.items():
            encoding = encodings.get(column) or Encoding()
            try:
                self._fits[column] = _fit_of(column, encoding, plain_type(kind), keeps=keeps)
            except ValueError as error:
                problems.append(f"`{column}` ({kind}): {error}")
        if problems:
            raise TrainingSetError(
                f"{len(problems)} columns cannot be encoded as declared: {'; '.join(problems)}."
            )

    @property
    def columns(self) -> list[str]:  # noqa: D102 - above
        return [column for column, fit in self._fits.items() if fit.passes]

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each column's encoding."""
        return {column: fit.fitted.kind for column, fit in self._fits.items()}

    def add(self, rows: TrainRows) -> None:
        """Take rows that train into account.

        Raises:
            TypeError: the rows are no `TrainRows`.
            TrainingSetError: a value that cannot be fitted.
        """
        if not isinstance(rows, TrainRows):
            raise TypeError(f"encodings are fitted on TrainRows, not on {type(rows).__name__}")
        for column in self.columns:
            with of_column(column):
                self._fits[column].add(rows.batch.column(column))

    def end_pass(self) -> None:
        """All rows that train were added."""
        for column in self.columns:
            with of_column(column):
                self._fits[column].end_pass()

    def finish(self) -> dict[str, FittedEncoding]:
        """The fitted encodings, by column.

        Raises:
            TrainingSetError: a pass is missing.
        """
        if self.columns:
            raise TrainingSetError(f"The columns {self.columns} are not fitted yet.")
        return {column: fit.fitted for column, fit in self._fits.items()}


class _Fit:
    """Of an encoding that needs no rows; the others are below."""

    passes = 0

    def __init__(self, fitted: FittedEncoding) -> None:
        self.fitted = fitted

    def add(self, values: pa.Array) -> None:
        """Take values into account."""

    def end_pass(self) -> None:
        """All values were added."""


class _Categories(_Fit):
    passes = 1

    def __init__(self, fitted: FittedEncoding, encoding: Encoding) -> None:
        super().__init__(fitted)
        self._encoding = encoding
        self._counts: collections.Counter[Any] = collections.Counter()

    def add(self, values: pa.Array) -> None:
        distinct, indices = distinct_values(values)
        counts = np.bincount(numbers(indices.drop_null()), minlength=len(distinct))
        for value, count in zip(distinct, counts.tolist(), strict=True):
            if count:
                self._counts[value] += count
        if len(self._counts) > MOST_DISTINCT:
            raise ValueError(
                f"more than {MOST_DISTINCT:,} distinct values are too many to be categories. "
                "Encode it by `hash`, or leave it out"
            )

    def end_pass(self) -> None:
        self.passes = 0
        found = [
            value for value, count in self._counts.items() if count >= self._encoding.min_count
        ]
        found = sorted(found, key=lambda value: (-self._counts[value], value))
        found = found[: self._encoding.max_categories]
        most = MOST_CATEGORIES[self.fitted.kind]
        if len(found) > most:
            raise ValueError(
                f"{len(found):,} categories are more than the {most:,} of `{self.fitted.kind}`. "
                "Declare `max_categories` or a greater `min_count`, or encode it by `hash`"
            )
        if not found:
            raise ValueError("the rows that train have no category of it. Declare `categories`")
        self.fitted = with_categories(self.fitted, found)


class _Mean(_Fit):
    passes = 1

    def __init__(self, fitted: FittedEncoding) -> None:
        super().__init__(fitted)
        self._sum = ExactSum()

    def add(self, values: pa.Array) -> None:
        self._sum.add(present_numbers(values))

    def end_pass(self) -> None:
        self.passes = 0
        mean = self._sum.mean
        if mean is None:
            raise ValueError("the rows that train have no value of it, so it has no mean")
        self.fitted = replace(self.fitted, state={**self.fitted.state, "missing": mean})


class ExactSum:
    """A sum of numbers without any rounding, in whatever order and pieces they come.

    Attributes:
        count: how many were added.
    """

    def __init__(self) -> None:
        """Nothing was added yet."""
        self.count = 0
        self._whole = 0
        # Of doubles: the sum of whole mantissas by exponent.
        self._by_exponent: collections.Counter[int] = collections.Counter()

    def add(self, values: NDArray[Any]) -> None:
        """Add finite numbers: whole ones, or floats of any width."""
        self.count += len(values)
        if values.dtype.kind != "f":
            wide = values if values.dtype == np.uint64 else values.astype(np.int64)
            # Two halves, as the sum of some million int64 may be none.
            for half, bits in ((wide >> 32, 32), (wide & 0xFFFFFFFF, 0)):
                self._whole += int(half.astype(np.int64).sum()) << bits
            return
        mantissas, exponents = np.frexp(values.astype(np.float64))
        whole = np.ldexp(mantissas, 53).astype(np.int64)
        first = int(exponents.min()) if len(values) else 0
        for half, bits in ((whole >> 26, 26), (whole & 0x3FFFFFF, 0)):
            # Doubles hold the sum of 2**26 halves; batches have fewer rows.
            sums = np.bincount(exponents - first, weights=half)
            for place in np.flatnonzero(sums):
                self._by_exponent[first + int(place)] += int(sums[place]) << bits

    @property
    def total(self) -> Fraction:
        """The sum."""
        return Fraction(self._whole) + sum(
            Fraction(whole) * Fraction(2) ** (exponent - 53)
            for exponent, whole in self._by_exponent.items()
        )

    @property
    def mean(self) -> float | None:
        """The mean, rounded once to the nearest double; None of nothing."""
        return float(self.total / self.count) if self.count else None


def present_numbers(values: pa.Array) -> NDArray[Any]:
    """The numbers of a column that are neither missing nor NaN: whole ones, or doubles.

    Raises:
        ValueError: an infinite value, or a decimal that no double is.
    """
    array = finite(plain(values)).drop_null()
    if pa.types.is_boolean(array.type):
        return numbers(array)
    whole = pa.types.is_integer(array.type)
    return numbers(array if whole else cast_exact(array, pa.float64()))


class _Median(_Fit):
    """The exact median in four passes, which look at 16 bits each, in bounded memory."""

    passes = 4

    def __init__(self, fitted: FittedEncoding) -> None:
        super().__init__(fitted)
        self._dtype: Any = np.float64
        # Of each of the two middle values: the bits that are known, and its rank among the values
        # that begin with these.
        self._targets: list[tuple[int, int]] | None = None
        self._counts: dict[int, NDArray[np.int64]] = {}

    def add(self, values: pa.Array) -> None:
        found = present_numbers(values)
        self._dtype = found.dtype
        keys, shift = _ordered_bits(found), np.uint64(16 * (self.passes - 1))
        known = {prefix for prefix, _ in self._targets or [(0, 0)]}
        # A shift by 64 bits would be none.
        above = keys >> shift >> np.uint64(16) if self._targets else np.zeros_like(keys)
        for prefix in known:
            bits = (keys[above == np.uint64(prefix)] >> shift) & np.uint64(0xFFFF)
            counts = np.bincount(bits.astype(np.int64), minlength=1 << 16)
            self._counts[prefix] = self._counts.get(prefix, 0) + counts

    def end_pass(self) -> None:
        if self._targets is None:
            count = int(self._counts[0].sum()) if self._counts else 0
            if not count:
                raise ValueError("the rows that train have no value of it, so it has no median")
            self._targets = [(0, (count - 1) // 2), (0, count // 2)]
        found = []
        for prefix, rank in self._targets:
            ends = self._counts[prefix].cumsum()
            place = int(np.searchsorted(ends, rank, side="right"))
            before = int(ends[place - 1]) if place else 0
            found.append(((prefix << 16) | place, rank - before))
        self._targets, self._counts = found, {}
        self.passes -= 1
        if not self.passes:
            low, high = (Fraction(_from_bits(bits, self._dtype)) for bits, _ in found)
            state = {**self.fitted.state, "missing": float((low + high) / 2)}
            self.fitted = replace(self.fitted, state=state)


_SIGN = np.uint64(1 << 63)


def _ordered_bits(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Bits that, as whole numbers, have the order of the values."""
    if values.dtype.kind == "f":
        bits = (values.astype(np.float64) + 0.0).view(np.uint64)  # of -0.0 it makes 0.0
        found: NDArray[np.uint64] = np.where(bits & _SIGN, ~bits, bits | _SIGN)
        return found
    if values.dtype.kind == "u":
        return values.astype(np.uint64)
    signed: NDArray[np.uint64] = values.astype(np.int64).view(np.uint64) ^ _SIGN
    return signed


def _from_bits(bits: int, dtype: Any) -> int | float:
    array = np.array([bits], np.uint64)
    if np.dtype(dtype).kind == "f":
        return float(np.where(array & _SIGN, array ^ _SIGN, ~array).view(np.float64)[0])
    if np.dtype(dtype).kind == "u":
        return int(array[0])
    return int((array ^ _SIGN).view(np.int64)[0])


def _fit_of(column: str, encoding: Encoding, kind: pa.DataType, *, keeps: bool) -> _Fit:
    """What fits a column.

    Raises:
        ValueError: its type needs a declared encoding, or cannot have this one.
    """
    name = encoding.kind or _kind_of(kind, keeps=keeps)
    _check_kind(name, kind)
    missing: float | None = None if isinstance(encoding.missing, str) else encoding.missing
    if missing is not None and missing.is_integer() and abs(missing) < EXACT:
        missing = int(missing)
    if name == "keep" and encoding.missing != "keep":
        raise ValueError("it is kept as it is, so `missing` applies to nothing: leave it out")
    if name == "boolean" and encoding.missing in ("mean", "median"):
        raise ValueError(
            f"`missing: {encoding.missing}` is for numbers; declare `encoding: number` beside it"
        )
    state: dict[str, Any] = {} if name == "keep" else {"missing": missing}
    types = [_output_type(name, kind, encoding)]
    outputs = [column]
    if name in ("ordinal", "one_hot"):
        default = -1 if name == "ordinal" else 0
        state["unknown"] = default if encoding.unknown is None else encoding.unknown
        state["categories"] = []
    elif name == "hash":
        state["buckets"] = encoding.buckets
    elif name in TIME_KINDS:
        state["unit"] = encoding.unit
    elif name == "list":
        state |= {"length": encoding.length, "pad": encoding.pad, "longer": encoding.longer}
        outputs = [f"{column}[{place}]" for place in range(encoding.length or 0)]
        types *= len(outputs)
    fills = {"missing": missing, "unknown": state.get("unknown"), "pad": state.get("pad")}
    for option, fill in fills.items():
        if isinstance(fill, (int, float)):
            _check_fill(option, fill, types[0])
    texts = tuple(map(str, types))
    fitted = FittedEncoding(column, name, tuple(outputs), texts, str(kind), state)
    if name in ("ordinal", "one_hot"):
        if encoding.categories is not None:
            return _Fit(with_categories(fitted, _categories_of(encoding.categories, kind)))
        return _Categories(fitted, encoding)
    if encoding.missing == "mean":
        return _Mean(fitted)
    return _Median(fitted) if encoding.missing == "median" else _Fit(fitted)


def _check_fill(option: str, fill: float, kind: pa.DataType) -> None:
    """Refuse a declared number that the encoded column cannot hold, whether it is needed or not.

    Behind an endpoint it may be needed for the first time.

    Raises:
        ValueError: says what the column can hold.
    """
    if pa.types.is_integer(kind):
        limits = np.iinfo(kind.to_pandas_dtype())
        low, high = max(int(limits.min), 1 - EXACT), min(int(limits.max), EXACT - 1)
        if not (low <= fill <= high and float(fill).is_integer()):
            raise ValueError(
                f"`{option}: {fill}` is no {kind}, as which it is written: whole numbers from "
                f"{low} to {high} are. Choose one, or give the column a wider type"
            )
    elif pa.types.is_float32(kind) and abs(fill) > float(np.finfo(np.float32).max):
        raise ValueError(f"`{option}: {fill}` is beyond {kind}, as which it is written")


def _kind_of(kind: pa.DataType, *, keeps: bool) -> str:
    if is_number(kind) or pa.types.is_null(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "boolean"
    if is_text(kind):
        choices = "`ordinal`, `one_hot` or `hash`"
    elif is_time(kind):
        choices = "`epoch` or `age`"
    elif is_list(kind):
        raise ValueError("algorithms read numbers; declare its encoding: `list` with a `length`")
    else:
        raise ValueError("no encoding takes this type; leave it out, or make it a helper")
    if keeps:
        return "keep"
    raise ValueError(
        f"algorithms read numbers; declare its encoding: {choices}, or `keep` for the target "
        "`script`, or leave it out"
    )


def _check_kind(name: str, kind: pa.DataType) -> None:
    if pa.types.is_null(kind) and name != "keep":
        return
    if name in CATEGORY_KINDS:
        if not pa.types.is_floating(kind):
            check_category(kind)
        return
    is_simple = is_number(kind) or pa.types.is_boolean(kind)
    fits = {
        "number": is_simple,
        "boolean": is_simple,
        "epoch": is_time(kind),
        "age": is_time(kind),
        "list": is_list(kind) and _holds_numbers(kind),
        "keep": is_simple or is_text(kind) or is_time(kind),
    }
    if not fits[name]:
        raise ValueError(f"`{name}` does not take {kind}")


def _holds_numbers(kind: pa.DataType) -> bool:
    return is_number(kind.value_type) or bool(pa.types.is_boolean(kind.value_type))


def _output_type(name: str, kind: pa.DataType, encoding: Encoding) -> pa.DataType:
    fixed = {
        "boolean": pa.int64(),
        "ordinal": pa.int32(),
        "one_hot": pa.int8(),
        "hash": pa.int32(),
        "epoch": pa.int64(),
        "age": pa.float64(),
    }
    if name in fixed:
        return fixed[name]
    if name == "keep":
        kind = pa.string() if is_text(kind) else kind
        return pa.float32() if pa.types.is_float16(kind) else kind
    if name == "list" and is_list(kind):
        kind = kind.value_type
    fills: Iterable[Any] = (encoding.missing, encoding.pad)
    is_fraction = any(
        fill in ("mean", "median") or (isinstance(fill, float) and not fill.is_integer())
        for fill in fills
    )
    if pa.types.is_floating(kind):
        return pa.float32() if pa.types.is_float16(kind) else kind
    if pa.types.is_boolean(kind):
        kind = pa.int64()
    return kind if pa.types.is_integer(kind) and not is_fraction else pa.float64()


def _categories_of(declared: Sequence[Any], kind: pa.DataType) -> list[Any]:
    """Declared categories, in the type of the column's values."""
    wanted = bool if pa.types.is_boolean(kind) else str if is_text(kind) else int
    if not pa.types.is_null(kind) and any(type(value) is not wanted for value in declared):
        raise ValueError(f"`categories` must be of the column's type: {wanted.__name__}")
    return list(declared)
