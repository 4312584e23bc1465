"""What a training set is made of and from: its manifest, and the check of its files against it.

The bytes of Arrow's own IPC stream would not do: they hold whatever lies under a null, the
dictionaries a column happens to have, padding, and rows beyond a slice. So each column is hashed
as its name, its type, and for each 65,536 rows which of them are valid and the values of those.
The result depends on what the rows and columns hold and on their order, and on nothing else: not
on chunks, slices, schema metadata, dictionary encoding or the version of pyarrow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import BYTES_TYPES, TEXT_TYPES, without_dictionary
from feast_dynamo_ext.aws import scheme_and_path
from feast_dynamo_ext.errors import DestinationError, FeastDynamoError, TrainingSetError
from feast_dynamo_ext.sagemaker.split import SPLITS, TimeSplit
from feast_dynamo_ext.storage import LocalFiles, files_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from hashlib import _Hash

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob
    from feast_dynamo_ext.storage import Files, NewFile


_ROWS = 65_536


def hash_table(table: pa.Table) -> str:
    """SHA-256, in hex, of a table's columns, types, values and order of rows."""
    digest = hashlib.sha256(f"rows {table.num_rows}\n".encode())
    for name, kind, column in zip(
        table.column_names, table.schema.types, table.columns, strict=True
    ):
        digest.update(f"{name!r} {without_dictionary(kind)}\n".encode())
        for start in range(0, table.num_rows, _ROWS):
            _update(digest, _contiguous(column.slice(start, _ROWS)))
    return digest.hexdigest()


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    # Chunks of a dictionary column have dictionaries of their own: decode before joining them.
    chunks = [
        chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
        for chunk in column.chunks
    ]
    return pa.concat_arrays(chunks)


def _update(digest: _Hash, array: pa.Array) -> None:
    kind = array.type
    if isinstance(kind, pa.ExtensionType):
        _update(digest, array.storage)
        return
    if pa.types.is_dictionary(kind):
        _update(digest, array.dictionary_decode())
        return
    digest.update(_bits(array.is_valid()))
    if not pa.types.is_null(kind):
        _update_values(digest, array.drop_null())


