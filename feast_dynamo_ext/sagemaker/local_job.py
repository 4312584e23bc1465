"""The request of a training job run on this machine, without a container.

`run_training_job` takes the request of CreateTrainingJob as it is and runs it under AWS's own
toolkit, the `train` of `sagemaker-training`: a process and an /opt/ml for each host, with its
share of the data; model.tar.gz where the request says; checkpoints kept and brought back; the
reason of a failure as SageMaker gives it.
"""

from __future__ import annotations

import contextlib
import filecmp
import importlib.util
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    ConfigError,
    DependencyError,
    TrainingJobError,
    TrainingSetError,
)
from feast_dynamo_ext.sagemaker.job_source import write_archive
from feast_dynamo_ext.sagemaker.local_hosts import TOOLKIT, Checkpoints, Hosts
from feast_dynamo_ext.sagemaker.training_job import TrainingJob, check_training_job
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from feast_dynamo_ext.sagemaker.job_source import SourceCode
    from feast_dynamo_ext.sagemaker.local_hosts import Ran

LAST_LINES = 20
MOST_REASON_CHARS = 1_024
HERE = "s3://this_machine/"
"""In place of `file:///` where a request is checked; no bucket can have that name."""


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
    that nothing leaves the machine. Encryption keys, networks and retries have no meaning here,
    and nobody takes the instance away; checkpoints are kept where `CheckpointConfig` says, and
    are there when a job begins. Requirements that the source states are installed into the job's
    folder.

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
    with _checkpoints(request, folder, hosts, settings):
        ran = Hosts(folder, environments, on_line).run(limit_s)
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
        kept = request.get("CheckpointConfig", {}).get("S3Uri")
        goes_on = f" A job with the checkpoints of {kept} goes on from them." if kept else ""
        raise TrainingJobError(
            f"Training job `{name}` {did} on this machine: {reason or 'MaxRuntimeExceeded'}."
            f"{goes_on} Its log is {ran.log}, and ends: {_ending(ran)}",
            name=name,
            status=job.status,
            failure_reason=reason,
        )
    return LocalJob(job, artifacts, ran.exit_codes, ran.log, folder)


def _checkpoints(
    request: Mapping[str, Any], folder: Path, hosts: Sequence[str], aws: AwsSettings
) -> contextlib.AbstractContextManager[None]:
    config = request.get("CheckpointConfig")
    if config is None:
        return contextlib.nullcontext()
    uri = _local_or_s3(config["S3Uri"])
    return Checkpoints(uri, [folder / host / "checkpoints" for host in hosts], aws).kept()


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
    if "CheckpointConfig" in request:
        # SageMaker's own file, in which a script finds the folder here and there.
        place = {"LocalPath": str(base / "checkpoints")}
        config["checkpointconfig"] = {**request["CheckpointConfig"], **place}
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
        "SM_CHECKPOINT_CONFIG_FILE": str(base / "input" / "config" / "checkpointconfig.json"),
        # The hosts are processes here, whose names no server knows.
        "SM_STUDIO_LOCAL_MODE": "true",
        # What the source requires is installed for this job, and not where this Python looks.
        "PIP_TARGET": packages,
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
    }


def _failure_reason(folder: Path, ran: Ran) -> str:
    """What SageMaker would say of the host that failed; empty where none did."""
    if ran.failed is None:
        return ""
    failure = folder / ran.failed / "output" / "failure"
    said = failure.read_text(errors="replace") if failure.exists() else ""
    code = ran.exit_codes[ran.failed]
    return f"AlgorithmError: {said[:MOST_REASON_CHARS].strip()}, exit code: {code}"


INVOKED = " | Invoking script with the following command:"
OF_TOOLKIT = re.compile(r"\S+ \| [\d-]+ [\d:,]+ sagemaker-training-toolkit (INFO|ERROR)")


def _ending(ran: Ran) -> str:
    """The last lines of the script that failed, or of all; the toolkit's own are in the reason."""
    lines = ran.log.read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.startswith(f"{ran.failed or ''}")]
    begun = max((number for number, line in enumerate(lines) if line.endswith(INVOKED)), default=0)
    of_script: list[str] = []
    for line in lines[begun + 5 if begun else 0 :]:
        found = OF_TOOLKIT.match(line)
        if found and found[1] == "ERROR":
            break
        if not found:
            of_script.append(line)
    return "\n".join((of_script or lines)[-LAST_LINES:])


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
            if filecmp.cmp(other, file, shallow=False):
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
        write_archive(by_name, archive)
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
