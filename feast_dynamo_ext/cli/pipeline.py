"""`feast-dynamo pipeline`: a declared pipeline on SageMaker, or on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from feast_dynamo_ext._feast import feasts_errors
from feast_dynamo_ext.cli.repo import (
    InOrder,
    Output,
    aws_access,
    aws_of,
    json_option,
    open_store,
    region_option,
    repo_option,
)

pipeline_argument = click.argument("name")


@click.group(cls=InOrder)
def pipeline() -> None:
    """Refresh a model: materialize, build its set, train, evaluate, register.

    A pipeline is declared in the feature repo, in pipelines/NAME.yaml.

    \b
    feast-dynamo pipeline run churn --local
    feast-dynamo pipeline upsert churn
    feast-dynamo pipeline start churn
    feast-dynamo pipeline schedule churn
    """  # noqa: D301 - click keeps the lines after \b as they are


@pipeline.command(short_help="Run the steps that have something new to do.")
@pipeline_argument
@click.option("--local", is_flag=True, help="On this machine; `start` runs it on SageMaker.")
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
@region_option
@repo_option
@json_option
def run(
    name: str,
    *,
    local: bool,
    force: tuple[str, ...],
    folder: Path | None,
    registry: bool,
    region: str | None,
    repo: Path,
    output: Output,
) -> None:
    """Run pipeline NAME on this machine: the same steps as on SageMaker.

    A step is passed over when all that it reads is as it was: the sources' files, the set, the
    script, the settings, and the versions of what is installed. A step that fails ends the run;
    the next one goes on there. The model is registered as a JSON file, or with --registry as a
    model package of SageMaker.

    \b
    feast-dynamo pipeline run churn --local
    feast-dynamo pipeline run churn --local --force Train
    """  # noqa: D301 - click keeps the lines after \b as they are
    if not local:
        raise click.UsageError(
            "Add --local to run it here, or use `feast-dynamo pipeline start` for SageMaker."
        )
    from feast_dynamo_ext.sagemaker.pipeline.local_run import run_pipeline_locally
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline

    declaration = read_pipeline(repo, name)
    store = open_store(repo)
    found = run_pipeline_locally(
        declaration,
        repo.absolute(),
        store,
        folder=folder or repo / ".pipelines" / declaration.name,
        aws=aws_of(store, region).s3,
        force=force,
        registry=registry,
        say=output.note,
    )
    data = {
        "steps": {step.name: step.outcome for step in found.steps},
        "metric": found.metric,
        "training_set": found.training_set,
        "model": found.model,
        "package": found.package,
    }
    done = sum(step.outcome == "done" for step in found.steps)
    output.show(data, f"{done} of {len(found.steps)} steps run. Registered: {found.package}")


@pipeline.command(short_help="Print the definition that SageMaker is given.")
@pipeline_argument
@repo_option
def render(name: str, repo: Path) -> None:
    """Print the definition of pipeline NAME, as JSON, once every step of it is checked.

    Nothing is sent. Scripts are named by the hash of their content.

    \b
    feast-dynamo pipeline render churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.pipeline import rendering
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline

    declaration = read_pipeline(repo, name)
    definition = rendering.render(declaration, rendering.read_parts(declaration, repo))
    click.echo(json.dumps(definition, indent=2))


@pipeline.command(short_help="Make the pipeline in SageMaker, or change it.")
@pipeline_argument
@region_option
@repo_option
@json_option
def upsert(name: str, region: str | None, repo: Path, output: Output) -> None:
    """Upload the scripts of pipeline NAME and make it in SageMaker, or change it.

    A pipeline that is as declared already stays as it is.

    \b
    feast-dynamo pipeline upsert churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.pipeline import schedule as on_aws
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline
    from feast_dynamo_ext.sagemaker.pipeline.rendering import read_parts

    declaration = read_pipeline(repo, name)
    access = aws_access(repo, region)
    outcome = on_aws.upsert_pipeline(declaration, read_parts(declaration, repo), access.s3)
    output.show(
        {"pipeline": declaration.name, "outcome": outcome},
        f"Pipeline {declaration.name}: {outcome}.",
    )


@pipeline.command(short_help="Start the pipeline in SageMaker.")
@pipeline_argument
@click.option(
    "--parameter",
    "-p",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value in place of a default, for example Threshold=0.8.",
)
@click.option("--token", help="The same token starts one execution only.")
@region_option
@repo_option
@json_option
def start(
    name: str,
    parameters: tuple[str, ...],
    token: str | None,
    region: str | None,
    repo: Path,
    output: Output,
) -> None:
    """Start pipeline NAME in SageMaker, which `upsert` made.

    \b
    feast-dynamo pipeline start churn -p Threshold=0.8
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.pipeline import schedule as on_aws
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline
    from feast_dynamo_ext.sagemaker.pipeline.rendering import checked_parameters

    declaration = read_pipeline(repo, name)
    values = checked_parameters(declaration, parameters)
    arn = on_aws.start_pipeline(declaration.name, values, aws_access(repo, region).services, token)
    output.show({"execution": arn}, f"Started {arn}")


@pipeline.command(short_help="Have EventBridge start the pipeline.")
@pipeline_argument
@region_option
@repo_option
@json_option
def schedule(name: str, region: str | None, repo: Path, output: Output) -> None:
    """Make the schedule that pipeline NAME declares in EventBridge Scheduler, or change it.

    A schedule that is as declared already stays as it is.

    \b
    feast-dynamo pipeline schedule churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.pipeline import schedule as on_aws
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline

    declaration = read_pipeline(repo, name)
    outcome = on_aws.upsert_schedule(declaration, aws_access(repo, region).services)
    expression = on_aws.declared_schedule(declaration).expression
    output.show(
        {"schedule": declaration.name, "expression": expression, "outcome": outcome},
        f"Schedule {declaration.name} ({expression}): {outcome}.",
    )


@pipeline.command("build-set", short_help="Build the training set that a pipeline declares.")
@pipeline_argument
@click.option("--output", "place", required=True, help="S3 URI or folder of the set.")
@click.option(
    "--summary",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the set's place, its manifest's hash and its rows, as JSON.",
)
@click.option("--if-absent", is_flag=True, help="Take the set that is there, if there is one.")
@repo_option
@json_option
def build_set(
    name: str, place: str, summary: Path | None, *, if_absent: bool, repo: Path, output: Output
) -> None:
    """Build the set that pipeline NAME names; its step BuildTrainingSet runs this.

    \b
    feast-dynamo pipeline build-set churn --output s3://bucket/sets/1
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.declared_sets import build_training_set
    from feast_dynamo_ext.sagemaker.pipeline import step_inputs
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline
    from feast_dynamo_ext.sagemaker.pipeline.rendering import read_parts

    declaration = read_pipeline(repo, name)
    definition = read_parts(declaration, repo).definition
    store = open_store(repo)
    aws = aws_of(store).s3
    found = step_inputs.set_at(definition, place, aws) if if_absent else None
    if found is None:
        with feasts_errors():
            found = build_training_set(store, definition, repo=repo, overwrite=False, output=place)
    data = step_inputs.set_summary(found, aws)
    if summary is not None:
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    output.show(data, f"{found.output}: {sum(data['rows'].values()):,} rows")
