"""An application's table with exports, its source and a store that captures it."""

from __future__ import annotations

import datetime as dt
import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
from export_service import Clock, ExportService
from export_writer import ExportedTable
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.types import Float64, Int64, String, UnixTimestamp
from repos import REGION, write_repo_yaml

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.capture.captured import capture_of
from feast_dynamo_ext.capture.dynamo_table import DynamoTable
from feast_dynamo_ext.capture.exports.export_jobs import ExportTarget
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.polling import Poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUMBERS = itertools.count()
BEGUN = dt.datetime(2026, 3, 1, tzinfo=dt.timezone.utc)
MS = dt.timedelta(milliseconds=1)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
QUICK = Poll(0.0, 0.0, 5, lambda _: None)


def item(customer: int, day: int, amount: str = "1.5") -> dict[str, Any]:
    """A purchase, in DynamoDB JSON."""
    at = (BEGUN + dt.timedelta(days=day) - EPOCH) // MS
    key = {"customer": {"N": str(customer)}, "at": {"N": str(at)}}
    return {**key, "shop": {"S": f"s{day}"}, "amount": {"N": amount}}


def read(handle: Any) -> list[dict[str, Any]]:
    """All rows of a table, by pyiceberg itself."""
    return handle.load().scan().to_arrow().to_pylist()


class Shop:
    """A store, a table of an application and its exports."""

    def __init__(self, store: FeatureStore, service: ExportService, source: Any, target: str):
        self.store, self.service, self.source = store, service, source
        self.target = ExportTarget.from_uri(target)
        self.client = boto3.client("dynamodb", region_name=REGION, endpoint_url=service.url)

    def table(self) -> DynamoTable:
        return DynamoTable.from_table(self.client, self.source)

    def capture(self) -> Any:
        return capture_of(self.source, self.table(), self.store.config)

    def sync(self, **how: Any) -> Any:
        return self.capture().sync(self.client, self.table(), self.target, poll=QUICK, **how)

    @property
    def history(self) -> CapturedHistory:
        return CapturedHistory.from_source(self.source, self.store.config)

    def rows(self) -> list[tuple[Any, ...]]:
        """(customer, day, amount, change) of all rows of the history, by another reader."""
        return sorted(
            (
                row["customer"],
                (row["at"] - BEGUN) / dt.timedelta(days=1),
                row["amount"],
                row["_feast_change"],
            )
            for row in read(self.history.handle)
        )


@contextmanager
def new_shop(
    open_store: Any,
    moto_endpoint: str,
    bucket: str,
    tmp_path: Any,
    unit: Any = "ms",
    at_type: str = "N",
) -> Iterator[Shop]:
    """A table with the key (customer, at), and its exports in a bucket."""
    number = next(NUMBERS)
    name = f"captured{number}"
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=moto_endpoint)
    client.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "customer", "KeyType": "HASH"},
            {"AttributeName": "at", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "customer", "AttributeType": "N"},
            {"AttributeName": "at", "AttributeType": at_type},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    described = client.describe_table(TableName=name)["Table"]
    account = described["TableArn"].split(":")[4]
    table = ExportedTable(name, REGION, account, partitions=3)
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=moto_endpoint)
    store = open_store(
        f"sync{number}",
        online={"endpoint_url": moto_endpoint, "region": REGION},
        offline={"catalog": {"type": "sql"}, "endpoint_url": moto_endpoint, "region": REGION},
    )
    source = DynamoDBTableSource(
        name=name,
        table=name,
        event_time="at",
        event_time_unit=unit,
        history=f"{tmp_path}/history/{name}",
        schema=[
            Field(name="customer", dtype=Int64),
            Field(name="at", dtype=UnixTimestamp),
            Field(name="amount", dtype=Float64),
            Field(name="shop", dtype=String),
        ],
    )
    clock = Clock(BEGUN)
    with ExportService(moto_endpoint, client, s3, table, ("customer", "at"), clock) as service:
        yield Shop(store, service, source, f"s3://{bucket}/exports")


def repo_over(shop: Shop, folder: Path) -> tuple[FeatureStore, FeatureView]:
    """A feature repo in a folder, which commands find, with a view over the table by customer."""
    write_repo_yaml(
        folder,
        project=shop.store.project,
        registry=str(folder / "repo.db"),
        online={"endpoint_url": shop.service.url, "region": REGION},
        offline={
            "catalog": {"type": "sql"},
            "endpoint_url": shop.store.config.offline_store.endpoint_url,
            "region": REGION,
        },
    )
    store = FeatureStore(repo_path=str(folder))
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
    view = FeatureView(
        name=f"of_{shop.source.name}",
        entities=[customer],
        schema=[Field(name="amount", dtype=Float64), Field(name="customer", dtype=Int64)],
        source=shop.source,
        ttl=dt.timedelta(0),
        tags=ViewSettings(deletes="ignore").tags(),
    )
    store.apply([customer, view])
    return store, store.get_feature_view(view.name)
