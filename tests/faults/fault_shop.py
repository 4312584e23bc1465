"""The features that fault runs read and write, and the calls that do it.

Every row says itself which view, key and version it is, so that each answer can be checked on its
own.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass
from typing import Any

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.types import Float64, Int64, String
from views import CUSTOMER

from feast_dynamo_ext.dynamo.layouts.packed import Row
from feast_dynamo_ext.view_settings import ViewSettings

BASE = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
FEATURES = ("number", "score", "text")

PRODUCT = Entity(name="product", join_keys=["pid"], value_type=ValueType.STRING)


def _view(name: str, entity: Entity | None, **keys: Any) -> FeatureView:
    types = {**keys, "number": Int64, "score": Float64, "text": String}
    return FeatureView(
        name=name,
        entities=[entity] if entity else [],
        schema=[Field(name=field, dtype=dtype) for field, dtype in types.items()],
        source=FileSource(name=f"{name}_source", path="nowhere", timestamp_field="t"),
        ttl=dt.timedelta(0),
        tags=ViewSettings(write_mode="overwrite").tags() if name == "log" else None,
    )


VIEWS = {
    "orders": _view("orders", CUSTOMER, cid=Int64),
    "visits": _view("visits", CUSTOMER, cid=Int64),
    "stock": _view("stock", PRODUCT, pid=String),
    "shop": _view("shop", None),
    # The one view that is overwritten: its later versions have the earlier event times.
    "log": _view("log", CUSTOMER, cid=Int64),
}

Key = tuple[str, int]
"""View and the number of an entity; the view without entities has but number 0."""


def entity_key(view: str, number: int) -> EntityKey:
    if view == "shop":
        return EntityKey(join_keys=["__dummy_id"], entity_values=[Value(string_val="")])
    if view == "stock":
        return EntityKey(join_keys=["pid"], entity_values=[Value(string_val=f"p{number}")])
    return EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=number)])


def stored_key(view: str, number: int) -> bytes:
    return serialize_entity_key(entity_key(view, number), entity_key_serialization_version=3)


def number_of(view: str, stored: bytes) -> int:
    (value,) = deserialize_entity_key(stored, entity_key_serialization_version=3).entity_values
    if view == "shop":
        return 0
    return int(value.string_val[1:]) if view == "stock" else value.int64_val


def times(view: str, version: int) -> tuple[dt.datetime, dt.datetime | None]:
    """Event time and created time; of two versions with one event time the latter decides."""
    if view == "log":
        return BASE - dt.timedelta(seconds=version), None
    return BASE + dt.timedelta(seconds=version // 2), BASE + dt.timedelta(seconds=version)


def contents(view: str, number: int, version: int) -> tuple[int, float, str]:
    return version, version + number / 1_000, f"{view}/{number}/{version}"


def micros(moment: dt.datetime) -> int:
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)) // dt.timedelta(
        microseconds=1
    )


@dataclass(frozen=True)
class Write:
    """One call that writes rows of (number, version)."""

    view: str
    rows: list[tuple[int, int]]

    @property
    def newest(self) -> dict[Key, int]:
        newest: dict[Key, int] = {}
        for number, version in self.rows:
            key = self.view, number
            newest[key] = max(version, newest.get(key, -1))
        return newest

    def of_feast(self) -> list:
        data = []
        for number, version in self.rows:
            whole, score, text = contents(self.view, number, version)
            values = {
                "number": Value(int64_val=whole),
                "score": Value(double_val=score),
                "text": Value(string_val=text),
            }
            data.append((entity_key(self.view, number), values, *times(self.view, version)))
        return data

    def packed(self) -> list[Row]:
        """As materialization has them."""
        rows = []
        for key, values, event_time, created in self.of_feast():
            rows.append(
                Row(
                    serialize_entity_key(key, entity_key_serialization_version=3),
                    RepeatedValue(val=[values[name] for name in FEATURES]).SerializeToString(),
                    micros(event_time),
                    None if created is None else micros(created),
                )
            )
        return rows


@dataclass(frozen=True)
class Read:
    """One call that reads some views for the entities of some numbers."""

    views: list[str]
    numbers: list[int]

    @property
    def request(self) -> dict[str, Any]:
        return {
            "features": [f"{view}:{name}" for view in self.views for name in FEATURES],
            "entity_rows": [{"cid": number, "pid": f"p{number}"} for number in self.numbers],
            "full_feature_names": True,
        }

    def keys(self, view: str) -> list[Key]:
        return [(view, 0 if view == "shop" else number) for number in self.numbers]

    def distinct(self) -> set[Key]:
        return {key for view in self.views for key in self.keys(view)}


def jobs(seed: int, rows: int, reads: int, rounds: int) -> list[list[Write | Read]]:
    """Calls in random order, in rounds; the overwritten view has one version a round."""
    dice = random.Random(seed)  # noqa: S311 - the same each time
    customers = rows // 12
    written = [
        (view, number, version)
        for view in ("orders", "visits", "stock")
        for number in range(customers)
        for version in range(3)
    ]
    written += [("shop", 0, version) for version in range(60)]
    dice.shuffle(written)
    made = []
    for at in range(rounds):
        part = written[at::rounds]
        part += [("log", number, at) for number in range(customers)]
        calls: list[Write | Read] = []
        for view in VIEWS:
            of_view = [(number, version) for name, number, version in part if name == view]
            while of_view:
                size = dice.choice((1, 3, 10, 30, 100, 200))
                calls.append(Write(view, of_view[:size]))
                del of_view[:size]
        wanted = reads // rounds
        while wanted > 0:
            views = dice.sample(list(VIEWS), dice.randint(1, len(VIEWS)))
            size = min(customers, dice.choice((1, 1, 1, 2, 5, 10, 25, 100, 300)))
            # Some of the entities have no row in any view.
            calls.append(Read(views, dice.sample(range(customers * 11 // 10), size)))
            wanted -= len(calls[-1].distinct())
        dice.shuffle(calls)
        made.append(calls)
    return made
