"""A training job from its request to its model: started once, followed, and linked to its set.

    request, token -> job's name -> is there such a job? -- no --> CreateTrainingJob
                                          | yes: is it the same?      |
                                          v                           v
                                   follow: status and log until it has ended
                                          v
                     lineage.json beside model.tar.gz, or one error with the reason

A job's name follows from its inputs, so that a command that runs again, after its terminal has
closed for example, finds the job that it started and follows that.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import (
    AwsError,
    ConfigError,
    ResourceNotFoundError,
    TrainingJobError,
)
from feast_dynamo_ext.job_following import POLL_S, CloudWatchLog, follow
from feast_dynamo_ext.sagemaker.request_check import java_pattern
from feast_dynamo_ext.sagemaker.training_job import (
    check_training_job,
    create_training_job,
    describe_training_job,
)
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Mapping

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.training_job import TrainingJob
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet

NOT_THERE = re.compile("resource not found|could not find", re.IGNORECASE)
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
LINEAGE = "lineage.json"
LINEAGE_VERSION = 1
TAG_SET = "feast-dynamo:training-set"
TAG_MANIFEST = "feast-dynamo:manifest"
TAG_TOKEN = "feast-dynamo:token"  # noqa: S105 - the name of a tag


# -- what a job is linked to ------------------------------------------------------------------


def link_tags(training_set: TrainingSet, manifest: str, token: str) -> dict[str, str]:
    """The tags that say which training set a job is of.

    Those whose value a tag cannot have, as a path with a space, are left out: the lineage file
    has them all.

    Args:
        training_set: what the job trains on.
        manifest: of `manifest_sha256`.
        token: of `request_token`.
    """
    tags = {TAG_SET: training_set.output, TAG_MANIFEST: manifest, TAG_TOKEN: token}
    shape = aws_access.service_model("sagemaker").shape_for("TagValue").metadata
    allowed = java_pattern(shape["pattern"])
    return {
        key: value
        for key, value in tags.items()
        if len(value) <= shape["max"] and (allowed is None or allowed.fullmatch(value))
    }


# -- start ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submission:
    """A job that is there.

    Attributes:
        job: as it was described.
        is_new: whether this call started it.
    """

    job: TrainingJob
    is_new: bool


def submit_training_job(request: Mapping[str, Any], aws: AwsSettings) -> Submission:
    """Start a training job, or find the one of that name where it trains on the same.

    Raises:
        RequestError: what AWS's service model does not allow.
        ConfigError: there is a job of that name with other inputs.
        AwsError: SageMaker refused.
    """
    check_training_job(request)
    name = request["TrainingJobName"]
    found = _find(name, aws)
    if found is None:
        try:
            create_training_job(request, aws)
        except AwsError as error:
            # Somebody else was quicker, or this very call has been sent again.
            if error.code != "ResourceInUse":
                raise
        else:
            return Submission(describe_training_job(name, aws), is_new=True)
        found = describe_training_job(name, aws)
    _refuse_other(found, request)
    return Submission(found, is_new=False)


def _find(name: str, aws: AwsSettings) -> TrainingJob | None:
    try:
        return describe_training_job(name, aws)
    except ResourceNotFoundError:
        return None
    except AwsError as error:
        # SageMaker has no code of its own for it; the other words are of a stand-in.
        if "Validation" in error.code and NOT_THERE.search(str(error)):
            return None
        raise


def _refuse_other(job: TrainingJob, request: Mapping[str, Any]) -> None:
    ours, theirs = _inputs(request), _inputs(job.description)
    differ = sorted(name for name in ours if ours[name] != theirs[name])
    if differ:
        raise ConfigError(
            f"There is a training job `{job.name}` already, with other values of "
            f"{', '.join(differ)}. Give this one another name, or another token."
        )


def _inputs(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a request and the description of its job both say, without what SageMaker adds."""
    resources = request.get("ResourceConfig", {})
    return {
        "image": request.get("AlgorithmSpecification", {}).get("TrainingImage"),
        "role": request.get("RoleArn"),
        "hyperparameters": dict(request.get("HyperParameters", {})),
        "channels": sorted(
            (
                channel["ChannelName"],
                channel["DataSource"].get("S3DataSource", {}).get("S3Uri", ""),
            )
            for channel in request.get("InputDataConfig", [])
        ),
        "output": request.get("OutputDataConfig", {}).get("S3OutputPath"),
        "instances": (resources.get("InstanceType"), resources.get("InstanceCount")),
    }


