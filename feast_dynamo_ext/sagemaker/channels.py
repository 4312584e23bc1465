"""Where a training job finds a training set: on S3 for SageMaker, in folders for this machine."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.manifest import open_folder
from feast_dynamo_ext.sagemaker.split import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.manifest import OutputFile, OutputFolder

CONTENT_TYPES = {"csv": "text/csv", "parquet": "application/x-parquet"}
DISTRIBUTIONS = ("FullyReplicated", "ShardedByS3Key")
INPUT_MODES = ("File", "FastFile")
DEFAULT_SPLITS = ("train", "validation")


class WrittenFiles(Protocol):
    """What channels need of a training set."""

    @property
    def output(self) -> str:
        """`s3://bucket/prefix` or an absolute local folder, without a slash at the end."""

    def files(self, split: str, format: str) -> tuple[OutputFile, ...]:  # noqa: A002 - as below
        """Files of one split in one format."""


def input_data_config(
    training_set: WrittenFiles,
    *,
    format: str = "csv",  # noqa: A002 - the word that SageMaker's users know
    splits: Sequence[str] = DEFAULT_SPLITS,
    distribution: str = "FullyReplicated",
    input_mode: str = "File",
    names: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The `InputDataConfig` of CreateTrainingJob for a training set on S3.

    Args:
        training_set: one that was written to S3.
        format: `csv` or `parquet`; both hold the same rows.
        splits: a channel each. The test split is left out unless named, so that no job tunes
            itself on it.
        distribution: of the train channel: `FullyReplicated` gives every instance all files,
            `ShardedByS3Key` each instance files of its own. Other channels are always replicated,
            so that all instances measure the same rows.
        input_mode: `File` copies before the job starts, `FastFile` streams from S3.
        names: channel name by split where it is another, as in AutoGluon's
            `{"train": "training"}`.

    Raises:
        TrainingSetError: a local training set, an unknown option, or shards of a single file.
    """
    _refuse_unknown("format", format, tuple(CONTENT_TYPES))
    _refuse_unknown("distribution", distribution, DISTRIBUTIONS)
    _refuse_unknown("input_mode", input_mode, INPUT_MODES)
    _refuse_local(training_set)
    if distribution == "ShardedByS3Key":
        _refuse_single_file(training_set, format)
    return [
        {
            "ChannelName": channel,
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    # With the slash: a prefix is a prefix of text, and `csv` is one of `csv-old`.
                    "S3Uri": f"{training_set.output}/{split}/{format}/",
                    "S3DataDistributionType": (
                        distribution if split == "train" else "FullyReplicated"
                    ),
                }
            },
            "ContentType": CONTENT_TYPES[format],
            "InputMode": input_mode,
        }
        for split, channel in channel_names(splits, names).items()
    ]


def local_folders(
    training_set: WrittenFiles,
    *,
    format: str = "csv",  # noqa: A002 - as above
    splits: Sequence[str] = DEFAULT_SPLITS,
    names: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """The folder of each channel of a training set on this machine, by channel name.

    Raises:
        TrainingSetError: a training set on S3, or an unknown option.
    """
    _refuse_unknown("format", format, tuple(CONTENT_TYPES))
    if training_set.output.startswith("s3://"):
        raise TrainingSetError(
            f"{training_set.output} is not on this machine. `copy_channels` brings it here."
        )
    return {
        channel: Path(training_set.output) / split / format
        for split, channel in channel_names(splits, names).items()
    }


def copy_channels(
    training_set: WrittenFiles,
    target: Path,
    aws: AwsSettings,
    *,
    format: str = "csv",  # noqa: A002 - as above
    splits: Sequence[str] = DEFAULT_SPLITS,
    names: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Copy a training set's files to `target/<channel>/`, as SageMaker does before a job.

    A channel's folder is replaced. Each file is checked against the manifest.

    Returns:
        The folder of each channel, by channel name.

    Raises:
        TrainingSetError: a file that is missing or not the one that was written, or an unknown
            option.
        AwsError: S3 refused.
    """
    _refuse_unknown("format", format, tuple(CONTENT_TYPES))
    source = open_folder(training_set.output, aws)
    folders = {}
    for split, channel in channel_names(splits, names).items():
        folders[channel] = target / channel
        if folders[channel].exists():
            shutil.rmtree(folders[channel])
        folders[channel].mkdir(parents=True)
        for file in training_set.files(split, format):
            _copy(source, file, folders[channel] / Path(file.path).name)
    return folders


CHANNEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def channel_names(splits: Sequence[str], names: Mapping[str, str] | None) -> dict[str, str]:
    """The channel of each split.

    Raises:
        TrainingSetError: an unknown split, two splits in one channel, or a name that SageMaker
            does not take.
    """
    for split in (*splits, *(names or {})):
        _refuse_unknown("split", split, SPLITS)
    channels = {split: (names or {}).get(split, split) for split in splits}
    if not channels or len(set(channels.values())) < len(splits):
        raise TrainingSetError(
            f"Channels {list(channels.values())} for splits {list(splits)}: each split needs a "
            "channel of its own, and there must be at least one."
        )
    for channel in channels.values():
        # It becomes the name of a folder, which is replaced.
        if not CHANNEL_NAME.fullmatch(channel) or not channel.strip("."):
            raise TrainingSetError(
                f"`{channel}` cannot be the name of a channel: 1 to 64 characters of a-z, A-Z, "
                "0-9, `.`, `_` and `-`, and not dots alone."
            )
    return channels


def _copy(source: OutputFolder, file: OutputFile, target: Path) -> None:
    digest = hashlib.sha256()
    try:
        with target.open("wb") as copy:
            for chunk in source.chunks(file.path):
                digest.update(chunk)
                copy.write(chunk)
    except FileNotFoundError as error:
        raise TrainingSetError(
            f"{source.uri}/{file.path} is in the manifest but not there. "
            "Write the training set again."
        ) from error
    if digest.hexdigest() != file.sha256:
        raise TrainingSetError(
            f"{source.uri}/{file.path} is not the file that was written: its hash is not the "
            "manifest's. Write the training set again."
        )


def _refuse_unknown(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise TrainingSetError(f"Unknown {option} `{value}`. Known: {', '.join(known)}.")


def _refuse_local(training_set: WrittenFiles) -> None:
    if not training_set.output.startswith("s3://"):
        raise TrainingSetError(
            f"{training_set.output} is a folder of this machine, and SageMaker reads from S3. "
            "Write the training set to s3://bucket/prefix, or train here with `run_locally`."
        )


def _refuse_single_file(training_set: WrittenFiles, kind: str) -> None:
    if len(training_set.files("train", kind)) == 1:
        raise TrainingSetError(
            "ShardedByS3Key gives each instance files of its own, and the train split has one: "
            "all other instances would train on nothing. Write the training set with parts= the "
            "number of instances, or use FullyReplicated."
        )
