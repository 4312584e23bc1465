"""What the algorithms of SageMaker accept of a training set, checked before it is written.

docs/reference/training-targets.md has the same rules as a table. Sources:

- xgboost: the container's code of June 2026 (`data_utils.py`, `channel_validation.py`,
  `hyperparameter_validation.py`), and XGBoost itself, which reads the same files in tests.
- lightgbm: the script of JumpStart (`lightgbm-classification-model`), which reads `train` or
  `training`, `validation`, `categorical_index.json`; LightGBM itself, which reads our files in
  tests.
- autogluon, linear-learner: "Input/Output interface" of each in the SageMaker developer guide;
  their code is not public.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.formats import FORMATS, type_problems

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from feast_dynamo_ext.sagemaker.formats import FileRoles

_CONTENT_TYPES = {
    "csv": "text/csv",
    "parquet": "application/x-parquet",
    "recordio": "application/x-recordio-protobuf",
    "libsvm": "text/libsvm",
}


@dataclass(frozen=True)
class Target:
    """What an algorithm accepts.

    Attributes:
        formats: formats that it reads; the first is the default.
        channels: the channel of each split; a split without one is never passed.
        weights: formats that have a place for row weights, and the hyperparameters that say so.
        pipe: formats that it reads in Pipe mode.
        missing: whether features may have missing values.
        numbers: whether all columns must be numbers.
        header: whether CSV may begin with the columns' names.
        float32: whether it keeps numbers as float32, whatever a file holds.
        categories: whether it reads `categorical_index.json`.
        instances: the most instances it trains on; None for any number.
        shards: whether an instance may have files of its own (`ShardedByS3Key`).
    """

    formats: tuple[str, ...]
    channels: Mapping[str, str]
    weights: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pipe: tuple[str, ...] = ()
    missing: bool = True
    numbers: bool = True
    header: bool = False
    float32: bool = False
    categories: bool = False
    instances: int | None = None
    shards: bool = True


TARGETS: Mapping[str, Target] = {
    # Any channel but train, validation and code: "Extraneous channel found". Pipe mode: refused
    # for each format. Weights: `csv_weights`, or libsvm's own; none in Parquet and RecordIO.
    "xgboost": Target(
        formats=("parquet", "csv", "recordio", "libsvm"),
        channels={"train": "train", "validation": "validation"},
        weights={"csv": {"csv_weights": "1"}, "libsvm": {}},
        float32=True,
    ),
    # Without validation, it takes 20% of the rows at random: a split by time is lost. With several
    # instances the first one alone lists the files, and the others read those that it names.
    "lightgbm": Target(
        formats=("csv",),
        channels={"train": "train", "validation": "validation"},
        categories=True,
        shards=False,
    ),
    "autogluon": Target(
        formats=("csv",),
        channels={"train": "training", "validation": "validation"},
        categories=True,
        instances=1,
    ),
    # RecordIO: "only Float32 tensors are supported".
    "linear-learner": Target(
        formats=("recordio", "csv"),
        channels={"train": "train", "validation": "validation", "test": "test"},
        pipe=("recordio",),
        missing=False,
        float32=True,
    ),
    "script": Target(
        formats=("parquet", "csv", "recordio", "libsvm"),
        channels={"train": "train", "validation": "validation", "test": "test"},
        weights={"parquet": {}, "csv": {}, "libsvm": {}},
        pipe=("recordio",),
        numbers=False,
        header=True,
    ),
}


def target_of(name: str) -> Target:
    """A target by its name.

    Raises:
        TrainingSetError: there is none of that name.
    """
    if name not in TARGETS:
        raise TrainingSetError(f"Unknown target `{name}`. Known: {', '.join(TARGETS)}.")
    return TARGETS[name]


def default_formats(target: str) -> tuple[str, ...]:
    """The formats that a set for a target is written in where none is named."""
    return target_of(target).formats[:1]


def channel_names(target: str) -> Mapping[str, str]:
    """The channel of each split that the target reads, by split."""
    return target_of(target).channels


def content_type(target: str, format: str) -> str:  # noqa: A002 - the word of SageMaker's users
    """The `ContentType` of a channel.

    Raises:
        TrainingSetError: the target does not read the format.
    """
    if format not in target_of(target).formats:
        raise TrainingSetError(_wrong_format(target, format))
    return _CONTENT_TYPES[format]


def writer_options(target: str, format: str, *, header: bool = False) -> dict[str, Any]:  # noqa: A002
    """The options of `formats.writer` for a target."""
    float32 = target_of(target).float32
    # XGBoost rounds Parquet's numbers itself, and to the nearest: they are kept as they are.
    if format == "parquet":
        return {"float32": False, "within_float32": float32}
    return {"float32": float32} | ({"header": header} if format == "csv" else {})


def hyperparameters(target: str, format: str, roles: FileRoles) -> dict[str, str]:  # noqa: A002
    """Hyperparameters that the files make necessary; others are the user's."""
    needed: dict[str, str] = {}
    if roles.weight:
        needed |= target_of(target).weights.get(format, {})
    return needed


