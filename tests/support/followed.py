"""A table of an application whose stream is followed, and a log of its changes kept beside.

shop = FollowedShop.make(store, endpoint, "orders", tmp_path)
with following(shop.worker()) as worker:
    shop.put(1, at=5, amount=7)
    until(lambda: shop.is_captured())
assert shop.rows() == shop.expected()
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow.compute as pc
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Int64, UnixTimestamp
from repos import REGION

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.capture.captured import worker_of
from feast_dynamo_ext.capture.dynamo_table import DynamoTable
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.stream.stream_worker import StreamSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from feast import FeatureStore

    from feast_dynamo_ext.capture.stream.stream_worker import StreamWorker

BEGUN = dt.datetime(2026, 3, 1, tzinfo=dt.timezone.utc)
ORDER = Entity(name="order", join_keys=["order"], value_type=ValueType.INT64)
QUICK = StreamSettings(history_s=0.2, poll_s=0.02, idle_s=300, list_s=1, line_s=600)
LONGEST_S = 60

Row = tuple[int, "int | None", str]
"""Event time in seconds since `BEGUN`, amount, and what the change was."""


@dataclass(frozen=True)
class Change:
    """One change, by the images before and after it."""

    order: int
    old: dict[str, Any] | None
    new: dict[str, Any] | None


def until(condition: Callable[[], bool], longest_s: float = LONGEST_S) -> None:
    """Return once it is so."""
    ends, pause = time.monotonic() + longest_s, threading.Event()
    while not condition():
        assert time.monotonic() < ends, f"not within {longest_s:g} s"
        pause.wait(0.02)


@contextlib.contextmanager
def following(worker: StreamWorker) -> Iterator[StreamWorker]:
    """The worker at work in a thread; at the end it is stopped cleanly, and its error raised."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)
            worker.stop()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()
    if failures:
        raise failures[0]


def create_table(client: Any, name: str, *, stream: bool = True) -> None:
    """The application's table: orders by number, `until` is their TTL."""
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "order", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "order", "AttributeType": "N"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification=(
            {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
            if stream
            else {"StreamEnabled": False}
        ),
    )
    client.update_time_to_live(
        TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "until"}
    )


def source_of(name: str, folder: Path, **more: Any) -> DynamoDBTableSource:
    """The table as a source."""
    given: dict[str, Any] = {
        "name": name,
        "table": name,
        "event_time": "at",
        "event_time_unit": "s",
        "history": f"{folder}/history/{name}",
        "schema": [
            Field(name="order", dtype=Int64),
            Field(name="at", dtype=UnixTimestamp),
            Field(name="amount", dtype=Int64),
        ],
    }
    return DynamoDBTableSource(**{**given, **more})


def view_of(source: DynamoDBTableSource, name: str, deletes: str | None = None) -> FeatureView:
    """A view of the amount, by order."""
    return FeatureView(
        name=name,
        entities=[ORDER],
        schema=[Field(name="order", dtype=Int64), Field(name="amount", dtype=Int64)],
        source=source,
        ttl=dt.timedelta(0),
        tags=ViewSettings(deletes=deletes).tags(),
    )


def item(order: int, at: int, amount: Any, *, gone_since: int | None = None) -> dict[str, Any]:
    """An order in DynamoDB JSON; `amount` may be None, or a text, which does not fit."""
    made: dict[str, Any] = {
        "order": {"N": str(order)},
        "at": {"N": str(int((BEGUN + dt.timedelta(seconds=at)).timestamp()))},
    }
    if amount is not None:
        made["amount"] = {"S": amount} if isinstance(amount, str) else {"N": str(amount)}
    if gone_since is not None:
        made["until"] = {"N": str(gone_since)}
    return made


def rows_of(change: Change) -> list[Row] | None:
    """The rows of a change by definition; None where it does not fit."""
    old, new = change.old, change.new
    if new is not None and "S" in new.get("amount", {}):
        return None
    if new is None:
        assert old is not None
        is_expired = "until" in old and int(old["until"]["N"]) <= time.time()
        return [(_at(old), _amount(old), "expire" if is_expired else "delete")]
    found = [(_at(new), _amount(new), "put")]
    if old is not None and _at(old) != _at(new):
        found.insert(0, (_at(old), _amount(old), "move"))
    return found


def _at(image: dict[str, Any]) -> int:
    return int(image["at"]["N"]) - int(BEGUN.timestamp())


