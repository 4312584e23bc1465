"""A histogram of a stream whose extremes are known, equal to numpy's of all values at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from feast.monitoring.monitoring_utils import opt_float

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Histogram:
    """Counts finite values into bins of equal width.

    Values that are too close together, or too far apart, for doubles to tell the bins' edges apart
    are in one bin; numpy, and so Feast's calculator, fails for them.

    Args:
        low: the least value.
        high: the greatest value.
        bins: how many bins.
    """

    def __init__(self, low: float, high: float, bins: int) -> None:
        self._low, self._high = low, high
        self._bins = bins if _can_be_told_apart(low, high, bins) else 1
        self._counts = np.zeros(self._bins, dtype=np.int64)

    def add(self, values: NDArray[np.float64]) -> None:
        """Count some of the values."""
        if self._bins == 1:
            self._counts += len(values)
        else:
            self._counts += np.histogram(values, self._bins, (self._low, self._high))[0]

    def metrics(self) -> dict[str, Any]:
        """As Feast keeps it: edges, counts, and the width of a bin."""
        edges = np.array([self._low, self._high])
        if self._bins > 1:
            edges = np.histogram_bin_edges([], self._bins, (self._low, self._high))
        return {
            "bins": edges.tolist(),
            "counts": self._counts.tolist(),
            "bin_width": opt_float(edges[1].item() - edges[0].item()),
        }


def _can_be_told_apart(low: float, high: float, bins: int) -> bool:
    if not np.isfinite(high - low):
        return False
    # numpy gives a constant a range of 1.
    first, last = (low - 0.5, high + 0.5) if low == high else (low, high)
    edges = np.linspace(first, last, bins + 1)
    return bool(np.all(edges[:-1] < edges[1:]))