def hyperparameter_problems(
    target: str,
    format: str,  # noqa: A002 - as above
    roles: FileRoles,
    given: Mapping[str, Any],
    labels: Collection[float] | None = None,
) -> list[str]:
    """What stands in the way of hyperparameters and files; empty where nothing does.

    Args:
        target: of `TARGETS`.
        format: of the channels.
        roles: of the files' columns.
        given: the job's hyperparameters.
        labels: distinct values of the label; None where they are not known.
    """
    problems = []
    needed = hyperparameters(target, format, roles)
    weighted = "csv_weights" in needed
    if target == "xgboost" and weighted != (str(given.get("csv_weights", "0")) == "1"):
        problems.append(
            f"`csv_weights` must be 1: the second column is the weight `{roles.weight}`"
            if weighted
            else "`csv_weights` must be left out: no column of the files is read as a weight by it"
        )
    if target == "linear-learner":
        problems += _wrong_feature_dim(roles, given)
    return problems + _wrong_labels(target, given, labels)


def _wrong_feature_dim(roles: FileRoles, given: Mapping[str, Any]) -> list[str]:
    dim = str(given.get("feature_dim", "auto"))
    if dim in ("auto", str(len(roles.features))):
        return []
    return [f"`feature_dim` is {dim}, and the files have {len(roles.features)} features"]


def _wrong_labels(
    target: str, given: Mapping[str, Any], labels: Collection[float] | None
) -> list[str]:
    """Labels that the objective does not take, by XGBoost's and linear-learner's own rules."""
    objective = str(given.get("objective" if target == "xgboost" else "predictor_type", ""))
    if target not in ("xgboost", "linear-learner") or labels is None:
        return []
    if objective in ("binary:logistic", "reg:logistic"):
        wrong = [label for label in labels if not 0 <= label <= 1]
        wanted = "from 0 to 1"
    elif objective == "binary_classifier":
        wrong = [label for label in labels if label not in (0, 1)]
        wanted = "0 or 1"
    elif objective in ("multi:softmax", "multi:softprob", "multiclass_classifier"):
        name = "num_class" if target == "xgboost" else "num_classes"
        classes = str(given.get(name, ""))
        if not classes.isdigit():
            return [f"`{name}` must be the number of classes for `{objective}`"]
        wrong = [label for label in labels if label not in range(int(classes))]
        wanted = f"whole numbers from 0 to {int(classes) - 1}"
    else:
        return []
    if not wrong:
        return []
    return [f"labels of `{objective}` must be {wanted}, and {len(wrong)} of them are not"]


# A training set


def check(
    target: str,
    formats: Sequence[str],
    schema: pa.Schema,
    roles: FileRoles,
    *,
    rows: Mapping[str, int],
    missing: Mapping[str, Mapping[str, int]] | None = None,
    parts: int = 1,
    instances: int = 1,
    header: bool = False,
) -> None:
    """Raise where a target could not read a training set that is about to be written.

    Args:
        target: of `TARGETS`.
        formats: formats it is to be written in.
        schema: columns of the files: label, weight where there is one, features.
        roles: what the columns are.
        rows: rows of each split.
        missing: missing values by column, of each split.
        parts: files of each split and format.
        instances: instances that are to read files of their own (`ShardedByS3Key`).
        header: whether CSV begins with the columns' names.

    Raises:
        TrainingSetError: names all problems at once.
    """
    found = target_of(target)
    problems = [
        *_format_problems(target, formats, schema, roles),
        *_column_problems(target, schema, roles),
        *_missing_problems(target, formats, roles, rows, missing or {}),
        *_split_problems(target, rows, parts, instances),
    ]
    if header and not found.header:
        problems.append("`header`: it would read the line of names as a row; leave it out")
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise TrainingSetError(f"{target} could not train on this set:\n{listed}")


