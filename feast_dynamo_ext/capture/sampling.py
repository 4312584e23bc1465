"""Items to infer a schema from: of a table, or of an export."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws
from feast_dynamo_ext.capture.exports.export_files import DataStream, exports_below, read_export
from feast_dynamo_ext.errors import CaptureError, ResourceNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.capture.inference import SchemaInference


def add_scanned(inference: SchemaInference, client: Any, table: str, most: int) -> None:
    """Look at the first items of a table.

    Args:
        inference: looks at them.
        client: boto3's of DynamoDB.
        table: its name.
        most: so many items, at most.

    Raises:
        CaptureError: there is no such table, or it has no items.
        AwsError: DynamoDB refuses.
    """
    try:
        inference.add(itertools.islice(_items(client, table), most))
    except ResourceNotFoundError as error:
        raise CaptureError(
            f"There is no DynamoDB table {table} in {client.meta.region_name}. Name one, or set "
            "`region` in feature_store.yaml."
        ) from error
    _refuse_none(inference, f"Table {table}")


def _items(client: Any, table: str) -> Iterator[dict[str, Any]]:
    with aws.translated("dynamodb", f"table {table}"):
        for page in client.get_paginator("scan").paginate(TableName=table):
            yield from page["Items"]


def add_exported(
    inference: SchemaInference, uri: str, table: str, settings: AwsSettings, most: int
) -> None:
    """Look at the first items of exports.

    Args:
        inference: looks at them.
        uri: of an export, or of a folder with several.
        table: the table that they must be of.
        settings: how S3 is reached.
        most: so many items, at most.

    Raises:
        CaptureError: there is none, one is of another table, or they have no items.
        SourceReadError: a line that is no record. AwsError: S3 refuses.
    """
    for folder in exports_below(uri, settings):
        export = read_export(folder, settings)
        if export.table != table:
            raise CaptureError(f"{folder} is an export of {export.table}, and not of {table}.")
        for file in export.files:
            if inference.items < most:
                with DataStream(file, settings) as stream:
                    inference.add_export(stream, file.uri, most - inference.items)  # type: ignore[arg-type]
    _refuse_none(inference, uri)


def _refuse_none(inference: SchemaInference, what: str) -> None:
    if not inference.items:
        raise CaptureError(f"{what} has no items, so nothing says which attributes there are.")
