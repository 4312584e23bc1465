"""Sets back what a killed run leaves in Feast's registry: views `MATERIALIZING` for ever.

Feast sets that state before a run and takes it back after it, also where it fails, but not after
Ctrl-C. Readers are refused meanwhile (unless `serve_features_while_materializing` is set), and
after a kill for good. Where the run after that fails, Feast sets them `GENERATED`, which is
refused too.

A run that is interrupted does this for its own views, and a run does it at its start for those
that it does not materialize itself. Readers do it when Feast refuses a read. Whether a run is
still at a view, its lease says; where nobody has that, the time at which the state was set, as the
registry has it: a run has the lease a moment later. So a program that reads once and ends can
judge it as well as a server.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from feast.feature_view import FeatureViewState
from feast.version_utils import parse_version

from feast_dynamo_ext.errors import ResourceNotFoundError
from feast_dynamo_ext.forks import Lock
from feast_dynamo_ext.materialize.lease import LeaseSettings, Watch, holder
from feast_dynamo_ext.timestamps import assume_utc
from feast_dynamo_ext.view_settings import series_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable


logger = logging.getLogger(__name__)


def reset_stale_states(
    registry: Any, project: str, views: Iterable[Any], is_gone: Callable[[Any], bool]
) -> list[str]:
    """Make views readable again whose materialization was killed.

    Args:
        registry: Feast's.
        project: its project.
        views: feature views, as the registry has them; all others are left alone.
        is_gone: whether no run materializes a view any more; called with views that may be stuck
            alone. A view of which that, or the registry, raises an error is logged and left.

    Returns:
        The names of the views that are readable now.
    """
    return [
        view.name
        for view in views
        if is_stuck(view) and _is_reset(registry, project, view, is_gone)
    ]


def _is_reset(registry: Any, project: str, view: Any, is_gone: Callable[[Any], bool]) -> bool:
    try:
        return is_gone(view) and _set_back(registry, project, view.name)
    except Exception as error:  # noqa: BLE001 - whatever AWS or a registry raises: the caller's own work goes on
        _log_failure(view.name, error)
        return False


def _log_failure(name: str, error: Exception) -> None:
    logger.warning(
        "feature view %s, which a killed run has left MATERIALIZING, could not be put right: %s. "
        "`feast materialize` puts it right",
        name,
        error,
    )


def is_stuck(view: Any) -> bool:
    """Whether a view is in a state that a run sets, and that readers are refused in."""
    state = getattr(view, "state", None)
    if state == FeatureViewState.GENERATED:
        # What Feast makes of `MATERIALIZING` when the next run fails: refused to readers as well.
        return bool(getattr(view, "materialization_intervals", ()))
    return state == FeatureViewState.MATERIALIZING


def _set_back(registry: Any, project: str, name: str) -> bool:
    # Deciding that a run is gone takes time, in which it may have come to its proper end.
    view = registry.get_any_feature_view(name, project, allow_cache=False)
    if not is_stuck(view):
        return False
    intervals, before = list(getattr(view, "materialization_intervals", ())), view.state.name
    is_pinned = not parse_version(view.version)[0]
    if not is_pinned:
        view.state = FeatureViewState.AVAILABLE_ONLINE if intervals else FeatureViewState.GENERATED
        registry.apply_feature_view(view, project, commit=True)
    now = registry.get_any_feature_view(name, project, allow_cache=False)
    if is_stuck(now) and intervals:
        # Feast takes the state of a view that is pinned to a version from that version (and drops
        # the pin), and its SQL registry takes no change of the state alone. Both take the end of
        # a run, so the end of the last one is recorded again.
        registry.apply_materialization(now, project, *intervals[-1])
        now = registry.get_any_feature_view(name, project, allow_cache=False)
    if is_stuck(now):
        logger.warning(
            "feature view %s is still %s though no run is at it: the registry did not take the "
            "change. Run `feast materialize` for it to its end",
            name,
            now.state.name,
        )
        return False
    logger.warning("feature view %s is %s, no longer %s", name, now.state.name, before)
    return True


BETWEEN_REFRESHES_S = 1.0
"""A registry may be a file of megabytes on S3, and reads are many."""


class StaleStateResetter:
    """Sets back the states of views whose leases say that no run is at them.

    Safe to share between threads.

    Args:
        client: gives boto3's client of DynamoDB.
        table_of: the table of a view.
        settings: of leases.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        table_of: Callable[[Any], str],
        settings: LeaseSettings | None = None,
    ) -> None:
        self._client, self._table_of = client, table_of
        self._settings = settings or LeaseSettings()
        self._lock = Lock()
        self._watches: dict[str, Watch] = {}
        self._free: dict[str, tuple[Any, float]] = {}
        self._refreshed_s = float("-inf")

    def before_run(self, registry: Any, project: str, names: Container[str]) -> list[str]:
        """Make views readable that the run which begins does not materialize itself.

        Args:
            registry: Feast's.
            project: its project.
            names: of the run's own views.

        Returns:
            The names of the views that are readable now.
        """
        views = registry.list_all_feature_views(project)
        others = [view for view in views if view.name not in names]
        with self._lock:
            return reset_stale_states(registry, project, others, lambda v: self._is_gone(v, 0))

    def before_read(self, registry: Any, project: str) -> bool:
        """Make views readable, of which Feast has refused one; whether there were any.

        A run that is still alive, or was a moment ago, is left alone: no call waits for it. One
        that has come to its proper end leaves nothing to set back, but a server may still hold
        the registry of before: it is read again then.

        Args:
            registry: Feast's.
            project: its project.
        """
        views = registry.list_all_feature_views(project, allow_cache=True)
        # A run sets the state a moment before it has the lease.
        unclaimed_s = self._settings.lease_s
        with self._lock:
            return bool(
                reset_stale_states(
                    registry, project, views, lambda view: self._is_gone(view, unclaimed_s)
                )
            ) or self._is_refreshed(registry, project, views)

    def after_interruption(self, registry: Any, project: str, names: Collection[str]) -> None:
        """Make views readable whose run was interrupted, and has released its leases.

        Args:
            registry: Feast's.
            project: its project.
            names: of the run's views; those that another run materializes are left alone.
        """
        try:
            views = registry.list_all_feature_views(project)
            own = [view for view in views if view.name in names]
            with self._lock:
                reset_stale_states(registry, project, own, lambda view: self._is_gone(view, 0))
        except Exception as error:  # noqa: BLE001 - whatever a registry raises: the run ends by its interruption
            _log_failure(", ".join(names), error)

    def _is_gone(self, view: Any, unclaimed_s: float) -> bool:
        settings, table = self._settings, self._table_of(view)
        now_s = settings.clock()
        try:
            held = holder(self._client(), table, is_series=series_of(view) is not None)
        except ResourceNotFoundError:
            held = None
        if held is None:
            # No run begins with `GENERATED`.
            is_begun = view.state == FeatureViewState.MATERIALIZING
            free_s = max(now_s - self._free_since_s(view, table, now_s), self._age_s(view))
            return not is_begun or free_s >= unclaimed_s
        self._free.pop(table, None)
        watch = self._watches.setdefault(table, Watch(self._settings))
        return watch.look(held) is False or held.is_silent(settings.wall_clock())

    def _age_s(self, view: Any) -> float:
        """How long a view has been as it is, by the registry's time; 0 where that is not known."""
        changed = getattr(view, "last_updated_timestamp", None)
        return self._settings.wall_clock() - assume_utc(changed).timestamp() if changed else 0.0

    def _free_since_s(self, view: Any, table: str, now_s: float) -> float:
        """Since when it is known that nobody has the lease, while the view is as it is."""
        changed = getattr(view, "last_updated_timestamp", None)
        if table not in self._free or self._free[table][0] != changed:
            self._free[table] = changed, now_s
        return self._free[table][1]

    def _is_refreshed(self, registry: Any, project: str, views: list[Any]) -> bool:
        """Whether a run has come to its end since the registry was read."""
        free = [view for view in views if is_stuck(view) and self._table_of(view) in self._free]
        now_s = self._settings.clock()
        if not free or now_s - self._refreshed_s < BETWEEN_REFRESHES_S:
            return False
        self._refreshed_s = now_s
        try:
            registry.refresh(project)
            return any(
                not is_stuck(registry.get_any_feature_view(view.name, project, allow_cache=True))
                for view in free
            )
        except Exception as error:  # noqa: BLE001 - whatever a registry raises: the read's own error is raised
            _log_failure(free[0].name, error)
            return False
