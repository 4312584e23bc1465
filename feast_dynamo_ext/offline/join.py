"""Runs a plan: match by keys and times, read the matched rows' features, put them in order.

Rows out = rows in, same order; the entity rows' own columns are untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import EntityRowsError
from feast_dynamo_ext.offline.engine import NO_ROW
from feast_dynamo_ext.type_map import check_supported

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast.data_source import DataSource
    from numpy.typing import NDArray

    from feast_dynamo_ext.offline.engine import Engine
    from feast_dynamo_ext.offline.entities import EntityRows
    from feast_dynamo_ext.offline.plan import PitPlan, ViewPlan
    from feast_dynamo_ext.offline.source import ParquetSource


def join(
    plan: PitPlan,
    entities: EntityRows,
    engine: Engine,
    open_source: Callable[[DataSource], ParquetSource],
) -> pa.Table:
    """The entity rows with the features that each of them sees.

    Raises:
        EntityRowsError: a feature would have the name of a column that is there.
        OfflineStoreError: see its subclasses.
    """
    table = entities.table
    for view in plan.views:
        _check_names(table, view)
        source = checked_source(view, open_source(view.source))
        positions = engine.match(
            entities, view, source, created_by_entity_time=plan.created_by_entity_time
        )
        for (_, name), column in zip(
            view.features, _features(view, source, positions), strict=True
        ):
            table = table.append_column(name, column)
    return table


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


def _features(
    view: ViewPlan, source: ParquetSource, positions: NDArray[np.int64]
) -> list[pa.ChunkedArray]:
    columns = view.feature_columns
    matched = np.unique(positions[positions != NO_ROW])
    rows = pa.Table.from_batches(source.fetch(columns, matched), source.schema_of(columns))
    # Where there is no row, a null index makes a null of the feature's own type.
    index = pa.array(np.searchsorted(matched, positions), mask=positions == NO_ROW)
    return [rows.column(column).take(index) for column, _ in view.features]


def _check_names(table: pa.Table, view: ViewPlan) -> None:
    taken = [name for _, name in view.features if name in table.column_names]
    if taken:
        raise EntityRowsError(
            f"Feature view `{view.view}`: the features {taken} have names that the entity rows or "
            "another view's features have too. Ask for `full_feature_names=True`, or rename the "
            "columns of the entity rows."
        )
