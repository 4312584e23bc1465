"""What users of Feast and of DynamoDB clients report of other stores, tried on this one."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import math
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_contents import RepoContents
from feast.types import Array, Bool, Float64, Int32, Int64, String, UnixTimestamp
from repos import write_repo_yaml
from views import CUSTOMER

from feast_dynamo_ext.errors import (
    AwsError,
    EntityKeyError,
    FeastDynamoError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from programs import ForkServer

pytestmark = [
    pytest.mark.dynamodb_local,
    pytest.mark.filterwarnings("ignore:.* experimental feature.*:RuntimeWarning"),
]

NOT_REFUSED = pytest.fail.Exception  # what `pytest.raises` ends with where nothing was raised
UTC = dt.timezone.utc
NOW = dt.datetime.now(UTC).replace(microsecond=0)
YESTERDAY = NOW - dt.timedelta(days=1)
TIME = pa.timestamp("us", "UTC")
VERSIONS = {"enable_online_feature_view_versioning": True}
KEY = Field(name="cid", dtype=Int64)


@dataclass
class Shop:
    """A store on DynamoDB Local, and the folder of its files."""

    store: FeatureStore
    folder: Path
    endpoint: str
    client: Any
    files: int = 0

    def view(
        self,
        name: str = "orders",
        *,
        entity: Entity = CUSTOMER,
        push: bool = False,
        **columns: Any,
    ) -> FeatureView:
        """A view of a new file: a column is a pair of its type and its values.

        With `push`, its source is `<name>_push`. Options of the view are given as they are.
        """
        options = {key: columns.pop(key) for key in ("ttl", "offline") if key in columns}
        source = self.file({key: values for key, (_, values) in columns.items()})
        fields = [Field(name=key, dtype=dtype) for key, (dtype, _) in columns.items()]
        return FeatureView(
            name=name,
            entities=[entity],
            schema=fields if "cid" in columns else [KEY, *fields],
            source=PushSource(name=f"{name}_push", batch_source=source) if push else source,
            **{"ttl": dt.timedelta(0), **options},
        )

    def file(self, columns: dict[str, Any]) -> FileSource:
        self.files += 1
        path = self.folder / str(self.files) / "part.parquet"
        path.parent.mkdir()
        rows = len(next(iter(columns.values())))
        times = {"t": pa.array([YESTERDAY] * rows, TIME)}
        pq.write_table(pa.table({"cid": list(range(1, rows + 1)), **times, **columns}), path)
        created = "made" if "made" in columns else ""
        return FileSource(
            name=f"file_{self.files}",
            path=str(path.parent),
            timestamp_field="t",
            created_timestamp_column=created,
        )

    def apply(self, *objects: Any) -> None:
        self.store.apply([CUSTOMER, *objects])

    def reopen(self) -> FeatureStore:
        """The store as another process has it."""
        return FeatureStore(config=self.store.config)

    def materialize(self, *views: str, store: FeatureStore | None = None) -> None:
        (store or self.store).materialize(
            NOW - dt.timedelta(days=9), NOW, feature_views=list(views) or None
        )

    def read(self, features: Any, *cids: int, store: FeatureStore | None = None) -> dict:
        """The features of customers, 1 if not given."""
        rows = [{"cid": cid} for cid in cids or (1,)]
        answer = (store or self.store).get_online_features(features, rows).to_dict()
        assert answer.pop("cid") == [row["cid"] for row in rows]
        return answer

    def push(self, n: Any, cid: int = 1, **more: Any) -> None:
        rows = pd.DataFrame({"cid": [cid], "t": pd.to_datetime([NOW]), "n": [n], **more})
        self.store.push("orders_push", rows)

    def tables(self) -> list[str]:
        """The tables of the project, without its name."""
        start = f"{self.store.project}."
        pages = self.client.get_paginator("list_tables").paginate()
        names = [name for page in pages for name in page["TableNames"]]
        return sorted(name.removeprefix(start) for name in names if name.startswith(start))

    def run(
        self, code: str, host: str = "127.0.0.1", fork_server: ForkServer | None = None
    ) -> str:
        """The last line that a process of its own prints; it has a store of the same registry."""
        endpoint = self.endpoint.replace("127.0.0.1", host)
        write_repo_yaml(
            self.folder,
            project=self.store.project,
            registry=str(self.folder / "registry.db"),
            online={"region": "us-east-1", "endpoint_url": endpoint},
        )
        command = ["-c", code, str(self.folder)]
        errors = self.folder / "stderr.txt"
        with (
            errors.open("w") as stderr,
            fork_server.start(*command, stderr=stderr)
            if fork_server
            else subprocess.Popen(
                [sys.executable, *command], stdout=subprocess.PIPE, stderr=stderr, text=True
            ) as process,
        ):
            # Importing Feast takes seconds on a busy machine; a hang is one of what comes after.
            said = list(itertools.takewhile(lambda line: line != "ready\n", process.stdout))
            limit = threading.Timer(20, process.kill)
            limit.start()
            said += process.stdout.read().splitlines()
            limit.cancel()
        assert process.returncode == 0, errors.read_text()
        return said[-1]


@pytest.fixture
def open_shop(open_store, dynamodb_local, tmp_path):
    """Opens shops; their tables are deleted afterwards."""
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb_local)
    opened = []

    def open_shop(**more: Any) -> Shop:
        online = {"region": "us-east-1", "endpoint_url": dynamodb_local}
        store = open_store(f"f{uuid.uuid4().hex[:12]}", online=online, **more)
        opened.append(Shop(store, tmp_path, dynamodb_local, client))
        return opened[-1]

    yield open_shop
    for shop in opened:
        for table in shop.tables():
            client.delete_table(TableName=f"{shop.store.project}.{table}")
    client.close()


@pytest.fixture
def shop(open_shop) -> Shop:
    return open_shop()


# Values


def test_a_null_inside_a_list_of_floats_is_nan_online(shop):
    shop.apply(shop.view(sizes=(Array(Float64), [[1.5, None]])))
    shop.materialize()
    ((first, second),) = shop.read(["orders:sizes"])["sizes"]
    assert first == 1.5
    assert math.isnan(second)


def test_a_null_inside_a_list_is_null_in_history(shop):
    shop.apply(shop.view(sizes=(Array(Float64), [[1.5, None]])))
    entities = pd.DataFrame({"cid": [1], "event_timestamp": pd.to_datetime([NOW])})
    job = shop.store.get_historical_features(entities, ["orders:sizes"])
    assert job.to_arrow()["sizes"].to_pylist() == [[1.5, None]]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(Int64, 5), (Bool, True), (String, "x"), (UnixTimestamp, NOW)],
    ids=["Int64", "Bool", "String", "UnixTimestamp"],
)
def test_a_null_inside_another_list_is_refused_by_name(shop, dtype, value):
    shop.apply(shop.view(sizes=(Array(dtype), [[value, None]])))
    with pytest.raises(FeastDynamoError, match="`sizes`"):
        shop.materialize()


def test_nan_in_a_bool_feature_is_a_missing_value(shop):
    shop.apply(shop.view(paid=(Bool, [1.0, math.nan, 0.0])))
    shop.materialize()
    assert shop.read(["orders:paid"], 1, 2, 3) == {"paid": [True, None, False]}


def test_a_fraction_in_a_bool_feature_is_refused_by_name(shop):
    shop.apply(shop.view(paid=(Bool, [1.0, 0.5])))
    with pytest.raises(FeastDynamoError, match="`paid`"):
        shop.materialize()


def test_an_int96_time_beyond_2262_is_materialized(shop):
    far = dt.datetime(9999, 12, 31)  # noqa: DTZ001 - as Spark writes it
    view = shop.view(paid_until=(UnixTimestamp, pa.array([far], pa.timestamp("us"))))
    path = shop.folder / "1" / "part.parquet"
    pq.write_table(pq.read_table(path), path, use_deprecated_int96_timestamps=True)
    shop.apply(view)
    shop.materialize()
    assert shop.read(["orders:paid_until"]) == {"paid_until": [far.replace(tzinfo=UTC)]}


@pytest.mark.parametrize(
    "features",
    [
        ["small:x"],
        ["large:y"],
        ["small:x", "large:y"],
        ["large:y", "small:x"],
    ],
    ids=" ".join,
)
def test_a_join_key_of_two_types_reads_both_views(shop, features):
    entity = Entity(name="customer", join_keys=["cid"], value_type=ValueType.UNKNOWN)
    views = [
        shop.view("small", entity=entity, cid=(Int32, pa.array([1], pa.int32())), x=(Int64, [7])),
        shop.view("large", entity=entity, cid=(Int64, pa.array([1], pa.int64())), y=(Int64, [8])),
    ]
    shop.store.apply([entity, *views])
    shop.materialize()
    values = {"small:x": ("x", [7]), "large:y": ("y", [8])}
    assert shop.read(features) == dict(values[feature] for feature in features)


# Versions of views


@pytest.fixture
def versioned(open_shop) -> Shop:
    """A shop whose view `stats` is at version 1; both versions are materialized."""
    shop = open_shop(registry=VERSIONS)
    shop.apply(shop.view("stats", n=(Int64, [1])))
    shop.materialize()
    shop.apply(shop.view("stats", n=(Int64, [10]), m=(Int64, [2])))
    shop.store = shop.reopen()
    shop.materialize()
    return shop


@pytest.fixture
def namesake(versioned) -> FeatureView:
    """A view whose table would be that of `stats` at version 1."""
    return versioned.view("stats_v1", n=(Int64, [100]), q=(Int64, [300]))


def test_apply_refuses_a_view_whose_table_another_view_has(versioned, namesake):
    with pytest.raises(FeastDynamoError, match=r"`stats`.*stats_v1|stats_v1.*`stats`"):
        versioned.apply(namesake)


def test_plan_refuses_a_view_whose_table_another_view_has(versioned, namesake):
    contents = RepoContents(
        projects=[],
        data_sources=[],
        feature_views=[versioned.store.get_feature_view("stats"), namesake],
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        entities=[CUSTOMER],
        feature_services=[],
        permissions=[],
    )
    with pytest.raises(FeastDynamoError, match=r"`stats`.*stats_v1|stats_v1.*`stats`"):
        versioned.store.plan(contents)


def test_a_view_of_a_like_name_does_not_write_over_a_version(versioned, namesake):
    with contextlib.suppress(FeastDynamoError):
        versioned.apply(namesake)
        versioned.store = versioned.reopen()
        versioned.materialize("stats_v1")
    assert versioned.read(["stats:n", "stats:m"]) == {"n": [10], "m": [2]}


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (["stats:n", "stats:m"], {"n": [10], "m": [2]}),
        (["stats:n", "doubled:n2"], {"n": [10], "n2": [20]}),
        ("service", {"n": [10], "m": [2]}),
        (["doubled:n2"], {"n2": [20]}),
        (["doubled:n2", "stats:n"], {"n": [10], "n2": [20]}),
    ],
    ids=str,
)
def test_all_reads_are_of_the_newest_version(versioned, features, expected):
    stats = versioned.store.get_feature_view("stats")

    @on_demand_feature_view(sources=[stats], schema=[Field(name="n2", dtype=Int64)], mode="python")
    def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"n2": [n and n * 2 for n in inputs["n"]]}

    versioned.store.apply([doubled, FeatureService(name="service", features=[stats])])
    versioned.store = versioned.reopen()
    if features == "service":
        features = versioned.store.get_feature_service("service")
    assert versioned.read(features) == expected


def test_teardown_deletes_the_tables_of_all_versions(versioned):
    assert versioned.tables() == ["stats", "stats_v1"]
    versioned.store.teardown()
    assert versioned.tables() == []


# Times


MADE = {"made": (UnixTimestamp, pa.array([None], TIME))}


@pytest.mark.parametrize("offline", [False, True], ids=["online", "both stores"])
def test_a_null_created_time_is_materialized(shop, offline):
    shop.apply(shop.view(n=(Int64, [5]), offline=offline, **MADE))
    shop.materialize()
    assert shop.read(["orders:n"]) == {"n": [5]}


def pushed(**changed: list) -> pd.DataFrame:
    """Two customers' rows of now."""
    times = {
        name: pd.to_datetime(changed.get(name, [NOW, NOW]), utc=True) for name in ("t", "made")
    }
    return pd.DataFrame({"cid": [1, 2], **times, "n": [5, 6]})


