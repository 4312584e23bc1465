"""The steps of a local run from the training set to a registered model."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.sagemaker.channels import copy_channels
from feast_dynamo_ext.sagemaker.local_job import run_training_job
from feast_dynamo_ext.sagemaker.manifest import manifest_sha256
from feast_dynamo_ext.sagemaker.pipeline.declared_steps import (
    CHECK,
    EVALUATE,
    REGISTER,
    TRAIN,
    pipeline_steps,
)
from feast_dynamo_ext.sagemaker.pipeline.registration import (
    EVALUATION,
    metric_in,
    read_evaluation,
    register_model,
)
from feast_dynamo_ext.sagemaker.pipeline.rendering import parameter_values
from feast_dynamo_ext.sagemaker.pipeline.step_runner import is_as_it_was, key_of
from feast_dynamo_ext.sagemaker.pipeline.step_state import file_hash
from feast_dynamo_ext.sagemaker.pipeline.steps import with_parameters
from feast_dynamo_ext.sagemaker.training_job import MOST_JOB_NAME_CHARS
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.sagemaker.pipeline.step_runner import StepRunner
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet

# Where things lie is another matter here and there; what they are is in the key.
OF_PLACE = {"OutputDataConfig", "RoleArn"}


def _files(run: StepRunner, training_set: TrainingSet, *splits: str) -> list[tuple[str, str]]:
    format_ = run.declaration.training_set.format
    return [
        (file.path, file.sha256) for split in splits for file in training_set.files(split, format_)
    ]


def train(run: StepRunner, training_set: TrainingSet) -> dict[str, Any]:
    """Train on the set: path and SHA-256 of the model's archive.

    Raises:
        PipelineError: it failed.
    """
    (step,) = (each for each in pipeline_steps(run.declaration, run.parts) if each.name == TRAIN)
    values = parameter_values(run.declaration)
    request: dict[str, Any] = with_parameters(dict(step.arguments), values)
    del request["HyperParameters"]["sagemaker_submit_directory"]
    for channel in request["InputDataConfig"]:
        del channel["DataSource"]["S3DataSource"]["S3Uri"]
    inputs = run.inputs(
        **{
            "the training script": run.parts.training.sha256,
            "settings of the job": {
                name: value for name, value in request.items() if name not in OF_PLACE
            },
            "rows to train on": _files(run, training_set, *run.parts.fitted_on),
            "columns of the set": training_set.manifest.written,
        }
    )
    key = key_of(inputs)

    def fit() -> dict[str, Any]:
        partial = run.into("train", key)
        job = _job(run, request, training_set, partial)
        try:
            done = run_training_job(
                job, work_dir=partial / "ml", aws=run.aws, source=run.parts.training
            )
        finally:
            # `feast apply` imports every Python file below a repo. What else a job that failed
            # has left is looked at by people.
            for part in ("code", "packages", "input"):
                for folder in partial.glob(f"ml/*/*/{part}"):
                    shutil.rmtree(folder)
        if not done.job.model_artifacts:
            raise run.error(TRAIN, "The training script left no file in SM_MODEL_DIR.")
        done.log.replace(partial / "log.txt")
        for archive in (partial / "output" / done.job.name / "output").iterdir():
            archive.replace(partial / archive.name)
        for done_with in (partial / "ml", partial / "output"):
            shutil.rmtree(done_with)
        path = run.complete(partial, key) / "model.tar.gz"
        size = path.stat().st_size
        return {"path": str(path), "sha256": file_hash(path), "detail": f"{size:,} bytes"}

    return run.step(TRAIN, inputs, fit, is_as_it_was)


def _job(
    run: StepRunner, request: Mapping[str, Any], training_set: TrainingSet, folder: Path
) -> dict[str, Any]:
    """The request of the step Train with the places of this machine."""
    format_, output = run.declaration.training_set.format, training_set.output
    job: dict[str, Any] = json.loads(json.dumps(request))
    for split, channel in zip(run.parts.fitted_on, job["InputDataConfig"], strict=True):
        source = channel["DataSource"]["S3DataSource"]
        source["S3Uri"] = f"file://{output}/{split}/{format_}/"
    job["OutputDataConfig"] = {"S3OutputPath": f"file://{folder}/output"}
    return job | {"TrainingJobName": run.declaration.name[:MOST_JOB_NAME_CHARS].rstrip("-")}


def evaluate(
    run: StepRunner, training_set: TrainingSet, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure the model on the test split: path and SHA-256 of evaluation.json.

    Raises:
        PipelineError: it failed.
    """
    declared = run.declaration
    inputs = run.inputs(
        **{
            "the evaluation script": hashlib.sha256(run.parts.evaluation).hexdigest(),
            "its image": declared.evaluate.image or declared.train.image,
            "variables": declared.environment,
            "the model": model["sha256"],
            "rows to test on": _files(run, training_set, "test"),
        }
    )
    key = key_of(inputs)

    def measure() -> dict[str, Any]:
        partial = run.into("evaluate", key)
        folders = {name: partial / name for name in ("model", "test", "output")}
        for name in ("model", "output"):
            folders[name].mkdir()
        shutil.copyfile(model["path"], folders["model"] / "model.tar.gz")
        format_ = declared.training_set.format
        copy_channels(training_set, partial, run.aws, format=format_, splits=("test",))
        script = (run.repo / declared.evaluate.script).absolute()
        command = [sys.executable, str(script)]
        command += [text for name in folders for text in (f"--{name}", str(folders[name]))]
        run.program(EVALUATE, command, script.parent, partial / "log.txt")
        written = folders["output"] / EVALUATION
        if not written.is_file():
            raise run.error(EVALUATE, f"{script.name} wrote no {EVALUATION} to --output.")
        read_evaluation(written)
        written.replace(partial / EVALUATION)
        for folder in folders.values():
            shutil.rmtree(folder)
        path = run.complete(partial, key) / EVALUATION
        return {"path": str(path), "sha256": file_hash(path)}

    return run.step(EVALUATE, inputs, measure, is_as_it_was)


