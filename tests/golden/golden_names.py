"""Area `names`: what users, yaml files and registries hold of the package by name."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from feast import FeatureStore, RepoConfig
from feast.data_source import DataSource
from feast.repo_config import get_data_source_class_from_type
from golden_record import outcome

import feast_dynamo_ext
from feast_dynamo_ext import errors, local, sagemaker

ROOT = Path(__file__).parents[2]

# Import paths that docs, yaml files, registries or users' programs may hold.
PATHS = (
    "feast_dynamo_ext.aws.AwsSettings",
    "feast_dynamo_ext.aws.filesystem",
    "feast_dynamo_ext.DynamoComputeEngine",
    "feast_dynamo_ext.DynamoOnlineStore",
    "feast_dynamo_ext.DynamoProvider",
    "feast_dynamo_ext.S3ParquetOfflineStore",
    "feast_dynamo_ext.S3ParquetSource",
    "feast_dynamo_ext.TableSettings",
    "feast_dynamo_ext.ViewSettings",
    "feast_dynamo_ext.errors",
    "feast_dynamo_ext.local",
    "feast_dynamo_ext.materialize",
    "feast_dynamo_ext.sagemaker",
    "feast_dynamo_ext.offline_store.S3ParquetOfflineStore",
    "feast_dynamo_ext.offline_store.S3ParquetOfflineStoreConfig",
    "feast_dynamo_ext.online_store.DynamoOnlineStore",
    "feast_dynamo_ext.online_store.DynamoOnlineStoreConfig",
    "feast_dynamo_ext.provider.DynamoProvider",
)
GENERATED = re.compile(r"<!-- generated: (\w+) -->\n(.*?)\n<!-- /generated -->", re.DOTALL)
CONFIGS = (
    "DynamoOnlineStoreConfig",
    "S3ParquetOfflineStoreConfig",
    "DynamoComputeEngineConfig",
    "TableSettings",
    "ViewSettings",
)


def names_record(folder: Path) -> dict[str, Any]:
    return {
        "version": feast_dynamo_ext.__version__,
        "feast_dynamo_ext": _of_module(feast_dynamo_ext),
        "feast_dynamo_ext.sagemaker": _of_module(sagemaker),
        "feast_dynamo_ext.local": _of_module(local),
        "errors": {
            name: {
                "bases": [base.__name__ for base in one.__bases__],
                "attributes": _signature(one),
                "doc": inspect.getdoc(one),
            }
            for name, one in vars(errors).items()
            if isinstance(one, type) and issubclass(one, errors.FeastDynamoError)
        },
        "config": {name: _config(getattr(feast_dynamo_ext, name)) for name in CONFIGS},
        "config tables of the docs": _config_tables(),
        "entry points": sorted(
            f"{one.group} {one.name} = {one.value}"
            for one in metadata.distribution("feast-dynamo-ext").entry_points
        ),
        "paths": {path: _kind(path) for path in PATHS},
        "class types in registries": _registry_types(),
        "types in yaml": _yaml_types(folder),
    }


def _of_module(module: Any) -> dict[str, Any]:
    return {name: _member(getattr(module, name)) for name in sorted(module.__all__)}


def _member(one: Any) -> Any:
    if not callable(one):
        return repr(one)
    if not inspect.isclass(one):
        return {"signature": _signature(one), "async": inspect.iscoroutinefunction(one)}
    package = "feast_dynamo_ext"
    own = {
        name: member
        for base in reversed(one.__mro__)
        if base.__module__.startswith(package)
        for name, member in vars(base).items()
        if not name.startswith("_") and name not in ("model_config", "model_fields")
    }
    return {
        "bases of others": sorted(
            base.__name__ for base in one.__mro__ if not base.__module__.startswith(package)
        ),
        "signature": _signature(one),
        "members": {
            name: _signature(member) for name, member in own.items() if name != "model_post_init"
        },
        "fields": sorted(getattr(one, "__dataclass_fields__", ())),
    }


def _signature(one: Any) -> str:
    """Names, kinds and defaults of parameters; annotations may be spelled anew."""
    if isinstance(one, property):
        return "property"
    if isinstance(one, (staticmethod, classmethod)):
        one = one.__func__
    if not callable(one):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(one)) if _is_plain(one) else "attribute"
    try:
        found = inspect.signature(one)
    except (TypeError, ValueError):
        return "(...)"
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in found.parameters.values()
    ]
    text = str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", re.sub(r"feast_dynamo_ext\.[\w.]*\.(\w+)", r"\1", text))


def _is_plain(one: Any) -> bool:
    return one is None or isinstance(one, (bool, int, float, str, tuple))


def _config(model: Any) -> dict[str, Any]:
    """Fields of a config class with types, bounds and defaults."""
    schema = model.model_json_schema()
    return {
        name: {
            "schema": {
                part: cell
                for part, cell in schema["properties"][field.alias or name].items()
                if part != "title"
            },
            "default": field.get_default(call_default_factory=True),
            "required": field.is_required(),
        }
        for name, field in model.model_fields.items()
    } | {"<other keys>": str(model.model_config.get("extra"))}


def _config_tables() -> dict[str, list[str]]:
    """The generated tables of the docs: each field with its sentences, on whatever page."""
    found = {}
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for name, text in GENERATED.findall(page.read_text()):
            if text.startswith("| field"):
                found[name] = text.split("\n")
    return found


def _kind(path: str) -> str:
    """What stands at a dotted path: a module, a class, a function, a value, or nothing."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        try:
            found = importlib.import_module(path)
        except ImportError:
            return "nothing"
    if inspect.ismodule(found):
        return "module"
    return "class" if inspect.isclass(found) else "function" if callable(found) else "value"


