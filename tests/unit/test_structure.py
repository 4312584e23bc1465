"""What design.md says of the house: what importing loads, and which way data flows."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "feast_dynamo_ext"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Part of the package -> the parts that it may never import. `cli` may import all.
TOP = {"capture", "sagemaker", "submit", "provider", "cli"}
STORES = {"online_store", "offline_store"}
NEVER = {
    "storage": {"parquet", "retrieval", "dynamo", "monitoring", "materialize", "cost"}
    | STORES
    | TOP,
    "timestamps": {"parquet", "retrieval", "dynamo", "monitoring", "materialize"} | STORES | TOP,
    "arrow_types": {"parquet", "retrieval", "dynamo", "monitoring", "materialize"} | STORES | TOP,
    "exact": {"parquet", "retrieval", "dynamo", "monitoring", "materialize"} | STORES | TOP,
    "declared_values": {"parquet", "retrieval", "dynamo", "monitoring", "materialize"}
    | STORES
    | TOP,
    "declared": {"parquet", "retrieval", "dynamo", "monitoring", "materialize"} | STORES | TOP,
    "parquet": {"retrieval", "dynamo", "monitoring", "materialize", "cost"} | STORES | TOP,
    "retrieval": {"dynamo", "monitoring", "materialize", "cost"} | STORES | TOP,
    "columns": {"parquet", "retrieval", "dynamo", "monitoring", "materialize"} | STORES | TOP,
    "view_settings": {"parquet", "retrieval", "dynamo", "monitoring", "materialize"}
    | STORES
    | TOP,
    "monitoring": {"dynamo", "materialize", "cost"} | STORES | TOP,
    "dynamo": {"parquet", "retrieval", "monitoring", "materialize", "cost"} | STORES | TOP,
    "cost": {"parquet", "retrieval", "monitoring"} | STORES | TOP,
    "materialize": TOP,
    "sagemaker": {"capture", "submit", "cli", "provider"},
    "submit": {"capture", "materialize", "monitoring", "cost", "cli", "provider"} | STORES,
    "capture": {"sagemaker", "submit", "cli", "provider"},
    "job_following": {"parquet", "retrieval", "dynamo", "materialize"} | STORES | TOP,
    "local_state": {"retrieval", "dynamo", "materialize"} | STORES | TOP,
    "local": {"dynamo", "parquet", "retrieval", "materialize", "cost"} | STORES | TOP,
}

# Folder of `capture` -> what it may never import of the rest of it.
OF_CAPTURE = {"apply_checks", "captured", "inference", "lambda_handler", "quarantine", "status"}
NEVER_IN_CAPTURE = {
    "values": {"exports", "stream", "erasure", "history", "dynamo_table"} | OF_CAPTURE,
    "exports": {"stream", "erasure"} | OF_CAPTURE,
    "stream": {"exports"} | OF_CAPTURE,
    "erasure": {"stream"} | OF_CAPTURE,
}


def loaded_by(*statements: str) -> list[set[str]]:
    """Modules that are loaded after each of the statements."""
    code = "; ".join(f"{statement}; print(*sys.modules)" for statement in statements)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}"], capture_output=True, text=True, check=True
    )
    return [set(line.split()) for line in result.stdout.splitlines()]


def test_importing_the_package_loads_nothing_heavy():
    (loaded,) = loaded_by("import feast_dynamo_ext")
    assert not loaded & {"duckdb", "pyspark", "sagemaker", "pandas", "pyarrow", "boto3", "feast"}


def test_sessions_and_clients_need_neither_feast_nor_pydantic():
    (loaded,) = loaded_by("import feast_dynamo_ext.aws")
    assert not loaded & {"feast", "pydantic"}


# What a process that reads and writes rows has to load; `feast apply` loads the rest.
OF_THE_ONLINE_STORE = {
    *("_feast", "arrow_types", "aws", "columns", "config", "declared", "declared_values"),
    *("errors", "exact", "forks", "key_types", "online_store"),
    *("series_settings", "timestamps", "view_settings"),
    *("dynamo.batch_get", "dynamo.client", "dynamo.encoding", "dynamo.entity_events"),
    *("dynamo.encoding.protobuf", "dynamo.encoding.requests", "dynamo.event_loops"),
    *("dynamo.keys", "dynamo.layouts", "dynamo.layouts.packed", "dynamo.layouts.series"),
    *("dynamo.newest_wins", "dynamo.query", "dynamo.series_read"),
    *("dynamo.precomputed", "dynamo.precomputed.lookup", "dynamo.precomputed.maintain"),
    *("dynamo.precomputed.vectors", "dynamo.read", "dynamo.retry"),
    *("dynamo.row_batch", "dynamo.schemas", "dynamo.settings", "dynamo.signing"),
    *("dynamo.transport", "dynamo.views", "dynamo.write", "dynamo"),
}


@pytest.mark.slow
def test_the_online_store_loads_only_what_reads_and_writes_rows():
    # One process for both: importing Feast takes seconds.
    of_settings, of_store, of_name = loaded_by(
        "from feast_dynamo_ext.dynamo import settings",
        "import feast_dynamo_ext.online_store",
        "from feast_dynamo_ext import DynamoOnlineStore",
    )
    assert "feast_dynamo_ext.view_settings" in of_settings
    assert not any(name.startswith("feast_dynamo_ext.dynamo.tables") for name in of_settings)
    ours = {name.removeprefix("feast_dynamo_ext.") for name in of_store if "dynamo_ext." in name}
    assert ours - OF_THE_ONLINE_STORE == set()
    assert of_name == of_store
    assert not of_store & {"duckdb", "pyspark", "sagemaker", "moto"}


def test_data_flows_one_way():
    against = []
    for module in MODULES:
        within = module.relative_to(PACKAGE).parts
        never = NEVER.get(within[0].removesuffix(".py"), set())
        names = {name for name in imports_of(module) if name.split(".")[1] in never}
        against += [("/".join(within), name) for name in sorted(names)]
    assert against == []


def test_the_folders_of_capture_stand_on_one_another_one_way():
    against, seen = [], set()
    for module in (PACKAGE / "capture").glob("*/*.py"):
        folder = module.parent.name
        never = {f"feast_dynamo_ext.capture.{name}" for name in NEVER_IN_CAPTURE[folder]}
        names = {".".join(name.split(".")[:3]) for name in imports_of(module)}
        against += [(f"{folder}/{module.name}", name) for name in sorted(names & never)]
        seen.add(folder)
    assert against == []
    assert seen == set(NEVER_IN_CAPTURE)


def test_no_two_modules_have_one_name():
    names = [module.name for module in MODULES if module.name != "__init__.py"]
    assert [name for name, times in Counter(names).items() if times > 1] == []


@functools.cache
def imports_of(module: Path) -> set[str]:
    """The modules of the package that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("feast_dynamo_ext.")}


def test_no_two_modules_import_each_other():
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    imports = {name: imports_of(path) & set(modules) for name, path in modules.items()}
    pairs = [(one, other) for one in imports for other in imports[one] if one in imports[other]]
    assert pairs == []


def test_clients_and_s3_filesystems_are_built_in_aws_alone():
    builders = ("boto3.client(", "boto3.resource(", "boto3.Session(", "S3FileSystem(")
    builds = {
        module.name: [builder for builder in builders if builder in module.read_text()]
        for module in MODULES
    }
    assert builds.pop("aws.py")
    assert builds.pop("run_command.py")  # runs by itself, where the package is not there yet
    assert {module: found for module, found in builds.items() if found} == {}
