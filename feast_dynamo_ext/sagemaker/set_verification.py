"""Whether a training set is what its manifest says, and its sources are what they were.

`verify` reads every file again. `changed_sources` looks at what the set was made of: plain files
by size and ETag, those on a disk by their bytes, snapshots of Iceberg tables, and, where a feature
repo is at hand, definitions of feature views. A changed source says nothing against the set; it
can then not be built again as it was.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import scheme_and_path
from feast_dynamo_ext.errors import ConfigError, SourceNotFoundError
from feast_dynamo_ext.sagemaker.manifest import read_manifest
from feast_dynamo_ext.sagemaker.output_folder import MANIFEST, open_folder
from feast_dynamo_ext.sagemaker.provenance import definition_hash, file_sha256
from feast_dynamo_ext.storage import FileState, files_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.manifest import Manifest, OutputFile
    from feast_dynamo_ext.sagemaker.output_folder import OutputFolder
    from feast_dynamo_ext.sagemaker.provenance import Provenance, SourceFile


@dataclass(frozen=True)
class VerifyReport:
    """The files of a training set against its manifest, by path.

    Attributes:
        checked: number of files in the manifest.
        missing: in the manifest, but not there.
        changed: there, with another size or hash.
        unexpected: not in the manifest, but in a folder of the training set, where a SageMaker
            channel would read it as data.
    """

    checked: int
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the training set is what its manifest says."""
        return not (self.missing or self.changed or self.unexpected)


def verify(output: str, aws: AwsSettings) -> VerifyReport:
    """Recompute size and hash of every file of a training set.

    Args:
        output: `s3://bucket/prefix` or a local folder.
        aws: how to reach S3.

    Raises:
        TrainingSetError: as `load_manifest`.
        AwsError: S3 refused.
    """
    folder = open_folder(output, aws)
    manifest = read_manifest(folder)
    found = set(folder.files())
    expected = {file.path: file for file in manifest.files}
    present = sorted(expected.keys() & found)
    changed = [path for path in present if not file_matches(folder, expected[path])]
    # A text of version 1 may lack what later writers of that version put in.
    text = folder.manifest_text()
    if manifest.format_version > 1 and text != manifest.to_json().encode():
        changed.append(MANIFEST)
    return VerifyReport(
        checked=len(expected),
        missing=tuple(sorted(expected.keys() - found)),
        changed=tuple(changed),
        unexpected=tuple(sorted({*found, *folder.unreadable()} - expected.keys())),
    )


def file_matches(folder: OutputFolder, file: OutputFile) -> bool:
    """Whether a file of a set, which is there, is as it was written."""
    digest, size = hashlib.sha256(), 0
    for chunk in folder.chunks(file.path):
        digest.update(chunk)
        size += len(chunk)
    return (size, digest.hexdigest()) == (file.bytes, file.sha256)


# What it was made of


@dataclass(frozen=True)
class SourceChange:
    """A source that is not what it was when the set was built.

    Attributes:
        kind: `file`, `snapshot`, `definition` or `entity rows`.
        name: path of the file, source of the snapshot, or the view.
        words: what is different.
    """

    kind: str
    name: str
    words: str


def changed_sources(
    manifest: Manifest, aws: AwsSettings, store: FeatureStore | None = None
) -> tuple[SourceChange, ...]:
    """What is not as it was.

    Args:
        manifest: of the training set.
        aws: how to reach S3.
        store: the feature store; without one, snapshots and definitions are not looked at.

    Raises:
        AwsError: S3 refused.
        OfflineStoreError: a catalog cannot be read.
    """
    origin = manifest.provenance
    files = list(origin.source_files)
    found: list[SourceChange] = []
    if store is not None:
        found += _changed_definitions(origin, store)
        found += _gone_snapshots(origin, store)
    found += _changed_files(files, aws, "file")
    if origin.entity_rows is not None:
        found += _changed_files(list(origin.entity_rows.files), aws, "entity rows")
    return tuple(found)


def _changed_files(files: list[SourceFile], aws: AwsSettings, kind: str) -> Iterator[SourceChange]:
    by_place: dict[str, list[SourceFile]] = defaultdict(list)
    for file in files:
        scheme, path = scheme_and_path(file.path)
        by_place[f"s3://{path.partition('/')[0]}" if scheme else ""].append(file)
    for some in by_place.values():
        storage = files_of(some[0].path, aws)
        states = [FileState(scheme_and_path(file.path)[1], file.size, None) for file in some]
        now = storage.current(states)
        for file, state in zip(some, states, strict=True):
            words = _difference(file, now.get(state.path))
            if words:
                yield SourceChange(kind, file.path, words)


def _difference(file: SourceFile, now: FileState | None) -> str:
    if now is None:
        return "is gone"
    if now.size != file.size:
        return f"has {now.size:,} bytes, and had {file.size:,}"
    if file.etag is not None and now.etag != file.etag:
        return f"has the ETag {now.etag}, and had {file.etag}"
    if file.sha256 is not None and file_sha256(now.path) != file.sha256:
        return "has other bytes than it had"
    return ""


def _changed_definitions(origin: Provenance, store: FeatureStore) -> Iterator[SourceChange]:
    views = views_by_name(store)
    for name, recorded in origin.view_definitions.items():
        if name not in views:
            yield SourceChange("definition", name, "is not in the registry any more")
        elif definition_hash(views[name]) != recorded:
            yield SourceChange("definition", name, "has another definition in the registry")


def views_by_name(store: FeatureStore) -> dict[str, Any]:
    """All feature views of the registry, on-demand ones too."""
    views: Iterable[Any] = store.list_all_feature_views()
    return {view.name: view for view in views}


def _gone_snapshots(origin: Provenance, store: FeatureStore) -> Iterator[SourceChange]:
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
    from feast_dynamo_ext.parquet.iceberg.erase import erased_at

    sources = {
        view.batch_source.name: view.batch_source
        for view in views_by_name(store).values()
        if getattr(view, "batch_source", None) is not None
    }
    for name, read in origin.snapshots.items():
        if name not in sources:
            yield SourceChange("snapshot", name, "is not the source of a view any more")
            continue
        try:
            table = TableHandle.from_source(sources[name], store.config).load()
        except (SourceNotFoundError, ConfigError) as error:
            yield SourceChange("snapshot", name, f"cannot be opened: {error}")
            continue
        if table.snapshot_by_id(int(read.snapshot)) is None:
            erased = erased_at(table)
            why = (
                f"rows were erased from {read.table} at {erased}, with all versions that held "
                "them, and erasing somebody comes before building a set again"
                if erased
                else "it is expired"
            )
            yield SourceChange(
                "snapshot", name, f"has no snapshot {read.snapshot} any more: {why}"
            )
