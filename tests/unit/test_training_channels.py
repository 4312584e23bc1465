from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker import (
    Provenance,
    TimeSplit,
    TrainingSet,
    copy_channels,
    local_folders,
    write_training_set,
)

if TYPE_CHECKING:
    from pathlib import Path

AWS = AwsSettings()


def written(output: Path, parts: int = 1) -> TrainingSet:
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    times = [start + timedelta(days=day) for day in range(6)]
    table = pa.table({"id": range(6), "event_timestamp": times, "y": [0, 1] * 3, "x": range(6)})
    return write_training_set(
        table,
        label="y",
        event_timestamp="event_timestamp",
        entity_columns=["id"],
        features=["x"],
        output=str(output),
        split=TimeSplit(times[2], times[4]),
        aws=AWS,
        provenance=Provenance("shop", (), {}, (), ""),
        parts=parts,
    )


def on_s3(training_set: TrainingSet) -> TrainingSet:
    """As if it had been written to S3: channels are made of its name alone."""
    return TrainingSet("s3://lake/sets/july", training_set.manifest)


def channel(name: str, uri: str, **changes: str) -> dict:
    return {
        "ChannelName": name,
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "S3Prefix",
                "S3Uri": uri,
                "S3DataDistributionType": changes.get("distribution", "FullyReplicated"),
            }
        },
        "ContentType": changes.get("content_type", "text/csv"),
        "InputMode": changes.get("input_mode", "File"),
    }


def test_by_default_train_and_validation_are_csv_copied_to_every_instance(tmp_path):
    assert on_s3(written(tmp_path)).channels() == [
        channel("train", "s3://lake/sets/july/train/csv/"),
        channel("validation", "s3://lake/sets/july/validation/csv/"),
    ]


def test_parquet_shards_streams_and_other_names(tmp_path):
    kind = {"content_type": "application/x-parquet", "input_mode": "FastFile"}
    assert on_s3(written(tmp_path, parts=2)).channels(
        format="parquet",
        splits=("train", "validation", "test"),
        distribution="ShardedByS3Key",
        input_mode="FastFile",
        names={"train": "training"},
    ) == [
        channel(
            "training", "s3://lake/sets/july/train/parquet/", distribution="ShardedByS3Key", **kind
        ),
        channel("validation", "s3://lake/sets/july/validation/parquet/", **kind),
        channel("test", "s3://lake/sets/july/test/parquet/", **kind),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "orc"}, "Unknown format `orc`. Known: csv, parquet."),
        ({"splits": ["holdout"]}, "Unknown split `holdout`. Known: train, validation, test."),
        ({"names": {"training": "train"}}, "Unknown split `training`"),
        ({"distribution": "Sharded"}, "Unknown distribution `Sharded`"),
        ({"input_mode": "Pipe"}, "Unknown input_mode `Pipe`"),
        ({"splits": []}, "there must be at least one"),
        ({"splits": ["train", "train"]}, "each split needs a channel of its own"),
        ({"names": {"train": "x", "validation": "x"}}, "each split needs a channel of its own"),
        ({"distribution": "ShardedByS3Key"}, "all other instances would train on nothing"),
    ],
)
def test_options_that_make_no_channels_are_refused(tmp_path, options, message):
    with pytest.raises(TrainingSetError) as error:
        on_s3(written(tmp_path)).channels(**options)
    assert message in str(error.value)


def test_sagemaker_cannot_read_this_machine_and_this_machine_not_s3(tmp_path):
    training_set = written(tmp_path)
    with pytest.raises(TrainingSetError, match="is a folder of this machine"):
        training_set.channels()
    with pytest.raises(TrainingSetError, match="`copy_channels` brings it here"):
        local_folders(on_s3(training_set))


def test_local_folders_are_those_of_the_training_set(tmp_path):
    folders = local_folders(written(tmp_path), format="parquet", names={"train": "training"})
    assert folders == {
        "training": tmp_path / "train" / "parquet",
        "validation": tmp_path / "validation" / "parquet",
    }


def test_copying_replaces_a_channel_and_leaves_others_alone(tmp_path):
    training_set = written(tmp_path / "set", parts=2)
    target = tmp_path / "data"
    for stale in ("train/part-00007.csv", "mine/part-00000.csv"):
        (target / stale).parent.mkdir(parents=True)
        (target / stale).write_text("stale")
    folders = copy_channels(training_set, target, AWS, splits=("train", "test"))
    assert folders == {"train": target / "train", "test": target / "test"}
    copied = {p.relative_to(target).as_posix(): p.read_text() for p in target.rglob("*.csv")}
    assert copied == {
        "train/part-00000.csv": "0,0\n",
        "train/part-00001.csv": "1,1\n",
        "test/part-00000.csv": "0,4\n",
        "test/part-00001.csv": "1,5\n",
        "mine/part-00000.csv": "stale",
    }


def test_a_file_that_is_not_the_one_that_was_written_is_refused(tmp_path):
    training_set = written(tmp_path / "set")
    file = tmp_path / "set/train/csv/part-00000.csv"
    file.write_text("0,9\n1,1\n")
    with pytest.raises(TrainingSetError, match=r"train/csv/part-00000\.csv is not the file"):
        copy_channels(training_set, tmp_path / "data", AWS)
    file.unlink()
    with pytest.raises(TrainingSetError, match=r"part-00000\.csv is in the manifest but not"):
        copy_channels(training_set, tmp_path / "data", AWS)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../kept", "/kept", "x" * 65])
def test_a_channel_that_would_be_another_folder_is_refused(tmp_path, name):
    training_set = written(tmp_path / "set")
    kept = tmp_path / "kept" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(TrainingSetError, match="cannot be the name of a channel"):
        copy_channels(training_set, tmp_path / "data", AWS, names={"train": name})
    assert kept.read_text() == "mine"
    assert not (tmp_path / "data").exists()
