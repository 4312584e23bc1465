"""Metrics of a numeric column: Feast's `MetricsCalculator.compute_numeric`, over a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from feast.monitoring.monitoring_utils import empty_numeric_metric, opt_float

from feast_dynamo_ext.offline.monitoring.histogram import Histogram
from feast_dynamo_ext.offline.monitoring.ranks import Selection

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERCENTILES = {"p50": 0.50, "p75": 0.75, "p90": 0.90, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared deviations of some values; those of parts add up."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def and_of(self, values: NDArray[np.float64]) -> Moments:
        """These and those of more values; where a value is not finite, the mean is neither."""
        if not len(values):
            return self
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(np.mean(values))
            squares = float(np.sum((values - mean) ** 2))
        count = self.count + len(values)
        apart = mean - self.mean
        return Moments(
            count,
            self.mean + apart * (len(values) / count),
            self.squares + squares + apart * apart * (self.count * len(values) / count),
        )

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a sample; None for a single value."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else None


@dataclass(frozen=True)
class Extremes:
    """The least and the greatest of some values; none yet."""

    least: float = math.inf
    most: float = -math.inf

    def and_of(self, values: NDArray[np.float64]) -> Extremes:
        """These and those of more values, none of them NaN."""
        if not len(values):
            return self
        return Extremes(min(self.least, float(values.min())), max(self.most, float(values.max())))


class NumericColumn:
    """One column on its way through the passes: `survey`, then `refine` while `open`.

    NaN is a value, not a null: as in Feast, mean and deviation are then unknown, and extremes and
    percentiles are those of the other values. The histogram is that of the finite values; Feast's
    calculator fails where others are among them.
    """

    def __init__(self, name: str, bins: int) -> None:
        self.name = name
        self._bins = bins
        self._rows = self._nulls = self._numbers = 0
        self._moments = Moments()
        self._extremes = self._finite = Extremes()
        self._selection = Selection()
        self._histogram: Histogram | None = None
        self._histogram_open = True

    def survey(self, column: pa.Array) -> None:
        """See a batch in the first pass."""
        values, numbers, finite = _parts(column)
        self._rows += len(column)
        self._nulls += column.null_count
        self._numbers += len(numbers)
        self._moments = self._moments.and_of(values)
        self._extremes = self._extremes.and_of(numbers)
        self._finite = self._finite.and_of(finite)
        self._selection.survey(numbers)

    def end_survey(self) -> None:
        """End the first pass."""
        if self._numbers:
            places = [(self._numbers - 1) * share for share in PERCENTILES.values()]
            self._selection.ask(end(place) for place in places for end in (math.floor, math.ceil))
        if self._finite.least <= self._finite.most:
            self._histogram = Histogram(self._finite.least, self._finite.most, self._bins)

    @property
    def open(self) -> bool:
        """Whether another pass is needed."""
        return self._selection.open

    def refine(self, column: pa.Array) -> None:
        """See a batch in one of the later passes."""
        _, numbers, finite = _parts(column)
        self._selection.refine(numbers)
        if self._histogram is not None and self._histogram_open:
            self._histogram.add(finite)

    def end_pass(self) -> bool:
        """End a later pass; False where it saw other values than the passes before."""
        self._histogram_open = False
        return self._selection.settle()

    def metrics(self) -> dict[str, Any]:
        """The metrics, once no pass is needed any more."""
        found = empty_numeric_metric(self.name) | {
            "row_count": self._rows,
            "null_count": self._nulls,
            "null_rate": self._nulls / self._rows if self._rows else 0.0,
        }
        if self._moments.count:
            found["mean"] = opt_float(self._moments.mean)
            found["stddev"] = opt_float(self._moments.deviation)
        if self._numbers:
            found["min_val"] = opt_float(self._extremes.least)
            found["max_val"] = opt_float(self._extremes.most)
            found |= {name: self._percentile(share) for name, share in PERCENTILES.items()}
        if self._histogram is not None:
            found["histogram"] = self._histogram.metrics()
        return found

    def _percentile(self, share: float) -> float | None:
        place = (self._numbers - 1) * share
        lower = math.floor(place)
        between = place - lower
        value = self._selection.found[lower]
        if between:
            value = between * self._selection.found[lower + 1] + (1 - between) * value
        return opt_float(value)


def _parts(
    column: pa.Array,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A column's values, those of them that are numbers, and those that are finite."""
    # Integers past 2^53 are rounded; Feast's calculator fails for them.
    values = column.drop_null().cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    numbers = values[~np.isnan(values)]
    return values, numbers, numbers[np.isfinite(numbers)]
