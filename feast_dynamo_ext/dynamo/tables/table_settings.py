"""What a table should be like, as values: the `table` block of feature_store.yaml, and its kin.

Unset (None) means: as DynamoDB makes it, and as it is where the table is there already.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from feast.repo_config import FeastConfigBaseModel
from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from feast_dynamo_ext.aws import AwsConfigModel
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable


Ceiling = Annotated[int, Field(ge=1)] | Literal["off"]

UNITS = ("read_units", "write_units")
CEILINGS = ("max_read_units", "max_write_units")
THROUGHPUT = ("billing", *UNITS, *CEILINGS, "target_percent")
KMS_KEY = r"^(aws_owned|aws_managed|alias/.+|arn:aws[\w-]*:kms:.+|mrk-[0-9a-f]{32}|[0-9a-f-]{36})$"
DEFAULT_TARGET_PERCENT = 70

BOOLEAN = "true or false"
COUNT = "a whole number of at least 1"
EXPECTED = {
    "billing": "on_demand or provisioned",
    "read_units": COUNT,
    "write_units": COUNT,
    "max_read_units": f"{COUNT}, or off",
    "max_write_units": f"{COUNT}, or off",
    "target_percent": "a whole number from 20 to 90",
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
    "table": "table settings",
}


class SettingsModel(FeastConfigBaseModel):
    """Settings that say of a mistake, in one sentence, which it is and what would be right.

    The validation context may say whose settings they are (`subject`) and what stands before
    their names (`prefix`), as it does where they are tags.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _explain(
        cls, values: Any, handler: ModelWrapValidatorHandler[Any], info: ValidationInfo
    ) -> Any:
        context = info.context or {}
        subject, prefix = context.get("subject", cls.__name__), context.get("prefix", "")
        if isinstance(values, dict):
            refuse_unknown(subject, prefix, values, cls.model_fields)
        try:
            settings = handler(values)
        except ValidationError as error:
            raise ConfigError(f"{subject}: {_first_problem(error, prefix)}.") from error
        settings.check(subject)
        return settings

    def check(self, subject: str) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ConfigError: naming the subject and the settings.
        """


def refuse_unknown(subject: str, prefix: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that no setting has, with the one that may have been meant."""
    known = sorted(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = (
                f"Did you mean `{prefix}{close[0]}`?"
                if close
                else f"Known: {', '.join(prefix + other for other in known)}."
            )
            raise ConfigError(f"{subject}: there is no setting `{prefix}{name}`. {hint}")


def _first_problem(error: ValidationError, prefix: str) -> str:
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        return f"`{problem['input']}` is not a mapping of settings"
    name = str(problem["loc"][0])
    return f"`{prefix}{name}` is `{problem['input']}`, but must be {EXPECTED[name]}"


class TableSettings(SettingsModel):
    """Settings of a DynamoDB table, for all views in feature_store.yaml, or for one view.

    What is not set stays as it is; a new table gets what DynamoDB gives by itself.

    Raises:
        ConfigError: a value that cannot be, or settings that contradict each other.
    """

    billing: Literal["on_demand", "provisioned"] | None = None
    """Pay per request, or for units a second that are kept ready. A new table is on demand.
    DynamoDB takes a change to provisioned at any time, to on demand up to four times a day."""

    read_units: int | None = Field(default=None, ge=1)
    """Provisioned: read units a second, each good for 4 KB (8 KB eventually consistent). With
    `max_read_units` the fewest that autoscaling goes down to."""

    write_units: int | None = Field(default=None, ge=1)
    """Provisioned: write units a second, each good for 1 KB. With `max_write_units` the fewest
    that autoscaling goes down to."""

    max_read_units: Ceiling | None = None
    """On demand: read units a second over which requests are throttled, against surprises on the
    bill. Provisioned: the most that autoscaling goes up to. `off`: no ceiling, no autoscaling."""

    max_write_units: Ceiling | None = None
    """As `max_read_units`, of write units."""

    target_percent: int | None = Field(default=None, ge=20, le=90)
    """Autoscaling: the share of the units that should be in use. Default: 70."""

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
    """Read units a second that the table can serve at once, without growing into them; charged
    once. It only ever grows."""

    warm_write_units: int | None = Field(default=None, ge=1)
    """As `warm_read_units`, of write units."""

    @field_validator("stream", *CEILINGS, mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # To yaml, `off` is false.
        return "off" if value is False else value

    def check(self, subject: str) -> None:
        """Refuse settings that contradict each other."""
        problem = (
            self._problem_on_demand() if self.billing == "on_demand" else self._problem_of_units()
        )
        if problem:
            raise ConfigError(f"{subject}: {problem}.")

    def _problem_on_demand(self) -> str:
        for name in (*UNITS, "target_percent"):
            if getattr(self, name) is not None:
                return (
                    f"`{name}` needs `billing: provisioned`; a table on demand has no units of "
                    "its own, only a ceiling (`max_read_units`, `max_write_units`)"
                )
        return ""

    def _problem_of_units(self) -> str:
        for name, ceiling in zip(UNITS, CEILINGS, strict=True):
            least, most = getattr(self, name), getattr(self, ceiling)
            if self.billing == "provisioned" and least is None:
                return f"`billing: provisioned` needs `{name}`"
            if least is not None and isinstance(most, int) and most < least:
                return f"`{ceiling}` ({most}) is below `{name}` ({least})"
        scaled = any(isinstance(getattr(self, name), int) for name in CEILINGS)
        if self.billing == "provisioned" and self.target_percent is not None and not scaled:
            return "`target_percent` needs `max_read_units` or `max_write_units` to scale up to"
        return ""

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


class TableConfig(AwsConfigModel):
    """The fields of the `online_store` block that are about tables."""

    manage_tables: Literal["create", "verify", "never"] = "create"
    """What `feast apply` does about tables: `create` them and change them to what is set here,
    `verify` that each is there and as set, and fail naming all that are not, or `never` look."""

    on_remove: Literal["retain", "delete"] = "retain"
    """What `feast apply` does with the table of a view that is gone: keep it and say so, or delete
    it. `feast teardown` always deletes."""

    tags: dict[str, str] | None = None
    """Tags of every table; a view's own tags win. Tags that others set are never removed."""

    table: TableSettings | None = None
    """Settings of every table; a view's own (`ViewSettings`) win."""

    @field_validator("table", mode="before")
    @classmethod
    def _table_says_where_it_stands(cls, value: Any) -> Any:
        if value is None or isinstance(value, TableSettings):
            return value
        return TableSettings.model_validate(value, context={"subject": "`online_store.table`"})

    @field_validator("table")
    @classmethod
    def _table_is_complete(cls, value: TableSettings | None) -> TableSettings | None:
        if value is not None:
            value.refuse_incomplete("`online_store.table`")
        return value