def test_a_null_created_time_is_pushed(shop):
    shop.apply(shop.view(push=True, n=(Int64, [1]), **MADE))
    shop.store.push("orders_push", pushed(made=[NOW, None]))
    assert shop.read(["orders:n"], 1, 2) == {"n": [5, 6]}


def test_a_null_event_time_in_a_push_is_refused_by_row_before_anything_is_sent(shop):
    shop.apply(shop.view(push=True, n=(Int64, [1]), **MADE))
    with pytest.raises(FeastDynamoError) as refused:
        shop.store.push("orders_push", pushed(t=[NOW, None]))
    assert not isinstance(refused.value, AwsError)
    assert "`t`" in str(refused.value)
    assert "row" in str(refused.value)
    assert shop.read(["orders:n"], 1, 2) == {"n": [None, None]}


# Tables that others change


@pytest.fixture
def emptied(shop) -> Shop:
    """A shop that pushed, whose table was emptied by someone else, and that pushed again."""
    shop.apply(shop.view(push=True, n=(Int64, [1])))
    shop.push(5)
    table = f"{shop.store.project}.orders"
    client = shop.client
    for item in client.scan(TableName=table, ConsistentRead=True)["Items"]:
        client.delete_item(TableName=table, Key={"k": item["k"]})
    shop.push(6)
    return shop


