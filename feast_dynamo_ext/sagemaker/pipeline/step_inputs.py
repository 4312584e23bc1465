"""What the steps of a pipeline read: the set, the views, and what their sources are now."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.manifest import manifest_sha256
from feast_dynamo_ext.sagemaker.output_folder import open_folder
from feast_dynamo_ext.sagemaker.provenance import definition_hash
from feast_dynamo_ext.sagemaker.training_set import load_training_set
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.definition import TrainingSetDefinition
    from feast_dynamo_ext.sagemaker.pipeline.step_state import FileHashes
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet
    from feast_dynamo_ext.storage import FileState


def set_summary(training_set: TrainingSet, aws: AwsSettings) -> dict[str, Any]:
    """What a pipeline's later steps read of a set: its place, its manifest's hash, its rows."""
    splits = training_set.manifest.splits
    return {
        "output": training_set.output,
        "manifest_sha256": manifest_sha256(training_set.output, aws),
        "rows": {name: split.rows for name, split in splits.items()},
    }


def set_at(definition: TrainingSetDefinition, output: str, aws: AwsSettings) -> TrainingSet | None:
    """The complete set that is at a place, if there is one.

    Raises:
        ConfigError: it is not of this declaration.
    """
    if not open_folder(output, aws).has_set():
        return None
    found = load_training_set(output, aws)
    if found.manifest.definition != definition.to_json():
        raise ConfigError(
            f"{found.output} holds a training set that was declared otherwise than "
            f"{definition.name} is now. Give `training_set.version` another value."
        )
    return found


def references(definition: TrainingSetDefinition, store: FeatureStore) -> list[tuple[str, str]]:
    """Views and features of a declared set, in order.

    Raises:
        ConfigError: no such feature service.
    """
    from feast.errors import FeatureServiceNotFoundException

    if definition.features is not None:
        split = (reference.partition(":") for reference in definition.features)
        return [(view, feature) for view, _, feature in split]
    try:
        service = store.get_feature_service(definition.feature_service or "")
    except FeatureServiceNotFoundException as error:
        raise ConfigError(
            f"There is no feature service `{definition.feature_service}`. Run `feast apply` first."
        ) from error
    return [
        (projection.name, feature.name)
        for projection in service.feature_view_projections
        for feature in projection.features
    ]


def environment_hash() -> str:
    """A hash of Python's version and those of all that is installed."""
    installed = {(of.metadata["Name"] or "", of.version) for of in metadata.distributions()}
    text = json.dumps([sys.version, *sorted(installed)])
    return hashlib.sha256(text.encode()).hexdigest()


def file_states(uri: str, aws: AwsSettings, hashes: FileHashes) -> list[Any]:
    """What files are now: on a disk by their content, on S3 by their ETags.

    Raises:
        ConfigError: there is none.
    """
    storage = files_of(uri, aws)
    names = storage.at(uri)
    if not names:
        raise ConfigError(f"There is no file at {uri}.")
    if not uri.startswith("s3://"):
        return [[name, hashes.sha256(Path(name))] for name in names]
    found = [storage.find(name) for name in names]
    return [[state.path, state.size, state.etag] for state in found if state is not None]


def view_states(views: Sequence[Any], store: FeatureStore, hashes: FileHashes) -> dict[str, Any]:
    """Definitions of feature views, and what their sources are now; see `source_state`."""
    found: dict[str, Any] = {}
    for view in views:
        source = getattr(view, "batch_source", None)
        state = None if source is None else source_state(source, store, hashes)
        found[view.name] = [definition_hash(view), state]
    return found


def source_state(source: Any, store: FeatureStore, hashes: FileHashes) -> Any:
    """What a source is now.

    Files are their content, on S3 their ETags. An Iceberg table is the files that count in it:
    a commit without rows, such as capture makes to note how far it is, changes nothing. Another
    table is its version.
    """
    from feast_dynamo_ext.parquet.source import ParquetSource

    opened = ParquetSource.open(source, store.config)
    table = opened.parts.table
    if table is not None and table.table_id:
        files = sorted((file.path, file.size) for file in table.files)
        counted = json.dumps([files, sorted(table.deletes), str(table.schema)])
        return [table.name, table.table_id, hashlib.sha256(counted.encode()).hexdigest()]
    if table is not None and table.version:
        return [table.name, table.version]
    return [_state(file, hashes) for file in opened.files]


def _state(file: FileState, hashes: FileHashes) -> list[Any]:
    if file.etag is None and not file.is_of_log:
        return [file.path, hashes.sha256(Path(file.path))]
    return [file.path, file.size, file.etag]
