"""Where the rows of a training set come from, read off the retrieval that made them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.offline.sources.listing import listed_files
from feast_dynamo_ext.sagemaker.manifest import Provenance, SourceFile
from feast_dynamo_ext.sagemaker.table_hash import hash_table

if TYPE_CHECKING:
    import pyarrow as pa

    from feast_dynamo_ext.offline.retrieval.job import ParquetRetrievalJob


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
