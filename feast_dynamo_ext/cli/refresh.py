"""feast-dynamo refresh: from what is new in the tables to a model, here or on a schedule."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.named_table import source_of
from feast_dynamo_ext.cli.repo import (
    Output,
    aws_access,
    aws_of,
    check_repo,
    json_option,
    open_store,
    region_option,
    repo_option,
)
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.figures import NOTHING, count, duration
from feast_dynamo_ext.figures import table as aligned
from feast_dynamo_ext.progress import Steps, shown

if TYPE_CHECKING:
    from feast import FeatureStore

    from feast_dynamo_ext.sagemaker.pipeline.local_run import LocalPipelineRun
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import (
        Capture,
        PipelineDeclaration,
    )

AS_DECLARED = "as declared"


@click.command(short_help="Bring a model up to date with its tables.")
@click.argument("name", required=False)
@click.option(
    "--force",
    multiple=True,
    metavar="STEP",
    help="Run this step in any case, for example Train. May be given more than once.",
)
@click.option(
    "--output",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of results and state. Default: .pipelines/NAME in the repo.",
)
@click.option("--registry", is_flag=True, help="Register the model with SageMaker.")
@click.option(
    "--schedule",
    "expression",
    is_flag=False,
    flag_value=AS_DECLARED,
    metavar="[WHEN]",
    help='Have SageMaker run it: "rate(1 day)", "cron(0 6 * * ? *)". Without WHEN: as declared.',
)
@click.option(
    "--role",
    metavar="ARN",
    help="Of --schedule: what EventBridge Scheduler starts it with.  [default: as declared]",
)
@click.option("--remove", is_flag=True, help="Take the schedule away again.")
@region_option
@repo_option
@json_option
def refresh(
    name: str | None,
    *,
    force: tuple[str, ...],
    folder: Path | None,
    registry: bool,
    expression: str | None,
    role: str | None,
    remove: bool,
    region: str | None,
    repo: Path,
    output: Output,
) -> None:
    """Capture what is new, and do what follows from it, up to a registered model.

    The steps are those that pipelines/NAME.yaml declares: capture tables, prepare features and
    labels, materialize, build the training set, train, evaluate, register. A step is skipped
    where all that it reads is as it was: files, tables, scripts, settings, and the versions of
    what is installed. So where the tables have nothing new, nothing runs after Capture. A step
    that fails ends the run; the next one goes on there.

    The model is registered as a JSON file, or with --registry as a model package of SageMaker.
    NAME may be left out where the repo has one pipeline.

    With --schedule nothing runs here: the same steps are made a pipeline of SageMaker, and
    EventBridge Scheduler starts it. What is there as declared stays as it is.

    \b
    feast-dynamo refresh
    feast-dynamo refresh churn --force Train
    feast-dynamo refresh churn --schedule "rate(1 day)"
    feast-dynamo refresh churn --remove
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import (
        only_pipeline,
        read_pipeline,
    )

    _check_options(expression, role, force, folder, remove=remove, registry=registry)
    check_repo(repo)
    declaration = read_pipeline(repo, name or only_pipeline(repo))
    if remove:
        _remove(declaration, repo, region, output)
    elif expression is not None:
        wanted = None if expression == AS_DECLARED else expression
        _schedule(declaration, wanted, role, repo, region, output)
    else:
        # What Feast prints on the way is none of the answer.
        with contextlib.redirect_stdout(sys.stderr):
            store = open_store(repo)
            found = _run(
                declaration, store, repo, folder, region, force, output, registry=registry
            )
        _show(declaration, found, output)


def _check_options(
    expression: str | None,
    role: str | None,
    force: tuple[str, ...],
    folder: Path | None,
    *,
    remove: bool,
    registry: bool,
) -> None:
    of_runs = bool(force) or folder is not None or registry
    if remove and (of_runs or expression is not None or role is not None):
        raise click.UsageError("--remove goes with no other choice: it takes the schedule away.")
    if role is not None and expression is None:
        raise click.UsageError("--role is of --schedule.")
    if expression is not None and of_runs:
        raise click.UsageError(
            "--force, --output and --registry are of a run on this machine; --schedule has "
            "SageMaker run it."
        )


# A run on this machine


def _run(
    declaration: PipelineDeclaration,
    store: FeatureStore,
    repo: Path,
    folder: Path | None,
    region: str | None,
    force: tuple[str, ...],
    output: Output,
    *,
    registry: bool,
) -> LocalPipelineRun:
    from feast_dynamo_ext.sagemaker.pipeline.local_run import run_pipeline_locally
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import RESULTS

    capture = None
    if declaration.capture is not None:
        capture = functools.partial(capture_source, store, declaration.capture)
    return run_pipeline_locally(
        declaration,
        repo.absolute(),
        store,
        folder=folder or repo / RESULTS / declaration.name,
        aws=aws_of(store, region).s3,
        capture=capture,
        force=force,
        registry=registry,
        say=output.note,
    )


