"""ImportTable: DynamoDB makes a new table out of files, without any write unit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.tables.changes import changes, create_parameters
from feast_dynamo_ext.dynamo.tables.state import read_state
from feast_dynamo_ext.dynamo.tables.table import TablePlan, carry_out
from feast_dynamo_ext.dynamo.tables.wait import WAIT, wait_ready
from feast_dynamo_ext.materialize.bulk.follow import Status

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.tables.clients import TableClients
    from feast_dynamo_ext.dynamo.tables.state import Skipped, TableSpec
    from feast_dynamo_ext.dynamo.tables.wait import Wait
    from feast_dynamo_ext.materialize.bulk.files import Folder

# What ImportTable takes of CreateTable's parameters; `finish` does the rest.
TAKEN = (
    "TableName",
    "AttributeDefinitions",
    "KeySchema",
    "BillingMode",
    "ProvisionedThroughput",
    "OnDemandThroughput",
    "SSESpecification",
)


def import_request(spec: TableSpec, folder: Folder, token: str) -> dict[str, Any]:
    """What ImportTable takes.

    Args:
        spec: the table that `feast apply` would make.
        folder: the files; nothing else may be in it.
        token: two requests with one token start one import.
    """
    wanted = create_parameters(spec)
    return {
        "ClientToken": token,
        "S3BucketSource": {"S3Bucket": folder.bucket, "S3KeyPrefix": folder.prefix},
        "InputFormat": "DYNAMODB_JSON",
        "InputCompressionType": "GZIP",
        "TableCreationParameters": {name: wanted[name] for name in TAKEN if name in wanted},
    }


@dataclass(frozen=True)
class Import:
    """An import that was started.

    Attributes:
        client: boto3's client of DynamoDB.
        spec: the table.
        arn: the import.
    """

    client: Any
    spec: TableSpec
    arn: str

    @property
    def name(self) -> str:
        """For people."""
        return f"import into table {self.spec.name} (feature view `{self.spec.view}`)"

    @classmethod
    def start(cls, client: Any, spec: TableSpec, folder: Folder, token: str) -> Import:
        """Send the request.

        Raises:
            AwsError: AWS refused.
        """
        with translated("dynamodb", f"table {spec.name}"):
            answer = client.import_table(**import_request(spec, folder, token))
        return cls(client, spec, answer["ImportTableDescription"]["ImportArn"])

    def status(self) -> Status:
        """How far it is.

        Raises:
            AwsError: AWS refused.
        """
        with translated("dynamodb", f"table {self.spec.name}"):
            answer = self.client.describe_import(ImportArn=self.arn)
        return import_status(answer["ImportTableDescription"])

    def interrupted(self) -> str:
        """An import cannot be cancelled."""
        return (
            f"DynamoDB has no way to cancel the {self.name}: it goes on, and is charged. Follow "
            f"it with `aws dynamodb describe-import --import-arn {self.arn}`. Then delete the "
            "table to start over; or, to keep it, set `ttl: true` under `online_store.table`, "
            "which an import leaves off, and run `feast apply`."
        )


def import_status(described: dict[str, Any]) -> Status:
    """The status of DescribeImport's answer."""
    group = described.get("CloudWatchLogGroupArn")
    failure = (described.get("FailureCode"), described.get("FailureMessage"))
    return Status(
        arn=described["ImportArn"],
        word=described["ImportStatus"],
        processed=described.get("ProcessedItemCount"),
        failed=described.get("ErrorCount"),
        loaded=described.get("ImportedItemCount"),
        read_bytes=described.get("ProcessedSizeBytes"),
        failure=": ".join(part for part in failure if part),
        details=(
            (f"Each error is in CloudWatch, log group {group}. " if group else "")
            + "Delete the table before you load it again."
        ),
    )


def finish(clients: TableClients, spec: TableSpec, wait: Wait = WAIT) -> tuple[Skipped, ...]:
    """Make an imported table what `feast apply` would have made: TTL, tags and all settings.

    Returns:
        Settings that were left out, and why.

    Raises:
        AwsError: AWS refused.
    """
    # Apply tags a table with its owner when it makes it, and never afterwards.
    tagged = dataclasses.replace(spec, tags={**spec.owner_tags, **spec.tags})
    described = wait_ready(clients, spec, wait)
    state = read_state(clients, tagged, described, new=True)
    plan = TablePlan(tagged, exists=True, changes=changes(tagged, state), skipped=state.skipped)
    return carry_out(clients, plan, wait)
