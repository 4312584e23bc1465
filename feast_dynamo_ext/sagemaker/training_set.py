"""A training set: the rows of a point-in-time join, split by time, as files SageMaker reads.

Under its output::

    train/       csv/part-00000.csv    parquet/part-00000.parquet
    validation/  csv/part-00000.csv    parquet/part-00000.parquet
    test/        csv/part-00000.csv    parquet/part-00000.parquet
    rows/        train.parquet  validation.parquet  test.parquet
    manifest.json

`rows/` holds entity columns and event time of each row, in the order of the split's files, so that
predictions can be joined back. It lies outside the folders that channels point to.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from feast_dynamo_ext.errors import ConfigError, FeastDynamoError, TrainingSetError
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.snapshots import tag
from feast_dynamo_ext.parquet.iceberg.table_files import pinned_snapshots
from feast_dynamo_ext.sagemaker.channels import input_data_config
from feast_dynamo_ext.sagemaker.encodings import FittedEncoding
from feast_dynamo_ext.sagemaker.manifest import (
    MANIFEST,
    ColumnSummary,
    LabelStatistics,
    Manifest,
    OutputFile,
    OutputFolder,
    Provenance,
    SplitSummary,
    library_versions,
    open_folder,
    read_manifest,
)
from feast_dynamo_ext.sagemaker.split import SPLITS, TimeSplit, checked_split, event_range
from feast_dynamo_ext.sagemaker.training_columns import (
    NumericColumn,
    numeric_columns,
    require_columns,
)
from feast_dynamo_ext.storage import discard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from feast import FeatureService, FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.storage import NewFile

_OWN_FILE = re.compile(
    r"(train|validation|test)/(csv/part-\d{5}\.csv|parquet/part-\d{5}\.parquet)"
    r"|rows/(train|validation|test)\.parquet"
)
_KILLED = re.compile(r"(.*/)?\.[^/]+\.[0-9a-f]{32}\.tmp")
"""What a writer that was killed leaves on a disk."""

_MOST_LABEL_VALUES = 20

# Rows written at a time, and rows of a Parquet row group. Fixed, as it shows in the bytes.
BATCH_ROWS = 65_536


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
        """A row per split: rows, first and last event time, and the label's mean, min and max."""
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
            for split, found in ((split, self.manifest.splits[split]) for split in SPLITS)
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
    split: TimeSplit | None = None,
    full_feature_names: bool = False,
    overwrite: bool = False,
    parts: int = 1,
    snapshots: Mapping[str, str] | None = None,
) -> TrainingSet:
    """Join features to entity rows, point in time, and write the result for SageMaker.

    Args:
        store: the feature store; its provider must be `feast_dynamo_ext.DynamoProvider`.
        entity_rows: join keys, `event_timestamp` and the label, one row an example: a pandas,
            Arrow or Polars table, a path or URI of Parquet or CSV, or SQL.
        features: feature references, or a feature service.
        label: the column of the entity rows that is to be predicted.
        output: `s3://bucket/prefix` or a local folder.
        split: which event times are train, validation and test; required.
        full_feature_names: name features ``view__feature``.
        overwrite: replace the training set that is there.
        parts: files a split and format.
        snapshots: of sources that are Iceberg tables the snapshot to read, by the source's name:
            an id, as `manifest.json` of an earlier training set has it, or a tag. By default the
            newest.

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
    table: pa.Table,
    *,
    label: str,
    event_timestamp: str,
    entity_columns: Sequence[str],
    features: Sequence[str],
    output: str,
    split: TimeSplit,
    aws: AwsSettings,
    provenance: Provenance,
    overwrite: bool = False,
    parts: int = 1,
) -> TrainingSet:
    """Write the rows of a point-in-time join as a training set.

    Both formats hold the label first, then the features in order, as plain numbers: booleans as
    int64, decimals as float64, integers with missing values as float64; the rest keeps its type.
    A missing value is an empty cell or a null; NaN counts as missing. Rows keep their order. The
    same input and library versions give the same bytes. The manifest is written last: without
    one, a training set is incomplete, and may be written again.

    Args:
        table: one row per example.
        label: column to predict: numbers or booleans, none missing.
        event_timestamp: column of the event time, by which rows are split.
        entity_columns: columns that identify a row's entity; kept in `rows/`, not trained on.
        features: columns to train on.
        output: `s3://bucket/prefix` or a local folder.
        split: the split rule.
        aws: how to reach S3.
        provenance: where the rows come from, for the manifest.
        overwrite: replace the training set that is there.
        parts: files per split and format. As many as the job has instances lets each of them
            read a part of its own (`ShardedByS3Key`).

    Raises:
        TrainingSetError: a column that is absent or cannot be written as numbers, a row without
            label or event time, an empty split, a training set that is there already, or a file
            that is in the way.
        AwsError: S3 refused.
    """
    require_columns(table, [label, event_timestamp, *entity_columns, *features])
    columns = numeric_columns(table, label=label, features=features, entity_columns=entity_columns)
    masks = split.masks(table.column(event_timestamp))
    _refuse_parts(parts, masks)
    schemas = _schemas(table, columns, [*entity_columns, event_timestamp])
    table = table.select(list(dict.fromkeys([*schemas.keys.names, label, *features])))

    folder = open_folder(output, aws)
    _make_room(folder, overwrite=overwrite)
    files = _write_files(folder, table, masks, parts, schemas)
    manifest = Manifest(
        label=label,
        event_timestamp=event_timestamp,
        entity_columns=tuple(entity_columns),
        features=tuple(features),
        columns=tuple(_column_summary(table, column, label) for column in columns),
        split=split,
        splits={
            name: _summary(table, masks[name], columns[0], event_timestamp) for name in SPLITS
        },
        files=tuple(sorted(files, key=lambda file: file.path)),
        provenance=provenance,
        libraries=library_versions(),
    )
    text = manifest.to_json().encode()
    with folder.new_file(MANIFEST) as file:
        file.write(text)
    return TrainingSet(folder.uri, manifest)


def _column_summary(table: pa.Table, column: NumericColumn, label: str) -> ColumnSummary:
    name, kind = column.name, str(table.schema.field(column.name).type)
    fitted = FittedEncoding(name, "number", (name,), (str(column.type),), kind, {"missing": None})
    return ColumnSummary(name, "label" if name == label else "feature", kind, fitted)


def _refuse_parts(parts: int, masks: dict[str, pa.BooleanArray]) -> None:
    smallest = min(SPLITS, key=lambda name: masks[name].true_count)
    rows = masks[smallest].true_count
    if not 1 <= parts <= rows:
        raise TrainingSetError(
            f"`parts` is {parts}: it must be at least 1 and at most the rows of the smallest "
            f"split, which is {smallest} with {rows}."
        )


def _make_room(folder: OutputFolder, *, overwrite: bool) -> None:
    if folder.exists(MANIFEST) and not overwrite:
        raise TrainingSetError(
            f"{folder.uri} holds a training set already. Choose another output, or pass "
            "overwrite=True to replace it."
        )
    found = folder.files()
    foreign = [
        path for path in found if not (_OWN_FILE.fullmatch(path) or _KILLED.fullmatch(path))
    ]
    if foreign:
        raise TrainingSetError(
            f"{folder.uri} holds {len(foreign)} files that no training set wrote, and a job would "
            f"read as data: {', '.join(foreign[:5])}. Choose another output, or move them away."
        )
    # The manifest goes first: what is left after an interruption is then no training set.
    if folder.exists(MANIFEST):
        folder.delete([MANIFEST])
    folder.delete(found)


@dataclass(frozen=True)
class _Schemas:
    """What the files of every split hold."""

    columns: list[NumericColumn]
    keys: pa.Schema

    @property
    def numbers(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, column.type) for column in self.columns])

    def key_rows(self, rows: pa.Table) -> pa.Table:
        return rows.select(self.keys.names).cast(self.keys)

    def number_rows(self, rows: pa.Table) -> pa.Table:
        return pa.Table.from_arrays(
            [column.convert(rows.column(column.name)) for column in self.columns],
            schema=self.numbers,
        )


def _schemas(table: pa.Table, columns: list[NumericColumn], keys: Sequence[str]) -> _Schemas:
    # Fields made anew: the table's may carry metadata, pandas' index among it.
    fields = [pa.field(key, table.schema.field(key).type) for key in dict.fromkeys(keys)]
    return _Schemas(columns, pa.schema(fields))


def _write_files(
    folder: OutputFolder,
    table: pa.Table,
    masks: dict[str, pa.BooleanArray],
    parts: int,
    schemas: _Schemas,
) -> list[OutputFile]:
    """Write all files but the manifest; where one fails, none of them remains."""
    sizes = {name: _part_sizes(masks[name].true_count, parts) for name in SPLITS}
    try:
        return [
            file
            for name in SPLITS
            for file in _write_split(
                folder,
                name,
                _filtered(table, masks[name], itertools.chain.from_iterable(sizes[name])),
                sizes[name],
                schemas,
            )
        ]
    except BaseException:
        paths = [path for name in SPLITS for path in _paths(name, parts)]
        discard(folder.storage, [folder.uri_of(path) for path in paths])
        raise


def _paths(split: str, parts: int) -> Iterator[str]:
    yield f"rows/{split}.parquet"
    for part in range(parts):
        yield from _part_paths(split, part)


def _part_paths(split: str, part: int) -> tuple[str, str]:
    return f"{split}/csv/part-{part:05d}.csv", f"{split}/parquet/part-{part:05d}.parquet"


def _write_split(
    folder: OutputFolder,
    name: str,
    batches: Iterator[pa.Table],
    sizes: list[list[int]],
    schemas: _Schemas,
) -> Iterator[OutputFile]:
    """Write one split's batches; `sizes` are those of the batches of each part."""
    with _TableFile(folder, f"rows/{name}.parquet", schemas.keys) as row_file:
        for part, part_sizes in enumerate(sizes):
            csv_path, parquet_path = _part_paths(name, part)
            with (
                _TableFile(folder, csv_path, schemas.numbers) as csv_file,
                _TableFile(folder, parquet_path, schemas.numbers) as parquet_file,
            ):
                for batch in itertools.islice(batches, len(part_sizes)):
                    numbers = schemas.number_rows(batch)
                    csv_file.write(numbers)
                    parquet_file.write(numbers)
                    row_file.write(schemas.key_rows(batch))
            yield csv_file.written()
            yield parquet_file.written()
    yield row_file.written()


