"""A model's archive: what training wrote, with what the handler needs to look features up.

In `model.tar.gz`, beside the model's own files at the top::

    features/    serving.json  training_set.json  registry.db  feature_store.yaml
    code/        serve_features.py  requirements.txt  inference.py (of a model of your own)

The same input gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from feast_dynamo_ext.config import secret_keys
from feast_dynamo_ext.errors import ConfigError, ServingError
from feast_dynamo_ext.sagemaker.serving.bodies import RequestColumn
from feast_dynamo_ext.sagemaker.serving.opening import references_of, refuse_changed
from feast_dynamo_ext.sagemaker.serving.serving_settings import (
    CODE,
    FOLDER,
    MANIFEST,
    REGISTRY,
    SERVING,
    STORE_YAML,
    USER_MODULE,
    ServingSettings,
)
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.manifest import Manifest

PROGRAM = "serve_features.py"
_PROGRAM_TEXT = '''"""What AWS's inference toolkit calls."""

from feast_dynamo_ext.sagemaker.serving.toolkit import model_fn, transform_fn

__all__ = ["model_fn", "transform_fn"]
'''
REQUIREMENTS = "requirements.txt"

# Feast's type of a value, by its name in upper case -> how a request writes it.
_KINDS = {
    "INT32": "int",
    "INT64": "int",
    "FLOAT": "float",
    "DOUBLE": "float",
    "STRING": "string",
    "BOOL": "boolean",
    "UNIX_TIMESTAMP": "time",
}


@dataclass(frozen=True)
class Packaged:
    """An archive that was written.

    Attributes:
        uri: where.
        bytes: its size.
        sha256: of its bytes, in hex.
        files: what it holds, sorted.
        settings: how it is served.
    """

    uri: str
    bytes: int
    sha256: str
    files: tuple[str, ...]
    settings: ServingSettings


def package_model(
    store: FeatureStore,
    manifest: Manifest,
    *,
    model: str,
    output: str,
    aws: AwsSettings,
    code: str | Path | None = None,
    requirements: str | None = None,
    live_registry: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Packaged:
    """Write a model's archive.

    Args:
        store: the feature store of the training set.
        manifest: of the training set.
        model: what training wrote: a job's `model.tar.gz`, a folder, or one file of XGBoost;
            local, or of the first and the last an s3:// URI.
        output: the archive to write or replace, local or an s3:// URI.
        aws: how to reach S3.
        code: an `inference.py` with `predict(matrix)`, or a folder that has one; without it the
            model is one of XGBoost.
        requirements: text of the archive's `code/requirements.txt`, which AWS's containers
            install when they start.  Default: this version with the extra `serving`.
        live_registry: path or URI of a registry that each worker compares its definitions with.
        options: limits of `ServingSettings`, by name.

    Raises:
        ServingError: the registry is not what the model was trained on, or the model cannot be
            packaged.
        ConfigError: a secret in feature_store.yaml.
        AwsError: S3 refused.
    """
    files = _model_files(model, aws)
    files |= _code_files(code)
    kind = "xgboost" if code is None else "python"
    settings = ServingSettings(
        model_kind=kind,
        model_file=_booster(files, model) if kind == "xgboost" else None,
        columns=request_columns(store, manifest),
        live_registry=live_registry,
        **_looked_up(store, manifest),
    )
    settings = dataclasses.replace(settings, **(options or {}))
    refuse_changed(store, manifest, settings, "The registry")
    files |= {
        f"{CODE}/{PROGRAM}": _PROGRAM_TEXT.encode(),
        f"{FOLDER}/{SERVING}": settings.to_json().encode(),
        f"{FOLDER}/{MANIFEST}": manifest.to_json().encode(),
        f"{FOLDER}/{REGISTRY}": registry_snapshot(store, manifest),
        f"{FOLDER}/{STORE_YAML}": store_yaml(store).encode(),
    }
    if requirements is not None or f"{CODE}/{REQUIREMENTS}" not in files:
        files[f"{CODE}/{REQUIREMENTS}"] = (requirements or _own_requirement()).encode()
    data = archive(files)
    with files_of(output, aws).new_file(output) as file:
        file.write(data)
    return Packaged(
        output, len(data), hashlib.sha256(data).hexdigest(), tuple(sorted(files)), settings
    )


def _own_requirement() -> str:
    from feast_dynamo_ext import __version__

    return f"feast-dynamo-ext[serving]=={__version__}\n"


def archive(files: Mapping[str, bytes]) -> bytes:
    """A tar.gz of files by path: sorted, of no owner and no time, so equal for equal files."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(files[path]), 0o644
            tar.addfile(entry, io.BytesIO(files[path]))
    return buffer.getvalue()


def unpack(uri: str, folder: Path, aws: AwsSettings) -> None:
    """Unpack an archive into an empty folder.

    Raises:
        ServingError: it is not there, no tar.gz, or holds paths outside of it, links or devices.
    """
    for path, data in _unpacked(_read(uri, aws), uri).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _read(uri: str, aws: AwsSettings) -> bytes:
    try:
        return b"".join(files_of(uri, aws).chunks(uri))
    except OSError as error:
        raise ServingError(f"{uri} cannot be read: {error}.") from error


def _unpacked(data: bytes, source: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isfile() or path.is_absolute() or ".." in path.parts:
                    raise ServingError(
                        f"{source} holds `{member.name}`, which is no plain file inside of it."
                    )
                opened = tar.extractfile(member)
                if opened is not None:
                    files[str(path)] = opened.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ServingError(f"{source} is no tar.gz: {error}.") from error
    return files


def _model_files(model: str, aws: AwsSettings) -> dict[str, bytes]:
    path = Path(model)
    if not urlsplit(model).scheme and path.is_dir():
        files = {
            str(each.relative_to(path).as_posix()): each.read_bytes()
            for each in sorted(path.rglob("*"))
            if each.is_file() and not each.is_symlink()
        }
    elif model.endswith((".tar.gz", ".tgz")):
        files = _unpacked(_read(model, aws), model)
    else:
        files = {PurePosixPath(model).name: _read(model, aws)}
    ours = {name: data for name, data in files.items() if name.startswith(f"{FOLDER}/")}
    if ours:
        raise ServingError(
            f"{model} has a folder `{FOLDER}` already, where the archive's own files belong. Name "
            "the model as training wrote it."
        )
    if not files:
        raise ServingError(f"{model} holds no file.")
    return files


def _booster(files: Mapping[str, bytes], model: str) -> str:
    """The one model file at the top: the built-in XGBoost would load them all, and average."""
    tops = [name for name in files if "/" not in name and not name.startswith(".")]
    if len(tops) != 1:
        raise ServingError(
            f"{model} has {len(tops)} files at its top: {', '.join(sorted(tops)[:5])}. A model of "
            "XGBoost is one; for any other model, pass an `inference.py` as `code`."
        )
    if not files[tops[0]].startswith(b"{"):
        raise ServingError(
            f"{tops[0]} of {model} is no model of XGBoost in JSON or UBJSON. Pickles are never "
            "loaded: save it with `booster.save_model('model.ubj')`."
        )
    return tops[0]


def _code_files(code: str | Path | None) -> dict[str, bytes]:
    if code is None:
        return {}
    path = Path(code)
    if path.is_dir():
        found = {
            f"{CODE}/{each.relative_to(path).as_posix()}": each.read_bytes()
            for each in sorted(path.rglob("*"))
            if each.is_file() and not each.is_symlink() and "__pycache__" not in each.parts
        }
    elif path.is_file():
        found = {f"{CODE}/{USER_MODULE}": path.read_bytes()}
    else:
        raise ServingError(f"{path} is neither a file nor a folder.")
    if f"{CODE}/{USER_MODULE}" not in found:
        raise ServingError(f"{path} has no {USER_MODULE}, which must define `predict(matrix)`.")
    return found


# What is looked up


def _looked_up(store: FeatureStore, manifest: Manifest) -> dict[str, Any]:
    name = manifest.provenance.feature_service
    if name is None:
        return {"feature_service": None, "features": manifest.provenance.feature_refs}
    service = _service(store, name)
    is_plain = all(
        not projection.join_key_map and projection.name_to_use() == projection.name
        for projection in service.feature_view_projections
    )
    # References are read faster than a service, which Feast parses at each request.
    return {
        "feature_service": name,
        "features": manifest.provenance.feature_refs if is_plain else None,
    }


def _service(store: FeatureStore, name: str) -> Any:
    from feast.errors import FeastError

    try:
        return store.get_feature_service(name)
    except FeastError as error:
        raise ServingError(
            f"The training set is of feature service `{name}`, which the registry does not have. "
            "Apply it, or build the set of another."
        ) from error


def _projections(store: FeatureStore, manifest: Manifest) -> list[tuple[Any, dict[str, str]]]:
    """The views that are read, inputs of on-demand views too, and how requests name join keys."""
    views = {view.name: view for view in store.list_all_feature_views()}
    name = manifest.provenance.feature_service
    if name is None:
        names = dict.fromkeys(ref.partition(":")[0] for ref in manifest.provenance.feature_refs)
        found: list[tuple[Any, dict[str, str]]] = [
            (views[each], {}) for each in names if each in views
        ]
    else:
        found = [
            (views[each.name], dict(each.join_key_map))
            for each in _service(store, name).feature_view_projections
            if each.name in views
        ]
    inputs = [
        (views[each.name], dict(each.join_key_map))
        for view, _ in found
        for each in getattr(view, "source_feature_view_projections", {}).values()
        if each.name in views
    ]
    return [*found, *inputs]


def request_columns(store: FeatureStore, manifest: Manifest) -> tuple[RequestColumn, ...]:
    """What each row of a request has: entity keys, request data, features that no view holds.

    Raises:
        ServingError: one of a type that a request cannot write.
    """
    keys: dict[str, RequestColumn] = {}
    data: dict[str, RequestColumn] = {}
    for view, renamed in _projections(store, manifest):
        for field in getattr(view, "entity_columns", ()):
            if field.name != "__dummy_id":
                name = renamed.get(field.name, field.name)
                keys[name] = RequestColumn(name, _kind(name, field.dtype))
        for source in getattr(view, "source_request_sources", {}).values():
            for field in source.schema:
                data[field.name] = RequestColumn(field.name, _kind(field.name, field.dtype), True)
    for column in manifest.columns:
        if column.role == "feature" and column.source == "entity_rows" and column.name not in data:
            data[column.name] = RequestColumn(column.name, _arrow_kind(column), True)
    others = [name for name in keys if name not in manifest.entity_columns]
    if others:
        raise ServingError(
            f"The features are looked up by `{others[0]}`, by which the training set has none. "
            "Its feature service has changed: build the training set and the model again."
        )
    order = [name for name in manifest.entity_columns if name in keys]
    found = [keys[name] for name in order] + [data[name] for name in data if name not in keys]
    if not found:
        raise ServingError("The features have no entity: a request would have no rows.")
    return tuple(found)


def _kind(name: str, dtype: Any) -> str:
    kind = _KINDS.get(dtype.to_value_type().name)
    if kind is None:
        raise ServingError(
            f"`{name}` is of type {dtype}, which a request cannot write. Use a number, text, "
            "boolean or time."
        )
    return kind


def _arrow_kind(column: Any) -> str:
    starts = {
        "int": "int", "uint": "int", "double": "float", "float": "float", "halffloat": "float",
        "decimal": "float", "string": "string", "large_string": "string", "bool": "boolean",
        "timestamp": "time", "date": "time",
    }  # fmt: skip
    for start, kind in starts.items():
        if column.type.startswith(start):
            return kind
    raise ServingError(
        f"Feature `{column.name}` comes from the entity rows and is {column.type}, which no "
        "request can write. Leave it out of the set, or keep it in a view."
    )


def registry_snapshot(store: FeatureStore, manifest: Manifest) -> bytes:
    """The definitions that the model reads, as the file of a registry, and none else."""
    from feast.protos.feast.core.Registry_pb2 import Registry

    whole = store.registry.proto()
    project = store.project
    read = {view.name for view, _ in _projections(store, manifest)}
    # Those that views are derived from besides.
    read |= set(manifest.provenance.view_definitions)
    service = manifest.provenance.feature_service
    kept = Registry(registry_schema_version=whole.registry_schema_version)
    kept.projects.extend(one for one in whole.projects if one.spec.name == project)
    kept.entities.extend(one for one in whole.entities if one.spec.project == project)
    kinds = ("feature_views", "on_demand_feature_views", "stream_feature_views", "label_views")
    for kind in kinds:
        if hasattr(whole, kind):
            getattr(kept, kind).extend(
                one
                for one in getattr(whole, kind)
                if one.spec.project == project and one.spec.name in read
            )
    kept.feature_services.extend(
        one
        for one in whole.feature_services
        if one.spec.project == project and one.spec.name == service
    )
    return bytes(kept.SerializeToString(deterministic=True))


def store_yaml(store: FeatureStore) -> str:
    """A feature_store.yaml that reads online, and holds nothing else of the repo's.

    Raises:
        ConfigError: the online store's block holds a secret.
    """
    config = store.config
    online = config.online_store.model_dump(mode="json", exclude_unset=True, by_alias=True)
    online["type"] = config.online_store.type
    _refuse_secrets("online_store", online)
    values = {
        "project": config.project,
        "provider": config.provider,
        "registry": {"path": REGISTRY, "cache_ttl_seconds": 0},
        "online_store": online,
        # Feast opens it, too; nothing is read there.
        "offline_store": {"type": "feast_dynamo_ext.S3ParquetOfflineStore"},
        "entity_key_serialization_version": config.entity_key_serialization_version,
    }
    return str(yaml.safe_dump(values, sort_keys=True))


def _refuse_secrets(path: str, values: Mapping[str, Any]) -> None:
    for where in secret_keys(path, values):
        raise ConfigError(
            f"feature_store.yaml: `{where}` holds a secret, which a model's archive may not. "
            "Give the endpoint's role the permission instead."
        )


__all__ = [
    "Packaged",
    "archive",
    "package_model",
    "references_of",
    "registry_snapshot",
    "request_columns",
    "store_yaml",
    "unpack",
]
