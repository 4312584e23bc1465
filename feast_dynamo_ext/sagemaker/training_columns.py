"""The columns of a training set: the role of each, and what cannot play its role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import numbers
from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import TrainingSetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.sagemaker.encodings import Encoding, FittedEncoding


_EXACT_FLOAT_LIMIT = 2**53

ROLES = ("label", "weight", "entity", "event_time", "helper", "feature")

LABEL_KINDS = ("number", "boolean", "ordinal")
WEIGHT_KINDS = ("number", "boolean")


@dataclass(frozen=True)
class TrainingColumns:
    """Which column has which role.

    Attributes:
        label: the column to predict.
        event_timestamp: the event time.
        entity_columns: columns that identify a row's entity.
        features: columns to train on, in order.
        weight: the rows' weights; None where all weigh the same.
        helpers: columns that are kept beside, and never trained on.
    """

    label: str
    event_timestamp: str
    entity_columns: tuple[str, ...]
    features: tuple[str, ...]
    weight: str | None = None
    helpers: tuple[str, ...] = ()

    @property
    def encoded(self) -> tuple[str, ...]:
        """Label, weight if any, and features: what the files hold, encoded."""
        return (self.label, *((self.weight,) if self.weight else ()), *self.features)

    @property
    def kept(self) -> tuple[str, ...]:
        """What `rows/` holds: entities, event time, helpers."""
        names = (*self.entity_columns, self.event_timestamp, *self.helpers)
        return tuple(dict.fromkeys(names))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, each once."""
        return tuple(dict.fromkeys((*self.encoded, *self.kept)))

    def roles(self) -> dict[str, str]:
        """The role of each column, in the order of `names`."""
        found = {
            **dict.fromkeys(self.helpers, "helper"),
            **dict.fromkeys(self.entity_columns, "entity"),
            self.event_timestamp: "event_time",
            **dict.fromkeys(self.features, "feature"),
            self.label: "label",
        }
        if self.weight:
            found[self.weight] = "weight"
        return {name: found[name] for name in self.names}

    def check(self, schema: pa.Schema) -> None:
        """Refuse columns that are not there, or that have two roles where one spoils the other.

        Raises:
            TrainingSetError: names them.
        """
        require_columns(schema, self.names)
        if not self.features:
            raise TrainingSetError("`features` is empty. Name at least one column to train on.")
        repeated = sorted({name for name in self.features if self.features.count(name) > 1})
        if repeated:
            raise TrainingSetError(f"`features` names {_listed(repeated)} more than once.")
        if self.label in self.features:
            raise TrainingSetError(
                f"`{self.label}` is the label and one of `features`: the model would read its own "
                "answer. Leave it out of `features`."
            )
        if self.weight == self.label or self.weight in self.features:
            raise TrainingSetError(
                f"`{self.weight}` is the weight and the label or one of `features`. Give the "
                "weight a column of its own."
            )
        trained = sorted({*self.features, self.label} & set(self.helpers))
        if trained:
            raise TrainingSetError(
                f"{_listed(trained)} are helpers, which are never trained on, and label or "
                "features. Give each one role."
            )


def refuse_idle(
    declared: Mapping[str, str | None],
    kinds: Mapping[str, str],
    places: Mapping[str, str] | None = None,
) -> None:
    """Refuse declarations of columns that would change nothing.

    Args:
        declared: the declared role by column; None where there is an encoding alone.
        kinds: what each column is: `label`, `weight`, `event_time`, `join_key`, `helper`,
            `entity_rows` for others of these, or `feature` where it is looked up.
        places: file and line of declarations, by column, where these are known.

    Raises:
        TrainingSetError: names all of them.
    """
    problems = []
    for name, role in declared.items():
        words = _idle(name, role, kinds)
        if words:
            place = f"{places[name]}: " if places and name in places else ""
            problems.append(f"{place}`{name}` {words}")
    if problems:
        raise TrainingSetError(
            f"Declarations that apply to no column: {len(problems)}: {'; '.join(problems)}."
        )


_TO_TRAIN_ON_IT = "declare `role: feature` beside it, in Python `given_features`, to train on it"


