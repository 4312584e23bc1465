"""What a retrieval will read and how it will match, from listings and footers alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.parquet.dataset import FOOTERS_AT_ONCE
from feast_dynamo_ext.parquet.scan import ReadErrors
from feast_dynamo_ext.retrieval.inputs import checked_source
from feast_dynamo_ext.retrieval.join import opened, prune, rows_at_once
from feast_dynamo_ext.retrieval.windows.windows_join import explain_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from feast.data_source import DataSource

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.engines.base import Engine
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import PitPlan, RowsPlan, ViewPlan


UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3))

HEADS = ("view", "plan", "files", "folders", "row groups", "rows", "match", "features", "window")


@dataclass(frozen=True)
class ViewExplanation:
    """What is read of one view's history.

    Attributes:
        view: its name.
        plan: how entity rows are matched with history.
        why: why so.
        files: files that are opened.
        files_listed: files that the source has.
        folders: folders of these that are opened.
        folders_listed: folders that the source has files in.
        row_groups: row groups that are read.
        row_groups_opened: row groups that the opened files have.
        rows: rows in the row groups that are read.
        match_bytes: compressed bytes of the keys and times in them.
        feature_bytes: compressed bytes of the features in them; at most these are read.
        first: the first event time that can count, ISO 8601; None for no limit.
        last: the last one.
        ttl_s: the view's ttl in seconds; None for no limit.
    """

    view: str
    plan: str
    why: str
    files: int
    files_listed: int
    folders: int
    folders_listed: int
    row_groups: int
    row_groups_opened: int
    rows: int
    match_bytes: int
    feature_bytes: int
    first: str | None
    last: str | None
    ttl_s: float | None


@dataclass(frozen=True)
class Explanation:
    """What a retrieval will read; `print` it, or take it as a dict.

    Attributes:
        views: one entry a view, in the order in which they are joined.
        entity_rows: number of the entity rows; None where the retrieval is without them.
        entity_bytes: bytes of them in memory.
        memory: what bounds the memory of matching.
    """

    views: tuple[ViewExplanation, ...]
    entity_rows: int | None
    entity_bytes: int | None
    memory: str

    def to_dict(self) -> dict[str, Any]:
        """Its plain values, for JSON."""
        return {**asdict(self), "views": [asdict(view) for view in self.views]}

    def __str__(self) -> str:
        rows = [HEADS, *(_cells(view) for view in self.views)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(HEADS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        if self.entity_rows is not None:
            lines.append(f"{self.entity_rows:,} entity rows, {_size(self.entity_bytes or 0)}")
        lines += [f"{view.view}: {view.plan}: {view.why}" for view in self.views]
        return "\n".join([*lines, f"memory: {self.memory}"])


def explain_join(
    plan: PitPlan,
    entities: EntityRows,
    open_source: Callable[[DataSource], ParquetSource],
    engine: Engine,
    *,
    is_chosen: bool,
) -> Explanation:
    """What a join will read; files are listed and footers read, no rows.

    Args:
        plan: the join.
        entities: its entity rows.
        open_source: lists the files of a source.
        engine: what will match.
        is_chosen: whether `join_plan` names the engine.

    Raises:
        OfflineStoreError: a source that is not there, or lacks a column.
    """
    plan, sources = opened(plan, open_source)
    because = "`join_plan` says so: " if is_chosen else ""
    views = []
    for view, source in zip(plan.views, sources, strict=True):
        pruned = prune(view, source, entities)
        if view.derived is None:
            matching = engine.name, because + engine.explain(entities, view, pruned)
        else:
            # As many as there are views share the memory.
            at_once = engine.entity_bytes // max(1, min(len(plan.views), engine.workers + 1))
            matching = "windows", explain_windows(view, pruned, entities, at_once)
        views.append(_explain(view, source, pruned, view.visible(*entities.range()), matching))
    table = entities.table
    memory = _blocks(plan, table.num_rows, sources, engine)
    return Explanation(tuple(views), table.num_rows, table.nbytes, memory)


def explain_rows(
    plan: RowsPlan, open_source: Callable[[DataSource], ParquetSource], memory_limit: str | None
) -> Explanation:
    """What a retrieval of a source's rows will read.

    Raises:
        OfflineStoreError: a source that is not there, or lacks a column.
    """
    view, window = plan.view, (plan.start, plan.end)
    source = checked_source(view, open_source(view.source))
    pruned = source.within(view.event_time, *window)
    matching = ("scan", "rows in the range are read in the order of the files")
    if plan.newest:
        matching = (
            "newest",
            "one pass over keys and times, the newest row of each key is kept",
        )
    explained = _explain(view, source, pruned, window, matching)
    return Explanation((explained,), None, None, _memory(memory_limit))


def _explain(
    view: ViewPlan,
    source: ParquetSource,
    pruned: ParquetSource,
    window: tuple[datetime | None, datetime | None],
    matching: tuple[str, str],
) -> ViewExplanation:
    (first, last), (plan, why) = window, matching
    files = list(pruned.dataset.get_fragments())
    errors = ReadErrors(source.place, source.files)
    columns = {*view.narrow_columns, *view.feature_columns}
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        footers = list(pool.map(partial(_Footer.from_fragment, errors, columns), files))
    return ViewExplanation(
        view=view.view,
        plan=plan,
        why=why,
        files=len(files),
        files_listed=len(source.files),
        folders=_folders([file.path for file in files]),
        folders_listed=_folders([file.path for file in source.files]),
        row_groups=sum(len(footer.groups) for footer in footers),
        row_groups_opened=sum(footer.metadata.num_row_groups for footer in footers),
        rows=sum(group.num_rows for footer in footers for group in footer.groups),
        match_bytes=sum(footer.bytes_of(view.narrow_columns) for footer in footers),
        feature_bytes=sum(footer.bytes_of(view.feature_columns) for footer in footers),
        first=first.isoformat() if first else None,
        last=last.isoformat() if last else None,
        ttl_s=view.ttl.total_seconds() if view.ttl else None,
    )


@dataclass(frozen=True)
class _Footer:
    metadata: Any
    groups: tuple[Any, ...]

    @classmethod
    def from_fragment(cls, errors: ReadErrors, columns: set[str], fragment: Any) -> _Footer:
        fragment.ensure_complete_metadata()
        errors.check_columns(fragment, columns & set(fragment.physical_schema.names))
        return cls(fragment.metadata, tuple(fragment.row_groups))

    def bytes_of(self, columns: Sequence[str]) -> int:
        """Compressed bytes of some columns in the row groups; one that is a path has none."""
        schema = self.metadata.schema
        wanted = [
            at
            for at in range(self.metadata.num_columns)
            if schema.column(at).path.split(".")[0] in columns
        ]
        return sum(
            self.metadata.row_group(group.id).column(at).total_compressed_size
            for group in self.groups
            for at in wanted
        )


def _folders(paths: Sequence[str]) -> int:
    return len({path.rpartition("/")[0] for path in paths})


def _memory(limit: str | None) -> str:
    return (
        f"DuckDB may use `memory_limit` {limit}, then it spills"
        if limit
        else "no `memory_limit` is set: DuckDB may use 80% of the machine's, then it spills"
    )


def _blocks(plan: PitPlan, rows: int, sources: Sequence[ParquetSource], engine: Engine) -> str:
    """How many entity rows are held in memory with their features."""
    at_once = min(rows, rows_at_once(plan, sources, engine.entity_bytes))
    limit = engine.memory_limit
    by = (
        f"`memory_limit` {limit}" if limit else "40% of the machine's, as no `memory_limit` is set"
    )
    passes = -(-rows // max(1, at_once))
    over = "1 pass" if passes == 1 else f"{passes:,} passes"
    return f"{at_once:,} entity rows at once, {over} over the history, by {by}"


def _cells(view: ViewExplanation) -> tuple[str, ...]:
    return (
        view.view,
        view.plan,
        f"{view.files:,} of {view.files_listed:,}",
        f"{view.folders:,} of {view.folders_listed:,}",
        f"{view.row_groups:,} of {view.row_groups_opened:,}",
        f"{view.rows:,}",
        _size(view.match_bytes),
        f"<= {_size(view.feature_bytes)}",
        f"{view.first or 'any time'} .. {view.last or 'any time'}",
    )


def _size(count: int) -> str:
    for unit, size in UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
