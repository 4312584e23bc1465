"""Whose a table is: names that two views could have, and what is left behind at the end."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.awsrequest import AWSResponse
from feast import FeatureService
from feast.data_source import PushSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_contents import RepoContents
from feast.types import Float64
from repos import REGION
from views import CUSTOMER, customer_view, parquet_files, pushed

from feast_dynamo_ext.dynamo.views import LOOK_AGAIN_S
from feast_dynamo_ext.errors import ConfigError, TablesFailedError, TableTakenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast import FeatureStore, FeatureView

VERSIONS = {"enable_online_feature_view_versioning": True}
OWNER = b"\xff\xff\xff\xffowner"
NOW = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=0)
YESTERDAY = NOW - dt.timedelta(days=1)


@dataclass
class Account:
    """One DynamoDB, and tables there whose names start as this test's do."""

    open_store: Callable[..., FeatureStore]
    endpoint: str
    start: str = field(default_factory=lambda: f"o{uuid.uuid4().hex[:10]}")

    @property
    def client(self) -> Any:
        return boto3.client("dynamodb", region_name=REGION, endpoint_url=self.endpoint)

    def store(self, project: str = "", registry: str = "r", **more: Any) -> FeatureStore:
        """A store of a project, on a registry of its own."""
        online = {"region": REGION, "endpoint_url": self.endpoint, **more.pop("online", {})}
        path = f"{more.pop('folder')}/{registry}.db"
        return self.open_store(
            f"{self.start}{project}",
            online=online,
            registry={"path": path, **more.pop("versions", {})},
            **more,
        )

    def tables(self) -> list[str]:
        """The tables, without what all names start with."""
        pages = self.client.get_paginator("list_tables").paginate()
        names = [name for page in pages for name in page["TableNames"]]
        return sorted(
            name.removeprefix(self.start) for name in names if name.startswith(self.start)
        )

    def create(self, table: str) -> None:
        """Make a table as Terraform would."""
        self.client.create_table(
            TableName=self.start + table,
            KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "B"}],
            BillingMode="PAY_PER_REQUEST",
        )

    def keys(self, table: str) -> list[bytes]:
        items = self.client.scan(TableName=self.start + table)["Items"]
        return [item["k"]["B"] for item in items]


@pytest.fixture
def account(open_store, dynamodb):
    made = Account(open_store, dynamodb.endpoint)
    yield made
    for name in made.tables():
        made.client.delete_table(TableName=made.start + name)


def contents(*views) -> RepoContents:
    return RepoContents(
        projects=[],
        data_sources=[],
        feature_views=list(views),
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        entities=[CUSTOMER],
        feature_services=[],
        permissions=[],
    )


@pytest.mark.parametrize(
    ("template", "first", "second"),
    [
        ("{table_name}", ("", "orders"), ("x", "orders")),
        ("{project}_{table_name}", ("", "eu_orders"), ("_eu", "orders")),
        ("{project}{table_name}", ("", "eu_orders"), ("eu", "_orders")),
    ],
)
def test_a_table_of_another_project_is_refused_at_apply_and_plan(
    account, tmp_path, template, first, second
):
    if template == "{table_name}":
        template = f"{account.start}.{template}"
    online = {"table_name_template": template}
    theirs, ours = (
        account.store(project, registry=project or "r", folder=tmp_path, online=online)
        for project, _ in (first, second)
    )
    theirs.apply([CUSTOMER, customer_view(first[1])])
    before = account.tables()
    words = rf"Feature view `{second[1]}` .* belongs to Feast project {theirs.project}\."
    with pytest.raises(TableTakenError, match=words):
        ours.plan(contents(customer_view(second[1])))
    with pytest.raises(TableTakenError, match=words):
        ours.apply([CUSTOMER, customer_view(second[1])])
    theirs.apply([customer_view(f"{first[1]}2")])
    both = [customer_view(second[1]), customer_view(f"{second[1]}2")]
    with pytest.raises(TablesFailedError, match="belongs to Feast project"):
        ours.apply([CUSTOMER, *both])
    # The project that they belong to goes on.
    theirs.apply([CUSTOMER, customer_view(first[1])])
    assert len(account.tables()) == len(before) + 1
    ours.teardown()
    assert len(account.tables()) == len(before) + 1
    theirs.teardown()
    assert account.tables() == []


