"""Jobs on this machine under AWS's own training toolkit."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import tarfile
from pathlib import Path

import boto3
import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    ConfigError,
    RequestError,
    ResourceNotFoundError,
    TrainingJobError,
    TrainingSetError,
)
from feast_dynamo_ext.sagemaker.job_source import pack_source, upload_source
from feast_dynamo_ext.sagemaker.local_hosts import Checkpoints
from feast_dynamo_ext.sagemaker.local_job import run_training_job
from feast_dynamo_ext.sagemaker.training_job import Spot, training_job_request

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(
        importlib.util.find_spec("sagemaker_training") is None,
        reason="sagemaker-training is not installed",
    ),
]
ROLE = "arn:aws:iam::123456789012:role/train"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/churn:1"
SCRIPT = """
import argparse, json, os, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int)
parser.add_argument("--fail", default="")
args = parser.parse_args()
host = os.environ["SM_CURRENT_HOST"]
rows = sum(
    len(file.read_text().splitlines())
    for file in pathlib.Path(os.environ["SM_CHANNEL_TRAIN"]).rglob("*.csv")
)
print(f"{host} auc=0.{args.depth} rows={rows}", flush=True)
seen = {name: text for name, text in os.environ.items() if name.startswith("SM_")}
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "seen.json").write_text(json.dumps(seen))
if args.fail == host:
    raise ValueError("depth is too small")
if args.fail == "wait":
    sys.stdin.close()
    import signal
    signal.pause()
