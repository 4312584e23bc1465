"""feast-dynamo materialize: what `feast materialize` does, with more choices."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext._feast import FIRST_INCREMENTAL, feasts_errors
from feast_dynamo_ext.cli.repo import (
    Output,
    chosen_views,
    each_view,
    json_option,
    open_store,
    raise_failed,
    repo_option,
    times_argument,
    views_option,
)
from feast_dynamo_ext.errors import ConfigError, FeastDynamoError, ViewsFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from feast import FeatureStore
    from feast.infra.common.materialization_job import MaterializationTask

    from feast_dynamo_ext.cost.estimate import ViewEstimate
    from feast_dynamo_ext.materialize.engine import DynamoComputeEngine
    from feast_dynamo_ext.materialize.report import RunReport


@dataclass(frozen=True)
class Window:
    """Which event times to materialize.

    Attributes:
        start: the first; None: from where each view's last run ended.
        end: the last.
        is_all: from 1970 until now, as Feast's --disable-event-timestamp has it.
    """

    start: datetime | None
    end: datetime
    is_all: bool = False

    @classmethod
    def from_times(
        cls, times: Sequence[datetime], now: datetime, *, incremental: bool, all_: bool
    ) -> Window:
        """The window that the options say.

        Raises:
            click.UsageError: too few or too many times, or in the wrong order.
        """
        if incremental and all_:
            raise click.UsageError("--incremental and --all contradict each other.")
        if all_:
            from feast_dynamo_ext.timestamps import EPOCH

            if times:
                raise click.UsageError("--all takes no times: it goes from 1970 until now.")
            return cls(EPOCH, now, is_all=True)
        if incremental:
            if len(times) > 1:
                raise click.UsageError("--incremental takes END_TS alone, or no time: until now.")
            return cls(None, times[0] if times else now)
        if len(times) != 2:  # noqa: PLR2004 - a start and an end
            raise click.UsageError("Give START_TS and END_TS, or --incremental, or --all.")
        if times[0] > times[1]:
            raise click.UsageError(f"START_TS ({times[0]}) is after END_TS ({times[1]}).")
        return cls(times[0], times[1])

    def start_for(self, view: Any, now: datetime) -> datetime:
        """Where a view's window starts.

        Raises:
            ConfigError: an incremental run of a view that was never materialized and has no ttl.
        """
        if self.start is not None:
            return self.start
        last: datetime | None = view.most_recent_end_time
        if last is not None:
            from feast_dynamo_ext.timestamps import assume_utc

            return assume_utc(last)
        if view.ttl is None:
            raise ConfigError(
                f"Feature view `{view.name}` was never materialized and has no ttl, so an "
                "incremental run has no start. Give START_TS and END_TS this once."
            )
        return now - (view.ttl or FIRST_INCREMENTAL)


@dataclass(frozen=True)
class MaterializeRequest:
    """What to materialize: `names` is None for all views."""

    window: Window
    names: tuple[str, ...] | None
    version: str | None


@click.command(short_help="Write the newest rows of history into DynamoDB.")
@times_argument
@click.option(
    "--incremental",
    is_flag=True,
    help="From where the last run of each view ended until END_TS; default: now.",
)
@click.option(
    "--all",
    "--disable-event-timestamp",
    "all_",
    is_flag=True,
    help="All of history, from 1970 until now.",
)
@views_option
@click.option("--version", metavar="vN", help="A version of the one view that is named.")
@click.option("--dry-run", is_flag=True, help="Read and count, write nothing, say what it costs.")
@click.option(
    "--write-mode",
    type=click.Choice(["newest_wins", "overwrite"]),
    help="Keep rows of the table that are newer, or replace all.  [default: as configured]",
)
@click.option(
    "--max-write-units",
    "max_write_units_per_s",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write units a second, all views together.  [default: as many as DynamoDB grants]",
)
@click.option(
    "--resume/--restart",
    default=None,
    help="Go on where a run that was killed had stopped, or start over.  [default: resume]",
)
@click.option(
    "--if-running",
    type=click.Choice(["refuse", "wait"]),
    help="What to do while another run has the view.  [default: refuse]",
)
@repo_option
@json_option
def materialize(
    times: tuple[datetime, ...],
    output: Output,
    repo: Path,
    *,
    incremental: bool,
    all_: bool,
    views: tuple[str, ...],
    version: str | None,
    dry_run: bool,
    **choices: Any,
) -> None:
    """Write the newest row of each entity of history into DynamoDB.

    The same as `feast materialize` and `feast materialize-incremental`, which it calls, with more
    choices; what is not chosen here is as `batch_engine` in feature_store.yaml says. START_TS and
    END_TS are event times such as 2026-01-31 or 2026-01-31T12:00:00; without an offset, UTC.

    Run `feast apply` before; it makes the tables. The registry keeps up to when each view is
    materialized, and --incremental goes on from there.

    \b
    Two weeks of all views, then whatever is new:
      feast-dynamo materialize 2026-01-01 2026-01-15
      feast-dynamo materialize --incremental
    What that would write and cost, and how long it would take:
      feast-dynamo materialize 2026-01-01 2026-01-15 --dry-run
    Two views, leaving most of a table's capacity to others:
      feast-dynamo materialize --all -v orders,baskets --max-write-units 500
    A first load into empty tables, each row at the price of one write:
      feast-dynamo materialize --all --write-mode overwrite

    Killed, a run of the same START_TS and END_TS goes on after the rows that it recorded, every
    25,000 or so; a run until now starts over, which changes no answer. A view that fails does not
    stop the others; the exit code is 1 then, and the last line names it.
    """  # noqa: D301 - click keeps the lines after \b as they are
    window = Window.from_times(times, _now(), incremental=incremental, all_=all_)
    if version and len(views) != 1:
        raise click.UsageError("--version takes one view: name it with --views.")
    request = MaterializeRequest(window, views or None, version)
    with _stdout_kept_for_json(output):
        store = open_store(repo)
        engine = _engine(store, choices)
        tasks = _tasks(store, request)
        if dry_run:
            estimates, failures = _estimates(engine, tasks, output, window)
        else:
            report = _run(store, engine, request, [task.feature_view.name for task in tasks])
    if dry_run:
        if not estimates:
            raise_failed(failures, len(tasks))
        _show_estimates(engine, estimates, failures, output)
        raise_failed(failures, len(tasks))
    else:
        _show_report(report, output)


def _now() -> datetime:
    return datetime.now(tz=timezone.utc)


def _stdout_kept_for_json(output: Output) -> contextlib.AbstractContextManager[Any]:
    """What Feast prints goes to stderr where the answer is for a program."""
    return contextlib.redirect_stdout(sys.stderr) if output.as_json else contextlib.nullcontext()


def _engine(store: FeatureStore, choices: dict[str, Any]) -> DynamoComputeEngine:
    """The store's engine, with what was chosen for this run.

    Raises:
        ConfigError: the repo is materialized by another engine, or into another store.
    """
    from feast_dynamo_ext.materialize.engine import DynamoComputeEngine
    from feast_dynamo_ext.online_store import DynamoOnlineStoreConfig

    if not isinstance(store.config.online_store, DynamoOnlineStoreConfig):
        raise ConfigError(
            f"The online store of this repo is `{store.config.online_store.type}`. Set "
            "`type: feast_dynamo_ext.DynamoOnlineStore` in online_store of feature_store.yaml, "
            "or use `feast materialize`."
        )
    with feasts_errors():
        engine: Any = getattr(store.provider, "batch_engine", None)
    if not isinstance(engine, DynamoComputeEngine):
        raise ConfigError(
            "Another engine materializes this repo. In feature_store.yaml, set `provider: "
            "feast_dynamo_ext.DynamoProvider` and no other engine's `type` in batch_engine, or "
            "use `feast materialize`."
        )
    given = {name: value for name, value in choices.items() if value is not None}
    engine.settings = engine.settings.model_copy(update=given)
    engine.show = True
    return engine


def _tasks(store: FeatureStore, request: MaterializeRequest) -> list[MaterializationTask]:
    """The windows of the views, by Feast's rules; on-demand views have none.

    Raises:
        ConfigError: a view that cannot be materialized, or there is none at all.
    """
    from feast import OnDemandFeatureView
    from feast.infra.common.materialization_job import MaterializationTask

    now, chosen = _now(), chosen_views(store, request.names, request.version)
    if not chosen:
        raise ConfigError(
            f"Project {store.project} has no feature view that is served online. Run `feast "
            "apply` first, which registers what the repo defines."
        )
    return [
        MaterializationTask(
            project=store.project,
            feature_view=view,
            start_time=request.window.start_for(view, now),
            end_time=request.window.end,
            disable_event_timestamp=request.window.is_all,
        )
        for view in chosen
        if not isinstance(view, OnDemandFeatureView)
    ]


def _run(
    store: FeatureStore,
    engine: DynamoComputeEngine,
    request: MaterializeRequest,
    names: Sequence[str],
) -> RunReport:
    """Materialize through Feast, which keeps the intervals and states of views."""
    from feast_dynamo_ext.materialize.engine import sigterm_as_exit

    window = request.window
    which: Any = {
        "feature_views": request.names and list(request.names),
        "version": request.version,
    }
    try:
        # Feast sets the views' states before, and takes them back after, the engine's own work.
        with sigterm_as_exit(), engine.readable_after_interruption(store.registry, names):
            if window.start is None:
                store.materialize_incremental(window.end, **which)
            else:
                store.materialize(
                    window.start, window.end, disable_event_timestamp=window.is_all, **which
                )
    except Exception as error:
        # Feast raises the error of the first view that failed; the report has that of each.
        failed = _report(engine).failed_views
        if not isinstance(error, ViewsFailedError) and all(v.error is not error for v in failed):
            raise
    return _report(engine)


def _report(engine: DynamoComputeEngine) -> RunReport:
    """What the engine did; nothing, where Feast had no view for it."""
    from feast_dynamo_ext.materialize.report import RunReport

    return engine.report or RunReport()


def _show_report(report: RunReport, output: Output) -> None:
    """Answer a program; a person has seen the engine's summary.

    Raises:
        ViewsFailedError: views failed.
    """
    from feast_dynamo_ext.materialize.report import as_json

    if output.as_json:
        output.show(as_json(report), "")
    failed = report.failed_views
    if failed:
        raise ViewsFailedError(
            f"{len(failed)} of {len(report.views)} feature views failed: "
            f"{', '.join(view.view for view in failed)}. "
            "The reasons are above; once they are mended, run the same command again.",
            failures={view.view: view.error for view in failed if view.error},
        )


def _show_estimates(
    engine: DynamoComputeEngine,
    estimates: Sequence[ViewEstimate],
    failures: Mapping[str, FeastDynamoError],
    output: Output,
) -> None:
    from feast_dynamo_ext.cost import estimate

    settings = engine.settings
    rate = estimate.Rate(settings.max_write_units_per_s, settings.views_at_once)
    data = estimate.as_json(estimates, rate)
    if failures:
        data["failed"] = {view: str(error) for view, error in failures.items()}
    output.show(data, estimate.as_text(estimates, rate))


def _estimates(
    engine: DynamoComputeEngine,
    tasks: list[MaterializationTask],
    output: Output,
    window: Window,
) -> tuple[list[ViewEstimate], dict[str, FeastDynamoError]]:
    """What a run would write, and the error of each view that it would fail on.

    Raises:
        WindowError: an incremental run that ends in the future.
    """
    from feast_dynamo_ext.materialize.newest_rows import refuse_end_to_come

    is_incremental = window.start is None
    if is_incremental:
        refuse_end_to_come(window.end, _now())
    task_of = {task.feature_view.name: task for task in tasks}
    found, failures = each_view(
        [task.feature_view for task in tasks],
        lambda view: engine.estimate([task_of[view.name]], is_incremental=is_incremental),
        output,
    )
    estimates = [one for of_view in found for one in of_view]
    left_out = task_of.keys() - failures.keys() - {one.view for one in estimates}
    if left_out:
        output.note(
            f"Not estimated, as Feast transforms them on their way: {', '.join(sorted(left_out))}."
        )
    return estimates, failures
