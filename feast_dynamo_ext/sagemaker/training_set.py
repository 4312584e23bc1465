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

import collections
import hashlib
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import one_array, plain, plain_type
from feast_dynamo_ext.errors import (
    ConfigError,
    DestinationExistsError,
    FeastDynamoError,
    TrainingSetError,
)
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.snapshots import tag
from feast_dynamo_ext.parquet.iceberg.table_files import pinned_snapshots
from feast_dynamo_ext.sagemaker.channels import input_data_config
from feast_dynamo_ext.sagemaker.encodings import (
    CATEGORY_KINDS,
    Encoding,
    FittedEncoding,
    arrow_type,
)
from feast_dynamo_ext.sagemaker.fitting import Fitting
from feast_dynamo_ext.sagemaker.formats import (
    CATEGORICAL_INDEX,
    EXTENSIONS,
    FileRoles,
    categorical_index,
    type_problems,
)
from feast_dynamo_ext.sagemaker.manifest import (
    ENTITY_ROWS,
    MANIFEST,
    ColumnSummary,
    Manifest,
    OutputFile,
    OutputFolder,
    Provenance,
    SplitSummary,
    library_versions,
    open_folder,
    read_manifest,
)
from feast_dynamo_ext.sagemaker.row_spool import BATCH_ROWS, RowSpool
from feast_dynamo_ext.sagemaker.shards import (
    HashingFile,
    OpenShards,
    ParquetFile,
    ShardFormat,
    SplitTally,
    deal,
    hash_of_parts,
)
from feast_dynamo_ext.sagemaker.split import checked_split
from feast_dynamo_ext.sagemaker.targets import check as check_target
from feast_dynamo_ext.sagemaker.targets import target_of
from feast_dynamo_ext.sagemaker.training_columns import (
    ColumnScan,
    TrainingColumns,
    check_label,
    check_outputs,
    written_encodings,
)
from feast_dynamo_ext.storage import discard

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from feast import FeatureService, FeatureStore
    from numpy.typing import NDArray

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.split import SplitRule

_OWN_FILE = re.compile(
    r"(train|validation|test)/(csv|parquet|recordio|libsvm)/part-\d{5}\.(csv|parquet|recordio|libsvm)"
    r"|(train|validation|test)/csv/categorical_index\.json"
    r"|rows/(train|validation|test)(/part-\d{5})?\.parquet"
    r"|rows/entity_rows\.parquet"
)
_KILLED = re.compile(r"(.*/)?\.[^/]+\.[0-9a-f]{32}\.tmp")
"""What a writer that was killed leaves on a disk."""

FORMATS = ("csv", "parquet")
"""Written by default."""

KEEPS_TEXT = "script"
"""The target for which texts and times may stay as they are."""

WRITES_AHEAD = 2
"""Blocks that are encoded before they are written."""

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
    sources = {view.batch_source.name: view.batch_source for view in getattr(job, "views", ())}
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
    if target is not None:
        target_of(target)
    folder = open_folder(output, aws)
    _refuse_existing(folder, overwrite=overwrite)
    schema = pa.schema([table.schema.field(each) for each in roles.names])
    types = {each: schema.field(each).type for each in roles.encoded}
    fitting = Fitting(encodings or {}, types, keeps=target == KEEPS_TEXT)
    categories = [each for each, kind in fitting.kinds.items() if kind in CATEGORY_KINDS]
    with RowSpool(schema, categories, spill_folder) as spool:
        build = _Build(roles, rule, parts, spool)
        build.keep(_batches_of(table, roles.names))
        fitted = build.fit(fitting)
        form = _form(roles, fitted, spool.schema, formats, target)
        build.check(form, fitted)
        # The join took a while.
        _refuse_existing(folder, overwrite=overwrite)
        _make_room(folder)
        written = build.write(folder, form, fitted, entity_rows)
    given = {*given_features, *roles.names} - ({*features} - {*given_features})
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
    _publish(folder, manifest)
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