pathlib.Path(os.environ["SM_MODEL_DIR"], f"{host}.txt").write_text(str(rows))
"""


@pytest.fixture
def aws(moto_endpoint, monkeypatch) -> AwsSettings:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    return AwsSettings(region="us-east-1")


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def put(moto_endpoint, bucket, objects: dict[str, str]) -> None:
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    for key, text in objects.items():
        s3.put_object(Bucket=bucket, Key=key, Body=text.encode())


def channel(uri: str, name: str = "train", **more) -> dict:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, **more}
    return {
        "ChannelName": name,
        "DataSource": {"S3DataSource": source},
        "ContentType": "text/csv",
    }


def request(channels, output: str, **options) -> dict:
    choices = {"hyperparameters": {"depth": 3}, "metrics": {"auc": "auc=([0-9.]+)"}} | options
    made = training_job_request(
        "churn-july",
        role_arn=ROLE,
        image=IMAGE,
        channels=channels,
        output_path="s3://lake/models" if output.startswith("file") else output,
        **choices,
    )
    made["OutputDataConfig"]["S3OutputPath"] = output
    return made


def members(data: bytes | Path) -> dict[str, bytes]:
    with tarfile.open(data) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive.getmembers()}


def test_two_hosts_have_their_shards_and_leave_one_model_where_the_job_says(
    aws, moto_endpoint, bucket, script, tmp_path
):
    objects = {f"set/train/part-{n}.csv": "1,2\n" * (n + 1) for n in range(5)}
    put(moto_endpoint, bucket, objects | {"set/train-old/part-9.csv": "9\n" * 99})
    put(moto_endpoint, bucket, {"set/validation/part-0.csv": "0,1\n"})
    source = pack_source(script)
    uri = upload_source(source, f"s3://{bucket}/sources", aws)
    assert upload_source(source, f"s3://{bucket}/sources", aws) == uri
    made = request(
        [
            channel(f"s3://{bucket}/set/train/", S3DataDistributionType="ShardedByS3Key"),
            channel(f"s3://{bucket}/set/validation", "validation"),
        ],
        f"s3://{bucket}/models",
        instance_count=2,
        hyperparameters={"depth": 3} | source.hyperparameters(uri),
    )
    lines = []
    done = run_training_job(
        made, work_dir=tmp_path, aws=aws, on_line=lambda host, text: lines.append((host, text))
    )
    assert done.job.status == "Completed"
    assert done.exit_codes == {"algo-1": 0, "algo-2": 0}
    assert done.job.metrics == {"auc": 0.3}
    assert done.job.model_artifacts == f"s3://{bucket}/models/churn-july/output/model.tar.gz"
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    s3.download_file(bucket, "models/churn-july/output/model.tar.gz", str(tmp_path / "m.tar.gz"))
    # Objects 0, 2, 4 and 1, 3, of 1 to 5 rows.
    assert members(tmp_path / "m.tar.gz") == {"algo-1.txt": b"9", "algo-2.txt": b"6"}
    assert ("algo-1", "algo-1 auc=0.3 rows=9") in lines
    assert "algo-2 | algo-2 auc=0.3 rows=6" in done.log.read_text()
    config = done.folder / "algo-2/input/config"
    resources = json.loads((config / "resourceconfig.json").read_text())
    assert (resources["current_host"], resources["hosts"]) == ("algo-2", ["algo-1", "algo-2"])
    assert json.loads((config / "inputdataconfig.json").read_text())["train"] == {
        "TrainingInputMode": "File",
        "S3DistributionType": "ShardedByS3Key",
        "RecordWrapperType": "None",
        "ContentType": "text/csv",
    }
    outputs = {"s3": f"models/churn-july/output/{Path(done.output_artifacts).name}"}
    s3.download_file(bucket, outputs["s3"], str(tmp_path / "o.tar.gz"))
    seen = members(tmp_path / "o.tar.gz")
    assert sorted(seen) == ["algo-2/seen.json", "seen.json"]
    assert json.loads(seen["seen.json"])["SM_HOSTS"] == '["algo-1","algo-2"]'


def test_a_script_that_fails_gives_the_reason_that_sagemaker_gives(script, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / f"in/{number}.csv").write_text("1,2\n")
    made = request(
        [channel("s3://b/x", S3DataDistributionType="ShardedByS3Key")],
        f"file://{tmp_path}/out",
        instance_count=2,
        hyperparameters={"depth": 3, "fail": "algo-2"},
    )
    made["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = f"file://{tmp_path}/in/"
    with pytest.raises(TrainingJobError) as error:
        run_training_job(made, work_dir=tmp_path / "w", source=pack_source(script))
    reason = error.value.failure_reason
    assert reason.startswith("AlgorithmError: ExecuteUserScriptError:")
    assert reason.endswith(", exit code: 1")
    assert "ExitCode 1" in reason
    assert "ValueError: depth is too small" in str(error.value)
    assert error.value.status == "Failed"
    failure = tmp_path / "w/churn-july/algo-2/output/failure"
    assert failure.read_text()[:1024].strip() in reason
    assert not (tmp_path / "out/churn-july/output/model.tar.gz").exists()
    assert "seen.json" in members(tmp_path / "out/churn-july/output/output.tar.gz")


def test_a_job_that_runs_too_long_is_stopped(script, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.csv").write_text("1,2\n")
    made = request(
        [channel("s3://b/x")],
        f"file://{tmp_path}/out",
        max_runtime_s=3,
        hyperparameters={"depth": 3, "fail": "wait"},
    )
    made["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = f"file://{tmp_path}/in"
    with pytest.raises(TrainingJobError, match=r"was stopped after 3 s .* MaxRuntimeExceeded"):
        run_training_job(made, work_dir=tmp_path / "w", source=pack_source(script))


# It goes on from its newest checkpoint, writes the next ones, and waits to be taken away.
WITH_CHECKPOINTS = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
config = json.loads(pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"], "checkpointconfig.json").read_text())
folder = pathlib.Path(config["LocalPath"])
host = os.environ["SM_CURRENT_HOST"]
file = folder / "epochs" / f"{host}.json"
done = json.loads(file.read_text())["epoch"] if file.exists() else 0
print(f"{host} begins after epoch {done}", flush=True)
file.parent.mkdir(exist_ok=True)
for epoch in range(done + 1, min(done + 3, 5) + 1):
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"epoch": epoch}))
    partial.replace(file)
if epoch < 5:
    kept = pathlib.Path(sys.argv[sys.argv.index("--kept") + 1], "epochs", f"{host}.json")
    while not kept.exists() or json.loads(kept.read_text())["epoch"] < epoch:
        time.sleep(0.05)
    print(f"{host} waits in {os.getpgid(0)}", flush=True)
    signal.pause()
pathlib.Path(os.environ["SM_MODEL_DIR"], f"{host}.json").write_text(json.dumps({"epoch": epoch}))
"""  # noqa: E501


