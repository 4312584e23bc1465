"""Replaces a source's pointer, and removes files: each at once, and never over another's work."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import AwsError, CompactionConflictError
from feast_dynamo_ext.parquet.pointer import FOLDER, POINTER, Current
from feast_dynamo_ext.storage import LocalFiles, S3Files, writing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feast_dynamo_ext.parquet.listing import Place
    from feast_dynamo_ext.storage import Files


CHANGED = {"PreconditionFailed", "ConditionalRequestConflict"}
"""What S3 answers where the pointer is not what it was: 412, and 409 where two come at once."""

MISSING = {"NoSuchKey", "404"}
LOCK = "lock"
KEYS_AT_ONCE = 1_000
"""Most that one DeleteObjects takes."""


@dataclass(frozen=True)
class Seen:
    """A pointer as it was read.

    Attributes:
        current: what it says; None where there is none.
        token: tells it from any other: its ETag on S3, its content on a local disk.
    """

    current: Current | None
    token: bytes | str | None

    @property
    def generation(self) -> str | None:
        """Name of the run that wrote it."""
        return self.current.generation if self.current else None


@dataclass(frozen=True)
class Folder:
    """A source's folder, to be changed.

    Attributes:
        place: where it is.
    """

    place: Place

    @property
    def root(self) -> str:
        """Path of the folder within its filesystem, without a slash at the end."""
        return self.place.root

    @property
    def filesystem(self) -> fs.FileSystem:
        """Where it is."""
        return self.place.filesystem

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def uri(self) -> str:
        """The folder as a destination is named: a local path or an s3:// URI."""
        return self.root if self.is_local else f"s3://{self.root}"

    @property
    def files(self) -> Files:
        """What writes files there."""
        return LocalFiles() if self.is_local else S3Files(self.place.s3)

    def generation_path(self, generation: str) -> str:
        """Path of a generation's folder, in this folder."""
        return f"{FOLDER}/{generation}"

    def seen(self) -> Seen:
        """The pointer as it is now.

        Raises:
            SourceReadError: it is corrupt.
            AwsError: S3 refused.
        """
        content, token = self._read_local() if self.is_local else self._read_s3()
        current = None if content is None else Current.from_json(content, f"{self.root}/{POINTER}")
        return Seen(current, token)

    def replace(self, seen: Seen, new: Current) -> None:
        """Put another pointer in the place of the one that was seen.

        Raises:
            CompactionConflictError: it is not that one any more; nothing was changed.
            AwsError: S3 refused.
            DestinationError: the disk did.
        """
        if self.is_local:
            with writing(f"{self.root}/{POINTER}"):
                self._replace_local(seen, new.to_json())
        else:
            self._replace_s3(seen, new.to_json())

    def remove(self, paths: Sequence[str]) -> None:
        """Delete files, by their paths in the folder.

        Raises:
            AwsError: S3 refused.
            OSError: the disk did.
        """
        if self.is_local:
            for path in paths:
                Path(self.root, path).unlink(missing_ok=True)
            self._remove_empty_folders()
            return
        with aws.translated("s3", self.root):
            for start in range(0, len(paths), KEYS_AT_ONCE):
                keys = [{"Key": self._key(path)} for path in paths[start : start + KEYS_AT_ONCE]]
                answer = self.place.s3.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True}
                )
                self._check_deleted(answer.get("Errors", []))

    def durable(self, paths: Sequence[str]) -> None:
        """See that files of a local disk outlive a power failure; S3's do."""
        if self.is_local:
            for path in paths:
                _sync(Path(self.root, path))

    @property
    def _bucket(self) -> str:
        return self.root.partition("/")[0]

    def _key(self, path: str) -> str:
        prefix = self.root.partition("/")[2]
        return f"{prefix}/{path}" if prefix else path

    def _read_s3(self) -> tuple[bytes | None, str | None]:
        try:
            with aws.translated("s3", f"{self.root}/{POINTER}"):
                answer = self.place.s3.get_object(Bucket=self._bucket, Key=self._key(POINTER))
                return answer["Body"].read(), answer["ETag"]
        except AwsError as error:
            if error.code in MISSING:
                return None, None
            raise

    def _replace_s3(self, seen: Seen, content: bytes) -> None:
        condition = {"IfMatch": seen.token} if seen.token else {"IfNoneMatch": "*"}
        try:
            with aws.translated("s3", f"{self.root}/{POINTER}"):
                self.place.s3.put_object(
                    Bucket=self._bucket,
                    Key=self._key(POINTER),
                    Body=content,
                    ContentType="application/json",
                    **condition,
                )
        except AwsError as error:
            if error.code in CHANGED:
                raise self._conflict() from error
            raise

    def _read_local(self) -> tuple[bytes | None, bytes | None]:
        try:
            content = Path(self.root, POINTER).read_bytes()
        except FileNotFoundError:
            return None, None
        return content, content

    def _replace_local(self, seen: Seen, content: bytes) -> None:
        pointer = Path(self.root, POINTER)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        with _locked(pointer.parent / LOCK):
            if self._read_local()[1] != seen.token:
                raise self._conflict()
            with LocalFiles().new_file(str(pointer)) as file:
                file.write(content)
            _sync(pointer.parent)

    def _remove_empty_folders(self) -> None:
        hidden = Path(self.root, FOLDER)
        for folder in sorted((p for p in hidden.rglob("*") if p.is_dir()), reverse=True):
            # Not empty, or another's: rmdir tells, and there is nothing to do about it.
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _conflict(self) -> CompactionConflictError:
        return CompactionConflictError(
            f"{self.root} was compacted by another run meanwhile; that one counts, and nothing "
            "was changed here. Run it again if there are new files to compact."
        )

    def _check_deleted(self, errors: list[dict[str, str]]) -> None:
        if errors:
            first = errors[0]
            raise aws.aws_error(
                first.get("Code", "Unknown"),
                f"{first.get('Message', '')} ({len(errors)} files were not deleted)",
                service="s3",
                operation="DeleteObjects",
                resource=f"{self._bucket}/{first.get('Key', '')}",
            )


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine; the system unlocks what a killed one had."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