def test_rows_pushed_after_a_table_was_emptied_can_be_read(emptied):
    new = emptied.reopen()
    new.apply([emptied.view(push=True, n=(Int64, [1]), m=(Int64, [1]))])
    rows = pd.DataFrame({"cid": [2], "t": pd.to_datetime([NOW]), "n": [7], "m": [1]})
    new.push("orders_push", rows)
    answer = emptied.read(["orders:n"], 2, 1, store=emptied.reopen())
    assert answer == {"n": [7, 6]}


def test_an_item_that_cannot_be_explained_leaves_its_neighbours_readable(shop):
    shop.apply(shop.view(push=True, n=(Int64, [1])))
    shop.push(5)
    client, table = shop.client, f"{shop.store.project}.orders"
    before = client.scan(TableName=table, ConsistentRead=True)["Items"]
    new = shop.reopen()
    new.apply([shop.view(push=True, n=(Int64, [1]), m=(Int64, [1]))])
    rows = pd.DataFrame({"cid": [2], "t": pd.to_datetime([NOW]), "n": [7], "m": [1]})
    new.push("orders_push", rows)
    schemas = [item["k"] for item in before if item["k"]["B"].startswith(b"\xff\xff\xff\xff")]
    for key in schemas:
        client.delete_item(TableName=table, Key={"k": key})
    assert shop.read(["orders:n"], 2, 1, store=shop.reopen()) == {"n": [7, None]}


