"""feast-dynamo endpoint: a model that looks its features up, from its archive to its deletion."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from feast_dynamo_ext.cli.repo import (
    FiniteFloat,
    InOrder,
    Output,
    aws_access,
    aws_of,
    json_option,
    open_store,
    region_option,
    repo_option,
    table,
)

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - what a container is reached at

name_argument = click.argument("name", metavar="NAME")


@click.group(cls=InOrder, short_help="A model's endpoint: package, local, deploy, invoke, delete.")
def endpoint() -> None:
    """A model behind HTTP that looks its features up: entity keys in, predictions out.

    `package` writes the archive, `local` serves it on this machine, `deploy` on SageMaker. The
    features, their order and encodings are those of the model's training set.

    \b
    feast-dynamo endpoint package --training-set s3://my-features/sets/churn \\
        --model s3://my-features/jobs/churn/output/model.tar.gz --output s3://my-features/churn.tar.gz
    feast-dynamo endpoint local s3://my-features/churn.tar.gz
    """  # noqa: D301 - click keeps the lines after \b as they are


@endpoint.command(short_help="Write a model's archive, with what its features need.")
@click.option(
    "--training-set",
    "training_set",
    required=True,
    metavar="URI",
    help="What the model was trained on: s3://bucket/prefix or a folder.",
)
@click.option(
    "--model",
    required=True,
    metavar="URI",
    help="What training wrote: model.tar.gz, a folder, or a file of XGBoost (.json, .ubj).",
)
@click.option("--output", "destination", required=True, metavar="URI", help="The archive.")
@click.option(
    "--code",
    type=click.Path(exists=True, path_type=Path),
    help="An inference.py with `predict(matrix)`, or its folder.  [default: XGBoost]",
)
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For code/requirements.txt.  [default: this version of feast-dynamo-ext]",
)
@click.option(
    "--live-registry/--no-live-registry",
    default=None,
    help="Compare definitions with the repo's registry whenever a worker starts.  "
    "[default: if it is on S3]",
)
@click.option("--max-rows", type=click.IntRange(1), help="Rows of a request.  [default: 1000]")
@click.option(
    "--max-wait-ms",
    type=FiniteFloat(0),
    help="Milliseconds that requests wait for others.  [default: 1]",
)
@repo_option
@json_option
def package(
    repo: Path,
    output: Output,
    *,
    training_set: str,
    model: str,
    destination: str,
    code: Path | None,
    requirements: Path | None,
    live_registry: bool | None,
    max_rows: int | None,
    max_wait_ms: float | None,
) -> None:  # fmt: skip
    """Write a model's archive: the model, its training set's manifest, and a registry snapshot.

    Definitions that are not those of the training set are an error: the model would be given
    other features than it has learned from. No secret is written; the same input gives the same
    bytes.

    \b
    feast-dynamo endpoint package --training-set training/churn --model model.ubj \\
        --output churn.tar.gz
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.manifest import load_manifest
    from feast_dynamo_ext.sagemaker.serving.package import package_model

    store = open_store(repo)
    aws = aws_of(store).s3
    given = {"max_rows": max_rows, "max_wait_ms": max_wait_ms}
    made = package_model(
        store,
        load_manifest(training_set, aws),
        model=model,
        output=destination,
        aws=aws,
        code=code,
        requirements=requirements.read_text() if requirements else None,
        live_registry=_registry(store, wanted=live_registry),
        options={key: value for key, value in given.items() if value is not None},
    )
    columns = [column.name for column in made.settings.columns]
    data = {"uri": made.uri, "bytes": made.bytes, "sha256": made.sha256, "files": [*made.files]}
    output.show(
        data | {"columns": columns},
        f"{made.uri}: {made.bytes:,} bytes, {len(made.files)} files. A request has "
        f"{', '.join(columns)}.\nServe it here: feast-dynamo endpoint local {made.uri}",
    )


def _registry(store: Any, *, wanted: bool | None) -> str | None:
    path = str(store.config.registry.path)
    is_on_s3 = path.startswith("s3://")
    if not (is_on_s3 if wanted is None else wanted):
        return None
    return path if is_on_s3 else str(Path(store.config.repo_path or ".", path).absolute())


@endpoint.command(short_help="Serve an archive on this machine.")
@click.argument("archive", metavar="ARCHIVE")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    help="Port.  [default: SAGEMAKER_BIND_TO_PORT, else 8080]",
)
@region_option
def local(archive: str, host: str, port: int | None, region: str | None) -> None:  # fmt: skip
    """Serve an archive, or the folder that it was unpacked into, on this machine until Ctrl-C.

    GET /ping, POST /invocations and GET /execution-parameters are as in a container; /docs is a
    page to try requests on.

    \b
    feast-dynamo endpoint local churn.tar.gz --port 8081
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.serving.app import port_of_environment, serve
    from feast_dynamo_ext.sagemaker.serving.package import unpack

    chosen = port or port_of_environment()
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(archive)
        if not model_dir.is_dir():
            unpack(archive, Path(folder), aws_access(region=region).services)
            model_dir = Path(folder)
        click.echo(
            f"Serving on http://{host}:{chosen}, try it on /docs. Ctrl-C ends it.", err=True
        )
        serve(model_dir, host=host, port=chosen)


@endpoint.command("serve", short_help="Serve /opt/ml/model, as SageMaker starts a container.")
@click.option(
    "--model-dir",
    type=click.Path(path_type=Path),
    default="/opt/ml/model",
    show_default=True,
    envvar="FEAST_DYNAMO_MODEL_DIR",
    help="Where the archive was unpacked.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    envvar="SAGEMAKER_MODEL_SERVER_WORKERS",
    help="Processes.",
)
@click.option("--host", default=ANY_ADDRESS, show_default=True, help="Address to listen on.")
def serve_command(model_dir: Path, workers: int, host: str) -> None:  # fmt: skip
    """Serve the model that SageMaker has unpacked, on the port that it expects.

    It is the entry point of a container: SageMaker runs its image with the argument `serve`.

    \b
    feast-dynamo endpoint serve
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.serving.app import serve

    serve(model_dir, host=host, workers=workers)


