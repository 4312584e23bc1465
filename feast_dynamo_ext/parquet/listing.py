"""Which files a source has: a file, a folder or a glob, S3 or local, listed once.

On S3 one listing gives path, size, time and ETag of a thousand files a request. A glob is listed
from its longest fixed folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import (
    FeastDynamoError,
    ResourceNotFoundError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.partitions import partition_of
from feast_dynamo_ext.parquet.pointer import POINTER, Current, visible
from feast_dynamo_ext.storage import FileState, files_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.storage import Files


HIDDEN = ("_", ".")  # _SUCCESS, _metadata, .crc and the like, by the convention of Hive and Spark

S3_SCHEMES = ("s3://", "s3a://", "s3n://")

GLOB_PARTS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class TableFiles:
    """One version of a table whose log says which files count.

    Attributes:
        files: these, by path.
        schema: names and types of all columns.
        partitions: names and types of those that the log says instead of the files.
    """

    files: tuple[FileState, ...]
    schema: pa.Schema
    partitions: dict[str, pa.DataType]


@dataclass(frozen=True)
class Place:
    """Where a source's files are.

    Attributes:
        uri: what the source names.
        filesystem: where it is.
        root: the path within it; of a glob, its longest fixed folder.
        pattern: which paths a glob means; None where it is none.
        storage: what lists, reads and writes files there.
    """

    uri: str
    filesystem: fs.FileSystem
    root: str
    pattern: re.Pattern[str] | None
    storage: Files

    @classmethod
    def from_uri(cls, uri: str, settings: AwsSettings) -> Place:
        """The place that a URI or a local path names.

        Raises:
            CredentialsError: s3:// and no credentials.
            ConfigError: no region, or a scheme that is neither s3 nor a file.
        """
        on_s3 = uri.startswith(S3_SCHEMES)
        path = uri.removeprefix("file://")
        path = uri.partition("://")[2] if on_s3 else str(Path(path).absolute())
        # Of an S3 URI only the bucket: a `?` or `#` in a key is no query and no fragment.
        bucket = path.partition("/")[0]
        filesystem, _ = aws.filesystem(f"s3://{bucket}" if on_s3 else uri, settings)
        path = path.rstrip("/")
        root = path
        at = re.search(r"[*?]", path)
        if at:
            root = path[: at.start()].rpartition("/")[0]
        pattern = _regex(path) if at else None
        return cls(
            uri, filesystem, root, pattern, files_of(f"s3://{bucket}" if on_s3 else root, settings)
        )

    @property
    def is_on_s3(self) -> bool:
        """Whether its files are objects of S3."""
        return not isinstance(self.filesystem, fs.LocalFileSystem)

    def files(self, source: str) -> tuple[FileState, ...]:
        """The files there without hidden ones; see `files_and_pointer`."""
        return self.files_and_pointer(source)[0]

    def files_and_pointer(self, source: str) -> tuple[tuple[FileState, ...], Current | None]:
        """The files there without hidden ones, in the order of their rows' positions.

        Args:
            source: the source's name, for messages.

        Returns:
            The files, by path; those of a compacted folder as its pointer says, and the pointer.

        Raises:
            SourceNotFoundError: no such file, folder or bucket, or no file in it.
            SourceReadError: a local folder cannot be listed, or a compacted one not be read whole.
            AccessDeniedError: AWS does not allow to list it.
        """
        try:
            found, current = self._visible()
        except ResourceNotFoundError as error:
            raise self._nothing(source) from error
        except FeastDynamoError:
            raise
        except OSError as error:
            raise SourceReadError(
                f"Source `{source}`: {self.uri} cannot be listed: {error}."
            ) from error
        if not found:
            raise self._nothing(source)
        return tuple(found), current

    def _visible(self) -> tuple[list[FileState], Current | None]:
        listed = list(self.everything())
        for file in listed:
            folder, is_pointer, _ = file.path.partition(f"/{POINTER}")
            if is_pointer and (self.pattern is not None or folder != self.root):
                raise SourceReadError(
                    f"{self.uri} takes in {folder}, which was compacted: its files alone are not "
                    "its rows. Make a source of that folder."
                )
        counting, current = visible(
            listed, self.root, self.filesystem, lambda: list(self.everything())
        )
        generation = {f"{self.root}/{file.path}" for file in current.files} if current else ()
        return [
            file for file in counting if file.path in generation or self._is_meant(file.path)
        ], current

    def changed(self, files: Sequence[FileState]) -> FileState | None:
        """The first of some files that is no more what it was when it was listed."""
        now = self.storage.current(files)
        return next(
            (
                file
                for file in files
                if file.path not in now or now[file.path].version != file.version
            ),
            None,
        )

    def everything(self) -> Iterator[FileState]:
        """All files there, hidden ones too, in no order."""
        root = f"s3://{self.root}" if self.is_on_s3 else self.root or "/"
        files = list(self.storage.below(root))
        if not files and self.pattern is None:
            file = self.storage.find(root)
            files = [file] if file else []
        for file in files:
            partition = partition_of(file.path, self.root)
            yield FileState(file.path, file.size, file.mtime_ns, file.etag, partition)

    def _is_meant(self, path: str) -> bool:
        if any(part.startswith(HIDDEN) for part in path[len(self.root) :].split("/")):
            return False
        return self.pattern is None or self.pattern.fullmatch(path) is not None

    def _nothing(self, source: str) -> SourceNotFoundError:
        return SourceNotFoundError(
            f"Source `{source}`: there is no file at {self.uri}. Check the path (a relative one "
            "counts from the feature repo), the bucket's name and region, or write the history "
            "first."
        )


def _regex(path: str) -> re.Pattern[str]:
    """A glob as an expression; what it matches may be a folder, and then means all below it."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", path)
    meant = "".join(GLOB_PARTS.get(part, re.escape(part)) for part in parts)
    return re.compile(f"{meant}(?:/.*)?", re.DOTALL)
