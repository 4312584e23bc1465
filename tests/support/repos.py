"""Configs of feature repos, as objects and as feature_store.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from feast import RepoConfig

REGION = "us-east-1"


class NoRegistry:
    """A registry without on-demand views, which is all a retrieval asks it for."""

    def list_on_demand_feature_views(self, *args: Any, **kwargs: Any) -> list[Any]:
        return []


def repo_settings(
    *,
    project: str = "p",
    online: dict[str, Any] | None = None,
    offline: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What feature_store.yaml of a repo on our provider and stores says.

    Args:
        project: the project.
        online: more of the block of the online store.
        offline: more of the block of the offline store.
        more: further blocks, and what stands instead of the usual.
    """
    return {
        "project": project,
        "provider": "feast_dynamo_ext.DynamoProvider",
        "registry": "registry.db",
        "online_store": {"type": "feast_dynamo_ext.DynamoOnlineStore", **(online or {})},
        "offline_store": {"type": "feast_dynamo_ext.S3ParquetOfflineStore", **(offline or {})},
        "entity_key_serialization_version": 3,
        **more,
    }


def write_repo_yaml(folder: Path, **settings: Any) -> None:
    """A feature_store.yaml of `repo_settings` in a folder."""
    (folder / "feature_store.yaml").write_text(
        yaml.safe_dump(repo_settings(**settings), sort_keys=False)
    )


def open_repo_config(folder: str | Path, **settings: Any) -> RepoConfig:
    """The config of a repo in a folder, with a registry file there unless one is given."""
    from feast import RepoConfig

    given = {"registry": f"{folder}/registry.db", **settings}
    config = RepoConfig(**repo_settings(**given))
    config.repo_path = Path(folder)
    return config


def repo_config(folder: str | Path, **offline: Any) -> RepoConfig:
    """The config of a repo whose offline store has these settings."""
    return open_repo_config(folder, offline=offline)


def table_names(client: Any) -> list[str]:
    """All tables of a DynamoDB, in order; an answer holds 100 at most."""
    pages = client.get_paginator("list_tables").paginate()
    return [name for page in pages for name in page["TableNames"]]