# Processes


READ = """
import os
import sys

from feast import FeatureStore

store = FeatureStore(sys.argv[1])


def read(cids=(1,)):
    rows = [{"cid": cid} for cid in cids]
    return store.get_online_features(["orders:n"], rows).to_dict()["n"]


print("ready", flush=True)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")


@pytest.fixture
def pushed_shop(shop) -> Shop:
    """A shop whose customer 1 has `n` = 5."""
    shop.apply(shop.view(push=True, n=(Int64, [1])))
    shop.push(5)
    return shop


@linux
def test_event_loops_that_end_leave_no_socket(pushed_shop, fork_server):
    code = """
import asyncio
import gc


async def read_async():
    answer = await store.get_online_features_async(["orders:n"], [{"cid": 1}])
    return answer.to_dict()["n"]


def open_files_after(runs):
    for _ in range(runs):
        assert asyncio.run(read_async()) == [5]
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


print(open_files_after(1), open_files_after(30))
"""
    first, last = pushed_shop.run(READ + code, fork_server=fork_server).split()
    assert last == first


@linux
def test_a_burst_of_threads_is_bounded_and_leaves_no_thread(pushed_shop, fork_server):
    code = """
import threading

import psutil

assert read() == [5]
process = psutil.Process()
before = process.num_threads()
start = threading.Barrier(40)


