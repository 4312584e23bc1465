"""Settings of one feature view, kept in its tags."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

from feast_dynamo_ext.dynamo.tables.table_settings import (
    SettingsModel,
    TableSettings,
    refuse_unknown,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


PREFIX = "feast_dynamo_ext."
TABLE = "table."
MOST_VIEWS = 10_000


class ViewSettings(SettingsModel):
    """How this store keeps one view, where that differs from feature_store.yaml.

    ::

        FeatureView(
            name="orders",
            tags={
                "team": "growth",
                **ViewSettings(
                    consistent_reads=True, table=TableSettings(deletion_protection=True)
                ).tags(),
            },
            ...,
        )

    Feast keeps a view's tags in its registry; these are one tag a setting, named
    `feast_dynamo_ext.` and the setting, and never become tags of the table.

    Raises:
        ConfigError: a value that cannot be, or settings that contradict each other.
    """

    write_mode: Literal["newest_wins", "overwrite"] | None = None
    """Whether an older row may replace a newer one. Default: the store's."""

    consistent_reads: bool | None = None
    """Strongly consistent reads, at twice the read units. Default: the store's."""

    expired: Literal["status", "value"] | None = None
    """What a row older than the view's ttl answers. Default: the store's."""

    table: TableSettings = TableSettings()
    """Settings of the view's table. Default: the store's."""

    def tags(self) -> dict[str, str]:
        """The settings as tags, to be merged into those of the view."""
        values = self.model_dump(exclude_none=True)
        table = {TABLE + name: value for name, value in values.pop("table").items()}
        return {PREFIX + name: _text(value) for name, value in {**values, **table}.items()}

    @classmethod
    def from_view(cls, view: Any) -> ViewSettings:
        """The settings in a view's tags.

        Raises:
            ConfigError: a tag of ours that is unknown or has a bad value, naming view and tag.
        """
        tags: Mapping[str, str] = getattr(view, "tags", None) or {}
        ours = tuple(item for item in tags.items() if item[0].startswith(PREFIX))
        return _parsed(view.name, ours) if ours else NO_SETTINGS


NO_SETTINGS = ViewSettings()


def aws_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """The tags of a view that are meant for its table: all but settings."""
    return {name: value for name, value in (tags or {}).items() if not name.startswith(PREFIX)}


# Every read of a view asks for its settings.
@functools.lru_cache(MOST_VIEWS)
def _parsed(view: str, tags: tuple[tuple[str, str], ...]) -> ViewSettings:
    subject = f"Feature view `{view}`, tags"
    given = {name.removeprefix(PREFIX): value for name, value in tags}
    refuse_unknown(subject, PREFIX, given, _names())
    table = {
        name.removeprefix(TABLE): value for name, value in given.items() if name.startswith(TABLE)
    }
    own = {name: value for name, value in given.items() if not name.startswith(TABLE)}
    settings = TableSettings.model_validate(
        table, context={"subject": subject, "prefix": PREFIX + TABLE}
    )
    return ViewSettings.model_validate(
        {**own, "table": settings}, context={"subject": subject, "prefix": PREFIX}
    )


def _names() -> set[str]:
    names = {TABLE + name for name in TableSettings.model_fields}
    return names | (set(ViewSettings.model_fields) - {"table"})


def _text(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
