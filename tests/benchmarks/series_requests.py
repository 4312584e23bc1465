"""Large requests for series: beside newest rows through a delay, and of a whole cohort.

`series_requests.py ENDPOINT ROUNDS SCALE` runs them in a process of its own, whose memory is
theirs, and prints figures.
"""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import bars
import orjson
import pandas as pd
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from delay_proxy import delayed
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String
from series_reads import Figures, in_turns
from usage import peak_mb

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION = "us-east-1"
DELAY_S = 0.01
ENTITIES, MEMBERS, DAYS, BEYOND = 100, 1_000, 30, 2
CALLS = 6
DAY = dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
SERIES, NEWEST = ("purchases", "visits"), ("profile", "basket", "scores")
TOGETHER, COHORT = "2 series and 3 views of 100", "cohort of 1,000 x 30 days"
BOTH, OF_SERIES, OF_NEWEST = "together", "series alone", "newest rows alone"
OURS, BARE = "ours", "bare Queries"
BATCH = 100


@dataclass(frozen=True)
class Large:
    """What was measured.

    Attributes:
        rounds: by case, then by way.
        units: read units of the cohort's Queries, and of batch gets of the same items.
        peak_mb: of the process, feature store and both cases.
    """

    rounds: dict[str, dict[str, list[Figures]]]
    units: dict[str, float]
    peak_mb: float


def run(endpoint: str, rounds: int, scale: float = 1.0) -> Large:
    """So many rounds of both cases."""
    command = [sys.executable, __file__, endpoint, str(rounds), str(scale)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"large requests for series: {done.stderr[-2_000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    of_cases = {
        case: {way: [Figures(**each) for each in taken] for way, taken in ways.items()}
        for case, ways in found["rounds"].items()
    }
    return Large(of_cases, found["units"], found["peak_mb"])


def main(endpoint: str, rounds: int, scale: float) -> None:
    # DynamoDB Local takes any.
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    found: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder, delayed(endpoint, DELAY_S) as far:
        shop = Shop(endpoint, Path(folder), max(20, round(MEMBERS * scale)))
        shop.load()
        shop.check()
        ways = {
            TOGETHER: {
                name: (lambda _, refs=refs: shop.features(refs))
                for name, refs in shop.refs.items()
            },
            COHORT: {OURS: lambda _: shop.members(), BARE: lambda _: shop.bare_members()},
        }
        for number in range(rounds + 1):  # the first one warms up
            for case, of_case in ways.items():
                shop.endpoint = far if case == TOGETHER else endpoint
                calls = max(2, round(CALLS * scale)) if case == TOGETHER else 1
                with shop.reached():
                    for way, figures in in_turns(of_case, calls, number).items():
                        if number:
                            found[case][way].append(figures)
        peak, units = peak_mb(), shop.units()
        shop.near.teardown()
    of_cases = {
        case: {way: [asdict(each) for each in taken] for way, taken in ways_of.items()}
        for case, ways_of in found.items()
    }
    print(json.dumps({"rounds": of_cases, "units": units, "peak_mb": peak}))


