"""A command as a job run of an application of EMR Serverless.

An application has Spark, boto3 and little else. What the package requires comes in an archive of a
virtual environment (`venv-pack`), or is in the application's own image.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError, ResourceNotFoundError
from feast_dynamo_ext.job_following import CloudWatchLog, GzipLog
from feast_dynamo_ext.sagemaker.request_check import check_request
from feast_dynamo_ext.sagemaker.training_job import job_name, request_token
from feast_dynamo_ext.submit.submitted_job import SubmittedJob, console_url, translated_start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.job_following import Log
    from feast_dynamo_ext.submit.job_bundle import JobBundle, Upload
    from feast_dynamo_ext.submit.submitted_job import JobNews

PRINCIPAL = "emr-serverless.amazonaws.com"
ENDED = frozenset({"SUCCESS", "FAILED", "CANCELLED"})
LEAST_MINUTES = 5
FOUND_WITHIN = timedelta(days=7)
"""How long a run is looked for by its name; its client token goes on to hold."""

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
ENVIRONMENT = "environment"
PYTHON = f"./{ENVIRONMENT}/bin/python"
PYTHON_OF = (
    "spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON",
    "spark.emr-serverless.driverEnv.PYSPARK_PYTHON",
    "spark.executorEnv.PYSPARK_PYTHON",
)


@dataclass(frozen=True)
class EmrServerlessSettings:
    """How a command runs on EMR Serverless.

    Attributes:
        application: id of the application.
        role: ARN of the role of the job.
        archive: S3 URI of an archive of a virtual environment; without one the application's image
            has what the package requires.
        timeout_minutes: after which the run is stopped, 5 at least.
        py_files: S3 URIs of further modules.
        spark: settings of Spark.
        log_group: of CloudWatch, where the log is written as it comes; without one it is on S3
            alone, some minutes late.
    """

    application: str
    role: str
    archive: str | None = None
    timeout_minutes: int = 1_440
    py_files: Sequence[str] = ()
    spark: Mapping[str, str] | None = None
    log_group: str | None = None


class EmrServerlessJob:
    """A command on EMR Serverless; see `JobService`."""

    def __init__(
        self,
        bundle: JobBundle,
        settings: EmrServerlessSettings,
        aws: AwsSettings,
        s3: AwsSettings,
        *,
        name: str | None = None,
        token: str = "",
        tags: Mapping[str, str] | None = None,
        uploads: Sequence[Upload] = (),
    ) -> None:
        """Nothing is sent yet.

        Args:
            bundle: the command.
            settings: how it runs.
            aws: how to reach EMR Serverless.
            s3: how to reach S3, where the log is.
            name: base of the job's name; by default the command's first words.
            token: another one makes another job of the same command.
            tags: of the job.
            uploads: files that the settings name.

        Raises:
            ConfigError: an archive of another kind, or a value with a space, which spark-submit
                would take for two.
        """
        self._files = bundle.files("unpack")
        self.uploads = (*uploads, *self._files.uploads)
        self._settings, self._aws, self._s3, self._region = settings, aws, s3, bundle.region
        self._logs = f"{bundle.destination.rstrip('/')}/logs"
        monitoring: dict[str, Any] = {"s3MonitoringConfiguration": {"logUri": f"{self._logs}/"}}
        if settings.log_group is not None:
            monitoring["cloudWatchLoggingConfiguration"] = {
                "enabled": True,
                "logGroupName": settings.log_group,
                "logTypes": {"SPARK_DRIVER": ["STDOUT", "STDERR"]},
            }
        request: dict[str, Any] = {
            "applicationId": settings.application,
            "executionRoleArn": settings.role,
            "jobDriver": {
                "sparkSubmit": {
                    "entryPoint": self._files.entry.uri,
                    "entryPointArguments": ["--feast-dynamo-job", self._files.job.uri],
                    "sparkSubmitParameters": self._parameters(),
                }
            },
            "configurationOverrides": {"monitoringConfiguration": monitoring},
            "executionTimeoutMinutes": settings.timeout_minutes,
        }
        digest = request_token(request, token)
        self.name = job_name(name or bundle.base_name, digest)
        self.subject = f"EMR Serverless job `{self.name}`"
        self._request = {**request, "clientToken": digest, "name": self.name}
        if tags:
            self._request["tags"] = dict(tags)

    def _parameters(self) -> str:
        settings = self._settings
        spark = {}
        if settings.archive is not None:
            if not settings.archive.endswith(ARCHIVES):
                raise ConfigError(
                    f"`{settings.archive}` is no archive that Spark unpacks. It takes "
                    f"{', '.join(ARCHIVES)}."
                )
            spark["spark.archives"] = f"{settings.archive}#{ENVIRONMENT}"
            spark |= dict.fromkeys(PYTHON_OF, PYTHON)
        spark |= dict(settings.spark or {})
        files = [self._files.wheel.uri, *settings.py_files]
        words = ["--py-files", ",".join(files)]
        for key, value in spark.items():
            words += ["--conf", f"{key}={value}"]
        for word in words:
            if any(character.isspace() for character in word):
                raise ConfigError(
                    f"`{word}` has a space in it, and EMR Serverless separates what it gives to "
                    "spark-submit by spaces."
                )
        return " ".join(words)

    @property
    def requests(self) -> dict[str, dict[str, Any]]:
        """See `JobService`."""
        return {"StartJobRun": self._request}

    def check(self) -> None:
        """See `JobService`."""
        check_request("StartJobRun", self._request, service="emr-serverless", subject=self.subject)
        minutes = self._settings.timeout_minutes
        if minutes < LEAST_MINUTES:
            raise ConfigError(
                f"The {self.subject} may run for {minutes} min; EMR Serverless takes "
                f"{LEAST_MINUTES} or more."
            )

    def find(self) -> SubmittedJob | None:
        """See `JobService`: the newest run of that name, of the last seven days."""
        client = aws_access.client("emr-serverless", self._aws)
        pages = client.get_paginator("list_job_runs").paginate(
            applicationId=self._settings.application,
            createdAtAfter=datetime.now(timezone.utc) - FOUND_WITHIN,
        )
        try:
            with aws_access.translated("emr-serverless", self.subject):
                found = [run for page in pages for run in page["jobRuns"] if self._is_ours(run)]
        except ResourceNotFoundError:  # of the application, which a start says with more reason
            return None
        newest = max(found, key=lambda run: run["createdAt"], default=None)
        return None if newest is None else self.look(newest["id"])

    def _is_ours(self, run: Mapping[str, Any]) -> bool:
        return run.get("name") == self.name

    def start(self, previous: SubmittedJob | None) -> SubmittedJob:
        """See `JobService`: the client token makes a second start the same."""
        role, aws = self._settings.role, self._aws
        request = dict(self._request)
        if previous is not None:
            request["clientToken"] = request_token(request, previous.id)
        with translated_start("emr-serverless", PRINCIPAL, self.subject, role, aws) as client:
            run_id = client.start_job_run(**request)["jobRunId"]
        return self.look(run_id)

    def look(self, job_id: str) -> SubmittedJob:
        """See `JobService`."""
        client = aws_access.client("emr-serverless", self._aws)
        with aws_access.translated("emr-serverless", f"run {job_id} of {self.subject}"):
            run = client.get_job_run(applicationId=self._settings.application, jobRunId=job_id)[
                "jobRun"
            ]
        status = run["state"]
        page = f"emr/home?region={self._region}#/serverless"
        return SubmittedJob(
            name=self.name,
            id=job_id,
            status=status,
            has_ended=status in ENDED,
            has_succeeded=status == "SUCCESS",
            reason=run.get("stateDetails") or "",
            seconds=run.get("totalExecutionDurationSeconds") or 0,
            console=console_url(self._region, page),
            description=run,
        )

    def log(self, job: SubmittedJob, news: JobNews) -> Log:
        """See `JobService`: what the driver prints."""
        place = f"applications/{self._settings.application}/jobs/{job.id}"
        if self._settings.log_group is not None:
            return CloudWatchLog(
                self.subject,
                self._settings.log_group,
                f"/{place}/",
                self._aws,
                line=news.line,
                note=news.note,
                host_of=_host_of,
            )
        return GzipLog(
            f"{self._logs}/{place}/SPARK_DRIVER/stdout.gz",
            self._s3,
            host="driver",
            line=news.line,
            note=news.note,
        )

    def stop(self, job_id: str) -> None:
        """See `JobService`."""
        client = aws_access.client("emr-serverless", self._aws)
        with aws_access.translated("emr-serverless", self.subject):
            client.cancel_job_run(applicationId=self._settings.application, jobRunId=job_id)

    def stop_command(self, job_id: str) -> str:
        """See `JobService`."""
        return (
            f"aws emr-serverless cancel-job-run --application-id {self._settings.application} "
            f"--job-run-id {job_id}"
        )


def _host_of(stream: str) -> str | None:
    """Of the driver's streams the one that the command prints to; Spark's own log is apart."""
    is_of_driver = stream.startswith("SPARK_DRIVER") and not stream.lower().endswith("stderr")
    return "driver" if is_of_driver else None
