"""A declared pipeline as SageMaker's definition of it, JSON of version 2020-12-01.

AWS's SDK is not needed: tests hold each step against what it makes of the same pipeline.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker import targets
from feast_dynamo_ext.sagemaker.declared_sets import definition_named
from feast_dynamo_ext.sagemaker.job_source import SourceCode, pack_source, upload_source
from feast_dynamo_ext.sagemaker.output_folder import MANIFEST
from feast_dynamo_ext.sagemaker.pipeline.registration import EVALUATION, package_request
from feast_dynamo_ext.sagemaker.pipeline.steps import (
    Step,
    check_graph,
    execution,
    join,
    json_get,
    output_of,
    parameter,
)
from feast_dynamo_ext.sagemaker.training_job import hyperparameter_strings
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.definition import TrainingSetDefinition
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import (
        PipelineDeclaration,
        Retry,
    )

VERSION = "2020-12-01"
MOST_DEFINITION_BYTES = 1_048_576
CONTAINER = "/opt/ml/processing"
SET_SUMMARY = "training-set.json"
RUN = execution("PipelineExecutionId")

CAPTURE, MATERIALIZE, BUILD = "Capture", "Materialize", "BuildTrainingSet"
TRAIN, EVALUATE, CHECK = "Train", "Evaluate", "CheckMetric"
REGISTER, CREATE, CONFIG = "RegisterModel", "CreateModel", "CreateEndpointConfig"
DEPLOY, FAIL = "DeployEndpoint", "MetricTooLow"


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
    storage = files_of(uri, aws)
    if storage.find(uri) is None:
        with storage.new_file(uri, "text/x-python") as file:
            file.write(parts.evaluation)


def render(declaration: PipelineDeclaration, parts: RepoParts) -> dict[str, Any]:
    """The definition of a pipeline, checked: see `check_graph`.

    Raises:
        ConfigError: steps that SageMaker could not run.
        RequestError: what AWS's service model does not allow, of a step.
    """
    parameters = _parameters(declaration)
    steps = pipeline_steps(declaration, parts)
    check_graph(declaration.name, steps, [found["Name"] for found in parameters])
    definition = {
        "Version": VERSION,
        "Metadata": {},
        "Parameters": parameters,
        "PipelineExperimentConfig": {
            "ExperimentName": execution("PipelineName"),
            "TrialName": execution("PipelineExecutionId"),
        },
        "Steps": [step.to_json() for step in steps],
    }
    size = len(definition_text(definition).encode())
    if size > MOST_DEFINITION_BYTES:
        raise ConfigError(
            f"The definition of pipeline {declaration.name} has {size:,} bytes; SageMaker takes "
            f"{MOST_DEFINITION_BYTES:,}."
        )
    return definition


def definition_text(definition: Mapping[str, Any]) -> str:
    """A definition as the service takes it; equal definitions are equal texts."""
    return json.dumps(definition, separators=(",", ":"), allow_nan=False)


def _parameters(declaration: PipelineDeclaration) -> list[dict[str, Any]]:
    found: list[tuple[str, str, Any]] = [
        ("ProcessingInstanceType", "String", declaration.instance_type),
        ("TrainInstanceType", "String", declaration.train.instance_type),
        ("Threshold", "Float", declaration.condition.threshold),
        ("ApprovalStatus", "String", declaration.package.approval),
    ]
    if declaration.training_set.version is not None:
        found.append(("SetVersion", "String", declaration.training_set.version))
    return [
        {"Name": name, "Type": of_type, "DefaultValue": value} for name, of_type, value in found
    ]


def parameter_values(declaration: PipelineDeclaration) -> dict[str, Any]:
    """The values of a pipeline's parameters that nobody gives others for."""
    return {found["Name"]: found["DefaultValue"] for found in _parameters(declaration)}


def checked_parameters(declaration: PipelineDeclaration, given: Sequence[str]) -> dict[str, str]:
    """Values of a pipeline's parameters from `NAME=VALUE` texts.

    Raises:
        ConfigError: no such parameter, or a value that is none.
    """
    types = {found["Name"]: found["Type"] for found in _parameters(declaration)}
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"`{text}` is no parameter. Write it as NAME=VALUE.")
        if name not in types:
            hint = did_you_mean(name, types, "It has")
            raise ConfigError(f"Pipeline {declaration.name} has no parameter `{name}`. {hint}")
        if types[name] == "Float" and not re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", value):
            raise ConfigError(f"Parameter {name} is `{value}`, and has to be a number.")
        values[name] = value
    return values


def pipeline_steps(declaration: PipelineDeclaration, parts: RepoParts) -> tuple[Step, ...]:
    """The steps of a pipeline, those that are decided on within their condition."""
    return _Steps(declaration, parts).all()


