"""A stream and exports beside it: begun without a gap, and what the stream lacks is exported."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from click.testing import CliRunner
from export_service import Clock, ExportService
from export_writer import Change, ExportedTable
from feast import FeatureStore
from followed import BEGUN, ORDER, FollowedShop, create_table, item, source_of, until, view_of
from repos import REGION, write_repo_yaml

from feast_dynamo_ext.capture.captured import capture_of
from feast_dynamo_ext.capture.dynamo_table import DynamoTable
from feast_dynamo_ext.capture.exports.export_jobs import ExportTarget, Poll
from feast_dynamo_ext.capture.exports.windows import CaptureState
from feast_dynamo_ext.capture.stream.stream_positions import (
    STREAM,
    FollowedStream,
    ShardPosition,
    shard_source,
)
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.parquet.iceberg.ledger import Progress

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.server

QUICK = Poll(0.0, 0.0, 5, lambda _: None)
HOUR = dt.timedelta(hours=1)


class RealClock(Clock):
    """That of this machine, as moto's streams have it."""

    @property
    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.timezone.utc)

    @now.setter
    def now(self, moment: dt.datetime) -> None:
        """It cannot be set."""

    def forward(self, **_: float) -> dt.datetime:
        return self.now


@dataclass
class Exact(ExportService):
    """A change is in an export where it was asked for before the export's moment."""

    def __post_init__(self) -> None:
        self._whole, self._asked = threading.Lock(), self.clock.now

    def put(self, item: dict[str, Any]) -> None:
        with self._whole:
            self._asked = self.clock.now
            super().put(item)

    def delete(self, key: dict[str, Any]) -> None:
        with self._whole:
            self._asked = self.clock.now
            super().delete(key)

    def _note(self, key: Any, old: Any, new: Any) -> None:
        self.log.append(Change(key, old, new, self._asked))

    def _export(self, given: dict[str, Any]) -> dict[str, Any]:
        with self._whole:
            return super()._export(given)


@pytest.fixture
def open_service(moto_endpoint: str, bucket: str, tmp_path: Path) -> Any:
    """A repo whose DynamoDB has exports, and a table with a stream."""
    services = []

    def open_service(name: str, clock: Clock) -> tuple[ExportService, FollowedShop]:
        client = boto3.client("dynamodb", region_name=REGION, endpoint_url=moto_endpoint)
        create_table(client, name)
        arn = client.describe_table(TableName=name)["Table"]["TableArn"]
        s3 = boto3.client("s3", region_name=REGION, endpoint_url=moto_endpoint)
        table = ExportedTable(name, REGION, arn.split(":")[4], partitions=2)
        service = Exact(moto_endpoint, client, s3, table, ("order",), clock, polls=0)
        services.append(service.__enter__())
        write_repo_yaml(
            tmp_path,
            online={
                "endpoint_url": service.url,
                "region": REGION,
                "newest_wins_with": "put_item",
            },
            offline={
                "catalog": {"type": "sql"},
                "endpoint_url": moto_endpoint,
                "region": REGION,
            },
        )
        store = FeatureStore(repo_path=str(tmp_path))
        source = source_of(name, tmp_path)
        store.apply([ORDER, view_of(source, f"by_{name}")])
        ours = boto3.client("dynamodb", region_name=REGION, endpoint_url=service.url)
        return service, FollowedShop(store, ours, source)

    yield open_service
    for service in services:
        service.__exit__()


def state_of(shop: FollowedShop) -> dict[int, int | None]:
    """The amounts of the items that are there, by the rows of the history carried out."""
    found: dict[int, int | None] = {}
    rows = shop.history.handle.load().scan().to_arrow()
    order = [("_feast_written_at", "ascending"), ("_feast_sequence", "ascending")]
    for row in rows.sort_by(order).to_pylist():
        if row["_feast_change"] == "put":
            found[row["order"]] = row["amount"]
        else:
            found.pop(row["order"], None)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exports", "scan"])
