"""Settings of tables and views, and the requests that make a table so, checked by botocore."""

from __future__ import annotations

from types import SimpleNamespace

import boto3
import pytest
from botocore.stub import Stubber

from feast_dynamo_ext import TableSettings, ViewSettings
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.dynamo.tables.describe import Skipped, TableClients, TableSpec, Wait
from feast_dynamo_ext.dynamo.tables.table import carry_out, delete_table, plan_table
from feast_dynamo_ext.errors import AwsUnavailableError, ConfigError, TableLayoutError
from feast_dynamo_ext.online_store import DynamoOnlineStoreConfig
from feast_dynamo_ext.view_settings import EXPECTED

ARN = "arn:aws:dynamodb:eu-west-1:111122223333:table/shop.orders"
KEY_ARN = "arn:aws:kms:eu-west-1:111122223333:key/1b2c"
ORDERS = {"TableName": "shop.orders"}


# Values


NO_AUTOSCALING = (
    "is a setting of autoscaling, and autoscaling of tables is no longer part of this package. "
    "Remove it, and let Terraform or CloudFormation scale the table: with `billing: provisioned` "
    "and neither `read_units` nor `write_units`, `feast apply` leaves the units to it."
)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"biling": "on_demand"},
            "TableSettings: there is no setting `biling`. Did you mean `billing`?",
        ),
        (
            {"billing": "cheap"},
            "TableSettings: `billing` is `cheap`, but must be on_demand or provisioned.",
        ),
        (
            {"max_read_units": 0},
            "TableSettings: `max_read_units` is `0`, but must be a whole number of at least 1, "
            "or off.",
        ),
        (
            {"kms_key": "my-key"},
            "TableSettings: `kms_key` is `my-key`, but must be aws_owned, aws_managed, or the "
            "ARN, id or alias (alias/...) of a KMS key.",
        ),
        (
            {"recovery_days": 36},
            "TableSettings: `recovery_days` is `36`, but must be a whole number from 1 to 35.",
        ),
        (
            {"billing": "on_demand", "read_units": 5},
            "TableSettings: `read_units` needs `billing: provisioned`; a table on demand has no "
            "units of its own, only a ceiling (`max_read_units`, `max_write_units`).",
        ),
        (
            {"billing": "provisioned", "read_units": 5},
            "TableSettings: `billing: provisioned` needs `write_units`.",
        ),
        (
            {"billing": "provisioned", "read_units": 5, "write_units": 5, "max_read_units": 40},
            f"TableSettings: `max_read_units` with `billing: provisioned` {NO_AUTOSCALING}",
        ),
        (
            {"billing": "provisioned", "max_write_units": "off"},
            f"TableSettings: `max_write_units` with `billing: provisioned` {NO_AUTOSCALING}",
        ),
        (
            {"billing": "provisioned", "read_units": 5, "write_units": 5, "target_percent": 50},
            f"TableSettings: `target_percent` {NO_AUTOSCALING}",
        ),
    ],
)
def test_a_mistake_is_one_sentence(settings, problem):
    with pytest.raises(ConfigError) as caught:
        TableSettings(**settings)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"biling": 1}, "`online_store.table`: there is no setting `biling`."),
        (
            {"billing": "provisioned", "target_percent": 70},
            f"`online_store.table`: `target_percent` {NO_AUTOSCALING}",
        ),
        (
            {"billing": "provisioned", "max_read_units": 50},
            f"`online_store.table`: `max_read_units` with `billing: provisioned` {NO_AUTOSCALING}",
        ),
        ({"max_read_units": 5}, "`online_store.table`: `max_read_units` needs `billing`"),
        ({"recovery_days": 5}, "needs `point_in_time_recovery: true`"),
        (5, "`online_store.table`: `5` is not a mapping of settings"),
    ],
)
def test_a_mistake_in_feature_store_yaml_says_where(table, problem):
    with pytest.raises(ConfigError) as caught:
        DynamoOnlineStoreConfig(table=table)
    assert problem in str(caught.value)


