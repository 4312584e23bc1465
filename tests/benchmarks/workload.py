"""What all clients load, read and write: the same names, values and requests from one seed.

Standard library only: the driver imports it too, and must stay small (see `harness.py`).
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

JOIN_KEY = "customer"
STEPS = 2**24  # values are multiples of 1/STEPS: the same as float32 and as float64


@dataclass(frozen=True)
class Workload:
    """The tables of one Feast project.

    Attributes:
        name: what tells the project from those of other workloads.
        views: number of feature views, each a table.
        features: features a view.
        entities: rows a table; their join keys are 0, 1, 2 ...
        kind: of the features: float64 or float32.
        least_letters: of a feature's name.
        most_letters: of a feature's name.
        seed: of names and values.
    """

    name: str
    views: int = 5
    features: int = 10
    entities: int = 1_000
    kind: str = "float64"
    least_letters: int = 11
    most_letters: int = 20
    seed: int = 67

    def project(self, store: str) -> str:
        """The project, and so the first part of its tables' names, with one of the stores."""
        return f"bench_{store}_{self.name}"

    def names(self) -> dict[str, list[str]]:
        """Feature names by view name."""
        dice = self._dice()
        return {
            f"view_{view:02}": [
                "".join(
                    dice.choices(
                        string.ascii_lowercase,
                        k=dice.randint(self.least_letters, self.most_letters),
                    )
                )
                for _ in range(self.features)
            ]
            for view in range(self.views)
        }

    def values(self, view: str, entity: int, version: int = 0) -> list[float]:
        """The values of one row, in the order of the view's names; other ones each version."""
        dice = self._dice(view, entity, version)
        return [dice.randrange(STEPS) / STEPS for _ in range(self.features)]

    def references(self) -> list[str]:
        """Every feature, as `get_online_features` is asked for it."""
        return [f"{view}:{name}" for view, names in self.names().items() for name in names]

    def answer(self, entities: list[int], version: int = 0) -> dict[str, list[float | int]]:
        """What `get_online_features(...).to_dict()` must be for these entities."""
        expected: dict[str, list[float | int]] = {JOIN_KEY: list(entities)}
        for view, names in self.names().items():
            rows = (self.values(view, entity, version) for entity in entities)
            expected.update(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        return expected

    def requests(self, calls: int, count: int, part: int) -> list[list[int]]:
        """The entities of each of `calls` reads: other ones in each call and each part."""
        dice = self._dice(part, count)
        return [dice.sample(range(self.entities), count) for _ in range(calls)]

    def _dice(self, *parts: object) -> random.Random:
        # Anyone may know these values: they must only be the same in every process.
        return random.Random("/".join(map(str, (self.seed, *parts))))  # noqa: S311