def everywhere(store: FeatureStore, found: FeatureView) -> dict[str, Callable[[], object]]:
    """Each entrance by which rows get into a view's table, with a row for customer 2."""
    view = found.name
    rows = pd.DataFrame({"cid": [2], "t": [YESTERDAY], "total": [2.5]})
    key = EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=2)])
    data = [(key, {"total": Value(double_val=2.5)}, YESTERDAY, None)]
    online, config = store._get_provider().online_store, store.config
    span = {"feature_views": [view], "end_date": NOW}
    return {
        "push": lambda: store.push(f"{view}_push", rows),
        "push_async": lambda: asyncio.run(store.push_async(f"{view}_push", rows)),
        "write_to_online_store": lambda: store.write_to_online_store(view, rows),
        "write_to_online_store_async": lambda: asyncio.run(
            store.write_to_online_store_async(view, rows)
        ),
        "online_write_batch": lambda: online.online_write_batch(config, found, data, None),
        "online_write_batch_async": lambda: asyncio.run(
            online.online_write_batch_async(config, found, data, None)
        ),
        "materialize": lambda: store.materialize(start_date=NOW - dt.timedelta(days=9), **span),
        "materialize_incremental": lambda: store.materialize_incremental(**span),
        "precompute": lambda: store._get_provider().precompute_feature_service("ranking"),
    }


def reads(store: FeatureStore) -> dict[str, Callable[[], object]]:
    """Each entrance by which rows of a view `orders` are read."""
    features, rows = ["orders:total"], [{"cid": 1}]
    return {
        "get_online_features": lambda: store.get_online_features(features, rows),
        "get_online_features_async": lambda: asyncio.run(
            store.get_online_features_async(features, rows)
        ),
    }


@pytest.mark.parametrize("mode", ["refused", "never"])
def test_rows_are_not_written_into_a_table_of_another_project(account, tmp_path, mode):
    online = {"table_name_template": f"{account.start}.{{table_name}}"}
    rows = {"cid": [2], "t": pa.array([YESTERDAY], pa.timestamp("us", "UTC")), "total": [2.5]}
    pq.write_table(pa.table(rows), tmp_path / "orders.parquet")
    files = parquet_files(tmp_path / "orders.parquet", "t")
    orders = customer_view("orders", PushSource(name="orders_push", batch_source=files))
    theirs = account.store(registry="theirs", folder=tmp_path, online=online)
    if mode == "never":
        online = {**online, "manage_tables": "never"}
    ours = account.store("x", "ours", folder=tmp_path, online=online)
    ranking = FeatureService(name="ranking", features=[orders], precompute_online=True)
    if mode == "never":  # while there is no table yet
        ours.apply([CUSTOMER, orders, ranking])
    theirs.apply([CUSTOMER, orders])
    theirs.push("orders_push", pd.DataFrame({"cid": [1], "t": [YESTERDAY], "total": [1.5]}))
    before = account.keys(".orders")
    words = (
        f"Feature view `orders` of project {ours.project} would share DynamoDB table "
        rf"{account.start}\.orders: it belongs to Feast project {theirs.project}\."
    )
    entrances = everywhere(ours, orders)
    with pytest.raises(TableTakenError, match=words):
        ours.apply([CUSTOMER, orders, ranking])
    if mode == "refused":
        # The view is in Feast's cache of the registry alone, which these do not read.
        for entrance in ("materialize", "materialize_incremental", "precompute"):
            del entrances[entrance]
    entrances.update(reads(ours))
    if mode == "never":
        entrances["service"] = lambda: ours.get_online_features(ranking, [{"cid": 1}])
    for entrance, write in entrances.items():
        with pytest.raises(TableTakenError, match=words):
            write()
        assert account.keys(".orders") == before, entrance
    theirs.push("orders_push", pd.DataFrame({"cid": [2], "t": [YESTERDAY], "total": [2.5]}))
    features = theirs.get_online_features(["orders:total"], [{"cid": 1}, {"cid": 2}])
    assert features.to_dict() == {"cid": [1, 2], "total": [1.5, 2.5]}


@pytest.mark.parametrize("template", ["{project}.{table_name}", "{table_name}"])
def test_a_table_is_looked_at_once_before_its_first_row(account, tmp_path, dynamodb, template):
    online = {"table_name_template": template.replace("{table", f"{account.start}.{{table", 1)}
    if "{project}" in template:
        online = {}
    store = account.store(folder=tmp_path, online=online)
    store.apply([CUSTOMER, customer_view("orders", pushed("orders"))])
    seen: list[str] = []
    client = store._get_provider().online_store.connection(store.config).client
    client.meta.events.register("before-call.dynamodb", lambda model, **_: seen.append(model.name))
    for cid in range(3):
        rows = {"cid": [cid], "t": [YESTERDAY], "total": [0.5]}
        store.push("orders_push", pd.DataFrame(rows))
    assert seen == ([] if "{project}" in template else ["GetItem"])