def _wrong_format(target: str, name: str) -> str:
    known = ", ".join(TARGETS[target].formats)
    return f"`{target}` does not read the format `{name}`: it reads {known}"


def _format_problems(
    target: str, formats: Sequence[str], schema: pa.Schema, roles: FileRoles
) -> list[str]:
    found = TARGETS[target]
    problems = [] if formats else ["`formats` is empty: name at least one"]
    for name in formats:
        if name not in found.formats:
            problems.append(_wrong_format(target, name))
        elif roles.weight and name not in found.weights:
            options = ", ".join(found.weights) or "none of its formats"
            problems.append(
                f"it reads no row weights from {name}, and `{roles.weight}` is one: weights are "
                f"read from {options}"
            )
        if name in FORMATS and not found.numbers:
            problems += type_problems(name, schema)
    repeated = sorted({name for name in formats if list(formats).count(name) > 1})
    return problems + [f"`formats` names {name} more than once" for name in repeated]


def _column_problems(target: str, schema: pa.Schema, roles: FileRoles) -> list[str]:
    problems = [] if roles.features else ["there is no feature"]
    if tuple(schema.names) != roles.columns:
        problems.append(
            f"the columns are {', '.join(schema.names)}, and must be {', '.join(roles.columns)}: "
            "the label first, then the weight, then the features"
        )
    # Where one of them is text or a list, pandas makes objects of all.
    if TARGETS[target].numbers:
        problems += [
            f"`{kind.name}` is {kind.type}, and it reads numbers alone: declare an encoding"
            for kind in schema
            if not (pa.types.is_integer(kind.type) or kind.type in (pa.float32(), pa.float64()))
        ]
    return problems


def _missing_problems(
    target: str,
    formats: Sequence[str],
    roles: FileRoles,
    rows: Mapping[str, int],
    missing: Mapping[str, Mapping[str, int]],
) -> list[str]:
    problems = [
        f"`{name}` is missing in {counts[name]} rows of {split}"
        for split, counts in missing.items()
        for name in (roles.label, roles.weight)
        if name and counts.get(name)
    ]
    for split, counts in missing.items():
        holes = [name for name in roles.features if counts.get(name)]
        if holes and not TARGETS[target].missing:
            listed = ", ".join(f"`{name}` ({counts[name]} rows)" for name in holes)
            problems.append(
                f"it cannot train on missing values, which {split} has in {listed}: declare "
                "`missing` of their encoding as a number, mean or median"
            )
    train = missing.get("train", {})
    # XGBoost counts columns up to the last that has a value: its model would have fewer features.
    if target == "xgboost" and {"csv", "libsvm"} & set(formats) and roles.features:
        last = roles.features[-1]
        if rows.get("train") and train.get(last, 0) >= rows["train"]:
            problems.append(
                f"the last feature `{last}` has no value in train, and in csv and libsvm it "
                "would not count it: leave it out"
            )
    return problems


def _split_problems(target: str, rows: Mapping[str, int], parts: int, instances: int) -> list[str]:
    found = TARGETS[target]
    problems = [] if rows.get("train") else ["the split `train` has no rows"]
    problems += [
        f"the split `{split}` has no rows"
        for split in rows
        if split != "train" and not rows[split]
    ]
    if target == "lightgbm" and "validation" not in rows:
        problems.append(
            "there is no split `validation`: it would take 20% of the rows of train at random"
        )
    if parts < 1:
        problems.append(f"`parts` is {parts}, and must be at least 1")
    elif parts > (smallest := min((count for count in rows.values() if count), default=parts)):
        problems.append(f"`parts` is {parts}, and the smallest split has {smallest} rows")
    if instances > max(parts, 1):
        problems.append(
            f"{instances} instances share {parts} files of train: write at least {instances} parts"
        )
    if found.instances and instances > found.instances:
        problems.append(f"it trains on {found.instances} instance, not on {instances}")
    return problems