def _form(
    roles: TrainingColumns,
    fitted: Mapping[str, FittedEncoding],
    schema: pa.Schema,
    formats: Sequence[str],
    target: str | None,
) -> ShardFormat:
    fields = [
        pa.field(name, arrow_type(kind))
        for column in roles.encoded
        for name, kind in zip(fitted[column].outputs, fitted[column].types, strict=True)
    ]
    names = [each.name for each in fields]
    check_outputs(names)
    for each in formats:
        if each not in EXTENSIONS:
            raise TrainingSetError(f"Unknown format `{each}`. Known: {', '.join(EXTENSIONS)}.")
    problems = [text for each in formats for text in type_problems(each, pa.schema(fields))]
    if problems:
        raise TrainingSetError(f"{'; '.join(problems)}. Encode it, or leave out the format.")
    features = tuple(names[1 + (roles.weight is not None) :])
    categorical = tuple(
        name
        for column in roles.features
        if fitted[column].is_categorical
        for name in fitted[column].outputs
    )
    # Fields made anew: the table's may carry metadata, pandas' index among it.
    kept = pa.schema([pa.field(each, schema.field(each).type) for each in roles.kept])
    return ShardFormat(
        tuple(formats),
        pa.schema(fields),
        FileRoles(roles.label, roles.weight, features, categorical),
        kept,
        target,
    )


@dataclass
class _Written:
    """What a build has written."""

    files: tuple[OutputFile, ...]
    splits: dict[str, SplitSummary]
    content: dict[str, dict[str, str]]
    nulls: dict[str, dict[str, int]]


