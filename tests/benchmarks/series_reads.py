"""Series on DynamoDB Local: reads beside bare Queries and the way by boto3 and pandas; writes.

All take turns in one process, call by call, so that noise is alike for all; CPU time is that of
all threads. The bare Query is signed and asks for the same attributes, its answer decoded with
orjson: nothing becomes a feature value.
"""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import bars
import boto3
import orjson
import pandas as pd
from boto3.dynamodb.conditions import Key
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.aggregation import Aggregation
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String

if TYPE_CHECKING:
    from collections.abc import Callable

REGION = "us-east-1"
CUSTOMERS, EVENTS = 100, 200
CALLS, WRITTEN = 60, 2_000
DAY = dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
LAST, WINDOWS, READ = "last 20", "5 windows of 200", "all 200"
WRITES, EVENTS_WAY, NEWEST = "writes, a row", "events", "newest rows"
OURS, BY_CALL, BARE, ARTICLE = "ours", "online_series", "bare Query", "boto3 and pandas"


@dataclass(frozen=True)
class Figures:
    """Of one way in one round, a call: the median's time, and CPU time."""

    p50_ms: float
    cpu_ms: float


Rounds = dict[str, dict[str, list[Figures]]]
"""By case, then by way."""


def run(endpoint: str, rounds: int, scale: float = 1.0) -> Rounds:
    """So many rounds; reads of one entity, and writes of rows that are there already."""
    # DynamoDB Local takes any.
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(endpoint, Path(folder))
        shop.load()
        calls = max(5, round(CALLS * scale))
        found: Rounds = defaultdict(lambda: defaultdict(list))
        cases = {
            LAST: {
                OURS: shop.last,
                BY_CALL: shop.by_call,
                BARE: shop.bare_last,
                ARTICLE: shop.article,
            },
            WINDOWS: {OURS: shop.windows},
            READ: {OURS: shop.every, BARE: shop.bare_every},
        }
        shop.check()
        for number in range(rounds + 1):  # the first one warms up
            for case, ways in cases.items():
                taken = in_turns(ways, calls, number)
                if number:
                    for way, figures in taken.items():
                        found[case][way].append(figures)
            written = shop.written(max(100, round(WRITTEN * scale)))
            if number:
                for way, figures in written.items():
                    found[WRITES][way].append(figures)
        shop.store.teardown()
        return {case: dict(ways) for case, ways in found.items()}


def in_turns(
    ways: dict[str, Callable[[int], object]], calls: int, number: int
) -> dict[str, Figures]:
    times: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, float] = defaultdict(float)
    for call in range(calls):
        customer = (number * calls + call) % CUSTOMERS
        for way, read in ways.items():
            began, used = time.perf_counter(), time.process_time()
            read(customer)
            times[way].append(time.perf_counter() - began)
            cpu[way] += time.process_time() - used
    return {
        way: Figures(statistics.median(times[way]) * 1_000, cpu[way] / calls * 1_000)
        for way in ways
    }


