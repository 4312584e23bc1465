"""What `feast apply` and `feast plan` refuse of series, cohorts and derived views."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.columns import tombstones_of
from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.dynamo.layouts.series import AS_COHORTS, IN_BYTES
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.series_settings import kept, refuse_longer_than_kept
from feast_dynamo_ext.view_settings import ViewSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

INDEX_NAME = re.compile(r"[A-Za-z0-9_.-]{1,240}")
"""What DynamoDB takes as the name of an index, with ours before it."""


def check_series(views: Iterable[Any]) -> None:
    """Refuse views whose series, cohorts or derived features cannot be.

    Args:
        views: all that are applied together, those they are derived from among them.

    Raises:
        ConfigError: names the view, the setting and what to write.
    """
    views = list(views)
    by_name = {view.name: view for view in views}
    for view in views:
        settings = ViewSettings.from_view(view)
        types = {
            field.name: field.dtype.to_value_type().name for field in getattr(view, "features", ())
        }
        where = f"Feature view `{view.name}`"
        if settings.series is not None:
            _check_source(view, where)
            # The key of a captured table tells its items apart: see `apply_checks.check_series`.
            is_captured = tombstones_of(getattr(view, "batch_source", None)) is not None
            _check_one(settings.series, types, where, is_captured=is_captured)
        if settings.cohorts:
            _check_names("cohorts", settings.cohorts, types, AS_COHORTS, where)
            _check_index("cohorts", settings.cohorts, where)
        if settings.derived is not None:
            _check_derived(view, settings.derived, by_name, where)


def _check_source(view: Any, where: str) -> None:
    if getattr(view, "feature_transformation", None) is not None:
        raise ConfigError(
            f"{where} keeps every event, and transforms its rows: a series takes rows of its "
            "source as they are. Transform them before."
        )


def _check_one(series: Any, types: Mapping[str, str], where: str, *, is_captured: bool) -> None:
    if not series.tie_breaker and not is_captured:
        raise ConfigError(
            f"{where} keeps every event, and has no `tie_breaker`: of two events of one entity "
            "and microsecond one would be lost. Name a feature that tells them apart, as the "
            'number of a purchase does: Series(tie_breaker="purchase_id").'
        )
    _check_names("tie_breaker", series.tie_breaker, types, IN_BYTES, where)
    _check_names("orders", series.orders, types, IN_BYTES, where)
    _check_names("cohorts", series.cohorts, types, AS_COHORTS, where)
    _check_index("orders", series.orders, where)
    _check_index("cohorts", series.cohorts, where)


def _check_names(
    setting: str,
    names: Sequence[str],
    types: Mapping[str, str],
    takes: frozenset[str],
    where: str,
) -> None:
    for name in names:
        if name not in types:
            raise ConfigError(
                f"{where}: `{setting}` names `{name}`, which is no feature of it. "
                f"{did_you_mean(name, types, 'It has')}"
            )
        if types[name] not in takes:
            raise ConfigError(
                f"{where}: `{setting}` names `{name}`, a {types[name]}; it takes "
                f"{', '.join(sorted(takes))}."
            )


def _check_index(setting: str, names: Sequence[str], where: str) -> None:
    for name in names:
        if not INDEX_NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: `{setting}` names `{name}`, of which DynamoDB makes no index: letters "
                "without accents, digits, `_`, `-` and `.` are allowed. Rename the feature."
            )


def _check_derived(view: Any, derived: Any, by_name: Mapping[str, Any], where: str) -> None:
    if getattr(view, "online", False):
        raise ConfigError(
            f"{where} is derived, and `online=True` would have Feast materialize it. Leave "
            "`online` as `recent` and `windows` set it: it is read online all the same."
        )
    base = by_name.get(derived.base)
    if base is None:
        return  # applied before
    series = ViewSettings.from_view(base).series
    if series is None:
        raise ConfigError(
            f"{where} is derived from `{base.name}`, which keeps the newest row of each entity "
            "alone. Give it ViewSettings(series=...), or remove the derived view."
        )
    limit, longest = kept(series, base.ttl), derived.what.longest
    refuse_longer_than_kept(f"{where}: what it computes of", longest, base.name, limit)
    names = {field.name for field in base.features}
    missing = [column for column in derived.what.columns if column not in names]
    if missing:
        raise ConfigError(
            f"{where}: `{base.name}` has no feature `{missing[0]}` any more. "
            f"{did_you_mean(missing[0], names, 'It has')}"
        )
