"""What goes wrong while files are read, as one error that names the file."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    CredentialsError,
    FeastDynamoError,
    SourceReadError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feast_dynamo_ext.offline.sources.files import FileState, Place

# What S3 says of the caller, not of the file.
REFUSED = (AccessDeniedError, AwsUnavailableError, CredentialsError, ThrottledError)


@dataclass(frozen=True)
class ReadErrors:
    """Explains what Arrow raises.

    Attributes:
        place: where the files are.
        files: as they were listed.
        hint: says what else is known of a file, given its path.
    """

    place: Place
    files: tuple[FileState, ...]
    hint: Callable[[str], str] = lambda _: ""

    @contextlib.contextmanager
    def of_file(self, path: str) -> Iterator[None]:
        """Errors of reading a file as ours, which name it.

        Raises:
            SourceReadError: it cannot be read, or changed since it was listed.
            AwsError: S3 refused.
        """
        try:
            yield
        except FeastDynamoError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise self._explained(error, path) from error

    def check_unchanged(self) -> None:
        """Check that the files are what they were when they were listed.

        Raises:
            SourceReadError: one was replaced or removed; names it.
        """
        changed = self.place.changed(self.files) if self.files else None
        if changed is not None:
            raise self._changed(changed)

    def _explained(self, error: Exception, path: str) -> FeastDynamoError:
        refused = _refusal(error, path)
        if isinstance(refused, REFUSED):
            return refused
        files = [file for file in self.files if file.path == path]
        if files and self.place.changed(files):
            return self._changed(files[0])
        said = " ".join(str(error).split()).rstrip(".")
        return SourceReadError(
            f"{self.place.uri}: {path} cannot be read: {said}.{self.hint(path)} Check that it is "
            "Parquet, and whole; remove it, or write it again."
        )

    def _changed(self, file: FileState) -> SourceReadError:
        return SourceReadError(
            f"{self.place.uri}: {file.path} changed while it was being read: it was replaced or "
            "removed. Run it again; write new files beside the old ones instead of replacing them."
        )


def _refusal(error: Exception, path: str) -> AwsError | None:
    """What S3 said; None where it is not S3's error."""
    try:
        with aws.s3_translated(path):
            raise error
    except AwsError as refused:
        return refused
    except (pa.ArrowException, OSError):
        return None
