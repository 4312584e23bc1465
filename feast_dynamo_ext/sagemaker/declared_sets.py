"""The training sets that a feature repo declares, in yaml and in Python; how one is built."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.declared_yaml import declared_yaml
from feast_dynamo_ext.sagemaker.definition import TrainingSetDefinition
from feast_dynamo_ext.sagemaker.training_set import TrainingSet, create_training_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from feast import FeatureStore

FOLDER = "training_sets"
"""Of the feature repo, where yaml files declare one training set each."""


@dataclass(frozen=True)
class Declared:
    """A training set of a feature repo.

    Attributes:
        definition: what is declared; has a name.
        where: file of the repo that declares it.
    """

    definition: TrainingSetDefinition
    where: str


def load_definition(path: Path, shown: str | None = None) -> TrainingSetDefinition:
    """Read a yaml file that declares a training set.

    Args:
        path: the file.
        shown: its name in errors; default: the path.

    Raises:
        ConfigError: no yaml, or a setting that cannot be; names file and line.
    """
    subject = shown or str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{subject} cannot be read: {error}.") from error
    values, lines = declared_yaml(text, subject)
    return TrainingSetDefinition.model_validate(
        {"name": path.stem, **values}, context={"subject": subject, "lines": lines}
    )


def load_definitions(repo: Path) -> dict[str, Declared]:
    """All training sets that a feature repo declares, by name.

    These are the files of `training_sets/`, and `TrainingSetDefinition` objects of its Python
    modules; a module that does not name that class is not loaded.

    Raises:
        ConfigError: a declaration that cannot be, two of one name, or a module that fails.
    """
    found: dict[str, Declared] = {}
    for where, definition in (*_of_yaml(repo), *_of_python(repo)):
        if not definition.name:
            raise ConfigError(f"{where}: a training set has no `name`. Give it one.")
        if definition.name in found:
            raise ConfigError(
                f"{where}: a training set `{definition.name}` is declared in "
                f"{found[definition.name].where} already. Rename one of them."
            )
        found[definition.name] = Declared(definition, where)
    return dict(sorted(found.items()))


def _of_yaml(repo: Path) -> Iterator[tuple[str, TrainingSetDefinition]]:
    for path in sorted((repo / FOLDER).glob("*.y*ml")):
        # Editors keep hidden files beside those that are open, Emacs a link to nothing.
        if path.suffix in (".yaml", ".yml") and not path.name.startswith("."):
            where = f"{FOLDER}/{path.name}"
            yield where, load_definition(path, where)


def _of_python(repo: Path) -> Iterator[tuple[str, TrainingSetDefinition]]:
    for path in sorted(repo.glob("*.py")):
        if TrainingSetDefinition.__name__ in path.read_text(encoding="utf-8", errors="replace"):
            for variable, value in vars(_module(path)).items():
                if isinstance(value, TrainingSetDefinition):
                    if not value.name:
                        raise ConfigError(
                            f"{path.name}: the training set `{variable}` has no `name`. Give it "
                            "one."
                        )
                    value.found_at(f"{path.name}: {variable}")
                    yield path.name, value


def _module(path: Path) -> Any:
    """A module of the repo, which may import those beside it."""
    name = f"feast_dynamo_declared_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be loaded as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except ConfigError as error:
        raise ConfigError(f"{path.name}{_line_of(error, path)}: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"{path.name} cannot be loaded: {type(error).__name__}: {error}. Correct it."
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """Where in a module the call is that has raised, in words."""
    found = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(path)
    ]
    return f", line {found[-1]}" if found else ""


def definition_named(repo: Path, name: str) -> Declared:
    """One training set of a feature repo.

    Raises:
        ConfigError: there is none of that name; or as `load_definitions`.
    """
    declared = load_definitions(repo)
    if name in declared:
        return declared[name]
    if not declared:
        raise ConfigError(
            f"The feature repo {repo} declares no training set. Write `{FOLDER}/{name}.yaml`."
        )
    raise ConfigError(
        f"There is no training set `{name}`. {did_you_mean(name, declared, 'Declared')}"
    )


def build_training_set(
    store: FeatureStore,
    definition: TrainingSetDefinition,
    *,
    repo: Path,
    overwrite: bool | None = None,
    output: str | None = None,
    snapshots: Mapping[str, str] | None = None,
) -> TrainingSet:
    """Build a declared training set.

    Args:
        store: the feature store.
        definition: what is declared.
        repo: folder of the feature repo, which paths start from.
        overwrite: replace the set that is there; default: as declared.
        output: another place than the declared one.
        snapshots: as of `create_training_set`.

    Raises:
        ConfigError: a feature service that is not there, or the store has another provider.
        OfflineStoreError: the join is not possible.
        TrainingSetError: the result cannot be a training set.
    """
    return create_training_set(
        store,
        entity_rows=definition.entity_rows_in(repo),
        features=_features_of(store, definition),
        label=definition.label,
        output=output or definition.output_in(repo),
        split=definition.split.to_rule(),
        full_feature_names=definition.full_feature_names,
        overwrite=definition.overwrite if overwrite is None else overwrite,
        parts=definition.parts,
        snapshots=snapshots,
        weight=definition.weight,
        helpers=definition.with_role("helper"),
        given_features=definition.with_role("feature"),
        declared_entities=definition.with_role("entity"),
        places=definition.places(),
        encodings={
            name: column
            for name, column in definition.columns.items()
            if column.role in (None, "feature")
        },
        target=definition.target,
        formats=definition.formats,
        name=definition.name or None,
        definition=definition.to_json(),
    )


def _features_of(store: FeatureStore, definition: TrainingSetDefinition) -> Any:
    if definition.features is not None:
        return definition.features
    from feast.errors import FeatureServiceNotFoundException

    try:
        return store.get_feature_service(definition.feature_service or "")
    except FeatureServiceNotFoundException as error:
        known = [service.name for service in store.list_feature_services()]
        hint = (
            did_you_mean(definition.feature_service, known, "It has")
            if known
            else "It has none: run `feast apply` first."
        )
        raise ConfigError(
            f"Training set `{definition.name}`: there is no feature service "
            f"`{definition.feature_service}`. {hint}"
        ) from error
