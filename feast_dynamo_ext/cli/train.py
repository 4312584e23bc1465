"""feast-dynamo train: a training job on a training set, on SageMaker or on this machine."""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.job_progress import JobProgress, sigterm_as_exit
from feast_dynamo_ext.cli.repo import (
    FiniteFloat,
    Output,
    age_s,
    aws_access,
    json_option,
    pairs,
    region_option,
    repo_option,
)
from feast_dynamo_ext.cli.set_checks import output_of
from feast_dynamo_ext.errors import ConfigError, TrainingSetError

if TYPE_CHECKING:
    from feast_dynamo_ext.sagemaker.job_source import SourceCode
    from feast_dynamo_ext.sagemaker.training_job import Spot, TrainingJob, Vpc
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet

NO_ROLE = "arn:aws:iam::000000000000:role/none"
NO_IMAGE = "none"
LOCAL_INSTANCE = "ml.m5.xlarge"


@click.command("train", short_help="Train a model on a training set, on SageMaker or here.")
@click.argument("training_set", metavar="SET")
@click.option("--image", metavar="URI", help="Training image in ECR.")
@click.option("--algorithm", metavar="NAME", help="Built-in image instead: xgboost, sklearn, ...")
@click.option("--version", "version", metavar="TAG", help="Of the algorithm. Default: the newest.")
@click.option(
    "--script",
    type=click.Path(exists=True, path_type=Path),
    help="Script to run in the image, or a folder that holds it.",
)
@click.option("--entry", metavar="FILE", help="Script within the folder.  [default: train.py]")
@click.option("--role", metavar="ARN", envvar="SAGEMAKER_ROLE_ARN", help="Role of the job.")
@click.option(
    "--output-path", metavar="URI", help="For the model. Default: models/ beside the set."
)
@click.option("--instance-type", default=LOCAL_INSTANCE, show_default=True)
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--volume-gb", type=click.IntRange(min=1), default=30, show_default=True)
@click.option("--max-runtime", metavar="AGE", default="24h", callback=age_s, show_default=True)
@click.option("--set", "hyperparameters", multiple=True, metavar="KEY=VALUE", callback=pairs)
@click.option("--env", "environment", multiple=True, metavar="KEY=VALUE", callback=pairs)
@click.option("--metric", "metrics", multiple=True, metavar="NAME=REGEX", callback=pairs)
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", callback=pairs)
@click.option("--format", "file_format", metavar="NAME", help="Default: the first the set has.")
@click.option(
    "--split", "splits", multiple=True, metavar="NAME", help="Default: all but the test split."
)
@click.option("--sharded", is_flag=True, help="Each instance reads train files of its own.")
@click.option("--input-mode", type=click.Choice(["File", "FastFile"]), default="File")
@click.option("--spot", "max_wait", metavar="AGE", callback=age_s, help="On spot; longest wait.")
@click.option("--checkpoints", metavar="URI", help="Kept there while a job on spot runs.")
@click.option("--retries", type=click.IntRange(0, 30), default=0, show_default=True)
@click.option("--kms-key", metavar="KEY", help="Encrypts the model.")
@click.option("--volume-kms-key", metavar="KEY", help="Encrypts the instances' disks.")
@click.option("--subnet", "subnets", multiple=True, metavar="ID")
@click.option("--security-group", "security_groups", multiple=True, metavar="ID")
@click.option("--name", metavar="NAME", help="Of the job. Default: from the inputs.")
@click.option("--token", default="", help="Another token starts another job of the same inputs.")
@click.option(
    "--wait/--no-wait", default=True, help="Follow the job to its end.", show_default=True
)
@click.option("--poll", "poll_s", type=FiniteFloat(0), default=5.0, hidden=True)
@click.option("--dry-run", is_flag=True, help="Check and print the request; start nothing.")
@click.option("--local", is_flag=True, help="Run the job on this machine.")
@click.option(
    "--work-dir", type=click.Path(file_okay=False, path_type=Path), help="For --local: keep it."
)
@region_option
@repo_option
@json_option
def train(output: Output, repo: Path, **choices: Any) -> None:
    """Train a model on a training set.

    SET is the name of a declared one or an output, s3://bucket/prefix or a folder.

    The set is verified, the request checked, the job started and followed with its log, and the
    model linked to the set by tags and lineage.json. The same command again finds the job that it
    started, and follows that.

    \b
    AWS's XGBoost:
      feast-dynamo train churn --algorithm xgboost --role arn:aws:iam::... \\
        --set objective=binary:logistic --set num_round=200
    A script of your own, first on this machine (no container; needs `[local-training]`):
      feast-dynamo train s3://lake/churn --script train.py --set max_depth=4 --local
    """  # noqa: D301 - click keeps the lines after \b as they are
    choices["training_set"] = output_of(choices["training_set"], repo)
    job = _Job(output, repo, choices)
    job.refuse_wrong_usage()
    if choices["local"]:
        job.run_here()
    else:
        job.run_on_sagemaker()