def _update_values(digest: _Hash, array: pa.Array) -> None:
    kind = array.type
    if pa.types.is_struct(kind):
        for child in array.flatten():
            _update(digest, child)
    elif pa.types.is_map(kind):
        _update_values(digest, array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    elif pa.types.is_nested(kind):
        digest.update(pc.list_value_length(array).cast(pa.int64()).to_numpy())
        _update(digest, array.flatten())
    elif pa.types.is_boolean(kind):
        digest.update(_bits(array))
    elif kind in (*TEXT_TYPES, *BYTES_TYPES):
        _update_bytes(digest, array.cast(pa.large_binary()))
    else:
        _update_fixed(digest, array)


def _bits(array: pa.BooleanArray) -> bytes:
    return np.packbits(array.to_numpy(zero_copy_only=False)).tobytes()


def _update_bytes(digest: _Hash, array: pa.LargeBinaryArray) -> None:
    digest.update(pc.binary_length(array).to_numpy())
    _, offsets, data = array.buffers()
    if len(array) and data is not None:
        ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        digest.update(memoryview(data)[ends[0] : ends[-1]])


def _update_fixed(digest: _Hash, array: pa.Array) -> None:
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    if len(array) and data is not None:
        start = array.offset * width
        digest.update(memoryview(data)[start : start + len(array) * width])


MANIFEST = "manifest.json"
FORMAT_VERSION = 1
LAYOUT_FOLDERS = (*SPLITS, "rows")

_LIBRARIES = ("feast-dynamo-ext", "feast", "pyarrow", "duckdb")


@dataclass(frozen=True)
class SourceFile:
    """A file that features were read from, as it was at that time.

    Attributes:
        path: S3 URI or local path.
        size: in bytes.
        etag: S3's ETag; None for a local file.
    """

    path: str
    size: int
    etag: str | None = None


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
class Provenance:
    """Where the rows of a training set come from.

    Attributes:
        project: Feast project.
        feature_refs: feature references as they were asked for, `view:feature`.
        view_definitions: SHA-256 of each feature view's definition, by its name.
        source_files: every file of the views' sources.
        entity_rows_sha256: `hash_table` of the entity rows.
        snapshots: of sources that are Iceberg tables the snapshot that was read, by the source.
    """

    project: str
    feature_refs: tuple[str, ...]
    view_definitions: Mapping[str, str]
    source_files: tuple[SourceFile, ...]
    entity_rows_sha256: str
    snapshots: Mapping[str, SourceSnapshot] = field(default_factory=dict)


def listed_files(source: ParquetSource) -> list[SourceFile]:
    """The files of a source, as they were listed, in the order of their rows' positions."""
    scheme = "s3://" if source.parts.place.is_on_s3 else ""
    return [SourceFile(f"{scheme}{file.path}", file.size, file.etag) for file in source.files]


def provenance_of(
    job: ParquetRetrievalJob,
    project: str,
    entity_rows: pa.Table,
    features: Sequence[str] | None = None,
) -> Provenance:
    """The provenance of a retrieval.

    Args:
        job: the retrieval, after it has run.
        project: Feast project.
        entity_rows: the entity rows, event time and label included.
        features: references of the requested features; None for all that the retrieval has.
    """
    files = {file for source in job.opened.values() for file in listed_files(source)}
    return Provenance(
        project=project,
        feature_refs=tuple(features or (job.metadata.features if job.metadata else ())),
        view_definitions={
            view.name: definition_hash(view) for view in [*job.views, *job.on_demand_feature_views]
        },
        source_files=tuple(sorted(files, key=lambda file: file.path)),
        entity_rows_sha256=hash_table(entity_rows),
        snapshots={
            name: SourceSnapshot(source.parts.table.name, source.parts.table.version)
            for name, source in job.opened.items()
            if source.parts.table is not None and source.parts.table.version
        },
    )


def definition_hash(view: Any) -> str:
    """SHA-256 of a view's definition: its schema, entities, source, ttl and transformation."""
    spec = view.to_proto().spec
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()


@dataclass(frozen=True)
class OutputFile:
    """A file of the training set; its path is relative to the training set's output."""

    path: str
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class LabelStatistics:
    """The label in one split.

    Attributes:
        count: labelled rows, which is all rows.
        mean: arithmetic mean, as float64.
        min: smallest value.
        max: largest value.
        values: rows per value where there are at most 20 distinct values, else None.
    """

    count: int
    mean: float
    min: float
    max: float
    values: Mapping[str, int] | None


@dataclass(frozen=True)
class SplitSummary:
    """The rows of one split: how many, first and last event time (ISO 8601, UTC), label."""

    rows: int
    first_event: str
    last_event: str
    label: LabelStatistics


@dataclass(frozen=True)
class Manifest:
    """A training set in full.

    Attributes:
        label: the label's column.
        event_timestamp: the event time's column.
        entity_columns: columns that identify the entity of a row.
        features: feature columns in the order of the files, after the label.
        types: Arrow type of label and features as written, by column.
        split: the split rule.
        splits: what came out of it, by split.
        files: every file of the training set, except the manifest.
        provenance: where the rows come from.
        libraries: version of each library that has a part in the result, by name.
    """

    label: str
    event_timestamp: str
    entity_columns: tuple[str, ...]
    features: tuple[str, ...]
    types: Mapping[str, str]
    split: TimeSplit
    splits: Mapping[str, SplitSummary]
    files: tuple[OutputFile, ...]
    provenance: Provenance
    libraries: Mapping[str, str]

    def to_json(self) -> str:
        """The text of `manifest.json`: the same for the same training set, byte for byte."""
        values = vars(self) | {
            "format_version": FORMAT_VERSION,
            "split": self.split.as_manifest(),
        }
        return (
            json.dumps(values, indent=2, sort_keys=True, allow_nan=False, default=_members) + "\n"
        )

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str) -> Manifest:
        """Read a manifest; `source` names it in errors.

        Raises:
            TrainingSetError: not a manifest, or of a format this version does not know.
        """
        try:
            values = json.loads(text)
            version = values.pop("format_version")
            if version == FORMAT_VERSION:
                return _manifest(values)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise TrainingSetError(
                f"{source} is not a training set's manifest: {type(error).__name__}: {error}. "
                "Write the training set again."
            ) from error
        raise TrainingSetError(
            f"{source} has format_version {version}; this version reads {FORMAT_VERSION}. "
            "Upgrade feast-dynamo-ext, or write the training set again."
        )


