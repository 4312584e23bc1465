"""Which of rows that are equal in keys and event time wins, where their positions do not say it.

So it is in Iceberg tables, whose files any engine may rewrite in any order. Created time decides
first, then the table's sequence, then what the rows hold; see `TieBreak`. Only rows that are equal
are read for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.parquet.iceberg.content_order import content_ranks
from feast_dynamo_ext.timestamps import LOWEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feast_dynamo_ext.retrieval.inputs import History

    Numbers: TypeAlias = NDArray[np.int64]
    Ranked: TypeAlias = Callable[[Numbers, Numbers], Numbers]


logger = logging.getLogger(__name__)


def ranked_by_created(history: History, threads: int) -> Ranked:
    """Ranks by created time, then by position."""

    def ranks(group: Numbers, row: Numbers) -> Numbers:
        positions, index = np.unique(row, return_inverse=True)
        return _ranks(row, history.created(positions, threads)[index], group)

    return ranks


def ranked_by_ties(history: History, threads: int) -> Ranked:
    """Ranks by created time, sequence and content: of rows of a group the greatest rank wins."""

    def ranks(group: Numbers, row: Numbers) -> Numbers:
        positions, index = np.unique(row, return_inverse=True)
        created = history.created(positions, threads)[index]
        sequence = _sequence(history, positions, threads)[index]
        content = np.zeros(len(row), dtype=np.int64)
        equal = _equal(sequence, created, group)
        if len(equal):
            content[equal] = _content(history, row[equal], threads)
            _warn(history, group[equal], content[equal])
        return _ranks(content, sequence, created, group)

    return ranks


def _ranks(*columns: Numbers) -> Numbers:
    """The places of rows in an order, whose last column counts most."""
    order = np.lexsort(columns)
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.arange(len(order))
    return found


def _equal(*columns: Numbers) -> Numbers:
    """Rows that have an equal in all columns."""
    order = np.lexsort(columns)
    if not len(order):
        return order
    same = np.ones(len(order) - 1, dtype=bool)
    for column in columns:
        ordered = column[order]
        same &= ordered[1:] == ordered[:-1]
    found: Numbers = order[np.append(same, False) | np.append(False, same)]
    return found


def _sequence(history: History, positions: Numbers, threads: int) -> Numbers:
    ties = history.source.ties
    if ties is None or ties.sequence is None:
        return np.zeros(len(positions), dtype=np.int64)
    rows = history.source.fetch([ties.sequence], positions, threads)
    schema = history.source.schema_of([ties.sequence])
    found: Numbers = (
        pa.Table.from_batches(rows, schema).column(0).cast(pa.int64()).fill_null(LOWEST).to_numpy()
    )
    return found


def _content(history: History, row: Numbers, threads: int) -> Numbers:
    source = history.source
    names = [name for name in source.schema.names if name not in source.internal]
    positions, index = np.unique(row, return_inverse=True)
    rows = source.fetch(names, positions, threads)
    ranks: Numbers = content_ranks(pa.Table.from_batches(rows, source.schema_of(names)))[index]
    return ranks


def _warn(history: History, group: Numbers, content: Numbers) -> None:
    """Say how many answers are decided by what rows hold."""
    pairs = np.unique(np.stack([group, content]), axis=1)
    counts = np.unique(pairs[0], return_counts=True)[1]
    undecided = int((counts > 1).sum())
    if undecided:
        logger.warning(
            "feature view %s: for %s keys and event times source %s has several rows that differ "
            "and of which nothing says which is newer; what they hold decided. Give the source a "
            "`created_timestamp_column`, or make the table with `feast-dynamo table create`, "
            "which keeps the order of appends",
            history.view.view,
            f"{undecided:,}",
            history.source.uri,
        )
