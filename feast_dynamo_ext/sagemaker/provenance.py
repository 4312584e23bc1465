"""Where the rows of a training set come from, so that they can be read again and compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import scheme_and_path
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.content_hash import hash_table
from feast_dynamo_ext.storage import LocalFiles, files_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.inputs import Origin
    from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob

ENTITY_ROWS = "rows/entity_rows.parquet"
"""Where entity rows that came from memory are kept."""

_LOCAL = ("", "file")


@dataclass(frozen=True)
class SourceFile:
    """A file that features were read from, as it was at that time.

    Attributes:
        path: S3 URI or local path.
        size: in bytes.
        etag: S3's ETag; None for a local file.
        sha256: of a local file, which has no ETag; None where it was not kept.
    """

    path: str
    size: int
    etag: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class SourceSnapshot:
    """A snapshot of an Iceberg table that features were read from.

    Attributes:
        table: namespace and name in its catalog.
        snapshot: its id; a rebuild names it, and `feast-dynamo table expire` keeps it.
    """

    table: str
    snapshot: str


@dataclass(frozen=True)
class EntityRowsOrigin:
    """Where entity rows can be read again.

    Attributes:
        kind: `sql`, `path`, or `copy` where they came from memory.
        text: the statement, the path or URI, or the path of the copy below the set's output.
        files: of a path the files that were read.
    """

    kind: str
    text: str
    files: tuple[SourceFile, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """Where the rows of a training set come from.

    Attributes:
        project: Feast project.
        feature_refs: feature references as they were asked for, `view:feature`.
        view_definitions: SHA-256 of each feature view's definition, by its name.
        source_files: every file of the views' sources.
        entity_rows_sha256: `hash_table` of the entity rows.
        snapshots: of sources that are Iceberg tables the snapshot that was read, by the source.
        feature_service: name of the feature service, where the features are one's.
        full_feature_names: whether features are named `view__feature`.
        entity_rows: where the entity rows can be read again; None in sets of version 1.
    """

    project: str
    feature_refs: tuple[str, ...]
    view_definitions: Mapping[str, str]
    source_files: tuple[SourceFile, ...]
    entity_rows_sha256: str
    snapshots: Mapping[str, SourceSnapshot] = field(default_factory=dict)
    feature_service: str | None = None
    full_feature_names: bool = False
    entity_rows: EntityRowsOrigin | None = None


def listed_files(source: ParquetSource) -> list[SourceFile]:
    """The files of a source, as they were listed, in the order of their rows' positions."""
    scheme = "s3://" if source.parts.place.is_on_s3 else ""
    return [SourceFile(f"{scheme}{file.path}", file.size, file.etag) for file in source.files]


def file_sha256(path: str) -> str:
    """SHA-256 of a local file, in hex.

    Raises:
        TrainingSetError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for chunk in LocalFiles().chunks(path):
            digest.update(chunk)
    except OSError as error:
        raise TrainingSetError(
            f"{path}, which a training set is made of, cannot be read: {error.strerror or error}."
        ) from error
    return digest.hexdigest()


def _with_hashes(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    """In the order of their paths; those on a disk with their hashes."""
    return tuple(
        replace(file, sha256=file_sha256(scheme_and_path(file.path)[1]))
        if scheme_and_path(file.path)[0] in _LOCAL
        else file
        for file in sorted(files, key=lambda file: file.path)
    )


def provenance_of(
    job: ParquetRetrievalJob,
    project: str,
    entity_rows: pa.Table,
    features: Sequence[str] | None = None,
    *,
    feature_service: str | None = None,
    entity_rows_origin: EntityRowsOrigin | None = None,
) -> Provenance:
    """The provenance of a retrieval, which is run.

    Args:
        job: the retrieval.
        project: Feast project.
        entity_rows: the entity rows, event time and label included.
        features: references of the requested features; None for all that the retrieval has.
        feature_service: name of the service that has them.
        entity_rows_origin: where the entity rows can be read again.
    """
    job.result()
    files = {file for source in job.opened.values() for file in listed_files(source)}
    return Provenance(
        project=project,
        feature_refs=tuple(features or (job.metadata.features if job.metadata else ())),
        view_definitions={
            view.name: definition_hash(view)
            for view in [*job.views, *job.bases, *job.on_demand_feature_views]
        },
        source_files=_with_hashes(files),
        entity_rows_sha256=hash_table(entity_rows),
        snapshots={
            name: SourceSnapshot(source.parts.table.name, source.parts.table.version)
            for name, source in job.opened.items()
            if source.parts.table is not None and source.parts.table.version
        },
        feature_service=feature_service,
        full_feature_names=job.full_names,
        entity_rows=entity_rows_origin,
    )


def entities_origin(origin: Origin, settings: AwsSettings) -> EntityRowsOrigin:
    """Where a retrieval's entity rows can be read again: a copy, where they came from memory."""
    if origin.kind == "sql":
        return EntityRowsOrigin("sql", origin.text)
    if origin.kind != "files":
        return EntityRowsOrigin("copy", ENTITY_ROWS)
    files = files_of(origin.text, settings)
    one = files.find(origin.text)
    found = [one] if one is not None else files.below(origin.text)
    scheme = "" if isinstance(files, LocalFiles) else "s3://"
    listed = [SourceFile(f"{scheme}{file.path}", file.size, file.etag) for file in found]
    return EntityRowsOrigin("path", origin.text, _with_hashes(listed))


def definition_hash(view: Any) -> str:
    """SHA-256 of a view's definition: its schema, entities, source, ttl and transformation."""
    spec = view.to_proto().spec
    # Feast writes times into sources: of the last apply, which may change nothing else, and into
    # those of an on-demand view the time at which it is read.
    _without_times(spec)
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()


def _without_times(message: Any) -> None:
    for field_of, value in message.ListFields():
        if field_of.name == "meta":
            message.ClearField("meta")
        elif hasattr(value, "ListFields"):
            _without_times(value)
        elif field_of.message_type is not None:  # several, or by name
            for each in value.values() if hasattr(value, "values") else value:
                if hasattr(each, "ListFields"):
                    _without_times(each)
