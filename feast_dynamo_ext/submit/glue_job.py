"""A command as a job of AWS Glue: a job definition for each thing to run, and one run at a time.

Glue has no token that makes StartJobRun idempotent. So what runs is part of the definition's name,
and a definition has one run at a time: a start that is sent twice is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError, ResourceNotFoundError
from feast_dynamo_ext.job_following import CloudWatchLog
from feast_dynamo_ext.sagemaker.request_check import check_request
from feast_dynamo_ext.sagemaker.training_job import job_name, request_token
from feast_dynamo_ext.submit.submitted_job import SubmittedJob, console_url, translated_start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.submit.job_bundle import JobBundle, Upload
    from feast_dynamo_ext.submit.submitted_job import JobNews

PRINCIPAL = "glue.amazonaws.com"
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED", "TIMEOUT", "ERROR", "EXPIRED"})
LEAST_WORKERS = 2
PYTHONS = {"4.0": "3.10", "5.0": "3.11", "5.1": "3.11", "6.0": "3.13"}
"""By Glue's version: its Python."""

LOG_GROUP = "/aws-glue/jobs"
EXISTS = frozenset({"AlreadyExistsException", "IdempotentParameterMismatchException"})
OWN_ARGUMENTS = frozenset(
    {
        *("--job-language", "--additional-python-modules", "--extra-py-files", "--conf"),
        *("--feast-dynamo-job", "--feast-dynamo-on-failure"),
    }
)


@dataclass(frozen=True)
class GlueSettings:
    """How a command runs on Glue.

    Attributes:
        role: name or ARN of the role of the job.
        glue_version: 5.1 is Spark 3.5 with Python 3.11.
        worker_type: for example `G.1X`, 4 vCPU and 16 GB.
        workers: their number, the driver counted; 2 at least.
        timeout_minutes: after which the run is stopped.
        flex: run on spare capacity, cheaper and later.
        py_files: S3 URIs of further modules, `--extra-py-files`.
        spark: settings of Spark.
        arguments: further arguments of Glue's, as `--enable-metrics`.
        connections: names of Glue connections, for a network of yours.
        security_configuration: name of one, which encrypts what Glue writes.
    """

    role: str
    glue_version: str = "5.1"
    worker_type: str = "G.1X"
    workers: int = 2
    timeout_minutes: int = 1_440
    flex: bool = False
    py_files: Sequence[str] = ()
    spark: Mapping[str, str] | None = None
    arguments: Mapping[str, str] | None = None
    connections: Sequence[str] = ()
    security_configuration: str | None = None


