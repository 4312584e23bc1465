"""Writes Parquet where readers may be reading: a file appears whole or not at all."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import OfflineStoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from feast_dynamo_ext.aws import AwsSettings


def append_part(uri: str, table: pa.Table, settings: AwsSettings) -> str:
    """Add one new file to a folder; files that are there are left alone.

    Returns:
        Path of the new file within its filesystem.

    Raises:
        OfflineStoreError: `uri` is a file.
    """
    filesystem, folder = aws.filesystem(uri, settings)
    if filesystem.get_file_info(folder).type == fs.FileType.File:
        raise OfflineStoreError(
            f"{uri} is one Parquet file; appending would rewrite it under its readers. Move it "
            "into a folder and point the source to that."
        )
    path = f"{folder.rstrip('/')}/part-{uuid.uuid4().hex}.parquet"
    write_file(filesystem, path, table.schema, table.to_batches())
    return path


def write_dataset(
    uri: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    settings: AwsSettings,
    *,
    overwrite: bool,
) -> str:
    """Write a saved dataset: to the file that `uri` names, or as one file in that folder.

    Returns:
        Path of the file within its filesystem.

    Raises:
        OfflineStoreError: there is something already, and `overwrite` is not set.
    """
    filesystem, path = aws.filesystem(uri, settings)
    exists = filesystem.get_file_info(path).type != fs.FileType.NotFound
    if exists and not overwrite:
        raise OfflineStoreError(
            f"{uri} exists already. Pass `allow_overwrite=True` to replace it, or choose another."
        )
    target = path if path.endswith(".parquet") else f"{path.rstrip('/')}/part-00000.parquet"
    if exists and target != path:
        filesystem.delete_dir_contents(path)
    write_file(filesystem, target, schema, batches)
    return target


def write_file(
    filesystem: fs.FileSystem, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    """Write one Parquet file; on a local disk under another name first, then moved into place.

    An S3 object needs no such care: it appears when its upload is complete.

    Raises:
        AwsError: S3 refused.
    """
    with aws.s3_translated(path):
        _write(filesystem, path, schema, batches)


def _write(
    filesystem: fs.FileSystem, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    local = isinstance(filesystem, fs.LocalFileSystem)
    written = f"{path}.{uuid.uuid4().hex}.tmp" if local else path
    if local:
        filesystem.create_dir(path.rpartition("/")[0] or ".", recursive=True)
        written = _hidden(written)
    with pq.ParquetWriter(written, schema, filesystem=filesystem, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
    if local:
        filesystem.move(written, path)


def _hidden(path: str) -> str:
    """The same path with a name that readers of the folder pass over."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}.{name}"
