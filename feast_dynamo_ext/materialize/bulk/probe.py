"""Sees on one item whether DynamoDB heeds the conditions of lines, before rows depend on it.

A bulk put that ignored them would replace newer rows by older ones, and nobody could tell. No
emulator has bulk puts, so what this package writes is tried on the table itself: on a key that no
reader asks for, with a condition that no item meets.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.item import KEY, RESERVED_PREFIX
from feast_dynamo_ext.errors import BulkLoadError
from feast_dynamo_ext.materialize.bulk.bulk_put import BulkPut, bulk_put_request
from feast_dynamo_ext.materialize.bulk.files import write_files
from feast_dynamo_ext.materialize.bulk.follow import POLL, follow
from feast_dynamo_ext.materialize.bulk.progress import NoProgress
from feast_dynamo_ext.materialize.bulk.records import NEVER_HOLDS, line

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.tables.state import TableSpec
    from feast_dynamo_ext.materialize.bulk.files import Folder
    from feast_dynamo_ext.materialize.bulk.follow import Poll
    from feast_dynamo_ext.materialize.bulk.progress import Progress

KEY_PREFIX = RESERVED_PREFIX + b"bulk-probe:"
CONDITION = {"ConditionExpression": NEVER_HOLDS, "ExpressionAttributeNames": {"#k": KEY}}


def probe(
    client: Any,
    s3: Any,
    spec: TableSpec,
    folder: Folder,
    run: str,
    progress: Progress,
    poll: Poll = POLL,
) -> None:
    """Try a bulk put of one item that must not be written.

    Args:
        client: boto3's client of DynamoDB.
        s3: boto3's client of S3.
        spec: the table.
        folder: a folder of this probe's own.
        run: the run's id.
        progress: is told the operation's status, and to cancel it where a person stops waiting.
        poll: how often to ask.

    Raises:
        BulkLoadError: the condition was ignored, or the line refused; no row has been loaded.
        AwsError: AWS refused.
    """
    key = KEY_PREFIX + run.encode()
    files, output = folder.inside("files"), folder.inside("output")
    item = {KEY: {"B": base64.b64encode(key).decode()}}
    written = write_files(s3, files, [line(item, CONDITION)], 1, NoProgress())
    request = bulk_put_request(spec.name, files, output, f"{run}-probe")
    operation = BulkPut.start(client, s3, spec, request, output)
    try:
        follow(operation, written.items, progress, poll)
    except BulkLoadError as error:
        raise BulkLoadError(
            "Before any row was loaded, DynamoDB did not take the line by which this package sees "
            f"whether conditions are heeded: {error}. {INSTEAD}",
            arn=operation.arn,
        ) from error
    if _was_written(client, spec, key):
        raise BulkLoadError(
            f"Table {spec.name} (feature view `{spec.view}`): a bulk put wrote an item whose "
            "condition does not hold, so older rows could replace newer ones. Nothing was loaded. "
            f"{INSTEAD}",
            arn=operation.arn,
        )


INSTEAD = (
    "Load with `feast materialize`; or, into a table that holds no newer rows, with `write_mode: "
    "overwrite`."
)


def _was_written(client: Any, spec: TableSpec, key: bytes) -> bool:
    found = {"TableName": spec.name, "Key": {KEY: {"B": key}}}
    with translated("dynamodb", f"table {spec.name}"):
        if "Item" not in client.get_item(**found, ConsistentRead=True):
            return False
        client.delete_item(**found)
    return True