def _idle(name: str, role: str | None, kinds: Mapping[str, str]) -> str | None:
    if name not in kinds:
        return f"is no column. {did_you_mean(name, kinds, 'There are').removesuffix('.')}"
    if kinds[name] == "feature":
        return role and f"is looked up, and so it is a feature: leave out its role `{role}`"
    if kinds[name] == "event_time" and role != "feature":
        return "is the event time, and kept as it is: leave it out"
    if kinds[name] == "join_key" and role == "helper":
        return "is a join key, and so it is an entity: leave out its role `helper`"
    if kinds[name] in ("join_key", "helper", "entity_rows") and role is None:
        return f"has an encoding, and is kept as it is: leave it out, or {_TO_TRAIN_ON_IT}"
    return None


def refuse_absent(
    roles: Mapping[str, str | None], known: Sequence[str], places: Mapping[str, str] | None = None
) -> None:
    """Refuse a label or a weight that the entity rows do not have.

    Args:
        roles: the column by role; None where there is none.
        known: columns of the entity rows.
        places: file and line of these columns, where they are known.

    Raises:
        TrainingSetError: names the role and the column.
    """
    for role, name in roles.items():
        if name is not None and name not in known:
            place = f"{places[name]}: " if places and name in places else ""
            raise TrainingSetError(
                f"{place}The {role} `{name}` is no column of the entity rows. "
                f"{did_you_mean(name, known, 'They have')}"
            )


