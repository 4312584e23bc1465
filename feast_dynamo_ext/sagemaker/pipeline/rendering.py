"""A declared pipeline as SageMaker's definition of it, JSON of version 2020-12-01."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.pipeline.declared_steps import pipeline_steps
from feast_dynamo_ext.sagemaker.pipeline.steps import check_graph, execution

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import PipelineDeclaration
    from feast_dynamo_ext.sagemaker.pipeline.repo_parts import RepoParts

VERSION = "2020-12-01"
MOST_DEFINITION_BYTES = 1_048_576


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
