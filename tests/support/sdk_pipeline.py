"""The pipeline of `CASE` in tests/unit/test_pipeline_rendering.py, written with AWS's own SDK.

No test imports it: the suite does without the SDK, which brings 78 packages. It wrote
`sdk_pipeline.json` beside it, and does so again in an environment that has the SDK::

    pip install 'sagemaker==3.27.0' && python tests/support/sdk_pipeline.py
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SETTINGS = """
SchemaVersion: '1.0'
SageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}
"""
# The SDK makes clients as it is imported, asks STS and IAM of the role, and reports its use.
with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
    file.write(SETTINGS)
os.environ |= {
    "SAGEMAKER_USER_CONFIG_OVERRIDE": file.name,
    "SAGEMAKER_VALIDATE_ROLE": "false",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

import boto3  # noqa: E402
from sagemaker.core.model_metrics import MetricsSource, ModelMetrics  # noqa: E402
from sagemaker.core.model_registry import create_model_package_from_containers  # noqa: E402
from sagemaker.core.processing import Processor  # noqa: E402
from sagemaker.core.shapes import (  # noqa: E402
    Channel,
    DataSource,
    OutputDataConfig,
    ProcessingInput,
    ProcessingOutput,
    ProcessingS3Input,
    ProcessingS3Output,
    S3DataSource,
    StoppingCondition,
)
from sagemaker.core.training.configs import Compute  # noqa: E402
from sagemaker.core.workflow.conditions import ConditionGreaterThanOrEqualTo  # noqa: E402
from sagemaker.core.workflow.execution_variables import ExecutionVariables  # noqa: E402
from sagemaker.core.workflow.functions import Join, JsonGet  # noqa: E402
from sagemaker.core.workflow.parameters import ParameterFloat, ParameterString  # noqa: E402
from sagemaker.core.workflow.pipeline_context import PipelineSession  # noqa: E402
from sagemaker.core.workflow.properties import PropertyFile  # noqa: E402
from sagemaker.mlops.workflow.condition_step import ConditionStep  # noqa: E402
from sagemaker.mlops.workflow.endpoint_step import EndpointConfigStep, EndpointStep  # noqa: E402
from sagemaker.mlops.workflow.fail_step import FailStep  # noqa: E402
from sagemaker.mlops.workflow.model_step import ModelStep  # noqa: E402
from sagemaker.mlops.workflow.pipeline import Pipeline  # noqa: E402
from sagemaker.mlops.workflow.retry import (  # noqa: E402
    SageMakerJobExceptionTypeEnum,
    SageMakerJobStepRetryPolicy,
    StepExceptionTypeEnum,
    StepRetryPolicy,
)
from sagemaker.mlops.workflow.steps import CacheConfig, ProcessingStep, TrainingStep  # noqa: E402
from sagemaker.train import ModelTrainer  # noqa: E402

ROLE = "arn:aws:iam::123456789012:role/pipeline"
REGISTRY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
BASE = "s3://bucket/pipelines/churn"
LOCAL = "/opt/ml/processing"
RUN = ExecutionVariables.PIPELINE_EXECUTION_ID

session = PipelineSession(boto3.Session(region_name="eu-west-1"), default_bucket="bucket")
processing_instance = ParameterString("ProcessingInstanceType", "ml.m5.xlarge")
train_instance = ParameterString("TrainInstanceType", "ml.m5.2xlarge")
threshold = ParameterFloat("Threshold", 0.7)
approval = ParameterString("ApprovalStatus", "PendingManualApproval")
version = ParameterString("SetVersion", "2026-04")

faults = [StepExceptionTypeEnum.SERVICE_FAULT, StepExceptionTypeEnum.THROTTLING]
of_step = StepRetryPolicy(faults, backoff_rate=2.0, interval_seconds=30, max_attempts=5)
of_job = SageMakerJobStepRetryPolicy(
    [
        SageMakerJobExceptionTypeEnum.INTERNAL_ERROR,
        SageMakerJobExceptionTypeEnum.CAPACITY_ERROR,
        SageMakerJobExceptionTypeEnum.RESOURCE_LIMIT,
    ],
    backoff_rate=2.0,
    interval_seconds=30,
    max_attempts=5,
)
cache = CacheConfig(enable_caching=True, expire_after="P7D")


def processor(image: str, entrypoint: list[str]) -> Processor:
    return Processor(
        role=ROLE,
        image_uri=image,
        instance_type=processing_instance,
        instance_count=1,
        entrypoint=entrypoint,
        volume_size_in_gb=40,
        max_runtime_in_seconds=7200,
        env={"STAGE": "test"},
        sagemaker_session=session,
    )


def in_s3(name: str, uri: Any, folder: str) -> ProcessingInput:
    place = ProcessingS3Input(
        s3_uri=uri,
        local_path=f"{LOCAL}/input/{folder}",
        s3_data_type="S3Prefix",
        s3_input_mode="File",
        s3_data_distribution_type="FullyReplicated",
    )
    return ProcessingInput(input_name=name, s3_input=place)


def to_s3(name: str, uri: Any) -> ProcessingOutput:
    place = ProcessingS3Output(
        s3_uri=uri, local_path=f"{LOCAL}/output/{name}", s3_upload_mode="EndOfJob"
    )
    return ProcessingOutput(output_name=name, s3_output=place)


ours = processor(f"{REGISTRY}/features:1", ["feast-dynamo"])
capture = ProcessingStep(
    "Capture",
    ours.run(arguments=["pipeline", "capture", "churn", "--chdir", "/opt/feature_repo"]),
    retry_policies=[of_step, of_job],
)
prepare = ProcessingStep(
    "Prepare",
    ours.run(arguments=["pipeline", "prepare", "churn", "--chdir", "/opt/feature_repo"]),
    depends_on=[capture],
    retry_policies=[of_step, of_job],
)
materialize = ProcessingStep(
    "Materialize",
    ours.run(
        arguments=[
            *("materialize", "--chdir", "/opt/feature_repo", "--incremental"),
            *("--views", "orders,visits"),
        ]
    ),
    depends_on=[prepare],
    retry_policies=[of_step, of_job],
)
training_set = Join("/", [f"{BASE}/sets", version])
set_file = PropertyFile("TrainingSet", "training-set", "training-set.json")
build = ProcessingStep(
    "BuildTrainingSet",
    ours.run(
        arguments=[
            *("pipeline", "build-set", "churn", "--chdir", "/opt/feature_repo"),
            *("--output", training_set),
            *("--summary", f"{LOCAL}/output/training-set/training-set.json"),
            "--if-absent",
        ],
        outputs=[to_s3("training-set", Join("/", [f"{BASE}/summaries", RUN]))],
    ),
    property_files=[set_file],
    depends_on=[materialize],
    cache_config=cache,
    retry_policies=[of_step, of_job],
)


def channel(name: str) -> Channel:
    place = S3DataSource(
        s3_data_type="S3Prefix",
        s3_uri=Join("/", [training_set, f"{name}/parquet/"]),
        s3_data_distribution_type="FullyReplicated",
    )
    return Channel(
        channel_name=name,
        content_type="application/x-parquet",
        input_mode="File",
        data_source=DataSource(s3_data_source=place),
    )


trainer = ModelTrainer(
    training_image=f"{REGISTRY}/xgboost:1",
    role=ROLE,
    sagemaker_session=session,
    compute=Compute(instance_type=train_instance, instance_count=2, volume_size_in_gb=50),
    stopping_condition=StoppingCondition(max_runtime_in_seconds=1800),
    output_data_config=OutputDataConfig(s3_output_path=f"{BASE}/models"),
    training_input_mode="File",
    hyperparameters={
        "max_depth": "3",
        "sagemaker_program": "train.py",
        "sagemaker_submit_directory": f"{BASE}/code/aaaa/sourcedir.tar.gz",
    },
)
train = TrainingStep(
    "Train",
    trainer.train(
        input_data_config=[channel("train"), channel("validation")], wait=False, logs=False
    ),
    depends_on=[build],
    cache_config=cache,
    retry_policies=[of_step, of_job],
)
model_data = train.properties.ModelArtifacts.S3ModelArtifacts

evaluation = PropertyFile("Evaluation", "evaluation", "evaluation.json")
evaluation_uri = Join("/", [f"{BASE}/evaluations", RUN])
evaluator = processor(f"{REGISTRY}/xgboost:1", ["python3", f"{LOCAL}/input/code/evaluate.py"])
evaluate = ProcessingStep(
    "Evaluate",
    evaluator.run(
        arguments=[
            *("--model", f"{LOCAL}/input/model"),
            *("--test", f"{LOCAL}/input/test"),
            *("--output", f"{LOCAL}/output/evaluation"),
        ],
        inputs=[
            in_s3("code", f"{BASE}/code/bbbb/evaluate.py", "code"),
            in_s3("model", model_data, "model"),
            in_s3("test", Join("/", [training_set, "test/parquet/"]), "test"),
        ],
        outputs=[to_s3("evaluation", evaluation_uri)],
    ),
    property_files=[evaluation],
    cache_config=cache,
    retry_policies=[of_step, of_job],
)


def captured(call: Any) -> Any:
    """What a model step is made of: the request that a call of the session's would send."""
    session.context = None
    session.init_model_step_arguments(SimpleNamespace(sagemaker_session=session))
    call()
    return session.context