def test_a_history_begins_with_the_table_while_its_stream_is_followed(
    open_service: Any, fork_server: Any, bucket: str, tmp_path: Path, how: str
):
    name = f"begun{os.getpid()}{how}"
    service, shop = open_service(name, RealClock())
    amounts: dict[int, int] = {}

    def put(order: int, amount: int) -> None:
        service.put(item(order, at=order, amount=amount))
        amounts[order] = amount

    def delete(order: int) -> None:
        service.delete({"order": {"N": str(order)}})
        amounts.pop(order, None)

    for order in range(30):
        put(order, 1)
    command = (
        *("feast-dynamo", "capture", "stream", name, "--bootstrap", "--history-every", "0.2"),
        *("--json", "--chdir", tmp_path),
        *(("--scan",) if how == "scan" else ("--exports", f"s3://{bucket}/exports")),
    )
    program = fork_server.start(*command, stderr=subprocess.STDOUT)
    pause, number = threading.Event(), 1
    with program:

        def is_begun() -> bool:
            state = shop.history.state()
            return state is not None and state.until is not None

        while not is_begun():
            if program.poll() is not None:
                raise AssertionError(program.communicate())
            number += 1
            put(number % 40, number)
            delete((number * 7) % 40)
            pause.wait(0.02)
        put(50, 50)
        delete(3)
        until(lambda: state_of(shop) == amounts)
        while_followed = CliRunner().invoke(main, ["capture", "status", name, "-c", str(tmp_path)])
        program.send_signal(signal.SIGTERM)
        said, _ = program.communicate()
    assert program.returncode == 0, said
    figures = json.loads(said[said.index("{") :])
    assert figures["rows"] > 30
    assert figures["quarantined"] == 0

    runner = CliRunner()
    if how == "exports":
        # Nothing is left to export: the stream brought it.
        answer = runner.invoke(
            main,
            ["capture", "sync", name, "--exports", f"s3://{bucket}/exports", "-c", str(tmp_path)],
        )
        assert answer.exit_code == 0, answer.output
        assert "Nothing is exported, as the table's stream is followed" in answer.output
        assert len(service.exports) == 1
    answer = runner.invoke(main, ["capture", "status", name, "-c", str(tmp_path), "--json"])
    (status,) = json.loads(answer.stdout)
    (shard,) = status["stream"]
    assert shard["shard"].startswith("shardId-")
    assert 0 <= shard["lag_seconds"] < 600
    assert shard["sequence_number"].isdigit()
    assert status["gap"] is None
    assert "nothing: the stream is followed" in while_followed.output
    text = runner.invoke(main, ["capture", "status", name, "-c", str(tmp_path)]).output
    assert "1 shard, " in text
    # The worker has ended, having committed what it had read.
    since = dt.datetime.fromisoformat(status["unfollowed_since"])
    assert since == dt.datetime.fromisoformat(shard["until"])
    assert (
        f"; no worker has followed the stream since {since:%Y-%m-%d %H:%M:%S}Z: start "
        f"`feast-dynamo capture stream {name}`" in text
    )
    assert "the stream is followed" not in text


def test_what_the_stream_lacks_is_exported(open_service: Any, bucket: str):
    """Captured until 0:00; the stream has 23:00 to 5:00, and all from 8:00 on."""
    clock = Clock(BEGUN)
    service, shop = open_service("lacking", clock)
    facts = DynamoTable.from_table(shop.client, shop.source)
    run = capture_of(shop.source, facts, shop.store.config)
    history, target = shop.history, ExportTarget.from_uri(f"s3://{bucket}/exports")
    stream = FollowedStream("arn", ((BEGUN - HOUR, BEGUN + 5 * HOUR), (BEGUN + 8 * HOUR, None)))
    position = ShardPosition(BEGUN + 20 * HOUR, "1").to_json()
    history.handle.append(
        iter(()),
        "followed",
        Progress(STREAM, None, stream.to_json()),
        Progress(shard_source("a"), None, position),
    )
    history.keep(None, CaptureState(facts.id, facts.keys, BEGUN), "exported")
    for hour in (2, 6, 12):
        clock.now = BEGUN + hour * HOUR
        service.put(item(hour, at=hour, amount=hour))
    clock.now = BEGUN + 21 * HOUR
    (window,) = run.sync(shop.client, facts, target, poll=QUICK).captured
    assert (window.window.start, window.window.end) == (BEGUN + 5 * HOUR, clock.now)
    assert {row for rows in shop.rows().values() for row in rows} == {
        (6, 6, "put"), (12, 12, "put")
    }  # fmt: skip
    # From now on the stream's own positions say until when all is there.
    further = dataclasses.replace(ShardPosition.from_json(position), at=clock.now + 9 * HOUR)
    history.handle.append(
        iter(()), "further", Progress(shard_source("a"), position, further.to_json())
    )
    clock.now += 9 * HOUR + dt.timedelta(minutes=10)
    result = run.sync(shop.client, facts, target, poll=QUICK)
    assert (result.captured, result.is_followed) == ((), True)
    assert result.until == further.at
    # A worker that has not come further for an hour does not follow it.
    clock.now += HOUR
    (window,) = run.sync(shop.client, facts, target, poll=QUICK).captured
    assert window.window.start == further.at
