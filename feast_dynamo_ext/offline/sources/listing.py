"""Which files a source had: path, size and ETag, for a training set's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feast_dynamo_ext.offline.sources.source import ParquetSource


@dataclass(frozen=True)
class ListedFile:
    """A file as it was found.

    Attributes:
        uri: S3 URI, or local path.
        size: bytes.
        etag: S3's ETag without quotes; None for a local file.
    """

    uri: str
    size: int
    etag: str | None


def listed_files(source: ParquetSource) -> list[ListedFile]:
    """The files of a source, as they were listed, in the order of their rows' positions."""
    scheme = "s3://" if source.parts.place.s3 is not None else ""
    return [ListedFile(f"{scheme}{file.path}", file.size, file.etag) for file in source.files]
