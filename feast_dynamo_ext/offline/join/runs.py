"""Rows of a key that stand together in the order of their times, as compacted files have them.

In such a batch each slot looks for its row, instead of each row for its slot: there are far fewer
slots than rows, and neighbours look at the same places. Nobody has to say that a file is sorted:
each batch shows it, and what is found is right for any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SAMPLE_ROWS = 1_024
LEAST_ROWS = 4
"""Of a run, on average, for it to be worth it."""


@dataclass(frozen=True)
class Runs:
    """Stretches of a batch with one key each, whose times do not descend.

    Attributes:
        first: their first rows.
        end: the rows after their last ones.
        time: event times of all rows.
    """

    first: NDArray[np.int64]
    end: NDArray[np.int64]
    time: NDArray[np.int64]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Runs | None:
        """The runs of a batch of narrow columns; None where they are short, or there are nulls."""
        *keys, times, _ = batch.columns
        if times.null_count or any(key.null_count for key in keys) or not batch.num_rows:
            return None
        time = times.to_numpy()
        breaks = np.empty(0, dtype=np.int64)
        for rows in (SAMPLE_ROWS, batch.num_rows):
            breaks = _breaks([key.slice(0, rows) for key in keys], time[:rows])
            if LEAST_ROWS * len(breaks) >= min(rows, batch.num_rows):
                return None
        return cls(np.append(0, breaks), np.append(breaks, batch.num_rows), time)

    def after(self, run: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each run the first of its rows that is after a time, or its end."""
        return self._passed(run, lambda rows: self.time.take(rows) <= times)

    def equal_before(
        self, run: NDArray[np.int64], row: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the same time before a row of a run.

        Returns:
            For each of them which of the given rows it is before, and the row.
        """
        times = self.time.take(row)
        with_equal = np.flatnonzero(
            (row > self.first.take(run)) & (self.time.take(row - 1, mode="clip") == times)
        )
        run, row, times = (values.take(with_equal) for values in (run, row, times))
        first = self._passed(run, lambda rows: self.time.take(rows) < times)
        which, rows = expanded(first, row)
        return with_equal.take(which), rows

    def _passed(
        self,
        run: NDArray[np.int64],
        is_passed: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    ) -> NDArray[np.int64]:
        """Binary search of many runs at once."""
        found, ends = self.first.take(run), self.end.take(run)
        step = (1 << int((self.end - self.first).max(initial=0)).bit_length()) >> 1
        while step:
            next_ = np.minimum(found + step, ends)
            passed = is_passed(next_ - 1) & (found < next_)
            np.copyto(found, next_, where=passed)
            step >>= 1
        return found


def expanded(
    first: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of many ranges, and which range each is of."""
    counts = end - first
    of_range = np.repeat(np.arange(len(counts)), counts)
    begins = np.cumsum(counts) - counts
    return of_range, np.arange(len(of_range)) + (first - begins).take(of_range)


def _breaks(keys: list[pa.Array], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows with which another run begins."""
    is_new = time[1:] < time[:-1]
    for key in keys:
        if pa.types.is_int64(key.type):
            values = key.to_numpy()
            is_new |= values[1:] != values[:-1]
        else:
            differs = pc.not_equal(key.slice(1), key.slice(0, len(key) - 1))
            is_new |= differs.to_numpy(zero_copy_only=False)
    return np.flatnonzero(is_new) + 1
