"""A pipeline as it is declared: `pipelines/NAME.yaml` of a feature repo.

::

    name: churn
    role: arn:aws:iam::123456789012:role/pipeline
    output: s3://bucket/pipelines/churn
    image: 123456789012.dkr.ecr.eu-west-1.amazonaws.com/features:1
    capture: {sources: [orders]}
    materialize: {views: [orders]}
    training_set: {name: churn}
    train: {script: train.py, image: ..., hyperparameters: {max_depth: 3}}
    evaluate: {script: evaluate.py}
    condition: {metric: binary_classification_metrics.auc.value, at_least: 0.7}
    package: {group: churn, image: ...}

Paths are from the repo's folder. Every mistake is named with the file and the line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from feast_dynamo_ext.config import SettingsModel, did_you_mean, refuse_unknown
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.declared_yaml import declared_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FOLDER = "pipelines"
RESULTS = ".pipelines"
"""Folder of a feature repo where runs on this machine keep what they make, a folder a pipeline."""

NAME = r"^[A-Za-z0-9](-*[A-Za-z0-9]){0,255}$"
S3_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s/]+)*/?$"
INSTANCE = r"^ml\.[a-z0-9-]+\.[a-z0-9]+$"
WORDS = {
    "instance_type": "the name of an instance type such as ml.m5.xlarge",
    "volume_gb": "a whole number of GB, at least 1",
    "max_runtime_s": "a whole number of seconds, at least 1",
    "script": "the path of a Python file, from the repo's folder",
    "image": "the URI of a container image",
    "views": "a list of names of feature views",
}

Name = Field(pattern=NAME)
Instance = Field(default="ml.m5.xlarge", pattern=INSTANCE)


class Section(SettingsModel):
    """A part of a pipeline's declaration."""


class Capture(Section):
    """Which tables of an application are captured into history before anything else."""

    sources: tuple[str, ...] = Field(min_length=1)
    """Names of `DynamoDBTableSource` objects of the feature repo."""

    scan: bool = False
    """Whether the tables are scanned, as small ones may be, instead of exported."""

    read_units: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of a scan: read units a second at most. Default: as many as DynamoDB grants."""

    exports: str | None = Field(default=None, pattern=S3_URI)
    """S3 URI where DynamoDB writes exports. Default: beside each source's history."""

    kms_key: str | None = Field(default=None, min_length=1)
    """Key that exports are encrypted with. Default: the bucket's own."""

    _expected: ClassVar[dict[str, str]] = {
        "sources": "a list of names of captured tables",
        "scan": "true or false",
        "read_units": "a number above 0",
        "exports": "an S3 URI such as s3://bucket/exports",
        "kms_key": "the ARN or id of a key",
    }

    def check(self, subject: str) -> None:
        """Refuse settings of the other kind."""
        of_other = ("exports", "kms_key") if self.scan else ("read_units",)
        for name in of_other:
            if getattr(self, name) is not None:
                kind = (
                    "exports, so leave out `scan`" if self.scan else "a scan, so add `scan: true`"
                )
                raise ConfigError(f"{subject}: `capture.{name}` is of {kind}, or leave it out.")


class Prepare(Section):
    """A program of the repo that makes history of features, and labels, of what is captured."""

    command: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments; it runs in the repo's folder."""

    files: tuple[str, ...] = ()
    """Paths of what it is made of, from the repo's folder: a change of them runs it again."""

    _expected: ClassVar[dict[str, str]] = {
        "command": "a list of texts, the program first",
        "files": "a list of paths from the repo's folder",
    }


class Materialize(Section):
    """Which views are brought up to date in the online store."""

    views: tuple[str, ...] = ()
    """Names of feature views. Default: all that are served online."""

    all: bool = False
    """Whether the newest rows of all history are written; by default of what happened, or came
    into a captured history, since the last run."""

    _expected: ClassVar[dict[str, str]] = {**WORDS, "all": "true or false"}


