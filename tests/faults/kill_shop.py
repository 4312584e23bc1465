"""A shop whose materialization is killed: its definitions and history, its tables, its runs."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

from feast_dynamo_ext import Series, ViewSettings
from feast_dynamo_ext.dynamo.layouts.packed import RESERVED_PREFIX, SCHEMA_KEY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from programs import ForkServer, Program

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
END = START + dt.timedelta(days=30)
SIGKILLED = -9
RUN = Path(__file__).with_name("kill_run.py")
VIEWS = ("orders", "rates", "visits")
SERIES = ("events",)
"""Of a shop that keeps each event."""

YAML = """\
project: {project}
provider: feast_dynamo_ext.DynamoProvider
registry:
  registry_type: sql  # Feast writes that of a file in place: a kill may leave half of it
  path: sqlite:///{folder}/registry.db
online_store:
  type: feast_dynamo_ext.DynamoOnlineStore
  region: us-east-1
  endpoint_url: {endpoint}
  newest_wins_with: {way}
offline_store:
  type: feast_dynamo_ext.S3ParquetOfflineStore
  region: us-east-1
entity_key_serialization_version: 3
"""


def write_history(folder: Path, keys: int) -> None:
    """Three rows a key of orders and visits, in no order; nulls, and integers beyond 2^53."""
    generator = np.random.default_rng(5)
    rows = 3 * keys
    order = generator.permutation(rows)
    number = order % keys
    minutes = generator.integers(0, 30 * 24 * 60, rows)
    times = pd.to_datetime(START) + pd.to_timedelta(minutes, unit="min")
    frame = pd.DataFrame(
        {
            "cid": number,
            "sid": [f"shop {one % 7}" for one in number],
            "t": times.astype("datetime64[us, UTC]"),
            "made": times.astype("datetime64[us, UTC]"),
            "total": np.where(number % 5 == 0, np.nan, order / 8),
            "count": pd.array(np.where(number % 3 == 0, 2**53 + order, order), dtype="Int64"),
            "text": [f"row {one}" for one in order],
        }
    )
    for source in ("orders", "visits", "events"):
        (folder / source).mkdir(parents=True)
        half = rows // 2
        frame[:half].to_parquet(folder / source / "a.parquet", index=False)
        frame[half:].to_parquet(folder / source / "b.parquet", index=False)
    (folder / "rates").mkdir()
    frame[:50].to_parquet(folder / "rates" / "a.parquet", index=False)


def definitions(history: Path, views: tuple[str, ...] = VIEWS) -> list[Any]:
    """A view with one key, one with two and a ttl, one without any; or one that keeps all."""
    customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
    shop = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)
    cid, sid = Field(name="cid", dtype=Int64), Field(name="sid", dtype=String)
    features = [
        Field(name="total", dtype=Float64),
        Field(name="count", dtype=Int64),
        Field(name="text", dtype=String),
    ]

    def view(
        name: str,
        entities: list[Entity],
        keys: list[Field],
        ttl: dt.timedelta,
        tags: dict[str, str] | None = None,
    ) -> Any:
        source = FileSource(
            name=name,
            path=str(history / name),
            timestamp_field="t",
            created_timestamp_column="made",
        )
        return FeatureView(
            name=name,
            entities=entities,
            schema=[*keys, *features],
            source=source,
            ttl=ttl,
            tags=tags,
        )

    none, century = dt.timedelta(0), dt.timedelta(days=36_500)
    series = Series(tie_breaker="text", orders=["total"], cohorts=["count"])
    made = [
        view("orders", [customer], [cid], none),
        view("visits", [customer, shop], [cid, sid], century),
        view("rates", [], [], none),
        view("events", [customer], [cid], none, ViewSettings(series=series).tags()),
    ]
    return [customer, shop, *(each for each in made if each.name in views)]


@dataclass(frozen=True)
class Shop:
    """A repo on disk, with a project and tables of its own.

    Attributes:
        folder: of feature_store.yaml.
        project: prefix of its tables.
        client: boto3's client of its DynamoDB.
        views: their names.
    """

    folder: Path
    project: str
    client: Any
    views: tuple[str, ...] = VIEWS

    @classmethod
    def open(
        cls,
        folder: Path,
        history: Path,
        endpoint: str,
        way: str = "partiql",
        views: tuple[str, ...] = VIEWS,
    ) -> Shop:
        """Make the repo and its tables."""
        project = f"k{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        text = YAML.format(project=project, folder=folder, endpoint=endpoint, way=way)
        (folder / "feature_store.yaml").write_text(text)
        client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=endpoint)
        shop = cls(folder, project, client, views)
        shop.store().apply(definitions(history, views))
        shutil.copy(folder / "registry.db", folder / "applied.db")
        return shop

    def renew(self) -> None:
        """Empty its tables, and forget what was materialized."""
        for view in self.views:
            name = f"{self.project}.{view}"
            made = self.client.describe_table(TableName=name)["Table"]
            indexes = {
                kind: [
                    {part: each[part] for part in ("IndexName", "KeySchema", "Projection")}
                    for each in made[kind]
                ]
                for kind in ("LocalSecondaryIndexes", "GlobalSecondaryIndexes")
                if kind in made
            }
            self.client.delete_table(TableName=name)
            self.client.create_table(
                TableName=name,
                KeySchema=made["KeySchema"],
                AttributeDefinitions=made["AttributeDefinitions"],
                BillingMode="PAY_PER_REQUEST",
                **indexes,
            )
        shutil.copy(self.folder / "applied.db", self.folder / "registry.db")

    def store(self) -> FeatureStore:
        """The repo as another process would see it."""
        return FeatureStore(repo_path=str(self.folder))

    def items(self) -> dict[str, dict[bytes, Any]]:
        """Each view's rows and schema items as they are, by key, with their sort key."""
        return {
            view: {
                key: item for key, item in self._scan(view).items() if not _is_control(item["k"])
            }
            for view in self.views
        }

    def control_items(self) -> list[dict[str, Any]]:
        """Leases and progress of all views."""
        found = [item for view in self.views for item in self._scan(view).values()]
        return [item for item in found if _is_control(item["k"]) and "kind" in item]

    def rows_done(self) -> dict[str, int]:
        """How many rows the recorded progress of each view speaks of."""
        return {
            view: sum(
                int(item["rows_done"]["N"])
                for item in self._scan(view).values()
                if "rows_done" in item
            )
            for view in self.views
        }

    def states(self) -> dict[str, tuple[str, int]]:
        """State and number of different materialized intervals of each view.

        A view that was done when another's run was killed is materialized once more.
        """
        store = self.store()
        views = [store.get_feature_view(name) for name in self.views]
        return {
            view.name: (view.state.name, len(set(view.materialization_intervals)))
            for view in views
        }

    def close(self) -> None:
        """Delete its tables."""
        for view in self.views:
            self.client.delete_table(TableName=f"{self.project}.{view}")
        self.client.close()

    def _scan(self, view: str) -> dict[bytes, dict[str, Any]]:
        pages = self.client.get_paginator("scan").paginate(
            TableName=f"{self.project}.{view}", ConsistentRead=True
        )
        return {
            item["k"]["B"] + item.get("s", {}).get("B", b""): item
            for page in pages
            for item in page["Items"]
        }


