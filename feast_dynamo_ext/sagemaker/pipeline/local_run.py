"""A declared pipeline run on this machine: each step once for what it is made of.

Below its folder::

    state.json                     what each step was last made of, and made
    hashes.json                    hashes of local files, by their states
    sets/<key>/                    the training set
    train/<key>/                   model.tar.gz, output.tar.gz, log.txt
    evaluate/<key>/                evaluation.json, log.txt
    packages/<key>.json            the model as it would stand in the registry

A key is a hash of all that a step reads: files on a disk by content and on S3 by ETag, tables by
snapshot, definitions, scripts, images, settings, and the versions of what is installed. A step
whose key and results are as they were is passed over. What is interrupted is begun again; the
steps before it are not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import __version__
from feast_dynamo_ext.errors import ConfigError, FeastDynamoError, PipelineError
from feast_dynamo_ext.sagemaker.channels import copy_channels
from feast_dynamo_ext.sagemaker.declared_sets import build_training_set
from feast_dynamo_ext.sagemaker.local_job import run_training_job
from feast_dynamo_ext.sagemaker.manifest import manifest_sha256
from feast_dynamo_ext.sagemaker.output_folder import open_folder
from feast_dynamo_ext.sagemaker.pipeline.registration import (
    EVALUATION,
    metric_in,
    read_evaluation,
    register_model,
)
from feast_dynamo_ext.sagemaker.pipeline.rendering import (
    BUILD,
    CAPTURE,
    CHECK,
    EVALUATE,
    MATERIALIZE,
    REGISTER,
    TRAIN,
    parameter_values,
    pipeline_steps,
    read_parts,
)
from feast_dynamo_ext.sagemaker.pipeline.step_inputs import (
    environment_hash,
    file_states,
    references,
    set_summary,
    view_states,
)
from feast_dynamo_ext.sagemaker.pipeline.step_state import (
    STATE,
    FileHashes,
    State,
    alone,
    file_hash,
)
from feast_dynamo_ext.sagemaker.pipeline.steps import with_parameters
from feast_dynamo_ext.sagemaker.training_job import MOST_JOB_NAME_CHARS
from feast_dynamo_ext.sagemaker.training_set import load_training_set
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import PipelineDeclaration
    from feast_dynamo_ext.sagemaker.pipeline.rendering import RepoParts
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet

LAST_LINES = 20
STEPS = (CAPTURE, MATERIALIZE, BUILD, TRAIN, EVALUATE, CHECK, REGISTER)


@dataclass(frozen=True)
class LocalStep:
    """What became of a step.

    Attributes:
        name: as in the pipeline's definition.
        outcome: `done`, or `unchanged` where it was passed over.
        seconds: that it took.
        detail: what it made, in a few words.
    """

    name: str
    outcome: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class LocalPipelineRun:
    """A pipeline that ran to its end.

    Attributes:
        steps: in order.
        metric: the value that was decided on.
        training_set: the set's folder.
        model: the model's archive.
        package: the model's entry: a JSON file, or the ARN of a model package.
    """

    steps: tuple[LocalStep, ...]
    metric: float
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
        force: names of steps that are run in any case.
        registry: register the model with SageMaker, in the place of a JSON file.
        say: takes a line for each step that begins and ends.

    Raises:
        PipelineError: a step failed, or the metric is not what it has to be.
        ConfigError: a step that does not exist, a script that is not there, or another run of the
            same pipeline in this folder.
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
        run = _Run(declaration, repo, store, folder, aws, frozenset(force), say, parts)
        return run.all(registry=registry)


@dataclass
class _Run:
    declaration: PipelineDeclaration
    repo: Path
    store: FeatureStore
    folder: Path
    aws: AwsSettings
    force: frozenset[str]
    say: Callable[[str], None]
    parts: RepoParts
    ended: list[LocalStep] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = State.read(self.folder / STATE, self.aws)
        self.hashes = FileHashes(self.folder, self.aws)
        self.environment = environment_hash()

    def all(self, *, registry: bool) -> LocalPipelineRun:
        if self.declaration.capture is not None:
            self._step(CAPTURE, None, self._capture)
        if self.declaration.materialize is not None:
            key = self._guarded(MATERIALIZE, self._materialize_key)
            self._step(MATERIALIZE, key, self._materialize, self._is_materialized)
        training_set = self._build()
        model = self._train(training_set)
        evaluation = self._evaluate(training_set, model)
        metric = self._check(evaluation)
        package = self._register(training_set, model, evaluation, metric, registry=registry)
        if self.declaration.deploy is not None:
            self.say(f"{self.declaration.deploy.endpoint} is not deployed: that is done on AWS.")
        return LocalPipelineRun(
            tuple(self.ended), metric, training_set.output, model["path"], package
        )

    # -- one step --------------------------------------------------------------------------

    def _step(
        self,
        name: str,
        key: str | None,
        do: Callable[[], dict[str, Any]],
        is_there: Callable[[dict[str, Any]], bool] = lambda _result: True,
    ) -> dict[str, Any]:
        """What a step makes, made now or before; without a key it is always made now."""
        begun = time.monotonic()
        result = self.state.result(name, key) if key is not None else None
        outcome = "unchanged"
        if result is None or name in self.force or not self._guarded(name, is_there, result):
            self.say(f"{name} ...")
            outcome, result = "done", self._guarded(name, do)
            if key is not None:
                self.state.keep(name, key, result)
        step = LocalStep(name, outcome, time.monotonic() - begun, str(result.get("detail", "")))
        self.ended.append(step)
        took = f" in {step.seconds:.1f} s" if outcome == "done" else ""
        self.say(f"{name}: {outcome}{took}" + (f", {step.detail}" if step.detail else ""))
        return result

    def _guarded(self, name: str, do: Callable[..., Any], *arguments: Any) -> Any:
        from feast.errors import FeastError

        try:
            return do(*arguments)
        except PipelineError:
            raise
        except (FeastDynamoError, FeastError, OSError) as error:
            raise self._error(name, str(error)) from error

    def _error(self, name: str, why: str) -> PipelineError:
        return PipelineError(
            f"Step {name} of pipeline {self.declaration.name} failed: {why}", step=name
        )

    def _into(self, step: str, key: str) -> Path:
        """An empty folder of this run's own, which takes the key's name once it is complete.

        A script that outlives a run that was killed writes into a folder that is gone.
        """
        folder = self.folder / step
        folder.mkdir(exist_ok=True)
        for left in folder.glob("*.partial"):
            shutil.rmtree(left)
        return Path(tempfile.mkdtemp(prefix=f"{key[:16]}.", suffix=".partial", dir=folder))

    def _complete(self, partial: Path, key: str) -> Path:
        final = partial.with_name(key[:16])
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        return final

    # -- capture and materialize -----------------------------------------------------------

    def _capture(self) -> dict[str, Any]:
        capture = self.declaration.capture
        command = list(capture.command) if capture is not None else []
        log = self.folder / "capture.log"
        self._program(CAPTURE, command, self.repo, log)
        return {"detail": f"{command[0]} ended"}

    def _program(self, step: str, command: list[str], where: Path, log: Path) -> None:
        with log.open("w", encoding="utf-8") as file:
            try:
                ended = subprocess.run(  # noqa: S603 - the user's own program
                    command,
                    cwd=where,
                    env=os.environ | self.declaration.environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
            except OSError as error:
                raise self._error(
                    step, f"{command[0]} cannot be run: {error.strerror}."
                ) from error
        if ended.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            ending = "\n".join(lines)
            raise self._error(
                step,
                f"{' '.join(map(str, command[:2]))} ended with exit code {ended.returncode}. "
                f"The end of {log}:\n{ending}",
            )

    def _online_views(self) -> list[Any]:
        materialize = self.declaration.materialize
        names = list(materialize.views) if materialize is not None else []
        if names:
            return [self._view(name) for name in names]
        return [view for view in self.store.list_batch_feature_views() if view.online]

    def _view(self, name: str) -> Any:
        return self.store.registry.get_any_feature_view(name, self.store.project)

    def _materialize_key(self) -> str:
        views = view_states(self._online_views(), self.store, self.hashes)
        self.hashes.keep()
        return self._key(views=views, image=self.declaration.image)

    def _materialize(self) -> dict[str, Any]:
        names = [view.name for view in self._online_views()]
        self.store.materialize_incremental(datetime.now(tz=timezone.utc), feature_views=names)
        return {"detail": f"{len(names)} views"}

    def _is_materialized(self, _result: dict[str, Any]) -> bool:
        # `feast teardown` and `apply` leave a view without intervals: its rows are gone.
        return all(
            self._view(view.name).materialization_intervals for view in self._online_views()
        )

    # -- the training set --------------------------------------------------------------------

    def _build(self) -> TrainingSet:
        key = self._guarded(BUILD, self._build_key)
        output = str(self.folder / "sets" / key[:16])

        def build() -> dict[str, Any]:
            if not open_folder(output, self.aws).has_set():
                # Of a run that was killed, or someone took the manifest away: this folder is of
                # this pipeline's state alone.
                shutil.rmtree(output, ignore_errors=True)
            written = build_training_set(
                self.store, self.parts.definition, repo=self.repo, overwrite=True, output=output
            )
            summary = set_summary(written, self.aws)
            rows = sum(summary["rows"].values())
            return summary | {"detail": f"{rows:,} rows in {output}"}

        def is_there(result: dict[str, Any]) -> bool:
            if not open_folder(output, self.aws).has_set():
                return False
            found = load_training_set(output, self.aws)
            return manifest_sha256(found.output, self.aws) == str(result["manifest_sha256"])

        # What a query or a frame is made of is not known, so the set is built anew; where it is as
        # it was before, no later step runs again.
        is_known = self._entity_file() is not None
        self._step(BUILD, key if is_known else None, build, is_there)
        return load_training_set(output, self.aws)

    def _entity_file(self) -> str | None:
        """The file or folder of entity rows, if they are of one."""
        definition = self.parts.definition
        rows = definition.entity_rows
        is_file = isinstance(rows, dict) and "path" in rows
        return str(definition.entity_rows_in(self.repo)) if is_file else None

    def _build_key(self) -> str:
        file = self._entity_file()
        rows = file_states(file, self.aws, self.hashes) if file is not None else None
        views = view_states(self._views_of_set(), self.store, self.hashes)
        self.hashes.keep()
        return self._key(
            definition=self.parts.definition.to_json(),
            references=references(self.parts.definition, self.store),
            views=views,
            entity_rows=rows,
            image=self.declaration.image,
        )

    def _views_of_set(self) -> list[Any]:
        found = references(self.parts.definition, self.store)
        views = [self._view(name) for name in sorted({name for name, _ in found})]
        # An on-demand view is made of others.
        for view in list(views):
            inputs = getattr(view, "source_feature_view_projections", {})
            views += [self._view(projection.name) for projection in inputs.values()]
        return views

    # -- the model ---------------------------------------------------------------------------

    def _files(self, training_set: TrainingSet, *splits: str) -> list[tuple[str, str]]:
        format_ = self.declaration.training_set.format
        return [
            (file.path, file.sha256)
            for split in splits
            for file in training_set.files(split, format_)
        ]

    def _train(self, training_set: TrainingSet) -> dict[str, Any]:
        (step,) = (
            step for step in pipeline_steps(self.declaration, self.parts) if step.name == TRAIN
        )
        values = parameter_values(self.declaration)
        request: dict[str, Any] = with_parameters(dict(step.arguments), values)
        # Where things lie is another matter here and there; what they are is in the key.
        del request["HyperParameters"]["sagemaker_submit_directory"]
        for channel in request["InputDataConfig"]:
            del channel["DataSource"]["S3DataSource"]["S3Uri"]
        of_place = {"OutputDataConfig", "RoleArn"}
        key = self._key(
            script=self.parts.training.sha256,
            request={name: value for name, value in request.items() if name not in of_place},
            files=self._files(training_set, *self.parts.fitted_on),
            columns=training_set.manifest.written,
        )

        def fit() -> dict[str, Any]:
            partial = self._into("train", key)
            job = self._job(request, training_set, partial)
            try:
                done = run_training_job(
                    job, work_dir=partial / "ml", aws=self.aws, source=self.parts.training
                )
            finally:
                # `feast apply` imports every Python file below a repo. What else a job that
                # failed has left is looked at by people.
                for part in ("code", "packages", "input"):
                    for folder in partial.glob(f"ml/*/*/{part}"):
                        shutil.rmtree(folder)
            if not done.job.model_artifacts:
                raise self._error(TRAIN, "The training script left no file in SM_MODEL_DIR.")
            done.log.replace(partial / "log.txt")
            for archive in (partial / "output" / done.job.name / "output").iterdir():
                archive.replace(partial / archive.name)
            for done_with in (partial / "ml", partial / "output"):
                shutil.rmtree(done_with)
            path = self._complete(partial, key) / "model.tar.gz"
            size = path.stat().st_size
            return {"path": str(path), "sha256": file_hash(path), "detail": f"{size:,} bytes"}

        return self._step(TRAIN, key, fit, _is_as_it_was)

    def _job(
        self, request: Mapping[str, Any], training_set: TrainingSet, folder: Path
    ) -> dict[str, Any]:
        """The request of the step Train with the places of this machine."""
        format_, output = self.declaration.training_set.format, training_set.output
        job: dict[str, Any] = json.loads(json.dumps(request))
        for split, channel in zip(self.parts.fitted_on, job["InputDataConfig"], strict=True):
            source = channel["DataSource"]["S3DataSource"]
            source["S3Uri"] = f"file://{output}/{split}/{format_}/"
        job["OutputDataConfig"] = {"S3OutputPath": f"file://{folder}/output"}
        return job | {"TrainingJobName": self.declaration.name[:MOST_JOB_NAME_CHARS].rstrip("-")}

    def _evaluate(self, training_set: TrainingSet, model: Mapping[str, Any]) -> dict[str, Any]:
        declared = self.declaration
        key = self._key(
            script=hashlib.sha256(self.parts.evaluation).hexdigest(),
            image=declared.evaluate.image or declared.train.image,
            variables=declared.environment,
            model=model["sha256"],
            files=self._files(training_set, "test"),
        )

        def measure() -> dict[str, Any]:
            partial = self._into("evaluate", key)
            folders = {name: partial / name for name in ("model", "test", "output")}
            for name in ("model", "output"):
                folders[name].mkdir()
            shutil.copyfile(model["path"], folders["model"] / "model.tar.gz")
            format_ = self.declaration.training_set.format
            copy_channels(training_set, partial, self.aws, format=format_, splits=("test",))
            script = (self.repo / self.declaration.evaluate.script).absolute()
            command = [sys.executable, str(script)]
            command += [text for name in folders for text in (f"--{name}", str(folders[name]))]
            self._program(EVALUATE, command, script.parent, partial / "log.txt")
            written = folders["output"] / EVALUATION
            if not written.is_file():
                raise self._error(EVALUATE, f"{script.name} wrote no {EVALUATION} to --output.")
            read_evaluation(written)
            written.replace(partial / EVALUATION)
            for folder in folders.values():
                shutil.rmtree(folder)
            path = self._complete(partial, key) / EVALUATION
            return {"path": str(path), "sha256": file_hash(path)}

        return self._step(EVALUATE, key, measure, _is_as_it_was)

    def _check(self, evaluation: Mapping[str, Any]) -> float:
        condition = self.declaration.condition
        path = Path(evaluation["path"])
        value = self._guarded(CHECK, metric_in, path, condition.metric)
        bound = "at least" if condition.at_least is not None else "at most"
        words = f"{condition.metric} is {value:g} and has to be {bound} {condition.threshold:g}"
        if not condition.holds(value, condition.threshold):
            raise self._error(CHECK, f"{words}, so the model is not registered.")
        self._step(CHECK, None, lambda: {"detail": words})
        return float(value)

    # -- the registry ------------------------------------------------------------------------

    def _register(
        self,
        training_set: TrainingSet,
        model: Mapping[str, Any],
        evaluation: Mapping[str, Any],
        metric: float,
        *,
        registry: bool,
    ) -> str:
        entry = {
            "group": self.declaration.package.group,
            "approval": self.declaration.package.approval,
            "image": self.declaration.package.image,
            "pipeline": self.declaration.name,
            "feature_service": self.parts.definition.feature_service,
            "features": list(training_set.manifest.provenance.feature_refs),
            "training_set": training_set.output,
            "manifest_sha256": manifest_sha256(training_set.output, self.aws),
            "model": {"path": model["path"], "sha256": model["sha256"]},
            "metric": {"path": self.declaration.condition.metric, "value": metric},
            "evaluation": json.loads(Path(evaluation["path"]).read_text(encoding="utf-8")),
        }
        package = self.declaration.package.model_dump(mode="json")
        output = self.declaration.output if registry else ""
        # Equal files in another place are no other model.
        places = {"training_set": None, "model": model["sha256"]}
        key = self._key(entry=entry | places, package=package, output=output)
        path = self.folder / "packages" / f"{key[:16]}.json"

        def write() -> dict[str, Any]:
            found = entry
            if registry:
                definition = self.parts.definition
                arn = register_model(self.declaration, definition, entry, evaluation, self.aws)
                found = entry | {"arn": arn}
            text = json.dumps(found, indent=1) + "\n"
            with files_of(str(path), self.aws).new_file(str(path)) as file:
                file.write(text.encode())
            place = str(found.get("arn", path))
            return {"path": str(path), "sha256": file_hash(path), "place": place, "detail": place}

        return str(self._step(REGISTER, key, write, _is_as_it_was)["place"])

    def _key(self, **inputs: Any) -> str:
        read = {"inputs": inputs, "version": __version__, "environment": self.environment}
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _is_as_it_was(result: Mapping[str, Any]) -> bool:
    path = Path(result["path"])
    return path.is_file() and file_hash(path) == result["sha256"]
