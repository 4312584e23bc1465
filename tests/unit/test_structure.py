"""What design.md says of the house: what importing loads, and which way data flows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "feast_dynamo_ext"

# Folder -> the parts of the package that it may never import.
NEVER = {
    "offline": {"dynamo", "materialize", "sagemaker", "online_store", "offline_store", "provider"},
    "dynamo": {"offline", "materialize", "sagemaker", "online_store", "offline_store", "provider"},
    "local": {"dynamo", "offline", "materialize", "sagemaker", "provider"},
}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_by("import feast_dynamo_ext")
    assert not loaded & {"duckdb", "pyspark", "sagemaker", "pandas", "pyarrow", "boto3", "feast"}


def test_the_online_store_loads_no_part_of_the_offline_one():
    loaded = loaded_by("from feast_dynamo_ext import DynamoOnlineStore")
    assert not loaded & {"duckdb", "pyspark", "sagemaker", "moto"}
    assert not any(name.startswith("feast_dynamo_ext.offline") for name in loaded)


# The same of the rooms of the offline store.
NEVER_OFFLINE = {
    "sources": {"entities", "join", "retrieval", "writing", "monitoring"},
    "writing": {"entities", "join", "retrieval", "compact", "monitoring"},
    "join": {"retrieval", "writing", "monitoring"},
    "entities": {"retrieval", "writing", "compact", "monitoring"},
    "retrieval": {"compact", "monitoring"},
    "compact": {"entities", "join", "retrieval", "monitoring"},
    "monitoring": {"entities", "retrieval", "compact"},
}


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_data_flows_one_way(module):
    within = module.relative_to(PACKAGE).parts
    never = NEVER.get(within[0], set())
    never_offline = NEVER_OFFLINE.get(within[1], set()) if within[0] == "offline" else set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "feast_dynamo_ext":
                names = [f"feast_dynamo_ext.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            assert parts[0] != "feast_dynamo_ext" or parts[1:2] == [] or parts[1] not in never
            is_offline = parts[:2] == ["feast_dynamo_ext", "offline"]
            assert not (is_offline and never_offline & set(parts[2:3]))


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_clients_and_s3_filesystems_are_built_in_aws_alone(module):
    if module.name == "aws.py":
        return
    source = module.read_text()
    for builder in ("boto3.client(", "boto3.resource(", "boto3.Session(", "S3FileSystem("):
        assert builder not in source
