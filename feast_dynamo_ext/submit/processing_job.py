"""A command as a processing job of SageMaker, in a container with Python or with Spark.

SageMaker puts the job's files below /opt/ml/processing/input; `run_command` installs the package
from there, with what it requires, and leaves the reason of a failure where SageMaker reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.job_following import CloudWatchLog
from feast_dynamo_ext.sagemaker.job_submission import host_of_stream
from feast_dynamo_ext.sagemaker.request_check import check_request
from feast_dynamo_ext.sagemaker.training_job import job_name, request_token
from feast_dynamo_ext.submit.submitted_job import SubmittedJob, console_url, translated_start

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.training_job import Vpc
    from feast_dynamo_ext.submit.job_bundle import JobBundle, Upload
    from feast_dynamo_ext.submit.submitted_job import JobNews

PRINCIPAL = "sagemaker.amazonaws.com"
LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
MOST_BASE_CHARS, NEXT_CHARS = 40, 8
"""Of a name: it has 63, with 12 of the digest of the inputs, and those of the job before."""

PYTHON, SPARK_PYTHON = "3.10", "3.12"
"""Of AWS's scikit-learn and Spark containers, as their Dockerfiles say."""

ENDED = frozenset({"Completed", "Failed", "Stopped"})
CONTAINER = "/opt/ml/processing"
INPUTS = f"{CONTAINER}/input"
MESSAGE = "/opt/ml/output/message"
"""What SageMaker takes as the `ExitMessage` of a processing job."""


@dataclass(frozen=True)
class ProcessingSettings:
    """How a command runs on SageMaker Processing.

    Attributes:
        role: ARN of the role of the job.
        image: URI of the container in ECR, with Python 3.10 or newer and pip.
        is_spark: whether it is AWS's Spark container, whose `smspark-submit` starts the command.
        instance_type: for example `ml.m5.xlarge`.
        instances: their number; more than one for Spark alone, as each would run the command.
        volume_gb: disk of each.
        max_runtime_s: seconds after which the job is stopped.
        inputs: S3 URIs by name, to find below /opt/ml/processing/input/<name>.
        outputs: S3 URIs by name, which get what is in /opt/ml/processing/output/<name> at the end.
        spark: settings of Spark.
        vpc: the job's network; without one it is SageMaker's own.
        kms_key: encrypts the outputs.
        volume_kms_key: encrypts the instances' disks.
    """

    role: str
    image: str
    is_spark: bool = False
    instance_type: str = "ml.m5.xlarge"
    instances: int = 1
    volume_gb: int = 30
    max_runtime_s: int = 86_400
    inputs: Mapping[str, str] | None = None
    outputs: Mapping[str, str] | None = None
    spark: Mapping[str, str] | None = None
    vpc: Vpc | None = None
    kms_key: str | None = None
    volume_kms_key: str | None = None


