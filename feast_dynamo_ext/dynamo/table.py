"""Creates, checks and deletes the tables that views are kept in."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.item import EXPIRY, KEY
from feast_dynamo_ext.errors import TableLayoutError

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

KEY_SCHEMA = [{"AttributeName": KEY, "KeyType": "HASH"}]
ATTRIBUTES = [{"AttributeName": KEY, "AttributeType": "B"}]

# Answers of an identity that may not tag, and of DynamoDB Local, which has no tags.
TAGS_REFUSED = {"AccessDeniedException", "UnknownOperationException"}


@dataclass(frozen=True)
class TableSpec:
    """What a table should be.

    Attributes:
        name: table name.
        view: name of the feature view it keeps, for messages.
        tags: tags to add or change; tags of others are left alone.
    """

    name: str
    view: str
    tags: Mapping[str, str] = field(default_factory=dict)


def ensure_table(client: Any, spec: TableSpec) -> bool:
    """Create the table where it is missing, check its layout where it is there.

    Returns:
        Whether it was created.

    Raises:
        TableLayoutError: a table of that name exists with another key.
        AwsError: AWS refused.
    """
    with translated("dynamodb", f"table {spec.name}"):
        described = describe(client, spec.name)
        created = described is None
        if described is None:
            described = _create(client, spec)
        _check_layout(described, spec)
        _ensure_ttl(client, spec)
        if spec.tags:
            _ensure_tags(client, described["TableArn"], spec)
    return created


def delete_table(client: Any, name: str) -> bool:
    """Delete a table and wait until it is gone; False where it was not there."""
    with translated("dynamodb", f"table {name}"):
        if describe(client, name) is None:
            return False
        client.delete_table(TableName=name)
        client.get_waiter("table_not_exists").wait(
            TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 120}
        )
    return True


def describe(client: Any, name: str) -> dict[str, Any] | None:
    """DescribeTable's answer, or None where the table does not exist."""
    try:
        described: dict[str, Any] = client.describe_table(TableName=name)["Table"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return None
        raise
    return described


def _create(client: Any, spec: TableSpec) -> dict[str, Any]:
    try:
        client.create_table(
            TableName=spec.name,
            KeySchema=KEY_SCHEMA,
            AttributeDefinitions=ATTRIBUTES,
            BillingMode="PAY_PER_REQUEST",
        )
        logger.info("created DynamoDB table %s for feature view %s", spec.name, spec.view)
    except ClientError as error:
        # Another apply was faster; what it made is checked like any table that was there.
        if error.response["Error"]["Code"] != "ResourceInUseException":
            raise
    client.get_waiter("table_exists").wait(
        TableName=spec.name, WaiterConfig={"Delay": 1, "MaxAttempts": 120}
    )
    described: dict[str, Any] = client.describe_table(TableName=spec.name)["Table"]
    return described


def _check_layout(described: Mapping[str, Any], spec: TableSpec) -> None:
    if described["KeySchema"] == KEY_SCHEMA and described["AttributeDefinitions"] == ATTRIBUTES:
        return
    keys = ", ".join(
        f"{attribute['AttributeName']} ({attribute['AttributeType']})"
        for attribute in described["AttributeDefinitions"]
    )
    raise TableLayoutError(
        f"DynamoDB table {spec.name} exists with the key {keys}, not with this store's {KEY} (B): "
        "another program made it, perhaps Feast's own DynamoDB store. Set another "
        f"`table_name_template` in feature_store.yaml for feature view `{spec.view}`, or delete "
        "the table, then run `feast apply` and `feast materialize` again."
    )


def _ensure_ttl(client: Any, spec: TableSpec) -> None:
    ttl = client.describe_time_to_live(TableName=spec.name)["TimeToLiveDescription"]
    if ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING"):
        return
    client.update_time_to_live(
        TableName=spec.name,
        TimeToLiveSpecification={"Enabled": True, "AttributeName": EXPIRY},
    )


def _ensure_tags(client: Any, arn: str, spec: TableSpec) -> None:
    try:
        held = {
            tag["Key"]: tag["Value"]
            for page in client.get_paginator("list_tags_of_resource").paginate(ResourceArn=arn)
            for tag in page["Tags"]
        }
        changed = {key: value for key, value in spec.tags.items() if held.get(key) != value}
        if changed:
            client.tag_resource(
                ResourceArn=arn,
                Tags=[{"Key": key, "Value": value} for key, value in changed.items()],
            )
    except ClientError as error:
        if error.response["Error"]["Code"] not in TAGS_REFUSED:
            raise
        logger.warning(
            "table %s: its tags could not be set (%s)", spec.name, error.response["Error"]["Code"]
        )
