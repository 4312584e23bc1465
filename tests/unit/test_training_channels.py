from __future__ import annotations

import importlib.util
import itertools
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from botocore.session import get_session
from sagemaker_sdk import importable

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker import (
    Provenance,
    TimeSplit,
    TrainingSet,
    copy_channels,
    local_folders,
    write_training_set,
)
from feast_dynamo_ext.sagemaker.channels import DATA_TYPES, DISTRIBUTIONS, sdk_channels

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
        ({"format": "orc"}, "Unknown format `orc`. Known: csv, parquet, recordio, libsvm."),
        ({"splits": ["holdout"]}, "Unknown split `holdout`. Known: train, validation, test."),
        ({"names": {"training": "train"}}, "Unknown split `training`"),
        ({"distribution": "Sharded"}, "Unknown distribution `Sharded`"),
        ({"input_mode": "Fast"}, "Unknown input_mode `Fast`. Known: File, FastFile, Pipe."),
        ({"splits": []}, "there must be at least one"),
        ({"splits": ["train", "train"]}, "each split needs a channel of its own"),
        ({"names": {"train": "x", "validation": "x"}}, "each split needs a channel of its own"),
        ({"data_type": "Foo"}, "Unknown data_type `Foo`. Known: S3Prefix, ManifestFile."),
        ({"target": "keras"}, "Unknown target `keras`. Known: xgboost, lightgbm, autogluon"),
        ({"format": "libsvm"}, "there are no files of train in libsvm; there are no files of"),
        ({"input_mode": "Pipe"}, "script reads recordio in Pipe mode, and not csv: use FastFile"),
        (
            {"input_mode": "Pipe", "format": "parquet", "target": "xgboost"},
            "xgboost reads no format in Pipe mode, and not parquet: use FastFile",
        ),
        ({"target": "lightgbm", "format": "parquet"}, "lightgbm reads no parquet: it reads csv"),
        ({"target": "xgboost", "splits": ["validation"]}, "xgboost needs the split train"),
        (
            {"target": "xgboost", "splits": ["train", "test"]},
            "xgboost has no channel for the split test: leave it out",
        ),
        (
            {"target": "autogluon", "names": {"train": "train"}},
            "reads the split train from the channel training, and not from train",
        ),
        ({"distribution": "ShardedByS3Key", "instances": 3}, "the train split has 1"),
        ({"distribution": "ShardedByS3Key"}, "all other instances would train on nothing"),
        (
            {"target": "lightgbm", "distribution": "ShardedByS3Key", "instances": 1},
            "lightgbm needs all files on each instance",
        ),
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


def test_a_target_has_its_own_channels_and_content_types(tmp_path):
    training_set = on_s3(written(tmp_path))
    of_autogluon = training_set.channels(target="autogluon")
    of_xgboost = training_set.channels(target="xgboost", format="parquet")
    assert [(found["ChannelName"], found["ContentType"]) for found in of_autogluon] == [
        ("training", "text/csv"),
        ("validation", "text/csv"),
    ]
    assert [(found["ChannelName"], found["ContentType"]) for found in of_xgboost] == [
        ("train", "application/x-parquet"),
        ("validation", "application/x-parquet"),
    ]


def test_shuffling_is_of_the_train_channel_alone(tmp_path):
    channels = on_s3(written(tmp_path)).channels(shuffle_seed=7)
    assert [found.get("ShuffleConfig") for found in channels] == [{"Seed": 7}, None]


def test_all_problems_of_a_target_are_named_at_once(tmp_path):
    with pytest.raises(TrainingSetError) as error:
        on_s3(written(tmp_path)).channels(
            target="lightgbm", format="parquet", splits=["test"], input_mode="Pipe"
        )
    assert str(error.value) == (
        "Channels of s3://lake/sets/july: lightgbm reads no parquet: it reads csv; "
        "lightgbm reads no format in Pipe mode, and not parquet: use FastFile; "
        "lightgbm has no channel for the split test: leave it out; "
        "lightgbm needs the split train."
    )


def test_a_prefix_that_s3_would_not_take_is_refused(tmp_path):
    training_set = TrainingSet("s3://lake/" + "x" * 1_000, written(tmp_path).manifest)
    with pytest.raises(TrainingSetError, match="a channel's S3Uri 1024 at the most"):
        training_set.channels()


def test_every_channel_is_one_that_the_service_model_knows(tmp_path):
    """Members, enums, lengths and patterns, of which botocore itself checks members alone."""
    model = get_session().get_service_model("sagemaker")
    training_set = on_s3(written(tmp_path, parts=2))
    for data_type, distribution in itertools.product(DATA_TYPES, DISTRIBUTIONS):
        for found in training_set.channels(
            data_type=data_type, distribution=distribution, input_mode="FastFile", shuffle_seed=1
        ):
            walk(model.shape_for("Channel"), found)


def walk(shape, value) -> None:
    if shape.type_name == "structure":
        assert set(shape.required_members) <= set(value) <= set(shape.members)
        for name, member in value.items():
            walk(shape.members[name], member)
    elif shape.type_name == "string":
        assert not shape.enum or value in shape.enum
        assert len(value) <= shape.metadata.get("max", len(value))
        assert re.fullmatch(shape.metadata.get("pattern", ".*"), value)
    else:
        assert isinstance(value, int)


@pytest.mark.slow  # importing the SDK takes seconds
def test_sdk_channels_are_the_same_as_the_plain_ones(tmp_path):
    training_set = on_s3(written(tmp_path, parts=2))
    options = {"distribution": "ShardedByS3Key", "input_mode": "FastFile", "shuffle_seed": 3}
    with importable():
        made = sdk_channels(training_set, **options)
    assert [in_camel_case(channel.model_dump(exclude_unset=True)) for channel in made] == (
        training_set.channels(**options)
    )


def in_camel_case(values):
    if not isinstance(values, dict):
        return values
    return {
        "".join(part.capitalize() for part in name.split("_")): in_camel_case(value)
        for name, value in values.items()
    }


@pytest.mark.skipif(
    importlib.util.find_spec("sagemaker") is not None, reason="SageMaker's SDK is installed"
)
def test_without_the_sdk_the_extra_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"pip install 'feast-dynamo-ext\[sagemaker\]'"):
        sdk_channels(on_s3(written(tmp_path)))


def test_an_sdk_of_before_version_3_is_refused_by_its_version(tmp_path, monkeypatch):
    found = tmp_path / "site" / "sagemaker-2.254.1.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: sagemaker\nVersion: 2.254.1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(ConfigError, match=r"installed in version 2\.254\.1.*for version 3"):
        sdk_channels(on_s3(written(tmp_path / "set")))
