"""Where files are written, S3 or a local disk: a file appears whole or not at all.

S3 is written through boto3, not through pyarrow: pyarrow's streams complete an upload when they
are closed, also where writing failed, and have no way to give it up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import AwsError, ConfigError, DestinationError, FeastDynamoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from feast import RepoConfig

    from feast_dynamo_ext.aws import AwsSettings


logger = logging.getLogger(__name__)

UPLOAD_BYTES = 16 << 20
"""Of one part of a multipart upload: S3 takes 10,000 parts, so files of up to 160 GB."""

DELETED_AT_ONCE = 1_000
"""Keys in one DeleteObjects, S3's limit."""


@dataclass(frozen=True)
class FileState:
    """One file as it was listed.

    Attributes:
        path: path within the filesystem.
        size: bytes.
        mtime_ns: time of its last change, nanoseconds since 1970 UTC.
        etag: S3's ETag without quotes; None for a local file.
        partition: what its folders' names say, column and text; None for hive's null.
    """

    path: str
    size: int
    mtime_ns: int | None
    etag: str | None = None
    partition: tuple[tuple[str, str | None], ...] = ()

    @property
    def version(self) -> tuple[int, str | int | None]:
        """What is another when the file is replaced."""
        return self.size, self.etag or self.mtime_ns


class NewFile(Protocol):
    """A file that is being written, as Parquet's writer uses it."""

    written: int
    closed: bool

    def write(self, data: Any) -> int:
        """Add bytes."""
        ...

    def flush(self) -> None:
        """Nothing: what is written appears when all of it is."""
        ...

    def close(self) -> None:
        """Nothing, as `flush`."""
        ...


class Files(Protocol):
    """What can be done at a destination. Files are named by URI or local path."""

    def new_file(self, uri: str) -> AbstractContextManager[NewFile]:
        """A file that appears, or replaces what is there, where the block ends without error."""
        ...

    def at(self, uri: str) -> list[str]:
        """The file of that name, or all files in the folder of that name and below, in order."""
        ...

    def delete(self, uris: Sequence[str]) -> None:
        """Delete files; those that are gone already are passed over."""
        ...


def files_of(uri: str, settings: AwsSettings) -> Files:
    """The files of the S3 or the disk that a URI is on.

    Raises:
        ConfigError: a scheme that is neither s3 nor a file.
    """
    scheme, _ = aws.scheme_and_path(uri)
    if scheme in ("", "file"):
        return LocalFiles()
    if scheme not in ("s3", "s3a", "s3n"):
        raise ConfigError(f"`{uri}`: only s3:// URIs and local paths can be written.")
    return S3Files(aws.client("s3", settings))


def settings_of(data_source: Any, config: RepoConfig) -> AwsSettings:
    """How a data source's S3 is reached: its own endpoint, if it has one, comes first."""
    settings: AwsSettings = config.offline_store.aws()
    override = getattr(data_source, "s3_endpoint_override", None)
    return replace(settings, endpoint_url=override) if override else settings