class GlueJob:
    """A command on Glue; see `JobService`."""

    def __init__(
        self,
        bundle: JobBundle,
        settings: GlueSettings,
        aws: AwsSettings,
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
            aws: how to reach Glue.
            name: base of the job's name; by default the command's first words.
            token: another one makes another job of the same command.
            tags: of the job.
            uploads: files that the settings name.

        Raises:
            ConfigError: a requirement that Glue cannot be given, or an argument given twice.
        """
        self._files = bundle.files("installed")
        self.uploads = (*uploads, *self._files.uploads)
        self._settings, self._aws, self._region = settings, aws, bundle.region
        request: dict[str, Any] = {
            "Description": bundle.title,
            "Role": settings.role,
            "ExecutionProperty": {"MaxConcurrentRuns": 1},
            "Command": {
                "Name": "glueetl",
                "ScriptLocation": self._files.entry.uri,
                "PythonVersion": "3",
            },
            "DefaultArguments": self._arguments(bundle),
            "MaxRetries": 0,
            "Timeout": settings.timeout_minutes,
            "GlueVersion": settings.glue_version,
            "WorkerType": settings.worker_type,
            "NumberOfWorkers": settings.workers,
            "ExecutionClass": "FLEX" if settings.flex else "STANDARD",
        }
        if settings.connections:
            request["Connections"] = {"Connections": list(settings.connections)}
        if settings.security_configuration is not None:
            request["SecurityConfiguration"] = settings.security_configuration
        self.name = job_name(name or bundle.base_name, request_token(request, token))
        self.subject = f"Glue job `{self.name}`"
        self._create = {"Name": self.name, **request}
        if tags:
            self._create["Tags"] = dict(tags)
        self._start = {"JobName": self.name}

    def _arguments(self, bundle: JobBundle) -> dict[str, str]:
        settings = self._settings
        given = dict(settings.arguments or {})
        taken = sorted(OWN_ARGUMENTS & given.keys())
        if taken:
            raise ConfigError(
                f"The arguments {', '.join(taken)} of a Glue job are set by this command."
            )
        modules = [self._files.wheel.uri, *glue_modules(bundle.requirements)]
        arguments = {
            "--job-language": "python",
            "--additional-python-modules": ",".join(modules),
            "--feast-dynamo-job": self._files.job.uri,
            "--feast-dynamo-on-failure": "raise",
            **given,
        }
        if settings.py_files:
            arguments["--extra-py-files"] = ",".join(settings.py_files)
        if settings.spark:
            # One argument for all of them: Glue puts it behind a `--conf` of its own.
            pairs = [f"{key}={value}" for key, value in settings.spark.items()]
            arguments["--conf"] = " --conf ".join(pairs)
        return arguments

    @property
    def requests(self) -> dict[str, dict[str, Any]]:
        """See `JobService`."""
        return {"CreateJob": self._create, "StartJobRun": self._start}

    def check(self) -> None:
        """See `JobService`."""
        for operation, request in self.requests.items():
            check_request(operation, request, service="glue", subject=self.subject)
        workers = self._settings.workers
        if workers < LEAST_WORKERS:
            raise ConfigError(
                f"The {self.subject} has {workers} worker; Glue takes {LEAST_WORKERS} or more."
            )

    def find(self) -> SubmittedJob | None:
        """See `JobService`: the newest run of the job."""
        client = aws_access.client("glue", self._aws)
        try:
            with aws_access.translated("glue", self.subject):
                found = client.get_job_runs(JobName=self.name, MaxResults=1)["JobRuns"]
        except ResourceNotFoundError:
            return None
        return self._described(found[0]) if found else None

    def start(self, previous: SubmittedJob | None) -> SubmittedJob:
        """See `JobService`: define the job, if it is not, and run it."""
        role = self._settings.role
        with translated_start("glue", PRINCIPAL, self.subject, role, self._aws) as client:
            if not self._is_defined(client):
                try:
                    client.create_job(**self._create)
                except client.exceptions.ClientError as error:
                    # Somebody else was quicker, or this very call has been sent before.
                    if error.response.get("Error", {}).get("Code") not in EXISTS:
                        raise
            try:
                run_id = client.start_job_run(**self._start)["JobRunId"]
            except client.exceptions.ConcurrentRunsExceededException:
                found = self.find()
                if found is None or (previous is not None and found.id == previous.id):
                    raise  # it is not listed yet
                return found
        return self.look(run_id)

    def _is_defined(self, client: Any) -> bool:
        try:
            client.get_job(JobName=self.name)
        except client.exceptions.EntityNotFoundException:
            return False
        return True

    def look(self, job_id: str) -> SubmittedJob:
        """See `JobService`."""
        client = aws_access.client("glue", self._aws)
        with aws_access.translated("glue", f"run {job_id} of {self.subject}"):
            return self._described(client.get_job_run(JobName=self.name, RunId=job_id)["JobRun"])

    def _described(self, run: Mapping[str, Any]) -> SubmittedJob:
        status = run["JobRunState"]
        name = quote(self.name, safe="")
        page = f"gluestudio/home?region={self._region}#/job/{name}/run/{run['Id']}"
        return SubmittedJob(
            name=self.name,
            id=run["Id"],
            status=status,
            has_ended=status in ENDED,
            has_succeeded=status == "SUCCEEDED",
            reason=run.get("ErrorMessage") or run.get("StateDetail") or "",
            seconds=run.get("ExecutionTime", 0),
            console=console_url(self._region, page),
            description=run,
        )

    def log(self, job: SubmittedJob, news: JobNews) -> CloudWatchLog:
        """See `JobService`: what the driver prints."""
        group = str(job.description.get("LogGroupName") or LOG_GROUP).rstrip("/")
        return CloudWatchLog(
            self.subject,
            f"{group}/output",
            job.id,
            self._aws,
            line=news.line,
            note=news.note,
            host_of=lambda rest: "driver" if rest in ("", "-driver") else None,
        )

    def stop(self, job_id: str) -> None:
        """See `JobService`."""
        client = aws_access.client("glue", self._aws)
        with aws_access.translated("glue", self.subject):
            found = client.batch_stop_job_run(JobName=self.name, JobRunIds=[job_id])
        for refused in found.get("Errors", ()):
            detail = refused.get("ErrorDetail", {})
            raise aws_access.aws_error(
                detail.get("ErrorCode", "Unknown"),
                detail.get("ErrorMessage", "no message"),
                service="glue",
                operation="BatchStopJobRun",
                resource=self.subject,
            )

    def stop_command(self, job_id: str) -> str:
        """See `JobService`."""
        return f"aws glue batch-stop-job-run --job-name {self.name} --job-run-ids {job_id}"


def glue_modules(requirements: Sequence[str]) -> list[str]:
    """Requirements as Glue takes them in one list with commas between them.

    Raises:
        ConfigError: one with a comma in it.
    """
    found = []
    for text in requirements:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[([^]]*)\])?(.*)", text)
        name, extras, rest = match.groups() if match else (text, None, "")
        # Several extras as several requirements of one package, which pip joins again.
        each = [f"{name}[{extra.strip()}]{rest}" for extra in (extras or "").split(",") if extra]
        found += each or [text]
    for text in found:
        if "," in text:
            raise ConfigError(
                f"Glue separates requirements by commas, and `{text}` has one in it. Name one "
                "version: --requirement NAME==VERSION."
            )
    return found
