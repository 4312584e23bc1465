"""Where a training job finds a training set: on S3 for SageMaker, in folders for this machine.

A channel says which objects of S3 a job reads, and in which mode. Keys of KMS are not a channel's:
S3 decrypts what the job's role may read, and the job has those of its output and its volumes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker import targets
from feast_dynamo_ext.sagemaker.formats import FORMATS
from feast_dynamo_ext.sagemaker.output_folder import open_folder
from feast_dynamo_ext.sagemaker.split import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.manifest import OutputFile
    from feast_dynamo_ext.sagemaker.output_folder import OutputFolder

DISTRIBUTIONS = ("FullyReplicated", "ShardedByS3Key")
INPUT_MODES = ("File", "FastFile", "Pipe")
DATA_TYPES = ("S3Prefix", "ManifestFile")
DEFAULT_SPLITS = ("train", "validation")
MOST_URI_CHARS = 1_024

# Outside of the folders of the splits, as all that lies in these is data.
MANIFESTS = "channels"


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
    target: str = "script",
    data_type: str = "S3Prefix",
    instances: int | None = None,
    shuffle_seed: int | None = None,
) -> list[dict[str, Any]]:
    """The `InputDataConfig` of CreateTrainingJob for a training set on S3.

    Args:
        training_set: one that was written to S3.
        format: of `formats.FORMATS`; all hold the same rows.
        splits: a channel each. The test split is left out unless named, so that no job tunes
            itself on it; to xgboost, lightgbm and autogluon it cannot be passed.
        distribution: of the train channel: `FullyReplicated` gives every instance all files,
            `ShardedByS3Key` each instance files of its own. Other channels are always replicated,
            so that all instances measure the same rows.
        input_mode: `File` copies before the job starts, `FastFile` reads from S3 as from a disk,
            `Pipe` streams, of RecordIO alone.
        names: channel name by split, of a script that wants others than the splits' names.
        target: of `targets.TARGETS`: names of channels and content types are as it reads them.
        data_type: `S3Prefix` names the split's folder; `ManifestFile` the list of its files that
            `write_manifest_files` wrote, so that a file that was added later is not read.
        instances: of the job. With `ShardedByS3Key` there must be as many files.
        shuffle_seed: shuffles the order of the train channel's files, the same for the same seed.

    Raises:
        TrainingSetError: a local training set, an option that is unknown or that the target does
            not read, or fewer files than instances. Names all problems of the target at once.
    """
    _refuse_unknown("format", format, FORMATS)
    _refuse_unknown("distribution", distribution, DISTRIBUTIONS)
    _refuse_unknown("input_mode", input_mode, INPUT_MODES)
    _refuse_unknown("data_type", data_type, DATA_TYPES)
    _refuse_local(training_set)
    channels = channel_names(splits, names or _names_of(target))
    problems = [
        *_target_problems(target, format, channels, input_mode),
        *_file_problems(training_set, format, splits),
    ]
    if distribution == "ShardedByS3Key":
        if not targets.target_of(target).shards:
            problems.append(
                f"{target} needs all files on each instance, and not ShardedByS3Key: use "
                "FullyReplicated"
            )
        problems += _shard_problems(training_set, format, instances or 2)
    if problems:
        raise TrainingSetError(f"Channels of {training_set.output}: {'; '.join(problems)}.")
    kind = targets.content_type(target, format)
    found = []
    for split, name in channels.items():
        is_train = split == "train"
        channel: dict[str, Any] = {
            "ChannelName": name,
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": data_type,
                    "S3Uri": _uri(training_set, split, format, data_type),
                    "S3DataDistributionType": distribution if is_train else "FullyReplicated",
                }
            },
            "ContentType": kind,
            "InputMode": input_mode,
        }
        if is_train and shuffle_seed is not None:
            channel["ShuffleConfig"] = {"Seed": shuffle_seed}
        found.append(channel)
    return found


def _names_of(target: str) -> dict[str, str]:
    """The target's channels, with its own name where a split has none: it is refused later."""
    known = targets.channel_names(target)
    return {split: known.get(split, split) for split in SPLITS}


def _target_problems(
    target: str,
    format: str,  # noqa: A002 - as above
    channels: Mapping[str, str],
    input_mode: str,
) -> list[str]:
    known = targets.target_of(target)
    problems = []
    if format not in known.formats:
        problems.append(f"{target} reads no {format}: it reads {', '.join(known.formats)}")
    if input_mode == "Pipe" and format not in known.pipe:
        readable = ", ".join(known.pipe) or "no format"
        problems.append(f"{target} reads {readable} in Pipe mode, and not {format}: use FastFile")
    if target == "script":
        return problems
    for split, name in channels.items():
        if split not in known.channels:
            problems.append(f"{target} has no channel for the split {split}: leave it out")
        elif name != known.channels[split]:
            problems.append(
                f"{target} reads the split {split} from the channel {known.channels[split]}, "
                f"and not from {name}"
            )
    if "train" not in channels:
        problems.append(f"{target} needs the split train")
    return problems