class _HashingFile:
    """A new file whose bytes are hashed as they are written."""

    def __init__(self, new: NewFile) -> None:
        self.new, self.closed = new, False
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self.new.write(data)

    def flush(self) -> None:
        """Nothing, as `NewFile.flush`."""

    def close(self) -> None:
        """Nothing, as `NewFile.close`."""

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class _TableFile:
    """A CSV (no header, missing = empty cell) or Parquet file being written.

    Its bytes depend on the rows and on the sizes of the tables given to `write`, not on how their
    memory is laid out.
    """

    def __init__(self, folder: OutputFolder, path: str, schema: pa.Schema) -> None:
        self._path, self._rows = path, 0
        self._resources = contextlib.ExitStack()
        self._file = _HashingFile(self._resources.enter_context(folder.new_file(path)))
        sink = pa.PythonFile(self._file, mode="w")
        try:
            self._writer = self._resources.enter_context(_writer(path, sink, schema))
        except BaseException as error:
            self._resources.__exit__(type(error), error, error.__traceback__)
            raise

    def write(self, table: pa.Table) -> None:
        """Append rows: at most BATCH_ROWS of them."""
        self._writer.write_table(table.combine_chunks())
        self._rows += table.num_rows

    def __enter__(self) -> _TableFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.__exit__(kind, error, trace)

    def written(self) -> OutputFile:
        """What the closed file holds."""
        return OutputFile(self._path, self._file.new.written, self._rows, self._file.sha256)


