"""A model's entry in SageMaker's registry: the request, and what it refers to on S3.

The package has the evaluation as its metrics, and in its metadata what the model came from: the
pipeline, the feature service, the set's place, its manifest and the manifest's hash.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.output_folder import MANIFEST
from feast_dynamo_ext.sagemaker.request_check import check_request
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.definition import TrainingSetDefinition
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import PipelineDeclaration

EVALUATION = "evaluation.json"
METRIC_PART = re.compile(r"([A-Za-z_]\w*)|\[(\d+)\]")
QUALITY_GROUPS = (
    "regression_metrics",
    "binary_classification_metrics",
    "multiclass_classification_metrics",
)
"""What SageMaker's model monitor writes and its console shows of a model's quality."""

CURVES = {
    "receiver_operating_characteristic_curve": ("false_positive_rates", "true_positive_rates"),
    "precision_recall_curve": ("precisions", "recalls"),
}


def package_request(
    declaration: PipelineDeclaration,
    definition: TrainingSetDefinition,
    container: Mapping[str, Any],
    *,
    statistics: Mapping[str, Any],
    approval: Any,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """The request of CreateModelPackage for a model that has passed; references may stand in it.

    Args:
        declaration: the pipeline.
        definition: its training set's.
        container: image and model.
        statistics: URI of evaluation.json on S3, and its digest where that is known.
        approval: approval status.
        metadata: what is kept with the model besides pipeline and features.
    """
    package, service = declaration.package, definition.feature_service
    # The service takes 256 characters a value; a set's manifest has all of its references.
    count = len(definition.features or ())
    features = service if service is not None else f"{count} references"
    key = "feature_service" if service is not None else "features"
    return {
        "ModelPackageGroupName": package.group,
        "ModelMetrics": {
            "ModelQuality": {"Statistics": {"ContentType": "application/json", **statistics}}
        },
        "CustomerMetadataProperties": {
            "pipeline": declaration.name,
            key: features,
            **metadata,
        },
        "InferenceSpecification": {
            "Containers": [dict(container)],
            "SupportedContentTypes": list(package.content_types),
            "SupportedResponseMIMETypes": list(package.response_types),
            "SupportedRealtimeInferenceInstanceTypes": list(package.instance_types),
            "SupportedTransformInstanceTypes": list(package.instance_types),
        },
        "ModelApprovalStatus": approval,
        "SkipModelValidation": "None",
    }


def sagemaker_client(aws: AwsSettings) -> Any:
    """SageMaker as S3 is reached, but for an endpoint, which is that of S3."""
    return aws_access.client("sagemaker", dataclasses.replace(aws, endpoint_url=None))


def make_group(group: str, client: Any) -> None:
    """Make a model package group where there is none of that name.

    Raises:
        AwsError: SageMaker refused.
    """
    with aws_access.translated("sagemaker", f"model package group `{group}`"):
        pages = client.get_paginator("list_model_package_groups").paginate(NameContains=group)
        names = {
            found["ModelPackageGroupName"]
            for page in pages
            for found in page["ModelPackageGroupSummaryList"]
        }
        if group not in names:
            client.create_model_package_group(ModelPackageGroupName=group)


def register_model(
    declaration: PipelineDeclaration,
    definition: TrainingSetDefinition,
    entry: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    aws: AwsSettings,
) -> str:
    """Upload a model that was made on this machine and register it with SageMaker.

    Files go below the pipeline's output under their hashes; those that are there stay.

    Args:
        declaration: the pipeline.
        definition: its training set's.
        entry: the model as it stands in the JSON file of a local run.
        evaluation: path and SHA-256 of evaluation.json.
        aws: how to reach S3 and SageMaker.

    Returns:
        ARN of the model package.

    Raises:
        RequestError: what AWS's service model does not allow.
        AwsError: AWS refused.
    """
    output, model = declaration.output.rstrip("/"), entry["model"]
    model_uri = f"{output}/models/{model['sha256']}/model.tar.gz"
    evaluation_uri = f"{output}/evaluations/{evaluation['sha256']}/{EVALUATION}"
    manifest_uri = f"{output}/manifests/{entry['manifest_sha256']}/{MANIFEST}"
    request = package_request(
        declaration,
        definition,
        {"Image": declaration.package.image, "ModelDataUrl": model_uri},
        statistics={
            "S3Uri": evaluation_uri,
            "ContentDigest": f"sha256:{evaluation['sha256']}",
        },
        approval=declaration.package.approval,
        metadata={
            "training_set": entry["training_set"][:MOST_METADATA_CHARS],
            "manifest": manifest_uri,
            "manifest_sha256": entry["manifest_sha256"],
            "metric": f"{entry['metric']['value']!r}",
        },
    )
    group = declaration.package.group
    check_request("CreateModelPackage", request, subject=f"model package group `{group}`")
    _upload(Path(model["path"]), model_uri, aws)
    _upload(Path(evaluation["path"]), evaluation_uri, aws)
    _upload(Path(entry["training_set"]) / MANIFEST, manifest_uri, aws)
    client = sagemaker_client(aws)
    make_group(group, client)
    with aws_access.translated("sagemaker", f"model package group `{group}`"):
        arn: str = client.create_model_package(**request)["ModelPackageArn"]
    return arn


MOST_METADATA_CHARS = 256


def _upload(path: Path, uri: str, aws: AwsSettings) -> None:
    storage = files_of(uri, aws)
    if storage.find(uri) is None:
        with path.open("rb") as source, storage.new_file(uri) as file:
            shutil.copyfileobj(source, file, 1 << 20)


# -- the evaluation ---------------------------------------------------------------------------


def read_evaluation(file: Path) -> dict[str, Any]:
    """The content of evaluation.json, which is registered as a model's quality statistics.

    Groups that bear the names of SageMaker's own (`binary_classification_metrics`, ...) have its
    form: `{"auc": {"value": 0.8, "standard_deviation": 0.01}}`, a confusion matrix, curves. All
    else is the script's.

    Raises:
        ConfigError: it is no JSON of an object, or a group is not of that form.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refused)
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is no mapping of metrics.")
    problems = [
        problem
        for group in QUALITY_GROUPS
        if group in found
        for problem in _group_problems(group, found[group])
    ]
    if problems:
        raise ConfigError(
            f"{file} is not as SageMaker reads a model's quality: {'; '.join(problems)}."
        )
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not of JSON; leave it out, or write it as a text")