def test_off_in_yaml_is_the_word_off():
    config = DynamoOnlineStoreConfig(
        table={"stream": False, "billing": "on_demand", "max_read_units": False}
    )
    assert config.table.stream == "off"
    assert config.table.max_read_units == "off"


def test_every_setting_says_what_it_may_be():
    assert set(EXPECTED) == set(TableSettings.model_fields) | set(ViewSettings.model_fields)


# Tags of a view


def view_of(tags):
    return SimpleNamespace(name="orders", tags=tags)


def test_settings_of_a_view_are_one_tag_each_and_come_back():
    settings = ViewSettings(
        write_mode="overwrite",
        consistent_reads=True,
        expired="value",
        table=TableSettings(billing="on_demand", max_read_units=100, ttl=False, stream="off"),
    )
    tags = settings.tags()
    assert tags == {
        "feast_dynamo_ext.write_mode": "overwrite",
        "feast_dynamo_ext.consistent_reads": "true",
        "feast_dynamo_ext.expired": "value",
        "feast_dynamo_ext.table.billing": "on_demand",
        "feast_dynamo_ext.table.max_read_units": "100",
        "feast_dynamo_ext.table.stream": "off",
        "feast_dynamo_ext.table.ttl": "false",
    }
    assert ViewSettings.from_view(view_of({"team": "growth", **tags})) == settings


def test_a_view_without_settings_has_none():
    for tags in (None, {}, {"team": "growth"}):
        assert ViewSettings.from_view(view_of(tags)) == ViewSettings()


@pytest.mark.parametrize(
    ("tag", "value", "problem"),
    [
        (
            "feast_dynamo_ext.consistent_read",
            "true",
            "Feature view `orders`, tags: there is no setting `feast_dynamo_ext.consistent_read`. "
            "Did you mean `feast_dynamo_ext.consistent_reads`?",
        ),
        (
            "feast_dynamo_ext.consistent_reads",
            "maybe",
            "Feature view `orders`, tags: `feast_dynamo_ext.consistent_reads` is `maybe`, but "
            "must be true or false.",
        ),
        (
            "feast_dynamo_ext.table.read_units",
            "many",
            "Feature view `orders`, tags: `feast_dynamo_ext.table.read_units` is `many`, but "
            "must be a whole number of at least 1.",
        ),
        (
            "feast_dynamo_ext.table.target_percent",
            "70",
            "Feature view `orders`, tags: `feast_dynamo_ext.table.target_percent` "
            f"{NO_AUTOSCALING}",
        ),
        (
            "feast_dynamo_ext.table",
            "x",
            "Feature view `orders`, tags: there is no setting `feast_dynamo_ext.table`. Did you "
            "mean `feast_dynamo_ext.table.ttl`?",
        ),
    ],
)
def test_a_tag_that_is_no_setting_names_view_and_tag(tag, value, problem):
    with pytest.raises(ConfigError) as caught:
        ViewSettings.from_view(view_of({tag: value}))
    assert str(caught.value) == problem


def test_a_view_wins_over_the_store_and_brings_its_own_units_with_its_billing():
    store = TableSettings(billing="on_demand", max_read_units=100, deletion_protection=True)
    own = TableSettings(billing="provisioned", read_units=5, write_units=6)
    assert own.with_defaults(store, "x") == TableSettings(
        billing="provisioned", read_units=5, write_units=6, deletion_protection=True
    )
    more = TableSettings(max_write_units=50, deletion_protection=False)
    assert more.with_defaults(store, "x") == TableSettings(
        billing="on_demand", max_read_units=100, max_write_units=50, deletion_protection=False
    )
    with pytest.raises(ConfigError, match=r"^Feature view `o`: `max_write_units` needs `billing`"):
        more.with_defaults(TableSettings(), "Feature view `o`")