def _file_problems(
    training_set: WrittenFiles,
    format: str,  # noqa: A002 - as above
    splits: Sequence[str],
) -> list[str]:
    absent = [split for split in splits if not training_set.files(split, format)]
    return [f"there are no files of {split} in {format}" for split in absent]


def _shard_problems(
    training_set: WrittenFiles,
    format: str,  # noqa: A002 - as above
    instances: int,
) -> list[str]:
    files = len(training_set.files("train", format))
    if files >= instances:
        return []
    return [
        f"ShardedByS3Key gives each instance files of its own, and the train split has {files}: "
        "all other instances would train on nothing. Write the training set with parts= the "
        "number of instances, or use FullyReplicated"
    ]


def _uri(training_set: WrittenFiles, split: str, format: str, data_type: str) -> str:  # noqa: A002
    path = _manifest_path(split, format) if data_type == "ManifestFile" else f"{split}/{format}/"
    # A folder has the slash: a prefix is a prefix of text, and `csv` is one of `csv-old`.
    uri = f"{training_set.output}/{path}"
    if len(uri) > MOST_URI_CHARS:
        raise TrainingSetError(
            f"{uri} has {len(uri)} characters, and a channel's S3Uri {MOST_URI_CHARS} at the "
            "most. Write the training set to a shorter name."
        )
    return uri


def _manifest_path(split: str, format: str) -> str:  # noqa: A002 - as above
    return f"{MANIFESTS}/{split}-{format}.manifest"


def write_manifest_files(
    training_set: WrittenFiles,
    aws: AwsSettings,
    *,
    format: str = "csv",  # noqa: A002 - as above
    splits: Sequence[str] = DEFAULT_SPLITS,
) -> dict[str, str]:
    """Write the lists of files that channels with `data_type="ManifestFile"` name.

    They lie in `channels/` beside the splits, and hold the same bytes whenever they are written.
    A set that was overwritten needs new ones.

    Returns:
        The URI of each, by split.

    Raises:
        TrainingSetError: a local training set, or a split without files in the format.
        AwsError: S3 refused.
    """
    _refuse_unknown("format", format, FORMATS)
    _refuse_local(training_set)
    if problems := _file_problems(training_set, format, splits):
        raise TrainingSetError(f"{training_set.output}: {'; '.join(problems)}.")
    folder = open_folder(training_set.output, aws)
    written = {}
    for split in splits:
        prefix = f"{split}/{format}/"
        files = [file.path.removeprefix(prefix) for file in training_set.files(split, format)]
        path = _manifest_path(split, format)
        with folder.new_file(path) as file:
            listed = [{"prefix": folder.uri_of(prefix)}, *files]
            file.write((json.dumps(listed, indent=2) + "\n").encode())
        written[split] = folder.uri_of(path)
    return written


def sdk_channels(training_set: WrittenFiles, **options: Any) -> list[Any]:
    """The channels as `sagemaker.core.shapes.Channel`, for `ModelTrainer` of the SDK, version 3.

    `InputData` of the SDK knows neither FastFile nor ShardedByS3Key; these do.

    Args:
        training_set: one that was written to S3.
        options: those of `input_data_config`.

    Raises:
        TrainingSetError: as `input_data_config`.
        ConfigError: the SDK is not installed, or an older one is.
    """
    shapes = _sdk_shapes()
    channels = []
    for found in input_data_config(training_set, **options):
        source = found["DataSource"]["S3DataSource"]
        shuffle = found.get("ShuffleConfig")
        channels.append(
            shapes.Channel(
                channel_name=found["ChannelName"],
                data_source=shapes.DataSource(
                    s3_data_source=shapes.S3DataSource(
                        s3_data_type=source["S3DataType"],
                        s3_uri=source["S3Uri"],
                        s3_data_distribution_type=source["S3DataDistributionType"],
                    )
                ),
                content_type=found["ContentType"],
                input_mode=found["InputMode"],
                **(
                    {"shuffle_config": shapes.ShuffleConfig(seed=shuffle["Seed"])}
                    if shuffle
                    else {}
                ),
            )
        )
    return channels


def _sdk_shapes() -> Any:
    """The module of the SDK's shapes.

    `sagemaker` 2 beside a `sagemaker-core` of version 3's installs without a word, and breaks at
    some later import.
    """
    try:
        version = metadata.version("sagemaker")
    except metadata.PackageNotFoundError:
        version = ""
    if version.split(".")[0] in ("0", "1", "2"):
        raise ConfigError(
            f"SageMaker's SDK is installed in version {version}, and channels are made for "
            "version 3. Run `pip install 'feast-dynamo-ext[sagemaker]'`, or pass `channels()` to "
            "boto3."
        )
    try:
        from sagemaker.core import shapes
    except ImportError as error:
        raise ConfigError(
            f"SageMaker's SDK cannot be imported: {error}. Run "
            "`pip install 'feast-dynamo-ext[sagemaker]'`, or pass `channels()` to boto3."
        ) from error
    return shapes


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
    _refuse_unknown("format", format, FORMATS)
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
    _refuse_unknown("format", format, FORMATS)
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
            "Write the training set to s3://bucket/prefix, or train here with `run_training_job`."
        )