def _is_control(key: dict[str, bytes]) -> bool:
    return key["B"].startswith(RESERVED_PREFIX) and not key["B"].startswith(SCHEMA_KEY_PREFIX)


@dataclass(frozen=True)
class Runs:
    """Starts runs of materialize in processes of their own.

    Attributes:
        programs: what starts them.
        environment: that of the runs.
    """

    programs: ForkServer
    environment: Mapping[str, str]

    def start(self, shop: Shop, **settings: Any) -> Run:
        """Begin to materialize a shop."""
        answer, log = (shop.folder / f"{uuid.uuid4().hex}.{kind}" for kind in ("json", "log"))
        with log.open("w") as said:
            program = self.programs.start(
                *(RUN, shop.folder, answer, json.dumps(settings)),
                env=self.environment,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        return Run(program, time.monotonic(), answer, log)


@dataclass(frozen=True)
class Run:
    """A run in a process of its own, and when it was started."""

    program: Program
    started_s: float
    answer: Path
    log: Path

    @property
    def pid(self) -> int:
        return self.program.pid

    def end(self, kill_after_s: float | None = None) -> Ended:
        """Wait for its end, at most until it is killed."""
        left = None if kill_after_s is None else self.started_s + kill_after_s - time.monotonic()
        try:
            self.program.wait(left)
        except subprocess.TimeoutExpired:
            self.program.kill()
        status = self.program.wait()
        seconds = time.monotonic() - self.started_s
        counts = json.loads(self.answer.read_text()) if self.answer.exists() else {}
        return Ended(status, seconds, self.log.read_text(), counts)


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: as of `subprocess`.
        seconds: from its start.
        said: what it printed and logged.
        counts: numbers of rows by view, of a run that was not killed.
    """

    status: int
    seconds: float
    said: str
    counts: dict[str, dict[str, int]]
