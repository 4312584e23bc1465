"""A job of one command, whatever the service: started once, followed, or stopped.

    request, token -> the job's name -> is one of it under way? -- no --> start it
                                             | yes                          |
                                             v                              v
                                      follow: status and log until it has ended
                                             v
                              done, or one error with the job's own reason

A job's name follows from what it is made of. So the same command, run again after an answer was
lost or its terminal closed, finds the job that it started, and starts nothing twice. Once that has
ended, the same command starts the next: each night, for example. With a token of its own it runs
once, whatever has become of it.
"""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import (
    AwsError,
    AwsUnavailableError,
    SubmittedJobError,
    ThrottledError,
)
from feast_dynamo_ext.job_following import POLL_S, Waits, follow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.job_following import Log
    from feast_dynamo_ext.submit.job_bundle import Upload

logger = logging.getLogger(__name__)

MOST_STARTS = 4
"""Calls to start one job, of which all but the last were throttled or not answered."""

ABOUT_ROLES = re.compile(r"\broles?\b|PassRole|AssumeRole", re.IGNORECASE)
CONSOLES = {"cn-": "console.amazonaws.cn", "us-gov-": "console.amazonaws-us-gov.com"}


@dataclass(frozen=True)
class SubmittedJob:
    """A job as its service describes it.

    Attributes:
        name: of the job.
        id: what the service finds it by: a run's id, or the name again.
        status: the service's word.
        has_ended: whether nothing more will come of it.
        has_succeeded: whether it ended well.
        reason: why it failed; empty where the service does not say.
        seconds: that it ran, as far as the service says.
        console: its address in AWS's console.
        description: the service's whole answer.
    """

    name: str
    id: str
    status: str
    has_ended: bool
    has_succeeded: bool
    reason: str
    seconds: int
    console: str
    description: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class JobNews:
    """Where the news of a job that is followed go; each is called in order, from one thread.

    Attributes:
        status: the job, each time that it has been looked at.
        line: host and text of a line of the job's log.
        note: what a person should know besides.
    """

    status: Callable[[SubmittedJob], None]
    line: Callable[[str, str], None]
    note: Callable[[str], None]


class JobService(Protocol):
    """One job on one service. All methods raise AwsError where AWS refuses."""

    subject: str
    """Whose requests they are, for messages, for example "Glue job `churn`"."""

    uploads: tuple[Upload, ...]
    """The files that it needs on S3."""

    @property
    def requests(self) -> dict[str, dict[str, Any]]:
        """What is sent, by operation, in order."""
        ...

    def check(self) -> None:
        """Refuse what the service would refuse.

        Raises:
            RequestError: what AWS's service model does not allow.
            ConfigError: what it does not say, and the service does not allow.
        """
        ...

    def find(self) -> SubmittedJob | None:
        """The newest job of the same inputs, also one that has ended."""
        ...

    def start(self, previous: SubmittedJob | None) -> SubmittedJob:
        """Start a job after another, which has ended; sent twice, it starts one."""
        ...

    def look(self, job_id: str) -> SubmittedJob:
        """The job as it is now."""
        ...

    def log(self, job: SubmittedJob, news: JobNews) -> Log:
        """Its log."""
        ...

    def stop(self, job_id: str) -> None:
        """Have it end."""
        ...

    def stop_command(self, job_id: str) -> str:
        """What a person runs to stop it."""
        ...


@dataclass(frozen=True)
class JobSubmission:
    """A job that is there.

    Attributes:
        job: as it was described.
        is_new: whether this call started it.
    """

    job: SubmittedJob
    is_new: bool


def submit_job(
    service: JobService, *, only_once: bool = False, poll_s: float = POLL_S
) -> JobSubmission:
    """Start a job, or find the one with the same inputs that is under way.

    A call whose answer was lost is not sent again before the job has been looked for, and then as
    one that the service takes for the same.

    Args:
        service: the job.
        only_once: whether one that has ended is the one that is wanted, too.
        poll_s: seconds between two calls.

    Raises:
        RequestError: what AWS's service model does not allow; nothing was sent.
        AwsError: the service refused.
    """
    service.check()
    before = service.find()
    if before is not None and (only_once or not before.has_ended):
        return JobSubmission(before, is_new=False)
    waits = Waits(poll_s)
    for failed in range(1, MOST_STARTS):
        try:
            return JobSubmission(service.start(before), is_new=True)
        except (ThrottledError, AwsUnavailableError) as error:  # noqa: PERF203
            logger.info("Looking for what was started: %s", error)
            waits.wait(failed)
            found = waits.answer(service.find)
            if found is not None and (before is None or found.id != before.id):
                return JobSubmission(found, is_new=True)
    return JobSubmission(service.start(before), is_new=True)


def follow_job(
    service: JobService, job: SubmittedJob, news: JobNews, *, poll_s: float = POLL_S
) -> SubmittedJob:
    """Wait until a job has ended, and show its log meanwhile.

    Throttling and networks that fail are waited out; without permission to read the log the job is
    followed without it.

    Returns:
        The job, ended well.

    Raises:
        SubmittedJobError: it failed or was stopped; the message has the reason and the end of its
            log.
        AwsError: the service refused, or kept failing.
    """
    log = service.log(job, news)
    ended = follow(lambda: service.look(job.id), log, news.status, poll_s=poll_s)
    if ended.has_succeeded:
        return ended
    why = ended.reason.rstrip(".\n ") or "the service gives no reason"
    ending = f" The end of its log: {' | '.join(log.last)}" if log.last else ""
    raise SubmittedJobError(
        f"{service.subject} ended as {ended.status}: {why}.{ending}",
        name=ended.name,
        status=ended.status,
        failure_reason=ended.reason,
    )


@contextlib.contextmanager
def translated_start(
    service: str, principal: str, subject: str, role: str, aws: AwsSettings
) -> Iterator[Any]:
    """A client to start a job with, whose errors say what to do about the role.

    Its calls are sent once: what to do about a lost answer is for `submit_job` to say.

    Args:
        service: boto3's name of it.
        principal: who takes the role, for example `glue.amazonaws.com`.
        subject: the job, for messages.
        role: of the job.
        aws: how to reach the service.

    Raises:
        AwsError: the service refused.
    """
    from botocore.config import Config

    once = Config(retries={"total_max_attempts": 1})
    client = aws_access.client(service, aws, config=once)
    try:
        with aws_access.translated(service, subject):
            yield client
    except AwsError as error:
        said = str(error).replace(subject, "")
        if not ABOUT_ROLES.search(said):
            raise
        raise type(error)(
            f"{error} Role `{role}` has to be one that {principal} may assume, and whoever starts "
            "the job needs iam:PassRole on it.",
            service=error.service,
            operation=error.operation,
            code=error.code,
            request_id=error.request_id,
        ) from error


def console_url(region: str, path: str) -> str:
    """An address in AWS's console.

    Args:
        region: of the job.
        path: what follows the host.
    """
    host = next(
        (host for start, host in CONSOLES.items() if region.startswith(start)),
        "console.aws.amazon.com",
    )
    return f"https://{region}.{host}/{path}"