def test_tables_made_elsewhere_are_of_the_project_that_is_first(account, tmp_path, caplog):
    online = {
        "table_name_template": f"{account.start}.{{table_name}}",
        "manage_tables": "never",
    }
    names = ["orders", "visits"]
    for name in names:
        account.create(f".{name}")
    first, second = (
        account.store(project, project, folder=tmp_path, online=online) for project in "ab"
    )
    orders, visits = (customer_view(name, pushed(name)) for name in names)
    row = {"cid": [1], "t": [YESTERDAY], "total": [1.5]}
    first.plan(contents(orders))
    assert account.keys(".orders") == []
    # By apply, or by a row where apply came before the table or may not write.
    first.apply([CUSTOMER, orders])
    assert account.keys(".orders") == [OWNER]
    first.push("orders_push", pd.DataFrame(row))
    denied = AWSResponse("", 400, {}, None), {"Error": {"Code": "AccessDeniedException"}}
    client = second._get_provider().online_store.connection(second.config).client
    events = "before-call.dynamodb.PutItem"
    client.meta.events.register(events, lambda **_: denied, unique_id="denied")
    second.apply([CUSTOMER, visits])
    assert account.keys(".visits") == []
    client.meta.events.unregister(events, unique_id="denied")
    second.push("visits_push", pd.DataFrame(row))
    assert OWNER in account.keys(".visits")

    for late, view, project in ((second, orders, first.project), (first, visits, second.project)):
        words = f"`{view.name}` of project {late.project} .* belongs to Feast project {project}"
        with pytest.raises(TableTakenError, match=words):
            late.plan(contents(view))
        with pytest.raises(TableTakenError, match=words):
            late.apply([CUSTOMER, view])
        # A registry that another process has written, without a look at the tables.
        late.registry.apply_entity(CUSTOMER, late.project)
        late.registry.apply_data_source(view.stream_source, late.project)
        late.registry.apply_feature_view(view, late.project)
        with pytest.raises(TableTakenError, match=words):
            late.push(f"{view.name}_push", pd.DataFrame(row))
        with pytest.raises(TableTakenError, match=words):
            late.get_online_features([f"{view.name}:total"], [{"cid": 1}])
    for store, name in ((first, "orders"), (second, "visits")):
        answer = store.get_online_features([f"{name}:total"], [{"cid": 1}]).to_dict()
        assert answer["total"] == [1.5]


def test_a_table_whose_owner_may_not_tag_is_not_taken_over(account, tmp_path, caplog):
    online = {"table_name_template": f"{account.start}.{{table_name}}"}
    theirs, ours = (account.store(name, name, folder=tmp_path, online=online) for name in "ab")
    denied = AWSResponse("", 400, {}, None), {"Error": {"Code": "AccessDeniedException"}}
    for store, calls in (
        (theirs, ["CreateTable", "TagResource", "ListTagsOfResource"]),
        (ours, ["ListTagsOfResource"]),
    ):
        client = store._get_provider().online_store.connection(store.config).client
        for call in calls:
            client.meta.events.register(
                f"before-call.dynamodb.{call}",
                lambda model, params, **_: (
                    denied if model.name != "CreateTable" or b"Tags" in params["body"] else None
                ),
            )
    theirs.apply([CUSTOMER, customer_view("orders", pushed("orders"))])
    with pytest.raises(TableTakenError, match=f"belongs to Feast project {theirs.project}"):
        ours.apply([CUSTOMER, customer_view()])
    # Its items are gone, and tags cannot be seen: who comes first has it.
    account.client.delete_item(TableName=f"{account.start}.orders", Key={"k": {"B": OWNER}})
    ours.apply([CUSTOMER, customer_view()])
    with pytest.raises(TableTakenError, match=f"belongs to Feast project {ours.project}"):
        theirs.apply([CUSTOMER, customer_view("orders", pushed("orders"))])


