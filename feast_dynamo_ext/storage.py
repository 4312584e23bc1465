"""Files on S3 or a disk: list, read, write whole or not at all, replace if unchanged, delete.

S3 is written through boto3, not through pyarrow: pyarrow's streams complete an upload when they
are closed, also where writing failed, and have no way to give it up.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pyarrow import fs

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import (
    AwsError,
    AwsUnavailableError,
    ConfigError,
    DestinationError,
    DestinationExistsError,
    FeastDynamoError,
    ResourceNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from feast import RepoConfig

    from feast_dynamo_ext.aws import AwsSettings


logger = logging.getLogger(__name__)

UPLOAD_BYTES = 8 << 20
"""Of one part of a multipart upload. S3 takes at least 5 MiB, but for the last."""

PARTS_OF_A_SIZE = 1_000
"""Parts after which their size doubles: S3 takes 10,000 of an object, which so reach its 5 TiB."""

PARTS_AT_ONCE = 4
DELETED_AT_ONCE = 1_000
"""Keys in one DeleteObjects, S3's limit."""

READ_BYTES = 1 << 20

CHANGED = {"PreconditionFailed", "ConditionalRequestConflict"}
"""What S3 answers where a file is not what it was: 412, and 409 where two writers come at once."""


class FileReplacedError(DestinationError):
    """Another writer replaced a file that was being rewritten."""


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

    @property
    def is_of_log(self) -> bool:
        """Whether a table's log named it, which says nothing else of it than its size."""
        return self.etag is None and self.mtime_ns is None


class NewFile(Protocol):
    """A file that is being written, as the writers of Parquet and CSV use it."""

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
    """What can be done with files. They are named by URI or local path.

    All methods raise AwsError where S3 refuses. Where a local disk does, those that change
    something raise DestinationError, and those that read OSError.
    """

    def new_file(
        self, uri: str, content_type: str | None = None, *, replaces: bool = True
    ) -> AbstractContextManager[NewFile]:
        """A file that appears, or replaces what is there, where the block ends without error.

        Args:
            uri: its name.
            content_type: of an object of S3.
            replaces: whether it may take the place of another.

        Raises:
            DestinationExistsError: there is one and it may not; it stays as it is.
        """
        ...

    def below(self, folder: str) -> Iterator[FileState]:
        """All files in a folder and in the folders below it, hidden ones too, in no order."""
        ...

    def find(self, uri: str) -> FileState | None:
        """The file of that name."""
        ...

    def at(self, uri: str) -> list[str]:
        """The file of that name, or all files in the folder of that name and below, in order."""
        ...

    def current(self, files: Sequence[FileState]) -> dict[str, FileState]:
        """What some files are now, by path; those that are gone are left out."""
        ...

    def chunks(self, uri: str) -> Iterator[bytes]:
        """A file's bytes, at most 1 MiB at a time.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def read(self, uri: str) -> bytes | None:
        """A small file in one piece; None where there is none."""
        ...

    def create(self, uri: str, data: bytes) -> None:
        """Write a small file, unless there is one of that name: of several writers one succeeds.

        Raises:
            DestinationExistsError: there is one; it stays as it is.
        """
        ...

    def swap(self, uri: str, old: bytes, new: bytes) -> None:
        """Write a small file in the place of one that holds `old`: of several writers one does.

        Raises:
            FileReplacedError: it holds something else, or there is none; it stays as it is.
        """
        ...

    def rewriting(self, uri: str) -> AbstractContextManager[tuple[FileState, NewFile]]:
        """A file and what takes its place where the block ends without error.

        Raises:
            FileNotFoundError: there is no such file.
            FileReplacedError: it is not what it was when the block began; it stays as it is.
        """
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
        raise ConfigError(
            f"`{uri}`: only s3:// URIs and local paths can be read and written, not {scheme}://."
        )
    return S3Files(aws.client("s3", settings))


def settings_of(data_source: Any, config: RepoConfig) -> AwsSettings:
    """How a data source's S3 is reached: its own endpoint, if it has one, comes first."""
    settings: AwsSettings = config.offline_store.aws()
    override = getattr(data_source, "s3_endpoint_override", None)
    return replace(settings, endpoint_url=override) if override else settings


