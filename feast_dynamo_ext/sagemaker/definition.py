"""Training sets that are declared: in yaml files of the feature repo, or in its Python modules.

`training_sets/churn.yaml`::

    feature_service: churn_v2
    entity_rows: {path: labels/churn.parquet}
    label: churned
    columns:
      city: {encoding: one_hot, min_count: 20}
      plan: ordinal
      basket_value: {role: feature}
      order_id: helper
    split: {rule: time, validation_from: 2026-03-01, test_from: 2026-04-01, embargo: 7d}
    target: xgboost
    formats: [parquet]
    output: s3://my-lake/training/churn
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from feast_dynamo_ext.config import DeclarationModel, WrongKeyError, did_you_mean, place_of
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.encodings import Encoding
from feast_dynamo_ext.sagemaker.split import (
    RULES,
    ColumnSplit,
    GroupSplit,
    NoSplit,
    RandomSplit,
    SplitRule,
    StratifiedSplit,
    TimeFractions,
    TimeSplit,
    kept_value,
)
from feast_dynamo_ext.sagemaker.training_columns import filled_option, never_filled
from feast_dynamo_ext.sagemaker.training_set import TrainingSet, create_training_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from feast import FeatureStore
    from typing_extensions import Self

FOLDER = "training_sets"
"""Of the feature repo, where yaml files declare one training set each."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

_COLUMN_ROLES = ("feature", "helper", "entity")
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")
_LENGTH_SECONDS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


class ColumnDeclaration(Encoding):
    """A column's role and encoding; a text alone is one of the two."""

    role: Literal["feature", "helper", "entity"] | None = None
    """Of a column of the entity rows: `feature` (trained on), `helper` (kept beside, never trained
    on) or `entity`. Join keys are entities without it."""

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"role": value} if value in _COLUMN_ROLES else {"encoding": value}
        return value

    def checked(self) -> Self:
        """See `DeclarationModel.checked`."""
        if self.role in ("helper", "entity") and self.model_fields_set - {"role"}:
            raise ValueError(f"a column of the role `{self.role}` is kept as it is: no encoding")
        super().checked()
        return self


