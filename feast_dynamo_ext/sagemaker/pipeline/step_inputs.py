"""What the steps of a pipeline read and make: its training set, its model, and what they hold."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import re
import sys
import tarfile
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
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet

METRIC_PART = re.compile(r"([A-Za-z_]\w*)|\[(\d+)\]")


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


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def environment_hash() -> str:
    """A hash of Python's version and those of all that is installed."""
    installed = {(of.metadata["Name"] or "", of.version) for of in metadata.distributions()}
    text = json.dumps([sys.version, *sorted(installed)])
    return hashlib.sha256(text.encode()).hexdigest()


def file_states(uri: str, aws: AwsSettings) -> list[Any]:
    """What files are now: on a disk by their content, on S3 by their ETags.

    Raises:
        ConfigError: there is none.
    """
    storage = files_of(uri, aws)
    names = storage.at(uri)
    if not names:
        raise ConfigError(f"There is no file at {uri}.")
    if not uri.startswith("s3://"):
        return [[name, file_hash(Path(name))] for name in names]
    found = [storage.find(name) for name in names]
    return [[state.path, state.size, state.etag] for state in found if state is not None]


def view_states(views: Sequence[Any], store: FeatureStore) -> dict[str, Any]:
    """Definitions of feature views, and what their sources are now.

    A table is its snapshot; files are their sizes and ETags, or on a disk their times of change.
    """
    from feast_dynamo_ext.parquet.source import ParquetSource

    found: dict[str, Any] = {}
    for view in views:
        states: Any = None
        if getattr(view, "batch_source", None) is not None:
            opened = ParquetSource.open(view.batch_source, store.config)
            table = opened.parts.table
            states = [[file.path, file.size, file.mtime_ns, file.etag] for file in opened.files]
            if table is not None and table.version:
                states = [table.name, table.version]
        found[view.name] = [definition_hash(view), states]
    return found


def metric_in(file: Path, path: str) -> float:
    """A number of a JSON file, by a path such as `metrics.auc.value`.

    Raises:
        ConfigError: the file is no JSON, or has no finite number there.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {error}.") from error
    try:
        for name, index in METRIC_PART.findall(path):
            value = value[int(index)] if index else value[name]
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{file} has no `{path}`.") from error
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ConfigError(f"`{path}` of {file} is {value!r}, which is no finite number.")
    return float(value)


def pack_model(folder: Path, target: Path) -> None:
    """A model's folder as `model.tar.gz`; the same files are the same bytes.

    Raises:
        ConfigError: the folder is empty.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ConfigError("The training script left no file in SM_MODEL_DIR.")
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in files:
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size = path.stat().st_size
            info.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as file:
                archive.addfile(info, file)