@endpoint.command(short_help="Create an endpoint on SageMaker, or update it.")
@name_argument
@click.option("--archive", required=True, metavar="URI", help="s3:// URI of the archive.")
@click.option("--image", required=True, help="URI of the container's image in ECR.")
@click.option("--role", required=True, metavar="ARN", help="Role of the endpoint.")
@click.option("--instance-type", default="ml.m5.large", show_default=True, help="Its machine.")
@click.option("--instances", type=int, default=1, show_default=True, help="How many of them.")
@click.option("--serverless", is_flag=True, help="No instances: capacity follows the requests.")
@click.option("--memory-mb", type=int, default=4_096, show_default=True, help="If serverless.")
@click.option("--max-concurrency", type=int, default=5, show_default=True, help="If serverless.")
@click.option(
    "--canary",
    type=click.IntRange(5, 50),
    metavar="PERCENT",
    help="Of an update: the part of the capacity that takes traffic first.",
)
@click.option("--canary-wait-s", type=int, default=300, show_default=True, help="How long.")
@click.option("--alarm", "alarms", multiple=True, help="CloudWatch alarm that rolls it back.")
@click.option("--workers", type=int, default=1, show_default=True, help="Of the model server.")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="A variable.")
@click.option("--subnet", "subnets", multiple=True, help="Of a VPC.")
@click.option("--security-group", "security_groups", multiple=True, help="Of a VPC.")
@click.option("--kms-key", metavar="ID", help="Key of the instances' volumes.")
@click.option("--dry-run", is_flag=True, help="Print the requests; send none.")
@region_option
@json_option
def deploy(name: str, output: Output, *, dry_run: bool, region: str | None, **given: Any) -> None:
    """Create an endpoint of an archive, or bring the one of that name to it.

    Every request is held against AWS's own service model before anything is sent. The same again
    changes nothing. An update keeps the model and config that served before.

    \b
    feast-dynamo endpoint deploy churn --archive s3://my-features/churn.tar.gz --role $ROLE \\
        --image 123456789012.dkr.ecr.eu-west-1.amazonaws.com/churn:1 --canary 10
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.serving.deploy import deploy as bring_up
    from feast_dynamo_ext.sagemaker.serving.deploy import endpoint_requests

    spec = _spec(name, given)
    if dry_run:
        import json

        data = vars(endpoint_requests(spec))
        output.show(data, json.dumps(data, indent=2))
        return
    done = bring_up(spec, aws_access(region=region).services)
    output.show(vars(done), f"Endpoint {name}: {done.action}, config {done.config}.")


def _spec(name: str, given: dict[str, Any]) -> Any:
    from feast_dynamo_ext.sagemaker.serving.deploy import Canary, EndpointSpec, Serverless

    variables = dict(_variable(text) for text in given["environment"])
    serverless = Serverless(given["memory_mb"], given["max_concurrency"])
    canary = None
    if given["canary"] is not None:
        canary = Canary(given["canary"], given["canary_wait_s"], alarms=given["alarms"])
    return EndpointSpec(
        name=name,
        image=given["image"],
        model_data=given["archive"],
        role_arn=given["role"],
        instance_type=given["instance_type"],
        instance_count=given["instances"],
        serverless=serverless if given["serverless"] else None,
        environment=variables,
        workers=given["workers"],
        subnets=given["subnets"],
        security_groups=given["security_groups"],
        kms_key_id=given["kms_key"],
        canary=canary,
    )


def _variable(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise click.BadParameter(f"`{name}`: write a variable as NAME=VALUE.")
    return name, value


@endpoint.command(short_help="Send a request to an endpoint.")
@name_argument
@click.argument("body", type=click.File("rb"), metavar="FILE")
@click.option("--content-type", default="application/json", show_default=True, help="Of FILE.")
@click.option("--accept", default="application/json", show_default=True, help="Of the answer.")
@region_option
def invoke(name: str, body: Any, content_type: str, accept: str, region: str | None) -> None:
    """Send a file (`-` for stdin) to an endpoint, and print its answer.

    \b
    feast-dynamo endpoint invoke churn request.json
    echo '{"customer_id": 1}' | feast-dynamo endpoint invoke churn -
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.serving.deploy import invoke as send

    answer, lacking = send(
        name,
        body.read(),
        aws_access(region=region).services,
        content_type=content_type,
        accept=accept,
    )
    click.echo(answer, nl=not answer.endswith(b"\n"))
    if lacking:
        click.echo(f"features: {lacking}", err=True)


@endpoint.command(short_help="Delete an endpoint, and what was made for it.")
@name_argument
@click.option("--yes", is_flag=True, help="Delete; else they are listed.")
@region_option
@json_option
def delete(name: str, output: Output, *, yes: bool, region: str | None) -> None:
    """List an endpoint with the models and configs that `deploy` made for it; delete with --yes.

    What other tools made is never deleted. The archive stays where it is.

    \b
    feast-dynamo endpoint delete churn --yes
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.sagemaker.serving.deploy import deletable
    from feast_dynamo_ext.sagemaker.serving.deploy import delete as take_down

    found = deletable(name, aws_access(region=region).services)
    if yes:
        take_down(found, aws_access(region=region).services)
    rows = table(["deleted" if yes else "would be deleted"], [[each] for each in found.names])
    output.show({"deleted": yes, **vars(found)}, rows)
