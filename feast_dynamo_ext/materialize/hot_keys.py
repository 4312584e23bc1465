"""Which partition keys of a run take so many writes that they alone set its pace.

DynamoDB takes 1,000 write units a second of one partition key, of a table as of an index. What is
counted is the events of each entity and of each value of a cohort, in bounded memory: frequent
keys by Misra and Gries, "Finding repeated elements", 1982. A count is at least what it says, and
at most a thousandth of all writes more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.dynamo.layouts.series import COHORT
from feast_dynamo_ext.figures import count, duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers
    from feast_dynamo_ext.dynamo.row_batch import EncodedBlock

KEY_UNITS_S = 1_000
"""Write units that one partition key takes a second."""

HOT_UNITS = 60_000
"""Write units of one partition key from which on a run says so: a minute's."""

MOST_COUNTED = 1_000
"""Keys that are counted at once."""

ENTITY = ""
"""What the keys of the table itself are counted under; those of a cohort under its feature."""


class FrequentKeys:
    """Counts write units of keys; memory for `most` keys, however many there are."""

    def __init__(self, most: int = MOST_COUNTED) -> None:
        self._most = most
        self._units: dict[bytes | str, int] = {}

    @property
    def highest(self) -> int:
        """Units of the most frequent key, at least."""
        return max(self._units.values(), default=0)

    def add(self, keys: pa.Array, units: Integers) -> None:
        """Count rows; null keys are none.

        Args:
            keys: of each row, binary or text.
            units: write units of each row.
        """
        rows = pa.table({"key": keys, "units": pa.array(units)}).group_by("key")
        found = rows.aggregate([("units", "sum")])
        keys_and_units = (found[name].to_pylist() for name in ("key", "units_sum"))
        for key, more in zip(*keys_and_units, strict=True):
            if key is not None:
                self._units[key] = self._units.get(key, 0) + more
        if len(self._units) > self._most:
            least = sorted(self._units.values(), reverse=True)[self._most]
            kept = ((key, held - least) for key, held in self._units.items() if held > least)
            self._units = dict(kept)


class HotKeys:
    """Finds the most written partition keys of a view's table and of its cohorts."""

    def __init__(self) -> None:
        self._counted: dict[str, FrequentKeys] = {}

    def add(self, block: EncodedBlock, *, is_series: bool) -> None:
        """Count the rows of a block; of newest rows, each key once, those of cohorts alone."""
        if is_series:
            self._of(ENTITY).add(block.rows.keys, block.units)
        for name, (_, values) in block.rows.marks.items():
            if name.startswith(COHORT):
                frequent = self._of(name.removeprefix(COHORT))
                frequent.add(values, np.ones(len(values), np.int64))

    def _of(self, name: str) -> FrequentKeys:
        return self._counted.setdefault(name, FrequentKeys())

    @property
    def units(self) -> dict[str, int]:
        """Of what is hot, the write units of its most frequent key: by cohort, or `ENTITY`."""
        found = {name: frequent.highest for name, frequent in self._counted.items()}
        return {name: units for name, units in found.items() if units >= HOT_UNITS}


def hot_lines(view: str, units: Mapping[str, int]) -> list[str]:
    """A sentence for each of `HotKeys.units`; no key or value is named."""
    return [
        f"{view}: one {_what(name)} took {count(of_key)} write units, and DynamoDB takes "
        f"{count(KEY_UNITS_S)} a second of one: {duration(of_key / KEY_UNITS_S)} at least. "
        f"{_advice(name)}"
        for name, of_key in units.items()
    ]


def _what(name: str) -> str:
    return f"value of the cohort `{name}`" if name else "entity"


def _advice(name: str) -> str:
    if name:
        return "Its readers share one partition too. Make cohorts of a feature with more values."
    return (
        "Its events are many for windows computed at the request too. Compute them in batches, or "
        "leave the entity out."
    )
