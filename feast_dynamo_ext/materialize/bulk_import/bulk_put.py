"""StartBulkPutItems: DynamoDB writes files into a table that exists, at a rate of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import botocore

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.errors import AwsError, ConfigError, DependencyError
from feast_dynamo_ext.materialize.bulk_import.files import list_files
from feast_dynamo_ext.materialize.bulk_import.import_table import Status

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.tables.describe import TableSpec
    from feast_dynamo_ext.materialize.bulk_import.files import Folder


MIN_WRITE_UNITS = 1_024
"""The lowest `MaxWriteRequestUnits` that DynamoDB takes."""

NEEDS = "botocore>=1.44.5"
MOST_NAMED = 5


def is_supported(client: Any) -> bool:
    """Whether the installed botocore knows bulk puts."""
    return "StartBulkPutItems" in client.meta.service_model.operation_names


def require_support(client: Any) -> None:
    """Refuse to begin what could not be ended.

    Raises:
        DependencyError: botocore is too old.
    """
    if not is_supported(client):
        raise DependencyError(
            "Loading files into a table that exists needs StartBulkPutItems, which botocore "
            f"{botocore.__version__} does not know. Install a newer one: "
            f"pip install 'boto3' '{NEEDS}'. (`feast[aws]` holds botocore back; install feast "
            "without that extra.) Or load with `feast materialize`."
        )


def bulk_put_request(
    table: str, files: Folder, output: Folder, token: str, max_write_units: int | None = None
) -> dict[str, Any]:
    """What StartBulkPutItems takes.

    Args:
        table: table name.
        files: the files; nothing else may be in it.
        output: where DynamoDB reports lines that it could not take. Lines whose condition does not
            hold are not reported: they are older rows, and each report would hold the row twice.
        token: two requests with one token start one operation.
        max_write_units: write units a second at most; None for as fast as DynamoDB goes.

    Raises:
        ConfigError: fewer units than DynamoDB takes.
    """
    if max_write_units is not None and max_write_units < MIN_WRITE_UNITS:
        raise ConfigError(
            f"A bulk put may not be held to {max_write_units:,} write units a second: DynamoDB "
            f"takes {MIN_WRITE_UNITS:,} or more. `feast materialize` goes as slow as you like "
            "(`max_write_units_per_s`)."
        )
    ceiling = {} if max_write_units is None else {"MaxWriteRequestUnits": max_write_units}
    return {
        "ClientToken": token,
        "TableName": table,
        "InputS3Configuration": {
            "S3Bucket": files.bucket,
            "S3KeyPrefix": files.prefix,
            "InputFormat": "DYNAMODB_JSON",
            "InputCompressionType": "GZIP",
        },
        "OutputS3Configuration": {
            "S3Bucket": output.bucket,
            "S3KeyPrefix": output.prefix,
            "OutputType": ["ERROR"],
        },
        **ceiling,
    }


@dataclass(frozen=True)
class BulkPut:
    """A bulk put that was started.

    Attributes:
        client: boto3's client of DynamoDB.
        s3: boto3's client of S3.
        spec: the table.
        arn: the bulk operation.
        output: where DynamoDB reports what it could not take.
    """

    client: Any
    s3: Any
    spec: TableSpec
    arn: str
    output: Folder

    @property
    def name(self) -> str:
        """For people."""
        return f"bulk put into table {self.spec.name} (feature view `{self.spec.view}`)"

    @classmethod
    def start(
        cls, client: Any, s3: Any, spec: TableSpec, request: dict[str, Any], output: Folder
    ) -> BulkPut:
        """Send the request.

        Raises:
            AwsError: AWS refused.
        """
        with translated("dynamodb", f"table {spec.name}"):
            answer = client.start_bulk_put_items(**request)
        return cls(
            client, s3, spec, answer["BulkOperationDescription"]["BulkOperationArn"], output
        )

    def status(self) -> Status:
        """How far it is.

        Raises:
            AwsError: AWS refused.
        """
        with translated("dynamodb", f"table {self.spec.name}"):
            answer = self.client.describe_bulk_operation(BulkOperationArn=self.arn)
        described = answer["BulkOperationDescription"]
        failure = (described.get("FailureCode"), described.get("FailureMessage"))
        status = Status(
            arn=described["BulkOperationArn"],
            word=described["BulkOperationStatus"],
            processed=described.get("ProcessedItemCount"),
            failed=described.get("FailedItemCount"),
            read_bytes=described.get("ProcessedInputBytes"),
            failure=": ".join(part for part in failure if part),
        )
        if not status.ended or status.word == "COMPLETED":
            return status
        return dataclasses.replace(status, details=self._report())

    def _report(self) -> str:
        """Where the errors are. Not what they say: each holds a whole row."""
        try:
            found = list_files(self.s3, self.output)
        except AwsError as error:
            return f"DynamoDB's report is in {self.output.uri}, which cannot be listed: {error}"
        if not found:
            return f"DynamoDB wrote no report into {self.output.uri}."
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        return (
            f"DynamoDB's report is in {', '.join(found[:MOST_NAMED])}{more}. Rows that are loaded "
            "stay; a second load is safe."
        )

    def interrupted(self) -> str:
        """Cancel it."""
        with translated("dynamodb", f"table {self.spec.name}"):
            self.client.cancel_bulk_operation(BulkOperationArn=self.arn)
        return (
            f"The {self.name} is being cancelled. Rows that it has loaded stay; the same load "
            f"again is safe. ({self.arn})"
        )
