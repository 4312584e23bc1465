"""What a feature repo keeps on one machine's disk, and a job elsewhere does not see change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.parquet.iceberg.catalog import SQLITE

if TYPE_CHECKING:
    from feast import RepoConfig


def local_registry(config: RepoConfig) -> str | None:
    """The path of a registry that is a file of this disk; None for one that others reach too."""
    registry: Any = config.registry
    path = str(getattr(registry, "path", "") or "")
    is_path = getattr(registry, "registry_type", "file") in {"file", "sql"}
    is_here = is_path and ("://" not in path or path.startswith(("sqlite:", "file:")))
    return path if is_here else None


def has_local_catalog(config: RepoConfig) -> bool:
    """Whether the catalog of our offline store is a file of SQLite."""
    offline: Any = config.offline_store
    if not hasattr(offline, "catalog_config"):
        return False
    catalog = offline.catalog_config()
    return catalog.type == "sql" and (catalog.uri or SQLITE).startswith(SQLITE)
