"""Which files a source has: a file, a folder or a glob, S3 or local, listed once.

On S3 one listing gives path, size, time and ETag of a thousand files a request. A glob is listed
from its longest fixed folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from feast_dynamo_ext.storage import FileState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from feast_dynamo_ext.aws import AwsSettings


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
        s3: the client that lists; None for local files.
    """

    uri: str
    filesystem: fs.FileSystem
    root: str
    pattern: re.Pattern[str] | None
    s3: Any = None

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
        s3 = aws.client("s3", settings) if on_s3 else None
        root = path
        at = re.search(r"[*?]", path)
        if at:
            root = path[: at.start()].rpartition("/")[0]
        return cls(uri, filesystem, root, _regex(path) if at else None, s3)

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
        if self.s3 is None:
            infos = self.filesystem.get_file_info([file.path for file in files])
            now = {info.path: (info.size, info.mtime_ns) for info in infos}
        else:
            # Of what is sorted, the first and the last say what all begin with.
            paths = min(file.path for file in files), max(file.path for file in files)
            prefix = paths[0][: next(_differing(*paths))]
            now = {file.path: file.version for file in self._objects(prefix)}
        return next((file for file in files if now.get(file.path) != file.version), None)

    def everything(self) -> Iterator[FileState]:
        """All files there, hidden ones too, in no order."""
        if self.s3 is None:
            yield from self._local()
            return
        # With the slash, so that `orders_old/` is not listed with `orders`.
        found = False
        for file in self._objects(f"{self.root}/"):
            found = True
            yield file
        if not found and self.pattern is None:
            yield from (file for file in self._objects(self.root, 1) if file.path == self.root)

    def _objects(self, prefix: str, most: int | None = None) -> Iterator[FileState]:
        bucket, _, keys = prefix.partition("/")
        request = {"Bucket": bucket, "Prefix": keys}
        with aws.translated("s3", self.uri):
            pages = self.s3.get_paginator("list_objects_v2").paginate(
                **request, PaginationConfig={"MaxItems": most, "PageSize": most}
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    if not entry["Key"].endswith("/"):  # a console's empty folder
                        yield self._state(
                            f"{bucket}/{entry['Key']}",
                            entry["Size"],
                            int(entry["LastModified"].timestamp()) * 10**9,
                            entry["ETag"].strip('"'),
                        )

    def _local(self) -> Iterator[FileState]:
        info = self.filesystem.get_file_info(self.root or "/")
        infos = [info]
        if info.type == fs.FileType.Directory:
            infos = self.filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
        for info in infos:
            if info.is_file:
                yield self._state(info.path, info.size, info.mtime_ns)

    def _state(
        self, path: str, size: int, mtime_ns: int | None, etag: str | None = None
    ) -> FileState:
        return FileState(path, size, mtime_ns, etag, partition_of(path, self.root))

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


def _differing(one: str, other: str) -> Iterator[int]:
    yield from (at for at, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1)
    yield min(len(one), len(other))


def _regex(path: str) -> re.Pattern[str]:
    """A glob as an expression; what it matches may be a folder, and then means all below it."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", path)
    meant = "".join(GLOB_PARTS.get(part, re.escape(part)) for part in parts)
    return re.compile(f"{meant}(?:/.*)?", re.DOTALL)
