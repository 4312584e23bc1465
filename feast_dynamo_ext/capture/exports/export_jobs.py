"""Exports of a DynamoDB table: started, followed to their end, and what stands in the way.

An export takes no read capacity, takes minutes to hours, and cannot be cancelled. What is needed:
point-in-time recovery of the table, and the right to write below a prefix of a bucket.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws
from feast_dynamo_ext.capture.exports.export_files import FULL, INCREMENTAL, NEW_AND_OLD
from feast_dynamo_ext.capture.exports.windows import Restorable, Window
from feast_dynamo_ext.dynamo.tables.describe import UNSUPPORTED
from feast_dynamo_ext.errors import AwsError, CaptureError
from feast_dynamo_ext.polling import Poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast_dynamo_ext.capture.dynamo_table import DynamoTable


logger = logging.getLogger(__name__)

MOST_EXPRESSION = 4_096
"""Bytes of an expression of DynamoDB."""


@dataclass(frozen=True)
class ExportTarget:
    """Where exports are written.

    Attributes:
        bucket: its name.
        prefix: before ``AWSDynamoDB/``; may be empty.
        kms_key: id or ARN of the key that encrypts them; None for S3's own (AES256).
    """

    bucket: str
    prefix: str = ""
    kms_key: str | None = None

    @classmethod
    def from_uri(cls, uri: str, kms_key: str | None = None) -> ExportTarget:
        """That of an ``s3://bucket/prefix``.

        Raises:
            CaptureError: it is none.
        """
        found = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*?))?/*", uri)
        if found is None:
            raise CaptureError(
                f"DynamoDB writes exports to S3 alone, and `{uri}` is no `s3://bucket/prefix`. "
                "Name such a place with `--exports`, or capture a small table with `--scan`."
            )
        return cls(found[1], found[2] or "", kms_key)

    @property
    def uri(self) -> str:
        """Of the folder that holds ``AWSDynamoDB``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def restorable(client: Any, table: str) -> Restorable:
    """The time that can be exported.

    Raises:
        CaptureError: point-in-time recovery is off; says how to switch it on. Or this DynamoDB has
            none, as the embedded one.
        AwsError: AWS refuses.
    """
    try:
        with aws.translated("dynamodb", f"table {table}"):
            answer = client.describe_continuous_backups(TableName=table)
    except AwsError as error:
        if error.code not in UNSUPPORTED:
            raise
        raise CaptureError(
            f"Table {table}: the DynamoDB at {client.meta.endpoint_url} has no point-in-time "
            "recovery, so it exports nothing. Capture the table with `feast-dynamo capture sync "
            "--scan`; in a pipeline, `scan: true` of its capture."
        ) from error
    found = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    first, last = (found.get(f"{word}RestorableDateTime") for word in ("Earliest", "Latest"))
    if found.get("PointInTimeRecoveryStatus") != "ENABLED":
        raise _recovery_off(table)
    if first is None or last is None:
        raise CaptureError(
            f"Table {table}: point-in-time recovery was switched on a moment ago, and nothing can "
            "be exported yet. Run it again in some minutes."
        )
    return Restorable(_utc(first), _utc(last))


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment.astimezone(dt.timezone.utc)


def _recovery_off(table: str) -> CaptureError:
    return CaptureError(
        f"Table {table}: point-in-time recovery is off, without which DynamoDB exports nothing. "
        f"Switch it on: `aws dynamodb update-continuous-backups --table-name {table} "
        "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true` (about $0.20 a "
        "GB-month), or capture a small table with `feast-dynamo capture sync --scan`."
    )


POLL = Poll(first_s=5.0, most_s=60.0)


