"""Training on this machine, without a container, in one of two forms.

`run_training_job` runs the request of CreateTrainingJob itself under AWS's own toolkit, the
`train` of `sagemaker-training`: a process and an /opt/ml for each host, with its share of the
data; model.tar.gz where the request says; the reason of a failure as SageMaker gives it.

`run_locally` runs one script on one training set with what that toolkit would give it: channels
below `input/data/`, SM_* variables and hyperparameters as `--name value`. It needs no toolkit, and
is what a first try and a test take. A test compares what a script sees in both.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    ConfigError,
    DependencyError,
    TrainingJobError,
    TrainingSetError,
)
from feast_dynamo_ext.sagemaker.channels import DEFAULT_SPLITS, copy_channels
from feast_dynamo_ext.sagemaker.training_job import (
    TrainingJob,
    check_training_job,
    hyperparameter_strings,
    pack_files,
)
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feast_dynamo_ext.sagemaker.training_job import SourceCode
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
    with _started(command, folder, environment) as process:
        try:
            for line in process.stdout or ():
                sink.write(line)
                sink.flush()
                last.append(line.rstrip("\n"))
        except BaseException:
            _signal(process, signal.SIGKILL)
            raise
    if process.returncode:
        ending = "\n".join(last)
        raise TrainingSetError(
            f"{Path(command[1]).name} ended with exit code {process.returncode}. "
            f"The end of its output:\n{ending}"
        )
    return tuple(last)


def _started(
    command: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - running the caller's script is the purpose
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


# -- the request of a job, under AWS's toolkit ------------------------------------------------


@dataclass(frozen=True)
class LocalJob:
    """A job that has ended on this machine.

    Attributes:
        job: as SageMaker would describe it; its model's URI is where `S3OutputPath` says.
        output_artifacts: URI of output.tar.gz; empty where the script wrote to no output folder.
        exit_codes: of each host's toolkit.
        log: file of all lines, each with its host.
        folder: holds `<host>/`, each what /opt/ml is in a container.
    """

    job: TrainingJob
    output_artifacts: str
    exit_codes: Mapping[str, int]
    log: Path
    folder: Path


HERE = "s3://this_machine/"
"""In place of `file:///` where a request is checked; no bucket can have that name."""

TOOLKIT = "sagemaker_training"
MOST_REASON_CHARS = 1_024
STOP_S = 120.0
"""Seconds between SIGTERM and SIGKILL, as SageMaker gives a container."""


def run_training_job(
    request: Mapping[str, Any],
    *,
    work_dir: Path,
    aws: AwsSettings | None = None,
    source: SourceCode | None = None,
    on_line: Callable[[str, str], None] | None = None,
) -> LocalJob:
    """Run the request of a training job on this machine, with this Python.

    The request is that of `training_job_request`; S3 URIs in it may be `file:///...` as well, so
    that nothing leaves the machine. Encryption keys, networks, spot instances and retries have no
    meaning here. Requirements that the source states are installed into the job's folder.

    Args:
        request: with a script: `sagemaker_program` among its hyperparameters.
        work_dir: `work_dir/<job>/<host>/` is each host's /opt/ml; there may be no such job yet.
        aws: how to reach S3; by default what the environment says.
        source: the script where it is not on S3; it takes the place of
            `sagemaker_submit_directory`.
        on_line: gets host and text of each line of the job's log, from a thread a host.

    Raises:
        DependencyError: `sagemaker-training` is not installed.
        RequestError: what AWS's service model does not allow.
        ConfigError: a request that cannot run here, as of a built-in algorithm without a script.
        TrainingJobError: the job failed or was stopped; the reason is SageMaker's: the failure
            file's first 1,024 characters and the exit code.
        TrainingSetError: a channel without data.
        AwsError: S3 refused.
    """
    if importlib.util.find_spec(TOOLKIT) is None:
        raise DependencyError(
            "Running a job on this machine needs AWS's training toolkit: "
            "`pip install 'feast-dynamo-ext[local-training]'`."
        )
    check_training_job(_with_s3(request))
    _refuse_not_here(request, source)
    name = request["TrainingJobName"]
    folder = work_dir.resolve() / name
    if folder.exists():
        raise ConfigError(f"{folder} is there already: delete it, or name the job otherwise.")
    settings = aws or AwsSettings()
    count = request.get("ResourceConfig", {}).get("InstanceCount", 1)
    hosts = [f"algo-{number + 1}" for number in range(count)]
    for host in hosts:
        for part in ("input/config", "input/data", "model", "output/data", "code", "checkpoints"):
            (folder / host / part).mkdir(parents=True)
    for channel in request["InputDataConfig"]:
        _download(channel, folder, hosts, settings)
    archive = _source_archive(request, source, folder, settings)
    if source is not None:
        script = {"sagemaker_program": source.entry}
        request = {**request, "HyperParameters": {**request.get("HyperParameters", {}), **script}}
    environments = {
        host: _configure(request, folder, host, hosts, archive, settings) for host in hosts
    }
    started = time.monotonic()
    limit_s = request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86_400)
    ran = _Hosts(folder, environments, on_line).run(limit_s)
    output = f"{request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output"
    artifacts = _upload(folder, hosts, "output/data", f"{output}/output.tar.gz", settings)
    model = ""
    reason = _failure_reason(folder, ran)
    if not reason:
        model = _upload(folder, hosts, "model", f"{output}/model.tar.gz", settings)
    status = "Failed" if reason else ("Stopped" if ran.is_stopped else "Completed")
    job = TrainingJob(
        name=name,
        arn="",
        status=status,
        secondary_status="MaxRuntimeExceeded" if ran.is_stopped else status,
        failure_reason=reason,
        model_artifacts=model,
        billable_s=round(time.monotonic() - started),
        metrics=_metrics(request, ran.log),
    )
    if job.status != "Completed":
        did = "failed" if reason else f"was stopped after {limit_s} s"
        raise TrainingJobError(
            f"Training job `{name}` {did} on this machine: {reason or 'MaxRuntimeExceeded'}. Its "
            f"log is {ran.log}, and ends: {_ending(ran)}",
            name=name,
            status=job.status,
            failure_reason=reason,
        )
    return LocalJob(job, artifacts, ran.exit_codes, ran.log, folder)


def _with_s3(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as SageMaker would get it: local URIs are of S3 there."""
    text = json.dumps(request).replace('"file:///', f'"{HERE}')
    return dict(json.loads(text))


