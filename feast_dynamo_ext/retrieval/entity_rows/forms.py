"""Entity rows from every form that `get_historical_features` takes them in.

They are read when the retrieval is made, as Feast's other stores do: the job says between
which moments it retrieves before it runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast.infra.offline_stores.file_source import FileSource
from feast.types import String

from feast_dynamo_ext.errors import EntityRowsError, SourceNotFoundError
from feast_dynamo_ext.retrieval.entity_rows.changes import Window, changes
from feast_dynamo_ext.retrieval.entity_rows.from_files import read_files
from feast_dynamo_ext.retrieval.entity_rows.from_sql import is_sql, named_sources, run_sql
from feast_dynamo_ext.retrieval.inputs import EntityRows, Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from feast import FeatureView, OnDemandFeatureView, RepoConfig
    from feast.data_source import DataSource
    from feast.infra.registry.base_registry import BaseRegistry

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.plan import PitPlan


@dataclass(frozen=True)
class EntityRequest:
    """What a retrieval is about, besides its entity rows.

    Attributes:
        config: the repo's config.
        registry: the Feast registry, whose names SQL knows.
        project: Feast project.
        views: the views of the request.
        plan: the join of these views.
        limits: memory, threads and spill folder of DuckDB.
        open_source: lists the files of a source.
    """

    config: RepoConfig
    registry: BaseRegistry
    project: str
    views: tuple[FeatureView, ...]
    plan: PitPlan
    limits: Limits
    open_source: Callable[[DataSource], ParquetSource]

    def entity_rows(
        self, entity_df: Any, start: datetime | None = None, end: datetime | None = None
    ) -> EntityRows:
        """The entity rows, read and checked, with all join keys of the views.

        Args:
            entity_df: rows in memory (see `inputs.as_table`), a path or URI of Parquet or CSV,
                SQL, or None for every change between start and end.
            start: the first event time of the changes; None for the end less the longest ttl.
            end: the last one; None for now.

        Raises:
            EntityRowsError: rows that cannot be joined, or none of these forms.
            ColumnTypeError: the event time is not a timestamp.
            SourceNotFoundError: there is no file at the path.
            OfflineStoreError: files that cannot be read; see the subclasses.
        """
        rows = self._read(entity_df, start, end)
        for view in self.plan.views:
            rows.require([column for column, _ in view.keys], view.view)
        return rows

    def _read(self, entity_df: Any, start: datetime | None, end: datetime | None) -> EntityRows:
        if entity_df is None:
            window = Window.from_times(start, end, self.plan)
            origin = Origin("changes", window=(window.start, window.end))
            return EntityRows.from_frame(
                changes(self.plan, window, self.limits, self.open_source), origin
            )
        if isinstance(entity_df, os.PathLike):
            return self._files(os.fspath(entity_df))
        if isinstance(entity_df, str):
            return self._sql(entity_df) if is_sql(entity_df) else self._files(entity_df)
        return EntityRows.from_frame(entity_df)

    def _sql(self, sql: str) -> EntityRows:
        sources = named_sources(self.registry, self.project)
        return EntityRows.from_frame(
            run_sql(sql, sources, self.open_source, self.limits), Origin("sql", sql)
        )

    def _files(self, path: str) -> EntityRows:
        uri: str = FileSource.get_uri_for_file_path(self.config.repo_path, path)
        try:
            table = read_files(uri, self.config, self._text_keys())
        except SourceNotFoundError as error:
            raise SourceNotFoundError(
                f"Entity rows: there is no file at {uri}. Check the path (a relative one counts "
                "from the feature repo) or the bucket's name and region; SQL begins with SELECT, "
                "WITH or FROM."
            ) from error
        return EntityRows.from_frame(table, Origin("files", uri))

    def _text_keys(self) -> set[str]:
        return {
            view.projection.join_key_map.get(column.name, column.name)
            for view in self.views
            for column in view.entity_columns
            if column.dtype == String
        }


def check_request_data(rows: EntityRows, views: Iterable[OnDemandFeatureView]) -> None:
    """Refuse entity rows without what on-demand views take from them.

    Feast looks at pandas DataFrames alone, and lets its transformations fail on other forms.

    Raises:
        EntityRowsError: names the columns and the view.
    """
    for view in views:
        wanted = view.get_request_data_schema()
        missing = [name for name in wanted if name not in rows.table.column_names]
        if missing:
            raise EntityRowsError(
                f"Entity rows lack the request data {missing} of on-demand feature view "
                f"`{view.name}`; they have {rows.table.column_names}. Add it, or leave the view's "
                "features out."
            )
