"""Which folders a feature repo reads, and by which columns: from its feature views and sources."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import CompactionError, ConfigError, OfflineStoreError
from feast_dynamo_ext.offline.compact.snapshot import Target
from feast_dynamo_ext.offline.plan import plan_view
from feast_dynamo_ext.offline.sources.source import uri_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast import FeatureStore
    from feast.data_source import DataSource

    from feast_dynamo_ext.offline.plan import ViewPlan


def targets(store: FeatureStore, names: Sequence[str]) -> list[Target]:
    """The folders behind sources and views, each once.

    Args:
        store: the feature store.
        names: names of sources or feature views; none for all sources of views.

    Raises:
        ConfigError: there is no such source or view.
        CompactionError: sources of one folder name different columns of time.
    """
    every: list[Any] = list(store.list_all_feature_views())
    views = [view for view in every if getattr(view, "batch_source", None) is not None]
    sources = {view.batch_source.name: view.batch_source for view in views}
    sources |= {source.name: source for source in store.list_data_sources()}
    wanted = _wanted(names, views, sources)
    by_uri: dict[str, list[ViewPlan]] = {}
    for view in views:
        uri = _uri(view.batch_source, store, strict=False)
        by_uri.setdefault(uri, []).append(plan_view(view, [], full_feature_names=False))
    found: dict[str, Target] = {}
    for source in wanted:
        uri = _uri(source, store, strict=bool(names))
        if uri and uri not in found:
            found[uri] = _target(source, by_uri.get(uri, []))
    return list(found.values())


def _uri(source: DataSource, store: FeatureStore, *, strict: bool) -> str:
    """Where a source is; empty for one that this store does not read, if not strict."""
    try:
        return uri_of(source, store.config).rstrip("/")
    except OfflineStoreError:
        if strict:
            raise
        return ""


def _wanted(
    names: Sequence[str], views: Sequence[Any], sources: dict[str, DataSource]
) -> list[DataSource]:
    by_view = {view.name: view.batch_source for view in views}
    if not names:
        return list({source.name: source for source in by_view.values()}.values())
    known = by_view | sources
    missing = [name for name in names if name not in known]
    if missing:
        close = difflib.get_close_matches(missing[0], known, n=1)
        hint = (
            f"Did you mean `{close[0]}`?" if close else f"There are: {', '.join(sorted(known))}."
        )
        raise ConfigError(f"There is no source or feature view `{missing[0]}`. {hint}")
    return [known[name] for name in names]


def _target(source: DataSource, views: Sequence[ViewPlan]) -> Target:
    if not views:
        return _unread(source)
    times = {(view.event_time, view.created_time) for view in views}
    if len(times) > 1:
        raise CompactionError(
            f"The folder of source `{source.name}` is read by the feature views "
            f"{', '.join(sorted(view.view for view in views))} with different columns of time: "
            f"{sorted(times, key=str)}. It cannot be sorted for all of them; use one source."
        )
    ((event_time, created_time),) = times
    keys = set.intersection(*({column for _, column in view.keys} for view in views))
    readers = {view.view for view in views} | {view.source.name for view in views}
    return Target(source, event_time, created_time, tuple(sorted(keys)), tuple(sorted(readers)))


def _unread(source: DataSource) -> Target:
    original = {new: old for old, new in (source.field_mapping or {}).items()}
    created = source.created_timestamp_column
    return Target(
        source,
        original.get(source.timestamp_field, source.timestamp_field),
        original.get(created, created) or None,
        (),
        (source.name,),
    )
