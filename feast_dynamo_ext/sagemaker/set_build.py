"""The steps of a build, from the rows of a join to files: spool, split, fit, encode, write."""

from __future__ import annotations

import collections
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import one_array, plain, plain_type
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.encodings import FittedEncoding, arrow_type
from feast_dynamo_ext.sagemaker.formats import (
    CATEGORICAL_INDEX,
    EXTENSIONS,
    FLOATS,
    FileRoles,
    WrittenColumns,
    categorical_index,
    type_problems,
)
from feast_dynamo_ext.sagemaker.manifest import OutputFile, SplitSummary
from feast_dynamo_ext.sagemaker.provenance import ENTITY_ROWS
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
from feast_dynamo_ext.sagemaker.split_by_time import refuse_untimed
from feast_dynamo_ext.sagemaker.targets import check as check_target
from feast_dynamo_ext.sagemaker.targets import target_of
from feast_dynamo_ext.sagemaker.training_columns import (
    ColumnScan,
    TrainingColumns,
    check_outputs,
    may_be_missing,
    written_encodings,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from feast_dynamo_ext.sagemaker.fitting import Fitting
    from feast_dynamo_ext.sagemaker.output_folder import Claim
    from feast_dynamo_ext.sagemaker.split import SplitRule

WRITES_AHEAD = 2
"""Blocks that are encoded before they are written."""


def form_of(
    roles: TrainingColumns,
    fitted: Mapping[str, FittedEncoding],
    schema: pa.Schema,
    formats: Sequence[str],
    target: str | None,
) -> ShardFormat:
    """What the files are going to hold.

    Raises:
        TrainingSetError: an unknown format, or one that cannot hold the columns.
    """
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
class Written:
    """What a build has written."""

    files: tuple[OutputFile, ...]
    splits: dict[str, SplitSummary]
    content: dict[str, dict[str, str]]
    nulls: dict[str, dict[str, int]]


class Build:
    """The steps from rows to files.

    Attributes:
        assigned: what the split assigned to each row, once all are kept.
    """

    def __init__(
        self,
        roles: TrainingColumns,
        rule: SplitRule,
        parts: int,
        spool: RowSpool,
        open_bytes: int,
    ) -> None:
        """Nothing was read yet.

        Args:
            roles: of the columns.
            rule: of the split.
            parts: shards of a split.
            spool: where the rows are kept.
            open_bytes: of rows that wait in shards that are written side by side, about.
        """
        self._roles, self._rule, self._parts, self._spool = roles, rule, parts, spool
        self._scan, self._open_bytes = ColumnScan(roles), open_bytes
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
            refuse_untimed(block.column(roles.event_timestamp))
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
        if label.kind == "ordinal":
            # A class that no model has seen is an error, not a class of its own.
            state = {**label.state, "unknown": "missing"}
            fitted[self._roles.label] = replace(label, state=state)
        self._scan.check_inexact(
            [
                name
                for name, each in fitted.items()
                if each.kind == "number"
                and each.types == ("double",)
                and pa.types.is_integer(self._spool.schema.field(name).type)
            ],
            "Integer columns with missing values are written as float64",
        )
        return fitted

    def check(self, form: ShardFormat, fitted: Mapping[str, FittedEncoding]) -> None:
        """Refuse labels without a class, and what the target cannot train on.

        Raises:
            TrainingSetError: names all problems.
        """
        label, features = self._roles.label, self._roles.features
        if fitted[label].kind == "ordinal":
            self._check_classes(sum(self._missing([label], fitted)[label].values()))
        if "recordio" in form.formats and not form.options("recordio").get("float32"):
            whole = [name for name, each in fitted.items() if each.kind == "number"]
            self._scan.check_inexact(whole, "RecordIO holds float64")
        if form.target is None:
            return
        # Of a target that takes missing values, it matters whether its last column has any value.
        looked_at = features[-1:] if target_of(form.target).missing else features
        counts = self._missing(
            [each for each in looked_at if may_be_missing(fitted[each], self._scan.nulls[each])],
            fitted,
        )
        check_target(
            form.target,
            form.formats,
            form.schema,
            form.roles,
            rows={name: int((self.assigned == at).sum()) for at, name in enumerate(self._splits)},
            missing={
                name: {output: of_split[at] for output, of_split in counts.items() if of_split[at]}
                for at, name in enumerate(self._splits)
            },
            parts=self._parts,
        )

    def _missing(
        self, columns: Sequence[str], fitted: Mapping[str, FittedEncoding]
    ) -> dict[str, collections.Counter[int]]:
        """Rows without a value once they are encoded: by encoded column and place of the split.

        Categories that become missing count, and places that a shorter list lacks.
        """
        found = {
            output: collections.Counter[int]()
            for each in columns
            for output in fitted[each].outputs
        }
        time = self._roles.event_timestamp
        for first, block in self._spool.read([*columns, time]) if columns else ():
            places = self.assigned[first : first + block.num_rows]
            for column in columns:
                encoded = fitted[column].encode(block.column(column), block.column(time))
                for output, array in zip(fitted[column].outputs, encoded, strict=True):
                    if array.null_count:
                        found[output].update(places[np.asarray(array.is_null())].tolist())
        return found

    def _check_classes(self, unknown: int) -> None:
        if unknown:
            raise TrainingSetError(
                f"The label `{self._roles.label}` is in {unknown} rows none of the categories "
                "that the rows that train have. Declare all of its `categories`."
            )

    def try_out(self, form: ShardFormat, fitted: Mapping[str, FittedEncoding]) -> None:
        """Encode all rows and write none: what only shows in rows that do not train is found.

        Raises:
            TrainingSetError: a value that its encoding or a format does not take.
        """
        passing = _Passing(fitted, self._roles, form)
        files = []
        for name in form.formats:
            options = {each: form.options(name).get(each, False) for each in FLOATS}
            files.append(WrittenColumns(**options, of="the rows that are written"))
        for first, block in self._spool.read():
            places = self._shards[first : first + block.num_rows]
            is_written = places >= 0
            if not is_written.any():
                continue
            rows, of_rows = block.filter(pa.array(is_written)), places[is_written]
            encoded, _ = passing.encode(rows, of_rows // self._parts)
            for file in files:
                file.of(encoded)

    def write(
        self,
        claim: Claim,
        form: ShardFormat,
        fitted: Mapping[str, FittedEncoding],
        entity_rows: pa.Table | None,
    ) -> Written:
        """Write all files but the manifest."""
        numbers = [int(each) for each in np.unique(self._shards[self._shards >= 0])]
        names = [(self._splits[each // self._parts], each % self._parts) for each in numbers]
        passing = _Passing(fitted, self._roles, form)
        at_once = max(1, self._open_bytes // (BATCH_ROWS * form.row_bytes))
        files, digests = [], {}
        for start in range(0, len(numbers), at_once):
            with OpenShards(claim, form) as shards:
                for number, name in zip(numbers[start:][:at_once], names[start:], strict=False):
                    shards.open(number, *name)
                self._pass(shards, numbers[start:][:at_once], passing)
                done = shards.close()
            for number, (made, hashes) in done.items():
                files += made
                digests[number] = hashes
        for split in sorted({split for split, _ in names}) if form.has_index else ():
            files.append(_small(claim, f"{split}/csv/{CATEGORICAL_INDEX}", form))
        if entity_rows is not None:
            files.append(_copy_of(claim, entity_rows))
        splits = [split for at, split in enumerate(self._splits) if at in passing.tallies]
        return Written(
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
        columns = []
        event_times = block.column(self._roles.event_timestamp)
        for name in self._roles.encoded:
            column = block.column(name)
            if column.null_count:
                missing = splits[np.asarray(column.is_null())]
                for at, count in zip(*np.unique(missing, return_counts=True), strict=True):
                    self.nulls[name][int(at)] = self.nulls[name].get(int(at), 0) + int(count)
            columns += self._fitted[name].encode(column, event_times)
        encoded = pa.RecordBatch.from_arrays(columns, schema=self._form.schema)
        kept = pa.RecordBatch.from_arrays(
            [plain(block.column(each.name)) for each in self._form.kept], schema=self._form.kept
        )
        times = kept.column(self._roles.event_timestamp)
        for at in np.unique(splits):
            mask = pa.array(splits == at)
            tally = self.tallies.setdefault(int(at), SplitTally())
            tally.add(encoded.column(0).filter(mask), times.filter(mask))
        return encoded, kept


def _alone(column: pa.Array) -> pa.Array:
    """A copy with memory of its own: a column of a message that was read holds the whole of it."""
    return pa.concat_arrays([column, column.slice(0, 0)])


def _small(claim: Claim, path: str, form: ShardFormat) -> OutputFile:
    data = categorical_index(form.roles)
    with claim.new_file(path) as file:
        file.write(data)
    return OutputFile(path, len(data), 0, hashlib.sha256(data).hexdigest())


def _copy_of(claim: Claim, rows: pa.Table) -> OutputFile:
    """Entity rows as they were given, without which the set could not be built again."""
    schema = pa.schema([pa.field(each.name, plain_type(each.type)) for each in rows.schema])
    with claim.new_file(ENTITY_ROWS) as new:
        file = HashingFile(new)
        copy = ParquetFile(file, schema)
        for batch in rows.to_batches(max_chunksize=BATCH_ROWS):
            columns = [plain(column) for column in batch.columns]
            copy.write(pa.RecordBatch.from_arrays(columns, schema=schema))
        copy.close()
    return OutputFile(ENTITY_ROWS, file.written, rows.num_rows, file.sha256)
