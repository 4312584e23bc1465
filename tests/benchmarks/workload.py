"""What all clients load and read: the same names, values and requests from one seed.

Standard library only: the driver imports it too, and must stay small (see `harness.py`).
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

JOIN_KEY = "customer"


@dataclass(frozen=True)
class Workload:
    """The tables.

    Attributes:
        views: number of feature views, each a table.
        features: float64 features a view.
        entities: rows a table; their join keys are 0, 1, 2 ...
        seed: of names and values.
    """

    views: int = 5
    features: int = 10
    entities: int = 1_000
    seed: int = 67

    def names(self) -> dict[str, list[str]]:
        """Feature names, 11 to 20 letters each, by view name."""
        dice = self._dice()
        return {
            f"view_{view:02}": [
                "".join(dice.choices(string.ascii_lowercase, k=dice.randint(11, 20)))
                for _ in range(self.features)
            ]
            for view in range(self.views)
        }

    def values(self, view: str, entity: int) -> list[float]:
        """The values of one row, in the order of the view's names."""
        dice = self._dice(view, entity)
        return [dice.random() for _ in range(self.features)]

    def references(self) -> list[str]:
        """Every feature, as `get_online_features` is asked for it."""
        return [f"{view}:{name}" for view, names in self.names().items() for name in names]

    def answer(self, entities: list[int]) -> dict[str, list[float | int]]:
        """What `get_online_features(...).to_dict()` must be for these entities."""
        expected: dict[str, list[float | int]] = {JOIN_KEY: list(entities)}
        for view, names in self.names().items():
            columns = zip(*(self.values(view, entity) for entity in entities), strict=True)
            expected.update(zip(names, map(list, columns), strict=True))
        return expected

    def requests(self, calls: int, count: int, part: int) -> list[list[int]]:
        """The entities of each of `calls` requests: other ones in each call and each part."""
        dice = self._dice(part, count)
        return [dice.sample(range(self.entities), count) for _ in range(calls)]

    def _dice(self, *parts: object) -> random.Random:
        # Anyone may know these values: they must only be the same in every process.
        return random.Random("/".join(map(str, (self.seed, *parts))))  # noqa: S311