# Requests; the Stubber refuses parameters and answers that botocore's model does not have


class Script:
    """Clients that expect exactly these calls, in this order."""

    def __init__(self) -> None:
        self.stubs = {
            service: Stubber(
                boto3.client(
                    service,
                    region_name="eu-west-1",
                    aws_access_key_id="test",
                    aws_secret_access_key="test",
                )
            )
            for service in ("dynamodb", "kms")
        }
        for stub in self.stubs.values():
            stub.activate()
        self.clients = TableClients(
            self.stubs["dynamodb"].client, AwsSettings(), kms=self.stubs["kms"].client
        )
        self.pauses = []
        self.wait = Wait(sleep=self.pauses.append, clock=lambda: sum(self.pauses))

    def answer(self, operation, expected, answer=None, service="dynamodb"):
        self.stubs[service].add_response(operation, answer or {}, expected)

    def refuse(self, operation, expected, code, message=""):
        self.stubs["dynamodb"].add_client_error(operation, code, message, expected_params=expected)

    def describe(self, **changes):
        self.answer("describe_table", ORDERS, {"Table": table(**changes)})

    def check(self):
        for stub in self.stubs.values():
            stub.assert_no_pending_responses()


@pytest.fixture
def script():
    made = Script()
    yield made
    made.check()


def table(**changes):
    return {
        "TableName": "shop.orders",
        "TableArn": ARN,
        "TableStatus": "ACTIVE",
        "KeySchema": [{"AttributeName": "k", "KeyType": "HASH"}],
        "AttributeDefinitions": [{"AttributeName": "k", "AttributeType": "B"}],
        "BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"},
        "ProvisionedThroughput": {"ReadCapacityUnits": 0, "WriteCapacityUnits": 0},
        "DeletionProtectionEnabled": False,
        "WarmThroughput": {"ReadUnitsPerSecond": 12_000, "WriteUnitsPerSecond": 4_000},
        **changes,
    }


def spec(tags=None, **settings):
    return TableSpec("shop.orders", "orders", "shop", tags or {}, TableSettings(**settings))


def apply(script, wanted):
    return carry_out(script.clients, plan_table(script.clients, wanted), script.wait)


NEW = {
    "TableName": "shop.orders",
    "KeySchema": [{"AttributeName": "k", "KeyType": "HASH"}],
    "AttributeDefinitions": [{"AttributeName": "k", "AttributeType": "B"}],
    "BillingMode": "PAY_PER_REQUEST",
}
OWNER = {"Key": "feast_dynamo_ext.project", "Value": "shop"}
TTL_ON = {**ORDERS, "TimeToLiveSpecification": {"Enabled": True, "AttributeName": "x"}}


def test_a_new_table_is_asked_for_at_once_and_waited_for(script):
    script.refuse("describe_table", ORDERS, "ResourceNotFoundException")
    wanted = {
        **NEW,
        "OnDemandThroughput": {"MaxReadRequestUnits": 100, "MaxWriteRequestUnits": -1},
        "TableClass": "STANDARD_INFREQUENT_ACCESS",
        "SSESpecification": {
            "Enabled": True,
            "SSEType": "KMS",
            "KMSMasterKeyId": "alias/features",
        },
        "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        "DeletionProtectionEnabled": True,
        "WarmThroughput": {"ReadUnitsPerSecond": 20_000},
        "Tags": [OWNER, {"Key": "team", "Value": "growth"}],
    }
    made = {
        "OnDemandThroughput": {"MaxReadRequestUnits": 100},
        "TableClassSummary": {"TableClass": "STANDARD_INFREQUENT_ACCESS"},
        "SSEDescription": {"Status": "ENABLED", "SSEType": "KMS", "KMSMasterKeyArn": KEY_ARN},
        "StreamSpecification": wanted["StreamSpecification"],
        "DeletionProtectionEnabled": True,
        "WarmThroughput": {"ReadUnitsPerSecond": 20_000, "WriteUnitsPerSecond": 4_000},
    }
    script.answer("create_table", wanted)
    script.describe(TableStatus="CREATING")
    script.describe(**{**made, "SSEDescription": {"Status": "ENABLING"}})
    script.describe(**made)
    tags = [OWNER, {"Key": "team", "Value": "growth"}]
    script.answer("list_tags_of_resource", {"ResourceArn": ARN}, {"Tags": tags})
    key = {"KeyMetadata": {"KeyId": "1b2c", "Arn": KEY_ARN}}
    script.answer("describe_key", {"KeyId": "alias/features"}, key, "kms")
    script.answer("update_time_to_live", TTL_ON)
    skipped = apply(
        script,
        spec(
            tags={"team": "growth"},
            billing="on_demand",
            max_read_units=100,
            max_write_units="off",
            table_class="infrequent_access",
            kms_key="alias/features",
            stream="new_and_old_images",
            deletion_protection=True,
            warm_read_units=20_000,
        ),
    )
    assert skipped == ()
    assert script.pauses == [0.02, 0.03]


