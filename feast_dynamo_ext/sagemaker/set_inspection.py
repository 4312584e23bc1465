"""From a training set that is there to its report: reads it, and its features' ages in a repo.

A set keeps no event times of features. Where a feature repo is at hand, the join is made again for
the event times alone: of the set's own entities and times, from the snapshots that its manifest
pins, so that it takes the same rows of history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.errors import FeastDynamoError
from feast_dynamo_ext.parquet.iceberg.table_files import pinned_snapshots
from feast_dynamo_ext.sagemaker.column_statistics import label_of
from feast_dynamo_ext.sagemaker.distributions import statistics
from feast_dynamo_ext.sagemaker.leakage import Keys, leakage
from feast_dynamo_ext.sagemaker.over_time import ages, over_time
from feast_dynamo_ext.sagemaker.report_page import html
from feast_dynamo_ext.sagemaker.set_report import Feature, SetReport, SplitFigures
from feast_dynamo_ext.sagemaker.set_rows import opened_rows
from feast_dynamo_ext.sagemaker.set_verification import changed_sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.sagemaker.column_statistics import ColumnStatistics
    from feast_dynamo_ext.sagemaker.manifest import ColumnSummary, Manifest
    from feast_dynamo_ext.sagemaker.over_time import Ages
    from feast_dynamo_ext.sagemaker.set_rows import SetRows
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet

_KIND_WORDS = {
    "number": "",
    "boolean": "",
    "ordinal": " as codes",
    "one_hot": " as one-hot",
    "hash": " as hashes modulo {buckets}",
    "epoch": " as time since 1970 in {unit}",
    "age": " as age in {unit}",
    "list": " as columns",
    "keep": " kept",
}
_UNIT_WORDS = {
    "ns": "nanoseconds",
    "us": "microseconds",
    "ms": "milliseconds",
    "s": "seconds",
    "min": "minutes",
    "h": "hours",
    "day": "days",
}


def report_html(
    training_set: TrainingSet,
    aws: AwsSettings,
    limits: Limits,
    store: FeatureStore | None = None,
) -> str:
    """A training set's report, as `report_page.html` shows it.

    Args:
        training_set: what is reported.
        aws: how to reach S3.
        limits: memory and disk of counting.
        store: the feature store; without one the ages of features are not known.

    Raises:
        TrainingSetError: a file of it cannot be read.
        AwsError: S3 refused.
        OfflineStoreError: memory or disk were not enough.
    """
    return html(inspect(training_set, aws, limits, store))


def inspect(
    training_set: TrainingSet,
    aws: AwsSettings,
    limits: Limits,
    store: FeatureStore | None = None,
) -> SetReport:
    """What the report shows, as values; arguments and errors are those of `report_html`."""
    manifest = training_set.manifest
    with opened_rows(training_set.output, manifest, aws, limits.spill_folder) as rows:
        label = label_of(rows, manifest.label)
        columns = statistics(rows, manifest.outputs, label, limits)
        found, why = _ages(manifest, rows, aws, store)
        rule = str(manifest.split.as_manifest()["rule"])
        keys = Keys(
            manifest.event_timestamp, manifest.entity_columns, rule, keeps_entities=rule == "group"
        )
        return SetReport(
            manifest.name or training_set.output,
            tuple(_facts(training_set, why)),
            tuple(_split_figures(manifest)),
            label,
            over_time(rows, manifest.event_timestamp, label),
            found,
            leakage(rows, keys, label, columns, found, limits),
            tuple(_feature(manifest, name, columns) for name in manifest.features),
        )


def _facts(training_set: TrainingSet, ages_unknown: str) -> Iterator[tuple[str, str]]:
    manifest = training_set.manifest
    origin = manifest.provenance
    yield "Output", training_set.output
    yield "Label", manifest.label
    if manifest.weight:
        yield "Weight", manifest.weight
    rule = {key: value for key, value in manifest.split.as_manifest().items() if value}
    name = rule.pop("rule")
    yield "Split", f"{name}: " + ", ".join(f"{key} {value}" for key, value in rule.items())
    if manifest.left_out:
        yield "Left out", f"{manifest.left_out:,} rows are in no split"
    yield "Formats", ", ".join(manifest.formats)
    if manifest.target:
        yield "Target", manifest.target
    if origin.feature_service:
        yield "Feature service", origin.feature_service
    yield "Project", origin.project
    yield "Views", ", ".join(origin.view_definitions)
    for source, read in origin.snapshots.items():
        yield "Snapshot", f"{read.snapshot} of {read.table} ({source})"
    if origin.source_files:
        size = sum(file.size for file in origin.source_files)
        yield "Source files", f"{len(origin.source_files):,} of {size:,} bytes"
    yield "Built with", ", ".join(f"{name} {text}" for name, text in manifest.libraries.items())
    if ages_unknown:
        yield "Ages are not known", ages_unknown


def _split_figures(manifest: Manifest) -> Iterator[SplitFigures]:
    for name in manifest.split.splits:
        split = manifest.splits[name]
        label = split.label
        yield SplitFigures(
            name,
            split.rows,
            _minute(split.first_event),
            _minute(split.last_event),
            label.mean,
            label.min,
            label.max,
        )


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _feature(manifest: Manifest, name: str, columns: Mapping[str, ColumnStatistics]) -> Feature:
    encoding = manifest.encodings[name]
    summary = next(column for column in manifest.columns if column.name == name)
    outputs = encoding.outputs
    categories = [str(value) for value in encoding.state.get("categories", ())]
    if encoding.kind == "one_hot":
        named = [*categories, "unknown"][: len(outputs)]
        labels: dict[Any, str] = dict(zip(outputs, named, strict=True))
    else:
        labels = dict(enumerate(categories))
        if encoding.state.get("unknown") == -1:
            labels[-1] = "unknown"
    return Feature(
        name,
        _words(summary),
        tuple(columns[output] for output in outputs),
        labels,
        categories=encoding.kind == "one_hot",
    )


def _words(column: ColumnSummary) -> str:
    if column.encoding is None:
        return column.type
    state = column.encoding.state
    about = {"unit": _UNIT_WORDS.get(str(state.get("unit"))), "buckets": state.get("buckets")}
    return column.type + _KIND_WORDS[column.encoding.kind].format(**about)


# Ages


def _ages(
    manifest: Manifest, rows: SetRows, aws: AwsSettings, store: FeatureStore | None
) -> tuple[tuple[Ages, ...], str]:
    """The ages of features, or why they are not known."""
    if store is None:
        return (), "this was not run in the feature repo"
    changes = changed_sources(manifest, aws, store)
    if changes:
        return (), f"{changes[0].kind} {changes[0].name} {changes[0].words}"
    try:
        return _measured_ages(manifest, rows, store), ""
    except FeastDynamoError as error:
        return (), f"the join could not be made again: {error}"


def _measured_ages(manifest: Manifest, rows: SetRows, store: FeatureStore) -> tuple[Ages, ...]:
    from feast_dynamo_ext.retrieval.plan import event_times_alone

    origin = manifest.provenance
    features: Any = list(origin.feature_refs)
    if origin.feature_service:
        features = store.get_feature_service(origin.feature_service)
    keys = rows.beside.names
    batches = [batch for split in rows.splits for batch in rows.batches(split, keys)]
    pins = {name: read.snapshot for name, read in origin.snapshots.items()}
    with pinned_snapshots(pins), event_times_alone():
        job: Any = store.get_historical_features(
            entity_df=pa.Table.from_batches(batches),
            features=features,
            full_feature_names=origin.full_feature_names,
        )
        result = job.result()
        views = [name for name in result.schema.names if name not in keys]
        return tuple(ages(result.batches(), manifest.event_timestamp, views))