class Shop:
    """Customers with events in two series, and newest rows in three views."""

    def __init__(self, endpoint: str, folder: Path, members: int) -> None:
        self.near_endpoint = self.endpoint = endpoint
        self.folder, self.members_count = folder, members
        self.project = f"requests{os.getpid()}"
        self.near = self.store = self._open(endpoint)
        self.now = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=0)
        self._stores = {endpoint: self.near}
        self._connection = self._signed_to(endpoint)

    def _open(self, endpoint: str) -> FeatureStore:
        from feast import RepoConfig

        config = RepoConfig(
            project=self.project,
            provider="feast_dynamo_ext.DynamoProvider",
            registry=str(self.folder / "registry.db"),
            online_store={
                "type": "feast_dynamo_ext.DynamoOnlineStore",
                "endpoint_url": endpoint,
                "region": REGION,
                "write_mode": "overwrite",
            },
            offline_store={"type": "feast_dynamo_ext.S3ParquetOfflineStore", "region": REGION},
            entity_key_serialization_version=3,
        )
        config.repo_path = self.folder
        return FeatureStore(config=config)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Read by `endpoint` in the block."""
        if self.endpoint not in self._stores:
            self._stores[self.endpoint] = self._open(self.endpoint)
        self.store = self._stores[self.endpoint]
        yield
        self.store = self.near

    def load(self) -> None:
        from feast_dynamo_ext import Series, ViewSettings, recent, windows

        def view(name: str, tags: dict[str, str] | None = None) -> FeatureView:
            source = FileSource(name=f"{name}_file", path="none.parquet", timestamp_field="at")
            return FeatureView(
                name=name,
                entities=[CUSTOMER],
                schema=[
                    Field(name="customer_id", dtype=Int64),
                    Field(name="number", dtype=Int64),
                    Field(name="price", dtype=Float64),
                    Field(name="category", dtype=String),
                ],
                source=PushSource(name=f"{name}_push", batch_source=source),
                ttl=dt.timedelta(0),
                tags=tags,
            )

        series = Series(tie_breaker="number", keep_for=90 * DAY, cohorts=["category"])
        bases = [view(name, ViewSettings(series=series).tags()) for name in SERIES]
        sums = [
            Aggregation(column="price", function=function, time_window=days * DAY)
            for function, days in (("sum", 30), ("mean", 30), ("max", 7))
        ]
        derived = [windows(base, name=f"{base.name}_sums", aggregations=sums) for base in bases]
        derived += [recent(base, name=f"{base.name}_last", last=10) for base in bases]
        self.near.apply([CUSTOMER, *bases, *derived, *map(view, NEWEST)])
        for name in SERIES:
            count = self.members_count if name == SERIES[0] else ENTITIES
            for start in range(0, count, 100):
                customers = range(start, min(start + 100, count))
                self.near.push(f"{name}_push", self.events(customers))
        for name in NEWEST:
            self.near.push(
                f"{name}_push", self.events(range(ENTITIES)).drop_duplicates("customer_id")
            )

    def events(self, customers: Any) -> pd.DataFrame:
        """An event a day of 30 days, and two before them."""
        return pd.DataFrame(
            [
                {
                    "customer_id": customer,
                    "number": customer * 100 + number,
                    "price": 1.25 * number + customer,
                    "category": "books" if number % 3 == 0 else f"category {number % 3}",
                    "at": self.now - (number + 0.5) * DAY,
                }
                for customer in customers
                for number in range(DAYS + BEYOND)
            ]
        )

    # Newest rows and series in one request

    @cached_property
    def refs(self) -> dict[str, list[str]]:
        """References of a request together, and of its parts."""
        sums = ("sum_price_30d", "mean_price_30d", "max_price_7d")
        of_series = [f"{name}_sums:{feature}" for name in SERIES for feature in sums]
        of_series += [f"{name}_last:price_last_10" for name in SERIES]
        of_newest = [f"{name}:{feature}" for name in NEWEST for feature in ("price", "category")]
        return {BOTH: of_series + of_newest, OF_SERIES: of_series, OF_NEWEST: of_newest}

    def features(self, refs: list[str]) -> dict[str, Any]:
        rows = [{"customer_id": customer} for customer in range(ENTITIES)]
        found = self.store.get_online_features(refs, rows, full_feature_names=True)
        return found.to_dict()

    # A cohort

    def members(self) -> Any:
        """The events of 30 days of all customers who bought a book."""
        from feast_dynamo_ext import cohort, online_series

        found = list(cohort(self.store, SERIES[0], category="books"))
        refs = [f"{SERIES[0]}:{name}" for name in ("price", "category", "number")]
        return online_series(self.store, refs, found, within=DAYS * DAY)

    def bare_members(self) -> list[list[Any]]:
        """The same keys by bare requests: the index, then a Query for each key."""
        return [self._query(key)["Items"] for key in self._keys()]

    def _keys(self) -> list[str]:
        body: dict[str, Any] = {
            "TableName": f"{self.project}.{SERIES[0]}",
            "IndexName": "cohort_category",
            "KeyConditionExpression": "#g = :g",
            "ExpressionAttributeNames": {"#g": "g_category"},
            "ExpressionAttributeValues": {":g": {"S": "=books"}},
            "ProjectionExpression": "k,s",
            "ScanIndexForward": False,
        }
        keys: dict[str, None] = {}
        while True:
            answer = self._call("Query", body)
            keys |= dict.fromkeys(item["k"]["B"] for item in answer["Items"])
            if "LastEvaluatedKey" not in answer:
                return list(keys)
            body["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _query(self, key: str, **more: Any) -> dict[str, Any]:
        first, last = self.now - DAYS * DAY, self.now + DAY
        body = {
            "TableName": f"{self.project}.{SERIES[0]}",
            "KeyConditionExpression": "k = :k AND s BETWEEN :a AND :b",
            "ExpressionAttributeValues": {
                ":k": {"B": key},
                ":a": {"B": sort_key(first)},
                ":b": {"B": sort_key(last)},
            },
            "ProjectionExpression": "k,s,v,f,c",
            "ScanIndexForward": False,
            **more,
        }
        return self._call("Query", body)

    def units(self) -> dict[str, float]:
        """Read units of all Queries of the members, and of batch gets of the same items."""
        queries, keys = 0.0, []
        for key in self._keys():
            answer = self._query(key, ReturnConsumedCapacity="TOTAL")
            queries += answer["ConsumedCapacity"]["CapacityUnits"]
            keys += [{name: item[name] for name in "ks"} for item in answer["Items"]]
        gets, table = 0.0, f"{self.project}.{SERIES[0]}"
        for start in range(0, len(keys), BATCH):
            body = {
                "RequestItems": {table: {"Keys": keys[start : start + BATCH]}},
                "ReturnConsumedCapacity": "TOTAL",
            }
            (used,) = self._call("BatchGetItem", body)["ConsumedCapacity"]
            gets += used["CapacityUnits"]
        return {"Queries": queries, "batch gets": gets}

    def _signed_to(self, endpoint: str) -> http.client.HTTPConnection:
        address = urlsplit(endpoint)
        return http.client.HTTPConnection(address.hostname or "", address.port)

    def _call(self, operation: str, body: dict[str, Any]) -> Any:
        data = orjson.dumps(body)
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"DynamoDB_20120810.{operation}",
        }
        url = self.near_endpoint + "/"
        signed = AWSRequest(method="POST", url=url, data=data, headers=headers)
        credentials = ReadOnlyCredentials("test", "test", None)
        SigV4Auth(credentials, "dynamodb", REGION).add_auth(signed)
        self._connection.request("POST", "/", data, dict(signed.headers))
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{operation}: HTTP {answer.status}: {content.decode()}")
        return orjson.loads(content)

    def check(self) -> None:
        """All that was written is found, and no more."""
        found, bare = self.members(), self.bare_members()
        assert sorted(found.entities["customer_id"]) == list(range(self.members_count))
        assert sorted(map(len, bare)) == [DAYS] * self.members_count
        for at, customer in enumerate(found.entities["customer_id"]):
            prices = [1.25 * number + customer for number in range(DAYS)]
            assert found.features["price"][at] == prices
            numbers = [customer * 100 + number for number in range(DAYS)]
            assert found.features["number"][at] == numbers
            assert len(found.features["category"][at]) == len(found.event_us[at]) == DAYS
        assert sum(map(len, bare)) == DAYS * self.members_count
        both = self.features(self.refs[BOTH])
        for name in SERIES:
            sums = both[f"{name}_sums__sum_price_30d"]
            assert sums == [1.25 * 435 + DAYS * customer for customer in range(ENTITIES)]
        for name in NEWEST:
            assert both[f"{name}__price"] == list(range(ENTITIES))


def sort_key(moment: dt.datetime) -> str:
    micros = int(moment.timestamp()) * 1_000_000 + 2**63
    return base64.b64encode(micros.to_bytes(8, "big")).decode()


def held(found: Large) -> bars.Held:
    """What has bars, round by round."""
    parts, members = found.rounds[TOGETHER], found.rounds[COHORT]
    rounds = list(zip(parts[BOTH], parts[OF_SERIES], parts[OF_NEWEST], strict=True))
    wall = [both.p50_ms / max(one.p50_ms, other.p50_ms) for both, one, other in rounds]
    cpu = [both.cpu_ms / (one.cpu_ms + other.cpu_ms) for both, one, other in rounds]
    pairs = zip(members[OURS], members[BARE], strict=True)
    of_cohort = [ours.cpu_ms / bare.cpu_ms for ours, bare in pairs]
    named = (
        ("series and newest rows, 10 ms/slower part", 1.25, wall),
        ("series and newest rows/both parts, CPU", 1.10, cpu),
        ("cohort of 1,000 x 30 days, ours/bare Queries, CPU", 2.0, of_cohort),
    )
    return [
        (bars.Bar(name, limit, at_least=False), bars.Figure.of(figures))
        for name, limit, figures in named
    ]


def report(found: Large) -> str:
    from series_reads import report as of_rounds

    units = ", ".join(f"{units:,.1f} by {name}" for name, units in found.units.items())
    return "\n".join(
        [
            of_rounds(found.rounds),
            f"read units of the cohort's events: {units}",
            f"peak memory: {found.peak_mb:,.0f} MB",
        ]
    )


def as_json(found: Large) -> dict[str, Any]:
    return asdict(found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
