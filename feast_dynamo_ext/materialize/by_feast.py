"""Counts what Feast's own engine writes: views with transformations go its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast import FeatureView, RepoConfig

    from feast_dynamo_ext.dynamo.rows import FeastRow
    from feast_dynamo_ext.materialize.report import ViewReport
    from feast_dynamo_ext.online_store import DynamoOnlineStore


class CountedStore:
    """An online store to write to, whose outcomes go into a report."""

    def __init__(self, store: DynamoOnlineStore, report: ViewReport) -> None:
        self._store, self._report = store, report

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """See `DynamoOnlineStore.online_write_batch`."""
        report = self._report
        report.read += len(data)
        report.to_write = (report.to_write or 0) + len(data)
        outcome = self._store.write_feast_rows(config, table, data, progress)
        report.written += outcome.written
        report.older += outcome.older
