"""The image of a function that captures tables: what is in it, and what it cannot rely on.

A folder from which `docker build` makes the image, without anything of the machine but the
versions of its packages and the repo's feature_store.yaml::

    Dockerfile            on AWS's base image for Python
    requirements.txt      this package, with what histories need
    constraints.txt       the versions that are installed here
    feature_store.yaml    the repo's: a registry, history and catalog that the function can reach
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.local_state import has_local_catalog, local_registry

if TYPE_CHECKING:
    from feast import FeatureStore

OURS = "feast-dynamo-ext"
TEMPLATE = Path(__file__).with_name("Dockerfile.template")

OLDEST = 12
"""Minor version of Python of the oldest base image whose C library pyarrow's wheels take."""


def refuse_local(store: FeatureStore) -> None:
    """Refuse what would be read from, or written to, the function's own disk, and be gone with it.

    Raises:
        ConfigError: names the setting.
    """
    path = local_registry(store.config)
    if path is not None:
        raise ConfigError(
            f"`registry` of feature_store.yaml is the file `{path}`, which a function in Lambda "
            "does not see change. Put it on S3: `registry: s3://bucket/registry.db`."
        )
    config: Any = store.config.offline_store
    if not hasattr(config, "catalog_config"):
        raise ConfigError(
            "offline_store of feature_store.yaml is another one. Histories of captured tables are "
            "kept by `type: feast_dynamo_ext.S3ParquetOfflineStore`."
        )
    if has_local_catalog(store.config):
        raise ConfigError(
            "offline_store of feature_store.yaml: `catalog` is a file of SQLite, which in Lambda "
            "is gone with the function. Take `catalog: {type: glue, warehouse: "
            "s3://bucket/prefix}`, or a database with a server."
        )
    sources: list[Any] = store.list_data_sources()
    for source in sources:
        is_captured = isinstance(source, DynamoDBTableSource)
        if is_captured and not source.history.startswith("s3://"):
            raise ConfigError(
                f"DynamoDBTableSource `{source.name}`: its `history` is a folder, which in Lambda "
                "is gone with the function. Put it on S3."
            )


def write_image(store: FeatureStore, folder: Path, requirement: str | None = None) -> list[str]:
    """Write the folder of an image.

    Args:
        store: the feature store, whose feature_store.yaml is copied.
        folder: a new folder, or an empty one.
        requirement: what is installed; by default this version of the package.

    Returns:
        The names of the files.

    Raises:
        ConfigError: the folder has something in it, there is no feature_store.yaml, or what it
            says would be gone with the function.
    """
    refuse_local(store)
    yaml_file = Path(store.config.repo_path or ".") / "feature_store.yaml"
    try:
        settings = yaml_file.read_text(encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} has something in it. Name a new folder.")
        files = {
            "Dockerfile": _dockerfile(),
            "requirements.txt": f"{requirement or _own_requirement()}\n",
            "constraints.txt": "".join(f"{line}\n" for line in installed()),
            "feature_store.yaml": settings,
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror}.") from error
    return list(files)


def _dockerfile() -> str:
    minor = max(sys.version_info.minor, OLDEST)
    return TEMPLATE.read_text(encoding="utf-8").replace("{python}", f"3.{minor}")


def _own_requirement() -> str:
    return f"{OURS}[iceberg]=={importlib.metadata.version(OURS)}"


def installed() -> list[str]:
    """The packages that are installed here with their versions, as pip's constraints; not ours."""
    found = {
        _normal(each.metadata["Name"]): each.version
        for each in importlib.metadata.distributions()
        if each.metadata["Name"]
    }
    # Versions with a `+` are of no index.
    return sorted(
        f"{name}=={version}"
        for name, version in found.items()
        if name != OURS and "+" not in version
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