def spot_request(tmp_path, name: str, hosts: int = 1) -> dict:
    made = request(
        [channel("s3://b/x")],
        f"file://{tmp_path}/out",
        instance_count=hosts,
        hyperparameters={"kept": str(tmp_path / "kept")},
        spot=Spot(90_000, "s3://b/kept"),
        metrics={},
    )
    made["CheckpointConfig"]["S3Uri"] = f"file://{tmp_path}/kept"
    made["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = f"file://{tmp_path}/in/"
    return made | {"TrainingJobName": name}


def test_a_job_on_spot_that_is_taken_away_goes_on_from_its_checkpoints(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.csv").write_text("1,2\n")
    (tmp_path / "train.py").write_text(WITH_CHECKPOINTS)
    source = pack_source(tmp_path / "train.py")
    waiting = {}

    def take_away(host: str, text: str) -> None:
        if " waits in " not in text:
            return
        waiting[host] = int(text.rpartition(" ")[2])
        if len(waiting) == 2:  # what AWS does to an instance, and then to the other
            for group in waiting.values():
                os.killpg(group, signal.SIGTERM)
                os.killpg(group, signal.SIGKILL)

    with pytest.raises(TrainingJobError, match=r"exit code: 1(37|43)\. A job with ") as e:
        run_training_job(
            spot_request(tmp_path, "first", 2),
            work_dir=tmp_path / "w",
            source=source,
            on_line=take_away,
        )
    assert e.value.status == "Failed"
    assert not (tmp_path / "out").exists()
    kept = sorted(path.name for path in (tmp_path / "kept/epochs").iterdir())
    assert kept == ["algo-1.json", "algo-2.json"]

    lines = []
    done = run_training_job(
        spot_request(tmp_path, "second", 2),
        work_dir=tmp_path / "w",
        source=source,
        on_line=lambda host, text: lines.append(text),
    )
    assert {"algo-1 begins after epoch 3", "algo-2 begins after epoch 3"} <= set(lines)
    model = members(Path(done.job.model_artifacts.removeprefix("file://")))
    assert model == {"algo-1.json": b'{"epoch": 5}', "algo-2.json": b'{"epoch": 5}'}
    assert json.loads((tmp_path / "kept/epochs/algo-1.json").read_text()) == {"epoch": 5}
    config = done.folder / "algo-1/input/config/checkpointconfig.json"
    assert json.loads(config.read_text()) == {
        "S3Uri": f"file://{tmp_path}/kept",
        "LocalPath": str(done.folder / "algo-1/checkpoints"),
    }


def test_checkpoints_are_kept_on_s3_whole_and_brought_back(aws, bucket, moto_endpoint, tmp_path):
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    uri = f"s3://{bucket}/kept"
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    with Checkpoints(uri, [first], aws).kept():
        (first / "a").mkdir()
        (first / "a/1.bin").write_bytes(b"one")
    put(moto_endpoint, bucket, {"kept-not/3.bin": "another prefix"})

    def change_and_stop() -> None:
        assert (second / "a/1.bin").read_bytes() == b"one"
        (second / "a/1.bin").write_bytes(b"another")
        (second / "2.bin").write_bytes(b"two")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Checkpoints(uri, [second], aws).kept():
        change_and_stop()
    kept = {
        one["Key"]: s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
        for one in s3.list_objects_v2(Bucket=bucket, Prefix="kept/")["Contents"]
    }
    assert kept == {"kept/a/1.bin": b"another", "kept/2.bin": b"two"}
    assert not (second / "3.bin").exists()
    with (
        pytest.raises(ResourceNotFoundError, match="no-such-bucket"),
        Checkpoints("s3://no-such-bucket/x", [first], aws).kept(),
    ):
        pytest.fail("the block ran")


def test_what_a_killed_writer_left_in_a_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "kept").mkdir()
    left = f".1.bin.{'0' * 32}.tmp"
    for name in ("1.bin", left, ".hidden"):
        (tmp_path / "kept" / name).write_bytes(b"x")
    (tmp_path / "host").mkdir()
    with Checkpoints(str(tmp_path / "kept"), [tmp_path / "host"], AwsSettings()).kept():
        found = sorted(path.name for path in (tmp_path / "host").iterdir())
    assert found == [".hidden", "1.bin"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda made: made["HyperParameters"].clear(), ConfigError, "has no script, and the"),
        (
            lambda made: made["AlgorithmSpecification"].update(ContainerEntrypoint=["a"]),
            ConfigError,
            "starts a program of its image",
        ),
        (
            lambda made: made["InputDataConfig"][0].update(InputMode="Pipe"),
            ConfigError,
            "neither Pipe mode nor compression",
        ),
        (
            lambda made: made["ResourceConfig"].update(InstanceCount=9),
            TrainingSetError,
            "Channel `train` has 1 objects at .* for 9 hosts",
        ),
        (
            lambda made: made["ResourceConfig"].update(InstanceType="ml.x"),
            RequestError,
            "`ResourceConfig.InstanceType` is `ml.x`",
        ),
    ],
)
def test_what_cannot_run_here_is_refused_in_words(change, error, message, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.csv").write_text("1,2\n")
    made = request(
        [channel("s3://b/x", S3DataDistributionType="ShardedByS3Key")],
        f"file://{tmp_path}/out",
        hyperparameters={"sagemaker_program": "train.py"},
    )
    made["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = f"file://{tmp_path}/in/"
    change(made)
    with pytest.raises(error, match=message):
        run_training_job(made, work_dir=tmp_path / "w")