def test_an_identity_that_may_not_tag_makes_the_table_without(script):
    script.refuse("describe_table", ORDERS, "ResourceNotFoundException")
    script.refuse("create_table", {**NEW, "Tags": [OWNER]}, "AccessDeniedException")
    script.answer("create_table", NEW)
    script.describe()
    script.refuse("update_time_to_live", TTL_ON, "AccessDeniedException")
    assert apply(script, spec()) == (Skipped("ttl", "the identity may not call UpdateTimeToLive"),)


def test_a_table_that_another_apply_made_is_checked_like_any(script):
    script.refuse("describe_table", ORDERS, "ResourceNotFoundException")
    script.refuse("create_table", {**NEW, "Tags": [OWNER]}, "ResourceInUseException")
    for status in ("CREATING", "CREATING", "CREATING", "ACTIVE"):
        script.describe(TableStatus=status)
    assert apply(script, spec()) == ()


def test_a_table_that_is_being_deleted_is_waited_for_and_made_again(script):
    script.describe(TableStatus="DELETING")
    script.refuse("create_table", {**NEW, "Tags": [OWNER]}, "ResourceInUseException")
    script.describe(TableStatus="DELETING")
    script.refuse("describe_table", ORDERS, "ResourceNotFoundException")
    script.refuse("describe_table", ORDERS, "ResourceNotFoundException")
    script.answer("create_table", {**NEW, "Tags": [OWNER]})
    script.describe()
    script.answer("update_time_to_live", TTL_ON)
    assert apply(script, spec()) == ()


def test_a_table_that_another_apply_is_still_making_is_waited_for(script):
    script.describe(TableStatus="CREATING")
    script.describe(TableStatus="CREATING")
    script.describe()
    assert apply(script, spec()) == ()
    assert script.pauses == [0.02]


def test_each_kind_of_change_is_a_request_of_its_own(script):
    before = {
        "TableClassSummary": {"TableClass": "STANDARD_INFREQUENT_ACCESS"},
        "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
        "SSEDescription": {"Status": "ENABLED", "SSEType": "KMS", "KMSMasterKeyArn": KEY_ARN},
    }
    script.describe(**before)
    provisioned = {
        "BillingModeSummary": {"BillingMode": "PROVISIONED"},
        "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 6},
    }
    requests = [
        {"DeletionProtectionEnabled": True},
        {"BillingMode": "PROVISIONED", "ProvisionedThroughput": {
            "ReadCapacityUnits": 5, "WriteCapacityUnits": 6
        }},
        {"TableClass": "STANDARD"},
        {"SSESpecification": {"Enabled": False}},
        {"StreamSpecification": {"StreamEnabled": False}},
        {"StreamSpecification": {"StreamEnabled": True, "StreamViewType": "OLD_IMAGE"}},
        {"WarmThroughput": {"ReadUnitsPerSecond": 12_000, "WriteUnitsPerSecond": 9_000}},
    ]  # fmt: skip
    for request in requests:
        script.answer("update_table", {**ORDERS, **request})
        script.describe(TableStatus="UPDATING")
        script.describe()
    script.describe(
        **provisioned,
        DeletionProtectionEnabled=True,
        StreamSpecification=requests[5]["StreamSpecification"],
        WarmThroughput={"Status": "UPDATING", "WriteUnitsPerSecond": 4_000},
    )
    skipped = apply(
        script,
        spec(
            billing="provisioned",
            read_units=5,
            write_units=6,
            table_class="standard",
            kms_key="aws_owned",
            stream="old_image",
            deletion_protection=True,
            warm_read_units=10_000,
            warm_write_units=9_000,
        ),
    )
    assert skipped == ()
    assert script.pauses == [0.02] * 7


