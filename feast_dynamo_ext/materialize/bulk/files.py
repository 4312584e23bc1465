"""The files of a bulk load: gzip, of similar size, under a prefix that no other run has.

DynamoDB reads files in parallel, so many of one size are faster than few; it takes 50,000 of them.
Both advise a random order of keys, which is the order that rows come in here:
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/S3DataImport.BestPractices.html
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from feast_dynamo_ext.aws import aws_error, translated
from feast_dynamo_ext.errors import ConfigError, FeastDynamoError
from feast_dynamo_ext.materialize.bulk.upload import PART_BYTES, Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pyarrow as pa

    from feast_dynamo_ext.materialize.bulk.progress import Progress

logger = logging.getLogger(__name__)

MB = 1_000_000
MAX_FILES = 50_000
CHUNK_BYTES = 4 * MB
"""Uncompressed bytes that are compressed at once: how finely files are cut."""

# Base64 of packed doubles hardly gets smaller at a higher level, which takes twice the time.
GZIP_LEVEL = 4
GZIP_HEADER = 31  # zlib's word for a window of 32 KB with gzip's header


@dataclass(frozen=True)
class Folder:
    """Where on S3 files are.

    Attributes:
        bucket: bucket name.
        prefix: what keys start with, `/` at its end.
    """

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str) -> Folder:
        """The folder of a URI.

        Raises:
            ConfigError: not `s3://bucket/...`.
        """
        # Not parsed as a URL: a `?` or `#` in a key is no query and no fragment.
        scheme, _, rest = uri.partition("://")
        bucket, _, path = rest.partition("/")
        if scheme.lower() not in ("s3", "s3a", "s3n") or not bucket:
            raise ConfigError(
                f"`{uri}` cannot take the files of a bulk load: DynamoDB reads them from S3. "
                "Give --output s3://bucket/prefix."
            )
        path = path.strip("/")
        return cls(bucket, f"{path}/" if path else "")

    @property
    def uri(self) -> str:
        """The folder, for people."""
        return f"s3://{self.bucket}/{self.prefix}"

    def inside(self, *names: str) -> Folder:
        """A folder within."""
        return Folder(self.bucket, self.prefix + "".join(f"{name}/" for name in names))


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: how many files.
        items: how many lines.
        raw_bytes: bytes before compression.
        gzip_bytes: bytes on S3.
    """

    files: int = 0
    items: int = 0
    raw_bytes: int = 0
    gzip_bytes: int = 0


def write_files(
    s3: Any,
    folder: Folder,
    lines: Iterable[pa.LargeBinaryArray],
    file_bytes: int,
    progress: Progress,
    part_bytes: int = PART_BYTES,
    max_files: int = MAX_FILES,
) -> Written:
    """Write lines as `00000.json.gz`, `00001.json.gz` and so on.

    Args:
        s3: boto3's client.
        folder: a folder of this run's own.
        lines: lines, each with its newline, in batches.
        file_bytes: compressed bytes at which a file ends; the last one is smaller.
        progress: is told of every chunk.
        part_bytes: bytes of a part of an upload.
        max_files: as many as DynamoDB reads.

    Raises:
        ConfigError: more files than DynamoDB takes.
        AwsError: S3 refused. Nothing is left in the folder then, or what is left is logged.
    """
    upload = partial(Upload, s3, folder.bucket, part_bytes=part_bytes)
    try:
        return _write(upload, folder, _chunks(lines), file_bytes, max_files, progress)
    except BaseException:
        try:
            delete_files(s3, folder)
        except FeastDynamoError as error:
            logger.warning("%s holds files that nothing reads; delete them: %s", folder.uri, error)
        raise


def _write(
    upload_to: Callable[[str], Upload],
    folder: Folder,
    chunks: Iterator[tuple[int, memoryview]],
    file_bytes: int,
    max_files: int,
    progress: Progress,
) -> Written:
    total = Written()
    chunk = next(chunks, None)
    while chunk is not None:
        if total.files == max_files:
            raise ConfigError(
                f"The rows take more than {max_files:,} files of {file_bytes / MB:g} MB, which is "
                "as many as DynamoDB reads. Give a larger --file-size, or load a shorter window."
            )
        file = _GzipFile()
        with upload_to(_key(folder, total.files)) as upload:
            while chunk is not None and file.gzip_bytes < file_bytes:
                items, data = chunk
                upload.write(file.compressed(data))
                total = _plus(total, items, len(data))
                progress.wrote(items, len(data))
                chunk = next(chunks, None)
            upload.write(file.end())
        total = _plus(total, 0, 0, files=1, gzip_bytes=file.gzip_bytes)
    return total


def _plus(
    total: Written, items: int, raw_bytes: int, files: int = 0, gzip_bytes: int = 0
) -> Written:
    return Written(
        total.files + files,
        total.items + items,
        total.raw_bytes + raw_bytes,
        total.gzip_bytes + gzip_bytes,
    )


def _key(folder: Folder, number: int) -> str:
    return f"{folder.prefix}{number:05}.json.gz"


class _GzipFile:
    """Compresses; the same input gives the same bytes, as no time stands in the header."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_HEADER)
        self.gzip_bytes = 0

    def compressed(self, data: memoryview) -> bytes:
        return self._counted(self._zlib.compress(data))

    def end(self) -> bytes:
        return self._counted(self._zlib.flush())

    def _counted(self, data: bytes) -> bytes:
        self.gzip_bytes += len(data)
        return data


def _chunks(batches: Iterable[pa.LargeBinaryArray]) -> Iterator[tuple[int, memoryview]]:
    """How many lines, and their bytes: views of Arrow's own memory, CHUNK_BYTES or one line."""
    for batch in batches:
        _, offset_buffer, data = batch.buffers()
        offsets = np.frombuffer(offset_buffer, np.int64)[batch.offset :][: len(batch) + 1]
        start = 0
        while start < len(batch):
            most = int(np.searchsorted(offsets, offsets[start] + CHUNK_BYTES, "right")) - 1
            end = max(start + 1, most)
            yield end - start, memoryview(data)[offsets[start] : offsets[end]]
            start = end


def delete_files(s3: Any, folder: Folder) -> int:
    """Delete what is in a folder; returns how many files that were.

    Raises:
        AwsError: S3 refused.
    """
    deleted = 0
    with translated("s3", folder.uri):
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=folder.bucket, Prefix=folder.prefix
        )
        for page in pages:
            keys = [{"Key": found["Key"]} for found in page.get("Contents", ())]
            if keys:
                answer = s3.delete_objects(
                    Bucket=folder.bucket, Delete={"Objects": keys, "Quiet": True}
                )
                deleted += len(keys) - len(answer.get("Errors", ()))
                _raise_first(answer.get("Errors", ()), folder)
    return deleted


def _raise_first(errors: Iterable[Any], folder: Folder) -> None:
    for error in errors:
        raise aws_error(
            error.get("Code", "Unknown"),
            error.get("Message", "no message"),
            service="s3",
            operation="DeleteObjects",
            resource=f"{folder.uri} ({error.get('Key')})",
        )


def list_files(s3: Any, folder: Folder) -> list[str]:
    """URIs of what is in a folder.

    Raises:
        AwsError: S3 refused.
    """
    with translated("s3", folder.uri):
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=folder.bucket, Prefix=folder.prefix
        )
        return [
            f"s3://{folder.bucket}/{found['Key']}"
            for page in pages
            for found in page.get("Contents", ())
        ]