class _Steps:
    def __init__(self, declaration: PipelineDeclaration, parts: RepoParts) -> None:
        self._declared = declaration
        self._parts = parts
        self._output = declaration.output.rstrip("/")
        version = declaration.training_set.version
        folder = RUN if version is None else parameter("SetVersion")
        self._set = join("/", [f"{self._output}/sets", folder])
        self._evaluations = join("/", [f"{self._output}/evaluations", RUN])
        self._of_step, self._of_job = _retries(declaration.retry)

    def all(self) -> tuple[Step, ...]:
        steps: list[Step] = []
        if self._declared.capture is not None:
            command = list(self._declared.capture.command)
            steps.append(self._processing(CAPTURE, self._declared.image, command, []))
        if self._declared.materialize is not None:
            steps.append(self._materialize(_last(steps)))
        steps.append(self._build(_last(steps)))
        steps += [self._train(), self._evaluate(), self._condition()]
        return tuple(steps)

    def _processing(
        self,
        name: str,
        image: str,
        entrypoint: Sequence[Any],
        arguments: Sequence[Any],
        inputs: Sequence[tuple[str, Any]] = (),
        outputs: Sequence[tuple[str, Any]] = (),
        **more: Any,
    ) -> Step:
        declared = self._declared
        request: dict[str, Any] = {
            "ProcessingResources": {
                "ClusterConfig": {
                    "InstanceType": parameter("ProcessingInstanceType"),
                    "InstanceCount": 1,
                    "VolumeSizeInGB": declared.volume_gb,
                }
            },
            "AppSpecification": {"ImageUri": image, "ContainerEntrypoint": list(entrypoint)},
            "RoleArn": declared.role,
            "StoppingCondition": {"MaxRuntimeInSeconds": declared.max_runtime_s},
        }
        if arguments:
            request["AppSpecification"]["ContainerArguments"] = list(arguments)
        if declared.environment:
            request["Environment"] = dict(declared.environment)
        if inputs:
            request["ProcessingInputs"] = [_input(input_name, uri) for input_name, uri in inputs]
        if outputs:
            request["ProcessingOutputConfig"] = {
                "Outputs": [_to_s3(*output) for output in outputs]
            }
        return Step(name, "Processing", request, retries=self._of_job, **more)

    def _ours(self, name: str, arguments: Sequence[Any], **more: Any) -> Step:
        return self._processing(name, self._declared.image, ["feast-dynamo"], arguments, **more)

    def _materialize(self, depends_on: tuple[str, ...]) -> Step:
        materialize = self._declared.materialize
        views = materialize.views if materialize is not None else ()
        arguments = ["materialize", "--chdir", self._declared.repo, "--incremental"]
        if views:
            arguments += ["--views", ",".join(views)]
        return self._ours(MATERIALIZE, arguments, depends_on=depends_on)

    def _build(self, depends_on: tuple[str, ...]) -> Step:
        name, declared = "training-set", self._declared
        arguments = [
            *("pipeline", "build-set", declared.name, "--chdir", declared.repo),
            *("--output", self._set),
            *("--summary", f"{CONTAINER}/output/{name}/{SET_SUMMARY}"),
        ]
        if declared.training_set.version is not None:
            arguments.append("--if-absent")
        return self._ours(
            BUILD,
            arguments,
            outputs=[(name, join("/", [f"{self._output}/summaries", RUN]))],
            property_files=(("TrainingSet", name, SET_SUMMARY),),
            depends_on=depends_on,
            cache_for=declared.cache,
        )

    def _split(self, name: str) -> dict[str, Any]:
        return join("/", [self._set, f"{name}/{self._declared.training_set.format}/"])

    def _channel(self, name: str) -> dict[str, Any]:
        is_sharded = name == "train" and self._declared.train.sharded
        shared = "ShardedByS3Key" if is_sharded else "FullyReplicated"
        return {
            "ChannelName": targets.channel_names(self._parts.target).get(name, name),
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    "S3Uri": self._split(name),
                    "S3DataDistributionType": shared,
                }
            },
            "ContentType": targets.content_type(
                self._parts.target, self._declared.training_set.format
            ),
            "InputMode": "File",
        }

    def _train(self) -> Step:
        train = self._declared.train
        request = {
            "AlgorithmSpecification": {"TrainingImage": train.image, "TrainingInputMode": "File"},
            "HyperParameters": hyperparameter_strings(
                {
                    **train.hyperparameters,
                    "sagemaker_program": self._parts.training.entry,
                    "sagemaker_submit_directory": self._parts.training_uri(self._output),
                }
            ),
            "InputDataConfig": [self._channel(name) for name in self._parts.fitted_on],
            "OutputDataConfig": {"S3OutputPath": f"{self._output}/models"},
            "ResourceConfig": {
                "InstanceType": parameter("TrainInstanceType"),
                "InstanceCount": train.instance_count,
                "VolumeSizeInGB": train.volume_gb,
            },
            "RoleArn": self._declared.role,
            "StoppingCondition": {"MaxRuntimeInSeconds": train.max_runtime_s},
        }
        return Step(
            TRAIN,
            "Training",
            request,
            depends_on=(BUILD,),
            cache_for=self._declared.cache,
            retries=self._of_job,
        )

    def _evaluate(self) -> Step:
        folder = f"{CONTAINER}/input"
        return self._processing(
            EVALUATE,
            self._declared.evaluate.image or self._declared.train.image,
            ["python3", f"{folder}/code/{self._parts.evaluation_name}"],
            [
                *("--model", f"{folder}/model"),
                *("--test", f"{folder}/test"),
                *("--output", f"{CONTAINER}/output/evaluation"),
            ],
            inputs=[
                ("code", self._parts.evaluation_uri(self._output)),
                ("model", output_of(TRAIN, "ModelArtifacts.S3ModelArtifacts")),
                ("test", self._split("test")),
            ],
            outputs=[("evaluation", self._evaluations)],
            property_files=(("Evaluation", "evaluation", EVALUATION),),
            cache_for=self._declared.cache,
        )

    def _condition(self) -> Step:
        condition = self._declared.condition
        is_least = condition.at_least is not None
        compared = {
            "Type": "GreaterThanOrEqualTo" if is_least else "LessThanOrEqualTo",
            "LeftValue": json_get(EVALUATE, "Evaluation", condition.metric),
            "RightValue": parameter("Threshold"),
        }
        bound = "at least" if is_least else "at most"
        words = f"{condition.metric} of {EVALUATION} is not {bound}"
        message = join(" ", [words, parameter("Threshold")])
        return Step(
            CHECK,
            "Condition",
            {"Conditions": [compared]},
            if_steps=(self._register(), *self._deployed()),
            else_steps=(Step(FAIL, "Fail", {"ErrorMessage": message}),),
        )

    def _container(self) -> dict[str, Any]:
        return {
            "Image": self._declared.package.image,
            "ModelDataUrl": output_of(TRAIN, "ModelArtifacts.S3ModelArtifacts"),
        }

    def _register(self) -> Step:
        set_uri = self._set
        request = package_request(
            self._declared,
            self._parts.definition,
            self._container(),
            statistics={"S3Uri": join("/", [self._evaluations, EVALUATION])},
            approval=parameter("ApprovalStatus"),
            metadata={
                "execution": RUN,
                "training_set": set_uri,
                "manifest": join("/", [set_uri, MANIFEST]),
                "manifest_sha256": json_get(BUILD, "TrainingSet", "manifest_sha256"),
            },
        )
        return Step(REGISTER, "RegisterModel", request, retries=self._of_step)

    def _deployed(self) -> tuple[Step, ...]:
        deploy = self._declared.deploy
        if deploy is None:
            return ()
        model = {"ExecutionRoleArn": self._declared.role, "PrimaryContainer": self._container()}
        config = {
            "EndpointConfigName": join("-", [deploy.endpoint, RUN]),
            "ProductionVariants": [
                {
                    "VariantName": "AllTraffic",
                    "ModelName": output_of(CREATE, "ModelName"),
                    "InstanceType": deploy.instance_type,
                    "InitialInstanceCount": deploy.instance_count,
                }
            ],
        }
        endpoint = {
            "EndpointName": deploy.endpoint,
            "EndpointConfigName": output_of(CONFIG, "EndpointConfigName"),
        }
        return (
            Step(CREATE, "Model", model, retries=self._of_step),
            Step(CONFIG, "EndpointConfig", config, retries=self._of_step),
            Step(DEPLOY, "Endpoint", endpoint, depends_on=(REGISTER,)),
        )


