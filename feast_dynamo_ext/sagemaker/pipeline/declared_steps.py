"""The steps of a declared pipeline, each with the request that SageMaker makes of it.

AWS's SDK is not needed: tests hold each step against what it makes of the same pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.sagemaker import targets
from feast_dynamo_ext.sagemaker.output_folder import MANIFEST
from feast_dynamo_ext.sagemaker.pipeline.registration import EVALUATION, package_request
from feast_dynamo_ext.sagemaker.pipeline.steps import (
    Step,
    execution,
    join,
    json_get,
    output_of,
    parameter,
)
from feast_dynamo_ext.sagemaker.training_job import hyperparameter_strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import (
        PipelineDeclaration,
        Retry,
    )
    from feast_dynamo_ext.sagemaker.pipeline.repo_parts import RepoParts

CONTAINER = "/opt/ml/processing"
SET_SUMMARY = "training-set.json"
RUN = execution("PipelineExecutionId")

CAPTURE, PREPARE, MATERIALIZE, BUILD = "Capture", "Prepare", "Materialize", "BuildTrainingSet"
TRAIN, EVALUATE, CHECK = "Train", "Evaluate", "CheckMetric"
REGISTER, CREATE, CONFIG = "RegisterModel", "CreateModel", "CreateEndpointConfig"
DEPLOY, FAIL = "DeployEndpoint", "MetricTooLow"


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
            steps.append(self._pipeline(CAPTURE, "capture"))
        if self._declared.prepare is not None:
            steps.append(self._pipeline(PREPARE, "prepare", depends_on=_last(steps)))
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

    def _pipeline(self, name: str, command: str, **more: Any) -> Step:
        declared = self._declared
        return self._ours(
            name, ["pipeline", command, declared.name, "--chdir", declared.repo], **more
        )

    def _materialize(self, depends_on: tuple[str, ...]) -> Step:
        materialize = self._declared.materialize
        arguments = ["materialize", "--chdir", self._declared.repo]
        if materialize is not None:
            arguments.append("--all" if materialize.all else "--incremental")
            if materialize.views:
                arguments += ["--views", ",".join(materialize.views)]
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
