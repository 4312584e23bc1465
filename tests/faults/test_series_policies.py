"""Series under the policies of docs/reference/iam.md, on a DynamoDB Local that enforces them.

A proxy refuses, in AWS's words, each request that a policy does not allow on its table or index;
moto compares no names of tables. Each action that is allowed is used, and is missed by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import itertools
import re

import boto3
import pandas as pd
import pytest
from enforced_iam import statements
from fault_kinds import refusal
from feast.data_source import PushMode
from local_dynamodb import running_local
from rule_proxy import RuleProxy
from series_run import NOW, definitions, frame_of
from series_shop import CUSTOMER, DAY, purchases_view

from feast_dynamo_ext import cohort, online_series
from feast_dynamo_ext.errors import AccessDeniedError, FeastDynamoError

pytestmark = [pytest.mark.dynamodb_local, pytest.mark.timeout(300)]

NUMBERS = itertools.count()
VERBS = {"UPDATE": "PartiQLUpdate", "INSERT": "PartiQLInsert", "DELETE": "PartiQLDelete"}

Allowed = set[tuple[str, str]]
"""Actions without `dynamodb:`, each with a pattern of `table/...`."""


def documented(*names: str, table: str = "") -> Allowed:
    """What policies of the page allow of tables; of one table alone where it is named."""
    found = set()
    for statement in itertools.chain.from_iterable(map(statements, names)):
        places = statement["Resource"]
        for action, place in itertools.product(
            statement["Action"], [places] if isinstance(places, str) else places
        ):
            if action.startswith("dynamodb:"):
                pattern = place.partition(":table/")[2] or place
                pattern = pattern.replace("shop.*", table) if table else pattern
                found.add((action.removeprefix("dynamodb:"), pattern))
    return found


def wanted(asked) -> Allowed:
    """The actions of a request, each with its table or index, as AWS authorizes them."""
    body, operation = asked.parts, asked.operation
    if operation in {"BatchGetItem", "BatchWriteItem"}:
        return {(operation, table) for table in body["RequestItems"]}
    if operation in {"BatchExecuteStatement", "ExecuteStatement"}:
        given = [each["Statement"] for each in body.get("Statements", [body])]
        return {
            (VERBS[text.split()[0].upper()], re.search(r'"([^"]+)"', text)[1]) for text in given
        }
    if "ResourceArn" in body:
        return {(operation, body["ResourceArn"].partition(":table/")[2])}
    place = body.get("TableName", "*")
    if operation in {"Query", "Scan"} and "IndexName" in body:
        place += f"/index/{body['IndexName']}"
    tags = {("TagResource", place)} if operation == "CreateTable" and body.get("Tags") else set()
    return {(operation, place)} | tags


class Enforced:
    """A DynamoDB that refuses what no policy allows."""

    def __init__(self, backend):
        self.proxy = RuleProxy(backend, self.rule)
        self.allowed: Allowed | None = None
        self.used: set[str] = set()

    def allow(self, allowed):
        """From now on; None for everything."""
        self.allowed, self.used = allowed, set()

    def rule(self, asked):
        for action, place in sorted(wanted(asked)):
            self.used.add(action)
            if self.allowed is None:
                continue
            may = any(
                action == name and fnmatch.fnmatchcase(place, pattern)
                for name, pattern in self.allowed
            )
            if not may:
                said = (
                    "User: arn:aws:iam::111122223333:user/job is not authorized to perform: "
                    f"dynamodb:{action} on resource: "
                    f"arn:aws:dynamodb:us-east-1:111122223333:table/{place}"
                )
                return refusal("com.amazon.coral.service#AccessDeniedException", said)
        return None


@pytest.fixture(scope="module")
def dynamodb_local(tmp_path_factory):
    """Of this file: indexes of a living table are changed, see `running_local`."""
    yield from running_local(tmp_path_factory.mktemp("dynamodb-local"))


@pytest.fixture
def enforced(dynamodb_local):
    made = Enforced(dynamodb_local)
    yield made
    made.proxy.stop()


@pytest.fixture
def open_shop(open_store, enforced, tmp_path):
    """Opens stores of a project, through what enforces policies; the table names are the docs'."""
    opened = []

    def open_shop(**online):
        near = {"region": "us-east-1", "endpoint_url": enforced.proxy.endpoint, **online}
        opened.append(open_store("shop", online=near))
        return opened[-1]

    yield open_shop
    enforced.allow(None)
    if opened:
        opened[0].teardown()
    for store in opened:
        asyncio.run(store.close())


@pytest.fixture
def missed(enforced, caplog):
    """Leaves each action away that is needed: what is done fails or warns, and names it."""

    def missed(allowed, needed, do, warned=()):
        for action in sorted(needed):
            enforced.allow({each for each in allowed if each[0] != action})
            caplog.clear()
            if action in warned:
                do()
                said = caplog.text
            else:
                with pytest.raises(FeastDynamoError) as refused:
                    do()
                said = str(refused.value)
            assert action in said, (action, said)

    return missed


