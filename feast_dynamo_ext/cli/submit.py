"""feast-dynamo submit: a command of a feature repo as a job on AWS, followed to its end."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.job_progress import JobProgress, sigterm_as_exit
from feast_dynamo_ext.cli.repo import (
    FiniteFloat,
    InOrder,
    Output,
    age_s,
    aws_access,
    json_option,
    open_store,
    pairs,
    region_option,
    repo_option,
    size_in,
)
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.figures import counted, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from feast_dynamo_ext.cli.repo import AwsAccess
    from feast_dynamo_ext.submit.job_bundle import JobBundle, Upload
    from feast_dynamo_ext.submit.repo_archive import RepoArchive
    from feast_dynamo_ext.submit.submitted_job import JobService, SubmittedJob
    from feast_dynamo_ext.submit.wheel import Wheel

PROGRAMS = ("feast-dynamo", "feast", "python", "python3")
NOT_IN_A_JOB = frozenset({"submit", "local", "init"})


@click.group(cls=InOrder, short_help="Run a command as a job on Glue, EMR Serverless, SageMaker.")
def submit() -> None:
    """Run a command of this feature repo as a job on AWS, and follow it to its end.

    This package, as it is installed here, and the repo, without caches, environments and secrets,
    are uploaded once below --destination. The request is held against AWS's service model before
    anything is sent. The same command again follows the job that it started, while that runs.

    \b
    feast-dynamo submit glue --role glue-features --destination s3://my-features/jobs \\
        -- feast-dynamo materialize 2026-01-01 2026-02-01
    feast-dynamo submit emr-serverless --application 00f1abc2defg3h4i --role arn:aws:iam::... \\
        --environment environment.tar.gz --destination s3://my-features/jobs \\
        -- feast-dynamo training-set build churn
    """  # noqa: D301 - click keeps the lines after \b as they are


def _uri(_context: Any, _option: Any, text: str) -> str:
    if not text.startswith("s3://"):
        raise click.BadParameter(f"`{text}` is not on S3. Write it as s3://bucket/prefix.")
    return text.rstrip("/")


def _size(_context: Any, _option: Any, text: str) -> int:
    return size_in(text)


OPTIONS = (
    click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED),
    click.option(
        "--destination",
        required=True,
        metavar="URI",
        callback=_uri,
        help="Of packages, repos and jobs: s3://bucket/prefix. Nothing there is deleted.",
    ),
    click.option("--max-runtime", metavar="AGE", default="24h", callback=age_s, show_default=True),
    click.option(
        "--conf", "spark", multiple=True, metavar="KEY=VALUE", callback=pairs, help="Of Spark."
    ),
    click.option(
        "--env",
        "environment",
        multiple=True,
        metavar="KEY=VALUE",
        callback=pairs,
        help="Of the command. Kept on S3: no place for secrets.",
    ),
    click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", callback=pairs),
    click.option("--name", metavar="NAME", help="Base of the job's name. Default: the command."),
    click.option(
        "--token",
        default="",
        help="With the same token, the job runs once. Default: once at a time.",
    ),
    click.option(
        "--wheel",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Of this package. Default: one of the files that are installed here.",
    ),
    click.option(
        "--extra",
        "extras",
        multiple=True,
        metavar="NAME",
        help="Of this package. Default: iceberg and delta, where installed here.",
    ),
    click.option(
        "--requirement",
        "requirements",
        multiple=True,
        metavar="NAME==VERSION",
        help="A package that the repo needs besides.",
    ),
    click.option(
        "--exclude", multiple=True, metavar="PATTERN", help="Files that stay here: 'notebooks/*'."
    ),
    click.option(
        "--max-size",
        metavar="SIZE",
        default="200MB",
        callback=_size,
        show_default=True,
        help="Of the repo, at most.",
    ),
    click.option(
        "--copy-local",
        is_flag=True,
        help="Take a registry or catalog that is a file along. What changes in it is lost.",
    ),
    click.option(
        "--wait/--no-wait", default=True, help="Follow the job to its end.", show_default=True
    ),
    click.option("--stop-on-interrupt", is_flag=True, help="Ctrl-C and SIGTERM stop the job."),
    click.option("--poll", "poll_s", type=FiniteFloat(0), default=5.0, hidden=True),
    click.option("--dry-run", is_flag=True, help="Check and print the requests; send nothing."),
    region_option,
    repo_option,
    json_option,
)


def _job_command(
    name: str, short_help: str, python_of: Callable[[dict[str, Any]], str | None]
) -> Callable[[Callable[..., JobService]], Any]:
    """A command of the group: what it decorates makes the job, and this runs it.

    Args:
        name: of the command.
        short_help: in the group's list.
        python_of: the version of the job's Python by what was chosen; None where not known.
    """

    def decorate(make: Callable[..., JobService]) -> Any:
        def run(output: Output, repo: Path, region: str | None, **choices: Any) -> None:
            checked = tuple(choices["command"])
            check_command(checked, click.get_current_context().find_root().command)
            packed = _Packed.pack(repo, region, choices, python_of(choices), output)
            _run(make(packed, **choices), packed, choices, output)

        # Those of the service come first in its help.
        made: Any = make
        of_service = list(made.__click_params__)
        made.__click_params__.clear()
        decorated: Any = functools.wraps(make)(run)
        for option in reversed(OPTIONS):
            decorated = option(decorated)
        decorated.__click_params__.extend(of_service)
        settings = {"allow_interspersed_args": False}
        return submit.command(name, short_help=short_help, context_settings=settings)(decorated)

    return decorate


role_option = click.option("--role", required=True, metavar="ARN", help="Role of the job.")
py_files_option = click.option(
    "--py-files",
    multiple=True,
    metavar="PATH",
    help="A .py or .zip for driver and executors, here or on S3.",
)


def _python_of_glue(choices: dict[str, Any]) -> str | None:
    from feast_dynamo_ext.submit.glue_job import PYTHONS

    return PYTHONS.get(choices["glue_version"])


@_job_command("glue", "On AWS Glue, with Spark.", _python_of_glue)
@role_option
@click.option("--glue-version", default="5.1", show_default=True)
@click.option("--worker-type", default="G.1X", show_default=True)
@click.option("--workers", type=int, default=2, show_default=True, help="The driver counted.")
@click.option("--flex", is_flag=True, help="On spare capacity: cheaper, and may start late.")
@py_files_option
@click.option(
    "--argument", "arguments", multiple=True, metavar="--KEY=VALUE", callback=pairs,
    help="Of Glue's own, for example --enable-metrics=true.",
)  # fmt: skip
@click.option("--connection", "connections", multiple=True, metavar="NAME", help="A network.")
@click.option("--security-configuration", metavar="NAME", help="Encrypts what Glue writes.")
def glue(packed: _Packed, **choices: Any) -> JobService:
    """Run COMMAND as a job of AWS Glue.

    \b
    feast-dynamo submit glue --role glue-features --destination s3://my-features/jobs \\
        --worker-type G.2X --workers 10 -- feast-dynamo materialize 2026-01-01 2026-02-01

    A job is defined for the command and run once. Glue's pip installs the package, and what it
    requires in the versions that are installed here.
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.submit.glue_job import GlueJob, GlueSettings

    files = packed.placed("modules", choices["py_files"])
    settings = GlueSettings(
        role=choices["role"],
        glue_version=choices["glue_version"],
        worker_type=choices["worker_type"],
        workers=choices["workers"],
        timeout_minutes=_minutes(choices["max_runtime"]),
        flex=choices["flex"],
        py_files=files.uris,
        spark=choices["spark"],
        arguments=choices["arguments"],
        connections=choices["connections"],
        security_configuration=choices["security_configuration"],
    )
    return GlueJob(
        packed.bundle, settings, packed.aws.services, uploads=files.uploads, **_named(choices)
    )


