"""What is registered with a model: the form of its evaluation, and requests with real values."""

from __future__ import annotations

import copy
import json

import pytest
from test_pipeline_rendering import CASE, SET, declared

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.pipeline.declared_steps import pipeline_steps
from feast_dynamo_ext.sagemaker.pipeline.registration import metric_in, read_evaluation
from feast_dynamo_ext.sagemaker.pipeline.rendering import parameter_values
from feast_dynamo_ext.sagemaker.pipeline.repo_parts import read_parts
from feast_dynamo_ext.sagemaker.pipeline.steps import OPERATIONS, all_steps
from feast_dynamo_ext.sagemaker.request_check import request_problems

# The examples of "Model quality metrics and Amazon CloudWatch monitoring" in SageMaker's guide.
DOCUMENTED = {
    "regression_metrics": {
        "mae": {"value": 0.3711832061068702, "standard_deviation": 0.0037566388129940394},
        "r2": {"value": -1.3766111872212665, "standard_deviation": 0.022653980022771227},
    },
    "binary_classification_metrics": {
        "confusion_matrix": {"0": {"0": 1, "1": 2}, "1": {"0": 0, "1": 1}},
        "recall": {"value": 1.0, "standard_deviation": "NaN"},
        "receiver_operating_characteristic_curve": {
            "false_positive_rates": [0.0, 0.0, 1.0],
            "true_positive_rates": [0.0, 0.25, 1.0],
        },
        "precision_recall_curve": {"precisions": [1.0, 0.8], "recalls": [0.5, 1.0]},
        "auc": {"value": 0.5},
    },
    "multiclass_classification_metrics": {
        "accuracy": {"value": 0.6288716814159292, "standard_deviation": 0.00021},
    },
}


def written(tmp_path, content) -> str:
    file = tmp_path / "evaluation.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_what_sagemaker_documents_is_read(tmp_path):
    file = written(tmp_path, DOCUMENTED | {"rows": 5, "anything": [{"else": None}]})
    assert read_evaluation(file)["rows"] == 5
    assert metric_in(file, "binary_classification_metrics.auc.value") == 0.5
    assert metric_in(file, "regression_metrics.r2.value") == -1.3766111872212665


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("regression_metrics", {}, "`regression_metrics` must be a mapping of metrics"),
        ("regression_metrics", [1], "`regression_metrics` must be a mapping of metrics"),
        ("regression_metrics.mae", 0.5, "`regression_metrics.mae` must be a mapping with `value`"),
        ("regression_metrics.mae", {}, "`regression_metrics.mae.value` must be a number"),
        ("regression_metrics.mae.value", "0.5", "mae.value` must be a number"),
        ("regression_metrics.mae.value", True, "mae.value` must be a number"),
        ("regression_metrics.mae.standard_deviation", "none", 'must be a number, or "NaN"'),
        (
            "binary_classification_metrics.confusion_matrix",
            {"0": 5},
            "must have a count by actual",
        ),
        (
            "binary_classification_metrics.precision_recall_curve.recalls",
            [1.0],
            "precisions and recalls of one length",
        ),
        (
            "binary_classification_metrics.receiver_operating_characteristic_curve",
            {"true_positive_rates": []},
            "must have lists false_positive_rates and true_positive_rates",
        ),
    ],
)
def test_a_group_of_sagemakers_name_has_its_form(path, value, message, tmp_path):
    content = copy.deepcopy(DOCUMENTED)
    *folders, last = path.split(".")
    place = content
    for name in folders:
        place = place[name]
    place[last] = value
    with pytest.raises(ConfigError, match="is not as SageMaker reads a model's quality") as error:
        read_evaluation(written(tmp_path, content))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "no mapping of metrics"),
        ('{"auc": NaN}', "NaN is not of JSON"),
    ],
)
def test_a_file_that_is_no_evaluation_is_refused(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_evaluation(written(tmp_path, text))


def resolved(value, parameters):
    """A value as SageMaker has it when the step runs."""
    if isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "Get":
            name = inner.partition(".")[2]
            outputs = {"Train.ModelArtifacts.S3ModelArtifacts": "s3://bucket/x/model.tar.gz"}
            outputs |= {"PipelineExecutionId": "abcdef012345", "PipelineName": "churn"}
            outputs |= {"CreateModel.ModelName": "m-1"}
            outputs |= {"CreateEndpointConfig.EndpointConfigName": "churn-live-abcdef012345"}
            return (parameters | outputs)[name]
        if kind == "Std:Join":
            return inner["On"].join(str(resolved(item, parameters)) for item in inner["Values"])
        if kind == "Std:JsonGet":
            return "ab" * 32
    if isinstance(value, dict):
        return {name: resolved(item, parameters) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolved(item, parameters) for item in value]
    return value


def test_each_request_is_allowed_with_the_values_that_it_has_when_it_is_sent(tmp_path):
    (tmp_path / "training_sets").mkdir()
    (tmp_path / "training_sets" / "churned.yaml").write_text(SET)
    for script in ("train.py", "evaluate.py"):
        (tmp_path / script).touch()
    declaration = declared(CASE)
    parameters = parameter_values(declaration)
    checked = {}
    for step in all_steps(pipeline_steps(declaration, read_parts(declaration, tmp_path))):
        if step.type in OPERATIONS:
            operation, optional = OPERATIONS[step.type]
            request = resolved(dict(step.arguments), parameters)
            assert request_problems(operation, request, optional=optional) == ()
            checked[step.name] = request
    assert len(checked) == 10
    package = checked["RegisterModel"]
    assert package["CustomerMetadataProperties"] == {
        "pipeline": "churn",
        "feature_service": "churn_v1",
        "execution": "abcdef012345",
        "training_set": "s3://bucket/pipelines/churn/sets/2026-04",
        "manifest": "s3://bucket/pipelines/churn/sets/2026-04/manifest.json",
        "manifest_sha256": "ab" * 32,
    }
    assert package["ModelMetrics"]["ModelQuality"]["Statistics"] == {
        "ContentType": "application/json",
        "S3Uri": "s3://bucket/pipelines/churn/evaluations/abcdef012345/evaluation.json",
    }
