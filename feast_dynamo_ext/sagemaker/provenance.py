"""Where the rows of a training set come from, read off the retrieval that made them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.sagemaker.manifest import Provenance, SourceFile, hash_table

if TYPE_CHECKING:
    import pyarrow as pa

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob


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
    scheme = "s3://" if source.parts.place.is_on_s3 else ""
    return [ListedFile(f"{scheme}{file.path}", file.size, file.etag) for file in source.files]


def provenance_of(job: ParquetRetrievalJob, project: str, entity_rows: pa.Table) -> Provenance:
    """The provenance of a retrieval.

    Args:
        job: the retrieval, after it has run.
        project: Feast project.
        entity_rows: the entity rows, event time and label included.

    Raises:
        AwsError: S3 does not allow to list a source's files.
    """
    files = {
        SourceFile(file.uri, file.size, file.etag)
        for source in job.opened.values()
        for file in listed_files(source)
    }
    return Provenance(
        project=project,
        feature_refs=tuple(job.metadata.features) if job.metadata else (),
        view_definitions={
            view.name: definition_hash(view) for view in [*job.views, *job.on_demand_feature_views]
        },
        source_files=tuple(sorted(files, key=lambda file: file.path)),
        entity_rows_sha256=hash_table(entity_rows),
    )


def definition_hash(view: Any) -> str:
    """SHA-256 of a view's definition: its schema, entities, source, ttl and transformation."""
    spec = view.to_proto().spec
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()