container = {"Image": f"{REGISTRY}/serve:1", "ModelDataUrl": model_data}
register = ModelStep(
    "RegisterModel",
    captured(
        lambda: create_model_package_from_containers(
            session,
            containers=[container],
            content_types=["text/csv"],
            response_types=["text/csv"],
            inference_instances=["ml.m5.large"],
            transform_instances=["ml.m5.large"],
            model_package_group_name="churn",
            model_metrics=ModelMetrics(
                model_statistics=MetricsSource(
                    "application/json", Join("/", [evaluation_uri, "evaluation.json"])
                )
            )._to_request_dict(),
            approval_status=approval,
            customer_metadata_properties={
                "pipeline": "churn",
                "execution": RUN,
                "feature_service": "churn_v1",
                "training_set": training_set,
                "manifest": Join("/", [training_set, "manifest.json"]),
                "manifest_sha256": JsonGet(
                    step_name="BuildTrainingSet",
                    property_file=set_file,
                    json_path="manifest_sha256",
                ),
            },
        )
    ),
    retry_policies=[of_step],
)
create = ModelStep(
    "CreateModel",
    captured(lambda: session.create_model("named by SageMaker", ROLE, container)),
    retry_policies=[of_step],
)
config = EndpointConfigStep(
    "CreateEndpointConfig",
    session.create_endpoint_config(
        Join("-", ["churn-live", RUN]),
        [
            {
                "VariantName": "AllTraffic",
                "ModelName": create.properties.ModelName,
                "InstanceType": "ml.m5.large",
                "InitialInstanceCount": 2,
            }
        ],
    ),
    retry_policies=[of_step],
)
endpoint = EndpointStep(
    "DeployEndpoint",
    session.create_endpoint("churn-live", config.properties.EndpointConfigName),
    depends_on=[register],
)
fail = FailStep(
    "MetricTooLow",
    Join(" ", ["metrics.auc.value of evaluation.json is not at least", threshold]),
)
measured = JsonGet(step_name="Evaluate", property_file=evaluation, json_path="metrics.auc.value")
condition = ConditionStep(
    "CheckMetric",
    conditions=[ConditionGreaterThanOrEqualTo(measured, threshold)],
    if_steps=[register, create, config, endpoint],
    else_steps=[fail],
)
pipeline = Pipeline(
    "churn",
    parameters=[processing_instance, train_instance, threshold, approval, version],
    steps=[capture, prepare, materialize, build, train, evaluate, condition],
    sagemaker_session=session,
)
definition = json.loads(pipeline.definition())
Path(__file__).with_suffix(".json").write_text(json.dumps(definition, indent=1) + "\n")