def test_a_setting_that_is_taken_and_not_shown_is_reported(script):
    script.describe()
    script.answer("update_table", {**ORDERS, "TableClass": "STANDARD_INFREQUENT_ACCESS"})
    script.describe()
    script.describe()
    assert apply(script, spec(table_class="infrequent_access")) == (
        Skipped("table_class", "DynamoDB took it and does not show it"),
    )


def test_units_and_ceilings_of_the_mode_in_use_are_changed_without_naming_it(script):
    script.describe(OnDemandThroughput={"MaxReadRequestUnits": 50, "MaxWriteRequestUnits": 60})
    ceilings = {"MaxReadRequestUnits": -1, "MaxWriteRequestUnits": 80}
    script.answer("update_table", {**ORDERS, "OnDemandThroughput": ceilings})
    script.describe(OnDemandThroughput={"MaxWriteRequestUnits": 80})
    script.describe(OnDemandThroughput={"MaxWriteRequestUnits": 80})
    wanted = spec(billing="on_demand", max_read_units="off", max_write_units=80)
    plan = plan_table(script.clients, wanted)
    assert [str(change) for change in plan.changes] == [
        "billing: on_demand (max_read_units 50, max_write_units 60) -> "
        "on_demand (max_read_units off, max_write_units 80)"
    ]
    assert carry_out(script.clients, plan, script.wait) == ()


def test_a_key_is_compared_by_its_arn(script):
    managed = {"Status": "ENABLED", "SSEType": "KMS", "KMSMasterKeyArn": KEY_ARN}
    key = {"KeyMetadata": {"KeyId": "1b2c", "Arn": KEY_ARN}}
    script.describe(SSEDescription=managed)
    script.answer("describe_key", {"KeyId": "alias/aws/dynamodb"}, key, "kms")
    assert plan_table(script.clients, spec(kms_key="aws_managed")).changes == ()
    script.describe(SSEDescription=managed)
    assert plan_table(script.clients, spec(kms_key=KEY_ARN)).changes == ()
    script.describe(SSEDescription=managed)
    (change,) = plan_table(script.clients, spec(kms_key=KEY_ARN + "99")).changes
    assert str(change) == f"kms_key: {KEY_ARN} -> {KEY_ARN}99"


def test_backups_that_are_not_ready_yet_are_waited_for(script):
    script.describe()
    off = {"PointInTimeRecoveryStatus": "DISABLED"}
    script.answer("describe_continuous_backups", ORDERS, backups(off))
    rule = {"PointInTimeRecoveryEnabled": True, "RecoveryPeriodInDays": 7}
    request = {**ORDERS, "PointInTimeRecoverySpecification": rule}
    script.refuse("update_continuous_backups", request, "ContinuousBackupsUnavailableException")
    script.answer("update_continuous_backups", request)
    assert apply(script, spec(point_in_time_recovery=True, recovery_days=7)) == ()
    assert script.pauses == [0.02]


def backups(recovery):
    return {
        "ContinuousBackupsDescription": {
            "ContinuousBackupsStatus": "ENABLED",
            "PointInTimeRecoveryDescription": recovery,
        }
    }


