"""Runs a plan: match by keys and times, read the matched rows' features, put them in order.

Rows out = rows in, same order; the entity rows' own columns are untouched. Views are joined side
by side, and entity rows that would not fit in memory with their features block by block.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import check_supported
from feast_dynamo_ext.errors import EntityRowsError
from feast_dynamo_ext.parquet.pointer import HASH, bucket_of
from feast_dynamo_ext.retrieval.engines.base import Result
from feast_dynamo_ext.retrieval.engines.one_pass.features import read_features
from feast_dynamo_ext.retrieval.engines.one_pass.slots import Orders
from feast_dynamo_ext.retrieval.plan import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from feast.data_source import DataSource
    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.engines.base import Engine
    from feast_dynamo_ext.retrieval.entity_rows.rows import EntityRows
    from feast_dynamo_ext.retrieval.plan import PitPlan, ViewPlan


FIRST_ROWS = 64
"""For each bucket: many entity rows ask for every bucket, which the first of them tell."""


def prune_buckets(
    source: ParquetSource, keys: Mapping[str, pa.Array | pa.ChunkedArray]
) -> ParquetSource:
    """The source without the files whose buckets hold none of the asked-for keys.

    Files that were appended since the source was compacted remain, as do all where it has no
    buckets, or buckets of columns that are not among the keys. No file is opened.

    Args:
        source: the history.
        keys: the entity rows' join keys by the source's names of their columns, in any types that
            can be compared with the source's; null keys match nothing.

    Returns:
        The narrowed source; positions count in its files.

    Raises:
        pyarrow.ArrowInvalid: a key that cannot be compared exactly, see `keys.comparable`.
    """
    current = source.current
    buckets = current.buckets if current else None
    if current is None or buckets is None or buckets.hash != HASH:
        return source
    if not set(buckets.columns) <= keys.keys():
        return source
    columns = [keys[name] for name in buckets.columns]
    first = [column.slice(0, FIRST_ROWS * buckets.count) for column in columns]
    if len(_buckets(first, buckets.count)) == buckets.count:
        return source
    asked = _buckets(columns, buckets.count)
    if len(asked) == buckets.count:
        return source
    root = source.place.root
    wanted = set(asked.tolist())
    left_out = {f"{root}/{file.path}" for file in current.files if file.bucket not in wanted}
    return source.only({file.path for file in source.files} - left_out)


def _buckets(columns: Sequence[pa.Array | pa.ChunkedArray], count: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.bincount(bucket_of(columns, count)))


SLOT_BYTES = 160
"""What matching holds for an entity row, at most."""
TEXT_BYTES = 64
"""What a value without a fixed width is taken to have."""


def join(
    plan: PitPlan,
    entities: EntityRows,
    engine: Engine,
    open_source: Callable[[DataSource], ParquetSource],
) -> Result:
    """The entity rows with the features that each of them sees.

    Raises:
        EntityRowsError: a feature would have the name of a column that is there.
        OfflineStoreError: see its subclasses.
    """
    sources = [checked_source(view, open_source(view.source)) for view in plan.views]
    schema = _schema(plan, entities.table.schema, sources)
    rows, at_once = len(entities.times), rows_at_once(plan, sources, engine.entity_bytes)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, at_once):
            block = _Block(plan, _slice(entities, start, at_once), engine)
            yield from block.joined(sources, schema).to_batches()

    return Result(schema, rows, batches)


def rows_at_once(plan: PitPlan, sources: Sequence[ParquetSource], most_bytes: int) -> int:
    """How many entity rows are joined at once with so much memory."""
    row_bytes = SLOT_BYTES * len(plan.views) + sum(
        _held_bytes(source.schema.field(column).type)
        for view, source in zip(plan.views, sources, strict=True)
        for column in view.feature_columns
    )
    return max(1, most_bytes // row_bytes)


def checked_source(view: ViewPlan, source: ParquetSource) -> ParquetSource:
    """The source with all columns that a view needs.

    Raises:
        ColumnNotFoundError: no file has one of them.
        UnsupportedTypeError: a feature's column has a type that Feast cannot carry.
    """
    wanted = f"Feature view `{view.view}`"
    complete = source.with_columns([*view.narrow_columns, *view.feature_columns], wanted)
    for column in view.feature_columns:
        check_supported(column, complete.schema.field(column).type, wanted)
    return complete


def prune(view: ViewPlan, source: ParquetSource, entities: EntityRows) -> ParquetSource:
    """The source without the files and row groups that none of the entity rows can see.

    Raises:
        EntityRowsError: a join key is missing, or cannot be compared.
        SourceReadError: a file cannot be read.
    """
    entities.require([column for column, _ in view.keys], view.view)
    keys = {theirs: entities.key(ours, view.view) for ours, theirs in view.keys}
    return prune_buckets(source, keys).within(view.event_time, *visible(entities, view))


class _Block:
    """Some of the entity rows."""

    def __init__(self, plan: PitPlan, entities: EntityRows, engine: Engine) -> None:
        self._plan, self._entities, self._engine = plan, entities, engine
        self._orders = Orders()
        # What is done one after the other for one view is done for several side by side; one more
        # than there are workers keeps these busy. Measured: a tenth less time on two cores.
        self._side_by_side = max(1, min(len(plan.views), engine.workers + 1))

    def joined(self, sources: list[ParquetSource], schema: pa.Schema) -> pa.Table:
        columns = list(self._entities.table.columns)
        with ThreadPoolExecutor(self._side_by_side) as pool:
            for found in pool.map(self._features, self._plan.views, sources, self._threads()):
                columns += found
        return pa.Table.from_arrays(columns, schema=schema)

    def _threads(self) -> Iterator[int]:
        """Of each view: those that are left for the last of them share all threads."""
        left = len(self._plan.views)
        while left:
            at_once = min(left, self._side_by_side)
            yield from [max(1, self._engine.workers // at_once)] * at_once
            left -= at_once

    def _features(
        self, view: ViewPlan, source: ParquetSource, threads: int
    ) -> list[pa.Array | pa.ChunkedArray]:
        source = prune(view, source, self._entities)
        positions = self._engine.match(
            self._entities,
            view,
            source,
            created_by_entity_time=self._plan.created_by_entity_time,
            threads=threads,
            orders=self._orders,
        )
        found = read_features(source, view.feature_columns, positions, threads)
        return [found[column] for column, _ in view.features]


def _slice(entities: EntityRows, start: int, rows: int) -> EntityRows:
    return replace(
        entities,
        table=entities.table.slice(start, rows),
        times=entities.times[start : start + rows],
    )


def _schema(plan: PitPlan, entities: pa.Schema, sources: list[ParquetSource]) -> pa.Schema:
    """The schema of the result.

    Raises:
        EntityRowsError: two columns would have one name.
    """
    schema = entities
    for view, source in zip(plan.views, sources, strict=True):
        taken = [name for _, name in view.features if name in schema.names]
        if taken:
            raise EntityRowsError(
                f"Feature view `{view.view}`: the features {taken} have names that the entity "
                "rows or another view's features have too. Ask for `full_feature_names=True`, or "
                "rename the columns of the entity rows."
            )
        for column, name in view.features:
            schema = schema.append(source.schema.field(column).with_name(name))
    return schema


def _held_bytes(kind: pa.DataType) -> int:
    """What a value takes up at most, for a moment, with the sign that it is there."""
    try:
        return int(kind.bit_width) // 8 + 1
    except ValueError:
        # In the order of the files, and in that of the entity rows.
        return 2 * TEXT_BYTES