def read_much():
    start.wait()
    assert read(range(1, 501)) == [5] + [None] * 499


threads = [threading.Thread(target=read_much) for _ in range(40)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
opened = [one for one in process.net_connections("tcp") if one.status == "ESTABLISHED"]
print(len(opened), process.num_threads() - before)
"""
    # A name, as AWS's endpoints have: it is looked up in threads.
    said = pushed_shop.run(READ + code, "localhost", fork_server)
    connections, threads_left = said.split()
    assert int(connections) <= 50
    assert int(threads_left) <= 0


@linux
def test_a_fork_while_another_thread_opens_the_store_can_read(pushed_shop, fork_server):
    # Read through the provider: Feast's registry has locks of its own. All modules are loaded by
    # the first read.
    code = """
import signal
import threading

from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

assert read() == [5]
new = FeatureStore(sys.argv[1])
view = new.get_feature_view("orders")
key = EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=1)])


def read_new():
    ((_, row),) = new.provider.online_read(new.config, view, [key], ["n"])
    return row["n"].int64_val


thread = threading.Thread(target=read_new)
thread.start()
children = []
while not children or thread.is_alive():
    child = os.fork()
    if child == 0:
        signal.alarm(6)
        os._exit(0 if read_new() == 5 else 1)
    children.append(child)
    thread.join(0.01)
print({os.waitpid(child, 0)[1] for child in children})
"""
    assert pushed_shop.run(READ + code, fork_server=fork_server) == "{0}"


def test_greenlets_read(pushed_shop):
    code = """
from collections import Counter

import gevent


def answer():
    try:
        return read()[0]
    except RuntimeError as error:
        return str(error)


greenlets = [gevent.spawn(answer) for _ in range(20)]
gevent.joinall(greenlets)
print(dict(Counter(greenlet.value for greenlet in greenlets)))
"""
    patched = "from gevent import monkey\n\nmonkey.patch_all()\n" + READ + code
    assert pushed_shop.run(patched) == "{5: 20}"


# Requests


def test_a_misspelt_join_key_is_an_error_that_names_both(shop):
    shop.apply(shop.view(n=(Int64, [5])))
    shop.materialize()
    with pytest.raises(EntityKeyError) as refused:
        shop.store.get_online_features(["orders:n"], [{"cit": 1}])
    assert "`cid`" in str(refused.value)
    assert "`cit`" in str(refused.value)


def test_a_join_key_may_be_request_data_too(shop):
    request = RequestSource(name="request", schema=[KEY])

    @on_demand_feature_view(
        sources=[request], schema=[Field(name="q", dtype=Int64)], mode="python"
    )
    def copied(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"q": inputs["cid"]}

    shop.apply(shop.view(n=(Int64, [5])), copied)
    shop.materialize()
    assert shop.read(["orders:n", "copied:q"]) == {"n": [5], "q": [1]}