@_job_command(
    "emr-serverless", "On an application of EMR Serverless, with Spark.", lambda _choices: None
)
@click.option("--application", required=True, metavar="ID", help="Of EMR Serverless.")
@role_option
@click.option(
    "--environment",
    "archive",
    metavar="PATH",
    help="Archive of venv-pack, here or on S3. Default: all is in the application's image.",
)
@py_files_option
@click.option("--log-group", metavar="NAME", help="Of CloudWatch, for the log as it comes.")
def emr_serverless(packed: _Packed, **choices: Any) -> JobService:
    """Run COMMAND as a job of an application of EMR Serverless.

    \b
    python -m venv environment && environment/bin/pip install feast-dynamo-ext venv-pack
    environment/bin/venv-pack -p environment -o environment.tar.gz
    feast-dynamo submit emr-serverless --application 00f1abc2defg3h4i --role arn:aws:iam::... \\
        --environment environment.tar.gz --destination s3://my-features/jobs \\
        -- feast-dynamo materialize 2026-01-01 2026-02-01

    The environment has to be packed on a Linux as the application's, with a Python of 3.10 or
    newer. This package comes from here, whatever version of it the environment has.
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.submit.emr_serverless_job import EmrServerlessJob, EmrServerlessSettings

    files = packed.placed("modules", choices["py_files"])
    archive = packed.placed("environments", [choices["archive"]] if choices["archive"] else [])
    settings = EmrServerlessSettings(
        application=choices["application"],
        role=choices["role"],
        archive=next(iter(archive.uris), None),
        timeout_minutes=_minutes(choices["max_runtime"]),
        py_files=files.uris,
        spark=choices["spark"],
        log_group=choices["log_group"],
    )
    return EmrServerlessJob(
        packed.bundle,
        settings,
        packed.aws.services,
        packed.aws.s3,
        uploads=(*archive.uploads, *files.uploads),
        **_named(choices),
    )


def _python_of_processing(choices: dict[str, Any]) -> str | None:
    from feast_dynamo_ext.submit.processing_job import PYTHON, SPARK_PYTHON

    of_aws = SPARK_PYTHON if choices["is_spark"] else PYTHON
    return None if choices["image"] else of_aws


@_job_command(
    "processing", "On SageMaker Processing, with Spark or without.", _python_of_processing
)
@click.option(
    "--role", required=True, metavar="ARN", envvar="SAGEMAKER_ROLE_ARN", help="Of the job."
)
@click.option(
    "--image",
    metavar="URI",
    help="Container with Python 3.10 and pip. Default: AWS's scikit-learn.",
)
@click.option("--spark", "is_spark", is_flag=True, help="In AWS's Spark container, or in --image.")
@click.option("--instance-type", default="ml.m5.xlarge", show_default=True)
@click.option("--instances", type=int, default=1, show_default=True)
@click.option("--volume-gb", type=int, default=30, show_default=True)
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=URI", callback=pairs,
    help="Found below /opt/ml/processing/input/NAME.",
)  # fmt: skip
@click.option(
    "--output", "outputs", multiple=True, metavar="NAME=URI", callback=pairs,
    help="Gets what is left in /opt/ml/processing/output/NAME.",
)  # fmt: skip
@click.option("--kms-key", metavar="KEY", help="Encrypts the outputs.")
@click.option("--volume-kms-key", metavar="KEY", help="Encrypts the instances' disks.")
@click.option("--subnet", "subnets", multiple=True, metavar="ID")
@click.option("--security-group", "security_groups", multiple=True, metavar="ID")
def processing(packed: _Packed, **choices: Any) -> JobService:
    """Run COMMAND as a processing job of SageMaker.

    \b
    feast-dynamo submit processing --role arn:aws:iam::... --destination s3://my-features/jobs \\
        --instance-type ml.m5.4xlarge -- feast-dynamo training-set build churn

    When the job begins, pip installs the package, and what it requires in the versions that are
    installed here. With --spark the command runs beside Spark 3.5.
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.training_images import image_uri, spark_image_uri
    from feast_dynamo_ext.sagemaker.training_job import Vpc
    from feast_dynamo_ext.submit.processing_job import ProcessingJob, ProcessingSettings

    region = packed.bundle.region
    subnets, groups = choices["subnets"], choices["security_groups"]
    known = spark_image_uri if choices["is_spark"] else functools.partial(image_uri, "sklearn")
    settings = ProcessingSettings(
        role=choices["role"],
        image=choices["image"] or known(region),
        is_spark=choices["is_spark"],
        instance_type=choices["instance_type"],
        instances=choices["instances"],
        volume_gb=choices["volume_gb"],
        max_runtime_s=choices["max_runtime"],
        inputs=choices["inputs"],
        outputs=choices["outputs"],
        spark=choices["spark"],
        vpc=Vpc(subnets, groups) if subnets or groups else None,
        kms_key=choices["kms_key"],
        volume_kms_key=choices["volume_kms_key"],
    )
    return ProcessingJob(packed.bundle, settings, packed.aws.services, **_named(choices))