def _group_problems(group: str, metrics: Any) -> Iterator[str]:
    if not isinstance(metrics, dict) or not metrics:
        yield f"`{group}` must be a mapping of metrics"
        return
    for name, metric in metrics.items():
        path = f"{group}.{name}"
        if not isinstance(metric, dict):
            yield f"`{path}` must be a mapping with `value`"
        elif name == "confusion_matrix":
            rows = [row for row in metric.values() if isinstance(row, dict)]
            if len(rows) < len(metric) or not all(
                _is_number(count) for row in rows for count in row.values()
            ):
                yield f"`{path}` must have a count by actual and predicted label"
        elif name in CURVES:
            lists = [metric.get(axis) for axis in CURVES[name]]
            if not all(isinstance(one, list) and all(map(_is_number, one)) for one in lists):
                yield f"`{path}` must have lists {' and '.join(CURVES[name])}"
            elif len(lists[0] or ()) != len(lists[1] or ()):
                yield f"`{path}` must have {' and '.join(CURVES[name])} of one length"
        else:
            if not _is_number(metric.get("value")):
                yield f"`{path}.value` must be a number"
            if not _is_number(metric.get("standard_deviation", "NaN"), "NaN"):
                yield f'`{path}.standard_deviation` must be a number, or "NaN"'


def _is_number(value: Any, *or_text: str) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or value in or_text


def metric_in(file: Path, path: str) -> float:
    """A number of a JSON file, by a path such as `binary_classification_metrics.auc.value`.

    Raises:
        ConfigError: the file is no JSON, or has no finite number there.
    """
    value: Any = read_evaluation(file)
    try:
        for name, index in METRIC_PART.findall(path):
            value = value[int(index)] if index else value[name]
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{file} has no `{path}`.") from error
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ConfigError(f"`{path}` of {file} is {value!r}, which is no finite number.")
    return float(value)