def test_of_two_that_take_a_table_at_once_one_has_it(account, tmp_path):
    online = {"table_name_template": f"{account.start}.{{table_name}}"}
    for mode in ("create", "never"):
        account.create(f".{mode}")
        ours, theirs = (
            account.store(name, name, folder=tmp_path, online={**online, "manage_tables": mode})
            for name in "ab"
        )
        client = ours._get_provider().online_store.connection(ours.config).client
        values = {"project": {"S": theirs.project}, "view": {"S": mode}}

        def faster(mode=mode, values=values, **_: Any) -> None:
            item = {"k": {"B": OWNER}, **values}
            account.client.put_item(TableName=f"{account.start}.{mode}", Item=item)

        client.meta.events.register("before-call.dynamodb.PutItem", faster)
        with pytest.raises(TableTakenError, match=f"belongs to Feast project {theirs.project}"):
            ours.apply([CUSTOMER, customer_view(mode)])
        theirs.apply([CUSTOMER, customer_view(mode)])


def test_a_reader_looks_once_whose_a_table_is(account, tmp_path):
    online = {"table_name_template": f"{account.start}.{{table_name}}"}
    store = account.store(folder=tmp_path, online=online)
    orders = customer_view("orders", pushed("orders"))
    store.apply([CUSTOMER, orders])
    store.push("orders_push", pd.DataFrame({"cid": [1], "t": [YESTERDAY], "total": [0.5]}))
    connection = store._get_provider().online_store.connection(store.config)
    known = [connection.views.known(orders, store.config)]
    assert connection.answered.unknown(known) == [known[0].owner]
    for read in reads(store).values():
        read()
        assert connection.answered.unknown(known) == []
    # Where nobody has claimed a table, somebody may yet.
    account.client.delete_item(TableName=f"{account.start}.orders", Key={"k": {"B": OWNER}})
    later = account.store(folder=tmp_path, online=online)
    later.get_online_features(["orders:total"], [{"cid": 1}])
    looked = later._get_provider().online_store.connection(later.config).answered
    assert looked.unknown(known) == []
    assert looked.unknown(known, time.monotonic() + LOOK_AGAIN_S) == [known[0].owner]


@pytest.mark.parametrize("code", ["AccessDeniedException", "ThrottlingException"])
def test_who_may_not_look_at_a_table_writes(account, tmp_path, caplog, code):
    online = {"table_name_template": f"{account.start}.{{table_name}}", "retry_mode": None}
    store = account.store(folder=tmp_path, online={**online, "total_max_retry_attempts": 1})
    store.apply([CUSTOMER, customer_view("orders", pushed("orders"))])
    client = store._get_provider().online_store.connection(store.config).client
    answer = AWSResponse("", 400, {"x-amzn-requestid": "1"}, None), {"Error": {"Code": code}}
    for call in ("GetItem", "DescribeTable", "PutItem"):
        client.meta.events.register(f"before-call.dynamodb.{call}", lambda **_: answer)
    caplog.clear()
    for cid in range(2):
        rows = {"cid": [cid], "t": [YESTERDAY], "total": [cid + 0.5]}
        store.push("orders_push", pd.DataFrame(rows))
    features = store.get_online_features(["orders:total"], [{"cid": 0}, {"cid": 1}])
    assert features.to_dict()["total"] == [0.5, 1.5]
    warned = [one.getMessage() for one in caplog.records if "whose table" in one.getMessage()]
    assert len(warned) == (2 if code == "ThrottlingException" else 0)