@dataclass(frozen=True)
class Exports:
    """Starts and follows exports of one table.

    Attributes:
        client: boto3's of DynamoDB.
        table: the table.
        target: where they are written.
        poll: how often to poll.
        projection: attributes that are exported; empty for all.
    """

    client: Any
    table: DynamoTable
    target: ExportTarget
    poll: Poll = POLL
    projection: tuple[str, ...] = ()

    def start(self, window: Window) -> str:
        """Start the export of a window; started twice within 8 hours it is one.

        Returns:
            Its ARN.

        Raises:
            CaptureError: point-in-time recovery is off, the window cannot be exported, or the
                table is gone.
            AwsError: AWS refuses.
        """
        for _, pause in zip(range(self.poll.max_failures), self.poll.pauses(), strict=False):
            try:
                with aws.translated("dynamodb", f"table {self.table.name}"):
                    answer = self.client.export_table_to_point_in_time(**self.request(window))
            except AwsError as error:  # noqa: PERF203 - DynamoDB takes much longer
                # Exports of one window at once, or too many of the account.
                if error.code not in ("LimitExceededException", "ExportConflictException"):
                    raise self._refused(window, error) from error
                refused = error
                self.poll.sleep(pause)
            else:
                return str(answer["ExportDescription"]["ExportArn"])
        raise refused

    def request(self, window: Window) -> dict[str, Any]:
        """What ExportTableToPointInTime takes."""
        target, projection = self.target, self._projection()
        # The token of another request is refused.
        place = f"{target.uri} {','.join(self.projection)}" if projection else target.uri
        found: dict[str, Any] = {
            "TableArn": self.table.arn,
            "ClientToken": window.token(self.table.id, place),
            "S3Bucket": target.bucket,
            "ExportFormat": "DYNAMODB_JSON",
            "ExportType": FULL if window.start is None else INCREMENTAL,
        }
        if target.prefix:
            found["S3Prefix"] = target.prefix
        if target.kms_key:
            found |= {"S3SseAlgorithm": "KMS", "S3SseKmsKeyId": target.kms_key}
        if window.start is None:
            found["ExportTime"] = window.end
        else:
            found["IncrementalExportSpecification"] = {
                "ExportFromTime": window.start,
                "ExportToTime": window.end,
                "ExportViewType": NEW_AND_OLD,
            }
        if projection:
            found["FilterSpecification"] = projection
        return found

    def _projection(self) -> dict[str, Any]:
        """What exports the attributes alone; nothing where DynamoDB takes no such expression.

        No filter of items: one on an attribute that changes would lose what left it.
        """
        names = {f"#{at}": name for at, name in enumerate(self.projection)}
        expression = ",".join(names)
        if not names or len(expression) > MOST_EXPRESSION:
            return {}
        return {"ProjectionExpression": expression, "ExpressionAttributeNames": names}

    def _refused(self, window: Window, error: AwsError) -> Exception:
        table = self.table.name
        if error.code == "PointInTimeRecoveryUnavailableException":
            return _recovery_off(table)
        if error.code == "InvalidExportTimeException":
            return CaptureError(
                f"Table {table}: DynamoDB cannot export {window}: {error} The window must lie in "
                "the 35 days of point-in-time recovery. Begin again with the whole table: "
                "`feast-dynamo capture sync --full`."
            )
        if error.code == "TableNotFoundException":
            return CaptureError(
                f"Table {table} ({self.table.arn}) is gone: it was deleted meanwhile. What is in "
                "the history stays."
            )
        return error

    def followed(self, window: Window, say: Callable[[str], object] = logger.info) -> str:
        """Wait for the end of an export.

        Args:
            window: with its ARN.
            say: called with each new status.

        Returns:
            URI of its folder.

        Raises:
            CaptureError: it failed; says why, and what to do.
            AwsError: AWS refuses to say.
        """

        def described() -> dict[str, Any]:
            with aws.translated("dynamodb", f"export {window.arn}"):
                answer = self.client.describe_export(ExportArn=window.arn)
            found: dict[str, Any] = answer["ExportDescription"]
            return found

        found = self.poll.until(
            described,
            lambda found: found["ExportStatus"] in ("COMPLETED", "FAILED"),
            f"export of {window}",
            say,
            lambda found: str(found["ExportStatus"]),
        )
        if found["ExportStatus"] == "FAILED":
            raise self._failed(window, found)
        return self._folder(found)

    def _folder(self, found: dict[str, Any]) -> str:
        export_id = found["ExportArn"].rpartition("/")[2]
        return f"{self.target.uri}/AWSDynamoDB/{export_id}"

    def _failed(self, window: Window, found: dict[str, Any]) -> CaptureError:
        code, message = found.get("FailureCode", ""), found.get("FailureMessage", "")
        ways = {
            "S3": (
                f"Whoever runs this needs s3:PutObject and s3:AbortMultipartUpload on "
                f"arn:aws:s3:::{self.target.bucket}/{self.target.prefix}*, and the bucket must be "
                "there."
            ),
            "KMS": (
                "Whoever runs this needs kms:GenerateDataKey and kms:Decrypt of the key "
                f"{self.target.kms_key or 'of the bucket'}."
            ),
        }
        way = next(
            (text for word, text in ways.items() if word.lower() in f"{code} {message}".lower()),
            "Run it again: the window is exported once more.",
        )
        return CaptureError(
            f"Table {self.table.name}: the export of {window} failed with {code}: {message}. "
            f"{way} ({window.arn})"
        )
