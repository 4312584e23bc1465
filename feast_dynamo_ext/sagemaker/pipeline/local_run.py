"""A declared pipeline run on this machine: each step once for what it is made of.

Below its folder::

    state.json                     what each step was last made of, and made
    hashes.json                    hashes of local files, by their states
    prepare.log                    what the program of Prepare printed last
    sets/<key>/                    the training set
    train/<key>/                   model.tar.gz, output.tar.gz, log.txt
    evaluate/<key>/                evaluation.json, log.txt
    packages/<key>.json            the model as it would stand in the registry

A key is a hash of all that a step reads: files on a disk by content and on S3 by ETag, tables by
the files that count, definitions, scripts, images, settings, and the versions of what is
installed. A step whose key and results are as they were is passed over. What is interrupted is
begun again; the steps before it are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.pipeline import local_history, local_model
from feast_dynamo_ext.sagemaker.pipeline.declared_steps import (
    BUILD,
    CAPTURE,
    CHECK,
    EVALUATE,
    MATERIALIZE,
    PREPARE,
    REGISTER,
    TRAIN,
)
from feast_dynamo_ext.sagemaker.pipeline.registration import read_evaluation
from feast_dynamo_ext.sagemaker.pipeline.repo_parts import read_parts
from feast_dynamo_ext.sagemaker.pipeline.step_runner import StepRunner, is_as_it_was
from feast_dynamo_ext.sagemaker.pipeline.step_state import alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import PipelineDeclaration
    from feast_dynamo_ext.sagemaker.pipeline.step_runner import LocalStep

STEPS = (CAPTURE, PREPARE, MATERIALIZE, BUILD, TRAIN, EVALUATE, CHECK, REGISTER)


@dataclass(frozen=True)
class LocalPipelineRun:
    """A pipeline that ran to its end.

    Attributes:
        steps: in order.
        metric: the value that was decided on.
        metrics: by path, each number of evaluation.json: of the run before, and now; None for one
            that is only in the other.
        training_set: the set's folder.
        model: the model's archive.
        package: the model's entry: a JSON file, or the ARN of a model package.
    """

    steps: tuple[LocalStep, ...]
    metric: float
    metrics: Mapping[str, tuple[float | None, float | None]]
    training_set: str
    model: str
    package: str


def run_pipeline_locally(
    declaration: PipelineDeclaration,
    repo: Path,
    store: FeatureStore,
    *,
    folder: Path,
    aws: AwsSettings,
    capture: Callable[[str], str] | None = None,
    force: Sequence[str] = (),
    registry: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> LocalPipelineRun:
    """Run a pipeline's steps on this machine, those that have something new to do.

    Args:
        declaration: the pipeline.
        repo: folder of the feature repo.
        store: its feature store.
        folder: where results and state are kept, alone for this pipeline.
        aws: how to reach S3 and SageMaker's registry.
        capture: captures the source of a name, and says what it brought; what `capture` of the
            declaration needs.
        force: names of steps that are run in any case.
        registry: register the model with SageMaker, in the place of a JSON file.
        say: takes a line for each step that begins and ends.

    Raises:
        PipelineError: a step failed, or the metric is not what it has to be.
        ConfigError: a step or source that does not exist, a script that is not there, or another
            run of the same pipeline in this folder.
    """
    unknown = sorted(set(force) - set(STEPS))
    if unknown:
        from feast_dynamo_ext.config import did_you_mean

        hint = did_you_mean(unknown[0], STEPS, "Steps")
        raise ConfigError(f"There is no step `{unknown[0]}` that runs here. {hint}")
    parts = read_parts(declaration, repo)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    with alone(folder):
        run = StepRunner(declaration, repo, store, folder, aws, frozenset(force), say, parts)
        return _all(run, capture, registry=registry)


def _all(
    run: StepRunner, capture: Callable[[str], str] | None, *, registry: bool
) -> LocalPipelineRun:
    declared = run.declaration
    before = run.state.steps.get(EVALUATE, {}).get("result")
    earlier = _numbers_of(before) if before is not None and is_as_it_was(before) else {}
    if declared.capture is not None:
        if capture is None:
            raise ConfigError(f"Pipeline {declared.name} captures tables: give `capture`.")
        local_history.check_captured(run, declared.capture.sources)
        local_history.capture(run, declared.capture.sources, capture)
    if declared.prepare is not None:
        local_history.prepare(run, declared.prepare.command, declared.prepare.files)
    if declared.materialize is not None:
        local_history.materialize(run, declared.materialize.views, all_=declared.materialize.all)
    training_set = local_history.build(run)
    model = local_model.train(run, training_set)
    evaluation = local_model.evaluate(run, training_set, model)
    metric = local_model.check(run, evaluation)
    package = local_model.register(run, training_set, model, evaluation, metric, registry=registry)
    if declared.deploy is not None:
        run.say(f"{declared.deploy.endpoint} is not deployed: that is done on AWS.")
    now = _numbers_of(evaluation)
    metrics = {path: (earlier.get(path), now.get(path)) for path in {**now, **earlier}}
    return LocalPipelineRun(
        tuple(run.ended), metric, metrics, training_set.output, model["path"], package
    )


def _numbers_of(result: Mapping[str, Any]) -> dict[str, float]:
    """By path, the numbers of an evaluation; not those of curves."""
    return dict(_numbers(read_evaluation(Path(result["path"])), ""))


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            if isinstance(inner, dict):
                yield from _numbers(inner, f"{path}[{place}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value
