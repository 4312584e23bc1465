"""From a point-in-time join to what a SageMaker training job reads.

`write_training_set` writes rows as train, validation and test files with a manifest; `verify`
checks them; `TrainingSet.channels`, `training_job_request` and `create_training_job` start a job
on them; `run_training_job` runs the same request on this machine instead.
"""

from feast_dynamo_ext.sagemaker.channels import (
    copy_channels,
    input_data_config,
    local_folders,
    sdk_channels,
    write_manifest_files,
)
from feast_dynamo_ext.sagemaker.content_hash import hash_table
from feast_dynamo_ext.sagemaker.encodings import Encoding, FittedEncoding
from feast_dynamo_ext.sagemaker.job_source import SourceCode, pack_source
from feast_dynamo_ext.sagemaker.local_job import LocalJob, run_training_job
from feast_dynamo_ext.sagemaker.manifest import (
    ColumnSummary,
    LabelStatistics,
    Manifest,
    OutputFile,
    SplitSummary,
    load_manifest,
)
from feast_dynamo_ext.sagemaker.provenance import (
    EntityRowsOrigin,
    Provenance,
    SourceFile,
    SourceSnapshot,
)
from feast_dynamo_ext.sagemaker.request_check import (
    RequestProblem,
    check_request,
    request_problems,
)
from feast_dynamo_ext.sagemaker.set_verification import VerifyReport, verify
from feast_dynamo_ext.sagemaker.split import (
    SPLITS,
    ColumnSplit,
    GroupSplit,
    NoSplit,
    RandomSplit,
    SplitRule,
    StratifiedSplit,
    TimeFractions,
    TimeSplit,
)
from feast_dynamo_ext.sagemaker.training_job import (
    TrainingJob,
    create_training_job,
    describe_training_job,
    hyperparameter_strings,
    training_job_request,
)
from feast_dynamo_ext.sagemaker.training_set import (
    TrainingSet,
    create_training_set,
    load_training_set,
    write_training_set,
)

__all__ = [
    "SPLITS",
    "ColumnSplit",
    "ColumnSummary",
    "Encoding",
    "EntityRowsOrigin",
    "FittedEncoding",
    "GroupSplit",
    "LabelStatistics",
    "LocalJob",
    "Manifest",
    "NoSplit",
    "OutputFile",
    "Provenance",
    "RandomSplit",
    "RequestProblem",
    "SourceCode",
    "SourceFile",
    "SourceSnapshot",
    "SplitRule",
    "SplitSummary",
    "StratifiedSplit",
    "TimeFractions",
    "TimeSplit",
    "TrainingJob",
    "TrainingSet",
    "VerifyReport",
    "check_request",
    "copy_channels",
    "create_training_job",
    "create_training_set",
    "describe_training_job",
    "hash_table",
    "hyperparameter_strings",
    "input_data_config",
    "load_manifest",
    "load_training_set",
    "local_folders",
    "pack_source",
    "request_problems",
    "run_training_job",
    "sdk_channels",
    "training_job_request",
    "verify",
    "write_manifest_files",
    "write_training_set",
]
