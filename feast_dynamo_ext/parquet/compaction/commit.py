"""Replaces a source's pointer, and removes files: each at once, and never over another's work."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from feast_dynamo_ext.errors import CompactionConflictError
from feast_dynamo_ext.parquet.pointer import FOLDER, POINTER, Current

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_dynamo_ext.parquet.listing import Place
    from feast_dynamo_ext.storage import Files


@dataclass(frozen=True)
class Seen:
    """A pointer as it was read.

    Attributes:
        current: what it says; None where there is none.
        token: tells it from any other, see `Content`; None where there is none.
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
        """What reads and writes files there."""
        return self.place.storage

    def generation_path(self, generation: str) -> str:
        """Path of a generation's folder, in this folder."""
        return f"{FOLDER}/{generation}"

    def seen(self) -> Seen:
        """The pointer as it is now.

        Raises:
            SourceReadError: it is corrupt.
            AwsError: S3 refused.
        """
        found = self.files.read(self._uri_of(POINTER))
        if found is None:
            return Seen(None, None)
        return Seen(Current.from_json(found.data, f"{self.root}/{POINTER}"), found.token)

    def replace(self, seen: Seen, new: Current) -> None:
        """Put another pointer in the place of the one that was seen.

        Raises:
            CompactionConflictError: it is not that one any more; nothing was changed.
            AwsError: S3 refused.
            DestinationError: the disk did.
        """
        pointer, data = self._uri_of(POINTER), new.to_json()
        if not self.files.put_if(pointer, data, seen.token, "application/json"):
            raise CompactionConflictError(
                f"{self.root} was compacted by another run meanwhile; that one counts, and "
                "nothing was changed here. Run it again if there are new files to compact."
            )

    def remove(self, paths: Sequence[str]) -> None:
        """Delete files, by their paths in the folder.

        Raises:
            AwsError: S3 refused.
            DestinationError: the disk did.
        """
        self.files.delete([self._uri_of(path) for path in paths])
        if self.is_local:
            self._remove_empty_folders()

    def _uri_of(self, path: str) -> str:
        return f"{self.uri}/{path}"

    def _remove_empty_folders(self) -> None:
        hidden = Path(self.root, FOLDER)
        for folder in sorted((p for p in hidden.rglob("*") if p.is_dir()), reverse=True):
            # Not empty, or another's: rmdir tells, and there is nothing to do about it.
            with contextlib.suppress(OSError):
                folder.rmdir()
