"""The history and the entity rows of the offline benchmark, from one seed.

`offline_data.py DATASETS` writes those of a JSON list, each as `Dataset` has it. It runs in a
process of its own: the driver must stay small (see `harness.py`).

Keys and times are drawn independently, so rows lie in no order at all, neither in a file nor from
file to file, and no file or row group can be left out: the worst that appending can leave behind.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workload import JOIN_KEY

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

EVENT_TIME, CREATED_TIME, ENTITY_TIME, LABEL = "event_time", "created_time", "seen_at", "label"
START_S, DAYS, TTL_DAYS = 1_704_067_200, 365, 30  # from 2024-01-01, UTC
LATEST_S = 3_600  # how long after its event time a row may have been created
HOT_SHARE = 0.6  # of the rows, and of the entity rows, where few keys are hot


@dataclass(frozen=True)
class Dataset:
    """Views of one history, and the entity rows that are joined to it.

    Attributes:
        views: number of views, each a folder of files.
        rows: of a view.
        files: of a view.
        features: float64 features of a view.
        keys: join keys are 0, 1, 2 ...
        entities: number of entity rows; keys and times as the history has them.
        hot_keys: the first so many keys hold `HOT_SHARE` of all rows; 0: all keys are alike.
        seed: of keys, times and values.
    """

    views: int
    rows: int
    files: int
    features: int
    keys: int
    entities: int
    hot_keys: int = 0
    seed: int = 67

    @property
    def name(self) -> str:
        """Of its folder: other settings, another folder."""
        settings = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.views}x{self.rows}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    @property
    def estimated_bytes(self) -> int:
        """On disk: random doubles do not compress."""
        return self.views * self.rows * (8 * self.features + 24) + self.entities * 24

    def view_names(self) -> list[str]:
        return [f"view_{view:02}" for view in range(self.views)]

    def features_of(self, view: str) -> list[str]:
        return [f"{view}_f{feature:03}" for feature in range(self.features)]

    def write(self, folder: Path) -> None:
        """Into a new folder."""
        import pyarrow.parquet as pq

        for number, view in enumerate(self.view_names()):
            (folder / view).mkdir(parents=True)
            for file in range(self.files):
                # No dictionaries: no value of a column occurs twice.
                path = folder / view / f"{file:03}.parquet"
                pq.write_table(self._part(view, number, file), path, use_dictionary=False)
        pq.write_table(self._entity_rows(), folder / ENTITIES, use_dictionary=False)
        (folder / EXPECTED).write_text(json.dumps(self.expected(folder)))

    def expected(self, folder: Path) -> list[dict[str, Any]]:
        """Some of the entity rows with all features, joined the plainest way."""
        import pyarrow.parquet as pq

        rows = pq.read_table(folder / ENTITIES).slice(0, SAMPLED)
        return [
            {LABEL: label} | {name: value for view in views for name, value in view.items()}
            for label, *views in zip(
                rows[LABEL].to_pylist(),
                *(self._seen(folder / view, rows) for view in self.view_names()),
                strict=True,
            )
        ]

    def _seen(self, view: Path, rows: pa.Table) -> list[dict[str, float | None]]:
        """The features that each of the entity rows sees of a view."""
        import pyarrow.parquet as pq

        wanted = list(zip(*(rows[name].to_numpy() for name in rows.column_names[:2]), strict=True))
        nothing = dict.fromkeys(self.features_of(view.name))
        best: list[tuple[Any, dict[str, float | None]]] = [((), nothing)] * len(wanted)
        for path in sorted(view.iterdir()):
            table = pq.read_table(path)
            for number, (key, time) in enumerate(wanted):
                found = _newest(table, key, time)
                if found and found[0] >= best[number][0]:
                    features = table.select(list(nothing)).slice(found[1], 1)
                    best[number] = found[0], features.to_pylist()[0]
        return [features for _, features in best]

    def _part(self, view: str, number: int, file: int) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        dice = np.random.default_rng((self.seed, number, file))
        count = self.rows // self.files
        micros = _micros(dice, count)
        created = micros + dice.integers(0, LATEST_S * 1_000_000, count)
        columns = {JOIN_KEY: self._keys(dice, count)}
        columns |= {EVENT_TIME: _times(micros), CREATED_TIME: _times(created)}
        return pa.table(columns | {name: dice.random(count) for name in self.features_of(view)})

    def _entity_rows(self) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        dice = np.random.default_rng((self.seed, self.views))
        keys, times = self._keys(dice, self.entities), _times(_micros(dice, self.entities))
        return pa.table({JOIN_KEY: keys, ENTITY_TIME: times, LABEL: dice.random(self.entities)})

    def _keys(self, dice: np.random.Generator, count: int) -> NDArray[np.int64]:
        keys = dice.integers(0, self.keys, count)
        if self.hot_keys:
            hot = dice.random(count) < HOT_SHARE
            keys[hot] = dice.integers(0, self.hot_keys, int(hot.sum()))
        return keys


ENTITIES, EXPECTED = "entities.parquet", "expected.json"
SAMPLED = 40  # entity rows whose features are checked


def _newest(
    table: pa.Table, key: np.int64, time: np.datetime64
) -> tuple[tuple[np.datetime64, ...], int] | None:
    """The times and the position of the row that an entity row sees."""
    import numpy as np

    keys, event, created = (table[name].to_numpy() for name in table.column_names[:3])
    (of_key,) = np.nonzero(keys == key)
    oldest = time - np.timedelta64(TTL_DAYS, "D")
    seen = of_key[(event[of_key] <= time) & (event[of_key] >= oldest)]
    if not len(seen):
        return None
    last = seen[np.lexsort((seen, created[seen], event[seen]))[-1]]
    return (event[last], created[last]), int(last)


def _micros(dice: np.random.Generator, count: int) -> NDArray[np.int64]:
    return dice.integers(0, DAYS * 86_400_000_000, count) + START_S * 1_000_000


def _times(micros: NDArray[np.int64]) -> pa.Array:
    import pyarrow as pa

    return pa.array(micros, pa.timestamp("us", tz="UTC"))


def main() -> None:
    folder, datasets = sys.argv[1:]
    for dataset in (Dataset(**one) for one in json.loads(datasets)):
        dataset.write(Path(folder) / dataset.name)


if __name__ == "__main__":
    main()
