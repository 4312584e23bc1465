"""Runs one command of a feature repo in a job on AWS.

It is uploaded as a file and run by itself, before the package can be imported: it uses nothing but
the standard library, and boto3 where it reads S3.

    job.json -> the repo, unpacked -> the package, if it is not installed -> the command -> its end

Its options are pairs of a name and a value, as Glue passes no others; those of the service, such
as Glue's `--JOB_NAME`, are passed over.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import deque
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMAT = 1
OLDEST_PYTHON = (3, 10)
LAST_LINES = 5
MOST_REASON_CHARS, MOST_SAID_CHARS = 1_000, 700
"""Of a failure's reason, of which SageMaker keeps 1 KB, and of what the command printed."""

FAILED, NOT_RUN = 1, 70
SIGNALS = (signal.SIGTERM, signal.SIGINT)

PROGRAMS = {
    "feast-dynamo": ("-m", "feast_dynamo_ext.cli.main"),
    "feast": ("-c", "from feast.cli.cli import cli; cli(prog_name='feast')"),
    "python": (),
    "python3": (),
}
"""By a command's first word: what this Python is given in its place."""


class JobError(Exception):
    """The job cannot run its command, or the command failed."""

    def __init__(self, message: str, code: int = NOT_RUN) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit code of its command."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--feast-dynamo-job", required=True)
    parser.add_argument("--feast-dynamo-inputs")
    parser.add_argument("--feast-dynamo-message")
    parser.add_argument("--feast-dynamo-on-failure", choices=("exit", "raise"), default="exit")
    options, _ = parser.parse_known_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="feast-dynamo-") as folder:
            run(options.feast_dynamo_job, options.feast_dynamo_inputs, Path(folder))
    except JobError as error:
        reason = str(error)[:MOST_REASON_CHARS]
        _say(reason, sys.stderr)
        if options.feast_dynamo_message:
            _write_message(Path(options.feast_dynamo_message), reason)
        # Glue shows the text of an exception as the reason, and of an exit code nothing.
        if options.feast_dynamo_on_failure == "raise":
            raise
        return error.code
    return 0


def run(job_uri: str, inputs: str | None, folder: Path) -> None:
    """Run the command of a job.

    Args:
        job_uri: of job.json, on S3 or this disk.
        inputs: a folder with `repo` and `wheel`, in place of what job.json names on S3.
        folder: an empty one to work in.

    Raises:
        JobError: it cannot be run, or failed.
    """
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise JobError(f"This job has Python {found}; feast-dynamo-ext needs 3.10 or newer.")
    job = json.loads(read(job_uri))
    if job.get("format") != FORMAT:
        raise JobError(f"{job_uri} is of format {job.get('format')}, and this reads {FORMAT}.")
    repo = folder / "repo"
    unpack_repo(_placed(job["repo"], inputs, "repo"), job["repo_sha256"], repo)
    environment = _environment(job)
    if job["package"] == "unpack":
        packages = folder / "packages"
        with zipfile.ZipFile(io.BytesIO(read(_placed(job["wheel"], inputs, "wheel")))) as wheel:
            wheel.extractall(packages)  # noqa: S202 - our own wheel, and no path leads out of it
        kept = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(packages), *([kept] if kept else [])])
    elif job["package"] == "install":
        install(_placed(job["wheel"], inputs, "wheel"), job["requirements"], folder)
    command = job["command"]
    _say(f"feast-dynamo job: {' '.join(command)}")
    code, last = run_program(program_of(command), repo, environment)
    if code:
        # The end of it: what went wrong comes last.
        said = f": {' | '.join(last)[-MOST_SAID_CHARS:]}" if last else ""
        raise JobError(f"`{' '.join(command)}` ended with exit code {code}{said}", code)


