"""What DynamoDB says of a table that is captured."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext import aws
from feast_dynamo_ext.dynamo.tables.describe import UNSUPPORTED
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    ConfigError,
    ResourceNotFoundError,
)

if TYPE_CHECKING:
    from feast import RepoConfig

logger = logging.getLogger(__name__)


class DeclaredTable(Protocol):
    """A table as a `DynamoDBTableSource` declares it."""

    name: str
    table: str

    def column_of(self, attribute: str) -> str:
        """The column of the history that has an attribute."""
        ...


@dataclass(frozen=True)
class DynamoTable:
    """What DynamoDB says of a table.

    Attributes:
        name: its name.
        region: where it is.
        arn: its ARN.
        id: another one where a table of the name was deleted and made anew; empty where the
            endpoint says none.
        items: how many there are, about six hours ago.
        keys: name and type (S, N or B) of its key attributes, the partition key first.
        stream: the view type of its stream; None where it has none.
        has_recovery: whether point-in-time recovery is on; None where that may not be seen.
        expiry: its TTL attribute; empty where it has none, None where that may not be seen.
    """

    name: str
    region: str
    arn: str
    id: str
    items: int
    keys: tuple[tuple[str, str], ...]
    stream: str | None
    has_recovery: bool | None
    expiry: str | None

    @classmethod
    def from_table(cls, client: Any, source: DeclaredTable) -> DynamoTable:
        """What there is.

        Raises:
            ConfigError: there is no such table.
            AwsError: DynamoDB refused to describe it.
        """
        name, region = source.table, client.meta.region_name
        try:
            with aws.translated("dynamodb", name):
                found = client.describe_table(TableName=name)["Table"]
        except ResourceNotFoundError as error:
            raise ConfigError(
                f"DynamoDBTableSource `{source.name}`: there is no DynamoDB table `{name}` in "
                f"{region} ({client.meta.endpoint_url}). Correct `table`, or `region` and "
                "`profile` of the online_store block of feature_store.yaml."
            ) from error
        types = {
            each["AttributeName"]: each["AttributeType"] for each in found["AttributeDefinitions"]
        }
        stream = found.get("StreamSpecification") or {}
        recovery = _seen(lambda: client.describe_continuous_backups(TableName=name), name)
        expiry = _seen(lambda: client.describe_time_to_live(TableName=name), name)
        return cls(
            name,
            region,
            found["TableArn"],
            found.get("TableId", ""),
            found.get("ItemCount", 0),
            tuple(
                (each["AttributeName"], types[each["AttributeName"]])
                for each in sorted(found["KeySchema"], key=lambda key: key["KeyType"] != "HASH")
            ),
            stream.get("StreamViewType") if stream.get("StreamEnabled") else None,
            None if recovery is None else _has_recovery(recovery),
            None if expiry is None else _expiry(expiry),
        )

    def key_columns(self, source: DeclaredTable) -> tuple[str, ...]:
        """Columns of the history that have its key attributes, the partition key first."""
        return tuple(source.column_of(name) for name, _ in self.keys)

    def command(self, operation: str, *arguments: str) -> str:
        """A line of AWS's command line that changes the table."""
        return shlex.join(
            [
                "aws",
                "dynamodb",
                operation,
                "--region",
                self.region,
                "--table-name",
                self.name,
                *arguments,
            ]
        )


def _seen(call: Any, table: str) -> Any:
    """What a call answers; None where the identity may not make it, which it need not.

    Empty where there is no such call: DynamoDB Local has none for backups.
    """
    try:
        with aws.translated("dynamodb", table):
            return call()
    except AccessDeniedError as error:
        logger.debug("table %s: %s", table, error)
        return None
    except AwsError as error:
        if error.code not in UNSUPPORTED:
            raise
        return {}


def _has_recovery(answer: Any) -> bool:
    if not answer:
        return True
    backups = answer["ContinuousBackupsDescription"]
    recovery = backups.get("PointInTimeRecoveryDescription") or {}
    return bool(recovery.get("PointInTimeRecoveryStatus") == "ENABLED")


def _expiry(answer: Any) -> str:
    found = answer.get("TimeToLiveDescription", {})
    is_on = found.get("TimeToLiveStatus") in {"ENABLED", "ENABLING"}
    return str(found.get("AttributeName", "")) if is_on else ""


def dynamodb_client(config: RepoConfig, service: str = "dynamodb") -> Any:
    """A client of boto3 for the application's tables, reached as the online store's are."""
    block = config.online_store if hasattr(config.online_store, "aws") else config.offline_store
    return aws.client(service, block.aws())