class TrainingSetSection(Section):
    """The declared training set that is built."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    """Name of the set, which the feature repo declares in training_sets/ or in Python."""

    format: Literal["csv", "parquet"] = "csv"
    """Which of the set's files training and evaluation read."""

    version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Default of the parameter SetVersion, which names the set's folder: a version is built once
    and taken again. Default: each execution builds a set of its own."""

    _expected: ClassVar[dict[str, str]] = {
        "name": "the name of a declared training set",
        "format": "csv or parquet",
        "version": "letters, digits and `._-`",
    }


class Train(Section):
    """The training job."""

    script: str
    """Path of the training script from the repo's folder."""

    source: str | None = None
    """Folder that is packed with it, which it is in. Default: the script alone."""

    image: str = Field(min_length=1, max_length=255)
    """URI of the training image, which knows script mode."""

    hyperparameters: dict[str, Any] = Field(default={})
    """Arguments of the script."""

    instance_type: str = Instance
    """Default of the parameter TrainInstanceType."""

    instance_count: int = Field(default=1, ge=1)
    """How many instances train."""

    sharded: bool = False
    """Whether each instance reads train files of its own; the set then has `parts` for them."""

    volume_gb: int = Field(default=30, ge=1)
    """Disk of an instance in GB."""

    max_runtime_s: int = Field(default=86_400, ge=1)
    """Seconds after which the job is stopped."""

    _expected: ClassVar[dict[str, str]] = {
        **WORDS,
        "source": "the path of a folder",
        "hyperparameters": "a mapping of names and values",
        "instance_count": "a whole number, at least 1",
        "sharded": "true or false",
    }


class Evaluate(Section):
    """The script that measures the model on the test split."""

    script: str
    """Path of a script from the repo's folder; it takes --model, --test and --output, folders all,
    and writes evaluation.json to the last."""

    image: str | None = Field(default=None, max_length=255)
    """URI of its image. Default: that of training."""

    _expected: ClassVar[dict[str, str]] = WORDS


class Condition(Section):
    """What the metric has to be for the model to be registered."""

    metric: str = Field(pattern=r"^[A-Za-z_][\w]*(\.[A-Za-z_]\w*|\[\d+\])*$")
    """Path of a number in evaluation.json: `binary_classification_metrics.auc.value`."""

    at_least: float | None = Field(default=None, allow_inf_nan=False)
    """Default of the parameter Threshold: the metric is that or more."""

    at_most: float | None = Field(default=None, allow_inf_nan=False)
    """Default of the parameter Threshold: the metric is that or less."""

    _expected: ClassVar[dict[str, str]] = {
        "metric": "a path such as binary_classification_metrics.auc.value",
        "at_least": "a number",
        "at_most": "a number",
    }

    def check(self, subject: str) -> None:
        """Refuse both or neither bound."""
        if (self.at_least is None) == (self.at_most is None):
            raise ConfigError(f"{subject}: `condition` needs `at_least` or `at_most`, not both.")

    @property
    def threshold(self) -> float:
        """The bound."""
        return self.at_least if self.at_least is not None else self.at_most or 0.0

    def holds(self, value: float, threshold: float) -> bool:
        """Whether a metric is good enough."""
        return value >= threshold if self.at_least is not None else value <= threshold


class Package(Section):
    """The model package."""

    group: str = Field(pattern=r"^[A-Za-z0-9](-*[A-Za-z0-9]){0,62}$")
    """Model package group, which is to be there."""

    image: str = Field(min_length=1, max_length=255)
    """URI of the image that serves the model."""

    approval: Literal["Approved", "PendingManualApproval", "Rejected"] = "PendingManualApproval"
    """Default of the parameter ApprovalStatus."""

    content_types: tuple[str, ...] = ("text/csv",)
    """MIME types that the model takes."""

    response_types: tuple[str, ...] = ("text/csv",)
    """MIME types that it answers."""

    instance_types: tuple[str, ...] = ("ml.m5.large",)
    """Instance types that may serve it."""

    _expected: ClassVar[dict[str, str]] = {
        **WORDS,
        "group": "letters, digits and hyphens, at most 63",
        "approval": "Approved, PendingManualApproval or Rejected",
        "content_types": "a list of MIME types",
        "response_types": "a list of MIME types",
        "instance_types": "a list of instance types",
    }