def test_a_table_of_before_is_given_an_owner_once(account, tmp_path, dynamodb):
    online = {"table_name_template": f"{account.start}.{{table_name}}"}
    account.create(".orders")
    ours = account.store(folder=tmp_path, online=online)
    for _ in range(2):
        ours.apply([CUSTOMER, customer_view()])
    assert account.keys(".orders") == [OWNER]
    arn = account.client.describe_table(TableName=f"{account.start}.orders")["Table"]["TableArn"]
    if dynamodb.has_tags:
        tags = account.client.list_tags_of_resource(ResourceArn=arn)["Tags"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {
            "feast_dynamo_ext.project": ours.project,
            "feast_dynamo_ext.view": "orders",
        }
    theirs = account.store("x", "x", folder=tmp_path, online=online)
    with pytest.raises(TableTakenError, match=f"belongs to Feast project {ours.project}"):
        theirs.apply([CUSTOMER, customer_view()])


def test_names_that_only_one_view_can_have_are_given_no_item(account, tmp_path):
    store = account.store(folder=tmp_path)
    store.apply([CUSTOMER, customer_view()])
    assert account.keys(".orders") == []


def test_a_version_and_a_view_of_its_name_are_told_apart_without_a_registry(account, tmp_path):
    first = account.store(folder=tmp_path, versions=VERSIONS)
    first.apply([CUSTOMER, customer_view("stats", total=Float64)])
    first.apply([customer_view("stats", total=Float64, count=Float64)])
    assert account.tables() == [".stats", ".stats_v1"]
    other = account.store(registry="other", folder=tmp_path)
    with pytest.raises(TableTakenError, match=r"`stats_v1`.*belongs to feature view `stats`"):
        other.apply([CUSTOMER, customer_view("stats_v1", total=Float64)])


def test_a_new_version_whose_table_another_view_has_is_refused(account, tmp_path):
    store = account.store(folder=tmp_path, versions=VERSIONS)
    store.apply(
        [CUSTOMER, customer_view("stats", n=Float64), customer_view("stats_v1", n=Float64)]
    )
    with pytest.raises(ConfigError, match=r"`stats` and `stats_v1` would share.*\.stats_v1"):
        store.apply([customer_view("stats", n=Float64, m=Float64)])
    assert account.tables() == [".stats", ".stats_v1"]


# What is left behind


def test_teardown_deletes_what_removed_views_left_and_names_what_it_leaves(
    account, tmp_path, dynamodb, caplog
):
    store = account.store(folder=tmp_path)
    store.apply([CUSTOMER, customer_view("orders"), customer_view("visits")])
    caplog.clear()
    gone = [store.get_feature_view("visits")]
    store.apply([CUSTOMER, customer_view("orders")], objects_to_delete=gone, partial=False)
    assert f"its table {store.project}.visits is kept (on_remove: retain)" in caplog.text
    assert account.tables() == [".orders", ".visits"]
    store.teardown()
    if dynamodb.has_tags:
        assert account.tables() == []
        words = f"deleted DynamoDB table {store.project}.visits, which a removed view had left"
        assert words in caplog.text
    else:
        assert account.tables() == [".visits"]
        assert (
            f"table {store.project}.visits is not deleted: nothing says which project made it"
        ) in caplog.text


@pytest.mark.parametrize("on_remove", ["retain", "delete"])
def test_a_removed_view_takes_all_its_versions_along(account, tmp_path, caplog, on_remove):
    store = account.store(folder=tmp_path, versions=VERSIONS, online={"on_remove": on_remove})
    stats = "stats"
    store.apply([CUSTOMER, customer_view(stats, n=Float64)])
    store.apply([customer_view(stats, n=Float64, m=Float64)])
    store.plan(contents())
    store.apply([CUSTOMER], objects_to_delete=[store.get_feature_view(stats)], partial=False)
    if on_remove == "delete":
        assert account.tables() == []
        return
    assert account.tables() == [".stats", ".stats_v1"]
    for table in ("stats", "stats_v1"):
        assert f"its table {store.project}.{table} is kept (on_remove: retain)" in caplog.text


def test_apply_says_that_the_new_table_of_a_materialized_view_is_empty(account, tmp_path, caplog):
    rows = {"cid": [1], "t": pa.array([YESTERDAY], pa.timestamp("us", "UTC")), "total": [1.5]}
    pq.write_table(pa.table(rows), tmp_path / "orders.parquet")
    orders = customer_view("orders", parquet_files(tmp_path / "orders.parquet", "t"))
    store = account.store(folder=tmp_path)
    with caplog.at_level(logging.WARNING):
        store.apply([CUSTOMER, orders, customer_view("visits", pushed("visits"))])
    assert "empty" not in caplog.text
    store.materialize(NOW - dt.timedelta(days=9), NOW, feature_views=["orders"])
    for view in ("orders", "visits"):
        account.client.delete_table(TableName=f"{store.project}.{view}")
    store.apply([CUSTOMER, orders, customer_view("visits", pushed("visits"))])
    warned = [record.getMessage() for record in caplog.records if "empty" in record.getMessage()]
    until = NOW.isoformat(timespec="seconds")
    assert warned == [
        f"table {store.project}.orders is new and empty, but the registry has orders as "
        f"materialized until {until}, where `feast materialize-incremental` would go on. Run "
        "`feast-dynamo materialize --all`, which writes all of history again: until then reads "
        "find nothing. Rows that are not in history have to be pushed again."
    ]
