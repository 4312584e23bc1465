"""What a pipeline uses of its feature repo: the scripts by their content, and the declared set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.declared_sets import definition_named
from feast_dynamo_ext.sagemaker.job_source import (
    SourceCode,
    pack_source,
    upload_once,
    upload_source,
)

if TYPE_CHECKING:
    from pathlib import Path

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.definition import TrainingSetDefinition
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import PipelineDeclaration


@dataclass(frozen=True)
class RepoParts:
    """What a pipeline uses of its feature repo: scripts, by their content, and the declared set.

    Attributes:
        training: the training script with what is packed beside it.
        evaluation: bytes of the evaluation script.
        evaluation_name: its file's name.
        definition: the training set's.
    """

    training: SourceCode
    evaluation: bytes
    evaluation_name: str
    definition: TrainingSetDefinition

    @property
    def target(self) -> str:
        """What trains on the set."""
        return self.definition.target or "script"

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """Splits of the set that training reads."""
        return tuple(name for name in self.definition.split.to_rule().splits if name != "test")

    def training_uri(self, output: str) -> str:
        """Where the packed training script is on S3."""
        return f"{output}/code/{self.training.sha256}/sourcedir.tar.gz"

    def evaluation_uri(self, output: str) -> str:
        """Where the evaluation script is on S3."""
        sha256 = hashlib.sha256(self.evaluation).hexdigest()
        return f"{output}/code/{sha256}/{self.evaluation_name}"


def read_parts(declaration: PipelineDeclaration, repo: Path) -> RepoParts:
    """Read what a pipeline names of its repo, and pack its scripts.

    Raises:
        ConfigError: a script that is not there or cannot be packed, or a training set that is not
            declared, or not with what the pipeline reads of it.
    """
    train, evaluate = declaration.train, declaration.evaluate
    script = repo / train.script
    if train.source is None:
        training = pack_source(script)
    else:
        folder = repo / train.source
        if not script.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"The training script {script} is not in its source {folder}.")
        training = pack_source(folder, script.resolve().relative_to(folder.resolve()).as_posix())
    path = repo / evaluate.script
    try:
        evaluation = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The evaluation script {path} cannot be read: {error.strerror}."
        ) from error
    return RepoParts(training, evaluation, path.name, _definition(declaration, repo))


def _definition(declaration: PipelineDeclaration, repo: Path) -> TrainingSetDefinition:
    of_set = declaration.training_set
    declared = definition_named(repo, of_set.name)
    definition = declared.definition
    if of_set.format not in definition.formats:
        written = ", ".join(definition.formats)
        raise ConfigError(
            f"Pipeline {declaration.name} reads {of_set.format}, and training set {of_set.name} "
            f"is written as {written}: add it to `formats` in {declared.where}."
        )
    train = declaration.train
    if train.sharded and definition.parts < train.instance_count:
        raise ConfigError(
            f"Pipeline {declaration.name} gives each of {train.instance_count} instances train "
            f"files of its own, and training set {of_set.name} is written in {definition.parts}: "
            f"set `parts: {train.instance_count}` in {declared.where}."
        )
    if "test" not in definition.split.to_rule().splits:
        raise ConfigError(
            f"Pipeline {declaration.name} evaluates on the test split, and the `split` of "
            f"training set {of_set.name} in {declared.where} makes none."
        )
    return definition


def upload_code(declaration: PipelineDeclaration, parts: RepoParts, aws: AwsSettings) -> None:
    """Put the scripts where the definition says; those that are there stay.

    Raises:
        AwsError: S3 refused.
    """
    output = declaration.output.rstrip("/")
    upload_source(parts.training, f"{output}/code", aws)
    uri = parts.evaluation_uri(output)
    upload_once(uri, parts.evaluation, "text/x-python", aws)