def capture_source(store: FeatureStore, how: Capture, name: str) -> str:
    """Capture one source as a pipeline declares, and say what it brought.

    Raises:
        ConfigError: there is no such source.
        CaptureError, AwsError: as `feast-dynamo capture sync`.
    """
    from feast_dynamo_ext.capture.captured import capture_of, columns_of
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client
    from feast_dynamo_ext.capture.exports.export_jobs import ExportTarget
    from feast_dynamo_ext.capture.exports.table_scan import scan

    source = source_of(store, name)
    client = dynamodb_client(store.config)
    table = DynamoTable.from_table(client, source)
    run = capture_of(source, table, store.config)
    if how.scan:
        steps = Steps(source.name, table.items, "items")
        with shown(steps):
            scanned = scan(
                client,
                table,
                columns_of(source, table),
                run.history,
                units_per_s=how.read_units,
                read=steps.advance,
            )
        return _brought(scanned.items, "items", scanned.rows, scanned.quarantined)
    target = ExportTarget.from_uri(
        how.exports or f"{source.history.rstrip('/')}-exports", how.kms_key
    )
    with shown(run.progress):
        result = run.sync(client, table, target)
    counts = [each.counts for each in result.captured]
    until = "" if result.until is None else f", until {result.until:%Y-%m-%d %H:%M:%S}Z"
    records, rows = (sum(getattr(each, of) for each in counts) for of in ("records", "rows"))
    return _brought(records, "records", rows, sum(each.quarantined for each in counts)) + until


def _brought(read: int, unit: str, rows: int, quarantined: int) -> str:
    more = f", {count(quarantined)} more in quarantine" if quarantined else ""
    return f"{count(read)} {unit}, {count(rows)} new rows{more}"


def _show(declaration: PipelineDeclaration, found: LocalPipelineRun, output: Output) -> None:
    rows = [
        (
            step.name,
            step.outcome,
            duration(step.seconds) if step.outcome == "done" else NOTHING,
            step.why,
        )
        for step in found.steps
    ]
    done = sum(step.outcome == "done" for step in found.steps)
    heads = ("step", "outcome", "time", "why")
    parts = [aligned(heads, rows, words=("step", "outcome", "why"))]
    if found.metrics:
        heads = ("metric", "before", "now", "change")
        values = [(path, *_figures(*both)) for path, both in found.metrics.items()]
        parts.append(aligned(heads, values, words=("metric",)))
    parts.append(f"{done} of {len(found.steps)} steps run. Registered: {found.package}")
    output.show(
        {
            "pipeline": declaration.name,
            "steps": [
                {
                    "name": step.name,
                    "outcome": step.outcome,
                    "seconds": round(step.seconds, 3),
                    "why": step.why,
                    "detail": step.detail,
                }
                for step in found.steps
            ],
            "metric": found.metric,
            "metrics": {
                path: {"before": before, "now": now}
                for path, (before, now) in found.metrics.items()
            },
            "training_set": found.training_set,
            "model": found.model,
            "package": found.package,
        },
        "\n\n".join(parts),
    )


def _figures(before: float | None, now: float | None) -> tuple[str, str, str]:
    def shown_(value: float | None) -> str:
        return NOTHING if value is None else f"{value:,.6g}"

    if before is None or now is None:
        return shown_(before), shown_(now), NOTHING
    return shown_(before), shown_(now), f"{now - before:+,.3g}" if now != before else "0"


# On SageMaker


def _schedule(
    declaration: PipelineDeclaration,
    expression: str | None,
    role: str | None,
    repo: Path,
    region: str | None,
    output: Output,
) -> None:
    from feast_dynamo_ext.sagemaker.pipeline import schedule as on_aws
    from feast_dynamo_ext.sagemaker.pipeline.repo_parts import read_parts

    scheduled = on_aws.scheduled(declaration, expression, role)
    access = aws_access(repo, region)
    parts = read_parts(scheduled, repo)
    # Both are checked before anything is sent.
    on_aws.check_schedule(scheduled)
    of_pipeline = on_aws.upsert_pipeline(scheduled, parts, access.s3)
    of_schedule = on_aws.upsert_schedule(scheduled, access.services)
    when = on_aws.declared_schedule(scheduled).expression
    output.show(
        {
            "pipeline": declaration.name,
            "pipeline_outcome": of_pipeline,
            "schedule": when,
            "schedule_outcome": of_schedule,
        },
        f"Pipeline {declaration.name}: {of_pipeline}. Schedule {when}: {of_schedule}.",
    )


def _remove(
    declaration: PipelineDeclaration, repo: Path, region: str | None, output: Output
) -> None:
    from feast_dynamo_ext.sagemaker.pipeline.schedule import remove_schedule

    outcome = remove_schedule(declaration.name, aws_access(repo, region).services)
    stays = "The pipeline stays in SageMaker with its executions; it costs nothing."
    output.show(
        {"pipeline": declaration.name, "schedule_outcome": outcome},
        f"Schedule {declaration.name}: {outcome}. {stays}",
    )


def capture_all(repo: Path, declaration: PipelineDeclaration) -> dict[str, Any]:
    """Capture what a pipeline declares: by source, what it brought.

    Raises:
        ConfigError: it declares nothing to capture. Otherwise as `capture_source`.
    """
    if declaration.capture is None:
        raise ConfigError(f"Pipeline {declaration.name} declares no `capture`.")
    store = open_store(repo)
    how = declaration.capture
    return {name: capture_source(store, how, name) for name in how.sources}