def require_columns(schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise TrainingSetError unless the table has each column exactly once."""
    absent = [name for name in names if name not in schema.names]
    if absent:
        raise TrainingSetError(
            f"The table has no column {_listed(absent)}. It has: {_listed(schema.names)}. "
            "Features are named by their output columns, with the view's name in front where "
            "full_feature_names=True was used."
        )
    twice = [name for name in names if schema.names.count(name) > 1]
    if twice:
        raise TrainingSetError(
            f"The table has more than one column {_listed(twice)}. Retrieve the features with "
            "full_feature_names=True."
        )


class ColumnScan:
    """What must be known of all rows before anything is written.

    Attributes:
        rows: that were looked at.
        nulls: rows without a value, by column.
    """

    def __init__(self, columns: TrainingColumns) -> None:
        """Nothing was looked at yet."""
        self.rows = 0
        self.nulls = dict.fromkeys(columns.encoded, 0)
        self._columns = columns
        self._infinite = dict.fromkeys(columns.encoded, 0)
        self._beyond: set[str] = set()
        self._negative = 0
        self._first_unlabelled: tuple[int, dict[str, Any]] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Look at rows; NaN is null in them."""
        for name in self._columns.encoded:
            column = batch.column(name)
            self.nulls[name] += column.null_count
            if pa.types.is_floating(column.type):
                # The sum is finite unless a value is not, or it overflows: then look closer.
                if not np.isfinite(pc.sum(column).as_py() or 0.0):
                    self._infinite[name] += pc.sum(pc.is_inf(column)).as_py() or 0
            elif pa.types.is_integer(column.type):
                bounds = pc.min_max(column).as_py()
                if bounds["max"] is not None:
                    far = max(bounds["max"], -bounds["min"]) > _EXACT_FLOAT_LIMIT
                    self._beyond |= {name} if far else set()
        if self._columns.weight:
            weights = batch.column(self._columns.weight)
            if not pa.types.is_null(weights.type) and not pa.types.is_boolean(weights.type):
                self._negative += int((numbers(weights) < 0).sum())
        label = batch.column(self._columns.label)
        if label.null_count and self._first_unlabelled is None:
            at = pc.index(label.is_null(), pa.scalar(value=True)).as_py()
            entity = {
                name: batch.column(name)[at].as_py() for name in self._columns.entity_columns
            }
            self._first_unlabelled = (self.rows + at, entity)
        self.rows += batch.num_rows

    def check_inexact(self, names: Sequence[str], reason: str) -> None:
        """Refuse integers that would be rounded.

        Args:
            names: columns that are written as float64.
            reason: why they are.

        Raises:
            TrainingSetError: names them.
        """
        beyond = [name for name in names if name in self._beyond]
        if beyond:
            raise TrainingSetError(
                f"{reason}, which would round values beyond 2^53 in {_listed(beyond)}. Leave the "
                "columns out of `features`, as numbers that large are usually identifiers, or "
                "write another format and fill missing values."
            )

    def check(self) -> None:
        """Refuse rows that cannot be trained on.

        Raises:
            TrainingSetError: infinite values, or rows without label or weight.
        """
        infinite = [f"`{name}` ({count} rows)" for name, count in self._infinite.items() if count]
        if infinite:
            raise TrainingSetError(
                f"Infinite values, which XGBoost and most other algorithms refuse: "
                f"{', '.join(infinite)}. Replace them by null, which reads as missing, or by a "
                "number."
            )
        self._check_label()
        weight = self._columns.weight
        if weight and (self.nulls[weight] or self._negative):
            raise TrainingSetError(
                f"The weight `{weight}` is missing in {self.nulls[weight]} of {self.rows} rows "
                f"and negative in {self._negative}. Give each row a weight of 0 or more."
            )

    def _check_label(self) -> None:
        if self._first_unlabelled is not None:
            row, entity = self._first_unlabelled
            label = self._columns.label
            named = ", ".join(f"{name}={value!r}" for name, value in entity.items())
            raise TrainingSetError(
                f"The label `{label}` is missing (null or NaN) in {self.nulls[label]} of "
                f"{self.rows} rows; the first is row {row} ({named}). Drop these rows or give "
                "them a label."
            )


def written_encodings(
    fitted: Mapping[str, FittedEncoding], nulls: Mapping[str, int]
) -> dict[str, FittedEncoding]:
    """Encodings with the types that are written: integers that may be missing are float64.

    SageMaker's XGBoost refuses integer Parquet columns with nulls. All splits are counted, so that
    a column has one type in each.

    Args:
        fitted: the fitted encodings, by column.
        nulls: rows of all splits without a value, by column.
    """
    return {
        name: encoding.nullable() if may_be_missing(encoding, nulls[name]) else encoding
        for name, encoding in fitted.items()
    }


def may_be_missing(encoding: FittedEncoding, nulls: int) -> bool:
    """Whether encoded columns may lack values, given the rows of the join without one."""
    state = encoding.state
    if encoding.kind == "keep" or state.get("missing") is not None:
        return False
    # Elements of lists may be missing, and so are those that a shorter list lacks.
    return bool(nulls) or state.get("unknown") == "missing" or encoding.kind == "list"


def check_answers(
    columns: TrainingColumns, kinds: Mapping[str, str], encodings: Mapping[str, Encoding]
) -> None:
    """Refuse a label or a weight that is not one number, or whose missing values are filled.

    Args:
        columns: the roles.
        kinds: of the encodings, by column.
        encodings: those that are declared.

    Raises:
        TrainingSetError: names the column and its encodings.
    """
    for role, name, able in (
        ("label", columns.label, LABEL_KINDS),
        ("weight", columns.weight, WEIGHT_KINDS),
    ):
        if name is None:
            continue
        if kinds[name] not in able:
            raise TrainingSetError(
                f"The {role} `{name}` cannot be encoded by `{kinds[name]}`: use one of "
                f"{', '.join(able)}."
            )
        filled = filled_option(encodings[name]) if name in encodings else None
        if filled:
            raise TrainingSetError(f"The {role} `{name}` {never_filled(filled)}.")


def filled_option(encoding: Encoding) -> str | None:
    """The declared option that makes up values which are not there, if any."""
    if encoding.missing != "keep":
        return "missing"
    return "unknown" if encoding.unknown is not None else None


def never_filled(option: str) -> str:
    """Why a label or a weight has no such option."""
    return (
        f"has the option `{option}`, and nothing stands for a label or a weight: a row without "
        "one, or with a class that no row of train has, is an error. Leave it out"
    )


def check_outputs(names: Sequence[str]) -> None:
    """Refuse encoded columns of one name.

    Raises:
        TrainingSetError: names them.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TrainingSetError(
            f"Several encoded columns are named {_listed(twice)}. Rename a feature, for example "
            "by full_feature_names."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
