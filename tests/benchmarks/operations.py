"""The calls of Feast that are measured, the same for both stores."""

from __future__ import annotations

import asyncio
import datetime as dt
from itertools import count
from typing import TYPE_CHECKING, Any

from projects import EVENT_TIME, SERVICE, rows_of, views_of
from workload import JOIN_KEY

if TYPE_CHECKING:
    from feast import FeatureStore
    from workload import Workload

EntityRows = list[dict[str, int]]


class Reads:
    """`get_online_features` of every feature."""

    def __init__(self, store: FeatureStore, workload: Workload) -> None:
        self.store = store
        self.workload = workload
        self.features: Any = workload.references()

    def requests(self, calls: int, size: int, part: int) -> list[EntityRows]:
        return [_entity_rows(call) for call in self.workload.requests(calls, size, part)]

    def run(self, request: EntityRows) -> Any:
        return self.store.get_online_features(features=self.features, entity_rows=request)

    def answer(self, entities: list[int]) -> dict[str, list[Any]]:
        return self.run(_entity_rows(entities)).to_dict()

    def close(self) -> None:
        """Nothing to close: connections end with the process."""


class AsyncReads(Reads):
    """`get_online_features_async`, one call after another on one event loop."""

    def __init__(self, store: FeatureStore, workload: Workload) -> None:
        super().__init__(store, workload)
        self.loop = asyncio.new_event_loop()
        # As a feature server does when it starts: Feast's store opens its client there.
        self.loop.run_until_complete(store.initialize())

    def run(self, request: EntityRows) -> Any:
        return self.loop.run_until_complete(
            self.store.get_online_features_async(features=self.features, entity_rows=request)
        )

    def close(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.loop.close()


class ServiceReads(Reads):
    """`get_online_features` of a feature service of all views."""

    def __init__(self, store: FeatureStore, workload: Workload) -> None:
        super().__init__(store, workload)
        self.features = store.get_feature_service(SERVICE)


class Writes:
    """`online_write_batch` of rows newer than all before: of the same keys, or of new ones.

    The workload's name is the write mode, with `_new` behind it where no key occurs twice.
    """

    def __init__(self, store: FeatureStore, workload: Workload) -> None:
        self.provider = store._get_provider()
        self.store = store
        self.workload = workload
        self.new_keys = workload.name.endswith("_new")
        (self.view,) = views_of(workload)
        self.versions = count(1)

    def requests(self, calls: int, size: int, part: int) -> list[list[Any]]:
        return [self._request(size, next(self.versions)) for _ in range(calls)]

    def run(self, request: list[Any]) -> None:
        self.provider.online_write_batch(self.store.config, self.view, request, None)

    def answer(self, entities: list[int]) -> dict[str, list[Any]]:
        """What is read after version 1 was written, and older rows that must not replace it."""
        version = next(self.versions)
        self.run(self._rows(entities, version, dt.timedelta(minutes=version)))
        if self.workload.name.startswith("newest_wins"):
            self.run(self._rows(entities, 0, dt.timedelta(minutes=-1)))
        return Reads(self.store, self.workload).answer(entities)

    def close(self) -> None:
        """As `Reads.close`."""

    def _request(self, size: int, version: int) -> list[Any]:
        first = self.workload.entities + version * size if self.new_keys else 0
        later = dt.timedelta(minutes=version)
        return self._rows(list(range(first, first + size)), version, later)

    def _rows(self, entities: list[int], version: int, later: dt.timedelta) -> list[Any]:
        return rows_of(self.workload, self.view.name, entities, EVENT_TIME + later, version)


def _entity_rows(entities: list[int]) -> EntityRows:
    return [{JOIN_KEY: entity} for entity in entities]
