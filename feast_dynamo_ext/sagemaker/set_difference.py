"""What is different between two training sets: features, rows, labels, distributions, inputs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.arrow_types import is_time, plain
from feast_dynamo_ext.duckdb_connection import connected
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.column_statistics import Label
from feast_dynamo_ext.sagemaker.distributions import statistics
from feast_dynamo_ext.sagemaker.set_rows import opened_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.sagemaker.manifest import Manifest
    from feast_dynamo_ext.sagemaker.provenance import Provenance, SourceFile
    from feast_dynamo_ext.sagemaker.set_rows import SetRows
    from feast_dynamo_ext.sagemaker.training_set import TrainingSet

EXAMPLES = 5
_SHOWN = ("buckets", "unit")
"""What is declared of an encoding and cannot be seen by its columns."""


@dataclass(frozen=True)
class RowChanges:
    """Rows by entity and event time, all splits together.

    Attributes:
        old: rows of the old set.
        new: rows of the new set.
        removed: rows that only the old set has; a row that it has twice counts twice.
        added: rows that only the new set has.
        moved: pairs of entity and time whose splits are not the same in both.
        examples: some of the removed and added ones, keys as text.
    """

    old: int
    new: int
    removed: int
    added: int
    moved: int
    examples: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class ColumnChange:
    """A column of both sets: PSI of the new one against the old one, in the split that trains.

    Attributes:
        column: name in the files.
        psi: None where a set has too few rows for one.
        missing_old: share of missing values.
        missing_new: share of missing values.
        mean_old: mean; None where it has none.
        mean_new: mean.
    """

    column: str
    psi: float | None
    missing_old: float
    missing_new: float
    mean_old: float | None
    mean_new: float | None


@dataclass(frozen=True)
class SetDifference:
    """The new set against the old one.

    Attributes:
        old: output of the old set.
        new: output of the new set.
        same_content: whether labels, weights and features are equal, split by split; None where a
            set keeps no hashes of its content.
        features_added: features that only the new set has.
        features_removed: features that only the old set has.
        features_changed: (feature, what it was, what it is) of another type or encoding.
        is_reordered: whether features of both sets stand in another order.
        rows: what became of the rows.
        splits: by split rows and label mean, (old, new); None where a set lacks the split.
        columns: of both sets, the most different first.
        inputs: (what, old, new) of provenance, libraries, split and target; None for what a set
            has not.
    """

    old: str
    new: str
    same_content: bool | None
    features_added: tuple[str, ...]
    features_removed: tuple[str, ...]
    features_changed: tuple[tuple[str, str, str], ...]
    is_reordered: bool
    rows: RowChanges
    splits: Mapping[str, Mapping[str, tuple[Any, Any]]]
    columns: tuple[ColumnChange, ...]
    inputs: tuple[tuple[str, str | None, str | None], ...]

    @property
    def is_same(self) -> bool:
        """Whether nothing is different: the manifests may still name different outputs."""
        rows, splits = self.rows, self.splits.values()
        return not (
            self.same_content is False
            or self.features_added
            or self.features_removed
            or self.features_changed
            or self.is_reordered
            or self.inputs
            or rows.removed
            or rows.added
            or rows.moved
            or any(one != other for split in splits for one, other in split.values())
        )

    def to_dict(self) -> dict[str, Any]:
        """Its plain values, for JSON."""
        return {**dataclasses.asdict(self), "is_same": self.is_same}


def difference(
    old: TrainingSet, new: TrainingSet, aws: AwsSettings, limits: Limits
) -> SetDifference:
    """Compare two training sets.

    Args:
        old: the one that is compared with.
        new: the other one.
        aws: how to reach S3.
        limits: memory and disk of counting.

    Raises:
        TrainingSetError: entities or event times of the two have other names, or a file cannot be
            read.
        AwsError: S3 refused.
        OfflineStoreError: memory or disk were not enough.
    """
    one, other = old.manifest, new.manifest
    kept = [name for name in one.features if name in other.features]
    with (
        opened_rows(old.output, one, aws, limits.spill_folder) as old_rows,
        opened_rows(new.output, other, aws, limits.spill_folder) as new_rows,
    ):
        return SetDifference(
            old.output,
            new.output,
            one.content == other.content if one.content and other.content else None,
            tuple(name for name in other.features if name not in one.features),
            tuple(name for name in one.features if name not in other.features),
            tuple(_encodings(one, other, kept)),
            kept != [name for name in other.features if name in one.features],
            _rows(one, other, old_rows, new_rows, limits),
            _splits(one, other),
            _columns(one, other, old_rows, new_rows, limits),
            tuple(_inputs(one, other)),
        )


def _encodings(
    one: Manifest, other: Manifest, names: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    for name in names:
        was, now = one.encodings[name], other.encodings[name]
        if was.to_json() != now.to_json():
            texts = _encoded(was), _encoded(now)
            if texts[0] == texts[1]:
                texts = texts[0], f"{texts[1]}, fitted to other values"
            yield (name, *texts)


def _encoded(encoding: Any) -> str:
    count = len(encoding.outputs)
    columns = "" if count == 1 else f" in {count} columns"
    more = [f", {each} {encoding.state[each]}" for each in _SHOWN if each in encoding.state]
    kind = encoding.types[0] if count else ""
    return f"{encoding.input_type} as {encoding.kind} {kind}{columns}{''.join(more)}"


def _splits(one: Manifest, other: Manifest) -> dict[str, dict[str, tuple[Any, Any]]]:
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for name in dict.fromkeys([*one.split.splits, *other.split.splits]):
        was, now = one.splits.get(name), other.splits.get(name)
        found[name] = {
            "rows": (was and was.rows, now and now.rows),
            "label_mean": (was and was.label.mean, now and now.label.mean),
        }
    return found


# Rows


def _rows(
    one: Manifest, other: Manifest, old: SetRows, new: SetRows, limits: Limits
) -> RowChanges:
    entities = [name for name in one.entity_columns if name in other.entity_columns]
    if not entities or one.event_timestamp != other.event_timestamp:
        raise TrainingSetError(
            f"Rows are compared by entity columns and event time, which the sets name "
            f"{[*one.entity_columns, one.event_timestamp]} and "
            f"{[*other.entity_columns, other.event_timestamp]}: nothing is left of both."
        )
    keys = [*entities, one.event_timestamp]
    names = [f"c{at}" for at in range(len(keys))]
    splits = list(dict.fromkeys([*old.splits, *new.splits]))
    by = ", ".join(names)
    with connected(limits, "Comparing the rows of two training sets") as connection:
        connection.register("given", _keys(old, new, keys, splits))
        connection.execute(
            "CREATE TEMP TABLE counted AS SELECT count(*) FILTER (WHERE side = 0) AS old, "  # noqa: S608 - c0, c1, ...
            "count(*) FILTER (WHERE side = 1) AS new, list_sort(list(DISTINCT split) FILTER "
            "(WHERE side = 0)) AS was, list_sort(list(DISTINCT split) FILTER (WHERE side = 1)) "
            f"AS now, {by} FROM given GROUP BY {by}"
        )
        ((before, after, removed, added, moved),) = connection.execute(
            "SELECT coalesce(sum(old), 0)::BIGINT, coalesce(sum(new), 0)::BIGINT, "
            "coalesce(sum(greatest(old - new, 0)), 0)::BIGINT, "
            "coalesce(sum(greatest(new - old, 0)), 0)::BIGINT, "
            "count(*) FILTER (WHERE old > 0 AND new > 0 AND was <> now) FROM counted"
        ).fetchall()
        examples = []
        for words, test in (("removed", "old > new"), ("added", "new > old")):
            shown = connection.execute(
                f"SELECT {by} FROM counted WHERE {test} ORDER BY {by} LIMIT {EXAMPLES}"  # noqa: S608
            ).fetchall()
            examples += [
                {"change": words, **dict(zip(keys, map(str, row), strict=True))} for row in shown
            ]
    return RowChanges(before, after, removed, added, moved, tuple(examples))


def _keys(
    old: SetRows, new: SetRows, keys: Sequence[str], splits: Sequence[str]
) -> pa.RecordBatchReader:
    """Keys of both sets as c0, c1, ..., with `side` and `split`."""
    kinds = [_same_kind(old, new, name) for name in keys]
    fields = [pa.field(f"c{at}", kind) for at, kind in enumerate(kinds)]
    schema = pa.schema([*fields, ("side", pa.int8()), ("split", pa.int8())])

    def batches() -> Iterator[pa.RecordBatch]:
        for side, rows in enumerate((old, new)):
            for split in rows.splits:
                for batch in rows.batches(split, keys):
                    marks = [
                        pa.repeat(pa.scalar(mark, pa.int8()), batch.num_rows)
                        for mark in (side, splits.index(split))
                    ]
                    columns = [
                        _as_key(column, kind)
                        for column, kind in zip(batch.columns, kinds, strict=True)
                    ]
                    yield pa.record_batch([*columns, *marks], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _same_kind(old: SetRows, new: SetRows, name: str) -> pa.DataType:
    """A type that both columns fit: their own, times in UTC without a zone, or else text."""
    kinds = [plain(pa.array([], rows.schema.field(name).type)).type for rows in (old, new)]
    if kinds[0] != kinds[1]:
        return pa.string()
    return pa.timestamp(kinds[0].unit) if pa.types.is_timestamp(kinds[0]) else kinds[0]


def _as_key(column: pa.Array, kind: pa.DataType) -> pa.Array:
    array = plain(column)
    if is_time(array.type) and pa.types.is_string(kind):
        # Of one unit, so that equal moments have equal texts.
        array = array.cast(pa.timestamp("s")) if pa.types.is_date(array.type) else array
        array = array.cast(pa.timestamp("ns"))
    return array.cast(kind)


# Distributions


class _Both:
    """The split that trains of two sets, as two splits of one."""

    def __init__(self, old: SetRows, new: SetRows) -> None:
        self.splits = ("old", "new")
        self._of = {"old": old, "new": new}

    @property
    def schema(self) -> pa.Schema:
        return self._of["new"].schema

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        rows = self._of[split]
        kinds = [self.schema.field(name).type for name in columns]
        for batch in rows.batches(rows.splits[0], columns):
            cast = [
                column if column.type == kind else column.cast(kind, safe=False)
                for column, kind in zip(batch.columns, kinds, strict=True)
            ]
            yield pa.record_batch(cast, names=list(columns))


def _columns(
    one: Manifest, other: Manifest, old: SetRows, new: SetRows, limits: Limits
) -> tuple[ColumnChange, ...]:
    both = _Both(old, new)
    names = [name for name in other.outputs if name in one.outputs]
    if one.label == other.label:
        names.insert(0, one.label)
    same = [name for name in names if _comparable_types(old, new, name)]
    if not same:
        return ()
    found = statistics(both, same, Label(same[0]), limits)
    changes = [
        ColumnChange(
            name,
            column.psi["new"].value if column.psi else None,
            column.splits["old"].missing_rate,
            column.splits["new"].missing_rate,
            column.splits["old"].mean,
            column.splits["new"].mean,
        )
        for name, column in found.items()
    ]
    return tuple(sorted(changes, key=lambda change: -(change.psi or 0)))


def _comparable_types(old: SetRows, new: SetRows, name: str) -> bool:
    kinds = [rows.schema.field(name).type for rows in (old, new)]
    numeric = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds]
    return kinds[0] == kinds[1] or all(numeric)


# Inputs


def _inputs(one: Manifest, other: Manifest) -> Iterator[tuple[str, str | None, str | None]]:
    pairs = [_input_values(one), _input_values(other)]
    for name in dict.fromkeys([*pairs[0], *pairs[1]]):
        was, now = (values.get(name) for values in pairs)
        if was != now:
            yield name, was, now


def _version(file: SourceFile) -> str:
    if file.etag:
        return f", ETag {file.etag}"
    return f", SHA-256 {file.sha256[:16]}" if file.sha256 else ""


def _input_values(manifest: Manifest) -> dict[str, str]:
    """Everything that a set is made of, as texts by name."""
    origin: Provenance = manifest.provenance
    rows = origin.entity_rows
    values = {
        "project": origin.project,
        "label": manifest.label,
        "weight": manifest.weight or "none",
        "target": manifest.target or "none",
        "formats": ", ".join(manifest.formats),
        "parts": str(manifest.parts),
        "split": ", ".join(
            f"{key} {value}" for key, value in manifest.split.as_manifest().items()
        ),
        "feature service": origin.feature_service or "none",
        "entity rows": origin.entity_rows_sha256,
        "entity rows are read from": "unknown" if rows is None else f"{rows.kind} {rows.text}",
    }
    values |= {f"definition of {name}": value for name, value in origin.view_definitions.items()}
    values |= {f"snapshot of {name}": read.snapshot for name, read in origin.snapshots.items()}
    files = [*origin.source_files, *(rows.files if rows is not None else ())]
    values |= {f"file {file.path}": f"{file.size} bytes{_version(file)}" for file in files}
    return values | {f"library {name}": value for name, value in manifest.libraries.items()}
