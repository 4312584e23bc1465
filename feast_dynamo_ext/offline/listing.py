"""Which files a source had: path, size and ETag, for a training set's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyarrow import fs

from feast_dynamo_ext import aws

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast_dynamo_ext.offline.source import ParquetSource


@dataclass(frozen=True)
class ListedFile:
    """A file as it was found.

    Attributes:
        uri: S3 URI, or local path.
        size: bytes.
        etag: S3's ETag without quotes; None for a local file.
    """

    uri: str
    size: int
    etag: str | None


def listed_files(source: ParquetSource) -> list[ListedFile]:
    """The files of a source, by path.

    Raises:
        AwsError: S3 does not allow to list them.
    """
    if not isinstance(source.filesystem, fs.S3FileSystem):
        return [ListedFile(file.path, file.size, None) for file in source.files]
    etags = dict(_etags(source))
    return [
        ListedFile(f"s3://{file.path}", file.size, etags.get(file.path)) for file in source.files
    ]


def _etags(source: ParquetSource) -> Iterator[tuple[str, str]]:
    bucket, _, prefix = source.uri.partition("://")[2].partition("/")
    with aws.translated("s3", source.uri):
        pages = aws.client("s3", source.settings).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                yield f"{bucket}/{entry['Key']}", entry["ETag"].strip('"')
