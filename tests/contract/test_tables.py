"""Tables of views through Feast, on moto and on Amazon's DynamoDB Local."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
import urllib3
from feast.infra.online_stores.sqlite import SqliteTable
from feast.repo_contents import RepoContents
from repos import REGION, write_repo_yaml
from views import CUSTOMER, customer_view

from feast_dynamo_ext import TableSettings, ViewSettings
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    ConfigError,
    TableLayoutError,
    TableProtectedError,
    TablesDifferError,
    TablesFailedError,
)
from feast_dynamo_ext.local import start_moto, stop

if TYPE_CHECKING:
    from feast import FeatureStore

pytestmark = pytest.mark.server  # they start servers of their own

IAM = Path(__file__).parents[2] / "docs" / "snippets" / "iam"
READS = {
    "DescribeTable",
    "DescribeTimeToLive",
    "DescribeContinuousBackups",
    "ListTagsOfResource",
    "DescribeKey",
}


def view(name="orders", tags=None, **settings):
    settings = ViewSettings(table=TableSettings(**settings))
    return customer_view(name, tags={**(tags or {}), **settings.tags()})


@dataclass
class Repo:
    """A project of its own on one DynamoDB, and the calls that its store made there."""

    open_store: object
    endpoint: str
    backend: str
    project: str = field(default_factory=lambda: f"p{uuid.uuid4().hex[:12]}")
    calls: list[str] = field(default_factory=list)
    stores: list[FeatureStore] = field(default_factory=list)

    def store(self, **online) -> FeatureStore:
        """A store with this configuration; what it calls from now on is kept in `calls`."""
        online = {"region": REGION, "endpoint_url": self.endpoint, **online}
        opened = self.open_store(self.project, online=online)
        provider = opened._get_provider()
        events = provider.online_store.connection(opened.config).client.meta.events
        events.register("before-call.dynamodb", self.record)
        self.calls.clear()
        self.stores.append(opened)
        return opened

    def record(self, model, **_) -> None:
        self.calls.append(model.name)

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if call not in READS]

    def client(self, service="dynamodb"):
        return boto3.client(service, region_name=REGION, endpoint_url=self.endpoint)

    def name(self, view_name="orders") -> str:
        return f"{self.project}.{view_name}"

    def table(self, view_name="orders") -> dict:
        return self.client().describe_table(TableName=self.name(view_name))["Table"]

    def tables(self) -> list[str]:
        pages = self.client().get_paginator("list_tables").paginate()
        names = [name for page in pages for name in page["TableNames"]]
        return sorted(name for name in names if name.startswith(f"{self.project}."))

    def tags(self, view_name="orders") -> dict[str, str]:
        arn = self.table(view_name)["TableArn"]
        tags = self.client().list_tags_of_resource(ResourceArn=arn)["Tags"]
        return {tag["Key"]: tag["Value"] for tag in tags}

    def foreign_table(self, name: str, key: str = "entity_id", **more) -> None:
        self.client().create_table(
            TableName=name,
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "B"}],
            BillingMode="PAY_PER_REQUEST",
            **more,
        )

    def clean_up(self) -> None:
        client = self.client()
        for name in self.tables():
            client.update_table(TableName=name, DeletionProtectionEnabled=False)
            client.delete_table(TableName=name)


@pytest.fixture
def repo(open_store, dynamodb):
    """A project on each DynamoDB in turn."""
    made = Repo(open_store, dynamodb.endpoint, dynamodb.name)
    yield made
    made.clean_up()


@pytest.fixture
def on_moto(open_store, moto_endpoint):
    """A project on moto, for what DynamoDB Local does not have."""
    made = Repo(open_store, moto_endpoint, "moto")
    yield made
    made.clean_up()


@pytest.fixture
def on_local(open_store, dynamodb_local):
    """A project on DynamoDB Local, for how it does without."""
    made = Repo(open_store, dynamodb_local, "dynamodb_local")
    yield made
    made.clean_up()


# Apply


def test_a_second_apply_changes_nothing(repo):
    settings = {
        "billing": "provisioned",
        "read_units": 5,
        "write_units": 6,
        "stream": "new_image",
        "ttl": True,
        "deletion_protection": True,
    }
    store = repo.store(tags={"team": "growth"}, table=settings)
    store.apply([CUSTOMER, view(), view("visits", stream="off", deletion_protection=False)])
    assert sorted(repo.writes) == [
        "CreateTable",
        "CreateTable",
        "UpdateTimeToLive",
        "UpdateTimeToLive",
    ]
    orders, visits = repo.table(), repo.table("visits")
    assert orders["ProvisionedThroughput"]["ReadCapacityUnits"] == 5
    assert orders["ProvisionedThroughput"]["WriteCapacityUnits"] == 6
    assert orders["StreamSpecification"]["StreamViewType"] == "NEW_IMAGE"
    assert orders["DeletionProtectionEnabled"] is True
    assert "StreamSpecification" not in visits
    assert visits["DeletionProtectionEnabled"] is False

    again = repo.store(tags={"team": "growth"}, table=settings)
    again.apply([CUSTOMER, view(), view("visits", stream="off", deletion_protection=False)])
    assert repo.writes == []
    assert (repo.table(), repo.table("visits")) == (orders, visits)


def test_a_table_nothing_is_set_for_is_described_and_nothing_else(repo):
    repo.store().apply([CUSTOMER, view()])
    ttl = repo.client().describe_time_to_live(TableName=repo.name())["TimeToLiveDescription"]
    assert ttl == {"TimeToLiveStatus": "ENABLED", "AttributeName": "x"}
    assert repo.table()["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    repo.store().apply([CUSTOMER, view()])
    assert repo.calls == ["DescribeTable"]


def test_a_table_that_is_there_is_changed_step_by_step(repo):
    # moto never lets a stream be switched on again.
    stream, steps = ("keys_only", 4) if repo.backend == "dynamodb_local" else ("off", 3)
    repo.store().apply([CUSTOMER, view(stream="new_image", ttl=True, deletion_protection=True)])
    changed = view(
        billing="provisioned",
        read_units=7,
        write_units=8,
        stream=stream,
        ttl=False,
        deletion_protection=False,
    )
    repo.store().apply([CUSTOMER, changed])
    # Protection, billing, stream off, stream on; TTL.
    assert repo.writes == [*["UpdateTable"] * steps, "UpdateTimeToLive"]
    table = repo.table()
    assert table["ProvisionedThroughput"]["ReadCapacityUnits"] == 7
    held = table.get("StreamSpecification", {}).get("StreamViewType", "OFF")
    assert held == stream.upper()
    assert table["DeletionProtectionEnabled"] is False
    ttl = repo.client().describe_time_to_live(TableName=repo.name())["TimeToLiveDescription"]
    assert ttl["TimeToLiveStatus"] == "DISABLED"
    repo.store().apply([CUSTOMER, changed])
    assert repo.writes == []

    on_demand = view(billing="on_demand")
    repo.store().apply([CUSTOMER, on_demand])
    assert repo.table()["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    repo.store().apply([CUSTOMER, on_demand])
    assert repo.writes == []


def test_fifty_views_take_seconds_and_one_that_fails_stops_no_other(repo):
    views = [view(f"view{number:02}") for number in range(50)]
    repo.foreign_table(repo.name("view07"))
    started_s = time.monotonic()
    with pytest.raises(TableLayoutError, match=r"view07 exists with the key entity_id \(B\)"):
        repo.store().apply([CUSTOMER, *views])
    assert time.monotonic() - started_s < 20
    assert len(repo.tables()) == 50
    assert repo.calls.count("CreateTable") == 49


def test_the_error_of_several_tables_names_them_all(repo):
    for name in ("orders", "visits"):
        repo.foreign_table(repo.name(name), key=f"{name}_key")
    with pytest.raises(TablesFailedError) as caught:
        repo.store().apply([CUSTOMER, view(), view("visits"), view("returns")])
    assert sorted(caught.value.failures) == [repo.name("orders"), repo.name("visits")]
    assert str(caught.value).startswith("2 of 3 tables failed:\n- DynamoDB table ")
    assert "orders_key (B)" in str(caught.value)
    assert "visits_key (B)" in str(caught.value)
    assert repo.name("returns") in repo.tables()


def test_a_tag_that_is_no_setting_is_refused_before_any_table_is_made(repo):
    wrong = view("visits", tags={"feast_dynamo_ext.table.biling": "provisioned"})
    with pytest.raises(ConfigError, match=r"`visits`.*biling.*`feast_dynamo_ext.table.billing`\?"):
        repo.store().apply([CUSTOMER, view(), wrong])
    assert repo.tables() == []


def test_settings_of_a_view_and_the_store_that_cannot_be_together_name_the_view(repo):
    store = repo.store(table={"billing": "on_demand", "max_read_units": 100})
    with pytest.raises(ConfigError, match=r"`orders`: `read_units` needs `billing: provisioned`"):
        store.apply([CUSTOMER, view(read_units=5)])


# What DynamoDB Local does not have


def test_every_setting_is_made_and_kept(on_moto, monkeypatch):
    monkeypatch.setenv("AWS_REGION", REGION)
    key = on_moto.client("kms").create_key()["KeyMetadata"]["Arn"]
    settings = {
        "billing": "provisioned",
        "read_units": 5,
        "write_units": 6,
        "kms_key": key,
        "point_in_time_recovery": True,
        "recovery_days": 7,
        "warm_read_units": 15_000,
        "warm_write_units": 5_000,
    }
    on_moto.store(tags={"team": "growth"}).apply([CUSTOMER, view(**settings)])
    table = on_moto.table()
    assert table["SSEDescription"]["KMSMasterKeyArn"] == key
    assert table["WarmThroughput"]["ReadUnitsPerSecond"] == 15_000
    backups = on_moto.client().describe_continuous_backups(TableName=on_moto.name())
    recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    assert recovery["PointInTimeRecoveryStatus"] == "ENABLED"
    assert recovery["RecoveryPeriodInDays"] == 7
    assert table["ProvisionedThroughput"]["ReadCapacityUnits"] == 5
    assert table["ProvisionedThroughput"]["WriteCapacityUnits"] == 6
    assert on_moto.tags() == {"feast_dynamo_ext.project": on_moto.project, "team": "growth"}

    on_moto.store(tags={"team": "growth"}).apply([CUSTOMER, view(**settings)])
    assert on_moto.writes == []


def test_units_are_set_once_and_then_left_to_who_scales_the_table(repo):
    fixed = view(billing="provisioned", read_units=5, write_units=6)
    repo.store().apply([CUSTOMER, fixed])
    repo.client().update_table(
        TableName=repo.name(),
        ProvisionedThroughput={"ReadCapacityUnits": 33, "WriteCapacityUnits": 6},
    )
    repo.store().apply([CUSTOMER, view(billing="provisioned")])
    assert repo.writes == []
    assert repo.table()["ProvisionedThroughput"]["ReadCapacityUnits"] == 33

    repo.store().apply([CUSTOMER, fixed])
    assert repo.writes == ["UpdateTable"]
    assert repo.table()["ProvisionedThroughput"]["ReadCapacityUnits"] == 5


def test_apply_and_plan_refuse_to_make_a_provisioned_table_without_units(repo):
    store = repo.store(manage_tables="create")
    unset = view(billing="provisioned")
    with pytest.raises(ConfigError, match=r"`orders`.*needs `read_units` and `write_units`"):
        store.plan(contents(unset))
    with pytest.raises(ConfigError, match=r"`orders`.*needs `read_units` and `write_units`"):
        store.apply([CUSTOMER, unset])
    assert repo.tables() == []
    verifying = repo.store(manage_tables="verify")
    with pytest.raises(TablesDifferError, match=r"missing \(feature view `orders`\)"):
        verifying.apply([CUSTOMER, unset])


def test_a_view_with_settings_of_autoscaling_can_be_removed_and_not_applied(repo):
    scaled = {"feast_dynamo_ext.table.target_percent": "70"}
    with pytest.raises(ConfigError, match=r"`feast_dynamo_ext.table.target_percent` is a setting"):
        repo.store().apply([CUSTOMER, view(tags=scaled)])
    assert repo.tables() == []

    repo.store().apply([CUSTOMER, view()])
    store = repo.store(on_remove="delete")
    store.apply([], objects_to_delete=[view(tags=scaled)], partial=False)
    assert repo.tables() == []


def test_settings_of_a_view_never_become_tags_of_its_table(on_moto):
    tags = {"team": "growth"}
    on_moto.store().apply([CUSTOMER, view(tags=tags, stream="new_image", ttl=False)])
    assert on_moto.tags() == {"feast_dynamo_ext.project": on_moto.project, "team": "growth"}


def test_what_dynamodb_local_lacks_is_said_once_a_setting(on_local, caplog):
    settings = {
        "billing": "provisioned",
        "read_units": 5,
        "write_units": 6,
        "table_class": "infrequent_access",
        "kms_key": "alias/features",
        "point_in_time_recovery": True,
        "warm_read_units": 15_000,
    }
    on_local.store(tags={"team": "growth"}, table=settings).apply(
        [CUSTOMER, view(), view("visits")]
    )
    both = f"tables {on_local.name()}, {on_local.name('visits')}"
    lacking = [
        "kms_key",
        "point_in_time_recovery",
        "table_class",
        "tags",
        "warm_read_units",
    ]
    warned = sorted(
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    )
    assert warned == [
        f"{both}: `{setting}` is left as it is: this endpoint does not support it"
        for setting in lacking
    ]
    assert on_local.table()["ProvisionedThroughput"]["ReadCapacityUnits"] == 5


def test_dynamodb_local_is_not_asked_for_what_nobody_set(on_local, caplog):
    on_local.store().apply([CUSTOMER, view()])
    on_local.store().apply([CUSTOMER, view()])
    assert [record for record in caplog.records if record.levelno == logging.WARNING] == []


# manage_tables


def test_verify_names_every_table_that_is_missing_or_differs(repo):
    repo.store().apply([CUSTOMER, view(), view("visits", stream="new_image")])
    repo.foreign_table(repo.name("returns"))
    views = [view(), view("visits", stream="off"), view("returns"), view("carts")]
    store = repo.store(manage_tables="verify")
    with pytest.raises(TablesDifferError) as caught:
        store.apply([CUSTOMER, *views])
    assert set(caught.value.differences) == {
        repo.name("visits"),
        repo.name("returns"),
        repo.name("carts"),
    }
    assert caught.value.differences[repo.name("visits")] == ("stream is new_image, not off",)
    assert caught.value.differences[repo.name("carts")] == ("missing (feature view `carts`)",)
    assert "3 of 4 tables" in str(caught.value)
    assert repo.writes == []

    repo.store(manage_tables="verify").apply([CUSTOMER, view()])
    assert repo.writes == []


def test_never_makes_no_call_at_all(repo, caplog):
    repo.store().apply([CUSTOMER, view()])
    store = repo.store(manage_tables="never", on_remove="delete")
    store.apply([CUSTOMER, view(), view("visits")])
    store.apply([], objects_to_delete=[view("visits")], partial=False)
    store.plan(contents(view("carts")))
    store.teardown()
    assert repo.calls == []
    assert repo.tables() == [repo.name()]
    assert f"table {repo.name()} is not deleted (manage_tables: never)" in caplog.text


# IAM, on a moto that enforces it


DESCRIBE_ONLY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": ["dynamodb:DescribeTable"], "Resource": "*"}],
}


def policy_of(*names: str) -> dict:
    """The statements about tables of policies of the docs, in the terms that moto enforces."""
    statements = [
        {**statement, "Resource": "*"}  # moto compares names of resources for S3 alone
        for name in names
        for statement in json.loads((IAM / f"{name}.json").read_text())["Statement"]
        if not statement["Action"][0].startswith("s3:")
    ]
    return {"Version": "2012-10-17", "Statement": statements}


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    """A moto that enforces IAM, and the access keys of a user for each policy."""
    policies = {
        "describe": DESCRIBE_ONLY,
        "plan": policy_of("plan"),
        "apply": policy_of("apply"),
        "settings": policy_of("apply", "table_settings"),
        "teardown": policy_of("teardown"),
    }
    server = start_moto(tmp_path_factory.mktemp("moto-iam"))
    try:
        access = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        iam = boto3.client("iam", region_name=REGION, endpoint_url=server.endpoint, **access)
        keys = {}
        for name, policy in policies.items():
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
            keys[name] = iam.create_access_key(UserName=name)["AccessKey"]
        urllib3.request(
            "POST",
            f"{server.endpoint}/moto-api/reset-auth",
            body=b"0",
            headers={"Content-Type": "application/octet-stream"},
        )
        yield server.endpoint, keys
    finally:
        stop(server)


@pytest.fixture
def as_identity(identities, open_store, monkeypatch):
    """A project whose stores act as the user of a policy."""
    endpoint, keys = identities
    made = Repo(open_store, endpoint, "moto")

    def as_identity(name: str, **online) -> FeatureStore:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[name]["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[name]["SecretAccessKey"])
        return made.store(**online)

    as_identity.repo = made
    return as_identity


def test_commands_run_under_their_policies(as_identity, caplog):
    as_identity("apply").apply([CUSTOMER, view()])
    assert as_identity.repo.writes == ["CreateTable", "UpdateTimeToLive"]
    as_identity("plan").plan(contents(view()))
    as_identity("teardown").teardown()
    assert "DeleteTable" in as_identity.repo.writes

    every = {
        "billing": "provisioned",
        "read_units": 5,
        "write_units": 6,
        "kms_key": "aws_managed",
        "point_in_time_recovery": True,
        "stream": "new_image",
        "ttl": True,
        "deletion_protection": False,
        "warm_read_units": 15_000,
    }
    tags = {"team": "growth"}
    as_identity("settings", tags=tags).apply([CUSTOMER, view(**every)])
    as_identity("settings", tags=tags).apply([CUSTOMER, view(**every)])
    assert as_identity.repo.writes == []
    assert [record for record in caplog.records if record.levelno == logging.WARNING] == []


def test_an_identity_that_may_only_describe_can_apply_what_is_there(as_identity, caplog):
    as_identity("apply").apply([CUSTOMER, view(), view("visits")])
    as_identity("describe").apply([CUSTOMER, view(), view("visits")])
    assert as_identity.repo.calls == ["DescribeTable", "DescribeTable"]
    as_identity("describe").plan(contents(view(), view("visits")))

    # Tags cannot be compared then: that is said once, and is no error.
    as_identity("describe", tags={"team": "growth"}).apply([CUSTOMER, view(), view("visits")])
    warned = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    project = as_identity.repo.project
    assert warned == [
        f"tables {project}.orders, {project}.visits: `tags` is left as it is: the identity may "
        "not call ListTagsOfResource"
    ]
    with pytest.raises(AccessDeniedError, match="CreateTable"):
        as_identity("describe").apply([CUSTOMER, view("carts")])
    with pytest.raises(AccessDeniedError, match="UpdateTable"):
        as_identity("describe").apply([CUSTOMER, view(deletion_protection=True)])


# Removal


def test_teardown_deletes_only_what_is_ours(repo, caplog):
    store = repo.store()
    store.apply([CUSTOMER, view(), view("visits")])
    client = repo.client()
    client.delete_table(TableName=repo.name("visits"))
    repo.foreign_table(repo.name("visits"))
    repo.foreign_table(repo.name("reports"), key="k")
    store.teardown()
    assert repo.tables() == [repo.name("reports"), repo.name("visits")]
    assert (
        f"table {repo.name('visits')} is not deleted: its key is entity_id (B), so another "
        "program made it"
    ) in caplog.text


def test_a_table_of_another_project_is_left_alone(on_moto, caplog):
    store = on_moto.store()
    store.apply([CUSTOMER, view()])
    on_moto.client().delete_table(TableName=on_moto.name())
    tags = [{"Key": "feast_dynamo_ext.project", "Value": "other"}]
    on_moto.foreign_table(on_moto.name(), key="k", Tags=tags)
    store.teardown()
    assert on_moto.tables() == [on_moto.name()]
    assert "it belongs to Feast project other" in caplog.text


def test_a_protected_table_says_how_to_lift_that(repo):
    protected = view(deletion_protection=True)
    store = repo.store(on_remove="delete")
    store.apply([CUSTOMER, protected, view("visits")])
    with pytest.raises(TableProtectedError, match=r"deletion_protection: false.*feast apply"):
        store.apply([], objects_to_delete=[protected], partial=False)
    with pytest.raises(TableProtectedError, match="--no-deletion-protection-enabled"):
        store.teardown()
    assert repo.tables() == [repo.name()]
    store.apply([CUSTOMER, view(deletion_protection=False)])
    store.teardown()
    assert repo.tables() == []


# Plan


def contents(*views) -> RepoContents:
    return RepoContents(
        projects=[],
        data_sources=[one.batch_source for one in views],
        entities=[CUSTOMER],
        feature_views=list(views),
        feature_services=[],
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        permissions=[],
    )


def test_plan_is_what_apply_then_does(repo, caplog):
    caplog.set_level(logging.INFO)
    repo.store().apply([CUSTOMER, view(), view("visits"), view("carts")])
    store = repo.store()
    desired = contents(view(), view("visits", deletion_protection=True), view("returns"))
    _, _, infra = store.plan(desired)
    assert repo.writes == []
    assert [(one.name, one.action, one.changes) for one in infra.infra_objects] == [
        (repo.name(), "keep", ()),
        (repo.name("visits"), "change", ("deletion_protection: off -> on",)),
        (repo.name("returns"), "create", ()),
    ]
    said = [
        record.getMessage()
        for record in caplog.records
        if record.name.endswith("dynamo.tables.infra")
    ]
    assert said == [
        f"would change table {repo.name('visits')}: deletion_protection: off -> on",
        f"would create table {repo.name('returns')} (feature view returns)",
        f"would keep table {repo.name('carts')} (feature view carts is gone)",
        "DynamoDB tables: 1 to create, 1 to change, 1 as they should be. (Feast's line on "
        "infrastructure does not count them.)",
    ]


def test_infra_objects_of_the_registry_do_not_get_in_the_way(repo, tmp_path):
    store = repo.store()
    desired = contents(view())
    diffs = store.plan(desired)
    # What Feast does for its local provider: it applies the diffs, then keeps the objects.
    store._apply_diffs(*diffs)
    kept = store.registry.get_infra(store.project)
    assert [(one.name, one.view) for one in kept.infra_objects] == [(repo.name(), "orders")]
    assert repo.tables() == []
    kept.infra_objects.append(SqliteTable(str(tmp_path / "old.db"), f"{store.project}_old"))
    store.registry.update_infra(kept, store.project)

    again = repo.store()
    again.apply([CUSTOMER, view()])
    assert repo.tables() == [repo.name()]
    again.plan(desired)
    again.apply([], objects_to_delete=[view()], partial=False)
    assert repo.tables() == [repo.name()]


# The command line


DEFINITIONS = """
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

