"""`capture sync` is killed at any moment: in the end each change is in the history once.

`FAULT_TIMES=10` makes it twenty kills (`make soak`).
"""

from __future__ import annotations

import datetime as dt
import os
import random
import subprocess
import threading
from collections import Counter
from pathlib import Path

import boto3
import pytest
from export_service import Clock, ExportService
from export_writer import ExportedTable, items_after, net_changes
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.types import Int64, UnixTimestamp
from repos import REGION, write_repo_yaml

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.capture.exports.windows import Window
from feast_dynamo_ext.capture.history import CapturedHistory

TIMES = int(os.environ.get("FAULT_TIMES", "1"))
KILLS = 3 if TIMES == 1 else 2 * TIMES
ITEMS = 40

RUN = Path(__file__).with_name("capture_run.py")
BEGUN = dt.datetime(2026, 3, 1, tzinfo=dt.timezone.utc)

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300 * TIMES)]


def item(order: int, day: int, amount: int) -> dict:
    moment = int((BEGUN + dt.timedelta(days=day)).timestamp())
    return {
        "order": {"N": str(order)},
        "at": {"N": str(moment)},
        # One in seven does not fit.
        "amount": {"S": "?"} if amount % 7 == 0 else {"N": str(amount)},
    }


def expected(service: ExportService, windows: list) -> Counter:
    """(order, event time, amount, change) of the history, by the log and by DynamoDB's rules."""
    found: Counter = Counter()
    first, *later = windows
    for each in items_after(service.log, first.end):
        if "N" in each["amount"]:
            found[each["order"]["N"], each["at"]["N"], each["amount"]["N"], "put"] += 1
    for window in later:
        for change in net_changes(service.log, window.start, window.end):
            old, new = change.old, change.new
            if new is not None and "N" not in new["amount"]:
                continue  # in quarantine
            order = change.keys["order"]["N"]
            amount = old["amount"].get("N") if old else None
            if new is not None:
                found[order, new["at"]["N"], new["amount"]["N"], "put"] += 1
                if old is not None and old["at"] != new["at"]:
                    found[order, old["at"]["N"], amount, "move"] += 1
            else:
                found[order, old["at"]["N"], amount, "delete"] += 1
    return found


def test_each_change_is_there_once_whoever_is_killed(tmp_path, fork_server, moto_endpoint, bucket):
    name = f"orders{os.getpid()}"
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=moto_endpoint)
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "order", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "order", "AttributeType": "N"}],
        BillingMode="PAY_PER_REQUEST",
    )
    arn = client.describe_table(TableName=name)["Table"]["TableArn"]
    table = ExportedTable(name, REGION, arn.split(":")[4], partitions=3)
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=moto_endpoint)
    source = DynamoDBTableSource(
        name=name,
        table=name,
        event_time="at",
        event_time_unit="s",
        history=f"{tmp_path}/history",
        schema=[
            Field(name="order", dtype=Int64),
            Field(name="at", dtype=UnixTimestamp),
            Field(name="amount", dtype=Int64),
        ],
    )
    order = Entity(name="order", join_keys=["order"], value_type=ValueType.INT64)
    view = FeatureView(
        name=f"of_{name}",
        entities=[order],
        schema=[Field(name="order", dtype=Int64), Field(name="amount", dtype=Int64)],
        source=source,
        ttl=dt.timedelta(0),
        tags=ViewSettings().tags(),
    )
    dice = random.Random(7)  # noqa: S311 - no secret
    exports = f"s3://{bucket}/exports"
    with ExportService(moto_endpoint, client, s3, table, ("order",), Clock(BEGUN)) as service:
        service.polls = 0
        write_repo_yaml(
            tmp_path,
            online={"endpoint_url": service.url, "region": REGION},
            offline={
                "catalog": {"type": "sql"},
                "endpoint_url": moto_endpoint,
                "region": REGION,
            },
        )
        store = FeatureStore(repo_path=str(tmp_path))
        store.apply([order, view])
        log = tmp_path / "run.log"

        def start() -> subprocess.Popen:
            with log.open("a") as said:
                return fork_server.start(
                    *(RUN, tmp_path, name, exports), stdout=said, stderr=subprocess.STDOUT
                )

        for _ in range(KILLS):
            for number in range(ITEMS):
                service.put(item(dice.randrange(ITEMS), dice.randrange(20), 100 + number))
                if dice.random() < 0.2:
                    service.delete({"order": {"N": str(dice.randrange(ITEMS))}})
            service.clock.forward(hours=30)
            last, program = len(service.calls) + dice.randrange(1, 8), start()
            seen, delay = threading.Event(), dice.random() * 0.8

            def look(_: str, seen=seen, last=last) -> None:
                if len(service.calls) >= last:
                    seen.set()

            service.on_call = look
            while program.poll() is None and not seen.wait(0.05):
                pass
            try:
                program.wait(delay)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        service.on_call = None
        assert start().wait() == 0, log.read_text()
        history = CapturedHistory.from_source(source, store.config)
        state = history.state()
        assert state is not None
        assert state.pending == ()
        windows = _windows(state.exports)
        found = Counter(
            (
                str(row["order"]),
                str(int(row["at"].timestamp())),
                None if row["amount"] is None else str(row["amount"]),
                row["_feast_change"],
            )
            for row in history.handle.load().scan().to_arrow().to_pylist()
        )
        assert found == expected(service, windows)
        # No window was exported twice.
        assert len(service.exports) == len(windows)


def _windows(exports: dict[str, str]) -> list:
    """The windows that were captured, by their ids."""

    def moment(text: str) -> dt.datetime:
        return dt.datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.timezone.utc)

    parts = [each.split("-") for each in exports]
    return [
        Window(None if start == "full" else moment(start), moment(end)) for start, end in parts
    ]