def _amount(image: dict[str, Any]) -> int | None:
    found = image.get("amount", {}).get("N")
    return None if found is None else int(found)


@dataclass
class FollowedShop:
    """See the module.

    Attributes:
        store: with views `by_<name>` and `all_<name>` (which ignores deletions) over the table.
        client: of DynamoDB, which writes.
        source: the table as a source.
        log: the changes in the order of writing.
    """

    store: FeatureStore
    client: Any
    source: DynamoDBTableSource
    log: list[Change] = field(default_factory=list)

    @classmethod
    def make(
        cls, store: FeatureStore, endpoint: str, name: str, folder: Path, **source: Any
    ) -> FollowedShop:
        """A table, and the store's views over it."""
        client = boto3.client("dynamodb", region_name=REGION, endpoint_url=endpoint)
        create_table(client, name)
        made = source_of(name, folder, **source)
        views = [view_of(made, f"by_{name}"), view_of(made, f"all_{name}", "ignore")]
        store.apply([ORDER, *views])
        return cls(store, client, made)

    # The application

    def put(self, order: int, at: int, amount: Any, *, gone_since: int | None = None) -> None:
        """Write an order."""
        new = item(order, at, amount, gone_since=gone_since)
        answer = self.client.put_item(
            TableName=self.source.table, Item=new, ReturnValues="ALL_OLD"
        )
        old = answer.get("Attributes")
        if old != new:  # a stream shows no change that is none
            self.log.append(Change(order, old, new))

    def delete(self, order: int) -> None:
        """Delete an order, if it is there."""
        answer = self.client.delete_item(
            TableName=self.source.table,
            Key={"order": {"N": str(order)}},
            ReturnValues="ALL_OLD",
        )
        if answer.get("Attributes"):
            self.log.append(Change(order, answer["Attributes"], None))

    # Capture

    def worker(self, settings: StreamSettings = QUICK, **more: Any) -> StreamWorker:
        """A worker that follows the table."""
        lease_s = more.pop("lease_s", 30.0)
        table = DynamoTable.from_table(self.client, self.source)
        made = worker_of(self.source, table, self.store, settings, lease_s)
        return dataclasses.replace(made, **more) if more else made

    @property
    def history(self) -> CapturedHistory:
        return CapturedHistory.from_source(self.source, self.store.config)

    def rows(self, *, of_exports: bool = False) -> dict[int, list[Row]]:
        """The history by order, in the order of writing, by pyiceberg itself.

        Args:
            of_exports: a change's two rows, which have no order then, are given the move first.
        """
        found: dict[int, list[Row]] = defaultdict(list)
        table = self.history.handle.load().scan().to_arrow()
        table = table.append_column("is_put", pc.not_equal(table["_feast_change"], "move"))
        order = ["_feast_written_at"] + ["is_put"] * of_exports + ["_feast_sequence"]
        table = table.sort_by([(name, "ascending") for name in order])
        for row in table.to_pylist():
            at = int((row["at"] - BEGUN).total_seconds())
            found[row["order"]].append((at, row["amount"], row["_feast_change"]))
        return dict(found)

    def expected(self) -> dict[int, list[Row]]:
        """The same by the log."""
        found: dict[int, list[Row]] = defaultdict(list)
        for change in self.log:
            found[change.order] += rows_of(change) or ()
        return {order: rows for order, rows in found.items() if rows}

    def misfits(self) -> int:
        """How many changes of the log do not fit."""
        return sum(rows_of(change) is None for change in self.log)

    def is_captured(self) -> bool:
        """Whether the history has as many rows as the log says."""
        return self.history.rows() == sum(map(len, self.expected().values()))

    # Online

    def online(self, orders: list[int], view: str = "by") -> list[int | None]:
        """The amounts that the online store answers."""
        name = f"{view}_{self.source.name}"
        answer = self.store.get_online_features(
            [f"{name}:amount"], [{"order": order} for order in orders]
        )
        return answer.to_dict()["amount"]

    def held(self, orders: Iterable[int]) -> list[int | None]:
        """The amounts that the table has, by the log; what does not fit leaves what was there."""
        now: dict[int, int | None] = {}
        for change in self.log:
            if change.new is None:
                if rows_of(change)[0][2] == "delete":  # type: ignore[index]
                    now.pop(change.order, None)
            elif rows_of(change) is not None:
                now[change.order] = _amount(change.new)
        return [now.get(order) for order in orders]
