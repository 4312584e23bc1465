"""Makes a training set again from its manifest alone, and says whether it is the same.

Features are read from the snapshots that the manifest pins, plain files must be those of then, and
views must be defined as they were. Entity rows are read again where they were read from; those
that came from memory are in the set. Encodings are fitted again. Under equal versions of the
libraries the files are equal byte for byte, else the hashes of their content are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.encodings import Encoding
from feast_dynamo_ext.sagemaker.manifest import library_versions, load_manifest
from feast_dynamo_ext.sagemaker.output_folder import open_folder
from feast_dynamo_ext.sagemaker.provenance import ENTITY_ROWS
from feast_dynamo_ext.sagemaker.set_verification import changed_sources, file_matches
from feast_dynamo_ext.sagemaker.training_set import create_training_set

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

    from feast_dynamo_ext.sagemaker.manifest import Manifest
    from feast_dynamo_ext.sagemaker.set_verification import SourceChange


@dataclass(frozen=True)
class RebuildReport:
    """A set that was made again, against what it was.

    Attributes:
        output: of the set.
        rebuilt: where it was made again.
        same_bytes: whether all files, the manifest too, are equal byte for byte.
        same_content: whether labels, weights and features are equal, value by value and in order.
        different: paths of files that are not equal, or that only one of the two has.
        libraries: versions that are not those of then: name -> (then, now).
        same_entity_rows: whether the entity rows are those of then.
    """

    output: str
    rebuilt: str
    same_bytes: bool
    same_content: bool
    different: tuple[str, ...]
    libraries: dict[str, tuple[str | None, str | None]]
    same_entity_rows: bool

    @property
    def ok(self) -> bool:
        """Equal byte for byte, or in content where libraries are others."""
        return self.same_bytes or (self.same_content and bool(self.libraries))


def rebuild(
    store: FeatureStore, output: str, to: str, *, overwrite: bool = False
) -> RebuildReport:
    """Make a training set again.

    Args:
        store: the feature store that it was built with.
        output: where the set is.
        to: where it is made again, `s3://bucket/prefix` or a local folder.
        overwrite: replace the training set that is there.

    Raises:
        TrainingSetError: there is no training set; it does not say how to read its entity rows;
            its sources, views or feature service are not what they were: all of them are named;
            or `to` is taken.
        OfflineStoreError: the join is not possible any more.
        AwsError: S3 refused.
    """
    config: Any = store.config.offline_store
    aws = config.aws()
    if open_folder(output, aws).uri == open_folder(to, aws).uri:
        raise TrainingSetError(
            f"{to} is where the training set is. Choose another place, to compare the two."
        )
    manifest = load_manifest(output, aws)
    if manifest.provenance.entity_rows is None:
        raise TrainingSetError(
            f"{output} does not say how its entity rows are read again: it is of format version "
            f"{manifest.format_version}, or was written from a table. Build a new set."
        )
    _refuse_changed(changed_sources(manifest, aws, store), output)
    origin = manifest.provenance
    made = create_training_set(
        store,
        entity_rows=_entity_rows(output, manifest, store),
        features=_features(store, manifest, output),
        label=manifest.label,
        output=to,
        split=manifest.split,
        full_feature_names=origin.full_feature_names,
        overwrite=overwrite,
        parts=manifest.parts,
        snapshots={name: read.snapshot for name, read in origin.snapshots.items()},
        weight=manifest.weight,
        helpers=manifest.helpers,
        given_features=[
            column.name
            for column in manifest.columns
            if column.role == "feature" and column.source == "entity_rows"
        ],
        encodings={
            column.name: Encoding.model_validate(dict(column.declared))
            for column in manifest.columns
            if column.declared is not None and column.encoding is not None
        },
        target=manifest.target,
        formats=manifest.formats,
        name=manifest.name,
        definition=manifest.definition,
    )
    return _compared(output, manifest, made.output, made.manifest)


def _refuse_changed(changes: tuple[SourceChange, ...], output: str) -> None:
    named = [f"{change.kind} {change.name} {change.words}" for change in changes]
    if named:
        shown = "; ".join(named[:10]) + (f"; and {len(named) - 10} more" if named[10:] else "")
        raise TrainingSetError(
            f"{output} cannot be built again, as its sources are not what they were: {shown}. "
            "Restore them, or build a new set."
        )


def _features(store: FeatureStore, manifest: Manifest, output: str) -> list[str] | FeatureService:
    """The references; as the service that had them, where there is one."""
    origin = manifest.provenance
    if origin.feature_service is None:
        return list(origin.feature_refs)
    services = {service.name: service for service in store.list_feature_services()}
    service = services.get(origin.feature_service)
    if service is None:
        raise TrainingSetError(
            f"{output} cannot be built again: there is no feature service "
            f"`{origin.feature_service}` any more. Apply it again, or build a new set."
        )
    projections: list[Any] = service.feature_view_projections
    now = [
        f"{projection.name_to_use()}:{field.name}"
        for projection in projections
        for field in projection.features
    ]
    if now != list(origin.feature_refs):
        changed = sorted(set(now) ^ set(origin.feature_refs)) or ["their order"]
        raise TrainingSetError(
            f"{output} cannot be built again: the feature service `{origin.feature_service}` has "
            f"changed: {', '.join(changed)}. Apply it as it was, or build a new set."
        )
    return service


def _entity_rows(output: str, manifest: Manifest, store: FeatureStore) -> Any:
    """The entity rows as they can be read again."""
    rows = manifest.provenance.entity_rows
    if rows is None or rows.kind != "copy":
        return rows.text if rows is not None else None
    import pyarrow.parquet as pq

    from feast_dynamo_ext.aws import filesystem

    config: Any = store.config.offline_store
    folder = open_folder(output, config.aws())
    kept = next((file for file in manifest.files if file.path == ENTITY_ROWS), None)
    if kept is None or not folder.exists(ENTITY_ROWS) or not file_matches(folder, kept):
        raise TrainingSetError(
            f"{folder.uri_of(ENTITY_ROWS)}, the copy of the entity rows, is missing or not as it "
            "was written. Restore it, or build a new set."
        )
    system, path = filesystem(folder.uri_of(ENTITY_ROWS), config.aws())
    return pq.read_table(path, filesystem=system)


def _compared(output: str, was: Manifest, rebuilt: str, now: Manifest) -> RebuildReport:
    old = {file.path: file for file in was.files}
    new = {file.path: file for file in now.files}
    different = sorted(path for path in old.keys() | new if old.get(path) != new.get(path))
    versions, then = library_versions(), dict(was.libraries)
    libraries = {
        name: (then.get(name), versions.get(name))
        for name in sorted(then.keys() | versions)
        if then.get(name) != versions.get(name)
    }
    return RebuildReport(
        output,
        rebuilt,
        not different and was.to_json() == now.to_json(),
        was.content == now.content,
        tuple(different),
        libraries,
        was.provenance.entity_rows_sha256 == now.provenance.entity_rows_sha256,
    )