def _refuse_not_here(request: Mapping[str, Any], source: SourceCode | None) -> None:
    name, image = request["TrainingJobName"], request["AlgorithmSpecification"]
    if source is None and "sagemaker_program" not in request.get("HyperParameters", {}):
        what = image.get("TrainingImage") or image.get("AlgorithmName")
        raise ConfigError(
            f"Training job `{name}` has no script, and the algorithm inside of {what} runs in its "
            "container alone. Give it a script (--script) to run it on this machine."
        )
    if "ContainerEntrypoint" in image:
        raise ConfigError(f"Training job `{name}` starts a program of its image, not a script.")
    for channel in request["InputDataConfig"]:
        s3 = channel["DataSource"].get("S3DataSource")
        mode = channel.get("InputMode", image["TrainingInputMode"])
        compression = channel.get("CompressionType", "None")
        if s3 is None or s3["S3DataType"] not in ("S3Prefix", "ManifestFile"):
            raise ConfigError(
                f"Channel `{channel['ChannelName']}` of training job `{name}`: only S3Prefix and "
                "ManifestFile of S3 are read on this machine."
            )
        if mode == "Pipe" or compression != "None":
            raise ConfigError(
                f"Channel `{channel['ChannelName']}` of training job `{name}`: neither Pipe mode "
                "nor compression of channels is there on this machine. Use File or FastFile."
            )


def _download(
    channel: Mapping[str, Any], folder: Path, hosts: Sequence[str], aws: AwsSettings
) -> None:
    """Bring a channel's objects to the hosts: all to each, or each its own."""
    s3, name = channel["DataSource"]["S3DataSource"], channel["ChannelName"]
    objects = _objects(s3, aws)
    is_sharded = s3.get("S3DataDistributionType") == "ShardedByS3Key"
    if len(objects) < (len(hosts) if is_sharded else 1):
        raise TrainingSetError(
            f"Channel `{name}` has {len(objects)} objects at {s3['S3Uri']} for {len(hosts)} hosts."
        )
    for number, (within, uri) in enumerate(objects):
        takers = [hosts[number % len(hosts)]] if is_sharded else hosts
        targets = [folder / host / "input" / "data" / name / within for host in takers]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        with targets[0].open("wb") as file:
            for chunk in files_of(uri, aws).chunks(uri):
                file.write(chunk)
        for target in targets[1:]:
            shutil.copyfile(targets[0], target)


