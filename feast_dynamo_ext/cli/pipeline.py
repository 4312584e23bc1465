"""`feast-dynamo pipeline`: a declared pipeline on SageMaker, and what its steps run there."""

from __future__ import annotations

import json
from pathlib import Path

import click

from feast_dynamo_ext._feast import feasts_errors
from feast_dynamo_ext.cli.named_table import answer_on_stdout
from feast_dynamo_ext.cli.refresh import capture_all
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
from feast_dynamo_ext.errors import ConfigError, PipelineError

pipeline_argument = click.argument("name")


@click.group(
    cls=InOrder, short_help="The pipeline of a model in SageMaker: render, upsert, start."
)
def pipeline() -> None:
    """The pipeline of a model in SageMaker, which pipelines/NAME.yaml of the repo declares.

    `feast-dynamo refresh` runs the same steps on this machine, and with --schedule makes the
    pipeline and its schedule.

    \b
    feast-dynamo pipeline render churn
    feast-dynamo pipeline upsert churn
    feast-dynamo pipeline start churn
    """  # noqa: D301 - click keeps the lines after \b as they are


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
    from feast_dynamo_ext.sagemaker.pipeline.repo_parts import read_parts

    declaration = read_pipeline(repo, name)
    definition = rendering.render(declaration, read_parts(declaration, repo))
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
    from feast_dynamo_ext.sagemaker.pipeline.repo_parts import read_parts

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


@pipeline.command("capture", short_help="Capture the tables that a pipeline declares.")
@pipeline_argument
@repo_option
@json_option
def capture_step(name: str, repo: Path, output: Output) -> None:
    """Capture the tables that pipeline NAME names; its step Capture runs this.

    \b
    feast-dynamo pipeline capture churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline

    with answer_on_stdout(output):
        found = capture_all(repo, read_pipeline(repo, name))
    output.show(found, "\n".join(f"{source}: {brought}" for source, brought in found.items()))


@pipeline.command("prepare", short_help="Run the program that makes features of what is captured.")
@pipeline_argument
@repo_option
def prepare_step(name: str, repo: Path) -> None:
    """Run the program that pipeline NAME names in `prepare`; its step Prepare runs this.

    It runs in the repo's folder, and `python` is the one that runs feast-dynamo.

    \b
    feast-dynamo pipeline prepare churn
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import read_pipeline
    from feast_dynamo_ext.sagemaker.pipeline.step_runner import run_program

    declaration = read_pipeline(repo, name)
    if declaration.prepare is None:
        raise ConfigError(f"Pipeline {declaration.name} declares no `prepare`.")
    command = declaration.prepare.command
    try:
        code = run_program(command, repo, {})
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error.strerror}.") from error
    if code:
        raise PipelineError(
            f"{' '.join(command[:2])} ended with exit code {code}.", step="Prepare"
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
    from feast_dynamo_ext.sagemaker.pipeline.repo_parts import read_parts

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
