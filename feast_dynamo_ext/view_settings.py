"""Settings of one feature view, kept in its tags; those of its table, of all tables as well.

Unset (None) means: as the store's block of feature_store.yaml has it; of a table besides: as
DynamoDB makes it, and as it is where the table is there already.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from feast_dynamo_ext.columns import Tombstones, join_keys, stored_names, tombstones_of
from feast_dynamo_ext.config import SettingsModel, refuse_unknown
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.series_settings import (
    MOST_COHORTS,
    NAMES,
    Derived,
    Names,
    Series,
    refuse_doubled,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


PREFIX = "feast_dynamo_ext."
TABLE = "table."
MOST_VIEWS = 10_000

Ceiling = Annotated[int, Field(ge=1)] | Literal["off"]

UNITS = ("read_units", "write_units")
CEILINGS = ("max_read_units", "max_write_units")
THROUGHPUT = ("billing", *UNITS, *CEILINGS)
KMS_KEY = r"^(aws_owned|aws_managed|alias/.+|arn:aws[\w-]*:kms:.+|mrk-[0-9a-f]{32}|[0-9a-f-]{36})$"

NO_AUTOSCALING = (
    "is a setting of autoscaling, and autoscaling of tables is no longer part of this package. "
    "Remove it, and let Terraform or CloudFormation scale the table: with `billing: provisioned` "
    "and neither `read_units` nor `write_units`, `feast apply` leaves the units to it"
)

BOOLEAN = "true or false"
COUNT = "a whole number of at least 1"
EXPECTED = {
    "billing": "on_demand or provisioned",
    "read_units": COUNT,
    "write_units": COUNT,
    "max_read_units": f"{COUNT}, or off",
    "max_write_units": f"{COUNT}, or off",
    "table_class": "standard or infrequent_access",
    "kms_key": "aws_owned, aws_managed, or the ARN, id or alias (alias/...) of a KMS key",
    "point_in_time_recovery": BOOLEAN,
    "recovery_days": "a whole number from 1 to 35",
    "stream": "new_image, old_image, new_and_old_images, keys_only or off",
    "ttl": BOOLEAN,
    "deletion_protection": BOOLEAN,
    "warm_read_units": COUNT,
    "warm_write_units": COUNT,
    "write_mode": "newest_wins or overwrite",
    "consistent_reads": BOOLEAN,
    "expired": "status or value",
    "deletes": "apply or ignore",
    "series": "a Series, how every event is kept",
    "cohorts": NAMES,
    "derived": "what `recent` or `windows` of feast_dynamo_ext declare",
    "table": "table settings",
}


class TableSettings(SettingsModel):
    """Settings of a DynamoDB table, for all views in feature_store.yaml, or for one view.

    What is not set stays as it is; a new table gets what DynamoDB gives by itself.

    Raises:
        ConfigError: a value that cannot be, or settings that contradict each other.
    """

    _expected: ClassVar[dict[str, str]] = EXPECTED
    _removed: ClassVar[dict[str, str]] = {"target_percent": NO_AUTOSCALING}

    billing: Literal["on_demand", "provisioned"] | None = None
    """Pay per request, or for units a second that are kept ready. A new table is on demand.
    DynamoDB takes a change to provisioned at any time, to on demand up to four times a day.
    `provisioned` without units leaves those of a table that is there to whoever scales it."""

    read_units: int | None = Field(default=None, ge=1)
    """Provisioned: read units a second, each good for 4 KB (8 KB eventually consistent). Set both
    units or neither; a new table needs both."""

    write_units: int | None = Field(default=None, ge=1)
    """Provisioned: write units a second, each good for 1 KB."""

    max_read_units: Ceiling | None = None
    """On demand: read units a second over which requests are throttled. `off`: no ceiling."""

    max_write_units: Ceiling | None = None
    """As `max_read_units`, of write units."""

    table_class: Literal["standard", "infrequent_access"] | None = None
    """`infrequent_access` stores for less and reads and writes for more; it pays where storage is
    most of the bill. DynamoDB takes two changes in 30 days."""

    kms_key: str | None = Field(default=None, pattern=KMS_KEY)
    """Key that the table is encrypted with: `aws_owned` (DynamoDB's own, free of charge),
    `aws_managed` (the account's `aws/dynamodb`), or the ARN, id or alias of a key of yours."""

    point_in_time_recovery: bool | None = None
    """Continuous backups, to restore any second of the last days and to export to S3; charged by
    the size of the table."""

    recovery_days: int | None = Field(default=None, ge=1, le=35)
    """Days that point-in-time recovery goes back. DynamoDB's default: 35."""

    stream: Literal["new_image", "old_image", "new_and_old_images", "keys_only", "off"] | None = (
        None
    )
    """What DynamoDB Streams tells of each change, for 24 hours; `off` for no stream."""

    ttl: bool | None = None
    """DynamoDB deletes items of a view with a ttl, hours to days after they expire and at no
    charge. A new table has it on; DynamoDB takes one change an hour."""

    deletion_protection: bool | None = None
    """DynamoDB refuses to delete the table, to `feast teardown` too."""

    warm_read_units: int | None = Field(default=None, ge=1)
    """Read units a second that the table can serve at once; charged once. It only ever grows."""

    warm_write_units: int | None = Field(default=None, ge=1)
    """As `warm_read_units`, of write units."""

    @field_validator("stream", *CEILINGS, mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # To yaml, `off` is false.
        return "off" if value is False else value

    def check(self, subject: str) -> None:
        """Refuse settings that contradict each other."""
        problem = ""
        if self.billing == "on_demand":
            problem = self._problem_on_demand()
        elif self.billing == "provisioned":
            problem = self._problem_provisioned()
        if problem:
            raise ConfigError(f"{subject}: {problem}.")

    def _problem_on_demand(self) -> str:
        for name in UNITS:
            if getattr(self, name) is not None:
                return (
                    f"`{name}` needs `billing: provisioned`; a table on demand has no units of "
                    "its own, only a ceiling (`max_read_units`, `max_write_units`)"
                )
        return ""

    def _problem_provisioned(self) -> str:
        for name in CEILINGS:
            if getattr(self, name) is not None:
                return f"`{name}` with `billing: provisioned` {NO_AUTOSCALING}"
        missing = [name for name in UNITS if getattr(self, name) is None]
        return f"`billing: provisioned` needs `{missing[0]}`" if len(missing) == 1 else ""

    def with_defaults(self, store: TableSettings, subject: str) -> TableSettings:
        """These settings, completed by the store's. One that names `billing` brings its own units.

        Raises:
            ConfigError: both together cannot be; `subject` says whose they are.
        """
        own = self.model_dump(exclude_none=True)
        given = store.model_dump(exclude_none=True)
        if "billing" in own:
            given = {name: value for name, value in given.items() if name not in THROUGHPUT}
        both = TableSettings.model_validate(given | own, context={"subject": subject})
        both.refuse_incomplete(subject)
        return both

    def refuse_incomplete(self, subject: str) -> None:
        """Refuse a setting without the one that gives it its meaning.

        Raises:
            ConfigError: naming the subject and the setting.
        """
        if self.recovery_days is not None and not self.point_in_time_recovery:
            raise ConfigError(f"{subject}: `recovery_days` needs `point_in_time_recovery: true`.")
        if self.billing is None:
            for name in THROUGHPUT:
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{subject}: `{name}` needs `billing` (on_demand or provisioned) beside "
                        "it."
                    )


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
    `feast_dynamo_ext.` and the setting, and never become tags of the table. Settings that have
    settings of their own are JSON there.

    Raises:
        ConfigError: a value that cannot be, or settings that contradict each other.
    """

    _expected: ClassVar[dict[str, str]] = EXPECTED

    write_mode: Literal["newest_wins", "overwrite"] | None = None
    """Whether an older row may replace a newer one. Default: the store's."""

    consistent_reads: bool | None = None
    """Strongly consistent reads, at twice the read units. Default: the store's."""

    expired: Literal["status", "value"] | None = None
    """What a row older than the view's ttl answers. Default: the store's."""

    deletes: Literal["apply", "ignore"] | None = None
    """Of a view over a `DynamoDBTableSource`: whether deleting an item ends its entity's features,
    in training and online, or changes nothing. `apply` needs join keys that are the captured
    table's key: deleting one of many items must not empty their entity. A `series` needs no
    such keys. Default: `apply`."""

    series: Series | None = None
    """Keep every event of an entity, and not its newest row alone: see `Series`."""

    cohorts: Names = ()
    """Of a view that keeps its newest rows: features by whose value entities can be found, by a
    global index each: see `cohort`. Rows are found once they are written after that. Those of a
    series are the series' own."""

    derived: Derived | None = None
    """What a view that `recent` or `windows` made computes of the events of another one."""

    table: TableSettings = TableSettings()
    """Settings of the view's table. Default: the store's."""

    def check(self, subject: str) -> None:
        """Refuse settings that contradict each other."""
        refuse_doubled(subject, "cohorts", self.cohorts, MOST_COHORTS)
        if self.series is not None and self.cohorts:
            raise ConfigError(
                f"{subject}: `cohorts` beside `series`: those of a series are its own. Write "
                "Series(cohorts=...)."
            )
        if self.derived is not None and (self.series is not None or self.cohorts):
            raise ConfigError(
                f"{subject}: a derived view has no table, and so neither `series` nor `cohorts`. "
                "Set them on its base view."
            )

    def tags(self) -> dict[str, str]:
        """The settings as tags, to be merged into those of the view."""
        values = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        values.setdefault("table", {})
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


def view_tombstones(view: Any) -> Tombstones | None:
    """How rows of a view's history say that items are gone, and whether that counts for it.

    None for a view whose source is no captured table.

    Raises:
        ConfigError: as `ViewSettings.from_view`.
    """
    found = tombstones_of(getattr(view, "batch_source", None))
    if found is None:
        return None
    return replace(found, is_applied=ViewSettings.from_view(view).deletes != "ignore")


def derived_of(view: Any) -> Derived | None:
    """What a view computes of the events of another one; None of a view with rows of its own.

    Raises:
        ConfigError: as `ViewSettings.from_view`.
    """
    return ViewSettings.from_view(view).derived


def refuse_derived(view: Any) -> None:
    """Refuse to write rows of a derived view: they would go to its base view's history or nowhere.

    Raises:
        ConfigError: names both views; or as `ViewSettings.from_view`.
    """
    derived = derived_of(view)
    if derived is not None:
        raise ConfigError(
            f"Feature view `{view.name}` is computed of the events of `{derived.base}`, and has "
            f"no rows of its own. Write events of `{derived.base}`."
        )


def series_of(view: Any) -> Series | None:
    """How a view's events lie; None where only the newest row of each entity is kept.

    Raises:
        ConfigError: as `ViewSettings.from_view`.
    """
    return ViewSettings.from_view(view).series


def series_in(config: Any, view: Any) -> Series | None:
    """How a view's events lie, the tie-breaker included that a captured table's key says.

    Args:
        config: the repo's.
        view: the view.

    Raises:
        ConfigError: as `ViewSettings.from_view`.
        OfflineStoreError, AwsError: the captured table's key cannot be found out.
    """
    series = series_of(view)
    item_keys = getattr(getattr(view, "batch_source", None), "item_keys", None)
    if series is None or series.tie_breaker or item_keys is None:
        return series
    return series.model_copy(update={"tie_breaker": beside_event(view, item_keys(config))})


def beside_event(view: Any, keys: Iterable[str]) -> tuple[str, ...]:
    """What a captured table's key has beside a view's join keys and event time.

    Args:
        view: over the table.
        keys: columns of the history that have the table's key attributes.

    Returns:
        Features by the names that the view has for them, in the order of the keys.
    """
    source = view.batch_source
    stored = stored_names(source)
    named = {stored[field.name]: field.name for field in view.features}
    known = {source.timestamp_field, *(stored[name] for name in join_keys(view))}
    return tuple(named.get(key, key) for key in keys if key not in known)


def refuse_needless_deletes(view: Any) -> None:
    """Refuse `deletes` of a view that knows of no deletions.

    Raises:
        ConfigError: names the view.
    """
    source = getattr(view, "batch_source", None)
    if ViewSettings.from_view(view).deletes is not None and tombstones_of(source) is None:
        raise ConfigError(
            f"Feature view `{view.name}`: `deletes` is a setting of views over a "
            "`DynamoDBTableSource`: no other source says what was deleted. Remove it."
        )


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
    own: dict[str, Any] = {
        name: value for name, value in given.items() if not name.startswith(TABLE)
    }
    for name in NESTED & own.keys():
        own[name] = _nested(view, name, own[name])
    settings = TableSettings.model_validate(
        table, context={"subject": subject, "prefix": PREFIX + TABLE}
    )
    return ViewSettings.model_validate(
        {**own, "table": settings}, context={"subject": subject, "prefix": PREFIX}
    )


NESTED = {"series", "cohorts", "derived"}
"""Settings that are JSON in their tags."""


def _nested(view: str, name: str, text: str) -> Any:
    subject = f"Feature view `{view}`, tag `{PREFIX}{name}`"
    try:
        value = json.loads(text)
    except ValueError:
        raise ConfigError(
            f"{subject}: `{text}` is no JSON. Let `ViewSettings(...).tags()` write it."
        ) from None
    models: dict[str, Any] = {"series": Series, "derived": Derived}
    if name not in models:
        return value
    return models[name].model_validate(value, context={"subject": subject})


def _names() -> set[str]:
    names = {TABLE + name for name in (*TableSettings.model_fields, *TableSettings._removed)}
    return names | (set(ViewSettings.model_fields) - {"table"})


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value, separators=(",", ":"))
    return str(value).lower() if isinstance(value, bool) else str(value)