# -- follow -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """Where the news of a job that is followed go; each is called in order, from one thread.

    Attributes:
        status: the job, each time that it has been looked at.
        line: host and text of a line of the job's log.
        note: what a person should know besides.
    """

    status: Callable[[TrainingJob], None]
    line: Callable[[str, str], None]
    note: Callable[[str], None]


def follow_training_job(
    name: str, aws: AwsSettings, shown: Shown, *, poll_s: float = POLL_S
) -> TrainingJob:
    """Wait until a training job has ended, and show its log meanwhile.

    Throttling and networks that fail are waited out; without permission to read the log the job
    is followed without it.

    Args:
        name: of the job.
        aws: how to reach SageMaker and CloudWatch Logs.
        shown: where its news go.
        poll_s: seconds between two looks.

    Returns:
        The job, completed.

    Raises:
        TrainingJobError: it failed or was stopped; the message has the reason and the end of its
            log.
        AwsError: SageMaker refused, or kept failing.
    """
    log = CloudWatchLog(
        f"training job `{name}`",
        LOG_GROUP,
        f"{name}/",
        aws,
        line=shown.line,
        note=shown.note,
        host_of=host_of_stream,
    )
    job = follow(lambda: describe_training_job(name, aws), log, shown.status, poll_s=poll_s)
    refuse_unsuccessful(job, log.last)
    return job


def host_of_stream(name: str) -> str:
    """The host that writes a log stream of SageMaker's, for example `algo-1-1690000000`."""
    return name.rpartition("-")[0]


def refuse_unsuccessful(job: TrainingJob, last_lines: deque[str] | tuple[str, ...] = ()) -> None:
    """Raise what became of a job that has ended without success.

    Raises:
        TrainingJobError: with the reason, and the end of its log.
    """
    if job.status == "Completed":
        return
    why = job.failure_reason or job.last_message or f"it ended as {job.secondary_status}"
    ending = f" The end of its log: {' | '.join(last_lines)}" if last_lines else ""
    did = "failed" if job.status == "Failed" else "was stopped"
    raise TrainingJobError(
        f"Training job `{job.name}` {did} ({job.secondary_status}): {why.rstrip('.')}.{ending}",
        name=job.name,
        status=job.status,
        failure_reason=job.failure_reason,
    )


# -- lineage ----------------------------------------------------------------------------------


def lineage_of(
    job: TrainingJob,
    request: Mapping[str, Any],
    training_set: TrainingSet,
    manifest: str,
    model_etag: str | None = None,
) -> dict[str, Any]:
    """What a model came from, of JSON's own types.

    Values of `Environment` may be secrets, and are left out.

    Args:
        job: as it has ended.
        request: that it was started with.
        training_set: that it trained on.
        manifest: SHA-256 of the set's manifest.
        model_etag: S3's ETag of the model.
    """
    kept = {name: value for name, value in request.items() if name != "Environment"}
    if "Environment" in request:
        kept["Environment"] = dict.fromkeys(sorted(request["Environment"]), "(left out)")
    provenance = training_set.manifest.provenance
    return {
        "format_version": LINEAGE_VERSION,
        "training_set": {
            "output": training_set.output,
            "manifest_sha256": manifest,
            "project": provenance.project,
            "features": list(provenance.feature_refs),
        },
        "job": {"name": job.name, "arn": job.arn, "status": job.status, "request": kept},
        "model": {"uri": job.model_artifacts, "etag": model_etag},
        "metrics": dict(job.metrics),
    }


def write_lineage(
    job: TrainingJob,
    request: Mapping[str, Any],
    training_set: TrainingSet,
    manifest: str,
    aws: AwsSettings,
) -> str:
    """Write lineage.json beside a job's model.

    Args: as `lineage_of`, and how to reach S3.

    Returns:
        Its URI.

    Raises:
        TrainingJobError: the job left no model.
        AwsError: S3 refused.
    """
    if not job.model_artifacts:
        raise TrainingJobError(
            f"Training job `{job.name}` is {job.status} and has no model to write a lineage of.",
            name=job.name,
            status=job.status,
        )
    storage = files_of(job.model_artifacts, aws)
    model = storage.find(job.model_artifacts)
    lineage = lineage_of(job, request, training_set, manifest, model.etag if model else None)
    uri = f"{job.model_artifacts.rpartition('/')[0]}/{LINEAGE}"
    with storage.new_file(uri, "application/json") as file:
        file.write((json.dumps(lineage, indent=2, sort_keys=True) + "\n").encode())
    return uri