class ProcessingJob:
    """A command on SageMaker Processing; see `JobService`."""

    def __init__(
        self,
        bundle: JobBundle,
        settings: ProcessingSettings,
        aws: AwsSettings,
        *,
        name: str | None = None,
        token: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            bundle: the command.
            settings: how it runs.
            aws: how to reach SageMaker.
            name: base of the job's name; by default the command's first words.
            token: another one makes another job of the same command.
            tags: of the job.

        Raises:
            ConfigError: settings of Spark, or several instances, without Spark.
        """
        self._files = bundle.files("install")
        self._settings, self._aws, self._region = settings, aws, bundle.region
        if not settings.is_spark and (settings.spark or settings.instances > 1):
            raise ConfigError(
                "Settings of Spark, and several instances, are for the Spark container: without "
                "it each instance would run the command."
            )
        self._conf = self._configuration(bundle)
        self.uploads = (*([self._conf] if self._conf else []), *self._files.uploads)
        request = self._made()
        words = (name or bundle.base_name)[:MOST_BASE_CHARS]
        self.name = job_name(words, request_token(request, token))
        self.subject = f"processing job `{self.name}`"
        self._request = {"ProcessingJobName": self.name, **request}
        if tags:
            self._request["Tags"] = [{"Key": key, "Value": value} for key, value in tags.items()]

    def _configuration(self, bundle: JobBundle) -> Upload | None:
        """Settings of Spark as its container reads them."""
        if not self._settings.spark:
            return None
        properties = dict(self._settings.spark)
        text = json.dumps([{"Classification": "spark-defaults", "Properties": properties}])
        name = "configuration.json"
        return bundle.upload("conf", name, text.encode(), "application/json")

    def _made(self) -> dict[str, Any]:
        settings, files = self._settings, self._files
        program = "smspark-submit" if settings.is_spark else "python3"
        script = f"{INPUTS}/entry/{files.entry.name}"
        named = {"entry": files.entry, "job": files.job, "repo": files.repo, "wheel": files.wheel}
        if self._conf is not None:
            named["conf"] = self._conf
        folders = {name: upload.folder for name, upload in named.items()}
        given = dict(settings.inputs or {})
        taken = sorted(folders.keys() & given.keys())
        if taken:
            raise ConfigError(
                f"The inputs {', '.join(taken)} of a processing job are this command's own. Give "
                "yours another name."
            )
        cluster: dict[str, Any] = {
            "InstanceCount": settings.instances,
            "InstanceType": settings.instance_type,
            "VolumeSizeInGB": settings.volume_gb,
        }
        if settings.volume_kms_key is not None:
            cluster["VolumeKmsKeyId"] = settings.volume_kms_key
        request: dict[str, Any] = {
            "RoleArn": settings.role,
            "AppSpecification": {
                "ImageUri": settings.image,
                "ContainerEntrypoint": [program, script],
                "ContainerArguments": [
                    *("--feast-dynamo-job", f"{INPUTS}/job/{files.job.name}"),
                    *("--feast-dynamo-inputs", INPUTS),
                    *("--feast-dynamo-message", MESSAGE),
                ],
            },
            "ProcessingInputs": [_input(name, uri) for name, uri in {**folders, **given}.items()],
            "ProcessingResources": {"ClusterConfig": cluster},
            "StoppingCondition": {"MaxRuntimeInSeconds": settings.max_runtime_s},
        }
        if settings.outputs:
            outputs = [_output(name, uri) for name, uri in settings.outputs.items()]
            request["ProcessingOutputConfig"] = {"Outputs": outputs}
            if settings.kms_key is not None:
                request["ProcessingOutputConfig"]["KmsKeyId"] = settings.kms_key
        if settings.vpc is not None:
            request["NetworkConfig"] = {
                "VpcConfig": {
                    "SecurityGroupIds": list(settings.vpc.security_groups),
                    "Subnets": list(settings.vpc.subnets),
                }
            }
        return request

    @property
    def requests(self) -> dict[str, dict[str, Any]]:
        """See `JobService`."""
        return {"CreateProcessingJob": self._request}

    def check(self) -> None:
        """See `JobService`."""
        check_request("CreateProcessingJob", self._request, subject=self.subject)

    def find(self) -> SubmittedJob | None:
        """See `JobService`: the newest job whose name begins with this one's."""
        client = aws_access.client("sagemaker", self._aws)
        with aws_access.translated("sagemaker", self.subject):
            found = client.list_processing_jobs(
                NameContains=self.name, SortBy="CreationTime", SortOrder="Descending"
            )["ProcessingJobSummaries"]
        newest = max(found, key=lambda job: job["CreationTime"], default=None)
        return None if newest is None else self.look(newest["ProcessingJobName"])

    def start(self, previous: SubmittedJob | None) -> SubmittedJob:
        """See `JobService`: SageMaker has a name once, so the next one follows from the last."""
        role, aws = self._settings.role, self._aws
        name = self.name
        if previous is not None:
            name += f"-{hashlib.sha256(previous.name.encode()).hexdigest()[:NEXT_CHARS]}"
        request = {**self._request, "ProcessingJobName": name}
        with (
            translated_start("sagemaker", PRINCIPAL, self.subject, role, aws) as client,
            # Somebody else may have been quicker, or this very call have been sent before.
            contextlib.suppress(client.exceptions.ResourceInUse),
        ):
            client.create_processing_job(**request)
        return self.look(name)

    def look(self, job_id: str) -> SubmittedJob:
        """See `JobService`."""
        client = aws_access.client("sagemaker", self._aws)
        with aws_access.translated("sagemaker", self.subject):
            found = client.describe_processing_job(ProcessingJobName=job_id)
        status = found["ProcessingJobStatus"]
        reasons = (found.get("FailureReason", ""), found.get("ExitMessage", ""))
        begun, ended = found.get("ProcessingStartTime"), found.get("ProcessingEndTime")
        page = f"sagemaker/home?region={self._region}#/processing-jobs/{job_id}"
        return SubmittedJob(
            name=job_id,
            id=job_id,
            status=status,
            has_ended=status in ENDED,
            has_succeeded=status == "Completed",
            reason=": ".join(filter(None, reasons)),
            seconds=round((ended - begun).total_seconds()) if begun and ended else 0,
            console=console_url(self._region, page),
            description=found,
        )

    def log(self, job: SubmittedJob, news: JobNews) -> CloudWatchLog:
        """See `JobService`."""
        return CloudWatchLog(
            self.subject,
            LOG_GROUP,
            f"{job.name}/",
            self._aws,
            line=news.line,
            note=news.note,
            host_of=host_of_stream,
        )

    def stop(self, job_id: str) -> None:
        """See `JobService`."""
        client = aws_access.client("sagemaker", self._aws)
        with aws_access.translated("sagemaker", self.subject):
            client.stop_processing_job(ProcessingJobName=job_id)

    def stop_command(self, job_id: str) -> str:
        """See `JobService`."""
        return f"aws sagemaker stop-processing-job --processing-job-name {job_id}"


def _input(name: str, uri: str) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": f"{INPUTS}/{name}",
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
        },
    }


def _output(name: str, uri: str) -> dict[str, Any]:
    return {
        "OutputName": name,
        "S3Output": {
            "S3Uri": uri,
            "LocalPath": f"{CONTAINER}/output/{name}",
            "S3UploadMode": "EndOfJob",
        },
    }
