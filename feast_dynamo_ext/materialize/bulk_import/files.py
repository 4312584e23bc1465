"""The files of a bulk load: gzip, of similar size, under a prefix that no other run has.

A line is ``{"Item":{...}}``. DynamoDB reads files in parallel, so many of one size are faster than
few; it takes 50,000 of them. It advises a random order of keys, which is the order of rows here:
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/S3DataImport.BestPractices.html
"""

from __future__ import annotations

import json
import logging
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.errors import ConfigError, FeastDynamoError
from feast_dynamo_ext.storage import UPLOAD_BYTES, S3Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.storage import Files


logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/gzip"

KIND = pa.large_binary()
JOINED_BY_NOTHING = pa.scalar(b"", KIND)


def schema_line(item: JsonItem) -> pa.LargeBinaryArray:
    """The line of an item of schema."""
    text = json.dumps({"Item": item}, separators=(",", ":"))
    # The same to any JSON parser but moto's, which takes an escaped quote for the text's end.
    text = text.replace(r"\"", r"\u0022")
    return pa.array([f"{text}\n".encode()], KIND)


def row_lines(items: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """The lines of rows.

    Args:
        items: items as DynamoDB JSON, one a value.
    """
    before, after = (pa.scalar(part, KIND) for part in (b'{"Item":', b"}\n"))
    return pc.binary_join_element_wise(before, items, after, JOINED_BY_NOTHING)


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
    on_written: Callable[[int, int], object],
    part_bytes: int = UPLOAD_BYTES,
    max_files: int = MAX_FILES,
) -> Written:
    """Write lines as `00000.json.gz`, `00001.json.gz` and so on.

    Args:
        s3: boto3's client.
        folder: a folder of this run's own.
        lines: lines, each with its newline, in batches.
        file_bytes: compressed bytes at which a file ends; the last one is smaller.
        on_written: called with numbers of lines, and of their bytes before compression.
        part_bytes: bytes of a part of an upload.
        max_files: as many as DynamoDB reads.

    Raises:
        ConfigError: more files than DynamoDB takes.
        AwsError: S3 refused. Nothing is left in the folder then, or what is left is logged.
    """
    files = S3Files(s3, part_bytes)
    try:
        return _write(files, folder, _chunks(lines), file_bytes, max_files, on_written)
    except BaseException:
        try:
            delete_files(s3, folder)
        except FeastDynamoError as error:
            logger.warning("%s holds files that nothing reads; delete them: %s", folder.uri, error)
        raise


def _write(
    files: Files,
    folder: Folder,
    chunks: Iterator[tuple[int, memoryview]],
    file_bytes: int,
    max_files: int,
    on_written: Callable[[int, int], object],
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
        with files.new_file(_uri(folder, total.files), CONTENT_TYPE) as upload:
            while chunk is not None and file.gzip_bytes < file_bytes:
                items, data = chunk
                upload.write(file.compressed(data))
                total = _plus(total, items, len(data))
                on_written(items, len(data))
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


def _uri(folder: Folder, number: int) -> str:
    return f"{folder.uri}{number:05}.json.gz"


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
    files = S3Files(s3)
    found = [f"s3://{file.path}" for file in files.below(folder.uri)]
    files.delete(found)
    return len(found)


def list_files(s3: Any, folder: Folder) -> list[str]:
    """URIs of what is in a folder.

    Raises:
        AwsError: S3 refused.
    """
    return [f"s3://{file.path}" for file in S3Files(s3).below(folder.uri)]
