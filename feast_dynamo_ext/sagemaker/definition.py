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

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from feast_dynamo_ext.config import DeclarationModel, WrongKeyError, place_of
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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from typing_extensions import Self

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

    def found_at(self, where: str) -> None:
        """Note where it is declared, for errors."""
        self._source = DeclaredAt(where)

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
