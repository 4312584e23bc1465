"""The compute engine of `feast materialize`: the newest row per key, packed, written in batches.

Views with transformations or aggregations, and other online stores, are left to Feast's local
engine, of which this is a subclass.

Feast finds the engine's config through the engine's name, so both stand here.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from pydantic import ValidationError

from feast_dynamo_ext import _feast
from feast_dynamo_ext.config import problems, refuse_unknown
from feast_dynamo_ext.cost import estimate
from feast_dynamo_ext.dynamo.precomputed.maintain import declare_registry_services
from feast_dynamo_ext.dynamo.views import table_name
from feast_dynamo_ext.errors import (
    CONFLICT,
    UNAVAILABLE,
    ConfigError,
    FeastDynamoError,
    ViewsFailedError,
)
from feast_dynamo_ext.materialize.lease import Lease, LeaseSettings
from feast_dynamo_ext.materialize.newest_rows import (
    ViewReading,
    Window,
    is_to_come,
    refuse_end_to_come,
    say_why_nothing,
    takes_rows_as_they_are,
    window_of,
)
from feast_dynamo_ext.materialize.registry_state import StaleStateResetter
from feast_dynamo_ext.materialize.report import RunReport, ViewReport, as_text
from feast_dynamo_ext.materialize.run import MaterializeSettings, Run, ViewRun
from feast_dynamo_ext.online_store import DynamoOnlineStore, write_method
from feast_dynamo_ext.progress import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from feast import FeatureView, RepoConfig
    from feast.infra.compute_engines.dag.context import ExecutionContext
    from feast.infra.registry.base_registry import BaseRegistry

    from feast_dynamo_ext.cost.estimate import ViewEstimate
    from feast_dynamo_ext.dynamo.write import FeastRow, WriteMethod

logger = logging.getLogger(__name__)


RETRIED = frozenset({CONFLICT, UNAVAILABLE})
"""Statuses of Feast's server that its clients try again after; other errors of a run are 500."""


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


def jobs_of(tasks: Sequence[MaterializationTask], report: RunReport) -> list[MaterializationJob]:
    """A job for each task. The error of the first names all that failed: Feast raises no other."""
    errors = {
        view.view: _naming(view.view, view.error) for view in report.failed_views if view.error
    }
    if len(errors) > 1:
        first = next(iter(errors))
        others = "; the others are materialized" if len(errors) < len(report.views) else ""
        several = ViewsFailedError(
            f"{len(errors)} of {len(report.views)} feature views failed{others}. "
            + " ".join(map(str, errors.values())),
            failures=errors,
        )
        several.__cause__ = errors[first]
        errors[first] = several
    return [_job(task, errors.get(task.feature_view.name)) for task in tasks]


def _naming(view: str, error: BaseException) -> BaseException:
    """The error, with the view in its message."""
    if view in str(error):
        return error
    named = f"Feature view `{view}`: {error}"
    if isinstance(error, FeastDynamoError):
        error.args = (named, *error.args[1:])
        return error
    failed = ViewsFailedError(named, failures={view: error})
    failed.__cause__ = error
    return failed


