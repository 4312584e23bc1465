"""Steps of a SageMaker pipeline as values, what they refer to, and the checks of their graph."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.request_check import check_request

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

STEP_NAME = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,63}")
OPERATIONS = {
    "Processing": ("CreateProcessingJob", ("ProcessingJobName",)),
    "Training": ("CreateTrainingJob", ("TrainingJobName",)),
    "RegisterModel": ("CreateModelPackage", ("ModelPackageName",)),
    "Model": ("CreateModel", ("ModelName",)),
    "EndpointConfig": ("CreateEndpointConfig", ()),
    "Endpoint": ("CreateEndpoint", ()),
}
"""By a step's type: the operation whose request its arguments are, and what SageMaker adds."""

EXECUTION_VARIABLES = frozenset(
    {
        *("PipelineArn", "PipelineExecutionArn", "PipelineExecutionId", "PipelineName"),
        *("CurrentDateTime", "StartDateTime", "TrainingJobName", "ProcessingJobName"),
    }
)


def parameter(name: str) -> dict[str, Any]:
    """The value of a parameter."""
    return {"Get": f"Parameters.{name}"}


def execution(name: str) -> dict[str, Any]:
    """What SageMaker knows of a running pipeline, for example `PipelineExecutionId`."""
    return {"Get": f"Execution.{name}"}


def output_of(step: str, path: str) -> dict[str, Any]:
    """A member of what a step's describe operation answers."""
    return {"Get": f"Steps.{step}.{path}"}


def join(on: str, values: Sequence[Any]) -> dict[str, Any]:
    """Texts and references in one text."""
    return {"Std:Join": {"On": on, "Values": list(values)}}


def json_get(step: str, property_file: str, path: str) -> dict[str, Any]:
    """A value of a JSON file that a step wrote."""
    file = {"Get": f"Steps.{step}.PropertyFiles.{property_file}"}
    return {"Std:JsonGet": {"PropertyFile": file, "Path": path}}


def is_reference(value: Any) -> bool:
    """Whether a value stands for one that is known when the pipeline runs."""
    return (
        isinstance(value, dict)
        and len(value) == 1
        and next(iter(value)) in ("Get", "Std:Join", "Std:JsonGet")
    )


def with_parameters(value: Any, parameters: Mapping[str, Any]) -> Any:
    """A value with parameters in the place of references to them; other references stay."""
    if isinstance(value, Mapping):
        name = str(value.get("Get", ""))
        if is_reference(value) and name.startswith("Parameters."):
            return parameters[name.removeprefix("Parameters.")]
        return {key: with_parameters(item, parameters) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_parameters(item, parameters) for item in value]
    return value


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: unique in its pipeline.
        type: SageMaker's word, for example `Training`.
        arguments: of the operation's request, or of the condition or failure.
        depends_on: names of steps before it that its arguments do not refer to.
        property_files: JSON files among its outputs that others read: (name, output, path).
        cache_for: ISO 8601 duration for which its results are taken again, or None for never.
        retries: policies, as in the definition.
        if_steps: of a condition, the steps where it holds.
        else_steps: of a condition, the steps where it does not.
    """

    name: str
    type: str
    arguments: Mapping[str, Any]
    depends_on: tuple[str, ...] = ()
    property_files: tuple[tuple[str, str, str], ...] = ()
    cache_for: str | None = None
    retries: tuple[Mapping[str, Any], ...] = ()
    if_steps: tuple[Step, ...] = ()
    else_steps: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The step as it stands in a pipeline's definition."""
        arguments = dict(self.arguments)
        if self.type == "Condition":
            arguments["IfSteps"] = [step.to_json() for step in self.if_steps]
            arguments["ElseSteps"] = [step.to_json() for step in self.else_steps]
        found: dict[str, Any] = {"Name": self.name, "Type": self.type, "Arguments": arguments}
        if self.depends_on:
            found["DependsOn"] = list(self.depends_on)
        if self.retries:
            found["RetryPolicies"] = [dict(policy) for policy in self.retries]
        if self.cache_for is not None:
            found["CacheConfig"] = {"Enabled": True, "ExpireAfter": self.cache_for}
        if self.property_files:
            found["PropertyFiles"] = [
                {"PropertyFileName": name, "OutputName": output, "FilePath": path}
                for name, output, path in self.property_files
            ]
        return found


