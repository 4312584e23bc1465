"""Running a script-mode training script on this machine, as SageMaker's training toolkit would.

The contract is that of `sagemaker-training` 5.1: channels below `input/data/`, SM_* variables and
hyperparameters as `--name value` arguments. The script cannot tell the difference; no container is
needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.channels import DEFAULT_SPLITS, copy_channels
from feast_dynamo_ext.sagemaker.training_job import hyperparameter_strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.sagemaker.training_set import TrainingSet


_HOST = "algo-1"
_LAST_LINES = 20


@dataclass(frozen=True)
class LocalRun:
    """A training script that ran to its end.

    Attributes:
        model_dir: where it left its model.
        output_data_dir: where it left anything else.
        channels: folder of each channel, by channel name.
        last_lines: the end of its output, at most 20 lines.
    """

    model_dir: Path
    output_data_dir: Path
    channels: Mapping[str, Path]
    last_lines: tuple[str, ...]


def run_locally(
    script: Path,
    training_set: TrainingSet,
    *,
    model_dir: Path,
    hyperparameters: Mapping[str, Any],
    work_dir: Path,
    format: str = "csv",  # noqa: A002 - the word that SageMaker's users know
    splits: Sequence[str] = DEFAULT_SPLITS,
    names: Mapping[str, str] | None = None,
    aws: AwsSettings | None = None,
    log: Path | None = None,
) -> LocalRun:
    """Run a training script on this machine with this Python.

    Args:
        script: the script, which runs in its own folder.
        training_set: on S3 or on this machine; it is copied to `work_dir/input/data/<channel>/`.
        model_dir: where the script writes its model; made if it is not there.
        hyperparameters: as for `training_job_request`; those named `sagemaker_...` are for the
            toolkit and not passed on.
        work_dir: stands for `/opt/ml`.
        format: `csv` or `parquet`.
        splits: a channel each; name `test` too for a script that reads SM_CHANNEL_TEST.
        names: channel name by split where it is another.
        aws: how to reach S3; by default what the environment says.
        log: file for the script's output; by default it goes to this process's stdout.

    Raises:
        TrainingSetError: no such script, a script that failed (with the end of its output), or
            a training set that is not what was written.
        ConfigError: hyperparameters beyond SageMaker's limits.
        AwsError: S3 refused.
    """
    script, work_dir, model_dir = script.resolve(), work_dir.resolve(), model_dir.resolve()
    if not script.is_file():
        raise TrainingSetError(f"There is no training script {script}.")
    decoded = _decoded(hyperparameter_strings(hyperparameters))
    channels = copy_channels(
        training_set,
        work_dir / "input" / "data",
        aws or AwsSettings(),
        format=format,
        splits=splits,
        names=names,
    )
    output_data_dir = work_dir / "output" / "data"
    for folder in (model_dir, output_data_dir):
        folder.mkdir(parents=True, exist_ok=True)
    environment = _environment(script, channels, model_dir, work_dir, decoded)
    command = [sys.executable, str(script), *_arguments(decoded)]
    if log is None:
        last_lines = _run(command, script.parent, environment, sys.stdout)
    else:
        with log.open("w", encoding="utf-8") as file:
            last_lines = _run(command, script.parent, environment, file)
    return LocalRun(model_dir, output_data_dir, channels, last_lines)


def _decoded(hyperparameters: Mapping[str, str]) -> dict[str, Any]:
    # The toolkit reads each string as JSON where it is JSON: "5" arrives as a number.
    return {
        name: _json_or_text(text)
        for name, text in sorted(hyperparameters.items())
        if not name.startswith("sagemaker_")
    }


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _arguments(hyperparameters: Mapping[str, Any]) -> list[str]:
    arguments = []
    for name, value in hyperparameters.items():
        arguments += [f"--{name}" if len(name) > 1 else f"-{name}", _argument(value)]
    return arguments


def _argument(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    return "" if value is None else str(value)


def _environment(
    script: Path,
    channels: Mapping[str, Path],
    model_dir: Path,
    work_dir: Path,
    hyperparameters: Mapping[str, Any],
) -> dict[str, str]:
    variables: dict[str, Any] = {
        "SM_MODEL_DIR": str(model_dir),
        "SM_INPUT_DIR": str(work_dir / "input"),
        "SM_OUTPUT_DIR": str(work_dir / "output"),
        "SM_OUTPUT_DATA_DIR": str(work_dir / "output" / "data"),
        "SM_CHANNELS": sorted(channels),
        "SM_HPS": dict(hyperparameters),
        "SM_USER_ARGS": _arguments(hyperparameters),
        "SM_USER_ENTRY_POINT": script.name,
        "SM_MODULE_NAME": script.stem,
        "SM_HOSTS": [_HOST],
        "SM_CURRENT_HOST": _HOST,
        "SM_NUM_CPUS": os.cpu_count() or 1,
        "SM_NUM_GPUS": 0,
    }
    variables |= {f"SM_CHANNEL_{name.upper()}": str(path) for name, path in channels.items()}
    variables |= {f"SM_HP_{name.upper()}": value for name, value in hyperparameters.items()}
    texts = {name: _variable(value) for name, value in variables.items()}
    # A variable of an outer run would pass for one of this run.
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("SM_")}
    return inherited | texts | {"PYTHONUNBUFFERED": "1"}


def _variable(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _run(
    command: list[str], folder: Path, environment: Mapping[str, str], sink: TextIO
) -> tuple[str, ...]:
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(  # noqa: S603 - running the caller's script is the purpose
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                sink.write(line)
                sink.flush()
                last.append(line.rstrip("\n"))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        ending = "\n".join(last)
        raise TrainingSetError(
            f"{Path(command[1]).name} ended with exit code {process.returncode}. "
            f"The end of its output:\n{ending}"
        )
    return tuple(last)
