"""Which way into a table, and whether it can be taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.tables.changes import check_layout
from feast_dynamo_ext.dynamo.tables.wait import describe
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.materialize.bulk.bulk_put import require_support
from feast_dynamo_ext.materialize.bulk.empty import require_empty

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.tables.clients import TableClients
    from feast_dynamo_ext.materialize.bulk.values import BulkSettings, LoadWay, Target


def choose_way(tables: TableClients, target: Target, settings: BulkSettings) -> LoadWay:
    """How to load: an import makes a table, a bulk put needs one.

    Raises:
        ConfigError: the way that was asked for does not fit the table.
        DependencyError: a bulk put, and botocore is too old.
        TableLayoutError: another program's table is in the way.
        AwsError: AWS refused.
    """
    exists = table_exists(tables, target)
    if exists and settings.replace_empty and settings.way != "bulk-put":
        require_empty(tables.dynamodb, target.spec)
        _require_may_create(target)
        return "import"
    if settings.way == "import" or (settings.way == "auto" and not exists):
        if exists:
            raise ConfigError(
                f"An import makes a new table, but {_table(target)} is there. If it holds no "
                "rows, as after `feast apply`, --replace-empty deletes it first; else load with "
                "--way bulk-put."
            )
        _require_may_create(target)
        return "import"
    if not exists:
        raise ConfigError(
            f"A bulk put needs a table, but {_table(target)} is not there. Run `feast apply` "
            "first, or load with --way import, which makes it."
        )
    require_support(tables.dynamodb)
    return "bulk-put"


def table_exists(tables: TableClients, target: Target) -> bool:
    """Whether the table is there.

    Raises:
        TableLayoutError: it is another program's.
        AwsError: AWS refused.
    """
    with translated("dynamodb", f"table {target.spec.name}"):
        described = describe(tables.dynamodb, target.spec.name)
    if described is not None:
        check_layout(target.spec, described)
    return described is not None


def _require_may_create(target: Target) -> None:
    if not target.may_create:
        raise ConfigError(
            f"An import would make {_table(target)}, but `manage_tables` in feature_store.yaml "
            "says that tables are made elsewhere. Set it to `create`, or make the table and load "
            "with --way bulk-put."
        )


def _table(target: Target) -> str:
    return f"table {target.spec.name} (feature view `{target.spec.view}`)"
