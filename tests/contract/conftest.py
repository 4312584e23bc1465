"""Repos for tests of what Feast's kinds of views do."""

from __future__ import annotations

import uuid

import pytest
from beside_feast import ORDERS, Repo, TwoRepos
from capture_shop import new_shop
from feast import FeatureStore
from repos import open_repo_config


@pytest.fixture
def two_repos(open_store, dynamodb, tmp_path):
    """A repo of ours on each DynamoDB, and one of Feast's beside it, both with `orders`."""
    project = f"k{uuid.uuid4().hex[:12]}"
    online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
    if dynamodb.name == "moto":  # it takes no binary values in PartiQL
        online["newest_wins_with"] = "put_item"
    config = open_repo_config(
        tmp_path,
        project=project,
        provider="local",
        registry=str(tmp_path / "feasts.db"),
        online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
        offline_store={"type": "file"},
    )
    repos = TwoRepos(
        Repo(open_store(project, online=online), tmp_path / "ours", in_folders=True),
        Repo(FeatureStore(config=config), tmp_path / "feasts", in_folders=False),
    )
    repos.keep("orders", ORDERS)
    yield repos
    repos.ours.store.teardown()


@pytest.fixture
def shop(open_store, moto_endpoint, bucket, tmp_path):
    """A captured table with exports."""
    with new_shop(open_store, moto_endpoint, bucket, tmp_path) as made:
        yield made
