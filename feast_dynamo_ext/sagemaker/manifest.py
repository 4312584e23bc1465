"""What a training set is made of and from: its manifest."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.encodings import FittedEncoding
from feast_dynamo_ext.sagemaker.output_folder import MANIFEST, open_folder
from feast_dynamo_ext.sagemaker.provenance import (
    EntityRowsOrigin,
    Provenance,
    SourceFile,
    SourceSnapshot,
)
from feast_dynamo_ext.sagemaker.split import split_from_manifest

if TYPE_CHECKING:
    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.output_folder import OutputFolder
    from feast_dynamo_ext.sagemaker.split import SplitRule


FORMAT_VERSION = 2
SEAL = "manifest_sha256"
"""Of the manifest's own text without it, so that a change of the manifest shows."""

_LIBRARIES = ("feast-dynamo-ext", "feast", "pyarrow", "duckdb")


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
class ColumnSummary:
    """A column of the join, and what became of it.

    Attributes:
        name: of the join's column.
        role: `label`, `weight`, `entity`, `event_time`, `helper` or `feature`.
        type: Arrow type of it in the join, as text.
        encoding: how label, weight and features are written; None of the others, which `rows/`
            holds as they are.
        nulls: rows without a value (NaN counts), by split.
        source: `entity_rows`, or `features` of what the feature store looked up.
        declared: the encoding as it was declared, of JSON's own types, so that a rebuild fits it
            again; None where none was.
    """

    name: str
    role: str
    type: str
    encoding: FittedEncoding | None = None
    nulls: Mapping[str, int] = field(default_factory=dict)
    source: str = "features"
    declared: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """A training set in full.

    Attributes:
        label: the label's column.
        event_timestamp: the event time's column.
        entity_columns: columns that identify the entity of a row.
        features: feature columns of the join, in the order in which they are encoded.
        columns: every column of the join that has a part in the set: label and weight, the
            features in order, then the others.
        split: the split rule.
        splits: what came out of it, by split.
        files: every file of the training set, except the manifest.
        provenance: where the rows come from.
        libraries: version of each library that has a part in the result, by name.
        weight: column of the rows' weights, if any.
        helpers: columns that are kept beside, and never trained on.
        target: what the files are for: `xgboost`, `lightgbm`, `autogluon`, `linear-learner` or
            `script`; None for no algorithm in particular.
        formats: formats in which each split was written.
        parts: files of each split and format.
        name: of the declared set; None for one that was not declared.
        definition: the declaration, of JSON's own types; None for one that was not declared.
        content: `ColumnHash` of what was written, by split and column.
        left_out: rows that are in no split.
        format_version: of the manifest.
    """

    label: str
    event_timestamp: str
    entity_columns: tuple[str, ...]
    features: tuple[str, ...]
    columns: tuple[ColumnSummary, ...]
    split: SplitRule
    splits: Mapping[str, SplitSummary]
    files: tuple[OutputFile, ...]
    provenance: Provenance
    libraries: Mapping[str, str]
    weight: str | None = None
    helpers: tuple[str, ...] = ()
    target: str | None = None
    formats: tuple[str, ...] = ("csv", "parquet")
    parts: int = 1
    name: str | None = None
    definition: Mapping[str, Any] | None = None
    content: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    left_out: int = 0
    format_version: int = FORMAT_VERSION

    @functools.cached_property
    def encodings(self) -> Mapping[str, FittedEncoding]:
        """The encodings of label, weight and features, by column of the join."""
        return {
            column.name: column.encoding for column in self.columns if column.encoding is not None
        }

    @property
    def outputs(self) -> tuple[str, ...]:
        """The encoded features' columns in the order of the files, after label and weight."""
        return tuple(name for column in self.features for name in self.encodings[column].outputs)

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of the files, in order: label, weight if any, encoded features."""
        return (self.label, *((self.weight,) if self.weight else ()), *self.outputs)

    @property
    def categorical(self) -> tuple[str, ...]:
        """Those of `outputs` that hold codes of categories, which have no order."""
        return tuple(
            name
            for column in self.features
            if self.encodings[column].is_categorical
            for name in self.encodings[column].outputs
        )

    @property
    def types(self) -> dict[str, str]:
        """Arrow type of each of `written`."""
        return {
            name: kind
            for column in (self.label, self.weight, *self.features)
            if column is not None
            for name, kind in zip(
                self.encodings[column].outputs, self.encodings[column].types, strict=True
            )
        }

    def encode(
        self,
        rows: pa.Table | pa.RecordBatch,
        event_times: pa.Array | pa.ChunkedArray | None = None,
    ) -> pa.Table:
        """The encoded features of some rows: the same function in a build and behind an endpoint.

        Args:
            rows: have each of `features` as a column; other columns are passed over.
            event_times: of the rows, from which an age counts; needed where a feature is
                encoded as one.

        Returns:
            The columns `outputs`, in order.

        Raises:
            TrainingSetError: a column that is not there, or a value that cannot be encoded.
        """
        absent = [name for name in self.features if name not in rows.schema.names]
        if absent:
            raise TrainingSetError(
                f"The rows lack the features {absent}, which this training set encodes."
            )
        columns: list[pa.Array] = []
        for name in self.features:
            columns += self.encodings[name].encode(rows.column(name), event_times)
        return pa.Table.from_arrays(columns, names=list(self.outputs))

    def to_json(self) -> str:
        """The text of `manifest.json`: the same for the same training set, byte for byte."""
        values = {key: value for key, value in vars(self).items() if key in _FIELDS}
        values["split"] = self.split.as_manifest()
        if self.format_version == 1:
            return _text(_version_1(self, values))
        return _text(values | {SEAL: _sha256(values)})

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str) -> Manifest:
        """Read a manifest; `source` names it in errors.

        Raises:
            TrainingSetError: not a manifest, or of a format this version does not know.
        """
        try:
            values = json.loads(text)
            seal = values.pop(SEAL, None)
            changed = seal is not None and seal != _sha256(values)
            version = values.pop("format_version")
            if version in _READERS and not changed:
                return _READERS[version](values)
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise TrainingSetError(
                f"{source} is not a training set's manifest: {type(error).__name__}: {error}. "
                "Write the training set again."
            ) from error
        if changed:
            raise TrainingSetError(
                f"{source} is not as it was written: its `{SEAL}` is of another text. Build the "
                "training set again."
            )
        raise TrainingSetError(
            f"{source} has format_version {version}; this version reads "
            f"{' and '.join(map(str, _READERS))}. Upgrade feast-dynamo-ext, or write the training "
            "set again."
        )


_FIELDS = {each.name for each in fields(Manifest)}


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False, default=_members) + "\n"


def manifest_sha256(output: str, aws: AwsSettings) -> str:
    """SHA-256 of a training set's manifest, as hex.

    Raises:
        TrainingSetError: there is none.
        AwsError: S3 refused.
    """
    return hashlib.sha256(open_folder(output, aws).manifest_text()).hexdigest()


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(values).encode()).hexdigest()


def _members(value: Any) -> dict[str, Any]:
    if isinstance(value, FittedEncoding):
        return value.to_json()
    if isinstance(value, SourceFile) and value.sha256 is None:
        # Of S3, or as manifests had it before it was kept.
        return {key: each for key, each in vars(value).items() if key != "sha256"}
    return dict(value) if isinstance(value, Mapping) else vars(value)


def _version_1(manifest: Manifest, values: dict[str, Any]) -> dict[str, Any]:
    """A set of version 1 as its manifest had it."""
    kept = (
        "entity_columns",
        "event_timestamp",
        "features",
        "files",
        "format_version",
        "label",
        "libraries",
        "split",
        "splits",
    )
    of_then = ("feature_service", "full_feature_names", "entity_rows")
    origin = {key: value for key, value in vars(manifest.provenance).items() if key not in of_then}
    return {key: values[key] for key in kept} | {"types": manifest.types, "provenance": origin}


def _from_version_1(values: dict[str, Any]) -> Manifest:
    """Numbers as they are were all that there was, and the type in the join was not kept."""
    provenance, splits, types = _provenance(values), _splits(values), values["types"]
    columns = [
        ColumnSummary(
            name,
            "label" if name == values["label"] else "feature",
            types[name],
            FittedEncoding(name, "number", (name,), (types[name],), types[name], {}),
        )
        for name in (values["label"], *values["features"])
    ]
    return Manifest(
        label=values["label"],
        event_timestamp=values["event_timestamp"],
        entity_columns=tuple(values["entity_columns"]),
        features=tuple(values["features"]),
        columns=tuple(columns),
        split=split_from_manifest(values["split"]),
        splits=splits,
        files=_files(values),
        provenance=provenance,
        libraries=values["libraries"],
        format_version=1,
    )


def _from_version_2(values: dict[str, Any]) -> Manifest:
    made = {
        "provenance": _provenance(values),
        "splits": _splits(values),
        "split": split_from_manifest(values["split"]),
        "files": _files(values),
        "columns": tuple(map(_column, values["columns"])),
    }
    for name in ("entity_columns", "features", "helpers", "formats"):
        made[name] = tuple(values[name])
    return Manifest(**values | made)


_READERS = {1: _from_version_1, 2: _from_version_2}


def _column(values: dict[str, Any]) -> ColumnSummary:
    encoding = values["encoding"]
    fitted = None if encoding is None else FittedEncoding.from_json(encoding)
    return ColumnSummary(**values | {"encoding": fitted})


def _splits(values: dict[str, Any]) -> dict[str, SplitSummary]:
    return {
        split: SplitSummary(**summary | {"label": LabelStatistics(**summary["label"])})
        for split, summary in values["splits"].items()
    }


def _files(values: dict[str, Any]) -> tuple[OutputFile, ...]:
    return tuple(OutputFile(**file) for file in values["files"])


def _provenance(values: dict[str, Any]) -> Provenance:
    origin = values["provenance"]
    rows = origin.get("entity_rows")
    if rows is not None:
        rows = EntityRowsOrigin(**rows | {"files": _source_files(rows["files"])})
    made = {
        "feature_refs": tuple(origin["feature_refs"]),
        "source_files": _source_files(origin["source_files"]),
        "entity_rows": rows,
        "snapshots": {
            name: SourceSnapshot(**found) for name, found in origin.get("snapshots", {}).items()
        },
    }
    return Provenance(**origin | made)


def _source_files(values: list[dict[str, Any]]) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(**file) for file in values)


def library_versions() -> dict[str, str]:
    """Versions of what takes part in making a training set."""
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return versions | {"python": platform.python_version()}


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
    return Manifest.from_json(folder.manifest_text(), source=f"{folder.uri}/{MANIFEST}")