class Deploy(Section):
    """The endpoint that the model is put on."""

    endpoint: str = Field(pattern=r"^[A-Za-z0-9](-*[A-Za-z0-9]){0,49}$")
    """Name of the endpoint, which is made or updated."""

    instance_type: str = Field(default="ml.m5.large", pattern=INSTANCE)
    """What serves it."""

    instance_count: int = Field(default=1, ge=1)
    """How many of them."""

    _expected: ClassVar[dict[str, str]] = {
        **WORDS,
        "endpoint": "letters, digits and hyphens, at most 50",
        "instance_count": "a whole number, at least 1",
    }


class Retry(Section):
    """How often a step that fails by a fault of AWS's is begun again."""

    attempts: int = Field(default=3, ge=1, le=20)
    """At most so many."""

    interval_s: int = Field(default=60, ge=1)
    """Seconds before the first; each later pause is twice as long."""

    _expected: ClassVar[dict[str, str]] = {
        "attempts": "a whole number from 1 to 20",
        "interval_s": "a whole number of seconds, at least 1",
    }


class Schedule(Section):
    """When the pipeline is started."""

    expression: str
    """`rate(1 day)` or `cron(0 6 * * ? *)`."""

    role: str = Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$")
    """ARN of the role that EventBridge Scheduler starts it with."""

    timezone: str = "UTC"
    """Zone of a cron expression."""

    enabled: bool = True
    """Whether it starts anything."""

    _expected: ClassVar[dict[str, str]] = {
        "expression": "rate(...) or cron(...)",
        "role": "the ARN of an IAM role",
        "timezone": "the name of a time zone",
        "enabled": "true or false",
    }


class PipelineDeclaration(Section):
    """A pipeline: what is run, on what, and when."""

    name: str = Name
    """Name of the pipeline."""

    role: str = Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$")
    """ARN of the role that the steps run with."""

    output: str = Field(pattern=S3_URI)
    """S3 URI below which sets, models, evaluations and code are kept."""

    image: str = Field(min_length=1, max_length=255)
    """URI of an image that has this package and the feature repo."""

    repo: str = "/opt/feature_repo"
    """Folder of the feature repo in that image."""

    instance_type: str = Instance
    """Default of the parameter ProcessingInstanceType."""

    volume_gb: int = Field(default=30, ge=1)
    """Disk of a processing instance in GB."""

    max_runtime_s: int = Field(default=86_400, ge=1)
    """Seconds after which a processing job is stopped."""

    environment: dict[str, str] = Field(default={})
    """Variables of the processing jobs. They can be read by whoever may describe a job."""

    capture: Capture | None = None
    """The tables that are captured first. Default: none."""

    prepare: Prepare | None = None
    """What makes features and labels of them. Default: nothing."""

    materialize: Materialize | None = None
    """What is brought up to date online. Default: nothing."""

    training_set: TrainingSetSection
    """The set that is built."""

    train: Train
    """The training job."""

    evaluate: Evaluate
    """What measures the model."""

    condition: Condition
    """What it has to reach."""

    package: Package
    """The model package."""

    deploy: Deploy | None = None
    """The endpoint. Default: none."""

    cache: str | None = Field(default=None, pattern=r"^P(\d+D|(\d+D)?T(\d+H|\d+M|\d+H\d+M))$")
    """ISO 8601 duration for which the results of equal steps are taken again; it needs
    `training_set.version`. Default: never."""

    retry: Retry | None = None
    """How often a step is begun again. Default: not at all."""

    schedule: Schedule | None = None
    """When it is started. Default: by hand."""

    _expected: ClassVar[dict[str, str]] = {
        **WORDS,
        **dict.fromkeys(
            (
                *("capture", "prepare", "materialize", "training_set", "train", "evaluate"),
                *("condition", "package", "deploy", "retry", "schedule"),
            ),
            "a mapping of settings",
        ),
        "name": "letters, digits and hyphens",
        "role": "the ARN of an IAM role",
        "output": "an S3 URI such as s3://bucket/pipelines/churn",
        "repo": "an absolute path in the image",
        "environment": "a mapping of texts",
        "cache": "an ISO 8601 duration such as P7D or PT12H",
    }

    def check(self, subject: str) -> None:
        """Refuse a cache that would never be hit."""
        if self.cache is not None and self.training_set.version is None:
            raise ConfigError(
                f"{subject}: `cache` needs `training_set.version`: without it every execution "
                "builds a set of its own, and no step is ever equal to an earlier one."
            )