def _members(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else vars(value)


def _manifest(values: dict[str, Any]) -> Manifest:
    provenance = values["provenance"]
    return Manifest(
        label=values["label"],
        event_timestamp=values["event_timestamp"],
        entity_columns=tuple(values["entity_columns"]),
        features=tuple(values["features"]),
        types=values["types"],
        split=TimeSplit.from_manifest(values["split"]),
        splits={
            split: SplitSummary(**summary | {"label": LabelStatistics(**summary["label"])})
            for split, summary in values["splits"].items()
        },
        files=tuple(OutputFile(**file) for file in values["files"]),
        provenance=Provenance(
            project=provenance["project"],
            feature_refs=tuple(provenance["feature_refs"]),
            view_definitions=provenance["view_definitions"],
            source_files=tuple(SourceFile(**file) for file in provenance["source_files"]),
            entity_rows_sha256=provenance["entity_rows_sha256"],
            snapshots={
                name: SourceSnapshot(**found)
                for name, found in provenance.get("snapshots", {}).items()
            },
        ),
        libraries=values["libraries"],
    )


def library_versions() -> dict[str, str]:
    """Versions of what takes part in making a training set."""
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return versions | {"python": platform.python_version()}


@dataclass(frozen=True)
class OutputFolder:
    """Where a training set is kept; paths are relative to it, with forward slashes.

    Attributes:
        uri: `s3://bucket/prefix` or an absolute local path, without a slash at the end.
        storage: what lists, reads and writes files there.
    """

    uri: str
    storage: Files

    @contextlib.contextmanager
    def new_file(self, path: str) -> Iterator[NewFile]:
        """A file that appears where the block ends without error."""
        with _explained(self.uri_of(path)), self.storage.new_file(self.uri_of(path)) as file:
            yield file

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes, at most 1 MiB at a time.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with _explained(self.uri_of(path)):
            yield from self.storage.chunks(self.uri_of(path))

    def exists(self, path: str) -> bool:
        """Whether there is a file at the path."""
        with _explained(self.uri_of(path)):
            return self.storage.find(self.uri_of(path)) is not None

    def files(self) -> list[str]:
        """Paths of all files in the folders of a training set, sorted."""
        start = len(self.uri) + 1
        with _explained(self.uri):
            found = [uri for name in LAYOUT_FOLDERS for uri in self.storage.at(self.uri_of(name))]
        return sorted(uri[start:] for uri in found)

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files."""
        with _explained(self.uri):
            self.storage.delete([self.uri_of(path) for path in paths])

    def uri_of(self, path: str) -> str:
        """URI of a file."""
        return f"{self.uri}/{path}"


def open_folder(output: str, settings: AwsSettings) -> OutputFolder:
    """The folder of a URI or local path.

    Raises:
        TrainingSetError: the output is empty.
        ConfigError: neither S3 nor a local path.
    """
    if not output:
        raise TrainingSetError("`output` is empty. Name an s3://bucket/prefix or a local folder.")
    storage, path = files_of(output, settings), scheme_and_path(output)[1]
    if isinstance(storage, LocalFiles):
        return OutputFolder(str(Path(path).resolve()), storage)
    return OutputFolder(f"s3://{path.strip('/')}", storage)


@contextlib.contextmanager
def _explained(resource: str) -> Iterator[None]:
    try:
        yield
    except DestinationError as error:
        raise TrainingSetError(str(error)) from error
    except (FeastDynamoError, FileNotFoundError):
        raise
    except OSError as error:
        raise TrainingSetError(
            f"{resource}: {error}. Check the path, its permissions and the free space."
        ) from error


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


def load_manifest(output: str, aws: AwsSettings) -> Manifest:
    """Read the manifest of a training set.

    Args:
        output: `s3://bucket/prefix` or a local folder.
        aws: how to reach S3.

    Raises:
        TrainingSetError: there is no complete training set, or its manifest cannot be read.
        AwsError: S3 refused.
    """
    return read_manifest(open_folder(output, aws))


def read_manifest(folder: OutputFolder) -> Manifest:
    """As `load_manifest`, for a folder that is open."""
    try:
        text = b"".join(folder.chunks(MANIFEST))
    except FileNotFoundError as error:
        raise TrainingSetError(
            f"{folder.uri} has no {MANIFEST}: no training set was written there, or writing it "
            "was interrupted. Write it again."
        ) from error
    return Manifest.from_json(text, source=f"{folder.uri}/{MANIFEST}")


def verify(output: str, aws: AwsSettings) -> VerifyReport:
    """Recompute size and hash of every file of a training set.

    Raises:
        TrainingSetError: as `load_manifest`.
        AwsError: S3 refused.
    """
    folder = open_folder(output, aws)
    manifest = read_manifest(folder)
    found = set(folder.files())
    expected = {file.path: file for file in manifest.files}
    present = sorted(expected.keys() & found)
    return VerifyReport(
        checked=len(expected),
        missing=tuple(sorted(expected.keys() - found)),
        changed=tuple(path for path in present if not _matches(folder, expected[path])),
        unexpected=tuple(sorted(found - expected.keys())),
    )


def _matches(folder: OutputFolder, file: OutputFile) -> bool:
    digest, size = hashlib.sha256(), 0
    for chunk in folder.chunks(file.path):
        digest.update(chunk)
        size += len(chunk)
    return (size, digest.hexdigest()) == (file.bytes, file.sha256)