class _Build:
    """The steps from rows to files.

    Attributes:
        assigned: what the split assigned to each row, once all are kept.
    """

    def __init__(
        self, roles: TrainingColumns, rule: SplitRule, parts: int, spool: RowSpool
    ) -> None:
        self._roles, self._rule, self._parts, self._spool = roles, rule, parts, spool
        self._scan = ColumnScan(roles)
        self.assigned: NDArray[np.int8] = np.zeros(0, np.int8)
        self._shards: NDArray[np.int32] = np.zeros(0, np.int32)

    def keep(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Spool the rows, and assign each to a shard."""
        roles, rule = self._roles, self._rule
        reads = rule.columns(roles.event_timestamp, roles.label)
        empty = self._spool.schema.empty_table()
        narrowed = [rule.narrow([one_array(empty.column(each)) for each in reads], 0)]
        labels = [one_array(empty.column(roles.label))]
        for block in self._spool.fill(batches):
            of_block = rule.narrow([block.column(each) for each in reads], self._scan.rows)
            narrowed.append(_alone(of_block))
            if self._parts > 1:
                labels.append(_alone(block.column(roles.label)))
            self._scan.add(block)
        self._scan.check()
        self.assigned = rule.assign(pa.concat_arrays(narrowed))
        self._refuse_parts()
        self._shards = deal(self.assigned, len(rule.splits), self._parts, pa.concat_arrays(labels))

    def _refuse_parts(self) -> None:
        rows = {name: int((self.assigned == at).sum()) for at, name in enumerate(self._splits)}
        smallest = min(filter(rows.__getitem__, rows), key=rows.__getitem__)
        if not 1 <= self._parts <= rows[smallest]:
            raise TrainingSetError(
                f"`parts` is {self._parts}: it must be at least 1 and at most the rows of the "
                f"smallest split, which is {smallest} with {rows[smallest]}."
            )

    @property
    def _splits(self) -> tuple[str, ...]:
        return self._rule.splits

    def fit(self, fitting: Fitting) -> dict[str, FittedEncoding]:
        """Fit on the rows that train, and choose the types that are written."""
        while fitting.columns:
            for rows in self._spool.train_rows(fitting.columns, self.assigned):
                fitting.add(rows)
            fitting.end_pass()
        fitted = written_encodings(fitting.finish(), self._scan.nulls)
        label = fitted[self._roles.label]
        check_label(label)
        if label.kind == "ordinal":
            # A class that no model has seen is an error, not a class of its own.
            state = {**label.state, "unknown": "missing"}
            fitted[self._roles.label] = replace(label, state=state)
        self._scan.check_inexact(
            [
                name
                for name, each in fitted.items()
                if each.types == ("double",)
                and pa.types.is_integer(self._spool.schema.field(name).type)
            ]
        )
        return fitted

    def check(self, form: ShardFormat, fitted: Mapping[str, FittedEncoding]) -> None:
        """Refuse what the target cannot train on."""
        if form.target is None:
            return
        sizes = {name: int((self.assigned == at).sum()) for at, name in enumerate(self._splits)}
        missing: dict[str, dict[str, int]] = {name: {} for name in self._splits}
        holes = [
            name
            for name in self._roles.features
            if self._scan.nulls[name] and fitted[name].state.get("missing") is None
        ]
        for first, block in self._spool.read(holes) if holes else ():
            places = self.assigned[first : first + block.num_rows]
            for column in holes:
                of_null = places[np.asarray(block.column(column).is_null())]
                for at, split in enumerate(self._splits):
                    count = int((of_null == at).sum())
                    for output in fitted[column].outputs if count else ():
                        missing[split][output] = missing[split].get(output, 0) + count
        check_target(
            form.target,
            form.formats,
            form.schema,
            form.roles,
            rows=sizes,
            missing=missing,
            parts=self._parts,
        )

    def write(
        self,
        folder: OutputFolder,
        form: ShardFormat,
        fitted: Mapping[str, FittedEncoding],
        entity_rows: pa.Table | None,
    ) -> _Written:
        """Write all files but the manifest; where one fails, none of them remains."""
        numbers = [int(each) for each in np.unique(self._shards[self._shards >= 0])]
        names = [(self._splits[each // self._parts], each % self._parts) for each in numbers]
        indexed = sorted({split for split, _ in names}) if form.has_index else []
        paths = [path for split, part in names for path in form.paths(split, part)]
        paths += [f"{split}/csv/{CATEGORICAL_INDEX}" for split in indexed]
        passing = _Passing(fitted, self._roles, form)
        at_once = max(1, OPEN_BYTES // (BATCH_ROWS * form.row_bytes))
        try:
            files, digests = [], {}
            for start in range(0, len(numbers), at_once):
                with OpenShards(folder, form) as shards:
                    for number, name in zip(
                        numbers[start:][:at_once], names[start:], strict=False
                    ):
                        shards.open(number, *name)
                    self._pass(shards, numbers[start:][:at_once], passing)
                    done = shards.close()
                for number, (made, hashes) in done.items():
                    files += made
                    digests[number] = hashes
            for split in indexed:
                files.append(_small(folder, f"{split}/csv/{CATEGORICAL_INDEX}", form))
            if entity_rows is not None:
                paths.append(ENTITY_ROWS)
                files.append(_copy_of(folder, entity_rows))
        except BaseException:
            discard(folder.storage, [folder.uri_of(path) for path in paths])
            raise
        splits = [split for at, split in enumerate(self._splits) if at in passing.tallies]
        return _Written(
            tuple(sorted(files, key=lambda file: file.path)),
            {split: passing.tallies[self._splits.index(split)].summary() for split in splits},
            {split: self._content(form, names, numbers, digests, split) for split in splits},
            {
                column: {
                    split: passing.nulls[column].get(self._splits.index(split), 0)
                    for split in splits
                }
                for column in self._roles.encoded
            },
        )

    @staticmethod
    def _content(
        form: ShardFormat,
        names: Sequence[tuple[str, int]],
        numbers: Sequence[int],
        digests: Mapping[int, Sequence[str]],
        split: str,
    ) -> dict[str, str]:
        of_split = [
            digests[each] for each, (name, _) in zip(numbers, names, strict=True) if name == split
        ]
        return {
            column: hash_of_parts([each[at] for each in of_split])
            for at, column in enumerate(form.schema.names)
        }

    def _pass(self, shards: OpenShards, numbers: Sequence[int], passing: _Passing) -> None:
        """Encode the rows of some shards, and append each to its own.

        A thread writes, in order, what this one has encoded.
        """
        under_way: collections.deque[Future[None]] = collections.deque()
        with ThreadPoolExecutor(1, "feast-dynamo-training-set") as writer:
            for part in self._parts_of(numbers, passing):
                under_way.append(writer.submit(shards.write, *part))
                if len(under_way) > WRITES_AHEAD:
                    under_way.popleft().result()
            for write in under_way:
                write.result()

    def _parts_of(
        self, numbers: Sequence[int], passing: _Passing
    ) -> Iterator[tuple[int, pa.RecordBatch, pa.RecordBatch]]:
        """Of each block the rows of each of the shards: its number, encoded and kept columns."""
        for first, block in self._spool.read():
            places = self._shards[first : first + block.num_rows]
            is_in = (places >= numbers[0]) & (places <= numbers[-1])
            if not is_in.any():
                continue
            if not is_in.all():
                block, places = block.filter(pa.array(is_in)), places[is_in]  # noqa: PLW2901
            encoded, kept = passing.encode(block, places // self._parts)
            found = np.unique(places)
            for number in found:
                if len(found) == 1:
                    yield int(number), encoded, kept
                else:
                    mask = pa.array(places == number)
                    yield int(number), encoded.filter(mask), kept.filter(mask)


class _Passing:
    """Encodes blocks, and counts what passes by split.

    Attributes:
        tallies: of each split, by its place.
        nulls: rows without a value, by column and place of the split.
    """

    def __init__(
        self, fitted: Mapping[str, FittedEncoding], roles: TrainingColumns, form: ShardFormat
    ) -> None:
        self._fitted, self._roles, self._form = fitted, roles, form
        self.tallies: dict[int, SplitTally] = {}
        self.nulls: dict[str, dict[int, int]] = {name: {} for name in roles.encoded}

    def encode(
        self, block: pa.RecordBatch, splits: NDArray[np.int32]
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """The encoded columns of a block, and those that are kept beside."""
        times, columns = block.column(self._roles.event_timestamp), []
        for name in self._roles.encoded:
            column = block.column(name)
            if column.null_count:
                missing = splits[np.asarray(column.is_null())]
                for at, count in zip(*np.unique(missing, return_counts=True), strict=True):
                    self.nulls[name][int(at)] = self.nulls[name].get(int(at), 0) + int(count)
            columns += self._fitted[name].encode(column, times)
        encoded = pa.RecordBatch.from_arrays(columns, schema=self._form.schema)
        kept = pa.RecordBatch.from_arrays(
            [plain(block.column(each.name)) for each in self._form.kept], schema=self._form.kept
        )
        self._tally(encoded.column(0), kept.column(self._roles.event_timestamp), splits)
        return encoded, kept

    def _tally(self, labels: pa.Array, times: pa.Array, splits: NDArray[np.int32]) -> None:
        if labels.null_count:
            raise TrainingSetError(
                f"The label `{self._roles.label}` is in {labels.null_count} rows none of the "
                "categories that the rows that train have. Declare all of its `categories`."
            )
        for at in np.unique(splits):
            mask = pa.array(splits == at)
            tally = self.tallies.setdefault(int(at), SplitTally())
            tally.add(labels.filter(mask), times.filter(mask))


def _alone(column: pa.Array) -> pa.Array:
    """A copy with memory of its own: a column of a message that was read holds the whole of it."""
    return pa.concat_arrays([column, column.slice(0, 0)])


def _small(folder: OutputFolder, path: str, form: ShardFormat) -> OutputFile:
    data = categorical_index(form.roles)
    with folder.new_file(path) as file:
        file.write(data)
    return OutputFile(path, len(data), 0, hashlib.sha256(data).hexdigest())


def _copy_of(folder: OutputFolder, rows: pa.Table) -> OutputFile:
    """Entity rows as they were given, without which the set could not be built again."""
    schema = pa.schema([pa.field(each.name, plain_type(each.type)) for each in rows.schema])
    with folder.new_file(ENTITY_ROWS) as new:
        file = HashingFile(new)
        copy = ParquetFile(file, schema)
        for batch in rows.to_batches(max_chunksize=BATCH_ROWS):
            columns = [plain(column) for column in batch.columns]
            copy.write(pa.RecordBatch.from_arrays(columns, schema=schema))
        copy.close()
    return OutputFile(ENTITY_ROWS, file.written, rows.num_rows, file.sha256)


def _refuse_existing(folder: OutputFolder, *, overwrite: bool) -> None:
    if not overwrite and folder.exists(MANIFEST):
        raise TrainingSetError(
            f"{folder.uri} holds a training set already. Choose another output, or pass "
            "overwrite=True to replace it."
        )
    foreign = [
        path
        for path in folder.files()
        if not (_OWN_FILE.fullmatch(path) or _KILLED.fullmatch(path))
    ]
    if foreign:
        raise TrainingSetError(
            f"{folder.uri} holds {len(foreign)} files that no training set wrote, and a job would "
            f"read as data: {', '.join(foreign[:5])}. Choose another output, or move them away."
        )


def _make_room(folder: OutputFolder) -> None:
    # The manifest goes first: what is left after an interruption is then no training set.
    if folder.exists(MANIFEST):
        folder.delete([MANIFEST])
    folder.delete(
        [path for path in folder.files() if _OWN_FILE.fullmatch(path) or _KILLED.fullmatch(path)]
    )


def _publish(folder: OutputFolder, manifest: Manifest) -> None:
    """Write the manifest, unless another build was here meanwhile."""
    found, ours = set(folder.files()), {file.path for file in manifest.files}
    if found != ours:
        raise TrainingSetError(
            f"Another process wrote to {folder.uri} meanwhile: {len(found ^ ours)} files are not "
            "those of this training set. Build one set at a time there, and run it again."
        )
    try:
        folder.create(MANIFEST, manifest.to_json().encode())
    except DestinationExistsError as error:
        raise TrainingSetError(
            f"Another process wrote a training set to {folder.uri} meanwhile. Verify that one, or "
            "run this again with overwrite=True."
        ) from error