SECTIONS: dict[str, type[Section]] = {
    "capture": Capture,
    "prepare": Prepare,
    "materialize": Materialize,
    "training_set": TrainingSetSection,
    "train": Train,
    "evaluate": Evaluate,
    "condition": Condition,
    "package": Package,
    "deploy": Deploy,
    "retry": Retry,
    "schedule": Schedule,
}
Model = TypeVar("Model", bound=Section)


def read_pipeline(repo: Path, name: str) -> PipelineDeclaration:
    """Read `pipelines/NAME.yaml` of a feature repo, or the file that a path names.

    Raises:
        ConfigError: there is no such file, or it is not a pipeline; with the line.
    """
    path = repo / FOLDER / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = [file.stem for file in sorted((repo / FOLDER).glob("*.yaml"))]
        hint = did_you_mean(name, known, "It has") if known else "It has none."
        raise ConfigError(f"There is no pipeline {path}. {hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    return parse_pipeline(text, str(path))


def only_pipeline(repo: Path) -> str:
    """The name of a feature repo's one pipeline.

    Raises:
        ConfigError: it has none, or several.
    """
    known = [file.stem for file in sorted((repo / FOLDER).glob("*.yaml"))]
    if len(known) != 1:
        if known:
            raise ConfigError(f"{repo / FOLDER} has {len(known)}: {', '.join(known)}. Name one.")
        raise ConfigError(
            f"{repo / FOLDER} has no pipeline. Declare one there, in a file NAME.yaml."
        )
    return known[0]


def parse_pipeline(text: str, file: str) -> PipelineDeclaration:
    """A pipeline's declaration from YAML; `file` is for the messages.

    Raises:
        ConfigError: not a pipeline; with the line.
    """
    values, lines = declared_yaml(text, file)
    return _validated(PipelineDeclaration, values, _Lines(file, lines))


@dataclass(frozen=True)
class _Lines:
    """Where the settings of a section stand.

    Attributes:
        file: for the messages.
        lines: of the paths of all keys in the file.
        path: of the section.
    """

    file: str
    lines: Mapping[tuple[Any, ...], int]
    path: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """Of the section's settings in messages."""
        return "".join(f"{name}." for name in self.path)

    @property
    def start(self) -> str:
        """Where the section begins."""
        return f"{self.file}, line {next(self._within())}"

    def _within(self) -> Iterator[int]:
        depth = len(self.path)
        for path, line in self.lines.items():
            if path[:depth] == self.path and len(path) > depth:
                yield line
        # What YAML merges in has no line of its own: the mapping it is merged into has.
        yield self.lines.get(self.path) or next(iter(self.lines.values()))

    def of(self, key: str) -> str:
        """Where a setting stands."""
        line = self.lines.get((*self.path, key))
        return self.start if line is None else f"{self.file}, line {line}"

    def below(self, key: str) -> _Lines:
        """Those of a section within."""
        return replace(self, path=(*self.path, key))


def _validated(model: type[Model], values: Mapping[str, Any], lines: _Lines) -> Model:
    checked: dict[str, Any] = {}
    prefix = lines.prefix
    for key, value in values.items():
        where = lines.of(str(key))
        refuse_unknown(where, prefix, [str(key)], model.model_fields)
        section = SECTIONS.get(key)
        if section is None or value is None:
            checked[key] = value
        elif isinstance(value, dict):
            checked[key] = _validated(section, value, lines.below(key))
        else:
            raise ConfigError(f"{where}: `{prefix}{key}` must be a mapping of settings.")
    missing = [name for name, of in model.model_fields.items() if of.is_required()]
    missing = [name for name in missing if name not in checked]
    start = lines.start
    if missing:
        raise ConfigError(f"{start}: `{prefix}{missing[0]}` is missing.")
    try:
        return model.model_validate(checked, context={"subject": start, "prefix": prefix})
    except ConfigError as error:
        cause: Any = error.__cause__
        where_in = cause.errors()[0]["loc"] if cause is not None else ()
        if not where_in:
            raise
        message = str(error).removeprefix(start)
        raise ConfigError(f"{lines.of(str(where_in[0]))}{message}") from cause