class _Job:
    """One call of the command."""

    def __init__(self, output: Output, repo: Path, choices: dict[str, Any]) -> None:
        self._output, self._choices = output, choices
        found = aws_access(repo, choices.pop("region"))
        self._s3, self._aws = found.s3, found.services

    def refuse_wrong_usage(self) -> None:
        """Refuse options that contradict each other, before anything is read.

        Raises:
            click.UsageError: they do.
        """
        self._image()
        self._spot()

    def run_on_sagemaker(self) -> None:
        from feast_dynamo_ext.sagemaker import job_submission
        from feast_dynamo_ext.sagemaker.job_source import upload_source
        from feast_dynamo_ext.sagemaker.manifest import manifest_sha256

        source = self._source()
        made = self._verified()
        manifest = manifest_sha256(made.output, self._s3)
        output_path = self._output_path(made)
        uri = ""
        if source is not None:
            folder = f"{output_path}/sources"
            uri = f"{folder}/{source.sha256}/sourcedir.tar.gz"
        hyperparameters = self._hyperparameters(source, uri)
        request, token = self._request(
            made.channels(**self._channel_options(made)), output_path, hyperparameters, manifest
        )
        links = job_submission.link_tags(made, manifest, token)
        tags = links | self._choices["tags"]
        request["Tags"] = [{"Key": key, "Value": value} for key, value in tags.items()]
        if self._choices["dry_run"]:
            self._output.show(request, json.dumps(request, indent=2))
            return
        if source is not None:
            upload_source(source, f"{output_path}/sources", self._s3)
        found = job_submission.submit_training_job(request, self._aws)
        name = found.job.name
        self._output.note(f"{'Started' if found.is_new else 'Found'} training job {name}.")
        if not self._choices["wait"]:
            self._output.show(_shown(found.job, ""), f"{name}: {found.job.status}")
            return
        progress = JobProgress()
        shown = job_submission.Shown(progress.status, progress.line, self._output.note)
        try:
            job = job_submission.follow_training_job(
                name, self._aws, shown, poll_s=self._choices["poll_s"]
            )
        except KeyboardInterrupt:
            self._output.note(f"\nThe job goes on. The same command follows {name} again.")
            raise
        lineage = job_submission.write_lineage(job, request, made, manifest, self._s3)
        self._answer(job, lineage)

    def run_here(self) -> None:
        from feast_dynamo_ext.sagemaker.local_job import HERE, run_training_job
        from feast_dynamo_ext.sagemaker.training_set import TrainingSet

        source = self._source()
        made = self._verified()
        output_path = self._output_path(made)
        # As SageMaker would get it; then the files of this machine in the places of S3's.
        here = not made.output.startswith("s3://")
        on_s3 = TrainingSet(f"{HERE}{made.output[1:]}", made.manifest) if here else made
        channels = on_s3.channels(**self._channel_options(made))
        path = output_path if output_path.startswith("s3://") else f"{HERE}{output_path[1:]}"
        hyperparameters = self._hyperparameters(source, "")
        hyperparameters.pop("sagemaker_submit_directory", None)
        salt = f"{source.sha256 if source else ''} {time.time_ns()}"
        request, _ = self._request(channels, path, hyperparameters, salt)
        request = json.loads(json.dumps(request).replace(f'"{HERE}', '"file:///'))
        if self._choices["dry_run"]:
            self._output.show(request, json.dumps(request, indent=2))
            return
        kept = self._choices["work_dir"] or Path(tempfile.mkdtemp(prefix="feast-dynamo-train-"))
        self._output.note(f"Running training job {request['TrainingJobName']} in {kept}.")
        try:
            with sigterm_as_exit():
                done = run_training_job(
                    request, work_dir=kept, aws=self._s3, source=source, on_line=JobProgress().line
                )
        except (KeyboardInterrupt, SystemExit):
            config = request.get("CheckpointConfig")
            after = f" The same command goes on from {config['S3Uri']}." if config else ""
            self._output.note(f"\nThe job was stopped.{after}")
            raise
        self._answer(done.job, "", log=str(done.log))

    def _verified(self) -> TrainingSet:
        from feast_dynamo_ext.sagemaker.set_verification import verify
        from feast_dynamo_ext.sagemaker.training_set import load_training_set

        output = self._choices["training_set"]
        made = load_training_set(output, self._s3)
        report = verify(output, self._s3)
        if not report.ok:
            faults = {
                "missing": report.missing,
                "changed": report.changed,
                "not of the set": report.unexpected,
            }
            said = "; ".join(
                f"{what}: {', '.join(paths)}" for what, paths in faults.items() if paths
            )
            raise TrainingSetError(
                f"{output} is not the training set that was written ({said}). Nothing was "
                "started. Write it again."
            )
        return made

    def _source(self) -> SourceCode | None:
        from feast_dynamo_ext.sagemaker.job_source import pack_source
        from feast_dynamo_ext.sagemaker.training_images import ALGORITHMS

        script, entry = self._choices["script"], self._choices["entry"]
        known = ALGORITHMS.get(self._choices["algorithm"] or "")
        if script is None and known is not None and known.needs_script:
            raise ConfigError(
                f"`{self._choices['algorithm']}` trains nothing by itself. Give it a --script."
            )
        return None if script is None else pack_source(script, entry)

    def _hyperparameters(self, source: SourceCode | None, uri: str) -> dict[str, str]:
        given = dict(self._choices["hyperparameters"])
        return given | source.hyperparameters(uri) if source is not None else given

    def _channel_options(self, made: TrainingSet) -> dict[str, Any]:
        from feast_dynamo_ext.sagemaker.targets import TARGETS

        chosen = self._choices
        splits = [name for name in made.manifest.split.splits if name != "test"]
        # A script reads what it likes; an algorithm refuses channels and types minutes later.
        is_algorithm = chosen["script"] is None and chosen["algorithm"] in TARGETS
        return {
            "target": chosen["algorithm"] if is_algorithm else "script",
            **({"instances": chosen["instances"]} if chosen["sharded"] else {}),
            "format": chosen["file_format"] or made.manifest.formats[0],
            "input_mode": chosen["input_mode"],
            "distribution": "ShardedByS3Key" if chosen["sharded"] else "FullyReplicated",
            "splits": chosen["splits"] or splits,
        }

    def _output_path(self, made: TrainingSet) -> str:
        given: str | None = self._choices["output_path"]
        if given is not None:
            return given.rstrip("/") if "://" in given else str(Path(given).resolve())
        parent, _, last = made.output.rpartition("/")
        if parent == "s3:/" or not last:
            raise ConfigError(f"{made.output} fills a whole bucket: give --output-path URI.")
        return f"{parent}/models"

    def _request(
        self,
        channels: list[dict[str, Any]],
        output_path: str,
        hyperparameters: dict[str, str],
        salt: str,
    ) -> tuple[dict[str, Any], str]:
        from feast_dynamo_ext.sagemaker.training_job import (
            job_name,
            request_token,
            training_job_request,
        )

        chosen = self._choices
        if chosen["role"] is None and not chosen["local"]:
            raise ConfigError("A job needs a role: --role ARN, or SAGEMAKER_ROLE_ARN.")
        request = training_job_request(
            chosen["name"] or "unnamed",
            role_arn=chosen["role"] or NO_ROLE,
            image=self._image(),
            channels=channels,
            output_path=output_path,
            instance_type=chosen["instance_type"],
            instance_count=chosen["instances"],
            volume_gb=chosen["volume_gb"],
            max_runtime_s=chosen["max_runtime"],
            hyperparameters=hyperparameters,
            kms_key=chosen["kms_key"],
            volume_kms_key=chosen["volume_kms_key"],
            vpc=self._vpc(),
            spot=self._spot(),
            retries=chosen["retries"],
            environment=chosen["environment"],
            metrics=chosen["metrics"],
            tags=chosen["tags"],
        )
        token = request_token(request, f"{salt} {chosen['token']}")
        if chosen["name"] is None:
            base = "-".join(chosen["training_set"].rstrip("/").split("/")[-2:])
            request["TrainingJobName"] = job_name(re.sub("^s3:", "", base), token)
        return request, token

    def _image(self) -> str:
        from feast_dynamo_ext.aws import session
        from feast_dynamo_ext.sagemaker.training_images import image_uri

        image, algorithm = self._choices["image"], self._choices["algorithm"]
        if image is not None and algorithm is not None:
            raise click.UsageError("Give --image or --algorithm, not both.")
        if image is not None:
            return str(image)
        if self._choices["local"] and self._choices["script"] is not None:
            return NO_IMAGE
        if algorithm is None:
            raise click.UsageError("Give --image URI or --algorithm NAME.")
        region = session(self._aws).region_name
        return image_uri(algorithm, region, self._choices["version"])

    def _vpc(self) -> Vpc | None:
        from feast_dynamo_ext.sagemaker.training_job import Vpc

        subnets, groups = self._choices["subnets"], self._choices["security_groups"]
        return Vpc(subnets, groups) if subnets or groups else None

    def _spot(self) -> Spot | None:
        from feast_dynamo_ext.sagemaker.local_job import HERE
        from feast_dynamo_ext.sagemaker.training_job import Spot

        wait_s, checkpoints = self._choices["max_wait"], self._choices["checkpoints"]
        if wait_s is None and checkpoints is not None:
            raise click.UsageError(
                "--checkpoints are of a job on spot instances: give --spot AGE."
            )
        if checkpoints is not None and self._choices["local"] and "://" not in checkpoints:
            checkpoints = f"{HERE}{str(Path(checkpoints).resolve())[1:]}"
        return None if wait_s is None else Spot(wait_s, checkpoints)

    def _answer(self, job: TrainingJob, lineage: str, log: str = "") -> None:
        lines = [f"{job.name}: {job.status}, {job.billable_s:,} s"]
        lines += [f"{name}: {value:g}" for name, value in job.metrics.items()]
        lines += [f"model: {job.model_artifacts}"] if job.model_artifacts else []
        lines += [f"lineage: {lineage}"] if lineage else []
        lines += [f"log: {log}"] if log else []
        self._output.show(_shown(job, lineage, log), "\n".join(lines))


def _shown(job: TrainingJob, lineage: str, log: str = "") -> dict[str, Any]:
    return {
        "name": job.name,
        "arn": job.arn,
        "status": job.status,
        "metrics": dict(job.metrics),
        "model": job.model_artifacts,
        "seconds": job.billable_s,
        "lineage": lineage,
        "log": log,
    }
