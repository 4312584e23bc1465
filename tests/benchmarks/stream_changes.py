"""Changes of a table that is followed: from the write to the online answer, at a fixed rate.

Two processes, which this file is too: `follow` is the worker, as `capture stream` has it; `write`
writes to the table at the rate, and asks the online store for what it wrote until it is answered.
What is counted begins when DynamoDB has confirmed a write, and ends with the answer that has it.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RATE, SECONDS, ORDERS = 200, 20.0, 2_000
REGION, NAME = "us-east-1", "orders"
LONGEST_S = 30.0
"""Without any answer, before it is an error."""


@dataclass(frozen=True)
class Followed:
    """One turn.

    Attributes:
        changes: that were written and answered.
        rate: writes a second that were reached.
        p50_ms: from a write to its answer.
        p99_ms: the same.
        cpu_ms: CPU time of the worker, a change.
        peak_mb: its peak memory.
        rows: of the history, at the end.
    """

    changes: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    peak_mb: float
    rows: int


def run(endpoint: str, rounds: int, scale: float = 1.0) -> list[Followed]:
    """So many rounds on a DynamoDB Local, each on tables of its own."""
    return [_round(endpoint, number, scale) for number in range(rounds)]


def as_json(rounds: list[Followed]) -> list[dict[str, Any]]:
    return [asdict(each) for each in rounds]


def report(rounds: list[Followed]) -> str:
    return "\n".join(
        f"{each.changes:,} changes, {each.rate:.0f}/s: online after {each.p50_ms:.0f} ms (p50), "
        f"{each.p99_ms:.0f} ms (p99); worker {each.cpu_ms:.2f} ms of CPU a change, "
        f"{each.peak_mb:.0f} MB; {each.rows:,} rows in history"
        for each in rounds
    )


def _round(endpoint: str, number: int, scale: float) -> Followed:
    with tempfile.TemporaryDirectory() as folder:
        settings = json.dumps(
            {
                "endpoint": endpoint,
                "folder": folder,
                "project": f"stream{os.getpid()}x{number}",
                "seconds": SECONDS * scale,
            }
        )
        _step("make", settings)
        worker = subprocess.Popen(
            [sys.executable, __file__, "follow", settings], stdout=subprocess.PIPE, text=True
        )
        try:
            written = _step("write", settings)
            worker.send_signal(signal.SIGTERM)
            answer, _ = worker.communicate(timeout=120)
        finally:
            worker.kill()
            worker.wait()
        if worker.returncode:
            raise RuntimeError(f"the worker ended with {worker.returncode}")
        took = json.loads(answer)
    changes = written["changes"]
    if took["rows"] < changes:
        raise RuntimeError(f"{took['rows']:,} rows are in the history, of {changes:,} changes")
    return Followed(
        changes,
        written["rate"],
        written["p50_ms"],
        written["p99_ms"],
        took["cpu_s"] * 1_000 / changes,
        took["peak_mb"],
        took["rows"],
    )


def _step(step: str, settings: str) -> dict[str, Any]:
    command = [sys.executable, __file__, step, settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# In the processes


def _store(settings: dict[str, Any]) -> Any:
    from feast import FeatureStore, RepoConfig

    folder = settings["folder"]
    config = RepoConfig(
        project=settings["project"],
        provider="feast_dynamo_ext.DynamoProvider",
        registry=f"{folder}/registry.db",
        online_store={
            "type": "feast_dynamo_ext.DynamoOnlineStore",
            "endpoint_url": settings["endpoint"],
            "region": REGION,
        },
        offline_store={
            "type": "feast_dynamo_ext.S3ParquetOfflineStore",
            "catalog": {"type": "sql"},
            "region": REGION,
        },
        entity_key_serialization_version=3,
    )
    config.repo_path = Path(folder)
    return FeatureStore(config=config)


def _client(settings: dict[str, Any]) -> Any:
    import boto3

    return boto3.client("dynamodb", region_name=REGION, endpoint_url=settings["endpoint"])


def _table(settings: dict[str, Any]) -> str:
    return f"{settings['project']}-{NAME}"


def make(settings: dict[str, Any]) -> dict[str, Any]:
    """The application's table, and a view over it."""
    import datetime as dt

    from feast import Entity, FeatureView, Field, ValueType
    from feast.types import Int64, String, UnixTimestamp

    from feast_dynamo_ext import DynamoDBTableSource, ViewSettings

    _client(settings).create_table(
        TableName=_table(settings),
        KeySchema=[{"AttributeName": "order", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "order", "AttributeType": "N"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    fields = [
        Field(name="order", dtype=Int64),
        Field(name="amount", dtype=Int64),
        Field(name="note", dtype=String),
    ]
    source = DynamoDBTableSource(
        name=NAME,
        table=_table(settings),
        event_time="at",
        event_time_unit="s",
        history=f"{settings['folder']}/history",
        schema=[*fields, Field(name="at", dtype=UnixTimestamp)],
    )
    order = Entity(name="order", join_keys=["order"], value_type=ValueType.INT64)
    view = FeatureView(
        name="of_orders",
        entities=[order],
        schema=fields,
        source=source,
        ttl=dt.timedelta(0),
        tags=ViewSettings().tags(),
    )
    _store(settings).apply([order, view])
    return {}


def follow(settings: dict[str, Any]) -> dict[str, Any]:
    """The worker, until SIGTERM."""
    from feast_dynamo_ext.capture.captured import worker_of
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable
    from feast_dynamo_ext.capture.stream.stream_worker import StreamSettings

    store = _store(settings)
    source: Any = store.get_data_source(NAME)
    table = DynamoTable.from_table(_client(settings), source)
    # Commits of history are among what is measured.
    worker = worker_of(source, table, store, StreamSettings(history_s=5))
    thread = threading.Thread(target=worker.run)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    before = _usage().ru_utime + _usage().ru_stime
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
    used = _usage()
    return {
        "cpu_s": used.ru_utime + used.ru_stime - before,
        "peak_mb": used.ru_maxrss / 1_000,
        "rows": worker.figures.committed.rows,
    }


def _usage() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_SELF)


def write(settings: dict[str, Any]) -> dict[str, Any]:
    """Write at the rate, and ask for what was written until it is answered."""
    store, client, table = _store(settings), _client(settings), _table(settings)
    waiting: dict[int, tuple[int, float]] = {}
    lock, took = threading.Lock(), []

    def put(order: int, amount: int) -> None:
        now = int(time.time())
        client.put_item(
            TableName=table,
            Item={
                "order": {"N": str(order)},
                "at": {"N": str(now)},
                "amount": {"N": str(amount)},
                "note": {"S": "a change among others"},
            },
        )
        with lock:
            waiting[order] = amount, time.perf_counter()

    def ask() -> None:
        """Until nothing waits and nothing more comes."""
        last = time.perf_counter()
        while True:
            with lock:
                open_ = dict(itertools.islice(waiting.items(), 500))
            if not open_:
                last = time.perf_counter()
                if is_over.is_set():
                    return
                is_over.wait(0.005)
                continue
            orders = list(open_)
            answer = store.get_online_features(
                ["of_orders:amount"], [{"order": order} for order in orders]
            ).to_dict()["amount"]
            now = time.perf_counter()
            with lock:
                for order, found in zip(orders, answer, strict=True):
                    amount, since = open_[order]
                    if found is not None and found >= amount and waiting[order][0] == amount:
                        took.append(now - since)
                        del waiting[order]
                        last = now
            if now - last > LONGEST_S:
                raise RuntimeError(f"{len(waiting)} changes are not online")

    is_over = threading.Event()
    failures: list[BaseException] = []

    def asked() -> None:
        try:
            ask()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    # The first one waits for the worker, and opens all connections.
    put(0, 1)
    reader = threading.Thread(target=asked)
    reader.start()
    while waiting and reader.is_alive():
        is_over.wait(0.01)
    took.clear()
    count, started = round(RATE * settings["seconds"]), time.perf_counter()
    for number in range(count):
        pause_s = started + number / RATE - time.perf_counter()
        if pause_s > 0:
            is_over.wait(pause_s)
        put(1 + number % ORDERS, 2 + number)
    rate = count / (time.perf_counter() - started)
    is_over.set()
    reader.join()
    if failures:
        raise failures[0]
    if len(took) != count:
        raise RuntimeError(f"{len(took):,} of {count:,} changes were answered")
    cuts = statistics.quantiles(took, n=100)
    return {
        "changes": count,
        "rate": rate,
        "p50_ms": cuts[49] * 1_000,
        "p99_ms": cuts[98] * 1_000,
    }


STEPS = {"make": make, "follow": follow, "write": write}

if __name__ == "__main__":
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
    print(json.dumps(STEPS[sys.argv[1]](json.loads(sys.argv[2]))))
