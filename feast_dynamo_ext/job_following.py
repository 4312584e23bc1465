"""Following a job on AWS to its end: its status, its log, and what goes wrong meanwhile.

    look -> status shown -> new lines of the log shown -> ended? -- no --> wait, look again
                                                             |
                                                             yes: the log comes some seconds late

Throttling, and networks that fail, are waited out: the job goes on all the same.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsUnavailableError,
    ResourceNotFoundError,
    ThrottledError,
)
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feast_dynamo_ext.aws import AwsSettings

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

LAST_LINES = 20
POLL_S = 5.0
LONGEST_WAIT_S = 60.0
MOST_REFUSALS = 20
"""Throttled or failed calls in a row after which following a job is given up."""


class FollowedJob(Protocol):
    """A job as it was looked at."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        ...


Job = TypeVar("Job", bound=FollowedJob)


class Log(Protocol):
    """A job's log, read on from where it was left.

    Attributes:
        last: the end of it.
        is_readable: False once it was refused.
        quiet_reads: that must find nothing new once the job has ended: its log comes late.
    """

    last: deque[str]
    is_readable: bool
    quiet_reads: int

    def read(self) -> int:
        """Show what is new; gives the number of lines."""
        ...


class Waits:
    """Between two looks: `poll_s`, and longer the more calls in a row have failed."""

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s
        self._event = threading.Event()

    def wait(self, failed: int = 0) -> None:
        """Wait for the next look, or for longer after so many failures."""
        self._event.wait(min(self._poll_s * 2**failed, max(LONGEST_WAIT_S, self._poll_s)))

    def answer(self, call: Callable[[], Answer]) -> Answer:
        """What a call gives, sent again while AWS asks to slow down or does not answer.

        Raises:
            AwsError: it kept failing.
        """
        failed = 0
        while True:
            try:
                return call()
            except (ThrottledError, AwsUnavailableError) as error:  # noqa: PERF203
                failed += 1
                if failed == MOST_REFUSALS:
                    raise
                logger.info("Asking again: %s", error)
                self.wait(failed)


def follow(
    look: Callable[[], Job], log: Log, shown: Callable[[Job], None], *, poll_s: float = POLL_S
) -> Job:
    """Wait until a job has ended, and show its status and log meanwhile.

    Args:
        look: describes the job.
        log: of the job.
        shown: called with the job each time that it has been looked at.
        poll_s: seconds between two looks.

    Returns:
        The job as it ended.

    Raises:
        AwsError: AWS refused, or kept failing.
    """
    waits = Waits(poll_s)
    while True:
        job = waits.answer(look)
        shown(job)
        waits.answer(log.read)
        if job.has_ended:
            break
        waits.wait()
    quiet = 0
    while quiet < log.quiet_reads and log.is_readable:
        waits.wait()
        quiet = 0 if waits.answer(log.read) else quiet + 1
    return job


class CloudWatchLog:
    """A job's log in CloudWatch: a stream for each host."""

    quiet_reads = 2

    def __init__(
        self,
        job: str,
        group: str,
        prefix: str,
        aws: AwsSettings,
        *,
        line: Callable[[str, str], None],
        note: Callable[[str], None],
        host_of: Callable[[str], str | None],
    ) -> None:
        """Nothing was read yet.

        Args:
            job: whose log it is, for messages, for example "training job `churn`".
            group: the log group.
            prefix: of the names of its streams.
            aws: how to reach CloudWatch Logs.
            line: called with host and text of each line.
            note: called with what a person should know besides.
            host_of: the host that writes a stream, by what follows the prefix in its name; None
                for a stream that is not read.
        """
        self._job, self._group, self._prefix = job, group, prefix
        self._line, self._note, self._host_of = line, note, host_of
        self._client = aws_access.client("logs", aws)
        self._tokens: dict[str, str] = {}
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.is_readable = True

    def read(self) -> int:
        """Show what is new; gives the number of lines.

        Without permission the job is followed without its log, which is noted once.

        Raises:
            AwsError: CloudWatch failed.
        """
        if not self.is_readable:
            return 0
        try:
            with aws_access.translated("logs", f"the log of {self._job}"):
                return sum(self._read(stream) for stream in self._streams())
        except ResourceNotFoundError:  # no job has written a log in this account yet
            return 0
        except AccessDeniedError as error:
            self.is_readable = False
            self._note(f"The job is followed without its log: {error}")
            return 0

    def _streams(self) -> Iterator[str]:
        options: dict[str, Any] = {
            "logGroupName": self._group,
            "logStreamNamePrefix": self._prefix,
        }
        while True:
            found = self._client.describe_log_streams(**options)
            yield from sorted(stream["logStreamName"] for stream in found["logStreams"])
            if not found.get("nextToken"):
                return
            options["nextToken"] = found["nextToken"]

    def _read(self, stream: str) -> int:
        host = self._host_of(stream.removeprefix(self._prefix))
        count = 0
        while host is not None:
            token = self._tokens.get(stream)
            found = self._client.get_log_events(
                logGroupName=self._group,
                logStreamName=stream,
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
            # Kept before its lines are shown: no call is made twice for one page.
            self._tokens[stream] = found["nextForwardToken"]
            for event in found["events"]:
                text = event["message"].rstrip("\n")
                self._line(host, text)
                self.last.append(text)
                count += 1
            if found["nextForwardToken"] == token or not found["events"]:
                break
        return count


class GzipLog:
    """A job's log in one gzip file on S3, which is replaced by a longer one now and then."""

    quiet_reads = 6

    def __init__(
        self,
        uri: str,
        aws: AwsSettings,
        *,
        host: str,
        line: Callable[[str, str], None],
        note: Callable[[str], None],
    ) -> None:
        """Nothing was read yet.

        Args:
            uri: of the file.
            aws: how to reach S3.
            host: that writes it.
            line: called with host and text of each line.
            note: called with what a person should know besides.
        """
        self._uri, self._host, self._line, self._note = uri, host, line, note
        self._files = files_of(uri, aws)
        self._read_of: object = None
        self._count = 0
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.is_readable = True

    def read(self) -> int:
        """Show what is new; gives the number of lines.

        Raises:
            AwsError: S3 failed.
        """
        if not self.is_readable:
            return 0
        try:
            state = self._files.find(self._uri)
            if state is None or state.version == self._read_of:
                return 0
            data = self._files.read(self._uri)
        except AccessDeniedError as error:
            self.is_readable = False
            self._note(f"The job is followed without its log: {error}")
            return 0
        lines = _unzipped(data or b"").decode(errors="replace").splitlines()
        # A log of which the service keeps only the end begins anew.
        new = lines[self._count :] if len(lines) >= self._count else lines
        self._read_of, self._count = state.version, len(lines)
        for text in new:
            self._line(self._host, text)
            self.last.append(text)
        return len(new)


def _unzipped(data: bytes) -> bytes:
    """What is in gzip data, as far as it goes: a log may be written as several parts."""
    found = b""
    while data:
        part = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            found += part.decompress(data)
        except zlib.error:
            break
        data = part.unused_data
    return found