@dataclass(frozen=True)
class LocalFiles:
    """Files on a local disk."""

    @contextlib.contextmanager
    def new_file(self, uri: str) -> Iterator[NewFile]:
        """See `Files.new_file`."""
        path = _local(uri)
        with writing(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Readers pass over hidden names, so what a killed writer leaves is never read.
            file = _LocalFile(uri, path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp"))
        try:
            yield file
            with writing(uri):
                file.settle().replace(path)
        except BaseException:
            file.discard()
            raise

    def at(self, uri: str) -> list[str]:
        """See `Files.at`."""
        path = _local(uri)
        if path.is_file():
            return [uri]
        return sorted(str(found) for found in path.rglob("*") if found.is_file())

    def delete(self, uris: Sequence[str]) -> None:
        """See `Files.delete`."""
        for uri in uris:
            with writing(uri):
                _local(uri).unlink(missing_ok=True)


class _LocalFile:
    def __init__(self, uri: str, path: Path) -> None:
        self.written, self.closed = 0, False
        self._uri, self._path = uri, path
        self._file = path.open("xb")

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if not self._file.closed:
            with writing(self._uri):
                self._file.write(data)
            self.written += size
        return size

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def settle(self) -> Path:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._path

    def discard(self) -> None:
        # Closing writes what is buffered, which fails again where the disk is full.
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class S3Files:
    """Objects of S3.

    Attributes:
        client: boto3's.
    """

    client: Any

    @contextlib.contextmanager
    def new_file(self, uri: str) -> Iterator[NewFile]:
        """See `Files.new_file`."""
        file = _Upload(self.client, uri)
        try:
            yield file
            file.complete()
        except BaseException:
            try:
                file.discard()
            except AwsError as error:
                # What went wrong first is what helps; a lifecycle rule removes the rest.
                logger.warning("%s: an unfinished upload could not be aborted: %s", uri, error)
            raise

    def at(self, uri: str) -> list[str]:
        """See `Files.at`; S3 has no folders, so a prefix with objects is one."""
        bucket, key = _bucket_and_key(uri)
        folder = f"{key.rstrip('/')}/" if key else ""
        with aws.translated("s3", uri):
            # Of the keys that begin with a key, that key itself is the first.
            first = self.client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
            if key and any(entry["Key"] == key for entry in first.get("Contents", ())):
                found = [uri]
            else:
                found = []
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=bucket, Prefix=folder):
                found += [f"s3://{bucket}/{entry['Key']}" for entry in page.get("Contents", ())]
        return found

    def delete(self, uris: Sequence[str]) -> None:
        """See `Files.delete`."""
        for start in range(0, len(uris), DELETED_AT_ONCE):
            some = [_bucket_and_key(uri) for uri in uris[start : start + DELETED_AT_ONCE]]
            with aws.translated("s3", uris[start]):
                answer = self.client.delete_objects(
                    Bucket=some[0][0],
                    Delete={"Objects": [{"Key": key} for _, key in some], "Quiet": True},
                )
            for refused in answer.get("Errors", ()):
                raise aws.aws_error(
                    refused["Code"],
                    refused.get("Message", ""),
                    service="s3",
                    operation="DeleteObjects",
                    resource=f"s3://{some[0][0]}/{refused['Key']}",
                )


class _Upload:
    """One PUT, or a multipart upload where there is more than `UPLOAD_BYTES`."""

    def __init__(self, client: Any, uri: str) -> None:
        self.written, self.closed = 0, False
        self._client, self._uri = client, uri
        bucket, key = _bucket_and_key(uri)
        self._to = {"Bucket": bucket, "Key": key}
        self._buffer = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._id: str | None = None
        self._over = False

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if not self._over:
            self._buffer += data
            self.written += size
            while len(self._buffer) >= UPLOAD_BYTES:
                self._send(bytes(self._buffer[:UPLOAD_BYTES]))
                del self._buffer[:UPLOAD_BYTES]
        return size

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def complete(self) -> None:
        if self._id is None:
            with aws.translated("s3", self._uri):
                self._client.put_object(**self._to, Body=bytes(self._buffer))
        else:
            if self._buffer:
                self._send(bytes(self._buffer))
            with aws.translated("s3", self._uri):
                self._client.complete_multipart_upload(
                    **self._to, UploadId=self._id, MultipartUpload={"Parts": self._parts}
                )
        self._over = True

    def discard(self) -> None:
        self._over = True
        if self._id is not None:
            with aws.translated("s3", self._uri):
                self._client.abort_multipart_upload(**self._to, UploadId=self._id)

    def _send(self, body: bytes) -> None:
        number = len(self._parts) + 1
        with aws.translated("s3", self._uri):
            if self._id is None:
                self._id = self._client.create_multipart_upload(**self._to)["UploadId"]
            sent = self._client.upload_part(
                **self._to, UploadId=self._id, PartNumber=number, Body=body
            )
        self._parts.append({"ETag": sent["ETag"], "PartNumber": number})


@contextlib.contextmanager
def writing(uri: str) -> Iterator[None]:
    """The system's errors as ours, with the file that could not be written.

    Raises:
        DestinationError: the disk refused.
    """
    try:
        yield
    except FeastDynamoError:
        raise
    except OSError as error:
        raise DestinationError(
            f"{uri} cannot be written: {error.strerror or error}. Nothing of it was kept. Check "
            "the folder's permissions and the free space of its disk, then run it again."
        ) from error


def _local(uri: str) -> Path:
    return Path(aws.scheme_and_path(uri)[1])


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = aws.scheme_and_path(uri)[1].partition("/")
    return bucket, key.lstrip("/")