from feast_dynamo_ext import TableSettings, ViewSettings

customer = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)


def view(name, **settings):
    return FeatureView(
        name=name,
        entities=[customer],
        schema=[Field(name="cid", dtype=Int64), Field(name="total", dtype=Float64)],
        source=FileSource(name=f"{name}_source", path="nowhere", timestamp_field="t"),
        tags=ViewSettings(table=TableSettings(**settings)).tags(),
    )


orders = view("orders", billing="provisioned", read_units=5, write_units=6)
"""


def test_the_feast_command_plans_applies_and_tears_down(on_moto, tmp_path, fork_server):
    repo = on_moto
    folder = tmp_path / "repo"
    folder.mkdir()
    definitions = folder / "definitions.py"
    online = {"region": REGION, "endpoint_url": repo.endpoint}
    write_repo_yaml(folder, project=repo.project, online=online)

    def feast(command: str, *options: str) -> str:
        environment = {**os.environ, "AWS_REGION": REGION}
        result = fork_server.run("feast", command, *options, cwd=folder, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    skip = "--skip-source-validation"
    definitions.write_text(DEFINITIONS + 'visits = view("visits")\n')
    planned = feast("plan", skip)
    assert f"would create table {repo.name()} (feature view orders)" in planned
    assert "DynamoDB tables: 2 to create, 0 to change, 0 as they should be." in planned
    assert repo.tables() == []

    applied = feast("apply", skip)
    assert f"created DynamoDB table {repo.name()} for feature view orders" in applied
    assert repo.tables() == [repo.name(), repo.name("visits")]
    assert repo.table()["ProvisionedThroughput"]["WriteCapacityUnits"] == 6

    definitions.write_text(DEFINITIONS)
    planned = feast("plan", skip)
    assert f"would keep table {repo.name('visits')} (feature view visits is gone)" in planned
    assert "0 to create, 0 to change, 1 as they should be" in planned
    applied = feast("apply", skip)
    assert f"feature view visits is gone; its table {repo.name('visits')} is kept" in applied
    assert repo.tables() == [repo.name(), repo.name("visits")]

    # The tags of the removed view's table say that this project made it.
    feast("teardown")
    assert repo.tables() == []