def all_steps(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps, and those within conditions, in order."""
    for step in steps:
        yield step
        yield from all_steps(step.if_steps)
        yield from all_steps(step.else_steps)


def references(value: Any) -> Iterator[str]:
    """The names that a value refers to, for example `Steps.Train.ModelArtifacts`."""
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(value.get("Get"), str):
            yield value["Get"]
            return
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from references(inner)


def check_graph(pipeline: str, steps: Sequence[Step], parameters: Collection[str]) -> None:
    """Refuse steps that SageMaker could not run.

    Raises:
        ConfigError: a name twice or not of SageMaker's form, a reference to nothing, a cycle.
        RequestError: arguments that AWS's service model does not allow.
    """
    every = list(all_steps(steps))
    _check_names(pipeline, every)
    by_name = {step.name: step for step in every}
    for step in every:
        for reference in references(dict(step.arguments)):
            _check_reference(
                f"Pipeline {pipeline}, step {step.name}", reference, by_name, parameters
            )
        for name in step.depends_on:
            if name not in by_name:
                raise ConfigError(
                    f"Pipeline {pipeline}, step {step.name} depends on {name}, and there is no "
                    "such step."
                )
    in_order(pipeline, every)
    for step in every:
        if step.type in OPERATIONS:
            operation, optional = OPERATIONS[step.type]
            check_request(
                operation,
                step.arguments,
                subject=f"step {step.name} of pipeline {pipeline}",
                optional=optional,
                is_reference=is_reference,
            )


def _check_names(pipeline: str, steps: Sequence[Step]) -> None:
    repeated = [name for name, count in Counter(step.name for step in steps).items() if count > 1]
    if repeated:
        raise ConfigError(f"Pipeline {pipeline} has more than one step {', '.join(repeated)}.")
    for step in steps:
        if not STEP_NAME.fullmatch(step.name):
            raise ConfigError(
                f"Pipeline {pipeline}: `{step.name}` cannot be a step's name. It takes letters, "
                "digits and hyphens, at most 64 of them."
            )


def _check_reference(
    subject: str, reference: str, steps: Mapping[str, Step], parameters: Collection[str]
) -> None:
    kind, _, rest = reference.partition(".")
    name, _, path = rest.partition(".")
    if kind == "Parameters":
        is_there = name in parameters and not path
    elif kind == "Execution":
        is_there = name in EXECUTION_VARIABLES and not path
    else:
        is_there = kind == "Steps" and name in steps and bool(path)
        if is_there and path.startswith("PropertyFiles."):
            files = {file for file, _, _ in steps[name].property_files}
            is_there = path.removeprefix("PropertyFiles.") in files
    if not is_there:
        raise ConfigError(f"{subject} refers to {reference}, and there is no such thing.")


def before(step: Step) -> set[str]:
    """Names of the steps that end before one begins, conditions that it is within not counted."""
    found = set(step.depends_on)
    for reference in references(dict(step.arguments)):
        kind, _, rest = reference.partition(".")
        if kind == "Steps":
            found.add(rest.partition(".")[0])
    return found


def in_order(pipeline: str, steps: Sequence[Step]) -> list[str]:
    """Names of the steps, each after all that it needs; otherwise in the order given.

    Raises:
        ConfigError: steps that wait for each other.
    """
    needs = {step.name: before(step) for step in steps}
    for step in steps:
        for inner in all_steps((*step.if_steps, *step.else_steps)):
            needs[inner.name] = needs[inner.name] | {step.name}
    done: list[str] = []
    while len(done) < len(needs):
        ready = [name for name in needs if name not in done and needs[name] <= set(done)]
        if not ready:
            waiting = ", ".join(name for name in needs if name not in done)
            raise ConfigError(f"Pipeline {pipeline}: these steps wait for each other: {waiting}.")
        done.append(ready[0])
    return done