def read(uri: str) -> bytes:
    """A file on S3 or on this disk.

    Raises:
        JobError: it cannot be read.
    """
    if not uri.startswith("s3://"):
        try:
            return Path(uri).read_bytes()
        except OSError as error:
            raise JobError(f"{uri} cannot be read: {error.strerror}.") from error
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise JobError(f"boto3 is not installed in this job, so {uri} cannot be read.") from error
    bucket, _, key = uri[len("s3://") :].partition("/")
    try:
        found = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    except (BotoCoreError, ClientError) as error:
        raise JobError(
            f"{uri} cannot be read: {error}. The job's role needs s3:GetObject on it."
        ) from error
    return bytes(found)


def unpack_repo(uri: str, sha256: str, folder: Path) -> None:
    """Unpack a repo's archive.

    Raises:
        JobError: it is not what was packed, or holds more than files within it.
    """
    try:
        packed = gzip.decompress(read(uri))
    except (OSError, EOFError) as error:
        raise JobError(f"{uri} is no gzip file: {error}.") from error
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise JobError(f"{uri} is not the repo that was packed: its SHA-256 is another.")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            opened = archive.extractfile(member) if member.isfile() else None
            if opened is None or path.is_absolute() or ".." in path.parts:
                raise JobError(f"{uri} holds `{member.name}`, which is no file within the repo.")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(opened.read())
            target.chmod(member.mode)


def install(wheel: str, requirements: Sequence[str], folder: Path) -> None:
    """Install the package, and what it requires, into this Python.

    Raises:
        JobError: pip failed.
    """
    path = Path(wheel)
    if wheel.startswith("s3://"):
        path = folder / PurePosixPath(wheel).name
        path.write_bytes(read(wheel))
    command = [sys.executable, "-m", "pip", "install", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", str(path), *requirements]
    code, last = run_program(command, folder, dict(os.environ))
    if code:
        raise JobError(f"The package could not be installed: {' | '.join(last)}")


def program_of(command: Sequence[str]) -> list[str]:
    """What runs a command, with this Python.

    Raises:
        JobError: its first word is none that a job runs.
    """
    if not command or command[0] not in PROGRAMS:
        raise JobError(f"A job runs {', '.join(PROGRAMS)}, and not `{' '.join(command)}`.")
    # Absolute, as the command runs in another folder.
    return [os.path.abspath(sys.executable), *PROGRAMS[command[0]], *command[1:]]  # noqa: PTH100 - no link is followed


def run_program(
    program: Sequence[str], folder: Path, environment: dict[str, str]
) -> tuple[int, list[str]]:
    """Run a program, show what it prints, and pass on the signals that this process gets.

    Returns:
        Its exit code, 128 and more where a signal ended it, and the last lines that it printed.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    with (
        subprocess.Popen(  # noqa: S603 - the command that the job is for
            list(program),
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
        _passed_on(process),
    ):
        for line in process.stdout or ():
            _say(line.rstrip("\n"))
            if line.strip():
                last.append(line.strip())
        code = process.wait()
    return (code if code >= 0 else 128 - code), list(last)


@contextlib.contextmanager
def _passed_on(process: subprocess.Popen[str]) -> Iterator[None]:
    def pass_on(number: int, _frame: Any) -> None:
        if process.poll() is None:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(job: dict[str, Any]) -> dict[str, str]:
    """Of the command: that of this process, the job's own, and its region where none is set."""
    found = {**os.environ, "PYTHONUNBUFFERED": "1", **job["environment"]}
    paths = filter(None, found.get("PYTHONPATH", "").split(os.pathsep))
    found["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        found.setdefault(name, job["region"])
    return found


def _placed(uri: str, inputs: str | None, kind: str) -> str:
    """Where a file is: below the inputs that the service has put on this disk, else on S3."""
    return uri if inputs is None else str(Path(inputs, kind, PurePosixPath(uri).name))


def _write_message(path: Path, reason: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason, encoding="utf-8")
    except OSError as error:
        _say(f"{path} cannot be written: {error.strerror}.", sys.stderr)


def _say(text: str, stream: Any = None) -> None:
    (stream or sys.stdout).write(f"{text}\n")
    (stream or sys.stdout).flush()


if __name__ == "__main__":
    exit_code = main()
    if exit_code:  # a clean end without SystemExit, which Glue would show
        sys.exit(exit_code)