class SplitDeclaration(DeclarationModel):
    """Which rows train, validate and test."""

    rule: Literal["time", "group", "random", "stratified", "column", "none"]
    """`time` by event time; `group` by a stable hash of an entity, which is in one split alone;
    `random`; `stratified`, at random with the balance of a column kept; `column`, by what one
    says; `none`: all rows train."""

    validation_from: datetime | None = None
    """Of `time`: first instant of validation. Without a zone it is UTC."""

    test_from: datetime | None = None
    """Of `time`: first instant of test."""

    embargo: str | None = None
    """Of `time`: rows so long before the next split are left out, for example `7d`, `12h`,
    `90min` or `30s`."""

    fractions: dict[str, float] | None = None
    """Of all rules but `column` and `none`: each split's part of the rows, which add up to 1. Of
    `time` in place of instants."""

    by: str | list[str] | None = None
    """Of `group`: the columns that name the entity. Of `stratified`: the column; default: the
    label."""

    seed: int = 0
    """Of `group`, `random` and `stratified`: another one gives another split."""

    column: str | None = None
    """Of `column`: its name."""

    values: dict[str, Any] | None = None
    """Of `column`: of each split the value or values that are in it. Default: the column has the
    names of the splits."""

    @field_validator("validation_from", "test_from", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        # Pydantic takes a number for seconds since 1970: 20260110 for a day in August 1970.
        if isinstance(value, (int, float)) or (isinstance(value, str) and value.isdigit()):
            raise ValueError(f"is the number {value}: write an instant as 2026-01-10 or in full")
        return value

    @field_validator("values")
    @classmethod
    def _as_kept(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        return values and {
            name: [kept_value(each) for each in found]
            if isinstance(found, (list, tuple))
            else kept_value(found)
            for name, found in values.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _of_rule(cls, value: Any) -> Any:
        rules: tuple[Any, ...] = tuple(RULES.values())
        if type(value) not in rules:
            return value
        found = value.as_manifest()
        of_time = found["rule"].startswith("event_time")
        found["rule"] = "time" if of_time else found["rule"]
        if "embargo_s" in found:
            found["embargo"] = f"{found.pop('embargo_s')}s"
        return {key: each for key, each in found.items() if each is not None}

    def checked(self) -> Self:
        """See `DeclarationModel.checked`."""
        allowed = {
            "time": {"validation_from", "test_from", "embargo", "fractions"},
            "group": {"fractions", "by", "seed"},
            "random": {"fractions", "seed"},
            "stratified": {"fractions", "by", "seed"},
            "column": {"column", "values"},
            "none": set[str](),
        }[self.rule]
        others = sorted(self.model_fields_set - allowed - {"rule"})
        if others:
            raise ValueError(f"`{others[0]}` is not an option of `{self.rule}`; leave it out")
        self.to_rule()
        return self

    def to_rule(self) -> SplitRule:
        """The rule that is declared.

        Raises:
            TrainingSetError: one that cannot be.
        """
        fractions = self.fractions or {}
        by = (self.by,) if isinstance(self.by, str) else tuple(self.by or ())
        if self.fractions and (self.validation_from or self.test_from):
            raise ValueError("a split by time has instants or `fractions`, not both")
        if self.rule == "stratified" and len(by) > 1:
            raise ValueError("`by` of `stratified` is one column")
        if self.rule == "column" and not self.column:
            raise ValueError("`column` needs `column`: the one that says each row's split")
        made: dict[str, Callable[[], SplitRule]] = {
            "time": lambda: (
                TimeFractions(fractions, self._embargo)
                if self.fractions
                else TimeSplit(self.validation_from, self.test_from, self._embargo)
            ),
            "group": lambda: GroupSplit(fractions, by, self.seed),
            "random": lambda: RandomSplit(fractions, self.seed),
            "stratified": lambda: StratifiedSplit(fractions, by[0] if by else None, self.seed),
            "column": lambda: ColumnSplit(self.column or "", self.values),
            "none": NoSplit,
        }
        return made[self.rule]()

    @property
    def _embargo(self) -> timedelta:
        found = _LENGTH.fullmatch(self.embargo or "0s")
        if found is None:
            raise ValueError(f"`embargo` is `{self.embargo}`: write it as 7d, 12h, 90min or 30s")
        try:
            return timedelta(seconds=float(found[1]) * _LENGTH_SECONDS[found[2]])
        except OverflowError as error:
            raise ValueError(f"`embargo` is `{self.embargo}`, which is too long") from error


@dataclass(frozen=True)
class DeclaredAt:
    """Where a set is declared, which makes no difference between two sets.

    Attributes:
        subject: the file, or variable of a module; empty where it is not known.
        lines: the line of each path of keys.
    """

    subject: str = field(default="", compare=False)
    lines: Mapping[tuple[Any, ...], int] = field(default_factory=dict, compare=False)


class TrainingSetDefinition(DeclarationModel):
    """A training set as it is declared. Exactly one of `feature_service` and `features` is."""

    name: str = ""
    """Its name: letters, digits, `_` and `-`. Default: the name of its file."""

    feature_service: str | None = None
    """Name of the feature service whose features are trained on."""

    features: list[str] | None = None
    """Feature references, `view:feature`, in place of a feature service."""

    entity_rows: Any
    """The examples: join keys, `event_timestamp`, label. `{sql: ...}`, `{path: ...}` of Parquet or
    CSV (relative to the feature repo), or in Python a frame."""

    label: str
    """Column of the entity rows that is to be predicted."""

    weight: str | None = None
    """Column of the entity rows with the rows' weights."""

    columns: dict[str, ColumnDeclaration] = Field(default_factory=dict)
    """Role and encoding of columns. Numbers and booleans need none; columns of the entity rows
    beside join keys, event time, label and weight need a role."""

    split: SplitDeclaration
    """Which rows train, validate and test."""

    target: Literal["xgboost", "lightgbm", "autogluon", "linear-learner", "script"] | None = None
    """What trains on it; what it cannot read is refused before anything is written. Default: no
    algorithm in particular."""

    formats: list[Literal["csv", "parquet", "recordio", "libsvm"]] = Field(
        default=["csv", "parquet"], min_length=1
    )
    """Formats in which each split is written."""

    output: str
    """`s3://bucket/prefix`, or a folder (relative to the feature repo)."""

    parts: int = Field(default=1, ge=1)
    """Files per split and format, of equal size and balance of classes."""

    full_feature_names: bool = False
    """Whether features are named `view__feature`."""

    overwrite: bool = False
    """Whether a build replaces the set that is there."""

    # Without an annotation, as it is no key that users write.
    _source = PrivateAttr(default_factory=DeclaredAt)

    def model_post_init(self, context: Any) -> None:
        """Keep where it is declared, for errors that only the columns of a join show."""
        if context:
            self._source = DeclaredAt(context.get("subject", ""), context.get("lines", {}))

    def places(self) -> dict[str, str]:
        """File and line of each column that is declared, label and weight too, where known."""
        subject, lines = self._source.subject, self._source.lines
        if not subject:
            return {}
        paths: dict[str, tuple[str, ...]] = {self.label: ("label",)}
        paths |= {self.weight: ("weight",)} if self.weight else {}
        paths |= {name: ("columns", name) for name in self.columns}
        return {name: place_of(path, subject, lines) for name, path in paths.items()}

    def checked(self) -> Self:
        """See `DeclarationModel.checked`."""
        if (self.feature_service is None) == (self.features is None):
            raise WrongKeyError(
                "name a `feature_service` or `features`, one of the two",
                *(() if self.features is None else ("features",)),
            )
        if self.name and not NAME.fullmatch(self.name):
            raise WrongKeyError(
                f"`name` is `{self.name}`: up to 63 letters, digits, `_` and `-`, first a letter "
                "or a digit",
                "name",
            )
        rows = self.entity_rows
        is_mapping = isinstance(rows, dict)
        if is_mapping and (
            rows.keys() not in ({"sql"}, {"path"})
            or not all(isinstance(each, str) for each in rows.values())
        ):
            wrong = next((str(key) for key in rows if key not in ("sql", "path")), "")
            raise WrongKeyError(
                "`entity_rows` is `{sql: ...}`, `{path: ...}` or, in Python, a frame",
                "entity_rows",
                wrong,
            )
        for role, name in (("label", self.label), ("weight", self.weight)):
            column = self.columns.get(name or "")
            if column is None or name is None:
                continue
            if column.role is not None:
                words = f"`{name}` is the {role} and a {column.role}"
                raise WrongKeyError(words, "columns", name, "role")
            filled = filled_option(column)
            if filled:
                words = f"the {role} `{name}` {never_filled(filled)}"
                raise WrongKeyError(words, "columns", name, filled)
        return self

    @field_validator("formats")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("names a format twice")
        return value

    def with_role(self, role: str) -> tuple[str, ...]:
        """The columns that are declared to have a role."""
        return tuple(name for name, each in self.columns.items() if each.role == role)

    def to_json(self) -> dict[str, Any]:
        """The declaration of JSON's own types, as the manifest has it; without a frame."""
        hidden = set() if isinstance(self.entity_rows, (str, dict)) else {"entity_rows"}
        found: dict[str, Any] = self.model_dump(
            mode="json", by_alias=True, exclude_unset=True, exclude=hidden
        )
        return found

    def entity_rows_in(self, repo: Path) -> Any:
        """What `get_historical_features` takes as entity rows; paths are of the repo's folder."""
        rows = self.entity_rows
        if not isinstance(rows, dict):
            return rows
        return rows["sql"] if "sql" in rows else _absolute(rows["path"], repo)

    def output_in(self, repo: Path) -> str:
        """Where it is written; a path is of the repo's folder."""
        return _absolute(self.output, repo)


def _absolute(path: str, repo: Path) -> str:
    return path if "://" in path else str((repo / path).resolve())


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


def declared_yaml(text: str, subject: str) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """The mapping that a yaml text declares, and the line of each path of keys in it.

    Args:
        text: of one document.
        subject: its name in errors.

    Raises:
        ConfigError: no yaml, a value that its form makes a wrong date or number, a key that is
            there twice or is no text or number, or no mapping; names the line.
    """
    import yaml

    node: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines = dict(_lines(node, (), subject))
        _refuse_unreadable(loader, node, subject)
        values = loader.construct_document(node) if node is not None else None
    except RecursionError as error:
        raise ConfigError(f"{subject}: it is nested too deep. Write it flat.") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        words = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{subject}{line}: it is no yaml: {words}.") from error
    if not isinstance(values, dict):
        line = f", line {node.start_mark.line + 1}" if node is not None else ""
        raise ConfigError(
            f"{subject}{line}: it is no mapping of settings, such as `label: churned`."
        )
    return values, lines


def _refuse_unreadable(loader: Any, node: Any, subject: str) -> None:
    """Refuse plain values that yaml takes for dates or numbers which they are not.

    Raises:
        ConfigError: names the line.
    """
    import yaml

    waiting, seen = [node], set[int]()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, yaml.MappingNode):
            waiting += [part for pair in each.value for part in pair]
        elif isinstance(each, yaml.SequenceNode):
            waiting += each.value
        elif each.tag != "tag:yaml.org,2002:merge":  # `<<`, which is no value
            try:
                loader.construct_object(each)
            except yaml.YAMLError:
                raise  # names its line itself
            except (ValueError, LookupError, OverflowError) as error:
                kind = each.tag.rpartition(":")[2]
                raise ConfigError(
                    f"{subject}, line {each.start_mark.line + 1}: `{each.value}` is no {kind}: "
                    f"{error}. Correct it, or put it in quotes if it is a text."
                ) from error


def _lines(
    node: Any, path: tuple[Any, ...], subject: str, above: tuple[int, ...] = ()
) -> Iterator[tuple[Any, int]]:
    """The line of each path of keys.

    Raises:
        ConfigError: a key stands twice, of which yaml would take the last; a key is a list or a
            mapping; or an alias stands for what it is in.
    """
    import yaml

    if node is not None and id(node) in above:
        raise ConfigError(
            f"{subject}, line {node.start_mark.line + 1}: it holds an alias of itself. Write out "
            "what is meant."
        )
    inner = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(
                    f"{subject}, line {line}: a key is a list or a mapping. Write a name."
                )
            if key.value in seen:
                raise ConfigError(
                    f"{subject}, line {line}: `{key.value}` stands in line {seen[key.value]} "
                    "already. Leave one of the two."
                )
            seen[key.value] = line
            yield (*path, key.value), line
            yield from _lines(value, (*path, key.value), subject, inner)
    elif isinstance(node, yaml.SequenceNode):
        for place, each in enumerate(node.value):
            yield (*path, place), each.start_mark.line + 1
            yield from _lines(each, (*path, place), subject, inner)


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
                    value._source = DeclaredAt(f"{path.name}: {variable}")
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
