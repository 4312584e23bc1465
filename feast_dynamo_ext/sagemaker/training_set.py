"""A training set: the rows of a point-in-time join, split and encoded, as files SageMaker reads.

Under its output::

    train/       csv/part-00000.csv    parquet/part-00000.parquet
    validation/  csv/part-00000.csv    parquet/part-00000.parquet
    test/        csv/part-00000.csv    parquet/part-00000.parquet
    rows/        train/part-00000.parquet   ...   entity_rows.parquet
    manifest.json

`rows/` holds entity columns, event time and helpers of each row, in the order of the split's
files, so that predictions can be joined back, and the entity rows where they came from memory. It
lies outside the folders that channels point to.

A build streams: the join is spooled to disk once, rows are assigned to splits by narrow columns,
encodings are fitted on those that train, and all are encoded from the spool. The manifest is
written last, and only where there is none.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.errors import ConfigError, FeastDynamoError, TrainingSetError
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.snapshots import tag
from feast_dynamo_ext.parquet.iceberg.table_files import pinned_snapshots
from feast_dynamo_ext.sagemaker.channels import input_data_config
from feast_dynamo_ext.sagemaker.encodings import CATEGORY_KINDS, Encoding
from feast_dynamo_ext.sagemaker.fitting import Fitting
from feast_dynamo_ext.sagemaker.manifest import (
    ColumnSummary,
    Manifest,
    OutputFile,
    library_versions,
    read_manifest,
)
from feast_dynamo_ext.sagemaker.output_folder import claimed, open_folder, refuse_existing
from feast_dynamo_ext.sagemaker.row_spool import BATCH_ROWS, RowSpool
from feast_dynamo_ext.sagemaker.set_build import Build, form_of
from feast_dynamo_ext.sagemaker.split import checked_split
from feast_dynamo_ext.sagemaker.targets import target_of
from feast_dynamo_ext.sagemaker.training_columns import (
    TrainingColumns,
    check_answers,
    refuse_idle,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from feast import FeatureService, FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.provenance import Provenance
    from feast_dynamo_ext.sagemaker.split import SplitRule

FORMATS = ("csv", "parquet")
"""Written by default."""

KEEPS_TEXT = "script"
"""The target for which texts and times may stay as they are."""

OPEN_BYTES = 256 << 20
"""Of rows that wait in shards that are written side by side, about."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """A complete training set.

    Attributes:
        output: `s3://bucket/prefix` or an absolute local folder, without a slash at the end.
        manifest: what it is made of and from.
    """

    output: str
    manifest: Manifest

    def files(self, split: str, format: str) -> tuple[OutputFile, ...]:  # noqa: A002 - as channels
        """Files of one split (`train`, `validation`, `test`) in one format (`csv`, `parquet`)."""
        folder = f"{split}/{format}/"
        return tuple(file for file in self.manifest.files if file.path.startswith(folder))

    def channels(self, **options: Any) -> list[dict[str, Any]]:
        """Its `InputDataConfig`; options and errors are those of `input_data_config`."""
        return input_data_config(self, **options)

    def summary(self) -> list[dict[str, Any]]:
        """A row per split, train first: its rows, its first and last event time, its label."""
        return [
            {
                "split": split,
                "rows": found.rows,
                "first_event": found.first_event,
                "last_event": found.last_event,
                "label_mean": found.label.mean,
                "label_min": found.label.min,
                "label_max": found.label.max,
            }
            for split, found in (
                (split, self.manifest.splits[split])
                for split in self.manifest.split.splits
                if split in self.manifest.splits
            )
        ]


def load_training_set(output: str, aws: AwsSettings) -> TrainingSet:
    """Open a training set that was written before.

    Raises:
        TrainingSetError: there is no complete training set, or its manifest cannot be read.
        AwsError: S3 refused.
    """
    folder = open_folder(output, aws)
    return TrainingSet(folder.uri, read_manifest(folder))


def create_training_set(
    store: FeatureStore,
    *,
    entity_rows: Any,
    features: list[str] | FeatureService,
    label: str,
    output: str,
    split: SplitRule | None = None,
    full_feature_names: bool = False,
    overwrite: bool = False,
    parts: int = 1,
    snapshots: Mapping[str, str] | None = None,
    **options: Any,
) -> TrainingSet:
    """Join features to entity rows, point in time, and write the result for SageMaker.

    Args:
        store: the feature store; its provider must be `feast_dynamo_ext.DynamoProvider`.
        entity_rows: join keys, `event_timestamp` and the label, one row an example: a pandas,
            Arrow or Polars table, a path or URI of Parquet or CSV, or SQL.
        features: feature references, or a feature service.
        label: the column of the entity rows that is to be predicted.
        output: `s3://bucket/prefix` or a local folder.
        split: which rows are train, validation and test; required.
        full_feature_names: name features ``view__feature``.
        overwrite: replace the training set that is there.
        parts: files a split and format.
        snapshots: of sources that are Iceberg tables the snapshot to read, by the source's name:
            an id, as `manifest.json` of an earlier training set has it, or a tag. By default the
            newest.
        options: `weight`, `helpers`, `given_features` (columns of the entity rows to train on),
            `encodings`, `target`, `formats`, `name`, `definition`, as of `write_training_set`.

    Raises:
        ConfigError: the store has another provider.
        FeatureNotFoundError: a feature that its view does not have.
        OfflineStoreError: the join is not possible; see the subclasses.
        TrainingSetError: no split, or the result cannot be a training set; see
            `write_training_set`.
    """
    split = checked_split(split)
    # Whoever writes training sets will do: the provider stands above this module.
    write = getattr(store.provider, "write_training_set", None)
    if write is None:
        raise ConfigError(
            f"Training sets are written by the provider feast_dynamo_ext.DynamoProvider, not by "
            f"{type(store.provider).__name__}. Set `provider` in feature_store.yaml."
        )
    # Loaded here: all else needs no Feast.
    from feast_dynamo_ext.dynamo.views import refuse_unknown_features

    # Of which Feast raises a KeyError.
    refuse_unknown_features(store.registry, store.project, features)
    with pinned_snapshots(snapshots or {}):
        job = store.get_historical_features(
            entity_df=entity_rows, features=features, full_feature_names=full_feature_names
        )
        written: TrainingSet = write(
            job,
            label=label,
            output=output,
            split=split,
            overwrite=overwrite,
            parts=parts,
            features=_references(store, features),
            feature_service=None if isinstance(features, list) else features.name,
            **options,
        )
    _tag_snapshots(store, job, written)
    return written


def _tag_snapshots(store: FeatureStore, job: Any, written: TrainingSet) -> None:
    """Keep the versions of Iceberg tables that a training set was made of, by a tag each.

    Where that is not allowed, it is said: the training set is there all the same.
    """
    read = written.manifest.provenance.snapshots
    views = [*getattr(job, "views", ()), *getattr(job, "bases", ())]
    sources = {view.batch_source.name: view.batch_source for view in views}
    name = f"training-set-{hashlib.sha256(written.manifest.to_json().encode()).hexdigest()[:12]}"
    for source, found in read.items():
        handle = TableHandle.from_source(sources[source], store.config)
        try:
            _keep(handle, name, int(found.snapshot))
        except FeastDynamoError as error:
            logger.warning(
                "training set %s: version %s of %s could not be tagged, and may expire, so that "
                "the set cannot be built again: %s",
                written.output,
                found.snapshot,
                found.table,
                error,
            )


def _keep(handle: TableHandle, name: str, snapshot: int) -> None:
    tagged = {
        ref.snapshot_id
        for ref in handle.load().refs().values()
        if ref.snapshot_ref_type.value == "tag"
    }
    if snapshot not in tagged:
        tag(handle, name, snapshot)


def _references(store: FeatureStore, features: Any) -> list[str]:
    """References of what is requested; a feature service is as the registry has it, as for Feast.

    A retrieval has more: Feast adds the inputs of on-demand views.
    """
    if isinstance(features, list):
        return features
    service = store.registry.get_feature_service(features.name, store.project, allow_cache=True)
    projections: list[Any] = service.feature_view_projections
    return [
        f"{projection.name_to_use()}:{field.name}"
        for projection in projections
        for field in projection.features
    ]


def write_training_set(
    table: pa.Table | pa.RecordBatchReader,
    *,
    label: str,
    event_timestamp: str,
    entity_columns: Sequence[str],
    features: Sequence[str],
    output: str,
    split: SplitRule,
    aws: AwsSettings,
    provenance: Provenance,
    overwrite: bool = False,
    parts: int = 1,
    weight: str | None = None,
    helpers: Sequence[str] = (),
    encodings: Mapping[str, Encoding] | None = None,
    target: str | None = None,
    formats: Sequence[str] = FORMATS,
    name: str | None = None,
    definition: Mapping[str, Any] | None = None,
    entity_rows: pa.Table | None = None,
    given_features: Sequence[str] = (),
    spill_folder: str | None = None,
    open_bytes: int = OPEN_BYTES,
) -> TrainingSet:
    """Write the rows of a point-in-time join as a training set.

    All formats hold the label first, then the weight, then the encoded features in order.
    Undeclared columns are plain numbers: booleans as int64, decimals as float64, integers with
    missing values as float64; the rest keeps its type. A missing value is an empty cell or a
    null; NaN counts as missing. Rows keep their order, but for shards that keep the balance of
    classes. The same input and library versions give the same bytes. The manifest is written
    last: without one, a training set is incomplete, and may be written again.

    Args:
        table: one row per example; of a reader, the rows are never in memory all at once.
        label: column to predict: numbers or booleans, or categories with a declared encoding;
            none missing.
        event_timestamp: column of the event time.
        entity_columns: columns that identify a row's entity; kept in `rows/`, not trained on.
        features: columns to train on.
        output: `s3://bucket/prefix` or a local folder.
        split: the split rule.
        aws: how to reach S3.
        provenance: where the rows come from, for the manifest.
        overwrite: replace the training set that is there.
        parts: files per split and format. As many as the job has instances lets each of them
            read a part of its own (`ShardedByS3Key`).
        weight: column of the rows' weights, 0 or more.
        helpers: columns that are kept in `rows/`, and never trained on.
        encodings: how columns become numbers, by column; fitted on the rows that train.
        target: what the files are for; None for no algorithm in particular. For `script`, texts
            and times without a declared encoding stay as they are.
        formats: of `formats.FORMATS`.
        name: of a declared set, for the manifest.
        definition: its declaration, for the manifest.
        entity_rows: those that came from memory; a copy of them is kept, for a rebuild.
        given_features: those of `features` that are columns of the entity rows, which an endpoint
            needs in its requests.
        spill_folder: where rows are kept meanwhile; default: the system's folder for temporary
            files.
        open_bytes: memory of rows that wait in shards that are written side by side, about.

    Raises:
        TrainingSetError: a column that is absent or cannot be written as declared, a row without
            label or event time, an empty split, a training set that is there already, or a file
            that is in the way.
        OfflineStoreError: the disk for the rows is full.
        AwsError: S3 refused.
    """
    rule = checked_split(split)
    roles = TrainingColumns(
        label, event_timestamp, tuple(entity_columns), tuple(features), weight, tuple(helpers)
    )
    read_by_split = [
        each for each in rule.columns(event_timestamp, label) if each not in roles.names
    ]
    roles = replace(roles, helpers=(*roles.helpers, *read_by_split))
    roles.check(table.schema)
    kinds = {
        each: "join_key" if role == "entity" else role for each, role in roles.roles().items()
    }
    refuse_idle(dict.fromkeys(encodings or {}), kinds)
    if target is not None:
        target_of(target)
    given = {*given_features, *roles.names} - ({*features} - {*given_features})
    folder = open_folder(output, aws)
    seen = refuse_existing(folder, overwrite=overwrite)
    schema = pa.schema([table.schema.field(each) for each in roles.names])
    types = {each: schema.field(each).type for each in roles.encoded}
    fitting = Fitting(encodings or {}, types, keeps=target == KEEPS_TEXT)
    check_answers(roles, fitting.kinds, encodings or {})
    categories = [each for each, kind in fitting.kinds.items() if kind in CATEGORY_KINDS]
    with RowSpool(schema, categories, spill_folder) as spool:
        build = Build(roles, rule, parts, spool, open_bytes)
        build.keep(_batches_of(table, roles.names))
        fitted = build.fit(fitting)
        form = form_of(roles, fitted, spool.schema, formats, target)
        build.check(form, fitted)
        if seen is not None:
            build.try_out(form, fitted)  # before a set that is there is given up
        # The join took a while.
        refuse_existing(folder, overwrite=overwrite)
        with claimed(folder, seen) as claim:
            written = build.write(claim, form, fitted, entity_rows)
            manifest = Manifest(
                label=label,
                event_timestamp=event_timestamp,
                entity_columns=roles.entity_columns,
                features=roles.features,
                columns=tuple(
                    ColumnSummary(
                        each,
                        role,
                        str(schema.field(each).type),
                        fitted.get(each),
                        written.nulls.get(each, {}),
                        "entity_rows" if each in given else "features",
                        _declared((encodings or {}).get(each)),
                    )
                    for each, role in roles.roles().items()
                ),
                split=rule,
                splits=written.splits,
                files=written.files,
                provenance=provenance,
                libraries=library_versions(),
                weight=weight,
                helpers=roles.helpers,
                target=target,
                formats=tuple(formats),
                parts=parts,
                name=name,
                definition=definition,
                content=written.content,
                left_out=int((build.assigned < 0).sum()),
            )
            claim.publish(manifest.to_json().encode(), [file.path for file in manifest.files])
    return TrainingSet(folder.uri, manifest)


def _declared(encoding: Encoding | None) -> dict[str, Any] | None:
    if encoding is None:
        return None
    # A declared set's columns have a role besides, which is not of the encoding.
    fields = set(Encoding.model_fields)
    values: dict[str, Any] = encoding.model_dump(
        mode="json", by_alias=True, exclude_unset=True, include=fields
    )
    return values


def refuse_roleless(columns: Sequence[str], known: Collection[str | None]) -> None:
    """Refuse columns of the entity rows that no role is declared of.

    Raises:
        TrainingSetError: names them.
    """
    without = [name for name in columns if name not in known]
    if without:
        raise TrainingSetError(
            f"The entity rows have columns without a role: {', '.join(without)}. Declare under "
            f"`columns` whether each is a feature or a helper. `{without[0]}: helper` keeps it "
            "beside, and never trains on it."
        )


def _batches_of(
    table: pa.Table | pa.RecordBatchReader, names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    if isinstance(table, pa.Table):
        yield from table.select(list(names)).to_batches(max_chunksize=BATCH_ROWS)
        return
    for batch in table:
        yield batch.select(list(names))