class Shop:
    """Purchases of customers: as a series, as a packed view, and as the article keeps them."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        from feast import RepoConfig

        self.project = f"series{os.getpid()}"
        config = RepoConfig(
            project=self.project,
            provider="feast_dynamo_ext.DynamoProvider",
            registry=str(folder / "registry.db"),
            online_store={
                "type": "feast_dynamo_ext.DynamoOnlineStore",
                "endpoint_url": endpoint,
                "region": REGION,
                "write_mode": "overwrite",
            },
            offline_store={"type": "feast_dynamo_ext.S3ParquetOfflineStore", "region": REGION},
            entity_key_serialization_version=3,
        )
        config.repo_path = folder
        self.store = FeatureStore(config=config)
        self.url = endpoint + "/"
        self.resource = boto3.resource("dynamodb", region_name=REGION, endpoint_url=endpoint)
        self.credentials = ReadOnlyCredentials("test", "test", None)
        address = urlsplit(endpoint)
        self.connection = http.client.HTTPConnection(address.hostname, address.port)
        self.now = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=0)

    def load(self) -> None:
        from feast_dynamo_ext import ViewSettings
        from feast_dynamo_ext.derived import recent, windows
        from feast_dynamo_ext.series_settings import Series

        def view(name: str, **settings: Any) -> FeatureView:
            source = FileSource(name=f"{name}_file", path="none.parquet", timestamp_field="at")
            return FeatureView(
                name=name,
                entities=[CUSTOMER],
                schema=[
                    Field(name="customer_id", dtype=Int64),
                    Field(name="purchase_id", dtype=Int64),
                    Field(name="price", dtype=Float64),
                    Field(name="category", dtype=String),
                ],
                source=PushSource(name=f"{name}_push", batch_source=source),
                ttl=dt.timedelta(0),
                tags=ViewSettings(**settings).tags(),
            )

        series = Series(tie_breaker="purchase_id", keep_for=90 * DAY)
        base = view("purchases", series=series)
        sums = [
            Aggregation(column="price", function=function, time_window=days * DAY)
            for function, days in (("sum", 90), ("mean", 90), ("sum", 30), ("max", 30))
        ]
        sums.append(Aggregation(column="category", function="count_distinct", time_window=7 * DAY))
        views = [
            base,
            view("newest"),
            recent(base, name="last", last=20),
            recent(base, name="every", last=EVENTS),
            windows(base, name="spend", aggregations=sums),
        ]
        self.store.apply([CUSTOMER, *views])
        self.table = f"{self.project}.purchases"
        for start in range(0, CUSTOMERS, 20):
            self.store.push("purchases_push", self.rows(range(start, start + 20), EVENTS))
        plain = self.resource.create_table(
            TableName=f"{self.project}.plain",
            KeySchema=[
                {"AttributeName": "customer_id", "KeyType": "HASH"},
                {"AttributeName": "date", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "customer_id", "AttributeType": "N"},
                {"AttributeName": "date", "AttributeType": "S"},
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        with plain.batch_writer() as batch:
            for row in self.rows(range(CUSTOMERS), 20).to_dict("records"):
                batch.put_item(
                    {
                        "customer_id": row["customer_id"],
                        "date": row["at"].isoformat(),
                        "purchase_id": row["purchase_id"],
                        "price": Decimal(str(row["price"])),
                        "category": row["category"],
                    }
                )
        self.plain = plain

    def rows(self, customers: Any, events: int) -> pd.DataFrame:
        """The newest so many purchases of customers, a quarter of a day apart."""
        return pd.DataFrame(
            [
                {
                    "customer_id": customer,
                    "purchase_id": customer * 1_000 + number,
                    "price": 1.25 * number + customer,
                    "category": f"category {number % 12}",
                    "at": self.now - number * DAY / 4,
                }
                for customer in customers
                for number in range(events)
            ]
        )

    # Reads of one customer

    def last(self, customer: int) -> dict[str, Any]:
        return self._read(
            ["price_last_20", "category_last_20", "purchase_id_last_20"], "last", customer
        )

    def by_call(self, customer: int) -> dict[str, Any]:
        from feast_dynamo_ext import online_series

        refs = ["purchases:price", "purchases:category", "purchases:purchase_id"]
        return online_series(self.store, refs, [{"customer_id": customer}], last=20).to_dict()

    def every(self, customer: int) -> dict[str, Any]:
        return self._read(["price_last_200"], "every", customer)

    def windows(self, customer: int) -> dict[str, Any]:
        features = ["sum_price_90d", "mean_price_90d", "sum_price_30d", "max_price_30d"]
        return self._read([*features, "count_distinct_category_7d"], "spend", customer)

    def _read(self, features: list[str], view: str, customer: int) -> dict[str, Any]:
        refs = [f"{view}:{feature}" for feature in features]
        return self.store.get_online_features(refs, [{"customer_id": customer}]).to_dict()

    def bare_last(self, customer: int) -> list[Any]:
        return self._query(customer, 20)

    def bare_every(self, customer: int) -> list[Any]:
        return self._query(customer, EVENTS)

    def article(self, customer: int) -> pd.DataFrame:
        """As the article does: the resource's Query, Decimals, a data frame, floats."""
        answer = self.plain.query(
            KeyConditionExpression=Key("customer_id").eq(customer),
            ScanIndexForward=False,
            Limit=20,
        )
        frame = pd.DataFrame(answer["Items"])
        frame["price"] = frame["price"].astype(float)
        frame["date"] = pd.to_datetime(frame["date"])
        return frame

    def _query(self, customer: int, limit: int) -> list[Any]:
        key = EntityKey(join_keys=["customer_id"], entity_values=[Value(int64_val=customer)])
        data = orjson.dumps(
            {
                "TableName": self.table,
                "KeyConditionExpression": "k = :k",
                "ExpressionAttributeValues": {
                    ":k": {"B": base64.b64encode(serialize_entity_key(key, 3)).decode()}
                },
                "ProjectionExpression": "k,s,v,f,c",
                "ScanIndexForward": False,
                "Limit": limit,
            }
        )
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": "DynamoDB_20120810.Query",
        }
        signed = AWSRequest(method="POST", url=self.url, data=data, headers=headers)
        SigV4Auth(self.credentials, "dynamodb", REGION).add_auth(signed)
        self.connection.request("POST", "/", data, dict(signed.headers))
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"Query: HTTP {answer.status}: {content.decode()}")
        return orjson.loads(content)["Items"]

    def check(self) -> None:
        """All ways find the same."""
        for customer in (0, CUSTOMERS - 1):
            ours = self.last(customer)
            prices = ours["price_last_20"][0]
            assert prices == self.article(customer)["price"].tolist()
            assert len(self.bare_last(customer)) == len(prices)
            assert (
                len(self.bare_every(customer))
                == EVENTS
                == len(self.every(customer)["price_last_200"][0])
            )
            expected = [1.25 * number + customer for number in range(EVENTS)]
            assert abs(self.windows(customer)["sum_price_90d"][0] - sum(expected)) < 1e-6

    # Writes

    def written(self, rows: int) -> dict[str, Figures]:
        """CPU time and time a row, of the same rows as events and as newest rows."""
        frame = self.rows(range(-(-rows // 20)), 20).head(rows)
        of_newest = frame.assign(customer_id=range(1_000_000, 1_000_000 + len(frame)))
        found = {}
        for name, source, given in (
            (EVENTS_WAY, "purchases_push", frame),
            (NEWEST, "newest_push", of_newest),
        ):
            began, used = time.perf_counter(), time.process_time()
            self.store.push(source, given)
            taken = time.perf_counter() - began, time.process_time() - used
            found[name] = Figures(*(each / len(frame) * 1_000 for each in taken))
        return found


def held(found: Rounds) -> bars.Held:
    """What has bars, round by round."""

    def ratio(case: str, one: str, other: str, figure: str, of: str = "") -> bars.Figure:
        pairs = zip(found[case][one], found[of or case][other], strict=True)
        return bars.Figure.of([getattr(a, figure) / getattr(b, figure) for a, b in pairs])

    at_most = {"at_least": False}
    return [
        (
            bars.Bar("last 20, ours/bare Query, p50", 1.6, **at_most),
            ratio(LAST, OURS, BARE, "p50_ms"),
        ),
        (
            bars.Bar("last 20, boto3 and pandas/ours, CPU", 6.0),
            ratio(LAST, ARTICLE, OURS, "cpu_ms"),
        ),
        (
            bars.Bar("5 windows of 200/all 200, ours, p50", 1.5, **at_most),
            ratio(WINDOWS, OURS, OURS, "p50_ms", READ),
        ),
        (
            bars.Bar("writes, events/newest rows, CPU", 1.2, **at_most),
            ratio(WRITES, EVENTS_WAY, NEWEST, "cpu_ms"),
        ),
    ]


def as_json(found: Rounds) -> dict[str, Any]:
    return {
        case: {way: [asdict(each) for each in rounds] for way, rounds in ways.items()}
        for case, ways in found.items()
    }


def report(found: Rounds) -> str:
    return "\n".join(
        f"{case}, {way}: {statistics.median(each.p50_ms for each in rounds):.3f} ms, "
        f"{statistics.median(each.cpu_ms for each in rounds):.3f} ms of CPU"
        for case, ways in found.items()
        for way, rounds in ways.items()
    )


if __name__ == "__main__":
    print(json.dumps(as_json(run(sys.argv[1], int(sys.argv[2])))))