READ = {
    "windows": lambda store: store.get_online_features(
        ["spend:count_30d", "customers:visits"], [{"customer_id": 1}]
    ).to_dict()["count_30d"],
    "order": lambda store: online_series(
        store, ["purchases:amount"], [{"customer_id": 1}], order="amount"
    ).features["amount"],
    "cohort": lambda store: [
        entity["customer_id"] for entity in cohort(store, "purchases", category="category 0")
    ],
}
ANSWERS = {"windows": [1], "order": [[1.5]], "cohort": [3, 2, 1]}


def fill(store):
    visits = {
        "customer_id": 1,
        "event_timestamp": NOW,
        "created": NOW,
        "segment": "a",
        "visits": 1,
    }
    store.push("purchases_push", frame_of([1, 2, 3]), to=PushMode.ONLINE)
    store.push("customers_push", pd.DataFrame([visits]), to=PushMode.ONLINE)


def test_series_and_cohorts_are_read_under_their_policies(enforced, missed, open_shop, tmp_path):
    store = open_shop()
    store.apply(definitions(tmp_path))
    fill(store)
    both = documented("serve", "series_read")
    for name, read in READ.items():
        enforced.allow(both)
        assert read(store) == ANSWERS[name]
        enforced.allow(documented("serve"))
        with pytest.raises(AccessDeniedError, match="dynamodb:Query"):
            read(store)
    enforced.allow(both)
    READ["windows"](store)
    assert enforced.used == {"Query", "BatchGetItem"} == {action for action, _ in both}
    missed(both, enforced.used, lambda: READ["windows"](store))


def test_where_tables_are_named_indexes_are_too(enforced, open_shop, tmp_path):
    """Without wildcards of tables each place of the policy is needed by what its name says."""
    store = open_shop()
    store.apply(definitions(tmp_path))
    fill(store)
    own = documented("series_read", table="shop.purchases")
    assert own == {
        ("Query", "shop.purchases"),
        ("Query", "shop.purchases/index/order_*"),
        ("Query", "shop.purchases/index/cohort_*"),
    }
    needed = {"windows": "shop.purchases", "order": "order_", "cohort": "cohort_"}
    rest = documented("serve")
    for name, read in READ.items():
        enforced.allow(own | rest)
        assert read(store) == ANSWERS[name]
        left = {each for each in own if not each[1].rstrip("*").endswith(needed[name])} | rest
        enforced.allow(left)
        with pytest.raises(AccessDeniedError, match=f"on resource: .*{needed[name]}"):
            read(store)


def test_pushes_of_events_need_what_their_policy_allows(enforced, missed, open_shop, tmp_path):
    store = open_shop()
    store.apply(definitions(tmp_path))
    allowed = documented("push")

    def push():
        # A process of its own: what it has written before it does not write again.
        open_shop().push("purchases_push", frame_of([next(NUMBERS)]), to=PushMode.ONLINE)

    enforced.allow(allowed)
    push()
    used = enforced.used
    assert used <= {action for action, _ in allowed}
    # BatchGetItem is for vectors of services, which series have none of.
    assert used == {"BatchWriteItem", "PartiQLInsert", "PartiQLUpdate"}
    missed(allowed, used, push)


def test_materializing_events_needs_what_its_policy_allows(enforced, missed, open_shop, tmp_path):
    store = open_shop()
    store.apply(definitions(tmp_path))
    frame_of(range(60)).to_parquet(tmp_path / "purchases.parquet")
    allowed = documented("materialize")

    def materialize():
        open_shop().materialize(NOW - 10 * DAY, NOW, feature_views=["purchases"])

    enforced.allow(allowed)
    materialize()
    used = enforced.used
    assert used <= {action for action, _ in allowed}
    assert {"BatchWriteItem", "PartiQLInsert", "UpdateItem", "DeleteItem"} <= used
    # Without PartiQL's, PutItem writes; without DeleteItem the lease ends by itself.
    needed = used - {"PartiQLInsert", "PartiQLUpdate", "DeleteItem"}
    missed(allowed, needed, materialize)
    missed(allowed, {"DeleteItem"}, materialize, warned={"DeleteItem"})


def test_series_are_applied_under_their_policies(
    enforced, missed, open_shop, dynamodb_local, tmp_path
):
    allowed = documented("apply", "series_apply")
    store = open_shop()

    def base(**series):
        return purchases_view("purchases", tmp_path, keep_for=30 * DAY, **series)

    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb_local)

    def applied(*views):
        enforced.allow(allowed)
        store.apply([CUSTOMER, *views])

    applied(base())
    used = set(enforced.used)
    applied(base(cohorts=["category"]))
    used |= enforced.used
    applied(base())
    used |= enforced.used
    # DynamoDB Local has no tags; that of a new table, see test_tables.py.
    assert used - {"TagResource"} == {action for action, _ in allowed} - {"TagResource"}

    def made_anew():
        with contextlib.suppress(client.exceptions.ResourceNotFoundException):
            client.delete_table(TableName="shop.purchases")
        store.apply([CUSTOMER, base()])

    # Without PutItem nothing can be said in the table, and no tie-breaker is compared later.
    needed = used - {"TagResource", "UpdateTable"}
    missed(allowed, needed, made_anew, warned={"PutItem", "UpdateTimeToLive"})
    enforced.allow(allowed)
    made_anew()
    missed(allowed, {"UpdateTable"}, lambda: store.apply([CUSTOMER, base(cohorts=["category"])]))
    client.close()