def discard(files: Files, uris: Sequence[str]) -> None:
    """Delete what a write that failed has left; what cannot be deleted is logged.

    Another error is on its way to the caller, and is the one that helps.
    """
    try:
        files.delete(uris)
    except FeastDynamoError as error:
        logger.warning("%d files of a write that failed are left: %s", len(uris), error)


# Local disks


@dataclass(frozen=True)
class LocalFiles:
    """Files on a local disk; see `Files`."""

    @contextlib.contextmanager
    def new_file(
        self,
        uri: str,
        content_type: str | None = None,  # noqa: ARG002
        *,
        replaces: bool = True,
    ) -> Iterator[NewFile]:
        """A file under a hidden name, which is renamed where the block ends without error."""
        path = _local(uri)
        with _refusals(uri, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Readers pass over hidden names, so what a killed writer leaves is never read.
            file = _LocalFile(uri, path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp"))
        try:
            yield file
            with _refusals(uri, "written"):
                if replaces:
                    file.settle().replace(path)
                else:
                    _link(file.settle(), path, uri)
                _sync(path.parent)
        except BaseException:
            file.discard()
            raise

    def below(self, folder: str) -> Iterator[FileState]:
        """See `Files.below`."""
        disk, path = fs.LocalFileSystem(), str(_local(folder))
        if disk.get_file_info(path).type == fs.FileType.Directory:
            for info in disk.get_file_info(fs.FileSelector(path, recursive=True)):
                if info.is_file:
                    yield _state_of(info)

    def find(self, uri: str) -> FileState | None:
        """See `Files.find`."""
        info = fs.LocalFileSystem().get_file_info(str(_local(uri)))
        return _state_of(info) if info.is_file else None

    def at(self, uri: str) -> list[str]:
        """See `Files.at`."""
        if self.find(uri):
            return [uri]
        return sorted(file.path for file in self.below(uri))

    def current(self, files: Sequence[FileState]) -> dict[str, FileState]:
        """See `Files.current`."""
        infos = fs.LocalFileSystem().get_file_info([file.path for file in files])
        return {info.path: _state_of(info) for info in infos if info.is_file}

    def chunks(self, uri: str) -> Iterator[bytes]:
        """See `Files.chunks`."""
        with _local(uri).open("rb") as file:
            while chunk := file.read(READ_BYTES):
                yield chunk

    def read(self, uri: str) -> bytes | None:
        """See `Files.read`."""
        try:
            return _local(uri).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, uri: str, data: bytes) -> None:
        """See `Files.create`: a link to a name that exists is refused by the system."""
        with self.new_file(uri, replaces=False) as file:
            file.write(data)

    def swap(self, uri: str, old: bytes, new: bytes) -> None:
        """See `Files.swap`: writers take turns by a lock on the file that is replaced."""
        import fcntl

        path = _local(uri)
        with _refusals(uri, "written"), contextlib.ExitStack() as stack:
            try:
                opened = open_plain(path, os.O_RDWR)
            except FileNotFoundError as error:
                raise _replaced(uri) from error
            file = stack.enter_context(open(opened, "r+b"))  # noqa: PTH123 - it is opened already
            fcntl.flock(file, fcntl.LOCK_EX)
            # Another writer may have had the lock before, and put another file there.
            is_there = path.exists() and os.path.samestat(path.stat(), os.fstat(opened))
            if not is_there or file.read() != old:
                raise _replaced(uri)
            with self.new_file(uri) as written:
                written.write(new)

    @contextlib.contextmanager
    def rewriting(self, uri: str) -> Iterator[tuple[FileState, NewFile]]:
        """See `Files.rewriting`; writers of one file take turns."""
        path = _local(uri)
        with _refusals(uri, "written"):
            turn = contextlib.ExitStack()
            turn.enter_context(_locked(path.with_name(f".{path.name}.lock")))
        with turn:
            seen = _found(self.find(uri), uri)
            with self.new_file(uri) as file:
                yield seen, file
                _check_same(self.find(uri), seen, uri)  # others know nothing of our lock

    def delete(self, uris: Sequence[str]) -> None:
        """See `Files.delete`."""
        for uri in uris:
            with _refusals(uri, "deleted"):
                _local(uri).unlink(missing_ok=True)


class _LocalFile:
    def __init__(self, uri: str, path: Path) -> None:
        self.written, self.closed = 0, False
        self._uri, self._path = uri, path
        self._file = path.open("xb")

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if not self._file.closed:
            with _refusals(self._uri, "written"):
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


def _link(made: Path, path: Path, uri: str) -> None:
    """Give a file its name, which the system refuses where there is one of that name."""
    try:
        os.link(made, path)
    except FileExistsError as error:
        raise _taken(uri) from error
    made.unlink()


@contextlib.contextmanager
def _refusals(uri: str, what: str) -> Iterator[None]:
    """The system's errors as ours, with the file that could not be written or deleted.

    Raises:
        DestinationError: the disk refused.
    """
    try:
        yield
    except FeastDynamoError:
        raise
    except OSError as error:
        kept = " Nothing of it was kept." if what == "written" else ""
        raise DestinationError(
            f"{uri} cannot be {what}: {error.strerror or error}.{kept} Check the folder's "
            "permissions and the free space of its disk, then run it again."
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine; the system unlocks what a killed one had."""
    import fcntl

    opened = open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def open_plain(path: Path, flags: int) -> int:
    """Open a file where others may have put something: no link, and nothing that blocks.

    Raises:
        OSError: it is a link, a FIFO or the like.
    """
    opened = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return opened


def _sync(folder: Path) -> None:
    """See that the names in a folder outlive a power failure."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _state_of(info: fs.FileInfo) -> FileState:
    return FileState(info.path, info.size, info.mtime_ns)


def _found(file: FileState | None, uri: str) -> FileState:
    if file is None:
        raise FileNotFoundError(f"there is no file at {uri}")
    return file


def _check_same(now: FileState | None, seen: FileState, uri: str) -> None:
    if now is None or now.version != seen.version:
        raise _replaced(uri)


def _taken(uri: str) -> DestinationExistsError:
    return DestinationExistsError(
        f"{uri} was written by another process meanwhile, and is left as it is."
    )


def _replaced(uri: str) -> FileReplacedError:
    return FileReplacedError(
        f"{uri} was replaced or removed by another writer while it was being rewritten, and is "
        "left as that writer made it. Run it again."
    )


def _local(uri: str) -> Path:
    return Path(aws.scheme_and_path(uri)[1])


# S3


@dataclass(frozen=True)
class S3Files:
    """Objects of S3; see `Files`.

    Attributes:
        client: boto3's.
        part_bytes: of the first parts of an upload.
    """

    client: Any
    part_bytes: int = UPLOAD_BYTES

    @contextlib.contextmanager
    def new_file(
        self, uri: str, content_type: str | None = None, *, replaces: bool = True
    ) -> Iterator[NewFile]:
        """An upload that is completed, or aborted where the block ends with an error."""
        condition = {} if replaces else {"IfNoneMatch": "*"}
        file = _Upload(self.client, uri, content_type, self.part_bytes, condition)
        try:
            yield file
            try:
                file.complete()
            except AwsError as error:
                if not replaces and error.code in CHANGED:
                    raise _taken(uri) from error
                raise
        except BaseException:
            file.discard()
            raise

    def below(self, folder: str) -> Iterator[FileState]:
        """See `Files.below`; S3 has no folders, so a prefix with objects is one."""
        bucket, key = _bucket_and_key(folder)
        # With the slash, so that `orders_old/` is not listed with `orders`.
        return self._objects(folder, bucket, f"{key.rstrip('/')}/" if key else "")

    def find(self, uri: str) -> FileState | None:
        """See `Files.find`."""
        bucket, key = _bucket_and_key(uri)
        # Of the keys that begin with a key, that key itself is the first. Unlike HeadObject, this
        # needs no other permission than to list.
        first = next(self._objects(uri, bucket, key, most=1), None) if key else None
        return first if first and first.path == f"{bucket}/{key}" else None

    def at(self, uri: str) -> list[str]:
        """See `Files.at`."""
        found = [uri] if self.find(uri) else []
        return found + [f"s3://{file.path}" for file in self.below(uri)]

    def current(self, files: Sequence[FileState]) -> dict[str, FileState]:
        """See `Files.current`: one listing of what their paths begin with."""
        paths = [file.path for file in files]
        # Character by character, as S3 compares its prefixes.
        common = os.path.commonprefix(paths)  # noqa: RUF071
        bucket, _, prefix = common.partition("/")
        return {file.path: file for file in self._objects(f"s3://{bucket}", bucket, prefix)}

    def chunks(self, uri: str) -> Iterator[bytes]:
        """See `Files.chunks`; a download that breaks off goes on where it was."""
        bucket, key = _bucket_and_key(uri)
        request: dict[str, Any] = {"Bucket": bucket, "Key": key}
        done = 0
        while True:
            before = done
            try:
                with aws.translated("s3", uri):
                    answer = self.client.get_object(**request)
                    for chunk in answer["Body"].iter_chunks(READ_BYTES):
                        done += len(chunk)
                        yield chunk
            except ResourceNotFoundError as error:
                raise FileNotFoundError(str(error)) from error
            except AwsUnavailableError:
                if done == before:
                    raise
                request |= {"Range": f"bytes={done}-", "IfMatch": answer["ETag"]}
            else:
                return

    def read(self, uri: str) -> bytes | None:
        """See `Files.read`."""
        bucket, key = _bucket_and_key(uri)
        try:
            with aws.translated("s3", uri):
                answer = self.client.get_object(Bucket=bucket, Key=key)
                return bytes(answer["Body"].read())
        except ResourceNotFoundError as error:
            if error.code == "NoSuchBucket":
                raise
            return None

    def create(self, uri: str, data: bytes) -> None:
        """See `Files.create`: S3 refuses a name that exists."""
        with self.new_file(uri, replaces=False) as file:
            file.write(data)

    def swap(self, uri: str, old: bytes, new: bytes) -> None:
        """See `Files.swap`: S3 compares the ETag of what was read."""
        bucket, key = _bucket_and_key(uri)
        try:
            with aws.translated("s3", uri):
                answer = self.client.get_object(Bucket=bucket, Key=key)
                if answer["Body"].read() != old:
                    raise _replaced(uri)
                self.client.put_object(Bucket=bucket, Key=key, Body=new, IfMatch=answer["ETag"])
        except AwsError as error:
            if not (error.code in CHANGED or isinstance(error, ResourceNotFoundError)):
                raise
            # A request whose answer was lost is sent again, and then finds what it wrote.
            if self.read(uri) != new:
                raise _replaced(uri) from error

    @contextlib.contextmanager
    def rewriting(self, uri: str) -> Iterator[tuple[FileState, NewFile]]:
        """See `Files.rewriting`: S3 compares the ETag when the new object is complete."""
        seen = _found(self.find(uri), uri)
        file = _Upload(self.client, uri, None, self.part_bytes, {"IfMatch": f'"{seen.etag}"'})
        try:
            yield seen, file
            # Early, before the last parts are sent; and some servers compare no ETag of uploads.
            _check_same(self.find(uri), seen, uri)
            file.complete()
        except AwsError as error:
            file.discard()
            # 404: it was removed.
            if error.code in CHANGED or isinstance(error, ResourceNotFoundError):
                raise _replaced(uri) from error
            raise
        except BaseException:
            file.discard()
            raise

    def delete(self, uris: Sequence[str]) -> None:
        """See `Files.delete`."""
        for start in range(0, len(uris), DELETED_AT_ONCE):
            some = [_bucket_and_key(uri) for uri in uris[start : start + DELETED_AT_ONCE]]
            with aws.translated("s3", uris[start]):
                answer = self.client.delete_objects(
                    Bucket=some[0][0],
                    Delete={"Objects": [{"Key": key} for _, key in some], "Quiet": True},
                )
            refused = answer.get("Errors")
            if refused:
                first, count = refused[0], len(refused)
                raise aws.aws_error(
                    first.get("Code", "Unknown"),
                    f"{first.get('Message', 'no message')} ({count} files were not deleted)",
                    service="s3",
                    operation="DeleteObjects",
                    resource=f"s3://{some[0][0]}/{first.get('Key', '')}",
                )

    def _objects(
        self, uri: str, bucket: str, prefix: str, most: int | None = None
    ) -> Iterator[FileState]:
        with aws.translated("s3", uri):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket,
                Prefix=prefix,
                PaginationConfig={"MaxItems": most, "PageSize": most},
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    if not entry["Key"].endswith("/"):  # a console's empty folder
                        yield FileState(
                            f"{bucket}/{entry['Key']}",
                            entry["Size"],
                            int(entry["LastModified"].timestamp()) * 10**9,
                            entry["ETag"].strip('"'),
                        )


class _Upload:
    """One PUT, or a multipart upload where there is more than one part of bytes.

    Parts are sent in the background; `PARTS_AT_ONCE` + 1 of them are in memory at most.
    """

    def __init__(
        self,
        client: Any,
        uri: str,
        content_type: str | None,
        part_bytes: int,
        condition: Mapping[str, str] | None = None,
    ) -> None:
        self.written, self.closed = 0, False
        self._client, self._uri = client, uri
        bucket, key = _bucket_and_key(uri)
        self._object = {"Bucket": bucket, "Key": key}
        self._content_type = _typed(content_type)
        self._condition = dict(condition or {})
        self._first_bytes = part_bytes
        self._buffer = bytearray()
        self._id: str | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._under_way: collections.deque[tuple[int, Future[str]]] = collections.deque()
        self._parts: list[dict[str, Any]] = []
        self._sent = 0
        self._failed: BaseException | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        # A writer that is closed after an error still writes its footer.
        if self._failed is None:
            self._buffer += data
            self.written += size
            while len(self._buffer) >= self._part_bytes:
                end = self._part_bytes
                self._send(bytes(self._buffer[:end]))
                del self._buffer[:end]
        return size

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def complete(self) -> None:
        if self._failed is not None:  # which Arrow's destructors keep to themselves
            raise self._failed
        if self._id is None:
            with aws.translated("s3", self._uri):
                self._client.put_object(
                    **self._object,
                    **self._content_type,
                    **self._condition,
                    Body=bytes(self._buffer),
                )
            return
        if self._buffer:
            self._send(bytes(self._buffer))
        while self._under_way:
            self._settle()
        self._end_threads()
        with aws.translated("s3", self._uri):
            self._client.complete_multipart_upload(
                **self._object,
                **self._condition,
                UploadId=self._id,
                MultipartUpload={"Parts": self._parts},
            )

    def discard(self) -> None:
        self._failed = self._failed or RuntimeError("the upload was given up")
        # A part that arrives after the abort would stay, and be charged.
        self._end_threads()
        if self._id is None:
            return
        try:
            with aws.translated("s3", self._uri):
                self._client.abort_multipart_upload(**self._object, UploadId=self._id)
        except AwsError as error:
            # What went wrong first is what helps; a lifecycle rule removes the rest.
            logger.warning(
                "%s: an unfinished upload could not be aborted, and its parts are charged: %s",
                self._uri,
                error,
            )

    @property
    def _part_bytes(self) -> int:
        return self._first_bytes << self._sent // PARTS_OF_A_SIZE

    def _send(self, part: bytes) -> None:
        try:
            if self._threads is None:
                with aws.translated("s3", self._uri):
                    self._id = self._client.create_multipart_upload(
                        **self._object, **self._content_type
                    )["UploadId"]
                self._threads = ThreadPoolExecutor(PARTS_AT_ONCE, "feast-dynamo-upload")
            self._sent += 1
            self._under_way.append((self._sent, self._threads.submit(self._put, self._sent, part)))
            while len(self._under_way) > PARTS_AT_ONCE:
                self._settle()
        except BaseException as error:
            self._failed = error
            raise

    def _put(self, number: int, part: bytes) -> str:
        with aws.translated("s3", self._uri):
            answer = self._client.upload_part(
                **self._object, UploadId=self._id, PartNumber=number, Body=part
            )
        return str(answer["ETag"])

    def _settle(self) -> None:
        number, future = self._under_way.popleft()
        self._parts.append({"PartNumber": number, "ETag": future.result()})

    def _end_threads(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


def _typed(content_type: str | None) -> dict[str, str]:
    return {"ContentType": content_type} if content_type else {}


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = aws.scheme_and_path(uri)[1].partition("/")
    return bucket, key.lstrip("/")
