"""Puts right what a killed run leaves in Feast's registry: views `MATERIALIZING` for ever.

Feast sets that state before a run and takes it back after it. Readers are refused meanwhile
(unless `serve_features_while_materializing` is set), and after a kill -9 for good. Where the run
after that fails, Feast sets them `GENERATED`, which is refused too.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from feast.feature_view import FeatureViewState
from feast.version_utils import parse_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)


def repair(
    registry: Any, project: str, views: Iterable[Any], is_gone: Callable[[Any], bool]
) -> list[str]:
    """Make views readable again whose materialization was killed.

    Args:
        registry: Feast's.
        project: its project.
        views: feature views, as the registry has them; all others are left alone.
        is_gone: whether no run materializes a view any more (`holder.is_gone`); asked only of
            views that may be stuck.

    Returns:
        The names of the views that were repaired.
    """
    return [
        view.name
        for view in views
        if is_stuck(view) and is_gone(view) and _set_back(registry, project, view.name)
    ]


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
        # a run, so the end of the last one is told again.
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