PROVISIONED = {
    "BillingModeSummary": {"BillingMode": "PROVISIONED"},
    "ProvisionedThroughput": {"ReadCapacityUnits": 33, "WriteCapacityUnits": 6},
}


def test_units_that_are_not_set_are_left_to_who_scales_the_table(script):
    script.describe(**PROVISIONED)
    plan = plan_table(script.clients, spec(billing="provisioned"))
    assert plan.changes == ()
    assert carry_out(script.clients, plan, script.wait) == ()


def test_units_that_are_set_are_compared(script):
    script.describe(**PROVISIONED)
    units = {"ReadCapacityUnits": 5, "WriteCapacityUnits": 6}
    script.answer("update_table", {**ORDERS, "ProvisionedThroughput": units})
    for _ in range(2):
        script.describe(**{**PROVISIONED, "ProvisionedThroughput": units})
    plan = plan_table(script.clients, spec(billing="provisioned", read_units=5, write_units=6))
    assert [str(change) for change in plan.changes] == [
        "billing: provisioned (33 read, 6 write units) -> provisioned (5 read, 6 write units)"
    ]
    assert carry_out(script.clients, plan, script.wait) == ()


NO_UNITS = (
    "Feature view `orders`: `billing: provisioned` needs `read_units` and `write_units` to make "
    "table shop.orders so; only the units of a table that is provisioned already can be left to "
    "others."
)


def test_a_table_is_not_made_provisioned_without_units(script):
    script.refuse("describe_table", ORDERS, "ResourceNotFoundException")
    script.describe()
    for _ in ("a new table", "one on demand"):
        plan = plan_table(script.clients, spec(billing="provisioned"))
        assert plan.differs
        with pytest.raises(ConfigError) as caught:
            carry_out(script.clients, plan, script.wait)
        assert str(caught.value) == NO_UNITS


def test_only_ours_and_changed_tags_are_sent(script):
    script.describe()
    held = [{"Key": "cost", "Value": "42"}, {"Key": "team", "Value": "sales"}]
    script.answer("list_tags_of_resource", {"ResourceArn": ARN}, {"Tags": held})
    sent = [{"Key": "team", "Value": "growth"}]
    script.answer("tag_resource", {"ResourceArn": ARN, "Tags": sent})
    assert apply(script, spec(tags={"team": "growth"})) == ()


def test_ttl_on_an_attribute_of_somebody_else_is_refused(script):
    script.describe()
    ttl = {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires"}
    script.answer("describe_time_to_live", ORDERS, {"TimeToLiveDescription": ttl})
    with pytest.raises(TableLayoutError, match=r"`expires`.*`x`.*the hour"):
        plan_table(script.clients, spec(ttl=True))


def test_a_table_that_never_gets_ready_is_named_at_the_deadline(script):
    script.refuse("describe_table", ORDERS, "ResourceNotFoundException")
    script.answer("create_table", {**NEW, "Tags": [OWNER]})
    for _ in range(4):
        script.describe(TableStatus="CREATING")
    wait = Wait(deadline_s=0.1, sleep=script.pauses.append, clock=lambda: sum(script.pauses))
    plan = plan_table(script.clients, spec())
    with pytest.raises(AwsUnavailableError, match=r"shop\.orders.*`orders`.*after 0\.1 s"):
        carry_out(script.clients, plan, wait)
    assert script.pauses == [0.02, 0.03, 0.045]


def test_a_deletion_is_waited_for(script):
    script.describe()
    script.answer("list_tags_of_resource", {"ResourceArn": ARN}, {"Tags": [OWNER]})
    script.answer("delete_table", ORDERS)
    script.describe(TableStatus="DELETING")
    script.refuse("describe_table", ORDERS, "ResourceNotFoundException")
    assert delete_table(script.clients, spec(), script.wait) is None
    assert script.pauses == [0.02]