def _named(choices: dict[str, Any]) -> dict[str, Any]:
    return {key: choices[key] for key in ("name", "token", "tags")}


def _minutes(seconds: int) -> int:
    return max(1, -(-seconds // 60))


# What is packed


class _Placed:
    """Files that a job names: of this disk, which are uploaded, or on S3 already."""

    def __init__(self, destination: str, kind: str, paths: Sequence[str]) -> None:
        from feast_dynamo_ext.submit.job_bundle import file_upload

        self.uploads: list[Upload] = []
        self.uris: list[str] = []
        for path in paths:
            if path.startswith("s3://"):
                self.uris.append(path)
                continue
            upload = file_upload(destination, kind, Path(path))
            self.uploads.append(upload)
            self.uris.append(upload.uri)


class _Packed:
    """What all three commands pack."""

    def __init__(self, bundle: JobBundle, aws: AwsAccess) -> None:
        self.bundle, self.aws = bundle, aws

    @classmethod
    def pack(
        cls,
        repo: Path,
        region: str | None,
        choices: dict[str, Any],
        python: str | None,
        output: Output,
    ) -> _Packed:
        from feast_dynamo_ext.aws import session
        from feast_dynamo_ext.submit.job_bundle import JobBundle
        from feast_dynamo_ext.submit.repo_archive import pack_repo
        from feast_dynamo_ext.submit.wheel import (
            checked_requirement,
            given_wheel,
            installed_wheel,
            requirements,
        )

        _refuse_local(repo, copied=choices["copy_local"])
        aws = aws_access(repo, region)
        archive = pack_repo(repo, exclude=choices["exclude"], most_bytes=choices["max_size"])
        wheel = given_wheel(choices["wheel"]) if choices["wheel"] else installed_wheel()
        required = requirements(wheel, choices["extras"] or None, python)
        besides = tuple(checked_requirement(text) for text in choices["requirements"])
        bundle = JobBundle(
            command=tuple(choices["command"]),
            repo=archive,
            wheel=wheel,
            requirements=(*required, *besides),
            environment=choices["environment"],
            region=session(aws.services).region_name,
            destination=choices["destination"],
        )
        _note_packed(archive, wheel, output)
        return cls(bundle, aws)

    def placed(self, kind: str, paths: Sequence[str]) -> _Placed:
        return _Placed(self.bundle.destination, kind, paths)


def _note_packed(archive: RepoArchive, wheel: Wheel, output: Output) -> None:
    output.note(
        f"Packed {counted(len(archive.files), 'file')} of the repo "
        f"({short(len(archive.data))}B) and {wheel.name} ({short(len(wheel.data))}B)."
    )
    if archive.secrets:
        output.note(f"Left out as secrets: {', '.join(archive.secrets)}.")


def _refuse_local(repo: Path, *, copied: bool) -> None:
    """Refuse what a job would not reach, or would change in a copy that is lost with it."""
    from feast_dynamo_ext.aws import is_on_loopback
    from feast_dynamo_ext.local_state import has_local_catalog, local_registry
    from feast_dynamo_ext.submit.repo_archive import refuse_written_secrets

    store = open_store(repo)
    refuse_written_secrets(repo / "feature_store.yaml")
    for block in ("online_store", "offline_store"):
        url = getattr(getattr(store.config, block), "endpoint_url", None)
        if is_on_loopback(url):
            raise ConfigError(
                f"`endpoint_url` of {block} is `{url}`, which is this machine: a job on AWS would "
                "not reach it. Submit from a repo that is configured for AWS."
            )
    if copied:
        return
    path = local_registry(store.config)
    if path is not None:
        raise ConfigError(
            f"`registry` of feature_store.yaml is the file `{path}`. The job would work on a "
            "copy, and what it changes there would be lost with it. Put the registry on S3 "
            "(`registry: s3://bucket/registry.db`), or take a copy along: --copy-local."
        )
    if has_local_catalog(store.config):
        raise ConfigError(
            "offline_store of feature_store.yaml: `catalog` is a file of SQLite. The job would "
            "work on a copy, and what it changes there would be lost with it. Take `catalog: "
            "{type: glue, warehouse: s3://bucket/prefix}`, or take a copy along: --copy-local."
        )


# The command


def check_command(words: Sequence[str], ours: click.Command) -> None:
    """Refuse a command that would only fail once its job has started.

    Raises:
        click.UsageError: a program, subcommand, option or argument that is not there.
    """
    program, rest = words[0], list(words[1:])
    if program not in PROGRAMS:
        raise click.UsageError(
            f"A job runs {', '.join(PROGRAMS)}, and not `{program}`. Write `-- feast-dynamo "
            "materialize ...`."
        )
    if program == "feast-dynamo":
        if rest and rest[0] in NOT_IN_A_JOB:
            raise click.UsageError(f"`feast-dynamo {rest[0]}` is for this machine, not for a job.")
        _check_words(program, ours, rest)
    elif program == "feast":
        from feast.cli.cli import cli

        _check_words(program, cli, rest)


def _check_words(
    name: str, command: click.Command, words: list[str], parent: click.Context | None = None
) -> None:
    from feast_dynamo_ext.config import did_you_mean

    # As click makes it: a command keeps the help option that its first context gave it.
    context = click.Context(command, parent, name, **command.context_settings)
    try:
        _, left, _ = command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        raise click.UsageError(f"`{name}`: {error.format_message()}") from error
    if not isinstance(command, click.Group):
        missing = _missing(command, context, words)
        if missing or left:
            fault = f"misses {missing}" if missing else f"takes no `{left[0]}`"
            raise click.UsageError(f"`{name}` {fault}.")
        return
    if not left:
        raise click.UsageError(f"`{name}` needs a command of its own after it.")
    found = command.get_command(context, left[0])
    if found is None:
        hint = did_you_mean(left[0], command.list_commands(context), "It has")
        raise click.UsageError(f"`{name}` has no command `{left[0]}`. {hint}")
    _check_words(f"{name} {left[0]}", found, left[1:], context)


def _missing(command: click.Command, context: click.Context, words: list[str]) -> str:
    """The first argument or option that a command requires and is not given."""
    given, _, _ = command.make_parser(context).parse_args(list(words))
    for parameter in command.get_params(context):
        value = given.get(parameter.name or "")
        is_missing = value is None or parameter.value_is_missing(value)
        if parameter.required and is_missing and not parameter.envvar:
            return parameter.make_metavar(context)
    return ""


# The job


def _run(service: JobService, packed: _Packed, choices: dict[str, Any], output: Output) -> None:
    from feast_dynamo_ext.submit.submitted_job import submit_job

    service.check()
    if choices["dry_run"]:
        output.show(service.requests, json.dumps(service.requests, indent=2))
        return
    sent = [upload.size for upload in service.uploads if upload.send(packed.aws.s3)]
    if sent:
        output.note(f"Uploaded {counted(len(sent), 'file')} ({short(sum(sent))}B).")
    found = submit_job(service, only_once=bool(choices["token"]), poll_s=choices["poll_s"])
    job = found.job
    output.note(f"{'Started' if found.is_new else 'Found'} {service.subject}: {job.console}")
    if not choices["wait"]:
        output.show(_shown(job), job.id)
        return
    ended = _followed(service, job, choices, output)
    text = f"{ended.name}: {ended.status}, {ended.seconds:,} s"
    output.show(_shown(ended), text)


def _followed(
    service: JobService, job: SubmittedJob, choices: dict[str, Any], output: Output
) -> SubmittedJob:
    from feast_dynamo_ext.submit.submitted_job import JobNews, follow_job

    progress = JobProgress()
    news = JobNews(progress.status, progress.line, output.note)
    try:
        with sigterm_as_exit():
            return follow_job(service, job, news, poll_s=choices["poll_s"])
    except (KeyboardInterrupt, SystemExit):
        for text in _interrupted(service, job, stops=choices["stop_on_interrupt"]):
            output.note(text)
        raise


def _interrupted(service: JobService, job: SubmittedJob, *, stops: bool) -> Iterator[str]:
    if stops:
        service.stop(job.id)
        yield f"\nStopping {service.subject}."
        return
    yield (
        f"\nThe job goes on. The same command follows it again; this stops it: "
        f"{service.stop_command(job.id)}"
    )


def _shown(job: SubmittedJob) -> dict[str, Any]:
    return {
        "name": job.name,
        "id": job.id,
        "status": job.status,
        "seconds": job.seconds,
        "console": job.console,
    }
