"""pyarrow's filesystem for files of S3, reached as boto3 reaches it.

Arrow's own S3 client reads: it fetches ranges in threads of its own, which through Python take one
lock a file. It is given boto3's certificates, proxy and credentials. These are asked for at each
opening of a file, and a scan opens a file for each row group: a read may last longer than a token.

Arrow checks a proxy's certificate against the system's certificates alone. Behind a proxy that
speaks TLS itself, files are read through boto3.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import fs

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from botocore.credentials import Credentials, ReadOnlyCredentials

    Build = Callable[[ReadOnlyCredentials], fs.S3FileSystem]
    Translated = Callable[[str, str], AbstractContextManager[None]]


class RenewedS3(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Files of S3, each opened with the credentials of that moment.

    Readers see Arrow's own files: nothing of a read passes through Python.
    """

    def __init__(self, credentials: Credentials, build: Build, translated: Translated) -> None:
        """The credentials are resolved here, once.

        Args:
            credentials: botocore's, which renew themselves.
            build: makes Arrow's filesystem, which keeps the credentials that it is given.
            translated: turns botocore's exceptions into ours, given service and resource.
        """
        self._credentials, self._build, self._translated = credentials, build, translated
        self._held: tuple[ReadOnlyCredentials, fs.S3FileSystem] | None = None
        # An error names the bucket here, and a role is assumed before anything is read.
        _ = self.now

    @property
    def now(self) -> fs.S3FileSystem:
        """Arrow's filesystem with credentials that are good now.

        Raises:
            CredentialsError: they cannot be renewed.
        """
        with self._translated("s3", "the credentials"):
            frozen = self._credentials.get_frozen_credentials()
        held = self._held
        if held is None or held[0] != frozen:
            # One assignment: another thread sees the old pair or the new one.
            held = self._held = (frozen, self._build(frozen))
        return held[1]

    def open_input_file(self, path: str) -> pa.NativeFile:
        """See pyarrow."""
        return self.now.open_input_file(path)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """See pyarrow."""
        return self.now.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """See pyarrow."""
        return self.now.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """See pyarrow."""
        return self.now.open_append_stream(path, metadata=metadata)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """See pyarrow."""
        found: list[fs.FileInfo] = self.now.get_file_info(paths)
        return found

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """See pyarrow."""
        found: list[fs.FileInfo] = self.now.get_file_info(selector)
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        """See pyarrow."""
        self.now.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        """See pyarrow."""
        self.now.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        """See pyarrow."""
        self.now.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        """See pyarrow."""
        self.now.delete_dir_contents("", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        """See pyarrow."""
        self.now.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        """See pyarrow."""
        self.now.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        """See pyarrow."""
        self.now.copy_file(src, dest)

    def get_type_name(self) -> str:
        """See pyarrow."""
        return "s3"

    def normalize_path(self, path: str) -> str:
        """See pyarrow."""
        return path


class S3ThroughBoto(RenewedS3):
    """The same, but files are read through boto3."""

    def __init__(
        self,
        credentials: Credentials,
        build: Build,
        translated: Translated,
        client: Any,
    ) -> None:
        """See `RenewedS3`; `client` is boto3's."""
        super().__init__(credentials, build, translated)
        self._client = client

    def open_input_file(self, path: str) -> pa.NativeFile:
        """See pyarrow."""
        return pa.PythonFile(_ObjectFile(self._client, path, self._translated), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """See pyarrow."""
        return self.open_input_file(path)


class _ObjectFile(io.RawIOBase):
    """An object of S3, read range by range."""

    def __init__(self, client: Any, path: str, translated: Translated) -> None:
        super().__init__()
        bucket, _, key = path.partition("/")
        self._client, self._object = client, {"Bucket": bucket, "Key": key}
        self._path, self._translated = path, translated
        with translated("s3", path):
            head = client.head_object(**self._object)
        self._size, self._at = int(head["ContentLength"]), 0
        # A file that is replaced meanwhile must not give half of the old and half of the new one.
        self._object["IfMatch"] = head["ETag"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size
        if size is not None and size >= 0:
            end = min(end, self._at + size)
        if self._at >= end:
            return b""
        with self._translated("s3", self._path):
            answer = self._client.get_object(**self._object, Range=f"bytes={self._at}-{end - 1}")
            data: bytes = answer["Body"].read()
        self._at += len(data)
        return data
