"""Area `training`: the files and the manifest of a training set, and what reads them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
from golden_history import DAY, START, hours, open_stores, write_histories
from golden_record import outcome, replaced

from feast_dynamo_ext import sagemaker
from feast_dynamo_ext.aws import AwsSettings

BUCKET = "golden-training"
NO_AWS = AwsSettings(region="us-east-1")


def training_record(folder: Path, endpoint: str) -> dict[str, Any]:
    write_histories(folder)
    store = open_stores(folder)["stream"]
    rows = pa.table(
        {
            "cid": pa.array([1, 2, 3, 1, 2, 4, 1], pa.int64()),
            "event_timestamp": hours(1, 2, 3, 25, 26, 49, 50),
            "bought": pa.array([1, 0, 1, 0, 1, 0, 1], pa.int64()),
        }
    )
    split = sagemaker.TimeSplit(validation_from=START + DAY, test_from=START + 2 * DAY)
    found: dict[str, Any] = {}

    def create(output: str, **more: Any) -> Any:
        return sagemaker.create_training_set(
            store,
            **{
                "entity_rows": rows,
                "features": ["ties:total", "hive:value", "world:rate"],
                "label": "bought",
                "output": output,
                "split": split,
                **more,
            },
        )

    for name, more in (("plain", {}), ("parts", {"parts": 2, "full_feature_names": True})):
        output = folder / "sets" / name
        made = create(str(output), **more)
        found[name] = {
            "files": {
                str(path.relative_to(output)): _file(path)
                for path in sorted(output.rglob("*"))
                if path.is_file()
            },
            "verify": outcome(lambda made=made: str(sagemaker.verify(made.output, NO_AWS))),
            "loaded again": str(
                sagemaker.load_training_set(made.output, NO_AWS).manifest == made.manifest
            ),
        }
    found["hash of the rows"] = sagemaker.hash_table(rows)
    plain = str(folder / "sets" / "plain")
    found["once more"] = outcome(lambda: create(plain))
    found["once more, overwritten"] = outcome(
        lambda: (
            create(plain, overwrite=True).manifest.to_json()
            == (folder / "sets" / "plain" / "manifest.json").read_text()
        )
    )
    other = str(folder / "sets" / "other")
    for name, more in {
        "no such label": {"label": "sold"},
        "a feature of texts": {"features": ["ties:note"]},
        "a feature of lists": {"features": ["pairs:many"]},
        "no validation": {"split": sagemaker.TimeSplit(START + 90 * DAY, START + 91 * DAY)},
    }.items():
        found[name] = outcome(lambda more=more: str(create(other, **more).output))
    (folder / "sets" / "plain" / "train" / "csv" / "part-00000.csv").write_text("1,2\n")
    found["verify of a changed file"] = outcome(lambda: str(sagemaker.verify(plain, NO_AWS)))
    found |= _jobs(create, endpoint)
    # A source's proto has its path, which varies, and the time at which it was applied, which
    # does not count.
    specs = {}
    for view in store.list_feature_views():
        spec = view.to_proto().spec
        spec.batch_source.ClearField("meta")
        specs[_hash(spec.SerializeToString(deterministic=True))] = f"<hash of {view.name}>"
    answer: dict[str, Any] = replaced(found, specs)
    return answer


def _file(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        found = json.loads(data)
        if "libraries" in found:
            libraries = found["libraries"].items()
            found["libraries"] = {name: _installed(name, version) for name, version in libraries}
            if "manifest_sha256" in found:  # of the versions too
                found["manifest_sha256"] = "<of the rest>"
            for source in found["provenance"]["source_files"]:
                if source.get("sha256") == _hash(Path(source["path"]).read_bytes()):
                    source["sha256"] = "<of the file>"
        return found
    if path.suffix == ".csv":
        return data.decode().split("\n")
    return f"sha256 {_hash(data)}"


def _installed(library: str, version: str) -> str:
    """The version that is installed, as such: the record holds for all of them."""
    own = platform.python_version() if library == "python" else importlib.metadata.version(library)
    return "<installed>" if version == own else version


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _jobs(create: Any, endpoint: str) -> dict[str, Any]:
    """Channels and requests of training jobs on a set on S3."""
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=endpoint)
    s3.create_bucket(Bucket=BUCKET)
    s3.close()
    aws = AwsSettings(region="us-east-1", endpoint_url=endpoint)
    output = f"s3://{BUCKET}/set"
    made = create(output)
    request = sagemaker.training_job_request(
        "churn",
        channels=made.channels(),
        image="image",
        role_arn="arn:aws:iam::123456789012:role/sagemaker",
        output_path=f"s3://{BUCKET}/models",
        instance_type="ml.m5.xlarge",
        hyperparameters={"objective": "binary:logistic", "num_round": 20, "eta": 0.1},
    )
    return {
        "verify on S3": str(sagemaker.verify(output, aws)),
        "channels": made.channels(),
        "channels of Parquet": made.channels(
            splits=("train", "test"), format="parquet", input_mode="FastFile",
            names={"train": "training"},
        ),
        "request": request,
        "a wrong name": outcome(lambda: sagemaker.training_job_request(
            "a b", channels=made.channels(), image="i", role_arn="r", output_path="s3://b/m",
            instance_type="ml.m5.xlarge",
        )),
        "started": str(sagemaker.create_training_job(request, aws)),
        "described": sagemaker.describe_training_job("churn", aws).status,
    }  # fmt: skip