def _last(steps: Sequence[Step]) -> tuple[str, ...]:
    return (steps[-1].name,) if steps else ()


def _input(name: str, uri: Any) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": f"{CONTAINER}/input/{name}",
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
            "S3DataDistributionType": "FullyReplicated",
            "S3CompressionType": "None",
        },
    }


def _to_s3(name: str, uri: Any) -> dict[str, Any]:
    path = f"{CONTAINER}/output/{name}"
    place = {"S3Uri": uri, "LocalPath": path, "S3UploadMode": "EndOfJob"}
    return {"OutputName": name, "S3Output": place}


def _retries(
    retry: Retry | None,
) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
    """Policies of steps that are no jobs, and of those that are."""
    if retry is None:
        return (), ()
    times = {
        "BackoffRate": 2.0,
        "IntervalSeconds": retry.interval_s,
        "MaxAttempts": retry.attempts,
    }
    of_step = {**times, "ExceptionType": ["Step.SERVICE_FAULT", "Step.THROTTLING"]}
    of_job = {
        **times,
        "ExceptionType": [
            *("SageMaker.JOB_INTERNAL_ERROR", "SageMaker.CAPACITY_ERROR"),
            "SageMaker.RESOURCE_LIMIT",
        ],
    }
    return (of_step,), (of_step, of_job)