def _registry_types() -> dict[str, Any]:
    """Sources as registries keep them, and what they are read as."""
    sources = [
        feast_dynamo_ext.S3ParquetSource(
            path="s3://bucket/orders",
            name="orders",
            timestamp_field="t",
            created_timestamp_column="made",
            field_mapping={"a": "b"},
            date_partition_column="dt",
            s3_endpoint_override="http://127.0.0.1:1",
            description="Orders.",
            tags={"team": "growth"},
            owner="me",
        ),
        feast_dynamo_ext.S3ParquetSource(
            path="orders", timestamp_field="t", date_partition_column_format="year=%Y/month=%m"
        ),
    ]
    answers = {}
    for source in sources:
        proto = source.to_proto()
        proto.ClearField("meta")  # times of now
        again = DataSource.from_proto(proto)
        answers[source.name] = {
            "class type": proto.data_source_class_type,
            "class": get_data_source_class_from_type(proto.data_source_class_type).__name__,
            "configuration": json.loads(proto.custom_options.configuration),
            "bytes": proto.SerializeToString(deterministic=True),
            "is the same": again == source,
        }
    return answers


def _yaml_types(folder: Path) -> dict[str, Any]:
    """Values of `type` and `provider`, and the classes that Feast makes of them."""

    def store(**more: Any) -> FeatureStore:
        config = RepoConfig(
            **{
                "project": "p",
                "provider": "feast_dynamo_ext.DynamoProvider",
                "registry": str(folder / "registry.db"),
                "online_store": {"type": "feast_dynamo_ext.DynamoOnlineStore"},
                "offline_store": {"type": "feast_dynamo_ext.S3ParquetOfflineStore"},
                "entity_key_serialization_version": 3,
                **more,
            }
        )
        config.repo_path = folder
        return FeatureStore(config=config)

    def classes(**more: Any) -> Any:
        provider = store(**more).provider
        return {
            "provider": type(provider).__name__,
            "online store": type(provider.online_store).__name__,
            "offline store": type(provider.offline_store).__name__,
            "engine": type(provider.batch_engine).__name__,
            "online config": type(provider.repo_config.online_store).__name__,
            "offline config": type(provider.repo_config.offline_store).__name__,
        }

    module, online = "feast_dynamo_ext.", {"region": "eu-west-1"}
    cases: dict[str, dict[str, Any]] = {
        "as documented": {},
        "with an engine": {"batch_engine": {"type": f"{module}DynamoComputeEngine"}},
        "provider by module": {"provider": f"{module}provider.DynamoProvider"},
        "online store by module": {
            "online_store": {"type": f"{module}online_store.DynamoOnlineStore"}
        },
        "offline store by module": {
            "offline_store": {"type": f"{module}offline_store.S3ParquetOfflineStore"}
        },
        "a wrong key": {"online_store": {"type": f"{module}DynamoOnlineStore", "regoin": "x"}},
        "a wrong key of a table": {
            "online_store": {"type": f"{module}DynamoOnlineStore", "table": {"stream": "all"}}
        },
        "a wrong value": {
            "offline_store": {"type": f"{module}S3ParquetOfflineStore", "join_plan": "fast"}
        },
        "a wrong engine key": {
            "batch_engine": {"type": f"{module}DynamoComputeEngine", "lookback": 1}
        },
        "another provider": {"provider": "local"},
        "with a region": {"online_store": {"type": f"{module}DynamoOnlineStore", **online}},
    }
    return {name: outcome(lambda more=more: classes(**more)) for name, more in cases.items()}
