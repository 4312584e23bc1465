"""ImportTable: DynamoDB makes a new table out of files, without any write unit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.tables.describe import WAIT, Owner, claim, wait_ready
from feast_dynamo_ext.dynamo.tables.diff import changes, create_parameters, read_state
from feast_dynamo_ext.dynamo.tables.table import TablePlan, carry_out
from feast_dynamo_ext.errors import BulkLoadError
from feast_dynamo_ext.polling import Poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast_dynamo_ext.dynamo.tables.describe import Skipped, TableClients, TableSpec, Wait
    from feast_dynamo_ext.materialize.bulk_import.files import Folder


@dataclass(frozen=True)
class Status:
    """How far an import is. None: DynamoDB does not say (yet).

    Attributes:
        arn: the import.
        word: DynamoDB's word for it, for example ``IN_PROGRESS``.
        processed: items read from the files.
        failed: items of these that could not be loaded.
        loaded: items that are in the table.
        read_bytes: bytes read from the files.
        failure: DynamoDB's code and message, where it failed as a whole.
        details: where to read more, for people.
    """

    arn: str
    word: str
    processed: int | None = None
    failed: int | None = None
    loaded: int | None = None
    read_bytes: int | None = None
    failure: str = ""
    details: str = ""

    @property
    def ended(self) -> bool:
        """Whether it changes no more."""
        return self.word not in ("IN_PROGRESS", "CANCELLING")

    def __str__(self) -> str:
        counts = f", {self.processed:,} items processed" if self.processed is not None else ""
        return f"{self.word}{counts}"


POLL = Poll()
"""An import takes minutes to hours, and ends by itself."""


# What ImportTable takes of CreateTable's parameters; `finish` does the rest.
TAKEN = (
    "TableName",
    "AttributeDefinitions",
    "KeySchema",
    "GlobalSecondaryIndexes",
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
        """What a person who stops waiting should know: an import cannot be cancelled."""
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


def follow(
    operation: Import, expected: int, say: Callable[[str], object], poll: Poll = POLL
) -> Status:
    """Wait for the end, and check it.

    Args:
        operation: what to follow.
        expected: items that it was given.
        say: called with each new status, as a text.
        poll: how often to poll.

    Returns:
        The last status.

    Raises:
        BulkLoadError: it failed, was cancelled, or did not load every item.
        AwsError: AWS refused to say.
    """
    try:
        status = poll.until(operation.status, lambda status: status.ended, operation.name, say)
    except KeyboardInterrupt:
        say(operation.interrupted())
        raise
    return _checked(operation, status, expected)


def _checked(operation: Import, status: Status, expected: int) -> Status:
    problem = _problem(status, expected)
    if problem is None:
        return status
    details = f" {status.details}" if status.details else ""
    raise BulkLoadError(f"{operation.name}: {problem}.{details} ({status.arn})", arn=status.arn)


def _problem(status: Status, expected: int) -> str | None:
    if status.failed:
        return f"{status.failed:,} of {expected:,} items could not be loaded{_because(status)}"
    if status.word != "COMPLETED":
        return f"it ended as {status.word}{_because(status)}"
    if status.processed is not None and status.processed != expected:
        return (
            f"DynamoDB read {status.processed:,} items, but {expected:,} were written; do other "
            "files share the folder?"
        )
    return None


def _because(status: Status) -> str:
    return f": {status.failure}" if status.failure else ""


def finish(clients: TableClients, spec: TableSpec, wait: Wait = WAIT) -> tuple[Skipped, ...]:
    """Make an imported table what `feast apply` would have made: TTL, tags and all settings.

    Returns:
        Settings that were left out, and why.

    Raises:
        AwsError: AWS refused.
    """
    # Apply says whose a table is when it makes it, in tags, and in an item where others could take
    # it for theirs.
    tagged = dataclasses.replace(spec, tags={**spec.owner_tags, **spec.tags})
    described = wait_ready(clients, spec, wait)
    state = read_state(clients, tagged, described, new=True)
    claimed = claim(spec, described, Owner()) if spec.may_be_anothers else ()
    todo = (*claimed, *changes(tagged, state))
    plan = TablePlan(tagged, exists=True, changes=todo, skipped=state.skipped)
    return carry_out(clients, plan, wait)
