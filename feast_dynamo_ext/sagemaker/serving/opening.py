"""A packaged model opened: its files read, its definitions compared, its store and model ready."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import FeastDynamoError, ServingError
from feast_dynamo_ext.sagemaker.manifest import Manifest
from feast_dynamo_ext.sagemaker.provenance import definition_hash
from feast_dynamo_ext.sagemaker.serving.handler import FeatureHandler
from feast_dynamo_ext.sagemaker.serving.predictors import load_model
from feast_dynamo_ext.sagemaker.serving.serving_settings import (
    FOLDER,
    MANIFEST,
    REGISTRY,
    SERVING,
    STORE_YAML,
    ServingSettings,
)

if TYPE_CHECKING:
    from feast import FeatureStore

logger = logging.getLogger(__name__)


def open_handler(model_dir: str | Path) -> FeatureHandler:
    """Open a packaged model: its store, its definitions compared, its model loaded.

    Args:
        model_dir: where `model.tar.gz` was unpacked, in a container `/opt/ml/model`.

    Raises:
        ServingError: a file is missing, a definition has changed since the packaging, or the
            model does not fit the training set.
        ConfigError: the store's settings cannot work.
    """
    model_dir = Path(model_dir).resolve()
    folder = model_dir / FOLDER
    settings = ServingSettings.from_json(_text(folder / SERVING), str(folder / SERVING))
    manifest = Manifest.from_json(_text(folder / MANIFEST), source=str(folder / MANIFEST))
    store = _open_store(folder)
    refuse_changed(store, manifest, settings, "The packaged registry")
    if settings.live_registry is not None:
        _compare_live(store, manifest, settings, settings.live_registry)
    model = load_model(model_dir, settings, manifest)
    logger.info(
        "serving %d features of %s", len(manifest.features), settings.feature_service or "views"
    )
    return FeatureHandler(settings, manifest, store, model)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(
            f"{path} cannot be read: {error}. Package the model with `feast-dynamo endpoint "
            "package`, and unpack the archive whole."
        ) from error


def _open_store(folder: Path) -> FeatureStore:
    from feast import FeatureStore

    if not (folder / REGISTRY).is_file():  # Feast would make an empty one
        raise ServingError(f"{folder / REGISTRY} is missing. Package the model again.")
    return FeatureStore(repo_path=str(folder), fs_yaml_file=folder / STORE_YAML)


def _compare_live(
    store: FeatureStore, manifest: Manifest, settings: ServingSettings, path: str
) -> None:
    try:
        live = _live_store(store, path)
        packaged = _service(store, settings.feature_service)
        refuse_changed(live, manifest, settings, f"The registry {path}", packaged=packaged)
    except FeastDynamoError:
        raise
    except Exception as error:  # of Feast, of S3, of a database
        raise ServingError(
            f"The registry {path} cannot be compared with: {type(error).__name__}: {error}. Let "
            "the endpoint's role read it, or package the model with --no-live-registry."
        ) from error


def _service(store: FeatureStore, name: str | None) -> Any:
    return None if name is None else store.get_feature_service(name)


def _live_store(store: FeatureStore, path: str) -> FeatureStore:
    from feast import FeatureStore

    config = store.config.model_copy(deep=True)
    config = type(config)(
        **{
            **{k: v for k, v in config.model_dump(by_alias=True).items() if k != "registry"},
            "registry": {"path": path, "cache_ttl_seconds": 0},
        }
    )
    config.repo_path = store.config.repo_path
    return FeatureStore(config=config)


def refuse_changed(
    store: FeatureStore,
    manifest: Manifest,
    settings: ServingSettings,
    subject: str,
    packaged: Any = None,
) -> None:
    """Refuse a registry whose definitions are not those of the training set.

    Args:
        store: of the registry.
        manifest: of the training set.
        settings: name the feature service, if any.
        subject: the registry in words.
        packaged: the feature service as it was packaged.

    Raises:
        ServingError: naming each feature view or service that is gone or has changed.
    """
    from feast.errors import FeastError

    expected = manifest.provenance.view_definitions
    views = {view.name: view for view in store.list_all_feature_views()}
    changes = [
        f"feature view `{name}` {'has changed' if name in views else 'is gone'}"
        for name, wanted in sorted(expected.items())
        if name not in views or definition_hash(views[name]) != wanted
    ]
    name = settings.feature_service
    if name is not None:
        try:
            service = store.get_feature_service(name)
        except FeastError:
            changes.append(f"feature service `{name}` is gone")
        else:
            if references_of(service) != manifest.provenance.feature_refs:
                changes.append(f"feature service `{name}` has other features")
            if packaged is not None and _keys_of(service) != _keys_of(packaged):
                changes.append(f"feature service `{name}` names its join keys otherwise")
    if changes:
        raise ServingError(
            f"{subject} is not what the model was trained on: {'; '.join(changes)}. Build the "
            "training set and the model again, or bring the definitions back."
        )


def _keys_of(service: Any) -> list[tuple[str, dict[str, str]]]:
    """How requests name the join keys of a service's views."""
    return [
        (each.name_to_use(), dict(each.join_key_map)) for each in service.feature_view_projections
    ]


def references_of(service: Any) -> tuple[str, ...]:
    """The references of a feature service, `view:feature`, in order."""
    return tuple(
        f"{projection.name_to_use()}:{feature.name}"
        for projection in service.feature_view_projections
        for feature in projection.features
    )