def _job(task: MaterializationTask, error: BaseException | None) -> LocalMaterializationJob:
    status = MaterializationJobStatus.ERROR if error else MaterializationJobStatus.SUCCEEDED
    if isinstance(error, FeastDynamoError) and error.http_status in RETRIED:
        error = _feast.served(error)
    return LocalMaterializationJob(_feast.job_id(task), status, error=error)


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """End the block by SystemExit at SIGTERM, so that what has to be undone is, as after Ctrl-C.

    Who handles SIGTERM already, as servers do, goes on doing so.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)  # the code by which shells know it

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class DynamoComputeEngineConfig(MaterializeSettings):
    """The `batch_engine` block of feature_store.yaml."""

    type: Literal["feast_dynamo_ext.DynamoComputeEngine"] = "feast_dynamo_ext.DynamoComputeEngine"
    """Selects this engine, which DynamoProvider takes anyway."""


class DynamoComputeEngine(LocalComputeEngine):
    """Materializes into DynamoOnlineStore, all views of a call together.

    Attributes:
        settings: of the next run.
        report: what became of the rows of the last run; None before.
        show: whether progress and a summary are printed.
    """

    def __init__(
        self, *, repo_config: Any, offline_store: Any, online_store: Any, **settings: Any
    ) -> None:
        super().__init__(
            repo_config=repo_config, offline_store=offline_store, online_store=online_store
        )
        self._ours: Any = online_store if isinstance(online_store, DynamoOnlineStore) else None
        self.settings: MaterializeSettings = _checked(settings)
        self.report: RunReport | None = None
        self.show = True
        self._counted: Any = None

    @property
    def supports_batch(self) -> bool:
        """Feast hands all views over in one call."""
        return True

    def materialize(
        self,
        registry: BaseRegistry,
        tasks: MaterializationTask | list[MaterializationTask],
        *,
        lineage_parent: Any = None,  # noqa: ARG002 - Feast's interface
        **kwargs: Any,  # noqa: ARG002 - the same
    ) -> list[MaterializationJob]:
        """Materialize views; one that fails does not stop the others.

        Args:
            registry: Feast's registry.
            tasks: views and their windows.
            lineage_parent: not used, as by Feast's local engine.
            **kwargs: the same.

        Returns:
            A job for each, with its error where it failed. Where several failed, the first error
            names them all, as Feast raises no other.

        Raises:
            WindowError: an incremental run to a time that has not come.
        """
        several = [tasks] if isinstance(tasks, MaterializationTask) else tasks
        now = datetime.now(tz=timezone.utc)
        if any(map(_feast.is_incremental, several)):
            with _feast.HTTP_STATUS:
                refuse_end_to_come(several[0].end_time, now)
        elif several and is_to_come(several[0].end_time, now):
            logger.warning(
                "the window ends in the future. Feast notes all up to %s as materialized, so "
                "incremental runs are refused until then: end at the present, unless rows to come "
                "are meant",
                several[0].end_time.isoformat(),
            )
        self._reset_stale_states(registry, several)
        report = self.report = RunReport()
        try:
            with (
                sigterm_as_exit(),
                self.readable_after_interruption(registry, [t.feature_view.name for t in several]),
                shown(report) if self.show else contextlib.nullcontext(),
            ):
                self._run(registry, several, report)
        finally:
            # After Ctrl-C too: what is written stays written.
            if self.show:
                sys.stdout.write(as_text(report) + "\n")
        return jobs_of(several, report)

    @contextlib.contextmanager
    def readable_after_interruption(
        self, registry: BaseRegistry, names: Collection[str]
    ) -> Iterator[None]:
        """Feast takes the state of views back after an error, but not after Ctrl-C.

        Args:
            registry: Feast's registry.
            names: of the views that the block materializes.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self._ours is not None:
                self._resetter().after_interruption(registry, self.repo_config.project, names)
            raise

    def estimate(
        self, tasks: Sequence[MaterializationTask], *, is_incremental: bool = False
    ) -> list[ViewEstimate]:
        """What a run would write: history is read and encoded, nothing is written.

        Views that Feast's engine materializes are left out.

        Raises:
            WindowError: event times that an incremental run refuses.
            OfflineStoreError: history cannot be read; see the subclasses.
            FeastDynamoError: rows that cannot be kept.
        """
        if tasks and is_incremental:
            refuse_end_to_come(tasks[0].end_time, datetime.now(tz=timezone.utc))
        plain = [task for task in tasks if self._is_plain(task)]
        return [self._estimate(task, is_incremental=is_incremental) for task in plain]

    def reading(self, view: Any, window: Window) -> ViewReading:
        """What reads the rows of a view.

        Raises:
            OfflineStoreError: its files cannot be listed.
        """
        return ViewReading.from_task(
            self.repo_config,
            self.offline_store,
            view,
            window,
            memory_limit=self.settings.memory_limit,
            rows_per_bucket=self.settings.rows_per_bucket,
        )

    def _run(
        self,
        registry: BaseRegistry,
        tasks: list[MaterializationTask],
        report: RunReport,
    ) -> None:
        runs: list[ViewRun] = []
        by_feast: list[tuple[MaterializationTask, ViewReport]] = []
        for task in tasks:
            of_view = self._report_of(task, is_incremental=_feast.is_incremental(task))
            report.views.append(of_view)
            if of_view.error is not None:
                continue
            if self._is_plain(task):
                runs.append(self._view_run(registry, task, of_view))
            else:
                by_feast.append((task, of_view))
        if runs:
            Run(self._ours.connection(self.repo_config), self.settings, runs).execute()
        for task, of_view in by_feast:
            self._by_feast(registry, task, of_view)

    def _report_of(self, task: MaterializationTask, *, is_incremental: bool) -> ViewReport:
        view: Any = task.feature_view
        table = table_name(self.repo_config, view) if self._ours else view.name
        report = ViewReport(view.name, table, task.start_time, task.end_time)
        try:
            window = window_of(task, self.settings.lookback_s, is_incremental=is_incremental)
        except FeastDynamoError as error:
            report.error, report.step = error, "failed"
        else:
            report.start, report.end = window.start, window.end
        return report

    def _view_run(
        self, registry: BaseRegistry, task: MaterializationTask, report: ViewReport
    ) -> ViewRun:
        view: Any = task.feature_view
        window = Window(report.start, report.end)
        return ViewRun(
            view,
            report,
            partial(self.reading, view, window),
            self._write_method(view),
            self._services(registry, view),
            partial(self._ours.refuse_anothers, self.repo_config, view),
            _feast.is_incremental(task),
        )

    def _write_method(self, view: Any) -> WriteMethod:
        chosen = self.settings.write_mode
        if chosen is None:
            return write_method(self.repo_config, view)
        store = self.repo_config.online_store
        method: WriteMethod = "overwrite" if chosen == "overwrite" else store.newest_wins_with
        return method

    def _services(self, registry: BaseRegistry, view: Any) -> Callable[[], Callable[[], object]]:
        """From its materialization on, a view's precomputed services have their vectors."""
        store, config = self._ours, self.repo_config

        def declare() -> Callable[[], object]:
            unfilled = declare_registry_services(store, config, registry, view, is_fresh=True)
            return lambda: [store.fill_service(config, spec) for spec in unfilled]

        return declare

    def _is_plain(self, task: MaterializationTask) -> bool:
        """Whether rows go from the source to the table as they are."""
        return self._ours is not None and takes_rows_as_they_are(task.feature_view)

    # By Feast's own engine

    def _by_feast(
        self, registry: BaseRegistry, task: MaterializationTask, report: ViewReport
    ) -> None:
        report.started_s, report.step = time.monotonic(), "writing"
        widened = replace(task, start_time=report.start)
        is_ours = self._ours is not None and task.feature_view.online
        self._counted = CountedStore(self._ours, report) if is_ours else None
        try:
            if is_ours:
                self._ours.refuse_anothers(self.repo_config, task.feature_view)
            with self._leased(report) if is_ours else contextlib.nullcontext():
                fill = self._services(registry, task.feature_view)() if is_ours else None
                failed = _feast.materialize_one(self, registry, widened)
                if fill and failed is None:
                    fill()
        except Exception as error:  # noqa: BLE001 - it fails its view, not the others
            failed = error
        report.error, report.step = failed, "failed" if failed else "done"
        report.ended_s = time.monotonic()
        if is_ours and failed is None and not report.read:
            logger.warning(
                "feature view %s: no row came out of its transformation from %s to %s, so nothing "
                "is written.",
                report.view,
                report.start.isoformat(),
                report.end.isoformat(),
            )

    def _leased(self, report: ViewReport) -> Lease:
        client = self._ours.connection(self.repo_config).client
        settings = LeaseSettings(self.settings.lease_s, self.settings.if_running)
        return Lease.acquire(client, report.table, report.view, settings)

    def get_execution_context(self, registry: BaseRegistry, task: Any) -> ExecutionContext:
        """What Feast's engine works with; what it writes into our store is counted."""
        context = super().get_execution_context(registry, task)
        if self._counted is not None:
            context.online_store = self._counted
        return context

    # The rest

    def _reset_stale_states(
        self, registry: BaseRegistry, tasks: list[MaterializationTask]
    ) -> None:
        """Make other views readable that a killed run has left `MATERIALIZING`."""
        if self._ours is None:
            return
        names = {task.feature_view.name for task in tasks}
        self._resetter().before_run(registry, self.repo_config.project, names)

    def _resetter(self) -> StaleStateResetter:
        return StaleStateResetter(
            lambda: self._ours.connection(self.repo_config).client,
            partial(table_name, self.repo_config),
        )

    def _estimate(self, task: MaterializationTask, *, is_incremental: bool) -> ViewEstimate:
        report = self._report_of(task, is_incremental=is_incremental)
        if report.error is not None:
            raise report.error
        view: Any = task.feature_view
        reading = self.reading(view, Window(report.start, report.end))

        def found(newest: Any) -> None:
            report.read, report.expired = newest.read, newest.expired
            say_why_nothing(view, reading.window, newest, is_incremental=is_incremental)

        sizes = [rows.sizes() for rows in reading.rows(found)]
        return estimate.estimate_view(
            view.name,
            report.table,
            sizes,
            "overwrite" if self._write_method(view) == "overwrite" else "newest_wins",
            read=report.read,
            expired=report.expired,
        )


def _checked(settings: dict[str, Any]) -> MaterializeSettings:
    known = DynamoComputeEngineConfig.model_fields
    refuse_unknown("feature_store.yaml, batch_engine", "", settings, known)
    try:
        return DynamoComputeEngineConfig(**settings)
    except ValidationError as error:
        raise ConfigError(
            f"feature_store.yaml, batch_engine: {problems(error)}. "
            "`feast-dynamo docs configuration` explains each field."
        ) from error