def _writer(path: str, sink: pa.PythonFile, schema: pa.Schema) -> csv.CSVWriter | pq.ParquetWriter:
    if path.endswith(".csv"):
        return csv.CSVWriter(sink, schema, write_options=csv.WriteOptions(include_header=False))
    # Every choice that shows in the bytes is spelled out: a default may change with pyarrow.
    return pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        data_page_version="1.0",
        compression="snappy",
        use_dictionary=True,
        write_statistics=True,
    )


def _part_sizes(rows: int, parts: int) -> list[list[int]]:
    """Sizes of the batches of each part, where the parts share the rows as evenly as they can."""
    bounds = [rows * part // parts for part in range(parts + 1)]
    return [
        [min(BATCH_ROWS, end - at) for at in range(start, end, BATCH_ROWS)]
        for start, end in itertools.pairwise(bounds)
    ]


def _filtered(table: pa.Table, mask: pa.BooleanArray, sizes: Iterable[int]) -> Iterator[pa.Table]:
    """The rows of a mask in tables of the given sizes, which add up to the rows of the mask."""
    windows = _windows(table, mask)
    pending = table.slice(0, 0)
    for size in sizes:
        while pending.num_rows < size:
            pending = pa.concat_tables([pending, next(windows)])
        yield pending.slice(0, size)
        pending = pending.slice(size)


def _windows(table: pa.Table, mask: pa.BooleanArray) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, BATCH_ROWS):
        yield table.slice(start, BATCH_ROWS).filter(mask.slice(start, BATCH_ROWS))


def _summary(
    table: pa.Table, mask: pa.BooleanArray, label: NumericColumn, event_timestamp: str
) -> SplitSummary:
    rows = table.select([label.name, event_timestamp]).filter(mask)
    first, last = event_range(rows.column(event_timestamp))
    # In one piece, as the last digit of a mean depends on how the sum is cut up.
    values = label.convert(rows.column(label.name)).combine_chunks()
    return SplitSummary(rows.num_rows, first, last, _label_statistics(values))


def _label_statistics(values: pa.Array) -> LabelStatistics:
    bounds = pc.min_max(values).as_py()
    counts = None
    if pc.count_distinct(values).as_py() <= _MOST_LABEL_VALUES:
        pairs = [(pair["values"], pair["counts"]) for pair in pc.value_counts(values).to_pylist()]
        counts = {str(value): count for value, count in sorted(pairs)}
    # As float64: a sum of large integers would overflow.
    mean = pc.mean(values.cast(pa.float64(), safe=False)).as_py()
    return LabelStatistics(len(values), mean, bounds["min"], bounds["max"], counts)
