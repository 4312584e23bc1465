"""Runs the steps of a pipeline on this machine, each once for what it is made of.

What a step reads goes into its key, by a name for each thing, so that a step that runs again can
say what has changed::

    inputs by name -> a hash of each -> the key -> made before of the same? -> passed over
                                                |                          -> done, and noted
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import __version__
from feast_dynamo_ext.errors import FeastDynamoError, PipelineError
from feast_dynamo_ext.sagemaker.pipeline.step_inputs import environment_hash
from feast_dynamo_ext.sagemaker.pipeline.step_state import STATE, FileHashes, State, file_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import PipelineDeclaration
    from feast_dynamo_ext.sagemaker.pipeline.repo_parts import RepoParts

LAST_LINES = 20
MOST_NAMED = 3
DONE, SKIPPED = "done", "skipped"
SAME = "nothing that it reads has changed"
PYTHON = ("python", "python3")
"""Programs that stand for the Python that runs the pipeline."""


@dataclass(frozen=True)
class LocalStep:
    """What became of a step.

    Attributes:
        name: as in the pipeline's definition.
        outcome: `done`, or `skipped` where it was passed over.
        seconds: that it took.
        why: it ran, or was passed over.
        detail: what it made, in a few words.
    """

    name: str
    outcome: str
    seconds: float
    why: str
    detail: str


def key_of(inputs: Mapping[str, Any]) -> str:
    """A hash of all that a step reads."""
    return _hash(inputs)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def run_program(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], log: Path | None = None
) -> int:
    """Run a program of the user's, and give its exit code.

    Args:
        command: the program and its arguments; `python` is the one that runs this.
        folder: where it runs.
        variables: of its environment, beside those of this process.
        log: takes what it prints; None for the streams of this process.

    Raises:
        OSError: it cannot be run.
    """
    program = [sys.executable if command[0] in PYTHON else command[0], *command[1:]]
    environment = os.environ | variables
    if log is None:
        return subprocess.run(program, cwd=folder, env=environment, check=False).returncode  # noqa: S603 - the user's own
    with log.open("w", encoding="utf-8") as file:
        return subprocess.run(  # noqa: S603 - the user's own program
            program,
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


@dataclass
class StepRunner:
    """What the steps of one run share: what they are of, and what was made before.

    Attributes:
        declaration: the pipeline.
        repo: folder of the feature repo.
        store: its feature store.
        folder: of results and state.
        aws: how to reach S3 and SageMaker's registry.
        force: names of steps that are run in any case.
        say: takes a line for each step that begins and ends.
        parts: what the pipeline uses of its repo.
        ended: the steps so far.
    """

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
        self._environment = environment_hash()

    def inputs(self, **named: Any) -> dict[str, Any]:
        """Inputs of a step, with those that all steps have."""
        return {
            **named,
            "this package": __version__,
            "Python or installed packages": self._environment,
        }

    def step(
        self,
        name: str,
        inputs: Mapping[str, Any],
        do: Callable[[], dict[str, Any]],
        is_there: Callable[[dict[str, Any]], bool] = lambda _result: True,
        always: str = "",
    ) -> dict[str, Any]:
        """What a step makes, made now or before.

        Args:
            name: of the step.
            inputs: what it reads, by names for a person.
            do: makes it; `detail` of the result is shown.
            is_there: whether what was made before is as it was left.
            always: why it is made now in any case; empty where it is not.

        Raises:
            PipelineError: it failed.
        """
        begun = time.monotonic()
        why, result = always, None
        if not why:
            why, result = self._before(name, inputs, is_there)
        outcome = SKIPPED
        if result is None:
            self.say(f"{name} ... ({why})")
            outcome, result = DONE, self.guarded(name, do)
            if not always:
                digests = {named: _hash(value) for named, value in inputs.items()}
                self.state.keep(name, key_of(inputs), result, digests)
        step = LocalStep(
            name, outcome, time.monotonic() - begun, why, str(result.get("detail", ""))
        )
        self.ended.append(step)
        took = f" in {step.seconds:.1f} s" if outcome == DONE else f", {why}"
        made = f", {step.detail}" if step.detail and outcome == DONE else ""
        self.say(f"{name}: {outcome}{took}{made}")
        return result

    def _before(
        self, name: str, inputs: Mapping[str, Any], is_there: Callable[[dict[str, Any]], bool]
    ) -> tuple[str, dict[str, Any] | None]:
        """Why a step runs, or what it made before and needs not make again."""
        if name in self.force:
            return "forced", None
        found = self.state.steps.get(name)
        if found is None:
            return "never run before", None
        if found["key"] != key_of(inputs):
            return _changed(found.get("inputs", {}), inputs), None
        result = found["result"]
        if not self.guarded(name, is_there, result):
            return "what it made is gone or changed", None
        return SAME, result

    def guarded(self, name: str, do: Callable[..., Any], *arguments: Any) -> Any:
        """What a part of a step gives; its errors are errors of the step.

        Raises:
            PipelineError: it failed.
        """
        from feast.errors import FeastError

        try:
            return do(*arguments)
        except PipelineError:
            raise
        except (FeastDynamoError, FeastError, OSError) as error:
            raise self.error(name, str(error)) from error

    def error(self, name: str, why: str) -> PipelineError:
        """The error of a step."""
        return PipelineError(
            f"Step {name} of pipeline {self.declaration.name} failed: {why}", step=name
        )

    def program(self, step: str, command: Sequence[str], where: Path, log: Path) -> None:
        """Run a program of the user's; what it prints goes into a log.

        Raises:
            PipelineError: it cannot be run, or failed; with the end of the log.
        """
        try:
            code = run_program(command, where, self.declaration.environment, log)
        except OSError as error:
            raise self.error(step, f"{command[0]} cannot be run: {error.strerror}.") from error
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            what, ending = " ".join(command[:2]), "\n".join(lines)
            raise self.error(
                step, f"{what} ended with exit code {code}. The end of {log}:\n{ending}"
            )

    def into(self, step: str, key: str) -> Path:
        """An empty folder of this run's own, which takes the key's name once it is complete.

        A script that outlives a run that was killed writes into a folder that is gone.
        """
        folder = self.folder / step
        folder.mkdir(exist_ok=True)
        for left in folder.glob("*.partial"):
            shutil.rmtree(left)
        return Path(tempfile.mkdtemp(prefix=f"{key[:16]}.", suffix=".partial", dir=folder))

    def complete(self, partial: Path, key: str) -> Path:
        """Give a folder of `into` the key's name."""
        final = partial.with_name(key[:16])
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        return final

    def view(self, name: str) -> Any:
        """A feature view of any kind."""
        return self.store.registry.get_any_feature_view(name, self.store.project)


def _changed(before: Mapping[str, str], inputs: Mapping[str, Any]) -> str:
    now = {name: _hash(value) for name, value in inputs.items()}
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    if not before or not names:
        return "something that it reads has changed"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"changed: {', '.join(names[:MOST_NAMED])}{more}"


def is_as_it_was(result: Mapping[str, Any]) -> bool:
    """Whether a file that a step made is as it was left."""
    path = Path(result["path"])
    return path.is_file() and file_hash(path) == result["sha256"]
