"""The Parquet files that are materialized: each file holds every key once, in random order.

`history.py FILES` writes those of a JSON list, each as `HistoryFile` has it. It runs in a process
of its own: the driver must stay small (see `harness.py`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workload import JOIN_KEY

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

EVENT_TIME, CREATED_TIME = "event_time", "created_time"
START_S, DAYS = 1_704_067_200, 30  # 2024-01-01, UTC
LATEST_S = 3_600  # how long after its event time a row may have been created
ROWS_PER_GROUP = 100_000


@dataclass(frozen=True)
class HistoryFile:
    """One Parquet file.

    Attributes:
        path: where it is; its folder is made.
        keys: join keys are 0, 1, 2 ... in random order, each in one row.
        features: names of the float64 features.
        seed: of order, times and values.
    """

    path: str
    keys: int
    features: list[str]
    seed: int

    def table(self) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        dice = np.random.default_rng(self.seed)
        micros = dice.integers(0, DAYS * 86_400_000_000, self.keys) + START_S * 1_000_000
        created = micros + dice.integers(0, LATEST_S * 1_000_000, self.keys)
        columns = {JOIN_KEY: dice.permutation(self.keys)}
        columns |= {EVENT_TIME: _times(micros), CREATED_TIME: _times(created)}
        columns |= {name: dice.random(self.keys) for name in self.features}
        return pa.table(columns)

    def write(self) -> None:
        import pyarrow.parquet as pq

        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        # No dictionaries: no value of a column occurs twice.
        pq.write_table(
            self.table(), self.path, row_group_size=ROWS_PER_GROUP, use_dictionary=False
        )


def _times(micros: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(micros, pa.timestamp("us", tz="UTC"))


def newest(path: str, keys: list[int]) -> dict[int, dict[str, float]]:
    """The features of the newest row of each key, found the plainest way."""
    import pyarrow.dataset as ds

    rows = ds.dataset(path).to_table(filter=ds.field(JOIN_KEY).isin(keys))
    rows = rows.sort_by([(EVENT_TIME, "ascending"), (CREATED_TIME, "ascending")])
    rows = rows.drop_columns([EVENT_TIME, CREATED_TIME])
    return {row.pop(JOIN_KEY): row for row in rows.to_pylist()}


def main() -> None:
    for one in json.loads(sys.argv[1]):
        HistoryFile(**one).write()


if __name__ == "__main__":
    main()