def check(run: StepRunner, evaluation: Mapping[str, Any]) -> float:
    """The metric, where it is good enough.

    Raises:
        PipelineError: it is not, or is none.
    """
    condition = run.declaration.condition
    value = run.guarded(CHECK, metric_in, Path(evaluation["path"]), condition.metric)
    bound = "at least" if condition.at_least is not None else "at most"
    words = f"{condition.metric} is {value:g} and has to be {bound} {condition.threshold:g}"
    if not condition.holds(value, condition.threshold):
        raise run.error(CHECK, f"{words}, so the model is not registered.")
    inputs = {
        "the condition": condition.model_dump(mode="json"),
        "the evaluation": evaluation["sha256"],
    }
    run.step(CHECK, inputs, lambda: {"detail": words})
    return float(value)


def register(
    run: StepRunner,
    training_set: TrainingSet,
    model: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    metric: float,
    *,
    registry: bool,
) -> str:
    """The model's entry: path of a JSON file, or with `registry` the ARN of a model package.

    Raises:
        PipelineError: it failed.
    """
    declared = run.declaration
    entry = {
        "group": declared.package.group,
        "approval": declared.package.approval,
        "image": declared.package.image,
        "pipeline": declared.name,
        "feature_service": run.parts.definition.feature_service,
        "features": list(training_set.manifest.provenance.feature_refs),
        "training_set": training_set.output,
        "manifest_sha256": manifest_sha256(training_set.output, run.aws),
        "model": {"path": model["path"], "sha256": model["sha256"]},
        "metric": {"path": declared.condition.metric, "value": metric},
        "evaluation": json.loads(Path(evaluation["path"]).read_text(encoding="utf-8")),
    }
    # Equal files in another place are no other model.
    inputs = run.inputs(
        **{
            "the model": model["sha256"],
            "the set's manifest": entry["manifest_sha256"],
            "the evaluation": entry["evaluation"],
            "the package": declared.package.model_dump(mode="json"),
            "its names": {name: entry[name] for name in ("pipeline", "feature_service", "metric")},
            "its features": entry["features"],
            "the registry": declared.output if registry else "",
        }
    )
    path = run.folder / "packages" / f"{key_of(inputs)[:16]}.json"

    def write() -> dict[str, Any]:
        found = entry
        if registry:
            arn = register_model(declared, run.parts.definition, entry, evaluation, run.aws)
            found = entry | {"arn": arn}
        text = json.dumps(found, indent=1) + "\n"
        with files_of(str(path), run.aws).new_file(str(path)) as file:
            file.write(text.encode())
        place = str(found.get("arn", path))
        return {"path": str(path), "sha256": file_hash(path), "place": place, "detail": place}

    return str(run.step(REGISTER, inputs, write, is_as_it_was)["place"])