def _objects(s3: Mapping[str, Any], aws: AwsSettings) -> list[tuple[str, str]]:
    """Path within the channel and URI of each object, in the order of their keys."""
    uri = _local_or_s3(s3["S3Uri"])
    storage = files_of(uri, aws)
    if s3["S3DataType"] == "ManifestFile":
        listed = json.loads(storage.read(uri) or b"[]")
        prefix = _local_or_s3(listed[0]["prefix"]) if listed else ""
        return [(_safe(name), f"{prefix}{name}") for name in listed[1:]]
    if storage.find(uri) is not None:
        return [(uri.rpartition("/")[2], uri)]
    # A prefix is one of text: `csv` is one of `csv-old` too.
    folder, _, start = uri.rpartition("/")
    found = sorted(one for one in storage.at(folder) if one.startswith(f"{folder}/{start}"))
    base = f"{uri}/" if start and all(one.startswith(f"{uri}/") for one in found) else f"{folder}/"
    return [(_safe(one.removeprefix(base)), one) for one in found if not one.endswith("/")]


def _local_or_s3(uri: str) -> str:
    return uri.removeprefix("file://") if uri.startswith("file://") else uri


def _safe(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise TrainingSetError(f"`{path}` of a channel would be written outside of its folder.")
    return path


def _source_archive(
    request: Mapping[str, Any], source: SourceCode | None, folder: Path, aws: AwsSettings
) -> Path:
    target = folder / "sourcedir.tar.gz"
    if source is not None:
        target.write_bytes(source.archive)
        return target
    uri = _local_or_s3(request["HyperParameters"].get("sagemaker_submit_directory", ""))
    if not uri:
        raise ConfigError(
            f"Training job `{request['TrainingJobName']}` has no sagemaker_submit_directory."
        )
    try:
        with target.open("wb") as file:
            for chunk in files_of(uri, aws).chunks(uri):
                file.write(chunk)
    except FileNotFoundError as error:
        raise ConfigError(f"The source of the job is not at {uri}.") from error
    return target


def _configure(
    request: Mapping[str, Any],
    folder: Path,
    host: str,
    hosts: Sequence[str],
    archive: Path,
    aws: AwsSettings,
) -> dict[str, str]:
    """Write a host's input/config/*.json; gives the environment of its toolkit."""
    base, name = folder / host, request["TrainingJobName"]
    hyperparameters = dict(request.get("HyperParameters", {}))
    hyperparameters["sagemaker_submit_directory"] = str(archive)
    kind = request.get("ResourceConfig", {}).get("InstanceType", "local")
    default_mode = request["AlgorithmSpecification"]["TrainingInputMode"]
    config = {
        "hyperparameters": hyperparameters,
        "inputdataconfig": {
            channel["ChannelName"]: {
                "TrainingInputMode": channel.get("InputMode", default_mode),
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
                **({"ContentType": channel["ContentType"]} if channel.get("ContentType") else {}),
            }
            for channel in request["InputDataConfig"]
        },
        "resourceconfig": {
            "current_host": host,
            "current_instance_type": kind,
            "current_group_name": "homogeneousCluster",
            "hosts": list(hosts),
            "instance_groups": [
                {
                    "instance_group_name": "homogeneousCluster",
                    "instance_type": kind,
                    "hosts": list(hosts),
                }
            ],
            "network_interface_name": "lo",
        },
    }
    for file, content in config.items():
        (base / "input" / "config" / f"{file}.json").write_text(json.dumps(content))
    inherited = {
        key: text for key, text in os.environ.items() if not key.startswith(("SM_", "SAGEMAKER_"))
    }
    region = {"AWS_REGION": aws.region} if aws.region else {}
    packages = str(base / "packages")
    return {
        **inherited,
        **region,
        **request.get("Environment", {}),
        "SAGEMAKER_BASE_DIR": str(base),
        "TRAINING_JOB_NAME": name,
        # The hosts are processes here, whose names no server knows.
        "SM_STUDIO_LOCAL_MODE": "true",
        # What the source requires is installed for this job, and not where this Python looks.
        "PIP_TARGET": packages,
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
    }


@dataclass(frozen=True)
class _Ran:
    exit_codes: Mapping[str, int]
    is_stopped: bool
    failed: str | None
    log: Path


class _Hosts:
    """The hosts of a job, a process each; where one fails the others are stopped."""

    def __init__(
        self,
        folder: Path,
        environments: Mapping[str, Mapping[str, str]],
        on_line: Callable[[str, str], None] | None,
    ) -> None:
        self._folder, self._environments, self._on_line = folder, environments, on_line
        self._lock = threading.Lock()

    def run(self, limit_s: float) -> _Ran:
        path = self._folder / "log.txt"
        command = [sys.executable, "-m", f"{TOOLKIT}.cli.train"]
        processes: dict[str, subprocess.Popen[str]] = {}
        with (
            path.open("w", encoding="utf-8") as file,
            ThreadPoolExecutor(len(self._environments)) as pool,
        ):
            try:
                for host, environment in self._environments.items():
                    processes[host] = _started(command, self._folder / host, environment)
                readers = {
                    pool.submit(self._read, host, process, file): host
                    for host, process in processes.items()
                }
                is_stopped, failed = self._until_done(readers, processes, limit_s)
            except BaseException:
                for process in processes.values():
                    _signal(process, signal.SIGKILL)
                raise
        codes = {host: process.wait() for host, process in processes.items()}
        for process in processes.values():
            if process.stdout is not None:
                process.stdout.close()
        return _Ran(codes, is_stopped, failed, path)

    def _read(self, host: str, process: subprocess.Popen[str], file: TextIO) -> int:
        for line in process.stdout or ():
            with self._lock:
                file.write(f"{host} | {line}")
                file.flush()
                if self._on_line is not None:
                    self._on_line(host, line.rstrip("\n"))
        return process.wait()

    def _until_done(
        self,
        readers: Mapping[Future[int], str],
        processes: Mapping[str, subprocess.Popen[str]],
        limit_s: float,
    ) -> tuple[bool, str | None]:
        """Whether the hosts were stopped by the clock, and the one that failed first."""
        deadline = time.monotonic() + limit_s
        waiting = set(readers)
        while waiting:
            left_s = max(0.0, deadline - time.monotonic())
            done, waiting = wait(waiting, timeout=left_s, return_when=FIRST_COMPLETED)
            failed = next((readers[one] for one in done if one.result()), None)
            if failed is None and done:
                continue
            for process in processes.values():
                _signal(process, signal.SIGTERM)
            _, late = wait(waiting, timeout=STOP_S)
            for reader in late:
                _signal(processes[readers[reader]], signal.SIGKILL)
            return failed is None, failed
        return False, None


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a toolkit and the script that it runs, which are a group of their own."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _failure_reason(folder: Path, ran: _Ran) -> str:
    """What SageMaker would say of the host that failed; empty where none did."""
    if ran.failed is None:
        return ""
    failure = folder / ran.failed / "output" / "failure"
    said = failure.read_text(errors="replace") if failure.exists() else ""
    code = ran.exit_codes[ran.failed]
    return f"AlgorithmError: {said[:MOST_REASON_CHARS].strip()}, exit code: {code}"


def _ending(ran: _Ran) -> str:
    """The last lines of the host that failed, or of all."""
    lines = ran.log.read_text(encoding="utf-8").splitlines()
    of_host = [line for line in lines if line.startswith(f"{ran.failed or ''}")]
    return "\n".join(of_host[-_LAST_LINES:])


def _upload(folder: Path, hosts: Sequence[str], part: str, uri: str, aws: AwsSettings) -> str:
    """Pack what all hosts left in a folder, as one archive; gives its URI, or nothing.

    Where another host left a file of that name before, one of output/data is kept as
    `<host>/<name>`.

    Raises:
        TrainingJobError: two hosts left different files of one name in the model's folder.
    """
    by_name: dict[str, Path] = {}
    for host in hosts:
        base = folder / host / part
        for file in sorted(path for path in base.rglob("*") if path.is_file()):
            name = file.relative_to(base).as_posix()
            other = by_name.setdefault(name, file)
            if other.read_bytes() == file.read_bytes():
                continue
            if part != "model":
                by_name[f"{host}/{name}"] = file
                continue
            raise TrainingJobError(
                f"Hosts {other.relative_to(folder).parts[0]} and {host} left different files "
                f"`{name}` in the model's folder, and there is one model.tar.gz of both. Let one "
                "host write it, or put the host's name (SM_CURRENT_HOST) in the file's.",
                name=folder.name,
                status="Failed",
            )
    if not by_name:
        return ""
    target = _local_or_s3(uri)
    with files_of(target, aws).new_file(target, "application/gzip") as archive:
        archive.write(pack_files(by_name))
    return uri


def _metrics(request: Mapping[str, Any], log: Path) -> dict[str, float]:
    """The last value of each metric that the request defines, as SageMaker finds them."""
    definitions = request["AlgorithmSpecification"].get("MetricDefinitions", [])
    found: dict[str, float] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if definitions else ():
        for metric in definitions:
            match = re.search(metric["Regex"], line.partition(" | ")[2])
            if match:
                with contextlib.suppress(ValueError):  # SageMaker passes over what is no number
                    found[metric["Name"]] = float(match[1])
    return found
