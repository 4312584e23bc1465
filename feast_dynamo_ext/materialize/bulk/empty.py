"""Whether a table holds rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.item import KEY, RESERVED_PREFIX
from feast_dynamo_ext.dynamo.tables.wait import describe
from feast_dynamo_ext.errors import AlreadyRunningError, ConfigError
from feast_dynamo_ext.materialize.holder import LeaseSettings, is_gone

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.tables.state import TableSpec


def require_empty(client: Any, spec: TableSpec) -> None:
    """Refuse a table with rows; items of this package's own (schemas, leases) are none.

    DynamoDB's own item count is six hours old, so the table is asked.

    Raises:
        ConfigError: it holds a row.
        AlreadyRunningError: a run is about to write some.
        AwsError: AWS refused.
    """
    with translated("dynamodb", f"table {spec.name}"):
        if describe(client, spec.name) is None:
            return
        pages = client.get_paginator("scan").paginate(
            TableName=spec.name,
            ConsistentRead=True,
            ProjectionExpression="#k",
            ExpressionAttributeNames={"#k": KEY},
        )
        for page in pages:
            if any(not item[KEY]["B"].startswith(RESERVED_PREFIX) for item in page["Items"]):
                raise ConfigError(
                    f"Table {spec.name} (feature view `{spec.view}`) holds rows, so it is not "
                    "replaced. Load into it with --way bulk-put."
                )
    if not is_gone(client, spec.name, LeaseSettings()):
        raise AlreadyRunningError(
            f"Feature view `{spec.view}` is being materialized into table {spec.name}, so it is "
            "not replaced. Wait for that run, or load with --way bulk-put."
        )
